package adopt_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/adopt"
)

// haldir is told from other servers whatever its file is called: it never becomes its own
// upstream, and an entry that it has made can be taken back once the client has saved its file.
func TestHaldirUnderAnotherName(t *testing.T) {
	for _, c := range []struct {
		file  string
		gone  bool // by the time of the second init
		other bool // another haldir runs by then
	}{
		{file: "haldir"},
		{file: "haldir.exe", other: true},
		{file: "haldir-linux-amd64", other: true},
		{file: "haldir_1.2.0-rc.1_windows_arm64.exe", other: true},
		{file: "haldir-v2-darwin-arm64", other: true, gone: true},
		{file: "mein wächter"},
		{file: "gate", other: true, gone: true},
	} {
		t.Run(c.file, func(t *testing.T) {
			p := newPerson(t)
			p.write("bin/"+c.file, "#!/bin/sh\n")
			own := filepath.Join(p.home, "bin", c.file)
			if err := os.Chmod(own, 0o700); err != nil {
				t.Fatal(err)
			}
			p.o.Host.Own, p.o.Terminal.Command, p.o.Window.Command = own, own, own
			const before = `{"mcpServers": {"files": {"command": "files"}}}` + "\n"
			p.write(".cursor/mcp.json", before)
			if _, err := p.plan().Do(t.Context()); err != nil {
				t.Fatal(err)
			}
			if c.other {
				p.o.Host.Own, p.o.Terminal.Command = "/usr/local/bin/haldir", "haldir"
			}
			if c.gone {
				if err := os.Remove(own); err != nil {
					t.Fatal(err)
				}
			}
			if again := p.plan(); len(again.Upstreams) > 0 || len(again.Files) > 0 {
				t.Errorf("haldir is moved behind itself: %s", p.said(again))
			}
			path := filepath.Join(p.home, ".cursor/mcp.json")
			now, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			p.write(".cursor/mcp.json", strings.Replace(string(now), "}}\n", "}, \"theme\": 1}\n", 1)) // as the client saves it
			p.undo(false)
			after, err := os.ReadFile(path)
			if err != nil || string(after) != strings.Replace(before, "}}\n", "}, \"theme\": 1}\n", 1) {
				t.Errorf("after undo: %s, %v", after, err)
			}
		})
	}
}

// The rules for Claude Code's shell know the name of the program that runs, beside haldir's own.
func TestRulesKnowTheProgramsName(t *testing.T) {
	p := newPerson(t)
	for own, want := range map[string]bool{"": false, "/opt/haldir": false, "/opt/haldir-linux-amd64": true, "/opt/odd (name": false} {
		p.o.Host.Own = own
		rules := adopt.Rules(p.o.Host, p.o.Config, p.o.StateDir)
		name := filepath.Base(own)
		if got := slices.Contains(rules, "Bash("+name+" approvals:*)") && name != "haldir"; got != want || !slices.Contains(rules, "Bash(haldir approvals:*)") {
			t.Errorf("%q: %v", own, rules)
		}
	}
}

// However an entry comes to start haldir, haldir is what it starts.
func TestEntriesThatStartHaldir(t *testing.T) {
	for _, entry := range []string{
		`{"command": "npx", "args": ["-y", "haldir@1.2.0", "serve"]}`,
		`{"command": "haldir", "args": ["--config", "x.yaml", "--state-dir=y", "serve"]}`,
		`{"command": "docker", "args": ["run", "-i", "ghcr.io/haldir-mcp/haldir:1.2", "serve"]}`,
		`{"command": "sh", "args": ["-c", "cd /x; exec 'haldir' serve --config /x/y.yaml"]}`,
		`{"command": "C:\\Program Files\\Haldir\\haldir.exe", "args": ["serve"]}`,
		`{"command": "haldir serve"}`,
	} {
		p := newPerson(t)
		p.write(".cursor/mcp.json", `{"mcpServers": {"guard": `+entry+`}}`)
		if plan := p.plan(); len(plan.Upstreams) > 0 {
			t.Errorf("%s is moved behind haldir", entry)
		}
	}
}

// What has a name like haldir's, or speaks of it, is a server as others are.
func TestServersThatAreNotHaldir(t *testing.T) {
	for _, entry := range []string{
		`{"command": "haldir-notes", "args": ["serve"]}`,
		`{"command": "notes", "args": ["serve"]}`,
		`{"command": "haldir", "args": ["demo"]}`,
		`{"command": "files", "args": ["/src/haldir", "x", "serve"]}`,
		`{"command": "sh", "args": ["-c", "cd /src/haldir && python serve"]}`,
	} {
		p := newPerson(t)
		p.write(".cursor/mcp.json", `{"mcpServers": {"notes": `+entry+`}}`)
		p.write("project/.mcp.json", `{"mcpServers": {"haldir": {"command": "./notes", "args": ["serve"]}}}`)
		plan, err := adopt.New(p.o)
		if err != nil || len(plan.Upstreams) != 1 || len(plan.Left) != 1 {
			t.Errorf("%s does not move: %v, %v", entry, plan, err)
		}
	}
}
