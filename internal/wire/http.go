package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// HTTP is a [Client] over MCP's streamable HTTP transport (revision 2025-11-25,
// basic/transports): each request is a POST answered by JSON or by a stream of
// events, and one GET stream carries what the server sends of its own accord.
type HTTP struct {
	o       HTTPOptions
	session atomic.Pointer[string]
	version atomic.Pointer[string]
	lastID  atomic.Int64

	ctx    context.Context //nolint:containedctx // the life of the conversation, ended by Close
	cancel context.CancelCauseFunc
	done   chan struct{}
	once   sync.Once
	err    error
	mu     sync.Mutex // guards the beginning of work against the end of it
	wg     sync.WaitGroup
}

// begin starts work that Close waits for; after Close it starts nothing.
func (h *HTTP) begin(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx.Err() == nil {
		h.wg.Go(f)
	}
}

// HTTPOptions configure [NewHTTP].
type HTTPOptions struct {
	URL     string
	Client  *http.Client // the conversation's own: its idle connections are closed at the end
	Header  http.Header  // sent with every request
	Handler Handler
	// Problem takes what goes wrong outside a call, for the log.
	Problem    func(error)
	MaxMessage int // bytes of one message; 0 means [DefaultMaxMessage]
}

// HTTPError is an answer whose status is no success and whose body is no
// JSON-RPC message.
type HTTPError struct {
	Status int
	Body   string // its first 512 bytes
}

func (e *HTTPError) Error() string {
	s := fmt.Sprintf("HTTP %d %s", e.Status, http.StatusText(e.Status))
	if body := Printable(strings.TrimSpace(e.Body), 200); body != "" {
		s += ": " + body
	}
	return s
}

// drainGrace is how long the rest of a stream is read after its response, so
// that the connection can be used again.
const drainGrace = 100 * time.Millisecond

// shortStream is a GET stream that ended so soon that the next one has to wait.
const shortStream = time.Second

// NewHTTP starts a conversation; nothing is sent before the first call.
func NewHTTP(o HTTPOptions) *HTTP {
	if o.MaxMessage <= 0 {
		o.MaxMessage = DefaultMaxMessage
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	return &HTTP{o: o, ctx: ctx, cancel: cancel, done: make(chan struct{})}
}

// SetVersion makes every later request carry MCP-Protocol-Version.
func (h *HTTP) SetVersion(v string) { h.version.Store(&v) }

// Call implements [Client].
func (h *HTTP) Call(ctx context.Context, method string, params json.RawMessage) (Message, error) {
	if h.ctx.Err() != nil {
		return Message{}, fmt.Errorf("%w: %w", ErrClosed, ErrNotSent)
	}
	if ctx.Err() != nil {
		return Message{}, fmt.Errorf("%w: %w", context.Cause(ctx), ErrNotSent)
	}
	id := numberID(h.lastID.Add(1))
	reqCtx, release, stop := h.exchange(ctx)
	m, rest, err := h.call(reqCtx, id, method, Request(json.RawMessage(id), method, params))
	release()
	if rest != nil {
		h.drain(rest, stop)
	} else {
		stop()
	}
	if err == nil {
		return m, nil
	}
	if h.ctx.Err() != nil {
		return m, errors.Join(ErrClosed, keepNotSent(err))
	}
	if ctx.Err() != nil {
		if !errors.Is(err, ErrNotSent) && method != "initialize" { // MCP lifecycle: it must not be cancelled
			h.tellCancelled(id, context.Cause(ctx))
		}
		return m, errors.Join(context.Cause(ctx), keepNotSent(err))
	}
	return m, err
}

func keepNotSent(err error) error {
	if errors.Is(err, ErrNotSent) {
		return ErrNotSent
	}
	return nil
}

// exchange returns the context of one exchange. It ends with the conversation,
// with stop, and, until release, with ctx: what is left of a stream is read
// after the call it belonged to is over.
func (h *HTTP) exchange(ctx context.Context) (exchange context.Context, release, stop func()) {
	x, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unlinkCall := context.AfterFunc(ctx, cancel)
	unlinkLife := context.AfterFunc(h.ctx, cancel)
	return x, func() { unlinkCall() }, func() { unlinkLife(); cancel() }
}

func (h *HTTP) tellCancelled(id string, cause error) {
	h.begin(func() {
		ctx, cancel := context.WithTimeout(h.ctx, cancelGrace)
		defer cancel()
		if err := h.Send(ctx, cancelled(id, cause)); err != nil && h.ctx.Err() == nil {
			h.o.Problem(fmt.Errorf("tell the upstream of a cancelled call: %w", err))
		}
	})
}

// call makes one exchange. A rest is a stream that goes on after the answer.
func (h *HTTP) call(ctx context.Context, id, method string, msg []byte) (answer Message, rest *remains, err error) {
	resp, err := h.post(ctx, msg)
	if err != nil {
		return Message{}, nil, err
	}
	if method == "initialize" {
		if s := resp.Header.Get("Mcp-Session-Id"); s != "" {
			h.session.Store(&s)
		}
	}
	ok := resp.StatusCode/100 == 2
	if ok && mediaType(resp) == "text/event-stream" {
		events := NewEventReader(resp.Body, h.o.MaxMessage)
		answer, err = h.stream(events, id)
		if err != nil {
			_ = resp.Body.Close() // the error that counts is the stream's
			return Message{}, nil, err
		}
		return answer, &remains{resp.Body, events}, nil
	}
	raw, err := readAll(resp, h.o.MaxMessage)
	if err != nil && ok {
		return Message{}, nil, err
	}
	if resp.StatusCode == http.StatusNotFound && h.session.Load() != nil {
		return Message{}, nil, ErrSessionExpired
	}
	if answer, err = h.body(raw, id); err == nil {
		// Servers of the TypeScript SDK say it with a 400 about no request.
		if resp.StatusCode == http.StatusBadRequest && answer.ID == nil && h.session.Load() != nil {
			return Message{}, nil, ErrSessionExpired
		}
		return answer, nil, nil
	}
	if ok {
		return Message{}, nil, fmt.Errorf("the upstream's answer (HTTP %d, content type %q) is no JSON-RPC response: %w",
			resp.StatusCode, resp.Header.Get("Content-Type"), err)
	}
	return Message{}, nil, h.statusError(resp, raw)
}

func (h *HTTP) statusError(resp *http.Response, body []byte) error {
	if resp.StatusCode == http.StatusNotFound && h.session.Load() != nil {
		return ErrSessionExpired
	}
	return &HTTPError{Status: resp.StatusCode, Body: string(body[:min(len(body), 512)])}
}

// body reads a JSON body: the response, or a batch that holds it.
func (h *HTTP) body(raw []byte, id string) (Message, error) {
	if IsBatch(raw) {
		messages, err := Elements(raw)
		if err != nil {
			return Message{}, err
		}
		var answer Message
		for _, r := range messages {
			m, err := ParseLenient(r)
			switch {
			case err != nil:
				return Message{}, err
			case m.IsResponse() && string(m.ID) == id:
				answer = m
			case !m.IsResponse():
				h.o.Handler(m)
			}
		}
		if answer.Raw == nil {
			return Message{}, errors.New("the batch holds no response to the request")
		}
		return answer, nil
	}
	m, err := ParseLenient(raw)
	if err != nil {
		return Message{}, err
	}
	// An error about a message that the server could not read comes without id.
	if !m.IsResponse() || (m.ID != nil || m.Error == nil) && string(m.ID) != id {
		return Message{}, errors.New("it does not answer the request that was sent")
	}
	return m, nil
}

// stream reads events up to the response with the given id.
func (h *HTTP) stream(events *EventReader, id string) (Message, error) {
	for {
		ev, err := events.Next()
		if errors.Is(err, io.EOF) {
			return Message{}, errors.New("the upstream ended the stream before it answered")
		}
		if err != nil {
			return Message{}, fmt.Errorf("read the upstream's stream: %w", err)
		}
		if answer, ok, err := h.event(ev, id); ok || err != nil {
			return answer, err
		}
	}
}

// event handles one event and reports whether it holds the response with id.
// The error is that of a response which cannot be read.
func (h *HTTP) event(ev Event, id string) (Message, bool, error) {
	if len(ev.Data) == 0 || ev.Type != "" && ev.Type != "message" {
		return Message{}, false, nil
	}
	if IsBatch(ev.Data) {
		answer, err := h.body(ev.Data, id)
		return answer, err == nil && id != "", nil
	}
	m, err := ParseLenient(ev.Data)
	switch {
	case err != nil && id != "" && string(findID(ev.Data)) == id:
		return Message{}, false, fmt.Errorf("the upstream's answer is no valid JSON-RPC message: %w", err)
	case err != nil:
		h.o.Problem(fmt.Errorf("an event that is no JSON-RPC message: %w", err))
	case !m.IsResponse():
		h.o.Handler(m)
	case id != "" && (string(m.ID) == id || m.ID == nil && m.Error != nil):
		return m, true, nil
	default:
		h.o.Problem(fmt.Errorf("a response that nobody waits for on this stream (id %s)", m.ID))
	}
	return Message{}, false, nil
}

// remains are of a stream that goes on after the answer.
type remains struct {
	body   io.ReadCloser
	events *EventReader
}

// drain reads the rest of a stream for a moment, then closes it: a body closed
// before its end costs the connection.
func (h *HTTP) drain(r *remains, stop func()) {
	h.begin(func() {
		defer stop()
		t := time.AfterFunc(drainGrace, stop)
		defer t.Stop()
		for {
			ev, err := r.events.Next()
			if err != nil {
				_ = r.body.Close() // it has ended, or is given up
				return
			}
			_, _, _ = h.event(ev, "") // nobody waits on it any more
		}
	})
}

// post sends msg. Only a connection that never wrote a header makes the error
// an ErrNotSent.
func (h *HTTP) post(ctx context.Context, msg []byte) (*http.Response, error) {
	var sent atomic.Bool
	trace := &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }, WroteHeaderField: func(string, []string) { sent.Store(true) }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodPost, h.o.URL, bytes.NewReader(msg))
	if err != nil {
		return nil, errors.Join(err, ErrNotSent)
	}
	h.head(req)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	resp, err := h.o.Client.Do(req)
	if err != nil && !sent.Load() {
		return nil, fmt.Errorf("%w: %w", err, ErrNotSent)
	}
	return resp, err
}

func (h *HTTP) head(req *http.Request) {
	maps.Copy(req.Header, h.o.Header)
	if s := h.session.Load(); s != nil {
		req.Header.Set("Mcp-Session-Id", *s)
	}
	if v := h.version.Load(); v != nil {
		req.Header.Set("Mcp-Protocol-Version", *v)
	}
}

// Send implements [Client]: it returns when the upstream has accepted msg.
func (h *HTTP) Send(ctx context.Context, msg []byte) error {
	if h.ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrClosed, ErrNotSent)
	}
	ctx, _, stop := h.exchange(ctx)
	defer stop()
	resp, err := h.post(ctx, msg)
	if err != nil {
		return err
	}
	raw, _ := readAll(resp, 64<<10) // only of interest when the status is bad
	if resp.StatusCode/100 == 2 {
		return nil
	}
	return h.statusError(resp, raw)
}

// Listen keeps the GET stream open until the conversation ends: reopened with
// backoff when it breaks, given up when the server says it has none. Call it
// once, after the handshake.
func (h *HTTP) Listen() {
	h.begin(func() {
		wait := backoff.NewExponentialBackOff()
		wait.MaxInterval = 30 * time.Second
		for h.ctx.Err() == nil {
			opened := time.Now()
			retry, err := h.listen()
			switch {
			case errors.Is(err, errNoStream), h.ctx.Err() != nil:
				return
			case errors.Is(err, ErrSessionExpired):
				h.end(err)
				return
			case err != nil && !errors.Is(err, io.EOF):
				h.o.Problem(fmt.Errorf("the upstream's event stream broke: %w", err))
			}
			if time.Since(opened) > wait.MaxInterval {
				wait.Reset()
			}
			// A server may ask for polling by retry, but one whose streams end at
			// once is not asked again at once.
			if time.Since(opened) < retry || retry == 0 || time.Since(opened) < shortStream {
				retry = max(retry, wait.NextBackOff())
			}
			select {
			case <-time.After(retry):
			case <-h.ctx.Done():
			}
		}
	})
}

var errNoStream = errors.New("the server offers no event stream")

func (h *HTTP) listen() (retry time.Duration, err error) {
	req, err := http.NewRequestWithContext(h.ctx, http.MethodGet, h.o.URL, nil)
	if err != nil {
		return 0, err
	}
	h.head(req)
	req.Header.Set("Accept", "text/event-stream")
	resp, err := h.o.Client.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 || mediaType(resp) != "text/event-stream" {
		raw, _ := readAll(resp, 64<<10)
		switch err := h.statusError(resp, raw); {
		case resp.StatusCode == http.StatusMethodNotAllowed || resp.StatusCode == http.StatusNotImplemented || resp.StatusCode/100 == 2:
			return 0, errNoStream
		case resp.StatusCode == http.StatusBadRequest && h.session.Load() != nil:
			return 0, ErrSessionExpired
		case errors.Is(err, ErrSessionExpired) || resp.StatusCode >= 500:
			return 0, err
		}
		return 0, errNoStream
	}
	events := NewEventReader(resp.Body, h.o.MaxMessage)
	for {
		ev, err := events.Next()
		if err != nil {
			return retry, err
		}
		if ev.Retry > 0 {
			retry = ev.Retry
		}
		_, _, _ = h.event(ev, "") // nobody waits on this stream
	}
}

func (h *HTTP) end(err error) {
	h.once.Do(func() {
		h.err = err
		close(h.done)
	})
}

// Done implements [Client].
func (h *HTTP) Done() <-chan struct{} { return h.done }

// Err implements [Client].
func (h *HTTP) Err() error {
	select {
	case <-h.done:
		return h.err
	default:
		return nil
	}
}

// closeGrace bounds the DELETE that ends a session.
const closeGrace = 100 * time.Millisecond

// Close implements [Client]. It ends the server's session, if there is one.
func (h *HTTP) Close() {
	h.end(ErrClosed)
	if s := h.session.Load(); s != nil && h.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
		if req, err := http.NewRequestWithContext(ctx, http.MethodDelete, h.o.URL, nil); err == nil {
			h.head(req)
			if resp, err := h.o.Client.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		}
		cancel()
	}
	h.mu.Lock()
	h.cancel(ErrClosed)
	h.mu.Unlock()
	h.wg.Wait()
	h.o.Client.CloseIdleConnections()
}

func mediaType(resp *http.Response) string {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// readAll reads a body of at most limit bytes to its end and closes it.
func readAll(resp *http.Response, limit int) ([]byte, error) {
	defer func() { _ = resp.Body.Close() }()
	if resp.ContentLength > int64(limit) {
		head, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // for a message about the status
		return head, &TooLargeError{Limit: limit}
	}
	var buf bytes.Buffer
	if resp.ContentLength > 0 {
		buf.Grow(int(resp.ContentLength) + bytes.MinRead)
	}
	n, err := buf.ReadFrom(io.LimitReader(resp.Body, int64(limit)+1))
	if err != nil {
		return buf.Bytes(), fmt.Errorf("read the upstream's answer: %w", err)
	}
	if n > int64(limit) {
		return buf.Bytes(), &TooLargeError{Limit: limit}
	}
	return buf.Bytes(), nil
}
