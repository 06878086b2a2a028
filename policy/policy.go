package policy

import (
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Micros is an amount of money in millionths of a US dollar.
type Micros int64

// USD is one dollar.
const USD Micros = 1_000_000

// String formats m with at least two and at most six decimals: $0.004, $25.00.
func (m Micros) String() string {
	sign, u := "", uint64(m) //nolint:gosec // two's complement: the sign is dealt with below
	if m < 0 {
		sign, u = "-", -u
	}
	frac := strings.TrimRight(fmt.Sprintf("%06d", u%uint64(USD)), "0")
	for len(frac) < 2 {
		frac += "0"
	}
	return sign + "$" + strconv.FormatUint(u/uint64(USD), 10) + "." + frac
}

// MarshalJSON writes m as an exact decimal number of dollars.
func (m Micros) MarshalJSON() ([]byte, error) {
	s := strings.Replace(m.String(), "$", "", 1)
	s = strings.TrimRight(s, "0")
	return []byte(strings.TrimSuffix(s, ".")), nil
}

// UnmarshalJSON reads what MarshalJSON wrote, which may be a sum or a balance
// that [ParseUSD] would not take for an amount.
func (m *Micros) UnmarshalJSON(b []byte) error {
	r, ok := new(big.Rat).SetString(string(b))
	if !ok || len(b) > 64 || !jsonNumber(string(b)) {
		return fmt.Errorf("%q is no amount", clip(string(b)))
	}
	r.Mul(r, new(big.Rat).SetInt64(int64(USD)))
	if !r.IsInt() || !r.Num().IsInt64() {
		return fmt.Errorf("%q is no amount in millionths", clip(string(b)))
	}
	*m = Micros(r.Num().Int64())
	return nil
}

// Kind is what a call asks for.
type Kind uint8

// The kinds. Only tools have names of their own in patterns; the others are
// written resource:upstream/uri and prompt:upstream/name.
const (
	KindTool     Kind = iota // tools/call
	KindResource             // resources/read; Tool is the URI
	KindPrompt               // prompts/get; Tool is the prompt's name
	kinds
)

var kindPrefixes = [kinds]string{KindResource: "resource:", KindPrompt: "prompt:"}

var kindNouns = [kinds]string{KindTool: "tool", KindResource: "resource", KindPrompt: "prompt"}

// Call is one request as policies see it: a tools/call, or what Kind says.
type Call struct {
	Kind                           Kind
	Session, Agent, Upstream, Tool string
	// Arguments are the very bytes that go upstream: a JSON object, or nil for
	// a call without arguments.
	Arguments json.RawMessage
	// ReadOnly says that the tool's annotations claim it changes nothing and
	// that the config trusts this upstream's annotations.
	ReadOnly bool
	// Partial says that more arguments may come: a condition that is about others than
	// those here says nothing against the call yet.
	Partial bool

	ready *ready // what Prepare found out; nil before
}

// ID returns the canonical id of what is called: upstream/tool, with a prefix
// for what is no tool.
func (c Call) ID() string { return kindPrefixes[c.Kind] + c.Upstream + "/" + c.Tool }

// Recorded returns the name under which the audit knows what is called.
func (c Call) Recorded() string { return kindPrefixes[c.Kind] + c.Tool }

// Noun is what a sentence calls what is called: Tool 'x'.
func (c *Call) Noun() string {
	return strings.ToUpper(kindNouns[c.Kind][:1]) + kindNouns[c.Kind][1:] + " '" + c.Tool + "'"
}

// CounterKey names one counter. Counter is the rule's part, Of the part of the
// world that it counts: a session, an agent, a tool.
type CounterKey struct{ Counter, Of string }

// Counters that are kept for every session, whatever the rules are.
const (
	CounterSessionSpend = "session-spend" // Of: the session's id; micro-USD
	CounterSessionCalls = "session-calls" // Of: the session's id; admitted calls
	CounterToolSpend    = "tool-spend"    // Of: session id, a zero byte, canonical tool id; micro-USD
)

// ToolSpendOf returns the Of of a [CounterToolSpend] counter.
func ToolSpendOf(session, canonical string) string { return session + "\x00" + canonical }

// Counter is the value of a counter in the window that began at Start. A
// counter without windows has the zero Start.
type Counter struct {
	Start time.Time
	Value int64
}

// SessionState is what a decision needs to know of a session.
type SessionState struct {
	ID string
	// AllScopes grants every scope; else Scopes lists the granted ones.
	AllScopes  bool
	Scopes     []string
	SpendLimit *Micros // nil means no limit; zero means nothing may be spent
	ExpiresAt  time.Time
	Revoked    bool
}

// Has reports whether the session grants scope.
func (s SessionState) Has(scope string) bool {
	if s.AllScopes {
		return true
	}
	return slices.Contains(s.Scopes, scope)
}

// State is all that a decision may depend on besides the call.
type State struct {
	Now     time.Time // never runs backwards
	Session SessionState
	Used    map[CounterKey]Counter // a key that is absent counts as zero
	// Granted says that a person has allowed this very call.
	Granted bool
}

// Verdict is the outcome of a decision. Its zero value refuses.
type Verdict uint8

// The verdicts.
const (
	Deny Verdict = iota
	Ask          // a person must allow the call
	Allow
)

// String returns "deny", "ask" or "allow".
func (v Verdict) String() string {
	switch v {
	case Deny:
		return "deny"
	case Ask:
		return "ask"
	case Allow:
		return "allow"
	}
	return "deny"
}

// Hold reserves Amount on the counter Key in the window that began at Start.
// Money is in micro-USD, else the amount counts calls.
type Hold struct {
	Key    CounterKey
	Start  time.Time
	Amount int64
	Money  bool
	// Window is how long after Start the counter means something; 0 is for ever.
	Window time.Duration
	// Streak says that the counter is that of failures in a row: it begins anew with a
	// call that goes well.
	Streak bool
}

// Question is what a person is asked.
type Question struct {
	Rules   []string      // the rules that ask
	Timeout time.Duration // the shortest of theirs
	Session bool          // the answer may hold for the same call in the whole session
}

// Finding is what one rule had against a call.
type Finding struct {
	Policy  string    `json:"policy"` // the policy's type, or session, scope, condition, cost
	Rule    string    `json:"rule"`   // the rule's id
	Reason  string    `json:"reason"` // one plain sentence
	Shadow  bool      `json:"shadow,omitempty"`
	RetryAt time.Time `json:"retry_at,omitzero"` // zero: retrying does not help
}

// Decision is the answer to a call.
type Decision struct {
	Verdict Verdict
	// Policy, Rule and Reason come from the first finding in the order session,
	// scope, deny, allow, condition, time window, rate, loop, spend, approval.
	Policy, Rule, Reason string
	// RetryAt is when every rule that refused could let the call pass; zero
	// when retrying does not help.
	RetryAt time.Time
	Cost    Micros
	// CostFrom is the JSON pointer into the result that holds the actual cost,
	// "" when Cost is final.
	CostFrom string
	Holds    []Hold    // to be put on the counters if the call is let through
	Also     []Finding // what the other rules had against it, shadow rules included
	// Question is what the rules want a person to be asked, nil if none does. It is asked
	// with the verdict Ask; beside a denial it says what would have been.
	Question *Question
}
