//go:build !linux

package ledger_test

import "os"

func dataSync(f *os.File) error { return f.Sync() }
