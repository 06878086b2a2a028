//go:build !linux && !darwin && !freebsd && !windows

package ledger

// diskFree does not know.
func diskFree(string) (int64, bool) { return 0, false }
