package main_test

import (
	"bufio"
	"encoding/json"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/examples/securitytools"
	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// following is a haldir that follows, and its lines.
type following struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	err   *strings.Builder
}

func follow(t *testing.T, h *mcptest.Haldir, args ...string) *following {
	t.Helper()
	f := &following{cmd: h.Command(append([]string{"audit", "follow"}, args...)...), err: &strings.Builder{}}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	f.cmd.Stderr = f.err
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = f.cmd.Process.Kill()
		_ = f.cmd.Wait()
	})
	f.lines = bufio.NewScanner(out)
	return f
}

// next waits for the next line.
func (f *following) next(t *testing.T) string {
	t.Helper()
	if !f.lines.Scan() {
		t.Fatalf("follow has ended: %v, %s", f.lines.Err(), f.err)
	}
	return f.lines.Text()
}

// end interrupts it as a person does.
func (f *following) end(t *testing.T) (rest []string) {
	t.Helper()
	if err := f.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	for f.lines.Scan() {
		rest = append(rest, f.lines.Text())
	}
	if err := f.cmd.Wait(); err != nil || f.err.Len() > 0 {
		t.Errorf("interrupted: %v, %s", err, f.err)
	}
	return rest
}

// TestFollow: calls are shown when they are made and when they end, by a process
// that knows of them from the file alone; an interrupt ends it well.
func TestFollow(t *testing.T) {
	t.Parallel()
	example := httptest.NewServer(securitytools.Handler())
	t.Cleanup(example.Close)
	h := mcptest.NewHaldir(t, program(t), `{version: 1, upstreams: [{name: security, url: "`+example.URL+`/mcp"}], costs: [{tools: [scan_domain], usd: 0.004}], policies: [{type: deny, tools: [delete_*]}]}`)
	call := func(status int, words ...string) {
		t.Helper()
		cmd := h.Command(append([]string{"call"}, words...)...)
		if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != status {
			t.Fatalf("call %v: %v %s", words, err, out)
		}
	}
	call(0, "dns_lookup", "--args", `{"domain":"before"}`)

	all, denied, raw := follow(t, h, "--since", "1h"), follow(t, h, "--since", "1h", "--status", "denied"), follow(t, h, "--since", "1h", "--json", "--tool", "security/scan_domain")
	var seen []string
	for len(seen) == 0 || !strings.Contains(seen[len(seen)-1], "allowed") { // what was before
		seen = append(seen, all.next(t))
	}
	if before := strings.Join(seen, "\n"); !strings.Contains(before, `running    security/dns_lookup           {"domain":"before"}`) {
		t.Errorf("what was before:\n%s", before)
	}

	call(0, "scan_domain", "--args", `{"domain":"x"}`)
	call(3, "delete_database")
	for _, want := range []string{"created    session ses_", `running    security/scan_domain          {"domain":"x"}`, "allowed    security/scan_domain", "created    session ses_", "denied     security/delete_database      Tool 'delete_database' is on the deny list"} {
		got := all.next(t)
		if !strings.Contains(got, want) || strings.Contains(got, "\x1b") {
			t.Errorf("%q lacks %q, or is coloured", got, want)
		}
		if strings.HasPrefix(want, "allowed") && !strings.Contains(got, "$0.004") {
			t.Errorf("%q has no cost", got)
		}
	}
	if got := denied.next(t); !strings.Contains(got, "security/delete_database") {
		t.Errorf("--status denied: %q", got)
	}
	for _, want := range []string{"running", "allowed"} {
		var e struct {
			Status, Tool string
			Seq, Outcome uint64
		}
		if err := json.Unmarshal([]byte(raw.next(t)), &e); err != nil || e.Status != want || e.Tool != "scan_domain" {
			t.Errorf("--json: %+v, %v, want %s", e, err, want)
		}
	}
	for _, f := range []*following{all, denied, raw} {
		if rest := f.end(t); len(rest) > 0 {
			t.Errorf("there was more: %q", rest)
		}
	}
}
