package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// severity says how much a finding matters.
type severity string

const (
	fine    severity = "ok"
	note    severity = "note"    // worth knowing; nothing to do
	warning severity = "warning" // it works, and a person should look
	failure severity = "error"   // something does not work
)

// finding is what doctor says of one thing.
type finding struct {
	Severity severity `json:"severity"`
	About    string   `json:"about"` // config, ledger, policies, or an upstream's name
	Text     string   `json:"text"`
	Fix      string   `json:"fix,omitempty"` // what to do, a command where there is one
}

// examination is one run of doctor.
type examination struct {
	*app
	wait  time.Duration
	code  int // of the worst so far
	found []finding
}

func doctorCommand(a *app) *cobra.Command {
	var asJSON bool
	e := &examination{app: a}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at the config, the ledger and every upstream, and say what to do",
		Long: "doctor checks the config, reads the whole audit, connects to every upstream and\n" +
			"says what is wrong, what to look at, and the command that mends it.\n\n" +
			"exit status: 0 nothing is wrong, 1 an upstream or the ledger fails, 2 the config is\n" +
			"broken, 4 the audit was changed. Warnings and notes do not count.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e.examine(cmd.Context())
			if err := e.print(asJSON); err != nil || e.code == exitDone {
				return err
			}
			return &exit{code: e.code, err: errors.New("something is wrong"), silent: true}
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().DurationVar(&e.wait, "wait", pinsWait, "how long to wait for the upstreams")
	return cmd
}

func (e *examination) add(s severity, about, fix, format string, args ...any) {
	e.found = append(e.found, finding{s, about, fmt.Sprintf(format, args...), fix})
}

// fails adds what an error says, with the fix that belongs to it.
func (e *examination) fails(about string, err error) {
	code, fix := advice(err)
	e.code = max(e.code, code)
	e.add(failure, about, fix, "%s", e.secrets.clean(err.Error()))
}

func (e *examination) examine(ctx context.Context) {
	sound := e.config()
	if e.code != exitDone && e.cfg != nil {
		return // the settings are not to be used
	}
	if !sound { // the ledger can be looked at without
		if err := e.set(); err != nil {
			e.fails("config", err)
			return
		}
	}
	if !e.records(ctx) || !sound {
		return
	}
	srv, err := e.server(ctx)
	if err != nil {
		e.fails("session", err)
		return
	}
	e.upstreams(ctx)
	e.tools(srv)
	e.hooks()
}

// hooks looks for what answers a client's forms in place of a person.
func (e *examination) hooks() {
	if !slices.ContainsFunc(e.cfg.Ruleset.Policies, func(r policy.Rule) bool { return r.Type == policy.TypeApproval }) {
		return
	}
	own := os.Getenv("CLAUDE_CONFIG_DIR")
	if home, err := os.UserHomeDir(); err == nil && own == "" {
		own = filepath.Join(home, ".claude")
	}
	here := filepath.Join(workingDir(), ".claude")
	for _, path := range []string{filepath.Join(own, "settings.json"), filepath.Join(here, "settings.json"), filepath.Join(here, "settings.local.json")} {
		raw, err := os.ReadFile(path) //nolint:gosec // the client's own settings, which its user has chosen
		if err != nil {
			continue // most are not there
		}
		if hook, ok := wire.At(raw, "hooks", "Elicitation"); ok && string(hook.Value) != "[]" {
			e.add(warning, "approval", "take it out, unless you mean it to answer for you", "%s has a hook for elicitation, which can allow what a person is asked about", path)
		}
	}
}

// config reports whether the file can be used.
func (e *examination) config() bool {
	err := e.load()
	problems, broken := errors.AsType[config.Problems](err)
	switch {
	case broken:
		e.code = exitUsage
		for _, p := range problems {
			if p.Warning {
				e.add(warning, "config", "", "%s", p)
			} else {
				e.add(failure, "config", "mend it there; `haldir schema` lists all keys", "%s", p)
			}
		}
	case err != nil:
		e.fails("config", err)
	default:
		for _, p := range e.cfg.Warnings {
			e.add(warning, "config", "", "%s", p)
		}
		path, _, _ := e.layers.ConfigPath() // it could be read
		about := fmt.Sprintf("%d upstream(s), %d polic(ies)", len(e.cfg.Upstreams), len(e.cfg.Ruleset.Policies))
		switch {
		case len(e.quick.upstreams) > 0:
			e.add(fine, "config", "", "the flags: %s", about)
		case e.cfg.Path == "":
			e.add(warning, "config", "write "+path+", or name a file with --config", "there is no file: an agent sees haldir's own tools only")
		default:
			e.add(fine, "config", "", "%s: %s", e.cfg.Path, about)
		}
	}
	return err == nil
}

// records reports whether the ledger can be used.
func (e *examination) records(ctx context.Context) bool {
	if err := e.open(); err != nil {
		e.fails("ledger", err)
		return false
	}
	v, err := e.ledger.Verify(ctx, e.progress())
	if err != nil {
		e.fails("ledger", err)
		return false
	}
	e.add(fine, "ledger", "", "%s: %d records, the chain is intact", e.settings.StateDir, v.Count())
	if e.cfg == nil {
		return true
	}
	if text, err := e.ledger.LoadCatalogue(ctx, pendingKey(e.cfg.SHA256)); err == nil && len(text) > 0 {
		e.add(note, "config", e.command()+" reload", "a haldir that ran already when this was saved goes by the rules of before, until a person confirms: %s", plain(string(text), 300))
	}
	return true
}

// upstreams connects to each as a host would that can do everything.
func (e *examination) upstreams(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, e.wait)
	defer cancel()
	took := make([]time.Duration, len(e.ups))
	began := time.Now()
	var wg sync.WaitGroup
	for i, u := range e.ups {
		u.Start(upstream.Host{Capabilities: []byte(capable)})
		wg.Go(func() { u.Connected(ctx); took[i] = time.Since(began) })
	}
	wg.Wait()
	for i, u := range e.ups {
		e.upstream(u, took[i])
	}
}

func (e *examination) upstream(u *upstream.Upstream, took time.Duration) {
	st, p := u.Status(), u.Pinned()
	switch {
	case st.State == upstream.StateReady:
		size := 0
		for _, t := range u.Catalogue().Tools {
			size += len(t.Raw)
		}
		e.add(fine, u.Name(), "", "ready in %d ms: %s, protocol %s, %d tools, some %d tokens of context",
			took.Milliseconds(), plain(st.Server, 80), st.Version, len(u.Catalogue().Tools), size/4)
	case st.Err != nil:
		e.fails(u.Name(), errors.New(plain(st.Err.Error(), 500)))
	default:
		e.code = max(e.code, exitFailed)
		e.add(failure, u.Name(), "give it longer with --wait, or look at its log", "has not answered in %s", e.wait)
	}
	if st.Ends > 1 {
		e.add(warning, u.Name(), "look at its own log, or run its command by hand", "has ended %d times within two minutes", st.Ends)
	}
	if source, err := u.Auth(); err == nil {
		g, err := source.Granted()
		login := e.command() + " upstream login " + u.Name()
		switch {
		case err != nil:
			e.fails(u.Name(), err)
		case g.Ended != "":
			e.add(warning, u.Name(), login, "the sign-in has ended: %s", plain(e.secrets.clean(g.Ended), 200))
		case g.SignedIn && !g.Renews && !g.Expires.IsZero():
			e.add(note, u.Name(), login, "the sign-in ends at %s and cannot be renewed without a person", when(g.Expires))
		}
	}
	if n := len(p.Changes); n > 0 {
		e.add(warning, u.Name(), e.command()+" pins diff "+u.Name(), "%d definition(s) are not as they are pinned", n)
	}
	for _, f := range p.Found {
		e.add(warning, u.Name(), "read it; deny the tool if it is not meant well", "%s %s, %s: %s", f.Kind, plain(f.Name, 80), plain(f.Path, 80), plain(f.Reason, 200))
	}
}

// tools looks at what becomes of names, and at patterns that concern nothing.
func (e *examination) tools(srv *proxy.Server) {
	entries, notes := srv.Known()
	for _, n := range notes {
		e.add(note, n.Upstream, "", "%s: %s", plain(n.Tool, 128), plain(n.Text, 300))
	}
	for _, u := range e.ups {
		if !u.Catalogue().Known {
			e.add(note, "policies", "", "patterns are not compared with tools, as those of %s are unknown", u.Name())
			return
		}
		for _, w := range u.Catalogue().Withheld {
			entries = append(entries, proxy.Entry{Upstream: u.Name(), Tool: w.Name})
		}
	}
	rules := e.cfg.Ruleset
	for i, r := range rules.Policies {
		e.patterns(fmt.Sprintf("policies[%d]", i), r.Tools, entries)
	}
	for i, c := range rules.Costs {
		e.patterns(fmt.Sprintf("costs[%d]", i), c.Tools, entries)
	}
	for i, s := range rules.Scopes {
		e.patterns(fmt.Sprintf("scopes[%d]", i), s.Tools, entries)
	}
}

// patterns finds those of a list that match no tool: often one is misspelt. Servers
// need not list all resources and prompts that they have, so those are left alone.
func (e *examination) patterns(where string, globs []string, tools []proxy.Entry) {
	for _, g := range globs {
		if strings.HasPrefix(g, "resource:") || strings.HasPrefix(g, "prompt:") {
			continue
		}
		if !slices.ContainsFunc(tools, func(t proxy.Entry) bool { return policy.MatchTool(g, t.Upstream, t.Tool) }) {
			e.add(warning, "policies", e.command()+" tools", "%s: %q matches no tool that there is", where, g)
		}
	}
}

func (e *examination) print(asJSON bool) error {
	if asJSON {
		return e.printJSON(map[string]any{"ok": e.code == exitDone, "findings": e.found})
	}
	red, green, bold, end := e.colours()
	colour := map[severity]string{fine: green, warning: bold, failure: red}
	var b strings.Builder
	for _, f := range e.found {
		c, stop := colour[f.Severity], end
		if c == "" {
			stop = ""
		}
		fmt.Fprintf(&b, "%s%-7s%s  %s: %s\n", c, f.Severity, stop, f.About, indented(f.Text))
		if f.Fix != "" {
			fmt.Fprintf(&b, "         → %s\n", f.Fix)
		}
	}
	return e.printf("%s", b.String())
}
