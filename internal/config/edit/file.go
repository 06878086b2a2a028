package edit

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/haldir-mcp/haldir/internal/replace"
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
func rewrite(c applier, path string, o Options) (r Result, err error) {
	target, err := replace.Follow(path)
	if err != nil {
		return r, err
	}
	if _, err := os.Stat(filepath.Dir(target)); o.DryRun || err != nil { // no directory for what cannot be done
		before, _, err := replace.Read(target)
		if err == nil {
			err = o.expects(path, before)
		}
		if err != nil {
			return r, err
		}
		if r, err = c.apply(path, before); err != nil || o.DryRun {
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
		before, info, err := replace.Read(target)
		if err == nil {
			err = o.expects(path, before)
		}
		if err != nil {
			return r, err
		}
		if r, err = c.apply(path, before); err != nil {
			return r, err
		}
		r.Path = target
		if err = replace.File(target, before, r.After, info); !errors.Is(err, ErrChanged) {
			return r, mounted(target, err)
		}
	}
	return r, fmt.Errorf("%s: %w by something else; nothing was written, try again", path, ErrChanged)
}

// expects is an error if a text is not the one that may be changed.
func (o Options) expects(path string, text []byte) error {
	var sum [sha256.Size]byte
	if text != nil {
		sum = sha256.Sum256(text)
	}
	if o.Expect != nil && *o.Expect != sum {
		return fmt.Errorf("%s: %w", path, ErrOther)
	}
	return nil
}

// lockOf is the file whose lock stands for that of another, which is replaced and so
// cannot be locked itself.
func lockOf(target string) string {
	return filepath.Join(filepath.Dir(target), "."+filepath.Base(target)+".lock")
}

// Replace replaces the file as a whole, if it is still as it was before, which is nil for no
// file. Its directory is made if need be.
func Replace(path string, before, after []byte) (err error) {
	target, err := replace.Follow(path)
	if err != nil {
		return err
	}
	unlock, err := secret.Lock(lockOf(target), patience)
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	_, info, err := replace.Read(target)
	if err != nil {
		return err
	}
	return mounted(target, replace.File(target, before, after, info))
}

// mounted says what to do where a file is mounted by itself, as into a container: it can be
// written to, and not replaced.
func mounted(target string, err error) error {
	if !errors.Is(err, syscall.EBUSY) {
		return err
	}
	return fmt.Errorf("%w: it is mounted by itself, so it cannot be replaced; mount the directory %s instead, or edit the file where it comes from", err, filepath.Dir(target))
}
