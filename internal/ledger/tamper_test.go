package ledger_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// past is a state directory and two older copies of it, all of them signed to
// their end: what is younger than the last checkpoint is guarded less.
type past struct {
	now, before, start map[string][]byte // file → content
	raws               [][]byte          // the records, from the first
}

func snapshot(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, name := range []string{"haldir.db", "haldir.head", "checkpoints.log", "checkpoint.key"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	return files
}

func newPast(t *testing.T) *past {
	t.Helper()
	dir := stateDir(t)
	p := &past{}
	for i, keep := range []*map[string][]byte{&p.start, &p.before, &p.now} {
		l, e := quick(t, dir), engine(t, shop())
		for j := range 20 {
			ticket, d := reserve(t, l, call(fmt.Sprintf("ses_%d", j%3), []string{"look", "tip", "steal"}[j%3], fmt.Sprintf(`{"n":%d}`, 20*i+j)), e)
			if d.Verdict == policy.Allow {
				l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
			}
		}
		closeLedger(t, l) // and signs
		*keep = snapshot(t, dir)
	}
	inspect(t, dir, func(tx *bolt.Tx) {
		_ = tx.Bucket([]byte("audit")).ForEach(func(_, v []byte) error {
			p.raws = append(p.raws, bytes.Clone(v))
			return nil
		})
	})
	return p
}

// change alters the records of a database as somebody with bbolt at hand would.
func change(t *testing.T, dir string, f func(records, hot *bolt.Bucket) error) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(dir, "haldir.db"), 0o600, &bolt.Options{NoSync: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { return f(tx.Bucket([]byte("audit")), tx.Bucket([]byte("hot"))) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

func keyOf(seq int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(seq)) }

// tampers do one thing to a state directory. They return what they did, "" if
// there was nothing to do it to.
var tampers = map[string]func(t *testing.T, p *past, dir string, rng *rand.Rand) string{
	"an edit of a record": func(t *testing.T, p *past, dir string, rng *rand.Rand) string {
		seq := 1 + rng.IntN(len(p.raws))
		r, err := audit.Decode(p.raws[seq-1])
		if err != nil {
			t.Fatal(err)
		}
		what := ""
		switch rng.IntN(7) {
		case 0:
			what, r.Tool = "tool", r.Tool+"x"
		case 1:
			what, r.Cost = "cost", r.Cost+1
		case 2:
			what, r.Status = "status", "cancelled"
		case 3:
			what, r.Time = "time", r.Time.Add(time.Duration(1+rng.IntN(1000)))
		case 4:
			what, r.Flagged = "flag", !r.Flagged
		case 5:
			what, r.Session = "session", "ses_x"
		case 6:
			what, r.Prev[rng.IntN(32)] = "link", byte(rng.IntN(256))
		}
		if edited := r.Encode(); !bytes.Equal(edited, p.raws[seq-1]) {
			change(t, dir, func(records, _ *bolt.Bucket) error { return records.Put(keyOf(seq), edited) })
			return fmt.Sprintf("%s of %d", what, seq)
		}
		return ""
	},
	"a flipped bit of a record": func(t *testing.T, p *past, dir string, rng *rand.Rand) string {
		seq := 1 + rng.IntN(len(p.raws))
		raw := bytes.Clone(p.raws[seq-1])
		bit := rng.IntN(8 * len(raw))
		raw[bit/8] ^= 1 << (bit % 8)
		change(t, dir, func(records, _ *bolt.Bucket) error { return records.Put(keyOf(seq), raw) })
		return fmt.Sprintf("bit %d of %d", bit, seq)
	},
	"a deletion of a record": func(t *testing.T, p *past, dir string, rng *rand.Rand) string {
		seq := 1 + rng.IntN(len(p.raws))
		change(t, dir, func(records, _ *bolt.Bucket) error { return records.Delete(keyOf(seq)) })
		return fmt.Sprint(seq)
	},
	"a swap of records": func(t *testing.T, p *past, dir string, rng *rand.Rand) string {
		a, b := 1+rng.IntN(len(p.raws)), 1+rng.IntN(len(p.raws))
		if a == b {
			return ""
		}
		change(t, dir, func(records, _ *bolt.Bucket) error {
			return errors.Join(records.Put(keyOf(a), p.raws[b-1]), records.Put(keyOf(b), p.raws[a-1]))
		})
		return fmt.Sprintf("%d and %d", a, b)
	},
	"an insertion of a record": func(t *testing.T, p *past, dir string, rng *rand.Rand) string {
		seq := 1 + rng.IntN(len(p.raws))
		forged, err := audit.Decode(p.raws[seq-1])
		if err != nil {
			t.Fatal(err)
		}
		forged.Tool = "innocent"
		change(t, dir, func(records, _ *bolt.Bucket) error {
			err := records.Put(keyOf(seq), forged.Encode())
			for at := seq; at <= len(p.raws); at++ {
				err = errors.Join(err, records.Put(keyOf(at+1), p.raws[at-1]))
			}
			return err
		})
		return fmt.Sprint(seq)
	},
	// The end of the chain goes, and the head of the database with it; in some of
	// them the head file too. The log of checkpoints remembers.
	"a truncation of the records": func(t *testing.T, p *past, dir string, rng *rand.Rand) string {
		n := rng.IntN(len(p.raws))
		var sum audit.Hash
		if n > 0 {
			sum = audit.Sum(p.raws[n-1])
		}
		change(t, dir, func(records, hot *bolt.Bucket) error {
			var err error
			for seq := n + 1; seq <= len(p.raws); seq++ {
				err = errors.Join(err, records.Delete(keyOf(seq)))
			}
			return errors.Join(err, hot.Put([]byte("mhead"), append(keyOf(n), sum[:]...)))
		})
		how := [...]string{"with the head file", "without the head file"}[rng.IntN(2)]
		if how == "without the head file" {
			_ = os.Remove(filepath.Join(dir, "haldir.head"))
		}
		return fmt.Sprintf("to %d, %s", n, how)
	},
	// Everything from a record on is written anew, so that the chain is whole.
	"another history": func(t *testing.T, p *past, dir string, rng *rand.Rand) string {
		from := 1 + rng.IntN(len(p.raws))
		change(t, dir, func(records, hot *bolt.Bucket) error {
			var prev audit.Hash
			var all error
			for seq := from; seq <= len(p.raws); seq++ {
				r, err := audit.Decode(p.raws[seq-1])
				if seq > from {
					r.Prev = prev
				}
				r.Agent = "somebody else"
				raw := r.Encode()
				prev = audit.Sum(raw)
				all = errors.Join(all, err, records.Put(keyOf(seq), raw))
			}
			return errors.Join(all, hot.Put([]byte("mhead"), append(keyOf(len(p.raws)), prev[:]...)))
		})
		_ = os.Remove(filepath.Join(dir, "haldir.head"))
		return fmt.Sprintf("from %d on", from)
	},
	"a truncation of the file": func(t *testing.T, p *past, dir string, rng *rand.Rand) string {
		high := used(p.now["haldir.db"])
		size := rng.Int64N(high)
		if err := os.Truncate(filepath.Join(dir, "haldir.db"), size); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("to %d of %d", size, high)
	},
	"a rollback of the file": func(t *testing.T, p *past, dir string, rng *rand.Rand) string {
		old := [...]map[string][]byte{p.start, p.before}[rng.IntN(2)]
		what := [...][]string{{"haldir.db"}, {"haldir.db", "haldir.head"}, {"haldir.db", "haldir.head", "checkpoint.key"}}[rng.IntN(3)]
		for _, name := range what {
			put(t, dir, name, old[name])
		}
		return fmt.Sprint(what)
	},
	"a rollback of something else": func(t *testing.T, p *past, dir string, rng *rand.Rand) string {
		put(t, dir, "checkpoints.log", p.before["checkpoints.log"])
		return "the log of checkpoints"
	},
	"an edit of the head file": func(t *testing.T, p *past, dir string, rng *rand.Rand) string {
		b := bytes.Clone(p.now["haldir.head"])
		i := rng.IntN(len(b) - 1)
		b[i] ^= 1 << rng.IntN(4)
		put(t, dir, "haldir.head", b)
		return fmt.Sprintf("byte %d", i)
	},
	"an edit of the log of checkpoints": func(t *testing.T, p *past, dir string, rng *rand.Rand) string {
		b := bytes.Clone(p.now["checkpoints.log"])
		i, bit := rng.IntN(len(b)), rng.IntN(8)
		b[i] ^= 1 << bit
		put(t, dir, "checkpoints.log", b)
		return fmt.Sprintf("bit %d of byte %d", bit, i)
	},
	"a bit of the file": func(t *testing.T, p *past, dir string, rng *rand.Rand) string {
		b := bytes.Clone(p.now["haldir.db"])
		i := rng.Int64N(used(b))
		b[i] ^= 1 << rng.IntN(8)
		put(t, dir, "haldir.db", b)
		return fmt.Sprintf("byte %d", i)
	},
}

func put(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// used returns how many bytes of a database's file are in use, as its newer meta
// page says.
func used(file []byte) int64 {
	le := binary.NativeEndian
	high, newest := uint64(0), uint64(0)
	for _, page := range [][]byte{file[16:], file[4096+16:]} {
		if txid := le.Uint64(page[48:]); txid >= newest {
			newest, high = txid, le.Uint64(page[40:])
		}
	}
	return int64(high) * 4096
}

func init() { workers["judge"] = judgeTampered }

// judgeTampered is a worker, for a file that somebody has changed may end a
// process. It says what is wrong with a directory, nothing if all is well.
func judgeTampered([]byte) error {
	var dir string
	for {
		if _, err := fmt.Scanln(&dir); err != nil {
			return nil //nolint:nilerr // the parent has ended
		}
		l, err := ledger.Open(ledger.Options{Dir: dir, NoSync: true, Clock: time.Now, Logger: zerolog.Nop()})
		if err == nil {
			_, err = l.Verify(context.Background(), nil)
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			_ = l.Close(ctx)
			cancel()
		}
		said := ""
		if err != nil {
			said = fmt.Sprintf("%.200q", err)
		}
		fmt.Println(said)
	}
}

// Each single thing that somebody does to the records or the files is found. Bits
// of the file that no record is in are another matter: the index, the counters
// and what is free are no part of the chain. There, nothing may come of it but an
// error or the records as they are.
func TestEveryTamperOfTheFilesIsFound(t *testing.T) {
	n := 5 * len(tampers)
	if soaking {
		n = 1000
	}
	p := newPast(t)
	root := t.TempDir()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	names := slices.Sorted(maps.Keys(tampers))
	count := map[string]int{}
	var judge *process
	for i := range n {
		dir := filepath.Join(root, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, b := range p.now {
			put(t, dir, name, b)
		}
		name := names[i%len(names)]
		what := tampers[name](t, p, dir, rng)
		if what == "" {
			continue
		}
		if judge == nil {
			judge = spawn(t, "judge", nil)
		}
		judge.say(dir)
		tooLong := time.AfterFunc(20*time.Second*slowdown, func() { _ = judge.cmd.Process.Kill() })
		said, alive := judge.line()
		tooLong.Stop()
		switch {
		case !alive:
			err := judge.wait()
			t.Errorf("%s (%s) ended the process, or kept it for 20 s: %v: %.300s", name, what, err, judge.errors)
			judge = nil
		case said != "":
			count[name+": found"]++
		case name == "a bit of the file" && p.unharmed(dir):
			count[name+": the records are as they were"]++
		default:
			t.Errorf("%s (%s) was not found", name, what)
		}
		_ = os.RemoveAll(dir)
	}
	for _, k := range slices.Sorted(maps.Keys(count)) {
		t.Logf("%4d × %s", count[k], k)
	}
}

// unharmed reports whether the records are what they were.
func (p *past) unharmed(dir string) bool {
	l, err := ledger.Open(ledger.Options{Dir: dir, NoSync: true, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		return false
	}
	defer func() { _ = l.Close(context.Background()) }()
	var raws [][]byte
	_, _, err = l.Walk(context.Background(), 0, func(_ uint64, raw []byte) error {
		raws = append(raws, raw)
		return nil
	})
	return err == nil && slices.EqualFunc(raws, p.raws, bytes.Equal)
}

// However processes share a ledger, die and come back, verification raises no
// alarm while nobody tampers.
func TestHonestRunsRaiseNoAlarm(t *testing.T) {
	n := 20
	if soaking {
		n = 1000
	}
	if slowdown > 1 {
		n /= 4
	}
	e := engine(t, shop())
	seed := uint64(time.Now().UnixNano())
	for i := range n {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		dir := filepath.Join(t.TempDir(), "state")
		var kept []audit.Checkpoint
		for range 1 + rng.IntN(3) { // generations
			var mu sync.Mutex
			var wg sync.WaitGroup
			for range 1 + rng.IntN(3) { // each of them a process of its own, as far as the ledger knows
				calls, every, left := 1+rng.IntN(12), 1+rng.IntN(5), rng.IntN(4)
				wg.Go(func() {
					l, err := ledger.Open(ledger.Options{Dir: dir, NoSync: true, Clock: time.Now, Logger: zerolog.Nop()})
					if err != nil {
						t.Error(err)
						return
					}
					ctx := context.Background()
					for j := range calls {
						ticket, d, err := l.Reserve(ctx, call("ses_a", []string{"look", "tip", "steal"}[j%3], `{}`), e)
						if err != nil {
							t.Errorf("Reserve: %v", err)
						}
						if d.Verdict == policy.Allow && j != left { // one may stay open
							l.Settle(ticket, ledger.Outcome{Result: ledger.Result(j % 6)})
						}
						if j%every == 0 {
							if _, err := l.Verify(ctx, nil); err != nil {
								t.Errorf("run %d of seed %d, meanwhile: %v", i, seed, err)
							}
						}
						if j%5 == 4 {
							if _, err := l.Prove(ctx, 1); err != nil {
								t.Errorf("Prove: %v", err)
							}
						}
					}
					list, _, err := l.Checkpoints(ctx)
					if err := errors.Join(err, l.Close(ctx)); err != nil {
						t.Error(err)
					}
					mu.Lock()
					kept = append(kept, list...)
					mu.Unlock()
				})
			}
			wg.Wait()
		}
		l, err := ledger.Open(ledger.Options{Dir: dir, NoSync: true, Clock: time.Now, Logger: zerolog.Nop()})
		if err != nil {
			t.Fatal(err)
		}
		// Also against the checkpoints that somebody has copied on the way.
		if _, err := l.Verify(context.Background(), nil, kept...); err != nil {
			t.Errorf("run %d of seed %d: %v", i, seed, err)
		}
		if err := l.Close(context.Background()); err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
		if t.Failed() {
			return
		}
	}
}
