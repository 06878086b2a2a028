package adopt

import (
	"os"
	"time"

	"github.com/haldir-mcp/haldir/internal/secret"
)

// lock takes the lock of a file. There is no child that is to have it as well.
func lock(path string, patience time.Duration) (turn *os.File, unlock func() error, err error) {
	unlock, err = secret.Lock(path, patience)
	return nil, unlock, err
}
