package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// probeWait is how long a child may take to answer server/discover before it is
// greeted by initialize too: some servers say nothing to what they do not know.
const probeWait = 1500 * time.Millisecond

// greet makes the server known, by the handshake or without one, and lists what
// it offers. A child that knows both is met as the host would meet it, so that
// nothing has to be translated. A remote server is asked first: one that knows both
// has often no way to ask the host for anything after a handshake, since it keeps no
// session. A server that was met before is met the same way.
func (u *Upstream) greet(ctx context.Context, c *conn) error {
	u.mu.Lock()
	known := u.catalogue.Server
	u.mu.Unlock()
	discoverFirst := u.remote() || u.host.Modern && !u.mute
	if known != nil {
		discoverFirst = modern(known)
	}
	var err error
	if discoverFirst {
		err = u.discoverOrShake(ctx, c)
	} else if err = u.shake(ctx, c); err != nil && refused(err) {
		if d, bad := c.discover(ctx); bad == nil {
			c.becomeModern(d)
			err = nil
		}
	}
	if err != nil {
		err = u.fallBack(ctx, c, err)
	}
	if err != nil {
		return err
	}
	if c.modern.Load() {
		c.observe(ctx, u.problem)
	}
	return c.list(ctx, u.problem)
}

// modern reports whether a server's own words are the result of server/discover,
// not of initialize.
func modern(server json.RawMessage) bool {
	_, ok := wire.At(server, "supportedVersions")
	return ok
}

// refused reports whether a server has answered a greeting by saying no, which may
// mean that it speaks the other way only. What says that the credentials are wrong,
// or that the server is busy, does not.
func refused(err error) bool {
	if e, ok := errors.AsType[*wire.HTTPError](err); ok {
		switch e.Status {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests:
			return false
		}
		return true
	}
	_, ok := errors.AsType[*wire.Error](err)
	return ok
}

// legacy reports whether a server that has refused server/discover may know the
// handshake. One that answers by an error of the modern era does only if it says so
// (2026-07-28, versioning, backward compatibility).
func legacy(err error) bool {
	if e, ok := errors.AsType[*wire.Error](err); ok && wire.ModernCode(e.Code) {
		return slices.ContainsFunc(supported(e), wire.KnownLegacy)
	}
	return refused(err)
}

// discoverOrShake asks a server what it is, and shakes hands with one that does
// not understand, or keeps silent. Once initialize is on its way its answer
// counts: it may have decided what the server speaks.
func (u *Upstream) discoverOrShake(ctx context.Context, c *conn) error {
	type answer struct {
		discovery
		err error
	}
	found := make(chan answer, 1)
	probe, stop := context.WithCancel(ctx)
	defer stop()
	c.wg.Go(func() {
		d, err := c.discover(probe)
		found <- answer{d, err}
	})
	var silence <-chan time.Time
	if c.child != nil {
		silence = time.After(probeWait)
	}
	select {
	case a := <-found:
		if a.err == nil {
			c.becomeModern(a.discovery)
			return nil
		}
		u.mute = c.child != nil // some servers end at what they do not know
		if !legacy(a.err) {
			return a.err
		}
		return u.shake(ctx, c)
	case <-silence:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	err := u.shake(ctx, c)
	if err == nil || !refused(err) {
		return err
	}
	a := <-found
	if a.err == nil {
		c.becomeModern(a.discovery)
		return nil
	}
	return fmt.Errorf("%w; %w", err, a.err)
}

// discovery is what a modern server says that it is.
type discovery struct {
	SupportedVersions []string `json:"supportedVersions"`
	Meta              struct {
		Server struct {
			Name    string `json:"name"`
			Version string `json:"version"`
		} `json:"io.modelcontextprotocol/serverInfo"`
	} `json:"_meta"`
	raw json.RawMessage
}

// discover asks a modern server what it is (2026-07-28, server/discover). It leaves
// no trace on the connection.
func (c *conn) discover(ctx context.Context) (d discovery, err error) {
	c.speak(wire.Version20260728)
	defer c.speak("")
	m, err := c.request(ctx, Call{Method: "server/discover"})
	if err == nil && m.Error != nil {
		err = refusal(m)
	} else if err == nil {
		switch bad := json.Unmarshal(m.Result, &d); {
		case bad != nil:
			err = &wire.Error{Code: wire.CodeInvalidParams, Message: "the result cannot be read: " + bad.Error()}
		case !slices.ContainsFunc(d.SupportedVersions, wire.KnownModern):
			err = &wire.Error{Code: wire.CodeInvalidParams, Message: fmt.Sprintf("the server speaks protocol %q, which haldir does not", d.SupportedVersions)}
		}
	}
	if err != nil {
		return d, fmt.Errorf("server/discover: %w", err)
	}
	d.raw = bytes.Clone(m.Result)
	return d, nil
}

// speak tells a transport over HTTP which revision is spoken; it says so in a header.
func (c *conn) speak(version string) {
	if remote, ok := c.peer().(interface{ SetVersion(v string) }); ok {
		remote.SetVersion(version)
	}
}

// becomeModern makes the connection that of a modern server.
func (c *conn) becomeModern(d discovery) {
	c.speak(wire.Version20260728)
	c.version, c.server = wire.Version20260728, wire.Printable(d.Meta.Server.Name+" "+d.Meta.Server.Version, shown)
	c.offers.server = d.raw
	c.modern.Store(true)
}

// shake shakes hands (MCP lifecycle, initialization).
func (u *Upstream) shake(ctx context.Context, c *conn) error {
	m, err := c.peer().Call(ctx, "initialize", u.host.greeting(u.o.Version))
	if err != nil {
		return fmt.Errorf("initialize: %w", err)
	}
	if m.Error != nil {
		return fmt.Errorf("initialize: %w", refusal(m))
	}
	var result struct {
		ProtocolVersion string `json:"protocolVersion"`
		ServerInfo      struct {
			Name    string `json:"name"`
			Version string `json:"version"`
		} `json:"serverInfo"`
	}
	if err := json.Unmarshal(m.Result, &result); err != nil {
		return fmt.Errorf("initialize: the result cannot be read: %w", err)
	}
	if !wire.KnownLegacy(result.ProtocolVersion) {
		return fmt.Errorf("initialize: %w", &wire.Error{
			Code: wire.CodeInvalidParams, Message: fmt.Sprintf("the server speaks protocol %q, which haldir does not", wire.Printable(result.ProtocolVersion, shown)),
		})
	}
	c.version = result.ProtocolVersion
	c.server = wire.Printable(result.ServerInfo.Name+" "+result.ServerInfo.Version, shown)
	c.speak(c.version)
	if err := c.peer().Send(ctx, wire.Notification("notifications/initialized", nil)); err != nil {
		return fmt.Errorf("notifications/initialized: %w", err)
	}
	if h, ok := c.peer().(*wire.HTTP); ok {
		// Once the stream is open nothing that belongs to the first call is lost.
		select {
		case <-h.Listen():
		case <-time.After(openGrace):
		case <-ctx.Done():
		}
	}
	c.offers.server = bytes.Clone(m.Result)
	return nil
}

// fallBack goes over to the transport of 2024-11-05 when a server has refused
// all greetings as one that does not know streamable HTTP does (transports,
// backwards compatibility). The error is the refusal, if that is no such one or
// the server does not have the other transport either.
func (u *Upstream) fallBack(ctx context.Context, c *conn, refusal error) error {
	e, ok := errors.AsType[*wire.HTTPError](refusal)
	if !ok || e.Status != http.StatusBadRequest && e.Status != http.StatusNotFound && e.Status != http.StatusMethodNotAllowed {
		return refusal
	}
	sse, err := wire.DialSSE(ctx, c.web)
	if err != nil {
		return fmt.Errorf("%w; %w", refusal, err)
	}
	c.peer().Close()
	c.set(func() wire.Client { return sse })
	return u.shake(ctx, c)
}

// exchange makes a call in the words of the server's era.
func (c *conn) exchange(ctx context.Context, call Call) (wire.Message, error) {
	if !c.modern.Load() {
		if c.host.Modern {
			c.logAt(ctx, call.Level)
			call.Params = wire.EditMeta(call.Params, wire.Field{Name: wire.MetaVersion}, wire.Field{Name: wire.MetaClientInfo},
				wire.Field{Name: wire.MetaCapabilities}, wire.Field{Name: wire.MetaLogLevel})
			if _, goesOn := wire.At(call.Params, "requestState"); goesOn { // it is not this server's
				call.Params = wire.Edit(call.Params, wire.Field{Name: "requestState"}, wire.Field{Name: "inputResponses"})
			}
		}
		return c.peer().Call(ctx, call.Method, call.Params)
	}
	switch call.Method {
	case setLevel: // from then on each request says it
		level, _ := wire.At(call.Params, "level")
		text, _ := wire.String(level.Value)
		c.mu.Lock()
		c.level = text
		c.mu.Unlock()
		return done()
	case "resources/subscribe":
		return c.subscribe(ctx, call)
	case "resources/unsubscribe":
		uri, _ := wire.At(call.Params, "uri")
		text, _ := wire.String(uri.Value)
		c.unsubscribe(text)
		return done()
	}
	m, err := c.request(ctx, call)
	if err == nil && m.Error != nil && call.Method == "tools/call" && wire.ErrorOf(m).Code == wire.CodeHeaderMismatch {
		c.mu.Lock() // the schema by which headers are made is out of date
		c.stale[ofTools] = true
		c.mu.Unlock()
		c.due()
	}
	return m, err
}

// request makes a call of a modern server. One that refuses the revision and says
// that it has it is asked again (2026-07-28, versioning).
func (c *conn) request(ctx context.Context, call Call) (wire.Message, error) {
	params := c.stamped(call)
	m, err := c.peer().Call(ctx, call.Method, params)
	if err != nil || m.Error == nil {
		return m, err
	}
	if e := wire.ErrorOf(m); e.Code == wire.CodeUnsupportedVersion && slices.ContainsFunc(supported(e), wire.KnownModern) {
		m, err = c.peer().Call(ctx, call.Method, params)
		return m, sentBefore(err)
	}
	return m, nil
}

// supported reads the revisions that a server says it has when it refuses one.
func supported(e *wire.Error) []string {
	var data struct {
		Supported []string `json:"supported"`
	}
	_ = json.Unmarshal(e.Data, &data) // without it, none
	return data.Supported
}

// done is the response to a request that is answered here.
func done() (wire.Message, error) {
	return wire.ParseLenient(wire.Result(json.RawMessage("0"), json.RawMessage("{}")))
}

// stamped returns the params of a call with what every request of a modern client
// says about it (2026-07-28, basic, _meta).
func (c *conn) stamped(call Call) json.RawMessage {
	capabilities := call.Capabilities
	if capabilities == nil {
		capabilities = c.host.Capabilities
	}
	fields := []wire.Field{
		{Name: wire.MetaVersion, Value: wire.Quote(wire.Version20260728)},
		{Name: wire.MetaClientInfo, Value: fmt.Appendf(nil, `{"name":"haldir","version":%s}`, wire.Quote(c.haldir))},
		{Name: wire.MetaCapabilities, Value: portable(capabilities)},
	}
	c.mu.Lock()
	if c.level != "" {
		fields = append(fields, wire.Field{Name: wire.MetaLogLevel, Value: wire.Quote(c.level)})
	}
	c.mu.Unlock()
	return wire.EditMeta(call.Params, fields...)
}

// Levels are those of logging, from the least severe (RFC 5424 section 6.2.1).
var Levels = []string{"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"}

// logAt has a server of the handshake era log what a request wants to hear. It is
// never told to be quieter: another request may be listening. That it will not, or
// does not answer soon, is no reason not to call it.
func (c *conn) logAt(ctx context.Context, level string) {
	c.mu.Lock()
	now, wanted := slices.Index(Levels, c.level), slices.Index(Levels, level)
	enough := wanted < 0 || now >= 0 && now <= wanted || !capable(c.offers.server, "logging")
	c.mu.Unlock()
	if enough {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, levelWait)
	defer cancel()
	if m, err := c.peer().Call(ctx, setLevel, fmt.Appendf(nil, `{"level":%s}`, wire.Quote(level))); err == nil && m.Error == nil {
		c.mu.Lock()
		c.level = level
		c.mu.Unlock()
	}
}

// levelWait bounds how long a call waits for the level of its log.
const levelWait = 2 * time.Second

// heard sorts out what only a modern server sends, and takes from other
// notifications the mark of the subscription that brought them, which is haldir's.
func (c *conn) heard(m wire.Message) (wire.Message, bool) {
	switch {
	case m.IsRequest(): // it must not ask in this way (2026-07-28, stdio and streamable HTTP)
		return m, true
	case m.Method == "notifications/subscriptions/acknowledged":
		c.acknowledged(m.Params)
		return m, true
	case m.Method == "notifications/cancelled": // of a subscription; over HTTP the stream ends as well
		id, ok := wire.At(m.Params, "requestId")
		if pipe, child := c.peer().(*wire.Pipe); child && ok {
			pipe.Abandon(id.Value)
		}
		return m, true
	}
	if _, marked := wire.At(m.Params, "_meta", wire.MetaSubscription); !marked {
		return m, false
	}
	params := wire.EditMeta(m.Params, wire.Field{Name: wire.MetaSubscription})
	if string(params) == "{}" {
		params = nil
	}
	clean, err := wire.ParseLenient(wire.Notification(m.Method, params))
	if err != nil {
		return m, true
	}
	return clean, false
}
