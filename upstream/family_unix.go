//go:build unix

package upstream

import (
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// family is a child with all that it starts: a process group of its own. When
// haldir dies without a word (kill -9, the system being out of memory), the guard
// kills what is left of it: a shell that waits for the end of a pipe whose other
// end haldir alone holds. A process that has left the group is out of reach.
type family struct {
	child *exec.Cmd
	guard *exec.Cmd // nil where there is no shell
	hold  *os.File
}

const guardScript = `while read -r _; do :; done; kill -s KILL -- "-$1"`

// start starts the child and its guard.
func (f *family) start(child *exec.Cmd) error {
	child.SysProcAttr = attributes()
	if err := child.Start(); err != nil {
		return err
	}
	f.child = child
	r, w, err := os.Pipe()
	if err != nil {
		return nil // it does without
	}
	defer func() { _ = r.Close() }() // the guard has its own

	guard := exec.Command("/bin/sh", "-c", guardScript, "haldir-guard", strconv.Itoa(child.Process.Pid)) //nolint:noctx // ended by release
	guard.Env, guard.Stdin, guard.SysProcAttr = []string{}, r, &syscall.SysProcAttr{Setpgid: true}
	if guard.Start() != nil {
		_ = w.Close()
		return nil
	}
	f.guard, f.hold = guard, w
	return nil
}

// The group may be gone already, which is what both want.

func (f *family) terminate() { _ = syscall.Kill(-f.child.Process.Pid, syscall.SIGTERM) }

func (f *family) kill() { _ = syscall.Kill(-f.child.Process.Pid, syscall.SIGKILL) }

// release dismisses the guard: the number of a group that is gone may be that of
// another one soon.
func (f *family) release() {
	if f.guard != nil {
		_ = f.guard.Process.Kill()
		_ = f.guard.Wait()
		_ = f.hold.Close()
	}
}
