package ledger

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/policy"
)

// ErrSound is what Recover returns when nothing is wrong: the ledger is sound, or
// there is none.
var ErrSound = errors.New("there is nothing to recover")

// Recovery is what [Recover] found and did. It is also in the first record of the
// new ledger, as its arguments.
type Recovery struct {
	Why      string   `json:"why"`
	Aside    []string `json:"set_aside"`        // the old files, under their new names
	SHA256   string   `json:"sha256,omitempty"` // of the old database
	Salvaged string   `json:"salvaged"`         // the file with the records that could be verified, as haldir audit export writes them
	Digest   string   `json:"salvaged_sha256"`
	Records  uint64   `json:"records"` // in it
	First    uint64   `json:"first_seq,omitempty"`
	Last     uint64   `json:"last_seq,omitempty"`
	Pruned   uint64   `json:"pruned_seq,omitempty"` // the last record that was pruned: it and those before are not missing
	Missing  []Range  `json:"missing"`              // at most 100 of them
	Lost     uint64   `json:"records_missing"`      // in all
	// Doubt means that sessions and counters are lost as well, or that records are
	// missing by which they could be checked. Then a limit counts
	// as used up until its window has passed. One without a window does until
	// [Ledger.Trust] is called, and until then no session begins that may be one
	// of those that were lost.
	Doubt    bool `json:"doubt"`
	Sessions int  `json:"sessions"`   // that live on
	Open     int  `json:"open_calls"` // whose holds stay spent
}

// Range is a range of records.
type Range struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// Recover sets a damaged ledger aside, under dated names and as it is, and begins
// a new one with what is left of it. It does not open the old database but reads
// it page by page, so it gets through any file. What was recorded and can be
// verified is written to a file of its own, since a chain with gaps is none;
// the first record of the new chain has the digests of both. Sessions and counters
// live on if their part of the file is whole and is not older than the head file
// and the checkpoints say; otherwise see [Recovery.Doubt]. Processes that use the
// ledger go on with the new one.
func Recover(ctx context.Context, o Options) (r Recovery, err error) {
	if none(o.Dir) {
		return r, fmt.Errorf("there is no ledger in %s: %w", o.Dir, ErrSound)
	}
	if err := stateDir(o.Dir); err != nil {
		return r, err
	}
	t := newTurn(o.Dir)
	ctx, cancel := context.WithTimeoutCause(ctx, patience, &BusyError{Holder: t.holder()})
	defer cancel()
	taken := make(chan error, 1)
	go func() { taken <- t.take() }()
	select {
	case err := <-taken:
		if err != nil {
			return r, err
		}
	case <-ctx.Done():
		go func() {
			if <-taken == nil {
				_ = t.give() // nobody is left to tell
			}
		}()
		return r, context.Cause(ctx)
	}
	defer func() { err = errors.Join(err, t.give()) }()

	s := &salvage{dir: o.Dir, at: o.Clock().UTC()}
	if err := s.read(); err != nil {
		return r, err
	}
	if s.why == nil {
		return r, fmt.Errorf("the ledger is sound: %w", ErrSound)
	}
	return s.begin(o.NoSync)
}

// none reports whether nothing says that there ever was a ledger: one would be
// made, and none missed.
func none(dir string) bool {
	anchor, err := readHead(dir)
	for _, path := range []string{dbPath(dir), logPath(dir)} {
		size, unknown := fileSize(path)
		if err == nil && size > 0 {
			return false
		}
		err = errors.Join(err, unknown)
	}
	return err == nil && anchor.seq == 0
}

// salvage is what can be had of a damaged ledger.
type salvage struct {
	dir string
	at  time.Time
	why error // the first thing that is wrong

	file   *os.File // nil if there is none
	sum    string
	anchor head
	signed []audit.Checkpoint
	found  map[uint64][]place // every copy of every record that can be read
	chain  []place            // the verified ones, the newest first
	hot    map[string][]byte  // nil unless its tree is whole
	rest   map[string]map[string][]byte
	gone   uint64    // the records that were pruned, as the database or the chain says
	newest uint64    // the greatest number that anything speaks of
	last   time.Time // of the newest verified record
	halted *Stopped  // what the records say of a stop of everything
	spent  spending
	result Recovery
}

// place is where a record is in the file.
type place struct {
	seq        uint64
	prev, hash audit.Hash
	offset     int64
	size       int
	gone       uint64 // how many records were pruned, as it says
}

// spending is what the records say was spent, by sessions and by their tools.
type spending map[policy.CounterKey]int64

// blame notes what is wrong, if anything is.
func (s *salvage) blame(err error) {
	if s.why == nil {
		s.why = err
	}
}

func (s *salvage) read() (err error) {
	s.found, s.rest = map[uint64][]place{}, map[string]map[string][]byte{}
	if s.anchor, err = readHead(s.dir); err != nil {
		if !errors.Is(err, ErrDamaged) {
			return err
		}
		s.blame(err)
	}
	key, err := readKey(s.dir)
	if err != nil && !errors.Is(err, ErrKey) { // it may be sound
		return err
	}
	if err != nil {
		s.blame(err)
	}
	var log []byte
	if err := noFile(logPath(s.dir)); err != nil {
		s.blame(err)
	} else if log, err = os.ReadFile(logPath(s.dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if key != nil {
		s.signed, _ = audit.ReadLog(log, key.Public()) // those that can be read; see trees
	}
	s.newest = s.anchor.seq
	for _, c := range s.signed {
		s.newest = max(s.newest, c.Size)
	}
	s.file, err = os.Open(dbPath(s.dir))
	if errors.Is(err, fs.ErrNotExist) {
		s.file = nil
		s.blame(fmt.Errorf("%w: %s is missing", ErrDamaged, dbPath(s.dir)))
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.file.Close()) }() // it was only read
	sum := sha256.New()
	if _, err := io.Copy(sum, s.file); err != nil {
		return err
	}
	s.sum = hex.EncodeToString(sum.Sum(nil))
	if err := s.trees(log, key); err != nil || s.why == nil {
		return err
	}
	if err := s.scan(); err != nil {
		return err
	}
	s.link()
	if uint64(len(s.chain)) < s.newest-s.gone {
		// What was used cannot be counted again from the records, and a counter that
		// the same damage has changed would go unnoticed. Of records that were pruned
		// the counters are all there is.
		s.hot = nil
	}
	return s.write()
}

// trees reads what of the file is whole, and finds out whether all of it is. An error means that
// it is not for this haldir to say.
func (s *salvage) trees(log []byte, key *audit.Key) error {
	m, err := sound(s.file)
	if err != nil {
		s.blame(at(s.file.Name(), err))
		return nil
	}
	own, err := s.meta(m)
	if n := own[string(keyVersion)]; len(n) == 8 && number(n) > FormatVersion && number(n) <= lastFormat {
		return fmt.Errorf("%w (format %d, this haldir knows %d): recover it with that", ErrNewer, number(n), FormatVersion)
	}
	var gone audit.Pruned
	var unknown error
	if err == nil { // else that is found below
		gone, unknown = frontier(own[string(keyPruned)], own[string(keyFrontier)])
	}
	v := audit.Verifier{Checkpoints: s.signed}
	broken := errors.Join(unknown, v.Begin(gone))
	if broken == nil {
		s.gone = gone.Size
	}
	anchored := s.anchor.seq <= s.gone && (s.anchor.seq < s.gone || s.anchor.seq == 0 || s.anchor.hash == gone.Head)
	w := walker{f: s.file, deep: bottom}
	err = w.buckets(m, func(b element) error {
		entries := map[string][]byte{}
		err := w.bucket(b, func(k, raw []byte) error {
			switch string(b.key) {
			case string(bucketAudit):
			case string(bucketHot), string(bucketCatalogue):
				entries[string(k)] = bytes.Clone(raw)
				return nil
			default:
				return nil
			}
			if number(k) <= s.gone {
				return nil // it is still to be deleted
			}
			if broken == nil {
				broken = v.Add(number(k), raw)
			}
			anchored = anchored || number(k) == s.anchor.seq && audit.Sum(raw) == s.anchor.hash
			return nil
		})
		if err != nil {
			s.blame(at(s.file.Name(), err))
			return nil // others may be whole
		}
		s.rest[string(b.key)] = entries
		return nil
	})
	if err == nil {
		err = w.free(m)
	}
	if err != nil {
		s.blame(at(s.file.Name(), err))
	}
	hot := s.rest[string(bucketHot)]
	if hot == nil {
		s.blame(fmt.Errorf("%w: %s is none of haldir's", ErrDamaged, s.file.Name()))
		return nil
	}
	if version := hot[string(spaceMeta)+string(keyVersion)]; len(version) != 8 {
		s.blame(fmt.Errorf("%w: %s has no format version", ErrDamaged, s.file.Name()))
	} else if number(version) > lastFormat {
		s.blame(noFormat(number(version)))
	} else if number(version) == FormatVersion {
		s.blame(lacking(func(name []byte) bool { return s.rest[string(name)] != nil }))
	}
	var headSeq uint64
	var headHash audit.Hash
	if v := hot[string(spaceMeta)+string(keyHead)]; len(v) == 8+len(headHash) {
		headSeq = number(v[:8])
		copy(headHash[:], v[8:])
	}
	var state checkpointed
	if raw := hot[string(spaceMeta)+string(keyTree)]; raw != nil {
		if err := json.Unmarshal(raw, &state); err != nil {
			s.blame(err)
		}
	}
	_, logged, err := state.ends(s.dir, key)
	public := ""
	if key != nil {
		public = key.Public()
		_, unread := audit.ReadLog(log[:logged], public)
		err = errors.Join(err, unread)
	}
	for _, err := range []error{broken, v.Finish(headSeq, headHash), err, state.agrees(logged, public)} {
		if err != nil {
			s.blame(err)
		}
	}
	if !anchored {
		s.blame(fmt.Errorf("%w: record %d is not the one that %s was written after", ErrDamaged, s.anchor.seq, headPath(s.dir)))
	}
	if anchored && headSeq >= s.newest && readable(hot) { // else what was used is lost, or newer
		s.hot = hot
	}
	s.newest = max(s.newest, headSeq)
	s.signed = append(s.signed, audit.Checkpoint{Size: headSeq, Head: headHash})
	return nil
}

// meta returns what the database says of itself, as far as that can be read. It reads no more of
// the file than it must: what is wrong elsewhere is found by trees.
func (s *salvage) meta(m meta) (map[string][]byte, error) {
	hot := map[string][]byte{}
	w := walker{f: s.file, deep: bottom}
	return hot, w.buckets(m, func(b element) error {
		if string(b.key) != string(bucketHot) {
			return nil
		}
		return w.bucket(b, func(k, raw []byte) error {
			if k[0] == spaceMeta {
				hot[string(k[1:])] = bytes.Clone(raw)
			}
			return nil
		})
	})
}

// readable reports whether all sessions and counters can be read.
func readable(hot map[string][]byte) bool {
	for k, v := range hot {
		if k[0] == spaceCounters && len(v) != 16 || k[0] == spaceSessions && decode(v, &Session{}) != nil {
			return false
		}
	}
	return true
}

// scan looks for records in every page, whatever it says that it is: a page that
// nothing leads to any more may have an older copy of what another one lost.
func (s *salvage) scan() error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	head := make([]byte, pageHeader)
	for offset := int64(0); offset < info.Size(); offset += pageSize {
		if _, err := s.file.ReadAt(head, offset); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		size := int64(pageSize)
		if ne := binary.NativeEndian; ne.Uint64(head) == uint64(offset/pageSize) {
			size += int64(ne.Uint32(head[12:])) * pageSize
		}
		page := make([]byte, min(size, info.Size()-offset))
		if _, err := s.file.ReadAt(page, offset); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		s.records(page, offset+int64(len(page)))
	}
	return nil
}

// records takes the records from a page, or from a page inside it, that ends at
// an offset of the file.
func (s *salvage) records(page []byte, end int64) {
	list, _ := elements(page) // those that can be read
	for _, e := range list {
		if e.bucket {
			if root, inline, err := e.child(); err == nil && root == 0 {
				s.records(inline, end)
			}
			continue
		}
		r, err := audit.Decode(e.value)
		if err != nil || len(e.key) != 8 || number(e.key) != r.Seq {
			continue
		}
		p := place{seq: r.Seq, prev: r.Prev, hash: audit.Sum(e.value), offset: end - int64(cap(e.value)), size: len(e.value), gone: r.PrunedTo()}
		known := false
		for _, q := range s.found[r.Seq] {
			known = known || q.hash == p.hash
		}
		if !known {
			s.found[r.Seq] = append(s.found[r.Seq], p)
		}
	}
}

// link picks the records that are what was written: the head, a signed checkpoint
// or the record after has the hash of each. The newest before a gap has nothing to
// show for itself, but for the one before it.
func (s *salvage) link() {
	heads := map[uint64][]audit.Hash{s.anchor.seq: {s.anchor.hash}}
	for _, c := range s.signed {
		heads[c.Size] = append(heads[c.Size], c.Head)
	}
	numbers := slices.Sorted(maps.Keys(s.found))
	var next place
	for _, seq := range slices.Backward(numbers) {
		wanted := heads[seq]
		if next.seq == seq+1 {
			wanted = append(wanted, next.prev)
		}
		for _, p := range s.found[seq] {
			if slices.Contains(wanted, p.hash) {
				s.chain, next = append(s.chain, p), p
				break
			}
			if len(wanted) == 0 && slices.ContainsFunc(s.found[seq-1], func(q place) bool { return q.hash == p.prev }) {
				next = p
			}
		}
	}
	if n := len(numbers); n > 0 {
		s.newest = max(s.newest, numbers[n-1])
	}
	slices.Reverse(s.chain)
	for _, p := range s.chain {
		s.gone = max(s.gone, p.gone)
	}
	// What was pruned is not to come back out of pages that are free.
	s.chain = slices.DeleteFunc(s.chain, func(p place) bool { return p.seq <= s.gone })
}

// write writes the records of the chain to a file of their own.
func (s *salvage) write() (err error) {
	path := s.name(filepath.Join(s.dir, "salvaged")) + ".jsonl"
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	sum := sha256.New()
	buffered := bufio.NewWriter(io.MultiWriter(f, sum))
	lines := json.NewEncoder(buffered)
	lines.SetEscapeHTML(false)
	s.spent = spending{}
	open := map[uint64]*audit.Record{} // attempts without an outcome
	for _, p := range s.chain {
		raw := make([]byte, p.size)
		var r audit.Record
		var e audit.Exported
		_, err := s.file.ReadAt(raw, p.offset)
		if err == nil {
			r, err = audit.Decode(raw)
		}
		if err == nil {
			e, err = audit.Export(raw)
		}
		if err == nil {
			err = lines.Encode(e)
		}
		if err != nil {
			return errors.Join(err, f.Close(), os.Remove(path))
		}
		s.last = r.Time
		switch {
		case r.Kind == audit.KindAttempt && r.Status == audit.StatusRunning:
			open[r.Seq] = &r
			s.spent.add(&r, r.Cost)
		case r.Kind == audit.KindOutcome && open[r.Ref] != nil:
			s.spent.add(open[r.Ref], r.Cost-open[r.Ref].Cost)
			delete(open, r.Ref)
		case r.Kind == audit.KindLedger && r.Status == audit.StatusStopped:
			s.halted = &Stopped{At: r.Time, Reason: r.FlagReason}
		case r.Kind == audit.KindLedger && r.Status == audit.StatusResumed:
			s.halted = nil
		}
	}
	if err := errors.Join(buffered.Flush(), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	s.result.Salvaged, s.result.Digest = path, hex.EncodeToString(sum.Sum(nil))
	return nil
}

func (m spending) add(r *audit.Record, cost int64) {
	m[policy.CounterKey{Counter: policy.CounterSessionSpend, Of: r.Session}] += cost
	m[policy.CounterKey{Counter: policy.CounterToolSpend, Of: policy.ToolSpendOf(r.Session, called(r).ID())}] += cost
}

// called is what was called by a record, which has it as [policy.Call.Recorded]
// tells it.
func called(r *audit.Record) policy.Call {
	for _, kind := range []policy.Kind{policy.KindResource, policy.KindPrompt} {
		c := policy.Call{Kind: kind, Upstream: r.Upstream}
		if name, ok := strings.CutPrefix(r.Tool, c.Recorded()); ok {
			c.Tool = name
			return c
		}
	}
	return policy.Call{Upstream: r.Upstream, Tool: r.Tool}
}

// name returns what a file is called once it is set aside.
func (s *salvage) name(path string) string { return path + "." + s.at.Format("20060102T150405Z") }

// most is how many missing ranges are listed: they go into a record.
const most = 100

func (s *salvage) describe() {
	r := &s.result
	r.Why, r.SHA256, r.Records, r.Doubt = s.why.Error(), s.sum, uint64(len(s.chain)), s.hot == nil
	r.Pruned = s.gone
	r.Lost = s.newest - s.gone - r.Records
	expected := s.gone + 1
	missing := func(upTo uint64) {
		if expected <= upTo && len(r.Missing) < most {
			r.Missing = append(r.Missing, Range{expected, upTo})
		}
	}
	for _, p := range s.chain {
		missing(p.seq - 1)
		expected = p.seq + 1
	}
	missing(s.newest)
	if n := len(s.chain); n > 0 {
		r.First, r.Last = s.chain[0].seq, s.chain[n-1].seq
	}
	for k := range s.hot {
		switch k[0] {
		case spaceSessions:
			r.Sessions++
		case spaceHolds:
			r.Open++
		}
	}
}

// begin sets the old files aside and begins a new ledger. Whenever it is
// interrupted, what is there is refused, and can be recovered.
func (s *salvage) begin(noSync bool) (Recovery, error) {
	s.result.Missing, s.result.Aside = []Range{}, []string{}
	s.describe()
	var others []string
	for _, path := range []string{headPath(s.dir), logPath(s.dir), keyPath(s.dir)} {
		if _, err := os.Stat(path); err == nil {
			others = append(others, path)
			s.result.Aside = append(s.result.Aside, s.name(path))
		}
	}
	if s.file != nil {
		path := dbPath(s.dir)
		s.result.Aside = append(s.result.Aside, s.name(path))
		if err := os.Link(path, s.name(path)); err != nil { // not every file system has links
			if err := os.Rename(path, s.name(path)); err != nil {
				return s.result, err
			}
		}
	}
	if err := create(s.dir, noSync, s.fill); err != nil {
		return s.result, err
	}
	for _, path := range others {
		if err := os.Rename(path, s.name(path)); err != nil {
			return s.result, err
		}
	}
	return s.result, syncDir(s.dir)
}

// living are the spaces that live on.
var living = string([]byte{spaceSessions, spaceCounters, spaceKeys, spaceOnce, spaceRetain, spaceLoops})

// fill puts what lives on into the new database, and the first record.
func (s *salvage) fill(t *tx) error {
	t.now, t.wall = s.at, s.at
	meta := t.space(spaceMeta)
	for _, seen := range []time.Time{s.last, moment(s.hot[string(spaceMeta)+string(keyClock)])} {
		if seen.After(t.now) {
			t.now = seen
		}
	}
	err := meta.put(keyClock, stamp(t.now))
	if s.hot == nil {
		err = errors.Join(err, meta.put(keyDoubt, stamp(t.now)))
	}
	for k, v := range s.hot {
		if strings.IndexByte(living, k[0]) >= 0 || k == string(spaceMeta)+string(keyDoubt) || k == string(spaceMeta)+string(keyStopped) {
			err = errors.Join(err, t.Bucket(bucketHot).Put([]byte(k), v))
		}
	}
	if s.hot == nil && s.halted != nil {
		err = errors.Join(err, meta.putJSON(keyStopped, s.halted))
	}
	for k, n := range s.spent {
		if c := t.counter(k); s.hot != nil && c.Value < n {
			err = errors.Join(err, t.setCounter(k, policy.Counter{Start: c.Start, Value: n}))
		}
	}
	for k, v := range s.rest[string(bucketCatalogue)] {
		err = errors.Join(err, t.Bucket(bucketCatalogue).Put([]byte(k), v))
	}
	if err != nil {
		return err
	}
	r := &s.result
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("a damaged ledger was set aside: %s. %d of its records could be verified, %d are missing", r.Why, r.Records, r.Lost)
	if r.Doubt {
		what += "; what had been used is not known, so every limit counts as used up until its window has passed, and no session of before goes on"
	}
	err = t.append(&audit.Record{
		Kind: audit.KindLedger, Status: audit.StatusRecovered, Flagged: true, FlagReason: what,
		Arguments: text, ArgumentsSHA256: sha256.Sum256(text), ArgumentsSize: uint64(len(text)),
	})
	if err != nil {
		return err
	}
	stopped := t.stopped()
	if stopped == nil {
		return nil
	}
	// Once more, for the next recovery.
	return t.append(&audit.Record{Kind: audit.KindLedger, Status: audit.StatusStopped, Flagged: true, FlagReason: stopped.Reason})
}

// Trust ends the doubt that a recovery left: what was not known counts as unused
// from here on. It is recorded, with the reason that a person gave. It reports
// whether there was any.
func (l *Ledger) Trust(ctx context.Context, reason string) (doubted bool, err error) {
	err = l.do(ctx, true, func(t *tx) error {
		since := t.doubt()
		if doubted = !since.IsZero(); !doubted {
			return nil
		}
		if err := t.space(spaceMeta).delete(keyDoubt); err != nil {
			return err
		}
		return t.append(&audit.Record{
			Kind: audit.KindLedger, Status: audit.StatusTrusted, Flagged: true,
			FlagReason: fmt.Sprintf("what was not known since the recovery of %s counts as unused: %s", since.Format(time.RFC3339), reason),
		})
	})
	return doubted, err
}
