package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// An auditor mounts a snapshot to be read only, and looks at it with what only looks.
func TestASnapshotThatIsMountedReadOnlyCanBeAudited(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	bin := program(t)
	if out, err := exec.Command(bin, "--state-dir", dir, "stop").CombinedOutput(); err != nil { // which is a record
		t.Fatalf("%v: %s", err, out)
	}
	for verb, want := range map[string]string{
		"audit list":     "stopped",
		"audit verify":   "verify: ok",
		"audit export":   `"status":"stopped"`,
		"audit report":   "intact",
		"ledger stats":   "records",
		"spend":          "SESSION",
		"session create": "copy it to a directory of your own",
	} {
		const mounts = `mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || { echo no mount; exit 0; }; shift; exec "$@"`
		cmd := exec.Command("sh", append([]string{"-c", mounts, "sh", dir, bin, "--state-dir", dir}, strings.Fields(verb)...)...)
		cmd.Env = append(os.Environ(), "HALDIR_CONFIG=")
		cmd.Dir = filepath.Dir(dir)
		cmd.SysProcAttr = mcptest.OwnMounts()
		out, err := cmd.CombinedOutput()
		if len(out) == 0 && err != nil || strings.Contains(string(out), "no mount") {
			mcptest.Unavailable(t, "no process with mounts of its own: %v: %s", err, out)
		}
		if !strings.Contains(string(out), want) || fmt.Sprint(err) == "exit status 4" || (err == nil) == (verb == "session create") {
			t.Errorf("%s: %v: %s", verb, err, out)
		}
	}
}
