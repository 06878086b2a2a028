package policy_test

import (
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/policy"
)

func resource(upstream, uri string) policy.Call {
	return policy.Call{Kind: policy.KindResource, Session: "ses_1", Agent: "bot", Upstream: upstream, Tool: uri}
}

func prompt(upstream, name string) policy.Call {
	return policy.Call{Kind: policy.KindPrompt, Session: "ses_1", Agent: "bot", Upstream: upstream, Tool: name}
}

// A pattern is about one kind of call, a rule about the kinds its patterns are
// about, and one without patterns about all.
func TestKinds(t *testing.T) {
	tool, res, pro := call("files/read", "{}"), resource("files", "file:///etc/passwd"), prompt("files", "read")
	limit := func(tools ...string) policy.Rule {
		return policy.Rule{Type: policy.TypeRateLimit, MaxCalls: 0, Window: time.Hour, Tools: tools}
	}
	deny := func(tools ...string) policy.Rule { return policy.Rule{Type: policy.TypeDeny, Tools: tools} }
	allow := func(tools ...string) policy.Rule { return policy.Rule{Type: policy.TypeAllow, Tools: tools} }
	tests := []struct {
		name                   string
		rule                   policy.Rule
		tool, resource, prompt string // "" passes
	}{
		{"a tool pattern", deny("*"), "deny", "", ""},
		{"a resource pattern", deny("resource:*"), "", "deny", ""},
		{"a prompt pattern", deny("prompt:*"), "", "", "deny"},
		{"a URI of an upstream", deny("resource:files/file:///etc/*"), "", "deny", ""},
		{"a URI of another upstream", deny("resource:other/file:///etc/*"), "", "", ""},
		{"another URI", deny("resource:files/file:///srv/*"), "", "", ""},
		{"a prompt by name", deny("prompt:files/read"), "", "", "deny"},
		{"several kinds", deny("resource:*", "prompt:other/*", "files/*"), "deny", "deny", ""},
		{"an upstream as a whole", policy.Rule{Type: policy.TypeDeny, Upstreams: []string{"files"}}, "deny", "deny", "deny"},
		{"an allow list of tools", allow("other"), "allow", "", ""},
		{"an allow list of resources", allow("resource:files/https:*"), "", "allow", ""},
		{"an allow list with the prompt", allow("prompt:read"), "", "", ""},
		{"an empty allow list", allow(), "allow", "allow", "allow"},
		{"a limit on everything", limit(), "rate_limit", "rate_limit", "rate_limit"},
		{"a limit on tools", limit("*"), "rate_limit", "", ""},
		{"a limit on reads", limit("resource:*"), "", "rate_limit", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := compile(t, rules(tt.rule))
			for _, c := range []struct {
				call policy.Call
				want string
			}{{tool, tt.tool}, {res, tt.resource}, {pro, tt.prompt}} {
				if d := e.Decide(c.call, free()); d.Policy != c.want || (d.Verdict == policy.Allow) != (c.want == "") {
					t.Errorf("%s: %s %q, want %q", c.call.ID(), d.Verdict, d.Policy, c.want)
				}
			}
		})
	}
}

// Reading takes the scope read, as a tool does that only reads.
func TestReadingTakesTheScopeRead(t *testing.T) {
	e := compile(t, rules())
	for _, c := range []policy.Call{resource("files", "file:///x"), prompt("files", "p")} {
		for scope, want := range map[string]policy.Verdict{"read": policy.Allow, "execute": policy.Deny} {
			s := free()
			s.Session.AllScopes, s.Session.Scopes = false, []string{scope}
			if d := e.Decide(c, s); d.Verdict != want {
				t.Errorf("%s with the scope %s: %s %s", c.ID(), scope, d.Verdict, d.Reason)
			}
		}
	}
}

func TestWhatIsCalledIsNamed(t *testing.T) {
	for _, tt := range []struct {
		call                 policy.Call
		id, recorded, reason string
	}{
		{call("up/x", "{}"), "up/x", "x", "Tool 'x' is on the deny list"},
		{resource("up", "file:///a"), "resource:up/file:///a", "resource:file:///a", "Resource 'file:///a' is on the deny list"},
		{prompt("up", "greet"), "prompt:up/greet", "prompt:greet", "Prompt 'greet' is on the deny list"},
	} {
		d := compile(t, rules(policy.Rule{Type: policy.TypeDeny, Upstreams: []string{"up"}})).Decide(tt.call, free())
		if tt.call.ID() != tt.id || tt.call.Recorded() != tt.recorded || d.Reason != tt.reason {
			t.Errorf("%s, recorded as %s: %s", tt.call.ID(), tt.call.Recorded(), d.Reason)
		}
	}
}
