package proxy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

const clientForms = `{"protocolVersion":"2025-11-25","capabilities":` + forms + `,"clientInfo":{"name":"host","version":"1"}}`

// greetWithForms introduces a host that shows forms.
func (h *host) greetWithForms() {
	h.t.Helper()
	h.ask(`{"jsonrpc":"2.0","id":"init","method":"initialize","params":` + clientForms + `}`)
	h.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
}

// each is how often an interleaving is tried.
const each = 10

// Whoever is first, there is one outcome: the call is made once or not at all, the host gets
// one answer, and the audit says the same.
func TestEveryRaceHasOneOutcome(t *testing.T) {
	says := func(h *host, id, result string) { h.shout(`{"jsonrpc":"2.0","id":` + id + `,"result":` + result + `}`) }
	form := func(h *host, id, _, _ string) { says(h, id, decision("once")) }
	denied := func(h *host, id, _, _ string) { says(h, id, decision("deny")) }
	closed := func(h *host, id, _, _ string) { says(h, id, `{"action":"cancel"}`) }
	terminal := func(h *host, _, request, _ string) {
		_, err := h.led.Answer(context.Background(), request, ledger.Answer{Allow: true, Channel: ledger.ChannelTerminal})
		if err != nil && !errors.Is(err, ledger.ErrNoApproval) {
			h.t.Error(err)
		}
	}
	console := func(h *host, _, request, _ string) {
		_, err := h.led.Answer(context.Background(), request, ledger.Answer{Channel: ledger.ChannelConsole})
		if err != nil && !errors.Is(err, ledger.ErrNoApproval) {
			h.t.Error(err)
		}
	}
	cancel := func(h *host, _, _, call string) {
		h.shout(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":` + call + `}}`)
	}
	revoke := func(h *host, _, _, _ string) {
		if _, err := h.led.Revoke(context.Background(), session, true); err != nil {
			h.t.Error(err)
		}
	}
	stop := func(h *host, _, _, _ string) { h.stop() }
	for name, acts := range map[string][]func(h *host, form, request, call string){
		"form and terminal":         {form, terminal},
		"form and denial elsewhere": {form, console},
		"denial and terminal":       {denied, terminal},
		"three answers":             {form, terminal, console},
		"form twice":                {form, form},
		"form and cancel":           {form, cancel},
		"terminal and cancel":       {terminal, cancel},
		"closed and terminal":       {closed, terminal},
		"form and shutdown":         {form, stop},
		"terminal and shutdown":     {terminal, stop},
		"form and revocation":       {form, revoke},
		"all":                       {form, terminal, cancel, console, denied, revoke, stop},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range each {
				h, up := asking(t, forms)
				watching, err := h.led.Watch()
				if err != nil {
					t.Fatal(err)
				}
				call := h.begin("db__drop", `{"n":1}`)
				id, _ := h.formed()
				request := h.waiting(1)[0].ID
				go1 := make(chan struct{})
				var wg sync.WaitGroup
				for _, act := range acts {
					wg.Go(func() { <-go1; act(h, id, request, call) })
				}
				close(go1)
				wg.Wait()
				silent := slices.ContainsFunc([]string{"cancel", "shutdown", "all"}, func(s string) bool { return strings.Contains(name, s) })
				var line string
				if !silent { // else there may be no answer
					line = h.answer(call)
				}
				h.over()
				watching()
				if extra := h.wait(0, hasID(call)); extra != "" && line != "" {
					t.Errorf("a second answer: %s", extra)
				}
				outcome(t, h, up, line)
			}
		})
	}
}

// shout is send to a server that may have stopped reading.
func (h *host) shout(line string) {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.WriteString(h.in, line+"\n")
	}()
	select {
	case <-sent:
	case <-h.done:
	}
}

// outcome checks that what reached the upstream, the audit, and the answer are one story.
func outcome(t *testing.T, h *host, up *fake, line string) {
	t.Helper()
	called := len(up.called())
	var asked, made, decided int
	for _, e := range h.find(audit.Filter{Limit: 100}) {
		if e.Kind != audit.KindAttempt.String() || e.Tool != "drop" {
			continue
		}
		switch e.Status {
		case audit.StatusApproved:
			asked, decided = asked+1, decided+1
		case audit.StatusDenied:
			if e.Approval == "" && e.Policy == policy.PolicySession { // allowed, and then revoked
				continue
			}
			asked++
		case audit.StatusAllowed:
			made++
		case audit.StatusCancelled, audit.StatusError: // allowed, and then withdrawn
		default:
			t.Errorf("the audit has %s of %s", e.Status, e.Approval)
		}
	}
	if asked != 1 || called > 1 || called > decided || made > called {
		t.Errorf("asked %d times, allowed %d, called %d, and made %d by the audit", asked, decided, called, made)
	}
	if line != "" {
		r := parseResponse(t, line)
		if (r.Error == nil && !r.IsError) != (called == 1) {
			t.Errorf("called %d times, and the host was told %s", called, clip(line))
		}
	}
	if list, err := h.led.Approvals(context.Background()); err != nil || slices.ContainsFunc(list, func(p ledger.Approval) bool { return p.Waiting }) {
		t.Errorf("it still waits: %+v %v", list, err)
	}
}

// Two hosts, each a process of haldir, ask about the same call; each word is for one.
func TestTwoHostsAndOneLedger(t *testing.T) {
	dir := t.TempDir() + "/state"
	rules := policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeApproval, Tools: []string{"drop"}}}}
	begin := func() (*host, *fake, *ledger.Ledger) {
		led, up := openLedger(t, dir), newFake("db", "drop")
		h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true, rules: rules, ledger: led})
		h.led = led
		h.greetWithForms()
		return h, up, led
	}
	a, upA, led := begin()
	b, upB, _ := begin()
	for range each {
		callA, callB := a.begin("db__drop", `{}`), b.begin("db__drop", `{}`)
		idA, _ := a.formed()
		idB, _ := b.formed()
		list := a.waiting(2)
		// The form of one is answered in it, that of the other elsewhere, both at once.
		var wg sync.WaitGroup
		wg.Go(func() { a.says(idA, decision("once")) })
		wg.Go(func() {
			for _, p := range list { // one of both is answered in its form already, or will find this one
				_, err := led.Answer(context.Background(), p.ID, ledger.Answer{Allow: true, Channel: ledger.ChannelTerminal})
				if err != nil && !errors.Is(err, ledger.ErrNoApproval) {
					t.Error(err)
				}
			}
		})
		wg.Wait()
		if r := a.end(callA); r.IsError {
			t.Errorf("the first: %s", r.line)
		}
		if r := b.end(callB); r.IsError {
			t.Errorf("the second: %s", r.line)
		}
		b.says(idB, decision("once")) // too late
		a.waiting(0)
	}
	if na, nb := len(upA.called()), len(upB.called()); na != each || nb != each {
		t.Errorf("%d and %d calls, want %d each", na, nb, each)
	}
	// What was for one is not for the other. The forms of both are numbered apart.
	extra := a.begin("db__drop", `{"x":0}`)
	idA, _ := a.formed()
	a.says(idA, decision("deny"))
	a.end(extra)
	callA, callB := a.begin("db__drop", `{"x":1}`), b.begin("db__drop", `{"x":1}`)
	idA, _ = a.formed()
	idB, _ := b.formed()
	a.says(idA, decision("once"))
	a.end(callA)
	a.says(idB, decision("once")) // an id that is b's
	b.says(idA, decision("once")) // and one that is a's, or was answered
	b.alive()
	b.waiting(1)
	b.says(idB, decision("deny"))
	if r := b.end(callB); !r.IsError {
		t.Errorf("%s", r.line)
	}
}

// A host may answer anything at all.
func TestOddAnswersToTheForm(t *testing.T) {
	h, up := asking(t, forms)
	stop, err := h.led.Watch() // so that what is no decision ends nothing
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for _, answer := range []string{
		`{"action":"accept","content":{"decision":"once","decision":"deny"}}`,
		`{"action":"accept","content":{"decision":["once"]}}`, `{"action":"accept","content":{"decision":{"const":"once"}}}`, `{"action":"accept","content":"once"}`,
		`{"action":"accept","content":null}`, `{"action":["accept"],"content":{"decision":"once"}}`, `{"action":"accept","content":{"Decision":"once"}}`,
		`{"action":"accept","content":{"decision":" once"}}`, `{"action":"accept","content":{"decision":"ONCE"}}`, `{"action":"accept","content":{"decision":1}}`,
		`{"action":"accept","content":{"note":"once"}}`, `{"decision":"once"}`, `"once"`, `true`, `1e400`,
		`{"action":"accept","content":{"decision":"` + strings.Repeat("once", 100_000) + `"}}`,
		`{"action":"accept","x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `,"content":{}}`,
	} {
		call := h.begin("db__drop", `{"n":1}`)
		id, _ := h.formed()
		h.says(id, answer)
		h.alive()
		if n := len(up.called()); n != 0 {
			t.Fatalf("%s let %d calls through", clip(answer), n)
		}
		p := h.waiting(1)[0]
		if _, err := h.led.Answer(t.Context(), p.ID, ledger.Answer{Channel: ledger.ChannelTerminal, Note: "no"}); err != nil {
			t.Fatal(err)
		}
		if r := h.end(call); !r.IsError {
			t.Errorf("%s: %s", clip(answer), r.line)
		}
	}
	// An odd note is no reason to misunderstand the decision.
	for _, note := range []string{`"a\u0000\u001b[2J\u202eb"`, `{"a":1}`, `null`, `"` + strings.Repeat("é", 100_000) + `"`} {
		call := h.begin("db__drop", `{"n":1}`)
		id, _ := h.formed()
		h.says(id, `{"action":"accept","content":{"decision":"deny","note":`+note+`},"_meta":{"x":[1,2]}}`)
		r := h.end(call).refusal(t)
		if !strings.Contains(r.Error, "denied by elicitation") || strings.ContainsAny(r.Error, "\x00\x1b\u202e") || len(r.Error) > 3000 {
			t.Errorf("%s: %q", clip(note), clip(r.Error))
		}
	}
}

// What the agent and the upstream have written is shown as it is, and in its place.
func TestTheWordsOfTheFormAreSafe(t *testing.T) {
	nasty := "a\x1b[31mb\u202ec\u200bd\ne\r\u2028f\x00g**h**[i](http://j)`k`"
	quoted, err := json.Marshal(nasty)
	if err != nil {
		t.Fatal(err)
	}
	long := "drop_" + strings.Repeat("x", 100)
	up := newFake("db", long)
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true, rules: policy.Ruleset{
		Costs: []policy.Cost{{Tools: []string{"*"}, USD: 12_340_000}}, Policies: []policy.Rule{{Type: policy.TypeApproval, ID: "word", Tools: []string{"*"}}},
	}, adjust: func(o *proxy.Options) {
		o.Clean = func(s string) string { return strings.ReplaceAll(s, "hunter2", "[hidden]") }
	}})
	h.greetWithForms()
	name := h.others()[0]
	for arguments, want := range map[string]string{
		`{"text":` + string(quoted) + `}`:              "⟨U+001B⟩",
		`{` + string(quoted) + `:1}`:                   "⟨U+202E⟩",
		`{"password":"hunter2 and more"}`:              "password: [hidden] and more",
		`{}`:                                           "without arguments",
		`{"a":"` + strings.Repeat("y\\n", 9000) + `"}`: "approvals show apr_",
	} {
		call := h.begin(name, arguments)
		id, message := h.formed()
		lines := strings.Split(message, "\n")
		if len(lines) < 3 || !strings.Contains(lines[0], "db/drop_xxx") || !strings.HasSuffix(lines[0], "for $12.34?") || !strings.HasPrefix(lines[2], "word asks · apr_") {
			t.Errorf("the first lines: %q", lines[:min(3, len(lines))])
		}
		for i, line := range lines[:min(3, len(lines))] {
			if n := len([]rune(line)); n > 76 {
				t.Errorf("line %d has %d characters", i+1, n)
			}
		}
		for _, r := range message {
			if r != '\n' && (r < 0x20 || r == 0x202e || r == 0x200b || r == 0x2028) {
				t.Errorf("%U is in the form", r)
			}
		}
		if !strings.Contains(message, want) || strings.Contains(message, "hunter2") || len(message) > 40_000 {
			t.Errorf("%s: %s", clip(arguments), clip(message))
		}
		for _, p := range h.waiting(1) {
			if strings.Contains(string(p.Arguments), "hunter2") {
				t.Errorf("the terminal and the page show a secret: %s", p.Arguments)
			}
		}
		h.says(id, decision("once"))
		if r := h.end(call); r.IsError || r.Error != nil {
			t.Fatal(r.line)
		}
		if last := up.called(); !strings.Contains(last[len(last)-1], arguments) {
			t.Errorf("other bytes went upstream: %s", clip(last[len(last)-1]))
		}
	}
}

// While a person is asked the config changes: the call is judged by what holds when it goes
// on, and a word that was about other rules is none.
func TestTheConfigChangesWhileACallWaits(t *testing.T) {
	ask := policy.Rule{Type: policy.TypeApproval, ID: "word", Tools: []string{"drop"}}
	adopt := func(h *host, up *fake, config byte, rs ...policy.Rule) {
		h.t.Helper()
		e, err := policy.Compile(policy.Ruleset{Policies: rs})
		if err != nil {
			h.t.Fatal(err)
		}
		r := proxy.Rules{
			Engine: e, Use: ledger.Use{ID: session, Terms: &ledger.Terms{Agent: agent, AllScopes: true}}, Agent: agent, Config: audit.Hash{config},
			Session: policy.SessionState{ID: session, AllScopes: true}, Detail: audit.DetailFull, NameLimit: 89, ListWait: time.Second,
		}
		if up != nil {
			r.Upstreams = []proxy.Upstream{up}
		}
		h.srv.Adopt(r)
	}
	begin := func(t *testing.T) (h *host, up *fake, call, form string) {
		h, up = asking(t, forms)
		adopt(h, up, 1, ask)
		call = h.begin("db__drop", `{"n":1}`)
		form, _ = h.formed()
		return h, up, call, form
	}
	t.Run("it denies now", func(t *testing.T) {
		h, up, call, form := begin(t)
		adopt(h, up, 2, ask, policy.Rule{Type: policy.TypeDeny, Tools: []string{"drop"}})
		h.says(form, decision("once"))
		if r := h.end(call).refusal(t); r.Policy != "deny" || len(up.called()) != 0 {
			t.Errorf("%+v, and %d calls", r, len(up.called()))
		}
	})
	t.Run("it asks still", func(t *testing.T) {
		h, up, call, form := begin(t)
		adopt(h, up, 2, ask, policy.Rule{Type: policy.TypeDeny, Tools: []string{"other"}})
		h.says(form, decision("once"))
		form, _ = h.formed()
		if n := len(up.called()); n != 0 {
			t.Fatalf("%d calls by a word about other rules", n)
		}
		h.says(form, decision("once"))
		if r := h.end(call); r.IsError || len(up.called()) != 1 {
			t.Errorf("%s, and %d calls", r.line, len(up.called()))
		}
	})
	t.Run("it asks no more", func(t *testing.T) {
		h, up, call, form := begin(t)
		adopt(h, up, 2)
		h.says(form, decision("once"))
		if r := h.end(call); r.IsError || len(up.called()) != 1 {
			t.Errorf("%s, and %d calls", r.line, len(up.called()))
		}
	})
	t.Run("the same rules, said anew", func(t *testing.T) {
		h, up, call, form := begin(t)
		adopt(h, up, 1, ask)
		h.says(form, decision("once"))
		if r := h.end(call); r.IsError || len(up.called()) != 1 {
			t.Errorf("%s, and %d calls", r.line, len(up.called()))
		}
	})
	t.Run("the server is gone", func(t *testing.T) {
		h, up, call, form := begin(t)
		adopt(h, nil, 1, ask)
		h.says(form, decision("once"))
		if r := h.end(call).refusal(t); !strings.Contains(r.Error, "is gone") || len(up.called()) != 0 {
			t.Errorf("%+v, and %d calls", r, len(up.called()))
		}
	})
	t.Run("another server in its place", func(t *testing.T) {
		h, up, call, form := begin(t)
		now := newFake("db", "drop", "read")
		adopt(h, now, 1, ask)
		h.says(form, decision("once"))
		if r := h.end(call); r.IsError || len(up.called()) != 0 || len(now.called()) != 1 {
			t.Errorf("%s; the one of before was called %d times, that of now %d", r.line, len(up.called()), len(now.called()))
		}
	})
	t.Run("the tool is another one", func(t *testing.T) {
		h, up, call, form := begin(t)
		up.define(json.RawMessage(`{"name":"drop","description":"and all backups","inputSchema":{"type":"object"}}`))
		h.says(form, decision("once"))
		form, _ = h.formed()
		if n := len(up.called()); n != 0 {
			t.Fatalf("%d calls of a tool that nobody has allowed", n)
		}
		h.says(form, decision("deny"))
		h.end(call).refusal(t)
	})
	t.Run("the tool is gone", func(t *testing.T) {
		h, up, call, form := begin(t)
		up.set("read")
		h.says(form, decision("once"))
		if r := h.end(call).refusal(t); !strings.Contains(r.Error, "is gone") || len(up.called()) != 0 {
			t.Errorf("%+v, and %d calls", r, len(up.called()))
		}
	})
}

// busy is a ledger that fails at times.
type busy struct {
	*ledger.Ledger
	answer, reserve atomic.Bool
}

var errBusy = fmt.Errorf("for a test: %w", ledger.ErrBusy)

func (b *busy) Answer(ctx context.Context, id string, a ledger.Answer) (ledger.Approval, error) {
	if b.answer.Load() {
		return ledger.Approval{}, errBusy
	}
	return b.Ledger.Answer(ctx, id, a)
}

func (b *busy) Reserve(ctx context.Context, a ledger.Attempt, d ledger.Decider) (ledger.Ticket, policy.Decision, error) {
	if b.reserve.Load() && a.Grant != "" {
		return ledger.Ticket{}, policy.Decision{Verdict: policy.Allow}, errBusy
	}
	return b.Ledger.Reserve(ctx, a, d)
}

// The ledger is busy just when a person has answered: the call is refused, and what the
// person says is for the next one.
func TestAPersonsWordSurvivesABusyLedger(t *testing.T) {
	for name, at := range map[string]func(*busy) *atomic.Bool{
		"at the answer": func(b *busy) *atomic.Bool { return &b.answer }, "at the call": func(b *busy) *atomic.Bool { return &b.reserve },
	} {
		t.Run(name, func(t *testing.T) {
			led := &busy{Ledger: openLedger(t, t.TempDir()+"/state")}
			up := newFake("db", "drop")
			h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true, ledger: led, rules: policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeApproval, Tools: []string{"drop"}}}}})
			h.led = led.Ledger
			h.greetWithForms()
			call := h.begin("db__drop", `{}`)
			id, _ := h.formed()
			at(led).Store(true)
			h.says(id, decision("once"))
			if r := h.end(call).refusal(t); !r.Retryable || r.Policy != "ledger" || len(up.called()) != 0 {
				t.Errorf("%+v", r)
			}
			at(led).Store(false)
			if at(led) == &led.answer { // it is listed, and can be allowed still
				var p ledger.Approval
				eventually(t, "it is listed", func() bool { p = h.waiting(1)[0]; return !p.Waiting })
				h.allow(p.ID, ledger.Answer{})
			} else if err := h.led.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := h.must("db__drop", `{}`); got != "done" {
				t.Errorf("the next: %s", got)
			}
			h.waiting(0)
		})
	}
}

// gated is a ledger that lets a call through and does not say so yet.
type gated struct {
	*ledger.Ledger
	let  chan struct{} // one was let through
	open chan struct{}
}

func (g *gated) Reserve(ctx context.Context, a ledger.Attempt, d ledger.Decider) (ledger.Ticket, policy.Decision, error) {
	ticket, decision, err := g.Ledger.Reserve(ctx, a, d)
	if a.Call.Tool == "gated" {
		g.let <- struct{}{}
		<-g.open
	}
	return ticket, decision, err
}

// A revocation that cancels finds a call, too, that was let through and has not begun.
func TestARevocationFindsACallThatIsAboutToBegin(t *testing.T) {
	led := &gated{openLedger(t, t.TempDir()+"/state"), make(chan struct{}), make(chan struct{})}
	up := newFake("db", "gated", "long")
	up.do = hang
	h := serve(t, rig{fakes: []proxy.Upstream{up}, ledger: led})
	h.led = led.Ledger
	long := h.begin("db__long", `{}`) // for which it is looked whether the session is revoked
	eventually(t, "the long call is under way", func() bool { return len(up.called()) == 1 })
	call := h.begin("db__gated", `{}`)
	<-led.let
	if _, err := h.led.Revoke(t.Context(), session, true); err != nil {
		t.Fatal(err)
	}
	if r := h.end(long); r.Error == nil || !strings.Contains(r.Error.Message, "revoked") {
		t.Errorf("the one that was under way: %s", r.line)
	}
	again := h.begin("db__long", `{}`)
	h.end(again).refusal(t)
	close(led.open)
	if r := h.end(call); r.Error == nil || !strings.Contains(r.Error.Message, "revoked") {
		t.Errorf("the one that was about to begin: %s", r.line)
	}
}

// mute is a ledger whose bell nobody rings, and which counts who asks for a session. lost
// says that there is none, as after a recovery.
type mute struct {
	*ledger.Ledger
	bell  string
	lost  atomic.Bool
	asked atomic.Int64
}

func (m *mute) Bell() string { return m.bell }

func (m *mute) Session(ctx context.Context, u ledger.Use) (ledger.Session, error) {
	m.asked.Add(1)
	if m.lost.Load() {
		return ledger.Session{}, ledger.ErrNoSession
	}
	return m.Ledger.Session(ctx, u)
}

// Who revokes a session may end before the bell is rung: its calls end all the same.
func TestARevocationWithoutABell(t *testing.T) {
	for _, bell := range []string{"", "rung before"} {
		synctest.Test(t, func(t *testing.T) {
			led := &mute{Ledger: openLedger(t, t.TempDir()+"/state"), bell: bell}
			up := newFake("db", "long")
			up.do = hang
			h := serve(t, rig{fakes: []proxy.Upstream{up}, ledger: led})
			h.led = led.Ledger
			as := h.mint(ledger.Terms{Agent: "one", AllScopes: true})
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			var r proxy.Reply
			ended := make(chan struct{})
			go func() { defer close(ended); r, _ = h.srv.CallAs(ctx, as, "long", nil) }()
			time.Sleep(time.Second) // the watch has looked once
			if _, err := h.led.Revoke(t.Context(), as.Session.ID, true); err != nil {
				t.Fatal(err)
			}
			<-ended
			if r.Error == nil || !strings.Contains(r.Error.Message, "revoked") {
				t.Errorf("%+v", r)
			}
		})
	}
}

// A session that is gone was looked at: the ledger is not asked for it at each tick.
func TestASessionThatIsGoneIsLookedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		led := &mute{Ledger: openLedger(t, t.TempDir()+"/state"), bell: "rung"}
		up := newFake("db", "long")
		up.do = hang
		h := serve(t, rig{fakes: []proxy.Upstream{up}, ledger: led})
		h.led = led.Ledger
		as := h.mint(ledger.Terms{Agent: "one", AllScopes: true})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _, _ = h.srv.CallAs(ctx, as, "long", nil) }()
		synctest.Wait()
		led.lost.Store(true)
		before := led.asked.Load()
		time.Sleep(20 * time.Second)
		if n := led.asked.Load() - before; n != 1 {
			t.Errorf("it was asked for %d times", n)
		}
		cancel()
		<-ended
	})
}

// The same, while others keep the watch going.
func TestARevocationWhileOthersAreUnderWay(t *testing.T) {
	h, up := asking(t, forms)
	up.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) { return hang(ctx, c) }
	waits := h.begin("db__drop", `{}`)
	h.formed()
	runs := h.begin("db__read", `{}`)
	eventually(t, "it is under way", func() bool { return len(up.called()) == 1 })
	if _, err := h.led.Revoke(t.Context(), session, true); err != nil {
		t.Fatal(err)
	}
	if r := h.end(waits).refusal(t); !strings.Contains(r.Error, "revoked") {
		t.Errorf("the one that waits: %+v", r)
	}
	if r := h.end(runs); r.Error == nil || !strings.Contains(r.Error.Message, "revoked") {
		t.Errorf("the one that runs: %s", r.line)
	}
	h.waiting(0)
}

// Progress only ever grows, also when the person is asked once more, and ends where the
// upstream's begins. A token is what the host has made it.
func TestProgressNeverFallsBack(t *testing.T) {
	h, up := asking(t, forms)
	for _, token := range []string{`"tok"`, `0`, `-1.5e3`, `"\u0000\"\n"`, `12345678901234567890`} {
		up.set("drop", "read")
		up.do = func(_ context.Context, c upstream.Call) (wire.Message, error) {
			m, err := wire.ParseLenient([]byte(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":` + token + `,"progress":0}}`))
			if err == nil {
				c.Progress(m)
			}
			return reply(mcptest.Text("done"))
		}
		id := h.nextID()
		h.send(`{"jsonrpc":"2.0","id":` + id + `,"method":"tools/call","params":{"name":"db__drop","arguments":{},"_meta":{"progressToken":` + token + `}}}`)
		last := -2.0
		next := func() {
			t.Helper()
			line := h.need("progress", hasMethod("notifications/progress"))
			at, _ := wire.At(json.RawMessage(line), "params", "progressToken")
			value, _ := wire.At(json.RawMessage(line), "params", "progress")
			now, err := strconv.ParseFloat(string(value.Value), 64)
			if string(at.Value) != token || err != nil || now <= last {
				t.Errorf("after %v: %s", last, line)
			}
			last = now
		}
		form, _ := h.formed()
		next()
		up.define(json.RawMessage(`{"name":"drop","description":"another one","inputSchema":{"type":"object"}}`))
		h.says(form, decision("once"))
		form, _ = h.formed()
		next()
		h.says(form, decision("once"))
		next()
		if last != 0 {
			t.Errorf("the upstream's own was %v", last)
		}
		h.end(id)
	}
}

// A thousand calls wait, and hold up nothing; one more is refused, and on record.
func TestAThousandCallsWait(t *testing.T) {
	h, up := asking(t, `{}`)
	stop, err := h.led.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	const most = 1000
	for i := range most {
		h.begin("db__drop", fmt.Sprintf(`{"n":%d}`, i))
		if i%100 == 99 {
			h.waiting(i + 1)
		}
	}
	if r := h.refused("db__drop", `{"n":"more"}`); r.Policy != "require_approval" || !strings.Contains(r.Error, "too many") {
		t.Errorf("one more: %+v", r)
	}
	if e := h.last(); e.Status != audit.StatusDenied {
		t.Errorf("the audit says of it %s", e.Status)
	}
	if got := h.must("db__read", `{}`); got != "done" {
		t.Errorf("another call meanwhile: %s", got)
	}
	list := h.waiting(most)
	h.allow(list[most/2].ID, ledger.Answer{})
	h.need("the answer to the one that was allowed", func(line string) bool { return strings.Contains(line, `"done"`) })
	if n := len(up.called()); n != 2 {
		t.Errorf("%d calls", n)
	}
	h.over()
	h.waiting(0)
}

// What is no tool is asked about alike, and refused as what it is.
func TestResourcesAndPromptsNeedAWordToo(t *testing.T) {
	up := furnished(t, "db", func(upstream.Call) string { return `{}` })
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true, rules: policy.Ruleset{Policies: []policy.Rule{
		{Type: policy.TypeApproval, Tools: []string{"resource:*", "prompt:*"}},
	}}})
	h.greetWithForms()
	for _, request := range []string{
		`"method":"resources/read","params":{"uri":"file:///r"}`, `"method":"prompts/get","params":{"name":"db__greet","arguments":{"x":"y"}}`,
	} {
		for _, word := range []string{"once", "deny"} {
			before := len(up.called())
			id := h.nextID()
			h.send(`{"jsonrpc":"2.0","id":` + id + `,` + request + `}`)
			form, message := h.formed()
			if !strings.Contains(message, "db/") {
				t.Errorf("asked: %s", message)
			}
			h.says(form, decision(word))
			r := h.end(id)
			if word == "once" && (r.Error != nil || len(up.called()) != before+1) {
				t.Errorf("%s: %s", request, r.line)
			}
			if word == "deny" && (r.Error == nil || r.Error.Code != proxy.CodeRefused || !strings.Contains(r.Error.Message, "denied by elicitation") || len(up.called()) != before) {
				t.Errorf("%s: %s", request, r.line)
			}
		}
	}
	// A word for one is none for the other, nor for a tool.
	id := h.nextID()
	h.send(`{"jsonrpc":"2.0","id":` + id + `,"method":"resources/read","params":{"uri":"file:///r"}}`)
	form, _ := h.formed()
	h.says(form, decision("session"))
	h.end(id)
	if r := parseResponse(t, h.ask(`{"jsonrpc":"2.0","id":"again","method":"resources/read","params":{"uri":"file:///r"}}`)); r.Error != nil {
		t.Errorf("the same again: %s", r.line)
	}
	h.send(`{"jsonrpc":"2.0","id":"other","method":"prompts/get","params":{"name":"db__greet","arguments":{"uri":"file:///r"}}}`)
	form, _ = h.formed()
	h.says(form, decision("deny"))
	h.answer(`"other"`)
}

// A call that makes a task needs a word as any call does.
func TestATaskNeedsAWord(t *testing.T) {
	h, up := asking(t, forms)
	id := h.nextID()
	h.send(`{"jsonrpc":"2.0","id":` + id + `,"method":"tools/call","params":{"name":"db__drop","arguments":{},"task":{"ttl":1000}}}`)
	form, _ := h.formed()
	if n := len(up.called()); n != 0 {
		t.Fatalf("%d calls before anybody has answered", n)
	}
	h.says(form, decision("once"))
	h.end(id)
	if got := up.called(); len(got) != 1 || !strings.Contains(got[0], `"task":{"ttl":1000}`) {
		t.Errorf("called: %q", got)
	}
}

// A dry run says that a person would be asked, and asks nobody.
func TestADryRunSaysAsk(t *testing.T) {
	h, up := asking(t, forms)
	for range 2 {
		r := h.call("haldir_check_permission", `{"tool":"db__drop","arguments":{"n":1}}`)
		var got struct {
			Allowed               bool
			Verdict, Policy, Rule string
		}
		if err := json.Unmarshal(r.Structured, &got); err != nil || got.Allowed || got.Verdict != "ask" || got.Policy != "require_approval" {
			t.Errorf("%s: %v", r.line, err)
		}
		h.waiting(0)
		// Also when a person has allowed the call for the session: it needs a word, and has it.
		call := h.begin("db__drop", `{"n":1}`)
		if id := h.wait(moment*10, hasMethod("elicitation/create")); id != "" {
			at, _ := wire.At(json.RawMessage(id), "id")
			h.says(string(at.Value), decision("session"))
		}
		h.end(call)
	}
	if n := len(up.called()); n != 2 {
		t.Errorf("%d calls", n)
	}
}

// The command line's own call has no form: it waits if somebody watches, else it is refused
// at once.
func TestACallOfTheCommandLine(t *testing.T) {
	h, up := asking(t, forms)
	if _, refused, err := h.srv.Call(t.Context(), "db/drop", json.RawMessage(`{}`)); err != nil || !errors.Is(refused, proxy.ErrRefused) {
		t.Errorf("nobody watches: %v %v", refused, err)
	}
	stop, err := h.led.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for _, allow := range []bool{true, false} {
		var wg sync.WaitGroup
		wg.Go(func() {
			m, refused, err := h.srv.Call(context.Background(), "db/drop", json.RawMessage(fmt.Sprintf(`{"n":%t}`, allow)))
			if err != nil || (refused == nil) != allow || m.Result == nil {
				t.Errorf("allowed %t: %v %v %s", allow, refused, err, m.Raw)
			}
		})
		eventually(t, "it waits", func() bool {
			list, err := h.led.Approvals(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(list, func(p ledger.Approval) bool { return p.Waiting })
			if i < 0 {
				return false
			}
			_, err = h.led.Answer(context.Background(), list[i].ID, ledger.Answer{Allow: allow, Channel: ledger.ChannelTerminal})
			return err == nil
		})
		wg.Wait()
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, refused, err := h.srv.Call(ctx, "db/drop", json.RawMessage(`{"n":2}`)); err == nil && refused == nil {
			t.Error("interrupted, and yet it went through")
		}
	})
	eventually(t, "it waits", func() bool {
		list, err := h.led.Approvals(context.Background())
		return err == nil && slices.ContainsFunc(list, func(p ledger.Approval) bool { return p.Waiting })
	})
	cancel()
	wg.Wait()
	if n := len(up.called()); n != 1 {
		t.Errorf("%d calls", n)
	}
}

// A modern host that lets go of a call leaves nothing behind, and what a person has allowed
// meanwhile elsewhere is for its next one.
func TestAModernHostLetsGo(t *testing.T) {
	up := newFake("db", "drop")
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true, rules: policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeApproval, Tools: []string{"drop"}, Timeout: 2 * time.Second}}}})
	stop, err := h.led.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	call := func(id int, extra string) string {
		return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"db__drop","arguments":{},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"x","version":"1"},"io.modelcontextprotocol/clientCapabilities":%s}%s}}`, id, forms, extra)
	}
	h.ask(call(1, ""))
	h.waiting(1)
	h.waiting(0) // nobody goes on: its time is over, which is recorded a moment later
	eventually(t, "it is denied", func() bool {
		e := h.last()
		return e.Status == audit.StatusDenied && strings.Contains(e.FlagReason, "in time")
	})
	h.ask(call(2, ""))
	h.allow(h.waiting(1)[0].ID, ledger.Answer{})
	// The host has forgotten the state. Once the wait for it is over, the same call is free.
	eventually(t, "the next call goes through", func() bool {
		line := h.ask(call(3, ""))
		if strings.Contains(line, "done") {
			return true
		}
		for _, p := range h.waiting(1) {
			if _, err := h.led.Answer(t.Context(), p.ID, ledger.Answer{Channel: ledger.ChannelTerminal}); err != nil && !errors.Is(err, ledger.ErrNoApproval) {
				t.Fatal(err)
			}
		}
		return false
	})
	if n := len(up.called()); n != 1 {
		t.Errorf("%d calls", n)
	}
}
