//go:build unmended

// The tests of this file show mistakes that are known and not mended yet, so
// they fail; run them with -tags unmended. One that passes moves to the file it
// belongs to.

package config_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/policy"
)

func init() { columns = true }

// These inputs once failed FuzzParse, which should look at columns as well.
func TestColumnsOfMistakesInTheSyntaxAreInTheFile(t *testing.T) {
	for _, text := range []string{"vers: \":.1\na\x00session: {a\x00\x01\x00\x00_idion\\um\n00fc\\ud83\x00", ")e\x00\r\x01:\t'6\x84\xfe1\rq\x96\t\n\r\n\t"} {
		_, err := config.Parse([]byte(text), "haldir.yaml")
		problems, ok := err.(config.Problems)
		if !ok {
			t.Fatal(err)
		}
		for _, p := range problems {
			inside(t, text, p)
		}
	}
}

func TestAMistakeInALiteralBlockHasItsPlaceInTheFile(t *testing.T) {
	const tol = "policies[0].when: undeclared reference to 'tol' (did you mean 'tool'?)"
	mistakes{
		{"its first line", "version: 1\npolicies:\n  - type: deny\n    when: |\n      args.a == ‸tol\n", []string{tol}},
		{"its second line", "version: 1\npolicies:\n  - type: deny\n    when: |\n      args.a == 1 &&\n      args.b == ‸tol\n", []string{tol}},
		{"one that strips", "version: 1\npolicies:\n  - type: deny\n    when: |-\n      args.a == 1 &&\n        args.b == ‸tol\n    tools: [a]\n", []string{tol}},
	}.run(t)
}

// Where lines are folded no place inside the text is exact; it must be in the
// text all the same, which ends at line 6.
func TestAMistakeInAFoldedConditionIsBlamedInsideIt(t *testing.T) {
	for name, when := range map[string]string{
		"a folded block":       ">-\n      args.a == 1 &&\n      args.b == tol",
		"a plain text":         "args.a == 1 &&\n      args.b == tol",
		"quotes":               "'args.a == 1 &&\n      args.b == tol'",
		"doubled quotes":       "'args.a == ''x'' && args.c == ''y'' && args.d == ''z'' && tol'",
		"escapes":              `"args.a == \"x\" && args.c == \"y\" && tol"`,
		"an escape of 6 bytes": `"args.a == '\u00fc' && tol"`,
	} {
		t.Run(name, func(t *testing.T) {
			text := "version: 1\npolicies:\n  - type: deny\n    when: " + when + "\n    tools: [a]\n"
			_, err := config.Parse([]byte(text), "haldir.yaml")
			problems, ok := err.(config.Problems)
			if !ok || len(problems) != 1 || !strings.Contains(problems[0].Message, "undeclared reference to 'tol'") {
				t.Fatal(err)
			}
			inside(t, text, problems[0])
			if l := problems[0].Line; l < 4 || l > 6 {
				t.Errorf("line %d is not the condition's", l)
			}
		})
	}
}

// A number that int64 cannot hold is a number all the same.
func TestANumberThatIsTooLargeIsNotCalledAText(t *testing.T) {
	_, err := config.Parse([]byte(inPolicy("{type: rate_limit, window: 1h, max_calls: 99999999999999999999}")), "haldir.yaml")
	if err == nil || !strings.Contains(err.Error(), "haldir.yaml:3:47: policies[0].max_calls: ") || strings.Contains(err.Error(), "not a text") {
		t.Error(err)
	}
}

func TestAMappingIsBlamedAtItsBeginning(t *testing.T) {
	mistakes{
		{"an upstream in block style", "version: 1\nupstreams:\n  - ‸command: x\n", []string{"upstreams[0]: has no name"}},
		{"a policy in block style", "version: 1\npolicies:\n  - ‸type: spend_limit\n", []string{"policies[0]: needs max_usd"}},
		{"a second document", "version: 1\n---\n‸version: 1\n", []string{"the file holds more than one document"}},
		{"a header without quotes", inUpstream(`{name: a, url: "https://x.example", headers: [‸X: 1]}`), []string{"upstreams[0].headers[0]: must be a text, not a mapping"}},
	}.run(t)
}

func TestNoEntryIsBlamedTwiceHereEither(t *testing.T) {
	mistakes{
		{"a list", "‸- version: 1\n", []string{"must be a mapping with keys, not a list"}},
		{"a text", "‸hello\n", []string{"must be a mapping with keys, not a text"}},
		{"a tag", "‸!!map\nversion: 1\n", []string{"YAML tags (!!map) are not supported"}},
		{"upstreams without names", in("upstreams:\n  - ‸{command: x}\n  - ‸{command: y}"), []string{"upstreams[0]: has no name", "upstreams[1]: has no name"}},
		{"days without a day", inPolicy("{type: time_window, days: ‸[]}"), []string{"policies[0].days: is empty: the window would never open"}},
	}.run(t)
}

func TestTheRightKeyAndTheRightPolicyAreNamed(t *testing.T) {
	mistakes{
		{"rate_limit in no time", inPolicy("{type: rate_limit, max_calls: 1, window: ‸0}"), []string{"policies[0].window: must be a positive time"}},
		{"max_per_minute of less than nothing", inPolicy("{type: rate_limit, max_per_minute: ‸-5}"), []string{"policies[0].max_per_minute: must not be negative"}},
		{"two of an id after one that cannot be read", in("policies:\n  - {type: ‸denny}\n  - {type: deny, tools: [a], id: x}\n  - {type: deny, tools: [b], id: ‸x}"), []string{
			`policies[0].type: unknown policy type "denny"; did you mean "deny"?`, `policies[2].id: the id "x" is already that of policy 2`,
		}},
	}.run(t)
}

func TestADirectiveIsNoDocument(t *testing.T) {
	if _, err := config.Parse([]byte("%YAML 1.2\n---\nversion: 1\n"), "haldir.yaml"); err != nil {
		t.Error(err)
	}
}

// Editors on Windows begin a file with a byte order mark.
func TestAByteOrderMarkIsNoPartOfTheText(t *testing.T) {
	if _, err := config.Parse([]byte("\ufeffversion: 1\n"), "haldir.yaml"); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNoUTF8IsRefused(t *testing.T) {
	if _, err := config.Parse([]byte("version: 1\nsession: {agent_id: \"\xff\xfe\"}\n"), "haldir.yaml"); err == nil {
		t.Error("it loads")
	}
}

// None of many aliases is one too many.
func TestManyAliasesWork(t *testing.T) {
	text := "version: 1\npolicies:\n  - {type: deny, tools: &t [a]}\n" + strings.Repeat("  - {type: deny, tools: *t}\n", 1100)
	if _, err := config.Parse([]byte(text), "haldir.yaml"); err != nil {
		t.Errorf("%.200s", err)
	}
}

func TestAnAgentIsPrintable(t *testing.T) {
	const printable = "session.agent_id: must have 1 to 128 printable characters"
	mistakes{
		{"an agent that turns the line around", in(`session: {agent_id: ‸"\u202egnp"}`), []string{printable}},
		{"an agent with a control character of 8 bits", in(`session: {agent_id: ‸"a\u009b31m"}`), []string{printable}},
	}.run(t)
}

// "" points at the whole document, in the result as in the arguments: it must
// not be taken for a cost without from_result.
func TestFromResultOfTheWholeIsNotForgotten(t *testing.T) {
	c, err := config.Parse([]byte(in(`costs: [{tools: [a], usd: 1, from_result: ""}]`)), "haldir.yaml")
	if err == nil {
		d := c.Engine.Decide(policy.Call{Upstream: "a", Tool: "a"}, policy.State{Session: policy.SessionState{AllScopes: true}})
		if d.CostFrom == "" {
			t.Error("it loads and the actual cost is never read")
		}
	}
}

// The message goes to the host and to its log.
func TestARefusedURLDoesNotShowItsPassword(t *testing.T) {
	for _, u := range []string{"https://u:s3cret-pass@x.example/", "http://u:s3cret-pass@x.example/", "https://u:s3cret-pass@x.example:port/", "https://u:s3cret-pass@", "ht tps://u:s3cret-pass@x.example/"} {
		_, err := config.Parse([]byte(inUpstream(fmt.Sprintf("{name: a, url: %q}", u))), "haldir.yaml")
		if err == nil || strings.Contains(err.Error(), "s3cret-pass") {
			t.Errorf("%s: %v", u, err)
		}
	}
}

// Nobody resolves references in a url, so one that stands there would go to the
// server as it is written.
func TestAReferenceInAURLIsNotTakenAsItIsWritten(t *testing.T) {
	for _, u := range []string{"https://x.example/?key=${env:KEY}", "https://x.example/${env:KEY}/mcp", "https://x.example/?key=${env:KEY"} {
		if _, err := config.Parse([]byte(inUpstream(fmt.Sprintf("{name: a, url: %q}", u))), "haldir.yaml"); err == nil {
			t.Errorf("%s loads", u)
		}
	}
}

// A token becomes a header.
func TestATokenThatNoHeaderCanCarryIsBlamed(t *testing.T) {
	if _, err := config.Parse([]byte(inUpstream(`{name: a, url: "https://x.example", auth: {type: bearer, token: "a\nb"}}`)), "haldir.yaml"); err == nil {
		t.Error("a token over two lines loads")
	}
}

// These can be read as references, but as none that somebody means.
func TestAReferenceThatNobodyMeansIsBlamed(t *testing.T) {
	for _, text := range []string{"${env:A${env:B}}", "${root:x}", "${env:A B}"} {
		if err := config.CheckReferences(text); err == nil {
			t.Errorf("%s is no mistake", text)
		}
	}
}

// YAML keeps a tab inside a text; the parser drops it without a word.
func TestATabInATextIsKept(t *testing.T) {
	c, err := config.Parse([]byte(inUpstream("{name: a, command: x, args: [delete\tall]}")), "haldir.yaml")
	if err == nil && c.Upstreams[0].Args[0] != "delete\tall" {
		t.Errorf("it is read as %q", c.Upstreams[0].Args[0])
	}
}
