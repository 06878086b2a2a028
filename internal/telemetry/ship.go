package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
	collogs "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	logs "go.opentelemetry.io/proto/slim/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/slim/otlp/resource/v1"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
)

// Source is where records come from, and where it is kept how far they were shipped:
// [*ledger.Shipping].
type Source interface {
	Next(ctx context.Context, n, size int) (list []ledger.Shipped, id string, err error)
	Accepted(ctx context.Context, id string, seq, rejected uint64) error
}

// The largest batch. Bodies are JSON and about twice as long as the canonical bytes.
const (
	batchRecords = 500
	batchBytes   = 512 << 10
)

// Shipper sends the audit to a collector.
type Shipper struct {
	To       *Endpoint
	Resource []*common.KeyValue // what it says of this process
	Log      zerolog.Logger
	// News waits for records, and reports whether there may be any; false is the end. nil
	// ends when there are none.
	News func(context.Context) bool
	// Tries is how often in a row it may fail before that is the end; 0 is without end.
	Tries int
	// Patience is how long it may be asked to be left alone for, by a Retry-After, before that
	// is the end; 0 is without end.
	Patience time.Duration
}

// Ship sends every record that the destination does not have, in the order of the chain. The
// cursor moves when a batch was accepted and never before, so that each record arrives at
// least once: what was sent and not confirmed is sent again. What is refused is sent again
// too, with pauses, however long it takes: no record is left out. It returns when there is
// nothing left to send, or ctx ends, with how many records were accepted.
func (s *Shipper) Ship(ctx context.Context, from Source) (sent uint64, err error) {
	size, tries := batchRecords, 0
	said := map[string]bool{} // kinds of faults, until it is shipped again
	p := newPause()
	for {
		list, id, err := from.Next(ctx, size, batchBytes)
		if err == nil && len(list) == 0 {
			if s.News == nil || !s.News(ctx) {
				return sent, nil
			}
			continue
		}
		var answer collogs.ExportLogsServiceResponse
		if err == nil {
			err = s.To.post(ctx, s.request(id, list), &answer)
		}
		if err == nil {
			rejected := min(uint64(max(answer.GetPartialSuccess().GetRejectedLogRecords(), 0)), uint64(len(list)))
			last := list[len(list)-1].Seq
			if why := answer.GetPartialSuccess().GetErrorMessage(); rejected > 0 || why != "" {
				s.Log.Error().Uint64("rejected", rejected).Uint64("from", list[0].Seq).Uint64("to", last).Str("destination", s.To.String()).
					Str("reason", wire.Printable(why, maxWords)).Msg("the collector did not take some of the audit's records; they are in the ledger")
			}
			if err = from.Accepted(ctx, id, last, rejected); err == nil {
				sent += uint64(len(list)) - rejected
				size, tries, p = min(2*size, batchRecords), 0, newPause()
				if len(said) > 0 {
					s.Log.Info().Str("destination", s.To.String()).Msg("the audit is shipped again")
				}
				clear(said)
				continue
			}
		}
		if ctx.Err() != nil {
			return sent, nil //nolint:nilerr // to be told to end is no failure
		}
		r, refused := errors.AsType[*refusal](err)
		if refused && r.status == http.StatusRequestEntityTooLarge && len(list) > 1 {
			size = len(list) / 2 // which comes to an end, and is no try
			continue
		}
		if tries++; !refused && !ledger.Retryable(err) || tries == s.Tries {
			return sent, err
		}
		after := time.Duration(0)
		if refused {
			after = r.after
		}
		if s.Patience > 0 && after > s.Patience {
			return sent, fmt.Errorf("%w; it asks to be left alone for %v, and this run waits for %v at most: try again then", err, after, s.Patience)
		}
		if kind := kindOf(err); !said[kind] { // once, not with every try
			s.Log.Warn().Err(err).Msg("the audit is not shipped; it is tried again until it is")
			said[kind] = true
		}
		if !p.wait(ctx, after) {
			return sent, nil
		}
	}
}

func (s *Shipper) request(id string, list []ledger.Shipped) *collogs.ExportLogsServiceRequest {
	now := stamp(time.Now())
	scope := &logs.ScopeLogs{Scope: &common.InstrumentationScope{Name: scopeName}}
	for _, x := range list {
		scope.LogRecords = append(scope.LogRecords, logRecord(x, now))
	}
	about := append(append([]*common.KeyValue{}, s.Resource...), text("haldir.ledger", id))
	return &collogs.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{Resource: &resource.Resource{Attributes: about}, ScopeLogs: []*logs.ScopeLogs{scope}}}}
}

// logRecord is a record of the audit as a log: the body is what an export has of it, from
// which the canonical bytes can be made; the attributes repeat some of it for queries.
func logRecord(x ledger.Shipped, now uint64) *logs.LogRecord {
	l := &logs.LogRecord{ObservedTimeUnixNano: now, SeverityNumber: logs.SeverityNumber_SEVERITY_NUMBER_INFO, SeverityText: "INFO"}
	e, err := audit.Export(x.Raw)
	if err != nil { // damage travels too, or the gap would be found there as one of shipping
		l.TimeUnixNano, l.EventName, l.SeverityNumber, l.SeverityText = now, "haldir.audit.unreadable", logs.SeverityNumber_SEVERITY_NUMBER_ERROR, "ERROR"
		l.Body = &common.AnyValue{Value: &common.AnyValue_BytesValue{BytesValue: x.Raw}}
		l.Attributes = []*common.KeyValue{number("haldir.record", x.Seq)}
		return l
	}
	if at, err := time.Parse(time.RFC3339Nano, e.Timestamp); err == nil {
		l.TimeUnixNano = stamp(at)
	}
	if e.Flagged {
		l.SeverityNumber, l.SeverityText = logs.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
	}
	l.EventName = valid("haldir.audit." + e.Kind)
	body, err := json.Marshal(e)
	if err != nil {
		body = nil // errors come of values that Export does not make
	}
	l.Body = words(string(body))
	l.Attributes = []*common.KeyValue{
		number("haldir.record", e.Seq), text("haldir.hash", e.Hash.String()), text("haldir.prev_hash", e.PrevHash.String()),
		text("haldir.kind", e.Kind), text("haldir.status", string(e.Status)), yesOrNo("haldir.flagged", e.Flagged),
	}
	for _, a := range []struct{ key, value string }{
		{"haldir.call", e.CallID},
		{"haldir.session", e.SessionID},
		{"haldir.agent", e.AgentID},
		{"haldir.client", e.Client},
		{"haldir.upstream", e.Upstream},
		{"gen_ai.tool.name", e.Tool},
		{"haldir.policy", e.Policy},
		{"haldir.rule", e.Rule},
		{"haldir.reason", e.FlagReason},
		{"haldir.approval", e.Approval},
	} {
		if a.value != "" {
			l.Attributes = append(l.Attributes, text(a.key, a.value))
		}
	}
	if e.Ref > 0 {
		l.Attributes = append(l.Attributes, number("haldir.ref", e.Ref))
	}
	if cost, err := strconv.ParseFloat(string(e.CostUSD), 64); err == nil && cost > 0 {
		l.Attributes = append(l.Attributes, real("haldir.cost_usd", cost))
	}
	if e.Kind == audit.KindOutcome.String() {
		l.Attributes = append(l.Attributes, number("haldir.duration_ms", e.DurationMS))
	}
	return l
}

// maxWords bounds a text from outside, in bytes.
const maxWords = 500

// scopeName is what OpenTelemetry calls the instrumentation.
const scopeName = "github.com/haldir-mcp/haldir"

// valid is a text as protobuf takes it: one that it does not would cost the whole request.
func valid(s string) string { return strings.ToValidUTF8(s, "\ufffd") }

func words(s string) *common.AnyValue {
	return &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: valid(s)}}
}

func pair(key string, value *common.AnyValue) *common.KeyValue {
	return &common.KeyValue{Key: valid(key), Value: value}
}

func text(key, value string) *common.KeyValue { return pair(key, words(value)) }

func integer(key string, n int64) *common.KeyValue {
	return pair(key, &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: n}})
}

func number(key string, n uint64) *common.KeyValue {
	return integer(key, int64(n)) //nolint:gosec // counts of what is
}

func yesOrNo(key string, yes bool) *common.KeyValue {
	return pair(key, &common.AnyValue{Value: &common.AnyValue_BoolValue{BoolValue: yes}})
}

func real(key string, x float64) *common.KeyValue {
	return pair(key, &common.AnyValue{Value: &common.AnyValue_DoubleValue{DoubleValue: x}})
}

func stamp(at time.Time) uint64 { return uint64(max(0, at.UnixNano())) }
