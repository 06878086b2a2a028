package oauth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/haldir-mcp/haldir/internal/secret"
	"github.com/haldir-mcp/haldir/internal/wire"
)

// Source gives the access token of one upstream and renews it. Make it with
// [NewSource]; its methods are safe for concurrent use.
type Source struct {
	o Options

	mu      sync.Mutex
	renewal *renewal // under way, nil if none
	closed  bool
	wg      sync.WaitGroup
}

// renewal is one attempt to get a new access token, for all who wait for one.
type renewal struct {
	done chan struct{}
	g    *grant
	err  error
}

// NewSource makes a source; nothing is read before it is used.
func NewSource(o Options) *Source {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Source{o: o}
}

// Close returns when nothing runs on: a renewal that has begun is ended, lest what it
// brings be lost, unless the authorization server takes too long.
func (s *Source) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	defer s.o.Client.CloseIdleConnections()
	defer s.o.Web.client.CloseIdleConnections()
	over := make(chan struct{})
	go func() { s.wg.Wait(); close(over) }()
	select {
	case <-over:
	case <-time.After(closeGrace):
	}
}

// closeGrace is how long.
const closeGrace = 5 * time.Second

// Token returns an access token, "" if nobody has signed in. stale is one that the
// server has refused, which is not returned again; "" if none has been. The error is
// a [*SignInError] if only a person can help.
func (s *Source) Token(ctx context.Context, stale string) (string, error) {
	g, err := s.o.read()
	switch {
	case err != nil:
		return "", err
	case g == nil && !s.o.Config.Machine:
		if stale != "" {
			return "", s.o.needs("has refused the token that haldir had, and there is no other")
		}
		return "", nil
	case g.usable(s.o.Now()) && g.Access != stale && !g.due(s.o.Now()):
		return g.Access, nil
	}
	fresh, err := s.renew(ctx, stale)
	switch {
	case err == nil:
		return fresh.Access, nil
	case g.usable(s.o.Now()) && g.Access != stale:
		return g.Access, nil // it was only ahead of time
	}
	return "", err
}

// Changed returns when what is stored is no longer what it was, looking every so
// often, or when ctx ends.
func (s *Source) Changed(ctx context.Context, every time.Duration) {
	before, _ := s.o.read() // what cannot be read may be readable later
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		now, err := s.o.read()
		if err == nil && (before == nil) != (now == nil) || before != nil && now != nil && (!before.Login.Equal(now.Login)) {
			return
		}
	}
}

// renew gets a new access token, or waits for whoever does. It goes on when ctx ends:
// what an authorization server has granted must be kept.
func (s *Source) renew(ctx context.Context, stale string) (*grant, error) {
	s.mu.Lock()
	r := s.renewal
	if r == nil {
		if s.closed {
			s.mu.Unlock()
			return nil, context.Canceled
		}
		r = &renewal{done: make(chan struct{})}
		s.renewal = r
		life := context.WithoutCancel(ctx)
		s.wg.Go(func() {
			r.g, r.err = s.o.renew(life, stale)
			s.mu.Lock()
			s.renewal = nil
			s.mu.Unlock()
			close(r.done)
		})
	}
	s.mu.Unlock()
	select {
	case <-r.done:
		return r.g, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// lockPatience is how long one process waits for another to renew: longer than that
// may take.
const lockPatience = 3*patience + 10*time.Second

// lock takes the lock that all processes renew under.
func (o *Options) lock(purpose string, wait time.Duration) (func() error, error) {
	sum := sha256.Sum256([]byte(o.name()))
	return secret.Lock(filepath.Join(o.Dir, "locks", "oauth-"+hex.EncodeToString(sum[:8])+"-"+purpose), wait)
}

// renew gets a new access token under the lock, unless another process has.
func (o *Options) renew(ctx context.Context, stale string) (_ *grant, err error) {
	unlock, err := o.lock("renew", lockPatience)
	if err != nil {
		return nil, fmt.Errorf("renew the access token of upstream %q: %w", o.Upstream, err)
	}
	defer func() { _ = unlock() }() // the system frees it in any case
	g, err := o.read()
	if err != nil {
		return nil, err
	}
	now := o.Now()
	switch {
	case g.usable(now) && g.Access != stale && !g.due(now):
		return g, nil // another process was quicker
	case o.Config.Machine:
		return o.machine(ctx)
	case g == nil:
		return nil, o.needs("has nobody signed in")
	case g.Ended != "":
		return nil, o.needs("does not take what haldir was granted any more (" + g.Ended + ")")
	case g.Refresh == "":
		return nil, o.needs("has granted a token that has run out, and no way to renew it")
	}
	t, err := o.request(ctx, g, "refresh_token", url.Values{"refresh_token": {g.Refresh}})
	if err != nil {
		code, shown := refusal(err)
		if !final(code) {
			return nil, fmt.Errorf("renew the access token of upstream %q: %w", o.Upstream, shown)
		}
		spent := g.Refresh
		_, err := o.change(func(now *grant) (*grant, error) {
			if now != nil && now.Refresh == spent { // else somebody has signed in meanwhile
				now.Ended = shown.Error()
			}
			return now, nil
		})
		if err != nil {
			return nil, err
		}
		return nil, o.needs("does not take what haldir was granted any more (" + shown.Error() + ")")
	}
	spent := g.Refresh
	for again := range storeTries { // what was granted is nowhere else
		if again > 0 {
			time.Sleep(storePause)
		}
		g, err = o.change(func(at *grant) (*grant, error) {
			if at == nil { // signed out meanwhile: it stays so
				return nil, o.needs("has been signed out of")
			}
			if at.Refresh == spent {
				at.granted(t, nil, o.Now())
			}
			return at, nil
		})
		if err == nil || IsSignIn(err) {
			break
		}
	}
	return g, err
}

// A grant that cannot be stored is tried again so often, after such a pause: a disk may
// be full for a moment.
const (
	storeTries = 10
	storePause = 300 * time.Millisecond
)

// machine signs in as the client itself (RFC 6749 section 4.4).
func (o *Options) machine(ctx context.Context) (*grant, error) {
	c, _, err := o.probe(ctx)
	if err != nil {
		return nil, err
	}
	r, err := o.discover(ctx, c)
	if err != nil {
		return nil, err
	}
	before, err := o.read()
	if err != nil {
		return nil, err
	}
	if err := o.sameIssuer(before, r.meta.Issuer); err != nil {
		return nil, err
	}
	g := o.grant(r)
	if g.Client, err = o.registered(r); err != nil {
		return nil, err
	}
	asked := o.Config.Scopes
	if len(asked) == 0 {
		asked = r.scopes
	}
	if before != nil {
		asked = union(asked, before.Wanted)
	}
	params := url.Values{}
	if len(asked) > 0 {
		params.Set("scope", strings.Join(asked, " "))
	}
	t, err := o.request(ctx, g, "client_credentials", params)
	if err != nil {
		_, shown := refusal(err)
		return nil, fmt.Errorf("sign in to upstream %q: %w", o.Upstream, shown)
	}
	g.granted(t, asked, o.Now())
	return o.change(func(*grant) (*grant, error) { return g, nil })
}

// sameIssuer refuses to show a configured secret to another authorization server than
// before: the upstream that names it may have turned.
func (o *Options) sameIssuer(before *grant, issuer string) error {
	if o.Config.ClientSecret == "" || o.Config.Issuer != "" || before == nil || before.Issuer == issuer {
		return nil
	}
	return fmt.Errorf("upstream %q names %s as its authorization server now, and named %s before; if that is right, set auth.issuer in haldir.yaml, since client_secret would be shown to it",
		o.Upstream, shownURL(issuer), shownURL(before.Issuer))
}

// want notes scopes that the server has asked for beyond those that were granted, for
// the next login, and returns the error that asks a person for it.
func (s *Source) want(scopes []string) error {
	scopes = slices.DeleteFunc(slices.Clone(scopes), func(s string) bool { return len(s) > maxScope })
	scopes = scopes[:min(len(scopes), maxWanted)]
	why := "wants more than haldir was granted"
	if len(scopes) > 0 {
		why += " (" + wire.Printable(strings.Join(scopes, " "), 300) + ")"
	}
	_, err := s.o.change(func(g *grant) (*grant, error) {
		if g != nil {
			g.Wanted = union(g.Wanted, scopes)
			if len(g.Wanted) > maxWanted {
				g.Wanted = g.Wanted[:maxWanted]
			}
		}
		return g, nil
	})
	if err != nil {
		return err
	}
	return s.o.needs(why)
}

// maxWanted bounds what a server can have haldir ask for, maxScope the length of each.
const (
	maxWanted = 64
	maxScope  = 256
)
