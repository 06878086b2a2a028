package policy_test

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/policy"
)

// A small world, so that random rules concern random calls.
var (
	someUpstreams = []string{"files", "pay"}
	someTools     = []string{"read", "delete_all", "delete/one", "charge"}
	someAgents    = []string{"bot", "root"}
	someSessions  = []string{"ses_1", "ses_2"}
	somePatterns  = []string{"*", "read", "delete_*", "delete*", "pay/*", "files/delete_all", "*/charge", "[cd]*", "?ead", "nothing"}
	someZones     = []string{"UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Africa/Cairo", "Asia/Kathmandu"}
	someWhens     = []string{
		"", "", "", `true`, `args.force == true`, `has(args.force) && args.force == true`, `strings(args).exists(s, under(s, "/etc"))`, `cost_usd > 1.0`, `args.amount > 2`,
		`agent == "root" || args.force == true`, `tool.startsWith("delete")`, `now.getHours() < 12`, `args.o == {"a": 1}`, `args.?o.?a.orValue(0) == 1`,
	}
	someArguments = []string{
		``, `{}`, `{"amount":1}`, `{"amount":"2.5","force":true}`, `{"amount":3,"force":false}`, `{"amount":0}`, `{"amount":-1}`, `{"amount":1e400}`, `{"force":true}`,
		`{"amount":1,"path":"/etc/passwd"}`, `{"amount":1,"path":"../x"}`, `{"amount":1,"o":{"a":1}}`, `{"amount":1,"o":{"a":1,"A":2}}`, `{"amount":1,"Amount":2}`,
		`null`, `[]`, `{`, `{"amount":1`, `}`, "\x00", `{"amount":1}{"amount":2}`, `{"":""}`,
	}
)

func pick[T any](t *rapid.T, label string, from []T) T { return rapid.SampledFrom(from).Draw(t, label) }

func some[T any](t *rapid.T, label string, from []T, most int) []T {
	return rapid.SliceOfN(rapid.SampledFrom(from), 0, most).Draw(t, label)
}

func randomRule(t *rapid.T) policy.Rule {
	r := policy.Rule{
		Type:   pick(t, "type", []policy.Type{policy.TypeDeny, policy.TypeAllow, policy.TypeSpendLimit, policy.TypeRateLimit, policy.TypeTimeWindow}),
		Shadow: rapid.IntRange(0, 3).Draw(t, "shadow") == 0,
		Tools:  some(t, "tools", somePatterns, 2),
		When:   pick(t, "when", someWhens),
	}
	if rapid.IntRange(0, 2).Draw(t, "narrow") == 0 {
		r.Upstreams, r.Agents = some(t, "upstreams", []string{"files", "p*", "*"}, 1), some(t, "agents", []string{"bot", "r*", "*"}, 1)
	}
	switch r.Type {
	case policy.TypeDeny:
		if len(r.Tools)+len(r.Upstreams)+len(r.Agents) == 0 && r.When == "" {
			r.Tools = []string{"delete_*"}
		}
	case policy.TypeAllow:
		if len(r.Tools) == 0 && rapid.Bool().Draw(t, "all") {
			r.Tools = []string{"*"} // most empty allow lists would end the story
		}
	case policy.TypeSpendLimit:
		r.MaxUSD = policy.Micros(rapid.Int64Range(0, 8).Draw(t, "usd")) * policy.USD
		r.Per = pick(t, "per", []string{"", policy.PerAgent, policy.PerTotal, policy.PerHour, policy.PerDay, policy.PerWeek, policy.PerMonth})
	case policy.TypeRateLimit:
		r.MaxCalls = rapid.Int64Range(0, 5).Draw(t, "calls")
		r.Window = pick(t, "window", []time.Duration{time.Second, time.Minute, time.Hour, 36 * time.Hour, math.MaxInt64})
		r.Per = pick(t, "per", []string{"", policy.PerSession, policy.PerAgent, policy.PerTool, policy.PerUpstream})
	case policy.TypeTimeWindow:
		start := rapid.IntRange(0, 24*60-1).Draw(t, "start")
		r.Hours = &policy.Hours{Start: start, End: (start + rapid.IntRange(1, 24*60-1).Draw(t, "length")) % (24 * 60)}
		r.Days = some(t, "days", []time.Weekday{0, 1, 2, 3, 4, 5, 6}, 5)
		if rapid.IntRange(0, 4).Draw(t, "whole days") == 0 {
			r.Hours = nil
		}
	}
	if rapid.Bool().Draw(t, "zone") {
		r.Location = zone(t, pick(t, "location", someZones))
	}
	return r
}

func randomRuleset(t *rapid.T) policy.Ruleset {
	var rs policy.Ruleset
	for range rapid.IntRange(0, 2).Draw(t, "costs") {
		c := policy.Cost{Tools: some(t, "tools", somePatterns, 2)}
		if rapid.Bool().Draw(t, "from argument") {
			c.HasFromArgument, c.FromArgument = true, pick(t, "pointer", []string{"/amount", "/o/a", "", "/"})
		} else {
			c.USD = policy.Micros(rapid.Int64Range(0, 3).Draw(t, "usd")) * policy.USD
		}
		rs.Costs = append(rs.Costs, c)
	}
	for range rapid.IntRange(0, 2).Draw(t, "scopes") {
		rs.Scopes = append(rs.Scopes, policy.Scope{Tools: some(t, "tools", somePatterns, 2), Require: []string{pick(t, "scope", []string{"read", "execute", "admin"})}})
	}
	for range rapid.IntRange(0, 5).Draw(t, "rules") {
		rs.Policies = append(rs.Policies, randomRule(t))
	}
	return rs
}

func randomCall(t *rapid.T) policy.Call {
	c := policy.Call{
		Session: pick(t, "session", someSessions), Agent: pick(t, "agent", someAgents), Upstream: pick(t, "upstream", someUpstreams), Tool: pick(t, "tool", someTools),
		ReadOnly: rapid.Bool().Draw(t, "read only"),
	}
	switch rapid.IntRange(0, 3).Draw(t, "arguments") {
	case 0:
		c.Arguments = rapid.SliceOfN(rapid.Byte(), 0, 30).Draw(t, "garbage")
	case 1: // all but JSON: what a reader trips over
		c.Arguments = json.RawMessage(strings.Join(some(t, "tokens", []string{
			"{", "}", "[", "]", ",", ":", `"amount"`, `"force"`, `"o"`, `"a"`, "1", "true", "null", `"`, `\`, " ", "1e999", "-", `"\u00`,
		}, 12), ""))
	default:
		if a := pick(t, "arguments", someArguments); a != "" {
			c.Arguments = json.RawMessage(a)
		}
	}
	return c
}

// randomState gives every counter in keys a value, as of a window that is the
// current one, or not.
func randomState(t *rapid.T, e *policy.Engine, c policy.Call, keys []policy.CounterKey) policy.State {
	s := policy.State{
		Now: time.Unix(rapid.Int64Range(1_700_000_000, 1_900_000_000).Draw(t, "now"), 0).UTC(),
		Session: policy.SessionState{
			ID: c.Session, AllScopes: rapid.IntRange(0, 3).Draw(t, "all scopes") > 0, Scopes: some(t, "scopes", []string{"read", "execute", "spend", "admin"}, 4),
			Revoked: rapid.IntRange(0, 9).Draw(t, "revoked") == 0,
		},
		Used: map[policy.CounterKey]policy.Counter{},
	}
	if rapid.IntRange(0, 3).Draw(t, "expires") == 0 {
		s.Session.ExpiresAt = s.Now.Add(time.Duration(rapid.Int64Range(-2, 2).Draw(t, "ttl")))
	}
	if rapid.Bool().Draw(t, "limited") {
		s.Session.SpendLimit = dollars(policy.Micros(rapid.Int64Range(0, 8).Draw(t, "limit")) * policy.USD)
	}
	starts := []time.Time{{}, s.Now, s.Now.Add(-30 * time.Second), s.Now.AddDate(0, 0, -20)}
	for _, b := range e.Budgets(c.Session, c.Agent, s.Now) {
		starts = append(starts, b.Start)
	}
	for _, k := range keys {
		if rapid.Bool().Draw(t, "used") {
			s.Used[k] = policy.Counter{
				Start: pick(t, "start", starts),
				Value: pick(t, "value", []int64{0, 1, 2, 3, 2_000_000, 5_000_000, math.MaxInt64 - 1, math.MaxInt64}),
			}
		}
	}
	return s
}

// anyKeys are counters that the call should not depend on, and some it may.
func anyKeys(e *policy.Engine) []policy.CounterKey {
	var keys []policy.CounterKey
	for _, session := range someSessions {
		for _, agent := range someAgents {
			for _, upstream := range someUpstreams {
				for _, tool := range someTools {
					c := policy.Call{Session: session, Agent: agent, Upstream: upstream, Tool: tool}
					keys = append(keys, e.Reads(c)...)
					keys = append(keys, policy.CounterKey{Counter: policy.CounterToolSpend, Of: policy.ToolSpendOf(session, c.ID())})
				}
			}
		}
		keys = append(keys, policy.CounterKey{Counter: policy.CounterSessionCalls, Of: session})
	}
	// With every counter also for what the others are kept per.
	for _, k := range keys[:len(keys):len(keys)] {
		for _, of := range append([]string{"", "files", "pay/charge"}, someAgents...) {
			keys = append(keys, policy.CounterKey{Counter: k.Counter, Of: of})
		}
	}
	slices.SortFunc(keys, func(a, b policy.CounterKey) int { return strings.Compare(a.Counter+"\x01"+a.Of, b.Counter+"\x01"+b.Of) })
	return slices.Compact(keys)
}

type world struct {
	rules  policy.Ruleset
	engine *policy.Engine
	call   policy.Call
	state  policy.State
}

func randomWorld(t *rapid.T) world {
	w := world{rules: randomRuleset(t)}
	w.engine = compile(t, w.rules)
	w.call = randomCall(t)
	w.state = randomState(t, w.engine, w.call, w.engine.Reads(w.call))
	return w
}

// What is found out before the transaction is what would be found out in it,
// also if the session turns out to be another one.
func TestAPreparedCallIsDecidedAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := randomWorld(t)
		prepared := w.call
		if rapid.Bool().Draw(t, "another session") {
			prepared.Session, prepared.Agent = "ses_other", "another"
		}
		w.engine.Prepare(&prepared)
		prepared.Session, prepared.Agent = w.call.Session, w.call.Agent
		want := w.engine.Decide(w.call, w.state)
		for range 2 { // a ledger may try a transaction again
			if diff := cmp.Diff(want, w.engine.Decide(prepared, w.state)); diff != "" {
				t.Fatalf("prepared (-not prepared +prepared):\n%s", diff)
			}
		}
	})
}

func TestDecideIsTotal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := randomWorld(t)
		w.call.Tool = rapid.String().Draw(t, "any tool")
		w.call.Upstream = rapid.String().Draw(t, "any upstream")
		w.state.Now = pick(t, "any time", []time.Time{w.state.Now, {}, time.Unix(0, 0), time.Unix(math.MaxInt32, 999_999_999), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), time.Unix(1<<60, 0), time.Unix(-1<<60, 0)})
		w.state.Session.ID = rapid.String().Draw(t, "any session")
		for k, v := range w.state.Used {
			v.Value = rapid.Int64().Draw(t, "any value")
			w.state.Used[k] = v
		}
		if rapid.Bool().Draw(t, "no counters") {
			w.state.Used = nil
		}
		d := w.engine.Decide(w.call, w.state)
		w.engine.Never(w.call, w.state.Session)
		if d.Verdict > policy.Allow {
			t.Fatalf("%+v", d)
		}
		if d.Verdict == policy.Allow {
			if d.Cost < 0 || d.Reason != "" || d.Policy != "" || d.Rule != "" || !d.RetryAt.IsZero() || len(d.Holds) == 0 {
				t.Fatalf("%+v", d)
			}
			for _, h := range d.Holds {
				if h.Amount < 0 || h.Money && h.Amount != int64(d.Cost) || !h.Money && h.Amount != 1 {
					t.Fatalf("holds %+v of a call that costs %s", h, d.Cost)
				}
			}
		} else if d.Policy == "" || d.Rule == "" || d.Reason == "" || len(d.Holds) > 0 {
			t.Fatalf("%+v", d)
		}
		for _, f := range d.Also {
			if f.Policy == "" || f.Rule == "" || f.Reason == "" || d.Verdict == policy.Allow && !f.Shadow {
				t.Fatalf("%+v", d)
			}
		}
	})
}

func TestDecideIsDeterministicAndChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := randomWorld(t)
		args, used := slices.Clone(w.call.Arguments), map[policy.CounterKey]policy.Counter{}
		for k, v := range w.state.Used {
			used[k] = v
		}
		first := w.engine.Decide(w.call, w.state)
		again := compile(t, w.rules) // the same rules, compiled anew
		for range 5 {
			if diff := cmp.Diff(first, w.engine.Decide(w.call, w.state)); diff != "" {
				t.Fatalf("-first +later\n%s", diff)
			}
			if diff := cmp.Diff(first, again.Decide(w.call, w.state)); diff != "" {
				t.Fatalf("-this engine +the same rules compiled anew\n%s", diff)
			}
		}
		if string(args) != string(w.call.Arguments) || !cmp.Equal(used, w.state.Used) {
			t.Fatalf("Decide changed its input")
		}
	})
}

func TestAnUnconditionalDenyInFrontDeniesEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := randomWorld(t)
		rs := w.rules
		rs.Policies = append([]policy.Rule{{Type: policy.TypeDeny, ID: "all", Tools: []string{"*"}}}, rs.Policies...)
		e := compile(t, rs)
		if d := e.Decide(w.call, w.state); d.Verdict != policy.Deny || !d.RetryAt.IsZero() {
			t.Fatalf("%+v", d)
		}
		if !e.Never(w.call, w.state.Session) {
			t.Fatal("it is listed")
		}
	})
}

// Policies stack: a call must pass every one that applies.
func TestAnyRuleInFrontNeverAllowsMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := randomWorld(t)
		before := w.engine.Decide(w.call, w.state)
		rs := w.rules
		extra := randomRule(t)
		extra.ID = "extra"
		rs.Policies = append([]policy.Rule{extra}, rs.Policies...)
		e := compile(t, rs)
		after := e.Decide(w.call, w.state)
		if after.Verdict > before.Verdict {
			t.Fatalf("%+v\nmakes of %+v\n%+v", extra, before, after)
		}
		if e.Never(w.call, w.state.Session) != w.engine.Never(w.call, w.state.Session) && !e.Never(w.call, w.state.Session) {
			t.Fatalf("%+v lists a tool that was not listed", extra)
		}
	})
}

func TestMoreUseNeverAllowsMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := randomWorld(t)
		less := w.engine.Decide(w.call, w.state)
		more := w.state
		more.Used = map[policy.CounterKey]policy.Counter{}
		for _, k := range w.engine.Reads(w.call) {
			v, ok := w.state.Used[k]
			if !ok && !rapid.Bool().Draw(t, "first use") {
				continue
			}
			if !ok { // a counter is first used in a window that has begun
				v.Start = w.state.Now
			}
			v.Value += rapid.Int64Range(0, math.MaxInt64-v.Value).Draw(t, "more")
			more.Used[k] = v
		}
		if d := w.engine.Decide(w.call, more); d.Verdict > less.Verdict {
			t.Fatalf("with %+v\n%+v\nwith %+v\n%+v", w.state.Used, less, more.Used, d)
		}
	})
}

func TestReadsNamesEverythingThatADecisionDependsOn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := randomWorld(t)
		reads := w.engine.Reads(w.call)
		seen := map[policy.CounterKey]bool{}
		for _, k := range reads {
			if seen[k] {
				t.Fatalf("Reads names %v twice", k)
			}
			seen[k] = true
		}
		want := w.engine.Decide(w.call, w.state)
		// Every counter that is not named is full, in the current window.
		full := w.state
		full.Used = map[policy.CounterKey]policy.Counter{}
		for _, k := range anyKeys(w.engine) {
			full.Used[k] = policy.Counter{Start: pick(t, "start", []time.Time{{}, w.state.Now}), Value: math.MaxInt64}
		}
		for _, k := range reads {
			delete(full.Used, k)
			if v, ok := w.state.Used[k]; ok {
				full.Used[k] = v
			}
		}
		if diff := cmp.Diff(want, w.engine.Decide(w.call, full)); diff != "" {
			t.Fatalf("counters outside of Reads count:\n%s", diff)
		}

		// What is held on a counter with a limit is read, and once.
		unread := map[string]bool{policy.CounterSessionCalls: true, policy.CounterToolSpend: true}
		held := map[policy.CounterKey]bool{}
		for _, h := range want.Holds {
			if held[h.Key] {
				t.Fatalf("%v is held twice: %+v", h.Key, want.Holds)
			}
			held[h.Key] = true
			if !seen[h.Key] && !unread[h.Key.Counter] {
				t.Fatalf("%v is held but not read", h.Key)
			}
		}
	})
}

func TestShadowRulesNeverChangeTheVerdict(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := randomWorld(t)
		for i := range w.rules.Policies {
			w.rules.Policies[i].Shadow = false
			if rapid.Bool().Draw(t, "named") {
				w.rules.Policies[i].ID = fmt.Sprint("rule ", i)
			}
		}
		with := w.rules
		with.Policies = slices.Clone(w.rules.Policies)
		for range rapid.IntRange(1, 3).Draw(t, "shadows") {
			shadow := randomRule(t)
			if n := len(w.rules.Policies); n > 0 && rapid.Bool().Draw(t, "a try of a rule that is there") {
				limits := shadow
				shadow = w.rules.Policies[rapid.IntRange(0, n-1).Draw(t, "which")]
				shadow.ID = ""
				if shadow.Type == limits.Type {
					shadow.MaxUSD, shadow.MaxCalls, shadow.Location = limits.MaxUSD, limits.MaxCalls, limits.Location
				}
			}
			shadow.Shadow = true
			at := rapid.IntRange(0, len(with.Policies)).Draw(t, "at")
			with.Policies = slices.Insert(with.Policies, at, shadow)
		}
		e, shadowed := compile(t, w.rules), compile(t, with)
		// One story told twice: what a shadow rule counts must not matter later.
		b, sb := book{}, book{}
		s := w.state
		for range rapid.IntRange(1, 8).Draw(t, "calls") {
			c := randomCall(t)
			want, got := b.decide(e, c, s), sb.decide(shadowed, c, s)
			// Without an id a rule is called by its number, which has changed.
			if got.Verdict != want.Verdict || got.Policy != want.Policy || !got.RetryAt.Equal(want.RetryAt) || got.Cost != want.Cost {
				t.Fatalf("%s\nwithout the shadow rules: %+v\nwith them: %+v", c.Arguments, want, got)
			}
			if shadowed.Never(c, s.Session) != e.Never(c, s.Session) {
				t.Fatal("a shadow rule changes what is listed")
			}
			s.Now = s.Now.Add(pick(t, "later", []time.Duration{0, time.Second, time.Minute, time.Hour, 24 * time.Hour}))
		}
	})
}

func TestNeverMeansNever(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := randomWorld(t)
		c := w.call
		never := w.engine.Never(c, w.state.Session)
		for range 4 {
			c.Arguments = randomCall(t).Arguments
			s := randomState(t, w.engine, c, w.engine.Reads(c))
			// The answer was about this session's scopes.
			s.Session.Scopes, s.Session.AllScopes = w.state.Session.Scopes, w.state.Session.AllScopes
			if w.engine.Never(c, s.Session) != never {
				t.Fatal("Never depends on more than the tool and the scopes")
			}
			if d := w.engine.Decide(c, s); never && (d.Verdict != policy.Deny || !d.RetryAt.IsZero()) {
				t.Fatalf("%+v", d)
			}
		}
	})
}

// RetryAt is a promise: nothing but time has to pass, and no less than that.
func TestRetryAtIsWhenTheCallPasses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := world{rules: randomRuleset(t)}
		for i := range w.rules.Policies {
			w.rules.Policies[i].When = "" // a condition may depend on the time
			if r := &w.rules.Policies[i]; r.Type == policy.TypeDeny && len(r.Tools)+len(r.Upstreams)+len(r.Agents) == 0 {
				r.Tools = []string{"read"}
			}
		}
		w.engine = compile(t, w.rules)
		w.call = randomCall(t)
		w.state = randomState(t, w.engine, w.call, w.engine.Reads(w.call))
		w.state.Session.ExpiresAt = time.Time{}
		d := w.engine.Decide(w.call, w.state)
		if d.Verdict == policy.Allow {
			return
		}
		then := func(now time.Time) policy.Decision {
			s := w.state
			s.Now = now
			return w.engine.Decide(w.call, s)
		}
		if d.RetryAt.IsZero() {
			later := w.state.Now.Add(time.Duration(rapid.Int64Range(0, 40*24*60).Draw(t, "minutes")) * time.Minute)
			if got := then(later); got.Verdict == policy.Allow {
				t.Fatalf("%+v\nhas no RetryAt, but passes at %v", d, later)
			}
			return
		}
		if !d.RetryAt.After(w.state.Now) {
			t.Fatalf("RetryAt %v is not after %v", d.RetryAt, w.state.Now)
		}
		if got := then(d.RetryAt); got.Verdict != policy.Allow {
			t.Fatalf("%+v\nat RetryAt: %+v", d, got)
		}
		if got := then(d.RetryAt.Add(-1)); got.Verdict == policy.Allow {
			t.Fatalf("%+v\npasses before", d)
		}
	})
}
