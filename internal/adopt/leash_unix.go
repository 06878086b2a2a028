//go:build unix

package adopt

import (
	"os"
	"os/exec"
	"syscall"
)

// leash has a child end with haldir, as far as the system can, and with all that it has started.
// The lock of a file is its own as well then: it lasts as long as one of the two is there.
func leash(cmd *exec.Cmd, turn *os.File) {
	cmd.SysProcAttr, cmd.ExtraFiles = attributes(), []*os.File{turn}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
}

// putDown ends what is left of a child's family, which is mostly nothing.
func putDown(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
