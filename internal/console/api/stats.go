package api

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/policy"
)

const day = 24 * time.Hour

// tally is what the records from a time on add up to.
type tally struct {
	since     time.Time
	head      uint64 // of the records that are in it
	tools     map[string]*toolTally
	statuses  map[audit.Status]int
	rules     map[string]ruleTally // by the id of the rule
	upstreams map[string]*upstreamTally
	hours     map[time.Time]policy.Micros
	open      map[uint64]*opened    // attempts whose outcome is not in it yet
	asked     map[uint64]*toolTally // attempts about which a person has not decided yet
	approved  map[string]bool       // by the approval: they count as calls, until what comes of them does
}

type toolTally struct {
	calls, denied, errors int // calls: attempts, with those that were denied
	cost                  policy.Micros
}

type ruleTally struct {
	policy string
	denied int // of a shadow rule, what it would have denied
}

type upstreamTally struct {
	calls, errors int
	durations     []uint64 // of at most so many calls
}

// opened is a call that has begun.
type opened struct {
	tool     *toolTally
	upstream *upstreamTally
	hour     time.Time
	cost     policy.Micros
}

// manyDurations bounds what a median is taken of: the last so many.
const manyDurations = 1000

func (u *upstreamTally) median() *uint64 {
	if len(u.durations) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(u.durations))
	return &sorted[len(sorted)/2]
}

func newTally(since time.Time) *tally {
	return &tally{
		since: since, tools: map[string]*toolTally{}, statuses: map[audit.Status]int{}, rules: map[string]ruleTally{},
		upstreams: map[string]*upstreamTally{}, hours: map[time.Time]policy.Micros{}, open: map[uint64]*opened{}, asked: map[uint64]*toolTally{}, approved: map[string]bool{},
	}
}

// add takes a record into account.
func (t *tally) add(r *audit.Record) {
	switch r.Kind {
	case audit.KindAttempt:
		if r.Time.Before(t.since) {
			return
		}
		t.attempt(r)
	case audit.KindOutcome:
		o := t.open[r.Ref]
		if o == nil {
			return
		}
		delete(t.open, r.Ref)
		t.statuses[audit.StatusRunning]--
		t.statuses[r.Status]++
		o.tool.cost += policy.Micros(r.Cost) - o.cost
		t.hours[o.hour] += policy.Micros(r.Cost) - o.cost
		if r.Status == audit.StatusError || r.Status == audit.StatusAbandoned {
			o.tool.errors++
			o.upstream.errors++
		}
		if o.upstream.durations = append(o.upstream.durations, r.DurationMS); len(o.upstream.durations) > 2*manyDurations {
			o.upstream.durations = slices.Clone(o.upstream.durations[manyDurations:])
		}
	case audit.KindApproval:
		if tool := t.asked[r.Ref]; tool != nil {
			delete(t.asked, r.Ref)
			t.statuses[audit.StatusPending]--
			t.statuses[r.Status]++
			if r.Status == audit.StatusDenied {
				tool.denied++
				t.against(r.Policy, r.Rule)
			} else {
				t.approved[r.Approval] = true
			}
		}
	case audit.KindGovernance, audit.KindSession, audit.KindConfig, audit.KindLedger, audit.KindPins, audit.KindKey:
	}
}

func (t *tally) attempt(r *audit.Record) {
	id := audit.CanonicalID(r.Upstream, r.Tool)
	tool := t.tools[id]
	if tool == nil {
		tool = &toolTally{}
		t.tools[id] = tool
	}
	if t.approved[r.Approval] { // what a person was asked about is made at last: it is one call
		delete(t.approved, r.Approval)
		t.statuses[audit.StatusApproved]--
	} else {
		tool.calls++
	}
	t.statuses[r.Status]++
	if r.Status == audit.StatusDenied {
		tool.denied++
		t.against(r.Policy, r.Rule)
	}
	if r.Status == audit.StatusPending {
		t.asked[r.Seq] = tool
	}
	var also []policy.Finding
	if len(r.Also) > 0 && json.Unmarshal(r.Also, &also) == nil {
		for _, f := range also {
			if f.Shadow {
				t.against(f.Policy, f.Rule)
			}
		}
	}
	if r.Status != audit.StatusRunning {
		return
	}
	up := t.upstreams[r.Upstream]
	if up == nil {
		up = &upstreamTally{}
		t.upstreams[r.Upstream] = up
	}
	up.calls++
	o := &opened{tool: tool, upstream: up, hour: r.Time.UTC().Truncate(time.Hour), cost: policy.Micros(r.Cost)}
	tool.cost += o.cost
	t.hours[o.hour] += o.cost
	t.open[r.Seq] = o
}

func (t *tally) against(policy, rule string) {
	n := t.rules[rule]
	n.policy = policy
	n.denied++
	t.rules[rule] = n
}

// stats keeps the last tally, and goes on from it: what the page asks for every few
// seconds must not read a day's records each time. Its zero value is ready.
type stats struct {
	mu   sync.Mutex
	kept *tally
}

// drift is how much older than asked for the begin of a tally may be.
const drift = time.Minute

// view calls f with the tally of the records since a time.
func (s *stats) view(ctx context.Context, l Ledger, since time.Time, f func(*tally)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.kept
	if t == nil || since.Before(t.since) || since.Sub(t.since) > drift {
		t = newTally(since)
		before, _, err := l.Find(ctx, audit.Filter{Until: since, Limit: 1, Governance: true})
		if err != nil {
			return err
		}
		if len(before) > 0 {
			t.head = before[0].Seq
		}
	}
	s.kept = nil // if it breaks off, it is half done
	_, _, err := l.Walk(ctx, t.head+1, func(key uint64, raw []byte) error {
		if r, err := audit.Decode(raw); err == nil { // verify names one that cannot be read
			t.add(&r)
		}
		t.head = key
		return nil
	})
	if err != nil {
		return err
	}
	s.kept = t
	f(t)
	return nil
}

// last is the part of a tally that lists show beside what they list.
func (s *stats) last(ctx context.Context, l Ledger, since time.Time) (*tally, error) {
	out := newTally(since)
	err := s.view(ctx, l, since, func(t *tally) {
		maps.Copy(out.rules, t.rules)
		for name, u := range t.upstreams {
			copied := *u
			copied.durations = slices.Clone(u.durations)
			out.upstreams[name] = &copied
		}
	})
	return out, err
}
