package ledger_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"io"
	"os"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// format2 is a state directory as a haldir of format 2 has left it when it was killed: 14
// calls and what became of them, three of them open, and a session that was revoked.
func format2(t *testing.T) string {
	t.Helper()
	dir := stateDir(t)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	packed, err := os.Open("testdata/format2/haldir.db.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = packed.Close() }()
	z, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	db, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	head, err := os.ReadFile("testdata/format2/haldir.head")
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "haldir.db", db)
	write(t, dir, "haldir.head", head)
	return dir
}

// A file of the format before is brought up to date by whoever uses it first, and nothing of
// it is lost.
func TestAFileOfFormat2IsBroughtUpToDate(t *testing.T) {
	dir, clock := format2(t), newClock()
	clock.add(30 * time.Minute)
	var before map[string][]byte
	inspect(t, dir, func(tx *bolt.Tx) {
		if v := space(tx, 'm')["version"]; binary.BigEndian.Uint64(v) != 2 || tx.Bucket([]byte("approvals")) != nil {
			t.Fatalf("it is of format %x", v)
		}
		before = map[string][]byte{}
		_ = tx.Bucket([]byte("audit")).ForEach(func(k, v []byte) error { before[string(k)] = bytes.Clone(v); return nil })
	})
	l := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	if n := verify(t, l); n != 32 { // with the three outcomes of a process that had died
		t.Errorf("%d records", n)
	}
	count := map[audit.Status]int{}
	for _, en := range entries(t, l) {
		count[en.Status]++
	}
	if count[audit.StatusAbandoned] != 3 || count[audit.StatusDenied] != 1 || count[audit.StatusAllowed] != 2 || count[audit.StatusCancelled] != 2 || count[audit.StatusError] != 6 {
		t.Errorf("the audit has %v", count)
	}
	e := engine(t, shop())
	if sp := spent(t, l, ledger.Use{ID: "ses_a"}, e); sp.Total != 49*policy.USD || sp.Calls != 9 {
		t.Errorf("%s are spent in %d calls", sp.Total, sp.Calls)
	}
	if _, d := reserve(t, l, pay("ses_revoked", "1"), e); d.Policy != policy.PolicySession {
		t.Errorf("the session that was revoked: %v", d.Verdict)
	}
	if _, d := reserve(t, l, pay("ses_a", "60"), e); d.Policy != string(policy.TypeSpendLimit) {
		t.Errorf("what was spent before is forgotten: %v %s", d.Verdict, d.Policy)
	}
	asking := engine(t, needy())
	a := drop("ses_a", `{}`)
	answerTo(t, l, asks(t, l, a, asking).Approval, ledger.Answer{Allow: true, ForSession: true})
	if _, d := reserve(t, l, a, asking); d.Verdict != policy.Allow {
		t.Errorf("%v: %s", d.Verdict, d.Reason)
	}
	verify(t, l)
	closeLedger(t, l)
	inspect(t, dir, func(tx *bolt.Tx) {
		if v := space(tx, 'm')["version"]; binary.BigEndian.Uint64(v) != ledger.FormatVersion {
			t.Errorf("it is of format %x now", v)
		}
		for k, v := range before {
			if !bytes.Equal(tx.Bucket([]byte("audit")).Get([]byte(k)), v) {
				t.Errorf("record %x was changed", k)
			}
		}
	})
}

// A damaged file of format 2 is refused, and recovered like any.
func TestADamagedFileOfFormat2IsRecovered(t *testing.T) {
	dir, clock := format2(t), newClock()
	clock.add(30 * time.Minute)
	tear(t, dir)
	l := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	if _, err := l.Verify(context.Background(), nil); err == nil {
		t.Error("the missing record is not missed")
	}
	closeLedger(t, l)
	recovered(t, dir, clock.now)
	l = open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	asks(t, l, fresh(call("ses_new", "once", `{}`)), engine(t, needy()))
	verify(t, l)
}
