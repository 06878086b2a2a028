package main

import (
	"context"
	"encoding/json"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/policy"
)

func auditFollow(a *app) *cobra.Command {
	var f audit.Filter
	var since string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "follow",
		Short: "Show entries as they come, until interrupted",
		Long: "follow prints each call when it is made and again when it has ended, and every\n" +
			"other event. --json prints one object a line, as audit list has them. It holds up\n" +
			"nobody: it waits without the ledger's lock.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := selects(&f); err != nil {
				return err
			}
			at, err := moment(since)
			if err != nil {
				return usage("--since: %w", err)
			}
			if err := a.openState(); err != nil {
				return err
			}
			f.Session = a.only()
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			first, newest, err := a.ledger.Since(ctx, at)
			if err != nil {
				return err
			}
			if since == "" {
				first = newest + 1
			}
			return a.follow(ctx, first, f, asJSON)
		},
	}
	fl := cmd.Flags()
	filterFlags(fl, &f)
	fl.StringVar(&since, "since", "", "first what was before, from this time on: "+moments)
	fl.BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

// follow prints the events that f selects from a record on.
func (a *app) follow(ctx context.Context, first uint64, f audit.Filter, asJSON bool) error {
	j := &audit.Joiner{
		Attempt: func(seq uint64) ([]byte, error) { return a.ledger.Raw(ctx, seq) },
		Each: func(e *audit.Event) error {
			entry := e.Entry()
			if !f.Selects(&entry) {
				return nil
			}
			if !asJSON {
				return a.printEvent(e)
			}
			raw, err := json.Marshal(entry)
			if err != nil {
				return err
			}
			return a.printf("%s\n", raw)
		},
	}
	return a.ledger.Follow(ctx, first, j.Add)
}

// printEvent writes one line about what has just happened.
func (a *app) printEvent(e *audit.Event) error {
	red, green, bold, end := a.colours()
	at, about := e.Record.Time, []string{}
	if e.Outcome != nil {
		at = e.Outcome.Time
	}
	if e.Outcome != nil && e.Outcome.Kind == audit.KindOutcome {
		about = append(about, (time.Duration(min(e.Outcome.DurationMS, 1<<40)) * time.Millisecond).String())
		if c := e.Cost(); c > 0 {
			about = append(about, policy.Micros(c).String())
		}
	}
	if reason := e.FlagReason(); reason != "" {
		about = append(about, reason)
	} else if e.Outcome == nil && len(e.Record.Arguments) > 0 {
		about = append(about, string(e.Record.Arguments))
	}
	what := e.ID()
	if what == "" {
		what = e.Record.Kind.String()
		if e.Record.Session != "" {
			what += " " + e.Record.Session
		}
	}
	colour := ""
	switch s := e.Status(); {
	case s == audit.StatusAllowed:
		colour = green
	case s == audit.StatusDenied, s == audit.StatusError, e.Flagged():
		colour = red
	case s == audit.StatusRunning:
	default:
		colour = bold
	}
	if colour == "" {
		end = ""
	}
	text := at.Local().Format(time.TimeOnly) + "  " + colour + pad(string(e.Status()), 9) + end + "  "
	rest := plain(what, 40)
	if detail := strings.Join(about, "  "); detail != "" {
		rest = pad(rest, 28) + "  " + plain(detail, 0)
	}
	if total, cut := a.width(); cut {
		rest = plain(rest, max(20, total-21))
	}
	return a.printf("%s%s\n", text, rest)
}

// pad fills a text up to a width.
func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-len([]rune(s))))
}
