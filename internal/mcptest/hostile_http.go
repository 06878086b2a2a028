package mcptest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"

	"github.com/haldir-mcp/haldir/internal/config"
)

// errAbort makes net/http drop the connection without an answer.
var errAbort = http.ErrAbortHandler

// HTTP is a hostile server on streamable HTTP, in the process of the test.
type HTTP struct {
	*httptest.Server

	// Before, if set, may answer a request in the server's stead by returning
	// true. Set it before the first request.
	Before func(w http.ResponseWriter, r *http.Request, body []byte) bool

	srv *server

	mu       sync.Mutex
	session  int
	requests []*http.Request
	streams  []chan []byte
	own      [][]byte // what the server wants to say before anybody listens
}

// NewHTTP starts a hostile server; it ends with the test.
func (s Script) NewHTTP(t testing.TB) *HTTP {
	t.Helper()
	h := &HTTP{session: 1}
	h.srv = newServer(s, h.tell)
	h.Server = httptest.NewServer(http.HandlerFunc(h.serve))
	t.Cleanup(func() {
		h.CloseClientConnections()
		h.Close()
	})
	return h
}

// Upstream returns the config of an upstream that is this server.
func (h *HTTP) Upstream(name string) config.Upstream {
	return config.Upstream{Name: name, URL: h.URL + "/mcp", Connect: config.DefaultConnect}
}

// Forget ends the session: requests with its id are answered by 404.
func (h *HTTP) Forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.session++
}

// Seen returns every message that came.
func (h *HTTP) Seen() []string { return h.srv.report().Messages }

// Requests returns every request that came.
func (h *HTTP) Requests() []*http.Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]*http.Request(nil), h.requests...)
}

// tell sends a message on the GET stream.
func (h *HTTP) tell(msg []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.streams) == 0 {
		h.own = append(h.own, msg)
		return
	}
	for _, ch := range h.streams {
		select {
		case ch <- msg:
		default: // nobody reads
		}
	}
}

func (h *HTTP) id() string { return "session-" + strconv.Itoa(h.session) }

func (h *HTTP) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	h.mu.Lock()
	h.requests = append(h.requests, r)
	id := h.id()
	h.mu.Unlock()
	if h.Before != nil && h.Before(w, r, body) {
		return
	}
	if got := r.Header.Get("Mcp-Session-Id"); h.srv.script.Stateful && got != "" && got != id {
		http.Error(w, "session not found", http.StatusNotFound)
		return
	}
	switch r.Method {
	case http.MethodGet:
		h.stream(w, r)
	case http.MethodDelete:
		w.WriteHeader(http.StatusNoContent)
	case http.MethodPost:
		h.post(w, r, body, id)
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

func (h *HTTP) stream(w http.ResponseWriter, r *http.Request) {
	ch := make(chan []byte, 1<<16)
	h.mu.Lock()
	h.streams = append(h.streams, ch)
	for _, m := range h.own {
		ch <- m
	}
	h.own = nil
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for i, c := range h.streams {
			if c == ch {
				h.streams = append(h.streams[:i:i], h.streams[i+1:]...)
			}
		}
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	flush(w)
	for {
		select {
		case m := <-ch:
			event(w, m)
		case <-r.Context().Done():
			return
		}
	}
}

func flush(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }

func event(w io.Writer, msg []byte) {
	for line := range bytes.SplitSeq(msg, []byte("\n")) {
		fmt.Fprintf(w, "data: %s\n", line)
	}
	fmt.Fprint(w, "\n")
	if rw, ok := w.(http.ResponseWriter); ok {
		flush(rw)
	}
}

func (h *HTTP) post(w http.ResponseWriter, r *http.Request, body []byte, session string) {
	ctx := r.Context()
	var mu sync.Mutex
	started, silent := false, true
	say := func(msg []byte) {
		mu.Lock()
		defer mu.Unlock()
		silent = false
		if h.srv.script.Stateful {
			w.Header().Set("Mcp-Session-Id", session)
		}
		switch {
		case h.srv.script.SSE:
			if !started {
				w.Header().Set("Content-Type", "text/event-stream")
				started = true
			}
			event(w, msg)
		case !started:
			started = true
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(msg)
		}
	}
	if h.srv.script.Start == "hang" {
		<-ctx.Done()
		return
	}
	// A verb that dies must do so in the handler's goroutine.
	if died := h.run(ctx, body, say); died {
		panic(errAbort)
	}
	mu.Lock()
	defer mu.Unlock()
	if silent {
		w.WriteHeader(http.StatusAccepted)
	}
}

func (h *HTTP) run(ctx context.Context, body []byte, say func([]byte)) (died bool) {
	if bytes.Contains(body, []byte(`"name":"die"`)) {
		return true
	}
	<-h.srv.take(ctx, body, say)
	return false
}
