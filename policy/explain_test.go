package policy_test

import (
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/policy"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The lines are what Decide has found, neither more nor less, and one of them is
// the one that it reports.
func TestExplainAgreesWithDecide(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := randomWorld(t)
		want := w.engine.Decide(w.call, w.state)
		got, lines := w.engine.Explain(w.call, w.state)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("Explain decides otherwise: %s", diff)
		}
		key := func(policy, rule, reason string, shadow bool) string {
			return strings.Join([]string{policy, rule, reason, map[bool]string{true: "shadow"}[shadow]}, "|")
		}
		var found, said []string
		if want.Verdict != policy.Allow {
			found = append(found, key(want.Policy, want.Rule, want.Reason, false))
		}
		for _, f := range want.Also {
			found = append(found, key(f.Policy, f.Rule, f.Reason, f.Shadow))
		}
		decides, rules := 0, []string{}
		for _, l := range lines {
			if !l.Applies && !l.Passes {
				t.Fatalf("%+v does not apply and refuses", l)
			}
			if !l.Passes {
				said = append(said, key(l.Policy, l.Rule, l.Why, l.Shadow))
			}
			if l.Decides {
				decides++
				if l.Policy != want.Policy || l.Rule != want.Rule || l.Why != want.Reason || l.Passes || l.Shadow {
					t.Fatalf("%+v is said to decide, but it is %+v", l, want)
				}
			}
			rules = append(rules, l.Rule)
		}
		slices.Sort(found)
		slices.Sort(said)
		if diff := cmp.Diff(found, said); diff != "" {
			t.Fatalf("Decide has found, the lines say: %s", diff)
		}
		if (decides == 1) != (want.Verdict != policy.Allow) {
			t.Fatalf("%d lines decide of %+v", decides, want)
		}
		if n := len(w.engine.Rules()); !slices.Equal(rules[2:2+n], w.engine.Rules()) {
			t.Fatalf("the lines are of %q, the rules are %q", rules, w.engine.Rules())
		}
	})
}

// What a line promises comes true: after so many more calls it refuses and not
// before; at that time it says otherwise.
func TestExplainPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { promises(t, randomWorld(t)) })
	// Random worlds may hold no promise at all; these, which are always the same, do.
	kept := 0
	worlds := rapid.Custom(randomWorld)
	for seed := range 300 {
		kept += promises(t, worlds.Example(seed))
	}
	if kept < 20 {
		t.Errorf("only %d promises were looked at", kept)
	}
}

// promises checks what the lines of a call promise, and returns how much that was.
func promises(t tb, w world) (kept int) {
	line := func(s policy.State, i int) policy.Line {
		_, lines := w.engine.Explain(w.call, s)
		return lines[i]
	}
	_, lines := w.engine.Explain(w.call, w.state)
	for i, l := range lines {
		if l.FlipsAfter > 0 && l.FlipsAfter < 10 && l.Passes {
			s := w.state
			s.Used = map[policy.CounterKey]policy.Counter{}
			for k, v := range w.state.Used {
				s.Used[k] = v
			}
			for n := range l.FlipsAfter + 1 {
				now := line(s, i)
				if now.Passes != (n < l.FlipsAfter) {
					t.Fatalf("%s said %q, but after %d calls it passes: %t", l.Rule, l.Flips, n, now.Passes)
				}
				d := w.engine.Decide(w.call, policy.State{Now: s.Now, Session: policy.SessionState{ID: w.call.Session, AllScopes: true}, Used: s.Used})
				if d.Verdict != policy.Allow { // another rule holds the calls up, so none is counted
					break
				}
				for _, h := range d.Holds {
					c := s.Used[h.Key]
					if c.Start.Before(h.Start) {
						c = policy.Counter{Start: h.Start}
					}
					if c.Value > 1<<62 {
						return kept
					}
					c.Value += h.Amount
					s.Used[h.Key] = c
				}
				kept++
			}
		}
		if l.Policy == string(policy.TypeTimeWindow) && !l.FlipsAt.IsZero() && !slices.ContainsFunc(w.rules.Policies, func(r policy.Rule) bool { return strings.Contains(r.When, "now") }) {
			s := w.state
			s.Now = l.FlipsAt
			if line(s, i).Passes == l.Passes {
				t.Fatalf("%s said %q, but then it says the same", l.Rule, l.Flips)
			}
			kept++
		}
		if !l.Passes && !l.FlipsAt.IsZero() && l.Policy != string(policy.TypeTimeWindow) {
			s := w.state
			s.Now = l.FlipsAt
			if now := line(s, i); !now.Passes && now.Value == l.Value {
				t.Fatalf("%s said %q, but then it refuses: %+v", l.Rule, l.Flips, now)
			}
			kept++
		}
	}
	return kept
}

// What is said to be regardless of the arguments is.
func TestExplainKnowsWhatReadsArguments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := randomWorld(t)
		_, lines := w.engine.Explain(w.call, w.state)
		other := w.call
		other.Arguments = json.RawMessage(pick(t, "other", someArguments))
		_, others := w.engine.Explain(other, w.state)
		for i := range lines {
			a, b := lines[i], others[i]
			if i >= len(others) || a.Policy == policy.PolicyCost || !a.Regardless() || !b.Regardless() {
				continue
			}
			a.Decides, b.Decides = false, false
			a.Flips, b.Flips, a.FlipsAfter, b.FlipsAfter = "", "", 0, 0
			if a.Passes != b.Passes || a.Applies != b.Applies {
				t.Fatalf("with other arguments %+v becomes %+v", a, b)
			}
		}
	})
}

// TestExplainGolden shows the lines of one call in the words that people read.
func TestExplainGolden(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	e := compile(t, policy.Ruleset{
		Costs:  []policy.Cost{{Tools: []string{"pay/*"}, FromArgument: "/amount", HasFromArgument: true}, {Tools: []string{"search"}, USD: 4000}},
		Scopes: []policy.Scope{{Tools: []string{"pay/*"}, Require: []string{"admin", "spend"}}},
		Policies: []policy.Rule{
			{Type: policy.TypeAllow, Tools: []string{"pay/*", "search"}},
			{Type: policy.TypeDeny, Tools: []string{"delete_*"}},
			{Type: policy.TypeDeny, ID: "dear", When: "args.amount > 20", Tools: []string{"pay/*"}},
			{Type: policy.TypeDeny, ID: "odd", Shadow: true, When: "args.nothing == 1", Tools: []string{"pay/*"}},
			{Type: policy.TypeRateLimit, MaxCalls: 5, Window: time.Hour},
			{Type: policy.TypeRateLimit, ID: "fresh", MaxCalls: 1, Window: time.Minute, Per: policy.PerTool},
			{Type: policy.TypeSpendLimit, MaxUSD: 50 * policy.USD, Per: policy.PerDay, Location: berlin},
			{Type: policy.TypeSpendLimit, ID: "all", MaxUSD: 10 * policy.USD, Per: policy.PerTotal},
			{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: 9 * 60, End: 17 * 60}, Location: berlin},
			{Type: policy.TypeTimeWindow, ID: "night", Hours: &policy.Hours{Start: 22 * 60, End: 6 * 60}, Location: berlin},
			{Type: policy.TypeDeny, ID: "others", Agents: []string{"root"}},
			{Type: policy.TypeDeny, ID: "elsewhere", Upstreams: []string{"files"}},
			{Type: policy.TypeDeny, ID: "prompts", Tools: []string{"prompt:pay/*"}},
		},
	})
	c := call("pay/charge", `{"amount":"4.5"}`)
	s := free()
	s.Session = policy.SessionState{ID: "ses_1", Scopes: []string{"execute", "admin"}, SpendLimit: dollars(20 * policy.USD), ExpiresAt: noon.Add(time.Hour)}
	s.Used = map[policy.CounterKey]policy.Counter{}
	for _, k := range e.Reads(c) {
		switch {
		case strings.HasPrefix(k.Counter, "rate:#"):
			s.Used[k] = policy.Counter{Start: noon.Add(-20 * time.Minute), Value: 2}
		case strings.HasPrefix(k.Counter, "spend:#"):
			s.Used[k] = policy.Counter{Start: noon.Add(-20 * time.Minute), Value: 12_500_000}
		case k.Counter == "spend:id:all:total:0s:":
			s.Used[k] = policy.Counter{Value: 9_000_000}
		case k.Counter == policy.CounterSessionSpend:
			s.Used[k] = policy.Counter{Value: 1}
		}
	}
	_, lines := e.Explain(c, s)
	got, err := json.MarshalIndent(lines, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/explain.golden"
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
		t.Error(diff)
	}
}
