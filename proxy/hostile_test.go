package proxy_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/proxy"
)

// beside serves a well-behaved server next to a hostile one. Whatever the
// hostile one does, the other must go on working.
func beside(t *testing.T, hostile config.Upstream, adjust ...func(*rig)) *host {
	t.Helper()
	r := rig{servers: []config.Upstream{hostile, mcptest.Script{Tools: mcptest.Tools(mcptest.Tool("echo"))}.Child(t, "good")}}
	for _, f := range adjust {
		f(&r)
	}
	return serve(t, r)
}

// fine fails the test unless the other server answers.
func (h *host) fine() {
	h.t.Helper()
	h.alive()
	if got := h.must("good__echo", `{"text":"still here"}`); got != "still here" {
		h.t.Errorf("the other upstream: %q", got)
	}
}

// servers are the ways in which a hostile server can be reached.
func servers(t *testing.T) map[string]func(mcptest.Script) config.Upstream {
	return map[string]func(mcptest.Script) config.Upstream{
		"stdio": func(s mcptest.Script) config.Upstream { return s.Child(t, "evil") },
		"http":  func(s mcptest.Script) config.Upstream { return s.NewHTTP(t).Upstream("evil") },
		"sse": func(s mcptest.Script) config.Upstream {
			s.SSE = true
			return s.NewHTTP(t).Upstream("evil")
		},
	}
}

// A server that does not come up delays nobody; its calls are refused with its
// name and the reason, and it is on record that they were tried.
func TestAServerThatDoesNotComeUp(t *testing.T) {
	for _, tt := range []struct {
		name   string
		script mcptest.Script
		says   string // in the refusal of a call
	}{
		{"hangs", mcptest.Script{Start: "hang"}, "evil"},
		{"reads nothing", mcptest.Script{Start: "deaf"}, "evil"},
		{"dies at once, again and again", mcptest.Script{Start: "exit", LastWords: "no \x1b[31mlicence\x1b[0m found"}, "evil"},
		{"speaks another protocol", mcptest.Script{Version: json.RawMessage(`"1999-01-01"`)}, "evil"},
		{"a protocol that is a number", mcptest.Script{Version: json.RawMessage(`7`)}, "evil"},
		{"a protocol that is an object", mcptest.Script{Version: json.RawMessage(`{"a":["\u001b[31m"]}`)}, "evil"},
		{"a protocol that is null", mcptest.Script{Version: json.RawMessage(`null`)}, "evil"},
		{"no list of tools", mcptest.Script{Tools: json.RawMessage(`{"a":1}`)}, "evil"},
		{"a list of tools that is null", mcptest.Script{Tools: json.RawMessage(`null`)}, "evil"},
		{"never ends its list of tools", mcptest.Script{ListHangs: 1, Cursor: "endless"}, "evil"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := beside(t, func() config.Upstream { c := tt.script.Child(t, "evil"); c.Connect = 2 * time.Second; return c }(),
				func(r *rig) { r.adjust = func(o *proxy.Options) { o.ListWait = time.Second } })
			start := time.Now()
			h.alive()
			if took := time.Since(start); took > 1900*time.Millisecond { // connecting takes two seconds at most
				t.Errorf("a ping took %v", took)
			}
			eventually(t, "the other server's tools are listed", func() bool { return slices.Equal(h.others(), []string{"good__echo"}) })
			h.fine()
			for _, name := range []string{"evil__tool", "evil/tool"} {
				start := time.Now()
				r := h.refused(name, "{}")
				if !strings.Contains(r.Error, tt.says) || strings.ContainsRune(r.Error, 0x1b) {
					t.Errorf("the refusal: %+v", r)
				}
				t.Logf("%s was refused after %v: %s", name, time.Since(start).Round(time.Millisecond), r.Error)
				if e := h.last(); e.Upstream != "evil" || e.Tool != "tool" || e.Status != audit.StatusDenied {
					t.Errorf("on record: %+v", e)
				}
			}
			h.fine()
		})
	}
}

// A call that is answered under the id of another one gets nobody's answer, and
// can still be given up.
func TestAnAnswerUnderAWrongIDLeavesTheCallCancellable(t *testing.T) {
	h := beside(t, mcptest.Script{}.Child(t, "evil"))
	h.tools()
	id, line := h.callLine("evil__raw", mcptest.Lines(`{"jsonrpc":"2.0","id":987654,"result":{}}`, `{"jsonrpc":"2.0","id":"$ID","result":{}}`))
	h.send(line)
	h.quiet()
	h.send(cancelLine(id))
	if e := h.last(); e.Status != audit.StatusCancelled {
		t.Errorf("on record: %+v", e)
	}
	h.fine()
}

func TestAServerThatDiesDuringACall(t *testing.T) {
	for name, start := range servers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := beside(t, start(mcptest.Script{}), func(r *rig) { r.rules = prices })
			h.tools()
			waiting, line := h.callLine("evil__hang", "{}")
			if name == "stdio" { // it dies with it, once it has arrived
				h.send(line)
				eventually(t, "the call arrives", func() bool {
					var seen mcptest.Seen
					if err := json.Unmarshal([]byte(h.must("evil__seen", "{}")), &seen); err != nil {
						t.Fatal(err)
					}
					return slices.ContainsFunc(seen.Messages, func(m string) bool { return strings.Contains(m, `"hang"`) })
				})
			}
			r := h.call("evil__die", `{"words":"out of \u001b[31mcheese\u001b[0m","code":7}`)
			if r.Error == nil || !strings.Contains(r.Error.Message, "evil") {
				t.Errorf("the call: %s", r.line)
			}
			if name == "stdio" {
				if !strings.Contains(r.Error.Message, "cheese") || strings.ContainsRune(r.Error.Message, 0x1b) {
					t.Errorf("the last words are not told, or not cleaned: %q", r.Error.Message)
				}
				if r := parseResponse(t, h.answer(waiting)); r.Error == nil {
					t.Errorf("the other call: %s", r.line)
				}
			}
			for _, e := range h.entries() { // whoever died may have done it: it counts
				if e.Tool == "seen" {
					continue
				}
				if e.Status != audit.StatusError || string(e.CostUSD) != "1" || !e.Flagged {
					t.Errorf("on record: %s $%s %s", e.Status, e.CostUSD, e.FlagReason)
				}
			}
			h.alive()
			// It is started again, and its tools stay listed meanwhile.
			if !slices.Contains(h.tools(), "evil__echo") {
				t.Errorf("tools/list: %s", h.tools())
			}
			start := time.Now()
			eventually(t, "it answers again", func() bool {
				r := h.call("evil__echo", `{"text":"back"}`)
				return r.Text == "back"
			})
			t.Logf("back after %v", time.Since(start).Round(time.Millisecond))
			h.fine()
		})
	}
}

// Each call makes it die; the host sees an error each time and nothing else.
func TestAServerThatDiesAtEveryCall(t *testing.T) {
	h := beside(t, mcptest.Script{}.Child(t, "evil"))
	h.tools()
	for i := range 5 {
		start := time.Now()
		r := h.call("evil__die", `{"words":"again"}`)
		if r.Error == nil {
			t.Fatalf("got %s", r.line)
		}
		t.Logf("call %d: %v: %s", i, time.Since(start).Round(time.Millisecond), r.Error.Message)
		h.fine()
	}
	if n := strings.Count(h.log.String(), "upstream connected"); n > 12 {
		t.Errorf("it was started %d times for 5 calls", n)
	}
}

func TestAServerThatStopsReading(t *testing.T) {
	cfg := mcptest.Script{Deaf: 3}.Child(t, "evil") // after initialize, initialized, tools/list
	cfg.Call = 300 * time.Millisecond
	h := beside(t, cfg, func(r *rig) { r.rules = prices })
	h.tools()
	big := strings.Repeat("x", 1<<20) // more than a pipe holds
	ids := make([]string, 20)
	for i := range ids {
		var line string
		ids[i], line = h.callLine("evil__echo", `{"text":"`+big+`"}`)
		h.send(line)
	}
	h.fine()
	sent := 0
	for _, id := range ids {
		r := parseResponse(t, h.answer(id))
		if r.Error == nil || !strings.Contains(r.Error.Message, "evil") {
			t.Errorf("got %s", clip(r.line))
		}
	}
	for _, e := range h.entries() {
		if e.Upstream == "evil" && string(e.CostUSD) == "1" {
			sent++
		}
	}
	if sent != 1 { // the one that the pipe took a part of
		t.Errorf("%d of %d calls count as sent, want 1", sent, len(ids))
	}
	h.fine()
}

func TestFloodsOfProgress(t *testing.T) {
	const n = 10_000
	for name, start := range servers(t) {
		if name == "http" {
			continue // a plain answer has no room for it
		}
		t.Run(name, func(t *testing.T) {
			h := beside(t, start(mcptest.Script{}))
			h.tools()
			begin := time.Now()
			h.send(`{"jsonrpc":"2.0","id":"flood","method":"tools/call","params":{"name":"evil__flood","arguments":{"what":"progress","n":` + strconv.Itoa(n) + `},"_meta":{"progressToken":"mine"}}}`)
			h.fine()
			for i := range n {
				want := fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"mine","progress":%d}}`, i)
				if got := h.need("progress", anyLine); got != want {
					t.Fatalf("got %s\nwant %s", got, want)
				}
			}
			h.answer(`"flood"`)
			t.Logf("%d notifications in %v", n, time.Since(begin).Round(time.Millisecond))
			h.fine()
			h.quiet()
		})
	}
}

// A notification that no host could take as one is not passed on either.
func TestProgressThatIsNoMessage(t *testing.T) {
	h := serve(t, rig{servers: []config.Upstream{mcptest.Script{}.Child(t, "evil")}})
	h.tools()
	for _, line := range []string{
		`{"method":"notifications/progress","params":{"progressToken":"mine","progress":1}}`,
		`{"jsonrpc":"1.0","method":"notifications/progress","params":{"progressToken":"mine","progress":1}}`,
		`{"jsonrpc":"2.0","jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"mine","progress":1}}`,
		`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"theirs","progressToken":"mine"}}`,
	} {
		h.send(`{"jsonrpc":"2.0","id":"p","method":"tools/call","params":{"name":"evil__raw","arguments":` +
			mcptest.Lines(line, `{"jsonrpc":"2.0","id":$ID,"result":{}}`) + `,"_meta":{"progressToken":"mine"}}}`)
		h.answer(`"p"`) // every line that came before it was checked
	}
}

// Progress for a token that is not of a call of this server reaches nobody.
func TestProgressOfOthersIsDropped(t *testing.T) {
	h := beside(t, mcptest.Script{}.Child(t, "evil"))
	h.tools()
	h.send(`{"jsonrpc":"2.0","id":"other","method":"tools/call","params":{"name":"evil__hang","_meta":{"progressToken":"theirs"}}}`) // of the same server: may be told
	h.send(`{"jsonrpc":"2.0","id":"good","method":"tools/call","params":{"name":"good__hang","_meta":{"progressToken":"good"}}}`)
	for _, token := range []string{`"good"`, `"unheard of"`, `1`, `null`, `{}`, `"mine "`} {
		r := parseResponse(t, h.ask(`{"jsonrpc":"2.0","id":"f","method":"tools/call","params":{"name":"evil__flood","arguments":{"what":"progress","n":3,"token":`+token+`},"_meta":{"progressToken":"mine"}}}`))
		if r.Text != "flooded" {
			t.Errorf("token %s: %s", token, r.line)
		}
	}
	h.answer(`"good"`) // good has no tool hang
	h.quiet()
	// After its call has ended, a token is nobody's.
	h.must("evil__flood", `{"what":"progress","n":3,"token":"mine"}`)
	h.quiet()
	h.send(cancelLine(`"other"`))
	h.fine()
}

func TestFloodsThatMeanNothing(t *testing.T) {
	for what, n := range map[string]int{"noise": 10_000, "stderr": 10_000, "stderr-line": 200_000, "list_changed": 10_000, "ping": 10_000} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := beside(t, mcptest.Script{}.Child(t, "evil"))
			h.tools()
			start := time.Now()
			id, line := h.callLine("evil__flood", fmt.Sprintf(`{"what":%q,"n":%d}`, what, n))
			h.send(line)
			h.fine()
			if r := parseResponse(t, h.answer(id)); r.Text != "flooded" {
				t.Errorf("got %s", r.line)
			}
			h.fine()
			told := 0 // that a list has changed, which the server says; now and then is enough
			for h.wait(0, hasMethod("notifications/tools/list_changed")) != "" {
				told++
			}
			if told > 0 && what != "list_changed" || told > 100 {
				t.Errorf("the host was told %d times that the tools have changed", told)
			}
			if what != "list_changed" {
				h.quiet() // of all this the host sees nothing
			}
			if strings.Contains(h.log.String(), "\x1b") {
				t.Error("escape sequences reached the log")
			}
			t.Logf("%d in %v, %d bytes in the log", n, time.Since(start).Round(time.Millisecond), len(h.log.String()))
		})
	}
}

// A line without end must neither be kept nor end the connection.
func TestALineOfAGigabyte(t *testing.T) {
	size := 1 << 30
	if testing.Short() || raceEnabled {
		size = 1 << 26
	}
	h := beside(t, mcptest.Script{}.Child(t, "evil"))
	h.tools()
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	id, line := h.callLine("evil__line", fmt.Sprintf(`{"bytes":%d}`, size))
	h.send(line)
	h.fine()
	peak := uint64(0)
	var got string
	for got == "" && time.Since(start) < time.Minute {
		got = h.wait(20*time.Millisecond, hasID(id))
		runtime.ReadMemStats(&now)
		peak = max(peak, now.HeapAlloc)
	}
	if r := parseResponse(t, got); r.Text != "said a lot" {
		t.Errorf("got %s", r.line)
	}
	t.Logf("%d MiB in %v, heap from %d to at most %d MiB", size>>20, time.Since(start).Round(time.Millisecond), before.HeapAlloc>>20, peak>>20)
	if peak > before.HeapAlloc+200<<20 {
		t.Errorf("the heap grew to %d MiB", peak>>20)
	}
	h.fine()
}

// An answer over the limit is an error of its call, by its id.
func TestAnAnswerOverTheLimit(t *testing.T) {
	for name, start := range servers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := beside(t, start(mcptest.Script{}), func(r *rig) { r.max = 1 << 20 })
			h.tools()
			if got := h.must("evil__big", `{"bytes":900000}`); len(got) != 900_000 {
				t.Errorf("%d bytes arrived", len(got))
			}
			r := h.call("evil__big", `{"bytes":2000000}`)
			if r.Error == nil || !strings.Contains(r.Error.Message, "larger than the limit") {
				t.Errorf("got %s", clip(r.line))
			}
			h.fine()
			h.must("evil__echo", `{"text":"x"}`)
		})
	}
}

// So is a response of the host's over the limit, of whoever has asked: its call would wait
// for ever, and no limit of time would end it, as it waits for a person.
func TestAResponseOfTheHostOverTheLimit(t *testing.T) {
	h := serve(t, rig{servers: []config.Upstream{mcptest.Script{}.Child(t, "up")}, max: 1 << 16})
	h.tools()
	id, line := h.callLine("up__ask", `{"method":"sampling/createMessage"}`)
	h.send(line)
	question, _ := h.asked("sampling/createMessage")
	h.send(`{"jsonrpc":"2.0","id":` + question + `,"result":{"x":"` + strings.Repeat("x", 1<<16) + `"}}`)
	if r := parseResponse(t, h.answer(id)); !strings.Contains(r.Text, "larger than the limit") || !strings.Contains(r.Text, `"id":"ask-sampling/createMessage-0"`) {
		t.Errorf("the server got %s", clip(r.line))
	}
	h.quiet()
}

func TestTwelveMegabytes(t *testing.T) {
	size := 12 << 20
	if raceEnabled {
		size = 3 << 20
	}
	for name, start := range servers(t) {
		t.Run(name, func(t *testing.T) {
			h := beside(t, start(mcptest.Script{}))
			h.tools()
			begin := time.Now()
			if got := h.must("evil__big", fmt.Sprintf(`{"bytes":%d}`, size)); got != strings.Repeat("x", size) {
				t.Errorf("%d bytes arrived", len(got))
			}
			t.Logf("%d MiB out in %v", size>>20, time.Since(begin).Round(time.Millisecond))
			if name != "stdio" {
				return
			}
			begin = time.Now()
			text := strings.Repeat("y", size)
			if got := h.must("evil__echo", `{"text":"`+text+`"}`); got != text {
				t.Errorf("%d bytes came back", len(got))
			}
			t.Logf("%d MiB there and back in %v", size>>20, time.Since(begin).Round(time.Millisecond))
		})
	}
}

// What a client can be asked goes to the host, and its answer back; anything else
// haldir answers by itself, and the host hears nothing of it.
func TestRequestsOfAServer(t *testing.T) {
	for name, start := range servers(t) {
		t.Run(name, func(t *testing.T) {
			h := beside(t, start(mcptest.Script{}))
			h.tools()
			if got := h.must("evil__ask", `{"method":"ping"}`); got != `{"jsonrpc":"2.0","id":"ask-ping-0","result":{}}` {
				t.Errorf("ping: %s", got)
			}
			for _, method := range []string{"sampling/createMessage", "roots/list", "elicitation/create"} {
				id, line := h.callLine("evil__ask", `{"method":"`+method+`"}`)
				h.send(line)
				var asked struct{ ID json.RawMessage }
				if err := json.Unmarshal([]byte(h.need(method, func(l string) bool { return strings.Contains(l, `"method":"`+method+`"`) })), &asked); err != nil {
					t.Fatal(err)
				}
				h.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"error":{"code":-1,"message":"not now"}}`, asked.ID))
				if got := h.answer(id); !strings.Contains(got, `ask-`+method+`-0`) || !strings.Contains(got, "not now") {
					t.Errorf("%s: %s", method, got)
				}
			}
			for _, method := range []string{"tools/call", "initialize", "no/such/method"} {
				got := h.must("evil__ask", `{"method":"`+method+`"}`)
				if !strings.Contains(got, "-32601") || !strings.Contains(got, `"id":"ask-`+method+`-0"`) {
					t.Errorf("%s: %s", method, got)
				}
			}
			h.must("evil__ask", `{"method":"ping","n":100}`)
			h.fine()
			h.quiet()
		})
	}
}

// One bad definition withholds that tool alone. Each of these makes the official
// TypeScript SDK (1.32.2, with which Claude Code is built) refuse the whole list.
var badTools = []string{
	`{"name":"bad"}`,
	`{"name":"bad","inputSchema":null}`,
	`{"name":"bad","inputSchema":true}`,
	`{"name":"bad","inputSchema":{}}`,
	`{"name":"bad","inputSchema":{"type":["object","null"]}}`,
	`{"name":"bad","inputSchema":{"type":"string"}}`,
	`{"name":"bad","inputSchema":{"type":"object","properties":[]}}`,
	`{"name":"bad","inputSchema":{"type":"object","properties":null}}`,
	`{"name":"bad","inputSchema":{"type":"object","properties":{"x":true}}}`,
	`{"name":"bad","inputSchema":{"type":"object","properties":{"x":5}}}`,
	`{"name":"bad","inputSchema":{"type":"object","properties":{"x":null}}}`,
	`{"name":"bad","inputSchema":{"type":"object","properties":{"x":"string"}}}`,
	`{"name":"bad","inputSchema":{"type":"object","required":"x"}}`,
	`{"name":"bad","inputSchema":{"type":"object","required":null}}`,
	`{"name":"bad","inputSchema":{"type":"object","required":[1]}}`,
	`{"name":"bad","description":null,"inputSchema":{"type":"object"}}`,
	`{"name":"bad","description":5,"inputSchema":{"type":"object"}}`,
	`{"name":"bad","title":1,"inputSchema":{"type":"object"}}`,
	`{"name":"bad","_meta":"x","inputSchema":{"type":"object"}}`,
	`{"name":"bad","_meta":[],"inputSchema":{"type":"object"}}`,
	`{"name":"bad","_meta":null,"inputSchema":{"type":"object"}}`,
	`{"name":"bad","icons":{},"inputSchema":{"type":"object"}}`,
	`{"name":"bad","icons":null,"inputSchema":{"type":"object"}}`,
	`{"name":"bad","icons":["x"],"inputSchema":{"type":"object"}}`,
	`{"name":"bad","icons":[{}],"inputSchema":{"type":"object"}}`,
	`{"name":"bad","icons":[{"src":5}],"inputSchema":{"type":"object"}}`,
	`{"name":"bad","icons":[{"src":"x","sizes":"16x16"}],"inputSchema":{"type":"object"}}`,
	`{"name":"bad","icons":[{"src":"x","sizes":[16]}],"inputSchema":{"type":"object"}}`,
	`{"name":"bad","icons":[{"src":"x","theme":"blue"}],"inputSchema":{"type":"object"}}`,
	`{"name":"bad","icons":[{"src":"x","mimeType":1}],"inputSchema":{"type":"object"}}`,
	`{"name":"bad","execution":"x","inputSchema":{"type":"object"}}`,
	`{"name":"bad","execution":null,"inputSchema":{"type":"object"}}`,
	`{"name":"bad","execution":{"taskSupport":"maybe"},"inputSchema":{"type":"object"}}`,
	`{"name":"bad","annotations":"x","inputSchema":{"type":"object"}}`,
	`{"name":"bad","annotations":null,"inputSchema":{"type":"object"}}`,
	`{"name":"bad","annotations":{"title":1},"inputSchema":{"type":"object"}}`,
	`{"name":"bad","annotations":{"readOnlyHint":"yes"},"inputSchema":{"type":"object"}}`,
	`{"name":"bad","annotations":{"openWorldHint":null},"inputSchema":{"type":"object"}}`,
	`{"name":"bad","outputSchema":{},"inputSchema":{"type":"object"}}`,
	`{"name":"bad","outputSchema":null,"inputSchema":{"type":"object"}}`,
	`{"name":"bad","outputSchema":{"type":"array"},"inputSchema":{"type":"object"}}`,
	`{"name":"bad","outputSchema":{"type":"object","properties":{"x":true}},"inputSchema":{"type":"object"}}`,
	`{"name":null,"inputSchema":{"type":"object"}}`,
	`{"name":7,"inputSchema":{"type":"object"}}`,
	`{"inputSchema":{"type":"object"}}`,
	`null`, `7`, `"bad"`, `[]`,
	// These the SDK takes, reading the last of two; another reader, the first.
	`{"name":"bad","name":"worse","inputSchema":{"type":"object"}}`,
	`{"name":"bad","inputSchema":{"type":"object"},"inputSchema":{"type":"string"}}`,
	`{"name":"bad","inputSchema":{"type":"object","type":"string"}}`,
}

func TestBadDefinitionsAreWithheldAlone(t *testing.T) {
	defs := []json.RawMessage{mcptest.Tool("first")}
	for _, d := range badTools {
		defs = append(defs, json.RawMessage(d))
	}
	defs = append(defs, mcptest.Tool("first"), mcptest.Tool("last")) // a name twice: the first counts
	for name, start := range servers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := beside(t, start(mcptest.Script{Tools: mcptest.Tools(defs...)}))
			h.tools()
			list := h.definitions()
			for _, d := range list {
				if strings.Contains(string(d), `"evil__bad"`) {
					t.Errorf("in the host's list: %s", d)
				}
			}
			if d := cmp.Diff([]string{"evil__first", "evil__last", "good__echo"}, slices.Compact(h.others())); d != "" && len(badTools) > 0 {
				t.Error(d)
			}
			_, notes := h.srv.Tools(t.Context())
			if n := len(notes); n != len(badTools)+1 {
				t.Errorf("%d of %d withheld tools are reported", n, len(badTools)+1)
			}
			h.must("evil__first", "{}")
			h.fine()
		})
	}
}

// Each on its own, so that it is clear which one gets through.
func TestEachBadDefinition(t *testing.T) {
	for _, d := range badTools {
		up := newFake("up")
		up.define(json.RawMessage(d), mcptest.Tool("good"))
		h := serve(t, rig{fakes: []proxy.Upstream{up}})
		if got := h.others(); !slices.Equal(got, []string{"up__good"}) {
			t.Errorf("%s is passed on: %s", d, got)
		}
	}
}

// Odd but legal definitions are passed on as they are.
func TestOddDefinitionsPass(t *testing.T) {
	for _, d := range []string{
		`{"name":"odd","inputSchema":{"type":"object","$schema":5,"additionalProperties":7,"$defs":"x"}}`,
		`{"name":"odd","inputSchema":{"type":"object"},"description":"\u001b[31mred\u0000\u202e"}`,
		`{"name":"odd","inputSchema":{"type":"object"},"unknown":[{"a":1,"a":2}]}`,
		`{"name":"odd","inputSchema":{"type":"object"},"description":"a lone \ud800 surrogate"}`, // JSON.parse takes it
		"{\"name\":\"odd\",\"inputSchema\":{\"type\":\"object\"},\"description\":\"no UTF-8: \xff\"}",
	} {
		up := newFake("up")
		up.define(json.RawMessage(d))
		h := serve(t, rig{fakes: []proxy.Upstream{up}})
		got := h.definitions()
		if want := strings.Replace(d, `"odd"`, `"up__odd"`, 1); len(got) != 4 || string(got[0]) != want {
			t.Errorf("%q became %d tools, the first %q", want, len(got), got[0])
		}
	}
}

// A server may change its tools under haldir's hands: what is called is what is
// there now, judged by its own name.
func TestAServerThatChangesItsTools(t *testing.T) {
	h := beside(t, mcptest.Script{}.Child(t, "evil"), func(r *rig) { r.rules = deny("delete_*") })
	before := h.tools()
	h.must("evil__retool", `{"tools":[{"name":"echo","inputSchema":{"type":"object"}},{"name":"delete_all","inputSchema":{"type":"object"}},{"name":"new","inputSchema":{"type":"object"}}],"n":50}`)
	h.need("list_changed", hasMethod("notifications/tools/list_changed"))
	if d := cmp.Diff([]string{"evil__echo", "evil__new", "good__echo"}, h.others()); d != "" {
		t.Errorf("it had %s: %s", before, d)
	}
	h.must("evil__new", "{}")
	h.refused("evil__delete_all", "{}")
	if r := h.refused("evil__seen", "{}"); r.Policy != "unknown_tool" {
		t.Errorf("a tool that is gone: %+v", r)
	}
	h.quiet()
	h.fine()
}

// What an HTTP server answers beside JSON-RPC.
func TestStrangeHTTP(t *testing.T) {
	isCall := func(body []byte) bool {
		return strings.Contains(string(body), `"tools/call"`) && !strings.Contains(string(body), `"fine"`)
	}
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		want   string // in the message of the error
	}{
		{"500 with an escape sequence", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "boom \x1b[31mred\x1b[0m \u202e", http.StatusInternalServerError)
		}, "HTTP 500"},
		{"403 with a page", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte("<html>" + strings.Repeat("x", 1<<20)))
		}, "HTTP 403"},
		{"404 without a session", func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }, "HTTP 404"},
		{"a redirect elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/x", http.StatusTemporaryRedirect)
		}, "HTTP 307"},
		{"a redirect to itself", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/mcp", http.StatusTemporaryRedirect)
		}, "HTTP 307"},
		{"202", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }, "evil"},
		{"an empty 200", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }, "evil"},
		{"half a body", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(`{"jsonrpc":"2.0",`))
		}, "evil"},
		{"a stream that ends", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = w.Write([]byte(": hello\n\ndata:\n\n"))
		}, "ended the stream"},
		{"a stream of comments without end", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for r.Context().Err() == nil {
				if _, err := w.Write([]byte(": hello\n")); err != nil {
					return
				}
			}
		}, "did not answer within"},
		{"a body without end", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			piece := []byte(strings.Repeat(" ", 1<<16))
			for r.Context().Err() == nil {
				if _, err := w.Write(piece); err != nil {
					return
				}
			}
		}, "larger than the limit"},
		{"an event without end", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = w.Write([]byte("data: "))
			piece := []byte(strings.Repeat("x", 1<<16))
			for r.Context().Err() == nil {
				if _, err := w.Write(piece); err != nil {
					return
				}
			}
		}, "larger than the limit"},
		{"nothing at all", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "did not answer within"},
		{"an error in a 400", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"as the server says it"}}`))
		}, "as the server says it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := mcptest.Script{}.NewHTTP(t)
			srv.Before = func(w http.ResponseWriter, r *http.Request, body []byte) bool {
				if isCall(body) {
					tt.answer(w, r)
					return true
				}
				return false
			}
			cfg := srv.Upstream("evil")
			cfg.Call = patience
			if strings.Contains(tt.want, "did not answer") {
				cfg.Call = time.Second
			}
			h := beside(t, cfg, func(r *rig) { r.max = 4 << 20 })
			h.tools()
			r := h.call("evil__echo", "{}")
			if r.Error == nil || !strings.Contains(r.Error.Message, tt.want) || len(r.Error.Message) > 2000 {
				t.Fatalf("got %s", clip(r.line))
			}
			if strings.ContainsAny(r.Error.Message, "\x1b\u202e") {
				t.Errorf("escape sequences reach the host: %q", r.Error.Message)
			}
			h.must("evil__echo", `{"text":"fine"}`)
			h.fine()
		})
	}
}

// A session that the server has forgotten is made anew, and the call, which the
// server did not handle, is made again: once.
func TestAForgottenSession(t *testing.T) {
	srv := mcptest.Script{Stateful: true}.NewHTTP(t)
	h := beside(t, srv.Upstream("evil"), func(r *rig) { r.rules = prices })
	h.tools()
	h.must("evil__echo", `{"text":"a"}`)
	for range 3 {
		srv.Forget()
		if got := h.must("evil__echo", `{"text":"b"}`); got != "b" {
			t.Errorf("got %q", got)
		}
	}
	if sp := h.spent(); sp.Calls != 4 {
		t.Errorf("%d calls are counted", sp.Calls)
	}
	n := 0
	for _, m := range srv.Seen() {
		if strings.Contains(m, `"tools/call"`) {
			n++
		}
	}
	if n != 4 {
		t.Errorf("the server saw %d calls", n)
	}
	h.fine()
}
