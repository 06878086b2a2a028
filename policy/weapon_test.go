package policy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/policy"
)

// weapon is a condition and arguments of a size that the agent chooses.
type weapon struct {
	name, when string
	n          int
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

// blunt checks that four times the arguments do not take anywhere near sixteen
// times as long: either the work is bounded, or it is no product of two parts of
// the arguments. Growth is measured, not time, since that is the same on a busy
// machine.
func blunt(t *testing.T, w weapon) {
	t.Helper()
	e := compile(t, rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, When: w.when}))
	best := func(n int) time.Duration {
		c, best := call("files/write", w.args(n)), time.Hour
		for range 4 {
			began := time.Now()
			e.Decide(c, free())
			best = min(best, time.Since(began))
		}
		return best
	}
	if small, large := best(w.n), best(4*w.n); large > 9*small && large > 20*time.Millisecond {
		t.Errorf("%d KB take %v, %d KB take %v", len(w.args(w.n))>>10, small, len(w.args(4*w.n))>>10, large)
	}
}

func TestTheWorkForEachElementCounts(t *testing.T) {
	tests := []weapon{
		{"the strings of an object", `strings(args).exists(s, under(s, "/etc"))`, 4_000, func(n int) string { return `{` + keys(n) + `"z":0}` }},
		{"a long path for each element of a list", `args.a.exists(x, under(args.s, "/etc"))`, 1_000, func(n int) string { return `{"a":` + ones(n) + `,"s":"` + strings.Repeat("a/", n) + `"}` }},
		{"a long text for each element of a list", `args.a.exists(x, size(args.s) == 7)`, 2_000, func(n int) string { return `{"a":` + ones(n) + `,"s":"` + strings.Repeat("é", 3*n) + `"}` }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { blunt(t, tt) })
	}
}
