//go:build pages

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// pagesCommand writes the pages of the manual and the completions that packages carry. It
// is built only where packages are made, since its library is of no use to anybody else.
func pagesCommand(a *app) []*cobra.Command {
	return []*cobra.Command{{
		Use:    "pages DIR",
		Short:  "Write the manual's pages and the shells' completions below a directory",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			top := cmd.Root()
			top.DisableAutoGenTag = true // the date of the day would be in it
			man, shells := filepath.Join(args[0], "man"), filepath.Join(args[0], "completions")
			for _, dir := range []string{man, shells} {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
			}
			// SOURCE_DATE_EPOCH dates them.
			header := doc.GenManHeader{Section: "1", Source: "haldir " + version(), Manual: "haldir"}
			if err := doc.GenManTree(top, &header, man); err != nil {
				return fmt.Errorf("write the manual: %w", err)
			}
			for name, write := range map[string]func(string) error{
				"haldir.bash": func(path string) error { return top.GenBashCompletionFileV2(path, true) },
				"haldir.fish": func(path string) error { return top.GenFishCompletionFile(path, true) },
				"_haldir":     top.GenZshCompletionFile,
				"haldir.ps1":  top.GenPowerShellCompletionFileWithDesc,
			} {
				if err := write(filepath.Join(shells, name)); err != nil {
					return fmt.Errorf("write the completion %s: %w", name, err)
				}
			}
			pages, err := os.ReadDir(man)
			if err != nil {
				return err
			}
			var names []string
			for _, p := range pages {
				names = append(names, strings.TrimSuffix(p.Name(), ".1"))
			}
			return a.printf("%d pages: %s\n", len(names), strings.Join(names, " "))
		},
	}}
}
