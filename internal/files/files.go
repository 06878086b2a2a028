// Package files reads and compares files that people name, whatever they turn out to be.
package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Most is how much is read of a file, in bytes. What people write, and clients keep for them, is
// a hundredth of that.
const Most = 16 << 20

var (
	// ErrTooLarge says that a file has no end, or a far one. Behind it stands how much is read.
	ErrTooLarge = errors.New("it is larger")
	// ErrNoWriter says that a file is a pipe that nobody writes to.
	ErrNoWriter = errors.New("it is a pipe that nobody writes to")
)

// Read is os.ReadFile for a file that need not be one. Of a pipe it reads what its writer has to
// say, such as a shell's for <(…), and does not wait for one to come; of what does not end, such
// as /dev/zero, it does not take all memory.
func Read(path string) ([]byte, error) { return ReadTo(path, Most) }

// ReadTo is Read for a file that may have another size, in bytes.
func ReadTo(path string, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	if err := wait(f); err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(data)) > most:
		err = fmt.Errorf("%w than %d MiB", ErrTooLarge, most>>20)
	case len(data) == 0 && info.Mode()&fs.ModeNamedPipe != 0:
		err = ErrNoWriter
	default:
		return data, nil
	}
	return nil, &fs.PathError{Op: "read", Path: path, Err: err}
}
