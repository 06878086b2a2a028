package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func stopCommand(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "Refuse every call in every process, until haldir resume",
		Long: "stop refuses every call of every session, at once and in every process that uses this\n" +
			"state directory, until haldir resume. Calls that are under way go on; to end them as\n" +
			"well, see haldir session revoke --cancel.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.openState(); err != nil {
				return err
			}
			if _, err := a.ledger.Stop(cmd.Context(), reason); err != nil {
				return err
			}
			a.say("every call is refused from now on; end that with: %s resume", a.command())
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the agents and the audit")
	return cmd
}

func resumeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "resume",
		Short: "Let calls be judged by the policies again, after haldir stop; at a terminal",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.openState(); err != nil {
				return err
			}
			s, err := a.ledger.Stopped(cmd.Context())
			if err != nil {
				return err
			}
			if s == nil {
				a.say("calls are not stopped")
				return nil
			}
			why := ""
			if s.Reason != "" {
				why = ": " + plain(s.Reason, 200)
			}
			a.say("every call is refused since %s%s", when(s.At), why)
			if !a.atTerminal("Let calls be judged again?") {
				return errors.New("calls are still refused")
			}
			_, err = a.ledger.Resume(cmd.Context())
			return err
		},
	}
}
