package ledger

import (
	"bytes"
	"context"
	"time"

	"github.com/haldir-mcp/haldir/audit"
)

// Head returns the number of the newest record, as the head file tells it: without
// the lock, for who waits for news. After a power cut it may lag.
func (l *Ledger) Head() (uint64, error) {
	h, err := readHead(l.o.Dir)
	return h.seq, err
}

// Raw returns the canonical bytes of a record, nil if there is none of that number.
func (l *Ledger) Raw(ctx context.Context, seq uint64) (raw []byte, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		raw = bytes.Clone(t.Bucket(bucketAudit).Get(be64(seq)))
		return nil
	})
	return raw, err
}

// Since returns the number of the first record that is not older than at, one more
// than the newest if all are, and how many records there are.
func (l *Ledger) Since(ctx context.Context, at time.Time) (first, newest uint64, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		newest, _ = t.head()
		if first = 1; at.IsZero() {
			return nil
		}
		s := source{t}
		// Blocks from the newest on: the first that ends before at is not in.
		block := newest / audit.BlockSize
		for ; block > 0; block-- {
			if _, last := s.Span(block - 1); last.Before(at) {
				break
			}
		}
		for first = max(1, block*audit.BlockSize); first <= newest; first++ {
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
