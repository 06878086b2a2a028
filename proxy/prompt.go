package proxy

import (
	"encoding/json"
	"slices"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
)

// prompt is prompts/get, governed as a call of a tool is.
func (s *Server) prompt(r *request) []byte {
	at, _ := wire.At(r.msg.Params, "name")
	name, ok := wire.String(at.Value)
	if !ok {
		return s.invalid(r, "prompts/get needs a name")
	}
	o := &s.current().offers
	i, known := o.byPrompt[name]
	if !known {
		s.settle(r.ctx)
		o = &s.current().offers
		if i, known = o.byPrompt[name]; !known {
			return s.invalid(r, "Unknown prompt: "+wire.Printable(name, longestName))
		}
	}
	p := o.prompts[i]
	var arguments json.RawMessage
	if a, ok := wire.At(r.msg.Params, "arguments"); ok && wire.KindOf(a.Value) == "an object" {
		arguments = a.Value
	}
	call := policy.Call{Kind: policy.KindPrompt, Session: r.rules.Use.ID, Agent: r.rules.Agent, Upstream: p.up.Name(), Tool: p.key, Arguments: arguments}
	body := audit.NewBody(arguments, r.rules.Detail, s.o.Secrets())
	answer, _ := s.judge(r, p.up, call, body, wire.Splice(r.msg.Params, at.Start, at.End, wire.Quote(p.key)))
	return answer
}

// complete is completion/complete: it belongs to the prompt or template it is
// about, and is refused where that could never be had. It is asked at each key, so
// what passes is not recorded.
func (s *Server) complete(r *request) []byte {
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

func (s *Server) completeFor(r *request, kind policy.Kind, up Upstream, key string, params json.RawMessage) []byte {
	name := key
	if kind == policy.KindResource {
		name = judged(key)
	}
	if s.neverOther(kind, up, name) { // it goes through the rules for its record and its reason
		call := policy.Call{Kind: kind, Session: r.rules.Use.ID, Agent: r.rules.Agent, Upstream: up.Name(), Tool: wire.Printable(name, longestName)}
		answer, _ := s.judge(r, up, call, audit.Body{}, params)
		return answer
	}
	return s.pass(r, up, params)
}
