package ledger

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
)

// Retention takes old records away in three steps, in small transactions of their own that
// the writer makes after others have been answered, in proportion to what was appended:
//
//   - it picks a signed checkpoint to prune to and goes through the records up to it, to
//     make the tree over them and to see that none of them is needed (pruning);
//   - a day later it says in the chain that they are gone, and keeps what is known of them:
//     how many, the frontier of the tree and the last hash. From then on nobody sees them;
//   - it deletes them, and what the index and the outcomes have of them (sweep).

const (
	// keepLast is how many of the newest records are kept at least, however old they are.
	keepLast = 1000
	// secondThoughts is how long a boundary waits from when all before it was looked at to when
	// that goes. A clock that is ahead makes all records seem old; it is found and
	// reset within that time, or not at all.
	secondThoughts = 24 * time.Hour
	// pruneEach is after how many records of its own a process looks whether there is
	// anything to prune. pruneMost bounds how many it deletes then, pruneAhead how many it
	// takes into the tree for each.
	pruneEach  = 32
	pruneMost  = 256
	pruneAhead = 8
	// pruneLook is how often a boundary is looked for, pruneYoung after how long again if there
	// are records before it that should not be there.
	pruneLook  = time.Minute
	pruneYoung = time.Hour
)

var (
	keyPruned   = []byte("pruned")   // how many records are gone, 8 bytes big-endian
	keyFrontier = []byte("frontier") // what is known of them: audit.Pruned as JSON
	keyPruning  = []byte("pruning")  // the boundary that is being prepared: pruning as JSON
	keySwept    = []byte("swept")    // what was used in days whose records are gone: history as JSON
	keyCounted  = []byte("counted")  // the last record that is in that, though it is still to be deleted
)

// Retention is for how long the user of a ledger wants records kept.
type Retention struct {
	Place string        // what says so: the path of a config
	Keep  time.Duration // 0 is for ever
	Last  uint64        // how many of the newest records stay whatever their age; 0 means 1,000, and fewer are for tests
}

// claim is a retention that some process has used, and when it did last.
type claim struct {
	Place string        `json:"place"`
	Keep  time.Duration `json:"keep"`
	At    time.Time     `json:"at"`
}

// How long claims hold. The newest of a config that is there holds for ever, so that one
// without retention, which is not used for months, finds its history whole.
const (
	claimEach = time.Hour           // how often a process repeats its own
	claimHeld = 24 * time.Hour      // an older one of the same config
	claimGone = 31 * 24 * time.Hour // of a config that is not there
)

// key is the same for the same setting of the same config.
func (r Retention) key() []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", r.Keep, r.Place))
	return sum[:]
}

func (t *tx) claim(r Retention) error {
	return t.space(spaceRetain).putJSON(r.key(), claim{r.Place, r.Keep, t.now})
}

// unheard reports whether somebody prunes and does not know what this process wants kept. Else
// it is told with the first thing that is written.
func (t *tx) unheard(own *Retention) bool {
	if own == nil {
		return false
	}
	var c claim
	if decode(t.space(spaceRetain).get(own.key()), &c) == nil && t.now.Sub(c.At) < claimEach {
		return false
	}
	held, _, err := t.claims()
	return err == nil && slices.ContainsFunc(held, func(c claim) bool { return c.Keep > 0 })
}

// claims returns those that hold, the longest first, and the keys of those that do not.
func (t *tx) claims() (held []claim, over [][]byte, err error) {
	newest := map[string]time.Time{}
	all := map[string]claim{}
	err = t.space(spaceRetain).each(nil, func(k, v []byte) error {
		var c claim
		if err := decode(v, &c); err != nil {
			return fmt.Errorf("%w: for how long records are kept: %w", ErrDamaged, err)
		}
		all[string(k)] = c
		if c.At.After(newest[c.Place]) {
			newest[c.Place] = c.At
		}
		return nil
	})
	for k, c := range all {
		age := t.now.Sub(c.At)
		_, gone := os.Stat(c.Place)
		if age < claimHeld || c.At.Equal(newest[c.Place]) && (gone == nil || age < claimGone) {
			held = append(held, c)
		} else {
			over = append(over, []byte(k))
		}
	}
	slices.SortFunc(held, func(a, b claim) int {
		switch {
		case a.Keep == b.Keep:
			return strings.Compare(a.Place, b.Place)
		case a.Keep == 0 || b.Keep != 0 && a.Keep > b.Keep:
			return -1
		}
		return 1
	})
	return held, over, err
}

// retention returns for how long records are kept, 0 for ever: the longest that anybody
// wants.
func (t *tx) retention() (time.Duration, error) {
	held, _, err := t.claims()
	if err != nil || len(held) == 0 {
		return 0, err
	}
	return held[0].Keep, nil
}

// pruned returns how many records are gone.
func (t *tx) pruned() uint64 { return number(t.space(spaceMeta).get(keyPruned)) }

// frontier returns what is known of the records that are gone.
func (t *tx) frontier() (audit.Pruned, error) {
	meta := t.space(spaceMeta)
	return frontier(meta.get(keyPruned), meta.get(keyFrontier))
}

func frontier(size, raw []byte) (p audit.Pruned, err error) {
	if size == nil && raw == nil {
		return p, nil
	}
	if err := json.Unmarshal(raw, &p); err != nil || len(size) != 8 || p.Size != number(size) {
		return p, &audit.Damage{Kind: audit.DamagePruning, Detail: "what the database knows of the records that were pruned was changed"}
	}
	return p, nil
}

// Pruned returns what is known of the records that are not kept any more.
func (l *Ledger) Pruned(ctx context.Context) (p audit.Pruned, err error) {
	err = l.do(ctx, false, func(t *tx) (err error) { p, err = t.frontier(); return err })
	return p, err
}

// pruning is a boundary that is being prepared.
type pruning struct {
	Since time.Time `json:"since"` // when it was found, or records before it were looked at last
	// Keep is the retention that it was found by. A longer one has its second thoughts anew.
	Keep time.Duration `json:"keep"`
	Size uint64        `json:"size"`
	Note string        `json:"note"` // the signed checkpoint
	Done audit.Pruned  `json:"done"` // the records that were looked at
	// Newest is the time of the newest of them. Times after the present one do not count: they
	// are of before the clock was reset.
	Newest time.Time `json:"newest,omitzero"`
	// Ahead is the first of those times. Once it has come, Newest is not the newest any more.
	Ahead time.Time `json:"ahead,omitzero"`
}

func (t *tx) pruning() (p pruning, some bool, err error) {
	raw := t.space(spaceMeta).get(keyPruning)
	if raw == nil {
		return p, false, nil
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return p, false, fmt.Errorf("%w: what is to be pruned: %w", ErrDamaged, err)
	}
	return p, true, nil
}

// pruner does a part of the work at a time.
type pruner struct {
	dir    string
	last   uint64 // how many of the newest records stay
	n      int    // how many records to delete at most
	looks  bool   // for a boundary now, however long ago that was done last
	atOnce bool   // a person wants it: without second thoughts
	sweeps bool   // it deletes what is gone
}

// next returns what is to be done now, in a transaction that writes; nil for nothing.
func (p *pruner) next(t *tx, look bool) (func(*tx) error, error) {
	if p.sweeps && t.unswept() {
		return p.sweep, nil
	}
	prep, some, err := t.pruning()
	switch {
	case err != nil:
		return nil, err
	case !some && !look:
		return nil, nil
	case !some:
		return p.begin(t)
	case t.now.Before(prep.Since): // the clock was ahead
		return p.drop, nil
	case prep.Done.Size < prep.Size:
		return p.advance, nil
	case p.atOnce || t.now.Sub(prep.Since) >= secondThoughts:
		return p.conclude, nil
	}
	return nil, nil
}

// begin looks for a boundary.
func (p *pruner) begin(t *tx) (func(*tx) error, error) {
	keep, err := t.retention()
	if err != nil || keep == 0 {
		return nil, err
	}
	limit, err := t.unneeded(p.last)
	if err != nil || limit <= t.pruned() {
		return nil, err
	}
	key, err := readKey(p.dir)
	if err != nil || key == nil {
		return nil, err
	}
	state, err := t.checkpointed()
	if err != nil {
		return nil, err
	}
	known, _, err := state.ends(p.dir, key)
	if err != nil {
		return nil, err
	}
	stopped := t.stopped()
	c, note, err := findCheckpoint(p.dir, key.Public(), known, func(c audit.Checkpoint) bool {
		return c.Size <= limit && !c.Time.Add(keep).After(t.now) && (stopped == nil || c.Time.Before(stopped.At))
	})
	if err != nil || c.Size <= t.pruned() {
		return nil, err
	}
	done, err := t.frontier()
	if err != nil {
		return nil, err
	}
	return func(t *tx) error {
		_, over, err := t.claims()
		for _, k := range over {
			err = errors.Join(err, t.space(spaceRetain).delete(k))
		}
		if err != nil {
			return err
		}
		return t.space(spaceMeta).putJSON(keyPruning, pruning{Since: t.now, Keep: keep, Size: c.Size, Note: note, Done: done})
	}, nil
}

// unneeded returns how many of the first records nothing needs, whatever their age.
func (t *tx) unneeded(last uint64) (uint64, error) {
	size, _ := t.signed()
	head, _ := t.head()
	if head <= last {
		return 0, nil
	}
	limit := min(size, head-last)
	err := t.space(spaceHolds).each(nil, func(_, v []byte) error {
		var h held
		if decode(v, &h) != nil || h.Seq == 0 {
			limit = 0  // abandon knows what to do with it
			return nil //nolint:nilerr // see above
		}
		limit = min(limit, h.Seq-1)
		return nil
	})
	c := t.approvals().Cursor()
	for k, _ := c.Seek([]byte{prefixPending}); len(k) > 0 && k[0] == prefixPending; k, _ = c.Next() {
		var seq uint64
		if n, unread := fmt.Sscanf(string(k[1:]), "apr_%d", &seq); n != 1 || unread != nil || seq == 0 {
			limit = 0 // it is waited for, whatever it is
			break
		}
		limit = min(limit, seq-1)
	}
	if err != nil {
		return limit, err
	}
	return t.unshipped(limit)
}

// findCheckpoint returns the last checkpoint of a log that is good, and its note. Sizes and
// times grow, so that only a few lines are read.
func findCheckpoint(dir, public string, logged int64, good func(audit.Checkpoint) bool) (found audit.Checkpoint, note string, err error) {
	f, err := os.Open(logPath(dir))
	if err != nil {
		return found, "", err
	}
	defer func() { _ = f.Close() }() // it was only read
	around := make([]byte, 2*longestLine)
	for low, high := int64(0), logged; low < high; {
		middle := low + (high-low)/2
		from, to := max(low, middle-longestLine), min(high, middle+longestLine)
		text := around[:to-from]
		if _, err := f.ReadAt(text, from); err != nil {
			return found, "", err
		}
		at := int(middle - from)
		start, end := bytes.LastIndexByte(text[:at], '\n')+1, bytes.IndexByte(text[at:], '\n')
		if end < 0 || start == 0 && from > low {
			return found, "", &audit.Damage{Kind: audit.DamageCheckpoint, Detail: "the checkpoint log has a line that is too long"}
		}
		line := text[start : at+end+1]
		list, err := audit.ReadLog(line, public)
		if err != nil || len(list) != 1 {
			return found, "", errors.Join(err, errors.New("the checkpoint log cannot be read"))
		}
		if good(list[0]) {
			if note, err = audit.NoteOf(line); err != nil {
				return found, "", err
			}
			found, low = list[0], from+int64(at+end)+1
		} else {
			high = from + int64(start)
		}
	}
	return found, note, nil
}

func (p *pruner) drop(t *tx) error { return t.space(spaceMeta).delete(keyPruning) }

// errYoung says that what was to be pruned is not as old as its checkpoint, or tells of the
// present stop: the clock was behind when that was signed.
var errYoung = errors.New("there are records that are younger than the checkpoint over them says")

// advance takes some more records into the tree.
func (p *pruner) advance(t *tx) error {
	prep, some, err := t.pruning()
	if err != nil || !some {
		return err
	}
	key, err := readKey(p.dir)
	if err != nil || key == nil {
		return err
	}
	signed, err := audit.OpenCheckpoint(prep.Note, key.Public())
	if err != nil {
		return err
	}
	keep, err := t.retention()
	if err != nil {
		return err
	}
	if keep == 0 || signed.Time.Add(keep).After(t.now) {
		return p.drop(t) // somebody wants them kept, after all
	}
	stopped := t.stopped()
	cursor := t.Bucket(bucketAudit).Cursor()
	end := min(prep.Size, prep.Done.Size+uint64(pruneAhead*p.n)) //nolint:gosec // not negative
	k, raw := cursor.Seek(be64(prep.Done.Size + 1))
	for ; prep.Done.Size < end; k, raw = cursor.Next() {
		if number(k) != prep.Done.Size+1 {
			return &audit.Damage{Seq: prep.Done.Size + 1, Kind: audit.DamageDeletion, Detail: "it is missing"}
		}
		r, err := audit.Decode(raw)
		if err != nil {
			return &audit.Damage{Seq: prep.Done.Size + 1, Kind: audit.DamageUnreadable, Detail: err.Error()}
		}
		if stopped != nil && r.Status == audit.StatusStopped && r.Time.Equal(stopped.At) {
			return errYoung // recovery needs it
		}
		switch {
		case r.Time.After(t.now):
			if prep.Ahead.IsZero() || r.Time.Before(prep.Ahead) {
				prep.Ahead = r.Time
			}
		case r.Time.After(prep.Newest):
			prep.Newest = r.Time
		}
		prep.Done.Head = audit.Sum(raw)
		prep.Done.Add(prep.Done.Head)
	}
	if prep.Newest.Add(keep).After(t.now) {
		return errYoung
	}
	prep.Since = t.now // before that nobody has thought of them
	return t.space(spaceMeta).putJSON(keyPruning, prep)
}

// conclude says that the records are gone.
func (p *pruner) conclude(t *tx) error {
	prep, some, err := t.pruning()
	if err != nil || !some {
		return err
	}
	key, err := readKey(p.dir)
	if err != nil || key == nil {
		return err
	}
	signed, err := audit.OpenCheckpoint(prep.Note, key.Public())
	if err != nil || signed.Size != prep.Done.Size || signed.Root != prep.Done.Root() || signed.Head != prep.Done.Head {
		return &audit.Damage{Kind: audit.DamageFork, Seq: t.pruned() + 1, Detail: fmt.Sprintf(
			"record(s) up to %d are not those that the checkpoint of %s was signed over, so that they are not pruned", prep.Size, signed.Time.Format(time.RFC3339))}
	}
	keep, err := t.retention()
	if err != nil {
		return err
	}
	limit, err := t.unneeded(p.last)
	if err != nil {
		return err
	}
	if err := p.drop(t); err != nil {
		return err
	}
	if keep == 0 || keep > prep.Keep || signed.Time.Add(keep).After(t.now) || prep.Newest.Add(keep).After(t.now) || signed.Size > limit {
		return nil // somebody wants them kept, after all
	}
	if !prep.Ahead.IsZero() && !prep.Ahead.After(t.now) {
		return nil // a time that was to come has passed: they are to be looked at again
	}
	text, err := json.Marshal(audit.Pruning{
		From: t.pruned() + 1, To: signed.Size, Root: signed.Root, Head: signed.Head, Signed: signed.Time, Retain: keep.String(),
	})
	if err != nil {
		return err
	}
	meta := t.space(spaceMeta)
	if err := errors.Join(meta.put(keyPruned, be64(signed.Size)), meta.putJSON(keyFrontier, prep.Done)); err != nil {
		return err
	}
	return t.append(&audit.Record{
		Kind: audit.KindLedger, Status: audit.StatusPruned, Arguments: text, ArgumentsSHA256: sha256.Sum256(text), ArgumentsSize: uint64(len(text)),
		FlagReason: fmt.Sprintf("the records up to %d are not kept any more; they were signed on %s (audit.retain: %s)",
			signed.Size, signed.Time.Format(time.DateOnly), days(keep)),
	})
}

// days writes a duration as people do in a config.
func days(d time.Duration) string {
	if day := 24 * time.Hour; d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	return d.String()
}

// unswept reports whether anything is left of the records that are gone.
func (t *tx) unswept() bool {
	gone := t.pruned()
	if gone == 0 {
		return false
	}
	k, _ := t.Bucket(bucketAudit).Cursor().First()
	o, _ := t.Bucket(bucketOutcomes).Cursor().First()
	i, _ := t.Bucket(bucketIndex).Cursor().First()
	return k != nil && number(k) <= gone || o != nil && number(o) <= gone || len(i) >= 8 && over(i, gone)
}

// over reports whether all records of the block that an entry of the index is about are gone.
func over(key []byte, gone uint64) bool {
	return number(key[:8])*audit.BlockSize+audit.BlockSize-1 <= gone
}

// sweep deletes some of what is left of the records that are gone.
func (p *pruner) sweep(t *tx) error {
	gone := t.pruned()
	used, counted := t.history(), t.counted()
	changed := false
	err := sweep(t.Bucket(bucketAudit), p.n, func(k, raw []byte) (bool, error) {
		if number(k) > gone {
			return false, nil
		}
		r, err := audit.Decode(raw)
		if err != nil {
			return true, nil //nolint:nilerr // it was one when it was taken into the tree
		}
		if c, some := spentBy(&r); some && number(k) > counted {
			used.count(c)
			changed = true
		}
		if r.Kind == audit.KindConfig && number(t.space(spaceConfigs).get(r.ConfigSHA256[:])) == r.Seq { // its next use is a first one again
			return true, t.space(spaceConfigs).delete(r.ConfigSHA256[:])
		}
		return true, nil
	})
	if err == nil && changed {
		err = t.space(spaceMeta).putJSON(keySwept, used)
	}
	if err == nil {
		err = sweep(t.Bucket(bucketOutcomes), p.n, func(k, _ []byte) (bool, error) { return number(k) <= gone, nil })
	}
	if err == nil {
		err = sweep(t.Bucket(bucketIndex), 4*p.n, func(k, _ []byte) (bool, error) { return len(k) < 8 || over(k, gone), nil })
	}
	return err
}

// sweep deletes from the beginning of a bucket, n entries at most, up to one that is to stay.
func sweep(b *bolt.Bucket, n int, goes func(k, v []byte) (bool, error)) error {
	var keys [][]byte
	c := b.Cursor()
	for k, v := c.First(); k != nil && len(keys) < n; k, v = c.Next() {
		ok, err := goes(k, v)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// history is what was used by calls whose records are gone, for [tx.lately]: by days, of which
// it keeps the last ones. It asks no clock which those are: one that is wrong would have it
// forget what counts again once that is found out.
type history map[int64]used

// historyDays is how many days of use a history keeps: the 31 that anything looks back, and
// more days than anybody works on by a clock that is wrong.
const historyDays = 100

type used struct {
	Calls int64 `json:"calls"`
	Cost  int64 `json:"cost"`
}

func (t *tx) history() history {
	s := history{}
	if raw := t.space(spaceMeta).get(keySwept); raw != nil {
		_ = json.Unmarshal(raw, &s) // as much of it as can be read
	}
	return s
}

// counted returns up to which record that is complete: a compaction copies records that
// others delete from the old file meanwhile.
func (t *tx) counted() uint64 { return number(t.space(spaceMeta).get(keyCounted)) }

func dayOf(at time.Time) int64 { return at.Unix() / (24 * 60 * 60) }

// spent is what one call of a day has used.
type spent struct {
	seq  uint64
	day  int64
	cost int64
}

func spentBy(r *audit.Record) (s spent, some bool) {
	s = spent{r.Seq, dayOf(r.Time), r.Cost}
	return s, r.Kind == audit.KindAttempt && r.Status == audit.StatusRunning
}

func (s history) count(c spent) {
	u := s[c.day]
	s[c.day] = used{u.Calls + 1, plus(u.Cost, c.cost)}
	if len(s) > historyDays {
		delete(s, slices.Min(slices.Collect(maps.Keys(s))))
	}
}

// lookedBack is how far back anything looks for what was used: the longest period of a limit.
func lookedBack(now time.Time) time.Time { return now.AddDate(0, 0, -31) }

// Retain tells for how long this process wants records kept, from now on.
func (l *Ledger) Retain(r Retention) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.o.Retention = &r
}

func (l *Ledger) retention() *Retention {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.o.Retention
}

// prune does as much of the pruning as what was appended is worth. It runs in the writer,
// after the operations that did that have been answered.
func (l *Ledger) prune() {
	own := l.retention()
	if l.appended < pruneEach || l.db == nil || own == nil {
		return
	}
	p := pruner{dir: l.o.Dir, last: cmp.Or(own.Last, keepLast), n: min(2*l.appended, pruneMost), sweeps: true}
	l.appended = 0
	if _, err := l.pruneStep(&p); err != nil {
		if l.pruneFailed != err.Error() { // once, not with every 32nd record
			l.o.Logger.Warn().Err(err).Msg("old records are not pruned")
		}
		l.pruneFailed = err.Error()
	}
}

// pruneStep takes the next step, and reports whether there was any.
func (l *Ledger) pruneStep(p *pruner) (some bool, err error) {
	var do func(*tx) error
	var now time.Time
	look := false
	err = l.commit([]*op{{run: func(t *tx) (err error) {
		now = t.now
		since := now.Sub(l.pruneLooked)
		look = p.looks || since >= pruneLook || since < -2*pruneYoung // the clock was set back
		do, err = p.next(t, look)
		return err
	}}})
	if look {
		l.pruneLooked = now
	}
	if err != nil || do == nil {
		return false, err
	}
	err = l.commit([]*op{{write: true, run: do}})
	if errors.Is(err, errYoung) {
		l.pruneLooked = now.Add(pruneYoung)
		err = errors.Join(err, l.commit([]*op{{write: true, run: p.drop}}))
	}
	return err == nil, err
}
