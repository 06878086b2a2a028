//go:build unix

package files

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// nonblock opens a pipe although nobody writes to it.
const nonblock = unix.O_NONBLOCK

// wait has reads wait for what a writer has to say. macOS cannot tell Go when a pipe has something,
// so that a read of one that does not wait fails until then. Without a writer it still ends at once.
func wait(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = conn.Control(func(fd uintptr) { set = unix.SetNonblock(int(fd), false) })
	return errors.Join(err, set)
}
