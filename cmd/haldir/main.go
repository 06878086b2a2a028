// Command haldir guards an AI agent's MCP servers: it merges their tools, lets
// through the calls that policy allows and records every attempt.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
