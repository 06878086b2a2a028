//go:build unix

package main_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A signal in the middle of init has it take back what it has begun, and say so.
func TestInitThatIsSignalled(t *testing.T) {
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			home := t.TempDir()
			claude, config := filepath.Join(home, ".claude.json"), filepath.Join(home, ".config", "haldir", "haldir.yaml")
			const before = `{"mcpServers": {"a": {"command": "a", "env": {"TOKEN": "ghp_0123456789abcdefghij"}}}}`
			if err := os.WriteFile(claude, []byte(before), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(claude+".lock", 0o700); err != nil { // Claude Code is at its file, and init waits
				t.Fatal(err)
			}
			env := []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "HALDIR_KEYRING=file"}
			var out strings.Builder
			cmd := exec.Command(program(t), "init", "--yes")
			cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = home, env, &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for {
				if _, err := os.Stat(config); err == nil {
					break
				}
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if _, failed := errors.AsType[*exec.ExitError](cmd.Wait()); !failed || cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("%v", cmd.ProcessState)
			}
			if !strings.HasSuffix(out.String(), "haldir: it was interrupted; what it had begun is taken back, and nothing is changed\n") {
				t.Errorf("it said: %s", out.String())
			}
			if _, err := os.Stat(config); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("haldir.yaml: %v", err)
			}
			if raw, err := os.ReadFile(claude); err != nil || string(raw) != before {
				t.Errorf("Claude Code's file: %s, %v", raw, err)
			}
			cmd = exec.Command(program(t), "secret", "list")
			cmd.Env = env
			if raw, err := cmd.Output(); err != nil || len(raw) > 0 {
				t.Errorf("secrets: %s, %v", raw, err)
			}
		})
	}
}
