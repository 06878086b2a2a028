package policy_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/policy"
)

func TestDecide(t *testing.T) {
	deny := func(tools ...string) policy.Rule { return policy.Rule{Type: policy.TypeDeny, Tools: tools} }
	allow := func(tools ...string) policy.Rule { return policy.Rule{Type: policy.TypeAllow, Tools: tools} }
	tests := []struct {
		name  string
		rules policy.Ruleset
		call  policy.Call
		want  string
	}{
		{"no rules allow everything", policy.Ruleset{}, call("files/delete_all", ""), "allow"},
		{"a denied tool is refused", rules(deny("delete_all")), call("files/delete_all", ""), "deny deny"},
		{"another tool is not", rules(deny("delete_all")), call("files/read", ""), "allow"},
		{"a denied tool is refused in every upstream", rules(deny("delete_all")), call("db/delete_all", ""), "deny deny"},
		{"a deny narrowed by its pattern spares other upstreams", rules(deny("files/delete_all")), call("db/delete_all", ""), "allow"},
		{"a deny narrowed to an upstream spares the others", rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, Upstreams: []string{"db"}}), call("files/x", ""), "allow"},
		{"a deny narrowed to an upstream hits it", rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, Upstreams: []string{"d?"}}), call("db/x", ""), "deny deny"},
		{"a deny of an upstream without tools denies all its tools", rules(policy.Rule{Type: policy.TypeDeny, Upstreams: []string{"db"}}), call("db/x", ""), "deny deny"},
		{"a deny of an agent without tools denies all tools", rules(policy.Rule{Type: policy.TypeDeny, Agents: []string{"bo*"}}), call("db/x", ""), "deny deny"},
		{"a deny narrowed to an agent spares the others", rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, Agents: []string{"research-*"}}), call("db/x", ""), "allow"},
		{"all ways of narrowing must hold", rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"x"}, Upstreams: []string{"db"}, Agents: []string{"root"}}), call("db/x", ""), "allow"},
		{"a deny whose when is false lets the call pass", rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, When: "args.force == true"}), call("db/x", `{"force":false}`), "allow"},
		{"a deny whose when is true refuses", rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, When: "args.force == true"}), call("db/x", `{"force":true}`), "deny deny"},
		{"a deny with only a when concerns every tool", rules(policy.Rule{Type: policy.TypeDeny, When: "args.force == true"}), call("db/x", `{"force":true}`), "deny deny"},
		{"a when that cannot be evaluated refuses", rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, When: "args.force == true"}), call("db/x", `{}`), "deny condition"},
		{"a when is not looked at for a tool that the rule does not name", rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"delete"}, When: "args.force == true"}), call("db/x", `garbage`), "allow"},

		{"a listed tool passes an allow list", rules(allow("read", "list")), call("db/list", ""), "allow"},
		{"an unlisted tool does not", rules(allow("read", "list")), call("db/write", ""), "deny allow"},
		{"two allow lists intersect: in both", rules(allow("a", "b"), allow("b", "c")), call("db/b", ""), "allow"},
		{"two allow lists intersect: in the first only", rules(allow("a", "b"), allow("b", "c")), call("db/a", ""), "deny allow"},
		{"two allow lists intersect: in the second only", rules(allow("a", "b"), allow("b", "c")), call("db/c", ""), "deny allow"},
		{"two allow lists intersect: in neither, both are found", rules(allow("a", "b"), allow("b", "c")), call("db/d", ""), "deny allow allow"},
		{"an empty allow list admits nothing", rules(allow()), call("db/b", ""), "deny allow"},
		{"an empty allow list after a full one admits nothing", rules(allow("*"), allow()), call("db/b", ""), "deny allow"},
		{"an allow list narrowed to an upstream leaves the others alone", rules(policy.Rule{Type: policy.TypeAllow, Tools: []string{"a"}, Upstreams: []string{"files"}}), call("db/b", ""), "allow"},
		{"an allow list narrowed to an upstream holds there", rules(policy.Rule{Type: policy.TypeAllow, Tools: []string{"a"}, Upstreams: []string{"files"}}), call("files/b", ""), "deny allow"},
		{"an empty allow list narrowed to an upstream shuts it", rules(policy.Rule{Type: policy.TypeAllow, Upstreams: []string{"files"}}), call("files/b", ""), "deny allow"},
		{"an allow list narrowed to an agent leaves the others alone", rules(policy.Rule{Type: policy.TypeAllow, Tools: []string{"a"}, Agents: []string{"root"}}), call("db/b", ""), "allow"},
		{"an allow whose when is false does not list the call", rules(policy.Rule{Type: policy.TypeAllow, Tools: []string{"a"}, When: "args.safe == true"}), call("db/a", `{"safe":false}`), "deny allow"},
		{"an allow whose when is true does", rules(policy.Rule{Type: policy.TypeAllow, Tools: []string{"a"}, When: "args.safe == true"}), call("db/a", `{"safe":true}`), "allow"},
		{"an allow whose when is undecided refuses", rules(policy.Rule{Type: policy.TypeAllow, Tools: []string{"a"}, When: "args.safe == true"}), call("db/a", `{}`), "deny condition"},
		{"an allow that does not list the tool does not ask its when", rules(policy.Rule{Type: policy.TypeAllow, Tools: []string{"a"}, When: "args.safe == true"}), call("db/b", `garbage`), "deny allow"},
		{"an allow does not outweigh a deny", rules(allow("*"), deny("a")), call("db/a", ""), "deny deny"},

		{"a spend limit lets a free call pass though it is used up", rules(policy.Rule{Type: policy.TypeSpendLimit}), call("db/a", ""), "allow"},
		{"a spend limit lets a call that costs nothing pass though it is used up", policy.Ruleset{Costs: costs(), Policies: []policy.Rule{{Type: policy.TypeSpendLimit}}}, call("pay/a", `{"amount":0}`), "allow"},
		{"a spend limit of zero means zero", policy.Ruleset{Costs: costs(), Policies: []policy.Rule{{Type: policy.TypeSpendLimit}}}, call("pay/a", `{"amount":0.000001}`), "deny spend_limit"},
		{"a spend limit may be used to the last micro", policy.Ruleset{Costs: costs(), Policies: []policy.Rule{{Type: policy.TypeSpendLimit, MaxUSD: 2 * policy.USD}}}, call("pay/a", `{"amount":2}`), "allow"},
		{"a spend limit is not overshot by a micro", policy.Ruleset{Costs: costs(), Policies: []policy.Rule{{Type: policy.TypeSpendLimit, MaxUSD: 2 * policy.USD}}}, call("pay/a", `{"amount":2.000001}`), "deny spend_limit"},
		{"an amount in cents is a hundredth", policy.Ruleset{Costs: cents(), Policies: []policy.Rule{{Type: policy.TypeSpendLimit, MaxUSD: 2 * policy.USD}}}, call("pay/a", `{"amount":200}`), "allow"},
		{"an amount in cents is rounded up to a micro", policy.Ruleset{Costs: cents(), Policies: []policy.Rule{{Type: policy.TypeSpendLimit, MaxUSD: 2 * policy.USD}}}, call("pay/a", `{"amount":"200.000001"}`), "deny spend_limit"},
		{"an amount in cents must be one", policy.Ruleset{Costs: cents()}, call("pay/a", `{"amount":-1}`), "deny cost"},
		{"a spend limit narrowed to other tools does not count the call", policy.Ruleset{Costs: costs(), Policies: []policy.Rule{{Type: policy.TypeSpendLimit, Tools: []string{"b"}}}}, call("pay/a", `{"amount":2}`), "allow"},
		{"a spend limit whose when is false does not apply", policy.Ruleset{Costs: costs(), Policies: []policy.Rule{{Type: policy.TypeSpendLimit, When: "cost_usd > 2.0"}}}, call("pay/a", `{"amount":2}`), "allow"},
		{"a spend limit whose when is true applies", policy.Ruleset{Costs: costs(), Policies: []policy.Rule{{Type: policy.TypeSpendLimit, When: "cost_usd >= 2.0"}}}, call("pay/a", `{"amount":2}`), "deny spend_limit"},
		{"a rate limit of zero admits nothing", rules(policy.Rule{Type: policy.TypeRateLimit, Window: time.Hour}), call("db/a", ""), "deny rate_limit"},
		{"a rate limit narrowed to other tools does not apply", rules(policy.Rule{Type: policy.TypeRateLimit, Window: time.Hour, Tools: []string{"b"}}), call("db/a", ""), "allow"},
		{"a rate limit whose when is undecided refuses", rules(policy.Rule{Type: policy.TypeRateLimit, Window: time.Hour, MaxCalls: 9, When: "args.x > 1"}), call("db/a", `{}`), "deny condition"},
		{"a time window refuses outside of it", rules(policy.Rule{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: 13 * 60, End: 14 * 60}}), call("db/a", ""), "deny time_window"},
		{"a time window lets pass within it", rules(policy.Rule{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: 12 * 60, End: 12*60 + 1}}), call("db/a", ""), "allow"},
		{"a time window without hours is the whole of its days", rules(policy.Rule{Type: policy.TypeTimeWindow, Days: []time.Weekday{time.Tuesday}}), call("db/a", ""), "allow"},
		{"a time window without hours is shut on other days", rules(policy.Rule{Type: policy.TypeTimeWindow, Days: []time.Weekday{time.Monday, time.Wednesday}}), call("db/a", ""), "deny time_window"},
		{"a time window narrowed to other tools does not apply", rules(policy.Rule{Type: policy.TypeTimeWindow, Tools: []string{"b"}, Days: []time.Weekday{time.Monday}}), call("db/a", ""), "allow"},

		{"a shadow rule of every type lets the call pass and is reported", policy.Ruleset{Costs: costs(), Policies: []policy.Rule{
			{Type: policy.TypeDeny, Shadow: true, Tools: []string{"*"}},
			{Type: policy.TypeAllow, Shadow: true},
			{Type: policy.TypeDeny, Shadow: true, When: "args.x == 1"},
			{Type: policy.TypeTimeWindow, Shadow: true, Days: []time.Weekday{time.Monday}},
			{Type: policy.TypeRateLimit, Shadow: true, Window: time.Hour},
			{Type: policy.TypeSpendLimit, Shadow: true},
		}}, call("pay/a", `{"amount":1}`), "allow (deny) (allow) (condition) (time_window) (rate_limit) (spend_limit)"},
		{"a shadow rule does not take the place of a real one", rules(
			policy.Rule{Type: policy.TypeDeny, Shadow: true, Tools: []string{"*"}}, allow("b"),
		), call("db/a", ""), "deny allow (deny)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := compile(t, tt.rules).Decide(tt.call, free())
			if got := seen(d); got != tt.want {
				t.Errorf("got %q, want %q\n%+v", got, tt.want, d)
			}
			if d.Verdict == policy.Allow {
				if d.Policy != "" || d.Rule != "" || d.Reason != "" || !d.RetryAt.IsZero() {
					t.Errorf("an allowed call carries a refusal: %+v", d)
				}
				return
			}
			if d.Rule == "" || d.Reason == "" {
				t.Errorf("a refusal does not name its rule and reason: %+v", d)
			}
			if len(d.Holds) != 0 {
				t.Errorf("a refused call holds %v", d.Holds)
			}
		})
	}
}

func TestTheFirstFindingIsReportedInTheAgreedOrder(t *testing.T) {
	// In the order of the agreement, each listed before its predecessor in the
	// file, so that file order cannot produce the result.
	type ingredient struct {
		policy string
		add    func(*policy.Ruleset, *policy.State)
	}
	add := func(r policy.Rule) func(*policy.Ruleset, *policy.State) {
		return func(rs *policy.Ruleset, _ *policy.State) { rs.Policies = append([]policy.Rule{r}, rs.Policies...) }
	}
	order := []ingredient{
		{"session", func(_ *policy.Ruleset, s *policy.State) { s.Session.Revoked = true }},
		{"scope", func(_ *policy.Ruleset, s *policy.State) { s.Session.AllScopes = false }},
		{"deny", add(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}})},
		{"allow", add(policy.Rule{Type: policy.TypeAllow})},
		{"condition", add(policy.Rule{Type: policy.TypeDeny, ID: "undecidable", When: "args.missing == 1"})},
		{"time_window", add(policy.Rule{Type: policy.TypeTimeWindow, Days: []time.Weekday{time.Monday}})},
		{"rate_limit", add(policy.Rule{Type: policy.TypeRateLimit, Window: time.Hour})},
		{"spend_limit", add(policy.Rule{Type: policy.TypeSpendLimit})},
	}
	for i := range order {
		t.Run(order[i].policy+" comes before all that follow", func(t *testing.T) {
			rs, s := policy.Ruleset{Costs: costs()}, free()
			var rest []string
			for _, in := range order[i:] {
				in.add(&rs, &s)
				rest = append(rest, in.policy)
			}
			d := compile(t, rs).Decide(call("pay/a", `{"amount":1}`), s)
			if d.Verdict != policy.Deny || d.Policy != order[i].policy {
				t.Fatalf("got %s, want it to begin with deny %s", seen(d), order[i].policy)
			}
			also := map[string]int{d.Policy: 1}
			for _, f := range d.Also {
				also[f.Policy]++
			}
			for _, p := range rest {
				if also[p] != 1 {
					t.Errorf("%s was found %d times: %s", p, also[p], seen(d))
				}
			}
			if len(also) != len(rest) {
				t.Errorf("findings %v, want %v", also, rest)
			}
		})
	}
	t.Run("of two of a kind the first in the file comes first", func(t *testing.T) {
		d := compile(t, rules(
			policy.Rule{Type: policy.TypeAllow, ID: "list"},
			policy.Rule{Type: policy.TypeDeny, ID: "one", Tools: []string{"*"}},
			policy.Rule{Type: policy.TypeDeny, ID: "two", Tools: []string{"*"}},
		)).Decide(call("db/a", ""), free())
		if d.Rule != "one" || len(d.Also) != 2 || d.Also[0].Rule != "list" || d.Also[1].Rule != "two" {
			t.Errorf("%+v", d)
		}
	})
	t.Run("a cost that cannot be determined is found where spend is, as cost", func(t *testing.T) {
		rs := policy.Ruleset{Costs: costs(), Policies: []policy.Rule{{Type: policy.TypeRateLimit, Window: time.Hour}}}
		if d := compile(t, rs).Decide(call("pay/a", `{}`), free()); seen(d) != "deny rate_limit cost" {
			t.Errorf("%s", seen(d))
		}
	})
}

func TestRetryAt(t *testing.T) {
	deny := policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}}
	rate := func(max int64, window time.Duration) policy.Rule {
		return policy.Rule{Type: policy.TypeRateLimit, MaxCalls: max, Window: window}
	}
	from13 := policy.Rule{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: 13 * 60, End: 24 * 60}}
	perDay := func(max policy.Micros) policy.Rule {
		return policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: max, Per: policy.PerDay}
	}
	never := time.Time{}
	clock := func(h int) time.Time { return time.Date(2026, 11, 24, h, 0, 0, 0, time.UTC) }
	tests := []struct {
		name  string
		rules []policy.Rule
		edit  func(*policy.State)
		want  time.Time
	}{
		{"a deny never passes", []policy.Rule{deny}, nil, never},
		{"a rate limit passes when its window resets", []policy.Rule{rate(1, 2*time.Hour)}, nil, clock(13)},
		{"the latest of several counts", []policy.Rule{rate(1, 2*time.Hour), rate(1, 5*time.Hour)}, nil, clock(16)},
		{"the latest of several counts, whichever is reported", []policy.Rule{from13, rate(1, 5*time.Hour)}, nil, clock(16)},
		{"one permanent finding makes all permanent", []policy.Rule{rate(1, 2*time.Hour), deny}, nil, never},
		{"one permanent finding makes all permanent, first in the file", []policy.Rule{deny, rate(1, 2*time.Hour)}, nil, never},
		{"a rate limit of zero is permanent", []policy.Rule{rate(0, 2*time.Hour)}, nil, never},
		{"a time window passes when it opens", []policy.Rule{from13}, nil, clock(13)},
		{"a daily limit passes on the next day", []policy.Rule{perDay(3 * policy.USD)}, nil, clock(24)},
		{"a daily limit that the call alone exceeds is permanent", []policy.Rule{perDay(policy.USD)}, nil, never},
		{"a session limit is permanent", []policy.Rule{{Type: policy.TypeSpendLimit, MaxUSD: policy.USD}}, nil, never},
		{"a missing scope is permanent", []policy.Rule{from13}, func(s *policy.State) { s.Session.AllScopes = false }, never},
		{"an expired session is permanent", []policy.Rule{from13}, func(s *policy.State) { s.Session.ExpiresAt = clock(1) }, never},
		{"the session's own limit is permanent", []policy.Rule{from13}, func(s *policy.State) { s.Session.SpendLimit = dollars(0) }, never},
		{"a shadow rule does not postpone", []policy.Rule{from13, {Type: policy.TypeRateLimit, Shadow: true, MaxCalls: 1, Window: 9 * time.Hour}}, nil, clock(13)},
		{"a permanent shadow rule does not make a refusal permanent", []policy.Rule{from13, {Type: policy.TypeDeny, Shadow: true, Tools: []string{"*"}}}, nil, clock(13)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := compile(t, policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, USD: 2 * policy.USD}}, Policies: tt.rules})
			c, s := call("db/a", ""), free()
			s.Used = map[policy.CounterKey]policy.Counter{}
			for _, r := range tt.rules {
				for _, k := range e.Reads(c) {
					switch {
					case r.Type == policy.TypeRateLimit && strings.HasPrefix(k.Counter, "rate"):
						s.Used[k] = policy.Counter{Start: clock(11), Value: 1}
					case r.Per == policy.PerDay && strings.HasPrefix(k.Counter, "spend"):
						s.Used[k] = policy.Counter{Start: clock(0), Value: int64(2 * policy.USD)}
					}
				}
			}
			if tt.edit != nil {
				tt.edit(&s)
			}
			d := e.Decide(c, s)
			if d.Verdict != policy.Deny {
				t.Fatalf("%+v", d)
			}
			if !d.RetryAt.Equal(tt.want) || d.RetryAt.IsZero() != tt.want.IsZero() {
				t.Errorf("RetryAt %v, want %v (%s)", d.RetryAt, tt.want, seen(d))
			}
		})
	}
}

// The doc of RetryAt: when every rule that refused could let the call pass. The
// latest of the single instants need not be one: a window that opened in the
// meantime may have shut again by then.
func TestAtRetryAtEveryRuleThatRefusedCouldLetTheCallPass(t *testing.T) {
	hours := func(start, end int) policy.Rule {
		return policy.Rule{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: start * 60, End: end * 60}}
	}
	tests := []struct {
		name  string
		rules []policy.Rule
		want  string // "" for never
	}{
		{"windows that overlap later in the day", []policy.Rule{hours(13, 20), hours(15, 22)}, "2026-11-24T15:00:00Z"},
		{"windows of which the first has shut before the second opens", []policy.Rule{hours(13, 14), hours(18, 6)}, ""},
		{"a rate limit that resets after the window has shut", []policy.Rule{hours(13, 14), {Type: policy.TypeRateLimit, MaxCalls: 1, Window: 5 * time.Hour}}, "2026-11-25T13:00:00Z"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := compile(t, rules(tt.rules...))
			c, s := call("db/a", ""), free()
			s.Used = map[policy.CounterKey]policy.Counter{}
			for _, k := range e.Reads(c) {
				s.Used[k] = policy.Counter{Start: noon.Add(-time.Hour), Value: 1}
			}
			d := e.Decide(c, s)
			if tt.want == "" {
				if !d.RetryAt.IsZero() {
					s.Now = d.RetryAt
					t.Errorf("RetryAt %v, want none; then: %s", d.RetryAt, seen(e.Decide(c, s)))
				}
				return
			}
			if !d.RetryAt.Equal(instant(t, tt.want)) {
				s.Now = d.RetryAt
				t.Errorf("RetryAt %v, want %s; then: %s", d.RetryAt, tt.want, seen(e.Decide(c, s)))
			}
		})
	}
}

func TestSessions(t *testing.T) {
	tests := []struct {
		name   string
		edit   func(*policy.SessionState)
		rule   string
		reason string
	}{
		{"a session without expiry does not expire", func(*policy.SessionState) {}, "", ""},
		{"a session lives until its last nanosecond", func(s *policy.SessionState) { s.ExpiresAt = noon.Add(1) }, "", ""},
		{"a session is over at the instant it expires", func(s *policy.SessionState) { s.ExpiresAt = noon }, "expired", "2026-11-24T12:00:00Z"},
		{"a session that expired long ago is over", func(s *policy.SessionState) { s.ExpiresAt = noon.AddDate(-1, 0, 0) }, "expired", "2025-11-24T12:00:00Z"},
		{"a revoked session is over", func(s *policy.SessionState) { s.Revoked = true }, "revoked", "revoked"},
		{"a session both revoked and expired says it was revoked", func(s *policy.SessionState) { s.Revoked, s.ExpiresAt = true, noon }, "revoked", "revoked"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := free()
			tt.edit(&s.Session)
			d := compile(t, policy.Ruleset{}).Decide(call("db/a", ""), s)
			if (d.Verdict == policy.Allow) != (tt.rule == "") || d.Rule != tt.rule || !strings.Contains(d.Reason, tt.reason) {
				t.Errorf("%+v", d)
			}
			if tt.rule != "" && (d.Policy != "session" || !strings.Contains(d.Reason, "ses_1")) {
				t.Errorf("%+v", d)
			}
		})
	}
}

func TestScopes(t *testing.T) {
	list := []policy.Scope{
		{Tools: []string{"*/get_*", "*/list_*"}, Require: []string{"read"}},
		{Tools: []string{"db/get_*"}, Require: []string{"never-reached"}},
		{Tools: []string{"admin"}, Require: []string{"execute", "admin"}},
	}
	price := []policy.Cost{{Tools: []string{"*/buy", "shop/get_quote"}, USD: policy.USD}, {Tools: []string{"*/free"}}}
	tests := []struct {
		name     string
		tool     string
		readOnly bool
		have     []string
		missing  string // "" for allowed
	}{
		{"a call requires execute by default", "db/write", false, []string{"read", "spend"}, "execute"},
		{"execute suffices by default", "db/write", false, []string{"execute"}, ""},
		{"a trusted read-only call requires read", "db/write", true, []string{"execute"}, "read"},
		{"read suffices for a trusted read-only call", "db/write", true, []string{"read"}, ""},
		{"a scope rule replaces the default", "db/list_all", false, []string{"read"}, ""},
		{"a scope rule replaces the default for execute too", "db/list_all", false, []string{"execute"}, "read"},
		{"a scope rule counts also where annotations are trusted", "db/admin", true, []string{"read"}, "execute"},
		{"of two scope rules the first that matches counts", "db/get_row", false, []string{"read"}, ""},
		{"every scope of a rule is required", "db/admin", false, []string{"execute"}, "admin"},
		{"every scope of a rule is enough", "db/admin", false, []string{"admin", "execute"}, ""},
		{"a cost rule requires spend besides", "shop/buy", false, []string{"execute"}, "spend"},
		{"execute and spend suffice for a call that costs", "shop/buy", false, []string{"spend", "execute"}, ""},
		{"spend alone does not", "shop/buy", false, []string{"spend"}, "execute"},
		{"a cost rule requires spend besides what a scope rule requires", "shop/get_quote", false, []string{"read"}, "spend"},
		{"a cost rule of nothing requires spend all the same", "shop/free", false, []string{"execute"}, "spend"},
		{"no scopes allow nothing", "db/write", false, nil, "execute"},
		{"scopes are compared exactly", "db/write", false, []string{"Execute", "execute ", "*"}, "execute"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := compile(t, policy.Ruleset{Scopes: list, Costs: price})
			c, s := call(tt.tool, ""), free()
			c.ReadOnly = tt.readOnly
			s.Session.AllScopes, s.Session.Scopes = false, tt.have
			d := e.Decide(c, s)
			if tt.missing == "" {
				if d.Verdict != policy.Allow || e.Never(c, s.Session) {
					t.Errorf("%+v", d)
				}
				return
			}
			if d.Verdict != policy.Deny || d.Policy != "scope" || d.Rule != tt.missing || !strings.Contains(d.Reason, "'"+tt.missing+"'") {
				t.Errorf("%+v", d)
			}
			if !e.Never(c, s.Session) {
				t.Error("a call whose scope is missing is listed")
			}
		})
	}
}

func TestNever(t *testing.T) {
	tests := []struct {
		name string
		rule policy.Rule
		want bool
	}{
		{"an unconditional deny", policy.Rule{Type: policy.TypeDeny, Tools: []string{"a"}}, true},
		{"an unconditional deny of the upstream", policy.Rule{Type: policy.TypeDeny, Upstreams: []string{"db"}}, true},
		{"a deny of another agent", policy.Rule{Type: policy.TypeDeny, Agents: []string{"root"}}, false},
		{"a deny with a when", policy.Rule{Type: policy.TypeDeny, Tools: []string{"a"}, When: "true"}, false},
		{"a shadow deny", policy.Rule{Type: policy.TypeDeny, Shadow: true, Tools: []string{"a"}}, false},
		{"an allow list without it", policy.Rule{Type: policy.TypeAllow, Tools: []string{"b"}}, true},
		{"an allow list without it, with a when", policy.Rule{Type: policy.TypeAllow, Tools: []string{"b"}, When: "args.x == 1"}, true},
		{"an allow list with it under a condition", policy.Rule{Type: policy.TypeAllow, Tools: []string{"a"}, When: "args.x == 1"}, false},
		{"an empty allow list", policy.Rule{Type: policy.TypeAllow}, true},
		{"a shadow allow list without it", policy.Rule{Type: policy.TypeAllow, Shadow: true, Tools: []string{"b"}}, false},
		{"an allow list of another upstream", policy.Rule{Type: policy.TypeAllow, Upstreams: []string{"files"}}, false},
		{"a rate limit of zero may be raised", policy.Rule{Type: policy.TypeRateLimit, Window: time.Hour}, false},
		{"a time window opens again", policy.Rule{Type: policy.TypeTimeWindow, Days: []time.Weekday{time.Monday}}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := compile(t, rules(tt.rule)).Never(call("db/a", ""), free().Session); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestReasonsSayWhatToDo(t *testing.T) {
	used := func(v int64) func(policy.CounterKey) policy.Counter {
		return func(k policy.CounterKey) policy.Counter {
			if strings.HasPrefix(k.Counter, "rate") {
				return policy.Counter{Start: noon.Add(-10 * time.Minute), Value: v}
			}
			return policy.Counter{Value: v}
		}
	}
	tests := []struct {
		name string
		rule policy.Rule
		used func(policy.CounterKey) policy.Counter
		want string
	}{
		{"a deny", policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}}, nil, "Tool 'a' is on the deny list"},
		{"an allow", policy.Rule{Type: policy.TypeAllow}, nil, "Tool 'a' is not on the allow list"},
		{
			"a rate limit",
			policy.Rule{Type: policy.TypeRateLimit, MaxCalls: 3, Window: time.Hour},
			used(3),
			"Rate limit of 3 calls per 1h reached; the window resets at 2026-11-24T12:50:00Z",
		},
		{
			"a time window in its zone",
			policy.Rule{Type: policy.TypeTimeWindow, Location: time.FixedZone("CET", 3600), Hours: &policy.Hours{Start: 9 * 60, End: 12*60 + 30}},
			nil,
			"Tool 'a' may be called from 09:00 to 12:30 CET only; the window opens next at 2026-11-25T09:00:00+01:00",
		},
		{
			"a spend limit",
			policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: 3 * policy.USD / 2},
			used(1_250_000),
			"Spend limit of $1.50 per session reached: $1.25 used, this call costs $2.00",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := compile(t, policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, USD: 2 * policy.USD}}, Policies: []policy.Rule{tt.rule}})
			c, s := call("db/a", ""), free()
			s.Used = map[policy.CounterKey]policy.Counter{}
			if tt.used != nil {
				for _, k := range e.Reads(c) {
					s.Used[k] = tt.used(k)
				}
			}
			if d := e.Decide(c, s); d.Reason != tt.want {
				t.Errorf("got  %q\nwant %q", d.Reason, tt.want)
			}
		})
	}
	t.Run("a reason stays short whatever the arguments are", func(t *testing.T) {
		// It is stored in the ledger, shown to a person and counted against the
		// host's context window.
		long := strings.Repeat("x", 100_000)
		for _, when := range []string{`int(args.s) == 1`, `timestamp(args.s) == now`, `args[args.s] == 1`, `duration(args.s) == duration("1s")`, `under(args.s, "/etc")`, `args.s.matches(args.s + "(")`} {
			_, d := outcome(t, when, `{"s":"../`+long+`"}`)
			if d.Policy != "condition" || len(d.Reason) > 1000 {
				t.Errorf("%s: %s with a reason of %d bytes", when, d.Policy, len(d.Reason))
			}
		}
		e := compile(t, policy.Ruleset{Costs: costs()})
		if d := e.Decide(call("pay/a", `{"amount":"`+long+`"}`), free()); len(d.Reason) > 1000 {
			t.Errorf("cost: a reason of %d bytes", len(d.Reason))
		}
	})
}

// Maps have no order, but the same call must get the same answer: explain would
// else differ from serve, and a retry could get through by luck.
func TestTheSameInputGivesTheSameDecision(t *testing.T) {
	many := func(n int, value string) string {
		var b strings.Builder
		for i := range n {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(`"k` + strings.Repeat("x", i%7) + string(rune('a'+i%26)) + strings.Repeat("y", i/26) + `":` + value)
		}
		return b.String()
	}
	tests := []struct{ name, when, args string }{
		{"when several values cannot be converted", `args.all(k, int(args[k]) > 1)`, `{"a":"foo","b":"bar","c":"baz"}`},
		{"when several numbers are too large", `strings(args).size() > 0`, `{"a":1e400,"b":2e400,"c":3e400}`},
		{"when several objects are unreadable", `args.all(k, args[k] == 1)`, `{"a":{"x":1,"x":2},"b":{"y":1,"y":2},"c":{"z":1,"z":2}}`},
		{"when a map is listed", `args.map(k, k)[0] == "a"`, `{"a":1,"b":1,"c":1,"d":1}`},
		{"when one of many keys decides before the bound is reached", `args.exists(k, k == "hit" || args.text.contains(k + "!"))`, `{"hit":1,"text":"` + strings.Repeat("a", 30_000) + `",` + many(1000, "0") + `}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := compile(t, rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, When: tt.when}))
			c := call("db/a", tt.args)
			first := e.Decide(c, free())
			for range 40 {
				if diff := cmp.Diff(first, e.Decide(c, free())); diff != "" {
					t.Fatalf("-first +later\n%s", diff)
				}
			}
		})
	}
}

func TestAnEngineIsSafeForConcurrentUse(t *testing.T) {
	e := compile(t, policy.Ruleset{Costs: costs(), Policies: []policy.Rule{
		{Type: policy.TypeDeny, When: `strings(args).exists(s, under(s, "/etc"))`},
		{Type: policy.TypeDeny, When: `args.amount > 5 || args.o == {"a": 1}`},
		{Type: policy.TypeRateLimit, MaxCalls: 5, Window: time.Hour, Per: policy.PerTool},
		{Type: policy.TypeSpendLimit, MaxUSD: policy.USD, Per: policy.PerDay},
		{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: 22 * 60, End: 6 * 60}},
	}})
	calls := []policy.Call{
		call("pay/a", `{"amount":1,"o":{"a":1,"A":2}}`), call("pay/a", `{"amount":7,"o":{}}`), call("pay/b", `{`), call("pay/b", `{"amount":"x","p":"../x"}`),
	}
	want := make([]policy.Decision, len(calls))
	for i, c := range calls {
		want[i] = e.Decide(c, free())
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 400 {
				i %= len(calls)
				e.Reads(calls[i])
				e.Never(calls[i], free().Session)
				if diff := cmp.Diff(want[i], e.Decide(calls[i], free())); diff != "" {
					t.Errorf("call %d: -alone +together\n%s", i, diff)
					return
				}
			}
		})
	}
	wg.Wait()
}
