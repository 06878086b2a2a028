// Package packs has policies for servers that many people use, each narrowed to the
// upstream that it is for.
//
// A pack is a file in data: a haldir.yaml in which $UPSTREAM stands for the name of the
// upstream, below a head of comments that says what it does (# name: …), by which words in
// its command or url a server is known (# servers: …), among them the program that its package
// installs and, as mcp/…, its image of Docker, and what may be given to it
// (# root: …). A parameter stands as "$ROOT" in a condition; an entry whose parameter is
// not given is left out.
//
// What the packs say of real tools is held against lists that real servers have given
// (testdata/tools).
package packs

import (
	"embed"
	"encoding/json"
	"fmt"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/policy"
)

//go:embed data/*.yaml
var data embed.FS

// Pack is a set of entries for one upstream.
type Pack struct {
	Name    string
	Does    string   // in one sentence
	Servers []string // words in the command or the url of an upstream that is one of these
	Params  []Param
	entries []entry
}

// Param is something that may be given to a pack.
type Param struct{ Name, Doc string }

// entry is one of a list of haldir.yaml. Its text has comments above it and is indented
// by nothing.
type entry struct {
	list edit.List
	text string
}

// All returns the packs, by name.
func All() ([]Pack, error) {
	files, err := data.ReadDir("data")
	if err != nil {
		return nil, err
	}
	var out []Pack
	for _, f := range files {
		raw, err := data.ReadFile(path.Join("data", f.Name()))
		if err != nil {
			return nil, err
		}
		p, err := read(strings.TrimSuffix(f.Name(), ".yaml"), string(raw))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		out = append(out, p)
	}
	return out, nil
}

var (
	headLine = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^# ([a-z-]+): (.+)$`) })
	listLine = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(policies|costs|scopes):$`) })
)

// read takes a file of data apart.
func read(name, text string) (p Pack, err error) {
	p.Name = name
	var list edit.List
	var above string
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		head := headLine().FindStringSubmatch(line)
		switch {
		case line == "version: 1":
		case head != nil && head[1] == name:
			p.Does = strings.TrimSuffix(head[2], ".")
		case head != nil && head[1] == "servers":
			p.Servers = strings.Split(head[2], ", ")
		case head != nil:
			p.Params = append(p.Params, Param{head[1], head[2]})
		case listLine().MatchString(line):
			list = edit.List(strings.TrimSuffix(line, ":"))
		case list != "" && strings.HasPrefix(line, "  # "):
			above += line[2:] + "\n"
		case list != "" && strings.HasPrefix(line, "  - "):
			p.entries = append(p.entries, entry{list, above + line[4:] + "\n"})
			above = ""
		case len(p.entries) > 0 && strings.HasPrefix(line, "    "):
			p.entries[len(p.entries)-1].text += line[4:] + "\n"
		default:
			return p, fmt.Errorf("the line %q is none that a pack has", line)
		}
	}
	return p, nil
}

// Suits reports whether an upstream is one of the servers that the pack is for.
func (p Pack) Suits(u config.Upstream) bool {
	contained := slices.Contains([]string{"docker", "podman", "nerdctl"}, program(u.Command))
	words := append([]string{u.URL, u.Command}, u.Args...)
	return slices.ContainsFunc(words, func(w string) bool {
		return slices.ContainsFunc(p.Servers, func(s string) bool {
			if strings.HasPrefix(s, "mcp/") { // else it could be a directory or a part of a url
				return contained && image(w) == s
			}
			return has(w, s) || has(strings.ReplaceAll(w, "_", "-"), s) // python -m has _ for -
		})
	})
}

// program is the name of a program whose path may be that of any system.
func program(command string) string {
	return strings.TrimSuffix(command[strings.LastIndexAny(command, `/\`)+1:], ".exe")
}

// image is the name of an image of Docker's registry, without its version.
func image(word string) string {
	word, _, _ = strings.Cut(strings.TrimPrefix(word, "docker.io/"), "@")
	word, _, _ = strings.Cut(word, ":")
	return word
}

// has reports whether a word stands in a text by itself: server-git is not in
// server-github.
func has(text, word string) bool {
	for rest := text; ; {
		i := strings.Index(rest, word)
		if i < 0 {
			return false
		}
		before, after := rest[:i], rest[i+len(word):]
		if !strings.ContainsAny(last(before), inName) && !strings.ContainsAny(first(after), inName) {
			return true
		}
		rest = after
	}
}

const inName = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

func first(s string) string { return s[:min(1, len(s))] }
func last(s string) string  { return s[max(0, len(s)-1):] }

// Use is how a pack is used.
type Use struct {
	Upstream string
	Params   map[string]string
	Shadow   bool // its policies record what they would have done, and refuse nothing
}

// Entries returns the entries for an upstream, to be added to its config, and the
// parameters that are not given: entries that need them are left out.
func (p Pack) Entries(u Use) (entries []edit.Entry, missing []Param) {
	for _, param := range p.Params {
		if u.Params[param.Name] == "" {
			missing = append(missing, param)
		}
	}
	for _, e := range p.entries {
		text := e.text
		if slices.ContainsFunc(missing, func(m Param) bool { return strings.Contains(text, m.placeholder()) }) {
			continue
		}
		for _, param := range p.Params {
			text = strings.ReplaceAll(text, param.placeholder(), inCondition(u.Params[param.Name]))
		}
		text = strings.ReplaceAll(text, "$UPSTREAM", u.Upstream)
		if u.Shadow && e.list == edit.Policies {
			text += "mode: shadow\n"
		}
		entries = append(entries, edit.Entry{List: e.list, Text: []byte(text)})
	}
	return entries, missing
}

func (m Param) placeholder() string { return `"$` + strings.ToUpper(m.Name) + `"` }

// inCondition writes a text as CEL has it, inside a text of YAML in single quotes.
func inCondition(text string) string {
	quoted, err := json.Marshal(text)
	if err != nil { // no text is one
		return `""`
	}
	return strings.ReplaceAll(string(quoted), "'", "''")
}

// Has reports whether an entry of a pack has exactly these patterns of tools, for whatever
// upstream.
func Has(tools []string) bool {
	if len(tools) == 0 {
		return false
	}
	upstream := "up" // policies of packs do not name it in their tools
	if name, _, both := strings.Cut(tools[0], "/"); both {
		upstream = name
	}
	all, err := All()
	if err != nil {
		return false // a test reads them all
	}
	return slices.ContainsFunc(all, func(p Pack) bool {
		return slices.ContainsFunc(p.entries, func(e entry) bool { return slices.Equal(e.tools(upstream), tools) })
	})
}

// tools are the patterns of an entry. Each entry of a pack has them in one line, and a test
// looks whether these are they.
func (e entry) tools(upstream string) (out []string) {
	m := toolsLine().FindStringSubmatch(e.text)
	if m == nil {
		return nil
	}
	for t := range strings.SplitSeq(m[1], ", ") {
		out = append(out, strings.ReplaceAll(strings.Trim(t, `"`), "$UPSTREAM", upstream))
	}
	return out
}

var toolsLine = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?m)^ *tools: \[(.*)\]$`) })

// Known are the entries of all packs for an upstream, as they are written with their comments.
func Known(upstream string) ([]edit.Entry, error) {
	all, err := All()
	if err != nil {
		return nil, err
	}
	var out []edit.Entry
	for _, p := range all {
		entries, _ := p.Entries(p.any(upstream))
		out = append(out, entries...)
	}
	return out, nil
}

// any is a use with all parameters, whatever they are.
func (p Pack) any(upstream string) Use {
	u := Use{Upstream: upstream, Params: map[string]string{}}
	for _, param := range p.Params {
		u.Params[param.Name] = anyText
	}
	return u
}

// anyText stands for a parameter whatever it is.
const anyText = "/haldir/any"

// Named are the upstreams that the rules of a config name: a file of policies alone does not say which
// there are.
func Named(cfg *config.Config) (names []string) {
	for _, r := range cfg.Ruleset.Policies {
		names = append(names, r.Upstreams...)
	}
	of := func(tools []string) {
		for _, t := range tools {
			if name, _, both := strings.Cut(t, "/"); both {
				names = append(names, name)
			}
		}
	}
	for _, c := range cfg.Ruleset.Costs {
		of(c.Tools)
	}
	for _, s := range cfg.Ruleset.Scopes {
		of(s.Tools)
	}
	return slices.DeleteFunc(names, func(n string) bool { return strings.Trim(n, inName) != "" || n == "" })
}

// Found is what a config has of what a pack has added.
type Found struct {
	Numbers map[edit.List][]int // of the entries that are as they were added, in ascending order
	Changed []string            // ids of policies that are not
	Short   []edit.List         // where entries without an id are not all as they were added
}

// In finds in a config what a pack has added for an upstream. Whether it is in shadow, and what was
// given to it, does not count.
func (p Pack) In(cfg *config.Config, upstream string) (Found, error) {
	f := Found{Numbers: map[edit.List][]int{}}
	mine, err := config.Parse([]byte(p.Text(p.any(upstream))), p.Name)
	if err != nil {
		return f, err
	}
	for _, r := range mine.Ruleset.Policies {
		i := slices.IndexFunc(cfg.Ruleset.Policies, func(x policy.Rule) bool { return x.ID == r.ID })
		switch {
		case i < 0:
		case alike(r, cfg.Ruleset.Policies[i]):
			f.Numbers[edit.Policies] = append(f.Numbers[edit.Policies], i)
		default:
			other, err := p.ofAnother(cfg.Ruleset.Policies[i], upstream)
			if err != nil {
				return f, err
			}
			if !other {
				f.Changed = append(f.Changed, r.ID)
			}
		}
	}
	f.equal(edit.Costs, len(mine.Ruleset.Costs), len(cfg.Ruleset.Costs), func(i, j int) bool {
		return reflect.DeepEqual(mine.Ruleset.Costs[i], cfg.Ruleset.Costs[j])
	})
	f.equal(edit.Scopes, len(mine.Ruleset.Scopes), len(cfg.Ruleset.Scopes), func(i, j int) bool {
		return reflect.DeepEqual(mine.Ruleset.Scopes[i], cfg.Ruleset.Scopes[j])
	})
	for _, numbers := range f.Numbers {
		slices.Sort(numbers)
	}
	return f, nil
}

// ofAnother reports whether a policy is as another pack adds it: their ids are alike.
func (p Pack) ofAnother(there policy.Rule, upstream string) (bool, error) {
	all, err := All()
	if err != nil {
		return false, err
	}
	for _, other := range all {
		if other.Name == p.Name {
			continue
		}
		cfg, err := config.Parse([]byte(other.Text(other.any(upstream))), other.Name)
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(cfg.Ruleset.Policies, func(r policy.Rule) bool { return r.ID == there.ID && alike(r, there) }) {
			return true, nil
		}
	}
	return false, nil
}

// equal finds the entries of a list that have no id: one in the config for each of the pack.
func (f *Found) equal(list edit.List, mine, there int, same func(i, j int) bool) {
	for i := range mine {
		j := 0
		for j < there && (slices.Contains(f.Numbers[list], j) || !same(i, j)) {
			j++
		}
		if j < there {
			f.Numbers[list] = append(f.Numbers[list], j)
		} else if there > 0 && !slices.Contains(f.Short, list) {
			f.Short = append(f.Short, list)
		}
	}
}

// alike reports whether a policy is one of a pack, with whatever was given to it.
func alike(mine, there policy.Rule) bool {
	given := strings.ReplaceAll(regexp.QuoteMeta(mine.When), regexp.QuoteMeta(strconv.Quote(anyText)), `"(?:[^"\\]|\\.)*"`)
	if ok, err := regexp.MatchString("^(?s:"+given+")$", there.When); err != nil || !ok {
		return false
	}
	there.When, there.Shadow = mine.When, mine.Shadow
	return reflect.DeepEqual(mine, there)
}

// Text returns the entries for an upstream as a haldir.yaml.
func (p Pack) Text(u Use) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s: %s.\nversion: 1\n", p.Name, p.Does)
	entries, _ := p.Entries(u)
	var list edit.List
	for _, e := range entries {
		if e.List != list {
			list = e.List
			fmt.Fprintf(&b, "%s:\n", list)
		}
		dash := "  - "
		for line := range strings.Lines(string(e.Text)) {
			switch {
			case strings.HasPrefix(line, "# "):
				b.WriteString("  " + line)
			default:
				b.WriteString(dash + line)
				dash = "    "
			}
		}
	}
	return b.String()
}
