package policy_test

import (
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/policy"
)

// What a limit says of itself is what Decide goes by.
func TestLimitsSayWhatDecideGoesBy(t *testing.T) {
	engine := compile(t, policy.Ruleset{Costs: costs(), Policies: []policy.Rule{
		{Type: policy.TypeDeny, Tools: []string{"never"}},
		{Type: policy.TypeRateLimit, MaxCalls: 2, Window: time.Hour, Per: policy.PerAgent},
		{Type: policy.TypeSpendLimit, MaxUSD: 3 * policy.USD, Per: policy.PerDay, ID: "day"},
	}})
	limits := engine.Limits()
	if len(limits) != 2 {
		t.Fatalf("%+v", limits)
	}
	rate, spend := limits[0], limits[1]
	if rate.Per != policy.PerAgent || rate.Max != 2 || rate.Money || spend.Rule != "day" || spend.Max != int64(3*policy.USD) || !spend.Money {
		t.Fatalf("%+v", limits)
	}
	now := instant(t, "2026-03-04T22:30:00Z")
	keys := engine.Reads(call("up/tool", `{}`))
	for _, l := range limits {
		found := false
		for _, k := range keys {
			found = found || k.Counter == l.Counter
		}
		if !found {
			t.Errorf("no call reads the counter of %s", l.Rule)
		}
	}
	for _, c := range []struct {
		limit  policy.Limit
		start  string
		used   int64
		resets string
	}{
		{rate, "2026-03-04T22:00:00Z", 7, "2026-03-04T23:00:00Z"},
		{rate, "2026-03-04T21:30:00Z", 0, ""}, // passed to the second
		{spend, "2026-03-04T00:00:00Z", 7, "2026-03-05T00:00:00Z"},
		{spend, "2026-03-03T00:00:00Z", 0, "2026-03-05T00:00:00Z"},
	} {
		used, resets := c.limit.Used(policy.Counter{Start: instant(t, c.start), Value: 7}, now)
		want := time.Time{}
		if c.resets != "" {
			want = instant(t, c.resets)
		}
		if used != c.used || !resets.Equal(want) {
			t.Errorf("%s from %s: %d, %v; want %d, %v", c.limit.Rule, c.start, used, resets, c.used, want)
		}
	}
	if used, resets := rate.Used(policy.Counter{}, now); used != 0 || !resets.IsZero() {
		t.Errorf("nothing counted: %d, %v", used, resets)
	}
}
