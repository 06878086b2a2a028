package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/adopt"
)

// free are the verbs that an agent's shell may run: they show, or only make things stricter.
var free = []string{
	"audit export", "audit follow", "audit list", "audit prove", "audit report", "audit show", "audit verify", "call", "check", "demo", "doctor", "explain", "help", "ledger stats", "pins diff", "pins list",
	"policy list", "policy packs", "schema", "serve", "session list", "session show", "simulate", "spend", "stop", "suggest",
	"tools", "upstream list", "version", "completion",
}

// Each verb is an agent's as well, or the rules for Claude Code keep it for a person.
func TestEveryVerbIsSomebodys(t *testing.T) {
	under := func(verb string, list []string) bool {
		return slices.ContainsFunc(list, func(v string) bool { return verb == v || strings.HasPrefix(verb, v+" ") })
	}
	var all []string
	var walk func(c *cobra.Command, path []string)
	walk = func(c *cobra.Command, path []string) {
		for _, sub := range c.Commands() {
			p := append(slices.Clone(path), sub.Name())
			all = append(all, strings.Join(p, " "))
			walk(sub, p)
		}
	}
	walk(root(&app{}), nil)
	for _, verb := range all {
		isGroup := slices.ContainsFunc(all, func(v string) bool { return strings.HasPrefix(v, verb+" ") })
		guarded, unguarded := under(verb, adopt.Guarded()), under(verb, free)
		if guarded && unguarded || !isGroup && !guarded && !unguarded {
			t.Errorf("haldir %s: it must be in one of adopt's guarded and this test's free, and in one only", verb)
		}
	}
	for _, verb := range append(adopt.Guarded(), free...) {
		if verb != "help" && verb != "completion" && !slices.Contains(all, verb) {
			t.Errorf("there is no haldir %s", verb)
		}
	}
}
