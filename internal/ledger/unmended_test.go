//go:build soak && unmended && linux

// The tests of this file show mistakes that are known and not mended yet, so
// they fail; run them with -tags soak,unmended. One that passes moves to the file it
// belongs to.

package ledger_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// bbolt as it is takes the process down on half of the damaged files. Behind an
// agent that is the end of every tool at once, without a word why.
func TestADamagedFileIsAnErrorAndNeverACrash(t *testing.T) {
	source := written(t, 60)
	good, head := read(t, source, "haldir.db"), read(t, source, "haldir.head")
	if len(good) > 1<<20 { // what is after the last page is not used
		good = good[:1<<20]
	}
	list := images(good)
	root := t.TempDir()
	type result struct {
		image  image
		opened *opened // nil if it did not get so far
		crash  string
		took   time.Duration
	}
	// Each needs milliseconds, so this is generous; but one that hangs, or waits
	// for the lock of a database that was given up, needs seconds.
	enough := time.Now().Add(8 * time.Second * min(slowdown, 2))
	next, results := make(chan int), make(chan result)
	go func() {
		defer close(next)
		for i := range list {
			if time.Now().After(enough) {
				return
			}
			next <- i
		}
	}()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var o *opener
			defer func() { o.kill() }()
			for i := range next {
				if o == nil {
					var err error
					if o, err = newOpener(); err != nil {
						t.Error(err)
						return
					}
				}
				dir := filepath.Join(root, fmt.Sprint(i))
				err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "haldir.db"), list[i].raw, 0o600),
					os.WriteFile(filepath.Join(dir, "haldir.head"), head, 0o600))
				if err != nil {
					t.Error(err)
					return
				}
				r := result{image: list[i]}
				begin := time.Now()
				r.opened, r.crash = o.open(dir)
				r.took = time.Since(begin)
				if r.opened == nil {
					o.kill()
					o = nil
				}
				results <- r
				_ = os.RemoveAll(dir)
			}
		})
	}
	go func() {
		wg.Wait()
		close(results)
	}()

	bad := map[string][]string{}
	count := map[string]int{}
	tried := 0
	var stuck []string
	for r := range results {
		tried++
		blame := func(what, format string, args ...any) {
			bad[what] = append(bad[what], r.image.name+": "+fmt.Sprintf(format, args...))
		}
		if r.opened == nil {
			if r.crash == hung {
				// bbolt believes what a page says of the size of its elements, and a
				// commit copies them: one of two gigabytes takes its time.
				stuck = append(stuck, r.image.name)
				continue
			}
			blame("crashed the process", "%s", r.crash)
			continue
		}
		o, sum := r.opened, sha256.Sum256(r.image.raw)
		if o.Read != sum {
			blame("were written to by reading", "find %q, verify %q", o.Find, o.Verify)
		}
		if o.Reserve == "damaged" && o.Reserved != sum {
			blame("were written to although they are damaged", "verify %q", o.Verify)
		}
		if (o.Find == "damaged" || o.Verify == "damaged") && o.Reserved != sum {
			blame("were written to after they were found damaged", "find %q, verify %q, reserve %q", o.Find, o.Verify, o.Reserve)
		}
		for _, kind := range []string{o.Find, o.Verify, o.Reserve} {
			if strings.Contains(kind, "timeout") {
				blame("are told as a time-out", "%s", kind)
				break
			}
		}
		if r.took > 2*time.Second*slowdown {
			blame("took more than 2 s", "%v", r.took)
		}
		count[fmt.Sprintf("find %q, verify %q, reserve %q", o.Find, o.Verify, strings.ReplaceAll(o.Reserve, root, ""))]++
	}
	for what, n := range count {
		t.Logf("%d: %s", n, what)
	}
	if tried < len(list) {
		t.Logf("time sufficed for %d of %d damaged files", tried, len(list))
	}
	if len(stuck) > 0 {
		t.Logf("no answer within 10 s: %v", stuck)
	}
	if len(stuck) > 2 {
		t.Errorf("%d of %d damaged files hung the process", len(stuck), tried)
	}
	if tried < 100 {
		t.Errorf("time sufficed for %d damaged files only", tried)
	}
	for what, names := range bad {
		slices.Sort(names)
		t.Errorf("%d of %d damaged files %s, such as\n\t%s", len(names), tried, what, strings.Join(names[:min(8, len(names))], "\n\t"))
	}
}

// Not only who has the lock can be suspended, also who waits for it: then the
// lock is free, or given to a process that does not run, and the message must
// not send a person after somebody innocent.
func TestASuspendedWaiterIsNotBlamedOnTheLastHolder(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	l := quick(t, dir)
	if _, err := l.Sessions(context.Background()); err != nil {
		t.Fatal(err)
	}
	// Have the lock, let another wait for it, stop that one, let go.
	turn := flock.New(filepath.Join(dir, "haldir.lock"))
	if ok, err := turn.TryLockContext(context.Background(), time.Millisecond); !ok {
		t.Fatal(err)
	}
	d := newDriver(t)
	d.ask(t, request{Op: "open", Dir: dir, NoSync: true})
	if err := d.send(request{Op: "find"}); err != nil {
		t.Fatal(err)
	}
	gate := flock.New(filepath.Join(dir, "haldir.turn"))
	for {
		free, err := gate.TryLock()
		if err != nil {
			t.Fatal(err)
		}
		if !free {
			break
		}
		_ = gate.Unlock()
		time.Sleep(time.Millisecond)
	}
	pid := d.cmd.Process.Pid
	stop(t, pid)
	if err := turn.Unlock(); err != nil {
		t.Fatal(err)
	}
	_, err := l.Sessions(context.Background())
	if err == nil {
		t.Skip("the others go on in spite of it, which is better still")
	}
	if !errors.Is(err, ledger.ErrBusy) || strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("process %d is suspended, and %d is told: %v", pid, os.Getpid(), err)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if a, err := d.receive(); err != nil || a.Error != "" && a.Kind != "busy" { // its patience may be over
		t.Errorf("the waiter, woken up: %v %s", err, a.Error)
	}
	if _, err := l.Sessions(context.Background()); err != nil {
		t.Errorf("after it went on: %v", err)
	}
}

// A survivor that is never idle and that nobody waits for has no reason to let
// go of the database; it must find the dead all the same.
func TestABusySurvivorSettlesForTheDeadToo(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	d := newDriver(t)
	d.ask(t, request{Op: "open", Dir: dir, NoSync: true, Rules: "shop"})
	ticket := d.ask(t, request{Op: "reserve", Session: "ses_a", Tool: "look", Arguments: `{}`}).Ticket
	l, e := quick(t, dir), engine(t, shop())
	var killed time.Time
	for begin := time.Now(); ; {
		reserve(t, l, call("ses_b", "steal", `{}`), e)
		if killed.IsZero() && time.Since(begin) > 100*time.Millisecond {
			d.kill()
			killed = time.Now()
		}
		if killed.IsZero() {
			continue
		}
		if entry(t, l, ticket.Seq).Status == audit.StatusAbandoned {
			return
		}
		if time.Since(killed) > time.Second*slowdown {
			t.Fatalf("%v after its process died the call is still running", time.Since(killed))
		}
	}
}

// "newest first" and "only entries with a smaller number", whatever way the
// query takes through the records.
func TestEntriesComeNewestFirstAndBelowBefore(t *testing.T) {
	l, clock := archive(t)
	all := scan(t, l)
	slices.Reverse(all)
	for range 8 {
		rapid.Check(t, func(t *rapid.T) {
			f := filters(clock, len(all)).Draw(t, "filter")
			f.Limit = rapid.IntRange(1, 30).Draw(t, "limit")
			var want []uint64
			for _, e := range all {
				if naive(f, e) && len(want) < f.Limit {
					want = append(want, e.Seq)
				}
			}
			got, _, err := l.Find(context.Background(), f)
			if err != nil {
				t.Fatal(err)
			}
			if d := gocmp.Diff(append([]uint64{}, want...), seqs(got)); d != "" {
				t.Fatalf("%+v (-documented +found):\n%s", f, d)
			}
		})
	}
}

// The smallest case of it: two calls, settled in the other order.
func TestTheOrderOfSettlementsIsNotTheOrderOfEntries(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	first, _ := reserve(t, l, call("ses_a", "look", `{}`), e)
	second, _ := reserve(t, l, call("ses_a", "look", `{}`), e)
	l.Settle(second, ledger.Outcome{Result: ledger.Done, Reason: "odd"})
	l.Settle(first, ledger.Outcome{Result: ledger.Done, Reason: "odd"})
	flush(t, l)
	for _, f := range []audit.Filter{{Calls: true}, {Session: "ses_a", Calls: true}, {Status: audit.StatusAllowed}, {Flagged: true}} {
		got, _, err := l.Find(context.Background(), f)
		if err != nil || !slices.Equal(seqs(got), []uint64{second.Seq, first.Seq}) {
			t.Errorf("%+v: found %v, want %v; %v", f, seqs(got), []uint64{second.Seq, first.Seq}, err)
		}
		f.Before = second.Seq
		got, _, err = l.Find(context.Background(), f)
		if err != nil || !slices.Equal(seqs(got), []uint64{first.Seq}) {
			t.Errorf("%+v: found %v, want %v; %v", f, seqs(got), []uint64{first.Seq}, err)
		}
	}
}

// Messages are read strictly and bring no such text; the ledger should not
// depend on it, since one record that cannot be exported spoils the export.
func TestAnExportCarriesTextsThatWereNoUTF8(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	reserve(t, l, pay("ses_a", `"`+"\xff"+`"`), e)
	for _, name := range []string{"caf\xe9", "\xff\xfe"} {
		a := call("ses_a", "t"+name, `{}`)
		a.Client = name
		ticket, _ := reserve(t, l, a, e)
		l.Settle(ticket, ledger.Outcome{Result: ledger.Failed, Reason: name})
	}
	checkExport(t, l)
}

// A page deep in the past must not cost a walk from the newest record: that is
// every page of a console's list, in the process that has the lock.
func TestPagingDeepIntoThePastTakesNoLonger(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 8,000 records")
	}
	l, e := quick(t, stateDir(t)), engine(t, shop())
	var writers sync.WaitGroup
	for range 32 {
		writers.Go(func() {
			for range 250 {
				if _, _, err := l.Reserve(context.Background(), call("ses_a", "steal", `{}`), e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	fastest := func(before uint64) time.Duration {
		best := time.Hour
		for range 5 {
			begin := time.Now()
			if list, _, err := l.Find(context.Background(), audit.Filter{Before: before, Limit: 50}); err != nil || len(list) != 50 {
				t.Fatal(len(list), err)
			}
			best = min(best, time.Since(begin))
		}
		return best
	}
	newest, oldest := fastest(0), fastest(100)
	t.Logf("the newest page takes %v, the oldest of 8,000 records %v", newest, oldest)
	if oldest > 10*newest+2*time.Millisecond*slowdown {
		t.Errorf("the newest page takes %v, the oldest %v", newest, oldest)
	}
}

// A mistake of ours is no damage of the file, and must not take the ledger from
// this and other processes until somebody restarts something.
func TestAPanicInADecisionRefusesThatCallOnly(t *testing.T) {
	dir := stateDir(t)
	l, other, e := quick(t, dir), quick(t, dir), engine(t, shop())
	reserve(t, l, pay("ses_a", "1"), e)
	_, d, err := l.Reserve(context.Background(), pay("ses_a", "1"), panicky{e})
	if err == nil || d.Verdict == policy.Allow {
		t.Errorf("a call whose decision panicked: %v, %v", d.Verdict, err)
	}
	if errors.Is(err, ledger.ErrDamaged) {
		t.Errorf("a panic in a decision is reported as damage of the file: %v", err)
	}
	for name, l := range map[string]*ledger.Ledger{"the same": l, "another": other} {
		begin := time.Now()
		if _, _, err := l.Reserve(context.Background(), pay("ses_a", "1"), e); err != nil {
			t.Errorf("the next call through %s ledger failed after %v: %v", name, time.Since(begin), err)
		}
	}
}

func TestALedgerBegunOnAFullDiskWorksOnceThereIsSpace(t *testing.T) { mounted(t, "create") }

// Reserve: "After an error the call must not be forwarded; it needs no
// settling". Then one that is given up while it waits for its turn must not be
// recorded as admitted afterwards: nobody would settle it, and what it holds
// would be lost to the session.
func TestACallThatIsGivenUpIsNotAdmittedAfterwards(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	l, e := quick(t, dir), engine(t, shop())
	reserve(t, l, call("ses_a", "steal", `{}`), e)
	pid, resume := suspend(t, dir)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := l.Reserve(ctx, pay("ses_a", "60"), e); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Reserve: %v", err)
	}
	resume()
	time.Sleep(200 * time.Millisecond)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Sessions(context.Background()); err != nil {
		t.Fatal(err)
	}
	flush(t, l)
	if sp := spent(t, l, attempt("ses_a").Use, e); sp.Total != 0 || sp.Calls != 0 {
		t.Errorf("%s in %d calls are held by a call that was given up", sp.Total, sp.Calls)
	}
	if n := openHolds(t, dir); n != 0 {
		t.Errorf("%d calls are open that nobody will settle", n)
	}
}

// The same without any other process: the answer and the end of the context may
// come together, and whichever Reserve returns must be true of the file. With
// -race this also shows whether the transaction still writes to what was returned.
func TestAnErrorOfReserveMeansThatNothingIsHeld(t *testing.T) {
	dir := stateDir(t)
	l, e := open(t, ledger.Options{Dir: dir}), engine(t, shop())
	reserve(t, l, call("ses_a", "steal", `{}`), e)
	var wg sync.WaitGroup
	for i := range 8 {
		rng := rand.New(rand.NewPCG(7, uint64(i)))
		wg.Go(func() {
			for range 60 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rng.IntN(3000))*time.Microsecond)
				ticket, d, err := l.Reserve(ctx, call("ses_a", "look", `{}`), e)
				cancel()
				if err == nil && d.Verdict == policy.Allow {
					l.Settle(ticket, ledger.Outcome{Result: ledger.NotSent})
				}
			}
		})
	}
	wg.Wait()
	flush(t, l)
	if n := openHolds(t, dir); n != 0 {
		t.Errorf("%d calls are open although Reserve returned an error for them", n)
	}
	if sp := spent(t, l, attempt("ses_a").Use, e); sp.Calls != 0 {
		t.Errorf("%d calls count although none was sent", sp.Calls)
	}
}
