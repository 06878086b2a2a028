package replay_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/replay"
	"github.com/haldir-mcp/haldir/policy"
)

func TestMain(m *testing.M) {
	for name, value := range map[string]string{"rapid.nofailfile": "true", "rapid.shrinktime": "1s"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// tb is what testing.T and rapid.T have in common.
type tb interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func compile(t tb, rs policy.Ruleset) *policy.Engine {
	t.Helper()
	e, err := policy.Compile(rs)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// past is a ledger in which calls are made.
type past struct {
	t      tb
	l      *ledger.Ledger
	now    time.Time
	engine *policy.Engine
	terms  ledger.Terms
	detail audit.Detail
}

// begin makes a past that is under the given rules.
func begin(t tb, dir string, rs policy.Ruleset) (*past, func()) {
	p := &past{
		t: t, now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), engine: compile(t, rs),
		terms: ledger.Terms{Agent: "bot", AllScopes: true}, detail: audit.DetailFull,
	}
	var err error
	p.l, err = ledger.Open(ledger.Options{Dir: dir, NoSync: true, Clock: func() time.Time { return p.now }, Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	return p, func() {
		if err := p.l.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

// call makes a call, which is over at once with the outcome, if it is let through.
func (p *past) call(session, id, args string, out *ledger.Outcome) policy.Decision {
	p.t.Helper()
	upstream, tool, _ := strings.Cut(id, "/")
	a := ledger.Attempt{
		Use:  ledger.Use{ID: session, Terms: &p.terms},
		Call: policy.Call{Upstream: upstream, Tool: tool, Arguments: json.RawMessage(args)},
		Body: audit.NewBody(json.RawMessage(args), p.detail, nil),
	}
	ticket, d, err := p.l.Reserve(context.Background(), a, p.engine)
	if err != nil {
		p.t.Fatal(err)
	}
	if d.Verdict == policy.Allow && out != nil {
		p.l.Settle(ticket, *out)
		if err := p.l.Flush(context.Background()); err != nil {
			p.t.Fatal(err)
		}
	}
	return d
}

var done = &ledger.Outcome{Result: ledger.Done}

// sessions are what the ledger knows of them.
func (p *past) sessions() map[string]replay.Session {
	list, err := p.l.Sessions(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	all := map[string]replay.Session{}
	for _, s := range list {
		all[s.ID] = replay.Session{State: s.State(), Created: s.Created, RevokedAt: s.RevokedAt, Config: s.Origin == ledger.OriginConfig}
	}
	return all
}

// replay asks what other rules would have made of it.
func (p *past) replay(o replay.Options) replay.Report {
	p.t.Helper()
	if o.Sessions == nil {
		o.Sessions = p.sessions()
	}
	o.Examples = 3
	r := replay.New(o)
	if _, _, err := p.l.Walk(context.Background(), 1, r.Add); err != nil {
		p.t.Fatal(err)
	}
	return r.Report()
}

// Whatever was decided is decided again by the same rules: the counters that the
// replay rebuilds are those that the ledger had.
func TestTheSameRulesChangeNothing(t *testing.T) {
	dirs, n := t.TempDir(), 0
	denied, spent := uint64(0), policy.Micros(0)
	rapid.Check(t, func(t *rapid.T) {
		n++
		rs := policy.Ruleset{
			Costs: []policy.Cost{
				{Tools: []string{"pay"}, FromArgument: "/amount", HasFromArgument: true},
				{Tools: []string{"llm"}, USD: 2 * policy.USD, FromResult: "/cost"},
				{Tools: []string{"ask"}, USD: policy.USD / 2},
			},
			Policies: []policy.Rule{
				{Type: policy.TypeDeny, Tools: []string{"pay"}, When: "args.amount > 3.0"},
				{Type: policy.TypeRateLimit, MaxCalls: rapid.Int64Range(1, 5).Draw(t, "calls"), Window: time.Minute, Per: rapid.SampledFrom([]string{policy.PerTotal, policy.PerSession, policy.PerTool}).Draw(t, "per")},
				{Type: policy.TypeSpendLimit, MaxUSD: policy.Micros(rapid.Int64Range(1, 9).Draw(t, "usd")) * policy.USD, Per: rapid.SampledFrom([]string{policy.PerSession, policy.PerTotal, policy.PerHour}).Draw(t, "per")},
				{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: 11 * 60, End: 13*60 + rapid.IntRange(0, 200).Draw(t, "end")}},
			},
		}
		p, end := begin(t, filepath.Join(dirs, fmt.Sprint(n)), rs)
		defer end()
		if rapid.Bool().Draw(t, "limited") {
			limit := 4 * policy.USD
			p.terms.SpendLimit = &limit
		}
		if rapid.Bool().Draw(t, "mortal") {
			p.terms.TTL = 20 * time.Minute
		}
		for range rapid.IntRange(1, 25).Draw(t, "calls") {
			p.now = p.now.Add(time.Duration(rapid.Int64Range(0, int64(10*time.Minute)).Draw(t, "pause")))
			out := done
			switch rapid.IntRange(0, 5).Draw(t, "outcome") {
			case 0:
				actual := policy.Micros(rapid.Int64Range(0, 3).Draw(t, "actual")) * policy.USD
				out = &ledger.Outcome{Result: ledger.Done, Actual: &actual}
			case 1:
				out = nil // it runs on
			case 2:
				out = &ledger.Outcome{Result: ledger.Failed}
			}
			tool := rapid.SampledFrom([]string{"shop/pay", "shop/llm", "shop/ask", "shop/look"}).Draw(t, "tool")
			if tool != "shop/llm" && out != nil && out.Actual != nil {
				out = done // only a rule with from_result learns what was paid
			}
			args := rapid.SampledFrom([]string{`{"amount":1}`, `{"amount":2.5}`, `{"amount":4}`, `{}`}).Draw(t, "args")
			p.call(rapid.SampledFrom([]string{"ses_a", "ses_b"}).Draw(t, "session"), tool, args, out)
		}
		r := p.replay(replay.Options{Engine: p.engine})
		if r.NewlyDenied+r.NewlyAllowed+r.NewlyAsked+r.Undecided+r.Unreported+r.NotJudged > 0 || r.SpendRecorded != r.SpendThen {
			t.Fatalf("the same rules change: %+v", r)
		}
		denied += r.StillDenied
		spent += r.SpendThen
	})
	if denied < 50 || spent == 0 {
		t.Errorf("only %d calls were denied, %s spent", denied, spent)
	}
}

// What other rules would have changed is counted and shown by rule.
func TestOtherRules(t *testing.T) {
	p, end := begin(t, filepath.Join(t.TempDir(), "state"), policy.Ruleset{
		Costs:    []policy.Cost{{Tools: []string{"ask"}, USD: policy.USD}},
		Policies: []policy.Rule{{Type: policy.TypeDeny, ID: "old", Tools: []string{"drop"}}},
	})
	defer end()
	for range 4 {
		p.now = p.now.Add(time.Minute)
		p.call("ses_a", "shop/ask", `{"q":"x"}`, done)
	}
	p.call("ses_a", "shop/drop", `{}`, done)
	p.call("ses_b", "shop/look", ``, done)
	if _, err := p.l.Revoke(context.Background(), "ses_b", false); err != nil {
		t.Fatal(err)
	}
	p.now = p.now.Add(time.Minute)
	p.call("ses_b", "shop/look", ``, done)
	unknown := ledger.Attempt{Use: ledger.Use{ID: "ses_a"}, Refused: &policy.Finding{Policy: "unknown_tool", Rule: "unknown_tool", Reason: "There is no tool 'x'"}}
	if _, _, err := p.l.Reserve(context.Background(), unknown, p.engine); err != nil {
		t.Fatal(err)
	}

	r := p.replay(replay.Options{Engine: compile(t, policy.Ruleset{
		Costs: []policy.Cost{{Tools: []string{"ask"}, USD: 2 * policy.USD}, {Tools: []string{"drop"}, USD: 3 * policy.USD}},
		Policies: []policy.Rule{
			{Type: policy.TypeSpendLimit, ID: "budget", MaxUSD: 4 * policy.USD, Per: policy.PerDay},
			{Type: policy.TypeDeny, ID: "looking", Tools: []string{"look"}, Shadow: true},
		},
	})})
	want := replay.Report{
		Since: p.now.Add(-4 * time.Minute), Until: p.now, Calls: 7, StillAllowed: 3, StillDenied: 2, NewlyDenied: 2, NotJudged: 1,
		SpendRecorded: 4 * policy.USD, SpendThen: 4 * policy.USD,
		Rules: []replay.RuleCount{
			{Policy: "spend_limit", Rule: "budget", Denied: 3, NewlyDenied: 2},
			{Policy: "session", Rule: "revoked", Denied: 1},
			{Policy: "deny", Rule: "looking", Shadow: 2},
		},
	}
	for _, e := range r.Examples {
		if e.Change != replay.NewlyDenied || e.Rule != "budget" || e.Tool != "shop/ask" || e.Was != audit.StatusAllowed || !strings.Contains(e.Reason, "Spend limit of $4.00") {
			t.Errorf("the example %+v", e)
		}
	}
	if len(r.Examples) != 2 {
		t.Errorf("%d examples", len(r.Examples))
	}
	r.Examples = nil
	if diff := cmp.Diff(want, r); diff != "" {
		t.Error(diff)
	}

	// No rules at all: what was denied is allowed, but not in a session that is revoked.
	r = p.replay(replay.Options{Engine: compile(t, policy.Ruleset{})})
	if r.NewlyAllowed != 1 || r.StillDenied != 1 || r.SpendThen != 0 || r.Examples[0].Rule != "old" || r.Examples[0].Change != replay.NewlyAllowed {
		t.Errorf("%+v", r)
	}
	// The terms of a new config, for the sessions that follow it.
	zero := policy.Micros(0)
	r = p.replay(replay.Options{Engine: p.engine, Terms: &replay.Terms{AllScopes: true, SpendLimit: &zero}})
	if r.NewlyDenied != 4 || r.Rules[0].Rule != policy.PolicySession {
		t.Errorf("%+v", r)
	}
	// One session is reported, all count.
	r = p.replay(replay.Options{Engine: p.engine, Session: "ses_b"})
	if r.Calls != 2 || r.SpendRecorded != 0 {
		t.Errorf("%+v", r)
	}
}

// Where the arguments are not on record, the report says what it does not know, and
// knows what does not depend on them.
func TestArgumentsThatAreNotOnRecord(t *testing.T) {
	for _, detail := range []audit.Detail{audit.DetailRedacted, audit.DetailDigest} {
		p, end := begin(t, filepath.Join(t.TempDir(), "state"), policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"pay"}, FromArgument: "/amount", HasFromArgument: true}}})
		p.detail = detail
		secret := `{"amount":2,"password":"hunter2hunter2"}`
		for range 3 {
			p.call("ses_a", "shop/pay", secret, done)
		}
		p.call("ses_a", "shop/look", secret, done)
		p.call("ses_a", "shop/pay", `{"amount":1}`, done)

		// A condition, and a cost, that reads them.
		r := p.replay(replay.Options{Engine: compile(t, policy.Ruleset{
			Costs: []policy.Cost{{Tools: []string{"pay"}, FromArgument: "/amount", HasFromArgument: true}},
			Policies: []policy.Rule{
				{Type: policy.TypeSpendLimit, MaxUSD: 6 * policy.USD, Per: policy.PerTotal},
				{Type: policy.TypeDeny, Tools: []string{"look"}, When: `has(args.force)`},
				{Type: policy.TypeDeny, Tools: []string{"pay"}, When: `has(args.force)`, Shadow: true},
			},
		})})
		want := replay.Report{Calls: 5, Undecided: 4, NewlyDenied: 1}
		if detail == audit.DetailDigest {
			want = replay.Report{Calls: 5, Undecided: 5}
		}
		if r.Calls != want.Calls || r.Undecided != want.Undecided || r.NewlyDenied != want.NewlyDenied || r.StillAllowed != want.StillAllowed {
			t.Errorf("%s: %+v", detail, r)
		}
		// What they cost then counts: the last call finds the limit used up.
		if detail == audit.DetailRedacted && (r.SpendRecorded != 7*policy.USD || r.SpendThen != 6*policy.USD) {
			t.Errorf("%s: spent %s, then %s", detail, r.SpendRecorded, r.SpendThen)
		}

		// Rules that read none of it decide about all of it, and so does a denial beside
		// one that does.
		r = p.replay(replay.Options{Engine: compile(t, policy.Ruleset{Policies: []policy.Rule{
			{Type: policy.TypeDeny, Tools: []string{"pay"}, When: `args.amount > 1`},
			{Type: policy.TypeDeny, ID: "all", Tools: []string{"pay"}},
		}})})
		if r.Undecided != 0 || r.StillAllowed != 1 || r.NewlyDenied != 4 {
			t.Errorf("%s: %+v", detail, r)
		}
		end()
	}
}

// Whether a tool only reads is not on record; where it would matter, nothing is said.
func TestAnnotationsAreNotOnRecord(t *testing.T) {
	p, end := begin(t, filepath.Join(t.TempDir(), "state"), policy.Ruleset{})
	defer end()
	p.call("ses_a", "shop/look", `{}`, done)
	trusted := func(name string) bool { return name == "shop" }
	o := replay.Options{Engine: p.engine, Terms: &replay.Terms{Scopes: []string{"read"}}, Trusted: trusted}
	if r := p.replay(o); r.Unreported != 1 || r.NewlyDenied != 0 {
		t.Errorf("%+v", r)
	}
	o.Trusted = nil
	if r := p.replay(o); r.NewlyDenied != 1 {
		t.Errorf("%+v", r)
	}
	o.Terms.Scopes, o.Trusted = []string{"read", "execute"}, trusted
	if r := p.replay(o); r.StillAllowed != 1 {
		t.Errorf("%+v", r)
	}
}

// A call that never left gives back what it had reserved, as it did then.
func TestWhatWasReturnedIsReturned(t *testing.T) {
	rs := policy.Ruleset{
		Costs:    []policy.Cost{{Tools: []string{"ask"}, USD: policy.USD}},
		Policies: []policy.Rule{{Type: policy.TypeSpendLimit, MaxUSD: policy.USD, Per: policy.PerTotal}, {Type: policy.TypeRateLimit, MaxCalls: 1, Window: time.Hour}},
	}
	p, end := begin(t, filepath.Join(t.TempDir(), "state"), rs)
	defer end()
	for range 3 {
		p.call("ses_a", "shop/ask", `{}`, &ledger.Outcome{Result: ledger.NotSent, Reason: "nobody listens"})
	}
	p.call("ses_a", "shop/ask", `{}`, done)
	p.call("ses_a", "shop/ask", `{}`, done)
	r := p.replay(replay.Options{Engine: p.engine})
	if r.StillAllowed != 4 || r.StillDenied != 1 || r.SpendThen != policy.USD || r.SpendRecorded != policy.USD {
		t.Errorf("%+v", r)
	}
}
