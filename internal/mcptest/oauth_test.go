package mcptest_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

const (
	verifier = "a-verifier-of-forty-three-characters-or-more"
	redirect = "http://127.0.0.1:7777/callback"
)

// client is what a client of OAuth does, by hand.
type client struct {
	t      *testing.T
	o      *mcptest.OAuth
	http   *http.Client
	as     map[string]any // metadata of the authorization server
	id     string
	secret string
	basic  bool
}

func newClient(t *testing.T, o *mcptest.OAuth) *client {
	return &client{t: t, o: o, http: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// do sends a request and returns what came: the body as JSON if it is.
func (c *client) do(r *http.Request) (*http.Response, map[string]any) {
	c.t.Helper()
	resp, err := c.http.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	var doc map[string]any
	_ = json.Unmarshal(body, &doc)
	return resp, doc
}

func (c *client) request(method, url, body string) *http.Request {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

func (c *client) get(url string) (*http.Response, map[string]any) {
	c.t.Helper()
	return c.do(c.request(http.MethodGet, url, ""))
}

// mcp sends a message with a token, if there is one.
func (c *client) mcp(token, msg string) (*http.Response, map[string]any) {
	c.t.Helper()
	r := c.request(http.MethodPost, c.o.URL(), msg)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return c.do(r)
}

const ping = `{"jsonrpc":"2.0","id":1,"method":"ping"}`

func (c *client) wantMCP(token string, status int) *http.Response {
	c.t.Helper()
	resp, _ := c.mcp(token, ping)
	if resp.StatusCode != status {
		c.t.Fatalf("MCP: HTTP %d, want %d: %s", resp.StatusCode, status, resp.Header.Get("WWW-Authenticate"))
	}
	return resp
}

// discover reads the metadata of the authorization server at a path.
func (c *client) discover(path string) {
	c.t.Helper()
	origin := strings.TrimSuffix(c.o.URL(), "/mcp")
	resp, doc := c.get(origin + path)
	if resp.StatusCode != http.StatusOK || doc["issuer"] != c.o.Issuer() {
		c.t.Fatalf("metadata at %s: HTTP %d: %v", path, resp.StatusCode, doc)
	}
	c.as = doc
}

const wellKnown = "/.well-known/oauth-authorization-server"

func (c *client) register(method string) {
	c.t.Helper()
	resp, doc := c.do(c.request(http.MethodPost, c.as["registration_endpoint"].(string),
		`{"client_name":"me","redirect_uris":["`+redirect+`"],"token_endpoint_auth_method":"`+method+`"}`))
	if resp.StatusCode != http.StatusCreated || doc["client_name"] != "me" || doc["token_endpoint_auth_method"] != method {
		c.t.Fatalf("register: HTTP %d: %v", resp.StatusCode, doc)
	}
	c.id = doc["client_id"].(string)
	c.secret, _ = doc["client_secret"].(string)
	c.basic = method == "client_secret_basic"
}

// authorize returns the query of the redirect.
func (c *client) authorize(scope string, more ...string) url.Values {
	c.t.Helper()
	sum := sha256.Sum256([]byte(verifier))
	q := url.Values{
		"response_type": {"code"}, "client_id": {c.id}, "redirect_uri": {redirect}, "state": {"s t"}, "scope": {scope}, "resource": {c.o.URL()},
		"code_challenge_method": {"S256"}, "code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])},
	}
	for i := 0; i < len(more); i += 2 {
		q.Set(more[i], more[i+1])
	}
	resp, _ := c.get(c.as["authorization_endpoint"].(string) + "?" + q.Encode())
	to, err := resp.Location()
	if err != nil || resp.StatusCode != http.StatusFound || !strings.HasPrefix(to.String(), redirect+"?") {
		c.t.Fatalf("authorize: HTTP %d to %v", resp.StatusCode, to)
	}
	return to.Query()
}

// post is a token request, not yet sent.
func (c *client) post(pairs ...string) *http.Request {
	c.t.Helper()
	form := url.Values{"client_id": {c.id}, "resource": {c.o.URL()}}
	if c.secret != "" && !c.basic {
		form.Set("client_secret", c.secret)
	}
	for i := 0; i < len(pairs); i += 2 {
		form.Set(pairs[i], pairs[i+1])
	}
	r := c.request(http.MethodPost, c.as["token_endpoint"].(string), form.Encode())
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if c.basic {
		r.SetBasicAuth(url.QueryEscape(c.id), url.QueryEscape(c.secret))
	}
	return r
}

type tokens struct{ access, refresh string }

// token sends a token request. With a problem, that is what must come.
func (c *client) token(problem string, pairs ...string) tokens {
	c.t.Helper()
	resp, doc := c.do(c.post(pairs...))
	if got, _ := doc["error"].(string); got != problem || (problem == "") != (resp.StatusCode == http.StatusOK) {
		c.t.Fatalf("token: HTTP %d: %v, want %q", resp.StatusCode, doc, problem)
	}
	var out tokens
	out.access, _ = doc["access_token"].(string)
	out.refresh, _ = doc["refresh_token"].(string)
	return out
}

func (c *client) redeem(problem, code, verifier string) tokens {
	c.t.Helper()
	return c.token(problem, "grant_type", "authorization_code", "code", code, "redirect_uri", redirect, "code_verifier", verifier)
}

func (c *client) renew(problem, refresh string) tokens {
	c.t.Helper()
	return c.token(problem, "grant_type", "refresh_token", "refresh_token", refresh)
}

// login is all of it.
func login(t *testing.T, o *mcptest.OAuth, scope string) (*client, tokens) {
	t.Helper()
	c := newClient(t, o)
	c.discover(wellKnown)
	c.register("none")
	return c, c.redeem("", c.authorize(scope).Get("code"), verifier)
}

func TestOAuthHappyPath(t *testing.T) {
	for _, method := range []string{"none", "client_secret_basic", "client_secret_post"} {
		t.Run(method, func(t *testing.T) {
			o := mcptest.OAuthScript{Scope: "read write", ScopesSupported: []string{"read", "write"}}.New(t)
			c := newClient(t, o)
			challenge := c.wantMCP("", http.StatusUnauthorized).Header.Get("WWW-Authenticate")
			found := regexp.MustCompile(`^Bearer resource_metadata="(.*)", scope="read write"$`).FindStringSubmatch(challenge)
			if found == nil {
				t.Fatalf("challenge: %s", challenge)
			}
			_, prm := c.get(found[1])
			if prm["resource"] != o.URL() || prm["authorization_servers"].([]any)[0] != o.Issuer() {
				t.Fatalf("resource metadata: %v", prm)
			}
			c.discover(wellKnown)
			c.register(method)
			back := c.authorize("read")
			if back.Get("state") != "s t" || back.Get("iss") != o.Issuer() || o.LastAuthorize().Get("scope") != "read" {
				t.Errorf("redirect: %v", back)
			}
			got := c.redeem("", back.Get("code"), verifier)
			if o.LastToken().Get("resource") != o.URL() || !strings.Contains(string(o.LastRegister()), `"me"`) {
				t.Errorf("last requests: %v, %s", o.LastToken(), o.LastRegister())
			}
			for msg, want := range map[string]string{
				`"method":"initialize","params":{"protocolVersion":"2025-06-18"}`: `"protocolVersion":"2025-06-18"`,
				`"method":"initialize","params":{"protocolVersion":"2026-07-28"}`: `"protocolVersion":"2025-11-25"`,
				`"method":"tools/list"`: `[{"inputSchema":{"type":"object"},"name":"echo"}]`,
				`"method":"tools/call","params":{"name":"echo","arguments":{"text":"hello \""}}`: `"text":"hello \""`,
				`"method":"server/discover"`: `"code":-32601`,
			} {
				resp, doc := c.mcp(got.access, `{"jsonrpc":"2.0","id":1,`+msg+`}`)
				if text, _ := json.Marshal(doc); resp.StatusCode != http.StatusOK || !strings.Contains(string(text), want) {
					t.Errorf("%s: HTTP %d: %s", msg, resp.StatusCode, text)
				}
			}
			if resp, _ := c.mcp(got.access, `{"jsonrpc":"2.0","method":"notifications/initialized"}`); resp.StatusCode != http.StatusAccepted {
				t.Errorf("notification: HTTP %d", resp.StatusCode)
			}
			for verb, status := range map[string]int{http.MethodGet: 405, http.MethodDelete: 200} {
				r := c.request(verb, o.URL(), "")
				r.Header.Set("Authorization", "Bearer "+got.access)
				if resp, _ := c.do(r); resp.StatusCode != status {
					t.Errorf("%s: HTTP %d", verb, resp.StatusCode)
				}
			}
			n := o.Counts()
			if n.WithoutToken != 1 || n.WithToken != 8 || n.PRM != 1 || n.Metadata != 1 || n.Register != 1 || n.Authorize != 1 || n.Token["authorization_code"] != 1 {
				t.Errorf("counts: %+v", n)
			}
			for _, s := range []string{got.access, got.refresh, back.Get("code"), verifier, c.secret} {
				if s != "" && !slices.Contains(o.Secrets(), s) {
					t.Errorf("%s is no secret: %q", s, o.Secrets())
				}
			}
			c.secret, c.basic = c.secret+"x", method == "client_secret_basic"
			c.token("invalid_client", "grant_type", "refresh_token", "refresh_token", got.refresh)
		})
	}
}

func TestOAuthRotation(t *testing.T) {
	o := mcptest.OAuthScript{Grace: time.Hour}.New(t)
	c, first := login(t, o, "")
	o.ExpireAccess()
	if h := c.wantMCP(first.access, http.StatusUnauthorized).Header.Get("WWW-Authenticate"); !strings.Contains(h, `error="invalid_token"`) {
		t.Errorf("challenge: %s", h)
	}
	second := c.renew("", first.refresh)
	c.wantMCP(second.access, http.StatusOK)
	if again := c.renew("", first.refresh); again != second || second.refresh == first.refresh {
		t.Errorf("in time: %v after %v", again, second)
	}
	_, other := login(t, o, "")
	o.Change(func(s *mcptest.OAuthScript) { s.Grace = 0 })
	if o.ReuseDetected() {
		t.Error("reuse was detected in time")
	}
	c.renew("invalid_grant", first.refresh)
	c.renew("invalid_grant", second.refresh)
	c.wantMCP(second.access, http.StatusUnauthorized)
	c.wantMCP(other.access, http.StatusOK)
	if all, revoked := o.Families(); !o.ReuseDetected() || all != 2 || revoked != 1 {
		t.Errorf("reuse %t, %d of %d families revoked", o.ReuseDetected(), revoked, all)
	}
	o.RevokeAll()
	c.wantMCP(other.access, http.StatusUnauthorized)
}

func TestOAuthRefreshOtherwise(t *testing.T) {
	o := mcptest.OAuthScript{NoRotation: true, TokenTTL: time.Nanosecond}.New(t)
	c, first := login(t, o, "")
	c.wantMCP(first.access, http.StatusUnauthorized)
	o.Change(func(s *mcptest.OAuthScript) { s.TokenTTL, s.AccessTokenFailures, s.TokenFailures = 0, 1, 1 })
	if resp, _ := c.do(c.post()); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("busy: HTTP %d", resp.StatusCode)
	}
	c.renew("", first.refresh)
	second := c.renew("", first.refresh)
	if second.refresh != "" {
		t.Errorf("rotated: %v", second)
	}
	c.wantMCP(second.access, http.StatusUnauthorized)
	c.wantMCP(second.access, http.StatusOK)

	try := func() {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if resp, err := c.http.Do(c.post("grant_type", "refresh_token", "refresh_token", first.refresh).WithContext(ctx)); err == nil {
			resp.Body.Close()
			t.Errorf("hang: HTTP %d", resp.StatusCode)
		}
	}
	o.Change(func(s *mcptest.OAuthScript) { s.NoRotation, s.TokenDelay = false, time.Hour })
	try()
	o.Change(func(s *mcptest.OAuthScript) { s.NoRotation, s.TokenDelay = true, 0 })
	c.renew("", first.refresh) // the one who left has changed nothing
	o.Change(func(s *mcptest.OAuthScript) { s.NoRotation, s.TokenCommitThenHang = false, true })
	try()
	c.renew("invalid_grant", first.refresh)
	if !o.ReuseDetected() {
		t.Error("the refresh was not done")
	}
}

func TestOAuthCode(t *testing.T) {
	o := mcptest.OAuthScript{}.New(t)
	c, _ := login(t, o, "")
	code := c.authorize("").Get("code")
	c.redeem("invalid_grant", code, strings.ToUpper(verifier))
	c.redeem("invalid_grant", code, verifier)
	code = c.authorize("").Get("code")
	got := c.redeem("", code, verifier)
	c.redeem("invalid_grant", code, verifier)
	c.wantMCP(got.access, http.StatusUnauthorized)
	c.token("invalid_target", "grant_type", "authorization_code", "resource", "")
	for _, bad := range [][2]string{
		{"response_type", "token"}, {"state", ""}, {"code_challenge", ""}, {"code_challenge_method", "plain"}, {"resource", ""}, {"resource", o.URL() + "/"},
	} {
		if back := c.authorize("", bad[0], bad[1]); back.Get("error") == "" || back.Has("code") {
			t.Errorf("%q: %v", bad, back)
		}
	}
	for _, bad := range []string{"client_id=x&redirect_uri=" + redirect, "client_id=" + c.id + "&redirect_uri=http://127.0.0.1:7778/callback"} {
		if resp, _ := c.get(o.Issuer() + "/authorize?" + bad); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: HTTP %d", bad, resp.StatusCode)
		}
	}
	o.Change(func(s *mcptest.OAuthScript) { s.AnyPort = true })
	if resp, _ := c.get(o.Issuer() + "/authorize?client_id=" + c.id + "&redirect_uri=http://127.0.0.1:7778/callback"); resp.StatusCode != http.StatusFound {
		t.Errorf("any port: HTTP %d", resp.StatusCode)
	}
	for param, want := range map[string]string{"": o.Issuer(), "off": "", "missing": "", "wrong": o.Issuer() + "/another"} {
		o.Change(func(s *mcptest.OAuthScript) { s.IssParam, s.AuthorizeError = param, "access_denied" })
		if back := c.authorize(""); back.Get("iss") != want || back.Get("error") != "access_denied" || back.Get("state") != "s t" {
			t.Errorf("iss %q: %v", param, back)
		}
	}
	o.ForgetClients()
	c.renew("invalid_client", got.refresh)
}

func TestOAuthScope(t *testing.T) {
	o := mcptest.OAuthScript{RequireScope: map[string]string{"write": "files:write"}}.New(t)
	call := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write","arguments":{"text":"done"}}}`
	c, got := login(t, o, "files:read")
	c.wantMCP(got.access, http.StatusOK)
	resp, _ := c.mcp(got.access, call)
	if h := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != http.StatusForbidden ||
		!strings.Contains(h, `error="insufficient_scope"`) || !strings.Contains(h, `scope="files:write"`) {
		t.Errorf("HTTP %d: %s", resp.StatusCode, h)
	}
	got = c.redeem("", c.authorize("files:read files:write").Get("code"), verifier)
	if resp, doc := c.mcp(got.access, call); resp.StatusCode != http.StatusOK {
		t.Errorf("HTTP %d: %v", resp.StatusCode, doc)
	}
	o.Change(func(s *mcptest.OAuthScript) { s.ScopesSupported = []string{"files:read"} })
	if back := c.authorize("files:read files:write"); back.Get("error") != "invalid_scope" {
		t.Errorf("unknown scope: %v", back)
	}
}

func TestOAuthPlaces(t *testing.T) {
	const prm = "/.well-known/oauth-protected-resource"
	for _, test := range []struct {
		script mcptest.OAuthScript
		at     []string
	}{
		{mcptest.OAuthScript{}, []string{prm + "/mcp", wellKnown}},
		{mcptest.OAuthScript{PRM: "path", IssuerPath: "/tenant1"}, []string{prm + "/mcp", wellKnown + "/tenant1"}},
		{mcptest.OAuthScript{PRM: "root", IssuerPath: "/tenant1", Metadata: "oidc"}, []string{prm, "/.well-known/openid-configuration/tenant1"}},
		{mcptest.OAuthScript{PRM: "challenge", IssuerPath: "/tenant1", Metadata: "appended"}, []string{"/tenant1/.well-known/openid-configuration"}},
		{mcptest.OAuthScript{PRM: "none"}, []string{wellKnown}},
		{mcptest.OAuthScript{PRM: "none", Metadata: "none"}, nil},
	} {
		o := test.script.New(t)
		c := newClient(t, o)
		var at []string
		for _, path := range []string{
			prm + "/mcp", prm, wellKnown, wellKnown + "/tenant1", "/.well-known/openid-configuration",
			"/.well-known/openid-configuration/tenant1", "/tenant1/.well-known/openid-configuration",
		} {
			if resp, _ := c.get(strings.TrimSuffix(o.URL(), "/mcp") + path); resp.StatusCode == http.StatusOK {
				at = append(at, path)
			}
		}
		if !slices.Equal(at, test.at) {
			t.Errorf("%+v: metadata at %q", test.script, at)
		}
		challenge := c.wantMCP("", http.StatusUnauthorized).Header.Get("WWW-Authenticate")
		announced := strings.Contains(challenge, "resource_metadata=")
		if announced != (test.script.PRM == "" || test.script.PRM == "challenge") {
			t.Errorf("%+v: %s", test.script, challenge)
		}
		if announced {
			if resp, doc := c.get(strings.Split(challenge, `"`)[1]); resp.StatusCode != http.StatusOK || doc["resource"] != o.URL() {
				t.Errorf("%+v: HTTP %d: %v", test.script, resp.StatusCode, doc)
			}
		}
	}
}

func TestOAuthClients(t *testing.T) {
	o := mcptest.OAuthScript{
		NoRegistration: true, NoPKCE: true, CIMD: true, IssParam: "off", PRMResource: "https://elsewhere.example/mcp",
		Client: mcptest.OAuthClient{ID: "https me", Secret: "p+ss: w&rd"},
	}.New(t)
	c := newClient(t, o)
	c.discover(wellKnown)
	for _, key := range []string{"registration_endpoint", "code_challenge_methods_supported", "authorization_response_iss_parameter_supported"} {
		if c.as[key] != nil {
			t.Errorf("%s: %v", key, c.as[key])
		}
	}
	c.id, c.secret, c.basic = "https me", "p+ss: w&rd", true
	got := c.token("", "grant_type", "client_credentials")
	c.wantMCP(got.access, http.StatusOK)
	if got.refresh != "" || !slices.Contains(o.Secrets(), c.secret) {
		t.Errorf("client credentials: %v, %q", got, o.Secrets())
	}
	c.basic = false
	c.token("invalid_client", "grant_type", "client_credentials")

	c.id, c.secret = "https://client.example/me.json", ""
	back := c.authorize("", "code_challenge", "", "code_challenge_method", "", "resource", "https://elsewhere.example/mcp")
	if c.wantMCP(c.redeem("", back.Get("code"), "").access, http.StatusOK); back.Has("iss") {
		t.Errorf("iss: %v", back)
	}
	c.token("unauthorized_client", "grant_type", "client_credentials")
	o.Change(func(s *mcptest.OAuthScript) { s.CIMD, s.IssuerMismatch = false, true })
	c.token("invalid_client", "grant_type", "client_credentials")
	if _, doc := c.get(o.Issuer() + wellKnown); doc["issuer"] == o.Issuer() || doc["issuer"] == nil {
		t.Errorf("issuer: %v", doc["issuer"])
	}
	if up := o.Upstream("guarded"); up.Name != "guarded" || up.URL != o.URL() {
		t.Errorf("upstream: %+v", up)
	}
}
