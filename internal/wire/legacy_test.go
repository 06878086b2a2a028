package wire_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
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

var _ wire.Client = (*wire.SSE)(nil)

// dialSSE starts a conversation over HTTP+SSE, as dial does over streamable HTTP.
func dialSSE(t testing.TB, url string, o wire.HTTPOptions) *wire.SSE {
	t.Helper()
	s, err := tryDialSSE(t, url, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func tryDialSSE(t testing.TB, url string, o wire.HTTPOptions) (*wire.SSE, error) {
	t.Helper()
	o.URL = url
	if o.Client == nil {
		o.Client = &http.Client{Transport: &http.Transport{}}
	}
	if o.Handler == nil {
		o.Handler = func(m wire.Message) { t.Errorf("unexpected message: %s", clip(m.Raw)) }
	}
	if o.Problem == nil {
		o.Problem = func(err error) { t.Errorf("unexpected problem: %v", err) }
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return wire.DialSSE(ctx, o)
}

// legacy is a site of the HTTP+SSE transport: what say is given goes out on the
// one stream.
type legacy struct {
	*site
	say  chan string
	stop chan struct{} // closed: the stream ends
}

func serveSSE(t testing.TB, post func(l *legacy, w http.ResponseWriter, r *http.Request, in request)) *legacy {
	t.Helper()
	l := &legacy{say: make(chan string), stop: make(chan struct{})}
	l.site = serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
		if r.Method == http.MethodPost {
			post(l, w, r, in)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "event: endpoint\r\ndata: /post?session=1\r\n\r\n")
		_ = http.NewResponseController(w).Flush()
		for {
			select {
			case m := <-l.say:
				sendEvents(w, m)
			case <-l.stop:
				return
			case <-r.Context().Done():
				return
			}
		}
	})
	return l
}

func accepted(w http.ResponseWriter) {
	w.WriteHeader(http.StatusAccepted)
	_ = http.NewResponseController(w).Flush()
}

// The two real servers of this transport in Go.
func TestSSETalksToRealServers(t *testing.T) {
	cancelled := make(chan struct{}, 1)
	sdk, mark := sdkServer(cancelled), markServer()
	// mcp-go drops what its queue of 100 cannot hold; nothing but that may be lost
	mark.AddTool(mark3.NewTool("hang"), func(ctx context.Context, _ mark3.CallToolRequest) (*mark3.CallToolResult, error) {
		<-ctx.Done()
		cancelled <- struct{}{}
		return nil, ctx.Err()
	})
	for name, c := range map[string]struct {
		handler       http.Handler
		path          string
		notifications int
	}{
		"go-sdk": {mcp.NewSSEHandler(func(*http.Request) *mcp.Server { return sdk }, nil), "", 50},
		"mcp-go": {server.NewSSEServer(mark), "/sse", 20},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(c.handler)
			t.Cleanup(s.Close)
			var got list[string]
			var client atomic.Pointer[wire.SSE]
			h := dialSSE(t, s.URL+c.path, wire.HTTPOptions{Handler: func(m wire.Message) {
				if m.IsRequest() {
					if err := client.Load().Send(context.Background(), wire.Result(m.ID, json.RawMessage(`{"action":"decline"}`))); err != nil {
						t.Error(err)
					}
					return
				}
				got.add(string(m.Params))
			}, Problem: func(err error) { // mcp-go answers a call that was cancelled
				if !strings.Contains(err.Error(), "nobody waits for") {
					t.Error(err)
				}
			}})
			client.Store(h)
			handshake(t, h)
			if text := callTool(t, h, "echo", `{"s":"hä\u0061"}`); !strings.Contains(text, "hä") {
				t.Errorf("echo: %q", text)
			}
			if m, err := h.Call(t.Context(), "tools/call", json.RawMessage(`{"name":"none"}`)); err != nil || m.Error == nil {
				t.Errorf("an unknown tool: %s, %v", m.Raw, err)
			}
			if text := callTool(t, h, "progress", `{}`); text != "done" {
				t.Errorf("progress: %q", text)
			}
			wait(t, "the notifications", func() bool { return len(got.all()) == c.notifications })
			if name == "go-sdk" {
				if text := callTool(t, h, "ask", `{}`); text != "decline" {
					t.Errorf("ask: %q", text)
				}
				var he *wire.HTTPError
				if m, err := h.Call(t.Context(), "no/such", nil); !errors.As(err, &he) || he.Status != http.StatusBadRequest {
					t.Errorf("an unknown method: %s, %v", m.Raw, err)
				}
			}
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					want := fmt.Sprintf("n%d", i)
					if text := callTool(t, h, "echo", `{"s":"`+want+`"}`); !strings.Contains(text, want) {
						t.Errorf("echo %s: %q", want, text)
					}
				})
			}
			wg.Wait()
			ctx, cancel := context.WithCancel(t.Context())
			call := start(ctx, h, "tools/call", `{"name":"hang","arguments":{}}`)
			time.Sleep(50 * time.Millisecond)
			cancel()
			if r := receive(t, "the cancelled call", call); !errors.Is(r.err, context.Canceled) {
				t.Errorf("the cancelled call: %v", r.err)
			}
			receive(t, "the handler's own view", cancelled)
			within(t, "Close", h.Close)
		})
	}
}

// Messages carry credentials: they go to the server that was configured only.
func TestTheEndpointMustBeTheServersOwn(t *testing.T) {
	t.Parallel()
	var given atomic.Value
	s := serve(t, func(w http.ResponseWriter, r *http.Request, _ request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "event: endpoint\ndata: %s\n\n", given.Load())
		_ = http.NewResponseController(w).Flush()
		hang(r)
	})
	_, port, _ := strings.Cut(strings.TrimPrefix(s.URL, "http://"), ":")
	for endpoint, ok := range map[string]bool{
		"/messages?id=1": true, "?id=1": true, "messages": true, s.URL + "/x": true, strings.ToUpper(s.URL[:4]) + s.URL[4:] + "/x": true,
		"http://evil.example/messages": false, "//evil.example/messages": false, "https://127.0.0.1:" + port + "/x": false, "http://127.0.0.1/x": false,
		"http://user@evil.example:" + port + "/": false, "http://[::1": false, "file:///etc/passwd": false,
	} {
		given.Store(endpoint)
		h, err := tryDialSSE(t, s.URL+"/sse", wire.HTTPOptions{})
		if (err == nil) != ok {
			t.Errorf("%s: %v", endpoint, err)
		}
		if err == nil {
			h.Close()
		}
	}
}

func TestSameOrigin(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"https://a.example/x", "https://A.example:443/y?z", true},
		{"http://a.example", "http://a.example:80", true},
		{"http://a.example", "https://a.example", false},
		{"https://a.example:8443", "https://a.example", false},
		{"https://a.example", "https://b.a.example", false},
	} {
		a, err := url.Parse(c.a)
		if err != nil {
			t.Fatal(err)
		}
		b, err := url.Parse(c.b)
		if err != nil {
			t.Fatal(err)
		}
		if wire.SameOrigin(a, b) != c.same {
			t.Errorf("%s and %s: %v", c.a, c.b, !c.same)
		}
	}
}

func TestDialSSEFailsWhereThereIsNoSuchTransport(t *testing.T) {
	for name, reply := range map[string]func(w http.ResponseWriter, r *http.Request){
		"404":             func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not found", http.StatusNotFound) },
		"a page":          func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"an empty stream": func(w http.ResponseWriter, _ *http.Request) { sendEvents(w) },
		"no endpoint": func(w http.ResponseWriter, _ *http.Request) {
			sendEvents(w, fmt.Sprintf(progress, 1))
		},
		"an endless endpoint": func(w http.ResponseWriter, _ *http.Request) {
			sendEvents(w)
			_, _ = io.WriteString(w, "event: endpoint\ndata: "+strings.Repeat("x", 5000))
		},
	} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request, _ request) { reply(w, r) })
		if _, err := tryDialSSE(t, s.URL, wire.HTTPOptions{MaxMessage: 1000}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	silent := serve(t, func(w http.ResponseWriter, r *http.Request, _ request) { sendEvents(w); hang(r) })
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
	if _, err := wire.DialSSE(ctx, wire.HTTPOptions{URL: silent.URL, Client: &http.Client{Transport: &http.Transport{}}}); !errors.Is(err, why) {
		t.Errorf("a server that says nothing: %v", err)
	}
}

func TestWhatAnSSEServerAccepts(t *testing.T) {
	t.Parallel()
	s := serveSSE(t, func(l *legacy, w http.ResponseWriter, r *http.Request, in request) {
		if r.URL.RequestURI() != "/post?session=1" || r.Header.Get("Authorization") != "Bearer x" {
			t.Errorf("a POST to %s with %v", r.URL.RequestURI(), r.Header)
		}
		switch in.msg.Method {
		case "before": // the answer comes before the POST is accepted
			l.say <- answer(in.msg.ID, `"early"`)
			accepted(w)
		case "within": // the POST is accepted only when all is done
			l.say <- fmt.Sprintf(progress, 1)
			l.say <- answer(in.msg.ID, `"all"`)
			hang(r)
		case "refused":
			http.Error(w, "no such method", http.StatusBadRequest)
		case "failed":
			sendJSON(w, http.StatusBadRequest, `{"jsonrpc":"2.0","id":null,"error":{"code":-32602,"message":"m"}}`)
		case "dropped":
			hangUp(w)
		case "noisy":
			accepted(w)
			for _, m := range []string{"no JSON", `{"level":"info"}`, answer(json.RawMessage("4711"), `1`), `[1]`} {
				l.say <- m
			}
			l.say <- answer(in.msg.ID, `"heard"`)
		default:
			accepted(w)
		}
	})
	var got, problems list[string]
	h := dialSSE(t, s.URL+"/sse", wire.HTTPOptions{
		Header: http.Header{"Authorization": {"Bearer x"}}, Handler: func(m wire.Message) { got.add(m.Method) }, Problem: func(err error) { problems.add(err.Error()) },
	})
	for method, want := range map[string]string{"before": `"early"`, "within": `"all"`, "noisy": `"heard"`} {
		if m, err := h.Call(t.Context(), method, nil); err != nil || string(m.Result) != want {
			t.Errorf("%s: %s, %v", method, m.Raw, err)
		}
	}
	if len(problems.all()) != 4 || !slices.Equal(got.all(), []string{"notifications/progress"}) {
		t.Errorf("problems: %s; messages: %s", problems.all(), got.all())
	}
	var he *wire.HTTPError
	if _, err := h.Call(t.Context(), "refused", nil); !errors.As(err, &he) || he.Status != 400 || errors.Is(err, wire.ErrNotSent) {
		t.Errorf("refused: %v", err)
	}
	if m, err := h.Call(t.Context(), "failed", nil); err != nil || wire.ErrorOf(m).Code != -32602 {
		t.Errorf("failed: %s, %v", m.Raw, err)
	}
	if _, err := h.Call(t.Context(), "dropped", nil); !errors.Is(err, wire.ErrOutcomeUnknown) {
		t.Errorf("dropped: %v", err)
	}
	if err := h.Send(t.Context(), []byte(`{"jsonrpc":"2.0","method":"notifications/x"}`)); err != nil {
		t.Error(err)
	}
	// given up
	why := errors.New("changed its mind")
	ctx, cancel := context.WithCancelCause(t.Context())
	call := start(ctx, h, "hang", "")
	wait(t, "the request", func() bool { return len(s.of("POST", "hang")) == 1 })
	cancel(why)
	if r := receive(t, "the call", call); !errors.Is(r.err, why) || errors.Is(r.err, wire.ErrNotSent) {
		t.Errorf("given up: %v", r.err)
	}
	wait(t, "the notice", func() bool { return len(s.of("POST", "notifications/cancelled")) == 1 })
	// the end of the stream is the end of it all
	call = start(t.Context(), h, "hang", "")
	wait(t, "the request", func() bool { return len(s.of("POST", "hang")) == 2 })
	close(s.stop)
	if r := receive(t, "the call", call); !errors.Is(r.err, wire.ErrOutcomeUnknown) {
		t.Errorf("at the end of the stream: %v", r.err)
	}
	receive(t, "Done", h.Done())
	if _, err := h.Call(t.Context(), "x", nil); !errors.Is(err, wire.ErrNotSent) {
		t.Errorf("after the end: %v", err)
	}
	if err := h.Send(t.Context(), []byte(`{}`)); err == nil {
		t.Error("Send after the end returns nil")
	}
	h.Close()
	if _, err := h.Call(t.Context(), "x", nil); !errors.Is(err, wire.ErrNotSent) || !errors.Is(err, wire.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Closing wakes every call, and nothing runs on (see TestMain).
func TestClosingAnSSEConversationEndsItsCalls(t *testing.T) {
	t.Parallel()
	s := serveSSE(t, func(_ *legacy, w http.ResponseWriter, r *http.Request, in request) {
		if in.msg.Method == "posting" {
			hang(r)
		}
		accepted(w)
	})
	h := dialSSE(t, s.URL, wire.HTTPOptions{})
	calls := []<-chan result{start(context.Background(), h, "posting", ""), start(context.Background(), h, "waiting", "")}
	wait(t, "the requests", func() bool { return len(s.of("POST", "posting"))+len(s.of("POST", "waiting")) == 2 })
	within(t, "Close", h.Close)
	for _, c := range calls {
		if r := receive(t, "a call", c); !errors.Is(r.err, wire.ErrClosed) || errors.Is(r.err, wire.ErrNotSent) {
			t.Errorf("a call under way: %v", r.err)
		}
	}
	within(t, "a second Close", h.Close)
}
