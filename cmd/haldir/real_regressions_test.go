package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// TestRealDenyHasNoOtherSpelling calls denied tools under every name that could
// get past the rule.
func TestRealDenyHasNoOtherSpelling(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{"delete_database", "sdk/delete_database", "delete_*", "*/delete_database", "sdk/*_database", "?elete_databas[e]"} {
		for _, expose := range []string{"prefixed", "bare"} {
			t.Run(pattern+" "+expose, func(t *testing.T) {
				t.Parallel()
				server := newGoSDK()
				url, _, _ := listenOn(t, 0, server.handler(true, true))
				h := mcptest.NewHaldir(t, program(t), fmt.Sprintf(
					"version: 1\nupstreams:\n  - {name: sdk, url: %q, expose: %s}\npolicies:\n  - {type: deny, tools: [%q]}\n", url, expose, pattern))
				s := h.Serve(t)
				s.Initialize(mcptest.Revision)
				names := toolNames(t, s)
				if slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "delete") }) {
					t.Errorf("a denied tool is listed: %v", names)
				}
				denied := []string{"sdk/delete_database", "delete_database"}
				if expose == "prefixed" {
					denied = append(denied, "sdk__delete_database")
				}
				for _, name := range denied {
					if r := refusalOf(t, s.Ask("tools/call", mcptest.CallParams(name, "{}", ""))); r.Policy != "deny" {
						t.Errorf("%q is refused by %+v", name, r)
					}
				}
				for _, name := range []string{
					"Delete_Database", "DELETE_DATABASE", "sdk__Delete_database", "SDK__delete_database", "sdk/Delete_database", "sdk__delete_database ",
					" sdk__delete_database", "sdk__delete_database\x00", "sdk//delete_database", "/delete_database", "./delete_database", "sdk/./delete_database",
					"sdk__sdk__delete_database", "sdk__sdk/delete_database", "sdk.delete_database", "sdk:delete_database", "delete_database/", "ｄelete_database",
					"delete\u200b_database", "haldir/delete_database", "haldir__delete_database", "mcp__haldir__sdk__delete_database", "",
				} {
					m := s.Ask("tools/call", mcptest.CallParams(name, "{}", ""))
					if r := refusalOf(t, m); r.Policy == "" && m.Error == nil {
						t.Errorf("%q passed: %s", name, m.Raw)
					}
				}
				// Keys that a case-blind upstream would read as the name.
				for _, params := range []string{
					`{"name":"sdk__count","Name":"delete_database","arguments":{}}`, `{"name":"sdk__count","name":"sdk__delete_database"}`,
					`{"name":"sdk__count","n\u0061me":"delete_database"}`, `{"Name":"sdk__delete_database"}`,
				} {
					if m := s.Ask("tools/call", params); m.Error == nil {
						t.Errorf("%s passed: %s", params, m.Raw)
					}
				}
				if n := server.of("delete_database"); n != 0 {
					t.Errorf("the denied tool was executed %d times", n)
				}
				s.End()
			})
		}
	}
}

// TestRealDenyOfShortenedName denies a tool that the host knows under a name made
// of its own with a hash.
func TestRealDenyOfShortenedName(t *testing.T) {
	t.Parallel()
	server := newGoSDK()
	url, _, _ := listenOn(t, 0, server.handler(true, true))
	config := fmt.Sprintf("version: 1\nupstreams:\n  - {name: sdk, url: %q}\n", url)
	h := mcptest.NewHaldir(t, program(t), config)
	s := h.Serve(t)
	s.Initialize(mcptest.Revision)
	exposed := ""
	for _, name := range toolNames(t, s) {
		if strings.HasPrefix(name, "sdk__result_everything_") {
			exposed = name
		}
	}
	if exposed == "" {
		t.Fatal("result.everything is not listed")
	}
	s.End()
	h.Configure(t, config+"policies:\n  - {type: deny, tools: [result.everything]}\n")
	s = h.Serve(t)
	s.Initialize(mcptest.Revision)
	if names := toolNames(t, s); slices.Contains(names, exposed) || !slices.Contains(names, "sdk__result_everything") {
		t.Errorf("listed: %v", names)
	}
	for _, name := range []string{exposed, "sdk/result.everything", "result.everything"} {
		if r := refusalOf(t, s.Ask("tools/call", mcptest.CallParams(name, "{}", ""))); r.Policy != "deny" {
			t.Errorf("%s is refused by %+v", name, r)
		}
	}
	if got := text(t, s.Ask("tools/call", mcptest.CallParams("sdk__result_everything", "{}", ""))); got != "the other one" {
		t.Errorf("the tool of the similar name answers %q", got)
	}
	if n := server.of("result.everything"); n != 0 {
		t.Errorf("the denied tool was executed %d times", n)
	}
	s.End()
}

// TestRealEverythingIsAudited makes calls that come to nothing in every way.
func TestRealEverythingIsAudited(t *testing.T) {
	t.Parallel()
	server := newGoSDK()
	url, _, _ := listenOn(t, 0, server.handler(false, false))
	_, deadPort, stop := listenOn(t, 0, server.handler(false, false))
	stop() // nobody is there any more
	h := mcptest.NewHaldir(t, program(t), fmt.Sprintf(`version: 1
session: {agent_id: auditee}
list_wait: 500ms
upstreams:
  - {name: sdk, url: %q}
  - {name: twin, url: %q}
  - {name: dead, url: "http://127.0.0.1:%d/mcp"}
policies:
  - {type: deny, tools: [delete_database], id: no-deleting}
  - {type: rate_limit, tools: [progress], max_calls: 1, window: 1h, id: once}
`, url, url, deadPort))
	s := h.Serve(t)
	s.Initialize(mcptest.Revision)
	toolNames(t, s)
	for _, c := range []struct {
		tool                                     string
		upstream, name, status, policy, rule, is string
	}{
		{"sdk__rich", "sdk", "rich", "allowed", "", "", "result"},
		{"sdk__fails", "sdk", "fails", "error", "", "", "result"},
		{"sdk__rpc_error", "sdk", "rpc_error", "error", "", "", "-32042"},
		{"sdk__go_error", "sdk", "go_error", "error", "", "", "0"},
		{"sdk__delete_database", "sdk", "delete_database", "denied", "deny", "no-deleting", "refusal"},
		{"sdk/delete_database", "sdk", "delete_database", "denied", "deny", "no-deleting", "refusal"},
		{"sdk__progress", "sdk", "progress", "allowed", "", "", "result"},
		{"twin__progress", "twin", "progress", "denied", "rate_limit", "once", "refusal"},
		{"sdk__nonesuch", "sdk", "nonesuch", "denied", "unknown_tool", "unknown_tool", "refusal"},
		{"nonesuch", "", "nonesuch", "denied", "unknown_tool", "unknown_tool", "refusal"}, // though dead may have it
		{"rich", "", "rich", "denied", "unknown_tool", "unknown_tool", "refusal"},         // ambiguous
		{"dead__anything", "dead", "anything", "denied", "unavailable", "unavailable", "refusal"},
	} {
		m := s.Ask("tools/call", mcptest.CallParams(c.tool, `{"marker":"x"}`, ""))
		r := refusalOf(t, m)
		switch c.is {
		case "refusal":
			if r.Policy != c.policy || r.Rule != c.rule || r.AuditID == "" {
				t.Errorf("%s: %s", c.tool, m.Raw)
			}
			if c.policy == "rate_limit" {
				if at, err := time.Parse(time.RFC3339, r.RetryAt); err != nil || !r.Retryable || !at.After(time.Now()) || !strings.Contains(r.Error, "resets at") {
					t.Errorf("a rate limit without a reset time: %s", m.Raw)
				}
			}
		case "result":
			if m.Error != nil || r.Policy != "" {
				t.Errorf("%s: %s", c.tool, m.Raw)
			}
		default:
			if e := errorOf(t, m); fmt.Sprint(e.Code) != c.is {
				t.Errorf("%s: %s", c.tool, m.Raw)
			}
		}
		var e auditEntry
		for range 100 { // beside the running process, which may record an outcome after the answer
			all := calls(t, h)
			if e = all[len(all)-1]; e.Status != "running" {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if e.Upstream != c.upstream || e.Tool != c.name || e.Status != c.status || e.Policy != c.policy || e.Rule != c.rule || (e.Status == "denied") != e.Flagged || compact(t, e.Arguments) != `{"marker":"x"}` {
			t.Errorf("%s is audited as %+v", c.tool, e)
		}
	}
	var shown struct {
		Count   int          `json:"count"`
		Entries []auditEntry `json:"entries"`
	}
	answer := text(t, s.Ask("tools/call", mcptest.CallParams("haldir_get_audit", `{"status":"denied"}`, "")))
	if err := json.Unmarshal([]byte(answer), &shown); err != nil || shown.Count != 7 {
		t.Errorf("haldir_get_audit: %v: %s", err, answer)
	}
	s.End()
	if out := h.Must(t, "audit", "verify"); !strings.Contains(out, "verify: ok") {
		t.Errorf("verify: %s", out)
	}
}

// TestRealSessionOfTheHost has a host start haldir anew: the budget goes on.
func TestRealSessionOfTheHost(t *testing.T) {
	t.Parallel()
	server := newGoSDK()
	url, _, _ := listenOn(t, 0, server.handler(true, true))
	h := mcptest.NewHaldir(t, program(t), payConfig(url, "session: {spend_limit: 10}\n"))
	env := h.Env
	pay := func(host string) string {
		t.Helper()
		h.Env = env
		if host != "" {
			h.Env = append(slices.Clone(env), "CLAUDE_CODE_SESSION_ID="+host)
		}
		s := h.Serve(t)
		s.Initialize(mcptest.Revision)
		m := s.Ask("tools/call", mcptest.CallParams("sdk__pay", `{"amount":6}`, ""))
		s.End()
		if r := refusalOf(t, m); r.Policy != "" {
			return r.Policy
		}
		return text(t, m)
	}
	for _, c := range []struct{ host, want string }{
		{"a", "paid"}, {"a", "spend_limit"}, {"b", "paid"}, {"b", "spend_limit"}, {"", "paid"}, {"", "paid"}, {"a", "spend_limit"},
	} {
		if got := pay(c.host); got != c.want {
			t.Errorf("host session %q: %s, want %s", c.host, got, c.want)
		}
	}
}

func compact(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		t.Error(err)
	}
	return b.String()
}
