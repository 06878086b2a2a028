package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml/token"
	"golang.org/x/net/http/httpguts"

	"github.com/haldir-mcp/haldir/internal/files"
	"github.com/haldir-mcp/haldir/policy"
)

// Config is a validated haldir.yaml.
type Config struct {
	Path      string
	SHA256    [sha256.Size]byte // of the file's bytes
	Session   Session
	Upstreams []Upstream
	Engine    *policy.Engine
	Ruleset   policy.Ruleset
	Warnings  Problems

	HasSession bool // the file has a session block

	file map[string]any // scalar settings that the file sets, for [Layer]
}

// Session is what a session made under this config grants.
type Session struct {
	Agent      string
	AllScopes  bool
	Scopes     []string
	SpendLimit *policy.Micros
	TTL        time.Duration
}

// Upstream is one MCP server. Exactly one of URL and Command is set. Texts may
// hold references, which are replaced at use: in URL by [Resolver.URL], in values
// of Headers and in Bearer by [Resolver.Header], elsewhere by [Resolver.Resolve].
type Upstream struct {
	Name             string
	URL              string
	Headers          []Header
	Bearer           string
	OAuth            *OAuth // nil: haldir does not sign in
	CAFile           string
	CertFile         string
	KeyFile          string
	Command          string
	Args             []string
	Env              []string
	EnvPass          []string
	Cwd              string
	Bare             bool
	TrustAnnotations bool
	Pins             string        // hold, block or warn
	Eager            bool          // command is started although its tools are known
	StopWhenIdle     time.Duration // how long without a call before command is stopped; 0 means never
	DenyRequests     []string      // of sampling, elicitation, roots
	Connect          time.Duration // for connecting and the handshake
	Call             time.Duration // for one call; 0 means no limit
	Idle             time.Duration // for a call without a sign of life; 0 means no limit
}

// OAuth is how haldir signs in to an upstream (MCP authorization). ClientSecret may
// hold references.
type OAuth struct {
	ClientID     string
	ClientSecret string
	MetadataURL  string // of a Client ID Metadata Document
	TokenAuth    string // basic, post, none or ""
	Issuer       string // "" means any
	Scopes       []string
	RedirectPort int
	Machine      bool // the client signs in for itself (client credentials)
}

// Header is one HTTP header.
type Header struct{ Name, Value string }

// Trusted reports whether the annotations of an upstream's tools count.
func (c *Config) Trusted(upstream string) bool {
	i := slices.IndexFunc(c.Upstreams, func(u Upstream) bool { return u.Name == upstream })
	return i >= 0 && c.Upstreams[i].TrustAnnotations
}

// DefaultConnect is how long connecting to an upstream may take.
const DefaultConnect = 30 * time.Second

// Load reads and validates the file at path. The error is of type [Problems]
// unless the file cannot be read.
func Load(path string) (*Config, error) {
	data, err := files.Read(path)
	if err != nil {
		return nil, fmt.Errorf("read the config: %w", err)
	}
	return Parse(data, path)
}

// Empty is the config of someone who has none: no upstreams, no policies.
func Empty() *Config {
	engine, err := policy.Compile(policy.Ruleset{})
	if err != nil {
		panic(err) // nothing in it can be wrong
	}
	return &Config{Session: Session{Agent: "default", AllScopes: true}, Engine: engine}
}

// Parse validates the text of a config; path names it in messages.
func Parse(data []byte, path string) (*Config, error) {
	c := &checker{decoder: newDecoder(path)}
	out := &Config{Path: path, SHA256: sha256.Sum256(data)}
	if c.parse(data, &c.doc) {
		// What could be read is checked all the same, so that one run shows
		// every mistake; an entry that could not is not blamed twice.
		c.broken = map[string]bool{}
		c.blame()
		c.version()
		out.Session, out.HasSession = c.session(), c.doc.Session != nil
		out.Upstreams = c.upstreams()
		out.Ruleset = c.ruleset()
		out.file = c.settings()
		c.granted(out)
		c.blame()
		out.Engine = c.compile(out.Ruleset)
	}
	c.problems.sort()
	c.warnings.sort()
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	out.Warnings = c.warnings
	return out, nil
}

// checker turns a document into a Config.
type checker struct {
	*decoder
	doc      document
	warnings Problems
	names    []string        // of the upstreams, unless one of them cannot be right
	broken   map[string]bool // entries with mistakes that reading them has found
}

// entry returns the part of a path that names a list's entry or a top-level
// key: policies[2] of policies[2].max_usd.
func entry(path string) string {
	if i := strings.IndexAny(path, "].") + 1; i > 0 && path[i-1] == ']' {
		return path[:i]
	}
	top, _, _ := strings.Cut(path, ".")
	return top
}

// blame marks the entries that have a mistake so far.
func (c *checker) blame() {
	for _, p := range c.problems {
		c.broken[entry(p.Where)] = true
	}
}

func (c *checker) fail(path, format string, args ...any) {
	c.failAt(c.at(path), path, format, args...)
}

func (c *checker) failAt(pos *token.Position, path, format string, args ...any) {
	if e := entry(path); e == "" || !c.broken[e] {
		c.problem(pos, path, format, args...)
	}
}

func (c *checker) warn(path, format string, args ...any) {
	p := c.newProblem(c.at(path), path, format, args...)
	p.Warning = true
	c.warnings = append(c.warnings, p)
}

func (c *checker) version() {
	switch {
	case !c.has("version"):
		c.failAt(nil, "version", "is missing; the file needs: version: 1")
	case c.doc.Version != 1:
		c.fail("version", "is %d; this haldir knows version 1", c.doc.Version)
	}
}

// scopeName is what a scope may be called.
var scopeName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z][a-z0-9:_.-]{0,63}$`) })

func (c *checker) scopeNames(path string, names []string) {
	for i, n := range names {
		if !scopeName().MatchString(n) {
			c.fail(fmt.Sprintf("%s[%d]", path, i), "%q is no scope; use lower-case names such as read, execute, spend", n)
		}
	}
}

func (c *checker) session() Session {
	s := Session{Agent: "default", AllScopes: true}
	d := c.doc.Session
	if d == nil {
		return s
	}
	if c.has("session.agent_id") {
		s.Agent = d.AgentID
		if err := CheckID(s.Agent); err != nil {
			c.fail("session.agent_id", "%v", err)
		}
	}
	if c.has("session.scopes") {
		s.AllScopes, s.Scopes = false, d.Scopes
		c.scopeNames("session.scopes", d.Scopes)
	}
	if d.SpendLimit != nil {
		limit := policy.Micros(*d.SpendLimit)
		s.SpendLimit = &limit
	}
	if s.TTL = time.Duration(d.TTL); c.has("session.ttl") && s.TTL == 0 {
		c.fail("session.ttl", "must be longer than 0; leave it out for a session that does not expire")
	}
	return s
}

// granted warns of scopes that a session grants to no end.
func (c *checker) granted(cfg *Config) {
	for i, s := range cfg.Session.Scopes {
		if text := cfg.Unrequired(s); text != "" && scopeName().MatchString(s) {
			c.warn(fmt.Sprintf("session.scopes[%d]", i), "%s", text)
		}
	}
}

// Unrequired says that no call requires a scope under this config, "" if one may.
func (c *Config) Unrequired(scope string) string {
	known := []string{policy.ScopeRead, policy.ScopeExecute, policy.ScopeSpend}
	for _, rule := range c.Ruleset.Scopes {
		for _, s := range rule.Require {
			if !slices.Contains(known, s) {
				known = append(known, s)
			}
		}
	}
	if slices.Contains(known, scope) {
		return ""
	}
	return fmt.Sprintf("no call requires the scope %q%s", scope, Suggest(scope, known))
}

// CheckID reports what is wrong with the id of an agent or a session, from
// wherever it comes: a person must see all of it, lest it be taken for another.
func CheckID(id string) error {
	n := utf8.RuneCountInString(id)
	if n < 1 || n > 128 || !utf8.ValidString(id) || strings.ContainsFunc(id, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return errors.New("must have 1 to 128 printable characters")
	}
	return nil
}

// ownName is the upstream that haldir's own tools belong to.
const ownName = "haldir"

// upstreamName is what an upstream may be called.
var upstreamName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`) })

func (c *checker) upstreams() []Upstream {
	var out []Upstream
	names := map[string]int{}
	bare := -1
	for i := range c.doc.Upstreams {
		d := &c.doc.Upstreams[i]
		path := fmt.Sprintf("upstreams[%d]", i)
		switch {
		case d.Name == "":
			c.fail(path, "has no name")
		case !upstreamName().MatchString(d.Name):
			c.fail(path+".name", "%q is no upstream name: use up to 32 of a-z, 0-9 and -, not beginning with -", d.Name)
		case d.Name == ownName:
			c.fail(path+".name", "the name haldir is reserved for haldir's own tools")
		}
		if first, taken := names[d.Name]; taken && d.Name != "" {
			c.fail(path+".name", "%q is already the name of upstreams[%d]", d.Name, first)
		}
		names[d.Name] = i
		u := Upstream{
			Name: d.Name, URL: d.URL, Command: d.Command, Args: d.Args, Env: d.Env, EnvPass: d.EnvPass, Cwd: d.Cwd,
			TrustAnnotations: d.TrustAnnotations, DenyRequests: d.DenyRequests, Connect: DefaultConnect,
			Pins: "hold", Eager: d.Start == "eager", StopWhenIdle: time.Duration(d.StopWhenIdle),
		}
		if d.Pins != "" {
			u.Pins = d.Pins
		}
		c.word(path+".pins", d.Pins, oneOf("hold", "block", "warn"))
		c.word(path+".start", d.Start, oneOf("lazy", "eager"))
		if c.has(path+".stop_when_idle") && d.StopWhenIdle == 0 {
			c.fail(path+".stop_when_idle", "must be longer than 0; leave it out for never")
		}
		for j, kind := range d.DenyRequests {
			if !slices.Contains(requestKinds, kind) {
				c.fail(fmt.Sprintf("%s.deny_requests[%d]", path, j), "%q is nothing that a server asks a client for%s", kind, Suggest(kind, requestKinds))
			}
		}
		switch d.Expose {
		case "", "prefixed":
		case "bare":
			if u.Bare = true; bare >= 0 {
				c.fail(path+".expose", "only one upstream may be bare, and upstreams[%d] is", bare)
			}
			bare = i
		default:
			c.fail(path+".expose", "%q is neither prefixed nor bare", d.Expose)
		}
		if t := d.Timeouts; t != nil {
			u.Call = time.Duration(t.Call)
			if c.has(path+".timeouts.call") && t.Call == 0 {
				c.fail(path+".timeouts.call", "must be longer than 0; leave it out for no limit")
			}
			u.Idle = time.Duration(t.Idle)
			if c.has(path+".timeouts.idle") && t.Idle == 0 {
				c.fail(path+".timeouts.idle", "must be longer than 0; leave it out for no limit")
			}
			if c.has(path + ".timeouts.connect") {
				if u.Connect = time.Duration(t.Connect); u.Connect == 0 {
					c.fail(path+".timeouts.connect", "must be longer than 0; leave it out for %v", DefaultConnect)
				}
			}
		}
		switch {
		case d.URL != "" && d.Command != "":
			c.fail(path, "has both url and command; it can be only one of them")
		case d.URL == "" && d.Command == "":
			c.fail(path, "has neither url nor command; it needs one of them")
		case d.URL != "":
			c.remote(path, d, &u)
		default:
			c.local(path, d)
		}
		c.references(path, d)
		out = append(out, u)
		c.names = append(c.names, d.Name)
	}
	if slices.ContainsFunc(c.names, func(name string) bool { return !upstreamName().MatchString(name) }) {
		c.names = nil
	}
	return out
}

// requestKinds are what servers ask clients for.
var requestKinds = []string{"sampling", "elicitation", "roots"}

func (c *checker) remote(path string, d *upstreamDoc, u *Upstream) {
	for _, key := range []string{"args", "env", "env_pass", "cwd", "start", "stop_when_idle"} {
		if c.has(path + "." + key) {
			c.fail(path+"."+key, "belongs to a command, but this upstream has a url")
		}
	}
	c.url(path+".url", d.URL)
	for i, h := range d.Headers {
		at := fmt.Sprintf("%s.headers[%d]", path, i)
		name, value, ok := strings.Cut(h, ":")
		value = strings.TrimSpace(value)
		switch {
		case !ok || !httpguts.ValidHeaderFieldName(name):
			c.fail(at, `must be written as "Name: value"`)
		case checkHeader(value) != nil:
			c.fail(at, "%v", checkHeader(value))
		case slices.Contains(ownHeaders, http.CanonicalHeaderKey(name)):
			c.fail(at, "%s is set by haldir itself", name)
		case d.Auth != nil && http.CanonicalHeaderKey(name) == "Authorization":
			c.fail(at, "auth sets Authorization as well; keep one of them")
		}
		u.Headers = append(u.Headers, Header{name, value})
	}
	if d.Auth != nil {
		c.auth(path+".auth", d, u)
	}
	if t := d.TLS; t != nil {
		u.CAFile, u.CertFile, u.KeyFile = t.CAFile, t.CertFile, t.KeyFile
		if (t.CertFile == "") != (t.KeyFile == "") {
			c.fail(path+".tls", "needs cert_file and key_file together")
		}
		if t.CAFile == "" && t.CertFile == "" {
			c.fail(path+".tls", "names no file")
		}
	}
}

// signIns are the types of auth.
var signIns = []string{"bearer", "oauth"}

func (c *checker) auth(path string, d *upstreamDoc, u *Upstream) {
	a := d.Auth
	switch {
	case a.Type == "":
		c.fail(path, "has no type")
		return
	case !slices.Contains(signIns, a.Type):
		c.fail(path+".type", "%q is no way to sign in that this haldir knows%s", a.Type, Suggest(a.Type, signIns))
		return
	case !c.belong(path, a.Type, reflect.TypeFor[authDoc]()):
		return
	case a.Type == "bearer" && a.Token == "":
		c.fail(path, "needs a token, best as a reference such as ${env:TOKEN}")
	case a.Type == "bearer" && checkHeader(a.Token) != nil:
		c.fail(path+".token", "%v", checkHeader(a.Token))
	case a.Type == "bearer":
		u.Bearer = a.Token
	default:
		c.oauth(path, a, u)
	}
}

// scopeToken is a scope (RFC 6749 section 3.3).
var scopeToken = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[\x21\x23-\x5b\x5d-\x7e]+$`) })

func (c *checker) oauth(path string, a *authDoc, u *Upstream) {
	u.OAuth = &OAuth{
		ClientID: a.ClientID, ClientSecret: a.ClientSecret, MetadataURL: a.ClientMetadataURL, TokenAuth: a.TokenAuth, Issuer: a.Issuer,
		Scopes: a.Scopes, RedirectPort: a.RedirectPort, Machine: a.Grant == "client_credentials",
	}
	if a.Grant != "" && a.Grant != "client_credentials" && a.Grant != "authorization_code" {
		c.fail(path+".grant", "%q is neither authorization_code nor client_credentials", a.Grant)
	}
	if a.TokenAuth != "" && !slices.Contains([]string{"basic", "post", "none"}, a.TokenAuth) {
		c.fail(path+".token_auth", "%q is none of basic, post, none", a.TokenAuth)
	}
	if c.has(path+".redirect_port") && (a.RedirectPort < 1 || a.RedirectPort > 65535) {
		c.fail(path+".redirect_port", "%d is no port: use 1 to 65535, or leave it out for a free one", a.RedirectPort)
	}
	for i, s := range a.Scopes {
		if !scopeToken().MatchString(s) {
			c.fail(fmt.Sprintf("%s.scopes[%d]", path, i), "%q is no scope: it is empty, or has a space, a quote or a character beyond ASCII", s)
		}
	}
	for key, text := range map[string]string{"issuer": a.Issuer, "client_metadata_url": a.ClientMetadataURL} {
		if text != "" && checkURL(text) != nil {
			c.fail(path+"."+key, "%v", checkURL(text))
		}
	}
	if doc, err := url.Parse(a.ClientMetadataURL); a.ClientMetadataURL != "" && err == nil && (doc.Path == "" || doc.Path == "/") {
		c.fail(path+".client_metadata_url", "needs a path, as a Client ID Metadata Document has one")
	}
	switch {
	case a.ClientID == "" && a.ClientSecret != "":
		c.fail(path+".client_secret", "belongs to a client_id, which is missing")
	case a.ClientID != "" && a.ClientMetadataURL != "":
		c.fail(path+".client_metadata_url", "is a client's id like client_id; keep one of them")
	case u.OAuth.Machine && a.ClientSecret == "":
		c.fail(path, "needs client_id and client_secret for the grant client_credentials")
	}
}

// ownHeaders are those of the transport itself.
var ownHeaders = []string{"Accept", "Content-Type", "Content-Length", "Host", "Mcp-Session-Id", "Mcp-Protocol-Version", "Connection", "Transfer-Encoding"}

// url checks an upstream's url as far as that can be done before its references
// are resolved.
func (c *checker) url(path, text string) {
	plain, err := expand(text, func(_, _ string) (string, error) { return "1", nil })
	if err != nil {
		return // references says so
	}
	err = checkURL(plain)
	if early := reference().FindStringIndex(text); early != nil && openHost().MatchString(text[:early[0]]) && !errors.Is(err, errCredentials) {
		return // where it leads is known at use only
	}
	switch {
	case errors.Is(err, errNoURL):
		c.fail(path, "%q %v", redact(text), err)
	case err != nil:
		c.fail(path, "%v", err)
	}
}

// openHost matches the beginning of a URL whose host is not complete.
var openHost = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?i)^(https?://[^/?#]*)?$`) })

// What may be wrong with a url. The messages do not show it: it may hold secrets.
var (
	errNoURL       = errors.New("is no URL such as https://example.com/mcp")
	errHTTP        = errors.New("must be an https URL; http is for this machine (localhost) only")
	errCredentials = errors.New("must not hold credentials; use auth or headers with a reference such as ${env:TOKEN}")
)

func checkURL(text string) error {
	switch parsed, err := url.Parse(text); {
	case err != nil || parsed.Host == "":
		return errNoURL
	case parsed.Scheme != "https" && (parsed.Scheme != "http" || !loopback(parsed.Hostname())):
		return errHTTP
	case parsed.User != nil:
		return errCredentials
	}
	return nil
}

// redact takes out of something like a URL what may be secret: user, password
// and query.
func redact(text string) string {
	if i := strings.LastIndex(text, "@"); i >= 0 {
		scheme, _, ok := strings.Cut(text[:i], "//")
		if ok {
			scheme += "//"
		} else {
			scheme = ""
		}
		text = scheme + "…" + text[i:]
	}
	if before, _, ok := strings.Cut(text, "?"); ok {
		text = before + "?…"
	}
	return text
}

func checkHeader(value string) error {
	if !httpguts.ValidHeaderFieldValue(value) {
		return errors.New("holds a line end or another character that HTTP does not allow in a header")
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

var variableName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`) })

func (c *checker) local(path string, d *upstreamDoc) {
	for _, key := range []string{"headers", "auth", "tls"} {
		if c.has(path + "." + key) {
			c.fail(path+"."+key, "belongs to a url, but this upstream has a command")
		}
	}
	c.program(path+".command", d)
	for i, e := range d.Env {
		if name, _, ok := strings.Cut(e, "="); !ok || !variableName().MatchString(name) {
			c.fail(fmt.Sprintf("%s.env[%d]", path, i), `must be written as "NAME=value"`)
		}
	}
	for i, e := range d.EnvPass {
		if !variableName().MatchString(e) {
			c.fail(fmt.Sprintf("%s.env_pass[%d]", path, i), "%q is no variable name", e)
		}
	}
}

// word checks one that may be left out.
func (c *checker) word(path, v string, valid func(string) error) {
	if v == "" {
		return
	}
	if err := valid(v); err != nil {
		c.fail(path, "%v", err)
	}
}

// references checks the syntax of every ${…} that is resolved at use.
func (c *checker) references(path string, d *upstreamDoc) {
	check := func(at, text string) {
		if err := CheckReferences(text); err != nil {
			c.fail(at, "%v", err)
		}
	}
	list := func(name string, texts []string) {
		for i, t := range texts {
			check(fmt.Sprintf("%s.%s[%d]", path, name, i), t)
		}
	}
	check(path+".url", d.URL)
	check(path+".command", d.Command)
	check(path+".cwd", d.Cwd)
	list("args", d.Args)
	for i, t := range append([]string{d.Command}, d.Args...) {
		if strings.Contains(strings.ReplaceAll(t, "$${", ""), "${keyring:") {
			at := path + ".command"
			if i > 0 {
				at = fmt.Sprintf("%s.args[%d]", path, i-1)
			}
			c.fail(at, "a secret must not be an argument, which other users can see; give it by env, such as \"TOKEN=${keyring:NAME}\"")
		}
	}
	list("env", d.Env)
	list("headers", d.Headers)
	if d.Auth != nil {
		check(path+".auth.token", d.Auth.Token)
		check(path+".auth.client_secret", d.Auth.ClientSecret)
	}
}

func (c *checker) ruleset() policy.Ruleset {
	var rs policy.Ruleset
	for i := range c.doc.Costs {
		rs.Costs = append(rs.Costs, c.cost(i))
	}
	for i, d := range c.doc.Scopes {
		path := fmt.Sprintf("scopes[%d]", i)
		if len(d.Tools) == 0 {
			c.fail(path, "has no tools")
		}
		c.toolNames(path+".tools", d.Tools)
		c.scopeNames(path+".require", d.Require)
		rs.Scopes = append(rs.Scopes, policy.Scope{Tools: d.Tools, Require: d.Require})
	}
	for i := range c.doc.Policies {
		rs.Policies = append(rs.Policies, c.policy(i))
	}
	return rs
}

func (c *checker) cost(i int) policy.Cost {
	d := c.doc.Costs[i]
	path := fmt.Sprintf("costs[%d]", i)
	out := policy.Cost{Tools: d.Tools, FromResult: d.FromResult}
	if len(d.Tools) == 0 {
		c.fail(path, "has no tools")
	}
	c.toolNames(path+".tools", d.Tools)
	if d.USD != nil {
		out.USD = policy.Micros(*d.USD)
	}
	if d.FromArgument != nil {
		out.FromArgument, out.HasFromArgument = *d.FromArgument, true
	}
	c.unit(path, d, &out)
	switch {
	case d.USD == nil && d.FromArgument == nil:
		c.fail(path, "needs usd or from_argument")
	case c.has(path+".from_result") && d.FromResult == "":
		c.fail(path+".from_result", "points at the whole result, which is no amount; point at the amount in it, such as /_meta/cost_usd")
	case d.FromResult != "" && (d.USD == nil || *d.USD == 0):
		c.fail(path+".from_result", "needs a usd above 0: the ceiling that is reserved until the actual cost is known")
	case d.USD != nil && d.FromArgument != nil:
		c.fail(path, "has both usd and from_argument; it can be only one of them")
	}
	return out
}

// unit reads what the amount in an argument is counted in.
func (c *checker) unit(path string, d costDoc, out *policy.Cost) {
	if !c.has(path + ".unit") {
		return
	}
	if d.FromArgument == nil {
		c.fail(path+".unit", "goes with from_argument; usd is in dollars")
	}
	if err := oneOf("usd", "cents")(d.Unit); err != nil {
		c.fail(path+".unit", "%v", err)
	}
	out.Cents = d.Unit == "cents"
}

// compile compiles the ruleset and translates the places of its mistakes.
func (c *checker) compile(rs policy.Ruleset) *policy.Engine {
	engine, err := policy.Compile(rs)
	if err == nil {
		return engine
	}
	for _, e := range unjoin(err) {
		var re *policy.RuleError
		if !errors.As(e, &re) {
			c.problem(nil, "", "%v", e)
			continue
		}
		path := c.written(re)
		pos := c.at(path)
		if text := c.texts[path]; text != nil && re.Line > 0 {
			pos = c.src.within(text, rs.Policies[re.Index].When, re.Line, re.Column)
		}
		c.failAt(pos, path, "%v", re.Err)
	}
	return nil
}

// written is the path of what a mistake concerns, as the file spells it.
func (c *checker) written(re *policy.RuleError) string {
	entry := fmt.Sprintf("%s[%d].", re.List, re.Index)
	path := entry + re.Field
	if re.Item >= 0 {
		path += fmt.Sprintf("[%d]", re.Item)
	}
	if !c.has(path) {
		for _, key := range spellings[re.Field] {
			if c.has(entry + key) {
				return entry + key
			}
		}
	}
	return path
}

// spellings are the other keys that set a field of a rule.
var spellings = map[string][]string{
	"tools": {"tool"}, "max_usd": {"max"}, "max_calls": {"max", "max_per_minute"}, "window_seconds": {"window", "max_per_minute"},
	"allowed_hours": {"start_hour"},
}

func unjoin(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}
