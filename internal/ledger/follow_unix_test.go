//go:build unix

package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
)

// Who follows is told of what was there and of what comes, waits out a ledger that is
// busy, and goes on with the chain that follows a damaged one.
func TestFollow(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	writer, e := quick(t, dir), engine(t, shop())
	reserve(t, writer, pay("ses_a", "1"), e)
	newest, err := writer.Head()
	if err != nil {
		t.Fatal(err)
	}
	_, resume := suspend(t, dir)
	l := quick(t, dir)
	ctx, stop := context.WithCancel(context.Background())
	came, ended := make(chan uint64), make(chan error, 1)
	go func() {
		ended <- l.Follow(ctx, 1, func(key uint64, _ []byte) error {
			select {
			case came <- key:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	for range 2 { // it has met a busy ledger at least once by then
		if _, err := l.Raw(ctx, 1); !errors.Is(err, ledger.ErrBusy) {
			t.Fatalf("the ledger is not busy: %v", err)
		}
	}
	resume()
	next := func(want uint64) {
		t.Helper()
		select {
		case got := <-came:
			if got != want {
				t.Fatalf("record %d came, want %d", got, want)
			}
		case err := <-ended:
			t.Fatalf("it has ended: %v", err)
		}
	}
	for seq := uint64(1); seq <= newest; seq++ {
		next(seq)
	}
	reserve(t, writer, pay("ses_a", "1"), e)
	next(newest + 1)
	stop()
	if err := <-ended; err != nil {
		t.Errorf("it was stopped: %v", err)
	}
	l = quick(t, dir)
	odd := errors.New("odd")
	if err := l.Follow(context.Background(), newest, func(uint64, []byte) error { return odd }); !errors.Is(err, odd) {
		t.Errorf("its taker has failed: %v", err)
	}
}

// After a recovery the numbers begin anew.
func TestFollowOverARecovery(t *testing.T) {
	t.Parallel()
	dir, _ := spree(t, time.Now)
	l := quick(t, dir)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	newest, err := l.Head()
	if err != nil {
		t.Fatal(err)
	}
	came, ended := make(chan string), make(chan error, 1)
	go func() {
		ended <- l.Follow(ctx, newest, func(key uint64, raw []byte) error {
			r, err := audit.Decode(raw)
			select {
			case came <- fmt.Sprintf("%d %s", key, r.Status):
			case <-ctx.Done():
			}
			return err
		})
	}()
	<-came // the newest of before
	closed := quick(t, dir)
	closeLedger(t, closed)
	if err := os.WriteFile(filepath.Join(dir, "haldir.db"), []byte("no database"), 0o600); err != nil {
		t.Fatal(err)
	}
	recovered(t, dir, time.Now)
	reserve(t, quick(t, dir), pay("ses_new", "1"), engine(t, shop()))
	if got := <-came; got != "1 recovered" {
		t.Errorf("after a recovery came %q", got)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
