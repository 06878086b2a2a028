package policy_test

import (
	"encoding/json"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/policy"
)

// model is a second, naive decider: it keeps every admitted call and works out
// each limit anew from that list, with a calendar of formatted dates, matching
// by refPattern, and conditions written in Go.
type model struct {
	rules    policy.Ruleset
	limit    *policy.Micros
	admitted []admitted
}

type admitted struct {
	at   time.Time
	call policy.Call
	cost policy.Micros
}

// modelArguments are what the calls of the model carry.
type modelArguments struct {
	Amount *json.Number `json:"amount,omitempty"`
	Force  *bool        `json:"force,omitempty"`
}

// modelWhens are conditions in CEL and in Go: 1 true, 0 false, -1 undecidable.
var modelWhens = []struct {
	cel string
	is  func(c policy.Call, a modelArguments, cost policy.Micros) int
}{
	{"", func(policy.Call, modelArguments, policy.Micros) int { return 1 }},
	{`has(args.force) && args.force == true`, func(_ policy.Call, a modelArguments, _ policy.Micros) int {
		return truth(a.Force != nil && *a.Force)
	}},
	{`args.force == true`, func(_ policy.Call, a modelArguments, _ policy.Micros) int {
		if a.Force == nil {
			return -1
		}
		return truth(*a.Force)
	}},
	{`cost_usd > 1.0`, func(_ policy.Call, _ modelArguments, cost policy.Micros) int { return truth(cost > policy.USD) }},
	{`agent == "root" || args.force == true`, func(c policy.Call, a modelArguments, _ policy.Micros) int {
		if c.Agent == "root" {
			return 1
		}
		if a.Force == nil {
			return -1
		}
		return truth(*a.Force)
	}},
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (m *model) cost(t tb, c policy.Call) (cost policy.Micros, priced, ok bool) {
	for _, r := range m.rules.Costs {
		if !slices.ContainsFunc(r.Tools, func(p string) bool { return refPattern(p, c.Upstream, c.Tool) }) {
			continue
		}
		if !r.HasFromArgument {
			return r.USD, true, true
		}
		a := parseModelArguments(t, c)
		if a.Amount == nil {
			return 0, true, false
		}
		usd, ok := refUSD(a.Amount.String())
		return usd, true, ok
	}
	return 0, false, true
}

func parseModelArguments(t tb, c policy.Call) (a modelArguments) {
	if err := json.Unmarshal(c.Arguments, &a); err != nil {
		t.Fatalf("%v", err)
	}
	return a
}

// concerns reports whether r is about c at all: 1, 0, or -1 for undecidable. In
// an allow rule a tool that is not listed, or not under the condition, is 0.
func (m *model) concerns(t tb, r policy.Rule, c policy.Call) int {
	tools := slices.ContainsFunc(r.Tools, func(p string) bool { return refPattern(p, c.Upstream, c.Tool) })
	if r.Type != policy.TypeAllow {
		tools = tools || len(r.Tools) == 0
	}
	if !tools {
		return 0
	}
	cost, _, _ := m.cost(t, c)
	for _, w := range modelWhens {
		if w.cel == r.When {
			return w.is(c, parseModelArguments(t, c), cost)
		}
	}
	t.Fatalf("no such condition: %s", r.When)
	return 0
}

// together reports whether r counts two calls in one counter.
func together(per string, a, b policy.Call) bool {
	switch per {
	case policy.PerSession:
		return a.Session == b.Session
	case policy.PerAgent:
		return a.Agent == b.Agent
	case policy.PerTool:
		return a.Upstream == b.Upstream && a.Tool == b.Tool
	case policy.PerUpstream:
		return a.Upstream == b.Upstream
	}
	return true
}

// against returns the types of what speaks against the call, and when each
// stops to, zero for never.
func (m *model) against(t tb, c policy.Call, now time.Time) map[string]time.Time {
	out := map[string]time.Time{}
	add := func(name string, until time.Time) {
		if old, ok := out[name]; ok && (old.IsZero() || !until.IsZero() && old.After(until)) {
			return
		}
		out[name] = until
	}
	cost, priced, ok := m.cost(t, c)
	if !ok {
		add("cost", time.Time{})
	}
	for _, r := range m.rules.Policies {
		glob := func(list []string, s string) bool {
			return len(list) == 0 || slices.ContainsFunc(list, func(p string) bool { return refGlob([]rune(p), []rune(s)) })
		}
		if r.Shadow || !glob(r.Upstreams, c.Upstream) || !glob(r.Agents, c.Agent) {
			continue
		}
		is := m.concerns(t, r, c)
		if is < 0 {
			add("condition", time.Time{})
			continue
		}
		if r.Type == policy.TypeAllow {
			if is == 0 {
				add("allow", time.Time{})
			}
			continue
		}
		if is == 0 {
			continue
		}
		counted := func(yield func(admitted) bool) {
			for _, a := range m.admitted {
				per := r.Per
				if per == "" && r.Type == policy.TypeSpendLimit {
					per = policy.PerSession
				}
				if glob(r.Upstreams, a.call.Upstream) && glob(r.Agents, a.call.Agent) && m.concerns(t, r, a.call) == 1 && together(per, a.call, c) && !yield(a) {
					return
				}
			}
		}
		switch r.Type {
		case policy.TypeDeny:
			add("deny", time.Time{})
		case policy.TypeTimeWindow:
			if !refOpen(r, now) {
				until := now.Truncate(time.Minute)
				for !refOpen(r, until) {
					until = until.Add(time.Minute)
				}
				add("time_window", until)
			}
		case policy.TypeRateLimit:
			var start time.Time
			n := int64(0)
			for a := range counted {
				if start.IsZero() || a.at.Sub(start) >= r.Window {
					start, n = a.at, 0
				}
				n++
			}
			if start.IsZero() || now.Sub(start) >= r.Window {
				start, n = now, 0
			}
			if n >= r.MaxCalls {
				until := start.Add(r.Window)
				if r.MaxCalls == 0 {
					until = time.Time{}
				}
				add("rate_limit", until)
			}
		case policy.TypeSpendLimit:
			if !priced || cost == 0 {
				continue
			}
			sum := policy.Micros(0)
			for a := range counted {
				if refPeriod(r.Per, a.at, r.Location) == refPeriod(r.Per, now, r.Location) {
					sum += a.cost
				}
			}
			if sum+cost > r.MaxUSD {
				until := time.Time{}
				if refPeriod(r.Per, now, r.Location) != "" && cost <= r.MaxUSD {
					// Any later instant of another period would do for a month;
					// only hours and days are searched to the minute.
					until = now.Truncate(time.Minute)
					for refPeriod(r.Per, until, r.Location) == refPeriod(r.Per, now, r.Location) {
						until = until.Add(time.Minute)
					}
				}
				add("spend_limit", until)
			}
		}
	}
	if m.limit != nil && priced && cost > 0 {
		sum := policy.Micros(0)
		for _, a := range m.admitted {
			if a.call.Session == c.Session {
				sum += a.cost
			}
		}
		if sum+cost > *m.limit {
			add("spend_limit", time.Time{})
		}
	}
	return out
}

// otherWindows reports whether RetryAt may have to wait for a window that is
// open now.
func otherWindows(rs policy.Ruleset) bool {
	n := 0
	for _, r := range rs.Policies {
		if r.Type == policy.TypeTimeWindow && !r.Shadow {
			n++
		}
	}
	return n > 0 && len(rs.Policies) > 1
}

// No limit is ever overshot, and none refuses what it has room for: a story of
// calls is decided by the engine and a book of counters, and by the model.
func TestAStoryOfCallsIsDecidedAsTheModelDoes(t *testing.T) {
	zones := make([]*time.Location, len(someZones))
	for i, name := range someZones {
		zones[i] = zone(t, name)
	}
	whens := make([]string, len(modelWhens))
	for i, w := range modelWhens {
		whens[i] = w.cel
	}
	rapid.Check(t, func(t *rapid.T) {
		m := &model{rules: policy.Ruleset{Costs: []policy.Cost{
			{Tools: []string{"pay/charge"}, HasFromArgument: true, FromArgument: "/amount"}, {Tools: []string{"delete*"}, USD: policy.USD}, {Tools: []string{"files/charge"}},
		}}}
		for range rapid.IntRange(1, 5).Draw(t, "rules") {
			r := randomRule(t)
			r.When = whens[0]
			if rapid.IntRange(0, 2).Draw(t, "conditional") == 0 {
				r.When = pick(t, "when", whens)
			}
			if r.Type == policy.TypeDeny && len(r.Tools)+len(r.Upstreams)+len(r.Agents) == 0 && r.When == "" {
				r.Tools = []string{"read"}
			}
			if r.Type == policy.TypeAllow && len(r.Tools) == 0 {
				r.Tools = []string{"*"}
			}
			if r.Window == math.MaxInt64 {
				r.Window = time.Hour * 100
			}
			if r.Location != nil {
				r.Location = zones[rapid.IntRange(0, len(zones)-1).Draw(t, "location")]
			}
			m.rules.Policies = append(m.rules.Policies, r)
		}
		if rapid.IntRange(0, 3).Draw(t, "limited") == 0 {
			m.limit = dollars(policy.Micros(rapid.Int64Range(0, 8).Draw(t, "limit")) * policy.USD)
		}
		e := compile(t, m.rules)
		b := book{}
		// Around a change of the clocks, one in the north and one in the south.
		now := instant(t, pick(t, "from", []string{"2026-03-07T22:11:00Z", "2026-10-24T20:30:00Z", "2026-10-31T22:00:00Z", "2026-04-04T13:00:00Z", "2026-11-29T11:59:59.5Z"}))
		for range rapid.IntRange(1, 15).Draw(t, "calls") {
			c := policy.Call{Session: pick(t, "session", someSessions), Agent: pick(t, "agent", someAgents), Upstream: pick(t, "upstream", someUpstreams), Tool: pick(t, "tool", someTools)}
			c.Arguments = json.RawMessage(pick(t, "arguments", []string{
				`{"amount":1}`, `{"amount":2.5}`, `{"amount":0}`, `{"amount":1,"force":true}`, `{"amount":4,"force":false}`, `{"force":false}`, `{"amount":0.0000001,"force":true}`,
			}))
			s := policy.State{Now: now, Session: policy.SessionState{ID: c.Session, AllScopes: true, SpendLimit: m.limit}}
			want := m.against(t, c, now)
			d := b.decide(e, c, s)
			got := map[string]bool{}
			if d.Policy != "" {
				got[d.Policy] = true
			}
			for _, f := range d.Also {
				if !f.Shadow {
					got[f.Policy] = true
				}
			}
			if (d.Verdict == policy.Allow) != (len(want) == 0) || len(got) != len(want) {
				t.Fatalf("at %v %s %s: %s\nthe model says %v\nafter %+v", now, c.ID(), c.Arguments, seen(d), want, m.admitted)
			}
			until, permanent := time.Time{}, false
			for name, u := range want {
				if !got[name] {
					t.Fatalf("at %v %s %s: %s\nthe model says %v", now, c.ID(), c.Arguments, seen(d), want)
				}
				permanent = permanent || u.IsZero()
				if u.After(until) {
					until = u
				}
			}
			// What at that time speaks against the call besides is another test's.
			lone := 1
			for _, f := range d.Also {
				if !f.Shadow {
					lone++
				}
			}
			if lone == 1 && len(want) == 1 && !otherWindows(m.rules) && !permanent && !d.RetryAt.Equal(until) || permanent && !d.RetryAt.IsZero() {
				t.Fatalf("at %v %s %s: %s\nRetryAt %v, the model says %v %v", now, c.ID(), c.Arguments, seen(d), d.RetryAt, until, want)
			}
			if d.Verdict == policy.Allow {
				cost, _, _ := m.cost(t, c)
				if d.Cost != cost {
					t.Fatalf("it costs %s, the model says %s", d.Cost, cost)
				}
				m.admitted = append(m.admitted, admitted{now, c, cost})
			}
			now = now.Add(pick(t, "later", []time.Duration{0, time.Second, 59 * time.Second, 10 * time.Minute, 29 * time.Minute, time.Hour, 5 * time.Hour, 24 * time.Hour}))
		}
		// The counters that are kept whatever the rules are.
		for _, session := range someSessions {
			var calls, micros int64
			for _, a := range m.admitted {
				if a.call.Session == session {
					calls++
					micros += int64(a.cost)
				}
			}
			if got := b[policy.CounterKey{Counter: policy.CounterSessionCalls, Of: session}].Value; got != calls {
				t.Fatalf("%d calls are counted, %d were admitted", got, calls)
			}
			if got := b[policy.CounterKey{Counter: policy.CounterSessionSpend, Of: session}].Value; got != micros {
				t.Fatalf("%d micros are counted, %d were spent", got, micros)
			}
		}
	})
}
