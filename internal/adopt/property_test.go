package adopt_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tailscale/hujson"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/internal/adopt"
)

// writer writes JSON with comments as people do: any space, comments anywhere, trailing
// commas. Every comment has a number of its own.
type writer struct {
	t *rapid.T
	n int
	bytes.Buffer
}

func (w *writer) pick(options ...string) string { return rapid.SampledFrom(options).Draw(w.t, "pick") }

func (w *writer) space() {
	switch w.pick("", "", " ", "\n  ", "\n\t", "\r\n    ", "line", "block") {
	case "line":
		w.n++
		fmt.Fprintf(w, " // c%d;\n\t", w.n)
	case "block":
		w.n++
		fmt.Fprintf(w, " /* c%d; */ ", w.n)
	default:
		w.WriteString(w.pick("", " ", "\n", "\n    "))
	}
}

// object writes members, each of which writes its value.
func (w *writer) object(names []string, value func(name string)) {
	w.WriteString("{")
	for i, name := range names {
		if i > 0 {
			w.WriteString(",")
		}
		w.space()
		raw, _ := json.Marshal(name)
		w.Write(raw)
		w.space()
		w.WriteString(":")
		w.space()
		value(name)
		w.space()
	}
	if len(names) > 0 && w.pick("", "", ",") == "," {
		w.WriteString(",")
	}
	w.space()
	w.WriteString("}")
}

func (w *writer) text(s string) {
	raw, _ := json.Marshal(s)
	w.Write(raw)
}

// server writes an entry: one that moves, or one that stays.
func (w *writer) server() {
	switch w.pick("command", "command", "secret", "url", "odd", "off", "none", "haldir") {
	case "command":
		w.object([]string{"command", "args"}, func(key string) {
			if key == "command" {
				w.text(w.pick("a", "b", "npx", "${X}"))
				return
			}
			w.WriteString("[")
			w.space()
			w.text(w.pick("x", "-y", "é\u2028", "$${"))
			w.space()
			w.WriteString("]")
		})
	case "secret":
		w.object([]string{"command", "env"}, func(key string) {
			if key == "command" {
				w.text("s")
				return
			}
			w.object([]string{"TOKEN"}, func(string) { w.text(w.pick("ghp_0123456789abcdefghij", "plain-secret", "1")) })
		})
	case "url":
		w.object([]string{"type", "url"}, func(key string) { w.text(map[string]string{"type": "http", "url": "https://a.example.com/mcp"}[key]) })
	case "odd":
		w.object([]string{"command", "odd"}, func(string) { w.text("o") })
	case "off":
		w.WriteString(`{"command": "off", "disabled": true}`)
	case "haldir":
		w.WriteString(`{"command": "go", "args": ["run", "haldir", "serve"]}`)
	case "none":
		w.WriteString(w.pick("null", "[]", "1e99", `"x"`, "{}"))
	}
}

// file writes a file of servers under a key.
func (w *writer) file(key string) string {
	w.Reset()
	names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "Git Hub", "haldir", "日本", "", "x.y"}), 0, 5, rapid.ID[string]).Draw(w.t, "names")
	w.space()
	w.object(rapid.Permutation([]string{key, "other", "n"}).Draw(w.t, "keys"), func(k string) {
		switch k {
		case key:
			w.object(names, func(string) { w.server() })
		case "other":
			w.object([]string{key, "a"}, func(string) { w.text("ghp_9876543210abcdefghij") })
		default:
			w.WriteString("123456789012345678901234567890.5e-7")
		}
	})
	w.space()
	out := w.String()
	if w.pick("", "", "bom") == "bom" {
		out = "\ufeff" + out
	}
	return out
}

var numbered = regexp.MustCompile(`c\d+;`)

// files of clients, with the key of their servers.
var clientFiles = map[string]string{
	".claude.json": "mcpServers", ".cursor/mcp.json": "mcpServers", "project/.vscode/mcp.json": "servers",
	"project/.mcp.json": "mcpServers", ".codeium/windsurf/mcp_config.json": "mcpServers",
}

func fill(t *rapid.T, p *person) {
	w := &writer{t: t}
	for _, name := range slices.Sorted(mapKeys(clientFiles)) {
		if rapid.IntRange(0, 3).Draw(t, name) > 0 {
			p.write(name, w.file(clientFiles[name]))
		}
	}
	if rapid.Bool().Draw(t, "config") {
		p.write(".config/haldir/haldir.yaml", "# mine\nversion: 1\n\nupstreams:\n  - {name: a, command: a, args: [x]}\n")
	}
	if rapid.Bool().Draw(t, "settings") {
		p.write(".claude/settings.json", "{ // mine\n}")
	}
	p.o.Permissions = rapid.Bool().Draw(t, "permissions")
	p.o.Shared = rapid.Bool().Draw(t, "project")
}

// parsed is a file as a client reads it.
func parsed(t *rapid.T, path string) map[string]any {
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := hujson.Standardize(bytes.TrimPrefix(raw, []byte("\ufeff")))
	if err != nil {
		t.Fatalf("%s: %v\n%s", path, err, raw)
	}
	dec := json.NewDecoder(bytes.NewReader(plain))
	dec.UseNumber()
	var v map[string]any
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("%s: %v\n%s", path, err, raw)
	}
	return v
}

// TestInitAndUndo: whatever the files are, init changes nothing but servers that move and
// loses no comment, a second init has nothing to do, and undo gives back every byte.
func TestInitAndUndo(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		p := newPerson(t)
		fill(r, p)
		before := p.all()
		plan, err := adopt.New(p.o)
		if err != nil {
			r.Fatal(err)
		}
		was := map[string]map[string]any{}
		for _, c := range plan.Files {
			if c.Kind == adopt.KindClient {
				was[c.Path] = parsed(r, c.Path)
			}
		}
		if len(plan.Files) == 0 {
			return
		}
		if _, err := plan.Do(t.Context()); err != nil {
			r.Fatal(err)
		}
		yaml, err := os.ReadFile(p.o.Config)
		if err != nil {
			r.Fatal(err)
		}
		for _, c := range plan.Files {
			if c.Kind != adopt.KindClient {
				continue
			}
			name, _ := filepath.Rel(p.home, c.Path)
			now, key := parsed(r, c.Path), clientFiles[filepath.ToSlash(name)]
			old, _ := was[c.Path][key].(map[string]any)
			servers, _ := now[key].(map[string]any)
			s := c.Swaps[0]
			for n, v := range old {
				if got := servers[n]; slices.Contains(s.Gone, n) {
					if n != s.Name && got != nil {
						r.Errorf("%s is still in %s", n, c.After)
					}
				} else if !cmp.Equal(v, got) {
					r.Errorf("%s was %v and is %v in %s", n, v, got, c.After)
				}
			}
			if servers[s.Name] == nil || len(servers) > len(old) {
				r.Errorf("haldir is not in %s", c.After)
			}
			delete(was[c.Path], key)
			delete(now, key)
			if diff := cmp.Diff(was[c.Path], now); diff != "" {
				r.Errorf("the rest of the file: %s", diff)
			}
			for _, comment := range numbered.FindAllString(string(c.Before), -1) {
				if !bytes.Contains(c.After, []byte(comment)) && !bytes.Contains(yaml, []byte(comment)) {
					r.Errorf("the comment %s is lost:\n%s\n%s", comment, c.Before, c.After)
				}
			}
			if bytes.HasPrefix(c.Before, []byte("\ufeff")) != bytes.HasPrefix(c.After, []byte("\ufeff")) {
				r.Error("the byte order mark is not as it was")
			}
		}
		if strings.Contains(string(yaml), "plain-secret") || strings.Contains(string(yaml), "ghp_") {
			r.Errorf("a secret is in %s", yaml)
		}
		if again, err := adopt.New(p.o); err != nil || len(again.Files) > 0 {
			r.Errorf("a second init: %v, %v", again, err)
		}
		p.undo(false)
		if diff := cmp.Diff(before, p.all()); diff != "" {
			r.Errorf("init and undo (-before +after):\n%s", diff)
		}
		if names, err := p.store.Names(); err != nil || len(names) > 0 {
			r.Errorf("secrets: %v, %v", names, err)
		}
	})
}

// TestUndoOfWhatHasGoneOn: a file that a client has written anew since gets its servers back
// and keeps what is new; with force as well, which is for files that have no other way back.
func TestUndoOfWhatHasGoneOn(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		p := newPerson(t)
		fill(r, p)
		before := p.all()
		plan, err := adopt.New(p.o)
		if err != nil {
			r.Fatal(err)
		}
		was := map[string]map[string]any{}
		for name := range clientFiles {
			if path := filepath.Join(p.home, name); before[filepath.FromSlash(name)] != "" {
				was[path] = parsed(r, path)
			}
		}
		if len(plan.Files) == 0 {
			return
		}
		if _, err := plan.Do(t.Context()); err != nil {
			r.Fatal(err)
		}
		// As Claude Code does: all of it written anew.
		for path := range was {
			v := parsed(r, path)
			v["new"] = "by the client"
			raw, err := json.MarshalIndent(v, "", " ")
			if err != nil {
				r.Fatal(err)
			}
			if err := os.WriteFile(path, raw, 0o600); err != nil {
				r.Fatal(err)
			}
		}
		p.undo(rapid.Bool().Draw(r, "force"))
		for path, old := range was {
			now := parsed(r, path)
			if now["new"] != "by the client" {
				r.Errorf("%s has lost what is new: %v", path, now)
			}
			delete(now, "new")
			if diff := cmp.Diff(old, now); diff != "" {
				r.Errorf("%s: %s", path, diff)
			}
		}
	})
}
