package telemetry_test

import (
	"strings"
	"testing"
)

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
