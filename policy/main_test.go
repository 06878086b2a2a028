package policy_test

import (
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the tables name zones that a bare machine does not have

	"github.com/haldir-mcp/haldir/policy"
)

func TestMain(m *testing.M) {
	// A failing property prints its smallest counter-example; it must neither
	// leave files in the tree nor spend half a minute on looking for it.
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
	Fatalf(format string, args ...any)
}

// noon is a Tuesday.
var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func compile(t tb, rs policy.Ruleset) *policy.Engine {
	t.Helper()
	e, err := policy.Compile(rs)
	if err != nil {
		t.Fatalf("Compile: %v", err)
	}
	return e
}

func rules(rs ...policy.Rule) policy.Ruleset { return policy.Ruleset{Policies: rs} }

// call makes a call of the tool with the canonical id.
func call(id, args string) policy.Call {
	upstream, tool, _ := strings.Cut(id, "/")
	c := policy.Call{Session: "ses_1", Agent: "bot", Upstream: upstream, Tool: tool}
	if args != "" {
		c.Arguments = json.RawMessage(args)
	}
	return c
}

// free is the state in which nothing but the policies speaks against a call.
func free() policy.State {
	return policy.State{Now: noon, Session: policy.SessionState{ID: "ses_1", AllScopes: true}}
}

func at(now time.Time) policy.State {
	s := free()
	s.Now = now
	return s
}

func zone(t tb, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return loc
}

func instant(t tb, s string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return v
}

func dollars(m policy.Micros) *policy.Micros { return &m }

// costs is the price list of most tests: pay/* costs what its argument says.
func costs() []policy.Cost {
	return []policy.Cost{{Tools: []string{"pay/*"}, HasFromArgument: true, FromArgument: "/amount"}}
}

func cents() []policy.Cost {
	return []policy.Cost{{Tools: []string{"pay/*"}, HasFromArgument: true, FromArgument: "/amount", Cents: true}}
}

// book keeps counters the way the ledger does, so that a test can let calls
// follow each other.
type book map[policy.CounterKey]policy.Counter

// state loads only what Reads names: what Decide looks at besides is a bug that
// the ledger would suffer from.
func (b book) state(e *policy.Engine, c policy.Call, s policy.State) policy.State {
	s.Used = map[policy.CounterKey]policy.Counter{}
	for _, k := range e.Reads(c) {
		if v := b[k]; v != (policy.Counter{}) {
			s.Used[k] = v
		}
	}
	return s
}

func (b book) decide(e *policy.Engine, c policy.Call, s policy.State) policy.Decision {
	d := e.Decide(c, b.state(e, c, s))
	for _, h := range d.Holds {
		v := b[h.Key]
		if !v.Start.Equal(h.Start) {
			v = policy.Counter{}
		}
		v.Value += h.Amount
		// On disk a start is nanoseconds in UTC; its zone is lost.
		v.Start = time.Time{}
		if !h.Start.IsZero() {
			v.Start = time.Unix(0, h.Start.UnixNano()).UTC()
		}
		b[h.Key] = v
	}
	return d
}

// seen is the gist of a decision: its verdict, the policies of its findings in
// order, shadow ones in brackets.
func seen(d policy.Decision) string {
	var out []string
	if d.Policy != "" {
		out = append(out, d.Policy)
	}
	for _, f := range d.Also {
		if f.Shadow {
			out = append(out, "("+f.Policy+")")
		} else {
			out = append(out, f.Policy)
		}
	}
	return strings.TrimSpace(d.Verdict.String() + " " + strings.Join(out, " "))
}

// outcome evaluates a condition through a deny rule: "true", "false", or why it
// is undecided.
func outcome(t tb, when, args string) (string, policy.Decision) {
	t.Helper()
	e := compile(t, rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, When: when, ID: "it"}))
	d := e.Decide(call("files/write", args), free())
	switch {
	case d.Verdict == policy.Allow:
		return "false", d
	case d.Policy == "deny":
		return "true", d
	}
	return "undecided", d
}
