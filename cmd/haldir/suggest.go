package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/suggest"
)

func suggestCommand(a *app) *cobra.Command {
	var since, agent string
	var offline bool
	cmd := &cobra.Command{
		Use:   "suggest",
		Short: "Write least-privilege policies made of what was called",
		Long: "suggest looks at the calls of the audit and writes a config without upstreams that\n" +
			"allows what was called and nothing else, with rate and spend limits half as high\n" +
			"again as what was needed, and comments that say why. It would have refused nothing\n" +
			"that was let through, as far as the record tells: see `haldir simulate`. Read it\n" +
			"before you use it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := moment(since); err != nil {
				return usage("--since: %w", err)
			}
			ctx := cmd.Context()
			srv, err := a.prepare(ctx)
			if err != nil {
				return err
			}
			o := suggest.Options{Now: time.Now(), Costs: a.cfg.Ruleset.Costs, Scopes: a.cfg.Ruleset.Scopes, Agent: agent}
			if !offline {
				entries, _ := srv.Tools(ctx)
				for _, e := range entries {
					if !e.Own() {
						o.Listed = append(o.Listed, e.ID())
					}
				}
			}
			p, err := a.since(ctx, since)
			if err != nil {
				return err
			}
			if o.Sessions, err = a.sessions(ctx); err != nil {
				return err
			}
			s, err := suggest.Make(o, func(f func(uint64, []byte) error) error { return a.walk(ctx, p, f) })
			if err != nil {
				return err
			}
			return a.printf("%s", s.YAML())
		},
	}
	f := cmd.Flags()
	f.StringVar(&since, "since", "7d", "from this time on: "+moments)
	f.StringVar(&agent, "agent", "", "only for this agent")
	f.BoolVar(&offline, "offline", false, "do not ask the upstreams which tools there are that nobody called")
	return cmd
}
