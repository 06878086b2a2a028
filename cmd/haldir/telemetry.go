package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/telemetry"
	"github.com/haldir-mcp/haldir/proxy"
)

// measure begins to send traces and metrics, if the environment says where to. It returns who
// is told of calls, nil for nobody.
func (a *app) measure(ctx context.Context) func(*proxy.Seen) {
	if !a.serving {
		return nil
	}
	c := a.endpoints()
	if c.Traces == nil && c.Metrics == nil {
		return nil
	}
	a.telemetry = telemetry.Start(ctx, telemetry.Options{Config: c, Version: version(), Log: a.log, State: a.measured})
	return a.telemetry.Observe
}

// unmeasureGrace is how long the last traces and metrics may take, whatever ends the program:
// a host waits for that also where it has ended the input only.
const unmeasureGrace = 300 * time.Millisecond

// unmeasure sends what is left of traces and metrics.
func (a *app) unmeasure() {
	if a.telemetry == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), unmeasureGrace)
	defer cancel()
	a.telemetry.Close(ctx)
	a.telemetry = nil
}

// endpoints are those that the environment names, which is read once. What is wrong with it
// stops no call.
func (a *app) endpoints() telemetry.Config {
	if a.sends != nil {
		return *a.sends
	}
	c, err := telemetry.Read(os.Getenv)
	if err != nil {
		a.log.Error().Err(err).Msg("OpenTelemetry")
	}
	a.sends = &c
	return c
}

// measured is what the metrics say of the present.
func (a *app) measured(ctx context.Context) (s telemetry.State, err error) {
	s.Upstreams = map[string]bool{}
	a.upsMu.Lock()
	ups := a.ups
	a.upsMu.Unlock()
	for _, u := range ups {
		s.Upstreams[u.Name()] = u.Ready()
	}
	if s.Pending, err = a.ledger.Pending(ctx); err != nil {
		return s, err
	}
	s.Destinations, err = a.ledger.Destinations(ctx)
	return s, err
}

const (
	// shipLook is how often it is looked for new records, and shipTurn how often for whether
	// the process that ships has ended.
	shipLook = time.Second
	shipTurn = 5 * time.Second
	// shipTries is how often one batch is tried by a run that is to end, and shipPatience how
	// long it waits in between: it has the right to ship.
	shipTries    = 5
	shipPatience = 30 * time.Second
)

// ship ships the audit until the program closes, if the environment says where to.
func (a *app) ship(ctx context.Context) {
	c := a.endpoints()
	if c.Logs == nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { a.shipFor(ctx, &c) })
	a.unship = func() { cancel(); wg.Wait() }
}

// shipFor ships whenever no other process does.
func (a *app) shipFor(ctx context.Context, c *telemetry.Config) {
	s := a.shipper(c)
	s.News = news(a.ledger.Newest, shipLook)
	for {
		_, err := a.shipOnce(ctx, s)
		if err != nil && !errors.Is(err, ledger.ErrShipping) {
			a.log.Error().Err(err).Msg("the audit is not shipped")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(shipTurn):
		}
	}
}

func (a *app) shipper(c *telemetry.Config) *telemetry.Shipper {
	return &telemetry.Shipper{To: c.Logs, Resource: c.About(version()), Log: a.log}
}

func (a *app) shipOnce(ctx context.Context, s *telemetry.Shipper) (sent uint64, err error) {
	from, err := a.ledger.Ship(s.To.URL(), s.To.String())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	return s.Ship(ctx, from)
}

// news waits for records without the ledger's lock. Now and then it says that there may be
// some, so that it is noted that the destination has all.
func news(newest func() (uint64, error), each time.Duration) func(context.Context) bool {
	known, looked := uint64(0), time.Time{}
	return func(ctx context.Context) bool {
		tick := time.NewTicker(each)
		defer tick.Stop()
		for {
			head, err := newest()
			if err == nil && (head != known || time.Since(looked) > time.Hour) {
				known, looked = head, time.Now()
				return ctx.Err() == nil
			}
			select {
			case <-ctx.Done():
				return false
			case <-tick.C:
			}
			if err != nil { // whoever reads the records finds out what it is
				return true
			}
		}
	}
}

func auditShip(a *app) *cobra.Command {
	var follow, forget bool
	cmd := &cobra.Command{
		Use:   "ship [DESTINATION]",
		Short: "Send the records that a collector does not have yet, as OTLP logs",
		Long: "ship sends every record that was not accepted before to the endpoint that\n" +
			"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT names, in the order\n" +
			"of the chain, and notes in the ledger how far that is. serve and console do the same\n" +
			"while they run, where the variable is set; one process ships at a time. A batch that is\n" +
			"refused is tried 5 times, unless the collector asks to be left alone for more than 30 s.\n\n" +
			"--forget takes the endpoint that the variable names, or a destination by its URL or as\n" +
			"ledger stats shows it.",
		Example: "  OTEL_EXPORTER_OTLP_ENDPOINT=https://collector.example.com haldir audit ship",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				if !forget {
					return usage("a destination is named for --forget only; where to ship to, OTEL_EXPORTER_OTLP_LOGS_ENDPOINT says")
				}
				return a.forgetDestination(cmd.Context(), args[0], plain(args[0], 0))
			}
			c, err := telemetry.Read(os.Getenv)
			if err != nil && c.Logs == nil {
				return usage("%w", err)
			}
			if c.Logs == nil && c.NoLogs != "" {
				return usage("there is nowhere to ship to: %s=%s turns it off", c.NoLogs, os.Getenv(c.NoLogs))
			}
			if c.Logs == nil {
				return usage("there is nowhere to ship to: set OTEL_EXPORTER_OTLP_LOGS_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT; docs/observability.md has all variables")
			}
			if forget {
				return a.forgetDestination(cmd.Context(), c.Logs.URL(), c.Logs.String())
			}
			if err := a.openState(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if follow {
				a.shipFor(ctx, &c)
				return nil
			}
			s := a.shipper(&c)
			s.Tries, s.Patience = shipTries, shipPatience
			sent, err := a.shipOnce(ctx, s)
			if errors.Is(err, ledger.ErrShipping) {
				return a.printf("another process ships to %s; nothing was done\n", c.Logs)
			}
			if err != nil {
				return fmt.Errorf("%d records were shipped to %s, and the next ones were not: %w", sent, c.Logs, err)
			}
			if ctx.Err() != nil {
				return fmt.Errorf("interrupted when %d records were shipped to %s; the next run goes on behind them", sent, c.Logs)
			}
			return a.printf("shipped %d records to %s\n", sent, c.Logs)
		},
	}
	cmd.Flags().BoolVar(&follow, "follow", false, "go on with records as they come, until interrupted")
	cmd.Flags().BoolVar(&forget, "forget", false, "forget how far that is, so that the endpoint keeps no record from being pruned")
	return cmd
}

// forgetDestination gives a destination up that is gone for good.
func (a *app) forgetDestination(ctx context.Context, destination, shown string) error {
	if err := a.openState(); err != nil {
		return err
	}
	known, err := a.ledger.Forget(ctx, destination)
	if err == nil && !known {
		return a.printf("nothing was shipped to %s; nothing was done\n", shown)
	} else if err == nil {
		return a.printf("forgotten: %s holds no records any more\n", shown)
	}
	return err
}
