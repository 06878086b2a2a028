//go:build linux || darwin || freebsd

package doctor

import "golang.org/x/sys/unix"

// inodes is how many more files the file system of a directory has room for, if it counts them.
func inodes(dir string) (free uint64, counted bool) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil || s.Files == 0 {
		return 0, false
	}
	return uint64(max(s.Ffree, 0)), true //nolint:unconvert // its type differs from system to system
}
