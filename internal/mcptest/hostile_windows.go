package mcptest

import "os/exec"

func ownSession(*exec.Cmd) {}
