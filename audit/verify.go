package audit

import (
	"bytes"
	"fmt"
	"slices"
	"time"
)

// DamageKind names what was done to a chain.
type DamageKind string

// The kinds of damage that the chain itself shows.
const (
	DamageUnreadable DamageKind = "unreadable" // the bytes are no record
	DamageEdit       DamageKind = "edit"       // a record was changed after it was written
	DamageDeletion   DamageKind = "deletion"   // records are missing
	DamageReorder    DamageKind = "reorder"    // a record stands in the wrong place
	DamageTruncation DamageKind = "truncation" // the end is missing
	DamageInsertion  DamageKind = "insertion"  // a record was put in
	DamagePruning    DamageKind = "pruning"    // the chain does not begin where the records say that it was pruned
)

// The kinds of damage that checkpoints show.
const (
	DamageRollback   DamageKind = "rollback"   // an older copy of the database was put back
	DamageFork       DamageKind = "fork"       // the chain is whole, but not the one that was signed
	DamageCheckpoint DamageKind = "checkpoint" // a checkpoint, or the log of them, was changed
)

// Damage is the first thing wrong with a chain.
type Damage struct {
	Seq    uint64     `json:"seq,omitempty"` // of the first bad record; 0 if it is none in particular
	Kind   DamageKind `json:"kind"`
	Detail string     `json:"detail"`
}

func (d *Damage) Error() string {
	if d.Seq == 0 {
		return fmt.Sprintf("audit: %s: %s", d.Kind, d.Detail)
	}
	return fmt.Sprintf("audit record %d: %s: %s", d.Seq, d.Kind, d.Detail)
}

// Verifier checks a chain record by record. The zero value begins at the first
// record. It is for one goroutine.
type Verifier struct {
	count uint64
	head  Hash
	last  Record
	tree  Tree
	// Checkpoints are compared with the chain as it passes by: they must be
	// sorted by size. Those that the chain has passed are dropped.
	Checkpoints []Checkpoint
	agreed      uint64 // the size of the last checkpoint that matched
	begun       Pruned // what was gone at the beginning
	told        *Pruning
	skipped     int
	signed      time.Time
	matched     int
	// fault is what is wrong with a record, as those after it show. It is called
	// with each of them until it returns an error; nil stands for one that cannot
	// be read, or for the end, where it must. sum is the hash of the last record.
	fault func(next *Record) error
	sum   Hash
}

// Begin has v start after what is gone of a chain, before the first record is added and
// with the checkpoints in their place: one of them must be over exactly those records.
// Those that are over fewer cannot be compared with anything.
func (v *Verifier) Begin(p Pruned) error {
	if p.Size == 0 && p.sound() {
		return nil
	}
	signed := false
	for _, c := range v.Checkpoints {
		signed = signed || c.Size == p.Size && p.sound() && c.Root == p.Root() && c.Head == p.Head
		if c.Size < p.Size {
			v.skipped++
		}
	}
	if !signed {
		return &Damage{0, DamagePruning, fmt.Sprintf("the database says that it has no records before %d, but what it knows of them was never signed: "+
			"the beginning was removed or changed", p.Size+1)}
	}
	v.begun, v.count, v.head = p, p.Size, p.Head
	v.tree = Tree{Size: p.Size, Peaks: slices.Clone(p.Peaks)}
	return v.compare()
}

// Add checks the next stored record: key is the number it is stored under. The
// error is a [*Damage]; after one the verifier must not be used again. What is
// wrong can sometimes be told only by the records after it, so the error may come
// later, or from Finish.
func (v *Verifier) Add(key uint64, encoded []byte) error {
	want := v.count + 1
	r, err := Decode(encoded)
	readable := err == nil && bytes.Equal(r.Encode(), encoded)
	if v.fault != nil {
		if !readable {
			return v.fault(nil)
		}
		return v.fault(&r)
	}
	if key != want {
		if key > want {
			return &Damage{want, DamageDeletion, fmt.Sprintf("%d record(s) are missing; the next is %d", key-want, key)}
		}
		return &Damage{key, DamageReorder, fmt.Sprintf("record %d was expected here", want)}
	}
	switch {
	case err != nil:
		return &Damage{want, DamageUnreadable, err.Error()}
	case !readable:
		return &Damage{want, DamageUnreadable, "the bytes are not in canonical form"}
	case r.Seq != want && r.Prev == v.head: // in its place but for its number
		return &Damage{want, DamageEdit, fmt.Sprintf("it says that it is number %d", r.Seq)}
	case r.Seq < want:
		return &Damage{r.Seq, DamageInsertion, fmt.Sprintf("%d record(s) were put in; the one stored as %d says that it is number %d", want-r.Seq, want, r.Seq)}
	case r.Seq > want:
		v.fault = func(next *Record) error {
			switch {
			case next == nil:
				return &Damage{want, DamageDeletion, fmt.Sprintf("%d record(s) are missing; the one stored here says that it is number %d", r.Seq-want, r.Seq)}
			case next.Seq == want:
				return &Damage{want, DamageReorder, fmt.Sprintf("the record stored here says that it is number %d; number %d comes later", r.Seq, want)}
			}
			return nil // it may still come
		}
	case r.Prev != v.head:
		before, sum := v.head, Sum(encoded)
		v.sum = sum
		v.fault = func(next *Record) error {
			if want == 1 || next == nil || next.Prev != sum {
				return &Damage{want, DamageEdit, fmt.Sprintf("it says that it was written after %s, but the record before is %s", r.Prev, before)}
			}
			return &Damage{want - 1, DamageEdit, fmt.Sprintf("its hash is %s, but record %d was written after %s", before, want, r.Prev)}
		}
	case r.Time.Before(v.last.Time) && (r.Kind != KindLedger || r.Status != StatusClockReset):
		return &Damage{want, DamageEdit, "its time is before that of the record before"}
	}
	v.count, v.head, v.last = want, Sum(encoded), r
	v.tree.Add(v.head)
	switch told, err := r.pruning(); {
	case err != nil && v.fault == nil:
		return &Damage{want, DamagePruning, err.Error()}
	case told != nil && v.told != nil && told.From != v.told.To+1:
		return &Damage{want, DamagePruning, fmt.Sprintf("it says that records were pruned from %d on, but they were up to %d before", told.From, v.told.To)}
	case told != nil:
		v.told = told
	}
	if v.fault != nil {
		return nil
	}
	return v.compare()
}

// compare checks the checkpoints over exactly the records so far.
func (v *Verifier) compare() error {
	for len(v.Checkpoints) > 0 && v.Checkpoints[0].Size <= v.count {
		c := v.Checkpoints[0]
		v.Checkpoints = v.Checkpoints[1:]
		if c.Size == v.count && (c.Root != v.tree.Root() || c.Head != v.head) {
			return &Damage{v.agreed + 1, DamageFork, fmt.Sprintf(
				"the chain is whole, but record(s) %d to %d are not those that the checkpoint of %s was signed over",
				v.agreed+1, c.Size, c.Time.Format("2006-01-02 15:04:05Z"))}
		}
		if c.Size == v.count {
			v.agreed, v.signed = c.Size, c.Time
			v.matched++
		}
	}
	return nil
}

// Finish compares the end of the chain with the head that was stored with it.
func (v *Verifier) Finish(headSeq uint64, head Hash) error {
	if v.fault != nil { // in the last record: the head takes the place of the next
		if v.sum == head {
			return v.fault(&Record{Prev: head})
		}
		return v.fault(nil)
	}
	switch {
	case v.count < headSeq:
		return &Damage{v.count + 1, DamageTruncation, fmt.Sprintf("the chain ends at %d, the head says %d", v.count, headSeq)}
	case v.count > headSeq:
		return &Damage{headSeq + 1, DamageEdit, fmt.Sprintf("the chain goes on to %d, the head says %d", v.count, headSeq)}
	case v.head != head:
		return &Damage{v.count, DamageEdit, "its hash is not that of the head"}
	case len(v.Checkpoints) > 0:
		c := v.Checkpoints[len(v.Checkpoints)-1]
		return &Damage{v.count + 1, DamageRollback, fmt.Sprintf("the chain ends at %d, but a checkpoint over %d records was signed at %s: "+
			"an older copy was put back, or the end and the head were removed", v.count, c.Size, c.Time.Format("2006-01-02 15:04:05Z"))}
	}
	return v.pruned()
}

// pruned compares what is gone with what the chain tells of it.
func (v *Verifier) pruned() error {
	var to uint64
	if v.told != nil {
		to = v.told.To
	}
	switch from := v.begun.Size; {
	case from > to:
		return &Damage{to + 1, DamageDeletion, fmt.Sprintf("%d record(s) are missing at the beginning: no record tells that more than the first %d were pruned", from-to, to)}
	case from < to:
		return &Damage{0, DamagePruning, fmt.Sprintf("the first %d records were pruned, as a record tells, but the database begins at %d", to, from+1)}
	case to > 0 && (v.told.Root != v.begun.Root() || v.told.Head != v.begun.Head):
		return &Damage{0, DamagePruning, fmt.Sprintf("what the database knows of the first %d records is not what a record tells of them", to)}
	}
	return nil
}

// Skipped returns how many checkpoints were over fewer records than are gone.
func (v *Verifier) Skipped() int { return v.skipped }

// Pruned returns how many records are gone at the beginning.
func (v *Verifier) Pruned() uint64 { return v.begun.Size }

// Count returns how many records were added.
func (v *Verifier) Count() uint64 { return v.count - v.begun.Size }

// Agreed returns how many of them are under the largest checkpoint that matched.
func (v *Verifier) Agreed() uint64 { return max(v.agreed, v.begun.Size) - v.begun.Size }

// Signed returns how many checkpoints matched, and when the last of them was signed.
func (v *Verifier) Signed() (n int, last time.Time) { return v.matched, v.signed }

// Head returns the hash of the last record added.
func (v *Verifier) Head() Hash { return v.head }
