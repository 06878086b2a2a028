package proxy

import (
	"encoding/json"

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
