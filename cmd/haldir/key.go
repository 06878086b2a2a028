package main

import (
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/console/api"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

func keyCommand(a *app) *cobra.Command {
	return group("key", "Create, list and revoke keys of the REST API", keyCreate(a), keyList(a), keyRevoke(a))
}

// allScopes stands for every scope that there is when the key is made.
const allScopes = "all"

func keyCreate(a *app) *cobra.Command {
	var terms ledger.KeyTerms
	var most string
	var expires time.Duration
	var asJSON bool
	var names []string
	for _, s := range api.Scopes {
		names = append(names, string(s))
	}
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a key and print it; it is not told again",
		Long: "create prints a key for the REST API of `haldir console`. Only its hash is stored.\n\n" +
			"Its scopes are what it may do: all, or some of\n  " + strings.Join(names, "\n  ") + "\n\n" +
			"Sessions that are made or used with it have at most the scopes of --session-scopes\n" +
			"and the limit of --max-spend.",
		Example: "  haldir key create --name ci --scopes proxy:read,proxy:call,sessions:write --max-spend 5",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(terms.Scopes) == 1 && terms.Scopes[0] == allScopes {
				terms.Scopes = names
			}
			if !cmd.Flags().Changed("session-scopes") {
				terms.SessionScopes = nil
			}
			if most != "" {
				m, err := policy.ParseUSD(most)
				if err != nil {
					return usage("--max-spend: %w", err)
				}
				terms.MaxSpend = &m
			}
			if cmd.Flags().Changed("expires") {
				if expires <= 0 {
					return usage("--expires must be longer than 0; leave it out for a key that does not expire")
				}
				terms.ExpiresAt = time.Now().Add(expires).UTC()
			}
			if err := api.CheckKey(terms, time.Now()); err != nil {
				return usage("%w", err)
			}
			if err := a.openState(); err != nil {
				return err
			}
			k, secret, err := a.ledger.CreateKey(cmd.Context(), terms, "")
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(struct {
					Secret string `json:"key"`
					ledger.Key
				}{secret, k})
			}
			a.say("haldir: keep the key; it is not told again. Revoke it with: %s key revoke %s", a.command(), k.ID)
			return a.printf("%s\n", secret)
		},
	}
	f := cmd.Flags()
	f.StringVar(&terms.Name, "name", "", "what it is for; the audit calls its calls by it")
	f.StringSliceVar(&terms.Scopes, "scopes", nil, "what it may do, with commas; all for everything")
	f.StringSliceVar(&terms.SessionScopes, "session-scopes", nil, "the scopes that its sessions may have, with commas (default any)")
	f.StringVar(&most, "max-spend", "", "the highest spend limit of its sessions, in dollars (default any, and none)")
	durationVar(f, &expires, "expires", 0, "how long it holds, such as 30d (default until it is revoked)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func keyStatus(k ledger.Key, now time.Time) string {
	switch {
	case !k.RevokedAt.IsZero():
		return "revoked"
	case !k.Holds(now):
		return "expired"
	}
	return "active"
}

func keyList(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the keys, the newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.openState(); err != nil {
				return err
			}
			list, err := a.ledger.Keys(cmd.Context())
			if err != nil {
				return err
			}
			type entry struct {
				ledger.Key
				Status string `json:"status"`
			}
			all := []entry{}
			var rows [][]string
			for _, k := range list {
				status := keyStatus(k, time.Now())
				all = append(all, entry{k, status})
				rows = append(rows, []string{k.ID, plain(k.Name, 24), status, when(k.LastUsed), strings.Join(k.Scopes, ",")})
			}
			if asJSON {
				return a.printJSON(map[string]any{"keys": all})
			}
			return a.printTable([]string{"KEY", "NAME", "STATUS", "LAST USED", "SCOPES"}, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func keyRevoke(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "End a key, and the keys that were made with it, at once",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.openState(); err != nil {
				return err
			}
			k, err := a.ledger.RevokeKey(cmd.Context(), args[0])
			if errors.Is(err, ledger.ErrNoKey) {
				return usage("%w; see: %s key list", err, a.command())
			}
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(k)
			}
			return a.printf("revoked %s (%s)\n", k.ID, plain(k.Name, 64))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}
