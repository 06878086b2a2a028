//go:build !race

package ledger_test

const slowdown = 1
