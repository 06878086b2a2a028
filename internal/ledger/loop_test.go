package ledger_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

func loops(most int64, window time.Duration) policy.Ruleset {
	return policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeLoop, ID: "loop", MaxRepeats: most, Window: window}}}
}

func init() { rulesets["loops"] = func() policy.Ruleset { return loops(7, time.Hour) } }

// Of the same call, exactly as many are let through as the rule says, however many are made
// at once, and in however many ways they are spelt.
func TestALoopRuleIsExactUnderConcurrency(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, loops(7, time.Hour))
	spellings := []string{`{"a":1,"b":"x"}`, `{"b":"x","a":1.0}`, ` { "a" : 1e0, "\u0062":"\u0078"} `}
	var allowed, refused, others atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 12 {
				ticket, d, err := l.Reserve(context.Background(), call("ses_a", "look", spellings[(i+n)%len(spellings)]), e)
				switch {
				case err != nil:
					t.Error(err)
				case d.Verdict == policy.Allow:
					allowed.Add(1)
					l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
				case d.Policy == string(policy.TypeLoop) && !d.RetryAt.IsZero() && strings.Contains(d.Reason, "ask the user"):
					refused.Add(1)
				default:
					t.Errorf("%v: %s", d.Verdict, d.Reason)
				}
				if _, d, err := l.Reserve(context.Background(), call("ses_a", "look", fmt.Sprintf(`{"i":%d,"n":%d}`, i, n)), e); err != nil || d.Verdict != policy.Allow {
					others.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if a, r, o := allowed.Load(), refused.Load(), others.Load(); a != 7 || r != 96-7 || o != 0 {
		t.Errorf("%d let through, %d refused, and %d of the others", a, r, o)
	}
	for _, other := range []ledger.Attempt{call("ses_b", "look", spellings[0]), call("ses_a", "see", spellings[0])} {
		if _, d := reserve(t, l, other, e); d.Verdict != policy.Allow {
			t.Errorf("another session or tool: %s", d.Reason)
		}
	}
	verify(t, l)
}

// A call that was not sent did not repeat anything.
func TestALoopRuleGivesBack(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, loops(2, time.Hour))
	a := call("ses_a", "look", `{}`)
	for i, r := range []ledger.Result{ledger.NotSent, ledger.Withdrawn, ledger.Done, ledger.NotSent, ledger.Withdrawn, ledger.Cancelled} {
		ticket, d := reserve(t, l, a, e)
		if d.Verdict != policy.Allow {
			t.Fatalf("call %d: %s", i, d.Reason)
		}
		l.Settle(ticket, ledger.Outcome{Result: r})
		flush(t, l)
	}
	if _, d := reserve(t, l, a, e); d.Policy != string(policy.TypeLoop) {
		t.Errorf("one done and one cancelled of two: %v", d.Verdict)
	}
}

// Failures in a row count, whatever the arguments are; a success ends the row, and what says
// nothing of the tool changes nothing.
func TestFailuresInARow(t *testing.T) {
	clock := newClock()
	l, e := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now}), engine(t, loops(3, time.Minute))
	n := 0
	try := func(session, tool string, r ledger.Result) bool {
		n++
		ticket, d := reserve(t, l, call(session, tool, fmt.Sprintf(`{"n":%d}`, n)), e)
		if d.Verdict != policy.Allow {
			if d.Policy != string(policy.TypeLoop) || !strings.Contains(d.Reason, "failed 3 times in a row") {
				t.Errorf("%s: %s", d.Policy, d.Reason)
			}
			return false
		}
		l.Settle(ticket, ledger.Outcome{Result: r})
		flush(t, l)
		return true
	}
	row := func(want bool, rs ...ledger.Result) {
		t.Helper()
		for i, r := range rs {
			if got := try("ses_a", "look", r); got != (want || i < len(rs)-1) {
				t.Errorf("%v: call %d: %t", rs, i+1, got)
			}
		}
	}
	row(true, ledger.Failed, ledger.Unknown, ledger.Done)
	row(true, ledger.Failed, ledger.Failed, ledger.NotSent, ledger.Withdrawn, ledger.Cancelled, ledger.Done)
	row(false, ledger.Failed, ledger.Cancelled, ledger.Failed, ledger.NotSent, ledger.Unknown, ledger.Done)
	if !try("ses_b", "look", ledger.Done) || !try("ses_a", "see", ledger.Done) {
		t.Error("another session or tool is refused")
	}
	clock.add(time.Minute)
	row(true, ledger.Failed, ledger.Failed)
	clock.add(time.Minute) // those are long ago
	row(true, ledger.Failed, ledger.Failed, ledger.Done)
	// Calls that are under way when the row is full may still end it.
	open, _ := reserve(t, l, call("ses_a", "look", `{}`), e)
	row(false, ledger.Failed, ledger.Failed, ledger.Failed, ledger.Failed)
	l.Settle(open, ledger.Outcome{Result: ledger.Done})
	flush(t, l)
	row(true, ledger.Done)
	verify(t, l)
}

// A clock that was wrong makes no window of a loop rule longer, once it is set back.
func TestALoopRuleAfterAWrongClock(t *testing.T) {
	const years = 10 * 365 * 24 * time.Hour
	clock := newClock()
	l, e := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now}), engine(t, loops(2, time.Minute))
	a := call("ses_a", "look", `{}`)
	use := func() bool {
		ticket, d := reserve(t, l, a, e)
		if d.Verdict == policy.Allow {
			l.Settle(ticket, ledger.Outcome{Result: ledger.Failed})
			flush(t, l)
		}
		return d.Verdict == policy.Allow
	}
	clock.add(years)
	if !use() || !use() || use() {
		t.Fatal("two of the same and no more")
	}
	clock.add(-years)
	if use() {
		t.Error("a clock that jumps back opens the window anew")
	}
	if _, _, err := l.ResetClock(context.Background(), "the battery was flat"); err != nil {
		t.Fatal(err)
	}
	clock.add(time.Minute)
	if !use() {
		t.Error("a minute after the clock was set right it is still refused")
	}
}

// Counters of loops come with every other call, and go again: of many thousands of calls
// of which a thousand are still of interest, not many more than that are kept.
func TestLoopCountersStayFew(t *testing.T) {
	const live, batch = 1000, 200
	calls := 10_000
	if soaking {
		calls = 100_000
	}
	clock := newClock()
	dir := stateDir(t)
	l, e := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now}), engine(t, loops(5, live*time.Second))
	most := 0
	for i := 0; i < calls; i += batch {
		var wg sync.WaitGroup
		for n := range batch { // together in few transactions
			wg.Go(func() {
				ticket, d, err := l.Reserve(context.Background(), call(fmt.Sprintf("ses_%d", i%7), "look", fmt.Sprintf(`{"n":%d}`, i+n)), e)
				if err != nil || d.Verdict != policy.Allow {
					t.Errorf("call %d: %v %v %s", i+n, err, d.Verdict, d.Reason)
					return
				}
				l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
			})
		}
		wg.Wait()
		clock.add(batch * time.Second)
		if i%(live*5) == 0 {
			flush(t, l)
			inspect(t, dir, func(tx *bolt.Tx) { most = max(most, len(space(tx, 'l'))) })
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("at most %d counters, %d of them of use", most, live)
	if most > 2*live {
		t.Errorf("%d counters are kept, and %d are of use", most, live)
	}
}
