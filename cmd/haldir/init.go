package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/adopt"
	"github.com/haldir-mcp/haldir/internal/clients"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/files"
)

// adoption is what `haldir init` was told.
type adoption struct {
	a                          *app
	yes, dryRun, asJSON        bool
	undo, force                bool
	permissions, trust, places bool
	project                    bool
	clients                    []string
}

func initCommand(a *app) *cobra.Command {
	i := &adoption{a: a}
	var names []string
	for _, c := range clients.All() {
		names = append(names, string(c))
	}
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Move the servers of your MCP clients behind haldir, or back",
		Long: "init finds the MCP servers of Claude Code, Claude Desktop, Cursor, VS Code and\n" +
			"Windsurf, shows what it will do with each, asks, and does it: it writes haldir.yaml,\n" +
			"or adds to it, keeps secrets in haldir's store, and puts one entry for haldir in the\n" +
			"place of the servers that have moved. The rest of each file stays as it is, byte for\n" +
			"byte. Of every file a copy is kept; --undo takes one init back, the last.\n\n" +
			"Servers of a project are those of the directory that it is run in. Those that came\n" +
			"with it (.mcp.json, .cursor/mcp.json, .vscode/mcp.json) stay, unless you say --project.",
		Example: "  haldir init --dry-run\n  haldir init --client claude-code --client cursor\n  haldir init --undo",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return i.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.BoolVarP(&i.yes, "yes", "y", false, "do not ask")
	f.StringArrayVar(&i.clients, "client", nil, "only this client: "+strings.Join(names, ", ")+"; may be repeated")
	f.BoolVar(&i.places, "all-projects", false, "with the servers of all projects of Claude Code, not of this one alone")
	f.BoolVar(&i.project, "project", false, "with the servers that came with this project, which then run wherever haldir does")
	f.BoolVar(&i.permissions, "permissions", false, "add rules to Claude Code's settings that keep its shell and editor away from haldir's files and approvals")
	f.BoolVar(&i.trust, "trust-annotations", false, "believe the servers' word which of their tools only read")
	f.BoolVar(&i.dryRun, "dry-run", false, "show what would change, as a diff, and write nothing")
	f.BoolVar(&i.asJSON, "json", false, "print one JSON object; with --yes or --dry-run")
	f.BoolVar(&i.undo, "undo", false, "take the last init back")
	f.BoolVar(&i.force, "force", false, "with --undo: put files back as they were before that have no other way back, as init's part of them was changed since")
	return cmd
}

func (i *adoption) run(ctx context.Context) error {
	a := i.a
	if len(a.quick.upstreams) > 0 {
		return usage("--upstream stands in place of a config file, and this verb writes one")
	}
	if i.force && !i.undo {
		return usage("--force goes with --undo")
	}
	if i.asJSON && !i.yes && !i.dryRun {
		return usage("--json cannot ask; say --yes or --dry-run as well")
	}
	path, named, err := a.layers.ConfigPath()
	if err != nil {
		return usage("%w", err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	if i.undo {
		return i.takeBack(ctx, path)
	}
	if !i.yes && !i.dryRun && terminal(a.in) == nil {
		return usage("nobody is at a terminal to be asked; see what it would do by --dry-run, or say --yes")
	}
	o, err := i.options(path, named)
	if err != nil {
		return err
	}
	p, err := adopt.New(o)
	if err != nil {
		return i.failed(err)
	}
	if len(p.Files) == 0 {
		return i.nothing(p)
	}
	i.mask(p.Masks)
	if !i.asJSON {
		if err := i.show(p, o); err != nil {
			return err
		}
	}
	switch {
	case i.dryRun && i.asJSON:
		return i.printPlan(p, nil)
	case i.dryRun:
		return a.printf("\n%s", i.diffs(p))
	case !i.yes && !a.atTerminal("Go ahead?"):
		return errors.New("nothing was changed")
	}
	if !i.yes && !i.permissions {
		if p, err = i.offer(p, o); err != nil {
			return i.failed(err)
		}
	}
	ctx, stop := caught(ctx)
	defer stop()
	done, err := p.Do(ctx)
	i.mask(p.Masks) // there is more of them where Claude Code has written meanwhile
	if err != nil {
		if done.Backup != "" {
			if _, err := os.Stat(done.Backup); err == nil {
				a.say("haldir: copies are kept in %s, with the secrets of the files; only you can read them", home(done.Backup))
			}
		}
		switch {
		case errors.Is(err, adopt.ErrBegun):
			return fmt.Errorf("%w; what it did before that stands: see it by %s init --undo --dry-run", err, a.command())
		case errors.Is(err, adopt.ErrInterrupted):
			return fmt.Errorf("%w; what it had begun is taken back, and nothing is changed", err)
		}
		return fmt.Errorf("%w; nothing else was changed", err)
	}
	if i.asJSON {
		return i.printPlan(p, &done)
	}
	return i.done(p, done, o)
}

// caught ends a context when a person or the system wants haldir to end, which then takes back
// what it has begun. Nobody waits long for that, so that no second signal is heeded.
func caught(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
}

// failed tells all that is wrong with the files.
func (i *adoption) failed(err error) error {
	if _, problems := errors.AsType[config.Problems](err); problems {
		i.a.say("haldir: nothing was changed")
		return err
	}
	return &exit{code: exitUsage, err: fmt.Errorf("%w\nnothing was changed; mend it, or leave that client out by naming the others with --client", err)}
}

func (i *adoption) options(path string, named bool) (o adopt.Options, err error) {
	a := i.a
	cfg, err := config.Load(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return o, i.failed(err)
	}
	a.cfg = cfg // it may say where the key of the secrets is
	if err := a.set(); err != nil {
		return o, err
	}
	host, err := machine()
	if err != nil {
		return o, err
	}
	state, err := filepath.Abs(a.settings.StateDir)
	if err != nil {
		return o, err
	}
	o = adopt.Options{
		Host: host, Config: path, StateDir: state, Store: a.vault(), Projects: i.places, Shared: i.project, Trust: i.trust, Permissions: i.permissions, Now: time.Now(),
	}
	for _, name := range i.clients {
		if !slices.Contains(clients.All(), clients.Client(name)) {
			var known []string
			for _, c := range clients.All() {
				known = append(known, string(c))
			}
			return o, usage("--client %q is none of %s%s", name, strings.Join(known, ", "), config.Suggest(name, known))
		}
		o.Clients = append(o.Clients, clients.Client(name))
	}
	args, err := i.serve(&o, named)
	if err != nil {
		return o, err
	}
	if o.Terminal, o.Window, err = started(host.Own, host.Program("haldir"), host.Program("npx"), runtime.GOOS); err != nil {
		return o, err
	}
	o.Terminal.Args, o.Window.Args = slices.Concat(o.Terminal.Args, args), slices.Concat(o.Window.Args, args)
	o.Claude = host.Program("claude")
	return o, nil
}

// machine is where this haldir runs, and for whom.
func machine() (h clients.Host, err error) {
	h = clients.Host{OS: runtime.GOOS, Dir: workingDir(), Env: os.Getenv, Managed: clients.ManagedDir(runtime.GOOS)}
	if h.Own, err = os.Executable(); err != nil {
		return h, fmt.Errorf("find haldir itself: %w", err)
	}
	if h.Home, err = os.UserHomeDir(); err != nil {
		return h, fmt.Errorf("find the home directory: %w", err)
	}
	return h, nil
}

// serve is what clients give haldir: what was named, and what it would not find without the XDG
// variables of this shell. A haldir beside, of an init before that, may find it with them.
func (i *adoption) serve(o *adopt.Options, named bool) (args []string, err error) {
	file, state, err := config.DefaultPaths()
	if err != nil {
		return nil, err
	}
	args = []string{"serve"}
	if named {
		o.Serves.Config = o.Config
	}
	if named || o.Config != file {
		args = append(args, "--config", o.Config)
	}
	flag := i.a.flags.Lookup("state-dir")
	told := flag != nil && flag.Changed || os.Getenv("HALDIR_STATE_DIR") != ""
	if told {
		o.Serves.StateDir = o.StateDir
	}
	if told || o.StateDir != state {
		args = append(args, "--state-dir", o.StateDir)
	}
	return args, nil
}

// passing are the directories that go run, pnpm dlx and bunx put a program into, which goes
// with the next cleaning of a cache: one of them, or Go's name for what it has built.
var passing = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`/(go-build[^/]*|dlx(-[^/]*)?|bunx-[^/]*|[0-9a-f]{2}/[0-9a-f]{64}-d)/`)
})

// started is how the program at own is started, where haldir and npx are on PATH.
func started(own, found, npx, system string) (terminal, window clients.Entry, err error) {
	place := strings.ReplaceAll(own, `\`, "/")
	switch {
	case strings.Contains(place, "/_npx/"): // by npx, which fetches it anew when its cache was emptied
		e := clients.Entry{Command: "npx", Args: []string{"-y", "haldir"}}
		if system == "windows" { // where npx is a script, which clients do not start by themselves
			e = clients.Entry{Command: "cmd", Args: []string{"/c", "npx", "-y", "haldir"}}
			return e, e, nil
		}
		return e, clients.Entry{Command: cmp.Or(npx, "npx"), Args: e.Args}, nil
	case passing().MatchString(place):
		return terminal, window, usage("this haldir is at %s, which is there for this run only, and clients must find it later: install it first (go install ./cmd/haldir, or npm install -g haldir), and then run haldir init", own)
	case found != "" && files.Same(own, found): // found stays when a package manager moves what it links to
		return clients.Entry{Command: "haldir"}, clients.Entry{Command: found}, nil
	case found != "" && launches(found, own): // own stays too, and a window need not have node on its PATH
		return clients.Entry{Command: "haldir"}, clients.Entry{Command: own}, nil
	}
	return clients.Entry{Command: own}, clients.Entry{Command: own}, nil // its own path will do
}

// launches reports whether what is on PATH is the script of the npm package that has brought
// the program: both are below one node_modules.
func launches(found, own string) bool {
	root := filepath.Join(filepath.Dir(found), "node_modules") // beside the script, on Windows
	if script, err := filepath.EvalSymlinks(found); err == nil {
		if at := strings.LastIndex(filepath.ToSlash(script), "/node_modules/haldir/"); at >= 0 {
			root = filepath.FromSlash(filepath.ToSlash(script)[:at] + "/node_modules")
		}
	}
	rel, err := filepath.Rel(root, own)
	return err == nil && filepath.IsLocal(rel)
}

func (i *adoption) mask(texts []string) {
	for _, m := range texts {
		i.a.secrets.add(m)
	}
}

// nothing says why there is nothing to do.
func (i *adoption) nothing(p *adopt.Plan) error {
	if i.asJSON {
		return i.printPlan(p, nil)
	}
	if err := i.left(p); err != nil {
		return err
	}
	i.a.say("there is nothing to move; %s is as it was", shellWord(p.Config))
	return nil
}

// home is a path as people write it.
func home(path string) string {
	dir, err := os.UserHomeDir()
	if err != nil {
		return plain(path, 0)
	}
	if rel, err := filepath.Rel(dir, path); err == nil && filepath.IsLocal(rel) && runtime.GOOS != "windows" {
		return plain("~/"+rel, 0)
	}
	return plain(path, 0)
}

// from lists where a server was found.
func from(servers []*clients.Server) string {
	var out []string
	for _, s := range servers {
		where := fmt.Sprintf("%s (%s)", s.List.File.Client, s.List.Scope)
		if !slices.Contains(out, where) {
			out = append(out, where)
		}
	}
	return strings.Join(out, ", ")
}

// show says in words what a plan does.
func (i *adoption) show(p *adopt.Plan, o adopt.Options) error {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for _, c := range p.Files {
		if c.Kind != adopt.KindConfig {
			continue
		}
		line("%s", home(c.Path))
		fresh := slices.ContainsFunc(p.Upstreams, func(u *adopt.Upstream) bool { return !u.There })
		switch {
		case c.Before != nil && !fresh:
			line("  gets policies:")
		case c.Before != nil:
			line("  gets these upstreams:")
		case len(p.Upstreams) == 0:
			line("  is written, with a starter policy and no upstreams yet; see: haldir upstream add --help")
		default:
			line("  is written, with a starter policy and these upstreams:")
		}
		for _, u := range p.Upstreams {
			if !u.There {
				line("    %s: %s", u.Name, i.a.secrets.clean(plain(what(u), 70)))
				line("      from %s", from(u.From))
			}
		}
		for _, id := range p.Policies {
			line("    the policy %s", id)
		}
	}
	for _, u := range p.Upstreams {
		if u.There {
			line("%s is in haldir.yaml already; it goes from %s", u.Name, from(u.From))
		}
	}
	var secrets []string
	for _, u := range p.Upstreams {
		for _, s := range u.Secrets {
			secrets = append(secrets, fmt.Sprintf("%s: %s", s.Name, s.What))
		}
	}
	if len(secrets) > 0 {
		line("haldir's store of secrets gets")
		for _, s := range secrets {
			line("  %s", plain(s, 0))
		}
	}
	for _, c := range p.Files {
		switch c.Kind {
		case adopt.KindConfig:
		case adopt.KindClient:
			line("%s", home(c.Path))
			for _, s := range c.Swaps {
				where := ""
				if s.Dir != "" {
					where = ", for " + home(s.Dir)
				}
				entry := s.Name
				if !s.Placed {
					entry += ", which is there,"
				}
				line("  %s (%s%s): %s in place of %s", c.Client, s.Scope, where, entry, plain(strings.Join(s.Gone, ", "), 200))
			}
			if c.Command != nil {
				line("  registered by `claude mcp add`")
			}
		case adopt.KindSettings:
			line("%s", home(c.Path))
			line("  gets %d rules that deny Claude Code's shell and editor haldir's files and approvals", len(c.Rules))
		}
	}
	if err := i.a.printf("%s", b.String()); err != nil {
		return err
	}
	if err := i.left(p); err != nil {
		return err
	}
	for _, n := range p.Notes {
		i.a.say("haldir: %s", i.a.secrets.clean(plain(n, 0)))
	}
	if !i.dryRun {
		i.a.say("a copy of each file is kept in %s; %s init --undo takes it back", home(filepath.Join(o.StateDir, "init")), i.a.command())
	}
	return nil
}

// what a server is, without what may be secret.
func what(u *adopt.Upstream) string {
	s := u.From[0]
	if s.URL != "" {
		address, _, _ := strings.Cut(s.URL, "?")
		return address
	}
	return strings.Join(append([]string{s.Command}, s.Args...), " ")
}

// left lists the servers that stay where they are.
func (i *adoption) left(p *adopt.Plan) error {
	if len(p.Left) == 0 {
		return nil
	}
	var b strings.Builder
	b.WriteString("left where they are:\n")
	for _, l := range p.Left {
		fmt.Fprintf(&b, "  %s, %s (%s): %s\n", plain(l.Server.Name, 60), l.Server.List.File.Client, l.Server.List.Scope, i.a.secrets.clean(plain(l.Why, 0)))
		fmt.Fprintf(&b, "    %s\n", home(l.Server.Place()))
	}
	return i.a.printf("%s", b.String())
}

// diffs are the changes of all files, without secrets.
func (i *adoption) diffs(p *adopt.Plan) string {
	var b strings.Builder
	for _, c := range p.Files {
		b.WriteString(i.diff(c.Path, c.Before, c.After))
	}
	return b.String()
}

func (i *adoption) diff(path string, before, after []byte) string {
	return lines(i.a.secrets.clean(string(diff.Diff(path, before, path, after))))
}

// offer asks whether Claude Code is to be kept away from haldir's files.
func (i *adoption) offer(p *adopt.Plan, o adopt.Options) (*adopt.Plan, error) {
	if !slices.ContainsFunc(p.Files, func(c *adopt.Change) bool { return c.Client == clients.ClaudeCode }) {
		return p, nil
	}
	o.Permissions = true
	more, err := adopt.New(o)
	if err != nil || len(more.Files) == len(p.Files) {
		return p, err
	}
	i.a.say("Claude Code's own shell and editor could change haldir's files and approve calls.")
	if !i.a.atTerminal(fmt.Sprintf("Add rules to %s that deny it?", home(o.Host.ClaudeSettings()))) {
		return p, nil
	}
	return more, nil
}

// done says what was done and what comes next.
func (i *adoption) done(p *adopt.Plan, d adopt.Done, o adopt.Options) error {
	a := i.a
	for _, n := range d.Notes {
		a.say("haldir: %s", a.secrets.clean(plain(n, 0)))
	}
	if err := a.printf("done; what was before is in %s\n", home(d.Backup)); err != nil {
		return err
	}
	var signIn []string
	started := false
	for _, u := range p.Upstreams {
		s := u.From[0]
		if started = started || s.Command != ""; s.URL != "" && len(s.Headers) == 0 {
			signIn = append(signIn, u.Name)
		}
	}
	a.say("next: start your clients anew; %s doctor looks whether all is well", a.command())
	if len(signIn) > 0 {
		a.say("next: a server that asks for a sign-in gets it by: %s upstream login NAME   (%s)", a.command(), strings.Join(signIn, ", "))
	}
	if started {
		a.say("next: haldir passes its programs PATH, HOME and the like only; name other variables that one needs in its env_pass")
	}
	if a.settings.Reload != "auto" && slices.ContainsFunc(p.Files, func(c *adopt.Change) bool { return c.Kind == adopt.KindConfig && c.Before != nil }) {
		a.say("next: a haldir that is running takes the new upstreams once you confirm them: %s reload", a.command())
	}
	rules := slices.ContainsFunc(p.Files, func(c *adopt.Change) bool { return c.Kind == adopt.KindSettings })
	if !rules && slices.ContainsFunc(p.Files, func(c *adopt.Change) bool { return c.Client == clients.ClaudeCode }) && !o.Permissions {
		a.say("next: %s init --permissions keeps Claude Code's shell and editor away from haldir's files and approvals", a.command())
	}
	return nil
}

type foundAt struct {
	Client  string `json:"client"`
	Scope   string `json:"scope"`
	Project string `json:"project,omitempty"`
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Name    string `json:"name"`
}

func found(s *clients.Server) foundAt {
	return foundAt{string(s.List.File.Client), string(s.List.Scope), s.List.Dir, s.List.File.Path, s.Line, s.Column, s.Name}
}

// printPlan prints a plan as one object. done is nil if nothing was written.
func (i *adoption) printPlan(p *adopt.Plan, done *adopt.Done) error {
	type upstreamJSON struct {
		Name    string    `json:"name"`
		New     bool      `json:"new"` // it was not in haldir.yaml
		From    []foundAt `json:"from"`
		Secrets []string  `json:"secrets"`
	}
	type leftJSON struct {
		foundAt
		Why string `json:"why"`
	}
	type fileJSON struct {
		Kind   string `json:"kind"`
		Client string `json:"client,omitempty"`
		Path   string `json:"path"`
		New    bool   `json:"new"`
		Diff   string `json:"diff"`

		Command []string `json:"command,omitempty"` // that is run first, to have haldir's entry
	}
	ups, left, files, notes := []upstreamJSON{}, []leftJSON{}, []fileJSON{}, []string{}
	for _, u := range p.Upstreams {
		e := upstreamJSON{Name: u.Name, New: !u.There, Secrets: []string{}}
		for _, s := range u.From {
			e.From = append(e.From, found(s))
		}
		for _, s := range u.Secrets {
			e.Secrets = append(e.Secrets, s.Name)
		}
		ups = append(ups, e)
	}
	for _, l := range p.Left {
		left = append(left, leftJSON{found(l.Server), i.a.secrets.clean(l.Why)})
	}
	for _, c := range p.Files {
		e := fileJSON{Kind: string(c.Kind), Client: string(c.Client), Path: c.Path, New: c.Before == nil, Diff: i.a.secrets.clean(string(diff.Diff(c.Path, c.Before, c.Path, c.After)))}
		if c.Command != nil {
			e.Command = append([]string{"claude"}, c.Command...)
		}
		files = append(files, e)
	}
	backup := ""
	if done != nil {
		backup = done.Backup
		for _, n := range done.Notes {
			notes = append(notes, i.a.secrets.clean(n))
		}
	}
	for _, n := range p.Notes {
		notes = append(notes, i.a.secrets.clean(n))
	}
	return i.a.printJSON(map[string]any{
		"config": p.Config, "written": done != nil, "backup": backup, "upstreams": ups, "left": left, "files": files, "notes": notes,
	})
}

// takeBack undoes the last init.
func (i *adoption) takeBack(ctx context.Context, path string) error {
	a := i.a
	if len(i.clients) > 0 || i.permissions || i.trust || i.places || i.project {
		return usage("--undo takes all of the last init back; leave the other flags out")
	}
	if cfg, err := config.Load(path); err == nil { // it may say where the key of the secrets is
		a.cfg = cfg
	}
	if err := a.set(); err != nil {
		return err
	}
	host, err := machine()
	if err != nil {
		return err
	}
	u, err := adopt.Last(a.settings.StateDir, host, a.vault())
	if errors.Is(err, adopt.ErrNothing) {
		if !i.dryRun {
			if err := adopt.Tidy(a.settings.StateDir); err != nil {
				return err
			}
		}
		return usage("%w in %s", err, a.settings.StateDir)
	}
	if err != nil {
		return err
	}
	i.mask(u.Masks)
	type fileJSON struct {
		Kind string `json:"kind"`
		Path string `json:"path"`
		Way  string `json:"way"` // none, restore, merge, aside or conflict
		Why  string `json:"why,omitempty"`
		Diff string `json:"diff"`

		Notes []string `json:"notes,omitempty"`
	}
	files := []fileJSON{}
	for _, f := range u.Files {
		after := f.After
		if f.Way == adopt.WayNone {
			after = f.Now
		}
		e := fileJSON{string(f.Kind), f.Path, string(f.Way), f.Why, i.a.secrets.clean(string(diff.Diff(f.Path, f.Now, f.Path, after))), f.More}
		files = append(files, e)
		if i.asJSON || len(u.Conflicts()) > 0 && !i.force && f.Way != adopt.WayConflict {
			continue // without --force nothing happens to the files that have no conflict
		}
		word := map[adopt.Way]string{
			adopt.WayNone: "is as it was before", adopt.WayRestore: "gets back what it was, byte for byte", adopt.WayMerge: "was changed since; init's part of it is taken back",
			adopt.WayAside: "goes, as init made it; it was changed since, and is kept beside the copies", adopt.WayConflict: "was changed since",
		}[f.Way]
		if f.Way == adopt.WayRestore && f.After == nil {
			word = "goes, as init made it"
		} else if i.force && f.Way == adopt.WayConflict {
			word = "was changed since; by force it gets back what it was, byte for byte"
		}
		if err := a.printf("%s %s\n", home(f.Path), word); err != nil {
			return err
		}
		for _, n := range f.More {
			a.say("haldir: %s: %s", home(f.Path), plain(n, 0))
		}
		if i.dryRun && (f.Way == adopt.WayRestore || f.Way == adopt.WayMerge || f.Way == adopt.WayAside) {
			if err := a.printf("%s", lines(e.Diff)); err != nil {
				return err
			}
		}
	}
	if len(u.Secrets) > 0 && !i.asJSON {
		a.say("secrets that go: %s", strings.Join(u.Secrets, ", "))
	}
	for _, name := range u.Kept {
		a.say("haldir: the secret %s stays, as it is not what init stored any more; remove it by: %s secret remove %s", name, a.command(), name)
	}
	for _, name := range u.Named {
		a.say("haldir: the secret %s stays, as an upstream of yours in haldir.yaml refers to it", name)
	}
	conflicts := u.Conflicts()
	if len(conflicts) > 0 && !i.force {
		for _, c := range conflicts {
			a.say("haldir: %s: %s; what has changed since init:", home(c.Path), cmp.Or(plain(c.Why, 0), "it was changed"))
			a.say("%s", i.diff(c.Path, c.Left, c.Now))
		}
		return errors.New("nothing was changed; --force puts such files back as they were before init, and keeps what they are now in " + home(u.Dir))
	}
	switch {
	case i.dryRun:
	case !i.yes && !a.asks("Take it back?", "; say --yes to take it back"):
		return errors.New("nothing was changed")
	default:
		_, stop := caught(ctx) // it is short, and half of it is worse than all
		defer stop()
		if err := u.Do(i.force); err != nil {
			return err
		}
		i.kept(u)
	}
	i.earlier(u)
	if i.asJSON {
		if u.Secrets == nil {
			u.Secrets = []string{}
		}
		return a.printJSON(map[string]any{"undone": u.Made, "written": !i.dryRun, "files": files, "secrets": u.Secrets, "earlier": u.Earlier})
	}
	if !i.dryRun {
		a.say("start your clients anew")
	}
	return nil
}

// earlier tells of inits before the one that is undone: what they did stays, such as the entries
// by which clients start haldir.
func (i *adoption) earlier(u *adopt.Undo) {
	n := len(u.Earlier)
	if n == 0 {
		return
	}
	last := "of " + when(u.Earlier[0])
	if u.Earlier[0].IsZero() {
		last = "whose notes cannot be read"
	}
	text, again := fmt.Sprintf("an init before this one, %s, stays in place", last), "take it back by undoing once more"
	if n > 1 {
		text, again = fmt.Sprintf("%d inits before this one, the last %s, stay in place", n, last), "take them back by undoing once more for each"
	}
	i.a.say("haldir: %s, and clients may go on starting haldir; %s: %s init --undo", text, again, i.a.command())
}

// kept says what an undo has kept, and where.
func (i *adoption) kept(u *adopt.Undo) {
	for _, f := range u.Files {
		for _, path := range f.Aside() {
			i.a.say("haldir: %s, as it was until now, is kept in %s", home(f.Path), home(path))
		}
		if path := f.Original(); path != "" {
			i.a.say("haldir: %s has kept what came since, and its bytes of before init are in %s, with the secrets that it had; only you can read it, and may remove it", home(f.Path), home(path))
		}
	}
}
