package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// library is an upstream with resources and prompts.
type library struct {
	*fake
	denied []string

	mu   sync.Mutex
	kept map[string]string
	told []string
	got  []upstream.Call
}

func newLibrary(name string, resources []string, templates []string, prompts []string) *library {
	l := &library{fake: newFake(name, "tool"), kept: map[string]string{}}
	items := func(key string, names []string) (out []upstream.Item) {
		for _, n := range names {
			more := `,"name":"n"`
			if key == "name" {
				more = ""
			}
			i, err := upstream.ReadItem(fmt.Appendf(nil, `{"x":{"%s":"inner"},%q:%q%s}`, key, key, n, more), key)
			if err != nil {
				panic(err)
			}
			out = append(out, i)
		}
		return out
	}
	l.fake.mu.Lock()
	c := &l.fake.catalogue
	c.Server = json.RawMessage(`{"capabilities":{"tools":{},"resources":{"subscribe":true},"prompts":{},"logging":{},"completions":{}},"instructions":"use ` + name + `"}`)
	c.Resources, c.Templates, c.Prompts = items("uri", resources), items("uriTemplate", templates), items("name", prompts)
	l.fake.mu.Unlock()
	return l
}

func (l *library) Call(_ context.Context, c upstream.Call) (wire.Message, error) {
	l.mu.Lock()
	l.got = append(l.got, c)
	l.mu.Unlock()
	if strings.Contains(string(c.Params), "missing") {
		return wire.ParseLenient([]byte(`{"jsonrpc":"2.0","id":1,"error":{"code":-32002,"message":"not in ` + l.name + `"}}`))
	}
	return reply(`{"from":"` + l.name + `"}`)
}

func (l *library) Keep(key string, call *upstream.Call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if delete(l.kept, key); call != nil {
		l.kept[key] = string(call.Params)
	}
}

func (l *library) Notify(msg []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = append(l.told, string(msg))
}

func (l *library) Refuses(kind string) bool { return len(l.denied) > 0 && l.denied[0] == kind }

func (l *library) calls() (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.got {
		out = append(out, c.Method+" "+string(c.Params))
	}
	l.got = nil
	return out
}

func (h *host) request(method, params string) string {
	return h.ask(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":%q,"params":%s}`, h.nextID(), method, params))
}

// Resources keep their URIs and go to whoever has them; prompts are renamed as
// tools are, and nothing but the name.
func TestResourcesAndPrompts(t *testing.T) {
	a := newLibrary("a", []string{"file:///both", "file:///a"}, []string{"a://{id}"}, []string{"greet"})
	b := newLibrary("b", []string{"file:///both", "file:///b"}, nil, []string{"greet", "b.only"})
	h := serve(t, rig{fakes: []proxy.Upstream{a, b}})
	list := h.request("resources/list", `{}`)
	if strings.Count(list, "file:///both") != 1 || !strings.Contains(list, `{"x":{"uri":"inner"},"uri":"file:///b","name":"n"}`) {
		t.Errorf("resources: %s", list)
	}
	if _, notes := h.srv.Tools(t.Context()); !strings.Contains(fmt.Sprint(notes), "a serves the resource of this URI") {
		t.Errorf("nothing says that a URI is taken: %v", notes)
	}
	prompts := h.request("prompts/list", `{}`)
	for _, want := range []string{`{"x":{"name":"inner"},"name":"a__greet"}`, `"name":"b__greet"`, `"name":"b__b_only_`} {
		if !strings.Contains(prompts, want) {
			t.Errorf("prompts lack %s: %s", want, prompts)
		}
	}
	for _, tt := range []struct {
		method, params string
		a, b           string // what reaches them
		answer         string
	}{
		{"resources/read", `{"uri":"file:///both"}`, `{"uri":"file:///both"}`, "", `{"from":"a"}`},
		{"resources/read", `{"uri":"file:///b","z":1}`, "", `{"uri":"file:///b","z":1}`, `{"from":"b"}`},
		{"resources/read", `{"uri":"a://7"}`, `{"uri":"a://7"}`, "", `{"from":"a"}`},
		{"resources/read", `{"uri":"linked:missing"}`, `{"uri":"linked:missing"}`, `{"uri":"linked:missing"}`, "not in b"},
		{"prompts/get", `{"name":"b__greet","arguments":{"name":"b__greet"}}`, "", `{"name":"greet","arguments":{"name":"b__greet"}}`, `{"from":"b"}`},
		{"prompts/get", `{"name":"greet"}`, "", "", "Unknown prompt"},
		{"completion/complete", `{"ref":{"type":"ref/prompt","name":"a__greet"},"argument":{"name":"x","value":""}}`, `{"ref":{"type":"ref/prompt","name":"greet"},"argument":{"name":"x","value":""}}`, "", `{"from":"a"}`},
		{"completion/complete", `{"ref":{"type":"ref/resource","uri":"a://{id}"}}`, `{"ref":{"type":"ref/resource","uri":"a://{id}"}}`, "", `{"from":"a"}`},
		{"resources/subscribe", `{"uri":"file:///b"}`, "", `{"uri":"file:///b"}`, `{"from":"b"}`},
		{"logging/setLevel", `{"level":"debug"}`, `{"level":"debug"}`, `{"level":"debug"}`, `{"from":"a"}`},
	} {
		got := h.request(tt.method, tt.params)
		reached := func(params string) string {
			if params == "" {
				return "[]"
			}
			return "[" + tt.method + " " + params + "]"
		}
		if gotA, gotB := fmt.Sprint(a.calls()), fmt.Sprint(b.calls()); !strings.Contains(got, tt.answer) || gotA != reached(tt.a) || gotB != reached(tt.b) {
			t.Errorf("%s %s: %s; a got %s, b got %s", tt.method, tt.params, got, gotA, gotB)
		}
	}
	if b.kept["resources/subscribe file:///b"] == "" || b.kept["logging/setLevel"] == "" || a.kept["logging/setLevel"] == "" {
		t.Errorf("kept for a new connection: %v, %v", a.kept, b.kept)
	}
	h.request("resources/unsubscribe", `{"uri":"file:///b"}`)
	if b.kept["resources/subscribe file:///b"] != "" {
		t.Error("a subscription that was ended is kept")
	}
}

// A read is judged and recorded as a call is; what is refused reaches nobody.
func TestReadsAreGoverned(t *testing.T) {
	a := newLibrary("a", []string{"file:///etc/passwd", "file:///srv/x"}, nil, []string{"greet", "leak"})
	h := serve(t, rig{fakes: []proxy.Upstream{a}, adjust: show, rules: policy.Ruleset{Policies: []policy.Rule{
		{ID: "no-etc", Type: policy.TypeDeny, Tools: []string{"resource:a/file:///etc/*", "prompt:leak"}},
	}}})
	for _, tt := range []struct{ method, params, tool, refused string }{
		{"resources/read", `{"uri":"file:///etc/passwd"}`, "resource:file:///etc/passwd", "Resource 'file:///etc/passwd' is on the deny list"},
		{"resources/read", `{"uri":"file:///srv/x"}`, "resource:file:///srv/x", ""},
		{"prompts/get", `{"name":"a__leak","arguments":{"x":"y"}}`, "prompt:leak", "Prompt 'leak' is on the deny list"},
		{"prompts/get", `{"name":"a__greet"}`, "prompt:greet", ""},
	} {
		got := h.request(tt.method, tt.params)
		e := h.last()
		if e.Upstream != "a" || e.Tool != tt.tool || (e.Status == audit.StatusDenied) != (tt.refused != "") {
			t.Errorf("%s %s is on record as %+v", tt.method, tt.params, e)
		}
		if tt.refused == "" {
			if !strings.Contains(got, `"result":{"from":"a"}`) {
				t.Errorf("%s: %s", tt.params, got)
			}
			continue
		}
		if !strings.Contains(got, fmt.Sprintf(`"error":{"code":%d`, proxy.CodeRefused)) || !strings.Contains(got, tt.refused) || !strings.Contains(got, `"rule":"no-etc"`) {
			t.Errorf("%s: %s", tt.params, got)
		}
	}
	if calls := a.calls(); len(calls) != 2 {
		t.Errorf("what was refused has reached the server: %v", calls)
	}
}

// What servers ask of the host goes to it under ids of haldir's own, its answer to
// whoever asked, and nothing else changes.
func TestRequestsOfServers(t *testing.T) {
	a, b := newLibrary("a", nil, nil, nil), newLibrary("b", nil, nil, nil)
	b.denied = []string{"sampling"}
	h := serve(t, rig{fakes: []proxy.Upstream{a, b}})
	answers := make(chan string, 10)
	ask := func(from, raw string) {
		m, err := wire.ParseLenient([]byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		h.srv.Ask(from, m, func(r []byte) { answers <- from + " " + string(r) })
	}
	asked := func(method string) (id, line string) {
		line = h.need(method, func(l string) bool { return strings.Contains(l, method) })
		var m struct{ ID json.RawMessage }
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		return string(m.ID), line
	}
	expect := func(want string) {
		t.Helper()
		if got := <-answers; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	// The same id and the same token from two servers at once.
	ask("a", `{"method":"elicitation/create","id":1,"params":{"z":1,"_meta":{"progressToken":5}},"jsonrpc":"2.0"}`)
	idA, lineA := asked("elicitation/create")
	if lineA != strings.Replace(`{"method":"elicitation/create","id":ID,"params":{"z":1,"_meta":{"progressToken":5}},"jsonrpc":"2.0"}`, "ID", idA, 1) {
		t.Errorf("the request changed: %s", lineA)
	}
	ask("b", `{"jsonrpc":"2.0","id":1,"method":"roots/list","params":{"_meta":{"progressToken":5}}}`)
	idB, lineB := asked("roots/list")
	if idA == idB || strings.Contains(lineB, `"progressToken":5`) {
		t.Errorf("%s and %s cannot be told apart", lineA, lineB)
	}
	var token struct {
		Params struct {
			Meta struct {
				Token json.RawMessage `json:"progressToken"`
			} `json:"_meta"`
		} `json:"params"`
	}
	_ = json.Unmarshal([]byte(lineB), &token)
	h.send(fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s,"progress":1}}`, token.Params.Meta.Token))
	eventually(t, "it is told", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.told) == 1 })
	if b.told[0] != `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":5,"progress":1}}` || len(a.told) != 0 {
		t.Errorf("progress: a %v, b %v", a.told, b.told)
	}
	h.send(fmt.Sprintf(`{"id":%s,"jsonrpc":"2.0","result":{"roots":[]}}`, idB))
	expect(`b {"id":1,"jsonrpc":"2.0","result":{"roots":[]}}`)
	h.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"error":{"code":-1,"message":"no","data":9007199254740993}}`, idA))
	expect(`a {"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no","data":9007199254740993}}`)
	// An answer nobody waits for is nobody's.
	h.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":{}}`, idA))
	// What the config forbids does not reach the host, and is on record.
	ask("b", `{"jsonrpc":"2.0","id":"s","method":"sampling/createMessage","params":{}}`)
	if got := <-answers; !strings.Contains(got, fmt.Sprint(proxy.CodeRefused)) || !strings.Contains(got, `"id":"s"`) {
		t.Errorf("refused: %s", got)
	}
	if e := h.last(); e.Status != audit.StatusDenied || e.Upstream != "b" || e.Tool != "request:sampling/createMessage" {
		t.Errorf("on record as %+v", e)
	}
	// A server that takes back what it asked, and one that is gone.
	ask("a", `{"jsonrpc":"2.0","id":2,"method":"sampling/createMessage","params":{}}`)
	id, _ := asked("sampling/createMessage")
	cancel, _ := wire.ParseLenient([]byte(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2,"reason":"never mind"}}`))
	h.srv.Notify("b", cancel) // not its request
	h.srv.Notify("a", cancel)
	if line := h.need("the cancellation", func(l string) bool { return strings.Contains(l, "notifications/cancelled") }); line != fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%s,"reason":"never mind"}}`, id) {
		t.Errorf("cancelled: %s", line)
	}
	ask("a", `{"jsonrpc":"2.0","id":3,"method":"roots/list"}`)
	id, _ = asked("roots/list")
	h.srv.Gone("b")
	h.srv.Gone("a")
	if line := h.need("the cancellation", func(l string) bool { return strings.Contains(l, "notifications/cancelled") }); !strings.Contains(line, id) {
		t.Errorf("gone: %s", line)
	}
	h.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":{}}`, id))
	h.request("ping", "{}")
	expect("a ") // both that were taken back gave up their places
	expect("a ")
	select {
	case got := <-answers:
		t.Errorf("a server that is gone was answered: %s", got)
	default:
	}
}

// What a server tells the host reaches it as it is; list_changed of the host's
// roots reaches all servers.
func TestNotificationsBothWays(t *testing.T) {
	a := newLibrary("a", nil, nil, nil)
	h := serve(t, rig{fakes: []proxy.Upstream{a}})
	const message = `{"method":"notifications/message","params":{"level":"info","data":{"z":1,"a":9007199254740993}},"jsonrpc":"2.0"}`
	m, _ := wire.ParseLenient([]byte(message))
	h.srv.Notify("a", m)
	h.need("the message", func(l string) bool { return l == message })
	h.send(`{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}`)
	eventually(t, "it is told", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.told) == 1 && strings.Contains(a.told[0], "roots/list_changed")
	})
}

// A request without its id is a notification, which no server must get to see as
// what it looks like: it would pass every policy.
func TestACallWithoutAnIDReachesNobody(t *testing.T) {
	a := newLibrary("a", []string{"file:///x"}, nil, []string{"greet"})
	h := serve(t, rig{fakes: []proxy.Upstream{a}})
	for _, m := range []string{
		`{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a__tool","arguments":{}}}`,
		`{"jsonrpc":"2.0","method":"resources/read","params":{"uri":"file:///x"}}`,
		`{"jsonrpc":"2.0","method":"prompts/get","params":{"name":"a__greet"}}`,
		`{"jsonrpc":"2.0","method":"notifications/made/up","params":{}}`,
		`{"jsonrpc":"2.0","method":"tools/list"}`,
	} {
		h.send(m)
	}
	h.request("ping", "{}")
	eventually(t, "the attempts are on record", func() bool { return len(h.entries()) == 3 })
	for _, e := range h.entries() {
		if e.Status != audit.StatusDenied || e.Policy != "malformed" {
			t.Errorf("on record as %+v", e)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.told) != 0 || len(a.got) != 0 {
		t.Errorf("the server was told %v and asked %v", a.told, a.got)
	}
}

// However a URI is written, it is judged as what it names.
func TestNoSpellingOfAURIBypassesADeny(t *testing.T) {
	a := newLibrary("a", []string{"file:///srv/x"}, []string{"file:///{+path}"}, nil)
	h := serve(t, rig{fakes: []proxy.Upstream{a}, rules: policy.Ruleset{Policies: []policy.Rule{
		{ID: "no-etc", Type: policy.TypeDeny, Tools: []string{"resource:a/file:///etc/*"}},
	}}})
	for _, uri := range []string{
		"file:///etc/passwd", "file:///%65tc/passwd", "FILE:///etc/passwd", "file:///tmp/../etc/passwd", "file://localhost/etc/passwd", "file:/etc/passwd",
		"file:////etc/passwd", `file:///tmp\\..\\etc/passwd`, " file:///etc/passwd", "file:///etc/pass\\twd", "file:///etc/" + strings.Repeat("x", 9000),
	} {
		for _, method := range []string{"resources/read", "resources/subscribe"} {
			got := h.request(method, `{"uri":"`+uri+`"}`)
			if strings.Contains(got, `"result"`) {
				t.Errorf("%s %.60s: %s", method, uri, got)
			}
			if e := h.last(); e.Status != audit.StatusDenied || len(e.Tool) > 2000 {
				t.Errorf("%s %.60s: on record as %s %.100s", method, uri, e.Status, e.Tool)
			}
		}
	}
	if calls := a.calls(); len(calls) != 0 {
		t.Errorf("the server got %v", calls)
	}
	// What passes goes out as it was written.
	if got := h.request("resources/read", `{"uri":"FILE:///srv/%78"}`); !strings.Contains(got, `"result"`) {
		t.Errorf("an allowed resource: %s", got)
	}
	if calls := a.calls(); len(calls) != 1 || calls[0] != `resources/read {"uri":"FILE:///srv/%78"}` {
		t.Errorf("the server got %v", calls)
	}
}

// What a server sends before the host has said that it is ready waits, in its
// order; and many may ask at once.
func TestServersAreSilentUntilTheHostIsReady(t *testing.T) {
	a := newLibrary("a", nil, nil, nil)
	h := serve(t, rig{fakes: []proxy.Upstream{a}, raw: true})
	h.ask(`{"jsonrpc":"2.0","id":"hello","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`)
	const many = 100
	for i := range many {
		m, _ := wire.ParseLenient(fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%d,"method":"roots/list"}`, i))
		h.srv.Ask("a", m, func([]byte) {})
		n, _ := wire.ParseLenient(fmt.Appendf(nil, `{"jsonrpc":"2.0","method":"notifications/message","params":%d}`, i))
		h.srv.Notify("a", n)
	}
	h.quiet()
	h.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	for i := range many {
		if line := h.need("a message", func(string) bool { return true }); !strings.Contains(line, "roots/list") {
			t.Fatalf("message %d: %s", 2*i, line)
		}
		if line := h.need("a message", func(string) bool { return true }); !strings.HasSuffix(line, fmt.Sprintf(`"params":%d}`, i)) {
			t.Fatalf("message %d: %s", 2*i+1, line)
		}
	}
}

// What one server declares or says must not cost the others the handshake.
func TestOddGreetings(t *testing.T) {
	odd, good := newLibrary("odd", nil, nil, nil), newLibrary("good", nil, nil, nil)
	odd.fake.catalogue.Server = json.RawMessage(`{"capabilities":{"tools":5,"resources":null,"prompts":[],"x":"y"},"instructions":"` + strings.Repeat("好", 3000) + `"}`)
	fakes := []proxy.Upstream{odd, good}
	for i := range 60 {
		fakes = append(fakes, newLibrary(fmt.Sprintf("more-%d", i), nil, nil, nil))
	}
	h := serve(t, rig{fakes: fakes, raw: true})
	answer := h.ask(`{"jsonrpc":"2.0","id":"hello","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`)
	var m struct {
		Result struct {
			Capabilities map[string]map[string]any
			Instructions string
		}
	}
	if err := json.Unmarshal([]byte(answer), &m); err != nil {
		t.Fatalf("%v: %.300s", err, answer)
	}
	if c := m.Result.Capabilities; c["resources"]["subscribe"] != true || c["tools"]["listChanged"] != true || c["x"] != nil {
		t.Errorf("capabilities: %v", c)
	}
	if text := m.Result.Instructions; strings.ContainsRune(text, '\ufffd') || strings.Count(text, "好") != 3000 || !strings.Contains(text, "use more-59") {
		t.Errorf("instructions: %.300s", text)
	}
}

// A template that would take memory without bound to match matches nothing.
func TestATemplateWithoutEnd(t *testing.T) {
	a := newLibrary("a", nil, []string{strings.Repeat("{a}", 10_000), "{a:9999}", "x{"}, nil)
	h := serve(t, rig{fakes: []proxy.Upstream{a}})
	if got := h.request("resources/read", `{"uri":"x:y"}`); !strings.Contains(got, `{"from":"a"}`) { // as one that nobody lists
		t.Errorf("%s", got)
	}
}

// An upstream that may be asked for nothing does not stand before the others.
func TestABlockedUpstreamIsNotAskedForWhatNobodyLists(t *testing.T) {
	a, b := newLibrary("a", nil, nil, nil), newLibrary("b", nil, nil, nil)
	a.fake.catalogue.Blocked = "it is another one"
	h := serve(t, rig{fakes: []proxy.Upstream{a, b}})
	if got := h.request("resources/read", `{"uri":"x://y"}`); !strings.Contains(got, `{"from":"b"}`) || len(a.calls()) != 0 {
		t.Errorf("%s", got)
	}
}

// A subscription is that of who has taken it.
func TestASubscriptionIsKeptWhereItWasTaken(t *testing.T) {
	a, b := newLibrary("a", nil, nil, nil), newLibrary("b", nil, nil, nil)
	h := serve(t, rig{fakes: []proxy.Upstream{a, b}, rules: policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeDeny, Tools: []string{"resource:a/*"}}}}})
	if got := h.request("resources/subscribe", `{"uri":"x://y"}`); !strings.Contains(got, `{"from":"b"}`) {
		t.Fatalf("%s", got)
	}
	if len(a.kept) != 0 || len(b.kept) != 1 {
		t.Errorf("kept: %v, %v", a.kept, b.kept)
	}
	h.request("resources/unsubscribe", `{"uri":"x://y"}`)
	h.request("resources/unsubscribe", `{"uri":"x://never"}`)
	if got := a.calls(); len(got) != 0 || len(b.kept) != 0 || len(b.calls()) != 2 {
		t.Errorf("a got %v; b keeps %v", got, b.kept)
	}
}

// TestInstructionsAreReadByTheirName: pins compare what stands under the exact name, so
// that nothing else may pass for it.
func TestInstructionsAreReadByTheirName(t *testing.T) {
	for server, want := range map[string]string{
		`{"capabilities":{"tools":{}},"instructions":"benign","Instructions":"EVIL"}`: "benign",
		`{"capabilities":{"tools":{}},"instructions":"one","instructions":"EVIL"}`:    "",
		`{"capabilities":{"tools":{}},"INSTRUCTIONS":"EVIL"}`:                         "",
	} {
		f := newFake("up", "say")
		f.catalogue.Server = json.RawMessage(server)
		h := serve(t, rig{fakes: []proxy.Upstream{f}, raw: true})
		got := h.ask(`{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"host","version":"1"}}}`)
		if strings.Contains(got, "EVIL") || !strings.Contains(got, want) {
			t.Errorf("%s: %s", server, got)
		}
	}
}
