package mcptest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Build builds the shipped haldir once a test process and returns its path. It
// is for figures and for tests outside cmd/haldir: the tests of cmd/haldir run
// themselves as haldir, so that a change of the product is a change of theirs.
func Build(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatalf("build haldir: %v", err)
	}
	return path
}

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "haldir-test-bin-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "haldir")
	if runtime.GOOS == "windows" {
		path += ".exe"
	}
	built = dir
	out, err := exec.Command("go", "build", "-o", path, "github.com/haldir-mcp/haldir/cmd/haldir").CombinedOutput()
	if err != nil {
		return "", errors.Join(err, errors.New(string(out)))
	}
	return path, nil
})

var built string // the directory of what Build has built, "" if nothing

// CleanUp removes what [Build] has built. It is for the end of a TestMain.
func CleanUp() {
	if built != "" {
		_ = os.RemoveAll(built)
	}
}

// Haldir is one user's haldir: a program, a config and a state directory.
type Haldir struct {
	Program string
	Config  string // path
	State   string // path
	Dir     string // where it is started
	Env     []string
}

// NewHaldir makes a haldir with the given text of haldir.yaml. Its environment is the
// test's own, without what belongs to another haldir, to a host or to a collector.
func NewHaldir(t testing.TB, program, config string) *Haldir {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { AwaitEnds(t, dir) })
	h := &Haldir{Program: program, Config: filepath.Join(dir, "haldir.yaml"), State: filepath.Join(dir, "state"), Dir: dir}
	h.Configure(t, config)
	h.Env = slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "HALDIR_") || strings.HasPrefix(e, "OTEL_") || strings.HasPrefix(e, "CLAUDE")
	})
	if !strings.Contains(config, "list_wait:") {
		h.Env = append(h.Env, "HALDIR_LIST_WAIT=60s") // a real server may take long to start beside other tests
	}
	return h
}

// Configure replaces the config.
func (h *Haldir) Configure(t testing.TB, config string) {
	t.Helper()
	if err := os.WriteFile(h.Config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Command is a verb of haldir with its flags.
func (h *Haldir) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(h.Program, append(args, "--config", h.Config, "--state-dir", h.State)...)
	cmd.Dir, cmd.Env = h.Dir, h.Env
	return cmd
}

// Serve starts haldir serve.
func (h *Haldir) Serve(t testing.TB, args ...string) *Session {
	t.Helper()
	return Start(t, h.Command(append([]string{"serve"}, args...)...))
}

// Run runs a verb to its end.
func (h *Haldir) Run(t testing.TB, args ...string) (out, errOut string, code int) {
	t.Helper()
	cmd := h.Command(args...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("haldir %s: %v", strings.Join(args, " "), err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// Must runs a verb that must succeed and returns its output. Where another process has got no
// time on this machine while it had the ledger, the verb has refused and done nothing, so it is
// run again.
func (h *Haldir) Must(t testing.TB, args ...string) string {
	t.Helper()
	for tries := 1; ; tries++ {
		out, errOut, code := h.Run(t, args...)
		if code == 0 {
			return out
		}
		if tries == 5 || !strings.Contains(errOut, "the ledger is busy") {
			t.Fatalf("haldir %s: exit status %d\n%s%s", strings.Join(args, " "), code, out, errOut)
		}
	}
}
