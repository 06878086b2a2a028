package ledger_test

import (
	"os"
	"syscall"
)

// dataSync syncs a file as bbolt does.
func dataSync(f *os.File) error { return syscall.Fdatasync(int(f.Fd())) }
