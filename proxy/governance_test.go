package proxy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
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

// governed calls one of haldir's own tools and returns its structured answer,
// which must be the same as its text.
func (h *host) governed(name, arguments string, into any) {
	h.t.Helper()
	r := h.call(name, arguments)
	if r.Error != nil || r.IsError {
		h.t.Fatalf("%s %s: %s", name, arguments, clip(r.line))
	}
	var structured, text any
	if err := json.Unmarshal(r.Structured, &structured); err != nil {
		h.t.Fatalf("%s: structuredContent: %v: %s", name, err, clip(r.line))
	}
	if err := json.Unmarshal([]byte(r.Text), &text); err != nil {
		h.t.Fatalf("%s: the text is no JSON: %v: %s", name, err, clip(r.line))
	}
	if d := cmp.Diff(structured, text); d != "" {
		h.t.Errorf("%s: structuredContent and text differ:\n%s", name, d)
	}
	if err := json.Unmarshal(r.Structured, into); err != nil {
		h.t.Fatalf("%s: %v: %s", name, err, r.Structured)
	}
}

func TestGovernanceToolsAreDefinedForHosts(t *testing.T) {
	h := serve(t, rig{})
	want := []string{"haldir_check_permission", "haldir_get_audit", "haldir_get_spend"}
	if d := cmp.Diff(want, h.tools()); d != "" {
		t.Error(d)
	}
	for _, raw := range h.definitions() {
		var d struct {
			Name, Description string
			InputSchema       struct{ Type string }
			OutputSchema      struct {
				Type     string
				Required []string
			}
			Annotations struct{ ReadOnlyHint, DestructiveHint *bool }
		}
		if err := json.Unmarshal(raw, &d); err != nil {
			t.Fatal(err)
		}
		if d.Description == "" || d.InputSchema.Type != "object" || d.OutputSchema.Type != "object" || len(d.OutputSchema.Required) == 0 ||
			d.Annotations.ReadOnlyHint == nil || !*d.Annotations.ReadOnlyHint || d.Annotations.DestructiveHint == nil || *d.Annotations.DestructiveHint {
			t.Errorf("the definition: %s", raw)
		}
	}
}

type permission struct {
	Allowed   *bool     `json:"allowed"`
	SessionID string    `json:"session_id"`
	Scope     string    `json:"scope"`
	Tool      string    `json:"tool"`
	Verdict   string    `json:"verdict"`
	Policy    string    `json:"policy"`
	Reason    string    `json:"reason"`
	RetryAt   time.Time `json:"retry_at"`
}

func TestCheckPermission(t *testing.T) {
	limit := 3 * policy.USD
	rules := policy.Ruleset{
		Costs:  []policy.Cost{{Tools: []string{"pay"}, FromArgument: "/usd", HasFromArgument: true}},
		Scopes: []policy.Scope{{Tools: []string{"look"}, Require: []string{"read"}}, {Tools: []string{"admin"}, Require: []string{"admin"}}},
		Policies: []policy.Rule{
			{Type: policy.TypeDeny, Tools: []string{"drop"}},
			{Type: policy.TypeDeny, Tools: []string{"look"}, When: "args.path == '/etc'"},
			{Type: policy.TypeRateLimit, Tools: []string{"once"}, MaxCalls: 1, Window: time.Hour},
		},
	}
	up := newFake("up", "drop", "look", "pay", "once", "admin", "other")
	h := serve(t, rig{
		fakes: []proxy.Upstream{up}, rules: rules,
		terms: &ledger.Terms{Agent: agent, Scopes: []string{"read", "execute", "spend"}, SpendLimit: &limit},
	})
	h.must("up__once", "{}")
	before := h.spent()
	for _, tt := range []struct {
		args            string
		allowed         bool
		verdict, policy string
	}{
		{`{"scope":"read"}`, true, "", ""},
		{`{"scope":"spend"}`, true, "", ""},
		{`{"scope":"admin"}`, false, "", ""},
		{`{"scope":"Read"}`, false, "", ""},
		{`{"tool":"up__look"}`, false, "deny", "condition"},
		{`{"tool":"up__look","arguments":{"path":"/tmp"}}`, true, "allow", ""},
		{`{"tool":"up/look","arguments":{"path":"/etc"}}`, false, "deny", "deny"},
		{`{"tool":"drop"}`, false, "deny", "deny"},
		{`{"tool":"up__drop","scope":"read"}`, false, "deny", "deny"},
		{`{"tool":"up__look","scope":"admin","arguments":{"path":"/tmp"}}`, false, "allow", ""},
		{`{"tool":"admin"}`, false, "deny", "scope"},
		{`{"tool":"pay","arguments":{"usd":2.5}}`, true, "allow", ""},
		{`{"tool":"pay","arguments":{"usd":3.5}}`, false, "deny", "spend_limit"},
		{`{"tool":"pay","arguments":{"usd":-1}}`, false, "deny", "cost"},
		{`{"tool":"pay"}`, false, "deny", "cost"},
		{`{"tool":"once"}`, false, "deny", "rate_limit"},
		{`{"tool":"haldir_get_spend"}`, true, "allow", ""},
		{`{"tool":"other","arguments":{}}`, true, "allow", ""},
	} {
		var p permission
		h.governed("haldir_check_permission", tt.args, &p)
		if p.Allowed == nil || *p.Allowed != tt.allowed || p.Verdict != tt.verdict || p.Policy != tt.policy || p.SessionID != session || !tt.allowed && p.Reason == "" {
			t.Errorf("%s: %+v", tt.args, p)
		}
		if tt.policy == "rate_limit" && time.Until(p.RetryAt) < 50*time.Minute {
			t.Errorf("%s: when it can be tried again: %v", tt.args, p.RetryAt)
		}
		var in permission
		if err := json.Unmarshal([]byte(tt.args), &in); err != nil || in.Scope != p.Scope || in.Tool != "" && !strings.Contains(p.Tool, "/") {
			t.Errorf("%s: scope %q, tool %q", tt.args, p.Scope, p.Tool)
		}
	}
	for _, args := range []string{
		`{}`, `{"scope":""}`, `{"tool":"up__nothing"}`, `{"tool":"nonsense"}`, `{"scope":5}`, `{"tool":["look"]}`, `{"tools":"up__look"}`,
		`{"scope":"read","argument":{}}`, `{"Tool":"look"}`,
	} {
		if r := h.call("haldir_check_permission", args); !r.IsError && r.Error == nil {
			t.Errorf("%s: %s", args, r.line)
		}
	}
	// A call with such arguments is refused, so it must not be called allowed.
	for _, arguments := range []string{`[]`, `"x"`, `5`} {
		if r := h.call("up__other", arguments); r.Error == nil {
			t.Errorf("a call with the arguments %s: %s", arguments, r.line)
		}
		r := h.call("haldir_check_permission", `{"tool":"up__other","arguments":`+arguments+`}`)
		var p permission
		if json.Unmarshal(r.Structured, &p) == nil && p.Allowed != nil && *p.Allowed {
			t.Errorf("the arguments %s: %s", arguments, r.line)
		}
	}
	// It was a dry run.
	if after := h.spent(); after.Calls != before.Calls || after.Total != before.Total {
		t.Errorf("spent before: %+v, after: %+v", before, after)
	}
	if n := len(h.entries()); n != 1+3 { // the malformed calls above are attempts, too
		t.Errorf("%d calls are on record, want 4", n)
	}
	if n := len(up.called()); n != 1 {
		t.Errorf("the upstream was called %d times", n)
	}
}

func TestGetSpend(t *testing.T) {
	limit := 10 * policy.USD
	up := newFake("up", "pay", "free", "metered")
	up.do = func(context.Context, upstream.Call) (wire.Message, error) {
		return reply(`{"content":[],"_meta":{"cost":0.75}}`)
	}
	h := serve(t, rig{
		fakes: []proxy.Upstream{up},
		terms: &ledger.Terms{Agent: agent, AllScopes: true, SpendLimit: &limit},
		rules: policy.Ruleset{
			Costs: []policy.Cost{
				{Tools: []string{"pay"}, FromArgument: "/usd", HasFromArgument: true}, {Tools: []string{"metered"}, USD: policy.USD, FromResult: "/_meta/cost"},
			},
			Policies: []policy.Rule{
				{ID: "cap", Type: policy.TypeSpendLimit, MaxUSD: 4 * policy.USD},
				{ID: "day", Type: policy.TypeSpendLimit, MaxUSD: 100 * policy.USD, Per: policy.PerDay},
				{ID: "dry", Type: policy.TypeSpendLimit, MaxUSD: 1, Shadow: true},
			},
		},
	})
	type report struct {
		Total     *float64           `json:"total_usd"`
		Count     *int               `json:"action_count"`
		ByTool    map[string]float64 `json:"by_tool"`
		Session   string             `json:"session_id"`
		Limit     *float64           `json:"limit_usd"`
		Remaining *float64           `json:"remaining_usd"`
		ByPolicy  []struct {
			Rule      string
			Per       string
			Limit     float64   `json:"limit_usd"`
			Used      float64   `json:"used_usd"`
			Remaining float64   `json:"remaining_usd"`
			ResetsAt  time.Time `json:"resets_at"`
			Shadow    bool
		} `json:"by_policy"`
	}
	get := func() (r report) {
		h.governed("haldir_get_spend", "{}", &r)
		if r.Total == nil || r.Count == nil || r.Limit == nil || r.Remaining == nil {
			t.Fatalf("%+v", r)
		}
		return r
	}
	if r := get(); *r.Total != 0 || *r.Count != 0 || len(r.ByTool) != 0 || *r.Limit != 4 || *r.Remaining != 4 || r.Session != session || len(r.ByPolicy) != 3 {
		t.Errorf("at the beginning: %+v", r)
	}
	h.must("up__pay", `{"usd":1.5}`)
	h.must("up__pay", `{"usd":"0.000001"}`)
	h.must("up__free", `{}`)
	h.must("up__metered", `{}`)
	h.refused("up__pay", `{"usd":2}`)
	r := get()
	if *r.Total != 2.250001 || *r.Count != 4 || *r.Limit != 4 || *r.Remaining != 1.749999 {
		t.Errorf("total %v, count %v, limit %v, remaining %v", *r.Total, *r.Count, *r.Limit, *r.Remaining)
	}
	if d := cmp.Diff(map[string]float64{"up/pay": 1.500001, "up/metered": 0.75}, r.ByTool); d != "" {
		t.Error(d)
	}
	for i, want := range []struct {
		rule        string
		limit, left float64
	}{{"cap", 4, 1.749999}, {"day", 100, 97.749999}, {"dry", 0.000001, 0}} {
		if p := r.ByPolicy[i]; p.Rule != want.rule || p.Limit != want.limit || p.Used != 2.250001 || p.Remaining != want.left || p.Shadow != (i == 2) || p.ResetsAt.IsZero() == (i == 1) {
			t.Errorf("policy %d: %+v", i, p)
		}
	}
	// Without any limit the two are null.
	var free map[string]any
	serve(t, rig{}).governed("haldir_get_spend", "{}", &free)
	if v, ok := free["limit_usd"]; !ok || v != nil {
		t.Errorf("without a limit: %v", free)
	}
	if v, ok := free["remaining_usd"]; !ok || v != nil {
		t.Errorf("without a limit: %v", free)
	}
}

// A misspelt argument must not silently select everything.
func TestUnknownArgumentsOfGovernanceToolsAreErrors(t *testing.T) {
	h := serve(t, rig{})
	for _, name := range []string{"haldir_check_permission", "haldir_get_spend", "haldir_get_audit"} {
		for _, args := range []string{`{"nonsense":1}`, `{"Limit":5}`, `{"session_id":"ses_other"}`} {
			if r := h.call(name, args); !r.IsError && r.Error == nil {
				t.Errorf("%s %s: %s", name, args, clip(r.line))
			}
		}
	}
}

func TestGetAudit(t *testing.T) {
	up := newFake("up", "good", "bad", "drop", "hang")
	up.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) {
		switch {
		case strings.Contains(string(c.Params), `"bad"`):
			return reply(`{"content":[],"isError":true}`)
		case strings.Contains(string(c.Params), `"hang"`):
			return hang(ctx, c)
		}
		return reply(`{"content":[]}`)
	}
	h := serve(t, rig{fakes: []proxy.Upstream{up}, rules: deny("drop")})
	// Another session in the same ledger must not show.
	other := h.attempt(t, "ses_other", "up", "secret")
	h.led.Settle(other, ledger.Outcome{Result: ledger.Done})

	type entry struct {
		Seq       uint64
		Status    string
		Upstream  string
		Tool      string
		SessionID string `json:"session_id"`
		AgentID   string `json:"agent_id"`
		Timestamp time.Time
		Flagged   bool
		Client    string
		Hash      string
		Arguments json.RawMessage
	}
	type trail struct {
		Count   int
		Entries []entry
	}
	get := func(args string) (a trail) {
		t.Helper()
		h.governed("haldir_get_audit", args, &a)
		if a.Count != len(a.Entries) || a.Entries == nil {
			t.Errorf("%s: count %d, %d entries", args, a.Count, len(a.Entries))
		}
		for i, e := range a.Entries {
			if e.SessionID != session || e.AgentID != agent || e.Hash == "" || e.Timestamp.IsZero() || e.Client != "host 1" {
				t.Errorf("%s: %+v", args, e)
			}
			if i > 0 && e.Seq >= a.Entries[i-1].Seq {
				t.Errorf("%s: not newest first", args)
			}
		}
		return a
	}
	if a := get("{}"); a.Count != 0 {
		t.Errorf("at the beginning: %+v", a)
	}
	const n = 30
	for i := range n {
		h.must("up__good", fmt.Sprintf(`{"i":%d}`, i))
	}
	h.call("up__bad", "{}")
	h.refused("up__drop", "{}")
	h.refused("nonsense", "{}")
	h.send(`{"jsonrpc":"2.0","id":"hang","method":"tools/call","params":{"name":"up__hang"}}`)
	eventually(t, "the call arrives", func() bool { return len(up.called()) == n+2 })
	if a := get(`{"status":"running"}`); a.Count != 1 || a.Entries[0].Tool != "hang" {
		t.Errorf("running: %+v", a)
	}
	h.send(cancelLine(`"hang"`))
	h.last()

	if a := get("{}"); a.Count != 20 || a.Entries[0].Tool != "hang" || a.Entries[0].Status != "cancelled" || a.Entries[1].Tool != "nonsense" || a.Entries[1].Status != "denied" ||
		a.Entries[2].Tool != "drop" || !a.Entries[2].Flagged || a.Entries[3].Status != "error" || a.Entries[4].Status != "allowed" {
		t.Errorf("the newest: %+v", a.Entries[:5])
	}
	for args, want := range map[string]int{
		`{"limit":1}`: 1, `{"limit":200}`: n + 4, `{"limit":5}`: 5, `{"limit":null}`: 20,
		`{"status":"denied"}`: 2, `{"status":"error"}`: 1, `{"status":"cancelled"}`: 1, `{"status":"abandoned"}`: 0, `{"status":"allowed","limit":200}`: n,
		`{"tool":"up__bad"}`: 1, `{"tool":"up/bad"}`: 1, `{"tool":"bad"}`: 1, `{"tool":"good","limit":200}`: n, `{"tool":"nonsense"}`: 1, `{"tool":"never"}`: 0,
		`{"tool":"up__good","status":"denied"}`: 0, `{"tool":"secret"}`: 0, `{"tool":"up/secret"}`: 0,
	} {
		if a := get(args); a.Count != want {
			t.Errorf("%s: %d entries, want %d", args, a.Count, want)
		}
	}
	for _, args := range []string{`{"limit":0}`, `{"limit":-1}`, `{"limit":201}`, `{"limit":1.5}`, `{"limit":"5"}`, `{"limit":1e9}`, `{"status":"nope"}`, `{"status":5}`, `{"tool":5}`, `{"sesion":"x"}`} {
		if r := h.call("haldir_get_audit", args); !r.IsError {
			t.Errorf("%s: %s", args, clip(r.line))
		}
	}
	// A big limit does not make a result that no host takes.
	for range 170 {
		h.must("up__good", `{"text":"`+strings.Repeat("x", 8000)+`"}`)
	}
	if r := h.call("haldir_get_audit", `{"limit":200}`); len(r.line) > 8<<20 {
		t.Errorf("200 entries make %d bytes", len(r.line))
	} else {
		t.Logf("200 entries with 8 kB of arguments each make %d bytes", len(r.line))
	}
}

func (h *host) attempt(t *testing.T, session, upstreamName, tool string) ledger.Ticket {
	t.Helper()
	engine, err := policy.Compile(policy.Ruleset{})
	if err != nil {
		t.Fatal(err)
	}
	ticket, _, err := h.led.Reserve(context.Background(), ledger.Attempt{
		Use: ledger.Use{ID: session, Terms: &ledger.Terms{Agent: agent, AllScopes: true}}, Call: policy.Call{Upstream: upstreamName, Tool: tool},
	}, engine)
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

// haldir's own tools are never judged: not by a deny of everything, not by a
// scope, not by an exhausted limit, not after the session was revoked.
func TestGovernanceToolsAreNeverBlocked(t *testing.T) {
	none := policy.Micros(0)
	h := serve(t, rig{
		fakes: []proxy.Upstream{newFake("up", "tool")},
		terms: &ledger.Terms{Agent: agent, Scopes: []string{}, SpendLimit: &none, TTL: time.Nanosecond},
		rules: policy.Ruleset{
			Costs:  []policy.Cost{{Tools: []string{"*"}, USD: policy.USD}},
			Scopes: []policy.Scope{{Tools: []string{"*"}, Require: []string{"nobody"}}},
			Policies: []policy.Rule{
				{Type: policy.TypeDeny, Tools: []string{"*"}},
				{Type: policy.TypeDeny, Tools: []string{"haldir/*"}},
				{Type: policy.TypeDeny, Tools: []string{"haldir_*"}},
				{Type: policy.TypeAllow},
				{Type: policy.TypeRateLimit, MaxCalls: 1, Window: time.Hour},
				{Type: policy.TypeSpendLimit},
			},
		},
	})
	check := func(when string) {
		t.Helper()
		for range 3 {
			var any map[string]any
			h.governed("haldir_get_spend", "{}", &any)
			h.governed("haldir_get_audit", "{}", &any)
			h.governed("haldir_check_permission", `{"scope":"read"}`, &any)
			if any["allowed"] != false {
				t.Errorf("%s: haldir_check_permission: %v", when, any)
			}
		}
	}
	h.refused("up__tool", "{}")
	check("denied")
	if len(h.tools()) != 3 {
		t.Errorf("tools/list: %s", h.tools())
	}
	if _, err := h.led.Revoke(context.Background(), session, false); err != nil {
		t.Fatal(err)
	}
	check("revoked")
}

func TestGovernanceToolsAreAlwaysOnRecord(t *testing.T) {
	h := serve(t, rig{})
	h.call("haldir_get_spend", "{}")
	h.call("haldir_get_audit", `{"limit":1}`)
	h.call("haldir_get_audit", `{"limit":9999}`) // a mistake as well
	h.call("haldir_check_permission", `{"tool":"no such tool"}`)
	var got []string
	for _, e := range h.find(audit.Filter{Governance: true, Status: audit.StatusGovernance, Limit: 100}) {
		got = append(got, e.Upstream+"/"+e.Tool+string(e.Arguments))
		if e.SessionID != session || e.Client != "host 1" {
			t.Errorf("%+v", e)
		}
	}
	want := []string{
		`haldir/haldir_get_spend{}`, `haldir/haldir_get_audit{"limit":1}`, `haldir/haldir_get_audit{"limit":9999}`, `haldir/haldir_check_permission{"tool":"no such tool"}`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if sp := h.spent(); sp.Calls != 0 {
		t.Errorf("they count as %d calls", sp.Calls)
	}
}

// haldir's own tools have the same spellings as all others.
func TestGovernanceToolsUnderAllTheirNames(t *testing.T) {
	h := serve(t, rig{})
	for _, name := range []string{"haldir_get_spend", "haldir/haldir_get_spend"} {
		if r := h.call(name, "{}"); r.Error != nil || r.IsError {
			t.Errorf("%s: %s", name, r.line)
		}
	}
}

func TestGovernanceToolsSayWhenTheLedgerFails(t *testing.T) {
	led := &faulty{}
	h := serve(t, rig{adjust: func(o *proxy.Options) { led.Ledger = o.Ledger; o.Ledger = led }})
	led.record = errDisk
	for _, name := range []string{"haldir_get_spend", "haldir_get_audit"} { // no record, no answer
		if r := h.call(name, "{}"); r.Error == nil || !strings.Contains(r.Error.Message, "no space") {
			t.Errorf("%s: %s", name, clip(r.line))
		}
	}
	led.record, led.spent, led.find, led.check = nil, errDisk, errDisk, errDisk
	for name, args := range map[string]string{"haldir_get_spend": "{}", "haldir_get_audit": "{}", "haldir_check_permission": `{"scope":"read"}`} {
		if r := h.call(name, args); !r.IsError || !strings.Contains(r.Text, "no space") {
			t.Errorf("%s: %s", name, clip(r.line))
		}
	}
	h.alive()
}

func TestGovernanceToolsKeepWhatTheHostSends(t *testing.T) {
	h := serve(t, rig{})
	got := h.ask(`{"jsonrpc":"2.0","id":9007199254740993,"method":"tools/call","params":{"name":"haldir_get_spend","_meta":{"progressToken":9007199254740993,"x":1}}}`)
	if !bytes.HasPrefix([]byte(got), []byte(`{"jsonrpc":"2.0","id":9007199254740993,"result":`)) {
		t.Errorf("got %s", clip(got))
	}
	h.ask(`{"jsonrpc":"2.0","id":"n","method":"tools/call","params":{"name":"haldir_get_spend","arguments":null}}`)
	h.quiet()
}

// What is asked about is what would be sent: large integers are not rounded.
func TestCheckPermissionReadsArgumentsExactly(t *testing.T) {
	h := serve(t, rig{fakes: []proxy.Upstream{newFake("up", "pay")}, rules: policy.Ruleset{Policies: []policy.Rule{
		{ID: "that one", Type: policy.TypeDeny, Tools: []string{"pay"}, When: `args.account == 9007199254740993`},
	}}})
	for account, want := range map[string]bool{"9007199254740992": true, "9007199254740993": false} {
		arguments := `{"account":` + account + `}`
		var p permission
		if r := h.call("haldir_check_permission", `{"tool":"up__pay","arguments":`+arguments+`}`); json.Unmarshal(r.Structured, &p) != nil || p.Allowed == nil || *p.Allowed != want {
			t.Errorf("account %s: %s", account, r.line)
		}
		if r := h.call("up__pay", arguments); r.IsError == want {
			t.Errorf("account %s: %s", account, r.line)
		}
	}
}
