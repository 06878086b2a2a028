package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
)

// callBody is a call of a tool.
type callBody struct {
	SessionID string          `json:"session_id"`
	Tool      string          `json:"tool"`
	Arguments json.RawMessage `json:"arguments"`
}

func (b *callBody) check() error {
	switch kind := wire.KindOf(b.Arguments); {
	case b.SessionID == "":
		return malformed("the body needs session_id; POST /v1/sessions makes one")
	case b.Tool == "":
		return malformed("the body needs tool")
	case len(b.Arguments) == 0 || kind == "null":
		b.Arguments = nil
	case kind != "an object":
		return malformed("arguments must be an object, not %s", kind)
	}
	return nil
}

// call makes a call on the one governed path.
func (a *API) call(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	var body callBody
	if err := r.into(&body); err != nil {
		return nil, err
	}
	if err := body.check(); err != nil {
		return nil, err
	}
	as, err := a.session(r, body.SessionID)
	if err != nil {
		return nil, err
	}
	return a.once(r, body.SessionID, func(r *request) (*reply, error) {
		return a.forward(r, as, body)
	}, func() error {
		refusal, err := a.o.Proxy.ForbidsAs(r.Context(), as, body.Tool, body.Arguments)
		if err == nil && refusal != nil {
			err = refused(refusal)
		}
		return err
	})
}

// session finds the session of a call, which must not grant more than who calls may
// give: else a key that may list sessions could use one that it could not make.
func (a *API) session(r *request, id string) (proxy.As, error) {
	s, err := a.o.Ledger.Session(r.Context(), ledger.Use{ID: id})
	if err != nil {
		return proxy.As{}, err
	}
	if why := r.caller.exceeds(s.AllScopes, s.Scopes, s.Limit); why != "" {
		return proxy.As{}, NewProblem(http.StatusForbidden, "forbidden", "session %s grants %s", s.ID, why)
	}
	return proxy.As{Session: s, Client: r.caller.client(), Holds: a.holds(r.caller)}, nil
}

// holds says whether the key of a caller still holds, for a call that has waited for a
// person: that may take a day. Who cannot be looked up may not call. A person needs no key.
func (a *API) holds(c *Caller) func(context.Context) error {
	if c.Person {
		return nil
	}
	return func(ctx context.Context) error {
		keys, err := a.o.Ledger.Keys(ctx)
		if err != nil {
			return fmt.Errorf("the key of who calls could not be looked up: %w", err)
		}
		if !slices.ContainsFunc(keys, func(k ledger.Key) bool { return k.ID == c.Key.ID && k.Holds(a.o.Clock()) }) {
			return errors.New("the key of who calls was revoked or has expired while the call waited for a person")
		}
		return nil
	}
}

func (a *API) forward(r *request, as proxy.As, body callBody) (*reply, error) {
	out, err := a.o.Proxy.CallAs(r.Context(), as, body.Tool, body.Arguments)
	switch {
	case err != nil:
		return nil, err
	case out.Refusal != nil:
		return nil, refused(out.Refusal)
	case out.Error != nil:
		p := NewProblem(http.StatusBadGateway, "upstream", "%s", a.o.Clean(out.Error.Message))
		p.Code, p.Data = out.Error.Code, out.Error.Data
		if !json.Valid(p.Data) {
			p.Data = nil
		}
		return nil, p
	}
	return &reply{body: rawBody{"application/json", append(wire.OneLine(out.Result), '\n')}}, nil
}

// checkBody asks about a scope, a call, or both.
type checkBody struct {
	Scope     string          `json:"scope"`
	Tool      string          `json:"tool"`
	Arguments json.RawMessage `json:"arguments"`
}

// permission is what a session may do.
type permission struct {
	Allowed   bool             `json:"allowed"`
	SessionID string           `json:"session_id"`
	Scope     string           `json:"scope,omitempty"`
	Tool      string           `json:"tool,omitempty"`
	Verdict   string           `json:"verdict,omitempty"`
	Policy    string           `json:"policy,omitempty"`
	Rule      string           `json:"rule,omitempty"`
	Reason    string           `json:"reason,omitempty"`
	RetryAt   *string          `json:"retry_at,omitempty"`
	ExpiresAt *string          `json:"expires_at,omitempty"`
	CostUSD   *policy.Micros   `json:"cost_usd,omitempty"`
	Also      []policy.Finding `json:"also,omitempty"`
}

// checkSession asks what a session may do. Nothing is called or recorded.
func (a *API) checkSession(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	var body checkBody
	if err := r.into(&body); err != nil {
		return nil, err
	}
	if body.Scope == "" && body.Tool == "" {
		return nil, malformed("the body needs a scope or a tool")
	}
	s, err := a.o.Ledger.Session(r.Context(), ledger.Use{ID: r.PathValue("id")})
	if err != nil {
		return nil, err
	}
	out := permission{Allowed: true, SessionID: s.ID, Scope: body.Scope, ExpiresAt: stamp(s.ExpiresAt)}
	switch state := s.State(); {
	case state.Revoked:
		out.Allowed, out.Reason = false, "This session has been revoked"
	case !s.ExpiresAt.IsZero() && !a.o.Clock().Before(s.ExpiresAt):
		out.Allowed, out.Reason = false, "This session has expired"
	case body.Scope != "" && !state.Has(body.Scope):
		out.Allowed, out.Reason = false, "This session does not have the scope '"+wire.Printable(body.Scope, 100)+"'"
	}
	if body.Tool == "" {
		return &reply{body: out}, nil
	}
	call := callBody{SessionID: s.ID, Tool: body.Tool, Arguments: body.Arguments}
	if err := call.check(); err != nil {
		return nil, err
	}
	e, _, d, err := a.o.Proxy.ExplainAs(r.Context(), proxy.As{Session: s, Client: r.caller.client()}, call.Tool, call.Arguments)
	if err != nil {
		return nil, notFound("%v", err)
	}
	out.Tool, out.Verdict, out.Also, out.CostUSD = e.ID(), d.Verdict.String(), d.Also, &d.Cost
	if d.Verdict != policy.Allow {
		out.Allowed, out.Policy, out.Rule, out.Reason, out.RetryAt = false, d.Policy, d.Rule, d.Reason, stamp(d.RetryAt)
	}
	return &reply{body: out}, nil
}
