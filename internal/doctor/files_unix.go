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

// What a process may want to do with a file or directory.
const (
	toRead  = unix.R_OK
	toWrite = unix.W_OK
	toUse   = unix.R_OK | unix.W_OK | unix.X_OK // a directory
	toMake  = unix.W_OK | unix.X_OK             // something in a directory
)

// access says why this process cannot do that.
func access(path string, what uint32) error {
	if err := unix.Access(path, what); err != nil {
		return fmt.Errorf("%w", err)
	}
	return nil
}

// foreign reports whether a file is of another user than this process.
func foreign(info fs.FileInfo) (other bool, who string) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(s.Uid) == os.Geteuid() {
		return false, ""
	}
	return true, "the user " + name(int(s.Uid))
}

// theirs reports whether a file is of another user, and this one cannot change its mode.
func theirs(info fs.FileInfo) bool {
	other, _ := foreign(info)
	return other && os.Geteuid() != 0
}

// ofRoot reports whether a file is root's, who may do anything anyway.
func ofRoot(info fs.FileInfo) bool {
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && s.Uid == 0
}

// self is this user, as chown takes it.
func self() string { return name(os.Geteuid()) }

func name(uid int) string {
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}
