package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/internal/packs"
)

// editing is what the verbs that edit the config have in common.
type editing struct {
	a              *app
	dryRun, asJSON bool
	what           string // is added, if it is more than one entry
}

func (e *editing) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&e.dryRun, "dry-run", false, "show what would change, as a diff, and write nothing")
	cmd.Flags().BoolVar(&e.asJSON, "json", false, "print one JSON object")
}

// path is the file that is edited.
func (e *editing) path() (string, error) {
	if len(e.a.quick.upstreams) > 0 {
		return "", usage("--upstream stands in place of a config file, and this verb edits one")
	}
	path, _, err := e.a.layers.ConfigPath()
	if err != nil {
		return "", usage("%w", err)
	}
	return path, nil
}

func (e *editing) add(list edit.List, entry []byte, source string) error {
	path, err := e.path()
	if err != nil {
		return err
	}
	r, err := edit.Add(path, list, entry, edit.Options{DryRun: e.dryRun, Source: source})
	return e.tell(list, "added", r, err)
}

func (e *editing) removePolicies(ids []string) error {
	path, err := e.path()
	if err != nil {
		return err
	}
	ids = distinct(ids)
	o := edit.Options{DryRun: e.dryRun}
	cfg, err := e.a.layers.Find()
	if err != nil {
		cfg = config.Empty() // the edit says what is wrong with it
	}
	if o.Known, err = packed(cfg, ids...); err != nil {
		return err
	}
	if len(ids) == 1 {
		r, err := edit.Remove(path, edit.Policies, ids[0], o)
		return e.tell(edit.Policies, "removed", r, err)
	}
	e.what = "the policies"
	r, err := edit.RemoveAll(path, edit.ByID(ids), o)
	return e.tell(edit.Policies, "removed", r, err)
}

// packed are the entries that packs may have added where policies are removed: for an upstream, and
// in a file of policies alone for what its rules name, or by the pack's own name.
func packed(cfg *config.Config, ids ...string) (known []edit.Entry, err error) {
	var names []string
	for _, u := range cfg.Upstreams {
		names = append(names, u.Name)
	}
	if len(names) == 0 {
		names = packs.Named(cfg)
	}
	all, err := packs.All()
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		names = append(names, p.Name)
	}
	for _, name := range distinct(names) {
		if !slices.ContainsFunc(ids, func(id string) bool { return strings.HasPrefix(id, name+"-") }) {
			continue
		}
		more, err := packs.Known(name)
		if err != nil {
			return nil, err
		}
		known = append(known, more...)
	}
	return known, nil
}

// distinct is a list without what is in it already.
func distinct(list []string) (out []string) {
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// removeUpstream removes an upstream alone. Where only policies about it are in the way, it
// says how they go with it.
func (e *editing) removeUpstream(name string) error {
	path, err := e.path()
	if err != nil {
		return err
	}
	r, err := edit.Remove(path, edit.Upstreams, name, edit.Options{DryRun: e.dryRun})
	if _, named := errors.AsType[config.Problems](err); named {
		if with, failed := edit.RemoveUpstream(path, name, edit.Options{DryRun: true}); failed == nil {
			if e.a.settings, failed = e.a.layers.Settings(with.New); failed == nil { // the command names the state directory
				e.a.say("haldir: what is about this upstream goes with it by: %s", e.a.takeOut(name))
			}
		}
	}
	return e.tell(edit.Upstreams, "removed", r, err)
}

// withdraw removes an upstream with what is about it alone, and takes it out of the rest.
func (e *editing) withdraw(name string) error {
	path, err := e.path()
	if err != nil {
		return err
	}
	known, err := packs.Known(name)
	if err != nil {
		return err
	}
	r, err := edit.RemoveUpstream(path, name, edit.Options{DryRun: e.dryRun, Known: known})
	if len(r.IDs) > 0 {
		r.Notes = append(r.Notes, "what was about it alone goes with it: "+strings.Join(r.IDs, ", "))
	}
	return e.tell(edit.Upstreams, "removed", r, err)
}

// takeOut is the command that takes an upstream out of the config, whatever policies there
// are about it.
func (a *app) takeOut(name string) string {
	return a.command() + " upstream remove " + shellWord(name) + " --with-policies"
}

// tell says what has become of a change.
func (e *editing) tell(list edit.List, done string, r edit.Result, err error) error {
	a := e.a
	if err != nil {
		a.say("haldir: nothing was written")
		for _, asked := range []error{edit.ErrNotFound, edit.ErrShape, edit.ErrAlias} {
			if errors.Is(err, asked) {
				return &exit{code: exitUsage, err: err}
			}
		}
		return err
	}
	if a.settings, err = a.layers.Settings(r.New); err != nil {
		return &exit{code: exitUsage, err: err}
	}
	var loosens []string
	if r.Old != nil {
		loosens = config.Loosened(r.Old, r.New)
	}
	notes := r.Notes
	if list == edit.Upstreams {
		notes = append(notes, e.signIn(r)...)
	}
	if len(loosens) == 0 || a.settings.Reload == "auto" { // else it is said below, of all that waits
		notes = append(notes, e.waits(r)...)
	}
	what := map[edit.List]string{edit.Policies: "policy", edit.Upstreams: "upstream"}[list]
	if e.what != "" {
		named := slices.DeleteFunc(slices.Clone(r.IDs), func(id string) bool { return strings.Contains(id, "[") }) // a scope has no id
		what, r.ID = e.what, strings.Join(named, ", ")
	}
	changes := string(diff.Diff(r.Path, r.Before, r.Path, r.After))
	if e.asJSON {
		for _, l := range []*[]string{&loosens, &notes} {
			if *l == nil {
				*l = []string{}
			}
		}
		key := map[edit.List]string{edit.Policies: "id", edit.Upstreams: "name"}[list]
		if e.what != "" {
			return a.printJSON(map[string]any{
				"ids": r.IDs, "file": r.Path, "action": done, "written": !e.dryRun, "diff": changes, "loosens": loosens, "notes": notes,
			})
		}
		return a.printJSON(map[string]any{
			key: r.ID, "file": r.Path, "action": done, "written": !e.dryRun, "entry": r.Entry, "diff": changes, "loosens": loosens, "notes": notes,
		})
	}
	if e.dryRun {
		if err := a.printf("%s", lines(changes)); err != nil {
			return err
		}
	} else if err := a.printf("%s %s %s: %s\n", done, what, r.ID, plain(r.Path, 0)); err != nil {
		return err
	}
	for _, n := range notes {
		a.say("haldir: %s", plain(n, 0))
	}
	if len(loosens) > 0 && a.settings.Reload != "auto" {
		for _, l := range loosens {
			a.say("haldir: %s", plain(l, 0))
		}
		a.say("haldir: a running haldir goes on with the rules of before until a person confirms this: %s reload", a.command())
	}
	return nil
}

// waits says where a change that could be taken at once is not: one before it may wait for a
// person, as a running haldir takes the file as a whole. A change that is not written waits as the
// file does that it is for.
func (e *editing) waits(r edit.Result) (notes []string) {
	a := e.a
	a.looking = true
	var v verdicts
	var err error
	if e.dryRun {
		v, err = a.verdicts(context.Background(), r.Path, sha256.Sum256(r.Before))
		v.unseen = nil
	} else {
		v, err = a.settled(context.Background(), r.Path, current(r.Path, sha256.Sum256(r.After)))
	}
	if err != nil {
		return []string{fmt.Sprintf("whether a running haldir takes this could not be seen (%v); see: %s doctor", err, a.command())}
	}
	if len(v.waits) > 0 {
		notes = append(notes, "a running haldir takes the file as a whole, so that this waits until a person confirms the change before it: "+a.command()+" reload")
	}
	if len(v.unseen) > 0 {
		notes = append(notes, fmt.Sprintf("a running haldir (%s) has not looked at this within %v, and goes on with the rules of before; see: %s doctor", processes(v.unseen), verdictWait, a.command()))
	}
	for _, why := range v.refuses {
		notes = append(notes, "a running haldir does not take this, and goes on with the rules of before; "+why)
	}
	if len(v.without) > 0 {
		notes = append(notes, a.unruled(v))
	}
	return notes
}

// signIn says what there is to do about what an upstream grants.
func (e *editing) signIn(r edit.Result) []string {
	for _, u := range r.New.Upstreams {
		if u.Name == r.ID && u.OAuth != nil && !u.OAuth.Machine {
			return []string{"sign in with: " + e.a.command() + " upstream login " + r.ID}
		}
	}
	if r.Old == nil {
		return nil
	}
	for _, u := range r.Old.Upstreams {
		if u.Name == r.ID && u.OAuth != nil {
			return []string{"what it has granted is still stored; forget it with: " + e.a.command() + " secret remove --sign-in " + r.ID}
		}
	}
	return nil
}

// given reads an entry from a file, or from standard input for "-".
func (e *editing) given(file string) (entry []byte, source string, err error) {
	if file == "-" {
		source = "standard input"
		entry, err = io.ReadAll(io.LimitReader(e.a.in, maxEntry))
	} else {
		source = file
		entry, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, "", usage("%w", err)
	}
	return entry, source, nil
}

// maxEntry is more than any entry has, in bytes.
const maxEntry = 1 << 20

// pairs makes an entry of what flags say.
type pairs []string

func (p *pairs) put(key string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	*p = append(*p, fmt.Sprintf("%q: %s", key, text))
	return nil
}

// number puts a value without quotes if it is one that YAML takes for a number, so that it
// stands so in the file.
func (p *pairs) number(key, value string) error {
	if decimal().MatchString(value) {
		*p = append(*p, fmt.Sprintf("%q: %s", key, value))
		return nil
	}
	return p.put(key, value)
}

var decimal = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?$`) })

func (p pairs) entry() []byte { return []byte("{" + strings.Join(p, ", ") + "}") }
