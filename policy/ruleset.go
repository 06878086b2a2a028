package policy

import "time"

// Type is the type of a policy rule.
type Type string

// The types of policy rules.
const (
	TypeDeny       Type = "deny"
	TypeAllow      Type = "allow"
	TypeSpendLimit Type = "spend_limit"
	TypeRateLimit  Type = "rate_limit"
	TypeTimeWindow Type = "time_window"
	TypeApproval   Type = "require_approval"
	TypeLoop       Type = "loop"
)

// Partitions of a counter: what it is kept per.
const (
	PerTotal    = "total"
	PerSession  = "session"
	PerAgent    = "agent"
	PerTool     = "tool"
	PerUpstream = "upstream"
	PerHour     = "hour"
	PerDay      = "day"
	PerWeek     = "week"
	PerMonth    = "month"
)

// Ruleset is everything that decides: what calls cost, which scopes they need
// and the policies. The first matching cost and scope rule counts; every policy
// that applies must let a call pass.
type Ruleset struct {
	Costs    []Cost
	Scopes   []Scope
	Policies []Rule
}

// Cost says what a call of the tools matched by Tools costs. Exactly one of USD
// and FromArgument is used; FromResult goes with USD.
type Cost struct {
	Tools []string
	USD   Micros
	// FromArgument is a JSON pointer (RFC 6901) into the arguments; the amount
	// there is a number or a decimal string, of dollars unless Cents.
	FromArgument    string
	HasFromArgument bool // "" is a valid pointer
	// Cents says that the amount at FromArgument is in hundredths of a dollar.
	Cents bool
	// FromResult is a JSON pointer into the result of the call. USD is then the
	// ceiling that is reserved.
	FromResult string
}

// Scope says which scopes a call of the tools matched by Tools requires.
type Scope struct {
	Tools   []string
	Require []string
}

// Rule is one policy. Tools, Upstreams, Agents and When narrow what it applies
// to; empty means all. For an allow rule Tools and When are the list itself.
type Rule struct {
	ID        string // "" gives the type and the rule's number among its type
	Type      Type
	Shadow    bool // record what the rule would have done, but let the call pass
	Tools     []string
	Upstreams []string // globs of upstream names
	Agents    []string // globs of agent ids
	When      string   // a CEL expression, "" means always

	MaxUSD   Micros         // spend_limit
	MaxCalls int64          // rate_limit
	Window   time.Duration  // rate_limit, loop; positive
	Per      string         // spend_limit (default session), rate_limit (default total)
	Location *time.Location // time_window, spend_limit per calendar period; nil means UTC
	Hours    *Hours         // time_window; nil means the whole day
	Days     []time.Weekday // time_window; none means every day

	Timeout    time.Duration // require_approval: how long a person has; 0 means [DefaultTimeout]
	Once       bool          // require_approval: no answer holds for a whole session
	MaxRepeats int64         // loop; positive
}

// DefaultTimeout is how long a person has to answer.
const DefaultTimeout = 5 * time.Minute

// RuleError is an error of [Compile] about one entry of a [Ruleset].
type RuleError struct {
	List  string // "costs", "scopes" or "policies"
	Index int    // of the entry in its list
	Field string // the field as haldir.yaml spells it, e.g. "when" or "tools"
	Item  int    // of the element in a list field, -1 when the field is no list
	// Line and Column are where in the text of a When the mistake is, from 1;
	// zero for other fields.
	Line, Column int
	Err          error
}

func (e *RuleError) Error() string { return e.List + ": " + e.Field + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *RuleError) Unwrap() error { return e.Err }
