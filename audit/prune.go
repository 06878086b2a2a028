package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"time"
)

// Pruned is the beginning of a chain that is not kept any more: how many records, the
// tree over them, and the hash of the last of them. The zero value is a chain that is
// there from its first record on.
type Pruned struct {
	Tree
	Head Hash `json:"head"`
}

// ErrPruned says that what was asked for is among the records that are not kept.
var ErrPruned = errors.New("it was pruned")

// sound reports whether the parts of p fit together.
func (p *Pruned) sound() bool {
	return len(p.Peaks) == bits.OnesCount64(p.Size) && p.Head.IsZero() == (p.Size == 0)
}

// part returns the tree over what is gone of the records after the first from, up to the
// first to. The roots of the complete subtrees are all that is known, so that not every
// part can be had.
func (p *Pruned) part(from, to uint64) (Tree, error) {
	var t Tree
	at := uint64(0)
	for i, n := 0, p.Size; n > 0; i++ {
		size := uint64(1) << (bits.Len64(n) - 1)
		if at >= from && at+size <= to {
			t.Size += size
			t.Peaks = append(t.Peaks, p.Peaks[i])
		}
		at, n = at+size, n-size
	}
	if t.Size != min(to, p.Size)-from {
		return Tree{}, fmt.Errorf("records %d to %d: %w, and its hash is not known", from+1, to, ErrPruned)
	}
	return t, nil
}

// Pruning is what a record of the status [StatusPruned] has as its arguments: the chain
// itself tells what is not kept any more.
type Pruning struct {
	From   uint64    `json:"from"`   // the first record that went with it
	To     uint64    `json:"to"`     // the last; all before From had gone already
	Root   Hash      `json:"root"`   // of the tree over the first To records
	Head   Hash      `json:"head"`   // the hash of record To
	Signed time.Time `json:"signed"` // when the checkpoint over To records was
	Retain string    `json:"retain"` // the setting: what is younger was kept
}

// pruning reads what a record tells of pruning; nil if it is about something else.
func (r *Record) pruning() (*Pruning, error) {
	if r.Kind != KindLedger || r.Status != StatusPruned {
		return nil, nil //nolint:nilnil // documented
	}
	var p Pruning
	if err := json.Unmarshal(r.Arguments, &p); err != nil {
		return nil, fmt.Errorf("it does not say what was pruned: %w", err)
	}
	retain, err := time.ParseDuration(p.Retain)
	switch {
	case err != nil || p.From == 0 || p.From > p.To || p.To >= r.Seq:
		return nil, errors.New("it does not say what was pruned")
	case p.Signed.Add(retain).After(r.Time):
		return nil, fmt.Errorf("it says that records were pruned that were younger than %s", p.Retain)
	}
	return &p, nil
}

// PrunedTo returns the number of the last record that was gone when r was written, 0 if r
// does not tell.
func (r *Record) PrunedTo() uint64 {
	if p, err := r.pruning(); err == nil && p != nil {
		return p.To
	}
	return 0
}
