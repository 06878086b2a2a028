package clients

import (
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf16"

	"github.com/tailscale/hujson"
)

// Rule is one of Claude Code's own about the tools of MCP servers.
type Rule struct {
	Kind string // deny, ask or allow; hook for the matcher of one
	Text string // as it is written
	Path string // of the settings
	Dir  string // the project that they are for; "" for the person's own
	Here bool   // it is for where the person is
}

// ClaudeRules lists the rules about MCP servers in the person's settings, in those of the
// project that the person is in, and of all that Claude Code knows.
func (h Host) ClaudeRules() (out []Rule) {
	var seen []string
	read := func(path string, of Rule) {
		if slices.Contains(seen, path) {
			return
		}
		seen = append(seen, path)
		if o := h.readRoot(path); o != nil {
			of.Path = path
			out = append(out, rulesOf(o, of)...)
		}
	}
	read(h.ClaudeSettings(), Rule{Here: true})
	here := h.Dirs()
	for i, dir := range append(here, h.projects()...) {
		of := Rule{Dir: dir, Here: i < len(here)}
		for _, name := range []string{"settings.json", "settings.local.json"} {
			read(filepath.Join(filepath.FromSlash(dir), ".claude", name), of)
		}
	}
	return out
}

// projects are those that Claude Code has been in.
func (h Host) projects() (dirs []string) {
	h.eachProject(func(dir string, _ *hujson.Object) {
		if filepath.IsAbs(filepath.FromSlash(dir)) {
			dirs = append(dirs, dir)
		}
	})
	return dirs
}

func rulesOf(root *hujson.Object, of Rule) (out []Rule) {
	add := func(kind, text string) {
		r := of
		if r.Kind, r.Text = kind, text; strings.Contains(text, "mcp__") && !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	for i := range root.Members {
		in := object(&root.Members[i].Value)
		switch name := nameOf(&root.Members[i]); {
		case in == nil:
		case name == "permissions":
			for _, kind := range []string{"deny", "ask", "allow"} {
				for _, text := range texts(in, kind) {
					add(kind, text)
				}
			}
		case name == "hooks":
			for _, m := range matchers(in) {
				add("hook", m)
			}
		}
	}
	return out
}

// matchers are those of hooks, which stand in a list for each event.
func matchers(events *hujson.Object) (out []string) {
	for i := range events.Members {
		a, ok := events.Members[i].Value.Value.(*hujson.Array)
		if !ok {
			continue
		}
		for j := range a.Elements {
			o := object(&a.Elements[j])
			for k := 0; o != nil && k < len(o.Members); k++ {
				if s, ok := str(&o.Members[k].Value); ok && nameOf(&o.Members[k]) == "matcher" {
					out = append(out, s)
				}
			}
		}
	}
	return out
}

var unspoken = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[^A-Za-z0-9_-]`) })

// spoken is the name of a server as Claude Code has it in those of its tools, which are
// changed unit by unit of UTF-16.
func spoken(server string) string {
	return unspoken().ReplaceAllStringFunc(server, func(c string) string {
		return strings.Repeat("_", len(utf16.Encode([]rune(c))))
	})
}

// Concerns returns the pattern of the tools of a server that a rule is about, in which _ is
// whatever Claude Code writes so; ok is false if it is about none. A rule that matches the
// tools of haldir too goes on as it is.
func (r Rule) Concerns(s *Server) (tools string, ok bool) {
	if s.List.File.Client != ClaudeCode {
		return "", false
	}
	name := spoken(s.Name)
	if r.Kind == "hook" {
		return "", strings.Contains(r.Text, "mcp__"+name)
	}
	rest, ok := strings.CutPrefix(r.Text, "mcp__")
	if !ok {
		return "", false
	}
	if tools, ok := strings.CutPrefix(rest, name+"__"); ok {
		return tools, tools != ""
	}
	of, tools, both := strings.Cut(rest, "__")
	if !both || tools == "" {
		tools = "*"
	}
	match := func(s string) bool { ok, err := path.Match(of, s); return err == nil && ok }
	return tools, rest == name || strings.Contains(of, "*") && match(name) && !match("haldir")
}
