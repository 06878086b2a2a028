package edit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/haldir-mcp/haldir/internal/secret"
)

// patience is how long a change waits for those of other processes, which take
// milliseconds.
const patience = 10 * time.Second

// applier makes a change to a text. It is asked anew for every text.
type applier interface {
	apply(path string, before []byte) (Result, error)
}

// rewrite makes a change to a file.
func rewrite(c applier, path string, dryRun bool) (r Result, err error) {
	target, err := follow(path)
	if err != nil {
		return r, err
	}
	if _, err := os.Stat(filepath.Dir(target)); dryRun || err != nil { // no directory for what cannot be done
		before, _, err := read(target)
		if err != nil {
			return r, err
		}
		if r, err = c.apply(path, before); err != nil || dryRun {
			r.Path = target
			return r, err
		}
	}
	unlock, err := secret.Lock(lockOf(target), patience)
	if err != nil {
		return r, fmt.Errorf("lock %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	for range 2 { // a person may have saved it in between
		before, info, err := read(target)
		if err != nil {
			return r, err
		}
		if r, err = c.apply(path, before); err != nil {
			return r, err
		}
		r.Path = target
		if err = replace(target, before, r.After, info); !errors.Is(err, ErrChanged) {
			return r, err
		}
	}
	return r, fmt.Errorf("%s: %w by something else; nothing was written, try again", path, ErrChanged)
}

// lockOf is the file whose lock stands for that of another, which is replaced and so
// cannot be locked itself.
func lockOf(target string) string {
	return filepath.Join(filepath.Dir(target), "."+filepath.Base(target)+".lock")
}

// maxLinks is how many links may lead to a file.
const maxLinks = 40

// follow is the file that a path leads to, which need not be there.
func follow(path string) (string, error) {
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

// read reads a file. Both results are nil if there is none.
func read(path string) ([]byte, fs.FileInfo, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the config: %w", err)
	}
	defer func() { _ = f.Close() }() // only read from
	info, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("read the config: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is no file that can be replaced", path)
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(f); err != nil {
		return nil, nil, fmt.Errorf("read the config: %w", err)
	}
	return append([]byte{}, b.Bytes()...), info, nil
}

// replace writes a file anew, so that who reads it at any time, even after a power cut,
// sees all of the old one or all of the new. It refuses if the file is not as it was.
func replace(path string, before, after []byte, was fs.FileInfo) (err error) {
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
	now, _, err := read(path)
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

// remove removes a file that may be gone already.
func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
