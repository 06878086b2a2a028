//go:build unix

package upstream

import (
	"os/exec"
	"syscall"
)

// The group may be gone already, which is what both want.

func terminate(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }

func kill(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
