package wire_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/haldir-mcp/haldir/internal/wire"
)

var _ wire.Client = (*wire.Pipe)(nil)

// peer is the other end of a Pipe, in the hands of the test: it reads and writes
// when told to, over unbuffered pipes.
type peer struct {
	t      testing.TB
	stdin  *io.PipeReader // what haldir writes
	stdout *io.PipeWriter // what haldir reads
	lines  *bufio.Reader
}

// noise is what a Pipe could not use.
type noise struct {
	line string
	why  error
}

// connect starts a Pipe and its peer. Handler and Noise may be left out.
func connect(t testing.TB, o wire.PipeOptions) (*wire.Pipe, *peer) {
	t.Helper()
	if o.Handler == nil {
		o.Handler = func(m wire.Message) { t.Errorf("unexpected message: %s", clip(m.Raw)) }
	}
	if o.Noise == nil {
		o.Noise = func(line []byte, why error) { t.Errorf("unexpected noise: %q: %v", clip(line), why) }
	}
	stdin, in := io.Pipe()
	out, stdout := io.Pipe()
	p := wire.NewPipe(in, out, o)
	t.Cleanup(p.Close)
	return p, &peer{t: t, stdin: stdin, stdout: stdout, lines: bufio.NewReader(stdin)}
}

// read returns the next line that haldir writes.
func (p *peer) read() map[string]json.RawMessage {
	p.t.Helper()
	line, err := p.lines.ReadBytes('\n')
	if err != nil {
		p.t.Errorf("the peer reads %q: %v", line, err)
		return nil
	}
	return object(p.t, line)
}

// readRest returns all that haldir still writes until it closes the pipe.
func (p *peer) readRest() string {
	b, _ := io.ReadAll(p.lines)
	return string(b)
}

func (p *peer) write(lines ...string) {
	p.t.Helper()
	for _, l := range lines {
		if _, err := io.WriteString(p.stdout, l+"\n"); err != nil {
			p.t.Errorf("the peer writes: %v", err)
			return
		}
	}
}

func (p *peer) die() {
	_ = p.stdin.CloseWithError(io.ErrClosedPipe)
	_ = p.stdout.Close()
}

// start makes a call and returns where its result will be.
func start(ctx context.Context, c wire.Client, method, params string) <-chan result {
	ch := make(chan result, 1)
	var raw json.RawMessage
	if params != "" {
		raw = json.RawMessage(params)
	}
	go func() {
		m, err := c.Call(ctx, method, raw)
		ch <- result{m, err}
	}()
	return ch
}

// post sends in the background: Send returns once the message is written, which
// is when the peer reads.
func post(ctx context.Context, c wire.Client, msg string) <-chan error {
	ch := make(chan error, 1)
	go func() { ch <- c.Send(ctx, []byte(msg)) }()
	return ch
}

func answer(id json.RawMessage, result string) string {
	return `{"jsonrpc":"2.0","id":` + string(id) + `,"result":` + result + `}`
}

func TestPipeSendsARequestOnOneLineAndReturnsTheAnswersBytes(t *testing.T) {
	p, peer := connect(t, wire.PipeOptions{})
	got := start(t.Context(), p, "tools/call", "{\n\"name\":\r\n\"x\",\"big\":9007199254740993}")
	req := peer.read()
	if string(req["jsonrpc"]) != `"2.0"` || string(req["method"]) != `"tools/call"` || !strings.Contains(string(req["params"]), "9007199254740993") {
		t.Errorf("the peer got %s", req)
	}
	raw := " {\"jsonrpc\":\"2.0\",\"result\":{\"a\":1.0,\"a\":2,\"z\":\"\\u0061\xff\"}, \"x-vendor\":[ 1 ],\"id\":" + string(req["id"]) + "} "
	peer.write(raw)
	r := receive(t, "the call", got)
	if r.err != nil || string(r.m.Raw) != strings.TrimSpace(raw) {
		t.Errorf("Call = %q, %v", r.m.Raw, r.err)
	}
	if want := strings.TrimSpace(strings.Replace(raw, `"id":`+string(req["id"]), `"id":"h"`, 1)); string(r.m.WithID(json.RawMessage(`"h"`))) != want {
		t.Errorf("WithID = %q, want %q", r.m.WithID(json.RawMessage(`"h"`)), want)
	}
	got = start(t.Context(), p, "ping", "")
	req = peer.read()
	if _, ok := req["params"]; ok {
		t.Errorf("params that nobody gave: %s", req)
	}
	peer.write(`{"jsonrpc":"2.0","id":` + string(req["id"]) + `,"error":{"code":-32000,"message":"no","data":1.0}}`)
	if r := receive(t, "the second call", got); r.err != nil || string(r.m.Error) != `{"code":-32000,"message":"no","data":1.0}` {
		t.Errorf("an error response is an answer too: %+v", r)
	}
}

func TestAnswersOutOfOrderReachTheirOwnCalls(t *testing.T) {
	p, peer := connect(t, wire.PipeOptions{})
	const calls = 100
	results := make([]<-chan result, calls)
	for i := range results {
		results[i] = start(t.Context(), p, "x", fmt.Sprintf(`{"n":%d}`, i))
	}
	seen := map[string]bool{}
	var answers []string
	for range results {
		req := peer.read()
		if id := string(req["id"]); seen[id] {
			t.Errorf("id %s is used twice", id)
		} else {
			seen[id] = true
		}
		answers = append(answers, answer(req["id"], string(req["params"])))
	}
	for i := range answers { // the last first
		peer.write(answers[calls-1-i])
	}
	for i, ch := range results {
		if r := receive(t, "a call", ch); r.err != nil || string(r.m.Result) != fmt.Sprintf(`{"n":%d}`, i) {
			t.Errorf("call %d got %s, %v", i, r.m.Raw, r.err)
		}
	}
}

// A peer that does not read its stdin: what waits behind the stuck write never
// leaves when its call is given up, however long the peer sleeps.
func TestACallCancelledBeforeItIsWrittenIsNotSentAndNeverWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, peer := connect(t, wire.PipeOptions{})
		go func() { _ = p.Send(t.Context(), []byte(`{"jsonrpc":"2.0","method":"notifications/stuck"}`)) }()
		synctest.Wait() // the writer is now in Write
		why := errors.New("the host gave up")
		ctx, cancel := context.WithCancelCause(t.Context())
		first := start(ctx, p, "tools/call", `{"secret":1}`)
		deadline, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		second := start(deadline, p, "tools/call", `{"secret":2}`)
		kept := start(t.Context(), p, "tools/call", `{"kept":3}`)
		synctest.Wait()
		cancel(why)
		if r := receive(t, "the cancelled call", first); !errors.Is(r.err, wire.ErrNotSent) || !errors.Is(r.err, why) {
			t.Errorf("the cancelled call: %v", r.err)
		}
		time.Sleep(time.Hour)
		if r := receive(t, "the expired call", second); !errors.Is(r.err, wire.ErrNotSent) || !errors.Is(r.err, context.DeadlineExceeded) {
			t.Errorf("the expired call: %v", r.err)
		}
		// the peer wakes up
		if m := peer.read(); string(m["method"]) != `"notifications/stuck"` {
			t.Errorf("first: %s", m)
		}
		req := peer.read()
		if string(req["params"]) != `{"kept":3}` {
			t.Errorf("then: %s", req)
		}
		peer.write(answer(req["id"], `{}`))
		if r := receive(t, "the kept call", kept); r.err != nil {
			t.Error(r.err)
		}
		synctest.Wait()
		go p.Close()
		if rest := peer.readRest(); rest != "" {
			t.Errorf("and after that: %q", rest)
		}
	})
}

func TestACallCancelledWhileItIsWrittenMayHaveBeenSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, peer := connect(t, wire.PipeOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		call := start(ctx, p, "tools/call", `{}`)
		synctest.Wait() // in Write: some of its bytes may be out
		cancel()
		// the call must come back though the peer still does not read
		if r := receive(t, "the call", call); errors.Is(r.err, wire.ErrNotSent) || !errors.Is(r.err, context.Canceled) {
			t.Errorf("the call: %v", r.err)
		}
		req, notice := peer.read(), peer.read()
		if string(notice["method"]) != `"notifications/cancelled"` || string(object(t, notice["params"])["requestId"]) != string(req["id"]) {
			t.Errorf("after request %s came %s", req["id"], notice)
		}
	})
}

func TestACancelledCallIsToldOnceByItsOwnID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard list[noise]
		p, peer := connect(t, wire.PipeOptions{Noise: func(line []byte, why error) { heard.add(noise{string(line), why}) }})
		other := start(t.Context(), p, "tools/call", `{"n":"other"}`)
		otherReq := peer.read()
		ctx, cancel := context.WithCancelCause(t.Context())
		call := start(ctx, p, "tools/call", `{"n":"cancelled"}`)
		req := peer.read()
		why := errors.New("stop \"this\"\nnow \xff")
		cancel(why)
		if r := receive(t, "the call", call); !errors.Is(r.err, why) || errors.Is(r.err, wire.ErrNotSent) {
			t.Errorf("the call: %v", r.err)
		}
		notice := peer.read()
		if _, ok := notice["id"]; ok || string(notice["method"]) != `"notifications/cancelled"` {
			t.Errorf("the notice is %s", notice)
		}
		params := object(t, notice["params"])
		if string(params["requestId"]) != string(req["id"]) {
			t.Errorf("the notice names request %s, not %s", params["requestId"], req["id"])
		}
		var reason string
		if err := json.Unmarshal(params["reason"], &reason); err != nil || !strings.HasPrefix(reason, "stop \"this\"\nnow ") {
			t.Errorf("the reason is %s", params["reason"])
		}
		// an answer that was under way is no harm to anybody; another one is
		peer.write(answer(req["id"], `"late"`), answer(req["id"], `"again"`), answer(otherReq["id"], `"mine"`))
		if r := receive(t, "the other call", other); string(r.m.Result) != `"mine"` {
			t.Errorf("the other call: %s, %v", r.m.Raw, r.err)
		}
		synctest.Wait()
		if n := heard.all(); len(n) != 1 || n[0].line != answer(req["id"], `"again"`) {
			t.Errorf("noise: %v", n)
		}
		go p.Close()
		if rest := peer.readRest(); rest != "" {
			t.Errorf("a second notice: %q", rest)
		}
	})
}

// MCP lifecycle: the initialize request must not be cancelled by clients.
func TestInitializeIsNeverCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, peer := connect(t, wire.PipeOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		call := start(ctx, p, "initialize", `{}`)
		peer.read()
		if r := receive(t, "the call", call); !errors.Is(r.err, context.DeadlineExceeded) || errors.Is(r.err, wire.ErrNotSent) {
			t.Errorf("the call: %v", r.err)
		}
		synctest.Wait()
		go p.Close()
		if rest := peer.readRest(); rest != "" {
			t.Errorf("the peer was told: %q", rest)
		}
	})
}

// Whatever wins the race, the error and the wire must tell the same story.
func TestACallWhoseContextIsOverTellsTheTruthAboutWhatWasSent(t *testing.T) {
	sent, kept := 0, 0
	for range 300 {
		p, peer := connect(t, wire.PipeOptions{})
		rest := make(chan string, 1)
		go func() { rest <- peer.readRest() }()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := p.Call(ctx, "tools/call", json.RawMessage(`{}`))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Call: %v", err)
		}
		if !errors.Is(err, wire.ErrNotSent) { // let the notice out before the end
			if err := p.Send(t.Context(), []byte(`{"last":1}`)); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Millisecond)
		}
		p.Close()
		written := receive(t, "what the peer read", rest)
		if errors.Is(err, wire.ErrNotSent) {
			kept++
			if written != "" {
				t.Fatalf("ErrNotSent, but the peer got %q", written)
			}
		} else {
			sent++
		}
	}
	t.Logf("%d sent, %d not", sent, kept)
}

func TestWhenThePeerDiesEveryCallEndsAndOnlyWhatWasNotWrittenIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, peer := connect(t, wire.PipeOptions{})
		written := start(t.Context(), p, "tools/call", `{"n":1}`)
		peer.read()
		stuck := start(t.Context(), p, "tools/call", `{"n":2}`) // in Write, unread
		synctest.Wait()
		queued := start(t.Context(), p, "tools/call", `{"n":3}`)
		synctest.Wait()
		if p.Err() != nil {
			t.Errorf("Err before the end: %v", p.Err())
		}
		_ = peer.stdout.Close() // the process is gone, as the read loop learns first
		for name, c := range map[string]struct {
			call    <-chan result
			notSent bool
		}{"written": {written, false}, "in the middle of writing": {stuck, false}, "queued": {queued, true}} {
			r := receive(t, "the call "+name, c.call)
			if r.err == nil || errors.Is(r.err, wire.ErrNotSent) != c.notSent {
				t.Errorf("the call %s: %v", name, r.err)
			}
		}
		receive(t, "Done", p.Done())
		if p.Err() == nil || errors.Is(p.Err(), wire.ErrClosed) {
			t.Errorf("Err: %v", p.Err())
		}
		first := p.Err()
		if _, err := p.Call(t.Context(), "tools/call", nil); !errors.Is(err, wire.ErrNotSent) || !errors.Is(err, first) {
			t.Errorf("a call after the end: %v", err)
		}
		if err := p.Send(t.Context(), []byte(`{}`)); err == nil {
			t.Error("Send after the end returns nil")
		}
		peer.die()
		p.Close()
		if !errors.Is(p.Err(), first) {
			t.Errorf("Err changed from %v to %v", first, p.Err())
		}
	})
}

// A write that fails ends the conversation too: the process is gone though a
// grandchild may hold its stdout open.
func TestAFailedWriteEndsTheConversation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, peer := connect(t, wire.PipeOptions{})
		_ = peer.stdin.CloseWithError(errors.New("broken pipe"))
		r := receive(t, "the call", start(t.Context(), p, "tools/call", `{}`))
		if r.err == nil {
			t.Error("the call succeeded")
		}
		receive(t, "Done", p.Done())
		if _, err := p.Call(t.Context(), "x", nil); !errors.Is(err, wire.ErrNotSent) {
			t.Errorf("a call after it: %v", err)
		}
	})
}

// The last thing a one-shot server does is to answer and exit.
func TestAnAnswerRightBeforeTheEndIsNotLost(t *testing.T) {
	for range 200 {
		p, peer := connect(t, wire.PipeOptions{})
		call := start(t.Context(), p, "tools/call", `{}`)
		req := peer.read()
		go func() {
			peer.write(answer(req["id"], `"last words"`))
			peer.die()
		}()
		if r := receive(t, "the call", call); r.err != nil || string(r.m.Result) != `"last words"` {
			t.Fatalf("the call: %s, %v", r.m.Raw, r.err)
		}
		p.Close()
	}
}

func TestAnAnswerWithoutALineBreakBeforeTheEndCounts(t *testing.T) {
	p, peer := connect(t, wire.PipeOptions{})
	call := start(t.Context(), p, "tools/call", `{}`)
	req := peer.read()
	if _, err := io.WriteString(peer.stdout, answer(req["id"], `1`)); err != nil {
		t.Fatal(err)
	}
	peer.die()
	if r := receive(t, "the call", call); r.err != nil || string(r.m.Result) != `1` {
		t.Errorf("the call: %s, %v", r.m.Raw, r.err)
	}
}

// Nobody must wait for ever for an answer that came, but cannot be read.
func TestAnAnswerThatCannotBeReadFailsItsCall(t *testing.T) {
	for name, line := range map[string]string{
		"both result and error": `{"jsonrpc":"2.0","id":%s,"result":{},"error":{"code":1,"message":"m"}}`,
		"neither":               `{"jsonrpc":"2.0","id":%s}`, // JSON.stringify leaves an undefined result out
		"two results":           `{"jsonrpc":"2.0","id":%s,"result":1,"result":2}`,
		"cut off":               `{"jsonrpc":"2.0","id":%s,"result":{"a":`,
		"an error that is text": `{"jsonrpc":"2.0","id":%s,"error":"oops"}`,
		"NaN":                   `{"jsonrpc":"2.0","id":%s,"result":{"value":NaN}}`, // Python's json.dumps writes it
		"beside a method":       `{"jsonrpc":"2.0","id":%s,"method":"x","result":{}}`,
		"not called JSON-RPC":   `{"id":%s,"result":{}}`,
	} {
		t.Run(name, func(t *testing.T) {
			var heard list[noise]
			p, peer := connect(t, wire.PipeOptions{Noise: func(line []byte, why error) { heard.add(noise{string(line), why}) }})
			other := start(t.Context(), p, "other", "")
			otherReq := peer.read()
			call := start(t.Context(), p, "tools/call", "")
			req := peer.read()
			peer.write(fmt.Sprintf(line, req["id"]))
			r := receive(t, "the call", call)
			if r.err == nil && (r.m.Error == nil || string(object(t, r.m.WithID(json.RawMessage(`"h"`)))["id"]) != `"h"`) || errors.Is(r.err, wire.ErrNotSent) {
				t.Errorf("the call: %s, %v", r.m.Raw, r.err)
			}
			peer.write(answer(otherReq["id"], `{}`))
			if r := receive(t, "the other call", other); r.m.Result == nil {
				t.Errorf("the other call: %s, %v", r.m.Raw, r.err)
			}
			if len(heard.all()) != 1 { // by now: the next line has been read
				t.Errorf("noise: %v", heard.all())
			}
		})
	}
}

// Revision 2025-03-26 has batches; a server of it may answer with one.
func TestABatchIsReadMessageByMessageInOrder(t *testing.T) {
	var handled list[string]
	var heard list[noise]
	p, peer := connect(t, wire.PipeOptions{
		Handler: func(m wire.Message) { handled.add(m.Method) },
		Noise:   func(line []byte, why error) { heard.add(noise{string(line), why}) },
	})
	a, b := start(t.Context(), p, "a", ""), start(t.Context(), p, "b", "")
	byMethod := map[string]json.RawMessage{}
	for range 2 {
		req := peer.read()
		byMethod[string(req["method"])] = req["id"]
	}
	peer.write(` [ {"jsonrpc":"2.0","method":"n1"} , ` + answer(byMethod[`"b"`], `"B"`) + `,{"jsonrpc":"2.0","id":1,"method":"r2"}, "rubbish", ` +
		answer(byMethod[`"a"`], `"A"`) + `,{"jsonrpc":"2.0","method":"n3"}] `)
	if r := receive(t, "a", a); string(r.m.Result) != `"A"` {
		t.Errorf("a: %s, %v", r.m.Raw, r.err)
	}
	if r := receive(t, "b", b); string(r.m.Result) != `"B"` || string(r.m.WithID(json.RawMessage(`7`))) != answer(json.RawMessage(`7`), `"B"`) {
		t.Errorf("b: %s, %v", r.m.Raw, r.err)
	}
	c := start(t.Context(), p, "c", "")
	peer.write(`[]`, answer(peer.read()["id"], `{}`))
	receive(t, "c", c)
	if diff := cmp.Diff([]string{"n1", "r2", "n3"}, handled.all()); diff != "" {
		t.Error(diff)
	}
	if n := heard.all(); len(n) == 0 {
		t.Error("the rubbish in the batch is not reported")
	}
}

// JSON-RPC 2.0 section 6: a batch holds messages, not batches.
// Many servers log to stdout, some of them JSON that names the request. Such a
// line is noise: it must neither answer nor fail a call, whose real answer is
// still to come (and whose cost must not be settled as failed).
func TestNoiseIsReportedLineByLineAndChangesNothing(t *testing.T) {
	var heard list[noise]
	p, peer := connect(t, wire.PipeOptions{Noise: func(line []byte, why error) { heard.add(noise{string(line), why}) }})
	call := start(t.Context(), p, "tools/call", `{}`)
	req := peer.read()
	id := string(req["id"])
	lines := []string{
		"Server listening on stdio", "\x1b[32mINFO\x1b[0m ready", `{"level":"info"}`, `{`, `null`, `1`, `"x"`, `[1,{"a":1}]`, "\xff\xfe", "\x00",
		`{"level":"info","msg":"handling a request","id":` + id + `}`,           // a log line that names the request
		`{"id":` + id + `,"method":"tools/call","params":{},"level":"debug"}`,   // one that echoes it
		`{"level":"error","id":` + id + `,"msg":"will try again"}`,              // as zerolog writes
		`{"level":"warn","id":` + id + `,"error":"timeout","result":"retry"}`,   // and with fields of these names
		`{"jsonrpc":"2.0","id":` + id + `,"method":"x","params":{"error":NaN}}`, // a request of its own that cannot be read
		`{"jsonrpc":"2.0","id":` + id + `,"method":"x","params":{"result":`,     // likewise
		`{"jsonrpc":"2.0","id":` + id + `,"id":5,"result":{}}`,                  // two ids
		`{"jsonrpc":"2.0","id":"` + id + `","result":"a string id"}`,            // "1" is not 1
		`{"jsonrpc":"2.0","id":999,"result":{}}`,                                // an id never used
		`{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}`,          // about nothing in particular
		`{"jsonrpc":"2.0","error":{"code":1,"message":"x"}}`,                    // likewise
		`[{"jsonrpc":"2.0","id":` + id + `,"result":{}}] trailing`,              // no JSON
		"\ufeff" + `{"jsonrpc":"2.0","id":` + id + `,"result":"a mark"}`,        // no JSON
	}
	peer.write(append(lines, "", "   ", answer(req["id"], `"real"`))...)
	if r := receive(t, "the call", call); string(r.m.Result) != `"real"` {
		t.Errorf("the call: %s, %v", r.m.Raw, r.err)
	}
	// a second answer to the same request
	peer.write(answer(req["id"], `"again"`))
	call = start(t.Context(), p, "ping", "")
	peer.write(answer(peer.read()["id"], `{}`))
	receive(t, "a call that follows", call)
	var got []string
	for _, n := range heard.all() {
		if n.why == nil {
			t.Errorf("no reason for %q", n.line)
		}
		got = append(got, n.line)
	}
	if diff := cmp.Diff(append(lines, answer(req["id"], `"again"`)), got); diff != "" {
		t.Error(diff)
	}
}

func TestABatchInABatchIsNoise(t *testing.T) {
	var heard list[noise]
	p, peer := connect(t, wire.PipeOptions{Noise: func(line []byte, why error) { heard.add(noise{string(line), why}) }})
	call := start(t.Context(), p, "x", "")
	req := peer.read()
	peer.write(`[[`+answer(req["id"], `"nested"`)+`]]`, answer(req["id"], `"flat"`))
	if r := receive(t, "the call", call); string(r.m.Result) != `"flat"` {
		t.Errorf("the call: %s, %v", r.m.Raw, r.err)
	}
	if len(heard.all()) == 0 {
		t.Error("it is not reported")
	}
}

// Reading each level again costs the square of the length: a line of the
// default limit, 32 MiB, with 10,000 levels would be 320 GB of JSON to read.
func TestNestedBatchesDoNotMultiplyTheWork(t *testing.T) {
	p, peer := connect(t, wire.PipeOptions{Noise: func([]byte, error) {}})
	took := func(levels int) time.Duration {
		line := strings.Repeat("[", levels) + `{"a":[` + strings.Repeat("0,", 20_000) + `0]}` + strings.Repeat("]", levels)
		call := start(t.Context(), p, "x", "")
		req := peer.read()
		began := time.Now()
		peer.write(line, answer(req["id"], `1`))
		receive(t, "the call behind the batch", call)
		return time.Since(began)
	}
	took(1) // warm up
	one := min(took(1), took(1), took(1))
	if many := min(took(200), took(200)); many > 25*one {
		t.Errorf("1 level takes %v, 200 levels of the same length %v", one, many)
	}
}

// mcp-go drops 399 of 500 and lets the answer overtake. The handler writes
// without a lock: under -race this also proves that the answer comes after it.
func TestTenThousandNotificationsBeforeAnAnswerAllComeInOrderBeforeIt(t *testing.T) {
	const n = 10_000
	var got []int
	p, peer := connect(t, wire.PipeOptions{Handler: func(m wire.Message) {
		i, err := strconv.Atoi(string(object(t, m.Params)["i"]))
		if err != nil || m.Method != "notifications/progress" {
			t.Errorf("%s: %v", m.Raw, err)
		}
		got = append(got, i)
	}})
	call := start(t.Context(), p, "tools/call", `{}`)
	req := peer.read()
	go func() {
		w := bufio.NewWriter(peer.stdout)
		for i := range n {
			fmt.Fprintf(w, `{"jsonrpc":"2.0","method":"notifications/progress","params":{"i":%d}}`+"\n", i)
		}
		fmt.Fprintln(w, answer(req["id"], `{}`))
		if err := w.Flush(); err != nil {
			t.Error(err)
		}
	}()
	if r := receive(t, "the call", call); r.err != nil {
		t.Fatal(r.err)
	}
	if len(got) != n {
		t.Fatalf("%d of %d came before the answer", len(got), n)
	}
	for i, v := range got {
		if i != v {
			t.Fatalf("number %d came as the %dth", v, i)
		}
	}
}

// A host that does not read must slow the upstream, not fill haldir's memory.
func TestASlowHandlerHoldsThePeerBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		handled := 0
		p, peer := connect(t, wire.PipeOptions{Handler: func(wire.Message) { <-gate; handled++ }})
		line := `{"jsonrpc":"2.0","method":"notifications/message","params":{"pad":"` + strings.Repeat("x", 1000) + `"}}`
		const n = 5000
		written := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range n {
				peer.write(line)
				written++
			}
		}()
		synctest.Wait()
		if size := written * len(line); size > 256<<10 {
			t.Errorf("%d KiB were taken from the peer while the handler sleeps", size>>10)
		}
		// calls still go out meanwhile: only reading waits
		call := start(t.Context(), p, "x", "")
		req := peer.read()
		// and a call given up meanwhile comes back at once
		ctx, cancel := context.WithCancel(t.Context())
		given := start(ctx, p, "y", "")
		peer.read()
		cancel()
		receive(t, "the cancelled call", given)
		peer.read() // its notice
		close(gate)
		<-done
		peer.write(answer(req["id"], `{}`))
		receive(t, "the call", call)
		if handled != n {
			t.Errorf("%d of %d handled", handled, n)
		}
	})
}

func TestARequestFromTheUpstreamCanBeAnsweredFromTheHandler(t *testing.T) {
	var p *wire.Pipe
	ready := make(chan struct{})
	p, peer := connect(t, wire.PipeOptions{Handler: func(m wire.Message) {
		<-ready
		if err := p.Send(context.Background(), wire.Result(m.ID, json.RawMessage("{\n}"))); err != nil {
			t.Error(err)
		}
	}})
	close(ready)
	// its id equals that of a pending call of haldir's: two id spaces
	call := start(t.Context(), p, "tools/call", `{}`)
	req := peer.read()
	peer.write(`{"jsonrpc":"2.0","id":` + string(req["id"]) + `,"method":"sampling/createMessage","params":{}}`)
	if m := peer.read(); string(m["id"]) != string(req["id"]) || string(m["result"]) != `{ }` {
		t.Errorf("the answer is %s", m)
	}
	peer.write(answer(req["id"], `"mine"`))
	if r := receive(t, "the call", call); string(r.m.Result) != `"mine"` {
		t.Errorf("the call: %s, %v", r.m.Raw, r.err)
	}
}

func TestATooLargeAnswerFailsItsOwnCallOnly(t *testing.T) {
	var heard, handled list[string]
	p, peer := connect(t, wire.PipeOptions{
		MaxMessage: 1000,
		Noise:      func(line []byte, why error) { heard.add(why.Error()) },
		Handler:    func(m wire.Message) { handled.add(m.Method) },
	})
	pad := strings.Repeat("x", 5000)
	big, small := start(t.Context(), p, "big", ""), start(t.Context(), p, "small", "")
	ids := map[string]json.RawMessage{}
	for range 2 {
		req := peer.read()
		ids[string(req["method"])] = req["id"]
	}
	peer.write(
		`{"jsonrpc":"2.0","method":"notifications/big","params":{"id":`+string(ids[`"small"`])+`,"pad":"`+pad+`"}}`,
		`{"jsonrpc":"2.0","result":{"id":`+string(ids[`"small"`])+`,"pad":"`+pad+`"},"id":`+string(ids[`"big"`])+`}`,
		`{"jsonrpc":"2.0","method":"notifications/small"}`,
		answer(ids[`"small"`], `"fits"`),
	)
	r := receive(t, "the small answer", small)
	if string(r.m.Result) != `"fits"` {
		t.Errorf("the small answer: %s, %v", clip(r.m.Raw), r.err)
	}
	r = receive(t, "the big answer", big)
	if r.err == nil { // a response, then, that says what happened and can be passed on
		e := wire.ErrorOf(r.m)
		if r.m.Error == nil || e.Code != wire.CodeInternal || !strings.Contains(e.Message, "1000 bytes") {
			t.Errorf("the big answer: %s", r.m.Raw)
		}
		if out := object(t, r.m.WithID(json.RawMessage(`"host"`))); string(out["id"]) != `"host"` || string(out["error"]) != string(r.m.Error) {
			t.Errorf("passed on it is %s", out)
		}
	} else if errors.Is(r.err, wire.ErrNotSent) {
		t.Errorf("the big answer: %v", r.err)
	}
	if diff := cmp.Diff([]string{"notifications/small"}, handled.all()); diff != "" {
		t.Error(diff)
	}
	if len(heard.all()) < 2 {
		t.Errorf("two lines were dropped, reported: %q", heard.all())
	}
	if p.Err() != nil {
		t.Errorf("the conversation is over: %v", p.Err())
	}
}

// Servers count their requests 1, 2, 3 like haldir does. A sampling request with
// a picture in it, too large to read, must not fail the call with its number:
// the call is under way, its answer is still to come.
func TestATooLargeRequestFromTheUpstreamIsNotTakenForAnAnswer(t *testing.T) {
	for name, order := range map[string]string{
		"id first":     `{"jsonrpc":"2.0","id":%[1]s,"method":"sampling/createMessage","params":{"pad":"%[2]s"}}`,
		"id last":      `{"jsonrpc":"2.0","params":{"pad":"%[2]s"},"method":"sampling/createMessage","id":%[1]s}`,
		"method first": `{"method":"sampling/createMessage","id":%[1]s,"params":{"result":1,"pad":"%[2]s"},"jsonrpc":"2.0"}`,
	} {
		t.Run(name, func(t *testing.T) {
			p, peer := connect(t, wire.PipeOptions{MaxMessage: 1000, Noise: func([]byte, error) {}})
			call := start(t.Context(), p, "tools/call", `{}`)
			req := peer.read()
			go func() { // whatever haldir answers to the oversized request
				_, _ = io.Copy(io.Discard, peer.lines)
			}()
			peer.write(fmt.Sprintf(order, req["id"], strings.Repeat("x", 5000)), answer(req["id"], `"real"`))
			if r := receive(t, "the call", call); string(r.m.Result) != `"real"` {
				t.Errorf("the call: %s, %v", r.m.Raw, r.err)
			}
		})
	}
}

func TestWhatOneGoroutineSendsKeepsItsOrder(t *testing.T) {
	p, peer := connect(t, wire.PipeOptions{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 100 {
			if err := p.Send(t.Context(), fmt.Appendf(nil, `{"jsonrpc":"2.0","method":"n","params":{"i":%d}}`, i)); err != nil {
				t.Error(err)
			}
			if i%10 == 9 {
				if _, err := p.Call(t.Context(), "call", fmt.Appendf(nil, `{"i":%d}`, i)); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	for i := range 100 {
		if m := peer.read(); string(m["method"]) != `"n"` || string(m["params"]) != fmt.Sprintf(`{"i":%d}`, i) {
			t.Fatalf("message %d is %s", i, m)
		}
		if i%10 == 9 {
			m := peer.read()
			if string(m["method"]) != `"call"` || string(m["params"]) != fmt.Sprintf(`{"i":%d}`, i) {
				t.Fatalf("the call after message %d is %s", i, m)
			}
			peer.write(answer(m["id"], `{}`))
		}
	}
	receive(t, "the sender", done)
}

func TestSendReturnsOnceTheMessageIsWrittenOrWillNeverBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, peer := connect(t, wire.PipeOptions{})
		first := post(t.Context(), p, `{"jsonrpc":"2.0","method":"first"}`)
		synctest.Wait()
		why := errors.New("given up")
		ctx, cancel := context.WithCancelCause(t.Context())
		second := post(ctx, p, `{"jsonrpc":"2.0","method":"second"}`)
		synctest.Wait()
		third := post(t.Context(), p, `{"jsonrpc":"2.0","method":"third"}`)
		synctest.Wait()
		cancel(why)
		if err := receive(t, "the second", second); !errors.Is(err, why) {
			t.Errorf("the second: %v", err)
		}
		if len(first)+len(third) > 0 {
			t.Error("Send returned though nobody reads")
		}
		if m := peer.read(); string(m["method"]) != `"first"` {
			t.Errorf("the peer got %s", m)
		}
		if err := receive(t, "the first", first); err != nil {
			t.Error(err)
		}
		if m := peer.read(); string(m["method"]) != `"third"` { // the second was given up in time
			t.Errorf("the peer got %s", m)
		}
		fourth := post(t.Context(), p, `{"jsonrpc":"2.0","method":"fourth"}`)
		fifth := post(t.Context(), p, `{"jsonrpc":"2.0","method":"fifth"}`)
		synctest.Wait()
		p.Close()
		for _, ch := range []<-chan error{fourth, fifth} {
			if err := receive(t, "a Send under way at the end", ch); !errors.Is(err, wire.ErrClosed) {
				t.Errorf("a Send under way at the end: %v", err)
			}
		}
	})
}

// A message is often a part of a bigger buffer; one notification may go to
// several upstreams at once. The line break must not be written behind it into
// memory that belongs to somebody else.
func TestSendWritesNothingIntoTheCallersBuffer(t *testing.T) {
	buf := []byte(`{"jsonrpc":"2.0","method":"n"}, the next one`)
	before := string(buf)
	p, peer := connect(t, wire.PipeOptions{})
	sent := make(chan error, 1)
	go func() { sent <- p.Send(t.Context(), buf[:30]) }()
	if m := peer.read(); string(m["method"]) != `"n"` {
		t.Errorf("the peer got %s", m)
	}
	if err := receive(t, "Send", sent); err != nil {
		t.Error(err)
	}
	if string(buf) != before {
		t.Errorf("the caller's buffer is now %q", buf)
	}
}

func TestOneMessageMayBeSentToManyPipesAtOnce(t *testing.T) {
	msg := append(make([]byte, 0, 100), `{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}`...)
	var wg sync.WaitGroup
	for range 8 {
		p, peer := connect(t, wire.PipeOptions{})
		wg.Go(func() {
			if err := p.Send(t.Context(), msg); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() { peer.read() })
	}
	wg.Wait()
}

// "As long as the calls in flight", says the queue's comment. A peer that has
// stopped reading must not make haldir keep what is no longer wanted: an agent
// retries for hours.
func TestCallsGivenUpBehindAStuckPeerCostNoMemory(t *testing.T) {
	p, _ := connect(t, wire.PipeOptions{})
	post(t.Context(), p, `{"jsonrpc":"2.0","method":"stuck"}`)
	params := json.RawMessage(`{"pad":"` + strings.Repeat("x", 64<<10) + `"}`)
	call := func() {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Microsecond)
		defer cancel()
		if _, err := p.Call(ctx, "tools/call", params); err == nil {
			t.Error("a call succeeded")
		}
	}
	call()
	before := heapInUse()
	for range 1000 {
		call()
	}
	if after := heapInUse(); after > before+(8<<20) {
		t.Errorf("1000 calls of 64 KiB that were given up hold %d MiB", (after-before)>>20)
	}
	runtime.KeepAlive(p)
}

func TestCloseEndsEverythingAtOnceAndLeaksNothing(t *testing.T) {
	for name, prepare := range map[string]func(p *wire.Pipe, peer *peer){
		"idle":                         func(*wire.Pipe, *peer) {},
		"a peer that does not read":    func(p *wire.Pipe, _ *peer) { start(context.Background(), p, "x", "{}") },
		"a call that is being handled": func(p *wire.Pipe, peer *peer) { start(context.Background(), p, "x", "{}"); peer.read() },
		"a peer that is gone":          func(_ *wire.Pipe, peer *peer) { peer.die() },
		"an input that is closed": func(p *wire.Pipe, peer *peer) {
			if err := p.CloseInput(); err != nil {
				t.Error(err)
			}
			if rest := peer.readRest(); rest != "" {
				t.Errorf("the peer reads %q", rest)
			}
		},
		"a queue": func(p *wire.Pipe, _ *peer) {
			for range 100 {
				start(context.Background(), p, "x", "{}")
				post(context.Background(), p, "{}")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ignore := goleak.IgnoreCurrent()
			p, peer := connect(t, wire.PipeOptions{})
			prepare(p, peer)
			within(t, "Close", p.Close)
			receive(t, "Done", p.Done())
			within(t, "a second Close", p.Close)
			if _, err := p.Call(t.Context(), "x", nil); !errors.Is(err, wire.ErrNotSent) {
				t.Errorf("a call after Close: %v", err)
			}
			if err := p.Send(t.Context(), []byte("{}")); err == nil {
				t.Error("Send after Close returns nil")
			}
			if name != "a peer that is gone" && !errors.Is(p.Err(), wire.ErrClosed) {
				t.Errorf("Err: %v", p.Err())
			}
			goleak.VerifyNone(t, ignore)
		})
	}
}

func TestCallsInFlightFailWithErrClosedWhenThePipeIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, peer := connect(t, wire.PipeOptions{})
		written := start(t.Context(), p, "x", "{}")
		peer.read()
		post(t.Context(), p, `{"stuck":1}`)
		synctest.Wait()
		queued := start(t.Context(), p, "y", "{}")
		synctest.Wait()
		p.Close()
		if r := receive(t, "the written call", written); !errors.Is(r.err, wire.ErrClosed) || errors.Is(r.err, wire.ErrNotSent) {
			t.Errorf("the written call: %v", r.err)
		}
		if r := receive(t, "the queued call", queued); !errors.Is(r.err, wire.ErrClosed) || !errors.Is(r.err, wire.ErrNotSent) {
			t.Errorf("the queued call: %v", r.err)
		}
	})
}

// A real process hangs on real pipes: closing must wake the blocked read and the
// blocked write (64 KiB in the kernel's buffer and no reader).
func TestCloseWakesReadsAndWritesOnRealPipes(t *testing.T) {
	stdin, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	ignore := goleak.IgnoreCurrent()
	p := wire.NewPipe(in, out, wire.PipeOptions{Handler: func(wire.Message) {}, Noise: func([]byte, error) {}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pad := `{"pad":"` + strings.Repeat("x", 1<<20) + `"}`
	call := start(ctx, p, "big", pad)
	if _, err := stdin.Read(make([]byte, 1)); err != nil { // now the write has begun
		t.Fatal(err)
	}
	cancel()
	if r := receive(t, "the call", call); !errors.Is(r.err, context.Canceled) || errors.Is(r.err, wire.ErrNotSent) {
		t.Errorf("the call whose write is stuck half way: %v", r.err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := p.Call(ctx, "behind", json.RawMessage(pad)); !errors.Is(err, wire.ErrNotSent) {
		t.Errorf("the call behind it: %v", err)
	}
	within(t, "Close", p.Close)
	goleak.VerifyNone(t, ignore)
}

// Everything at once: calls, cancels, requests from the peer, a peer that
// answers in any order. No answer may reach another call, none may be lost.
func TestManyCallsAndCancelsAtOnceNeverMixUp(t *testing.T) {
	var handled list[string]
	p, peer := connect(t, wire.PipeOptions{
		Handler: func(m wire.Message) { handled.add(string(m.Raw)) },
		Noise: func(line []byte, why error) {
			if !strings.Contains(string(line), `"result"`) { // late answers to cancelled calls are expected
				t.Errorf("noise %q: %v", line, why)
			}
		},
	})
	const callers, each = 32, 60
	cancelledIDs := make(chan string, callers*each)
	var peers sync.WaitGroup
	lines := make(chan string, 10_000)
	peers.Go(func() { // writes
		for l := range lines {
			if _, err := io.WriteString(peer.stdout, l+"\n"); err != nil {
				return
			}
		}
	})
	peers.Go(func() { // reads
		defer close(lines)
		defer close(cancelledIDs)
		known := map[string]bool{}
		var held []string // answered later, in reverse
		for {
			line, err := peer.lines.ReadBytes('\n')
			if err != nil {
				return
			}
			m := object(t, line)
			if string(m["method"]) == `"notifications/cancelled"` {
				id := string(object(t, m["params"])["requestId"])
				if !known[id] {
					t.Errorf("request %s is cancelled before it came", id)
				}
				cancelledIDs <- id
				continue
			}
			known[string(m["id"])] = true
			if strings.Contains(string(m["params"]), "hang") {
				continue
			}
			lines <- `{"jsonrpc":"2.0","method":"n","params":` + string(m["params"]) + `}`
			if held = append(held, answer(m["id"], string(m["params"]))); len(held) >= 5 || strings.Contains(string(m["params"]), "flush") {
				for i := range held {
					lines <- held[len(held)-1-i]
				}
				held = nil
			}
		}
	})
	var callersDone sync.WaitGroup
	var mu sync.Mutex
	told := 0
	for g := range callers {
		callersDone.Go(func() {
			for i := range each {
				if (g+i)%4 == 0 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(g*i%7)*100*time.Microsecond)
					_, err := p.Call(ctx, "x", json.RawMessage(`"hang"`))
					cancel()
					if err == nil {
						t.Error("a call that nobody answered succeeded")
					} else if !errors.Is(err, wire.ErrNotSent) {
						mu.Lock()
						told++
						mu.Unlock()
					}
					continue
				}
				params := fmt.Sprintf(`{"g":%d,"i":%d,"flush":1}`, g, i)
				m, err := p.Call(t.Context(), "x", json.RawMessage(params))
				if err != nil || string(m.Result) != params {
					t.Errorf("call %s got %s, %v", params, m.Raw, err)
				}
			}
		})
	}
	within(t, "the callers", callersDone.Wait)
	// let the last notices through before the end
	if _, err := p.Call(t.Context(), "x", json.RawMessage(`{"flush":"last"}`)); err != nil {
		t.Error(err)
	}
	p.Close()
	_ = peer.stdout.Close()
	within(t, "the peer", peers.Wait)
	if n := len(cancelledIDs); n != told {
		t.Errorf("%d calls were cancelled after they were sent, the peer heard of %d", told, n)
	}
	if n := len(handled.all()); n < callers*each/2 {
		t.Errorf("only %d notifications", n)
	}
}
