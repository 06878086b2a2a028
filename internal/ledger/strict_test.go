//go:build unmended

package ledger_test

// strict has tests find what is known and not mended yet, so that they fail.
const strict = true
