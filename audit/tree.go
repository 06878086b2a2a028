package audit

import (
	"encoding/hex"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// Tree is the Merkle tree of RFC 6962 section 2.1 over the records in their
// order, as far as they were added. The zero value is empty. It keeps one hash
// for each bit of its size that is set, so it can be stored with little.
type Tree struct {
	Size  uint64 `json:"size"`
	Peaks []Hash `json:"peaks"` // roots of the complete subtrees, the largest first
}

// Add appends the leaf hash ([Sum]) of the next record.
func (t *Tree) Add(leaf Hash) {
	peaks := t.Peaks
	for n := t.Size; n&1 == 1; n >>= 1 {
		last := len(peaks) - 1
		leaf = Hash(tlog.NodeHash(tlog.Hash(peaks[last]), tlog.Hash(leaf)))
		peaks = peaks[:last]
	}
	t.Peaks = append(slices.Clip(peaks), leaf)
	t.Size++
}

// Root returns the root hash; zero for the empty tree.
func (t *Tree) Root() Hash {
	if len(t.Peaks) == 0 {
		return Hash{}
	}
	root := tlog.Hash(t.Peaks[len(t.Peaks)-1])
	for i := len(t.Peaks) - 2; i >= 0; i-- {
		root = tlog.NodeHash(tlog.Hash(t.Peaks[i]), root)
	}
	return Hash(root)
}

// MarshalText writes h in hexadecimal.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (h *Hash) UnmarshalText(b []byte) error {
	if n, err := hex.Decode(h[:], b[:min(len(b), 2*len(h))]); err != nil || n != len(h) || len(b) != 2*len(h) {
		return fmt.Errorf("%q is no SHA-256 hash", b)
	}
	return nil
}

// Prover makes the audit path of one record in the tree over the first size
// records (RFC 6962 section 2.1.1), while the leaf hashes pass by: a ledger is
// not kept from others for as long as a large one takes.
type Prover struct {
	seq  uint64
	tree Tree
	side []side
}

// side is a subtree beside the way from the leaf to the root, over the records
// after the first from, up to the first to.
type side struct {
	from, to uint64
	tree     Tree
}

// NewProver begins a proof. [Prover.Add] must be called with the leaf hash of
// every record from the first that is kept to size.
func NewProver(gone Pruned, seq, size uint64) (*Prover, error) {
	switch {
	case seq == 0 || seq > size:
		return nil, fmt.Errorf("record %d is not among the first %d", seq, size)
	case seq <= gone.Size:
		return nil, fmt.Errorf("record %d: %w; the first that is kept is %d", seq, ErrPruned, gone.Size+1)
	}
	p := &Prover{seq: seq, tree: Tree{Size: gone.Size, Peaks: slices.Clone(gone.Peaks)}}
	for from, to := uint64(0), size; to-from > 1; {
		half := from + 1<<(bits.Len64(to-from-1)-1) // the left subtree is complete
		if seq <= half {
			p.side = append(p.side, side{from: half, to: to})
			to = half
		} else {
			p.side = append(p.side, side{from: from, to: half})
			from = half
		}
	}
	slices.Reverse(p.side)
	for i := range p.side { // what is gone lies in whole subtrees beside the way
		if s := &p.side[i]; s.from < gone.Size {
			var err error
			if s.tree, err = gone.part(s.from, s.to); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

// Add takes the leaf hash of the next record.
func (p *Prover) Add(leaf Hash) {
	at := p.tree.Size
	for i := range p.side {
		if s := &p.side[i]; at >= s.from && at < s.to {
			s.tree.Add(leaf)
		}
	}
	p.tree.Add(leaf)
}

// Path returns the audit path, from the leaf up, and the root.
func (p *Prover) Path() (path []Hash, root Hash) {
	path = make([]Hash, len(p.side))
	for i := range p.side {
		path[i] = p.side[i].tree.Root()
	}
	return path, p.tree.Root()
}

// CheckInclusion verifies an audit path against a root.
func CheckInclusion(path []Hash, seq, size uint64, leaf, root Hash) error {
	return tlog.CheckRecord(proof(path), int64(size), tlog.Hash(root), int64(seq-1), tlog.Hash(leaf)) //nolint:gosec // far below 2^63
}

// leaves lets tlog read the tree from leaf hashes and what is known of those that are gone.
type leaves struct {
	gone Pruned
	leaf func(seq uint64) (Hash, error)
}

// ReadHashes implements [tlog.HashReader].
func (l leaves) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		from, to := uint64(n)<<level, uint64(n+1)<<level //nolint:gosec // tlog asks for nothing negative
		var t Tree
		if from < l.gone.Size {
			var err error
			if t, err = l.gone.part(from, to); err != nil {
				return nil, err
			}
		}
		for at := max(from, l.gone.Size); at < to; at++ {
			h, err := l.leaf(at + 1)
			if err != nil {
				return nil, err
			}
			t.Add(h)
		}
		out[i] = tlog.Hash(t.Root())
	}
	return out, nil
}

// ProveConsistency returns the proof that the tree over the first old records is
// the beginning of that over the first size (RFC 6962 section 2.1.2). Of what is gone it
// needs the subtrees of which the first old records consist: they are known if old is not
// below what is gone, and else only where they are the same as those of what is gone.
func ProveConsistency(gone Pruned, old, size uint64, leaf func(seq uint64) (Hash, error)) ([]Hash, error) {
	p, err := tlog.ProveTree(int64(size), int64(old), leaves{gone, leaf}) //nolint:gosec // far below 2^63
	return hashes(tlog.RecordProof(p)), err
}

// CheckConsistency verifies what [ProveConsistency] returned.
func CheckConsistency(path []Hash, old, size uint64, oldRoot, root Hash) error {
	return tlog.CheckTree(tlog.TreeProof(proof(path)), int64(size), tlog.Hash(root), int64(old), tlog.Hash(oldRoot)) //nolint:gosec // far below 2^63
}

func hashes(p tlog.RecordProof) []Hash {
	out := make([]Hash, len(p))
	for i, h := range p {
		out[i] = Hash(h)
	}
	return out
}

func proof(path []Hash) tlog.RecordProof {
	out := make(tlog.RecordProof, len(path))
	for i, h := range path {
		out[i] = tlog.Hash(h)
	}
	return out
}
