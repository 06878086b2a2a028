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
