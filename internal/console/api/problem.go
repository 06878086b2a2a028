package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
)

// Problem is an error as a client sees it (RFC 9457).
type Problem struct {
	Type   string `json:"type"` // urn:haldir:problem:…
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	// Message is Detail again, where clients of the original product look for it.
	Message string `json:"error"`

	Refusal *proxy.Refusal  `json:"refusal,omitempty"`
	Content json.RawMessage `json:"content,omitempty"` // a refusal as MCP has it
	IsError bool            `json:"isError,omitempty"`
	Code    int             `json:"code,omitempty"` // of a JSON-RPC error of an upstream
	Data    json.RawMessage `json:"data,omitempty"`

	retry time.Time // when it may help to try again
	allow string    // the methods of a route
}

func (p *Problem) Error() string { return p.Detail }

// titles are the kinds of problems.
var titles = map[string]string{
	"malformed":         "The request cannot be understood",
	"unauthorized":      "A key is needed",
	"forbidden":         "This may not be done",
	"refused":           "Refused by policy",
	"not-found":         "There is no such thing",
	"method":            "The resource has no such method",
	"conflict":          "It is not as the request expects",
	"too-large":         "The request is too large",
	"mismatch":          "The idempotency key belongs to another request",
	"in-progress":       "The request is being handled",
	"outcome-unknown":   "What came of the request is not known",
	"rate":              "Too many requests",
	"upstream":          "The upstream did not answer well",
	"unavailable":       "The ledger cannot be used",
	"internal":          "A mistake in haldir",
	"misdirected":       "The request is not for this server",
	"answer-not-stored": "The answer was too large to be kept",
}

// NewProblem makes a problem of a kind.
func NewProblem(status int, kind, format string, args ...any) *Problem {
	title, ok := titles[kind]
	if !ok {
		panic("a problem of no kind: " + kind)
	}
	detail := fmt.Sprintf(format, args...)
	return &Problem{Type: "urn:haldir:problem:" + kind, Title: title, Status: status, Detail: detail, Message: detail}
}

func malformed(format string, args ...any) *Problem {
	return NewProblem(http.StatusBadRequest, "malformed", format, args...)
}

func notFound(format string, args ...any) *Problem {
	return NewProblem(http.StatusNotFound, "not-found", format, args...)
}

// Wait says when it may help to try again.
func (p *Problem) Wait(until time.Time) *Problem {
	p.retry = until
	return p
}

// problemOf turns any error into a problem.
func problemOf(err error) *Problem {
	var p *Problem
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &large):
		return NewProblem(http.StatusRequestEntityTooLarge, "too-large", "a body may have %d bytes", large.Limit)
	case errors.Is(err, ledger.ErrNoSession), errors.Is(err, ledger.ErrNoKey):
		return notFound("%v", err)
	case ledger.Retryable(err) && errors.Is(err, ledger.ErrBusy):
		return NewProblem(http.StatusServiceUnavailable, "unavailable", "%v", err)
	case errors.Is(err, ledger.ErrDamaged), errors.Is(err, ledger.ErrNewer), errors.Is(err, ledger.ErrClosed):
		return NewProblem(http.StatusServiceUnavailable, "unavailable", "%v", err)
	}
	return NewProblem(http.StatusInternalServerError, "internal", "%v", err)
}

// Write sends a problem.
func (p *Problem) Write(w http.ResponseWriter) {
	if p.allow != "" {
		w.Header().Set("Allow", p.allow)
	}
	if !p.retry.IsZero() {
		seconds := int64(max(1, time.Until(p.retry).Seconds()+0.999))
		w.Header().Set("Retry-After", strconv.FormatInt(seconds, 10))
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_, _ = w.Write(encode(p)) // who does not read it is gone
}

// encode is how the API writes JSON.
func encode(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err)) // what the API answers can be encoded
	}
	return b.Bytes()
}

// refused is the problem of a call that haldir did not let through.
func refused(r *proxy.Refusal) *Problem {
	status := http.StatusForbidden
	switch r.Policy {
	case policy.PolicyUnknownTool:
		status = http.StatusNotFound
	case "unavailable", "ledger":
		status = http.StatusServiceUnavailable
	}
	p := NewProblem(status, "refused", "%s", r.Error)
	type block struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	p.Refusal, p.IsError, p.retry = r, true, r.RetryAt
	p.Content = bytes.TrimSpace(encode([]block{{"text", string(bytes.TrimSpace(encode(r)))}}))
	return p
}
