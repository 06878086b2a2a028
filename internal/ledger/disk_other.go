//go:build !linux && !darwin && !freebsd && !windows

package ledger

// DiskFree does not know how many bytes can be written to the file system of a directory.
func DiskFree(string) (int64, bool) { return 0, false }
