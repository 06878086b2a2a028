//go:build unmended

// The tests of this file show mistakes that are known and not mended yet, so
// they fail; run them with -tags unmended. One that passes moves to the file it
// belongs to.

package policy_test

import (
	"runtime"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/policy"
)

// Conditions that look at one part of the arguments for each element of another.
// Both are the agent's, in one message of up to 32 MiB, and no other call is
// decided meanwhile.
func TestTheUncountedWorkForEachElement(t *testing.T) {
	tests := []weapon{
		{"each key of an object", `args.all(k, args[k] == 0)`, 3_000, func(n int) string { return `{` + keys(n) + `"z":0}` }},
		{"a field of an object for each element of a list", `args.items.exists(i, i > args.limits.max)`, 3_000, func(n int) string { return `{"items":` + ones(n) + `,"limits":{` + keys(n) + `"max":1}}` }},
		{"a missing field of an object for each element of a list", `args.items.exists(i, has(args.limits.max))`, 1_000, func(n int) string { return `{"items":` + ones(n) + `,"limits":{` + keys(n) + `"z":1}}` }},
		{"whether two objects are equal", `args.a == args.b`, 3_000, func(n int) string { return `{"a":{` + keys(n) + `"z":0},"b":{` + keys(n) + `"z":0}}` }},
		{"the strings of a list that has none, for each element of another", `args.a.exists(x, strings(args.b).size() == 7)`, 1_000, func(n int) string { return `{"a":` + ones(n) + `,"b":` + ones(n) + `}` }},
		{"a regular expression for each element of a list", `args.a.exists(x, args.s.matches("^(a+)+b$"))`, 500, func(n int) string { return `{"a":` + ones(n) + `,"s":"` + strings.Repeat("a", n) + `"}` }},
		{"whether two lists are equal, for each element of a third", `args.a.exists(x, args.b != args.c)`, 1_000, func(n int) string { return `{"a":` + ones(n) + `,"b":[` + ones(n) + `],"c":[` + ones(n) + `]}` }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { blunt(t, tt) })
	}
}

// A message may have 32 MiB, so a file of some megabytes is written in one call.
// To look through it once takes milliseconds and must not be refused.
func TestOnePassOverAFileIsNotTooLarge(t *testing.T) {
	tests := []struct{ name, when string }{
		{"for a path", `strings(args).exists(s, under(s, "/etc"))`},
		{"for a word", `strings(args).exists(s, s.contains("password"))`},
		{"for a pattern", `strings(args).exists(s, s.matches("-----BEGIN [A-Z ]*PRIVATE KEY-----"))`},
	}
	args := `{"path":"/srv/x","content":"` + strings.Repeat("line of text\\n", 1_000_000) + `"}`
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, d := outcome(t, tt.when, args); got != "false" {
				t.Errorf("%s: %s", got, d.Reason)
			}
		})
	}
}

// A key that is there in another case only is in doubt, from whichever side an
// object is compared, and whatever it is compared with.
func TestAnEqualityIsTheSameFromBothSides(t *testing.T) {
	tests := []struct{ name, when, args string }{
		{"the whole", `args == {"force": true}`, `{"Force":true}`},
		{"the whole from the other side", `{"force": true} == args`, `{"Force":true}`},
		{"inequality", `args != {"force": true}`, `{"Force":true}`},
		{"a part", `args.o == {"force": true}`, `{"o":{"Force":true}}`},
		{"membership", `args.o in [{"force": true}]`, `{"o":{"Force":true}}`},
		{"membership from the other side", `{"force": true} in args.l`, `{"l":[{"Force":true}]}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, d := outcome(t, tt.when, tt.args); got != "undecided" {
				t.Errorf("%s: %s", got, seen(d))
			}
		})
	}
}

// Text that a condition puts together is memory: a bound on steps alone lets
// 110 KB of arguments become 100 MB, and a whole message as much as there is.
func TestTextThatAConditionPutsTogetherIsBounded(t *testing.T) {
	args := `{"tags":[` + strings.TrimSuffix(strings.Repeat(`"a",`, 1_000), ",") + `],"prefix":"` + strings.Repeat("a", 100_000) + `"}`
	e := compile(t, rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, When: `args.tags.map(x, args.prefix + x).size() == 7`}))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	d := e.Decide(call("files/write", args), free())
	runtime.ReadMemStats(&after)
	if mb := (after.TotalAlloc - before.TotalAlloc) >> 20; mb > 32 {
		t.Errorf("%d KB of arguments became %d MB: %s", len(args)>>10, mb, seen(d))
	}
}
