package upstream_test

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// Over HTTP too a server may ask without end; the answers must not pile up.
func TestEndlessRequestsOverHTTP(t *testing.T) {
	srv := mcptest.Script{SSE: true}.NewHTTP(t)
	var answers, most atomic.Int64
	srv.Before = func(_ http.ResponseWriter, req *http.Request, body []byte) bool {
		if strings.Contains(string(body), `"result":{}`) { // an answer to a ping
			most.Store(max(most.Load(), answers.Add(1)))
			<-req.Context().Done()
			answers.Add(-1)
			return true
		}
		return false
	}
	r := ready(t, srv.Upstream("up"))
	r.must("echo", "{}")
	const n = 500
	for range n / 100 {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		// Whatever becomes of the answers, the call can be given up.
		within(t, 2*time.Second, "a call that was given up", func() { _, _ = r.call(ctx, "flood", `{"what":"ping","n":100}`) })
		cancel()
	}
	time.Sleep(500 * time.Millisecond)
	t.Logf("%d answers hang at once", most.Load())
	if most.Load() > 100 {
		t.Errorf("%d answers to pings hang at once, each on a connection of its own", most.Load())
	}
	within(t, 2*time.Second, "Close", r.Close)
}
