package telemetry

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	coltrace "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	resource "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	spans "go.opentelemetry.io/proto/slim/otlp/trace/v1"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/metrics"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
)

// parent is the span of the host that a request says it is a part of.
func parent(ctx context.Context, params json.RawMessage) context.Context {
	meta, ok := wire.At(params, "_meta")
	if !ok {
		return ctx
	}
	carrier := propagation.MapCarrier{}
	for _, name := range []string{"traceparent", "tracestate"} {
		if m, ok := wire.At(meta.Value, name); ok {
			if v, ok := wire.String(m.Value); ok {
				carrier[name] = v
			}
		}
	}
	return propagation.TraceContext{}.Extract(ctx, carrier)
}

// span records a request: one span for all of it and, if it went there, one below it for what
// the upstream took.
func (t *Telemetry) span(s *proxy.Seen) {
	name, target := s.Method, attribute.KeyValue{}
	tool := wire.Printable(s.Call.Tool, maxWords)
	switch s.Call.Kind {
	case policy.KindTool:
		target = attribute.String("gen_ai.tool.name", tool)
		name += " " + tool
	case policy.KindPrompt:
		target = attribute.String("gen_ai.prompt.name", tool)
		name += " " + tool
	case policy.KindResource: // its URI is what was asked with, which is nobody's business
	}
	if s.Call.Upstream == "" { // nobody's tool: the name is any text
		name, target = s.Method, attribute.KeyValue{}
	}
	about := []attribute.KeyValue{
		attribute.String("mcp.method.name", s.Method), attribute.String("network.transport", "pipe"),
		attribute.String("haldir.upstream", s.Call.Upstream), attribute.String("haldir.decision", decision(s)),
	}
	if target.Valid() {
		about = append(about, target)
	}
	if s.Call.Kind == policy.KindTool {
		about = append(about, attribute.String("gen_ai.operation.name", "execute_tool"))
	}
	if id := string(s.ID); id != "" && len(id) <= 64 {
		if plain, ok := wire.String(s.ID); ok {
			id = plain
		}
		about = append(about, attribute.String("jsonrpc.request.id", id))
	}
	if s.Session != "" {
		about = append(about, attribute.String("haldir.session", s.Session))
	}
	if s.Seq > 0 {
		about = append(about, attribute.Int64("haldir.record", int64(s.Seq))) //nolint:gosec // counts of what is
	}
	if s.Decision.Rule != "" {
		about = append(about, attribute.String("haldir.policy", s.Decision.Policy), attribute.String("haldir.rule", s.Decision.Rule))
	}
	if cost := cost(s); cost > 0 {
		about = append(about, attribute.Float64("haldir.cost_usd", float64(cost)/float64(policy.USD)))
	}
	ctx, whole := t.tracer.Start(parent(context.Background(), s.Params), name,
		trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(s.Began), trace.WithAttributes(about...))
	wrong := failure(s)
	if !s.Sent.IsZero() {
		_, theirs := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(s.Sent),
			trace.WithAttributes(attribute.String("mcp.method.name", s.Method), attribute.String("haldir.upstream", s.Call.Upstream)))
		if target.Valid() {
			theirs.SetAttributes(target)
		}
		fail(theirs, wrong, s.Code)
		theirs.End(trace.WithTimestamp(s.Returned))
	}
	fail(whole, wrong, s.Code)
	whole.End(trace.WithTimestamp(s.Ended))
}

func fail(span trace.Span, wrong string, code int64) {
	if wrong == "" {
		return
	}
	span.SetAttributes(attribute.String("error.type", wrong))
	if code != 0 {
		span.SetAttributes(attribute.String("rpc.response.status_code", strconv.FormatInt(code, 10)))
	}
	span.SetStatus(codes.Error, "") // the words of a server may say anything
}

// decision is what became of a request before it was forwarded.
func decision(s *proxy.Seen) string {
	switch {
	case s.Refused:
		return "denied"
	case !s.Sent.IsZero() || s.Decision.Verdict == policy.Allow:
		return "allowed"
	case s.Decision.Verdict == policy.Ask:
		return "pending"
	}
	return "denied"
}

// failure is what a request failed of, "" if it did not.
func failure(s *proxy.Seen) string {
	switch {
	case s.Refused:
		return "denied"
	case s.Code != 0:
		return strconv.FormatInt(s.Code, 10)
	case s.Outcome == nil:
		return ""
	}
	switch s.Outcome.Result {
	case ledger.Failed:
		return "tool_error"
	case ledger.NotSent:
		return "not_sent"
	case ledger.Cancelled, ledger.Withdrawn:
		return "cancelled"
	case ledger.Unknown:
		return "unknown_outcome"
	case ledger.Done:
	}
	return ""
}

// kind is what a request failed of, for a label: an upstream may answer with any number for a
// code, so that only those which have a name are told apart.
func kind(s *proxy.Seen) string {
	if !s.Refused && s.Code != 0 && !slices.Contains(named, s.Code) {
		return metrics.Other
	}
	return failure(s)
}

// named are the codes that JSON-RPC and MCP name.
var named = []int64{
	wire.CodeParse, wire.CodeInvalidRequest, wire.CodeMethodNotFound, wire.CodeInvalidParams, wire.CodeInternal,
	wire.CodeHeaderMismatch, wire.CodeMissingCapability, wire.CodeUnsupportedVersion,
	-32002, // there is no such resource
	-32042, // URLs have to be opened first
}

// cost is what a request has cost.
func cost(s *proxy.Seen) policy.Micros {
	switch o := s.Outcome; {
	case o == nil, o.Result == ledger.NotSent, o.Result == ledger.Withdrawn:
		return 0
	case o.Actual != nil && *o.Actual >= 0:
		return *o.Actual
	}
	return s.Decision.Cost
}

// exporter sends spans. It has its own words for what goes wrong, so that nothing of it
// reaches the SDK's handler of errors, which is everybody's.
type exporter struct {
	to    *Endpoint
	about []*common.KeyValue // what is said of this process
	log   *complaints
	ended <-chan struct{} // closed at the end of the process
}

// ExportSpans implements [sdk.SpanExporter].
func (x *exporter) ExportSpans(ctx context.Context, list []sdk.ReadOnlySpan) error {
	if len(list) == 0 {
		return nil
	}
	scope := &spans.ScopeSpans{Scope: &common.InstrumentationScope{Name: scopeName}}
	for _, s := range list {
		scope.Spans = append(scope.Spans, spanOf(s))
	}
	var answer coltrace.ExportTraceServiceResponse
	err := x.to.deliver(ctx, x.ended, &coltrace.ExportTraceServiceRequest{ResourceSpans: []*spans.ResourceSpans{{
		Resource: &resource.Resource{Attributes: x.about}, ScopeSpans: []*spans.ScopeSpans{scope},
	}}}, &answer)
	x.log.tell("traces", err, answer.GetPartialSuccess().GetRejectedSpans(), answer.GetPartialSuccess().GetErrorMessage())
	return nil
}

// Shutdown implements [sdk.SpanExporter].
func (*exporter) Shutdown(context.Context) error { return nil }

func spanOf(s sdk.ReadOnlySpan) *spans.Span {
	id, trace := s.SpanContext().SpanID(), s.SpanContext().TraceID()
	out := &spans.Span{
		TraceId: trace[:], SpanId: id[:], TraceState: valid(s.SpanContext().TraceState().String()), Name: valid(s.Name()),
		Kind: spans.Span_SpanKind(s.SpanKind()), StartTimeUnixNano: stamp(s.StartTime()), EndTimeUnixNano: stamp(s.EndTime()), //nolint:gosec // of few values
		Attributes: pairs(s.Attributes()), DroppedAttributesCount: uint32(s.DroppedAttributes()), Status: &spans.Status{}, //nolint:gosec // few
		Flags: uint32(s.SpanContext().TraceFlags()),
	}
	if p := s.Parent(); p.IsValid() {
		id := p.SpanID()
		out.ParentSpanId = id[:]
		out.Flags |= uint32(spans.SpanFlags_SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK)
		if p.IsRemote() {
			out.Flags |= uint32(spans.SpanFlags_SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)
		}
	}
	if s.Status().Code == codes.Error {
		out.Status.Code = spans.Status_STATUS_CODE_ERROR
	}
	return out
}

// pairs are attributes as OTLP has them. Those of a kind that haldir does not make, such as
// lists, become texts.
func pairs(list []attribute.KeyValue) (out []*common.KeyValue) {
	for _, a := range list {
		switch v := a.Value.AsInterface().(type) {
		case int64:
			out = append(out, integer(string(a.Key), v))
		case float64:
			out = append(out, real(string(a.Key), v))
		case bool:
			out = append(out, yesOrNo(string(a.Key), v))
		default:
			out = append(out, text(string(a.Key), a.Value.String()))
		}
	}
	return out
}

// meter counts requests of this process.
type meter struct {
	began        time.Time
	set          metrics.Set
	names        metrics.Names
	calls, spend *metrics.Family
	whole, ours  *metrics.Family
}

func newMeter() *meter {
	m := &meter{began: time.Now()}
	m.calls = m.set.Add(metrics.Counter, "haldir.calls", "{call}", "Governed requests, by what became of them.", "haldir.upstream", "gen_ai.tool.name", "haldir.decision", "error.type")
	m.spend = m.set.Add(metrics.Counter, "haldir.spend", "{USD}", "What calls have cost, in US dollars.", "haldir.upstream", "gen_ai.tool.name")
	m.whole = m.set.Add(metrics.Histogram, "mcp.server.operation.duration", "s", "From when a request was read to its answer.", "mcp.method.name", "haldir.upstream", "error.type")
	m.ours = m.set.Add(metrics.Histogram, "haldir.own.duration", "s", "The part of it that was haldir's own, with the ledger's disk and any wait for a person.", "mcp.method.name", "haldir.upstream")
	return m
}

func (m *meter) add(s *proxy.Seen) {
	tool := m.names.Label(s.Call.Upstream, s.Call.Recorded(), s.Decision.Rule != policy.PolicyUnknownTool)
	wrong := kind(s)
	if !s.GoesOn() { // a call of several rounds is one, and counts at its end
		m.calls.Count(1, s.Call.Upstream, tool, decision(s), wrong)
	}
	if c := cost(s); c > 0 {
		m.spend.Count(float64(c)/float64(policy.USD), s.Call.Upstream, tool)
	}
	whole := s.Ended.Sub(s.Began)
	m.whole.Observe(whole.Seconds(), s.Method, s.Call.Upstream, wrong)
	m.ours.Observe(max(0, whole-s.Returned.Sub(s.Sent)).Seconds(), s.Method, s.Call.Upstream)
}

// complaints says what goes wrong with sending, once and not each time. Its zero value, with a
// log, is ready.
type complaints struct {
	log  zerolog.Logger
	said map[string]bool // kinds of faults, until all is taken again
}

func (c *complaints) tell(what string, err error, rejected int64, why string) {
	var now, kind string
	switch {
	case err != nil:
		now, kind = err.Error(), kindOf(err)
	case rejected > 0 || why != "":
		now = "the collector took only a part: " + wire.Printable(why, maxWords)
		kind = "a part"
	default:
		c.said = nil
		return
	}
	if c.said[kind] {
		return
	}
	if c.said == nil {
		c.said = map[string]bool{}
	}
	c.said[kind] = true
	c.log.Warn().Int64("rejected", rejected).Str("error", now).Msg(what + " are not sent; calls go on")
}
