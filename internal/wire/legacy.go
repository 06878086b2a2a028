package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"
)

// SSE is a [Client] over the HTTP+SSE transport of revision 2024-11-05, which
// later revisions deprecate: one stream of events brings all that the server
// says, its first event names the endpoint to which messages are posted.
type SSE struct {
	web
	inbox    inbox
	endpoint string
}

// DialSSE opens the stream and waits for the endpoint; the conversation ends
// when the stream does. ctx is for the opening alone.
func DialSSE(ctx context.Context, o HTTPOptions) (*SSE, error) {
	s := &SSE{inbox: newInbox(o.Handler)}
	s.init(o)
	life, release, stop := s.exchange(ctx)
	body, events, err := s.open(life)
	release()
	if err != nil {
		stop()
		s.shut()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("open the event stream of HTTP+SSE: %w", err)
	}
	s.begin(func() {
		defer stop()
		defer func() { _ = body.Close() }()
		s.end(s.read(events))
	})
	return s, nil
}

func (s *SSE) open(ctx context.Context) (io.ReadCloser, *EventReader, error) {
	resp, err := s.get(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	events := NewEventReader(resp.Body, s.o.MaxMessage)
	for {
		ev, err := events.Next()
		if err == nil && ev.Type != "endpoint" {
			continue
		}
		if err == nil {
			s.endpoint, err = endpoint(resp.Request.URL, string(ev.Data))
		}
		if err != nil {
			_ = resp.Body.Close()
			return nil, nil, err
		}
		return resp.Body, events, nil
	}
}

// endpoint resolves the address that a server gives. It must be the server's
// own: messages carry credentials.
func endpoint(from *url.URL, given string) (string, error) {
	to, err := from.Parse(given)
	if err != nil {
		return "", errors.New("the endpoint that the server names is no URL")
	}
	if !SameOrigin(from, to) {
		return "", fmt.Errorf("the endpoint that the server names, %s, is another server's", Printable(to.Scheme+"://"+to.Host, 200))
	}
	return to.String(), nil
}

// read sorts what the stream brings and returns why it ended.
func (s *SSE) read(events *EventReader) error {
	for {
		ev, err := events.Next()
		switch {
		case errors.Is(err, io.EOF):
			return errors.New("the upstream ended its event stream")
		case err != nil:
			return fmt.Errorf("the upstream's event stream broke: %w", err)
		case len(ev.Data) == 0 || ev.Type != "" && ev.Type != "message":
			continue
		}
		if err := s.inbox.take(ev.Data); err != nil {
			s.o.Problem(fmt.Errorf("on the upstream's stream: %w", err))
		}
	}
}

// Call implements [Client].
func (s *SSE) Call(ctx context.Context, method string, params json.RawMessage) (Message, error) {
	if err := s.usable(ctx); err != nil {
		return Message{}, err
	}
	if err := s.Err(); err != nil {
		return Message{}, fmt.Errorf("%w: %w", err, ErrNotSent)
	}
	id := numberID(s.lastID.Add(1))
	answer := s.inbox.expect(id)
	defer s.inbox.forget(id)
	m, err := s.call(ctx, id, Request(json.RawMessage(id), method, params), answer)
	if err != nil {
		s.tellCancelled(ctx, s.endpoint, id, method, err)
		err = s.outcome(ctx, err)
	}
	return m, err
}

// posted is what became of a POST: accepted, failed, or refused with an answer.
type posted struct {
	refusal Message
	err     error
}

// call posts a request while it waits for the answer: a server may handle it
// before it accepts it.
func (s *SSE) call(ctx context.Context, id string, msg []byte, answer <-chan Message) (Message, error) {
	exchange, release, stop := s.exchange(ctx)
	posting := make(chan posted, 1)
	if !s.begin(func() { posting <- s.request(exchange, id, msg); stop() }) {
		stop()
		return Message{}, ErrNotSent
	}
	for waiting := posting; ; {
		var err error
		select {
		case m := <-answer:
			if release(); waiting != nil {
				time.AfterFunc(drainGrace, stop) // a POST given up costs the connection
			}
			return m, nil
		case p := <-waiting:
			if p.refusal.Raw == nil && p.err == nil {
				waiting = nil
				continue
			}
			if err = p.err; err == nil {
				return p.refusal, nil
			}
		case <-s.done:
			err = giveUp(s.err, waiting, stop)
		case <-ctx.Done():
			err = giveUp(context.Cause(ctx), waiting, stop)
		}
		select { // the answer may have come with the end
		case m := <-answer:
			return m, nil
		default:
			return Message{}, err
		}
	}
}

// giveUp stops a POST that may still be under way and tells whether it had left.
func giveUp(cause error, waiting <-chan posted, stop func()) error {
	stop()
	if waiting != nil && errors.Is((<-waiting).err, ErrNotSent) {
		return fmt.Errorf("%w: %w", cause, ErrNotSent)
	}
	return fmt.Errorf("%w: %w", cause, ErrOutcomeUnknown)
}

// request posts a request. A server may refuse it by a JSON-RPC error.
func (s *SSE) request(ctx context.Context, id string, msg []byte) posted {
	resp, err := s.post(ctx, s.endpoint, msg, nil)
	if err != nil {
		return posted{err: err}
	}
	raw, _ := readAll(resp, s.o.MaxMessage) // only of interest when the status is bad
	if success(resp) {
		return posted{}
	}
	if m, err := ParseLenient(raw); err == nil && m.Error != nil && answers(m, id) {
		return posted{refusal: m}
	}
	return posted{err: statusError(resp, raw)}
}

// Send implements [Client]: it returns when the upstream has accepted msg.
func (s *SSE) Send(ctx context.Context, msg []byte) error {
	if err := s.Err(); err != nil {
		return fmt.Errorf("%w: %w", err, ErrNotSent)
	}
	return s.send(ctx, s.endpoint, msg)
}

// Close implements [Client]. The end of its stream is the end of the session.
func (s *SSE) Close() { s.shut() }
