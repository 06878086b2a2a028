package proxy_test

import (
	"encoding/json"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// What is left of children is found in /proc, so these are for Linux.

// When haldir is killed without a word, its children go with it.
func TestKillingHaldirKillsItsChildren(t *testing.T) {
	mark := marker()
	reap(t, mark)
	p := launch(t, world{config: "upstreams:\n" +
		mcptest.Script{Marker: mark}.YAML(t, "a") + mcptest.Script{Marker: mark, IgnoreTerm: true}.YAML(t, "b") +
		mcptest.Script{Marker: mark, Start: "deaf", IgnoreTerm: true}.YAML(t, "c") + "list_wait: 0.2s\n"}).listen().ready("a__echo", "b__echo")
	eventually(t, "all children run", func() bool { return len(mcptest.Processes(mark)) == 3 })
	time.Sleep(200 * time.Millisecond) // threads come and go, and the children stay
	if n := len(mcptest.Processes(mark)); n != 3 {
		t.Errorf("%d of 3 children run", n)
	}
	p.signal(os.Kill)
	p.end(patience, "after SIGKILL")
	gone(t, mark)
}

// A child's group is its own: what a terminal sends to haldir's does not reach
// it, and haldir can end it with all that it started.
func TestAChildHasAGroupOfItsOwn(t *testing.T) {
	mark := marker()
	p := launch(t, world{config: "upstreams:\n" + mcptest.Script{Marker: mark, Grandchild: "group"}.YAML(t, "up")}).listen().ready("up__seen")
	var s mcptest.Seen
	if err := json.Unmarshal([]byte(parseResponse(t, p.ask(p.call("s", "up__seen", "{}"))).Text), &s); err != nil {
		t.Fatal(err)
	}
	pids := mcptest.Processes(mark)
	if len(pids) < 2 {
		t.Errorf("a child and its own are %d processes", len(pids))
	}
	for _, pid := range pids {
		if g, err := syscall.Getpgid(pid); err != nil || g != s.PID {
			t.Errorf("process %d is in group %d (%v), want %d", pid, g, err, s.PID)
		}
	}
	_ = p.in.Close()
	p.end(patience, "after the end of input")
	gone(t, mark)
}
