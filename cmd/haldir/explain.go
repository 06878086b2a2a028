package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
)

func explainCommand(a *app) *cobra.Command {
	var args string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain TOOL",
		Short: "Say what policy would decide about a call, and why; nothing is called",
		Long: "explain says what would be decided about a call now, and what each policy, the\n" +
			"session, the scopes and the cost have to do with it: whether it applies, whether it\n" +
			"lets the call pass, how much of a limit is used, and when it would say otherwise.\n" +
			"Nothing is called, reserved or recorded.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, argv []string) error {
			arguments, err := a.arguments(args)
			if err != nil {
				return err
			}
			srv, err := a.prepare(cmd.Context())
			if err != nil {
				return err
			}
			a.tellHeldBack(cmd.Context())
			x, err := srv.ExplainLines(cmd.Context(), argv[0], arguments)
			if errors.Is(err, proxy.ErrUnknownTool) {
				return fmt.Errorf("%w; `%s tools` lists the names of all tools", err, a.command())
			}
			if err != nil {
				return err
			}
			d := x.Decision
			if asJSON {
				lines := x.Lines
				if lines == nil {
					lines = []policy.Line{}
				}
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
					Lines   []policy.Line    `json:"policies"`
				}{x.Entry.ID(), x.Entry.Exposed, x.Session.ID, d.Verdict.String(), d.Policy, d.Rule, d.Reason, d.RetryAt, d.Cost, d.Also, lines})
			} else if err = a.printDecision(x.Entry.ID(), d); err == nil {
				err = a.printLines(x.Lines)
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
	if err := a.printf("%s: %s\n", plain(id, 0), d.Verdict); err != nil {
		return err
	}
	if d.Cost > 0 {
		if err := a.printf("  cost: %s\n", d.Cost); err != nil {
			return err
		}
	}
	if d.Verdict != policy.Allow {
		if err := a.printf("  %s (%s): %s\n", plain(d.Policy, 0), plain(d.Rule, 0), plain(d.Reason, 0)); err != nil {
			return err
		}
	}
	for _, f := range d.Also {
		word := "also"
		if f.Shadow {
			word = "shadow"
		}
		if err := a.printf("  %s: %s (%s): %s\n", word, plain(f.Policy, 0), plain(f.Rule, 0), plain(f.Reason, 0)); err != nil {
			return err
		}
	}
	return nil
}

// printLines shows what each rule says of a call, one a line; which one decides, and
// what is known of it beside, is below it.
func (a *app) printLines(lines []policy.Line) error {
	if len(lines) == 0 {
		return nil
	}
	red, green, _, end := a.colours()
	var b strings.Builder
	b.WriteByte('\n')
	for _, l := range lines {
		name := l.Policy
		if l.Rule != l.Policy {
			name += " (" + l.Rule + ")"
		}
		word, colour := "passes", green
		switch {
		case !l.Applies:
			word, colour = "-", ""
		case !l.Passes && l.Shadow:
			word, colour = "shadow", red
		case !l.Passes:
			word, colour = "refuses", red
		}
		about := []string{}
		if l.Counter != nil {
			about = append(about, l.Counter.String())
		}
		// What refuses has been told above in full, and what a condition is comes next.
		if l.Why != "" && l.Passes && (l.Applies || l.Value == "") {
			about = append(about, l.Why)
		}
		if l.Value != "" {
			about = append(about, l.When+" is "+l.Value)
		}
		if l.Flips != "" {
			about = append(about, l.Flips)
		}
		tail := ""
		if colour != "" {
			tail = end
		}
		fmt.Fprintf(&b, "%s%-8s%s %s\n", colour, word, tail, plain(name, 0))
		if len(about) > 0 {
			fmt.Fprintf(&b, "         %s\n", plain(strings.Join(strings.Fields(strings.Join(about, "; ")), " "), 0))
		}
	}
	return a.printf("%s", b.String())
}
