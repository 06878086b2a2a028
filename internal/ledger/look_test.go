package ledger_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/ledger"
)

// asItLies is what the files of a state directory say, but those that lock it.
func asItLies(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, pattern := range []string{"haldir.db", "haldir.head", "checkpoints.log", "procs/*"} {
		list, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range list {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			all[path] = string(raw)
		}
	}
	return all
}

// Who only looks sees an older file, the calls of the dead and the living processes as they
// are, can write nothing, and has changed nothing.
func TestALookChangesNothing(t *testing.T) {
	dir, clock := format2(t), newClock()
	before := asItLies(t, dir)
	l := open(t, ledger.Options{Dir: dir, Clock: clock.now, ReadOnly: true})
	v, err := l.View(context.Background())
	if err != nil || v.Format != 2 || v.Orphans != 3 || v.Dead != 1 || len(v.Living) != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	if n := verify(t, l); n != 29 {
		t.Errorf("%d records", n)
	}
	if _, err := l.CreateSession(context.Background(), ledger.Terms{}); !errors.Is(err, ledger.ErrReadOnly) {
		t.Errorf("a session was made: %v", err)
	}
	closeLedger(t, l)
	if !maps.Equal(before, asItLies(t, dir)) {
		t.Error("the files are not as they were")
	}

	about := ledger.Process{PID: 7, Version: "1.2.3", Verb: "serve", Config: "/a/haldir.yaml", Started: clock.now().UTC().Round(time.Second)}
	living := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now, Process: about})
	verify(t, living)
	l = open(t, ledger.Options{Dir: dir, Clock: clock.now, ReadOnly: true})
	if v, err = l.View(context.Background()); err != nil || v.Format != ledger.FormatVersion || v.Orphans+v.Dead != 0 || !reflect.DeepEqual(v.Living, []ledger.Process{about}) {
		t.Errorf("%+v, %v", v, err)
	}
	// What it says of itself later takes the place of that, longer or shorter.
	for _, waits := range [][]string{{strings.Repeat("the deny rule is gone", 1000), "another"}, nil} {
		about.Waits = waits
		if err := living.Introduce(context.Background(), about); err != nil {
			t.Fatal(err)
		}
		if v, err = l.View(context.Background()); err != nil || !reflect.DeepEqual(v.Living, []ledger.Process{about}) {
			t.Errorf("%+v, %v", v, err)
		}
	}
	closeLedger(t, living)
	if v, err = l.View(context.Background()); err != nil || len(v.Living) != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	closeLedger(t, l)
}

// Where there is no ledger a look makes none.
func TestALookMakesNoLedger(t *testing.T) {
	dir := stateDir(t)
	l := open(t, ledger.Options{Dir: dir, Clock: time.Now, ReadOnly: true})
	if _, err := l.View(context.Background()); !errors.Is(err, ledger.ErrNone) {
		t.Errorf("without a directory: %v", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := l.View(context.Background()); !errors.Is(err, ledger.ErrNone) {
		t.Errorf("in an empty directory: %v", err)
	}
	if made, err := os.ReadDir(dir); err != nil || len(made) > 0 {
		t.Errorf("there is something: %v, %v", made, err)
	}
	closeLedger(t, l)
}

// TestWhatDeadWatchersLeftGoes: also what comes after a living one in the directory.
func TestWhatDeadWatchersLeftGoes(t *testing.T) {
	dir := stateDir(t)
	l := quick(t, dir)
	stop, err := l.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	before := time.Now().Add(-time.Hour)
	for _, name := range []string{"00", "zz", "zzz", "young"} {
		path := filepath.Join(dir, "watchers", name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if name == "young" { // somebody may be about to lock it
			continue
		}
		if err := os.Chtimes(path, before, before); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.DeadWatchers(); n != 3 {
		t.Errorf("%d dead watchers, want 3", n)
	}
	if !l.Watched() {
		t.Error("nobody watches")
	}
	if n := l.DeadWatchers(); n != 0 {
		t.Errorf("%d are left", n)
	}
	if _, err := os.Stat(filepath.Join(dir, "watchers", "young")); err != nil {
		t.Error(err)
	}
}
