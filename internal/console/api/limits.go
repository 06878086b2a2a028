package api

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// limitJSON is one gauge: how much of a limit is used by one part of the world.
type limitJSON struct {
	Rule     string         `json:"rule"` // "session" for a session's own limit
	Type     string         `json:"type"`
	Per      string         `json:"per"`
	Of       string         `json:"of,omitempty"` // whose use it is
	Used     *int64         `json:"used,omitempty"`
	Limit    *int64         `json:"limit,omitempty"`
	UsedUSD  *policy.Micros `json:"used_usd,omitempty"`
	LimitUSD *policy.Micros `json:"limit_usd,omitempty"`
	ResetsAt *string        `json:"resets_at"`
	Shadow   bool           `json:"shadow,omitempty"`

	share float64
}

// Bounds on what is listed: a limit per tool can have as many counters as there are tools.
const (
	readCounters = 2000 // of a rule
	listCounters = 50
)

func (a *API) listLimits(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	list, err := a.limits(r.Context())
	return &reply{body: map[string]any{"count": len(list), "limits": list}}, err
}

func (a *API) limits(ctx context.Context) ([]limitJSON, error) {
	engine, _ := a.o.Rules()
	list := []limitJSON{}
	for _, l := range engine.Limits() {
		used, now, err := a.o.Ledger.Counters(ctx, l.Counter, readCounters)
		if err != nil {
			return nil, err
		}
		var of []limitJSON
		for _, u := range used {
			n, resets := l.Used(u.Counter, now)
			if n == 0 && u.Of != "" {
				continue // it has begun anew
			}
			of = append(of, gauge(&l, strings.ReplaceAll(u.Of, "\x00", " "), n, stamp(resets)))
		}
		if len(of) == 0 && (l.Per == policy.PerTotal || l.Per == policy.PerHour || l.Per == policy.PerDay || l.Per == policy.PerWeek || l.Per == policy.PerMonth) {
			n, resets := l.Used(policy.Counter{}, now)
			of = append(of, gauge(&l, "", n, stamp(resets)))
		}
		list = append(list, fullest(of)...)
	}
	own, err := a.sessionLimits(ctx)
	return append(list, own...), err
}

func gauge(l *policy.Limit, of string, used int64, resets *string) limitJSON {
	g := limitJSON{Rule: l.Rule, Type: string(l.Type), Per: l.Per, Of: of, ResetsAt: resets, Shadow: l.Shadow, share: float64(used) / float64(max(l.Max, 1))}
	if l.Money {
		spent, most := policy.Micros(used), policy.Micros(l.Max)
		g.UsedUSD, g.LimitUSD = &spent, &most
	} else {
		most := l.Max
		g.Used, g.Limit = &used, &most
	}
	return g
}

// fullest keeps those that are closest to their limit.
func fullest(list []limitJSON) []limitJSON {
	slices.SortStableFunc(list, func(a, b limitJSON) int { return cmp.Or(cmp.Compare(b.share, a.share), cmp.Compare(a.Of, b.Of)) })
	return list[:min(len(list), listCounters)]
}

// sessionLimits are those that sessions bring themselves.
func (a *API) sessionLimits(ctx context.Context) ([]limitJSON, error) {
	sessions, err := a.o.Ledger.Sessions(ctx)
	if err != nil {
		return nil, err
	}
	var list []limitJSON
	for _, s := range sessions {
		if s.Limit == nil || !s.RevokedAt.IsZero() || !s.ExpiresAt.IsZero() && !a.o.Clock().Before(s.ExpiresAt) {
			continue
		}
		if len(list) == readCounters/10 {
			break // the newest are those that matter
		}
		spend, err := a.spentBy(ctx, s)
		if err != nil {
			return nil, err
		}
		list = append(list, limitJSON{
			Rule: policy.PolicySession, Type: string(policy.TypeSpendLimit), Per: policy.PerSession, Of: s.ID, UsedUSD: &spend, LimitUSD: s.Limit,
			share: float64(spend) / float64(max(*s.Limit, 1)),
		})
	}
	return fullest(list), nil
}

func (a *API) spentBy(ctx context.Context, s ledger.Session) (policy.Micros, error) {
	report, err := a.spend(ctx, s.ID)
	return report.TotalUSD, err
}
