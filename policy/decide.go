package policy

import (
	"fmt"
	"time"
)

// rank orders findings: the first of the lowest rank is the one reported.
type rank uint8

const (
	rankSession rank = iota
	rankScope
	rankDeny
	rankAllow
	rankCondition
	rankTime
	rankRate
	rankLoop
	rankSpend
	rankApproval
)

// Policy names of findings that do not come from a policy rule.
const (
	PolicySession   = "session"
	PolicyScope     = "scope"
	PolicyCondition = "condition"
	PolicyCost      = "cost"
	// PolicyUnknownTool and the rule of that name are in what the proxy refuses since nobody
	// has it: its name is then any text that an agent has sent.
	PolicyUnknownTool = "unknown_tool"
)

// verdicts collects what speaks against a call.
type verdicts struct {
	findings []Finding
	ranks    []rank
}

func (v *verdicts) add(r rank, f Finding) {
	v.findings = append(v.findings, f)
	v.ranks = append(v.ranks, r)
}

// Decide answers whether c may go ahead in the state s. The same input gives
// the same decision; more use of a counter never turns a denial into anything
// else.
func (e *Engine) Decide(c Call, s State) Decision { return e.decide(c, s, nil) }

// decide is Decide, and tells w, which may be nil, what came of each rule.
func (e *Engine) decide(c Call, s State, w *watch) Decision {
	var v verdicts
	d := Decision{}
	e.session(&v, &c, s)

	known := e.known(&c)
	concern := known.concern
	if known.session != c.Session || known.agent != c.Agent {
		concern = e.concern(&c)
	}
	price, amount := concern.price, known.amount
	if price != nil {
		d.Cost, d.CostFrom = amount, price.FromResult
	}
	if scope := e.missing(&c, s.Session, price != nil); scope != "" {
		v.add(rankScope, Finding{
			Policy: PolicyScope, Rule: scope,
			Reason: fmt.Sprintf("%s requires the scope '%s', which this session does not have", c.Noun(), scope),
		})
	}
	if known.unpriced != nil {
		v.add(rankSpend, Finding{
			Policy: PolicyCost, Rule: PolicyCost,
			Reason: fmt.Sprintf("The cost of %s '%s' cannot be determined: %v", kindNouns[c.Kind], c.Tool, known.unpriced),
		})
	}

	holds := make([]Hold, 0, 2+len(concern.counters))
	holds = append(holds, Hold{Key: CounterKey{CounterSessionCalls, c.Session}, Amount: 1})
	if price != nil {
		holds = append(holds,
			Hold{Key: CounterKey{CounterSessionSpend, c.Session}, Amount: int64(amount), Money: true},
			Hold{Key: concern.spend, Amount: int64(amount), Money: true})
	}

	var few [8]*window
	windows := few[:0] // of the rules that apply and are enforced
	var ask *Question
	act := &known.activation
	*act = activation{call: c, args: &known.args, now: s.Now, cost: amount}
	for _, i := range concern.rules {
		r := &e.rules[i]
		w.rule(i, len(v.findings))
		applies := true
		if r.asks(&c) {
			ok, err := known.answer(i, r.when, act)
			w.condition(ok, err)
			if err != nil && c.Partial && r.when.awaits(&known.args) {
				continue
			}
			if err != nil {
				v.add(rankCondition, Finding{
					Policy: PolicyCondition, Rule: r.id, Shadow: r.shadow,
					Reason: fmt.Sprintf("The condition of rule '%s' cannot be decided for this call of '%s': %v", r.id, c.Tool, err),
				})
				continue
			}
			applies = ok
		}
		switch r.kind {
		case TypeDeny:
			if applies {
				v.add(rankDeny, Finding{
					Policy: string(r.kind), Rule: r.id, Shadow: r.shadow,
					Reason: denyReason(r, &c),
				})
			}
		case TypeAllow:
			if !applies || !r.tools.match(&c) {
				v.add(rankAllow, Finding{
					Policy: string(r.kind), Rule: r.id, Shadow: r.shadow,
					Reason: allowReason(r, &c),
				})
			}
		case TypeTimeWindow:
			if applies && !r.hours.open(s.Now) {
				v.add(rankTime, r.shut(&c, s.Now))
			}
			if applies && !r.shadow {
				windows = append(windows, &r.hours)
			}
		case TypeRateLimit:
			if applies {
				if h := r.count(&v, &c, s); !r.shared {
					holds = append(holds, h)
				}
			}
		case TypeLoop:
			if applies {
				same, failed := r.turns(&v, &c, s, known)
				if !r.shared {
					holds = append(holds, same, failed)
				}
			}
		case TypeApproval:
			switch {
			case !applies || s.Granted:
			case r.shadow:
				v.add(rankApproval, r.needs(&c))
			default:
				ask = ask.with(r)
			}
		case TypeSpendLimit:
			if applies && price != nil {
				if h := r.charge(&v, &c, s, amount); !r.shared {
					holds = append(holds, h)
				}
			}
		}
	}
	act.close()
	w.rule(none, len(v.findings))
	e.sessionLimit(&v, &c, s, price != nil, amount)
	w.end(v.findings, holds)
	return conclude(d, &v, holds, windows, ask).asked(&c)
}

// with adds what another rule wants a person to be asked.
func (a *Question) with(r *rule) *Question {
	if a == nil {
		a = &Question{Timeout: r.timeout, Session: true}
	}
	a.Rules = append(a.Rules, r.id)
	a.Timeout = min(a.Timeout, r.timeout)
	a.Session = a.Session && !r.once
	return a
}

func (r *rule) needs(c *Call) Finding {
	return Finding{Policy: string(TypeApproval), Rule: r.id, Shadow: r.shadow, Reason: c.needs()}
}

func (c *Call) needs() string { return c.Noun() + " needs a person's approval" }

// Against returns all that the enforced rules have against c, about which d was decided: what
// refuses it, in no order but that the first is the one reported, and then each rule by which
// a person is to be asked.
func (d Decision) Against(c *Call) []Finding {
	var all []Finding
	if d.Verdict == Deny {
		all = append(all, Finding{Policy: d.Policy, Rule: d.Rule, Reason: d.Reason, RetryAt: d.RetryAt})
	}
	for _, f := range d.Also {
		if !f.Shadow {
			all = append(all, f)
		}
	}
	if d.Question != nil {
		for _, rule := range d.Question.Rules {
			all = append(all, Finding{Policy: string(TypeApproval), Rule: rule, Reason: c.needs()})
		}
	}
	return all
}

// asked says why a person is to be asked.
func (d Decision) asked(c *Call) Decision {
	if d.Verdict == Ask {
		d.Policy, d.Rule = string(TypeApproval), d.Question.Rules[0]
		d.Reason = c.needs()
	}
	return d
}

func denyReason(r *rule, c *Call) string {
	if r.when != nil {
		return c.Noun() + " is on the deny list for these arguments"
	}
	return c.Noun() + " is on the deny list"
}

func allowReason(r *rule, c *Call) string {
	if r.when != nil && r.tools.match(c) {
		return c.Noun() + " is not on the allow list for these arguments"
	}
	return c.Noun() + " is not on the allow list"
}

func (e *Engine) session(v *verdicts, c *Call, s State) {
	switch {
	case s.Session.Revoked:
		v.add(rankSession, Finding{
			Policy: PolicySession, Rule: "revoked",
			Reason: fmt.Sprintf("Session %s has been revoked", c.Session),
		})
	case !s.Session.ExpiresAt.IsZero() && !s.Now.Before(s.Session.ExpiresAt):
		v.add(rankSession, Finding{
			Policy: PolicySession, Rule: "expired",
			Reason: fmt.Sprintf("Session %s expired at %s", c.Session, stamp(s.Session.ExpiresAt)),
		})
	}
}

func (r *rule) shut(c *Call, now time.Time) Finding {
	f := Finding{Policy: string(r.kind), Rule: r.id, Shadow: r.shadow}
	h := r.hours.hours
	f.Reason = fmt.Sprintf("%s may be called from %02d:%02d to %02d:%02d %s%s only", c.Noun(),
		h.Start/60, h.Start%60, h.End/60, h.End%60, r.location, r.hours.on())
	if f.RetryAt = r.hours.next(now); !f.RetryAt.IsZero() {
		f.Reason += "; the window opens next at " + stamp(f.RetryAt)
	}
	return f
}

func (r *rule) count(v *verdicts, c *Call, s State) Hold {
	key := r.key(c)
	used := s.Used[key]
	if used.Start.IsZero() || !s.Now.Before(used.Start.Add(r.window)) {
		used = Counter{Start: s.Now}
	}
	if used.Value >= r.max {
		f := Finding{Policy: string(r.kind), Rule: r.id, Shadow: r.shadow}
		f.Reason = fmt.Sprintf("Rate limit of %s per %s reached", calls(r.max), Span(r.window))
		if r.max > 0 {
			f.RetryAt = used.Start.Add(r.window)
			f.Reason += "; the window resets at " + stamp(f.RetryAt)
		}
		v.add(rankRate, f)
	}
	return Hold{Key: key, Start: used.Start, Amount: 1}
}

func (r *rule) charge(v *verdicts, c *Call, s State, amount Micros) Hold {
	key := r.key(c)
	used := s.Used[key]
	start := r.period.start(s.Now, r.location)
	if used.Start.Before(start) {
		used = Counter{Start: start}
	}
	if amount > 0 && over(used.Value, amount, r.max) {
		per := r.per
		f := Finding{Policy: string(r.kind), Rule: r.id, Shadow: r.shadow}
		f.Reason = fmt.Sprintf("Spend limit of %s per %s reached: %s used, this call costs %s", Micros(r.max), per, Micros(used.Value), amount)
		if per == PerTotal {
			f.Reason = fmt.Sprintf("Spend limit of %s in total reached: %s used, this call costs %s", Micros(r.max), Micros(used.Value), amount)
		}
		if r.period != None && int64(amount) <= r.max {
			f.RetryAt = r.period.end(s.Now, r.location)
			f.Reason += "; it resets at " + stamp(f.RetryAt)
		}
		v.add(rankSpend, f)
	}
	return Hold{Key: key, Start: start, Amount: int64(amount), Money: true}
}

func (e *Engine) sessionLimit(v *verdicts, c *Call, s State, costs bool, amount Micros) {
	limit := s.Session.SpendLimit
	if limit == nil || !costs || amount == 0 {
		return
	}
	used := s.Used[CounterKey{CounterSessionSpend, c.Session}].Value
	if over(used, amount, int64(*limit)) {
		v.add(rankSpend, Finding{
			Policy: string(TypeSpendLimit), Rule: PolicySession,
			Reason: fmt.Sprintf("The session's spend limit of %s is reached: %s used, this call costs %s", *limit, Micros(used), amount),
		})
	}
}

// over reports used+amount > limit without overflow.
func over(used int64, amount Micros, limit int64) bool {
	return used > limit || int64(amount) > limit-used
}

// conclude makes the decision out of what was found.
func conclude(d Decision, v *verdicts, holds []Hold, windows []*window, ask *Question) Decision {
	first := -1
	retryable := true
	for i, f := range v.findings {
		if f.Shadow {
			continue
		}
		if first < 0 || v.ranks[i] < v.ranks[first] {
			first = i
		}
		if f.RetryAt.IsZero() {
			retryable = false
		} else if f.RetryAt.After(d.RetryAt) {
			d.RetryAt = f.RetryAt
		}
	}
	for i, f := range v.findings {
		if i != first {
			d.Also = append(d.Also, f)
		}
	}
	d.Question = ask
	switch {
	case first < 0 && ask != nil:
		d.Verdict = Ask
		return d
	case first < 0:
		d.Verdict, d.Holds = Allow, holds
		return d
	}
	f := v.findings[first]
	d.Policy, d.Rule, d.Reason = f.Policy, f.Rule, f.Reason
	if retryable {
		d.RetryAt = allOpen(d.RetryAt, windows)
	} else {
		d.RetryAt = time.Time{}
	}
	return d
}

// allOpen returns the first time at or after t when every window is open; zero
// if they are not found open together.
func allOpen(t time.Time, windows []*window) time.Time {
	for range 64 {
		open := true
		for _, w := range windows {
			at := w.next(t)
			if at.IsZero() {
				return at
			}
			if !at.Equal(t) {
				t, open = at, false
			}
		}
		if open {
			return t
		}
	}
	return time.Time{}
}

// stamp shows a time to the second, rounded up: at the time it shows, what it
// says has happened.
func stamp(t time.Time) string {
	return t.Add(time.Second - 1).Truncate(time.Second).Format(time.RFC3339)
}

func calls(n int64) string {
	if n == 1 {
		return "1 call"
	}
	return fmt.Sprintf("%d calls", n)
}

// Span formats a window the way people say it: 1h, 90m, 1m30s.
func Span(d time.Duration) string {
	switch {
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}
