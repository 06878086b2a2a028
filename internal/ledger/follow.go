package ledger

import (
	"context"
	"errors"
	"time"

	"github.com/haldir-mcp/haldir/audit"
)

// Head returns the number of the newest record, as the head file tells it: without
// the lock, for who waits for news. After a power cut it may lag.
func (l *Ledger) Head() (uint64, error) {
	h, err := readHead(l.o.Dir)
	return h.seq, err
}

// Raw returns the canonical bytes of a record, nil if there is none of that number, or none
// any more.
func (l *Ledger) Raw(ctx context.Context, seq uint64) (raw []byte, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		raw = source{t}.Record(seq)
		return nil
	})
	return raw, err
}

// Since returns the number of the first record that is not older than at, one more
// than the newest if all are, and how many records there are.
func (l *Ledger) Since(ctx context.Context, at time.Time) (first, newest uint64, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		newest, _ = t.head()
		s := source{t}
		if first = s.First(); at.IsZero() {
			return nil
		}
		// Blocks from the newest on: the first that ends before at is not in.
		block := newest / audit.BlockSize
		for ; block > 0; block-- {
			if _, last := s.Span(block - 1); last.Before(at) {
				break
			}
		}
		for first = max(s.First(), block*audit.BlockSize); first <= newest; first++ {
			raw := s.Record(first)
			if raw == nil {
				return nil // a walk from there tells what is wrong
			}
			r, err := audit.Decode(raw)
			if err != nil {
				return &audit.Damage{Seq: first, Kind: audit.DamageUnreadable, Detail: err.Error()}
			}
			if !r.Time.Before(at) {
				return nil
			}
		}
		return nil
	})
	return first, newest, err
}

// glance is how often who follows looks at the head file.
const glance = 100 * time.Millisecond

// Follow calls f with every record from first on, in order, and with each that comes
// until ctx ends, which is no error. It waits without the lock and takes it only for
// news; a ledger that is busy is asked again. After a recovery it goes on with the
// first record of the new chain.
func (l *Ledger) Follow(ctx context.Context, first uint64, f func(key uint64, raw []byte) error) error {
	next, before := max(first, 1), uint64(0)
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for {
		head, err := l.Head()
		if err != nil {
			return err
		}
		if head < before { // another chain has begun; its head file comes with its next record
			next = 1
		}
		before = head
		if head >= next {
			_, _, err := l.Walk(ctx, next, func(key uint64, raw []byte) error {
				if err := f(key, raw); err != nil {
					return err
				}
				next = key + 1
				return nil
			})
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, audit.ErrPruned): // it goes on with what is kept
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
