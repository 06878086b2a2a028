package proxy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

func TestMain(m *testing.M) {
	mcptest.Main() // does not return in a child
	if runArm() {
		return
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		mcptest.CleanUp()
		os.Exit(code)
	}))
}

// patience is how long a test waits for what must happen; far above what a
// loaded two-core machine under -race needs.
const patience = 15 * time.Second

// moment is how long a test waits for what must not happen.
const moment = 150 * time.Millisecond

// rig is the world of a test: a real ledger and the given upstreams.
type rig struct {
	rules   policy.Ruleset
	fakes   []proxy.Upstream  // in this process
	servers []config.Upstream // real ones
	ledger  proxy.Ledger      // nil: a real one
	terms   *ledger.Terms     // nil: all scopes, no limit
	adjust  func(*proxy.Options)
	max     int  // the largest message; 0: the default
	raw     bool // the host has not sent initialize
	lax     bool // the host may be sent lines that are no JSON-RPC messages
}

// host is the client's end of a conversation with a proxy.Server.
type host struct {
	t    *testing.T
	srv  *proxy.Server
	led  *ledger.Ledger // nil with a ledger of the test's own
	dir  string
	ups  []*upstream.Upstream
	log  *mcptest.Buffer
	in   *io.PipeWriter
	stop context.CancelFunc
	done chan struct{} // Serve has returned err
	err  error
	lax  bool
	deaf atomic.Bool // it does not read
	ids  atomic.Int64

	inbox
}

// inbox is what a server has written to its host and nobody has taken.
type inbox struct {
	mu    sync.Mutex
	lines []string
	news  chan struct{} // closed and replaced with every line
}

func (b *inbox) put(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, line)
	close(b.news)
	b.news = make(chan struct{})
}

const (
	session = "ses_test"
	agent   = "tester"
)

// serve starts the server of a test. The session ends with the test, in the
// order of haldir serve: the server, the upstreams, the ledger.
func serve(t *testing.T, r rig) *host {
	t.Helper()
	h := &host{t: t, log: &mcptest.Buffer{}, done: make(chan struct{}), lax: r.lax, inbox: inbox{news: make(chan struct{})}}
	engine, err := policy.Compile(r.rules)
	if err != nil {
		t.Fatal(err)
	}
	log := zerolog.New(h.log)
	led := r.ledger
	if led == nil {
		h.dir = t.TempDir()
		if err := os.Chmod(h.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		h.led = openLedger(t, h.dir)
		led = h.led
	}
	terms := r.terms
	if terms == nil {
		terms = &ledger.Terms{Agent: agent, AllScopes: true}
	}
	cache, ok := led.(upstream.Cache)
	if !ok {
		cache = noCache{}
	}
	ups := slices.Clone(r.fakes)
	for _, cfg := range r.servers {
		u := upstream.New(upstream.Options{
			Config: cfg, Resolver: config.NewResolver("", nil, nil), Cache: cache, Log: log.With().Str("upstream", cfg.Name).Logger(),
			Version: "test", MaxMessage: r.max, Changed: func() { h.srv.Changed() },
		})
		h.ups = append(h.ups, u)
		ups = append(ups, u)
	}
	o := proxy.Options{
		Upstreams: ups, Engine: engine, Ledger: led, Use: ledger.Use{ID: session, Terms: terms},
		Session: policy.SessionState{ID: session, AllScopes: terms.AllScopes, Scopes: terms.Scopes, SpendLimit: terms.SpendLimit},
		Agent:   terms.Agent, Detail: audit.DetailFull, Secrets: func() []string { return nil }, HideNever: true, NameLimit: 89,
		ListWait: 5 * time.Second, Message: r.max, Version: "test", Log: log,
		Initialize: func(host upstream.Host) {
			for _, u := range h.ups {
				u.Start(host)
			}
		},
	}
	if r.adjust != nil {
		r.adjust(&o)
	}
	h.srv = proxy.New(o)
	for _, f := range r.fakes {
		if f, ok := f.(*fake); ok {
			f.listen(h.srv.Changed)
		}
	}
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	ctx, stop := context.WithCancel(context.Background())
	h.in, h.stop = inW, stop
	go func() {
		h.err = h.srv.Serve(ctx, inR, outW)
		_ = outW.Close()
		close(h.done)
	}()
	var reader sync.WaitGroup
	reader.Go(func() { h.read(outR) })
	t.Cleanup(func() {
		h.deaf.Store(false)
		_ = inW.Close()
		stop()
		select {
		case <-h.done:
		case <-time.After(patience):
			t.Error("Serve does not return")
			_ = outR.Close()
		}
		reader.Wait()
		var wg sync.WaitGroup
		for _, u := range h.ups {
			wg.Go(u.Close)
		}
		wg.Wait()
	})
	if !r.raw {
		h.initialize("2025-11-25")
	}
	return h
}

func (h *host) initialize(version string) {
	h.t.Helper()
	h.ask(`{"jsonrpc":"2.0","id":"init","method":"initialize","params":{"protocolVersion":"` + version + `","capabilities":{},"clientInfo":{"name":"host","version":"1"}}}`)
	h.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
}

func openLedger(t testing.TB, dir string) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop(), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			t.Errorf("close the ledger: %v", err)
		}
	})
	return l
}

type noCache struct{}

func (noCache) LoadCatalogue(context.Context, string) ([]byte, error) { return nil, nil }
func (noCache) SaveCatalogue(context.Context, string, []byte) error   { return nil }

// read takes every line from the server and checks that it is one message.
func (h *host) read(out io.Reader) {
	lines := wire.NewLineReader(out, 256<<20)
	for {
		for h.deaf.Load() {
			time.Sleep(time.Millisecond)
		}
		line, err := lines.Next()
		if err != nil {
			return
		}
		if !h.lax {
			if why := notMessage(line); why != "" {
				h.t.Errorf("the host was sent a line that is no JSON-RPC message (%s): %s", why, clip(string(line)))
			}
		}
		h.put(string(line))
	}
}

// notMessage says why a strict host would not take a line as a message; "" if
// it would. It allows bytes that are no UTF-8 inside, which are the upstream's.
func notMessage(line []byte) string {
	if line[0] == '[' {
		elements, err := wire.Elements(line)
		if err != nil {
			return err.Error()
		}
		for _, e := range elements {
			if why := notMessage(e); why != "" {
				return why
			}
		}
		return ""
	}
	members, err := wire.Members(line)
	if err != nil {
		return err.Error()
	}
	if v, ok := wire.Find(members, "jsonrpc"); !ok || string(v.Value) != `"2.0"` {
		return `no "jsonrpc":"2.0"`
	}
	_, hasResult := wire.Find(members, "result")
	_, hasError := wire.Find(members, "error")
	_, hasMethod := wire.Find(members, "method")
	_, hasID := wire.Find(members, "id")
	switch {
	case hasMethod:
		return ""
	case hasResult == hasError:
		return "a response must have either a result or an error"
	case hasError && (wire.KindOf(errorOf(members)) != "an object"):
		return "the error is no object"
	case !hasID:
		return "a response without an id"
	}
	return ""
}

func errorOf(members []wire.Member) []byte {
	v, _ := wire.Find(members, "error")
	return v.Value
}

func clip(s string) string {
	if len(s) > 500 {
		return s[:250] + " ... " + s[len(s)-250:]
	}
	return s
}

func (h *host) send(lines ...string) {
	h.t.Helper()
	if _, err := io.WriteString(h.in, strings.Join(lines, "\n")+"\n"); err != nil {
		h.t.Fatalf("the server reads no more: %v", err)
	}
}

// wait takes the first line that match accepts, or returns "" when none comes
// in time.
func (b *inbox) wait(d time.Duration, match func(string) bool) string {
	deadline := time.After(d)
	for {
		b.mu.Lock()
		i := slices.IndexFunc(b.lines, match)
		var line string
		if i >= 0 {
			line = b.lines[i]
			b.lines = slices.Delete(b.lines, i, i+1)
		}
		news := b.news
		b.mu.Unlock()
		if i >= 0 {
			return line
		}
		select {
		case <-news:
		case <-deadline:
			return ""
		}
	}
}

// need is wait for what must come.
func (h *host) need(what string, match func(string) bool) string {
	h.t.Helper()
	line := h.wait(patience, match)
	if line == "" {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.t.Fatalf("%s did not come within %v; unread: %s; log: %s", what, patience, clip(fmt.Sprint(h.lines)), clip(h.log.String()))
	}
	return line
}

func hasID(id string) func(string) bool {
	return func(line string) bool {
		members, err := wire.Members([]byte(line))
		if err != nil {
			return false
		}
		v, ok := wire.Find(members, "id")
		_, isRequest := wire.Find(members, "method")
		return ok && !isRequest && string(v.Value) == id
	}
}

func hasMethod(method string) func(string) bool {
	return func(line string) bool {
		m, err := wire.ParseLenient([]byte(line))
		return err == nil && m.Method == method
	}
}

func anyLine(string) bool { return true }

// answer waits for the response with an id, given as JSON.
func (h *host) answer(id string) string {
	h.t.Helper()
	return h.need("the answer to "+id, hasID(id))
}

// ask sends a request and returns the answer to its id.
func (h *host) ask(line string) string {
	h.t.Helper()
	m, err := wire.ParseLenient([]byte(line))
	if err != nil {
		h.t.Fatalf("%s: %v", line, err)
	}
	h.send(line)
	return h.answer(string(m.ID))
}

func (h *host) nextID() string { return strconv.FormatInt(h.ids.Add(1), 10) }

// callLine makes a tools/call with the next id.
func (h *host) callLine(name, arguments string) (id, line string) {
	id = h.nextID()
	return id, `{"jsonrpc":"2.0","id":` + id + `,"method":"tools/call","params":{"name":` + string(wire.Quote(name)) + `,"arguments":` + arguments + `}}`
}

// response is an answer taken apart.
type response struct {
	line    string
	Result  json.RawMessage `json:"result"`
	IsError bool            `json:"-"`
	Text    string          `json:"-"` // of the first content
	Error   *struct {
		Code    int             `json:"code"`
		Message string          `json:"message"`
		Data    json.RawMessage `json:"data"`
	} `json:"error"`
	Structured json.RawMessage `json:"-"`
}

func parseResponse(t *testing.T, line string) response {
	t.Helper()
	r := response{line: line}
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		t.Fatalf("%v: %s", err, clip(line))
	}
	if r.Result != nil {
		var result struct {
			Content []struct {
				Text string `json:"text"`
			} `json:"content"`
			IsError    bool            `json:"isError"`
			Structured json.RawMessage `json:"structuredContent"`
		}
		if err := json.Unmarshal(r.Result, &result); err == nil {
			r.IsError, r.Structured = result.IsError, result.Structured
			if len(result.Content) > 0 {
				r.Text = result.Content[0].Text
			}
		}
	}
	return r
}

// call calls a tool and waits for the answer.
func (h *host) call(name, arguments string) response {
	h.t.Helper()
	_, line := h.callLine(name, arguments)
	return parseResponse(h.t, h.ask(line))
}

// refusal is what the text of a refused call says.
func (r response) refusal(t *testing.T) proxy.Refusal {
	t.Helper()
	var out proxy.Refusal
	if !r.IsError || json.Unmarshal([]byte(r.Text), &out) != nil || out.BlockedBy != "haldir" {
		t.Fatalf("this is no refusal: %s", clip(r.line))
	}
	return out
}

// refused calls a tool that must not be let through.
func (h *host) refused(name, arguments string) proxy.Refusal {
	h.t.Helper()
	return h.call(name, arguments).refusal(h.t)
}

// must calls a tool whose call must go well, and returns the first text.
func (h *host) must(name, arguments string) string {
	h.t.Helper()
	r := h.call(name, arguments)
	if r.Error != nil || r.IsError {
		h.t.Fatalf("call %s %s: %s", name, clip(arguments), clip(r.line))
	}
	return r.Text
}

// alive fails the test unless the server still answers.
func (h *host) alive() {
	h.t.Helper()
	id := h.nextID()
	want := `{"jsonrpc":"2.0","id":` + id + `,"result":{}}`
	if got := h.ask(`{"jsonrpc":"2.0","id":` + id + `,"method":"ping"}`); got != want {
		h.t.Fatalf("ping: %s", got)
	}
}

// quiet fails the test when the host is sent anything for a moment.
func (h *host) quiet() {
	h.t.Helper()
	if line := h.wait(moment, anyLine); line != "" {
		h.t.Fatalf("the host was sent: %s", clip(line))
	}
}

// tools returns the names of tools/list.
func (h *host) tools() (names []string) {
	h.t.Helper()
	for _, d := range h.definitions() {
		var t struct {
			Name string `json:"name"`
		}
		if err := json.Unmarshal(d, &t); err != nil {
			h.t.Fatal(err)
		}
		names = append(names, t.Name)
	}
	return names
}

func (h *host) definitions() []json.RawMessage {
	h.t.Helper()
	r := parseResponse(h.t, h.ask(`{"jsonrpc":"2.0","id":`+h.nextID()+`,"method":"tools/list"}`))
	if r.Error != nil {
		h.t.Fatalf("tools/list: %s", r.line)
	}
	var list struct {
		Tools []json.RawMessage `json:"tools"`
	}
	if err := json.Unmarshal(r.Result, &list); err != nil {
		h.t.Fatal(err)
	}
	return list.Tools
}

// others returns the names of tools/list without haldir's own.
func (h *host) others() []string {
	h.t.Helper()
	return slices.DeleteFunc(h.tools(), func(n string) bool { return strings.HasPrefix(n, "haldir_") })
}

// entries returns the audit of calls, oldest first, with everything settled.
func (h *host) entries() []audit.Entry {
	h.t.Helper()
	return h.find(audit.Filter{Calls: true, Limit: 1 << 20})
}

func (h *host) find(f audit.Filter) []audit.Entry {
	h.t.Helper()
	if err := h.led.Flush(context.Background()); err != nil {
		h.t.Fatal(err)
	}
	list, _, err := h.led.Find(context.Background(), f)
	if err != nil {
		h.t.Fatal(err)
	}
	slices.Reverse(list)
	return list
}

// last returns the newest entry once the call of it has ended.
func (h *host) last() audit.Entry {
	h.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		list := h.entries()
		if len(list) > 0 && list[len(list)-1].Status != audit.StatusRunning {
			return list[len(list)-1]
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("no entry of a finished call: %+v", list)
		}
	}
}

func (h *host) spent() ledger.Spend {
	h.t.Helper()
	engine, err := policy.Compile(policy.Ruleset{})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.led.Flush(context.Background()); err != nil {
		h.t.Fatal(err)
	}
	sp, _, err := h.led.Spent(context.Background(), ledger.Use{ID: session, Terms: &ledger.Terms{Agent: agent, AllScopes: true}}, engine)
	if err != nil {
		h.t.Fatal(err)
	}
	return sp
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: still not so after %v", what, patience)
		}
	}
}

// fake is an upstream in this process that does what a test says.
type fake struct {
	name          string
	bare, trusted bool
	cold          bool // its first attempt to connect never ends
	do            func(ctx context.Context, c upstream.Call) (wire.Message, error)

	mu        sync.Mutex
	catalogue upstream.Catalogue
	calls     []upstream.Call
	changed   func()
}

// newFake makes an upstream with tools of the given names, or none yet if there
// are none.
func newFake(name string, tools ...string) *fake {
	f := &fake{name: name}
	if len(tools) > 0 {
		f.set(tools...)
	}
	return f
}

func (f *fake) set(tools ...string) {
	defs := make([]json.RawMessage, 0, len(tools))
	for _, t := range tools {
		defs = append(defs, mcptest.Tool(t))
	}
	f.define(defs...)
}

// define changes the tools as a list_changed of a real upstream would.
func (f *fake) define(defs ...json.RawMessage) {
	f.mu.Lock()
	c := upstream.ReadCatalogue(defs)
	c.Revision = f.catalogue.Revision + 1
	f.catalogue = c
	changed := f.changed
	f.mu.Unlock()
	if changed != nil {
		changed()
	}
}

func (f *fake) listen(changed func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changed = changed
}

func (f *fake) Name() string  { return f.name }
func (f *fake) Bare() bool    { return f.bare }
func (f *fake) Trusted() bool { return f.trusted }

func (f *fake) Settled(ctx context.Context) {
	if f.cold {
		<-ctx.Done()
	}
}

func (f *fake) Connected(ctx context.Context) { f.Settled(ctx) }

func (*fake) Restored(context.Context)    {}
func (*fake) Ready() bool                 { return true }
func (*fake) Notify([]byte)               {}
func (*fake) Keep(string, *upstream.Call) {}
func (*fake) Refuses(string) bool         { return false }

func (f *fake) Catalogue() upstream.Catalogue {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.catalogue
}

func (f *fake) Call(ctx context.Context, c upstream.Call) (wire.Message, error) {
	f.mu.Lock()
	f.calls = append(f.calls, c)
	f.mu.Unlock()
	if f.do == nil {
		return reply(mcptest.Text("done"))
	}
	return f.do(ctx, c)
}

// called returns the params of every call that reached the upstream.
func (f *fake) called() (params []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		params = append(params, string(c.Params))
	}
	return params
}

func reply(result string) (wire.Message, error) {
	return wire.ParseLenient([]byte(`{"jsonrpc":"2.0","id":77,"result":` + result + `}`))
}

// hang waits for the end of the call, as an upstream that does not answer.
func hang(ctx context.Context, _ upstream.Call) (wire.Message, error) {
	<-ctx.Done()
	return wire.Message{}, context.Cause(ctx)
}

// faulty is a ledger whose methods a test can make fail.
type faulty struct {
	proxy.Ledger
	reserve func(context.Context, ledger.Attempt) error
	record  error
	check   error
	spent   error
	find    error

	mu       sync.Mutex
	settled  []ledger.Outcome
	reserved int
}

func (f *faulty) Reserve(ctx context.Context, a ledger.Attempt, d ledger.Decider) (ledger.Ticket, policy.Decision, error) {
	if f.reserve != nil {
		if err := f.reserve(ctx, a); err != nil {
			// As bad as can be: an error beside a decision that says yes.
			return ledger.Ticket{}, policy.Decision{Verdict: policy.Allow}, err
		}
	}
	f.mu.Lock()
	f.reserved++
	f.mu.Unlock()
	if f.Ledger == nil {
		return ledger.Ticket{CallID: "x"}, policy.Decision{Verdict: policy.Allow}, nil
	}
	return f.Ledger.Reserve(ctx, a, d)
}

func (f *faulty) Settle(t ledger.Ticket, out ledger.Outcome) {
	f.mu.Lock()
	f.settled = append(f.settled, out)
	f.mu.Unlock()
	if f.Ledger != nil {
		f.Ledger.Settle(t, out)
	}
}

func (f *faulty) outcomes() []ledger.Outcome {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.settled)
}

func (f *faulty) Record(ctx context.Context, a ledger.Attempt, failed string) error {
	if f.record != nil || f.Ledger == nil {
		return f.record
	}
	return f.Ledger.Record(ctx, a, failed)
}

func (f *faulty) Check(ctx context.Context, u ledger.Use, call policy.Call, d ledger.Decider) (ledger.Session, policy.Decision, error) {
	if f.check != nil || f.Ledger == nil {
		return ledger.Session{}, policy.Decision{}, f.check
	}
	return f.Ledger.Check(ctx, u, call, d)
}

func (f *faulty) Spent(ctx context.Context, u ledger.Use, b ledger.Budgeter) (ledger.Spend, []policy.Budget, error) {
	if f.spent != nil || f.Ledger == nil {
		return ledger.Spend{}, nil, f.spent
	}
	return f.Ledger.Spent(ctx, u, b)
}

func (f *faulty) Find(ctx context.Context, x audit.Filter) ([]audit.Entry, uint64, error) {
	if f.find != nil || f.Ledger == nil {
		return nil, 0, f.find
	}
	return f.Ledger.Find(ctx, x)
}

func (f *faulty) Bell() string {
	if f.Ledger == nil {
		return ""
	}
	return f.Ledger.Bell()
}

var errDisk = errors.New("no space left on device")
