package adopt

import (
	"os"
	"os/exec"
)

// leash has nothing to do: the system gives no child a lock, and exec ends it by itself.
func leash(*exec.Cmd, *os.File) {}

// putDown has nothing to do.
func putDown(*exec.Cmd) {}
