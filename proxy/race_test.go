//go:build race

package proxy_test

// raceEnabled tells that the race detector slows everything down.
const raceEnabled = true
