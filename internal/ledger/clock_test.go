package ledger_test

import (
	"context"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// The clock was years ahead for a while. Until the ledger's time is set back no
// window closes; when it is, none of them is wider open than before.
func TestAClockThatWasAheadIsSetBackAndNoLimitIsLooser(t *testing.T) {
	dir, clock := stateDir(t), newClock()
	l, e := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now}), engine(t, shop())
	ctx := context.Background()
	for range 10 { // $1,000 an hour, $100 a session
		ticket, _ := reserve(t, l, pay(ledger.NewSessionID(), "95"), e)
		l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	}
	if was, now, err := l.ResetClock(ctx, "to see"); err != nil || !was.Equal(now) {
		t.Errorf("a clock that is right was reset from %v to %v: %v", was, now, err)
	}
	const years = 10 * 365 * 24 * time.Hour
	clock.add(years)
	a := pay("ses_ahead", "1")
	a.Use.Terms.TTL = time.Hour
	open, d := reserve(t, l, a, e)
	if d.Verdict != policy.Allow {
		t.Fatalf("ten years later: %s", d.Reason)
	}
	flush(t, l)
	clock.add(-years)
	clock.add(time.Minute)
	if now, wall, err := l.Clock(ctx); err != nil || now.Sub(wall) < years-time.Hour {
		t.Errorf("the ledger says %v, the clock %v; %v", now, wall, err)
	}
	was, now, err := l.ResetClock(ctx, "the battery was flat")
	if err != nil || !now.Equal(clock.now()) || was.Sub(now) < years-time.Hour {
		t.Fatalf("reset from %v to %v: %v", was, now, err)
	}
	verify(t, l)
	if _, d := reserve(t, l, pay("ses_new", "60"), e); d.Verdict == policy.Allow || d.Policy != string(policy.TypeRateLimit) && d.Policy != string(policy.TypeSpendLimit) {
		t.Errorf("$951 of $1,000 were used in this hour, and $60 more are: %v by %s", d.Verdict, d.Policy)
	}
	l.Settle(open, ledger.Outcome{Result: ledger.Done, Actual: dollars(3)}) // across the reset
	flush(t, l)
	if en := entry(t, l, open.Seq); en.Status != audit.StatusAllowed || string(en.CostUSD) != "3" || en.DurationMS > uint64(time.Hour/time.Millisecond) {
		t.Errorf("the open call became %s, $%s, %d ms", en.Status, en.CostUSD, en.DurationMS)
	}
	clock.add(2 * time.Hour)
	if _, d := reserve(t, l, pay("ses_new", "60"), e); d.Verdict != policy.Allow {
		t.Errorf("two hours later: %s", d.Reason)
	}
	if _, d := reserve(t, l, a, e); d.Verdict == policy.Allow || d.Policy != policy.PolicySession {
		t.Errorf("a session of an hour, two hours later: %v by %s", d.Verdict, d.Policy)
	}
	list, _, err := l.Find(ctx, audit.Filter{Status: audit.StatusClockReset, Since: now, Until: now.Add(time.Nanosecond)})
	if err != nil || len(list) != 1 || !list[0].Flagged {
		t.Errorf("%+v %v", list, err)
	}
	// Times run back once in the records, and queries by time find all the same.
	all := scan(t, l)
	for _, f := range []audit.Filter{{Until: now}, {Since: now, Until: now.Add(24 * time.Hour)}, {Since: now.Add(24 * time.Hour)}} {
		got, _, err := l.Find(ctx, f)
		want := 0
		for _, en := range all {
			if naive(f, en) {
				want++
			}
		}
		if err != nil || len(got) != want || want == 0 {
			t.Errorf("%+v: %d entries, want %d; %v", f, len(got), want, err)
		}
	}
	verify(t, l)
}

// A clock that jumps back is no reason to begin a window anew.
func TestAClockThatJumpsBackOpensNoWindowAnew(t *testing.T) {
	dir, clock := stateDir(t), newClock()
	l, e := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now}), engine(t, shop())
	for range 10 {
		reserve(t, l, pay(ledger.NewSessionID(), "95"), e)
	}
	for _, back := range []time.Duration{time.Minute, 2 * time.Hour, 40 * 24 * time.Hour} {
		clock.add(-back)
		if _, d := reserve(t, l, pay("ses_new", "60"), e); d.Verdict == policy.Allow {
			t.Errorf("%v back: the hour's limit is unused", back)
		}
	}
	verify(t, l)
}
