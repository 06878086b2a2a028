package api

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
)

// sessionBody asks for a session.
type sessionBody struct {
	AgentID    string         `json:"agent_id"`
	Scopes     []string       `json:"scopes"`
	TTL        *seconds       `json:"ttl"` // 0 means that it does not expire
	SpendLimit *policy.Micros `json:"spend_limit"`
}

// seconds is a number of them. Whoever writes "1h" is told what is taken.
type seconds int64

func (s *seconds) UnmarshalJSON(raw []byte) error {
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil {
		return errors.New("must be a whole number of seconds, such as 3600")
	}
	*s = seconds(n)
	return nil
}

// What a session has that does not say, as in the original product.
const (
	defaultTTL = 3600
	maxTTL     = 366 * 24 * 3600
)

var defaultScopes = []string{"read", "browse"}

// scopeName is what a scope of a session may be called, as in haldir.yaml.
var scopeName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z][a-z0-9:_.-]{0,63}$`) })

// terms are what is asked for.
func (b *sessionBody) terms() (t ledger.Terms, ttl int64, err error) {
	if n := utf8.RuneCountInString(b.AgentID); n < 1 || n > 128 || strings.ContainsFunc(b.AgentID, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return t, 0, malformed("agent_id must have 1 to 128 printable characters")
	}
	t = ledger.Terms{Agent: b.AgentID, SpendLimit: b.SpendLimit}
	if b.SpendLimit != nil && *b.SpendLimit < 0 {
		return t, 0, malformed("spend_limit must not be negative")
	}
	if b.Scopes == nil {
		b.Scopes = defaultScopes
	}
	for _, s := range b.Scopes {
		if amount, ok := strings.CutPrefix(s, "spend:"); ok { // the original's other way to say spend_limit
			limit, err := policy.ParseUSD(amount)
			if err != nil {
				return t, 0, malformed("the scope %q: %v", wire.Printable(s, 100), err)
			}
			if t.SpendLimit == nil || limit < *t.SpendLimit {
				t.SpendLimit = &limit
			}
			s = "spend"
		}
		if !scopeName().MatchString(s) {
			return t, 0, malformed("%q is no scope of a session; use lower-case names such as read, execute, spend", wire.Printable(s, 100))
		}
		if !slices.Contains(t.Scopes, s) {
			t.Scopes = append(t.Scopes, s)
		}
	}
	ttl = defaultTTL
	if b.TTL != nil {
		ttl = int64(*b.TTL)
	}
	if ttl < 0 || ttl > maxTTL {
		return t, 0, malformed("ttl must be a number of seconds from 0, which means that the session does not expire, to %d", maxTTL)
	}
	t.TTL = time.Duration(ttl) * time.Second
	return t, ttl, nil
}

// sessionJSON is a session as the API shows it.
type sessionJSON struct {
	SessionID  string         `json:"session_id"`
	AgentID    string         `json:"agent_id"`
	Status     string         `json:"status"` // active, expired or revoked
	IsValid    bool           `json:"is_valid"`
	AllScopes  bool           `json:"all_scopes"`
	Scopes     []string       `json:"scopes"`
	SpendLimit *policy.Micros `json:"spend_limit"`
	Spent      policy.Micros  `json:"spent"`
	Remaining  *policy.Micros `json:"remaining_budget"` // by every limit that concerns the whole session
	Calls      int64          `json:"action_count"`
	CreatedAt  time.Time      `json:"created_at"`
	ExpiresAt  *string        `json:"expires_at"`
	RevokedAt  *string        `json:"revoked_at,omitempty"`
	Origin     string         `json:"origin"`
	KeyID      string         `json:"key_id,omitempty"`
}

// stamp is a time as the API shows it; nil for the zero time.
func stamp(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := t.UTC().Format(time.RFC3339Nano)
	return &s
}

func (a *API) createSession(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	var body sessionBody
	if err := r.into(&body); err != nil {
		return nil, err
	}
	terms, ttl, err := body.terms()
	if err != nil {
		return nil, err
	}
	if terms.SpendLimit == nil && !r.caller.Person {
		terms.SpendLimit = r.caller.Key.MaxSpend // what the key may give at most
	}
	if why := r.caller.exceeds(false, terms.Scopes, terms.SpendLimit); why != "" {
		return nil, NewProblem(http.StatusForbidden, "forbidden", "the session would grant %s", why)
	}
	s, err := a.o.Ledger.MintSession(r.Context(), terms, r.caller.Key.ID, r.caller.client())
	if err != nil {
		return nil, err
	}
	shown, err := a.describe(r.Context(), s)
	if err != nil {
		return nil, err
	}
	return &reply{status: http.StatusCreated, location: "/v1/sessions/" + s.ID, body: struct {
		sessionJSON
		TTL int64 `json:"ttl"`
	}{shown, ttl}}, nil
}

// describe adds to a session what it has used.
func (a *API) describe(ctx context.Context, s ledger.Session) (sessionJSON, error) {
	out := sessionJSON{
		SessionID: s.ID, AgentID: s.Agent, Status: "active", AllScopes: s.AllScopes, Scopes: append([]string{}, s.Scopes...), SpendLimit: s.Limit,
		CreatedAt: s.Created.UTC(), ExpiresAt: stamp(s.ExpiresAt), RevokedAt: stamp(s.RevokedAt), Origin: string(s.Origin), KeyID: s.Key,
	}
	switch {
	case !s.RevokedAt.IsZero():
		out.Status = "revoked"
	case !s.ExpiresAt.IsZero() && !a.o.Clock().Before(s.ExpiresAt):
		out.Status = "expired"
	}
	out.IsValid = out.Status == "active"
	spend, err := a.spend(ctx, s.ID)
	if err != nil {
		return out, err
	}
	out.Spent, out.Remaining, out.Calls = spend.TotalUSD, spend.RemainingUSD, spend.ActionCount
	return out, nil
}

// maxSessions is how many sessions one list has.
const maxSessions = 1000

func (a *API) listSessions(r *request) (*reply, error) {
	if err := r.takes("limit", "agent_id", "status"); err != nil {
		return nil, err
	}
	limit, err := r.number("limit", 100, 1, maxSessions)
	if err != nil {
		return nil, err
	}
	status := r.query.Get("status")
	if status != "" && !slices.Contains([]string{"active", "expired", "revoked"}, status) {
		return nil, malformed("the parameter status must be active, expired or revoked, not %q", wire.Printable(status, 50))
	}
	list, err := a.o.Ledger.Sessions(r.Context())
	if err != nil {
		return nil, err
	}
	out := []sessionJSON{}
	for _, s := range list {
		if len(out) == limit {
			break
		}
		if agent := r.query.Get("agent_id"); agent != "" && s.Agent != agent {
			continue
		}
		d, err := a.describe(r.Context(), s)
		if errors.Is(err, ledger.ErrNoSession) {
			continue // it was there a moment ago
		}
		if err != nil {
			return nil, err
		}
		if status == "" || d.Status == status {
			out = append(out, d)
		}
	}
	return &reply{body: map[string]any{"count": len(out), "sessions": out}}, nil
}

func (a *API) showSession(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	s, err := a.o.Ledger.Session(r.Context(), ledger.Use{ID: r.PathValue("id")})
	if err != nil {
		return nil, err
	}
	d, err := a.describe(r.Context(), s)
	return &reply{body: d}, err
}

func (a *API) revokeSession(r *request) (*reply, error) {
	if err := r.takes("cancel"); err != nil {
		return nil, err
	}
	cancel, err := r.flag("cancel")
	if err != nil {
		return nil, err
	}
	s, err := a.o.Ledger.Revoke(r.Context(), r.PathValue("id"), cancel)
	if err != nil {
		return nil, err
	}
	d, err := a.describe(r.Context(), s)
	return &reply{body: struct {
		Revoked bool `json:"revoked"`
		sessionJSON
	}{true, d}}, err
}
