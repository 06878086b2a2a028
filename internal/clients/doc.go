// Package clients knows the files in which MCP clients keep their servers: where each client
// has them, what an entry means, and how to change one without touching the rest.
//
// The files are people's own. They are JSON, with comments and trailing commas where a
// client takes those. A change replaces the bytes of the entries that it is about and leaves
// every other byte as it is: comments, order, indentation, line ends, a byte order mark,
// keys that nobody here knows, numbers of any length. What comes of a change is read again
// and believed only if it is what was there before but for those entries.
package clients
