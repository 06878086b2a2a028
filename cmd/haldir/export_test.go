package main

// Main lets the tests run themselves as haldir.
func Main() { main() }

// News is what a shipper waits by.
var News = news

// CloseAfterSignal ends a run after a signal, with shipping that ends by unship.
func CloseAfterSignal(unship func()) error {
	a := &app{hurry: true, unship: unship}
	return a.close()
}
