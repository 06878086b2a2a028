package oauth

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// request asks the token endpoint for a grant of the given type (RFC 6749). It returns
// what has been granted; a refusal is an [*oauth2.RetrieveError].
func (o *Options) request(ctx context.Context, g *grant, grantType string, params url.Values) (*oauth2.Token, error) {
	ctx, cancel := o.bounded(ctx)
	defer cancel()
	style := oauth2.AuthStyleInParams
	if g.Client.Auth == "basic" {
		style = oauth2.AuthStyleInHeader
		o.secret(g.Client.basic())
	}
	if g.Inside {
		o.Web.inside.Store(true) // as it was when somebody signed in
	}
	params.Set("grant_type", grantType)
	params.Set("resource", g.Resource) // RFC 8707 section 2.2
	cfg := clientcredentials.Config{
		ClientID: g.Client.ID, ClientSecret: g.Client.Secret, TokenURL: g.TokenURL, EndpointParams: params, AuthStyle: style,
	}
	t, err := cfg.Token(context.WithValue(ctx, oauth2.HTTPClient, o.Web.client))
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, err
	case !strings.EqualFold(t.Type(), "Bearer"):
		return nil, fmt.Errorf("the authorization server has granted a token of type %q; MCP takes bearer tokens", wire.Printable(t.TokenType, 40))
	}
	o.secret(t.AccessToken)
	if t.RefreshToken != "" {
		o.secret(t.RefreshToken)
	}
	return t, nil
}

// granted notes in g what a token endpoint has granted. What it leaves out is as asked
// for (RFC 6749 section 5.1), or as before (section 6).
func (g *grant) granted(t *oauth2.Token, asked []string, now time.Time) {
	g.Access, g.Expiry, g.Issued, g.Ended = t.AccessToken, t.Expiry, now, ""
	if !g.Expiry.After(now) {
		g.Expiry = time.Time{} // a time that has passed says nothing
	}
	if t.RefreshToken != "" {
		g.Refresh = t.RefreshToken
	}
	if scope, ok := t.Extra("scope").(string); ok && scope != "" {
		g.Scopes = strings.Fields(scope)
	} else if asked != nil {
		g.Scopes = asked
	}
}

// refusal returns what an authorization server has said in refusing, fit to be shown.
func refusal(err error) (code string, shown error) {
	e, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok {
		return "", err
	}
	text := wire.Printable(e.ErrorCode, 60)
	if e.ErrorDescription != "" {
		text += ": " + wire.Printable(e.ErrorDescription, 200)
	}
	if text == "" && e.Response != nil {
		text = e.Response.Status
	}
	return e.ErrorCode, fmt.Errorf("the authorization server refuses: %s", text) // not wrapped: its body may hold secrets
}

// final reports a refusal that asking again cannot change.
func final(code string) bool {
	return slices.Contains([]string{"invalid_grant", "invalid_client", "unauthorized_client", "unsupported_grant_type"}, code)
}

// usable reports whether an access token has not run out.
func (g *grant) usable(now time.Time) bool {
	return g != nil && g.Access != "" && (g.Expiry.IsZero() || now.Before(g.Expiry))
}

// due reports whether it is time to renew an access token: a minute before it runs
// out, or a tenth of a shorter life.
func (g *grant) due(now time.Time) bool {
	if g.Expiry.IsZero() || g.Refresh == "" && g.Login.After(time.Time{}) && now.Before(g.Expiry) {
		return false // or there is nothing to renew it by
	}
	ahead := min(time.Minute, g.Expiry.Sub(g.Issued)/10)
	return !now.Before(g.Expiry.Add(-ahead))
}
