package secret

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/zalando/go-keyring"
)

// Keyring is the system's keyring, or what stands for it.
type Keyring interface {
	Get(service, user string) (string, error)
	Set(service, user, secret string) error
}

// service is under what the keyring files haldir's key.
const service = "haldir"

// SystemKeyring is the keyring of the system. A call returns after a while even if
// the keyring waits for a person to open it.
type SystemKeyring struct{}

// keyringPatience is how long a person has to open the keyring.
const keyringPatience = 20 * time.Second

// errNoBus says that there is no Secret Service to be had: without a session's bus the
// library would start one, which would outlive haldir, and holds nothing.
var errNoBus = errors.New("this login has no session bus (D-Bus), so no keyring can be reached")

func reachable() error {
	if runtime.GOOS != "linux" && !strings.HasSuffix(runtime.GOOS, "bsd") || os.Getenv("DBUS_SESSION_BUS_ADDRESS") != "" {
		return nil
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		if _, err := os.Stat(filepath.Join(dir, "bus")); err == nil { //nolint:gosec // the user's own directory
			return nil
		}
	}
	return errNoBus
}

// Get implements [Keyring].
func (SystemKeyring) Get(service, user string) (secret string, err error) {
	if err := reachable(); err != nil {
		return "", err
	}
	return patiently(func() (string, error) { return keyring.Get(service, user) })
}

// Set implements [Keyring].
func (SystemKeyring) Set(service, user, secret string) error {
	if err := reachable(); err != nil {
		return err
	}
	_, err := patiently(func() (string, error) { return "", keyring.Set(service, user, secret) })
	return err
}

func patiently(f func() (string, error)) (string, error) {
	type answer struct {
		text string
		err  error
	}
	done := make(chan answer, 1)
	go func() { // not waited for beyond patience: the keyring cannot be interrupted
		text, err := f()
		done <- answer{text, err}
	}()
	select {
	case a := <-done:
		return a.text, a.err
	case <-time.After(keyringPatience):
		return "", fmt.Errorf("the keyring has not answered within %v; is it locked?", keyringPatience)
	}
}

// where says where the key is.
func (s *Store) where() string {
	if _, err := os.Stat(s.path(nameFile)); err == nil {
		return "the system's keyring"
	}
	return s.path(keyFile)
}

// Where says in words where the key of the secrets is, or would be.
func (s *Store) Where() string { return s.where() }

// unlock gets the key, which there must be.
func (s *Store) unlock() error {
	if s.key != nil {
		return nil
	}
	if time.Now().Before(s.until) {
		return s.locked
	}
	text, err := s.storedKey()
	if err != nil {
		s.locked, s.until = err, time.Now().Add(lockedFor)
		return err
	}
	key, err := age.ParseX25519Identity(strings.TrimSpace(text))
	if err != nil {
		return fmt.Errorf("the key of the secrets in %s is damaged", s.where()) // the cause may quote it
	}
	s.key = key
	return nil
}

// lockedFor is how long a keyring that could not be read is left alone: each question
// may take all of a person's patience.
const lockedFor = 5 * time.Second

func (s *Store) storedKey() (string, error) {
	id, err := os.ReadFile(s.path(nameFile))
	if err == nil {
		if s.ring == nil {
			return "", errors.New("the key of the secrets is in the system's keyring, which haldir has been told not to use (keyring: file)")
		}
		text, err := s.ring.Get(service, string(bytes.TrimSpace(id)))
		if err != nil {
			return "", fmt.Errorf("the key of the secrets is in the system's keyring, which cannot be read here: %w", err)
		}
		return text, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("find the key of the secrets: %w", err)
	}
	raw, err := os.ReadFile(s.path(keyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s has lost its key: there is neither %s nor %s; restore it from a backup, or remove %s and sign in again",
			s.path(vaultFile), keyFile, nameFile, vaultFile)
	}
	if err != nil {
		return "", fmt.Errorf("read the key of the secrets: %w", err)
	}
	return string(raw), private(s.path(keyFile))
}

// makeKey gets the key, or makes one for a store that has none. The lock is held.
func (s *Store) makeKey() error {
	if s.key != nil {
		return nil
	}
	for _, f := range []string{nameFile, keyFile, vaultFile} {
		if _, err := os.Stat(s.path(f)); err == nil {
			return s.unlock()
		}
	}
	key, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	if s.ring != nil {
		id := "secrets-" + strings.ToLower(rand.Text())
		if err := s.ring.Set(service, id, key.String()); err == nil {
			if back, err := s.ring.Get(service, id); err == nil && back == key.String() {
				s.key = key
				return s.replace(nameFile, []byte(id+"\n"))
			}
		}
	}
	s.key = key
	return s.replace(keyFile, []byte(key.String()+"\n"))
}
