//go:build unix

package doctor

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// foreign reports whether a file is of another user than this process.
func foreign(info fs.FileInfo) (other bool, who string) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(s.Uid) == os.Geteuid() {
		return false, ""
	}
	id := strconv.Itoa(int(s.Uid))
	if u, err := user.LookupId(id); err == nil {
		return true, "the user " + u.Username
	}
	return true, "the user " + id
}

// writable says why this process cannot write to a file, or in a directory.
func writable(path string) error {
	if err := unix.Access(path, unix.W_OK); err != nil {
		return fmt.Errorf("%w", err)
	}
	return nil
}
