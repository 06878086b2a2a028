//go:build unix

package upstream

import (
	"os/exec"
	"syscall"
)

// family is a child with all that it starts: a process group of its own, which the
// [Guard] knows.
type family struct {
	guard *Guard
	child *exec.Cmd
}

func (f *family) start(child *exec.Cmd) error {
	if err := f.guard.start(child); err != nil {
		return err
	}
	f.child = child
	return nil
}

// The group may be gone already, which is what both want.

func (f *family) terminate() { _ = syscall.Kill(-f.child.Process.Pid, syscall.SIGTERM) }

func (f *family) kill() { _ = syscall.Kill(-f.child.Process.Pid, syscall.SIGKILL) }

func (f *family) release() { f.guard.release(f.child.Process.Pid) }
