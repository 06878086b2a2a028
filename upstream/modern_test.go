package upstream_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream"
)

// actorVar makes this test binary a server on stdio with a part to play.
const actorVar = "HALDIR_TEST_ACTOR"

func init() {
	if part := os.Getenv(actorVar); part != "" {
		act(part)
		os.Exit(0)
	}
}

// actor returns the config of a server that plays a part; see act.
func actor(t *testing.T, part string) config.Upstream {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return config.Upstream{Name: "up", Command: exe, Env: []string{actorVar + "=" + part}, Connect: patience}
}

// act is a server on stdin and stdout. Its parts:
//
//	legacy         answers server/discover by an error
//	mute           says nothing to what it does not know
//	exits          ends at server/discover
//	modern         knows no handshake
//	both           knows both, and speaks what it was met by
//	slow both      answers server/discover when initialize has come too, and first
//	slow both last the same, after initialize
//	slow modern    the same as modern, later
//
// Its tools: log {} answers the messages that came; teardown {} ends the streams of
// subscriptions as a server on stdio does; hang {} answers when release {} is called.
func act(part string) {
	var mu sync.Mutex
	out := bufio.NewWriter(os.Stdout)
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(out, format+"\n", args...)
		_ = out.Flush()
	}
	modern := strings.Contains(part, "modern") || strings.Contains(part, "both")
	legacy := !strings.Contains(part, "modern")
	var seen, listens, hung []string
	held, shook := "", false
	discovered := func(id string) {
		say(`{"jsonrpc":"2.0","id":%s,"result":{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true}},"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"actor","version":"1"}}}}`, id)
	}
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		seen = append(seen, strings.TrimSpace(line))
		var m struct {
			ID     json.RawMessage
			Method string
			Params struct {
				Name   string
				Meta   map[string]json.RawMessage `json:"_meta"`
				Filter struct {
					URIs []string `json:"resourceSubscriptions"`
				} `json:"notifications"`
			}
		}
		if json.Unmarshal([]byte(line), &m) != nil || m.ID == nil || m.Method == "" {
			continue
		}
		id := string(m.ID)
		unknown := func(code int) {
			if part != "mute" {
				say(`{"jsonrpc":"2.0","id":%s,"error":{"code":%d,"message":"not in this era"}}`, id, code)
			}
		}
		_, stamped := m.Params.Meta["io.modelcontextprotocol/protocolVersion"]
		switch {
		case m.Method == "server/discover" && strings.HasPrefix(part, "slow"):
			held = id
		case m.Method == "server/discover" && part == "exits":
			fmt.Fprintln(os.Stderr, "what is that")
			os.Exit(7)
		case m.Method == "server/discover" && modern:
			discovered(id)
		case m.Method == "server/discover":
			unknown(-32601)
		case m.Method == "initialize":
			if held != "" && !strings.HasSuffix(part, "last") {
				discovered(held)
			}
			if legacy {
				shook = true
				say(`{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{"listChanged":true}},"serverInfo":{"name":"actor","version":"1"}}}`, id)
			} else {
				unknown(-32601)
			}
			if held != "" && strings.HasSuffix(part, "last") {
				discovered(held)
			}
			held = ""
		case shook && stamped, !shook && !stamped: // who has shaken hands must not change its mind
			unknown(-32600)
		case m.Method == "tools/list":
			say(`{"jsonrpc":"2.0","id":%s,"result":{"resultType":"complete","tools":[{"name":"log","inputSchema":{"type":"object"}}]}}`, id)
		case m.Method == "resources/list":
			say(`{"jsonrpc":"2.0","id":%s,"result":{"resultType":"complete","resources":[]}}`, id)
		case m.Method == "resources/templates/list":
			say(`{"jsonrpc":"2.0","id":%s,"result":{"resultType":"complete","resourceTemplates":[]}}`, id)
		case m.Method == "subscriptions/listen":
			listens = append(listens, id)
			uris, _ := json.Marshal(m.Params.Filter.URIs)
			say(`{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":%s},"notifications":{"toolsListChanged":true,"resourceSubscriptions":%s}}}`, id, uris)
		case m.Method == "tools/call" && m.Params.Name == "teardown":
			for _, l := range listens {
				say(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%s,"reason":"torn down"}}`, l)
			}
			listens = nil
			say(`{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"torn"}]}}`, id)
		case m.Method == "tools/call" && m.Params.Name == "hang":
			hung = append(hung, id)
		case m.Method == "tools/call" && m.Params.Name == "release":
			for _, x := range append(hung, id) {
				say(`{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"%d"}]}}`, x, os.Getpid())
			}
		case m.Method == "tools/call":
			text, _ := json.Marshal(strings.Join(seen, "\n"))
			say(`{"jsonrpc":"2.0","id":%s,"result":{"resultType":"complete","content":[{"type":"text","text":%s}]}}`, id, text)
		default:
			unknown(-32601)
		}
	}
}

// peer is a host that keeps what servers send it.
type peer struct {
	mu    sync.Mutex
	notes []string
	asked []string
}

func (p *peer) Notify(_ string, m wire.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notes = append(p.notes, string(m.Raw))
}

func (p *peer) Ask(_ string, m wire.Message, reply func([]byte)) {
	p.mu.Lock()
	p.asked = append(p.asked, string(m.Raw))
	p.mu.Unlock()
	reply(wire.Result(m.ID, json.RawMessage(`{}`)))
}

func (*peer) Gone(string) {}

func (p *peer) heard() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.notes)
}

func modernHost(caps string) upstream.Host {
	return upstream.Host{Version: "2026-07-28", Modern: true, Capabilities: json.RawMessage(caps), Peer: &peer{}}
}

// met starts an upstream for a host and waits until it is ready.
func met(t *testing.T, cfg config.Upstream, h upstream.Host, adjust ...func(*upstream.Options)) *rig {
	t.Helper()
	r := open(t, cfg, adjust...)
	r.Start(h)
	eventually(t, "it is connected", func() bool {
		s := r.Status()
		if s.State == upstream.StateDown {
			r.Connected(soon(t))
			_, _ = r.call(soon(t), "log", `{}`) // wakes it
		}
		return s.State == upstream.StateReady
	})
	return r
}

// A child is met in its own era, whatever it does when it is met in the other.
func TestChildrenOfEveryEra(t *testing.T) {
	for _, tt := range []struct {
		part   string
		host   upstream.Host
		modern bool
	}{
		{"legacy", modernHost(`{}`), false},
		{"legacy", upstream.Host{}, false},
		{"mute", modernHost(`{}`), false},
		{"mute", upstream.Host{}, false},
		{"exits", modernHost(`{}`), false},
		{"exits", upstream.Host{}, false},
		{"modern", modernHost(`{}`), true},
		{"modern", upstream.Host{}, true},
		{"both", modernHost(`{}`), true},
		{"both", upstream.Host{}, false},
		{"slow modern", modernHost(`{}`), true},
		{"slow modern last", modernHost(`{}`), true},
	} {
		t.Run(fmt.Sprintf("%s, host modern %v", tt.part, tt.host.Modern), func(t *testing.T) {
			t.Parallel()
			r := met(t, actor(t, tt.part), tt.host)
			log := r.must("log", `{}`)
			if got := r.Catalogue(); got.Modern != tt.modern || len(got.Tools) != 1 || !got.Known {
				t.Errorf("the catalogue: %+v", got)
			}
			want := "2025-11-25"
			if tt.modern {
				want = "2026-07-28"
			}
			if s := r.Status(); s.Version != want || s.Server != "actor 1" {
				t.Errorf("%+v", s)
			}
			if shook := strings.Contains(log, `"notifications/initialized"`); shook == tt.modern {
				t.Errorf("the server was sent:\n%s", log)
			}
		})
	}
}

// A server that is slow to start and knows both eras hears both greetings. It is
// spoken to in one era only, that of the greeting it may have settled for.
func TestASlowChildOfBothEras(t *testing.T) {
	for _, part := range []string{"slow both", "slow both last"} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			r := met(t, actor(t, part), modernHost(`{}`))
			log := r.must("log", `{}`)
			c, s := r.Catalogue(), r.Status()
			if c.Modern || s.Version != "2025-11-25" || len(c.Tools) != 1 {
				t.Errorf("modern %v, %+v, tools %v; the server was sent:\n%s", c.Modern, s, names(c), log)
			}
		})
	}
}

// A server ends a subscription on stdio by notifications/cancelled (2026-07-28,
// cancellation): it is subscribed to again, and the lists are read again.
func TestASubscriptionThatAChildTearsDown(t *testing.T) {
	r := met(t, actor(t, "modern"), modernHost(`{}`))
	count := func(what string) int { return strings.Count(r.must("log", `{}`), what) }
	eventually(t, "the first stream", func() bool { return count("subscriptions/listen") == 1 })
	lists := count(`"tools/list"`)
	r.must("teardown", `{}`)
	eventually(t, "it is listened to again", func() bool { return count("subscriptions/listen") >= 2 })
	eventually(t, "the tools are listed again", func() bool { return count(`"tools/list"`) > lists })
}

// A host that can do more than before starts its servers anew; what is under way ends
// where it began.
func TestAHostThatCanDoMore(t *testing.T) {
	for name, start := range map[string]func() config.Upstream{
		"stdio": func() config.Upstream { return mcptest.Script{}.Child(t, "up") },
		"http":  func() config.Upstream { return mcptest.Script{Stateful: true}.NewHTTP(t).Upstream("up") },
	} {
		t.Run(name, func(t *testing.T) {
			r := met(t, start(), modernHost(`{}`))
			greetings := func() (n int) {
				for _, m := range r.seen().Messages {
					n += strings.Count(m, `"initialize"`)
				}
				return n
			}
			before := r.seen().PID
			r.Start(modernHost(`{}`)) // the same
			if r.seen().PID != before || greetings() != 1 {
				t.Errorf("the same host again: %d greetings", greetings())
			}
			type end struct {
				m   wire.Message
				err error
			}
			under := make(chan end, 1)
			go func() {
				m, err := r.call(soon(t), "slow", `{"ms":1500,"text":"old"}`)
				under <- end{m, err}
			}()
			eventually(t, "the call is there", func() bool { return contains(r.seen().Messages, `"old"`) })
			r.Start(modernHost(`{"sampling":{}}`))
			eventually(t, "the new connection is there", func() bool {
				m, err := r.call(soon(t), "seen", `{}`)
				return err == nil && strings.Contains(text(t, m), `\"capabilities\":{\"sampling\":{}}`)
			})
			if e := <-under; e.err != nil || text(t, e.m) != "old" {
				t.Errorf("the call under way: %s, %v", e.m.Raw, e.err)
			}
			if name == "stdio" && r.seen().PID == before {
				t.Error("the process is the same")
			}
			if r.must("echo", `{"text":"new"}`) != "new" {
				t.Error("the next call")
			}
		})
	}
}

// A subscription of a host outlives its saying that it can do more: the new connection
// is subscribed as the old one was.
func TestSubscriptionsOutliveAHostThatCanDoMore(t *testing.T) {
	r := met(t, mcptest.Script{}.Child(t, "up"), modernHost(`{}`))
	r.Keep("resources/subscribe x:y", &upstream.Call{Method: "resources/subscribe", Params: json.RawMessage(`{"uri":"x:y"}`)})
	before := r.seen()
	r.Start(modernHost(`{"sampling":{}}`))
	eventually(t, "the new one is there", func() bool { return r.seen().PID != before.PID })
	eventually(t, "the new connection is subscribed", func() bool { return contains(r.seen().Messages, "resources/subscribe") })
}

// --- HTTP

// visit is one request to a site, as it came.
type visit struct {
	method string // of HTTP
	header http.Header
	body   string
	rpc    string // method
	id     string
	name   string
	ended  chan struct{} // closed when the client has left or the answer is written
}

// site is a modern server over HTTP, in this process.
type site struct {
	*httptest.Server
	t            *testing.T
	capabilities string
	// handle may answer a request in the site's stead.
	handle func(w http.ResponseWriter, r *http.Request, v *visit) bool

	mu      sync.Mutex
	tools   string
	visits  []*visit
	streams []chan string // of subscriptions/listen; an empty message ends one
}

func newSite(t *testing.T, tools string) *site {
	t.Helper()
	s := &site{t: t, tools: tools, capabilities: `{"tools":{"listChanged":true},"resources":{"subscribe":true},"logging":{}}`}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

func (s *site) config() config.Upstream {
	return config.Upstream{Name: "up", URL: s.URL + "/mcp", Connect: patience}
}

func (s *site) set(tools string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tools = tools
}

// of returns the visits with a JSON-RPC method.
func (s *site) of(rpc string) (out []*visit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.visits {
		if v.rpc == rpc {
			out = append(out, v)
		}
	}
	return out
}

func (s *site) all() []*visit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.visits)
}

// push sends a message on the streams, or ends them by "".
func (s *site) push(msg string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ch := range s.streams {
		ch <- msg
	}
	if msg == "" {
		s.streams = nil
	}
}

func (s *site) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

func stream(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
}

func emit(w http.ResponseWriter, msg string) {
	fmt.Fprintf(w, "data: %s\n\n", msg)
	_ = http.NewResponseController(w).Flush()
}

func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	v := &visit{method: r.Method, header: r.Header.Clone(), body: string(body), ended: make(chan struct{})}
	defer close(v.ended)
	var m struct {
		ID     json.RawMessage
		Method string
		Params struct {
			Name   string
			Filter json.RawMessage `json:"notifications"`
		}
	}
	_ = json.Unmarshal(body, &m)
	v.rpc, v.id, v.name = m.Method, string(m.ID), m.Params.Name
	s.mu.Lock()
	s.visits = append(s.visits, v)
	tools := s.tools
	s.mu.Unlock()
	if s.handle != nil && s.handle(w, r, v) {
		return
	}
	answer := func(result string) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, v.id, result)
	}
	switch {
	case r.Method != http.MethodPost:
		w.WriteHeader(http.StatusMethodNotAllowed)
	case v.id == "":
		w.WriteHeader(http.StatusAccepted)
	case m.Method == "server/discover":
		answer(`{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":` + s.capabilities + `,"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"site","version":"1"}}}`)
	case m.Method == "tools/list":
		answer(`{"resultType":"complete","ttlMs":0,"cacheScope":"private","tools":` + tools + `}`)
	case m.Method == "resources/list":
		answer(`{"resultType":"complete","resources":[]}`)
	case m.Method == "resources/templates/list":
		answer(`{"resultType":"complete","resourceTemplates":[]}`)
	case m.Method == "tools/call":
		answer(`{"resultType":"complete","content":[{"type":"text","text":"done"}]}`)
	case m.Method == "subscriptions/listen":
		ch := make(chan string, 100)
		stream(w)
		emit(w, fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":%s},"notifications":%s}}`, v.id, m.Params.Filter))
		s.mu.Lock()
		s.streams = append(s.streams, ch)
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.streams = slices.DeleteFunc(s.streams, func(c chan string) bool { return c == ch })
		}()
		for {
			select {
			case msg := <-ch:
				if msg == "" {
					return
				}
				emit(w, strings.ReplaceAll(msg, "$ID", v.id))
			case <-r.Context().Done():
				return
			}
		}
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"Method not found"}}`, v.id)
	}
}

const plainTools = `[{"name":"tool","inputSchema":{"type":"object"}}]`

// A remote server is asked what it is, and its refusal decides what comes next.
func TestRemoteServersOfEveryEra(t *testing.T) {
	refuse := func(status int, body string) func(w http.ResponseWriter, id string) {
		return func(w http.ResponseWriter, id string) {
			if strings.HasPrefix(body, "{") {
				w.Header().Set("Content-Type", "application/json")
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, strings.ReplaceAll(body, "$ID", id))
		}
	}
	const unknown, unsupported = `{"jsonrpc":"2.0","id":$ID,"error":{"code":-32601,"message":"Method not found"}}`, `{"jsonrpc":"2.0","id":$ID,"error":{"code":-32022,"message":"no","data":{"supported":["2025-11-25"],"requested":"2026-07-28"}}}`
	for _, tt := range []struct {
		name   string
		refuse func(w http.ResponseWriter, id string)
		ready  bool
	}{
		{"400", refuse(400, "Bad Request: Mcp-Session-Id header is required"), true},
		{"400 of JSON-RPC", refuse(400, `{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Bad Request: Server not initialized"}}`), true},
		{"400 about the version", refuse(400, unsupported), true},
		{"404", refuse(404, "no such session"), true},
		{"404 of JSON-RPC", refuse(404, unknown), true},
		{"405", refuse(405, ""), true},
		{"406", refuse(406, "Not Acceptable"), true},
		{"415", refuse(415, ""), true},
		{"500", refuse(500, "oops"), true},
		{"501", refuse(501, ""), true},
		{"200 with an error", refuse(200, unknown), true},
		{"200 with a result of nothing", refuse(200, `{"jsonrpc":"2.0","id":$ID,"result":{}}`), true},
		{"200 with other versions", refuse(200, `{"jsonrpc":"2.0","id":$ID,"result":{"supportedVersions":["2099-01-01"],"capabilities":{}}}`), true},
		{"200 with what is no list", refuse(200, `{"jsonrpc":"2.0","id":$ID,"result":{"supportedVersions":"2026-07-28"}}`), true},
		{"401", refuse(401, "who are you"), false},
		{"403", refuse(403, ""), false},
		{"429", refuse(429, "slow down"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := mcptest.Script{Stateful: true}.NewHTTP(t)
			var shakes atomic.Int64
			srv.Before = func(w http.ResponseWriter, r *http.Request, body []byte) bool {
				id, _ := wire.At(body, "id")
				switch {
				case strings.Contains(string(body), `"server/discover"`):
					tt.refuse(w, string(id.Value))
					return true
				case strings.Contains(string(body), `"initialize"`):
					shakes.Add(1)
					if v := r.Header.Get("Mcp-Protocol-Version"); v != "" {
						t.Errorf("the handshake says version %q before one is agreed on", v)
					}
				}
				return false
			}
			r := start(t, srv.Upstream("up"))
			s := r.Status()
			if (s.State == upstream.StateReady) != tt.ready || (shakes.Load() > 0) != tt.ready {
				t.Fatalf("%+v after %d handshakes", s, shakes.Load())
			}
			if tt.ready && (s.Version != "2025-11-25" || r.Catalogue().Modern || r.must("echo", `{"text":"x"}`) != "x") {
				t.Errorf("%+v", s)
			}
		})
	}
	t.Run("it answers slowly", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, plainTools)
		s.handle = func(_ http.ResponseWriter, _ *http.Request, v *visit) bool {
			if v.rpc == "server/discover" {
				time.Sleep(2 * time.Second) // longer than a child is given
			}
			return false
		}
		r := ready(t, s.config())
		if !r.Catalogue().Modern || len(s.of("initialize")) != 0 {
			t.Errorf("%+v, %d handshakes", r.Status(), len(s.of("initialize")))
		}
	})
}

// decoded reads a header as a server does.
func decoded(t *testing.T, v string) string {
	t.Helper()
	if inner, ok := strings.CutPrefix(v, "=?base64?"); ok {
		if inner, ok = strings.CutSuffix(inner, "?="); ok {
			b, err := base64.StdEncoding.DecodeString(inner)
			if err != nil {
				t.Fatalf("%q: %v", v, err)
			}
			return string(b)
		}
	}
	return v
}

// Each request to a modern server over HTTP repeats in its headers what it is about.
func TestHeadersOfModernRequests(t *testing.T) {
	s := newSite(t, `[{"name":"sql","inputSchema":{"type":"object","properties":{
		"region":{"type":"string","x-mcp-header":"Region"},
		"deep":{"type":"object","properties":{"er":{"type":"object","properties":{"limit":{"type":"integer","x-mcp-header":"Max-Rows"}}},"properties":{"type":"boolean","x-mcp-header":"odd!#$"}}},
		"x-mcp-header":{"type":"string"},
		"query":{"type":"string"}}}},
		{"name":"wörld","inputSchema":{"type":"object"}}]`)
	r := met(t, s.config(), modernHost(`{"roots":{},"tasks":{"list":{}},"extensions":{"io.modelcontextprotocol/tasks":{},"x/y":{}}}`))
	for _, tt := range []struct {
		tool, arguments string
		want            map[string]string // decoded
	}{
		{"sql", `{"region":"us-west1","query":"SELECT 1"}`, map[string]string{"Mcp-Param-Region": "us-west1"}},
		{"sql", `{"region":"Hello, \u4e16界","deep":{"er":{"limit":-9007199254740991},"properties":true}}`, map[string]string{"Mcp-Param-Region": "Hello, 世界", "Mcp-Param-Max-Rows": "-9007199254740991", "Mcp-Param-Odd!#$": "true"}},
		{"sql", `{"region":" padded\r\nX-Evil: 1","deep":{"er":{"limit":0},"properties":false}}`, map[string]string{"Mcp-Param-Region": " padded\r\nX-Evil: 1", "Mcp-Param-Max-Rows": "0", "Mcp-Param-Odd!#$": "false"}},
		{"sql", `{"region":null,"deep":{"er":null}}`, nil},
		{"sql", `{"region":"=?base64?literal?=","limit":3,"deep":[]}`, map[string]string{"Mcp-Param-Region": "=?base64?literal?="}},
		{"sql", `{"region":""}`, map[string]string{"Mcp-Param-Region": ""}},
		{"sql", `{}`, nil},
		{"wörld", `{"region":"x"}`, nil},
	} {
		if _, err := r.call(soon(t), tt.tool, tt.arguments); err != nil {
			t.Fatalf("%s: %v", tt.arguments, err)
		}
		calls := s.of("tools/call")
		v := calls[len(calls)-1]
		got := map[string]string{}
		for k, values := range v.header {
			if strings.HasPrefix(k, "Mcp-Param-") {
				if len(values) != 1 {
					t.Errorf("%s: %s is %q", tt.arguments, k, values)
				}
				got[k] = decoded(t, values[0])
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(tt.want) && (len(got) > 0 || len(tt.want) > 0) {
			t.Errorf("%s: headers %q, want %q", tt.arguments, got, tt.want)
		}
		if name := decoded(t, v.header.Get("Mcp-Name")); name != tt.tool {
			t.Errorf("Mcp-Name: %q", name)
		}
		if v.header.Get("X-Evil") != "" || !strings.Contains(v.body, `"arguments":`+tt.arguments) {
			t.Errorf("%v, %s", v.header, v.body)
		}
	}
	for method, uri := range map[string]string{"resources/read": "file:///ä", "prompts/get": ""} {
		_, _ = r.Call(soon(t), upstream.Call{Method: method, Params: json.RawMessage(`{"uri":"` + uri + `","name":"a b"}`)})
	}
	_, _ = r.Call(soon(t), upstream.Call{Method: "completion/complete", Params: json.RawMessage(`{"name":"not this"}`)})
	for _, v := range s.all() {
		name, named := v.header["Mcp-Name"]
		want := map[string]string{"resources/read": "file:///ä", "prompts/get": "a b"}[v.rpc]
		if v.method != http.MethodPost || v.header.Get("Mcp-Method") != v.rpc || v.header.Get("Mcp-Protocol-Version") != "2026-07-28" || v.header.Get("Mcp-Session-Id") != "" {
			t.Errorf("%s %s: %v", v.method, v.rpc, v.header)
		}
		if v.rpc != "tools/call" && (named != (want != "") || named && decoded(t, name[0]) != want) {
			t.Errorf("%s: Mcp-Name %q", v.rpc, name)
		}
		var m struct {
			Params struct {
				Meta map[string]json.RawMessage `json:"_meta"`
			}
		}
		if json.Unmarshal([]byte(v.body), &m) != nil || string(m.Params.Meta["io.modelcontextprotocol/protocolVersion"]) != `"2026-07-28"` || m.Params.Meta["io.modelcontextprotocol/clientInfo"] == nil {
			t.Errorf("%s: %s", v.rpc, v.body)
		}
		if got := string(m.Params.Meta["io.modelcontextprotocol/clientCapabilities"]); got != `{"roots":{},"extensions":{"x/y":{}}}` {
			t.Errorf("%s: capabilities %s", v.rpc, got)
		}
	}
	if len(s.of("initialize"))+len(s.of("notifications/initialized")) != 0 {
		t.Error("hands were shaken")
	}
}

// A tool whose headers nobody can make is kept from the host, and no other one.
func TestToolsWithInvalidHeaders(t *testing.T) {
	property := func(schema string) string {
		return `{"type":"object","properties":{"p":` + schema + `}}`
	}
	bad := map[string]string{
		"empty":          property(`{"type":"string","x-mcp-header":""}`),
		"no token":       property(`{"type":"string","x-mcp-header":"a b"}`),
		"no ASCII":       property(`{"type":"string","x-mcp-header":"ä"}`),
		"a line break":   property(`{"type":"string","x-mcp-header":"a\r\nX"}`),
		"no text":        property(`{"type":"string","x-mcp-header":7}`),
		"null":           property(`{"type":"string","x-mcp-header":null}`),
		"a number":       property(`{"type":"number","x-mcp-header":"X"}`),
		"an object":      property(`{"type":"object","x-mcp-header":"X"}`),
		"an array":       property(`{"type":"array","x-mcp-header":"X"}`),
		"no type":        property(`{"x-mcp-header":"X"}`),
		"twice":          `{"type":"object","properties":{"a":{"type":"string","x-mcp-header":"Same"},"b":{"type":"object","properties":{"c":{"type":"string","x-mcp-header":"sAME"}}}}}`,
		"in items":       property(`{"type":"array","items":{"type":"string","x-mcp-header":"X"}}`),
		"in prefix":      property(`{"type":"array","prefixItems":[{"type":"string","x-mcp-header":"X"}]}`),
		"in oneOf":       `{"type":"object","oneOf":[{"properties":{"p":{"type":"string","x-mcp-header":"X"}}}]}`,
		"in allOf":       property(`{"allOf":[{"type":"string","x-mcp-header":"X"}]}`),
		"in not":         property(`{"not":{"type":"string","x-mcp-header":"X"}}`),
		"in if":          `{"type":"object","if":{"properties":{"p":{"type":"string","x-mcp-header":"X"}}}}`,
		"in defs":        `{"type":"object","$defs":{"d":{"type":"string","x-mcp-header":"X"}}}`,
		"in def default": `{"type":"object","$defs":{"default":{"type":"string","x-mcp-header":"X"}}}`,
		"in additional":  `{"type":"object","additionalProperties":{"type":"string","x-mcp-header":"X"}}`,
		"in patterns":    `{"type":"object","patternProperties":{"^x":{"type":"string","x-mcp-header":"X"}}}`,
		"at the root":    `{"type":"object","x-mcp-header":"X"}`,
	}
	good := map[string]string{
		"a string": property(`{"type":"string","x-mcp-header":"X"}`), "an integer": property(`{"type":"integer","x-mcp-header":"X"}`), "a boolean": property(`{"type":"boolean","x-mcp-header":"X"}`),
		"a property of that name": `{"type":"object","properties":{"x-mcp-header":{"type":"number"}}}`,
		"as data":                 property(`{"type":"string","default":"x-mcp-header","enum":[{"x-mcp-header":1}],"const":{"x-mcp-header":1},"examples":[{"x-mcp-header":1}]}`),
		"none":                    `{"type":"object"}`,
	}
	var defs []string
	for name, schema := range bad {
		defs = append(defs, fmt.Sprintf(`{"name":%q,"inputSchema":%s}`, "bad "+name, schema))
	}
	for name, schema := range good {
		defs = append(defs, fmt.Sprintf(`{"name":%q,"inputSchema":%s}`, "good "+name, schema))
	}
	s := newSite(t, "["+strings.Join(defs, ",")+"]")
	r := ready(t, s.config())
	c := r.Catalogue()
	for _, name := range names(c) {
		if strings.HasPrefix(name, "bad ") {
			t.Errorf("not withheld: %s", name)
		}
	}
	for name := range good {
		if !slices.Contains(names(c), "good "+name) {
			t.Errorf("withheld: %s (%v)", name, c.Withheld)
		}
	}
	for _, w := range c.Withheld {
		if w.Reason == "" || !strings.Contains(r.log.String(), w.Name) {
			t.Errorf("%+v is not in the log", w)
		}
	}
}

// To give up a call is to close its stream, and nothing else.
func TestCancelOfAModernCallOverHTTP(t *testing.T) {
	s := newSite(t, plainTools)
	begun := make(chan *visit, 2)
	s.handle = func(w http.ResponseWriter, r *http.Request, v *visit) bool {
		if v.rpc != "tools/call" {
			return false
		}
		if strings.Contains(v.body, "events") {
			stream(w)
			emit(w, `{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}`)
		}
		begun <- v
		<-r.Context().Done()
		return true
	}
	r := ready(t, s.config())
	for _, kind := range []string{"events", "json"} {
		ctx, cancel := context.WithCancelCause(context.Background())
		over := make(chan error, 1)
		go func() {
			_, err := r.call(ctx, "tool", `{"kind":"`+kind+`"}`)
			over <- err
		}()
		v := <-begun
		why := errors.New("enough")
		cancel(why)
		if err := <-over; !errors.Is(err, why) || errors.Is(err, wire.ErrNotSent) {
			t.Errorf("%s: %v", kind, err)
		}
		within(t, patience, "the server sees the end", func() { <-v.ended })
	}
	r.Close()
	for _, v := range s.all() {
		if v.rpc == "notifications/cancelled" || v.method != http.MethodPost {
			t.Errorf("%s %s", v.method, v.body)
		}
	}
}

// A stream that breaks is not asked for again: what became of the call nobody knows.
func TestABrokenModernStream(t *testing.T) {
	s := newSite(t, plainTools)
	s.handle = func(w http.ResponseWriter, _ *http.Request, v *visit) bool {
		if v.rpc != "tools/call" {
			return false
		}
		stream(w)
		_, _ = io.WriteString(w, "id: 1\nretry: 1\n")
		emit(w, `{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}`)
		if strings.Contains(v.body, "abort") {
			panic(http.ErrAbortHandler)
		}
		return true
	}
	r := ready(t, s.config())
	for _, how := range []string{"abort", "end"} {
		if _, err := r.call(soon(t), "tool", `{"how":"`+how+`"}`); !errors.Is(err, wire.ErrOutcomeUnknown) || errors.Is(err, wire.ErrNotSent) {
			t.Errorf("%s: %v", how, err)
		}
	}
	r.Close()
	if n := len(s.of("tools/call")); n != 2 {
		t.Errorf("two calls were made %d times", n)
	}
	for _, v := range s.all() {
		if v.method != http.MethodPost || v.header.Get("Last-Event-Id") != "" {
			t.Errorf("%s %v", v.method, v.header)
		}
	}
}

// Changes of lists come on a stream of haldir's own, which is opened again when it
// ends, with the lists read again; what it carries is for haldir.
func TestTheStreamOfChangedLists(t *testing.T) {
	s := newSite(t, plainTools)
	host := modernHost(`{}`)
	r := met(t, s.config(), host)
	eventually(t, "the stream is open", func() bool { return s.open() == 1 })
	if body := s.of("subscriptions/listen")[0].body; !strings.Contains(body, `"notifications":{"toolsListChanged":true}`) {
		t.Errorf("it listens to %s", body)
	}
	s.set(`[{"name":"second","inputSchema":{"type":"object"}}]`)
	s.push(`{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":$ID}}}`)
	eventually(t, "the change is seen", func() bool { return slices.Equal(names(r.Catalogue()), []string{"second"}) })
	// While nobody listens, it changes again.
	s.set(`[{"name":"third","inputSchema":{"type":"object"}}]`)
	s.push("")
	eventually(t, "the change that was missed is seen", func() bool { return slices.Equal(names(r.Catalogue()), []string{"third"}) })
	eventually(t, "the stream is open again", func() bool { return s.open() == 1 })
	s.set(`[{"name":"fourth","inputSchema":{"type":"object"}}]`)
	s.push(`{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":$ID}}}`)
	eventually(t, "the change is seen", func() bool { return slices.Equal(names(r.Catalogue()), []string{"fourth"}) })
	if p, ok := host.Peer.(*peer); !ok || len(p.heard()) != 0 {
		t.Errorf("the host was told %v", p.heard())
	}
}

// What changes between the end of one stream and the beginning of the next is not
// lost, also if it is after the lists were read again.
func TestAChangeBeforeTheStreamIsOpenAgain(t *testing.T) {
	s := newSite(t, plainTools)
	var phase atomic.Int64
	var read atomic.Int64
	acknowledge := make(chan struct{})
	s.handle = func(_ http.ResponseWriter, r *http.Request, v *visit) bool {
		switch {
		case v.rpc == "tools/list" && phase.Load() == 1:
			read.Add(1)
		case v.rpc == "subscriptions/listen" && phase.Load() == 1:
			select {
			case <-acknowledge:
			case <-r.Context().Done():
			}
		}
		return false
	}
	r := met(t, s.config(), modernHost(`{}`))
	eventually(t, "the stream is open", func() bool { return s.open() == 1 })
	phase.Store(1)
	s.push("")
	// The server is slow to open the next. Until then it owes nobody a word.
	eventually(t, "the next is asked for", func() bool { return len(s.of("subscriptions/listen")) == 2 })
	for deadline := time.Now().Add(time.Second); read.Load() == 0 && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		// one that reads the lists when the stream is open does not do so now
	}
	time.Sleep(moment)
	s.set(`[{"name":"late","inputSchema":{"type":"object"}}]`)
	close(acknowledge)
	eventually(t, "the change is seen", func() bool { return slices.Equal(names(r.Catalogue()), []string{"late"}) })
}

// What the older era says by requests is said by a stream and with each request.
func TestRequestsOfTheOlderEra(t *testing.T) {
	s := newSite(t, plainTools)
	host := upstream.Host{Version: "2025-11-25", Capabilities: json.RawMessage(`{}`), Peer: &peer{}}
	r := met(t, s.config(), host)
	ask := func(method, params string) wire.Message {
		t.Helper()
		m, err := r.Call(soon(t), upstream.Call{Method: method, Params: json.RawMessage(params)})
		if err != nil || m.Error != nil {
			t.Fatalf("%s: %s, %v", method, m.Raw, err)
		}
		return m
	}
	ask("logging/setLevel", `{"level":"warning"}`)
	r.must("tool", `{}`)
	calls := s.of("tools/call")
	if body := calls[len(calls)-1].body; !strings.Contains(body, `"io.modelcontextprotocol/logLevel":"warning"`) {
		t.Errorf("the level is not said: %s", body)
	}
	eventually(t, "the stream of the lists is open", func() bool { return s.open() == 1 })
	ask("resources/subscribe", `{"uri":"file:///\u0061"}`)
	ask("resources/subscribe", `{"uri":"file:///\u0061"}`)
	listens := s.of("subscriptions/listen")
	if len(listens) != 2 || !strings.Contains(listens[1].body, `"notifications":{"resourceSubscriptions":["file:///\u0061"]}`) {
		t.Fatalf("%d streams", len(listens))
	}
	p, _ := host.Peer.(*peer)
	s.push(`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"file:///a","_meta":{"io.modelcontextprotocol/subscriptionId":$ID,"x":9007199254740993},"n":1}}`)
	eventually(t, "it is told", func() bool { return len(p.heard()) >= 1 })
	if got := p.heard()[0]; strings.Contains(got, "subscriptionId") || !strings.Contains(got, `9007199254740993`) || !strings.Contains(got, `"uri":"file:///a"`) {
		t.Errorf("the host was told %s", got)
	}
	ask("resources/unsubscribe", `{"uri":"file:///\u0061"}`)
	within(t, patience, "its stream ends", func() { <-listens[1].ended })
	if n := len(s.of("resources/subscribe")) + len(s.of("logging/setLevel")) + len(s.of("resources/unsubscribe")); n != 0 {
		t.Errorf("%d requests of the older era were sent", n)
	}
	if len(s.of("subscriptions/listen")) != 2 {
		t.Error("what was unsubscribed from is listened to again")
	}
}

// A server that finds the headers of a call wrong has other tools than were listed.
func TestHeadersThatAreOutOfDate(t *testing.T) {
	s := newSite(t, plainTools)
	s.handle = func(w http.ResponseWriter, _ *http.Request, v *visit) bool {
		if v.rpc != "tools/call" || v.header.Get("Mcp-Param-P") != "" {
			return false
		}
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32020,"message":"Mcp-Param-P is missing"}}`, v.id)
		return true
	}
	r := met(t, s.config(), modernHost(`{}`))
	s.set(`[{"name":"tool","inputSchema":{"type":"object","properties":{"p":{"type":"string","x-mcp-header":"P"}}}}]`)
	eventually(t, "a call gets through", func() bool {
		m, err := r.call(soon(t), "tool", `{"p":"x"}`)
		return err == nil && m.Error == nil
	})
}

// A subscription that the server refuses fails with its words.
func TestASubscriptionThatIsRefused(t *testing.T) {
	s := newSite(t, plainTools)
	s.handle = func(w http.ResponseWriter, _ *http.Request, v *visit) bool {
		if v.rpc == "subscriptions/listen" && strings.Contains(v.body, "resourceSubscriptions") {
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32602,"message":"not that one"}}`, v.id)
			return true
		}
		return false
	}
	r := met(t, s.config(), upstream.Host{})
	for range 2 {
		m, err := r.Call(soon(t), upstream.Call{Method: "resources/subscribe", Params: json.RawMessage(`{"uri":"x:y"}`)})
		if err != nil || m.Error == nil || !strings.Contains(string(m.Error), "not that one") {
			t.Errorf("%s, %v", m.Raw, err)
		}
	}
}

// A modern server must not ask in the older way: it is not passed on.
func TestAModernServerThatAsks(t *testing.T) {
	s := newSite(t, plainTools)
	s.handle = func(w http.ResponseWriter, _ *http.Request, v *visit) bool {
		if v.rpc != "tools/call" {
			return false
		}
		stream(w)
		emit(w, `{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{}}`)
		emit(w, `{"jsonrpc":"2.0","id":2,"method":"ping"}`)
		emit(w, `{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}`)
		emit(w, `{"jsonrpc":"2.0","id":`+v.id+`,"result":{"resultType":"complete","content":[{"type":"text","text":"done"}]}}`)
		return true
	}
	host := modernHost(`{"sampling":{}}`)
	r := met(t, s.config(), host)
	if got := r.must("tool", `{}`); got != "done" {
		t.Errorf("got %s", got)
	}
	p, _ := host.Peer.(*peer)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.asked) != 0 || len(p.notes) != 1 || !strings.Contains(p.notes[0], "notifications/message") {
		t.Errorf("the host was asked %v and told %v", p.asked, p.notes)
	}
	for _, v := range s.all() {
		if v.rpc == "" {
			t.Errorf("the server was sent a response: %s", v.body)
		}
	}
}

// What a host declares with a call is what the server is told with it, and nothing of
// the host's era reaches a server of the other.
func TestWhatACallSaysOfItsHost(t *testing.T) {
	s := newSite(t, plainTools)
	r := met(t, s.config(), modernHost(`{}`))
	const sent = `{"name":"tool","arguments":{ "a" : 9007199254740993 },"_meta":{"progressToken":"p", "io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"other","version":"1"},"io.modelcontextprotocol/logLevel":"debug","x":[1 ]}}`
	if _, err := r.Call(soon(t), upstream.Call{Method: "tools/call", Params: json.RawMessage(sent), Capabilities: json.RawMessage(`{"sampling":{},"tasks":{}}`), Level: "debug"}); err != nil {
		t.Fatal(err)
	}
	body := s.of("tools/call")[0].body
	for _, part := range []string{`"arguments":{ "a" : 9007199254740993 }`, `"progressToken":"p"`, `"x":[1 ]`, `"io.modelcontextprotocol/clientCapabilities":{"sampling":{}}`, `"name":"haldir"`, `"io.modelcontextprotocol/logLevel":"debug"`} {
		if !strings.Contains(body, part) {
			t.Errorf("no %s in %s", part, body)
		}
	}
	child := met(t, mcptest.Script{}.Child(t, "up"), modernHost(`{}`))
	if _, err := child.Call(soon(t), upstream.Call{Method: "tools/call", Params: json.RawMessage(strings.Replace(sent, `"tool"`, `"echo"`, 1)), Capabilities: json.RawMessage(`{"sampling":{}}`), Level: "debug"}); err != nil {
		t.Fatal(err)
	}
	for _, line := range child.seen().Messages {
		if strings.Contains(line, `"echo"`) && (strings.Contains(line, "io.modelcontextprotocol/") || !strings.Contains(line, `"progressToken":"p"`) || !strings.Contains(line, `"x":[1 ]`)) {
			t.Errorf("the server was sent %s", line)
		}
	}
}
