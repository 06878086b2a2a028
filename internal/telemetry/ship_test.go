package telemetry_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	collogs "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/telemetry"
)

// once ships all that there is.
func once(t *testing.T, l *ledger.Ledger, to *telemetry.Endpoint, log zerolog.Logger) uint64 {
	t.Helper()
	from, err := l.Ship(to.URL(), to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := from.Close(); err != nil {
			t.Error(err)
		}
	}()
	sent, err := (&telemetry.Shipper{To: to, Log: log}).Ship(context.Background(), from)
	if err != nil {
		t.Fatal(err)
	}
	return sent
}

func TestTheWholeChainIsShippedOnce(t *testing.T) {
	c, l := newCollector(t), open(t)
	fill(t, l, 1200)
	to := config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}).Logs
	if sent := once(t, l, to, zerolog.Nop()); sent != 1200 {
		t.Errorf("%d records were sent", sent)
	}
	if sent := once(t, l, to, zerolog.Nop()); sent != 0 {
		t.Errorf("%d records were sent again", sent)
	}
	fill(t, l, 1)
	once(t, l, to, zerolog.Nop())
	seen := c.took()
	if len(seen) != 1201 {
		t.Errorf("%d records came", len(seen))
	}
	follows(t, seen, 1201)
	c.chained(t, 1201)
	if c.about["haldir.ledger"] == "" {
		t.Error("nothing says whose chain it is")
	}
}

// Whatever a collector does wrong, every record arrives, in order.
func TestNothingIsLostByWhatACollectorDoesWrong(t *testing.T) {
	type fault = func(n int, w http.ResponseWriter, r *http.Request, req *collogs.ExportLogsServiceRequest) bool
	some := func(of int, f fault) fault {
		return func(n int, w http.ResponseWriter, r *http.Request, req *collogs.ExportLogsServiceRequest) bool {
			return n <= of && f(n, w, r, req)
		}
	}
	for name, f := range map[string]func(*collector) fault{
		"503": func(*collector) fault {
			return some(2, func(_ int, w http.ResponseWriter, _ *http.Request, _ *collogs.ExportLogsServiceRequest) bool {
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			})
		},
		"403": func(*collector) fault { // a token that has expired, and is renewed
			return some(2, func(_ int, w http.ResponseWriter, _ *http.Request, _ *collogs.ExportLogsServiceRequest) bool {
				w.WriteHeader(http.StatusForbidden)
				return true
			})
		},
		"hangs": func(*collector) fault {
			return some(1, func(_ int, _ http.ResponseWriter, r *http.Request, _ *collogs.ExportLogsServiceRequest) bool {
				<-r.Context().Done()
				return true
			})
		},
		"takes it and dies": func(c *collector) fault {
			return some(2, func(_ int, _ http.ResponseWriter, _ *http.Request, req *collogs.ExportLogsServiceRequest) bool {
				c.keep(req)
				panic(http.ErrAbortHandler)
			})
		},
		"is some other server": func(*collector) fault {
			return some(1, func(_ int, w http.ResponseWriter, _ *http.Request, _ *collogs.ExportLogsServiceRequest) bool {
				_, _ = w.Write([]byte("<html>please sign in</html>"))
				return true
			})
		},
		"leads elsewhere": func(*collector) fault {
			return some(1, func(_ int, w http.ResponseWriter, r *http.Request, _ *collogs.ExportLogsServiceRequest) bool {
				http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
				return true
			})
		},
		"takes little": func(*collector) fault {
			return func(_ int, w http.ResponseWriter, _ *http.Request, req *collogs.ExportLogsServiceRequest) bool {
				if len(req.ResourceLogs[0].ScopeLogs[0].LogRecords) > 10 {
					w.WriteHeader(http.StatusRequestEntityTooLarge)
					return true
				}
				return false
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, l := newCollector(t), open(t)
			c.fault = f(c)
			fill(t, l, 60)
			once(t, l, config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL, "OTEL_EXPORTER_OTLP_TIMEOUT": "500"}).Logs, zerolog.Nop())
			follows(t, c.took(), 60)
			c.chained(t, 60)
		})
	}
}

func TestRetryAfterIsObeyed(t *testing.T) {
	c, l := newCollector(t), open(t)
	var first time.Time
	var waited time.Duration
	c.fault = func(n int, w http.ResponseWriter, _ *http.Request, _ *collogs.ExportLogsServiceRequest) bool {
		if n == 1 {
			first = time.Now()
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		waited = time.Since(first)
		return false
	}
	fill(t, l, 1)
	once(t, l, config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL}).Logs, zerolog.Nop())
	if waited < 2*time.Second { // a lower bound, which no load can break
		t.Errorf("it came again after %v", waited)
	}
}

// A run that is to end does not sleep for an hour with the right to ship.
func TestARunThatIsToEndHasNoPatience(t *testing.T) {
	c, l := newCollector(t), open(t)
	c.fault = func(_ int, w http.ResponseWriter, _ *http.Request, _ *collogs.ExportLogsServiceRequest) bool {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	fill(t, l, 1)
	to := config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL}).Logs
	from, err := l.Ship(to.URL(), to.String())
	if err != nil {
		t.Fatal(err)
	}
	sent, err := (&telemetry.Shipper{To: to, Log: zerolog.Nop(), Tries: 5, Patience: 30 * time.Second}).Ship(context.Background(), from)
	if err == nil || sent != 0 || !strings.Contains(err.Error(), "left alone for 1h0m0s") || !strings.Contains(err.Error(), "503") {
		t.Errorf("%d records were sent, %v", sent, err)
	}
	if err := from.Close(); err != nil {
		t.Error(err)
	}
}

func TestWhatACollectorRejectsIsToldAndCounted(t *testing.T) {
	c, l := newCollector(t), open(t)
	c.fault = func(n int, w http.ResponseWriter, _ *http.Request, req *collogs.ExportLogsServiceRequest) bool {
		c.keep(req)
		raw, err := proto.Marshal(&collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{RejectedLogRecords: 3, ErrorMessage: "too old\x1b[31m"}})
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
		_, _ = w.Write(raw)
		return true
	}
	fill(t, l, 10)
	var log bytes.Buffer
	to := config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL}).Logs
	if sent := once(t, l, to, zerolog.New(&log)); sent != 7 {
		t.Errorf("%d were accepted", sent)
	}
	if text := log.String(); !strings.Contains(text, `"rejected":3`) || !strings.Contains(text, "too old") || strings.Contains(text, "u001b") {
		t.Errorf("the log says: %s", text)
	}
	list, err := l.Destinations(context.Background())
	if err != nil || list[0].Rejected != 3 || list[0].Unshipped != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if n := len(c.took()); n != 10 {
		t.Errorf("%d records came; what was rejected must not be sent again", n)
	}
}

// A shipper is killed at any instant, over and over, while records come.
func TestAShipperThatIsKilledLosesNothing(t *testing.T) {
	kills := 40
	if testing.Short() {
		kills = 8
	}
	c, l := newCollector(t), open(t)
	fill(t, l, 2000)
	newest := uint64(2000)
	for range kills {
		cmd := shipper(t, l.Dir(), c.URL)
		fill(t, l, 20)
		newest += 20
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond) //nolint:gosec // any instant will do
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
	}
	once(t, l, config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL}).Logs, zerolog.Nop())
	seen := c.took()
	t.Logf("%d records came %d times", newest, len(seen))
	follows(t, seen, newest)
	c.chained(t, newest)
}

func TestACollectorThatIsDownHoldsUpNobody(t *testing.T) {
	c, l := newCollector(t), open(t)
	reached := make(chan struct{}, 100)
	c.fault = func(_ int, _ http.ResponseWriter, r *http.Request, _ *collogs.ExportLogsServiceRequest) bool {
		reached <- struct{}{}
		<-r.Context().Done()
		return true
	}
	fill(t, l, 10)
	from, err := l.Ship("x", "x")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() {
		_, err := (&telemetry.Shipper{To: config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL}).Logs, Log: zerolog.Nop()}).Ship(ctx, from)
		over <- err
	}()
	<-reached
	fill(t, l, 100) // with a request on its way that nobody answers
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
	if err := from.Close(); err != nil {
		t.Error(err)
	}
}

// What is not a collector may answer well, and has nothing then. Backends that take OTLP
// themselves leave out what a collector says: Loki answers 204, VictoriaLogs 200 and nothing.
func TestOnlyWhoHasTakenItMovesTheCursor(t *testing.T) {
	const page, otlp = "<html>please sign in</html>", "application/x-protobuf"
	for name, x := range map[string]struct {
		status           int
		kind, body, says string // says is what the error tells of it; "" if it was taken
	}{
		"nothing":                                {http.StatusOK, otlp, "", ""},
		"nothing, untyped":                       {http.StatusOK, "", "", ""},
		"nothing, of plain text":                 {http.StatusOK, "text/plain; charset=utf-8", "", "200 OK, but with an answer of text/plain"}, // as proxies give by themselves
		"no content":                             {http.StatusNoContent, "", "", ""},
		"no content of some type":                {http.StatusNoContent, "text/html", "", ""},
		"accepted":                               {http.StatusAccepted, "", "", ""},
		"accepted with an empty part of success": {http.StatusAccepted, otlp, "\n\x00", ""},
		"a page":                                 {http.StatusOK, "text/html", page, "200 OK, but with an answer of text/html"},
		"a page, untyped":                        {http.StatusOK, "", page, "no content type"},
		"a page that says 202":                   {http.StatusAccepted, "text/html", page, "202 Accepted, but with an answer of text/html"},
		"OTLP in JSON":                           {http.StatusOK, "application/json", "{}", "application/json"},
		"a page of a wrong type":                 {http.StatusOK, otlp, page, "not the protobuf"},
		"a proxy's 203":                          {http.StatusNonAuthoritativeInfo, otlp, "", "203"},
		"created":                                {http.StatusCreated, "", "", "201"},
	} {
		t.Run(name, func(t *testing.T) {
			c, l := newCollector(t), open(t)
			c.fault = func(_ int, w http.ResponseWriter, _ *http.Request, _ *collogs.ExportLogsServiceRequest) bool {
				w.Header()["Content-Type"] = nil // net/http guesses none
				if x.kind != "" {
					w.Header().Set("Content-Type", x.kind)
				}
				w.WriteHeader(x.status)
				_, _ = w.Write([]byte(x.body))
				return true
			}
			fill(t, l, 5)
			to := config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL}).Logs
			from, err := l.Ship(to.URL(), to.String())
			if err != nil {
				t.Fatal(err)
			}
			want := uint64(0)
			if x.says == "" {
				want = 5
			}
			sent, err := (&telemetry.Shipper{To: to, Log: zerolog.Nop(), Tries: 1}).Ship(context.Background(), from)
			if sent != want || (err == nil) != (x.says == "") || err != nil && !strings.Contains(err.Error(), x.says) {
				t.Errorf("%d records were sent, %v", sent, err)
			}
			if err := from.Close(); err != nil {
				t.Error(err)
			}
			list, err := l.Destinations(context.Background())
			if err != nil || len(list) != 1 || list[0].Shipped != want {
				t.Errorf("%+v, %v", list, err)
			}
		})
	}
}

// A run that is to end gives up after some tries; halving a batch is none.
func TestHalvingABatchIsNoTry(t *testing.T) {
	c, l := newCollector(t), open(t)
	c.fault = func(_ int, w http.ResponseWriter, _ *http.Request, req *collogs.ExportLogsServiceRequest) bool {
		if len(req.ResourceLogs[0].ScopeLogs[0].LogRecords) > 1 {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return true
		}
		return false
	}
	fill(t, l, 300)
	to := config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL}).Logs
	from, err := l.Ship(to.URL(), to.String())
	if err != nil {
		t.Fatal(err)
	}
	sent, err := (&telemetry.Shipper{To: to, Log: zerolog.Nop(), Tries: 2}).Ship(context.Background(), from)
	if err != nil || sent != 300 {
		t.Errorf("%d were sent, %v", sent, err)
	}
	if err := from.Close(); err != nil {
		t.Error(err)
	}
	follows(t, c.took(), 300)
}

// The text of a connection that was reset has a port in it that is another one each time.
func TestOneFaultIsToldOnce(t *testing.T) {
	c, l := newCollector(t), open(t)
	c.fault = func(n int, w http.ResponseWriter, r *http.Request, _ *collogs.ExportLogsServiceRequest) bool {
		switch n {
		case 1, 3: // and the same one again after another
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return true
			}
			if err := conn.(*net.TCPConn).SetLinger(0); err != nil { // so that it is reset
				t.Error(err)
			}
			_ = conn.Close() // that is the fault
			return true
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	}
	fill(t, l, 1)
	var log bytes.Buffer
	once(t, l, config(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": c.URL}).Logs, zerolog.New(&log))
	if text := log.String(); strings.Count(text, "is not shipped") != 2 || strings.Count(text, "is shipped again") != 1 {
		t.Errorf("the log says: %s", text)
	}
}
