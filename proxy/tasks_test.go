package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// tasker is an upstream that makes tasks.
func tasker(name string, do func(c upstream.Call) string) *fake {
	f := newFake(name, "tool")
	f.catalogue.Server = json.RawMessage(`{"capabilities":{"tools":{},"tasks":{"list":{},"requests":{"tools":{"call":{}}}}}}`)
	f.do = func(_ context.Context, c upstream.Call) (wire.Message, error) { return reply(do(c)) }
	return f
}

// One of several that lists without end fills no memory, and hides only its own.
func TestAListOfTasksIsBounded(t *testing.T) {
	pages := 0
	endless := tasker("a", func(upstream.Call) string {
		pages++
		return `{"tasks":[{"taskId":"a","x":"` + strings.Repeat("x", 1<<20) + `"}],"nextCursor":"more"}`
	})
	other := tasker("b", func(upstream.Call) string { return `{"tasks":[{"taskId":"of b"}]}` })
	h := serve(t, rig{fakes: []proxy.Upstream{endless, other}})
	got := h.request("tasks/list", `{}`)
	if n := strings.Count(got, `{"taskId":"a"`); n != 7 || pages != 8 || !strings.Contains(got, `{"taskId":"of b"}`) {
		t.Errorf("%d tasks of %d pages, %d bytes", n, pages, len(got))
	}
	if !strings.Contains(h.log.String(), "the rest is left out") {
		t.Errorf("the log: %s", h.log)
	}
}

// tell has an upstream tell of a task.
func (h *host) tell(from, params string) string {
	h.t.Helper()
	line := `{"jsonrpc":"2.0","method":"notifications/tasks/status","params":` + params + `}`
	m, err := wire.ParseLenient([]byte(line))
	if err != nil {
		h.t.Fatal(err)
	}
	h.srv.Notify(from, m)
	return line
}

// An upstream tells of its own tasks only, whether haldir has seen them being made or not.
func TestNobodyTellsOfAnothersTask(t *testing.T) {
	makes := func(id string) func(upstream.Call) string {
		return func(upstream.Call) string { return `{"task":{"taskId":"` + id + `","status":"working"}}` }
	}
	h := serve(t, rig{fakes: []proxy.Upstream{tasker("a", makes("of a")), tasker("b", makes("of b")), newFake("c", "tool")}})
	for _, up := range []string{"a", "b"} {
		if got := h.request("tools/call", `{"name":"`+up+`__tool","arguments":{},"task":{}}`); !strings.Contains(got, "of "+up) {
			t.Fatalf("%s", got)
		}
	}
	for _, params := range []string{
		`{"taskId":"of b","status":"failed"}`, `{"taskId":"of a","TaskId":"of b","status":"failed"}`, `{"taskId":"of a","taskId":"of b","status":"failed"}`,
		`{"status":"failed"}`, `[]`,
	} {
		h.tell("a", params)
	}
	h.tell("c", `{"taskId":"of b","status":"failed"}`)
	h.tell("c", `{"taskId":"unknown","status":"failed"}`) // it has no tasks
	h.quiet()
	want := h.tell("b", `{"taskId":"of b","status":"completed","z":1}`)
	if got := h.need("the status", anyLine); got != want {
		t.Errorf("got %s", got)
	}
	// The only one that has tasks may tell of those of before haldir's start.
	alone := serve(t, rig{fakes: []proxy.Upstream{tasker("a", makes("of a")), newFake("c", "tool")}})
	alone.tell("c", `{"taskId":"of before","status":"failed"}`)
	alone.quiet()
	want = alone.tell("a", `{"taskId":"of before","status":"completed"}`)
	if got := alone.need("the status", anyLine); got != want {
		t.Errorf("got %s", got)
	}
}

// What an upstream tells of a task may be at hand before its answer that names the task, which
// the call has yet to take up: it reaches the host, and counts.
func TestATaskIsToldOfBeforeItIsKnown(t *testing.T) {
	var h *host
	told := make(chan string, 1)
	var cancelled cancels
	a := tasker("a", func(c upstream.Call) string {
		switch {
		case c.Method == "tasks/cancel":
			return cancelled.add(c)
		case strings.Contains(string(c.Params), "quick"):
			told <- h.tell("a", `{"taskId":"quick","status":"completed"}`)
			return `{"task":{"taskId":"quick","status":"working","ttl":null}}`
		}
		return `{"task":{"taskId":"slow","status":"working","ttl":null}}`
	})
	h = serve(t, rig{fakes: []proxy.Upstream{a, tasker("b", func(upstream.Call) string { return `{}` })}})
	h.send(`{"jsonrpc":"2.0","id":"q","method":"tools/call","params":{"name":"a__tool","arguments":{"x":"quick"},"task":{}}}`)
	want := <-told
	if got := h.need("the status", func(line string) bool { return strings.Contains(line, "notifications/") }); got != want {
		t.Errorf("got %s", got)
	}
	_ = h.answer(`"q"`)
	_ = h.request("tools/call", `{"name":"a__tool","arguments":{},"task":{}}`)
	cancelled.only(h, "slow")
}

// A task that its upstream has called over, whether a host has heard that by a notification or
// an answer, is not cancelled with its session.
func TestATaskThatIsToldToBeOverIsNotCancelled(t *testing.T) {
	var cancelled cancels
	a := tasker("a", func(c upstream.Call) string {
		if c.Method == "tasks/cancel" {
			return cancelled.add(c)
		}
		name, _ := wire.At(c.Params, "arguments", "x")
		status := "working"
		if string(name.Value) == `"done"` {
			status = "completed"
		}
		return `{"task":{"taskId":` + string(name.Value) + `,"status":"` + status + `","ttl":null}}`
	})
	h := serve(t, rig{fakes: []proxy.Upstream{a}})
	for _, id := range []string{"completed", "failed", "cancelled", "working", "done"} {
		_ = h.request("tools/call", `{"name":"a__tool","arguments":{"x":"`+id+`"},"task":{}}`)
		_ = h.tell("a", `{"taskId":"`+id+`","status":"`+id+`"}`)
	}
	cancelled.only(h, "working")
}

// A session may leave many tasks behind: all are cancelled, a few at a time.
func TestManyTasksAreCancelledAFewAtATime(t *testing.T) {
	const tasks = 100
	var made, now, most, all atomic.Int32
	a := tasker("a", func(c upstream.Call) string {
		if c.Method != "tasks/cancel" {
			return fmt.Sprintf(`{"task":{"taskId":"t%d","status":"working"}}`, made.Add(1))
		}
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(time.Millisecond)
		all.Add(1)
		return `{}`
	})
	h := serve(t, rig{fakes: []proxy.Upstream{a}})
	for range tasks {
		_ = h.request("tools/call", `{"name":"a__tool","arguments":{},"task":{}}`)
	}
	h.revoke()
	eventually(t, "all are cancelled", func() bool { return all.Load() == tasks })
	if most.Load() > 8 {
		t.Errorf("%d at a time", most.Load())
	}
}

// cancels are the tasks that an upstream was told to cancel.
type cancels struct {
	mu  sync.Mutex
	ids []string
}

func (l *cancels) add(c upstream.Call) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	id, _ := wire.At(c.Params, "taskId")
	l.ids = append(l.ids, string(id.Value))
	return `{"taskId":` + string(id.Value) + `,"status":"cancelled"}`
}

// only revokes the session with its calls and fails the test unless this one task is cancelled.
func (l *cancels) only(h *host, id string) {
	h.t.Helper()
	h.revoke()
	list := func() string {
		l.mu.Lock()
		defer l.mu.Unlock()
		return strings.Join(l.ids, " ")
	}
	eventually(h.t, "it is cancelled", func() bool { return strings.Contains(list(), `"`+id+`"`) })
	h.wait(moment, func(string) bool { return false })
	if got := list(); got != `"`+id+`"` {
		h.t.Errorf("cancelled: %s", got)
	}
}

// revoke revokes the host's session with its calls, from another process.
func (h *host) revoke() {
	h.t.Helper()
	if _, err := openLedger(h.t, h.dir).Revoke(h.t.Context(), session, true); err != nil {
		h.t.Fatal(err)
	}
}
