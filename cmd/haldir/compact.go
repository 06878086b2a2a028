package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/config"
)

// compactCommand is audit compact, and ledger compact, which is the same.
func compactCommand(a *app) *cobra.Command {
	var asJSON, now bool
	cmd := &cobra.Command{
		Use:   "compact",
		Short: "Prune what is older than audit.retain and give the free space back",
		Long: "compact prunes the records that are older than every config of this ledger wants\n" +
			"them kept (audit.retain; without it none are), writes the database into a new file\n" +
			"and puts that in the place of the old one. Windows that are open go on meanwhile.\n" +
			"It needs disk space for the new file. It can be ended at any time: the old file is\n" +
			"whole until the new one is.\n\n" +
			"What was found to be that old less than a day ago stays for now: a clock that is\n" +
			"ahead makes every record look old. --now prunes it as well: look at the clock first.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.load(); err != nil { // a config with mistakes has no say
				if _, mistakes := errors.AsType[config.Problems](err); !mistakes {
					return err
				}
				if err := a.set(); err != nil {
					return err
				}
			}
			if err := a.open(); err != nil {
				return err
			}
			began := time.Now()
			c, err := a.ledger.Compact(cmd.Context(), now, a.percent())
			if err != nil {
				return err
			}
			if asJSON {
				var from any
				if c.Due > 0 {
					from = c.From
				}
				return a.printJSON(map[string]any{
					"pruned_records": c.Pruned, "due_records": c.Due, "due_from": from, "bytes_before": c.Before, "bytes_after": c.After, "held_ms": c.Held.Milliseconds(), "took_ms": time.Since(began).Milliseconds(),
				})
			}
			due := ""
			if c.Due > 0 {
				due = fmt.Sprintf("due        %d more, found less than a day ago: they can go from %s on, or now with --now if the clock is right\n", c.Due, when(c.From))
			}
			return a.printf("pruned     %d records\n%ssize       %d bytes, %d before\nothers     were kept waiting for %d ms\n", c.Pruned, due, c.After, c.Before, c.Held.Milliseconds())
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "also prune what was found to be older less than a day ago")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// percent shows how far long work has come, on a terminal only.
func (a *app) percent() func(done, total uint64) {
	if terminal(a.err) == nil {
		return nil
	}
	last := uint64(101)
	return func(done, total uint64) {
		if p := done * 100 / total; p != last {
			last = p
			_, _ = fmt.Fprintf(a.err, "\r%3d %%\r", p) // only for the eye
		}
	}
}
