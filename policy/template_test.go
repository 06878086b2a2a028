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
		{"with a condition", "file:///{x}", policy.Rule{When: "false"}, false, true},
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
		f, got := e.Expands(policy.Call{Kind: policy.KindResource, Upstream: "up", Agent: "a", Tool: c.template}, c.climbs)
		if got != c.want || got && (f.Rule != "r" || f.Policy != string(c.rule.Type) || f.Reason == "") {
			t.Errorf("%s: %v %+v", c.what, got, f)
		}
	}
}
