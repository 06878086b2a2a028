package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/policy"
)

func policyCommand(a *app) *cobra.Command {
	return group("policy", "List the policies", policyList(a))
}

func policyList(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the policies of the config in their order",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := a.load(); err != nil {
				return err
			}
			ids := a.cfg.Engine.Rules()
			type entry struct {
				ID     string   `json:"id"`
				Type   string   `json:"type"`
				Shadow bool     `json:"shadow"`
				Tools  []string `json:"tools,omitempty"`
				When   string   `json:"when,omitempty"`
				Rule   string   `json:"rule"`
			}
			list := []entry{}
			var rows [][]string
			for i, r := range a.cfg.Ruleset.Policies {
				list = append(list, entry{ids[i], string(r.Type), r.Shadow, r.Tools, r.When, sentence(r)})
				rows = append(rows, []string{ids[i], plain(sentence(r), 0)})
			}
			if asJSON {
				return a.printJSON(map[string]any{"policies": list})
			}
			return a.printTable([]string{"ID", "RULE"}, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func plural(n int64) string {
	if n == 1 {
		return ""
	}
	return "s"
}

// sentence says what a rule does.
func sentence(r policy.Rule) string {
	var b strings.Builder
	switch r.Type {
	case policy.TypeDeny:
		b.WriteString("deny")
	case policy.TypeAllow:
		b.WriteString("allow only")
	case policy.TypeSpendLimit:
		per := r.Per
		if per == "" {
			per = policy.PerSession
		}
		fmt.Fprintf(&b, "at most %s per %s", r.MaxUSD, per)
	case policy.TypeRateLimit:
		fmt.Fprintf(&b, "at most %d call%s in %s", r.MaxCalls, plural(r.MaxCalls), policy.Span(r.Window))
		if r.Per != "" && r.Per != policy.PerTotal {
			b.WriteString(" per " + r.Per)
		}
	case policy.TypeTimeWindow:
		b.WriteString("only")
		if h := r.Hours; h != nil {
			fmt.Fprintf(&b, " %02d:%02d-%02d:%02d", h.Start/60, h.Start%60, h.End/60, h.End%60)
		}
		for _, d := range r.Days {
			b.WriteString(" " + strings.ToLower(d.String()[:3]))
		}
		fmt.Fprintf(&b, " %s", r.Location)
	case policy.TypeApproval:
		b.WriteString("ask a person before")
	case policy.TypeLoop:
		fmt.Fprintf(&b, "at most %d same call%s or failure%[2]s in a row in %[3]s", r.MaxRepeats, plural(r.MaxRepeats), policy.Span(r.Window))
	}
	if r.Type == policy.TypeAllow || len(r.Tools) > 0 {
		b.WriteString(" " + strings.Join(r.Tools, ", "))
	}
	if len(r.Upstreams) > 0 {
		b.WriteString(" in " + strings.Join(r.Upstreams, ", "))
	}
	if len(r.Agents) > 0 {
		b.WriteString(" for " + strings.Join(r.Agents, ", "))
	}
	if r.When != "" {
		b.WriteString(" when " + strings.Join(strings.Fields(r.When), " "))
	}
	if r.Shadow {
		b.WriteString(" (shadow)")
	}
	return b.String()
}
