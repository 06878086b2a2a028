package telemetry

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/protobuf/proto"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// Endpoint is where one signal is sent to. It is safe for concurrent use.
type Endpoint struct {
	url     string
	name    string // without what may be secret
	header  http.Header
	timeout time.Duration
	gzip    bool
	client  *http.Client
}

// String returns scheme and host and, for what else there is and may be secret, a hash.
func (e *Endpoint) String() string { return e.name }

// URL returns the whole of it, which tells it from others and may have a secret in it: it is
// not to be shown.
func (e *Endpoint) URL() string { return e.url }

// refusal is an answer that is not a success, or none.
type refusal struct {
	status int           // 0 if there was no answer
	after  time.Duration // how long the server wants to be left alone; 0 if it does not say
	why    string
	kind   string // of one without status
}

func (r *refusal) Error() string { return r.why }

// kindOf is the same for faults that are told once: their words may have ports and addresses
// in them, which change with every connection.
func kindOf(err error) string {
	r, ok := errors.AsType[*refusal](err)
	switch {
	case !ok:
		return err.Error()
	case r.status != 0:
		return strconv.Itoa(r.status)
	}
	return r.kind
}

// passing reports whether the same request may be taken later, as OTLP has it.
func (r *refusal) passing() bool {
	switch r.status {
	case 0, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

const (
	maxAnswer = 64 << 10  // bytes that are read of an answer
	maxAfter  = time.Hour // of a Retry-After
	firstWait = time.Second / 2
	lastWait  = time.Minute
)

// post sends one request and reads the answer to it. The error is a [*refusal], or that of
// ctx.
func (e *Endpoint) post(ctx context.Context, request, answer proto.Message) error {
	body, err := proto.Marshal(request)
	if err != nil {
		return &refusal{status: http.StatusBadRequest, why: fmt.Sprintf("it cannot be written: %v", err)}
	}
	if e.gzip {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		_, err := w.Write(body)
		if err = errors.Join(err, w.Close()); err != nil {
			return &refusal{status: http.StatusBadRequest, why: err.Error()}
		}
		body = z.Bytes()
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return &refusal{status: http.StatusBadRequest, why: "the endpoint is no URL"}
	}
	r.Header = e.header.Clone()
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("User-Agent", "haldir")
	if e.gzip {
		r.Header.Set("Content-Encoding", "gzip")
	}
	resp, err := e.client.Do(r)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the URL, which may have a secret in it
		}
		return &refusal{why: fmt.Sprintf("%s: %v", e.name, err), kind: "no answer"}
	}
	defer func() { _ = resp.Body.Close() }() // it was read, as far as it is of use
	if !taken(resp.StatusCode) {
		return &refusal{status: resp.StatusCode, after: retryAfter(resp.Header), why: fmt.Sprintf("%s: %s", e.name, wire.Printable(resp.Status, 100))}
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil { // what it says about the records is lost
		return &refusal{why: fmt.Sprintf("%s: the answer broke off: %v", e.name, err), kind: "half an answer"}
	}
	if resp.StatusCode == http.StatusNoContent { // which has no body, whatever type it names
		return nil
	}
	if why := understand(text, resp.Header, answer); why != "" {
		return &refusal{status: resp.StatusCode, why: fmt.Sprintf("%s: %s, but %s", e.name, wire.Printable(resp.Status, 100), why)}
	}
	return nil
}

// taken reports whether a status says that all was taken: by OTLP that is 200 alone, and many
// backends that have no collector before them answer 202 or 204.
func taken(status int) bool {
	return status == http.StatusOK || status == http.StatusAccepted || status == http.StatusNoContent
}

// understand reads what an answer says, and returns what is wrong with it. An empty one without a
// type says that all was taken: backends leave both out. What is said in another type is no word
// of a collector, but a page to sign in, say.
func understand(text []byte, h http.Header, answer proto.Message) (wrong string) {
	kind, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	switch kind = strings.TrimSpace(kind); {
	case len(text) == 0 && kind == "":
		return ""
	case !strings.EqualFold(kind, "application/x-protobuf"):
		if kind == "" {
			kind = "no content type"
		}
		return fmt.Sprintf("with an answer of %s, where OTLP has application/x-protobuf or nothing; another server may have given it", wire.Printable(kind, 100))
	case proto.Unmarshal(text, answer) != nil:
		return "its answer is not the protobuf that OTLP has there"
	}
	return ""
}

func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return min(time.Duration(n)*time.Second, maxAfter)
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, min(time.Until(at), maxAfter))
	}
	return 0
}

// pause is how long to wait before another try.
type pause struct{ b *backoff.ExponentialBackOff }

func newPause() pause {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = firstWait, lastWait
	b.Reset()
	return pause{b}
}

// wait waits, at least as long as the server has asked for. It reports whether ctx goes on.
func (p pause) wait(ctx context.Context, after time.Duration) bool {
	return sleep(ctx, p.next(after))
}

func (p pause) next(after time.Duration) time.Duration { return max(p.b.NextBackOff(), after) }

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

// deliver posts until it is taken, until that is certain not to be, or ctx ends. Once ended is
// closed it does not try again: there is no time for that at the end of the process.
func (e *Endpoint) deliver(ctx context.Context, ended <-chan struct{}, request, answer proto.Message) error {
	for p := newPause(); ; {
		err := e.post(ctx, request, answer)
		r, ok := errors.AsType[*refusal](err)
		if !ok || !r.passing() {
			return err
		}
		select {
		case <-time.After(p.next(r.after)):
		case <-ctx.Done():
			return err
		case <-ended:
			return err
		}
	}
}
