package main_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	haldir "github.com/haldir-mcp/haldir/cmd/haldir"
	"github.com/haldir-mcp/haldir/examples/securitytools"
	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// TestMain makes this test binary four programs: the tests; under the name of
// haldir, which stands first on the tests' PATH, haldir itself; and, where a
// variable says so, a hostile server or a real one of real_servers_test.go. So
// everything that runs is built from what is tested, race detector included.
func TestMain(m *testing.M) {
	mcptest.Main()
	runRealServer()
	testscript.Main(tests{m}, map[string]func(){"haldir": haldir.Main, "securitytools": serveExample})
}

// serveExample is the example server on a port that it says.
func serveExample() {
	if err := securitytools.Serve(context.Background(), "127.0.0.1:0", os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type tests struct{ *testing.M }

func (m tests) Run() int {
	defer mcptest.CleanUp()
	return m.M.Run()
}

// program returns the path of haldir.
func program(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("haldir")
	if err != nil {
		t.Fatal(err)
	}
	return path
}
