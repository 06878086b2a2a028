package oauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/oauthex"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// registered returns the client that haldir.yaml names, or that haldir is by its
// metadata document. The zero client means that there is neither.
func (o *Options) registered(r *realm) (client, error) {
	cfg := o.Config
	c := client{ID: cfg.ClientID, Auth: cfg.TokenAuth}
	switch {
	case c.ID != "":
		s, err := o.Resolve(cfg.ClientSecret)
		if err != nil {
			return c, fmt.Errorf("auth.client_secret: %w", err)
		}
		if c.Secret = s; s != "" {
			o.secret(s)
		}
		if c.Auth == "" {
			c.Auth = method(r.meta.TokenEndpointAuthMethodsSupported, c.Secret != "")
		}
	case cfg.MetadataURL != "" && r.meta.ClientIDMetadataDocumentSupported:
		c.ID, c.Auth = cfg.MetadataURL, "none"
	}
	return c, nil
}

// method chooses how a client shows who it is at the token endpoint. Without a word
// of the server's it is by a header, if there is a secret (RFC 8414 section 2).
func method(supported []string, secret bool) string {
	if !secret {
		return "none"
	}
	if len(supported) == 0 || slices.Contains(supported, "client_secret_basic") {
		return "basic"
	}
	return "post"
}

// methods are the names of the ways (RFC 7591 section 2).
var methods = map[string]string{"none": "none", "client_secret_basic": "basic", "client_secret_post": "post"}

// register makes haldir known to an authorization server as a native client (RFC
// 7591, RFC 8252), if that is offered.
func (o *Options) register(ctx context.Context, r *realm, redirect string, scopes []string) (client, error) {
	if r.meta.RegistrationEndpoint == "" {
		return client{}, fmt.Errorf("the authorization server %s registers no clients by itself: register haldir there by hand, with the redirect URI http://127.0.0.1/callback, and set auth.client_id of upstream %q in haldir.yaml",
			shownURL(r.meta.Issuer), o.Upstream)
	}
	ctx, cancel := o.bounded(ctx)
	defer cancel()
	ask := "none" // a program that anybody can read keeps no secret of its own
	if supported := r.meta.TokenEndpointAuthMethodsSupported; len(supported) > 0 && !slices.Contains(supported, ask) {
		for _, m := range []string{"client_secret_basic", "client_secret_post"} {
			if slices.Contains(supported, m) {
				ask = m
				break
			}
		}
	}
	got, err := oauthex.RegisterClient(ctx, r.meta.RegistrationEndpoint, &oauthex.ClientRegistrationMetadata{
		ClientName: "haldir", RedirectURIs: []string{redirect}, GrantTypes: []string{"authorization_code", "refresh_token"},
		ResponseTypes: []string{"code"}, TokenEndpointAuthMethod: ask, ApplicationType: "native", Scope: strings.Join(scopes, " "),
	}, o.Web.client)
	if err != nil {
		// Other errors quote the answer, which may hold a secret.
		why := "it cannot be reached, or its answer cannot be read"
		if e, ok := errors.AsType[*oauthex.ClientRegistrationError](err); ok {
			why = wire.Printable(e.ErrorCode, 60) + ": " + wire.Printable(e.ErrorDescription, 200)
		} else if ctx.Err() != nil {
			why = context.Cause(ctx).Error()
		}
		return client{}, fmt.Errorf("register with the authorization server %s: %s", shownURL(r.meta.Issuer), why)
	}
	c := client{ID: got.ClientID, Secret: got.ClientSecret, Registered: true, Expires: got.ClientSecretExpiresAt}
	var known bool
	if c.Auth, known = methods[got.TokenEndpointAuthMethod]; !known {
		c.Auth = methods[ask]
	}
	if c.Auth != "none" && c.Secret == "" {
		c.Auth = "none"
	}
	if c.Secret != "" {
		o.secret(c.Secret)
	}
	return c, nil
}

// NewClient returns a client for the upstream itself, whose redirects stay where they
// were.
func NewClient(base http.RoundTripper) *http.Client {
	return &http.Client{Transport: base, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if !wire.SameOrigin(req.URL, via[0].URL) || req.Method != via[0].Method || len(via) > 5 {
			return http.ErrUseLastResponse
		}
		return nil
	}}
}
