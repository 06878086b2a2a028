package ledger_test

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
)

// signedOften is a ledger with many checkpoints each day, of which most records were pruned:
// some while it was used, and more than once.
func signedOften(t *testing.T, dir string) (*ledger.Ledger, *fakeClock) {
	t.Helper()
	clock := newClock()
	l := little(t, dir, clock, "a", 4*day)
	crowd(t, l, 1)
	for range 10 * 24 {
		clock.add(time.Hour)
		busy(t, l, 4)
	}
	return l, clock
}

func checkpoints(t *testing.T, l *ledger.Ledger) []audit.Checkpoint {
	t.Helper()
	list, _, err := l.Checkpoints(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestTheLogOfCheckpointsIsThinnedOutWithWhatIsGone(t *testing.T) {
	dir := stateDir(t)
	l, clock := signedOften(t, dir)
	before := checkpoints(t, l)
	earlier := gone(t, l) // as a record tells
	compact(t, l)
	n, after := gone(t, l), checkpoints(t, l)
	if earlier == 0 || n <= earlier || len(after) > len(before)*2/3 {
		t.Fatalf("%d records were gone, and are %d; of %d checkpoints %d are left", earlier, n, len(before), len(after))
	}
	named := map[uint64]bool{}
	for _, e := range entries(t, l) {
		var told audit.Pruning
		if e.Status == audit.StatusPruned && json.Unmarshal(e.Arguments, &told) == nil {
			named[told.To] = true
		}
	}
	days := map[string]bool{}
	for _, c := range slices.Backward(before) {
		day := c.Time.Format(time.DateOnly)
		kept := slices.Contains(after, c)
		if must := c.Size > n || named[c.Size] || !days[day]; kept != must {
			t.Errorf("the checkpoint of %v over %d records, of which %d are gone, is kept: %t", c.Time, c.Size, n, kept)
		}
		days[day] = true
	}
	verify(t, l)
	clock.add(time.Hour)
	busy(t, l, 4)
	if now := checkpoints(t, l); len(now) <= len(after) {
		t.Error("no more checkpoints are made")
	}
	if v, err := l.Verify(context.Background(), nil, before...); err != nil || v.Skipped() == 0 {
		t.Errorf("against the checkpoints of before, of which %d are over fewer records than are there: %v", v.Skipped(), err)
	}
	log := read(t, dir, "checkpoints.log")
	compact(t, l) // and once more, though little has come
	verify(t, l)
	if now := read(t, dir, "checkpoints.log"); len(now) > len(log) {
		t.Errorf("the log had %d bytes and has %d", len(log), len(now))
	}
}

// Whatever is done to a log that was thinned out is found as it is in any other; only a power
// cut can have left the longer one, which is as good.
func TestALogThatWasThinnedOutIsGuarded(t *testing.T) {
	dir := stateDir(t)
	l, clock := signedOften(t, dir)
	still := func() map[string][]byte {
		inspect(t, dir, nil) // once it is closed
		return snapshot(t, dir)
	}
	old := still()
	compact(t, l)
	thinned := still()
	for range 3 {
		clock.add(time.Hour)
		busy(t, l, 4)
	}
	closeLedger(t, l)
	now := snapshot(t, dir)
	of := func(files map[string][]byte, log []byte) map[string][]byte {
		files = maps.Clone(files)
		files["checkpoints.log"] = log
		return files
	}
	log := now["checkpoints.log"]
	lines := bytes.SplitAfter(log, []byte("\n"))
	last := len(lines) - 2 // the one after it is empty
	for name, x := range map[string]struct {
		files map[string][]byte
		want  audit.DamageKind // "" for none
	}{
		"nothing":                              {now, ""},
		"a crash before the new one was there": {of(thinned, old["checkpoints.log"]), ""},
		"the longer one of before":             {of(now, old["checkpoints.log"]), audit.DamageCheckpoint},
		"the thinned one of before":            {of(now, thinned["checkpoints.log"]), audit.DamageCheckpoint},
		"a line is missing":                    {of(now, bytes.Join(slices.Delete(slices.Clone(lines), 2, 3), nil)), audit.DamageCheckpoint},
		"the last line is missing":             {of(now, bytes.Join(lines[:last], nil)), audit.DamageCheckpoint},
		"another line in its place": {
			of(now, bytes.Join(append(slices.Clone(lines[:last]), lines[last-1], lines[last-1]), nil)), audit.DamageCheckpoint,
		},
		"the older database":                      {of(old, log), audit.DamageCheckpoint},
		"the database of when it was thinned out": {of(thinned, log), audit.DamageRollback},
	} {
		t.Run(name, func(t *testing.T) {
			dir := stateDir(t)
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for name, b := range x.files {
				put(t, dir, name, b)
			}
			l := little(t, dir, clock, "a", 4*day)
			d := damage(t, l)
			if x.want == "" && d != nil || x.want != "" && (d == nil || d.Kind != x.want) {
				t.Errorf("%v; want %q", d, x.want)
			}
			clock.add(time.Hour) // a checkpoint is due
			busy(t, l, 4)
			closeLedger(t, l)
			if d := damage(t, little(t, dir, clock, "a", 4*day)); (d == nil) != (x.want == "") {
				t.Errorf("after the next checkpoint: %v; want %q", d, x.want)
			}
		})
	}
}
