//go:build race

package ledger_test

// slowdown is how much longer the race detector may take.
const slowdown = 4
