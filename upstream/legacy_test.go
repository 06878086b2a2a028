package upstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	mark "github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream"
)

// everything runs server-everything over an HTTP transport of its own choice of
// name and returns the port, and a function that starts it anew there.
func everything(t *testing.T, transport string) (port int, restart func()) {
	t.Helper()
	command := mcptest.NPM(t, mcptest.Everything, "mcp-server-everything")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal(l.Addr())
	}
	_ = l.Close()
	var cmd *exec.Cmd
	stop := func() {
		if cmd != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // killed
		}
	}
	t.Cleanup(func() { stop() })
	restart = func() {
		stop()
		cmd = exec.Command(command[0], append(command[1:], transport)...)
		cmd.Env = append(cmd.Environ(), fmt.Sprintf("PORT=%d", addr.Port))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it listens", func() bool {
			c, err := net.Dial("tcp", addr.String())
			if err == nil {
				_ = c.Close()
			}
			return err == nil
		})
	}
	restart()
	return addr.Port, restart
}

// The servers that still speak HTTP+SSE refuse a POST to its address, each in
// its own way; haldir goes over to it by itself.
func TestALegacyServerIsRecognized(t *testing.T) {
	sdk := mcp.NewServer(&mcp.Implementation{Name: "sdk", Version: "0"}, nil)
	sdk.AddTool(&mcp.Tool{Name: "echo", InputSchema: json.RawMessage(`{"type":"object"}`)}, func(_ context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: string(req.Params.Arguments)}}}, nil
	})
	m3 := server.NewMCPServer("mark", "0", server.WithToolCapabilities(true))
	m3.AddTool(mark.NewTool("echo"), func(_ context.Context, req mark.CallToolRequest) (*mark.CallToolResult, error) {
		return mark.NewToolResultText(string(req.Params.RawArguments)), nil
	})
	serve := func(h http.Handler) func(t *testing.T) string {
		return func(t *testing.T) string {
			s := httptest.NewServer(h)
			t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
			return s.URL
		}
	}
	for name, c := range map[string]struct {
		url  func(t *testing.T) string
		path string
		args string
		want string
	}{
		"go-sdk": {serve(mcp.NewSSEHandler(func(*http.Request) *mcp.Server { return sdk }, nil)), "/", `{"n":9007199254740993}`, `{"n":9007199254740993}`},
		"mcp-go": {serve(server.NewSSEServer(m3)), "/sse", `{"n":9007199254740993}`, `{"n":9007199254740993}`},
		"TypeScript SDK": {func(t *testing.T) string {
			port, _ := everything(t, "sse")
			return fmt.Sprintf("http://127.0.0.1:%d", port)
		}, "/sse", `{"message":"hä"}`, "Echo: hä"},
	} {
		t.Run(name, func(t *testing.T) {
			r := ready(t, config.Upstream{Name: "up", URL: c.url(t) + c.path, Connect: patience})
			if !slices.Contains(names(r.Catalogue()), "echo") {
				t.Fatalf("the tools: %s", names(r.Catalogue()))
			}
			for range 3 {
				if got := r.must("echo", c.args); got != c.want {
					t.Errorf("echo: %s", got)
				}
			}
			within(t, patience, "Close", r.Close)
		})
	}
}

// When the stream of a legacy server ends, so does the session; the next call
// has another one.
func TestALegacyServerThatComesBack(t *testing.T) {
	sdk := mcp.NewServer(&mcp.Implementation{Name: "sdk", Version: "0"}, nil)
	sdk.AddTool(&mcp.Tool{Name: "echo", InputSchema: json.RawMessage(`{"type":"object"}`)}, func(_ context.Context, _ *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "here"}}}, nil
	})
	s := httptest.NewServer(mcp.NewSSEHandler(func(*http.Request) *mcp.Server { return sdk }, nil))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	r := ready(t, config.Upstream{Name: "up", URL: s.URL, Connect: patience})
	for range 3 {
		if r.must("echo", `{}`) != "here" {
			t.Error("no answer")
		}
		for session := range sdk.Sessions() {
			_ = session.Close()
		}
		eventually(t, "the end is noticed and mended", func() bool {
			m, err := r.call(soon(t), "echo", `{}`)
			return err == nil && text(t, m) == "here"
		})
	}
}

// What is no MCP server at all says so by its first refusal and by the second.
func TestAServerOfNeitherTransport(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		gets   int64
		want   []string
	}{
		"404": {http.StatusNotFound, 1, []string{"404", "HTTP+SSE"}},
		"405": {http.StatusMethodNotAllowed, 1, []string{"405", "HTTP+SSE"}},
		"401": {http.StatusUnauthorized, 0, []string{"401"}},
		"500": {http.StatusInternalServerError, 0, []string{"500"}},
	} {
		var gets atomic.Int64
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodGet {
				gets.Add(1)
			}
			http.Error(w, "no", c.status)
		}))
		t.Cleanup(s.Close)
		r := start(t, config.Upstream{Name: "up", URL: s.URL, Connect: patience})
		err := r.Status().Err
		r.Close()
		for _, w := range c.want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if gets.Load() != c.gets {
			t.Errorf("%s: %d GETs", name, gets.Load())
		}
	}
}

// server-everything forgets its sessions when it is started anew, and says so by
// a 400. The call is made in another session, once.
func TestARestartOfServerEverythingIsNotFelt(t *testing.T) {
	port, restart := everything(t, "streamableHttp")
	r := ready(t, config.Upstream{Name: "up", URL: fmt.Sprintf("http://127.0.0.1:%d/mcp", port), Connect: patience})
	for range 2 {
		if got := r.must("echo", `{"message":"x"}`); got != "Echo: x" {
			t.Errorf("echo: %s", got)
		}
		restart()
		eventually(t, "a call gets through", func() bool {
			m, err := r.call(soon(t), "echo", `{"message":"again"}`)
			return err == nil && text(t, m) == "Echo: again"
		})
	}
}

// A call whose stream broke after it had left, and whose session is gone when
// haldir asks for the rest, may have been carried out: it is not made again.
func TestACallThatMayHaveBeenMadeIsNotMadeAgain(t *testing.T) {
	srv := mcptest.Script{Stateful: true, SSE: true}.NewHTTP(t)
	var calls atomic.Int64
	srv.Before = func(w http.ResponseWriter, req *http.Request, body []byte) bool {
		if strings.Contains(string(body), `"tools/call"`) && calls.Add(1) == 1 {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = w.Write([]byte("id: 1\ndata:\n\n"))
			srv.Forget()
			return true
		}
		return false
	}
	r := ready(t, srv.Upstream("up"))
	_, err := r.call(soon(t), "echo", `{"text":"pay"}`)
	if !errors.Is(err, wire.ErrOutcomeUnknown) || errors.Is(err, wire.ErrNotSent) {
		t.Errorf("got %v", err)
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("the call was made %d times", n)
	}
	if r.must("echo", `{"text":"next"}`) != "next" {
		t.Error("the next call fails")
	}
	if s := r.Status(); s.State != upstream.StateReady {
		t.Errorf("%+v", s)
	}
}
