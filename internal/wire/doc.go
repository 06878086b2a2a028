// Package wire reads and writes MCP messages as raw bytes and carries them over
// the transports of the protocol: newline-delimited JSON on pipes, streamable
// HTTP, and the HTTP+SSE of revision 2024-11-05.
//
// It has two readings of JSON. What a host sends is read strictly
// ([ParseStrict]), since a policy judges it and the very bytes judged go
// upstream: anything two parsers could read differently is refused. What an
// upstream sends is read leniently ([ParseLenient]) and handed on untouched:
// only the envelope must be beyond doubt.
//
// The package knows JSON-RPC 2.0 and the shape of MCP's transports (revision
// 2025-11-25, basic/transports), nothing of policies, names or the ledger.
package wire
