// Package mcptest is what tests need to meet real and hostile MCP software. It
// is imported from tests only.
//
// A [Session] is a raw conversation with a server on stdio and a [Remote] one
// over streamable HTTP; both keep every byte that came. [Haldir] is a haldir
// with a config and a state directory of its own. [NPM] installs published
// servers and clients. A [Script] is a server that misbehaves.
package mcptest
