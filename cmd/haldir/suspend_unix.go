//go:build unix

package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// suspendable makes Ctrl-Z free the ledger before the process stops, so that
// it does not keep every other window waiting. It returns what ends that.
func (a *app) suspendable(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTSTP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-asked:
				stop := func() { _ = syscall.Kill(os.Getpid(), syscall.SIGSTOP) } // it returns after SIGCONT
				if a.ledger.Suspend(ctx, stop) != nil && ctx.Err() == nil {
					stop()
				}
			}
		}
	}()
	return func() {
		signal.Stop(asked)
		cancel()
		<-done
	}
}
