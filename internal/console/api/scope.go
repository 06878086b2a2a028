package api

import (
	"fmt"
	"slices"
	"strings"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// Scope is what a key may do.
type Scope string

// The scopes. The list is closed.
const (
	ProxyRead      Scope = "proxy:read"      // upstreams, tools, policies, limits, pins, whether haldir is stopped
	ProxyCall      Scope = "proxy:call"      // call tools
	ProxyWrite     Scope = "proxy:write"     // add and remove upstreams and policies, accept pins
	SessionsRead   Scope = "sessions:read"   // list sessions, ask what one may do
	SessionsWrite  Scope = "sessions:write"  // create and revoke sessions
	AuditRead      Scope = "audit:read"      // the audit, in every form
	MetricsRead    Scope = "metrics:read"    // sums for Prometheus, with the names of tools and rules
	ApprovalsRead  Scope = "approvals:read"  // what waits for a person
	ApprovalsWrite Scope = "approvals:write" // approve and deny in a person's place
	StopWrite      Scope = "stop:write"      // stop every call, and let calls go on
	KeysRead       Scope = "keys:read"       // list the keys
	KeysWrite      Scope = "keys:write"      // make keys that may no more than this one, revoke any
)

// Scopes are all of them.
var Scopes = []Scope{
	ProxyRead, ProxyCall, ProxyWrite, SessionsRead, SessionsWrite, AuditRead, MetricsRead, ApprovalsRead, ApprovalsWrite, StopWrite, KeysRead, KeysWrite,
}

// anyKey is the scope of a route that any key may use.
const anyKey Scope = ""

// CheckScopes says what is wrong with the scopes that a key is to have.
func CheckScopes(names []string) error {
	if len(names) == 0 {
		return fmt.Errorf("a key needs at least one scope; they are %s", scopeList())
	}
	for _, n := range names {
		if !slices.Contains(Scopes, Scope(n)) {
			return fmt.Errorf("%q is no scope of a key; they are %s", n, scopeList())
		}
	}
	return nil
}

func scopeList() string {
	var names []string
	for _, s := range Scopes {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

// Caller is who makes a request.
type Caller struct {
	Person bool       // by the page; may do everything
	Key    ledger.Key // else
	// Valid says whether the caller may still do what it might when it came, for answers
	// that take long.
	Valid func() bool
}

// May reports whether the caller has a scope.
func (c *Caller) May(s Scope) bool {
	return c.Person || s == anyKey || slices.Contains(c.Key.Scopes, string(s))
}

// id tells callers apart.
func (c *Caller) id() string {
	if c.Person {
		return "console"
	}
	return c.Key.ID
}

// client is what the audit calls the caller.
func (c *Caller) client() string {
	if c.Person {
		return "console"
	}
	return "api key " + c.Key.Name
}

// exceeds says what a session grants that the caller may not give away; "" if nothing.
func (c *Caller) exceeds(allScopes bool, scopes []string, limit *policy.Micros) string {
	if c.Person {
		return ""
	}
	if most := c.Key.SessionScopes; most != nil {
		if allScopes {
			return "all scopes, and this key may give " + listed(most)
		}
		for _, s := range scopes {
			if !slices.Contains(most, s) {
				return fmt.Sprintf("the scope %q, and this key may give %s", s, listed(most))
			}
		}
	}
	switch most := c.Key.MaxSpend; {
	case most == nil:
	case limit == nil:
		return fmt.Sprintf("spending without limit, and this key may give %s", most)
	case *limit > *most:
		return fmt.Sprintf("a limit of %s, and this key may give %s", limit, most)
	}
	return ""
}

func listed(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
