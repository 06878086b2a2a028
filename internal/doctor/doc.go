// Package doctor knows what can be wrong with a haldir that has been set up: the kinds of
// findings, what each means to a person, and how files, clients and tools are looked at. It
// reads and changes nothing, but by a [Mend] that it was told to do; cmd/haldir decides the
// order, waits for the upstreams and prints.
package doctor
