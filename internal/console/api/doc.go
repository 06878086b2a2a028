// Package api is haldir's REST API: what each route takes and answers. Who may call it
// is decided before, by [Routes] and the caller: package console asks for a key or a
// person's cookie and then hands the request over.
//
// A request is read strictly: an unknown member or parameter is an error that names it,
// since one that is misspelt must not silently mean something else. An error is
// application/problem+json (RFC 9457); so is a call that policy refuses, with the refusal
// that an agent gets over MCP inside.
package api
