package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/haldir-mcp/haldir/internal/secret"
)

func secretCommand(a *app) *cobra.Command {
	return group("secret", "Keep secrets for ${keyring:NAME} in haldir.yaml", secretSet(a), secretList(a), secretRemove(a))
}

// vault opens the store of secrets.
func (a *app) vault() *secret.Store {
	if a.store == nil {
		var ring secret.Keyring
		if a.settings.Keyring != "file" {
			ring = secret.SystemKeyring{}
		}
		a.store = secret.New(a.settings.StateDir, ring)
		a.store.Command = a.command()
	}
	return a.store
}

// maxSecret is more than any secret has, in bytes.
const maxSecret = 64 << 10

func secretSet(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "set NAME",
		Short: "Store a secret, read from standard input or asked for",
		Long: "set stores a secret under NAME, in place of an earlier one. On a terminal it is\n" +
			"asked for and not shown; else it is what standard input holds, without the line\n" +
			"end. It is never an argument, which other users could see.",
		Example: "  haldir secret set github\n  pass show github | haldir secret set github",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := secret.CheckName(args[0]); err != nil {
				return usage("%w", err)
			}
			if err := a.set(); err != nil {
				return err
			}
			value, err := a.askSecret(args[0])
			if err != nil {
				return err
			}
			if value == "" {
				return usage("the secret is empty; nothing was stored")
			}
			if err := a.vault().Set(args[0], value); err != nil {
				return err
			}
			a.say("stored; its key is in %s. Refer to it as ${keyring:%s}", a.vault().Where(), args[0])
			return nil
		},
	}
}

func (a *app) askSecret(name string) (string, error) {
	if f := terminal(a.in); f != nil {
		_, _ = fmt.Fprintf(a.err, "%s: ", name)
		raw, err := term.ReadPassword(int(f.Fd()))
		_, _ = fmt.Fprintln(a.err)
		return string(raw), err
	}
	raw, err := io.ReadAll(io.LimitReader(a.in, maxSecret+1))
	if err != nil {
		return "", err
	}
	if len(raw) > maxSecret {
		return "", usage("a secret has at most %d bytes", maxSecret)
	}
	return strings.TrimRight(string(raw), "\r\n"), nil
}

func secretList(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the names of the stored secrets",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := a.set(); err != nil {
				return err
			}
			all, err := a.vault().Names()
			if err != nil {
				return err
			}
			type entry struct {
				Name string `json:"name"`
				Kind string `json:"kind"` // secret, or sign-in of an upstream
			}
			list := []entry{}
			var rows [][]string
			for _, n := range all {
				e := entry{n, "secret"}
				if rest, ok := strings.CutPrefix(n, "oauth/"); ok {
					e.Name, _, _ = strings.Cut(rest, "/")
					e.Kind = "sign-in"
				}
				list = append(list, e)
				rows = append(rows, []string{e.Name, e.Kind})
			}
			if asJSON {
				return a.printJSON(map[string]any{"secrets": list, "key": a.vault().Where()})
			}
			if len(rows) == 0 {
				a.say("no secrets are stored; store one with: %s secret set NAME", a.command())
				return nil
			}
			return a.printTable([]string{"NAME", "KIND"}, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func secretRemove(a *app) *cobra.Command {
	var signIn bool
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a stored secret",
		Long: "remove forgets a secret. With --sign-in it forgets what an upstream of that name has\n" +
			"granted, also one that is in no config any more. `haldir upstream logout` has it\n" +
			"revoked as well.",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := secret.CheckName(args[0]); err != nil {
				return usage("%w", err)
			}
			if err := a.set(); err != nil {
				return err
			}
			all, err := a.vault().Names()
			if err != nil {
				return err
			}
			var granted []string
			for _, n := range all {
				if strings.HasPrefix(n, "oauth/"+args[0]+"/") {
					granted = append(granted, n)
				}
			}
			if signIn {
				if len(granted) == 0 {
					return fmt.Errorf("nobody is signed in to an upstream %q; see: %s secret list", args[0], a.command())
				}
				for _, n := range granted {
					err = errors.Join(err, a.vault().Remove(n))
				}
				return err
			}
			err = a.vault().Remove(args[0])
			if errors.Is(err, secret.ErrNotFound) && len(granted) > 0 {
				return fmt.Errorf("there is no secret %q, but a sign-in; end it with: %s upstream logout %s, or forget it with --sign-in", args[0], a.command(), args[0])
			}
			if errors.Is(err, secret.ErrNotFound) {
				return fmt.Errorf("there is no secret %q; see: %s secret list", args[0], a.command())
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&signIn, "sign-in", false, "forget what was granted by signing in to the upstream of that name")
	return cmd
}
