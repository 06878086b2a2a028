//go:build !unmended

package ledger_test

const strict = false
