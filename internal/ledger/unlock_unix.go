//go:build unix

package ledger

import (
	"os"

	"golang.org/x/sys/unix"
)

// unlock frees bbolt's lock on a file whose mapping cannot be given back: the
// mapping would keep the lock alive after the file is closed.
func unlock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_UN) }
