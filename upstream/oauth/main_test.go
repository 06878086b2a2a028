package oauth_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/secret"
	"github.com/haldir-mcp/haldir/upstream/oauth"
)

func TestMain(m *testing.M) {
	if job := os.Getenv(jobVariable); job != "" {
		child(job)
		return
	}
	goleak.VerifyTestMain(m)
}

// world is one state directory and one upstream.
type world struct {
	t   *testing.T
	srv *mcptest.OAuth
	dir string
	cfg config.OAuth
	now func() time.Time

	mu   sync.Mutex
	seen []string
}

func newWorld(t *testing.T, s mcptest.OAuthScript, cfg config.OAuth) *world {
	t.Helper()
	return &world{t: t, srv: s.New(t), dir: t.TempDir(), cfg: cfg, now: time.Now}
}

// source is one process's.
func (w *world) source() *oauth.Source {
	s := source(w.srv.URL(), w.dir, w.cfg, w.now, func(v string) string {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.seen = append(w.seen, v)
		return v
	})
	w.t.Cleanup(s.Close)
	return s
}

func source(url, dir string, cfg config.OAuth, now func() time.Time, seen func(string) string) *oauth.Source {
	t := &http.Transport{DisableKeepAlives: true}
	web := oauth.NewWeb(t, url)
	return oauth.NewSource(oauth.Options{
		Program: "haldir", Upstream: "up", Server: url, Config: cfg, Resolve: func(s string) (string, error) { return s, nil }, Store: secret.New(dir, nil), Dir: dir,
		Client: oauth.NewClient(t), Web: web, Secret: seen, Now: now,
	})
}

// browse is a browser whose person says yes to all.
func browse(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	return nil
}

// login signs in.
func (w *world) login(s *oauth.Source) error {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	l, err := s.Begin(ctx, true)
	if err != nil || l == nil {
		return err
	}
	defer l.Close()
	if err := browse(ctx, l.URL); err != nil {
		return fmt.Errorf("browse: %w", err)
	}
	return l.Wait(ctx)
}

func (w *world) mustLogin(s *oauth.Source) {
	w.t.Helper()
	if err := w.login(s); err != nil {
		w.t.Fatal(err)
	}
}

// call calls the upstream's tool and returns what it says, or why it could not.
func call(ctx context.Context, s *oauth.Source, url, tool string) (string, error) {
	c := oauth.NewClient(&oauth.Transport{Base: &http.Transport{DisableKeepAlives: true}, Source: s})
	msg := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q,"arguments":{"text":"hello"}}}`, tool)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(msg))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	var m struct {
		Result struct {
			Content []struct{ Text string }
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil || len(m.Result.Content) == 0 {
		return "", fmt.Errorf("%s: %w", resp.Status, err)
	}
	return m.Result.Content[0].Text, nil
}

func (w *world) call(s *oauth.Source, tool string) error {
	w.t.Helper()
	got, err := call(w.t.Context(), s, w.srv.URL(), tool)
	if err == nil && got != "hello" {
		err = fmt.Errorf("the answer is %q", got)
	}
	return err
}

func (w *world) works(s *oauth.Source) {
	w.t.Helper()
	if err := w.call(s, "echo"); err != nil {
		w.t.Fatalf("the call: %v", err)
	}
}

// asks fails the test unless err asks for a sign-in, in these words.
func asks(t *testing.T, err error, words string) {
	t.Helper()
	if !oauth.IsSignIn(err) || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "haldir upstream login up") {
		t.Errorf("%v; want a request to sign in that says %q", err, words)
	}
}

// jobVariable makes this program a process of its own that calls the upstream: the
// directory, the url and what to do.
const jobVariable = "HALDIR_OAUTH_JOB"

func child(job string) {
	parts := strings.SplitN(job, " ", 3)
	s := source(parts[1], parts[0], config.OAuth{}, time.Now, func(v string) string { return v })
	_, err := call(context.Background(), s, parts[1], "echo")
	s.Close()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (w *world) process() *exec.Cmd {
	w.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.CommandContext(w.t.Context(), exe)
	cmd.Env = append(os.Environ(), jobVariable+"="+w.dir+" "+w.srv.URL())
	return cmd
}

var errTest = errors.New("test")
