package ledger_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// contents are all buckets of a database, from the first record that is kept on.
func contents(tb testing.TB, dir string) map[string]map[string][]byte {
	tb.Helper()
	all := map[string]map[string][]byte{}
	inspect(tb, dir, func(tx *bolt.Tx) {
		first := keyNumber(space(tx, 'm')["pruned"]) + 1
		_ = tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			entries := map[string][]byte{"the sequence": fmt.Append(nil, b.Sequence())}
			all[string(name)] = entries
			return b.ForEach(func(k, v []byte) error {
				switch string(name) {
				case "audit", "outcomes":
					if keyNumber(k) < first {
						return nil
					}
				case "index":
					if (keyNumber(k[:8])+1)*audit.BlockSize <= first {
						return nil
					}
				}
				entries[string(k)] = bytes.Clone(v)
				return nil
			})
		})
	})
	return all
}

// compact also prunes what is due, without waiting for a day.
func compact(tb testing.TB, l *ledger.Ledger) ledger.Compaction {
	tb.Helper()
	c, err := l.Compact(context.Background(), true, nil)
	if err != nil {
		tb.Fatalf("Compact: %v", err)
	}
	return c
}

func TestACompactedLedgerIsTheSameAndSmaller(t *testing.T) {
	dir := stateDir(t)
	l, clock := aged(t, dir)
	n := gone(t, l)
	c := compact(t, l)
	if c.After >= c.Before {
		t.Errorf("the file had %d bytes and has %d", c.Before, c.After)
	}
	if c.Pruned == 0 || gone(t, l) != n+c.Pruned { // what was due, and would have gone a day later
		t.Errorf("%d records were gone, and are %d; compaction says %d", n, gone(t, l), c.Pruned)
	}
	verify(t, l)
	ask := engine(t, policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeApproval, ID: "ask", Tools: []string{"shop/look"}, Timeout: time.Hour}}})
	if _, d := reserve(t, l, call("ses_a", "look", `{}`), ask); d.Verdict != policy.Ask {
		t.Fatalf("%v: %s", d.Verdict, d.Reason)
	}
	before := contents(t, dir)
	other := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now}) // while this one lives
	compact(t, other)
	verify(t, l)
	after := contents(t, dir)
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("before and after:\n%.3000s", d)
	}
	info, err := os.Stat(filepath.Join(dir, "haldir.db"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the mode is %v (%v)", info.Mode(), err)
	}
	if _, err := os.Stat(filepath.Join(dir, "haldir.db.compact")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is left of the work: %v", err)
	}
	busy(t, quick(t, dir), 10)
}

// What was used in days whose records are gone is counted once, whoever deletes those: the
// compaction, or a process that goes on with the old file, or with the new one.
func TestACompactionCountsWhatWasUsedOnce(t *testing.T) {
	for name, further := range map[string]bool{"no more is pruned meanwhile": false, "more is pruned meanwhile": true} {
		t.Run(name, func(t *testing.T) {
			clock, dir := newClock(), stateDir(t)
			l, other := little(t, dir, clock, "a", 2*day), little(t, dir, clock, "a", 2*day)
			calls := 0
			call := func(l *ledger.Ledger, n int) { busy(t, l, n); calls += n }
			call(l, 3000)
			clock.add(3 * day)
			call(l, 1000)
			during := func(_, _ uint64) {
				if calls > 4000 {
					return
				}
				before := gone(t, other)
				call(other, 1000)
				if !further {
					return
				}
				for range 3 { // the boundary is found, and a day later concluded
					clock.add(day + time.Hour)
					call(other, 1000)
				}
				if gone(t, other) == before {
					t.Error("nothing more is pruned")
				}
			}
			if _, err := l.Compact(context.Background(), true, during); err != nil {
				t.Fatal(err)
			}
			check := func(when string) {
				t.Helper()
				inspect(t, dir, func(tx *bolt.Tx) {
					var days map[string]struct{ Calls int }
					if err := json.Unmarshal(space(tx, 'm')["swept"], &days); err != nil {
						t.Fatal(err)
					}
					counted, last := 0, keyNumber(space(tx, 'm')["counted"])
					for _, d := range days {
						counted += d.Calls
					}
					_ = tx.Bucket([]byte("audit")).ForEach(func(k, raw []byte) error {
						if r, err := audit.Decode(raw); err == nil && keyNumber(k) > last && r.Kind == audit.KindAttempt {
							counted++
						}
						return nil
					})
					if counted != calls {
						t.Errorf("%s: of %d calls %d are counted or still there", when, calls, counted)
					}
				})
			}
			check("after it")
			call(l, 500)
			check("with some of the new file deleted")
			compact(t, l)
			check("after another")
			call(l, 500)
			check("at the end")
			verify(t, l)
		})
	}
}

// What a compaction leaves that is killed goes with the next process, and with nobody while
// another one compacts.
func TestWhatAKilledCompactionLeavesGoes(t *testing.T) {
	dir := stateDir(t)
	l, clock := aged(t, dir)
	o := ledger.Options{Dir: dir, NoSync: true, Clock: clock.now}
	left := func() int64 {
		t.Helper()
		readOnly := o
		readOnly.ReadOnly = true
		looking := open(t, readOnly) // which changes nothing
		defer closeLedger(t, looking)
		v, err := looking.View(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return v.Remains
	}
	there := func() bool {
		_, err := os.Stat(filepath.Join(dir, "haldir.db.compact"))
		return err == nil
	}
	put(t, dir, "haldir.db.compact", make([]byte, 100))
	if n := left(); n != 100 || !there() {
		t.Errorf("%d bytes are left, want 100", n)
	}
	closeLedger(t, open(t, o))
	if n := left(); n != 0 || there() {
		t.Errorf("%d bytes are left after another process has begun", n)
	}
	looked := false
	_, err := l.Compact(context.Background(), true, func(_, _ uint64) {
		looked = true
		closeLedger(t, open(t, o))
		if n := left(); n != 0 || !there() {
			t.Errorf("while it is compacted %d bytes are said to be left; the new file is there: %t", n, there())
		}
	})
	if err != nil || !looked {
		t.Fatal(err)
	}
	verify(t, l)
}

// What a link leads to would be left behind, with the records that are to go.
func TestNoCompactionOfWhatIsALink(t *testing.T) {
	for _, name := range []string{"haldir.db", "checkpoints.log"} {
		clock, dir := newClock(), stateDir(t)
		l := little(t, dir, clock, "a", 2*day)
		pass(t, l, clock, 2)
		closeLedger(t, l)
		real, link := filepath.Join(t.TempDir(), name), filepath.Join(dir, name)
		if err := errors.Join(os.Rename(link, real), os.Symlink(real, link)); err != nil {
			t.Fatal(err)
		}
		l = little(t, dir, clock, "a", 2*day)
		if _, err := l.Compact(context.Background(), true, nil); err == nil || !strings.Contains(err.Error(), link+" is a link to "+real) {
			t.Errorf("%s: %v", name, err)
		}
		if to, err := os.Readlink(link); err != nil || to != real {
			t.Errorf("%s: it leads to %q: %v", name, to, err)
		}
		verify(t, l)
	}
}

func BenchmarkCompact(b *testing.B) {
	dir := stateDir(b)
	fill(b, dir, 0, 100<<20)
	b.ResetTimer()
	for range b.N {
		l := open(b, ledger.Options{Dir: dir, Clock: time.Now})
		began := time.Now()
		c := compact(b, l)
		b.Logf("%d to %d bytes in %v, the lock held for %v", c.Before, c.After, time.Since(began), c.Held)
		closeLedger(b, l)
	}
}
