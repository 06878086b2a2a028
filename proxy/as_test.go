package proxy_test

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// mint makes a session beside that of the host.
func (h *host) mint(terms ledger.Terms) proxy.As {
	h.t.Helper()
	s, err := h.led.MintSession(context.Background(), terms, "key_test", "api key test")
	if err != nil {
		h.t.Fatal(err)
	}
	return proxy.As{Session: s, Client: "api key test"}
}

func (h *host) callAs(as proxy.As, tool, arguments string) proxy.Reply {
	h.t.Helper()
	r, err := h.srv.CallAs(context.Background(), as, tool, json.RawMessage(arguments))
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func TestACallInAnotherSession(t *testing.T) {
	h := serve(t, rig{
		fakes: []proxy.Upstream{newFake("up", "buy", "look")},
		rules: policy.Ruleset{
			Costs:    []policy.Cost{{Tools: []string{"buy"}, USD: policy.USD}},
			Policies: []policy.Rule{{Type: policy.TypeSpendLimit, MaxUSD: 2 * policy.USD}},
		},
	})
	one := h.mint(ledger.Terms{Agent: "one", AllScopes: true})
	two := h.mint(ledger.Terms{Agent: "two", Scopes: []string{"execute"}})
	for range 2 {
		if r := h.callAs(one, "buy", `{"a":1}`); r.Refusal != nil || r.Error != nil || string(r.Result) == "" {
			t.Fatalf("%+v", r)
		}
	}
	if r := h.callAs(one, "up__buy", `{}`); r.Refusal == nil || r.Refusal.Policy != "spend_limit" || r.Result != nil || r.Refusal.AuditID == "" {
		t.Errorf("over its limit: %+v", r.Refusal)
	}
	if r := h.callAs(two, "buy", `{}`); r.Refusal == nil || r.Refusal.Policy != "scope" || r.Refusal.Rule != "spend" {
		t.Errorf("without the scope: %+v", r.Refusal)
	}
	h.must("up__buy", `{}`) // the host has a limit of its own
	for _, s := range []struct {
		as    proxy.As
		total string
	}{{one, "2"}, {two, "0"}} {
		r := h.callAs(s.as, "haldir_get_spend", `{}`)
		var out struct {
			Structured struct {
				Session string      `json:"session_id"`
				Total   json.Number `json:"total_usd"`
			} `json:"structuredContent"`
		}
		if err := json.Unmarshal(r.Result, &out); err != nil || out.Structured.Session != s.as.Session.ID || out.Structured.Total.String() != s.total {
			t.Errorf("what haldir tells of %s: %s, %v", s.as.Session.Agent, r.Result, err)
		}
		r = h.callAs(s.as, "haldir_check_permission", `{"tool":"buy"}`)
		var p struct {
			Structured permission `json:"structuredContent"`
		}
		if err := json.Unmarshal(r.Result, &p); err != nil || p.Structured.SessionID != s.as.Session.ID || *p.Structured.Allowed || p.Structured.Policy == "" {
			t.Errorf("what it permits %s: %s, %v", s.as.Session.Agent, r.Result, err)
		}
	}
	var seen [][]string
	for _, e := range h.entries() {
		if e.Kind == audit.KindAttempt.String() {
			seen = append(seen, []string{e.AgentID, e.Client, e.Tool, string(e.Status)})
		}
	}
	want := [][]string{
		{"one", "api key test", "buy", "allowed"},
		{"one", "api key test", "buy", "allowed"},
		{"one", "api key test", "buy", "denied"},
		{"two", "api key test", "buy", "denied"},
		{"tester", "host 1", "buy", "allowed"},
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Error(diff)
	}
}

func TestACallInAnotherSessionIsCancelledWithItsContext(t *testing.T) {
	up := newFake("up", "slow")
	began := make(chan struct{})
	up.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) { close(began); return hang(ctx, c) }
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	as := h.mint(ledger.Terms{Agent: "one", AllScopes: true})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-began; cancel() }()
	r, err := h.srv.CallAs(ctx, as, "slow", nil)
	if err != nil || r.Error == nil {
		t.Errorf("%+v, %v", r, err)
	}
	if e := h.last(); e.Status != audit.StatusCancelled || e.SessionID != as.Session.ID {
		t.Errorf("%+v", e)
	}
}

func TestWhatForbidsACallThatWasMade(t *testing.T) {
	rules := policy.Ruleset{Policies: []policy.Rule{
		{Type: policy.TypeRateLimit, MaxCalls: 1, Window: time.Hour, Per: policy.PerSession},
		{Type: policy.TypeDeny, Tools: []string{"bad"}},
		{Type: policy.TypeDeny, Shadow: true, Tools: []string{"*"}},
	}}
	h := serve(t, rig{fakes: []proxy.Upstream{newFake("up", "good", "bad")}, rules: rules})
	as := h.mint(ledger.Terms{Agent: "one", AllScopes: true})
	ctx := context.Background()
	forbids := func(tool string) *proxy.Refusal {
		t.Helper()
		refused, err := h.srv.ForbidsAs(ctx, as, tool, json.RawMessage(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		return refused
	}
	h.callAs(as, "good", `{}`)
	if r := h.callAs(as, "good", `{}`); r.Refusal == nil || r.Refusal.Policy != "rate_limit" {
		t.Fatalf("%+v", r)
	}
	before := len(h.entries())
	if r := forbids("good"); r != nil {
		t.Errorf("its own use counts against it: %+v", r)
	}
	if n := len(h.entries()); n != before {
		t.Errorf("what is not forbidden is on record")
	}
	if r := forbids("bad"); r == nil || r.Policy != "deny" || r.AuditID == "" {
		t.Errorf("%+v", r)
	}
	if r := forbids("nothing"); r == nil || r.Policy != "unknown_tool" {
		t.Errorf("%+v", r)
	}
	if _, err := h.led.Revoke(ctx, as.Session.ID, false); err != nil {
		t.Fatal(err)
	}
	if r := forbids("good"); r == nil || r.Policy != "session" || r.Rule != "revoked" {
		t.Errorf("in a revoked session: %+v", r)
	}
	if n := len(h.entries()); n != before+3 {
		t.Errorf("%d records of what was forbidden, want 3", n-before)
	}
}
