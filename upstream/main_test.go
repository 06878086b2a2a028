package upstream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream"
)

func TestMain(m *testing.M) {
	mcptest.Main() // does not return in a child
	if script, ok := os.LookupEnv(parentVar); ok {
		beParent(script)
		return
	}
	goleak.VerifyTestMain(m)
}

// parentVar makes the test binary a parent: it holds a server, as haldir does,
// with the [mcptest.Script] in the variable, until it is killed.
const parentVar = "HALDIR_TEST_PARENT"

func beParent(text string) {
	var script mcptest.Script
	exe, err := os.Executable()
	if err == nil {
		err = json.Unmarshal([]byte(text), &script)
	}
	if err != nil {
		panic(err)
	}
	u := upstream.New(upstream.Options{
		Config: script.Config(exe, "up"), Resolver: config.NewResolver("", nil, nil), Cache: &memory{}, Log: zerolog.New(os.Stderr), Changed: func() {},
		Guard: upstream.NewGuard(true),
	})
	u.Start(upstream.Host{})
	u.Connected(context.Background())
	_, _ = os.Stdout.WriteString("ready\n")
	select {}
}

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// moment is how long a test waits for what must not happen.
const moment = 150 * time.Millisecond

// memory is a cache in memory.
type memory struct {
	mu    sync.Mutex
	kept  map[string][]byte
	saves int
	err   error
}

func (m *memory) LoadCatalogue(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kept[key], m.err
}

func (m *memory) SaveCatalogue(_ context.Context, key string, raw []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saves++
	if m.err != nil {
		return m.err
	}
	if m.kept == nil {
		m.kept = map[string][]byte{}
	}
	m.kept[key] = bytes.Clone(raw)
	return nil
}

// rig is an upstream under test and what it was given.
type rig struct {
	*upstream.Upstream
	t     *testing.T
	log   *mcptest.Buffer
	cache *memory

	mu      sync.Mutex
	changes int
}

// open makes an upstream; it is closed with the test.
func open(t *testing.T, cfg config.Upstream, adjust ...func(*upstream.Options)) *rig {
	t.Helper()
	r := &rig{t: t, log: &mcptest.Buffer{}, cache: &memory{}}
	o := upstream.Options{
		Config: cfg, Resolver: config.NewResolver("/root/of/it", nil, nil), Cache: r.cache, Log: zerolog.New(r.log), Version: "test",
		Changed: func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.changes++
		},
	}
	for _, f := range adjust {
		f(&o)
	}
	r.Upstream = upstream.New(o)
	t.Cleanup(func() { within(t, patience, "Close", r.Close) })
	return r
}

// start makes an upstream and waits for its first attempt.
func start(t *testing.T, cfg config.Upstream, adjust ...func(*upstream.Options)) *rig {
	t.Helper()
	r := open(t, cfg, adjust...)
	r.Start(upstream.Host{})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r.Connected(ctx)
	return r
}

// ready is start of a server that must come up.
func ready(t *testing.T, cfg config.Upstream, adjust ...func(*upstream.Options)) *rig {
	t.Helper()
	r := start(t, cfg, adjust...)
	if s := r.Status(); s.State != upstream.StateReady {
		t.Fatalf("the upstream is %s: %v; its log: %s", s.State, s.Err, r.log)
	}
	return r
}

func (r *rig) changed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changes
}

func params(tool, arguments string) json.RawMessage {
	return json.RawMessage(`{"name":"` + tool + `","arguments":` + arguments + `}`)
}

func (r *rig) call(ctx context.Context, tool, arguments string) (wire.Message, error) {
	return r.Call(ctx, upstream.Call{Method: "tools/call", Params: params(tool, arguments)})
}

// must makes a call that must go well and returns its text.
func (r *rig) must(tool, arguments string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m, err := r.call(ctx, tool, arguments)
	if err != nil {
		r.t.Fatalf("call %s %s: %v; the log: %s", tool, clip(arguments), err, clip(r.log.String()))
	}
	return text(r.t, m)
}

func text(t *testing.T, m wire.Message) string {
	t.Helper()
	var result struct{ Content []struct{ Text string } }
	if m.Error != nil || json.Unmarshal(m.Result, &result) != nil || len(result.Content) != 1 {
		t.Fatalf("no text: %s", clip(string(m.Raw)))
	}
	return result.Content[0].Text
}

func (r *rig) seen() mcptest.Seen {
	r.t.Helper()
	var s mcptest.Seen
	if err := json.Unmarshal([]byte(r.must("seen", "{}")), &s); err != nil {
		r.t.Fatal(err)
	}
	return s
}

func clip(s string) string {
	if len(s) > 600 {
		return s[:300] + " ... " + s[len(s)-300:]
	}
	return s
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: still not so after %v", what, patience)
		}
	}
}

func within(t *testing.T, d time.Duration, what string, f func()) time.Duration {
	t.Helper()
	start := time.Now()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("%s: still not done after %v", what, d)
	}
	return time.Since(start)
}

// soon is a context for what must not take long.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func contains(list []string, what string) bool {
	return strings.Contains(strings.Join(list, "\n"), what)
}

func names(c upstream.Catalogue) (out []string) {
	for _, t := range c.Tools {
		out = append(out, t.Name)
	}
	return out
}
