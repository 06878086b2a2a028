package console_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/examples/securitytools"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/internal/console"
	"github.com/haldir-mcp/haldir/internal/console/api"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
	"github.com/haldir-mcp/haldir/upstream/pins"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hang is how long a test waits for what must happen.
const hang = 30 * time.Second

// clock is a clock that a test sets.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// noon is a time at which everything is open: noon in New York, on a Tuesday.
var noon = time.Date(2026, 11, 24, 17, 0, 0, 0, time.UTC)

// world is a console with all that is behind it: the ledger, the proxy, a config file
// and the example server.
type world struct {
	t      *testing.T
	clock  *clock
	led    *ledger.Ledger
	srv    *proxy.Server
	page   *console.Server
	api    *api.API
	url    string
	origin string
	path   string // of haldir.yaml
	log    *lockedBuffer
	slow   *slow
	pages  map[string]string // what the page of a cookie sends besides

	mu  sync.Mutex
	cfg *config.Config
	ups []*upstream.Upstream
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
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

// slow is a server whose one tool waits for the test, and another fails.
type slow struct {
	url   string
	began chan struct{}
	end   chan struct{}
	calls atomic.Int32
	tools *server.MCPServer
}

func newSlow(t *testing.T) *slow {
	s := &slow{began: make(chan struct{}, 100), end: make(chan struct{}), tools: server.NewMCPServer("slow", "1", server.WithToolCapabilities(true))}
	s.tools.AddTool(mcp.NewToolWithRawSchema("wait", "Waits.", json.RawMessage(`{"type":"object"}`)), func(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		s.calls.Add(1)
		s.began <- struct{}{}
		select {
		case <-s.end:
		case <-ctx.Done():
		}
		return mcp.NewToolResultText("waited"), nil
	})
	s.tools.AddTool(mcp.NewToolWithRawSchema("break", "Breaks.", json.RawMessage(`{"type":"object"}`)), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return nil, errors.New("it broke")
	})
	s.tools.AddTool(mcp.NewToolWithRawSchema("large", "Says much.", json.RawMessage(`{"type":"object"}`)), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		s.calls.Add(1)
		return mcp.NewToolResultText(strings.Repeat("much ", 100_000)), nil
	})
	mux := http.NewServeMux()
	mux.Handle("/mcp", server.NewStreamableHTTPServer(s.tools))
	ts := httptest.NewServer(mux)
	t.Cleanup(ts.Close)
	s.url = ts.URL + "/mcp"
	return s
}

const firstConfig = `version: 1
upstreams:
  - {name: security-tools, url: "@SECURITY@"}
  - {name: slow, url: "@SLOW@"}
costs:
  - {tools: [buy_report], from_argument: /amount}
`

// start makes a world; policies are lines below policies: of its config.
func start(t *testing.T, policies string, adjust ...func(*console.Options)) *world {
	t.Helper()
	security := httptest.NewServer(securitytools.Handler())
	t.Cleanup(security.Close)
	w := &world{t: t, clock: &clock{t: noon}, log: &lockedBuffer{}, slow: newSlow(t)}
	dir := t.TempDir()
	w.path = filepath.Join(dir, "haldir.yaml")
	text := strings.NewReplacer("@SECURITY@", security.URL+"/mcp", "@SLOW@", w.slow.url).Replace(firstConfig)
	if policies != "" {
		text += "policies:\n" + policies
	}
	if err := os.WriteFile(w.path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(w.path)
	if err != nil {
		t.Fatal(err)
	}
	log := zerolog.New(w.log)
	w.led, err = ledger.Open(ledger.Options{Dir: filepath.Join(dir, "state"), Clock: w.clock.now, Logger: log, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	w.cfg, w.ups = cfg, w.connect(cfg)
	r := w.rules()
	w.srv = proxy.New(proxy.Options{
		Upstreams: r.Upstreams, Engine: r.Engine, Ledger: w.led, Use: r.Use, Session: r.Session, Agent: r.Agent, Config: r.Config, Detail: r.Detail,
		Secrets: func() []string { return nil }, NameLimit: r.NameLimit, ListWait: r.ListWait, Message: 16 << 20, Version: "test", Log: log,
		Initialize: func(upstream.Host) {},
	})
	w.api = api.New(api.Options{
		Ledger: w.led, Proxy: w.srv, Editor: w, Rules: w.inForce, Upstreams: w.upstreams, Clean: func(s string) string { return s },
		Clock: w.clock.now, Log: log,
	})
	o := console.Options{
		API: w.api, Keys: w.led, Clock: w.clock.now, Log: log,
		Page: fstest.MapFS{"index.html": {Data: []byte("<!doctype html><title>haldir</title>")}, "app.js": {Data: []byte("export {}\n")}},
	}
	for _, f := range adjust {
		f(&o)
	}
	w.page, err = console.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.page.Listen(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	w.url = w.page.URL()
	w.origin = w.url
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.page.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(hang):
			t.Error("Serve does not return")
		}
		w.srv.Close()
		for _, u := range w.ups {
			u.Close()
		}
		end, cancel := context.WithTimeout(context.Background(), hang)
		defer cancel()
		if err := w.led.Close(end); err != nil {
			t.Errorf("close the ledger: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return w
}

// board keeps pins in the ledger, as cmd/haldir does.
type board struct{ *ledger.Ledger }

func (b board) ChangePins(ctx context.Context, name string, change func([]byte) ([]byte, []pins.Note, error)) error {
	return b.Ledger.ChangePins(ctx, name, func(old []byte) ([]byte, []ledger.Note, error) {
		now, notes, err := change(old)
		var out []ledger.Note
		for _, n := range notes {
			out = append(out, ledger.Note{Status: audit.Status(n.Status), Name: n.Name, Text: n.Text, Digest: n.Digest})
		}
		return now, out, err
	})
}

func (w *world) connect(cfg *config.Config) (ups []*upstream.Upstream) {
	for _, c := range cfg.Upstreams {
		u := upstream.New(upstream.Options{
			Config: c, Resolver: config.NewResolver("", nil, nil), Cache: w.led, Pins: board{w.led}, Log: zerolog.New(w.log), Version: "test", MaxMessage: 16 << 20,
			Changed: func() {},
		})
		u.Start(upstream.Host{})
		ups = append(ups, u)
	}
	return ups
}

func (w *world) rules() proxy.Rules {
	var ups []proxy.Upstream
	for _, u := range w.ups {
		ups = append(ups, u)
	}
	return proxy.Rules{
		Upstreams: ups, Engine: w.cfg.Engine, Use: ledger.Use{ID: "ses_console", Terms: &ledger.Terms{Agent: "default", AllScopes: true}},
		Session: policy.SessionState{ID: "ses_console", AllScopes: true}, Agent: "default", Config: audit.Hash(w.cfg.SHA256), Detail: audit.DetailFull,
		NameLimit: 89, ListWait: 5 * time.Second,
	}
}

func (w *world) inForce() (*policy.Engine, policy.Ruleset) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cfg.Engine, w.cfg.Ruleset
}

func (w *world) upstreams() (list []api.Upstream) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, u := range w.ups {
		list = append(list, api.Upstream{Upstream: u, URL: "http://127.0.0.1/mcp"})
	}
	return list
}

// The world is an editor of its file that puts every change in force.
func (w *world) change(r edit.Result, err error) error {
	switch {
	case errors.Is(err, edit.ErrNotFound):
		return api.NewProblem(http.StatusNotFound, "not-found", "%v", err)
	case err != nil:
		return api.NewProblem(http.StatusBadRequest, "malformed", "%v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cfg = r.New
	known := map[string]*upstream.Upstream{}
	for _, u := range w.ups {
		known[u.Name()] = u
	}
	w.ups = nil
	for _, c := range r.New.Upstreams {
		if u := known[c.Name]; u != nil {
			w.ups = append(w.ups, u)
			delete(known, c.Name)
		} else {
			w.ups = append(w.ups, w.connect(&config.Config{Upstreams: []config.Upstream{c}})...)
		}
	}
	w.srv.Adopt(w.rules())
	for _, u := range known {
		u.Close()
	}
	return nil
}

func (w *world) AddPolicy(_ context.Context, entry json.RawMessage, _ string) (string, []string, error) {
	r, err := edit.Add(w.path, edit.Policies, entry, edit.Options{})
	return r.ID, r.Notes, w.change(r, err)
}

func (w *world) RemovePolicy(_ context.Context, id, _ string) error {
	return w.change(edit.Remove(w.path, edit.Policies, id, edit.Options{}))
}

func (w *world) AddUpstream(_ context.Context, entry json.RawMessage, _ string) ([]string, error) {
	r, err := edit.Add(w.path, edit.Upstreams, entry, edit.Options{NoCommands: true, NoReferences: true})
	return r.Notes, w.change(r, err)
}

func (w *world) RemoveUpstream(_ context.Context, name, _ string) error {
	return w.change(edit.Remove(w.path, edit.Upstreams, name, edit.Options{}))
}

// key makes a key with these scopes; "all" are all.
func (w *world) key(scopes ...string) string { return w.keyOf(ledger.KeyTerms{Scopes: scopes}) }

func (w *world) keyOf(terms ledger.KeyTerms) string {
	w.t.Helper()
	if terms.Name == "" {
		terms.Name = "test"
	}
	if slices.Equal(terms.Scopes, []string{"all"}) {
		terms.Scopes = nil
		for _, s := range api.Scopes {
			terms.Scopes = append(terms.Scopes, string(s))
		}
	}
	_, secret, err := w.led.CreateKey(context.Background(), terms, "")
	if err != nil {
		w.t.Fatal(err)
	}
	return secret
}

// answer is what a request got.
type answer struct {
	t      *testing.T
	what   string
	status int
	header http.Header
	body   []byte
}

// into reads the body.
func (a answer) into(v any) {
	a.t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		a.t.Fatalf("%s: %v: %s", a.what, err, a.body)
	}
}

// want fails the test unless the status is this one.
func (a answer) want(status int) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("%s: %d %s, want %d", a.what, a.status, a.body, status)
	}
	return a
}

// problem checks that the answer is a problem of a kind, and returns what it says.
func (a answer) problem(status int, kind string) string {
	a.t.Helper()
	var p struct {
		Type, Title, Detail, Error string
		Status                     int
	}
	if a.status != status || a.header.Get("Content-Type") != "application/problem+json" || json.Unmarshal(a.body, &p) != nil ||
		p.Type != "urn:haldir:problem:"+kind || p.Status != status || p.Title == "" || p.Detail == "" || p.Error != p.Detail {
		a.t.Fatalf("%s: %d %s %s; want %d, %s", a.what, a.status, a.header.Get("Content-Type"), a.body, status, kind)
	}
	return p.Detail
}

// field returns a member of the body as text.
func (a answer) field(name string) string {
	a.t.Helper()
	var all map[string]json.RawMessage
	a.into(&all)
	var s string
	if json.Unmarshal(all[name], &s) == nil {
		return s
	}
	return string(all[name])
}

// header is one header of a request; an empty value takes it out.
type header struct{ name, value string }

// quick reads a path and looks at the status alone.
func (w *world) quick(key, path string) answer {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.url+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+key)
	res, err := client.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{w.t, path, res.StatusCode, res.Header, nil}.closed(res)
}

func (a answer) closed(res *http.Response) answer {
	_ = res.Body.Close()
	return a
}

// do makes a request with a key, as curl would. Requests and answers are compared with the
// OpenAPI document.
func (w *world) do(key, method, path, body string, headers ...header) answer {
	w.t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, in)
	if err != nil {
		w.t.Fatal(err)
	}
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		if page := w.pages[h.value]; h.name == "Cookie" && page != "" {
			r.Header.Set("Haldir-Page", page)
		}
	}
	for _, h := range headers {
		switch {
		case h.name == "Host":
			r.Host = h.value
		case h.value == "":
			r.Header.Del(h.name)
		default:
			r.Header.Add(h.name, h.value)
		}
	}
	res, err := client.Do(r)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = res.Body.Close() }()
	out, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	a := answer{w.t, method + " " + path, res.StatusCode, res.Header, out}
	if strings.HasPrefix(path, "/v1/") && method != http.MethodHead {
		w.compare(r, body, a)
	}
	return a
}

// client follows no redirects and keeps no connections, which goleak would find.
var client = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, Proxy: nil},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Timeout:       hang,
}

var document = sync.OnceValues(func() (validator.Validator, error) {
	text, err := os.ReadFile("api/openapi.json")
	if err != nil {
		return nil, err
	}
	doc, err := libopenapi.NewDocument(text)
	if err != nil {
		return nil, err
	}
	v, errs := validator.NewValidator(doc)
	return v, errors.Join(errs...)
})

// compare holds an exchange against the OpenAPI document: a good answer must be as it
// says, and so must the request that got it; a problem must be a problem.
func (w *world) compare(r *http.Request, body string, a answer) {
	w.t.Helper()
	v, err := document()
	if err != nil {
		w.t.Fatal(err)
	}
	again := r.Clone(context.Background())
	again.Body = io.NopCloser(strings.NewReader(body))
	if c := again.Header.Get("Cookie"); c != "" { // the document has the port that is taken if nobody says another
		again.Header.Set("Cookie", strings.Replace(c, w.cookieName(), "haldir_console_8764", 1))
	}
	res := &http.Response{StatusCode: a.status, Header: a.header, Body: io.NopCloser(bytes.NewReader(a.body)), Request: again}
	if a.status < 300 {
		if ok, problems := v.ValidateHttpRequestSync(again); !ok {
			for _, p := range problems {
				w.t.Errorf("%s: the request is not as OpenAPI says: %s: %s %v", a.what, p.Message, p.Reason, p.SchemaValidationErrors)
			}
		}
		again.Body = io.NopCloser(strings.NewReader(body))
	} else if r.URL.Path == "/v1/nothing" || r.Method == http.MethodOptions || a.status == http.StatusMethodNotAllowed || strings.Contains(string(a.body), "the API has no") {
		return // no route is described
	}
	if ok, problems := v.ValidateHttpResponse(again, res); !ok {
		for _, p := range problems {
			w.t.Errorf("%s: the answer is not as OpenAPI says: %s: %s %v: %s", a.what, p.Message, p.Reason, p.SchemaValidationErrors, a.body)
		}
	}
}

// browser is a person's: it has a cookie, with which do sends what the page got besides.
func (w *world) browser() (cookie string, own header) {
	w.t.Helper()
	link := w.page.Link()
	_, token, _ := strings.Cut(link, "#token=")
	a := w.do("", "POST", "/console/login", `{"token":"`+token+`"}`, header{"Origin", w.origin}).want(http.StatusOK)
	cookie, _, _ = strings.Cut(a.header.Get("Set-Cookie"), ";")
	if w.pages == nil {
		w.pages = map[string]string{}
	}
	w.pages[cookie] = a.field("page")
	return cookie, header{"Cookie", cookie}
}

// raw sends bytes and returns what comes back until the server closes.
func (w *world) raw(text string) string {
	w.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(hang))
	if _, err := io.WriteString(c, text); err != nil {
		w.t.Fatal(err)
	}
	out, err := io.ReadAll(c)
	if err != nil && len(out) == 0 {
		return ""
	}
	return string(out)
}

// session makes a session and returns its id.
func (w *world) session(key, body string) string {
	w.t.Helper()
	return w.do(key, "POST", "/v1/sessions", body).want(http.StatusCreated).field("session_id")
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// call calls a tool.
func (w *world) call(key, session, tool, arguments string, headers ...header) answer {
	w.t.Helper()
	return w.do(key, "POST", "/v1/proxy/call", `{"session_id":`+quote(session)+`,"tool":`+quote(tool)+`,"arguments":`+arguments+`}`, headers...)
}
