package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/internal/packs"
)

// packUse are the flags of a pack.
type packUse struct{ name, upstream, root string }

func (p *packUse) flags(f *pflag.FlagSet) {
	f.StringVar(&p.name, "pack", "", "add the policies that haldir has for a server; see: haldir policy packs")
	f.StringVar(&p.upstream, "upstream", "", "with --pack: the upstream that it is for (default: the one that is such a server)")
	f.StringVar(&p.root, "root", "", "with --pack filesystem or git: the directory that nothing is done outside of")
}

// addPack adds a pack to the config.
func (e *editing) addPack(p *packUse, f *pflag.FlagSet, args []string) error {
	other := ""
	f.Visit(func(x *pflag.Flag) {
		if own := config.PolicyKeys(); x.Name == "file" || x.Name != "mode" && slices.ContainsFunc(own, func(k config.Key) bool { return strings.ReplaceAll(k.Name, "_", "-") == x.Name }) {
			other = "--" + x.Name
		}
	})
	if len(args) > 0 {
		other = "a policy"
	}
	if other != "" {
		return usage("%s says something of one policy, and --pack adds several; edit them once they are added", other)
	}
	pack, err := findPack(p.name)
	if err != nil {
		return err
	}
	use := packs.Use{Params: map[string]string{}, Shadow: f.Lookup("mode").Value.String() == "shadow"}
	var note string
	if f.Changed("root") {
		if !slices.ContainsFunc(pack.Params, func(x packs.Param) bool { return x.Name == "root" }) {
			return usage("the pack %s has no use for --root", pack.Name)
		}
		if use.Params["root"], note, err = packRoot(p.root); err != nil {
			return err
		}
	}
	path, err := e.path()
	if err != nil {
		return err
	}
	cfg, err := e.a.layers.Find()
	if err != nil { // what is wrong with it, the editor says as well
		cfg = nil
	}
	if use.Upstream, err = packUpstream(pack, cfg, p.upstream); err != nil {
		return err
	}
	if err := present(pack, cfg, use.Upstream); err != nil {
		return err
	}
	entries, missing := pack.Entries(use)
	e.what = fmt.Sprintf("the pack %s for %s:", pack.Name, use.Upstream)
	r, err := edit.AddAll(path, entries, edit.Options{DryRun: e.dryRun})
	if note != "" {
		r.Notes = append(r.Notes, note)
	}
	for _, m := range missing {
		r.Notes = append(r.Notes, fmt.Sprintf("without --%s the rule is left out by which %s", m.Name, m.Doc))
	}
	return e.tell(edit.Policies, "added", r, err)
}

// packRoot is a directory as a pack has it. A shell leaves the ~ alone in --root=~/x. A note is to be
// told.
func packRoot(text string) (root, note string, err error) {
	if strings.TrimSpace(text) == "" {
		return "", "", usage("--root is empty; if it is a variable, that is not set")
	}
	if filepath.Separator == '/' && ofWindows().MatchString(text) {
		return "", "", usage("--root: %q is a path of Windows, and haldir runs on another system", text)
	}
	if text == "~" || strings.HasPrefix(filepath.ToSlash(text), "~/") {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", "", usage("--root: %w", err)
		}
		text = filepath.Join(home, text[1:])
	}
	if text, err = filepath.Abs(text); err != nil {
		return "", "", err
	}
	root = filepath.ToSlash(text)
	if info, err := os.Stat(text); err != nil || !info.IsDir() {
		note = "--root: " + plain(root, 0) + " is no directory"
	}
	return root, note, nil
}

// ofWindows is the begin of an absolute path of Windows.
var ofWindows = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^([A-Za-z]:[\\/]|\\\\)`) })

// removePack takes out of the config what a pack has added, as far as it is unchanged.
func (e *editing) removePack(name, upstream string) error {
	pack, err := findPack(name)
	if err != nil {
		return err
	}
	path, err := e.path()
	if err != nil {
		return err
	}
	cfg, err := e.a.layers.Find()
	if err != nil {
		return e.tell(edit.Policies, "removed", edit.Result{}, err)
	}
	if e.a.settings, err = e.a.layers.Settings(cfg); err != nil { // commands that are told name the state directory
		return &exit{code: exitUsage, err: err}
	}
	if upstream, _, err = e.packIn(pack, cfg, upstream); err != nil {
		return err
	}
	known, err := packs.Known(upstream)
	if err != nil {
		return err
	}
	e.what = fmt.Sprintf("the pack %s of %s:", pack.Name, upstream)
	var found packs.Found
	r, err := edit.RemoveAll(path, func(cfg *config.Config) (map[edit.List][]int, error) {
		_, f, err := e.packIn(pack, cfg, upstream)
		found = f
		return f.Numbers, err
	}, edit.Options{DryRun: e.dryRun, Known: known})
	if err == nil {
		for _, id := range found.Changed {
			r.Notes = append(r.Notes, fmt.Sprintf("%s was changed since it was added, and stays; if it is not wanted: %s policy remove %s", id, e.a.command(), shellWord(id)))
		}
		for _, list := range found.Short {
			r.Notes = append(r.Notes, fmt.Sprintf("in %s there is not all that the pack has added; look whether some of it is left there", list))
		}
	}
	return e.tell(edit.Policies, "removed", r, err)
}

// packIn says for which upstream a pack was added, and what there is of it. Where all of it was
// changed, only the kind of the server tells that from rules which a person has called alike.
func (e *editing) packIn(pack packs.Pack, cfg *config.Config, asked string) (upstream string, found packs.Found, err error) {
	names := []string{asked}
	if asked == "" {
		names = []string{pack.Name} // in a file of policies alone
		for _, u := range cfg.Upstreams {
			names = append(names, u.Name)
		}
		if len(cfg.Upstreams) == 0 {
			names = append(names, packs.Named(cfg)...)
		}
		names = distinct(names)
	}
	suits := func(name string) bool {
		i := slices.IndexFunc(cfg.Upstreams, func(u config.Upstream) bool { return u.Name == name })
		return name == pack.Name || i >= 0 && pack.Suits(cfg.Upstreams[i])
	}
	finds := map[string]packs.Found{}
	var all, changed []string
	for _, name := range names {
		f, err := pack.In(cfg, name)
		if err != nil {
			return "", f, err
		}
		finds[name] = f
		switch {
		case len(f.Numbers) > 0:
			all = append(all, name)
		case len(f.Changed) > 0 && suits(name):
			changed = append(changed, name)
		}
	}
	if len(all) == 0 {
		all = changed
	}
	if len(all) > 0 {
		upstream, found = all[0], finds[all[0]]
	}
	what := "the pack " + pack.Name
	if asked != "" {
		what += " for " + asked
	}
	switch {
	case len(all) == 0:
		return "", found, usage("there is nothing of %s in the config; see: %s policy list", what, e.a.command())
	case len(all) > 1:
		return "", found, usage("%s was added for the upstreams %s; say for which it goes by --upstream", what, strings.Join(all, " and "))
	case len(found.Numbers) == 0:
		return "", found, usage("nothing of %s is as it was added; if it is not wanted: %s policy remove %s", what, e.a.command(), strings.Join(found.Changed, " "))
	}
	return upstream, found, nil
}

// packUpstream is the upstream that a pack is added for.
func packUpstream(pack packs.Pack, cfg *config.Config, asked string) (string, error) {
	if cfg == nil || len(cfg.Upstreams) == 0 { // a file of policies alone
		if asked == "" {
			asked = pack.Name
		}
		return asked, nil
	}
	var names, suits []string
	for _, u := range cfg.Upstreams {
		names = append(names, u.Name)
		if pack.Suits(u) {
			suits = append(suits, u.Name)
		}
	}
	switch {
	case asked != "" && !slices.Contains(names, asked):
		return "", usage("there is no upstream %q in the config%s", asked, config.Suggest(asked, names))
	case asked != "":
		return asked, nil
	case len(suits) == 1:
		return suits[0], nil
	case len(suits) > 1:
		return "", usage("the upstreams %s are such servers; say which by --upstream", strings.Join(suits, " and "))
	case slices.Contains(names, pack.Name):
		return pack.Name, nil
	}
	return "", usage("none of the upstreams %s is a server that the pack %s knows; say which it is for by --upstream", strings.Join(names, ", "), pack.Name)
}

// present refuses a pack that is there already.
func present(pack packs.Pack, cfg *config.Config, upstream string) error {
	if cfg == nil {
		return nil
	}
	mine, err := config.Parse([]byte(pack.Text(packs.Use{Upstream: upstream})), pack.Name)
	if err != nil {
		return err
	}
	there := cfg.Engine.Rules()
	for _, id := range mine.Engine.Rules() {
		if slices.Contains(there, id) {
			return usage("the config has a policy %s already, as of this pack; see: haldir policy list, haldir policy remove --pack %s --upstream %s", id, pack.Name, upstream)
		}
	}
	return nil
}

func findPack(name string) (packs.Pack, error) {
	all, err := packs.All()
	if err != nil {
		return packs.Pack{}, err
	}
	var names []string
	for _, p := range all {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return packs.Pack{}, usage("there is no pack %q%s", name, config.Suggest(name, names))
}

func policyPacks(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "packs [NAME]",
		Short: "List the packs of policies that haldir has, or show one",
		Long: "packs lists the sets of policies that `haldir policy add --pack` can add, each for\n" +
			"servers of one kind. With a name it prints that pack as a config.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				p, err := findPack(args[0])
				if err != nil {
					return err
				}
				use := packs.Use{Upstream: p.Name, Params: map[string]string{"root": "/srv/project"}}
				if asJSON {
					return a.printJSON(map[string]any{"name": p.Name, "does": p.Does, "servers": p.Servers, "config": p.Text(use)})
				}
				return a.printf("%s", p.Text(use))
			}
			all, err := packs.All()
			if err != nil {
				return err
			}
			type entry struct {
				Name    string   `json:"name"`
				Does    string   `json:"does"`
				Servers []string `json:"servers"`
			}
			list := []entry{}
			var rows [][]string
			for _, p := range all {
				list = append(list, entry{p.Name, p.Does, p.Servers})
				rows = append(rows, []string{p.Name, p.Does})
			}
			if asJSON {
				return a.printJSON(map[string]any{"packs": list})
			}
			return a.printTable([]string{"PACK", "WHAT IT DOES"}, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}
