package upstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/secret"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream"
)

// person is a host whose person answers what is asked, and whose browser opens what
// the person agrees to.
type person struct {
	t      *testing.T
	says   string // accept, decline; "" says nothing
	browse bool

	mu    sync.Mutex
	asked []string
	told  []string
	wg    sync.WaitGroup
}

func (p *person) Notify(_ string, m wire.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = append(p.told, string(m.Raw))
}

func (p *person) Gone(string) {}

func (p *person) Ask(_ string, m wire.Message, reply func([]byte)) {
	p.mu.Lock()
	p.asked = append(p.asked, string(m.Raw))
	p.mu.Unlock()
	if p.says == "" {
		return
	}
	address, _ := wire.At(m.Params, "url")
	if u, ok := wire.String(address.Value); ok && p.browse && p.says == "accept" {
		p.wg.Go(func() { surf(p.t, u) })
	}
	reply(wire.Result(m.ID, json.RawMessage(`{"action":"`+p.says+`"}`)))
}

func (p *person) questions() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// surf is a browser.
func surf(t *testing.T, url string) {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		t.Errorf("browse: %v", err)
		return
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
}

// guarded is an upstream that demands a sign-in.
func guarded(t *testing.T, srv *mcptest.OAuth) (config.Upstream, func(*upstream.Options)) {
	t.Helper()
	dir := t.TempDir()
	cfg := config.Upstream{Name: "up", URL: srv.URL(), Connect: patience, OAuth: &config.OAuth{}}
	return cfg, func(o *upstream.Options) { o.Secrets, o.SecretsDir = secret.New(dir, nil), dir }
}

const showsURLs = `{"elicitation":{"url":{}}}`

// signIn does what haldir upstream login does.
func (r *rig) signIn() {
	r.t.Helper()
	s, err := r.Auth()
	if err != nil {
		r.t.Fatal(err)
	}
	l, err := s.Begin(soon(r.t), true)
	if err != nil {
		r.t.Fatal(err)
	}
	defer l.Close()
	surf(r.t, l.URL)
	if err := l.Wait(soon(r.t)); err != nil {
		r.t.Fatal(err)
	}
}

func TestASignInElsewhereIsPickedUp(t *testing.T) {
	srv := mcptest.OAuthScript{}.New(t)
	cfg, with := guarded(t, srv)
	serving := start(t, cfg, with)
	st := serving.Status()
	if st.State != upstream.StateDown || !strings.Contains(st.Err.Error(), "haldir upstream login up") {
		t.Fatalf("%+v", st)
	}
	if _, err := serving.call(soon(t), "echo", `{"text":"hello"}`); err == nil || !strings.Contains(err.Error(), "haldir upstream login up") {
		t.Errorf("%v", err)
	}
	open(t, cfg, with).signIn() // as another process does
	eventually(t, "the running one is connected", serving.Ready)
	if got := serving.must("echo", `{"text":"hello"}`); got != "hello" {
		t.Error(got)
	}
	srv.ExpireAccess()
	if got := serving.must("echo", `{"text":"again"}`); got != "again" {
		t.Error(got)
	}
}

func TestTheHostOffersTheSignIn(t *testing.T) {
	for name, modern := range map[string]bool{"handshake": false, "modern": true} {
		t.Run(name, func(t *testing.T) {
			srv := mcptest.OAuthScript{}.New(t)
			cfg, with := guarded(t, srv)
			p := &person{t: t, says: "accept", browse: true}
			r := open(t, cfg, with)
			h := upstream.Host{Peer: p, Modern: modern, Capabilities: json.RawMessage(showsURLs)}
			r.Start(h)
			r.Connected(soon(t))
			var wg sync.WaitGroup
			for n := range 5 { // one offer serves all
				wg.Go(func() {
					m, err := r.Call(soon(t), upstream.Call{
						Method: "tools/call", Params: params("echo", fmt.Sprintf(`{"text":"hello %d"}`, n)), Capabilities: json.RawMessage(showsURLs), Mark: "mark",
					})
					if err != nil {
						t.Errorf("%v", err)
					} else if got := text(t, m); got != fmt.Sprintf("hello %d", n) {
						t.Error(got)
					}
				})
			}
			wg.Wait()
			p.wg.Wait()
			q := p.questions()
			if len(q) != 1 {
				t.Fatalf("%d questions: %v", len(q), q)
			}
			for _, want := range []string{`"mode":"url"`, `"elicitationId"`, srv.Issuer(), "upstream 'up'"} {
				if !strings.Contains(q[0], want) {
					t.Errorf("the question lacks %s: %s", want, q[0])
				}
			}
			complete := strings.Contains(strings.Join(p.told, "\n"), "notifications/elicitation/complete")
			if complete == modern {
				t.Errorf("told of the end: %v", p.told)
			}
		})
	}
}

func TestNoOffer(t *testing.T) {
	for name, tt := range map[string]struct {
		p            *person
		capabilities string
		questions    int
	}{
		"to a host that cannot show URLs": {&person{says: "accept", browse: true}, `{"elicitation":{"form":{}}}`, 0},
		"is made twice after a no":        {&person{says: "decline"}, showsURLs, 1},
	} {
		t.Run(name, func(t *testing.T) {
			srv := mcptest.OAuthScript{}.New(t)
			cfg, with := guarded(t, srv)
			tt.p.t = t
			r := open(t, cfg, with)
			r.Start(upstream.Host{Peer: tt.p, Capabilities: json.RawMessage(tt.capabilities)})
			r.Connected(soon(t))
			for range 3 {
				if _, err := r.call(soon(t), "echo", `{}`); err == nil || !strings.Contains(err.Error(), "haldir upstream login up") {
					t.Errorf("%v", err)
				}
			}
			if q := tt.p.questions(); len(q) != tt.questions {
				t.Errorf("questions: %v", q)
			}
		})
	}
}

func TestAnOfferEndsWithTheCallsThatWaitForIt(t *testing.T) {
	srv := mcptest.OAuthScript{}.New(t)
	cfg, with := guarded(t, srv)
	p := &person{t: t} // says nothing
	r := open(t, cfg, with)
	r.Start(upstream.Host{Peer: p, Capabilities: json.RawMessage(showsURLs)})
	r.Connected(soon(t))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := r.call(ctx, "echo", `{}`); err == nil || ctx.Err() == nil {
		t.Errorf("%v", err)
	}
	within(t, 5*time.Second, "Close", r.Close)
}

func TestAStepUpIsOfferedInTheMiddleOfACall(t *testing.T) {
	srv := mcptest.OAuthScript{Scope: "read", RequireScope: map[string]string{"delete": "write"}}.New(t)
	cfg, with := guarded(t, srv)
	p := &person{t: t, says: "accept", browse: true}
	r := open(t, cfg, with)
	r.signIn()
	r.Start(upstream.Host{Peer: p, Capabilities: json.RawMessage(showsURLs)})
	r.Connected(soon(t))
	if got := r.must("delete", `{"text":"gone"}`); got != "gone" {
		t.Error(got)
	}
	p.wg.Wait()
	if scopes := strings.Fields(srv.LastAuthorize().Get("scope")); len(scopes) != 2 {
		t.Errorf("scopes asked for: %v", scopes)
	}
}

// Who takes a call back while a sign-in is offered takes back what the server has had.
func TestACallThatIsCancelledDuringAStepUpHasLeft(t *testing.T) {
	srv := mcptest.OAuthScript{Scope: "read", RequireScope: map[string]string{"delete": "write"}}.New(t)
	cfg, with := guarded(t, srv)
	p := &person{t: t} // says nothing
	r := open(t, cfg, with)
	r.signIn()
	r.Start(upstream.Host{Peer: p, Capabilities: json.RawMessage(showsURLs)})
	eventually(t, "it is connected", r.Ready)
	ctx, cancel := context.WithCancelCause(soon(t))
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		eventually(t, "a sign-in is offered", func() bool { return len(p.questions()) == 1 })
		cancel(errors.New("the host has cancelled it"))
	})
	if _, err := r.call(ctx, "delete", `{}`); ctx.Err() == nil || err == nil || errors.Is(err, wire.ErrNotSent) || !errors.Is(err, wire.ErrOutcomeUnknown) {
		t.Errorf("%v", err)
	}
}

// TestRenewalsAreNoSignIns: two that are refused for ever must not take each other's
// renewals for somebody signing in.
func TestRenewalsAreNoSignIns(t *testing.T) {
	srv := mcptest.OAuthScript{}.New(t)
	cfg, with := guarded(t, srv)
	open(t, cfg, with).signIn()
	srv.Change(func(s *mcptest.OAuthScript) { s.AccessTokenFailures = 1 << 20 })
	start(t, cfg, with)
	start(t, cfg, with)
	time.Sleep(6 * time.Second)
	if n := srv.Counts().Token["refresh_token"]; n > 16 {
		t.Errorf("%d renewals in six seconds", n)
	}
}

func TestNoTokenIsInAnyWordOfHaldirs(t *testing.T) {
	srv := mcptest.OAuthScript{AuthMethods: []string{"client_secret_post"}}.New(t)
	cfg, with := guarded(t, srv)
	var said []string
	r := start(t, cfg, with)
	note := func(err error) {
		if err != nil {
			said = append(said, err.Error())
		}
	}
	_, err := r.call(soon(t), "echo", `{}`)
	note(err)
	r.signIn()
	eventually(t, "it is connected", r.Ready)
	_ = r.must("echo", `{"text":"hello"}`)
	srv.RevokeAll()
	_, err = r.call(soon(t), "echo", `{}`)
	note(err)
	note(r.Status().Err)
	said = append(said, r.log.String())
	for _, v := range srv.Secrets() {
		for _, s := range said {
			if strings.Contains(s, v) {
				t.Errorf("it is said: %s", clip(s))
			}
		}
	}
}
