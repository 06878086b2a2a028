package ledger

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/policy"
)

// FormatVersion is the version of the file format. A newer file is refused.
const FormatVersion = 1

// The buckets. Their names and contents are the file format.
var (
	bucketHot       = []byte("hot")       // see space
	bucketAudit     = []byte("audit")     // seq, big-endian → canonical record
	bucketOutcomes  = []byte("outcomes")  // seq of an attempt → seq of its outcome
	bucketCatalogue = []byte("catalogue") // key of an upstream's config → its last catalogue

	buckets = [][]byte{bucketHot, bucketAudit, bucketOutcomes, bucketCatalogue}

	keyVersion = []byte("version")
	keyHead    = []byte("head")  // seq (8 bytes), hash of the newest record (32)
	keyClock   = []byte("clock") // the greatest time seen, Unix ns
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
	// ErrNoSession: there is no session of that id.
	ErrNoSession = errors.New("no such session")
)

func openDB(dir string, noSync bool) (db *bolt.DB, file *os.File, err error) {
	path := filepath.Join(dir, "haldir.db")
	anchor, err := readHead(dir)
	if err != nil {
		return nil, nil, err
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && info.Size() > 0:
		if err := preflight(path); err != nil {
			return nil, nil, err
		}
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, nil, fmt.Errorf("open the ledger: %w", err)
	case anchor.seq > 0:
		return nil, nil, fmt.Errorf("%w: %s is missing or empty, but %s says that %d records were written; restore the file, "+
			"or move both away to begin anew", ErrDamaged, path, headPath(dir), anchor.seq)
	}
	err = guard(func() (err error) {
		db, err = bolt.Open(path, 0o600, &bolt.Options{
			Timeout: time.Second, PageSize: pageSize, FreelistType: bolt.FreelistMapType, NoSync: noSync,
			OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
				f, err := os.OpenFile(name, flag, mode)
				file = f
				return f, err
			},
		})
		return err
	})
	if err != nil {
		if file != nil {
			_ = unlock(file) // bbolt has closed it, unless a fault kept it from that
			_ = file.Close()
		}
		if errors.Is(err, os.ErrPermission) || errors.Is(err, berrors.ErrTimeout) || errors.Is(err, ErrDamaged) {
			return nil, nil, fmt.Errorf("open %s: %w", path, err)
		}
		return nil, nil, fmt.Errorf("%w: open %s: %w", ErrDamaged, path, err)
	}
	err = guard(func() error {
		fresh, err := prepare(db, anchor.seq == 0)
		if err == nil && fresh {
			err = syncDir(dir) // or a power cut could take the file with its records
		}
		if err != nil {
			return err
		}
		return db.View(func(btx *bolt.Tx) error { return continues(&tx{Tx: btx}, anchor, path, dir) })
	})
	if errors.Is(err, errFault) { // the database's own Close may hang
		return nil, nil, errors.Join(err, unlock(file), file.Close())
	}
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return db, file, nil
}

// continues checks that the chain in the database is the one that the head file
// was written after, or goes on from there.
func continues(t *tx, anchor head, path, dir string) error {
	seq, hash := t.head()
	if seq < anchor.seq {
		return fmt.Errorf("%w: %s ends at record %d, but %s says that %d were written: an older copy was put back or its end is lost",
			ErrDamaged, path, seq, headPath(dir), anchor.seq)
	}
	if anchor.seq > 0 && seq > anchor.seq {
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

// prepare makes the buckets of a new file, if it may be new, and checks the
// version of an old one.
func prepare(db *bolt.DB, mayBeNew bool) (fresh bool, err error) {
	err = db.View(func(btx *bolt.Tx) error {
		hot := btx.Bucket(bucketHot)
		if hot == nil {
			if k, _ := btx.Cursor().First(); k != nil {
				return fmt.Errorf("%w: it is a bbolt file, but none of haldir", ErrDamaged)
			}
			if !mayBeNew {
				return fmt.Errorf("%w: it is empty, but records were written", ErrDamaged)
			}
			fresh = true
			return nil
		}
		v := space{hot, spaceMeta}.get(keyVersion)
		if len(v) != 8 {
			return fmt.Errorf("%w: no format version", ErrDamaged)
		}
		if n := binary.BigEndian.Uint64(v); n > FormatVersion {
			return fmt.Errorf("%w (format %d, this haldir knows %d): upgrade haldir", ErrNewer, n, FormatVersion)
		}
		return nil
	})
	if err != nil || !fresh {
		return false, err
	}
	return true, db.Update(func(btx *bolt.Tx) error {
		for _, name := range buckets {
			b, err := btx.CreateBucketIfNotExists(name)
			if err != nil {
				return err
			}
			if bytes.Equal(name, bucketAudit) || bytes.Equal(name, bucketOutcomes) {
				b.FillPercent = 0.95 // keys only grow
			}
		}
		meta := space{btx.Bucket(bucketHot), spaceMeta}
		if err := meta.put(keyID, []byte(newID(""))); err != nil {
			return err
		}
		return meta.put(keyVersion, be64(FormatVersion))
	})
}

// errFault marks an error that was a panic or a memory fault.
var errFault = errors.New("it could not be read")

// guard runs f and turns what a damaged file can do to a memory-mapped reader,
// panics and memory faults, into an error.
func guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %w: %v", ErrDamaged, errFault, r)
		}
	}()
	return f()
}

func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// tx is one transaction with what the operations in it share.
type tx struct {
	*bolt.Tx
	now time.Time
}

func (t *tx) space(prefix byte) space { return space{t.Bucket(bucketHot), prefix} }

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
	t.now = wall.UTC()
	if v := meta.get(keyClock); len(v) == 8 {
		if last := time.Unix(0, int64(binary.BigEndian.Uint64(v))).UTC(); last.After(t.now) { //nolint:gosec // written below
			t.now = last
			return nil
		}
	}
	if !t.Writable() {
		return nil
	}
	return meta.put(keyClock, be64(uint64(t.now.UnixNano())))
}

// append adds r to the chain; it fills in the sequence, the time and the links.
func (t *tx) append(r *audit.Record) error {
	seq, hash := t.head()
	r.Seq, r.Prev, r.Time = seq+1, hash, t.now
	for _, s := range []*string{&r.Session, &r.Agent, &r.Client, &r.Upstream, &r.Tool, &r.FlagReason, &r.Policy, &r.Rule} {
		*s = strings.ToValidUTF8(*s, "\ufffd") // an export is JSON
	}
	for _, th := range threadsOf(r) {
		*th.link = t.thread(th.name, th.value)
	}
	encoded := r.Encode()
	b := t.Bucket(bucketAudit)
	b.FillPercent = 0.95
	if err := b.Put(be64(r.Seq), encoded); err != nil {
		return err
	}
	for _, th := range threadsOf(r) {
		if err := t.space(spaceThreads).put(threadKey(th.name, th.value), be64(r.Seq)); err != nil {
			return err
		}
	}
	sum := audit.Sum(encoded)
	return t.space(spaceMeta).put(keyHead, append(be64(r.Seq), sum[:]...))
}

type thread struct {
	name  audit.ThreadName
	value string
	link  *uint64
}

// threadsOf lists the threads that r is on. An outcome is found through its
// attempt; only its own status and flag lead to it.
func threadsOf(r *audit.Record) []thread {
	out := make([]thread, 0, 6)
	add := func(name audit.ThreadName, value string, on bool, link *uint64) {
		if on {
			out = append(out, thread{name, value, link})
		}
	}
	if r.Kind != audit.KindOutcome {
		add(audit.ThreadSession, r.Session, r.Session != "", &r.Threads.Session)
		add(audit.ThreadAgent, r.Agent, r.Agent != "", &r.Threads.Agent)
		add(audit.ThreadUpstream, r.Upstream, r.Upstream != "", &r.Threads.Upstream)
		add(audit.ThreadTool, r.Upstream+"/"+r.Tool, r.Tool != "", &r.Threads.Tool)
	}
	add(audit.ThreadStatus, string(r.Status), r.Status != "" && r.Status != audit.StatusRunning, &r.Threads.Status)
	add(audit.ThreadFlagged, "", r.Flagged, &r.Threads.Flagged)
	return out
}

// threadKey bounds the key: bbolt takes 32 KiB, a tool's name has no limit.
func threadKey(name audit.ThreadName, value string) []byte {
	if len(value) > 512 {
		sum := audit.Sum([]byte(value))
		value = string(append([]byte(value[:480]), sum[:]...))
	}
	return append([]byte{byte(name)}, value...)
}

func (t *tx) thread(name audit.ThreadName, value string) uint64 {
	return number(t.space(spaceThreads).get(threadKey(name, value)))
}

func number(v []byte) uint64 {
	if len(v) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(v)
}

func counterKey(k policy.CounterKey) []byte {
	b := append([]byte(k.Counter), 0)
	if len(k.Of) > 16<<10 { // bounded like threadKey
		sum := audit.Sum([]byte(k.Of))
		return append(append(b, k.Of[:15<<10]...), sum[:]...)
	}
	return append(b, k.Of...)
}

func (t *tx) counter(k policy.CounterKey) policy.Counter {
	return decodeCounter(t.space(spaceCounters).get(counterKey(k)))
}

func decodeCounter(v []byte) policy.Counter {
	if len(v) != 16 {
		return policy.Counter{}
	}
	c := policy.Counter{Value: int64(binary.BigEndian.Uint64(v[8:]))} //nolint:gosec // written by setCounter
	if ns := int64(binary.BigEndian.Uint64(v)); ns != 0 {             //nolint:gosec // written by setCounter
		c.Start = time.Unix(0, ns).UTC()
	}
	return c
}

func (t *tx) setCounter(k policy.CounterKey, c policy.Counter) error {
	var start uint64
	if !c.Start.IsZero() {
		start = uint64(c.Start.UnixNano())
	}
	v := append(be64(start), be64(uint64(c.Value))...) //nolint:gosec // decoded the same way
	return t.space(spaceCounters).put(counterKey(k), v)
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
	Counter string    `json:"counter"`
	Of      string    `json:"of"`
	Start   time.Time `json:"start"`
	Amount  int64     `json:"amount"`
	Money   bool      `json:"money,omitempty"`
}

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

// Record copies: the bytes in the file are good only within the transaction.
func (s source) Record(seq uint64) []byte {
	return bytes.Clone(s.t.Bucket(bucketAudit).Get(be64(seq)))
}

func (s source) Outcome(attempt uint64) uint64 {
	return number(s.t.Bucket(bucketOutcomes).Get(be64(attempt)))
}

func (s source) Thread(name audit.ThreadName, value string) uint64 { return s.t.thread(name, value) }
