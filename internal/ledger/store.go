package ledger

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/policy"
)

// FormatVersion is the version of the file format. A newer file is refused, an
// older one brought up to date: 2 added the index, 3 approvals; since 4 the first records may
// be gone.
const FormatVersion = 4

// The buckets. Their names and contents are the file format.
var (
	bucketHot       = []byte("hot")       // see space
	bucketAudit     = []byte("audit")     // seq, big-endian → canonical record
	bucketOutcomes  = []byte("outcomes")  // seq of an attempt → seq of its outcome
	bucketIndex     = []byte("index")     // block, mark → audit.Set; block alone → its span
	bucketCatalogue = []byte("catalogue") // key of an upstream's config → its last catalogue

	bucketApprovals = []byte("approvals") // see approval.go

	buckets = [][]byte{bucketHot, bucketAudit, bucketOutcomes, bucketIndex, bucketCatalogue, bucketApprovals}

	keyVersion = []byte("version")
	keyHead    = []byte("head")    // seq (8 bytes), hash of the newest record (32)
	keyClock   = []byte("clock")   // the greatest time seen, Unix ns
	keyDoubt   = []byte("doubt")   // when what had been used was lost
	keyStopped = []byte("stopped") // Stopped as JSON, while all calls are refused
)

// Errors that callers tell apart.
var (
	// ErrBusy: another process kept the database for too long.
	ErrBusy = errors.New("the ledger is busy")
	// ErrDamaged: the file is not what was written; it is left untouched.
	ErrDamaged = errors.New("the ledger is damaged")
	// ErrNewer: the file was written by a newer haldir.
	ErrNewer = errors.New("the ledger was written by a newer haldir")
	// ErrClosed: the ledger has been closed.
	ErrClosed = errors.New("the ledger is closed")
	// ErrReadOnly: this process opened the ledger to look at it.
	ErrReadOnly = errors.New("the ledger was opened to be looked at")
	// ErrAccess: the system lets this process not write, or not read, what it must.
	ErrAccess = errors.New("no access to the state directory")
	// ErrNone: there is no ledger, and this process makes none.
	ErrNone = errors.New("there is no ledger yet")
	// ErrNoSession: there is no session of that id.
	ErrNoSession = errors.New("no such session")
)

// BusyError is [ErrBusy] with who it is.
type BusyError struct {
	Holder int // the process that has the database; 0 if that is not known
}

func (e *BusyError) Error() string {
	who := "another process"
	if e.Holder > 0 {
		who = fmt.Sprintf("process %d", e.Holder)
	}
	return fmt.Sprintf("%v: %s has kept it for more than %v; if it is suspended, resume or end it", ErrBusy, who, patience)
}

// Unwrap makes it an ErrBusy.
func (e *BusyError) Unwrap() error { return ErrBusy }

// Retryable reports whether what failed with err may succeed later with nobody
// looking after the ledger: it was busy, say, or the disk was full.
func Retryable(err error) bool {
	return err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrNoSession)
}

func dbPath(dir string) string { return filepath.Join(dir, "haldir.db") }

// openDB opens the database of a directory. One that is written to is made where there is none, and
// brought to the present format.
func openDB(dir string, deep depth, o bolt.Options) (db *bolt.DB, file *os.File, err error) {
	path := dbPath(dir)
	anchor, err := readHead(dir)
	if err != nil {
		return nil, nil, err
	}
	signed, err := fileSize(logPath(dir))
	if err != nil {
		return nil, nil, err
	}
	size, err := fileSize(path)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("open the ledger: %w", err)
	case size > 0:
		err = preflight(path, deep)
	case anchor.seq > 0 || signed > 0:
		err = missing(dir, anchor, signed)
	case o.ReadOnly:
		err = ErrNone
	default:
		err = create(dir, o.NoSync, nil)
	}
	if err != nil {
		return nil, nil, err
	}
	if db, file, err = openBolt(path, o); err != nil {
		return nil, nil, err
	}
	usable := migrate
	if o.ReadOnly {
		usable = func(db *bolt.DB) error { _, err := format(db); return err }
	}
	return checked(db, file, dir, anchor, usable)
}

// missing says what there is without the database.
func missing(dir string, anchor head, signed int64) error {
	return fmt.Errorf("%w: %s is missing or empty, but %s says that %d records were written, and %s is %d bytes long; restore the file, "+
		"or begin anew without it (ledger recover)", ErrDamaged, dbPath(dir), headPath(dir), anchor.seq, logPath(dir), signed)
}

// checked looks whether a database that was opened is one to go on with, and closes it if not.
func checked(db *bolt.DB, file *os.File, dir string, anchor head, version func(*bolt.DB) error) (*bolt.DB, *os.File, error) {
	err := guard(func() error {
		if err := version(db); err != nil {
			return err
		}
		return db.View(func(btx *bolt.Tx) error { return continues(&tx{Tx: btx}, anchor, dbPath(dir), dir) })
	})
	if errors.Is(err, errFault) { // the database's own Close may hang
		return nil, nil, errors.Join(err, unlock(file), file.Close())
	}
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return db, file, nil
}

// openBolt opens a bbolt file, or makes one unless o says that it is only read. file is what it
// has open.
func openBolt(path string, o bolt.Options) (db *bolt.DB, file *os.File, err error) {
	o.Timeout, o.PageSize, o.FreelistType = time.Second, pageSize, bolt.FreelistMapType
	o.OpenFile = func(name string, flag int, mode os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag, mode)
		file = f
		return f, err
	}
	err = guard(func() (err error) {
		db, err = bolt.Open(path, 0o600, &o)
		return err
	})
	if err == nil {
		return db, file, nil
	}
	if file != nil {
		_ = unlock(file) // bbolt has closed it, unless a fault kept it from that
		_ = file.Close()
	}
	if _, ok := errors.AsType[*fs.PathError](err); !ok { // which says it
		err = fmt.Errorf("open %s: %w", path, blame(err))
	}
	return nil, nil, blame(err)
}

// blame tells a file that is not what was written from a system that keeps it
// from being read or written.
func blame(err error) error {
	if _, ok := errors.AsType[syscall.Errno](err); ok || errors.Is(err, berrors.ErrTimeout) || errors.Is(err, ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// create makes a new database. It is put in its place whole: a full disk, or the
// end of this process, leaves none rather than half of one.
func create(dir string, noSync bool, fill func(*tx) error) error {
	path := dbPath(dir) + ".new"
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, _, err := openBolt(path, bolt.Options{NoSync: noSync})
	if err == nil {
		err = db.Update(func(btx *bolt.Tx) error {
			for _, name := range buckets {
				if _, err := btx.CreateBucket(name); err != nil {
					return err
				}
			}
			t := &tx{Tx: btx}
			meta := t.space(spaceMeta)
			if err := errors.Join(meta.put(keyID, []byte(newID(""))), meta.put(keyVersion, be64(FormatVersion))); err != nil || fill == nil {
				return err
			}
			return fill(t)
		})
		err = errors.Join(err, db.Close())
	}
	if err == nil {
		err = os.Rename(path, dbPath(dir))
	}
	if err != nil {
		_ = os.Remove(path) // gives back what little space there is
		return fmt.Errorf("make %s: %w", dbPath(dir), err)
	}
	return syncDir(dir) // or a power cut could take the file with its records
}

// continues checks that the chain in the database is the one that the head file
// was written after, or goes on from there.
func continues(t *tx, anchor head, path, dir string) error {
	seq, hash := t.head()
	if seq < anchor.seq {
		return fmt.Errorf("%w: %s ends at record %d, but %s says that %d were written: an older copy was put back or its end is lost",
			ErrDamaged, path, seq, headPath(dir), anchor.seq)
	}
	gone, err := t.frontier()
	if err != nil {
		return nil //nolint:nilerr // Verify tells of it
	}
	switch {
	case anchor.seq > 0 && anchor.seq < gone.Size:
		return nil // the head file lags far behind: what it knew of is gone
	case anchor.seq > 0 && anchor.seq == gone.Size:
		hash = gone.Head
	case anchor.seq > 0 && seq > anchor.seq:
		hash = audit.Sum(t.Bucket(bucketAudit).Get(be64(anchor.seq)))
	}
	if anchor.seq > 0 && hash != anchor.hash {
		return fmt.Errorf("%w: record %d in %s is not the one that %s was written after: another database was put there",
			ErrDamaged, anchor.seq, path, headPath(dir))
	}
	return nil
}

// syncDir makes the entries of a directory durable, where the system can.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// format returns the version of a file, which must be one that this haldir knows.
func format(db *bolt.DB) (n uint64, err error) {
	err = db.View(func(btx *bolt.Tx) error {
		hot := btx.Bucket(bucketHot)
		if hot == nil {
			return fmt.Errorf("%w: it is a bbolt file, but none of haldir", ErrDamaged)
		}
		v := space{hot.Cursor(), spaceMeta}.get(keyVersion)
		if len(v) != 8 {
			return fmt.Errorf("%w: no format version", ErrDamaged)
		}
		if n = number(v); n > lastFormat {
			return noFormat(n)
		}
		if n > FormatVersion {
			return fmt.Errorf("%w (format %d, this haldir knows %d): upgrade haldir", ErrNewer, n, FormatVersion)
		}
		if n < FormatVersion {
			return nil
		}
		return lacking(func(name []byte) bool { return btx.Bucket(name) != nil })
	})
	return n, err
}

// lastFormat is the last format version that is believed. A greater one is no newer haldir's, which
// nobody would find, but damage.
const lastFormat = 1000

func noFormat(n uint64) error { return fmt.Errorf("%w: %d is no format version", ErrDamaged, n) }

// lacking says which bucket a file of the present format lacks: who looks for it there would
// find nothing at all.
func lacking(has func(name []byte) bool) error {
	for _, name := range buckets {
		if !has(name) {
			return fmt.Errorf("%w: the part of it that is called %s is missing", ErrDamaged, name)
		}
	}
	return nil
}

// migrate checks the version of a file and brings an older one up to date.
func migrate(db *bolt.DB) error {
	n, err := format(db)
	if err != nil || n == FormatVersion {
		return err
	}
	return db.Update(func(btx *bolt.Tx) error {
		if _, err := btx.CreateBucketIfNotExists(bucketApprovals); err != nil {
			return err
		}
		t := &tx{Tx: btx}
		if t.Bucket(bucketIndex) != nil { // format 2
			return t.space(spaceMeta).put(keyVersion, be64(FormatVersion))
		}
		if _, err := btx.CreateBucket(bucketIndex); err != nil {
			return err
		}
		err := t.Bucket(bucketAudit).ForEach(func(_, raw []byte) error {
			r, err := audit.Decode(raw)
			if err != nil {
				return nil //nolint:nilerr // queries leave it out, Verify names it
			}
			return t.index(&r)
		})
		if err != nil {
			return err
		}
		return t.space(spaceMeta).put(keyVersion, be64(FormatVersion))
	})
}

// errFault marks an error that was a panic, errMemory one that was a memory
// fault: the system could not read the file, whatever is in it.
var (
	errFault  = errors.New("it could not be read")
	errMemory = fmt.Errorf("%w from memory", errFault)
)

// guard runs f and turns what a damaged file can do to a memory-mapped reader,
// panics and memory faults, into an error.
func guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			why := errFault
			if _, ok := r.(interface{ Addr() uintptr }); ok { // see debug.SetPanicOnFault
				why = errMemory
			}
			err = fmt.Errorf("%w: %w: %v", ErrDamaged, why, r)
		}
	}()
	return f()
}

func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// tx is one transaction with what the operations in it share.
type tx struct {
	*bolt.Tx
	now   time.Time // never runs backwards
	wall  time.Time
	moved bool // this process used another ledger before

	recent *recent // nil in a transaction that reads no session twice

	hot, marks *bolt.Cursor // made at the first use
}

func (t *tx) space(prefix byte) space {
	if t.hot == nil {
		t.hot = t.Bucket(bucketHot).Cursor()
	}
	return space{t.hot, prefix}
}

func (t *tx) head() (seq uint64, hash audit.Hash) {
	v := t.space(spaceMeta).get(keyHead)
	if len(v) != 8+len(hash) {
		return 0, audit.Hash{}
	}
	copy(hash[:], v[8:])
	return binary.BigEndian.Uint64(v), hash
}

// tick sets t.now to wall, or to the greatest time seen if the clock has run
// backwards: a window that has closed never opens again.
func (t *tx) tick(wall time.Time) error {
	meta := t.space(spaceMeta)
	t.wall = wall.UTC()
	t.now = t.wall
	if last := moment(meta.get(keyClock)); last.After(t.now) {
		t.now = last
		return nil
	}
	if !t.Writable() {
		return nil
	}
	return meta.put(keyClock, stamp(t.now))
}

// append adds r to the chain; it fills in the sequence, the time and the link.
func (t *tx) append(r *audit.Record) error {
	seq, hash := t.head()
	r.Seq, r.Prev, r.Time = seq+1, hash, t.now
	encoded := r.Encode()
	b := t.Bucket(bucketAudit)
	b.FillPercent = 0.95 // keys only grow
	if err := b.Put(be64(r.Seq), encoded); err != nil {
		return err
	}
	if err := t.index(r); err != nil {
		return err
	}
	sum := audit.Sum(encoded)
	return t.space(spaceMeta).put(keyHead, append(be64(r.Seq), sum[:]...))
}

// index enters r.
func (t *tx) index(r *audit.Record) error {
	if t.marks == nil {
		t.marks = t.Bucket(bucketIndex).Cursor()
	}
	b := t.marks.Bucket()
	b.FillPercent = 0.95
	seq, given, taken := audit.Marks(r)
	put := func(mark string, in bool) error {
		key := markKey(seq/audit.BlockSize, mark)
		set := audit.ParseSet(find(t.marks, key))
		if set.Has(seq) == in {
			return nil
		}
		set.Put(seq, in)
		if stored := set.Bytes(); stored != nil {
			return b.Put(key, stored)
		}
		return b.Delete(key)
	}
	for _, mark := range taken {
		if err := put(mark, false); err != nil {
			return err
		}
	}
	for _, mark := range given {
		if err := put(mark, true); err != nil {
			return err
		}
	}
	key := markKey(r.Seq/audit.BlockSize, "")
	first, last := span(find(t.marks, key))
	if at := r.Time; first.IsZero() || at.Before(first) || at.After(last) {
		if first.IsZero() || at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
		return b.Put(key, append(stamp(first), stamp(last)...))
	}
	return nil
}

func markKey(block uint64, mark string) []byte { return append(be64(block), mark...) }

// span reads two times, such as those between which the records of a block are.
func span(v []byte) (first, last time.Time) {
	if len(v) != 16 {
		return first, last
	}
	return moment(v[:8]), moment(v[8:])
}

// stamp stores a time, which moment reads; zero bytes are the zero time.
func stamp(at time.Time) []byte {
	if at.IsZero() {
		return make([]byte, 8)
	}
	return be64(uint64(at.UnixNano()))
}

func moment(v []byte) time.Time {
	ns := int64(number(v)) //nolint:gosec // written by stamp
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

func number(v []byte) uint64 {
	if len(v) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(v)
}

func counterKey(k policy.CounterKey) []byte {
	b := append([]byte(k.Counter), 0)
	if len(k.Of) > 16<<10 { // bbolt takes keys of 32 KiB, a tool's name has no limit
		sum := audit.Sum([]byte(k.Of))
		return append(append(b, k.Of[:15<<10]...), sum[:]...)
	}
	return append(b, k.Of...)
}

func (t *tx) counter(k policy.CounterKey) policy.Counter {
	if k.Counter == policy.CounterLoop {
		c, _ := t.loop(k)
		return c
	}
	return decodeCounter(t.space(spaceCounters).get(counterKey(k)))
}

// used is what counts for a call of a session. A counter that may have been lost
// with a damaged file counts as used up until its window has passed. It is for
// decisions only: what is held goes to the counter as it is.
func (t *tx) used(k policy.CounterKey, session string) policy.Counter {
	c, lost := t.counter(k), t.doubt()
	own := k.Of == session || strings.HasPrefix(k.Of, session+"\x00")
	if !own && !lost.IsZero() && !c.Start.After(lost) {
		return policy.Counter{Start: lost, Value: math.MaxInt64}
	}
	return c
}

// doubt returns when what had been used was lost; zero if it never was.
func (t *tx) doubt() time.Time { return moment(t.space(spaceMeta).get(keyDoubt)) }

func decodeCounter(v []byte) policy.Counter {
	if len(v) != 16 {
		return policy.Counter{}
	}
	return policy.Counter{Start: moment(v[:8]), Value: int64(number(v[8:]))} //nolint:gosec // written by setCounter
}

func encodeCounter(c policy.Counter) []byte {
	return append(stamp(c.Start), be64(uint64(c.Value))...) //nolint:gosec // decoded the same way
}

func (t *tx) setCounter(k policy.CounterKey, c policy.Counter) error {
	return t.space(spaceCounters).put(counterKey(k), encodeCounter(c))
}

// plus adds to a counter. One that is full stays full: it is better to count too
// much than to begin anew below zero.
func plus(value, delta int64) int64 {
	switch {
	case value == math.MaxInt64 || delta > 0 && value > math.MaxInt64-delta:
		return math.MaxInt64
	case delta < 0 && value < -delta:
		return 0
	}
	return value + delta
}

// held is what a call has reserved until it is settled.
type held struct {
	Seq     uint64        `json:"seq"` // of the attempt
	Cost    policy.Micros `json:"cost_usd"`
	Session string        `json:"session"`
	Holds   []hold        `json:"holds"`
	Start   time.Time     `json:"start"`
}

type hold struct {
	Counter string        `json:"counter"`
	Of      string        `json:"of"`
	Start   time.Time     `json:"start"`
	Amount  int64         `json:"amount"`
	Money   bool          `json:"money,omitempty"`
	Window  time.Duration `json:"window,omitempty"`
	Streak  bool          `json:"streak,omitempty"`
}

// decode reads what putJSON has stored. There is one reader of it: what one part of
// the ledger can read, all can. The stricter one of go-json-experiment is quicker, but
// refuses text of a damaged file that is no UTF-8, and recovery keeps what it can.
func decode(raw []byte, v any) error { return json.Unmarshal(raw, v) }

func (s space) putJSON(key []byte, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.put(key, raw)
}

// source lets audit read one transaction.
type source struct{ t *tx }

func (s source) Head() uint64 { seq, _ := s.t.head(); return seq }

func (s source) First() uint64 { return s.t.pruned() + 1 }

// Record copies: the bytes in the file are good only within the transaction. A record that
// is gone may not be deleted yet.
func (s source) Record(seq uint64) []byte {
	if seq <= s.t.pruned() {
		return nil
	}
	return bytes.Clone(s.t.Bucket(bucketAudit).Get(be64(seq)))
}

func (s source) Outcome(attempt uint64) uint64 {
	return number(s.t.Bucket(bucketOutcomes).Get(be64(attempt)))
}

func (s source) Marked(block uint64, mark string) audit.Set {
	return audit.ParseSet(s.t.Bucket(bucketIndex).Get(markKey(block, mark)))
}

func (s source) Span(block uint64) (first, last time.Time) {
	return span(s.t.Bucket(bucketIndex).Get(markKey(block, "")))
}
