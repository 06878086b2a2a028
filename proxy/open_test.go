//go:build unix

package proxy_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
)

// What a server may answer to a call, as the bytes it writes ($ID is the id of
// the call), and what must come of it.
func TestStrangeAnswers(t *testing.T) {
	ok := `"result":{"content":[{"type":"text","text":"ok"}]}`
	right := `{"jsonrpc":"2.0","id":$ID,` + ok + `}`
	answers := []struct {
		name  string
		lines []string
		want  string   // the whole answer, $ID being the host's id; "error": one of haldir's own; "theirs": the server's; "answer": any
		fit   []string // nil: all
	}{
		{"as it should be", []string{right}, right, nil},
		{"twice", []string{right, `{"jsonrpc":"2.0","id":$ID,"result":{"content":[],"isError":true}}`}, right, []string{"stdio", "sse"}},
		{"a wrong id before", []string{`{"jsonrpc":"2.0","id":987654,` + ok + `}`, right}, right, []string{"stdio", "sse"}},
		{"the id of the handshake before", []string{`{"jsonrpc":"2.0","id":1,"result":{"content":[]}}`, right}, right, []string{"stdio", "sse"}},
		{"noise before", []string{"npm WARN deprecated", "\x1b[31mred\x1b[0m", "{", "[", `{"level":"info"}`, `"text"`, `7`, "\xff\xfe", "", right}, right, []string{"stdio", "sse"}},
		{"notifications nobody knows before", []string{`{"jsonrpc":"2.0","method":"notifications/weather","params":{"x":1}}`, right}, right, []string{"stdio", "sse"}},
		{"a batch", []string{`[{"jsonrpc":"2.0","method":"notifications/x"},` + right + `]`}, right, []string{"stdio", "http"}},
		{"invalid UTF-8", []string{"{\"jsonrpc\":\"2.0\",\"id\":$ID,\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"\xff\xfe\xc0\x80\"}]}}"}, "{\"jsonrpc\":\"2.0\",\"id\":$ID,\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"\xff\xfe\xc0\x80\"}]}}", nil},
		{"keys twice in the result", []string{`{"jsonrpc":"2.0","id":$ID,"result":{"content":[],"content":[1],"isError":false,"isError":true}}`}, `{"jsonrpc":"2.0","id":$ID,"result":{"content":[],"content":[1],"isError":false,"isError":true}}`, nil},
		{"big numbers", []string{`{"jsonrpc":"2.0","id":$ID,"result":{"n":123456789012345678901234567890,"f":1e999,"z":-0.0}}`}, `{"jsonrpc":"2.0","id":$ID,"result":{"n":123456789012345678901234567890,"f":1e999,"z":-0.0}}`, nil},
		{"a result that is a text", []string{`{"jsonrpc":"2.0","id":$ID,"result":"hello"}`}, `{"jsonrpc":"2.0","id":$ID,"result":"hello"}`, nil},
		{"a result that is null", []string{`{"jsonrpc":"2.0","id":$ID,"result":null}`}, `{"jsonrpc":"2.0","id":$ID,"result":null}`, nil},
		{"an error with an odd code", []string{`{"jsonrpc":"2.0","id":$ID,"error":{"code":1.5,"message":"m","data":[1]}}`}, `{"jsonrpc":"2.0","id":$ID,"error":{"code":1.5,"message":"m","data":[1]}}`, nil},
		{"5000 levels deep", []string{`{"jsonrpc":"2.0","id":$ID,"result":{"a":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}}`}, `{"jsonrpc":"2.0","id":$ID,"result":{"a":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}}`, nil},
		{"over many lines", []string{"{\n  \"jsonrpc\": \"2.0\",\r\n  \"id\": $ID,\n  \"result\": {\n\"content\": [\n]}\n}\n"}, "answer", []string{"http", "sse"}},

		// What no host could take as an answer must not be passed on as one, and
		// must not leave the host waiting: it waits for 27 hours.
		{"without jsonrpc", []string{`{"id":$ID,` + ok + `}`}, "answer", nil},
		{"jsonrpc 1.0", []string{`{"jsonrpc":"1.0","id":$ID,` + ok + `}`}, "answer", nil},
		{"both result and error", []string{`{"jsonrpc":"2.0","id":$ID,` + ok + `,"error":{"code":1,"message":"m"}}`}, "error", nil},
		{"neither result nor error", []string{`{"jsonrpc":"2.0","id":$ID}`}, "error", nil},
		{"a result twice", []string{`{"jsonrpc":"2.0","id":$ID,` + ok + `,"result":{"content":[]}}`}, "error", nil},
		{"a result beside a method", []string{`{"jsonrpc":"2.0","id":$ID,"method":"ping",` + ok + `}`}, "error", nil},
		{"an error that is a text", []string{`{"jsonrpc":"2.0","id":$ID,"error":"it did not work"}`}, "answer", nil},
		{"20,000 levels deep", []string{`{"jsonrpc":"2.0","id":$ID,"result":{"a":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}}`}, "error", nil},
		{"a wrong id and no other answer", []string{`{"jsonrpc":"2.0","id":987654,` + ok + `}`}, "error", []string{"http"}},
		{"no JSON", []string{`<html><body>502 Bad Gateway</body></html>`}, "error", []string{"http"}},
		{"nothing", []string{``}, "error", []string{"http", "sse"}},
		{"the id as a text", []string{`{"jsonrpc":"2.0","id":"$ID",` + ok + `}`}, "error", []string{"http"}},
		{"an error without id", []string{`{"jsonrpc":"2.0","error":{"code":-32700,"message":"m"}}`}, "theirs", []string{"http", "sse"}},
		{"an error with the id null", []string{`{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"m"}}`}, "theirs", []string{"http", "sse"}},
	}
	for name, start := range servers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := serve(t, rig{servers: []config.Upstream{start(mcptest.Script{})}, lax: true})
			h.tools()
			for _, tt := range answers {
				if tt.fit != nil && !slices.Contains(tt.fit, name) {
					continue
				}
				t.Run(tt.name, func(t *testing.T) {
					id, line := h.callLine("evil__raw", mcptest.Lines(tt.lines...))
					h.send(line)
					got := h.wait(time.Second, hasID(id))
					if got == "" {
						h.send(cancelLine(id))
						t.Fatal("the host waits for ever")
					}
					if why := notMessage([]byte(got)); why != "" {
						t.Errorf("no host takes this as a message (%s): %s", why, clip(got))
					}
					switch tt.want {
					case "answer":
					case "error":
						if r := parseResponse(t, got); r.Error == nil || r.Error.Code != -32603 {
							t.Errorf("got %s", clip(got))
						}
					case "theirs":
						if r := parseResponse(t, got); r.Error == nil || r.Error.Code != -32700 {
							t.Errorf("got %s", clip(got))
						}
					default:
						if want := strings.ReplaceAll(tt.want, "$ID", id); got != want {
							t.Errorf("got %s\nwant %s", clip(got), clip(want))
						}
					}
					if e := h.last(); e.Status == audit.StatusRunning {
						t.Errorf("on record: %+v", e)
					}
					if r := h.call("evil__echo", `{"text":"next"}`); r.Text != "next" { // not an answer of before
						t.Errorf("the next call: %s", clip(r.line))
					}
				})
			}
			h.alive()
			for h.wait(moment, func(l string) bool { return strings.Contains(l, `"method":"notifications/`) }) != "" {
				continue // what a server tells is passed on
			}
			h.quiet()
		})
	}
}

func TestCursorsWithoutEnd(t *testing.T) {
	for _, cursor := range []string{"endless", "repeat", "empty", "number"} {
		for name, start := range servers(t) {
			if name == "sse" {
				continue
			}
			t.Run(cursor+" "+name, func(t *testing.T) {
				t.Parallel()
				h := beside(t, start(mcptest.Script{Cursor: cursor, Tools: mcptest.Tools(mcptest.Tool("a"), mcptest.Tool("b"))}))
				begin := time.Now()
				eventually(t, "the tools are listed", func() bool { return slices.Equal(h.others(), []string{"evil__a", "evil__b", "good__echo"}) })
				t.Logf("%v", time.Since(begin).Round(time.Millisecond))
				if _, notes := h.srv.Tools(t.Context()); len(notes) != 0 {
					t.Errorf("tools are reported as withheld: %+v", notes)
				}
				h.fine()
			})
		}
	}
}

// A server whose list is never the same twice, and that says so each time, must
// not keep haldir, its disk or the host busy.
func TestAServerThatIsNeverDoneChangingItsTools(t *testing.T) {
	h := beside(t, mcptest.Script{Restless: true}.Child(t, "evil"))
	h.tools()
	time.Sleep(time.Second)
	h.fine()
	notes := 0
	for h.wait(0, hasMethod("notifications/tools/list_changed")) != "" {
		notes++
	}
	tools := h.others()
	if len(tools) != 2 {
		t.Fatalf("tools/list: %s", tools)
	}
	lists, err := strconv.Atoi(strings.TrimPrefix(tools[0], "evil__tool-"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("in a second: %d times listed anew, %d notifications to the host", lists, notes)
	if notes > 25 {
		t.Errorf("%d notifications to the host in a second", notes)
	}
	if lists > 100 {
		t.Errorf("%d times asked for the tools, and saved to disk, in a second", lists)
	}
}

// Control characters in what a server says of itself reach neither the host nor
// the log, but for its tools, which go as they are.
func TestControlCharacters(t *testing.T) {
	esc := `\u001b[31m\u0007\u0000\u202e`
	def := `{"name":"esc` + esc + `","description":"d` + esc + `","inputSchema":{"type":"object"}}`
	h := beside(t, mcptest.Script{Tools: json.RawMessage("[" + def + "," + `{"name":"bad` + esc + `"}` + "]")}.Child(t, "evil"), func(r *rig) { r.rules = deny("esc*"); r.adjust = show })
	h.tools()
	list := h.definitions()
	var d struct{ Name, Description string }
	if err := json.Unmarshal(list[0], &d); err != nil || strings.ContainsAny(d.Name, "\x1b\x00") || d.Description != "d\x1b[31m\a\x00\u202e" {
		t.Errorf("the definition: %s", list[0])
	}
	r := h.refused(d.Name, "{}")
	if strings.ContainsAny(r.Error, "\x1b\x00\u202e\a") {
		t.Errorf("the refusal has control characters: %q", r.Error)
	}
	for line := range strings.Lines(h.log.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatal(err)
		}
		for k, v := range fields {
			if s, ok := v.(string); ok && strings.ContainsAny(s, "\x1b\x00\u202e\a") {
				t.Errorf("the log has control characters in %s: %q", k, s)
			}
		}
	}
	h.fine()
}

// The host is gone altogether, as after a kill -9: nobody reads what haldir
// writes, which on a pipe ends a program on the spot. The children must not be
// left behind, nor what they have started.
func TestAHostThatIsGoneLeavesNoOrphan(t *testing.T) {
	for _, what := range []string{"stdout", "stderr", "all"} {
		t.Run(what, func(t *testing.T) {
			mark := marker()
			reap(t, mark)
			p := launch(t, world{config: "upstreams:\n" + mcptest.Script{Marker: mark, Grandchild: "group"}.YAML(t, "up")}).listen().ready("up__flood")
			p.send(p.call("slow", "up__slow", `{"ms":300}`), p.call("noise", "up__flood", `{"what":"noise","n":10}`))
			time.Sleep(100 * time.Millisecond)
			// Closing the read end of the pipe, also under a reader.
			if what != "stderr" {
				_ = p.out.Close()
			}
			if what != "stdout" {
				_ = p.errs.Close()
			}
			if what == "all" {
				_ = p.in.Close()
			} else {
				p.send(p.call("noise2", "up__flood", `{"what":"noise","n":10}`))
				time.Sleep(400 * time.Millisecond)
				if what == "stderr" { // the log is lost, the service is not
					if got := p.wait(2*time.Second, hasID(`"noise2"`)); got == "" {
						t.Error("without a reader of its log haldir does not serve any more")
					}
				}
				_ = p.in.Close()
			}
			p.end(patience, "after the host has gone")
			gone(t, mark)
		})
	}
}

// The same with a host that writes requests and does not read the answers.
func TestAHostThatWritesAndDoesNotRead(t *testing.T) {
	p := launch(t, world{})
	p.listenErr()
	p.send(initializeLine)
	if _, err := bufio.NewReader(p.out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	before := mcptest.Resident(p.cmd.Process.Pid)
	const most = 50_000
	var sent atomic.Int64
	go func() {
		filler := strings.Repeat("x", 200)
		for i := range most {
			if _, err := fmt.Fprintf(p.in, `{"jsonrpc":"2.0","id":"%d %s","method":"ping"}`+"\n", i, filler); err != nil {
				return
			}
			sent.Add(1)
		}
	}()
	peak, last, still := int64(0), int64(-1), 0
	for range 200 { // until it stands still for half a second
		time.Sleep(50 * time.Millisecond)
		peak = max(peak, mcptest.Resident(p.cmd.Process.Pid))
		if n := sent.Load(); n != last {
			last, still = n, 0
		} else if still++; still == 10 {
			break
		}
	}
	t.Logf("%d requests taken without an answer being read; resident memory %d MiB before, at most %d MiB", sent.Load(), before>>20, peak>>20)
	if sent.Load() == most {
		t.Errorf("haldir takes requests without end from a host that reads no answers; the memory grew to %d MiB", peak>>20)
	}
	start := time.Now()
	p.signal(syscall.SIGTERM)
	p.end(3*time.Second, "after a signal, with a host that does not read")
	t.Logf("gone after %v", time.Since(start).Round(time.Millisecond))
}

// A refusal tells the agent whether trying again helps.
func TestARefusalTellsWhetherToRetry(t *testing.T) {
	cold := newFake("cold")
	cold.cold = true
	h := serve(t, rig{fakes: []proxy.Upstream{newFake("up", "drop", "often"), &impatient{cold}}, adjust: show, rules: policy.Ruleset{Policies: []policy.Rule{
		{ID: "mine", Type: policy.TypeDeny, Tools: []string{"drop"}}, {Type: policy.TypeRateLimit, MaxCalls: 1, Window: time.Hour},
	}}})
	r := h.refused("up__drop", "{}")
	if r.Rule != "mine" || r.Retryable || !r.RetryAt.IsZero() || !strings.Contains(r.Error, "not retry") || !strings.HasPrefix(r.AuditID, "aud_") {
		t.Errorf("denied: %+v", r)
	}
	h.must("up__often", "{}")
	r = h.refused("up__often", "{}")
	if !r.Retryable || r.RetryAt.IsZero() || strings.Contains(r.Error, "not retry") {
		t.Errorf("too often: %+v", r)
	}
	// An upstream that has not been reached may be there in a moment: haldir
	// itself says that it keeps trying.
	r = h.refused("cold__x", "{}")
	if r.Policy != "unavailable" || !strings.Contains(r.Error, "cold") || !r.Retryable {
		t.Errorf("not reached yet: %+v", r)
	}
	// So it may have a tool that is named without it, or the name is misspelt.
	r = h.refused("x", "{}")
	if want := "Tool 'x' cannot be called: no upstream that has been reached has it, and upstream 'cold' has not been reached yet; haldir keeps trying"; r.Policy != "unknown_tool" || r.Error != want || r.Retryable {
		t.Errorf("its tool's own name: %+v", r)
	}
	// One that has been reached answers for what it has not.
	if r = h.refused("up__x", "{}"); r.Policy != "unknown_tool" || r.Retryable {
		t.Errorf("no tool: %+v", r)
	}
	cold.set("y")
	if r = h.refused("x", "{}"); r.Policy != "unknown_tool" || r.Error != "There is no tool 'x'" || r.Retryable {
		t.Errorf("no tool of any: %+v", r)
	}
}
