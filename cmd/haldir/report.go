package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/report"
)

func auditReport(a *app) *cobra.Command {
	var since, until, format, out string
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Write a report for an auditor: who called what, refusals, spend, integrity",
		Long: "report verifies the whole chain, sums up a period of it and writes one document:\n" +
			"who called what, refusals by policy, spend by day, agent, session and tool, what\n" +
			"people were asked, changes of the config and of servers' definitions, and whether\n" +
			"the record is intact. It is written all the same if it is not; the exit status is\n" +
			"then 4. The HTML is one page that needs nothing else, and prints well.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "md" && format != "html" && format != "json" {
				return usage("--format must be md, html or json")
			}
			from, err := moment(since)
			if err != nil {
				return usage("--since: %w", err)
			}
			to, err := moment(until)
			if err != nil {
				return usage("--until: %w", err)
			}
			if err := a.openState(); err != nil {
				return err
			}
			r, damage, err := a.report(cmd.Context(), since, report.Options{
				Since: from, Until: to, Generated: time.Now(), Version: version(), Session: a.only(),
			})
			if err != nil {
				return err
			}
			if err := a.output(out, func(w io.Writer) error { return writeReport(w, r, format) }); err != nil {
				return err
			}
			return damage
		},
	}
	f := cmd.Flags()
	f.StringVar(&since, "since", "30d", "from this time on: "+moments)
	f.StringVar(&until, "until", "", "before this time: "+moments+" (default now)")
	f.StringVar(&format, "format", "md", "md, html or json")
	f.StringVar(&out, "out", "", "a new file to write to (default stdout)")
	return cmd
}

// report verifies the chain and sums up a part of it. damage is what is wrong with
// the chain, which is in the report too.
func (a *app) report(ctx context.Context, since string, o report.Options) (r *report.Report, damage, err error) {
	var i report.Integrity
	v, damage := a.ledger.Verify(ctx, a.progress())
	if damage != nil && !isDamage(damage) {
		return nil, nil, damage
	}
	if v != nil {
		i.Records, i.Signed, i.Pruned, i.Head = v.Count(), v.Agreed(), v.Pruned(), v.Head().String()
		i.Checkpoints, i.SignedAt = v.Signed()
	}
	if i.Intact = damage == nil; !i.Intact {
		i.Damage = damage.Error()
	}
	p, err := a.since(ctx, since)
	if err != nil {
		return nil, nil, err
	}
	b := report.New(o)
	j := &audit.Joiner{Each: b.Add, Ended: true}
	if err = a.walk(ctx, p, j.Add); err == nil {
		err = j.End()
	}
	if isDamage(err) && damage != nil { // as far as it can be read
		err = nil
	}
	return b.Report(i), damage, err
}

func isDamage(err error) bool {
	_, ok := errors.AsType[*audit.Damage](err)
	return ok
}

func writeReport(w io.Writer, r *report.Report, format string) error {
	buffered := bufio.NewWriter(w)
	var err error
	switch format {
	case "html":
		err = r.HTML(buffered)
	case "json":
		enc := json.NewEncoder(buffered)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		err = enc.Encode(r)
	default:
		err = r.Markdown(buffered)
	}
	return cmp.Or(err, buffered.Flush()) // which fails with what a write has failed with
}
