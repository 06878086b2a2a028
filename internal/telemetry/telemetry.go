package telemetry

import (
	"context"
	"errors"
	"net/url"
	"sync"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	resources "go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	colmetrics "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	data "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	resource "go.opentelemetry.io/proto/slim/otlp/resource/v1"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/metrics"
	"github.com/haldir-mcp/haldir/proxy"
)

// State is what is measured when it is asked for, and not as it happens.
type State struct {
	Pending      int             // approvals
	Upstreams    map[string]bool // whether each is connected
	Destinations []ledger.Destination
}

// Options configure [Start].
type Options struct {
	Config  Config
	Version string
	Log     zerolog.Logger
	// State is called before each export of metrics.
	State func(context.Context) (State, error)
}

// Telemetry sends traces and metrics. Its methods are safe for concurrent use.
type Telemetry struct {
	o        Options
	about    []*common.KeyValue
	provider *sdk.TracerProvider // nil if no traces are sent
	tracer   trace.Tracer
	meter    *meter             // nil if no metrics are sent
	stop     context.CancelFunc // ends measuring, and trying again
	wg       sync.WaitGroup
}

// resource is what is said of this process; of two values the later one counts.
func (c *Config) resource(version string) *resources.Resource {
	return resources.NewSchemaless(append([]attribute.KeyValue{
		attribute.String("service.name", "haldir"), attribute.String("service.version", version),
		attribute.String("telemetry.sdk.name", "opentelemetry"), attribute.String("telemetry.sdk.language", "go"),
	}, c.about...)...)
}

// About is the same as the audit is shipped with.
func (c *Config) About(version string) []*common.KeyValue {
	return pairs(c.resource(version).Attributes())
}

// Start begins to send traces and metrics, if the config has endpoints for them. Close it.
func Start(ctx context.Context, o Options) *Telemetry {
	hear(o.Log)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	t := &Telemetry{o: o, about: o.Config.About(o.Version), stop: stop}
	if to := o.Config.Traces; to != nil {
		send := &exporter{to: to, about: t.about, log: &complaints{log: o.Log}, ended: running.Done()}
		t.provider = sdk.NewTracerProvider(sdk.WithResource(o.Config.resource(o.Version)), sdk.WithBatcher(send, o.Config.Batches.apply))
		t.tracer = t.provider.Tracer(scopeName, trace.WithInstrumentationVersion(o.Version))
	}
	if o.Config.Metrics != nil {
		t.meter = newMeter()
		t.wg.Go(func() { t.measure(running) })
	}
	return t
}

// hear puts into the log what the SDK has to say, which it else writes to stderr. The SDK has
// one handler for the whole program.
func hear(log zerolog.Logger) {
	otel.SetLogger(funcr.New(func(_, text string) { log.Warn().Str("words", text).Msg("OpenTelemetry") }, funcr.Options{Verbosity: 1})) // 1 is warnings
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		if _, escape := errors.AsType[url.EscapeError](err); escape || errors.Is(err, resources.ErrPartialResource) {
			return // it reads the resource too, and Read has told of that
		}
		log.Error().Err(err).Msg("OpenTelemetry")
	}))
}

// apply puts itself in the place of what the SDK has read of the environment.
func (b Batches) apply(o *sdk.BatchSpanProcessorOptions) {
	o.MaxQueueSize, o.MaxExportBatchSize, o.BatchTimeout, o.ExportTimeout = b.Queue, b.Batch, b.Delay, b.Timeout
}

// Observe takes a request into account. It does not block.
func (t *Telemetry) Observe(s *proxy.Seen) {
	if t.provider != nil {
		t.span(s)
	}
	if t.meter != nil {
		t.meter.add(s)
	}
}

// Close sends what is left, once, until ctx ends: traces and metrics at the same time, since
// one of them may go to where nobody answers.
func (t *Telemetry) Close(ctx context.Context) {
	t.stop()
	t.wg.Wait()
	if t.meter != nil {
		t.wg.Go(func() { t.export(ctx, &complaints{log: t.o.Log}) })
	}
	if t.provider != nil {
		if err := t.provider.Shutdown(ctx); err != nil {
			t.o.Log.Debug().Err(err).Msg("the last traces were not sent")
		}
	}
	t.wg.Wait()
}

func (t *Telemetry) measure(ctx context.Context) {
	said := &complaints{log: t.o.Log}
	for sleep(ctx, t.o.Config.Interval) {
		t.export(ctx, said)
	}
}

// export sends the metrics once; what fails is in the next ones.
func (t *Telemetry) export(ctx context.Context, said *complaints) {
	sets := []*metrics.Set{&t.meter.set}
	if t.o.State != nil {
		if s, err := t.o.State(ctx); err == nil {
			sets = append(sets, present(s))
		}
	}
	var answer colmetrics.ExportMetricsServiceResponse
	err := t.o.Config.Metrics.post(ctx, t.meter.request(t.about, time.Now(), sets...), &answer)
	if ctx.Err() == nil {
		said.tell("metrics", err, answer.GetPartialSuccess().GetRejectedDataPoints(), answer.GetPartialSuccess().GetErrorMessage())
	}
}

// present is what is so now: in a set of its own for each export, since what is not there any
// more, such as an upstream that a reload took out, has no number.
func present(s State) *metrics.Set {
	set := &metrics.Set{}
	set.Add(metrics.Gauge, "haldir.approvals.pending", "{approval}", "Calls in the ledger that wait for a person.").Put(float64(s.Pending))
	ups := set.Add(metrics.Gauge, "haldir.upstream.up", "1", "Whether this process is connected to an upstream.", "haldir.upstream")
	for name, up := range s.Upstreams {
		n := 0.0
		if up {
			n = 1
		}
		ups.Put(n, name)
	}
	unshipped := set.Add(metrics.Gauge, "haldir.audit.unshipped", "{record}", "Records of the audit that a destination does not have yet.", "haldir.destination")
	for _, d := range s.Destinations {
		unshipped.Put(float64(d.Unshipped), d.Destination)
	}
	return set
}

// request has all that was measured since the process began.
func (m *meter) request(about []*common.KeyValue, at time.Time, sets ...*metrics.Set) *colmetrics.ExportMetricsServiceRequest {
	from, now := stamp(m.began), stamp(at)
	scope := &data.ScopeMetrics{Scope: &common.InstrumentationScope{Name: scopeName}}
	const all = data.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE
	add := func(f *metrics.Family, list []metrics.Series) {
		if len(list) == 0 {
			return
		}
		out := &data.Metric{Name: f.Name, Description: f.Help, Unit: f.Unit}
		var points []*data.NumberDataPoint
		var buckets []*data.HistogramDataPoint
		for _, x := range list {
			var labels []*common.KeyValue
			for i, v := range x.Values {
				if v != "" {
					labels = append(labels, text(f.Labels[i], v))
				}
			}
			if f.Kind == metrics.Histogram {
				sum := x.Value
				buckets = append(buckets, &data.HistogramDataPoint{
					Attributes: labels, StartTimeUnixNano: from, TimeUnixNano: now, Count: x.Count, Sum: &sum, BucketCounts: x.Counts, ExplicitBounds: f.Bounds,
				})
				continue
			}
			points = append(points, &data.NumberDataPoint{Attributes: labels, StartTimeUnixNano: from, TimeUnixNano: now, Value: &data.NumberDataPoint_AsDouble{AsDouble: x.Value}})
		}
		switch f.Kind {
		case metrics.Counter:
			out.Data = &data.Metric_Sum{Sum: &data.Sum{DataPoints: points, AggregationTemporality: all, IsMonotonic: true}}
		case metrics.Gauge:
			out.Data = &data.Metric_Gauge{Gauge: &data.Gauge{DataPoints: points}}
		case metrics.Histogram:
			out.Data = &data.Metric_Histogram{Histogram: &data.Histogram{DataPoints: buckets, AggregationTemporality: all}}
		}
		scope.Metrics = append(scope.Metrics, out)
	}
	for _, set := range sets {
		set.Each(add)
	}
	return &colmetrics.ExportMetricsServiceRequest{ResourceMetrics: []*data.ResourceMetrics{{Resource: &resource.Resource{Attributes: about}, ScopeMetrics: []*data.ScopeMetrics{scope}}}}
}
