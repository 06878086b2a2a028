package main

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/upstream"
	"github.com/haldir-mcp/haldir/upstream/oauth"
)

func upstreamCommand(a *app) *cobra.Command {
	return group("upstream", "List the upstreams, add and remove them, sign in to them",
		upstreamList(a), upstreamAdd(a), upstreamRemove(a), upstreamLogin(a), upstreamLogout(a))
}

func upstreamAdd(a *app) *cobra.Command {
	e := &editing{a: a}
	var url, auth, token, cwd, file string
	var headers, env []string
	cmd := &cobra.Command{
		Use:   "add NAME (--url URL | -- COMMAND [ARG…])",
		Short: "Add an upstream to the config",
		Long: "add writes an upstream behind those of the config, in the way they are written, and\n" +
			"leaves the rest of the file as it is: a server at a URL, or a program with its\n" +
			"arguments behind --. Whatever else an upstream can have is taken from a file. Nothing\n" +
			"is written unless the config loads with it.\n\n" +
			"Secrets belong in `haldir secret set NAME`; refer to them as ${keyring:NAME}.",
		Example: "  haldir upstream add docs --url https://docs.example.com/mcp --auth oauth\n" +
			"  haldir upstream add crm --url https://crm.example.com/mcp --header 'X-Key: ${keyring:crm}'\n" +
			"  haldir upstream add files -- npx -y @modelcontextprotocol/server-filesystem .\n" +
			"  haldir upstream add --file crm.yaml",
		Args: cobra.ArbitraryArgs,
	}
	f := cmd.Flags()
	f.StringVar(&url, "url", "", "the address of the server")
	f.StringArrayVar(&headers, "header", nil, "an HTTP header for --url, as 'Name: value'; may be repeated")
	f.StringVar(&auth, "auth", "", "how haldir signs in to --url: oauth, or bearer with --token")
	f.StringVar(&token, "token", "", "the token of --auth bearer, best as ${keyring:NAME}")
	f.StringArrayVar(&env, "env", nil, "a variable for the command, as NAME=value; may be repeated")
	f.StringVar(&cwd, "cwd", "", "the directory that the command runs in")
	f.StringVarP(&file, "file", "f", "", "the file that holds the upstream as one mapping in YAML or JSON; - for standard input")
	e.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.Changed("file") {
			for _, name := range []string{"url", "header", "auth", "token", "env", "cwd"} {
				if f.Changed(name) {
					return usage("--file holds the whole upstream; leave --%s out", name)
				}
			}
			if len(args) > 0 {
				return usage("--file holds the whole upstream; leave %q out", args[0])
			}
			entry, source, err := e.given(file)
			if err != nil {
				return err
			}
			return e.add(edit.Upstreams, entry, source)
		}
		command := []string{}
		if dash := cmd.ArgsLenAtDash(); dash >= 0 {
			args, command = args[:dash], args[dash:]
		}
		switch {
		case len(args) == 0:
			return usage("the upstream has no name; see: %s --help", cmd.CommandPath())
		case len(args) > 1:
			return usage("%q follows the name; a program stands behind --, as in: haldir upstream add %s -- %s", args[1], args[0], strings.Join(args[1:], " "))
		case (url == "") == (len(command) == 0):
			return usage("an upstream has either --url or a program behind --; see: %s --help", cmd.CommandPath())
		}
		var p pairs
		err := p.put("name", args[0])
		if url != "" {
			err = errors.Join(err, p.put("url", url))
		} else {
			err = errors.Join(err, p.put("command", command[0]))
			if len(command) > 1 {
				err = errors.Join(err, p.put("args", command[1:]))
			}
		}
		switch {
		case token != "":
			err = errors.Join(err, p.put("auth", struct {
				Type  string `json:"type"`
				Token string `json:"token"`
			}{cmp.Or(auth, "bearer"), token}))
		case auth != "":
			err = errors.Join(err, p.put("auth", map[string]string{"type": auth}))
		}
		if len(headers) > 0 {
			err = errors.Join(err, p.put("headers", headers))
		}
		if len(env) > 0 {
			err = errors.Join(err, p.put("env", env))
		}
		if cwd != "" {
			err = errors.Join(err, p.put("cwd", cwd))
		}
		if err != nil {
			return err
		}
		return e.add(edit.Upstreams, p.entry(), "")
	}
	return cmd
}

func upstreamRemove(a *app) *cobra.Command {
	e := &editing{a: a}
	var policies bool
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove an upstream from the config",
		Long: "remove takes the lines of an upstream out of the config, and leaves the rest of the\n" +
			"file as it is. One that policies name in `upstreams` stays until they do not; with\n" +
			"--with-policies the policies, costs and scopes that are about it alone go with it, and\n" +
			"those that are about others as well go on without it.",
		Example: "  haldir upstream remove docs\n  haldir upstream remove github --with-policies --dry-run",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if policies {
				return e.withdraw(args[0])
			}
			return e.removeUpstream(args[0])
		},
	}
	e.flags(cmd)
	cmd.Flags().BoolVar(&policies, "with-policies", false, "remove the policies, costs and scopes that are about this upstream alone as well, and take it out of the others")
	return cmd
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
	durationVar(cmd.Flags(), &wait, "wait", 10*time.Second, "how long to wait for them")
	return cmd
}
