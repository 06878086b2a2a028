package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/policy"
)

func policyCommand(a *app) *cobra.Command {
	return group("policy", "List the policies, add and remove them", policyList(a), policyAdd(a), policyRemove(a), policyPacks(a))
}

func policyAdd(a *app) *cobra.Command {
	e := &editing{a: a}
	var file string
	var pack packUse
	cmd := &cobra.Command{
		Use:   "add [POLICY]",
		Short: "Add a policy to the config",
		Long: "add writes a policy behind those of the config, in the way they are written, and\n" +
			"leaves the rest of the file as it is. The policy is one mapping in YAML or JSON, as an\n" +
			"argument or from a file, or is said by flags. With --pack it is several, for a server\n" +
			"that haldir knows (`haldir policy packs`), all of them or none. Nothing is written\n" +
			"unless the config loads with it.",
		Example: "  haldir policy add --type deny --tools 'delete_*,drop_table'\n" +
			"  haldir policy add --type spend_limit --max-usd 5 --per day\n" +
			"  haldir policy add '{type: deny, tools: [files/*], when: args.path.startsWith(\"/etc\")}'\n" +
			"  haldir policy add --file night.yaml --dry-run\n" +
			"  haldir policy add --pack github\n" +
			"  haldir policy add --pack filesystem --upstream files --root ~/project",
		Args: cobra.MaximumNArgs(1),
	}
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "the file that holds the policy; - for standard input")
	pack.flags(f)
	keys := config.PolicyKeys()
	name := func(k config.Key) string { return strings.ReplaceAll(k.Name, "_", "-") }
	for _, k := range keys {
		switch k.Form {
		case config.FormList:
			f.StringSlice(name(k), nil, k.Doc)
		case config.FormHours:
			f.String(name(k), "", k.Doc+", as 09:00-17:00")
		case config.FormText, config.FormNumber:
			f.String(name(k), "", k.Doc)
		}
	}
	e.flags(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if f.Changed("pack") {
			return e.addPack(&pack, f, args)
		}
		if f.Changed("upstream") {
			return usage("--upstream stands in place of a config file, and this verb edits one; with --pack it names the upstream that the pack is for")
		}
		if f.Changed("root") {
			return usage("--root goes with --pack")
		}
		var p pairs
		for _, k := range keys {
			if !f.Changed(name(k)) {
				continue
			}
			if err := p.flag(k, f, name(k)); err != nil {
				return err
			}
		}
		ways := 0
		for _, used := range []bool{len(args) > 0, f.Changed("file"), len(p) > 0} {
			if used {
				ways++
			}
		}
		switch {
		case ways != 1:
			return usage("say the policy in one way: as an argument, by --file, or by flags such as --type; see: %s --help", cmd.CommandPath())
		case len(args) > 0:
			return e.add(edit.Policies, []byte(args[0]), "the policy")
		case f.Changed("file"):
			entry, source, err := e.given(file)
			if err != nil {
				return err
			}
			return e.add(edit.Policies, entry, source)
		}
		return e.add(edit.Policies, p.entry(), "")
	}
	return cmd
}

// flag puts what a flag says of a key.
func (p *pairs) flag(k config.Key, f *pflag.FlagSet, name string) error {
	if k.Form == config.FormList {
		list, err := f.GetStringSlice(name)
		if err != nil {
			return err
		}
		return p.put(k.Name, list)
	}
	text, err := f.GetString(name)
	if err != nil {
		return err
	}
	switch k.Form {
	case config.FormHours:
		start, end, ok := strings.Cut(text, "-")
		if !ok {
			return usage("--%s %q: write it as START-END, such as 09:00-17:00", name, text)
		}
		return p.put(k.Name, struct {
			Start string `json:"start"`
			End   string `json:"end"`
		}{strings.TrimSpace(start), strings.TrimSpace(end)})
	case config.FormNumber:
		return p.number(k.Name, text)
	case config.FormText, config.FormList:
	}
	return p.put(k.Name, text)
}

func policyRemove(a *app) *cobra.Command {
	e := &editing{a: a}
	var pack packUse
	cmd := &cobra.Command{
		Use:   "remove (ID… | --pack NAME)",
		Short: "Remove policies from the config",
		Long: "remove takes the lines of policies out of the config, all of those named or none, and\n" +
			"leaves the rest of the file as it is. ID is what `haldir policy list` shows. A comment\n" +
			"above a policy stays, unless it came with a pack. With --pack all goes that\n" +
			"`haldir policy add --pack` has added and that is unchanged.",
		Example: "  haldir policy remove deny-1\n  haldir policy remove github-ask github-rate\n  haldir policy remove --pack github",
		Args:    cobra.ArbitraryArgs,
	}
	f := cmd.Flags()
	f.StringVar(&pack.name, "pack", "", "remove what this pack has added")
	f.StringVar(&pack.upstream, "upstream", "", "with --pack: the upstream that it was added for (default: the only one)")
	e.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, ids []string) error {
		switch {
		case f.Changed("pack") && len(ids) > 0:
			return usage("--pack takes out all of a pack; leave %q out", ids[0])
		case f.Changed("pack"):
			return e.removePack(pack.name, pack.upstream)
		case f.Changed("upstream"):
			return usage("--upstream stands in place of a config file, and this verb edits one; with --pack it names the upstream that the pack was added for")
		case len(ids) == 0:
			return usage("say which policies by their ids, or a pack by --pack; see: %s --help", cmd.CommandPath())
		}
		return e.removePolicies(ids)
	}
	return cmd
}

func policyList(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the policies of the config in their order",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.load(); err != nil {
				return err
			}
			a.looking = true
			a.tellHeldBack(cmd.Context())
			ids := a.cfg.Engine.Rules()
			type entry struct {
				ID     string   `json:"id"`
				Type   string   `json:"type"`
				Shadow bool     `json:"shadow"`
				Tools  []string `json:"tools,omitempty"`
				When   string   `json:"when,omitempty"`
				Rule   string   `json:"rule"`
			}
			list := []entry{}
			var rows [][]string
			for i, r := range a.cfg.Ruleset.Policies {
				list = append(list, entry{ids[i], string(r.Type), r.Shadow, r.Tools, r.When, sentence(r)})
				rows = append(rows, []string{ids[i], plain(sentence(r), 0)})
			}
			if asJSON {
				return a.printJSON(map[string]any{"policies": list})
			}
			return a.printTable([]string{"ID", "RULE"}, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// sentence says what a rule does.
func sentence(r policy.Rule) string {
	var b strings.Builder
	switch r.Type {
	case policy.TypeDeny:
		b.WriteString("deny")
	case policy.TypeAllow:
		b.WriteString("allow only")
	case policy.TypeSpendLimit:
		per := r.Per
		if per == "" {
			per = policy.PerSession
		}
		fmt.Fprintf(&b, "at most %s per %s", r.MaxUSD, per)
	case policy.TypeRateLimit:
		fmt.Fprintf(&b, "at most %s in %s", count(int(r.MaxCalls), "call", "calls"), policy.Span(r.Window))
		if r.Per != "" && r.Per != policy.PerTotal {
			b.WriteString(" per " + r.Per)
		}
	case policy.TypeTimeWindow:
		b.WriteString("only")
		if h := r.Hours; h != nil {
			fmt.Fprintf(&b, " %02d:%02d-%02d:%02d", h.Start/60, h.Start%60, h.End/60, h.End%60)
		}
		for _, d := range r.Days {
			b.WriteString(" " + strings.ToLower(d.String()[:3]))
		}
		fmt.Fprintf(&b, " %s", r.Location)
	case policy.TypeApproval:
		b.WriteString("ask a person before")
	case policy.TypeLoop:
		fmt.Fprintf(&b, "at most %s in a row in %s", count(int(r.MaxRepeats), "same call or failure", "same calls or failures"), policy.Span(r.Window))
	}
	if r.Type == policy.TypeAllow || len(r.Tools) > 0 {
		b.WriteString(" " + strings.Join(r.Tools, ", "))
	}
	if len(r.Upstreams) > 0 {
		b.WriteString(" in " + strings.Join(r.Upstreams, ", "))
	}
	if len(r.Agents) > 0 {
		b.WriteString(" for " + strings.Join(r.Agents, ", "))
	}
	if r.When != "" {
		b.WriteString(" when " + strings.Join(strings.Fields(r.When), " "))
	}
	if r.Shadow {
		b.WriteString(" (shadow)")
	}
	return b.String()
}
