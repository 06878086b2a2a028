package config_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // as in cmd/haldir: the zones must be there where the system has none
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/config"
)

// mistakes is a table of texts that must not load. In a text ‸ stands before
// each place that is blamed; want are the problems in the order of the marks as
// "where: message". One that begins with "file" has no place.
type mistakes []struct {
	name, text string
	want       []string
}

func (ms mistakes) run(t *testing.T) {
	t.Helper()
	for _, m := range ms {
		t.Run(m.name, func(t *testing.T) {
			text, places := unmark(m.text)
			var want []string
			for _, w := range m.want {
				if rest, ok := strings.CutPrefix(w, "file: "); ok {
					want = append(want, "haldir.yaml: "+rest)
					continue
				}
				if len(places) == 0 {
					t.Fatal("the text has fewer marks than problems")
				}
				want = append(want, "haldir.yaml:"+places[0]+": "+w)
				places = places[1:]
			}
			if len(places) > 0 {
				t.Fatal("the text has more marks than problems")
			}
			_, err := config.Parse([]byte(text), "haldir.yaml")
			if err == nil {
				t.Fatal("it loads")
			}
			if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
				t.Errorf("of\n%s\n(-want +got):\n%s", text, diff)
			}
		})
	}
}

// unmark takes the marks out of a text and returns their places as line:column,
// in characters.
func unmark(marked string) (text string, places []string) {
	line, column := 1, 1
	var b strings.Builder
	for i, r := range marked {
		if r == '‸' {
			places = append(places, fmt.Sprintf("%d:%d", line, column))
			continue
		}
		if column++; r == '\n' || r == '\r' && !strings.HasPrefix(marked[i:], "\r\n") {
			line, column = line+1, 1
		}
		_, size := utf8.DecodeRuneInString(marked[i:])
		b.WriteString(marked[i : i+size]) // not the rune: it may be no UTF-8
	}
	return b.String(), places
}

// inPolicy, inUpstream and in wrap the mapping of one entry.
func inPolicy(body string) string   { return "version: 1\npolicies:\n  - " + body + "\n" }
func inUpstream(body string) string { return "version: 1\nupstreams:\n  - " + body + "\n" }
func in(line string) string         { return "version: 1\n" + line + "\n" }

const (
	topKeys      = `known here: version, session, upstreams, costs, scopes, policies, denied_tools, tool_name_limit, list_wait, max_message_bytes, reload, keyring, audit, log`
	upstreamKeys = `known here: name, url, command, args, env, env_pass, cwd, headers, auth, tls, expose, trust_annotations, pins, start, stop_when_idle, deny_requests, timeouts`
)

func TestAnUnknownKeyIsBlamedWhereverItStands(t *testing.T) {
	mistakes{
		{"at the top", in("‸polices: []"), []string{`unknown key "polices"; did you mean "policies"?`}},
		{"at the top, nothing near", in("‸x: 1"), []string{`unknown key "x"; ` + topKeys}},
		{"in other case", in("‸Session: {}"), []string{`unknown key "Session"; did you mean "session"?`}},
		{"of no letters", in(`‸"": 1`), []string{`unknown key ""; ` + topKeys}},
		{"a number", in("‸1: 1"), []string{`unknown key "1"; ` + topKeys}},
		{"of settings that are no part of the file", in("‸state_dir: /x\n‸config: y"), []string{`unknown key "state_dir"; ` + topKeys, `unknown key "config"; ` + topKeys}},
		{"in session", in("session: {agent_id: a, ‸spend_limits: 5}"), []string{`session: unknown key "spend_limits"; did you mean "spend_limit"?`}},
		{"in an upstream", inUpstream("{name: a, command: x, ‸comand: y}"), []string{`upstreams[0]: unknown key "comand"; did you mean "command"?`}},
		{"in an upstream, nothing near", inUpstream("{name: a, command: x, ‸colour: y}"), []string{`upstreams[0]: unknown key "colour"; ` + upstreamKeys}},
		{"in auth", inUpstream(`{name: a, url: "https://x.example", auth: {type: bearer, ‸tokn: t}}`), []string{`upstreams[0].auth: unknown key "tokn"; did you mean "token"?`}},
		{"in timeouts", inUpstream("{name: a, command: x, timeouts: {‸conect: 5s}}"), []string{`upstreams[0].timeouts: unknown key "conect"; did you mean "connect"?`}},
		{"in a cost", in("costs:\n  - {tools: [a], ‸USD: 1}"), []string{`costs[0]: unknown key "USD"; did you mean "usd"?`}},
		{"in a scope", in("scopes:\n  - {tools: [a], ‸requires: [read]}"), []string{`scopes[0]: unknown key "requires"; did you mean "require"?`}},
		{"in a policy", inPolicy("{type: spend_limit, ‸maxx_usd: 50}"), []string{`policies[0]: unknown key "maxx_usd"; did you mean "max_usd"?`}},
		{"in the second policy, block style", in("policies:\n- type: deny\n  tools: [a]\n- type: rate_limit\n  ‸max_call: 5\n  window: 1h"), []string{`policies[1]: unknown key "max_call"; did you mean "max_calls"?`}},
		{"in allowed_hours", inPolicy(`{type: time_window, allowed_hours: {start: "09:00", ‸ends: "17:00"}}`), []string{`policies[0].allowed_hours: unknown key "ends"; did you mean "end"?`}},
		{"in audit", in("audit: {‸argument: full}"), []string{`audit: unknown key "argument"; did you mean "arguments"?`}},
		{"in log", in("log: {‸levle: info}"), []string{`log: unknown key "levle"; did you mean "level"?`}},
		{"an old spelling is no suggestion", inPolicy("{type: deny, tools: [a], ‸maxx: 1}"), []string{`policies[0]: unknown key "maxx"; known here: type, id, mode, tools, upstreams, agents, when, max_usd, per, max_calls, window_seconds, window, allowed_hours, days, timezone, timeout, remember, max_repeats`}},
		{"after letters of several bytes", in(`session: {agent_id: "üß🎉", ‸scops: [a]} # ü`), []string{`session: unknown key "scops"; did you mean "scopes"?`}},
		{"after a comment with letters of several bytes", "version: 1 # üß🎉\nsession: {‸scops: [a]}\n", []string{`session: unknown key "scops"; did you mean "scopes"?`}},
		{"after a text over several lines", "version: 1\nsession:\n  agent_id: \"a\n    b\"\n  ‸scops: [a]\n", []string{`session: unknown key "scops"; did you mean "scopes"?`}},
		{"after a block of text", "version: 1\nsession:\n  agent_id: >-\n    a\n\n  ‸scops: [a]\n", []string{`session: unknown key "scops"; did you mean "scopes"?`}},
		{"in quotes", in(`session: {‸"scops": [a]}`), []string{`session: unknown key "scops"; did you mean "scopes"?`}},
		{"in a file with the line ends of Windows", "version: 1\r\nsession:\r\n  agent_id: a\r\n  ‸scops: [a]\r\n", []string{`session: unknown key "scops"; did you mean "scopes"?`}},
		{"in JSON", "{\n  \"version\": 1,\n  \"policies\": [\n    {\"type\": \"spend_limit\", ‸\"maxx_usd\": 50.00}\n  ]\n}\n", []string{`policies[0]: unknown key "maxx_usd"; did you mean "max_usd"?`}},
	}.run(t)
}

func TestAnUnknownPolicyTypeIsBlamed(t *testing.T) {
	const known = "; known here: deny, allow, spend_limit, rate_limit, time_window, require_approval, loop"
	for got, hint := range map[string]string{
		"denny": `; did you mean "deny"?`, "DENY": `; did you mean "deny"?`, "alow": `; did you mean "allow"?`, "spend-limit": `; did you mean "spend_limit"?`,
		"ratelimit": `; did you mean "rate_limit"?`, "time-window": `; did you mean "time_window"?`, "spend": `; did you mean "spend_limit"?`,
		"require-approval": `; did you mean "require_approval"?`, "loops": `; did you mean "loop"?`, "approve": known, "limit": known, "block_tools": known,
	} {
		mistakes{
			{got, inPolicy("{tools: [a], type: ‸" + got + "}"), []string{fmt.Sprintf("policies[0].type: unknown policy type %q%s", got, hint)}},
		}.run(t)
	}
	mistakes{
		{"none", inPolicy("‸{tools: [a]}"), []string{"policies[0]: has no type; known: deny, allow, spend_limit, rate_limit, time_window, require_approval, loop"}},
		{"an empty one", inPolicy(`‸{type: "", tools: [a]}`), []string{"policies[0]: has no type; known: deny, allow, spend_limit, rate_limit, time_window, require_approval, loop"}},
	}.run(t)
}

func TestAKeyOfAnotherTypeIsBlamed(t *testing.T) {
	mistakes{
		{"of deny", inPolicy("{type: deny, tools: [a], max_usd: ‸5}"), []string{"policies[0].max_usd: is no key of deny, but of spend_limit; it has none of its own"}},
		{"of allow, twice", inPolicy("{type: allow, tools: [a], max_calls: ‸5, window: ‸1h}"), []string{
			"policies[0].max_calls: is no key of allow, but of rate_limit; it has none of its own",
			"policies[0].window: is no key of allow, but of rate_limit and loop; it has none of its own",
		}},
		{"of spend_limit", inPolicy("{type: spend_limit, max_usd: 5, window: ‸1h}"), []string{"policies[0].window: is no key of spend_limit, but of rate_limit and loop; it has max_usd, per, timezone"}},
		{"of rate_limit", inPolicy("{type: rate_limit, max_calls: 5, window: 1h, timezone: ‸UTC}"), []string{"policies[0].timezone: is no key of rate_limit, but of time_window and spend_limit; it has per, max_calls, window_seconds, window"}},
		{"of time_window", inPolicy(`{type: time_window, days: [mon], per: ‸day}`), []string{"policies[0].per: is no key of time_window, but of spend_limit and rate_limit; it has allowed_hours, days, timezone"}},
		{"an old key", inPolicy("{type: deny, tools: [a], max: ‸5}"), []string{"policies[0].max: is no key of deny, but of spend_limit and rate_limit; it has none of its own"}},
		{"of an old type", inPolicy("{type: block_tool, tool: a, start_hour: ‸5}"), []string{"policies[0].start_hour: is no key of deny, but of time_window; it has none of its own"}},
		{"of a command", inUpstream(`{name: a, url: "https://x.example", args: ‸[x], env: ‸["A=b"], env_pass: ‸[C], cwd: ‸/}`), []string{
			"upstreams[0].args: belongs to a command, but this upstream has a url", "upstreams[0].env: belongs to a command, but this upstream has a url",
			"upstreams[0].env_pass: belongs to a command, but this upstream has a url", "upstreams[0].cwd: belongs to a command, but this upstream has a url",
		}},
		{"of a url", inUpstream(`{name: a, command: x, headers: ‸["A: b"], auth: ‸{type: bearer, token: t}}`), []string{
			"upstreams[0].headers: belongs to a url, but this upstream has a command", "upstreams[0].auth: belongs to a url, but this upstream has a command",
		}},
	}.run(t)
}

func TestAKeyThatStandsTwiceIsBlamed(t *testing.T) {
	mistakes{
		{"at the top", "version: 1\n‸version: 1\n", []string{`not valid YAML: mapping key "version" already defined at [1:1]`}},
		{"in a flow", in("session: {ttl: 1h, ‸ttl: 2h}"), []string{`not valid YAML: mapping key "ttl" already defined at [2:11]`}},
		{"in a policy", "version: 1\npolicies:\n  - type: deny\n    tools: [a]\n    ‸tools: [b]\n", []string{`not valid YAML: mapping key "tools" already defined at [4:5]`}},
		{"in two spellings", in(`session: {'agent_id': a, ‸"agent\u005fid": b}`), []string{`not valid YAML: mapping key "agent_id" already defined at [2:11]`}},
		{"in JSON", `{"version": 1, "session": {"ttl": 5, ‸"ttl": 6}}`, []string{`not valid YAML: mapping key "ttl" already defined at [1:28]`}},
	}.run(t)
}

func TestNothingIsNoValue(t *testing.T) {
	mistakes{
		{"~", in("‸session: ~"), []string{"session: has no value"}},
		{"null", in("‸policies: null"), []string{"policies: has no value"}},
		{"Null", in("‸policies: Null"), []string{"policies: has no value"}},
		{"left out", in("‸upstreams:"), []string{"upstreams: has no value"}},
		{"in a flow", in("session: {‸agent_id: , ttl: 1h}"), []string{"session.agent_id: has no value"}},
		{"a limit", in("session: {‸spend_limit: null}"), []string{"session.spend_limit: has no value"}},
		{"a limit of a policy", inPolicy("{type: spend_limit, ‸max_usd: ~}"), []string{"policies[0].max_usd: has no value"}},
		{"a condition", inPolicy("{type: deny, tools: [a], ‸when: }"), []string{"policies[0].when: has no value"}},
		{"an element", in("session: {scopes: [read, ‸~, execute]}"), []string{"session.scopes[1]: must be a text, not nothing; write it like scopes: [read, execute]"}},
		{"a policy", in("policies:\n  - ‸~"), []string{"policies[0]: must be a mapping with keys, not nothing; write it like policies: [{type: deny, tools: [drop_table]}]"}},
		{"JSON's null", `{"version": 1, "session": {‸"spend_limit": null}}`, []string{"session.spend_limit: has no value"}},
	}.run(t)
}

func TestTheWrongKindOfValueIsBlamed(t *testing.T) {
	mistakes{
		{"a list of sessions", in("session: ‸[]"), []string{"session: must be a mapping with keys, not a list; write it like session: {agent_id: research-bot, scopes: [read, execute], ttl: 8h}"}},
		{"a number for a session", in("session: ‸5"), []string{"session: must be a mapping with keys, not the number 5; write it like session: {agent_id: research-bot, scopes: [read, execute], ttl: 8h}"}},
		{"upstreams by name", in("upstreams: ‸{a: {command: x}}"), []string{"upstreams: must be a list, not a mapping; write it like upstreams: [{name: files, command: npx, args: [-y, some-server]}]"}},
		{"one policy", in("policies: ‸{type: deny}"), []string{"policies: must be a list, not a mapping; write it like policies: [{type: deny, tools: [drop_table]}]"}},
		{"a name for an upstream", in("upstreams: [‸files]"), []string{"upstreams[0]: must be a mapping with keys, not a text; write it like upstreams: [{name: files, command: npx, args: [-y, some-server]}]"}},
		{"one tool", inPolicy("{type: deny, tools: ‸a}"), []string{`policies[0].tools: must be a list, not a text; write it like tools: [files/write_file, "delete_*"]`}},
		{"lists of tools", inPolicy("{type: deny, tools: [a, ‸[b], ‸{c: d}]}"), []string{`policies[0].tools[1]: must be a text, not a list; write it like tools: [files/write_file, "delete_*"]`, `policies[0].tools[2]: must be a text, not a mapping; write it like tools: [files/write_file, "delete_*"]`}},
		{"a mapping of headers", inUpstream(`{name: a, url: "https://x.example", headers: ‸{X: 1}}`), []string{`upstreams[0].headers: must be a list, not a mapping; write it like headers: ["X-Key: ${keyring:key}"]`}},
		{"a mapping of variables", inUpstream(`{name: a, command: x, env: ‸{A: b}}`), []string{`upstreams[0].env: must be a list, not a mapping; write it like env: ["NAME=value"]`}},
		{"a list for a command", inUpstream(`{name: a, command: ‸[x, y]}`), []string{"upstreams[0].command: must be a text, not a list; write it like command: npx"}},
		{"a text for args", inUpstream(`{name: a, command: x, args: ‸"-y pkg"}`), []string{"upstreams[0].args: must be a list, not a text; write it like args: [-y, some-server]"}},
		{"hours as the flag takes them", inPolicy("{type: time_window, allowed_hours: ‸09:00-17:00}"), []string{`policies[0].allowed_hours: must be a mapping with keys, not a text; write it like allowed_hours: {start: "09:00", end: "17:00"}`}},
		{"a day", inPolicy("{type: time_window, days: ‸mon}"), []string{"policies[0].days: must be a list, not a text; write it like days: [mon, fri]"}},
		{"auth in a word", inUpstream(`{name: a, url: "https://x.example", auth: ‸bearer}`), []string{"upstreams[0].auth: must be a mapping with keys, not a text; write it like auth: {type: oauth}"}},
		{"yes", inUpstream(`{name: a, command: x, trust_annotations: ‸yes}`), []string{"upstreams[0].trust_annotations: must be true or false, not a text"}},
		{"true in quotes", inUpstream(`{name: a, command: x, trust_annotations: ‸"true"}`), []string{"upstreams[0].trust_annotations: must be true or false, not a text"}},
		{"a version in words", "version: ‸one\n", []string{"version: must be a whole number, not a text"}},
		{"a version in quotes", "version: ‸\"1\"\n", []string{"version: must be a whole number, not a text"}},
		{"a version with a point", "version: ‸1.0\n", []string{"version: must be a whole number, not the number 1.0"}},
		{"calls with a point", inPolicy("{type: rate_limit, window: 1h, max_calls: ‸1.5}"), []string{"policies[0].max_calls: must be a whole number, not the number 1.5"}},
		{"calls in quotes", inPolicy(`{type: rate_limit, window: 1h, max_calls: ‸"5"}`), []string{"policies[0].max_calls: must be a whole number, not a text"}},
		{"calls in hexadecimal", inPolicy("{type: rate_limit, window: 1h, max_calls: ‸0x10}"), []string{"policies[0].max_calls: must be a whole number, not the number 0x10"}},
		{"calls beyond all numbers", inPolicy("{type: rate_limit, window: 1h, max_calls: ‸99999999999999999999}"), []string{"policies[0].max_calls: the number 99999999999999999999 is too large"}},
		{"calls in octal, or not", inPolicy("{type: rate_limit, window: 1h, max_calls: ‸010}"), []string{"policies[0].max_calls: 010 begins with a zero, which makes it octal for some readers; write 10"}},
		{"seconds in octal, or not", in("session: {ttl: ‸0600}"), []string{"session.ttl: 0600 begins with a zero, which makes it octal for some readers; write 600"}},
		{"an hour in octal, or not", inPolicy("{type: time_window, end_hour: 17, start_hour: ‸010}"), []string{`policies[0].start_hour: "010" is no time of day; write it like 09:00`}},
		{"a list of amounts", in("session: {spend_limit: ‸[1]}"), []string{"session.spend_limit: must be an amount such as 25.00, not a list"}},
		{"a list of durations", in("list_wait: ‸[1]"), []string{"list_wait: must be a duration such as 90s, or a number of seconds, not a list"}},
		{"a mapping of times", inPolicy("{type: time_window, allowed_hours: {start: ‸{h: 9}, end: 10}}"), []string{"policies[0].allowed_hours.start: must be a time of day such as 09:00, not a mapping"}},
		{"a list of days in a list", inPolicy("{type: time_window, days: [‸[mon]]}"), []string{"policies[0].days[0]: must be a day such as mon, not a list; write it like days: [mon, fri]"}},
		{"a header without quotes", inUpstream(`{name: a, url: "https://x.example", headers: [‸X: 1]}`), []string{`upstreams[0].headers[0]: must be a text, not a mapping; write it like headers: ["X-Key: ${keyring:key}"]`}},
		{"calls with an underscore", inPolicy("{type: rate_limit, window: 1h, max_calls: ‸1_000}"), []string{"policies[0].max_calls: must be a whole number, not the number 1_000"}},
	}.run(t)
}

// A file that holds one mistake has one message about it.
func TestWhatIsNoMappingIsBlamedOnce(t *testing.T) {
	mistakes{
		{"a list", "‸- version: 1\n", []string{"must be a mapping with keys, not a list"}},
		{"a text", "‸hello\n", []string{"must be a mapping with keys, not a text"}},
		{"a tag", "‸!!map\nversion: 1\n", []string{"YAML tags (!!map) are not supported"}},
		{"an alias", "‸*a\n", []string{"there is no anchor &a above this alias"}},
	}.run(t)
	parse(t, "&all\nversion: 1\n")
}

func TestTagsAndMergeKeysAreBlamed(t *testing.T) {
	mistakes{
		{"a tag of a number", "version: ‸!!int 1\n", []string{"version: YAML tags (!!int) are not supported"}},
		{"a tag of a text", in("session: {agent_id: ‸!!str 5}"), []string{"session.agent_id: YAML tags (!!str) are not supported"}},
		{"a tag of a mapping", in("session: ‸!x {agent_id: a}"), []string{"session: YAML tags (!x) are not supported"}},
		{"a tag of money", in("session: {spend_limit: ‸!!float 1}"), []string{"session.spend_limit: YAML tags (!!float) are not supported"}},
		{"a merge key", in("session: &s {agent_id: a}\n‸<<: *s"), []string{"YAML merge keys (<<) are not supported"}},
		{"a merge key in a policy", in("policies:\n  - &p {type: deny, tools: [a]}\n  - {‸<<: *p, id: b}"), []string{"policies[1]: YAML merge keys (<<) are not supported"}},
	}.run(t)
}

func TestAnchorsAndAliasesWork(t *testing.T) {
	c := parse(t, `version: 1
session: {agent_id: &bot research-bot, spend_limit: &limit 25.00}
policies:
  - &first {type: deny, tools: &tools [a, b], agents: [*bot], when: &when "args.x == 1"}
  - *first
  - {type: deny, tools: *tools, when: *when}
  - {type: spend_limit, max_usd: *limit}
`)
	p := c.Ruleset.Policies
	if len(p) != 4 || c.Session.Agent != "research-bot" {
		t.Fatalf("%+v", c)
	}
	for _, r := range p[:3] {
		if diff := cmp.Diff([]string{"a", "b"}, r.Tools); diff != "" || r.When != "args.x == 1" {
			t.Errorf("%+v", r)
		}
	}
	if p[0].Agents[0] != "research-bot" || p[1].Agents[0] != "research-bot" || p[3].MaxUSD != 25_000_000 {
		t.Errorf("%+v", p)
	}
	mistakes{
		{"of itself", in("session: &s ‸{agent_id: *s}"), []string{"session.agent_id: must be a text, not a mapping"}},
		{"below the alias", in("policies:\n  - {type: deny, tools: ‸*t}\n  - {type: deny, tools: &t [a]}"), []string{"policies[0].tools: there is no anchor &t above this alias"}},
		{"nowhere", inPolicy("{type: deny, tools: ‸*t}"), []string{"policies[0].tools: there is no anchor &t above this alias"}},
	}.run(t)
}

// None of many aliases is one too many.
func TestManyAliasesWork(t *testing.T) {
	text := "version: 1\npolicies:\n  - {type: deny, tools: &t [a]}\n" + strings.Repeat("  - {type: deny, tools: *t}\n", 1100)
	parse(t, text)
}

func TestAliasBombsEndQuickly(t *testing.T) {
	list := func(of string, n int) string { return "[" + strings.TrimSuffix(strings.Repeat(of+", ", n), ", ") + "]" }
	laughs := "version: 1\nsession:\n  scopes: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\npolicies:\n"
	for i := 1; i < 30; i++ {
		laughs += fmt.Sprintf("  - &a%d %s\n", i, list(fmt.Sprintf("*a%d", i-1), 9))
	}
	for name, text := range map[string]string{
		"lists of lists":               laughs,
		"a list of itself":             "version: 1\npolicies: &p [*p, *p, *p]\n",
		"a mapping of itself":          "version: 1\nsession: &s {agent_id: *s, scopes: *s}\n",
		"a policy of itself":           "version: 1\npolicies:\n  - &p {type: *p, tools: [*p, *p], when: *p}\n",
		"one list in many policies":    "version: 1\npolicies:\n  - {type: deny, tools: &t " + list("a", 300) + "}\n" + strings.Repeat("  - {type: deny, tools: *t}\n", 600),
		"one mistake in many policies": "version: 1\npolicies:\n  - &p {type: deny, tools: [a], maxx_calls: 1}\n" + strings.Repeat("  - *p\n", 600),
		"many long lists":              "version: 1\npolicies:\n  - {type: deny, tools: &t " + list("a", 5000) + "}\n" + strings.Repeat("  - {type: deny, tools: *t}\n", 5000),
		"an anchor of its own alias":   "version: 1\nsession: {agent_id: &a *a}\n",
		"an alias of an alias":         "version: 1\nsession: {agent_id: &a x, scopes: &b [*a, *a], ttl: *b}\n",
		"deep flows":                   "version: 1\nsession: " + strings.Repeat("{scopes: ", 2000) + strings.Repeat("}", 2000) + "\n",
		"deep lists":                   "version: 1\npolicies: " + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = config.Parse([]byte(text), "haldir.yaml") // whether it loads does not matter here
			}()
			select {
			case <-done:
			case <-time.After(30 * time.Second):
				t.Fatal("it takes more than 30 s")
			}
		})
	}
}

func TestOneRunShowsMistakesOfEveryRoom(t *testing.T) {
	text, places := unmark(`version: ‸3
‸sesion: {}
session:
  scopes: [‸Read]
  ttl: ‸0
upstreams:
  - {name: ‸A, command: x}
  - {name: b, url: ‸"http://b.example"}
  - ‸{name: c}
  - {name: ‸b, command: x}
costs:
  - {tools: [‸'['], usd: 1}
  - {tools: [a], usd: ‸.inf}
scopes:
  - {tools: [a], require: ‸[]}
policies:
  - {type: ‸denny}
  - {type: deny, tools: [a], when: ‸tol}
  - {type: rate_limit, ‸max_calls: , window: 1h}
  - {type: time_window, days: [‸noday]}
list_wait: ‸soon
audit: {arguments: ‸some}
log: {‸colour: red}
`)
	_, err := config.Parse([]byte(text), "haldir.yaml")
	if err == nil {
		t.Fatal("it loads")
	}
	var got []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		rest := strings.TrimPrefix(line, "haldir.yaml:")
		place, _, _ := strings.Cut(rest, ": ")
		got = append(got, place)
	}
	if diff := cmp.Diff(places, got); diff != "" {
		t.Errorf("%v\n(-want +got):\n%s", err, diff)
	}
}

func TestAFileWithoutADocumentIsBlamed(t *testing.T) {
	const empty = "file: the file is empty; it needs at least: version: 1"
	mistakes{
		{"nothing", "", []string{empty}},
		{"an empty line", "\n\n", []string{empty}},
		{"a comment", "# version: 1\n", []string{empty}},
		{"the start of a document", "---\n", []string{empty}},
		{"no version", "session: {}\n", []string{"file: version: is missing; the file needs: version: 1"}},
		{"a later version", "version: ‸2\n", []string{"version: is 2; this haldir knows version 1"}},
		{"version 0", "version: ‸0\n", []string{"version: is 0; this haldir knows version 1"}},
	}.run(t)
}

func TestTwoDocumentsAreBlamed(t *testing.T) {
	mistakes{
		{"in flow style", "{version: 1}\n---\n‸{version: 1}\n", []string{"the file holds more than one document; keep one of them"}},
		{"in block style", "version: 1\n---\n‸version: 1\n", []string{"the file holds more than one document; keep one of them"}},
		{"one that is empty does not count", "---\nversion: ‸2\n---\n", []string{"version: is 2; this haldir knows version 1"}},
	}.run(t)
	for _, text := range []string{"---\nversion: 1\n", "---\nversion: 1\n...\n", "version: 1\n---\n", "%YAML 1.2\n---\nversion: 1\n", "# x\n%YAML 1.2\n---\nversion: 1\n...\n"} {
		if _, err := config.Parse([]byte(text), "haldir.yaml"); err != nil {
			t.Errorf("%q is one document: %v", text, err)
		}
	}
}

func TestWhatIsNoYAMLIsBlamed(t *testing.T) {
	mistakes{
		{"a flow without an end", in("session: ‸{agent_id: a"), []string{"not valid YAML: could not find flow mapping end token '}'"}},
		{"a quote without an end", in(`session: {agent_id: ‸"a}`), []string{"not valid YAML: could not find end character of double-quoted text"}},
		{"a tab", "version: 1\n‸\tsession: {}\n", []string{"not valid YAML: found character '\t' that cannot start any token"}},
		{"an indent", "version: 1\npolicies:\n  - type: deny\n  ‸tools: [a]\n", []string{"not valid YAML: value is not allowed in this context"}},
	}.run(t)
	// These were once placed outside of the file.
	for _, text := range []string{"vers: \":.1\na\x00session: {a\x00\x01\x00\x00_idion\\um\n00fc\\ud83\x00", ")e\x00\r\x01:\t'6\x84\xfe1\rq\x96\t\n\r\n\t", "a: \"\n\n", "a:\t\"\t\n", "a: !!x"} {
		_, err := config.Parse([]byte(text), "haldir.yaml")
		problems, ok := err.(config.Problems)
		if !ok {
			t.Fatalf("%q: %v", text, err)
		}
		for _, p := range problems {
			inside(t, text, p)
		}
	}
	for _, text := range []string{"\x00", "{", "]", "version: 1\n? [a]\n: 1\n", "a: b: c\n", "&a", "*a", "@", "`", "%", "!", "|", "? ? ?", "- - - -", ":\n:\n:"} {
		if _, err := config.Parse([]byte(text), "haldir.yaml"); err == nil {
			t.Errorf("%q loads", text)
		} else if !strings.HasPrefix(err.Error(), "haldir.yaml") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Editors on Windows begin a file with a byte order mark.
func TestAByteOrderMarkIsNoPartOfTheText(t *testing.T) {
	parse(t, "\ufeffversion: 1\n")
	_, err := config.Parse([]byte("\ufeff{version: 2}\n"), "haldir.yaml")
	if err == nil || err.Error() != "haldir.yaml:1:11: version: is 2; this haldir knows version 1" {
		t.Error(err)
	}
}

func TestWhatMustNotStandInTheFileIsBlamed(t *testing.T) {
	const turns = ", which changes the direction of the text around it, must not stand in the file; remove it"
	mistakes{
		{"a byte that is no UTF-8", in("session: {agent_id: \"ü‸\xff\"}"), []string{"the byte 0xff is no UTF-8; save the file as UTF-8"}},
		{"half a character", "version: 1 # ‸\xc3\n", []string{"the byte 0xc3 is no UTF-8; save the file as UTF-8"}},
		{"UTF-16", "‸\xff\xfev\x00e\x00", []string{"the file is UTF-16; save it as UTF-8"}},
		{"a zero byte", in("session: {agent_id: a‸\x00}"), []string{"the control character U+0000 must not stand in the file; remove it, or write it as an escape in double quotes"}},
		{"an escape", in("session: {agent_id: a} # ‸\x1b[31m"), []string{"the control character U+001B must not stand in the file; remove it, or write it as an escape in double quotes"}},
		{"a control character of 8 bits", in("session: {agent_id: a‸\u009b31m}"), []string{"the control character U+009B must not stand in the file; remove it, or write it as an escape in double quotes"}},
		{"a text that turns around", in("session: {agent_id: a‸\u202eb}"), []string{"the invisible character U+202E" + turns}},
		{"a comment that turns around", in("# ‸\u2066 x"), []string{"the invisible character U+2066" + turns}},
	}.run(t)
	parse(t, in("session: {agent_id: \"\ufffd\"} # \ufffd, \u200e and \ufeff"))
}

// YAML keeps a tab inside a text; the parser drops it without a word.
func TestATabInATextIsBlamed(t *testing.T) {
	const tab = `a tab stands inside a text; write it as \t in double quotes, or write a space`
	mistakes{
		{"in a flow", inUpstream("{name: a, command: x, args: [delete‸\tall]}"), []string{tab}},
		{"in a block", "version: 1\nsession:\n  agent_id: a‸\tb # x\n", []string{tab}},
		{"two", inUpstream("{name: a, command: x, args: [a‸\tb, c ‸\t d]}"), []string{tab, tab}},
		{"in double quotes", inUpstream("{name: a, command: x, args: [\"a‸\tb\", c]}"), []string{tab}},
		{"in a number", inPolicy("{type: rate_limit, window: 1h, max_calls: 5‸\t6}"), []string{tab}},
		{"in a key", in("session: {agent‸\tid: a}"), []string{tab}},
		{"in the second line", "version: 1\nsession:\n  agent_id: a\n    b‸\tc\n", []string{tab}},
		{"behind letters of several bytes", in("session: {agent_id: ü‸\tü}"), []string{tab}},
	}.run(t)
	c := parse(t, "version:\t1\t# one\nupstreams:\n  - name:\ta\t\n    command: |\n      x\ty\n    args: ['a\tb', 'c\td', \t\"\\te\",\tf\t]\t#\tcomment\n")
	if u := c.Upstreams[0]; u.Name != "a" || u.Command != "x\ty\n" {
		t.Errorf("%+v", u)
	}
	if diff := cmp.Diff([]string{"a\tb", "c\td", "\te", "f"}, c.Upstreams[0].Args); diff != "" {
		t.Error(diff)
	}
}

// Tabs, spaces at the ends of lines and texts over several lines confuse the
// parser's places.
func TestPlacesAreExact(t *testing.T) {
	mistakes{
		{"behind tabs", "version:\t1\nsession:\t{agent_id:\ta, ‸scops: [a]}\n", []string{`session: unknown key "scops"; did you mean "scopes"?`}},
		{"before spaces at the end", "version: ‸2  \nsession: {}\n", []string{"version: is 2; this haldir knows version 1"}},
		{"behind a text in quotes over several lines", "version: 1\nsession: {agent_id: \"a\n  b\", ‸scops: [a]}\n", []string{`session: unknown key "scops"; did you mean "scopes"?`}},
		{"behind escapes", in(`session: {agent_id: "\u00fc\ud83d\ude00\x41\\\"", ‸scops: [a]}`), []string{`session: unknown key "scops"; did you mean "scopes"?`}},
		{"behind quotes in quotes", in(`session: {agent_id: 'it''s', ‸scops: [a]}`), []string{`session: unknown key "scops"; did you mean "scopes"?`}},
		{"behind an anchor", in("session: {agent_id: &a\t b, ‸scops: [a]}"), []string{`session: unknown key "scops"; did you mean "scopes"?`}},
		{"below a block with a comment", "version: 1\nsession:\n  agent_id: >- # a\n\n    b\n      c\n  ‸scops: [a]\n", []string{`session: unknown key "scops"; did you mean "scopes"?`}},
		{"with line ends of old", "version: 1\rsession: {\r  agent_id: a,\r  ‸scops: [a]}\r", []string{`session: unknown key "scops"; did you mean "scopes"?`}},
		{"an upstream in block style", "version: 1\nupstreams:\n  - ‸command: x\n", []string{"upstreams[0]: has no name"}},
		{"a policy in block style", "version: 1\npolicies:\n  - ‸type: spend_limit\n", []string{"policies[0]: needs max_usd"}},
	}.run(t)
}

func TestNoEntryIsBlamedTwice(t *testing.T) {
	mistakes{
		{"upstreams without names", in("upstreams:\n  - ‸{command: x}\n  - ‸{command: y}"), []string{"upstreams[0]: has no name", "upstreams[1]: has no name"}},
		{"days without a day", inPolicy("{type: time_window, days: ‸[]}"), []string{"policies[0].days: is empty: the window would never open"}},
		{"a name of an upstream that is none", in("upstreams:\n  - {name: ‸A, command: x}\npolicies:\n  - {type: deny, tools: [a/b], upstreams: [b]}"), []string{`upstreams[0].name: "A" is no upstream name: use up to 32 of a-z, 0-9 and -, not beginning with -`}},
		{"an unreadable policy is not checked", inPolicy("{type: spend_limit, ‸maxx_usd: 5, per: year, timezone: Mars}"), []string{`policies[0]: unknown key "maxx_usd"; did you mean "max_usd"?`}},
		{"one with an unknown type neither", inPolicy("{type: ‸denny, tools: ['['], when: tol}"), []string{`policies[0].type: unknown policy type "denny"; did you mean "deny"?`}},
		{"one of another type's keys neither", inPolicy("{type: deny, max_usd: ‸5}"), []string{"policies[0].max_usd: is no key of deny, but of spend_limit; it has none of its own"}},
		{"a wrong number", inPolicy("{type: spend_limit, max_usd: ‸-1}"), []string{"policies[0].max_usd: the amount -1 is negative"}},
		{"a wrong time", inPolicy("{type: rate_limit, max_calls: 5, window: ‸soon}"), []string{`policies[0].window: "soon" is no duration; write it like 90s, 15m, 8h or 7d, or as a number of seconds`}},
		{"an unreadable upstream", inUpstream("{name: A, ‸comand: x}"), []string{`upstreams[0]: unknown key "comand"; did you mean "command"?`}},
		{"what others rest on", in("session: ‸5\ndenied_tools: ‸maybe"), []string{"session: must be a mapping with keys, not the number 5; write it like session: {agent_id: research-bot, scopes: [read, execute], ttl: 8h}", `denied_tools: "maybe" is none of hide, show`}},
	}.run(t)
}
