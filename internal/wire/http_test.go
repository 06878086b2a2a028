package wire_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/haldir-mcp/haldir/internal/wire"
)

var _ wire.Client = (*wire.HTTP)(nil)

// site is an MCP endpoint in the hands of the test.
type site struct {
	*httptest.Server
	conns    atomic.Int64 // connections opened so far
	requests list[request]
}

// request is what came in.
type request struct {
	verb   string
	header http.Header
	body   string
	msg    wire.Message // zero for a GET and a DELETE
}

// serve starts a site. Every request is recorded before the handler sees it. A
// handler may hang on the request's context: the conversation is closed before
// the site is.
func serve(t testing.TB, handle func(w http.ResponseWriter, r *http.Request, in request)) *site {
	t.Helper()
	s := &site{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client gave up in the middle
		}
		in := request{verb: r.Method, header: r.Header.Clone(), body: string(body)}
		if r.Method == http.MethodPost {
			if in.msg, err = wire.ParseStrict(body); err != nil {
				t.Errorf("a POST of %q: %v", clip(body), err)
			}
		}
		s.requests.add(in)
		handle(w, r, in)
	}))
	s.Config.ConnState = connCounter(&s.conns)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func connCounter(n *atomic.Int64) func(net.Conn, http.ConnState) {
	return func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			n.Add(1)
		}
	}
}

// of returns the recorded requests with a verb and, for a POST, a method.
func (s *site) of(verb, method string) []request {
	return slices.DeleteFunc(s.requests.all(), func(r request) bool { return r.verb != verb || r.msg.Method != method })
}

// wait polls until ok, which must come true.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// dial starts a conversation with url. Handler and Problem may be left out:
// nothing may then reach them.
func dial(t testing.TB, url string, o wire.HTTPOptions) *wire.HTTP {
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
	h := wire.NewHTTP(o)
	t.Cleanup(h.Close)
	return h
}

// sendJSON and sendEvents answer a POST in the two ways there are.
func sendJSON(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func sendEvents(w http.ResponseWriter, messages ...string) {
	w.Header().Set("Content-Type", "text/event-stream")
	for _, m := range messages {
		_, _ = io.WriteString(w, "event: message\ndata: "+m+"\n\n")
	}
	_ = http.NewResponseController(w).Flush()
}

// hang returns when the client is gone.
func hang(r *http.Request) { <-r.Context().Done() }

const progress = `{"jsonrpc":"2.0","method":"notifications/progress","params":{"i":%d}}`

func TestHTTPReturnsTheAnswersBytesFromJSONAndFromEvents(t *testing.T) {
	t.Parallel()
	body := ` {"jsonrpc":"2.0","result":{"a":1.0,"a":2,"z":"\u0061` + "\xff" + `"},"x-vendor":[ 1 ],"id":%s } `
	for name, reply := range map[string]func(w http.ResponseWriter, body string){
		"JSON": func(w http.ResponseWriter, body string) { sendJSON(w, 200, body) },
		"JSON with a charset": func(w http.ResponseWriter, body string) {
			w.Header().Set("Content-Type", "application/json; charset=utf-8")
			_, _ = io.WriteString(w, body)
		},
		"JSON in chunks": func(w http.ResponseWriter, body string) {
			w.Header().Set("Content-Type", "application/json")
			for i := range body {
				_, _ = io.WriteString(w, body[i:i+1])
				_ = http.NewResponseController(w).Flush()
			}
		},
		"JSON with status 201": func(w http.ResponseWriter, body string) { sendJSON(w, 201, body) },
		"events":               func(w http.ResponseWriter, body string) { sendEvents(w, body) },
		"events without a type, CRLF, parameters, comments": func(w http.ResponseWriter, body string) {
			w.Header().Set("Content-Type", "Text/Event-Stream; charset=utf-8")
			_, _ = io.WriteString(w, ": ping\r\n\r\nid: 1\r\ndata:\r\n\r\nretry: 5\r\n\r\ndata:"+body+"\r\n\r\n")
		},
		"events of other types before": func(w http.ResponseWriter, body string) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "event: endpoint\ndata: /messages?x=1\n\nevent: ping\ndata: {}\n\ndata: "+body+"\n\n")
		},
		"an event with only a type before": func(w http.ResponseWriter, body string) { // a way to keep a stream alive
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "event: ping\n\ndata: "+body+"\n\n")
		},
		"an event in several data lines": func(w http.ResponseWriter, body string) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: "+strings.Replace(body, ",\"x-vendor", "\ndata: ,\"x-vendor", 1)+"\n\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) { reply(w, fmt.Sprintf(body, in.msg.ID)) })
			h := dial(t, s.URL, wire.HTTPOptions{})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			m, err := h.Call(ctx, "tools/call", json.RawMessage(`{"big":9007199254740993}`))
			if err != nil {
				t.Fatal(err)
			}
			want := strings.TrimSpace(strings.ReplaceAll(body, "%s", `"host"`))
			got := strings.TrimSpace(strings.Replace(string(m.WithID(json.RawMessage(`"host"`))), "\n,\"x-vendor", ",\"x-vendor", 1))
			if got != want {
				t.Errorf("the answer is %q, want %q", got, want)
			}
			in := s.requests.all()[0]
			if string(in.msg.Params) != `{"big":9007199254740993}` || in.msg.Method != "tools/call" {
				t.Errorf("the server got %q", in.body)
			}
			// transports, sending messages: both types MUST be listed
			for k, v := range map[string]string{"Content-Type": "application/json", "Accept": "application/json, text/event-stream"} {
				if in.header.Get(k) != v {
					t.Errorf("%s: %q", k, in.header.Get(k))
				}
			}
			for _, k := range []string{"Mcp-Session-Id", "Mcp-Protocol-Version"} {
				if v := in.header.Values(k); len(v) > 0 {
					t.Errorf("%s before it is known: %q", k, v)
				}
			}
		})
	}
}

func TestSessionVersionAndConfiguredHeadersGoWithEveryLaterRequest(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
		switch {
		case in.msg.Method == "initialize":
			w.Header().Set("Mcp-Session-Id", "s-1")
			sendEvents(w, answer(in.msg.ID, `{}`))
		case in.msg.Method == "hang":
			w.Header().Set("Mcp-Session-Id", "not after initialize")
			sendEvents(w)
			hang(r)
		case in.msg.IsRequest():
			w.Header().Set("Mcp-Session-Id", "not after initialize")
			sendJSON(w, 200, answer(in.msg.ID, `{}`))
		case r.Method == http.MethodGet:
			w.WriteHeader(http.StatusMethodNotAllowed)
		default:
			w.WriteHeader(http.StatusAccepted)
		}
	})
	header := http.Header{"Authorization": {"Bearer x"}, "X-Two": {"a", "b"}, "Mcp-Session-Id": {"mine"}}
	before := header.Clone()
	h := dial(t, s.URL, wire.HTTPOptions{Header: header})
	if _, err := h.Call(t.Context(), "initialize", json.RawMessage(`{}`)); err != nil {
		t.Fatal(err)
	}
	h.SetVersion("2025-11-25")
	if err := h.Send(t.Context(), []byte(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)); err != nil {
		t.Fatal(err)
	}
	h.Listen()
	for range 2 {
		if _, err := h.Call(t.Context(), "tools/list", nil); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	call := start(ctx, h, "hang", "")
	wait(t, "the request", func() bool { return len(s.of("POST", "hang")) == 1 })
	cancel()
	receive(t, "the cancelled call", call)
	wait(t, "the notice and the GET", func() bool {
		return len(s.of("POST", "notifications/cancelled")) == 1 && len(s.of("GET", "")) == 1
	})
	h.Close()
	if got := len(s.of("DELETE", "")); got != 1 {
		t.Errorf("%d DELETEs", got)
	}
	for i, in := range s.requests.all() {
		wantSession, wantVersion := "s-1", "2025-11-25"
		if i == 0 {
			wantSession, wantVersion = "mine", ""
		}
		if got := in.header.Values("Mcp-Session-Id"); len(got) != 1 || got[0] != wantSession {
			t.Errorf("%s %s: session %q, want %q", in.verb, in.msg.Method, got, wantSession)
		}
		if got := in.header.Get("Mcp-Protocol-Version"); got != wantVersion {
			t.Errorf("%s %s: version %q, want %q", in.verb, in.msg.Method, got, wantVersion)
		}
		if in.header.Get("Authorization") != "Bearer x" || !slices.Equal(in.header.Values("X-Two"), []string{"a", "b"}) {
			t.Errorf("%s %s: %v", in.verb, in.msg.Method, in.header)
		}
	}
	if diff := cmp.Diff(before, header); diff != "" {
		t.Errorf("the configured headers were changed: %s", diff)
	}
}

func TestMessagesOnThePOSTStreamAreHandledInOrderBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	const n = 2000
	s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range n {
			fmt.Fprintf(w, "data: "+progress+"\n\n", i)
		}
		sendEvents(w, answer(in.msg.ID, `{}`))
	})
	var got []int // without a lock: the answer comes after
	h := dial(t, s.URL, wire.HTTPOptions{Handler: func(m wire.Message) {
		var p struct{ I int }
		if err := json.Unmarshal(m.Params, &p); err != nil {
			t.Error(err)
		}
		got = append(got, p.I)
	}})
	if _, err := h.Call(t.Context(), "tools/call", nil); err != nil {
		t.Fatal(err)
	}
	if len(got) != n || !slices.IsSorted(got) || got[n-1] != n-1 {
		t.Errorf("%d of %d handled before the answer, in order: %v", len(got), n, slices.IsSorted(got))
	}
}

func TestARequestOnThePOSTStreamCanBeAnsweredWhileTheCallIsUnderWay(t *testing.T) {
	t.Parallel()
	answered := make(chan request, 1)
	s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
		if in.msg.IsResponse() {
			answered <- in
			w.WriteHeader(http.StatusAccepted)
			return
		}
		// the upstream's id equals that of haldir's own request: two id spaces
		sendEvents(w, `{"jsonrpc":"2.0","id":`+string(in.msg.ID)+`,"method":"elicitation/create","params":{}}`)
		a := <-answered
		sendEvents(w, answer(in.msg.ID, string(a.msg.Result)))
	})
	var h *wire.HTTP
	h = dial(t, s.URL, wire.HTTPOptions{Handler: func(m wire.Message) {
		if err := h.Send(context.Background(), wire.Result(m.ID, json.RawMessage(`{"action":"accept"}`))); err != nil {
			t.Error(err)
		}
	}})
	m, err := h.Call(t.Context(), "tools/call", nil)
	if err != nil || string(m.Result) != `{"action":"accept"}` {
		t.Errorf("Call = %s, %v", m.Raw, err)
	}
}

// A server may have more to say than the answer; what comes within the moment
// the stream is still read must not be lost.
func TestMessagesRightAfterTheAnswerAreHandledToo(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
		sendEvents(w, answer(in.msg.ID, `{}`))
		time.Sleep(10 * time.Millisecond)
		sendEvents(w, fmt.Sprintf(progress, 1))
	})
	late := make(chan string, 1)
	h := dial(t, s.URL, wire.HTTPOptions{Handler: func(m wire.Message) { late <- m.Method }})
	if _, err := h.Call(t.Context(), "x", nil); err != nil {
		t.Fatal(err)
	}
	receive(t, "the notification after the answer", late)
}

func TestAStreamThatNeverEndsAfterItsAnswerIsLeft(t *testing.T) {
	t.Parallel()
	left := make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
		sendEvents(w, answer(in.msg.ID, `{}`))
		hang(r)
		close(left)
	})
	h := dial(t, s.URL, wire.HTTPOptions{})
	began := time.Now()
	if _, err := h.Call(t.Context(), "x", nil); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("the answer took %v, though it was there at once", d)
	}
	receive(t, "the server sees that nobody listens", left)
}

func TestSendAcceptsEverySuccessAndReportsEveryOtherStatus(t *testing.T) {
	t.Parallel()
	for _, status := range []int{200, 202, 204} {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request, _ request) { w.WriteHeader(status) })
		h := dial(t, s.URL, wire.HTTPOptions{})
		if err := h.Send(t.Context(), []byte(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)); err != nil {
			t.Errorf("%d: %v", status, err)
		}
	}
	for _, status := range []int{400, 401, 404, 500, 503} {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request, _ request) { http.Error(w, "why", status) })
		h := dial(t, s.URL, wire.HTTPOptions{})
		err := h.Send(t.Context(), []byte(`{"jsonrpc":"2.0","method":"x"}`))
		var he *wire.HTTPError
		if !errors.As(err, &he) || he.Status != status || !strings.HasPrefix(he.Body, "why") {
			t.Errorf("%d: %v", status, err)
		}
	}
}

// Its text is shown to people and to the model.
func TestAnHTTPErrorSaysItInOnePlainLine(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		"":                        "HTTP 400 Bad Request",
		"why":                     "HTTP 400 Bad Request: why",
		"why\n":                   "HTTP 400 Bad Request: why", // as http.Error and most frameworks end it
		" \r\n":                   "HTTP 400 Bad Request",
		"\x1b[2Jgone\u202etxt":    "HTTP 400 Bad Request: \ufffd[2Jgone\ufffdtxt",
		strings.Repeat("é", 1000): "HTTP 400 Bad Request: " + strings.Repeat("é", 100) + "…",
	} {
		if got := (&wire.HTTPError{Status: 400, Body: body}).Error(); got != want {
			t.Errorf("%q: %q, want %q", clip([]byte(body)), got, want)
		}
	}
}

// The body of a 4xx is a JSON-RPC error in current revisions: what it says (a
// version not supported, an unknown method) is the upstream's answer.
func TestA4xxWithAJSONRPCErrorIsTheAnswer(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"with the id": `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"m","data":{"a":1.0}}}`,
		"id null":     `{"jsonrpc":"2.0","id":null,"error":{"code":-32601,"message":"m","data":{"a":1.0}}}`,
		"without id":  `{"jsonrpc":"2.0","error":{"code":-32601,"message":"m","data":{"a":1.0}}}`,
	} {
		for _, status := range []int{400, 403, 404, 422, 500} {
			t.Run(fmt.Sprintf("%s, %d", name, status), func(t *testing.T) {
				t.Parallel()
				s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
					b := body
					if strings.Contains(b, "%s") {
						b = fmt.Sprintf(b, in.msg.ID)
					}
					sendJSON(w, status, b)
				})
				m, err := dial(t, s.URL, wire.HTTPOptions{}).Call(t.Context(), "x", nil)
				if err != nil {
					t.Fatal(err)
				}
				if string(m.Error) != `{"code":-32601,"message":"m","data":{"a":1.0}}` {
					t.Errorf("the answer is %s", m.Raw)
				}
				if out := object(t, m.WithID(json.RawMessage(`"h"`))); string(out["id"]) != `"h"` || string(out["error"]) != string(m.Error) {
					t.Errorf("passed on it is %s", out)
				}
			})
		}
	}
}

// An error about a message that the server could not read has no id, on a
// stream as well.
func TestAnErrorWithoutIDOnThePOSTStreamIsTheAnswer(t *testing.T) {
	t.Parallel()
	for _, id := range []string{`"id":null,`, ``} {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request, _ request) {
			sendEvents(w, `{"jsonrpc":"2.0",`+id+`"error":{"code":-32700,"message":"m"}}`)
		})
		m, err := dial(t, s.URL, wire.HTTPOptions{}).Call(t.Context(), "x", nil)
		if err != nil || string(m.Error) != `{"code":-32700,"message":"m"}` {
			t.Errorf("%q: %s, %v", id, m.Raw, err)
		}
	}
}

func TestAnyOtherStatusIsAnHTTPErrorAndNotNotSent(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status      int
		contentType string
		body        string
		wantBody    string
	}{
		"plain text":                         {400, "text/plain", "Bad Request: no session", "Bad Request: no session"},
		"empty":                              {403, "", "", ""},
		"401":                                {401, "application/json", `{"error":"invalid_token"}`, `{"error":"invalid_token"}`},
		"JSON, but no JSON-RPC":              {400, "application/json", `{"detail":"x"}`, `{"detail":"x"}`},
		"an answer to another request":       {400, "application/json", `{"jsonrpc":"2.0","id":4711,"error":{"code":1,"message":"m"}}`, `{"jsonrpc":"2.0","id":4711,"error":{"code":1,"message":"m"}}`},
		"a request":                          {400, "application/json", `{"jsonrpc":"2.0","id":1,"method":"ping"}`, `{"jsonrpc":"2.0","id":1,"method":"ping"}`},
		"404 and no session":                 {404, "text/plain", "not found", "not found"},
		"a page":                             {502, "text/html", strings.Repeat("x", 600), strings.Repeat("x", 512)},
		"a page over the message limit":      {500, "text/html", strings.Repeat("x", 100_000), strings.Repeat("x", 512)},
		"events":                             {500, "text/event-stream", "data: x\n\n", "data: x\n\n"},
		"a redirect that leads nowhere":      {304, "", "", ""},
		"429 with a body that is cut in two": {429, "text/plain", "slow down", "slow down"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(w http.ResponseWriter, _ *http.Request, _ request) {
				w.Header().Set("Content-Type", c.contentType)
				if strings.Contains(name, "cut in two") {
					w.Header().Set("Content-Length", "1000")
				}
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			_, err := dial(t, s.URL, wire.HTTPOptions{MaxMessage: 10_000}).Call(t.Context(), "x", nil)
			var he *wire.HTTPError
			if !errors.As(err, &he) || errors.Is(err, wire.ErrNotSent) || errors.Is(err, wire.ErrSessionExpired) {
				t.Fatalf("Call: %v", err)
			}
			if he.Status != c.status || he.Body != c.wantBody {
				t.Errorf("%d, %d bytes %q; want %d, %d bytes", he.Status, len(he.Body), clip([]byte(he.Body)), c.status, len(c.wantBody))
			}
		})
	}
}

// Transports, session management: a 404 to a request with a session id means
// that the session is over and a new one MUST be started, whatever the body
// says. The TypeScript SDK says it as a JSON-RPC error with id null.
func TestA404InASessionMeansThatItHasExpired(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ contentType, body string }{
		"plain text (go-sdk, mcp-go)":        {"text/plain", "session not found"},
		"empty":                              {"", ""},
		"a JSON-RPC error, id null (TS SDK)": {"application/json", `{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}`},
		"a JSON-RPC error without id":        {"application/json", `{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"}}`},
		"an id of its own (Python SDK)":      {"application/json", `{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"Session not found"}}`},
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
				w.WriteHeader(http.StatusNotFound)
				_, _ = io.WriteString(w, c.body)
			})
			h := dial(t, s.URL, wire.HTTPOptions{})
			if _, err := h.Call(t.Context(), "initialize", nil); err != nil {
				t.Fatal(err)
			}
			// the request did leave haldir: whether it was handled is for the server to say
			if m, err := h.Call(t.Context(), "tools/call", nil); !errors.Is(err, wire.ErrSessionExpired) || errors.Is(err, wire.ErrNotSent) {
				t.Errorf("Call = %s, %v", m.Raw, err)
			}
			if err := h.Send(t.Context(), []byte(`{"jsonrpc":"2.0","method":"x"}`)); !errors.Is(err, wire.ErrSessionExpired) {
				t.Errorf("Send: %v", err)
			}
		})
	}
}

func TestASuccessThatIsNoAnswerIsAnErrorAndNotNotSent(t *testing.T) {
	t.Parallel()
	for name, reply := range map[string]func(w http.ResponseWriter, id string){
		"204":             func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusNoContent) },
		"202":             func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusAccepted) },
		"200 and nothing": func(w http.ResponseWriter, _ string) { sendJSON(w, 200, "") },
		"a page": func(w http.ResponseWriter, _ string) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, "<html>log in</html>")
		},
		"no JSON":               func(w http.ResponseWriter, _ string) { sendJSON(w, 200, "{") },
		"JSON, but no JSON-RPC": func(w http.ResponseWriter, _ string) { sendJSON(w, 200, `{"ok":true}`) },
		"another id":            func(w http.ResponseWriter, _ string) { sendJSON(w, 200, answer(json.RawMessage("4711"), "{}")) },
		"the id as a string":    func(w http.ResponseWriter, id string) { sendJSON(w, 200, answer(json.RawMessage(`"`+id+`"`), "{}")) },
		"a result without id":   func(w http.ResponseWriter, _ string) { sendJSON(w, 200, `{"jsonrpc":"2.0","result":{}}`) },
		"a request":             func(w http.ResponseWriter, id string) { sendJSON(w, 200, `{"jsonrpc":"2.0","id":`+id+`,"method":"x"}`) },
		"two answers": func(w http.ResponseWriter, id string) {
			sendJSON(w, 200, answer(json.RawMessage(id), "1")+answer(json.RawMessage(id), "2"))
		},
		"an empty batch":  func(w http.ResponseWriter, _ string) { sendJSON(w, 200, `[]`) },
		"an empty stream": func(w http.ResponseWriter, _ string) { sendEvents(w) },
		"a stream that ends before the answer": func(w http.ResponseWriter, _ string) {
			sendEvents(w, "")
		},
		"a stream that ends within the answer": func(w http.ResponseWriter, id string) {
			sendEvents(w)
			_, _ = io.WriteString(w, "data: "+answer(json.RawMessage(id), "{}")+"\n") // no empty line
		},
		"a stream that breaks": func(w http.ResponseWriter, _ string) {
			sendEvents(w)
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = conn.Close()
			}
		},
		"a body that breaks": func(w http.ResponseWriter, id string) {
			w.Header().Set("Content-Length", "10000")
			sendJSON(w, 200, answer(json.RawMessage(id), "{}"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) { reply(w, string(in.msg.ID)) })
			var m wire.Message
			var err error
			h := dial(t, s.URL, wire.HTTPOptions{})
			within(t, "Call", func() { m, err = h.Call(t.Context(), "tools/call", nil) })
			if err == nil || errors.Is(err, wire.ErrNotSent) {
				t.Errorf("Call = %s, %v", m.Raw, err)
			}
		})
	}
}

// Revision 2025-03-26: a server may batch its answer with what comes before it,
// in a body and in an event alike.
func TestTheAnswerMayComeInABatch(t *testing.T) {
	t.Parallel()
	for name, send := range map[string]func(w http.ResponseWriter, batch string){
		"JSON":   func(w http.ResponseWriter, batch string) { sendJSON(w, 200, batch) },
		"events": func(w http.ResponseWriter, batch string) { sendEvents(w, batch) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
				send(w, `[`+fmt.Sprintf(progress, 1)+`,{"jsonrpc":"2.0","id":1,"method":"ping"},`+answer(in.msg.ID, `"mine"`)+`]`)
			})
			var got list[string]
			h := dial(t, s.URL, wire.HTTPOptions{Handler: func(m wire.Message) { got.add(m.Method) }, Problem: func(err error) { t.Log(err) }})
			m, err := h.Call(t.Context(), "x", nil)
			if err != nil || string(m.Result) != `"mine"` {
				t.Fatalf("Call = %s, %v", m.Raw, err)
			}
			if out := string(m.WithID(json.RawMessage(`7`))); out != answer(json.RawMessage(`7`), `"mine"`) {
				t.Errorf("WithID = %s", out)
			}
			if diff := cmp.Diff([]string{"notifications/progress", "ping"}, got.all()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAnAnswerToAnotherRequestOnTheStreamIsReportedAndWaitedPast(t *testing.T) {
	t.Parallel()
	odd := []string{
		answer(json.RawMessage(`4711`), `"other"`), `{"jsonrpc":"2.0","id":4712,"error":{"code":1,"message":"m"}}`, `no JSON`, `{"no":"JSON-RPC"}`,
		`[{"no":"JSON-RPC"}]`, `[1`,
	}
	s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
		sendEvents(w, append(odd, answer(json.RawMessage(`"`+string(in.msg.ID)+`"`), `"a string"`), answer(in.msg.ID, `"mine"`))...)
	})
	var problems list[error]
	h := dial(t, s.URL, wire.HTTPOptions{Problem: problems.add})
	if m, err := h.Call(t.Context(), "x", nil); err != nil || string(m.Result) != `"mine"` {
		t.Errorf("Call = %s, %v", m.Raw, err)
	}
	if got := problems.all(); len(got) != len(odd)+1 {
		t.Errorf("%d problems of %d: %v", len(got), len(odd)+1, got)
	}
}

// An endless body or event must end the call, not haldir.
func TestAnAnswerOverTheLimitFailsItsCallAndNoOther(t *testing.T) {
	t.Parallel()
	pad := strings.Repeat("x", 64<<10)
	for name, reply := range map[string]func(w http.ResponseWriter){
		"JSON with a length": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "1099511627776")
			sendJSON(w, 200, pad)
		},
		"endless JSON": func(w http.ResponseWriter) { w.Header().Set("Content-Type", "application/json") },
		"an endless event": func(w http.ResponseWriter) {
			sendEvents(w)
			_, _ = io.WriteString(w, "data: ")
		},
		"an event of endless lines": func(w http.ResponseWriter) {
			sendEvents(w)
			pad := strings.Repeat("data: xxxxxxxxxxxxxxxxxxxxxxx\n", 1000)
			for {
				if _, err := io.WriteString(w, pad); err != nil {
					return
				}
			}
		},
		"an endless comment": func(w http.ResponseWriter) {
			sendEvents(w)
			_, _ = io.WriteString(w, ":")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
				if in.msg.Method == "small" {
					sendJSON(w, 200, answer(in.msg.ID, `"fits"`))
					return
				}
				reply(w)
				for {
					if _, err := io.WriteString(w, pad); err != nil {
						return
					}
				}
			})
			h := dial(t, s.URL, wire.HTTPOptions{MaxMessage: 100_000})
			r := receive(t, "the call", start(t.Context(), h, "big", ""))
			var large *wire.TooLargeError
			if !errors.As(r.err, &large) || large.Limit != 100_000 || errors.Is(r.err, wire.ErrNotSent) {
				t.Errorf("the call: %v", r.err)
			}
			if m, err := h.Call(t.Context(), "small", nil); err != nil || string(m.Result) != `"fits"` {
				t.Errorf("the next call: %s, %v", m.Raw, err)
			}
		})
	}
}

func TestAnAnswerOfTheLimitFits(t *testing.T) {
	t.Parallel()
	const limit = 1000
	body := func(id json.RawMessage) string {
		a := answer(id, `""`)
		return strings.Replace(a, `""`, `"`+strings.Repeat("x", limit-len(a))+`"`, 1)
	}
	for name, send := range map[string]func(w http.ResponseWriter, b string){
		"JSON":   func(w http.ResponseWriter, b string) { sendJSON(w, 200, b) },
		"events": func(w http.ResponseWriter, b string) { sendEvents(w, b) },
	} {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) { send(w, body(in.msg.ID)) })
		if m, err := dial(t, s.URL, wire.HTTPOptions{MaxMessage: limit}).Call(t.Context(), "x", nil); err != nil || len(m.Raw) != limit {
			t.Errorf("%s, exactly: %d bytes, %v", name, len(m.Raw), err)
		}
		if _, err := dial(t, s.URL, wire.HTTPOptions{MaxMessage: limit - 1}).Call(t.Context(), "x", nil); err == nil {
			t.Errorf("%s, one byte over passes", name)
		}
	}
}

func TestARefusedConnectionIsNotSent(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	_ = l.Close()
	h := dial(t, url, wire.HTTPOptions{})
	for name, u := range map[string]string{"refused": url, "no such scheme": "gopher://x", "no URL": "http://\x7f", "no host": "http://127.0.0.1:0/"} {
		h := dial(t, u, wire.HTTPOptions{})
		if _, err := h.Call(t.Context(), "x", nil); !errors.Is(err, wire.ErrNotSent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := h.Send(t.Context(), []byte(`{"jsonrpc":"2.0","method":"x"}`)); err == nil {
		t.Error("Send returns nil")
	}
}

// The one that matters: a server that read a payment and died may have paid.
func TestAServerThatDiesAfterReadingMayHaveHandledTheRequest(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
		if in.msg.Method == "die" {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = conn.Close()
			}
			return
		}
		sendJSON(w, 200, answer(in.msg.ID, `{}`))
	})
	for name, warm := range map[string]bool{"on a new connection": false, "on a connection used before": true} {
		h := dial(t, s.URL, wire.HTTPOptions{})
		if warm { // net/http may try again on another connection here, which would pay twice
			if _, err := h.Call(t.Context(), "x", nil); err != nil {
				t.Fatal(err)
			}
		}
		before := len(s.of("POST", "die"))
		if _, err := h.Call(t.Context(), "die", nil); err == nil || errors.Is(err, wire.ErrNotSent) {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(s.of("POST", "die")) - before; n != 1 {
			t.Errorf("%s: the server saw the request %d times", name, n)
		}
	}
}

// The headers are out, the body is not: the server saw nothing that it could
// act on, but haldir cannot know.
func TestAServerThatDiesBeforeTheBodyIsNotTakenForNotSent(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 10))
			_ = c.Close()
		}
	}()
	h := dial(t, "http://"+l.Addr().String(), wire.HTTPOptions{})
	params := json.RawMessage(`{"pad":"` + strings.Repeat("x", 4<<20) + `"}`)
	if _, err := h.Call(t.Context(), "x", params); err == nil || errors.Is(err, wire.ErrNotSent) {
		t.Errorf("Call: %v", err)
	}
}

func TestACancelledCallIsToldToTheUpstreamByItsID(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(w http.ResponseWriter){
		"before any answer":       func(http.ResponseWriter) {},
		"in the middle of events": func(w http.ResponseWriter) { sendEvents(w, fmt.Sprintf(progress, 1)) },
		"in the middle of a body": func(w http.ResponseWriter) {
			sendJSON(w, 200, `{"jsonrpc":`)
			_ = http.NewResponseController(w).Flush()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gone := make(chan struct{})
			s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
				if !in.msg.IsRequest() {
					w.WriteHeader(http.StatusAccepted)
					return
				}
				open(w)
				hang(r)
				close(gone)
			})
			h := dial(t, s.URL, wire.HTTPOptions{Handler: func(wire.Message) {}})
			why := errors.New("the host changed its mind")
			ctx, cancel := context.WithCancelCause(t.Context())
			call := start(ctx, h, "tools/call", `{}`)
			wait(t, "the request", func() bool { return len(s.of("POST", "tools/call")) == 1 })
			time.Sleep(5 * time.Millisecond)
			cancel(why)
			if r := receive(t, "the call", call); !errors.Is(r.err, why) || errors.Is(r.err, wire.ErrNotSent) {
				t.Errorf("the call: %v", r.err)
			}
			wait(t, "the notice", func() bool { return len(s.of("POST", "notifications/cancelled")) == 1 })
			params := object(t, s.of("POST", "notifications/cancelled")[0].msg.Params)
			if string(params["requestId"]) != string(s.of("POST", "tools/call")[0].msg.ID) {
				t.Errorf("the notice is about %s", params["requestId"])
			}
			if string(params["reason"]) != `"the host changed its mind"` {
				t.Errorf("the reason is %s", params["reason"])
			}
			receive(t, "the server's own view", gone)
		})
	}
}

func TestADeadlineCancelsToo(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
		if in.msg.IsRequest() {
			hang(r)
		}
		w.WriteHeader(http.StatusAccepted)
	})
	h := dial(t, s.URL, wire.HTTPOptions{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.Call(ctx, "x", nil); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, wire.ErrNotSent) {
		t.Errorf("Call: %v", err)
	}
	wait(t, "the notice", func() bool { return len(s.of("POST", "notifications/cancelled")) == 1 })
}

func TestInitializeIsNotCancelledOverHTTPEither(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
		if in.msg.IsRequest() {
			hang(r)
		}
		w.WriteHeader(http.StatusAccepted)
	})
	h := dial(t, s.URL, wire.HTTPOptions{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.Call(ctx, "initialize", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Call: %v", err)
	}
	time.Sleep(100 * time.Millisecond)
	if n := s.of("POST", "notifications/cancelled"); len(n) > 0 {
		t.Errorf("the server got %s", n[0].body)
	}
}

// Nobody is told of a request that never left.
func TestACallCancelledWhileItConnectsIsNotSent(t *testing.T) {
	t.Parallel()
	dialing := make(chan struct{}, 10)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		dialing <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}}}
	h := dial(t, "http://127.0.0.1:1/", wire.HTTPOptions{Client: client})
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	call := start(ctx, h, "x", "")
	receive(t, "the dial", dialing)
	cancel(why)
	if r := receive(t, "the call", call); !errors.Is(r.err, why) || !errors.Is(r.err, wire.ErrNotSent) {
		t.Errorf("the call: %v", r.err)
	}
	time.Sleep(50 * time.Millisecond)
	if len(dialing) > 0 {
		t.Error("a notice was sent")
	}
}

// Whatever wins the race between the request and the end of its context, the
// error must not claim more than is true.
func TestNotSentIsNeverSaidOfWhatTheServerGot(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
		if !in.msg.IsRequest() {
			w.WriteHeader(http.StatusAccepted)
			return
		}
		sendJSON(w, 200, answer(in.msg.ID, `{}`))
	})
	h := dial(t, s.URL, wire.HTTPOptions{Problem: func(error) {}})
	var wg sync.WaitGroup
	var notSent list[string]
	for g := range 4 {
		wg.Go(func() {
			for i := range 100 {
				params := fmt.Sprintf(`{"n":"%d-%d"}`, g, i)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(600))*time.Microsecond)
				_, err := h.Call(ctx, "x", json.RawMessage(params))
				cancel()
				if errors.Is(err, wire.ErrNotSent) {
					notSent.add(params)
				} else if err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s: %v", params, err)
				}
			}
		})
	}
	wg.Wait()
	got := map[string]bool{}
	for _, in := range s.of("POST", "x") {
		got[string(in.msg.Params)] = true
	}
	for _, p := range notSent.all() {
		if got[p] {
			t.Errorf("%s is said not to be sent, the server got it", p)
		}
	}
	t.Logf("%d not sent, %d reached the server", len(notSent.all()), len(got))
}

// eager answers in memory, at once: what net/http may still stop between the
// client and the socket counts as sent here. It records which requests came
// with a context that was not over.
type eager struct{ alive list[string] }

func (e *eager) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	body, _ := io.ReadAll(r.Body)
	e.alive.add(string(body))
	m, _ := wire.ParseLenient(body)
	return &http.Response{
		StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(answer(m.ID, `{}`))), Request: r,
	}, nil
}

// A call that is over before it begins must not reach the upstream: the host
// has cancelled it.
func TestACallWhoseContextIsOverIsNotSent(t *testing.T) {
	t.Parallel()
	transport := &eager{}
	h := dial(t, "http://upstream.test/", wire.HTTPOptions{Client: &http.Client{Transport: transport}, Problem: func(error) {}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 1000 {
		if m, err := h.Call(ctx, "x", nil); !errors.Is(err, wire.ErrNotSent) || !errors.Is(err, context.Canceled) {
			t.Errorf("Call = %s, %v", m.Raw, err)
			break
		}
	}
	if sent := transport.alive.all(); len(sent) > 0 {
		t.Errorf("%d were sent, first %s", len(sent), sent[0])
	}
}

func TestNothingIsSentAfterClose(t *testing.T) {
	t.Parallel()
	transport := &eager{}
	h := dial(t, "http://upstream.test/", wire.HTTPOptions{Client: &http.Client{Transport: transport}, Problem: func(error) {}})
	h.Close()
	for range 1000 {
		m, err := h.Call(t.Context(), "x", nil)
		if !errors.Is(err, wire.ErrClosed) || !errors.Is(err, wire.ErrNotSent) {
			t.Errorf("Call = %s, %v", m.Raw, err)
			break
		}
		if err := h.Send(t.Context(), []byte(`{"jsonrpc":"2.0","method":"x"}`)); err == nil {
			t.Error("Send returns nil")
			break
		}
	}
	if sent := transport.alive.all(); len(sent) > 0 {
		t.Errorf("%d were sent, first %s", len(sent), sent[0])
	}
}

// A connection per call is what mcp-go does: at 200 calls a server that limits
// connections, or a TLS handshake each time, is felt.
func TestConnectionsAreUsedAgain(t *testing.T) {
	for name, reply := range map[string]func(w http.ResponseWriter, id json.RawMessage){
		"events that end with the answer": func(w http.ResponseWriter, id json.RawMessage) { sendEvents(w, answer(id, `{}`)) },
		"JSON of 64 KiB": func(w http.ResponseWriter, id json.RawMessage) {
			sendJSON(w, 200, answer(id, `"`+strings.Repeat("x", 64<<10)+`"`))
		},
		"JSON with spaces behind, in chunks": func(w http.ResponseWriter, id json.RawMessage) {
			sendJSON(w, 200, answer(id, `"`+strings.Repeat("x", 5000)+`"`))
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, strings.Repeat(" ", 1000))
		},
		"errors with status 400": func(w http.ResponseWriter, id json.RawMessage) {
			sendJSON(w, 400, `{"jsonrpc":"2.0","id":`+string(id)+`,"error":{"code":1,"message":"m"}}`)
		},
		"plain errors with status 500": func(w http.ResponseWriter, _ json.RawMessage) { http.Error(w, strings.Repeat("x", 5000), 500) },
	} {
		t.Run(name, func(t *testing.T) { checkFewConnections(t, reply) })
	}
}

func checkFewConnections(t *testing.T, reply func(w http.ResponseWriter, id json.RawMessage)) {
	t.Helper()
	s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) { reply(w, in.msg.ID) })
	h := dial(t, s.URL, wire.HTTPOptions{})
	for i := range 200 {
		_, err := h.Call(t.Context(), "tools/call", json.RawMessage(`{}`))
		var he *wire.HTTPError
		if err != nil && !errors.As(err, &he) {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	if n := s.conns.Load(); n > 3 {
		t.Errorf("%d connections for 200 calls, one after the other", n)
	}
}

// uvicorn and others end the stream a few milliseconds after the last event. It
// is read on in the background, so a call never needs more connections than the
// server has streams open.
func TestConnectionsAreUsedAgainThoughTheStreamEndsAfterItsAnswer(t *testing.T) {
	var open, most atomic.Int64
	s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
		most.Store(max(most.Load(), open.Add(1)))
		defer open.Add(-1)
		sendEvents(w, answer(in.msg.ID, `{}`))
		time.Sleep(5 * time.Millisecond)
	})
	h := dial(t, s.URL, wire.HTTPOptions{Client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}})
	const calls = 300
	for range calls {
		if _, err := h.Call(t.Context(), "tools/call", json.RawMessage(`{}`)); err != nil {
			t.Fatal(err)
		}
	}
	n := s.conns.Load()
	t.Logf("%d connections for %d calls; at most %d streams were open at once", n, calls, most.Load())
	if n > 2*most.Load()+3 || n > calls/2 { // net/http dials while it waits for one that becomes idle
		t.Errorf("%d connections for %d calls, though at most %d streams were open at once", n, calls, most.Load())
	}
}

// A server that leaves all its streams open is not read without bound.
func TestOnlySoManyStreamsAreReadAfterTheirAnswer(t *testing.T) {
	var open, most atomic.Int64
	s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
		most.Store(max(most.Load(), open.Add(1)))
		defer open.Add(-1)
		sendEvents(w, answer(in.msg.ID, `{}`))
		hang(r)
	})
	h := dial(t, s.URL, wire.HTTPOptions{})
	for range 300 {
		if _, err := h.Call(t.Context(), "tools/call", json.RawMessage(`{}`)); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, "those beyond the bound are closed", func() bool { return open.Load() <= 64 })
	within(t, "Close", h.Close)
	wait(t, "all are closed", func() bool { return open.Load() == 0 })
}

func TestNotificationsUseOneConnection(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, _ *http.Request, _ request) { w.WriteHeader(http.StatusAccepted) })
	h := dial(t, s.URL, wire.HTTPOptions{})
	for range 100 {
		if err := h.Send(t.Context(), []byte(`{"jsonrpc":"2.0","method":"x"}`)); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.conns.Load(); n > 2 {
		t.Errorf("%d connections for 100 notifications", n)
	}
}

func TestConcurrentCallsDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	const n = 30
	var inside atomic.Int64
	all := make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
		if inside.Add(1) == n {
			close(all)
		}
		<-all // answered only when all are there
		sendEvents(w, answer(in.msg.ID, string(in.msg.Params)))
	})
	h := dial(t, s.URL, wire.HTTPOptions{})
	calls := make([]<-chan result, n)
	for i := range calls {
		calls[i] = start(t.Context(), h, "x", fmt.Sprintf(`{"n":%d}`, i))
	}
	for i, c := range calls {
		if r := receive(t, "a call", c); r.err != nil || string(r.m.Result) != fmt.Sprintf(`{"n":%d}`, i) {
			t.Errorf("call %d: %s, %v", i, r.m.Raw, r.err)
		}
	}
}

func TestTheGETStreamCarriesWhatTheServerSaysOfItsOwnAccord(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request, _ request) {
		if r.Method != http.MethodGet {
			return
		}
		for i := range 100 {
			sendEvents(w, fmt.Sprintf(progress, i))
		}
		sendEvents(w, `{"jsonrpc":"2.0","id":"r","method":"ping"}`, answer(json.RawMessage(`1`), `"an answer has no business here"`), "no JSON", fmt.Sprintf(progress, 100))
		hang(r)
	})
	got := make(chan wire.Message, 200)
	var problems list[error]
	h := dial(t, s.URL, wire.HTTPOptions{Handler: func(m wire.Message) { got <- m }, Problem: problems.add})
	h.Listen()
	for i := range 100 {
		if m := receive(t, "a notification", got); string(m.Raw) != fmt.Sprintf(progress, i) {
			t.Fatalf("message %d is %s", i, m.Raw)
		}
	}
	if m := receive(t, "the request", got); !m.IsRequest() || string(m.ID) != `"r"` {
		t.Errorf("the request is %s", m.Raw)
	}
	receive(t, "the last", got)
	if n := len(problems.all()); n != 2 {
		t.Errorf("problems: %v", problems.all())
	}
	if a := s.of("GET", "")[0].header.Get("Accept"); a != "text/event-stream" {
		t.Errorf("Accept: %q", a)
	}
}

// Transports, listening: 405 says that the server offers no such stream.
func TestListenStopsWhereThereIsNoStream(t *testing.T) {
	t.Parallel()
	for name, refuse := range map[string]func(w http.ResponseWriter){
		"405":      func(w http.ResponseWriter) { w.WriteHeader(http.StatusMethodNotAllowed) },
		"404":      func(w http.ResponseWriter) { http.Error(w, "not found", http.StatusNotFound) },
		"a page":   func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>") },
		"an empty": func(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
				if r.Method == http.MethodGet {
					refuse(w)
					return
				}
				sendJSON(w, 200, answer(in.msg.ID, `{}`))
			})
			h := dial(t, s.URL, wire.HTTPOptions{})
			h.Listen()
			wait(t, "the GET", func() bool { return len(s.of("GET", "")) == 1 })
			time.Sleep(1200 * time.Millisecond) // more than the first backoff
			if n := len(s.of("GET", "")); n != 1 {
				t.Errorf("%d GETs", n)
			}
			if _, err := h.Call(t.Context(), "x", nil); err != nil || h.Err() != nil {
				t.Errorf("calls no longer work: %v, %v", err, h.Err())
			}
		})
	}
}

func TestTheGETStreamIsOpenedAgainAfterItBreaks(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		breaks   func(w http.ResponseWriter)
		problems bool
	}{
		"it ends":            {func(w http.ResponseWriter) { sendEvents(w) }, false},
		"it ends with retry": {func(w http.ResponseWriter) { sendEvents(w); _, _ = io.WriteString(w, "retry: 10\n\n") }, false},
		"the connection breaks": {func(w http.ResponseWriter) {
			sendEvents(w)
			if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
				_ = conn.Close()
			}
		}, true},
		"status 500":         {func(w http.ResponseWriter) { http.Error(w, "restarting", 500) }, true},
		"status 503":         {func(w http.ResponseWriter) { http.Error(w, "restarting", 503) }, true},
		"an event too large": {func(w http.ResponseWriter) { sendEvents(w, strings.Repeat("x", 5000)) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var opened atomic.Int64
			s := serve(t, func(w http.ResponseWriter, r *http.Request, _ request) {
				if n := opened.Add(1); n <= 2 {
					c.breaks(w)
					return
				}
				sendEvents(w, fmt.Sprintf(progress, 1))
				hang(r)
			})
			got := make(chan wire.Message, 1)
			var problems list[error]
			h := dial(t, s.URL, wire.HTTPOptions{Handler: func(m wire.Message) { got <- m }, Problem: problems.add, MaxMessage: 1000})
			h.Listen()
			receive(t, "the third stream's message", got)
			if n := len(problems.all()); (n > 0) != c.problems {
				t.Errorf("problems: %v", problems.all())
			}
			if h.Err() != nil {
				t.Errorf("Err: %v", h.Err())
			}
		})
	}
}

func TestA404ToTheGETInASessionEndsTheConversation(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
		if r.Method == http.MethodPost {
			w.Header().Set("Mcp-Session-Id", "s-1")
			sendJSON(w, 200, answer(in.msg.ID, `{}`))
			return
		}
		http.Error(w, "session not found", http.StatusNotFound)
	})
	h := dial(t, s.URL, wire.HTTPOptions{})
	if _, err := h.Call(t.Context(), "initialize", nil); err != nil {
		t.Fatal(err)
	}
	if h.Err() != nil {
		t.Errorf("Err before: %v", h.Err())
	}
	h.Listen()
	receive(t, "Done", h.Done())
	if !errors.Is(h.Err(), wire.ErrSessionExpired) {
		t.Errorf("Err: %v", h.Err())
	}
}

func TestCloseEndsTheServersSession(t *testing.T) {
	t.Parallel()
	for name, session := range map[string]string{"with a session": "s-1", "without": ""} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
			switch r.Method {
			case http.MethodPost:
				if session != "" {
					w.Header().Set("Mcp-Session-Id", session)
				}
				sendJSON(w, 200, answer(in.msg.ID, `{}`))
			case http.MethodGet:
				sendEvents(w)
				hang(r)
			default:
				w.WriteHeader(http.StatusMethodNotAllowed) // a server may refuse
			}
		})
		h := dial(t, s.URL, wire.HTTPOptions{Header: http.Header{"Authorization": {"Bearer x"}}})
		if _, err := h.Call(t.Context(), "initialize", nil); err != nil {
			t.Fatal(err)
		}
		h.Listen()
		wait(t, "the GET", func() bool { return len(s.of("GET", "")) == 1 })
		within(t, "Close", h.Close)
		within(t, "a second Close", h.Close)
		receive(t, "Done", h.Done())
		if !errors.Is(h.Err(), wire.ErrClosed) {
			t.Errorf("%s: Err: %v", name, h.Err())
		}
		deletes := s.of("DELETE", "")
		if session == "" {
			if len(deletes) > 0 {
				t.Errorf("%s: a DELETE", name)
			}
			continue
		}
		// mcp-go forgets the credentials here: sessions leak behind auth
		if len(deletes) != 1 || deletes[0].header.Get("Mcp-Session-Id") != session || deletes[0].header.Get("Authorization") != "Bearer x" {
			t.Errorf("%s: DELETEs: %v", name, deletes)
		}
	}
}

// Everything hangs, and haldir must still be able to leave.
func TestCloseIsPromptThoughTheServerHangsAndLeaksNothing(t *testing.T) {
	for name, prepare := range map[string]func(h *wire.HTTP, s *site) []<-chan result{
		"nothing under way": func(*wire.HTTP, *site) []<-chan result { return nil },
		"calls under way": func(h *wire.HTTP, s *site) []<-chan result {
			calls := []<-chan result{
				start(context.Background(), h, "silent", ""), start(context.Background(), h, "events", ""), start(context.Background(), h, "body", ""),
			}
			wait(t, "the requests", func() bool { return len(s.requests.all()) == 4 })
			return calls
		},
		"a stream under way": func(h *wire.HTTP, s *site) []<-chan result {
			h.Listen()
			wait(t, "the GET", func() bool { return len(s.of("GET", "")) == 1 })
			return nil
		},
		"a notice under way": func(h *wire.HTTP, s *site) []<-chan result {
			ctx, cancel := context.WithCancel(context.Background())
			call := start(ctx, h, "silent", "")
			wait(t, "the request", func() bool { return len(s.of("POST", "silent")) == 1 })
			cancel()
			receive(t, "the call", call)
			wait(t, "the notice", func() bool { return len(s.of("POST", "notifications/cancelled")) == 1 })
			return nil
		},
		"the rest of a stream under way": func(h *wire.HTTP, _ *site) []<-chan result {
			call := start(context.Background(), h, "answered", "")
			receive(t, "the call", call)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			ignore := goleak.IgnoreCurrent()
			s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
				switch in.msg.Method {
				case "initialize":
					w.Header().Set("Mcp-Session-Id", "s-1")
					sendJSON(w, 200, answer(in.msg.ID, `{}`))
					return
				case "events":
					sendEvents(w)
				case "answered":
					sendEvents(w, answer(in.msg.ID, `{}`))
				case "body":
					sendJSON(w, 200, "{")
					_ = http.NewResponseController(w).Flush()
				case "":
					if r.Method == http.MethodGet {
						sendEvents(w)
					}
				}
				hang(r)
			})
			h := dial(t, s.URL, wire.HTTPOptions{Problem: func(error) {}})
			if _, err := h.Call(t.Context(), "initialize", nil); err != nil {
				t.Fatal(err)
			}
			calls := prepare(h, s)
			began := time.Now()
			within(t, "Close", h.Close)
			if d := time.Since(began); d > 2*time.Second {
				t.Errorf("Close took %v", d)
			}
			for _, c := range calls {
				if r := receive(t, "a call under way", c); !errors.Is(r.err, wire.ErrClosed) || errors.Is(r.err, wire.ErrNotSent) {
					t.Errorf("a call under way: %v", r.err)
				}
			}
			s.Close()
			goleak.VerifyNone(t, ignore)
		})
	}
}

// Calls come in from the host while another goroutine closes the conversation.
func TestCallsAndCloseMayRace(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
		switch {
		case in.msg.IsRequest():
			sendEvents(w, answer(in.msg.ID, `{}`))
		case r.Method == http.MethodPost:
			w.WriteHeader(http.StatusAccepted)
		}
	})
	for i := range 100 {
		h := dial(t, s.URL, wire.HTTPOptions{Problem: func(error) {}})
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(g*i%20+1)*100*time.Microsecond)
				defer cancel()
				for range 3 {
					if _, err := h.Call(ctx, "x", nil); err != nil && !errors.Is(err, wire.ErrClosed) && ctx.Err() == nil {
						t.Errorf("Call: %v", err)
					}
				}
			})
		}
		wg.Go(func() {
			time.Sleep(time.Duration(i%10) * 100 * time.Microsecond)
			h.Close()
		})
		wg.Wait()
	}
}

// A batch may hold millions of messages that are none. It is told of in one
// short line, whatever the transport.
func TestABatchOfNoiseIsToldOfInOneLine(t *testing.T) {
	t.Parallel()
	noise := "[" + strings.Repeat("1,", 200_000) + `{"` + strings.Repeat("n", 5000) + `":1,"` + strings.Repeat("n", 5000) + `":2}]`
	s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
		sendEvents(w, noise, answer(in.msg.ID, `{}`))
	})
	var problems list[error]
	if _, err := dial(t, s.URL, wire.HTTPOptions{Problem: problems.add}).Call(t.Context(), "x", nil); err != nil {
		t.Error(err)
	}
	p, peer := connect(t, wire.PipeOptions{Noise: func(_ []byte, why error) { problems.add(why) }})
	call := start(t.Context(), p, "ping", "")
	peer.write(noise, answer(peer.read()["id"], `{}`))
	receive(t, "the call", call)
	for _, err := range problems.all() {
		if text := err.Error(); len(text) > 500 || !strings.Contains(text, "200000 more") {
			t.Errorf("%d bytes: %s", len(text), clip([]byte(text)))
		}
	}
	if n := len(problems.all()); n != 2 {
		t.Errorf("%d problems", n)
	}
}

// A response whose id comes last, as the TypeScript SDK writes it, and is replaced
// by a longer or a shorter one: what is read of its result afterwards is the result.
func TestTheResultStaysWhenTheIDIsReplaced(t *testing.T) {
	big := strings.Repeat("x", 20<<10)
	for _, form := range []string{`{"result":{"a":%q},"jsonrpc":"2.0","id":%s}`, `{"jsonrpc":"2.0","id":%[2]s,"result":{"a":%[1]q}}`} {
		for _, events := range []bool{false, true} {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				body, _ := io.ReadAll(req.Body)
				id, _ := wire.At(body, "id")
				msg := fmt.Sprintf(form, big, id.Value)
				if events {
					w.Header().Set("Content-Type", "text/event-stream")
					msg = "data: " + msg + "\n\n"
				} else {
					w.Header().Set("Content-Type", "application/json")
				}
				_, _ = io.WriteString(w, msg)
			}))
			h := wire.NewHTTP(wire.HTTPOptions{URL: srv.URL, Client: &http.Client{}, Handler: func(wire.Message) {}, Problem: func(error) {}})
			for _, id := range []string{`"abcdef"`, `7`, `"` + strings.Repeat("z", 200) + `"`} {
				m, err := h.Call(t.Context(), "tools/call", nil)
				if err != nil {
					t.Fatal(err)
				}
				line := m.WithID([]byte(id))
				if string(m.Result) != `{"a":"`+big+`"}` {
					t.Errorf("%s, events %v: the result is now %q…", id, events, m.Result[:40])
				}
				got, ok := wire.At(line, "id")
				if result, _ := wire.At(line, "result"); !ok || string(got.Value) != id || string(result.Value) != `{"a":"`+big+`"}` {
					t.Errorf("%s, events %v: the line is %q…", id, events, line[:80])
				}
			}
			h.Close()
			srv.Close()
		}
	}
}
