package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/approval"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
)

// A call that needs a person's word waits for it here, and holds up nothing else. The
// client is asked by a form if it shows forms; at the same time the request is in the
// ledger, where a terminal and the console see it. The first answer counts. What a person
// has said becomes a grant in the ledger, and the call asks it again: what the other
// policies say then is what counts.

// question is about a call that waits.
type question struct {
	ticket   ledger.Ticket
	decision policy.Decision
	attempt  ledger.Attempt // as the grant is for it
	tool     string         // for sentences
	asked    time.Time
}

// left is how much time there is for an answer.
func (q *question) left() time.Duration { return time.Until(q.asked.Add(q.decision.Question.Timeout)) }

// admit gets leave for a call: from the policies, and from a person where they ask for
// one. If it does not, answer is what the host gets, now. up may be another one afterwards:
// while a person was asked, it may have been replaced.
func (s *Server) admit(r *request, d []byte, up *Upstream, attempt *ledger.Attempt, b *round, refuse func(Refusal) []byte) (answer []byte, how end, admitted bool) {
	for {
		if b.question == nil {
			if attempt.Grant != "" && r.ctx.Err() != nil {
				s.o.Ledger.Free(*attempt, r.rules.Use.ID)
				return wire.Failure(&wire.Error{Code: wire.CodeInternal, Message: context.Cause(r.ctx).Error(), ID: r.msg.ID}), endKnown, false
			}
			ticket, decision, err := s.o.Ledger.Reserve(context.WithoutCancel(r.ctx), *attempt, r.rules.Engine)
			r.seen.judged(ticket, decision)
			switch {
			case err != nil:
				r.refused = err
				if attempt.Grant != "" {
					s.o.Ledger.Free(*attempt, r.rules.Use.ID)
				}
				s.o.Log.Error().Err(err).Str("call", s.shown(attempt)).Msg("a call was refused because it could not be recorded")
				return refuse(Refusal{
					Error:     fmt.Sprintf("%s was not called, since the call could not be recorded: %v", attempt.Call.Noun(), err),
					BlockedBy: "haldir", Policy: policyLedger, Rule: policyLedger, Retryable: ledger.Retryable(err),
				}), endKnown, false
			case decision.Verdict == policy.Allow:
				b.ticket, b.decision = ticket, decision
				b.config = attempt.Config
				return nil, endKnown, true
			case decision.Verdict == policy.Deny:
				r.refused = ErrRefused
				if attempt.Refused != nil {
					r.refused = errNotCalled
				}
				s.o.Log.Info().Str("call", s.shown(attempt)).Str("policy", decision.Policy).Str("rule", decision.Rule).Msg("call refused")
				return refuse(refusal(decision, ticket, s.o.Command)), endRefused, false
			}
			s.o.Log.Info().Str("call", s.shown(attempt)).Str("rule", decision.Rule).Str("request", ticket.Approval).Msg("call waits for a person")
			granted := *attempt
			granted.Grant = ticket.Approval
			b.question = &question{ticket, decision, granted, s.shown(attempt), time.Now()}
		}
		var w *wait
		var refused *Refusal
		if b.asked {
			refused = s.goOn(r, attempt, b.question)
		} else {
			w, refused = s.consult(r, attempt, b.question)
		}
		switch {
		case w != nil:
			b.asked = true
			s.suspend(r, d, b, w)
			return w.answer(r.msg.ID), endKnown, false
		case refused != nil:
			r.refused = ErrRefused
			return refuse(*refused), endRefused, false
		}
		attempt.Grant, b.answered = b.question.ticket.Approval, b.question.decision.Question.Rules
		b.question, b.asked = nil, false
		s.anew(r, up, attempt)
	}
}

// anew brings a call up to date that has waited for a person: it is judged by the rules that
// hold now, it is a call of the tool as it is now, and who makes it must still be let to. If they are not those that the person
// was asked about, the grant is for another call, and the person is asked again.
func (s *Server) anew(r *request, up *Upstream, attempt *ledger.Attempt) {
	now := s.renewed(r.rules)
	r.rules = now
	attempt.Use, attempt.Config = now.Use, now.Config
	call := &attempt.Call
	call.Session, call.Agent = now.Use.ID, now.Agent
	i := slices.IndexFunc(now.Upstreams, func(u Upstream) bool { return u.Name() == call.Upstream })
	known := i >= 0
	if known {
		*up = now.Upstreams[i]
	}
	if call.Kind == policy.KindTool && known {
		e, err := s.current().find(call.ID())
		if known = err == nil; known {
			*call, attempt.Pin, *up = s.call(now, e, call.Arguments), audit.Sum(e.def.Raw), e.up
		}
	}
	if !known {
		attempt.Refused = &policy.Finding{
			Policy: policyUnknownTool, Rule: policyUnknownTool, Reason: call.Noun() + " is gone: it was there when a person was asked about it",
		}
	}
	if now.holds != nil {
		if err := now.holds(context.WithoutCancel(r.ctx)); err != nil {
			attempt.Refused = callerGone(err)
		}
	}
	now.Engine.Prepare(call)
}

// renewed returns the rules in force for a call that began by those of before, which is made
// for the same session.
func (s *Server) renewed(before *Rules) *Rules {
	now := s.rules()
	if before.Client == "" {
		return now
	}
	same := *now // it is made for another session than the host's
	same.Use, same.Session, same.Agent, same.Client = before.Use, before.Session, before.Agent, before.Client
	same.holds = before.holds
	return &same
}

// callerGone refuses a call whose caller may not make it any more.
func callerGone(why error) *policy.Finding {
	return &policy.Finding{Policy: policy.PolicySession, Rule: "caller", Reason: upperFirst(why.Error())}
}

// forPeople takes out of arguments what nobody is to see.
func (s *Server) forPeople(arguments []byte) []byte {
	if clean := s.o.Clean(string(arguments)); clean != string(arguments) {
		return []byte(clean)
	}
	return arguments
}

// shown is what the log calls a call.
func (s *Server) shown(a *ledger.Attempt) string {
	return wire.Printable(s.o.Clean(a.Call.ID()), longestName)
}

// consult waits until somebody has decided. wait is not nil if a modern host is to be asked
// first; the call goes on with its next request. Else refused says why the call is not
// made, if it is not; it is granted otherwise.
func (s *Server) consult(r *request, attempt *ledger.Attempt, q *question) (w *wait, refused *Refusal) {
	shows := r.done != nil && s.showsForms(r)
	if !shows && !s.o.Ledger.Watched() {
		return nil, s.nobody(r.ctx, q)
	}
	form := s.words(r, attempt, q)
	if r.era != nil && shows {
		return ask([]*asked{{method: "elicitation/create", params: form.Form(true), key: approvalKey}}), nil
	}
	return nil, s.await(r, q, form, shows)
}

// await waits inside the request, with a form or without.
func (s *Server) await(r *request, q *question, form *approval.Question, shows bool) *Refusal {
	decided, leave := s.desk.Wait(q.ticket.Seq)
	defer leave()
	answers := make(chan []byte, 1)
	if shows {
		mine := &asked{upstream: ownName, id: json.RawMessage("0"), reply: func(response []byte) { answers <- response }}
		m, err := wire.ParseLenient(wire.Request(mine.id, "elicitation/create", form.Form(s.version == wire.Version20251125)))
		if err != nil {
			return s.broke(q, err)
		}
		if !s.toHost(func() { s.pose(mine, m) }) {
			return s.nobody(r.ctx, q)
		}
		defer s.withdraw(func(a *asked) bool { return a == mine }, func(own json.RawMessage) json.RawMessage {
			return fmt.Appendf(nil, `{"requestId":%s,"reason":"it has been decided"}`, own)
		})
	}
	deadline := time.NewTimer(q.left())
	defer deadline.Stop()
	beat := time.NewTimer(firstBeat)
	defer beat.Stop()
	for {
		select {
		case e := <-decided:
			return s.verdict(q, e)
		case response := <-answers:
			answers = nil
			if refused, known := s.response(r, q, response); known {
				return refused
			}
			if !s.o.Ledger.Watched() {
				return s.nobody(r.ctx, q)
			}
		case <-deadline.C:
			return s.decide(r.ctx, q, ledger.Answer{Channel: ledger.ChannelTimeout})
		case <-r.ctx.Done():
			channel := ledger.ChannelGone
			if errors.Is(context.Cause(r.ctx), errShutdown) {
				channel = ledger.ChannelShutdown
			}
			return s.decide(r.ctx, q, ledger.Answer{Channel: channel})
		case <-beat.C:
			r.beats++
			s.patience(r, q)
			beat.Reset(heartbeat)
		}
	}
}

// approvalKey is what the question is called towards a modern host.
const approvalKey = "haldir_approval"

// A client is told soon that the call waits for a person, and then now and again: some give
// up after a minute without a sign of life.
const (
	firstBeat = time.Second
	heartbeat = 10 * time.Second
)

// patience keeps a client patient. What progress there is lies below zero, so that the
// upstream's own, which begins at zero or above, goes on from there.
func (s *Server) patience(r *request, q *question) {
	token := progressToken(r.msg.Params)
	if token == nil || r.silent.Load() {
		return
	}
	s.write(wire.Notification("notifications/progress", fmt.Appendf(nil, `{"progressToken":%s,"progress":%.10f,"message":%s}`,
		token, -1/float64(r.beats), wire.Quote("waiting for a person to approve "+q.tool+" ("+q.ticket.Approval+")"))))
}

// showsForms reports whether the host shows a form to a person.
func (s *Server) showsForms(r *request) bool {
	s.mu.Lock()
	capabilities := s.capabilities
	s.mu.Unlock()
	if r.era != nil {
		capabilities = r.era.capabilities
	}
	return can(capabilities, &asked{method: "elicitation/create"})
}

// words are what the person is told.
func (s *Server) words(r *request, attempt *ledger.Attempt, q *question) *approval.Question {
	return &approval.Question{
		ID: q.ticket.Approval, Tool: s.o.Clean(attempt.Call.ID()), Agent: r.rules.Agent, Cost: q.decision.Cost, Priced: q.decision.Cost > 0,
		Rules: q.decision.Question.Rules, Arguments: s.forPeople(attempt.Call.Arguments), ForSession: q.decision.Question.Session, Command: s.o.Command,
	}
}

// response takes the client's response to the form. known is false if it is no decision.
func (s *Server) response(r *request, q *question, given []byte) (refused *Refusal, known bool) {
	m, err := wire.ParseLenient(given)
	if err != nil || m.Error != nil {
		return nil, false
	}
	a, reading := approval.Read(m.Result)
	if reading != approval.Decided || !offered(q, a) {
		return nil, false
	}
	return s.decide(r.ctx, q, a), true
}

// offered reports whether an answer is one of those that were to be had.
func offered(q *question, a ledger.Answer) bool { return !a.ForSession || q.decision.Question.Session }

// decide decides the request, unless somebody else was quicker.
func (s *Server) decide(ctx context.Context, q *question, a ledger.Answer) *Refusal {
	ctx = context.WithoutCancel(ctx)
	_, err := s.o.Ledger.Answer(ctx, q.ticket.Approval, a)
	switch {
	case errors.Is(err, ledger.ErrNoApproval):
		decided, err := s.o.Ledger.Decided(ctx, []uint64{q.ticket.Seq})
		if err != nil {
			return s.broke(q, err)
		}
		if e, ok := decided[q.ticket.Seq]; ok {
			return s.verdict(q, e)
		}
		return s.not(q, "it has timed out") // it still lies there, and nobody can answer it any more
	case err != nil:
		return s.broke(q, err)
	case a.Allow:
		return nil
	}
	return s.not(q, a.Sentence())
}

// verdict is what the ledger has of the request.
func (s *Server) verdict(q *question, e audit.Entry) *Refusal {
	if e.Status == audit.StatusApproved {
		return nil
	}
	return s.not(q, e.FlagReason)
}

// not is the refusal of a call that a person did not allow.
func (s *Server) not(q *question, why string) *Refusal {
	x := refusal(policy.Decision{
		Policy: q.decision.Policy, Rule: q.decision.Rule, Reason: fmt.Sprintf("%s, which it did not get: %s", q.decision.Reason, why),
	}, q.ticket, s.o.Command)
	return &x
}

// broke is the refusal of a call about which the ledger could not be asked. What a person
// says, or has said, is for the next such call.
func (s *Server) broke(q *question, err error) *Refusal {
	s.o.Ledger.Free(q.attempt, q.ticket.Session)
	return &Refusal{
		Error:     fmt.Sprintf("%s, and what a person says about it could not be recorded: %v", q.decision.Reason, err),
		BlockedBy: "haldir", Policy: policyLedger, Rule: policyLedger, Retryable: ledger.Retryable(err), AuditID: q.ticket.AuditID(),
	}
}

// nobody is the refusal of a call about which nobody can be asked now. A person can allow
// it all the same, and it can be made again then.
func (s *Server) nobody(ctx context.Context, q *question) *Refusal {
	if err := s.o.Ledger.Refuse(context.WithoutCancel(ctx), q.ticket.Approval); err != nil {
		if errors.Is(err, ledger.ErrNoApproval) { // it has been decided meanwhile
			return s.decide(ctx, q, ledger.Answer{Channel: ledger.ChannelTimeout})
		}
		return s.broke(q, err)
	}
	x := refusal(policy.Decision{Policy: q.decision.Policy, Rule: q.decision.Rule}, q.ticket, s.o.Command)
	x.Retryable = true
	x.Error = fmt.Sprintf("%s, and nobody could be asked. The user can allow it within %s by running: %s approvals approve %s; then make exactly this call again. "+
		"Do not try to reach the same end by another way", q.decision.Reason, policy.Span(ledger.Listed), s.o.Command, q.ticket.Approval)
	return &x
}

// goOn takes a modern host's next request about a call that waits for a person.
func (s *Server) goOn(r *request, attempt *ledger.Attempt, q *question) *Refusal {
	decided, err := s.o.Ledger.Decided(context.WithoutCancel(r.ctx), []uint64{q.ticket.Seq})
	if err != nil {
		return s.broke(q, err)
	}
	if e, ok := decided[q.ticket.Seq]; ok {
		return s.verdict(q, e)
	}
	at, _ := wire.At(r.msg.Params, "inputResponses", approvalKey)
	if a, reading := approval.Read(at.Value); reading == approval.Decided && offered(q, a) {
		return s.decide(r.ctx, q, a)
	}
	if !s.o.Ledger.Watched() {
		return s.nobody(r.ctx, q)
	}
	// The form is closed, and somebody may still answer elsewhere.
	return s.await(r, q, s.words(r, attempt, q), false)
}
