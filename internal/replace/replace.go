// Package replace writes files of people's anew: at once, so that who reads one sees all of
// the old or all of the new; through links, with its mode and, where the system lets it, its
// owner; and not over what somebody else has saved meanwhile.
package replace

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrChanged says that a file is not any more as it was read.
var ErrChanged = errors.New("the file changes while it is edited")

// maxLinks is how many links may lead to a file.
const maxLinks = 40

// Follow is the file that a path leads to, which need not be there.
func Follow(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	for range maxLinks {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode()&fs.ModeSymlink == 0 {
			return path, nil
		}
		if err != nil {
			return "", err
		}
		to, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return "", fmt.Errorf("%s: too many links lead from it", path)
}

// Read reads a file whole, and says what it is. Both results are nil if there is none.
func Read(path string) ([]byte, fs.FileInfo, error) {
	// First, since to open a pipe is to wait for who writes to it.
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is no file that can be replaced", path)
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	defer func() { _ = f.Close() }() // only read from
	info, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(f); err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	return append([]byte{}, b.Bytes()...), info, nil
}

// File writes a file anew, so that who reads it at any time, even after a power cut,
// sees all of the old one or all of the new. It keeps the mode of
// was, which is nil for a new file, and refuses with [ErrChanged] if there is something else
// than before, which is nil for no file.
func File(path string, before, after []byte, was fs.FileInfo) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, remove(f.Name()))
		}
	}()
	if was != nil {
		if err := alike(f, was); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	_, err = f.Write(after)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	now, _, err := Read(path)
	if err != nil {
		return err
	}
	if (now == nil) != (before == nil) || !bytes.Equal(now, before) {
		return ErrChanged
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// Sweep removes what File has left beside a file when it was killed: what has a name as File
// gives it, and nothing but the beginning of one of the texts.
func Sweep(path string, texts ...[]byte) error {
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range left {
		number, ok := strings.CutPrefix(e.Name(), "."+filepath.Base(path)+"-")
		if _, err := strconv.ParseUint(number, 10, 64); !ok || err != nil || !e.Type().IsRegular() {
			continue
		}
		name := filepath.Join(filepath.Dir(path), e.Name())
		data, _, err := Read(name)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(texts, func(t []byte) bool { return bytes.HasPrefix(t, data) }) {
			if err := remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// remove removes a file that may be gone already.
func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
