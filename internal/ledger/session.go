package ledger

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/policy"
)

// Terms are what a session grants.
type Terms struct {
	Agent      string         `json:"agent_id"`
	AllScopes  bool           `json:"all_scopes,omitempty"`
	Scopes     []string       `json:"scopes,omitempty"`
	SpendLimit *policy.Micros `json:"-"`
	TTL        time.Duration  `json:"-"` // 0 means it does not expire
}

// Origin tells where a session's terms come from.
type Origin string

// The origins.
const (
	// OriginConfig: the session block of the config of whoever uses the session;
	// a changed block changes the session.
	OriginConfig Origin = "config"
	// OriginCommand: haldir session create; the terms are fixed.
	OriginCommand Origin = "command"
	// OriginAPI: the REST API; the terms are fixed.
	OriginAPI Origin = "api"
)

// Session is one agent's stretch of work.
type Session struct {
	ID        string         `json:"session_id"`
	Agent     string         `json:"agent_id"`
	AllScopes bool           `json:"all_scopes,omitempty"`
	Scopes    []string       `json:"scopes"`
	Limit     *policy.Micros `json:"spend_limit_usd,omitempty"`
	Created   time.Time      `json:"created"`
	ExpiresAt time.Time      `json:"expires_at,omitzero"`
	RevokedAt time.Time      `json:"revoked_at,omitzero"`
	Cancelled bool           `json:"cancelled,omitempty"` // revoked, and its running calls with it
	RenewedAt time.Time      `json:"renewed_at,omitzero"`
	Renewed   time.Duration  `json:"renewed_for,omitempty"` // from RenewedAt on, instead of what the terms say
	Origin    Origin         `json:"origin"`
	Key       string         `json:"key_id,omitempty"` // of the REST API, by which it was made
}

// Use says which session a call belongs to.
type Use struct {
	ID string
	// Terms make the session if it does not exist yet, and govern it while its
	// origin is the config. Without them the session must exist.
	Terms *Terms
	// Fresh says that this process made the id, with [NewSessionID].
	Fresh bool
	// Command is how a person runs haldir for this ledger, for what is said of a session that
	// there is not; "haldir" if it is empty.
	Command string
}

// Missing is what is against a call in a session that there is not.
func (u Use) Missing() *policy.Finding {
	command := cmp.Or(u.Command, "haldir")
	reason := fmt.Sprintf("There is no session %s; create one with: %s session create", u.ID, command)
	if u.Terms != nil { // it would have been made, but for the doubt
		reason = fmt.Sprintf("What session %s had used, and whether it was revoked, was lost with a damaged ledger; "+
			"begin another one, or let it begin anew with: %s ledger trust", u.ID, command)
	}
	return &policy.Finding{Policy: policy.PolicySession, Rule: "unknown", Reason: reason}
}

func (s *Session) apply(t *Terms) {
	s.Agent, s.AllScopes, s.Scopes, s.Limit = t.Agent, t.AllScopes, t.Scopes, t.SpendLimit
	s.ExpiresAt = time.Time{}
	if t.TTL > 0 {
		s.ExpiresAt = s.Created.Add(t.TTL)
	}
	if !s.RenewedAt.IsZero() && !s.ExpiresAt.IsZero() {
		s.ExpiresAt = s.RenewedAt.Add(s.Renewed)
	}
}

// State returns what a decision needs to know of s.
func (s *Session) State() policy.SessionState {
	return policy.SessionState{
		ID: s.ID, AllScopes: s.AllScopes, Scopes: s.Scopes, SpendLimit: s.Limit, ExpiresAt: s.ExpiresAt, Revoked: !s.RevokedAt.IsZero(),
	}
}

func (t *tx) session(id string) (*Session, error) {
	raw := t.space(spaceSessions).get([]byte(id))
	if raw == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoSession, id)
	}
	if last := t.recent; last != nil && bytes.Equal(last.raw, raw) {
		s := last.Session
		return &s, nil
	}
	var s Session
	if err := decode(raw, &s); err != nil {
		return nil, fmt.Errorf("%w: session %s: %w", ErrDamaged, id, err)
	}
	if t.recent != nil {
		*t.recent = recent{bytes.Clone(raw), s}
	}
	return &s, nil
}

// recent is the session that a process read last, as it is in the file: most processes
// have one.
type recent struct {
	raw []byte
	Session
}

// use returns the session of a call, made or brought up to date if need be.
func (t *tx) use(u Use) (*Session, error) {
	s, err := t.session(u.ID)
	switch {
	case errors.Is(err, ErrNoSession) && u.Terms != nil && t.mayBeNew(u):
		return t.create(u.ID, u.Terms, OriginConfig)
	case err != nil:
		return nil, err
	case u.Terms == nil || s.Origin != OriginConfig:
		return s, nil
	}
	before := *s
	s.apply(u.Terms)
	if before.equal(s) || !t.Writable() {
		return s, nil
	}
	return s, t.space(spaceSessions).putJSON([]byte(s.ID), s)
}

// equal compares what [Session.apply] changes.
func (s *Session) equal(o *Session) bool {
	sameLimit := s.Limit == o.Limit || s.Limit != nil && o.Limit != nil && *s.Limit == *o.Limit
	return sameLimit && s.Agent == o.Agent && s.AllScopes == o.AllScopes && slices.Equal(s.Scopes, o.Scopes) && s.ExpiresAt.Equal(o.ExpiresAt)
}

// mayBeNew reports whether a session that is not there was never there. Where
// sessions were lost, one with an id of before may be among them, and must not
// begin anew: its limit would be unused, and it may have been revoked.
func (t *tx) mayBeNew(u Use) bool { return u.Fresh && !t.moved || t.doubt().IsZero() }

func (t *tx) create(id string, terms *Terms, origin Origin) (*Session, error) {
	s := &Session{ID: id, Created: t.now, Origin: origin}
	s.apply(terms)
	if !t.Writable() {
		return s, nil
	}
	if err := t.space(spaceSessions).putJSON([]byte(id), s); err != nil {
		return nil, err
	}
	return s, t.append(&audit.Record{Kind: audit.KindSession, Status: audit.StatusCreated, Session: id, Agent: s.Agent})
}

// NewSessionID returns an unguessable session id.
func NewSessionID() string { return newID("ses_") }

// CreateSession makes a session with fixed terms.
func (l *Ledger) CreateSession(ctx context.Context, terms Terms) (s Session, err error) {
	id := NewSessionID()
	err = l.do(ctx, true, func(t *tx) error {
		made, err := t.create(id, &terms, OriginCommand)
		if err == nil {
			s = *made
		}
		return err
	})
	return s, err
}

// Session returns a session as u would use it, without making it.
func (l *Ledger) Session(ctx context.Context, u Use) (s Session, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		found, err := t.peek(u)
		if err == nil {
			s = *found
		}
		return err
	})
	return s, err
}

// peek is use without a write, whatever the transaction is.
func (t *tx) peek(u Use) (*Session, error) {
	s, err := t.session(u.ID)
	if errors.Is(err, ErrNoSession) && u.Terms != nil && t.mayBeNew(u) {
		s, err = &Session{ID: u.ID, Created: t.now, Origin: OriginConfig}, nil
	}
	if err != nil {
		return nil, err
	}
	if u.Terms != nil && s.Origin == OriginConfig {
		s.apply(u.Terms)
	}
	return s, nil
}

// Sessions lists all sessions, the newest first.
func (l *Ledger) Sessions(ctx context.Context) (list []Session, err error) {
	var from []byte
	for more := true; more; {
		var some []Session
		err = l.do(ctx, false, func(t *tx) error {
			some = nil
			return t.space(spaceSessions).some(from, page, func(_, raw []byte) error {
				var s Session
				if err := decode(raw, &s); err != nil {
					return fmt.Errorf("%w: a session: %w", ErrDamaged, err)
				}
				some = append(some, s)
				return nil
			})
		})
		if err != nil {
			return nil, err
		}
		if more = len(some) == page; more {
			from = append([]byte(some[page-1].ID), 0)
		}
		list = append(list, some...)
	}
	slices.SortFunc(list, func(a, b Session) int { return b.Created.Compare(a.Created) })
	return list, nil
}

// Revoke ends a session: new calls are refused by every process. Its running calls finish,
// or, with cancel, are cancelled as soon as their processes see it; those that wait for a
// person are denied. Revoking twice changes nothing, but that the second may cancel.
func (l *Ledger) Revoke(ctx context.Context, id string, cancel bool) (s Session, err error) {
	err = l.wait(ctx, &op{write: true, done: make(chan error, 1), then: l.ring, run: func(t *tx) error {
		found, err := t.session(id)
		if err != nil {
			return err
		}
		s = *found
		if !found.RevokedAt.IsZero() && (found.Cancelled || !cancel) {
			return nil
		}
		if s.RevokedAt.IsZero() {
			s.RevokedAt = t.now
		}
		for _, p := range t.allPending() {
			if p.Session != id {
				continue
			}
			if err := t.answer(&p, Answer{Channel: ChannelRevoked}); err != nil {
				return err
			}
		}
		rec := &audit.Record{Kind: audit.KindSession, Status: audit.StatusRevoked, Session: id, Agent: found.Agent}
		if s.Cancelled = cancel; cancel {
			rec.FlagReason = "its running calls are cancelled"
		}
		if err := t.space(spaceSessions).putJSON([]byte(id), &s); err != nil {
			return err
		}
		return t.append(rec)
	}})
	return s, err
}

// ErrRevoked says that a session was revoked, which is for ever.
var ErrRevoked = errors.New("the session was revoked; create another one")

// Renew lets a session last for ttl from now on. One that does not expire stays so.
func (l *Ledger) Renew(ctx context.Context, id string, ttl time.Duration) (s Session, err error) {
	if ttl <= 0 {
		return s, fmt.Errorf("a session cannot be renewed for %v; revoke it to end it", ttl)
	}
	err = l.do(ctx, true, func(t *tx) error {
		found, err := t.session(id)
		if err != nil {
			return err
		}
		s = *found
		switch {
		case !s.RevokedAt.IsZero():
			return ErrRevoked
		case s.ExpiresAt.IsZero():
			return nil
		}
		s.RenewedAt, s.Renewed, s.ExpiresAt = t.now, ttl, t.now.Add(ttl)
		if err := t.space(spaceSessions).putJSON([]byte(id), &s); err != nil {
			return err
		}
		return t.append(&audit.Record{
			Kind: audit.KindSession, Status: audit.StatusRenewed, Session: id, Agent: s.Agent, FlagReason: "until " + s.ExpiresAt.Format(time.RFC3339),
		})
	})
	return s, err
}
