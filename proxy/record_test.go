package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// outcomes makes an upstream whose tools end in every way a call can end.
func outcomes() *fake {
	up := newFake("up", "good", "tool_error", "rpc_error", "unknown", "not_sent", "panics", "null_result", "odd_error")
	up.do = func(_ context.Context, c upstream.Call) (wire.Message, error) {
		tool := strings.Split(string(c.Params), `"`)[3]
		switch tool {
		case "tool_error":
			return reply(`{"content":[{"type":"text","text":"no such file"}],"isError":true}`)
		case "rpc_error":
			return wire.ParseLenient([]byte(`{"jsonrpc":"2.0","id":1,"error":{"code":-32042,"message":"log in","data":{"url":"https://x"}}}`))
		case "odd_error":
			return wire.ParseLenient([]byte(`{"jsonrpc":"2.0","id":1,"error":"plainly wrong"}`))
		case "null_result":
			return reply(`null`)
		case "unknown":
			return wire.Message{}, errors.New("connection reset by peer")
		case "not_sent":
			return wire.Message{}, fmt.Errorf("connection refused: %w", wire.ErrNotSent)
		case "panics":
			panic("oh no")
		}
		return reply(mcptest.Text("done"))
	}
	return up
}

// Every attempt is on record with how it ended and what it cost.
func TestEveryAttemptIsOnRecord(t *testing.T) {
	rules := prices
	rules.Policies = append(rules.Policies, policy.Rule{ID: "no", Type: policy.TypeDeny, Tools: []string{"denied"}})
	up := outcomes()
	h := serve(t, rig{fakes: []proxy.Upstream{up}, rules: rules})
	calls, total := int64(0), policy.Micros(0)
	for _, tt := range []struct {
		name    string
		status  audit.Status
		cost    string
		flagged bool
	}{
		{"up__good", audit.StatusAllowed, "1", false},
		{"up__tool_error", audit.StatusError, "1", false},
		{"up__rpc_error", audit.StatusError, "1", false},
		{"up__odd_error", audit.StatusError, "1", false},
		{"up__null_result", audit.StatusAllowed, "1", false},
		{"up__unknown", audit.StatusError, "1", true}, // a doubt counts as spent
		{"up__not_sent", audit.StatusError, "0", true},
		{"up__panics", audit.StatusError, "1", true},
		{"no such tool", audit.StatusDenied, "0", true},
		{"up__nope", audit.StatusDenied, "0", true},
		{"up/nope", audit.StatusDenied, "0", true},
	} {
		_, line := h.callLine(tt.name, `{"a":1}`)
		h.ask(line)
		e := h.last()
		if tt.name == "up__odd_error" {
			tt.flagged = e.Flagged // an anomaly, if one likes
		}
		if e.Status != tt.status || string(e.CostUSD) != tt.cost || e.Flagged != tt.flagged || (e.FlagReason != "") != tt.flagged {
			t.Errorf("%s: %s, $%s, flagged %v (%s)", tt.name, e.Status, e.CostUSD, e.Flagged, e.FlagReason)
		}
		if e.SessionID != session || e.AgentID != agent || e.Client != "host 1" || string(e.Arguments) != `{"a":1}` || e.ArgumentsSHA256 == "" {
			t.Errorf("%s: %+v", tt.name, e)
		}
		if e.Status == audit.StatusAllowed && e.ResultSHA256 == "" {
			t.Errorf("%s: no digest of the result", tt.name)
		}
		if tt.cost == "1" {
			calls++
			total += policy.USD
		}
		if sp := h.spent(); sp.Calls != calls || sp.Total != total {
			t.Errorf("after %s %d calls and %s are counted, want %d and %s", tt.name, sp.Calls, sp.Total, calls, total)
		}
	}
	if v, err := h.led.Verify(t.Context(), nil); err != nil {
		t.Errorf("verify: %v", err)
	} else {
		t.Logf("%d records verified", v.Count())
	}
}

// A call that no server would understand is an attempt all the same.
func TestAMalformedCallIsOnRecord(t *testing.T) {
	up := newFake("up", "good")
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	for _, tt := range []struct{ params, tool string }{
		{`{"name":"up__good","arguments":["a"]}`, "up__good"},
		{`{"name":"up__good","_meta":7}`, "up__good"},
		{`{"name":7}`, ""},
		{`{}`, ""},
	} {
		got := h.ask(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":%s}`, h.nextID(), tt.params))
		if !strings.Contains(got, `"code":-32602`) {
			t.Errorf("%s: %s", tt.params, got)
		}
		if e := h.last(); e.Status != audit.StatusDenied || e.Policy != "malformed" || e.Tool != tt.tool || !e.Flagged {
			t.Errorf("%s: on record as %+v", tt.params, e)
		}
	}
	if n := len(h.entries()); n != 4 || len(up.called()) != 0 {
		t.Errorf("%d entries, the upstream was called %d times", n, len(up.called()))
	}
}

func TestWhatTheHostSeesOfEachEnd(t *testing.T) {
	h := serve(t, rig{fakes: []proxy.Upstream{outcomes()}})
	for tool, want := range map[string]string{
		"tool_error":  `{"jsonrpc":"2.0","id":ID,"result":{"content":[{"type":"text","text":"no such file"}],"isError":true}}`,
		"rpc_error":   `{"jsonrpc":"2.0","id":ID,"error":{"code":-32042,"message":"log in","data":{"url":"https://x"}}}`,
		"null_result": `{"jsonrpc":"2.0","id":ID,"result":null}`,
		"unknown":     `{"jsonrpc":"2.0","id":ID,"error":{"code":-32603,"message":"connection reset by peer","data":{"source":"haldir","upstream":"up"}}}`,
		"panics":      `{"jsonrpc":"2.0","id":ID,"error":{"code":-32603,"message":"internal error in haldir"}}`,
	} {
		id, line := h.callLine("up__"+tool, "{}")
		if got := h.ask(line); got != strings.Replace(want, "ID", id, 1) {
			t.Errorf("%s: got %s", tool, got)
		}
	}
}

// No record, no call.
func TestALedgerThatCannotRecordMeansNoCall(t *testing.T) {
	up := newFake("up", "tool")
	led := &faulty{reserve: func(context.Context, ledger.Attempt) error { return errDisk }}
	h := serve(t, rig{fakes: []proxy.Upstream{up}, ledger: led})
	for _, name := range append(spellings("up", "tool"), "no such tool") {
		r := h.refused(name, "{}")
		if r.Policy != "ledger" || !strings.Contains(r.Error, "no space left") || !r.Retryable {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if calls := up.called(); calls != nil {
		t.Errorf("the upstream was called: %s", calls)
	}
	if out := led.outcomes(); len(out) != 0 {
		t.Errorf("what was never reserved was settled: %+v", out)
	}
	led.reserve = nil // the disk has space again
	h.must("up__tool", "{}")
	if out := led.outcomes(); len(out) != 1 || out[0].Result != ledger.Done {
		t.Errorf("settled: %+v", out)
	}
}

// A real ledger that fails: the state directory is gone, or closed.
func TestARealLedgerThatFailsMeansNoCall(t *testing.T) {
	up := newFake("up", "tool")
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	h.must("up__tool", "{}")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := h.led.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if r := h.refused("up__tool", "{}"); r.Policy != "ledger" {
		t.Errorf("%+v", r)
	}
	if n := len(up.called()); n != 1 {
		t.Errorf("the upstream was called %d times", n)
	}
	h.alive()
}

// Each call that was let through is settled once, whatever happens.
func TestEveryReservationIsSettledOnce(t *testing.T) {
	up := outcomes()
	led := &faulty{}
	h := serve(t, rig{fakes: []proxy.Upstream{up}, ledger: led})
	want := []ledger.Result{}
	for tool, r := range map[string]ledger.Result{
		"good": ledger.Done, "tool_error": ledger.Failed, "rpc_error": ledger.Failed, "unknown": ledger.Unknown, "not_sent": ledger.NotSent, "panics": ledger.Unknown,
	} {
		h.call("up__"+tool, "{}")
		want = append(want, r)
		var got []ledger.Result
		for _, o := range led.outcomes() {
			got = append(got, o.Result)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("after %s: %s", tool, d)
		}
	}
}

func TestTheActualCostComesFromTheResult(t *testing.T) {
	var result string
	up := newFake("up", "llm")
	up.do = func(context.Context, upstream.Call) (wire.Message, error) { return wire.ParseLenient([]byte(result)) }
	h := serve(t, rig{fakes: []proxy.Upstream{up}, rules: policy.Ruleset{
		Costs:    []policy.Cost{{Tools: []string{"llm"}, USD: policy.USD, FromResult: "/_meta/cost_usd"}},
		Policies: []policy.Rule{{Type: policy.TypeSpendLimit, MaxUSD: 1000 * policy.USD}},
	}})
	total := policy.Micros(0)
	for _, tt := range []struct {
		cost   string // the member cost_usd, "" for none
		micros policy.Micros
		flag   string // in the reason, "" for no flag
	}{
		{`"cost_usd":0.25`, 250_000, ""},
		{`"cost_usd":"0.004"`, 4000, ""},
		{`"cost_usd":0`, 0, ""},
		{`"cost_usd":1`, 1_000_000, ""},
		{`"cost_usd":5.5`, 5_500_000, "overrun"},
		{``, 1_000_000, "cost"},
		{`"cost_usd":null`, 1_000_000, "cost"},
		{`"cost_usd":-1`, 1_000_000, "cost"},
		{`"cost_usd":"NaN"`, 1_000_000, "cost"},
		{`"cost_usd":1e400`, 1_000_000, "cost"},
		{`"cost_usd":[1]`, 1_000_000, "cost"},
		{`"cost_usd":0.1,"cost_usd":0.2`, 1_000_000, "cost"}, // which one is beyond telling
	} {
		result = `{"jsonrpc":"2.0","id":1,"result":{"content":[],"_meta":{` + tt.cost + `}}}`
		h.must("up__llm", "{}")
		total += tt.micros
		e := h.last()
		usd, err := tt.micros.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		if string(e.CostUSD) != string(usd) || e.Flagged != (tt.flag != "") || !strings.Contains(e.FlagReason, tt.flag) {
			t.Errorf("%s: $%s, flagged %v: %s", tt.cost, e.CostUSD, e.Flagged, e.FlagReason)
		}
		if sp := h.spent(); sp.Total != total || sp.ByTool["up/llm"] != total {
			t.Errorf("%s: %s is counted, want %s", tt.cost, sp.Total, total)
		}
	}
	// An error has no cost in it: what was reserved stays.
	result = `{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m"}}`
	h.call("up__llm", "{}")
	if e := h.last(); string(e.CostUSD) != "1" {
		t.Errorf("an error: $%s", e.CostUSD)
	}
}

// What was certainly never sent gives back the money and the place in the rate.
func TestWhatWasNotSentIsGivenBack(t *testing.T) {
	limit := policy.USD
	sent := false
	up := newFake("up", "tool")
	up.do = func(context.Context, upstream.Call) (wire.Message, error) {
		if !sent {
			return wire.Message{}, fmt.Errorf("down: %w", wire.ErrNotSent)
		}
		return reply(mcptest.Text("done"))
	}
	h := serve(t, rig{
		fakes: []proxy.Upstream{up}, terms: &ledger.Terms{Agent: agent, AllScopes: true, SpendLimit: &limit},
		rules: policy.Ruleset{
			Costs:    []policy.Cost{{Tools: []string{"*"}, USD: policy.USD}},
			Policies: []policy.Rule{{Type: policy.TypeRateLimit, MaxCalls: 1, Window: time.Hour}, {Type: policy.TypeSpendLimit, MaxUSD: policy.USD}},
		},
	})
	for range 5 {
		if r := h.call("up__tool", "{}"); r.Error == nil {
			t.Fatalf("got %s", r.line)
		}
	}
	sent = true
	h.must("up__tool", "{}")
	if r := h.refused("up__tool", "{}"); r.Policy != "rate_limit" {
		t.Errorf("%+v", r)
	}
}

// Twenty calls at once against a limit for one.
func TestALimitIsNotOvershotByCallsAtOnce(t *testing.T) {
	limit := 100 * policy.USD
	up := newFake("up", "pay")
	up.do = func(context.Context, upstream.Call) (wire.Message, error) {
		time.Sleep(5 * time.Millisecond)
		return reply(mcptest.Text("paid"))
	}
	h := serve(t, rig{
		fakes: []proxy.Upstream{up}, terms: &ledger.Terms{Agent: agent, AllScopes: true, SpendLimit: &limit},
		rules: policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"pay"}, FromArgument: "/usd", HasFromArgument: true}}},
	})
	var ids []string
	for range 20 {
		id, line := h.callLine("up__pay", `{"usd":60}`)
		ids = append(ids, id)
		h.send(line)
	}
	passed := 0
	for _, id := range ids {
		if r := parseResponse(t, h.answer(id)); !r.IsError {
			passed++
		}
	}
	if n := len(up.called()); passed != 1 || n != 1 {
		t.Errorf("%d calls passed and %d reached the upstream, want 1", passed, n)
	}
	if n := len(h.entries()); n != 20 {
		t.Errorf("%d of 20 are on record", n)
	}
}

func TestASessionRevokedElsewhereIsRefusedAtTheNextCall(t *testing.T) {
	up := newFake("up", "tool", "slow")
	release := make(chan struct{})
	up.do = func(_ context.Context, c upstream.Call) (wire.Message, error) {
		if strings.Contains(string(c.Params), `"slow"`) {
			<-release
		}
		return reply(mcptest.Text("done"))
	}
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	h.must("up__tool", "{}")
	id, line := h.callLine("up__slow", "{}")
	h.send(line)
	eventually(t, "the call arrives", func() bool { return len(up.called()) == 2 })

	other := openLedger(t, h.dir) // as haldir session revoke does
	if _, err := other.Revoke(context.Background(), session, false); err != nil {
		t.Fatal(err)
	}
	r := h.refused("up__tool", "{}")
	if r.Policy != "session" || r.Retryable {
		t.Errorf("%+v", r)
	}
	close(release) // what runs may finish
	if got := parseResponse(t, h.answer(id)); got.Text != "done" {
		t.Errorf("the running call: %s", got.line)
	}
	if n := len(up.called()); n != 2 {
		t.Errorf("the upstream was called %d times", n)
	}
	var p permission
	h.governed("haldir_check_permission", `{"tool":"up__tool"}`, &p)
	if *p.Allowed {
		t.Errorf("haldir_check_permission: %+v", p)
	}
	var sc permission
	h.governed("haldir_check_permission", `{"scope":"read"}`, &sc)
	if *sc.Allowed {
		t.Errorf("haldir_check_permission: %+v", sc)
	}
}

func TestAnExpiredSessionSaysSo(t *testing.T) {
	h := serve(t, rig{fakes: []proxy.Upstream{newFake("up", "tool")}, terms: &ledger.Terms{Agent: agent, AllScopes: true, TTL: 50 * time.Millisecond}})
	h.must("up__tool", "{}")
	time.Sleep(60 * time.Millisecond)
	if r := h.refused("up__tool", "{}"); r.Policy != "session" || r.Rule != "expired" || !strings.Contains(r.Error, "haldir session") {
		t.Errorf("%+v", r)
	}
}

// impatient is an upstream whose first attempt to connect has failed.
type impatient struct{ *fake }

func (*impatient) Settled(context.Context)   {}
func (*impatient) Connected(context.Context) {}

// Many ways to fail at once, with other calls among them: the books add up.
func TestTheBooksAddUp(t *testing.T) {
	up := outcomes()
	h := serve(t, rig{fakes: []proxy.Upstream{up}, rules: policy.Ruleset{
		Costs:    []policy.Cost{{Tools: []string{"*"}, USD: policy.USD}},
		Policies: []policy.Rule{{Type: policy.TypeDeny, Tools: []string{"denied"}}},
	}})
	tools := []string{"good", "tool_error", "rpc_error", "unknown", "not_sent", "panics", "nope"}
	const rounds = 20
	var wg sync.WaitGroup
	for i := range rounds * len(tools) {
		id := fmt.Sprintf(`"b%d"`, i)
		h.send(`{"jsonrpc":"2.0","id":` + id + `,"method":"tools/call","params":{"name":"up__` + tools[i%len(tools)] + `"}}`)
		wg.Go(func() { h.wait(patience, hasID(id)) })
	}
	wg.Wait()
	want := map[audit.Status]int{audit.StatusAllowed: rounds, audit.StatusError: 5 * rounds, audit.StatusDenied: rounds}
	got := map[audit.Status]int{}
	for _, e := range h.entries() {
		got[e.Status]++
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if sp := h.spent(); sp.Total != 5*rounds*policy.USD || sp.Calls != 5*rounds {
		t.Errorf("%s and %d calls are counted, want $%d.00", sp.Total, sp.Calls, 5*rounds)
	}
	if _, err := h.led.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
}
