package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/gofrs/flock"
	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
)

// What bbolt frees it uses again, but never gives back. Compaction writes a new file, page
// by page, while everybody goes on with the old one: records never change, so that they can
// be copied at any time, and what has changed in the index and the outcomes meanwhile
// follows from the records that have come. Only the last of them, and the little that does
// change, is copied with the lock held; then the new file takes the name of the old one.
// Whoever opens the database next has it: everybody opens it anew whenever its turn comes.

// ErrCompacting says that another process does the same.
var ErrCompacting = errors.New("the ledger is being compacted by another process")

const (
	// compactTail is how many records may be left to copy when the lock is taken.
	compactTail = 500
	// compactTries bounds how often it is tried to come that near.
	compactTries = 50
	// compactBytes bounds a page of a copy, beside its number of entries.
	compactBytes = 4 << 20
	// compactSpare is what must be left on the disk for everybody else.
	compactSpare = 4 << 20
)

// Compaction tells what [Ledger.Compact] did.
type Compaction struct {
	Pruned uint64        `json:"pruned_records"` // that were older than is kept, and had not gone yet
	Due    uint64        `json:"due_records"`    // that are older as well, but were found less than a day ago
	From   time.Time     `json:"due_from"`       // when those can go; zero if there are none
	Before int64         `json:"bytes_before"`
	After  int64         `json:"bytes_after"`
	Held   time.Duration `json:"held_ns"` // the longest that others were kept waiting
}

func compactPath(dir string) string { return dbPath(dir) + ".compact" }

// tryCompacting takes the right to compact, which dies with its process; nil if another has it.
func tryCompacting(dir string) (*flock.Flock, error) {
	lock := flock.New(filepath.Join(dir, "haldir.compact"), flock.SetPermissions(0o600))
	if ok, err := lock.TryLock(); err != nil || !ok {
		return nil, err
	}
	return lock, nil
}

// remains returns how many bytes a compaction has left that was killed.
func remains(dir string) (n int64, err error) {
	if n, err = fileSize(compactPath(dir)); err != nil || n == 0 {
		return 0, err
	}
	lock, err := tryCompacting(dir)
	switch {
	case errors.Is(err, fs.ErrPermission): // it may be under way as another user
		return 0, nil
	case err != nil:
		return n, nil //nolint:nilerr // a lock that cannot be had holds up no look
	case lock == nil: // it is under way
		return 0, nil
	}
	return n, free(lock)
}

// removeRemains removes that: it has records in it, also such as are gone since.
func removeRemains(dir string) error {
	if _, err := os.Stat(compactPath(dir)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := tryCompacting(dir)
	if err != nil || lock == nil {
		return err
	}
	err = os.Remove(compactPath(dir))
	if errors.Is(err, fs.ErrNotExist) { // another process was faster
		err = nil
	}
	return errors.Join(err, free(lock))
}

// Compact prunes what is due and gives the space that is free in the file back to the
// system. What was found to be due less than a day ago goes only if it is to go now: the
// clock may be ahead. Other processes go on meanwhile. It is killed or fails at any instant without harm:
// there is one whole file, the old one or the new one.
func (l *Ledger) Compact(ctx context.Context, now bool, progress func(done, total uint64)) (c Compaction, err error) {
	lock, err := tryCompacting(l.o.Dir)
	if err != nil || lock == nil {
		return c, errors.Join(err, ErrCompacting)
	}
	defer func() { err = errors.Join(err, free(lock)) }()
	for _, path := range []string{dbPath(l.o.Dir), logPath(l.o.Dir)} {
		// What it leads to would stay as it is, with the records that are to go.
		if to, err := os.Readlink(path); err == nil {
			return c, fmt.Errorf("%s is a link to %s, in the place of which compaction would put a file: end all haldirs, move the file there, and try again", path, to)
		}
	}
	if c.Pruned, err = l.pruneAll(ctx, now); err != nil {
		return c, err
	}
	if c.Due, c.From, err = l.waiting(ctx); err != nil {
		return c, err
	}
	m := &copier{l: l, path: compactPath(l.o.Dir), progress: progress}
	if err := os.Remove(m.path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of one that was killed
		return c, err
	}
	if err := m.measure(ctx); err != nil {
		return c, err
	}
	c.Before = m.size
	defer func() {
		if m.db != nil {
			err = errors.Join(err, m.db.Close())
		}
		if m.old != nil {
			_ = m.old.Close() // it was not read
		}
		if removed := os.Remove(m.path); removed != nil && !errors.Is(removed, fs.ErrNotExist) {
			err = errors.Join(err, removed)
		}
	}()
	if err := m.copy(ctx); err != nil {
		return c, fmt.Errorf("compact the ledger: %w", err)
	}
	if c.After, err = fileSize(dbPath(l.o.Dir)); err != nil {
		return c, err
	}
	c.Held = m.held
	if err := l.thin(ctx); err != nil { // it is as good as before, but longer
		l.o.Logger.Warn().Err(err).Msg("the checkpoint log was not thinned out")
	}
	return c, nil
}

// pruneAll prunes all that is due, though it deletes nothing yet.
func (l *Ledger) pruneAll(ctx context.Context, now bool) (n uint64, err error) {
	before, err := l.Pruned(ctx)
	if err != nil {
		return 0, err
	}
	if l.retention() != nil { // which others are told with a write
		if err := l.do(ctx, true, func(*tx) error { return nil }); err != nil {
			return 0, err
		}
	}
	p := &pruner{dir: l.o.Dir, last: keepLast, n: page / pruneAhead, looks: true, atOnce: now}
	if own := l.retention(); own != nil && own.Last > 0 {
		p.last = own.Last
	}
	for some := true; some; {
		err := l.wait(ctx, &op{run: func(*tx) error { return nil }, done: make(chan error, 1), then: func() (err error) {
			some, err = l.pruneStep(p)
			return err
		}})
		if errors.Is(err, errYoung) {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("prune: %w", err)
		}
	}
	after, err := l.Pruned(ctx)
	return after.Size - before.Size, err
}

// waiting returns how many records wait to go, and from when they do.
func (l *Ledger) waiting(ctx context.Context) (n uint64, from time.Time, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		prep, some, err := t.pruning()
		if err != nil || !some {
			return err
		}
		keep, err := t.retention()
		if keep > 0 && keep <= prep.Keep && !prep.Newest.Add(keep).After(t.now) { // else somebody wants them kept, after all
			n, from = prep.Size-t.pruned(), prep.Since.Add(secondThoughts)
		}
		return err
	})
	return n, from, err
}

// copier makes the new file.
type copier struct {
	l        *Ledger
	path     string
	progress func(done, total uint64)
	size     int64 // of the old file
	total    uint64
	db       *bolt.DB
	id       []byte        // of the ledger
	gone     uint64        // records that are not copied
	copied   uint64        // the last record that was
	last     []byte        // its bytes
	spent    []spent       // by records that are still in the old file, but gone
	configs  []uint64      // those of them that say that a config was used first
	first    uint64        // the first record that is in the old file at the end
	old      *os.File      // the old file, once it has no name any more
	held     time.Duration // how long the lock was held at the end
}

// measure looks whether there is room for another file.
func (m *copier) measure(ctx context.Context) error {
	var need int64
	err := m.l.do(ctx, false, func(t *tx) error {
		m.id = bytes.Clone(t.space(spaceMeta).get(keyID))
		m.gone = t.pruned()
		head, _ := t.head()
		m.total, m.copied = head-m.gone, m.gone
		size, err := fileSize(t.DB().Path())
		if err != nil {
			return err
		}
		m.size = size
		need = t.Size() - int64(t.DB().Stats().FreePageN)*pageSize
		if k, _ := t.Bucket(bucketAudit).Cursor().First(); k != nil && number(k) <= m.gone {
			unswept := m.gone + 1 - number(k)
			need = int64(float64(need) * float64(m.total) / float64(m.total+unswept))
		}
		need += need / 10
		return nil
	})
	if err != nil {
		return err
	}
	room, known := DiskFree(m.l.o.Dir)
	if known && room < need+compactSpare {
		return fmt.Errorf("compacting the ledger needs %d MiB of disk space, and %d MiB are free: %w", (need+compactSpare)>>20, room>>20, errNoRoom)
	}
	return nil
}

// copy makes the new file and puts it in the place of the old one.
func (m *copier) copy(ctx context.Context) (err error) {
	if m.db, _, err = openBolt(m.path, bolt.Options{NoSync: true}); err != nil { // synced once it is whole
		return err
	}
	m.db.AllocSize = 1 << 20 // what it is longer than it need be
	err = m.db.Update(func(btx *bolt.Tx) error {
		for _, name := range [][]byte{bucketAudit, bucketOutcomes, bucketIndex} {
			if _, err := btx.CreateBucket(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = m.leftovers(ctx)
	}
	if err == nil {
		err = m.bucket(ctx, bucketAudit, be64(m.gone+1), func(k, v []byte) bool {
			m.copied, m.last = number(k), v
			return true
		})
	}
	// From here on the records that come are entered in the index and the outcomes. Those may
	// be copied with some of that in them: it comes to the same.
	if err == nil {
		err = m.bucket(ctx, bucketOutcomes, be64(m.gone+1), func(_, _ []byte) bool { return true })
	}
	if err == nil {
		err = m.bucket(ctx, bucketIndex, nil, func(k, _ []byte) bool { return len(k) >= 8 && !over(k, m.gone) })
	}
	if err == nil {
		err = m.catchUp(ctx)
	}
	if err == nil {
		err = m.sync() // so that little is left to write with the lock held
	}
	if err == nil {
		err = preflight(m.path, edges)
	}
	for try := 0; err == nil; try++ {
		if err = m.catchUp(ctx); err != nil {
			break
		}
		err = m.l.wait(ctx, &op{run: func(*tx) error { return nil }, then: m.swap, done: make(chan error, 1)})
		if !errors.Is(err, errBehind) || try == compactTries {
			return err
		}
		err = nil
	}
	return err
}

func (m *copier) sync() error {
	if m.l.o.NoSync {
		return nil
	}
	return m.db.Sync()
}

type pair struct{ k, v []byte }

// pairs reads a page of a bucket.
func (m *copier) pairs(ctx context.Context, bucket, from []byte) (list []pair, more bool, err error) {
	err = m.l.do(ctx, false, func(t *tx) error {
		list, more = nil, false
		if id := t.space(spaceMeta).get(keyID); !bytes.Equal(id, m.id) {
			return errOther
		}
		c := t.Bucket(bucket).Cursor()
		size := 0
		for k, v := c.Seek(from); k != nil; k, v = c.Next() {
			if more = len(list) == page || size > compactBytes; more {
				return nil
			}
			list = append(list, pair{bytes.Clone(k), bytes.Clone(v)})
			size += len(k) + len(v)
		}
		return nil
	})
	return list, more, err
}

var (
	errBehind = errors.New("records come faster than they can be copied")
	errOther  = errors.New("another ledger was put in its place meanwhile")
	errNoRoom = errors.New("there is no room for a second file")
)

// bucket copies what it takes of a bucket, from a key on.
func (m *copier) bucket(ctx context.Context, name, from []byte, take func(k, v []byte) bool) error {
	for more := true; more; {
		var list []pair
		var err error
		if list, more, err = m.pairs(ctx, name, from); err != nil {
			return err
		}
		if room, known := DiskFree(m.l.o.Dir); known && room < compactSpare {
			return errNoRoom
		}
		err = m.db.Update(func(btx *bolt.Tx) error {
			b := btx.Bucket(name)
			b.FillPercent = 0.95
			for _, p := range list {
				if take(p.k, p.v) {
					if err := b.Put(p.k, p.v); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if len(list) > 0 {
			from = append(list[len(list)-1].k, 0)
		}
		if m.progress != nil && m.total > 0 {
			m.progress(min(m.copied-m.gone, m.total), m.total)
		}
	}
	return nil
}

// leftovers takes from records that are gone, but not deleted yet, what else is deleted with
// them: the new file does not have them.
func (m *copier) leftovers(ctx context.Context) error {
	for from, more := be64(1), true; more; {
		var list []pair
		var err error
		if list, more, err = m.pairs(ctx, bucketAudit, from); err != nil {
			return err
		}
		for _, p := range list {
			if number(p.k) > m.gone {
				return nil
			}
			if r, err := audit.Decode(p.v); err == nil {
				if c, some := spentBy(&r); some {
					m.spent = append(m.spent, c)
				}
				if r.Kind == audit.KindConfig {
					m.configs = append(m.configs, r.Seq)
				}
			}
		}
		if len(list) > 0 {
			from = append(list[len(list)-1].k, 0)
		}
	}
	return nil
}

// catchUp copies the records that have come meanwhile.
func (m *copier) catchUp(ctx context.Context) error {
	for range compactTries {
		list, _, err := m.pairs(ctx, bucketAudit, be64(m.copied+1))
		if err != nil {
			return err
		}
		if err := m.db.Update(func(btx *bolt.Tx) error { return m.take(&tx{Tx: btx}, list) }); err != nil {
			return err
		}
		if len(list) <= compactTail {
			return nil
		}
	}
	return errBehind
}

// take enters records in the new file.
func (m *copier) take(t *tx, list []pair) error {
	records, outcomes := t.Bucket(bucketAudit), t.Bucket(bucketOutcomes)
	records.FillPercent, outcomes.FillPercent = 0.95, 0.95
	for _, p := range list {
		if err := records.Put(p.k, p.v); err != nil {
			return err
		}
		m.copied, m.last = number(p.k), p.v
		r, err := audit.Decode(p.v)
		if err != nil {
			continue // Verify names it
		}
		if r.Ref > 0 && r.Ref <= m.gone {
			continue
		}
		if r.Kind == audit.KindOutcome || r.Kind == audit.KindApproval {
			if err := outcomes.Put(be64(r.Ref), be64(r.Seq)); err != nil {
				return err
			}
		}
		if err := t.index(&r); err != nil {
			return err
		}
	}
	return nil
}

// swap copies what is left and puts the new file in its place. It runs in the writer, with
// the lock held and the old file open.
func (m *copier) swap() error {
	began := time.Now()
	l := m.l
	var list []pair
	type rest struct {
		name     []byte
		sequence uint64
		list     []pair
	}
	var others []rest
	err := l.commit([]*op{{run: func(t *tx) error {
		list, others = nil, nil
		if id := t.space(spaceMeta).get(keyID); !bytes.Equal(id, m.id) {
			return errOther
		}
		records := t.Bucket(bucketAudit)
		if m.copied > m.gone && m.copied > t.pruned() && !bytes.Equal(records.Get(be64(m.copied)), m.last) {
			return errOther
		}
		c := records.Cursor()
		k, _ := c.First()
		m.first = number(k)
		for k, v := c.Seek(be64(m.copied + 1)); k != nil; k, v = c.Next() {
			if list = append(list, pair{bytes.Clone(k), bytes.Clone(v)}); len(list) > 2*compactTail {
				return errBehind
			}
		}
		return t.ForEach(func(name []byte, b *bolt.Bucket) error {
			switch string(name) {
			case string(bucketAudit), string(bucketOutcomes), string(bucketIndex):
				return nil
			}
			r := rest{name: bytes.Clone(name), sequence: b.Sequence()}
			err := b.ForEach(func(k, v []byte) error {
				r.list = append(r.list, pair{bytes.Clone(k), bytes.Clone(v)})
				return nil
			})
			others = append(others, r)
			return err
		})
	}}})
	if err != nil {
		return err
	}
	err = m.db.Update(func(btx *bolt.Tx) error {
		for _, o := range others {
			b, err := btx.CreateBucket(o.name)
			if err == nil {
				err = b.SetSequence(o.sequence) // by which others see that nothing has changed
			}
			if err != nil {
				return err
			}
			for _, p := range o.list {
				if err := b.Put(p.k, p.v); err != nil {
					return err
				}
			}
		}
		t := &tx{Tx: btx}
		if err := m.take(t, list); err != nil {
			return err
		}
		return m.forget(t)
	})
	if err == nil {
		err = m.sync()
	}
	if err == nil {
		err = m.db.Close()
		m.db = nil
	}
	if err == nil {
		err = preflight(m.path, first)
	}
	if err != nil {
		return err
	}
	// Nobody has the old database open but this process. Its file is kept open beyond that,
	// where one that is open can be replaced: to give so much space back takes a while.
	if runtime.GOOS != "windows" {
		old, err := os.Open(dbPath(l.o.Dir))
		if err != nil {
			return err
		}
		m.old = old
	}
	err = l.db.Close()
	l.db = nil
	if err == nil {
		err = os.Rename(m.path, dbPath(l.o.Dir))
	}
	if err == nil {
		err = syncDir(l.o.Dir) // before anybody writes to the new one
	}
	l.release()
	m.held = time.Since(began)
	return err
}

// forget does what sweep would have done for records that were not copied.
func (m *copier) forget(t *tx) error {
	var over [][]byte
	seqs := map[uint64]bool{}
	for _, seq := range m.configs {
		seqs[seq] = true
	}
	err := t.space(spaceConfigs).each(nil, func(k, v []byte) error {
		if seqs[number(v)] {
			over = append(over, bytes.Clone(k))
		}
		return nil
	})
	for _, k := range over {
		err = errors.Join(err, t.space(spaceConfigs).delete(k))
	}
	if err != nil {
		return err
	}
	all, counted := t.history(), t.counted()
	for _, c := range m.spent {
		if c.seq >= m.first && c.seq > counted { // else whoever has deleted it has counted it
			all.count(c)
		}
	}
	meta := t.space(spaceMeta)
	if len(m.spent) > 0 {
		err = meta.putJSON(keySwept, all)
	}
	if m.first > max(m.gone, counted)+1 { // it is in the new file, and still to be deleted there
		err = errors.Join(err, meta.put(keyCounted, be64(m.first-1)))
	}
	return err
}
