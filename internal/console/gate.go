package console

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log" //nolint:depguard // http.Server takes no other
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/haldir-mcp/haldir/internal/console/api"
	"github.com/haldir-mcp/haldir/internal/ledger"
)

// quiet passes on what net/http has to say, which is about clients.
func quiet(l zerolog.Logger) *log.Logger {
	return log.New(l.With().Str("level", "debug").Logger(), "", 0)
}

// Handler answers all requests.
func (s *Server) Handler() http.Handler {
	inner := s.o.API.Handler(s.authenticate)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		protect(w.Header())
		if p := s.admit(r); p != nil {
			w.Header().Set("Connection", "close")
			p.Write(w)
			return
		}
		switch at := r.URL.Path; {
		case at == "/":
			http.Redirect(w, r, "/console/", http.StatusSeeOther)
		case at == "/console/login":
			s.login(w, r)
		case at == "/console/logout":
			s.logout(w, r)
		case strings.HasPrefix(at, "/console/"):
			s.file(w, r)
		default:
			w.Header().Set("Cache-Control", "no-store")
			inner.ServeHTTP(w, r)
		}
	})
}

// policyHeader lets the page load its own files and talk to its own server, and nothing
// else.
const policyHeader = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"form-action 'none'; frame-ancestors 'none'; base-uri 'none'"

func protect(h http.Header) {
	h.Set("Content-Security-Policy", policyHeader)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Embedder-Policy", "require-corp")
	h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
	h.Set("X-Frame-Options", "DENY")
}

// hosts are the names of this listener.
func (s *Server) hosts() []string {
	return []string{"127.0.0.1:" + s.port, "[::1]:" + s.port, "localhost:" + s.port}
}

// admit says what is wrong with where a request comes from or leads to.
func (s *Server) admit(r *http.Request) *api.Problem {
	forbidden := func(format string, args ...any) *api.Problem {
		return api.NewProblem(http.StatusForbidden, "misdirected", format, args...)
	}
	if !slices.Contains(s.hosts(), strings.ToLower(r.Host)) {
		return forbidden("this is %s, and the request is for another host", s.URL())
	}
	for _, origin := range r.Header.Values("Origin") {
		if !strings.EqualFold(origin, "http://"+r.Host) {
			return forbidden("requests of other origins are not answered")
		}
	}
	for _, site := range r.Header.Values("Sec-Fetch-Site") { // none: a person has typed it
		if site != "same-origin" && site != "none" && !followed(r) {
			return forbidden("requests of other sites are not answered")
		}
	}
	if !plainPath(r.URL) {
		return api.NewProblem(http.StatusBadRequest, "malformed", "the path is not written plainly")
	}
	return nil
}

// followed reports that a person has followed a link to the page, in a chat, say. The page
// itself tells nothing: what it shows it asks for by requests of its own, with its cookie.
func followed(r *http.Request) bool {
	return r.Method == http.MethodGet && (r.URL.Path == "/" || r.URL.Path == "/console/") &&
		r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
}

// plainPath reports whether a path can be read in one way only: what one part of a
// program takes for another path than the other is a way in.
func plainPath(u *url.URL) bool {
	p := u.Path
	if u.Opaque != "" || !strings.HasPrefix(p, "/") || strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' || r == '%' || r == ';' }) {
		return false
	}
	clean := path.Clean(p)
	if strings.HasSuffix(p, "/") && clean != "/" {
		clean += "/"
	}
	raw := strings.ToLower(u.EscapedPath())
	return clean == p && !strings.Contains(raw, "%2f") && !strings.Contains(raw, "%2e")
}

// Paces: how many requests a second, and how many at once.
const (
	keyEach, keyBurst rate.Limit = 100, 300
	failEach          rate.Limit = 2
	failBurst                    = 20
	maxPaces                     = 1000
)

// paces are how fast each caller may ask. Its zero value is ready.
type paces struct {
	mu  sync.Mutex
	all map[string]*rate.Limiter
}

func (p *paces) of(who string) *rate.Limiter {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.all[who]
	if l == nil {
		if p.all == nil || len(p.all) >= maxPaces { // of keys that are gone, mostly
			p.all = map[string]*rate.Limiter{}
		}
		l = rate.NewLimiter(keyEach, int(keyBurst))
		p.all[who] = l
	}
	return l
}

// tooFast is a problem if a limiter is out of tokens.
func (s *Server) tooFast(l *rate.Limiter, what string) *api.Problem {
	now := s.o.Clock()
	if l.AllowN(now, 1) {
		return nil
	}
	wait := time.Duration(float64(time.Second) / float64(l.Limit()))
	return api.NewProblem(http.StatusTooManyRequests, "rate", "too many %s; try again in a moment", what).Wait(time.Now().Add(wait))
}

// authenticate finds out who makes a request, or answers it.
func (s *Server) authenticate(w http.ResponseWriter, r *http.Request) *api.Caller {
	caller, p := s.caller(r)
	if p == nil {
		who := "console"
		if !caller.Person {
			who = caller.Key.ID
		}
		p = s.tooFast(s.paces.of(who), "requests with this key")
	}
	if p != nil {
		if p.Status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer realm="haldir"`)
		}
		p.Write(w)
		return nil
	}
	return caller
}

func (s *Server) caller(r *http.Request) (*api.Caller, *api.Problem) {
	secret, p := bearer(r.Header)
	switch {
	case p != nil:
		return nil, p
	case secret == "":
		return s.person(r)
	}
	key, err := s.o.Keys.Authenticate(r.Context(), secret)
	if errors.Is(err, ledger.ErrNoKey) {
		if p := s.tooFast(s.fails, "requests with a wrong key"); p != nil {
			return nil, p
		}
		return nil, api.NewProblem(http.StatusUnauthorized, "unauthorized", "there is no such key, or it was revoked or has expired; haldir key list shows those that there are")
	}
	if err != nil {
		return nil, api.NewProblem(http.StatusServiceUnavailable, "unavailable", "the key could not be looked up: %v", err)
	}
	return &api.Caller{Key: key, Valid: func() bool {
		_, err := s.o.Keys.Authenticate(r.Context(), secret)
		return !errors.Is(err, ledger.ErrNoKey)
	}}, nil
}

// bearer returns the key in the headers, "" if there is none.
func bearer(h http.Header) (string, *api.Problem) {
	var found []string
	for _, v := range h.Values("Authorization") {
		scheme, token, _ := strings.Cut(v, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return "", api.NewProblem(http.StatusUnauthorized, "unauthorized", "the Authorization must be: Bearer hld_…")
		}
		found = append(found, strings.TrimSpace(token))
	}
	found = append(found, h.Values("X-API-Key")...)
	switch {
	case len(found) == 0:
		return "", nil
	case len(slices.Compact(slices.Clone(found))) > 1:
		return "", api.NewProblem(http.StatusUnauthorized, "unauthorized", "the request has several keys")
	case found[0] == "":
		return "", api.NewProblem(http.StatusUnauthorized, "unauthorized", "the key is empty")
	}
	return found[0], nil
}

// person is the caller that a cookie stands for. It is sent by a browser whoever makes it
// do so, if only from this machine's name, and to every server of that name, whatever its
// port: what changes something must say that our own page wants it, and show what only
// that page knows.
func (s *Server) person(r *http.Request) (*api.Caller, *api.Problem) {
	token, given := s.cookie(r)
	if !given {
		if p := s.tooFast(s.fails, "requests without a key"); p != nil {
			return nil, p
		}
		return nil, api.NewProblem(http.StatusUnauthorized, "unauthorized", "give a key as Authorization: Bearer hld_…; haldir key create makes one. A person opens the link of: haldir console")
	}
	v, known := s.people.visit(token)
	if !known {
		if p := s.tooFast(s.fails, "requests with a wrong cookie"); p != nil {
			return nil, p
		}
		return nil, api.NewProblem(http.StatusUnauthorized, "unauthorized", "the page was signed out, by its time or the end of haldir; open a new link of: haldir console")
	}
	if p := ownPage(r); p != nil {
		return nil, p
	}
	if p := v.own(r); p != nil {
		return nil, p
	}
	return &api.Caller{Person: true, Valid: func() bool { return s.people.known(token) }}, nil
}

// ownPage says what is wrong with a request that changes something and does not say that
// our page makes it. admit has compared the Origin with the Host already.
func ownPage(r *http.Request) *api.Problem {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return nil
	}
	if r.Header.Get("Origin") == "" {
		return api.NewProblem(http.StatusForbidden, "misdirected", "a request by cookie that changes something needs an Origin")
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" {
		return api.NewProblem(http.StatusForbidden, "misdirected", "a request by cookie that changes something must come from the page")
	}
	return nil
}

// pageHeader is where the page shows what it got when it signed in. It keeps that where
// scripts of its own origin only, which has a port, can read it.
const pageHeader = "Haldir-Page"

// own says what is wrong with a request that changes something and does not show what the
// page of this visit knows.
func (v visit) own(r *http.Request) *api.Problem {
	if r.Method == http.MethodGet || r.Method == http.MethodHead { // streams and downloads cannot have it
		return nil
	}
	shown := sha256.Sum256([]byte(r.Header.Get(pageHeader)))
	if len(r.Header.Values(pageHeader)) == 1 && subtle.ConstantTimeCompare(shown[:], v.page[:]) == 1 {
		return nil
	}
	return api.NewProblem(http.StatusForbidden, "misdirected", "a request by cookie that changes something needs the %s of its sign-in; open a new link of: haldir console", pageHeader)
}

// cookieName has the port, since cookies have none: two consoles must not take each
// other's.
func (s *Server) cookieName() string { return "haldir_console_" + s.port }

// cookie returns what the page's cookie says. More than one is nobody's.
func (s *Server) cookie(r *http.Request) (token string, given bool) {
	all := r.CookiesNamed(s.cookieName())
	if len(all) != 1 {
		return "", len(all) > 0
	}
	return all[0].Value, true
}
