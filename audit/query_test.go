package audit_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/audit"
)

// library is a Source in memory that counts what is asked of it.
type library struct {
	records  [][]byte
	outcomes map[uint64]uint64
	index    map[uint64]map[string]*audit.Set
	read     int // records
	looked   int // sets
}

func (l *library) Head() uint64 { return uint64(len(l.records)) }

func (l *library) First() uint64 { return 1 }

func (l *library) Record(seq uint64) []byte { l.read++; return l.records[seq-1] }

func (l *library) Outcome(attempt uint64) uint64 { return l.outcomes[attempt] }

func (l *library) Marked(block uint64, mark string) audit.Set {
	l.looked++
	if s := l.index[block][mark]; s != nil {
		return audit.ParseSet(s.Bytes())
	}
	return audit.Set{}
}

func (l *library) Span(block uint64) (first, last time.Time) {
	return began.Add(time.Duration(block*audit.BlockSize) * time.Second), began.Add(time.Duration((block+1)*audit.BlockSize) * time.Second)
}

func (l *library) add(r audit.Record) {
	r.Seq = l.Head() + 1
	r.Time = began.Add(time.Duration(r.Seq) * time.Second)
	l.records = append(l.records, r.Encode())
	if r.Kind == audit.KindOutcome {
		l.outcomes[r.Ref] = r.Seq
	}
	seq, given, taken := audit.Marks(&r)
	put := func(mark string, in bool) {
		block := l.index[seq/audit.BlockSize]
		if block == nil {
			block = map[string]*audit.Set{}
			l.index[seq/audit.BlockSize] = block
		}
		if block[mark] == nil {
			block[mark] = &audit.Set{}
		}
		block[mark].Put(seq, in)
	}
	for _, mark := range taken {
		put(mark, false)
	}
	for _, mark := range given {
		put(mark, true)
	}
}

// A tool is found by every name that people have for it.
func TestAToolIsFoundByEachOfItsNames(t *testing.T) {
	l := &library{outcomes: map[uint64]uint64{}, index: map[uint64]map[string]*audit.Set{}}
	for _, id := range [][2]string{{"files", "read"}, {"shop", "read"}, {"gate", "files__read"}, {"files", "_x__y"}, {"", "read__x"}} {
		l.add(audit.Record{Kind: audit.KindAttempt, Status: audit.StatusDenied, Upstream: id[0], Tool: id[1]})
	}
	for name, want := range map[string][]uint64{
		"read": {2, 1}, "files/read": {1}, "shop/read": {2}, "files__read": {3, 1}, "shop__read": {2}, "gate__files__read": {3}, "gate/files__read": {3},
		"files___x__y": {4}, "_x__y": {4}, "read__x": {5}, "__read": nil, "files__": nil, "files/__read": nil, "nobody__read": nil,
	} {
		entries, _, err := audit.Find(l, audit.Filter{Tool: name})
		if err != nil {
			t.Fatal(err)
		}
		var got []uint64
		for _, e := range entries {
			got = append(got, e.Seq)
			if f := (audit.Filter{Tool: name}); !f.Selects(&e) {
				t.Errorf("%s finds %d and does not select it", name, e.Seq)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}

// A page costs what is on it and a few sets for each block of the records, not the
// records before it: by any filter, however rare what it selects and however deep
// the page lies. That is every page of a console's list, in the process that has
// the lock.
func TestAPageCostsNoWalkThroughTheRecords(t *testing.T) {
	const calls = 30_000 // an attempt and an outcome each
	l := &library{outcomes: map[uint64]uint64{}, index: map[uint64]map[string]*audit.Set{}}
	for i := range calls {
		l.add(audit.Record{
			Kind: audit.KindAttempt, Status: audit.StatusRunning, Session: fmt.Sprintf("ses_%d", i%300), Agent: []string{"bot", "other"}[i/7%2],
			Upstream: []string{"shop", "files"}[i%2], Tool: []string{"pay", "look", "ask"}[i%3],
		})
		status := audit.StatusAllowed
		if i%10_000 == 77 {
			status = audit.StatusError
		}
		l.add(audit.Record{Kind: audit.KindOutcome, Ref: l.Head(), Status: status, Flagged: status == audit.StatusError, FlagReason: "odd"})
	}
	middle := began.Add(calls * time.Second)
	for name, f := range map[string]audit.Filter{
		"all": {}, "one session": {Session: "ses_7"}, "an agent": {Agent: "bot"}, "an upstream": {Upstream: "shop"}, "a tool": {Tool: "shop/pay"},
		"a tool's own name": {Tool: "pay"}, "a tool as agents see it": {Tool: "shop__pay"}, "a status": {Status: audit.StatusAllowed}, "a rare status": {Status: audit.StatusError},
		"flagged": {Flagged: true}, "none that runs": {Status: audit.StatusRunning}, "nothing at all": {Session: "ses_none"},
		"two that never meet": {Session: "ses_7", Upstream: "shop"}, "two that rarely meet": {Agent: "other", Status: audit.StatusError},
		"until": {Until: middle}, "since": {Since: middle}, "an hour": {Since: middle, Until: middle.Add(time.Hour)}, "governance": {Status: audit.StatusGovernance},
	} {
		for _, before := range []uint64{0, calls, 5000, 60} {
			f.Before = before
			l.read, l.looked = 0, 0
			var got []audit.Entry
			rounds := 0
			for page := f; len(got) < 50; rounds++ {
				page.Limit = 50 - len(got)
				list, next, err := audit.Find(l, page)
				if err != nil {
					t.Fatal(err)
				}
				if got = append(got, list...); next == 0 {
					break
				}
				page.Before = next
			}
			for i, e := range got {
				if before > 0 && e.Seq >= before || i > 0 && e.Seq >= got[i-1].Seq {
					t.Fatalf("%s before %d: entry %d stands in the wrong place", name, before, e.Seq)
				}
			}
			blocks := 2*calls/audit.BlockSize + 1
			if most := 2 * (len(got) + audit.BlockSize); l.read > most { // the blocks at the ends of a time are read through
				t.Errorf("%s before %d: %d records were read for %d entries, want %d at most", name, before, l.read, len(got), most)
			}
			if most := (blocks + rounds) * 9; l.looked > most { // as many marks as a filter can have, and kinds
				t.Errorf("%s before %d: %d sets were looked at, want %d at most", name, before, l.looked, most)
			}
		}
	}
}
