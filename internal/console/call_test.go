package console_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

const everything = `{"agent_id":"bot","scopes":["read","execute","spend"]}`

func TestACallIsGovernedAndAnsweredAsItsUpstreamDoes(t *testing.T) {
	w := start(t, "  - {type: deny, tools: [delete_database]}\n  - {type: rate_limit, max_calls: 2, window: 1h, per: session, tools: [dns_lookup]}\n")
	key := w.key("all")
	s := w.session(key, everything)
	var result struct {
		Content []struct{ Type, Text string }
		IsError bool
	}
	for _, name := range []string{"scan_domain", "security-tools__scan_domain", "security-tools/scan_domain"} {
		w.call(key, s, name, `{"domain":"example.com"}`).want(http.StatusOK).into(&result)
		if len(result.Content) != 1 || result.Content[0].Text != "example.com: 80/tcp open, 443/tcp open" || result.IsError {
			t.Errorf("%s: %+v", name, result)
		}
	}
	var p struct {
		Refusal struct {
			BlockedBy string `json:"blocked_by"`
			Policy    string
			Rule      string
			Retryable bool
			RetryAt   time.Time `json:"retry_at"`
			AuditID   string    `json:"audit_id"`
		}
		Content []struct{ Type, Text string }
		IsError bool
	}
	a := w.call(key, s, "delete_database", `{}`)
	detail := a.problem(http.StatusForbidden, "refused")
	a.into(&p)
	if p.Refusal.BlockedBy != "haldir" || p.Refusal.Policy != "deny" || p.Refusal.Retryable || p.Refusal.AuditID == "" || !p.IsError || len(p.Content) != 1 ||
		!strings.Contains(p.Content[0].Text, `"blocked_by":"haldir"`) || !strings.HasPrefix(detail, "Tool 'delete_database' is on the deny list") {
		t.Errorf("%+v %s", p, detail)
	}
	for range 2 {
		w.call(key, s, "dns_lookup", `{"domain":"a"}`).want(http.StatusOK)
	}
	a = w.call(key, s, "dns_lookup", `{"domain":"a"}`)
	a.problem(http.StatusForbidden, "refused")
	a.into(&p)
	if !p.Refusal.RetryAt.Equal(noon.Add(time.Hour)) || a.header.Get("Retry-After") == "" {
		t.Errorf("%+v, %v", p.Refusal, a.header)
	}
	w.call(key, s, "no_such_tool", `{}`).problem(http.StatusNotFound, "refused")
	w.call(key, "ses_none", "scan_domain", `{}`).problem(http.StatusNotFound, "not-found")
	if got := w.call(key, s, "break", `{}`).problem(http.StatusBadGateway, "upstream"); got != "it broke" {
		t.Errorf("%s", got)
	}
	a = w.call(key, s, "security-tools/scan_domain", `{"domain":"x"}`, header{"Content-Type", ""}, header{"Content-Type", "text/plain"})
	a.problem(http.StatusUnsupportedMediaType, "malformed")
	w.clock.add(2 * time.Hour)
	a = w.call(key, s, "scan_domain", `{}`)
	a.problem(http.StatusForbidden, "refused")
	a.into(&p)
	if p.Refusal.Policy != "session" || p.Refusal.Rule != "expired" {
		t.Errorf("in an expired session: %+v", p.Refusal)
	}
}

func TestBodiesAreReadStrictly(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	s := w.session(key, everything)
	for body, want := range map[string]string{
		`{"session_id":"` + s + `","tool":"scan_domain","argumens":{}}`:             `unknown member "argumens"`,
		`{"session_id":"` + s + `","Tool":"scan_domain"}`:                           `unknown member "Tool"`,
		`{"session_id":"` + s + `","tool":"scan_domain","tool":"dns_lookup"}`:       "duplicate",
		`{"session_id":"` + s + `","tool":"scan_domain"} {}`:                        "more than one JSON value",
		`{"session_id":"` + s + `","tool":"scan_domain","arguments":[]}`:            "arguments must be an object, not an array",
		`{"session_id":"` + s + `","tool":"scan_domain","arguments":{"a":1,"a":2}}`: "duplicate",
		`{"session_id":"` + s + `","tool":7}`:                                       "/tool",
		`{"session_id":"` + s + `"}`:                                                "needs tool",
		`{"tool":"scan_domain"}`:                                                    "needs session_id",
		`[]`:                                                                        "must be a JSON object, not an array",
		`{`:                                                                         "unexpected end of JSON",
		"{\"session_id\":\"" + s + "\",\"tool\":\"\xff\"}":                          "UTF-8",
		`{"session_id":"` + s + `","tool":"scan_domain","arguments":` + deep(2000) + `}`: "nested",
	} {
		if got := w.do(key, "POST", "/v1/proxy/call", body).problem(http.StatusBadRequest, "malformed"); !strings.Contains(got, want) {
			t.Errorf("%.80s: %q, want %q", body, got, want)
		}
	}
	w.do(key, "POST", "/v1/proxy/call", "").problem(http.StatusBadRequest, "malformed")
	for path, want := range map[string]string{
		"/v1/audit?limt=5": `unknown parameter "limt"`, "/v1/audit?limit=5&limit=6": "given 2 times", "/v1/audit?limit=0": "from 1 to 1000",
		"/v1/audit?limit=1001": "from 1 to 1000", "/v1/audit?status=done": "is no status", "/v1/audit?flagged=maybe": "true or false",
		"/v1/audit?since=yesterday": "neither a time", "/v1/audit?cursor=x": "next_cursor", "/v1/audit/stats?since=400d": "within the last 31 days",
		"/v1/audit/export?format=xml": "jsonl or csv", "/v1/audit/export?from=3&tool=x": "from is for", "/v1/sessions?status=old": "active, expired or revoked",
		"/v1/proxy/policies?x=1": "there are none here", "/v1/events?after=x": "number of a record",
	} {
		if got := w.do(key, "GET", path, "").problem(http.StatusBadRequest, "malformed"); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

func deep(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }

func TestTheArgumentsGoUpstreamAsTheyWereWritten(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	s := w.session(key, everything)
	// Go's own reading would round the number and sort the names.
	w.call(key, s, "scan_domain", `{"z":12345678901234567890, "domain":"example.com", "a":1.50}`).want(http.StatusOK)
	var list struct {
		Entries []struct{ Arguments json.RawMessage }
	}
	w.do(key, "GET", "/v1/audit?limit=1&tool=scan_domain", "").want(http.StatusOK).into(&list)
	if got := string(list.Entries[0].Arguments); !strings.Contains(got, "12345678901234567890") || !strings.Contains(got, "1.50") || strings.Index(got, `"z"`) > strings.Index(got, `"a"`) {
		t.Errorf("%s", got)
	}
}

func TestHaldirsOwnToolsTellOfTheCallersSession(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	s := w.session(key, `{"agent_id":"bot","scopes":["read","execute","spend"],"spend_limit":25}`)
	w.call(key, s, "buy_report", `{"domain":"a","amount":3}`).want(http.StatusOK)
	var result struct {
		Structured struct {
			Session string `json:"session_id"`
			Total   json.Number
			Spent   json.Number `json:"total_usd"`
		} `json:"structuredContent"`
	}
	w.call(key, s, "haldir_get_spend", `{}`).want(http.StatusOK).into(&result)
	if result.Structured.Session != s || result.Structured.Spent != "3" {
		t.Errorf("%+v", result)
	}
}
