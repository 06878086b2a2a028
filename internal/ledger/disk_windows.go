package ledger

import (
	"math"

	"golang.org/x/sys/windows"
)

// DiskFree returns how many bytes can be written to the file system of a directory, if that
// is known.
func DiskFree(dir string) (int64, bool) {
	path, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, false
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(path, &free, nil, nil); err != nil {
		return 0, false
	}
	return int64(min(free, math.MaxInt64)), true //nolint:gosec // bounded
}
