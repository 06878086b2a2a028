package wire_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mark3 "github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// The two Go servers that most upstreams in the wild are built on, or are much
// like: what the scripted sites of http_test.go say is what these really do.

const initializeParams = `{"protocolVersion":"2025-11-25","capabilities":{"elicitation":{}},"clientInfo":{"name":"haldir-test","version":"0"}}`

// remote is a conversation over either HTTP transport.
type remote interface {
	wire.Client
	SetVersion(v string)
}

// handshake is the opening of a session in the handshake era.
func handshake(t *testing.T, h remote) {
	t.Helper()
	m, err := h.Call(t.Context(), "initialize", json.RawMessage(initializeParams))
	if err != nil || m.Result == nil {
		t.Fatalf("initialize: %s, %v", m.Raw, err)
	}
	var v string
	if err := json.Unmarshal(object(t, m.Result)["protocolVersion"], &v); err != nil || v != "2025-11-25" {
		t.Fatalf("the server speaks %q: %v", v, err)
	}
	h.SetVersion(v)
	if err := h.Send(t.Context(), []byte(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)); err != nil {
		t.Fatalf("initialized: %v", err)
	}
}

// callTool calls a tool and returns the text of its result.
func callTool(t *testing.T, h wire.Client, name, args string) (text string) {
	t.Helper()
	m, err := h.Call(t.Context(), "tools/call", json.RawMessage(`{"name":"`+name+`","arguments":`+args+`,"_meta":{"progressToken":"tok"}}`))
	if err != nil {
		t.Fatalf("tools/call %s: %v", name, err)
	}
	var r struct {
		Content []struct{ Text string }
		IsError bool
	}
	if err := json.Unmarshal(m.Result, &r); err != nil || len(r.Content) != 1 || r.IsError {
		t.Fatalf("tools/call %s: %s, %v", name, m.Raw, err)
	}
	return r.Content[0].Text
}

// sdkServer is a go-sdk server: echo, progress, ask, hang.
func sdkServer(cancelled chan<- struct{}) *mcp.Server {
	s := mcp.NewServer(&mcp.Implementation{Name: "sdk", Version: "0"}, nil)
	text := func(s string) *mcp.CallToolResult {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: s}}}
	}
	schema := json.RawMessage(`{"type":"object"}`)
	s.AddTool(&mcp.Tool{Name: "echo", InputSchema: schema}, func(_ context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return text(string(req.Params.Arguments)), nil
	})
	s.AddTool(&mcp.Tool{Name: "progress", InputSchema: schema}, func(ctx context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		for i := range 50 {
			// fails where the answer is JSON: there is no stream to carry it
			_ = req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: req.Params.GetProgressToken(), Progress: float64(i)})
		}
		return text("done"), nil
	})
	s.AddTool(&mcp.Tool{Name: "ask", InputSchema: schema}, func(ctx context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		r, err := req.Session.Elicit(ctx, &mcp.ElicitParams{Message: "sure?", RequestedSchema: json.RawMessage(`{"type":"object","properties":{}}`)})
		if err != nil {
			return nil, err
		}
		return text(r.Action), nil
	})
	s.AddTool(&mcp.Tool{Name: "hang", InputSchema: schema}, func(ctx context.Context, _ *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		<-ctx.Done()
		cancelled <- struct{}{}
		return nil, ctx.Err()
	})
	return s
}

func TestHTTPTalksToTheGoSDKInAllItsModes(t *testing.T) {
	for _, mode := range []struct {
		name            string
		stateless, json bool
	}{{"stateful, events", false, false}, {"stateful, JSON", false, true}, {"stateless, events", true, false}, {"stateless, JSON", true, true}} {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			cancelled := make(chan struct{}, 1)
			sdk := sdkServer(cancelled)
			var gets, deletes atomic.Int64
			inner := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return sdk }, &mcp.StreamableHTTPOptions{Stateless: mode.stateless, JSONResponse: mode.json})
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.Method {
				case http.MethodGet:
					gets.Add(1)
				case http.MethodDelete:
					deletes.Add(1)
				}
				inner.ServeHTTP(w, r)
			}))
			t.Cleanup(s.Close)
			var got []string // handled on the call's goroutine, so that no lock is needed
			onGET := make(chan string, 100)
			var h *wire.HTTP
			h = dial(t, s.URL, wire.HTTPOptions{Handler: func(m wire.Message) {
				switch m.Method {
				case "elicitation/create":
					go func() {
						if err := h.Send(context.Background(), wire.Result(m.ID, json.RawMessage(`{"action":"decline"}`))); err != nil {
							t.Error(err)
						}
					}()
				case "notifications/tools/list_changed":
					onGET <- m.Method
				default:
					got = append(got, string(m.Params))
				}
			}})
			handshake(t, h)

			// arguments arrive as they were, big numbers included
			if args := `{"n":9007199254740993,"é":"\u0061"}`; callTool(t, h, "echo", args) != args {
				t.Errorf("echo: %s", callTool(t, h, "echo", args))
			}
			// go-sdk says it in plain text with status 400
			var he *wire.HTTPError
			if m, err := h.Call(t.Context(), "no/such", nil); !errors.As(err, &he) || he.Status != http.StatusBadRequest || !strings.Contains(he.Body, "no/such") {
				t.Errorf("an unknown method: %s, %v", m.Raw, err)
			}
			if m, err := h.Call(t.Context(), "tools/call", json.RawMessage(`{"name":"none"}`)); err != nil || wire.ErrorOf(m).Code != -32602 {
				t.Errorf("an unknown tool: %s, %v", m.Raw, err)
			}

			callTool(t, h, "progress", `{}`)
			if !mode.json && len(got) != 50 {
				t.Errorf("%d of 50 notifications before the answer", len(got))
			}
			for i, p := range got {
				if !strings.Contains(p, fmt.Sprintf(`"progress":%d`, i)) || !strings.Contains(p, `"tok"`) {
					t.Errorf("notification %d is %s", i, p)
				}
			}
			if !mode.stateless && !mode.json {
				if answer := callTool(t, h, "ask", `{}`); answer != "decline" {
					t.Errorf("ask: %s", answer)
				}
			}

			h.Listen()
			if mode.stateless {
				wait(t, "the GET", func() bool { return gets.Load() == 1 })
				time.Sleep(50 * time.Millisecond)
				if n := gets.Load(); n != 1 { // 405: there is none
					t.Errorf("%d GETs", n)
				}
			} else {
				wait(t, "the GET", func() bool { return gets.Load() == 1 })
				// the stream is open a moment after the request came
				wait(t, "tools/list_changed on the GET stream", func() bool {
					sdk.AddTool(&mcp.Tool{Name: fmt.Sprintf("t%d", time.Now().UnixNano()), InputSchema: json.RawMessage(`{"type":"object"}`)},
						func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) { return nil, errors.New("x") })
					select {
					case <-onGET:
						return true
					case <-time.After(100 * time.Millisecond):
						return false
					}
				})

				// go-sdk cancels a handler only by the notification, not by the lost connection
				ctx, cancel := context.WithCancel(t.Context())
				call := start(ctx, h, "tools/call", `{"name":"hang","arguments":{}}`)
				time.Sleep(50 * time.Millisecond)
				cancel()
				if r := receive(t, "the cancelled call", call); !errors.Is(r.err, context.Canceled) {
					t.Errorf("the cancelled call: %v", r.err)
				}
				receive(t, "the handler's own view", cancelled)

				// another conversation in the same session, once that has ended
				for session := range sdk.Sessions() {
					_ = session.Close()
				}
				if m, err := h.Call(t.Context(), "tools/list", nil); !errors.Is(err, wire.ErrSessionExpired) {
					t.Errorf("a call in a session that is over: %s, %v", m.Raw, err)
				}
			}
			within(t, "Close", h.Close)
			if n := deletes.Load(); mode.stateless && n != 0 || !mode.stateless && n != 1 {
				t.Errorf("%d DELETEs", n)
			}
		})
	}
}

func TestClosingAConversationEndsTheGoSDKsSession(t *testing.T) {
	t.Parallel()
	sdk := sdkServer(nil)
	s := httptest.NewServer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return sdk }, nil))
	t.Cleanup(s.Close)
	sessions := func() (n int) {
		for range sdk.Sessions() {
			n++
		}
		return n
	}
	h := dial(t, s.URL, wire.HTTPOptions{})
	handshake(t, h)
	h.Listen()
	if n := sessions(); n != 1 {
		t.Errorf("%d sessions", n)
	}
	h.Close()
	wait(t, "the end of the session", func() bool { return sessions() == 0 })
}

// 200 calls to a real server over few connections, whichever way it answers.
func TestTheGoSDKSeesFewConnections(t *testing.T) {
	for name, asJSON := range map[string]bool{"events": false, "JSON": true} {
		t.Run(name, func(t *testing.T) {
			sdk := sdkServer(nil)
			var conns atomic.Int64
			var busy sync.Map // connections with a request
			count := connCounter(&conns)
			s := httptest.NewUnstartedServer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return sdk }, &mcp.StreamableHTTPOptions{JSONResponse: asJSON}))
			s.Config.ConnState = func(c net.Conn, state http.ConnState) {
				count(c, state)
				if state == http.StateActive {
					busy.Store(c, true)
				} else {
					busy.Delete(c)
				}
			}
			s.Start()
			t.Cleanup(s.Close)
			h := dial(t, s.URL, wire.HTTPOptions{})
			handshake(t, h)
			for range 200 {
				callTool(t, h, "echo", `{}`)
				// The answer is there before the stream that it came by ends.
				wait(t, "the end of the request", func() bool {
					some := false
					busy.Range(func(any, any) bool { some = true; return false })
					return !some
				})
			}
			if n := conns.Load(); n > 5 {
				t.Errorf("%d connections for 200 calls", n)
			}
		})
	}
}

// markServer is an mcp-go server: echo, progress.
func markServer() *server.MCPServer {
	s := server.NewMCPServer("mark", "0", server.WithToolCapabilities(true))
	s.AddTool(mark3.NewTool("echo", mark3.WithString("s")), func(_ context.Context, req mark3.CallToolRequest) (*mark3.CallToolResult, error) {
		return mark3.NewToolResultText(req.GetString("s", "")), nil
	})
	s.AddTool(mark3.NewTool("progress"), func(ctx context.Context, _ mark3.CallToolRequest) (*mark3.CallToolResult, error) {
		for i := range 20 {
			if err := s.SendNotificationToClient(ctx, "notifications/progress", map[string]any{"progressToken": "tok", "progress": i}); err != nil {
				return nil, err
			}
			time.Sleep(time.Millisecond)
		}
		return mark3.NewToolResultText("done"), nil
	})
	return s
}

func TestHTTPTalksToMCPGo(t *testing.T) {
	for _, mode := range []struct {
		name    string
		options []server.StreamableHTTPOption
	}{
		{"stateful", []server.StreamableHTTPOption{server.WithStateful(true)}},
		{"stateless", []server.StreamableHTTPOption{server.WithStateLess(true)}},
		{"no streams", []server.StreamableHTTPOption{server.WithStateful(true), server.WithDisableStreaming(true)}},
	} {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			mark := markServer()
			var gets, deletes atomic.Int64
			inner := server.NewStreamableHTTPServer(mark, append(mode.options, server.WithStreamableHTTPLogger(slog.New(slog.DiscardHandler)))...)
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.Method {
				case http.MethodGet:
					gets.Add(1)
				case http.MethodDelete:
					deletes.Add(1)
				}
				inner.ServeHTTP(w, r)
			}))
			t.Cleanup(s.Close)
			got := make(chan string, 1000)
			h := dial(t, s.URL, wire.HTTPOptions{Handler: func(m wire.Message) { got <- m.Method }})
			handshake(t, h)
			if text := callTool(t, h, "echo", `{"s":"hä\u0061"}`); text != "häa" {
				t.Errorf("echo: %q", text)
			}
			if m, err := h.Call(t.Context(), "tools/call", json.RawMessage(`{"name":"none"}`)); err != nil || m.Error == nil {
				t.Errorf("an unknown tool: %s, %v", m.Raw, err)
			}
			if text := callTool(t, h, "progress", `{}`); text != "done" {
				t.Errorf("progress: %q", text)
			}
			// mcp-go writes notifications on a goroutine of their own and may lose
			// the race with its answer; that they come at all is what counts here
			receive(t, "a progress notification", got)
			h.Listen()
			wait(t, "the GET", func() bool { return gets.Load() == 1 })
			if mode.name == "stateful" {
				wait(t, "a notification on the GET stream", func() bool {
					mark.SendNotificationToAllClients("notifications/test", nil)
					for len(got) > 0 {
						if <-got == "notifications/test" {
							return true
						}
					}
					return false
				})
			}
			within(t, "Close", h.Close)
			if n := deletes.Load(); mode.name == "stateful" && n != 1 {
				t.Errorf("%d DELETEs", n)
			}
		})
	}
}

func TestASessionThatMCPGoHasEndedIsExpired(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(server.NewStreamableHTTPServer(markServer(), server.WithStateful(true)))
	t.Cleanup(s.Close)
	var session atomic.Value
	client := &http.Client{Transport: sessionSpy{&http.Transport{}, &session}}
	h := dial(t, s.URL, wire.HTTPOptions{Client: client})
	handshake(t, h)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := session.Load().(string)
	req.Header.Set("Mcp-Session-Id", id)
	resp, err := client.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("DELETE: %v, %v", resp, err)
	}
	_ = resp.Body.Close()
	if m, err := h.Call(t.Context(), "tools/list", nil); !errors.Is(err, wire.ErrSessionExpired) {
		t.Errorf("Call = %s, %v", m.Raw, err)
	}
}

// sessionSpy remembers the session id that the server gave.
type sessionSpy struct {
	*http.Transport
	id *atomic.Value
}

func (s sessionSpy) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := s.Transport.RoundTrip(r)
	if err == nil {
		if v := resp.Header.Get("Mcp-Session-Id"); v != "" {
			s.id.Store(v)
		}
	}
	return resp, err
}
