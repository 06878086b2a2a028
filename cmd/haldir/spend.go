package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/report"
	"github.com/haldir-mcp/haldir/proxy"
)

func spendCommand(a *app) *cobra.Command {
	var by, since string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "spend",
		Short: "Show what sessions have spent, against their limits",
		Long: "spend shows every session, or with --session one of them by tool and by limit.\n" +
			"With --by it adds up what the calls on record have cost: by tool, session, day (of\n" +
			"UTC), agent or upstream, exact to the millionth of a dollar.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case by == "" && since != "":
				return usage("--since needs --by")
			case by != "":
				return a.spendBy(cmd.Context(), report.By(by), since, asJSON)
			}
			if err := a.load(); err != nil {
				return err
			}
			if err := a.open(); err != nil {
				return err
			}
			ids := []string{a.only()}
			if ids[0] == "" {
				list, err := a.ledger.Sessions(cmd.Context())
				if err != nil {
					return err
				}
				ids = ids[:0]
				for _, s := range list {
					ids = append(ids, s.ID)
				}
			}
			reports := []proxy.SpendReport{}
			for _, id := range ids {
				sp, budgets, err := a.ledger.Spent(cmd.Context(), ledger.Use{ID: id}, a.cfg.Engine)
				if err != nil {
					return err
				}
				reports = append(reports, proxy.Report(sp, budgets))
			}
			if asJSON {
				return a.printJSON(map[string]any{"sessions": reports})
			}
			return a.printSpend(reports, a.settings.SessionID != "")
		},
	}
	f := cmd.Flags()
	f.StringVar(&by, "by", "", "add up the calls on record: by tool, session, day, agent or upstream")
	f.StringVar(&since, "since", "", "with --by, from this time on: "+moments+" (default all)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// spendBy adds up the calls on record.
func (a *app) spendBy(ctx context.Context, by report.By, since string, asJSON bool) error {
	if !slices.Contains(report.Divisions, by) {
		return usage("--by must be tool, session, day, agent or upstream, not %q", string(by))
	}
	if _, err := moment(since); err != nil {
		return usage("--since: %w", err)
	}
	if err := a.openState(); err != nil {
		return err
	}
	p, err := a.since(ctx, since)
	if err != nil {
		return err
	}
	t := report.NewTally(by)
	j := &audit.Joiner{Ended: true, Each: func(e *audit.Event) error {
		if id := a.settings.SessionID; id == "" || id == e.Record.Session {
			t.Add(e)
		}
		return nil
	}}
	if err := a.walk(ctx, p, j.Add); err != nil {
		return err
	}
	if err := j.End(); err != nil {
		return err
	}
	if asJSON {
		return a.printJSON(map[string]any{"by": by, "rows": t.Rows(), "total_usd": t.Total().Spent, "calls": t.Total().Calls})
	}
	var rows [][]string
	for _, r := range append(t.Rows(), t.Total()) {
		rows = append(rows, []string{plain(r.Key, 64), fmt.Sprint(r.Calls), r.Spent.String(), fmt.Sprint(r.Denied), when(r.Last)})
	}
	rows[len(rows)-1][0] = "total"
	return a.printTable([]string{strings.ToUpper(string(by)), "CALLS", "SPENT", "REFUSED", "LAST"}, rows)
}

func (a *app) printSpend(reports []proxy.SpendReport, detail bool) error {
	var rows [][]string
	for _, r := range reports {
		left := "-"
		if r.RemainingUSD != nil {
			left = r.RemainingUSD.String()
		}
		rows = append(rows, []string{r.SessionID, r.TotalUSD.String(), left})
		if !detail {
			continue
		}
		var tools []string
		for t := range r.ByTool {
			tools = append(tools, t)
		}
		slices.Sort(tools)
		for _, t := range tools {
			rows = append(rows, []string{"  " + plain(t, 48), r.ByTool[t].String(), ""})
		}
		for _, b := range r.ByPolicy {
			rows = append(rows, []string{"  limit " + b.Rule + " per " + b.Per, b.UsedUSD.String(), b.RemainingUSD.String()})
		}
	}
	return a.printTable([]string{"SESSION", "SPENT", "LEFT"}, rows)
}
