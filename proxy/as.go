package proxy

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
)

// As says for whom a call is made that no host of this process makes.
type As struct {
	Session ledger.Session
	Client  string // who calls, for the audit
	// Holds, if not nil, says why who calls may not do so any more; nil if they may. It is
	// asked when a call has waited for a person.
	Holds func(ctx context.Context) error
}

// Reply is the answer to [Server.CallAs]. One of Refusal, Result and Error is set.
type Reply struct {
	Refusal *Refusal        // haldir let it not through, or not go on: see [Refusal.Sent]
	Result  json.RawMessage // of the upstream
	Error   *wire.Error     // of the upstream, or what became of it
}

// as is the rules in force, for another session than the host's.
func (s *Server) as(a As) *Rules {
	now := *s.rules()
	now.Use, now.Session, now.Agent, now.Client = ledger.Use{ID: a.Session.ID}, a.Session.State(), a.Session.Agent, a.Client
	now.holds = a.Holds
	return &now
}

// CallAs makes a tools/call in a session that exists. It takes the path of every call.
// When ctx ends, the call is cancelled as a client's is.
func (s *Server) CallAs(ctx context.Context, a As, tool string, arguments json.RawMessage) (Reply, error) {
	call, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(errCancelled) })()
	m, r, err := s.callOf(call, cancel, s.as(a), tool, arguments)
	switch {
	case err != nil:
		return Reply{}, err
	case r.refusal != nil:
		return Reply{Refusal: r.refusal}, nil
	case m.Error != nil:
		return Reply{Error: wire.ErrorOf(m)}, nil
	}
	return Reply{Result: m.Result}, nil
}

// ExplainAs is [Server.Explain] for a session that exists.
func (s *Server) ExplainAs(ctx context.Context, a As, tool string, arguments json.RawMessage) (Entry, ledger.Session, policy.Decision, error) {
	return s.explain(ctx, s.as(a), tool, arguments)
}

// ForbidsAs judges a call that was let through before, as [Server.CallAs] would now,
// and makes nothing of it. What it has used up itself does not count, nor does what a
// person was asked for. If it may not be known any more, that is put on record.
func (s *Server) ForbidsAs(ctx context.Context, a As, tool string, arguments json.RawMessage) (*Refusal, error) {
	now := s.as(a)
	e, missing := s.route(ctx, tool)
	if e.Upstream == ownName {
		return nil, nil //nolint:nilnil // nothing forbids it
	}
	attempt := s.attempt(now, e, toolCall{tool: tool, arguments: arguments}, missing)
	if attempt.Refused == nil {
		now.Engine.Prepare(&attempt.Call)
		_, d, err := s.o.Ledger.Check(ctx, now.Use, attempt.Call, now.Engine)
		if err != nil {
			return nil, err
		}
		if attempt.Refused = lasting(d); attempt.Refused == nil {
			return nil, nil //nolint:nilnil // as above
		}
	}
	attempt.Refused.Reason = fmt.Sprintf("The answer to an earlier call is not told again: %s", attempt.Refused.Reason)
	ticket, d, err := s.o.Ledger.Reserve(ctx, attempt, now.Engine)
	if err != nil {
		return nil, err
	}
	refused := refusal(d, ticket, s.o.Command)
	return &refused, nil
}

// lasting returns what speaks against a call that was let through before, nil if
// nothing does: no counter, since the call is in it, and no question that was answered.
func lasting(d policy.Decision) *policy.Finding {
	if d.Verdict == policy.Allow {
		return nil
	}
	against := append([]policy.Finding{{Policy: d.Policy, Rule: d.Rule, Reason: d.Reason, RetryAt: d.RetryAt}}, d.Also...)
	for _, f := range against {
		switch {
		case f.Shadow, f.Policy == string(policy.TypeRateLimit), f.Policy == string(policy.TypeSpendLimit), f.Policy == string(policy.TypeLoop), f.Policy == string(policy.TypeApproval):
			continue
		}
		return &f
	}
	return nil
}

// Close ends a server that nobody has let Serve: calls under way are cancelled.
func (s *Server) Close() { s.desk.Close() }

// rulesKey is where the rules of a call are while one of haldir's own tools runs, which
// tells of the caller's session.
type rulesKey struct{}

func within(ctx context.Context, now *Rules) context.Context {
	return context.WithValue(ctx, rulesKey{}, now)
}

func (s *Server) rulesOf(ctx context.Context) *Rules {
	if now, ok := ctx.Value(rulesKey{}).(*Rules); ok {
		return now
	}
	return s.rules()
}
