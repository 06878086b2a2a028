//go:build !soak

package ledger_test

// soaking tells that the tests run in their long form.
const soaking = false
