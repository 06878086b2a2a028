//go:build unix

package upstream

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Guard sees to it that nothing a child has started outlives haldir: one for all the
// upstreams of a process. When haldir dies without a word (kill -9, the system being
// out of memory), a shell kills what is left: it waits for the end of a pipe whose
// other end haldir alone holds, and knows from it the process groups of the children.
//
// On Linux one that adopts also knows of processes that have left their group: haldir
// looks for them every second, among what its children have started and among orphans,
// which fall to it (prctl(2), PR_SET_CHILD_SUBREAPER). One that has left its group
// within the last second before haldir is killed is out of reach; so is, on other
// systems, every one that has.
//
// Make it with [NewGuard]; it is safe for concurrent use.
type Guard struct {
	adopts bool

	mu     sync.Mutex
	shell  *exec.Cmd // nil before the first child, and where there is no shell
	hold   *os.File
	ours   map[int]struct{} // processes that haldir has started itself
	groups map[int]struct{} // of the children
	strays []int            // orphans that have fallen to haldir
	others []int            // that children and strays have started
	told   string
	stop   chan struct{} // ends the watch; nil while there is none
	wg     sync.WaitGroup
}

// NewGuard makes a guard; nothing is started before the first child. One that adopts
// takes every process that falls to haldir for a stray, so nothing else in this
// process may start any.
func NewGuard(adopts bool) *Guard {
	g := &Guard{adopts: adopts && becomeReaper(), ours: map[int]struct{}{}, groups: map[int]struct{}{}}
	for _, pid := range fallen() { // of whoever became haldir by exec: they are no concern of its
		g.ours[pid] = struct{}{}
		for _, p := range below(pid) {
			g.ours[p] = struct{}{}
		}
	}
	return g
}

const guardScript = `t=; while read -r l; do t=$l; done; [ -z "$t" ] || kill -s KILL -- $t`

// start starts a child in a process group of its own.
func (g *Guard) start(child *exec.Cmd) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	child.SysProcAttr = attributes()
	if err := child.Start(); err != nil {
		return err
	}
	g.ours[child.Process.Pid], g.groups[child.Process.Pid] = struct{}{}, struct{}{}
	if g.shell == nil {
		g.hire()
	}
	g.tell()
	if g.adopts && g.stop == nil {
		stop := make(chan struct{})
		g.stop = stop
		g.wg.Go(func() { g.watch(stop) })
	}
	return nil
}

// hire starts the shell. Without one it does without.
func (g *Guard) hire() {
	r, w, err := os.Pipe()
	if err != nil {
		return
	}
	defer func() { _ = r.Close() }()                                    // the shell has its own
	shell := exec.Command("/bin/sh", "-c", guardScript, "haldir-guard") //nolint:noctx // ended by Close
	shell.Env, shell.Stdin, shell.SysProcAttr = []string{}, r, &syscall.SysProcAttr{Setpgid: true}
	if shell.Start() != nil {
		_ = w.Close()
		return
	}
	g.shell, g.hold = shell, w
	g.ours[shell.Process.Pid] = struct{}{}
}

// tell tells the shell whom to kill. The lock is held.
func (g *Guard) tell() {
	if g.hold == nil {
		return
	}
	var targets []string
	for pid := range g.groups {
		targets = append(targets, fmt.Sprint(-pid))
	}
	for _, pid := range slices.Concat(g.strays, g.others) {
		targets = append(targets, fmt.Sprint(pid))
	}
	slices.Sort(targets)
	if line := strings.Join(targets, " ") + "\n"; line != g.told {
		if _, err := g.hold.WriteString(line); err == nil {
			g.told = line
		}
	}
}

// release forgets a child that is gone: the number of its group may be another's soon.
func (g *Guard) release(pid int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.ours, pid)
	delete(g.groups, pid)
	g.tell()
}

// look finds the strays, and buries those that have died. The lock is held.
func (g *Guard) look() {
	g.strays, g.others = g.strays[:0], g.others[:0]
	for _, pid := range fallen() {
		_, own := g.ours[pid]
		if !own && bury(pid) {
			continue
		}
		if !own {
			g.strays = append(g.strays, pid)
		} else if _, child := g.groups[pid]; !child {
			continue // not what an upstream has started
		}
		g.others = append(g.others, below(pid)...)
	}
}

// watchEvery is how often the guard looks for strays.
const watchEvery = time.Second

func (g *Guard) watch(stop <-chan struct{}) {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-stop:
			return
		}
		g.Look()
	}
}

// Look finds out at once what the guard would within a second. It is for the moment
// before the children are ended: what they leave behind is then known even if haldir
// has no time left to see to it.
func (g *Guard) Look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.adopts {
		g.look()
		g.tell()
	}
}

// strayGrace bounds how long Close waits for strays to be gone.
const strayGrace = 200 * time.Millisecond

// Close kills the strays, with all that falls to haldir by their death, and dismisses
// the shell. The children are gone by then.
func (g *Guard) Close() {
	g.mu.Lock()
	if g.stop != nil {
		close(g.stop)
		g.stop = nil
	}
	g.mu.Unlock()
	g.wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	for end := time.Now().Add(strayGrace); g.adopts; time.Sleep(5 * time.Millisecond) {
		g.look()
		for _, pid := range g.strays {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it is gone, or it goes
		}
		if len(g.strays) == 0 || time.Now().After(end) {
			break
		}
	}
	if g.shell != nil {
		_ = g.shell.Process.Kill()
		_ = g.shell.Wait()
		_ = g.hold.Close()
		delete(g.ours, g.shell.Process.Pid)
		g.shell, g.hold, g.told = nil, nil, ""
	}
}
