package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

func cancelLine(id string) string {
	return `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":` + id + `,"reason":"user"}}`
}

// prices makes every call cost a dollar and count against a rate.
var prices = policy.Ruleset{
	Costs:    []policy.Cost{{Tools: []string{"*"}, USD: policy.USD}},
	Policies: []policy.Rule{{Type: policy.TypeRateLimit, MaxCalls: 1000, Window: time.Hour}},
}

// settledCancels checks what n cancelled calls left behind: each is on record as
// cancelled, and paid for unless it was never sent. It returns how many were.
func settledCancels(t *testing.T, h *host, n int) int {
	t.Helper()
	var list []audit.Entry
	eventually(t, "every call has an outcome", func() bool {
		list = h.entries()
		for _, e := range list {
			if e.Status == audit.StatusRunning {
				return false
			}
		}
		return true
	})
	if len(list) != n {
		t.Errorf("%d of %d attempts are on record", len(list), n)
	}
	sent := 0
	for _, e := range list {
		if e.Status != audit.StatusCancelled {
			t.Errorf("a cancelled call ended as %s, $%s: %s", e.Status, e.CostUSD, e.FlagReason)
		}
		switch string(e.CostUSD) {
		case "1":
			sent++
		case "0":
		default:
			t.Errorf("a cancelled call cost $%s", e.CostUSD)
		}
	}
	if got := h.spent(); got.Total != policy.Micros(sent)*policy.USD || got.Calls != int64(sent) {
		t.Errorf("%d calls were sent and cancelled, but %s and %d calls are counted", sent, got.Total, got.Calls)
	}
	t.Logf("%d cancelled: %d were sent, %d were not", n, sent, len(list)-sent)
	return sent
}

// A call and its cancellation arrive in one piece, again and again. However they
// interleave with the call's way through haldir, no answer may come, the
// upstream must not go on working, and the books must be right.
func TestACancelIsNeverLost(t *testing.T) {
	const n = 200
	flood := func(h *host, name string) {
		for i := range n {
			id := fmt.Sprintf(`"c%d"`, i)
			call := `{"jsonrpc":"2.0","id":` + id + `,"method":"tools/call","params":{"name":"` + name + `","arguments":{"n":` + fmt.Sprint(i) + `}}}`
			switch i % 4 {
			case 0, 1: // back to back
				h.send(call, cancelLine(id))
			case 2: // in two writes
				h.send(call)
				h.send(cancelLine(id))
			case 3: // once it is well on its way
				h.send(call)
				time.Sleep(time.Duration(i%16) * time.Millisecond / 4)
				h.send(cancelLine(id))
			}
		}
		h.alive()
		h.quiet()
	}

	t.Run("in process", func(t *testing.T) {
		up := newFake("up", "tool")
		up.do = hang
		h := serve(t, rig{fakes: []proxy.Upstream{up}, rules: prices})
		flood(h, "up__tool")
		// What the upstream was called with is what is paid for.
		if sent := settledCancels(t, h, n); sent != len(up.called()) {
			t.Errorf("%d calls are counted as sent, %d were", sent, len(up.called()))
		}
	})
	servers := map[string]func(t *testing.T) (config.Upstream, func(h *host) []string){
		"stdio": func(t *testing.T) (config.Upstream, func(h *host) []string) {
			return mcptest.Script{}.Child(t, "up"), func(h *host) []string {
				var s mcptest.Seen
				if err := json.Unmarshal([]byte(h.must("up__seen", "{}")), &s); err != nil {
					t.Fatal(err)
				}
				return s.Messages
			}
		},
		"http": func(t *testing.T) (config.Upstream, func(h *host) []string) {
			srv := mcptest.Script{}.NewHTTP(t)
			return srv.Upstream("up"), func(*host) []string { return srv.Seen() }
		},
		"http with events": func(t *testing.T) (config.Upstream, func(h *host) []string) {
			srv := mcptest.Script{SSE: true}.NewHTTP(t)
			return srv.Upstream("up"), func(*host) []string { return srv.Seen() }
		},
	}
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			cfg, seen := start(t)
			h := serve(t, rig{servers: []config.Upstream{cfg}, rules: prices})
			h.tools() // it is connected
			flood(h, "up__hang")
			sent := settledCancels(t, h, n)
			// Every call that reached the server was cancelled there by its id. Over
			// HTTP the two travel on connections of their own, in any order.
			eventually(t, "the server is told of every cancellation", func() bool {
				running, told := map[string]bool{}, map[string]bool{}
				overtaken, received := 0, 0
				for _, line := range seen(h) {
					m, err := wire.ParseLenient([]byte(line))
					if err != nil {
						t.Fatal(err)
					}
					switch {
					case m.Method == "tools/call" && strings.Contains(line, `"hang"`):
						running[string(m.ID)] = true
						received++
						if told[string(m.ID)] {
							overtaken++
						}
					case m.Method == "notifications/cancelled":
						var p struct {
							RequestID json.RawMessage `json:"requestId"`
						}
						if err := json.Unmarshal(m.Params, &p); err != nil {
							t.Fatal(err)
						}
						told[string(p.RequestID)] = true
					}
				}
				for id := range told {
					delete(running, id)
				}
				if received > sent {
					t.Fatalf("the server was called %d times, but only %d calls count as sent", received, sent)
				}
				if len(running) == 0 {
					t.Logf("%d cancellations reached the server, %d of them before the call", len(told), overtaken)
				}
				return len(running) == 0
			})
		})
	}
}

// Every attempt is on record, also one that was cancelled at once.
func TestACancelledAttemptIsOnRecord(t *testing.T) {
	up := newFake("up", "tool")
	up.do = hang
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	const n = 200
	for i := range n {
		id := fmt.Sprintf(`"c%d"`, i)
		h.send(`{"jsonrpc":"2.0","id":`+id+`,"method":"tools/call","params":{"name":"up__tool"}}`, cancelLine(id))
	}
	h.alive()
	time.Sleep(moment)
	if got := len(h.entries()); got != n {
		t.Errorf("%d of %d cancelled attempts are on record", got, n)
	}
}

func TestACancelNamesItsRequestAsJSON(t *testing.T) {
	up := newFake("up", "tool")
	up.do = hang
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	h.send(`{"jsonrpc":"2.0","id":"\u0031","method":"tools/call","params":{"name":"up__tool"}}`)
	eventually(t, "the call arrives", func() bool { return len(up.called()) == 1 })
	h.send(cancelLine(`1`)) // a number is another id
	time.Sleep(moment)
	if n := len(h.find(audit.Filter{Status: audit.StatusRunning})); n != 1 {
		t.Errorf("%d calls are running; the cancel of another id hit it", n)
	}
	h.send(cancelLine(`"1"`)) // the same text in another spelling
	if e := h.last(); e.Status != audit.StatusCancelled {
		t.Errorf("the call ended as %s", e.Status)
	}
	h.quiet()
}

func TestACancelAfterTheAnswerIsIgnored(t *testing.T) {
	h := serve(t, rig{fakes: []proxy.Upstream{newFake("up", "tool")}})
	for range 50 {
		id, line := h.callLine("up__tool", "{}")
		h.ask(line)
		h.send(cancelLine(id))
	}
	h.alive()
	for _, e := range h.entries() {
		if e.Status != audit.StatusAllowed {
			t.Errorf("an answered call ended as %s", e.Status)
		}
	}
	// The id is free: its next use is not cancelled by the notice of before.
	for range 50 {
		h.send(cancelLine("7"))
		if r := parseResponse(t, h.ask(`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"up__tool"}}`)); r.Error != nil {
			t.Fatalf("got %s", r.line)
		}
	}
}

// An upstream that does not care about cancellation answers all the same: the
// host gets nothing, neither the answer nor the progress before it.
func TestNothingComesAfterACancel(t *testing.T) {
	up := newFake("up", "tool")
	cancelled := make(chan struct{})
	up.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) {
		<-ctx.Done()
		m, err := wire.ParseLenient([]byte(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}`))
		if err != nil {
			t.Error(err)
		}
		c.Progress(m)
		close(cancelled)
		return reply(mcptest.Text("too late"))
	}
	h := serve(t, rig{fakes: []proxy.Upstream{up}, rules: prices})
	h.send(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"up__tool","_meta":{"progressToken":1}}}`)
	eventually(t, "the call arrives", func() bool { return len(up.called()) == 1 })
	h.send(cancelLine("1"))
	<-cancelled
	h.quiet()
	if e := h.last(); string(e.CostUSD) != "1" {
		t.Errorf("the call was made, and its answer costs: %+v", e)
	}
}

// A cancel also reaches a call that waits for the ledger or for an upstream.
func TestACancelReachesACallThatWaits(t *testing.T) {
	t.Run("for the ledger", func(t *testing.T) {
		up := newFake("up", "tool")
		waiting := make(chan struct{})
		release := make(chan struct{})
		led := &faulty{reserve: func(context.Context, ledger.Attempt) error {
			close(waiting)
			<-release
			return nil
		}}
		h := serve(t, rig{fakes: []proxy.Upstream{up}, ledger: led})
		h.send(`{"jsonrpc":"2.0","id":"w","method":"tools/call","params":{"name":"up__tool"}}`)
		<-waiting
		h.send(cancelLine(`"w"`))
		h.alive()
		close(release)
		h.quiet()
		if calls := up.called(); calls != nil {
			t.Errorf("the upstream was called: %s", calls)
		}
		if out := led.outcomes(); len(out) != 1 || out[0].Result != ledger.Withdrawn {
			t.Errorf("settled: %+v", out)
		}
	})
	t.Run("for an upstream that was never seen", func(t *testing.T) {
		up := newFake("up")
		up.cold = true
		h := serve(t, rig{fakes: []proxy.Upstream{up}, adjust: func(o *proxy.Options) { o.ListWait = time.Hour }})
		for i, line := range []string{
			`"method":"tools/call","params":{"name":"up__tool"}`,
			`"method":"tools/call","params":{"name":"tool"}`,
			`"method":"tools/list"`,
			`"method":"tools/call","params":{"name":"haldir_check_permission","arguments":{"tool":"up/tool"}}`,
		} {
			id := fmt.Sprint(i)
			h.send(`{"jsonrpc":"2.0","id":` + id + `,` + line + `}`)
			time.Sleep(10 * time.Millisecond)
			h.send(cancelLine(id))
			h.quiet()
			h.send(`{"jsonrpc":"2.0","id":` + id + `,"method":"ping"}`) // the id is free
			h.answer(id)
		}
	})
}

// After the ledger has said yes, before the call has left: it costs nothing.
func TestACallCancelledBeforeItLeavesCostsNothing(t *testing.T) {
	up := newFake("up", "tool")
	var h *host
	led := &faulty{}
	h = serve(t, rig{fakes: []proxy.Upstream{up}, rules: prices, adjust: func(o *proxy.Options) {
		led.Ledger = o.Ledger
		o.Ledger = lateCancel{led, func() { h.send(cancelLine(`"w"`)); time.Sleep(20 * time.Millisecond) }}
	}})
	h.send(`{"jsonrpc":"2.0","id":"w","method":"tools/call","params":{"name":"up__tool"}}`)
	h.quiet()
	if calls := up.called(); calls != nil {
		t.Errorf("the upstream was called: %s", calls)
	}
	if e := h.last(); string(e.CostUSD) != "0" || e.Status == audit.StatusAllowed {
		t.Errorf("the audit: %s, $%s", e.Status, e.CostUSD)
	}
	if sp := h.spent(); sp.Total != 0 || sp.Calls != 0 {
		t.Errorf("%s and %d calls are counted", sp.Total, sp.Calls)
	}
}

// lateCancel lets something happen between the yes of the ledger and the call.
type lateCancel struct {
	*faulty
	then func()
}

func (l lateCancel) Reserve(ctx context.Context, a ledger.Attempt, d ledger.Decider) (ledger.Ticket, policy.Decision, error) {
	ticket, decision, err := l.faulty.Reserve(context.WithoutCancel(ctx), a, d)
	l.then()
	return ticket, decision, err
}
