package proxy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/approval"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
)

// Upstream is what the proxy needs of a server behind it.
type Upstream interface {
	Name() string
	Bare() bool // its tools are listed under their own names
	Trusted() bool
	Catalogue() upstream.Catalogue
	Settled(ctx context.Context)
	Connected(ctx context.Context)
	Call(ctx context.Context, c upstream.Call) (wire.Message, error)
	Restored(ctx context.Context)
	Ready() bool
	Notify(msg []byte)
	Keep(key string, call *upstream.Call)
	Refuses(kind string) bool // whether the config keeps it from asking for that
}

// Ledger is what the proxy needs of the ledger.
type Ledger interface {
	Reserve(ctx context.Context, a ledger.Attempt, d ledger.Decider) (ledger.Ticket, policy.Decision, error)
	Settle(t ledger.Ticket, out ledger.Outcome)
	Check(ctx context.Context, u ledger.Use, call policy.Call, d ledger.Decider) (ledger.Session, policy.Decision, error)
	Record(ctx context.Context, a ledger.Attempt, failed string) error
	Spent(ctx context.Context, u ledger.Use, b ledger.Budgeter) (ledger.Spend, []policy.Budget, error)
	Find(ctx context.Context, f audit.Filter) ([]audit.Entry, uint64, error)
	Answer(ctx context.Context, id string, a ledger.Answer) (ledger.Approval, error)
	Refuse(ctx context.Context, id string) error
	Free(a ledger.Attempt, session string)
	Watched() bool
	Session(ctx context.Context, u ledger.Use) (ledger.Session, error)
	Stopped(ctx context.Context) (*ledger.Stopped, error)
	approval.Board
}

// Options configure [New].
type Options struct {
	Upstreams []Upstream // in the order of the config
	Engine    *policy.Engine
	Ledger    Ledger
	Use       ledger.Use          // the session that calls belong to
	Session   policy.SessionState // what is known of it beforehand, for listing tools
	Agent     string
	Config    audit.Hash
	Detail    audit.Detail
	Secrets   func() []string     // texts that must not reach the audit
	Clean     func(string) string // takes secrets out of an upstream's words
	HideNever bool                // leave out tools that policy could never allow
	NameLimit int
	ListWait  time.Duration
	Message   int // the largest message from the host, in bytes
	Version   string
	Command   string // how a person runs haldir, as far as to the verb
	Log       zerolog.Logger
	// Observe, if not nil, is told of each request that policy has judged, when it is over. It
	// holds up the answer and must not block.
	Observe func(*Seen)
	// Initialize is called when the host has said who it is.
	Initialize func(upstream.Host)
}

// Rules are what a config says, as far as it may change while a server runs. They are
// read only.
type Rules struct {
	Upstreams []Upstream // in the order of the config
	Engine    *policy.Engine
	Use       ledger.Use
	Session   policy.SessionState
	Agent     string
	Client    string // who calls, where it is not the host
	Config    audit.Hash
	Detail    audit.Detail
	HideNever bool
	NameLimit int
	ListWait  time.Duration
	// Notice is what the person or the agent should know of the config, such as that a
	// change of it waits to be confirmed; "" if nothing.
	Notice string
	// Heirs are the names of upstreams that are the servers of before, made anew; nil if
	// no upstream is another one than before.
	Heirs map[string]bool
	// Inherit, if not nil, gives them what those of before keep. It is called when nothing
	// is kept with those of before any more.
	Inherit func()

	all   []Upstream                  // with haldir's own tools at the end
	holds func(context.Context) error // of [As]
}

// rules returns those in force.
func (s *Server) rules() *Rules { return s.adopted.Load() }

// Adopt puts other rules in force, for every request that begins from then on. Requests
// under way go on by those they began with, but those that wait for a person are judged by
// the new ones when they go on. The host is told of tools that come or go.
func (s *Server) Adopt(r Rules) {
	r.all = append(append([]Upstream(nil), r.Upstreams...), s.own)
	s.mu.Lock()
	if r.Heirs == nil {
		r.Heirs = s.rules().Heirs
	}
	s.adopted.Store(&r)
	if r.Inherit != nil {
		r.Inherit()
	}
	s.table = nil
	for key, up := range s.subscribed { // who has taken another's place answers for it
		if up != nil {
			s.subscribed[key] = s.heir(up)
		}
	}
	for _, t := range s.tasks {
		if t != nil {
			t.up = s.heir(t.up)
		}
	}
	for t := range s.pending {
		t.up = s.heir(t.up)
	}
	s.mu.Unlock()
	s.Changed()
}

// heir returns who has taken the place of an upstream: itself, if nobody has. The lock
// is held, so that nobody does meanwhile.
func (s *Server) heir(up Upstream) Upstream {
	now := s.rules()
	if !now.Heirs[up.Name()] {
		return up
	}
	i := slices.IndexFunc(now.all, func(u Upstream) bool { return u.Name() == up.Name() })
	return now.all[i]
}

// Server is the MCP endpoint. Make it with [New]; its methods are safe for
// concurrent use, but Serve is called once.
type Server struct {
	o       Options
	adopted atomic.Pointer[Rules]
	own     Upstream // haldir's own tools
	desk    *approval.Desk
	out     *wire.LineWriter
	unread  backlog
	changed chan struct{}
	turn    chan *wire.LineReader // takes the reading from one goroutine to the next
	spare   atomic.Int32          // how many wait for it
	wg      sync.WaitGroup
	work    context.Context //nolint:containedctx // what goes on beyond a request; of Serve
	ending  chan struct{}   // closed when the host has closed its end, or haldir ends

	starting sync.Mutex  // held while upstreams are told who the host is
	met      bool        // they know it
	modern   atomic.Bool // the host speaks without a handshake (MCP 2026-07-28)
	telling  sync.Mutex  // held while what goes to listeners is sent, or one is added

	mu       sync.Mutex
	table    *table // the merged catalogue as it was asked for last
	inflight map[string]*request
	running  map[*request]string   // the session of each call that is at its upstream
	watching bool                  // whether their sessions are revoked
	rang     time.Time             // when they were last looked at for that
	closing  map[*request]struct{} // answered, and not yet settled
	client   string
	version  string
	ready    bool            // initialize has been answered
	listed   map[string]seen // what the host has seen last of each list, by method
	asks     asks
	early    []func() // what upstreams have sent before the host was ready for it
	greeted  bool
	greeting sync.Mutex         // held while what was early is let through
	tasks    map[string]*task   // whose a task is; nil: that of more than one
	pending  map[*task]struct{} // those that may be running
	// subscribed is whose resource a URI is that the host has subscribed to.
	subscribed   map[string]Upstream
	ended        bool              // haldir ends: nothing begins, and no call can be gone on with any more
	rounds       map[string]*round // calls that wait for the host to go on, by roundKey
	flights      []*flight         // calls of a modern host that upstreams are at, the oldest first
	unasked      []*asked          // what upstreams want to know when there is no call to ask by
	listeners    map[string]*listener
	watched      map[string]int             // how many streams are about a resource
	capabilities json.RawMessage            // all that the host has declared
	declaredLast json.RawMessage            // what it has declared with its last request
	hostTasks    map[string]string          // for which upstream the host has made a task
	declared     map[string]json.RawMessage // the capabilities haldir has told the host
}

// New makes a server.
func New(o Options) *Server {
	s := &Server{o: o, inflight: map[string]*request{}, running: map[*request]string{}, closing: map[*request]struct{}{}, listed: map[string]seen{}, asks: asks{waiting: map[string]*asked{}, tokens: map[string]*asked{}}, tasks: map[string]*task{}, pending: map[*task]struct{}{}, subscribed: map[string]Upstream{}, hostTasks: map[string]string{}, watched: map[string]int{}, rounds: map[string]*round{}, listeners: map[string]*listener{}, work: context.Background(), ending: make(chan struct{}), changed: make(chan struct{}, 1), turn: make(chan *wire.LineReader), version: wire.LatestLegacy}
	s.o.Command = cmp.Or(s.o.Command, "haldir")
	if s.o.Clean == nil {
		s.o.Clean = func(text string) string { return text }
	}
	s.own, s.desk = newGovernance(s), approval.NewDesk(o.Ledger)
	s.adopted.Store(&Rules{
		Upstreams: o.Upstreams, Engine: o.Engine, Use: o.Use, Session: o.Session, Agent: o.Agent, Config: o.Config, Detail: o.Detail,
		HideNever: o.HideNever, NameLimit: o.NameLimit, ListWait: o.ListWait, all: append(append([]Upstream(nil), o.Upstreams...), s.own),
	})
	return s
}

// Changed tells the server that the catalogue of an upstream has changed.
func (s *Server) Changed() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Causes of the end of a request.
var (
	errCancelled = errors.New("the client cancelled the request")
	errShutdown  = errors.New("haldir is shutting down")
)

// drain is how long requests in flight may go on after the host has closed its
// end.
const drain = 5 * time.Second

// Serve reads messages from in and answers on out until in ends or ctx does. At
// the end of in, requests in flight have a few seconds to finish; when ctx ends
// they are cancelled. The error is that of reading or writing; both ends are no
// error. A read from in may go on after Serve has returned.
func (s *Server) Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	s.out = wire.NewLineWriter(out)
	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(errShutdown)
	s.work = work
	end := make(chan error, 1)
	go s.read(work, wire.NewLineReader(in, s.o.Message), end)
	notifier, quiet := context.WithCancel(work)
	s.wg.Go(func() { s.notify(notifier) })

	var err error
	select {
	case err = <-end:
		close(s.ending)
		idle := make(chan struct{})
		go func() { s.idle(); close(idle) }()
		select {
		case <-idle:
		case <-time.After(drain):
		case <-ctx.Done():
		}
	case <-ctx.Done():
		close(s.ending)
	}
	stop(errShutdown)
	quiet()
	s.endRounds()
	defer s.desk.Close()
	over := make(chan struct{})
	go func() { s.wg.Wait(); close(over) }()
	select {
	case <-over:
	case <-time.After(drain): // a host that keeps its end open and does not read; the process ends
	}
	return err
}

// idle returns when no request is in flight.
func (s *Server) idle() {
	for {
		s.mu.Lock()
		var r *request
		for _, r = range s.inflight {
			break
		}
		for r = range s.closing {
			break
		}
		s.mu.Unlock()
		if r == nil {
			return
		}
		<-r.done
	}
}

// closed returns when what was answered before is settled.
func (s *Server) closed() {
	s.mu.Lock()
	before := slices.Collect(maps.Keys(s.closing))
	s.mu.Unlock()
	for _, r := range before {
		<-r.done
	}
}

// request is one request in flight.
type request struct {
	msg    wire.Message
	key    string
	ctx    context.Context //nolint:containedctx // the life of the request
	cancel context.CancelCauseFunc
	done   chan struct{}
	reply  func([]byte) // nil bytes: there is no answer
	silent atomic.Bool  // the client does not want an answer any more
	rules  *Rules       // in force when it began, or when it went on after a person was asked
	beats  int          // how often the client was told that it waits for a person
	era    *envelope    // nil in the handshake era
	up     Upstream     // who was asked last; guarded by the server's mu
	over   []string     // tasks that have ended and that it may have made; guarded by the server's mu
	after  []func()     // what the host need not wait for
	answer wire.Message // whose memory nobody needs once that is done
	round  *round       // not nil if the host is to go on with it

	seen    *Seen    // what is told of it; nil if nobody wants to know
	refused error    // not nil if haldir refused it, not the upstream
	refusal *Refusal // of a call of a tool
}

// maxSpare is how many goroutines wait to read in turn.
const maxSpare = 4

// read reads one request, hands the reading on, answers the request, and waits for
// its turn to read again. So no request waits for another goroutine to wake up, or
// for a new stack to grow. While it reads it is not waited for, as a read cannot be
// interrupted.
func (s *Server) read(ctx context.Context, lines *wire.LineReader, end chan<- error) {
	for {
		r, err := s.next(ctx, lines)
		if r == nil {
			end <- err
			return
		}
		select {
		case s.turn <- lines:
		default: // nobody waits for it
			go s.read(ctx, lines, end)
		}
		s.run(r)
		again := false
		if s.spare.Add(1) <= maxSpare {
			select {
			case lines = <-s.turn:
				again = true
			case <-ctx.Done():
			}
		}
		s.spare.Add(-1)
		s.wg.Done()
		if !again {
			return
		}
	}
}

// next handles what the host sends up to the next request. There is none at the end
// of the input, which is no error.
func (s *Server) next(ctx context.Context, lines *wire.LineReader) (*request, error) {
	for {
		s.unread.wait(ctx)
		line, err := lines.Next()
		var large *wire.TooLargeError
		switch {
		case errors.As(err, &large) && !large.Request && s.lost(large.ID, large.Error()):
			continue
		case errors.As(err, &large):
			s.fail(&wire.Error{Code: wire.CodeInvalidRequest, ID: large.ID, Message: large.Error()}, s.write)
			continue
		case errors.Is(err, io.EOF):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("read from the host: %w", err)
		}
		if ctx.Err() != nil {
			return nil, nil //nolint:nilerr // the parent has ended
		}
		if wire.IsBatch(line) {
			s.batch(ctx, line)
		} else if r := s.take(ctx, line, s.write, false); r != nil {
			return r, nil
		}
	}
}

func (s *Server) write(msg []byte) {
	if msg == nil {
		return
	}
	s.unread.add(1, len(msg))
	defer s.unread.add(-1, -len(msg))
	if err := s.out.Write(msg); err != nil {
		s.o.Log.Debug().Err(err).Msg("the host does not read any more")
	}
}

func (s *Server) fail(e *wire.Error, reply func([]byte)) { reply(wire.Failure(e)) }

// take handles one message, unless it is a request that is to be run. It does not
// wait for anything.
func (s *Server) take(ctx context.Context, line []byte, reply func([]byte), batched bool) *request {
	m, err := wire.ParseStrict(line)
	var bad *wire.Error
	switch {
	case errors.As(err, &bad) && s.unreadable(line, bad):
		reply(nil)
	case errors.As(err, &bad):
		s.fail(bad, reply)
	case m.IsNotification():
		s.notification(m)
		reply(nil)
	case m.IsResponse():
		s.answered(m)
		reply(nil)
	case m.Method == "initialize" && batched:
		s.fail(&wire.Error{Code: wire.CodeInvalidRequest, Message: "initialize must not be part of a batch", ID: m.ID}, reply)
	case m.Method == "initialize" && !saysItsEra(m): // which would know no handshake
		s.initialize(m, reply) // in the loop: what follows depends on it
	default:
		return s.begin(ctx, m, reply)
	}
	return nil
}

// begin registers a request, unless haldir ends.
func (s *Server) begin(ctx context.Context, m wire.Message, reply func([]byte)) *request {
	r := &request{msg: m, key: wire.IDKey(m.ID), done: make(chan struct{}), reply: reply, rules: s.rules()}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		r.cancel(errShutdown)
		return nil
	}
	if s.inflight[r.key] != nil {
		s.mu.Unlock()
		s.fail(&wire.Error{Code: wire.CodeInvalidRequest, Message: "a request with this id is still running", ID: m.ID}, reply)
		return nil
	}
	s.inflight[r.key] = r
	s.wg.Add(1) // who runs it says when that is over; Serve does not wait before ended is set
	s.mu.Unlock()
	return r
}

// run answers a request.
func (s *Server) run(r *request) {
	answer := s.handle(r)
	s.mu.Lock()
	delete(s.inflight, r.key)
	if r.after != nil {
		s.closing[r] = struct{}{}
	}
	s.mu.Unlock()
	if r.silent.Load() {
		answer = nil
		if r.round != nil { // nobody will go on with it
			s.expire(r.round, errCancelled)
		}
	}
	if r.after == nil {
		r.reply(answer)
	} else {
		conclude := sync.OnceFunc(func() { s.conclude(r) })
		patience := time.AfterFunc(readGrace, conclude)
		hurry := context.AfterFunc(r.ctx, conclude) // haldir ends: there is no time to wait
		r.reply(answer)
		patience.Stop()
		hurry()
		conclude()
	}
	r.answer.Release()
	r.cancel(nil)
	close(r.done)
}

// readGrace is how long a host may take to read an answer before what is left to do
// about it is done beside.
const readGrace = 50 * time.Millisecond

// conclude does what the host does not wait for.
func (s *Server) conclude(r *request) {
	defer func() {
		if p := recover(); p != nil {
			s.o.Log.Error().Interface("panic", p).Str("method", r.msg.Method).Stack().Msg("internal error")
		}
		s.mu.Lock()
		delete(s.closing, r)
		s.mu.Unlock()
	}()
	for _, f := range r.after {
		f()
	}
}

// handle answers a request. A panic is a mistake of ours; it must not take the
// other calls with it.
func (s *Server) handle(r *request) (answer []byte) {
	defer func() {
		if p := recover(); p != nil {
			s.o.Log.Error().Interface("panic", p).Str("method", r.msg.Method).Stack().Msg("internal error")
			answer = wire.Failure(&wire.Error{Code: wire.CodeInternal, Message: "internal error in haldir", ID: r.msg.ID})
		}
	}()
	m := r.msg
	switch e, bad := readEnvelope(m); {
	case bad != nil:
		return wire.Failure(bad)
	case e != nil:
		r.era = e
		s.meet(r)
		return s.finish(r, s.handleModern(r))
	}
	switch m.Method {
	case "server/discover":
		return s.invalid(r, "server/discover needs _meta with "+wire.MetaVersion+" and "+wire.MetaCapabilities)
	case "ping":
		return wire.Result(m.ID, json.RawMessage("{}"))
	case "resources/subscribe":
		return s.ask(r, "resources", s.subscribe)
	case "resources/unsubscribe":
		return s.ask(r, "resources", s.unsubscribe)
	case "tasks/get", "tasks/result", "tasks/cancel":
		return s.ask(r, "tasks", s.task)
	case "tasks/list":
		return s.ask(r, "tasks", s.listTasks)
	case "logging/setLevel":
		return s.ask(r, "logging", s.setLevel)
	}
	if capability, handle := s.shared(m.Method); handle != nil {
		return s.ask(r, capability, handle)
	}
	return s.noMethod(r)
}

// shared returns what answers a request that both eras have, and the capability that
// it takes; nil if they do not.
func (s *Server) shared(method string) (capability string, handle func(*request) []byte) {
	switch method {
	case "tools/list":
		return "tools", s.answerList
	case "tools/call":
		return "tools", s.callTool
	case "resources/list", "resources/templates/list":
		return "resources", s.answerList
	case "resources/read":
		return "resources", s.readResource
	case "prompts/list":
		return "prompts", s.answerList
	case "prompts/get":
		return "prompts", s.prompt
	case "completion/complete":
		return "completions", s.complete
	}
	return "", nil
}

func (s *Server) noMethod(r *request) []byte {
	return wire.Failure(&wire.Error{Code: wire.CodeMethodNotFound, Message: "Method not found: " + r.msg.Method, ID: r.msg.ID})
}

// ask handles a request once the host has been greeted, if haldir has declared
// the capability that it takes.
func (s *Server) ask(r *request, capability string, handle func(*request) []byte) []byte {
	if !s.initialized() {
		return s.invalid(r, "send initialize first, or with each request the _meta of MCP "+wire.Version20260728)
	}
	s.greet() // also by a host that has left notifications/initialized out
	s.mu.Lock()
	declared := s.declared[capability]
	s.mu.Unlock()
	if declared == nil {
		return s.noMethod(r)
	}
	return handle(r)
}

func (s *Server) initialized() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

// initialize answers the handshake (MCP lifecycle, initialization).
func (s *Server) initialize(m wire.Message, reply func([]byte)) {
	var p struct {
		ProtocolVersion string          `json:"protocolVersion"`
		Capabilities    json.RawMessage `json:"capabilities"`
		ClientInfo      json.RawMessage `json:"clientInfo"`
	}
	if m.Params == nil || json.Unmarshal(m.Params, &p) != nil || p.ProtocolVersion == "" {
		s.fail(&wire.Error{Code: wire.CodeInvalidParams, Message: "initialize needs a protocolVersion", ID: m.ID}, reply)
		return
	}
	version := wire.Negotiate(p.ProtocolVersion)
	if wire.KindOf(p.Capabilities) != "an object" {
		p.Capabilities = nil
	}
	answered := make(chan struct{})
	defer close(answered)
	s.start(upstream.Host{Version: version, Capabilities: p.Capabilities, Peer: s, Answered: answered})
	s.restored()
	capabilities, instructions := s.offered()
	s.mu.Lock()
	s.version, s.ready, s.client = version, true, clientName(p.ClientInfo)
	s.capabilities = slices.Clone(p.Capabilities)
	s.declared = declaredIn(capabilities)
	s.mu.Unlock()
	result := fmt.Appendf(nil, `{"protocolVersion":%s,"capabilities":%s,"serverInfo":{"name":"haldir","title":"haldir","version":%s}`,
		wire.Quote(version), capabilities, wire.Quote(s.o.Version))
	if instructions != "" {
		result = append(append(result, `,"instructions":`...), wire.Quote(instructions)...)
	}
	reply(wire.Result(m.ID, append(result, '}')))
}

// restored waits a moment for what earlier runs knew of the upstreams.
func (s *Server) restored() {
	ctx, cancel := context.WithTimeout(context.Background(), restoreWait)
	defer cancel()
	for _, up := range s.rules().Upstreams {
		up.Restored(ctx)
	}
}

func declaredIn(capabilities json.RawMessage) map[string]json.RawMessage {
	var all map[string]json.RawMessage
	_ = json.Unmarshal(capabilities, &all) // an object of haldir's own making
	return all
}

// start begins to connect, on behalf of h, once. Only a modern host may introduce
// itself again.
func (s *Server) start(h upstream.Host) {
	s.starting.Lock()
	defer s.starting.Unlock()
	s.introduce(h)
}

// introduce does so under the lock.
func (s *Server) introduce(h upstream.Host) {
	if s.met && !s.modern.Load() {
		return
	}
	s.met = true
	s.modern.Store(h.Modern)
	s.mu.Lock()
	s.greeted = h.Modern // it says no notifications/initialized
	s.mu.Unlock()
	if s.o.Initialize != nil {
		s.o.Initialize(h)
	}
}

// clientName is what a client says it is, for the audit.
func clientName(info json.RawMessage) string {
	var c struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	if json.Unmarshal(info, &c) != nil || c.Name == "" {
		return ""
	}
	name := c.Name
	if c.Version != "" {
		name += " " + c.Version
	}
	return name[:min(len(name), 128)]
}

func (s *Server) notification(m wire.Message) {
	switch m.Method {
	case "notifications/cancelled":
		s.cancelled(m)
	case "notifications/progress":
		s.progressed(m)
	case "notifications/initialized":
		s.greet()
	case "notifications/roots/list_changed":
		s.tell("", slices.Clone(m.Raw))
	case "notifications/tasks/status":
		if owner := s.hostTask(m.Params); owner != "" {
			s.tell(owner, slices.Clone(m.Raw))
		}
	case "tools/call", "resources/read", "prompts/get":
		// Without an id it is no request, but a careless server might take it for one.
		s.mu.Lock()
		if !s.ended {
			s.wg.Go(func() { s.recordUnanswerable(m) })
		}
		s.mu.Unlock()
	}
	// Nothing else is passed on: what reaches a server is judged.
}

func (s *Server) cancelled(m wire.Message) {
	id, ok := wire.At(m.Params, "requestId")
	if !ok {
		return
	}
	s.mu.Lock()
	r := s.inflight[wire.IDKey(id.Value)]
	if r != nil { // else it is answered already
		r.silent.Store(true)
	}
	s.mu.Unlock()
	if r != nil {
		r.cancel(errCancelled)
	}
}

// batch handles a JSON-RPC batch (section 6), which one revision of MCP has.
func (s *Server) batch(ctx context.Context, line []byte) {
	s.mu.Lock()
	version := s.version
	s.mu.Unlock()
	refuse := func(code int, format string, args ...any) {
		s.fail(&wire.Error{Code: code, Message: fmt.Sprintf(format, args...)}, s.write)
	}
	if err := wire.Strict(line); err != nil {
		refuse(wire.CodeInvalidRequest, "Invalid JSON: %v", err)
		return
	}
	if !wire.Batches(version) {
		refuse(wire.CodeInvalidRequest, "MCP revision %s has no batches", version)
		return
	}
	messages, err := wire.Elements(line)
	if err != nil || len(messages) == 0 {
		refuse(wire.CodeInvalidRequest, "an empty batch")
		return
	}
	b := &batch{left: len(messages), write: s.write}
	for _, m := range messages {
		if r := s.take(ctx, m, b.reply, true); r != nil {
			go func() { defer s.wg.Done(); s.run(r) }()
		}
	}
}

// batch collects the answers to the messages of a batch.
type batch struct {
	mu      sync.Mutex
	left    int
	answers []byte
	write   func([]byte)
}

func (b *batch) reply(msg []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if msg != nil {
		if b.answers == nil {
			b.answers = []byte{'['}
		} else {
			b.answers = append(b.answers, ',')
		}
		b.answers = append(b.answers, msg...)
	}
	if b.left--; b.left == 0 && b.answers != nil {
		b.write(append(b.answers, ']'))
	}
}
