package upstream_test

import (
	"sync"
	"testing"

	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream"
)

// The token of a call that makes a task lives as long as the task; that of another
// call ends with its response (MCP 2025-11-25, tasks, progress).
func TestProgressOfATaskGoesOn(t *testing.T) {
	for _, task := range []bool{true, false} {
		r := ready(t, mcptest.Script{}.Child(t, "up"))
		var mu sync.Mutex
		var heard []string
		call := func(tool, arguments string, task bool) {
			t.Helper()
			_, err := r.Call(soon(t), upstream.Call{
				Method: "tools/call", Params: params(tool, arguments), Token: []byte(`"t"`), Task: task,
				Progress: func(m wire.Message) { mu.Lock(); defer mu.Unlock(); heard = append(heard, string(m.Params)) },
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		progress := func(n string) string {
			return `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t","progress":` + n + `}}`
		}
		call("raw", mcptest.Lines(progress("1"), `{"jsonrpc":"2.0","id":$ID,"result":{"task":{"taskId":"T","status":"working"}}}`), task)
		r.must("raw", mcptest.Lines(
			progress("2"), `{"jsonrpc":"2.0","method":"notifications/tasks/status","params":{"taskId":"T","status":"completed"}}`, progress("3"),
			`{"jsonrpc":"2.0","id":$ID,"result":{"content":[{"type":"text","text":""}]}}`,
		))
		want := 1
		if task {
			want = 2
		}
		mu.Lock()
		if len(heard) != want {
			t.Errorf("task %v: heard %v", task, heard)
		}
		mu.Unlock()
	}
}
