// Package oauth signs haldir in to an upstream (MCP authorization, 2025-11-25 and
// 2026-07-28): it finds the authorization server, introduces haldir to it as a client,
// sends a person's browser there, keeps what comes of it, and renews it.
//
// What was granted is kept in the store of secrets, where every haldir process finds
// it. One of them at a time renews it, since a refresh token can be used once: whoever
// wants to waits for the lock, and reads again what the one before has got.
package oauth
