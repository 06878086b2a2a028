package main_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	haldir "github.com/haldir-mcp/haldir/cmd/haldir"
)

func TestALedgerThatCannotBeReadIsNotAskedWithoutRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its clock goes on when everybody waits
		asked := 0
		news := haldir.News(func() (uint64, error) { asked++; return 0, errors.New("it cannot be read") }, time.Second)
		began := time.Now()
		for range 3 {
			if !news(context.Background()) {
				t.Fatal("it ended by itself")
			}
		}
		if waited := time.Since(began); waited != 3*time.Second || asked != 3 {
			t.Errorf("it was asked %d times in %v", asked, waited)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if news(ctx) {
			t.Error("it goes on after its end")
		}
	})
}

// A sync of the disk that hangs must not keep haldir beyond what is promised after a signal.
func TestShippingThatHangsHoldsUpNoEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := make(chan struct{})
		began := time.Now()
		if err := haldir.CloseAfterSignal(func() { <-hangs }); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 400*time.Millisecond {
			t.Errorf("it ended after %v", took)
		}
		close(hangs)
	})
}
