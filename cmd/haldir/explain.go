package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/policy"
)

func explainCommand(a *app) *cobra.Command {
	var args string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain TOOL",
		Short: "Say what policy would decide about a call, and why; nothing is called",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, argv []string) error {
			arguments, err := a.arguments(args)
			if err != nil {
				return err
			}
			srv, err := a.prepare(cmd.Context())
			if err != nil {
				return err
			}
			entry, session, d, err := srv.Explain(cmd.Context(), argv[0], arguments)
			if err != nil {
				return err
			}
			if asJSON {
				err = a.printJSON(struct {
					Tool    string           `json:"tool"`
					Name    string           `json:"name"`
					Session string           `json:"session_id"`
					Verdict string           `json:"verdict"`
					Policy  string           `json:"policy,omitempty"`
					Rule    string           `json:"rule,omitempty"`
					Reason  string           `json:"reason,omitempty"`
					RetryAt time.Time        `json:"retry_at,omitzero"`
					CostUSD policy.Micros    `json:"cost_usd"`
					Also    []policy.Finding `json:"also,omitempty"`
				}{entry.ID(), entry.Exposed, session.ID, d.Verdict.String(), d.Policy, d.Rule, d.Reason, d.RetryAt, d.Cost, d.Also})
			} else {
				err = a.printDecision(entry.ID(), d)
			}
			if err == nil && d.Verdict != policy.Allow {
				return &exit{code: exitRefused, err: errors.New("refused"), silent: true}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&args, "args", "", "the arguments as a JSON object; @FILE reads a file, - stdin")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func (a *app) printDecision(id string, d policy.Decision) error {
	if err := a.printf("%s: %s\n", id, d.Verdict); err != nil {
		return err
	}
	if d.Cost > 0 {
		if err := a.printf("  cost: %s\n", d.Cost); err != nil {
			return err
		}
	}
	if d.Verdict != policy.Allow {
		if err := a.printf("  %s (%s): %s\n", d.Policy, d.Rule, d.Reason); err != nil {
			return err
		}
	}
	for _, f := range d.Also {
		word := "also"
		if f.Shadow {
			word = "shadow"
		}
		if err := a.printf("  %s: %s (%s): %s\n", word, f.Policy, f.Rule, f.Reason); err != nil {
			return err
		}
	}
	return nil
}
