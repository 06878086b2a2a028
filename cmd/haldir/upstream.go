package main

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/upstream"
	"github.com/haldir-mcp/haldir/upstream/oauth"
)

func upstreamCommand(a *app) *cobra.Command {
	return group("upstream", "List the upstreams, sign in to them", upstreamList(a), upstreamLogin(a), upstreamLogout(a))
}

func upstreamList(a *app) *cobra.Command {
	var asJSON bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Connect to every upstream and say how it is doing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := a.prepare(cmd.Context()); err != nil {
				return err
			}
			a.start(upstream.Host{})
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			var wg sync.WaitGroup
			for _, u := range a.ups {
				wg.Go(func() { u.Connected(ctx) })
			}
			wg.Wait()
			type entry struct {
				Name     string         `json:"name"`
				State    string         `json:"state"`
				Server   string         `json:"server,omitempty"`
				Protocol string         `json:"protocol,omitempty"`
				Tools    int            `json:"tools"`
				Withheld int            `json:"withheld"`
				Changes  int            `json:"pin_changes"`
				Ends     int            `json:"ends_lately"` // within two minutes
				Auth     *oauth.Granted `json:"auth,omitempty"`
				Error    string         `json:"error,omitempty"`
			}
			list := []entry{}
			var rows [][]string
			for _, u := range a.ups {
				st := u.Status()
				e := entry{Name: u.Name(), State: string(st.State), Server: st.Server, Protocol: st.Version, Tools: len(u.Catalogue().Tools), Withheld: len(u.Catalogue().Withheld), Changes: len(u.Pinned().Changes), Ends: st.Ends}
				if source, err := u.Auth(); err == nil {
					if g, err := source.Granted(); err == nil {
						g.Ended = a.secrets.clean(g.Ended) // the server's words
						e.Auth = &g
					}
				}
				if st.Err != nil {
					e.Error = st.Err.Error()
				}
				list = append(list, e)
				signed := "-"
				switch {
				case e.Auth == nil:
				case e.Auth.Ended != "":
					signed = "ended"
				case e.Auth.SignedIn:
					signed = "yes"
				case st.State != upstream.StateReady: // else nobody has asked for it
					signed = "no"
				}
				rows = append(rows, []string{e.Name, e.State, strconv.Itoa(e.Tools), strconv.Itoa(e.Changes), signed, e.Protocol, plain(e.Server, 24)})
			}
			if asJSON {
				return a.printJSON(map[string]any{"upstreams": list})
			}
			if err := a.printTable([]string{"NAME", "STATE", "TOOLS", "CHANGED", "SIGNED IN", "PROTOCOL", "SERVER"}, rows); err != nil {
				return err
			}
			for _, e := range list { // too long for a column
				if e.Error != "" {
					a.say("haldir: upstream %s: %s", e.Name, plain(e.Error, 500))
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().DurationVar(&wait, "wait", 10*time.Second, "how long to wait for them")
	return cmd
}
