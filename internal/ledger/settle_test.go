package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// shop is a ruleset with every kind of counter: calls of pay cost what their
// arguments say, calls of ask $2 until their result says otherwise, the rest
// nothing.
func shop() policy.Ruleset {
	return policy.Ruleset{
		Costs: []policy.Cost{
			{Tools: []string{"shop/pay"}, HasFromArgument: true, FromArgument: "/amount"},
			{Tools: []string{"shop/ask"}, USD: 2 * policy.USD, FromResult: "/cost"},
			{Tools: []string{"shop/tip"}, USD: 4000}, // $0.004
		},
		Policies: []policy.Rule{
			{Type: policy.TypeDeny, Tools: []string{"shop/steal"}},
			{Type: policy.TypeRateLimit, ID: "rate", MaxCalls: 100, Window: time.Hour},
			{Type: policy.TypeSpendLimit, ID: "session", MaxUSD: 100 * policy.USD},
			{Type: policy.TypeSpendLimit, ID: "hour", MaxUSD: 1000 * policy.USD, Per: policy.PerHour},
		},
	}
}

func call(session, tool, arguments string) ledger.Attempt {
	a := attempt(session)
	a.Call = policy.Call{Upstream: "shop", Tool: tool, Arguments: []byte(arguments)}
	a.Body = audit.NewBody([]byte(arguments), audit.DetailRedacted, nil)
	return a
}

func pay(session string, amount string) ledger.Attempt {
	return call(session, "pay", `{"amount":`+amount+`}`)
}

// Money that was reserved must come out of a settlement as it went in, to the
// micro-dollar: a call that is done costs what was held for it.
func TestWhatACallReservedIsWhatItSpends(t *testing.T) {
	for _, c := range []struct {
		a      ledger.Attempt
		micros policy.Micros
	}{
		{pay("ses_a", "60"), 60_000_000},
		{pay("ses_a", "0.004"), 4000},
		{pay("ses_a", `"12.345678"`), 12_345_678},
		{pay("ses_a", "0.000001"), 1},
		{pay("ses_a", "0"), 0},
		{call("ses_a", "tip", `{}`), 4000},
		{call("ses_a", "ask", `{}`), 2_000_000},
		{call("ses_a", "look", `{}`), 0},
	} {
		for _, result := range []ledger.Result{ledger.Done, ledger.Failed, ledger.Cancelled, ledger.Unknown, ledger.NotSent, ledger.Withdrawn} {
			t.Run(fmt.Sprintf("%s %s %d", c.a.Call.Tool, c.micros, result), func(t *testing.T) {
				t.Parallel()
				l, e := quick(t, stateDir(t)), engine(t, shop())
				ticket, d := reserve(t, l, c.a, e)
				if d.Verdict != policy.Allow || d.Cost != c.micros {
					t.Fatalf("the attempt: %v at %s: %s", d.Verdict, d.Cost, d.Reason)
				}
				if got := spent(t, l, c.a.Use, e).Total; got != c.micros {
					t.Errorf("reserved, %s are spent, want %s", got, c.micros)
				}
				l.Settle(ticket, ledger.Outcome{Result: result})
				flush(t, l)
				want, calls := c.micros, int64(1)
				if result == ledger.NotSent || result == ledger.Withdrawn {
					want, calls = 0, 0
				}
				sp := spent(t, l, c.a.Use, e)
				if sp.Total != want || sp.Calls != calls || sp.ByTool["shop/"+c.a.Call.Tool] != want {
					t.Errorf("settled, %s are spent in %d calls, by tool %v, want %s in %d", sp.Total, sp.Calls, sp.ByTool, want, calls)
				}
				for i, used := range sp.Used {
					if used != want {
						t.Errorf("budget %d has %s used, want %s", i, used, want)
					}
				}
				en := entry(t, l, ticket.Seq)
				status := statusOf(result)
				if cost, err := policy.ParseUSD(string(en.CostUSD)); en.Status != status || err != nil || cost != want {
					t.Errorf("the audit says %s at $%s, want %s at %s", en.Status, en.CostUSD, status, want)
				}
				verify(t, l)
			})
		}
	}
}

// A settled call must not make room for more than the limit.
func TestASettledCallStillCountsAgainstTheLimit(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	for i := range 5 {
		ticket, d := reserve(t, l, pay("ses_a", "60"), e)
		if (d.Verdict == policy.Allow) != (i == 0) {
			t.Fatalf("call %d of $60 under a limit of $100: %v", i+1, d.Verdict)
		}
		l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
		flush(t, l)
	}
}

func TestTheActualCostTakesThePlaceOfTheReserved(t *testing.T) {
	for _, c := range []struct {
		actual, want policy.Micros
		flagged      bool
	}{
		{0, 0, false},
		{1, 1, false},
		{1_999_999, 1_999_999, false},
		{2_000_000, 2_000_000, false},
		{2_000_001, 2_000_001, true},
		{70_000_000, 70_000_000, true}, // an overrun is booked in full, and flagged
		{-1, 2_000_000, true},
		{math.MinInt64, 2_000_000, true}, // an invalid one keeps the reservation
	} {
		t.Run(c.actual.String(), func(t *testing.T) {
			l, e := quick(t, stateDir(t)), engine(t, shop())
			a := call("ses_a", "ask", `{}`)
			ticket, _ := reserve(t, l, a, e)
			l.Settle(ticket, ledger.Outcome{Result: ledger.Done, Actual: &c.actual})
			flush(t, l)
			sp := spent(t, l, a.Use, e)
			if sp.Total != c.want || sp.Used[0] != c.want || sp.Used[1] != c.want || sp.ByTool["shop/ask"] != c.want {
				t.Errorf("%s are spent, budgets %v, by tool %v, want %s", sp.Total, sp.Used, sp.ByTool, c.want)
			}
			en, ok, err := l.Entry(context.Background(), ticket.Seq)
			if err != nil || !ok {
				t.Fatalf("the entry cannot be read any more: %v", err)
			}
			if c.actual >= 0 && en.Flagged != c.flagged {
				t.Errorf("flagged is %v, want %v (%s)", en.Flagged, c.flagged, en.FlagReason)
			}
			// One settlement must not make the chain unreadable.
			verify(t, l)
		})
	}
}

// Upstreams say what a call cost; absurd sums must not wrap around into room
// for more.
func TestAbsurdActualCostsNeverMakeRoom(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	absurd := policy.Micros(math.MaxInt64)
	var tickets []ledger.Ticket
	for range 2 {
		ticket, d := reserve(t, l, call("ses_a", "ask", `{}`), e)
		if d.Verdict != policy.Allow {
			t.Fatal(d.Reason)
		}
		tickets = append(tickets, ticket)
	}
	for _, ticket := range tickets {
		l.Settle(ticket, ledger.Outcome{Result: ledger.Done, Actual: &absurd})
	}
	flush(t, l)
	if total := spent(t, l, attempt("ses_a").Use, e).Total; total < 4*policy.USD { // what was reserved
		t.Errorf("after two absurd costs %s are spent", total)
	}
	if _, d := reserve(t, l, pay("ses_a", "97"), e); d.Verdict != policy.Deny {
		t.Errorf("after two absurd costs a call for money is let through")
	}
	verify(t, l)
}

func TestSettlingTwiceChangesNothing(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	a := pay("ses_a", "3")
	ticket, _ := reserve(t, l, a, e)
	// Twice in one transaction, and again in later ones, with other results.
	l.Settle(ticket, ledger.Outcome{Result: ledger.NotSent})
	l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	flush(t, l)
	n := verify(t, l)
	sp := spent(t, l, a.Use, e)
	for _, r := range []ledger.Result{ledger.NotSent, ledger.Done, ledger.Cancelled} {
		l.Settle(ticket, ledger.Outcome{Result: r})
		flush(t, l)
	}
	if again := verify(t, l); again != n {
		t.Errorf("settling again left %d more records", again-n)
	}
	again := spent(t, l, a.Use, e)
	if sp.Total != 0 || again.Total != 0 || sp.Calls != 0 || again.Calls != 0 {
		t.Errorf("spent %s then %s, calls %d then %d, want none", sp.Total, again.Total, sp.Calls, again.Calls)
	}
}

// A refusal holds nothing; settling its ticket, or one that never was, is no
// error and leaves nothing.
func TestSettlingWhatHoldsNothingChangesNothing(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	ticket, d := reserve(t, l, call("ses_a", "steal", `{}`), e)
	if d.Verdict != policy.Deny {
		t.Fatal(d.Verdict)
	}
	n := verify(t, l)
	l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	l.Settle(ledger.Ticket{}, ledger.Outcome{Result: ledger.Done})
	l.Settle(ledger.Ticket{CallID: "nobody-nothing"}, ledger.Outcome{Result: ledger.Done})
	flush(t, l)
	if again := verify(t, l); again != n {
		t.Errorf("%d records appeared", again-n)
	}
	if en := entry(t, l, ticket.Seq); en.Status != audit.StatusDenied || en.OutcomeSeq != 0 {
		t.Errorf("the refusal became %s", en.Status)
	}
}

func TestASettlementComesToDiskByItself(t *testing.T) {
	dir := stateDir(t)
	l, other, e := newLedger(t, dir), newLedger(t, dir), engine(t, shop())
	ticket, _ := reserve(t, l, pay("ses_a", "3"), e)
	l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	deadline := time.Now().Add(hang)
	for {
		if entry(t, other, ticket.Seq).Status == audit.StatusAllowed {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("another process does not see the outcome")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestCloseCommitsWhatIsOwed(t *testing.T) {
	dir := stateDir(t)
	e := engine(t, shop())
	var tickets []ledger.Ticket
	func() {
		l := quick(t, dir)
		for range 20 {
			ticket, _ := reserve(t, l, pay("ses_a", "1"), e)
			tickets = append(tickets, ticket)
		}
		for _, ticket := range tickets {
			l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
		}
		closeLedger(t, l)
	}()
	if n := openHolds(t, dir); n != 0 {
		t.Errorf("%d calls are still open in the file", n)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "procs")); err != nil || len(left) != 0 {
		t.Errorf("the process's registration is left behind: %v %v", left, err)
	}
	l := quick(t, dir)
	for _, ticket := range tickets {
		if en := entry(t, l, ticket.Seq); en.Status != audit.StatusAllowed {
			t.Errorf("call %d is %s", ticket.Seq, en.Status)
		}
	}
}

// A process that ends in order but with a call in flight cannot know what came
// of it either.
func TestACallThatIsOpenWhenItsLedgerClosesIsAbandoned(t *testing.T) {
	for _, amount := range []string{"7", "0.004", "0", "12.345678"} {
		t.Run(amount, func(t *testing.T) {
			dir := stateDir(t)
			e := engine(t, shop())
			l := quick(t, dir)
			ticket, d := reserve(t, l, pay("ses_a", amount), e)
			closeLedger(t, l)
			next := quick(t, dir)
			en := entry(t, next, ticket.Seq)
			if en.Status != audit.StatusAbandoned || !en.Flagged || string(en.CostUSD) != amount {
				t.Errorf("the call is %s at $%s, flagged %v, want abandoned at $%s, flagged", en.Status, en.CostUSD, en.Flagged, amount)
			}
			if sp := spent(t, next, attempt("ses_a").Use, e); sp.Total != d.Cost || sp.Calls != 1 {
				t.Errorf("%s in %d calls are spent, want %s in 1: a doubt counts as spent", sp.Total, sp.Calls, d.Cost)
			}
			verify(t, next)
		})
	}
}

func TestAfterCloseEverythingFailsWithErrClosed(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	ticket, _ := reserve(t, l, pay("ses_a", "1"), e)
	l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	closeLedger(t, l)
	closeLedger(t, l) // twice is no error
	ctx := context.Background()
	for name, f := range map[string]func() error{
		"Reserve":  func() error { _, _, err := l.Reserve(ctx, pay("ses_a", "1"), e); return err },
		"Check":    func() error { _, _, err := l.Check(ctx, attempt("ses_a").Use, policy.Call{}, e); return err },
		"Record":   func() error { return l.Record(ctx, attempt("ses_a"), "") },
		"Find":     func() error { _, _, err := l.Find(ctx, audit.Filter{}); return err },
		"Verify":   func() error { _, err := l.Verify(ctx, nil); return err },
		"Sessions": func() error { _, err := l.Sessions(ctx); return err },
	} {
		if err := f(); !errors.Is(err, ledger.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	l.Settle(ticket, ledger.Outcome{Result: ledger.Done}) // must not panic or block
}

// A ledger that is never used touches nothing but the directory.
func TestALedgerThatIsNeverUsedLeavesNoFile(t *testing.T) {
	dir := stateDir(t)
	l := quick(t, dir)
	closeLedger(t, l)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestFilesAreForTheirOwnerOnly(t *testing.T) {
	dir := stateDir(t)
	l, e := quick(t, dir), engine(t, shop())
	reserve(t, l, pay("ses_a", "1"), e)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Many calls at once share transactions; each must get its own answer.
func TestConcurrentCallsEachGetTheirOwnRecord(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	const n = 64
	got := make([]ledger.Ticket, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			tool := []string{"look", "steal"}[i%2]
			ticket, d, err := l.Reserve(context.Background(), call(fmt.Sprintf("ses_%d", i), tool, fmt.Sprintf(`{"i":%d}`, i)), e)
			if err != nil {
				t.Error(err)
				return
			}
			if (d.Verdict == policy.Allow) != (i%2 == 0) {
				t.Errorf("call %d: %v", i, d.Verdict)
			}
			l.Settle(ticket, ledger.Outcome{Result: ledger.Done, Reason: fmt.Sprint("reason ", i)})
			got[i] = ticket
		})
	}
	wg.Wait()
	flush(t, l)
	for i, ticket := range got {
		en := entry(t, l, ticket.Seq)
		type what struct{ CallID, Session, Tool, Arguments string }
		want := what{ticket.CallID, fmt.Sprintf("ses_%d", i), []string{"look", "steal"}[i%2], fmt.Sprintf(`{"i":%d}`, i)}
		if d := cmp.Diff(want, what{en.CallID, en.SessionID, en.Tool, string(en.Arguments)}); d != "" {
			t.Errorf("record %d: %s", ticket.Seq, d)
		}
		if i%2 == 0 && (en.Status != audit.StatusAllowed || en.FlagReason != fmt.Sprint("reason ", i)) {
			t.Errorf("call %d: %s, %s", i, en.Status, en.FlagReason)
		}
	}
	verify(t, l)
}

// An operation that fails takes itself out of the transaction it shares, and
// nobody else.
func TestACallThatCannotBeRecordedDoesNotSpoilTheOthers(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			session := fmt.Sprintf("ses_%d", i)
			if i%4 == 0 {
				session = strings.Repeat("x", 40_000) // longer than a key of the database may be
			}
			ticket, d, err := l.Reserve(context.Background(), pay(session, "1"), e)
			switch {
			case i%4 == 0 && err == nil && d.Verdict == policy.Allow:
				t.Error("a call that cannot be recorded is let through")
			case i%4 != 0 && err != nil:
				t.Error(err)
			case i%4 != 0:
				l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
			}
		})
	}
	wg.Wait()
	flush(t, l)
	if n := len(entries(t, l)); n != 60 { // a session and a call each
		t.Errorf("%d entries, want 60", n)
	}
	verify(t, l)
}

// panicky is a Decider with a mistake in it.
type panicky struct{ ledger.Decider }

func (panicky) Decide(policy.Call, policy.State) policy.Decision { panic("a mistake") }

// A call without a session is still an attempt: it is refused, and recorded.
func TestAnUnknownSessionIsARecordedDenial(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	a := pay("ses_nobody", "1")
	a.Use.Terms = nil
	ticket, d := reserve(t, l, a, e)
	if d.Verdict != policy.Deny || d.Policy != policy.PolicySession || !strings.Contains(d.Reason, "ses_nobody") || !strings.Contains(d.Reason, "haldir session create") {
		t.Errorf("%v by %s: %s", d.Verdict, d.Policy, d.Reason)
	}
	en := entry(t, l, ticket.Seq)
	if en.Status != audit.StatusDenied || !en.Flagged || en.SessionID != "ses_nobody" || en.Policy != policy.PolicySession {
		t.Errorf("recorded as %+v", en)
	}
	if list, err := l.Sessions(context.Background()); err != nil || len(list) != 0 {
		t.Errorf("the refusal made a session: %v %v", list, err)
	}
	if _, _, err := l.Check(context.Background(), a.Use, a.Call, e); !errors.Is(err, ledger.ErrNoSession) {
		t.Errorf("Check: %v", err)
	}
}

func TestACallRefusedBeforehandIsRecordedWithItsReason(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	a := call("ses_a", "nothing_like_it", `{}`)
	a.Refused = &policy.Finding{Policy: "tool", Rule: "unknown", Reason: "There is no such tool"}
	ticket, d := reserve(t, l, a, e)
	en := entry(t, l, ticket.Seq)
	if d.Verdict != policy.Deny || d.Reason != a.Refused.Reason || en.Status != audit.StatusDenied || en.FlagReason != a.Refused.Reason || en.Policy != "tool" || en.Rule != "unknown" {
		t.Errorf("%+v recorded as %+v", d, en)
	}
	if sp := spent(t, l, a.Use, e); sp.Calls != 0 {
		t.Errorf("a refused call counts: %d", sp.Calls)
	}
}

// The use of a config is recorded once, before the first call under it.
func TestAConfigIsRecordedWhenItIsFirstUsed(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	for i := range 6 {
		a := call("ses_a", "look", `{}`)
		a.Config = audit.Sum([]byte{byte(i % 2)})
		reserve(t, l, a, e)
	}
	var seqs []uint64
	for _, en := range entries(t, l) {
		if en.Kind == audit.KindConfig.String() {
			seqs = append(seqs, en.Seq)
		}
	}
	if len(seqs) != 2 {
		t.Errorf("two configs left the records %v", seqs)
	}
}

// A mistake of ours is no damage of the file, and must not take the ledger from
// this and other processes until somebody restarts something.
func TestAPanicInADecisionRefusesThatCallOnly(t *testing.T) {
	dir := stateDir(t)
	l, other, e := quick(t, dir), quick(t, dir), engine(t, shop())
	reserve(t, l, pay("ses_a", "1"), e)
	_, d, err := l.Reserve(context.Background(), pay("ses_a", "1"), panicky{e})
	if err == nil || d.Verdict == policy.Allow {
		t.Errorf("a call whose decision panicked: %v, %v", d.Verdict, err)
	}
	if errors.Is(err, ledger.ErrDamaged) {
		t.Errorf("a panic in a decision is reported as damage of the file: %v", err)
	}
	for name, l := range map[string]*ledger.Ledger{"the same": l, "another": other} {
		if _, _, err := l.Reserve(context.Background(), pay("ses_a", "1"), e); err != nil {
			t.Errorf("the next call through %s ledger failed: %v", name, err)
		}
	}
}

// A counter without a limit may be added to for ever; it must not begin anew
// below zero.
func TestACounterThatIsFullStaysFull(t *testing.T) {
	l := quick(t, stateDir(t))
	e := engine(t, policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"shop/pay"}, HasFromArgument: true, FromArgument: "/amount"}}})
	for i := range 9_300 {
		ticket, d := reserve(t, l, pay("ses_a", "1000000000"), e)
		if d.Verdict != policy.Allow {
			t.Fatalf("call %d: %s", i, d.Reason)
		}
		l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	}
	flush(t, l)
	if sp := spent(t, l, attempt("ses_a").Use, e); sp.Total != math.MaxInt64 || sp.ByTool["shop/pay"] != math.MaxInt64 {
		t.Errorf("9,300 billion dollars are %s", sp.Total)
	}
}

// What an agent is told about trying again rests on this.
func TestWhatPassesByItselfIsRetryable(t *testing.T) {
	for err, want := range map[error]bool{
		ledger.ErrBusy: true, syscall.ENOSPC: true, context.DeadlineExceeded: true,
		ledger.ErrDamaged: false, ledger.ErrNewer: false, ledger.ErrClosed: false, ledger.ErrNoSession: false,
	} {
		if got := ledger.Retryable(fmt.Errorf("a call: %w", err)); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
	if ledger.Retryable(nil) {
		t.Error("nothing failed")
	}
}
