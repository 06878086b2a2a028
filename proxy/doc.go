// Package proxy is the MCP server that the agent sees: the merged tools of all
// upstreams and of haldir itself, and the one path that every call takes.
//
// A [Server] reads messages from the host in one loop, which registers each
// request before anything else happens, so that a cancellation can never
// overtake its request. Every request then has a goroutine of its own; nobody
// waits for anybody else. One ordered writer carries all answers.
//
// What an upstream answers is passed on as the bytes that came: only the id of
// a response and the name of a tool are replaced.
package proxy
