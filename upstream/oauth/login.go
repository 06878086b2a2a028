package oauth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// Login is one sign-in of a person, from [Source.Begin] to Close.
type Login struct {
	// URL is what the person opens in a browser: https, or http on this machine.
	URL string

	s        *Source
	r        *realm
	g        *grant
	asked    []string
	state    string
	verifier string
	redirect string
	listener net.Listener
	server   *http.Server
	answers  chan url.Values
	unlock   func() error
}

// ErrNotAsked says that an upstream wants nobody to sign in.
var ErrNotAsked = errors.New("it does not ask anybody to sign in")

// Begin finds out where a person signs in, and listens on this machine for the
// browser to return, until Close. There can be one that is alone, as a person has begun
// it; another such is told so at once. Those that are offered to a person meanwhile may
// never be taken up, and keep nobody from it.
func (s *Source) Begin(ctx context.Context, alone bool) (_ *Login, err error) {
	o := &s.o
	if o.Config.Machine {
		before, err := o.read()
		if err != nil {
			return nil, err
		}
		stale := ""
		if before != nil && before.Wanted != nil { // more than the token at hand is good for
			stale = before.Access
		}
		_, err = s.renew(ctx, stale)
		return nil, err
	}
	unlock := func() error { return nil }
	if alone {
		if unlock, err = o.lock("login", 0); err != nil {
			return nil, fmt.Errorf("somebody is signing in to upstream %q already: %w", o.Upstream, err)
		}
	}
	l := &Login{s: s, state: rand.Text(), verifier: oauth2.GenerateVerifier(), answers: make(chan url.Values, 1), unlock: unlock}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	c, refused, err := o.probe(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask upstream %q: %w", o.Upstream, err)
	}
	before, err := o.read()
	if err != nil {
		before = nil // a new sign-in takes its place
	}
	if before != nil && before.Wanted != nil { // what it has asked for meanwhile
		c.scopes = union(c.scopes, before.Wanted)
	}
	if l.r, err = o.discover(ctx, c); err != nil {
		if !refused {
			return nil, fmt.Errorf("upstream %q: %w (%w)", o.Upstream, ErrNotAsked, err)
		}
		return nil, fmt.Errorf("upstream %q: %w", o.Upstream, err)
	}
	if err := o.sameIssuer(before, l.r.meta.Issuer); err != nil {
		return nil, err
	}
	l.g = o.grant(l.r)
	l.asked = o.scopes(l.r, before)
	if err := l.identify(ctx, before); err != nil {
		return nil, fmt.Errorf("upstream %q: %w", o.Upstream, err)
	}
	at, err := url.Parse(l.r.meta.AuthorizationEndpoint)
	if err != nil || !safe(at) {
		return nil, fmt.Errorf("upstream %q: the authorization server %s names %q as its authorization endpoint, which is no https URL",
			o.Upstream, l.g.Issuer, wire.Printable(l.r.meta.AuthorizationEndpoint, 200))
	}
	cfg := oauth2.Config{ClientID: l.g.Client.ID, RedirectURL: l.redirect, Scopes: l.asked, Endpoint: oauth2.Endpoint{AuthURL: at.String()}}
	l.URL = cfg.AuthCodeURL(l.state, oauth2.S256ChallengeOption(l.verifier), oauth2.SetAuthURLParam("resource", l.g.Resource))
	o.secret(l.state)
	o.secret(l.verifier)
	l.listen()
	return l, nil
}

// scopes are those to ask for: what haldir.yaml says, or what the challenge does, or
// what the resource lists; with them what was granted before, lest it be lost (MCP
// authorization, step-up), and what lets a token be renewed.
func (o *Options) scopes(r *realm, before *grant) []string {
	asked := o.Config.Scopes
	if len(asked) == 0 {
		asked = r.scopes
	}
	if before != nil && before.Issuer == r.meta.Issuer {
		asked = union(before.Scopes, asked, before.Wanted)
	}
	const offline = "offline_access"
	if slices.Contains(r.meta.ScopesSupported, offline) {
		asked = union(asked, []string{offline})
	}
	return asked
}

// callback is where the browser returns to.
const callback = "/callback"

// identify finds out as whom haldir signs in, and opens the port that the browser
// returns to.
func (l *Login) identify(ctx context.Context, before *grant) (err error) {
	o := &l.s.o
	if l.g.Client, err = o.registered(l.r); err != nil {
		return err
	}
	port := o.Config.RedirectPort
	known := before != nil && before.Issuer == l.g.Issuer && before.Client.Registered &&
		(before.Client.Expires.IsZero() || o.Now().Before(before.Client.Expires))
	if l.g.Client.ID == "" && known && port == 0 {
		port = before.Client.Port
	}
	l.listener, err = listen(ctx, port)
	if err != nil && o.Config.RedirectPort == 0 { // it is taken: another one, as another client
		l.listener, err = listen(ctx, 0)
	}
	if err != nil {
		return fmt.Errorf("listen for the browser (auth.redirect_port): %w", err)
	}
	at, ok := l.listener.Addr().(*net.TCPAddr)
	if !ok {
		return errors.New("listen for the browser: no TCP")
	}
	l.redirect = fmt.Sprintf("http://127.0.0.1:%d%s", at.Port, callback)
	switch {
	case l.g.Client.ID != "":
	case known && before.Client.Port == at.Port:
		l.g.Client = before.Client
	default:
		if l.g.Client, err = o.register(ctx, l.r, l.redirect, l.asked); err != nil {
			return err
		}
		l.g.Client.Port = at.Port
	}
	return nil
}

func listen(ctx context.Context, port int) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

// listen serves the page that the browser returns to.
func (l *Login) listen() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+callback, func(w http.ResponseWriter, req *http.Request) {
		q := req.URL.Query()
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
		h.Set("Referrer-Policy", "no-referrer")
		if subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(l.state)) != 1 { // not of this sign-in: it goes on
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write(page("This is not the sign-in that haldir waits for", "Go back to haldir and use the address that it shows."))
			return
		}
		select {
		case l.answers <- q:
		default: // the browser has loaded the page again
		}
		if q.Get("error") != "" {
			_, _ = w.Write(page("Not signed in", "haldir says why where you have started it. You can close this window."))
			return
		}
		_, _ = w.Write(page("haldir has your answer", "You can close this window and go back to haldir."))
	})
	l.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	l.s.wg.Go(func() { _ = l.server.Serve(l.listener) }) // ended by Close
}

func page(title, text string) []byte {
	return fmt.Appendf(nil, `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>%s</title>
<style>body{font:17px/1.5 system-ui,sans-serif;max-width:32em;margin:20vh auto;padding:0 1em;color:#222;background:#fff}@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}}</style>
<h1>%s</h1><p>%s</p></html>`, title, title, text)
}

// Wait waits for the browser to return, gets what has been granted and keeps it.
func (l *Login) Wait(ctx context.Context) error {
	select {
	case q := <-l.answers:
		return l.finish(ctx, q)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Answer takes the address that the browser was sent to, from a person whose browser
// is on another machine.
func (l *Login) Answer(address string) error {
	u, err := url.Parse(strings.TrimSpace(address))
	if err != nil || u.Query().Get("state") == "" {
		return errors.New("this is not the address that the browser was sent to: it begins with " + l.redirect + "?")
	}
	if subtle.ConstantTimeCompare([]byte(u.Query().Get("state")), []byte(l.state)) != 1 {
		return errors.New("this is the address of another sign-in")
	}
	select {
	case l.answers <- u.Query():
	default:
	}
	return nil
}

// finish checks an authorization response (RFC 6749 section 4.1.2, RFC 9207) and
// exchanges its code.
func (l *Login) finish(ctx context.Context, q url.Values) error {
	o := &l.s.o
	iss, given := q.Get("iss"), q.Has("iss")
	switch {
	case given && iss != l.g.Issuer:
		return fmt.Errorf("the answer comes from %q, not from %s, which was asked: it is not used", wire.Printable(iss, 200), l.g.Issuer)
	case !given && l.r.meta.AuthorizationResponseIssParameterSupported:
		return fmt.Errorf("the answer does not say that it comes from %s, which says that its answers do (RFC 9207): it is not used", l.g.Issuer)
	case q.Get("error") != "":
		text := wire.Printable(q.Get("error"), 60)
		if d := q.Get("error_description"); d != "" {
			text += ": " + wire.Printable(d, 200)
		}
		return fmt.Errorf("the authorization server refuses: %s", text)
	case q.Get("code") == "":
		return errors.New("the answer of the authorization server holds no code")
	}
	o.secret(q.Get("code"))
	// What is granted must be kept, whoever waits for it.
	t, err := o.request(context.WithoutCancel(ctx), l.g, "authorization_code", url.Values{
		"code": {q.Get("code")}, "redirect_uri": {l.redirect}, "code_verifier": {l.verifier},
	})
	if err != nil {
		_, shown := refusal(err)
		return shown
	}
	l.g.granted(t, l.asked, o.Now())
	l.g.Login = o.Now()
	_, err = o.change(func(*grant) (*grant, error) { return l.g, nil })
	return err
}

// Close ends a sign-in, however far it has come.
func (l *Login) Close() {
	if l.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second) // the browser still reads its page
		_ = l.server.Shutdown(ctx)
		cancel()
		_ = l.server.Close()
	} else if l.listener != nil {
		_ = l.listener.Close()
	}
	_ = l.unlock()
}

// Issuer is the authorization server that the person signs in to, fit to be shown.
func (l *Login) Issuer() string { return shownURL(l.g.Issuer) }

// Granted is what a sign-in has brought, for people.
type Granted struct {
	SignedIn bool      `json:"signed_in"`
	Issuer   string    `json:"issuer,omitempty"`
	Scopes   []string  `json:"scopes,omitempty"`
	Expires  time.Time `json:"expires_at,omitzero"` // of the access token
	Renews   bool      `json:"renews"`              // it can be renewed without a person
	Ended    string    `json:"ended,omitempty"`
}

// Granted says what is stored.
func (s *Source) Granted() (Granted, error) {
	g, err := s.o.read()
	if err != nil || g == nil {
		return Granted{}, err
	}
	return Granted{
		SignedIn: g.Ended == "" && (g.Refresh != "" || g.usable(s.o.Now()) || s.o.Config.Machine), Issuer: g.Issuer, Scopes: g.Scopes, Expires: g.Expiry,
		Renews: g.Refresh != "" && g.Ended == "" || s.o.Config.Machine, Ended: g.Ended,
	}, nil
}

// Logout forgets what was granted, after it has asked the authorization server to
// revoke it (RFC 7009). told says whether it could.
func (s *Source) Logout(ctx context.Context) (was, told bool, err error) {
	var g *grant
	_, err = s.o.change(func(now *grant) (*grant, error) { g = now; return nil, nil }) //nolint:nilnil // nothing is kept
	if err != nil || g == nil {
		return false, false, err
	}
	return true, s.o.revoke(ctx, g), nil
}

func (o *Options) revoke(ctx context.Context, g *grant) bool {
	at, err := url.Parse(g.Revoke)
	if g.Revoke == "" || err != nil || !safe(at) {
		return false
	}
	token, hint := g.Refresh, "refresh_token"
	if token == "" {
		token, hint = g.Access, "access_token"
	}
	ctx, cancel := o.bounded(ctx)
	defer cancel()
	if g.Inside {
		o.Web.inside.Store(true)
	}
	params := url.Values{"token": {token}, "token_type_hint": {hint}}
	if g.Client.Auth != "basic" {
		params.Set("client_id", g.Client.ID)
		if g.Client.Secret != "" {
			params.Set("client_secret", g.Client.Secret)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at.String(), strings.NewReader(params.Encode()))
	if err != nil {
		return false
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if g.Client.Auth == "basic" {
		req.SetBasicAuth(url.QueryEscape(g.Client.ID), url.QueryEscape(g.Client.Secret))
	}
	resp, err := o.Web.client.Do(req)
	if err != nil {
		return false
	}
	drop(resp)
	return resp.StatusCode == http.StatusOK
}
