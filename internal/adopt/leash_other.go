//go:build unix && !linux

package adopt

import "syscall"

// attributes put the child in a process group of its own. No kernel but Linux's kills it with
// haldir: there the lock that it has keeps others waiting.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
