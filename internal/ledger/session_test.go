package ledger_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

func session(tb testing.TB, l *ledger.Ledger, u ledger.Use) ledger.Session {
	tb.Helper()
	s, err := l.Session(context.Background(), u)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// sessionEvents lists what the audit says about a session, oldest first.
func sessionEvents(tb testing.TB, l *ledger.Ledger, id string) []audit.Status {
	tb.Helper()
	var events []audit.Status
	for _, e := range entries(tb, l) {
		if e.Kind == audit.KindSession.String() && e.SessionID == id {
			events = append([]audit.Status{e.Status}, events...)
		}
	}
	return events
}

// Starting a haldir, listing tools or asking what would be allowed is no use of
// a session.
func TestASessionIsMadeByItsFirstCallOnly(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	ctx, a := context.Background(), call("ses_a", "look", `{}`)
	if got := session(t, l, a.Use); got.ID != "ses_a" || got.Agent != "bot" || !got.AllScopes {
		t.Errorf("before the first call: %+v", got)
	}
	if _, d, err := l.Check(ctx, a.Use, a.Call, e); err != nil || d.Verdict != policy.Allow {
		t.Errorf("Check: %v %v", d, err)
	}
	spent(t, l, a.Use, e)
	if list, err := l.Sessions(ctx); err != nil || len(list) != 0 {
		t.Fatalf("looking made a session: %v %v", list, err)
	}
	if n := verify(t, l); n != 0 {
		t.Fatalf("looking left %d records", n)
	}
	for range 3 {
		reserve(t, l, a, e)
	}
	if list, err := l.Sessions(ctx); err != nil || len(list) != 1 || list[0].Origin != ledger.OriginConfig {
		t.Errorf("after three calls: %+v %v", list, err)
	}
	if got := sessionEvents(t, l, "ses_a"); !cmp.Equal(got, []audit.Status{audit.StatusCreated}) {
		t.Errorf("recorded: %v", got)
	}
	// The record of the session comes before that of the call.
	if first := entry(t, l, 1); first.Kind != audit.KindSession.String() || first.AgentID != "bot" {
		t.Errorf("record 1 is %+v", first)
	}
}

// Calls of haldir's own tools use a session as well.
func TestAGovernanceCallMakesItsSession(t *testing.T) {
	l := quick(t, stateDir(t))
	a := attempt("ses_a")
	a.Call = policy.Call{Upstream: "haldir", Tool: "haldir_get_spend"}
	for _, failed := range []string{"", "no such scope"} {
		if err := l.Record(context.Background(), a, failed); err != nil {
			t.Fatal(err)
		}
	}
	list := entries(t, l)
	if len(list) != 3 || list[0].Status != audit.StatusGovernance || !list[0].Flagged || list[0].FlagReason != "no such scope" || list[1].Flagged {
		t.Errorf("%+v", list)
	}
}

func TestAConfigsSessionFollowsTheConfig(t *testing.T) {
	dir := stateDir(t)
	l, e := quick(t, dir), engine(t, policy.Ruleset{})
	ctx := context.Background()
	use := func(terms ledger.Terms) ledger.Attempt {
		a := call("ses_a", "look", `{}`)
		a.Use.Terms = &terms
		return a
	}
	reserve(t, l, use(ledger.Terms{Agent: "one", AllScopes: true, SpendLimit: dollars(5), TTL: time.Hour}), e)
	first := session(t, l, ledger.Use{ID: "ses_a"})
	if first.Agent != "one" || first.Limit == nil || *first.Limit != 5*policy.USD || !first.ExpiresAt.Equal(first.Created.Add(time.Hour)) {
		t.Errorf("made as %+v", first)
	}
	// A changed block: another agent, fewer scopes, other money, no end.
	changed := ledger.Terms{Agent: "two", Scopes: []string{"read"}, SpendLimit: dollars(9)}
	ticket, d := reserve(t, l, use(changed), e)
	if d.Verdict != policy.Deny || d.Policy != policy.PolicyScope {
		t.Errorf("with the scope read only: %v %s", d.Verdict, d.Reason)
	}
	if en := entry(t, l, ticket.Seq); en.AgentID != "two" {
		t.Errorf("recorded for %s", en.AgentID)
	}
	want := ledger.Session{ID: "ses_a", Agent: "two", Scopes: []string{"read"}, Limit: dollars(9), Created: first.Created, Origin: ledger.OriginConfig}
	for name, l := range map[string]*ledger.Ledger{"the same process": l, "another process": quick(t, dir)} {
		if diff := cmp.Diff(want, session(t, l, ledger.Use{ID: "ses_a"})); diff != "" {
			t.Errorf("after a change, in %s: %s", name, diff)
		}
	}
	// Looking with other terms shows them and changes nothing.
	if got := session(t, l, ledger.Use{ID: "ses_a", Terms: &ledger.Terms{Agent: "three"}}); got.Agent != "three" {
		t.Errorf("looked at with other terms: %+v", got)
	}
	if got := session(t, l, ledger.Use{ID: "ses_a"}); got.Agent != "two" {
		t.Errorf("looking changed it to %+v", got)
	}
	if _, err := l.Sessions(ctx); err != nil {
		t.Error(err)
	}
}

// The limit of a session is in the file in some spelling; it must come back as
// the same amount of money.
func TestASessionsSpendLimitSurvivesTheFile(t *testing.T) {
	for _, limit := range []policy.Micros{0, 1, 4000, 500_000, 1_000_000, 25_000_000, 12_345_678, 1_000_000_000 * policy.USD} {
		t.Run(limit.String(), func(t *testing.T) {
			dir := stateDir(t)
			l, e := quick(t, dir), engine(t, shop())
			s, err := l.CreateSession(context.Background(), ledger.Terms{Agent: "bot", AllScopes: true, SpendLimit: &limit})
			if err != nil {
				t.Fatal(err)
			}
			other := quick(t, dir)
			got, err := other.Session(context.Background(), ledger.Use{ID: s.ID})
			if err != nil {
				t.Fatal(err)
			}
			if got.Limit == nil || *got.Limit != limit {
				t.Fatalf("the limit is %v, want %s", got.Limit, limit)
			}
			if list, err := other.Sessions(context.Background()); err != nil || len(list) != 1 {
				t.Errorf("Sessions: %v %v", list, err)
			}
			// And it limits: a call of the limit passes (if it is any money, and no
			// more than the rules of the shop let through), the next does not.
			a := pay(s.ID, "99")
			a.Use.Terms = nil
			_, d := reserve(t, other, a, e)
			if want := limit >= 99*policy.USD; (d.Verdict == policy.Allow) != want {
				t.Errorf("$99 under a limit of %s: %v: %s", limit, d.Verdict, d.Reason)
			}
		})
	}
}

func TestNoLimitAndALimitOfZeroAreTwoThings(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	a := pay("ses_a", "1")
	if _, d := reserve(t, l, a, e); d.Verdict != policy.Allow {
		t.Errorf("without a limit: %s", d.Reason)
	}
	a = pay("ses_b", "1")
	a.Use.Terms.SpendLimit = dollars(0)
	if _, d := reserve(t, l, a, e); d.Verdict != policy.Deny {
		t.Error("with a limit of zero: allowed")
	}
	a.Use.Terms = nil
	if _, d := reserve(t, l, a, e); d.Verdict != policy.Deny {
		t.Error("with the stored limit of zero: allowed")
	}
}

func TestACommandsSessionKeepsItsTerms(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, policy.Ruleset{})
	made, err := l.CreateSession(context.Background(), ledger.Terms{Agent: "fixed", Scopes: []string{"read", "execute"}, TTL: 2 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if made.Origin != ledger.OriginCommand {
		t.Errorf("%+v", made)
	}
	a := call(made.ID, "look", `{}`)
	a.Use.Terms = &ledger.Terms{Agent: "from the config", SpendLimit: dollars(1), Scopes: []string{}}
	ticket, d := reserve(t, l, a, e)
	if d.Verdict != policy.Allow {
		t.Errorf("the config's terms were applied: %s", d.Reason)
	}
	if en := entry(t, l, ticket.Seq); en.AgentID != "fixed" {
		t.Errorf("recorded for %q", en.AgentID)
	}
	for _, u := range []ledger.Use{{ID: made.ID}, a.Use} {
		if diff := cmp.Diff(made, session(t, l, u)); diff != "" {
			t.Errorf("changed: %s", diff)
		}
	}
}

func TestARevokedSessionIsRefusedByEveryProcess(t *testing.T) {
	dir := stateDir(t)
	l, other, e := quick(t, dir), quick(t, dir), engine(t, shop())
	ctx, a := context.Background(), call("ses_a", "look", `{}`)
	running, _ := reserve(t, l, a, e)
	if _, err := other.Revoke(ctx, "ses_nobody", false); !errors.Is(err, ledger.ErrNoSession) {
		t.Errorf("revoking what is not there: %v", err)
	}
	first, err := other.Revoke(ctx, "ses_a", false)
	if err != nil || first.RevokedAt.IsZero() {
		t.Fatalf("%+v %v", first, err)
	}
	again, err := l.Revoke(ctx, "ses_a", false)
	if err != nil || !again.RevokedAt.Equal(first.RevokedAt) {
		t.Errorf("revoked again: %+v %v", again, err)
	}
	// Terms from the config must not bring it back.
	for _, terms := range []*ledger.Terms{nil, a.Use.Terms, {Agent: "other", AllScopes: true}} {
		b := a
		b.Use.Terms = terms
		if _, d := reserve(t, l, b, e); d.Verdict != policy.Deny || d.Policy != policy.PolicySession {
			t.Errorf("with terms %+v: %v %s", terms, d.Verdict, d.Reason)
		}
	}
	// Its running calls finish.
	l.Settle(running, ledger.Outcome{Result: ledger.Done})
	flush(t, l)
	if en := entry(t, other, running.Seq); en.Status != audit.StatusAllowed {
		t.Errorf("the running call is %s", en.Status)
	}
	if got := sessionEvents(t, l, "ses_a"); !cmp.Equal(got, []audit.Status{audit.StatusCreated, audit.StatusRevoked}) {
		t.Errorf("recorded: %v", got)
	}
	verify(t, l)
}

// A session expires by the ledger's clock, which never runs backwards: turning
// the machine's clock back must not bring it to life.
func TestAnExpiredSessionStaysExpired(t *testing.T) {
	clock := newClock()
	l := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now})
	e := engine(t, shop())
	a := call("ses_a", "look", `{}`)
	a.Use.Terms.TTL = time.Hour
	for _, c := range []struct {
		step time.Duration
		want policy.Verdict
	}{{0, policy.Allow}, {time.Hour - 1, policy.Allow}, {1, policy.Deny}, {-time.Hour, policy.Deny}, {-24 * time.Hour, policy.Deny}} {
		clock.add(c.step)
		if _, d := reserve(t, l, a, e); d.Verdict != c.want {
			t.Errorf("at %v: %v %s", clock.now(), d.Verdict, d.Reason)
		}
	}
	verify(t, l)
}

// A window that has closed never opens again, whatever the clock does.
func TestAClockThatRunsBackwardsOpensNoWindow(t *testing.T) {
	clock := newClock()
	l := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now})
	e := engine(t, policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeRateLimit, MaxCalls: 2, Window: time.Minute}}})
	var last time.Time
	for i, c := range []struct {
		step time.Duration
		want policy.Verdict
	}{
		{0, policy.Allow},
		{30 * time.Second, policy.Allow},
		{29 * time.Second, policy.Deny},
		{-time.Hour, policy.Deny},
		{time.Hour, policy.Deny},
		{time.Second, policy.Allow},
		{-10 * time.Minute, policy.Allow},
		{0, policy.Deny},
		{11*time.Minute - time.Second, policy.Deny},
		{time.Second, policy.Allow}, // a minute after the window opened
	} {
		clock.add(c.step)
		ticket, d := reserve(t, l, call("ses_a", "look", `{}`), e)
		if d.Verdict != c.want {
			t.Errorf("step %d: %v, want %v: %s", i, d.Verdict, c.want, d.Reason)
		}
		en := entry(t, l, ticket.Seq)
		if en.Timestamp.Before(last) {
			t.Errorf("step %d: recorded at %v, before %v", i, en.Timestamp, last)
		}
		last = en.Timestamp
	}
	verify(t, l)
}

// What a call used counts in the window in which it was admitted, and nowhere
// else: one that comes back after the window has passed touches no later one.
func TestASettlementAfterItsWindowTouchesNoLaterOne(t *testing.T) {
	for _, result := range []ledger.Result{ledger.NotSent, ledger.Done} {
		clock := newClock()
		l := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now})
		e := engine(t, policy.Ruleset{
			Costs: []policy.Cost{{Tools: []string{"ask"}, USD: 2 * policy.USD, FromResult: "/cost"}},
			Policies: []policy.Rule{
				{Type: policy.TypeRateLimit, MaxCalls: 2, Window: time.Minute},
				{Type: policy.TypeSpendLimit, MaxUSD: 5 * policy.USD, Per: policy.PerHour},
			},
		})
		a := call("ses_a", "ask", `{}`)
		early, _ := reserve(t, l, a, e)
		clock.add(time.Hour)
		reserve(t, l, a, e)
		actual := policy.Micros(1)
		l.Settle(early, ledger.Outcome{Result: result, Actual: &actual})
		flush(t, l)
		sp := spent(t, l, a.Use, e)
		if sp.Used[0] != 2*policy.USD {
			t.Errorf("%v: the new hour has %s used, want $2.00", result, sp.Used[0])
		}
		for i, want := range []policy.Verdict{policy.Allow, policy.Deny} {
			if _, d := reserve(t, l, a, e); d.Verdict != want {
				t.Errorf("%v: call %d of the new window: %v %s", result, i+2, d.Verdict, d.Reason)
			}
		}
		// The session's own total has no window and is corrected all the same.
		want := 4*policy.USD + actual
		if result == ledger.NotSent {
			want = 4 * policy.USD
		}
		if sp := spent(t, l, a.Use, e); sp.Total != want {
			t.Errorf("%v: the session has spent %s, want %s", result, sp.Total, want)
		}
	}
}

// Check decides exactly as Reserve would, and leaves nothing.
func TestCheckReservesNothing(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	a := pay("ses_a", "60")
	reserve(t, l, call("ses_a", "look", `{}`), e)
	n := verify(t, l)
	for range 3 {
		if _, d, err := l.Check(context.Background(), a.Use, a.Call, e); err != nil || d.Verdict != policy.Allow || d.Cost != 60*policy.USD {
			t.Fatalf("%+v %v", d, err)
		}
	}
	if again := verify(t, l); again != n {
		t.Errorf("%d records appeared", again-n)
	}
	reserve(t, l, a, e)
	if _, d, err := l.Check(context.Background(), a.Use, a.Call, e); err != nil || d.Verdict != policy.Deny {
		t.Fatalf("%+v %v", d, err)
	}
}

func TestACatalogueComesBackAsItWasSaved(t *testing.T) {
	dir := stateDir(t)
	l, other, ctx := quick(t, dir), quick(t, dir), context.Background()
	if raw, err := l.LoadCatalogue(ctx, "files"); err != nil || raw != nil {
		t.Errorf("before: %q %v", raw, err)
	}
	for _, want := range []string{`{"tools":[]}`, `{"tools":[1]}`, `{"tools":[1]}`} {
		if err := l.SaveCatalogue(ctx, "files", []byte(want)); err != nil {
			t.Fatal(err)
		}
		if raw, err := other.LoadCatalogue(ctx, "files"); err != nil || string(raw) != want {
			t.Errorf("got %q %v, want %q", raw, err, want)
		}
	}
}
