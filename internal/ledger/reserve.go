package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/policy"
)

// Decider is the policy engine as Reserve uses it.
type Decider interface {
	Reads(policy.Call) []policy.CounterKey
	Decide(policy.Call, policy.State) policy.Decision
}

// Attempt is a call that asks to be let through.
type Attempt struct {
	Use    Use
	Call   policy.Call // Session and Agent are filled in from the session
	Body   audit.Body
	Client string // what the client says it is
	Config audit.Hash
	// Pin is the hash of the tool's definition, which a person's word is bound to.
	Pin audit.Hash
	// Shown returns what a person is shown of the arguments; nil shows them as they are.
	Shown func(arguments []byte) []byte
	// Grant is the id of the approval that this call has waited for, "" if none.
	Grant string
	// Refused, if set, is why the call cannot be let through whatever the
	// policies say, such as an unknown tool. It is recorded as a denial.
	Refused *policy.Finding
}

// Ticket stands for one reservation.
type Ticket struct {
	CallID  string
	Seq     uint64 // the audit sequence of the attempt
	Session string
	// Approval is the id of what a person is asked, with the verdict [policy.Ask].
	Approval string
	Deadline time.Time // for the answer

	written *written // what the call holds; nil if that is to be read from the file
}

// written is a hold as it was written, so that it need not be read again.
type written struct {
	raw []byte
	held
}

// AuditID names the attempt's record for people.
func (t Ticket) AuditID() string { return fmt.Sprintf("aud_%d", t.Seq) }

// Reserve decides about an attempt and records it, in one transaction, with the
// counters as they are in that transaction. When it returns without an error the
// record is on disk; if the verdict is Allow, so are the holds, and the call may
// be forwarded and must be settled. After an error the call must not be
// forwarded; it needs no settling.
//
// ctx bounds the wait for a turn; once the transaction runs, its outcome is
// awaited.
func (l *Ledger) Reserve(ctx context.Context, a Attempt, d Decider) (Ticket, policy.Decision, error) {
	ticket := Ticket{CallID: l.id + "-" + newID("")}
	var decision policy.Decision
	o := &op{write: true, done: make(chan error, 1)}
	o.run = func(t *tx) (err error) {
		ticket = Ticket{CallID: ticket.CallID}
		decision, err = t.reserve(&ticket, a, d)
		if err == nil && decision.Verdict == policy.Ask {
			ticket.Approval, ticket.Deadline = approvalID(ticket.Seq), t.now.Add(decision.Question.Timeout)
		}
		return err
	}
	o.unsure = func() {
		// The reservation may be on disk although the commit failed.
		l.Settle(ticket, Outcome{Result: NotSent, Reason: "the reservation could not be confirmed on disk"})
	}
	if err := l.wait(ctx, o); err != nil {
		return Ticket{}, policy.Decision{}, err // nothing that looks like a leave
	}
	return ticket, decision, nil
}

// reserve decides about a, records it and fills in the ticket.
func (t *tx) reserve(ticket *Ticket, a Attempt, d Decider) (policy.Decision, error) {
	s, err := t.use(a.Use)
	if errors.Is(err, ErrNoSession) {
		s = &Session{ID: a.Use.ID}
		a.Refused = a.Use.Missing()
	} else if err != nil {
		return policy.Decision{}, err
	}
	call := a.Call
	call.Session, call.Agent = s.ID, s.Agent
	ticket.Session = s.ID

	decision, spent, err := t.judge(call, s, &a, d)
	if err != nil {
		return policy.Decision{}, err
	}
	if err := t.firstUse(a.Config); err != nil {
		return decision, err
	}
	rec := &audit.Record{
		Kind: audit.KindAttempt, Status: audit.StatusDenied, CallID: ticket.CallID, Session: s.ID, Agent: s.Agent, Client: a.Client,
		Upstream: call.Upstream, Tool: call.Recorded(), Policy: decision.Policy, Rule: decision.Rule, Arguments: a.Body.Text,
		ArgumentsSHA256: a.Body.SHA256, ArgumentsSize: a.Body.Size, ConfigSHA256: a.Config,
	}
	if len(decision.Also) > 0 {
		if rec.Also, err = json.Marshal(decision.Also); err != nil {
			return decision, err
		}
	}
	switch decision.Verdict {
	case policy.Allow:
		rec.Status, rec.Cost = audit.StatusRunning, int64(decision.Cost)
		if spent != nil {
			rec.Approval = spent.ID
		}
	case policy.Ask:
		rec.Status, rec.Cost = audit.StatusPending, int64(decision.Cost)
	case policy.Deny:
		rec.Flagged, rec.FlagReason = true, decision.Reason
	}
	if err := t.append(rec); err != nil {
		return decision, err
	}
	ticket.Seq = rec.Seq
	switch decision.Verdict {
	case policy.Deny:
		return decision, t.free(&a, s.ID)
	case policy.Ask:
		process, _, _ := strings.Cut(ticket.CallID, "-")
		return decision, t.propose(process, &a, rec, &decision)
	case policy.Allow:
	}
	h := held{Seq: rec.Seq, Cost: decision.Cost, Session: s.ID, Start: t.now.Round(0)}
	for _, x := range decision.Holds {
		start := x.Start
		if !x.Streak { // what a call failed at is known at its end
			if start, err = t.add(x.Key, x.Start, x.Amount, x.Window); err != nil {
				return decision, err
			}
		}
		h.Holds = append(h.Holds, hold{x.Key.Counter, x.Key.Of, start, x.Amount, x.Money, x.Window, x.Streak})
	}
	raw, err := json.Marshal(h)
	if err != nil {
		return decision, err
	}
	ticket.written = &written{raw, h}
	return decision, t.space(spaceHolds).put([]byte(ticket.CallID), raw)
}

// judge decides about an attempt. spent is the grant that it has redeemed, nil if it
// needed none.
func (t *tx) judge(call policy.Call, s *Session, a *Attempt, d Decider) (decision policy.Decision, spent *grant, err error) {
	refused := a.Refused
	if refused == nil {
		if stopped := t.stopped(); stopped != nil {
			refused = stopped.refusal()
		}
	}
	if refused != nil {
		return policy.Decision{Policy: refused.Policy, Rule: refused.Rule, Reason: refused.Reason, RetryAt: refused.RetryAt}, nil, nil
	}
	if decision, err = t.decide(call, s, d, false); err != nil || decision.Verdict != policy.Ask {
		return decision, nil, err
	}
	a.Call = call
	key, g, err := t.granted(a, s.ID, decision.Question)
	if err != nil {
		return decision, nil, err
	}
	if g == nil {
		return t.queue(decision)
	}
	if decision, err = t.decide(call, s, d, true); err != nil || decision.Verdict != policy.Allow {
		return decision, nil, err
	}
	return decision, g, t.redeem(key, g)
}

// queue refuses a call that needs a person's word if too many wait for that already.
func (t *tx) queue(asks policy.Decision) (policy.Decision, *grant, error) {
	if !t.Writable() {
		return asks, nil, nil
	}
	why, err := t.room()
	if err != nil || why == "" {
		return asks, nil, err
	}
	return policy.Decision{Policy: asks.Policy, Rule: asks.Rule, Reason: asks.Reason + ", and " + why, Also: asks.Also}, nil, nil
}

// decide asks d with the counters that it reads. A mistake in d, which knows
// nothing of the file, is no damage of the file: it refuses this call.
func (t *tx) decide(call policy.Call, s *Session, d Decider, granted bool) (decision policy.Decision, err error) {
	state := policy.State{Now: t.now, Session: s.State(), Used: map[policy.CounterKey]policy.Counter{}, Granted: granted}
	var keys []policy.CounterKey
	if err := shield(func() { keys = d.Reads(call) }); err != nil {
		return decision, err
	}
	for _, k := range keys {
		if c := t.used(k, s.ID); c != (policy.Counter{}) {
			state.Used[k] = c
		}
	}
	err = shield(func() { decision = d.Decide(call, state) })
	return decision, err
}

func shield(f func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the decision about the call failed, which is a mistake in haldir: %v", r)
		}
	}()
	f()
	return nil
}

// firstUse records a config that was not used before.
func (t *tx) firstUse(config audit.Hash) error {
	known := t.space(spaceConfigs)
	if config.IsZero() || known.get(config[:]) != nil {
		return nil
	}
	rec := &audit.Record{Kind: audit.KindConfig, Status: "used", ConfigSHA256: config}
	if err := t.append(rec); err != nil {
		return err
	}
	return known.put(config[:], be64(rec.Seq))
}

// Check decides about a call without reserving or recording anything.
func (l *Ledger) Check(ctx context.Context, u Use, call policy.Call, d Decider) (s Session, decision policy.Decision, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		found, err := t.peek(u)
		if err != nil {
			return err
		}
		s = *found
		call.Session, call.Agent = s.ID, s.Agent
		decision, _, err = t.judge(call, found, &Attempt{}, d)
		return err
	})
	return s, decision, err
}

// Result is how far an admitted call got.
type Result uint8

// The results.
const (
	Unknown   Result = iota // it was sent, or may have been; what came of it is not known
	Done                    // the upstream answered
	Failed                  // the upstream answered with an error
	NotSent                 // it certainly never left haldir: everything held is returned
	Cancelled               // the client cancelled it after it was, or may have been, sent
	Withdrawn               // the client cancelled it before it was sent: everything held is returned
)

// Outcome is how an admitted call ended.
type Outcome struct {
	Result Result
	// Actual is what the call cost, when that was to be learnt from its result;
	// nil keeps what was reserved.
	Actual       *policy.Micros
	Reason       string // why it is flagged, "" if it is not
	ResultSHA256 audit.Hash
}

// Settle ends a reservation: holds become spend, or are returned if the call
// was never sent. It does not block and cannot fail: the outcome is committed
// with the next transaction, or retried until it is. A ticket is settled once;
// settling it again changes nothing.
func (l *Ledger) Settle(ticket Ticket, out Outcome) {
	l.owe(func(t *tx) error { return t.settle(ticket.CallID, ticket.written, out) })
}

// settle settles a call, of which known, which may be nil, is what was written.
func (t *tx) settle(callID string, known *written, out Outcome) error {
	raw := t.space(spaceHolds).get([]byte(callID))
	if raw == nil {
		return nil // settled before, or the reservation was never committed
	}
	var h held
	if known != nil && bytes.Equal(known.raw, raw) {
		h = known.held
	} else if err := decode(raw, &h); err != nil {
		return fmt.Errorf("%w: hold %s: %w", ErrDamaged, callID, err)
	}
	cost := h.Cost
	status := audit.StatusAllowed
	flag := out.Reason
	switch out.Result {
	case Done:
	case Failed, NotSent:
		status = audit.StatusError
	case Unknown:
		status = audit.StatusError
	case Cancelled, Withdrawn:
		status = audit.StatusCancelled
	}
	returned := out.Result == NotSent || out.Result == Withdrawn
	if returned {
		cost = 0
	} else if a := out.Actual; a != nil && (*a < 0 || *a > maxActual) {
		flag = join(flag, fmt.Sprintf("absurd actual cost %s; the reserved %s counts", *a, h.Cost))
	} else if a != nil {
		cost = *a
		if cost > h.Cost {
			flag = join(flag, fmt.Sprintf("overrun: %s reserved, %s actual", h.Cost, cost))
		}
	}
	for _, x := range h.Holds {
		if x.Streak {
			if err := t.streak(&x, out.Result); err != nil {
				return err
			}
			continue
		}
		delta := int64(0)
		switch {
		case returned:
			delta = -x.Amount
		case x.Money:
			delta = int64(cost) - x.Amount
		}
		if delta == 0 {
			continue
		}
		k := policy.CounterKey{Counter: x.Counter, Of: x.Of}
		c := t.counter(k)
		if !c.Start.Equal(x.Start) {
			continue // its window has passed, and with it what the call used
		}
		c.Value = plus(c.Value, delta)
		if err := t.set(k, c, x.Window); err != nil {
			return err
		}
	}
	return t.outcome(callID, &h, &audit.Record{
		Status: status, Flagged: flag != "", FlagReason: flag, Cost: int64(cost), ResultSHA256: out.ResultSHA256,
	})
}

// maxActual is the largest actual cost that is believed: a billion dollars.
const maxActual = 1_000_000_000 * policy.USD

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// outcome appends the outcome record of a call and drops its hold.
func (t *tx) outcome(callID string, h *held, rec *audit.Record) error {
	rec.Kind, rec.Ref, rec.CallID = audit.KindOutcome, h.Seq, callID
	rec.DurationMS = uint64(max(0, t.now.Sub(h.Start).Milliseconds()))
	if err := t.append(rec); err != nil {
		return err
	}
	b := t.Bucket(bucketOutcomes)
	b.FillPercent = 0.95
	if err := b.Put(be64(h.Seq), be64(rec.Seq)); err != nil {
		return err
	}
	return t.space(spaceHolds).delete([]byte(callID))
}

// abandon settles the open calls of a process that died: nobody knows whether
// they were sent, so what they hold stays spent.
func (t *tx) abandon(process string) error {
	prefix := []byte(process + "-")
	type open struct {
		id  string
		h   held
		bad bool
	}
	var left []open
	err := t.space(spaceHolds).each(prefix, func(k, v []byte) error {
		o := open{id: string(k)}
		o.bad = decode(v, &o.h) != nil
		left = append(left, o)
		return nil
	})
	if err != nil {
		return err
	}
	for _, o := range left {
		if o.bad { // its counters stay as they are; one bad entry must not shut everyone out
			if err := t.space(spaceHolds).delete([]byte(o.id)); err != nil {
				return err
			}
			continue
		}
		err := t.outcome(o.id, &o.h, &audit.Record{
			Status: audit.StatusAbandoned, Flagged: true, Cost: int64(o.h.Cost),
			FlagReason: "haldir ended before the outcome of the call was known",
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// holds reports whether a process has open reservations.
func (t *tx) holds(process string) bool { return t.space(spaceHolds).has([]byte(process + "-")) }

// Record appends the record of a call of one of haldir's own tools.
func (l *Ledger) Record(ctx context.Context, a Attempt, failed string) error {
	return l.do(ctx, true, func(t *tx) error {
		s, err := t.use(a.Use)
		if errors.Is(err, ErrNoSession) {
			s = &Session{ID: a.Use.ID}
		} else if err != nil {
			return err
		}
		return t.append(&audit.Record{
			Kind: audit.KindGovernance, Status: audit.StatusGovernance, Session: s.ID, Agent: s.Agent, Client: a.Client,
			Upstream: a.Call.Upstream, Tool: a.Call.Recorded(), Arguments: a.Body.Text, ArgumentsSHA256: a.Body.SHA256,
			ArgumentsSize: a.Body.Size, ConfigSHA256: a.Config, FlagReason: failed, Flagged: failed != "",
		})
	})
}

// Spend is what a session, or everything, has used.
type Spend struct {
	Session Session
	Total   policy.Micros
	Calls   int64
	ByTool  map[string]policy.Micros // canonical id → spend
	Used    []policy.Micros          // of the budgets asked for, in their order
	Now     time.Time
}

// Budgeter lists the spend limits of a session.
type Budgeter interface {
	Budgets(session, agent string, now time.Time) []policy.Budget
}

// Spent returns what a session has used, with every settlement made before it.
func (l *Ledger) Spent(ctx context.Context, u Use, b Budgeter) (sp Spend, budgets []policy.Budget, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		s, err := t.peek(u)
		if err != nil {
			return err
		}
		sp = Spend{
			Session: *s, Now: t.now, ByTool: map[string]policy.Micros{},
			Total: policy.Micros(t.counter(policy.CounterKey{Counter: policy.CounterSessionSpend, Of: s.ID}).Value),
			Calls: t.counter(policy.CounterKey{Counter: policy.CounterSessionCalls, Of: s.ID}).Value,
		}
		prefix := append([]byte(policy.CounterToolSpend), 0)
		prefix = append(prefix, policy.ToolSpendOf(s.ID, "")...)
		err = t.space(spaceCounters).each(prefix, func(k, v []byte) error {
			sp.ByTool[string(k[len(prefix):])] = policy.Micros(decodeCounter(v).Value)
			return nil
		})
		if err != nil {
			return err
		}
		if err := shield(func() { budgets = b.Budgets(s.ID, s.Agent, t.now) }); err != nil {
			return err
		}
		for _, x := range budgets {
			used := t.used(x.Key, s.ID)
			if used.Start.Before(x.Start) {
				used.Value = 0
			}
			sp.Used = append(sp.Used, policy.Micros(used.Value))
		}
		return nil
	})
	return sp, budgets, err
}
