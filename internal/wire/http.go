package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// HTTP is a [Client] over MCP's streamable HTTP transport, as it was up to revision
// 2025-11-25 (basic/transports) and, once SetVersion says so, as it is from
// 2026-07-28 on. Each request is a POST answered by JSON or by a stream of events. Up
// to 2025-11-25 there are sessions, streams that can be resumed, and one GET stream
// that carries what the server sends of its own accord.
type HTTP struct {
	web
	drains    chan struct{} // bounds the streams that are read after their answer
	listening atomic.Bool   // the GET stream is open
	heard     atomic.Int64  // counts the beginnings and the ends of handling an event of the GET stream
	trials    atomic.Int64  // counts the answers that waited for that stream before it brought anything
}

// drainGrace is how long the rest of a stream is read after its response, so
// that the connection can be used again, and maxDrains how many at once.
const (
	drainGrace = time.Second
	maxDrains  = 64
)

// NewHTTP starts a conversation; nothing is sent before the first call.
func NewHTTP(o HTTPOptions) *HTTP {
	h := &HTTP{drains: make(chan struct{}, maxDrains)}
	h.init(o)
	return h
}

// Call implements [Client].
func (h *HTTP) Call(ctx context.Context, method string, params json.RawMessage) (Message, error) {
	if err := h.usable(ctx); err != nil {
		return Message{}, err
	}
	id := numberID(h.lastID.Add(1))
	reqCtx, release, stop := h.exchange(ctx)
	m, rest, err := h.call(reqCtx, id, method, params)
	release()
	if rest == nil || !h.drain(rest, stop) {
		stop()
	}
	if err != nil {
		h.tellCancelled(ctx, h.o.URL, id, method, err)
		err = h.outcome(ctx, err)
	}
	return m, err
}

// Send implements [Client]: it returns when the upstream has accepted msg.
func (h *HTTP) Send(ctx context.Context, msg []byte) error { return h.send(ctx, h.o.URL, msg) }

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
	h.shut()
}

// call makes one exchange. A rest is a stream that goes on after the answer.
func (h *HTTP) call(ctx context.Context, id, method string, params json.RawMessage) (answer Message, rest *stream, err error) {
	var extra http.Header
	if h.modern() {
		extra = header(method, params, h.o.Mirror)
	}
	resp, err := h.post(ctx, h.o.URL, Request(json.RawMessage(id), method, params), extra)
	if err != nil {
		return Message{}, nil, err
	}
	if method == "initialize" {
		if s := resp.Header.Get("Mcp-Session-Id"); s != "" {
			h.session.Store(&s)
		}
	}
	if success(resp) && mediaType(resp) == eventStream {
		return h.follow(ctx, resp.Body, id)
	}
	buf, err := readRoomy(resp, h.o.MaxMessage, &h.bodies)
	if err != nil && success(resp) {
		return Message{}, nil, err
	}
	raw := buf[room:]
	body := bytes.TrimRight(raw, blank) // most end their line
	answer, err = h.body(body, id)
	if err == nil && len(answer.Raw) == len(body) {
		answer.roomy, answer.pool = buf[:room+len(body)], &h.bodies // it is not one of a batch
	}
	switch {
	case h.expired(resp.StatusCode, raw, err == nil && answer.ID != nil):
		return Message{}, nil, ErrSessionExpired
	case err == nil:
		if bytes.Contains(params, []byte("progressToken")) {
			h.hush(ctx)
		}
		return answer, nil, nil
	case success(resp):
		return Message{}, nil, fmt.Errorf("the upstream's answer (HTTP %d, content type %q) is no JSON-RPC response: %w",
			resp.StatusCode, Printable(resp.Header.Get("Content-Type"), 64), err)
	}
	return Message{}, nil, statusError(resp, raw)
}

// body reads a JSON body: the response, or a batch that holds it.
func (h *HTTP) body(raw []byte, id string) (Message, error) {
	if IsBatch(raw) {
		answer, err := h.take(raw, id, nil)
		if answer.Raw == nil {
			return Message{}, errors.Join(err, errors.New("the batch holds no response to the request"))
		}
		if err != nil {
			h.o.Problem(fmt.Errorf("beside an answer: %w", err))
		}
		return answer, nil
	}
	m, err := ParseLenient(raw)
	if err != nil {
		return Message{}, err
	}
	if !m.IsResponse() || !answers(m, id) {
		return Message{}, errors.New("it does not answer the request that was sent")
	}
	return m, nil
}

// answers reports whether a response is the one to the request with id. An error
// about a message that the server could not read comes without id.
func answers(m Message, id string) bool {
	return id != "" && (string(m.ID) == id || m.ID == nil && m.Error != nil)
}

// take sorts one message, or each of a batch: the response to the request with
// id is the answer, requests and notifications go to the handler. The error says
// what is neither.
func (h *HTTP) take(raw []byte, id string, mark any) (answer Message, err error) {
	if !IsBatch(raw) {
		return h.takeOne(raw, id, mark)
	}
	var bad *badAnswerError
	err = each(raw, func(r []byte) error {
		m, err := h.takeOne(r, id, mark)
		if m.Raw != nil {
			answer = m
		}
		_ = errors.As(err, &bad)
		return err
	})
	if bad != nil {
		err = bad
	}
	return answer, err
}

func (h *HTTP) takeOne(raw []byte, id string, mark any) (answer Message, err error) {
	m, err := ParseLenient(raw)
	switch {
	case err != nil && id != "" && string(findID(raw)) == id && claims(raw):
		return Message{}, &badAnswerError{err}
	case err != nil:
		return Message{}, fmt.Errorf("what is no JSON-RPC message: %w", err)
	case !m.IsResponse():
		m.Mark = mark
		h.o.Handler(m)
		return Message{}, nil
	case answers(m, id):
		return m, nil
	}
	return Message{}, errUnawaited(m)
}

// badAnswerError is a response that cannot be read. No other will come.
type badAnswerError struct{ error }

func (b *badAnswerError) Error() string {
	return "the upstream's answer is no valid JSON-RPC message: " + b.error.Error()
}

func (b *badAnswerError) Unwrap() error { return b.error }

// event sorts what one event holds. The answer is zero if it does not hold the
// response to the request with id; the error is a badAnswerError.
func (h *HTTP) event(ev Event, id string, mark any) (Message, error) {
	if len(ev.Data) == 0 || ev.Type != "" && ev.Type != "message" {
		return Message{}, nil
	}
	answer, err := h.take(ev.Data, id, mark)
	if answer.Raw != nil && len(answer.Raw) == len(ev.Data) {
		answer.roomy, answer.pool = ev.roomy, &h.bodies // it is not one of a batch
	}
	var bad *badAnswerError
	switch {
	case err == nil:
	case answer.Raw == nil && errors.As(err, &bad):
		return Message{}, bad
	default:
		h.o.Problem(fmt.Errorf("on the upstream's stream: %w", err))
	}
	return answer, nil
}

// stream is one of events, and where it was left, as its server counts.
type stream struct {
	body   io.ReadCloser
	events *EventReader
	lastID string
	retry  time.Duration
	tries  int // attempts to go on since it got any further
}

func (s *stream) open(body io.ReadCloser, limit int, p *pool) {
	s.body, s.events = body, NewEventReader(body, limit)
	s.events.pool = p
}

func (s *stream) next() (Event, error) {
	ev, err := s.events.Next()
	var large *TooLargeError
	if errors.As(err, &large) && s.events.id != "" {
		s.lastID = s.events.id // what comes after it is still wanted
	}
	if err != nil {
		return ev, err
	}
	if ev.ID != "" && ev.ID != s.lastID {
		s.lastID, s.tries = ev.ID, 0
	}
	if ev.Retry > 0 {
		s.retry = min(ev.Retry, maxRetry)
	}
	return ev, nil
}

// follow reads the stream of a POST up to the response to the request with id.
// Where it breaks, or the server closes it to be asked again, it goes on by GET
// from the last event's id (transports, resumability).
func (h *HTTP) follow(ctx context.Context, body io.ReadCloser, id string) (Message, *stream, error) {
	s := &stream{}
	s.open(body, h.o.MaxMessage, &h.bodies)
	for {
		ev, err := s.next()
		if err == nil {
			answer, err := h.event(ev, id, ctx.Value(markKey{}))
			switch {
			case err != nil:
				_ = s.body.Close() // the error that counts is the answer's
				return Message{}, nil, err
			case answer.Raw != nil:
				return answer, s, nil
			}
			continue
		}
		_ = s.body.Close() // it has ended, or is given up
		if errors.Is(err, io.EOF) {
			err = errors.New("the upstream ended the stream before it answered")
		}
		var large *TooLargeError
		if ctx.Err() != nil || errors.As(err, &large) {
			return Message{}, nil, fmt.Errorf("read the upstream's stream: %w", err)
		}
		if h.modern() { // which has no resumption
			return Message{}, nil, fmt.Errorf("%w: %w", err, ErrOutcomeUnknown)
		}
		if err := h.resume(ctx, s, err); err != nil {
			return Message{}, nil, err
		}
	}
}

// A stream that breaks and gets no further is asked for again so often, and after
// such a pause, doubled each time, or the longer one that the server names.
const (
	maxResumes  = 5
	resumePause = 100 * time.Millisecond
	// maxRetry bounds a pause that a server asks for: a call waits for it.
	maxRetry = 30 * time.Second
)

// resume opens the stream again where it was left.
func (h *HTTP) resume(ctx context.Context, s *stream, cause error) error {
	for s.lastID != "" && s.tries < maxResumes {
		pause := max(s.retry, resumePause<<s.tries)
		s.tries++
		if !sleep(ctx, pause) {
			return context.Cause(ctx)
		}
		resp, err := h.get(ctx, s.lastID)
		if err == nil {
			s.open(resp.Body, h.o.MaxMessage, &h.bodies)
			return nil
		}
		if errors.Is(err, ErrSessionExpired) {
			// The server had the request: it must not be made again, unlike one
			// that is refused by this error.
			h.end(ErrSessionExpired)
			return fmt.Errorf("%w, and %v: %w", cause, err, ErrOutcomeUnknown) //nolint:errorlint // on purpose
		}
		if cause = fmt.Errorf("%w; asked to go on: %w", cause, err); !passing(err) {
			break
		}
	}
	return fmt.Errorf("%w: %w", cause, ErrOutcomeUnknown)
}

// passing reports an error that may be gone at the next attempt: the connection's,
// the server's own, or that it has not noticed the end of the stream yet.
func passing(err error) bool {
	var status *HTTPError
	if !errors.As(err, &status) {
		return true
	}
	switch status.Status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented:
		return false
	}
	return status.Status >= http.StatusInternalServerError
}

// drain reads the rest of a stream for a moment, then closes it: a body closed
// before its end costs the connection. It calls stop if it returns true.
func (h *HTTP) drain(s *stream, stop func()) bool {
	select {
	case h.drains <- struct{}{}:
	default:
		_ = s.body.Close() // there are enough already
		return false
	}
	ok := h.begin(func() {
		defer func() { <-h.drains }()
		defer stop()
		t := time.AfterFunc(drainGrace, stop)
		defer t.Stop()
		for {
			ev, err := s.next()
			if err != nil {
				_ = s.body.Close() // it has ended, or is given up
				return
			}
			_, _ = h.event(ev, "", nil) // nobody waits on it any more
		}
	})
	if !ok {
		<-h.drains
		_ = s.body.Close()
	}
	return ok
}
