package ledger_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
