package ledger

import (
	"bytes"
	"cmp"
	"context"
	"slices"

	"github.com/haldir-mcp/haldir/audit"
)

// Find returns a page of the audit, newest first; see [audit.Find].
func (l *Ledger) Find(ctx context.Context, f audit.Filter) (entries []audit.Entry, next uint64, err error) {
	err = l.do(ctx, false, func(t *tx) (err error) {
		entries, next, err = audit.Find(source{t}, f)
		return err
	})
	return entries, next, err
}

// Entry returns the entry of the record numbered seq.
func (l *Ledger) Entry(ctx context.Context, seq uint64) (e audit.Entry, ok bool, err error) {
	err = l.do(ctx, false, func(t *tx) (err error) {
		e, ok, err = audit.Get(source{t}, seq)
		return err
	})
	return e, ok, err
}

// page is how many records a long read takes in one transaction. A transaction
// left open makes the file grow and other processes wait.
const page = 5000

// Verify checks the whole chain, against the checkpoints of the log and extra
// ones that were kept elsewhere. Records that are appended meanwhile are
// checked as well. progress, if not nil, is told how many of how many records
// are done. The error is an [*audit.Damage] when the chain is not intact.
func (l *Ledger) Verify(ctx context.Context, progress func(done, total uint64), extra ...audit.Checkpoint) (*audit.Verifier, error) {
	list, _, err := l.Checkpoints(ctx)
	if err != nil {
		return nil, err
	}
	list = append(list, extra...)
	slices.SortStableFunc(list, func(a, b audit.Checkpoint) int { return cmp.Compare(a.Size, b.Size) })
	v := &audit.Verifier{Checkpoints: list}
	for {
		var next audit.Verifier
		var more bool
		err := l.do(ctx, false, func(t *tx) error {
			next, more = *v, false
			headSeq, headHash := t.head()
			c := t.Bucket(bucketAudit).Cursor()
			n := 0
			for k, raw := c.Seek(be64(next.Count() + 1)); k != nil; k, raw = c.Next() {
				if n++; n > page {
					more = true
					if progress != nil {
						progress(next.Count(), headSeq)
					}
					return nil
				}
				if err := next.Add(number(k), bytes.Clone(raw)); err != nil {
					return err
				}
			}
			return next.Finish(headSeq, headHash)
		})
		*v = next
		if err != nil || !more {
			return v, err
		}
	}
}

// LoadCatalogue returns what [Ledger.SaveCatalogue] stored under key last, nil
// if nothing.
func (l *Ledger) LoadCatalogue(ctx context.Context, key string) (raw []byte, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		raw = bytes.Clone(t.Bucket(bucketCatalogue).Get([]byte(key)))
		return nil
	})
	return raw, err
}

// SaveCatalogue stores an upstream's catalogue.
func (l *Ledger) SaveCatalogue(ctx context.Context, key string, raw []byte) error {
	return l.do(ctx, true, func(t *tx) error {
		b := t.Bucket(bucketCatalogue)
		if bytes.Equal(b.Get([]byte(key)), raw) {
			return nil
		}
		return b.Put([]byte(key), raw)
	})
}
