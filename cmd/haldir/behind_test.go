package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// A haldir that is its own upstream ends at the first, whatever its file is called.
func TestARenamedHaldirIsNoUpstreamOfItself(t *testing.T) {
	dir := t.TempDir()
	text, err := os.ReadFile(mcptest.Build(t)) // what runs these tests goes by its name
	if err != nil {
		t.Fatal(err)
	}
	guard := filepath.Join(dir, "guard.exe")
	if err := os.WriteFile(guard, text, 0o700); err != nil { //nolint:gosec // it is to be run
		t.Fatal(err)
	}
	config := filepath.Join(dir, "haldir.yaml")
	if err := os.WriteFile(config, []byte("version: 1\nupstreams: [{name: itself, command: '"+guard+"', args: [serve, --config, '"+config+"', --state-dir, '"+filepath.Join(dir, "inner")+"']}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), guard, "tools", "--config", config, "--state-dir", filepath.Join(dir, "state")).CombinedOutput()
	if err != nil || strings.Contains(string(out), "itself__") || !strings.Contains(string(out), "haldir is its own upstream: take it out") {
		t.Errorf("%v\n%s", err, out)
	}
}
