package adopt_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/adopt"
	"github.com/haldir-mcp/haldir/internal/clients"
)

// Settings of Claude Code that cannot be read may keep out, or deny, what init would move.
func TestSettingsThatCannotBeRead(t *testing.T) {
	write := func(p *person, name string) {
		p.write(name, "")
		if err := os.Truncate(filepath.Join(p.home, name), 65<<20); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"managed/managed-settings.json", "managed/managed-settings.d/10.json", ".claude/settings.json", "project/.claude/settings.json", "project/.claude/settings.local.json"} {
		p := newPerson(t)
		p.write(".claude.json", `{"mcpServers": {"x": {"command": "x"}}}`)
		write(p, name)
		if _, err := adopt.New(p.o); err == nil || !strings.Contains(err.Error(), filepath.Join(p.home, name)) || !strings.Contains(err.Error(), "larger than 64 MiB") {
			t.Errorf("%s: %v", name, err)
		}
		p.o.Clients = []clients.Client{clients.Cursor}
		if _, err := adopt.New(p.o); err != nil {
			t.Errorf("of another client: %v", err)
		}
	}
	p := newPerson(t)
	p.write(".claude.json", `{"mcpServers": {"x": {"command": "x"}}, "projects": {"$HOME/other": {}}}`)
	write(p, "other/.claude/settings.json")
	if said := p.said(p.plan()); !strings.Contains(said, "note $HOME/other/.claude/settings.json cannot be read") {
		t.Error(said)
	}
}

// Claude Code's own file grows with its history.
func TestALargeFileOfClaudeCode(t *testing.T) {
	p := newPerson(t)
	p.o.Shared = true
	p.write("project/.mcp.json", `{"mcpServers": {"x": {"command": "x"}}}`)
	p.write(".claude.json", `{"projects": {"$HOME/project": {"disabledMcpjsonServers": ["x"]}}}`+strings.Repeat(" ", 17<<20))
	if plan := p.plan(); len(plan.Upstreams) > 0 || !strings.Contains(p.said(plan), "it was rejected in Claude Code") {
		t.Error(p.said(plan))
	}
}
