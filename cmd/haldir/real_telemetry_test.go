package main_test

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// realCollector is OpenTelemetry's own receiver, from a module of its own, as a process.
type realCollector struct {
	url   string
	mu    sync.Mutex
	lines []string
}

func startCollector(t *testing.T) *realCollector {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "collector.exe")
	build := exec.Command("go", "build", "-o", exe, ".")
	build.Dir = filepath.Join("..", "..", "tools", "collector")
	build.Env = append(os.Environ(), "GOFLAGS=-mod=readonly")
	if out, err := build.CombinedOutput(); err != nil {
		mcptest.Unavailable(t, "the collector cannot be built: %v: %s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // only to find a port that is free
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, address)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &realCollector{url: "http://" + address}
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 64<<20)
		for lines.Scan() {
			c.mu.Lock()
			c.lines = append(c.lines, lines.Text())
			c.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has no state
		<-read
		_ = cmd.Wait() // it was killed
	})
	c.until(t, func() bool { return len(c.of(`{"ready":true}`)) > 0 })
	return c
}

// of returns the requests that begin with something, which tells the signals apart.
func (c *realCollector) of(begin string) (list []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lines {
		if strings.HasPrefix(l, begin) {
			list = append(list, l)
		}
	}
	return list
}

func (c *realCollector) until(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the collector has: %.3000s", strings.Join(c.of("{"), "\n"))
		}
	}
}

type otlpPair struct {
	Key   string
	Value struct {
		StringValue string
		IntValue    json.Number
	}
}

type otlpSpan struct {
	TraceID      string `json:"traceId"`
	SpanID       string `json:"spanId"`
	ParentSpanID string `json:"parentSpanId"`
	TraceState   string `json:"traceState"`
	Name         string
	Kind         int
	Status       struct{ Code int }
	Attributes   []otlpPair
}

func (s *otlpSpan) of(key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value.StringValue + a.Value.IntValue.String()
		}
	}
	return ""
}

func (c *realCollector) spans(t *testing.T) (list []otlpSpan) {
	t.Helper()
	for _, line := range c.of(`{"resourceSpans"`) {
		var all struct {
			ResourceSpans []struct{ ScopeSpans []struct{ Spans []otlpSpan } }
		}
		if err := json.Unmarshal([]byte(line), &all); err != nil {
			t.Fatal(err)
		}
		for _, s := range all.ResourceSpans[0].ScopeSpans {
			list = append(list, s.Spans...)
		}
	}
	return list
}

// TestRealCollector has the official server behind haldir, and OpenTelemetry's receiver
// beside it.
func TestRealCollector(t *testing.T) {
	t.Parallel()
	c := startCollector(t)
	server := mcptest.NPM(t, mcptest.Everything, "mcp-server-everything")
	args, err := json.Marshal(server[1:])
	if err != nil {
		t.Fatal(err)
	}
	h := mcptest.NewHaldir(t, program(t), "version: 1\nupstreams:\n  - {name: every, command: "+strconv.Quote(server[0])+", args: "+string(args)+"}\n"+
		"policies:\n  - {type: deny, tools: [get-sum], id: no-sums}\n")
	cmd := h.Command("serve")
	cmd.Env = append(cmd.Env, "OTEL_EXPORTER_OTLP_ENDPOINT="+c.url, "OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20header-secret", "OTEL_EXPORTER_OTLP_COMPRESSION=gzip",
		"OTEL_RESOURCE_ATTRIBUTES=team=red", "OTEL_METRIC_EXPORT_INTERVAL=300", "OTEL_BSP_SCHEDULE_DELAY=100")
	s := mcptest.Start(t, cmd)
	s.Initialize(mcptest.Revision)
	toolNames(t, s)
	const trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	m := s.Ask("tools/call", `{"name":"every__echo","arguments":{"message":"argument-secret"},"_meta":{"traceparent":"00-`+trace+`-`+span+`-01","tracestate":"vendor=1"}}`)
	if !strings.Contains(m.Raw, "argument-secret") {
		t.Fatalf("%s", m.Raw)
	}
	if r := refusalOf(t, s.Ask("tools/call", `{"name":"every__get-sum","arguments":{"a":1,"b":2}}`)); r.Rule != "no-sums" {
		t.Errorf("%+v", r)
	}
	if m := s.Ask("tools/call", `{"name":"every__get-env","arguments":{}}`); !strings.Contains(m.Raw, "PATH") || strings.Contains(m.Raw, "OTEL_") {
		t.Errorf("what the server has for an environment: %s", m.Raw)
	}

	// Traces.
	c.until(t, func() bool { return len(c.spans(t)) >= 5 })
	var whole, theirs, denied *otlpSpan
	list := c.spans(t)
	for i := range list {
		switch x := &list[i]; {
		case x.Name == "tools/call echo" && x.Kind == 2:
			whole = x
		case x.Name == "tools/call echo" && x.Kind == 3:
			theirs = x
		case x.Name == "tools/call get-sum":
			denied = x
		}
	}
	if whole == nil || theirs == nil || denied == nil {
		t.Fatalf("%+v", list)
	}
	if whole.TraceID != trace || whole.ParentSpanID != span || whole.TraceState != "vendor=1" || theirs.TraceID != trace || theirs.ParentSpanID != whole.SpanID {
		t.Errorf("the host's span is not their parent: %+v, %+v", whole, theirs)
	}
	if whole.of("mcp.method.name") != "tools/call" || whole.of("gen_ai.tool.name") != "echo" || whole.of("haldir.upstream") != "every" ||
		whole.of("haldir.decision") != "allowed" || whole.of("haldir.record") == "" || whole.Status.Code != 0 {
		t.Errorf("%+v", whole)
	}
	if denied.Kind != 2 || denied.of("haldir.decision") != "denied" || denied.of("haldir.rule") != "no-sums" || denied.Status.Code != 2 || denied.of("error.type") != "denied" {
		t.Errorf("%+v", denied)
	}

	// Metrics.
	c.until(t, func() bool {
		all := strings.Join(c.of(`{"resourceMetrics"`), "\n")
		return strings.Contains(all, `"haldir.calls"`) && strings.Contains(all, "mcp.server.operation.duration") && strings.Contains(all, `"haldir.upstream.up"`) && strings.Contains(all, "get-sum")
	})

	// The audit: all that is in the ledger, whole.
	export := filepath.Join(t.TempDir(), "export.jsonl")
	shipped := map[string]bool{}
	records := func() map[string]bool {
		for _, line := range c.of(`{"resourceLogs"`) {
			var all struct {
				ResourceLogs []struct {
					ScopeLogs []struct {
						LogRecords []struct{ Body struct{ StringValue string } }
					}
				}
			}
			if err := json.Unmarshal([]byte(line), &all); err != nil {
				t.Fatal(err)
			}
			for _, r := range all.ResourceLogs[0].ScopeLogs[0].LogRecords {
				shipped[r.Body.StringValue] = true
			}
		}
		return shipped
	}
	c.until(t, func() bool { return len(records()) >= 5 })
	s.End()
	command := h.Command("audit", "ship") // what the end of the process has added
	command.Env = append(command.Env, "OTEL_EXPORTER_OTLP_ENDPOINT="+c.url)
	if out, err := command.CombinedOutput(); err != nil || !strings.Contains(string(out), "shipped") {
		t.Fatalf("%v: %s", err, out)
	}
	h.Must(t, "audit", "export", "--out", export)
	want, err := os.ReadFile(export)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(want)), "\n")
	c.until(t, func() bool { return len(records()) >= len(lines) })
	for _, line := range lines {
		if !shipped[line] {
			t.Errorf("not shipped as it is exported: %s", line)
		}
	}
	if stats := h.Must(t, "ledger", "stats"); !strings.Contains(stats, c.url+"/v1/logs; 0 to go") {
		t.Errorf("%s", stats)
	}

	verifyShipped(t, c, lines)

	// What is never sent.
	for _, begin := range []string{`{"resourceSpans"`, `{"resourceMetrics"`} {
		for _, line := range c.of(begin) {
			if strings.Contains(line, "argument-secret") || strings.Contains(line, "header-secret") || !strings.Contains(line, `"team"`) {
				t.Errorf("%s", line)
			}
		}
	}
	if strings.Contains(s.Stderr(), "header-secret") {
		t.Errorf("%s", s.Stderr())
	}
}

// verifyShipped follows docs/observability.md: what the collector has is made an export again,
// and that is verified by a program that shares nothing with haldir.
func verifyShipped(t *testing.T, c *realCollector, lines []string) {
	t.Helper()
	for _, tool := range []string{"bash", "jq", "node"} {
		if _, err := exec.LookPath(tool); err != nil {
			mcptest.Unavailable(t, "%v", err)
		}
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "observability.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, recipe, found := strings.Cut(string(page), "    jq -r")
	recipe, _, end := strings.Cut(recipe, "\n\n")
	id := regexp.MustCompile(`"haldir.ledger","value":\{"stringValue":"([^"]+)"`).FindStringSubmatch(c.of(`{"resourceLogs"`)[0])
	if !found || !end || id == nil {
		t.Fatal("the page has no recipe, or the collector no ledger")
	}
	dir := t.TempDir()
	logs := strings.Join(c.of(`{"resourceLogs"`), "\n") + "\n"
	if err := os.WriteFile(filepath.Join(dir, "logs.json"), []byte(logs+logs), 0o600); err != nil { // some come twice
		t.Fatal(err)
	}
	verifier, err := filepath.Abs(filepath.Join("..", "..", "audit", "testdata", "verify.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	recipe = strings.NewReplacer("…", id[1], "audit/testdata/verify.mjs", verifier).Replace(recipe)
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", "jq -r"+recipe)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(dir, "shipped.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Join(lines, "\n") + "\n"; string(got) != want {
		t.Errorf("shipped:\n%s\nexported:\n%s", got, want)
	}
}
