package adopt_test

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/adopt"
	"github.com/haldir-mcp/haldir/internal/replace"
	"github.com/haldir-mcp/haldir/internal/secret"
)

// steps is a context that is asked before each step whether it has ended.
type steps struct {
	context.Context
	ask func() error
}

func (s steps) Err() error { return s.ask() }

// disk is every file below a directory.
func disk(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			out[path], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// setDisk makes a directory what it was.
func setDisk(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for path, data := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// cutPerson is somebody with a server in two clients, the one of which has another that is
// called haldir.
func cutPerson(t *testing.T) *person {
	p := newPerson(t)
	p.write(".claude.json", `{"mcpServers": {"haldir": {"command": "other", "env": {"TOKEN": "ghp_0123456789abcdefghij"}}, "b": {"command": "b"}}}`)
	p.write(".cursor/mcp.json", three)
	return p
}

// An init that is killed is undone without force, wherever that was: before a step, right after
// what it writes and before it notes that, and with what Claude Code saves since.
func TestUndoOfAnInitThatWasKilled(t *testing.T) {
	p := cutPerson(t)
	before := p.all()
	var cuts []map[string][]byte
	if _, err := p.plan().Do(steps{t.Context(), func() error { cuts = append(cuts, disk(t, p.home)); return nil }}); err != nil {
		t.Fatal(err)
	}
	cuts = append(cuts, disk(t, p.home))
	claude := filepath.Join(p.home, ".claude.json")
	back := func(cut map[string][]byte, what string) {
		t.Helper()
		setDisk(t, p.home, cut)
		p.store = secret.New(p.o.StateDir, nil)
		u, err := adopt.Last(p.o.StateDir, p.o.Host, p.store)
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Do(false); err != nil {
			t.Errorf("%s: %v: %+v", what, err, u.Conflicts())
		}
	}
	for n, cut := range cuts {
		cut[filepath.Join(p.home, ".cursor", ".mcp.json-123")] = []byte(three[:len(three)/2]) // as a write that was cut leaves it
		back(cut, "before a step")
		p.same(before)
		if n > 0 { // the files of this step, and what was noted of the one before
			ours := func(path string) bool { return strings.HasPrefix(path, p.o.StateDir+string(filepath.Separator)) }
			late := maps.Clone(cut)
			maps.DeleteFunc(late, func(path string, _ []byte) bool { return ours(path) })
			for path, data := range cuts[n-1] {
				if ours(path) {
					late[path] = data
				}
			}
			back(late, "after what is written")
			p.same(before)
		}
		cut[claude] = append([]byte(`{"new": 1,`), cut[claude][1:]...)
		back(cut, "with what was saved since")
		want := before[".claude.json"]
		before[".claude.json"] = want[:len("-rw------- ")] + `{"new": 1,` + want[len("-rw------- {"):]
		p.same(before)
		before[".claude.json"] = want
	}
}

// An init that is interrupted takes back what it has begun.
func TestInitThatIsInterrupted(t *testing.T) {
	for n := range 20 {
		p := cutPerson(t)
		before := p.all()
		left := n
		_, err := p.plan().Do(steps{t.Context(), func() error {
			if left--; left < 0 {
				return context.Canceled
			}
			return nil
		}})
		if err == nil {
			if n < 4 {
				t.Errorf("only %d steps", n)
			}
			return
		}
		if !errors.Is(err, adopt.ErrInterrupted) || errors.Is(err, adopt.ErrBegun) {
			t.Errorf("step %d: %v", n, err)
		}
		p.same(before)
		if _, err := adopt.Last(p.o.StateDir, p.o.Host, p.store); !errors.Is(err, adopt.ErrNothing) {
			t.Errorf("step %d: there is something to undo: %v", n, err)
		}
	}
	t.Error("it has no end")
}

// Where Claude Code is at its file, init waits, and does not write over what comes of it. What
// a Claude Code has left that is gone is in nobody's way.
func TestInitAndClaudeCodeTakeTurns(t *testing.T) {
	p := cutPerson(t)
	lock := filepath.Join(p.home, ".claude.json.lock")
	if err := os.Mkdir(lock, 0o700); err != nil {
		t.Fatal(err)
	}
	plan, done := p.plan(), make(chan error)
	go func() {
		_, err := plan.Do(t.Context())
		done <- err
	}()
	for {
		if _, err := os.Stat(p.o.Config); err == nil {
			break
		}
	}
	saved := `{"saved": true, ` + strings.TrimPrefix(p.all()[".claude.json"], "-rw------- {")
	p.write(".claude.json", saved)
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, replace.ErrChanged) || errors.Is(err, adopt.ErrBegun) {
		t.Errorf("%v", err)
	}
	if left := disk(t, filepath.Join(p.o.StateDir, "init")); len(left) > 0 {
		t.Errorf("copies are left: %d", len(left))
	}
	if got := p.all()[".claude.json"]; got != "-rw------- "+saved {
		t.Errorf("Claude Code's file: %s", got)
	}

	p = cutPerson(t)
	lock = filepath.Join(p.home, ".claude.json.lock")
	if err := os.Mkdir(lock, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(lock, time.Time{}, time.Now().Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	before := p.all()
	if _, err := p.plan().Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(lock); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the lock is there: %v", err)
	}
	p.undo(false)
	p.same(before)
}

// stuck is a store that secrets cannot be removed from.
type stuck struct{ adopt.Store }

func (stuck) Remove(string) error { return errors.New("the keyring is locked") }

// An undo that fails half-way and is run again loses nothing of what a person has written, and
// says of it where it is.
func TestUndoThatIsRunAgain(t *testing.T) {
	p := cutPerson(t)
	before := p.all()
	if _, err := p.plan().Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, mine := range []string{"# my hours of work\n", "# and more\n"} {
		p.write(".config/haldir/haldir.yaml", mine)
		want = append(want, mine)
		u := must(adopt.Last(p.o.StateDir, p.o.Host, stuck{p.store}))(t)
		if err := u.Do(false); err == nil {
			t.Fatal("the secret is gone")
		}
	}
	u := must(adopt.Last(p.o.StateDir, p.o.Host, p.store))(t)
	if err := u.Do(false); err != nil {
		t.Fatal(err)
	}
	p.same(before)
	var got []string
	for _, path := range u.Files[0].Aside() {
		got = append(got, string(must(os.ReadFile(path))(t)))
	}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("kept: %q", got)
	}
}

// What is put back together keeps its old bytes too, and what goes with haldir's entry is told
// and kept. Nothing else is.
func TestUndoKeepsTheOriginal(t *testing.T) {
	p := cutPerson(t)
	original := must(os.ReadFile(filepath.Join(p.home, ".claude.json")))(t)
	if _, err := p.plan().Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	const now = `{"new": 1, "mcpServers": {"haldir": {"command": "haldir", "args": ["serve"], "env": {"MINE": "1"}}}}`
	p.write(".claude.json", now)
	u := must(adopt.Last(p.o.StateDir, p.o.Host, p.store))(t)
	if err := u.Do(false); err != nil {
		t.Fatal(err)
	}
	kept := map[string]string{}
	for _, f := range u.Files {
		if filepath.Base(f.Path) != ".claude.json" {
			continue
		}
		if len(f.More) != 1 {
			t.Errorf("told: %q", f.More)
		}
		kept[filepath.Base(f.Original())], kept[filepath.Base(f.Undone())] = string(original), now
	}
	entries := must(os.ReadDir(u.Dir))(t)
	for _, e := range entries {
		raw := must(os.ReadFile(filepath.Join(u.Dir, e.Name())))(t)
		info := must(e.Info())(t)
		if kept[e.Name()] != string(raw) || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s, %v: %s", e.Name(), info.Mode(), raw)
		}
	}
	if len(entries) != 2 {
		t.Errorf("%d are kept", len(entries))
	}
}

// A run that was killed before it began has copies of secrets, which go.
func TestWhatAKilledRunHasLeft(t *testing.T) {
	p := cutPerson(t)
	for _, dir := range []string{"19700101T000000Z", "19690101T000000Z"} {
		for _, name := range []string{"0.before", ".1.before-123", ".manifest.json-7", ".2-2.undone-5"} {
			p.write(filepath.Join("state", "init", dir, name), "secret")
		}
	}
	p.write("state/init/19690101T000000Z/0.undone", "mine")
	p.write("state/init/19690101T000000Z/1.original", "mine")
	if err := adopt.Tidy(p.o.StateDir); err != nil {
		t.Fatal(err)
	}
	for path, data := range disk(t, filepath.Join(p.o.StateDir, "init")) {
		if string(data) != "mine" {
			t.Errorf("%s is there", path)
		}
	}
	if got := len(disk(t, filepath.Join(p.o.StateDir, "init"))); got != 2 {
		t.Errorf("%d files are there", got)
	}

	// The next init takes away half a file.
	p.write(".cursor/.mcp.json-123", three[:len(three)/2])
	if _, err := p.plan().Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.all()[filepath.FromSlash(".cursor/.mcp.json-123")] != "" {
		t.Error("half of a file is there")
	}
}
