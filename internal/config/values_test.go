package config_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/policy"
)

func TestMoneyIsExact(t *testing.T) {
	for text, want := range map[string]policy.Micros{
		"0": 0, "0.0": 0, "0.004": 4_000, "25.00": 25_000_000, `"25.00"`: 25_000_000, "'0.1'": 100_000, "1e3": 1_000_000_000, "1E2": 100_000_000, "2.5e-3": 2_500,
		"0.000001": 1, "0.0000001": 1, "1.0000001": 1_000_001, "1e-7": 1, "49.99": 49_990_000, "0.1": 100_000, "0.3": 300_000,
		"4503599627.370497e-3": 4_503_599_627_371, "1000000000": 1_000_000_000_000_000,
	} {
		c, err := config.Parse([]byte(in("session: {spend_limit: "+text+"}\ncosts:\n  - {tools: [a], usd: "+text+"}\npolicies:\n  - {type: spend_limit, max_usd: "+text+"}")), "haldir.yaml")
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := *c.Session.SpendLimit; got != want {
			t.Errorf("session.spend_limit: %s is %d micro-dollars, want %d", text, got, want)
		}
		if got := c.Ruleset.Costs[0].USD; got != want {
			t.Errorf("costs[0].usd: %s is %d micro-dollars, want %d", text, got, want)
		}
		if got := c.Ruleset.Policies[0].MaxUSD; got != want {
			t.Errorf("max_usd: %s is %d micro-dollars, want %d", text, got, want)
		}
	}
	if c := parse(t, in("session: {}")); c.Session.SpendLimit != nil {
		t.Errorf("no limit is a limit of %v", *c.Session.SpendLimit)
	}
}

func TestWhatIsNoAmountIsBlamed(t *testing.T) {
	for text, want := range map[string]string{
		".nan": `".nan" is no decimal number`, ".NaN": `".NaN" is no decimal number`, "nan": `"nan" is no decimal number`, "NaN": `"NaN" is no decimal number`,
		".inf": `".inf" is no decimal number`, "-.inf": `"-.inf" is no decimal number`, "Infinity": `"Infinity" is no decimal number`,
		"-1": "the amount -1 is negative", "-0.000001": "the amount -0.000001 is negative", `"-1"`: "the amount -1 is negative",
		"1_000": `"1_000" is no decimal number`, "0x10": `"0x10" is no decimal number`, "0o10": `"0o10" is no decimal number`, "010": `"010" is no decimal number`,
		"+1": `"+1" is no decimal number`, ".5": `".5" is no decimal number`, "5.": `"5." is no decimal number`, `""`: `"" is no decimal number`, `" 1"`: `" 1" is no decimal number`,
		"$5": `"$5" is no decimal number`, "5 USD": `"5 USD" is no decimal number`, `"1,5"`: `"1,5" is no decimal number`, "true": `"true" is no decimal number`, "1:30": `"1:30" is no decimal number`,
		"1e400": "the amount 1e400 is too large", "1000000001": "the amount 1000000001 is too large", "1e99999999999": "the amount 1e99999999999 is too large",
	} {
		mistakes{
			{"limit " + text, in("session: {spend_limit: ‸" + text + "}"), []string{"session.spend_limit: " + want}},
			{"cost " + text, in("costs:\n  - {tools: [a], usd: ‸" + text + "}"), []string{"costs[0].usd: " + want}},
			{"max_usd " + text, inPolicy("{type: spend_limit, max_usd: ‸" + text + "}"), []string{"policies[0].max_usd: " + want}},
			{"max " + text, inPolicy("{type: spend_limit, max: ‸" + text + "}"), []string{"policies[0].max: " + want}},
		}.run(t)
	}
	// A list is not the text that an amount could not be either.
	for text, what := range map[string]string{"[1]": "a list", "{a: 1}": "a mapping"} {
		_, err := config.Parse([]byte(in("session: {spend_limit: "+text+"}")), "haldir.yaml")
		if err == nil || !strings.HasPrefix(err.Error(), "haldir.yaml:2:24: session.spend_limit: must be ") || !strings.HasSuffix(err.Error(), ", not "+what) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"28800": 8 * time.Hour, "8h": 8 * time.Hour, `"8h"`: 8 * time.Hour, "90s": 90 * time.Second, "15m": 15 * time.Minute, "7d": 7 * 24 * time.Hour,
		"1h30m": 90 * time.Minute, "1.5h": 90 * time.Minute, "500ms": 500 * time.Millisecond, `"60"`: time.Minute,
	} {
		if c := parse(t, in("session: {ttl: "+text+"}")); c.Session.TTL != want {
			t.Errorf("ttl: %s is %v", text, c.Session.TTL)
		}
		if c := parse(t, inPolicy("{type: rate_limit, max_calls: 1, window: "+text+"}")); c.Ruleset.Policies[0].Window != want {
			t.Errorf("window: %s is %v", text, c.Ruleset.Policies[0].Window)
		}
	}
	if c := parse(t, inUpstream("{name: a, command: x, timeouts: {connect: 5, call: 1m}}")); c.Upstreams[0].Connect != 5*time.Second || c.Upstreams[0].Call != time.Minute {
		t.Errorf("%+v", c.Upstreams[0])
	}
	if c := parse(t, inUpstream("{name: a, command: x}")); c.Upstreams[0].Connect != config.DefaultConnect || c.Upstreams[0].Call != 0 {
		t.Errorf("%+v", c.Upstreams[0])
	}
	const no = " is no duration; write it like 90s, 15m, 8h or 7d, or as a number of seconds"
	for text, want := range map[string]string{
		"soon": `"soon"` + no, "1w": `"1w"` + no, "1y": `"1y"` + no, "-1h": `"-1h"` + no, "1.5": `"1.5"` + no, `""`: `""` + no, "99999999999h": `"99999999999h"` + no,
		"-1": "-1 seconds are out of range", "9223372037": "9223372037 seconds are out of range", "-1d": `"-1d"` + no, "40000d": `"40000d"` + no, "1d2h": `"1d2h"` + no,
	} {
		mistakes{
			{"ttl " + text, in("session: {ttl: ‸" + text + "}"), []string{"session.ttl: " + want}},
			{"window " + text, inPolicy("{type: rate_limit, max_calls: 1, window: ‸" + text + "}"), []string{"policies[0].window: " + want}},
			{"timeout " + text, inUpstream("{name: a, command: x, timeouts: {call: ‸" + text + "}}"), []string{"upstreams[0].timeouts.call: " + want}},
			{"list_wait " + text, in("list_wait: ‸" + text), []string{"list_wait: " + want}},
		}.run(t)
	}
	mistakes{
		{"to connect in no time", inUpstream("{name: a, command: x, timeouts: {connect: ‸0}}"), []string{"upstreams[0].timeouts.connect: must be longer than 0; leave it out for 30s"}},
		{"to connect in less", inUpstream("{name: a, command: x, timeouts: {connect: ‸-1}}"), []string{"upstreams[0].timeouts.connect: -1 seconds are out of range"}},
		{"a call in no time", inUpstream("{name: a, command: x, timeouts: {call: ‸0s}}"), []string{"upstreams[0].timeouts.call: must be longer than 0; leave it out for no limit"}},
	}.run(t)
	mistakes{{"a session of no time", in("session: {ttl: ‸0}"), []string{"session.ttl: must be longer than 0; leave it out for a session that does not expire"}}}.run(t)
}

func TestCostsAndScopes(t *testing.T) {
	c := parse(t, `version: 1
costs:
  - {tools: ["search/*"], usd: 0.004}
  - {tools: [payments/charge], from_argument: /amount}
  - {tools: [whole], from_argument: ""}
  - {tools: [refund], from_argument: /amount, unit: cents}
  - {tools: [gift], from_argument: /amount, unit: usd}
  - {tools: ["llm/*"], usd: 0.05, from_result: /_meta/cost_usd}
scopes:
  - {tools: ["*/get_*"], require: [read, "team:admin.x_y-1"]}
`)
	want := []policy.Cost{
		{Tools: []string{"search/*"}, USD: 4_000},
		{Tools: []string{"payments/charge"}, FromArgument: "/amount", HasFromArgument: true},
		{Tools: []string{"whole"}, HasFromArgument: true},
		{Tools: []string{"refund"}, FromArgument: "/amount", HasFromArgument: true, Cents: true},
		{Tools: []string{"gift"}, FromArgument: "/amount", HasFromArgument: true},
		{Tools: []string{"llm/*"}, USD: 50_000, FromResult: "/_meta/cost_usd"},
	}
	if diff := cmp.Diff(want, c.Ruleset.Costs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]policy.Scope{{Tools: []string{"*/get_*"}, Require: []string{"read", "team:admin.x_y-1"}}}, c.Ruleset.Scopes); diff != "" {
		t.Error(diff)
	}
	cost := func(body string) string { return "version: 1\ncosts:\n  - " + body + "\n" }
	scope := func(body string) string { return "version: 1\nscopes:\n  - " + body + "\n" }
	mistakes{
		{"a cost of nothing", cost("‸{usd: 1}"), []string{"costs[0]: has no tools"}},
		{"a cost of no tool", cost("‸{tools: [], usd: 1}"), []string{"costs[0]: has no tools"}},
		{"a cost of no money", cost("‸{tools: [a]}"), []string{"costs[0]: needs usd or from_argument"}},
		{"only from_result", cost("‸{tools: [a], from_result: /b}"), []string{"costs[0]: needs usd or from_argument"}},
		{"usd and from_argument", cost("‸{tools: [a], usd: 0, from_argument: /a}"), []string{"costs[0]: has both usd and from_argument; it can be only one of them"}},
		{"from_result without a ceiling", cost("{tools: [a], usd: 0, from_result: ‸/b}"), []string{"costs[0].from_result: needs a usd above 0: the ceiling that is reserved until the actual cost is known"}},
		{"from_result of the whole", cost(`{tools: [a], usd: 1, from_result: ‸""}`), []string{"costs[0].from_result: points at the whole result, which is no amount; point at the amount in it, such as /_meta/cost_usd"}},
		{"a unit of a price", cost("{tools: [a], usd: 1, unit: ‸cents}"), []string{"costs[0].unit: goes with from_argument; usd is in dollars"}},
		{"an unknown unit", cost("{tools: [a], from_argument: /a, unit: ‸yen}"), []string{`costs[0].unit: "yen" is none of usd, cents`}},
		{"no pointer", cost("{tools: [a], from_argument: ‸amount}"), []string{`costs[0].from_argument: the JSON pointer "amount" must begin with / (RFC 6901)`}},
		{"a pointer with a bare ~", cost("{tools: [a], from_argument: ‸/a~2}"), []string{`costs[0].from_argument: in the JSON pointer "/a~2" a ~ is not followed by 0 or 1 (RFC 6901)`}},
		{"no pointer into the result", cost("{tools: [a], usd: 1, from_result: ‸cost}"), []string{`costs[0].from_result: the JSON pointer "cost" must begin with / (RFC 6901)`}},
		{"patterns", cost(`{tools: [a, ‸"[", ‸""], usd: 1}`), []string{`costs[0].tools[1]: "[" is no valid pattern`, "costs[0].tools[2]: the pattern is empty and would match nothing"}},
		{"a scope of no tool", scope("‸{require: [read]}"), []string{"scopes[0]: has no tools"}},
		{"a scope that requires nothing", scope("{tools: [a], require: ‸[]}"), []string{"scopes[0].require: names no scope"}},
		{"a scope without require", scope("‸{tools: [a]}"), []string{"scopes[0].require: names no scope"}},
		{"a scope's name", scope("{tools: [a], require: [read, ‸Write]}"), []string{`scopes[0].require[1]: "Write" is no scope; use lower-case names such as read, execute, spend`}},
		{"a pattern of a scope", scope(`{tools: [‸"[a-"], require: [read]}`), []string{`scopes[0].tools[0]: "[a-" is no valid pattern`}},
	}.run(t)
}

func TestSettingsInTheFile(t *testing.T) {
	mistakes{
		{"denied_tools", in("denied_tools: ‸hidden"), []string{`denied_tools: "hidden" is none of hide, show; did you mean "hide"?`}},
		{"denied_tools, empty", in(`denied_tools: ‸""`), []string{`denied_tools: "" is none of hide, show`}},
		{"tool_name_limit, low", in("tool_name_limit: ‸15"), []string{`tool_name_limit: "15" is no whole number from 16 to 128`}},
		{"tool_name_limit, high", in("tool_name_limit: ‸129"), []string{`tool_name_limit: "129" is no whole number from 16 to 128`}},
		{"tool_name_limit, a text", in(`tool_name_limit: ‸"64"`), []string{"tool_name_limit: must be a whole number, not a text"}},
		{"max_message_bytes", in("max_message_bytes: ‸10"), []string{`max_message_bytes: "10" is no whole number from 1024 to 1073741824`}},
		{"audit.arguments", in("audit: {arguments: ‸ful}"), []string{`audit.arguments: "ful" is none of full, redacted, digest; did you mean "full"?`}},
		{"audit.retain, short", in("audit: {retain: ‸1h}"), []string{`audit.retain: "1h0m0s" is too short; records are kept for 1d at least, and without the key for ever`}},
		{"audit.retain, nothing", in("audit: {retain: ‸0}"), []string{`audit.retain: "0s" is too short; records are kept for 1d at least, and without the key for ever`}},
		{"audit.retain, no duration", in("audit: {retain: ‸ever}"), []string{`audit.retain: "ever" is no duration; write it like 90s, 15m, 8h or 7d, or as a number of seconds`}},
		{"log.level", in("log: {level: ‸trace}"), []string{`log.level: "trace" is none of auto, debug, info, warn, error`}},
		{"log.format", in("log: {format: ‸jsn}"), []string{`log.format: "jsn" is none of auto, console, json; did you mean "json"?`}},
	}.run(t)
}

func TestSessions(t *testing.T) {
	c := parse(t, "version: 1\n")
	if diff := cmp.Diff(config.Session{Agent: "default", AllScopes: true}, c.Session); diff != "" {
		t.Error(diff)
	}
	c = parse(t, in("session: {scopes: []}"))
	if c.Session.AllScopes || len(c.Session.Scopes) > 0 {
		t.Errorf("no scopes are %+v", c.Session)
	}
	for _, id := range []string{"Research.Bot-7", "team/a b", "ÄGENT", "a.b.c", "UPPER", strings.Repeat("a", 128), strings.Repeat("ü", 128), "🎉"} {
		c := parse(t, in(fmt.Sprintf("session: {agent_id: %q}\npolicies:\n  - {type: deny, tools: [x], agents: [%q]}", id, id)))
		if c.Session.Agent != id || c.Ruleset.Policies[0].Agents[0] != id {
			t.Errorf("%q became %q and %q", id, c.Session.Agent, c.Ruleset.Policies[0].Agents[0])
		}
		d := c.Engine.Decide(policy.Call{Agent: id, Upstream: "a", Tool: "x"}, policy.State{Session: policy.SessionState{AllScopes: true}})
		if d.Verdict != policy.Deny {
			t.Errorf("the policy for %q does not concern it", id)
		}
	}
	const printable = "session.agent_id: must have 1 to 128 printable characters"
	mistakes{
		{"an empty agent", in(`session: {agent_id: ‸""}`), []string{printable}},
		{"an agent over two lines", in(`session: {agent_id: ‸"a\nb"}`), []string{printable}},
		{"an agent with a zero byte", in(`session: {agent_id: ‸"a\0b"}`), []string{printable}},
		{"an agent with an escape", in(`session: {agent_id: ‸"\e[31mred"}`), []string{printable}},
		{"an agent that turns the line around", in(`session: {agent_id: ‸"\u202egnp"}`), []string{printable}},
		{"an agent with a control character of 8 bits", in(`session: {agent_id: ‸"a\u009b31m"}`), []string{printable}},
		{"an agent with a space of no width", in(`session: {agent_id: ‸"a\u200bb"}`), []string{printable}},
		{"an agent of 129", in("session: {agent_id: ‸" + strings.Repeat("a", 129) + "}"), []string{printable}},
		{"scopes", in(`session: {scopes: [read, ‸Read, ‸"a b", ‸""]}`), []string{
			`session.scopes[1]: "Read" is no scope; use lower-case names such as read, execute, spend`,
			`session.scopes[2]: "a b" is no scope; use lower-case names such as read, execute, spend`,
			`session.scopes[3]: "" is no scope; use lower-case names such as read, execute, spend`,
		}},
	}.run(t)
}
