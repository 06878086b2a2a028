// Package audit is the record of every attempt: its canonical bytes, the hash
// chain over them, verification, and queries.
//
// A [Record] is encoded into length-prefixed bytes that are both what is stored
// and what is hashed; docs/audit-format.md describes them for a second
// implementation. Records are numbered from 1 without gaps and each carries the
// hash of the one before. A call leaves an attempt record, written before the
// call is forwarded, and an outcome record; [Entry] joins the two for people.
//
// The package stores nothing: it reads through a [Source], which the ledger
// provides.
package audit
