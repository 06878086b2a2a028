package wire

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"
)

// Client is one conversation with an upstream, haldir being the client. It is
// safe for concurrent use.
type Client interface {
	// Call sends a request under an id of its own and returns the response with
	// that id. Messages that the upstream sends in between go to the [Handler],
	// each before the response that follows it. When ctx ends first, the
	// upstream is told by notifications/cancelled and the error is ctx's cause.
	// An error that wraps [ErrNotSent] means that no byte of the request left;
	// any other leaves that open.
	Call(ctx context.Context, method string, params json.RawMessage) (Message, error)
	// Send sends a notification or a response.
	Send(ctx context.Context, msg []byte) error
	// Done is closed when the conversation is over; Err then says why.
	Done() <-chan struct{}
	Err() error
	// Close ends the conversation and returns when nothing of it runs on.
	Close()
}

// Handler takes each message from the upstream that is no response: requests
// and notifications, in their order on their stream. The stream waits for it, so
// that a slow host slows the upstream instead of filling memory.
type Handler func(Message)

type markKey struct{}

// WithMark returns a context for a call: what comes on a stream that is the call's
// own carries the mark, by which its receiver knows the call. What comes on a
// stream that all calls share carries none.
func WithMark(ctx context.Context, mark any) context.Context {
	return context.WithValue(ctx, markKey{}, mark)
}

// ErrNotSent is wrapped by an error of [Client.Call] when the request certainly
// never left haldir.
var ErrNotSent = errors.New("not sent")

// ErrOutcomeUnknown is wrapped by an error of [Client.Call] when the request left
// and the connection broke before its answer: nobody can tell whether the
// upstream carried it out.
var ErrOutcomeUnknown = errors.New("whether the upstream carried it out is unknown")

// ErrClosed is wrapped by errors of a conversation that haldir has ended.
var ErrClosed = errors.New("connection closed")

// ErrSessionExpired is returned when an HTTP upstream refuses a request because
// it no longer knows the session. A server that keeps to the protocol has not
// handled the request then; one that does not may have, so it is not
// [ErrNotSent].
var ErrSessionExpired = errors.New("the upstream does not know the session any more")

// cancelGrace bounds the notice of a cancellation, which outlives the call.
const cancelGrace = 5 * time.Second

func cancelled(id string, cause error) []byte {
	params := append([]byte(`{"requestId":`), id...)
	if cause != nil {
		params = append(append(params, `,"reason":`...), Quote(cause.Error())...)
	}
	return Notification("notifications/cancelled", append(params, '}'))
}

func numberID(n int64) string { return strconv.FormatInt(n, 10) }
