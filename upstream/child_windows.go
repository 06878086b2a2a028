package upstream

import (
	"os/exec"
	"syscall"
)

// ownGroup keeps a Ctrl-C in haldir's console from reaching the child, which is
// ended by the ladder instead.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}

// Windows has no TERM for a process without a console: closing stdin was the
// polite request.
func terminate(*exec.Cmd) {}

func kill(cmd *exec.Cmd) { _ = cmd.Process.Kill() } // it may be gone already
