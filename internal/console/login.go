package console

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/haldir-mcp/haldir/internal/console/api"
	"github.com/haldir-mcp/haldir/internal/wire"
)

const (
	cookieName  = "haldir_console"
	inviteBytes = 16 // 128 bits
	cookieBytes = 32
	inviteLife  = 2 * time.Minute
	signedIn    = 12 * time.Hour
	maxPeople   = 100 // browsers that are signed in, and links that are open
)

// people are the browsers that are signed in. They are in memory only: with haldir they
// are signed out. Only hashes are kept, so that to look one up takes no longer for one
// that is nearly right.
type people struct {
	clock func() time.Time

	mu      sync.Mutex
	invited map[[sha256.Size]byte]time.Time // when they end
	signed  map[[sha256.Size]byte]time.Time
}

func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b)
}

// add keeps a token for as long as it lives; beyond a bound the oldest goes.
func add(to *map[[sha256.Size]byte]time.Time, token string, now time.Time, life time.Duration) {
	if *to == nil {
		*to = map[[sha256.Size]byte]time.Time{}
	}
	var oldest [sha256.Size]byte
	for k, end := range *to {
		if !now.Before(end) {
			delete(*to, k)
		} else if first, some := (*to)[oldest]; !some || end.Before(first) {
			oldest = k
		}
	}
	if len(*to) >= maxPeople {
		delete(*to, oldest)
	}
	(*to)[sha256.Sum256([]byte(token))] = now.Add(life)
}

// invite makes a token that signs in once.
func (p *people) invite() string {
	token := random(inviteBytes)
	p.mu.Lock()
	defer p.mu.Unlock()
	add(&p.invited, token, p.clock(), inviteLife)
	return token
}

// redeem turns a token into a cookie's value; ok is false if it does not hold.
func (p *people) redeem(token string) (value string, ok bool) {
	sum := sha256.Sum256([]byte(token))
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	end, ok := p.invited[sum]
	delete(p.invited, sum)
	if !ok || !now.Before(end) {
		return "", false
	}
	value = random(cookieBytes)
	add(&p.signed, value, now, signedIn)
	return value, true
}

func (p *people) known(value string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	end, ok := p.signed[sha256.Sum256([]byte(value))]
	return ok && p.clock().Before(end)
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
	if p := s.signIn(w, r); p != nil {
		p.Write(w)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) signIn(w http.ResponseWriter, r *http.Request) *api.Problem {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return api.NewProblem(http.StatusMethodNotAllowed, "method", "a login is a POST")
	}
	if p := ownPage(r); p != nil { // or a page could sign a person in as somebody else
		return p
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxLogin))
	if large := (&http.MaxBytesError{}); errors.As(err, &large) {
		return api.NewProblem(http.StatusRequestEntityTooLarge, "too-large", "a login has at most %d bytes", maxLogin)
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
		return api.NewProblem(http.StatusBadRequest, "malformed", `a login is {"token":"…"}`)
	}
	value, ok := s.people.redeem(body.Token)
	if !ok {
		if p := s.tooFast(s.fails, "logins that fail"); p != nil {
			return p
		}
		return api.NewProblem(http.StatusUnauthorized, "unauthorized", "this link was used, or it is older than %v; haldir console prints another one", inviteLife)
	}
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // not Secure: there is no TLS on loopback
		Name: cookieName, Value: value, Path: "/", MaxAge: int(signedIn / time.Second), HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
	s.o.Log.Info().Msg("a browser has signed in to the console")
	return nil
}

// logout ends what the cookie stands for.
func (s *Server) logout(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		api.NewProblem(http.StatusMethodNotAllowed, "method", "a logout is a POST").Write(w)
		return
	}
	if p := ownPage(r); p != nil {
		p.Write(w)
		return
	}
	if value, given := cookie(r); given {
		s.people.leave(value)
	}
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // as above
		Name: cookieName, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
	w.WriteHeader(http.StatusNoContent)
}
