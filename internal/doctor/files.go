package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/internal/files"
	"github.com/haldir-mcp/haldir/internal/replace"
)

// Space below which the disk is nearly full, and what a call needs of it, in bytes: with a ledger that
// is there it was seen to pass down to 12 KiB, and to take 60 KiB where it makes one.
const (
	diskLow = 64 << 20
	toCall  = 16 << 10
	toBegin = 64 << 10
)

// filesLow is below how many files the file system has nearly no room for more. Each process makes
// one, and the first a dozen.
const filesLow = 64

// Files looks at files as one user of one system.
type Files struct {
	Quote func(string) string // a text as a shell takes it for one word
	// Free is how much can be written to the file system of a directory, if that is known.
	Free func(dir string) (int64, bool)
	// Windows says that chmod, chown and mv are no commands here.
	Windows bool
}

// elsewhere is what always helps where a state directory cannot be used.
const elsewhere = "name another directory with --state-dir, or HALDIR_STATE_DIR"

// notOurs is for a directory in which nothing is seen of haldir's.
const notOurs = "if it is haldir's, though this user sees no haldir.db in it, give it to this user alone; or " + elsewhere

// State looks at the state directory and what is in it. One that is there and has nothing of
// haldir's may have been named by mistake, and be the system's: it is not to be given away.
func (f Files) State(dir string) []Finding {
	if at, err := filepath.EvalSymlinks(dir); err == nil {
		dir = at // chown -R of a link changes the link alone
	}
	found := f.state(dir)
	if _, err := os.Stat(dir); err == nil && !ours(dir) {
		for i := range found {
			found[i] = found[i].inWords(notOurs)
		}
	}
	return append(found, f.over(dir)...)
}

// ours reports whether a directory has what a haldir makes that has recorded something in it. The
// locks are no sign: to look for a ledger makes them.
func ours(dir string) bool {
	return slices.ContainsFunc([]string{"haldir.db", "haldir.head"}, func(name string) bool {
		_, err := os.Lstat(filepath.Join(dir, name))
		return err == nil
	})
}

func (f Files) state(dir string) (found []Finding) {
	add := func(x Finding) { found = append(found, x) }
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return f.absent(dir)
	}
	if err == nil && !info.IsDir() {
		err = errors.New("it is no directory")
	}
	if err != nil {
		add(New(StateUnusable, Failure, "state", Fix{Text: elsewhere}, "%s cannot be used: %v", dir, err))
		return found
	}
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		x := New(StateMode, Failure, "state", f.give(privateDir, dir), "%s is open to others (mode %04o)", dir, mode)
		if !theirs(info) {
			x.Mend = &Mend{fmt.Sprintf("chmod 700 %s (it is %04o)", dir, mode), func() error { return os.Chmod(dir, 0o700) }} //nolint:gosec // a directory
		}
		add(x)
	}
	err = access(dir, toUse)
	other, who := foreign(info)
	switch {
	case errors.Is(err, fs.ErrPermission):
		add(New(StateUnusable, Failure, "state", f.give(privateDir, dir), "nothing can be written in %s: %v", dir, err))
	case err != nil:
		add(New(StateUnusable, Failure, "state", Fix{Text: "make its file system writable, or " + elsewhere}, "nothing can be written in %s: %v", dir, err))
		return append(found, f.open(dir)...) // how much room there is, is all one
	default:
		found = append(found, f.denied(dir)...)
		if other {
			add(New(StateOwner, Warning, "state", f.owner(info, dir), "%s is of %s, and haldir runs as another user", dir, who))
		}
	}
	found = append(found, f.open(dir)...)
	return append(found, f.disk(dir)...)
}

// owner is what helps where this user and the owner of a state directory get in each other's way.
func (f Files) owner(info fs.FileInfo, dir string) Fix {
	const be = "run haldir as its owner"
	if !theirs(info) || f.Windows {
		return Fix{Text: be}
	}
	return Do(be+", or give it to this user: %s", f.give(privateDir, dir).Commands[0])
}

// absent looks whether a state directory that is not there can be made.
func (f Files) absent(dir string) []Finding {
	at := nearest(dir)
	info, err := os.Stat(at)
	if err == nil {
		err = access(at, toMake)
	}
	fix := Fix{Text: "make its file system writable, or " + elsewhere}
	switch {
	case err == nil:
		return append([]Finding{New(StateNone, Note, "state", Fix{}, "%s is not there yet", dir)}, f.disk(at)...)
	case info == nil:
		fix, err = Fix{Text: elsewhere}, fmt.Errorf("%s is a link that leads nowhere", at)
		if to, unknown := replace.Follow(at); unknown == nil {
			fix = f.run("make what the link leads to", "mkdir -p -m 700 "+f.Quote(to))
		}
	case errors.Is(err, fs.ErrPermission) && theirs(info):
		fix = Do("make it for this user: %s; or "+elsewhere, "sudo install -d -m 700 -o "+f.Quote(self())+" "+f.Quote(dir))
	case errors.Is(err, fs.ErrPermission):
		fix = f.give(usable, at)
	}
	return []Finding{New(StateUnusable, Failure, "state", fix, "%s is not there, and cannot be made in %s: %v", dir, at, err)}
}

// kept is a file of the state directory that haldir opens.
type kept struct {
	pattern string
	what    uint32 // it does with it
	vital   bool   // no call passes without
}

var keeps = []kept{
	{"haldir.db", toRead | toWrite, true},
	{"haldir.lock", toRead, true},
	{"haldir.turn", toRead, true},
	{"haldir.head", toRead, true},
	{"procs", toUse, true},
	{"haldir.head", toWrite, false},
	{"checkpoints.log", toRead | toWrite, false},
	{"checkpoint.key", toRead, false},
	{"secrets.*", toRead, false},
	{"init.lock", toRead, false},
	{"locks", toUse, false},
	{"locks/*", toRead, false},
	{"watchers", toUse, false},
	{"procs/*", toRead | toWrite, false}, // who cannot be asked counts as alive
	{"watchers/*", toRead | toWrite, false},
	{"haldir.bell", toRead | toWrite, false},
	{"haldir.compact", toRead, false},
	{"haldir.ship-*", toRead, false},
	{"haldir.*.pid", toRead | toWrite, false}, // of the one before it would name the wrong process
}

// denied finds what in the state directory this user may not use, and what is no such thing.
func (f Files) denied(dir string) (found []Finding) {
	var vital, others, odd []string
	for _, k := range keeps {
		list, _ := filepath.Glob(filepath.Join(escaped(dir), k.pattern)) // the pattern is sound
		for _, path := range list {
			info, err := os.Stat(path)
			if err == nil {
				err = access(path, k.what)
			}
			switch {
			case slices.Contains(vital, path) || slices.Contains(odd, path):
			case info != nil && info.Mode().Type() != k.kind():
				odd = append(odd, path)
				found = append(found, f.odd(k, path, dir))
			case !errors.Is(err, fs.ErrPermission):
			case leads(path) != "":
				found = append(found, k.astray(path))
			case k.vital:
				vital = append(vital, path)
			default:
				others = append(others, path)
			}
		}
	}
	if len(vital) > 0 {
		found = append(found, New(StateUnusable, Failure, "state", f.give(usable, vital...), "this user has no right to use %s", some(described(vital))))
	}
	if len(others) > 0 {
		found = append(found, New(StateFileAccess, Warning, "state", f.give(usable, others...), "this user has no right to use %s", some(described(others))))
	}
	return found
}

// kind is what it is.
func (k kept) kind() fs.FileMode {
	if k.what == toUse {
		return fs.ModeDir
	}
	return 0
}

// grave is what it is if it cannot be used.
func (k kept) grave() (ID, Severity) {
	if k.vital {
		return StateUnusable, Failure
	}
	return StateFileAccess, Warning
}

// astray is said of a link to what this user may not use. A link leads anywhere, so there is no
// command.
func (k kept) astray(path string) Finding {
	id, severity := k.grave()
	return New(id, severity, "state", Fix{Text: "look at where it leads, and give this user what is haldir's"}, "%s leads to %s, which this user has no right to use", path, leads(path))
}

// leads is where a path in the state directory, whose own path has no links, leads by one; "" if
// there is none.
func leads(path string) string {
	if to, err := filepath.EvalSymlinks(path); err == nil && to != path {
		return to
	}
	return ""
}

// odd is said of what is not what haldir makes there.
func (f Files) odd(k kept, path, dir string) Finding {
	kind := "no file"
	id, severity := k.grave()
	if k.what == toUse {
		kind = "no directory"
	}
	return New(id, severity, "state", f.run("set it aside, and look again", f.aside(path, dir)), "%s is %s", path, kind)
}

// aside is the command that moves what is in the way into a directory, under a name that is free
// and that is none of haldir's.
func (f Files) aside(path, dir string) string {
	name := filepath.Join(dir, "aside-"+strings.TrimPrefix(filepath.Base(path), "."))
	to := name
	for i := 2; ; i++ {
		if _, err := os.Lstat(to); err != nil {
			return "mv -n " + f.Quote(path) + " " + f.Quote(to)
		}
		to = fmt.Sprintf("%s-%d", name, i)
	}
}

// described says of files whose they are and how open.
func described(paths []string) []string {
	out := make([]string, len(paths))
	for i, path := range paths {
		out[i] = path
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		out[i] += fmt.Sprintf(" (mode %04o)", info.Mode().Perm())
		if other, who := foreign(info); other {
			out[i] = fmt.Sprintf("%s (mode %04o, of %s)", path, info.Mode().Perm(), who)
		}
	}
	return out
}

// over finds a directory over the state directory in which everybody can put another in its place.
func (f Files) over(dir string) []Finding {
	at, err := filepath.EvalSymlinks(dir)
	if err == nil {
		at, err = filepath.Abs(at)
	}
	if err != nil || runtime.GOOS == "windows" {
		return nil
	}
	for up := filepath.Dir(at); up != at; at, up = up, filepath.Dir(up) {
		info, err := os.Stat(up)
		if err == nil && info.Mode()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
			return []Finding{New(StateFileMode, Warning, "state", f.give(notByAll, up), "in %s everybody (mode %04o) can put another %s in its place", up, info.Mode().Perm(), at)}
		}
	}
	return nil
}

// made are the names of all that haldir makes in the state directory. What else is there is a
// person's own.
var made = []string{"haldir.*", "checkpoint.key*", "checkpoints.log*", "secrets.*", "salvaged.*", "init.lock", "locks/*", "procs/*", "watchers/*"}

// open finds the files of the state directory that others can read or write.
func (f Files) open(dir string) (found []Finding) {
	if runtime.GOOS == "windows" {
		return nil
	}
	var paths, own []string
	for _, pattern := range made {
		list, _ := filepath.Glob(filepath.Join(escaped(dir), pattern)) // the pattern is sound
		for _, path := range list {
			info, err := os.Stat(path)
			if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o077 == 0 {
				continue
			}
			if to := leads(path); to != "" { // anywhere: no command, and no word of others than the ledger
				if filepath.Base(path) == "haldir.db" {
					found = append(found, New(StateFileMode, Warning, "state", Fix{Text: "look at where it leads, and close what is haldir's to others"},
						"%s leads to %s, to which others have rights (mode %04o)", path, to, info.Mode().Perm()))
				}
				continue
			}
			if paths = append(paths, path); !theirs(info) {
				own = append(own, path)
			}
		}
	}
	if len(paths) == 0 {
		return found
	}
	x := New(StateFileMode, Warning, "state", f.give(private, paths...), "%s: others have rights to %d of its files: %s", dir, len(paths), some(described(paths)))
	if len(own) > 0 {
		x.Mend = &Mend{"chmod 600 " + some(described(own)), func() error { return closeAll(own) }}
	}
	return append(found, x)
}

// closeAll closes files to others, but what has become a link since they were looked at.
func closeAll(paths []string) (err error) {
	for _, p := range paths {
		if leads(p) == "" {
			err = errors.Join(err, os.Chmod(p, 0o600))
		}
	}
	return err
}

// escaped is a path as filepath.Glob takes it for itself. On Windows it has no escape.
func escaped(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

func (f Files) disk(dir string) []Finding {
	free, known := f.Free(dir)
	move := Fix{Text: "make room on the file system of " + dir + ", or name another directory with --state-dir"}
	files, counted := inodes(dir)
	needs := int64(toCall)
	if !ours(dir) {
		needs = toBegin
	}
	switch {
	case counted && files == 0:
		return []Finding{New(DiskFull, Failure, "state", move, "the file system of %s is full: it has room for no more files", dir)}
	case counted && files < filesLow && (!known || free >= needs):
		return []Finding{New(DiskLow, Warning, "state", move, "the file system of %s is nearly full: it has room for %d more files", dir, files)}
	case !known || free >= diskLow:
		return nil
	case free < needs:
		return []Finding{New(DiskFull, Failure, "state", move, "the file system of %s is full: %d KiB are free", dir, free>>10)}
	case free < 1<<20:
		return []Finding{New(DiskLow, Warning, "state", move, "the file system of %s is nearly full: %d KiB are free", dir, free>>10)}
	}
	return []Finding{New(DiskLow, Warning, "state", move, "the file system of %s is nearly full: %d MiB are free", dir, free>>20)}
}

// Config looks at who can write the config, at path or by its directory, or by that of what a
// link at path leads to.
func (f Files) Config(path string) (found []Finding) {
	if runtime.GOOS == "windows" || path == "" {
		return nil
	}
	paths := []string{path, filepath.Dir(path)}
	if to, err := replace.Follow(path); err == nil {
		if !files.Same(filepath.Dir(to), filepath.Dir(path)) {
			paths = append(paths, filepath.Dir(to))
		}
		found = f.lock(filepath.Join(filepath.Dir(to), "."+filepath.Base(to)+".lock"))
	}
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			continue // that has been said
		}
		if other, who := foreign(info); other && !ofRoot(info) {
			fix := Fix{Text: "run haldir as that user, or give it to root"}
			switch {
			case theirs(info) && (info.IsDir() || !mine(p)): // it may be their home, or another program's
				fix = Fix{Text: "run haldir as that user, or copy the config to a directory of your own"}
			case theirs(info):
				fix = Run("sudo chown " + f.Quote(self()) + " " + f.Quote(p))
			}
			found = append(found, New(ConfigMode, Warning, "config", fix, "%s is of %s, who can write it", p, who))
		}
		found = append(found, f.writers(p, info)...)
	}
	return found
}

// lock looks at the file by whose lock changes of the config wait for each other. It may be gone.
func (f Files) lock(path string) []Finding {
	info, err := os.Stat(path)
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		return []Finding{New(ConfigLock, Warning, "config", Run(f.aside(path, filepath.Dir(path))), "%s is no file", path)}
	case access(path, toRead) != nil:
		return []Finding{New(ConfigLock, Warning, "config", f.give(usable, path), "this user has no right to use %s", described([]string{path})[0])}
	}
	return nil
}

// writers finds who can write the config by the mode of a file, or of a directory.
func (f Files) writers(p string, info fs.FileInfo) []Finding {
	mode := info.Mode().Perm()
	if info.IsDir() && info.Mode()&fs.ModeSticky != 0 {
		return nil // nobody can put another file in its place
	}
	severity, who := Warning, "everybody"
	switch {
	case mode&0o002 != 0:
	case mode&0o020 != 0: // often the person's own
		severity, who = Note, "the group"
	default:
		return nil
	}
	x := New(ConfigMode, severity, "config", f.give(unwritable, p), "%s can be written by %s (mode %04o)", p, who, mode)
	if severity == Warning && !theirs(info) { // a team may mean it
		x.Mend = &Mend{fmt.Sprintf("chmod go-w %s (it is %04o)", p, mode), func() error { return os.Chmod(p, info.Mode()&^0o022) }}
	}
	return []Finding{x}
}

// Log looks whether the log can be written to.
func (f Files) Log(path string) []Finding {
	if path == "" {
		return nil
	}
	fix, err := f.log(path)
	if err == nil {
		return nil
	}
	return []Finding{New(LogFile, Failure, "config", fix, "log.file: nothing can be written to %s: %v", path, err)}
}

// log says why a log cannot be written, and what helps.
func (f Files) log(path string) (Fix, error) {
	another := Fix{Text: "name another file in log.file, or HALDIR_LOG_FILE"}
	if to, err := replace.Follow(path); err == nil { // what is made is what a link leads to
		path = to
	}
	info, err := os.Stat(path)
	at, dir := path, filepath.Dir(path)
	switch {
	case err == nil && info.IsDir():
		return Fix{Text: "name a file in it, in log.file or HALDIR_LOG_FILE"}, errors.New("it is a directory")
	case err == nil:
		err = access(path, toWrite)
	case errors.Is(err, fs.ErrNotExist):
		if at = nearest(path); at != dir {
			err = errors.New("its directory is not there")
			switch {
			case access(at, toMake) != nil:
				return another, err
			case f.Windows:
				return Fix{Text: "make the directory " + dir}, err
			}
			return Run("mkdir -p " + f.Quote(dir)), err
		}
		err = access(dir, toMake)
	}
	if info, unknown := os.Stat(at); errors.Is(err, fs.ErrPermission) && unknown == nil && (!theirs(info) || !info.IsDir() && mine(at)) {
		return f.give(usable, at), err
	}
	return another, err // a directory of others stays theirs, and what is in it
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
