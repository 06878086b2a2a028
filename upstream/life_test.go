package upstream_test

import (
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/upstream"
)

// warm is an upstream whose tools are known from an earlier run.
func warm(t *testing.T, cfg config.Upstream) *rig {
	t.Helper()
	first := cfg
	first.Eager = true
	before := ready(t, first)
	before.Close()
	return open(t, cfg, func(o *upstream.Options) { o.Cache = before.cache })
}

func TestAChildWhoseToolsAreKnownIsStartedAtTheFirstCall(t *testing.T) {
	cfg := mcptest.Script{Tools: mcptest.Tools(mcptest.Tool("echo"))}.Child(t, "up")
	r := warm(t, cfg)
	r.Start(upstream.Host{})
	r.Connected(soon(t))
	time.Sleep(moment)
	if s := r.Status(); s.State != upstream.StateIdle || s.Err != nil || len(r.Catalogue().Tools) == 0 {
		t.Fatalf("before the first call: %+v, tools %v", s, names(r.Catalogue()))
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if got := r.must("echo", `{"text":"hello"}`); got != "hello" {
				t.Error(got)
			}
		})
	}
	wg.Wait()
	if s := r.Status(); s.State != upstream.StateReady || s.Since.IsZero() {
		t.Errorf("after it: %+v", s)
	}
	if n := strings.Count(r.log.String(), "upstream connected"); n != 1 {
		t.Errorf("it was started %d times", n)
	}
}

func TestAnEagerChildIsStartedAtOnce(t *testing.T) {
	cfg := mcptest.Script{Tools: mcptest.Tools(mcptest.Tool("echo"))}.Child(t, "up")
	cfg.Eager = true
	r := warm(t, cfg)
	r.Start(upstream.Host{})
	eventually(t, "it is started", r.Ready)
}

func TestAnIdleChildIsStoppedAndStartedAgain(t *testing.T) {
	script := mcptest.Script{Tools: mcptest.Tools(mcptest.Tool("echo"), mcptest.Tool("slow")), Marker: "haldir-idle-test-" + t.Name()}
	cfg := script.Child(t, "up")
	cfg.StopWhenIdle = 300 * time.Millisecond
	r := ready(t, cfg)
	for range 2 {
		if got := r.must("echo", `{"text":"hello"}`); got != "hello" {
			t.Fatal(got)
		}
		eventually(t, "it is stopped", func() bool { return r.Status().State == upstream.StateIdle })
		if left := len(mcptest.Processes(script.Marker)); left != 0 && hasProc() {
			t.Errorf("%d processes are left", left)
		}
	}
	if s := r.Status(); s.Ends != 0 || s.Err != nil || len(r.Catalogue().Tools) == 0 {
		t.Errorf("%+v, tools %v", s, names(r.Catalogue()))
	}
	if strings.Contains(r.log.String(), "not connected") {
		t.Errorf("it is told as a failure: %s", r.log)
	}
}

func hasProc() bool { _, err := os.Stat("/proc/self/stat"); return err == nil }

// TestCallsAndTheStopOfAnIdleChild makes calls at about the times when the child is
// stopped: none may fail.
func TestCallsAndTheStopOfAnIdleChild(t *testing.T) {
	cfg := mcptest.Script{Tools: mcptest.Tools(mcptest.Tool("echo"))}.Child(t, "up")
	cfg.StopWhenIdle = 20 * time.Millisecond
	r := ready(t, cfg)
	for n := range 12 {
		time.Sleep(time.Duration(n*90) * time.Millisecond % (1100 * time.Millisecond))
		if got := r.must("echo", `{"text":"hello"}`); got != "hello" {
			t.Fatal(got)
		}
	}
}

func TestAServerThatIsDownDoesNotHoldUpCalls(t *testing.T) {
	// A server that accepts and says nothing: each attempt takes all of its time.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	r := start(t, config.Upstream{Name: "up", URL: "http://" + l.Addr().String() + "/mcp", Connect: 400 * time.Millisecond})
	slow, quick := 0, 0
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); {
		begin := time.Now()
		if _, err := r.call(soon(t), "echo", "{}"); err == nil {
			t.Fatal("it answers")
		}
		if time.Since(begin) < 100*time.Millisecond {
			quick++
		} else {
			slow++
		}
		time.Sleep(20 * time.Millisecond)
	}
	if slow > 6 || quick < 50 {
		t.Errorf("%d calls were held up, %d were not", slow, quick)
	}
}

func TestACrashLoopIsTold(t *testing.T) {
	cfg := mcptest.Script{Tools: mcptest.Tools(mcptest.Tool("echo"), mcptest.Tool("die"))}.Child(t, "up")
	r := ready(t, cfg)
	for range 4 {
		eventually(t, "it is back", r.Ready)
		_, _ = r.call(soon(t), "die", "{}")
		eventually(t, "it is gone", func() bool { return !r.Ready() })
		if s := r.Status(); s.Ends >= 3 && s.Err != nil && !strings.Contains(s.Err.Error(), "times within 2m0s") {
			t.Errorf("it does not say that it keeps ending: %v", s.Err)
		}
	}
	if s := r.Status(); s.Ends < 4 {
		t.Errorf("%+v", s)
	}
}

func TestACallWithoutASignOfLifeEnds(t *testing.T) {
	cfg := mcptest.Script{Tools: mcptest.Tools(mcptest.Tool("hang"))}.Child(t, "up")
	cfg.Idle = 200 * time.Millisecond
	r := ready(t, cfg)
	begin := time.Now()
	_, err := r.call(soon(t), "hang", "{}")
	if err == nil || !strings.Contains(err.Error(), "timeouts.idle") || time.Since(begin) > 5*time.Second {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
}
