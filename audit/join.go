package audit

import "strings"

// Event is an attempt with its outcome, as far as it is known, or a record of
// another kind.
type Event struct {
	Record Record
	Hash   Hash
	// Outcome is how the attempt ended, or what a person said of it; nil while that is
	// not known, and of what ends at once.
	Outcome     *Record
	OutcomeHash Hash
}

// Approval names the approval that the call waited for, or that let it through.
func (e *Event) Approval() string {
	if e.Outcome != nil && e.Outcome.Approval != "" {
		return e.Outcome.Approval
	}
	return e.Record.Approval
}

// Status is how far a call got: the outcome's, or the attempt's.
func (e *Event) Status() Status {
	if e.Outcome != nil {
		return e.Outcome.Status
	}
	return e.Record.Status
}

// Cost is what a call has cost in micro-USD: what was reserved until it has ended.
func (e *Event) Cost() int64 {
	if e.Outcome != nil {
		return e.Outcome.Cost
	}
	return e.Record.Cost
}

// Flagged reports a denial or an anomaly.
func (e *Event) Flagged() bool { return e.Record.Flagged || e.Outcome != nil && e.Outcome.Flagged }

// FlagReason says why.
func (e *Event) FlagReason() string {
	if e.Outcome == nil || !e.Outcome.Flagged && e.Outcome.Kind != KindApproval {
		return e.Record.FlagReason
	}
	return strings.TrimPrefix(e.Record.FlagReason+"; "+e.Outcome.FlagReason, "; ")
}

// ID is the canonical id of what was called, or as much as is known of it.
func (e *Event) ID() string { return CanonicalID(e.Record.Upstream, e.Record.Tool) }

// CanonicalID puts together what a record has in two fields: the prefix of what is
// no tool stands before the upstream.
func CanonicalID(upstream, tool string) string {
	if upstream == "" || tool == "" {
		return upstream + tool
	}
	for _, prefix := range []string{"resource:", "prompt:"} {
		if own, ok := strings.CutPrefix(tool, prefix); ok {
			return prefix + upstream + "/" + own
		}
	}
	return upstream + "/" + tool
}

// Entry returns e for people.
func (e *Event) Entry() Entry {
	entry := entryOf(&e.Record, e.Hash)
	if e.Outcome != nil {
		entry.join(e.Outcome)
	}
	return entry
}

// Joiner brings attempts and outcomes together as the records go by, in order. It
// holds no more than the calls that are under way. It is for one goroutine.
type Joiner struct {
	// Each is called with every attempt, unless Ended is set, and every record of
	// another kind when it comes, and with an attempt again when its outcome does.
	Each func(*Event) error
	// Ended leaves out attempts that have an outcome until it comes; End gives those
	// that have none yet.
	Ended bool
	// Attempt finds an attempt that was before the first record; without it, or if
	// it finds none, its outcome is left out.
	Attempt func(seq uint64) (raw []byte, err error)

	open  map[uint64]*Event
	order []uint64 // of open, with those that have ended
}

// Add takes the next record: its number and its canonical bytes.
func (j *Joiner) Add(seq uint64, raw []byte) error {
	r, err := Decode(raw)
	if err != nil {
		return &Damage{seq, DamageUnreadable, err.Error()}
	}
	e := &Event{Record: r, Hash: Sum(raw)}
	switch {
	case r.joins():
		if e, err = j.attempt(r.Ref); e == nil || err != nil {
			return err
		}
		e.Outcome, e.OutcomeHash = &r, Sum(raw)
		delete(j.open, r.Ref)
	case r.Kind == KindAttempt && r.Status != StatusDenied:
		if j.open == nil {
			j.open = map[uint64]*Event{}
		}
		j.open[seq] = e
		j.order = append(j.order, seq)
		if len(j.order) > 1024 && len(j.order) > 2*len(j.open) {
			j.compact()
		}
		if j.Ended {
			return nil
		}
	}
	return j.Each(e)
}

func (j *Joiner) compact() {
	kept := j.order[:0]
	for _, seq := range j.order {
		if _, ok := j.open[seq]; ok {
			kept = append(kept, seq)
		}
	}
	j.order = kept
}

func (j *Joiner) attempt(seq uint64) (*Event, error) {
	if e := j.open[seq]; e != nil {
		return e, nil
	}
	if j.Attempt == nil {
		return nil, nil
	}
	raw, err := j.Attempt(seq)
	if raw == nil || err != nil {
		return nil, err
	}
	r, err := Decode(raw)
	if err != nil {
		return nil, &Damage{seq, DamageUnreadable, err.Error()}
	}
	return &Event{Record: r, Hash: Sum(raw)}, nil
}

// End gives the attempts that have no outcome, if they were left out so far.
func (j *Joiner) End() error {
	if !j.Ended {
		return nil
	}
	j.compact()
	for _, seq := range j.order {
		if err := j.Each(j.open[seq]); err != nil {
			return err
		}
	}
	j.open, j.order = nil, nil
	return nil
}

// Selects reports whether f selects an entry, its pages aside.
func (f Filter) Selects(e *Entry) bool { return f.selects(e) }
