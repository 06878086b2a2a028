package ledger_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// faultCalls are the system calls that concern files and may fail. close is not
// among them: strace would not run it, the kernel frees the descriptor whatever
// it returns.
var faultCalls = []string{
	"openat", "pwrite64", "write", "fdatasync", "fsync", "ftruncate", "flock", "mmap", "renameat", "unlinkat", "mkdirat", "pread64", "read",
	"fstat", "newfstatat", "getdents64",
}

// faultErrors are what a call fails with.
func faultErrors(call string) []string {
	if call == "openat" {
		return []string{"EIO", "ENOSPC", "EMFILE"}
	}
	return []string{"EIO", "ENOSPC"}
}

// fault is a system call of a run that fails: of those that concern known files,
// or of those that concern a file in procs, whose name is known to nobody, the
// number says which call of its thread of all calls of that name.
type fault struct {
	call, errno string
	n           int
	procs       bool
}

func (f fault) String() string {
	if f.procs {
		return fmt.Sprintf("%s %s, the %d. of all", f.call, f.errno, f.n)
	}
	return fmt.Sprintf("%s %s, the %d.", f.call, f.errno, f.n)
}

func stateFiles(dir string) []string {
	var options []string
	for _, name := range []string{
		"", "haldir.db", "haldir.head", "haldir.lock", "haldir.lock.pid", "haldir.turn", "checkpoints.log", "checkpoint.key",
		"checkpoint.key.tmp", "procs",
	} {
		options = append(options, "-P", filepath.Join(dir, name))
	}
	return options
}

var (
	straceLine = regexp.MustCompile(`^(\d+) +(\w+)\((.*)`)
	inProcs    = regexp.MustCompile(`/procs/`)
)

// faults lists what can fail, as a run in which nothing does shows it.
func faults(t *testing.T, calls int) []fault {
	t.Helper()
	dir, log := stateDir(t), filepath.Join(t.TempDir(), "log")
	cmd := strace(t, "steps", stepsConfig{Dir: dir, Calls: calls}, "-y", "-o", log, "-e", "trace="+strings.Join(faultCalls, ","))
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("a run without faults: %v: %s", err, said)
	}
	a := promises(string(said))
	if wrong := append(a.errors, keeps(dir, a)...); len(wrong) > 0 || len(a.attempts) != calls || len(a.settled) < calls/6 {
		t.Fatalf("a run without faults: %d attempts and %d outcomes promised, %q", len(a.attempts), len(a.settled), wrong)
	}
	raw, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	type counter struct{ thread, call string }
	known, all := map[counter]int{}, map[counter]int{}
	most, procs := map[string]int{}, map[fault]bool{}
	for line := range strings.Lines(string(raw)) {
		m := straceLine.FindStringSubmatch(line)
		if m == nil || strings.HasPrefix(m[3], "resumed") {
			continue
		}
		at := counter{m[1], m[2]}
		all[at]++
		switch {
		case !strings.Contains(m[3], dir):
		case inProcs.MatchString(m[3]):
			procs[fault{call: m[2], n: all[at], procs: true}] = true
		default:
			known[at]++
			most[m[2]] = max(most[m[2]], known[at])
		}
	}
	var list []fault
	add := func(f fault) {
		for _, errno := range faultErrors(f.call) {
			f.errno = errno
			list = append(list, f)
		}
	}
	for call, n := range most {
		for i := range n {
			add(fault{call: call, n: i + 1})
		}
	}
	for f := range maps.Keys(procs) {
		add(f)
	}
	slices.SortFunc(list, func(a, b fault) int {
		return strings.Compare(fmt.Sprintf("%s %v %06d %s", a.call, a.procs, a.n, a.errno), fmt.Sprintf("%s %v %06d %s", b.call, b.procs, b.n, b.errno))
	})
	return list
}

// spread takes some of each call's faults, from the first to the last.
func spread(list []fault, each int) []fault {
	kinds := map[string][]fault{}
	var names []string
	for _, f := range list {
		k := fmt.Sprint(f.call, f.procs)
		if kinds[k] == nil {
			names = append(names, k)
		}
		kinds[k] = append(kinds[k], f)
	}
	var some []fault
	for i, k := range names {
		l := kinds[k]
		for j := range min(each, len(l)) {
			some = append(some, l[(j*len(l)/min(each, len(l))+(i+j)%2)%len(l)]) // now this error, now that
		}
	}
	return some
}

// inject runs the worker with a fault and returns what failed, as strace tells
// it, and what is wrong afterwards.
func inject(t *testing.T, root string, i int, f fault, c stepsConfig) (injected, wrong []string) {
	c.Dir = filepath.Join(root, fmt.Sprint(i), "state")
	log := filepath.Join(root, fmt.Sprint(i), "log")
	if err := os.MkdirAll(filepath.Dir(log), 0o700); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(filepath.Dir(log)) }()
	options := []string{"--seccomp-bpf", "-y", "-o", log, "-e", "trace=" + f.call, "-e", fmt.Sprintf("inject=%s:error=%s:when=%d", f.call, f.errno, f.n)}
	if !f.procs {
		options = append(options, stateFiles(c.Dir)...)
	}
	cmd := strace(t, "steps", c, options...)
	var said, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &complaint
	err := cmd.Run()
	raw, _ := os.ReadFile(log)
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, "(INJECTED)") {
			injected = append(injected, strings.ReplaceAll(strings.TrimSpace(line), c.Dir, "…"))
		}
	}
	if err != nil && !f.procs { // a fault in another file may be the end of any program
		wrong = append(wrong, fmt.Sprintf("the worker ended with %v: %.1500s", err, complaint.String()))
	}
	a := promises(said.String())
	// An operation fails by a fault, and when that has passed work goes on.
	if len(a.errors) > len(injected) {
		wrong = append(wrong, fmt.Sprintf("%d operations failed: %q", len(a.errors), a.errors))
	}
	for _, line := range a.errors {
		if strings.Contains(line, "damaged") {
			wrong = append(wrong, "no damage: "+line)
		}
	}
	return injected, append(wrong, keeps(c.Dir, a)...)
}

// Every call of a run that concerns a file fails in turn. Nothing that was
// promised is lost, no limit is overshot, and the chain stays whole.
func TestAnySystemCallMayFail(t *testing.T) {
	each, calls := 4, 20
	switch {
	case soaking:
		each = 1 << 30
	case slowdown > 1:
		each = 1
	}
	list := faults(t, calls)
	some := spread(list, each)
	root := t.TempDir()
	var mu sync.Mutex
	hit, missed := map[string]int{}, 0
	work := make(chan int)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for i := range work {
				injected, wrong := inject(t, root, i, some[i], stepsConfig{Calls: calls})
				mu.Lock()
				if len(injected) == 0 {
					missed++
				}
				for _, line := range injected {
					hit[signature(line)]++
				}
				if len(wrong) > 0 {
					t.Errorf("%v:\n\t%s\n\tafter %s", some[i], strings.Join(wrong, "\n\t"), strings.Join(injected, "\n\t"))
				}
				mu.Unlock()
			}
		})
	}
	for i := range some {
		work <- i
	}
	close(work)
	wg.Wait()
	for _, k := range slices.Sorted(maps.Keys(hit)) {
		t.Logf("%4d × %s", hit[k], k)
	}
	t.Logf("%d of %d possible faults tried, %d runs took another way", len(some), len(list), missed)
	if missed > len(some)/2 {
		t.Errorf("%d of %d faults did not happen", missed, len(some))
	}
}

var idInProcs = regexp.MustCompile(`procs/\w+`)

// signature is a system call and its file.
func signature(line string) string {
	m := straceLine.FindStringSubmatch(line)
	if m == nil {
		_, call, _ := strings.Cut(line, "<... ")
		call, _, _ = strings.Cut(call, " ")
		return call + ", file unknown"
	}
	file := "of another file"
	if i := strings.Index(m[3], "…"); i >= 0 {
		file, _, _ = strings.Cut(m[3][i:], `"`)
		file, _, _ = strings.Cut(file, ">")
	}
	return m[2] + " " + idInProcs.ReplaceAllString(file, "procs/ID")
}
