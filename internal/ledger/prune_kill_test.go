//go:build unix

package ledger_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

func init() { workers["archivist"] = keepLittle }

// swift is a clock by which a second is twelve days.
func swift(began time.Time) func() time.Time {
	return func() time.Time { return began.Add(time.Since(began) * 12 * 24 * 60 * 60) }
}

type archivistConfig struct {
	Dir     string
	Began   time.Time
	Seed    uint64
	Compact bool // over and over
	Synced  bool
}

func (c archivistConfig) open() (*ledger.Ledger, error) {
	return ledger.Open(ledger.Options{
		Dir: c.Dir, NoSync: !c.Synced, Clock: swift(c.Began), Logger: zerolog.Nop(),
		Retention: &ledger.Retention{Place: c.Dir, Keep: 2 * day, Last: 50},
	})
}

// keepLittle is a worker that makes calls, or compacts the file, until it is killed, and says
// what the ledger has promised.
func keepLittle(raw []byte) error {
	var c archivistConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	e, err := policy.Compile(rulesets["figures"]())
	if err != nil {
		return err
	}
	l, err := c.open()
	if err != nil {
		return err
	}
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(os.Stdout, format+"\n", args...) }
	if c.Compact {
		for {
			x, err := l.Compact(context.Background(), true, nil)
			switch {
			case err == nil:
				say("C %d", x.Pruned)
			case !errors.Is(err, ledger.ErrCompacting) && !errors.Is(err, ledger.ErrBusy) && !strings.Contains(err.Error(), "faster than"):
				say("E Compact: %v", err)
			}
		}
	}
	rng := rand.New(rand.NewPCG(c.Seed, 0))
	var wg sync.WaitGroup
	for range 4 {
		seed := rng.Uint64()
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 0))
			for {
				ticket, d, err := l.Reserve(context.Background(), call("ses_a", "look", fmt.Sprintf(`{"text":"%0*d"}`, rng.IntN(2000), 1)), e)
				switch {
				case errors.Is(err, ledger.ErrBusy):
				case err != nil:
					say("E Reserve: %v", err)
				case d.Verdict == policy.Allow:
					say("R %d %s", ticket.Seq, ticket.CallID)
					if rng.IntN(500) > 0 { // else it stays open
						l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
					}
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// archive kill -9: while records are pruned and the file is replaced, nothing that was
// acknowledged is lost but what was pruned, and there is always one whole file. HALDIR_KILLS
// sets how often.
func TestKilledWhilePruningAndCompacting(t *testing.T) {
	n := kills(t) / 4
	c := archivistConfig{Dir: stateDir(t), Began: time.Now().UTC(), Seed: uint64(time.Now().UnixNano())}
	t.Logf("seed %d", c.Seed)
	rng := rand.New(rand.NewPCG(c.Seed, 1))
	l, err := c.open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLedger(t, l) })
	e := engine(t, rulesets["figures"]())
	reserve(t, l, call("ses_a", "steal", `{}`), e)
	if _, err := l.Prove(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	promised := map[uint64]string{} // seq → call id
	compacted := 0
	var readers sync.WaitGroup
	begin := func(i int) *process {
		c := c
		c.Seed, c.Compact, c.Synced = rng.Uint64(), i == 0, rng.IntN(2) == 0
		p := spawn(t, "archivist", c)
		readers.Go(func() {
			for line, ok := p.line(); ok; line, ok = p.line() {
				var seq uint64
				var id string
				mu.Lock()
				switch line[0] {
				case 'R':
					if k, _ := fmt.Sscanf(line, "R %d %s", &seq, &id); k == 2 {
						promised[seq] = id
					}
				case 'C':
					compacted++
				default:
					t.Errorf("a worker says %s", line)
				}
				mu.Unlock()
			}
		})
		return p
	}
	ps := []*process{begin(0), begin(1), begin(2)}
	pruned, missed := uint64(0), 0
	for i := range n {
		time.Sleep(time.Duration(50+rng.IntN(400)) * time.Millisecond)
		k := rng.IntN(len(ps))
		_ = ps[k].cmd.Process.Kill()
		if i%4 == 3 || i == n-1 { // all at once: what is there then is all there is
			for _, p := range ps {
				_ = p.cmd.Process.Kill()
			}
			readers.Wait()
			for _, p := range ps {
				_ = p.wait()
			}
			if _, err := l.Verify(context.Background(), nil); err != nil {
				t.Fatalf("after %d kills: %v", i+1, err)
			}
			pruned = gone(t, l)
			attempts := map[uint64]string{}
			_, _, err := l.Walk(context.Background(), 1, func(seq uint64, raw []byte) error {
				r, err := audit.Decode(raw)
				if err == nil && r.Kind == audit.KindAttempt {
					attempts[seq] = r.CallID
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			for seq, id := range promised {
				if seq > pruned && attempts[seq] != id {
					t.Errorf("record %d of call %s was promised; there is %q, and the first %d are gone", seq, id, attempts[seq], pruned)
				}
			}
			inspect(t, c.Dir, func(tx *bolt.Tx) {
				if k, _ := tx.Bucket([]byte("index")).Cursor().First(); k == nil {
					t.Error("the index is empty")
				}
			})
			for j := range ps {
				ps[j] = begin(j)
			}
			continue
		}
		if k == 0 {
			missed++
		}
		ps[k] = begin(k)
	}
	// On a busy machine each compaction may have been killed so far; the last may end.
	went := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return compacted > 0
	}
	for end := time.Now().Add(hang); !went() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	for _, p := range ps {
		_ = p.cmd.Process.Kill()
	}
	readers.Wait()
	for _, p := range ps {
		_ = p.wait()
	}
	verify(t, l)
	compact(t, l) // whatever the killed ones have left
	verify(t, l)
	t.Logf("%d calls were promised, %d records pruned, %d compactions went through, %d were killed", len(promised), pruned, compacted, missed+n/4)
	if pruned == 0 || compacted == 0 {
		t.Error("nothing was pruned, or never compacted")
	}
	if _, err := os.Stat(filepath.Join(c.Dir, "haldir.db.compact")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is left of the work: %v", err)
	}
}
