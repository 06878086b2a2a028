package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cli/browser"
	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/internal/console"
	"github.com/haldir-mcp/haldir/internal/console/api"
	"github.com/haldir-mcp/haldir/internal/console/page"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// consolePort is where people and programs look for the console if nobody says another.
const consolePort = 8764

func consoleCommand(a *app) *cobra.Command {
	var port int
	var open bool
	var listen string
	cmd := &cobra.Command{
		Use:   "console",
		Short: "Serve the page for people, and the REST API, on this machine only",
		Long: "console listens on 127.0.0.1 and ::1 until it is interrupted. It prints a link that\n" +
			"signs one browser in, within two minutes; at a terminal, Enter prints another one.\n" +
			"Programs use the REST API there, with a key of `haldir key create`.\n\n" +
			"While it runs, calls that need a person's word wait for the page, in every haldir.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("listen") {
				return usage("--listen %s: the console is for this machine only, since who reaches it can let calls through; reach it from elsewhere by ssh -L %d:127.0.0.1:%d HOST", listen, port, port)
			}
			if port < 0 || port > 65535 {
				return usage("--port must be from 0, which takes any, to 65535")
			}
			a.serving = true
			return a.console(cmd.Context(), port, open)
		},
	}
	f := cmd.Flags()
	f.IntVar(&port, "port", consolePort, "the port on 127.0.0.1 and ::1; 0 takes any that is free")
	f.BoolVar(&open, "open", false, "open the link in the browser")
	f.StringVar(&listen, "listen", "", "refused: the console is on this machine only")
	_ = f.MarkHidden("listen") // it is there to be explained
	return cmd
}

func (a *app) console(ctx context.Context, port int, open bool) error {
	ctx, a.unsignal = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	srv, err := a.prepare(ctx)
	if err != nil {
		return err
	}
	defer srv.Close()
	for _, w := range a.cfg.Warnings {
		a.log.Warn().Msg(w.String())
	}
	if _, err := a.ledger.Newest(); err != nil {
		return err
	}
	m := &manager{a: a, f: &follower{a: a, srv: srv}}
	m.inForce.Store(a.cfg)
	m.f.adopted = func(cfg *config.Config) { m.inForce.Store(cfg) }
	s, err := console.New(console.Options{
		API: api.New(api.Options{
			Ledger: a.ledger, Proxy: srv, Editor: m, Rules: m.rules, Upstreams: m.upstreams, Describe: sentence,
			Clean: a.secrets.clean, Clock: time.Now, Log: a.log,
		}),
		Keys: a.ledger, Page: page.Files(), Clock: time.Now, Log: a.log,
	})
	if err != nil {
		return err
	}
	if err := s.Listen(ctx, port); err != nil {
		return err
	}
	unwatch, err := a.ledger.Watch()
	if err != nil {
		return err
	}
	defer unwatch()
	a.ship(ctx)
	defer a.suspendable(ctx)()
	defer m.follow(ctx)()
	a.start(upstream.Host{})
	forget, err := a.invite(s, open)
	defer forget()
	if err != nil {
		return err
	}
	return s.Serve(ctx)
}

// invite prints a link, and more of them when a person asks. What it returns removes what
// is left of it, whatever the error.
func (a *app) invite(s *console.Server, open bool) (forget func(), err error) {
	forget = func() {}
	link := s.Link()
	if err := a.printf("%s\n", link); err != nil {
		return forget, err
	}
	a.say("haldir: the console is at %s; the link signs one browser in, within two minutes", s.URL())
	if open {
		if forget, err = a.browse(link); err != nil {
			a.say("haldir: the browser could not be opened (%v); open the link yourself", err)
		}
	}
	if terminal(a.in) != nil {
		a.say("haldir: Enter prints another link; Ctrl-C ends the console")
		go a.links(s) // not waited for: a read from a terminal cannot be interrupted
	}
	return forget, nil
}

// browse opens a link in the browser by a file that leads to it: everybody on the machine
// can read the arguments of a program, and whoever opens the link first is signed in. The
// file is gone when the link has ended, or forget is called.
func (a *app) browse(link string) (forget func(), err error) {
	dir, err := os.MkdirTemp("", "haldir-console-") // 0700
	if err != nil {
		return func() {}, err
	}
	remove := func() {
		if err := os.RemoveAll(dir); err != nil {
			a.log.Warn().Err(err).Msg("remove the file that led the browser to the console")
		}
	}
	path := filepath.Join(dir, "open.html")
	text := "<!doctype html><meta charset=utf-8><meta name=referrer content=no-referrer><meta http-equiv=refresh content=\"0; url=" + link + "\"><title>haldir</title>\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return remove, err
	}
	later := time.AfterFunc(console.LinkLife, remove)
	browser.Stdout, browser.Stderr = a.err, a.err
	return func() { later.Stop(); remove() }, browser.OpenFile(path)
}

func (a *app) links(s *console.Server) {
	lines := bufio.NewScanner(a.in)
	for lines.Scan() {
		if a.printf("%s\n", s.Link()) != nil {
			return
		}
	}
}

// manager is the config as the API sees and changes it.
type manager struct {
	a       *app
	f       *follower
	inForce atomic.Pointer[config.Config] // what the follower has put in force last
	watched sync.Once                     // the file is followed
	life    context.Context               //nolint:containedctx // of what follows it
	wg      sync.WaitGroup
}

// follow keeps the rules in step with the file, until what it returns is called.
func (m *manager) follow(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	m.life = ctx
	if path := m.inForce.Load().Path; path != "" {
		m.watch(path)
	}
	return func() { cancel(); m.wg.Wait() }
}

func (m *manager) watch(path string) {
	m.watched.Do(func() { m.wg.Go(func() { m.f.watch(m.life, path) }) })
}

func (m *manager) rules() (*policy.Engine, policy.Ruleset) {
	cfg := m.inForce.Load()
	return cfg.Engine, cfg.Ruleset
}

func (m *manager) upstreams() (list []api.Upstream) {
	m.a.upsMu.Lock()
	defer m.a.upsMu.Unlock()
	for _, u := range m.a.ups {
		block := m.a.blocks[u.Name()]
		list = append(list, api.Upstream{Upstream: u, URL: shownURL(block.URL), Command: block.Command != ""})
	}
	return list
}

// AddPolicy implements [api.Editor].
func (m *manager) AddPolicy(_ context.Context, entry json.RawMessage, by string) (id string, notes []string, err error) {
	r, err := m.change(by+" has added a policy over the API", func(path string, o edit.Options) (edit.Result, error) {
		return edit.Add(path, edit.Policies, entry, o)
	})
	return r.ID, r.Notes, err
}

// RemovePolicy implements [api.Editor].
func (m *manager) RemovePolicy(_ context.Context, id, by string) error {
	_, err := m.change(fmt.Sprintf("%s has removed the policy %s over the API", by, id), func(path string, o edit.Options) (edit.Result, error) {
		var err error
		if o.Known, err = packed(m.inForce.Load(), id); err != nil {
			return edit.Result{}, err
		}
		return edit.Remove(path, edit.Policies, id, o)
	})
	return err
}

// AddUpstream implements [api.Editor].
func (m *manager) AddUpstream(_ context.Context, entry json.RawMessage, by string) (notes []string, err error) {
	var head struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(entry, &head); err != nil {
		return nil, api.NewProblem(http.StatusBadRequest, "malformed", "the upstream: %v", err)
	}
	known := func(u config.Upstream) bool { return u.Name == head.Name }
	if slices.ContainsFunc(m.inForce.Load().Upstreams, known) {
		return nil, api.NewProblem(http.StatusConflict, "conflict", "there is an upstream %q already; DELETE /v1/proxy/upstreams/%s removes it", head.Name, head.Name)
	}
	r, err := m.change(fmt.Sprintf("%s has added the upstream %s over the API", by, head.Name), func(path string, o edit.Options) (edit.Result, error) {
		return edit.Add(path, edit.Upstreams, entry, o)
	})
	return r.Notes, err
}

// RemoveUpstream implements [api.Editor].
func (m *manager) RemoveUpstream(_ context.Context, name, by string) error {
	_, err := m.change(fmt.Sprintf("%s has removed the upstream %s over the API", by, name), func(path string, o edit.Options) (edit.Result, error) {
		return edit.Remove(path, edit.Upstreams, name, o)
	})
	return err
}

// change makes a change to the file and puts it in force here: who may make it has
// decided. Any other haldir takes it as it takes every change of the file.
func (m *manager) change(why string, make func(path string, o edit.Options) (edit.Result, error)) (edit.Result, error) {
	if len(m.a.quick.upstreams) > 0 {
		return edit.Result{}, api.NewProblem(http.StatusConflict, "conflict", "haldir runs by its flags, without a config file that could be changed")
	}
	path, _, err := m.a.layers.ConfigPath()
	if err != nil {
		return edit.Result{}, err
	}
	f := m.f
	f.mu.Lock()
	defer f.mu.Unlock()
	// What somebody else has changed, and nobody has confirmed, must not come into force
	// with this.
	cfg := m.inForce.Load()
	if err := unconfirmed(path, cfg); err != nil {
		return edit.Result{}, err
	}
	var expect [sha256.Size]byte // of no file
	if cfg.Path != "" {
		expect = cfg.SHA256
	}
	r, err := make(path, edit.Options{NoCommands: true, NoReferences: true, Expect: &expect})
	if err != nil {
		return r, editProblem(err)
	}
	now := *r.New
	now.Path = path
	f.seen, f.waiting = now.SHA256, nil
	if !f.adopt(m.life, &now, why) {
		f.seen = cfg.SHA256 // what is there now is looked at anew, unless it is that
		return r, takeBack(path, r)
	}
	m.watch(path)
	return r, nil
}

// takeBack undoes a change that could not be put in force, if the file is still what the
// change has made of it, and says what there is now.
func takeBack(path string, r edit.Result) error {
	if r.Before != nil && edit.Replace(path, r.After, r.Before) == nil {
		return api.NewProblem(http.StatusInternalServerError, "internal", "the changed config could not be put in force, so haldir.yaml is as it was; the log says why")
	}
	return api.NewProblem(http.StatusInternalServerError, "internal", "haldir.yaml was changed, and that could not be put in force; the log says why. Take the change out of the file, or confirm it by haldir reload")
}

var errUnconfirmed = api.NewProblem(http.StatusConflict, "conflict", "haldir.yaml was changed otherwise, and that is not in force: mend it, or confirm it by haldir reload, and try again")

// unconfirmed is an error if the file is not the one in force.
func unconfirmed(path string, cfg *config.Config) error {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && cfg.Path == "":
		return nil
	case err != nil:
		return err
	case sha256.Sum256(data) != cfg.SHA256:
		return errUnconfirmed
	}
	return nil
}

// editProblem says to a client why a change was not made.
func editProblem(err error) error {
	problems, broken := errors.AsType[config.Problems](err)
	switch {
	case broken:
		return api.NewProblem(http.StatusBadRequest, "malformed", "%v", problems)
	case errors.Is(err, edit.ErrOther):
		return errUnconfirmed
	case errors.Is(err, edit.ErrNotFound):
		return api.NewProblem(http.StatusNotFound, "not-found", "%v", err)
	case errors.Is(err, edit.ErrForbids):
		return api.NewProblem(http.StatusBadRequest, "malformed", "%v", err)
	case errors.Is(err, edit.ErrChanged), errors.Is(err, edit.ErrShape), errors.Is(err, edit.ErrAlias):
		return api.NewProblem(http.StatusConflict, "conflict", "%v", err)
	}
	return err
}

var _ api.Proxy = (*proxy.Server)(nil)
