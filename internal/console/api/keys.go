package api

import (
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// keyBody asks for a key.
type keyBody struct {
	Name          string         `json:"name"`
	Scopes        []string       `json:"scopes"`
	SessionScopes []string       `json:"session_scopes"` // absent or null: any
	MaxSpend      *policy.Micros `json:"max_spend"`      // absent or null: no limit
	ExpiresAt     time.Time      `json:"expires_at"`
}

// CheckKey says what is wrong with the terms of a key, wherever they come from.
func CheckKey(t ledger.KeyTerms, now time.Time) error {
	if n := utf8.RuneCountInString(t.Name); n < 1 || n > 64 || !utf8.ValidString(t.Name) || strings.ContainsFunc(t.Name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return malformed("a key needs a name of 1 to 64 printable characters")
	}
	if err := CheckScopes(t.Scopes); err != nil {
		return malformed("%v", err)
	}
	for _, s := range t.SessionScopes {
		if !scopeName().MatchString(s) {
			return malformed("%q is no scope of a session; use lower-case names such as read, execute, spend", s)
		}
	}
	switch {
	case t.MaxSpend != nil && *t.MaxSpend < 0:
		return malformed("the most that a session may spend must not be negative")
	case !t.ExpiresAt.IsZero() && !t.ExpiresAt.After(now):
		return malformed("the key would have expired already")
	}
	return nil
}

func (a *API) createKey(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	if r.Header.Get("Idempotency-Key") != "" {
		return nil, malformed("an Idempotency-Key cannot be given here: the new key would have to be stored, and it is told only once")
	}
	var body keyBody
	if err := r.into(&body); err != nil {
		return nil, err
	}
	terms := ledger.KeyTerms{Name: body.Name, Scopes: body.Scopes, SessionScopes: body.SessionScopes, MaxSpend: body.MaxSpend, ExpiresAt: body.ExpiresAt.UTC()}
	if body.ExpiresAt.IsZero() {
		terms.ExpiresAt = time.Time{}
	}
	if err := CheckKey(terms, a.o.Clock()); err != nil {
		return nil, err
	}
	parent := ""
	if !r.caller.Person {
		own := r.caller.Key
		parent = own.ID
		if terms.SessionScopes == nil { // what is not said is what the key has that makes it
			terms.SessionScopes = own.SessionScopes
		}
		if terms.MaxSpend == nil {
			terms.MaxSpend = own.MaxSpend
		}
		if terms.ExpiresAt.IsZero() {
			terms.ExpiresAt = own.ExpiresAt
		}
		if why := more(terms, own.KeyTerms); why != "" {
			return nil, NewProblem(http.StatusForbidden, "forbidden", "the new key would have %s, which this one has not", why)
		}
	}
	k, secret, err := a.o.Ledger.CreateKey(r.Context(), terms, parent)
	if err != nil {
		return nil, err
	}
	return &reply{status: http.StatusCreated, location: "/v1/keys/" + k.ID, body: struct {
		Secret string `json:"key"`
		ledger.Key
		Message string `json:"message"`
	}{secret, k, "keep this key; it is not told again"}}, nil
}

// more says what terms have that the others have not; "" if nothing.
func more(t, than ledger.KeyTerms) string {
	for _, s := range t.Scopes {
		if !slices.Contains(than.Scopes, s) {
			return "the scope " + s
		}
	}
	for _, s := range t.SessionScopes {
		if than.SessionScopes != nil && !slices.Contains(than.SessionScopes, s) {
			return "the session scope " + s
		}
	}
	if than.MaxSpend != nil && (t.MaxSpend == nil || *t.MaxSpend > *than.MaxSpend) {
		return "more to spend"
	}
	if !than.ExpiresAt.IsZero() && (t.ExpiresAt.IsZero() || t.ExpiresAt.After(than.ExpiresAt)) {
		return "a longer life"
	}
	return ""
}

func (a *API) listKeys(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	list, err := a.o.Ledger.Keys(r.Context())
	return &reply{body: map[string]any{"count": len(list), "keys": append([]ledger.Key{}, list...)}}, err
}

func (a *API) revokeKey(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	k, err := a.o.Ledger.RevokeKey(r.Context(), r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	return &reply{body: struct {
		Revoked bool `json:"revoked"`
		ledger.Key
	}{true, k}}, nil
}
