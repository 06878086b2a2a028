// Package report sums up the audit: what was spent on what, and a report for an
// auditor. It is pure: it is given the events and what is known of the chain, and
// writes texts.
package report

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/policy"
)

// By is what a [Tally] is divided by.
type By string

// The divisions. A day is one of UTC, as in spend limits without a timezone.
const (
	ByTool     By = "tool"
	BySession  By = "session"
	ByDay      By = "day"
	ByAgent    By = "agent"
	ByUpstream By = "upstream"
)

// Divisions are all of them.
var Divisions = []By{ByTool, BySession, ByDay, ByAgent, ByUpstream}

// Row is one part of a [Tally].
type Row struct {
	Key    string        `json:"key"`
	Calls  uint64        `json:"calls"`  // that were let through
	Denied uint64        `json:"denied"` // that were refused
	Errors uint64        `json:"errors"` // of the calls: an error came back, or nothing
	Spent  policy.Micros `json:"usd"`
	First  time.Time     `json:"first"`
	Last   time.Time     `json:"last"`
}

// Tally counts calls and what they have cost. Of a call that is under way it counts
// what is reserved.
type Tally struct {
	By    By
	rows  map[string]*Row
	total Row
}

// NewTally begins one.
func NewTally(by By) *Tally { return &Tally{By: by, rows: map[string]*Row{}} }

func (t *Tally) key(e *audit.Event) string {
	switch t.By {
	case ByTool:
		return e.ID()
	case BySession:
		return e.Record.Session
	case ByDay:
		return e.Record.Time.UTC().Format(time.DateOnly)
	case ByAgent:
		return e.Record.Agent
	case ByUpstream:
		return e.Record.Upstream
	}
	return ""
}

// Add counts an event, if it is a call: each once, with its outcome.
func (t *Tally) Add(e *audit.Event) {
	if e.Record.Kind != audit.KindAttempt {
		return
	}
	key := t.key(e)
	r := t.rows[key]
	if r == nil {
		r = &Row{Key: key}
		t.rows[key] = r
	}
	r.add(e)
	t.total.add(e)
}

func (r *Row) add(e *audit.Event) {
	at := e.Record.Time
	if r.First.IsZero() || at.Before(r.First) {
		r.First = at
	}
	if at.After(r.Last) {
		r.Last = at
	}
	switch e.Status() { //nolint:exhaustive // what waits for a person was not let through, and not refused
	case audit.StatusRunning, audit.StatusAllowed, audit.StatusCancelled:
	case audit.StatusError, audit.StatusAbandoned:
		r.Errors++
	case audit.StatusDenied:
		r.Denied++
		return
	default:
		return
	}
	r.Calls++
	r.Spent += policy.Micros(e.Cost())
}

// Rows returns the parts: days in their order, else what was spent most on first.
func (t *Tally) Rows() []Row {
	rows := []Row{}
	for _, r := range t.rows {
		rows = append(rows, *r)
	}
	slices.SortFunc(rows, func(a, b Row) int {
		if t.By == ByDay {
			return strings.Compare(a.Key, b.Key)
		}
		return cmp.Or(cmp.Compare(b.Spent, a.Spent), cmp.Compare(b.Calls, a.Calls), cmp.Compare(b.Denied, a.Denied), strings.Compare(a.Key, b.Key))
	})
	return rows
}

// Total is the sum of all parts.
func (t *Tally) Total() Row { return t.total }
