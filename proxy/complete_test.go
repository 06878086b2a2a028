package proxy_test

import (
	"fmt"
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
		"no rule":                          {params: ofTemplate},
		"no rule, with dot segments":       {params: climbing},
		"a rule about another prompt":      {rules: one(policy.Rule{Type: policy.TypeDeny, Tools: []string{"prompt:a/other"}}), params: ofPrompt},
		"a denied prompt":                  {rules: one(policy.Rule{Type: policy.TypeDeny, Tools: []string{"prompt:a/greet"}}), params: ofPrompt, rule: "r"},
		"a condition that holds":           {rules: when, params: ofPrompt, rule: "r"},
		"a condition that does not":        {rules: when, params: strings.Replace(ofPrompt, `"value":"x"`, `"value":"y"`, 1)},
		"a condition on the context":       {rules: when, params: `{"ref":{"type":"ref/prompt","name":"a__greet"},"argument":{"name":"b","value":""},"context":{"arguments":{"who":"x"}}}`, rule: "r"},
		"a condition on what is to come":   {rules: when, params: strings.Replace(ofPrompt, `"name":"who"`, `"name":"b"`, 1)},
		"a condition on a tool's name":     {rules: one(policy.Rule{Type: policy.TypeDeny, When: `tool == "delete_all"`}), params: ofPublic},
		"a condition on a tool's argument": {rules: one(policy.Rule{Type: policy.TypeApproval, When: `has(args.force) && args.force == true`}), params: ofPublic},
		"a condition on the uri":           {rules: one(policy.Rule{Type: policy.TypeDeny, When: `args.uri.startsWith("file:///public/secret/")`}), params: ofPublic, rule: "r"},
		"a person to be asked":             {rules: one(policy.Rule{Type: policy.TypeApproval, Tools: []string{"prompt:*"}}), params: ofPrompt, rule: "r"},
		"a limit that is not reached":      {rules: one(policy.Rule{Type: policy.TypeRateLimit, MaxCalls: 1, Window: time.Hour}), params: ofPrompt},
		"a limit of nothing":               {rules: one(policy.Rule{Type: policy.TypeRateLimit, MaxCalls: 0, Window: time.Hour}), params: ofPrompt, rule: "r"},
		"names below what is denied":       {rules: secret, params: ofTemplate, rule: "r"},
		"names beside what is denied":      {rules: secret, params: ofPublic},
		"names behind dot segments":        {rules: secret, params: climbing, rule: "r"},
		"a uri that nobody lists":          {rules: secret, params: strings.Replace(ofTemplate, "{+path}", "{+other}", 1), rule: "r"},
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

// In a session that there is not a completion, and what is asked about tasks, is refused as a
// call is: with what to do about it, and on record.
func TestWhatIsNotCountedNeedsASession(t *testing.T) {
	a := newLibrary("a", nil, []string{"file:///{+path}"}, []string{"greet"})
	a.catalogue.Server = []byte(`{"capabilities":{"tools":{},"prompts":{},"resources":{},"completions":{},"tasks":{"list":{}}}}`)
	h := serve(t, rig{fakes: []proxy.Upstream{a}, adjust: func(o *proxy.Options) { o.Use = ledger.Use{ID: "ses_gone"} }})
	for _, ask := range [][2]string{
		{"prompts/get", `{"name":"a__greet"}`},
		{"completion/complete", ofPrompt},
		{"completion/complete", ofTemplate},
		{"tasks/list", `{}`},
		{"tasks/get", `{"taskId":"x"}`},
	} {
		n := len(h.entries())
		line := h.request(ask[0], ask[1])
		if code, data := failureOf(t, line); code != proxy.CodeRefused || !strings.Contains(string(data), `"policy":"session","rule":"unknown"`) || !strings.Contains(line, "There is no session ses_gone; create one") {
			t.Errorf("%s: %s", ask[0], line)
		}
		if len(h.entries()) != n+1 {
			t.Errorf("%s is not on record", ask[0])
		}
	}
	if calls := a.calls(); len(calls) != 0 {
		t.Errorf("the upstream had %v", calls)
	}
}

// Nor does a call go on in one that a recovery of the ledger has lost meanwhile.
func TestACallThatGoesOnNeedsASession(t *testing.T) {
	o := newOracle(t, "up", `{"resultType":"input_required","inputRequests":{"r":{"method":"roots/list"}},"requestState":"s"}`)
	led := &faulty{}
	h := serve(t, rig{fakes: []proxy.Upstream{o}, raw: true, ledger: led})
	needs(t, h.first("up__tool", `{}`))
	led.check = fmt.Errorf("%w: %s", ledger.ErrNoSession, session)
	line := h.again("up__tool", `{}`, "s", map[string]string{"r": `{}`})
	if why := parseResponse(t, line).refusal(t); why.Policy != "session" || why.Rule != "unknown" || why.Retryable {
		t.Errorf("%+v", why)
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
