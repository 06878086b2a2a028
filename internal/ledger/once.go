package ledger

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/haldir-mcp/haldir/audit"
)

// OnceState is what is known of a request that is to be done once.
type OnceState uint8

// The states.
const (
	OnceNew     OnceState = iota // it is the caller's to do, and to end
	OnceRunning                  // it is being done
	OnceLost                     // who was doing it is gone: nobody knows what came of it
	OnceDone                     // it was done; there is an answer
	OnceOther                    // another request has that name
)

// Once is a request that is to be done once (an Idempotency-Key).
type Once struct {
	State  OnceState
	Answer []byte    // of OnceDone, as it was given to EndOnce
	Since  time.Time // when it was begun
}

// onceKept is how long a request is known again.
const onceKept = 24 * time.Hour

// MaxOnce is the longest answer that is kept, in bytes.
const MaxOnce = 256 << 10

// once is an entry in the file.
type once struct {
	Digest audit.Hash `json:"digest"`
	Owner  string     `json:"owner"` // the process that does it
	Since  time.Time  `json:"since"`
	Done   bool       `json:"done,omitempty"`
	Answer []byte     `json:"answer,omitempty"`
}

func onceKey(name audit.Hash) []byte { return append([]byte{'k'}, name[:]...) }

func onceTime(at time.Time, name audit.Hash) []byte {
	return append(append([]byte{'t'}, stamp(at)...), name[:]...)
}

// BeginOnce claims a request by its name, which says whose it is, too. digest is that
// of the whole request: the same name for another one is a mistake of the caller's.
// What is new must be ended by [Ledger.EndOnce].
func (l *Ledger) BeginOnce(ctx context.Context, name, digest audit.Hash) (o Once, err error) {
	err = l.do(ctx, true, func(t *tx) error {
		o = Once{}
		if err := t.forgetOnce(); err != nil {
			return err
		}
		all := t.space(spaceOnce)
		if raw := all.get(onceKey(name)); raw != nil {
			var e once
			if err := decode(raw, &e); err != nil {
				return fmt.Errorf("%w: an idempotency key: %w", ErrDamaged, err)
			}
			o.Since, o.Answer = e.Since, e.Answer
			switch {
			case e.Digest != digest:
				o.State, o.Answer = OnceOther, nil
			case e.Done:
				o.State = OnceDone
			default:
				o.State = OnceRunning
				gone, err := dead(l.o.Dir, map[string]bool{e.Owner: true}, l.id)
				if err != nil {
					return err
				}
				if slices.Contains(gone, e.Owner) {
					o.State = OnceLost
				}
			}
			return nil
		}
		o.Since = t.now
		if err := all.put(onceTime(t.now.Add(onceKept), name), []byte{1}); err != nil {
			return err
		}
		return all.putJSON(onceKey(name), once{Digest: digest, Owner: l.id, Since: t.now})
	})
	return o, err
}

// EndOnce keeps the answer to a request that was begun. Without one nothing was done,
// and it may be begun again.
func (l *Ledger) EndOnce(ctx context.Context, name audit.Hash, answer []byte) error {
	return l.do(ctx, true, func(t *tx) error {
		all := t.space(spaceOnce)
		raw := all.get(onceKey(name))
		if raw == nil {
			return nil // it took longer than it is kept
		}
		var e once
		if err := decode(raw, &e); err != nil {
			return fmt.Errorf("%w: an idempotency key: %w", ErrDamaged, err)
		}
		if answer == nil {
			if err := all.delete(onceTime(e.Since.Add(onceKept), name)); err != nil {
				return err
			}
			return all.delete(onceKey(name))
		}
		e.Done, e.Answer = true, answer
		return all.putJSON(onceKey(name), e)
	})
}

// forgetMost is how many old ones are removed at a time: more than are added.
const forgetMost = 8

// forgetOnce removes what is older than it is kept.
func (t *tx) forgetOnce() error {
	all := t.space(spaceOnce)
	var old [][]byte
	err := all.some([]byte{'t'}, forgetMost, func(k, _ []byte) error {
		if len(k) == 1+8+len(audit.Hash{}) && !moment(k[1:9]).After(t.now) {
			old = append(old, bytes.Clone(k))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range old {
		if err := all.delete(k); err != nil {
			return err
		}
		if err := all.delete(append([]byte{'k'}, k[9:]...)); err != nil {
			return err
		}
	}
	return nil
}
