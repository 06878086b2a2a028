package main

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// unmapBeginnings gives back the pages of the program that no more than its start may have needed,
// a sixth of what a process has in memory. They are as the file has them, and the system maps them
// again where they are touched. What can be written to is left alone. Nothing depends on it, so that
// what fails is not told.
func unmapBeginnings() {
	program, err := os.Stat("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }() // only read from
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// address perms offset dev inode path, see proc_pid_maps(5)
		line := lines.Text()
		fields, slash := strings.Fields(line), strings.IndexByte(line, '/')
		if slash < 0 || len(fields) < 6 || strings.Contains(fields[1], "w") {
			continue
		}
		if info, err := os.Stat(line[slash:]); err != nil || !os.SameFile(info, program) {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		begin, err := strconv.ParseUint(from, 16, 64)
		if err != nil {
			continue
		}
		end, err := strconv.ParseUint(to, 16, 64)
		if err != nil || end <= begin {
			continue
		}
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(begin), uintptr(end-begin), unix.MADV_DONTNEED)
	}
}
