//go:build unix

package main_test

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
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

// approveAtTerminal is a person who runs haldir approvals approve and types the code.
func approveAtTerminal(t *testing.T, h *mcptest.Haldir, args ...string) string {
	t.Helper()
	cmd := h.Command(append([]string{"approvals", "approve"}, args...)...)
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	shown := readUntil(t, tty, regexp.MustCompile(`type ([a-z2-7]{4}) to allow it: $`))
	_, _ = io.WriteString(tty, shown[1]+"\n")
	rest, _ := io.ReadAll(tty)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("haldir approvals approve: %v: %s%s", err, shown[0], rest)
	}
	return shown[0] + string(rest)
}

// readUntil reads what a program writes until a pattern matches all of it.
func readUntil(t *testing.T, r io.Reader, pattern *regexp.Regexp) []string {
	t.Helper()
	var all []byte
	for one := make([]byte, 1); ; {
		if _, err := r.Read(one); err != nil {
			t.Fatalf("%q has nothing like %s: %v", all, pattern, err)
		}
		all = append(all, one...)
		if m := pattern.FindStringSubmatch(string(all)); m != nil {
			return append([]string{string(all)}, m[1:]...)
		}
	}
}

// TestApproveAtATerminal: the code must be that which is shown.
func TestApproveAtATerminal(t *testing.T) {
	h, _ := approvalConfig(t, "timeout: 1m")
	call := func() (id string) {
		out, _, code := h.Run(t, "call", "--session", session(t, h), "scan_domain", "--args", `{"domain":"x"}`)
		m := regexp.MustCompile(`approve (apr_\d+);`).FindStringSubmatch(out)
		if code != 3 || m == nil {
			t.Fatalf("exit status %d: %s", code, out)
		}
		return m[1]
	}
	id := call()
	cmd := h.Command("approvals", "approve", id)
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	readUntil(t, tty, regexp.MustCompile(`to allow it: $`))
	_, _ = io.WriteString(tty, "yes\n")
	rest, _ := io.ReadAll(tty)
	if err := cmd.Wait(); err == nil || !strings.Contains(string(rest), "that was not the code; nothing was allowed") {
		t.Errorf("a wrong code: %v: %s", err, rest)
	}
	_ = tty.Close()
	if out := approveAtTerminal(t, h, id); !strings.Contains(out, "sec/scan_domain") || !strings.Contains(out, `domain: "x"`) {
		t.Errorf("shown: %s", out)
	}
}

// TestApprovalsLive: while somebody looks at the terminal, a call waits for the answer.
func TestApprovalsLive(t *testing.T) {
	h, _ := approvalConfig(t, "timeout: 1m")
	cmd := h.Command("approvals")
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close(); _ = cmd.Wait() }()
	readUntil(t, tty, regexp.MustCompile(`Ctrl-C ends it\r\n$`))
	s := h.Serve(t)
	s.Initialize(mcptest.Revision)
	s.Notify("notifications/initialized")
	call := func() string {
		return s.Post("tools/call", mcptest.CallParams("sec__scan_domain", `{"domain":"x"}`, ""))
	}
	first := call()
	code := readUntil(t, tty, regexp.MustCompile(`\n([a-z2-7]{4}): allow it once[^>]*> $`))[1]
	if m := s.Ask("tools/call", mcptest.CallParams("sec__list_targets", `{}`, "")); m.Raw == "" {
		t.Error("another call does not pass meanwhile")
	}
	_, _ = io.WriteString(tty, code+" session\n")
	if m := s.Wait(first); strings.Contains(m.Raw, "blocked_by") {
		t.Errorf("allowed, and yet: %s", m.Raw)
	}
	if m := s.Wait(call()); strings.Contains(m.Raw, "blocked_by") {
		t.Errorf("allowed for the session, and yet: %s", m.Raw)
	}
	other := s.Post("tools/call", mcptest.CallParams("sec__scan_domain", `{"domain":"y"}`, ""))
	readUntil(t, tty, regexp.MustCompile(`\n([a-z2-7]{4}): allow it once[^>]*> $`))
	_, _ = io.WriteString(tty, "d ask me on Monday\n")
	if m := s.Wait(other); !strings.Contains(m.Raw, "denied by terminal: ask me on Monday") {
		t.Errorf("denied: %s", m.Raw)
	}
	_, _ = io.WriteString(tty, "\x03")
}

// TestResumeAtATerminal ends what haldir stop began.
func TestResumeAtATerminal(t *testing.T) {
	h, _ := approvalConfig(t, "mode: shadow")
	s := h.Serve(t)
	s.Initialize(mcptest.Revision)
	s.Notify("notifications/initialized")
	call := func() string {
		return s.Ask("tools/call", mcptest.CallParams("sec__scan_domain", `{"domain":"x"}`, "")).Raw
	}
	if got := call(); strings.Contains(got, "blocked_by") {
		t.Fatalf("a shadow refuses: %s", got)
	}
	h.Must(t, "stop", "--reason", "lunch")
	if got := call(); !strings.Contains(got, "stopped all calls at") || !strings.Contains(got, "lunch") {
		t.Errorf("while all is stopped: %s", got)
	}
	cmd := h.Command("resume")
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	readUntil(t, tty, regexp.MustCompile(`\[y/N\] $`))
	_, _ = io.WriteString(tty, "y\n")
	_, _ = io.ReadAll(tty)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := call(); strings.Contains(got, "blocked_by") {
		t.Errorf("after resume: %s", got)
	}
}

// session makes a session whose id is the same for every process of a test.
func session(t *testing.T, h *mcptest.Haldir) string {
	t.Helper()
	return strings.TrimSpace(h.Must(t, "session", "create"))
}

// TestInitAtATerminal: init shows what it will do and asks, and offers the rules for Claude
// Code; undo asks as well.
func TestInitAtATerminal(t *testing.T) {
	h := mcptest.NewHaldir(t, program(t), "")
	if err := os.Remove(h.Config); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.Dir, ".claude.json")
	const before = `{"mcpServers": {"a": {"command": "a"}}}`
	if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Env = []string{"HOME=" + h.Dir, "HALDIR_KEYRING=file", "PATH=/nowhere"} // no Claude Code to tell
	start := func(args ...string) (*os.File, func() string) {
		cmd := h.Command(args...)
		tty, err := pty.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		return tty, func() string {
			rest, _ := io.ReadAll(tty)
			_ = tty.Close()
			if err := cmd.Wait(); err != nil {
				return string(rest) + err.Error()
			}
			return string(rest)
		}
	}
	ask := regexp.MustCompile(`Go ahead\? \[y/N\] $`)
	tty, end := start("init")
	if shown := readUntil(t, tty, ask)[0]; !strings.Contains(shown, "Claude Code (user): haldir in place of a") {
		t.Errorf("shown: %s", shown)
	}
	_, _ = io.WriteString(tty, "\n")
	if said := end(); !strings.Contains(said, "nothing was changed") || !strings.Contains(said, "exit status 1") {
		t.Errorf("said: %s", said)
	}
	if raw, err := os.ReadFile(path); err != nil || string(raw) != before {
		t.Errorf("%s, %v", raw, err)
	}
	tty, end = start("init")
	readUntil(t, tty, ask)
	_, _ = io.WriteString(tty, "y\n")
	readUntil(t, tty, regexp.MustCompile(`Add rules to ~/.claude/settings.json that deny it\? \[y/N\] $`))
	_, _ = io.WriteString(tty, "y\n")
	if said := end(); !strings.Contains(said, "done; what was before is in") || strings.Contains(said, "exit status") {
		t.Errorf("said: %s", said)
	}
	if raw, err := os.ReadFile(filepath.Join(h.Dir, ".claude", "settings.json")); err != nil || !strings.Contains(string(raw), `"Bash(haldir approvals:*)"`) {
		t.Errorf("%s, %v", raw, err)
	}
	tty, end = start("init", "--undo")
	readUntil(t, tty, regexp.MustCompile(`Take it back\? \[y/N\] $`))
	_, _ = io.WriteString(tty, "y\n")
	if said := end(); strings.Contains(said, "exit status") {
		t.Errorf("said: %s", said)
	}
	if raw, err := os.ReadFile(path); err != nil || string(raw) != before {
		t.Errorf("%s, %v", raw, err)
	}
	if _, err := os.Stat(filepath.Join(h.Dir, ".claude", "settings.json")); !os.IsNotExist(err) {
		t.Errorf("settings: %v", err)
	}
}
