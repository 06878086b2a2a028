package policy

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Line is what one rule, or the session, the scopes or the cost of a call, says of
// it.
type Line struct {
	Policy string `json:"policy"` // the rule's type, or session, scope or cost
	Rule   string `json:"rule,omitempty"`
	Shadow bool   `json:"shadow,omitempty"`
	// Applies tells whether the rule has a say about the call; Passes whether it
	// lets it through, which a rule that does not apply does.
	Applies bool `json:"applies"`
	Passes  bool `json:"passes"`
	// Decides marks the line that the decision reports.
	Decides bool `json:"decides,omitempty"`
	// Why says why the rule does not apply, or what it has against the call.
	Why string `json:"why,omitempty"`
	// When is the rule's condition and Value what it is for this call: true, false
	// or undecided; "" if it was not looked at.
	When  string `json:"when,omitempty"`
	Value string `json:"value,omitempty"`
	// Counter is what the rule counts, as it stood before the call.
	Counter *Gauge `json:"counter,omitempty"`
	// Flips says when the rule would say otherwise, if that can be known. FlipsAt is
	// that time, FlipsAfter how many more calls like this one pass.
	Flips      string    `json:"flips,omitempty"`
	FlipsAt    time.Time `json:"flips_at,omitzero"`
	FlipsAfter int64     `json:"flips_after_calls,omitempty"`

	reads bool // it may say otherwise of other arguments
}

// Gauge is a counter beside its limit, in calls or, if Money, in micro-USD.
type Gauge struct {
	Per         string
	Of          string // the session, agent, tool or upstream that is counted for
	Used, Limit int64
	Money       bool
	ResetsAt    time.Time // zero: never, or no window is open
}

// MarshalJSON writes money in dollars.
func (g Gauge) MarshalJSON() ([]byte, error) {
	type common struct {
		Per      string    `json:"per"`
		Of       string    `json:"of,omitempty"`
		ResetsAt time.Time `json:"resets_at,omitzero"`
	}
	c := common{g.Per, g.Of, g.ResetsAt}
	if g.Money {
		return json.Marshal(struct {
			common
			Used  Micros `json:"used_usd"`
			Limit Micros `json:"limit_usd"`
		}{c, Micros(g.Used), Micros(g.Limit)})
	}
	return json.Marshal(struct {
		common
		Used  int64 `json:"used"`
		Limit int64 `json:"limit"`
	}{c, g.Used, g.Limit})
}

// String shows what is used of what: 3 of 100 calls, $2.50 of $25.00.
func (g Gauge) String() string {
	if g.Money {
		return Micros(g.Used).String() + " of " + Micros(g.Limit).String()
	}
	return fmt.Sprintf("%d of %s", g.Used, calls(g.Limit))
}

// Regardless reports whether the line says the same of the call whatever its
// arguments are.
func (l *Line) Regardless() bool { return !l.reads }

// none stands for no rule.
const none = -1

// watch sees what Decide does. A nil one sees nothing.
type watch struct {
	rules []seen // in the order of the rules; the last one stands for what comes after
	found []Finding
	holds []Hold
}

type seen struct {
	rule       int
	from       int // the first of its findings
	evaluated  bool
	value      bool
	undecided  error
	downstream int // the first finding that is not its own
}

func (w *watch) rule(i, findings int) {
	if w == nil {
		return
	}
	if n := len(w.rules); n > 0 {
		w.rules[n-1].downstream = findings
	}
	w.rules = append(w.rules, seen{rule: i, from: findings, downstream: findings})
}

func (w *watch) condition(value bool, err error) {
	if w == nil {
		return
	}
	s := &w.rules[len(w.rules)-1]
	s.evaluated, s.value, s.undecided = true, value, err
}

func (w *watch) end(findings []Finding, holds []Hold) {
	if w != nil {
		w.found, w.holds = findings, holds
	}
}

// Holds is what c would reserve if it were let through, whatever speaks against it.
func (e *Engine) Holds(c Call, s State) []Hold {
	w := &watch{}
	e.decide(c, s, w)
	return w.holds
}

// Explain is [Engine.Decide] and says what each rule had to do with it: the session
// and the scopes, every rule in the order of the file, the cost, and the session's
// own limit. The lines are made while Decide decides, not by deciding again.
func (e *Engine) Explain(c Call, s State) (Decision, []Line) {
	w := &watch{}
	d := e.decide(c, s, w)
	concern := e.concern(&c)
	x := explainer{e: e, c: &c, s: s, d: &d, price: concern.price}

	// What Decide finds before it comes to the rules, and after.
	before, after := w.found, []Finding(nil)
	if n := len(w.rules); n > 0 {
		before, after = w.found[:w.rules[0].from], w.found[w.rules[n-1].from:]
	}
	lines := []Line{x.session(before), x.scope(before)}
	by := map[int]seen{}
	for _, s := range w.rules {
		by[s.rule] = s
	}
	for i := range e.rules {
		l := Line{Policy: string(e.rules[i].kind), Rule: e.rules[i].id, Shadow: e.rules[i].shadow, Passes: true}
		if s, ok := by[i]; ok {
			x.rule(&l, &e.rules[i], s, w.found[s.from:s.downstream])
		} else {
			l.Why = e.rules[i].elsewhere(&c)
		}
		lines = append(lines, l)
	}
	lines = append(lines, x.cost(before)...)
	lines = append(lines, x.limit(after)...)
	for i := range lines {
		l := &lines[i]
		if d.Verdict != Allow && l.Applies && !l.Passes && !l.Shadow && l.Policy == d.Policy && l.Rule == d.Rule && l.Why == d.Reason {
			l.Decides = true
			break
		}
	}
	return d, lines
}

// explainer makes lines of what was seen.
type explainer struct {
	e     *Engine
	c     *Call
	s     State
	d     *Decision
	price *cost
}

// refuse fills in what speaks against the call.
func (l *Line) refuse(f Finding) {
	l.Policy, l.Rule, l.Why, l.Passes = f.Policy, f.Rule, f.Reason, false
	l.FlipsAt = f.RetryAt
}

func of(policy string, found []Finding) (Finding, bool) {
	for _, f := range found {
		if f.Policy == policy {
			return f, true
		}
	}
	return Finding{}, false
}

func (x *explainer) session(found []Finding) Line {
	l := Line{Policy: PolicySession, Rule: "active", Applies: true, Passes: true}
	if f, ok := of(PolicySession, found); ok {
		l.refuse(f)
		return l
	}
	if at := x.s.Session.ExpiresAt; !at.IsZero() {
		l.FlipsAt, l.Flips = at, "expires at "+stamp(at)
	}
	return l
}

func (x *explainer) scope(found []Finding) Line {
	required := x.e.required(x.c, x.price != nil)
	l := Line{Policy: PolicyScope, Rule: strings.Join(required, ","), Applies: true, Passes: true}
	if f, ok := of(PolicyScope, found); ok {
		l.refuse(f)
	}
	return l
}

// required are the scopes that c takes.
func (e *Engine) required(c *Call, costs bool) (all []string) {
	// Of a session that has what was found missing so far, the next one is missing.
	s := SessionState{}
	for {
		scope := e.missing(c, s, costs)
		if scope == "" {
			return all
		}
		all, s.Scopes = append(all, scope), append(s.Scopes, scope)
	}
}

func (x *explainer) cost(found []Finding) []Line {
	if x.price == nil {
		return nil
	}
	l := Line{Policy: PolicyCost, Rule: PolicyCost, Applies: true, Passes: true, reads: x.price.HasFromArgument}
	if f, ok := of(PolicyCost, found); ok {
		l.refuse(f)
		return []Line{l}
	}
	l.Why = "costs " + x.d.Cost.String()
	switch {
	case x.price.HasFromArgument:
		l.Why += ", by its argument " + x.price.FromArgument
	case x.d.CostFrom != "":
		l.Why = "costs up to " + x.d.Cost.String() + "; what it has cost is read from " + x.d.CostFrom + " of the result"
	}
	return []Line{l}
}

func (x *explainer) limit(found []Finding) []Line {
	limit := x.s.Session.SpendLimit
	if limit == nil {
		return nil
	}
	l := Line{Policy: string(TypeSpendLimit), Rule: PolicySession, Applies: x.price != nil, Passes: true, reads: x.price.varies()}
	used := x.s.Used[CounterKey{CounterSessionSpend, x.c.Session}].Value
	l.Counter = &Gauge{Per: PerSession, Of: x.c.Session, Used: used, Limit: int64(*limit), Money: true}
	switch {
	case x.price == nil:
		l.Why = "the call costs nothing"
	case len(found) > 0:
		l.refuse(found[0])
	default:
		l.spendable(used, int64(*limit), int64(x.d.Cost))
	}
	return []Line{l}
}

// varies reports that what a call costs depends on its arguments.
func (p *cost) varies() bool { return p != nil && p.HasFromArgument }

// elsewhere says why a rule cannot concern c.
func (r *rule) elsewhere(c *Call) string {
	switch {
	case len(r.upstreams) > 0 && !r.upstreams.match(c.Upstream):
		return "it is about other upstreams"
	case len(r.agents) > 0 && !r.agents.match(c.Agent):
		return "it is about other agents"
	case !r.about[c.Kind]:
		return "it is not about " + kindNouns[c.Kind] + "s"
	}
	return "it is about other " + kindNouns[c.Kind] + "s"
}

// rule fills in the line of a rule that concerns the call.
func (x *explainer) rule(l *Line, r *rule, s seen, found []Finding) {
	l.Applies = true
	l.reads = s.evaluated && r.when.args
	if s.evaluated {
		l.When, l.Value = r.when.text, fmt.Sprint(s.value)
		if s.undecided != nil {
			l.Value = "undecided"
		}
	}
	if len(found) > 0 {
		l.refuse(found[0])
	}
	// An allow list whose condition is false refuses; any other rule stands aside.
	if s.evaluated && !s.value && s.undecided == nil && r.kind != TypeAllow {
		l.Applies, l.Why = false, "its condition is false"
	}
	if s.undecided != nil {
		return
	}
	switch r.kind {
	case TypeDeny, TypeAllow:
		x.listed(l, r)
	case TypeTimeWindow:
		if l.Applies {
			x.hours(l, r)
		}
	case TypeRateLimit:
		x.rate(l, r)
	case TypeSpendLimit:
		x.spend(l, r)
	case TypeApproval:
		x.approval(l, r)
	case TypeLoop:
		x.loop(l, r)
	}
}

func (x *explainer) approval(l *Line, r *rule) {
	switch {
	case !l.Applies:
	case x.s.Granted:
		l.Flips = "a person has allowed this call"
	default:
		l.refuse(r.needs(x.c))
		l.Flips = "allows once a person has said so"
	}
}

func (x *explainer) loop(l *Line, r *rule) {
	same, failed := r.repeats(x.c, x.e.known(x.c))
	current := func(key CounterKey) Counter {
		c := x.s.Used[key]
		if c.Start.IsZero() || !x.s.Now.Before(c.Start.Add(r.window)) {
			return Counter{}
		}
		return c
	}
	used, in := current(same), "calls with these arguments"
	if c := current(failed); c.Value > used.Value {
		used, in = c, "failures in a row"
	}
	l.Counter = &Gauge{Per: in, Used: used.Value, Limit: r.max}
	l.reads = true
	if !used.Start.IsZero() {
		l.Counter.ResetsAt = used.Start.Add(r.window)
	}
	switch {
	case !l.Applies:
	case !l.Passes:
		l.Flips = "allows again at " + stamp(l.FlipsAt)
	default:
		l.FlipsAfter = r.max - used.Value
		l.Flips = "denies after " + more(l.FlipsAfter) + " of this kind in " + Span(r.window)
	}
}

func (x *explainer) listed(l *Line, r *rule) {
	switch {
	case l.Value == "":
	case r.kind == TypeAllow && l.Passes, r.kind == TypeDeny && !l.Applies:
		l.Flips = "denies when its condition is " + opposite(l.Value)
	default:
		l.Flips = "allows when its condition is " + opposite(l.Value)
	}
}

func opposite(value string) string {
	if value == "true" {
		return "false"
	}
	return "true"
}

func (x *explainer) hours(l *Line, r *rule) {
	switch {
	case !l.Passes && l.FlipsAt.IsZero():
		l.Flips = "does not open within two weeks"
	case !l.Passes:
		l.Flips = "opens at " + stamp(l.FlipsAt)
	default:
		if l.FlipsAt = r.hours.closes(x.s.Now); !l.FlipsAt.IsZero() {
			l.Flips = "closes at " + stamp(l.FlipsAt)
		}
	}
}

// closes returns the first instant after t, to the minute, when the window is not
// open; zero if there is none before the horizon.
func (w window) closes(t time.Time) time.Time {
	const near, day = 180, 24 * 60 // as in next
	end := t.Add(horizon)
	for t = t.Truncate(time.Minute).Add(time.Minute); t.Before(end); t = t.Add(time.Minute) {
		if !w.open(t) {
			return t.In(w.loc)
		}
		local := t.In(w.loc)
		if until := (w.hours.End - local.Hour()*60 - local.Minute() + day) % day; until > near {
			t = t.Add(time.Duration(until-near-1) * time.Minute)
		}
	}
	return time.Time{}
}

func (x *explainer) rate(l *Line, r *rule) {
	key := r.key(x.c)
	used := x.s.Used[key]
	if used.Start.IsZero() || !x.s.Now.Before(used.Start.Add(r.window)) {
		used = Counter{}
	}
	l.Counter = &Gauge{Per: r.per, Of: key.Of, Used: used.Value, Limit: r.max}
	if !used.Start.IsZero() {
		l.Counter.ResetsAt = used.Start.Add(r.window)
	}
	switch {
	case !l.Applies:
	case !l.Passes && l.FlipsAt.IsZero():
		l.Flips = "never allows a call"
	case !l.Passes:
		l.Flips = "allows again at " + stamp(l.FlipsAt)
	default:
		l.FlipsAfter = r.max - used.Value
		l.Flips = "denies after " + more(l.FlipsAfter)
		if l.Counter.ResetsAt.IsZero() {
			l.Flips += "; a window of " + Span(r.window) + " begins with the first"
		} else {
			l.Flips += "; resets at " + stamp(l.Counter.ResetsAt)
		}
	}
}

func more(n int64) string {
	if n == 1 {
		return "1 more call"
	}
	return fmt.Sprintf("%d more calls", n)
}

func (x *explainer) spend(l *Line, r *rule) {
	key := r.key(x.c)
	used := x.s.Used[key]
	if used.Start.Before(r.period.start(x.s.Now, r.location)) {
		used = Counter{}
	}
	l.Counter = &Gauge{Per: r.per, Of: key.Of, Used: used.Value, Limit: r.max, Money: true, ResetsAt: r.period.end(x.s.Now, r.location)}
	l.reads = l.reads || x.price.varies()
	switch {
	case !l.Applies:
	case x.price == nil:
		l.Applies, l.Why = false, "the call costs nothing"
	case !l.Passes && l.FlipsAt.IsZero() && r.period == None:
		l.Flips = "does not reset"
	case !l.Passes && l.FlipsAt.IsZero():
		l.Flips = "costs more than the whole limit"
	case !l.Passes:
		l.Flips = "allows again at " + stamp(l.FlipsAt)
	default:
		l.spendable(used.Value, r.max, int64(x.d.Cost))
		if !l.Counter.ResetsAt.IsZero() {
			l.Flips = strings.TrimPrefix(l.Flips+"; resets at "+stamp(l.Counter.ResetsAt), "; ")
		}
	}
}

// spendable says for how many more calls of this cost there is money left.
func (l *Line) spendable(used, limit, amount int64) {
	if amount > 0 {
		l.FlipsAfter = (limit - used) / amount
		l.Flips = "denies after " + more(l.FlipsAfter) + " at " + Micros(amount).String()
	}
}
