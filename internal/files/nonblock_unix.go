//go:build unix

package files

import "golang.org/x/sys/unix"

// nonblock opens a pipe although nobody writes to it.
const nonblock = unix.O_NONBLOCK
