package main_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// pendingRounds are so many rounds of so many calls, in turn without and with others that
// wait.
type pendingRounds struct{ rounds, calls, waiting int }

// TestPendingApprovalsHoldUpNothing is bar 2 of issue 6: while calls in four processes wait
// for a person, others go on as if there were none. How much longer they take is for the log;
// the long form, of 200 waiting and 1,000 calls, is under the tag soak.
func TestPendingApprovalsHoldUpNothing(t *testing.T) {
	pendingApprovals(t, pendingRounds{rounds: 1, calls: 80, waiting: 40})
}

func pendingApprovals(t *testing.T, p pendingRounds) (without, with []time.Duration) {
	t.Helper()
	const processes = 4
	h, _ := approvalConfig(t, "timeout: 10m")
	sessions := make([]*mcptest.Session, processes)
	for i := range sessions {
		sessions[i] = h.Serve(t)
		sessions[i].Ask("initialize", `{"protocolVersion":"2025-11-25","capabilities":{"elicitation":{}},"clientInfo":{"name":"host","version":"1"}}`)
		sessions[i].Notify("notifications/initialized")
		for end := time.Now().Add(time.Minute); !strings.Contains(sessions[i].Ask("tools/list", "{}").Raw, "sec__dns_lookup"); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the tools were not learnt")
			}
		}
	}
	each := func(f func(i int, s *mcptest.Session)) {
		var wg sync.WaitGroup
		for i, s := range sessions {
			wg.Go(func() { f(i, s) })
		}
		wg.Wait()
	}
	// calls makes those that nobody is asked about, one after the other in each process.
	calls := func(waiting int) []time.Duration {
		took := make([][]time.Duration, processes)
		each(func(i int, s *mcptest.Session) {
			for range p.calls / processes {
				begin := time.Now()
				m := s.Ask("tools/call", `{"name":"sec__dns_lookup","arguments":{"domain":"example.org"}}`)
				took[i] = append(took[i], time.Since(begin))
				if m.Error != nil || refusalOf(t, m).Policy != "" {
					t.Errorf("while %d wait: %s", waiting, m.Raw)
				}
			}
		})
		return slices.Concat(took...)
	}
	pending := func() []string {
		var list struct {
			Approvals []struct {
				ID      string `json:"id"`
				Waiting bool   `json:"waiting"`
			} `json:"approvals"`
		}
		if err := json.Unmarshal([]byte(h.Must(t, "approvals", "list", "--json")), &list); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, x := range list.Approvals {
			if x.Waiting {
				ids = append(ids, x.ID)
			}
		}
		return ids
	}
	calls(0) // to warm up
	for round := range p.rounds {
		without = append(without, calls(0)...)
		waits := make([][]string, processes)
		each(func(i int, s *mcptest.Session) {
			for n := range p.waiting / processes {
				waits[i] = append(waits[i], s.Post("tools/call", fmt.Sprintf(`{"name":"sec__scan_domain","arguments":{"domain":"d%d-%d-%d.example.org"}}`, round, i, n)))
			}
		})
		for end := time.Now().Add(time.Minute); len(pending()) < p.waiting; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d of %d calls wait", len(pending()), p.waiting)
			}
		}
		with = append(with, calls(p.waiting)...)
		if n := len(pending()); n != p.waiting {
			t.Errorf("%d wait still, of %d", n, p.waiting)
		}
		each(func(i int, s *mcptest.Session) {
			for _, id := range waits[i] { // the client gives them up
				s.Send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":` + id + `}}`)
			}
		})
		for end := time.Now().Add(time.Minute); len(pending()) > 0; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d calls wait, and nobody for them", len(pending()))
			}
		}
	}
	for _, s := range sessions {
		s.End()
	}
	h.Must(t, "audit", "verify")
	a, b := percentiles(without), percentiles(with)
	t.Logf("%d calls in %d processes: p50 %v, p99 %v; while %d wait: p50 %v, p99 %v (%.2f of it)",
		len(with), processes, a[0], a[1], p.waiting, b[0], b[1], float64(b[1])/float64(a[1]))
	return without, with
}

// percentiles returns the median and the 99th.
func percentiles(took []time.Duration) [2]time.Duration {
	s := slices.Sorted(slices.Values(took))
	return [2]time.Duration{s[len(s)/2].Round(10 * time.Microsecond), s[len(s)*99/100].Round(10 * time.Microsecond)}
}
