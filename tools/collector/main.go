// The collector of tests: OpenTelemetry's own OTLP receiver, which prints what it has taken as
// JSON, one request a line. It is in a module of its own, so that what the collector needs is
// not in haldir's.
//
//	collector 127.0.0.1:4318
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/receiver/receivertest"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type output struct{ mu sync.Mutex }

func (o *output) line(raw []byte, err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		_, err = fmt.Printf("%s\n", raw)
	}
	return err
}

func run(address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	f := otlpreceiver.NewFactory()
	cfg := f.CreateDefaultConfig()
	err := confmap.NewFromStringMap(map[string]any{"protocols": map[string]any{"http": map[string]any{"endpoint": address}}}).Unmarshal(cfg)
	if err != nil {
		return err
	}
	var out output
	settings := receivertest.NewNopSettings(f.Type())
	logs, err := consumer.NewLogs(func(_ context.Context, d plog.Logs) error { return out.line((&plog.JSONMarshaler{}).MarshalLogs(d)) })
	if err != nil {
		return err
	}
	traces, err := consumer.NewTraces(func(_ context.Context, d ptrace.Traces) error {
		return out.line((&ptrace.JSONMarshaler{}).MarshalTraces(d))
	})
	if err != nil {
		return err
	}
	metrics, err := consumer.NewMetrics(func(_ context.Context, d pmetric.Metrics) error {
		return out.line((&pmetric.JSONMarshaler{}).MarshalMetrics(d))
	})
	if err != nil {
		return err
	}
	l, err := f.CreateLogs(ctx, settings, cfg, logs)
	if err != nil {
		return err
	}
	t, err := f.CreateTraces(ctx, settings, cfg, traces)
	if err != nil {
		return err
	}
	m, err := f.CreateMetrics(ctx, settings, cfg, metrics)
	if err != nil {
		return err
	}
	for _, c := range []component.Component{l, t, m} {
		if err := c.Start(ctx, componenttest.NewNopHost()); err != nil {
			return err
		}
	}
	if err := out.line([]byte(`{"ready":true}`), nil); err != nil {
		return err
	}
	<-ctx.Done()
	for _, c := range []component.Component{l, t, m} {
		if err := c.Shutdown(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
	return nil
}
