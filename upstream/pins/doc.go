// Package pins remembers what an upstream offered when it was seen first, and says what
// has become of it since: a server that was looked at and trusted may change what it
// tells the model (a rug pull), or hide instructions in it. It is pure: it compares,
// and others store and show.
package pins
