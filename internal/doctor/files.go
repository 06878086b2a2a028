package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Space below which the disk is nearly, or as good as, full, in bytes. A record takes some
// kilobytes of pages, and a transaction some more.
const (
	diskLow  = 64 << 20
	diskFull = 1 << 20
)

// Files looks at files as one user of one system.
type Files struct {
	Quote func(string) string // a text as a shell takes it for one word
	// Free is how much can be written to the file system of a directory, if that is known.
	Free func(dir string) (int64, bool)
}

// State looks at the state directory and what is in it.
func (f Files) State(dir string) (found []Finding) {
	add := func(x Finding) { found = append(found, x) }
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		add(New(StateNone, Note, "state", Fix{}, "%s is not there yet", dir))
		return append(found, f.disk(above(dir))...)
	}
	if err == nil && !info.IsDir() {
		err = errors.New("it is no directory")
	}
	if err != nil {
		add(New(StateUnusable, Failure, "state", Fix{Text: "name another directory with --state-dir, or HALDIR_STATE_DIR"}, "%s cannot be used: %v", dir, err))
		return found
	}
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		x := New(StateMode, Failure, "state", Run("chmod 700 "+f.Quote(dir)), "%s is open to others (mode %04o)", dir, mode)
		x.Mend = &Mend{fmt.Sprintf("chmod 700 %s (it is %04o)", dir, mode), func() error { return os.Chmod(dir, 0o700) }} //nolint:gosec // a directory
		add(x)
	}
	if other, who := foreign(info); other {
		add(New(StateOwner, Warning, "state", Fix{Text: "run haldir as its owner, or give it to this user with chown -R"}, "%s is of %s, and haldir runs as another user", dir, who))
	}
	if err := writable(dir); err != nil {
		fix := Fix{Text: "make its file system writable, or name another directory with --state-dir"}
		if errors.Is(err, fs.ErrPermission) {
			fix = Run("chmod 700 " + f.Quote(dir))
		}
		add(New(StateUnusable, Failure, "state", fix, "nothing can be written in %s: %v", dir, err))
	}
	found = append(found, f.open(dir)...)
	return append(found, f.disk(dir)...)
}

// above is the nearest directory above that is there.
func above(dir string) string {
	for {
		up := filepath.Dir(dir)
		if _, err := os.Stat(up); err == nil || up == dir {
			return up
		}
		dir = up
	}
}

// open finds the files of the state directory that others can read or write.
func (f Files) open(dir string) []Finding {
	if runtime.GOOS == "windows" {
		return nil
	}
	modes := map[string]fs.FileMode{}
	var paths, quoted []string
	for _, pattern := range []string{"*", "procs/*", "watchers/*"} {
		list, _ := filepath.Glob(filepath.Join(escaped(dir), pattern)) // the pattern is sound
		for _, path := range list {
			info, err := os.Lstat(path)
			if err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
				modes[path] = info.Mode().Perm()
				paths, quoted = append(paths, path), append(quoted, f.Quote(path))
			}
		}
	}
	if len(paths) == 0 {
		return nil
	}
	x := New(StateFileMode, Warning, "state", Run("chmod 600 "+strings.Join(quoted, " ")), "%s: others have rights to %d of its files: %s", dir, len(paths), some(paths))
	x.Mend = &Mend{fmt.Sprintf("chmod 600 %s (it is %04o)", some(paths), modes[paths[0]]), func() (err error) {
		for _, p := range paths {
			err = errors.Join(err, os.Chmod(p, 0o600))
		}
		return err
	}}
	return []Finding{x}
}

// escaped is a path as filepath.Glob takes it for itself. On Windows it has no escape.
func escaped(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

func (f Files) disk(dir string) []Finding {
	free, known := f.Free(dir)
	move := Fix{Text: "make room on the file system of " + dir + ", or name another directory with --state-dir"}
	switch {
	case !known || free >= diskLow:
		return nil
	case free < diskFull:
		return []Finding{New(DiskFull, Failure, "state", move, "the file system of %s is full: %d KiB are free", dir, free>>10)}
	}
	return []Finding{New(DiskLow, Warning, "state", move, "the file system of %s is nearly full: %d MiB are free", dir, free>>20)}
}

// Config looks at who can write the config, at path or by its directory.
func (f Files) Config(path string) (found []Finding) {
	if runtime.GOOS == "windows" || path == "" {
		return nil
	}
	for _, p := range []string{path, filepath.Dir(path)} {
		info, err := os.Stat(p)
		if err != nil {
			continue // that has been said
		}
		mode := info.Mode().Perm()
		if info.IsDir() && info.Mode()&fs.ModeSticky != 0 {
			continue // nobody can put another file in its place
		}
		severity, who := Warning, "everybody"
		switch {
		case mode&0o002 != 0:
		case mode&0o020 != 0: // often the person's own
			severity, who = Note, "the group"
		default:
			continue
		}
		x := New(ConfigMode, severity, "config", Run("chmod go-w "+f.Quote(p)), "%s can be written by %s (mode %04o)", p, who, mode)
		if severity == Warning { // a team may mean it
			x.Mend = &Mend{fmt.Sprintf("chmod go-w %s (it is %04o)", p, mode), func() error { return os.Chmod(p, info.Mode()&^0o022) }}
		}
		found = append(found, x)
	}
	return found
}

// Log looks whether the log can be written to.
func (f Files) Log(path string) []Finding {
	if path == "" {
		return nil
	}
	err := writable(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = writable(filepath.Dir(path))
	}
	if err == nil {
		return nil
	}
	return []Finding{New(LogFile, Failure, "config", Run("mkdir -p "+f.Quote(filepath.Dir(path))), "log.file: nothing can be written to %s: %v", path, err)}
}

// ahead is how much the time by the ledger may be ahead of the clock: several processes, and a
// clock that is set right by a little now and then.
const ahead = 5 * time.Second

// Time compares the time by the ledger with the clock.
func Time(now, wall time.Time, reset string) []Finding {
	d := now.Sub(wall)
	if d <= ahead {
		return nil
	}
	return []Finding{New(Clock, Warning, "clock", Do("if it is the clock that is wrong, set it; if it was once, and is right now: %s", reset),
		"the clock is %v behind the ledger, whose newest time is %s: it is wrong now, or was", d.Round(time.Second), now.Local().Format("2006-01-02 15:04:05"))}
}
