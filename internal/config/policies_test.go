package config_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/policy"
)

// compareRules compares rules; locations by their names.
var compareRules = cmp.Comparer(func(a, b *time.Location) bool { return a.String() == b.String() })

// The bodies of the five policies of the original product, as its API took them.
func TestTheFiveOriginalBodiesLoadOneByOne(t *testing.T) {
	newYork, err := time.LoadLocation("America/New_York")
	if err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]policy.Rule{
		`{"type":"deny","tools":["delete_database","drop_table","send_wire_transfer"]}`:                        {Type: "deny", Tools: []string{"delete_database", "drop_table", "send_wire_transfer"}, Location: time.UTC},
		`{"type":"spend_limit","max_usd":50.00,"per":"session"}`:                                               {Type: "spend_limit", MaxUSD: 50 * policy.USD, Per: "session", Location: time.UTC},
		`{"type":"rate_limit","max_calls":100,"window_seconds":3600}`:                                          {Type: "rate_limit", MaxCalls: 100, Window: time.Hour, Location: time.UTC},
		`{"type":"time_window","allowed_hours":{"start":"09:00","end":"17:00"},"timezone":"America/New_York"}`: {Type: "time_window", Hours: &policy.Hours{Start: 540, End: 1020}, Location: newYork},
		`{"type":"allow","tools":["scan_domain","dns_lookup","whois_lookup","get_headers"]}`:                   {Type: "allow", Tools: []string{"scan_domain", "dns_lookup", "whois_lookup", "get_headers"}, Location: time.UTC},
	} {
		for _, text := range []string{
			`{"version":1,"policies":[` + body + `]}`,
			"{\n\t\"version\": 1,\n\t\"policies\": [\n\t\t" + body + "\n\t]\n}\n",
			"version: 1\npolicies:\n  - " + body + "\n",
		} {
			c, err := config.Parse([]byte(text), "haldir.yaml")
			if err != nil {
				t.Errorf("%s: %v", text, err)
				continue
			}
			if diff := cmp.Diff([]policy.Rule{want}, c.Ruleset.Policies, compareRules); diff != "" || len(c.Warnings) > 0 {
				t.Errorf("%s: %v (-want +got):\n%s", text, c.Warnings, diff)
			}
		}
	}
}

func TestWhatAPolicyMaySay(t *testing.T) {
	hours := func(start, end int) *policy.Hours { return &policy.Hours{Start: start, End: end} }
	for body, want := range map[string]policy.Rule{
		`{type: deny, tools: ["*"], upstreams: [a-*], agents: ["B*"], when: "args.x > 1", id: a.b:c_d-1, mode: shadow}`: {
			Type: "deny", Tools: []string{"*"}, Upstreams: []string{"a-*"}, Agents: []string{"B*"}, When: "args.x > 1", ID: "a.b:c_d-1", Shadow: true,
		},
		"{type: deny, upstreams: [a], mode: enforce}":                         {Type: "deny", Upstreams: []string{"a"}},
		"{type: deny, when: 'true'}":                                          {Type: "deny", When: "true"},
		"{type: allow, tools: []}":                                            {Type: "allow", Tools: []string{}},
		"{type: spend_limit, max_usd: 0}":                                     {Type: "spend_limit"},
		"{type: spend_limit, max_usd: 1, per: week, timezone: Europe/Berlin}": {Type: "spend_limit", MaxUSD: policy.USD, Per: "week", Location: berlin(t)},
		"{type: rate_limit, max_calls: 0, window: 90s, per: upstream}":        {Type: "rate_limit", Window: 90 * time.Second, Per: "upstream"},
		"{type: rate_limit, max_calls: 5, window: 60}":                        {Type: "rate_limit", MaxCalls: 5, Window: time.Minute},
		"{type: time_window, allowed_hours: {start: 09:00, end: 17:00}}":      {Type: "time_window", Hours: hours(540, 1020)},
		"{type: time_window, allowed_hours: {start: 9, end: 17}}":             {Type: "time_window", Hours: hours(540, 1020)},
		`{type: time_window, allowed_hours: {start: "22:30", end: "6:00"}}`:   {Type: "time_window", Hours: hours(1350, 360)},
		`{type: time_window, allowed_hours: {start: "00:00", end: "24:00"}}`:  {Type: "time_window", Hours: hours(0, 1440)},
		`{type: time_window, days: [mon, Tuesday, FRI]}`:                      {Type: "time_window", Days: []time.Weekday{1, 2, 5}},
	} {
		if want.Location == nil {
			want.Location = time.UTC
		}
		c, err := config.Parse([]byte(inPolicy(body)), "haldir.yaml")
		if err != nil {
			t.Errorf("%s: %v", body, err)
			continue
		}
		if diff := cmp.Diff(want, c.Ruleset.Policies[0], compareRules); diff != "" {
			t.Errorf("%s (-want +got):\n%s", body, diff)
		}
	}
}

func berlin(t *testing.T) *time.Location {
	t.Helper()
	l, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Warnings have places too, and mean the same as the new form.
func TestOldSpellingsMeanTheSameAsTheNewOnes(t *testing.T) {
	for _, tt := range []struct {
		old      string
		warnings []string
		new      string
	}{
		{"{type: ‸deny_list, tools: [a]}", []string{`policies[0].type: "deny_list" is the old name of "deny"`}, "{type: deny, tools: [a]}"},
		{"{type: ‸allow_list, tools: [a]}", []string{`policies[0].type: "allow_list" is the old name of "allow"`}, "{type: allow, tools: [a]}"},
		{"{type: ‸block_tool, tool: ‸a}", []string{`policies[0].type: "block_tool" is the old name of "deny"`, "policies[0].tool: is the old form of tools: [a]"}, "{type: deny, tools: [a]}"},
		{"{type: deny, tools: [a], tool: ‸b}", []string{"policies[0].tool: is the old form of tools: [b]"}, "{type: deny, tools: [a, b]}"},
		{"{type: allow, tool: ‸a}", []string{"policies[0].tool: is the old form of tools: [a]"}, "{type: allow, tools: [a]}"},
		{"{type: spend_limit, max: ‸0.004}", []string{"policies[0].max: is the old form of max_usd: 0.004"}, "{type: spend_limit, max_usd: 0.004}"},
		{"{type: rate_limit, max: ‸100, window_seconds: 60}", []string{"policies[0].max: is the old form of max_calls: 100"}, "{type: rate_limit, max_calls: 100, window: 1m}"},
		{"{type: rate_limit, max_per_minute: ‸30}", []string{"policies[0].max_per_minute: is the old form of max_calls: 30, window: 1m"}, "{type: rate_limit, max_calls: 30, window: 1m}"},
		{"{type: time_window, start_hour: ‸22, end_hour: 6}", []string{`policies[0].start_hour: start_hour and end_hour are the old form of allowed_hours: {start: "22:00", end: "06:00"}`}, `{type: time_window, allowed_hours: {start: "22:00", end: "06:00"}}`},
	} {
		t.Run(tt.old, func(t *testing.T) {
			text, places := unmark(inPolicy(tt.old))
			c := parse(t, text)
			var got, want []string
			for _, w := range c.Warnings {
				got = append(got, w.String())
			}
			for i, w := range tt.warnings {
				want = append(want, "haldir.yaml:"+places[i]+": warning: "+w)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(parse(t, inPolicy(tt.new)).Ruleset, c.Ruleset, compareRules); diff != "" {
				t.Errorf("the rules (-new +old):\n%s", diff)
			}
			if slices.ContainsFunc(c.Warnings, func(p config.Problem) bool { return !p.Warning }) {
				t.Error("a warning is no warning")
			}
		})
	}
}

// viper would lower these and split them; here they are values.
func TestToolNamesKeepDotsAndCapitals(t *testing.T) {
	c := parse(t, inPolicy(`{type: deny, tools: ["API.Get", "files/Read.File", "a/b/C.d", "Ünï.x", "x y"], upstreams: ["*"]}`))
	if diff := cmp.Diff([]string{"API.Get", "files/Read.File", "a/b/C.d", "Ünï.x", "x y"}, c.Ruleset.Policies[0].Tools); diff != "" {
		t.Error(diff)
	}
	for id, want := range map[string]policy.Verdict{
		"z/API.Get": policy.Deny, "z/api.get": policy.Allow, "z/API": policy.Allow, "files/Read.File": policy.Deny, "z/Read.File": policy.Allow, "a/b/C.d": policy.Deny, "a/b/c.d": policy.Allow,
	} {
		up, tool, _ := strings.Cut(id, "/")
		d := c.Engine.Decide(policy.Call{Upstream: up, Tool: tool}, policy.State{Session: policy.SessionState{AllScopes: true}})
		if d.Verdict != want {
			t.Errorf("%s: %v", id, d.Verdict)
		}
	}
}

// inside checks that a problem's place is a place of the text. What is missing at
// the end of a line is blamed behind it.
func inside(t *testing.T, text string, p config.Problem) {
	t.Helper()
	if p.Line == 0 && p.Column == 0 {
		return // it concerns the whole file
	}
	lines := strings.Split(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text), "\n") // as YAML ends lines
	if p.Line < 1 || p.Line > len(lines) {
		t.Errorf("%v: the text has %d lines", p, len(lines))
		return
	}
	if n := len([]rune(lines[p.Line-1])); p.Column < 1 || p.Column > n+1 {
		t.Errorf("%v: line %d has %d characters: %q", p, p.Line, n, lines[p.Line-1])
	}
}

func TestWhatAPolicyMayNotSay(t *testing.T) {
	const (
		noTime  = " is no time of day; write it like 09:00"
		differ  = "policies[0].allowed_hours: needs a start and an end that differ, between 00:00 and 24:00"
		noDay   = " is no day; known here: sun, mon, tue, wed, thu, fri, sat"
		noRule  = " is no rule id: use up to 64 of a-z, 0-9, :, _, . and -, beginning with a letter"
		perRate = " is none of total, session, agent, tool, upstream"
		perUSD  = " is none of session, agent, total, hour, day, week, month"
	)
	mistakes{
		{"deny nothing", inPolicy("‸{type: deny}"), []string{`policies[0].tools: a deny rule must say what it denies (upstreams: ["*"] denies everything)`}},
		{"deny an empty list", inPolicy("{type: deny, tools: ‸[]}"), []string{"policies[0].tools: is empty: the rule would concern no tool; leave tools out to concern all"}},
		{"deny an empty list of one upstream", inPolicy("{type: deny, tools: ‸[], upstreams: [a]}"), []string{"policies[0].tools: is empty: the rule would concern no tool; leave tools out to concern all"}},
		{"an old deny of nothing", inPolicy("‸{type: block_tool}"), []string{`policies[0].tools: a deny rule must say what it denies (upstreams: ["*"] denies everything)`}},
		{"allow without a list", inPolicy("‸{type: allow}"), []string{"policies[0]: needs tools (an empty list allows nothing)"}},
		{"patterns", inPolicy(`{type: deny, tools: [ok, ‸"[", ‸"", ‸"a/[b", ‸"[/b"]}`), []string{
			`policies[0].tools[1]: "[" is no valid pattern`, "policies[0].tools[2]: the pattern is empty and would match nothing",
			`policies[0].tools[3]: "a/[b" is no valid pattern`, `policies[0].tools[4]: "[/b" is no valid pattern`,
		}},
		{"globs of upstreams and agents", inPolicy(`{type: deny, upstreams: [‸"["], agents: [a, ‸""]}`), []string{`policies[0].upstreams[0]: "[" is no valid pattern`, `policies[0].agents[1]: "" is no valid pattern`}},
		{"mode", inPolicy("{type: deny, tools: [a], mode: ‸Shadow}"), []string{`policies[0].mode: "Shadow" is neither enforce nor shadow`}},
		{"id", inPolicy("{type: deny, tools: [a], id: ‸No-Etc}"), []string{`policies[0].id: "No-Etc"` + noRule}},
		{"an empty id", inPolicy(`{type: deny, tools: [a], id: ‸""}`), []string{`policies[0].id: ""` + noRule}},
		{"no agent", inPolicy("{type: deny, agents: ‸[]}"), []string{"policies[0].agents: is empty: the rule would concern no agent; leave agents out to concern all"}},
		{"no upstream", inPolicy("{type: allow, tools: [a], upstreams: ‸[]}"), []string{"policies[0].upstreams: is empty: the rule would concern no upstream; leave upstreams out to concern all"}},
		{"two of an id", in("policies:\n  - {type: deny, tools: [a], id: x}\n  - {type: allow, tools: [b], id: ‸x}"), []string{`policies[1].id: the id "x" is already that of policy 1`}},
		{"two of an id after one that cannot be read", in("policies:\n  - {type: ‸denny}\n  - {type: deny, tools: [a], id: x}\n  - {type: deny, tools: [b], id: ‸x}"), []string{
			`policies[0].type: unknown policy type "denny"; did you mean "deny"?`, `policies[2].id: the id "x" is already that of policy 2`,
		}},
		{"an id that another has by default", in("policies:\n  - {type: deny, tools: [a], id: deny-2}\n  - ‸{type: deny, tools: [b]}"), []string{`policies[1].id: the id "deny-2" is already that of policy 1`}},

		{"spend_limit without a limit", inPolicy("‸{type: spend_limit}"), []string{"policies[0]: needs max_usd"}},
		{"spend_limit with two", inPolicy("{type: spend_limit, max_usd: 1, max: ‸2}"), []string{"policies[0].max: says the same as max_usd; keep one of them"}},
		{"spend_limit per year", inPolicy("{type: spend_limit, max_usd: 1, per: ‸year}"), []string{`policies[0].per: "year"` + perUSD}},
		{"spend_limit per tool", inPolicy("{type: spend_limit, max_usd: 1, per: ‸tool}"), []string{`policies[0].per: "tool"` + perUSD}},
		{"spend_limit on Mars", inPolicy("{type: spend_limit, max_usd: 1, timezone: ‸Mars/Base}"), []string{`policies[0].timezone: "Mars/Base" is no IANA time zone such as America/New_York`}},
		{"spend_limit in the machine's zone", inPolicy("{type: spend_limit, max_usd: 1, timezone: ‸Local}"), []string{`policies[0].timezone: "Local" is no IANA time zone such as America/New_York`}},
		{"a zone that is a path", inPolicy("{type: spend_limit, max_usd: 1, timezone: ‸../../etc/localtime}"), []string{`policies[0].timezone: "../../etc/localtime" is no IANA time zone such as America/New_York`}},

		{"rate_limit without calls", inPolicy("‸{type: rate_limit, window: 1h}"), []string{"policies[0]: needs max_calls"}},
		{"rate_limit without a window", inPolicy("‸{type: rate_limit, max_calls: 1}"), []string{"policies[0]: needs window_seconds or window"}},
		{"rate_limit with two windows", inPolicy("{type: rate_limit, max_calls: 1, window_seconds: 5, window: ‸5s}"), []string{"policies[0].window: says the same as window_seconds; keep one of them"}},
		{"rate_limit of less than nothing", inPolicy("{type: rate_limit, max_calls: ‸-1, window: 1h}"), []string{"policies[0].max_calls: must not be negative"}},
		{"rate_limit in no time, in seconds", inPolicy("{type: rate_limit, max_calls: 1, window_seconds: ‸0}"), []string{"policies[0].window_seconds: must be a positive time"}},
		{"rate_limit in no time", inPolicy("{type: rate_limit, max_calls: 1, window: ‸0}"), []string{"policies[0].window: must be a positive time"}},
		{"max_per_minute of less than nothing", inPolicy("{type: rate_limit, max_per_minute: ‸-5}"), []string{"policies[0].max_per_minute: must not be negative"}},
		{"an old tool that is no pattern", inPolicy("{type: block_tool, tool: ‸'['}"), []string{`policies[0].tool: "[" is no valid pattern`}},
		{"an old tool beside others", inPolicy("{type: deny, tools: [a], tool: ‸'['}"), []string{`policies[0].tool: "[" is no valid pattern`}},
		{"old hours of nothing", inPolicy("{type: time_window, start_hour: ‸9, end_hour: 9}"), []string{"policies[0].start_hour: needs a start and an end that differ, between 00:00 and 24:00"}},
		{"rate_limit per hour", inPolicy("{type: rate_limit, max_calls: 1, window: 1h, per: ‸hour}"), []string{`policies[0].per: "hour"` + perRate}},
		{"half a call", inPolicy("{type: rate_limit, max: ‸1.5, window: 1h}"), []string{"policies[0].max: must be a whole number of calls"}},
		{"max_per_minute and max_calls", inPolicy("{type: rate_limit, max_calls: 5, max_per_minute: ‸5}"), []string{"policies[0].max_per_minute: says the same as max_calls; keep one of them"}},
		{"max_per_minute and window", inPolicy("{type: rate_limit, max_per_minute: ‸5, window: 1h}"), []string{"policies[0].max_per_minute: says the same as window; keep one of them"}},

		{"time_window without a time", inPolicy("‸{type: time_window}"), []string{"policies[0]: needs allowed_hours or days"}},
		{"time_window of nothing", inPolicy(`{type: time_window, allowed_hours: ‸{start: "09:00", end: "09:00"}}`), []string{differ}},
		{"time_window from 24:00", inPolicy(`{type: time_window, allowed_hours: ‸{start: "24:00", end: "09:00"}}`), []string{differ}},
		{"time_window with a start", inPolicy(`{type: time_window, allowed_hours: ‸{start: "09:00"}}`), []string{"policies[0].allowed_hours: needs start and end"}},
		{"time_window with an old start", inPolicy("‸{type: time_window, start_hour: 9}"), []string{"policies[0]: has only one of start_hour and end_hour"}},
		{"time_window old and new", inPolicy(`{type: time_window, start_hour: 9, end_hour: 17, allowed_hours: ‸{start: "09:00", end: "17:00"}}`), []string{"policies[0].allowed_hours: says the same as start_hour and end_hour; keep allowed_hours"}},
		{"times", inPolicy(`{type: time_window, allowed_hours: {start: ‸"25:00", end: ‸"9:60"}}`), []string{`policies[0].allowed_hours.start: "25:00"` + noTime, `policies[0].allowed_hours.end: "9:60"` + noTime}},
		{"more times", inPolicy(`{type: time_window, allowed_hours: {start: ‸"-1:00", end: ‸"9:5"}}`), []string{`policies[0].allowed_hours.start: "-1:00"` + noTime, `policies[0].allowed_hours.end: "9:5"` + noTime}},
		{"and more", inPolicy(`{type: time_window, allowed_hours: {start: ‸"09:00:00", end: ‸5pm}}`), []string{`policies[0].allowed_hours.start: "09:00:00"` + noTime, `policies[0].allowed_hours.end: "5pm"` + noTime}},
		{"an hour too many", inPolicy("{type: time_window, start_hour: 9, end_hour: ‸25}"), []string{`policies[0].end_hour: "25"` + noTime}},
		{"days", inPolicy("{type: time_window, days: [mon, ‸mnday, ‸1]}"), []string{`policies[0].days[1]: "mnday"` + noDay, `policies[0].days[2]: "1"` + noDay}},
	}.run(t)
}

// What can match nothing is a mistake or a slip of the pen.
func TestNamesOfUpstreamsAreHeldAgainstTheUpstreams(t *testing.T) {
	const two = "version: 1\nupstreams:\n  - {name: files, command: x}\n  - {name: payments, command: x}\n"
	mistakes{
		{"a misspelt one", two + "policies:\n  - {type: deny, upstreams: [files, ‸fils]}\n", []string{`policies[0].upstreams[1]: there is no upstream "fils"; did you mean "files"?`}},
		{"beside an upstream with a mistake", two + "  - {name: x, url: ‸'ftp://x.example'}\npolicies:\n  - {type: deny, upstreams: [‸fils]}\n", []string{
			"upstreams[2].url: must be an https URL; http is for this machine (localhost) only", `policies[0].upstreams[0]: there is no upstream "fils"; did you mean "files"?`,
		}},
		{"another one", two + "policies:\n  - {type: deny, upstreams: [‸search]}\n", []string{`policies[0].upstreams[0]: there is no upstream "search"; known here: files, payments`}},
		{"a pattern of tools", two + "policies:\n  - {type: deny, upstreams: [‸files/*]}\n", []string{`policies[0].upstreams[0]: "files/*" is no name of an upstream; patterns with a slash belong to tools`}},
		{"haldir", two + "policies:\n  - {type: deny, upstreams: [‸haldir]}\n", []string{"policies[0].upstreams[0]: policies do not govern haldir's own tools; remove it"}},
	}.run(t)
	text, places := unmark(two + `policies:
  - {type: deny, tools: ["files/*", ‸"fils/*", "*/x", "fil?/x", x, ‸haldir/haldir_get_spend]}
  - {type: deny, upstreams: ["fil*", ‸"serch-*"]}
  - {type: block_tool, tool: ‸‸fils/x}
costs: [{tools: [‸llm/ask], usd: 1}]
scopes: [{tools: [‸payment/x], require: [read]}]
`)
	var got, want []string
	for _, w := range parse(t, text).Warnings {
		if !strings.Contains(w.Message, "block_tool") {
			got = append(got, w.String())
		}
	}
	for i, w := range []string{
		`policies[0].tools[1]: "fils/*" matches nothing: there is no upstream "fils"; did you mean "files"?`,
		`policies[0].tools[5]: "haldir/haldir_get_spend" matches nothing: policies do not govern haldir's own tools`,
		`policies[1].upstreams[1]: "serch-*" matches no upstream; known here: files, payments`,
		`policies[2].tool: is the old form of tools: [fils/x]`,
		`policies[2].tool: "fils/x" matches nothing: there is no upstream "fils"; did you mean "files"?`,
		`costs[0].tools[0]: "llm/ask" matches nothing: there is no upstream "llm"; known here: files, payments`,
		`scopes[0].tools[0]: "payment/x" matches nothing: there is no upstream "payment"; did you mean "payments"?`,
	} {
		want = append(want, "haldir.yaml:"+places[i]+": warning: "+w)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// A file of policies alone says nothing about what there is.
	if c := parse(t, inPolicy("{type: deny, upstreams: [fils], tools: [fils/x]}")); len(c.Warnings) > 0 {
		t.Error(c.Warnings)
	}
}

// A rule that goes by the name that haldir shows to agents would concern no tool at all.
func TestAToolIsNotMeantByTheNameThatAgentsSee(t *testing.T) {
	const two = "version: 1\nupstreams:\n  - {name: files, command: x}\n  - {name: pay-ments, command: x}\n"
	seen := func(where, name, meant string) string {
		return fmt.Sprintf("%s: %q is a name that agents see, and patterns go by upstream/tool; write %q, or %q for a tool that calls itself so", where, name, meant, "*/"+name)
	}
	mistakes{
		{"with its upstream", two + "policies:\n  - {type: deny, tools: [x, ‸files__write_file]}\n", []string{seen("policies[0].tools[1]", "files__write_file", "files/write_file")}},
		{"globs", two + "policies:\n  - {type: allow, tools: [‸'pay-ments__*', ‸files__get_?]}\n", []string{
			seen("policies[0].tools[0]", "pay-ments__*", "pay-ments/*"), seen("policies[0].tools[1]", "files__get_?", "files/get_?"),
		}},
		{"underscores of its own", two + "policies:\n  - {type: deny, tools: [‸files___x__y]}\n", []string{seen("policies[0].tools[0]", "files___x__y", "files/_x__y")}},
		{"as a client calls it", two + "policies:\n  - {type: deny, tools: [‸mcp__haldir__files__edit_file, ‸mcp__plugin_haldir_haldir__files__edit_*]}\n", []string{
			seen("policies[0].tools[0]", "mcp__haldir__files__edit_file", "files/edit_file"), seen("policies[0].tools[1]", "mcp__plugin_haldir_haldir__files__edit_*", "files/edit_*"),
		}},
		{"as a client called it before haldir", two + "policies:\n  - {type: deny, tools: [‸mcp__files__edit_file, ‸mcp__files, ‸mcp__files__]}\n", []string{
			seen("policies[0].tools[0]", "mcp__files__edit_file", "files/edit_file"), seen("policies[0].tools[1]", "mcp__files", "files/*"), seen("policies[0].tools[2]", "mcp__files__", "files/*"),
		}},
		{"of a bare upstream, and of nobody", inPolicy("{type: deny, tools: [‸mcp__haldir__edit, ‸mcp__haldir, ‸'mcp__*', ‸mcp__haldir__fils__edit]}"), []string{
			seen("policies[0].tools[0]", "mcp__haldir__edit", "edit"), seen("policies[0].tools[1]", "mcp__haldir", "*"), seen("policies[0].tools[2]", "mcp__*", "*"),
			seen("policies[0].tools[3]", "mcp__haldir__fils__edit", "fils/edit"),
		}},
		{"an upstream named mcp", inUpstream("{name: mcp, command: x}") + "policies: [{type: deny, tools: [‸mcp__x__y]}]\n", []string{seen("policies[0].tools[0]", "mcp__x__y", "mcp/x__y")}},
		{"with haldir before it", two + "policies:\n  - {type: deny, tools: [‸haldir__files__x]}\n", []string{seen("policies[0].tools[0]", "haldir__files__x", "files/x")}},
		{"a prompt", two + "policies:\n  - {type: deny, tools: [‸'prompt:files__review']}\n", []string{
			`policies[0].tools[0]: "prompt:files__review" is a name that agents see, and patterns go by upstream/tool; write "prompt:files/review", or "prompt:*/files__review" for a tool that calls itself so`,
		}},
		{"wherever patterns stand", two + "costs: [{tools: [‸files__a], usd: 1}]\nscopes: [{tools: [‸files__b], require: [read]}]\npolicies: [{type: block_tool, tool: ‸files__c}]\n", []string{
			seen("costs[0].tools[0]", "files__a", "files/a"), seen("scopes[0].tools[0]", "files__b", "files/b"), seen("policies[0].tool", "files__c", "files/c"),
		}},
	}.run(t)
	// What a tool may really be called is nobody's mistake.
	c := parse(t, two+`policies: [{type: deny, tools: [fils__x, __x, file__s, other__files__x, "resource:files__x", "*/files__x", "files/files__x", "files_x", "mcp_x"]}]`)
	if len(c.Warnings) > 0 {
		t.Error(c.Warnings)
	}
	// What another client, or a person, has made of such a name may be one.
	spelt, where := unmark(two + "policies: [{type: deny, tools: [‸mcp_haldir_files__Write, ‸Files__x, ‸FILES__ȺȺȺȺ, ‸İK_Files__y]}]\n")
	told := []string{
		"haldir.yaml:" + where[0] + `: warning: policies[0].tools[0]: "mcp_haldir_files__Write" is no name of a tool by which patterns go; did you mean "files/Write"? Write "*/mcp_haldir_files__Write" for tools that call themselves so`,
		"haldir.yaml:" + where[1] + `: warning: policies[0].tools[1]: "Files__x" is no name of a tool by which patterns go; did you mean "files/x"? Write "*/Files__x" for tools that call themselves so`,
		"haldir.yaml:" + where[2] + `: warning: policies[0].tools[2]: "FILES__ȺȺȺȺ" is no name of a tool by which patterns go; did you mean "files/ȺȺȺȺ"? Write "*/FILES__ȺȺȺȺ" for tools that call themselves so`,
		"haldir.yaml:" + where[3] + `: warning: policies[0].tools[3]: "İK_Files__y" is no name of a tool by which patterns go; did you mean "files/y"? Write "*/İK_Files__y" for tools that call themselves so`,
	}
	if diff := cmp.Diff(told, strings.Split(parse(t, spelt).Warnings.Error(), "\n")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Nobody can tell whether a glob means upstreams.
	text, places := unmark(two + "policies: [{type: deny, tools: [‸'*__delete_*', ‸'f*__x', 'g*__x', '*delete__x', '*/*__delete_*']}]\n")
	want := []string{
		"haldir.yaml:" + places[0] + `: warning: policies[0].tools[0]: "*__delete_*" does not match names that agents see; did you mean "*/delete_*"? Write "*/*__delete_*" for tools that call themselves so`,
		"haldir.yaml:" + places[1] + `: warning: policies[0].tools[1]: "f*__x" does not match names that agents see; did you mean "f*/x"? Write "*/f*__x" for tools that call themselves so`,
	}
	if diff := cmp.Diff(want, strings.Split(parse(t, text).Warnings.Error(), "\n")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A condition that goes by such a name would be false for every tool.
func TestAConditionComparesTheToolsOwnName(t *testing.T) {
	const two = "version: 1\nupstreams:\n  - {name: files, command: x}\n  - {name: pay-ments, command: x}\npolicies:\n"
	never := func(text, meant string) string {
		return fmt.Sprintf("tool is a tool's own name, which is %s only if it calls itself so; did you mean %s?", text, meant)
	}
	for when, want := range map[string][]string{
		`tool == "files__x"`:                                                       {never(`"files__x"`, `upstream == "files" && tool == "x"`)},
		`args.a == 1 && tool != 'files/x'`:                                         {never(`'files/x'`, `upstream == "files" && tool == "x"`)},
		`tool in ["x", "pay-ments/y", "mcp__files__z"]`:                            {never(`"pay-ments/y"`, `upstream == "pay-ments" && tool == "y"`), never(`"mcp__files__z"`, `upstream == "files" && tool == "z"`)},
		`tool.startsWith("files__") || tool=="files__y"`:                           {never(`"files__"`, `upstream == "files"`), never(`"files__y"`, `upstream == "files" && tool == "y"`)},
		`tool == "x" && args.path == "files/x"`:                                    nil,
		`tool == "fils/x" || upstream == "files"`:                                  nil,
		`args.tool == "files/x" || [{"tool": "y"}].exists(x, x.tool == "files/x")`: nil,
		`args.tool.x == "a" || "files/x" == args.tool`:                             nil,
		`tool == "x" || session in ["files/a", "files/b"]`:                         nil,
	} {
		var got []string
		for _, w := range parse(t, two+"  - type: deny\n    when: |\n      "+when+"\n").Warnings {
			got = append(got, w.Message)
			if w.Where != "policies[0].when" || w.Line != 7 {
				t.Errorf("%s: %v", when, w)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
}

// A session's scope that no call requires grants nothing, so it is likely misspelt.
func TestAScopeThatNoCallRequiresIsWarnedOf(t *testing.T) {
	const rules = "scopes: [{tools: [a], require: [deploy, read, 'files:write']}]\n"
	text, places := unmark("version: 1\n" + rules + "session: {scopes: [read, execute, spend, deploy, 'files:write', ‸raed, ‸deplyo, ‸something]}\n")
	want := []string{
		"haldir.yaml:" + places[0] + `: warning: session.scopes[5]: no call requires the scope "raed"; did you mean "read"?`,
		"haldir.yaml:" + places[1] + `: warning: session.scopes[6]: no call requires the scope "deplyo"; did you mean "deploy"?`,
		"haldir.yaml:" + places[2] + `: warning: session.scopes[7]: no call requires the scope "something"; known here: read, execute, spend, deploy, files:write`,
	}
	c := parse(t, text)
	if diff := cmp.Diff(want, strings.Split(c.Warnings.Error(), "\n")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := c.Unrequired("deplyo"); got != `no call requires the scope "deplyo"; did you mean "deploy"?` || c.Unrequired("spend") != "" {
		t.Error(got)
	}
	// One that is no scope at all is not blamed twice.
	mistakes{
		{"a capital", in("session: {scopes: [‸Read]}"), []string{`session.scopes[0]: "Read" is no scope; use lower-case names such as read, execute, spend`}},
	}.run(t)
}

// A condition's mistake is shown where it stands in the file.
func TestAMistakeInAConditionHasItsPlaceInTheFile(t *testing.T) {
	const tol = "policies[0].when: undeclared reference to 'tol' (did you mean 'tool'?)"
	mistakes{
		{"plain", "version: 1\npolicies:\n  - type: deny\n    when: args.a == ‸tol\n", []string{tol}},
		{"plain, in a flow", inPolicy("{type: deny, when: args.a == ‸tol}"), []string{tol}},
		{"single quotes", "version: 1\npolicies:\n  - type: deny\n    when: 'args.a == ‸tol'\n", []string{tol}},
		{"double quotes", inPolicy(`{type: deny, when: "args.a == ‸tol"}`), []string{tol}},
		{"double quotes in single quotes", inPolicy(`{type: deny, when: 'args.a == "x" && ‸tol'}`), []string{tol}},
		{"after letters of several bytes", inPolicy(`{type: deny, when: 'args.a == "ü🎉" && ‸tol'}`), []string{tol}},
		{"two mistakes", inPolicy("{type: deny, when: 'args.a == ‸tol && ‸tal'}"), []string{tol, "policies[0].when: undeclared reference to 'tal'"}},
		{"a condition of an alias", in("policies:\n  - {type: deny, when: &w 'args.a == ‸‸tol'}\n  - {type: deny, when: *w}"), []string{tol, strings.Replace(tol, "[0]", "[1]", 1)}},
		{"in JSON", `{"version": 1, "policies": [{"type": "deny", "when": "args.a == ‸tol"}]}`, []string{tol}},
		{"a literal block, its first line", "version: 1\npolicies:\n  - type: deny\n    when: |\n      args.a == ‸tol\n", []string{tol}},
		{"its second line", "version: 1\npolicies:\n  - type: deny\n    when: |\n      args.a == 1 &&\n      args.b == ‸tol\n", []string{tol}},
		{"one that strips", "version: 1\npolicies:\n  - type: deny\n    when: |-\n      args.a == 1 &&\n        args.b == ‸tol\n    tools: [a]\n", []string{tol}},
		{"one with a comment and empty lines", "version: 1\npolicies:\n  - type: deny\n    when: |2+ # x\n\n      args.a == 1 &&\n\n      ‸tol\n\n    tools: [a]\n", []string{tol}},
		{"a folded block", "version: 1\npolicies:\n  - type: deny\n    when: >-\n      args.a == 1 &&\n      args.b == ‸tol\n    tools: [a]\n", []string{tol}},
		{"a folded block with paragraphs", "version: 1\npolicies:\n  - type: deny\n    when: >\n      args.a == 1 &&\n\n      args.b == 2 &&\n        ‸tol\n", []string{tol}},
		{"a plain text over lines", "version: 1\npolicies:\n  - type: deny\n    when: args.a == 1 &&\n      args.b == ‸tol\n    tools: [a]\n", []string{tol}},
		{"quotes over lines", "version: 1\npolicies:\n  - type: deny\n    when: 'args.a == 1 &&\n      args.b == ‸tol'\n", []string{tol}},
		{"double quotes over lines", "version: 1\npolicies:\n  - type: deny\n    when: \"args.a == 1 && \\\n      args.b == ‸tol\"\n", []string{tol}},
		{"with line ends of Windows", "version: 1\r\npolicies:\r\n  - type: deny\r\n    when: |\r\n      args.a == 1 &&\r\n      args.b == ‸tol\r\n", []string{tol}},
		{"doubled quotes", "version: 1\npolicies:\n  - type: deny\n    when: 'args.a == ''x'' && args.c == ''y'' && ‸tol'\n", []string{tol}},
		{"escapes", inPolicy(`{type: deny, when: "args.a == \"x\" && args.c == \"y\" && ‸tol"}`), []string{tol}},
		{"escapes of many bytes", inPolicy(`{type: deny, when: "args.a == '\u00fc\ud83d\ude00\x41' &&\n\t\x20‸tol"}`), []string{tol}},
		{"of the wrong type", inPolicy("{type: deny, when: ‸1 + 1}"), []string{"policies[0].when: must be true or false, but it is of type int"}},
		{"of an open type", inPolicy("{type: deny, when: ‸args.force}"), []string{"policies[0].when: must be true or false, but it is of type dyn"}},
		{"empty", inPolicy("{type: deny, when: ‸''}"), []string{"policies[0].when: is empty"}},
		{"spaces", inPolicy("{type: deny, when: ‸'  '}"), []string{"policies[0].when: is empty"}},
	}.run(t)
}
