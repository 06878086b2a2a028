package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// archivist drives two ledgers on one directory, which count as two processes, while old
// records are pruned and the file is compacted. The model is a list of all records that
// there ever were, and of what was used.
type archivist struct {
	dir     string
	clock   *fakeClock
	keep    [2]time.Duration
	l       [2]*ledger.Ledger
	engine  *policy.Engine
	raws    [][]byte // all records, from the first
	gone    uint64
	spent   map[string]policy.Micros
	calls   map[string]int64
	open    []openCall
	jumped  time.Duration // how far the clock is ahead
	proofs  []ledger.Proof
	kept    []audit.Checkpoint
	checked int
}

type openCall struct {
	ticket ledger.Ticket
	owner  int
	cost   policy.Micros
}

const leastKept = 20

func (x *archivist) start(t *rapid.T, i int) {
	o := ledger.Options{Dir: x.dir, NoSync: true, Clock: x.clock.now, Logger: zerolog.Nop()}
	o.Retention = &ledger.Retention{Place: filepath.Join(x.dir, fmt.Sprint(i)), Keep: x.keep[i], Last: leastKept}
	if err := os.WriteFile(o.Retention.Place, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	x.l[i] = l
	x.look(t)
}

// burst makes calls, some of which stay open.
func (x *archivist) burst(t *rapid.T) {
	x.call(t, rapid.IntRange(0, 1).Draw(t, "process"), rapid.IntRange(1, 50).Draw(t, "calls"))
}

func (x *archivist) call(t *rapid.T, i, calls int) {
	for n := range calls {
		session := fmt.Sprintf("ses_%d", n%3)
		tool := []string{"tip", "look", "steal", "tip"}[n%4]
		ticket, d, err := x.l[i].Reserve(context.Background(), call(session, tool, fmt.Sprintf(`{"n":%d}`, n)), x.engine)
		if err != nil || (d.Verdict == policy.Allow) != (tool != "steal") {
			t.Fatalf("%s: %v %s %v", tool, d.Verdict, d.Reason, err)
		}
		if tool == "steal" {
			continue
		}
		x.calls[session]++
		x.spent[session] += d.Cost
		if n%41 == 40 {
			x.open = append(x.open, openCall{ticket, i, d.Cost})
			continue
		}
		out := ledger.Outcome{Result: ledger.Done}
		if n%7 == 0 {
			out.Result = ledger.NotSent
			x.calls[session]--
			x.spent[session] -= d.Cost
		}
		x.l[i].Settle(ticket, out)
	}
}

func (x *archivist) settle(t *rapid.T) {
	if len(x.open) == 0 {
		t.Skip("nothing is open")
	}
	c := x.open[0]
	x.open = x.open[1:]
	x.l[c.owner].Settle(c.ticket, ledger.Outcome{Result: ledger.Done})
}

func (x *archivist) time(t *rapid.T) {
	x.clock.add(rapid.SampledFrom([]time.Duration{time.Second, 11 * time.Second, time.Hour, day, 5 * day, 12 * day}).Draw(t, "time"))
}

// restart closes a ledger, with another retention the next time.
func (x *archivist) restart(t *rapid.T) {
	i := rapid.IntRange(0, 1).Draw(t, "process")
	for n, c := range x.open { // who leaves calls open is found dead
		if c.owner == i {
			x.l[i].Settle(c.ticket, ledger.Outcome{Result: ledger.Done})
			x.open = append(x.open[:n:n], x.open[n+1:]...)
			break
		}
	}
	if err := x.l[i].Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	still := x.open[:0]
	for _, c := range x.open {
		if c.owner != i {
			still = append(still, c)
		}
	}
	x.open = still
	x.keep[i] = rapid.SampledFrom([]time.Duration{0, 10 * day, 10 * day, 20 * day}).Draw(t, "keep")
	x.start(t, i)
}

func (x *archivist) compact(t *rapid.T) {
	if _, err := x.l[rapid.IntRange(0, 1).Draw(t, "process")].Compact(context.Background(), rapid.Bool().Draw(t, "now"), nil); err != nil {
		t.Fatal(err)
	}
}

// prove keeps a proof, to be looked at again when records before it are gone.
func (x *archivist) prove(t *rapid.T) {
	if uint64(len(x.raws)) <= x.gone {
		t.Skip("there are no records")
	}
	seq := rapid.Uint64Range(x.gone+1, uint64(len(x.raws))).Draw(t, "seq")
	p, err := x.l[0].Prove(context.Background(), seq)
	if err != nil {
		t.Fatalf("Prove %d of %d, %d gone: %v", seq, len(x.raws), x.gone, err)
	}
	if err := audit.CheckInclusion(p.Path, p.Seq, p.Size, p.LeafHash, p.Root); err != nil {
		t.Fatal(err)
	}
	x.proofs = append(x.proofs, p)
}

// jump sets the clock ahead, and back again once it was seen.
func (x *archivist) jump(t *rapid.T) {
	ahead := rapid.SampledFrom([]time.Duration{30 * day, 400 * day}).Draw(t, "ahead")
	before := x.gone
	x.clock.add(ahead)
	x.burst(t)
	x.flush(t)
	x.clock.add(-ahead)
	if _, _, err := x.l[1].ResetClock(context.Background(), "it was wrong"); err != nil {
		t.Fatal(err)
	}
	if now := x.look(t); now != before && x.keep[0]+x.keep[1] == 0 {
		t.Fatalf("%d records are gone, and nobody wants any to go", now)
	}
}

func (x *archivist) flush(t *rapid.T) {
	for _, l := range x.l {
		if err := l.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

func (x *archivist) look(t *rapid.T) uint64 {
	var size uint64
	for _, l := range x.l {
		if l == nil {
			continue
		}
		p, err := l.Pruned(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		size = p.Size
	}
	return size
}

// check compares everything that can be seen with the model.
func (x *archivist) check(t *rapid.T) {
	x.flush(t)
	ctx := context.Background()
	v, err := x.l[1].Verify(ctx, nil, x.kept...)
	if err != nil {
		t.Fatalf("Verify: %v", err)
	}
	gone := x.look(t)
	if gone < x.gone || v.Pruned() != gone {
		t.Fatalf("%d records are gone, %d were; verify begins after %d", gone, x.gone, v.Pruned())
	}
	next := gone + 1
	_, _, err = x.l[0].Walk(ctx, 1, func(seq uint64, raw []byte) error {
		if seq != next {
			return fmt.Errorf("record %d comes where %d should", seq, next)
		}
		next++
		if seq <= uint64(len(x.raws)) {
			if audit.Sum(raw) != audit.Sum(x.raws[seq-1]) {
				return fmt.Errorf("record %d is another one", seq)
			}
			return nil
		}
		x.raws = append(x.raws, raw)
		return nil
	})
	if err != nil || uint64(len(x.raws)) != next-1 {
		t.Fatalf("%d records of %d: %v", next-1, len(x.raws), err)
	}
	x.pruned(t, gone)
	x.gone = gone
	list, _, err := x.l[0].Checkpoints(ctx)
	if err != nil {
		t.Fatal(err)
	}
	x.kept = list
	x.queries(t)
	for session, want := range x.spent {
		sp, _, err := x.l[0].Spent(ctx, call(session, "look", `{}`).Use, x.engine)
		if err != nil || sp.Total != want || sp.Calls != x.calls[session] {
			t.Fatalf("%s has spent %s in %d calls, want %s in %d (%v)", session, sp.Total, sp.Calls, want, x.calls[session], err)
		}
	}
	for _, p := range x.proofs { // of what is there, against a checkpoint that was made before
		again, err := x.l[0].ProveIn(ctx, p.Seq, audit.Checkpoint{Size: p.Size, Root: p.Root}, p.Checkpoint)
		switch {
		case p.Seq <= gone && !errors.Is(err, audit.ErrPruned):
			t.Fatalf("record %d is gone, and is proven: %v", p.Seq, err)
		case p.Seq > gone && (err != nil || !cmp.Equal(again.Path, p.Path)):
			t.Fatalf("the proof of record %d in %d, with %d gone, is another one: %v", p.Seq, p.Size, gone, err)
		}
	}
	x.checked++
}

// pruned checks that what went was old, signed and needed by nobody.
func (x *archivist) pruned(t *rapid.T, gone uint64) {
	if gone == x.gone {
		return
	}
	longest := max(x.keep[0], x.keep[1])
	if x.keep[0] == 0 || x.keep[1] == 0 {
		t.Fatalf("records up to %d went, and one of the processes wants them all: %v", gone, x.keep)
	}
	if gone+leastKept > uint64(len(x.raws)) {
		t.Fatalf("of %d records %d are gone", len(x.raws), gone)
	}
	for _, c := range x.open {
		if c.ticket.Seq <= gone {
			t.Fatalf("record %d is of a call that is open, and %d are gone", c.ticket.Seq, gone)
		}
	}
	for _, raw := range x.raws[x.gone:gone] {
		r, err := audit.Decode(raw)
		if err != nil {
			t.Fatal(err)
		}
		if now := x.clock.now(); r.Time.Add(longest).After(now) && !r.Time.After(now) {
			t.Fatalf("record %d of %s went at %s, and is to be kept for %v", r.Seq, r.Time, x.clock.now(), longest)
		}
	}
}

// queries compares listings with a plain reading of the records.
func (x *archivist) queries(t *rapid.T) {
	var all []audit.Entry
	for seq := uint64(len(x.raws)); seq > x.gone; seq-- {
		e, ok, err := x.l[1].Entry(context.Background(), seq)
		if err != nil {
			t.Fatal(err)
		}
		if ok && e.Seq == seq {
			all = append(all, e)
		}
	}
	some := []audit.Filter{{Session: "ses_1"}, {Tool: "shop/tip", Flagged: true}, {Status: audit.StatusDenied}, {Status: audit.StatusAllowed, Since: x.clock.now().Add(-3 * day)}}
	for _, f := range []audit.Filter{{}, rapid.SampledFrom(some).Draw(t, "filter")} {
		f.Limit, f.Governance = 1<<30, true
		got, next, err := x.l[1].Find(context.Background(), f)
		if err != nil || next != 0 {
			t.Fatalf("Find: %d %v", next, err)
		}
		want := 0
		for _, e := range all {
			if !naive(f, e) {
				continue
			}
			if want >= len(got) || got[want].Seq != e.Seq {
				t.Fatalf("%+v: entry %d is not listed", f, e.Seq)
			}
			want++
		}
		if want != len(got) {
			t.Fatalf("%+v: %d entries are listed, want %d", f, len(got), want)
		}
	}
	if x.gone > 0 {
		seq := rapid.Uint64Range(1, x.gone).Draw(t, "a record that is gone")
		if _, ok, err := x.l[0].Entry(context.Background(), seq); ok || err != nil {
			t.Fatalf("record %d is gone, and there: %v", seq, err)
		}
		if raw, err := x.l[0].Raw(context.Background(), seq); raw != nil || err != nil {
			t.Fatalf("record %d is gone, and there: %v", seq, err)
		}
	}
}

// However records are pruned, nobody sees anything but that they are gone: the rest is what
// it was, and so is what has been used.
func TestPruningChangesNothingElse(t *testing.T) {
	e := engine(t, rulesets["figures"]())
	runs, pruned := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		if runs++; runs > 10/slowdown && !soaking {
			return // each reads all records after every step
		}
		x := &archivist{
			dir: filepath.Join(t.TempDir(), "state"), clock: newClock(), keep: [2]time.Duration{10 * day, 10 * day}, engine: e,
			spent: map[string]policy.Micros{}, calls: map[string]int64{},
		}
		if err := os.MkdirAll(x.dir, 0o700); err != nil {
			rt.Fatal(err)
		}
		defer func() {
			for _, l := range x.l {
				_ = l.Close(context.Background())
			}
			_ = os.RemoveAll(x.dir)
		}()
		x.start(rt, 0)
		x.start(rt, 1)
		x.call(rt, 0, 40)
		if _, err := x.l[0].Prove(context.Background(), 1); err != nil { // the first checkpoint
			rt.Fatal(err)
		}
		if rapid.Bool().Draw(rt, "pruned before") || runs == 1 {
			for _, d := range []time.Duration{12 * day, time.Hour, day, time.Hour} {
				x.clock.add(d)
				x.call(rt, 1, 40)
				x.check(rt)
			}
			if x.look(rt) == 0 {
				rt.Fatal("nothing has gone")
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"": x.check, "burst": x.burst, "burst too": x.burst, "burst again": x.burst, "settle": x.settle, "time": x.time, "time too": x.time,
			"restart": x.restart, "compact": x.compact, "prove": x.prove, "jump": x.jump,
		})
		if x.gone > 0 {
			pruned++
		}
	})
	if pruned == 0 {
		t.Error("nothing was ever pruned")
	}
	t.Logf("records were pruned in %d runs", pruned)
}
