package proxy

import (
	"encoding/json"
	"time"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
)

// Policy names of refusals that do not come from the rules.
const (
	policyUnknownTool = policy.PolicyUnknownTool
	policyUnavailable = "unavailable"
	policyLedger      = "ledger"
	policyMalformed   = "malformed"
	policyRequest     = "deny_requests"
)

// Refusal is what an agent is told about a call that was not let through.
type Refusal struct {
	Error     string    `json:"error"`
	BlockedBy string    `json:"blocked_by"`
	Policy    string    `json:"policy"`
	Rule      string    `json:"rule"`
	Retryable bool      `json:"retryable"`
	RetryAt   time.Time `json:"retry_at,omitzero"`
	AuditID   string    `json:"audit_id,omitempty"`

	// Sent says that an earlier round of the call has reached the upstream, which may have
	// done what it asks for.
	Sent bool `json:"-"`
}

// noUse is added where trying again, or another way, cannot help.
const noUse = ". Do not retry it or try to reach the same end by another way; ask the user if it is needed"

// refusal is what is told of a decision; command is how a person runs haldir.
func refusal(d policy.Decision, t ledger.Ticket, command string) Refusal {
	r := Refusal{
		Error: wire.Printable(d.Reason, 2000), BlockedBy: "haldir", Policy: d.Policy, Rule: d.Rule, Retryable: !d.RetryAt.IsZero(), RetryAt: d.RetryAt, AuditID: t.AuditID(),
	}
	r.Retryable = r.Retryable || d.Policy == policyUnavailable
	switch {
	case r.Retryable || d.Policy == policyUnknownTool || d.Policy == policyUnavailable:
	case d.Policy == policy.PolicySession && d.Rule == "expired":
		r.Error += "; the user can renew it with: " + command + " session renew " + t.Session
	default:
		r.Error += noUse
	}
	return r
}

// failure returns r as a JSON-RPC error, which is all that answers to other
// requests than tools/call have room for.
func (r Refusal) failure(id json.RawMessage) []byte {
	data, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings, a bool and a time of this century
	}
	return wire.Failure(&wire.Error{Code: CodeRefused, Message: r.Error, Data: data, ID: id})
}

// result returns r as the result of tools/call. A refusal is a result, not a
// JSON-RPC error: hosts show their models the text of the one and drop most of
// the other.
func (r Refusal) result() json.RawMessage {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings, a bool and a time of this century
	}
	type block struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	out, err := json.Marshal(struct {
		Content []block `json:"content"`
		IsError bool    `json:"isError"`
	}{[]block{{"text", string(text)}}, true})
	if err != nil {
		panic(err) // as above
	}
	return out
}
