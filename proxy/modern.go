package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream"
)

// envelope is what a request of a modern host says about its sender (MCP
// 2026-07-28, basic, _meta).
type envelope struct {
	capabilities json.RawMessage
	level        string // of the log messages it wants to hear; "" means none
	client       string
}

// versions are the revisions that haldir speaks, the newest first.
var versions = []byte(`["` + wire.Version20260728 + `","` + strings.Join([]string{wire.Version20251125, wire.Version20250618, wire.Version20250326, wire.Version20241105}, `","`) + `"]`)

// readEnvelope returns nil for a request of the handshake era.
func readEnvelope(m wire.Message) (*envelope, *wire.Error) {
	at, ok := wire.At(m.Params, "_meta")
	if !ok {
		return nil, nil
	}
	meta, err := wire.Members(at.Value)
	if err != nil {
		return nil, nil //nolint:nilerr // whoever reads the params says so
	}
	v, ok := wire.Find(meta, wire.MetaVersion)
	if !ok {
		return nil, nil
	}
	bad := func(code int, message string, data []byte) (*envelope, *wire.Error) {
		return nil, &wire.Error{Code: code, Message: message, Data: data, ID: m.ID}
	}
	version, ok := wire.String(v.Value)
	switch {
	case !ok:
		return bad(wire.CodeInvalidParams, wire.MetaVersion+" must be a text", nil)
	case !wire.KnownModern(version):
		return bad(wire.CodeUnsupportedVersion, "Unsupported protocol version", fmt.Appendf(nil, `{"supported":%s,"requested":%s}`, versions, v.Value))
	}
	c, _ := wire.Find(meta, wire.MetaCapabilities)
	if wire.KindOf(c.Value) != "an object" {
		return bad(wire.CodeInvalidParams, wire.MetaCapabilities+" must be an object", nil)
	}
	e := &envelope{capabilities: c.Value}
	if l, ok := wire.Find(meta, wire.MetaLogLevel); ok {
		if e.level, ok = wire.String(l.Value); !ok || !slices.Contains(upstream.Levels, e.level) {
			return bad(wire.CodeInvalidParams, wire.MetaLogLevel+" is none of "+strings.Join(upstream.Levels, ", "), nil)
		}
	}
	info, _ := wire.Find(meta, wire.MetaClientInfo)
	e.client = clientName(info.Value)
	return e, nil
}

// saysItsEra reports whether a request is one of a modern host.
func saysItsEra(m wire.Message) bool {
	_, ok := wire.At(m.Params, "_meta", wire.MetaVersion)
	return ok
}

// meet makes a modern host known to the upstreams at its first request, and again
// when it can do more than it has said before: those of the handshake era are told
// once, and so are told all. What a request does not declare is not asked of it.
func (s *Server) meet(r *request) {
	s.mu.Lock()
	s.client = r.era.client
	known := s.modern.Load() && (r.msg.Method == "server/discover" || bytes.Equal(s.declaredLast, r.era.capabilities))
	s.mu.Unlock()
	if known {
		return
	}
	s.starting.Lock()
	defer s.starting.Unlock()
	s.mu.Lock()
	all := union([]json.RawMessage{s.capabilities, r.era.capabilities})
	if !s.modern.Load() {
		all = union([]json.RawMessage{r.era.capabilities})
	}
	same := s.modern.Load() && bytes.Equal(all, s.capabilities)
	s.capabilities, s.declaredLast = all, slices.Clone(r.era.capabilities)
	s.mu.Unlock()
	if same {
		return
	}
	h := upstream.Host{Version: wire.Version20260728, Modern: true, Capabilities: all, Peer: s}
	if r.msg.Method == "server/discover" {
		h.Answered = r.done
	}
	s.introduce(h)
}

// handleModern answers a request of a modern host.
func (s *Server) handleModern(r *request) []byte {
	switch r.msg.Method {
	case "server/discover":
		return s.discover(r)
	case "subscriptions/listen":
		return s.listen(r)
	}
	switch capability, handle := s.shared(r.msg.Method); {
	case handle == nil:
		return s.noMethod(r)
	case capability == "tools": // haldir has some itself
		return handle(r)
	default:
		return s.declare(r, capability, handle)
	}
}

// declare handles a request if any upstream has the capability that it takes, or
// may have it.
func (s *Server) declare(r *request, capability string, handle func(*request) []byte) []byte {
	if !s.declares(capability) {
		s.settle(r.ctx)
		if !s.declares(capability) {
			return s.noMethod(r)
		}
	}
	return handle(r)
}

func (s *Server) declares(capability string) bool {
	capabilities, _ := s.offeredModern()
	return declaredIn(capabilities)[capability] != nil
}

// discover is server/discover.
func (s *Server) discover(r *request) []byte {
	s.restored()
	capabilities, instructions := s.offeredModern()
	result := fmt.Appendf(nil, `{"supportedVersions":%s,"capabilities":%s`, versions, capabilities)
	if instructions != "" {
		result = append(append(result, `,"instructions":`...), wire.Quote(instructions)...)
	}
	return wire.Result(r.msg.ID, append(result, '}'))
}

// cacheable are the methods whose results say how long and for whom they hold
// (2026-07-28, caching).
var cacheable = []string{"server/discover", "tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read"}

// finish makes an answer one that a modern host can read: an upstream of the
// handshake era has left out what its revision does not have. What is cached must
// not be shared, since policy may let one session see what it hides from another.
func (s *Server) finish(r *request, answer []byte) []byte {
	m, err := wire.ParseLenient(answer)
	if err != nil || !m.IsResponse() {
		return answer
	}
	if m.Error != nil {
		if code, ok := wire.At(m.Raw, "error", "code"); ok && wire.ErrorOf(m).Code == codeNoResource {
			return wire.Splice(m.Raw, code.Start, code.End, fmt.Append(nil, wire.CodeInvalidParams))
		}
		return answer
	}
	members, err := wire.Members(m.Result)
	if err != nil {
		return answer
	}
	var fields []wire.Field
	kind, typed := wire.Find(members, "resultType")
	if !typed {
		fields = append(fields, wire.Field{Name: "resultType", Value: json.RawMessage(`"complete"`)})
	}
	if slices.Contains(cacheable, r.msg.Method) && (!typed || string(kind.Value) == `"complete"`) {
		if ttl, ok := wire.Find(members, "ttlMs"); !ok || wire.KindOf(ttl.Value) != "a number" || ttl.Value[0] == '-' {
			fields = append(fields, wire.Field{Name: "ttlMs", Value: json.RawMessage("0")})
		}
		if scope, _ := wire.Find(members, "cacheScope"); string(scope.Value) != `"private"` {
			fields = append(fields, wire.Field{Name: "cacheScope", Value: json.RawMessage(`"private"`)})
		}
	}
	switch r.msg.Method {
	case "tools/call", "prompts/get", "resources/read", "completion/complete": // of an upstream
	default:
		meta, _ := wire.Find(members, "_meta")
		fields = append(fields, wire.Field{Name: "_meta", Value: wire.Edit(meta.Value, wire.Field{
			Name: wire.MetaServerInfo, Value: fmt.Appendf(nil, `{"name":"haldir","title":"haldir","version":%s}`, wire.Quote(s.o.Version)),
		})})
	}
	if len(fields) == 0 {
		return answer
	}
	at, _ := wire.At(m.Raw, "result")
	return wire.Splice(m.Raw, at.Start, at.End, wire.Edit(m.Result, fields...))
}

// undress takes from a modern upstream's result what the handshake era does not
// have: what says that it is whole, how long it holds, and who it is from.
func undress(m wire.Message) wire.Message {
	at, ok := wire.At(m.Raw, "result")
	kind, typed := wire.At(m.Result, "resultType")
	if !ok || !typed || string(kind.Value) != `"complete"` {
		return m
	}
	result := wire.Edit(m.Result, wire.Field{Name: "resultType"}, wire.Field{Name: "ttlMs"}, wire.Field{Name: "cacheScope"})
	result = wire.EditMeta(result, wire.Field{Name: wire.MetaServerInfo})
	plain, err := wire.ParseLenient(wire.Splice(m.Raw, at.Start, at.End, result))
	if err != nil {
		return m
	}
	return plain
}

// listener is a request subscriptions/listen that goes on.
type listener struct {
	id    json.RawMessage
	lists map[string]bool // the notifications of changed lists that it wants
	uris  []string
}

// maxWatched bounds the resources that one stream is about.
const maxWatched = 1000

// listen is subscriptions/listen (2026-07-28, subscriptions): it acknowledges what
// can be told of, and ends when the host does not want it any more, or at haldir's
// own end. Each resource is judged and recorded as a subscription is.
func (s *Server) listen(r *request) []byte {
	var p struct {
		Notifications *struct {
			Tools     bool     `json:"toolsListChanged"`
			Prompts   bool     `json:"promptsListChanged"`
			Resources bool     `json:"resourcesListChanged"`
			URIs      []string `json:"resourceSubscriptions"`
		} `json:"notifications"`
	}
	if err := json.Unmarshal(r.msg.Params, &p); err != nil || p.Notifications == nil {
		return s.invalid(r, "subscriptions/listen needs an object notifications of booleans, and of texts in resourceSubscriptions")
	}
	if len(p.Notifications.URIs) > maxWatched {
		return s.invalid(r, fmt.Sprintf("a subscription is about %d resources at most", maxWatched))
	}
	l := &listener{id: r.msg.ID, lists: map[string]bool{}}
	honoured := map[string]any{}
	for name, x := range map[string]struct {
		wanted              bool
		capability, changed string
	}{
		"toolsListChanged":     {p.Notifications.Tools, "tools", "notifications/tools/list_changed"},
		"promptsListChanged":   {p.Notifications.Prompts, "prompts", "notifications/prompts/list_changed"},
		"resourcesListChanged": {p.Notifications.Resources, "resources", "notifications/resources/list_changed"},
	} {
		if x.wanted && s.declares(x.capability) {
			l.lists[x.changed], honoured[name] = true, true
		}
	}
	for _, uri := range p.Notifications.URIs {
		if !slices.Contains(l.uris, uri) && s.subscribeFor(r, uri) {
			l.uris = append(l.uris, uri)
		}
	}
	if l.uris != nil {
		honoured["resourceSubscriptions"] = l.uris
	}
	ack, err := json.Marshal(honoured)
	if err != nil {
		panic(err) // booleans and texts
	}
	s.telling.Lock()
	s.write(wire.Notification("notifications/subscriptions/acknowledged", fmt.Appendf(nil, `{"_meta":{%q:%s},"notifications":%s}`, wire.MetaSubscription, l.id, ack)))
	s.mu.Lock()
	s.listeners[r.key] = l
	s.mu.Unlock()
	for method, list := range listings {
		if l.lists[list.changed] {
			now := s.look(method)
			s.mu.Lock()
			if _, asked := s.listed[method]; !asked { // it has not asked for it yet; what changes from now on is news
				s.listed[method] = now
			}
			s.mu.Unlock()
		}
	}
	s.telling.Unlock()
	s.Changed() // what it was given before may be out of date
	select {
	case <-r.ctx.Done():
	case <-s.ending:
	}
	s.telling.Lock() // what is being sent to it comes before its end
	s.mu.Lock()
	delete(s.listeners, r.key)
	s.mu.Unlock()
	s.telling.Unlock()
	select {
	case <-s.ending: // with haldir all ends
	default:
		for _, uri := range l.uris {
			s.unsubscribeFor(uri)
		}
	}
	return wire.Result(r.msg.ID, fmt.Appendf(nil, `{"resultType":"complete","_meta":{%q:%s}}`, wire.MetaSubscription, l.id))
}

// subscribeFor subscribes to a resource as resources/subscribe does.
func (s *Server) subscribeFor(r *request, uri string) bool {
	if !s.declares("resources") {
		return false
	}
	m, err := s.subscription(r.ctx, "resources/subscribe", uri)
	if err != nil {
		return false
	}
	s.mu.Lock()
	s.watched[uri]++ // before it is asked for: another stream's end must not end this one
	s.mu.Unlock()
	m.era = r.era
	answer, err := wire.ParseLenient(s.subscribe(m))
	if err == nil && answer.Error == nil {
		return true
	}
	s.release(uri)
	return false
}

// release counts down the streams that are about a resource, and reports whether none
// is left.
func (s *Server) release(uri string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watched[uri]--; s.watched[uri] > 0 {
		return false
	}
	delete(s.watched, uri)
	return true
}

// unsubscribeFor ends a subscription that no other stream has.
func (s *Server) unsubscribeFor(uri string) {
	if !s.release(uri) || s.work.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.work, drain)
	defer cancel()
	if m, err := s.subscription(ctx, "resources/unsubscribe", uri); err == nil {
		s.unsubscribe(m)
	}
}

func (s *Server) subscription(ctx context.Context, method, uri string) (*request, error) {
	m, err := wire.ParseStrict(wire.Request(json.RawMessage("0"), method, fmt.Appendf(nil, `{"uri":%s}`, wire.Quote(uri))))
	return &request{msg: m, ctx: ctx, rules: s.rules()}, err
}

// tellListeners sends a notification on each stream that wants it, marked as that
// stream's, and reports whether any did.
func (s *Server) tellListeners(method string, params json.RawMessage, wants func(*listener) bool) bool {
	s.telling.Lock()
	defer s.telling.Unlock()
	var ids []json.RawMessage
	s.mu.Lock()
	for _, l := range s.listeners {
		if wants(l) {
			ids = append(ids, l.id)
		}
	}
	s.mu.Unlock()
	for _, id := range ids {
		s.write(wire.Notification(method, wire.EditMeta(wire.Edit(params), wire.Field{Name: wire.MetaSubscription, Value: id})))
	}
	return len(ids) > 0
}

// deliver passes a notification of an upstream on to a modern host, which gets no
// other than it has asked for.
func (s *Server) deliver(from string, m wire.Message) {
	switch m.Method {
	case "notifications/resources/updated":
		uri, _ := text(m.Params, "uri")
		s.tellListeners(m.Method, m.Params, func(l *listener) bool { return slices.Contains(l.uris, uri) })
	case "notifications/message":
		level, _ := text(m.Params, "level")
		if s.hears(from, slices.Index(upstream.Levels, level)) {
			s.write(m.Raw)
		}
	}
}

// hears reports whether a request that an upstream is at wants to hear its log.
func (s *Server) hears(from string, level int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.inflight {
		if r.up != nil && r.up.Name() == from && r.era != nil && r.era.level != "" && level >= slices.Index(upstream.Levels, r.era.level) {
			return true
		}
	}
	return false
}
