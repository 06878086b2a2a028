package adopt_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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
		"the clone's, by another name": {trust, func(p *person) { // as a file system with short names has it
			p.hard("project/.claude/SETTIN~1.JSO", settings)
			p.git("add", "-f", ".claude/SETTIN~1.JSO")
		}, false},
		"the clone's, with a letter that is an s in capitals": {trust, func(p *person) {
			p.index("100644", ".claude/\u017fettings.local.json")
		}, false},
		"of a submodule without its repository": {trust, func(p *person) { p.index("160000", ".claude") }, false},
		"of a bare repository":                  {trust, func(p *person) { p.git("config", "core.bare", "true") }, false},
		"of a repository whose files are elsewhere": {trust, func(p *person) {
			p.write("elsewhere/x", "")
			p.git("config", "core.worktree", filepath.Join(p.home, "elsewhere"))
		}, false},
		"the clone's that the repository is in": {trust, func(p *person) {
			p.git("-C", p.home, "init", "-q")
			p.git("-C", p.home, "update-index", "--add", "--cacheinfo", "100644,"+blob+","+settings)
		}, false},
		"of a linked work tree": {`{"projects": {"$HOME/linked": {"hasTrustDialogAccepted": true}}}`, func(p *person) {
			p.git("-c", "user.name=x", "-c", "user.email=x", "commit", "-q", "--allow-empty", "-m", "x")
			p.git("worktree", "add", "-q", "../linked")
			p.o.Host.Dir = filepath.Join(p.home, "linked")
			p.write("linked/.mcp.json", `{"mcpServers": {"x": {"command": "x"}}}`)
			p.write("linked/.claude/settings.local.json", says)
		}, true},
		"of a submodule that is trusted": {`{"projects": {"$HOME/project/sub": {"hasTrustDialogAccepted": true}}}`, func(p *person) {
			p.git("init", "-q", "sub")
			p.index("160000", "sub")
			p.o.Host.Dir = filepath.Join(p.home, "project/sub")
			p.write("project/sub/.mcp.json", `{"mcpServers": {"x": {"command": "x"}}}`)
			p.write("project/sub/.claude/settings.local.json", says)
		}, true},
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

// A git that fails, or says nothing, has not said that no clone brought the file: so does the one of
// macOS where its developer tools are not installed.
func TestApprovalsNeedGit(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the program is a script")
	}
	for _, script := range []string{"exit 0", "exit 1", "exit 128", "echo 'xcrun: error: invalid active developer path' >&2; exit 1", "echo .; exit 0"} {
		p := newPerson(t)
		p.git("init", "-q")
		p.write("project/.mcp.json", `{"mcpServers": {"x": {"command": "x"}}}`)
		p.write(".claude.json", `{"projects": {"$HOME/project": {"hasTrustDialogAccepted": true}}}`)
		p.write("project/.claude/settings.local.json", `{"enabledMcpjsonServers": ["x"]}`)
		p.git("add", "-f", ".claude/settings.local.json")
		bin := t.TempDir()
		if err := os.WriteFile(filepath.Join(bin, "git"), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", bin)
		if plan := p.plan(); len(plan.Upstreams) > 0 {
			t.Errorf("%s: %s", script, p.said(plan))
		}
		t.Setenv("PATH", path)
	}
}

// path is that of the tests.
var path = os.Getenv("PATH")

// A clone's file may lie in a directory that git calls otherwise than the person does, where the
// file system takes both for one.
func TestApprovalsInADirectoryOfAnotherCase(t *testing.T) {
	p := newPerson(t)
	p.git("init", "-q")
	p.write("project/Sub/.mcp.json", `{"mcpServers": {"x": {"command": "x"}}}`)
	p.git("add", "Sub/.mcp.json")
	p.write(".claude.json", `{"projects": {"$HOME/project": {"hasTrustDialogAccepted": true}}}`)
	p.write("project/Sub/.claude/settings.local.json", `{"enabledMcpjsonServers": ["x"]}`)
	top := p.o.Host.Dir
	p.o.Host.Dir = filepath.Join(top, "Sub")
	if plan := p.plan(); len(plan.Upstreams) != 1 {
		t.Errorf("the person's own does not move: %s", p.said(plan))
	}
	p.git("-C", top, "-c", "core.ignoreCase=false", "update-index", "--add", "--cacheinfo", "100644,"+blob+",sub/.claude/settings.local.json")
	if plan := p.plan(); len(plan.Upstreams) != 0 {
		t.Errorf("the clone's moves: %s", p.said(plan))
	}
}

// What a person approves is what stands beside it. A package, or an archive that is unpacked in a
// project, is no part of that.
func TestApprovalsOfWhatIsBroughtIntoAProject(t *testing.T) {
	const (
		inside = "project/node_modules/evil"
		says   = `{"enabledMcpjsonServers": ["db"]}`
		trust  = `{"projects": {"$HOME/project": {"hasTrustDialogAccepted": true}}}`
	)
	for name, c := range map[string]struct {
		claude string
		do     func(p *person)
		moves  bool
	}{
		"it says so itself":              {trust, func(p *person) { p.write(inside+"/.claude/settings.local.json", says) }, false},
		"its namesake of the project is": {`{"projects": {"$HOME/project": {"hasTrustDialogAccepted": true, "enabledMcpjsonServers": ["db"]}}}`, func(*person) {}, false},
		"the project's settings say so":  {trust, func(p *person) { p.write("project/.claude/settings.local.json", says) }, false},
		"it is a repository by itself": {trust, func(p *person) {
			p.git("init", "-q")
			p.write(inside+"/.claude/settings.local.json", says)
		}, false},
		"it is one, and trusted": {`{"projects": {"$HOME/` + inside + `": {"hasTrustDialogAccepted": true}}}`, func(p *person) {
			p.git("init", "-q")
			p.write(inside+"/.claude/settings.local.json", says)
		}, true},
		"the person has approved it there": {`{"projects": {"$HOME/` + inside + `": {"enabledMcpjsonServers": ["db"]}}}`, func(*person) {}, true},
		"it is the project's": {trust, func(p *person) {
			p.git("add", "-f", ".mcp.json")
			p.write(inside+"/.claude/settings.local.json", says)
		}, true},
		"a file of it is, but not that of the servers": {trust, func(p *person) {
			p.write(inside+"/x", "")
			p.git("add", "-f", "x")
			p.write(inside+"/.claude/settings.local.json", says)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPerson(t)
			p.git("init", "-q")
			p.write("project/.gitignore", "node_modules\n")
			p.write(inside+"/.mcp.json", `{"mcpServers": {"db": {"command": "evil"}}}`)
			p.write(".claude.json", c.claude)
			p.o.Host.Dir = filepath.Join(p.home, inside)
			c.do(p)
			if plan := p.plan(); (len(plan.Upstreams) == 1) != c.moves {
				t.Errorf("it moves: %v\n%s", !c.moves, p.said(plan))
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

// blob is the name of a file in git, which need not have it.
const blob = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"

// index has git track a path of the project.
func (p *person) index(mode, path string) {
	p.git("-c", "core.ignoreCase=false", "update-index", "--add", "--cacheinfo", mode+","+blob+","+path)
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

func (p *person) hard(path, to string) {
	p.t.Helper()
	if err := os.Link(filepath.Join(p.home, to), filepath.Join(p.home, path)); err != nil {
		p.t.Fatal(err)
	}
}
