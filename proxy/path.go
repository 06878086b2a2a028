package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
)

// How a governed request ended.
type end uint8

const (
	endKnown   end = iota // answered
	endUnknown            // the upstream does not have what was asked for
	endRefused            // by haldir
)

// governed takes the path of a request that policy judges, and tells of it if anybody wants
// to know.
func (s *Server) governed(r *request, up Upstream, attempt ledger.Attempt, c upstream.Call, refuse func(Refusal) []byte) ([]byte, end) {
	if s.o.Observe == nil {
		return s.path(r, up, attempt, c, refuse)
	}
	return s.observed(r, attempt.Call, func() ([]byte, end) { return s.path(r, up, attempt, c, refuse) })
}

// path is the one path of a request that policy judges: reserve, forward,
// settle. refuse makes a refusal the answer to such a request. A call that goes on
// when the host has given what the upstream needs for it is one call: it is
// reserved once, and settled at its end.
func (s *Server) path(r *request, up Upstream, attempt ledger.Attempt, c upstream.Call, refuse func(Refusal) []byte) ([]byte, end) {
	began := time.Now()
	d := digest(r, attempt.Call)
	before, err := s.resume(r, d)
	if err != nil {
		s.recordStale(r, attempt, err)
		return s.invalid(r, err.Error()), endUnknown
	}
	outcome := ledger.Outcome{Reason: "haldir failed during the call"}
	over := false
	defer func() { // also after a panic: what began must end
		if over {
			r.seen.ended(outcome)
			s.o.Ledger.Settle(before.ticket, outcome)
		}
	}()
	if before != nil && before.question == nil {
		over = true
		if refused, ok := s.reconsider(r, attempt.Call, before); ok {
			over = false
			refused.Sent = before.sent
			return refuse(refused), endRefused
		}
	} else {
		if before == nil {
			before = &round{}
		}
		// An attempt that is cancelled meanwhile is on record all the same.
		r.rules.Engine.Prepare(&attempt.Call)
		attempt.Shown = s.forPeople
		if answer, how, ok := s.admit(r, d, &up, &attempt, before, refuse); !ok {
			return answer, how
		}
	}
	over = true
	if r.ctx.Err() != nil && before.flight == nil && !before.sent {
		outcome = failed(r.ctx, wire.ErrNotSent)
		return wire.Failure(&wire.Error{Code: wire.CodeInternal, Message: context.Cause(r.ctx).Error(), ID: r.msg.ID}), endKnown
	}
	done := s.underway(r, before.ticket.Session, began)
	r.seen.judged(before.ticket, before.decision)
	r.seen.sent()
	m, wait, err := s.advance(r, up, before, c, func() error { return s.nextRound(r, attempt.Call, before) })
	r.seen.returned(m, err)
	if wait != nil {
		over = false
		s.suspend(r, d, before, wait)
		done() // now that its round is there to be found
		s.revokedMeanwhile(r, before)
		return wait.answer(r.msg.ID), endKnown
	}
	var t *task
	if c.Task && err == nil {
		t = s.made(r, up, before.ticket.Session, m.Result)
	}
	done() // now that its task is there to be found
	s.taskRevoked(r, t)
	if halt, ok := errors.AsType[*haltError](err); ok {
		outcome = ledger.Outcome{Result: ledger.Unknown, Reason: s.o.Clean(halt.Error())}
		halt.refusal.Sent = true
		return refuse(halt.refusal), endKnown // who has asked for something is the one to answer, and nobody else is tried
	}
	if err != nil {
		if before.sent {
			err = sentBefore(err)
		}
		outcome = failed(r.ctx, err)
		outcome.Reason = s.o.Clean(outcome.Reason)
		return s.broken(r, up, err), endKnown
	}
	if len(m.Raw) > quickResult && before.decision.CostFrom == "" && r.done != nil {
		// What the outcome is changes no counter, so the host need not wait until all
		// of the result has been looked through.
		over = false
		seen := r.seen.later()
		r.after = append(r.after, func() {
			defer func() { s.o.Ledger.Settle(before.ticket, outcome) }()
			outcome = answered(m, before.decision)
			seen.ended(outcome)
		})
	} else {
		outcome = answered(m, before.decision)
	}
	if !c.Task && m.Error == nil {
		r.answer = m
	}
	if m.Error != nil {
		if code := wire.ErrorOf(m).Code; code == codeNoResource || code == wire.CodeInvalidParams {
			return m.WithID(r.msg.ID), endUnknown
		}
	}
	return m.WithID(r.msg.ID), endKnown
}

// quickResult is up to what size, in bytes, a result is looked through in no time
// beside the rest of a call.
const quickResult = 16 << 10

// maxGathered bounds how often one call may ask for something.
const maxGathered = 1000

// reconsider judges a call that a modern host goes on with, and ends it if it may not.
func (s *Server) reconsider(r *request, c policy.Call, b *round) (Refusal, bool) {
	halt := s.halts(r, c, b)
	if halt == nil {
		return Refusal{}, false
	}
	s.finishRound(b, halt.why)
	return halt.refusal, true
}

// nextRound judges a call before its next round where that is no request of its own, since a
// host of the handshake era makes it once: by the rules and the catalogue of now, as the
// host's next request would be.
func (s *Server) nextRound(r *request, c policy.Call, b *round) error {
	r.rules = s.renewed(r.rules)
	if r.rules.holds != nil {
		if err := r.rules.holds(context.WithoutCancel(r.ctx)); err != nil {
			f := callerGone(err)
			r.refused = ErrRefused
			return &haltError{refusal(policy.Decision{Policy: f.Policy, Rule: f.Rule, Reason: f.Reason}, b.ticket, s.o.Command), err}
		}
	}
	if c.Kind == policy.KindTool {
		if e, err := s.current().find(c.ID()); err == nil {
			c = s.call(r.rules, e, c.Arguments)
		}
	}
	if halt := s.halts(r, c, b); halt != nil {
		return halt
	}
	return nil
}

// haltError ends a call between two rounds.
type haltError struct {
	refusal Refusal
	why     error
}

func (e *haltError) Error() string { return e.why.Error() }

// halts judges a call again before it goes on: what was let through when it
// began may have been forbidden since. What it has used up itself does not count. Nor
// does that a person has to be asked, if one was by that rule or if the rules are those by
// which the call began; by other ones it has to begin anew.
func (s *Server) halts(r *request, c policy.Call, b *round) *haltError {
	d, err := s.check(r, &c)
	if err != nil {
		return &haltError{Refusal{
			Error: fmt.Sprintf("%s was not gone on with, since the ledger cannot be read: %v", c.Noun(), err), BlockedBy: "haldir",
			Policy: policyLedger, Rule: policyLedger, Retryable: ledger.Retryable(err),
		}, err}
	}
	for _, f := range d.Against(&c) {
		switch {
		case f.Policy == string(policy.TypeRateLimit), f.Policy == string(policy.TypeSpendLimit), f.Policy == string(policy.TypeLoop):
			continue
		case f.Policy != string(policy.TypeApproval):
		case b.config == r.rules.Config, slices.Contains(b.answered, f.Rule):
			continue
		default: // nobody was asked, and there is no asking between two rounds
			r.refused = ErrRefused
			x := refusal(policy.Decision{Policy: f.Policy, Rule: f.Rule}, b.ticket, s.o.Command)
			x.Retryable = true
			x.Error = wire.Printable(f.Reason, 2000) + " since the config was changed, and this call began before that. Make the call again, from its beginning, and a person is asked"
			return &haltError{x, errors.New(f.Reason)}
		}
		r.refused = ErrRefused
		return &haltError{refusal(policy.Decision{Policy: f.Policy, Rule: f.Rule, Reason: f.Reason, RetryAt: f.RetryAt}, b.ticket, s.o.Command), errors.New(f.Reason)}
	}
	return nil
}

// check decides about what is not reserved. That there is no such session is against it, as
// it is against a call.
func (s *Server) check(r *request, c *policy.Call) (policy.Decision, error) {
	r.rules.Engine.Prepare(c)
	_, d, err := s.o.Ledger.Check(context.WithoutCancel(r.ctx), r.rules.Use, *c, r.rules.Engine)
	if errors.Is(err, ledger.ErrNoSession) {
		f := r.rules.Use.Missing()
		return policy.Decision{Policy: f.Policy, Rule: f.Rule, Reason: f.Reason}, nil
	}
	return d, err
}

// recordStale puts on record that a host wanted to go on with what does not wait.
func (s *Server) recordStale(r *request, attempt ledger.Attempt, why error) {
	attempt.Refused = &policy.Finding{Policy: policyMalformed, Rule: "request_state", Reason: upperFirst(why.Error())}
	if _, _, err := s.o.Ledger.Reserve(context.WithoutCancel(r.ctx), attempt, r.rules.Engine); err != nil {
		s.o.Log.Error().Err(err).Msg("a refused call could not be recorded")
	}
}

// forward passes a request on, and its progress back. What a modern upstream needs
// to know first a host of the handshake era is asked for, and judge, which is nil for what
// no policy is about, says before each such round why the request may not go on.
func (s *Server) forward(r *request, up Upstream, c upstream.Call, judge func() error) (wire.Message, error) {
	c.Progress = func(m wire.Message) {
		if !r.silent.Load() {
			s.write(m.Raw)
		}
	}
	s.address(r, up, &c)
	m, err := up.Call(r.ctx, c)
	if err == nil && r.era != nil { // what ends here cannot be gone on with
		if m = s.vet(up, m); needsInput(up, m) {
			m = failure(m, "upstream '"+up.Name()+"' asks for input where the protocol has none")
		}
		return m, nil
	}
	for n := 1; err == nil && needsInput(up, m); n++ {
		if refused, ok := s.refusesInput(up, m); ok {
			return refused, nil
		}
		if n > maxGathered {
			return m, fmt.Errorf("upstream %q asks for input without end: %w", up.Name(), wire.ErrOutcomeUnknown)
		}
		if c.Params, err = s.gather(r, up, c.Params, m, n); err == nil && judge != nil {
			err = judge() // the host may have taken its time, and the rules another turn
		}
		if err == nil {
			m, err = up.Call(r.ctx, c)
		}
		if err != nil {
			err = sentBefore(err)
		}
	}
	switch {
	case err != nil:
	case m.Error != nil:
		m = s.vetError(up, m)
	case up.Catalogue().Modern:
		m = undress(m)
	}
	return m, err
}

// address notes whom a request goes to, and adds what a modern host says with it.
func (s *Server) address(r *request, up Upstream, c *upstream.Call) {
	if r.era != nil {
		c.Capabilities, c.Level = r.era.capabilities, r.era.level
	}
	s.mu.Lock()
	r.up = up
	s.mu.Unlock()
}

// sentBefore says of an error that it does not mean that nothing was sent.
func sentBefore(err error) error {
	if errors.Is(err, wire.ErrNotSent) {
		return fmt.Errorf("%v: %w", err, wire.ErrOutcomeUnknown) //nolint:errorlint // on purpose
	}
	return err
}

// broken answers a request whose upstream did not.
func (s *Server) broken(r *request, up Upstream, err error) []byte {
	return wire.Failure(&wire.Error{
		Code: wire.CodeInternal, Message: s.o.Clean(err.Error()), ID: r.msg.ID,
		Data: fmt.Appendf(nil, `{"source":"haldir","upstream":%s}`, wire.Quote(up.Name())),
	})
}

// failed is the outcome of a call that brought no response. Only a request that
// certainly never left haldir costs nothing.
func failed(ctx context.Context, err error) ledger.Outcome {
	revoked := errors.Is(context.Cause(ctx), errRevoked)
	cancelled := revoked || errors.Is(context.Cause(ctx), errCancelled)
	switch unsent := errors.Is(err, wire.ErrNotSent); {
	case revoked && !unsent:
		return ledger.Outcome{Result: ledger.Cancelled, Reason: errRevoked.Error()}
	case unsent && cancelled:
		return ledger.Outcome{Result: ledger.Withdrawn}
	case cancelled:
		return ledger.Outcome{Result: ledger.Cancelled}
	case unsent:
		return ledger.Outcome{Result: ledger.NotSent, Reason: err.Error()}
	}
	return ledger.Outcome{Result: ledger.Unknown, Reason: err.Error()}
}

// answered is the outcome of a call that the upstream answered.
func answered(m wire.Message, d policy.Decision) ledger.Outcome {
	out := ledger.Outcome{Result: ledger.Done}
	if m.Error != nil {
		out.Result = ledger.Failed
		out.ResultSHA256 = sha256.Sum256(m.Error)
		return out
	}
	out.ResultSHA256 = sha256.Sum256(m.Result)
	if isError(m.Result) {
		out.Result = ledger.Failed
	}
	if d.CostFrom != "" {
		actual, err := policy.Amount(m.Result, d.CostFrom)
		if err != nil {
			out.Reason = fmt.Sprintf("the actual cost at %s in the result: %v; the reserved %s counts", d.CostFrom, err, d.Cost)
		} else {
			out.Actual = &actual
		}
	}
	return out
}

// isError reports whether a result is that of a tool that failed. A result is read
// once more only if it may say so: the key can be spelt with escapes.
func isError(result json.RawMessage) bool {
	if !bytes.Contains(result, []byte(`"isError"`)) && !bytes.Contains(result, []byte(`\u`)) {
		return false
	}
	members, err := wire.Members(result)
	if err != nil {
		return false
	}
	e, ok := wire.Find(members, "isError")
	return ok && string(e.Value) == "true"
}

func (s *Server) invalid(r *request, why string) []byte {
	return wire.Failure(&wire.Error{Code: wire.CodeInvalidParams, Message: why, ID: r.msg.ID})
}

// judge takes the governed path of what is no call of a tool. Its refusals are
// JSON-RPC errors.
func (s *Server) judge(r *request, up Upstream, call policy.Call, body audit.Body, params json.RawMessage) ([]byte, end) {
	s.mu.Lock()
	client := s.client
	s.mu.Unlock()
	attempt := ledger.Attempt{Use: r.rules.Use, Client: client, Config: r.rules.Config, Call: call, Body: body}
	return s.governed(r, up, attempt, s.same(r, params), func(refusal Refusal) []byte { return refusal.failure(r.msg.ID) })
}

// same is the host's request as it goes on, with these params.
func (s *Server) same(r *request, params json.RawMessage) upstream.Call {
	return upstream.Call{Method: r.msg.Method, Params: params, Token: progressToken(params)}
}

// pass forwards a request that no policy is about.
func (s *Server) pass(r *request, up Upstream, params json.RawMessage) []byte {
	m, err := s.forward(r, up, s.same(r, params), nil)
	if err != nil {
		return s.broken(r, up, err)
	}
	return m.WithID(r.msg.ID)
}

// text returns a text in params.
func text(params json.RawMessage, path ...string) (string, bool) {
	m, ok := wire.At(params, path...)
	if !ok {
		return "", false
	}
	return wire.String(m.Value)
}
