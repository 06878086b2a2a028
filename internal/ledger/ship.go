package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
)

// Shipping sends the records to where a team keeps them. How far it has come is in the
// ledger, one cursor for each destination, and it moves only when the destination has
// accepted what was sent: so every record arrives at least once, whoever dies when. One
// process ships at a time, which a lock file decides that dies with it.

// ErrShipping says that another process ships to that destination.
var ErrShipping = errors.New("another process ships to there")

const (
	// shipHeld is for how long records that were not shipped are kept beyond their time: from
	// when the destination was last known to have everything, or to have accepted something.
	shipHeld = 30 * 24 * time.Hour
	// shipTouch is how often it is noted that a destination has everything.
	shipTouch = time.Hour
)

// cursor is how far a destination is.
type cursor struct {
	Destination string    `json:"destination"`
	Ledger      string    `json:"ledger"` // whose records they are: after a recovery it is another one
	Seq         uint64    `json:"seq"`    // the last record that was accepted
	Rejected    uint64    `json:"rejected,omitempty"`
	Missed      uint64    `json:"missed,omitempty"` // records that were pruned before they were accepted
	Passed      uint64    `json:"passed,omitempty"` // up to here what is gone is in Missed, or was gone at the beginning
	At          time.Time `json:"at"`               // when something was accepted, or nothing was left to send
}

// missed returns how many records were pruned before they were accepted, and are not counted yet.
func (c *cursor) missed(pruned uint64) uint64 { return pruned - min(pruned, max(c.Seq, c.Passed)) }

// pass counts them.
func (c *cursor) pass(pruned uint64) {
	c.Missed, c.Passed = c.Missed+c.missed(pruned), max(c.Passed, pruned)
}

// Destination tells how far shipping to a destination is.
type Destination struct {
	Destination string    `json:"destination"`
	Shipped     uint64    `json:"shipped_record"`    // the number of the last record that was accepted
	Unshipped   uint64    `json:"unshipped_records"` // that are kept and were not accepted yet
	Rejected    uint64    `json:"rejected_records"`  // that the destination did not take
	Missed      uint64    `json:"missed_records"`    // that were pruned before the destination had accepted them
	At          time.Time `json:"at"`                // when it last accepted something, or had everything
	// Holds is until when what was not shipped is kept whatever its age; zero if it is not.
	Holds time.Time `json:"holds_until,omitzero"`
}

// Shipped is a record to be sent.
type Shipped struct {
	Seq uint64
	Raw []byte // canonical
}

// Shipping is the right to ship to a destination. One goroutine at a time may use it. Close
// it.
type Shipping struct {
	l           *Ledger
	lock        *flock.Flock
	destination string
	key         []byte
}

// Ship takes the right to ship to a destination, which the whole URL tells from others. A hash
// is all that is kept of it, and beside it the name by which it is shown: leave out of that
// what is secret. It is [ErrShipping] if another process has the right, and free when that one
// has ended, however it did.
func (l *Ledger) Ship(url, shown string) (*Shipping, error) {
	sum := sha256.Sum256([]byte(url))
	return l.shipping(sum[:], shown)
}

func (l *Ledger) shipping(key []byte, shown string) (*Shipping, error) {
	s := &Shipping{
		l: l, destination: shown, key: key,
		lock: flock.New(filepath.Join(l.o.Dir, "haldir.ship-"+hex.EncodeToString(key[:4])), flock.SetPermissions(0o600)),
	}
	switch ok, err := s.lock.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("lock %s: %w", s.lock.Path(), err)
	case !ok:
		return nil, ErrShipping
	}
	return s, nil
}

// Close lets another process ship.
func (s *Shipping) Close() error { return free(s.lock) }

// cursor returns how far the destination is with the records of this ledger.
func (s *Shipping) cursor(t *tx) (cursor, error) {
	c := cursor{Destination: s.destination, Ledger: string(t.space(spaceMeta).get(keyID)), Passed: t.pruned()}
	raw := t.space(spaceShip).get(s.key)
	if raw == nil {
		return c, nil
	}
	var known cursor
	if err := decode(raw, &known); err != nil {
		return c, fmt.Errorf("%w: how far records were shipped: %w", ErrDamaged, err)
	}
	if head, _ := t.head(); known.Ledger != c.Ledger || known.Seq > head {
		return c, nil // of a chain that is not there any more
	}
	return known, nil
}

// Next returns the records that come next, in their order, and the id of the ledger that
// they belong to: at most n of them, and not more than size bytes unless the first alone is
// larger. There are none if the destination has all. Records that were pruned before they
// were accepted are passed over, which is logged and counted.
func (s *Shipping) Next(ctx context.Context, n, size int) (list []Shipped, id string, err error) {
	stale := false
	var missed, pruned uint64
	err = s.l.do(ctx, false, func(t *tx) error {
		list, id = nil, string(t.space(spaceMeta).get(keyID))
		c, err := s.cursor(t)
		if err != nil {
			return err
		}
		pruned = t.pruned()
		missed = c.missed(pruned)
		total := 0
		records := t.Bucket(bucketAudit).Cursor()
		for k, raw := records.Seek(be64(max(c.Seq, pruned) + 1)); k != nil && len(list) < n; k, raw = records.Next() {
			if total += len(raw); total > size && len(list) > 0 {
				break
			}
			list = append(list, Shipped{number(k), bytes.Clone(raw)})
		}
		stale = len(list) == 0 && (t.now.Sub(c.At) >= shipTouch || c.At.After(t.now)) || c.At.IsZero()
		return nil
	})
	if err != nil || !stale && missed == 0 {
		return list, id, err
	}
	if err = s.note(ctx, stale, pruned); err == nil && missed > 0 {
		s.l.o.Logger.Error().Uint64("records", missed).Uint64("up_to", pruned).Str("destination", s.destination).
			Msg("records of the audit were pruned before the destination had them, and are not sent; records are held for a destination until 30 days after it last accepted any")
	}
	return list, id, err
}

// note writes down what Next has found: that records were passed over, and, if it is stale,
// that the destination has everything. From its first time on the destination holds what it
// does not have.
func (s *Shipping) note(ctx context.Context, stale bool, pruned uint64) error {
	return s.l.do(ctx, true, func(t *tx) error {
		c, err := s.cursor(t)
		if err != nil {
			return err
		}
		if stale {
			c.At = t.now
		}
		c.pass(min(pruned, t.pruned()))
		return t.space(spaceShip).putJSON(s.key, c)
	})
}

// Accepted moves the cursor behind a record of the ledger of that id: the destination has
// taken everything up to it, but for a number that it has rejected.
func (s *Shipping) Accepted(ctx context.Context, id string, seq, rejected uint64) error {
	return s.l.do(ctx, true, func(t *tx) error {
		c, err := s.cursor(t)
		if err != nil {
			return err
		}
		if c.Ledger != id { // it was recovered meanwhile: its records have begun anew
			return nil
		}
		c.Seq, c.At = max(c.Seq, seq), t.now
		c.Rejected += rejected
		return t.space(spaceShip).putJSON(s.key, c)
	})
}

// Destinations tells how far shipping is, for each destination that there ever was.
func (l *Ledger) Destinations(ctx context.Context) (list []Destination, err error) {
	err = l.do(ctx, false, func(t *tx) (err error) { list, err = t.destinations(); return err })
	return list, err
}

func (t *tx) destinations() (list []Destination, err error) {
	head, _ := t.head()
	id := string(t.space(spaceMeta).get(keyID))
	err = t.space(spaceShip).each(nil, func(_, raw []byte) error {
		var c cursor
		if err := decode(raw, &c); err != nil {
			return fmt.Errorf("%w: how far records were shipped: %w", ErrDamaged, err)
		}
		if c.Ledger != id || c.Seq > head {
			c.Seq, c.Passed = 0, t.pruned()
		}
		d := Destination{Destination: c.Destination, Shipped: c.Seq, Rejected: c.Rejected, Missed: c.Missed + c.missed(t.pruned()), At: c.At}
		d.Unshipped = head - max(c.Seq, t.pruned())
		if until := c.At.Add(shipHeld); until.After(t.now) {
			d.Holds = until
		}
		list = append(list, d)
		return nil
	})
	return list, err
}

// unshipped returns how many of the first records every destination that holds them has.
func (t *tx) unshipped(limit uint64) (uint64, error) {
	list, err := t.destinations()
	for _, d := range list {
		if !d.Holds.IsZero() {
			limit = min(limit, d.Shipped)
		}
	}
	return limit, err
}

// Forget drops the cursor of a destination, so that it holds nothing and, if it is shipped to
// again, gets everything from the first record that is kept. The destination is given by its
// URL or by the name that it is shown by, which must be that of one only. It reports whether
// there was one.
func (l *Ledger) Forget(ctx context.Context, destination string) (known bool, err error) {
	key, err := l.shippedTo(ctx, destination)
	if err != nil || key == nil {
		return false, err
	}
	s, err := l.shipping(key, destination)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	err = l.do(ctx, true, func(t *tx) error {
		ships := t.space(spaceShip)
		if known = ships.get(s.key) != nil; !known { // somebody else was faster
			return nil
		}
		return ships.delete(s.key)
	})
	return known, err
}

// shippedTo returns the key of a destination that is given by its URL or its name; nil if
// there is none.
func (l *Ledger) shippedTo(ctx context.Context, destination string) (key []byte, err error) {
	sum := sha256.Sum256([]byte(destination))
	err = l.do(ctx, false, func(t *tx) error {
		key = nil
		ships := t.space(spaceShip)
		if ships.get(sum[:]) != nil {
			key = sum[:]
			return nil
		}
		return ships.each(nil, func(k, raw []byte) error {
			var c cursor
			if err := decode(raw, &c); err != nil {
				return fmt.Errorf("%w: how far records were shipped: %w", ErrDamaged, err)
			}
			if c.Destination != destination {
				return nil
			}
			if key != nil {
				return fmt.Errorf("%s is the name of more than one destination; say which by its URL", destination)
			}
			key = bytes.Clone(k)
			return nil
		})
	})
	return key, err
}
