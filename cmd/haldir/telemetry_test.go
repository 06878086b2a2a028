package main_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	haldir "github.com/haldir-mcp/haldir/cmd/haldir"
	"github.com/haldir-mcp/haldir/internal/telemetry"
	"github.com/haldir-mcp/haldir/proxy"
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

// A collector that hangs must not keep haldir at the end of its input, any more than after a
// signal.
func TestTracesThatHangHoldUpNoEnd(t *testing.T) {
	shared := http.DefaultTransport.(*http.Transport)
	dial := shared.DialContext
	t.Cleanup(func() { shared.DialContext = dial })
	synctest.Test(t, func(t *testing.T) {
		over, end := context.WithCancel(context.Background())
		defer end()
		shared.DialContext = func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, theirs) }() // nobody answers
			context.AfterFunc(over, func() { _ = theirs.Close() })
			return ours, nil
		}
		c, err := telemetry.Read(func(name string) string {
			return map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector.example.com"}[name]
		})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := haldir.CloseAfterInput(c, &proxy.Seen{Method: "tools/call", Began: began, Ended: began}); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 300*time.Millisecond {
			t.Errorf("it ended after %v", took)
		}
	})
}
