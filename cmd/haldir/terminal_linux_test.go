package main_test

import (
	"io"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// confirmAtTerminal is a person who runs haldir reload and says yes.
func confirmAtTerminal(t *testing.T, h *mcptest.Haldir) {
	t.Helper()
	cmd := h.Command("reload")
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	go func() {
		time.Sleep(200 * time.Millisecond)
		_, _ = io.WriteString(tty, "y\n")
	}()
	out, _ := io.ReadAll(tty) // ends by an error when the other end is closed
	if err := cmd.Wait(); err != nil {
		t.Fatalf("haldir reload: %v: %s", err, out)
	}
}
