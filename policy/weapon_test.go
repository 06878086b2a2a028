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
		{"every pair of a list", `args.a.exists(x, args.a.exists(y, x + y == 3))`, 300, 20_000, func(n int) string { return `{"a":` + ones(n) + `}` }},
		{"the strings of a list that has none", `args.a.exists(x, strings(args.b).size() == 7)`, 1_000, 20_000, func(n int) string { return `{"a":` + ones(n) + `,"b":` + ones(n) + `}` }},
		{"a long path for each element of a list", `args.a.exists(x, under(args.s, "/etc"))`, 100, 20_000, func(n int) string { return `{"a":` + ones(n) + `,"s":"` + strings.Repeat("a/", n) + `"}` }},
		{"a long path to clean for each element of a list", `args.a.exists(x, clean(args.s) == "x")`, 100, 20_000, func(n int) string { return `{"a":` + ones(n) + `,"s":"` + strings.Repeat("a/", n) + `"}` }},
		{"a long address for each element of a list", `args.a.exists(x, host(args.s) == "x")`, 100, 20_000, func(n int) string { return `{"a":` + ones(n) + `,"s":"http://` + strings.Repeat("a/", n) + `"}` }},
		{"a name that is slow to read for each element of a list", `args.a.exists(x, host("http://xn--" + args.s + "0s") != "x")`, 0, 20_000, func(n int) string { return `{"a":` + ones(n) + `,"s":"` + strings.Repeat("a9", 200) + `"}` }},
		{"a long text for each element of a list", `args.a.exists(x, size(args.s) == 7)`, 100, 20_000, func(n int) string { return `{"a":` + ones(n) + `,"s":"` + strings.Repeat("é", 3*n) + `"}` }},
		{"a regular expression for each element of a list", `args.a.exists(x, args.s.matches("^(a+)+b$"))`, 500, 10_000, func(n int) string { return `{"a":` + ones(n) + `,"s":"` + strings.Repeat("a", n) + `"}` }},
		{"whether two lists are equal, for each element of a third", `args.a.exists(x, args.b != args.c)`, 500, 20_000, func(n int) string { return `{"a":` + ones(n) + `,"b":` + ones(n) + `,"c":` + ones(n) + `}` }},
		{"a text put together for each element", `args.a.map(x, args.s + "b").size() == 7`, 500, 20_000, func(n int) string { return `{"a":` + ones(n) + `,"s":"` + strings.Repeat("a", n) + `"}` }},
		{"with the ledger waiting", `now == now && args.a.exists(x, args.a.exists(y, x + y == 3))`, 100, 2_000, func(n int) string { return `{"a":` + ones(n) + `}` }},
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

// Work that is a sum of parts, however large, is no reason to refuse a call.
func TestOnePassIsNotTooLarge(t *testing.T) {
	file := `{"path":"/srv/x","content":"` + strings.Repeat("line of text\\n", 300_000) + `"}`
	many := `"items":` + ones(50_000)
	tests := []struct{ name, when, args string }{
		{"a file for a path", `strings(args).exists(s, under(s, "/etc"))`, file},
		{"a file for a path to clean", `strings(args).exists(s, clean(s) == "/etc")`, file},
		{"a file for a word", `strings(args).exists(s, s.contains("password"))`, file},
		{"a file for a pattern", `strings(args).exists(s, s.matches("-----BEGIN [A-Z ]*PRIVATE KEY-----"))`, file},
		{"a list", `args.items.exists(x, x == 2)`, `{` + many + `}`},
		{"the strings of an object", `strings(args).exists(s, under(s, "/etc"))`, `{` + keys(100_000) + `"z":0}`},
		{"each key of an object", `args.exists(k, args[k] == 7)`, `{` + keys(100_000) + `"z":0}`},
		{"a field of an object for each element of a list", `args.items.exists(i, i > args.limits.max)`, `{` + many + `,"limits":{` + keys(50_000) + `"max":1}}`},
		{"a missing field of an object for each element of a list", `args.items.exists(i, has(args.limits.max))`, `{` + many + `,"limits":{` + keys(50_000) + `"z":1}}`},
		{"whether two objects are equal", `args.a == args.b`, `{"a":{` + keys(50_000) + `"z":0},"b":{` + keys(50_000) + `"z":1}}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, d := outcome(t, tt.when, tt.args); got != "false" {
				t.Errorf("%s: %s", got, d.Reason)
			}
		})
	}
}
