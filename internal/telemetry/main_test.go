package telemetry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	collogs "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/telemetry"
)

// TestMain makes this test binary a shipper, too, for tests that kill one.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SHIPPER_DIR"); dir != "" {
		if err := shipFrom(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// shipFrom ships what there is in a ledger and what comes, until it is killed.
func shipFrom(dir string) error {
	l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		return err
	}
	c, err := telemetry.Read(os.Getenv)
	if err != nil {
		return err
	}
	from, err := l.Ship(c.Logs.URL(), c.Logs.String())
	if err != nil {
		return err
	}
	_, err = (&telemetry.Shipper{To: c.Logs, Log: zerolog.Nop(), News: func(context.Context) bool { time.Sleep(time.Millisecond); return true }}).Ship(context.Background(), from)
	return err
}

// shipper is another process that ships.
func shipper(t *testing.T, dir, url string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "SHIPPER_DIR="+dir, "OTEL_EXPORTER_OTLP_ENDPOINT="+url)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// collector takes logs and keeps what it was sent. fault may answer a request in its place.
type collector struct {
	*httptest.Server
	mu    sync.Mutex
	seen  []uint64          // the numbers of records, in the order they came
	body  map[uint64]string // the last body of each
	about map[string]string // attributes of the last resource
	fault func(n int, w http.ResponseWriter, r *http.Request, req *collogs.ExportLogsServiceRequest) bool
	n     int
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{body: map[uint64]string{}, about: map[string]string{}}
	c.Server = httptest.NewServer(http.HandlerFunc(c.take))
	t.Cleanup(c.Close)
	return c
}

func (c *collector) take(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	var req collogs.ExportLogsServiceRequest
	if err != nil || proto.Unmarshal(raw, &req) != nil || r.Header.Get("Content-Type") != "application/x-protobuf" || r.URL.Path != "/v1/logs" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	c.n++
	n, fault := c.n, c.fault
	c.mu.Unlock()
	if fault != nil && fault(n, w, r, &req) {
		return
	}
	c.keep(&req)
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func (c *collector) keep(req *collogs.ExportLogsServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rl := range req.ResourceLogs {
		for _, a := range rl.Resource.Attributes {
			c.about[a.Key] = a.Value.GetStringValue()
		}
		for _, l := range rl.ScopeLogs[0].LogRecords {
			seq := uint64(l.Attributes[0].Value.GetIntValue())
			c.seen = append(c.seen, seq)
			c.body[seq] = l.Body.GetStringValue()
		}
	}
}

func (c *collector) took() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]uint64(nil), c.seen...)
}

// config is that of an environment.
func config(t *testing.T, env map[string]string) telemetry.Config {
	t.Helper()
	c, err := telemetry.Read(func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func open(t *testing.T) *ledger.Ledger {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop(), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l
}

// fill appends n records.
func fill(t *testing.T, l *ledger.Ledger, n int) {
	t.Helper()
	for i := range n {
		if err := l.RecordConfig(context.Background(), audit.StatusChanged, audit.Hash{1}, fmt.Sprintf("change <%d> & \"more\"", i)); err != nil {
			t.Fatal(err)
		}
	}
}

// follows checks that the records came in order: each is the first of all, the next one, or
// one that came before, when what was not confirmed was sent again.
func follows(t *testing.T, seen []uint64, newest uint64) {
	t.Helper()
	most := uint64(0)
	for i, seq := range seen {
		if seq > most+1 {
			t.Fatalf("record %d came after %d (at %d)", seq, most, i)
		}
		most = max(most, seq)
	}
	if most != newest {
		t.Fatalf("record %d came last, of %d", most, newest)
	}
}

// chained checks that the bodies are the records: their hashes are linked.
func (c *collector) chained(t *testing.T, newest uint64) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var before audit.Exported
	for seq := uint64(1); seq <= newest; seq++ {
		var e audit.Exported
		if err := json.Unmarshal([]byte(c.body[seq]), &e); err != nil || e.Seq != seq || e.PrevHash != before.Hash {
			t.Fatalf("record %d: %v: %s", seq, err, c.body[seq])
		}
		before = e
	}
}
