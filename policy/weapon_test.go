package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/policy"
)

// weapon is a condition and arguments of a size that the agent chooses. With few
// parts the condition must be decided, with many it must be given up.
type weapon struct {
	name, when string
	few, many  int
	args       func(n int) string
}

// ones is a list, and keys the members of an object, with n parts.
func ones(n int) string { return "[" + strings.TrimSuffix(strings.Repeat("1,", n), ",") + "]" }

func keys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"k%06d":0,`, i)
	}
	return b.String()
}

// Work that is a product of two parts of the arguments is counted and bounded,
// by the same measure on a busy machine as on an idle one.
func TestTheWorkForEachElementCounts(t *testing.T) {
	tests := []weapon{
		{"the strings of an object", `strings(args).exists(s, under(s, "/etc"))`, 4_000, 100_000, func(n int) string { return `{` + keys(n) + `"z":0}` }},
		{"a long path for each element of a list", `args.a.exists(x, under(args.s, "/etc"))`, 50, 2_000, func(n int) string { return `{"a":` + ones(n) + `,"s":"` + strings.Repeat("a/", n) + `"}` }},
		{"a long text for each element of a list", `args.a.exists(x, size(args.s) == 7)`, 50, 4_000, func(n int) string { return `{"a":` + ones(n) + `,"s":"` + strings.Repeat("é", 3*n) + `"}` }},
	}
	for _, w := range tests {
		t.Run(w.name, func(t *testing.T) {
			e := compile(t, rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, When: w.when}))
			if d := e.Decide(call("files/write", w.args(w.few)), free()); d.Verdict != policy.Allow {
				t.Errorf("with %d parts: %s", w.few, d.Reason)
			}
			if d := e.Decide(call("files/write", w.args(w.many)), free()); d.Verdict == policy.Allow || !strings.Contains(d.Reason, "too large") {
				t.Errorf("with %d parts: %v, reason %q; want it denied, the arguments being too large", w.many, d.Verdict, d.Reason)
			}
		})
	}
}
