package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
)

// asked is a request of an upstream that the host has not answered.
type asked struct {
	upstream string
	id       json.RawMessage // as the upstream numbered it
	token    json.RawMessage // its progress token, nil if it has none
	shown    json.RawMessage // the token as the host knows it
	reply    func([]byte)
	by       *request // the call for which a modern upstream asks; nil for others

	method string // what it asks of a modern host, with params under key
	params json.RawMessage
	key    string
}

// asks are the requests of upstreams that wait for the host, under haldir's ids.
// They are guarded by the server's mu.
type asks struct {
	last    int64
	waiting map[string]*asked // by wire.IDKey of haldir's id
	tokens  map[string]*asked // those whose progress the host can tell of, by wire.IDKey of the token that it knows
}

// take removes what waits under a key and returns it, nil if nothing does.
func (a *asks) take(key string) *asked {
	q := a.waiting[key]
	if q == nil {
		return nil
	}
	delete(a.waiting, key)
	if q.shown != nil && a.tokens[wire.IDKey(q.shown)] == q {
		delete(a.tokens, wire.IDKey(q.shown))
	}
	return q
}

// Ask passes a request of an upstream on to the host, under an id of haldir's
// own. It implements [upstream.Peer].
func (s *Server) Ask(from string, m wire.Message, reply func([]byte)) {
	switch {
	case !slices.Contains(hostMethods, m.Method):
		reply(wire.Failure(&wire.Error{Code: wire.CodeMethodNotFound, Message: "Method not found: " + m.Method, ID: m.ID}))
		return
	case strings.HasPrefix(m.Method, "tasks/") && s.hostTask(m.Params) != from: // it is another server's
		reply(wire.Failure(&wire.Error{Code: wire.CodeInvalidParams, Message: "Unknown task", ID: m.ID}))
		return
	case s.refuses(from, m.Method):
		reply(s.refuseRequest(from, m))
		return
	}
	if s.modern.Load() {
		s.enquire(from, m, reply)
		return
	}
	if !s.toHost(func() { s.pose(&asked{upstream: from, id: m.ID, reply: reply}, m) }) {
		reply(wire.Failure(&wire.Error{Code: wire.CodeInternal, Message: "the client is not ready, and too much waits for it", ID: m.ID}))
	}
}

// hostTask returns the upstream for which the host has made the task in params.
func (s *Server) hostTask(params json.RawMessage) string {
	id, _ := text(params, "taskId")
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hostTasks[id]
}

// hostMethods are what servers may ask of a client (MCP 2025-11-25). A server that
// asks for anything else is not given the host to try it on.
var hostMethods = []string{
	"sampling/createMessage", "elicitation/create", "roots/list", "tasks/get", "tasks/result", "tasks/cancel",
}

// maxEarly bounds what waits for a host that is not ready.
const maxEarly = 1000

// toHost runs f, which sends to the host, now or as soon as the host is ready for
// it: before it has said notifications/initialized a server must be silent (MCP
// lifecycle, initialization). It reports false if too much waits already.
func (s *Server) toHost(f func()) bool {
	s.mu.Lock()
	if !s.greeted {
		room := len(s.early) < maxEarly
		if room {
			s.early = append(s.early, f)
		}
		s.mu.Unlock()
		return room
	}
	s.mu.Unlock()
	f()
	return true
}

// greet lets through what has waited for the host, in its order.
func (s *Server) greet() {
	s.mu.Lock()
	done := s.greeted
	s.mu.Unlock()
	if done {
		return
	}
	s.greeting.Lock() // two that let through at once would mix
	defer s.greeting.Unlock()
	for {
		s.mu.Lock()
		early := s.early
		s.early = nil
		if len(early) == 0 {
			s.greeted = true
		}
		s.mu.Unlock()
		if len(early) == 0 {
			return
		}
		for _, f := range early {
			f()
		}
	}
}

// pose sends a request of an upstream to the host.
func (s *Server) pose(a *asked, m wire.Message) {
	token, _ := wire.At(m.Raw, "params", "_meta", "progressToken")
	a.token, a.shown = token.Value, token.Value
	s.mu.Lock()
	s.asks.last++
	id := fmt.Appendf(nil, `"haldir-%d"`, s.asks.last)
	if a.token != nil {
		if s.asks.tokens[wire.IDKey(a.token)] != nil { // two servers may number alike
			a.shown = id
		}
		s.asks.tokens[wire.IDKey(a.shown)] = a
	}
	s.asks.waiting[wire.IDKey(id)] = a
	s.mu.Unlock()
	if string(a.shown) != string(a.token) {
		if renamed, err := wire.ParseLenient(wire.Splice(m.Raw, token.Start, token.End, a.shown)); err == nil {
			m = renamed
		}
	}
	s.write(m.WithID(id))
}

// answered passes the host's response on to the upstream that asked.
func (s *Server) answered(m wire.Message) {
	s.mu.Lock()
	a := s.asks.take(wire.IDKey(m.ID))
	if a != nil && m.Error == nil && len(s.hostTasks) < maxTasks {
		if id, ok := text(m.Result, "task", "taskId"); ok && len(id) <= longestName {
			s.hostTasks[strings.Clone(id)] = a.upstream
		}
	}
	s.mu.Unlock()
	if a != nil { // else it was withdrawn
		a.reply(m.WithID(a.id))
	}
}

// unreadable takes a line that cannot be read for the response that it may be: who has asked
// would wait for another one in vain. It reports whether it was one.
func (s *Server) unreadable(line []byte, why *wire.Error) bool {
	return !bytes.Contains(line, []byte(`"method"`)) && s.lost(why.ID, why.Message)
}

// lost answers who has asked for the response with this id, which has come and cannot be
// passed on. It reports whether anybody has.
func (s *Server) lost(id json.RawMessage, why string) bool {
	if id == nil {
		return false
	}
	s.mu.Lock()
	a := s.asks.take(wire.IDKey(id))
	s.mu.Unlock()
	if a == nil {
		return false
	}
	s.o.Log.Warn().Str("error", why).Msg("the client's response cannot be read")
	a.reply(wire.Failure(&wire.Error{Code: wire.CodeInternal, Message: "the client's response cannot be read: " + why, ID: a.id}))
	return true
}

// Notify passes a notification of an upstream on to the host. It implements
// [upstream.Peer].
func (s *Server) Notify(from string, m wire.Message) {
	m.Raw, m.Params = slices.Clone(m.Raw), slices.Clone(m.Params) // it may have to wait
	s.toHost(func() { s.notice(from, m) })
}

func (s *Server) notice(from string, m wire.Message) {
	if m.Method == "notifications/tasks/status" && !s.tellsOfTask(from, m.Params) {
		return
	}
	if m.Method != "notifications/cancelled" {
		if s.modern.Load() {
			s.deliver(from, m)
		} else if strings.HasPrefix(m.Method, "notifications/") {
			s.write(m.Raw)
		}
		return
	}
	id, ok := wire.At(m.Params, "requestId")
	if !ok {
		return
	}
	key := wire.IDKey(id.Value)
	s.retract(func(a *asked) bool { return a.upstream == from && wire.IDKey(a.id) == key })
	s.withdraw(func(a *asked) bool { return a.upstream == from && wire.IDKey(a.id) == key }, func(own json.RawMessage) json.RawMessage {
		return wire.Splice(m.Params, id.Start, id.End, own)
	})
}

// Gone withdraws what an upstream had asked. It implements [upstream.Peer].
func (s *Server) Gone(from string) {
	s.toHost(func() { s.void(from) })
}

func (s *Server) void(from string) {
	s.retract(func(a *asked) bool { return a.upstream == from })
	s.withdraw(func(a *asked) bool { return a.upstream == from }, func(own json.RawMessage) json.RawMessage {
		return fmt.Appendf(nil, `{"requestId":%s,"reason":"the server is gone"}`, own)
	})
}

func (s *Server) withdraw(which func(*asked) bool, params func(own json.RawMessage) json.RawMessage) {
	void := map[string]*asked{}
	s.mu.Lock()
	for key, a := range s.asks.waiting {
		if which(a) {
			void[strings.TrimPrefix(key, "s")] = s.asks.take(key)
		}
	}
	s.mu.Unlock()
	for id, a := range void {
		a.reply(nil) // it gives up its place
		s.write(wire.Notification("notifications/cancelled", params(wire.Quote(id))))
	}
}

// progressed passes the host's progress on to the upstream whose request it is
// about.
func (s *Server) progressed(m wire.Message) {
	token, ok := wire.At(m.Params, "progressToken")
	if !ok {
		return
	}
	s.mu.Lock()
	to := s.asks.tokens[wire.IDKey(token.Value)]
	s.mu.Unlock()
	if to == nil {
		return
	}
	s.tell(to.upstream, wire.Notification(m.Method, wire.Splice(m.Params, token.Start, token.End, to.token)))
}

// tell sends a notification to one upstream, or to all of them if name is "", if
// they are connected. It does not wait.
func (s *Server) tell(name string, msg []byte) {
	for _, up := range s.rules().Upstreams {
		if name == "" || up.Name() == name {
			up.Notify(msg)
		}
	}
}

// progressToken returns the token in params, nil if there is none.
func progressToken(params json.RawMessage) json.RawMessage {
	token, _ := wire.At(params, "_meta", "progressToken")
	return token.Value
}

// requestKinds are what deny_requests can name, by method.
var requestKinds = map[string]string{
	"sampling/createMessage": "sampling", "elicitation/create": "elicitation", "roots/list": "roots",
}

// refuses reports whether the config keeps an upstream from asking that.
func (s *Server) refuses(from, method string) bool {
	for _, up := range s.rules().Upstreams {
		if up.Name() == from && requestKinds[method] != "" && up.Refuses(requestKinds[method]) {
			return true
		}
	}
	return false
}

// refuseRequest records a refused request of an upstream and answers it.
func (s *Server) refuseRequest(from string, m wire.Message) []byte {
	reason := fmt.Sprintf("haldir's config does not let upstream '%s' ask for %s (deny_requests)", from, requestKinds[m.Method])
	now := s.rules()
	attempt := ledger.Attempt{
		Use: now.Use, Config: now.Config, Call: policy.Call{Upstream: from, Tool: "request:" + m.Method},
		Refused: &policy.Finding{Policy: policyRequest, Rule: requestKinds[m.Method], Reason: reason},
	}
	if _, _, err := s.o.Ledger.Reserve(context.Background(), attempt, now.Engine); err != nil {
		s.o.Log.Error().Err(err).Msg("a refused request of an upstream could not be recorded")
	}
	return wire.Failure(&wire.Error{Code: CodeRefused, Message: reason, ID: m.ID})
}

// CodeRefused is the JSON-RPC error code of what policy refuses where the answer
// is no result of tools/call. It lies outside the codes that JSON-RPC reserves.
const CodeRefused = -31001
