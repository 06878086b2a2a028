package proxy

import (
	"encoding/json"
	"slices"

	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream"
)

// setLevel is logging/setLevel: every server that logs gets it, now or when it is
// connected.
func (s *Server) setLevel(r *request) []byte {
	call := upstream.Call{Method: r.msg.Method, Params: slices.Clone(r.msg.Params)}
	var answer []byte
	for _, up := range s.rules().Upstreams {
		c := up.Catalogue()
		if _, logs := declared(c.Server)["logging"]; c.Known && !logs {
			continue
		}
		up.Keep(call.Method, &call)
		if !up.Ready() {
			continue
		}
		m, err := s.forward(r, up, s.same(r, r.msg.Params), nil)
		if err != nil {
			s.o.Log.Warn().Str("error", s.o.Clean(err.Error())).Str("upstream", up.Name()).Msg("logging/setLevel")
			continue
		}
		if m.Error != nil {
			up.Keep(call.Method, nil)
			return m.WithID(r.msg.ID)
		}
		if answer == nil {
			answer = m.WithID(r.msg.ID)
		}
	}
	if answer == nil {
		answer = wire.Result(r.msg.ID, json.RawMessage("{}"))
	}
	return answer
}
