//go:build unix

package adopt_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/adopt"
	"github.com/haldir-mcp/haldir/internal/replace"
)

// claude is a command line of Claude Code, a script. $CONFIG is its file, and what it is told is
// kept in told.
func (p *person) claude(script string) {
	p.t.Helper()
	p.write("bin/claude", "#!/bin/sh\nCONFIG='"+filepath.Join(p.home, ".claude.json")+"'\nprintf '%s\\n' \"$@\" >'"+filepath.Join(p.o.StateDir, "told")+"'\n"+script)
	p.o.Claude = filepath.Join(p.home, "bin", "claude")
	if err := os.Chmod(p.o.Claude, 0o700); err != nil {
		p.t.Fatal(err)
	}
}

// registered is a person with a Claude Code that makes its file text, and then goes on by a script.
func registered(t *testing.T, text, script string) *person {
	p := newPerson(t)
	p.write(".claude.json", strings.Replace(three, "{", `{"oauthAccount": {"id": 1e3},`, 1))
	p.write(".cursor/mcp.json", three)
	p.claude("cat >\"$CONFIG.new\" <<'END'\n" + text + "\nEND\nchmod 600 \"$CONFIG.new\"; mv \"$CONFIG.new\" \"$CONFIG\"\n" + script)
	return p
}

// values are what Claude Code's file says.
func (p *person) values() (out map[string]any) {
	p.t.Helper()
	if err := json.Unmarshal(must(os.ReadFile(filepath.Join(p.home, ".claude.json")))(p.t), &out); err != nil {
		p.t.Fatal(err)
	}
	return out
}

const (
	account = `"oauthAccount": {"id": 1000}`
	servers = `"a": {"command": "a", "env": {"TOKEN": "ghp_0123456789abcdefghij"}}, "b": {"command": "b"}`
	entry   = `"haldir": {"type": "stdio", "command": "haldir", "args": ["serve"], "env": {}}`
)

// Claude Code registers haldir, in whatever form it writes its file, and init does the rest as it
// is planned. The bytes of before come back.
func TestClaudeRegistersHaldir(t *testing.T) {
	for name, text := range map[string]string{
		"in its form":        "{\n  " + account + ",\n  \"mcpServers\": {" + servers + ", " + entry + "}\n}",
		"the entry is first": `{"mcpServers": {` + entry + `, ` + servers + `}, ` + account + `}`,
		"the entry is other": `{"mcpServers": {` + servers + `, "haldir": {"args": ["serve", "--x"], "command": "/opt/haldir", "timeout": 5}}, ` + account + `}`,
		"it has started":     `{"firstStart": "now", "mcpServers": {` + servers + `, ` + entry + `}, ` + account + `}`,
		"there is no entry":  `{"mcpServers": {` + servers + `}, ` + account + `}`,
	} {
		t.Run(name, func(t *testing.T) {
			p := registered(t, text, "exit 0")
			before := p.all()
			done, err := p.plan().Do(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			told := string(must(os.ReadFile(filepath.Join(p.o.StateDir, "told")))(t))
			if want := "mcp add --scope user haldir -- haldir serve"; strings.Join(strings.Fields(told), " ") != want {
				t.Errorf("told: %s", told)
			}
			if none := name == "there is no entry"; len(done.Notes) > 0 != none || none && !strings.Contains(done.Notes[0], "has not registered") {
				t.Errorf("notes: %q", done.Notes)
			}
			want := map[string]any{
				"oauthAccount": map[string]any{"id": 1000.},
				"mcpServers":   map[string]any{"haldir": map[string]any{"type": "stdio", "command": "haldir", "args": []any{"serve"}}},
			}
			started := name == "it has started"
			if started {
				want["firstStart"] = "now"
			}
			if diff := cmp.Diff(want, p.values()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			left := p.all()[".claude.json"]
			u := must(adopt.Last(p.o.StateDir, p.o.Host, p.store))(t)
			p.undo(false)
			p.same(before)
			for _, f := range u.Files {
				if filepath.Base(f.Path) != ".claude.json" {
					continue
				}
				kept := ""
				for _, path := range f.Aside() { // what Claude Code put there is not lost
					kept += string(must(os.ReadFile(path))(t))
				}
				if f.Way != adopt.WayRestore || started != (len(f.More) == 1) || started && "-rw------- "+kept != left || !started && kept != "" {
					t.Errorf("%s, %q: %s", f.Way, f.More, kept)
				}
			}
		})
	}
}

// Claude Code is told nothing where it could not do what is planned.
func TestWhatClaudeIsNotTold(t *testing.T) {
	for name, text := range map[string]string{
		"a server is called haldir": `{"mcpServers": {"haldir": {"command": "other"}}}`,
		"haldir is there":           `{"mcpServers": {"a": {"command": "a"}, "haldir": {"command": "sh", "args": ["-c", "haldir serve"]}}}`,
		"a project's":               `{"projects": {"$HOME/project": {"mcpServers": {"a": {"command": "a"}}}}}`,
	} {
		p := newPerson(t)
		p.write(".claude.json", text)
		p.claude("exit 1")
		plan := p.plan()
		if _, err := plan.Do(t.Context()); err != nil || plan.Files[1].Command != nil {
			t.Errorf("%s: %v, %q", name, err, plan.Files[1].Command)
		}
	}
}

// Nor where it could be about another file than init, or where nothing has it end with init.
func TestWhereClaudeIsNotTold(t *testing.T) {
	for name, where := range map[string]func(p *person){
		"a relative directory": func(p *person) {
			p.o.Host.Env = func(name string) string { return map[string]string{"CLAUDE_CONFIG_DIR": "own"}[name] }
		},
		"Windows": func(p *person) { p.o.Host.OS = "windows" },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPerson(t)
			t.Chdir(p.home)
			p.write(".claude.json", three)
			p.write("own/.claude.json", three)
			p.claude("exit 1")
			where(p)
			plan := p.plan()
			if _, err := plan.Do(t.Context()); err != nil || plan.Files[1].Kind != adopt.KindClient || plan.Files[1].Command != nil {
				t.Errorf("%v, %q", err, plan.Files[1].Command)
			}
		})
	}
}

// What is no file is no lock: to wait for a pipe may take for ever.
func TestALockThatIsNoFile(t *testing.T) {
	for want, make := range map[string]func(path string) error{
		"is no file; take it away":                   func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"is a link that leads nowhere; take it away": func(path string) error { return os.Symlink("nowhere", path) },
	} {
		p := newPerson(t)
		p.write(".cursor/mcp.json", three)
		if err := errors.Join(os.MkdirAll(p.o.StateDir, 0o700), make(filepath.Join(p.o.StateDir, "init.lock"))); err != nil {
			t.Fatal(err)
		}
		if _, err := p.plan().Do(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Error(err)
		}
	}
}

// A refusal is told, as far as it can be shown, and nothing is edited in spite of it.
func TestClaudeThatRefuses(t *testing.T) {
	original := strings.Replace(three, "{", `{"oauthAccount": {"id": 1e3},`, 1)
	for name, text := range map[string]string{
		"at once":                 original,
		"after it has formatted":  `{"mcpServers": {` + servers + `}, ` + account + `}`,
		"after it has registered": `{"mcpServers": {` + servers + `, ` + entry + `}, ` + account + `}`,
	} {
		p := registered(t, text, "printf '\\033[31mnot allowed\\n\\nby enterprise policy\\007' >&2; exit 1")
		before := p.all()
		before[".claude.json"] = "-rw------- " + original
		_, err := p.plan().Do(t.Context())
		if err == nil || errors.Is(err, adopt.ErrBegun) || err.Error() != "claude mcp add has refused to register haldir (exit status 1): [31mnot allowed by enterprise policy; mend that, and try again" {
			t.Errorf("%s: %v", name, err)
		}
		p.same(before)
		if left := disk(t, filepath.Join(p.o.StateDir, "init")); len(left) > 0 {
			t.Errorf("%s: copies are left: %d", name, len(left))
		}
	}
}

// What somebody else changes meanwhile is not written over, and stays.
func TestClaudeThatChangesMore(t *testing.T) {
	for name, text := range map[string]string{
		"another key":     `{"oauthAccount": {"id": 2}, "mcpServers": {` + servers + `, ` + entry + `}}`,
		"a key is gone":   `{"mcpServers": {` + servers + `, ` + entry + `}}`,
		"another server":  `{` + account + `, "mcpServers": {` + servers + `, "c": {"command": "c"}, ` + entry + `}}`,
		"a moving server": `{` + account + `, "mcpServers": {"a": {"command": "mine"}, "b": {"command": "b"}, ` + entry + `}}`,
		"not ours":        `{` + account + `, "mcpServers": {` + servers + `, "haldir": {"command": "other"}}}`,
		"no JSON":         `{`,
	} {
		t.Run(name, func(t *testing.T) {
			p := registered(t, text, "exit 0")
			_, err := p.plan().Do(t.Context())
			if !errors.Is(err, replace.ErrChanged) {
				t.Fatal(err)
			}
			if begun := name == "a moving server" || name == "not ours" || name == "no JSON"; begun != errors.Is(err, adopt.ErrBegun) {
				t.Errorf("%v", err)
			} else if begun {
				if got := p.all()[".claude.json"]; got != "-rw------- "+text+"\n" {
					t.Errorf("Claude Code's file: %s", got)
				}
				return
			}
			var want map[string]any
			if err := json.Unmarshal([]byte(text), &want); err != nil {
				t.Fatal(err)
			}
			delete(want["mcpServers"].(map[string]any), "haldir")
			if diff := cmp.Diff(want, p.values()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if p.all()[filepath.FromSlash(".cursor/mcp.json")] != "-rw------- "+three || p.all()[filepath.FromSlash(".config/haldir/haldir.yaml")] != "" {
				t.Errorf("the rest is not taken back: %q", p.all())
			}
		})
	}
}

// Where Claude Code cannot be started, its file is edited as without it.
func TestClaudeThatCannotBeStarted(t *testing.T) {
	for name, start := range map[string]func(*person){
		"no program":     func(p *person) { p.o.Claude = filepath.Join(p.home, "claude") },
		"no interpreter": func(p *person) { p.claude("exec /usr/bin/env no-such-interpreter") },
		"no right to it": func(p *person) { p.claude("exec /dev/null") },
	} {
		p := newPerson(t)
		p.write(".claude.json", three)
		start(p)
		before := p.all()
		done, err := p.plan().Do(t.Context())
		if err != nil || len(done.Notes) != 1 || !strings.Contains(done.Notes[0], "could not be started") {
			t.Errorf("%s: %v, %q", name, err, done.Notes)
		}
		want := "{\n  \"mcpServers\": {\n    \"haldir\": {\"type\": \"stdio\", \"command\": \"haldir\", \"args\": [\"serve\"]}\n  }\n}\n"
		if got := p.all()[".claude.json"]; got != "-rw------- "+want {
			t.Errorf("%s: Claude Code's file: %s", name, got)
		}
		p.undo(false)
		p.same(before)
	}
}

// What Claude Code notes while it registers haldir is shown as little as what was there before.
func TestWhatClaudeNotesIsNotShown(t *testing.T) {
	p := registered(t, `{"primaryApiKey": "sk-ant-0123456789abcdef", "mcpServers": {`+servers+`, `+entry+`}, `+account+`}`, "exit 0")
	plan := p.plan()
	if _, err := plan.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(plan.Masks, "sk-ant-0123456789abcdef") {
		t.Errorf("masks: %q", plan.Masks)
	}
}

// A Claude Code that does not end is ended, with what it has started, after a while or when a
// person has enough of it.
func TestClaudeThatHangs(t *testing.T) {
	text := `{"mcpServers": {` + servers + `, ` + entry + `}, ` + account + `}`
	for name, patience := range map[string]time.Duration{"too long": time.Millisecond, "interrupted": 0} {
		t.Run(name, func(t *testing.T) {
			p := registered(t, text, "cd \"$HOME/state\"; mkfifo pipe\n(trap '' TERM; cat pipe; echo spoiled >\"$CONFIG\") &\ntouch started\ncat pipe")
			before := p.all()
			p.o.Patience = patience
			ctx, cancel := context.WithCancel(t.Context())
			plan, done := p.plan(), make(chan error)
			go func() {
				_, err := plan.Do(ctx)
				done <- err
			}()
			for patience == 0 {
				if _, err := os.Stat(filepath.Join(p.o.StateDir, "started")); err == nil {
					cancel()
					break
				}
			}
			err := <-done
			cancel()
			if errors.Is(err, adopt.ErrBegun) || errors.Is(err, adopt.ErrInterrupted) != (patience == 0) || patience > 0 && !strings.Contains(err.Error(), "had not ended after 1ms") {
				t.Errorf("%v", err)
			}
			if pipe, err := os.OpenFile(filepath.Join(p.o.StateDir, "pipe"), os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
				t.Error("somebody listens to its pipe")
				_ = pipe.Close()
			}
			if err := os.RemoveAll(filepath.Join(p.home, ".claude.json.new")); err != nil { // where it was ended
				t.Fatal(err)
			}
			p.same(before)
		})
	}
}
