package report

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/policy"
)

// Integrity is what verifying the chain has shown.
type Integrity struct {
	Intact      bool      `json:"intact"`
	Damage      string    `json:"damage,omitempty"`   // what is wrong, if it is not
	Records     uint64    `json:"records"`            // of the whole chain, not of the period
	Pruned      uint64    `json:"pruned,omitempty"`   // records of before, which are not kept any more
	Signed      uint64    `json:"signed"`             // of these, under a signed checkpoint that matches
	Checkpoints int       `json:"checkpoints"`        // that match
	SignedAt    time.Time `json:"signed_at,omitzero"` // the last checkpoint
	Head        string    `json:"head_hash"`
}

// Options say what a report is about.
type Options struct {
	Since, Until time.Time // zero: from the first record, to the last
	Generated    time.Time
	Version      string
	Session      string // only this one
}

// Use is what one agent did with one tool.
type Use struct {
	Agent string `json:"agent_id"`
	Tool  string `json:"tool"`
	Row
}

// Caller is an agent and what its client says it is.
type Caller struct {
	Agent    string `json:"agent_id"`
	Client   string `json:"client,omitempty"`
	Sessions int    `json:"sessions"`
	Row
	ids map[string]bool
}

// Refusal is how often a rule has refused, or would have.
type Refusal struct {
	Policy string    `json:"policy"`
	Rule   string    `json:"rule"`
	Denied uint64    `json:"denied"` // it was the one to be reported
	Also   uint64    `json:"also"`   // it would have refused as well
	Shadow uint64    `json:"shadow"` // it would have refused, were it enforced
	Last   time.Time `json:"last"`
	Reason string    `json:"reason"` // the last one's
}

// Event is one thing that has happened.
type Event struct {
	Seq      uint64    `json:"seq"`
	Time     time.Time `json:"timestamp"`
	Kind     string    `json:"kind"`
	Status   string    `json:"status"`
	Session  string    `json:"session_id,omitempty"`
	Agent    string    `json:"agent_id,omitempty"`
	What     string    `json:"what,omitempty"`
	Approval string    `json:"approval,omitempty"`
	Text     string    `json:"text,omitempty"`
}

// Events are the first of what has happened, and how many there were.
type Events struct {
	Count int     `json:"count"`
	List  []Event `json:"entries"`
}

// maxEvents bounds what is remembered of one kind.
const maxEvents = 1000

// Report is what an auditor reads.
type Report struct {
	Generated time.Time         `json:"generated"`
	Version   string            `json:"haldir_version"`
	Since     time.Time         `json:"since,omitzero"`
	Until     time.Time         `json:"until,omitzero"`
	Session   string            `json:"session_id,omitempty"`
	FirstSeq  uint64            `json:"first_seq"` // of what was looked at; 0 if there is nothing
	LastSeq   uint64            `json:"last_seq"`
	Integrity Integrity         `json:"integrity"`
	Total     Row               `json:"total"`
	Statuses  map[string]uint64 `json:"statuses"` // of calls
	Callers   []Caller          `json:"callers"`
	Uses      []Use             `json:"uses"`
	Refusals  []Refusal         `json:"refusals"`
	Spend     map[By][]Row      `json:"spend"`
	Approvals Events            `json:"approvals"` // what a person was asked
	Anomalies Events            `json:"anomalies"` // flagged, and no refusals
	Config    Events            `json:"config"`
	Pins      Events            `json:"pins"`
	Sessions  Events            `json:"sessions"`
	Ledger    Events            `json:"ledger"`
}

// Builder makes a [Report] of events as they go by. It is for one goroutine.
type Builder struct {
	o        Options
	r        Report
	tallies  []*Tally
	uses     map[[2]string]*Use
	callers  map[[2]string]*Caller
	refusals map[[2]string]*Refusal
}

// New begins a report.
func New(o Options) *Builder {
	none := Events{List: []Event{}}
	b := &Builder{
		o: o, uses: map[[2]string]*Use{}, callers: map[[2]string]*Caller{}, refusals: map[[2]string]*Refusal{},
		r: Report{
			Generated: o.Generated.UTC(), Version: o.Version, Since: o.Since, Until: o.Until, Session: o.Session, Statuses: map[string]uint64{}, Spend: map[By][]Row{},
			Approvals: none, Anomalies: none, Config: none, Pins: none, Sessions: none, Ledger: none,
		},
	}
	for _, by := range Divisions {
		b.tallies = append(b.tallies, NewTally(by))
	}
	return b
}

// Add takes an event: each call once, with its outcome.
func (b *Builder) Add(e *audit.Event) error {
	r := &e.Record
	if !b.o.Until.IsZero() && !r.Time.Before(b.o.Until) || b.o.Session != "" && r.Session != b.o.Session {
		return nil
	}
	if b.r.FirstSeq == 0 || r.Seq < b.r.FirstSeq {
		b.r.FirstSeq = r.Seq
	}
	b.r.LastSeq = max(b.r.LastSeq, r.Seq)
	if e.Outcome != nil {
		b.r.LastSeq = max(b.r.LastSeq, e.Outcome.Seq)
	}
	if e.Approval() != "" || r.Status == audit.StatusPending {
		b.r.Approvals.add(e)
	}
	switch r.Kind {
	case audit.KindAttempt:
		b.call(e)
	case audit.KindConfig:
		b.r.Config.add(e)
	case audit.KindPins:
		b.r.Pins.add(e)
	case audit.KindSession:
		b.r.Sessions.add(e)
	case audit.KindLedger, audit.KindKey:
		b.r.Ledger.add(e)
	case audit.KindGovernance, audit.KindOutcome, audit.KindApproval:
	}
	if e.Flagged() && e.Status() != audit.StatusDenied && r.Kind != audit.KindPins && r.Kind != audit.KindLedger {
		b.r.Anomalies.add(e)
	}
	return nil
}

func (l *Events) add(e *audit.Event) {
	if l.Count++; len(l.List) < maxEvents {
		l.List = append(l.List, event(e))
	}
}

func event(e *audit.Event) Event {
	r := &e.Record
	out := Event{
		Seq: r.Seq, Time: r.Time, Kind: r.Kind.String(), Status: string(e.Status()), Session: r.Session, Agent: r.Agent, What: e.ID(), Approval: e.Approval(), Text: e.FlagReason(),
	}
	if r.Kind == audit.KindConfig {
		out.What = r.ConfigSHA256.String()
	}
	return out
}

func (b *Builder) call(e *audit.Event) {
	r := &e.Record
	b.r.Statuses[string(e.Status())]++
	b.r.Total.add(e)
	for _, t := range b.tallies {
		t.Add(e)
	}
	use := [2]string{r.Agent, e.ID()}
	if b.uses[use] == nil {
		b.uses[use] = &Use{Agent: r.Agent, Tool: e.ID()}
	}
	b.uses[use].add(e)
	caller := [2]string{r.Agent, r.Client}
	if b.callers[caller] == nil {
		b.callers[caller] = &Caller{Agent: r.Agent, Client: r.Client, ids: map[string]bool{}}
	}
	b.callers[caller].add(e)
	b.callers[caller].ids[r.Session] = true
	if e.Status() == audit.StatusDenied {
		f := b.refusal(r.Policy, r.Rule, r.Time, e.FlagReason())
		f.Denied++
	}
	var also []policy.Finding
	if json.Unmarshal(r.Also, &also) != nil { // nothing that this haldir could read
		return
	}
	for _, a := range also {
		f := b.refusal(a.Policy, a.Rule, r.Time, a.Reason)
		if a.Shadow {
			f.Shadow++
		} else {
			f.Also++
		}
	}
}

func (b *Builder) refusal(name, rule string, at time.Time, reason string) *Refusal {
	key := [2]string{name, rule}
	f := b.refusals[key]
	if f == nil {
		f = &Refusal{Policy: name, Rule: rule}
		b.refusals[key] = f
	}
	if !at.Before(f.Last) {
		f.Last, f.Reason = at, reason
	}
	return f
}

// Report ends the report.
func (b *Builder) Report(i Integrity) *Report {
	r := b.r
	r.Integrity = i
	for _, t := range b.tallies {
		r.Spend[t.By] = t.Rows()
	}
	r.Callers = []Caller{}
	for _, key := range slices.SortedFunc(maps.Keys(b.callers), byKey) {
		c := *b.callers[key]
		c.Sessions = len(c.ids)
		r.Callers = append(r.Callers, c)
	}
	r.Uses = []Use{}
	for _, key := range slices.SortedFunc(maps.Keys(b.uses), byKey) {
		r.Uses = append(r.Uses, *b.uses[key])
	}
	slices.SortStableFunc(r.Uses, func(a, b Use) int {
		return cmp.Or(strings.Compare(a.Agent, b.Agent), cmp.Compare(b.Calls+b.Denied, a.Calls+a.Denied))
	})
	r.Refusals = []Refusal{}
	for _, key := range slices.SortedFunc(maps.Keys(b.refusals), byKey) {
		r.Refusals = append(r.Refusals, *b.refusals[key])
	}
	slices.SortStableFunc(r.Refusals, func(a, b Refusal) int {
		return cmp.Or(cmp.Compare(b.Denied, a.Denied), cmp.Compare(b.Also, a.Also), cmp.Compare(b.Shadow, a.Shadow))
	})
	for _, list := range [][]Event{r.Approvals.List, r.Anomalies.List} { // calls come when they have ended
		slices.SortFunc(list, func(a, b Event) int { return cmp.Compare(a.Seq, b.Seq) })
	}
	return &r
}

func byKey(a, b [2]string) int { return slices.Compare(a[:], b[:]) }
