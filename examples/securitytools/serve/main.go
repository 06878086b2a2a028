// Command serve runs the example server over streamable HTTP on loopback.
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/haldir-mcp/haldir/examples/securitytools"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8931", "where to listen")
	flag.Parse()
	fmt.Fprintf(os.Stderr, "serving on http://%s/mcp\n", *addr)
	srv := &http.Server{Addr: *addr, Handler: securitytools.Handler(), ReadHeaderTimeout: 10 * time.Second}
	if err := srv.ListenAndServe(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
