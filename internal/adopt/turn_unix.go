//go:build unix

package adopt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/haldir-mcp/haldir/internal/secret"
)

// lock takes the lock of a file, as secret.Lock does, and gives the file, for a child to have the
// lock as well. It is freed by unlock, or when all that have it are gone.
func lock(path string, patience time.Duration) (turn *os.File, unlock func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, nil, err
	}
	if err := secret.Lockable(path); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(f.Fd())
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return f, func() error { return errors.Join(syscall.Flock(fd, syscall.LOCK_UN), f.Close()) }, nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			return nil, nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		case time.Now().After(deadline):
			return nil, nil, errors.Join(fmt.Errorf("another process holds %s for more than %v", path, patience), f.Close())
		}
	}
}
