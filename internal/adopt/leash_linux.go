package adopt

import "syscall"

// attributes put the child in a process group of its own, and have the kernel kill it with the
// thread that has started it.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
