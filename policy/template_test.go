package policy_test

import (
	"testing"

	"github.com/haldir-mcp/haldir/policy"
)

// A template could become whatever begins as it does before its first variable, and with dot
// segments among the values whatever has its scheme.
func TestExpandsFindsWhatATemplateCouldBecome(t *testing.T) {
	for _, c := range []struct {
		what, template string
		rule           policy.Rule
		climbs, want   bool
	}{
		{"below the template", "file:///{+path}", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}}, false, true},
		{"above the template", "file:///secret/{x}", policy.Rule{Tools: []string{"resource:up/file:///*"}}, false, true},
		{"beside the template", "file:///public/{x}", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}}, false, false},
		{"beside it, with dot segments", "file:///public/{x}", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}}, true, true},
		{"beside it, of three parts", "file:///logs/{y}.{m}.{d}", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}}, false, false},
		{"beside it, with dot segments of its own", "file:///public/{a}/../../secret/{b}", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}}, false, true},
		{"beside it, with dot segments in percent", "file:///public/{a}/%2e./%2E%2e%2fsecret/{b}", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}}, false, true},
		{"beside it, with a dot segment where a value is empty", "file:///public/{a}../{b}", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}}, false, true},
		{"beside it, with a dot segment where a value has a slash", "file:///public/{a}/x{+b}..{c}", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}}, false, true},
		{"beside it, with dots", "file:///public/{a}/..x/{c}.{d}/x..{e}", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}}, false, false},
		{"beside it, with percent that is none", "file:///public/{a}/%zz", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}}, false, true},
		{"allows the template, which climbs", "file:///public/{a}/../../x", policy.Rule{Type: policy.TypeAllow, Tools: []string{"resource:up/file:///public/*"}}, false, true},
		{"beside it in the same folder", "file:///p{x}", policy.Rule{Tools: []string{"resource:up/file:///secret"}}, false, false},
		{"the folder itself", "file:///pub/{x}", policy.Rule{Tools: []string{"resource:up/file:///pub"}}, false, true},
		{"anywhere", "file:///public/{x}", policy.Rule{Tools: []string{"resource:up/*.env"}}, false, true},
		{"a pattern in the middle", "file:///public/{x}", policy.Rule{Tools: []string{"resource:up/file:///s[ae]*/x"}}, false, false},
		{"another spelling", "FILE://localhost/a/../{x}", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}}, false, true},
		{"another spelling, beside", "FILE://localhost/%70ublic/{x}", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}}, false, false},
		{"a host that goes on", "https://h{x}/a", policy.Rule{Tools: []string{"resource:up/https://secret/*"}}, false, true},
		{"a port that goes on", "https://h:44{x}/a", policy.Rule{Tools: []string{"resource:up/https://h/a"}}, false, true},
		{"another host", "https://h/{x}", policy.Rule{Tools: []string{"resource:up/https://secret/*"}}, false, false},
		{"another scheme", "https://h/{x}", policy.Rule{Tools: []string{"resource:up/file:///*"}}, true, false},
		{"no scheme of its own", "{+uri}", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}}, false, true},
		{"no path", "note:{x}", policy.Rule{Tools: []string{"resource:up/note:a*"}}, false, true},
		{"without a variable", "file:///", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}}, false, true},
		{"of every upstream", "file:///{x}", policy.Rule{Tools: []string{"resource:file:///secret*"}}, false, false}, // its upstream is "file:"
		{"of another upstream", "file:///{x}", policy.Rule{Tools: []string{"resource:other/file:///secret/*"}}, false, false},
		{"of another agent", "file:///{x}", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}, Agents: []string{"other"}}, false, false},
		{"of tools", "file:///{x}", policy.Rule{Tools: []string{"up/*"}}, true, false},
		{"with a condition", "file:///{x}", policy.Rule{When: "true"}, false, true},
		{"with a condition that never holds", "file:///{x}", policy.Rule{When: "false"}, true, false},
		{"of a tool by its name", "file:///{x}", policy.Rule{When: `tool == "delete_all" || tool in ["a", "b"] || "c" == tool`}, true, false},
		{"of any but a tool", "file:///{x}", policy.Rule{When: `tool != "delete_all"`}, false, true},
		{"of an argument that reads have not", "file:///{x}", policy.Rule{When: `has(args.force) && args.force == true || "hard" in args && args["hard"] == true`}, true, false},
		{"of one, and a pattern", "file:///{x}", policy.Rule{Tools: []string{"resource:up/*"}, When: `has(args.force)`}, true, false},
		{"of one, by a person", "file:///{x}", policy.Rule{Type: policy.TypeApproval, When: `has(args.force)`}, true, false},
		{"of an argument that is read blindly", "file:///{x}", policy.Rule{When: `args.force == true`}, false, true},
		{"of what it could be, by its name", "file:///{x}", policy.Rule{When: `tool == "file:///secret"`}, false, true},
		{"of what it could be, in a list", "file:///{x}", policy.Rule{When: `tool in ["a", "file:///secret"]`}, false, true},
		{"of what it could be with dot segments", "file:///public/{x}", policy.Rule{When: `tool == "file:///secret"`}, true, true},
		{"of what it could not be", "file:///public/{x}", policy.Rule{When: `tool == "file:///secret"`}, false, false},
		{"of how it could begin", "file:///{x}", policy.Rule{When: `tool.startsWith("file:///secret")`}, false, true},
		{"of its uri", "file:///{x}", policy.Rule{When: `args.uri.contains("secret")`}, false, true},
		{"of its uri, by index", "file:///{x}", policy.Rule{When: `args["uri"] == "file:///secret"`}, false, true},
		{"of its uri, in another case", "file:///{x}", policy.Rule{When: `has(args.URI) && args.URI == "x"`}, false, true},
		{"of all its arguments", "file:///{x}", policy.Rule{When: `strings(args).exists(s, s.contains("secret"))`}, false, true},
		{"of each argument", "file:///{x}", policy.Rule{When: `args.exists(k, k != "force" && args[k] == "secret")`}, false, true},
		{"of its arguments as a whole", "file:///{x}", policy.Rule{When: `args == {"uri": "file:///secret"}`}, false, true},
		{"of its cost", "file:///{x}", policy.Rule{When: `cost_usd > 1.0`}, false, true},
		{"of the time", "file:///{x}", policy.Rule{When: `now > timestamp("2000-01-01T00:00:00Z")`}, false, true},
		{"in shadow", "file:///{x}", policy.Rule{Tools: []string{"resource:up/file:///secret/*"}, Shadow: true}, false, false},
		{"asks a person", "file:///{x}", policy.Rule{Type: policy.TypeApproval, Tools: []string{"resource:up/file:///secret/*"}}, false, true},
		{"allows the template", "file:///public/{x}", policy.Rule{Type: policy.TypeAllow, Tools: []string{"resource:up/file:///public/*"}}, false, false},
		{"allows the template, not what climbs", "file:///public/{x}", policy.Rule{Type: policy.TypeAllow, Tools: []string{"resource:up/file:///public/*"}}, true, true},
		{"allows all", "file:///public/{x}", policy.Rule{Type: policy.TypeAllow, Tools: []string{"resource:up/*"}}, true, false},
		{"counts", "file:///{x}", policy.Rule{Type: policy.TypeRateLimit, MaxCalls: 1, Window: 1}, true, false},
	} {
		if c.rule.Type == "" {
			c.rule.Type = policy.TypeDeny
		}
		c.rule.ID = "r"
		e := compile(t, policy.Ruleset{Policies: []policy.Rule{c.rule}})
		f, got := e.Expands(policy.Call{Kind: policy.KindResource, Upstream: "up", Agent: "a", Tool: c.template, Arguments: []byte(`{"uri":"` + c.template + `"}`)}, c.climbs)
		if got != c.want || got && (f.Rule != "r" || f.Policy != string(c.rule.Type) || f.Reason == "") {
			t.Errorf("%s: %v %+v", c.what, got, f)
		}
	}
}

// A condition about arguments that may come yet says nothing; one about an argument that is
// there counts, also if it cannot be decided.
func TestAPartialCallIsJudgedByWhatItHas(t *testing.T) {
	for _, c := range []struct {
		when, args string
		want       policy.Verdict
	}{
		{`args.who == "x"`, `{"b":"x"}`, policy.Allow},
		{`args.who == "x"`, `{}`, policy.Allow},
		{`args["who"].startsWith("x") && tool == "t"`, `{"b":"x"}`, policy.Allow},
		{`args.who == "x"`, `{"who":"x"}`, policy.Deny},
		{`args.who > 5`, `{"who":"x"}`, policy.Deny},
		{`args.who == "x"`, `{"Who":"x"}`, policy.Deny},
		{`args.who == "x" || args.b == "x"`, `{"b":"x"}`, policy.Deny},
		{`args.who == "x" || under(args.b, "/etc")`, `{"b":"../../etc"}`, policy.Deny},
		{`args.who == "x" || strings(args).exists(s, under(s, "/etc"))`, `{"b":"../../etc"}`, policy.Deny},
		{`!has(args.who)`, `{"b":"x"}`, policy.Deny},
		{`args.who == "x"`, `{"b":"x","b":"y"}`, policy.Deny},
	} {
		e := compile(t, policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeDeny, When: c.when}}})
		call := policy.Call{Kind: policy.KindPrompt, Upstream: "up", Tool: "t", Arguments: []byte(c.args), Partial: true}
		state := policy.State{Session: policy.SessionState{AllScopes: true}}
		if d := e.Decide(call, state); d.Verdict != c.want {
			t.Errorf("%s of %s: %+v", c.when, c.args, d)
		}
		if e.Prepare(&call); e.Decide(call, state).Verdict != c.want {
			t.Errorf("%s of %s: prepared, otherwise", c.when, c.args)
		}
		if call.Partial = false; e.Decide(call, state).Verdict != policy.Deny {
			t.Errorf("%s of %s: passes as a whole", c.when, c.args)
		}
	}
}
