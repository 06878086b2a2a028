package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/proxy"
)

// gcPercent makes the next collection come at 2 MiB of heap instead of 4. Not before the
// host is greeted, since with many upstreams to read of it would be the tenth by then.
const gcPercent = 50

// stopGrace is how long the calls may take to end after a signal. The host
// kills haldir half a second after its first one.
const stopGrace = 50 * time.Millisecond

func serveCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve MCP on stdin and stdout, for a client to launch",
		Long: "serve is what an MCP client launches. It reads haldir.yaml, connects to the\n" +
			"upstreams in the background and speaks MCP on stdin and stdout until its input\n" +
			"ends or it is interrupted. Its log goes to stderr.",
		Example: "  haldir serve\n  haldir serve --upstream docs=https://docs.example.com/mcp --deny 'delete_*' --rate 100/1h",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.serving = true
			return a.serve(cmd.Context())
		},
	}
	a.quick.rules(cmd.Flags())
	return cmd
}

func (a *app) serve(ctx context.Context) error {
	// What lives long in serve is small, 1 or 2 MiB: Go would let twice the
	// garbage gather before it looks, in each of a person's windows.
	if os.Getenv("GOGC") == "" {
		a.greeted = sync.OnceFunc(func() { debug.SetGCPercent(gcPercent) })
	}
	// What the packages' own beginnings left is two thirds of the heap until here. Its
	// place is used again, if it is free before the rest is wanted.
	var swept sync.WaitGroup
	swept.Go(runtime.GC)
	defer swept.Wait()
	// A host that is gone shows as an error of a write, not as the end of haldir
	// before it has ended its children.
	// Caught, not ignored: that would be passed on to the children.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	// Until everything is closed, since the host's next signal comes after 100 ms
	// and must not end haldir in the middle of ending its children.
	ctx, a.unsignal = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	srv, err := a.prepare(ctx)
	if err == nil {
		err = a.behindItself()
	}
	if err != nil {
		// Hosts show what initialize answers and hide stderr and exit codes.
		a.explain(err)
		return a.interruptible(ctx, func() error { return proxy.Refuse(a.in, a.out, whole(err)) })
	}
	for _, w := range a.cfg.Warnings {
		a.log.Warn().Msg(w.String())
	}
	for _, name := range config.UnknownVariables(os.Environ()) {
		a.log.Warn().Msg("unknown variable " + name)
	}
	if a.quick.spend != "" && len(a.quick.cost) == 0 {
		a.log.Warn().Msg("--spend limits calls that cost something, and nothing does: say what calls cost by --cost PATTERN=DOLLARS")
	}
	if a.cfg.Path == "" && len(a.cfg.Upstreams) == 0 {
		a.log.Warn().Msg("there is no config: only haldir's own tools are served; README.md shows how to write one")
	}
	a.ship(ctx)
	defer a.suspendable(ctx)()
	defer a.inStep(ctx, srv)()
	unmapBeginnings()
	return a.interruptible(ctx, func() error { return srv.Serve(ctx, a.in, a.out) })
}

// inStep keeps the server in step with the config, until what it returns is called.
func (a *app) inStep(ctx context.Context, srv *proxy.Server) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	f := &follower{a: a, srv: srv}
	wg.Go(func() { f.follow(ctx) })
	return func() { cancel(); wg.Wait() }
}

func (a *app) prepare(ctx context.Context) (*proxy.Server, error) {
	if err := a.load(); err != nil {
		return nil, err
	}
	if err := a.open(); err != nil {
		return nil, err
	}
	return a.server(ctx)
}

// whole is the message for the host: every problem of a config, not the first.
func whole(err error) error {
	if problems, ok := errors.AsType[config.Problems](err); ok {
		return problems
	}
	return err
}

// interruptible runs f until it returns, or until shortly after ctx has ended:
// f may be stuck in a read or in a write to a host that does not read.
func (a *app) interruptible(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		a.hurry = true
	}
	select {
	case err := <-done:
		return err
	case <-time.After(stopGrace):
		return nil
	}
}
