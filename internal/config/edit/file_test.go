package edit_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/config/edit"
)

// TestMain makes this test binary a second program, which adds policies.
func TestMain(m *testing.M) {
	if path, who := os.Getenv("EDIT_TEST_FILE"), os.Getenv("EDIT_TEST_WHO"); path != "" {
		for i := range 20 {
			if _, err := edit.Add(path, edit.Policies, fmt.Appendf(nil, "{type: deny, tools: [t%d], id: %s-%d}", i, who, i), edit.Options{}); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

const small = "version: 1\npolicies:\n  - {type: deny, tools: [a]}   # one\n"

// TestOnlyTheExpectedTextIsChanged: a change that was decided on one text is not made to
// another.
func TestOnlyTheExpectedTextIsChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "haldir.yaml")
	entry := []byte("{type: deny, tools: [b]}")
	expected, none := sha256.Sum256([]byte(small)), [sha256.Size]byte{}
	if _, err := edit.Add(path, edit.Policies, entry, edit.Options{Expect: &expected}); !errors.Is(err, edit.ErrOther) {
		t.Errorf("no file: %v", err)
	}
	other := small + "# somebody else's\n"
	write(t, path, other, 0o600)
	for _, sum := range []*[sha256.Size]byte{&expected, &none} {
		if _, err := edit.Add(path, edit.Policies, entry, edit.Options{Expect: sum}); !errors.Is(err, edit.ErrOther) || readFile(t, path) != other {
			t.Errorf("another file: %v, and it is %q", err, readFile(t, path))
		}
	}
	write(t, path, small, 0o600)
	if _, err := edit.Add(path, edit.Policies, entry, edit.Options{Expect: &expected}); err != nil || readFile(t, path) == small {
		t.Errorf("the file: %v", err)
	}
	fresh := filepath.Join(t.TempDir(), "haldir.yaml")
	if _, err := edit.Add(fresh, edit.Policies, entry, edit.Options{Expect: &none}); err != nil {
		t.Errorf("no file, as expected: %v", err)
	}
}

// Three processes and two goroutines of this one add policies at once, and one of them
// removes what it has added. No change is lost.
func TestEditorsLoseNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "haldir.yaml")
	write(t, path, small, 0o600)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, who := range []string{"x", "y", "z"} {
		wg.Go(func() {
			cmd := exec.CommandContext(t.Context(), exe)
			cmd.Env = append(os.Environ(), "EDIT_TEST_FILE="+path, "EDIT_TEST_WHO="+who)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	for _, who := range []string{"v", "w"} {
		wg.Go(func() {
			for i := range 10 {
				id := fmt.Sprintf("%s-%d", who, i)
				if _, err := edit.Add(path, edit.Policies, []byte("{type: deny, tools: [t], id: "+id+"}"), edit.Options{}); err != nil {
					t.Error(err)
				}
				if who == "v" {
					if _, err := edit.Remove(path, edit.Policies, id, edit.Options{}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, id := range cfg.Engine.Rules() {
		seen[id] = true
	}
	for _, who := range []string{"x", "y", "z"} {
		for i := range 20 {
			if id := fmt.Sprintf("%s-%d", who, i); !seen[id] {
				t.Errorf("%s is lost", id)
			}
		}
	}
	if len(seen) != 1+3*20+10 {
		t.Errorf("there are %d policies", len(seen))
	}
	if text := readFile(t, path); !strings.HasPrefix(text, small) {
		t.Errorf("the rest has changed: %s", text)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".haldir.yaml-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("files are left over: %v, %v", left, err)
	}
}

func TestAFileKeepsItsModeAndItsLinks(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Log("modes and links are those of Unix")
		return
	}
	dir := t.TempDir()
	real := filepath.Join(dir, "dotfiles", "mine.yaml")
	if err := os.MkdirAll(filepath.Dir(real), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, real, small, 0o640)
	link := filepath.Join(dir, "haldir.yaml")
	middle := filepath.Join(dir, "middle")
	for from, to := range map[string]string{link: "middle", middle: filepath.Join("dotfiles", "mine.yaml")} {
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
	}
	r, err := edit.Add(link, edit.Policies, []byte("{type: deny, tools: [b]}"), edit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Path != real {
		t.Errorf("%s was written, not %s", r.Path, real)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is none any more: %v, %v", info, err)
	}
	info, err := os.Stat(real)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the mode is %v, %v", info.Mode(), err)
	}
	if got := readFile(t, real); got != small+"  - {type: deny, tools: [b]}\n" {
		t.Errorf("%s", got)
	}
}

// A link to a file that is not there yet makes that file, for its owner alone.
func TestAFileIsMade(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "new", "haldir.yaml")
	if _, err := edit.Add(path, edit.Policies, []byte("{type: dney}"), edit.Options{}); err == nil {
		t.Error("a mistake was written")
	}
	if _, err := edit.Remove(path, edit.Policies, "deny-1", edit.Options{}); !errors.Is(err, edit.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if _, err := edit.Add(path, edit.Policies, []byte("{type: deny, tools: [a]}"), edit.Options{DryRun: true}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory was made for nothing: %v", err)
	}
	r, err := edit.Add(path, edit.Policies, []byte("{type: deny, tools: [a]}"), edit.Options{})
	if err != nil || r.Before != nil || r.Old != nil {
		t.Fatalf("%+v, %v", r, err)
	}
	info, err := os.Stat(path)
	if err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if got := readFile(t, path); got != "version: 1\n\npolicies:\n  - {type: deny, tools: [a]}\n" {
		t.Errorf("%q", got)
	}
}

func TestADryRunWritesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "haldir.yaml")
	write(t, path, small, 0o600)
	r, err := edit.Remove(path, edit.Policies, "deny-1", edit.Options{DryRun: true})
	if err != nil || string(r.Before) != small || string(r.After) != "version: 1\npolicies: []\n" || r.Entry != "{type: deny, tools: [a]}" {
		t.Errorf("%+v, %v", r, err)
	}
	if got := readFile(t, path); got != small {
		t.Errorf("%q", got)
	}
	names, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestWhatIsNoFileIsRefused(t *testing.T) {
	if _, err := edit.Add(t.TempDir(), edit.Policies, []byte("{type: deny}"), edit.Options{}); err == nil {
		t.Error("a directory was edited")
	}
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink(loop, loop); err != nil && runtime.GOOS != "windows" {
		t.Fatal(err)
	}
	if _, err := edit.Add(loop, edit.Policies, []byte("{type: deny}"), edit.Options{}); err == nil && runtime.GOOS != "windows" {
		t.Error("a loop of links was edited")
	}
}

func TestReferencesCanBeRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "haldir.yaml")
	for _, entry := range []string{
		`{"name":"a","url":"https://example.com","headers":["X: ${env:HOME}"]}`,
		`{"name":"a","url":"https://example.com","headers":["X: \u0024{env:HOME}"]}`,
		"name: a\nurl: https://example.com\nauth: {type: bearer, token: '${keyring:x}'}\n",
	} {
		if _, err := edit.Add(path, edit.Upstreams, []byte(entry), edit.Options{NoReferences: true, DryRun: true}); !errors.Is(err, edit.ErrForbids) {
			t.Errorf("%s: %v", entry, err)
		}
	}
	for _, key := range []string{"command: sh", "args: [x]", "env: [A=b]", "env_pass: [A]", "cwd: /", "start: eager", "stop_when_idle: 1m"} {
		if _, err := edit.Add(path, edit.Upstreams, []byte("name: a\n"+key), edit.Options{NoCommands: true, DryRun: true}); !errors.Is(err, edit.ErrForbids) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// A list of a file in braces goes with the last entry, unless a person has written beside it.
func TestAnEmptyListInBracesGoes(t *testing.T) {
	const was = "{version: 1}\n"
	for _, tt := range []struct{ before, want string }{
		{"{version: 1, policies: [{type: deny, id: a, tools: [x]}]}\n", "{version: 1}\n"},
		{"{policies: [{type: deny, id: a, tools: [x]}], version: 1}\n", "{version: 1}\n"},
		{"{\n  version: 1, # mine\n  policies: [{type: deny, id: a, tools: [x]}]\n}\n", "{\n  version: 1 # mine\n}\n"},
		{"{\n  version: 1,\n  # mine\n  policies: [{type: deny, id: a, tools: [x]}]\n}\n", "{\n  version: 1,\n  # mine\n  policies: []\n}\n"},
		{"{\n  version: 1,\n  policies: [{type: deny, id: a, tools: [x]}] # mine\n}\n", "{\n  version: 1,\n  policies: [] # mine\n}\n"},
		{"{version: 1, policies: &p [{type: deny, id: a, tools: [x]}]}\n", "{version: 1, policies: &p []}\n"},
		{"{\"version\": 1, \"policies\": [\n  {\"type\": \"deny\", \"id\": \"a\", \"tools\": [\"x\"]}\n]}\n", "{\"version\": 1}\n"},
	} {
		r, err := edit.RemoveFrom([]byte(tt.before), "haldir.yaml", edit.Policies, "a", []byte(was))
		if err != nil || string(r.After) != tt.want {
			t.Errorf("%s is\n%s, %v, want\n%s", tt.before, r.After, err, tt.want)
		}
	}
}
