package oauth_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream/oauth"
)

func TestASignInLastsAndIsRenewed(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{Scope: "tools:call"}, config.OAuth{})
	s := w.source()
	asks(t, w.call(s, "echo"), "asks haldir to sign in")
	w.mustLogin(s)
	w.works(s)
	q := w.srv.LastAuthorize()
	if q.Get("code_challenge_method") != "S256" || q.Get("resource") != w.srv.URL() || q.Get("scope") != "tools:call" || q.Get("state") == "" {
		t.Errorf("the authorization request: %v", q)
	}
	// Another process needs no more than the directory.
	other := w.source()
	w.works(other)
	w.srv.ExpireAccess()
	w.works(other)
	w.works(s)
	if c := w.srv.Counts(); c.Token["refresh_token"] != 1 || c.Register != 1 || c.Authorize != 1 {
		t.Errorf("one refresh, registration and authorization are enough: %+v", c)
	}
	if w.srv.ReuseDetected() {
		t.Error("a refresh token was used twice")
	}
}

func TestATokenIsRenewedAheadOfItsEnd(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{TokenTTL: time.Hour}, config.OAuth{})
	var mu sync.Mutex
	ahead := time.Duration(0)
	w.now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(ahead) }
	s := w.source()
	w.mustLogin(s)
	set := func(d time.Duration) { mu.Lock(); ahead = d; mu.Unlock() }
	set(58 * time.Minute)
	w.works(s)
	if n := w.srv.Counts().Token["refresh_token"]; n != 0 {
		t.Errorf("%d refreshes two minutes before the end", n)
	}
	set(59*time.Minute + 30*time.Second)
	// The authorization server is down: the token is still good.
	w.srv.Change(func(s *mcptest.OAuthScript) { s.TokenFailures = 1 })
	w.works(s)
	w.works(s)
	if n := w.srv.Counts().Token["refresh_token"]; n != 2 {
		t.Errorf("%d refreshes within the last minute, want one that fails and one that does not", n)
	}
	if c := w.srv.Counts(); c.WithoutToken > 2 {
		t.Errorf("requests without a token: %+v", c)
	}
}

func TestWhatAServerMayBeLike(t *testing.T) {
	for name, tt := range map[string]struct {
		script mcptest.OAuthScript
		cfg    config.OAuth
		fails  string // what the login says, "" if it succeeds
	}{
		"metadata by the challenge":   {script: mcptest.OAuthScript{PRM: "challenge"}},
		"metadata at the path":        {script: mcptest.OAuthScript{PRM: "path"}},
		"metadata at the root":        {script: mcptest.OAuthScript{PRM: "root"}},
		"no metadata of the resource": {script: mcptest.OAuthScript{PRM: "none"}},
		"no metadata at all":          {script: mcptest.OAuthScript{PRM: "none", Metadata: "none"}},
		"an issuer with a path":       {script: mcptest.OAuthScript{IssuerPath: "/tenant1"}},
		"OpenID, path inserted":       {script: mcptest.OAuthScript{IssuerPath: "/tenant1", Metadata: "oidc"}},
		"OpenID, path appended":       {script: mcptest.OAuthScript{IssuerPath: "/tenant1", Metadata: "appended"}},
		"OpenID at the root":          {script: mcptest.OAuthScript{Metadata: "oidc"}},
		"a secret by header":          {script: mcptest.OAuthScript{AuthMethods: []string{"client_secret_basic"}}},
		"a secret in the form":        {script: mcptest.OAuthScript{AuthMethods: []string{"client_secret_post"}}},
		"a public client":             {script: mcptest.OAuthScript{AuthMethods: []string{"none"}}},
		"a metadata document": {
			script: mcptest.OAuthScript{CIMD: true, NoRegistration: true}, cfg: config.OAuth{MetadataURL: "https://haldir.example/client.json"},
		},
		"a client that is known": {
			script: mcptest.OAuthScript{NoRegistration: true, AnyPort: true, Client: mcptest.OAuthClient{
				ID: "known", Secret: "secret-of-the-known", Method: "client_secret_basic", Redirects: []string{"http://127.0.0.1/callback"},
			}},
			cfg: config.OAuth{ClientID: "known", ClientSecret: "secret-of-the-known"},
		},
		"the right iss":                {script: mcptest.OAuthScript{IssParam: ""}},
		"no iss and none advertised":   {script: mcptest.OAuthScript{IssParam: "off"}},
		"an iss that is wrong":         {script: mcptest.OAuthScript{IssParam: "wrong"}, fails: "it is not used"},
		"an iss that is missing":       {script: mcptest.OAuthScript{IssParam: "missing"}, fails: "RFC 9207"},
		"no PKCE":                      {script: mcptest.OAuthScript{NoPKCE: true}, fails: "PKCE"},
		"metadata of another issuer":   {script: mcptest.OAuthScript{IssuerMismatch: true}, fails: "does not match"},
		"metadata of another resource": {script: mcptest.OAuthScript{PRMResource: "https://evil.example/mcp"}, fails: "not of this upstream"},
		"a no of the person":           {script: mcptest.OAuthScript{AuthorizeError: "access_denied"}, fails: "access_denied"},
		"no way to register":           {script: mcptest.OAuthScript{NoRegistration: true}, fails: "auth.client_id"},
		"another issuer than wanted":   {cfg: config.OAuth{ClientID: "x", Issuer: "https://other.example"}, fails: "auth.issuer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, tt.script, tt.cfg)
			s := w.source()
			err := w.login(s)
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) {
					t.Fatalf("the login: %v, want one that fails with %q", err, tt.fails)
				}
				if n := w.srv.Counts().Token["authorization_code"]; n != 0 {
					t.Errorf("%d codes were exchanged all the same", n)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			w.works(s)
			w.srv.ExpireAccess()
			w.works(s)
		})
	}
}

func TestAMachineSignsInByItself(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{Client: mcptest.OAuthClient{ID: "robot", Secret: "secret-of-the-robot", Method: "client_secret_basic"}},
		config.OAuth{ClientID: "robot", ClientSecret: "secret-of-the-robot", Machine: true})
	s := w.source()
	w.works(s)
	w.srv.ExpireAccess()
	w.works(s)
	if c := w.srv.Counts(); c.Token["client_credentials"] != 2 || c.Authorize != 0 {
		t.Errorf("%+v", c)
	}
}

// TestASecretIsNotShownToAnotherServer has an upstream name another authorization
// server than before.
func TestASecretIsNotShownToAnotherServer(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{Client: mcptest.OAuthClient{ID: "robot", Secret: "secret-of-the-robot", Method: "client_secret_basic"}},
		config.OAuth{ClientID: "robot", ClientSecret: "secret-of-the-robot", Machine: true})
	s := w.source()
	w.works(s)
	w.srv.Change(func(s *mcptest.OAuthScript) { s.IssuerPath = "/evil" })
	w.srv.ExpireAccess()
	before := w.srv.Counts().Token["client_credentials"]
	if err := w.call(s, "echo"); err == nil || !strings.Contains(err.Error(), "auth.issuer") {
		t.Errorf("%v", err)
	}
	if n := w.srv.Counts().Token["client_credentials"]; n != before {
		t.Errorf("the secret was shown %d times", n-before)
	}
}

func TestATokenThatCannotBeRenewedIsUsedToItsEnd(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{NoRefresh: true, TokenTTL: time.Hour}, config.OAuth{})
	s := w.source()
	w.mustLogin(s)
	late := w.now
	w.now = func() time.Time { return late().Add(59*time.Minute + 30*time.Second) }
	w.works(w.source())
}

func TestAStepUpAsksForAllScopes(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{Scope: "read", RequireScope: map[string]string{"delete": "write"}}, config.OAuth{})
	s := w.source()
	w.mustLogin(s)
	w.works(s)
	before := w.srv.Counts()
	asks(t, w.call(s, "delete"), "wants more than haldir was granted (write)")
	if c := w.srv.Counts(); c.WithToken-before.WithToken != 1 {
		t.Errorf("a request that lacks a scope was made %d times", c.WithToken-before.WithToken)
	}
	w.mustLogin(s)
	if got := strings.Fields(w.srv.LastAuthorize().Get("scope")); !slices.Contains(got, "read") || !slices.Contains(got, "write") {
		t.Errorf("scopes asked for: %v", got)
	}
	if err := w.call(s, "delete"); err != nil {
		t.Error(err)
	}
	if c := w.srv.Counts(); c.Register != 1 {
		t.Errorf("it was registered %d times", c.Register)
	}
}

// TestTwentyProcessesRenewOnce is what breaks others: a refresh token that two use
// takes all that was granted with it.
func TestTwentyProcessesRenewOnce(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{TokenDelay: 100 * time.Millisecond}, config.OAuth{})
	s := w.source()
	w.mustLogin(s)
	w.srv.ExpireAccess()
	var wg sync.WaitGroup
	for range 20 {
		cmd := w.process()
		wg.Go(func() {
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("a process: %v: %s", err, out)
			}
		})
	}
	wg.Wait()
	w.works(s)
	if n := w.srv.Counts().Token["refresh_token"]; n != 1 || w.srv.ReuseDetected() {
		t.Errorf("%d token requests reached the server; reuse: %v", n, w.srv.ReuseDetected())
	}
}

func TestAProcessKilledInARenewalTakesNothingWithIt(t *testing.T) {
	for name, script := range map[string]mcptest.OAuthScript{
		"before the server has heard":     {TokenDelay: time.Second},
		"after it has granted another":    {TokenCommitThenHang: true, Grace: time.Minute}, // servers that rotate allow for a client that missed the answer
		"one that does not rotate at all": {TokenCommitThenHang: true, NoRotation: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			quick := script
			quick.TokenDelay, quick.TokenCommitThenHang = 0, false
			w := newWorld(t, quick, config.OAuth{})
			s := w.source()
			w.mustLogin(s)
			w.srv.Change(func(s *mcptest.OAuthScript) {
				s.TokenDelay, s.TokenCommitThenHang = script.TokenDelay, script.TokenCommitThenHang
			})
			w.srv.ExpireAccess()
			for range 3 {
				cmd := w.process()
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				n := w.srv.Counts().Token["refresh_token"]
				for end := time.Now().Add(10 * time.Second); w.srv.Counts().Token["refresh_token"] == n && time.Now().Before(end); {
					time.Sleep(5 * time.Millisecond)
				}
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}
			w.srv.Change(func(s *mcptest.OAuthScript) { s.TokenDelay, s.TokenCommitThenHang = 0, false })
			w.works(s)
			if w.srv.ReuseDetected() {
				t.Error("the server has seen a refresh token twice")
			}
		})
	}
}

func TestARenewalOutlivesTheCallThatBeganIt(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{TokenDelay: 300 * time.Millisecond}, config.OAuth{})
	s := w.source()
	w.mustLogin(s)
	w.srv.ExpireAccess()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errTest)
	defer cancel()
	if _, err := call(ctx, s, w.srv.URL(), "echo"); err == nil {
		t.Fatal("the call has waited")
	}
	s.Close()
	w.srv.Change(func(s *mcptest.OAuthScript) { s.TokenDelay = 0 })
	w.works(w.source())
	if n := w.srv.Counts().Token["refresh_token"]; n != 1 {
		t.Errorf("%d refreshes", n)
	}
}

func TestALostGrantAsksForAPerson(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{}, config.OAuth{})
	s := w.source()
	w.mustLogin(s)
	w.srv.RevokeAll()
	asks(t, w.call(s, "echo"), "does not take what haldir was granted any more")
	n := w.srv.Counts().Token["refresh_token"]
	asks(t, w.call(s, "echo"), "does not take what haldir was granted any more")
	if again := w.srv.Counts().Token["refresh_token"]; again != n {
		t.Errorf("it was asked again %d times", again-n)
	}
	// Another process signs in; this one goes on.
	w.mustLogin(w.source())
	w.works(s)
}

func TestASlowLoserKeepsTheWinnersToken(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{TokenDelay: 300 * time.Millisecond}, config.OAuth{})
	s := w.source()
	w.mustLogin(s)
	w.srv.RevokeAll()
	refused := make(chan error, 1)
	go func() { refused <- w.call(s, "echo") }()
	time.Sleep(100 * time.Millisecond)
	w.mustLogin(w.source()) // while the refusal is on its way
	<-refused
	w.works(s)
}

func TestAServerWithoutRefreshTokens(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{NoRefresh: true}, config.OAuth{})
	s := w.source()
	w.mustLogin(s)
	w.works(s)
	w.srv.ExpireAccess()
	asks(t, w.call(s, "echo"), "no way to renew")
}

func TestATokenThatIsRefusedForEverIsNotTriedForEver(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{}, config.OAuth{})
	s := w.source()
	w.mustLogin(s)
	w.srv.Change(func(s *mcptest.OAuthScript) { s.AccessTokenFailures = 100 })
	before := w.srv.Counts()
	asks(t, w.call(s, "echo"), "refuses the token")
	c := w.srv.Counts()
	if c.WithToken-before.WithToken != 2 || c.Token["refresh_token"] != 1 {
		t.Errorf("requests with a token: %d, refreshes: %d", c.WithToken-before.WithToken, c.Token["refresh_token"])
	}
}

func TestAnotherURLIsNotShownTheToken(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{}, config.OAuth{})
	w.mustLogin(w.source())
	other := mcptest.OAuthScript{}.New(t)
	s := source(other.URL(), w.dir, config.OAuth{}, time.Now, func(v string) string { return v })
	t.Cleanup(s.Close)
	if _, err := call(t.Context(), s, other.URL(), "echo"); !oauth.IsSignIn(err) {
		t.Errorf("%v", err)
	}
	if c := other.Counts(); c.WithToken != 0 {
		t.Errorf("%d requests carried a token", c.WithToken)
	}
}

func TestOneSignInAtATime(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{}, config.OAuth{})
	l, err := w.source().Begin(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.source().Begin(t.Context(), true); err == nil || !strings.Contains(err.Error(), "somebody is signing in") {
		t.Errorf("the second: %v", err)
	}
	l.Close()
	w.mustLogin(w.source())
}

func TestTheCallbackTakesItsOwnAnswerOnly(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{}, config.OAuth{})
	l, err := w.source().Begin(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u, err := url.Parse(l.URL)
	if err != nil {
		t.Fatal(err)
	}
	back := u.Query().Get("redirect_uri")
	if !strings.HasPrefix(back, "http://127.0.0.1:") {
		t.Errorf("the browser returns to %s", back)
	}
	for _, q := range []string{"", "?code=x", "?code=x&state=wrong", "?error=access_denied&state="} {
		if err := browse(t.Context(), back+q); err == nil || !strings.Contains(err.Error(), "400") {
			t.Errorf("%s: %v", q, err)
		}
	}
	if err := l.Answer(back + "?code=x&state=wrong"); err == nil {
		t.Error("a pasted address of another sign-in is taken")
	}
	if err := browse(t.Context(), l.URL); err != nil {
		t.Fatal(err)
	}
	if err := l.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAPastedAddressSignsIn(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{}, config.OAuth{})
	s := w.source()
	l, err := s.Begin(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // a browser on another machine
	}
	resp, err := c.Get(l.URL)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if err := l.Answer(" " + resp.Header.Get("Location") + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := l.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.works(s)
}

func TestASignOutForgets(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{}, config.OAuth{})
	s := w.source()
	w.mustLogin(s)
	if was, _, err := s.Logout(t.Context()); err != nil || !was {
		t.Fatal(was, err)
	}
	asks(t, w.call(s, "echo"), "asks haldir to sign in")
	if was, _, err := s.Logout(t.Context()); err != nil || was {
		t.Error(was, err)
	}
}

// TestWhatARefusalSaysOfTheRequest: what a server has had in its hands may have been
// carried out, whatever it answers.
func TestWhatARefusalSaysOfTheRequest(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{RequireScope: map[string]string{"delete": "write"}}, config.OAuth{})
	s := w.source()
	if err := w.call(s, "echo"); !errors.Is(err, wire.ErrOutcomeUnknown) || errors.Is(err, wire.ErrNotSent) {
		t.Errorf("without a token: %v", err)
	}
	w.mustLogin(s)
	if err := w.call(s, "delete"); !errors.Is(err, wire.ErrOutcomeUnknown) || errors.Is(err, wire.ErrNotSent) {
		t.Errorf("without a scope: %v", err)
	}
	w.srv.RevokeAll()
	if err := w.call(s, "echo"); !oauth.IsSignIn(err) {
		t.Errorf("%v", err)
	}
	if err := w.call(s, "echo"); !errors.Is(err, wire.ErrNotSent) && !errors.Is(err, wire.ErrOutcomeUnknown) {
		t.Errorf("%v", err)
	}
}

// TestNothingSecretIsReadableAtRest looks through all that is on disk, and at what is
// noted as secret, for everything that the server has issued.
func TestNothingSecretIsReadableAtRest(t *testing.T) {
	w := newWorld(t, mcptest.OAuthScript{AuthMethods: []string{"client_secret_post"}}, config.OAuth{})
	s := w.source()
	w.mustLogin(s)
	w.srv.ExpireAccess()
	w.works(s)
	issued := w.srv.Secrets()
	if len(issued) < 5 {
		t.Fatalf("only %d secrets", len(issued))
	}
	for _, v := range issued {
		w.mu.Lock()
		noted := slices.ContainsFunc(w.seen, func(s string) bool { return s != "" && strings.Contains(v, s) })
		w.mu.Unlock()
		if !noted {
			t.Errorf("a secret of %d bytes is not noted as one", len(v))
		}
	}
	err := filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		for _, v := range issued {
			if bytes.Contains(raw, []byte(v)) {
				t.Errorf("%s holds a secret as it is", path)
			}
		}
		if info, e := d.Info(); e == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
