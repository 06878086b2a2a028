package upstream

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// becomeReaper has orphans among haldir's descendants fall to it.
func becomeReaper() bool {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == nil
}

// childrenOf lists the processes whose parent a process is (proc(5), children).
func childrenOf(process string) (pids []int) {
	lists, _ := filepath.Glob("/proc/" + process + "/task/*/children") // without /proc there are none
	for _, l := range lists {
		raw, err := os.ReadFile(l)
		if err != nil {
			continue // the thread has ended
		}
		for f := range strings.FieldsSeq(string(raw)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// fallen lists the children of haldir, its own and those that have fallen to it.
func fallen() []int { return childrenOf("self") }

// below lists all that a process has started, and what those have.
func below(pid int) (pids []int) {
	for _, c := range childrenOf(strconv.Itoa(pid)) {
		pids = append(append(pids, c), below(c)...)
	}
	return pids
}

// inodeTime is when a file was changed last, in content or in name.
func inodeTime(info fs.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Ctim.Unix()).UTC()
	}
	return time.Time{}
}

// bury reports whether a child has died, and takes its status, which nobody wants.
func bury(pid int) bool {
	got, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
	return err != nil || got == pid
}
