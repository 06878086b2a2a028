package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// What cron ends has not shipped what there is, and must not say so.
func TestAShipmentThatIsInterruptedFails(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	var log bytes.Buffer
	asked := make(chan struct{}, 1)
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		interrupt()
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(collector.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", collector.URL)
	state := filepath.Join(t.TempDir(), "state")
	haldir := func(ctx context.Context, args ...string) int {
		log.Reset()
		return run(ctx, append(args, "--state-dir", state), strings.NewReader(""), &log, &log)
	}
	if code := haldir(t.Context(), "stop"); code != 0 { // which is a record
		t.Fatalf("%d: %s", code, &log)
	}
	if code := haldir(ctx, "audit", "ship"); code == 0 || !strings.Contains(log.String(), "interrupted when 0 records were shipped") {
		t.Errorf("%d: %s", code, &log)
	}
	<-asked
}
