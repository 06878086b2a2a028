// Package ledger is the sole owner of haldir's database: sessions, counters,
// reservations, the audit chain and the cached catalogues, changed together in
// one transaction.
//
// # Sharing between processes
//
// bbolt admits one process at a time, and every window of an agent starts a
// haldir of its own. So a [Ledger] opens the database only while it has work:
// a lock file decides whose turn it is, a second one, the turnstile, shows the
// holder that somebody waits. The kernel frees the locks of a dead process, so
// there is nothing to clean up. docs/decisions/0001 has the measurements.
//
// # Durability
//
// A method that changes something returns after the commit was synced to disk.
// [Ledger.Settle] alone is queued: it commits with whatever commits next,
// within 50 ms. If the process dies before that, another one records the call
// as abandoned and what it held stays spent.
//
// One goroutine owns the database and runs all waiting operations in one
// transaction, so that concurrent calls share a sync and a lone caller waits
// for nobody. A Ledger is safe for concurrent use.
package ledger
