package main

import (
	"context"

	"github.com/haldir-mcp/haldir/internal/telemetry"
	"github.com/haldir-mcp/haldir/proxy"
)

// Main lets the tests run themselves as haldir.
func Main() { main() }

// News is what a shipper waits by.
var News = news

// CloseAfterSignal ends a run after a signal, with shipping that ends by unship.
func CloseAfterSignal(unship func()) error {
	a := &app{hurry: true, unship: unship}
	return a.close()
}

// CloseAfterInput ends a run at the end of its input, with something left to send.
func CloseAfterInput(c telemetry.Config, seen *proxy.Seen) error {
	a := &app{serving: true, sends: &c}
	a.measure(context.Background())(seen)
	return a.close()
}
