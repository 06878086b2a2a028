package ledger_test

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

func newLedger(tb testing.TB, dir string) *ledger.Ledger {
	tb.Helper()
	l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			tb.Error(err)
		}
	})
	return l
}

func engine(tb testing.TB, rs policy.Ruleset) *policy.Engine {
	tb.Helper()
	e, err := policy.Compile(rs)
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

func attempt(session string) ledger.Attempt {
	return ledger.Attempt{
		Use:  ledger.Use{ID: session, Terms: &ledger.Terms{Agent: "bot", AllScopes: true}},
		Call: policy.Call{Upstream: "files", Tool: "read", Arguments: []byte(`{"path":"/tmp/x"}`)},
	}
}

func BenchmarkReserveSettle(b *testing.B) {
	e := engine(b, policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeRateLimit, MaxCalls: 1 << 40, Window: time.Hour}}})
	for _, parallel := range []int{1, 4, 16} {
		b.Run(map[int]string{1: "sequential", 4: "parallel-4", 16: "parallel-16"}[parallel], func(b *testing.B) {
			l := newLedger(b, filepath.Join(b.TempDir(), "state"))
			work := make(chan struct{})
			var wg sync.WaitGroup
			for range parallel {
				wg.Go(func() {
					for range work {
						t, d, err := l.Reserve(context.Background(), attempt("ses_a"), e)
						if err != nil || d.Verdict != policy.Allow {
							b.Error(err, d)
							continue
						}
						l.Settle(t, ledger.Outcome{Result: ledger.Done})
					}
				})
			}
			for b.Loop() {
				work <- struct{}{}
			}
			close(work)
			wg.Wait()
		})
	}
}
