package ledger

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/policy"
)

// step is how many entries a query takes in one transaction.
const step = 250

// Find returns a page of the audit, newest first; next continues it as f.Before,
// 0 at its end. Other operations get their turn in between.
func (l *Ledger) Find(ctx context.Context, f audit.Filter) (entries []audit.Entry, next uint64, err error) {
	limit := f.Limit
	if limit <= 0 {
		limit = 50
	}
	for len(entries) <= limit { // one more tells whether there is more
		f.Limit = min(limit+1-len(entries), step)
		var found []audit.Entry
		err := l.do(ctx, false, func(t *tx) (err error) {
			found, next, err = audit.Find(source{t}, f)
			return err
		})
		if err != nil {
			return nil, 0, err
		}
		entries, f.Before = append(entries, found...), next
		if next == 0 {
			break
		}
	}
	if len(entries) > limit {
		return entries[:limit], entries[limit-1].Seq, nil
	}
	return entries, 0, nil
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
const page = 2000

// stored is one record as it lies in the file.
type stored struct {
	key uint64
	raw []byte
}

// Walk calls f with every record from first on, in order, with its number and
// its canonical bytes, which are f's. Records that are appended meanwhile are
// walked as well. It returns the head as it was with the last of them. It begins
// with the first record that is kept; if that is pruned while it is walked to,
// the error is [audit.ErrPruned].
func (l *Ledger) Walk(ctx context.Context, first uint64, f func(key uint64, raw []byte) error) (headSeq uint64, headHash audit.Hash, err error) {
	err = l.do(ctx, false, func(t *tx) error { first = max(first, kept(t.pruned())); return nil })
	if err != nil {
		return 0, headHash, err
	}
	return l.walk(ctx, first, f)
}

// kept returns where a walk through all records begins: what somebody has put before the
// first is to be found, but not what is still to be deleted.
func kept(gone uint64) uint64 {
	if gone == 0 {
		return 0
	}
	return gone + 1
}

// walk is Walk from exactly first on.
func (l *Ledger) walk(ctx context.Context, first uint64, f func(key uint64, raw []byte) error) (headSeq uint64, headHash audit.Hash, err error) {
	for {
		var records []stored
		err := l.do(ctx, false, func(t *tx) error {
			records = records[:0]
			headSeq, headHash = t.head()
			if gone := t.pruned(); gone > 0 && first <= gone {
				return fmt.Errorf("record %d: %w meanwhile; begin again", first, audit.ErrPruned)
			}
			c := t.Bucket(bucketAudit).Cursor()
			for k, raw := c.Seek(be64(first)); k != nil && len(records) < page; k, raw = c.Next() {
				records = append(records, stored{number(k), bytes.Clone(raw)})
			}
			return nil
		})
		if err != nil {
			return headSeq, headHash, err
		}
		for _, r := range records {
			if err := f(r.key, r.raw); err != nil {
				return headSeq, headHash, err
			}
			first = r.key + 1
		}
		if len(records) < page {
			return headSeq, headHash, nil
		}
	}
}

// Verify checks the whole chain, against the checkpoints of the log and extra
// ones that were kept elsewhere. Records that are appended meanwhile are
// checked as well. progress, if not nil, is told now and then how many records
// are done. The error is an [*audit.Damage] when the chain is not intact. Where the
// beginning was pruned, it begins with what was signed of that, and again if more is
// pruned meanwhile.
func (l *Ledger) Verify(ctx context.Context, progress func(done uint64), extra ...audit.Checkpoint) (*audit.Verifier, error) {
	for range verifyTries {
		gone, err := l.Pruned(ctx)
		if err != nil {
			return &audit.Verifier{}, err
		}
		v, err := l.verify(ctx, gone, progress, extra)
		if again, unknown := l.outdated(ctx, gone, err); unknown != nil || !again {
			return v, cmp.Or(unknown, err)
		}
	}
	return &audit.Verifier{}, fmt.Errorf("records were pruned each of the %d times that the chain was gone through; "+
		"verify it again when nobody compacts the ledger", verifyTries)
}

// verifyTries bounds how often a walk begins anew. A boundary waits for a day, so that one
// is enough unless somebody compacts over and over.
const verifyTries = 10

// outdated reports whether what a walk has found may be because more was pruned than was
// gone when it began: the chain tells of it then, and what the walk began with does not.
func (l *Ledger) outdated(ctx context.Context, gone audit.Pruned, found error) (bool, error) {
	if errors.Is(found, audit.ErrPruned) {
		return true, nil
	}
	if _, damage := errors.AsType[*audit.Damage](found); !damage {
		return false, nil
	}
	now, err := l.Pruned(ctx)
	if err != nil {
		return false, err
	}
	return now.Size > gone.Size, nil
}

func (l *Ledger) verify(ctx context.Context, gone audit.Pruned, progress func(done uint64), extra []audit.Checkpoint) (*audit.Verifier, error) {
	list, _, err := l.Checkpoints(ctx) // also that of what is gone, which was read before
	if err != nil {
		return &audit.Verifier{}, err
	}
	if err := known(list, extra, gone.Size); err != nil {
		return &audit.Verifier{}, err
	}
	list = append(list, extra...)
	slices.SortStableFunc(list, func(a, b audit.Checkpoint) int { return cmp.Compare(a.Size, b.Size) })
	v := &audit.Verifier{Checkpoints: list}
	if err := v.Begin(gone); err != nil {
		return v, err
	}
	headSeq, headHash, err := l.walk(ctx, kept(gone.Size), func(key uint64, raw []byte) error {
		err := v.Add(key, raw)
		if progress != nil && v.Count()%page == 0 {
			progress(v.Count())
		}
		return err
	})
	if err != nil {
		return v, err
	}
	return v, v.Finish(headSeq, headHash)
}

// known compares checkpoints that were kept elsewhere, of before the first record that is
// kept, with those of the log: the records that they are about are not there any more.
func known(list, extra []audit.Checkpoint, gone uint64) error {
	for _, c := range extra {
		if c.Size >= gone {
			continue
		}
		for _, own := range list {
			if own.Size == c.Size && (own.Root != c.Root || own.Head != c.Head) {
				return &audit.Damage{Kind: audit.DamageFork, Detail: fmt.Sprintf(
					"the checkpoint of %s over %d records is not the one in the log", c.Time.Format("2006-01-02 15:04:05Z"), c.Size)}
			}
		}
	}
	return nil
}

// Stats describes the file.
type Stats struct {
	Path        string `json:"path"`
	Bytes       int64  `json:"bytes"`
	FreeBytes   int64  `json:"free_bytes"` // inside the file, to be used again
	Format      int    `json:"format"`
	Records     uint64 `json:"records"`      // that are kept
	First       uint64 `json:"first_record"` // the number of the first of them; 0 if there is none
	Last        uint64 `json:"last_record"`
	Unswept     uint64 `json:"unswept_records"` // that were pruned and are still in the file
	Checkpoints uint64 `json:"checkpointed_records"`
	Sessions    int    `json:"sessions"`
	Open        int    `json:"open_calls"`
	RecordBytes int    `json:"record_bytes"` // canonical bytes of all records
	// Kept is for how long records are kept, in seconds, and Keeps whose config says so; 0 is
	// for ever.
	Kept  int64  `json:"retain_seconds"`
	Keeps string `json:"retain_by,omitempty"`
	// Shipping is where records are sent to, and how far that is.
	Shipping []Destination `json:"shipping,omitempty"`
}

// Stats reads every record; with many that takes a while.
func (l *Ledger) Stats(ctx context.Context) (s Stats, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		s = Stats{Path: t.DB().Path(), Bytes: t.Size(), Format: FormatVersion}
		s.FreeBytes = int64(t.DB().Stats().FreePageN+t.DB().Stats().PendingPageN) * int64(t.DB().Info().PageSize)
		gone := t.pruned()
		s.Last, _ = t.head()
		if s.Records = s.Last - gone; s.Records > 0 {
			s.First = gone + 1
		}
		if k, _ := t.Bucket(bucketAudit).Cursor().First(); k != nil && number(k) <= gone {
			s.Unswept = gone + 1 - number(k)
		}
		claims, _, err := t.claims()
		if err != nil {
			return err
		}
		if len(claims) > 0 {
			s.Kept, s.Keeps = int64(claims[0].Keep/time.Second), claims[0].Place
		}
		if s.Shipping, err = t.destinations(); err != nil {
			return err
		}
		state, err := t.checkpointed()
		if err != nil {
			return err
		}
		s.Checkpoints = state.Tree.Size
		count := func(n *int) func(_, _ []byte) error { return func(_, _ []byte) error { *n++; return nil } }
		if err := t.space(spaceSessions).each(nil, count(&s.Sessions)); err != nil {
			return err
		}
		if err := t.space(spaceHolds).each(nil, count(&s.Open)); err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	for {
		s.RecordBytes = 0
		_, _, err = l.Walk(ctx, 0, func(_ uint64, raw []byte) error { s.RecordBytes += len(raw); return nil })
		if !errors.Is(err, audit.ErrPruned) {
			return s, err
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

// SaveCatalogue stores an upstream's catalogue. Nil removes it.
func (l *Ledger) SaveCatalogue(ctx context.Context, key string, raw []byte) error {
	return l.do(ctx, true, func(t *tx) error {
		b := t.Bucket(bucketCatalogue)
		if bytes.Equal(b.Get([]byte(key)), raw) {
			return nil
		}
		if raw == nil {
			return b.Delete([]byte(key))
		}
		return b.Put([]byte(key), raw)
	})
}

// RecordConfig appends a record of what became of a config.
func (l *Ledger) RecordConfig(ctx context.Context, s audit.Status, config audit.Hash, text string) error {
	return l.do(ctx, true, func(t *tx) error {
		return t.append(&audit.Record{Kind: audit.KindConfig, Status: s, ConfigSHA256: config, FlagReason: text})
	})
}

// Note is a record about the pins of an upstream.
type Note struct {
	Status  audit.Status // StatusPinned, StatusChanged, StatusAccepted or StatusFlagged
	Name    string       // what it is about, "" for the whole
	Text    string
	Digest  audit.Hash
	Flagged bool
}

// pinsKey is where the pins of an upstream are: beside the catalogues, whose keys have
// a hash behind the colon.
func pinsKey(upstream string) []byte { return []byte("pins/" + upstream) }

// LoadPins returns what is pinned of an upstream, nil if nothing is.
func (l *Ledger) LoadPins(ctx context.Context, upstream string) (raw []byte, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		raw = bytes.Clone(t.Bucket(bucketCatalogue).Get(pinsKey(upstream)))
		return nil
	})
	return raw, err
}

// ChangePins replaces what is pinned of an upstream by what change makes of it, and
// records its notes, in one transaction. If the bytes stay the same, nothing is done.
// change may be called again, and must not keep what it is given.
func (l *Ledger) ChangePins(ctx context.Context, upstream string, change func(old []byte) (now []byte, notes []Note, err error)) error {
	return l.do(ctx, true, func(t *tx) error {
		b := t.Bucket(bucketCatalogue)
		old := bytes.Clone(b.Get(pinsKey(upstream)))
		now, notes, err := change(old)
		if err != nil || bytes.Equal(old, now) {
			return err
		}
		for _, n := range notes {
			err := t.append(&audit.Record{
				Kind: audit.KindPins, Status: n.Status, Upstream: upstream, Tool: n.Name, Flagged: n.Flagged, FlagReason: n.Text, ResultSHA256: n.Digest,
			})
			if err != nil {
				return err
			}
		}
		return b.Put(pinsKey(upstream), now)
	})
}

// Newest returns the number of the newest record without waiting for a turn. It may lag
// behind for a moment.
func (l *Ledger) Newest() (uint64, error) {
	h, err := readHead(l.o.Dir)
	return h.seq, err
}

// Used is a counter of one part of the world.
type Used struct {
	Of string
	policy.Counter
}

// Counters returns those that a limit has, at most so many, and the time by which they
// count. What is lost with a damaged file is in none.
func (l *Ledger) Counters(ctx context.Context, counter string, most int) (list []Used, now time.Time, err error) {
	prefix := append([]byte(counter), 0)
	err = l.do(ctx, false, func(t *tx) error {
		list, now = nil, t.now
		return t.space(spaceCounters).some(prefix, most, func(k, v []byte) error {
			if of, ok := bytes.CutPrefix(k, prefix); ok {
				list = append(list, Used{string(of), decodeCounter(v)})
			}
			return nil
		})
	})
	return list, now, err
}
