package adopt_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Claude Code moves the approval of a project's server from its own state to settings in the
// project. It counts there if no clone can have brought it.
func TestApprovalsInTheProject(t *testing.T) {
	const (
		settings = "project/.claude/settings.local.json"
		says     = `{"enabledMcpjsonServers": ["x"]}`
		trust    = `{"projects": {"$HOME/project": {"hasTrustDialogAccepted": true}}}`
	)
	for name, c := range map[string]struct {
		claude string
		do     func(p *person)
		moves  bool
	}{
		"the person's":     {trust, func(*person) {}, true},
		"trusted above":    {`{"projects": {"$HOME": {"hasTrustDialogAccepted": true}}}`, func(*person) {}, true},
		"nobody trusts it": {`{"projects": {"$HOME/project": {"hasTrustDialogAccepted": false}}}`, func(*person) {}, false},
		"trust beside":     {`{"projects": {"$HOME/proj": {"hasTrustDialogAccepted": true}}}`, func(*person) {}, false},
		"the clone's":      {trust, func(p *person) { p.git("add", "-f", ".claude/settings.local.json") }, false},
		"the clone's, in capitals": {trust, func(p *person) {
			p.write("project/.claude/SETTINGS.local.json", says)
			p.git("-c", "core.ignoreCase=false", "add", "-f", ".claude/SETTINGS.local.json")
		}, false},
		"a link of the clone's": {trust, func(p *person) {
			p.rename("project/.claude", "project/other")
			p.link("project/.claude", "other")
			p.git("add", "-f", ".claude") // what it leads to came with a package, say
		}, false},
		"a file that a link leads to": {trust, func(p *person) {
			p.rename(settings, "project/other.json")
			p.link(settings, "../other.json")
			p.git("add", "-f", "other.json")
		}, false},
		"a repository in .claude": {trust, func(p *person) {
			p.repository("project/.claude")
			p.git("add", "-f", ".claude")
		}, false},
		"a repository in .claude, whose file is not added": {trust, func(p *person) { p.repository("project/.claude") }, false},
		"a repository that holds the project": {trust, func(p *person) {
			p.repository("project")
			if err := os.RemoveAll(filepath.Join(p.home, "project", ".git")); err != nil {
				p.t.Fatal(err)
			}
		}, false},
		"of a submodule": {trust, func(p *person) {
			p.git("init", "-q", ".claude")
			p.git("-C", ".claude", "add", "-f", "settings.local.json")
		}, false},
		"of no repository": {trust, func(p *person) {
			if err := os.RemoveAll(filepath.Join(p.home, "project", ".git")); err != nil {
				p.t.Fatal(err)
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPerson(t)
			p.git("init", "-q")
			p.write("project/.mcp.json", `{"mcpServers": {"x": {"command": "x"}}}`)
			p.write(".claude.json", c.claude)
			p.write(settings, says)
			c.do(p)
			plan := p.plan()
			if moves := len(plan.Upstreams) == 1; moves != c.moves {
				t.Errorf("it moves: %v\n%s", moves, p.said(plan))
			}
			if said := p.said(plan); !c.moves && !strings.Contains(said, "so may $HOME/project/.claude/settings.local.json have") {
				t.Error(said)
			}
		})
	}
}

// Nothing that a project's repository names is run to find out whom a file is from.
func TestApprovalsRunNothing(t *testing.T) {
	p := newPerson(t)
	p.git("init", "-q")
	ran := filepath.Join(p.home, "ran")
	p.git("config", "core.fsmonitor", "touch '"+ran+"'")
	p.write("project/.mcp.json", `{"mcpServers": {"x": {"command": "x"}}}`)
	p.write(".claude.json", `{"projects": {"$HOME/project": {"hasTrustDialogAccepted": true}}}`)
	p.write("project/.claude/settings.local.json", `{"enabledMcpjsonServers": ["x"]}`)
	p.plan()
	if _, err := os.Stat(ran); err == nil {
		t.Error("the project's own program was run")
	}
}

// What Claude Code will not ask about is not announced.
func TestHaldirThatIsApprovedAlready(t *testing.T) {
	const asks = "Claude Code asks you before it uses haldir"
	for path, text := range map[string]string{
		".claude.json":                        `{"projects": {"$HOME/project": {"enabledMcpjsonServers": ["haldir"]}}}`,
		".claude/settings.json":               `{"enableAllProjectMcpServers": true}`,
		"managed/managed-settings.json":       `{"enabledMcpjsonServers": ["haldir"]}`,
		"project/.claude/settings.local.json": `{"enabledMcpjsonServers": ["haldir"]}`,
	} {
		p := newPerson(t)
		p.o.Shared = true
		p.write("project/.mcp.json", `{"mcpServers": {"x": {"command": "x"}}}`)
		if said := p.said(p.plan()); !strings.Contains(said, asks) {
			t.Errorf("before %s: %s", path, said)
		}
		p.write(path, text)
		trusted := path != "project/.claude/settings.local.json"
		if said := p.said(p.plan()); strings.Contains(said, asks) == trusted {
			t.Errorf("with %s: %s", path, said)
		}
	}
}

// Where haldir itself is switched off nothing goes behind it.
func TestHaldirThatIsSwitchedOff(t *testing.T) {
	for _, key := range []string{"disabledMcpServers", "disabledMcpjsonServers"} {
		p := newPerson(t)
		p.o.Shared = true
		p.write("project/.mcp.json", `{"mcpServers": {"x": {"command": "x"}}}`)
		p.write(".claude.json", `{"projects": {"$HOME/project": {"`+key+`": ["haldir"]}}}`)
		if plan := p.plan(); len(plan.Upstreams) > 0 || !strings.Contains(p.said(plan), "it is switched off in this project") {
			t.Errorf("%s: %s", key, p.said(plan))
		}
	}
}

func (p *person) git(args ...string) {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), "git", args...)
	cmd.Dir = p.o.Host.Dir
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("git %q: %v: %s", args, err, out)
	}
}

// repository makes a directory one that git takes for a repository by itself, as a clone can.
func (p *person) repository(dir string) {
	p.write(dir+"/HEAD", "ref: refs/heads/main\n")
	p.write(dir+"/config", "[core]\n\trepositoryFormatVersion = 0\n\tworktree = .\n")
	p.write(dir+"/objects/.keep", "")
	p.write(dir+"/refs/.keep", "")
}

func (p *person) rename(from, to string) {
	p.t.Helper()
	if err := os.Rename(filepath.Join(p.home, from), filepath.Join(p.home, to)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *person) link(path, to string) {
	p.t.Helper()
	if err := os.Symlink(to, filepath.Join(p.home, path)); err != nil {
		p.t.Fatal(err)
	}
}
