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

// npx and npm run put node_modules/.bin of a project first on PATH. What a clone has there is not run
// by init, nor written for a client to run.
func TestInitRunsNoProgramOfTheProject(t *testing.T) {
	t.Parallel()
	home, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(home, name) }
	write := func(name, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(at(name)), 0o700), os.WriteFile(at(name), []byte(strings.ReplaceAll(text, "$HOME", home)), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	own, err := os.ReadFile(program(t))
	if err != nil {
		t.Fatal(err)
	}
	haldir := at(".npm/_npx/0/node_modules/@haldir-mcp/haldir/bin/haldir")
	if err := errors.Join(os.MkdirAll(filepath.Dir(haldir), 0o700), os.WriteFile(haldir, own, 0o700)); err != nil {
		t.Fatal(err)
	}
	write("bin/claude", "#!/usr/bin/env node\n") // as npm has it: what runs is the node of PATH
	write("bin/node", "#!/bin/sh\ntouch '$HOME/registers'\n")
	write("bin/npx", "#!/bin/sh\n")
	write(".claude.json", `{"mcpServers": {"a": {"command": "a"}}, "projects": {"$HOME/project": {"hasTrustDialogAccepted": true}}}`)
	write(".cursor/mcp.json", `{"mcpServers": {"b": {"command": "b"}}}`)
	write("project/.mcp.json", `{"mcpServers": {"evil": {"command": "evil"}}}`)
	write("project/.claude/settings.local.json", `{"enabledMcpjsonServers": ["evil"]}`)
	write("project/sub/x", "")
	for _, args := range [][]string{{"init", "-q"}, {"add", "-f", ".claude"}} {
		cmd := exec.Command("git", args...)
		cmd.Dir = at("project")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	for _, dir := range []string{"project/node_modules/.bin", "project/sub/node_modules/.bin", "project/bin", "node_modules/.bin"} {
		for _, name := range []string{"git", "claude", "npx", "node", "haldir"} {
			write(dir+"/"+name, "#!/bin/sh\ntouch '$HOME/ran-"+name+"'\nexit 1\n")
		}
	}
	if err := os.Symlink("project/bin", at("link")); err != nil {
		t.Fatal(err)
	}
	path := []string{at("project/sub/node_modules/.bin"), at("project/node_modules/.bin"), at("node_modules/.bin"), at("project/bin"), at("link"), "../bin", at("bin"), os.Getenv("PATH")}
	for _, verb := range [][]string{{"init", "--dry-run"}, {"init", "--yes"}, {"doctor"}} {
		cmd := exec.Command(haldir, verb...)
		cmd.Dir = at("project/sub")
		cmd.Env = []string{"HOME=" + home, "PATH=" + strings.Join(path, string(os.PathListSeparator)), "HALDIR_KEYRING=file", "HALDIR_STATE_DIR=" + at("state")}
		out, err := cmd.CombinedOutput()
		if verb[0] == "init" && err != nil {
			t.Fatalf("%v: %v: %s", verb, err, out)
		}
		if ran, err := filepath.Glob(at("ran-*")); err != nil || len(ran) > 0 {
			t.Errorf("%v has run %v\n%s", verb, ran, out)
		}
	}
	if _, err := os.Stat(at("registers")); err != nil {
		t.Errorf("the person's own was not run: %v", err)
	}
	cursors, err := os.ReadFile(at(".cursor/mcp.json"))
	if err != nil || !strings.Contains(string(cursors), `"`+at("bin/npx")+`"`) {
		t.Errorf("Cursor starts %s, %v", cursors, err)
	}
	if brought, err := os.ReadFile(at("project/.mcp.json")); err != nil || !strings.Contains(string(brought), "evil") {
		t.Errorf("a clone's server has moved: %s, %v", brought, err)
	}
}
