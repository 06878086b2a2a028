//go:build linux || darwin || freebsd

package ledger

import "golang.org/x/sys/unix"

// DiskFree returns how many bytes can be written to the file system of a directory, if that
// is known.
func DiskFree(dir string) (int64, bool) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, false
	}
	return int64(s.Bavail) * int64(s.Bsize), true //nolint:gosec,unconvert // their types differ from system to system
}
