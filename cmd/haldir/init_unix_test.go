//go:build unix

package main_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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

// A Claude Code that init has started does not write after an undo, though init be killed: it dies
// with init where the system has that, and what of it lives on has the undo wait.
func TestInitThatIsKilledWhileClaudeCodeWrites(t *testing.T) {
	const write = `echo '{"mcpServers": {"a": {"command": "a"}, "haldir": {"type": "stdio", "command": "haldir", "args": ["serve"], "env": {}}}}' >.new; mv .new .claude.json; `
	scripts := map[string]string{"it lives on": "(touch started; read x <pipe; " + write + ") &\nwait\n"}
	if runtime.GOOS == "linux" {
		scripts["it dies"] = write + "touch started; read x <never; echo spoiled >.claude.json\n"
	}
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			home := t.TempDir()
			at := func(name string) string { return filepath.Join(home, name) }
			const before = `{ "mcpServers": {"a": {"command": "a"}} }`
			for name, text := range map[string]string{".claude.json": before, "claude": "#!/bin/sh\n" + script} {
				if err := os.WriteFile(at(name), []byte(text), 0o700); err != nil { //nolint:gosec // one of them is a program
					t.Fatal(err)
				}
			}
			for _, name := range []string{"pipe", "never"} {
				if err := syscall.Mkfifo(at(name), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			haldir := func(args ...string) (*exec.Cmd, *strings.Builder) {
				var out strings.Builder
				cmd := exec.Command(program(t), args...)
				cmd.Dir, cmd.Stdout, cmd.Stderr = home, &out, &out
				cmd.Env = []string{"HOME=" + home, "PATH=" + home + string(os.PathListSeparator) + os.Getenv("PATH"), "HALDIR_KEYRING=file", "HALDIR_STATE_DIR=" + at("state")}
				return cmd, &out
			}
			cmd, out := haldir("init", "--dry-run", "--json")
			var plan struct{ Files []struct{ Command []string } }
			if err := errors.Join(cmd.Run(), json.Unmarshal([]byte(out.String()), &plan)); err != nil || len(plan.Files) != 2 ||
				plan.Files[0].Command != nil || !strings.HasPrefix(strings.Join(plan.Files[1].Command, " "), "claude mcp add --scope user haldir -- ") {
				t.Errorf("the plan does not say what is run: %v, %s", err, out)
			}
			cmd, out = haldir("init", "--yes")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for {
				if _, err := os.Stat(at("started")); err == nil {
					break
				}
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Fatalf("it was not killed: %s", out)
			}
			if name == "it lives on" {
				turn, err := os.Open(at("state/init.lock"))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = turn.Close() }()
				if err := syscall.Flock(int(turn.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
					t.Errorf("an undo would not wait: %v", err)
				}
				go func() { _ = os.WriteFile(at("pipe"), []byte("go\n"), 0o600) }()
			}
			cmd, out = haldir("init", "--undo", "--yes")
			if err := cmd.Run(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
			if raw, err := os.ReadFile(at(".claude.json")); err != nil || string(raw) != before {
				t.Errorf("Claude Code's file: %s, %v", raw, err)
			}
		})
	}
}
