package upstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream"
)

var markers atomic.Int64

func marker() string { return fmt.Sprintf("haldir-upstream-test-%d-%d", os.Getpid(), markers.Add(1)) }

// reap kills what a test leaves behind, and fails it for that.
func reap(t *testing.T, mark string, fail bool) {
	t.Helper()
	left := mcptest.Processes(mark)
	for end := time.Now().Add(2 * time.Second); fail && len(left) > 0 && time.Now().Before(end); left = mcptest.Processes(mark) {
		time.Sleep(5 * time.Millisecond) // one that was killed needs a processor once more to end
	}
	for _, pid := range left {
		if fail {
			t.Errorf("an orphan is left: process %d", pid)
		}
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Kill()
		}
	}
}

func TestClosingAChild(t *testing.T) {
	for _, tt := range []struct {
		name   string
		script mcptest.Script
		within time.Duration // of the ladder
	}{
		{"that behaves", mcptest.Script{}, 150 * time.Millisecond},
		{"that ignores TERM and the end of its input", mcptest.Script{IgnoreTerm: true}, 300 * time.Millisecond},
		{"that hangs at the start", mcptest.Script{Start: "hang"}, 150 * time.Millisecond},
		{"that reads nothing", mcptest.Script{Start: "deaf"}, 300 * time.Millisecond},
		{"that reads nothing and ignores TERM", mcptest.Script{Start: "deaf", IgnoreTerm: true}, 300 * time.Millisecond},
		{"with a grandchild in its group", mcptest.Script{Grandchild: "group"}, 150 * time.Millisecond},
		{"with a grandchild, ignoring TERM", mcptest.Script{Grandchild: "group", IgnoreTerm: true}, 300 * time.Millisecond},
		{"that is gone already", mcptest.Script{Start: "exit"}, 50 * time.Millisecond},
		{"that does not stop talking", mcptest.Script{Deaf: 3, Chatter: "noise", IgnoreTerm: true}, 300 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.script.Marker = marker()
			cfg := tt.script.Child(t, "up")
			cfg.Connect = patience
			r := open(t, cfg)
			r.Start(upstream.Host{})
			ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
			defer cancel()
			r.Connected(ctx)
			if tt.script.Start == "" {
				eventually(t, "it is ready", func() bool { return r.Status().State == upstream.StateReady })
			}
			time.Sleep(50 * time.Millisecond)
			took := within(t, patience, "Close", r.Close)
			t.Logf("closed after %v", took.Round(time.Millisecond))
			if took > tt.within+time.Second { // on a loaded machine
				t.Errorf("Close took %v, want %v", took, tt.within)
			}
			reap(t, tt.script.Marker, true)
		})
	}
}

// A process that has left the group and keeps the pipes open is out of reach. It
// must not keep Close, and it does not keep a connection either.
func TestAGrandchildThatHoldsThePipes(t *testing.T) {
	mark := marker()
	defer reap(t, mark, false)
	r := ready(t, mcptest.Script{Marker: mark, Grandchild: "session"}.Child(t, "up"))
	m, err := r.call(soon(t), "die", `{"words":"bye"}`) // its stdout stays open
	if err == nil || errors.Is(err, wire.ErrNotSent) {
		t.Errorf("got %s, %v", m.Raw, err)
	}
	eventually(t, "it is started again", func() bool {
		m, err := r.call(soon(t), "echo", `{"text":"back"}`)
		return err == nil && text(t, m) == "back"
	})
	took := within(t, 4*time.Second, "Close", r.Close)
	t.Logf("closed after %v", took.Round(time.Millisecond))
}

// The child dies while haldir asks it for its tools anew, and a process that it
// started keeps its stdout open: the end of the child must be noticed all the
// same.
func TestAChildThatDiesWhileItIsAskedForItsTools(t *testing.T) {
	mark := marker()
	defer reap(t, mark, false)
	r := ready(t, mcptest.Script{Marker: mark, Grandchild: "session", ListHangs: 1}.Child(t, "up"))
	pid := r.seen().PID
	r.must("flood", `{"what":"list_changed","n":1}`)
	eventually(t, "tools/list is asked again", func() bool {
		n := 0
		for _, m := range r.seen().Messages {
			if strings.Contains(m, `"tools/list"`) {
				n++
			}
		}
		return n == 2
	})
	ended := make(chan error, 1)
	go func() {
		_, err := r.call(context.Background(), "hang", "{}")
		ended <- err
	}()
	eventually(t, "the call arrives", func() bool { return contains(r.seen().Messages, `"hang"`) })
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil || errors.Is(err, wire.ErrNotSent) {
			t.Errorf("the call in flight: %v", err)
		}
	case <-time.After(3 * time.Second):
		t.Errorf("three seconds after its death a call in flight still waits; the upstream is %s", r.Status().State)
	}
	eventually(t, "it is started again", func() bool {
		m, err := r.call(soon(t), "echo", `{"text":"x"}`)
		return err == nil && text(t, m) == "x"
	})
}

func TestACrashLoop(t *testing.T) {
	r := start(t, mcptest.Script{Start: "exit", LastWords: "the \x1b[31mdatabase\x1b[0m is locked\r"}.Child(t, "up"))
	time.Sleep(1500 * time.Millisecond)
	s := r.Status()
	if s.Err == nil || !strings.Contains(s.Err.Error(), "is locked") || !strings.Contains(s.Err.Error(), "exit status 3") || strings.ContainsAny(s.Err.Error(), "\x1b\r\n") {
		t.Errorf("the status: %s, %v", s.State, s.Err)
	}
	n := strings.Count(r.log.String(), "upstream is not connected")
	t.Logf("started %d times in 1.5 s", n)
	if n < 2 || n > 8 {
		t.Errorf("it was started %d times in 1.5 s", n)
	}
	if loud := strings.Count(r.log.String(), `"level":"warn"`); loud != 1 {
		t.Errorf("of one outage there are %d warnings:\n%s", loud, r.log.String())
	}
	began := time.Now()
	_, err := r.call(soon(t), "echo", "{}")
	var un *upstream.UnavailableError
	if !errors.As(err, &un) || un.Upstream != "up" || !errors.Is(err, wire.ErrNotSent) || !strings.Contains(err.Error(), "is locked") {
		t.Errorf("a call: %v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("a call took %v", took)
	}
	// Calls do not turn it into a fork bomb.
	before := strings.Count(r.log.String(), "upstream is not connected")
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
		_, _ = r.call(soon(t), "echo", "{}")
	}
	after := strings.Count(r.log.String(), "upstream is not connected")
	t.Logf("started %d times in a second of calls", after-before)
	if after-before > 6 {
		t.Errorf("it was started %d times in a second of calls", after-before)
	}
}

func TestAProgramThatIsNotThere(t *testing.T) {
	for _, command := range []string{"no-such-program-at-all", "/no/such/file", "/etc", "./relative"} {
		r := start(t, config.Upstream{Name: "up", Command: command, Connect: time.Second})
		s := r.Status()
		if s.State == upstream.StateReady || s.Err == nil || !strings.Contains(s.Err.Error(), command) {
			t.Errorf("%s: %s, %v", command, s.State, s.Err)
		}
		if _, err := r.call(soon(t), "x", "{}"); !errors.Is(err, wire.ErrNotSent) || !strings.Contains(err.Error(), `"up"`) {
			t.Errorf("%s: a call: %v", command, err)
		}
	}
	r := start(t, config.Upstream{Name: "up", Command: "sh", Args: []string{"-c", "exit 0"}, Cwd: "/no/such/dir", Connect: time.Second})
	if s := r.Status(); s.Err == nil || !strings.Contains(s.Err.Error(), "/no/such/dir") {
		t.Errorf("cwd: %v", s.Err)
	}
	for _, cfg := range []config.Upstream{
		{Name: "up", Command: "${env:HALDIR_NOT_SET}", Connect: time.Second},
		{Name: "up", Command: "sh", Args: []string{"${env:HALDIR_NOT_SET}"}, Connect: time.Second},
		{Name: "up", Command: "sh", Env: []string{"A=${env:HALDIR_NOT_SET}"}, Connect: time.Second},
		{Name: "up", URL: "http://127.0.0.1:1/", Headers: []config.Header{{Name: "X", Value: "${env:HALDIR_NOT_SET}"}}, Connect: time.Second},
		{Name: "up", URL: "http://127.0.0.1:1/", Bearer: "${env:HALDIR_NOT_SET}", Connect: time.Second},
	} {
		if s := start(t, cfg).Status(); s.Err == nil || !strings.Contains(s.Err.Error(), "HALDIR_NOT_SET") {
			t.Errorf("%+v: %v", cfg, s.Err)
		}
	}
}

// A server that Claude Code has started is told the project by haldir as well.
func TestTheProjectOfClaudeCode(t *testing.T) {
	t.Setenv("CLAUDE_PROJECT_DIR", "/src/x")
	if env := ready(t, mcptest.Script{}.Child(t, "up")).seen().Env; !slices.Contains(env, "CLAUDE_PROJECT_DIR=/src/x") {
		t.Errorf("%q", env)
	}
}

func TestReferencesInACommand(t *testing.T) {
	t.Setenv("HALDIR_TEST_VALUE", "from the environment")
	cfg := mcptest.Script{}.Child(t, "up")
	cfg.Env = append(cfg.Env, "A=<${env:HALDIR_TEST_VALUE}>", "B=${root}/x", "C=$${root}")
	cfg.Cwd = t.TempDir()
	r := ready(t, cfg)
	env := r.seen().Env
	for _, want := range []string{"A=<from the environment>", "B=/root/of/it/x", "C=${root}"} {
		if !slices.Contains(env, want) {
			t.Errorf("the environment lacks %q: %q", want, env)
		}
	}
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "HALDIR_TEST_VALUE=") }) {
		t.Error("the variable itself was passed on")
	}
}

func TestTheHandshake(t *testing.T) {
	r := ready(t, mcptest.Script{Version: json.RawMessage(`"2024-11-05"`)}.Child(t, "up"))
	if s := r.Status(); s.Version != "2024-11-05" || s.Server != "hostile 6.6.6" {
		t.Errorf("%+v", s)
	}
	messages := r.seen().Messages
	want := []string{
		`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"haldir","version":"test"}}}`,
		`{"jsonrpc":"2.0","method":"notifications/initialized"}`,
		`{"jsonrpc":"2.0","id":2,"method":"tools/list"}`,
		`{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"seen","arguments":{}}}`,
	}
	if d := cmp.Diff(want, messages); d != "" {
		t.Error(d)
	}
}

func TestCallsPassAsBytes(t *testing.T) {
	r := ready(t, mcptest.Script{}.Child(t, "up"))
	odd := json.RawMessage(`{ "name" : "echo" , "arguments":{"text":"x","n":9007199254740993,"f":1.0},"_meta":{"k":[ ]} }`)
	if _, err := r.Call(soon(t), upstream.Call{Method: "tools/call", Params: odd}); err != nil {
		t.Fatal(err)
	}
	if m := r.seen().Messages; !strings.HasSuffix(m[3], `"params":`+string(odd)+`}`) {
		t.Errorf("sent: %s", m[3])
	}
	// Line breaks between tokens must not break the line.
	if _, err := r.Call(soon(t), upstream.Call{Method: "tools/call", Params: json.RawMessage("{\n\"name\":\"echo\",\r\n\"arguments\":{\"text\":\"x\"}}")}); err != nil {
		t.Fatal(err)
	}
	if got := r.must("echo", `{"text":"after it"}`); got != "after it" {
		t.Errorf("got %q", got)
	}
}

func TestACallThatIsGivenUp(t *testing.T) {
	r := ready(t, mcptest.Script{}.Child(t, "up"))
	cause := errors.New("the \"user\" changed\nhis mind")
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		time.Sleep(20 * time.Millisecond)
		cancel(cause)
	}()
	if _, err := r.call(ctx, "hang", "{}"); !errors.Is(err, cause) || errors.Is(err, wire.ErrNotSent) {
		t.Errorf("got %v", err)
	}
	eventually(t, "the server is told", func() bool {
		return contains(r.seen().Messages, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":3,"reason":"the \"user\" changed\nhis mind"}}`)
	})
	// Before it began: not sent.
	n := len(r.seen().Messages)
	if _, err := r.call(ctx, "echo", "{}"); !errors.Is(err, cause) || !errors.Is(err, wire.ErrNotSent) {
		t.Errorf("got %v", err)
	}
	if contains(r.seen().Messages[n:], `"echo"`) {
		t.Error("it was sent all the same")
	}
	// The time of the config.
	cfg := mcptest.Script{}.Child(t, "up")
	cfg.Call = 50 * time.Millisecond
	r = ready(t, cfg)
	if _, err := r.call(context.Background(), "hang", "{}"); err == nil || !strings.Contains(err.Error(), "timeouts.call") || !strings.Contains(err.Error(), `"up"`) || errors.Is(err, wire.ErrNotSent) {
		t.Errorf("got %v", err)
	}
}

// "Not sent" is a promise: money is given back for it. However a cancellation
// falls, a call of which the server has seen anything must not be called so.
func TestNotSentIsTrue(t *testing.T) {
	n := 1500
	if testing.Short() {
		n = 300
	}
	for _, remote := range []bool{false, true} {
		t.Run(fmt.Sprintf("remote %v", remote), func(t *testing.T) {
			var r *rig
			seen := func() []string { return r.seen().Messages }
			if remote {
				srv := mcptest.Script{}.NewHTTP(t)
				r = ready(t, srv.Upstream("up"))
				seen = srv.Seen
			} else {
				r = ready(t, mcptest.Script{}.Child(t, "up"))
			}
			var mu sync.Mutex
			unsent := map[string]bool{}
			var wg sync.WaitGroup
			gate := make(chan struct{}, 8)
			for i := range n {
				gate <- struct{}{}
				wg.Go(func() {
					defer func() { <-gate }()
					ctx, cancel := context.WithCancel(context.Background())
					timer := time.AfterFunc(time.Duration(i%300)*time.Microsecond, cancel)
					defer timer.Stop()
					defer cancel()
					name := fmt.Sprintf("call-%d-", i)
					_, err := r.call(ctx, "echo", `{"text":"`+name+`"}`)
					if errors.Is(err, wire.ErrNotSent) {
						mu.Lock()
						unsent[name] = true
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			time.Sleep(moment) // for what is still on its way
			all := strings.Join(seen(), "\n")
			wrong := 0
			for name := range unsent {
				if strings.Contains(all, `"`+name+`"`) {
					wrong++
				}
			}
			t.Logf("%d of %d calls were not sent", len(unsent), n)
			if wrong > 0 {
				t.Errorf("%d of %d calls that were \"not sent\" reached the server", wrong, len(unsent))
			}
		})
	}
}

// A server that stops reading: what is queued was not sent, what has begun may
// have been, and both can be given up.
func TestAChildThatStopsReading(t *testing.T) {
	r := ready(t, mcptest.Script{Deaf: 3}.Child(t, "up"))
	big := strings.Repeat("x", 1<<20)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	var unsent, unknown atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := r.call(ctx, "echo", `{"text":"`+big+`"}`)
			switch {
			case err == nil:
				t.Error("a call went well")
			case errors.Is(err, wire.ErrNotSent):
				unsent.Add(1)
			default:
				unknown.Add(1)
			}
		})
	}
	within(t, patience, "the calls", wg.Wait)
	// One fills the pipe, unless a slow machine has not come to it in time.
	if unsent.Load() < 19 {
		t.Errorf("%d not sent, %d unknown; want 19 and 1", unsent.Load(), unknown.Load())
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// What was given up must not stay in memory because the server does not read.
func TestCallsThatWereGivenUpAreForgotten(t *testing.T) {
	r := ready(t, mcptest.Script{Deaf: 3}.Child(t, "up"))
	big := `{"text":"` + strings.Repeat("x", 1<<20) + `"}`
	before := heap()
	const n = 100
	for range n {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Millisecond)
		_, _ = r.call(ctx, "echo", big)
		cancel()
	}
	after := heap()
	t.Logf("the heap grew by %d KiB for %d calls of 1 MiB that were given up", (int64(after)-int64(before))>>10, n)
	if after > before+16<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before>>20, after>>20)
	}
	runtime.KeepAlive(big)
}

// A server that asks without end and does not read the answers must not fill
// haldir's memory with them.
func TestEndlessRequestsOfAServer(t *testing.T) {
	for _, method := range []string{"ping", "roots/list"} {
		t.Run(method, func(t *testing.T) {
			r := ready(t, mcptest.Script{Deaf: 3, Chatter: `{"jsonrpc":"2.0","id":"a rather long id, to make it count","method":"` + method + `"}`}.Child(t, "up"))
			before := heap()
			var growth []int64
			for range 4 {
				time.Sleep(500 * time.Millisecond)
				growth = append(growth, (int64(heap())-int64(before))>>20)
			}
			t.Logf("the heap grew by %v MiB, every half second; %d goroutines", growth, runtime.NumGoroutine())
			if growth[3] > 16 {
				t.Errorf("the heap grew by %d MiB in two seconds of %s", growth[3], method)
			}
			within(t, patience, "Close", r.Close)
		})
	}
}

func TestALongLineOnStderrIsCutNotGarbled(t *testing.T) {
	r := ready(t, mcptest.Script{}.Child(t, "up"))
	r.must("flood", `{"what":"stderr-line","n":20000}`)
	eventually(t, "it is in the log", func() bool { return strings.Contains(r.log.String(), `"stderr"`) })
	for line := range strings.Lines(r.log.String()) {
		var entry struct{ Stderr string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		if entry.Stderr != "" && !strings.HasPrefix(entry.Stderr, "0,1,2,3,4,5,") {
			t.Errorf("a line that begins with 0,1,2,3,4,5, was logged as %q", entry.Stderr)
		}
	}
}

func TestTheLastWordsAreTheLastOnes(t *testing.T) {
	r := ready(t, mcptest.Script{}.Child(t, "up"))
	for i := range 3 {
		_, err := r.call(soon(t), "die", fmt.Sprintf(`{"words":"first\nthen %d","code":%d}`, i, i+1))
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("then %d", i)) || !strings.Contains(err.Error(), fmt.Sprintf("exit status %d", i+1)) {
			t.Errorf("got %v", err)
		}
		eventually(t, "it is back", func() bool {
			_, err := r.call(soon(t), "echo", `{"text":"x"}`)
			return err == nil
		})
	}
}

// The end of a connection that was good is no failed attempt: the next call
// waits for the restart instead of failing.
func TestTheCallAfterACrashWaitsForTheRestart(t *testing.T) {
	r := ready(t, mcptest.Script{}.Child(t, "up"))
	failed := 0
	for range 3 {
		if _, err := r.call(soon(t), "die", `{"words":"crash"}`); err == nil {
			t.Fatal("it did not die")
		}
		if _, err := r.call(soon(t), "echo", `{"text":"x"}`); err != nil {
			failed++
			t.Logf("the call after the crash: %v", err)
		}
		eventually(t, "it is back", func() bool {
			_, err := r.call(soon(t), "echo", `{"text":"x"}`)
			return err == nil
		})
	}
	if failed > 0 {
		t.Errorf("%d of 3 calls right after a crash failed, though the restart takes milliseconds", failed)
	}
}

// An upstream that was never started, or is closed, refuses calls and does not
// hang.
func TestCallsBesideTheLifeOfAnUpstream(t *testing.T) {
	r := open(t, mcptest.Script{}.Child(t, "up"))
	within(t, 5*time.Second, "a call before Start", func() {
		if _, err := r.call(context.Background(), "echo", "{}"); !errors.Is(err, wire.ErrNotSent) {
			t.Errorf("a call before Start: %v", err)
		}
	})
	if s := r.Status(); s.State != upstream.StateIdle {
		t.Errorf("%+v", s)
	}
	r.Start(upstream.Host{})
	if got := r.must("echo", `{"text":"x"}`); got != "x" { // without waiting for it to be ready
		t.Errorf("got %q", got)
	}
	done := make(chan error, 1)
	go func() {
		_, err := r.call(context.Background(), "hang", "{}")
		done <- err
	}()
	eventually(t, "the call arrives", func() bool { return contains(r.seen().Messages, `"hang"`) })
	within(t, 2*time.Second, "Close", r.Close)
	select {
	case err := <-done:
		if err == nil || errors.Is(err, wire.ErrNotSent) {
			t.Errorf("the call in flight: %v", err)
		}
	case <-time.After(2 * time.Second):
		t.Error("the call in flight hangs after Close")
	}
	within(t, 5*time.Second, "a call after Close", func() {
		if _, err := r.call(context.Background(), "echo", "{}"); !errors.Is(err, wire.ErrNotSent) {
			t.Errorf("a call after Close: %v", err)
		}
	})
	within(t, time.Second, "Close again", r.Close)
}

func TestCloseWithoutStart(t *testing.T) {
	r := open(t, mcptest.Script{}.Child(t, "up"))
	within(t, time.Second, "Close", r.Close)
	r = open(t, mcptest.Script{}.Child(t, "up"))
	r.Start(upstream.Host{})
	within(t, 2*time.Second, "Close at once", r.Close)
}
