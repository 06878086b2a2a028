package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// allCaps is what a host can be asked for by default in these tests.
const allCaps = `{"elicitation":{"form":{},"url":{}},"sampling":{},"roots":{}}`

// metaOf is the _meta of a modern request, with more members if given.
func metaOf(caps string, more ...string) string {
	return `{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"modern","version":"9"},"io.modelcontextprotocol/clientCapabilities":` +
		caps + strings.Join(append([]string{""}, more...), ",") + `}`
}

// modernLine makes a request of a modern host. params is an object without _meta.
func modernLine(id, method, params, caps string, more ...string) string {
	inner := strings.TrimSuffix(strings.TrimPrefix(params, "{"), "}")
	if inner != "" {
		inner += ","
	}
	return `{"jsonrpc":"2.0","id":` + id + `,"method":"` + method + `","params":{` + inner + `"_meta":` + metaOf(caps, more...) + `}}`
}

// modern sends a modern request and returns the answer.
func (h *host) modern(method, params string) string {
	h.t.Helper()
	return h.ask(modernLine(h.nextID(), method, params, allCaps))
}

// books is a ledger that allows all, unless there is one beneath, and counts what
// comes of each ticket.
type books struct {
	proxy.Ledger // nil: none beneath

	mu      sync.Mutex
	opened  int
	settled map[string]int
	out     map[string]ledger.Outcome
}

func (b *books) Bell() string {
	if b.Ledger == nil {
		return ""
	}
	return b.Ledger.Bell()
}

func newBooks() *books { return &books{settled: map[string]int{}, out: map[string]ledger.Outcome{}} }

func (b *books) Reserve(ctx context.Context, a ledger.Attempt, d ledger.Decider) (ledger.Ticket, policy.Decision, error) {
	ticket, decision, err := ledger.Ticket{}, policy.Decision{Verdict: policy.Allow}, error(nil)
	if b.Ledger != nil {
		ticket, decision, err = b.Ledger.Reserve(ctx, a, d)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.Refused != nil && b.Ledger == nil {
		return ticket, policy.Decision{Verdict: policy.Deny}, nil
	}
	if err == nil && decision.Verdict == policy.Allow {
		b.opened++
		if b.Ledger == nil {
			ticket.CallID = fmt.Sprintf("call-%d", b.opened)
		}
		b.settled[ticket.CallID] = 0
	}
	return ticket, decision, err
}

func (b *books) Check(ctx context.Context, u ledger.Use, c policy.Call, d ledger.Decider) (ledger.Session, policy.Decision, error) {
	if b.Ledger != nil {
		return b.Ledger.Check(ctx, u, c, d)
	}
	return ledger.Session{}, policy.Decision{Verdict: policy.Allow}, nil
}

func (b *books) Settle(t ledger.Ticket, out ledger.Outcome) {
	b.mu.Lock()
	b.settled[t.CallID]++
	b.out[t.CallID] = out
	b.mu.Unlock()
	if b.Ledger != nil {
		b.Ledger.Settle(t, out)
	}
}

func (*books) Record(context.Context, ledger.Attempt, string) error { return nil }

// wrong returns the tickets that were not settled exactly once.
func (b *books) wrong() (out []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, n := range b.settled {
		if n != 1 {
			out = append(out, fmt.Sprintf("%s: %d times", id, n))
		}
	}
	return out
}

func (b *books) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.opened
}

func (b *books) results() (out []ledger.Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, o := range b.out {
		out = append(out, o)
	}
	return out
}

// over ends the session of the host as a signal does, and waits for it.
func (h *host) over() {
	h.t.Helper()
	h.stop()
	select {
	case <-h.done:
	case <-time.After(patience):
		h.t.Fatal("Serve does not return")
	}
}

func failureOf(t *testing.T, line string) (code int, data json.RawMessage) {
	t.Helper()
	r := parseResponse(t, line)
	if r.Error == nil {
		t.Errorf("no error: %s", clip(line))
		return 0, nil
	}
	return r.Error.Code, r.Error.Data
}

// What a request says about its sender is checked before anything else.
func TestEnvelopes(t *testing.T) {
	up := newFake("up", "tool")
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true})
	const version, caps, level = `"io.modelcontextprotocol/protocolVersion":`, `"io.modelcontextprotocol/clientCapabilities":`, `"io.modelcontextprotocol/logLevel":`
	ok := version + `"2026-07-28",` + caps + `{}`
	for _, tt := range []struct {
		name, meta string // "" means no _meta at all
		code       int
	}{
		{"none", "", -32602},
		{"null", "null", -32602},
		{"a number", "5", -32602},
		{"an array", `[` + `"io.modelcontextprotocol/protocolVersion"]`, -32602},
		{"empty", "{}", -32602},
		{"without a version", `{` + caps + `{}}`, -32602},
		{"version a number", `{` + version + `7,` + caps + `{}}`, -32602},
		{"version null", `{` + version + `null,` + caps + `{}}`, -32602},
		{"version of the past", `{` + version + `"2025-11-25",` + caps + `{}}`, -32022},
		{"version of the future", `{` + version + `"2099-01-01",` + caps + `{}}`, -32022},
		{"version empty", `{` + version + `"",` + caps + `{}}`, -32022},
		{"version padded", `{` + version + `" 2026-07-28",` + caps + `{}}`, -32022},
		{"no capabilities", `{` + version + `"2026-07-28"}`, -32602},
		{"capabilities null", `{` + version + `"2026-07-28",` + caps + `null}`, -32602},
		{"capabilities an array", `{` + version + `"2026-07-28",` + caps + `[]}`, -32602},
		{"capabilities a text", `{` + version + `"2026-07-28",` + caps + `"{}"}`, -32602},
		{"a level that is none", `{` + ok + `,` + level + `"loud"}`, -32602},
		{"a level in capitals", `{` + ok + `,` + level + `"DEBUG"}`, -32602},
		{"a level that is a number", `{` + ok + `,` + level + `1}`, -32602},
		{"good", `{` + ok + `}`, 0},
		{"good, with a level", `{ "x" : 1, ` + ok + `,` + level + `"debug","io.modelcontextprotocol/clientInfo":7}`, 0},
	} {
		for _, id := range []string{h.nextID(), `"` + tt.name + `"`} {
			meta := ""
			if tt.meta != "" {
				meta = `,"_meta":` + tt.meta
			}
			before := len(up.called())
			line := h.ask(`{"jsonrpc":"2.0","id":` + id + `,"method":"tools/call","params":{"name":"up__tool","arguments":{}` + meta + `}}`)
			if tt.code == 0 {
				if r := parseResponse(t, line); r.Error != nil || r.Text != "done" {
					t.Errorf("%s: %s", tt.name, line)
				}
				continue
			}
			code, data := failureOf(t, line)
			if code != tt.code || len(up.called()) != before {
				t.Errorf("%s: %s; the upstream was called %d times", tt.name, line, len(up.called())-before)
			}
			if tt.code == -32022 {
				var d struct {
					Supported []string
					Requested *string
				}
				if json.Unmarshal(data, &d) != nil || !slices.Contains(d.Supported, "2026-07-28") || d.Requested == nil || !strings.Contains(tt.meta, `"`+*d.Requested+`"`) {
					t.Errorf("%s: data %s", tt.name, data)
				}
			}
		}
	}
	// What the modern era has not.
	for _, method := range []string{"ping", "initialize", "logging/setLevel", "resources/subscribe", "resources/unsubscribe", "tasks/get", "tasks/list", "tasks/result", "made/up"} {
		line := h.modern(method, `{"uri":"x:y","level":"debug","taskId":"1","protocolVersion":"2025-11-25","capabilities":{}}`)
		if code, _ := failureOf(t, line); code != -32601 {
			t.Errorf("%s: %s", method, line)
		}
	}
	if code, _ := failureOf(t, h.request("server/discover", `{}`)); code != -32602 {
		t.Errorf("server/discover without _meta: %d", code)
	}
}

// PHP's json_encode writes a slash as \/ unless it is told not to.
func TestAnEnvelopeIsReadAsJSON(t *testing.T) {
	h := serve(t, rig{fakes: []proxy.Upstream{newFake("up", "tool")}, raw: true})
	line := strings.ReplaceAll(modernLine(`"e"`, "tools/call", `{"name":"up__tool"}`, `{}`), "/", `\/`)
	if r := parseResponse(t, h.ask(line)); r.Error != nil || r.Text != "done" {
		t.Errorf("slashes escaped: %s", r.line)
	}
	line = strings.ReplaceAll(modernLine(`"p"`, "ping", `{}`, `{}`), "io.modelcontextprotocol/protocolVersion", `io.modelcontextprotocol/protocol\u0056ersion`)
	if code, _ := failureOf(t, h.ask(line)); code != -32601 {
		t.Errorf("a ping of the modern era, in another spelling: %d", code)
	}
}

// The key of the modern era elsewhere than in _meta makes no modern request.
func TestAHandshakeThatMentionsTheModernEra(t *testing.T) {
	h := serve(t, rig{fakes: []proxy.Upstream{newFake("up", "tool")}, raw: true})
	r := parseResponse(t, h.ask(`{"jsonrpc":"2.0","id":"i","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"experimental":{"io.modelcontextprotocol/protocolVersion":{}}},"clientInfo":{"name":"x","version":"1"}}}`))
	if r.Error != nil || !strings.Contains(r.line, `"protocolVersion":"2025-11-25"`) {
		t.Errorf("%s", r.line)
	}
}

// members reads a result in order with what follows the upstream's own.
func members(t *testing.T, line string) []wire.Member {
	t.Helper()
	result, ok := wire.At([]byte(line), "result")
	if !ok {
		t.Fatalf("no result: %s", clip(line))
	}
	m, err := wire.Members(result.Value)
	if err != nil {
		t.Fatalf("%v: %s", err, clip(line))
	}
	return m
}

// kept fails the test unless all members of the upstream's result are in the answer,
// byte for byte and in their order, at its beginning.
func kept(t *testing.T, what, upstreamResult, line string) (added []wire.Member) {
	t.Helper()
	had, err := wire.Members([]byte(upstreamResult))
	if err != nil {
		t.Fatal(err)
	}
	got := members(t, line)
	for i, m := range had {
		if m.Name == "cacheScope" {
			continue
		}
		if i >= len(got) || got[i].Name != m.Name || string(got[i].Value) != string(m.Value) {
			t.Errorf("%s: of %s became %s", what, upstreamResult, line)
			return nil
		}
	}
	return got[len(had):]
}

// furnished is an upstream of the handshake era with all kinds of things, whose
// results are what result says.
func furnished(t *testing.T, name string, result func(c upstream.Call) string) *fake {
	t.Helper()
	f := newFake(name, "tool")
	item := func(raw, key string) []upstream.Item {
		i, err := upstream.ReadItem([]byte(raw), key)
		if err != nil {
			t.Fatal(err)
		}
		return []upstream.Item{i}
	}
	c := &f.catalogue
	c.Server = json.RawMessage(`{"protocolVersion":"2025-11-25","capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true,"listChanged":true},"prompts":{"listChanged":true},"completions":{},"logging":{},"tasks":{"list":{}}}}`)
	c.Resources = item(`{"uri":"file:///r","name":"r"}`, "uri")
	c.Templates = item(`{"uriTemplate":"t://{id}","name":"t"}`, "uriTemplate")
	c.Prompts = item(`{"name":"greet"}`, "name")
	f.do = func(_ context.Context, c upstream.Call) (wire.Message, error) { return reply(result(c)) }
	return f
}

// Every result says what it is, those that can be kept for how long and for whom;
// what the upstream said stays as it was.
func TestResultsForAModernHost(t *testing.T) {
	var result atomic.Pointer[string]
	set := func(s string) { result.Store(&s) }
	up := furnished(t, "up", func(upstream.Call) string { return *result.Load() })
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true})
	odd := `{  "content" : [ {"type":"text" , "text":"\u00e4\/"} ] ,"n":9007199254740993.10 , "" : { "b" : 1,"a":[1E5 , {}]}, "isError":false }`
	calls := map[string]string{
		"tools/call": `{"name":"up__tool","arguments":{}}`, "resources/read": `{"uri":"file:///r"}`, "prompts/get": `{"name":"up__greet"}`,
		"completion/complete": `{"ref":{"type":"ref/prompt","name":"up__greet"},"argument":{"name":"x","value":""}}`,
	}
	expect := func(what string, added []wire.Member, want ...string) {
		t.Helper()
		var got []string
		for _, m := range added {
			got = append(got, m.Name+"="+string(m.Value))
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: added %v, want %v", what, got, want)
		}
	}
	for method, params := range calls {
		cached := []string{}
		if method == "resources/read" {
			cached = []string{"ttlMs=0", `cacheScope="private"`}
		}
		set(odd)
		expect(method, kept(t, method, odd, h.modern(method, params)), append([]string{`resultType="complete"`}, cached...)...)
		// One that says so already stays as it is to the byte.
		said := strings.Replace(odd, "{", `{ "resultType" : "complete", "ttlMs":60000 , "cacheScope":"private",`, 1)
		set(said)
		id := h.nextID()
		if got, want := h.ask(modernLine(id, method, params, allCaps)), `{"jsonrpc":"2.0","id":`+id+`,"result":`+said+`}`; got != want {
			t.Errorf("%s: got %s, want %s", method, got, want)
		}
	}
	// What is shared by all must not be what policy shows to one.
	public := `{"contents":[ ],"cacheScope":"public","resultType":"complete","ttlMs":7}`
	set(public)
	line := h.modern("resources/read", calls["resources/read"])
	expect("public", kept(t, "public", public, line))
	if !strings.Contains(line, `"cacheScope":"private"`) || strings.Contains(line, "public") || !strings.Contains(line, `"ttlMs":7`) {
		t.Errorf("public: %s", line)
	}
	for method, member := range map[string]string{"tools/list": "tools", "resources/list": "resources", "resources/templates/list": "resourceTemplates", "prompts/list": "prompts", "server/discover": "supportedVersions"} {
		line := h.modern(method, `{}`)
		var r struct {
			Result map[string]json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		var ttl float64
		var meta map[string]struct{ Name string }
		if r.Result[member] == nil || string(r.Result["resultType"]) != `"complete"` || json.Unmarshal(r.Result["ttlMs"], &ttl) != nil || ttl < 0 ||
			string(r.Result["cacheScope"]) != `"private"` || json.Unmarshal(r.Result["_meta"], &meta) != nil || meta["io.modelcontextprotocol/serverInfo"].Name != "haldir" {
			t.Errorf("%s: %s", method, line)
		}
	}
	line = h.modern("server/discover", `{}`)
	var d struct {
		Result struct {
			SupportedVersions []string
			Capabilities      map[string]json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(line), &d); err != nil || !slices.Contains(d.Result.SupportedVersions, "2026-07-28") || d.Result.Capabilities["resources"] == nil || d.Result.Capabilities["tasks"] != nil {
		t.Errorf("server/discover: %s", line)
	}
	// haldir's own tools and refusals are results too.
	for _, call := range []string{`{"name":"haldir_get_spend","arguments":{}}`, `{"name":"no_such","arguments":{}}`} {
		if line := h.modern("tools/call", call); !strings.Contains(line, `"resultType":"complete"`) {
			t.Errorf("%s: %s", call, line)
		}
	}
}

// How long a result holds is never less than nothing (caching: servers must give a
// ttlMs of at least 0).
func TestATimeBelowZero(t *testing.T) {
	up := furnished(t, "up", func(upstream.Call) string {
		return `{"contents":[],"resultType":"complete","ttlMs":-1,"cacheScope":"private"}`
	})
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true})
	line := h.modern("resources/read", `{"uri":"file:///r"}`)
	var r struct {
		Result struct {
			TTL *float64 `json:"ttlMs"`
		}
	}
	if json.Unmarshal([]byte(line), &r) != nil || r.Result.TTL == nil || *r.Result.TTL < 0 {
		t.Errorf("%s", line)
	}
}

// The error of an older era about a resource is the one of this era; nothing else
// of it changes.
func TestNoSuchResource(t *testing.T) {
	up := furnished(t, "up", func(upstream.Call) string { return "{}" })
	const failure = `{ "error" : {"message":"no\u0020such" , "code" : -32002 , "data":{"uri":"file:///r","n":9007199254740993} },"jsonrpc":"2.0", "id" : 77 }`
	up.do = func(context.Context, upstream.Call) (wire.Message, error) { return wire.ParseLenient([]byte(failure)) }
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true})
	id := h.nextID()
	want := strings.Replace(strings.Replace(failure, "77", id, 1), "-32002", "-32602", 1)
	if got := h.ask(modernLine(id, "resources/read", `{"uri":"file:///r"}`, `{}`)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if line := h.modern("resources/read", `{"uri":"nobody://has"}`); !strings.Contains(line, `-32602`) {
		t.Errorf("a resource of nobody: %s", line)
	}
}

// The upstreams know all that the host has declared, also when it says several
// things at once at the beginning.
func TestUpstreamsLearnAllThatAHostDeclares(t *testing.T) {
	const rounds, n = 8, 40
	for range rounds {
		var mu sync.Mutex
		var hosts []upstream.Host
		h := serve(t, rig{fakes: []proxy.Upstream{newFake("up", "tool")}, raw: true, ledger: newBooks(), adjust: func(o *proxy.Options) {
			o.Initialize = func(h upstream.Host) {
				mu.Lock()
				defer mu.Unlock()
				hosts = append(hosts, h)
			}
		}})
		var lines []string
		for i := range n {
			lines = append(lines, modernLine(fmt.Sprint(i), "tools/call", `{"name":"up__tool"}`, fmt.Sprintf(`{"experimental":{"x%d":{}}}`, i)))
		}
		h.send(lines...)
		for i := range n {
			h.answer(fmt.Sprint(i))
		}
		mu.Lock()
		if len(hosts) == 0 {
			t.Fatal("nobody has started the upstreams")
		}
		last := hosts[len(hosts)-1]
		mu.Unlock()
		var c struct{ Experimental map[string]any }
		if err := json.Unmarshal(last.Capabilities, &c); err != nil || !last.Modern {
			t.Fatalf("%v: %+v", err, last)
		}
		if len(c.Experimental) != n {
			t.Errorf("the last that upstreams were told of are %d of %d capabilities", len(c.Experimental), n)
		}
	}
}

// What is declared once more, or less, does not start the upstreams anew.
func TestTheSameHostStartsNothingAnew(t *testing.T) {
	var starts atomic.Int64
	h := serve(t, rig{fakes: []proxy.Upstream{newFake("up", "tool")}, raw: true, adjust: func(o *proxy.Options) {
		o.Initialize = func(upstream.Host) { starts.Add(1) }
	}})
	for range 3 {
		for _, caps := range []string{allCaps, `{}`, `{"roots":{}}`, `{"sampling":{},"roots":{}}`} {
			h.ask(modernLine(h.nextID(), "tools/list", `{}`, caps))
		}
	}
	if n := starts.Load(); n != 1 {
		t.Errorf("%d starts", n)
	}
	h.ask(modernLine(h.nextID(), "tools/list", `{}`, `{"experimental":{"new":{}}}`))
	if n := starts.Load(); n != 2 {
		t.Errorf("%d starts after something new", n)
	}
}

// The log of a server goes to a host that wants to hear it, while a request is under
// way there, and nothing of other kinds does.
func TestAModernHostHearsWhatItHasAskedFor(t *testing.T) {
	up, other := newFake("up", "tool"), newFake("other", "tool")
	var h *host
	up.do = func(context.Context, upstream.Call) (wire.Message, error) {
		for _, n := range []struct{ from, raw string }{
			{"up", `{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"debug","data":1}}`},
			{"up", `{ "params":{"data":9007199254740993,"level":"warning"},"jsonrpc":"2.0","method":"notifications/message" }`},
			{"other", `{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"emergency","data":3}}`},
			{"up", `{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`},
			{"up", `{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"file:///r"}}`},
			{"up", `{"jsonrpc":"2.0","method":"notifications/made/up"}`},
			{"up", `{"jsonrpc":"2.0","method":"tools/list"}`},
		} {
			m, _ := wire.ParseLenient([]byte(n.raw))
			h.srv.Notify(n.from, m)
		}
		return reply(mcptest.Text("done"))
	}
	h = serve(t, rig{fakes: []proxy.Upstream{up, other}, raw: true})
	h.ask(modernLine(`"silent"`, "tools/call", `{"name":"up__tool"}`, `{}`))
	h.ask(modernLine(`"loud"`, "tools/call", `{"name":"up__tool"}`, `{}`, `"io.modelcontextprotocol/logLevel":"info"`))
	h.ask(modernLine(`"end"`, "tools/list", `{}`, `{}`))
	h.mu.Lock()
	defer h.mu.Unlock()
	want := []string{`{ "params":{"data":9007199254740993,"level":"warning"},"jsonrpc":"2.0","method":"notifications/message" }`}
	if !slices.Equal(h.lines, want) {
		t.Errorf("the host was sent %q", h.lines)
	}
}

// --- subscriptions/listen

func listenLine(id, filter string) string {
	return modernLine(id, "subscriptions/listen", `{"notifications":`+filter+`}`, `{}`)
}

// streamed is a message on the stream of a subscription.
type streamed struct {
	Method string
	ID     json.RawMessage
	Params struct {
		Meta          map[string]json.RawMessage `json:"_meta"`
		Notifications json.RawMessage
		URI           string
	}
	Result struct {
		Type string                     `json:"resultType"`
		Meta map[string]json.RawMessage `json:"_meta"`
	}
}

const subscriptionID = "io.modelcontextprotocol/subscriptionId"

func readStreamed(t *testing.T, line string) (s streamed) {
	t.Helper()
	if err := json.Unmarshal([]byte(line), &s); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	return s
}

// marked accepts a notification on the stream of the request id.
func marked(method, id string) func(string) bool {
	return func(line string) bool {
		var s streamed
		return json.Unmarshal([]byte(line), &s) == nil && s.Method == method && string(s.Params.Meta[subscriptionID]) == id
	}
}

// listen opens a stream and returns what was honoured.
func (h *host) listen(id, filter string) string {
	h.t.Helper()
	h.send(listenLine(id, filter))
	ack := h.need("the acknowledgement", marked("notifications/subscriptions/acknowledged", id))
	return string(readStreamed(h.t, ack).Params.Notifications)
}

// sameJSON compares without order.
func sameJSON(a, b string) bool {
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && fmt.Sprint(x) == fmt.Sprint(y)
}

const (
	toolsChanged     = "notifications/tools/list_changed"
	promptsChanged   = "notifications/prompts/list_changed"
	resourcesUpdated = "notifications/resources/updated"
)

// Each stream is acknowledged, by what can be told of, and carries what was wanted
// under its mark; a cancelled one ends without a word.
func TestListeners(t *testing.T) {
	up := newFake("up", "tool")
	up.catalogue.Server = json.RawMessage(`{"capabilities":{"tools":{"listChanged":true},"prompts":{"listChanged":true}}}`)
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true})
	for id, filter := range map[string]string{`"all"`: `{"toolsListChanged":true,"promptsListChanged":true,"resourcesListChanged":true,"resourceSubscriptions":["file:///x"]}`} {
		if got := h.listen(id, filter); !sameJSON(got, `{"toolsListChanged":true,"promptsListChanged":true}`) {
			t.Errorf("honoured: %s", got)
		}
	}
	if got := h.listen(`7`, `{"toolsListChanged":true,"promptsListChanged":false}`); !sameJSON(got, `{"toolsListChanged":true}`) {
		t.Errorf("honoured: %s", got)
	}
	if got := h.listen(`"7"`, `{"promptsListChanged":true}`); !sameJSON(got, `{"promptsListChanged":true}`) {
		t.Errorf("honoured: %s", got)
	}
	if got := h.listen(`"none"`, `{}`); !sameJSON(got, `{}`) {
		t.Errorf("honoured: %s", got)
	}
	up.set("tool", "new")
	for _, id := range []string{`"all"`, `7`} {
		h.need("the change for "+id, marked(toolsChanged, id))
	}
	h.send(cancelLine(`7`))
	h.modern("tools/list", `{}`)
	// What follows comes to the other one only. It comes twice, so that all of the
	// first is there.
	for i := range 2 {
		up.set("tool", fmt.Sprint("newer", i))
		h.need("the change", marked(toolsChanged, `"all"`))
	}
	// The id is free, for a request as for another stream.
	h.modern("tools/list", `{}`)
	if got := h.listen(`7`, `{"toolsListChanged":true}`); !sameJSON(got, `{"toolsListChanged":true}`) {
		t.Errorf("honoured: %s", got)
	}
	up.set("tool", "newest")
	h.need("the change", marked(toolsChanged, `7`))
	h.need("the change", marked(toolsChanged, `"all"`))
	if line := h.ask(listenLine(`7`, `{}`)); !strings.Contains(line, "-32600") {
		t.Errorf("another one under the same id: %s", line)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, line := range h.lines {
		t.Errorf("the host was sent too: %s", line)
	}
}

func TestListenersThatAskForNonsense(t *testing.T) {
	h := serve(t, rig{fakes: []proxy.Upstream{newFake("up", "tool")}, raw: true})
	many := `"file:///x"` + strings.Repeat(`,"file:///x"`, 1000)
	for _, filter := range []string{`null`, `[]`, `"x"`, `{"toolsListChanged":"yes"}`, `{"toolsListChanged":1}`, `{"resourceSubscriptions":"file:///x"}`, `{"resourceSubscriptions":[1]}`, `{"resourceSubscriptions":[` + many + `]}`} {
		id := h.nextID()
		if code, _ := failureOf(t, h.ask(listenLine(id, filter))); code != -32602 {
			t.Errorf("%.80s: %d", filter, code)
		}
	}
	if code, _ := failureOf(t, h.modern("subscriptions/listen", `{}`)); code != -32602 {
		t.Errorf("without notifications: %d", code)
	}
}

// The update of a resource goes to who has asked for that resource. To listen to one
// is judged and on record; the upstream is told when nobody listens any more.
func TestResourceListeners(t *testing.T) {
	up := furnished(t, "up", func(upstream.Call) string { return "{}" })
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true, rules: policy.Ruleset{Policies: []policy.Rule{{ID: "no", Type: policy.TypeDeny, Tools: []string{"resource:up/file:///secret"}}}}})
	if got := h.listen(`"one"`, `{"resourceSubscriptions":["file:///a","file:///secret","file:///a"]}`); !sameJSON(got, `{"resourceSubscriptions":["file:///a"]}`) {
		t.Errorf("honoured: %s", got)
	}
	if got := h.listen(`"two"`, `{"resourceSubscriptions":["file:///b","file:///a"]}`); !sameJSON(got, `{"resourceSubscriptions":["file:///b","file:///a"]}`) {
		t.Errorf("honoured: %s", got)
	}
	if got := h.listen(`"three"`, `{"toolsListChanged":true}`); !sameJSON(got, `{"toolsListChanged":true}`) {
		t.Errorf("honoured: %s", got)
	}
	status := map[string]audit.Status{}
	for _, e := range h.entries() {
		status[e.Tool] = e.Status
	}
	if status["resource:file:///a"] != audit.StatusAllowed || status["resource:file:///secret"] != audit.StatusDenied {
		t.Errorf("on record: %v", status)
	}
	update := func(params string) {
		m, err := wire.ParseLenient([]byte(`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":` + params + `}`))
		if err != nil {
			t.Fatal(err)
		}
		h.srv.Notify("up", m)
	}
	update(`{"title":"\u0041","uri":"file:///a","n":9007199254740993}`)
	for _, id := range []string{`"one"`, `"two"`} {
		line := h.need("the update", marked(resourcesUpdated, id))
		for _, part := range []string{`"title":"\u0041"`, `"uri":"file:///a"`, `"n":9007199254740993`} {
			if !strings.Contains(line, part) {
				t.Errorf("the update lost %s: %s", part, line)
			}
		}
	}
	update(`{"uri":"file:///secret"}`)
	update(`{"uri":"file:///b"}`)
	h.need("the update", marked(resourcesUpdated, `"two"`))
	calls := func(method string) (n int) {
		up.mu.Lock()
		defer up.mu.Unlock()
		for _, c := range up.calls {
			if c.Method == method {
				n++
			}
		}
		return n
	}
	h.send(cancelLine(`"two"`))
	eventually(t, "what only that one had is unsubscribed from", func() bool { return calls("resources/unsubscribe") == 1 })
	update(`{"uri":"file:///a"}`)
	h.need("the update", marked(resourcesUpdated, `"one"`))
	h.send(cancelLine(`"one"`))
	eventually(t, "nobody listens to either", func() bool { return calls("resources/unsubscribe") == 2 })
	h.modern("tools/list", `{}`)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, line := range h.lines {
		t.Errorf("the host was sent too: %s", line)
	}
}

// A stream goes on until the host ends: then it is answered, and keeps nobody
// waiting.
func TestTheEndOfInputEndsListeners(t *testing.T) {
	up := furnished(t, "up", func(upstream.Call) string { return "{}" })
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true})
	h.listen(`"l\u0069st"`, `{"toolsListChanged":true}`)
	h.listen(`12`, `{"resourceSubscriptions":["file:///a"]}`)
	began := time.Now()
	_ = h.in.Close()
	for _, id := range []string{`"l\u0069st"`, `12`} {
		s := readStreamed(t, h.answer(id))
		if s.Result.Type != "complete" || !sameJSON(string(s.Result.Meta[subscriptionID]), id) {
			t.Errorf("%s: %+v", id, s)
		}
	}
	<-h.done
	if took := time.Since(began); took > 4*time.Second { // requests have five seconds to end
		t.Errorf("Serve took %v", took)
	}
}

// An upstream that does not answer to the end of a subscription holds nobody up.
func TestTheEndOfInputDoesNotWaitForSubscriptions(t *testing.T) {
	up := furnished(t, "up", func(upstream.Call) string { return "{}" })
	var cut atomic.Bool // the time for it was over
	up.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) {
		if c.Method == "resources/unsubscribe" {
			<-ctx.Done()
			cut.Store(true)
			return wire.Message{}, context.Cause(ctx)
		}
		return reply("{}")
	}
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true})
	h.listen(`1`, `{"resourceSubscriptions":["file:///a"]}`)
	began := time.Now()
	_ = h.in.Close()
	h.answer(`1`)
	<-h.done
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("the end took %v; the upstream was waited for: %v", took, cut.Load())
	}
}

// However changes, streams and their ends interleave: no stream is told anything
// before its acknowledgement or after its end.
func TestListenersUnderChange(t *testing.T) {
	up := furnished(t, "up", func(upstream.Call) string { return "{}" })
	books := newBooks()
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true, ledger: books})
	const n = 120
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			c := up.Catalogue()
			up.mu.Lock()
			c.Revision++
			c.Prompts = nil
			if i%2 == 0 {
				p, _ := upstream.ReadItem([]byte(`{"name":"greet"}`), "name")
				c.Prompts = []upstream.Item{p}
			}
			up.catalogue = c
			up.mu.Unlock()
			h.srv.Changed()
			time.Sleep(time.Millisecond)
		}
	})
	update, _ := wire.ParseLenient([]byte(`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"file:///a"}}`))
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			h.srv.Notify("up", update)
			time.Sleep(100 * time.Microsecond)
		}
	})
	var opener sync.WaitGroup
	for i := range n {
		opener.Go(func() {
			id := fmt.Sprint(i)
			h.send(listenLine(id, `{"promptsListChanged":true,"resourceSubscriptions":["file:///a"]}`))
			if i%3 == 0 {
				h.send(cancelLine(id))
			}
		})
	}
	opener.Wait()
	acked, told, ended := map[string]bool{}, map[string]int{}, map[string]bool{}
	late := 0
	take := func(line string) {
		s := readStreamed(t, line)
		if s.Method == "" {
			ended[string(s.ID)] = true
			return
		}
		id := string(s.Params.Meta[subscriptionID])
		switch {
		case s.Method == "notifications/subscriptions/acknowledged":
			if acked[id] {
				t.Errorf("acknowledged twice: %s", line)
			}
			acked[id] = true
		case !acked[id]:
			t.Errorf("before its acknowledgement: %s", line)
		case ended[id]:
			if late++; late == 1 {
				t.Errorf("after its end: %s", line)
			}
		default:
			told[id]++
		}
	}
	stays := func(m map[string]bool) (k int) {
		for i := range n {
			if i%3 != 0 && m[fmt.Sprint(i)] {
				k++
			}
		}
		return k
	}
	for stays(acked) < n-n/3 || len(told) < n/2 {
		take(h.need("a line", anyLine))
	}
	_ = h.in.Close() // while all goes on
	for stays(ended) < n-n/3 {
		take(h.need("a line", anyLine))
	}
	<-h.done
	close(stop)
	wg.Wait()
	for {
		line := h.wait(0, anyLine)
		if line == "" {
			break
		}
		take(line)
	}
	if wrong := books.wrong(); wrong != nil {
		t.Errorf("not settled once: %v", wrong)
	}
}

// What a server wants to know while nobody calls it waits for a call that can carry
// the question to the host: to listen to a resource is none.
func TestListeningTakesNoQuestionAway(t *testing.T) {
	up := furnished(t, "up", func(upstream.Call) string { return "{}" })
	inside, release := make(chan struct{}), make(chan struct{})
	answers := make(chan []byte, 2)
	up.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) {
		if c.Method == "resources/subscribe" {
			close(inside)
			<-release
			return reply("{}")
		}
		select {
		case a := <-answers:
			return reply(mcptest.Text(string(a)))
		case <-ctx.Done():
			return wire.Message{}, context.Cause(ctx)
		}
	}
	books := newBooks()
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true, ledger: books})
	h.ask(modernLine(`"first"`, "tools/list", `{}`, allCaps))
	question, _ := wire.ParseLenient([]byte(`{"jsonrpc":"2.0","id":"q","method":"roots/list"}`))
	h.srv.Ask("up", question, func(b []byte) { answers <- b })
	h.send(modernLine(`"l"`, "subscriptions/listen", `{"notifications":{"resourceSubscriptions":["file:///a"]}}`, allCaps))
	<-inside
	h.wait(moment, marked("notifications/subscriptions/acknowledged", `"l"`)) // as an upstream takes its time
	close(release)
	h.send(modernLine(`"c"`, "tools/call", `{"name":"up__tool","arguments":{}}`, allCaps))
	if line := h.wait(patience, hasID(`"c"`)); !strings.Contains(line, "roots/list") {
		t.Errorf("the question did not come with the call: %q", line)
	}
	eventually(t, "the subscription is settled, while the call waits for the host", func() bool { return len(books.results()) == 1 })
	h.over()
	if wrong := books.wrong(); wrong != nil {
		t.Errorf("not settled once: %v", wrong)
	}
}

// FuzzEnvelope drives requests with any _meta through a server: whatever it is, the
// server answers the request once, by a result or an error, and goes on.
func FuzzEnvelope(f *testing.F) {
	for _, m := range []string{
		metaOf(`{}`), metaOf(allCaps, `"progressToken":1`), `{}`, `null`, `[]`, `{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}`,
		`{"io.modelcontextprotocol/protocolVersion":{},"io.modelcontextprotocol/clientCapabilities":{}}`, `{"io.modelcontextprotocol\/protocolVersion":"2026-07-28"}`,
		`{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"a":{"b":[{}]},"extensions":5}}`,
	} {
		for _, method := range []string{"tools/call", "server/discover", "tools/list", "ping", "resources/read"} {
			f.Add(method, m)
		}
	}
	f.Fuzz(func(t *testing.T, method, meta string) {
		if method == "subscriptions/listen" || strings.ContainsAny(meta, "\n\r") || !json.Valid([]byte(meta)) {
			return
		}
		line := `{"jsonrpc":"2.0","id":"f","method":` + string(wire.Quote(method)) + `,"params":{"name":"up__tool","uri":"file:///r","_meta":` + meta + `}}`
		if m, err := wire.ParseStrict([]byte(line)); err != nil || !m.IsRequest() {
			return
		}
		books := newBooks()
		h := serve(t, rig{fakes: []proxy.Upstream{newFake("up", "tool")}, raw: true, ledger: books})
		r := parseResponse(t, h.ask(line))
		if (r.Error == nil) == (r.Result == nil) {
			t.Errorf("%s: %s", line, r.line)
		}
		if r.Error != nil && r.Error.Code == wire.CodeInternal {
			t.Errorf("%s: %s", line, r.line)
		}
		h.ask(modernLine(`"after"`, "tools/list", `{}`, `{}`))
		h.over()
		if wrong := books.wrong(); wrong != nil {
			t.Errorf("not settled once: %v", wrong)
		}
	})
}
