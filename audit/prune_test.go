package audit_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/audit"
)

// goneOf is what is known of the first n records.
func goneOf(raws [][]byte, n int) (p audit.Pruned) {
	for _, raw := range raws[:n] {
		p.Head = audit.Sum(raw)
		p.Add(p.Head)
	}
	return p
}

// Whatever is gone, the proofs of what is there are what they were.
func TestProofsNeedNothingOfWhatIsGone(t *testing.T) {
	const most = 40
	raws := chain(most)
	leaf := func(seq uint64) (audit.Hash, error) {
		return audit.Sum(raws[seq-1]), nil
	}
	prove := func(gone int, seq, size uint64) ([]audit.Hash, audit.Hash, error) {
		p, err := audit.NewProver(goneOf(raws, gone), seq, size)
		if err != nil {
			return nil, audit.Hash{}, err
		}
		for at := uint64(gone) + 1; at <= size; at++ {
			h, _ := leaf(at)
			p.Add(h)
		}
		path, root := p.Path()
		return path, root, nil
	}
	impossible := 0
	for gone := range most {
		kept := func(seq uint64) (audit.Hash, error) {
			if seq <= uint64(gone) {
				return audit.Hash{}, fmt.Errorf("record %d was asked for", seq)
			}
			return leaf(seq)
		}
		for size := uint64(gone); size <= most; size++ {
			for seq := uint64(1); seq <= size; seq++ {
				path, root, err := prove(gone, seq, size)
				if seq <= uint64(gone) {
					if !errors.Is(err, audit.ErrPruned) {
						t.Fatalf("record %d of %d with %d gone is proven: %v", seq, size, gone, err)
					}
					continue
				}
				want, wantRoot, _ := prove(0, seq, size)
				if err != nil || root != wantRoot || !slices.Equal(path, want) {
					t.Fatalf("the proof of %d of %d with %d gone is another one: %v", seq, size, gone, err)
				}
			}
			for old := uint64(1); old <= size && size > 0; old++ {
				path, err := audit.ProveConsistency(goneOf(raws, gone), old, size, kept)
				if err != nil && old < uint64(gone) {
					if !errors.Is(err, audit.ErrPruned) {
						t.Fatal(err)
					}
					impossible++
					continue
				}
				want, _ := audit.ProveConsistency(audit.Pruned{}, old, size, leaf)
				if err != nil || !slices.Equal(path, want) {
					t.Fatalf("the proof from %d to %d with %d gone is another one: %v", old, size, gone, err)
				}
			}
		}
	}
	if impossible == 0 {
		t.Error("every proof can be made, and some cannot")
	}
}

// pruning makes a chain of n records, in which one tells that the first of them were pruned,
// and a checkpoint over those.
func pruning(t *testing.T, n, told int, change func(*audit.Pruning)) (raws [][]byte, gone audit.Pruned, c audit.Checkpoint) {
	t.Helper()
	raws = chain(n)
	gone = goneOf(raws, told)
	first, err := audit.Decode(raws[told-1])
	if err != nil {
		t.Fatal(err)
	}
	c = audit.Checkpoint{Size: gone.Size, Root: gone.Root(), Head: gone.Head, Time: first.Time}
	last, err := audit.Decode(raws[n-1])
	if err != nil {
		t.Fatal(err)
	}
	p := audit.Pruning{From: 1, To: gone.Size, Root: gone.Root(), Head: gone.Head, Signed: c.Time, Retain: "24h0m0s"}
	if change != nil {
		change(&p)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	r := audit.Record{
		Seq: uint64(n + 1), Prev: audit.Sum(raws[n-1]), Time: last.Time.Add(24 * time.Hour), Kind: audit.KindLedger, Status: audit.StatusPruned, Arguments: text,
	}
	return append(raws, r.Encode()), gone, c
}

func verifyFrom(gone audit.Pruned, raws [][]byte, signed ...audit.Checkpoint) error {
	v := audit.Verifier{Checkpoints: signed}
	if err := v.Begin(gone); err != nil {
		return err
	}
	for i, raw := range raws[gone.Size:] {
		if err := v.Add(gone.Size+uint64(i)+1, raw); err != nil {
			return err
		}
	}
	return v.Finish(uint64(len(raws)), audit.Sum(raws[len(raws)-1]))
}

func TestAChainThatWasPrunedVerifiesFromThereOn(t *testing.T) {
	for told := 1; told <= 20; told++ {
		raws, gone, c := pruning(t, 30, told, nil)
		end := goneOf(raws, 25)
		later := audit.Checkpoint{Size: 25, Root: end.Root(), Head: end.Head}
		if err := verifyFrom(gone, raws, c, later); err != nil {
			t.Errorf("%d of 30 are gone: %v", told, err)
		}
		later.Root[3] ^= 1
		if err := verifyFrom(gone, raws, c, later); kindOf(err) != audit.DamageFork {
			t.Errorf("another root after %d are gone: %v", told, err)
		}
	}
}

func kindOf(err error) audit.DamageKind {
	if d, ok := errors.AsType[*audit.Damage](err); ok {
		return d.Kind
	}
	return ""
}

// What was pruned is told from what somebody has taken away.
func TestABeginningThatSomebodyRemovedIsFound(t *testing.T) {
	raws, gone, c := pruning(t, 30, 10, nil)
	untold := chain(31)
	signed := func(raws [][]byte, n int) audit.Checkpoint {
		g := goneOf(raws, n)
		return audit.Checkpoint{Size: g.Size, Root: g.Root(), Head: g.Head}
	}
	forged := func(change func(p *audit.Pruned)) audit.Pruned {
		p := goneOf(raws, 10)
		change(&p)
		return p
	}
	told := func(change func(*audit.Pruning)) [][]byte {
		raws, _, _ := pruning(t, 30, 10, change)
		return raws
	}
	for name, x := range map[string]struct {
		gone   audit.Pruned
		raws   [][]byte
		signed audit.Checkpoint
		want   audit.DamageKind
	}{
		"as it was pruned":                             {gone, raws, c, ""},
		"no record tells of it":                        {goneOf(untold, 10), untold, signed(untold, 10), audit.DamageDeletion},
		"more than a record tells":                     {goneOf(raws, 12), raws, signed(raws, 12), audit.DamageDeletion},
		"less than a record tells":                     {goneOf(raws, 8), raws, signed(raws, 8), audit.DamagePruning},
		"nothing is gone, and a record tells":          {audit.Pruned{}, raws, c, audit.DamagePruning},
		"it was never signed":                          {goneOf(raws, 10), raws, signed(raws, 11), audit.DamagePruning},
		"another size":                                 {forged(func(p *audit.Pruned) { p.Size = 11 }), raws, c, audit.DamagePruning},
		"another hash":                                 {forged(func(p *audit.Pruned) { p.Head[0] ^= 1 }), raws, c, audit.DamagePruning},
		"another tree":                                 {forged(func(p *audit.Pruned) { p.Peaks[0][0] ^= 1 }), raws, c, audit.DamagePruning},
		"a part of the tree":                           {forged(func(p *audit.Pruned) { p.Peaks = p.Peaks[:1] }), raws, c, audit.DamagePruning},
		"a tree over nothing":                          {audit.Pruned{Head: audit.Hash{1}}, raws, c, audit.DamagePruning},
		"the record tells of another root":             {gone, told(func(p *audit.Pruning) { p.Root[0] ^= 1 }), c, audit.DamagePruning},
		"the record tells of another hash":             {gone, told(func(p *audit.Pruning) { p.Head[0] ^= 1 }), c, audit.DamagePruning},
		"the record tells of itself":                   {gone, told(func(p *audit.Pruning) { p.To = 31 }), c, audit.DamagePruning},
		"the record tells of records that were young":  {gone, told(func(p *audit.Pruning) { p.Retain = "9000h" }), c, audit.DamagePruning},
		"the record tells of no time":                  {gone, told(func(p *audit.Pruning) { p.Retain = "" }), c, audit.DamagePruning},
		"the record tells of nothing from one on":      {gone, told(func(p *audit.Pruning) { p.From = 11 }), c, audit.DamagePruning},
		"records are missing after what was pruned":    {gone, slices.Concat(raws[:10], raws[11:]), c, audit.DamageDeletion},
		"the first after what was pruned is not its":   {gone, slices.Concat(raws[:10], [][]byte{reseal(t, raws[10], func(r *audit.Record) { r.Prev[0] ^= 1 })}, raws[11:]), c, audit.DamageEdit},
		"the first after what was pruned is edited":    {gone, slices.Concat(raws[:10], [][]byte{reseal(t, raws[10], func(r *audit.Record) { r.Tool += "x" })}, raws[11:]), c, audit.DamageEdit},
		"the record about it is gone, with the end":    {gone, raws[:30], c, audit.DamageDeletion},
		"nothing was signed at all":                    {gone, raws, audit.Checkpoint{}, audit.DamagePruning},
		"the checkpoint is over more than is forged":   {goneOf(raws, 9), raws, c, audit.DamagePruning},
		"the checkpoint is over less than is forged":   {goneOf(raws, 11), raws, c, audit.DamagePruning},
		"the records are there that are said to be go": {gone, slices.Concat(raws[:10], raws[9:]), c, audit.DamageInsertion},
	} {
		if err := verifyFrom(x.gone, x.raws, x.signed); kindOf(err) != x.want {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
	}
}

func TestWhatWasPrunedGoesThroughJSON(t *testing.T) {
	p := goneOf(chain(13), 13)
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var again audit.Pruned
	if err := json.Unmarshal(raw, &again); err != nil || !cmp.Equal(p, again) {
		t.Errorf("%s became %+v (%v)", raw, again, err)
	}
}
