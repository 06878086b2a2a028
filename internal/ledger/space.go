package ledger

import (
	"bytes"

	bolt "go.etcd.io/bbolt"
)

// space is a part of the hot bucket: the keys that begin with its byte.
// Everything that every transaction touches lies in one bucket, because each
// bucket touched costs pages to write and sync.
type space struct {
	c      *bolt.Cursor // on the hot bucket
	prefix byte
}

// The spaces. Their bytes and contents are the file format.
const (
	spaceMeta     = 'm' // version, head, clock
	spaceSessions = 's' // id → Session as JSON
	spaceCounters = 'c' // counter, zero byte, of → window start (Unix ns), value; both big-endian
	spaceHolds    = 'h' // call id → held as JSON
	spaceLoops    = 'l' // hash → window start, value, window end; see loop.go
	spaceConfigs  = 'g' // SHA-256 of a config → seq of its record
	spaceRetain   = 'r' // hash of a config's path and setting → claim as JSON; see prune.go
	spaceShip     = 'd' // SHA-256 of a destination's URL → cursor as JSON; see ship.go
	spaceKeys     = 'k' // SHA-256 of a key of the REST API → Key as JSON
	spaceOnce     = 'i' // k, digest → once as JSON; t, when it is forgotten (Unix ns, big-endian), digest → nothing
)

func (s space) key(k []byte) []byte { return append(append(make([]byte, 0, 1+len(k)), s.prefix), k...) }

func (s space) get(k []byte) []byte   { return find(s.c, s.key(k)) }
func (s space) put(k, v []byte) error { return s.c.Bucket().Put(s.key(k), v) }
func (s space) delete(k []byte) error { return s.c.Bucket().Delete(s.key(k)) }

// find is Bucket.Get by a cursor that has searched before: a new one for each key
// was a sixth of all that a call allocates.
func find(c *bolt.Cursor, key []byte) []byte {
	k, v := c.Seek(key)
	if !bytes.Equal(k, key) {
		return nil
	}
	return v
}

// has reports whether a key begins with prefix.
func (s space) has(prefix []byte) bool {
	k, _ := s.c.Bucket().Cursor().Seek(s.key(prefix))
	return bytes.HasPrefix(k, s.key(prefix))
}

// each calls f with every key that begins with prefix, in order. Keys and
// values are good until the transaction ends; f must not change the space.
func (s space) each(prefix []byte, f func(k, v []byte) error) error {
	full := s.key(prefix)
	c := s.c.Bucket().Cursor()
	for k, v := c.Seek(full); bytes.HasPrefix(k, full); k, v = c.Next() {
		if err := f(k[1:], v); err != nil {
			return err
		}
	}
	return nil
}

// some is each for at most the first n keys from a key on.
func (s space) some(from []byte, n int, f func(k, v []byte) error) error {
	c := s.c.Bucket().Cursor()
	for k, v := c.Seek(s.key(from)); n > 0 && len(k) > 0 && k[0] == s.prefix; k, v = c.Next() {
		if err := f(k[1:], v); err != nil {
			return err
		}
		n--
	}
	return nil
}
