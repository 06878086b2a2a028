// Package adopt moves the servers of a person's MCP clients behind haldir: it plans what
// becomes of each, writes haldir.yaml, puts one entry for haldir in the place of those that
// have moved, and takes all of it back.
//
// A plan is made of what the files are, and carried out only on files that are still so.
// Before the first of them changes, a copy of each and a manifest are on disk: what fails
// half-way, or is cut off, can be undone.
package adopt
