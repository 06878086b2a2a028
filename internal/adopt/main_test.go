package adopt_test

import (
	"flag"
	"testing"
)

// TestMain makes properties short: each try writes and syncs a dozen files.
func TestMain(m *testing.M) {
	_ = flag.Set("rapid.checks", "20")
	_ = flag.Set("rapid.nofailfile", "true") // the seed that it prints is enough
	m.Run()
}
