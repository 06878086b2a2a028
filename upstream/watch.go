package upstream

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// subscription is a stream of subscriptions/listen (MCP 2026-07-28, subscriptions)
// for one resource.
type subscription struct {
	stop    context.CancelFunc
	once    sync.Once
	settled chan struct{} // closed at the first acknowledgement, or when there is none
	err     error         // why there is none
	again   bool          // it was open before; guarded by the connection's mu
}

// tell gives the outcome to whoever waits for it.
func (s *subscription) tell(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.settled)
	})
}

// observe opens the stream that tells of changed lists and waits a moment for it,
// so that a change after the lists were read is not lost.
func (c *conn) observe(ctx context.Context, report func(error)) {
	var filter struct {
		Tools     bool `json:"toolsListChanged,omitempty"`
		Prompts   bool `json:"promptsListChanged,omitempty"`
		Resources bool `json:"resourcesListChanged,omitempty"`
	}
	for name, wanted := range map[string]*bool{"tools": &filter.Tools, "prompts": &filter.Prompts, "resources": &filter.Resources} {
		changes, _ := wire.At(c.offers.server, "capabilities", name, "listChanged")
		*wanted = string(changes.Value) == "true"
	}
	if !filter.Tools && !filter.Prompts && !filter.Resources {
		return
	}
	raw, err := json.Marshal(filter)
	if err != nil {
		return // booleans
	}
	lists := &subscription{stop: func() {}, settled: make(chan struct{})}
	c.watch(c.life, "", lists, raw)
	select {
	case <-lists.settled:
		if lists.err != nil {
			report(lists.err)
		}
	case <-time.After(openGrace):
	case <-ctx.Done():
	}
}

// watch keeps a stream open until ctx ends, under the URI it is for, "" for that of
// the lists. If there is one already, it is that which is returned.
func (c *conn) watch(ctx context.Context, uri string, s *subscription, filter json.RawMessage) *subscription {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch before := c.watches[uri]; {
	case before != nil:
		s.stop()
		return before
	case c.closing:
		s.tell(wire.ErrClosed)
		return s
	}
	c.watches[uri] = s
	c.wg.Go(func() {
		wait := backoff.NewExponentialBackOff()
		wait.MaxInterval = maxBackoff
		for again := false; ctx.Err() == nil; again = true {
			c.mu.Lock()
			s.again = again
			c.mu.Unlock()
			opened := time.Now()
			m, err := c.request(ctx, Call{Method: "subscriptions/listen", Params: fmt.Appendf(nil, `{"notifications":%s}`, filter)})
			if err == nil && m.Error != nil {
				if err = refusal(m); !again && wire.ErrorOf(m).Code != wire.CodeInternal {
					s.tell(err)
					return // it will not have it
				}
			}
			s.tell(fmt.Errorf("subscriptions/listen: the stream ended (%w)", orEnd(err)))
			if time.Since(opened) > maxBackoff {
				wait.Reset()
			}
			select {
			case <-time.After(wait.NextBackOff()):
			case <-ctx.Done():
			case <-c.peer().Done():
				return
			}
		}
	})
	return s
}

func orEnd(err error) error {
	if err == nil {
		return wire.ErrClosed
	}
	return err
}

// acknowledged takes what a server says a stream will bring.
func (c *conn) acknowledged(params json.RawMessage) {
	var p struct {
		Notifications struct {
			Tools     bool     `json:"toolsListChanged"`
			Prompts   bool     `json:"promptsListChanged"`
			Resources bool     `json:"resourcesListChanged"`
			URIs      []string `json:"resourceSubscriptions"`
		} `json:"notifications"`
	}
	if json.Unmarshal(params, &p) != nil {
		return
	}
	n := p.Notifications
	missed := false
	c.mu.Lock()
	if s := c.watches[""]; s != nil && (n.Tools || n.Prompts || n.Resources) {
		s.tell(nil)
		missed, s.again = s.again, false
	}
	for _, uri := range n.URIs {
		if s := c.watches[uri]; s != nil {
			s.tell(nil)
		}
	}
	c.mu.Unlock()
	if missed { // what has changed before the stream was open again nobody has told
		for _, l := range lists {
			c.changed(l.changed)
		}
	}
}

// subscribe is resources/subscribe to a modern server.
func (c *conn) subscribe(ctx context.Context, call Call) (wire.Message, error) {
	at, _ := wire.At(call.Params, "uri")
	uri, ok := wire.String(at.Value)
	if !ok {
		return wire.ParseLenient(wire.Failure(&wire.Error{Code: wire.CodeInvalidParams, Message: "resources/subscribe needs a uri", ID: json.RawMessage("0")}))
	}
	life, stop := context.WithCancel(c.life)
	mine := &subscription{stop: stop, settled: make(chan struct{})}
	s := c.watch(life, uri, mine, fmt.Appendf(nil, `{"resourceSubscriptions":[%s]}`, at.Value))
	var err error
	select {
	case <-s.settled:
		err = s.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-time.After(ackWait):
		// A server that leaves the resource out of what it acknowledges says no more.
		err = &wire.Error{Code: wire.CodeInvalidParams, Message: "the server does not tell of changes of " + wire.Printable(uri, shown)}
	}
	if err == nil {
		return done()
	}
	if s == mine { // else it is another caller's
		c.unsubscribe(uri)
	}
	if e, refused := err.(*wire.Error); refused { //nolint:errorlint // as it was made
		own := *e
		own.ID = json.RawMessage("0")
		return wire.ParseLenient(wire.Failure(&own))
	}
	return wire.Message{}, err
}

// ackWait bounds how long a server may take to acknowledge a subscription.
const ackWait = 5 * time.Second

func (c *conn) unsubscribe(uri string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.watches[uri]; s != nil && uri != "" {
		s.stop()
		delete(c.watches, uri)
	}
}
