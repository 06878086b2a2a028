// Package replay asks what other policies would have made of the calls on record.
//
// It is pure: it is given the records, in order, and remembers no more of them than
// the counters of the policies and the calls that are under way. The policies are
// taken to have been in force from the first record on: counters begin at zero and
// count what these policies would have admitted.
package replay

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/policy"
)

// Session is what is known of a session.
type Session struct {
	State     policy.SessionState // as it is now
	Created   time.Time
	RevokedAt time.Time
	Config    bool // its terms are those of the config that is in force
}

// Terms are what a config grants the sessions that follow it.
type Terms struct {
	AllScopes  bool
	Scopes     []string
	SpendLimit *policy.Micros
	TTL        time.Duration
}

// Options configure a [Run].
type Options struct {
	Engine   *policy.Engine
	Sessions map[string]Session // one that is not here may do everything
	// Terms take the place of those of the sessions that follow the config; nil
	// leaves them as they are.
	Terms *Terms
	// Trusted reports whether an upstream's word on which of its tools only read
	// counts. That word is not on record.
	Trusted func(upstream string) bool
	// Session, if set, is the only one that is reported; the calls of all of them
	// count against limits.
	Session  string
	Examples int // how many are kept of each kind of change
	// AsRecorded lets through what was let through, whatever the policies say: it is
	// for [Run.Peaks].
	AsRecorded bool
}

// Change is what would have become of a call.
type Change string

// The changes.
const (
	NewlyDenied  Change = "denied"    // it was let through
	NewlyAllowed Change = "allowed"   // it was refused
	NewlyAsked   Change = "asked"     // a person would have been asked
	Undecided    Change = "undecided" // nobody knows: what would decide is not on record
)

// Example is a call that would have become something else.
type Example struct {
	Seq     uint64       `json:"seq"`
	Time    time.Time    `json:"timestamp"`
	Session string       `json:"session_id"`
	Agent   string       `json:"agent_id"`
	Tool    string       `json:"tool"` // canonical id
	Was     audit.Status `json:"was"`
	Change  Change       `json:"change"`
	Policy  string       `json:"policy,omitempty"`
	Rule    string       `json:"rule,omitempty"`
	Reason  string       `json:"reason,omitempty"`
}

// RuleCount is what one rule would have done.
type RuleCount struct {
	Policy      string `json:"policy"`
	Rule        string `json:"rule"`
	Denied      uint64 `json:"denied"`       // calls that it would have been reported for
	NewlyDenied uint64 `json:"newly_denied"` // of these, the ones that were let through
	Shadow      uint64 `json:"shadow"`       // calls that it would have refused, were it not a shadow rule
}

// Report is what a replay has found.
type Report struct {
	Since         time.Time     `json:"since,omitzero"` // of the first call
	Until         time.Time     `json:"until,omitzero"` // of the last one
	Calls         uint64        `json:"calls"`          // that were compared
	StillAllowed  uint64        `json:"still_allowed"`
	StillDenied   uint64        `json:"still_denied"`
	NewlyDenied   uint64        `json:"newly_denied"`
	NewlyAllowed  uint64        `json:"newly_allowed"`
	NewlyAsked    uint64        `json:"newly_asked"`
	Undecided     uint64        `json:"undecided"`  // their arguments are not on record in full, and a rule reads them
	Unreported    uint64        `json:"unreported"` // undecided for another reason: the tool's annotations are not on record
	NotJudged     uint64        `json:"not_judged"` // refused for what is no policy, or left to a person: not compared
	SpendRecorded policy.Micros `json:"spend_recorded_usd"`
	SpendThen     policy.Micros `json:"spend_then_usd"`
	Rules         []RuleCount   `json:"rules"`
	Examples      []Example     `json:"examples"`
}

// Run is one replay. It is for one goroutine.
type Run struct {
	o        Options
	report   Report
	counters map[policy.CounterKey]policy.Counter
	peaks    map[policy.CounterKey]int64
	open     map[uint64]open
	seen     map[string]time.Time // sessions that are not known, and their first call
	began    time.Time
	revoked  map[string]bool // since then
	rules    map[[2]string]*RuleCount
	kept     map[Change]int
}

// open is a call that has no outcome yet.
type open struct {
	reported bool
	recorded int64 // its cost as it was reserved then
	admitted bool  // by these policies
	holds    []policy.Hold
	cost     int64 // by these policies
	actual   bool  // the outcome's cost is what it costs
}

// New begins a replay.
func New(o Options) *Run {
	return &Run{
		o: o, counters: map[policy.CounterKey]policy.Counter{}, peaks: map[policy.CounterKey]int64{}, open: map[uint64]open{},
		seen: map[string]time.Time{}, revoked: map[string]bool{}, rules: map[[2]string]*RuleCount{}, kept: map[Change]int{},
	}
}

// judges are the names of what decides about a call by rules; all others, such as
// unknown_tool, refuse what no policy was asked about.
var judges = []string{
	policy.PolicyScope, policy.PolicyCondition, policy.PolicyCost, string(policy.TypeDeny), string(policy.TypeAllow),
	string(policy.TypeSpendLimit), string(policy.TypeRateLimit), string(policy.TypeTimeWindow), "require_approval", "loop",
}

// Judged reports whether policies have decided about the attempt of a record.
func Judged(r *audit.Record) bool {
	if r.Kind != audit.KindAttempt {
		return false
	}
	switch r.Status { //nolint:exhaustive // what waits for a person is none of them
	case audit.StatusRunning:
		return true
	case audit.StatusDenied:
		return slices.Contains(judges, r.Policy) || r.Policy == policy.PolicySession && r.Rule != "unknown"
	default:
		return false
	}
}

// Call makes of an attempt's record the call that it tells of. whole reports
// whether the arguments are on record as they were sent.
func Call(r *audit.Record) (c policy.Call, whole bool) {
	c = policy.Call{Session: r.Session, Agent: r.Agent, Upstream: r.Upstream, Tool: r.Tool}
	for kind, prefix := range map[policy.Kind]string{policy.KindResource: "resource:", policy.KindPrompt: "prompt:"} {
		if own, ok := strings.CutPrefix(r.Tool, prefix); ok {
			c.Kind, c.Tool = kind, own
		}
	}
	switch {
	case r.ArgumentsSize == 0:
		return c, true
	case uint64(len(r.Arguments)) == r.ArgumentsSize && sha256.Sum256(r.Arguments) == r.ArgumentsSHA256:
		c.Arguments = r.Arguments
		return c, true
	}
	return c, false
}

// Add takes the next record: its number and its canonical bytes.
func (r *Run) Add(seq uint64, raw []byte) error {
	rec, err := audit.Decode(raw)
	if err != nil {
		return &audit.Damage{Seq: seq, Kind: audit.DamageUnreadable, Detail: err.Error()}
	}
	if r.began.IsZero() {
		r.began = rec.Time
	}
	switch rec.Kind { //nolint:exhaustive // the others tell of no call
	case audit.KindAttempt:
		r.attempt(&rec)
	case audit.KindOutcome:
		r.outcome(&rec)
	case audit.KindSession:
		if rec.Status == audit.StatusRevoked {
			r.revoked[rec.Session] = true
		}
	}
	return nil
}

func (r *Run) attempt(rec *audit.Record) {
	reported := r.o.Session == "" || rec.Session == r.o.Session
	if !Judged(rec) {
		if reported {
			r.report.NotJudged++
		}
		return
	}
	call, whole := Call(rec)
	s := policy.State{Now: rec.Time, Session: r.session(rec), Used: r.counters, Granted: rec.Approval != ""}
	d, change, unpriced := r.decide(call, s, whole)
	was := rec.Status == audit.StatusRunning
	admitted := d.Verdict == policy.Allow
	if change == Undecided || d.Verdict == policy.Ask || r.o.AsRecorded {
		admitted = was
	}
	if reported {
		r.count(rec, d, change, was)
	}
	o := open{reported: reported, recorded: rec.Cost, admitted: admitted}
	if admitted {
		o.cost, o.actual = int64(d.Cost), d.CostFrom != "" && rec.Cost > 0
		if o.holds = d.Holds; d.Verdict != policy.Allow || change == Undecided {
			o.holds = r.o.Engine.Holds(call, s)
		}
		if unpriced { // what was reserved then is the best that is known
			o.cost = rec.Cost
			for i := range o.holds {
				if o.holds[i].Money {
					o.holds[i].Amount = rec.Cost
				}
			}
		}
		r.hold(o.holds)
	}
	if reported {
		r.report.SpendRecorded += policy.Micros(rec.Cost)
		r.report.SpendThen += policy.Micros(o.cost)
	}
	if was {
		r.open[rec.Seq] = o
	}
}

// decide returns the new decision; change is Undecided where there is none. unpriced
// reports that what the call costs is not known.
func (r *Run) decide(call policy.Call, s policy.State, whole bool) (d policy.Decision, change Change, unpriced bool) {
	if whole {
		d = r.o.Engine.Decide(call, s)
	} else {
		var lines []policy.Line
		d, lines = r.o.Engine.Explain(call, s)
		unpriced = slices.ContainsFunc(lines, func(l policy.Line) bool { return l.Policy == policy.PolicyCost && !l.Regardless() })
		if !regardless(&d, lines) {
			return d, Undecided, unpriced
		}
	}
	if call.Kind == policy.KindTool && r.o.Trusted != nil && r.o.Trusted(call.Upstream) {
		// Whether the tool only reads is not on record, so both must agree.
		call.ReadOnly = true
		if r.o.Engine.Decide(call, s).Verdict != d.Verdict {
			d.Policy = annotations
			return d, Undecided, unpriced
		}
	}
	return d, "", unpriced
}

// annotations stands for a decision that rests on a tool's annotations.
const annotations = "annotations"

// regardless reports whether a decision is the same whatever the arguments are. If a
// rule that does not read them refuses, it is the one to report.
func regardless(d *policy.Decision, lines []policy.Line) bool {
	all := true
	for i := range lines {
		l := &lines[i]
		if l.Shadow {
			continue
		}
		if l.Regardless() && l.Applies && !l.Passes {
			d.Verdict, d.Policy, d.Rule, d.Reason = policy.Deny, l.Policy, l.Rule, l.Why
			return true
		}
		all = all && l.Regardless()
	}
	return all
}

// count enters a call into the report.
func (r *Run) count(rec *audit.Record, d policy.Decision, change Change, was bool) {
	n := &r.report
	n.Calls++
	if n.Since.IsZero() {
		n.Since = rec.Time
	}
	n.Until = rec.Time
	for _, f := range d.Also {
		if f.Shadow && change != Undecided {
			r.rule(f.Policy, f.Rule).Shadow++
		}
	}
	switch {
	case change == Undecided && d.Policy == annotations:
		n.Unreported++
	case change == Undecided:
		n.Undecided++
	case d.Verdict == policy.Ask:
		change = NewlyAsked
		n.NewlyAsked++
	case d.Verdict == policy.Allow && was:
		n.StillAllowed++
	case d.Verdict == policy.Allow:
		change = NewlyAllowed
		n.NewlyAllowed++
	default:
		rule := r.rule(d.Policy, d.Rule)
		rule.Denied++
		if !was {
			n.StillDenied++
			break
		}
		change = NewlyDenied
		n.NewlyDenied++
		rule.NewlyDenied++
	}
	if change == "" || r.kept[change] >= r.o.Examples {
		return
	}
	r.kept[change]++
	e := Example{
		Seq: rec.Seq, Time: rec.Time, Session: rec.Session, Agent: rec.Agent, Tool: audit.CanonicalID(rec.Upstream, rec.Tool), Was: audit.StatusAllowed, Change: change,
	}
	if change != Undecided {
		e.Policy, e.Rule, e.Reason = d.Policy, d.Rule, d.Reason
	}
	if !was {
		e.Was = audit.StatusDenied
	}
	if change == NewlyAllowed { // what had refused it
		e.Policy, e.Rule, e.Reason = rec.Policy, rec.Rule, rec.FlagReason
	}
	n.Examples = append(n.Examples, e)
}

func (r *Run) rule(name, rule string) *RuleCount {
	key := [2]string{name, rule}
	if r.rules[key] == nil {
		r.rules[key] = &RuleCount{Policy: name, Rule: rule}
	}
	return r.rules[key]
}

// session is what the session of a call grants at that time.
func (r *Run) session(rec *audit.Record) policy.SessionState {
	s, known := r.o.Sessions[rec.Session]
	if !known {
		if _, ok := r.seen[rec.Session]; !ok {
			r.seen[rec.Session] = rec.Time
		}
		s = Session{State: policy.SessionState{AllScopes: true}, Created: r.seen[rec.Session], Config: true}
	}
	state := s.State
	state.ID, state.Revoked = rec.Session, r.revoked[rec.Session] || !s.RevokedAt.IsZero() && s.RevokedAt.Before(r.began)
	if t := r.o.Terms; t != nil && s.Config {
		state.AllScopes, state.Scopes, state.SpendLimit, state.ExpiresAt = t.AllScopes, t.Scopes, t.SpendLimit, time.Time{}
		if t.TTL > 0 {
			state.ExpiresAt = s.Created.Add(t.TTL)
		}
	}
	return state
}

// hold puts holds on the counters, as the ledger does.
func (r *Run) hold(holds []policy.Hold) {
	for _, h := range holds {
		if h.Streak { // what a call failed at is known at its end
			continue
		}
		c := r.counters[h.Key]
		if c.Start.Before(h.Start) {
			c = policy.Counter{Start: h.Start}
		}
		c.Value = plus(c.Value, h.Amount)
		r.counters[h.Key] = c
		r.peaks[h.Key] = max(r.peaks[h.Key], c.Value)
	}
}

func plus(value, delta int64) int64 {
	if delta > 0 && value > math.MaxInt64-delta {
		return math.MaxInt64
	}
	return max(0, value+delta)
}

// streak counts a failure of a tool, or ends the row of them.
func (r *Run) streak(h policy.Hold, rec *audit.Record) {
	switch rec.Status { //nolint:exhaustive // of the others nobody knows whether they failed
	case audit.StatusAllowed:
		delete(r.counters, h.Key)
	case audit.StatusError:
		c := r.counters[h.Key]
		if c.Start.IsZero() || !rec.Time.Before(c.Start.Add(h.Window)) {
			c = policy.Counter{Start: rec.Time}
		}
		c.Value = plus(c.Value, 1)
		r.counters[h.Key] = c
	}
}

// outcome settles a call as it was settled then: what had not been sent is returned.
// Of a call that costs nothing the record does not tell that, so it counts.
func (r *Run) outcome(rec *audit.Record) {
	o, ok := r.open[rec.Ref]
	if !ok {
		return
	}
	delete(r.open, rec.Ref)
	if o.reported {
		r.report.SpendRecorded += policy.Micros(rec.Cost - o.recorded)
	}
	if !o.admitted {
		return
	}
	cost := o.cost
	returned := o.recorded > 0 && rec.Cost == 0 && (rec.Status == audit.StatusError || rec.Status == audit.StatusCancelled)
	switch {
	case returned:
		cost = 0
	case o.actual:
		cost = rec.Cost
	}
	if o.reported {
		r.report.SpendThen += policy.Micros(cost - o.cost)
	}
	for _, h := range o.holds {
		if h.Streak {
			r.streak(h, rec)
			continue
		}
		delta := int64(0)
		switch {
		case returned:
			delta = -h.Amount
		case h.Money:
			delta = cost - h.Amount
		}
		c := r.counters[h.Key]
		start := h.Start
		if delta == 0 || c.Start.After(start) {
			continue // its window has passed
		}
		c.Value = plus(c.Value, delta)
		r.counters[h.Key] = c
	}
}

// Peaks are the highest values that the counters have had.
func (r *Run) Peaks() map[policy.CounterKey]int64 { return r.peaks }

// Report returns what was found so far.
func (r *Run) Report() Report {
	n := r.report
	n.Rules = []RuleCount{}
	for _, key := range slices.SortedFunc(maps.Keys(r.rules), func(a, b [2]string) int {
		x, y := r.rules[a], r.rules[b]
		return cmp.Or(cmp.Compare(y.NewlyDenied, x.NewlyDenied), cmp.Compare(y.Denied, x.Denied), cmp.Compare(y.Shadow, x.Shadow), slices.Compare(a[:], b[:]))
	}) {
		n.Rules = append(n.Rules, *r.rules[key])
	}
	if n.Examples == nil {
		n.Examples = []Example{}
	}
	return n
}
