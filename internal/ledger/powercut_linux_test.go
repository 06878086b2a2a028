package ledger_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// A power cut keeps what was synced; of the rest it may keep anything, in parts
// as small as a sector. So strace writes down what a worker writes and syncs, and
// what it promises in between, and that is replayed up to a moment.

const sector = 512

// event is one thing that happened to a file, or a promise.
type event struct {
	what string // create, mkdir, rename, unlink, write, truncate, sync or say
	path string // of the file; said for a promise
	to   string // rename
	at   int64  // write: where; truncate: the size
	data []byte
	full bool // sync: with the metadata
}

// recording reads the output of strace -f -y -xx.
type recording struct {
	events  []event
	offsets map[string]int64  // of descriptors
	open    map[string]string // thread → the call that it has begun
}

var (
	begun    = regexp.MustCompile(`^(\d+) +(\w+\(.*) <unfinished \.\.\.>$`)
	resumed  = regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>(.*)$`)
	finished = regexp.MustCompile(`^(\d+) +(\w+)\((.*)\) += (-?\d+)(<.*>)?( .*)?$`)
)

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b := make([]byte, 0, len(s)/4)
	for len(s) >= 4 && s[:2] == `\x` {
		n, err := strconv.ParseUint(s[2:4], 16, 8)
		if err != nil {
			tb.Fatal(err)
		}
		b, s = append(b, byte(n)), s[4:]
	}
	if s != "" {
		tb.Fatalf("strace wrote %.40q", s)
	}
	return b
}

// descriptor reads one as strace -y shows it.
func descriptor(tb testing.TB, s string) (fd, path string) {
	fd, path, _ = strings.Cut(s, "<")
	path, _, _ = strings.Cut(path, ">")
	if strings.HasPrefix(path, `\x`) {
		path = string(unhex(tb, path))
	}
	return fd, path
}

func quoted(tb testing.TB, s string) []byte {
	tb.Helper()
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		tb.Fatalf("strace wrote %.40q, not the whole of it", s)
	}
	return unhex(tb, s[1:len(s)-1])
}

func (r *recording) line(tb testing.TB, line string) {
	tb.Helper()
	if m := begun.FindStringSubmatch(line); m != nil {
		r.open[m[1]] = m[2]
		// What a worker says is promised when it begins to say so.
		if strings.HasPrefix(m[2], "write(1<") {
			_, arguments, _ := strings.Cut(m[2], "(")
			r.said(tb, strings.Split(arguments, ", ")[1])
		}
		return
	}
	inTwo := false
	if m := resumed.FindStringSubmatch(line); m != nil {
		line, inTwo = m[1]+" "+r.open[m[1]]+m[2], true
	}
	m := finished.FindStringSubmatch(line)
	if m == nil || strings.HasPrefix(m[4], "-") {
		return
	}
	args := strings.Split(m[3], ", ")
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			tb.Fatalf("%v in %.200s", err, line)
		}
		return n
	}
	add := func(e event) { r.events = append(r.events, e) }
	switch m[2] {
	case "openat":
		path, flags := string(quoted(tb, args[1])), args[2]
		r.offsets[m[4]] = 0
		if strings.Contains(flags, "O_CREAT") {
			add(event{what: "create", path: path})
		}
		if strings.Contains(flags, "O_TRUNC") {
			add(event{what: "truncate", path: path})
		}
	case "mkdirat":
		add(event{what: "mkdir", path: string(quoted(tb, args[1]))})
	case "renameat":
		add(event{what: "rename", path: string(quoted(tb, args[1])), to: string(quoted(tb, args[3]))})
	case "unlinkat":
		add(event{what: "unlink", path: string(quoted(tb, args[1]))})
	case "write":
		fd, path := descriptor(tb, args[0])
		if fd == "1" {
			if !inTwo {
				r.said(tb, args[1])
			}
			return
		}
		add(event{what: "write", path: path, at: r.offsets[fd], data: quoted(tb, args[1])[:number(m[4])]})
		r.offsets[fd] += number(m[4])
	case "pwrite64":
		_, path := descriptor(tb, args[0])
		add(event{what: "write", path: path, at: number(args[3]), data: quoted(tb, args[1])[:number(m[4])]})
	case "ftruncate":
		_, path := descriptor(tb, args[0])
		add(event{what: "truncate", path: path, at: number(args[1])})
	case "fsync", "fdatasync":
		_, path := descriptor(tb, args[0])
		add(event{what: "sync", path: path, full: m[2] == "fsync"})
	default:
		tb.Fatalf("a call that is not replayed: %.200s", line)
	}
}

func (r *recording) said(tb testing.TB, data string) {
	r.events = append(r.events, event{what: "say", data: quoted(tb, data)})
}

// record runs the worker and returns what happened.
func record(t *testing.T, dir string, calls int) []event {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	cmd := strace(t, "steps", stepsConfig{Dir: dir, Calls: calls}, "--seccomp-bpf", "-y", "-xx", "-s", "10000000", "-o", log,
		"-e", "trace=openat,mkdirat,renameat,unlinkat,write,pwrite64,ftruncate,fsync,fdatasync",
		"-e", "signal=none")
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	raw, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	r := &recording{offsets: map[string]int64{}, open: map[string]string{}}
	for line := range strings.Lines(string(raw)) {
		r.line(t, strings.TrimSuffix(line, "\n"))
	}
	events := slices.DeleteFunc(r.events, func(e event) bool { return e.what != "say" && e.path != dir && !strings.HasPrefix(e.path, dir+"/") })
	// The recording must be the whole truth: replayed to its end it is what lies
	// on the disk.
	d := &disk{files: map[string]*inode{}}
	for _, e := range events {
		d.happen(e, false)
	}
	for path, f := range d.files {
		want, err := os.ReadFile(path)
		if f.dir {
			continue
		}
		if got := f.after(f.ops); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s has %d bytes, replayed %d; %v", path, len(want), len(got), err)
		}
	}
	if d.files[filepath.Join(dir, "haldir.db")] == nil || d.promised.Len() != len(said) {
		t.Fatalf("of %d bytes that the worker said %d were recorded", len(said), d.promised.Len())
	}
	return events
}

// disk is a state directory of which it is known what is synced.
type disk struct {
	files    map[string]*inode // by their names now
	names    []nameOp          // what happened to names that is not synced
	synced   map[string]*inode // the names that are on disk for sure
	promised bytes.Buffer
}

type inode struct {
	dir    bool
	ops    []fileOp
	synced int // so many of ops are on disk for sure
}

// fileOp is a write, or a truncation if it has no data.
type fileOp struct {
	at   int64
	data []byte
}

// nameOp is a new name for a file, or with none the end of a name.
type nameOp struct {
	path string
	file *inode
	also string // a rename: this name ends at the same time
	old  bool   // something was synced since
}

func (d *disk) happen(e event, ignoreDataSync bool) {
	f := d.files[e.path]
	switch e.what {
	case "say":
		d.promised.Write(e.data)
	case "create", "mkdir":
		if f == nil {
			f = &inode{dir: e.what == "mkdir"}
			d.files[e.path] = f
			d.names = append(d.names, nameOp{path: e.path, file: f})
		}
	case "rename":
		delete(d.files, e.path)
		d.files[e.to] = f
		d.names = append(d.names, nameOp{path: e.to, file: f, also: e.path})
	case "unlink":
		delete(d.files, e.path)
		d.names = append(d.names, nameOp{path: e.path})
	case "write", "truncate":
		f.ops = append(f.ops, fileOp{e.at, e.data})
	case "sync":
		if ignoreDataSync && !e.full {
			return
		}
		f.synced = len(f.ops)
		d.syncNames(e.path, f.dir)
		for i := range d.names {
			d.names[i].old = true
		}
	}
}

// syncNames: the sync of a directory keeps the names in it; that of a file keeps
// at least its own.
func (d *disk) syncNames(path string, dir bool) {
	if d.synced == nil {
		d.synced = map[string]*inode{}
	}
	d.names = slices.DeleteFunc(d.names, func(n nameOp) bool {
		if dir && filepath.Dir(n.path) != path && n.path != path || !dir && n.path != path {
			return false
		}
		n.apply(d.synced)
		return true
	})
}

func (n nameOp) apply(names map[string]*inode) {
	delete(names, n.also)
	if n.file == nil {
		delete(names, n.path)
	} else {
		names[n.path] = n.file
	}
}

// after is a file's content after some operations.
func (f *inode) after(ops []fileOp) []byte {
	var b []byte
	for _, o := range ops {
		b = o.apply(b)
	}
	return b
}

func (o fileOp) apply(b []byte) []byte {
	if o.data == nil {
		if int64(len(b)) > o.at {
			return b[:o.at]
		}
		return append(b, make([]byte, o.at-int64(len(b)))...)
	}
	if grow := o.at + int64(len(o.data)) - int64(len(b)); grow > 0 {
		b = append(b, make([]byte, grow)...)
	}
	copy(b[o.at:], o.data)
	return b
}

// split cuts a write at the borders of sectors.
func (o fileOp) split() []fileOp {
	if len(o.data) == 0 {
		return []fileOp{o}
	}
	var parts []fileOp
	for data, at := o.data, o.at; len(data) > 0; {
		n := min(int64(len(data)), sector-at%sector)
		parts = append(parts, fileOp{at, data[:n]})
		data, at = data[n:], at+n
	}
	return parts
}

// The ways in which a power cut treats what is not synced.
const (
	cutDropped   = "dropped"   // nothing of it is there
	cutKept      = "kept"      // all of it is there, as after kill -9
	cutTorn      = "torn"      // it is there up to a write, and of that some sectors
	cutReordered = "reordered" // any sectors are there
)

var cuts = []string{cutDropped, cutTorn, cutReordered, cutReordered, cutKept}

// cutting says how hard a power cut is.
type cutting struct {
	// names: a new name may be lost even if another file was synced since. That
	// is what POSIX allows, and what file systems do if that sync needed no
	// change of their own records.
	names bool
	// log: only moments in which the log of checkpoints has been added to.
	log bool
	// noDataSync makes fdatasync do nothing, to see that it would be found.
	noDataSync bool
}

// image writes to a directory what a power cut may leave.
func (d *disk) image(tb testing.TB, from, to, how string, c cutting, rng *rand.Rand) {
	tb.Helper()
	names := map[string]*inode{}
	for k, v := range d.synced {
		names[k] = v
	}
	// What happened to names is written in its order, but may end anywhere.
	keep := len(d.names)
	switch how {
	case cutDropped:
		keep = 0
	case cutTorn, cutReordered:
		keep = rng.IntN(len(d.names) + 1)
	}
	for i, n := range d.names {
		if i < keep || n.old && !c.names {
			n.apply(names)
		}
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		tb.Fatal(err)
	}
	paths := make([]string, 0, len(names))
	for path := range names {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range paths {
		f := names[path]
		place := filepath.Join(to, strings.TrimPrefix(path, from))
		if f.dir {
			if err := os.MkdirAll(place, 0o700); err != nil {
				tb.Fatal(err)
			}
			continue
		}
		content := f.after(f.ops[:f.synced])
		pending := f.ops[f.synced:]
		switch {
		case how == cutKept:
			content = f.after(f.ops)
		case how == cutTorn && len(pending) > 0:
			n := rng.IntN(len(pending))
			for _, o := range pending[:n] {
				content = o.apply(content)
			}
			for _, part := range pending[n].split() {
				if rng.IntN(2) == 0 {
					content = part.apply(content)
				}
			}
		case how == cutReordered:
			for _, o := range pending {
				for _, part := range o.split() {
					if rng.IntN(2) == 0 {
						content = part.apply(content)
					}
				}
			}
		}
		if err := os.MkdirAll(filepath.Dir(place), 0o700); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(place, content, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
}

func init() { workers["images"] = checkImages }

// checkImages is a worker, because bbolt's own check may end the process. It
// reads the name of an image a line; what was promised is in a file beside it.
func checkImages([]byte) error {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		dir := in.Text()
		said, err := os.ReadFile(dir + ".said")
		if err != nil {
			return err
		}
		wrong := keeps(dir, promises(string(said)))
		if len(wrong) == 0 {
			wrong = checked(dir)
		}
		if err := json.NewEncoder(os.Stdout).Encode(wrong); err != nil {
			return err
		}
	}
	return nil
}

// checked has bbolt check a database.
func checked(dir string) (wrong []string) {
	db, err := bolt.Open(filepath.Join(dir, "haldir.db"), 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return []string{err.Error()}
	}
	_ = db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			wrong = append(wrong, err.Error())
		}
		return nil
	})
	if err := db.Close(); err != nil {
		wrong = append(wrong, err.Error())
	}
	return wrong
}

// checker is the parent's end of a worker that checks images.
type checker struct{ p *process }

func (c *checker) check(t *testing.T, dir, said string) []string {
	t.Helper()
	if err := os.WriteFile(dir+".said", []byte(said), 0o600); err != nil {
		t.Fatal(err)
	}
	if c.p == nil {
		c.p = spawn(t, "images", nil)
	}
	c.p.say(dir)
	tooLong := time.AfterFunc(20*time.Second*slowdown, func() { _ = c.p.cmd.Process.Kill() })
	line, alive := c.p.line()
	if tooLong.Stop(); !alive {
		err := c.p.wait()
		first, _, _ := strings.Cut(c.p.errors.String(), "\n")
		c.p = nil
		return []string{fmt.Sprintf("it ended the process: %v: %s", err, first)}
	}
	var wrong []string
	if err := json.Unmarshal([]byte(line), &wrong); err != nil {
		t.Fatal(err)
	}
	return wrong
}

// powerCuts makes images and returns those that are wrong.
func powerCuts(t *testing.T, from string, events []event, images int, c cutting, rng *rand.Rand) (bad []string) {
	t.Helper()
	var moments []int
	for len(moments) < images {
		i := rng.IntN(len(events) + 1)
		// There are few moments in which the log may be torn.
		if c.log && (i == 0 || filepath.Base(events[i-1].path) != "checkpoints.log") {
			continue
		}
		moments = append(moments, i)
	}
	slices.Sort(moments)
	d := &disk{files: map[string]*inode{}}
	happened, root := 0, t.TempDir()
	var with checker
	for i, moment := range moments {
		for ; happened < moment; happened++ {
			d.happen(events[happened], c.noDataSync)
		}
		how := cuts[i%len(cuts)]
		to := filepath.Join(root, fmt.Sprint(i))
		d.image(t, from, to, how, c, rng)
		if wrong := with.check(t, to, d.promised.String()); len(wrong) > 0 {
			bad = append(bad, fmt.Sprintf("%s after %d of %d events:\n\t\t%s", how, moment, len(events), strings.Join(wrong, "\n\t\t")))
		}
		_ = os.RemoveAll(to)
	}
	return bad
}

func cutPower(t *testing.T, c cutting) {
	t.Helper()
	images, calls := 60, 24
	switch {
	case soaking:
		images, calls = 600, 60
	case slowdown > 1:
		images = 20
	}
	dir := stateDir(t)
	events := record(t, dir, calls)
	seed := uint64(time.Now().UnixNano())
	bad := powerCuts(t, dir, events, images, c, rand.New(rand.NewPCG(seed, 0)))
	t.Logf("seed %d: %d images of %d events, %d unsound", seed, images, len(events), len(bad))
	for _, b := range bad[:min(5, len(bad))] {
		t.Error(b)
	}
	// The same without the syncs of the data, to see that this would be seen.
	c.noDataSync = true
	control := powerCuts(t, dir, events, 30, c, rand.New(rand.NewPCG(seed, 1)))
	if len(control) == 0 {
		t.Error("without syncing nothing was found either")
	}
	t.Logf("without fdatasync: %d of 30 unsound", len(control))
}

// Whatever a power cut does to what was not synced, the file opens, the chain is
// whole and every promise is kept.
func TestAPowerCutLosesNothingThatWasPromised(t *testing.T) { cutPower(t, cutting{}) }

// Nor does it if a name is lost although something else was synced since.
func TestAPowerCutMayForgetANameThatWasNotSynced(t *testing.T) { cutPower(t, cutting{names: true}) }

// A line of the log of checkpoints that lies in two sectors may lose the first
// of them, and still end with a line break. That is no damage.
func TestAPowerCutMayTearTheLogOfCheckpoints(t *testing.T) { cutPower(t, cutting{log: true}) }
