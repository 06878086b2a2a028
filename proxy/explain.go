package proxy

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
)

// Explanation is what would be decided about a call, and what each rule has to do
// with it.
type Explanation struct {
	Entry    Entry
	Session  ledger.Session
	Decision policy.Decision
	Lines    []policy.Line // none of haldir's own tools, which no policy governs
}

// witness is an engine that says why. The ledger asks it as it asks the engine,
// with the counters as they are.
type witness struct {
	*policy.Engine
	lines []policy.Line
}

// Decide implements [ledger.Decider].
func (w *witness) Decide(c policy.Call, s policy.State) (d policy.Decision) {
	d, w.lines = w.Explain(c, s)
	return d
}

// ExplainLines is [Server.Explain] with the word of each rule.
func (s *Server) ExplainLines(ctx context.Context, tool string, arguments json.RawMessage) (x Explanation, err error) {
	s.start(upstream.Host{})
	if x.Entry, err = s.route(ctx, tool); err != nil {
		return x, fmt.Errorf("%s: %w", tool, err)
	}
	if x.Entry.Upstream == ownName {
		x.Decision.Verdict = policy.Allow
		return x, nil
	}
	now := s.rules()
	call := s.call(now, x.Entry, arguments)
	now.Engine.Prepare(&call)
	w := &witness{Engine: now.Engine}
	x.Session, x.Decision, err = s.o.Ledger.Check(ctx, now.Use, call, w)
	x.Lines = w.lines
	return x, err
}

// Own reports that the tool is haldir's own.
func (e Entry) Own() bool { return e.Upstream == ownName }
