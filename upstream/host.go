package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// Host is the client before haldir, as its servers get to know it: they offer
// other things to other clients.
type Host struct {
	Version      string          // the MCP revision it asked for; "" means the latest
	Modern       bool            // it speaks without a handshake (MCP 2026-07-28)
	Capabilities json.RawMessage // as it declared them, with its first request if Modern; nil means none
	Peer         Peer            // nil: nobody takes what a server sends
	// Answered is closed when the host has its answer to its greeting, which the
	// start of servers must not hold up; nil means at once.
	Answered <-chan struct{}
}

// Peer takes what servers send of their own accord, in the order in which it
// comes. A server's stream waits for Notify and Ask.
type Peer interface {
	Notify(upstream string, m wire.Message)
	// Ask passes a request on. reply is called once, with the response under the
	// request's own id, or with nil when the request was taken back; it does not
	// block.
	Ask(upstream string, m wire.Message, reply func(response []byte))
	// Gone says that the requests of an upstream are void: its connection ended.
	Gone(upstream string)
}

// greeting is the params of initialize (MCP lifecycle, initialization).
func (h Host) greeting(version string) json.RawMessage {
	revision, capabilities := h.Version, h.Capabilities
	if !wire.KnownLegacy(revision) {
		revision = wire.LatestLegacy
	}
	if capabilities == nil {
		capabilities = json.RawMessage("{}")
	}
	if h.Modern {
		capabilities = portable(capabilities)
	}
	return fmt.Appendf(nil, `{"protocolVersion":%s,"capabilities":%s,"clientInfo":{"name":"haldir","version":%s}}`,
		wire.Quote(revision), capabilities, wire.Quote(version))
}

// portable leaves out of a host's capabilities what only a peer of its own era
// can use, and what haldir does not carry: tasks are a part of MCP in one
// revision and an extension from the next.
func portable(capabilities json.RawMessage) json.RawMessage {
	extensions, there := wire.At(capabilities, "extensions")
	fields := []wire.Field{{Name: "tasks"}}
	if there {
		fields = append(fields, wire.Field{Name: "extensions", Value: wire.Edit(extensions.Value, wire.Field{Name: TasksExtension})})
	}
	return wire.Edit(capabilities, fields...)
}

// TasksExtension is what tasks are called from MCP 2026-07-28 on.
const TasksExtension = "io.modelcontextprotocol/tasks"

// maxAsked bounds how many requests of one server wait for the host.
const maxAsked = 4096

// ask passes a request of the server on to the host.
func (c *conn) ask(m wire.Message) {
	select {
	case c.asked <- struct{}{}:
	default:
		c.answer(wire.Failure(&wire.Error{Code: wire.CodeInternal, Message: "too many requests wait for the client", ID: m.ID}))
		return
	}
	if kept, err := wire.ParseLenient(bytes.Clone(m.Raw)); err == nil { // it outlives the stream's buffer
		kept.Mark = m.Mark
		m = kept
	}
	c.host.Peer.Ask(c.name, m, func(response []byte) {
		<-c.asked
		if response != nil {
			c.post(response)
		}
	})
}

// replyTime bounds how long a server may take to take an answer.
const replyTime = 10 * time.Minute

func (c *conn) send(msg []byte) {
	ctx, cancel := context.WithTimeout(context.Background(), replyTime)
	defer cancel()
	_ = c.peer().Send(ctx, msg) // the connection's end shows elsewhere
}

// maxPosted bounds what waits for a server that does not read.
const maxPosted = 10_000

// post sends what the host has for the server beside requests, its answers and
// notifications, in their order. It does not wait. A server that takes nothing
// loses what is beyond the bound.
func (c *conn) post(msg []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || len(c.outbox) >= maxPosted {
		return
	}
	c.outbox = append(c.outbox, msg)
	if !c.posting {
		c.posting = true
		c.wg.Go(c.deliver)
	}
}

// deliver sends what is posted until nothing is left.
func (c *conn) deliver() {
	for {
		c.mu.Lock()
		if len(c.outbox) == 0 {
			c.posting = false
			c.mu.Unlock()
			return
		}
		msg := c.outbox[0]
		c.outbox = c.outbox[1:]
		c.mu.Unlock()
		c.send(msg)
	}
}

// Notify passes a notification of the host on to the server, if it is connected,
// after what was passed on before. It does not wait.
func (u *Upstream) Notify(msg []byte) {
	u.mu.Lock()
	c := u.conn
	u.mu.Unlock()
	if c != nil && !c.modern.Load() { // which knows no notifications of a host's
		c.post(msg)
	}
}

// withdraw says that nothing that the server has asked waits any more.
func (u *Upstream) withdraw() {
	if u.host.Peer != nil {
		u.host.Peer.Gone(u.Name())
	}
}

// maxKept bounds what is repeated on a new connection.
const maxKept = 1000

// Keep makes a request part of every connection from now on, as what it sets, a
// level of logging or a subscription, is the connection's. A nil call forgets
// what was kept under key.
func (u *Upstream) Keep(key string, call *Call) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if call == nil {
		delete(u.kept, key)
		return
	}
	if _, known := u.kept[key]; known || len(u.kept) < maxKept {
		u.kept[key] = *call
	}
}

// Inherit keeps what another upstream has kept, whose place this one takes.
func (u *Upstream) Inherit(from *Upstream) {
	from.mu.Lock()
	kept := maps.Clone(from.kept)
	from.mu.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	maps.Copy(u.kept, kept)
}

// level makes the kept request for a level of logging before the first call, which
// is to be logged by it.
func (u *Upstream) level(ctx context.Context, c *conn) {
	u.mu.Lock()
	kept, ok := u.kept[setLevel]
	u.mu.Unlock()
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, u.o.Config.Connect)
	defer cancel()
	u.again(ctx, c, kept)
}

const setLevel = "logging/setLevel"

func (u *Upstream) again(ctx context.Context, c *conn, k Call) {
	m, err := c.exchange(ctx, k)
	if err == nil && m.Error != nil {
		err = refusal(m)
	}
	if err != nil {
		u.problem(fmt.Errorf("%s, made again on a new connection: %w", k.Method, err))
	}
}

// repeat makes the kept requests on a new connection.
func (u *Upstream) repeat(ctx context.Context, c *conn) {
	u.mu.Lock()
	calls := make([]Call, 0, len(u.kept))
	for _, k := range u.kept {
		calls = append(calls, k)
	}
	u.mu.Unlock()
	for _, k := range calls {
		u.again(ctx, c, k)
	}
}
