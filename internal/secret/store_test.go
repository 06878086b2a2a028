package secret_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/haldir-mcp/haldir/internal/secret"
)

func TestMain(m *testing.M) {
	if job := os.Getenv("HALDIR_SECRET_JOB"); job != "" {
		count(job)
		return
	}
	goleak.VerifyTestMain(m)
}

// count adds to a counter for ever, each time a process of its own.
func count(dir string) {
	s := secret.New(dir, nil)
	for {
		err := s.Update("counter", func(old string, _ bool) (string, bool, error) { return old + "x", true, nil })
		if err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		_, _ = fmt.Println("counted")
	}
}

// ring is a keyring in memory.
type ring struct {
	mu    sync.Mutex
	items map[string]string
	gone  bool
}

var errGone = errors.New("the keyring is locked")

func (r *ring) Get(service, user string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		return "", errGone
	}
	return r.items[service+"/"+user], nil
}

func (r *ring) Set(service, user, secret string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		return errGone
	}
	if r.items == nil {
		r.items = map[string]string{}
	}
	r.items[service+"/"+user] = secret
	return nil
}

const value = "a-secret-that-nobody-may-read"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// readable fails the test if a file in dir holds text.
func unreadable(t *testing.T, dir, text string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if bytes.Contains(raw, []byte(text)) {
			t.Errorf("%s holds it as it is", path)
		}
		if info, e := d.Info(); e == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	}))
}

func TestWhatIsStoredIsThere(t *testing.T) {
	for name, r := range map[string]secret.Keyring{"keyring": &ring{}, "file": nil, "a keyring that is locked": &ring{gone: true}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := secret.New(dir, r)
			if _, err := s.Get("a"); !errors.Is(err, secret.ErrNotFound) {
				t.Errorf("of an empty store: %v", err)
			}
			must(t, s.Set("a", value))
			must(t, s.Set("b", "other"))
			other := secret.New(dir, r)
			for _, s := range []*secret.Store{s, other} {
				if got, err := s.Get("a"); err != nil || got != value {
					t.Errorf("%q, %v", got, err)
				}
			}
			must(t, other.Set("a", "changed"))
			if got, err := s.Get("a"); err != nil || got != "changed" {
				t.Errorf("what another process has changed: %q, %v", got, err)
			}
			must(t, s.Remove("b"))
			if names, err := other.Names(); err != nil || !slices.Equal(names, []string{"a"}) {
				t.Errorf("%v, %v", names, err)
			}
			if err := other.Remove("b"); !errors.Is(err, secret.ErrNotFound) {
				t.Errorf("%v", err)
			}
			unreadable(t, dir, value)
			_, err := os.Stat(filepath.Join(dir, "secrets.key"))
			if inFile := err == nil; inFile != (name != "keyring") {
				t.Errorf("the key is in a file: %v", inFile)
			}
		})
	}
}

func TestAKeyringThatCannotBeReadIsNoReasonForAnotherKey(t *testing.T) {
	dir, r := t.TempDir(), &ring{}
	must(t, secret.New(dir, r).Set("a", value))
	r.gone = true
	s := secret.New(dir, r)
	_, err := s.Get("a")
	if err == nil || !strings.Contains(err.Error(), "keyring") {
		t.Errorf("%v", err)
	}
	if err := s.Set("b", "x"); err == nil {
		t.Error("a second key was made")
	}
	if err := secret.New(dir, nil).Set("b", "x"); err == nil || !strings.Contains(err.Error(), "keyring: file") {
		t.Errorf("told not to use the keyring: %v", err)
	}
	r.gone = false
	s = secret.New(dir, r) // as it would be after a while
	if got, err := s.Get("a"); err != nil || got != value {
		t.Errorf("%q, %v", got, err)
	}
}

func TestDamageIsSaidAndNothingIsLost(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(dir string) error
		says   string
	}{
		"another key": {func(dir string) error {
			other := filepath.Join(dir, "other")
			if err := secret.New(other, nil).Set("x", "y"); err != nil {
				return err
			}
			raw, err := os.ReadFile(filepath.Join(other, "secrets.key"))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "secrets.key"), raw, 0o600)
		}, "cannot be decrypted"},
		"no key":         {func(dir string) error { return os.Remove(filepath.Join(dir, "secrets.key")) }, "lost its key"},
		"a key for all":  {func(dir string) error { return os.Chmod(filepath.Join(dir, "secrets.key"), 0o644) }, "chmod 600"},
		"a broken key":   {func(dir string) error { return os.WriteFile(filepath.Join(dir, "secrets.key"), []byte("x"), 0o600) }, "damaged"},
		"a flipped byte": {func(dir string) error { return flip(filepath.Join(dir, "secrets.age"), -1) }, "damaged"},
		"a broken head":  {func(dir string) error { return flip(filepath.Join(dir, "secrets.age"), 30) }, "cannot be decrypted"},
		"half a file":    {func(dir string) error { return os.Truncate(filepath.Join(dir, "secrets.age"), 100) }, ""},
		"an empty file":  {func(dir string) error { return os.Truncate(filepath.Join(dir, "secrets.age"), 0) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, secret.New(dir, nil).Set("a", value))
			must(t, tt.damage(dir))
			before, err := os.ReadFile(filepath.Join(dir, "secrets.age"))
			must(t, err)
			s := secret.New(dir, nil)
			if _, err := s.Get("a"); err == nil || !strings.Contains(err.Error(), tt.says) || errors.Is(err, secret.ErrNotFound) {
				t.Errorf("%v, want one that says %q", err, tt.says)
			}
			if err := s.Set("b", "x"); err == nil {
				t.Error("it is written to all the same")
			}
			if after, err := os.ReadFile(filepath.Join(dir, "secrets.age")); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the file has changed: %v", err)
			}
		})
	}
}

func flip(path string, at int) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if at < 0 {
		at += len(raw)
	}
	raw[at] ^= 1
	return os.WriteFile(path, raw, 0o600)
}

func TestAStoreThatIsRemovedBeginsAnew(t *testing.T) {
	dir := t.TempDir()
	s := secret.New(dir, nil)
	must(t, s.Set("a", value))
	must(t, os.Remove(filepath.Join(dir, "secrets.age")))
	must(t, os.Remove(filepath.Join(dir, "secrets.key")))
	must(t, s.Set("b", "other"))
	if got, err := secret.New(dir, nil).Get("b"); err != nil || got != "other" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestNames(t *testing.T) {
	for n, ok := range map[string]bool{
		"github": true, "A.b-c_9": true, "": false, "a/b": false, "-a": false, "a b": false, "ä": false, strings.Repeat("a", 65): false, "oauth/x": false,
	} {
		if err := secret.CheckName(n); (err == nil) != ok {
			t.Errorf("%q: %v", n, err)
		}
	}
}

func TestAChangeThatFailsChangesNothing(t *testing.T) {
	s := secret.New(t.TempDir(), nil)
	must(t, s.Set("a", value))
	if err := s.Update("a", func(string, bool) (string, bool, error) { return "", false, errGone }); !errors.Is(err, errGone) {
		t.Errorf("%v", err)
	}
	if got, err := s.Get("a"); err != nil || got != value {
		t.Errorf("%q, %v", got, err)
	}
}

// TestNoChangeIsLostWhenProcessesAreKilled counts in several processes that are
// killed at any moment: each count that was told of must be there, and the file whole.
func TestNoChangeIsLostWhenProcessesAreKilled(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	must(t, err)
	s := secret.New(dir, nil)
	must(t, s.Set("counter", ""))
	told := 0
	for range 8 {
		var outs [3]bytes.Buffer
		var cmds [3]*exec.Cmd
		for i := range cmds {
			cmds[i] = exec.Command(exe)
			cmds[i].Env = append(os.Environ(), "HALDIR_SECRET_JOB="+dir)
			cmds[i].Stdout, cmds[i].Stderr = &outs[i], os.Stderr
			must(t, cmds[i].Start())
		}
		time.Sleep(150 * time.Millisecond)
		for i := range cmds {
			must(t, cmds[i].Process.Kill())
			_ = cmds[i].Wait()
			told += strings.Count(outs[i].String(), "counted")
		}
		got, err := s.Get("counter")
		must(t, err)
		if len(got) < told || len(got) > told+3*8 {
			t.Fatalf("%d were counted, %d are stored", told, len(got))
		}
	}
	if told == 0 {
		t.Error("nothing was counted")
	}
	must(t, s.Set("counter", "")) // the lock is free
	t.Logf("%d changes", told)
}
