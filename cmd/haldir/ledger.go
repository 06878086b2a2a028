package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func ledgerCommand(a *app) *cobra.Command {
	return group("ledger", "Look after the ledger's file", ledgerStats(a))
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
			return a.printf("file       %s\nsize       %d bytes, %d of them free\nformat     %d\nrecords    %d, %d of them under a signed checkpoint, %s each\n"+
				"sessions   %d\nopen calls %d\n", s.Path, s.Bytes, s.FreeBytes, s.Format, s.Records, s.Checkpoints, per, s.Sessions, s.Open)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}
