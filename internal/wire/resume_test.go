package wire_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// hangUp breaks the connection, as a proxy in between does that has had enough.
func hangUp(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = conn.Close()
	}
}

// counted sends messages as events with an id each: 1, 2, 3 …
func counted(w http.ResponseWriter, first int, messages ...string) {
	w.Header().Set("Content-Type", "text/event-stream")
	for i, m := range messages {
		fmt.Fprintf(w, "id: %d\ndata: %s\n\n", first+i, m)
	}
	_ = http.NewResponseController(w).Flush()
}

// The stream of a POST is left at event 2, however that happens, and the rest is
// fetched by GET: nothing comes twice, nothing is lost, all before the answer.
func TestACallGoesOnWhereItsStreamBroke(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(w http.ResponseWriter){
		"the server closes it":     func(http.ResponseWriter) {},
		"the connection breaks":    hangUp,
		"in the middle of event 3": func(w http.ResponseWriter) { _, _ = io.WriteString(w, "id: 3\ndata: {"); hangUp(w) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := make(chan json.RawMessage, 1)
			s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
				if r.Method == http.MethodPost {
					id <- in.msg.ID
					counted(w, 1, fmt.Sprintf(progress, 1), fmt.Sprintf(progress, 2))
					leave(w)
					return
				}
				counted(w, 3, fmt.Sprintf(progress, 3), answer(<-id, `"late"`))
			})
			var got []string
			h := dial(t, s.URL, wire.HTTPOptions{Handler: func(m wire.Message) { got = append(got, string(m.Params)) }})
			m, err := h.Call(t.Context(), "tools/call", json.RawMessage(`{}`))
			if err != nil || string(m.Result) != `"late"` {
				t.Fatalf("Call = %s, %v", m.Raw, err)
			}
			if fmt.Sprint(got) != `[{"i":1} {"i":2} {"i":3}]` {
				t.Errorf("handled: %s", got)
			}
			if posts, gets := s.of("POST", "tools/call"), s.of("GET", ""); len(posts) != 1 || len(gets) != 1 || gets[0].header.Get("Last-Event-Id") != "2" {
				t.Errorf("%d POSTs; GETs: %v", len(posts), gets)
			}
		})
	}
}

// SSE polling of revision 2025-11-25: an event with an id and no data, a time to
// wait, and the end of the stream, as often as the server likes.
func TestAServerMayHaveACallPolled(t *testing.T) {
	t.Parallel()
	const rounds, retry = 8, 150 * time.Millisecond // more rounds than attempts without progress
	var id atomic.Value
	var last atomic.Int64
	s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
		n := 0
		if r.Method == http.MethodPost {
			id.Store(in.msg.ID)
		} else {
			if early := retry - time.Since(time.UnixMicro(last.Load())); early > 0 {
				t.Errorf("asked %v before the time", early)
			}
			_, _ = fmt.Sscan(r.Header.Get("Last-Event-Id"), &n)
		}
		w.Header().Set("Content-Type", "text/event-stream")
		if n == rounds {
			sendEvents(w, answer(id.Load().(json.RawMessage), `"done"`))
			return
		}
		fmt.Fprintf(w, "id: %d\nretry: %d\ndata:\n\n", n+1, retry.Milliseconds())
		last.Store(time.Now().UnixMicro())
	})
	m, err := dial(t, s.URL, wire.HTTPOptions{}).Call(t.Context(), "tools/call", nil)
	if err != nil || string(m.Result) != `"done"` {
		t.Errorf("Call = %s, %v", m.Raw, err)
	}
	if n := len(s.of("GET", "")); n != rounds {
		t.Errorf("%d GETs, want %d", n, rounds)
	}
}

// An answer that can no longer be had: the call was made, and that is all that
// haldir knows. It is not made again.
func TestTheOutcomeOfACallWhoseStreamIsLostIsUnknown(t *testing.T) {
	t.Parallel()
	withID := func(w http.ResponseWriter) { counted(w, 1, fmt.Sprintf(progress, 1)); hangUp(w) }
	for name, c := range map[string]struct {
		leave   func(w http.ResponseWriter) // the POST
		resume  func(w http.ResponseWriter) // the GET
		gets    int
		expires bool
	}{
		"it has no ids and breaks": {leave: func(w http.ResponseWriter) { sendEvents(w, fmt.Sprintf(progress, 1)); hangUp(w) }},
		"it has no ids and ends":   {leave: func(w http.ResponseWriter) { sendEvents(w, fmt.Sprintf(progress, 1)) }},
		"no headers came":          {leave: hangUp},
		"the server keeps nothing": {withID, func(w http.ResponseWriter) { http.Error(w, "stream replay unsupported", http.StatusBadRequest) }, 1, false}, // go-sdk
		"it has no GET":            {withID, func(w http.ResponseWriter) { w.WriteHeader(http.StatusMethodNotAllowed) }, 1, false},
		"it fails each time":       {withID, func(w http.ResponseWriter) { http.Error(w, "restarting", http.StatusServiceUnavailable) }, 5, false},
		"it brings nothing new":    {withID, func(w http.ResponseWriter) { counted(w, 1) }, 5, false},
		"the session is gone":      {withID, func(w http.ResponseWriter) { http.Error(w, "session not found", http.StatusNotFound) }, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
				switch {
				case in.msg.Method == "initialize":
					w.Header().Set("Mcp-Session-Id", "s-1")
					sendJSON(w, 200, answer(in.msg.ID, `{}`))
				case r.Method == http.MethodPost:
					c.leave(w)
				case r.Method == http.MethodGet:
					c.resume(w)
				}
			})
			h := dial(t, s.URL, wire.HTTPOptions{Handler: func(wire.Message) {}})
			if _, err := h.Call(t.Context(), "initialize", nil); err != nil {
				t.Fatal(err)
			}
			_, err := h.Call(t.Context(), "tools/call", nil)
			if !errors.Is(err, wire.ErrOutcomeUnknown) || errors.Is(err, wire.ErrNotSent) || errors.Is(err, wire.ErrSessionExpired) {
				t.Errorf("Call: %v", err)
			}
			if posts, gets := len(s.of("POST", "tools/call")), len(s.of("GET", "")); posts != 1 || gets != c.gets {
				t.Errorf("%d POSTs, %d GETs of %d", posts, gets, c.gets)
			}
			if expired := errors.Is(h.Err(), wire.ErrSessionExpired); expired != c.expires {
				t.Errorf("the conversation: %v", h.Err())
			}
		})
	}
}

// A disconnect is no cancellation: that takes a notice, also while haldir waits
// to ask again.
func TestACallThatWaitsToGoOnCanBeCancelled(t *testing.T) {
	t.Parallel()
	left := make(chan struct{}, 1)
	s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
		if !in.msg.IsRequest() {
			w.WriteHeader(http.StatusAccepted)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "id: 1\nretry: 3600000\ndata:\n\n")
		left <- struct{}{}
	})
	h := dial(t, s.URL, wire.HTTPOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	call := start(ctx, h, "tools/call", "")
	receive(t, "the end of the stream", left)
	cancel()
	if r := receive(t, "the call", call); !errors.Is(r.err, context.Canceled) {
		t.Errorf("the call: %v", r.err)
	}
	wait(t, "the notice", func() bool { return len(s.of("POST", "notifications/cancelled")) == 1 })
}

func TestTheGETStreamGoesOnWhereItBroke(t *testing.T) {
	t.Parallel()
	var opened atomic.Int64
	s := serve(t, func(w http.ResponseWriter, r *http.Request, _ request) {
		switch opened.Add(1) {
		case 1:
			counted(w, 1, fmt.Sprintf(progress, 1), fmt.Sprintf(progress, 2))
			hangUp(w)
		case 2:
			http.Error(w, "Conflict: Only one SSE stream is allowed per session", http.StatusConflict) // it has not noticed yet
		case 3:
			counted(w, 3, fmt.Sprintf(progress, 3), strings.Repeat("x", 5000)) // more than haldir takes
			hang(r)
		case 4:
			http.Error(w, "failed to replay events", http.StatusBadRequest) // they are too old
		default:
			counted(w, 9, fmt.Sprintf(progress, 4))
			hang(r)
		}
	})
	got := make(chan string, 10)
	var problems list[error]
	h := dial(t, s.URL, wire.HTTPOptions{Handler: func(m wire.Message) { got <- string(m.Params) }, Problem: problems.add, MaxMessage: 1000})
	h.Listen()
	for i := range 4 {
		if p := receive(t, "a notification", got); p != fmt.Sprintf(`{"i":%d}`, i+1) {
			t.Errorf("notification %d is %s", i+1, p)
		}
	}
	var asked []string
	for _, in := range s.of("GET", "") {
		asked = append(asked, in.header.Get("Last-Event-Id"))
	}
	if fmt.Sprint(asked) != "[ 2 2 4 ]" {
		t.Errorf("Last-Event-ID: %q", asked)
	}
	if !strings.Contains(fmt.Sprint(problems.all()), "may be lost") {
		t.Errorf("problems: %v", problems.all())
	}
}

// The same with a real server: go-sdk, which keeps the events of its streams,
// over a line that breaks every 2 KiB.
func TestTheGoSDKsStreamsAreResumed(t *testing.T) {
	t.Parallel()
	sdk := sdkServer(nil)
	s := httptest.NewServer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return sdk },
		&mcp.StreamableHTTPOptions{EventStore: mcp.NewMemoryEventStore(nil)}))
	t.Cleanup(s.Close)
	var got []string
	line := &flaky{RoundTripper: &http.Transport{}}
	h := dial(t, s.URL, wire.HTTPOptions{Client: &http.Client{Transport: line}, Handler: func(m wire.Message) { got = append(got, string(m.Params)) }})
	handshake(t, h)
	if text := callTool(t, h, "progress", `{}`); text != "done" {
		t.Errorf("the answer: %q", text)
	}
	for i, p := range got {
		if !strings.Contains(p, fmt.Sprintf(`"progress":%d`, i)) {
			t.Errorf("notification %d is %s", i, p)
		}
	}
	if len(got) != 50 || line.resumed.Load() < 2 {
		t.Errorf("%d of 50 notifications, %d times resumed", len(got), line.resumed.Load())
	}
}

// flaky lets 2 KiB of a stream through, then it breaks.
type flaky struct {
	http.RoundTripper
	resumed atomic.Int64
}

func (f *flaky) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Header.Get("Last-Event-Id") != "" {
		f.resumed.Add(1)
	}
	resp, err := f.RoundTripper.RoundTrip(r)
	if err == nil && resp.Header.Get("Content-Type") == "text/event-stream" {
		resp.Body = &cut{resp.Body, 2 << 10}
	}
	return resp, err
}

type cut struct {
	io.ReadCloser
	left int
}

func (c *cut) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, errors.New("the line broke")
	}
	n, err := c.ReadCloser.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// Only what says that the session is unknown makes haldir begin another and call
// again. All else is the server's answer: a call that was carried out and failed
// must not be made twice.
func TestOnlyAnUnknownSessionIsTakenForOne(t *testing.T) {
	t.Parallel()
	const rpc, text = "application/json", "text/plain"
	for name, c := range map[string]struct {
		status      int
		contentType string
		body        string // %s is the id
		expired     bool
	}{
		"server-everything":      {400, rpc, `{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID provided"}}`, true},
		"TypeScript examples":    {400, rpc, `{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID provided"},"id":null}`, true},
		"a fresh TS transport":   {400, rpc, `{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: Server not initialized"},"id":null}`, true},
		"Python SDK up to 1.25":  {400, text, "Bad Request: No valid session ID provided", true},
		"TypeScript SDK, README": {400, text, "Invalid or missing session ID\n", true},
		"a 404 without a body":   {404, text, "", true},

		"a header that is missing":   {400, rpc, `{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: Mcp-Session-Id header is required"},"id":null}`, false},
		"a version not supported":    {400, rpc, `{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: Unsupported protocol version: 2025-11-25"},"id":null}`, false},
		"a request it cannot read":   {400, rpc, `{"jsonrpc":"2.0","error":{"code":-32700,"message":"Parse error"},"id":null}`, false},
		"an error without id":        {400, rpc, `{"jsonrpc":"2.0","error":{"code":-32602,"message":"amount must be positive"},"id":null}`, false},
		"a tool's own words":         {400, rpc, `{"jsonrpc":"2.0","error":{"code":-32000,"message":"Session not found"},"id":%s}`, false},
		"words that only mention it": {400, text, "the browser says: session not found", false},
		"an unknown method by 404":   {404, rpc, `{"jsonrpc":"2.0","error":{"code":-32601,"message":"Method not found"},"id":%s}`, false},
		"500 with the words":         {500, text, "session not found", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
				if in.msg.Method == "initialize" {
					w.Header().Set("Mcp-Session-Id", "s-1")
					sendJSON(w, 200, answer(in.msg.ID, `{}`))
					return
				}
				w.Header().Set("Content-Type", c.contentType)
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, strings.ReplaceAll(c.body, "%s", string(in.msg.ID)))
			})
			h := dial(t, s.URL, wire.HTTPOptions{})
			if _, err := h.Call(t.Context(), "initialize", nil); err != nil {
				t.Fatal(err)
			}
			m, err := h.Call(t.Context(), "tools/call", nil)
			if errors.Is(err, wire.ErrSessionExpired) != c.expired {
				t.Errorf("Call = %s, %v", m.Raw, err)
			}
			if !c.expired && c.contentType == rpc && (err != nil || string(m.Raw) != strings.ReplaceAll(c.body, "%s", string(m.ID))) {
				t.Errorf("not passed on as it came: %s, %v", m.Raw, err)
			}
			if n := len(s.of("POST", "tools/call")); n != 1 {
				t.Errorf("%d POSTs", n)
			}
		})
	}
}
