package ledger

import (
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gofrs/flock"
)

// turn is this process's place in the queue for the database. At most one
// goroutine at a time may call its methods.
type turn struct {
	gate *flock.Flock // held while waiting for lock: its holder is next
	lock *flock.Flock // held while using the database
	path string
}

func newTurn(dir string) *turn {
	path := filepath.Join(dir, "haldir.lock")
	return &turn{
		gate: flock.New(filepath.Join(dir, "haldir.turn"), flock.SetPermissions(0o600)),
		lock: flock.New(path, flock.SetPermissions(0o600)),
		path: path,
	}
}

// take blocks until the database is this process's.
func (t *turn) take() error {
	if err := t.gate.Lock(); err != nil {
		return fmt.Errorf("lock %s: %w", t.gate.Path(), err)
	}
	err := t.lock.Lock()
	if err := errors.Join(err, t.gate.Unlock()); err != nil {
		return fmt.Errorf("lock %s: %w", t.path, err)
	}
	// The pid is for the message of whoever waits too long, no more.
	_ = os.WriteFile(t.path+".pid", []byte(strconv.Itoa(os.Getpid())), 0o600)
	return nil
}

// wanted reports whether another process waits.
func (t *turn) wanted() bool {
	free, err := t.gate.TryLock()
	if err != nil {
		return true
	}
	if free {
		_ = t.gate.Unlock() // closing the file frees it in any case
	}
	return !free
}

// give lets the next process in.
func (t *turn) give() error { return t.lock.Unlock() }

// holder names the process that has the database, for a message.
func (t *turn) holder() string {
	b, err := os.ReadFile(t.path + ".pid")
	if pid := strings.TrimSpace(string(b)); err == nil && pid != "" {
		return "process " + pid
	}
	return "another process"
}

// presence is a lock that a process holds for its life. Who finds it free knows
// that the process is dead.
type presence struct {
	id   string
	lock *flock.Flock
}

// arrive registers this process. It must be called with the turn taken, so
// that nobody can mistake the file for one that was left behind between its
// creation and its locking.
func arrive(dir, id string) (*presence, error) {
	procs := filepath.Join(dir, "procs")
	if err := os.MkdirAll(procs, 0o700); err != nil {
		return nil, err
	}
	p := &presence{id: id, lock: flock.New(filepath.Join(procs, id), flock.SetPermissions(0o600))}
	ok, err := p.lock.TryLock()
	if err == nil && !ok {
		err = errors.New("it is locked")
	}
	if err != nil {
		return nil, fmt.Errorf("register this process in %s: %w", procs, err)
	}
	return p, nil
}

// leave removes the registration; call it with the turn taken and nothing held.
func (p *presence) leave() error {
	err := os.Remove(p.lock.Path())
	return errors.Join(err, p.lock.Unlock())
}

// dead lists the processes that have left their registration behind. clear
// removes one of them.
func dead(dir, self string) (ids []string, clear func(id string) error, err error) {
	procs := filepath.Join(dir, "procs")
	entries, err := os.ReadDir(procs)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return nil, nil, err
	}
	for _, e := range entries {
		if e.Name() == self || !e.Type().IsRegular() {
			continue
		}
		l := flock.New(filepath.Join(procs, e.Name()), flock.SetFlag(os.O_RDWR))
		free, err := l.TryLock()
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			return nil, nil, err
		}
		if !free {
			continue
		}
		_ = l.Unlock() // the turn keeps others from taking it
		ids = append(ids, e.Name())
	}
	return ids, func(id string) error { return os.Remove(filepath.Join(procs, id)) }, nil
}

// newID returns a random id of 16 characters with a prefix.
func newID(prefix string) string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return prefix + strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}
