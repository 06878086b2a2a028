package proxy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
)

const (
	ofPrompt   = `{"ref":{"type":"ref/prompt","name":"a__greet"},"argument":{"name":"who","value":"x"}}`
	ofTemplate = `{"ref":{"type":"ref/resource","uri":"file:///{+path}"},"argument":{"name":"path","value":"secret/"}}`
	ofPublic   = `{"ref":{"type":"ref/resource","uri":"file:///public/{+path}"},"argument":{"name":"path","value":"a"}}`
	climbing   = `{"ref":{"type":"ref/resource","uri":"file:///public/{+path}"},"argument":{"name":"path","value":"../secret/"}}`
)

// A completion is judged as what it completes would be now, and tells nothing of what a
// template could become that is kept back. It counts against no limit, and only what is
// refused is on record.
func TestCompletionsAreJudged(t *testing.T) {
	one := func(r policy.Rule) policy.Ruleset {
		r.ID = "r"
		return policy.Ruleset{Policies: []policy.Rule{r}}
	}
	secret := one(policy.Rule{Type: policy.TypeDeny, Tools: []string{"resource:a/file:///secret/*"}})
	when := one(policy.Rule{Type: policy.TypeDeny, Tools: []string{"prompt:*"}, When: `args.who == "x"`})
	for name, c := range map[string]struct {
		rules  policy.Ruleset
		before func(h *host)
		params string
		rule   string // that refuses; it passes if it is empty
	}{
		"no rule":                     {params: ofTemplate},
		"no rule, with dot segments":  {params: climbing},
		"a rule about another prompt": {rules: one(policy.Rule{Type: policy.TypeDeny, Tools: []string{"prompt:a/other"}}), params: ofPrompt},
		"a denied prompt":             {rules: one(policy.Rule{Type: policy.TypeDeny, Tools: []string{"prompt:a/greet"}}), params: ofPrompt, rule: "r"},
		"a condition that holds":      {rules: when, params: ofPrompt, rule: "r"},
		"a condition that does not":   {rules: when, params: strings.Replace(ofPrompt, `"value":"x"`, `"value":"y"`, 1)},
		"a condition on the context":  {rules: when, params: `{"ref":{"type":"ref/prompt","name":"a__greet"},"argument":{"name":"b","value":""},"context":{"arguments":{"who":"x"}}}`, rule: "r"},
		"a person to be asked":        {rules: one(policy.Rule{Type: policy.TypeApproval, Tools: []string{"prompt:*"}}), params: ofPrompt, rule: "r"},
		"a limit that is not reached": {rules: one(policy.Rule{Type: policy.TypeRateLimit, MaxCalls: 1, Window: time.Hour}), params: ofPrompt},
		"a limit of nothing":          {rules: one(policy.Rule{Type: policy.TypeRateLimit, MaxCalls: 0, Window: time.Hour}), params: ofPrompt, rule: "r"},
		"names below what is denied":  {rules: secret, params: ofTemplate, rule: "r"},
		"names beside what is denied": {rules: secret, params: ofPublic},
		"names behind dot segments":   {rules: secret, params: climbing, rule: "r"},
		"a uri that nobody lists":     {rules: secret, params: strings.Replace(ofTemplate, "{+path}", "{+other}", 1), rule: "r"},
		"a stop": {before: func(h *host) {
			if _, err := h.led.Stop(t.Context(), "enough"); err != nil {
				t.Fatal(err)
			}
		}, params: ofPrompt, rule: ledger.PolicyStopped},
		"a revocation": {before: func(h *host) {
			h.must("a__tool", `{}`) // there is a session
			if _, err := h.led.Revoke(t.Context(), session, false); err != nil {
				t.Fatal(err)
			}
		}, params: ofTemplate, rule: "revoked"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newLibrary("a", nil, []string{"file:///{+path}", "file:///public/{+path}"}, []string{"greet"})
			h := serve(t, rig{fakes: []proxy.Upstream{a}, rules: c.rules})
			if c.before != nil {
				c.before(h)
			}
			a.calls()
			records := len(h.entries())
			for range 2 { // the second as the first: nothing is counted
				line := h.request("completion/complete", c.params)
				calls := a.calls()
				if c.rule == "" {
					if !strings.Contains(line, `"from":"a"`) || len(calls) != 1 || calls[0] != "completion/complete "+strings.Replace(c.params, "a__greet", "greet", 1) {
						t.Errorf("it does not pass as it is: %s; %v", line, calls)
					}
					continue
				}
				code, data := failureOf(t, line)
				if code != proxy.CodeRefused || !strings.Contains(string(data), `"rule":"`+c.rule+`"`) || len(calls) != 0 {
					t.Errorf("%s; the upstream had %v", line, calls)
				}
			}
			if c.rule != "" {
				records += 2
			}
			if n := len(h.entries()); n != records {
				t.Errorf("%d on record, not %d", n, records)
			}
		})
	}
}

// A server that reads keys case-blindly sees the completion that was judged.
func TestACompletionThatReadsInTwoWays(t *testing.T) {
	for name, params := range map[string]string{
		"another name":     `{"ref":{"type":"ref/prompt","name":"a__greet","Name":"denied"},"argument":{"name":"x","value":""}}`,
		"another uri":      `{"ref":{"type":"ref/resource","uri":"file:///public/{+path}","URI":"file:///{+path}"}}`,
		"another type":     `{"ref":{"type":"ref/prompt","name":"a__greet","TYPE":"ref/resource","uri":"file:///{+path}"}}`,
		"another value":    `{"ref":{"type":"ref/prompt","name":"a__greet"},"argument":{"name":"x","value":"","Value":"../"}}`,
		"other arguments":  `{"ref":{"type":"ref/prompt","name":"a__greet"},"context":{"Arguments":{"x":"../"}}}`,
		"the name by case": `{"ref":{"type":"ref/prompt","Name":"a__greet"}}`,
	} {
		a := newLibrary("a", nil, []string{"file:///{+path}", "file:///public/{+path}"}, []string{"greet", "denied"})
		h := serve(t, rig{fakes: []proxy.Upstream{a}})
		line := h.request("completion/complete", params)
		if code, _ := failureOf(t, line); code != wire.CodeInvalidParams || len(a.calls()) != 0 {
			t.Errorf("%s: %s", name, line)
		}
	}
}
