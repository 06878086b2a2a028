package main

import (
	"encoding/json"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/proxy"
)

func toolsCommand(a *app) *cobra.Command {
	var asJSON, changes bool
	cmd := &cobra.Command{
		Use:   "tools",
		Short: "List the tools an agent sees, and what was hidden, renamed or withheld",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			srv, err := a.prepare(cmd.Context())
			if err != nil {
				return err
			}
			entries, notes := srv.Tools(cmd.Context())
			if changes {
				return a.changes(notes, asJSON)
			}
			if asJSON {
				return a.toolsJSON(entries, notes)
			}
			var rows [][]string
			for _, e := range entries {
				seen := "yes"
				if e.Hidden && a.settings.DeniedTools == "hide" {
					seen = "denied"
				}
				rows = append(rows, []string{e.Exposed, e.ID(), seen})
			}
			if err := a.printTable([]string{"NAME", "CANONICAL ID", "LISTED"}, rows); err != nil {
				return err
			}
			for _, n := range notes {
				a.say("haldir: %s/%s: %s", n.Upstream, plain(n.Tool, 128), plain(n.Text, 300))
			}
			for _, u := range a.ups {
				switch st := u.Status(); {
				case st.Err != nil:
					a.say("haldir: upstream %s: %s", u.Name(), plain(st.Err.Error(), 300))
				case !u.Catalogue().Known:
					a.say("haldir: upstream %s has not answered yet; its tools are not known", u.Name())
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&changes, "changes", false, "list what is not as its upstream offers it: names that were changed, and what is withheld")
	return cmd
}

// changes prints what was done to names, and what is withheld and why.
func (a *app) changes(notes []proxy.Note, asJSON bool) error {
	if asJSON {
		return a.printJSON(map[string]any{"notes": append([]proxy.Note{}, notes...)})
	}
	rows := make([][]string, 0, len(notes))
	for _, n := range notes {
		rows = append(rows, []string{n.Upstream, plain(n.Tool, 128), plain(n.Text, 300)})
	}
	return a.printTable([]string{"UPSTREAM", "NAME", "CHANGE"}, rows)
}

func (a *app) toolsJSON(entries []proxy.Entry, notes []proxy.Note) error {
	type tool struct {
		proxy.Entry
		ID         string          `json:"id"`
		Definition json.RawMessage `json:"definition"`
	}
	tools := []tool{}
	for _, e := range entries {
		tools = append(tools, tool{e, e.ID(), e.Definition()})
	}
	if notes == nil {
		notes = []proxy.Note{}
	}
	return a.printJSON(map[string]any{"tools": tools, "notes": notes})
}
