package secret

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/gofrs/flock"
)

// ErrNotFound says that there is no secret of that name.
var ErrNotFound = errors.New("there is no such secret")

// The files of a store.
const (
	vaultFile = "secrets.age"
	keyFile   = "secrets.key"     // the key, where no keyring has it
	nameFile  = "secrets.keyring" // the name under which the keyring has it
	lockFile  = "secrets.lock"
)

// maxVault bounds the file that is read, in bytes.
const maxVault = 16 << 20

// Store is the secrets of one state directory. Make it with [New]; its methods are
// safe for concurrent use.
type Store struct {
	// Command is how a person runs haldir for this store, for what is said of a secret that there
	// is not; "haldir" if it is empty.
	Command string

	dir  string
	ring Keyring

	mu     sync.Mutex
	key    *age.X25519Identity
	locked error       // why the key could not be had
	until  time.Time   // until when that is not tried again
	seen   fs.FileInfo // of the file that values were read from
	values map[string]string
}

// New returns the store in dir, the state directory. Nothing is read or made before
// it is used. Without a ring the key is kept in a file.
func New(dir string, ring Keyring) *Store { return &Store{dir: dir, ring: ring} }

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// name is what a person may call a secret.
var name = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`) })

// CheckName reports what is wrong with a name for a secret. The names of haldir's own
// have a slash, so that no reference in a config can mean them.
func CheckName(n string) error {
	if !name().MatchString(n) {
		return fmt.Errorf("%q is no name for a secret: use up to 64 letters, digits, dots, - and _", n)
	}
	return nil
}

// Get returns a secret. The error is [ErrNotFound] if there is none of that name.
func (s *Store) Get(n string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	values, err := s.read()
	if err != nil {
		return "", err
	}
	v, ok := values[n]
	if !ok {
		return "", fmt.Errorf("%w; store it with: %s secret set %s", ErrNotFound, cmp.Or(s.Command, "haldir"), n)
	}
	return v, nil
}

// Names lists the secrets there are, sorted.
func (s *Store) Names() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	values, err := s.read()
	return slices.Sorted(maps.Keys(values)), err
}

// Set stores a secret, in place of another of that name.
func (s *Store) Set(n, value string) error {
	return s.Update(n, func(string, bool) (string, bool, error) { return value, true, nil })
}

// Remove removes a secret. The error is [ErrNotFound] if there is none.
func (s *Store) Remove(n string) error {
	return s.Update(n, func(_ string, ok bool) (string, bool, error) {
		if !ok {
			return "", false, ErrNotFound
		}
		return "", false, nil
	})
}

// Update replaces a secret by what change returns, or removes it if keep is false.
// change is given the present one, and nobody else changes any until it returns; after
// an error of it nothing is changed.
func (s *Store) Update(n string, change func(old string, ok bool) (value string, keep bool, err error)) (err error) {
	unlock, err := Lock(s.path(lockFile), lockPatience)
	if err != nil {
		return fmt.Errorf("lock the secrets: %w", err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	s.mu.Lock()
	defer s.mu.Unlock()
	values, err := s.read()
	if err != nil {
		return err
	}
	old, ok := values[n]
	value, keep, err := change(old, ok)
	if err != nil || keep && ok && value == old || !keep && !ok {
		return err
	}
	values = maps.Clone(values)
	if values == nil {
		values = map[string]string{}
	}
	if values[n] = value; !keep {
		delete(values, n)
	}
	return s.write(values)
}

func same(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// read returns what is stored. The map is not to be changed.
func (s *Store) read() (_ map[string]string, err error) {
	f, err := os.Open(s.path(vaultFile))
	if errors.Is(err, fs.ErrNotExist) {
		s.seen, s.values, s.key = nil, nil, nil // its key may be gone with it
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the secrets: %w", err)
	}
	defer func() { _ = f.Close() }() // only read from
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the secrets: %w", err)
	}
	if s.seen != nil && same(info, s.seen) {
		return s.values, nil
	}
	if err := s.unlock(); err != nil {
		return nil, err
	}
	plain, err := age.Decrypt(io.LimitReader(f, maxVault), s.key)
	if err != nil {
		s.key = nil
		return nil, fmt.Errorf("%s cannot be decrypted with the key in %s: %w; restore both from one backup, or remove %s and sign in again",
			f.Name(), s.where(), err, f.Name())
	}
	raw, err := io.ReadAll(plain)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", f.Name(), err)
	}
	values := map[string]string{}
	if err := json.Unmarshal(raw, &values); err != nil {
		return nil, fmt.Errorf("%s holds no secrets of this haldir", f.Name()) // the cause would quote them
	}
	s.seen, s.values = info, values
	return values, nil
}

// write replaces the file. The lock is held.
func (s *Store) write(values map[string]string) error {
	if err := s.makeKey(); err != nil {
		return err
	}
	raw, err := json.Marshal(values)
	if err != nil {
		return err
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, s.key.Recipient())
	if err != nil {
		return err
	}
	if _, err := w.Write(raw); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if sealed.Len() > maxVault {
		return fmt.Errorf("the secrets would take more than %d MiB", maxVault>>20)
	}
	if err := s.replace(vaultFile, sealed.Bytes()); err != nil {
		return fmt.Errorf("write the secrets: %w", err)
	}
	s.seen = nil // the next read sees what is on disk
	return nil
}

// replace writes a file anew, so that who reads it at any time, even after a power
// cut, sees all of the old one or all of the new.
func (s *Store) replace(name string, data []byte) (err error) {
	f, err := os.CreateTemp(s.dir, "."+name+"-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	giveToOwner(f)
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), s.path(name)); err != nil {
		return err
	}
	return syncDir(s.dir)
}

// lockPatience is how long a change waits for the changes of others, which take
// milliseconds.
const lockPatience = 10 * time.Second

// Lockable makes the file of a lock, and refuses what is none: to open a pipe may take for ever.
func Lockable(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		giveToOwner(f)
		return f.Close()
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return fmt.Errorf("%s is no file; take it away, and try again", path)
	case errors.Is(err, fs.ErrNotExist):
		if _, there := os.Lstat(path); there == nil {
			return fmt.Errorf("%s is a link that leads nowhere; take it away, and try again", path)
		}
	}
	return nil // what else is wrong with it, locking it says
}

// Lock takes the lock that the file at path stands for, waiting for whoever has it.
// The system frees it when its holder dies.
func Lock(path string, patience time.Duration) (unlock func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := Lockable(path); err != nil {
		return nil, err
	}
	l := flock.New(path, flock.SetPermissions(0o600))
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		switch ok, err := l.TryLock(); {
		case err != nil:
			return nil, err
		case ok:
			return l.Unlock, nil
		case time.Now().After(deadline):
			return nil, fmt.Errorf("another process holds %s for more than %v", path, patience)
		}
	}
}
