//go:build unix && !linux

package upstream

import "syscall"

// attributes put the child in a process group of its own. No kernel but Linux's
// kills a child with its parent: here the guard alone does.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
