// Command serve runs the example server over streamable HTTP on loopback.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/haldir-mcp/haldir/examples/securitytools"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8931", "where to listen")
	flag.Parse()
	if err := securitytools.Serve(context.Background(), *addr, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
