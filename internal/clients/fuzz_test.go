package clients_test

import (
	"bytes"
	"testing"

	"github.com/haldir-mcp/haldir/internal/clients"
)

// FuzzSwap: whatever a file is, it is read or refused; and what is read can be changed, is
// then what it was but for the servers that have gone, and can be given them back.
func FuzzSwap(f *testing.F) {
	for _, s := range []string{
		``, `{}`, `{"mcpServers": {"a": {"command": "a"}, "b": {"url": "https://x"}}}`, "\ufeff{\"mcpServers\":{\"a\":{\"command\":\"a\"},},}",
		"{ // c\n\"mcpServers\": /* d */ {\r\n  \"a\" : {\"command\":\"a\" /* e */} // f\r\n , \"b\": 1 /* g */ , } }",
		`{"mcpServers": {"a": {"command": "haldir", "args": ["serve"]}, "haldir": {"command": "x", "timeout": 1e99}}}`,
		`{"mcpServers": {"a": {"command": "a", "timeout": 1.5, "oauth": {"callbackPort": -1e400}}}, "projects": {"/x": {"mcpServers": {"b": {"command": "b"}}}}}`,
		`{"permissions": {"deny": ["a", // x` + "\n" + `"b",],},}`,
	} {
		f.Add([]byte(s))
	}
	h := clients.Host{OS: "linux", Home: "/home/x", Dir: "/x", Env: func(string) string { return "" }}
	entry := clients.Entry{Command: "haldir", Args: []string{"serve"}}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, place := range []clients.Place{{clients.ClaudeCode, clients.User, "/home/x/.claude.json"}, {clients.VSCode, clients.Project, "/x/.vscode/mcp.json"}} {
			file, err := h.With(&clients.File{Place: place}, data)
			if err != nil {
				continue
			}
			var swaps []clients.Swap
			for _, l := range file.Lists {
				s := clients.Swap{List: l, Name: "haldir", Entry: &entry, Keep: map[string][]string{}}
				for _, srv := range l.Servers {
					if srv.Why == "" && srv.Guard == nil {
						s.Gone = append(s.Gone, srv.Name)
						s.Keep[srv.Name] = srv.Comments
					}
				}
				if other := l.Server("haldir"); len(s.Gone) > 0 && (other == nil || other.Why == "" && other.Guard == nil) {
					swaps = append(swaps, s)
				}
			}
			if len(swaps) == 0 {
				continue
			}
			after, err := h.Swap(file, swaps...)
			if err != nil {
				t.Fatalf("%v: %q", err, data)
			}
			now, err := h.With(file, after)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range swaps {
				if now, err = h.With(now, must(h.PutBack(now, s.List, s.Gone, s.Name, true))(t)); err != nil {
					t.Fatal(err)
				}
			}
			for _, s := range swaps {
				if l := now.Find(s.List.Scope, s.List.Dir); l == nil || !l.Alike(s.List) {
					t.Fatalf("put back: %q of %q by %q", now.Data, data, after)
				}
			}
		}
		if after, fresh, err := clients.Deny("settings.json", data, []string{"x", "y"}); err == nil && len(fresh) > 0 {
			back, err := clients.Undeny("settings.json", after, fresh)
			if err != nil {
				t.Fatal(err)
			}
			if again, more, err := clients.Deny("settings.json", back, []string{"x", "y"}); err != nil || len(more) != len(fresh) || !bytes.Contains(again, []byte(`"y"`)) {
				t.Fatalf("%v, %q: %q", err, more, again)
			}
		}
	})
}

func must(data []byte, err error) func(t *testing.T) []byte {
	return func(t *testing.T) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
}
