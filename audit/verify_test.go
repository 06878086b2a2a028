package audit_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/audit"
)

// stored is a chain as a file holds it: records under their keys, and the head.
type stored struct {
	keys []uint64
	raws [][]byte
	seq  uint64
	head audit.Hash
}

func store(raws [][]byte) stored {
	s := stored{raws: raws, seq: uint64(len(raws))}
	for i := range raws {
		s.keys = append(s.keys, uint64(i)+1)
	}
	if n := len(raws); n > 0 {
		s.head = audit.Sum(raws[n-1])
	}
	return s
}

func (s stored) clone() stored {
	s.keys, s.raws = slices.Clone(s.keys), slices.Clone(s.raws)
	return s
}

// verify reads s as the ledger does and returns the damage, nil if none.
func (s stored) verify(t *testing.T) *audit.Damage {
	t.Helper()
	var v audit.Verifier
	err := func() error {
		for i, raw := range s.raws {
			if err := v.Add(s.keys[i], raw); err != nil {
				return err
			}
		}
		return v.Finish(s.seq, s.head)
	}()
	if err == nil {
		return nil
	}
	var d *audit.Damage
	if !errors.As(err, &d) {
		t.Fatalf("the error is no *audit.Damage: %v", err)
	}
	return d
}

func reseal(t *testing.T, raw []byte, change func(*audit.Record)) []byte {
	t.Helper()
	r, err := audit.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	change(&r)
	return r.Encode()
}

func TestHonestChainsRaiseNoAlarm(t *testing.T) {
	for n := range 100 {
		if d := store(chain(n)).verify(t); d != nil {
			t.Errorf("a chain of %d: %v", n, d)
		}
	}
	// The clock may stand still but not run backwards.
	one := audit.Record{Seq: 1, Time: began}
	two := audit.Record{Seq: 2, Time: began, Prev: audit.Sum(one.Encode())}
	if d := store([][]byte{one.Encode(), two.Encode()}).verify(t); d != nil {
		t.Error(d)
	}
}

// link is where the Prev field of a record of the test chain begins: the format,
// a sequence of one byte with its length, the length of the hash.
const link = 1 + 2 + 1

// A thousand single tampers, each of one kind at a random place: every one must
// be found, and named at the record where it happened.
func TestEveryTamperIsFoundAndNamed(t *testing.T) {
	const n = 200
	honest := store(chain(n))
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 1000 {
		s := honest.clone()
		k := 1 + rng.IntN(n) // the record that is tampered with
		at := k - 1
		var what string
		var kinds []audit.DamageKind
		want := uint64(k)
		switch i % 8 {
		case 0:
			what = "a flipped bit"
			kinds = []audit.DamageKind{audit.DamageEdit, audit.DamageUnreadable}
			raw := bytes.Clone(s.raws[at])
			pos := link + 32 + rng.IntN(len(raw)-link-32) // the fields before have their own tests
			raw[pos] ^= 1 << rng.IntN(8)
			s.raws[at] = raw
		case 1:
			what = "an edited field"
			kinds = []audit.DamageKind{audit.DamageEdit}
			s.raws[at] = reseal(t, s.raws[at], func(r *audit.Record) {
				switch rng.IntN(5) {
				case 0:
					r.Tool += "x"
				case 1:
					r.Cost++
				case 2:
					r.Status = audit.StatusCancelled
				case 3:
					r.Time = r.Time.Add(time.Second)
				case 4:
					r.Flagged = !r.Flagged
				}
			})
		case 2:
			what = "a deleted record"
			kinds = []audit.DamageKind{audit.DamageDeletion}
			if k == n { // without its last record the chain is truncated
				kinds = []audit.DamageKind{audit.DamageTruncation}
			}
			s.keys, s.raws = slices.Delete(s.keys, at, at+1), slices.Delete(s.raws, at, at+1)
		case 3:
			what = "a truncated chain"
			kinds = []audit.DamageKind{audit.DamageTruncation}
			s.keys, s.raws = s.keys[:at], s.raws[:at]
		case 4:
			what = "two records exchanged"
			kinds = []audit.DamageKind{audit.DamageReorder}
			other := rng.IntN(n)
			if other == at {
				other = (at + 1) % n
			}
			s.raws[at], s.raws[other] = s.raws[other], s.raws[at]
			want = uint64(min(at, other)) + 1
		case 5:
			what = "a record moved to another place"
			kinds = []audit.DamageKind{audit.DamageReorder}
			to := rng.IntN(n)
			if to == at {
				to = (at + 1) % n
			}
			raw := s.raws[at]
			s.raws = slices.Insert(slices.Delete(s.raws, at, at+1), to, raw)
			want = uint64(min(at, to)) + 1
		case 6:
			what = "a record cut short"
			kinds = []audit.DamageKind{audit.DamageUnreadable}
			s.raws[at] = s.raws[at][:rng.IntN(len(s.raws[at]))]
		case 7:
			what = "a range deleted"
			kinds = []audit.DamageKind{audit.DamageDeletion}
			end := min(n, at+1+rng.IntN(20))
			if end == n {
				kinds = []audit.DamageKind{audit.DamageTruncation}
			}
			s.keys, s.raws = slices.Delete(s.keys, at, end), slices.Delete(s.raws, at, end)
		}
		d := s.verify(t)
		if d == nil {
			t.Errorf("tamper %d: %s at %d was not found", i, what, k)
			continue
		}
		if d.Seq != want || !slices.Contains(kinds, d.Kind) {
			t.Errorf("tamper %d: %s at %d: got %v at %d, want one of %v at %d", i, what, k, d.Kind, d.Seq, kinds, want)
		}
	}
}

// The format byte, the number and the lengths before the link, bit by bit.
func TestEveryBitBeforeTheLinkIsGuarded(t *testing.T) {
	honest := store(chain(5))
	for k := 1; k <= 5; k++ {
		for bit := range link * 8 {
			s := honest.clone()
			s.raws[k-1] = bytes.Clone(s.raws[k-1])
			s.raws[k-1][bit/8] ^= 1 << (bit % 8)
			if d := s.verify(t); d == nil || d.Seq != uint64(k) {
				t.Errorf("bit %d of record %d: %v", bit, k, d)
			}
		}
	}
}

// The links of a chain can be tampered with like any field. Only the record
// after the next tells which of two neighbours was changed: if that one's link
// fits the record in between, the one in between is as it was written.
func TestAnEditOfARecordsLinkIsNamedAtThatRecord(t *testing.T) {
	honest := store(chain(50))
	for k := 2; k < 50; k++ {
		s := honest.clone()
		raw := bytes.Clone(s.raws[k-1])
		raw[link+k%32] ^= 0x10
		s.raws[k-1] = raw
		d := s.verify(t)
		if d == nil {
			t.Fatalf("an edited link at %d was not found", k)
		}
		if d.Seq != uint64(k) {
			t.Fatalf("the link of record %d was changed and record %d is named: %v", k, d.Seq, d)
		}
	}
}

// Of the first record's link there is nothing before it to blame.
func TestAnEditOfTheFirstLinkIsNamedAtTheFirstRecord(t *testing.T) {
	s := store(chain(5))
	s.raws[0] = reseal(t, s.raws[0], func(r *audit.Record) { r.Prev = audit.Sum([]byte("elsewhere")) })
	if d := s.verify(t); d == nil || d.Seq != 1 {
		t.Errorf("got %v", d)
	}
}

// A forged record is put in at k and what follows moves up by one. It is linked
// to the record before it, as whoever forges one would see to.
func insertions(t *testing.T, check func(t *testing.T, k int, d *audit.Damage)) {
	t.Helper()
	honest := store(chain(50))
	for k := 1; k <= 50; k++ {
		forged := reseal(t, honest.raws[k-1], func(r *audit.Record) { r.Tool, r.Status = "innocent", audit.StatusDenied })
		s := store(slices.Insert(slices.Clone(honest.raws), k-1, forged))
		s.head = honest.head // of the true last record
		s.seq = honest.seq + 1
		check(t, k, s.verify(t))
	}
}

func TestAnInsertedRecordIsFoundAtOrRightAfterItsPlace(t *testing.T) {
	insertions(t, func(t *testing.T, k int, d *audit.Damage) {
		if d == nil {
			t.Fatalf("a record inserted at %d was not found", k)
		}
		if d.Seq != uint64(k) && d.Seq != uint64(k)+1 {
			t.Fatalf("a record inserted at %d: %v", k, d)
		}
	})
}

// The design has verify tell insertions apart from the rest and name the first
// bad record, which is the inserted one: the record after it says that it has
// the same number and is linked to the same record before.
func TestAnInsertedRecordIsNamedAsInserted(t *testing.T) {
	insertions(t, func(t *testing.T, k int, d *audit.Damage) {
		if d == nil || d.Seq != uint64(k) || d.Kind != "insertion" {
			t.Fatalf("a record inserted at %d: got %v, want an insertion at %d", k, d, k)
		}
	})
}

// A copy of a record is an insertion, too; which of the two is the copy nobody
// can tell.
func TestARecordThatStandsTwiceIsFound(t *testing.T) {
	honest := store(chain(20))
	for k := 1; k <= 20; k++ {
		s := store(slices.Insert(slices.Clone(honest.raws), k, honest.raws[k-1]))
		if d := s.verify(t); d == nil || d.Seq != uint64(k) && d.Seq != uint64(k)+1 {
			t.Fatalf("record %d twice: %v", k, d)
		}
	}
}

// Whoever deletes a record can renumber the keys of those that follow, but not
// the records themselves.
func TestADeletionWithTheKeysClosedUpIsFoundAtItsPlace(t *testing.T) {
	honest := store(chain(20))
	for k := 1; k < 20; k++ {
		s := store(slices.Delete(slices.Clone(honest.raws), k-1, k))
		d := s.verify(t)
		if d == nil || d.Seq != uint64(k) {
			t.Fatalf("record %d deleted: %v", k, d)
		}
		t.Logf("record %d: %s", k, d.Kind) // deletion would be the better word
	}
}

func TestRecordsBeyondTheHeadAreFound(t *testing.T) {
	s := store(chain(20))
	s.seq, s.head = 15, audit.Sum(s.raws[14])
	if d := s.verify(t); d == nil || d.Seq != 16 {
		t.Errorf("got %v, want damage at 16", d)
	}
}

func TestAHeadThatIsNotTheLastRecordsHashIsFound(t *testing.T) {
	s := store(chain(20))
	s.head[0] ^= 1
	if d := s.verify(t); d == nil || d.Seq != 20 {
		t.Errorf("got %v, want damage at 20", d)
	}
}

func TestAnEditWithAllLaterLinksMadeAnewIsFoundByTheHead(t *testing.T) {
	s := store(chain(30))
	s.raws[10] = reseal(t, s.raws[10], func(r *audit.Record) { r.Cost++ })
	for i := 11; i < len(s.raws); i++ {
		s.raws[i] = reseal(t, s.raws[i], func(r *audit.Record) { r.Prev = audit.Sum(s.raws[i-1]) })
	}
	if d := s.verify(t); d == nil {
		t.Error("a chain forged from record 11 on passes although the head is the old one")
	}
}

// A record that carries an earlier time than the one before, correctly linked:
// the ledger's clock never runs backwards.
func TestATimeThatRunsBackwardsIsFound(t *testing.T) {
	one := audit.Record{Seq: 1, Time: began}
	two := audit.Record{Seq: 2, Time: began.Add(-time.Nanosecond), Prev: audit.Sum(one.Encode())}
	if d := store([][]byte{one.Encode(), two.Encode()}).verify(t); d == nil || d.Seq != 2 {
		t.Errorf("got %v, want damage at 2", d)
	}
}
