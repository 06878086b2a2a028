//go:build unmended

package ledger_test

// strict has tests find what is known and not mended yet; see unmended_test.go.
const strict = true
