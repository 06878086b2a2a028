package ledger_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/rs/zerolog"
	bolt "go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// What several processes do to one file can only be tested with several
// processes. They are this test binary, started again with the name of a worker
// in its environment.
const (
	workerVar = "HALDIR_TEST_WORKER"
	configVar = "HALDIR_TEST_CONFIG" // JSON, for the worker
)

// workers are filled in by the files that define them.
var workers = map[string]func(config []byte) error{}

func TestMain(m *testing.M) {
	if name := os.Getenv(workerVar); name != "" {
		// exitFailed is not what a panic exits with (2), nor a data race (66).
		if err := workers[name]([]byte(os.Getenv(configVar))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exitFailed)
		}
		os.Exit(0)
	}
	// Each check of the state machine starts and kills processes.
	_ = flag.Set("rapid.checks", "25")
	_ = flag.Set("rapid.nofailfile", "true") // the seed that it prints is enough
	goleak.VerifyTestMain(m)
}

const exitFailed = 3

// No test is about how long something takes. These tell what waits from what
// does not.
const (
	hang       = 30 * time.Second        // whoever is not there by then will never be
	forTheLock = 1900 * time.Millisecond // whoever takes longer has waited for a lock
)

// process is a running worker.
type process struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	errors *lockedBuffer
	waited sync.Once
	err    error
}

// lockedBuffer keeps what a worker says on stderr.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// spawn starts a worker; it is killed at the end of the test at the latest.
func spawn(tb testing.TB, name string, config any, adjust ...func(*exec.Cmd)) *process {
	tb.Helper()
	p, err := start(name, config, adjust...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.kill)
	return p
}

func start(name string, config any, adjust ...func(*exec.Cmd)) (*process, error) {
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(exe), errors: &lockedBuffer{}}
	p.cmd.Env = append(os.Environ(), workerVar+"="+name, configVar+"="+string(raw))
	p.cmd.Stderr = p.errors
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	for _, f := range adjust {
		f(p.cmd)
	}
	return p, p.cmd.Start()
}

// line reads the next line that the worker prints; false at its end.
func (p *process) line() (string, bool) {
	s, err := p.out.ReadString('\n')
	return strings.TrimSuffix(s, "\n"), err == nil
}

// expect waits for a line.
func (p *process) expect(tb testing.TB, want string) {
	tb.Helper()
	if got, ok := p.line(); got != want {
		tb.Fatalf("the worker printed %q (%v), want %q; stderr: %s", got, ok, want, p.errors)
	}
}

func (p *process) say(line string) { _, _ = io.WriteString(p.in, line+"\n") }

// wait returns how the worker ended. What it printed must have been read.
func (p *process) wait() error {
	p.waited.Do(func() {
		_ = p.in.Close()
		p.err = p.cmd.Wait()
	})
	return p.err
}

// kill ends the worker as kill -9 does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.wait()
}

// open opens a ledger for a test; see newLedger for one with defaults.
func open(tb testing.TB, o ledger.Options) *ledger.Ledger {
	tb.Helper()
	o.Logger = zerolog.Nop()
	if o.Clock == nil {
		o.Clock = time.Now
	}
	l, err := ledger.Open(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { closeLedger(tb, l) })
	return l
}

func closeLedger(tb testing.TB, l *ledger.Ledger) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := l.Close(ctx); err != nil && !errors.Is(err, ledger.ErrClosed) {
		tb.Errorf("Close: %v", err)
	}
}

// quick opens a ledger that does not sync: for tests that kill no machine.
func quick(tb testing.TB, dir string) *ledger.Ledger {
	tb.Helper()
	return open(tb, ledger.Options{Dir: dir, NoSync: true})
}

func stateDir(tb testing.TB) string {
	tb.Helper()
	return filepath.Join(tb.TempDir(), "state")
}

// reserve reserves or fails the test.
func reserve(tb testing.TB, l *ledger.Ledger, a ledger.Attempt, d ledger.Decider) (ledger.Ticket, policy.Decision) {
	tb.Helper()
	ticket, decision, err := l.Reserve(context.Background(), a, d)
	if err != nil {
		tb.Fatalf("Reserve: %v", err)
	}
	return ticket, decision
}

func flush(tb testing.TB, l *ledger.Ledger) {
	tb.Helper()
	if err := l.Flush(context.Background()); err != nil {
		tb.Fatalf("Flush: %v", err)
	}
}

func entry(tb testing.TB, l *ledger.Ledger, seq uint64) audit.Entry {
	tb.Helper()
	e, ok, err := l.Entry(context.Background(), seq)
	if err != nil || !ok {
		tb.Fatalf("Entry(%d): %v, %v", seq, ok, err)
	}
	return e
}

// entries returns everything in the audit, newest first.
func entries(tb testing.TB, l *ledger.Ledger) []audit.Entry {
	tb.Helper()
	list, next, err := l.Find(context.Background(), audit.Filter{Governance: true, Limit: 1 << 30})
	if err != nil || next != 0 {
		tb.Fatalf("Find: next %d, %v", next, err)
	}
	return list
}

func verify(tb testing.TB, l *ledger.Ledger) uint64 {
	tb.Helper()
	v, err := l.Verify(context.Background(), nil)
	if err != nil {
		tb.Fatalf("Verify: %v", err)
	}
	return v.Count()
}

func spent(tb testing.TB, l *ledger.Ledger, u ledger.Use, b ledger.Budgeter) ledger.Spend {
	tb.Helper()
	sp, _, err := l.Spent(context.Background(), u, b)
	if err != nil {
		tb.Fatalf("Spent: %v", err)
	}
	return sp
}

// inspect reads the database itself, in its turn like any process, and has
// bbolt check it.
func inspect(tb testing.TB, dir string, f func(*bolt.Tx)) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	turn := flock.New(filepath.Join(dir, "haldir.lock"))
	if ok, err := turn.TryLockContext(ctx, time.Millisecond); !ok {
		tb.Fatalf("no turn within 10 s: %v", err)
	}
	defer func() { _ = turn.Unlock() }()
	db, err := bolt.Open(filepath.Join(dir, "haldir.db"), 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	err = db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			tb.Errorf("bbolt's check: %v", err)
		}
		if f != nil {
			f(tx)
		}
		return nil
	})
	if err != nil {
		tb.Error(err)
	}
}

// openHolds counts the calls that are not settled.
func openHolds(tb testing.TB, dir string) int {
	tb.Helper()
	n := 0
	inspect(tb, dir, func(tx *bolt.Tx) { n = len(space(tx, 'h')) })
	return n
}

// space reads the keys of the hot bucket that begin with a byte, without it.
func space(tx *bolt.Tx, prefix byte) map[string][]byte {
	keys := map[string][]byte{}
	c := tx.Bucket([]byte("hot")).Cursor()
	for k, v := c.Seek([]byte{prefix}); len(k) > 0 && k[0] == prefix; k, v = c.Next() {
		keys[string(k[1:])] = bytes.Clone(v)
	}
	return keys
}

func dollars(n int64) *policy.Micros {
	m := policy.Micros(n) * policy.USD
	return &m
}

// fakeClock is a clock that a test sets.
type fakeClock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *fakeClock {
	return &fakeClock{t: time.Date(2026, 11, 24, 12, 10, 0, 0, time.UTC)}
}

func (c *fakeClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *fakeClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}
