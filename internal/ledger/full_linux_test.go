package ledger_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/policy"
)

func init() { workers["full"], workers["unwritable"] = fullDisk, unwritable }

// scenario is what a worker does that may not fail the test by itself: it
// prints what went wrong.
type scenario struct{ failed bool }

func (s *scenario) errorf(format string, args ...any) {
	s.failed = true
	fmt.Printf("wrong: "+format+"\n", args...)
}

// ballast fills a file system and leaves so many bytes free.
func ballast(dir string, left int64) (func(), error) {
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	size := int64(0)
	for block := make([]byte, 64<<10); ; {
		n, err := f.Write(block)
		size += int64(n)
		if errors.Is(err, syscall.ENOSPC) {
			if len(block) == 4096 {
				break
			}
			block = block[:4096]
		} else if err != nil {
			return nil, err
		}
	}
	if err := errors.Join(f.Truncate(size-left), f.Close()); err != nil {
		return nil, err
	}
	return func() { _ = os.Remove(path) }, nil
}

// fullDisk mounts a small file system of its own, which goes with it, and fills
// it under a ledger.
func fullDisk(raw []byte) error {
	var c struct{ Root, What string }
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	size := "size=1m,mode=0700"
	if c.What == "compact" {
		size = "size=24m,mode=0700"
	}
	if err := syscall.Mount("tmpfs", c.Root, "tmpfs", 0, size); err != nil {
		fmt.Println("skip: mount:", err)
		return nil
	}
	fmt.Println("mounted")
	dir := filepath.Join(c.Root, "state")
	s := &scenario{}
	switch c.What {
	case "reserve":
		s.reserve(c.Root, dir)
	case "create":
		s.create(c.Root, dir)
	case "compact":
		s.compact(c.Root, dir)
	case "approvals":
		s.approvals(c.Root, dir)
	case "frozen":
		s.frozen(c.Root, dir)
	}
	if s.failed {
		return errors.New("failed")
	}
	return nil
}

func (s *scenario) open(dir string) *ledger.Ledger {
	l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		s.errorf("Open: %v", err)
	}
	return l
}

// shop are the rules of the same name.
func (s *scenario) shop() *policy.Engine {
	e, err := policy.Compile(shop())
	if err != nil {
		s.errorf("%v", err)
	}
	return e
}

func (s *scenario) reserve(root, dir string) {
	e := s.shop()
	ctx := context.Background()
	l := s.open(dir)
	var owed []ledger.Ticket
	for range 5 {
		ticket, _, err := l.Reserve(ctx, pay("ses_a", "1"), e)
		if err != nil {
			s.errorf("Reserve with space: %v", err)
			return
		}
		owed = append(owed, ticket)
	}
	empty, err := ballast(root, 0)
	if err != nil {
		s.errorf("%v", err)
		return
	}
	// There are free pages inside the file, so some calls may still be recorded;
	// large ones use them up.
	large := call("ses_a", "look", `{"text":"`+strings.Repeat("x", 7000)+`"}`)
	refused := 0
	for range 50 {
		ticket, d, err := l.Reserve(ctx, large, e)
		if err == nil {
			if d.Verdict == policy.Allow {
				owed = append(owed, ticket)
			}
			continue
		}
		refused++
		if refused == 1 {
			fmt.Println("refused with:", err)
		}
		if d.Verdict == policy.Allow {
			s.errorf("a call that could not be recorded was let through")
		}
		if errors.Is(err, ledger.ErrDamaged) || !errors.Is(err, syscall.ENOSPC) {
			s.errorf("a full disk is told as %v", err)
			return
		}
	}
	if refused == 0 {
		s.errorf("the disk was never full")
	}
	fmt.Println("admitted before it was full:", len(owed), "refused:", refused)
	for _, ticket := range owed {
		l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	}
	// Reading works, and another process can open the file, while it is full.
	if _, err := l.Verify(ctx, nil); err != nil {
		s.errorf("Verify on a full disk: %v", err)
	}
	other := s.open(dir)
	if _, _, err := other.Find(ctx, audit.Filter{}); err != nil {
		s.errorf("another ledger on the full disk: %v", err)
	}
	if err := other.Close(ctx); err != nil {
		s.errorf("Close of another ledger: %v", err)
	}
	time.Sleep(1500 * time.Millisecond) // at least one more attempt to settle
	empty()
	// Nobody calls anything now; what is owed must come to disk by itself.
	deadline := time.Now().Add(hang)
	watcher := s.open(dir)
	for _, ticket := range owed {
		for {
			en, ok, err := watcher.Entry(ctx, ticket.Seq)
			if err != nil || !ok {
				s.errorf("record %d: %v %v", ticket.Seq, ok, err)
				return
			}
			if en.Status == audit.StatusAllowed {
				break
			}
			if time.Now().After(deadline) {
				s.errorf("call %d is still %s after there was space again", ticket.Seq, en.Status)
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	if _, d, err := l.Reserve(ctx, pay("ses_a", "1"), e); err != nil || d.Verdict != policy.Allow {
		s.errorf("Reserve when there was space again: %v %v", d.Verdict, err)
	}
	if _, err := l.Verify(ctx, nil); err != nil {
		s.errorf("Verify: %v", err)
	}
	// A reservation that failed holds nothing.
	if sp, _, err := l.Spent(ctx, attempt("ses_a").Use, e); err != nil || sp.Calls != int64(len(owed))+1 || sp.Total != 6*policy.USD {
		s.errorf("%d calls and %s are spent, want %d and $6.00; %v", sp.Calls, sp.Total, len(owed)+1, err)
	}
	if err := errors.Join(l.Close(ctx), watcher.Close(ctx)); err != nil {
		s.errorf("Close: %v", err)
	}
}

// create begins on a disk that is full already, to some page or other.
func (s *scenario) create(root, dir string) {
	e := s.shop()
	for pages := range int64(16) {
		dir := fmt.Sprint(dir, pages)
		empty, err := ballast(root, pages*4096)
		if err != nil {
			s.errorf("%v", err)
			return
		}
		l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop()})
		if err != nil { // not even a directory
			if !errors.Is(err, syscall.ENOSPC) {
				s.errorf("%d pages: Open: %v", pages, err)
			}
			empty()
			if l = s.open(dir); l == nil {
				return
			}
		} else {
			_, _, err = l.Reserve(context.Background(), pay("ses_a", "1"), e)
			if err != nil && (errors.Is(err, ledger.ErrDamaged) || !errors.Is(err, syscall.ENOSPC)) {
				s.errorf("%d pages: a full disk is told as %v", pages, err)
			}
			fmt.Printf("%d pages: %v\n", pages, err)
			empty()
		}
		if _, d, err := l.Reserve(context.Background(), pay("ses_a", "1"), e); err != nil || d.Verdict != policy.Allow {
			s.errorf("%d pages: when there was space again: %v %v", pages, d.Verdict, err)
		}
		if _, err := l.Verify(context.Background(), nil); err != nil {
			s.errorf("%d pages: Verify: %v", pages, err)
		}
		_ = l.Close(context.Background())
		_ = os.RemoveAll(dir)
	}
}

// compact prunes and compacts on a disk that is full, or becomes full on the way.
func (s *scenario) compact(root, dir string) {
	e, err := policy.Compile(rulesets["figures"]())
	if err != nil {
		s.errorf("%v", err)
		return
	}
	ctx, clock := context.Background(), newClock()
	l, err := ledger.Open(ledger.Options{Dir: dir, Clock: clock.now, Logger: zerolog.Nop(), Retention: &ledger.Retention{Place: dir, Keep: 2 * day, Last: 100}})
	if err != nil {
		s.errorf("%v", err)
		return
	}
	calls := func(n int) (failed int) {
		text := strings.Repeat("x", 2000)
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				for range n / 20 {
					ticket, d, err := l.Reserve(ctx, call("ses_a", "look", `{"text":"`+text+`"}`), e)
					switch {
					case err == nil && d.Verdict == policy.Allow:
						l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
					case errors.Is(err, syscall.ENOSPC):
						mu.Lock()
						failed++
						mu.Unlock()
					default:
						s.errorf("Reserve: %v %v", d.Verdict, err)
					}
				}
			})
		}
		wg.Wait()
		return failed
	}
	size := func() int64 {
		info, err := os.Stat(filepath.Join(dir, "haldir.db"))
		if err != nil {
			s.errorf("%v", err)
			return 0
		}
		return info.Size()
	}
	sound := func(when string) (pruned uint64) {
		v, err := l.Verify(ctx, nil)
		if err != nil {
			s.errorf("Verify %s: %v", when, err)
			return 0
		}
		if _, err := os.Stat(filepath.Join(dir, "haldir.db.compact")); !errors.Is(err, os.ErrNotExist) {
			s.errorf("%s something is left of the work: %v", when, err)
		}
		return v.Pruned()
	}
	calls(1500)
	if _, err := l.Prove(ctx, 1); err != nil {
		s.errorf("Prove: %v", err)
	}
	clock.add(3 * day)
	calls(200)
	// The disk is full while records go. Calls find room where those were, or are refused.
	empty, err := ballast(root, 0)
	if err != nil {
		s.errorf("%v", err)
		return
	}
	clock.add(day)
	failed := calls(400)
	clock.add(time.Hour)
	failed += calls(400)
	pruned := sound("on a full disk")
	fmt.Println("on a full disk", failed, "of 800 calls were refused, and", pruned, "records pruned")
	before := size()
	if _, err := l.Compact(ctx, true, nil); err == nil || !strings.Contains(err.Error(), "disk space") && !errors.Is(err, syscall.ENOSPC) {
		s.errorf("a file was compacted without room for it: %v", err)
	}
	sound("after there was no room")
	empty()
	// Now there is room at the beginning.
	var again func()
	_, err = l.Compact(ctx, true, func(_, _ uint64) {
		if again == nil {
			again, err = ballast(root, 0)
			if err != nil {
				s.errorf("%v", err)
			}
		}
	})
	if err == nil || again == nil {
		s.errorf("a file was compacted although the disk became full: %v", err)
		return
	}
	fmt.Println("on the way:", err)
	sound("after the disk became full")
	again()
	if size() < before {
		s.errorf("the file has %d bytes, and had %d", size(), before)
	}
	c, err := l.Compact(ctx, true, nil)
	if err != nil || c.After >= c.Before || size() != c.After {
		s.errorf("Compact: %+v %v", c, err)
	}
	if failed := calls(200); failed > 0 {
		s.errorf("%d calls were refused at the end", failed)
	}
	if sound("at the end") == 0 {
		s.errorf("nothing was ever pruned")
	}
	fmt.Printf("%+v\n", c)
	if err := l.Close(ctx); err != nil {
		s.errorf("Close: %v", err)
	}
}

// frozen looks at a ledger that is mounted to be read only.
func (s *scenario) frozen(root, dir string) {
	e := s.shop()
	ctx := context.Background()
	l := s.open(dir)
	if _, _, err := l.Reserve(ctx, pay("ses_a", "1"), e); err != nil {
		s.errorf("Reserve: %v", err)
	}
	if err := l.Close(ctx); err != nil {
		s.errorf("Close: %v", err)
	}
	if ledger.Frozen(dir) {
		s.errorf("what can be written is said to be frozen")
	}
	if err := syscall.Mount("", root, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		s.errorf("mount: %v", err)
		return
	}
	if !ledger.Frozen(dir) {
		s.errorf("it is not said to be frozen")
	}
	l = s.open(dir)
	if _, _, err := l.Find(ctx, audit.Filter{}); !errors.Is(err, ledger.ErrAccess) || strings.Count(err.Error(), dir) != 1 {
		s.errorf("without being told so it says: %v", err)
	}
	_ = l.Close(ctx)
	l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop(), ReadOnly: true})
	if err != nil {
		s.errorf("Open: %v", err)
		return
	}
	if v, err := l.Verify(ctx, nil); err != nil || v.Count() == 0 {
		s.errorf("Verify: %v", err)
	}
	if found, _, err := l.Find(ctx, audit.Filter{Limit: 10}); err != nil || len(found) == 0 {
		s.errorf("Find: %d %v", len(found), err)
	}
	if _, err := l.Stats(ctx); err != nil {
		s.errorf("Stats: %v", err)
	}
	if _, err := l.CreateSession(ctx, ledger.Terms{Agent: "a"}); !errors.Is(err, ledger.ErrReadOnly) {
		s.errorf("CreateSession: %v", err)
	}
	if err := l.Close(ctx); err != nil {
		s.errorf("Close: %v", err)
	}
}

// mounted runs a worker that may mount, or skips the test.
func mounted(t *testing.T, what string) {
	t.Helper()
	t.Parallel()
	root := t.TempDir()
	p, err := start("full", struct{ Root, What string }{root, what}, func(cmd *exec.Cmd) { cmd.SysProcAttr = mcptest.OwnMounts() })
	if err != nil {
		mcptest.Unavailable(t, "no process with mounts of its own: %v", err)
	}
	t.Cleanup(p.kill)
	for line, ok := p.line(); ok; line, ok = p.line() {
		if strings.HasPrefix(line, "skip: ") {
			mcptest.Unavailable(t, "%s", line)
		}
		if strings.HasPrefix(line, "wrong: ") {
			t.Error(line)
		} else {
			t.Log(line)
		}
	}
	if err := p.wait(); err != nil {
		t.Errorf("the worker ended with %v: %s", err, p.errors)
	}
}

func TestALedgerBegunOnAFullDiskWorksOnceThereIsSpace(t *testing.T) { mounted(t, "create") }

func TestASnapshotThatIsMountedReadOnlyCanBeLookedAt(t *testing.T) { mounted(t, "frozen") }

func TestACompactionThatRunsOutOfDiskSpaceChangesNothing(t *testing.T) { mounted(t, "compact") }

func TestAFullDiskRefusesCallsAndLosesNoSettlement(t *testing.T) { mounted(t, "reserve") }

// unwritable is a worker because root may write everywhere.
func unwritable(raw []byte) error {
	var c struct{ Dir string }
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	if os.Getuid() == 0 {
		if err := errors.Join(syscall.Setgid(65534), syscall.Setuid(65534)); err != nil {
			fmt.Println("skip:", err)
			return nil
		}
	}
	e, err := policy.Compile(shop())
	if err != nil {
		return err
	}
	l, err := ledger.Open(ledger.Options{Dir: c.Dir, Clock: time.Now, Logger: zerolog.Nop()})
	if err == nil {
		var d policy.Decision
		_, d, err = l.Reserve(context.Background(), pay("ses_a", "1"), e)
		if d.Verdict == policy.Allow {
			fmt.Println("wrong:", d.Verdict)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = l.Close(ctx)
	}
	fmt.Printf("%s|%v\n", kindOf(err), err)
	return nil
}

func TestADirectoryOrFileThatCannotBeWrittenIsAClearError(t *testing.T) {
	// nobody must be able to reach it.
	root, err := os.MkdirTemp("", "haldir-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = filepath.WalkDir(root, func(p string, _ os.DirEntry, _ error) error { return os.Chmod(p, 0o700) })
		_ = os.RemoveAll(root)
	})
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	own := func(path string) {
		if os.Getuid() == 0 {
			if err := os.Chown(path, 65534, 65534); err != nil {
				mcptest.Unavailable(t, "no file of another user: %v", err)
			}
		}
	}
	for name, harm := range map[string]func(dir string){
		"directory": func(dir string) { // and empty: files that are there can be written all the same
			_ = os.RemoveAll(dir)
			_ = os.Mkdir(dir, 0o500)
			own(dir)
		},
		"database":  func(dir string) { _ = os.Chmod(filepath.Join(dir, "haldir.db"), 0o400) },
		"lock":      func(dir string) { _ = os.Chmod(filepath.Join(dir, "haldir.lock"), 0) },
		"head":      func(dir string) { _ = os.Chmod(filepath.Join(dir, "haldir.head"), 0) },
		"processes": func(dir string) { _ = os.Chmod(filepath.Join(dir, "procs"), 0o500) },
		"parent": func(dir string) {
			_ = os.RemoveAll(dir)
			_ = os.WriteFile(filepath.Dir(dir)+"/x", nil, 0o600)
			_ = os.Chmod(filepath.Dir(dir), 0o555)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(root, name, "state")
			if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
				t.Fatal(err)
			}
			l, e := quick(t, dir), engine(t, shop())
			more(t, l, e, 3)
			closeLedger(t, l)
			_ = filepath.WalkDir(filepath.Dir(dir), func(p string, _ os.DirEntry, _ error) error { own(p); return nil })
			harm(dir)
			before, _ := os.ReadFile(filepath.Join(dir, "haldir.db"))
			p := spawn(t, "unwritable", struct{ Dir string }{dir})
			line, _ := p.line()
			if err := p.wait(); err != nil {
				t.Errorf("the worker ended with %v: %s", err, p.errors)
			}
			if strings.HasPrefix(line, "skip:") {
				mcptest.Unavailable(t, "%s", line)
			}
			kind, text, _ := strings.Cut(line, "|")
			if kind != "permission" || !strings.Contains(text, filepath.Dir(dir)) {
				t.Errorf("the error is of kind %q and says %q", kind, text)
			}
			if after, _ := os.ReadFile(filepath.Join(dir, "haldir.db")); string(before) != string(after) {
				t.Error("the database was written to")
			}
		})
	}
}
