package policy_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/policy"
)

// ruleErrors takes apart what Compile returns. Everything in it must be a
// RuleError, since config turns them into positions.
func ruleErrors(t tb, err error) []*policy.RuleError {
	t.Helper()
	if err == nil {
		return nil
	}
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		t.Fatalf("Compile's error is no list but %T", err)
	}
	var out []*policy.RuleError
	for _, e := range joined.Unwrap() {
		var re *policy.RuleError
		if !errors.As(e, &re) {
			t.Fatalf("%T: %v", e, e)
		}
		out = append(out, re)
	}
	return out
}

func TestCompileRefuses(t *testing.T) {
	rule := func(r policy.Rule) policy.Ruleset { return rules(r) }
	tests := []struct {
		name string
		in   policy.Ruleset
		want string // list, index, field and item of the only error
	}{
		{"an unknown type", rule(policy.Rule{Type: "block"}), "policies 0 type -1"},
		{"no type", rule(policy.Rule{}), "policies 0 type -1"},
		{"a type in capitals", rule(policy.Rule{Type: "Deny", Tools: []string{"*"}}), "policies 0 type -1"},
		{"a deny of nothing", rule(policy.Rule{Type: policy.TypeDeny}), "policies 0 tools -1"},
		{"an empty pattern", rule(policy.Rule{Type: policy.TypeDeny, Tools: []string{"a", ""}}), "policies 0 tools 1"},
		{"an empty upstream", rule(policy.Rule{Type: policy.TypeDeny, Upstreams: []string{""}}), "policies 0 upstreams 0"},
		{"an empty agent", rule(policy.Rule{Type: policy.TypeDeny, Agents: []string{""}}), "policies 0 agents 0"},
		{"a negative spend limit", rule(policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: -1}), "policies 0 max_usd -1"},
		{"a spend limit beyond a billion", rule(policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: 1_000_000_000*policy.USD + 1}), "policies 0 max_usd -1"},
		{"a spend limit at the end of int64", rule(policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: math.MaxInt64}), "policies 0 max_usd -1"},
		{"a spend limit per fortnight", rule(policy.Rule{Type: policy.TypeSpendLimit, Per: "fortnight"}), "policies 0 per -1"},
		{"a spend limit per tool", rule(policy.Rule{Type: policy.TypeSpendLimit, Per: policy.PerTool}), "policies 0 per -1"},
		{"a negative rate limit", rule(policy.Rule{Type: policy.TypeRateLimit, MaxCalls: -1, Window: 1}), "policies 0 max_calls -1"},
		{"a rate limit without a window", rule(policy.Rule{Type: policy.TypeRateLimit, MaxCalls: 1}), "policies 0 window_seconds -1"},
		{"a rate limit of a negative window", rule(policy.Rule{Type: policy.TypeRateLimit, Window: -time.Hour}), "policies 0 window_seconds -1"},
		{"a rate limit per day", rule(policy.Rule{Type: policy.TypeRateLimit, Window: 1, Per: policy.PerDay}), "policies 0 per -1"},
		{"hours of no length", rule(policy.Rule{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: 60, End: 60}}), "policies 0 allowed_hours -1"},
		{"hours from minus one", rule(policy.Rule{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: -1, End: 60}}), "policies 0 allowed_hours -1"},
		{"hours from 24:00", rule(policy.Rule{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: 1440, End: 60}}), "policies 0 allowed_hours -1"},
		{"hours to 24:01", rule(policy.Rule{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: 60, End: 1441}}), "policies 0 allowed_hours -1"},
		{"hours to minus one", rule(policy.Rule{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: 60, End: -1}}), "policies 0 allowed_hours -1"},
		{"a negative cost", policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, USD: -1}}}, "costs 0 usd -1"},
		{"a cost beyond a billion", policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, USD: math.MaxInt64}}}, "costs 0 usd -1"},
		{"a pointer without a slash", policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, HasFromArgument: true, FromArgument: "amount"}}}, "costs 0 from_argument -1"},
		{"a pointer with a lone tilde", policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, HasFromArgument: true, FromArgument: "/a~"}}}, "costs 0 from_argument -1"},
		{"a pointer with a bad escape", policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, HasFromArgument: true, FromArgument: "/~0~2"}}}, "costs 0 from_argument -1"},
		{"a result pointer without a slash", policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, USD: 1, FromResult: "cost"}}}, "costs 0 from_result -1"},
		{"usd with from_argument", policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, USD: 1, HasFromArgument: true, FromArgument: "/a"}}}, "costs 0 from_argument -1"},
		{"from_result with from_argument", policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, FromResult: "/b", HasFromArgument: true, FromArgument: "/a"}}}, "costs 0 from_argument -1"},
		{"a scope rule that requires nothing", policy.Ruleset{Scopes: []policy.Scope{{Tools: []string{"*"}}}}, "scopes 0 require -1"},
		{"an id that is taken", rules(
			policy.Rule{ID: "x", Type: policy.TypeAllow}, policy.Rule{ID: "y", Type: policy.TypeAllow}, policy.Rule{ID: "x", Type: policy.TypeDeny, Tools: []string{"*"}},
		), "policies 2 id -1"},
		{"an id that another rule has by its number", rules(
			policy.Rule{ID: "deny-2", Type: policy.TypeDeny, Tools: []string{"a"}}, policy.Rule{Type: policy.TypeDeny, Tools: []string{"b"}},
		), "policies 1 id -1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e, err := policy.Compile(tt.in)
			errs := ruleErrors(t, err)
			if e != nil || len(errs) != 1 {
				t.Fatalf("engine %v, %d errors: %v", e != nil, len(errs), err)
			}
			re := errs[0]
			if got := fmt.Sprintf("%s %d %s %d", re.List, re.Index, re.Field, re.Item); got != tt.want {
				t.Errorf("got %s, want %s (%v)", got, tt.want, err)
			}
			if re.Err == nil || !errors.Is(re, re.Err) || !strings.Contains(re.Error(), re.Err.Error()) {
				t.Errorf("%v", re)
			}
			if re.Line != 0 || re.Column != 0 {
				t.Errorf("line %d column %d of a field that has no text", re.Line, re.Column)
			}
		})
	}
}

func TestCompileAccepts(t *testing.T) {
	tests := []struct {
		name string
		in   policy.Ruleset
	}{
		{"nothing", policy.Ruleset{}},
		{"an allow of nothing", rules(policy.Rule{Type: policy.TypeAllow})},
		{"limits of zero", rules(policy.Rule{Type: policy.TypeSpendLimit}, policy.Rule{Type: policy.TypeRateLimit, Window: 1})},
		{"a spend limit of a billion", rules(policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: 1_000_000_000 * policy.USD})},
		{"hours to midnight written 24:00", rules(policy.Rule{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: 540, End: 1440}})},
		{"hours to midnight written 00:00", rules(policy.Rule{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: 540, End: 0}})},
		{"the pointer to the whole", policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, HasFromArgument: true}}}},
		{"a pointer to an empty key", policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, HasFromArgument: true, FromArgument: "/"}}}},
		{"rules alike without ids", rules(policy.Rule{Type: policy.TypeAllow}, policy.Rule{Type: policy.TypeAllow})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { compile(t, tt.in) })
	}
}

func TestCompileCollectsEveryMistake(t *testing.T) {
	_, err := policy.Compile(policy.Ruleset{
		Costs:  []policy.Cost{{Tools: []string{"*"}}, {Tools: []string{"["}, USD: -1}},
		Scopes: []policy.Scope{{Tools: []string{"", "ok", `\`}}},
		Policies: []policy.Rule{
			{Type: policy.TypeDeny, ID: "one", Tools: []string{"a"}, When: "foo == 1 &&\n  args.x == bar"},
			{Type: "nonsense", ID: "one", Upstreams: []string{"["}},
			{Type: policy.TypeRateLimit, MaxCalls: -1, Per: "moon"},
			{Type: policy.TypeAllow, Tools: []string{"fine"}},
			{Type: policy.TypeSpendLimit, MaxUSD: -1, When: "args.x =="},
		},
	})
	var got []string
	for _, e := range ruleErrors(t, err) {
		got = append(got, fmt.Sprintf("%s %d %s %d %d:%d", e.List, e.Index, e.Field, e.Item, e.Line, e.Column))
	}
	want := []string{
		"costs 1 tools 0 0:0",
		"costs 1 usd -1 0:0",
		"scopes 0 tools 0 0:0",
		"scopes 0 tools 2 0:0",
		"scopes 0 require -1 0:0",
		"policies 0 when -1 1:1",
		"policies 0 when -1 2:13",
		"policies 1 upstreams 0 0:0",
		"policies 1 type -1 0:0",
		"policies 2 max_calls -1 0:0",
		"policies 2 window_seconds -1 0:0",
		"policies 2 per -1 0:0",
		"policies 4 when -1 1:10",
		"policies 4 max_usd -1 0:0",
		"policies 1 id -1 0:0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s\n%v", diff, err)
	}
}

func TestMistakesInAWhenCarryTheirPlace(t *testing.T) {
	tests := []struct {
		name, when string
		line, col  int
		want       string
	}{
		{"an unknown variable", "foo == 1", 1, 1, "foo"},
		{"an unknown variable on the second line", "true &&\n  bar", 2, 3, "bar"},
		{"an unknown variable after letters of several bytes", `tool == "äöü" && bar`, 1, 18, "bar"},
		{"an unknown function", "tool == lower(tool)", 1, 14, "lower"},
		{"an unknown method", "tool.lower() == tool", 1, 11, "lower"},
		{"a syntax error", "args.force ===", 1, 14, "Syntax"},
		{"an expression that is cut off", "args.force ==", 1, 14, "Syntax"},
		{"types that do not go together", `tool + 1 == "x"`, 1, 6, "_+_"},
		{"under of a number", `under(1, "/etc")`, 1, 6, "under"},
		{"a number", "1 + 1", 1, 1, "int"},
		{"a string", `"true"`, 1, 1, "string"},
		{"a list", "[true]", 1, 1, "list"},
		{"a value of any type", "args.force", 1, 1, "dyn"},
		{"blanks", "  ", 1, 3, "Syntax"},
		{"a regular expression that is none", `tool.matches("(")`, 1, 1, "missing closing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := policy.Compile(rules(policy.Rule{Type: policy.TypeAllow}, policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, When: tt.when}))
			errs := ruleErrors(t, err)
			if len(errs) == 0 {
				t.Fatal("no error")
			}
			e := errs[0]
			if e.List != "policies" || e.Index != 1 || e.Field != "when" || e.Item != -1 || !strings.Contains(e.Err.Error(), tt.want) {
				t.Errorf("%+v: %v", e, e)
			}
			// What has no more precise place than the expression may point
			// anywhere into it, but not nowhere: config has to show a line.
			exact := tt.want == "Syntax" || strings.HasPrefix(tt.name, "an unknown") || strings.HasPrefix(tt.name, "types") || strings.HasPrefix(tt.name, "under")
			if exact && (e.Line != tt.line || e.Column != tt.col) || e.Line < 1 || e.Column < 1 {
				t.Errorf("at %d:%d, want %d:%d", e.Line, e.Column, tt.line, tt.col)
			}
		})
	}
}

func TestAWeekdayThatIsNoneIsAMistake(t *testing.T) {
	for _, d := range []time.Weekday{-1, 7, 8, math.MaxInt, math.MinInt} {
		t.Run(fmt.Sprint(int(d)), func(t *testing.T) {
			defer func() {
				if r := recover(); r != nil {
					t.Errorf("Compile panics: %v", r)
				}
			}()
			_, err := policy.Compile(rules(policy.Rule{Type: policy.TypeTimeWindow, Days: []time.Weekday{time.Monday, d}}))
			if errs := ruleErrors(t, err); len(errs) != 1 || errs[0].Field != "days" || errs[0].Item != 1 {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRulesAreNamed(t *testing.T) {
	e := compile(t, rules(
		policy.Rule{Type: policy.TypeDeny, Tools: []string{"a"}},
		policy.Rule{Type: policy.TypeAllow},
		policy.Rule{Type: policy.TypeDeny, ID: "mine", Tools: []string{"a"}},
		policy.Rule{Type: policy.TypeDeny, Tools: []string{"a"}},
		policy.Rule{Type: policy.TypeSpendLimit},
	))
	if diff := cmp.Diff([]string{"deny-1", "allow-1", "mine", "deny-3", "spend_limit-1"}, e.Rules()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}
