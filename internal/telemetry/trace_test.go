package telemetry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	colmetrics "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	data "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	spans "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/telemetry"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
)

// sink takes traces and metrics.
type sink struct {
	*httptest.Server
	mu      sync.Mutex
	spans   []*spans.Span
	metrics []map[string]*data.Metric // of each export
	about   map[string]string         // attributes of the last resource of traces
	traced  func()                    // is told of traces
	came    chan struct{}             // one for each export of metrics, as far as there is room
}

func newSink(t *testing.T) *sink {
	t.Helper()
	s := &sink{came: make(chan struct{}, 100)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			return // the test is over
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		switch r.URL.Path {
		case "/v1/traces":
			var req coltrace.ExportTraceServiceRequest
			if err := proto.Unmarshal(raw, &req); err != nil {
				t.Error(err)
				return
			}
			s.spans = append(s.spans, req.ResourceSpans[0].ScopeSpans[0].Spans...)
			s.about = texts(req.ResourceSpans[0].Resource.Attributes)
			if s.traced != nil {
				s.traced()
			}
		case "/v1/metrics":
			var req colmetrics.ExportMetricsServiceRequest
			if err := proto.Unmarshal(raw, &req); err != nil {
				t.Error(err)
				return
			}
			all := map[string]*data.Metric{}
			for _, m := range req.ResourceMetrics[0].ScopeMetrics[0].Metrics {
				all[m.Name] = m
			}
			s.metrics = append(s.metrics, all)
			select {
			case s.came <- struct{}{}:
			default:
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(s.Close)
	return s
}

// observe sends what is told of some requests, and returns when it was.
func (s *sink) observe(t *testing.T, list ...*proxy.Seen) {
	t.Helper()
	send(t, config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": s.URL}), zerolog.New(t.Output()), list...)
}

// send sends what is told of some requests, and returns when that is over.
func send(t *testing.T, c telemetry.Config, log zerolog.Logger, list ...*proxy.Seen) {
	t.Helper()
	x := telemetry.Start(context.Background(), telemetry.Options{Config: c, Log: log})
	for _, one := range list {
		x.Observe(one)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	x.Close(ctx)
}

// labels are the values of one label in a counter of the last export, with what each adds up to.
func (s *sink) labels(metric, label string) map[string]float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]float64{}
	for _, p := range s.metrics[len(s.metrics)-1][metric].GetSum().GetDataPoints() {
		of := ""
		for _, a := range p.Attributes {
			if a.Key == label {
				of = a.Value.GetStringValue()
			}
		}
		out[of] += p.GetAsDouble()
	}
	return out
}

// call is a call that has been forwarded and has ended.
func call(tool string) *proxy.Seen {
	at := time.Unix(1700000000, 0)
	return &proxy.Seen{
		Method: "tools/call", Call: policy.Call{Upstream: "up", Tool: tool, Kind: policy.KindTool}, Decision: policy.Decision{Verdict: policy.Allow},
		Began: at, Sent: at, Returned: at, Ended: at, Outcome: &ledger.Outcome{Result: ledger.Done},
	}
}

// One name that protobuf does not take would cost the batch all its spans.
func TestNoNameCostsABatch(t *testing.T) {
	s := newSink(t)
	s.observe(t, call("plain"), call(strings.Repeat("x", 499)+"日本"), call("bad \xff bytes"), call("red\x1b[31m\u202e"))
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.spans) != 8 {
		t.Fatalf("%d spans came", len(s.spans))
	}
	for _, x := range s.spans {
		if strings.ContainsAny(x.Name, "\x1b\u202e") {
			t.Errorf("a span is called %q", x.Name)
		}
	}
}

// An upstream can answer with any number for a code, and each would be a series.
func TestCodesThatNobodyNamesAreOneSeries(t *testing.T) {
	s := newSink(t)
	var list []*proxy.Seen
	for code := int64(-33000); code <= 0; code += 2 {
		x := call("tool")
		x.Code, x.Outcome = code, &ledger.Outcome{Result: ledger.Failed}
		list = append(list, x)
	}
	s.observe(t, list...)
	got := s.labels("haldir.calls", "error.type")
	if got["-32602"] != 1 || got["-32002"] != 1 || got["tool_error"] != 1 || got["other"] < 16000 || len(got) > 20 {
		t.Errorf("%d series: %v of them other", len(got), got["other"])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.metrics[len(s.metrics)-1]["mcp.server.operation.duration"].GetHistogram().GetDataPoints()); n > 20 {
		t.Errorf("%d histograms", n)
	}
}

// An upstream that a reload took out is not up any more, nor down: it is not there.
func TestGaugesTellOfThePresentOnly(t *testing.T) {
	s := newSink(t)
	var asked atomic.Int64
	x := telemetry.Start(context.Background(), telemetry.Options{
		Config: config(t, map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": s.URL + "/v1/metrics", "OTEL_METRIC_EXPORT_INTERVAL": "1"}),
		Log:    zerolog.New(t.Output()),
		State: func(context.Context) (telemetry.State, error) {
			now := telemetry.State{Pending: 2, Upstreams: map[string]bool{"stays": false}}
			if asked.Add(1) == 1 {
				now.Upstreams["goes"] = true
				now.Destinations = []ledger.Destination{{Destination: "forgotten", Unshipped: 7}}
			}
			return now, nil
		},
	})
	<-s.came
	<-s.came
	x.Close(context.Background())
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, all := range []map[string]*data.Metric{s.metrics[0], s.metrics[len(s.metrics)-1]} {
		got := map[string]float64{}
		for _, name := range []string{"haldir.approvals.pending", "haldir.upstream.up", "haldir.audit.unshipped"} {
			for _, p := range all[name].GetGauge().GetDataPoints() {
				of := name
				for _, a := range p.Attributes {
					of += " " + a.Value.GetStringValue()
				}
				got[of] = p.GetAsDouble()
			}
		}
		want := map[string]float64{"haldir.approvals.pending": 2, "haldir.upstream.up stays": 0}
		if i == 0 {
			want["haldir.upstream.up goes"], want["haldir.audit.unshipped forgotten"] = 1, 7
		}
		if !maps.Equal(got, want) {
			t.Errorf("export %d has %v, want %v", i, got, want)
		}
	}
}

// An upstream that asks for something ends a request, and not the call.
func TestACallOfSeveralRoundsIsOneCall(t *testing.T) {
	s := newSink(t)
	round := func() *proxy.Seen {
		x := call("asks")
		x.Outcome = nil
		return x
	}
	denied := call("denied")
	denied.Sent, denied.Returned, denied.Outcome, denied.Refused = time.Time{}, time.Time{}, nil, true
	s.observe(t, round(), round(), call("asks"), denied)
	if got := s.labels("haldir.calls", "gen_ai.tool.name"); got["asks"] != 1 || got["denied"] != 1 {
		t.Errorf("%v", got)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.spans) != 7 {
		t.Errorf("%d spans", len(s.spans))
	}
}

// Who answers well, but not as OTLP does, may have taken the traces: sent again they would be
// there twice.
func TestTracesAreNotSentAgainAfterAnAnswer(t *testing.T) {
	var n atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n.Add(1)
		_, _ = w.Write([]byte("<html>please sign in</html>"))
	}))
	t.Cleanup(s.Close)
	x := telemetry.Start(context.Background(), telemetry.Options{Config: config(t, map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": s.URL}), Log: zerolog.New(t.Output())})
	x.Observe(call("tool"))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second) // by when it would have come again
	defer cancel()
	x.Close(ctx)
	if n := n.Load(); n != 1 {
		t.Errorf("they were sent %d times", n)
	}
}

func TestBackendsThatSayNothingHaveTakenIt(t *testing.T) {
	for _, status := range []int{http.StatusOK, http.StatusAccepted, http.StatusNoContent} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		var log bytes.Buffer
		send(t, config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": s.URL}), zerolog.New(&log), call("tool"))
		s.Close()
		if log.Len() > 0 {
			t.Errorf("%d: the log says %s", status, &log)
		}
	}
}

// There is no time for that at the end.
func TestNothingIsTriedAgainAtTheEnd(t *testing.T) {
	var n atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(s.Close)
	send(t, config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": s.URL}), zerolog.Nop(), call("tool"))
	if n := n.Load(); n != 2 {
		t.Errorf("there were %d requests, want one of each signal", n)
	}
}

// What is tried again when the end comes is not waited for either.
func TestTryingAgainEndsAtTheEnd(t *testing.T) {
	refused := make(chan struct{}, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusServiceUnavailable)
		select {
		case refused <- struct{}{}:
		default:
		}
	}))
	t.Cleanup(s.Close)
	x := telemetry.Start(context.Background(), telemetry.Options{Log: zerolog.Nop(), Config: config(t, map[string]string{
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": s.URL, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1", "OTEL_BSP_EXPORT_TIMEOUT": "0",
	})})
	x.Observe(call("tool"))
	<-refused
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	x.Close(ctx)
	if err := ctx.Err(); err != nil {
		t.Errorf("it was waited for: %v", err)
	}
}

// Nobody answers where the metrics go to, and what there is for the end runs out: the traces
// have come by then.
func TestOneEndpointThatHangsCostsTheOtherNothing(t *testing.T) {
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	t.Cleanup(hangs.Close)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s := newSink(t)
	s.traced = cancel
	x := telemetry.Start(context.Background(), telemetry.Options{Log: zerolog.Nop(), Config: config(t, map[string]string{
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": s.URL + "/v1/traces", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": hangs.URL, "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "0",
		"OTEL_BSP_SCHEDULE_DELAY": "3600000",
	})})
	x.Observe(call("tool"))
	x.Close(ctx)
	if err := ctx.Err(); !errors.Is(err, context.Canceled) {
		t.Errorf("no traces came: %v", err)
	}
}

// What one variable has wrong costs no other one, and the SDK writes nothing past the log.
func TestAWrongVariableCostsNoOther(t *testing.T) {
	s := newSink(t)
	for name, value := range map[string]string{
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": s.URL + "/v1/traces", "OTEL_TRACES_SAMPLER": "bogus",
		"OTEL_SERVICE_NAME": "mine", "OTEL_RESOURCE_ATTRIBUTES": "team=the%20red,s3cret,service.name=other,bad=%zz,",
	} {
		t.Setenv(name, value)
	}
	c, err := telemetry.Read(os.Getenv)
	if err == nil || !strings.Contains(err.Error(), "number 2 ") || !strings.Contains(err.Error(), "number 4 ") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("the error is: %v", err)
	}
	var log bytes.Buffer
	send(t, c, zerolog.New(&log), call("tool"))
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "unsupported sampler: bogus") {
		t.Errorf("the log says: %s", text)
	}
	for _, about := range []map[string]string{s.about, texts(c.About("v1"))} {
		_, bad := about["bad"]
		if about["service.name"] != "mine" || about["team"] != "the red" || about["telemetry.sdk.name"] == "" || bad {
			t.Errorf("%v", about)
		}
	}
}

func texts(list []*common.KeyValue) map[string]string {
	all := map[string]string{}
	for _, a := range list {
		all[a.Key] = a.Value.GetStringValue()
	}
	return all
}
