package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/config"
)

func checkCommand(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a config file and say what is wrong with it, and where",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			path, named, err := a.layers.ConfigPath()
			if len(args) > 0 {
				path, err = args[0], nil
			}
			if err != nil {
				return usage("%w", err)
			}
			cfg, err := config.Load(path)
			problems, broken := err.(config.Problems) //nolint:errorlint // Load says so
			if errors.Is(err, fs.ErrNotExist) && len(args) == 0 {
				next := "make one: " + itself() + " init; or name a file with --config"
				if named {
					next = "name one that there is with --config, or make this one: " + itself() + " --config " + shellWord(path) + " init"
				}
				err = fmt.Errorf("%w; %s", err, next)
			}
			if err != nil && !broken {
				return &exit{code: exitUsage, err: err}
			}
			if !broken {
				problems = cfg.Warnings
			}
			if asJSON {
				if problems == nil {
					problems = config.Problems{}
				}
				if err := a.printJSON(map[string]any{"file": path, "ok": !broken, "problems": problems}); err != nil {
					return err
				}
				if broken {
					return &exit{code: exitUsage, err: err, silent: true}
				}
				return nil
			}
			if broken {
				return problems
			}
			for _, p := range problems {
				a.say("%s", p)
			}
			return a.printf("%s: ok: %s\n", path, contents(cfg))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func schemaCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of haldir.yaml, for editors",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.printf("%s", config.Schema())
		},
	}
}

// contents says in a few words what is in a config.
func contents(cfg *config.Config) string {
	return count(len(cfg.Upstreams), "upstream", "upstreams") + ", " + count(len(cfg.Ruleset.Policies), "policy", "policies")
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}
