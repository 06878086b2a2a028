package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/oauthex"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// challenge is what a server has said with a 401 or 403 (RFC 6750 section 3, RFC 9728
// section 5.1).
type challenge struct {
	metadata string // resource_metadata
	scopes   []string
	code     string // error
}

func readChallenge(header http.Header) (c challenge) {
	all, err := oauthex.ParseWWWAuthenticate(header.Values("WWW-Authenticate"))
	if err != nil {
		return c
	}
	for _, x := range all {
		if x.Scheme != "bearer" {
			continue
		}
		c.metadata, c.scopes, c.code = x.Params["resource_metadata"], strings.Fields(x.Params["scope"]), x.Params["error"]
		break
	}
	return c
}

// realm is who protects a server: what discovery has found.
type realm struct {
	resource string
	scopes   []string // to ask for, nil if nobody has said any
	meta     *oauthex.AuthServerMeta
}

// discover finds the authorization server of the upstream.
func (o *Options) discover(ctx context.Context, c challenge) (*realm, error) {
	ctx, cancel := o.bounded(ctx)
	defer cancel()
	resource, err := o.resource(ctx, c.metadata)
	if err != nil {
		return nil, err
	}
	r := &realm{resource: o.Server, scopes: c.scopes}
	var issuer string
	if resource != nil {
		r.resource = resource.Resource
		if len(r.scopes) == 0 {
			r.scopes = resource.ScopesSupported
		}
		if issuer, err = o.issuer(resource.AuthorizationServers); err != nil {
			return nil, err
		}
	} else { // MCP 2025-03-26: the server's own origin is the authorization server
		origin, err := url.Parse(o.Server)
		if err != nil {
			return nil, err
		}
		issuer = origin.Scheme + "://" + origin.Host
	}
	if r.meta, err = auth.GetAuthServerMetadata(ctx, issuer, o.Web.client); err != nil {
		return nil, fmt.Errorf("the authorization server %s: %s", shownURL(issuer), wire.Printable(err.Error(), 400))
	}
	switch {
	case r.meta != nil:
		if !slices.Contains(r.meta.CodeChallengeMethodsSupported, "S256") && !o.Config.Machine {
			return nil, fmt.Errorf("the authorization server %s does not say that it supports PKCE with S256, without which MCP forbids to sign in", shownURL(issuer))
		}
	case resource != nil:
		return nil, fmt.Errorf("the authorization server %s publishes no metadata (RFC 8414, OpenID Connect Discovery)", shownURL(issuer))
	default: // MCP 2025-03-26, fallbacks for servers without metadata discovery
		r.meta = &oauthex.AuthServerMeta{
			Issuer: issuer, AuthorizationEndpoint: issuer + "/authorize", TokenEndpoint: issuer + "/token", RegistrationEndpoint: issuer + "/register",
		}
	}
	if want := o.Config.Issuer; want != "" && strings.TrimSuffix(want, "/") != strings.TrimSuffix(r.meta.Issuer, "/") {
		return nil, fmt.Errorf("the upstream's authorization server is %s, but auth.issuer in haldir.yaml is %s", shownURL(r.meta.Issuer), want)
	}
	return r, nil
}

// issuer chooses among the authorization servers that a resource names.
func (o *Options) issuer(servers []string) (string, error) {
	want := strings.TrimSuffix(o.Config.Issuer, "/")
	for _, s := range servers {
		if want == "" || strings.TrimSuffix(s, "/") == want {
			return s, nil
		}
	}
	if len(servers) == 0 {
		return "", errors.New("the upstream's metadata name no authorization server (RFC 9728, authorization_servers)")
	}
	return "", fmt.Errorf("the upstream's authorization servers are %s, but auth.issuer in haldir.yaml is %s", wire.Printable(strings.Join(servers, ", "), 400), o.Config.Issuer)
}

// resource gets the metadata of the protected resource: from where the challenge says,
// else from the well-known place for the url's path, else from that of the origin. It
// returns nil if there are none.
func (o *Options) resource(ctx context.Context, challenged string) (*oauthex.ProtectedResourceMetadata, error) {
	server, err := url.Parse(o.Server)
	if err != nil {
		return nil, err
	}
	const wellKnown = "/.well-known/oauth-protected-resource"
	places := []string{challenged}
	at := url.URL{Scheme: server.Scheme, Host: server.Host}
	if p := strings.TrimSuffix(server.EscapedPath(), "/"); p != "" {
		places = append(places, at.String()+wellKnown+p)
	}
	places = append(places, at.String()+wellKnown)
	for _, place := range places {
		if place == "" {
			continue
		}
		meta, err := o.metadata(ctx, place)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			continue // as good as not there
		case !covers(meta.Resource, server):
			return nil, fmt.Errorf("the metadata at %s are those of %q, not of this upstream: signing in by them could give its tokens to somebody else",
				shownURL(place), wire.Printable(meta.Resource, 200))
		}
		return meta, nil
	}
	return nil, nil //nolint:nilnil // there are none, and that is no error
}

// covers reports whether metadata of a resource are those of server: of its url, or of
// a directory above it, since many servers name their origin.
func covers(resource string, server *url.URL) bool {
	r, err := url.Parse(resource)
	if err != nil || r.User != nil || r.Fragment != "" || r.RawQuery != "" && r.RawQuery != server.RawQuery || !wire.SameOrigin(r, server) {
		return false
	}
	above := strings.TrimSuffix(r.EscapedPath(), "/")
	below := strings.TrimSuffix(server.EscapedPath(), "/")
	return above == below || strings.HasPrefix(below, above+"/")
}

// maxMetadata bounds a document, in bytes.
const maxMetadata = 1 << 20

func (o *Options) metadata(ctx context.Context, place string) (*oauthex.ProtectedResourceMetadata, error) {
	if u, err := url.Parse(place); err != nil || !safe(u) {
		return nil, fmt.Errorf("%q is no https URL", wire.Printable(place, 200))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, place, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := o.Web.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, &wire.HTTPError{Status: resp.StatusCode}
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxMetadata))
	if err != nil {
		return nil, err
	}
	meta := &oauthex.ProtectedResourceMetadata{}
	return meta, json.Unmarshal(raw, meta)
}

// probe asks the upstream for something without signing in, to hear whom it trusts.
// Some let a client introduce itself and refuse what follows.
func (o *Options) probe(ctx context.Context) (c challenge, refused bool, err error) {
	ctx, cancel := o.bounded(ctx)
	defer cancel()
	session := ""
	for _, msg := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"` + wire.LatestLegacy + `","capabilities":{},"clientInfo":{"name":"haldir","version":"1"}}}`,
		`{"jsonrpc":"2.0","id":2,"method":"tools/list","params":{}}`,
	} {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.Server, strings.NewReader(msg))
		if err != nil {
			return c, false, err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json, text/event-stream")
		if session != "" {
			req.Header.Set("Mcp-Session-Id", session)
			req.Header.Set("Mcp-Protocol-Version", wire.LatestLegacy)
		}
		resp, err := o.Client.Do(req)
		if err != nil {
			return c, false, err
		}
		session = resp.Header.Get("Mcp-Session-Id")
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
			return readChallenge(resp.Header), true, nil
		}
	}
	return c, false, nil
}

// shownURL is a server's address as a person may see it: a part that is no host cannot
// pass for one.
func shownURL(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.User != nil || u.Host == "" {
		return strconv.Quote(wire.Printable(text, 200))
	}
	return wire.Printable(text, 200)
}

// safe reports whether a URL may be asked or opened: https, or http on this machine.
func safe(u *url.URL) bool {
	return u.Host != "" && u.User == nil && (u.Scheme == "https" || u.Scheme == "http" && loopback(u.Hostname()))
}
