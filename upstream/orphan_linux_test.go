package upstream_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// haldir is killed so that it cannot say a word. Its children must not live on,
// nor what they have started, be they as stubborn as they like.
func TestNothingOutlivesAHaldirThatIsKilled(t *testing.T) {
	for name, script := range map[string]mcptest.Script{
		"a server":                           {},
		"one that ignores its end":           {IgnoreTerm: true},
		"one that hangs at the start":        {Start: "deaf", IgnoreTerm: true},
		"one that has started another":       {Grandchild: "group"},
		"one that has started another, deaf": {Grandchild: "group", IgnoreTerm: true},
		"one that has started a daemon":      {Grandchild: "session"},
		"one that has started an orphan":     {Grandchild: "orphan", IgnoreTerm: true},
	} {
		t.Run(name, func(t *testing.T) {
			script.Marker = fmt.Sprintf("haldir-orphan-test-%d-%s", os.Getpid(), t.Name())
			text, err := json.Marshal(script)
			if err != nil {
				t.Fatal(err)
			}
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			parent := exec.Command(exe)
			parent.Env = append(os.Environ(), parentVar+"="+string(text))
			out, err := parent.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := parent.Start(); err != nil {
				t.Fatal(err)
			}
			ready := make(chan error, 1)
			go func() {
				_, err := bufio.NewReader(out).ReadString('\n')
				ready <- err
			}()
			family := 1
			if script.Grandchild != "" {
				family = 2
			}
			children := func() (n int) {
				for _, pid := range mcptest.Processes(script.Marker) {
					if pid != parent.Process.Pid {
						n++
					}
				}
				return n
			}
			if script.Start == "" {
				within(t, patience, "its handshake", func() {
					if err := <-ready; err != nil {
						t.Error(err)
					}
				})
			}
			eventually(t, "all are there", func() bool { return children() == family })
			if script.Grandchild == "session" || script.Grandchild == "orphan" {
				time.Sleep(2500 * time.Millisecond) // the guard looks every second
			}
			if err := parent.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = parent.Wait() // killed
			eventually(t, "none is left", func() bool { return children() == 0 })
		})
	}
}
