package adopt

import (
	"os"
	"os/exec"
)

// leash has nothing to do: init starts no Claude Code here, since it is started by a script, which
// could be ended without it, and no lock is given to a child.
func leash(*exec.Cmd, *os.File) {}

// putDown has nothing to do.
func putDown(*exec.Cmd) {}
