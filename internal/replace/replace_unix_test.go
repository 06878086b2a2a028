//go:build unix

package replace

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A pipe is refused: to open it would wait for somebody who writes to it.
func TestAPipeIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mcp.json")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Read(path); err == nil || !strings.HasSuffix(err.Error(), "mcp.json is no file that can be replaced") {
		t.Errorf("%v", err)
	}
}
