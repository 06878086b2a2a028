package proxy_test

import (
	"context"
	"slices"
	"testing"

	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// Whoever counts calls can tell a round from the end of one.
func TestWhatIsToldOfARoundGoesOn(t *testing.T) {
	q := newQuiz("up", "tool")
	q.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
		a, err := q.ask(ctx, "elicitation/create", `{"message":"who?","requestedSchema":{"type":"object","properties":{}}}`)
		if err != nil {
			return wire.Message{}, err
		}
		return reply(mcptest.Text(a))
	}
	told := make(chan bool, 10)
	h := quizzed(t, q, rig{rules: once, adjust: func(o *proxy.Options) {
		o.Observe = func(s *proxy.Seen) { told <- s.GoesOn() }
	}})
	n := needs(t, h.first("up__tool", `{}`))
	h.again("up__tool", `{}`, n.State, map[string]string{n.key(t): `{"action":"accept","content":{}}`})
	parseResponse(t, h.first("up__tool", `{}`)).refusal(t)
	if got := []bool{<-told, <-told, <-told}; !slices.Equal(got, []bool{true, false, false}) {
		t.Errorf("what goes on: %v", got)
	}
}
