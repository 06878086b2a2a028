package upstream

import "syscall"

// attributes put the child in a process group of its own and have the kernel
// kill it when haldir dies, at once and without a guard; what it has started is
// left to the [Guard]. The signal comes when the thread that made the child ends
// (prctl(2), PR_SET_PDEATHSIG), hence the locked thread of [child.run].
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
