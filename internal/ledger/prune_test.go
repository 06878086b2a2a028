package ledger_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

const day = 24 * time.Hour

// retained opens a ledger that keeps records for 90 days.
func retained(tb testing.TB, dir string, clock *fakeClock) *ledger.Ledger {
	tb.Helper()
	return open(tb, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now, Retention: &ledger.Retention{Place: "haldir.yaml", Keep: 90 * day}})
}

// busy makes calls; the records of each are an attempt and an outcome.
func busy(tb testing.TB, l *ledger.Ledger, calls int) {
	tb.Helper()
	e := engine(tb, rulesets["figures"]())
	for range calls {
		ticket, d := reserve(tb, l, call("ses_a", "look", `{}`), e)
		if d.Verdict != policy.Allow {
			tb.Fatalf("a call was refused: %s", d.Reason)
		}
		l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	}
	flush(tb, l)
}

func gone(tb testing.TB, l *ledger.Ledger) uint64 {
	tb.Helper()
	p, err := l.Pruned(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	return p.Size
}

// aged makes a ledger with 2,000 calls and prunes what is older than 90 days of them.
func aged(tb testing.TB, dir string) (*ledger.Ledger, *fakeClock) {
	tb.Helper()
	clock := newClock()
	l := retained(tb, dir, clock)
	busy(tb, l, 1000)
	clock.add(91 * day)
	busy(tb, l, 600) // finds the boundary
	clock.add(day + time.Minute)
	busy(tb, l, 600) // prunes and deletes
	return l, clock
}

func TestOldRecordsGoAndTheChainTellsOfIt(t *testing.T) {
	dir := stateDir(t)
	l, _ := aged(t, dir)
	n := gone(t, l)
	if n < 1000 || n > 2002 {
		t.Fatalf("%d records are gone, want most of the first 2,002", n)
	}
	v, err := l.Verify(context.Background(), nil)
	if err != nil || v.Pruned() != n {
		t.Fatalf("Verify begins after %d: %v", v.Pruned(), err)
	}
	told := audit.Pruning{}
	for _, e := range entries(t, l) {
		if e.Seq <= n {
			t.Fatalf("entry %d is listed, and the first %d are gone", e.Seq, n)
		}
		if e.Kind == audit.KindLedger.String() && e.Status == audit.StatusPruned {
			if err := json.Unmarshal(e.Arguments, &told); err != nil {
				t.Fatal(err)
			}
		}
	}
	if told.From != 1 || told.To != n || told.Retain != "2160h0m0s" {
		t.Errorf("the chain tells %+v, and %d are gone", told, n)
	}
	inspect(t, dir, func(tx *bolt.Tx) {
		for _, name := range []string{"audit", "outcomes"} {
			if k, _ := tx.Bucket([]byte(name)).Cursor().First(); keyNumber(k) <= n {
				t.Errorf("%s still has %d", name, keyNumber(k))
			}
		}
		if k, _ := tx.Bucket([]byte("index")).Cursor().First(); keyNumber(k[:8]) != (n+1)/audit.BlockSize {
			t.Errorf("the index still has block %d", keyNumber(k[:8]))
		}
	})
}

func keyNumber(k []byte) (n uint64) {
	for _, b := range k {
		n = n<<8 | uint64(b)
	}
	return n
}

// little opens a ledger that keeps little: so few records that a test need not make many.
func little(tb testing.TB, dir string, clock *fakeClock, place string, keep time.Duration) *ledger.Ledger {
	tb.Helper()
	return open(tb, ledger.Options{
		Dir: dir, NoSync: true, Clock: clock.now, Retention: &ledger.Retention{Place: filepath.Join(dir, place), Keep: keep, Last: 20},
	})
}

// crowd has calls made by many at once.
func crowd(tb testing.TB, l *ledger.Ledger, calls int) {
	tb.Helper()
	e := engine(tb, rulesets["figures"]())
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := w; i < calls; i += 32 {
				ticket, d, err := l.Reserve(context.Background(), call(fmt.Sprintf("ses_%d", i%5), "look", `{}`), e)
				if err != nil || d.Verdict != policy.Allow {
					tb.Errorf("Reserve: %v %v", d.Verdict, err)
					return
				}
				l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
			}
		})
	}
	wg.Wait()
	flush(tb, l)
	// The first checkpoint is made after a while, which is not that of a test's clock.
	list, _, err := l.Checkpoints(context.Background())
	if err == nil && len(list) == 0 {
		_, err = l.Prove(context.Background(), 1)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// pass lets days pass, with a few calls in each.
func pass(tb testing.TB, l *ledger.Ledger, clock *fakeClock, days int) {
	tb.Helper()
	for range days {
		clock.add(day)
		crowd(tb, l, 40)
		crowd(tb, l, 40) // with the first a checkpoint was made
	}
}

// All that was signed may be pruned: what comes after it is signed as ever.
func TestACheckpointIsMadeAfterAllThatWasSignedIsGone(t *testing.T) {
	dir, clock, ctx := stateDir(t), newClock(), context.Background()
	l := little(t, dir, clock, "haldir.yaml", 10*day)
	crowd(t, l, 40)
	if _, err := l.Prove(ctx, 1); err != nil {
		t.Fatal(err)
	}
	clock.add(11 * day)
	p, err := l.Prove(ctx, 1) // the same again
	if err != nil {
		t.Fatal(err)
	}
	crowd(t, l, 40) // too soon for another checkpoint
	if _, err := l.Compact(ctx, true, nil); err != nil {
		t.Fatal(err)
	}
	if n := gone(t, l); n != p.Size {
		t.Fatalf("%d records are gone, want the %d that were signed", n, p.Size)
	}
	if _, err := l.Prove(ctx, p.Size+1); err != nil {
		t.Error(err)
	}
	if v, err := l.Verify(ctx, nil); err != nil || v.Pruned() != p.Size {
		t.Errorf("Verify begins after %d: %v", v.Pruned(), err)
	}
}

func TestWhatSomebodyNeedsStays(t *testing.T) {
	for name, begin := range map[string]func(*testing.T, *ledger.Ledger) (seq uint64, end func()){
		"a call that is open": func(t *testing.T, l *ledger.Ledger) (uint64, func()) {
			ticket, _ := reserve(t, l, call("ses_a", "look", `{}`), engine(t, shop()))
			return ticket.Seq, func() { l.Settle(ticket, ledger.Outcome{Result: ledger.Done}) }
		},
		"a call that waits for a person": func(t *testing.T, l *ledger.Ledger) (uint64, func()) {
			ticket, d := reserve(t, l, call("ses_a", "look", `{}`), engine(t, policy.Ruleset{Policies: []policy.Rule{{
				Type: policy.TypeApproval, ID: "ask", Tools: []string{"shop/look"}, Timeout: day,
			}}}))
			if d.Verdict != policy.Ask {
				t.Fatalf("%v: %s", d.Verdict, d.Reason)
			}
			return ticket.Seq, func() {
				if _, err := l.Answer(context.Background(), ticket.Approval, ledger.Answer{Allow: true, Channel: ledger.ChannelTerminal}); err != nil {
					t.Fatal(err)
				}
			}
		},
		"a stop that goes on": func(t *testing.T, l *ledger.Ledger) (uint64, func()) {
			if _, err := l.Stop(context.Background(), "a test"); err != nil {
				t.Fatal(err)
			}
			list, _, err := l.Find(context.Background(), audit.Filter{Limit: 1})
			if err != nil || len(list) != 1 || list[0].Status != audit.StatusStopped {
				t.Fatalf("%+v %v", list, err)
			}
			return list[0].Seq, func() {
				if _, err := l.Resume(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clock := newClock()
			l := little(t, stateDir(t), clock, "a", 2*time.Hour)
			e := engine(t, shop())
			hours := func(n int) {
				for range n {
					clock.add(time.Hour)
					for range 60 {
						reserve(t, l, call("ses_a", "steal", `{}`), e)
					}
					crowd(t, l, 0)
				}
				compact(t, l) // which does not wait for a day
			}
			hours(2)
			seq, end := begin(t, l)
			hours(6)
			if n := gone(t, l); n == 0 || n >= seq {
				t.Errorf("%d records are gone; number %d is needed, and those before it are not", n, seq)
			}
			end()
			flush(t, l)
			hours(1)
			if n := gone(t, l); n < seq {
				t.Errorf("%d records are gone; number %d is not needed any more", n, seq)
			}
			verify(t, l)
		})
	}
}

func TestTheNewestRecordsStayHoweverOldTheyAre(t *testing.T) {
	clock := newClock()
	dir := stateDir(t)
	l := retained(t, dir, clock)
	crowd(t, l, 1500)
	for range 5 {
		clock.add(400 * day)
		crowd(t, l, 40)
	}
	n, newest := gone(t, l), uint64(0)
	inspect(t, dir, func(tx *bolt.Tx) { newest = keyNumber(space(tx, 'm')["head"][:8]) })
	if n == 0 || newest-n < 1000 {
		t.Errorf("%d of %d records are gone", n, newest)
	}
	verify(t, l)
}

// Whoever wants more kept has it kept, also one who is not there at the moment.
func TestTheLongestRetentionCounts(t *testing.T) {
	clock, dir := newClock(), stateDir(t)
	mine := func(keep time.Duration) *ledger.Ledger { return little(t, dir, clock, "mine", keep) }
	l := mine(10 * day)
	other := little(t, dir, clock, "other", 30*day)
	crowd(t, other, 40)
	closeLedger(t, other)
	for _, place := range []string{"mine", "other"} {
		put(t, dir, place, nil)
	}
	pass(t, l, clock, 28)
	if n := gone(t, l); n != 0 {
		t.Errorf("%d records are gone after 28 days, and somebody keeps them for 30", n)
	}
	pass(t, l, clock, 8)
	n := gone(t, l)
	if n == 0 {
		t.Fatal("nothing is gone after 36 days")
	}
	if s, err := l.Stats(context.Background()); err != nil || s.Kept != int64(30*day/time.Second) || s.Keeps != filepath.Join(dir, "other") {
		t.Errorf("it says that %s keeps records for %d s (%v)", s.Keeps, s.Kept, err)
	}
	// One without the key wants all of them, for as long as its config is there.
	all := little(t, dir, clock, "all", 0)
	put(t, dir, "all", nil)
	n = gone(t, all) // it needs no more to be heard
	closeLedger(t, all)
	pass(t, l, clock, 60)
	if now := gone(t, l); now != n {
		t.Errorf("%d records are gone, and were %d when somebody came who wants them all", now, n)
	}
	if err := os.Remove(filepath.Join(dir, "all")); err != nil {
		t.Fatal(err)
	}
	pass(t, l, clock, 8)
	if now := gone(t, l); now == n {
		t.Errorf("%d records are gone, although the config that kept them is", now)
	}
	// The same config with another setting: the new one counts, a day later.
	n = gone(t, l)
	l.Retain(ledger.Retention{Place: filepath.Join(dir, "mine"), Last: 20})
	pass(t, l, clock, 40)
	if now := gone(t, l); now != n {
		t.Errorf("%d records are gone, and were %d when its config was changed to keep all", now, n)
	}
	l.Retain(ledger.Retention{Place: filepath.Join(dir, "mine"), Keep: 40 * day, Last: 20})
	pass(t, l, clock, 8)
	if now := gone(t, l); now == n {
		t.Error("nothing has gone, although its config was changed again")
	}
	verify(t, l)
}

func TestNothingGoesByDefault(t *testing.T) {
	clock, dir := newClock(), stateDir(t)
	l := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	for range 3 {
		clock.add(10_000 * day)
		crowd(t, l, 800)
	}
	compact(t, l)
	if n := gone(t, l); n != 0 {
		t.Errorf("%d records are gone, and nobody has asked for that", n)
	}
}

// A clock that is years ahead makes everything look old. Until it was so for a day, that is
// mended by setting it back.
func TestAClockThatWasAheadForAnHourPrunesNothing(t *testing.T) {
	clock, dir := newClock(), stateDir(t)
	l := little(t, dir, clock, "a", 10*day)
	pass(t, l, clock, 3)
	clock.add(1000 * day)
	pass := func() { crowd(t, l, 80); clock.add(20 * time.Minute) }
	for range 3 {
		pass()
	}
	clock.add(-1000 * day)
	if _, _, err := l.ResetClock(context.Background(), "it was wrong"); err != nil {
		t.Fatal(err)
	}
	for range 12 {
		pass()
		clock.add(12 * time.Hour)
	}
	if n := gone(t, l); n != 0 {
		t.Errorf("%d records of the last 9 days are gone", n)
	}
	for range 20 {
		pass()
		clock.add(12 * time.Hour)
	}
	if n := gone(t, l); n == 0 {
		t.Error("nothing is gone, although the clock is right again")
	}
	verify(t, l)
}

// ahead has calls made while the clock is ahead, until somebody sets it back.
func ahead(tb testing.TB, l *ledger.Ledger, clock *fakeClock, by time.Duration, calls int) {
	tb.Helper()
	clock.add(by)
	crowd(tb, l, calls)
	clock.add(-by)
	if _, _, err := l.ResetClock(context.Background(), "it was wrong"); err != nil {
		tb.Fatal(err)
	}
}

// Nor does one that is ahead twice: the second time is no second thought about the first.
func TestAClockThatWasAheadTwicePrunesNothing(t *testing.T) {
	clock, dir := newClock(), stateDir(t)
	l := little(t, dir, clock, "a", 10*day)
	pass(t, l, clock, 3)
	for _, by := range []time.Duration{30 * day, 400 * day} {
		ahead(t, l, clock, by, 200)
		if n := gone(t, l); n != 0 {
			t.Fatalf("%d records of today are gone", n)
		}
	}
}

// What was found by a shorter retention waits anew for a longer one: a clock that is ahead is no
// day that has passed.
func TestALongerRetentionHasItsOwnSecondThoughts(t *testing.T) {
	clock, dir := newClock(), stateDir(t)
	l := little(t, dir, clock, "a", 10*day)
	pass(t, l, clock, 3)
	clock.add(11 * day)
	crowd(t, l, 200) // finds a boundary
	l.Retain(ledger.Retention{Place: filepath.Join(dir, "a"), Keep: 20 * day, Last: 20})
	crowd(t, l, 1)
	ahead(t, l, clock, 30*day, 200)
	if n := gone(t, l); n != 0 {
		t.Errorf("%d records are gone that are 11 to 14 days old, and kept for 20", n)
	}
}

// Records that seemed old to a clock that is ahead have not seemed so for a day, however long ago
// it was that they were begun with.
func TestSecondThoughtsAreOfAllThatWasLookedAt(t *testing.T) {
	clock, dir := newClock(), stateDir(t)
	l := little(t, dir, clock, "a", 20*day)
	crowd(t, l, 80)
	ahead(t, l, clock, 30*day, 80) // with times that are still to come
	crowd(t, l, 80)
	if _, err := l.Prove(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	clock.add(38 * day) // those times are eight days ago
	busy(t, l, 17)      // begins with all, and has not yet looked at them
	ahead(t, l, clock, 30*day, 400)
	if n := gone(t, l); n != 0 {
		t.Errorf("%d records are gone, some of them of eight days ago", n)
	}
}

// What a limit counts is not in the records alone: when the clock is set back, that of the
// last 31 days counts, also of records that are gone.
func TestTheClockIsSetBackWithWhatPrunedCallsHaveUsed(t *testing.T) {
	e := engine(t, shop()) // 100 calls an hour
	for _, compacted := range []bool{false, true} {
		clock, dir := newClock(), stateDir(t)
		l := little(t, dir, clock, "a", 2*day)
		for range 99 {
			ticket, _ := reserve(t, l, call("ses_a", "look", `{}`), e)
			l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
		}
		flush(t, l)
		steal := func(n int) {
			for range n {
				reserve(t, l, call("ses_a", "steal", `{}`), e)
			}
		}
		for range 6 {
			clock.add(day)
			steal(60)
			crowd(t, l, 0)
			if compacted {
				compact(t, l)
			} else {
				steal(600)
			}
		}
		if n := gone(t, l); n < 199 {
			t.Fatalf("%d records are gone, want those of all calls", n)
		}
		clock.add(1000 * day) // in which a window begins anew
		reserve(t, l, call("ses_a", "look", `{}`), e)
		clock.add(-1000 * day)
		if _, _, err := l.ResetClock(context.Background(), "it was wrong"); err != nil {
			t.Fatal(err)
		}
		if _, d := reserve(t, l, call("ses_a", "look", `{}`), e); d.Verdict == policy.Allow {
			t.Errorf("compacted %v: 100 calls of the last 31 days are forgotten with their records", compacted)
		}
	}
}

// That holds too where they went by the clock that was wrong, to which they seemed older than
// anything that looks back.
func TestTheClockIsSetBackWithWhatItHasPruned(t *testing.T) {
	monthly := shop()
	monthly.Policies[1].MaxCalls, monthly.Policies[1].Window = 150, 30*day
	e := engine(t, monthly)
	for _, compacted := range []bool{false, true} {
		clock, dir := newClock(), stateDir(t)
		l := little(t, dir, clock, "a", 5*day)
		look := func(n int) (passed int) {
			for range n {
				ticket, d := reserve(t, l, call("ses_a", "look", `{}`), e)
				if d.Verdict == policy.Allow {
					passed++
				}
				l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
			}
			return passed
		}
		if n := look(100); n != 100 {
			t.Fatalf("%d calls of 100 passed", n)
		}
		flush(t, l)
		prune := func() {
			for range 600 { // that use nothing
				reserve(t, l, call("ses_a", "steal", `{}`), e)
			}
			crowd(t, l, 0)
			if compacted {
				compact(t, l)
			}
		}
		prune()
		clock.add(45 * day)
		look(20)
		prune()
		clock.add(25 * time.Hour)
		prune()
		prune()
		if n := gone(t, l); n < 200 {
			t.Fatalf("%d records are gone, want those of all calls", n)
		}
		clock.add(-44*day - time.Hour)
		if _, _, err := l.ResetClock(context.Background(), "it was wrong"); err != nil {
			t.Fatal(err)
		}
		if n := look(150); n > 50 {
			t.Errorf("compacted %v: %d more calls passed after 100 of 150 in 30 days", compacted, n)
		}
	}
}

// While calls run, old records go as new ones come, and the file does not grow.
func TestAFileDoesNotGrowWhileRecordsGo(t *testing.T) {
	goal := uint64(100_000)
	if slowdown > 1 {
		goal = 20_000
	}
	clock, dir := newClock(), stateDir(t)
	l := little(t, dir, clock, "a", 2*day)
	pages := func() (n int64) {
		inspect(t, dir, func(tx *bolt.Tx) { n = tx.Size() / 4096 })
		return n
	}
	var before uint64
	var steady, most int64
	for days := 0; gone(t, l) < before+goal; days++ {
		clock.add(day)
		for range 4 {
			crowd(t, l, 1000)
			clock.add(time.Minute)
		}
		switch {
		case days == 7:
			before, steady = gone(t, l), pages()
			if before == 0 {
				t.Fatal("nothing is gone after a week")
			}
		case days > 7 && days%4 == 0:
			most = max(most, pages())
		case days > 100:
			t.Fatalf("after 100 days %d records are gone", gone(t, l))
		}
	}
	t.Logf("%d records have gone; %d pages at the beginning, %d at most since", gone(t, l)-before, steady, most)
	if most > steady+steady/5 {
		t.Errorf("the file has grown from %d to %d pages while as many records went as came", steady, most)
	}
	verify(t, l)
}

// An older database is brought up to date, and prunes like any other.
func TestADatabaseOfBeforePruningIsBroughtUpToDate(t *testing.T) {
	clock, dir := newClock(), stateDir(t)
	l := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	crowd(t, l, 100)
	closeLedger(t, l)
	setVersion(t, dir, binary.BigEndian.AppendUint64(nil, 3))
	l = little(t, dir, clock, "a", 2*day)
	pass(t, l, clock, 5)
	if gone(t, l) == 0 {
		t.Error("nothing is gone")
	}
	verify(t, l)
	inspect(t, dir, func(tx *bolt.Tx) {
		if v := keyNumber(space(tx, 'm')["version"]); v != ledger.FormatVersion {
			t.Errorf("the version is %d", v)
		}
	})
}

// Whatever is recovered of a ledger, what was pruned is not missing, and does not come back.
func TestWhatWasPrunedIsNotMissingAfterARecovery(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, dir string){
		"a record was changed": func(t *testing.T, dir string) {
			change(t, dir, func(records, _ *bolt.Bucket) error {
				k, v := records.Cursor().Last()
				v = bytes.Clone(v)
				v[len(v)-40] ^= 1
				return records.Put(bytes.Clone(k), v)
			})
		},
		"the first pages are gone": func(t *testing.T, dir string) {
			b := read(t, dir, "haldir.db")
			clear(b[:2*4096])
			put(t, dir, "haldir.db", b)
		},
		"it was forged what was pruned": func(t *testing.T, dir string) {
			change(t, dir, func(_, hot *bolt.Bucket) error { return hot.Put([]byte("mpruned"), keyOf(3)) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			clock, dir := newClock(), stateDir(t)
			l := little(t, dir, clock, "a", 10*day)
			pass(t, l, clock, 16)
			n := gone(t, l)
			closeLedger(t, l)
			if n == 0 {
				t.Fatal("nothing is gone")
			}
			harm(t, dir)
			r := recovered(t, dir, clock.now)
			if r.Pruned != n {
				t.Errorf("%d records were pruned, recovery says %d", n, r.Pruned)
			}
			for _, m := range r.Missing {
				if m.First <= n {
					t.Errorf("%d to %d are said to be missing, and the first %d were pruned", m.First, m.Last, n)
				}
			}
			if r.Records == 0 || r.First <= n {
				t.Errorf("%d records from %d on are salvaged, and the first %d were pruned", r.Records, r.First, n)
			}
			if r.Lost > 1 {
				t.Errorf("%d records are lost, want one at most", r.Lost)
			}
			l = little(t, dir, clock, "a", 10*day)
			if _, err := l.Trust(context.Background(), "a test"); err != nil {
				t.Fatal(err)
			}
			pass(t, l, clock, 16)
			if gone(t, l) == 0 {
				t.Error("nothing is pruned of the new ledger")
			}
			verify(t, l)
		})
	}
}

// BenchmarkCallsWhilePruning compares calls, settled before the next, while nothing is pruned
// and while with every 32 records twice as many go.
func BenchmarkCallsWhilePruning(b *testing.B) {
	for _, c := range []struct {
		name string
		keep time.Duration
	}{{"kept", 0}, {"pruned", 90 * day}} {
		b.Run(c.name, func(b *testing.B) {
			clock, dir := newClock(), stateDir(b)
			l := little(b, dir, clock, "a", 90*day)
			crowd(b, l, 2*b.N+2000)
			clock.add(100 * day)
			for _, d := range []time.Duration{time.Minute, time.Minute, 25 * time.Hour} {
				crowd(b, l, 2*b.N)
				clock.add(d)
			}
			closeLedger(b, l)
			o := ledger.Options{Dir: dir, Clock: clock.now}
			if c.keep > 0 {
				o.Retention = &ledger.Retention{Place: filepath.Join(dir, "a"), Keep: c.keep, Last: 20}
			}
			l = open(b, o)
			e := engine(b, rulesets["figures"]())
			before, err := l.Stats(context.Background())
			if err != nil {
				b.Fatal(err)
			}
			took := make([]time.Duration, 0, b.N)
			b.ResetTimer()
			for range b.N {
				began := time.Now()
				ticket, d := reserve(b, l, call("ses_a", "look", `{}`), e)
				if d.Verdict != policy.Allow {
					b.Fatal(d.Reason)
				}
				l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
				flush(b, l)
				took = append(took, time.Since(began))
			}
			b.StopTimer()
			after, err := l.Stats(context.Background())
			if err != nil {
				b.Fatal(err)
			}
			slices.Sort(took)
			f := figure{took: took}
			ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
			b.ReportMetric(ms(f.percentile(50)), "p50-ms")
			b.ReportMetric(ms(f.percentile(99)), "p99-ms")
			b.ReportMetric(ms(took[len(took)-1]), "worst-ms")
			b.ReportMetric(float64(after.First-before.First)+float64(before.Unswept)-float64(after.Unswept), "deleted")
		})
	}
}

// A record of before the clock was set back counts as old only as long as its time is to come.
func TestARecordWhoseTimeHasComeIsKeptFromThen(t *testing.T) {
	clock, dir := newClock(), stateDir(t)
	l := little(t, dir, clock, "a", 10*day)
	crowd(t, l, 40)
	clock.add(15 * day)
	crowd(t, l, 40)
	ahead, err := l.Head()
	if err != nil {
		t.Fatal(err)
	}
	come := clock.now()
	clock.add(-15 * day)
	if _, _, err := l.ResetClock(context.Background(), "it was wrong"); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, d := range []time.Duration{14*day/3 - time.Hour, time.Hour, 10 * day, time.Hour} {
		clock.add(d)
		crowd(t, l, 64)
		inspect(t, l.Dir(), func(tx *bolt.Tx) { found = space(tx, 'm')["pruning"] != nil })
	}
	if n := gone(t, l); n >= ahead || !found || !clock.now().Before(come) {
		t.Fatalf("%d records are gone at %v, and a boundary is found: %t", n, clock.now(), found)
	}
	for range 9 {
		clock.add(day + time.Hour)
		crowd(t, l, 64)
		if n := gone(t, l); n >= ahead {
			t.Fatalf("record %d of %v is gone at %v", ahead, come, clock.now())
		}
	}
	pass(t, l, clock, 4)
	if n := gone(t, l); n < ahead {
		t.Errorf("record %d of %v is not gone at %v", ahead, come, clock.now())
	}
}

// What is pruned behind a walk is no damage: it goes through the chain again.
func TestNothingIsDamagedThatWasPrunedWhileItWasVerified(t *testing.T) {
	clock, dir := newClock(), stateDir(t)
	l := retained(t, dir, clock)
	busy(t, l, 3000)
	clock.add(91 * day)
	busy(t, l, 3000)
	walks := 0
	v, err := l.Verify(context.Background(), func(done uint64) {
		if done == 8000 { // the boundary is behind, and the record that tells of it to come
			walks++
			compact(t, l)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := gone(t, l); n == 0 || v.Pruned() != n || walks != 1 {
		t.Errorf("%d records are gone, it begins after %d, and has come that far %d times", n, v.Pruned(), walks)
	}
}

// But damage is damage, also when more was pruned meanwhile.
func TestDamageIsFoundAlsoWhileItIsPruned(t *testing.T) {
	clock, dir := newClock(), stateDir(t)
	l := retained(t, dir, clock)
	busy(t, l, 3000)
	clock.add(91 * day)
	busy(t, l, 3000)
	harmed := false
	_, err := l.Verify(context.Background(), func(done uint64) {
		if done != 8000 || harmed {
			return
		}
		harmed = true
		compact(t, l)
		change(t, dir, func(records, _ *bolt.Bucket) error {
			raw := bytes.Clone(records.Get(keyOf(11_000)))
			raw[len(raw)-40] ^= 1
			return records.Put(keyOf(11_000), raw)
		})
	})
	d, damaged := errors.AsType[*audit.Damage](err)
	if !damaged || d.Seq != 11_000 || gone(t, l) == 0 {
		t.Errorf("record 11000 was changed, and the first %d were pruned: %v", gone(t, l), err)
	}
}

// Nor does one that is ahead while the ledger is compacted, unless a person says so. A
// destination holds what it does not have by the same clock.
func TestAClockThatIsAheadWhileItIsCompactedPrunesNothing(t *testing.T) {
	clock, dir := newClock(), stateDir(t)
	l := little(t, dir, clock, "a", 10*day)
	s, err := l.Ship("http://collector/v1/logs", "collector")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, _, err := s.Next(context.Background(), 1, 1); err != nil {
		t.Fatal(err)
	}
	pass(t, l, clock, 3)
	compacted := func(now bool) ledger.Compaction {
		c, err := l.Compact(context.Background(), now, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	clock.add(40 * day)
	for range 2 {
		if c := compacted(false); c.Pruned != 0 || c.Due == 0 || !c.From.Equal(clock.now().Add(day)) {
			t.Fatalf("%+v at %v", c, clock.now())
		}
	}
	clock.add(-40 * day)
	if _, _, err := l.ResetClock(context.Background(), "it was wrong"); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		clock.add(12 * time.Hour)
		if c := compacted(false); c.Pruned != 0 || c.Due != 0 || !c.From.IsZero() {
			t.Fatalf("%+v, and the clock is right again", c)
		}
	}
	// What is due indeed goes a day after that was seen, with no other call.
	clock.add(60 * day)
	due := compacted(false).Due
	clock.add(day)
	if c := compacted(false); c.Pruned == 0 || c.Pruned != due {
		t.Errorf("%+v, and %d records were due", c, due)
	}
	verify(t, l)
}

// What pruned calls have used is kept of a hundred days, the last ones, and not of ever more.
func TestTheHistoryOfPrunedUseHasAnEnd(t *testing.T) {
	clock, dir := newClock(), stateDir(t)
	l := little(t, dir, clock, "a", 2*day)
	first := clock.now().Unix() / int64(day/time.Second)
	pass(t, l, clock, 130)
	compact(t, l)
	var history map[int64]struct{ Calls int }
	inspect(t, dir, func(tx *bolt.Tx) {
		if err := json.Unmarshal(space(tx, 'm')["swept"], &history); err != nil {
			t.Fatal(err)
		}
	})
	days := slices.Sorted(maps.Keys(history))
	if len(days) != 100 || days[0] < first+20 || days[99] < first+120 || days[99]-days[0] != 99 {
		t.Fatalf("of 130 days, the first of which is %d, it has %d: %v", first+1, len(days), days)
	}
	for _, d := range days[:99] { // of the last one there may be some that are not deleted
		if history[d].Calls != 80 {
			t.Errorf("%d calls of day %d are counted, want 80", history[d].Calls, d)
		}
	}
}
