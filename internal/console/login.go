package console

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/haldir-mcp/haldir/internal/console/api"
	"github.com/haldir-mcp/haldir/internal/wire"
)

// LinkLife is how long a link holds.
const LinkLife = 2 * time.Minute

const (
	inviteBytes = 16 // 128 bits
	cookieBytes = 32
	pageBytes   = 32
	inviteLife  = LinkLife
	signedIn    = 12 * time.Hour
	maxPeople   = 100 // browsers that are signed in, and links that are open
)

// people are the browsers that are signed in. They are in memory only: with haldir they
// are signed out. Only hashes are kept, so that to look one up takes no longer for one
// that is nearly right.
type people struct {
	clock func() time.Time

	mu      sync.Mutex
	invited map[digest]visit
	signed  map[digest]visit
}

type digest = [sha256.Size]byte

// visit is what a token stands for.
type visit struct {
	end  time.Time
	page digest // of what the page knows besides its cookie; of one that is signed in only
}

func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b)
}

// add keeps a token for as long as it lives; beyond a bound the oldest goes.
func add(to *map[digest]visit, token string, v visit, now time.Time) {
	if *to == nil {
		*to = map[digest]visit{}
	}
	var oldest digest
	for k, other := range *to {
		if !now.Before(other.end) {
			delete(*to, k)
		} else if first, some := (*to)[oldest]; !some || other.end.Before(first.end) {
			oldest = k
		}
	}
	if len(*to) >= maxPeople {
		delete(*to, oldest)
	}
	(*to)[sha256.Sum256([]byte(token))] = v
}

// invite makes a token that signs in once.
func (p *people) invite() string {
	token := random(inviteBytes)
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	add(&p.invited, token, visit{end: now.Add(inviteLife)}, now)
	return token
}

// redeem turns a token into a cookie's value and what the page keeps for itself; ok is
// false if it does not hold.
func (p *people) redeem(token string) (value, page string, ok bool) {
	sum := sha256.Sum256([]byte(token))
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	invited, ok := p.invited[sum]
	delete(p.invited, sum)
	if !ok || !now.Before(invited.end) {
		return "", "", false
	}
	value, page = random(cookieBytes), random(pageBytes)
	add(&p.signed, value, visit{end: now.Add(signedIn), page: sha256.Sum256([]byte(page))}, now)
	return value, page, true
}

func (p *people) known(value string) bool {
	_, ok := p.visit(value)
	return ok
}

func (p *people) visit(value string) (visit, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok := p.signed[sha256.Sum256([]byte(value))]
	return v, ok && p.clock().Before(v.end)
}

func (p *people) leave(value string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.signed, sha256.Sum256([]byte(value)))
}

// maxLogin is how large the body of a login may be.
const maxLogin = 1 << 10

// login takes the token of a link and sets the cookie.
func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	page, p := s.signIn(w, r)
	if p != nil {
		p.Write(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(map[string]string{"page": page}); err != nil {
		s.o.Log.Debug().Err(err).Msg("the answer to a sign-in did not reach the page")
	}
}

// signIn sets the cookie and returns what the page keeps besides it.
func (s *Server) signIn(w http.ResponseWriter, r *http.Request) (page string, p *api.Problem) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return "", api.NewProblem(http.StatusMethodNotAllowed, "method", "a login is a POST")
	}
	if p := ownPage(r); p != nil { // or a page could sign a person in as somebody else
		return "", p
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxLogin))
	if large := (&http.MaxBytesError{}); errors.As(err, &large) {
		return "", api.NewProblem(http.StatusRequestEntityTooLarge, "too-large", "a login has at most %d bytes", maxLogin)
	}
	var body struct {
		Token string `json:"token"`
	}
	if err == nil {
		err = wire.Strict(raw)
	}
	if err == nil {
		err = jsonv2.Unmarshal(raw, &body, jsonv2.RejectUnknownMembers(true))
	}
	if err != nil {
		return "", api.NewProblem(http.StatusBadRequest, "malformed", `a login is {"token":"…"}`)
	}
	value, page, ok := s.people.redeem(body.Token)
	if !ok {
		if p := s.tooFast(s.fails, "logins that fail"); p != nil {
			return "", p
		}
		return "", api.NewProblem(http.StatusUnauthorized, "unauthorized", "this link was used, or it is older than %v; haldir console prints another one", inviteLife)
	}
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // not Secure: there is no TLS on loopback
		Name: s.cookieName(), Value: value, Path: "/", MaxAge: int(signedIn / time.Second), HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
	s.o.Log.Info().Msg("a browser has signed in to the console")
	return page, nil
}

// logout ends what the cookie stands for.
func (s *Server) logout(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		api.NewProblem(http.StatusMethodNotAllowed, "method", "a logout is a POST").Write(w)
		return
	}
	p := ownPage(r)
	value, given := s.cookie(r)
	if v, known := s.people.visit(value); p == nil && given && known {
		p = v.own(r)
	}
	if p != nil {
		p.Write(w)
		return
	}
	s.people.leave(value)
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // as above
		Name: s.cookieName(), Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
	w.WriteHeader(http.StatusNoContent)
}
