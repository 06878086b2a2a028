package console_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

func usd(n int64) *policy.Micros {
	m := policy.Micros(n) * policy.USD
	return &m
}

type session struct {
	SessionID  string       `json:"session_id"`
	AgentID    string       `json:"agent_id"`
	Status     string       `json:"status"`
	IsValid    bool         `json:"is_valid"`
	Scopes     []string     `json:"scopes"`
	SpendLimit *json.Number `json:"spend_limit"`
	Spent      json.Number  `json:"spent"`
	Remaining  *json.Number `json:"remaining_budget"`
	CreatedAt  time.Time    `json:"created_at"`
	ExpiresAt  *time.Time   `json:"expires_at"`
	TTL        int64        `json:"ttl"`
}

func TestSessionsInTheOriginalsShape(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	var s session
	a := w.do(key, "POST", "/v1/sessions", `{"agent_id":"research-bot","scopes":["read","execute","spend"],"spend_limit":25.00,"ttl":3600}`).want(http.StatusCreated)
	a.into(&s)
	if !strings.HasPrefix(s.SessionID, "ses_") || s.AgentID != "research-bot" || s.TTL != 3600 || *s.SpendLimit != "25" || !s.ExpiresAt.Equal(noon.Add(time.Hour)) ||
		a.header.Get("Location") != "/v1/sessions/"+s.SessionID || cmp.Diff([]string{"read", "execute", "spend"}, s.Scopes) != "" {
		t.Errorf("%s", a.body)
	}
	w.call(key, s.SessionID, "buy_report", `{"domain":"a","amount":10}`).want(http.StatusOK)
	w.do(key, "GET", "/v1/sessions/"+s.SessionID, "").want(http.StatusOK).into(&s)
	if s.Spent != "10" || *s.Remaining != "15" || !s.IsValid || s.Status != "active" {
		t.Errorf("%+v", s)
	}
	w.call(key, s.SessionID, "buy_report", `{"domain":"a","amount":16}`).problem(http.StatusForbidden, "refused")

	// The other ways of the original to say it.
	var other session
	w.do(key, "POST", "/v1/sessions", `{"agent_id":"my-bot","scopes":["read","browse","spend:50"]}`).want(http.StatusCreated).into(&other)
	if *other.SpendLimit != "50" || other.TTL != 3600 || cmp.Diff([]string{"read", "browse", "spend"}, other.Scopes) != "" {
		t.Errorf("%+v", other)
	}
	w.do(key, "POST", "/v1/sessions", `{"agent_id":"my-bot","scopes":["spend:50"],"spend_limit":20,"ttl":0}`).want(http.StatusCreated).into(&other)
	if *other.SpendLimit != "20" || other.ExpiresAt != nil && !other.ExpiresAt.IsZero() && other.TTL != 0 {
		t.Errorf("%+v", other)
	}
	var least session
	w.do(key, "POST", "/v1/sessions", `{"agent_id":"b","spend_limit":null,"scopes":null,"ttl":null}`).want(http.StatusCreated).into(&least)
	if least.SpendLimit != nil || cmp.Diff([]string{"read", "browse"}, least.Scopes) != "" {
		t.Errorf("%+v", least)
	}

	var list struct {
		Count    int
		Sessions []session
	}
	w.do(key, "GET", "/v1/sessions?agent_id=my-bot&limit=5", "").want(http.StatusOK).into(&list)
	if list.Count != 2 {
		t.Errorf("%+v", list)
	}
	var gone struct {
		Revoked bool
		session
	}
	w.do(key, "DELETE", "/v1/sessions/"+s.SessionID, "").want(http.StatusOK).into(&gone)
	if !gone.Revoked || gone.Status != "revoked" || gone.IsValid {
		t.Errorf("%+v", gone)
	}
	w.call(key, s.SessionID, "scan_domain", `{}`).problem(http.StatusForbidden, "refused")
	w.clock.add(2 * time.Hour)
	w.do(key, "GET", "/v1/sessions?status=expired", "").want(http.StatusOK).into(&list)
	if list.Count != 2 { // the one without an end lives on
		t.Errorf("%+v", list)
	}
	for body, want := range map[string]string{
		`{}`: "agent_id", `{"agent_id":""}`: "agent_id", `{"agent_id":"a\u0007"}`: "agent_id", `{"agent_id":"a","scopes":["Read"]}`: "no scope",
		`{"agent_id":"a","scopes":["spend:much"]}`: "spend:much", `{"agent_id":"a","ttl":-1}`: "ttl must be a number of seconds", `{"agent_id":"a","ttl":1e12}`: "/ttl: must be a whole number of seconds, such as 3600",
		`{"agent_id":"a","ttl":1.5}`: "/ttl: must be a whole number of seconds, such as 3600", `{"agent_id":"a","ttl":"1h"}`: "/ttl: must be a whole number of seconds, such as 3600", `{"agent_id":"a","spend_limit":-1}`: "negative", `{"agent_id":"a","spend_limit":0.0000001}`: "spend_limit",
	} {
		if got := w.do(key, "POST", "/v1/sessions", body).problem(http.StatusBadRequest, "malformed"); !strings.Contains(got, want) {
			t.Errorf("%s: %s", body, got)
		}
	}
	for _, method := range []string{"GET", "DELETE"} {
		w.do(key, method, "/v1/sessions/ses_none", "").problem(http.StatusNotFound, "not-found")
	}
}

func TestWhatASessionMayDoIsToldWithoutACall(t *testing.T) {
	w := start(t, "  - {type: deny, tools: [drop_table]}\n")
	key := w.key("all")
	s := w.session(key, everything)
	var p struct {
		Allowed                      bool
		Scope, Tool, Verdict, Policy string
		SessionID                    string      `json:"session_id"`
		CostUSD                      json.Number `json:"cost_usd"`
	}
	ask := func(body string) {
		t.Helper()
		p.Allowed, p.Policy, p.Verdict = false, "", ""
		w.do(key, "POST", "/v1/sessions/"+s+"/check", body).want(http.StatusOK).into(&p)
	}
	if ask(`{"scope":"execute"}`); !p.Allowed || p.SessionID != s || p.Scope != "execute" {
		t.Errorf("%+v", p)
	}
	if ask(`{"scope":"admin"}`); p.Allowed {
		t.Errorf("%+v", p)
	}
	if ask(`{"tool":"buy_report","arguments":{"amount":3}}`); !p.Allowed || p.Tool != "security-tools/buy_report" || p.CostUSD != "3" || p.Verdict != "allow" {
		t.Errorf("%+v", p)
	}
	if ask(`{"tool":"drop_table"}`); p.Allowed || p.Policy != "deny" || p.Verdict != "deny" {
		t.Errorf("%+v", p)
	}
	if ask(`{"tool":"scan_domain","scope":"admin"}`); p.Allowed {
		t.Errorf("%+v", p)
	}
	w.do(key, "POST", "/v1/sessions/"+s+"/check", `{}`).problem(http.StatusBadRequest, "malformed")
	w.do(key, "POST", "/v1/sessions/ses_none/check", `{"scope":"read"}`).problem(http.StatusNotFound, "not-found")
	w.do(key, "POST", "/v1/sessions/"+s+"/check", `{"tool":"nothing"}`).problem(http.StatusNotFound, "not-found")
	var list struct{ Count int }
	if w.do(key, "GET", "/v1/audit?tool=drop_table", "").into(&list); list.Count != 0 {
		t.Error("a question is on record as a call")
	}
}

func TestAKeyGivesNoMoreThanItMay(t *testing.T) {
	w := start(t, "")
	all := w.key("all")
	small := w.keyOf(ledger.KeyTerms{Name: "small", Scopes: []string{"sessions:read", "sessions:write", "proxy:call", "keys:write"}, SessionScopes: []string{"read", "execute"}, MaxSpend: usd(5), ExpiresAt: noon.Add(time.Hour)})
	for body, want := range map[string]string{
		`{"agent_id":"a","scopes":["read","admin"]}`:            `the scope "admin"`,
		`{"agent_id":"a","scopes":["read"],"spend_limit":5.01}`: "a limit of $5.01",
		`{"agent_id":"a","scopes":["read","spend:50"]}`:         `the scope "spend"`,
		`{"agent_id":"a"}`: `the scope "browse"`, // the default
	} {
		if got := w.do(small, "POST", "/v1/sessions", body).problem(http.StatusForbidden, "forbidden"); !strings.Contains(got, want) {
			t.Errorf("%s: %s", body, got)
		}
	}
	var s session
	w.do(small, "POST", "/v1/sessions", `{"agent_id":"a","scopes":["read","execute"]}`).want(http.StatusCreated).into(&s)
	if s.SpendLimit == nil || *s.SpendLimit != "5" {
		t.Errorf("without a limit: %+v", s)
	}
	w.call(small, s.SessionID, "scan_domain", `{"domain":"a"}`).want(http.StatusOK)
	// Nor may it use what others have made.
	for body, want := range map[string]string{
		everything: `the scope "spend"`,
		`{"agent_id":"a","scopes":["read","execute"]}`:                 "spending without limit",
		`{"agent_id":"a","scopes":["read","execute"],"spend_limit":6}`: "a limit of $6.00",
	} {
		rich := w.session(all, body)
		if got := w.call(small, rich, "scan_domain", `{"domain":"a"}`).problem(http.StatusForbidden, "forbidden"); !strings.Contains(got, want) {
			t.Errorf("%s: %s", body, got)
		}
	}
	poor := w.session(all, `{"agent_id":"a","scopes":["execute"],"spend_limit":1}`)
	w.call(small, poor, "scan_domain", `{"domain":"a"}`).want(http.StatusOK)

	// Nor make a key that may.
	for body, want := range map[string]string{
		`{"name":"x","scopes":["audit:read"]}`:                                     "the scope audit:read",
		`{"name":"x","scopes":["proxy:call"],"session_scopes":["admin"]}`:          "the session scope admin",
		`{"name":"x","scopes":["proxy:call"],"max_spend":6}`:                       "more to spend",
		`{"name":"x","scopes":["proxy:call"],"expires_at":"2026-11-24T19:00:00Z"}`: "a longer life",
	} {
		if got := w.do(small, "POST", "/v1/keys", body).problem(http.StatusForbidden, "forbidden"); !strings.Contains(got, want) {
			t.Errorf("%s: %s", body, got)
		}
	}
	var k struct {
		Key           string
		KeyID         string       `json:"key_id"`
		Parent        string       `json:"parent"`
		SessionScopes []string     `json:"session_scopes"`
		MaxSpend      *json.Number `json:"max_spend"`
		ExpiresAt     time.Time    `json:"expires_at"`
	}
	w.do(small, "POST", "/v1/keys", `{"name":"child","scopes":["sessions:write","keys:write"]}`).want(http.StatusCreated).into(&k)
	if cmp.Diff([]string{"read", "execute"}, k.SessionScopes) != "" || k.MaxSpend == nil || *k.MaxSpend != "5" || !k.ExpiresAt.Equal(noon.Add(time.Hour)) || k.Parent == "" {
		t.Errorf("%+v", k)
	}
	w.do(k.Key, "POST", "/v1/sessions", `{"agent_id":"a","scopes":["admin"]}`).problem(http.StatusForbidden, "forbidden")
	var list struct {
		Keys []struct {
			Name  string
			KeyID string `json:"key_id"`
		}
	}
	a := w.do(all, "GET", "/v1/keys", "").want(http.StatusOK)
	if a.into(&list); len(list.Keys) != 3 || strings.Contains(string(a.body), k.Key) {
		t.Errorf("%s", a.body)
	}
	w.do(all, "DELETE", "/v1/keys/"+k.Parent, "").want(http.StatusOK)
	for _, gone := range []string{small, k.Key} {
		w.do(gone, "GET", "/v1/openapi.json", "").problem(http.StatusUnauthorized, "unauthorized")
	}
	w.do(all, "DELETE", "/v1/keys/key_none", "").problem(http.StatusNotFound, "not-found")
	for body, want := range map[string]string{
		`{"name":"","scopes":["audit:read"]}`: "a name", `{"name":"x","scopes":[]}`: "at least one scope", `{"name":"x","scopes":["audit:write"]}`: "is no scope",
		`{"name":"x","scopes":["audit:read"],"max_spend":-1}`: "negative", `{"name":"x","scopes":["audit:read"],"expires_at":"2020-01-01T00:00:00Z"}`: "expired already",
	} {
		if got := w.do(all, "POST", "/v1/keys", body).problem(http.StatusBadRequest, "malformed"); !strings.Contains(got, want) {
			t.Errorf("%s: %s", body, got)
		}
	}
	w.do(all, "POST", "/v1/keys", `{"name":"x","scopes":["audit:read"]}`, header{"Idempotency-Key", "a"}).problem(http.StatusBadRequest, "malformed")
}
