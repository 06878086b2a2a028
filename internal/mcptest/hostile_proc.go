package mcptest

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Processes returns the ids of the processes whose environment mentions marker,
// which is how a test finds orphans. It needs /proc; zombies are not counted.
func Processes(marker string) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range files {
		env, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(env, []byte(marker)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// AwaitEnds waits until no process is left whose arguments or environment mention marker: what
// a client has launched may go on for a moment after it, and write where the test is about to
// remove. One that stays is an error. Without /proc it waits for none.
func AwaitEnds(t testing.TB, marker string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		left := Processes(marker)
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, f := range files {
			args, err := os.ReadFile(f)
			if pid, e := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil && e == nil && bytes.Contains(args, []byte(marker)) {
				left = append(left, pid)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("processes outlive what has launched them: %v", left)
			return
		}
	}
}

// Resident returns the resident memory of a process in bytes, 0 if it cannot be
// told.
func Resident(pid int) int64 {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}
