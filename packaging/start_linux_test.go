package packaging

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

const (
	upstreams = 5
	tools     = 20 // of each
)

// BenchmarkStart starts the packaged program as a host does, before 5 servers that have 100
// tools together, known from an earlier start. It reports how long it takes from the start
// of the process to the answer to initialize, and what memory of the process is resident
// once it has listed the tools (listed) and once each was called (called), and at most
// (peak); of these the worst of all starts. It also reports the size of the largest program
// and of the bundle.
func BenchmarkStart(b *testing.B) {
	p := own(b)
	text := "version: 1\nupstreams:\n"
	for i := range upstreams {
		var defs []string
		for j := range tools {
			defs = append(defs, fmt.Sprintf(`{"name":"tool_%d","description":%q,"inputSchema":{"type":"object","properties":`+
				`{"text":{"type":"string","description":"What is to be said."},"times":{"type":"integer","minimum":1}},"required":["text"]}}`,
				j, strings.Repeat("Says something, somewhere, to somebody. ", 6)))
		}
		up := mcptest.Script{Tools: []byte("[" + strings.Join(defs, ",") + "]")}.NewHTTP(b)
		text += fmt.Sprintf("  - {name: up-%d, url: %q}\n", i, up.Upstream("x").URL)
	}
	text += "policies:\n  - {type: deny, tools: [\"delete_*\"]}\n  - {type: rate_limit, max_calls: 100000, window: 1h}\n" +
		"  - {type: deny, tools: [\"up-0/*\"], when: 'strings(args).exists(s, under(s, \"/etc\"))', id: no-etc}\n"
	h := mcptest.NewHaldir(b, programs(b)[p.goos+"/"+p.goarch], text)
	list := func(s *mcptest.Session) int { return strings.Count(s.Ask("tools/list", "{}").Raw, `"name":"up-`) }
	first := h.Serve(b)
	first.Initialize(mcptest.Revision)
	for deadline := time.Now().Add(time.Minute); list(first) < upstreams*tools; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatal("the tools were not learnt")
		}
	}
	first.End()

	var greeted []time.Duration
	var peak, listed, called, anonymous int64
	for b.Loop() {
		begin := time.Now()
		s := h.Serve(b)
		s.Initialize(mcptest.Revision)
		greeted = append(greeted, time.Since(begin))
		if n := list(s); n != upstreams*tools {
			b.Fatalf("%d tools are listed", n)
		}
		listed = max(listed, kib(b, s.Pid(), "VmRSS"))
		for j := range tools {
			for i := range upstreams {
				if m := s.Ask("tools/call", mcptest.CallParams(fmt.Sprintf("up-%d__tool_%d", i, j), `{"text":"hello"}`, "")); m.Error != nil {
					b.Fatal(m.Raw)
				}
			}
		}
		called, anonymous = max(called, kib(b, s.Pid(), "VmRSS")), max(anonymous, kib(b, s.Pid(), "RssAnon"))
		peak = max(peak, kib(b, s.Pid(), "VmHWM"))
		s.End()
	}
	var largest int64
	for _, path := range programs(b) {
		largest = max(largest, size(b, path))
	}
	slices.Sort(greeted)
	b.ReportMetric(0, "ns/op") // it would be that of the whole session
	b.ReportMetric(float64(greeted[len(greeted)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(greeted[len(greeted)*95/100].Microseconds())/1000, "p95-ms")
	b.ReportMetric(float64(greeted[0].Microseconds())/1000, "least-ms")
	b.ReportMetric(float64(listed)/1024, "listed-RSS-MiB")
	b.ReportMetric(float64(called)/1024, "called-RSS-MiB")
	b.ReportMetric(float64(anonymous)/1024, "called-anon-MiB")
	b.ReportMetric(float64(peak)/1024, "peak-RSS-MiB")
	b.ReportMetric(float64(largest)/(1<<20), "program-MiB")
	b.ReportMetric(float64(size(b, file(b, "haldir-%s.mcpb")))/1e6, "mcpb-MB")
}

// kib reads a field of what Linux says of a process.
func kib(b *testing.B, pid int, field string) int64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	m := regexp.MustCompile(field + `:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		b.Fatalf("no %s in\n%s", field, status)
	}
	n, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}
