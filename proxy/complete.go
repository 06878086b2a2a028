package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
)

// complete is completion/complete: it belongs to the prompt or template it is
// about, and is refused where that could not be had now. It is asked at each key, so
// what passes is neither counted nor recorded.
func (s *Server) complete(r *request) []byte {
	if why := unclear(r.msg.Params); why != "" {
		return s.invalid(r, why)
	}
	kind, _ := text(r.msg.Params, "ref", "type")
	s.settle(r.ctx)
	o := &s.current().offers
	switch kind {
	case "ref/prompt":
		at, _ := wire.At(r.msg.Params, "ref", "name")
		name, _ := wire.String(at.Value)
		if i, known := o.byPrompt[name]; known {
			p := o.prompts[i]
			return s.completeFor(r, policy.KindPrompt, p.up, p.key, wire.Splice(r.msg.Params, at.Start, at.End, wire.Quote(p.key)))
		}
		return s.invalid(r, "Unknown prompt: "+wire.Printable(name, longestName))
	case "ref/resource":
		uri, ok := text(r.msg.Params, "ref", "uri")
		if i := slices.IndexFunc(o.templates, func(t offer) bool { return t.key == uri }); ok && i >= 0 {
			return s.completeFor(r, policy.KindResource, o.templates[i].up, uri, r.msg.Params)
		}
		if ups := s.readers(uri); ok && len(ups) > 0 {
			return s.completeFor(r, policy.KindResource, ups[0], uri, r.msg.Params)
		}
		return s.invalid(r, "Unknown resource: "+wire.Printable(uri, longestName))
	}
	return s.invalid(r, "completion/complete needs a ref to a prompt or a resource")
}

// unclear says why servers that read keys case-blindly would see another completion than is
// judged; "" if they would not.
func unclear(params json.RawMessage) string {
	for of, names := range map[string][]string{"ref": {"type", "name", "uri"}, "argument": {"name", "value"}, "context": {"arguments"}} {
		at, _ := wire.At(params, of)
		fields, err := wire.Members(at.Value)
		if err == nil && blurred(fields, names...) {
			return fmt.Sprintf("completion/complete: a key in %s differs only in case from one that it has", of)
		}
	}
	return ""
}

// completeFor passes a completion on that nothing is against.
func (s *Server) completeFor(r *request, kind policy.Kind, up Upstream, key string, params json.RawMessage) []byte {
	against := func() (*policy.Finding, error) { return s.againstCompletion(r, kind, up, key, params) }
	f, err := against()
	if err != nil {
		return s.unjudged(err).failure(r.msg.ID)
	}
	if f != nil {
		return s.refuseUncounted(r, up, s.completed(r, kind, up, key, params), f)
	}
	m, err := s.forward(r, up, s.same(r, params), func() error {
		r.rules = s.renewed(r.rules)
		f, err := against()
		if f != nil {
			err = &haltError{refusal(policy.Decision{Policy: f.Policy, Rule: f.Rule, Reason: f.Reason, RetryAt: f.RetryAt}, ledger.Ticket{}, s.o.Command), errors.New(f.Reason)}
		}
		return err
	})
	var halt *haltError
	switch {
	case errors.As(err, &halt):
		return halt.refusal.failure(r.msg.ID)
	case err != nil:
		return s.broken(r, up, err)
	}
	return m.WithID(r.msg.ID)
}

// completed is what policies see of a completion: what is completed, with the arguments that
// are known so far.
func (s *Server) completed(r *request, kind policy.Kind, up Upstream, key string, params json.RawMessage) policy.Call {
	c := policy.Call{Kind: kind, Session: r.rules.Use.ID, Agent: r.rules.Agent, Upstream: up.Name(), Tool: key}
	if kind == policy.KindResource {
		c.Tool, c.Arguments = judged(key), fmt.Appendf(nil, `{"uri":%s}`, wire.Quote(key))
		return c
	}
	c.Partial = true
	known, _ := wire.At(params, "context", "arguments")
	if c.Arguments = known.Value; wire.KindOf(known.Value) != "an object" {
		c.Arguments = json.RawMessage("{}")
	}
	value, _ := wire.At(params, "argument", "value")
	if name, ok := text(params, "argument", "name"); ok && value.Value != nil {
		c.Arguments = wire.Edit(c.Arguments, wire.Field{Name: name, Value: value.Value})
	}
	return c
}

// againstCompletion returns what policies have against a completion. Nobody is asked for one,
// and one of a template could tell of whatever that may become.
func (s *Server) againstCompletion(r *request, kind policy.Kind, up Upstream, key string, params json.RawMessage) (*policy.Finding, error) {
	call := s.completed(r, kind, up, key, params)
	d, err := s.check(r, &call)
	if err != nil {
		return nil, err
	}
	if d.Verdict != policy.Allow {
		return &policy.Finding{Policy: d.Policy, Rule: d.Rule, Reason: d.Reason, RetryAt: d.RetryAt}, nil
	}
	if kind == policy.KindResource {
		call.Tool = key
		if f, forbidden := r.rules.Engine.Expands(call, climbs(params)); forbidden {
			return &f, nil
		}
	}
	return nil, nil //nolint:nilnil // nothing is against it
}

// climbs reports whether a value for a template may lead out of where it begins, alone or
// with what stands beside it.
func climbs(params json.RawMessage) bool {
	value, given := wire.At(params, "argument", "value")
	values := []json.RawMessage{value.Value}
	if known, ok := wire.At(params, "context", "arguments"); ok {
		members, err := wire.Members(known.Value)
		if err != nil {
			return true
		}
		for _, m := range members {
			values = append(values, m.Value)
		}
	}
	return slices.ContainsFunc(values, func(v json.RawMessage) bool {
		if v == nil && !given {
			return false
		}
		t, ok := wire.String(v)
		t = strings.ReplaceAll(strings.ToLower(t), `\`, "/")
		return !ok || strings.HasPrefix(t, ".") || strings.Contains(t, "/.") || strings.Contains(t, "..") || strings.Contains(t, "%2e")
	})
}

// refuseUncounted puts a refused request on record that would not have been counted, without
// arguments, and answers it.
func (s *Server) refuseUncounted(r *request, up Upstream, call policy.Call, why *policy.Finding) []byte {
	s.mu.Lock()
	client := s.client
	s.mu.Unlock()
	call.Tool, call.Arguments = wire.Printable(call.Tool, longestName), nil
	attempt := ledger.Attempt{Use: r.rules.Use, Client: client, Config: r.rules.Config, Call: call, Body: audit.Body{}, Refused: why}
	answer, _ := s.governed(r, up, attempt, s.same(r, nil), func(x Refusal) []byte { return x.failure(r.msg.ID) })
	return answer
}

// unjudged is the refusal of what is not counted and could not be judged.
func (s *Server) unjudged(err error) Refusal {
	return Refusal{
		Error:     fmt.Sprintf("It was not passed on, since the ledger cannot be read: %s; make it again when haldir doctor finds nothing wrong", s.o.Clean(err.Error())),
		BlockedBy: "haldir", Policy: policyLedger, Rule: policyLedger, Retryable: ledger.Retryable(err),
	}
}
