package upstream

import (
	"os/exec"
	"syscall"
)

// ownGroup puts the child in a process group of its own and has the kernel kill
// it when haldir dies without a word.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
