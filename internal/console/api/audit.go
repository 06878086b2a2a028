package api

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
)

// maxEntries is how many entries one page has.
const maxEntries = 1000

// filterNames are the parameters that select entries.
var filterNames = []string{"session_id", "agent_id", "upstream", "tool", "status", "flagged", "governance", "since", "until"}

// filter reads them.
func (a *API) filter(r *request) (f audit.Filter, err error) {
	f = audit.Filter{
		Session: r.query.Get("session_id"), Agent: r.query.Get("agent_id"), Upstream: r.query.Get("upstream"), Tool: r.query.Get("tool"),
		Status: audit.Status(r.query.Get("status")),
	}
	if f.Status != "" && !slices.Contains(audit.CallStatuses, f.Status) {
		var names []string
		for _, s := range audit.CallStatuses {
			names = append(names, string(s))
		}
		return f, malformed("%q is no status of a call; they are %s", wire.Printable(string(f.Status), 50), strings.Join(names, ", "))
	}
	if f.Flagged, err = r.flag("flagged"); err != nil {
		return f, err
	}
	if f.Governance, err = r.flag("governance"); err != nil {
		return f, err
	}
	if f.Since, err = r.moment("since", a.o.Clock()); err != nil {
		return f, err
	}
	f.Until, err = r.moment("until", a.o.Clock())
	return f, err
}

func (a *API) listAudit(r *request) (*reply, error) {
	if err := r.takes(append([]string{"limit", "cursor"}, filterNames...)...); err != nil {
		return nil, err
	}
	f, err := a.filter(r)
	if err != nil {
		return nil, err
	}
	if f.Limit, err = r.number("limit", 100, 1, maxEntries); err != nil {
		return nil, err
	}
	if c := r.query.Get("cursor"); c != "" {
		if f.Before, err = strconv.ParseUint(c, 10, 64); err != nil || f.Before == 0 {
			return nil, malformed("the parameter cursor must be the next_cursor of an answer before")
		}
	}
	entries, next, err := a.o.Ledger.Find(r.Context(), f)
	if err != nil {
		return nil, err
	}
	out := struct {
		Count   int           `json:"count"`
		Entries []audit.Entry `json:"entries"`
		Next    *string       `json:"next_cursor"`
	}{len(entries), append([]audit.Entry{}, entries...), nil}
	if next > 0 {
		cursor := strconv.FormatUint(next, 10)
		out.Next = &cursor
	}
	return &reply{body: out}, nil
}

type toolStats struct {
	Tool    string        `json:"tool"`
	Calls   int           `json:"calls"`
	Denied  int           `json:"denied"`
	Errors  int           `json:"errors"`
	CostUSD policy.Micros `json:"cost_usd"`
}

type statusStats struct {
	Status audit.Status `json:"status"`
	Count  int          `json:"count"`
}

type ruleStats struct {
	Policy string `json:"policy"`
	Rule   string `json:"rule"`
	Denied int    `json:"denied"`
}

type spendStats struct {
	At      time.Time     `json:"at"`
	CostUSD policy.Micros `json:"cost_usd"`
}

// statsBody is what happened within a time.
type statsBody struct {
	Since    time.Time     `json:"since"`
	Until    time.Time     `json:"until"`
	ByTool   []toolStats   `json:"by_tool"`
	ByStatus []statusStats `json:"by_status"`
	ByPolicy []ruleStats   `json:"by_policy"`
	Spend    []spendStats  `json:"spend"` // by the hour, the oldest first, without gaps
}

// maxStats is how far back the numbers may go.
const maxStats = 31 * day

func (a *API) auditStats(r *request) (*reply, error) {
	if err := r.takes("since"); err != nil {
		return nil, err
	}
	now := a.o.Clock().UTC()
	since, err := r.moment("since", now)
	if err != nil {
		return nil, err
	}
	if since.IsZero() {
		since = now.Add(-day)
	}
	if now.Sub(since) > maxStats || since.After(now) {
		return nil, malformed("the parameter since must lie within the last %d days", maxStats/day)
	}
	out := statsBody{Until: now, ByTool: []toolStats{}, ByStatus: []statusStats{}, ByPolicy: []ruleStats{}, Spend: []spendStats{}}
	err = a.stats.view(r.Context(), a.o.Ledger, since, func(t *tally) {
		out.Since = t.since.UTC()
		for id, s := range t.tools {
			out.ByTool = append(out.ByTool, toolStats{wire.Printable(id, 300), s.calls, s.denied, s.errors, s.cost})
		}
		for status, n := range t.statuses {
			if n > 0 {
				out.ByStatus = append(out.ByStatus, statusStats{status, n})
			}
		}
		for id, s := range t.rules {
			out.ByPolicy = append(out.ByPolicy, ruleStats{s.policy, id, s.denied})
		}
		for hour := t.since.UTC().Truncate(time.Hour); !hour.After(now); hour = hour.Add(time.Hour) {
			out.Spend = append(out.Spend, spendStats{hour, t.hours[hour]})
		}
	})
	slices.SortFunc(out.ByTool, func(a, b toolStats) int {
		return cmp.Or(cmp.Compare(b.Calls, a.Calls), cmp.Compare(a.Tool, b.Tool))
	})
	slices.SortFunc(out.ByStatus, func(a, b statusStats) int { return cmp.Compare(a.Status, b.Status) })
	slices.SortFunc(out.ByPolicy, func(a, b ruleStats) int {
		return cmp.Or(cmp.Compare(b.Denied, a.Denied), cmp.Compare(a.Rule, b.Rule))
	})
	return &reply{body: out}, err
}

// spend is what one session has spent.
func (a *API) spend(ctx context.Context, id string) (proxy.SpendReport, error) {
	engine, _ := a.o.Rules()
	sp, budgets, err := a.o.Ledger.Spent(ctx, ledger.Use{ID: id}, engine)
	if err != nil {
		return proxy.SpendReport{}, err
	}
	return proxy.Report(sp, budgets), nil
}

func (a *API) auditSpend(r *request) (*reply, error) {
	if err := r.takes("session_id", "agent_id"); err != nil {
		return nil, err
	}
	agent := r.query.Get("agent_id")
	if id := r.query.Get("session_id"); id != "" {
		s, err := a.o.Ledger.Session(r.Context(), ledger.Use{ID: id})
		if err != nil {
			return nil, err
		}
		if agent != "" && s.Agent != agent {
			return nil, notFound("session %s is not one of the agent %q", id, wire.Printable(agent, 128))
		}
		out, err := a.spend(r.Context(), id)
		return &reply{body: out}, err
	}
	list, err := a.o.Ledger.Sessions(r.Context())
	if err != nil {
		return nil, err
	}
	all := struct {
		Total    policy.Micros            `json:"total_usd"`
		Calls    int64                    `json:"action_count"`
		ByTool   map[string]policy.Micros `json:"by_tool"`
		ByAgent  map[string]policy.Micros `json:"by_agent"`
		Sessions int                      `json:"sessions"`
	}{ByTool: map[string]policy.Micros{}, ByAgent: map[string]policy.Micros{}}
	for _, s := range list {
		if agent != "" && s.Agent != agent {
			continue
		}
		one, err := a.spend(r.Context(), s.ID)
		if errors.Is(err, ledger.ErrNoSession) {
			continue // it was there a moment ago
		}
		if err != nil {
			return nil, err
		}
		all.Sessions++
		all.Total += one.TotalUSD
		all.Calls += one.ActionCount
		all.ByAgent[s.Agent] += one.TotalUSD
		for tool, usd := range one.ByTool {
			all.ByTool[tool] += usd
		}
	}
	return &reply{body: all}, nil
}

func (a *API) verifyAudit(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	select { // it reads everything: one at a time
	case a.verify <- struct{}{}:
		defer func() { <-a.verify }()
	case <-r.Context().Done():
		return nil, context.Cause(r.Context())
	}
	out := struct {
		OK       bool          `json:"ok"`
		Records  uint64        `json:"records"`
		Verified bool          `json:"verified"`        // as the original has it
		Checked  uint64        `json:"entries_checked"` // likewise
		Signed   uint64        `json:"signed"`          // of them under a signed checkpoint
		Pruned   uint64        `json:"pruned"`          // older ones, which are not kept any more
		Head     string        `json:"head,omitempty"`
		Message  string        `json:"message"`
		Damage   *audit.Damage `json:"damage,omitempty"`
	}{}
	v, err := a.o.Ledger.Verify(r.Context(), nil)
	if damage, ok := errors.AsType[*audit.Damage](err); ok {
		out.Records, out.Checked, out.Damage, out.Message = v.Count(), v.Count(), damage, damage.Error()
		return &reply{body: out}, nil
	}
	if err != nil {
		return nil, err
	}
	out.OK, out.Records, out.Pruned = true, v.Count(), v.Pruned()
	out.Verified, out.Checked, out.Signed, out.Head = true, v.Count(), v.Agreed(), v.Head().String()
	out.Message = "no record was changed, removed, added or moved"
	return &reply{body: out}, nil
}
