package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/upstream"
	"github.com/haldir-mcp/haldir/upstream/pins"
)

// pinBoard keeps pins in the ledger.
type pinBoard struct{ *ledger.Ledger }

// ChangePins implements [upstream.Pins].
func (b pinBoard) ChangePins(ctx context.Context, name string, change func([]byte) ([]byte, []pins.Note, error)) error {
	return b.Ledger.ChangePins(ctx, name, func(old []byte) ([]byte, []ledger.Note, error) {
		now, notes, err := change(old)
		var out []ledger.Note
		for _, n := range notes {
			out = append(out, ledger.Note{
				Status: audit.Status(n.Status), Name: n.Name, Text: n.Text, Digest: n.Digest,
				Flagged: n.Status == pins.Changed || n.Status == pins.Flagged,
			})
		}
		return now, out, err
	})
}

func pinsCommand(a *app) *cobra.Command {
	return group("pins", "See and accept what upstreams have changed", pinsList(a), pinsDiff(a), pinsAccept(a))
}

// look connects to the upstreams, or to the one that is named, and waits for them.
func (a *app) look(ctx context.Context, name string, wait time.Duration) ([]*upstream.Upstream, error) {
	if _, err := a.prepare(ctx); err != nil {
		return nil, err
	}
	var ups []*upstream.Upstream
	for _, u := range a.ups {
		if name == "" || u.Name() == name {
			ups = append(ups, u)
		}
	}
	if len(ups) == 0 && name != "" {
		return nil, a.noUpstream(name)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var wg sync.WaitGroup
	for _, u := range ups {
		u.Start(upstream.Host{Capabilities: []byte(capable)})
		wg.Go(func() { u.Connected(ctx) })
	}
	wg.Wait()
	return ups, nil
}

// capable is what a host declares that can do everything, so that a server offers all
// that it has.
const capable = `{"elicitation":{"form":{},"url":{}},"roots":{"listChanged":true},"sampling":{"tools":{}}}`

// pinsWait is how long the verbs wait for a server.
const pinsWait = 15 * time.Second

type pinJSON struct {
	Upstream string         `json:"upstream"`
	Mode     string         `json:"mode"`
	Since    time.Time      `json:"pinned_at,omitzero"`
	Tools    int            `json:"tools"`
	Prompts  int            `json:"prompts"`
	Changes  []pins.Change  `json:"changes"`
	Found    []pins.Finding `json:"findings"`
	Damaged  string         `json:"damaged,omitempty"`
	Error    string         `json:"error,omitempty"`
}

func describePins(u *upstream.Upstream) pinJSON {
	p := u.Pinned()
	out := pinJSON{
		Upstream: u.Name(), Mode: p.Mode, Since: p.Record.Since, Tools: len(p.Record.Tools), Prompts: len(p.Record.Prompts),
		Changes: p.Changes, Found: p.Found,
	}
	if out.Changes == nil {
		out.Changes = []pins.Change{}
	}
	if out.Found == nil {
		out.Found = []pins.Finding{}
	}
	if p.Damaged != nil {
		out.Damaged = p.Damaged.Error()
	}
	if err := u.Status().Err; err != nil && u.Status().State != upstream.StateReady {
		out.Error = err.Error()
	}
	return out
}

func pinsList(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List what is pinned, and how much of it has changed",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ups, err := a.look(cmd.Context(), "", pinsWait)
			if err != nil {
				return err
			}
			list := []pinJSON{}
			var rows [][]string
			for _, u := range ups {
				p := describePins(u)
				list = append(list, p)
				rows = append(rows, []string{p.Upstream, p.Mode, when(p.Since), fmt.Sprint(p.Tools), fmt.Sprint(len(p.Changes)), fmt.Sprint(len(p.Found))})
			}
			if asJSON {
				return a.printJSON(map[string]any{"pins": list})
			}
			if err := a.printTable([]string{"UPSTREAM", "MODE", "PINNED", "TOOLS", "CHANGES", "FLAGGED"}, rows); err != nil {
				return err
			}
			for _, p := range list {
				a.saysOf(p)
				for _, f := range p.Found {
					a.say("haldir: upstream %s: %s %s, %s: %s", p.Upstream, f.Kind, plain(f.Name, 80), plain(f.Path, 80), plain(f.Reason, 200))
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// saysOf tells a person how far what is said of an upstream's pins can be relied on.
func (a *app) saysOf(p pinJSON) {
	if p.Error != "" {
		a.say("haldir: upstream %s: %s; what is said of it is from its last run", p.Upstream, plain(p.Error, 300))
	}
	if p.Damaged != "" {
		a.say("haldir: upstream %s: %s; all that it offers is withheld until a person has read it and pins it anew", p.Upstream, plain(p.Damaged, 300))
	}
}

func pinsDiff(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "diff [UPSTREAM]",
		Short: "Show what is not as it is pinned, and exit with 1 if anything is",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ups, err := a.look(cmd.Context(), strings.Join(args, ""), pinsWait)
			if err != nil {
				return err
			}
			list := []pinJSON{}
			changed := 0
			for _, u := range ups {
				p := describePins(u)
				list = append(list, p)
				changed += len(p.Changes)
				a.saysOf(p)
			}
			if asJSON {
				err = a.printJSON(map[string]any{"pins": list})
			} else {
				err = a.printDiff(list)
			}
			switch {
			case err != nil:
				return err
			case changed == 0 && !asJSON:
				a.say("everything is as it is pinned")
			case changed > 0:
				return &exit{code: exitFailed, err: fmt.Errorf("%d changes", changed), silent: true}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// printDiff shows the places where definitions differ, old and new below each other.
func (a *app) printDiff(list []pinJSON) error {
	red, green, bold, end := a.colours()
	var b strings.Builder
	for _, p := range list {
		for _, c := range p.Changes {
			what := string(c.Kind)
			if c.Name != "" {
				what += " " + plain(c.Name, 120)
			}
			becomes := map[string]string{"hold": "the pinned one is offered", "block": "withheld", "warn": "the new one is offered"}[p.Mode]
			if c.Blocks != "" && (p.Mode == "hold" || p.Damaged != "") {
				becomes = "withheld: " + plain(c.Blocks, 200)
			}
			fmt.Fprintf(&b, "%s%s: %s%s  (%s)\n", bold, p.Upstream, what, end, becomes)
			for _, d := range pins.Diff(c) {
				if d.Path != "" {
					fmt.Fprintf(&b, "  %s\n", plain(d.Path, 200))
				}
				if d.Was {
					fmt.Fprintf(&b, "  %s- %s%s\n", red, indented(pins.Visible(d.Old)), end)
				}
				if d.Is {
					fmt.Fprintf(&b, "  %s+ %s%s\n", green, indented(pins.Visible(d.New)), end)
				}
			}
			for _, f := range p.Found {
				if f.Kind == c.Kind && f.Name == c.Name {
					fmt.Fprintf(&b, "  %s! %s: %s%s\n", bold, plain(f.Path, 80), plain(f.Reason, 200), end)
				}
			}
			b.WriteByte('\n')
		}
	}
	if b.Len() > 0 {
		b.WriteString("accept with: " + a.command() + " pins accept UPSTREAM [NAME…]\n")
	}
	return a.printf("%s", b.String())
}

// colours returns the escape sequences of a terminal, empty where they are not wanted.
func (a *app) colours() (red, green, bold, end string) {
	if colourless() || terminal(a.out) == nil {
		return "", "", "", ""
	}
	return "\x1b[31m", "\x1b[32m", "\x1b[1m", "\x1b[0m"
}

// colourless reports whether nobody wants colours (no-color.org), or the terminal has none.
func colourless() bool {
	_, plain := os.LookupEnv("NO_COLOR")
	return plain || os.Getenv("TERM") == "dumb"
}

// confirm asks a person, for whom --yes may stand.
func (a *app) confirm(question string) bool { return a.asks(question, ", or --yes") }

// atTerminal asks a person, for whom nothing may stand.
func (a *app) atTerminal(question string) bool { return a.asks(question, "") }

func (a *app) asks(question, instead string) bool {
	f := terminal(a.in)
	if f == nil {
		a.say("haldir: this needs a person at a terminal%s", instead)
		return false
	}
	_, _ = fmt.Fprintf(a.err, "%s [y/N] ", question)
	line, _ := bufio.NewReader(f).ReadString('\n') // what cannot be read is no yes
	return strings.EqualFold(strings.TrimSpace(line), "y") || strings.EqualFold(strings.TrimSpace(line), "yes")
}

// indented makes a text of the server's safe to show, line below line.
func indented(s string) string { return strings.ReplaceAll(lines(s), "\n", "\n    ") }

func pinsAccept(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "accept UPSTREAM [NAME…]",
		Short: "Pin what an upstream offers now, after showing it",
		Long: "accept shows what has changed, asks, and pins it. Without names all of it is; a\n" +
			"name is that of a tool or prompt, or instructions, or server. Every haldir that\n" +
			"runs offers the new definitions within a second or two.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ups, err := a.look(cmd.Context(), args[0], pinsWait)
			if err != nil {
				return err
			}
			u := ups[0]
			if s := u.Status(); s.State != upstream.StateReady {
				return fmt.Errorf("upstream %q is not connected, so what it offers now is not known: %w", u.Name(), s.Err)
			}
			p := describePins(u)
			if len(p.Changes) == 0 {
				a.say("everything is as it is pinned; nothing to accept")
				return nil
			}
			if p.Damaged != "" && len(args) > 1 {
				return usage("what is pinned of %s is damaged, so that all that it offers is pinned anew: leave the names out", u.Name())
			}
			a.saysOf(p)
			if err := a.printDiff([]pinJSON{p}); err != nil {
				return err
			}
			if !yes && !a.confirm("Pin this?") {
				return errors.New("nothing was accepted")
			}
			changes := p.Changes
			if names := args[1:]; len(names) > 0 {
				changes = slices.DeleteFunc(slices.Clone(changes), func(c pins.Change) bool {
					return !slices.Contains(names, c.Key()) && !slices.Contains(names, c.Name)
				})
			}
			if len(changes) == 0 {
				return usage("none of these has changed: %s", strings.Join(args[1:], ", "))
			}
			if err := u.Accept(cmd.Context(), changes); err != nil {
				return err
			}
			a.say("accepted: %d of %d changes of upstream %s", len(changes), len(p.Changes), u.Name())
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}
