package main

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/proxy"
)

func spendCommand(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "spend",
		Short: "Show what sessions have spent, against their limits",
		Long:  "spend shows every session, or with --session one of them by tool and by limit.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.load(); err != nil {
				return err
			}
			if err := a.open(); err != nil {
				return err
			}
			ids := []string{a.settings.SessionID}
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
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
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
