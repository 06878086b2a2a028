package audit

import (
	"bytes"
	"fmt"
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
)

// The kinds of damage that checkpoints show.
const (
	DamageRollback   DamageKind = "rollback"   // an older copy of the database was put back
	DamageFork       DamageKind = "fork"       // the chain is whole, but not the one that was signed
	DamageCheckpoint DamageKind = "checkpoint" // a checkpoint, or the log of them, was changed
)

// Damage is the first thing wrong with a chain.
type Damage struct {
	Seq    uint64 // of the first bad record
	Kind   DamageKind
	Detail string
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
}

// Add checks the next stored record: key is the number it is stored under. The
// error is a [*Damage]; after one the verifier must not be used again.
func (v *Verifier) Add(key uint64, encoded []byte) error {
	want := v.count + 1
	if key != want {
		if key > want {
			return &Damage{want, DamageDeletion, fmt.Sprintf("%d record(s) are missing; the next is %d", key-want, key)}
		}
		return &Damage{key, DamageReorder, fmt.Sprintf("record %d was expected here", want)}
	}
	r, err := Decode(encoded)
	if err != nil {
		return &Damage{want, DamageUnreadable, err.Error()}
	}
	switch {
	case !bytes.Equal(r.Encode(), encoded):
		return &Damage{want, DamageUnreadable, "the bytes are not in canonical form"}
	case r.Seq != want:
		return &Damage{want, DamageReorder, fmt.Sprintf("the record stored here says it is number %d", r.Seq)}
	case r.Prev != v.head:
		return &Damage{max(want-1, 1), DamageEdit, fmt.Sprintf("its hash is %s, but record %d was written after %s", v.head, want, r.Prev)}
	case r.Time.Before(v.last.Time):
		return &Damage{want, DamageEdit, "its time is before that of the record before"}
	}
	v.count, v.head, v.last = want, Sum(encoded), r
	v.tree.Add(v.head)
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
			v.agreed = c.Size
		}
	}
	return nil
}

// Finish compares the end of the chain with the head that was stored with it.
func (v *Verifier) Finish(headSeq uint64, head Hash) error {
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
	return nil
}

// Count returns how many records were added.
func (v *Verifier) Count() uint64 { return v.count }

// Agreed returns the size of the largest checkpoint that matched, 0 if none.
func (v *Verifier) Agreed() uint64 { return v.agreed }

// Head returns the hash of the last record added.
func (v *Verifier) Head() Hash { return v.head }
