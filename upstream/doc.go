// Package upstream is one MCP server's life behind haldir: it connects in the
// background, keeps the server's tools at hand, passes calls on as raw bytes,
// and connects again with backoff whenever the server goes away.
//
// What a server says is never needed to answer the host at once: the tools it
// had when it was last seen come from a [Cache] before the first connection is
// made. An [Upstream] is safe for concurrent use.
package upstream
