package ledger

import (
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
)

// turn is this process's place in the queue for the database. At most one
// goroutine at a time may call its methods.
type turn struct {
	gate  *flock.Flock // held while waiting for lock: its holder is next
	probe *flock.Flock // tries the gate
	lock  *flock.Flock // held while using the database

	mu     sync.Mutex
	waits  bool       // for the gate
	queued chan error // receives when the gate is this process's; nil when nothing asks for it
}

func newTurn(dir string) *turn {
	gate, private := filepath.Join(dir, "haldir.turn"), flock.SetPermissions(0o600)
	return &turn{gate: flock.New(gate, private), probe: flock.New(gate, private), lock: flock.New(filepath.Join(dir, "haldir.lock"), private)}
}

// take blocks until the database is this process's.
func (t *turn) take() error {
	queued, late := t.queue()
	if !late {
		select {
		case err := <-queued:
			return t.pass(err)
		case <-time.After(overdue):
		}
	}
	// Whoever is next does not run, or the line is long: then a lock that nobody
	// has is there for the taking.
	for tick := time.NewTicker(look); ; {
		select {
		case err := <-queued:
			tick.Stop()
			return t.pass(err)
		case <-tick.C:
		}
		free, err := t.lock.TryLock()
		if err != nil || free {
			tick.Stop()
			return errors.Join(err, t.unqueue(), t.sign(t.lock, err))
		}
	}
}

// queue asks for the gate. late means that it was asked for before, in vain.
func (t *turn) queue() (queued chan error, late bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waits = true
	if t.queued != nil {
		return t.queued, true
	}
	queued = make(chan error, 1)
	t.queued = queued
	go func() {
		err := t.gate.Lock()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.queued = nil
		if err == nil && !t.waits {
			err = free(t.gate)
		}
		queued <- err
	}()
	return queued, false
}

// unqueue lets the next one have the gate, should it still come.
func (t *turn) unqueue() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waits = false
	if t.queued == nil { // it has come
		return free(t.gate)
	}
	return nil
}

// pass goes through the gate.
func (t *turn) pass(err error) error {
	if err != nil {
		return locking(t.gate, err)
	}
	_ = t.sign(t.gate, nil)
	if err := errors.Join(t.lock.Lock(), free(t.gate)); err != nil {
		return locking(t.lock, err)
	}
	return t.sign(t.lock, nil)
}

// locking says which lock an error is of, unless the error does.
func locking(lock *flock.Flock, err error) error {
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return err
	}
	return fmt.Errorf("lock %s: %w", lock.Path(), err)
}

// sign says who has a lock, for the message of whoever waits too long.
func (t *turn) sign(lock *flock.Flock, err error) error {
	if err == nil {
		_ = os.WriteFile(lock.Path()+".pid", []byte(strconv.Itoa(os.Getpid())), 0o600) // for no more than that
	}
	return err
}

// wanted reports whether another process waits.
func (t *turn) wanted() bool {
	free, err := t.probe.TryLock()
	if err != nil {
		return true
	}
	if free {
		_ = t.probe.Unlock() // closing the file frees it in any case
	}
	return !free
}

// give lets the next process in.
func (t *turn) give() error { return free(t.lock) }

// free frees a lock. Where the system fails at that, the file stays open and
// locked, so it is tried again.
func free(lock *flock.Flock) error {
	if lock.Unlock() == nil {
		return nil
	}
	return lock.Unlock()
}

// holder is the process that has the database, for a message; 0 if that is not known. Where
// its file says that this one has, it is the one that was next.
func (t *turn) holder() int {
	for _, lock := range []*flock.Flock{t.lock, t.gate} {
		b, _ := os.ReadFile(lock.Path() + ".pid") // none is as good as an empty one
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid > 0 && pid != os.Getpid() {
			return pid
		}
	}
	return 0
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
func arrive(dir, id string, about Process) (*presence, error) {
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
	about.introduce(p.lock.Path())
	return p, nil
}

// gone reports whether somebody removed the registration of a living process.
func (p *presence) gone() bool {
	_, err := os.Stat(p.lock.Path())
	return errors.Is(err, fs.ErrNotExist)
}

// leave removes the registration; call it with the turn taken and nothing held.
func (p *presence) leave() error {
	err := free(p.lock) // first, because Windows removes no open file
	return errors.Join(err, os.Remove(p.lock.Path()))
}

// dead returns those of ids, and of the processes that left their registration
// behind, that no longer live. A registration that is gone is that of a process
// that is: its lock went with it.
func dead(dir string, ids map[string]bool, self string) ([]string, error) {
	procs := filepath.Join(dir, "procs")
	entries, err := os.ReadDir(procs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			ids[e.Name()] = true
		}
	}
	delete(ids, self)
	var list []string
	for id := range ids {
		l := flock.New(filepath.Join(procs, id), flock.SetFlag(os.O_RDWR))
		free, err := l.TryLock()
		if free {
			_ = l.Unlock() // the turn keeps others from taking it
		}
		if free || errors.Is(err, fs.ErrNotExist) { // who cannot be asked counts as alive
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list, nil
}

// bury removes the registration of a dead process.
func bury(dir, id string) error {
	err := os.Remove(filepath.Join(dir, "procs", id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// newID returns a random id of 16 characters with a prefix.
func newID(prefix string) string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return prefix + strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}
