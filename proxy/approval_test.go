package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

const forms = `{"elicitation":{"form":{},"url":{}}}`

// asking is a host before a tool that needs a person's word, and one that does not.
func asking(t *testing.T, capabilities string, adjust ...func(*policy.Rule)) (*host, *fake) {
	t.Helper()
	rule := policy.Rule{Type: policy.TypeApproval, Tools: []string{"drop"}}
	for _, f := range adjust {
		f(&rule)
	}
	up := newFake("db", "drop", "read")
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true, rules: policy.Ruleset{Policies: []policy.Rule{rule}}, adjust: func(o *proxy.Options) { o.Command = "haldir --state-dir /s" }})
	h.ask(`{"jsonrpc":"2.0","id":"init","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":` + capabilities + `,"clientInfo":{"name":"host","version":"1"}}}`)
	h.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	return h, up
}

// formed is a question that has come to the host.
func (h *host) formed() (id, message string) {
	h.t.Helper()
	line := h.need("the question", hasMethod("elicitation/create"))
	var m struct {
		ID     json.RawMessage
		Params struct {
			Mode, Message   string
			RequestedSchema struct {
				Properties struct{ Decision map[string]any }
				Required   []string
			}
		}
	}
	if err := json.Unmarshal([]byte(line), &m); err != nil {
		h.t.Fatal(err)
	}
	if m.Params.Mode != "form" || !slices.Equal(m.Params.RequestedSchema.Required, []string{"decision"}) {
		h.t.Errorf("the form: %s", line)
	}
	if _, preset := m.Params.RequestedSchema.Properties.Decision["default"]; preset {
		h.t.Errorf("the choice is made already: %s", line)
	}
	return string(m.ID), m.Params.Message
}

func (h *host) says(id, result string) {
	h.send(`{"jsonrpc":"2.0","id":` + id + `,"result":` + result + `}`)
}

func decision(word string) string {
	return `{"action":"accept","content":{"decision":"` + word + `"}}`
}

func (h *host) begin(name, arguments string) (id string) {
	id, line := h.callLine(name, arguments)
	h.send(line)
	return id
}

func (h *host) end(id string) response { h.t.Helper(); return parseResponse(h.t, h.answer(id)) }

// waiting returns what waits for a person.
func (h *host) waiting(n int) []ledger.Approval {
	h.t.Helper()
	var list []ledger.Approval
	eventually(h.t, fmt.Sprintf("%d calls wait", n), func() bool {
		var err error
		list, err = h.led.Approvals(context.Background())
		if err != nil {
			h.t.Fatal(err)
		}
		return len(list) == n
	})
	return list
}

func (h *host) allow(id string, a ledger.Answer) {
	h.t.Helper()
	a.Allow = true
	if a.Channel == "" {
		a.Channel = ledger.ChannelTerminal
	}
	if _, err := h.led.Answer(context.Background(), id, a); err != nil {
		h.t.Fatal(err)
	}
}

func TestAPersonAllowsACallOnce(t *testing.T) {
	h, up := asking(t, forms)
	call := h.begin("db__drop", `{"table":"a","force":true}`)
	id, message := h.formed()
	lines := strings.Split(message, "\n")
	if !strings.Contains(lines[0], "db/drop") || !strings.Contains(lines[1], "table: a") || !strings.Contains(lines[1], "force: true") {
		t.Errorf("the first lines do not say what is asked: %q", lines[:2])
	}
	if got := h.must("db__read", `{}`); got != "done" {
		t.Errorf("another call meanwhile: %s", got)
	}
	if n := len(up.called()); n != 1 {
		t.Fatalf("%d calls before anybody has answered, want that of read only", n)
	}
	h.says(id, decision("once"))
	if r := h.end(call); r.IsError || r.Text != "done" {
		t.Errorf("allowed, and yet: %+v", r)
	}
	if n := len(up.called()); n != 2 {
		t.Errorf("%d calls in all, want 2", n)
	}
	// The same once more needs another word.
	again := h.begin("db__drop", `{"table":"a","force":true}`)
	id, _ = h.formed()
	h.says(id, decision("deny"))
	if r := h.end(again); !strings.Contains(r.refusal(t).Error, "denied by elicitation") {
		t.Errorf("denied: %+v", r)
	}
	h.waiting(0)
	var got []string
	for _, e := range h.find(audit.Filter{Tool: "drop", Limit: 10}) {
		got = append(got, string(e.Status)+" "+e.Approval)
	}
	if !slices.Equal(got, []string{"approved apr_2", "allowed apr_2", "denied apr_8"}) {
		t.Errorf("the audit: %q", got)
	}
}

func TestAPersonsWordForTheSession(t *testing.T) {
	h, up := asking(t, forms)
	call := h.begin("db__drop", `{"table":"a"}`)
	id, _ := h.formed()
	h.says(id, decision("session"))
	h.end(call)
	if got := h.must("db__drop", `{"table":"a"}`); got != "done" {
		t.Errorf("the same again: %s", got)
	}
	for what, arguments := range map[string]string{"other arguments": `{"table":"b"}`, "other bytes": `{ "table":"a"}`} {
		call = h.begin("db__drop", arguments)
		id, _ = h.formed()
		h.says(id, `{"action":"decline"}`)
		if r := h.end(call); !r.IsError {
			t.Errorf("%s: %+v", what, r)
		}
	}
	// The tool is not what was allowed any more.
	up.define(json.RawMessage(`{"name":"drop","description":"now with everything below it","inputSchema":{"type":"object"}}`))
	call = h.begin("db__drop", `{"table":"a"}`)
	id, _ = h.formed()
	h.says(id, decision("deny"))
	h.end(call)
}

func TestWhatIsNoDecision(t *testing.T) {
	h, up := asking(t, forms)
	for _, result := range []string{
		`{"action":"cancel"}`, `{"action":"accept"}`, `{"action":"accept","content":{}}`, `{"action":"accept","content":{"decision":"yes"}}`,
		`{"action":"accept","content":{"decision":true}}`, `{"action":"Accept","content":{"decision":"once"}}`, `{}`, `[]`, `null`,
	} {
		call := h.begin("db__drop", `{"n":1}`)
		id, _ := h.formed()
		h.says(id, result)
		r := h.end(call).refusal(t)
		if !strings.Contains(r.Error, "haldir --state-dir /s approvals approve apr_") || r.Policy != "require_approval" || !r.Retryable {
			t.Errorf("%s: %+v", result, r)
		}
	}
	call := h.begin("db__drop", `{"n":1}`)
	id, _ := h.formed()
	h.send(`{"jsonrpc":"2.0","id":` + id + `,"error":{"code":-32603,"message":"no"}}`)
	h.end(call).refusal(t)
	if n := len(up.called()); n != 0 {
		t.Errorf("%d calls went through", n)
	}
	h.waiting(1) // the same call is listed once
}

func TestNobodyCanBeAsked(t *testing.T) {
	for _, capabilities := range []string{`{}`, `{"elicitation":{"url":{}}}`} {
		h, up := asking(t, capabilities)
		h.refused("db__drop", `{"n":1}`)
		if r := h.refused("db__drop", `{"n":1}`); !strings.Contains(r.Error, "nobody could be asked") {
			t.Errorf("refused with %+v", r)
		}
		listed := h.waiting(1)[0]
		if listed.Waiting || string(listed.Arguments) != `{"n":1}` {
			t.Errorf("listed: %+v", listed)
		}
		h.allow(listed.ID, ledger.Answer{})
		h.refused("db__drop", `{"n":2}`)
		if got := h.must("db__drop", `{"n":1}`); got != "done" {
			t.Errorf("the call that was allowed: %s", got)
		}
		h.refused("db__drop", `{"n":1}`)
		if n := len(up.called()); n != 1 {
			t.Errorf("%d calls, want 1", n)
		}
	}
}

func TestAnswersFromElsewhere(t *testing.T) {
	for name, capabilities := range map[string]string{"with a form": forms, "without": `{}`} {
		t.Run(name, func(t *testing.T) {
			h, up := asking(t, capabilities)
			stop, err := h.led.Watch()
			if err != nil {
				t.Fatal(err)
			}
			defer stop()
			call := h.begin("db__drop", `{"n":1}`)
			if capabilities == forms { // closed at once: the terminal is still there
				id, _ := h.formed()
				h.says(id, `{"action":"cancel"}`)
			}
			h.allow(h.waiting(1)[0].ID, ledger.Answer{})
			if r := h.end(call); r.IsError {
				t.Errorf("allowed elsewhere: %+v", r)
			}
			call = h.begin("db__drop", `{"n":1}`)
			p := h.waiting(1)[0]
			if _, err := h.led.Answer(t.Context(), p.ID, ledger.Answer{Channel: ledger.ChannelConsole, Note: "not on a Friday"}); err != nil {
				t.Fatal(err)
			}
			if capabilities == forms { // the form goes
				id, _ := h.formed()
				h.need("the withdrawal", func(line string) bool {
					return hasMethod("notifications/cancelled")(line) && strings.Contains(line, id)
				})
			}
			if r := h.end(call).refusal(t); !strings.Contains(r.Error, "denied by console: not on a Friday") {
				t.Errorf("denied: %+v", r)
			}
			if n := len(up.called()); n != 1 {
				t.Errorf("%d calls, want 1", n)
			}
		})
	}
}

func TestNobodyAnswersInTime(t *testing.T) {
	h, up := asking(t, forms, func(r *policy.Rule) { r.Timeout = time.Second })
	call := h.begin("db__drop", `{}`)
	id, _ := h.formed()
	if r := h.end(call).refusal(t); !strings.Contains(r.Error, "in time") {
		t.Errorf("refused with %+v", r)
	}
	h.need("the withdrawal", func(line string) bool {
		return hasMethod("notifications/cancelled")(line) && strings.Contains(line, id)
	})
	h.says(id, decision("once")) // too late
	h.alive()
	if len(up.called()) != 0 || h.last().Status != audit.StatusDenied {
		t.Errorf("called %d times, and the audit says %s", len(up.called()), h.last().Status)
	}
}

func TestTheClientGivesUpWhatWaits(t *testing.T) {
	h, up := asking(t, forms)
	call := h.begin("db__drop", `{}`)
	id, _ := h.formed()
	h.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":` + call + `}}`)
	h.need("the withdrawal", func(line string) bool {
		return hasMethod("notifications/cancelled")(line) && strings.Contains(line, id)
	})
	h.waiting(0)
	h.says(id, decision("once"))
	h.alive()
	if len(up.called()) != 0 || !strings.Contains(h.last().FlagReason, "withdrew") {
		t.Errorf("called %d times, and the audit says %+v", len(up.called()), h.last())
	}
}

func TestTheEndOfWhatWaits(t *testing.T) {
	h, up := asking(t, forms)
	h.begin("db__drop", `{}`)
	h.formed()
	h.stop()
	<-h.done
	h.waiting(0)
	if len(up.called()) != 0 || h.last().Status != audit.StatusDenied || !strings.Contains(h.last().FlagReason, "haldir ended") {
		t.Errorf("called %d times, and the audit says %+v", len(up.called()), h.last())
	}
}

func TestProgressWhileAPersonIsAsked(t *testing.T) {
	h, up := asking(t, forms)
	up.do = func(_ context.Context, c upstream.Call) (wire.Message, error) {
		m, err := wire.ParseLenient([]byte(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"tok","progress":0}}`))
		if err == nil {
			c.Progress(m)
		}
		return reply(mcptest.Text("done"))
	}
	h.send(`{"jsonrpc":"2.0","id":500,"method":"tools/call","params":{"name":"db__drop","arguments":{},"_meta":{"progressToken":"tok"}}}`)
	id, _ := h.formed()
	line := h.need("progress", hasMethod("notifications/progress"))
	if !strings.Contains(line, `"progressToken":"tok"`) || !strings.Contains(line, `"progress":-`) || !strings.Contains(line, "apr_") {
		t.Errorf("while it waits: %s", line)
	}
	h.says(id, decision("once"))
	if line := h.need("the upstream's progress", hasMethod("notifications/progress")); !strings.Contains(line, `"progress":0`) {
		t.Errorf("then: %s", line)
	}
	h.end("500")
}

// TestAGrantPassesNoOtherPolicy: what else is against the call counts when it is made.
func TestAGrantPassesNoOtherPolicy(t *testing.T) {
	up := newFake("db", "drop")
	h := serve(t, rig{fakes: []proxy.Upstream{up}, rules: policy.Ruleset{Policies: []policy.Rule{
		{Type: policy.TypeApproval, Tools: []string{"drop"}},
		{Type: policy.TypeRateLimit, Tools: []string{"drop"}, MaxCalls: 1, Window: time.Hour},
	}}})
	stop, err := h.led.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	first, second := h.begin("db__drop", `{"n":1}`), h.begin("db__drop", `{"n":2}`)
	for _, p := range h.waiting(2) {
		h.allow(p.ID, ledger.Answer{})
	}
	a, b := h.end(first), h.end(second)
	if a.IsError == b.IsError || len(up.called()) != 1 {
		t.Errorf("%d calls; %+v, %+v", len(up.called()), a, b)
	}
}

// TestOneWordOneCall: of two calls that are the same, each needs its own.
func TestOneWordOneCall(t *testing.T) {
	h, up := asking(t, `{}`)
	stop, err := h.led.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	calls := []string{h.begin("db__drop", `{}`), h.begin("db__drop", `{}`)}
	list := h.waiting(2)
	h.allow(list[0].ID, ledger.Answer{})
	h.wait(patience, func(line string) bool { return hasID(calls[0])(line) || hasID(calls[1])(line) })
	h.waiting(1)
	if n := len(up.called()); n != 1 {
		t.Errorf("%d calls after one word", n)
	}
	if _, err := h.led.Answer(t.Context(), list[0].ID, ledger.Answer{Allow: true}); err == nil {
		t.Error("the same word counts twice")
	}
	if _, err := h.led.Answer(t.Context(), list[1].ID, ledger.Answer{Channel: ledger.ChannelTerminal}); err != nil {
		t.Fatal(err)
	}
	h.waiting(0)
}

func TestAModernHostIsAsked(t *testing.T) {
	up := newFake("db", "drop", "read")
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true, rules: policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeApproval, Tools: []string{"drop"}}}}})
	n := 0
	call := func(capabilities, extra string) string {
		n++
		return h.ask(fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"db__drop","arguments":{"table":"a"},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"x","version":"1"},"io.modelcontextprotocol/clientCapabilities":%s}%s}}`, n, capabilities, extra))
	}
	field := func(line string, path ...string) string {
		at, _ := wire.At(json.RawMessage(line), path...)
		return string(at.Value)
	}
	ask := func() (state string) {
		t.Helper()
		line := call(forms, "")
		if field(line, "result", "resultType") != `"input_required"` || !strings.Contains(field(line, "result", "inputRequests", "haldir_approval", "params", "message"), "db/drop") {
			t.Fatalf("not asked: %s", line)
		}
		return field(line, "result", "requestState")
	}
	answer := func(state, result string) string {
		return call(forms, `,"inputResponses":{"haldir_approval":`+result+`},"requestState":`+state)
	}
	state := ask()
	if line := answer(state, decision("once")); !strings.Contains(line, "done") {
		t.Errorf("allowed: %s", line)
	}
	if line := answer(state, decision("once")); field(line, "error", "code") == "" {
		t.Errorf("the same state again: %s", line)
	}
	if line := answer(ask(), decision("deny")); !strings.Contains(line, "denied by elicitation") {
		t.Errorf("denied: %s", line)
	}
	if line := answer(ask(), `{"action":"cancel"}`); !strings.Contains(line, "nobody could be asked") {
		t.Errorf("closed: %s", line)
	}
	state = ask()
	h.allow(h.waiting(2)[1].ID, ledger.Answer{}) // the first is listed still
	if line := answer(state, `{"action":"cancel"}`); !strings.Contains(line, "done") {
		t.Errorf("allowed elsewhere: %s", line)
	}
	if got := len(up.called()); got != 2 {
		t.Errorf("%d calls, want 2", got)
	}
	if line := call(`{}`, ""); !strings.Contains(line, "nobody could be asked") {
		t.Errorf("a host without forms: %s", line)
	}
}

func TestTheFormOfOlderRevisions(t *testing.T) {
	up := newFake("db", "drop")
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true, rules: policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeApproval, Tools: []string{"drop"}, Once: true}}}})
	h.ask(`{"jsonrpc":"2.0","id":"init","method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{"elicitation":{}},"clientInfo":{"name":"host","version":"1"}}}`)
	h.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	call := h.begin("db__drop", "{}")
	line := h.need("the question", hasMethod("elicitation/create"))
	if !strings.Contains(line, `"enum":["once","deny"],"enumNames":["Allow this call once","Deny"]`) || strings.Contains(line, "oneOf") {
		t.Errorf("the form: %s", line)
	}
	at, _ := wire.At(json.RawMessage(line), "id")
	h.says(string(at.Value), decision("session")) // which the rule does not offer
	h.end(call).refusal(t)
	if len(up.called()) != 0 {
		t.Error("it was called")
	}
}

// TestASessionIsRevokedWithItsCalls: what runs is cancelled, at the upstream too.
func TestASessionIsRevokedWithItsCalls(t *testing.T) {
	up := newFake("db", "slow")
	up.do = hang
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	call := h.begin("db__slow", `{}`)
	eventually(t, "the call is at its upstream", func() bool { return len(up.called()) == 1 })
	if _, err := h.led.Revoke(t.Context(), session, false); err != nil {
		t.Fatal(err)
	}
	time.Sleep(600 * time.Millisecond) // longer than it would take
	if n := len(h.find(audit.Filter{Status: audit.StatusRunning, Limit: 5})); n != 1 {
		t.Fatalf("revoked without its calls, and %d run", n)
	}
	other := openLedger(t, h.dir)
	if _, err := other.Revoke(t.Context(), session, true); err != nil {
		t.Fatal(err)
	}
	if r := h.end(call); r.Error == nil || !strings.Contains(r.Error.Message, "revoked") {
		t.Errorf("the call: %s", r.line)
	}
	eventually(t, "it is recorded", func() bool {
		return h.last().Status == audit.StatusCancelled && strings.Contains(h.last().FlagReason, "revoked")
	})
	h.refused("db__slow", `{}`)
}

func TestASessionWarnsOfItsEnd(t *testing.T) {
	up := newFake("db", "read")
	h := serve(t, rig{fakes: []proxy.Upstream{up}, terms: &ledger.Terms{Agent: agent, AllScopes: true, TTL: 9 * time.Minute}, adjust: func(o *proxy.Options) { o.Command = "haldir" }})
	h.must("db__read", `{}`)
	if got := h.must("haldir_check_permission", `{"scope":"read"}`); !strings.Contains(got, "this session expires in 9m0s; the user can renew it with: haldir session renew "+session) &&
		!strings.Contains(got, "this session expires in 8m") {
		t.Errorf("9 minutes before its end: %s", got)
	}
	if _, err := h.led.Renew(t.Context(), session, time.Hour); err != nil {
		t.Fatal(err)
	}
	if got := h.must("haldir_check_permission", `{"scope":"read"}`); strings.Contains(got, "expires in") {
		t.Errorf("renewed: %s", got)
	}
	if _, err := h.led.Stop(t.Context(), "the bill"); err != nil {
		t.Fatal(err)
	}
	if got := h.must("haldir_check_permission", `{"scope":"read"}`); !strings.Contains(got, `"allowed":false`) || !strings.Contains(got, "the bill") {
		t.Errorf("stopped: %s", got)
	}
	if r := h.refused("db__read", `{}`); r.Policy != "stopped" || r.Retryable {
		t.Errorf("stopped: %+v", r)
	}
}
