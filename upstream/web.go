package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/upstream/oauth"
)

// maxHeader bounds the headers of an answer, in bytes.
const maxHeader = 1 << 20

// transport makes the transport to a remote server. It has no overall timeout, which
// would cut streams; dialling and TLS have their own. Proxies are those of the
// environment.
func transport(cfg config.Upstream) (*http.Transport, error) {
	t := http.DefaultTransport.(*http.Transport).Clone() //nolint:errcheck,forcetypeassert // net/http documents it
	t.MaxIdleConnsPerHost = 64
	t.MaxResponseHeaderBytes = maxHeader
	t.TLSHandshakeTimeout = cfg.Connect
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("tls.ca_file: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool() // a system without one
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls.ca_file: %s holds no certificate in PEM", cfg.CAFile)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	if cfg.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("tls.cert_file: %w", err)
		}
		t.TLSClientConfig.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// source returns what signs haldir in, nil if the config does not say that it does.
func (u *Upstream) source() (*oauth.Source, error) {
	cfg := u.o.Config
	if cfg.OAuth == nil {
		return nil, nil //nolint:nilnil // there is none, and that is no error
	}
	if u.o.Secrets == nil {
		return nil, errors.New("haldir has no place for secrets here")
	}
	server, err := u.o.Resolver.URL(cfg.URL)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.auth != nil && u.authFor == server {
		return u.auth, nil
	}
	if u.ctx.Err() != nil {
		return nil, context.Cause(u.ctx)
	}
	t, err := transport(cfg)
	if err != nil {
		return nil, err
	}
	web := oauth.NewWeb(t, server)
	if u.auth != nil {
		u.wg.Go(u.auth.Close)
	}
	u.authFor = server
	u.auth = oauth.NewSource(oauth.Options{
		Program: u.o.Command, Upstream: cfg.Name, Server: server, Config: *cfg.OAuth, Resolve: u.o.Resolver.Resolve, Store: u.o.Secrets, Dir: u.o.SecretsDir,
		Client: oauth.NewClient(t), Web: web, Secret: u.o.Resolver.Secret,
	})
	return u.auth, nil
}

// ErrNoOAuth says that an upstream is not one that a person signs in to.
var ErrNoOAuth = errors.New("its auth in haldir.yaml is not of type oauth, so nobody signs in to it")

// Auth returns what signs haldir in, for the command line.
func (u *Upstream) Auth() (*oauth.Source, error) {
	s, err := u.source()
	if err == nil && s == nil {
		err = fmt.Errorf("upstream %q: %w", u.Name(), ErrNoOAuth)
	}
	return s, err
}

// signedIn is closed when somebody has signed in, or ctx has ended; nil if err is not
// about that.
func (u *Upstream) signedIn(ctx context.Context, err error) <-chan struct{} {
	if !oauth.IsSignIn(err) {
		return nil
	}
	s, err := u.source()
	if err != nil || s == nil {
		return nil
	}
	done := make(chan struct{})
	u.wg.Go(func() {
		defer close(done)
		s.Changed(ctx, signInPoll)
	})
	return done
}

// signInPoll is how often haldir looks whether somebody has signed in elsewhere.
const signInPoll = time.Second
