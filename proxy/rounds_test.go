package proxy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// quiz is an upstream of the handshake era that asks the host.
type quiz struct {
	*fake
	srv    atomic.Pointer[proxy.Server]
	last   atomic.Int64
	denied string
}

func newQuiz(name string, tools ...string) *quiz { return &quiz{fake: newFake(name, tools...)} }

func (q *quiz) Refuses(kind string) bool { return q.denied == kind }

// pose sends a question to the host and returns its id and where the reply comes.
func (q *quiz) pose(method, params string) (id string, reply chan string) {
	id = fmt.Sprint(q.last.Add(1))
	raw := `{"jsonrpc":"2.0","id":` + id + `,"method":"` + method + `"`
	if params != "" {
		raw += `,"params":` + params
	}
	m, err := wire.ParseLenient([]byte(raw + "}"))
	if err != nil {
		panic(err)
	}
	reply = make(chan string, 2)
	q.srv.Load().Ask(q.name, m, func(b []byte) { reply <- string(b) })
	return id, reply
}

// ask poses a question and waits for the reply, "" if it is void.
func (q *quiz) ask(ctx context.Context, method, params string) (string, error) {
	_, reply := q.pose(method, params)
	select {
	case a := <-reply:
		return a, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// quizzed starts a server for a modern host before q.
func quizzed(t *testing.T, q *quiz, r rig) *host {
	t.Helper()
	r.fakes, r.raw = append([]proxy.Upstream{q}, r.fakes...), true
	h := serve(t, r)
	q.srv.Store(h.srv)
	return h
}

// needed is a result that asks for input.
type needed struct {
	line     string
	Type     string `json:"resultType"`
	Requests map[string]struct {
		Method string
		Params json.RawMessage
	} `json:"inputRequests"`
	State string `json:"requestState"`
}

// needs reads one, which must be such.
func needs(t *testing.T, line string) (n needed) {
	t.Helper()
	result, _ := wire.At([]byte(line), "result")
	if json.Unmarshal(result.Value, &n) != nil || n.Type != "input_required" {
		t.Fatalf("this asks for no input: %s", clip(line))
	}
	n.line = line
	return n
}

// key returns the name of the only question.
func (n needed) key(t *testing.T) string {
	t.Helper()
	if len(n.Requests) != 1 {
		t.Fatalf("%d questions: %s", len(n.Requests), n.line)
	}
	for k := range n.Requests {
		return k
	}
	return ""
}

// again is a tools/call with a state and answers, each name to a JSON value.
func again(id, name, arguments, state string, answers map[string]string) string {
	params := `{"name":` + string(wire.Quote(name)) + `,"arguments":` + arguments
	if answers != nil {
		b := []byte{'{'}
		for k, v := range answers {
			if len(b) > 1 {
				b = append(b, ',')
			}
			b = append(append(append(b, wire.Quote(k)...), ':'), v...)
		}
		params += `,"inputResponses":` + string(b) + `}`
	}
	return modernLine(id, "tools/call", params+`,"requestState":`+string(wire.Quote(state))+`}`, allCaps)
}

func (h *host) again(name, arguments, state string, answers map[string]string) string {
	h.t.Helper()
	return h.ask(again(h.nextID(), name, arguments, state, answers))
}

func (h *host) first(name, arguments string) string {
	h.t.Helper()
	return h.modern("tools/call", `{"name":"`+name+`","arguments":`+arguments+`}`)
}

// once are the rules by which one call is all there is.
var once = policy.Ruleset{Policies: []policy.Rule{{ID: "once", Type: policy.TypeRateLimit, MaxCalls: 1, Window: time.Hour}}}

// A call of three rounds, the questions byte for byte, is one call to the ledger.
func TestACallOfThreeRoundsIsOneCall(t *testing.T) {
	const form, sample = `{ "message" : "who\u003f","requestedSchema":{"type":"object","properties":{"n":{"type":"integer","maximum":9007199254740993}}}}`, `{"messages":[ ],"maxTokens":1E2}`
	const yes, text = `{ "action":"accept" ,"content":{"n":9007199254740993}}`, `{"role":"assistant","content":{"type":"text","text":"\u00e4"},"model":"m"}`
	q := newQuiz("up", "tool")
	q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
		a, err := q.ask(ctx, "elicitation/create", form)
		if err != nil {
			return wire.Message{}, err
		}
		b, err := q.ask(ctx, "sampling/createMessage", sample)
		if err != nil {
			return wire.Message{}, err
		}
		return reply(mcptest.Text(a + b))
	}
	h := quizzed(t, q, rig{rules: once})
	n := needs(t, h.first("up__tool", `{"a":1}`))
	k := n.key(t)
	if got := n.Requests[k]; got.Method != "elicitation/create" || string(got.Params) != form || n.State == "" {
		t.Fatalf("the question became %s", n.line)
	}
	if list := h.entries(); len(list) != 1 || list[0].Status != audit.StatusRunning {
		t.Errorf("on record between the rounds: %+v", list)
	}
	state := n.State
	n = needs(t, h.again("up__tool", `{"a":1}`, n.State, map[string]string{k: yes}))
	k = n.key(t)
	if got := n.Requests[k]; got.Method != "sampling/createMessage" || string(got.Params) != sample || n.State == state {
		t.Fatalf("the question became %s", n.line)
	}
	r := parseResponse(t, h.again("up__tool", `{"a":1}`, n.State, map[string]string{k: text}))
	if want := `{"jsonrpc":"2.0","id":1,"result":` + yes + `}{"jsonrpc":"2.0","id":2,"result":` + text + `}`; r.Text != want || !strings.Contains(r.line, `"resultType":"complete"`) {
		t.Errorf("got %s, want the text %s", r.line, want)
	}
	if e := h.last(); e.Status != audit.StatusAllowed || len(h.entries()) != 1 || len(q.called()) != 1 || e.Client != "modern 9" {
		t.Errorf("on record: %+v", h.entries())
	}
	if why := parseResponse(t, h.first("up__tool", `{"a":2}`)).refusal(t); why.Rule != "once" {
		t.Errorf("the next call: %+v", why)
	}
}

// The same for a prompt and for a resource.
func TestRoundsOfPromptsAndResources(t *testing.T) {
	q := newQuiz("up", "tool")
	q.fake = furnished(t, "up", nil)
	q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
		a, err := q.ask(ctx, "roots/list", "")
		if err != nil {
			return wire.Message{}, err
		}
		return reply(`{"got":` + string(wire.Quote(a)) + `}`)
	}
	h := quizzed(t, q, rig{})
	for method, params := range map[string]string{"prompts/get": `{"name":"up__greet"`, "resources/read": `{"uri":"file:///r"`} {
		line := h.modern(method, params+"}")
		n := needs(t, line)
		k := n.key(t)
		if strings.Contains(line, "ttlMs") || strings.Contains(line, "params") {
			t.Errorf("%s: %s", method, line)
		}
		line = h.modern(method, params+`,"inputResponses":{"`+k+`":{"roots":[]}},"requestState":"`+n.State+`"}`)
		if !strings.Contains(line, `{\"roots\":[]}`) {
			t.Errorf("%s: %s", method, line)
		}
	}
	if n := len(h.entries()); n != 2 {
		t.Errorf("%d attempts on record", n)
	}
}

// Software that asks in its own way, over both transports.
func TestAServerThatAsksWhileItIsCalled(t *testing.T) {
	for name, cfg := range map[string]func() config.Upstream{
		"stdio":            func() config.Upstream { return mcptest.Script{}.Child(t, "up") },
		"http with events": func() config.Upstream { return mcptest.Script{SSE: true}.NewHTTP(t).Upstream("up") },
		"http":             func() config.Upstream { return mcptest.Script{}.NewHTTP(t).Upstream("up") },
	} {
		t.Run(name, func(t *testing.T) {
			h := serve(t, rig{servers: []config.Upstream{cfg()}, raw: true})
			const args = `{"method":"elicitation/create","n":3}`
			line := h.first("up__ask", args)
			for i := range 3 {
				n := needs(t, line)
				line = h.again("up__ask", args, n.State, map[string]string{n.key(t): fmt.Sprintf(`{"action":"accept","content":{"i":%d}}`, i)})
			}
			r := parseResponse(t, line)
			for i := range 3 {
				if !strings.Contains(r.Text, fmt.Sprintf(`"id":"ask-elicitation/create-%d","result":{"action":"accept","content":{"i":%d}}`, i, i)) {
					t.Errorf("got %s", line)
				}
			}
			if e := h.last(); e.Status != audit.StatusAllowed || len(h.entries()) != 1 {
				t.Errorf("on record: %+v", h.entries())
			}
		})
	}
}

// The state of one call serves no other, and that one once.
func TestAStateIsGoodOnce(t *testing.T) {
	q := newQuiz("up", "tool", "other")
	q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
		a, err := q.ask(ctx, "roots/list", "{}")
		if err != nil {
			return wire.Message{}, err
		}
		return reply(mcptest.Text(a))
	}
	books := newBooks()
	h := quizzed(t, q, rig{ledger: books})
	n := needs(t, h.first("up__tool", `{"a":1}`))
	good := map[string]string{n.key(t): `{"roots":[]}`}
	two := needs(t, h.first("up__tool", `{"a":3}`))
	refused := func(what, line string) {
		t.Helper()
		if code, _ := failureOf(t, line); code != -32602 {
			t.Errorf("%s: %s", what, line)
		}
		if c, b := len(q.called()), books.count(); c != 2 || b != 2 {
			t.Errorf("%s: %d calls have reached the upstream, %d are on record", what, c, b)
		}
	}
	refused("other arguments", h.again("up__tool", `{"a":2}`, n.State, good))
	refused("none", h.again("up__tool", `{}`, n.State, good))
	refused("another tool", h.again("up__other", `{"a":1}`, n.State, good))
	refused("another call's state", h.again("up__tool", `{"a":1}`, two.State, good))
	refused("a longer state", h.again("up__tool", `{"a":1}`, n.State+"x", good))
	refused("a shorter state", h.again("up__tool", `{"a":1}`, n.State[:len(n.State)-1], good))
	flipped := []byte(n.State)
	flipped[len(flipped)-1] ^= 1
	refused("a tampered state", h.again("up__tool", `{"a":1}`, string(flipped), good))
	refused("a state in capitals", h.again("up__tool", `{"a":1}`, "haldir-"+strings.ToLower(strings.TrimPrefix(n.State, "haldir-")), good))
	refused("made up", h.again("up__tool", `{"a":1}`, "haldir-AAAAAAAAAAAAAAAAAAAAAAAAAA", good))
	refused("another method", h.modern("prompts/get", `{"name":"up__tool","requestState":"`+n.State+`","inputResponses":{}}`))
	if r := parseResponse(t, h.again("up__tool", `{"a":1}`, n.State, good)); r.Error != nil || !strings.Contains(r.Text, "roots") {
		t.Fatalf("the good one, after all that: %s", r.line)
	}
	refused("used before", h.again("up__tool", `{"a":1}`, n.State, good))
	h.over()
	if wrong := books.wrong(); wrong != nil {
		t.Errorf("not settled once: %v", wrong)
	}
}

// The same retry sent twice at once goes on once.
func TestTheSameRetryTwiceAtOnce(t *testing.T) {
	q := newQuiz("up", "tool")
	q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
		a, err := q.ask(ctx, "roots/list", "{}")
		if err != nil {
			return wire.Message{}, err
		}
		return reply(mcptest.Text(a))
	}
	books := newBooks()
	h := quizzed(t, q, rig{ledger: books})
	for i := range 50 {
		args := fmt.Sprintf(`{"i":%d}`, i)
		n := needs(t, h.first("up__tool", args))
		a, b := h.nextID(), h.nextID()
		answers := map[string]string{n.key(t): `{"roots":[]}`}
		h.send(again(a, "up__tool", args, n.State, answers), again(b, "up__tool", args, n.State, answers))
		one, other := parseResponse(t, h.answer(a)), parseResponse(t, h.answer(b))
		if (one.Error == nil) == (other.Error == nil) {
			t.Fatalf("one of two must go on: %s, %s", one.line, other.line)
		}
	}
	h.over()
	if wrong := books.wrong(); wrong != nil || books.count() != 50 || len(q.called()) != 50 {
		t.Errorf("%d attempts, %d calls, not settled once: %v", books.count(), len(q.called()), wrong)
	}
}

// A host that leaves answers out is asked again; what nobody has asked is ignored.
func TestMissingAndExtraAnswers(t *testing.T) {
	q := newQuiz("up", "tool")
	posed := make(chan struct{})
	q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
		_, a := q.pose("roots/list", `{"n":1}`)
		_, b := q.pose("sampling/createMessage", `{"n":2}`)
		close(posed)
		var got [2]string
		for range got {
			select {
			case got[0] = <-a:
			case got[1] = <-b:
			case <-ctx.Done():
				return wire.Message{}, context.Cause(ctx)
			}
		}
		return reply(mcptest.Text(got[0] + got[1]))
	}
	h := quizzed(t, q, rig{rules: once})
	line := h.first("up__tool", `{}`)
	states := map[string]bool{}
	keys := map[string]string{}
	ask := func(answers map[string]string) {
		t.Helper()
		n := needs(t, line)
		if states[n.State] {
			t.Fatalf("the state again: %s", line)
		}
		states[n.State] = true
		for k, r := range n.Requests {
			if keys[r.Method] != "" && keys[r.Method] != k {
				t.Errorf("the question %s has another name: %s", r.Method, line)
			}
			keys[r.Method] = k
		}
		line = h.again("up__tool", `{}`, n.State, answers)
	}
	<-posed // the first round may have brought the one or both
	ask(nil)
	ask(map[string]string{})
	if n := needs(t, line); len(n.Requests) != 2 {
		t.Fatalf("not both: %s", line)
	}
	ask(map[string]string{"nobody": `{"roots":[]}`, "": `{}`, "elicitation-1": `{}`})
	ask(map[string]string{keys["roots/list"]: `null`, keys["sampling/createMessage"]: `"text"`})
	ask(map[string]string{keys["roots/list"]: `[]`, "x": `1`})
	if n := needs(t, line); len(n.Requests) != 2 {
		t.Errorf("what is no answer counts as one: %s", line)
	}
	n := needs(t, line)
	for _, odd := range []string{`5`, `null`, `[]`, `"x"`} {
		line = h.modern("tools/call", `{"name":"up__tool","arguments":{},"inputResponses":`+odd+`,"requestState":"`+n.State+`"}`)
		n = needs(t, line)
	}
	ask(map[string]string{keys["roots/list"]: `{"roots":[1]}`, "more": `{}`})
	if n := needs(t, line); len(n.Requests) != 1 || n.Requests[keys["sampling/createMessage"]].Method == "" {
		t.Errorf("one is left: %s", line)
	}
	ask(map[string]string{keys["roots/list"]: `{"roots":[2]}`, keys["sampling/createMessage"]: `{"s":1}`})
	if r := parseResponse(t, line); r.Text != `{"jsonrpc":"2.0","id":1,"result":{"roots":[1]}}{"jsonrpc":"2.0","id":2,"result":{"s":1}}` {
		t.Errorf("got %s", line)
	}
	if list := h.entries(); len(list) != 1 || len(q.called()) != 1 {
		t.Errorf("on record: %+v", list)
	}
}

// A host is asked for nothing that its request does not declare, and the upstream is
// told so at once.
func TestQuestionsThatTheHostHasNotDeclared(t *testing.T) {
	for _, tt := range []struct{ caps, method, params string }{
		{`{}`, "sampling/createMessage", `{}`},
		{`{"roots":{},"elicitation":{}}`, "sampling/createMessage", `{}`},
		{`{"sampling":{}}`, "roots/list", ""},
		{`{"elicitation":{}}`, "elicitation/create", `{"mode":"url","url":"https://x"}`},
		{`{"elicitation":{"form":{}}}`, "elicitation/create", `{"mode":"url","url":"https://x"}`},
		{allCaps, "tasks/get", `{"taskId":"1"}`},
		{allCaps, "made/up", `{}`},
	} {
		q := newQuiz("up", "tool")
		q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
			a, err := q.ask(ctx, tt.method, tt.params)
			if err != nil {
				return wire.Message{}, err
			}
			return reply(mcptest.Text(a))
		}
		h := quizzed(t, q, rig{ledger: newBooks()})
		r := parseResponse(t, h.ask(modernLine(`"c"`, "tools/call", `{"name":"up__tool"}`, tt.caps)))
		want := `"error"`
		switch tt.method { // some can be declined
		case "elicitation/create":
			want = `"action":"decline"`
		case "roots/list":
			want = `"roots":[]`
		}
		if !strings.Contains(r.Text, want) {
			t.Errorf("%s of a host with %s: %s", tt.method, tt.caps, r.line)
		}
	}
}

// A host that opens URLs and has no forms is not asked to fill one in (client,
// elicitation, capabilities: only an empty object stands for forms).
func TestAFormForAHostWithoutForms(t *testing.T) {
	for _, params := range []string{`{"mode":"form","message":"m"}`, `{"message":"m"}`} {
		q := newQuiz("up", "tool")
		q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
			a, err := q.ask(ctx, "elicitation/create", params)
			if err != nil {
				return wire.Message{}, err
			}
			return reply(mcptest.Text(a))
		}
		h := quizzed(t, q, rig{ledger: newBooks()})
		if r := parseResponse(t, h.ask(modernLine(`"c"`, "tools/call", `{"name":"up__tool"}`, `{"elicitation":{"url":{}}}`))); !strings.Contains(r.Text, `"action":"decline"`) {
			t.Errorf("%s: %s", params, r.line)
		}
	}
}

// An earlier request has declared more than this one: what counts is this one.
func TestWhatAnotherRequestHasDeclared(t *testing.T) {
	q := newQuiz("up", "tool")
	q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
		a, err := q.ask(ctx, "sampling/createMessage", `{}`)
		if err != nil {
			return wire.Message{}, err
		}
		return reply(mcptest.Text(a))
	}
	h := quizzed(t, q, rig{})
	h.ask(modernLine(`"more"`, "tools/list", `{}`, allCaps))
	if r := parseResponse(t, h.ask(modernLine(`"c"`, "tools/call", `{"name":"up__tool"}`, `{"roots":{}}`))); !strings.Contains(r.Text, `"error"`) {
		t.Errorf("%s", r.line)
	}
}

// To give up a round is to give up the call.
func TestCancelOfARound(t *testing.T) {
	q := newQuiz("up", "tool")
	gone := make(chan error, 1)
	going := make(chan struct{})
	q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
		if _, err := q.ask(ctx, "roots/list", `{}`); err != nil {
			gone <- err
			return wire.Message{}, err
		}
		close(going)
		<-ctx.Done()
		gone <- context.Cause(ctx)
		return wire.Message{}, context.Cause(ctx)
	}
	h := quizzed(t, q, rig{rules: prices})
	n := needs(t, h.first("up__tool", `{}`))
	id := h.nextID()
	h.send(again(id, "up__tool", `{}`, n.State, map[string]string{n.key(t): `{"roots":[]}`}))
	<-going
	h.send(cancelLine(id))
	if err := <-gone; err == nil {
		t.Error("the upstream's call goes on")
	}
	h.quiet()
	if e := h.last(); e.Status != audit.StatusCancelled || string(e.CostUSD) != "1" || len(h.entries()) != 1 {
		t.Errorf("on record: %+v", h.entries())
	}
	if code, _ := failureOf(t, h.again("up__tool", `{}`, n.State, nil)); code != -32602 {
		t.Errorf("its state still lives: %d", code)
	}
}

// A cancel that crosses the question is not lost: either the host has a state, or the
// upstream's call is given up and settled.
func TestACancelThatCrossesAQuestion(t *testing.T) {
	const n, each = 900, 30
	q := newQuiz("up", "tool")
	var live sync.Map // calls that go on, by i
	q.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) {
		i, _ := wire.At(c.Params, "arguments", "i")
		live.Store(string(i.Value), true)
		defer live.Delete(string(i.Value))
		q.pose("roots/list", `{}`)
		<-ctx.Done()
		return wire.Message{}, context.Cause(ctx)
	}
	books := newBooks()
	h := quizzed(t, q, rig{ledger: books})
	has := func() (asked int) {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, line := range h.lines {
			if strings.Contains(line, "input_required") {
				asked++
			}
		}
		return asked
	}
	// They come in waves that fall due together; each is cancelled when its first
	// question is there.
	for wave := range n / each {
		var calls, cancels []string
		for i := range each {
			id := fmt.Sprint(wave*each + i)
			calls = append(calls, modernLine(id, "tools/call", `{"name":"up__tool","arguments":{"i":`+id+`}}`, allCaps))
			cancels = append(cancels, cancelLine(id))
		}
		before := has()
		h.send(calls...)
		for deadline := time.Now().Add(patience); has() == before && time.Now().Before(deadline); {
			time.Sleep(50 * time.Microsecond)
		}
		slices.Reverse(cancels)
		h.send(cancels...)
	}
	h.ask(modernLine(`"sync"`, "tools/list", `{}`, allCaps))
	open := func() (k int) {
		live.Range(func(_, _ any) bool { k++; return true })
		return k
	}
	for deadline := time.Now().Add(patience / 3); open() != has(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d calls go on at the upstream, but the host knows the states of %d", open(), has())
		}
	}
	t.Logf("%d of %d were asked before they were cancelled", has(), n)
}

// An upstream that takes its question back goes on without an answer.
func TestAQuestionThatIsTakenBack(t *testing.T) {
	q := newQuiz("up", "tool")
	var posed atomic.Pointer[string]
	void := make(chan string, 1)
	q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
		id, r := q.pose("roots/list", `{}`)
		posed.Store(&id)
		select {
		case a := <-r:
			void <- a
			return reply(mcptest.Text("without"))
		case <-ctx.Done():
			return wire.Message{}, context.Cause(ctx)
		}
	}
	books := newBooks()
	h := quizzed(t, q, rig{ledger: books, fakes: []proxy.Upstream{newFake("b", "x")}})
	n := needs(t, h.first("up__tool", `{}`))
	cancel, _ := wire.ParseLenient([]byte(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":` + *posed.Load() + `}}`))
	h.srv.Notify("b", cancel) // not its question
	h.srv.Notify("up", cancel)
	if a := <-void; a != "" {
		t.Errorf("it was answered: %s", a)
	}
	if r := parseResponse(t, h.again("up__tool", `{}`, n.State, map[string]string{n.key(t): `{"roots":[]}`})); r.Text != "without" {
		t.Errorf("%s", r.line)
	}
	h.over()
	if wrong := books.wrong(); wrong != nil || books.count() != 1 {
		t.Errorf("%d attempts, not settled once: %v", books.count(), wrong)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.lines) != 0 {
		t.Errorf("the host was sent too: %v", h.lines)
	}
}

// An upstream that dies takes its call with it; the host learns so when it goes on.
func TestAnUpstreamThatDiesBetweenRounds(t *testing.T) {
	q := newQuiz("up", "tool")
	die := make(chan struct{})
	q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
		_, r := q.pose("roots/list", `{}`)
		select {
		case <-r:
			t.Error("it was answered")
		case <-die:
		case <-ctx.Done():
		}
		return wire.Message{}, errors.New("the connection is gone")
	}
	h := quizzed(t, q, rig{rules: prices})
	n := needs(t, h.first("up__tool", `{}`))
	close(die)
	eventually(t, "its call has ended", func() bool { // as a real one, it says that it is gone afterwards
		return len(q.called()) == 1
	})
	h.srv.Gone("up")
	r := parseResponse(t, h.again("up__tool", `{}`, n.State, map[string]string{n.key(t): `{"roots":[]}`}))
	if r.Error == nil || r.Error.Code != -32603 {
		t.Errorf("%s", r.line)
	}
	if e := h.last(); e.Status != audit.StatusError || string(e.CostUSD) != "1" || len(h.entries()) != 1 {
		t.Errorf("on record: %+v", h.entries())
	}
}

// A real one that is killed while the host has a state.
func TestAServerThatIsKilledBetweenRounds(t *testing.T) {
	h := serve(t, rig{servers: []config.Upstream{mcptest.Script{}.Child(t, "up")}, raw: true, rules: prices})
	const args = `{"method":"roots/list"}`
	n := needs(t, h.first("up__ask", args))
	h.first("up__die", `{"code":3}`)
	r := parseResponse(t, h.again("up__ask", args, n.State, map[string]string{n.key(t): `{"roots":[]}`}))
	if r.Error == nil {
		t.Errorf("%s", r.line)
	}
	eventually(t, "both calls have ended", func() bool {
		for _, e := range h.entries() {
			if e.Status != audit.StatusError || string(e.CostUSD) != "1" {
				return false
			}
		}
		return len(h.entries()) == 2
	})
	// The next one is served by the next process.
	n = needs(t, h.first("up__ask", `{"method":"roots/list","n":1}`))
	if r := parseResponse(t, h.again("up__ask", `{"method":"roots/list","n":1}`, n.State, map[string]string{n.key(t): `{"roots":[]}`})); !strings.Contains(r.Text, "roots") {
		t.Errorf("%s", r.line)
	}
}

// At haldir's end what waits for the host is settled, once.
func TestTheEndSettlesWhatWaits(t *testing.T) {
	for name, end := range map[string]func(h *host){
		"a signal":         func(h *host) { h.stop() },
		"the end of input": func(h *host) { _ = h.in.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			q := newQuiz("up", "tool")
			var ended atomic.Int64
			q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
				_, err := q.ask(ctx, "roots/list", `{}`)
				ended.Add(1)
				if err == nil {
					err = errors.New("void")
				}
				return wire.Message{}, err
			}
			m := newFake("modern", "tool")
			m.catalogue.Modern = true
			m.do = func(context.Context, upstream.Call) (wire.Message, error) {
				return reply(`{"resultType":"input_required","requestState":"s"}`)
			}
			books := newBooks()
			h := quizzed(t, q, rig{ledger: books, fakes: []proxy.Upstream{m}})
			const n = 20
			for i := range n {
				needs(t, h.first("up__tool", fmt.Sprintf(`{"i":%d}`, i)))
				needs(t, h.first("modern__tool", fmt.Sprintf(`{"i":%d}`, i)))
			}
			if len(books.results()) != 0 {
				t.Errorf("settled before its end: %v", books.results())
			}
			end(h)
			<-h.done
			if wrong := books.wrong(); wrong != nil || books.count() != 2*n || ended.Load() != n {
				t.Errorf("%d attempts, %d calls have ended, not settled once: %v", books.count(), ended.Load(), wrong)
			}
			for _, o := range books.results() {
				if o.Result != ledger.Unknown || o.Reason == "" {
					t.Errorf("settled as %+v", o)
				}
			}
		})
	}
}

// A call that is just about to be asked about when haldir ends is settled too.
func TestAQuestionAtTheEnd(t *testing.T) {
	const n = 24
	q := newQuiz("up", "tool", "early")
	release, posed := make(chan struct{}), make(chan struct{}, n)
	q.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) {
		if strings.Contains(string(c.Params), "early") {
			q.pose("roots/list", `{}`)
			<-ctx.Done()
			return wire.Message{}, context.Cause(ctx)
		}
		// Two questions; the first answer is taken only when haldir ends.
		m, _ := wire.ParseLenient([]byte(`{"jsonrpc":"2.0","id":"slow","method":"roots/list","params":{"slow":true}}`))
		q.srv.Load().Ask("up", m, func(b []byte) {
			if b != nil {
				<-release
			}
		})
		q.pose("sampling/createMessage", `{}`)
		posed <- struct{}{}
		<-ctx.Done()
		<-release
		time.Sleep(moment / 2) // an upstream takes its time to hear of a cancel
		return wire.Message{}, context.Cause(ctx)
	}
	books := newBooks()
	h := quizzed(t, q, rig{ledger: books})
	// One at a time, so that each has its own questions.
	var lines []string
	for i := range n {
		args := fmt.Sprintf(`{"i":%d}`, i)
		nd := needs(t, h.first("up__tool", args))
		<-posed
		answers := map[string]string{}
		for k, r := range nd.Requests {
			if r.Method == "roots/list" {
				answers[k] = `{"roots":[]}`
			}
		}
		if len(answers) == 0 {
			t.Fatalf("not asked for roots first: %s", nd.line)
		}
		lines = append(lines, again(h.nextID(), "up__tool", args, nd.State, answers))
	}
	needs(t, h.first("up__early", `{}`))
	before := books.count()
	h.send(lines...)
	time.Sleep(moment) // they are on their way
	h.stop()
	// That the one that waits is settled says that all that waited were.
	eventually(t, "what waits is settled", func() bool { return len(books.results()) >= 1 })
	close(release)
	<-h.done
	if wrong := books.wrong(); wrong != nil {
		t.Errorf("of %d not settled once: %v", before, wrong)
	}
}

// The same of many, whose questions come due at the very end.
func TestQuestionsThatComeDueAtTheEnd(t *testing.T) {
	for range 25 {
		q := newQuiz("up", "tool")
		q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
			_, err := q.ask(ctx, "roots/list", `{}`)
			if err == nil {
				err = errors.New("void")
			}
			return wire.Message{}, err
		}
		books := newBooks()
		h := quizzed(t, q, rig{ledger: books})
		var calls []string
		for i := range 40 {
			calls = append(calls, modernLine(fmt.Sprint(i), "tools/call", fmt.Sprintf(`{"name":"up__tool","arguments":{"i":%d}}`, i), allCaps))
		}
		h.send(calls...)
		h.need("the first question", func(line string) bool { return strings.Contains(line, "input_required") })
		h.over()
		if wrong := books.wrong(); wrong != nil {
			t.Fatalf("of %d not settled once: %v", books.count(), wrong)
		}
	}
}

// Many calls that ask at once: each answer goes to whoever has asked.
func TestManyCallsThatAskAtOnce(t *testing.T) {
	const n, questions = 100, 3
	q := newQuiz("up", "tool")
	q.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) {
		i, _ := wire.At(c.Params, "arguments", "i")
		for k := range questions {
			a, err := q.ask(ctx, "elicitation/create", fmt.Sprintf(`{"message":"%s.%d"}`, i.Value, k))
			if err != nil {
				return wire.Message{}, err
			}
			if !strings.Contains(a, fmt.Sprintf(`"said":"%s.%d"`, i.Value, k)) {
				return reply(mcptest.Text(fmt.Sprintf("call %s asked %d and got %s", i.Value, k, a)))
			}
		}
		return reply(mcptest.Text("answered " + string(i.Value)))
	}
	books := newBooks()
	h := quizzed(t, q, rig{ledger: books})
	ids := map[string]string{} // whose call a request is
	var mu sync.Mutex
	send := func(i, state string, answers map[string]string) {
		mu.Lock()
		id := h.nextID()
		ids[id] = i
		mu.Unlock()
		args := `{"i":` + i + `}`
		if state == "" {
			h.send(modernLine(id, "tools/call", `{"name":"up__tool","arguments":`+args+`}`, allCaps))
			return
		}
		h.send(again(id, "up__tool", args, state, answers))
	}
	go func() {
		for i := range n {
			send(fmt.Sprint(i), "", nil)
		}
	}()
	done := map[string]bool{}
	for len(done) < n {
		line := h.need("an answer", anyLine)
		m, err := wire.ParseLenient([]byte(line))
		if err != nil || !m.IsResponse() {
			t.Fatalf("%v: %s", err, line)
		}
		mu.Lock()
		i := ids[string(m.ID)]
		mu.Unlock()
		if r := parseResponse(t, line); r.Text != "" || r.Error != nil {
			if r.Text != "answered "+i || done[i] {
				t.Errorf("call %s: %s", i, line)
			}
			done[i] = true
			continue
		}
		nd := needs(t, line)
		answers := map[string]string{}
		for k, r := range nd.Requests {
			said, _ := wire.At(r.Params, "message")
			answers[k] = `{"action":"accept","content":{"said":` + string(said.Value) + `}}`
		}
		send(i, nd.State, answers)
	}
	h.over()
	if wrong := books.wrong(); wrong != nil || books.count() != n || len(q.called()) != n {
		t.Errorf("%d attempts, %d calls, not settled once: %v", books.count(), len(q.called()), wrong)
	}
}

// Progress is told to the request that waits, under its token; to nobody while the
// host has a state.
func TestProgressOfEachRound(t *testing.T) {
	q := newQuiz("up", "tool")
	tell := func(c upstream.Call, n int) {
		m, err := wire.ParseLenient(fmt.Appendf(nil, `{"jsonrpc":"2.0","method":"notifications/progress","params":{"x":1, "progressToken" : %s,"progress":%d}}`, c.Token, n))
		if err != nil {
			t.Error(err)
		}
		c.Progress(m)
	}
	held := make(chan struct{})
	q.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) {
		tell(c, 1)
		_, r := q.pose("roots/list", `{}`)
		select {
		case <-held:
		case <-ctx.Done():
			return wire.Message{}, context.Cause(ctx)
		}
		tell(c, 2) // nobody waits
		select {
		case <-r:
		case <-ctx.Done():
			return wire.Message{}, context.Cause(ctx)
		}
		tell(c, 3)
		if _, err := q.ask(ctx, "roots/list", `{}`); err != nil {
			return wire.Message{}, err
		}
		tell(c, 4) // a round without a token
		return reply(mcptest.Text("done"))
	}
	h := quizzed(t, q, rig{})
	n := needs(t, h.ask(modernLine(`1`, "tools/call", `{"name":"up__tool","arguments":{}}`, allCaps, `"progressToken":"first"`)))
	close(held)
	line := strings.Replace(again(`2`, "up__tool", `{}`, n.State, map[string]string{n.key(t): `{"roots":[]}`}), `"_meta":{`, `"_meta":{"progressToken":9007199254740993,`, 1)
	// The second is not told: whether it was sent before the retry is not known, so
	// the order of what the host sees decides.
	n = needs(t, h.ask(line))
	if r := parseResponse(t, h.again("up__tool", `{}`, n.State, map[string]string{n.key(t): `{"roots":[]}`})); r.Text != "done" {
		t.Fatalf("%s", r.line)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var got []string
	for _, l := range h.lines {
		if !strings.Contains(l, `"progress":2}`) { // told or not, but under no token but that of its round
			got = append(got, l)
		} else if !strings.Contains(l, `9007199254740993`) {
			t.Errorf("a round that was over was told: %s", l)
		}
	}
	want := []string{
		`{"jsonrpc":"2.0","method":"notifications/progress","params":{"x":1, "progressToken" : "first","progress":1}}`,
		`{"jsonrpc":"2.0","method":"notifications/progress","params":{"x":1, "progressToken" : 9007199254740993,"progress":3}}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("the host was told %q", got)
	}
}

// Nothing of a request comes after its answer, even when progress and a question
// come in one breath.
func TestNoProgressAfterARound(t *testing.T) {
	const n = 100
	q := newQuiz("up", "tool")
	q.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) {
		var wg sync.WaitGroup
		m, _ := wire.ParseLenient(fmt.Appendf(nil, `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s,"progress":1}}`, c.Token))
		stop := make(chan struct{})
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					c.Progress(m)
					time.Sleep(20 * time.Microsecond)
				}
			}
		})
		_, err := q.ask(ctx, "roots/list", `{}`)
		close(stop)
		wg.Wait()
		if err != nil {
			return wire.Message{}, err
		}
		return reply(mcptest.Text("done"))
	}
	h := quizzed(t, q, rig{ledger: newBooks()})
	late := 0
	for i := range n {
		id := fmt.Sprint(i)
		h.send(modernLine(id, "tools/call", `{"name":"up__tool","arguments":{"i":`+id+`}}`, allCaps, `"progressToken":`+id))
		for {
			line := h.need("the answer", anyLine)
			if hasID(id)(line) {
				n := needs(t, line)
				h.send(again(`"r`+id+`"`, "up__tool", `{"i":`+id+`}`, n.State, map[string]string{n.key(t): `{"roots":[]}`}))
				break
			}
		}
		for {
			line := h.need("the answer", anyLine)
			if hasID(`"r` + id + `"`)(line) {
				break
			}
			if late++; late == 1 {
				t.Errorf("after the answer to %s: %s", id, line)
			}
		}
	}
	if late > 0 {
		t.Errorf("%d notifications came after the answer to their request", late)
	}
}

const panicVar = "HALDIR_TEST_PANIC"

// A mistake of ours in one call must not take the others with it, in this era as in
// the other. It runs in a process of its own, which it may end.
func TestAPanicInAModernCall(t *testing.T) {
	if os.Getenv(panicVar) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestAPanicInAModernCall$", "-test.count=1")
		cmd.Env = append(os.Environ(), panicVar+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, clip(string(out)))
		}
		return
	}
	books := newBooks()
	h := serve(t, rig{fakes: []proxy.Upstream{outcomes()}, raw: true, ledger: books})
	if r := parseResponse(t, h.first("up__panics", `{}`)); r.Error == nil || r.Error.Code != -32603 {
		t.Errorf("%s", r.line)
	}
	if r := parseResponse(t, h.first("up__good", `{}`)); r.Text != "done" {
		t.Errorf("%s", r.line)
	}
	h.over()
	if wrong := books.wrong(); wrong != nil {
		t.Errorf("not settled once: %v", wrong)
	}
}

// However a call ends, it is settled as in the other era.
func TestEveryEndOfAModernCall(t *testing.T) {
	h := serve(t, rig{fakes: []proxy.Upstream{outcomes()}, raw: true, rules: prices})
	for _, tt := range []struct {
		tool   string
		status audit.Status
		cost   string
	}{
		{"good", audit.StatusAllowed, "1"},
		{"tool_error", audit.StatusError, "1"},
		{"rpc_error", audit.StatusError, "1"},
		{"unknown", audit.StatusError, "1"},
		{"not_sent", audit.StatusError, "0"},
	} {
		h.first("up__"+tt.tool, `{"a":1}`)
		if e := h.last(); e.Status != tt.status || string(e.CostUSD) != tt.cost || e.Tool != tt.tool {
			t.Errorf("%s: %s, $%s", tt.tool, e.Status, e.CostUSD)
		}
	}
}

// More calls than haldir keeps: those beyond are settled, and nothing breaks.
func TestTooManyCallsThatWait(t *testing.T) {
	m := newFake("up", "tool")
	m.catalogue.Modern = true
	m.do = func(context.Context, upstream.Call) (wire.Message, error) {
		return reply(`{"resultType":"input_required","requestState":"s"}`)
	}
	books := newBooks()
	h := serve(t, rig{fakes: []proxy.Upstream{m}, raw: true, ledger: books})
	const n = 1003
	for i := range n {
		id := fmt.Sprint(i)
		h.send(modernLine(id, "tools/call", `{"name":"up__tool","arguments":{"i":`+id+`}}`, allCaps))
		h.answer(id)
	}
	eventually(t, "those beyond are settled", func() bool { return len(books.results()) == 3 })
	h.over()
	if wrong := books.wrong(); wrong != nil || books.count() != n {
		t.Errorf("%d attempts, not settled once: %v", books.count(), wrong)
	}
}

// --- a modern upstream

// oracle is a modern upstream whose answers are those of a script, one a call.
type oracle struct {
	*fake
	denied string

	mu   sync.Mutex
	says []string // results; what begins with ! is an error
}

func newOracle(t *testing.T, name string, says ...string) *oracle {
	t.Helper()
	o := &oracle{fake: furnished(t, name, nil), says: says}
	o.catalogue.Modern = true
	o.catalogue.Server = json.RawMessage(`{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{},"resources":{},"prompts":{}}}`)
	o.do = func(context.Context, upstream.Call) (wire.Message, error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if len(o.says) == 0 {
			return wire.Message{}, errors.New("it was called too often")
		}
		say := o.says[0]
		o.says = o.says[1:]
		if why, bad := strings.CutPrefix(say, "!"); bad {
			if why == "" {
				return wire.Message{}, fmt.Errorf("refused: %w", wire.ErrNotSent)
			}
			return wire.ParseLenient([]byte(`{"jsonrpc":"2.0","id":1,"error":` + why + `}`))
		}
		return reply(say)
	}
	return o
}

func (o *oracle) Refuses(kind string) bool { return o.denied == kind }

// Between two modern peers nothing has to be said in other words: what is asked, the
// state and the answers pass byte for byte, and the rounds are one call.
func TestRoundsBetweenModernPeers(t *testing.T) {
	const asks = `{ "resultType" : "input_required","x":9007199254740993, "inputRequests" : { "k\u0031" : {"method":"elicitation\/create" , "params":{ "message":"\u00e4","n":1E9}}, "r":{"method":"roots/list"} },"requestState":"ab\u0063\/=\ud83d\ude00" }`
	const waits = `{"requestState":"only \u0074ime","resultType":"input_required"}`
	const done = `{"content":[ {"type":"text","text":"done"}],"resultType":"complete","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"o","version":"1"}}}`
	o := newOracle(t, "up", asks, waits, done)
	h := serve(t, rig{fakes: []proxy.Upstream{o}, raw: true, rules: once})
	ask := func(id, params, want string) {
		t.Helper()
		if got, want := h.ask(modernLine(id, "tools/call", params, allCaps)), `{"jsonrpc":"2.0","id":`+id+`,"result":`+want+`}`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	const first = `{ "name":"up__tool" ,"arguments":{ "a" : 1 }}`
	const second = `{"arguments":{ "a" : 1 },"requestState":"ab\u0063\/=\ud83d\ude00","inputResponses":{ "k1" : {"action":"accept","content":{"n":9007199254740993}} , "r":{"roots":[]}, "extra":1},"name":"up__tool"}`
	const third = `{"name":"up__tool","arguments":{ "a" : 1 },"requestState":"only time"}`
	ask(`1`, first, asks)
	ask(`2`, second, waits)
	ask(`3`, third, done)
	for i, params := range []string{first, second, third} {
		want := strings.TrimSuffix(strings.Replace(params, "up__tool", "tool", 1), "}") + `,"_meta":` + metaOf(allCaps) + `}`
		if got := o.called(); len(got) != 3 || got[i] != want {
			t.Errorf("the upstream was sent %q, want %s", got, want)
		}
	}
	if list := h.entries(); len(list) != 1 || h.last().Status != audit.StatusAllowed {
		t.Errorf("on record: %+v", list)
	}
	parseResponse(t, h.first("up__tool", `{"a":1}`)).refusal(t)
}

// A state that haldir does not know may be good for the upstream, but is a call to
// the ledger.
func TestAForeignStateIsANewCall(t *testing.T) {
	const asks, done = `{"resultType":"input_required","inputRequests":{"r":{"method":"roots/list"}},"requestState":"s"}`, `{"content":[],"resultType":"complete"}`
	o := newOracle(t, "up", asks, done)
	h := serve(t, rig{fakes: []proxy.Upstream{o}, raw: true, rules: once})
	needs(t, h.first("up__tool", `{"a":1}`))
	for what, line := range map[string]string{
		"other arguments": h.again("up__tool", `{"a":2}`, "s", map[string]string{"r": `{}`}),
		"another state":   h.again("up__tool", `{"a":1}`, "t", map[string]string{"r": `{}`}),
		"no state":        h.modern("tools/call", `{"name":"up__tool","arguments":{"a":1},"inputResponses":{"r":{}}}`),
	} {
		if why := parseResponse(t, line).refusal(t); why.Rule != "once" {
			t.Errorf("%s: %+v", what, why)
		}
	}
	if r := parseResponse(t, h.again("up__tool", `{"a":1}`, "s", map[string]string{"r": `{}`})); r.Error != nil || r.IsError {
		t.Errorf("the right one: %s", r.line)
	}
	// It has served.
	parseResponse(t, h.again("up__tool", `{"a":1}`, "s", map[string]string{"r": `{}`})).refusal(t)
	if n := len(o.called()); n != 2 {
		t.Errorf("the upstream was called %d times", n)
	}
}

// An upstream that gives the same state, or none, to calls that are alike.
func TestTheSameStateTwice(t *testing.T) {
	for name, state := range map[string]string{"a state": `,"requestState":"s"`, "none": ``, "no text": `,"requestState":7`} {
		t.Run(name, func(t *testing.T) {
			asks := `{"resultType":"input_required","inputRequests":{"r":{"method":"roots/list"}}` + state + `}`
			const done = `{"content":[{"type":"text","text":"done"}],"resultType":"complete"}`
			o := newOracle(t, "up", asks, asks, asks, done, done, done)
			books := newBooks()
			h := serve(t, rig{fakes: []proxy.Upstream{o}, raw: true, ledger: books})
			for range 3 {
				if line := h.first("up__tool", `{}`); !strings.Contains(line, asks) {
					t.Fatalf("%s", line)
				}
			}
			for range 3 {
				if r := parseResponse(t, h.modern("tools/call", `{"name":"up__tool","arguments":{},"inputResponses":{"r":{}}`+state+`}`)); r.Text != "done" {
					t.Errorf("%s", r.line)
				}
			}
			h.over()
			if wrong := books.wrong(); wrong != nil || books.count() < 3 {
				t.Errorf("%d attempts, not settled once: %v", books.count(), wrong)
			}
		})
	}
}

// A state must not pass for haldir's own.
func TestAnUpstreamThatForgesAState(t *testing.T) {
	o := newOracle(t, "up", `{"resultType":"input_required","requestState":"haldir-AAAAAAAAAAAAAAAAAAAAAAAAAA"}`)
	books := newBooks()
	h := serve(t, rig{fakes: []proxy.Upstream{o}, raw: true, ledger: books})
	if r := parseResponse(t, h.first("up__tool", `{}`)); r.Error == nil {
		t.Errorf("%s", r.line)
	}
	h.over()
	if wrong := books.wrong(); wrong != nil {
		t.Errorf("not settled once: %v", wrong)
	}
}

// What the config keeps an upstream from asking does not reach the host, in whatever
// shape the upstream puts it.
func TestDenyRequestsInRounds(t *testing.T) {
	const sampling = `{"method":"sampling/createMessage","params":{"messages":[],"maxTokens":1}}`
	shapes := map[string]string{
		"alone":                 `{"resultType":"input_required","inputRequests":{"a":` + sampling + `},"requestState":"s"}`,
		"behind another":        `{"resultType":"input_required","inputRequests":{"r":{"method":"roots/list"},"a":` + sampling + `},"requestState":"s"}`,
		"in another spelling":   `{"result\u0054ype":"input_required","input\u0052equests":{"a":{"method":"sampling\/createM\u0065ssage","params":{}}},"requestState":"s"}`,
		"spaced":                `{ "resultType" : "input_required" , "inputRequests" : { "a" : ` + sampling + ` } }`,
		"kind escaped":          `{"resultType":"input\u005frequired","inputRequests":{"a":` + sampling + `},"requestState":"s"}`,
		"beside nonsense":       `{"resultType":"input_required","inputRequests":{"a":` + sampling + `,"b":{"method":"made/up"}},"requestState":"s"}`,
		"beside what is no one": `{"resultType":"input_required","inputRequests":{"a":` + sampling + `,"b":5},"requestState":"s"}`,
		"twice":                 `{"resultType":"input_required","inputRequests":{"a":{"method":"roots/list"},"a":` + sampling + `},"requestState":"s"}`,
		"method twice":          `{"resultType":"input_required","inputRequests":{"a":{"method":"roots/list","method":"sampling/createMessage","params":{}}},"requestState":"s"}`,
		"a member twice":        `{"resultType":"input_required","x":1,"x":2,"inputRequests":{"a":` + sampling + `},"requestState":"s"}`,
	}
	for _, era := range []string{"modern", "legacy"} {
		for name, shape := range shapes {
			t.Run(name+" from a "+era+" upstream", func(t *testing.T) {
				o := newOracle(t, "up", shape)
				o.denied = "sampling"
				if era == "legacy" {
					o.catalogue.Modern = false
					o.catalogue.Server = furnished(t, "x", nil).catalogue.Server
				}
				h := serve(t, rig{fakes: []proxy.Upstream{o}, raw: true})
				line := h.first("up__tool", `{}`)
				// A host decodes leniently: the last of two names counts.
				var r struct {
					Result struct {
						Type     string                     `json:"resultType"`
						Requests map[string]json.RawMessage `json:"inputRequests"`
					}
					Error *struct{ Code int }
				}
				if err := json.Unmarshal([]byte(line), &r); err != nil {
					t.Fatal(err)
				}
				if r.Result.Type == "input_required" {
					t.Errorf("the host is asked: %s", line)
				}
				if name == "alone" && era == "modern" {
					if r.Error == nil || r.Error.Code != proxy.CodeRefused {
						t.Errorf("%s", line)
					}
					var tools []string
					for _, e := range h.entries() {
						tools = append(tools, e.Tool+" "+string(e.Status))
					}
					if !slices.Contains(tools, "request:sampling/createMessage "+string(audit.StatusDenied)) {
						t.Errorf("on record: %v", tools)
					}
				}
			})
		}
	}
	t.Run("a question of a legacy upstream", func(t *testing.T) {
		q := newQuiz("up", "tool")
		q.denied = "sampling"
		q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
			a, err := q.ask(ctx, "sampling/createMessage", `{}`)
			if err != nil {
				return wire.Message{}, err
			}
			return reply(mcptest.Text(a))
		}
		h := quizzed(t, q, rig{})
		if r := parseResponse(t, h.first("up__tool", `{}`)); !strings.Contains(r.Text, fmt.Sprint(proxy.CodeRefused)) {
			t.Errorf("%s", r.line)
		}
		if n := len(h.find(audit.Filter{Status: audit.StatusDenied})); n != 1 {
			t.Errorf("%d refusals on record", n)
		}
	})
}

// What a host has told one upstream is for that one: the next round of a read that
// several may know is not tried on the others.
func TestTheNextRoundGoesToWhoHasAsked(t *testing.T) {
	a := newOracle(t, "a", `!{"code":-32602,"message":"unknown"}`, `!{"code":-32602,"message":"unknown"}`)
	b := newOracle(t, "b", `{"resultType":"input_required","inputRequests":{"r":{"method":"roots/list"}},"requestState":"of b"}`, `{"contents":[],"resultType":"complete","ttlMs":0,"cacheScope":"private"}`)
	h := serve(t, rig{fakes: []proxy.Upstream{a, b}, raw: true})
	line := h.modern("resources/read", `{"uri":"linked:y"}`)
	needs(t, line)
	line = h.modern("resources/read", `{"uri":"linked:y","requestState":"of b","inputResponses":{"r":{"roots":[{"uri":"file:///home/me"}]}}}`)
	if !strings.Contains(line, `"contents":[]`) {
		t.Errorf("%s", line)
	}
	for _, params := range a.called() {
		if strings.Contains(params, "of b") || strings.Contains(params, "/home/me") {
			t.Errorf("a was told what b had asked for: %s", params)
		}
	}
	if n := len(h.entries()); n != 2 { // one of each upstream
		t.Errorf("%d attempts on record", n)
	}
}

// --- a host of the handshake era before a modern upstream

// asked takes the next request of haldir's to the host.
func (h *host) asked(method string) (id string, params json.RawMessage) {
	h.t.Helper()
	line := h.need("a request "+method, hasMethod(method))
	m, err := wire.ParseLenient([]byte(line))
	if err != nil || !m.IsRequest() {
		h.t.Fatalf("%v: %s", err, line)
	}
	return string(m.ID), m.Params
}

const (
	bothAsked = `{"resultType":"input_required","inputRequests":{"e\u0031":{"method":"elicitation/create","params":{ "message":"\u00e4","n":9007199254740993}},"s":{"method":"sampling/createMessage","params":{"messages":[]}}},"requestState":"st\u0061te\/"}`
	finished  = `{ "content" : [{"type":"text","text":"\u0064one"}], "n":9007199254740993 ,"resultType":"complete","ttlMs":5,"cacheScope":"public","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"o","version":"1"},"keep":[ 1 ]}}`
)

// A host of the handshake era is asked by requests; its answers go up, and what only
// the other era has is taken from the result.
func TestAModernUpstreamForALegacyHost(t *testing.T) {
	o := newOracle(t, "up", bothAsked, finished)
	h := serve(t, rig{fakes: []proxy.Upstream{o}, rules: once})
	h.send(`{"jsonrpc":"2.0","id":"c","method":"tools/call","params":{ "name":"up__tool","arguments":{ "a" : 1 }}}`)
	e, params := h.asked("elicitation/create")
	if string(params) != `{ "message":"\u00e4","n":9007199254740993}` {
		t.Errorf("the question became %s", params)
	}
	s, _ := h.asked("sampling/createMessage")
	if e == s {
		t.Errorf("both are %s", e)
	}
	const sampled, accepted = `{"role":"assistant", "n":9007199254740993}`, `{ "action" : "accept"}`
	h.send(`{"jsonrpc":"2.0","id":` + s + `,"result":` + sampled + `}`)
	h.send(`{"jsonrpc":"2.0","id":` + e + `,"result":` + accepted + `}`)
	line := h.answer(`"c"`)
	var got []string
	for _, m := range members(t, line) {
		got = append(got, m.Name+"="+string(m.Value))
	}
	if want := []string{`content=[{"type":"text","text":"\u0064one"}]`, `n=9007199254740993`, `_meta={"keep":[ 1 ]}`}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	calls := o.called()
	if len(calls) != 2 {
		t.Fatalf("%d calls", len(calls))
	}
	var m []string
	list, _ := wire.Members([]byte(calls[1]))
	for _, x := range list {
		m = append(m, x.Name+"="+string(x.Value))
	}
	if want := []string{`name="tool"`, `arguments={ "a" : 1 }`, `inputResponses={"e1":` + accepted + `,"s":` + sampled + `}`, `requestState="st\u0061te\/"`}; !slices.Equal(m, want) {
		t.Errorf("the upstream was sent %s", calls[1])
	}
	if list := h.entries(); len(list) != 1 || h.last().Status != audit.StatusAllowed {
		t.Errorf("on record: %+v", list)
	}
}

// Each thing that a modern upstream asks for is a request to a host of the handshake era:
// one result must not make thousands of them.
func TestAModernUpstreamThatAsksForTooMuchAtOnce(t *testing.T) {
	one := `"k":{"method":"roots/list","params":{"_meta":{"progressToken":1}}}`
	var all []string
	for i := range 65 {
		all = append(all, strings.Replace(one, "k", fmt.Sprint("k", i), 1))
	}
	ask := func(n int) string {
		return `{"resultType":"input_required","inputRequests":{` + strings.Join(all[:n], ",") + `},"requestState":"s"}`
	}
	o := newOracle(t, "up", ask(65), ask(64), finished)
	h := serve(t, rig{fakes: []proxy.Upstream{o}})
	if r := h.call("up__tool", `{}`); r.Error == nil || !strings.Contains(r.Error.Message, "asks for 65 things at once") {
		t.Errorf("%s", clip(r.line))
	}
	if e := h.last(); e.Status != audit.StatusError {
		t.Errorf("on record: %+v", e)
	}
	h.quiet()
	id, line := h.callLine("up__tool", `{}`)
	h.send(line)
	for range 64 {
		q, _ := h.asked("roots/list")
		h.send(`{"jsonrpc":"2.0","id":` + q + `,"result":{"roots":[]}}`)
	}
	if r := parseResponse(t, h.answer(id)); r.Error != nil {
		t.Errorf("%s", clip(r.line))
	}
}

// An elicitation that fails is one that was cancelled; what has no such word fails
// the call, and takes back what else was asked.
func TestErrorsOfALegacyHost(t *testing.T) {
	o := newOracle(t, "up", bothAsked, finished, bothAsked)
	h := serve(t, rig{fakes: []proxy.Upstream{o}})
	h.send(`{"jsonrpc":"2.0","id":"c","method":"tools/call","params":{"name":"up__tool"}}`)
	e, _ := h.asked("elicitation/create")
	s, _ := h.asked("sampling/createMessage")
	h.send(`{"jsonrpc":"2.0","id":`+e+`,"error":{"code":-1,"message":"no"}}`, `{"jsonrpc":"2.0","id":`+s+`,"result":{}}`)
	h.answer(`"c"`)
	if calls := o.called(); len(calls) != 2 || !strings.Contains(calls[1], `"inputResponses":{"e1":{"action":"cancel"},"s":{}}`) {
		t.Errorf("the upstream was sent %q", calls)
	}
	h.send(`{"jsonrpc":"2.0","id":"d","method":"tools/call","params":{"name":"up__tool"}}`)
	e, _ = h.asked("elicitation/create")
	s, _ = h.asked("sampling/createMessage")
	h.send(`{"jsonrpc":"2.0","id":` + s + `,"error":{"code":-1,"message":"the user said no"}}`)
	if r := parseResponse(t, h.answer(`"d"`)); r.Error == nil || !strings.Contains(r.Error.Message, "the user said no") {
		t.Errorf("%s", r.line)
	}
	if line := h.wait(patience, hasMethod("notifications/cancelled")); !strings.Contains(line, e) {
		t.Errorf("the host still shows the other question (%s): %q", e, line)
	}
	if list := h.entries(); len(list) != 2 || h.last().Status != audit.StatusError {
		t.Errorf("on record: %+v", list)
	}
}

// A host that cancels its call is told that the questions are void.
func TestALegacyHostCancelsWhileItIsAsked(t *testing.T) {
	o := newOracle(t, "up", bothAsked)
	h := serve(t, rig{fakes: []proxy.Upstream{o}, rules: prices})
	h.send(`{"jsonrpc":"2.0","id":"c","method":"tools/call","params":{"name":"up__tool"}}`)
	e, _ := h.asked("elicitation/create")
	s, _ := h.asked("sampling/createMessage")
	h.send(cancelLine(`"c"`))
	void := map[string]bool{}
	for range 2 {
		line := h.need("the cancellation", hasMethod("notifications/cancelled"))
		m, _ := wire.ParseLenient([]byte(line))
		id, _ := wire.At(m.Params, "requestId")
		void[string(id.Value)] = true
	}
	if !void[e] || !void[s] {
		t.Errorf("void are %v of %s and %s", void, e, s)
	}
	h.send(`{"jsonrpc":"2.0","id":`+e+`,"result":{}}`, `{"jsonrpc":"2.0","id":`+s+`,"result":{}}`) // on their way already
	h.alive()
	h.quiet()
	if x := h.last(); x.Status != audit.StatusCancelled || string(x.CostUSD) != "1" || len(o.called()) != 1 {
		t.Errorf("on record: %+v", x)
	}
}

// An upstream that needs only time is asked again with its state, as long as the host
// waits.
func TestAnUpstreamThatNeedsTime(t *testing.T) {
	o := newOracle(t, "up", `{"resultType":"input_required","requestState":"o\u006ee"}`, `{"resultType":"input_required","requestState":"two","inputRequests":{}}`, `{"resultType":"input_required","requestState":"three"}`, finished)
	h := serve(t, rig{fakes: []proxy.Upstream{o}, rules: once})
	if got := h.must("up__tool", `{}`); got != "done" {
		t.Errorf("got %s", got)
	}
	calls := o.called()
	if len(calls) != 4 || strings.Contains(strings.Join(calls, ""), "inputResponses") || !strings.Contains(calls[1], `"requestState":"o\u006ee"`) || !strings.Contains(calls[3], `"three"`) {
		t.Errorf("the upstream was sent %q", calls)
	}
	if n := len(h.entries()); n != 1 {
		t.Errorf("%d attempts on record", n)
	}

	var called atomic.Int64
	endless := newOracle(t, "endless")
	endless.do = func(context.Context, upstream.Call) (wire.Message, error) {
		called.Add(1)
		return reply(`{"resultType":"input_required","requestState":"x"}`)
	}
	h = serve(t, rig{fakes: []proxy.Upstream{endless}, rules: prices})
	h.send(`{"jsonrpc":"2.0","id":"c","method":"tools/call","params":{"name":"endless__tool"}}`)
	eventually(t, "it is asked again", func() bool { return called.Load() >= 3 })
	h.send(cancelLine(`"c"`))
	if e := h.last(); e.Status != audit.StatusCancelled || string(e.CostUSD) != "1" {
		t.Errorf("on record: %+v", e)
	}
	h.quiet()
}

// Money is given back for what was never sent. A later round that was not sent is
// part of a call that was.
func TestALaterRoundThatWasNotSentIsPaidFor(t *testing.T) {
	const asks = `{"resultType":"input_required","requestState":"s"}`
	o := newOracle(t, "up", "!", asks, "!", asks, "!")
	h := serve(t, rig{fakes: []proxy.Upstream{o}, rules: prices})
	costs := func(what, want string) {
		t.Helper()
		if e := h.last(); e.Status != audit.StatusError || string(e.CostUSD) != want {
			t.Errorf("%s: %s, $%s", what, e.Status, e.CostUSD)
		}
	}
	h.call("up__tool", `{}`)
	costs("the first round", "0")
	h.call("up__tool", `{}`)
	costs("a later round", "1")
	if sp := h.spent(); sp.Total != policy.USD || sp.Calls != 1 {
		t.Errorf("%s and %d calls are counted", sp.Total, sp.Calls)
	}
	o = newOracle(t, "up", "!", asks, "!", asks, asks, "!")
	h = serve(t, rig{fakes: []proxy.Upstream{o}, rules: prices, raw: true})
	h.first("up__tool", `{}`)
	costs("the first round of a modern host", "0")
	for rounds := range 2 {
		needs(t, h.first("up__tool", `{}`))
		for range rounds {
			needs(t, h.again("up__tool", `{}`, "s", nil))
		}
		h.again("up__tool", `{}`, "s", nil)
		costs("a later round of a modern host", "1")
	}
	if sp := h.spent(); sp.Total != 2*policy.USD || sp.Calls != 2 {
		t.Errorf("%s and %d calls are counted", sp.Total, sp.Calls)
	}
}

// The config holds for what a modern upstream needs of a legacy host.
func TestDenyRequestsBeforeALegacyHost(t *testing.T) {
	o := newOracle(t, "up", bothAsked, `{"resultType":"input_required","inputRequests":{"b":{"method":"made/up"}}}`, `{"resultType":"input_required","inputRequests":[]}`)
	o.denied = "sampling"
	books := newBooks()
	h := serve(t, rig{fakes: []proxy.Upstream{o}, adjust: func(opts *proxy.Options) {
		books.Ledger = opts.Ledger
		opts.Ledger = books
	}})
	if r := h.call("up__tool", `{}`); r.Error == nil || r.Error.Code != proxy.CodeRefused {
		t.Errorf("%s", r.line)
	}
	if list := h.find(audit.Filter{Status: audit.StatusDenied}); len(list) != 1 || list[0].Tool != "request:sampling/createMessage" {
		t.Errorf("on record: %+v", list)
	}
	for range 2 { // what cannot be read
		if r := h.call("up__tool", `{}`); r.Error == nil {
			t.Errorf("%s", r.line)
		}
	}
	h.mu.Lock()
	if len(h.lines) != 0 {
		t.Errorf("the host was asked: %v", h.lines)
	}
	h.mu.Unlock()
	h.over()
	if wrong := books.wrong(); wrong != nil {
		t.Errorf("not settled once: %v", wrong)
	}
}

// --- all at once

// crowd is an upstream that is slow at random and asks at random.
func crowd() *quiz {
	q := newQuiz("up", "tool")
	q.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) {
		i, _ := wire.At(c.Params, "arguments", "i")
		rest := func() bool {
			select {
			case <-time.After(time.Duration(rand.IntN(4000)) * time.Microsecond):
				return true
			case <-ctx.Done():
				return false
			}
		}
		if !rest() {
			return wire.Message{}, context.Cause(ctx)
		}
		for range rand.IntN(3) {
			if _, err := q.ask(ctx, "roots/list", `{"i":`+string(i.Value)+`}`); err != nil {
				return wire.Message{}, err
			}
			if !rest() {
				return wire.Message{}, context.Cause(ctx)
			}
		}
		return reply(mcptest.Text("of " + string(i.Value)))
	}
	return q
}

// A thousand calls at once with random cancels: each is answered once or was
// cancelled, and each ticket is settled once, also when the host is lost meanwhile.
func TestAThousandCalls(t *testing.T) {
	for _, era := range []string{"modern", "legacy"} {
		for _, dropped := range []string{"", "a signal", "the end of input", "a host that does not read"} {
			t.Run(era+" "+dropped, func(t *testing.T) {
				n := 1000
				if dropped != "" {
					n = 500
				}
				q := crowd()
				books := newBooks()
				r := rig{ledger: books, fakes: []proxy.Upstream{q}, raw: era == "modern"}
				h := serve(t, r)
				q.srv.Store(h.srv)
				if era == "legacy" {
					h.alive()
				}
				var mu sync.Mutex
				call := map[string]string{} // which call a request is
				cancelled := map[string]bool{}
				answered := map[string]int{} // by request
				done := map[string]int{}     // by call
				var lost atomic.Bool
				put := func(line string) {
					if _, err := h.in.Write([]byte(line + "\n")); err != nil && !lost.Load() {
						t.Errorf("the server reads no more: %v", err)
					}
				}
				send := func(i, state string, answers map[string]string) {
					id := h.nextID()
					mu.Lock()
					call[id] = i
					mu.Unlock()
					switch {
					case state != "":
						put(again(id, "up__tool", `{"i":`+i+`}`, state, answers))
					case era == "modern":
						put(modernLine(id, "tools/call", `{"name":"up__tool","arguments":{"i":`+i+`}}`, allCaps))
					default:
						put(`{"jsonrpc":"2.0","id":` + id + `,"method":"tools/call","params":{"name":"up__tool","arguments":{"i":` + i + `}}}`)
					}
					if rand.IntN(5) == 0 {
						mu.Lock()
						cancelled[i] = true
						mu.Unlock()
						put(cancelLine(id))
					}
				}
				var senders, answers sync.WaitGroup
				const hosts = 8
				for k := range hosts {
					senders.Go(func() {
						for i := k; i < n && !lost.Load(); i += hosts {
							send(fmt.Sprint(i), "", nil)
						}
					})
				}
				finish := func() bool {
					mu.Lock()
					defer mu.Unlock()
					if len(call) < n {
						return false
					}
					for i := range n {
						if k := fmt.Sprint(i); done[k] == 0 && !cancelled[k] {
							return false
						}
					}
					return true
				}
				take := func(line string) {
					m, err := wire.ParseLenient([]byte(line))
					switch {
					case err != nil:
						t.Errorf("%v: %s", err, line)
						return
					case m.IsRequest(): // a question, in the handshake era
						answers.Go(func() { put(`{"jsonrpc":"2.0","id":` + string(m.ID) + `,"result":{"roots":[]}}`) })
						return
					case m.IsNotification():
						if m.Method != "notifications/cancelled" || era == "modern" {
							t.Errorf("the host was told %s", line)
						}
						return
					}
					mu.Lock()
					i := call[string(m.ID)]
					answered[string(m.ID)]++
					twice := answered[string(m.ID)] > 1
					mu.Unlock()
					if twice || i == "" {
						t.Errorf("an answer too many: %s", line)
					}
					if kind, _ := wire.At(m.Result, "resultType"); string(kind.Value) == `"input_required"` {
						nd := needs(t, line)
						given := map[string]string{}
						for k := range nd.Requests {
							given[k] = `{"roots":[]}`
						}
						answers.Go(func() { send(i, nd.State, given) })
						return
					}
					r := parseResponse(t, line)
					mu.Lock()
					defer mu.Unlock()
					done[i]++
					if r.Text != "of "+i && !(lost.Load() && r.Error != nil) {
						t.Errorf("call %s: %s", i, line)
					}
				}
				for limit := time.Now().Add(4 * patience); !finish(); {
					if line := h.wait(20*time.Millisecond, anyLine); line != "" {
						take(line)
					} else if time.Now().After(limit) {
						t.Fatalf("not all are answered; the log: %s", clip(h.log.String()))
					}
					mu.Lock()
					half := len(done) > n/3
					mu.Unlock()
					if dropped != "" && half {
						lost.Store(true)
						break
					}
				}
				switch dropped {
				case "a signal":
					h.stop()
				case "the end of input":
					_ = h.in.Close()
				case "a host that does not read":
					h.deaf.Store(true)
					h.stop()
					// What haldir has written last nobody takes.
				default:
					senders.Wait()
					answers.Wait()
					h.stop()
				}
				if dropped == "a host that does not read" {
					time.Sleep(moment)
					h.deaf.Store(false)
				}
				select {
				case <-h.done:
				case <-time.After(2 * patience):
					t.Fatal("Serve does not return")
				}
				lost.Store(true)
				_ = h.in.Close()
				senders.Wait()
				answers.Wait()
				for line := h.wait(0, anyLine); line != ""; line = h.wait(0, anyLine) {
					if dropped == "" {
						take(line)
					}
				}
				if wrong := books.wrong(); wrong != nil {
					t.Errorf("%d of %d tickets are not settled once: %.300v", len(wrong), books.count(), wrong)
				}
				for i, k := range done {
					if k != 1 {
						t.Errorf("call %s was answered %d times", i, k)
					}
				}
				if got := len(q.called()); dropped == "" && got > n {
					t.Errorf("%d calls have reached the upstream", got)
				}
				mu.Lock()
				t.Logf("%d requests, %d calls answered, %d cancelled, %d on record", len(call), len(done), len(cancelled), books.count())
				mu.Unlock()
			})
		}
	}
}

// A session that is revoked between two rounds: the call does not go on, and is
// settled.
func TestARevokedSessionDoesNotGoOn(t *testing.T) {
	q := newQuiz("up", "tool")
	q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
		a, err := q.ask(ctx, "roots/list", "")
		if err != nil {
			return wire.Message{}, err
		}
		return reply(mcptest.Text(a))
	}
	h := quizzed(t, q, rig{})
	n := needs(t, h.first("up__tool", `{}`))
	if _, err := h.led.Revoke(t.Context(), session, false); err != nil {
		t.Fatal(err)
	}
	why := parseResponse(t, h.again("up__tool", `{}`, n.State, map[string]string{n.key(t): `{"roots":[]}`})).refusal(t)
	if why.Rule != "revoked" {
		t.Errorf("%+v", why)
	}
	eventually(t, "it is settled", func() bool { return h.find(audit.Filter{Calls: true})[0].Status == audit.StatusError })
}

// A rule that is added between two rounds holds for the second: what is forbidden now does
// not go on, and where a person has to be asked now, who was not, it begins anew. A change
// that is about something else ends nothing, nor does a new rule a call that a person has
// allowed.
func TestARuleIsAddedBetweenTwoRounds(t *testing.T) {
	const asks = `{"resultType":"input_required","inputRequests":{"r":{"method":"roots/list"}},"requestState":"s"}`
	const done = `{"content":[{"type":"text","text":"DONE"}],"resultType":"complete"}`
	rule := func(kind policy.Type, id, tool string) policy.Ruleset {
		return policy.Ruleset{Policies: []policy.Rule{{Type: kind, ID: id, Tools: []string{tool}}}}
	}
	both := func(a, b policy.Ruleset) policy.Ruleset {
		return policy.Ruleset{Policies: slices.Concat(a.Policies, b.Policies)}
	}
	for name, c := range map[string]struct {
		before, after policy.Ruleset
		says          string // in the refusal; it goes on if it is empty
		retryable     bool
	}{
		"another one beside it":     {before: rule(policy.TypeApproval, "old", "tool"), after: both(rule(policy.TypeApproval, "old", "tool"), rule(policy.TypeApproval, "new", "tool")), says: "Make the call again", retryable: true},
		"behind a limit of its own": {before: once, after: both(once, rule(policy.TypeApproval, "new", "tool")), says: "Make the call again", retryable: true},
		"deny":                      {after: rule(policy.TypeDeny, "new", "tool"), says: "deny list"},
		"require_approval":          {after: rule(policy.TypeApproval, "new", "tool"), says: "Make the call again", retryable: true},
		"of another tool":           {after: rule(policy.TypeApproval, "new", "other")},
		"a person was asked":        {before: rule(policy.TypeApproval, "old", "tool"), after: rule(policy.TypeApproval, "old", "to*")},
		"by another rule":           {before: rule(policy.TypeApproval, "old", "tool"), after: rule(policy.TypeApproval, "new", "tool"), says: "Make the call again", retryable: true},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOracle(t, "up", asks, done)
			h := serve(t, rig{fakes: []proxy.Upstream{o}, raw: true, rules: c.before})
			n := needs(t, h.first("up__tool", `{}`))
			asked := 0
			if n.State != "s" {
				asked = 1
				n = needs(t, h.again("up__tool", `{}`, n.State, map[string]string{"haldir_approval": `{"action":"accept","content":{"decision":"once"}}`}))
			}
			e, err := policy.Compile(c.after)
			if err != nil {
				t.Fatal(err)
			}
			h.srv.Adopt(proxy.Rules{
				Engine: e, Use: ledger.Use{ID: session, Terms: &ledger.Terms{Agent: agent, AllScopes: true}}, Agent: agent, Config: audit.Hash{7},
				Session: policy.SessionState{ID: session, AllScopes: true}, Detail: audit.DetailFull, NameLimit: 89, ListWait: time.Second, Upstreams: []proxy.Upstream{o},
			})
			r := parseResponse(t, h.again("up__tool", `{}`, n.State, map[string]string{"r": `{"roots":[]}`}))
			if c.says == "" {
				if r.Text != "DONE" || len(o.called()) != 2 {
					t.Errorf("it does not go on: %s", r.line)
				}
				return
			}
			why := r.refusal(t)
			if why.Rule != "new" || !strings.Contains(why.Error, c.says) || why.Retryable != c.retryable || strings.Contains(why.Error, "Do not retry") == c.retryable {
				t.Errorf("%+v", why)
			}
			if got := len(o.called()); got != 1 {
				t.Errorf("the upstream was called %d times", got)
			}
			if list := h.find(audit.Filter{Calls: true}); len(list) != 1+asked || list[len(list)-1].Status != audit.StatusError {
				t.Errorf("on record: %+v", list)
			}
		})
	}
}

// A host of the handshake era makes a call once, and is asked in between: a modern upstream's
// next round is judged all the same, by what holds when the host has answered. What ends so
// has been sent, and is paid for.
func TestALaterRoundBeforeALegacyHostIsJudged(t *testing.T) {
	const asks = `{"resultType":"input_required","inputRequests":{"r":{"method":"roots/list"}},"requestState":"s"}`
	adopt := func(h *host, o *oracle, rules policy.Ruleset) {
		t.Helper()
		rules.Costs = prices.Costs
		e, err := policy.Compile(rules)
		if err != nil {
			t.Fatal(err)
		}
		h.srv.Adopt(proxy.Rules{
			Engine: e, Use: ledger.Use{ID: session, Terms: &ledger.Terms{Agent: agent, AllScopes: true}}, Agent: agent, Config: audit.Hash{7},
			Session: policy.SessionState{ID: session, AllScopes: true}, Detail: audit.DetailFull, NameLimit: 89, ListWait: time.Second, Upstreams: []proxy.Upstream{o},
		})
	}
	rule := func(r policy.Rule) policy.Ruleset { return policy.Ruleset{Policies: []policy.Rule{r}} }
	for name, c := range map[string]struct {
		meanwhile func(h *host, o *oracle)
		rule      string // that refuses; it goes on if it is empty
	}{
		"a stop": {func(h *host, _ *oracle) {
			if _, err := openLedger(t, h.dir).Stop(t.Context(), "enough"); err != nil {
				t.Fatal(err)
			}
		}, ledger.PolicyStopped},
		"a revocation": {func(h *host, _ *oracle) {
			if _, err := openLedger(t, h.dir).Revoke(t.Context(), session, false); err != nil {
				t.Fatal(err)
			}
		}, "revoked"},
		"a deny rule": {func(h *host, o *oracle) {
			adopt(h, o, rule(policy.Rule{Type: policy.TypeDeny, ID: "new", Tools: []string{"tool"}}))
		}, "new"},
		"a person to be asked": {func(h *host, o *oracle) {
			adopt(h, o, rule(policy.Rule{Type: policy.TypeApproval, ID: "new", Tools: []string{"tool"}}))
		}, "new"},
		"a rule about another tool": {func(h *host, o *oracle) {
			adopt(h, o, rule(policy.Rule{Type: policy.TypeDeny, ID: "new", Tools: []string{"other"}}))
		}, ""},
		"a limit that the call itself has used up": {func(h *host, o *oracle) { adopt(h, o, once) }, ""},
		"nothing": {func(*host, *oracle) {}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOracle(t, "up", asks, finished)
			rules := once
			rules.Costs = prices.Costs
			h := serve(t, rig{fakes: []proxy.Upstream{o}, rules: rules})
			h.send(`{"jsonrpc":"2.0","id":"c","method":"tools/call","params":{"name":"up__tool","arguments":{}}}`)
			id, _ := h.asked("roots/list")
			c.meanwhile(h, o)
			h.send(`{"jsonrpc":"2.0","id":` + id + `,"result":{"roots":[]}}`)
			r := parseResponse(t, h.answer(`"c"`))
			if c.rule == "" {
				if r.Text != "done" || len(o.called()) != 2 {
					t.Errorf("it does not go on: %s", r.line)
				}
				return
			}
			if why := r.refusal(t); why.Rule != c.rule {
				t.Errorf("%+v", why)
			}
			if n := len(o.called()); n != 1 {
				t.Errorf("the upstream was called %d times", n)
			}
			if e := h.find(audit.Filter{Calls: true}); len(e) != 1 || e[0].Status != audit.StatusError || string(e[0].CostUSD) != "1" {
				t.Errorf("on record: %+v", e)
			}
		})
	}
}

// A revocation with the calls ends those, too, that wait for the host between two rounds: at
// the upstream, where it has the call still, and on record in any case.
func TestARevocationFindsACallBetweenTwoRounds(t *testing.T) {
	for _, modern := range []bool{false, true} {
		t.Run(fmt.Sprintf("modern upstream %v", modern), func(t *testing.T) {
			var h *host
			ended := make(chan struct{})
			if modern {
				close(ended) // the upstream keeps nothing of it
				o := newOracle(t, "up", `{"resultType":"input_required","inputRequests":{"r":{"method":"roots/list"}},"requestState":"s"}`)
				h = serve(t, rig{fakes: []proxy.Upstream{o}, raw: true})
			} else {
				q := newQuiz("up", "tool")
				q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
					defer close(ended)
					a, err := q.ask(ctx, "roots/list", "")
					if err != nil {
						return wire.Message{}, err
					}
					return reply(mcptest.Text(a))
				}
				h = quizzed(t, q, rig{})
			}
			n := needs(t, h.first("up__tool", `{}`))
			if _, err := openLedger(t, h.dir).Revoke(t.Context(), session, true); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is settled", func() bool {
				e := h.find(audit.Filter{Calls: true})[0]
				return e.Status == audit.StatusCancelled && strings.Contains(e.FlagReason, "revoked")
			})
			<-ended
			r := parseResponse(t, h.again("up__tool", `{}`, n.State, map[string]string{"r": `{"roots":[]}`}))
			switch {
			case modern: // to which it is a new one
				if why := r.refusal(t); why.Rule != "revoked" {
					t.Errorf("%+v", why)
				}
			case r.Error == nil || r.Error.Code != wire.CodeInvalidParams:
				t.Errorf("it goes on: %s", r.line)
			}
		})
	}
}

// A completion cannot ask for anything, whoever answers it.
func TestACompletionAsksForNothing(t *testing.T) {
	const asks = `"resultType":"input_required","inputRequests":{"a":{"method":"sampling/createMessage","params":{}}}`
	for _, result := range []string{`{` + asks + `}`, `{"resultType":"complete",` + asks + `}`} {
		for _, modern := range []bool{false, true} {
			l := newLibrary("a", nil, nil, []string{"greet"})
			l.denied = []string{"sampling"}
			l.fake.mu.Lock()
			l.catalogue.Modern = modern
			l.fake.mu.Unlock()
			up := &completing{l, result}
			h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true})
			line := h.ask(modernLine(`1`, "completion/complete", `{"ref":{"type":"ref/prompt","name":"a__greet"},"argument":{"name":"x","value":""}}`, allCaps))
			if strings.Contains(line, "input_required") {
				t.Errorf("modern %v: %s", modern, line)
			}
		}
	}
}

type completing struct {
	*library
	result string
}

func (c *completing) Call(context.Context, upstream.Call) (wire.Message, error) {
	return reply(c.result)
}

// The error by which MCP 2025-11-25 asks for URLs to be opened is a question to a
// modern host, and the call that follows is the same call.
func TestURLsToBeOpened(t *testing.T) {
	const open = `{"mode":"url","elicitationId":"e","url":"https://example.com/x","message":"sign in"}`
	opened := false
	q := newQuiz("up", "tool")
	q.do = func(context.Context, upstream.Call) (wire.Message, error) {
		if opened {
			return reply(mcptest.Text("done"))
		}
		return wire.ParseLenient([]byte(`{"jsonrpc":"2.0","id":1,"error":{"code":-32042,"message":"sign in first","data":{"elicitations":[` + open + `]}}}`))
	}
	h := quizzed(t, q, rig{rules: once})
	n := needs(t, h.first("up__tool", `{}`))
	if got := n.Requests[n.key(t)]; got.Method != "elicitation/create" || string(got.Params) != open {
		t.Fatalf("the question is %s", n.line)
	}
	opened = true
	if r := parseResponse(t, h.again("up__tool", `{}`, n.State, map[string]string{n.key(t): `{"action":"accept"}`})); r.Text != "done" {
		t.Errorf("%s", r.line)
	}
	if list := h.entries(); len(list) != 1 || list[0].Status != audit.StatusAllowed {
		t.Errorf("on record: %+v", list)
	}
	opened = false
	h = quizzed(t, q, rig{})
	r := parseResponse(t, h.ask(modernLine(`"c"`, "tools/call", `{"name":"up__tool"}`, `{"elicitation":{}}`)))
	if r.Error == nil || r.Error.Code != wire.CodeMissingCapability || !strings.Contains(r.line, `"requiredCapabilities":{"elicitation":{"url":{}}}`) {
		t.Errorf("a host without URLs: %s", r.line)
	}
}

// deny_requests: [elicitation] holds for the error by which URLs are to be opened, too, for
// hosts of both eras, however it is written; other errors, and other upstreams, pass.
func TestURLsThatMustNotBeOpened(t *testing.T) {
	const open = `"data":{"elicitations":[{"elicitationId":"e","url":"https://example.com/x","message":"sign in"}]}`
	for name, c := range map[string]struct {
		denied, fault string
		passes        bool
	}{
		"as it should be":     {denied: "elicitation", fault: `{"code":-32042,"message":"m",` + open + `}`},
		"another number":      {denied: "elicitation", fault: `{"code":-3.2042e4,"message":"m",` + open + `}`},
		"the code twice":      {denied: "elicitation", fault: `{"code":1,"code":-32042,"message":"m",` + open + `}`},
		"the code by case":    {denied: "elicitation", fault: `{"Code":-32042,"message":"m",` + open + `}`},
		"another error":       {denied: "elicitation", fault: `{"code":-32043,"message":"m",` + open + `}`, passes: true},
		"another is denied":   {denied: "sampling", fault: `{"code":-32042,"message":"m",` + open + `}`, passes: true},
		"nothing is denied":   {fault: `{"code":-32042, "message":"m",` + open + `}`, passes: true},
		"an error without it": {denied: "elicitation", fault: `{"message":"m"}`, passes: true},
	} {
		for _, modern := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, modern host %v", name, modern), func(t *testing.T) {
				q := newQuiz("up", "tool")
				q.denied = c.denied
				q.do = func(context.Context, upstream.Call) (wire.Message, error) {
					return wire.ParseLenient([]byte(`{"jsonrpc":"2.0","id":1,"error":` + c.fault + `}`))
				}
				h := serve(t, rig{fakes: []proxy.Upstream{q}, raw: modern, lax: true})
				q.srv.Store(h.srv)
				_, line := h.callLine("up__tool", `{}`)
				if modern {
					line = h.first("up__tool", `{}`)
				} else {
					line = h.ask(line)
				}
				records := len(h.find(audit.Filter{Status: audit.StatusDenied, Tool: "request:elicitation/create"}))
				switch code, _ := wire.At([]byte(line), "error", "code"); {
				case c.passes && (records != 0 || !modern && !strings.Contains(line, c.fault) || strings.Contains(line, "deny_requests")):
					t.Errorf("it does not pass: %s", line)
				case !c.passes && (string(code.Value) != fmt.Sprint(proxy.CodeRefused) || strings.Contains(line, "example.com") || records != 1):
					t.Errorf("%s; %d on record", line, records)
				}
			})
		}
	}
}
