package ledger_test

import (
	"cmp"
	"context"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/audit"
)

// Who joins the records as they go by gets what a query finds.
func TestJoinedRecordsAreTheEntries(t *testing.T) {
	l, _ := archive(t)
	want, _, err := l.Find(context.Background(), audit.Filter{Governance: true, Limit: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(want)
	outcomes := 0
	for _, e := range want {
		if e.OutcomeSeq > 0 {
			outcomes++
		}
	}
	if outcomes < 20 {
		t.Fatalf("only %d calls have ended", outcomes)
	}
	collect := func(first uint64, j *audit.Joiner) (got []audit.Entry) {
		t.Helper()
		j.Each = func(e *audit.Event) error { got = append(got, e.Entry()); return nil }
		if _, _, err := l.Walk(context.Background(), first, j.Add); err != nil {
			t.Fatal(err)
		}
		if err := j.End(); err != nil {
			t.Fatal(err)
		}
		return got
	}
	got := collect(1, &audit.Joiner{Ended: true})
	slices.SortFunc(got, func(a, b audit.Entry) int { return cmp.Compare(a.Seq, b.Seq) })
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("joined once a call: %s", diff)
	}
	if live := collect(1, &audit.Joiner{}); len(live) != len(want)+outcomes {
		t.Errorf("as they come there are %d, of %d entries of which %d have ended", len(live), len(want), outcomes)
	}
	// From the middle on, with the attempts of before, each event has what its entry has.
	first := want[len(want)/2].Seq
	raw := func(seq uint64) ([]byte, error) { return l.Raw(context.Background(), seq) }
	before, last := 0, map[uint64]audit.Entry{}
	for _, e := range collect(first, &audit.Joiner{Attempt: raw}) {
		if e.Seq < first {
			before++
		}
		last[e.Seq] = e
	}
	if before == 0 {
		t.Error("no call was under way in the middle")
	}
	for seq, e := range last {
		i, _ := slices.BinarySearchFunc(want, seq, func(e audit.Entry, seq uint64) int { return cmp.Compare(e.Seq, seq) })
		if diff := gocmp.Diff(want[i], e); diff != "" {
			t.Errorf("%d: %s", seq, diff)
		}
	}
}

func TestSince(t *testing.T) {
	l, clock := archive(t)
	for range 2 * audit.BlockSize { // more than one block
		clock.add(time.Second)
		if err := l.RecordConfig(context.Background(), "used", audit.Hash{1}, ""); err != nil {
			t.Fatal(err)
		}
	}
	var times []time.Time
	newest, _, err := l.Walk(context.Background(), 1, func(_ uint64, raw []byte) error {
		r, err := audit.Decode(raw)
		times = append(times, r.Time)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	asked := append([]time.Time{}, time.Time{}, times[0].Add(-time.Hour), clock.now().Add(time.Hour))
	for i := 0; i < len(times); i += 7 {
		asked = append(asked, times[i], times[i].Add(1))
	}
	for _, at := range asked {
		want := uint64(1 + slices.IndexFunc(append(times, at), func(t time.Time) bool { return !t.Before(at) }))
		first, head, err := l.Since(context.Background(), at)
		if err != nil || first != want || head != newest {
			t.Fatalf("since %v: %d of %d, want %d of %d, %v", at, first, head, want, newest, err)
		}
	}
	if head, err := l.Head(); err != nil || head != newest {
		t.Errorf("the head file says %d, %v; the newest record is %d", head, err, newest)
	}
}
