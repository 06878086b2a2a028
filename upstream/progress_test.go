package upstream_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream"
)

// chatty is a go-sdk server whose tool sends n notifications before it answers.
func chatty(t *testing.T, o *mcp.StreamableHTTPOptions) (url string) {
	t.Helper()
	s := mcp.NewServer(&mcp.Implementation{Name: "chatty", Version: "0"}, nil)
	s.AddTool(&mcp.Tool{Name: "talk", InputSchema: json.RawMessage(`{"type":"object"}`)}, func(ctx context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		var a struct{ N int }
		if err := json.Unmarshal(req.Params.Arguments, &a); err != nil {
			return nil, err
		}
		for i := range a.N {
			_ = req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: req.Params.GetProgressToken(), Progress: float64(i)})
		}
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "done"}}}, nil
	})
	srv := httptest.NewServer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s }, o))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.URL
}

// A server that answers by JSON pushes progress on the GET stream, where the
// answer overtakes it: a client that hands on the answer at once loses what comes
// after (go-sdk's own: about five of six on two cores, 2026-09).
func TestProgressOnTheStreamOfItsOwnComesBeforeTheAnswer(t *testing.T) {
	const calls, each = 30, 50
	url := chatty(t, &mcp.StreamableHTTPOptions{JSONResponse: true})

	var heard atomic.Int64
	client := mcp.NewClient(&mcp.Implementation{Name: "direct", Version: "0"}, &mcp.ClientOptions{
		ProgressNotificationHandler: func(context.Context, *mcp.ProgressNotificationClientRequest) { heard.Add(1) },
	})
	session, err := client.Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: url}, nil)
	if err != nil {
		t.Fatal(err)
	}
	direct := int64(0)
	for i := range calls {
		p := &mcp.CallToolParams{Name: "talk", Arguments: map[string]any{"n": each}}
		p.SetProgressToken(i)
		before := heard.Load()
		if _, err := session.CallTool(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		direct += heard.Load() - before
		eventually(t, "the rest comes", func() bool { return heard.Load() == before+each })
	}
	if err := session.Close(); err != nil {
		t.Fatal(err)
	}

	r := ready(t, config.Upstream{Name: "up", URL: url, Connect: time.Minute})
	ours := int64(0)
	for i := range calls {
		ours += int64(talk(t, r, i, each))
	}
	t.Logf("of %d notifications before their answer: direct %d, through haldir %d", calls*each, direct, ours)
	if ours < direct {
		t.Errorf("haldir lost more than a direct client: %d, %d of %d came", ours, direct, calls*each)
	}
}

// talk makes a call with n notifications and returns how many came, which are in
// order and before the answer.
func talk(t *testing.T, r *rig, token, n int) (came int) {
	t.Helper()
	var over atomic.Bool
	m, err := r.Call(soon(t), upstream.Call{
		Method: "tools/call", Params: json.RawMessage(fmt.Sprintf(`{"name":"talk","arguments":{"n":%d},"_meta":{"progressToken":%d}}`, n, token)),
		Token: json.RawMessage(strconv.Itoa(token)), Progress: func(m wire.Message) {
			if over.Load() {
				t.Errorf("after the answer: %s", m.Raw)
			}
			if !strings.Contains(string(m.Raw), fmt.Sprintf(`"progress":%d`, came)) {
				t.Errorf("notification %d is %s", came, m.Raw)
			}
			came++
		},
	})
	over.Store(true)
	if err != nil || text(t, m) != "done" {
		t.Fatalf("the call: %s, %v", m.Raw, err)
	}
	return came
}

// A call that goes on while its host is done with the request that began it keeps its
// token, also if the host uses that again.
func TestTwoCallsWithOneToken(t *testing.T) {
	r := ready(t, mcptest.Script{}.Child(t, "up"))
	var mu sync.Mutex
	heard := map[string][]string{}
	call := func(ctx context.Context, name, token, tool, arguments string) error {
		_, err := r.Call(ctx, upstream.Call{
			Method: "tools/call", Params: json.RawMessage(fmt.Sprintf(`{"name":%q,"arguments":%s,"_meta":{"progressToken":%s}}`, tool, arguments, token)),
			Token: json.RawMessage(token), Progress: func(m wire.Message) {
				mu.Lock()
				defer mu.Unlock()
				heard[name] = append(heard[name], string(m.Raw))
			},
		})
		return err
	}
	ctx, cancel := context.WithCancel(soon(t))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = call(ctx, "first", "7", "hang", `{}`) })
	eventually(t, "the first is at the server", func() bool { return contains(r.seen().Messages, `"hang"`) })
	if err := call(soon(t), "second", "7", "flood", `{"what":"progress","n":1}`); err != nil {
		t.Fatal(err)
	}
	if err := call(soon(t), "third", `"x"`, "flood", `{"what":"progress","n":1,"token":7}`); err != nil { // of the first
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	const want = `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":7,"progress":0}}`
	if len(heard) != 2 || !slices.Equal(heard["first"], []string{want}) || !slices.Equal(heard["second"], []string{want}) {
		t.Errorf("heard: %v", heard)
	}
}
