package ledger_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
)

// archived makes a database of the first format with n records, quickly.
func archived(b *testing.B, n int) (dir string) {
	b.Helper()
	dir = filepath.Join(b.TempDir(), "state")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(dir, "haldir.db"), 0o600, &bolt.Options{NoSync: true, PageSize: 4096})
	if err != nil {
		b.Fatal(err)
	}
	var prev audit.Hash
	key := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	at := newClock().now()
	for seq := uint64(1); seq <= uint64(n); {
		err := db.Update(func(tx *bolt.Tx) error {
			var err error
			bucket := func(name string) *bolt.Bucket {
				b, e := tx.CreateBucketIfNotExists([]byte(name))
				err = errors.Join(err, e)
				return b
			}
			hot, records, outcomes, _ := bucket("hot"), bucket("audit"), bucket("outcomes"), bucket("catalogue")
			records.FillPercent, outcomes.FillPercent = 0.95, 0.95
			for range 20_000 {
				i := int(seq)
				r := audit.Record{
					Seq: seq, Prev: prev, Time: at.Add(time.Duration(seq) * time.Second), Kind: audit.KindAttempt, Status: audit.StatusRunning,
					CallID: fmt.Sprintf("aaaabbbbccccdddd-%016d", i), Session: fmt.Sprintf("ses_%d", i/2%1000), Agent: []string{"bot", "other"}[i/14%2],
					Upstream: []string{"shop", "files"}[i/2%2], Tool: []string{"pay", "look", "ask"}[i/2%3], Arguments: []byte(`{"path":"/tmp/something"}`),
				}
				if seq%2 == 0 {
					r = audit.Record{Seq: seq, Prev: prev, Time: r.Time, Kind: audit.KindOutcome, Status: audit.StatusAllowed, Ref: seq - 1, CallID: r.CallID}
					if i%200_000 == 100 {
						r.Status, r.Flagged, r.FlagReason = audit.StatusError, true, "odd"
					}
					err = errors.Join(err, outcomes.Put(key(r.Ref), key(seq)))
				}
				raw := r.Encode()
				err = errors.Join(err, records.Put(key(seq), raw))
				prev = audit.Sum(raw)
				seq++
			}
			return errors.Join(err, hot.Put([]byte("mid"), []byte("x")), hot.Put([]byte("mversion"), key(1)), hot.Put([]byte("mhead"), append(key(seq-1), prev[:]...)))
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	return dir
}

// BenchmarkFind takes pages of 50 out of 1,000,000 records.
func BenchmarkFind(b *testing.B) {
	dir := archived(b, 1_000_000)
	l := open(b, ledger.Options{Dir: dir, NoSync: true, Clock: time.Now})
	begin := time.Now()
	if _, err := l.Stats(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.Logf("the first opening, which makes the index, and a read of all records took %v", time.Since(begin))
	middle := newClock().now().Add(500_000 * time.Second)
	for name, f := range map[string]audit.Filter{
		"all": {}, "session": {Session: "ses_8"}, "agent": {Agent: "other"}, "upstream": {Upstream: "shop"}, "tool": {Tool: "shop/pay"},
		"own name": {Tool: "pay"}, "status": {Status: audit.StatusAllowed}, "rare status": {Status: audit.StatusError}, "flagged": {Flagged: true},
		"since": {Since: middle}, "until": {Until: middle}, "deep": {Before: 1000}, "deep in a session": {Session: "ses_8", Before: 50_000},
		"nothing": {Session: "ses_none"}, "two that never meet": {Session: "ses_8", Upstream: "shop", Tool: "pay", Status: audit.StatusRunning, Agent: "bot"},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, _, err := l.Find(context.Background(), f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
