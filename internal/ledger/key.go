package ledger

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/policy"
)

// ErrNoKey says that there is no such key, or that it does not hold any more.
var ErrNoKey = errors.New("no such key")

// KeyTerms are what a key of the REST API grants to who has it.
type KeyTerms struct {
	Name   string   `json:"name"`
	Scopes []string `json:"scopes"` // of the API
	// SessionScopes are those that a session may have that is made or used with it;
	// nil means any.
	SessionScopes []string `json:"session_scopes"`
	// MaxSpend is the highest limit of such a session; nil means that it needs none.
	MaxSpend  *policy.Micros `json:"max_spend"`
	ExpiresAt time.Time      `json:"expires_at,omitzero"`
}

// Key is a key of the REST API. The key itself is not stored, but its SHA-256.
type Key struct {
	ID string `json:"key_id"`
	KeyTerms
	Parent    string    `json:"parent,omitempty"` // the key that made it
	Created   time.Time `json:"created"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
	LastUsed  time.Time `json:"last_used,omitzero"` // to the hour or so
}

// Holds reports whether the key may be used at a time.
func (k *Key) Holds(now time.Time) bool {
	return k.RevokedAt.IsZero() && (k.ExpiresAt.IsZero() || now.Before(k.ExpiresAt))
}

// keyPrefix begins every key, so that people and scanners know one when they see it.
const keyPrefix = "hld_"

// keyDigits is how many digits of base 62 hold 256 bits.
const keyDigits = 43

// newSecret returns a key of 256 random bits.
func newSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	digits := new(big.Int).SetBytes(b[:]).Text(62)
	return keyPrefix + strings.Repeat("0", keyDigits-len(digits)) + digits
}

// lastUsedAfter is how old the time of the last use may be: each use would be a write.
const lastUsedAfter = time.Hour

// CreateKey makes a key and returns it with its secret, which is told only here.
func (l *Ledger) CreateKey(ctx context.Context, terms KeyTerms, parent string) (k Key, secret string, err error) {
	secret = newSecret()
	sum := sha256.Sum256([]byte(secret))
	err = l.do(ctx, true, func(t *tx) error {
		k = Key{ID: newID("key_"), KeyTerms: terms, Parent: parent, Created: t.now}
		if parent != "" { // it may have been revoked meanwhile
			p, err := t.key(parent)
			if err != nil {
				return err
			}
			if !p.Holds(t.now) {
				return fmt.Errorf("%w: %s does not hold any more", ErrNoKey, parent)
			}
		}
		if err := t.space(spaceKeys).putJSON(sum[:], k); err != nil {
			return err
		}
		return t.recordKey(&k, audit.StatusCreated)
	})
	return k, secret, err
}

// recordKey puts on record what happened to a key, and what it grants.
func (t *tx) recordKey(k *Key, s audit.Status) error {
	text, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return t.append(&audit.Record{
		Kind: audit.KindKey, Status: s, CallID: k.ID, Client: k.Name,
		Arguments: text, ArgumentsSHA256: sha256.Sum256(text), ArgumentsSize: uint64(len(text)),
	})
}

// Authenticate returns the key that is told, if it holds; else [ErrNoKey].
func (l *Ledger) Authenticate(ctx context.Context, secret string) (k Key, err error) {
	sum := sha256.Sum256([]byte(secret))
	stale := false
	err = l.do(ctx, false, func(t *tx) (err error) {
		if k, err = t.authentic(sum[:]); err != nil {
			return err
		}
		stale = t.now.Sub(k.LastUsed) >= lastUsedAfter
		return nil
	})
	if err != nil || !stale {
		return k, err
	}
	err = l.do(ctx, true, func(t *tx) (err error) {
		if k, err = t.authentic(sum[:]); err != nil {
			return err
		}
		k.LastUsed = t.now
		return t.space(spaceKeys).putJSON(sum[:], k)
	})
	return k, err
}

// authentic returns the key whose secret has that hash, if it holds.
func (t *tx) authentic(sum []byte) (k Key, err error) {
	raw := t.space(spaceKeys).get(sum)
	if raw == nil {
		return k, ErrNoKey
	}
	if err := decodeKey(raw, &k); err != nil {
		return k, err
	}
	if !k.Holds(t.now) {
		return k, ErrNoKey
	}
	return k, nil
}

func decodeKey(raw []byte, k *Key) error {
	*k = Key{}
	if err := decode(raw, k); err != nil {
		return fmt.Errorf("%w: a key: %w", ErrDamaged, err)
	}
	return nil
}

// key finds a key by its id.
func (t *tx) key(id string) (k Key, err error) {
	err = t.space(spaceKeys).each(nil, func(_, raw []byte) error {
		var some Key
		if err := decodeKey(raw, &some); err != nil {
			return err
		}
		if some.ID == id {
			k = some
		}
		return nil
	})
	if err == nil && k.ID == "" {
		err = fmt.Errorf("%w: %s", ErrNoKey, id)
	}
	return k, err
}

// Keys lists all keys, the newest first.
func (l *Ledger) Keys(ctx context.Context) (list []Key, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		list = nil
		return t.space(spaceKeys).each(nil, func(_, raw []byte) error {
			var k Key
			if err := decodeKey(raw, &k); err != nil {
				return err
			}
			list = append(list, k)
			return nil
		})
	})
	slices.SortFunc(list, func(a, b Key) int {
		if d := b.Created.Compare(a.Created); d != 0 {
			return d
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list, err
}

// RevokeKey ends a key, and those that were made with it. Revoking twice is no error
// and changes nothing.
func (l *Ledger) RevokeKey(ctx context.Context, id string) (k Key, err error) {
	err = l.do(ctx, true, func(t *tx) error {
		if _, err := t.key(id); err != nil {
			return err
		}
		type found struct {
			sum []byte
			k   Key
		}
		var all []found
		err := t.space(spaceKeys).each(nil, func(sum, raw []byte) error {
			f := found{sum: bytes.Clone(sum)}
			if err := decodeKey(raw, &f.k); err != nil {
				return err
			}
			all = append(all, f)
			return nil
		})
		if err != nil {
			return err
		}
		ending := map[string]bool{id: true}
		for more := true; more; { // a parent may be listed after its children
			more = false
			for _, f := range all {
				if ending[f.k.Parent] && !ending[f.k.ID] {
					ending[f.k.ID], more = true, true
				}
			}
		}
		for _, f := range all {
			if ending[f.k.ID] && f.k.RevokedAt.IsZero() {
				f.k.RevokedAt = t.now
				if err := t.space(spaceKeys).putJSON(f.sum, f.k); err != nil {
					return err
				}
				if err := t.recordKey(&f.k, audit.StatusRevoked); err != nil {
					return err
				}
			}
			if f.k.ID == id {
				k = f.k
			}
		}
		return nil
	})
	return k, err
}

// MintSession makes a session with fixed terms for who uses the REST API; client says
// who that is.
func (l *Ledger) MintSession(ctx context.Context, terms Terms, key, client string) (s Session, err error) {
	id := NewSessionID()
	err = l.do(ctx, true, func(t *tx) error {
		s = Session{ID: id, Created: t.now, Origin: OriginAPI, Key: key}
		s.apply(&terms)
		if err := t.space(spaceSessions).putJSON([]byte(id), s); err != nil {
			return err
		}
		return t.append(&audit.Record{Kind: audit.KindSession, Status: audit.StatusCreated, Session: id, Agent: s.Agent, Client: client})
	})
	return s, err
}
