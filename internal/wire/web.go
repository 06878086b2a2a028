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
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// HTTPOptions configure [NewHTTP] and [DialSSE].
type HTTPOptions struct {
	URL string
	// Client is the conversation's own: its idle connections are closed at the end. An
	// error of its transport that wraps [ErrNotSent] says that a request was refused
	// before anything was made of it.
	Client  *http.Client
	Header  http.Header // sent with every request
	Handler Handler
	// Mirror returns the headers of a tool's parameters (x-mcp-header), which a
	// modern request carries; nil: none has any.
	Mirror func(tool string, arguments json.RawMessage) http.Header
	// Problem takes what goes wrong outside a call, for the log.
	Problem    func(error)
	MaxMessage int // bytes of one message; 0 means [DefaultMaxMessage]
}

// HTTPError is an answer whose status is no success and whose body is no
// JSON-RPC message.
type HTTPError struct {
	Status   int
	Body     string // its first 512 bytes
	Location string // where a redirect leads, without what may be secret
}

const shownBody = 512

func (e *HTTPError) Error() string {
	s := fmt.Sprintf("HTTP %d %s", e.Status, http.StatusText(e.Status))
	text := strings.TrimSpace(e.Body)
	if len(e.Body) >= shownBody {
		text += "…" // it may have been cut in the middle of a secret
	}
	if body := Printable(text, 200); body != "" {
		s += ": " + body
	}
	return s
}

func statusError(resp *http.Response, body []byte) error {
	e := &HTTPError{Status: resp.StatusCode, Body: string(body[:min(len(body), shownBody)])}
	if to, err := resp.Location(); err == nil {
		to.User, to.RawQuery, to.ForceQuery, to.Fragment = nil, "", false, ""
		e.Location = Printable(to.String(), 200)
	}
	return e
}

// web is what the two HTTP transports share: the life of a conversation, and
// requests that carry its headers.
type web struct {
	o       HTTPOptions
	session atomic.Pointer[string]
	version atomic.Pointer[string]
	lastID  atomic.Int64

	ctx    context.Context //nolint:containedctx // the life of the conversation, ended by Close
	cancel context.CancelCauseFunc
	done   chan struct{}
	once   sync.Once
	err    error
	bodies pool
	mu     sync.Mutex // guards the beginning of work against the end of it
	wg     sync.WaitGroup
}

func (w *web) init(o HTTPOptions) {
	if o.MaxMessage <= 0 {
		o.MaxMessage = DefaultMaxMessage
	}
	w.o, w.done = o, make(chan struct{})
	w.ctx, w.cancel = context.WithCancelCause(context.Background())
}

// SetVersion makes every later request carry MCP-Protocol-Version, and speak the
// transport of that revision; "" means that none has been agreed on.
func (w *web) SetVersion(v string) {
	if v == "" {
		w.version.Store(nil)
		return
	}
	w.version.Store(&v)
}

// modern reports whether a revision without sessions is spoken.
func (w *web) modern() bool {
	v := w.version.Load()
	return v != nil && KnownModern(*v)
}

// begin starts work that the end of the conversation waits for; after that it
// starts nothing and returns false.
func (w *web) begin(f func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx.Err() != nil {
		return false
	}
	w.wg.Go(f)
	return true
}

func (w *web) end(err error) {
	w.once.Do(func() {
		w.err = err
		close(w.done)
	})
}

// shut stops all that runs on and waits for it.
func (w *web) shut() {
	w.end(ErrClosed)
	w.mu.Lock()
	w.cancel(ErrClosed)
	w.mu.Unlock()
	w.wg.Wait()
	w.o.Client.CloseIdleConnections()
}

// Done implements [Client].
func (w *web) Done() <-chan struct{} { return w.done }

// Err implements [Client].
func (w *web) Err() error {
	select {
	case <-w.done:
		return w.err
	default:
		return nil
	}
}

// do sends a request. Its error names the host only: the rest of a URL may be a
// secret.
func (w *web) do(req *http.Request) (*http.Response, error) {
	resp, err := w.o.Client.Do(req) //nolint:gosec // the address is the config's
	if e, ok := errors.AsType[*url.Error](err); ok {
		if errors.Is(e.Err, ErrNotSent) || errors.Is(e.Err, ErrOutcomeUnknown) { // it says itself what is to be said
			return nil, e.Err
		}
		if strings.Contains(e.Err.Error(), req.URL.Host) {
			return nil, e.Err
		}
		return nil, fmt.Errorf("%s: %w", req.URL.Host, e.Err)
	}
	return resp, err
}

// usable says why a call cannot be made, before anything of it is sent.
func (w *web) usable(ctx context.Context) error {
	if w.ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrClosed, ErrNotSent)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), ErrNotSent)
	}
	return nil
}

// exchange returns the context of one exchange. It ends with the conversation,
// with stop, and, until release, with ctx: what is left of a stream is read
// after the call it belonged to is over.
func (w *web) exchange(ctx context.Context) (exchange context.Context, release, stop func()) {
	x, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unlinkCall := context.AfterFunc(ctx, cancel)
	unlinkLife := context.AfterFunc(w.ctx, cancel)
	return x, func() { unlinkCall() }, func() { unlinkLife(); cancel() }
}

// outcome is the error of a call, once it is known whether the call was given up
// or the conversation ended.
func (w *web) outcome(ctx context.Context, err error) error {
	var unsent error
	if errors.Is(err, ErrNotSent) {
		unsent = ErrNotSent
	}
	switch {
	case w.ctx.Err() != nil:
		return errors.Join(ErrClosed, unsent)
	case ctx.Err() != nil:
		return errors.Join(context.Cause(ctx), unsent)
	}
	return err
}

// tellCancelled tells the server of a call that was given up, if it can have
// heard of it. MCP lifecycle: initialize must not be cancelled. To a modern server
// the end of the exchange has said so (2026-07-28, cancellation).
func (w *web) tellCancelled(ctx context.Context, url, id, method string, err error) {
	if w.ctx.Err() != nil || ctx.Err() == nil || errors.Is(err, ErrNotSent) || method == "initialize" || w.modern() {
		return
	}
	w.begin(func() {
		notice, stop := context.WithTimeout(w.ctx, cancelGrace)
		defer stop()
		if err := w.send(notice, url, cancelled(id, context.Cause(ctx))); err != nil && w.ctx.Err() == nil {
			w.o.Problem(fmt.Errorf("tell the upstream of a cancelled call: %w", err))
		}
	})
}

// post sends msg. Only a connection that never wrote a header makes the error
// an ErrNotSent; after that, nobody can tell what became of it.
func (w *web) post(ctx context.Context, url string, msg []byte, extra http.Header) (*http.Response, error) {
	var sent atomic.Bool
	trace := &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }, WroteHeaderField: func(string, []string) { sent.Store(true) }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodPost, url, bytes.NewReader(msg))
	if err != nil {
		return nil, errors.Join(err, ErrNotSent)
	}
	w.head(req)
	maps.Copy(req.Header, extra)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	resp, err := w.do(req)
	switch {
	case err == nil:
		return resp, nil
	case errors.Is(err, ErrNotSent), errors.Is(err, ErrOutcomeUnknown):
		return nil, err
	case sent.Load():
		return nil, fmt.Errorf("%w: %w", err, ErrOutcomeUnknown)
	}
	return nil, fmt.Errorf("%w: %w", err, ErrNotSent)
}

// get asks for a stream of events, for what comes after the event lastID if
// that is not empty.
func (w *web) get(ctx context.Context, lastID string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.o.URL, nil)
	if err != nil {
		return nil, err
	}
	w.head(req)
	req.Header.Set("Accept", "text/event-stream")
	if lastID != "" {
		req.Header.Set("Last-Event-Id", lastID)
	}
	resp, err := w.do(req)
	if err != nil {
		return nil, err
	}
	if success(resp) && mediaType(resp) == eventStream {
		return resp, nil
	}
	raw, _ := readAll(resp, 64<<10) // only of interest for the message
	if w.expired(resp.StatusCode, raw, false) {
		return nil, ErrSessionExpired
	}
	return nil, statusError(resp, raw)
}

func (w *web) head(req *http.Request) {
	maps.Copy(req.Header, w.o.Header)
	if s := w.session.Load(); s != nil {
		req.Header.Set("Mcp-Session-Id", *s)
	}
	if v := w.version.Load(); v != nil {
		req.Header.Set("Mcp-Protocol-Version", *v)
	}
}

// send posts what has no answer and returns when it is accepted.
func (w *web) send(ctx context.Context, url string, msg []byte) error {
	if w.ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrClosed, ErrNotSent)
	}
	ctx, _, stop := w.exchange(ctx)
	defer stop()
	resp, err := w.post(ctx, url, msg, nil)
	if err != nil {
		return err
	}
	raw, _ := readAll(resp, 64<<10) // only of interest when the status is bad
	switch {
	case success(resp):
		return nil
	case w.expired(resp.StatusCode, raw, false):
		return ErrSessionExpired
	}
	return statusError(resp, raw)
}

// expired reports whether a refusal says that the server does not know the
// session any more. Transports, session management: it does so by a 404.
// Unless the body answers the very request: the request was read then. Some
// servers use a 400, known by their words; another 400 is the server's answer
// and no reason to make a call again.
func (w *web) expired(status int, body []byte, answered bool) bool {
	switch {
	case w.session.Load() == nil:
		return false
	case status == http.StatusNotFound && !answered:
		return true
	case status == http.StatusNotFound, status == http.StatusBadRequest && !answered:
		return expiryWords[expiryText(body)]
	}
	return false
}

// expiryWords are the refusals, as [expiryText] gives them, by which servers in
// use tell of a session that they do not know.
var expiryWords = map[string]bool{
	"no valid session id provided":                     true, // TypeScript SDK's examples, server-everything, Python SDK before 1.26
	"no valid session id or not an initialize request": true,
	"invalid or missing session id":                    true, // TypeScript SDK's README
	"invalid session id":                               true, // mcp-go
	"session not found":                                true, // go-sdk, TypeScript and Python SDKs
	"session terminated":                               true, // mcp-go
	"server not initialized":                           true, // TypeScript SDK, on a transport made anew for an unknown session
}

func expiryText(body []byte) string {
	text := string(body[:min(len(body), shownBody)])
	if m, err := ParseLenient(body); err == nil && m.Error != nil {
		text = ErrorOf(m).Message
	}
	text = strings.ToLower(strings.Trim(text, " \t\r\n."))
	return strings.TrimPrefix(strings.TrimPrefix(text, "bad request: "), "not found: ")
}

const eventStream = "text/event-stream"

func success(resp *http.Response) bool { return resp.StatusCode/100 == 2 }

func mediaType(resp *http.Response) string {
	given := resp.Header.Get("Content-Type")
	if given == eventStream || given == "application/json" { // as nearly all are
		return given
	}
	t, _, err := mime.ParseMediaType(given)
	if err != nil {
		return ""
	}
	return t
}

// SameOrigin reports whether two URLs have scheme, host and port in common (RFC
// 6454 section 5): what carries credentials to one may carry them to the other.
func SameOrigin(a, b *url.URL) bool {
	return strings.EqualFold(a.Scheme, b.Scheme) && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	switch p := u.Port(); {
	case p != "":
		return p
	case strings.EqualFold(u.Scheme, "https"):
		return "443"
	}
	return "80"
}

// readAll reads a body of at most limit bytes to its end and closes it.
func readAll(resp *http.Response, limit int) ([]byte, error) {
	buf, err := readRoomy(resp, limit, nil)
	return buf[room:], err
}

// readRoomy is readAll with room before the body, in memory from p.
func readRoomy(resp *http.Response, limit int, p *pool) ([]byte, error) {
	defer func() { _ = resp.Body.Close() }()
	if resp.ContentLength > int64(limit) {
		head, _ := io.ReadAll(io.LimitReader(resp.Body, shownBody)) // for a message about the status
		return append(make([]byte, room), head...), &TooLargeError{Limit: limit}
	}
	buf := p.grow(nil, room+max(4<<10, int(resp.ContentLength)+1))[:room] // one more, to see the end without growing
	for {
		if len(buf) == cap(buf) {
			buf = p.grow(buf, more(len(buf)))
		}
		n, err := resp.Body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case len(buf)-room > limit:
			return buf, &TooLargeError{Limit: limit}
		case errors.Is(err, io.EOF):
			return buf, nil
		case err != nil:
			return buf, fmt.Errorf("read the upstream's answer: %w: %w", err, ErrOutcomeUnknown)
		}
	}
}

// more is how much a buffer of unknown end grows: fast while it is small, as each
// time all of it is copied.
func more(size int) int {
	if size < 256<<10 {
		return 3 * size
	}
	return size
}

// sleep returns false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
