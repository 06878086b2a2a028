//go:build soak

package ledger_test

const soaking = true
