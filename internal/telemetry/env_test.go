package telemetry_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/internal/telemetry"
)

// The SDK makes any queue that it is told to, and panics if it cannot.
func TestNoSizeOfABatchStopsHaldir(t *testing.T) {
	usual := telemetry.Batches{Queue: 2048, Batch: 512, Delay: 5 * time.Second, Timeout: 30 * time.Second}
	for _, x := range []struct {
		name, value string
		is          func(*telemetry.Batches)
		wrong       bool
	}{
		{"MAX_QUEUE_SIZE", "-1", nil, true},
		{"MAX_QUEUE_SIZE", "0", nil, true},
		{"MAX_QUEUE_SIZE", "99999999999999", nil, true},
		{"MAX_QUEUE_SIZE", "99999999999999999999", nil, true},
		{"MAX_QUEUE_SIZE", "100", func(b *telemetry.Batches) { b.Queue, b.Batch = 100, 100 }, false},
		{"MAX_EXPORT_BATCH_SIZE", "-1", nil, true},
		{"MAX_EXPORT_BATCH_SIZE", "0", nil, true},
		{"MAX_EXPORT_BATCH_SIZE", "99999999999999", nil, true},
		{"MAX_EXPORT_BATCH_SIZE", "2049", nil, true}, // more than the queue
		{"MAX_EXPORT_BATCH_SIZE", "2048", func(b *telemetry.Batches) { b.Batch = 2048 }, false},
		{"SCHEDULE_DELAY", "-1", nil, true},
		{"SCHEDULE_DELAY", "abc", nil, true},
		{"SCHEDULE_DELAY", "0", func(b *telemetry.Batches) { b.Delay = 10 * time.Millisecond }, false},
		{"EXPORT_TIMEOUT", "-1", nil, true},
		{"EXPORT_TIMEOUT", "0", func(b *telemetry.Batches) { b.Timeout = 10 * time.Minute }, false},
	} {
		t.Run(x.name+"="+x.value, func(t *testing.T) {
			name := "OTEL_BSP_" + x.name
			s := newSink(t)
			t.Setenv(name, x.value) // the SDK reads it by itself
			t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", s.URL+"/v1/traces")
			c, err := telemetry.Read(os.Getenv)
			if x.wrong != (err != nil) || x.wrong && !strings.Contains(err.Error(), name) {
				t.Errorf("the error is: %v", err)
			}
			want := usual
			if x.is != nil {
				x.is(&want)
			}
			if c.Batches != want {
				t.Errorf("%+v", c.Batches)
			}
			send(t, c, zerolog.New(t.Output()), call("tool"))
			if len(s.spans) != 2 {
				t.Errorf("%d spans came", len(s.spans))
			}
		})
	}
}

func TestATimeoutOfNothingIsLong(t *testing.T) {
	for name, value := range map[string]string{"OTEL_EXPORTER_OTLP_TIMEOUT": "-1", "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "10s"} {
		env := map[string]string{"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://localhost:4318/v1/logs", name: value}
		if c, err := telemetry.Read(func(name string) string { return env[name] }); err == nil || c.Logs != nil || !strings.Contains(err.Error(), name+" is ") {
			t.Errorf("%s=%s: %v", name, value, err)
		}
		env[name] = "0"
		if c := config(t, env); c.Logs == nil {
			t.Errorf("%s=0 turns them off", name)
		}
	}
}

// A header that HTTP cannot carry would be tried for ever, as if nobody answered.
func TestHeadersThatHTTPCannotCarryAreRefused(t *testing.T) {
	for _, headers := range []string{"x-a=s3cret%0d%0aX: y", "s3cret a=v", "=s3cret", "x-a=s3cret%00", "s3cret"} {
		env := map[string]string{"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://localhost:4318/v1/logs", "OTEL_EXPORTER_OTLP_HEADERS": headers}
		c, err := telemetry.Read(func(name string) string { return env[name] })
		if err == nil || c.Logs != nil || !strings.Contains(err.Error(), "OTEL_EXPORTER_OTLP_HEADERS") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", headers, err)
		}
	}
	config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20abc, x-a = v%2Cw,"})
}

func TestWhatIsNotFollowedIsTold(t *testing.T) {
	for name, value := range map[string]string{
		"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta", "OTEL_METRIC_EXPORT_TIMEOUT": "1000", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many",
	} {
		env := map[string]string{name: value}
		read := func() (telemetry.Config, error) {
			return telemetry.Read(func(name string) string { return env[name] })
		}
		if _, err := read(); err != nil {
			t.Errorf("%s, and nothing is sent: %v", name, err)
		}
		env["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://localhost:4318"
		if c, err := read(); err == nil || !strings.Contains(err.Error(), name) || c.Metrics == nil || c.Traces == nil || c.Logs == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "Cumulative"})
}

// Many vendors have the token in the path.
func TestWhatMayBeSecretInAnEndpointIsNotShown(t *testing.T) {
	shown := func(url string) string {
		return config(t, map[string]string{"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": url}).Logs.String()
	}
	for _, url := range []string{
		"https://c.example.com:4318/v1/logs", "https://c.example.com:4318/v1/traces", "http://c.example.com/",
	} {
		if got := shown(url); got != url {
			t.Errorf("%s is shown as %s", url, got)
		}
	}
	names := map[string]string{}
	for _, url := range []string{
		"https://c.example.com/s3cret/v1/logs", "https://c.example.com/v1/logs/s3cret", "https://c.example.com/v1/logs?key=s3cret",
		"https://s3cret@c.example.com/v1/logs", "https://me:s3cret@c.example.com/v1/logs", "https://c.example.com/v1/logs#s3cret",
		"https://c.example.com/v1%2Flogs?s3cret", "https://c.example.com/?s3cret",
	} {
		got := shown(url)
		if strings.Contains(got, "s3cret") || !strings.HasPrefix(got, "https://c.example.com/") {
			t.Errorf("%s is shown as %s", url, got)
		}
		if other, ok := names[got]; ok {
			t.Errorf("%s and %s are both shown as %s", url, other, got)
		}
		names[got] = url
	}
	usual := config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c.example.com:4318"})
	if got := usual.Logs.String() + usual.Traces.String() + usual.Metrics.String(); strings.Contains(got, "#") {
		t.Errorf("the usual paths are shown as %s", got)
	}
	base := config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c.example.com/s3cret"})
	if got := base.Logs.String() + base.Traces.String() + base.Metrics.String(); strings.Contains(got, "s3cret") {
		t.Errorf("a base is shown as %s", got)
	}
}
