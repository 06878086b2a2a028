package clients

import (
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/tailscale/hujson"
)

// Rule is one of Claude Code's own about the tools of MCP servers.
type Rule struct {
	Kind string // deny, ask or allow; hook for the matcher of one
	Text string // as it is written
	Path string // of the settings
}

// ClaudeRules lists the rules about MCP servers in the person's settings, and in those of the
// project that the person is in and of other ones.
func (h Host) ClaudeRules(projects ...string) (out []Rule) {
	paths := []string{h.ClaudeSettings()}
	for _, dir := range append(h.Dirs(), projects...) {
		for _, name := range []string{"settings.json", "settings.local.json"} {
			if p := filepath.Join(dir, ".claude", name); !slices.Contains(paths, p) {
				paths = append(paths, p)
			}
		}
	}
	for _, p := range paths {
		if o := readRoot(p); o != nil {
			out = append(out, rulesOf(o, p)...)
		}
	}
	return out
}

func rulesOf(root *hujson.Object, path string) (out []Rule) {
	add := func(kind, text string) {
		if strings.Contains(text, "mcp__") && !slices.Contains(out, Rule{kind, text, path}) {
			out = append(out, Rule{kind, text, path})
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

var unspoken = regexp.MustCompile(`[^A-Za-z0-9_-]`)

// Concerns returns the pattern of the tools of a server that a rule is about; ok is false if
// it is about none. A rule that matches the tools of haldir too goes on as it is.
func (r Rule) Concerns(server string) (tools string, ok bool) {
	name := unspoken.ReplaceAllString(server, "_") // as Claude Code names its tools
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
