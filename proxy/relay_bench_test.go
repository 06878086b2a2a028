package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// BenchmarkRelay sets haldir, with a ledger that keeps nothing, beside a relay that
// does nothing but carry lines to HTTP and back, both in processes of their own, and
// beside a client that needs neither: each makes the same call in turn, so that all
// three see the same machine.
// The columns are the medians, and haldir's over the relay's.
func BenchmarkRelay(b *testing.B) {
	for _, size := range []int{32, 4 << 10, 64 << 10, 1 << 20} {
		for _, mode := range []string{"json", "sse"} {
			b.Run(fmt.Sprintf("%s/%d", mode, size), func(b *testing.B) { relayBench(b, mode, size) })
		}
	}
}

func relayBench(b *testing.B, mode string, size int) {
	srv := httptest.NewServer(sized(mode, size))
	defer srv.Close()
	call := func(tool string, n int) string {
		return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q,"arguments":{"text":"hello"}}}`, n, tool)
	}
	relay := piped(b, "relay", srv.URL)
	guard := piped(b, "haldir", srv.URL)
	guard(`{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}`)
	guard(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
	client := &http.Client{Transport: &http.Transport{}}
	arms := []func(n int){
		func(n int) { exchange(client, srv.URL, []byte(call("say", n)), func([]byte) {}) },
		func(n int) { relay(call("say", n)) },
		func(n int) {
			if got := guard(call("up__say", n)); got < size {
				b.Fatalf("an answer of %d bytes", got)
			}
		},
	}
	times := make([][]time.Duration, len(arms))
	n := 1
	for range 20 { // warm
		for _, run := range arms {
			n++
			run(n)
		}
	}
	for b.Loop() {
		for arm, run := range arms {
			n++
			start := time.Now()
			run(n)
			times[arm] = append(times[arm], time.Since(start))
		}
	}
	p50 := func(arm int) float64 {
		slices.Sort(times[arm])
		return float64(times[arm][len(times[arm])/2].Nanoseconds()) / 1e3
	}
	direct, floor, ours := p50(0), p50(1), p50(2)
	b.ReportMetric(direct, "direct-µs")
	b.ReportMetric(floor, "relay-µs")
	b.ReportMetric(ours, "haldir-µs")
	b.ReportMetric(ours/floor, "haldir/relay")
	b.ReportMetric(0, "ns/op") // of three calls together it says nothing
}

// sized is a server with one tool, whose results have the given size.
func sized(mode string, size int) http.Handler {
	result := `{"content":[{"type":"text","text":"` + strings.Repeat("x", size) + `"}]}`
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		m, bad := wire.ParseLenient(body)
		if err != nil || bad != nil {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		answer := result
		switch m.Method {
		case "initialize":
			answer = `{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"sized","version":"1"}}`
		case "tools/list":
			answer = `{"tools":[{"name":"say","inputSchema":{"type":"object"}}]}`
		case "tools/call":
		case "notifications/initialized":
			w.WriteHeader(http.StatusAccepted)
			return
		default:
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if mode == "sse" {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = fmt.Fprintf(w, "event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":%s}\n\n", m.ID, answer)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, answer)
	})
}

// exchange posts a message and hands on what is answered.
func exchange(client *http.Client, url string, msg []byte, emit func([]byte)) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, bytes.NewReader(msg))
	if err != nil {
		panic(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	resp, err := client.Do(req)
	if err != nil {
		panic(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			panic(err)
		}
		emit(body)
		return
	}
	for r := bufio.NewReaderSize(resp.Body, 64<<10); ; {
		line, err := r.ReadBytes('\n')
		if data, ok := bytes.CutPrefix(line, []byte("data: ")); ok {
			emit(bytes.TrimRight(data, "\n"))
		}
		if err != nil {
			return
		}
	}
}

// relayLines carries each line to a server and each answer back.
func relayLines(url string, in io.Reader, out io.Writer) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var wg sync.WaitGroup
	defer wg.Wait()
	for r := bufio.NewReaderSize(in, 1<<20); ; {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		wg.Go(func() {
			exchange(client, url, bytes.TrimSpace(line), func(answer []byte) {
				mu.Lock()
				defer mu.Unlock()
				_, _ = out.Write(append(answer, '\n'))
			})
		})
	}
}

// benchArm makes this program one of the two that carry lines.
const benchArm = "HALDIR_BENCH_ARM"

// runArm does so and reports whether it was asked to.
func runArm() bool {
	arm, url, ok := strings.Cut(os.Getenv(benchArm), " ")
	switch {
	case !ok:
		return false
	case arm == "relay":
		relayLines(url, os.Stdin, os.Stdout)
	default:
		governing(url, os.Stdin, os.Stdout)
	}
	return true
}

// piped starts one of the two and returns what sends a line, reads the answer and
// says how long it is.
func piped(b *testing.B, arm, url string) func(line string) int {
	b.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), benchArm+"="+arm+" "+url)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	answers := bufio.NewReaderSize(out, 64<<10)
	return func(line string) (size int) {
		if _, err := io.WriteString(in, line+"\n"); err != nil {
			b.Fatal(err)
		}
		for {
			part, err := answers.ReadSlice('\n')
			if size += len(part); err == nil {
				return size
			} else if err != bufio.ErrBufferFull { //nolint:errorlint // as it is returned
				b.Fatal(err)
			}
		}
	}
}

// governing is haldir before the server at url.
func governing(url string, in io.Reader, out io.Writer) {
	debug.SetGCPercent(50) // as serve does
	engine, err := policy.Compile(policy.Ruleset{Policies: []policy.Rule{
		{Type: policy.TypeDeny, Tools: []string{"delete_*", "drop_*"}},
		{Type: policy.TypeRateLimit, MaxCalls: 1 << 40, Window: time.Hour},
		{Type: policy.TypeSpendLimit, MaxUSD: 1 << 40},
	}})
	if err != nil {
		panic(err)
	}
	up := upstream.New(upstream.Options{
		Config:   config.Upstream{Name: "up", URL: url, Connect: 10 * time.Second},
		Resolver: config.NewResolver("", nil, func(string) {}), Cache: forgetful{}, Log: zerolog.Nop(), Version: "bench", Changed: func() {},
	})
	srv := proxy.New(proxy.Options{
		Upstreams: []proxy.Upstream{up}, Engine: engine, Ledger: &forgetful{}, Use: ledger.Use{ID: "ses_bench", Terms: &ledger.Terms{Agent: "bench", AllScopes: true}},
		Session: policy.SessionState{ID: "ses_bench", AllScopes: true}, Agent: "bench", Detail: audit.DetailRedacted,
		Secrets: func() []string { return nil }, HideNever: true, NameLimit: 89, ListWait: 5 * time.Second, Log: zerolog.Nop(), Initialize: up.Start,
	})
	if err := srv.Serve(context.Background(), in, out); err != nil {
		panic(err)
	}
	up.Close()
}

// forgetful is a ledger and a cache that keep nothing: it decides, and that is all.
type forgetful struct{ proxy.Ledger }

func (forgetful) Reserve(_ context.Context, a ledger.Attempt, d ledger.Decider) (ledger.Ticket, policy.Decision, error) {
	_ = d.Reads(a.Call)
	return ledger.Ticket{}, d.Decide(a.Call, policy.State{Now: time.Now(), Session: policy.SessionState{AllScopes: true}}), nil
}
func (forgetful) Settle(ledger.Ticket, ledger.Outcome)                            {}
func (forgetful) Bell() string                                                    { return "" }
func (forgetful) LoadCatalogue(context.Context, string) ([]byte, error)           { return nil, nil }
func (forgetful) SaveCatalogue(_ context.Context, _ string, _ []byte) (err error) { return nil }
