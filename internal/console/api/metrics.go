package api

import (
	"context"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/metrics"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
)

// counted is what all records add up to, for Prometheus: it is read from the ledger, so that
// it is about every process that shares it, and a console that is started anew goes on with
// the same numbers, as far as records are kept.
type counted struct {
	turn  chan struct{} // holds one while records are read, which takes a while the first time
	head  uint64        // the last record that is in it
	set   *metrics.Set
	names metrics.Names
	open  map[uint64]openCall // attempts without an outcome

	calls, outcomes, denied, spend, duration *metrics.Family
}

type openCall struct {
	upstream, tool string
}

func (c *counted) begin() {
	c.head, c.set, c.names, c.open = 0, &metrics.Set{}, metrics.Names{}, map[uint64]openCall{}
	c.calls = c.set.Add(metrics.Counter, "haldir_calls_total", "", "Calls in the ledger, by what was decided when they came.", "upstream", "tool", "decision")
	c.outcomes = c.set.Add(metrics.Counter, "haldir_outcomes_total", "", "Calls that were let through and have ended, by how.", "upstream", "tool", "status")
	c.denied = c.set.Add(metrics.Counter, "haldir_denied_total", "", "Calls that were refused, by the rule that refused them.", "policy", "rule")
	c.spend = c.set.Add(metrics.Counter, "haldir_spend_usd_total", "", "What calls that have ended have cost, in US dollars.", "upstream", "tool")
	c.duration = c.set.Add(metrics.Histogram, "haldir_call_duration_seconds", "", "From the record of a call to the record of its outcome.", "upstream")
}

// decisions are what the statuses of attempts mean.
var decisions = map[audit.Status]string{audit.StatusRunning: "allowed", audit.StatusDenied: "denied", audit.StatusPending: "pending"}

func (c *counted) add(r *audit.Record) {
	switch r.Kind {
	case audit.KindAttempt:
		tool := c.names.Label(r.Upstream, r.Tool, r.Rule != policy.PolicyUnknownTool)
		c.calls.Count(1, r.Upstream, tool, decisions[r.Status])
		if r.Status == audit.StatusDenied {
			c.denied.Count(1, r.Policy, r.Rule)
		}
		if r.Status == audit.StatusRunning {
			c.open[r.Seq] = openCall{r.Upstream, tool}
		}
	case audit.KindOutcome:
		o, ok := c.open[r.Ref]
		if !ok {
			return // its attempt is not kept any more
		}
		delete(c.open, r.Ref)
		c.outcomes.Count(1, o.upstream, o.tool, string(r.Status))
		c.spend.Count(float64(r.Cost)/float64(policy.USD), o.upstream, o.tool)
		c.duration.Observe(float64(r.DurationMS)/1000, o.upstream)
	case audit.KindApproval:
		if r.Status == audit.StatusDenied {
			c.denied.Count(1, r.Policy, r.Rule)
		}
	case audit.KindGovernance, audit.KindSession, audit.KindConfig, audit.KindLedger, audit.KindPins, audit.KindKey:
	}
}

// text brings the sums up to date and returns them.
func (c *counted) text(ctx context.Context, l Ledger) ([]byte, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done(): // a scrape that has timed out need not wait for its turn
		return nil, context.Cause(ctx)
	}
	newest, err := l.Newest()
	if err != nil {
		return nil, err
	}
	if c.set == nil || newest < c.head { // another chain has begun, after a recovery
		c.begin()
	}
	_, _, err = l.Walk(ctx, c.head+1, func(key uint64, raw []byte) error {
		if r, err := audit.Decode(raw); err == nil { // verify names one that cannot be read
			c.add(&r)
		}
		c.head = key
		return nil
	})
	if err != nil {
		return nil, err // what is in it stays right: the next one goes on behind
	}
	return c.set.Text(), nil
}

// prometheus answers GET /metrics.
func (a *API) prometheus(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	ctx := r.Context()
	sums, err := a.counted.text(ctx, a.o.Ledger)
	if err != nil {
		return nil, err
	}
	now, err := a.present(ctx)
	if err != nil {
		return nil, err
	}
	return &reply{body: rawBody{metrics.ContentType, append(sums, now.Text()...)}}, nil
}

// present is what is so now, and is not added up.
func (a *API) present(ctx context.Context) (*metrics.Set, error) {
	set := &metrics.Set{}
	gauge := func(name, help string, labels ...string) *metrics.Family {
		return set.Add(metrics.Gauge, name, "", help, labels...)
	}
	pending, err := a.o.Ledger.Pending(ctx)
	if err != nil {
		return nil, err
	}
	gauge("haldir_approvals_pending", "Calls that wait for a person.").Put(float64(pending))
	up := gauge("haldir_upstream_up", "Whether this console is connected to an upstream.", "upstream")
	for _, u := range a.o.Upstreams() {
		up.Put(flag(u.Status().State == upstream.StateReady), u.Name())
	}
	stopped, err := a.o.Ledger.Stopped(ctx)
	if err != nil {
		return nil, err
	}
	gauge("haldir_stopped", "Whether every call is refused, by haldir stop.").Put(flag(stopped != nil))
	newest, err := a.o.Ledger.Newest()
	if err != nil {
		return nil, err
	}
	gauge("haldir_audit_newest_record", "The number of the newest record of the audit.").Put(float64(newest))
	places, err := a.o.Ledger.Destinations(ctx)
	if err != nil {
		return nil, err
	}
	unshipped := gauge("haldir_audit_unshipped_records", "Records that a destination does not have yet.", "destination")
	rejected := set.Add(metrics.Counter, "haldir_audit_rejected_records_total", "", "Records that a destination did not take.", "destination")
	missed := set.Add(metrics.Counter, "haldir_audit_missed_records_total", "", "Records that were pruned before a destination had them.", "destination")
	for _, d := range places {
		unshipped.Put(float64(d.Unshipped), d.Destination)
		rejected.Count(float64(d.Rejected), d.Destination)
		missed.Count(float64(d.Missed), d.Destination)
	}
	// Of a limit that counts by session or tool, the fullest tells whether it is near.
	limits, err := a.limits(ctx)
	if err != nil {
		return nil, err
	}
	used := gauge("haldir_limit_used_ratio", "How much of a limit is used, 1 being all: of the session, agent or tool that has used most.", "rule", "per")
	seen := map[string]bool{}
	for _, l := range limits {
		if key := l.Rule + "\x00" + l.Per; !seen[key] { // the fullest comes first
			seen[key] = true
			used.Put(l.share, l.Rule, l.Per)
		}
	}
	return set, nil
}

func flag(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
