package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream"
)

func TestHTTPHeaders(t *testing.T) {
	t.Setenv("HALDIR_TEST_TOKEN", "t0ken")
	srv := mcptest.Script{Stateful: true}.NewHTTP(t)
	cfg := srv.Upstream("up")
	cfg.Bearer = "${env:HALDIR_TEST_TOKEN}"
	cfg.Headers = []config.Header{{Name: "X-Api-Key", Value: "k"}, {Name: "X-Api-Key", Value: "${root}"}}
	r := ready(t, cfg)
	r.must("echo", "{}")
	eventually(t, "the event stream is asked for", func() bool {
		return slices.ContainsFunc(srv.Requests(), func(req *http.Request) bool { return req.Method == http.MethodGet })
	})
	within(t, 2*time.Second, "Close", r.Close)
	var methods []string
	for i, req := range srv.Requests() {
		methods = append(methods, req.Method)
		if got := req.Header.Get("Authorization"); got != "Bearer t0ken" {
			t.Errorf("%s: Authorization: %s", req.Method, got)
		}
		if got := req.Header.Values("X-Api-Key"); !slices.Equal(got, []string{"k", "/root/of/it"}) {
			t.Errorf("%s: X-Api-Key: %s", req.Method, got)
		}
		// The first asks what the server is, the second shakes hands.
		if got := req.Header.Get("Mcp-Session-Id"); (i > 1) != (got == "session-1") {
			t.Errorf("request %d, %s: session %q", i, req.Method, got)
		}
		if got := req.Header.Get("Mcp-Protocol-Version"); (i > 1) != (got == "2025-11-25") || (i == 0) != (got == "2026-07-28") {
			t.Errorf("request %d, %s: protocol version %q", i, req.Method, got)
		}
		if accept := req.Header.Get("Accept"); req.Method == http.MethodPost && (!strings.Contains(accept, "application/json") || !strings.Contains(accept, "text/event-stream")) {
			t.Errorf("Accept: %s", accept)
		}
	}
	if !slices.Contains(methods, http.MethodGet) || methods[len(methods)-1] != http.MethodDelete {
		t.Errorf("the requests: %s", methods)
	}
}

// Nobody listens: it certainly was not sent, and the error says where to.
func TestAServerThatIsNotThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	r := start(t, config.Upstream{Name: "up", URL: "http://" + addr + "/mcp", Connect: time.Second})
	if s := r.Status(); s.State == upstream.StateReady || s.Err == nil {
		t.Errorf("%+v", s)
	}
	_, err = r.call(soon(t), "echo", "{}")
	if !errors.Is(err, wire.ErrNotSent) || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), `"up"`) {
		t.Errorf("got %v", err)
	}
}

// A server that takes connections and says nothing is given up after the time
// to connect, and Close does not wait for it.
func TestAServerThatTakesConnectionsAndSaysNothing(t *testing.T) {
	srv := mcptest.Script{Start: "hang"}.NewHTTP(t)
	cfg := srv.Upstream("up")
	cfg.Connect = 300 * time.Millisecond
	began := time.Now()
	r := start(t, cfg)
	if s := r.Status(); s.Err == nil || !strings.Contains(s.Err.Error(), "timeouts.connect") {
		t.Errorf("after %v: %+v", time.Since(began), s)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	cfg.Connect = time.Minute
	r = open(t, cfg)
	r.Start(upstream.Host{})
	time.Sleep(50 * time.Millisecond)
	within(t, 3*time.Second, "Close", r.Close)
}

// A server that vanishes and comes back under the same address.
func TestAServerThatComesBack(t *testing.T) {
	srv := mcptest.Script{}.NewHTTP(t)
	var down atomic.Bool
	srv.Before = func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
		if down.Load() {
			http.Error(w, "maintenance", http.StatusServiceUnavailable)
		}
		return down.Load()
	}
	down.Store(true)
	r := start(t, srv.Upstream("up"))
	if s := r.Status(); s.Err == nil || !strings.Contains(s.Err.Error(), "503") || !strings.Contains(s.Err.Error(), "maintenance") {
		t.Errorf("%+v", s)
	}
	down.Store(false)
	began := time.Now()
	eventually(t, "it is connected", func() bool {
		_, err := r.call(soon(t), "echo", "{}")
		return err == nil
	})
	t.Logf("connected %v after it came back", time.Since(began).Round(time.Millisecond))
	if len(r.Catalogue().Tools) != len(mcptest.Verbs) {
		t.Errorf("%+v", r.Catalogue())
	}
}

// The session is gone while haldir waits for an answer to tools/list: calls must
// not wait for ever for the new one.
func TestASessionThatIsForgottenWhileTheToolsAreAskedFor(t *testing.T) {
	srv := mcptest.Script{Stateful: true}.NewHTTP(t)
	var lists atomic.Int64
	srv.Before = func(_ http.ResponseWriter, req *http.Request, body []byte) bool {
		if strings.Contains(string(body), `"tools/list"`) && lists.Add(1) == 2 {
			<-req.Context().Done() // a connection that a firewall has forgotten
			return true
		}
		return false
	}
	r := ready(t, srv.Upstream("up"))
	r.must("retool", `{"n":1,"tools":[{"name":"echo","inputSchema":{"type":"object"}}]}`)
	eventually(t, "tools/list is asked again", func() bool { return lists.Load() == 2 })
	srv.Forget()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	m, err := r.call(ctx, "echo", `{"text":"x"}`)
	if err != nil {
		t.Fatalf("a call in the new session: %v; the upstream is %+v", err, r.Status())
	}
	if text(t, m) != "x" {
		t.Errorf("got %s", m.Raw)
	}
}

func TestManyCallsInAForgottenSession(t *testing.T) {
	srv := mcptest.Script{Stateful: true}.NewHTTP(t)
	r := ready(t, srv.Upstream("up"))
	var wg sync.WaitGroup
	var failed atomic.Int64
	for round := range 5 {
		srv.Forget()
		for i := range 20 {
			wg.Go(func() {
				want := fmt.Sprintf("%d-%d", round, i)
				m, err := r.call(soon(t), "echo", `{"text":"`+want+`"}`)
				if err != nil || text(t, m) != want {
					failed.Add(1)
					t.Logf("round %d: %s, %v", round, m.Raw, err)
				}
			})
		}
		wg.Wait()
	}
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of 100 calls failed", n)
	}
	calls := 0
	for _, m := range srv.Seen() {
		if strings.Contains(m, `"tools/call"`) {
			calls++
		}
	}
	if calls != 100 {
		t.Errorf("the server handled %d calls, want 100", calls)
	}
}

// A server that forgets every session at once: one more try, then an error.
func TestAServerThatForgetsEverySession(t *testing.T) {
	srv := mcptest.Script{Stateful: true}.NewHTTP(t)
	var calls atomic.Int64
	srv.Before = func(w http.ResponseWriter, _ *http.Request, body []byte) bool {
		if strings.Contains(string(body), `"tools/call"`) {
			calls.Add(1)
			http.Error(w, "session not found", http.StatusNotFound)
			return true
		}
		return false
	}
	r := ready(t, srv.Upstream("up"))
	within(t, 5*time.Second, "a call", func() {
		if _, err := r.call(context.Background(), "echo", "{}"); !errors.Is(err, wire.ErrSessionExpired) || !strings.Contains(err.Error(), `"up"`) {
			t.Errorf("got %v", err)
		}
	})
	if n := calls.Load(); n != 2 {
		t.Errorf("the call was made %d times, want 2", n)
	}
}

// A server that refuses a call for its session may have carried it out: that it
// cannot be reached again, or that the host gives up then, does not give the hold back.
func TestACallThatLeftInAForgottenSessionIsNoCallThatNeverDid(t *testing.T) {
	for name, tt := range map[string]struct {
		cancelled bool
		again     func(w http.ResponseWriter, req *http.Request) // what is said to whatever comes after the call
	}{
		"the server is gone": {false, func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "restarting", http.StatusServiceUnavailable)
		}},
		"the host cancels": {true, func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }},
	} {
		t.Run(name, func(t *testing.T) {
			srv := mcptest.Script{Stateful: true}.NewHTTP(t)
			ctx, cancel := context.WithCancelCause(soon(t))
			defer cancel(nil)
			var left atomic.Bool
			srv.Before = func(w http.ResponseWriter, req *http.Request, body []byte) bool {
				switch {
				case strings.Contains(string(body), `"tools/call"`):
					left.Store(true)
					http.Error(w, "session not found", http.StatusNotFound)
				case left.Load() && req.Method == http.MethodPost:
					if tt.cancelled {
						cancel(errors.New("the host has cancelled it"))
					}
					tt.again(w, req)
				default:
					return false
				}
				return true
			}
			r := ready(t, srv.Upstream("up"))
			_, err := r.call(ctx, "echo", "{}")
			if err == nil || errors.Is(err, wire.ErrNotSent) || !errors.Is(err, wire.ErrOutcomeUnknown) || !left.Load() {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Connections are used again: a thousand calls do not make a thousand.
func TestConnectionsAreReused(t *testing.T) {
	for _, sse := range []bool{false, true} {
		var mu sync.Mutex
		remotes := map[string]bool{}
		srv := mcptest.Script{SSE: sse}.NewHTTP(t)
		srv.Before = func(_ http.ResponseWriter, req *http.Request, _ []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			remotes[req.RemoteAddr] = true
			return false
		}
		r := ready(t, srv.Upstream("up"))
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				for range 50 {
					r.must("echo", `{"text":"x"}`)
				}
			})
		}
		wg.Wait()
		t.Logf("events %v: %d connections for 500 calls, 10 at a time", sse, len(remotes))
		if len(remotes) > 30 {
			t.Errorf("events %v: %d connections", sse, len(remotes))
		}
	}
}

// Credentials do not travel to another server, whatever this one says.
func TestARedirectElsewhereGetsNoCredentials(t *testing.T) {
	var hits atomic.Int64
	thief := mcptest.Script{}.NewHTTP(t)
	thief.Before = func(http.ResponseWriter, *http.Request, []byte) bool { hits.Add(1); return false }
	srv := mcptest.Script{}.NewHTTP(t)
	srv.Before = func(w http.ResponseWriter, req *http.Request, _ []byte) bool {
		http.Redirect(w, req, thief.URL+"/mcp", http.StatusTemporaryRedirect)
		return true
	}
	cfg := srv.Upstream("up")
	cfg.Bearer, cfg.Headers = "secret", []config.Header{{Name: "X-Api-Key", Value: "secret"}}
	cfg.Connect = 2 * time.Second
	r := start(t, cfg)
	if s := r.Status(); s.State == upstream.StateReady || s.Err == nil || strings.Contains(s.Err.Error(), "secret") {
		t.Errorf("%+v", s)
	}
	if n := hits.Load(); n != 0 {
		t.Errorf("the other server got %d requests", n)
	}
}

// What an HTTP server says when it fails is shown to people and models.
func TestWhatAFailingServerSaysIsCleanedAndShort(t *testing.T) {
	srv := mcptest.Script{}.NewHTTP(t)
	srv.Before = func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
		http.Error(w, "boom \x1b[31mred\x1b[0m\r\n\u202e"+strings.Repeat("x", 1<<20), http.StatusTeapot)
		return true
	}
	r := start(t, srv.Upstream("up"))
	err := r.Status().Err
	if err == nil || !strings.Contains(err.Error(), "418") || strings.ContainsAny(err.Error(), "\x1b\u202e\r") || len(err.Error()) > 1500 {
		t.Errorf("got %q", err)
	}
	// The same in an answer of JSON-RPC to the handshake.
	srv = mcptest.Script{}.NewHTTP(t)
	srv.Before = func(w http.ResponseWriter, _ *http.Request, body []byte) bool {
		id, _ := wire.At(body, "id")
		_, _ = w.Write([]byte(`{"jsonrpc":"2.0","id":` + string(id.Value) + `,"error":{"code":-32000,"message":"no \u001b[31mway\u001b[0m \u202e` + strings.Repeat("y", 1<<20) + `"}}`))
		return true
	}
	r = start(t, srv.Upstream("up"))
	err = r.Status().Err
	if err == nil || !strings.Contains(err.Error(), "way") || strings.ContainsAny(err.Error(), "\x1b\u202e") || len(err.Error()) > 1500 {
		t.Errorf("got %q (%d bytes)", clip(err.Error()), len(err.Error()))
	}
}

// A server that ends its event stream at once and asks for another one soon must
// not be asked without pause.
func TestAnEventStreamThatEndsAtOnce(t *testing.T) {
	srv := mcptest.Script{}.NewHTTP(t)
	var gets atomic.Int64
	srv.Before = func(w http.ResponseWriter, req *http.Request, _ []byte) bool {
		if req.Method != http.MethodGet {
			return false
		}
		gets.Add(1)
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = w.Write([]byte("retry: 1\ndata:\n\n"))
		return true
	}
	r := ready(t, srv.Upstream("up"))
	time.Sleep(time.Second)
	t.Logf("%d streams opened in a second", gets.Load())
	if n := gets.Load(); n > 50 {
		t.Errorf("%d event streams were opened in a second", n)
	}
	r.must("echo", `{"text":"x"}`)
}
