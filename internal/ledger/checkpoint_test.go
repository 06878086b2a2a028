package ledger_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// damage returns what Verify finds, nil if nothing.
func damage(t *testing.T, l *ledger.Ledger, extra ...audit.Checkpoint) *audit.Damage {
	t.Helper()
	_, err := l.Verify(context.Background(), nil, extra...)
	var d *audit.Damage
	if err != nil && !errors.As(err, &d) {
		t.Fatalf("Verify: %v", err)
	}
	return d
}

// With the head file put back as well, an older copy of the database is sound in
// itself. The log of checkpoints tells, or one that was kept elsewhere.
func TestCheckpointsTellARollback(t *testing.T) {
	dir := written(t, 5)
	old := map[string][]byte{"haldir.db": read(t, dir, "haldir.db"), "haldir.head": read(t, dir, "haldir.head"), "checkpoints.log": read(t, dir, "checkpoints.log")}
	l, e := quick(t, dir), engine(t, shop())
	more(t, l, e, 5)
	closeLedger(t, l)
	l = quick(t, dir)
	if d := damage(t, l); d != nil {
		t.Fatalf("before: %v", d)
	}
	kept, _, err := l.Checkpoints(context.Background())
	if err != nil || len(kept) != 2 {
		t.Fatalf("%d checkpoints, %v, want one for each time the ledger was closed", len(kept), err)
	}
	closeLedger(t, l)

	write(t, dir, "haldir.db", old["haldir.db"])
	write(t, dir, "haldir.head", old["haldir.head"])
	if d := damage(t, quick(t, dir)); d == nil || d.Kind != audit.DamageRollback {
		t.Errorf("rolled back: %v", d)
	}
	// With the log put back too, only what was kept elsewhere tells.
	dir2 := stateDir(t)
	if err := os.CopyFS(dir2, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir2, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range old {
		write(t, dir2, name, b)
	}
	if d := damage(t, quick(t, dir2), kept...); d == nil || d.Kind != audit.DamageRollback {
		t.Errorf("rolled back with its log: %v", d)
	}
}

func TestCheckpointsTellAFork(t *testing.T) {
	dir := written(t, 5)
	l, e := quick(t, dir), engine(t, shop())
	kept, _, err := l.Checkpoints(context.Background())
	if err != nil || len(kept) == 0 {
		t.Fatal(kept, err)
	}
	closeLedger(t, l)
	// Another history of the same key: back to nothing, and other calls.
	for _, name := range []string{"haldir.db", "haldir.head", "checkpoints.log"} {
		_ = os.Remove(filepath.Join(dir, name))
	}
	l = quick(t, dir)
	more(t, l, e, 9)
	if d := damage(t, l); d != nil {
		t.Errorf("the other history by itself: %v", d)
	}
	if d := damage(t, l, kept...); d == nil || d.Kind != audit.DamageFork {
		t.Errorf("against a checkpoint that was kept: %v", d)
	}
}

func TestTheLogOfCheckpointsIsGuarded(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(t *testing.T, dir string)
		want audit.DamageKind
	}{
		"a letter changed": {func(t *testing.T, dir string) {
			b := read(t, dir, "checkpoints.log")
			b[len(b)/2] ^= 1
			write(t, dir, "checkpoints.log", b)
		}, audit.DamageCheckpoint},
		"emptied":         {func(t *testing.T, dir string) { write(t, dir, "checkpoints.log", nil) }, audit.DamageCheckpoint},
		"removed":         {func(t *testing.T, dir string) { _ = os.Remove(filepath.Join(dir, "checkpoints.log")) }, audit.DamageCheckpoint},
		"without its key": {func(t *testing.T, dir string) { _ = os.Remove(filepath.Join(dir, "checkpoint.key")) }, audit.DamageCheckpoint},
		"its last line break changed": {func(t *testing.T, dir string) {
			b := read(t, dir, "checkpoints.log")
			b[len(b)-1] ^= 2
			write(t, dir, "checkpoints.log", b)
		}, audit.DamageCheckpoint},
		"without its last line": {func(t *testing.T, dir string) {
			b := read(t, dir, "checkpoints.log")
			write(t, dir, "checkpoints.log", b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1])
		}, audit.DamageCheckpoint},
		"removed with its key": {func(t *testing.T, dir string) {
			_ = os.Remove(filepath.Join(dir, "checkpoints.log"))
			_ = os.Remove(filepath.Join(dir, "checkpoint.key"))
		}, audit.DamageCheckpoint},
		"with another key": {func(t *testing.T, dir string) {
			write(t, dir, "checkpoint.key", read(t, written(t, 1), "checkpoint.key"))
		}, audit.DamageCheckpoint},
		// A crash leaves a line without its end; nothing is lost with it.
		"with half a line": {func(t *testing.T, dir string) {
			b := read(t, dir, "checkpoints.log")
			write(t, dir, "checkpoints.log", append(b, b[:20]...))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := written(t, 5)
			l, e := quick(t, dir), engine(t, shop())
			more(t, l, e, 5) // two lines: the state in the database knows of the first
			closeLedger(t, l)
			c.harm(t, dir)
			l = quick(t, dir)
			d := damage(t, l)
			if c.want == "" && d != nil || c.want != "" && (d == nil || d.Kind != c.want) {
				t.Errorf("got %v, want %q", d, c.want)
			}
			// Whatever became of the checkpoints, calls go on.
			reserve(t, l, pay("ses_a", "1"), e)
			closeLedger(t, l)
			// And the next checkpoint wipes no traces.
			d = damage(t, quick(t, dir))
			if c.want == "" && d != nil || c.want != "" && (d == nil || d.Kind != c.want) {
				t.Errorf("after more calls: %v, want %q", d, c.want)
			}
		})
	}
}

// A call and a proof may share a transaction. That no checkpoint could be made
// must not become the call's error: it is recorded, and holds money.
func TestAFailedProofIsNotTheErrorOfTheCallsBesideIt(t *testing.T) {
	dir := written(t, 5)
	write(t, dir, "checkpoint.key", []byte("nonsense"))
	l, e := quick(t, dir), engine(t, shop())
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 20 {
				if _, err := l.Prove(context.Background(), 1); err == nil {
					t.Error("Prove with a key that is none: no error")
				}
			}
		})
		wg.Go(func() {
			for range 20 {
				if _, _, err := l.Reserve(context.Background(), call("ses_a", "steal", `{}`), e); err != nil {
					t.Errorf("Reserve: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestAProofProvesItsRecord(t *testing.T) {
	dir := written(t, 20)
	l := quick(t, dir)
	n := verify(t, l)
	for seq := uint64(1); seq <= n; seq += 7 {
		p, err := l.Prove(context.Background(), seq)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := base64.StdEncoding.DecodeString(p.Record)
		if err != nil {
			t.Fatal(err)
		}
		r, err := audit.Decode(raw)
		if err != nil || r.Seq != seq || audit.Sum(raw) != p.LeafHash {
			t.Errorf("record %d: %v %v", seq, r.Seq, err)
		}
		c, err := audit.OpenCheckpoint(p.Checkpoint, p.PublicKey)
		if err != nil || c.Size != p.Size || c.Root != p.Root {
			t.Errorf("record %d: the checkpoint is over %d records, the proof %d; %v", seq, c.Size, p.Size, err)
		}
	}
	for _, seq := range []uint64{0, n + 1, 1 << 62} {
		if p, err := l.Prove(context.Background(), seq); err == nil {
			t.Errorf("a proof of record %d, which is not there: %+v", seq, p)
		}
	}
	reserve(t, l, pay("ses_a", "1"), engine(t, shop())) // it did the ledger no harm
}

// A process that is about to be suspended has let go of the database first.
func TestSuspendLetsOthersInWhileTheProcessIsStopped(t *testing.T) {
	dir := stateDir(t)
	l, other, e := quick(t, dir), quick(t, dir), engine(t, shop())
	ticket, _ := reserve(t, l, pay("ses_a", "1"), e)
	l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	stopped, resume := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Suspend(context.Background(), func() { close(stopped); <-resume }); err != nil {
			t.Errorf("Suspend: %v", err)
		}
	})
	<-stopped
	reserve(t, other, pay("ses_a", "1"), e) // or it is told that the ledger is busy
	if en := entry(t, other, ticket.Seq); en.Status != audit.StatusAllowed {
		t.Errorf("what was owed was not flushed: %s", en.Status)
	}
	// Calls of the stopped process wait; a settlement does not.
	second, _ := ledger.Ticket{CallID: "nobody"}, 0
	l.Settle(second, ledger.Outcome{})
	wg.Go(func() {
		if _, d, err := l.Reserve(context.Background(), pay("ses_a", "1"), e); err != nil || d.Verdict != policy.Allow {
			t.Errorf("after it went on: %v %v", d.Verdict, err)
		}
	})
	time.Sleep(20 * time.Millisecond)
	close(resume)
	wg.Wait()
	verify(t, l)
}
