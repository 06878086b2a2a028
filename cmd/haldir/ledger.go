package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/ledger"
)

func ledgerCommand(a *app) *cobra.Command {
	return group("ledger", "Look after the ledger's file", ledgerStats(a), ledgerRecover(a), ledgerTrust(a), ledgerResetClock(a), compactCommand(a))
}

func ledgerStats(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Show how large the ledger is and what is in it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.openState(); err != nil {
				return err
			}
			s, err := a.ledger.Stats(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(s)
			}
			per := "-"
			if s.Records > 0 {
				per = fmt.Sprintf("%d bytes", int64(s.RecordBytes)/int64(s.Records)) //nolint:gosec // far below 2^63
			}
			if err := a.printf("file       %s\nsize       %d bytes, %d of them free\nformat     %d\nrecords    %d, %d of them under a signed checkpoint, %s each\n"+
				"kept       %s\nsessions   %d\nopen calls %d\n", s.Path, s.Bytes, s.FreeBytes, s.Format, s.Records, s.Checkpoints, per, kept(s), s.Sessions, s.Open); err != nil {
				return err
			}
			for _, d := range s.Shipping {
				if err := a.printf("shipping   %s\n", shipped(d)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// shipped says how far a destination is, and what it keeps from being pruned.
func shipped(d ledger.Destination) string {
	text := fmt.Sprintf("up to record %d to %s; %d to go", d.Shipped, plain(d.Destination, 0), d.Unshipped)
	if d.Rejected > 0 {
		text += fmt.Sprintf(", %d were rejected there", d.Rejected)
	}
	if d.Missed > 0 {
		text += fmt.Sprintf(", %d were pruned before they were there", d.Missed)
	}
	if d.Holds.IsZero() {
		return text + "; nothing was accepted for 30 days, so that they are not kept beyond their time"
	}
	return text + fmt.Sprintf(", kept until %s whatever their age", d.Holds.Local().Format(time.DateOnly))
}

// kept says which records are kept, and why.
func kept(s ledger.Stats) string {
	text := "for ever"
	if s.Kept > 0 {
		text = fmt.Sprintf("for %d days", s.Kept/(24*60*60))
	}
	if s.Keeps != "" {
		text += fmt.Sprintf(", as %s says", s.Keeps)
	}
	if s.First > 1 {
		text += fmt.Sprintf("; the first record is %d", s.First)
	}
	if s.Unswept > 0 {
		text += fmt.Sprintf(", %d before it are still to be deleted", s.Unswept)
	}
	return text
}

func ledgerRecover(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Set a damaged ledger aside and go on with what is left of it",
		Long: "recover renames a damaged ledger's files, which it neither changes nor deletes,\n" +
			"writes every record that can be verified to a file of its own, begins a new\n" +
			"ledger whose first record tells of it, and says what is missing. A ledger that is\n" +
			"sound is left alone. Windows that are open go on with the new one.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.set(); err != nil {
				return err
			}
			r, err := ledger.Recover(cmd.Context(), ledger.Options{Dir: a.settings.StateDir, Clock: time.Now, Logger: a.log})
			if errors.Is(err, ledger.ErrSound) {
				if asJSON {
					return a.printJSON(map[string]any{"sound": true})
				}
				return a.printf("%v\n", err)
			}
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(r)
			}
			return a.printRecovery(r)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func (a *app) printRecovery(r ledger.Recovery) error {
	if err := a.printf("recovered  %s\n", r.Why); err != nil {
		return err
	}
	for _, f := range r.Aside {
		if err := a.printf("set aside  %s\n", f); err != nil {
			return err
		}
	}
	if err := a.printf("salvaged   %d records in %s\nmissing    %d records\n", r.Records, r.Salvaged, r.Lost); err != nil {
		return err
	}
	for _, m := range r.Missing {
		if err := a.printf("           %d to %d\n", m.First, m.Last); err != nil {
			return err
		}
	}
	if !r.Doubt {
		return a.printf("sessions   %d go on\nopen calls %d stay spent\n", r.Sessions, r.Open)
	}
	if err := a.printf("sessions   lost, as is what had been spent and counted\n"); err != nil {
		return err
	}
	a.say("until you run `%s ledger trust --reason TEXT`, limits without a window count as used up and sessions of before are refused;\n"+
		"limits with a window count as used up until it has passed", a.command())
	return nil
}

func ledgerTrust(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "trust",
		Short: "After a recovery that lost what was spent: count it as nothing from now on",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.openState(); err != nil {
				return err
			}
			doubted, err := a.ledger.Trust(cmd.Context(), reason)
			switch {
			case err != nil:
				return err
			case !doubted:
				return a.printf("nothing was in doubt; nothing was done\n")
			}
			return a.printf("limits count from zero again; the audit has your reason\n")
		},
	}
	reasonFlag(cmd, &reason)
	return cmd
}

func ledgerResetClock(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "reset-clock",
		Short: "Set the ledger's time back to the clock's, after the clock was wrong",
		Long: "The ledger's time never runs backwards, so that a clock that jumps back opens no\n" +
			"window anew. A clock that was ahead for a while leaves it ahead: windows and\n" +
			"sessions then wait for the clock. reset-clock ends that; no limit becomes looser,\n" +
			"and the audit has the reason.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.openState(); err != nil {
				return err
			}
			was, now, err := a.ledger.ResetClock(cmd.Context(), reason)
			switch {
			case err != nil:
				return err
			case !was.After(now):
				return a.printf("the ledger's time is the clock's; nothing was done\n")
			}
			return a.printf("the ledger's time was %s and is now %s\n", was.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		},
	}
	reasonFlag(cmd, &reason)
	return cmd
}

// reasonFlag demands a reason for what loosens a rule.
func reasonFlag(cmd *cobra.Command, reason *string) {
	cmd.Flags().StringVar(reason, "reason", "", "why, for the audit (needed)")
	check := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if *reason == "" {
			return errors.New("--reason is needed: it goes into the audit")
		}
		return check(cmd, args)
	}
}
