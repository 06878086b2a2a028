package clients_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/haldir-mcp/haldir/internal/clients"
)

// What Claude Code has in its own file is one thing in one look, also where the file changes meanwhile
// and where a plan has another text for it. Without a look it is what stands there.
func TestOnce(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	says := func(approved string) string {
		return `{"mcpServers":{"s":{"command":"s"}},"projects":{"` + filepath.ToSlash(home) + `":{"enabledMcpjsonServers":[` + approved + `]}}}`
	}
	write(".claude.json", says(`"x","haldir"`))
	write(".mcp.json", `{"mcpServers":{"x":{"command":"x"}}}`)
	host := clients.Host{OS: "linux", Home: home, Dir: home, Env: func(string) string { return "" }}
	look := host.Once()
	read := func(h clients.Host, of clients.Scope, name string) *clients.File {
		t.Helper()
		f, err := h.Read(clients.Place{Client: clients.ClaudeCode, Scope: of, Path: filepath.Join(home, name)})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	own := read(look, clients.User, ".claude.json")
	other, err := look.With(own, []byte(says("")))
	if err != nil || other.Lists == nil {
		t.Fatal(other, err)
	}
	write(".claude.json", says(""))
	for name, c := range map[string]struct {
		host     clients.Host
		approved bool
	}{"one look": {look, true}, "the same look": {look.Once(), true}, "another": {host.Once(), false}, "none": {host, false}} {
		l := read(c.host, clients.Project, ".mcp.json").Lists[0]
		if l.Servers[0].Approved != c.approved || c.host.Asks(l, "haldir") == c.approved {
			t.Errorf("%s: approved %v, asks for haldir %v", name, l.Servers[0].Approved, c.host.Asks(l, "haldir"))
		}
		if same := string(read(c.host, clients.User, ".claude.json").Data) == string(own.Data); same != c.approved {
			t.Errorf("%s: the file is the one of before: %v", name, same)
		}
	}
}
