package audit

import "slices"

// The index finds entries without reading those that a query does not select.
// The records are divided into blocks by their number; for each block and each
// [mark] of its entries there is a [Set] of those that have it. So a query is a
// few intersections a block, whatever it selects and however deep its page is.
// An entry is marked at the number of its attempt, and marked anew when its
// outcome comes. The index is no part of the chain: all of it follows from the
// records.

// BlockSize is how many records are in a block.
const BlockSize = 1024

// Set is a set of records of one block.
type Set [BlockSize / 8]byte

// Put adds a record to the set, or takes it out.
func (s *Set) Put(seq uint64, in bool) {
	bit := byte(1) << (seq % 8)
	at := &s[seq%BlockSize/8]
	*at &^= bit
	if in {
		*at |= bit
	}
}

// Has reports whether a record is in the set.
func (s *Set) Has(seq uint64) bool { return s[seq%BlockSize/8]>>(seq%8)&1 == 1 }

// Bytes returns the stored form of s, nil if it is empty: the index of the first
// byte that is not zero, then the bytes from there to the last such.
func (s *Set) Bytes() []byte {
	some := func(b byte) bool { return b != 0 }
	first := slices.IndexFunc(s[:], some)
	if first < 0 {
		return nil
	}
	last := len(s) - 1
	for s[last] == 0 {
		last--
	}
	return append([]byte{byte(first)}, s[first:last+1]...) //nolint:gosec // below 128
}

// ParseSet reads what Bytes returned; of anything else, what makes sense.
func ParseSet(b []byte) (s Set) {
	if len(b) > 0 && int(b[0]) < len(s) {
		copy(s[b[0]:], b[1:])
	}
	return s
}

// The names of marks. They are part of the file format.
const (
	markKind    = 'k'
	markSession = 's'
	markAgent   = 'a'
	markServer  = 'u'
	markTool    = 't' // the tool's own name, and its canonical id
	markStatus  = 'v'
	markFlagged = 'f'
)

// mark is a property that entries are found by: its name and its value, which is
// bounded, since a tool's name is not and a key of the index must be.
func mark(name byte, value string) string {
	if len(value) > 256 {
		sum := Sum([]byte(value))
		value = value[:224] + string(sum[:])
	}
	return string(name) + value
}

// Marks returns the entry that r belongs to, the marks that r gives it and the
// ones that it takes from it.
func Marks(r *Record) (seq uint64, given, taken []string) {
	give := func(name byte, value string) {
		if value != "" {
			given = append(given, mark(name, value))
		}
	}
	give(markStatus, string(r.Status))
	if r.Flagged {
		given = append(given, mark(markFlagged, ""))
	}
	if r.joins() {
		return r.Ref, given, []string{mark(markStatus, string(StatusRunning)), mark(markStatus, string(StatusPending))}
	}
	give(markKind, string(rune(r.Kind)))
	give(markSession, r.Session)
	give(markAgent, r.Agent)
	give(markServer, r.Upstream)
	if r.Tool != "" {
		give(markTool, r.Tool)
		give(markTool, r.Upstream+"/"+r.Tool)
	}
	return r.Seq, given, nil
}

// marks returns what an entry must have to be selected: of each list one.
func (f Filter) marks() (all [][]string) {
	var kinds []string
	for k := range kindNames {
		isCall := k == KindAttempt || k == KindGovernance
		if k != KindOutcome && k != KindApproval && (isCall || !f.Calls) && (k != KindGovernance || f.Governance || f.Status == StatusGovernance) {
			kinds = append(kinds, mark(markKind, string(rune(k))))
		}
	}
	need := func(name byte, value string, on bool) {
		if on {
			all = append(all, []string{mark(name, value)})
		}
	}
	need(markSession, f.Session, f.Session != "")
	if f.Tool != "" {
		var tools []string
		for _, name := range f.tools() {
			tools = append(tools, mark(markTool, name))
		}
		all = append(all, tools)
	}
	need(markStatus, string(f.Status), f.Status != "")
	need(markFlagged, "", f.Flagged)
	need(markServer, f.Upstream, f.Upstream != "")
	need(markAgent, f.Agent, f.Agent != "")
	return append(all, kinds)
}

// among returns the records of a block that f may select.
func (f Filter) among(s Source, block uint64, marks [][]string) (set Set, some bool) {
	if first, last := s.Span(block); !f.Since.IsZero() && last.Before(f.Since) || !f.Until.IsZero() && !first.Before(f.Until) {
		return set, false
	}
	for i, any := range marks {
		var union Set
		for _, m := range any {
			for j, b := range s.Marked(block, m) {
				union[j] |= b
			}
		}
		some = false
		for j, b := range union {
			if i > 0 {
				b &= set[j]
			}
			set[j] = b
			some = some || b != 0
		}
		if !some {
			break
		}
	}
	return set, some
}
