package config_test

import (
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/config"
)

const before = `version: 1
session: {agent_id: bot, scopes: [read, execute], spend_limit: 10, ttl: 8h}
upstreams:
  - {name: files, command: npx, args: [server], env: ["A=b"], deny_requests: [sampling]}
  - {name: web, url: "https://web.example/mcp"}
costs:
  - {tools: ["web/*"], usd: 0.01}
scopes:
  - {tools: ["*/get_*"], require: [read]}
policies:
  - {type: deny, tools: [delete_*, drop_*]}
  - {type: allow, upstreams: [web], tools: [get, put]}
  - {type: spend_limit, max_usd: 5, id: cap}
  - {type: rate_limit, max_calls: 100, window: 1h}
  - {type: time_window, allowed_hours: {start: "09:00", end: "17:00"}}
  - {type: deny, tools: [x], mode: shadow}
  - {type: deny, upstreams: [files], when: 'args.force == true'}
  - {type: require_approval, tools: [pay], timeout: 2s}
audit: {retain: 90d}
`

// TestWhatAPersonMustConfirm replaces a text of a config by another. Loose says what
// the change lets through; "" if it is taken at once.
func TestWhatAPersonMustConfirm(t *testing.T) {
	for name, tt := range map[string]struct{ old, now, loose string }{
		"nothing":                        {"", "", ""},
		"a comment":                      {"version: 1", "version: 1 # one", ""},
		"a deny more":                    {"policies:\n", "policies:\n  - {type: deny, tools: [new]}\n", ""},
		"a tool more that is denied":     {"[delete_*, drop_*]", "[delete_*, drop_*, wipe]", ""},
		"a deny of all":                  {"{type: deny, tools: [delete_*, drop_*]}", "{type: deny, upstreams: ['*']}", ""},
		"a tool less that is allowed":    {"[get, put]", "[get]", ""},
		"a lower limit":                  {"max_usd: 5", "max_usd: 4", ""},
		"fewer calls":                    {"max_calls: 100", "max_calls: 10", ""},
		"a shadow rule that is enforced": {", mode: shadow", "", ""},
		"a shadow rule less":             {"  - {type: deny, tools: [x], mode: shadow}\n", "", ""},
		"a shadow rule more":             {"policies:\n", "policies:\n  - {type: deny, tools: [y], mode: shadow}\n", ""},
		"rules in another order":         {"  - {type: deny, tools: [delete_*, drop_*]}\n  - {type: allow, upstreams: [web], tools: [get, put]}\n", "  - {type: allow, upstreams: [web], tools: [get, put]}\n  - {type: deny, tools: [delete_*, drop_*]}\n", ""},
		"a cost more":                    {"scopes:\n  -", "  - {tools: ['files/*'], usd: 1}\nscopes:\n  -", ""},
		"other limits in time":           {`mcp"}`, `mcp", timeouts: {call: 1m}}`, ""},
		"a session with less":            {"spend_limit: 10, ttl: 8h", "spend_limit: 1, ttl: 1h", ""},
		"a request more that is denied":  {"[sampling]", "[sampling, roots]", ""},
		"a longer audit":                 {"retain: 90d", "retain: 180d", ""},
		"an audit for ever":              {"retain: 90d", "", ""},
		"stricter pins":                  {"deny_requests", "pins: block, deny_requests", ""},

		"a deny less":                  {"  - {type: deny, tools: [delete_*, drop_*]}\n", "", "deny rule policies[0] is gone"},
		"a tool less that is denied":   {"[delete_*, drop_*]", "[delete_*]", "deny rule"},
		"a deny in shadow":             {"[delete_*, drop_*]}", "[delete_*, drop_*], mode: shadow}", "deny rule"},
		"a deny with a condition":      {"[delete_*, drop_*]}", "[delete_*, drop_*], when: 'false'}", "deny rule"},
		"another condition":            {"args.force == true", "args.force == false", "deny rule"},
		"a tool more that is allowed":  {"[get, put]", "[get, put, post]", "allow rule"},
		"a narrower allow list":        {"upstreams: [web], tools: [get", "upstreams: [files], tools: [get", "allow rule"},
		"a higher limit":               {"max_usd: 5", "max_usd: 6", "spend_limit rule cap"},
		"a limit with another counter": {"id: cap", "id: cap2", "spend_limit rule cap"},
		"a limit for some":             {"max_usd: 5,", "max_usd: 5, tools: [a],", "spend_limit rule"},
		"more calls":                   {"max_calls: 100", "max_calls: 101", "rate_limit rule"},
		"a shorter window":             {"window: 1h", "window: 1m", "rate_limit rule"},
		"longer hours":                 {"17:00", "18:00", "time_window rule"},
		"a lower cost":                 {"usd: 0.01", "usd: 0.001", "costs[0]"},
		"a cost before":                {"costs:\n", "costs:\n  - {tools: ['web/a'], usd: 0}\n", "costs[0]"},
		"another scope":                {"require: [read]", "require: []", ""}, // refused by the check itself
		"scopes of fewer tools":        {"*/get_*", "*/got_*", "scopes"},
		"a scope more":                 {"[read, execute]", "[read, execute, spend]", "session.scopes"},
		"all scopes":                   {"scopes: [read, execute], ", "", "session.scopes"},
		"a higher limit of a session":  {"spend_limit: 10", "spend_limit: 11", "session.spend_limit"},
		"no limit of a session":        {"spend_limit: 10, ", "", "session.spend_limit"},
		"a longer session":             {"8h", "9h", "session.ttl"},
		"an endless session":           {", ttl: 8h", "", "session.ttl"},
		"another agent":                {"agent_id: bot", "agent_id: bob", "agent_id"},
		"a url more":                   {"costs:", "  - {name: more, url: 'https://more.example'}\ncosts:", "upstream more is a new server"},
		"another url":                  {"web.example", "web2.example", "upstream web is another server"},
		"a header more":                {`mcp"}`, `mcp", headers: ["X: ${env:HOME}"]}`, "upstream web is another server"},
		"another way to sign in":       {`mcp"}`, `mcp", auth: {type: oauth}}`, "upstream web is another server"},
		"an authority more":            {`mcp"}`, `mcp", tls: {ca_file: x}}`, "upstream web is another server"},
		"a word for all changes":       {"version: 1", "version: 1\nreload: auto", "reload: auto"},
		"a shorter audit":              {"retain: 90d", "retain: 30d", "keeps records for a shorter time"},
		"a thinner audit":              {"retain: 90d", "retain: 90d, arguments: digest", "the audit"},
		"a new command":                {"costs:", "  - {name: more, command: sh}\ncosts:", "upstream more starts a command"},
		"another argument":             {"[server]", "[server, --all]", "upstream files starts another command"},
		"another variable":             {"A=b", "A=c", "upstream files starts another command"},
		"a url that becomes a command": {`url: "https://web.example/mcp"`, "command: sh", "upstream web starts another command"},
		"a command that becomes a url": {`command: npx, args: [server], env: ["A=b"]`, `url: "http://127.0.0.1:1/mcp", headers: ["X: ${env:HOME}"]`, "upstream files is another server"},
		"a longer time to answer":      {"timeout: 2s", "timeout: 10m", "the require_approval rule"},
		"the usual time to answer":     {", timeout: 2s", "", "the require_approval rule"},
		"a shorter time to answer":     {"timeout: 2s", "timeout: 1s", ""},
		"trusted annotations":          {"deny_requests", "trust_annotations: true, deny_requests", "is trusted"},
		"a request less":               {", deny_requests: [sampling]", "", "may ask the client for more"},
		"looser pins":                  {"deny_requests", "pins: warn, deny_requests", "pins of upstream files"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(before, tt.old) {
				t.Fatal("the text is not there")
			}
			old, err := config.Parse([]byte(before), "haldir.yaml")
			if err != nil {
				t.Fatal(err)
			}
			now, err := config.Parse([]byte(strings.Replace(before, tt.old, tt.now, 1)), "haldir.yaml")
			if err != nil {
				if name == "another scope" {
					return
				}
				t.Fatal(err)
			}
			got := strings.Join(config.Loosened(old, now), "; ")
			if tt.loose == "" && got != "" || !strings.Contains(got, tt.loose) {
				t.Errorf("it loosens: %q, want %q", got, tt.loose)
			}
		})
	}
}

func TestAnAuditThatWasKeptForEverIsNotPrunedWithoutAPerson(t *testing.T) {
	parse := func(text string) *config.Config {
		c, err := config.Parse([]byte("version: 1\n"+text), "haldir.yaml")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if why := config.Loosened(parse(""), parse("audit: {retain: 3650d}\n")); len(why) != 1 || !strings.Contains(why[0], "for ever") {
		t.Errorf("it loosens: %q", why)
	}
	if why := config.Loosened(parse("audit: {retain: 24h}\n"), parse("audit: {retain: 1d}\n")); len(why) != 0 {
		t.Errorf("the same in other words loosens: %q", why)
	}
}
