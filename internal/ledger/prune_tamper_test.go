package ledger_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
)

// prunedPast is a ledger of which records were pruned, and what it was before.
type prunedPast struct {
	before, now map[string][]byte // file → content
	gone        uint64
	raws        [][]byte // all records that there ever were
	sizes       []uint64 // of the checkpoints
}

func newPrunedPast(t *testing.T) *prunedPast {
	t.Helper()
	dir, clock := stateDir(t), newClock()
	p := &prunedPast{}
	l := little(t, dir, clock, "a", 10*day)
	keep := func() {
		_, _, err := l.Walk(context.Background(), uint64(len(p.raws))+1, func(_ uint64, raw []byte) error {
			p.raws = append(p.raws, raw)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 8 {
		pass(t, l, clock, 1)
		keep()
	}
	closeLedger(t, l)
	p.before = snapshot(t, dir)
	l = little(t, dir, clock, "a", 10*day)
	for gone(t, l) == 0 {
		pass(t, l, clock, 1)
		keep()
	}
	for range 2 {
		pass(t, l, clock, 1)
		keep()
	}
	p.gone = gone(t, l)
	list, _, err := l.Checkpoints(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		p.sizes = append(p.sizes, c.Size)
	}
	closeLedger(t, l)
	p.now = snapshot(t, dir)
	return p
}

// frontierOf is what a database knows of the first n records.
func (p *prunedPast) frontierOf(n uint64) []byte {
	var f audit.Pruned
	for _, raw := range p.raws[:n] {
		f.Head = audit.Sum(raw)
		f.Add(f.Head)
	}
	raw, _ := json.Marshal(f)
	return raw
}

// signedAfter is the size of a checkpoint above n, signedBefore of one below.
func (p *prunedPast) signedAfter(n uint64) uint64 {
	for _, size := range p.sizes {
		if size > n {
			return size
		}
	}
	return 0
}

func (p *prunedPast) signedBefore(n uint64) (size uint64) {
	for _, s := range p.sizes {
		if s < n {
			size = s
		}
	}
	return size
}

// Records that somebody took away are told from those that haldir has pruned, whatever he
// says about them in the database.
func TestWhatWasPrunedIsToldFromWhatWasRemoved(t *testing.T) {
	p := newPrunedPast(t)
	remove := func(records *bolt.Bucket, from, to uint64) (err error) {
		for seq := from; seq <= to; seq++ {
			err = errors.Join(err, records.Delete(keyOf(int(seq))))
		}
		return err
	}
	forge := func(hot *bolt.Bucket, n uint64) error {
		return errors.Join(hot.Put([]byte("mpruned"), keyOf(int(n))), hot.Put([]byte("mfrontier"), p.frontierOf(n)))
	}
	more, less := p.signedAfter(p.gone), p.signedBefore(p.gone)
	if more == 0 || less == 0 {
		t.Fatalf("%d are gone, and checkpoints are of %v", p.gone, p.sizes)
	}
	for name, x := range map[string]struct {
		files  map[string][]byte
		harm   func(t *testing.T, dir string, records, hot *bolt.Bucket) error
		want   string // part of the error; "" for none
		before bool   // the unpruned ledger is harmed
	}{
		"nothing": {harm: nil, want: ""},
		"the beginning is deleted": {want: "audit record " + fmt.Sprint(p.gone+1) + ": deletion", harm: func(_ *testing.T, _ string, records, _ *bolt.Bucket) error {
			return remove(records, p.gone+1, p.gone+5)
		}},
		"the beginning is deleted and it is said that it was pruned": {want: "audit record " + fmt.Sprint(p.gone+1) + ": deletion: ", harm: func(_ *testing.T, _ string, records, hot *bolt.Bucket) error {
			return errors.Join(remove(records, p.gone+1, more), forge(hot, more))
		}},
		"the same to where nothing was signed": {want: "pruning: the database says", harm: func(_ *testing.T, _ string, records, hot *bolt.Bucket) error {
			return errors.Join(remove(records, p.gone+1, p.gone+3), forge(hot, p.gone+3))
		}},
		"of one that was never pruned the beginning is deleted": {before: true, want: "audit record 1: deletion", harm: func(_ *testing.T, _ string, records, _ *bolt.Bucket) error {
			return remove(records, 1, less)
		}},
		"and it is said that it was pruned": {before: true, want: "audit record 1: deletion: ", harm: func(_ *testing.T, _ string, records, hot *bolt.Bucket) error {
			return errors.Join(remove(records, 1, less), forge(hot, less))
		}},
		"it is said that less was pruned": {want: "deletion", harm: func(_ *testing.T, _ string, _, hot *bolt.Bucket) error { return forge(hot, less) }},
		"and the records are put back": {want: "pruning: the first", harm: func(_ *testing.T, _ string, records, hot *bolt.Bucket) error {
			err := forge(hot, less)
			for seq := less + 1; seq <= p.gone; seq++ {
				err = errors.Join(err, records.Put(keyOf(int(seq)), p.raws[seq-1]))
			}
			return err
		}},
		"all records are put back, and nothing is said": {want: "pruning: the first", harm: func(_ *testing.T, _ string, records, hot *bolt.Bucket) error {
			err := errors.Join(hot.Delete([]byte("mpruned")), hot.Delete([]byte("mfrontier")))
			for seq := uint64(1); seq <= p.gone; seq++ {
				err = errors.Join(err, records.Put(keyOf(int(seq)), p.raws[seq-1]))
			}
			return err
		}},
		"nothing is said any more": {want: "deletion", harm: func(_ *testing.T, _ string, _, hot *bolt.Bucket) error {
			return errors.Join(hot.Delete([]byte("mpruned")), hot.Delete([]byte("mfrontier")))
		}},
		"another number": {want: "pruning: what the database knows", harm: func(_ *testing.T, _ string, _, hot *bolt.Bucket) error {
			return hot.Put([]byte("mpruned"), keyOf(int(p.gone+1)))
		}},
		"a number that is none": {want: "pruning: what the database knows", harm: func(_ *testing.T, _ string, _, hot *bolt.Bucket) error { return hot.Put([]byte("mpruned"), []byte{1}) }},
		"another hash": {want: "pruning: the database says", harm: func(_ *testing.T, _ string, _, hot *bolt.Bucket) error {
			var f audit.Pruned
			_ = json.Unmarshal(p.frontierOf(p.gone), &f)
			f.Head[0] ^= 1
			raw, _ := json.Marshal(f)
			return hot.Put([]byte("mfrontier"), raw)
		}},
		"another tree": {want: "pruning: the database says", harm: func(_ *testing.T, _ string, _, hot *bolt.Bucket) error {
			var f audit.Pruned
			_ = json.Unmarshal(p.frontierOf(p.gone), &f)
			f.Peaks[0][0] ^= 1
			raw, _ := json.Marshal(f)
			return hot.Put([]byte("mfrontier"), raw)
		}},
		"no frontier": {want: "pruning: what the database knows", harm: func(_ *testing.T, _ string, _, hot *bolt.Bucket) error { return hot.Delete([]byte("mfrontier")) }},
		"the record about it is edited": {want: "edit", harm: func(_ *testing.T, _ string, records, _ *bolt.Bucket) error {
			c := records.Cursor()
			for k, v := c.First(); k != nil; k, v = c.Next() {
				if r, err := audit.Decode(v); err == nil && r.Status == audit.StatusPruned {
					r.Arguments = bytes.Replace(r.Arguments, []byte(`"to":`), []byte(`"to":1`), 1)
					return records.Put(bytes.Clone(k), r.Encode())
				}
			}
			return errors.New("no record tells of it")
		}},
		"an older copy of the database":          {want: "damaged", files: map[string][]byte{"haldir.db": p.before["haldir.db"]}},
		"an older copy with its head":            {want: "rollback", files: map[string][]byte{"haldir.db": p.before["haldir.db"], "haldir.head": p.before["haldir.head"]}},
		"an older copy with its log":             {want: "damaged", files: map[string][]byte{"haldir.db": p.before["haldir.db"], "checkpoints.log": p.before["checkpoints.log"]}},
		"an older log of checkpoints":            {want: "checkpoint: the checkpoint log has", files: map[string][]byte{"checkpoints.log": p.before["checkpoints.log"]}},
		"a log without the checkpoint":           {want: "checkpoint: the checkpoint log has", files: map[string][]byte{"checkpoints.log": lineless(p.now["checkpoints.log"], p.gone)}},
		"a log with the line twice and one less": {want: "pruning: the database says", files: map[string][]byte{"checkpoints.log": doubled(p.now["checkpoints.log"], p.gone)}},
		"another's log":                          {want: "checkpoint", files: map[string][]byte{"checkpoints.log": bytes.ReplaceAll(p.now["checkpoints.log"], []byte("haldir/"), []byte("haldor/"))}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := stateDir(t)
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			files := p.now
			if x.before {
				files = p.before
			}
			for name, b := range files {
				put(t, dir, name, b)
			}
			for name, b := range x.files {
				put(t, dir, name, b)
			}
			if x.harm != nil {
				change(t, dir, func(records, hot *bolt.Bucket) error { return x.harm(t, dir, records, hot) })
			}
			l, err := ledger.Open(ledger.Options{Dir: dir, NoSync: true, Clock: time.Now, Logger: zerolog.Nop()})
			if err != nil {
				t.Fatal(err)
			}
			_, err = l.Verify(context.Background(), nil)
			_ = l.Close(context.Background())
			if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
				t.Errorf("%v; want %q", err, x.want)
			}
		})
	}
}

// lineOf returns where the line of a log is that is over n records.
func lineOf(log []byte, n uint64) (from, to int) {
	at := bytes.Index(log, []byte(`\n`+fmt.Sprint(n)+`\n`))
	from = bytes.LastIndexByte(log[:at], '\n') + 1
	return from, at + bytes.IndexByte(log[at:], '\n') + 1
}

// without leaves a line out.
func lineless(log []byte, n uint64) []byte {
	from, to := lineOf(log, n)
	return append(bytes.Clone(log[:from]), log[to:]...)
}

// doubled puts the line before in the place of another, which is as long or shorter, and
// some lines again at the end.
func doubled(log []byte, n uint64) []byte {
	from, to := lineOf(log, n)
	line := log[bytes.LastIndexByte(log[:from-1], '\n')+1 : from]
	out := append(append(bytes.Clone(log[:from]), line...), log[to:]...)
	last := out[bytes.LastIndexByte(out[:len(out)-1], '\n')+1:]
	return append(out, last...)
}

// A checkpoint that somebody has kept is of use as long as records are there that it is over.
func TestACheckpointOfBeforeIsComparedAsFarAsItCanBe(t *testing.T) {
	dir, clock := stateDir(t), newClock()
	l := little(t, dir, clock, "a", 10*day)
	ctx := context.Background()
	pass(t, l, clock, 2)
	old, err := l.Prove(ctx, 7)
	if err != nil {
		t.Fatal(err)
	}
	pass(t, l, clock, 9)
	kept, err := l.Prove(ctx, 1500)
	if err != nil {
		t.Fatal(err)
	}
	pass(t, l, clock, 8)
	if n := gone(t, l); n < old.Size || n >= 1500 {
		t.Fatalf("%d records are gone", n)
	}
	checkpoint := func(p ledger.Proof) audit.Checkpoint {
		c, err := audit.OpenCheckpoint(p.Checkpoint, p.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	v, err := l.Verify(ctx, nil, checkpoint(old), checkpoint(kept))
	if err != nil || v.Skipped() == 0 {
		t.Errorf("%d checkpoints could not be compared: %v", v.Skipped(), err)
	}
	forged := checkpoint(old)
	forged.Root[0] ^= 1
	if _, err := l.Verify(ctx, nil, forged); err == nil || !strings.Contains(err.Error(), "fork") {
		t.Errorf("a checkpoint of what is gone is not that of the log: %v", err)
	}
	// The record is gone, and so is its proof; the one that was kept proves it for ever.
	if _, err := l.ProveIn(ctx, 7, checkpoint(old), old.Checkpoint); !errors.Is(err, audit.ErrPruned) {
		t.Errorf("a record that is gone is proven: %v", err)
	}
	if err := audit.CheckInclusion(old.Path, old.Seq, old.Size, old.LeafHash, old.Root); err != nil {
		t.Error(err)
	}
	again, err := l.ProveIn(ctx, 1500, checkpoint(kept), kept.Checkpoint)
	if err != nil || again.Root != kept.Root {
		t.Errorf("record 1500 in a checkpoint of before: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "haldir.head")); err != nil { // it may lag, or be lost
		t.Fatal(err)
	}
	verify(t, l)
}
