// Package policy decides whether a call may go upstream. It is pure: a
// [Decision] depends on the [Call] and the [State] alone. There is no clock, no
// I/O and no logger in here, so the same rules give the same answer in serve,
// in explain and in a test, and the ledger can decide inside its write
// transaction.
//
// An [Engine] is compiled from a [Ruleset] once and is safe for concurrent use.
// Two steps make a decision: [Engine.Reads] names the counters it depends on,
// [Engine.Decide] takes their values and answers with a verdict and the holds
// to put on those counters.
//
// Decide is total: it returns for every input, does not panic and has no error.
// What cannot be decided is a denial that says why.
package policy
