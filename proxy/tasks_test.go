package proxy_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

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
	tell := func(h *host, from, params string) string {
		t.Helper()
		line := `{"jsonrpc":"2.0","method":"notifications/tasks/status","params":` + params + `}`
		m, err := wire.ParseLenient([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		h.srv.Notify(from, m)
		return line
	}
	for _, params := range []string{
		`{"taskId":"of b","status":"failed"}`, `{"taskId":"of a","TaskId":"of b","status":"failed"}`, `{"taskId":"of a","taskId":"of b","status":"failed"}`,
		`{"taskId":"unknown","status":"failed"}`, `{"status":"failed"}`, `[]`,
	} {
		tell(h, "a", params)
	}
	tell(h, "c", `{"taskId":"of b","status":"failed"}`)
	h.quiet()
	want := tell(h, "b", `{"taskId":"of b","status":"completed","z":1}`)
	if got := h.need("the status", anyLine); got != want {
		t.Errorf("got %s", got)
	}
	// The only one that has tasks may tell of those of before haldir's start.
	alone := serve(t, rig{fakes: []proxy.Upstream{tasker("a", makes("of a")), newFake("c", "tool")}})
	tell(alone, "c", `{"taskId":"of before","status":"failed"}`)
	alone.quiet()
	want = tell(alone, "a", `{"taskId":"of before","status":"completed"}`)
	if got := alone.need("the status", anyLine); got != want {
		t.Errorf("got %s", got)
	}
}
