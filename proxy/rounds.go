package proxy

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
)

// A call may need more than one round: the upstream wants to know something of the
// host before it can answer. Upstreams of the handshake era ask by a request while
// the call goes on; modern ones end it with what they need, and the host makes it
// again (MCP 2026-07-28, multi round-trip requests). This file puts the one into
// the words of the other.

// round is a governed call that waits for the host to make it again.
type round struct {
	ticket   ledger.Ticket
	decision policy.Decision
	config   audit.Hash // by which it was let through
	answered []string   // the rules by which a person was asked, who has allowed the call
	flight   *flight    // the call that goes on at the upstream; nil at a modern one, which keeps nothing
	sent     bool       // something of it has reached the upstream
	key      string     // in the server's rounds
	expiry   *time.Timer
	question *question // what a person is asked before the call is made; nil if nothing is
	asked    bool      // the host has the form
}

const (
	// roundTime is how long a host may take to go on with a call.
	roundTime = 15 * time.Minute
	// maxRounds bounds how many calls wait for that.
	maxRounds = 1000
	// statePrefix marks the states of haldir's own making.
	statePrefix = "haldir-"
)

// wait is what the host has to give before a call can go on.
type wait struct {
	state  string
	answer func(id json.RawMessage) []byte
}

// digest identifies a call, beyond its state: what was given for one must not serve
// another. It is empty in the handshake era.
func digest(r *request, c policy.Call) []byte {
	if r.era == nil {
		return nil
	}
	h := sha256.New()
	for _, part := range []string{r.msg.Method, c.Session, c.Upstream, c.Tool, string(c.Arguments)} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write([]byte(part))
	}
	return h.Sum(nil)
}

// roundKey is what a round is kept by: states of upstreams may be long.
func roundKey(digest []byte, state string) string {
	sum := sha256.Sum256(append(digest, state...))
	return string(sum[:])
}

// resume takes up the call that r goes on with; nil if it is a new one. A state is
// good once. One of haldir's own that is not known, for this very call, is an error.
func (s *Server) resume(r *request, digest []byte) (*round, error) {
	if r.era == nil {
		return nil, nil
	}
	_, responds := wire.At(r.msg.Params, "inputResponses")
	state, stated := text(r.msg.Params, "requestState")
	if !responds && !stated {
		return nil, nil
	}
	key := roundKey(digest, state)
	s.mu.Lock()
	before := s.rounds[key]
	delete(s.rounds, key)
	s.mu.Unlock()
	switch {
	case before != nil:
		before.expiry.Stop()
		return before, nil
	case strings.HasPrefix(state, statePrefix):
		return nil, errors.New("the requestState is not one of this request, was used before, or has expired")
	}
	return nil, nil
}

// waits reports whether a call of c waits for r to go on.
func (s *Server) waits(r *request, c policy.Call) bool {
	state, _ := text(r.msg.Params, "requestState")
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rounds[roundKey(digest(r, c), state)] != nil
}

// suspend keeps a call until the host goes on with it. One too many is given up: the
// host has to begin anew.
func (s *Server) suspend(r *request, digest []byte, b *round, w *wait) {
	b.key = roundKey(digest, w.state)
	life := roundTime
	if b.question != nil {
		life = b.question.left()
	}
	b.expiry = time.AfterFunc(life, func() { s.expire(b, errNoRound) })
	s.mu.Lock()
	other := s.rounds[b.key] // an upstream that gives the same state twice
	var why error
	switch {
	case s.ended:
		why = errRoundsOver
	case other == nil && len(s.rounds) >= maxRounds:
		why = errors.New("too many calls wait for the client")
	default:
		s.rounds[b.key] = b
		r.round = b
	}
	s.mu.Unlock()
	if other != nil {
		other.expiry.Stop()
		s.finishRound(other, errors.New("the client made the same call again"))
	}
	if why != nil {
		b.expiry.Stop()
		s.finishRound(b, why)
	}
}

// Why a call ends between two rounds.
var (
	errNoRound    = errors.New("the client did not go on with the call")
	errRoundsOver = errors.New("haldir ended before the client went on")
)

// expire gives up a call that waits, if it still does.
func (s *Server) expire(b *round, why error) {
	s.mu.Lock()
	waits := s.rounds[b.key] == b
	if waits {
		delete(s.rounds, b.key)
		s.wg.Add(1) // Serve does not wait before it has ended all rounds
	}
	s.mu.Unlock()
	if waits {
		defer s.wg.Done()
		b.expiry.Stop()
		s.finishRound(b, why)
	}
}

// finishRound settles a call that nobody goes on with.
func (s *Server) finishRound(b *round, why error) {
	if q := b.question; q != nil {
		a := ledger.Answer{Channel: ledger.ChannelGone}
		switch {
		case errors.Is(why, errRoundsOver):
			a.Channel = ledger.ChannelShutdown
		case q.left() <= 0:
			a.Channel = ledger.ChannelTimeout
		}
		if refused := s.decide(s.work, q, a); refused == nil { // it was allowed, and nobody goes on with it
			s.o.Ledger.Free(q.attempt, q.ticket.Session)
		}
		return
	}
	outcome := ledger.Outcome{Result: ledger.Unknown, Reason: why.Error()}
	if errors.Is(why, errRevoked) {
		outcome.Result = ledger.Cancelled
	}
	if f := b.flight; f != nil {
		f.cancel(why)
		<-f.done
		s.land(f)
		if f.err == nil {
			outcome = answered(f.m, b.decision)
		}
	}
	s.o.Ledger.Settle(b.ticket, outcome)
}

// endRounds settles all that waits, at haldir's end.
func (s *Server) endRounds() {
	s.mu.Lock()
	rounds := s.rounds
	s.rounds, s.ended = map[string]*round{}, true
	s.mu.Unlock()
	for _, b := range rounds {
		b.expiry.Stop()
		s.finishRound(b, errRoundsOver)
	}
}

// advance makes a governed call, or goes on with it. A wait says what the host must
// give first, judge is asked before each round that is no request of the host.
func (s *Server) advance(r *request, up Upstream, b *round, c upstream.Call, judge func() error) (wire.Message, *wait, error) {
	if r.era == nil || r.done == nil { // or it is not the host's own, which could be asked
		m, err := s.forward(r, up, c, judge)
		return m, nil, err
	}
	before := b.sent
	b.sent = true
	if b.flight == nil {
		b.flight = s.launch(r, up, c)
	} else {
		s.address(r, up, &c)
		s.mu.Lock()
		b.flight.host = r // before the upstream hears of it
		s.mu.Unlock()
		s.give(b.flight, r.msg.Params)
	}
	w, err := s.attend(r, b.flight)
	if w != nil {
		return wire.Message{}, w, nil
	}
	f := b.flight
	b.flight = nil
	if err == nil {
		err = f.err
	}
	if err == nil && f.m.Error != nil {
		return s.urls(r, f.m)
	}
	if err != nil || !needsInput(up, f.m) {
		if errors.Is(err, wire.ErrNotSent) {
			b.sent = before
		}
		return f.m, nil, err
	}
	state, _ := text(f.m.Result, "requestState")
	if strings.HasPrefix(state, statePrefix) {
		return wire.Message{}, nil, fmt.Errorf("upstream %q gives a requestState that looks like haldir's own", up.Name())
	}
	return wire.Message{}, &wait{state, f.m.WithID}, nil
}

// codeURLs is how an upstream of MCP 2025-11-25 says that somebody has to open some
// URLs before the call can be made again (elicitation, URL mode). The next revision
// has no such code.
const codeURLs = -32042

// urls puts that into a modern host's words.
func (s *Server) urls(r *request, m wire.Message) (wire.Message, *wait, error) {
	e := wire.ErrorOf(m)
	if e.Code != codeURLs {
		return m, nil, nil
	}
	list, _ := wire.At(e.Data, "elicitations")
	elicitations, err := wire.Elements(list.Value)
	if err != nil || len(elicitations) == 0 {
		return failure(m, e.Message), nil, nil //nolint:nilerr // the error is the upstream's own
	}
	var questions []*asked
	for i, params := range elicitations {
		q := &asked{method: "elicitation/create", params: params, key: fmt.Sprintf("url-%d", i+1)}
		if !can(r.era.capabilities, q) {
			bad, err := wire.ParseLenient(wire.Failure(&wire.Error{
				Code: wire.CodeMissingCapability, Message: wire.Printable(e.Message, 500), Data: json.RawMessage(`{"requiredCapabilities":{"elicitation":{"url":{}}}}`), ID: m.ID,
			}))
			return bad, nil, err
		}
		questions = append(questions, q)
	}
	return wire.Message{}, ask(questions), nil
}

// flight is a call of a modern host that an upstream is at. It may outlast the
// request that began it.
type flight struct {
	up       Upstream
	cancel   context.CancelCauseFunc
	done     chan struct{} // closed when m and err are set
	m        wire.Message
	err      error
	token    json.RawMessage // of progress, as the upstream knows it
	news     chan struct{}
	telling  sync.Mutex      // held while progress is sent, and before the host's request ends
	declared json.RawMessage // what the host can be asked for

	// Guarded by the server's mu.
	host      *request // the request that waits for it; nil while the host has to go on
	questions []*asked // that the host has not answered
}

// launch starts a call.
func (s *Server) launch(r *request, up Upstream, c upstream.Call) *flight {
	ctx, cancel := context.WithCancelCause(s.work)
	f := &flight{up: up, cancel: cancel, done: make(chan struct{}), token: c.Token, news: make(chan struct{}, 1), declared: r.era.capabilities, host: r}
	s.address(r, up, &c)
	c.Progress, c.Mark = func(m wire.Message) { s.progress(f, m) }, f
	s.mu.Lock()
	s.flights = append(s.flights, f)
	s.unasked = slices.DeleteFunc(s.unasked, func(q *asked) bool {
		mine := q.upstream == up.Name() && can(f.declared, q)
		if mine {
			f.questions = append(f.questions, q)
		}
		return mine
	})
	s.mu.Unlock()
	s.wg.Go(func() {
		defer close(f.done)
		defer func() {
			if p := recover(); p != nil {
				s.o.Log.Error().Interface("panic", p).Str("method", c.Method).Stack().Msg("internal error")
				f.err = errors.New("internal error in haldir")
			}
		}()
		if f.m, f.err = up.Call(ctx, c); f.err == nil {
			f.m = s.vet(up, f.m)
		}
	})
	return f
}

// land forgets a flight. What the upstream still asks is void.
func (s *Server) land(f *flight) {
	s.mu.Lock()
	s.flights = slices.DeleteFunc(s.flights, func(x *flight) bool { return x == f })
	questions := f.questions
	f.questions, f.host = nil, nil
	// Another call may be what the upstream asks for.
	var heir *flight
	for _, x := range s.flights {
		if x.up == f.up {
			heir = x
		}
	}
	var void []*asked
	for _, q := range questions {
		switch {
		case heir != nil && can(heir.declared, q):
			heir.questions = append(heir.questions, q)
		case len(s.unasked) < maxEarly:
			s.unasked = append(s.unasked, q)
		default:
			void = append(void, q)
		}
	}
	s.mu.Unlock()
	if heir != nil {
		heir.tell()
	}
	for _, q := range void {
		q.reply(wire.Failure(&wire.Error{Code: wire.CodeInternal, Message: "the client was not asked: the call has ended", ID: q.id}))
	}
	f.cancel(nil)
}

func (f *flight) tell() {
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// attend waits for the end of a flight, or for a question of its upstream, which
// ends the host's request instead.
func (s *Server) attend(r *request, f *flight) (*wait, error) {
	s.mu.Lock()
	f.host = r
	if len(f.questions) > 0 {
		f.tell()
	}
	s.mu.Unlock()
	for {
		select {
		case <-f.done:
			s.land(f)
			return nil, nil
		case <-r.ctx.Done():
			f.cancel(context.Cause(r.ctx))
			<-f.done
			s.land(f)
			if f.err == nil { // too late, but it did come
				return nil, context.Cause(r.ctx)
			}
			return nil, nil
		case <-f.news:
		}
		select {
		case <-f.done: // it has its answer; nothing needs to be asked
			continue
		case <-r.ctx.Done():
			continue
		case <-time.After(together): // some ask for several things at once
		}
		select {
		case <-f.done:
			continue
		default:
		}
		f.telling.Lock()
		s.mu.Lock()
		questions := slices.Clone(f.questions)
		if len(questions) > 0 {
			f.host = nil
		}
		s.mu.Unlock()
		f.telling.Unlock()
		if len(questions) > 0 {
			return ask(questions), nil
		}
	}
}

// together is how long a question waits for more of its kind.
const together = 20 * time.Millisecond

// ask puts questions to a modern host.
func ask(questions []*asked) *wait {
	b := []byte(`{"resultType":"input_required","inputRequests":{`)
	for i, q := range questions {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, `%s:{"method":%s`, wire.Quote(q.key), wire.Quote(q.method))
		if q.params != nil {
			b = append(append(b, `,"params":`...), q.params...)
		}
		b = append(b, '}')
	}
	state := statePrefix + rand.Text()
	b = fmt.Appendf(b, `},"requestState":%s}`, wire.Quote(state))
	return &wait{state, func(id json.RawMessage) []byte { return wire.Result(id, b) }}
}

// give passes the host's answers on to the upstream that has asked. What is not
// among the questions is left out.
func (s *Server) give(f *flight, params json.RawMessage) {
	at, _ := wire.At(params, "inputResponses")
	responses, err := wire.Members(at.Value)
	if err != nil {
		return // it is asked again
	}
	type given struct {
		q     *asked
		value json.RawMessage
	}
	var answers []given
	s.mu.Lock()
	f.questions = slices.DeleteFunc(f.questions, func(q *asked) bool {
		m, ok := wire.Find(responses, q.key)
		if ok && wire.KindOf(m.Value) == "an object" {
			answers = append(answers, given{q, m.Value})
			return true
		}
		return false
	})
	s.mu.Unlock()
	for _, a := range answers {
		a.q.reply(wire.Result(a.q.id, a.value))
	}
}

// progress passes a notification on under the token of the request that waits now.
func (s *Server) progress(f *flight, m wire.Message) {
	f.telling.Lock()
	defer f.telling.Unlock()
	s.mu.Lock()
	host := f.host
	s.mu.Unlock()
	if host == nil || host.silent.Load() {
		return
	}
	token := progressToken(host.msg.Params)
	at, ok := wire.At(m.Raw, "params", "progressToken")
	switch {
	case token == nil || !ok:
	case string(token) == string(f.token):
		s.write(m.Raw)
	default:
		s.write(wire.Splice(m.Raw, at.Start, at.End, token))
	}
}

// enquire takes a request of an upstream of the handshake era to a modern host. It
// goes with the call on whose stream it came; if it came on none, with the last one
// that the upstream is at and that can carry it; if there is none, with the next.
func (s *Server) enquire(from string, m wire.Message, reply func([]byte)) {
	q := &asked{upstream: from, id: m.ID, reply: reply, method: m.Method, params: m.Params}
	if requestKinds[m.Method] == "" {
		reply(wire.Failure(&wire.Error{Code: wire.CodeMethodNotFound, Message: "Method not found: " + m.Method, ID: m.ID}))
		return
	}
	s.mu.Lock()
	s.asks.last++
	q.key = fmt.Sprintf("%s-%d", requestKinds[m.Method], s.asks.last)
	var carrier *flight
	busy := false
	for _, f := range s.flights {
		if f.up.Name() != from {
			continue
		}
		busy = true
		if f == m.Mark {
			carrier = nil
			if can(f.declared, q) {
				carrier = f
			}
			break
		}
		if can(f.declared, q) && (carrier == nil || f.host != nil || carrier.host == nil) {
			carrier = f
		}
	}
	waits := carrier == nil && !busy && can(s.capabilities, q) && len(s.unasked) < maxEarly
	switch {
	case carrier != nil:
		carrier.questions = append(carrier.questions, q)
	case waits:
		s.unasked = append(s.unasked, q)
	}
	s.mu.Unlock()
	switch {
	case carrier != nil:
		carrier.tell()
	case waits:
	case declined[m.Method] != "":
		reply(wire.Result(m.ID, json.RawMessage(declined[m.Method])))
	default:
		reply(wire.Failure(&wire.Error{Code: wire.CodeMethodNotFound, Message: "the client has not declared " + requestKinds[m.Method], ID: m.ID}))
	}
}

// declined are the answers that say no. The upstream may do without what it asks of
// a host that has declared it with another request only; an error could end its call.
var declined = map[string]string{"elicitation/create": `{"action":"decline"}`, "roots/list": `{"roots":[]}`}

// retract forgets questions that the upstream has taken back.
func (s *Server) retract(which func(*asked) bool) {
	var void []*asked
	take := func(q *asked) bool {
		if which(q) {
			void = append(void, q)
			return true
		}
		return false
	}
	s.mu.Lock()
	for _, f := range s.flights {
		f.questions = slices.DeleteFunc(f.questions, take)
	}
	s.unasked = slices.DeleteFunc(s.unasked, take)
	s.mu.Unlock()
	for _, q := range void {
		q.reply(nil) // it gives up its place
	}
}

// can reports whether a host that has declared these capabilities can be asked.
func can(capabilities json.RawMessage, q *asked) bool {
	c, ok := wire.At(capabilities, requestKinds[q.method])
	if !ok || q.method != "elicitation/create" {
		return ok
	}
	// Without a mode a form is meant, in the request as in the declaration.
	_, url := wire.At(c.Value, "url")
	_, form := wire.At(c.Value, "form")
	if mode, _ := text(q.params, "mode"); mode == "url" {
		return url
	}
	return form || !url
}

// needsInput reports whether a modern upstream has ended a call with what it needs
// to know.
func needsInput(up Upstream, m wire.Message) bool {
	if m.Error != nil || !up.Catalogue().Modern {
		return false
	}
	kind, _ := text(m.Result, "resultType")
	return kind == inputRequired
}

const inputRequired = "input_required"

// vet makes a result one that a modern host may see. What it would take for a
// question comes from a modern upstream only, can be read, and asks for nothing that
// the config keeps the upstream from asking.
func (s *Server) vet(up Upstream, m wire.Message) wire.Message {
	if m.Error != nil {
		return s.vetError(up, m)
	}
	members, err := wire.Members(m.Result)
	if err != nil {
		return failure(m, "the result of upstream '"+up.Name()+"' cannot be read: "+err.Error())
	}
	typ, _ := wire.Find(members, "resultType")
	kind, ok := wire.String(typ.Value)
	switch {
	case s.denies(up) != "" && blurred(members, "resultType", "inputRequests", "requestState"):
		return failure(m, "the result of upstream '"+up.Name()+"' has names that differ from known ones only in case")
	case typ.Value == nil:
	case !up.Catalogue().Modern && (!ok || kind != "complete"):
		at, _ := wire.At(m.Raw, "result")
		result := wire.Edit(m.Result, wire.Field{Name: "resultType", Value: json.RawMessage(`"complete"`)})
		if plain, err := wire.ParseLenient(wire.Splice(m.Raw, at.Start, at.End, result)); err == nil {
			return plain
		}
	case kind == inputRequired:
		if refused, yes := s.refusesInput(up, m); yes {
			return refused
		}
	}
	return m
}

// vetError is vet of an error, for a host of either era: what asks for URLs to be opened asks
// the person at the client, as an elicitation does.
func (s *Server) vetError(up Upstream, m wire.Message) wire.Message {
	const method = "elicitation/create"
	if !up.Refuses(requestKinds[method]) || !opensURLs(m.Error) {
		return m
	}
	refused, err := wire.ParseLenient(s.refuseRequest(up.Name(), wire.Message{Method: method, ID: m.ID}))
	if err != nil {
		return failure(m, "upstream '"+up.Name()+"' asks for what haldir's config keeps it from asking (deny_requests)")
	}
	return refused
}

// opensURLs reports whether some host may take an error for [codeURLs]. One that can be read
// in several ways is one.
func opensURLs(e json.RawMessage) bool {
	members, err := wire.Members(e)
	if err != nil || blurred(members, "code", "data") {
		return true
	}
	at, there := wire.Find(members, "code")
	var code float64 // also if it is written in another way
	return there && (json.Unmarshal(at.Value, &code) != nil || code == codeURLs)
}

// failure is an error in place of a response.
func failure(m wire.Message, why string) wire.Message {
	bad, err := wire.ParseLenient(wire.Failure(&wire.Error{Code: wire.CodeInternal, Message: wire.Printable(why, 500), ID: m.ID}))
	if err != nil {
		return m
	}
	return bad
}

// inputRequests reads what an upstream needs to know.
func inputRequests(m wire.Message) (keys []string, requests []wire.Message, err error) {
	all, err := wire.Members(m.Result)
	if err != nil {
		return nil, nil, err
	}
	at, ok := wire.Find(all, "inputRequests")
	if !ok {
		return nil, nil, nil
	}
	members, err := wire.Members(at.Value)
	if err != nil {
		return nil, nil, fmt.Errorf("inputRequests: %w", err)
	}
	for _, x := range members {
		fields, err := wire.Members(x.Value)
		if err != nil || blurred(fields, "method", "params") {
			return nil, nil, fmt.Errorf("the input request %q cannot be read", wire.Printable(x.Name, 64))
		}
		method, ok := text(x.Value, "method")
		if !ok || requestKinds[method] == "" {
			return nil, nil, fmt.Errorf("the input request %q is none that a client can be asked", wire.Printable(x.Name, 64))
		}
		params, _ := wire.At(x.Value, "params")
		request, err := wire.ParseLenient(wire.Request(json.RawMessage("0"), method, params.Value))
		if err != nil {
			return nil, nil, err
		}
		keys, requests = append(keys, x.Name), append(requests, request)
	}
	return keys, requests, nil
}

// denies returns something that an upstream must not ask for, "" if it may ask for
// everything.
func (s *Server) denies(up Upstream) string {
	for method, kind := range requestKinds {
		if up.Refuses(kind) {
			return method
		}
	}
	return ""
}

// blurred reports whether a reader that does not mind case would find a name that is
// not there, or another one of it.
func blurred(members []wire.Member, names ...string) bool {
	return slices.ContainsFunc(members, func(m wire.Member) bool {
		return slices.ContainsFunc(names, func(n string) bool { return m.Name != n && strings.EqualFold(m.Name, n) })
	})
}

// refusesInput answers for the host what the config keeps an upstream from asking.
// Where something is refused, so is what cannot be read.
func (s *Server) refusesInput(up Upstream, m wire.Message) (wire.Message, bool) {
	denied := s.denies(up)
	if denied == "" {
		return wire.Message{}, false
	}
	refuse := func(method string) (wire.Message, bool) {
		q := wire.Message{Method: method, ID: m.ID}
		refused, err := wire.ParseLenient(s.refuseRequest(up.Name(), q))
		return refused, err == nil
	}
	_, requests, err := inputRequests(m)
	if err != nil {
		return refuse(denied)
	}
	for _, q := range requests {
		if s.refuses(up.Name(), q.Method) {
			return refuse(q.Method)
		}
	}
	return wire.Message{}, false
}

// An upstream that needs nothing but time is asked again after such a pause,
// doubled each time.
const (
	minPause = 100 * time.Millisecond
	maxPause = 10 * time.Second
)

// maxInputs bounds what a modern upstream may ask a host of the handshake era for at once: each
// is a request of its own there.
const maxInputs = 64

// gather asks a host of the handshake era for what a modern upstream needs, and
// returns the params with which the call is made again.
func (s *Server) gather(r *request, up Upstream, params json.RawMessage, m wire.Message, n int) (_ json.RawMessage, err error) {
	keys, requests, err := inputRequests(m)
	if err != nil {
		return nil, err
	}
	if len(keys) > maxInputs {
		return nil, fmt.Errorf("upstream %q asks for %d things at once; a client is asked for %d at most", up.Name(), len(keys), maxInputs)
	}
	state, _ := wire.At(m.Result, "requestState")
	if len(keys) == 0 {
		select {
		case <-time.After(min(minPause<<min(n-1, 10), maxPause)):
		case <-r.ctx.Done():
			return nil, context.Cause(r.ctx)
		}
		return wire.Edit(params, wire.Field{Name: "inputResponses"}, wire.Field{Name: "requestState", Value: state.Value}), nil
	}
	if s.out == nil {
		return nil, fmt.Errorf("it asks for %s, which only an MCP client can answer", requestKinds[requests[0].Method])
	}
	defer func() {
		if err != nil { // the host need not answer what is left
			s.withdraw(func(a *asked) bool { return a.by == r }, func(own json.RawMessage) json.RawMessage {
				return fmt.Appendf(nil, `{"requestId":%s}`, own)
			})
		}
	}()
	replies := make(chan []byte, len(keys)) // in no order; each under its place as id
	for i, q := range requests {
		id := fmt.Append(nil, i)
		a := &asked{upstream: up.Name(), id: id, reply: func(response []byte) { replies <- response }, by: r}
		if !s.toHost(func() { s.pose(a, q) }) {
			return nil, errors.New("the client is not ready, and too much waits for it")
		}
	}
	values := make([]json.RawMessage, len(keys))
	for range keys {
		var response []byte
		select {
		case response = <-replies:
		case <-r.ctx.Done():
			return nil, context.Cause(r.ctx)
		}
		if response == nil {
			return nil, errors.New("the connection ended before the client had answered")
		}
		answer, err := wire.ParseLenient(response)
		if err != nil {
			return nil, err
		}
		var i int
		if err := json.Unmarshal(answer.ID, &i); err != nil {
			return nil, err
		}
		switch {
		case answer.Error == nil:
			values[i] = answer.Result
		case requests[i].Method == "elicitation/create": // the modern era has no errors here
			values[i] = json.RawMessage(`{"action":"cancel"}`)
		default:
			return nil, fmt.Errorf("the client did not answer %s: %w", requests[i].Method, wire.ErrorOf(answer))
		}
	}
	b := []byte{'{'}
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, wire.Quote(k)...), ':'), values[i]...)
	}
	return wire.Edit(params, wire.Field{Name: "inputResponses", Value: append(b, '}')}, wire.Field{Name: "requestState", Value: state.Value}), nil
}
