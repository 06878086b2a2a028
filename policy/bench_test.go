package policy_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/policy"
)

// benchRules is 50 rules, 10 of them with a condition that reads arguments. All
// conditions and counters concern the benchmarked call.
func benchRules(b *testing.B) *policy.Engine {
	b.Helper()
	var rs policy.Ruleset
	rs.Costs = []policy.Cost{{Tools: []string{"payments/*"}, HasFromArgument: true, FromArgument: "/amount"}}
	for i := range 20 {
		rs.Policies = append(rs.Policies, policy.Rule{Type: policy.TypeDeny, Tools: []string{fmt.Sprintf("delete_%d_*", i), fmt.Sprintf("db%d/drop_*", i), "send_wire_transfer"}})
	}
	conditions := []string{
		`args.amount > 1000000`, `args.to.startsWith("evil")`, `args.force == true`, `args.note.contains("password")`,
		`has(args.force) && args.force`, `args.path.endsWith(".env")`, `under(args.path, "/etc")`, `args.count in [7, 8, 9]`,
		`cost_usd > 1e6 && agent != "root"`, `args.nested.deep.flag == true`,
	}
	for _, c := range conditions {
		rs.Policies = append(rs.Policies, policy.Rule{Type: policy.TypeDeny, Tools: []string{"payments/*"}, When: c})
	}
	for i := range 10 {
		rs.Policies = append(rs.Policies, policy.Rule{Type: policy.TypeRateLimit, MaxCalls: 1 << 40, Window: time.Duration(i+1) * time.Hour, Per: "agent"})
	}
	for i := range 5 {
		rs.Policies = append(rs.Policies, policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: 1 << 40, ID: fmt.Sprint("s", i), Per: []string{"session", "agent", "total", "day", "month"}[i]})
	}
	for range 5 {
		rs.Policies = append(rs.Policies, policy.Rule{Type: policy.TypeTimeWindow, Hours: &policy.Hours{Start: 0, End: 24 * 60}})
	}
	e, err := policy.Compile(rs)
	if err != nil {
		b.Fatal(err)
	}
	return e
}

func benchCall() policy.Call {
	args := map[string]any{
		"amount": 12.5, "to": "acme", "force": false, "note": strings.Repeat("an invoice for services ", 30), "path": "/srv/data/report.csv",
		"count": 3, "nested": map[string]any{"deep": map[string]any{"flag": false, "list": []int{1, 2, 3, 4, 5, 6}}}, "tags": []string{"a", "b", "c"},
	}
	raw, _ := json.Marshal(args)
	raw = append(raw[:len(raw)-1], fmt.Appendf(nil, `,"pad":%q}`, strings.Repeat("x", max(0, 1024-len(raw)-10)))...)
	return policy.Call{Session: "ses_1", Agent: "bot", Upstream: "payments", Tool: "charge", Arguments: raw}
}

// BenchmarkDecide is one whole policy decision, Reads and Decide: 50 rules, 10
// of them conditions, 1 KiB of arguments.
func BenchmarkDecide(b *testing.B) {
	e, call := benchRules(b), benchCall()
	state := policy.State{
		Now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), Session: policy.SessionState{ID: "ses_1", AllScopes: true},
		Used: map[policy.CounterKey]policy.Counter{},
	}
	if d := e.Decide(call, state); d.Verdict != policy.Allow {
		b.Fatalf("%+v", d)
	}
	b.SetBytes(int64(len(call.Arguments)))
	b.ReportAllocs()
	for b.Loop() {
		for _, k := range e.Reads(call) {
			_ = state.Used[k]
		}
		if d := e.Decide(call, state); d.Verdict != policy.Allow {
			b.Fatal(d.Reason)
		}
	}
}
