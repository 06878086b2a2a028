package main_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// tally counts what came of calls.
type tally struct{ passed, refused, other int }

func (n *tally) add(t *testing.T, m mcptest.Message, policy string) {
	t.Helper()
	switch r := refusalOf(t, m); {
	case r.Policy == policy:
		n.refused++
	case r.Policy == "" && m.Error == nil && text(t, m) == "counted":
		n.passed++
	default:
		n.other++
		t.Errorf("neither passed nor refused by %s: %.500s", policy, m.Raw)
	}
}

// byStatus counts audited calls of a tool.
func byStatus(all []auditEntry, tool string) map[string]int {
	n := map[string]int{}
	for _, e := range all {
		if e.Tool == tool {
			n[e.Status]++
		}
	}
	return n
}

// TestRealSharedLimit is bar 5 of issue 2: two processes share max_calls 100,
// 400 attempts come at once.
func TestRealSharedLimit(t *testing.T) {
	t.Parallel()
	const limit, each = 100, 200
	server := newGoSDK()
	url, _, _ := listenOn(t, 0, server.handler(false, false))
	h := mcptest.NewHaldir(t, program(t), fmt.Sprintf(
		"version: 1\nupstreams:\n  - {name: sdk, url: %q}\npolicies:\n  - {type: rate_limit, max_calls: %d, window: 1h}\n", url, limit))
	a, b := h.Serve(t), h.Serve(t)
	a.Initialize(mcptest.Revision)
	b.Initialize(mcptest.Revision)
	toolNames(t, a)
	toolNames(t, b)
	ids := make([][2]string, each)
	for i := range ids {
		call := mcptest.CallParams("sdk__count", fmt.Sprintf(`{"i":%d}`, i), "")
		ids[i] = [2]string{a.Post("tools/call", call), b.Post("tools/call", call)}
	}
	var n tally
	for _, id := range ids {
		n.add(t, a.Wait(id[0]), "rate_limit")
		n.add(t, b.Wait(id[1]), "rate_limit")
	}
	if n.passed != limit || n.refused != 2*each-limit {
		t.Errorf("%d passed and %d were refused, want %d and %d", n.passed, n.refused, limit, 2*each-limit)
	}
	if got := server.of("count"); got != limit {
		t.Errorf("the server executed %d calls, want %d", got, limit)
	}
	a.End()
	b.End()
	status := byStatus(calls(t, h), "count")
	if status["allowed"] != limit || status["denied"] != 2*each-limit || len(status) != 2 {
		t.Errorf("the audit: %v", status)
	}
	if out := h.Must(t, "audit", "verify"); !strings.Contains(out, "verify: ok") {
		t.Errorf("verify: %s", out)
	}
}

// TestRealSharedLimitKilled does so and kills one of the processes halfway, at
// several moments. What it had begun stays counted: the other one gets what is
// left and no more.
func TestRealSharedLimitKilled(t *testing.T) {
	t.Parallel()
	const limit, each = 100, 200
	for _, answers := range []int{1, 10, 25, 40} { // that the process has given when it is killed
		t.Run(fmt.Sprintf("after %d", answers), func(t *testing.T) {
			t.Parallel()
			server := newGoSDK()
			url, _, _ := listenOn(t, 0, server.handler(false, false))
			h := mcptest.NewHaldir(t, program(t), fmt.Sprintf(
				"version: 1\nupstreams:\n  - {name: sdk, url: %q}\npolicies:\n  - {type: rate_limit, max_calls: %d, window: 1h}\n", url, limit))
			a, b := h.Serve(t), h.Serve(t)
			a.Initialize(mcptest.Revision)
			b.Initialize(mcptest.Revision)
			toolNames(t, a)
			toolNames(t, b)
			call := mcptest.CallParams("sdk__pay", "{}", "")
			var first, second []string
			// A few of each at a time, so that the kill comes before the limit.
			for len(first) < answers {
				first, second = append(first, a.Post("tools/call", call)), append(second, b.Post("tools/call", call))
			}
			for range 10 {
				first = append(first, a.Post("tools/call", call))
			}
			for _, id := range first[:answers] {
				a.Wait(id)
			}
			a.Kill()
			for len(second) < each {
				second = append(second, b.Post("tools/call", call))
			}
			passed, refused := 0, 0
			for _, id := range second {
				m := b.Wait(id)
				switch r := refusalOf(t, m); {
				case r.Policy == "rate_limit":
					refused++
				case r.Policy == "" && m.Error == nil && text(t, m) == "paid":
					passed++
				default:
					t.Errorf("neither passed nor refused: %s", m.Raw)
				}
			}
			answered := 0 // what the killed one has told its host
			for _, m := range a.Seen() {
				if m.Method == "" && strings.Contains(string(m.Result), `"paid"`) {
					answered++
				}
			}
			executed := server.of("pay")
			status := byStatus(calls(t, h), "pay")
			t.Logf("executed %d; answered by the killed one %d, passed by the other %d, refused %d; audit %v", executed, answered, passed, refused, status)
			if executed > limit {
				t.Errorf("the server executed %d calls, the limit is %d", executed, limit)
			}
			if answered+passed > executed || answered < answers {
				t.Errorf("%d and %d calls passed, but the server executed %d", answered, passed, executed)
			}
			if admitted := status["allowed"] + status["abandoned"] + status["running"]; admitted != limit {
				t.Errorf("%d calls were admitted, want %d: %v", admitted, limit, status)
			}
			b.End()
			if out := h.Must(t, "audit", "verify"); !strings.Contains(out, "verify: ok") {
				t.Errorf("verify: %s", out)
			}
			// Whoever comes next finds nothing left.
			c := h.Serve(t)
			c.Initialize(mcptest.Revision)
			if m := c.Ask("tools/call", call); refusalOf(t, m).Policy != "rate_limit" {
				t.Errorf("the next process: %s", m.Raw)
			}
			c.End()
			if status := byStatus(calls(t, h), "pay"); status["running"] != 0 {
				t.Errorf("calls of a dead process are still running: %v", status)
			}
		})
	}
}

// spend asks haldir what was spent.
func spend(t *testing.T, s *mcptest.Session) (report struct {
	TotalUSD    json.Number            `json:"total_usd"`
	ActionCount int                    `json:"action_count"`
	ByTool      map[string]json.Number `json:"by_tool"`
	LimitUSD    *json.Number           `json:"limit_usd"`
	Remaining   *json.Number           `json:"remaining_usd"`
},
) {
	t.Helper()
	if err := json.Unmarshal([]byte(text(t, s.Ask("tools/call", mcptest.CallParams("haldir_get_spend", "{}", "")))), &report); err != nil {
		t.Fatal(err)
	}
	return report
}

// payConfig makes pay cost what its argument says.
func payConfig(url, more string) string {
	return fmt.Sprintf("version: 1\nupstreams:\n  - {name: sdk, url: %q}\ncosts:\n  - {tools: [pay], from_argument: /amount}\n%s", url, more)
}

// TestRealSpendRace sends 20 calls of $60 at once at a limit of $100: one passes,
// in one process and in two that share the state.
func TestRealSpendRace(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]string{
		"policy total":   "policies:\n  - {type: spend_limit, max_usd: 100, per: total}\n",
		"policy agent":   "session: {agent_id: spender}\npolicies:\n  - {type: spend_limit, max_usd: 100.00, per: agent}\n",
		"policy session": "policies:\n  - {type: spend_limit, max_usd: 100, per: session}\n",
		"session":        "session: {spend_limit: 100}\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := newGoSDK()
			url, _, _ := listenOn(t, 0, server.handler(true, true))
			h := mcptest.NewHaldir(t, program(t), payConfig(url, limit))
			var sessions []*mcptest.Session
			h.Env = append(h.Env, "CLAUDE_CODE_SESSION_ID=one-host-session") // both processes are of one session
			for range 2 {
				s := h.Serve(t)
				s.Initialize(mcptest.Revision)
				toolNames(t, s)
				sessions = append(sessions, s)
			}
			var ids []string
			for i := range 20 {
				ids = append(ids, sessions[i%2].Post("tools/call", mcptest.CallParams("sdk__pay", `{"amount":60}`, "")))
			}
			passed := 0
			for i, id := range ids {
				m := sessions[i%2].Wait(id)
				if r := refusalOf(t, m); r.Policy == "" && m.Error == nil && text(t, m) == "paid" {
					passed++
				} else if r.Policy != "spend_limit" {
					t.Errorf("neither paid nor refused: %s", m.Raw)
				}
			}
			if got := server.of("pay"); passed != 1 || got != 1 {
				t.Errorf("%d calls passed and %d were executed, want 1", passed, got)
			}
			// $40 are left, exactly.
			if m := sessions[0].Ask("tools/call", mcptest.CallParams("sdk__pay", `{"amount":40.000001}`, "")); refusalOf(t, m).Policy != "spend_limit" {
				t.Errorf("a micro-dollar over the limit: %s", m.Raw)
			}
			if m := sessions[1].Ask("tools/call", mcptest.CallParams("sdk__pay", `{"amount":40}`, "")); m.Error != nil || text(t, m) != "paid" {
				t.Errorf("what is left cannot be spent: %s", m.Raw)
			}
			if got := spend(t, sessions[0]); got.TotalUSD != "100" || got.ActionCount != 2 {
				t.Errorf("spent: %+v", got)
			}
			for _, s := range sessions {
				s.End()
			}
			if status := byStatus(calls(t, h), "pay"); status["allowed"] != 2 || status["denied"] != 20 {
				t.Errorf("the audit: %v", status)
			}
			h.Must(t, "audit", "verify")
		})
	}
}

// TestRealAmounts sends amounts that are none: nothing of it reaches the server.
func TestRealAmounts(t *testing.T) {
	t.Parallel()
	server := newGoSDK()
	url, _, _ := listenOn(t, 0, server.handler(true, true))
	h := mcptest.NewHaldir(t, program(t), payConfig(url, "policies:\n  - {type: spend_limit, max_usd: 100, per: session}\n"))
	s := h.Serve(t)
	s.Initialize(mcptest.Revision)
	toolNames(t, s)
	recorded := 0
	for _, args := range []string{
		`{"amount":-1}`, `{"amount":-0.000001}`, `{"amount":"NaN"}`, `{"amount":"Infinity"}`, `{"amount":"-Inf"}`, `{"amount":"much"}`,
		`{"amount":""}`, `{"amount":" 5"}`, `{"amount":"5,00"}`, `{"amount":"$5"}`, `{"amount":"0x10"}`, `{"amount":"-5"}`, `{"amount":"1_0"}`,
		`{"amount":[60]}`, `{"amount":{"value":60}}`, `{"amount":null}`, `{"amount":true}`, `{"amount":1e400}`, `{"amount":1e300}`,
		`{"amount":100000000000000000000000000000000000000000}`, `{}`, `{"Amount":5}`, `{"amounts":5}`, ``,
	} {
		recorded++
		m := s.Ask("tools/call", mcptest.CallParams("sdk__pay", args, ""))
		if r := refusalOf(t, m); r.Policy != "cost" && r.Policy != "spend_limit" {
			t.Errorf("%s: %s", args, m.Raw)
		}
	}
	// What is no JSON, or JSON that two parsers could read differently, is a
	// JSON-RPC error, and the connection lives on.
	for _, args := range []string{`{"amount":NaN}`, `{"amount":+5}`, `{"amount":05}`, `{"amount":.5}`, `{"amount":0,"amount":60}`, `{"amount":0,"\u0061mount":60}`} {
		s.Send(`{"jsonrpc":"2.0","id":"odd","method":"tools/call","params":{"name":"sdk__pay","arguments":` + args + `}}`)
		m := s.Await("an error", func(m mcptest.Message) bool {
			return m.Method == "" && (string(m.ID) == `"odd"` || string(m.ID) == "null")
		})
		if e := errorOf(t, m); e.Code != -32700 && e.Code != -32600 {
			t.Errorf("%s: %s", args, m.Raw)
		}
		s.Ask("ping", "")
	}
	if n := server.of("pay"); n != 0 {
		t.Errorf("the server was paid %d times", n)
	}
	if got := spend(t, s); got.TotalUSD != "0" {
		t.Errorf("spent: %+v", got)
	}
	// These are amounts.
	total := 0
	for _, args := range []string{`{"amount":0}`, `{"amount":0.004}`, `{"amount":"12.50"}`, `{"amount":1E+1}`, `{"amount":0.0000001}`} {
		total++
		if m := s.Ask("tools/call", mcptest.CallParams("sdk__pay", args, "")); m.Error != nil || text(t, m) != "paid" {
			t.Errorf("%s: %s", args, m.Raw)
		}
	}
	if n := server.of("pay"); n != total {
		t.Errorf("the server was paid %d times, want %d", n, total)
	}
	// Fractions of a micro-dollar are rounded up, nothing else is rounded.
	if got := spend(t, s); got.TotalUSD != "22.504001" {
		t.Errorf("spent: %+v", got)
	}
	s.End()
	if status := byStatus(calls(t, h), "pay"); status["denied"] != recorded || status["allowed"] != total {
		t.Errorf("the audit: %v, want %d denied and %d allowed", status, recorded, total)
	}
}

// TestRealZero takes a limit of zero at its word.
func TestRealZero(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]string{
		"session":    "session: {spend_limit: 0}\n",
		"policy":     "policies:\n  - {type: spend_limit, max_usd: 0}\n",
		"rate":       "policies:\n  - {type: rate_limit, max_calls: 0, window: 1h, tools: [pay]}\n",
		"allow none": "policies:\n  - {type: allow, tools: [], upstreams: [sdk]}\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := newGoSDK()
			url, _, _ := listenOn(t, 0, server.handler(true, true))
			h := mcptest.NewHaldir(t, program(t), payConfig(url, limit))
			s := h.Serve(t)
			s.Initialize(mcptest.Revision)
			names := toolNames(t, s)
			m := s.Ask("tools/call", mcptest.CallParams("sdk__pay", `{"amount":0.01}`, ""))
			if r := refusalOf(t, m); r.Policy == "" || r.Retryable {
				t.Errorf("a call that costs: %s", m.Raw)
			}
			if server.of("pay") != 0 {
				t.Error("it was executed")
			}
			free, nothing := s.Ask("tools/call", mcptest.CallParams("sdk__count", `{}`, "")), s.Ask("tools/call", mcptest.CallParams("sdk__pay", `{"amount":0}`, ""))
			switch name {
			case "session", "policy":
				if text(t, free) != "counted" || text(t, nothing) != "paid" {
					t.Errorf("what costs nothing: %s, %s", free.Raw, nothing.Raw)
				}
			case "rate":
				if text(t, free) != "counted" || refusalOf(t, nothing).Policy != "rate_limit" {
					t.Errorf("other tools and this one: %s, %s", free.Raw, nothing.Raw)
				}
			case "allow none":
				if len(names) != 3 || refusalOf(t, free).Policy != "allow" {
					t.Errorf("listed %v, called %s", names, free.Raw)
				}
			}
			s.End()
		})
	}
}
