package proxy_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// echo is an upstream in this process that answers at once.
type echo struct{ catalogue upstream.Catalogue }

func (*echo) Name() string                    { return "echo" }
func (*echo) Bare() bool                      { return false }
func (*echo) Trusted() bool                   { return false }
func (*echo) Settled(context.Context)         {}
func (*echo) Restored(context.Context)        {}
func (*echo) Ready() bool                     { return true }
func (*echo) Notify([]byte)                   {}
func (*echo) Keep(string, *upstream.Call)     {}
func (*echo) Refuses(string) bool             { return false }
func (*echo) Connected(context.Context)       {}
func (e *echo) Catalogue() upstream.Catalogue { return e.catalogue }
func (*echo) Call(context.Context, upstream.Call) (wire.Message, error) {
	return wire.ParseLenient([]byte(`{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"hello"}]}}`))
}

// BenchmarkCall is haldir's own time on a governed call: from a line on stdin
// to the answer on stdout, with an upstream that takes no time and a ledger on
// a RAM disk (/dev/shm where there is one), whose syncs take none. The p50 is
// reported beside the mean.
func BenchmarkCall(b *testing.B) {
	dir, err := os.MkdirTemp("/dev/shm", "haldir-bench-") //nolint:usetesting // a RAM disk
	if err != nil {
		dir = b.TempDir()
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chmod(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	led, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = led.Close(context.Background()) }()
	engine, err := policy.Compile(policy.Ruleset{Policies: []policy.Rule{
		{Type: policy.TypeDeny, Tools: []string{"delete_*", "drop_*"}},
		{Type: policy.TypeRateLimit, MaxCalls: 1 << 40, Window: time.Hour},
		{Type: policy.TypeSpendLimit, MaxUSD: 1 << 40},
	}})
	if err != nil {
		b.Fatal(err)
	}
	srv := proxy.New(proxy.Options{
		Upstreams: []proxy.Upstream{&echo{upstream.ReadCatalogue([]json.RawMessage{[]byte(`{"name":"say","inputSchema":{"type":"object"}}`)})}},
		Engine:    engine, Ledger: led, Use: ledger.Use{ID: "ses_bench", Terms: &ledger.Terms{Agent: "bench", AllScopes: true}},
		Session: policy.SessionState{ID: "ses_bench", AllScopes: true}, Agent: "bench", Detail: audit.DetailRedacted,
		Secrets: func() []string { return nil }, HideNever: true, NameLimit: 89, ListWait: time.Second, Log: zerolog.Nop(),
	})
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.Background(), inR, outW) }()
	answers := bufio.NewReaderSize(outR, 1<<16)
	ask := func(line string) {
		if _, err := io.WriteString(inW, line+"\n"); err != nil {
			b.Fatal(err)
		}
		if _, err := answers.ReadSlice('\n'); err != nil {
			b.Fatal(err)
		}
	}
	ask(`{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}`)
	times := make([]time.Duration, 0, 1<<16)
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		start := time.Now()
		ask(fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"echo__say","arguments":{"text":"hello, hello","times":3}}}`, n))
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
	_ = inW.Close()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	_ = outW.Close()
}
