package mcptest

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/config"
)

// OAuthScript says how an OAuth-protected server behaves. The zero value is one
// that does everything as it should: it announces its metadata in the challenge,
// registers clients, wants PKCE and a resource, sends iss, and rotates refresh
// tokens.
type OAuthScript struct {
	Scope        string            // what the challenge of a 401 asks for; "" leaves it out
	RequireScope map[string]string // by tool: the scopes without which a call is answered by 403; these tools are listed beside echo

	AccessTokenFailures int // so many requests with a valid token are answered by 401 all the same

	// PRM says where the protected resource metadata is. By default it is at the
	// well-known path of the resource and the challenge says so. "challenge": at
	// a place that only the challenge knows; "path" and "root": at the well-known
	// path of the resource or of the origin, and the challenge does not say so;
	// "none": nowhere, and the authorization server is at the origin (2025-03-26).
	PRM         string
	PRMResource string // the resource that it names; default [OAuth.URL]

	IssuerPath      string   // of the authorization server, such as "/tenant1"; default none
	Metadata        string   // its metadata is default: at the path of RFC 8414; "oidc": at the like path of OpenID; "appended": after the issuer's path; "none": nowhere
	IssuerMismatch  bool     // it says to be another issuer
	NoPKCE          bool     // it does not say that it knows PKCE, and does without
	IssParam        string   // "off": iss is neither announced nor sent; "wrong": another's; "missing": announced, not sent
	ScopesSupported []string // in both metadata; others are refused. Default: not said, and all are granted
	AuthorizeError  string   // such as "access_denied": what the user's answer is

	CIMD           bool        // it takes an https URL as a client_id
	NoRegistration bool        // clients cannot register
	AuthMethods    []string    // of clients at the token endpoint; one that registers with another gets the first. Default: none, client_secret_basic, client_secret_post
	Client         OAuthClient // a client that it knows already, unless the ID is ""
	AnyPort        bool        // of a loopback redirect URI the port does not matter (RFC 8252)

	TokenTTL            time.Duration // of access tokens; default an hour, and less than 0: for ever, and no expires_in
	TokenDelay          time.Duration // the token endpoint waits so long before it does anything; then a client that has gone changes nothing
	TokenFailures       int           // so many token requests are answered by 503
	TokenCommitThenHang bool          // a refresh is done, but never answered
	Grace               time.Duration // for so long a used refresh token gets the same answer again
	NoRefresh           bool          // there are no refresh tokens
	NoRotation          bool          // a refresh token stays, and a refresh answers without one
}

// OAuthClient is a client of an authorization server.
type OAuthClient struct {
	ID, Secret string
	Method     string   // "none", "client_secret_basic" or "client_secret_post"; default by whether there is a secret
	Redirects  []string // none: any https or loopback
}

// OAuthCounts says how often something was asked for. What was refused counts,
// metadata that was looked for in vain does not.
type OAuthCounts struct {
	WithToken, WithoutToken            int // MCP requests, with any bearer token or with none
	PRM, Metadata, Register, Authorize int
	Token                              map[string]int // by grant_type
}

// OAuth is an MCP server that wants a token and the authorization server that
// gives it, in the process of the test. Its user agrees to everything: the
// authorization endpoint redirects at once.
type OAuth struct {
	srv *httptest.Server

	mu      sync.Mutex
	script  OAuthScript
	counts  OAuthCounts
	clients map[string]OAuthClient
	codes   map[string]*code
	access  map[string]access
	refresh map[string]*refresh
	grants  []*grant
	reused  bool
	secrets []string

	lastAuthorize, lastToken url.Values
	lastRegister             json.RawMessage
}

// grant is what one authorization has led to: a family of tokens.
type grant struct {
	client, scope string
	revoked       bool
}

type code struct {
	*grant
	query url.Values // of the authorization request
	used  bool
}

type access struct {
	*grant
	scope string
	until time.Time // zero: for ever
}

type refresh struct {
	*grant
	used   time.Time
	answer []byte // nil until it is used
}

// New starts the server; it ends with the test.
func (s OAuthScript) New(t testing.TB) *OAuth {
	t.Helper()
	if s.PRM == "none" && s.IssuerPath != "" {
		t.Fatal("without resource metadata the issuer is the origin")
	}
	o := &OAuth{
		script: s, counts: OAuthCounts{Token: map[string]int{}}, clients: map[string]OAuthClient{},
		codes: map[string]*code{}, access: map[string]access{}, refresh: map[string]*refresh{},
	}
	o.note(s.Client.Secret)
	o.srv = httptest.NewUnstartedServer(http.HandlerFunc(o.serve))
	o.srv.Start()
	t.Cleanup(func() {
		o.srv.CloseClientConnections()
		o.srv.Close()
	})
	return o
}

// URL is the MCP endpoint.
func (o *OAuth) URL() string { return o.srv.URL + "/mcp" }

// Issuer is the authorization server.
func (o *OAuth) Issuer() string { return o.srv.URL + o.now().IssuerPath }

// Upstream returns the config of an upstream that is this server.
func (o *OAuth) Upstream(name string) config.Upstream {
	return config.Upstream{Name: name, URL: o.URL(), Connect: config.DefaultConnect}
}

// Change changes the script while the server runs. Maps and slices are to be
// replaced, not modified.
func (o *OAuth) Change(change func(*OAuthScript)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	change(&o.script)
	o.note(o.script.Client.Secret)
}

// Counts returns what was asked for so far.
func (o *OAuth) Counts() OAuthCounts {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.counts
	c.Token = maps.Clone(c.Token)
	return c
}

// ExpireAccess makes all access tokens invalid; the refresh tokens stay.
func (o *OAuth) ExpireAccess() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.access)
}

// RevokeAll makes all tokens and codes invalid.
func (o *OAuth) RevokeAll() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, g := range o.grants {
		g.revoked = true
	}
}

// ForgetClients makes the registered clients unknown.
func (o *OAuth) ForgetClients() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.clients)
}

// Families says how many families of tokens there are, one for each
// authorization, and how many of them are revoked.
func (o *OAuth) Families() (all, revoked int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, g := range o.grants {
		if g.revoked {
			revoked++
		}
	}
	return len(o.grants), revoked
}

// ReuseDetected reports whether a used refresh token came again, too late for
// Grace.
func (o *OAuth) ReuseDetected() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.reused
}

// Secrets returns every token, code, client secret and verifier that the server
// has given out or got, right or wrong; of basic authentication also the encoded
// form.
func (o *OAuth) Secrets() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.secrets)
}

// LastAuthorize is the query of the last authorization request.
func (o *OAuth) LastAuthorize() url.Values {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lastAuthorize
}

// LastToken is the form of the last token request.
func (o *OAuth) LastToken() url.Values {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lastToken
}

// LastRegister is the body of the last registration.
func (o *OAuth) LastRegister() json.RawMessage {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lastRegister
}

// now is the script as it is now.
func (o *OAuth) now() OAuthScript {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.script
}

// note keeps secrets. The caller holds the lock, as for all that follows and
// says so.
func (o *OAuth) note(secrets ...string) {
	for _, s := range secrets {
		if s != "" && !slices.Contains(o.secrets, s) {
			o.secrets = append(o.secrets, s)
		}
	}
}

// secret makes a secret. The caller holds the lock.
func (o *OAuth) secret(prefix string) string {
	s := prefix + "-" + rand.Text()
	o.note(s)
	return s
}

func (o *OAuth) serve(w http.ResponseWriter, r *http.Request) {
	s := o.now()
	switch r.URL.Path {
	case "/mcp":
		o.mcp(w, r, s)
	case s.prmPath():
		o.count(func(c *OAuthCounts) { c.PRM++ })
		respond(w, http.StatusOK, o.prm(s))
	case s.metadataPath():
		o.count(func(c *OAuthCounts) { c.Metadata++ })
		respond(w, http.StatusOK, o.metadata(s))
	case s.IssuerPath + "/authorize":
		o.authorize(w, r, s)
	case s.IssuerPath + "/token":
		o.token(w, r, s)
	case s.IssuerPath + "/register":
		o.register(w, r, s)
	default:
		http.NotFound(w, r)
	}
}

func (o *OAuth) count(one func(*OAuthCounts)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	one(&o.counts)
}

func respond(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// refuse is an error answer of the authorization server.
func refuse(code, why string) (status int, body []byte) {
	status = http.StatusBadRequest
	if code == "invalid_client" {
		status = http.StatusUnauthorized
	}
	return status, []byte(quote(map[string]string{"error": code, "error_description": why}))
}

// The resource.

func (o *OAuth) mcp(w http.ResponseWriter, r *http.Request, s OAuthScript) {
	token, has := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	scope, valid := o.check(token, has)
	if !valid {
		problem := ""
		if has {
			problem = "invalid_token"
		}
		o.challenge(w, s, http.StatusUnauthorized, problem, s.Scope)
		return
	}
	switch r.Method {
	case http.MethodPost:
	case http.MethodDelete:
		return
	default:
		w.Header().Set("Allow", "POST, DELETE")
		http.Error(w, "no stream", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(r.Body)
	var m message
	if err == nil {
		err = json.Unmarshal(body, &m)
	}
	need := s.RequireScope[m.Params.Name]
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	case m.ID == nil || m.Method == "":
		w.WriteHeader(http.StatusAccepted)
	case m.Method == "tools/call" && lacks(scope, need):
		o.challenge(w, s, http.StatusForbidden, "insufficient_scope", need)
	default:
		respond(w, http.StatusOK, s.answer(m, body))
	}
}

// check says whether a request may pass, and with which scope.
func (o *OAuth) check(token string, has bool) (scope string, valid bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !has {
		o.counts.WithoutToken++
		return "", false
	}
	o.counts.WithToken++
	o.note(token)
	a, known := o.access[token]
	switch {
	case !known || a.revoked || !a.until.IsZero() && time.Now().After(a.until):
		return "", false
	case o.script.AccessTokenFailures > 0:
		o.script.AccessTokenFailures--
		return "", false
	}
	return a.scope, true
}

func (o *OAuth) challenge(w http.ResponseWriter, s OAuthScript, status int, problem, scope string) {
	var params []string
	if s.PRM == "" || s.PRM == "challenge" {
		params = append(params, `resource_metadata="`+o.srv.URL+s.prmPath()+`"`)
	}
	if scope != "" {
		params = append(params, `scope="`+scope+`"`)
	}
	if problem != "" {
		params = append(params, `error="`+problem+`"`)
	}
	w.Header().Set("WWW-Authenticate", strings.TrimSpace("Bearer "+strings.Join(params, ", ")))
	http.Error(w, cmp.Or(problem, "a token is needed"), status)
}

const latest = "2025-11-25"

func (s OAuthScript) answer(m message, body []byte) []byte {
	tools := slices.Sorted(maps.Keys(s.RequireScope))
	if !slices.Contains(tools, "echo") {
		tools = append([]string{"echo"}, tools...)
	}
	fail := func(code, why string) []byte {
		return []byte(`{"jsonrpc":"2.0","id":` + string(m.ID) + `,"error":{"code":` + code + `,"message":` + quote(why) + `}}`)
	}
	switch m.Method {
	case "initialize":
		var asked struct {
			Params struct {
				Version string `json:"protocolVersion"`
			} `json:"params"`
		}
		if err := json.Unmarshal(body, &asked); err != nil {
			return fail("-32602", err.Error())
		}
		version := asked.Params.Version
		if version == "" || version > latest {
			version = latest
		}
		return result(m.ID, `{"protocolVersion":`+quote(version)+`,"capabilities":{"tools":{}},"serverInfo":{"name":"guarded","version":"1.0.0"}}`)
	case "ping":
		return result(m.ID, "{}")
	case "tools/list":
		var defs []json.RawMessage
		for _, name := range tools {
			defs = append(defs, Tool(name))
		}
		return result(m.ID, `{"tools":`+string(Tools(defs...))+`}`)
	case "tools/call":
		var a arguments
		if !slices.Contains(tools, m.Params.Name) {
			return fail("-32602", "there is no such tool")
		}
		if len(m.Params.Arguments) > 0 {
			if err := json.Unmarshal(m.Params.Arguments, &a); err != nil {
				return fail("-32602", err.Error())
			}
		}
		return result(m.ID, Text(a.Text))
	}
	return fail("-32601", "method not found")
}

// prmPath is where the resource metadata is, "" if nowhere.
func (s OAuthScript) prmPath() string {
	switch s.PRM {
	case "", "path":
		return "/.well-known/oauth-protected-resource/mcp"
	case "root":
		return "/.well-known/oauth-protected-resource"
	case "challenge":
		return "/about/the/resource"
	}
	return ""
}

func (o *OAuth) prm(s OAuthScript) []byte {
	doc := map[string]any{
		"resource":                 cmp.Or(s.PRMResource, o.URL()),
		"authorization_servers":    []string{o.srv.URL + s.IssuerPath},
		"bearer_methods_supported": []string{"header"},
	}
	if len(s.ScopesSupported) > 0 {
		doc["scopes_supported"] = s.ScopesSupported
	}
	return []byte(quote(doc))
}

// lacks reports whether have is without one of the scopes of want.
func lacks(have, want string) bool {
	scopes := strings.Fields(have)
	return slices.ContainsFunc(strings.Fields(want), func(s string) bool { return !slices.Contains(scopes, s) })
}

// The authorization server.

// metadataPath is where its metadata is, "" if nowhere.
func (s OAuthScript) metadataPath() string {
	switch s.Metadata {
	case "":
		return "/.well-known/oauth-authorization-server" + s.IssuerPath
	case "oidc":
		return "/.well-known/openid-configuration" + s.IssuerPath
	case "appended":
		return s.IssuerPath + "/.well-known/openid-configuration"
	}
	return ""
}

func (s OAuthScript) authMethods() []string {
	if len(s.AuthMethods) > 0 {
		return s.AuthMethods
	}
	return []string{"none", "client_secret_basic", "client_secret_post"}
}

func (o *OAuth) metadata(s OAuthScript) []byte {
	issuer := o.srv.URL + s.IssuerPath
	doc := map[string]any{
		"issuer":                                issuer,
		"authorization_endpoint":                issuer + "/authorize",
		"token_endpoint":                        issuer + "/token",
		"response_types_supported":              []string{"code"},
		"grant_types_supported":                 []string{"authorization_code", "refresh_token", "client_credentials"},
		"token_endpoint_auth_methods_supported": s.authMethods(),
	}
	if s.IssuerMismatch {
		doc["issuer"] = o.srv.URL + "/another"
	}
	if !s.NoRegistration {
		doc["registration_endpoint"] = issuer + "/register"
	}
	if !s.NoPKCE {
		doc["code_challenge_methods_supported"] = []string{"S256"}
	}
	if s.IssParam != "off" {
		doc["authorization_response_iss_parameter_supported"] = true
	}
	if s.CIMD {
		doc["client_id_metadata_document_supported"] = true
	}
	if len(s.ScopesSupported) > 0 {
		doc["scopes_supported"] = s.ScopesSupported
	}
	if s.Metadata != "" { // what OpenID wants
		doc["jwks_uri"] = issuer + "/jwks"
		doc["subject_types_supported"] = []string{"public"}
		doc["id_token_signing_alg_values_supported"] = []string{"RS256"}
	}
	return []byte(quote(doc))
}

func (o *OAuth) register(w http.ResponseWriter, r *http.Request, s OAuthScript) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.counts.Register++
	o.lastRegister = body
	var asked struct {
		Redirects []string `json:"redirect_uris"`
		Method    string   `json:"token_endpoint_auth_method"`
		Grants    []string `json:"grant_types"`
	}
	var doc map[string]any // what the client says of itself comes back
	switch {
	case s.NoRegistration:
		http.NotFound(w, r)
		return
	case r.Method != http.MethodPost:
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	case json.Unmarshal(body, &asked) != nil || json.Unmarshal(body, &doc) != nil || doc == nil:
		status, body := refuse("invalid_client_metadata", "this is no client")
		respond(w, status, body)
		return
	case len(asked.Redirects) == 0 && !slices.Equal(asked.Grants, []string{"client_credentials"}) ||
		slices.ContainsFunc(asked.Redirects, func(r string) bool { return !OAuthClient{}.takes(r, false) }):
		status, body := refuse("invalid_redirect_uri", "redirect_uris must be https or loopback")
		respond(w, status, body)
		return
	}
	c := OAuthClient{ID: "client-" + rand.Text(), Method: cmp.Or(asked.Method, "client_secret_basic"), Redirects: asked.Redirects}
	if methods := s.authMethods(); !slices.Contains(methods, c.Method) {
		c.Method = methods[0]
	}
	doc["client_id"], doc["client_id_issued_at"] = c.ID, time.Now().Unix()
	doc["token_endpoint_auth_method"] = c.Method
	if c.Method != "none" {
		c.Secret = o.secret("secret")
		doc["client_secret"], doc["client_secret_expires_at"] = c.Secret, 0
	}
	o.clients[c.ID] = c
	respond(w, http.StatusCreated, []byte(quote(doc)))
}

// takes reports whether the client may be answered at a URI.
func (c OAuthClient) takes(uri string, anyPort bool) bool {
	u, err := url.Parse(uri)
	if err != nil || u.Host == "" || u.Fragment != "" || u.Scheme != "https" && !(u.Scheme == "http" && loopback(u)) {
		return false
	}
	return len(c.Redirects) == 0 || slices.ContainsFunc(c.Redirects, func(r string) bool {
		return r == uri || anyPort && loopback(u) && portless(r) == portless(uri)
	})
}

func loopback(u *url.URL) bool {
	return slices.Contains([]string{"127.0.0.1", "::1", "localhost"}, u.Hostname())
}

func portless(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return uri
	}
	u.Host = u.Hostname()
	return u.String()
}

// client looks a client up. The caller holds the lock.
func (o *OAuth) client(s OAuthScript, id string) (OAuthClient, bool) {
	if id != "" && id == s.Client.ID {
		c := s.Client
		if c.Method == "" && c.Secret != "" {
			c.Method = "client_secret_basic"
		}
		c.Method = cmp.Or(c.Method, "none")
		return c, true
	}
	if u, err := url.Parse(id); s.CIMD && err == nil && u.Scheme == "https" && u.Host != "" && len(u.Path) > 1 {
		return OAuthClient{ID: id, Method: "none"}, true
	}
	c, ok := o.clients[id]
	return c, ok
}

// target reports whether a resource is this one. Clients of 2025-03-26 name none.
func (o *OAuth) target(s OAuthScript, resource string) bool {
	if resource == "" {
		return s.PRM == "none"
	}
	return resource == o.URL() || resource == s.PRMResource
}

func (s OAuthScript) grantable(scope string) bool {
	return len(s.ScopesSupported) == 0 || !lacks(strings.Join(s.ScopesSupported, " "), scope)
}

func (o *OAuth) authorize(w http.ResponseWriter, r *http.Request, s OAuthScript) {
	q := r.URL.Query()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.counts.Authorize++
	o.lastAuthorize = q
	client, known := o.client(s, q.Get("client_id"))
	if !known || !client.takes(q.Get("redirect_uri"), s.AnyPort) {
		http.Error(w, "client_id or redirect_uri is unknown", http.StatusBadRequest)
		return
	}
	back, err := url.Parse(q.Get("redirect_uri"))
	if err != nil {
		panic(err) // it was parsed above
	}
	answer := back.Query()
	fail := func(code, why string) {
		answer.Set("error", code)
		answer.Set("error_description", why)
	}
	challenge, method := q.Get("code_challenge"), q.Get("code_challenge_method")
	switch {
	case q.Get("response_type") != "code":
		fail("unsupported_response_type", "response_type must be code")
	case q.Get("state") == "":
		fail("invalid_request", "state is missing")
	case (challenge != "" || !s.NoPKCE) && (method != "S256" || len(challenge) != 43):
		fail("invalid_request", "code_challenge must be of S256")
	case !o.target(s, q.Get("resource")):
		fail("invalid_target", "resource must be "+o.URL())
	case !s.grantable(q.Get("scope")):
		fail("invalid_scope", "scope is unknown")
	case s.AuthorizeError != "":
		fail(s.AuthorizeError, "the user says so")
	default:
		given := o.secret("code")
		o.codes[given] = &code{grant: o.grant(client, q.Get("scope")), query: q}
		answer.Set("code", given)
	}
	if state := q.Get("state"); state != "" {
		answer.Set("state", state)
	}
	switch s.IssParam {
	case "":
		answer.Set("iss", o.srv.URL+s.IssuerPath)
	case "wrong":
		answer.Set("iss", o.srv.URL+"/another")
	}
	back.RawQuery = answer.Encode()
	http.Redirect(w, r, back.String(), http.StatusFound)
}

// grant begins a family. The caller holds the lock.
func (o *OAuth) grant(c OAuthClient, scope string) *grant {
	g := &grant{client: c.ID, scope: scope}
	o.grants = append(o.grants, g)
	return g
}

func (o *OAuth) token(w http.ResponseWriter, r *http.Request, s OAuthScript) {
	if err := r.ParseForm(); err != nil || r.Method != http.MethodPost {
		http.Error(w, "POST a form", http.StatusBadRequest)
		return
	}
	form := r.PostForm
	if o.busy(r) {
		http.Error(w, "come again", http.StatusServiceUnavailable)
		return
	}
	if !pause(r.Context(), s.TokenDelay) {
		panic(errAbort)
	}
	status, body := o.exchange(r, s)
	if s.TokenCommitThenHang && form.Get("grant_type") == "refresh_token" && status == http.StatusOK {
		<-r.Context().Done()
		panic(errAbort)
	}
	if _, _, basic := r.BasicAuth(); basic && status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="token"`)
	}
	respond(w, status, body)
}

// busy notes a token request and reports whether it is one of TokenFailures.
func (o *OAuth) busy(r *http.Request) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	form := r.PostForm
	o.counts.Token[form.Get("grant_type")]++
	o.lastToken = form
	for _, key := range []string{"code", "code_verifier", "refresh_token", "client_secret"} {
		o.note(form[key]...)
	}
	if _, secret, basic := r.BasicAuth(); basic {
		_, encoded, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		o.note(encoded, unescape(secret))
	}
	if o.script.TokenFailures > 0 {
		o.script.TokenFailures--
		return true
	}
	return false
}

// pause reports whether the time went by before the context ended.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// unescape undoes what RFC 6749 does to the halves of basic authentication.
func unescape(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}

// authenticate says which client asks, if it proves so in its own way. The
// caller holds the lock.
func (o *OAuth) authenticate(r *http.Request, s OAuthScript) (OAuthClient, bool) {
	id, secret, method := r.PostForm.Get("client_id"), r.PostForm.Get("client_secret"), "none"
	if secret != "" {
		method = "client_secret_post"
	}
	if user, password, basic := r.BasicAuth(); basic {
		if secret != "" || id != "" && id != unescape(user) {
			return OAuthClient{}, false
		}
		id, secret, method = unescape(user), unescape(password), "client_secret_basic"
	}
	c, known := o.client(s, id)
	return c, known && c.Method == method && c.Secret == secret
}

// exchange is the token endpoint.
func (o *OAuth) exchange(r *http.Request, s OAuthScript) (status int, body []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	form := r.PostForm
	client, ok := o.authenticate(r, s)
	if !ok {
		return refuse("invalid_client", "the client is unknown or does not authenticate as registered")
	}
	if !o.target(s, form.Get("resource")) {
		return refuse("invalid_target", "resource must be "+o.URL())
	}
	switch form.Get("grant_type") {
	case "authorization_code":
		return o.redeem(form, s, client)
	case "refresh_token":
		return o.renew(form, s, client)
	case "client_credentials":
		switch scope := form.Get("scope"); {
		case client.Method == "none":
			return refuse("unauthorized_client", "the client has no secret")
		case !s.grantable(scope):
			return refuse("invalid_scope", "scope is unknown")
		default:
			return http.StatusOK, o.issue(s, o.grant(client, scope), scope, false)
		}
	}
	return refuse("unsupported_grant_type", "grant_type is unknown")
}

// redeem takes a code, once. The caller holds the lock.
func (o *OAuth) redeem(form url.Values, s OAuthScript, client OAuthClient) (status int, body []byte) {
	c := o.codes[form.Get("code")]
	if c == nil || c.client != client.ID || c.revoked {
		return refuse("invalid_grant", "the code is unknown")
	}
	if c.used {
		c.revoked = true
		return refuse("invalid_grant", "the code was used before")
	}
	c.used = true
	verifier := form.Get("code_verifier")
	sum := sha256.Sum256([]byte(verifier))
	switch challenge := c.query.Get("code_challenge"); {
	case form.Get("redirect_uri") != c.query.Get("redirect_uri"):
		return refuse("invalid_grant", "redirect_uri is another")
	case challenge == "" && verifier != "",
		challenge != "" && (len(verifier) < 43 || challenge != base64.RawURLEncoding.EncodeToString(sum[:])):
		return refuse("invalid_grant", "code_verifier does not fit")
	}
	return http.StatusOK, o.issue(s, c.grant, c.scope, !s.NoRefresh)
}

// renew takes a refresh token, once unless the script says otherwise. The caller
// holds the lock.
func (o *OAuth) renew(form url.Values, s OAuthScript, client OAuthClient) (status int, body []byte) {
	t := o.refresh[form.Get("refresh_token")]
	if t == nil || t.client != client.ID || t.revoked {
		return refuse("invalid_grant", "the refresh token is unknown or revoked")
	}
	if t.answer != nil {
		if time.Since(t.used) < s.Grace {
			return http.StatusOK, t.answer
		}
		o.reused, t.revoked = true, true
		return refuse("invalid_grant", "the refresh token was used before")
	}
	scope := cmp.Or(form.Get("scope"), t.scope)
	if lacks(t.scope, scope) {
		return refuse("invalid_scope", "the user did not grant this")
	}
	answer := o.issue(s, t.grant, scope, !s.NoRotation)
	if !s.NoRotation {
		t.used, t.answer = time.Now(), answer
	}
	return http.StatusOK, answer
}

// issue makes tokens. The caller holds the lock.
func (o *OAuth) issue(s OAuthScript, g *grant, scope string, withRefresh bool) []byte {
	a := access{grant: g, scope: scope}
	token := o.secret("access")
	doc := map[string]any{"access_token": token, "token_type": "Bearer"}
	if ttl := cmp.Or(s.TokenTTL, time.Hour); ttl > 0 {
		a.until = time.Now().Add(ttl)
		doc["expires_in"] = int(ttl / time.Second)
	}
	o.access[token] = a
	if scope != "" {
		doc["scope"] = scope
	}
	if withRefresh {
		next := o.secret("refresh")
		o.refresh[next] = &refresh{grant: g}
		doc["refresh_token"] = next
	}
	return []byte(quote(doc))
}
