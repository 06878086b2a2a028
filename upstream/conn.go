package upstream

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream/oauth"
)

// shown is how many bytes of a text from a server are shown at most.
const shown = 200

// conn is one connection to the server, from handshake to end.
type conn struct {
	link    sync.RWMutex     // guards client
	client  wire.Client      // see peer
	web     wire.HTTPOptions // of a remote server
	child   *child           // nil for a remote server
	server  string           // what it says it is
	version string
	modern  atomic.Bool // it speaks without a handshake (MCP 2026-07-28)
	haldir  string      // haldir's version
	host    Host
	babble  babble
	name    string        // of the upstream
	asked   chan struct{} // a place for each of the server's requests that waits for the host
	relist  chan struct{}
	dead    chan struct{} // closed when the server has forgotten the session
	once    sync.Once

	life context.Context //nolint:containedctx // what goes on beside calls, ended by close
	kill context.CancelFunc

	mu      sync.Mutex
	level   string                   // of logging, as the server was told or a modern one is with each request
	watches map[string]*subscription // by URI; of a modern server
	mirrors map[string][]mirrored    // by tool
	tokens  map[string]*audience     // of calls in flight, by wire.IDKey of the token
	stale   [len(lists)]bool         // lists that may have changed
	told    [len(lists)]bool         // lists that the server says have changed
	tasks   map[string]string        // the keys in tokens of calls that have made a task, by its id
	offers  offers                   // for whoever connects and then attends
	outbox  [][]byte                 // see post
	// posting: deliver runs; closing: it must not be started any more.
	posting, closing bool
	calls            sync.WaitGroup // calls in flight
	active           int            // how many they are
	last             time.Time      // when the last ended, or the connection began
	wg               sync.WaitGroup
	// replies bounds the answers to the server's own requests that are under
	// way: one that asks without end is slowed down, not remembered.
	replies chan struct{}
}

// refusal is the error of a response, fit to be shown.
func refusal(m wire.Message) error {
	e := wire.ErrorOf(m)
	e.Message = wire.Printable(e.Message, shown)
	return e
}

// connect makes a connection, shakes hands and learns the tools.
func (u *Upstream) connect(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, u.o.Config.Connect, fmt.Errorf("no answer within %v (timeouts.connect)", u.o.Config.Connect))
	defer cancel()
	c := &conn{
		host: u.host, name: u.Name(), asked: make(chan struct{}, maxAsked), relist: make(chan struct{}, 1), dead: make(chan struct{}),
		tokens: map[string]*audience{}, tasks: map[string]string{}, replies: make(chan struct{}, 16), haldir: u.o.Version,
		watches: map[string]*subscription{}, last: time.Now(),
	}
	c.life, c.kill = context.WithCancel(context.Background())
	for i := range c.stale { // before the server can say that one has changed
		c.stale[i] = true
	}
	if err := u.dial(c); err != nil {
		c.kill()
		return nil, err
	}
	u.greets(c)
	defer u.greets(nil)
	if err := u.greet(ctx, c); err != nil {
		err = c.explain(err)
		if text := c.babble.text(); text != "" {
			err = fmt.Errorf("%w; %s", err, text)
		}
		c.close()
		u.withdraw()
		return nil, err
	}
	u.learn(c.offers, [len(lists)]bool{}, true)
	return c, nil
}

// greets notes the connection that is being made.
func (u *Upstream) greets(c *conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.greeting = c
}

func (u *Upstream) dial(c *conn) error {
	cfg := u.o.Config
	if cfg.Command != "" {
		ch, err := startChild(u.guard, cfg, u.o.Env, u.o.Resolver, u.o.Log, u.o.Clean)
		if err != nil {
			return err
		}
		c.child = ch
		c.set(func() wire.Client {
			return wire.NewPipe(ch.stdin, listening{ch.stdout, &c.babble}, wire.PipeOptions{
				Handler: c.handle, MaxMessage: u.o.MaxMessage,
				Noise: func(line []byte, why error) {
					text := wire.Printable(u.o.Clean(string(line)), shown)
					c.babble.noise(cmp.Or(text, why.Error())) // a line that is too long is not kept
					u.o.Log.Warn().Err(u.cleaned(why)).Str("line", text).Msg("the upstream wrote something that is no message; skipped")
				},
			})
		})
		return nil
	}
	url, err := u.o.Resolver.URL(cfg.URL)
	if err != nil {
		return err
	}
	header, err := u.header()
	if err != nil {
		return err
	}
	t, err := transport(cfg)
	if err != nil {
		return err
	}
	client := oauth.NewClient(t)
	source, err := u.source()
	if err != nil {
		return err
	}
	if source != nil {
		client.Transport = &oauth.Transport{Base: t, Source: source}
	}
	c.web = wire.HTTPOptions{
		URL: url, Client: client, Header: header, Handler: c.handle, MaxMessage: u.o.MaxMessage, Problem: u.problem, Mirror: c.mirror,
	}
	c.set(func() wire.Client { return wire.NewHTTP(c.web) })
	return nil
}

// set makes the client of the connection. What comes over it at once waits.
func (c *conn) set(client func() wire.Client) {
	c.link.Lock()
	defer c.link.Unlock()
	c.client = client()
}

// peer returns the client of the connection.
func (c *conn) peer() wire.Client {
	c.link.RLock()
	defer c.link.RUnlock()
	return c.client
}

// header resolves the configured headers.
func (u *Upstream) header() (http.Header, error) {
	h := http.Header{}
	for _, x := range u.o.Config.Headers {
		v, err := u.o.Resolver.Header(x.Value)
		if err != nil {
			return nil, fmt.Errorf("header %s: %w", x.Name, err)
		}
		h.Add(x.Name, u.o.Resolver.Secret(v))
	}
	if u.o.Config.Bearer != "" {
		v, err := u.o.Resolver.Header(u.o.Config.Bearer)
		if err != nil {
			return nil, fmt.Errorf("auth.token: %w", err)
		}
		h.Set("Authorization", "Bearer "+u.o.Resolver.Secret(v))
	}
	return h, nil
}

// openGrace is how long a server may take to answer that it has a stream of its
// own; some say nothing before its first event.
const openGrace = 250 * time.Millisecond

// handle takes what the server sends of its own accord.
func (c *conn) handle(m wire.Message) {
	if c.modern.Load() {
		var ours bool
		if m, ours = c.heard(m); ours {
			return
		}
	}
	switch {
	case m.Method == "ping" && m.IsRequest():
		c.answer(wire.Result(m.ID, json.RawMessage("{}")))
	case m.IsRequest() && c.host.Peer == nil:
		c.answer(wire.Failure(&wire.Error{Code: wire.CodeMethodNotFound, Message: "Method not found: " + m.Method, ID: m.ID}))
	case m.IsRequest():
		c.ask(m)
	case m.Method == "notifications/progress":
		if a := c.audience(m); a != nil {
			a.tell(m)
		}
	case c.changed(m.Method):
	case c.host.Peer != nil:
		c.host.Peer.Notify(c.name, m)
	}
	if m.Method == "notifications/tasks/status" {
		c.taskEnded(m.Params)
	}
}

// changed notes that a list has changed, if that is what method says.
func (c *conn) changed(method string) bool {
	known := false
	c.mu.Lock()
	for i, l := range lists {
		if method == l.changed {
			c.stale[i], c.told[i], known = true, true, true
		}
	}
	c.mu.Unlock()
	if known {
		c.due()
	}
	return known
}

// due has the lists that have changed asked for.
func (c *conn) due() {
	select {
	case c.relist <- struct{}{}:
	default: // it is due already
	}
}

// enter counts a call, exit says that it is over.
func (c *conn) enter() {
	c.calls.Add(1)
	c.mu.Lock()
	c.active++
	c.mu.Unlock()
}

func (c *conn) exit() {
	c.mu.Lock()
	c.active--
	c.last = time.Now()
	c.mu.Unlock()
	c.calls.Done()
}

// audience is whoever wants to hear of a call's progress.
type audience struct {
	mu   sync.Mutex
	hear func(wire.Message) // nil once the call is over
}

func (a *audience) tell(m wire.Message) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.hear != nil {
		a.hear(m)
	}
}

// leave returns when nothing more will be told: what belongs to a call must not
// come after its response.
func (a *audience) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hear = nil
}

// audience finds the call that a progress notification is about. A token that
// no call of this server has is nobody's: a server cannot speak for another.
func (c *conn) audience(m wire.Message) *audience {
	token, ok := wire.At(m.Params, "progressToken")
	if !ok {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tokens[wire.IDKey(token.Value)]
}

// answer replies to a request of the server that needs no host.
func (c *conn) answer(reply []byte) {
	select {
	case c.replies <- struct{}{}:
	default:
		if c.child == nil {
			return // a remote server that asks without taking answers gets none
		}
		select {
		case c.replies <- struct{}{}:
		case <-c.peer().Done():
			return
		}
	}
	c.wg.Go(func() { // sending may wait; the stream that brought m waits only for its turn
		defer func() { <-c.replies }()
		c.send(reply)
	})
}

func (c *conn) call(ctx context.Context, call Call) (m wire.Message, err error) {
	if call.Token != nil && call.Progress != nil {
		key, a := c.attract(&call)
		defer func() {
			if call.Task && err == nil && c.outlive(key, m.Result) {
				return
			}
			a.leave()
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.tokens[key] == a {
				delete(c.tokens, key)
			}
		}()
	}
	if call.Mark != nil {
		ctx = wire.WithMark(ctx, call.Mark)
	}
	m, err = c.exchange(ctx, call)
	if err != nil && ctx.Err() == nil {
		err = c.explain(err)
	}
	return m, err
}

// attract makes the audience of a call. A token that another call of this connection has,
// since it goes on while the host is done with the request that began it, is replaced
// by one of haldir's own on the way to the server.
func (c *conn) attract(call *Call) (key string, a *audience) {
	key, a = wire.IDKey(call.Token), &audience{hear: call.Progress}
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := wire.At(call.Params, "_meta", "progressToken"); ok && c.tokens[key] != nil {
		own, token, hear := wire.Quote("haldir-"+rand.Text()), call.Token, call.Progress
		call.Params, key = wire.Splice(call.Params, at.Start, at.End, own), wire.IDKey(own)
		a.hear = func(m wire.Message) { hear(under(m, token)) }
	}
	c.tokens[key] = a
	return key, a
}

// under is a progress notification with the token that the host knows.
func under(m wire.Message, token json.RawMessage) wire.Message {
	at, _ := wire.At(m.Raw, "params", "progressToken") // it was found by that
	if renamed, err := wire.ParseLenient(wire.Splice(m.Raw, at.Start, at.End, token)); err == nil {
		return renamed
	}
	return m
}

// maxTasks bounds how many tasks of one connection have an audience.
const maxTasks = 1000

// outlive keeps the audience of a call that has made a task: its token lives as
// long as the task (MCP 2025-11-25, tasks, progress).
func (c *conn) outlive(key string, result json.RawMessage) bool {
	task, _ := wire.At(result, "task", "taskId")
	id, _ := wire.String(task.Value)
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == "" || len(c.tasks) >= maxTasks {
		return false
	}
	c.tasks[id] = key
	return true
}

// taskEnded ends the audience of a task that a server calls ended.
func (c *conn) taskEnded(params json.RawMessage) {
	var p struct {
		TaskID string `json:"taskId"`
		Status string `json:"status"`
	}
	if json.Unmarshal(params, &p) != nil || p.Status != "completed" && p.Status != "failed" && p.Status != "cancelled" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if key, ok := c.tasks[p.TaskID]; ok {
		delete(c.tasks, p.TaskID)
		delete(c.tokens, key)
	}
}

// exited is closed when the child is gone; never for a remote server.
func (c *conn) exited() <-chan struct{} {
	if c.child == nil {
		return nil
	}
	return c.child.exited
}

// explain adds to an error what the child died of, if it did, or what can be done
// about a status of HTTP.
func (c *conn) explain(err error) error {
	if c.child != nil {
		return c.child.explain(err)
	}
	e, ok := errors.AsType[*wire.HTTPError](err)
	if !ok {
		return err
	}
	advice := "the server may say more in its log"
	switch {
	case e.Status == http.StatusUnauthorized:
		advice = "it wants other credentials than auth and headers of haldir.yaml give"
	case e.Status == http.StatusForbidden:
		advice = "these credentials may not do that"
	case e.Status == http.StatusNotFound, e.Status == http.StatusMethodNotAllowed:
		advice = "is the url in haldir.yaml that of an MCP server?"
	case e.Status == http.StatusTooManyRequests:
		advice = "it asks for fewer calls; try again later"
	case e.Status/100 == 3:
		advice = fmt.Sprintf("it has moved to %s; if you trust that with your credentials, make it the url in haldir.yaml (haldir follows within the same host, and by 307 and 308 alone)", cmp.Or(e.Location, "a place that it does not name"))
	case e.Status >= http.StatusInternalServerError:
		advice = "the server failed; try again later"
	}
	return fmt.Errorf("%w; %s", err, advice)
}

// over reports that the connection has ended, or that the server has forgotten
// its session.
func (c *conn) over() bool {
	select {
	case <-c.dead:
	case <-c.peer().Done():
	default:
		return false
	}
	return true
}

func (c *conn) expire() { c.once.Do(func() { close(c.dead) }) }

// close ends the connection, and the child, and returns when all is gone.
func (c *conn) close() {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.kill()
	if c.child != nil {
		if p, ok := c.peer().(*wire.Pipe); ok {
			_ = p.CloseInput() // it asks the child to end; the ladder follows
		}
		c.child.end()
	}
	c.peer().Close()
	c.wg.Wait()
}
