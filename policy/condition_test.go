package policy_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/policy"
)

func TestConditions(t *testing.T) {
	tests := []struct{ name, when, args, want string }{
		{"a boolean", `args.force == true`, `{"force":true}`, "true"},
		{"a boolean that is a string", `args.force == true`, `{"force":"true"}`, "false"},
		{"a boolean that is a number", `args.force == true`, `{"force":1}`, "false"},
		{"null", `args.x == null`, `{"x":null}`, "true"},
		{"null is not missing", `has(args.x)`, `{"x":null}`, "true"},
		{"no arguments are an empty object", `size(args) == 0`, ``, "true"},
		{"an empty object", `size(args) == 0`, `{}`, "true"},
		{"blanks everywhere", `args.a.b == 1 && args.c[1] == 2`, " {\t\"a\" : {\n\"b\" : 1 } , \"c\" : [ 1 , 2 ] } ", "true"},
		{"nested values", `args.a.b[1].c == "x"`, `{"a":{"b":[0,{"c":"x"}]}}`, "true"},
		{"a key that is no name", `args["a b/c"] == 1`, `{"a b/c":1}`, "true"},
		{"an empty key", `args[""] == 1`, `{"":1}`, "true"},
		{"a key written with escapes", `args.path == "/x"`, `{"\u0070ath":"\/x"}`, "true"},
		{"a string with every escape", `args.s == "\"\\/\b\f\n\r\té😀"`, `{"s":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"}`, "true"},
		{"brackets and commas within strings", `args.a == "}],{[" && args.b == 1`, `{"a":"}],{[","b":1}`, "true"},
		{"quotes within strings", `args.a == "x\",\"b\":2,\"" && args.b == 1`, `{"a":"x\",\"b\":2,\"","b":1}`, "true"},
		{"a backslash at the end of a string", `args.a == "\\" && args.b == 1`, `{"a":"\\","b":1}`, "true"},
		{"an optional value", `args.?a.?b.orValue(5) == 5`, `{"a":{}}`, "true"},
		{"the tool", `tool == "write"`, ``, "true"},
		{"the upstream", `upstream == "files"`, ``, "true"},
		{"the agent", `agent == "bot"`, ``, "true"},
		{"the session", `session == "ses_1"`, ``, "true"},
		{"the time", `now == timestamp("2026-11-24T12:00:00Z")`, ``, "true"},
		{"the time in UTC", `now.getHours() == 12`, ``, "true"},
		{"the cost without a cost rule", `cost_usd == 0.0`, ``, "true"},
		{"a comparison of strings", `args.s < "b"`, `{"s":"a"}`, "true"},
		{"a regular expression", `args.s.matches("^a+$")`, `{"s":"aaa"}`, "true"},

		{"a missing key", `args.force == true`, `{}`, `there is no "force" (test it first: has(args.force))`},
		{"a missing key in no arguments", `args.force == true`, ``, `there is no "force"`},
		{"a missing key of a nested object", `args.a.force == true`, `{"a":{}}`, `there is no "force"`},
		{"a key of another case is missing", `args.force == true`, `{"Force":true}`, `differ only in case`},
		{"has guards", `has(args.force) && args.force == true`, `{}`, "false"},
		{"has guards from the right too", `args.force == true && has(args.force)`, `{}`, "false"},
		{"has of a nested key without its parent", `has(args.a.b)`, `{}`, `there is no "a"`},
		{"an index beyond the list", `args.l[5] == 1`, `{"l":[1]}`, "index"},
		{"types that do not compare", `args.n > 5`, `{"n":"6"}`, "overload"},
		{"a method of another type", `args.n.startsWith("x")`, `{"n":6}`, "overload"},
		{"a division by zero", `1 / args.n == 1`, `{"n":0}`, "zero"},
		{"an overflow", `args.n + 1 > 0`, `{"n":9223372036854775807}`, "overflow"},
		{"a value of another type than bool by ternary", `args.b ? true : false`, `{"b":1}`, "overload"},

		{"or is true whatever the other side: left", `agent == "bot" || args.force == true`, `{}`, "true"},
		{"or is true whatever the other side: right", `args.force == true || agent == "bot"`, `{}`, "true"},
		{"or is undecided if the rest is false", `args.force == true || agent == "root"`, `{}`, "force"},
		{"and is false whatever the other side: left", `agent == "root" && args.force == true`, `{}`, "false"},
		{"and is false whatever the other side: right", `args.force == true && agent == "root"`, `{}`, "false"},
		{"and is undecided if the rest is true", `args.force == true && agent == "bot"`, `{}`, "force"},
		{"not of undecided is undecided", `!(args.force == true)`, `{}`, "force"},
		{"exists is true whatever the other elements", `args.l.exists(x, x.a == 1)`, `{"l":[{},{"a":1},7]}`, "true"},
		{"exists is undecided if no element is true", `args.l.exists(x, x.a == 1)`, `{"l":[{},{"a":2}]}`, `"a"`},
		{"all is false whatever the other elements", `args.l.all(x, x.a == 1)`, `{"l":[{},{"a":2}]}`, "false"},
		{"all is undecided if no element is false", `args.l.all(x, x.a == 1)`, `{"l":[{},{"a":1}]}`, `"a"`},
		{"or is true whatever the arguments are", `agent == "bot" || args.force == true`, `garbage`, "true"},
		{"a condition that does not read the arguments does not mind them", `agent == "root"`, `garbage`, "false"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, d := outcome(t, tt.when, tt.args)
			if tt.want == "true" || tt.want == "false" {
				if got != tt.want {
					t.Errorf("%s: %s %s", got, seen(d), d.Reason)
				}
				return
			}
			if got != "undecided" || !strings.Contains(d.Reason, tt.want) || !strings.Contains(d.Reason, "'it'") {
				t.Errorf("%s: %s %s, want it to say %s", got, seen(d), d.Reason, tt.want)
			}
		})
	}
}

func TestNumbersInConditions(t *testing.T) {
	tests := []struct{ name, when, n, want string }{
		{"2^53+1 is itself", `args.n == 9007199254740993`, `9007199254740993`, "true"},
		{"2^53+1 is not 2^53", `args.n == 9007199254740992`, `9007199254740993`, "false"},
		{"2^53+1 is above 2^53", `args.n > 9007199254740992`, `9007199254740993`, "true"},
		{"2^53+1 is in a list that has it", `args.n in [1, 9007199254740993]`, `9007199254740993`, "true"},
		{"2^53+1 is not in a list of its neighbours", `args.n in [9007199254740992, 9007199254740994]`, `9007199254740993`, "false"},
		{"the largest int64", `args.n == 9223372036854775807`, `9223372036854775807`, "true"},
		{"the smallest int64", `args.n == -9223372036854775808`, `-9223372036854775808`, "true"},
		{"an integer below int64 is not compared inexactly", `args.n < 0`, `-9223372036854775809`, "too large"},
		{"an integer above uint64 is not compared inexactly", `args.n == 18446744073709551615u`, `18446744073709551616`, "too large"},
		{"above int64, exactly", `args.n == 9223372036854775808u`, `9223372036854775808`, "true"},
		{"above int64, not its neighbour", `args.n == 9223372036854775809u`, `9223372036854775808`, "false"},
		{"above int64 compares with int", `args.n > 9223372036854775807`, `9223372036854775808`, "true"},
		{"the largest uint64", `args.n == 18446744073709551615u`, `18446744073709551615`, "true"},
		{"an int equals a uint", `args.n == 7u`, `7`, "true"},
		{"an int equals a double", `args.n == 7.0`, `7`, "true"},
		{"a double equals an int", `args.n == 7`, `7.0`, "true"},
		{"a double by exponent equals an int", `args.n == 700`, `7e2`, "true"},
		{"a double in a list of ints", `args.n in [1, 7]`, `7.0`, "true"},
		{"a double compares with an int", `args.n > 7`, `7.000001`, "true"},
		{"a negative number compares with a uint", `args.n < 7u`, `-1`, "true"},
		{"minus zero is zero", `args.n == 0`, `-0`, "true"},
		{"minus zero as a double is zero", `args.n == 0`, `-0.0`, "true"},
		{"a number below the smallest float is zero", `args.n == 0.0`, `1e-400`, "true"},
		{"a number is not its text", `args.n == 7`, `"7"`, "false"},
		{"a number is no boolean", `args.n == true`, `1`, "false"},
		{"a number is not null", `args.n == null`, `0`, "false"},
		{"1e400 cannot be compared", `args.n > 5`, `1e400`, "too large"},
		{"-1e400 cannot be compared", `args.n < 5`, `-1e400`, "too large"},
		{"1e400 is not unequal either", `args.n != 5`, `1e400`, "too large"},
		{"an integer of 400 digits cannot be compared", `args.n > 5`, strings.Repeat("9", 400), "too large"},
		{"an exponent bomb cannot be compared", `args.n > 5`, `1e999999999999`, "too large"},
		{"1e400 does not disturb what does not look at it", `args.ok == 1`, `1e400,"ok":1`, "true"},
		{"1e400 in a list is not in it", `5 in args.n`, `[1e400]`, "too large"},
		{"1e400 in a list makes the list unreadable", `args.n[0] == 5`, `[5,1e400]`, "too large"},
		{"1e400 in an object makes only itself unreadable", `args.n.a == 5`, `{"a":5,"b":1e400}`, "true"},
		{"a list with 1e400 equals none", `args.n == [5]`, `[1e400]`, "too large"},
		{"a list with 1e400 is unequal to none", `args.n != [5]`, `[1e400]`, "too large"},
		{"an object with 1e400 equals none", `args.n == {"a": 5}`, `{"a":1e400}`, "too large"},
		{"an object with 1e400 is unequal to none", `args.n != {"a": 5}`, `{"a":1e400}`, "too large"},
		{"NaN is no JSON", `args.n == 1`, `NaN`, "no valid JSON"},
		{"a leading zero is no JSON", `args.n == 1`, `01`, "no valid JSON"},
		{"a plus is no JSON", `args.n == 1`, `+1`, "no valid JSON"},
		{"a bare point is no JSON", `args.n == 0.5`, `.5`, "no valid JSON"},
		{"hexadecimal is no JSON", `args.n == 16`, `0x10`, "no valid JSON"},
		{"an underscore is no JSON", `args.n == 10`, `1_0`, "no valid JSON"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, d := outcome(t, tt.when, `{"n":`+tt.n+`}`)
			if tt.want == "true" || tt.want == "false" {
				if got != tt.want {
					t.Errorf("%s: %s", got, d.Reason)
				}
			} else if got != "undecided" || !strings.Contains(d.Reason, tt.want) {
				t.Errorf("%s: %s %s, want it to say %s", got, seen(d), d.Reason, tt.want)
			}
		})
	}
	t.Run("the cost is exact enough to be compared with what people write", func(t *testing.T) {
		for _, usd := range []string{"0.004", "0.1", "0.3", "25.0", "0.000001", "999999999.999999"} {
			e := compile(t, policy.Ruleset{Costs: costs(), Policies: []policy.Rule{{Type: policy.TypeDeny, When: "cost_usd == " + usd}}})
			if d := e.Decide(call("pay/a", `{"amount":`+usd+`}`), free()); d.Policy != "deny" {
				t.Errorf("%s: %+v", usd, d)
			}
		}
	})
}

// Keys that differ only in case are one key to some upstreams and two to
// others. Whatever looks into such an object is undecidable: no comparison
// with it may come out true or false. A list is read as a whole, and what is
// undecidable may be so although the rest of the condition would decide it: to
// refuse too much is safe there. Those cases say "not false" or "not true".
func TestKeysThatDifferOnlyInCase(t *testing.T) {
	tests := []struct{ name, when, args, want string }{
		{"reading one of them", `args.a == 1`, `{"a":1,"A":2}`, "undecided"},
		{"reading another key of the object", `args.b == 1`, `{"b":1,"a":1,"A":2}`, "undecided"},
		{"asking for one of them", `has(args.a)`, `{"a":1,"A":2}`, "undecided"},
		{"asking for a key that is missing", `has(args.zz)`, `{"a":1,"A":2}`, "undecided"},
		{"asking optionally", `args.?zz.hasValue()`, `{"a":1,"A":2}`, "undecided"},
		{"an optional default", `args.?zz.orValue(1) == 2`, `{"a":1,"A":2}`, "undecided"},
		{"membership", `"zz" in args`, `{"a":1,"A":2}`, "undecided"},
		{"its size", `size(args) == 2`, `{"a":1,"A":2}`, "undecided"},
		{"its keys", `args.exists(k, k == "zz")`, `{"a":1,"A":2}`, "undecided"},
		{"its strings", `strings(args).size() == 0`, `{"a":1,"A":2}`, "undecided"},
		{"equality", `args == {"a": 1}`, `{"a":1,"A":2}`, "undecided"},
		{"inequality", `args != {"a": 1}`, `{"a":1,"A":2}`, "undecided"},
		{"its type", `type(args) == map`, `{"a":1,"A":2}`, "undecided"},

		{"a sibling of such an object", `args.b == 1`, `{"b":1,"o":{"a":1,"A":2}}`, "true"},
		{"that there is such an object", `has(args.o)`, `{"o":{"a":1,"A":2}}`, "not false"},
		{"an element beside such an object", `args.l[0] == 1`, `{"l":[1,{"a":1,"A":2}]}`, "not false"},
		{"an object above such an object", `args.o.b == 1`, `{"o":{"b":1,"p":{"a":1,"A":2}}}`, "true"},
		{"a condition that reads nothing", `agent == "root"`, `{"a":1,"A":2}`, "false"},

		{"reading in a nested object", `args.o.a == 1`, `{"o":{"a":1,"A":2}}`, "undecided"},
		{"asking in a nested object", `has(args.o.zz)`, `{"o":{"a":1,"A":2}}`, "undecided"},
		{"asking optionally in a nested object", `args.?o.?zz.orValue(1) == 2`, `{"o":{"a":1,"A":2}}`, "undecided"},
		{"comparing a nested object", `args.o == {"a": 1}`, `{"o":{"a":1,"A":2}}`, "undecided"},
		{"comparing it with another kind", `args.o != 1`, `{"o":{"a":1,"A":2}}`, "undecided"},
		{"membership of a nested object", `args.o in [1, 2]`, `{"o":{"a":1,"A":2}}`, "undecided"},
		{"comparing the whole with what it could be", `args == {"o": {"a": 1}}`, `{"o":{"a":1,"A":2}}`, "undecided"},
		{"comparing the whole with what it must not be", `args != {"o": {"a": 1}}`, `{"o":{"a":1,"A":2}}`, "undecided"},
		{"comparing the whole with itself", `args == args`, `{"o":{"a":1,"A":2}}`, "undecided"},
		{"comparing a list with it", `args.l == [{"a": 1}]`, `{"l":[{"a":1,"A":2}]}`, "undecided"},
		{"comparing a list with something quite else", `args.l == [7]`, `{"l":[{"a":1,"A":2}]}`, "undecided"},
		{"a list being unequal", `args.l != [{"a": 1}]`, `{"l":[{"a":1,"A":2}]}`, "undecided"},
		{"a list of another length differs all the same", `args.l == [1, 2]`, `{"l":[{"a":1,"A":2}]}`, "not true"},
		{"looking for something in its list", `7 in args.l`, `{"l":[{"a":1,"A":2}]}`, "undecided"},
		{"not finding something in its list", `!({"a": 1} in args.l)`, `{"l":[{"a":1,"A":2}]}`, "undecided"},
		{"finding something else in its list", `7 in args.l`, `{"l":[{"a":1,"A":2},7]}`, "not false"},
		{"the strings of the whole", `strings(args).exists(s, s == "zz")`, `{"o":{"a":1,"A":2}}`, "undecided"},
		{"the strings of an optional", `strings(args.?o).size() == 0`, `{"o":{"a":1,"A":2}}`, "undecided"},
		{"exists where another element is true", `args.l.exists(x, x.b == 1)`, `{"l":[{"a":1,"A":2},{"b":1}]}`, "not false"},
		{"exists where none is", `args.l.exists(x, x.b == 1)`, `{"l":[{"a":1,"A":2},{"b":2}]}`, "undecided"},
		{"an or that is decided before it is looked at", `agent == "bot" || args.o.a == 1`, `{"o":{"a":1,"A":2}}`, "true"},
		{"an or that is decided after it is looked at", `args.o.a == 1 || agent == "bot"`, `{"o":{"a":1,"A":2}}`, "not false"},
		{"an and that is decided after it is looked at", `args.o.a == 1 && agent == "root"`, `{"o":{"a":1,"A":2}}`, "not true"},
		{"looked at by the first of two conditions and not by the second", `args.ok == 1`, `{"ok":1,"o":{"a":1,"A":2}}`, "true"},
		{"a list made of it", `[args.o] == [1]`, `{"o":{"a":1,"A":2}}`, "undecided"},
		{"a list made of it optionally", `[?args.?o] == [{"a": 1}]`, `{"o":{"a":1,"A":2}}`, "undecided"},

		{"the same key twice", `args.a == 1`, `{"a":1,"a":2}`, "undecided"},
		{"the same key twice, once with an escape", `args.a == 1`, `{"a":1,"\u0061":2}`, "undecided"},
		{"twins of which one has an escape", `args.a == 1`, `{"a":1,"\u0041":2}`, "undecided"},
		{"twins beyond ASCII", `args["ä"] == 1`, `{"ä":1,"Ä":2}`, "undecided"},
		{"a key that is there in another case only", `has(args.force) && args.force == true`, `{"Force":true}`, "undecided"},
		{"a key that is there in another case of another length", `has(args.k)`, `{"\u212a":1}`, "undecided"},
		{"membership of a key in another case", `"force" in args`, `{"FORCE":true}`, "undecided"},
		{"an optional key in another case", `args.?force.orValue(false) == true`, `{"fORCE":true}`, "undecided"},
		{"a key in another case in a nested object", `has(args.o.force)`, `{"o":{"Force":true}}`, "undecided"},
		{"no twins but a prefix", `args.a == 1`, `{"a":1,"AA":2}`, "true"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, d := outcome(t, tt.when, tt.args)
			if not, ok := strings.CutPrefix(tt.want, "not "); ok && got == not || !ok && got != tt.want {
				t.Errorf("%s is %s with %s, want %s: %s", tt.when, got, tt.args, tt.want, d.Reason)
			}
			// An allow rule must not be satisfied by what is undecided.
			e := compile(t, rules(policy.Rule{Type: policy.TypeAllow, Tools: []string{"*"}, When: tt.when}))
			if d := e.Decide(call("files/write", tt.args), free()); (d.Verdict == policy.Allow) != (got == "true") {
				t.Errorf("as an allow: %s", seen(d))
			}
		})
	}
}

// Go's and other case-blind readers fold by Unicode, not by ASCII.
func TestEveryPairOfLettersThatFoldIsFound(t *testing.T) {
	e := compile(t, rules(policy.Rule{Type: policy.TypeDeny, When: `size(args) == 7`}))
	pairs, missed := 0, 0
	for r := rune('A'); r <= unicode.MaxRune; r++ {
		other := unicode.SimpleFold(r)
		if other <= r { // the last of a ring leads back to its first
			continue
		}
		pairs++
		args := fmt.Sprintf(`{"x%sy":1,"x%sy":2}`, string(r), string(other))
		if d := e.Decide(call("files/write", args), free()); d.Policy != "condition" {
			if missed++; missed < 5 {
				t.Errorf("%q and %q are taken for different keys", r, other)
			}
		}
	}
	if pairs < 1000 || missed > 0 {
		t.Errorf("%d of %d pairs missed", missed, pairs)
	}
}

// The reader of messages refuses these before, but explain, simulate and the
// API judge arguments too. What a rule looks at in malformed JSON must not be
// what somebody else would read.
func TestMalformedArguments(t *testing.T) {
	for _, args := range []string{
		`null`, `[]`, `"x"`, `1`, `true`, ` `, `garbage`, `{`, `{"force"`, `{"force":`, `{"force":false`, `{"force":false,`, `{"force" false}`, `{force:false}`, `{'force':false}`,
		`{"force":fals}`, `{"force":False}`, `{"force":false false}`, `{"force":,"b":1}`, `{,"force":false}`, `{"force":[,]}`, `{"force":"\x"}`, `{"force":"\u12"}`, `{"force":{"a":1]}`, `}`, `]`, "\ufeff{\"force\":false}",
		`{}x`, `{}{}`, `{"b":{}x,"force":false}`, `{"force":false,"l":[]x}`,
		`{"force":false,}`, `{"force":false} x`, `{"force":false}{"force":true}`, `{"force":false}}`, `{"force":[1,]}`, "{\"force\":\"a\nb\"}", "{\"force\":\"\x00\"}",
	} {
		t.Run(args, func(t *testing.T) {
			if json.Valid([]byte(args)) && strings.HasPrefix(args, "{") {
				t.Fatal("these arguments are not malformed")
			}
			for _, when := range []string{`args.force == true`, `has(args.force) && strings(args).exists(s, s == "zz")`} {
				if got, d := outcome(t, when, args); got != "undecided" {
					t.Errorf("%s is %s: %s", when, got, seen(d))
				}
			}
		})
	}
}

func TestUnder(t *testing.T) {
	const dir = "/etc"
	tests := []struct{ name, path, dir, want string }{
		{"a file in it", "/etc/passwd", dir, "true"},
		{"a file deep in it", "/etc/ssh/keys/id", dir, "true"},
		{"the directory itself", "/etc", dir, "true"},
		{"the directory with a slash", "/etc/", dir, "true"},
		{"a directory given with a slash", "/etc/passwd", "/etc/", "true"},
		{"a neighbour of the same prefix", "/etcetera", dir, "false"},
		{"elsewhere", "/srv/etc/passwd", dir, "false"},
		{"above it", "/", dir, "false"},
		{"out of it", "/etc/../srv", dir, "false"},
		{"into it", "/srv/../etc/passwd", dir, "true"},
		{"above the root there is nothing", "/../../etc/passwd", dir, "true"},
		{"dots that stay", "/etc/./ssh/../passwd", dir, "true"},
		{"slashes in a row", "//etc///passwd", dir, "true"},
		{"three dots are a name", "/.../etc", dir, "false"},
		{"everything absolute is under the root", "/srv", "/", "true"},
		{"the root is under the root", "/", "/", "true"},
		{"something relative is not under the root", "srv", "/", "false"},
		{"a relative path is under its directory", "data/x", "data", "true"},
		{"a relative path is not under an absolute directory", "etc/passwd", dir, "false"},
		{"a relative path is under the current directory", "x", ".", "true"},
		{"a relative path with a dot is under the current directory", "./x", "./", "true"},
		{"an absolute path is not", "/x", ".", "false"},
		{"no path is nowhere", "", dir, "false"},
		{"case matters to some", "/ETC/passwd", dir, "undecided"},

		{"a path that climbs", "../etc/passwd", dir, "undecided"},
		{"a path that climbs after going down", "a/../../etc/passwd", dir, "undecided"},
		{"two dots alone", "..", dir, "undecided"},
		{"two dots and a slash", "../", dir, "undecided"},
		{"a path that climbs behind a dot", "./../etc/passwd", dir, "undecided"},
		{"a path that begins with two dots and a letter", "..etc/passwd", dir, "false"},
		{"a climbing path and a climbing directory", "../a", "..", "undecided"},
		{"a path that climbs with backslashes", `..\etc\passwd`, dir, "undecided"},
		{"a path that climbs with both", `a\..\../etc`, dir, "undecided"},

		{"backslashes separate on Windows", `\etc\passwd`, dir, "undecided"},
		{"backslashes separate", `\etc\passwd`, `\etc`, "true"},
		{"backslashes and dots", `\srv\..\etc\passwd`, `\etc`, "true"},
		{"backslashes and dots, where a backslash may be a letter", `/srv\..\etc\passwd`, dir, "undecided"},
		{"a part that is one or four", `/etc/x\..\..\../../passwd`, dir, "undecided"},
		{"a drive with both and dots", `C:\srv/../Windows\x`, `C:\Windows`, "undecided"},
		{"a drive", `C:\Windows\System32`, `C:\Windows`, "true"},
		{"a drive with slashes", "C:/Windows/System32", `C:\Windows`, "true"},

		{"a file URL", "file:///etc/passwd", dir, "true"},
		{"a file URL that climbs", "file:///srv/../etc/passwd", dir, "undecided"},
		{"a file URL elsewhere", "file:///srv/x", dir, "false"},
		{"a file URL as the directory", "/etc/passwd", "file:///etc/", "true"},
		{"a relative file URL that climbs", "file://../etc/passwd", dir, "undecided"},
		{"a file URL that climbs by %", "file:///etc/%2e%2e/../passwd", dir, "undecided"},
		{"a file URL with %", "file:///%65tc/passwd", dir, "true"},
		{"a file URL with a query", "file:///srv?/../../etc/passwd", dir, "undecided"},
		{"a file URL with a fragment", "file:///srv#/../../etc/passwd", dir, "undecided"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			raw, err := json.Marshal(map[string]string{"p": tt.path, "d": tt.dir})
			if err != nil {
				t.Fatal(err)
			}
			got, d := outcome(t, "under(args.p, args.d)", string(raw))
			if got != tt.want {
				t.Errorf("under(%q, %q) is %s, want %s: %s", tt.path, tt.dir, got, tt.want, d.Reason)
			}
			if tt.want == "undecided" && !strings.Contains(d.Reason, "climbs") {
				t.Errorf("%s", d.Reason)
			}
		})
	}
	// Other spellings of a path below /etc, as servers that take URLs or expand
	// ~ read them. To call them false lets them through a deny.
	for _, p := range []string{
		"FILE:///etc/passwd", "file:/etc/passwd", "file://localhost/etc/passwd", "file:///%65tc/passwd", "file:///etc%2Fpasswd", "file:////etc/passwd", "~/../etc/passwd", "~root/../etc/passwd",
	} {
		t.Run("not to be called false: "+p, func(t *testing.T) {
			if got, d := outcome(t, `strings(args).exists(s, under(s, "/etc"))`, `{"path":`+strconv.Quote(p)+`}`); got == "false" {
				t.Errorf("%s: %+v", got, d)
			}
		})
	}
	for name, when := range map[string]string{"a number": `under(args.n, "/etc")`, "null": `under(args.z, "/etc")`, "a list": `under(args.l, "/etc")`, "a directory that is a number": `under("/etc", args.n)`} {
		t.Run(name+" is undecided", func(t *testing.T) {
			if got, d := outcome(t, when, `{"n":1,"z":null,"l":["/etc"]}`); got != "undecided" {
				t.Errorf("%s: %+v", got, d)
			}
		})
	}
}

func TestStrings(t *testing.T) {
	tests := []struct{ name, when, args, want string }{
		{"values, elements and keys at every depth", `strings(args) == ["a", "b", "c", "d", "e", "f"]`, `{"c":"a","b":[{"d":["e"]},"f",1,true,null]}`, "true"},
		{"of a part", `strings(args.b) == ["x"]`, `{"b":["x"],"c":"y"}`, "true"},
		{"of a string", `strings(args.s) == ["x"]`, `{"s":"x"}`, "true"},
		{"of a number", `strings(args.n) == []`, `{"n":1}`, "true"},
		{"of nothing", `strings(args) == []`, ``, "true"},
		{"repeated ones are kept", `strings(args.l) == ["x", "x"]`, `{"l":["x","x"]}`, "true"},
		{"decoded", `strings(args.l) == ["/etc"]`, `{"l":["\u002fetc"]}`, "true"},
		{"of an optional that is there", `strings(args.?path).exists(s, under(s, "/etc"))`, `{"path":"/etc/passwd"}`, "true"},
		{"a path among them", `strings(args).exists(s, under(s, "/etc"))`, `{"files":{"/etc/passwd":"root"}}`, "true"},
		{"none among them", `strings(args).exists(s, under(s, "/etc"))`, `{"files":{"/srv/x":"root"},"n":3}`, "false"},
		{"one that climbs", `strings(args).exists(s, under(s, "/etc"))`, `{"a":"../x","b":"y"}`, "undecided"},
		{"one that climbs beside one that is below", `strings(args).exists(s, under(s, "/etc"))`, `{"a":"../x","b":"/etc/x"}`, "true"},
		{"of a map that the condition makes", `strings({"/etc/x": [args.s]}) == ["/etc/x", "y"]`, `{"s":"y"}`, "true"},
		{"of something too large", `strings(args).exists(s, s == "x")`, `{"a":1e400}`, "undecided"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, d := outcome(t, tt.when, tt.args); got != tt.want {
				t.Errorf("%s, want %s: %s", got, tt.want, d.Reason)
			}
		})
	}
}

// value is a random JSON value in three spellings.
type value struct {
	json, cel string
	strings   []string
}

// jsonSpace and the escapes below are where hand-written readers go wrong.
func jsonSpace(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "", "", " ", "\n\t", "\r "}).Draw(t, "space")
}

func jsonString(t *rapid.T, s string) string {
	switch rapid.IntRange(0, 2).Draw(t, "spelling") {
	case 0:
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatalf("%v", err)
		}
		return string(raw)
	case 1:
		var b strings.Builder
		for _, r := range s {
			if r < 0x10000 {
				fmt.Fprintf(&b, `\u%04X`, r)
			} else {
				r -= 0x10000
				fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
			}
		}
		return `"` + b.String() + `"`
	}
	return `"` + strings.NewReplacer(`"`, `\"`, `\`, `\\`, "\n", `\n`, "\x00", `\u0000`, "/", `\/`).Replace(s) + `"`
}

func randomValue(t *rapid.T, depth int) value {
	text := rapid.StringOfN(rapid.SampledFrom([]rune(`ab"\{}[]:,/ é😀`+"\n\x00")), 0, 6, -1)
	kinds := 5
	if depth > 0 {
		kinds = 7
	}
	switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
	case 0:
		s := rapid.SampledFrom([]string{"true", "false", "null"}).Draw(t, "word")
		return value{s, s, nil}
	case 1:
		n := strconv.FormatInt(rapid.Int64().Draw(t, "int"), 10)
		return value{n, n, nil}
	case 2:
		n := strconv.FormatUint(rapid.Uint64().Draw(t, "uint"), 10)
		return value{n, n + "u", nil}
	case 3:
		n := strconv.FormatFloat(rapid.Float64Range(-1e300, 1e300).Draw(t, "double"), 'e', -1, 64)
		return value{n, n, nil}
	case 4:
		s := text.Draw(t, "string")
		return value{jsonString(t, s), strconv.QuoteToASCII(s), []string{s}}
	case 5:
		var out value
		out.json, out.cel = "["+jsonSpace(t), "["
		for i := range rapid.IntRange(0, 3).Draw(t, "elements") {
			if i > 0 {
				out.json += "," + jsonSpace(t)
				out.cel += ", "
			}
			v := randomValue(t, depth-1)
			out.json += v.json + jsonSpace(t)
			out.cel += v.cel
			out.strings = append(out.strings, v.strings...)
		}
		return value{out.json + "]", out.cel + "]", out.strings}
	}
	out := value{"{" + jsonSpace(t), "{", nil}
	keys := rapid.SliceOfNDistinct(text, 0, 3, rapid.ID[string]).Draw(t, "keys")
	for i, k := range keys {
		if i > 0 {
			out.json += "," + jsonSpace(t)
			out.cel += ", "
		}
		v := randomValue(t, depth-1)
		out.json += jsonString(t, k) + jsonSpace(t) + ":" + jsonSpace(t) + v.json + jsonSpace(t)
		out.cel += strconv.QuoteToASCII(k) + ": " + v.cel
		out.strings = append(append(out.strings, k), v.strings...)
	}
	return value{out.json + "}", out.cel + "}", out.strings}
}

// What a condition sees of any JSON is the value that the JSON has.
func TestConditionsSeeWhatTheJSONSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, other := randomValue(t, 3), randomValue(t, 1)
		args := jsonSpace(t) + `{"o":` + other.json + jsonSpace(t) + `,"v":` + jsonSpace(t) + v.json + jsonSpace(t) + "}" + jsonSpace(t)
		if !json.Valid([]byte(args)) {
			t.Fatalf("the test writes no JSON: %s", args)
		}
		if got, d := outcome(t, `args.v == `+v.cel, args); got != "true" {
			t.Fatalf("args.v == %s is %s with %s: %s", v.cel, got, args, d.Reason)
		}
		all := append(slices.Concat(v.strings, other.strings), "o", "v")
		slices.Sort(all)
		quoted := make([]string, len(all))
		for i, s := range all {
			quoted[i] = strconv.QuoteToASCII(s)
		}
		if got, d := outcome(t, `strings(args) == [`+strings.Join(quoted, ", ")+`]`, args); got != "true" {
			t.Fatalf("strings(args) == %q is %s with %s: %s", all, got, args, d.Reason)
		}
	})
}

// One condition's look at an unreadable object must neither spare nor harm the
// next condition: what was read is remembered from one to the other.
func TestConditionsDoNotDisturbEachOther(t *testing.T) {
	deny := func(id, when string) policy.Rule { return policy.Rule{Type: policy.TypeDeny, ID: id, When: when} }
	e := compile(t, policy.Ruleset{Costs: costs(), Policies: []policy.Rule{
		deny("reads it", `args.o.a == 1`), deny("does not", `args.b == 2`), deny("reads it too", `args.o.a == 1`), deny("is true", `args.b == 1`), deny("reads its list", `1 in args.l`), deny("again", `1 in args.l`),
		// cel-go passes over the error within an equality.
		deny("compares it", `args.w != {"o": {"a": 1}}`), deny("compares it too", `args.w != {"o": {"a": 1}}`),
	}})
	d := e.Decide(call("pay/a", `{"amount":1,"b":1,"o":{"a":1,"A":2},"l":[1e400],"w":{"o":{"a":1,"A":2}}}`), free())
	got := []string{d.Rule + ": " + d.Policy}
	for _, f := range d.Also {
		got = append(got, f.Rule+": "+f.Policy)
	}
	slices.Sort(got)
	want := []string{"again: condition", "compares it too: condition", "compares it: condition", "is true: deny", "reads it too: condition", "reads it: condition", "reads its list: condition"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestArgumentsOfTooManyPartsAreNotLookedInto(t *testing.T) {
	zeros := "[" + strings.TrimSuffix(strings.Repeat("0,", 150_000), ",") + "]"
	tests := []struct{ name, when, args, want string }{
		{"an object", `args.z == 0`, `{` + keys(210_000) + `"z":0}`, "undecided"},
		{"a list", `args.l[0] == 0`, `{"l":` + strings.TrimSuffix(zeros, "]") + `,` + zeros[1:] + `}`, "undecided"},
		{"two lists together", `args.l[0] == args.m[0]`, `{"l":` + zeros + `,"m":` + zeros + `}`, "undecided"},
		{"but what is not looked at does not count", `args.l[0] == 0`, `{"l":` + zeros + `,"m":` + zeros + `}`, "true"},
		{"nor does the length of a text", `args.s == "x"`, `{"s":"` + strings.Repeat("0,", 1_000_000) + `"}`, "false"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, d := outcome(t, tt.when, tt.args); got != tt.want {
				t.Errorf("%s, want %s: %s", got, tt.want, d.Reason)
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
