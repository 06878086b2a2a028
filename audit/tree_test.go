package audit_test

import (
	"fmt"
	"testing"

	"github.com/haldir-mcp/haldir/audit"
)

// Every path through every small tree, against the checks of package tlog; and
// none of them passes for another record or another tree.
func TestEveryPathThroughATreeProves(t *testing.T) {
	leaf := func(seq uint64) audit.Hash { return audit.Sum(fmt.Append(nil, seq)) }
	var tree audit.Tree
	roots := []audit.Hash{{}}
	for size := uint64(1); size <= 70; size++ {
		tree.Add(leaf(size))
		roots = append(roots, tree.Root())
		for seq := uint64(1); seq <= size; seq++ {
			p, err := audit.NewProver(audit.Pruned{}, seq, size)
			if err != nil {
				t.Fatal(err)
			}
			for at := uint64(1); at <= size; at++ {
				p.Add(leaf(at))
			}
			path, root := p.Path()
			if root != roots[size] {
				t.Fatalf("the root over %d records differs", size)
			}
			if err := audit.CheckInclusion(path, seq, size, leaf(seq), root); err != nil {
				t.Fatalf("record %d of %d: %v", seq, size, err)
			}
			if audit.CheckInclusion(path, seq, size, leaf(seq+1), root) == nil || audit.CheckInclusion(path, seq, size, leaf(seq), roots[size-1]) == nil {
				t.Fatalf("record %d of %d: the path proves something else as well", seq, size)
			}
			consistent, err := audit.ProveConsistency(audit.Pruned{}, seq, size, func(seq uint64) (audit.Hash, error) { return leaf(seq), nil })
			if err != nil {
				t.Fatal(err)
			}
			if err := audit.CheckConsistency(consistent, seq, size, roots[seq], root); err != nil {
				t.Fatalf("the tree over %d is no beginning of that over %d: %v", seq, size, err)
			}
			if seq < size && audit.CheckConsistency(consistent, seq, size, roots[size], root) == nil {
				t.Fatalf("the proof from %d to %d is good for another tree", seq, size)
			}
		}
	}
	for _, seq := range []uint64{0, 71, 1 << 62} {
		if _, err := audit.NewProver(audit.Pruned{}, seq, 70); err == nil {
			t.Errorf("a proof of record %d of 70", seq)
		}
	}
}
