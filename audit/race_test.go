//go:build race

package audit_test

// slowdown is how much longer the race detector may take.
const slowdown = 4
