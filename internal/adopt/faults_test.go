package adopt_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/adopt"
	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/internal/replace"
)

const three = `{
  "mcpServers": {
    "a": {"command": "a", "env": {"TOKEN": "ghp_0123456789abcdefghij"}},
    "b": {"command": "b"}
  }
}
`

func (p *person) plan() *adopt.Plan {
	p.t.Helper()
	plan, err := adopt.New(p.o)
	if err != nil {
		p.t.Fatal(err)
	}
	return plan
}

// same checks that nothing is as it was not, and that no secret is stored.
func (p *person) same(before map[string]string) {
	p.t.Helper()
	if diff := cmp.Diff(before, p.all()); diff != "" {
		p.t.Errorf("(-before +after):\n%s", diff)
	}
	if names, err := p.store.Names(); err != nil || len(names) > 0 {
		p.t.Errorf("secrets: %v, %v", names, err)
	}
}

// A file that somebody saves while a person reads the plan is not written over, and nothing
// else is written either.
func TestAFileThatChangesUnderThePlan(t *testing.T) {
	for _, change := range []func(p *person, path string){
		func(p *person, _ string) { p.write(".cursor/mcp.json", three+"\n") },
		func(p *person, path string) {
			if err := os.Remove(path); err != nil {
				p.t.Fatal(err)
			}
		},
		func(p *person, _ string) { p.write(".config/haldir/haldir.yaml", "version: 1\n") },
	} {
		p := newPerson(t)
		p.write(".cursor/mcp.json", three)
		p.write(".claude.json", three)
		plan := p.plan()
		change(p, filepath.Join(p.home, ".cursor", "mcp.json"))
		before := p.all()
		if _, err := plan.Do(t.Context()); !errors.Is(err, replace.ErrChanged) {
			t.Errorf("%v", err)
		}
		p.same(before)
		if _, err := adopt.Last(p.o.StateDir, p.o.Host, p.store); !errors.Is(err, adopt.ErrNothing) {
			t.Errorf("there is something to undo: %v", err)
		}
	}
}

// locked is a store that cannot be written to.
type locked struct{ adopt.Store }

func (locked) Set(string, string) error { return errors.New("the keyring is locked") }

// What fails half-way is taken back.
func TestWhatFailsIsTakenBack(t *testing.T) {
	p := newPerson(t)
	p.write(".cursor/mcp.json", three)
	before := p.all()
	p.o.Store = locked{p.store}
	if _, err := p.plan().Do(t.Context()); err == nil || !strings.Contains(err.Error(), "store the secret a.TOKEN: the keyring is locked") {
		t.Errorf("%v", err)
	}
	p.same(before)

	// The last file cannot be written: its directory is closed.
	if runtime.GOOS == "windows" || os.Geteuid() == 0 {
		return // nothing is closed to root; the next test has another fault
	}
	p.o.Store = p.store
	p.write("closed/mcp.json", three)
	dir := filepath.Join(p.home, "closed")
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	if err := os.MkdirAll(filepath.Join(p.home, ".codeium", "windsurf"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "mcp.json"), filepath.Join(p.home, ".codeium", "windsurf", "mcp_config.json")); err != nil {
		t.Fatal(err)
	}
	before = p.all()
	if _, err := p.plan().Do(t.Context()); err == nil {
		t.Error("a file was written in a closed directory")
	}
	p.same(before)
}

// An init that was cut off can be undone, wherever that was.
func TestUndoOfWhatWasCutOff(t *testing.T) {
	p := newPerson(t)
	for _, name := range []string{".claude.json", ".cursor/mcp.json", ".codeium/windsurf/mcp_config.json"} {
		p.write(name, three)
	}
	before := p.all()
	for after := range 4 { // files that were written
		p.o.Now = time.Unix(int64(after), 0)
		plan := p.plan()
		written := map[string][]byte{}
		for i, c := range plan.Files {
			if i < after {
				written[c.Path] = c.After
			}
		}
		done, err := plan.Do(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// What Do has written behind the cut is as it was, on disk and in the manifest.
		for i, c := range plan.Files {
			if written[c.Path] != nil {
				continue
			}
			copies := filepath.Join(done.Backup, string(rune('0'+i)))
			if err := os.Remove(copies + ".after"); err != nil {
				t.Fatal(err)
			}
			if c.Before == nil {
				if err := os.Remove(c.Path); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(c.Path, c.Before, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		p.undo(false)
		p.same(before)
	}
}

// A file that init did not find in the way back is a conflict, and force solves it.
func TestUndoOfWhatIsGone(t *testing.T) {
	for _, gone := range []string{".cursor/mcp.json", ".cursor", ".claude"} {
		p := newPerson(t)
		p.write(".cursor/mcp.json", three)
		p.o.Host.Env = func(name string) string {
			return map[string]string{"CLAUDE_CONFIG_DIR": filepath.Join(p.home, ".claude")}[name]
		}
		p.write(".claude/.claude.json", three)
		before := p.all()
		if _, err := p.plan().Do(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(p.home, gone)); err != nil {
			t.Fatal(err)
		}
		u, err := adopt.Last(p.o.StateDir, p.o.Host, p.store)
		if err != nil {
			t.Fatal(err)
		}
		if c := u.Conflicts(); len(c) != 1 || c[0].Why != "the file is gone" {
			t.Errorf("%s: conflicts: %+v", gone, c)
		}
		if err := u.Do(false); err == nil {
			t.Errorf("%s: undone in spite of a conflict", gone)
		}
		p.undo(true)
		p.same(before)
	}
}

// What a person has done since init is not lost by undo: a secret that was set anew stays, and
// an upstream that was worked on is kept as it was.
func TestUndoKeepsWhatAPersonDidSince(t *testing.T) {
	p := newPerson(t)
	mine := "# mine\nversion: 1\nupstreams:\n  - {name: old, command: old}\n"
	p.write(".config/haldir/haldir.yaml", mine)
	p.write(".cursor/mcp.json", `{"mcpServers": {"a": {"command": "a", "env": {"A_TOKEN": "ghp_0123456789abcdefghij", "B_TOKEN": "ghp_9876543210abcdefghij"}}}}`)
	before := p.all()
	if _, err := p.plan().Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.store.Set("a.A_TOKEN", "rotated"); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(p.o.Config)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.Replace(string(raw), "command: a\n", "command: a\n    args: [worked-on]\n", 1)
	if edited == string(raw) {
		t.Fatalf("nothing to edit in %s", raw)
	}
	p.write(".config/haldir/haldir.yaml", edited)
	u, err := adopt.Last(p.o.StateDir, p.o.Host, p.store)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(u.Kept, []string{"a.A_TOKEN"}) || !slices.Equal(u.Secrets, []string{"a.B_TOKEN"}) {
		t.Errorf("kept %v, gone %v", u.Kept, u.Secrets)
	}
	if err := u.Do(false); err != nil {
		t.Fatal(err)
	}
	after := p.all()
	if after[".cursor/mcp.json"] != before[".cursor/mcp.json"] || strings.Contains(after[".config/haldir/haldir.yaml"], "worked-on") {
		t.Errorf("after undo: %v", after)
	}
	if v, err := p.store.Get("a.A_TOKEN"); err != nil || v != "rotated" {
		t.Errorf("the new secret: %q, %v", v, err)
	}
	if names, err := p.store.Names(); err != nil || len(names) != 1 {
		t.Errorf("secrets: %v, %v", names, err)
	}
	for _, f := range u.Files {
		if f.Kind != adopt.KindConfig {
			continue
		}
		if kept, err := os.ReadFile(f.Undone()); err != nil || string(kept) != edited {
			t.Errorf("what was worked on: %s, %v", kept, err)
		}
	}
}

// The policies that a person has added for a server go with it, since they would not load
// without; those that were there before init stay.
func TestUndoWithPoliciesAboutTheServer(t *testing.T) {
	p := newPerson(t)
	mine := "version: 1\nupstreams:\n  - {name: old, command: old}\npolicies:\n  - {type: deny, tools: [\"a/mine\"]}\n"
	p.write(".config/haldir/haldir.yaml", mine)
	p.write(".cursor/mcp.json", `{"mcpServers": {"a": {"command": "a"}}}`)
	before := p.all()
	if _, err := p.plan().Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, rule := range []string{"{type: deny, upstreams: [a], tools: [drop]}", "{type: deny, tools: [a/x]}"} {
		if _, err := edit.Add(p.o.Config, edit.Policies, []byte(rule), edit.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	p.undo(false)
	p.same(before)
}

// A haldir.yaml that init made and a person has worked on is in nobody's way: it is kept, and
// goes, and the client's file keeps what the client has saved since, by force or without.
func TestUndoOfAHaldirYamlThatWasWorkedOn(t *testing.T) {
	for _, force := range []bool{false, true} {
		p := newPerson(t)
		p.write(".claude.json", `{"mcpServers": {"a": {"command": "a"}}}`)
		if _, err := p.plan().Do(t.Context()); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(p.o.Config)
		if err != nil {
			t.Fatal(err)
		}
		worked := string(raw) + "# a rule of mine\n"
		p.write(".config/haldir/haldir.yaml", worked)
		p.write(".claude.json", `{"mcpServers": {"haldir": {"command": "haldir", "args": ["serve"]}, "later": {"command": "later"}}, "oauthAccount": "me"}`)
		u, err := adopt.Last(p.o.StateDir, p.o.Host, p.store)
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Do(force); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{".claude.json": `-rw------- {"mcpServers": {"a": {"command": "a"}, "later": {"command": "later"}}, "oauthAccount": "me"}`}
		if diff := cmp.Diff(want, p.all()); diff != "" {
			t.Errorf("force %v (-want +got):\n%s", force, diff)
		}
		if kept, err := os.ReadFile(u.Files[0].Undone()); err != nil || string(kept) != worked {
			t.Errorf("force %v: kept %q, %v", force, kept, err)
		}
	}
}

// Force puts back the file that has no other way, and takes nothing from the others.
func TestForceIsForConflicts(t *testing.T) {
	p := newPerson(t)
	p.write(".claude.json", `{"mcpServers": {"a": {"command": "a"}}}`)
	p.write(".cursor/mcp.json", three)
	before := p.all()
	if _, err := p.plan().Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.write(".claude.json", `{"mcpServers": {"haldir": {"command": "haldir", "args": ["serve"]}}, "oauthAccount": "me"}`)
	mine := `{"mcpServers": {"a": {"command": "mine"}}}`
	p.write(".cursor/mcp.json", mine)
	u, err := adopt.Last(p.o.StateDir, p.o.Host, p.store)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Do(true); err != nil {
		t.Fatal(err)
	}
	before[".claude.json"] = `-rw------- {"mcpServers": {"a": {"command": "a"}}, "oauthAccount": "me"}`
	p.same(before)
	for _, f := range u.Files {
		if kept, err := os.ReadFile(f.Undone()); filepath.Base(f.Path) == "mcp.json" && (err != nil || string(kept) != mine) {
			t.Errorf("kept %q, %v", kept, err)
		}
	}
}

// A haldir.yaml that somebody else made while init was at work is not taken for init's own.
func TestUndoOfAHaldirYamlOfSomebodyElse(t *testing.T) {
	p := newPerson(t)
	p.write(".cursor/mcp.json", `{"mcpServers": {"a": {"command": "a", "env": {"TOKEN": "ghp_0123456789abcdefghij"}}}}`)
	p.o.Store = quick{p.store, func() { p.write(".config/haldir/haldir.yaml", "version: 1\n") }}
	if _, err := p.plan().Do(t.Context()); !errors.Is(err, replace.ErrChanged) || !errors.Is(err, adopt.ErrBegun) {
		t.Errorf("%v", err)
	}
	if got := p.all()[".config/haldir/haldir.yaml"]; got != "-rw------- version: 1\n" {
		t.Errorf("somebody's haldir.yaml: %q", got)
	}
}

// quick is a store beside which something else happens while it is written to.
type quick struct {
	adopt.Store
	beside func()
}

func (q quick) Set(name, value string) error {
	q.beside()
	return q.Store.Set(name, value)
}

// A server that a person has put where one was that moved is not written over.
func TestUndoWithAnotherServerOfTheName(t *testing.T) {
	p := newPerson(t)
	p.write(".cursor/mcp.json", three)
	if _, err := p.plan().Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.write(".cursor/mcp.json", `{"mcpServers": {"haldir": {"command": "haldir", "args": ["serve"]}, "a": {"command": "mine"}}}`)
	u, err := adopt.Last(p.o.StateDir, p.o.Host, p.store)
	if err != nil {
		t.Fatal(err)
	}
	c := u.Conflicts()
	if len(c) != 1 || !strings.HasSuffix(c[0].Why, `mcp.json:1:69: there is another "a" by now`) {
		t.Errorf("conflicts: %+v", c)
	}
}
