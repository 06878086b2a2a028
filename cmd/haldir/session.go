package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

func sessionCommand(a *app) *cobra.Command {
	return group("session", "Create, list, show, renew and revoke sessions",
		sessionCreate(a), sessionList(a), sessionShow(a), sessionRenew(a), sessionRevoke(a))
}

// sessionJSON is a session as --json prints it.
type sessionJSON struct {
	ledger.Session
	SpendLimit *policy.Micros `json:"spend_limit"`
	Status     string         `json:"status"`
}

func describe(s ledger.Session) sessionJSON {
	status := "active"
	switch {
	case !s.RevokedAt.IsZero():
		status = "revoked"
	case !s.ExpiresAt.IsZero() && !time.Now().Before(s.ExpiresAt):
		status = "expired"
	}
	limit := s.Limit
	s.Limit = nil
	if s.Scopes == nil {
		s.Scopes = []string{}
	}
	return sessionJSON{s, limit, status}
}

func (s sessionJSON) scopes() string {
	if s.AllScopes {
		return "all"
	}
	return strings.Join(s.Scopes, ",")
}

func (s sessionJSON) limit() string {
	if s.SpendLimit == nil {
		return "none"
	}
	return s.SpendLimit.String()
}

func sessionCreate(a *app) *cobra.Command {
	var agent, limit string
	var scopes []string
	var ttl time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create a session with fixed terms and print its id",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := config.CheckID(agent); err != nil {
				return usage("--agent: %w", err)
			}
			terms := ledger.Terms{Agent: agent, AllScopes: !cmd.Flags().Changed("scopes"), Scopes: scopes, TTL: ttl}
			if limit != "" {
				m, err := policy.ParseUSD(limit)
				if err != nil {
					return usage("--spend-limit: %w", err)
				}
				terms.SpendLimit = &m
			}
			if cmd.Flags().Changed("ttl") && ttl <= 0 {
				return usage("--ttl must be longer than 0; leave it out for a session that does not expire")
			}
			a.doubt(scopes)
			if err := a.openState(); err != nil {
				return err
			}
			s, err := a.ledger.CreateSession(cmd.Context(), terms)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(describe(s))
			}
			a.say("use it with: claude mcp add haldir --env HALDIR_SESSION_ID=%s -- %s serve", s.ID, a.launched())
			return a.printf("%s\n", s.ID)
		},
	}
	f := cmd.Flags()
	f.StringVar(&agent, "agent", "default", "the agent it belongs to")
	f.StringSliceVar(&scopes, "scopes", nil, "the scopes it grants, with commas (default all)")
	f.StringVar(&limit, "spend-limit", "", "what it may spend, in dollars (default no limit)")
	durationVar(f, &ttl, "ttl", 0, "how long it lasts, such as 1h (default for ever)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// doubt warns of scopes that no call requires. It needs no config: one that cannot be read
// says nothing of them.
func (a *app) doubt(scopes []string) {
	cfg, err := a.layers.Find()
	if err != nil {
		return
	}
	for _, s := range scopes {
		if text := cfg.Unrequired(s); text != "" {
			a.say("haldir: --scopes: %s", text)
		}
	}
}

func sessionList(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the sessions, the newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.openState(); err != nil {
				return err
			}
			list, err := a.ledger.Sessions(cmd.Context())
			if err != nil {
				return err
			}
			all := []sessionJSON{}
			var rows [][]string
			for _, s := range list {
				d := describe(s)
				all = append(all, d)
				rows = append(rows, []string{s.ID, s.Agent, d.Status, when(s.Created), d.limit()})
			}
			if asJSON {
				return a.printJSON(map[string]any{"sessions": all})
			}
			return a.printTable([]string{"SESSION", "AGENT", "STATUS", "CREATED", "LIMIT"}, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func sessionShow(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show one session",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.openState(); err != nil {
				return err
			}
			s, err := a.ledger.Session(cmd.Context(), ledger.Use{ID: args[0]})
			if err != nil {
				return err
			}
			return a.printSession(s, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func sessionRevoke(a *app) *cobra.Command {
	var asJSON, cancel bool
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "End a session: new calls are refused everywhere, running ones finish",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.openState(); err != nil {
				return err
			}
			s, err := a.ledger.Revoke(cmd.Context(), args[0], cancel)
			if err != nil {
				return err
			}
			return a.printSession(s, asJSON)
		},
	}
	cmd.Flags().BoolVar(&cancel, "cancel", false, "cancel its running calls too")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func sessionRenew(a *app) *cobra.Command {
	var ttl time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "renew ID",
		Short: "Let a session last longer: for the time given, from now on",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if ttl <= 0 {
				return usage("--ttl must be longer than 0")
			}
			if err := a.openState(); err != nil {
				return err
			}
			s, err := a.ledger.Renew(cmd.Context(), args[0], ttl)
			if err != nil {
				return fmt.Errorf("renew session %s: %w", args[0], err)
			}
			if s.ExpiresAt.IsZero() {
				a.say("session %s does not expire; nothing to renew", s.ID)
			}
			return a.printSession(s, asJSON)
		},
	}
	durationVar(cmd.Flags(), &ttl, "ttl", 8*time.Hour, "how long it lasts from now on")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func (a *app) printSession(s ledger.Session, asJSON bool) error {
	d := describe(s)
	if asJSON {
		return a.printJSON(d)
	}
	return a.printf("session   %s\nagent     %s\nstatus    %s\nscopes    %s\nlimit     %s\ncreated   %s\nexpires   %s\nrevoked   %s\n",
		s.ID, plain(s.Agent, 60), d.Status, d.scopes(), d.limit(), when(s.Created), when(s.ExpiresAt), when(s.RevokedAt))
}
