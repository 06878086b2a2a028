package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/replay"
)

// past is the part of the audit that a verb looks back on.
type past struct {
	first, newest uint64
	progress      func(done uint64)
}

// since finds the part of the audit that begins at a time or an age.
func (a *app) since(ctx context.Context, text string) (p past, err error) {
	at, err := moment(text)
	if err != nil {
		return p, usage("--since: %w", err)
	}
	p.first, p.newest, err = a.ledger.Since(ctx, at)
	p.progress = a.progress()
	return p, err
}

// walk calls f with every record of p. Records that come meanwhile are left out, so
// that each walk sees the same.
func (a *app) walk(ctx context.Context, p past, f func(seq uint64, raw []byte) error) error {
	if p.first > p.newest {
		return nil
	}
	_, _, err := a.ledger.Walk(ctx, p.first, func(seq uint64, raw []byte) error {
		if seq > p.newest {
			return errEnough
		}
		if n := seq - p.first; p.progress != nil && n > 0 && n%2000 == 0 {
			p.progress(n)
		}
		return f(seq, raw)
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return err
}

// errEnough ends a walk.
var errEnough = errors.New("that is all that was asked for")

// sessions is what is known of all sessions, for a replay.
func (a *app) sessions(ctx context.Context) (map[string]replay.Session, error) {
	list, err := a.ledger.Sessions(ctx)
	if err != nil {
		return nil, err
	}
	all := make(map[string]replay.Session, len(list))
	for _, s := range list {
		all[s.ID] = replay.Session{State: s.State(), Created: s.Created, RevokedAt: s.RevokedAt, Config: s.Origin == ledger.OriginConfig}
	}
	return all, nil
}

func simulateCommand(a *app) *cobra.Command {
	var file, since string
	var examples int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "simulate --policy FILE",
		Short: "Say what other policies would have made of the calls on record",
		Long: "simulate replays the calls of the audit, in their order and at their times, against\n" +
			"another config, and shows which of them it would have decided otherwise. The\n" +
			"config is taken to have been in force since the first of these calls: limits count\n" +
			"from zero. Nothing is called, reserved or recorded.\n\n" +
			"Where the arguments of a call are not on record in full (audit.arguments) and a\n" +
			"condition or a cost of the config reads them, nobody can tell; those calls are\n" +
			"counted apart. So are those that rest on whether a tool only reads, if its upstream\n" +
			"is trusted to say so.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usage("simulate needs --policy FILE, the config to try")
			}
			if examples < 0 {
				return usage("--examples must not be negative")
			}
			if _, err := moment(since); err != nil {
				return usage("--since: %w", err)
			}
			cfg, err := config.Load(file)
			if errors.Is(err, fs.ErrNotExist) {
				return usage("--policy: %w", err)
			}
			if err != nil {
				return &exit{code: exitUsage, err: err}
			}
			for _, w := range cfg.Warnings { // a rule with a slip of the pen changes nothing
				a.say("%s", w)
			}
			if err := a.openState(); err != nil {
				return err
			}
			ctx := cmd.Context()
			p, err := a.since(ctx, since)
			if err != nil {
				return err
			}
			sessions, err := a.sessions(ctx)
			if err != nil {
				return err
			}
			run := replay.New(replay.Options{
				Engine: cfg.Engine, Sessions: sessions, Terms: granted(cfg), Trusted: a.trusted(cfg), Session: a.only(), Examples: examples,
			})
			if err := a.walk(ctx, p, run.Add); err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(run.Report())
			}
			return a.printReplay(run.Report())
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "policy", "", "the config to try (needed)")
	f.StringVar(&since, "since", "7d", "from this time on: "+moments)
	f.IntVar(&examples, "examples", 5, "how many calls of each kind of change to show")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// granted are the terms of a config's session block, nil if it has none: a file of
// policies alone leaves the sessions as they are.
func granted(cfg *config.Config) *replay.Terms {
	if !cfg.HasSession {
		return nil
	}
	s := cfg.Session
	return &replay.Terms{AllScopes: s.AllScopes, Scopes: s.Scopes, SpendLimit: s.SpendLimit, TTL: s.TTL}
}

// trusted tells of which upstreams the annotations count. Of a file of policies alone the config in
// force says that; of an upstream which that has not either, nobody knows.
func (a *app) trusted(cfg *config.Config) func(string) bool {
	if len(cfg.Upstreams) > 0 {
		return cfg.Trusted
	}
	now, err := a.layers.Find()
	if err != nil { // the verb does without it
		now = cfg
	}
	return func(upstream string) bool {
		known := slices.ContainsFunc(now.Upstreams, func(u config.Upstream) bool { return u.Name == upstream })
		return !known || now.Trusted(upstream)
	}
}

func (a *app) printReplay(r replay.Report) error {
	red, green, bold, end := a.colours()
	if r.Calls == 0 {
		return a.printf("no calls that policies have judged\n")
	}
	if err := a.printf("%d calls from %s to %s\n\n", r.Calls, when(r.Since), when(r.Until)); err != nil {
		return err
	}
	count := func(n uint64, colour, text string) error {
		tail := end
		if n == 0 || colour == "" {
			colour, tail = "", ""
		}
		return a.printf("  %s%7d %s%s\n", colour, n, text, tail)
	}
	lines := []struct {
		n            uint64
		colour, text string
		always       bool
	}{
		{r.NewlyDenied, red, "would be refused now", true},
		{r.NewlyAllowed, green, "would be let through now", true},
		{r.NewlyAsked, bold, "would be put before a person", false},
		{r.StillAllowed, "", "let through as before", true},
		{r.StillDenied, "", "refused as before", true},
		{r.Undecided, bold, "cannot be decided: a rule reads arguments that are not on record in full", false},
		{r.Unreported, bold, "cannot be decided: whether the tool only reads is not on record", false},
	}
	for _, l := range lines {
		if !l.always && l.n == 0 {
			continue
		}
		if err := count(l.n, l.colour, l.text); err != nil {
			return err
		}
	}
	if r.NotJudged > 0 {
		if err := a.printf("  (%d more were not judged by policies, and are not compared)\n", r.NotJudged); err != nil {
			return err
		}
	}
	sign := "as much as before"
	switch diff := r.SpendThen - r.SpendRecorded; {
	case diff > 0:
		sign = diff.String() + " more"
	case diff < 0:
		sign = (-diff).String() + " less"
	}
	if err := a.printf("\nspend: %s on record, %s under these policies (%s)\n", r.SpendRecorded, r.SpendThen, sign); err != nil {
		return err
	}
	if err := a.printRuleCounts(r.Rules); err != nil {
		return err
	}
	return a.printExamples(r.Examples)
}

func (a *app) printRuleCounts(rules []replay.RuleCount) error {
	if len(rules) == 0 {
		return nil
	}
	var rows [][]string
	for _, c := range rules {
		rows = append(rows, []string{plain(c.Rule, 64), c.Policy, fmt.Sprint(c.NewlyDenied), fmt.Sprint(c.Denied), fmt.Sprint(c.Shadow)})
	}
	if err := a.printf("\n"); err != nil {
		return err
	}
	return a.printTable([]string{"RULE", "POLICY", "NEWLY REFUSED", "REFUSED", "SHADOW"}, rows)
}

func (a *app) printExamples(examples []replay.Example) error {
	if len(examples) == 0 {
		return nil
	}
	var rows [][]string
	words := map[replay.Change]string{
		replay.NewlyDenied: "refused", replay.NewlyAllowed: "let through", replay.NewlyAsked: "asked", replay.Undecided: "unknown",
	}
	for _, e := range examples {
		reason := e.Reason
		if e.Change == replay.NewlyAllowed {
			reason = "was: " + reason
		}
		rows = append(rows, []string{fmt.Sprint(e.Seq), e.Time.Local().Format(time.DateTime), words[e.Change], plain(e.Tool, 64), plain(reason, 0)})
	}
	if err := a.printf("\n"); err != nil {
		return err
	}
	return a.printTable([]string{"SEQ", "TIME", "NOW", "TOOL", "REASON"}, rows)
}
