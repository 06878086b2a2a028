package ledger_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// The figures of docs/performance.md, as tables:
//
//	go test ./internal/ledger -run '^$' -bench Figures -benchtime 1x
//
// and with -tags soak at the sizes for which there are limits. Nothing here fails
// because a machine is slow.

func init() {
	workers["figures"], workers["leaver"], workers["memory"] = figuresWorker, leaveCalls, measureMemory
	rulesets["figures"] = func() policy.Ruleset {
		rs := shop()
		rs.Policies = []policy.Rule{
			{Type: policy.TypeDeny, Tools: []string{"shop/steal"}},
			{Type: policy.TypeRateLimit, ID: "rate", MaxCalls: 1 << 40, Window: time.Hour},
		}
		return rs
	}
}

// figuresConfig tells a worker to make calls for a while.
type figuresConfig struct {
	Dir     string
	Callers int
	For     time.Duration
	OnPath  bool // a call waits until its settlement is on disk
}

func figuresWorker(raw []byte) error {
	var c figuresConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	e, err := policy.Compile(rulesets["figures"]())
	if err != nil {
		return err
	}
	l, err := ledger.Open(ledger.Options{Dir: c.Dir, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		return err
	}
	ctx := context.Background()
	one := func() error {
		ticket, d, err := l.Reserve(ctx, call("ses_a", "look", `{"path":"/tmp/x"}`), e)
		if err != nil || d.Verdict != policy.Allow {
			return fmt.Errorf("%v %w", d.Verdict, err)
		}
		l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
		if c.OnPath {
			return l.Flush(ctx)
		}
		return nil
	}
	if err := one(); err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := fmt.Scanln(new(string)); err != nil {
		return err
	}
	took, failures := make([][]time.Duration, c.Callers), make([]error, c.Callers)
	end := time.Now().Add(c.For)
	var wg sync.WaitGroup
	for i := range c.Callers {
		wg.Go(func() {
			for {
				begin := time.Now()
				if begin.After(end) {
					return
				}
				if failures[i] = one(); failures[i] != nil {
					return
				}
				took[i] = append(took[i], time.Since(begin))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(failures...); err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(slices.Concat(took...)); err != nil {
		return err
	}
	return l.Close(ctx)
}

// figure is what was measured of one way to use a ledger.
type figure struct {
	took  []time.Duration // of all calls, sorted
	rate  float64         // calls a second
	share float64         // of the process that got least, in parts of its fair share
}

func (f figure) percentile(p int) time.Duration {
	if len(f.took) == 0 {
		return 0
	}
	return f.took[min(len(f.took)-1, len(f.took)*p/100)]
}

func measure(tb testing.TB, processes int, c figuresConfig) figure {
	tb.Helper()
	ps := make([]*process, processes)
	for i := range ps {
		ps[i] = spawn(tb, "figures", c)
	}
	for _, p := range ps {
		p.expect(tb, "ready")
	}
	for _, p := range ps {
		p.say("go")
	}
	var f figure
	least := 1 << 62
	for _, p := range ps {
		line, _ := p.line()
		var took []time.Duration
		if err := json.Unmarshal([]byte(line), &took); err != nil {
			tb.Fatalf("%v: %s", err, p.errors)
		}
		if err := p.wait(); err != nil {
			tb.Fatalf("%v: %s", err, p.errors)
		}
		f.took = append(f.took, took...)
		least = min(least, len(took))
	}
	slices.Sort(f.took)
	f.rate = float64(len(f.took)) / c.For.Seconds()
	f.share = float64(least*processes) / float64(max(1, len(f.took)))
	return f
}

// floor appends 256 bytes to a plain file and syncs it, twice a call: what two
// durable commits cost at the least.
func floor(tb testing.TB, dir string, length time.Duration) figure {
	tb.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "floor"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var r figure
	record := make([]byte, 256)
	for end := time.Now().Add(length); time.Now().Before(end); {
		begin := time.Now()
		for range 2 {
			if _, err := f.Write(record); err != nil {
				tb.Fatal(err)
			}
			if err := dataSync(f); err != nil {
				tb.Fatal(err)
			}
		}
		r.took = append(r.took, time.Since(begin))
	}
	slices.Sort(r.took)
	r.rate = float64(len(r.took)) / length.Seconds()
	return r
}

// fill makes calls, without syncing, until a ledger has so many records and its
// file so many bytes.
func fill(tb testing.TB, dir string, records uint64, size int64) {
	tb.Helper()
	l := quick(tb, dir)
	defer closeLedger(tb, l)
	e := engine(tb, rulesets["figures"]())
	filler := strings.Repeat("0123456789abcdef", 100)
	var made atomic.Uint64
	var full atomic.Bool
	var wg sync.WaitGroup
	for w := range uint64(128) {
		wg.Go(func() {
			for i := w; !full.Load(); i += 128 {
				tool := []string{"look", "tip", "ask", "read", "list", "find"}[i%6]
				a := call(fmt.Sprintf("ses_%d", i%1000), tool, fmt.Sprintf(`{"n":%d,"text":"%s"}`, i, filler))
				a.Body = audit.NewBody(a.Call.Arguments, audit.DetailFull, nil)
				a.Use.Terms.Agent = fmt.Sprintf("agent_%d", i%1000%7) // one of a session
				switch {
				case i%50 == 7:
					a.Call.Tool = "steal"
				case i%9 == 3:
					a.Call.Upstream = "files"
				case i == 100:
					a.Call.Upstream, a.Call.Tool = "rare", "once"
				}
				ticket, d, err := l.Reserve(context.Background(), a, e)
				if err != nil {
					tb.Errorf("Reserve: %v", err)
					return
				}
				made.Add(1)
				if d.Verdict == policy.Allow {
					out := ledger.Outcome{Result: ledger.Done}
					switch {
					case i%40 == 11:
						out.Result = ledger.Failed
					case i == 200:
						out.Result = ledger.Cancelled
					}
					l.Settle(ticket, out)
					made.Add(1)
				}
				if w == 0 { // now and then
					info, err := os.Stat(filepath.Join(dir, "haldir.db"))
					if err == nil && info.Size() >= size && made.Load() >= records {
						full.Store(true)
					}
				}
			}
		})
	}
	wg.Wait()
}

// leaveCalls is a worker that dies with open calls.
func leaveCalls(raw []byte) error {
	var dir string
	e, err := policy.Compile(rulesets["figures"]())
	if err := errors.Join(err, json.Unmarshal(raw, &dir)); err != nil {
		return err
	}
	l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		return err
	}
	for range 16 {
		if _, _, err := l.Reserve(context.Background(), call("ses_a", "look", `{}`), e); err != nil {
			return err
		}
	}
	os.Exit(0) //revive:disable-line:deep-exit // as good as killed
	return nil
}

// opening measures from Open to the first answer.
func opening(tb testing.TB, dir string, recover bool) time.Duration {
	tb.Helper()
	var took []time.Duration
	for range 9 {
		if recover {
			if err := spawn(tb, "leaver", dir).wait(); err != nil {
				tb.Fatal(err)
			}
		}
		begin := time.Now()
		l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop()})
		if err != nil {
			tb.Fatal(err)
		}
		if _, ok, err := l.Entry(context.Background(), 1); err != nil || !ok {
			tb.Fatal(ok, err)
		}
		took = append(took, time.Since(begin))
		closeLedger(tb, l)
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// anonymous returns the anonymous memory of this process in KiB; mapped pages of
// files are not in it. 0 where the system does not tell.
func anonymous() int {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "RssAnon:")
	n, _ := strconv.Atoi(strings.Fields(rest + " 0")[0])
	return n
}

// measureMemory is a worker that tells its anonymous memory before it has a
// ledger, and the most it had while it made calls.
func measureMemory(raw []byte) error {
	var dir string
	e, err := policy.Compile(rulesets["figures"]())
	if err := errors.Join(err, json.Unmarshal(raw, &dir)); err != nil {
		return err
	}
	debug.SetGCPercent(50) // as haldir serve does
	before, most := anonymous(), 0
	l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		return err
	}
	for i := range 2000 {
		ticket, _, err := l.Reserve(context.Background(), call("ses_a", "look", `{"path":"/tmp/x"}`), e)
		if err != nil {
			return err
		}
		l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
		if i%100 == 0 {
			most = max(most, anonymous())
		}
	}
	fmt.Println(before, most)
	return l.Close(context.Background())
}

// size is how large the ledgers are that are measured.
type size struct {
	name    string
	bytes   int64
	records uint64
}

func sizes() []size {
	if soaking {
		return []size{{"1 MB", 1 << 20, 0}, {"100 MB", 100 << 20, 0}, {"1 GB", 1 << 30, 1_000_000}}
	}
	return []size{{"1 MB", 1 << 20, 0}}
}

// Large ledgers take minutes to make, so the benchmarks share them.
var filled = map[string]string{}

// prepared returns a state directory of a size. It stays until the process ends.
func prepared(tb testing.TB, s size) string {
	tb.Helper()
	if dir := filled[s.name]; dir != "" {
		return dir
	}
	root, err := os.MkdirTemp("", "haldir-figures-")
	if err != nil {
		tb.Fatal(err)
	}
	begin := time.Now()
	dir := filepath.Join(root, "state")
	fill(tb, dir, s.records, s.bytes)
	filled[s.name] = dir
	info, err := os.Stat(filepath.Join(dir, "haldir.db"))
	if err != nil {
		tb.Fatal(err)
	}
	l := quick(tb, dir)
	st, err := l.Stats(context.Background())
	closeLedger(tb, l)
	if err != nil {
		tb.Fatal(err)
	}
	fmt.Printf("\n%s: %d records in %d bytes, made in %v\n", s.name, st.Records, info.Size(), time.Since(begin).Round(time.Millisecond))
	return dir
}

func discard() {
	for name, dir := range filled {
		_ = os.RemoveAll(filepath.Dir(dir))
		delete(filled, name)
	}
}

// BenchmarkFigures prints what docs/performance.md says of the ledger, beside the
// floor on the same disk in the same minute.
func BenchmarkFigures(b *testing.B) {
	defer discard()
	length := 700 * time.Millisecond
	if soaking {
		length = 5 * time.Second
	}
	once := func(name string, f func(*testing.B)) {
		b.Run(strings.ReplaceAll(name, " ", ""), func(b *testing.B) {
			if b.N == 1 { // a table, not a loop
				f(b)
			}
		})
	}
	all := sizes()
	for _, s := range all {
		var dir string
		once(s.name+"/open", func(b *testing.B) {
			dir = prepared(b, s)
			openingOf(b, s, dir)
		})
		if s.name != "100 MB" && dir != "" {
			once(s.name+"/calls", func(b *testing.B) { figuresOf(b, s, dir, length) })
		}
		if s == all[len(all)-1] && dir != "" {
			once(s.name+"/queries", func(b *testing.B) { queriesOf(b, dir) })
		}
	}
}

func openingOf(b *testing.B, s size, dir string) {
	b.Helper()
	open, recovered := opening(b, dir, false), opening(b, dir, true)
	fmt.Printf("%s: open to the first answer %v, with 16 calls of a dead process to settle %v\n", s.name, open.Round(10*time.Microsecond), recovered.Round(10*time.Microsecond))
	line, _ := spawn(b, "memory", dir).line()
	var before, most int
	if _, err := fmt.Sscan(line, &before, &most); err != nil {
		b.Fatal(err)
	}
	fmt.Printf("%s: anonymous memory %d KiB above the bare program's %d KiB\n", s.name, most-before, before)
}

func figuresOf(b *testing.B, s size, dir string, length time.Duration) {
	b.Helper()
	ms := func(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }
	fmt.Printf("\n| %s | settle | calls/s | × 1×1 | p50 | p99 | p50 in F | p99 in F | least share |\n|---|---|---|---|---|---|---|---|---|\n", s.name)
	var alone [2]figure
	last := floor(b, b.TempDir(), length/2)
	var floors []float64
	for _, onPath := range []bool{true, false} {
		for _, x := range []struct{ processes, callers int }{{1, 1}, {1, 4}, {1, 16}, {4, 1}, {4, 4}} {
			f := measure(b, x.processes, figuresConfig{dir, x.callers, length, onPath})
			next := floor(b, b.TempDir(), length/2)
			unit := float64(last.percentile(50)+next.percentile(50)) / 2
			last = next
			floors = append(floors, unit)
			way := 0
			when := "on the path"
			if !onPath {
				way, when = 1, "off it"
			}
			if x.processes*x.callers == 1 {
				alone[way] = f
			}
			share := ""
			if x.processes > 1 {
				share = fmt.Sprintf("%.2f", f.share)
			}
			fmt.Printf("| %d×%d | %s | %.0f | %.2f | %s | %s | %.2f | %.1f | %s |\n", x.processes, x.callers, when, f.rate, f.rate/alone[way].rate,
				ms(f.percentile(50)), ms(f.percentile(99)), float64(f.percentile(50))/unit, float64(f.percentile(99))/unit, share)
		}
	}
	slices.Sort(floors)
	fmt.Printf("| floor | F = %s, in the course of it %s to %s | %.0f | | %s | %s | 1 | %.1f | |\n", ms(time.Duration(floors[len(floors)/2])),
		ms(time.Duration(floors[0])), ms(time.Duration(floors[len(floors)-1])), last.rate, ms(last.percentile(50)), ms(last.percentile(99)),
		float64(last.percentile(99))/float64(last.percentile(50)))
}

// queriesOf prints how long a page of 50 takes by every filter, from the newest
// on and deep in the past.
func queriesOf(b *testing.B, dir string) {
	b.Helper()
	l := quick(b, dir)
	defer closeLedger(b, l)
	ctx := context.Background()
	newest, _, err := l.Find(ctx, audit.Filter{Limit: 1})
	if err != nil || len(newest) == 0 {
		b.Fatal(err)
	}
	head := newest[0].Seq
	middle, _, err := l.Find(ctx, audit.Filter{Limit: 1, Before: head / 2})
	if err != nil || len(middle) == 0 {
		b.Fatal(err)
	}
	half := middle[0].Timestamp
	fmt.Printf("\n| a page of 50 in %d records | newest, median | slowest | from the middle, median | slowest | entries |\n|---|---|---|---|---|---|\n", head)
	for _, q := range []struct {
		name string
		f    audit.Filter
	}{
		{"no filter", audit.Filter{}},
		{"session", audit.Filter{Session: "ses_77"}},
		{"agent", audit.Filter{Agent: "agent_3"}},
		{"upstream", audit.Filter{Upstream: "files"}},
		{"upstream, one call long ago", audit.Filter{Upstream: "rare"}},
		{"tool", audit.Filter{Tool: "shop/tip"}},
		{"tool by its own name", audit.Filter{Tool: "tip"}},
		{"tool that there is not", audit.Filter{Tool: "nothing"}},
		{"session that there is not", audit.Filter{Session: "ses_none"}},
		{"status allowed", audit.Filter{Status: audit.StatusAllowed}},
		{"status denied", audit.Filter{Status: audit.StatusDenied}},
		{"status error", audit.Filter{Status: audit.StatusError}},
		{"status cancelled, one call long ago", audit.Filter{Status: audit.StatusCancelled}},
		{"status running, none", audit.Filter{Status: audit.StatusRunning}},
		{"flagged", audit.Filter{Flagged: true}},
		{"since the middle", audit.Filter{Since: half}},
		{"until the middle", audit.Filter{Until: half}},
		{"an instant in the middle", audit.Filter{Since: half, Until: half.Add(time.Millisecond)}},
		{"session and denied", audit.Filter{Session: "ses_57", Status: audit.StatusDenied}},
		{"agent and error", audit.Filter{Agent: "agent_3", Status: audit.StatusError}},
		{"tool and session", audit.Filter{Tool: "shop/tip", Session: "ses_1"}},
		{"two that never meet", audit.Filter{Agent: "agent_3", Session: "ses_1"}},
		{"flagged until the middle", audit.Filter{Flagged: true, Until: half}},
		{"governance", audit.Filter{Status: audit.StatusGovernance}},
	} {
		var cells []string
		entries := 0
		for _, before := range []uint64{0, head / 2} {
			var took []time.Duration
			for range 9 {
				q.f.Before, q.f.Limit = before, 50
				begin := time.Now()
				list, _, err := l.Find(ctx, q.f)
				if err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begin))
				if before == 0 {
					entries = len(list)
				}
			}
			slices.Sort(took)
			cells = append(cells, took[len(took)/2].Round(time.Microsecond).String(), took[len(took)-1].Round(time.Microsecond).String())
		}
		fmt.Printf("| %s | %s | %d |\n", q.name, strings.Join(cells, " | "), entries)
	}
}
