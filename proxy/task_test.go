package proxy_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// worker is an upstream that makes a task of each call.
type worker struct {
	*fake
	asked chan struct{} // tasks/result has come
	ended chan struct{} // tasks/cancel has come

	mu  sync.Mutex
	got []string
}

func newWorker(t *testing.T) *worker {
	t.Helper()
	w := &worker{fake: furnished(t, "up", nil), asked: make(chan struct{}), ended: make(chan struct{})}
	w.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) {
		w.mu.Lock()
		w.got = append(w.got, c.Method+" "+string(c.Params))
		w.mu.Unlock()
		switch c.Method {
		case "tools/call":
			return reply(`{"task":{"taskId":"t\u0031","status":"working","ttl":60000}}`)
		case "tasks/cancel":
			close(w.ended)
			return reply(`{"taskId":"t1","status":"cancelled","statusMessage":"SECRET","ttl":null}`)
		case "tasks/result":
			close(w.asked)
			select {
			case <-w.ended:
			case <-ctx.Done():
				return wire.Message{}, context.Cause(ctx)
			}
		case "tasks/list":
			return reply(`{"tasks":[]}`)
		}
		return reply(mcptest.Text("SECRET"))
	}
	return w
}

func (w *worker) methods() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.got, "; ")
}

func (h *host) makeTask() {
	h.t.Helper()
	if line := h.request("tools/call", `{"name":"up__tool","arguments":{},"task":{}}`); !strings.Contains(line, `"taskId":"t\u0031"`) {
		h.t.Fatalf("no task: %s", line)
	}
}

// What a revoked agent, or one that was stopped, has begun as a task it does not hear of any
// more; it may still end it, of which it hears no more than that.
func TestTasksOfASessionThatIsOver(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(h *host) error
		rule string
	}{
		"a stop":       {func(h *host) error { _, err := h.led.Stop(t.Context(), "enough"); return err }, ledger.PolicyStopped},
		"a revocation": {func(h *host) error { _, err := h.led.Revoke(t.Context(), session, false); return err }, "revoked"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorker(t)
			h := serve(t, rig{fakes: []proxy.Upstream{w}})
			h.makeTask()
			if line := h.request("tasks/list", `{}`); !strings.Contains(line, `"tasks":[]`) {
				t.Errorf("%s", line)
			}
			if err := c.end(h); err != nil {
				t.Fatal(err)
			}
			before := w.methods()
			asks := [][2]string{{"tasks/get", "t1"}, {"tasks/result", "t1"}, {"tasks/list", "t1"}, {"tasks/cancel", "any words"}}
			for _, ask := range asks {
				line := h.request(ask[0], `{"taskId":"`+ask[1]+`"}`)
				if code, data := failureOf(t, line); code != proxy.CodeRefused || !strings.Contains(string(data), `"rule":"`+c.rule+`"`) {
					t.Errorf("%s: %s", ask[0], line)
				}
			}
			if got := w.methods(); got != before {
				t.Errorf("the upstream was sent %s", got)
			}
			for _, ask := range asks {
				if list := h.find(audit.Filter{Status: audit.StatusDenied, Tool: ask[0]}); len(list) != 1 {
					t.Errorf("%s: %d on record", ask[0], len(list))
				}
			}
			line := h.request("tasks/cancel", `{"taskId":"t1","_meta":{"progressToken":1},"words":"to the server"}`)
			if !strings.HasSuffix(line, `"result":{"taskId":"t1","status":"cancelled","ttl":null}}`) {
				t.Errorf("tasks/cancel: %s", line)
			}
			if got := w.methods(); got != before+`; tasks/cancel {"taskId":"t1"}` {
				t.Errorf("the upstream was sent %s", got)
			}
		})
	}
}

// The words by which a server refuses to cancel a task are not for who hears of it no more.
func TestATaskThatIsNotCancelledInAStop(t *testing.T) {
	w := newWorker(t)
	do := w.do
	w.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) {
		if c.Method == "tasks/cancel" {
			return wire.ParseLenient([]byte(`{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"SECRET","data":"SECRET"}}`))
		}
		return do(ctx, c)
	}
	h := serve(t, rig{fakes: []proxy.Upstream{w}})
	h.makeTask()
	if _, err := h.led.Stop(t.Context(), "enough"); err != nil {
		t.Fatal(err)
	}
	line := h.request("tasks/cancel", `{"taskId":"t1"}`)
	if code, _ := failureOf(t, line); code != wire.CodeInvalidParams || strings.Contains(line, "SECRET") {
		t.Errorf("%s", line)
	}
}

// A revocation with the calls ends their tasks as well, and what waits for one.
func TestARevocationCancelsTasks(t *testing.T) {
	for _, waits := range []bool{false, true} {
		w := newWorker(t)
		h := serve(t, rig{fakes: []proxy.Upstream{w}})
		h.makeTask()
		if waits {
			h.send(`{"jsonrpc":"2.0","id":"r","method":"tasks/result","params":{"taskId":"t1"}}`)
			<-w.asked
		}
		if _, err := openLedger(t, h.dir).Revoke(t.Context(), session, true); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the task is cancelled", func() bool { return strings.HasSuffix(w.methods(), `tasks/cancel {"taskId":"t1"}`) })
		if waits {
			if line := h.answer(`"r"`); strings.Contains(line, "SECRET") || !strings.Contains(line, "revoked") {
				t.Errorf("the revoked agent has the result: %s", line)
			}
		}
	}
}

// A task that is over is not cancelled.
func TestARevocationLeavesATaskThatIsOver(t *testing.T) {
	w := newWorker(t)
	h := serve(t, rig{fakes: []proxy.Upstream{w}})
	h.makeTask()
	if line := h.request("tasks/cancel", `{"taskId":"t1"}`); !strings.Contains(line, "cancelled") {
		t.Fatalf("%s", line)
	}
	if _, err := openLedger(t, h.dir).Revoke(t.Context(), session, true); err != nil {
		t.Fatal(err)
	}
	h.wait(2*moment, func(string) bool { return false })
	if n := strings.Count(w.methods(), "tasks/cancel"); n != 1 { // a second one would panic
		t.Errorf("%s", w.methods())
	}
}
