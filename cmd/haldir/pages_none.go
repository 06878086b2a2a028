//go:build !pages

package main

import "github.com/spf13/cobra"

func pagesCommand(*app) []*cobra.Command { return nil }
