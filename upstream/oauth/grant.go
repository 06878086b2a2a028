package oauth

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/haldir-mcp/haldir/internal/secret"
)

// Store keeps secrets; [secret.Store] is one.
type Store interface {
	Get(name string) (string, error)
	Update(name string, change func(old string, ok bool) (value string, keep bool, err error)) error
}

// grant is what haldir has been granted for one upstream, and by whom.
type grant struct {
	Resource string    `json:"resource"` // as the resource indicator names it (RFC 8707)
	Issuer   string    `json:"issuer"`
	TokenURL string    `json:"token_url"`
	Revoke   string    `json:"revocation_url,omitempty"`
	Inside   bool      `json:"inside,omitempty"` // see Web
	Client   client    `json:"client"`
	Access   string    `json:"access_token,omitempty"`
	Refresh  string    `json:"refresh_token,omitempty"`
	Issued   time.Time `json:"issued"`
	Login    time.Time `json:"login,omitzero"`  // when a person signed in
	Expiry   time.Time `json:"expiry,omitzero"` // zero: not told
	Scopes   []string  `json:"scopes,omitempty"`
	// Wanted are scopes that a server has asked for since: a login asks for them too.
	Wanted []string `json:"wanted,omitempty"`
	// Ended says why it cannot be renewed any more; "" if it can.
	Ended string `json:"ended,omitempty"`
}

// client is haldir as an authorization server knows it. It belongs to that server
// alone: with another one haldir registers anew.
type client struct {
	ID         string    `json:"id"`
	Secret     string    `json:"secret,omitempty"`
	Auth       string    `json:"auth"` // basic, post or none
	Port       int       `json:"port,omitempty"`
	Registered bool      `json:"registered,omitempty"` // by haldir itself (RFC 7591)
	Expires    time.Time `json:"expires,omitzero"`     // of Secret
}

// grant begins what r is to grant.
func (o *Options) grant(r *realm) *grant {
	return &grant{Inside: o.Web.inside.Load(), Resource: r.resource, Issuer: r.meta.Issuer, TokenURL: r.meta.TokenEndpoint, Revoke: r.meta.RevocationEndpoint}
}

// basic is the client's secret as it is sent in a header (RFC 6749 section 2.3.1), which
// a server may repeat; "" if it is not.
func (c client) basic() string {
	if c.Secret == "" || c.Auth != "basic" {
		return ""
	}
	return base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(c.ID) + ":" + url.QueryEscape(c.Secret)))
}

// name is under what the grant of an upstream is stored. Another url is another
// server, which must not be shown the tokens of this one.
func (o *Options) name() string {
	sum := sha256.Sum256([]byte(o.Server))
	return "oauth/" + o.Upstream + "/" + hex.EncodeToString(sum[:8])
}

// read returns what is stored, nil if nothing is.
func (o *Options) read() (*grant, error) {
	text, err := o.Store.Get(o.name())
	if errors.Is(err, secret.ErrNotFound) {
		return nil, nil //nolint:nilnil // there is none, and that is no error
	}
	if err != nil {
		return nil, err
	}
	return o.decode(text)
}

func (o *Options) decode(text string) (*grant, error) {
	g := &grant{}
	if err := json.Unmarshal([]byte(text), g); err != nil {
		return nil, fmt.Errorf("what is stored of the sign-in to upstream %q is damaged; sign in again with: %s", o.Upstream, o.command())
	}
	for _, v := range []string{g.Access, g.Refresh, g.Client.Secret, g.Client.basic()} {
		if v != "" {
			o.secret(v)
		}
	}
	return g, nil
}

// change replaces what is stored by what f makes of it: nil removes it. f is given nil
// if nothing is stored.
func (o *Options) change(f func(*grant) (*grant, error)) (now *grant, err error) {
	err = o.Store.Update(o.name(), func(old string, ok bool) (string, bool, error) {
		var g *grant
		if ok {
			if g, err = o.decode(old); err != nil {
				g = nil // a new one takes its place
			}
		}
		if now, err = f(g); err != nil || now == nil {
			return "", false, err
		}
		text, err := json.Marshal(now) //nolint:gosec // the store encrypts it
		return string(text), true, err
	})
	return now, err
}

func union(lists ...[]string) []string {
	var all []string
	for _, l := range lists {
		for _, s := range l {
			if !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
	}
	return all
}
