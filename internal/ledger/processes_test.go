//go:build unix

package ledger_test

import (
	"context"
	"encoding/json"
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
	"github.com/rs/zerolog"
	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

func init() {
	workers["attempts"], workers["hammer"], workers["holder"] = makeAttempts, hammer, hold
	rulesets["hundred"] = func() policy.Ruleset {
		return policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeRateLimit, MaxCalls: 100, Window: time.Hour}}}
	}
}

func compiled(name string) (*policy.Engine, error) { return policy.Compile(rulesets[name]()) }

// attemptsConfig tells a worker to make a number of attempts, so many at a time,
// once its parent says go.
type attemptsConfig struct {
	Dir, Rules, Tool, Arguments string
	Attempts, AtATime           int
}

func makeAttempts(raw []byte) error {
	var c attemptsConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	e, err := compiled(c.Rules)
	if err != nil {
		return err
	}
	l, err := ledger.Open(ledger.Options{Dir: c.Dir, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := fmt.Scanln(new(string)); err != nil {
		return err
	}
	work := make(chan struct{}, c.Attempts)
	for range c.Attempts {
		work <- struct{}{}
	}
	close(work)
	var wg sync.WaitGroup
	for range c.AtATime {
		wg.Go(func() {
			for range work {
				ticket, d, err := l.Reserve(context.Background(), call("ses_a", c.Tool, c.Arguments), e)
				if err != nil {
					fmt.Println("error", err)
					continue
				}
				fmt.Println(d.Verdict)
				if d.Verdict == policy.Allow {
					l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
				}
			}
		})
	}
	wg.Wait()
	return l.Close(context.Background())
}

// race starts workers, lets them go at once and counts what they print.
func race(t *testing.T, processes int, c attemptsConfig) map[string]int {
	t.Helper()
	ps := make([]*process, processes)
	for i := range ps {
		ps[i] = spawn(t, "attempts", c)
	}
	for _, p := range ps {
		p.expect(t, "ready")
	}
	for _, p := range ps {
		p.say("go")
	}
	got := map[string]int{}
	for _, p := range ps {
		for line, ok := p.line(); ok; line, ok = p.line() {
			got[line]++
		}
		if err := p.wait(); err != nil {
			t.Errorf("a worker ended with %v: %s", err, p.errors)
		}
	}
	return got
}

func TestFourProcessesShareARateLimitExactly(t *testing.T) {
	for _, atATime := range []int{1, 4} {
		t.Run(fmt.Sprint(atATime, " at a time"), func(t *testing.T) {
			dir := stateDir(t)
			got := race(t, 4, attemptsConfig{Dir: dir, Rules: "hundred", Tool: "look", Arguments: `{}`, Attempts: 100, AtATime: atATime})
			if len(got) != 2 || got["allow"] != 100 || got["deny"] != 300 {
				t.Errorf("400 attempts under a limit of 100: %v", got)
			}
			l := newLedger(t, dir)
			count := map[audit.Status]int{}
			for _, e := range entries(t, l) {
				if e.Kind == audit.KindAttempt.String() {
					count[e.Status]++
				}
			}
			if len(count) != 2 || count[audit.StatusAllowed] != 100 || count[audit.StatusDenied] != 300 {
				t.Errorf("the audit has %v", count)
			}
			if n := verify(t, l); n != 1+400+100 {
				t.Errorf("%d records, want 501: a session, 400 attempts, 100 outcomes", n)
			}
			if n := openHolds(t, dir); n != 0 {
				t.Errorf("%d calls are still open", n)
			}
		})
	}
}

// $100 and twenty calls of $60 at once from two processes: one passes, and it
// stays one after it is settled.
func TestTwoProcessesRaceForTheSameMoney(t *testing.T) {
	for range 3 {
		dir := stateDir(t)
		got := race(t, 2, attemptsConfig{Dir: dir, Rules: "shop", Tool: "pay", Arguments: `{"amount":60}`, Attempts: 10, AtATime: 10})
		if len(got) != 2 || got["allow"] != 1 || got["deny"] != 19 {
			t.Errorf("20 calls of $60 under a limit of $100: %v", got)
		}
		l, e := newLedger(t, dir), engine(t, shop())
		if sp := spent(t, l, attempt("ses_a").Use, e); sp.Total != 60*policy.USD {
			t.Errorf("%s are spent", sp.Total)
		}
		verify(t, l)
	}
}

// hammerConfig tells a worker to make calls of every kind until it is killed,
// and to say so whenever the ledger has promised something.
type hammerConfig struct {
	Dir, Session string
	Seed         uint64
}

const (
	hammerCalls  = 40
	hammerWindow = 250 * time.Millisecond
	hammerLimit  = 20 * policy.USD
	notSent      = "not sent" // the reason that marks a call whose holds were returned
)

func hammerRules() policy.Ruleset {
	rs := shop()
	rs.Policies = []policy.Rule{
		{Type: policy.TypeDeny, Tools: []string{"shop/steal"}},
		{Type: policy.TypeRateLimit, ID: "rate", MaxCalls: hammerCalls, Window: hammerWindow},
		{Type: policy.TypeSpendLimit, ID: "session", MaxUSD: hammerLimit},
	}
	return rs
}

func init() { rulesets["hammer"] = hammerRules }

func hammer(raw []byte) error {
	var c hammerConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	e, err := compiled("hammer")
	if err != nil {
		return err
	}
	l, err := ledger.Open(ledger.Options{Dir: c.Dir, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		return err
	}
	// One write a line: a pipe takes that whole or, if the process is dead, not
	// at all.
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(os.Stdout, format+"\n", args...) }
	var wg sync.WaitGroup
	for i := range uint64(3) {
		rng := rand.New(rand.NewPCG(c.Seed, i))
		wg.Go(func() {
			for {
				tool := []string{"pay", "tip", "ask", "look", "look", "steal"}[rng.IntN(6)]
				arguments := fmt.Sprintf(`{"amount":%d.%02d}`, rng.IntN(2), rng.IntN(100))
				ticket, d, err := l.Reserve(context.Background(), call(c.Session, tool, arguments), e)
				if err != nil {
					say("E Reserve: %v", err)
					continue
				}
				say("R %d %s %v", ticket.Seq, ticket.CallID, d.Verdict)
				if d.Verdict != policy.Allow {
					time.Sleep(time.Duration(rng.IntN(500)) * time.Microsecond)
					continue
				}
				time.Sleep(time.Duration(rng.IntN(4)) * time.Millisecond)
				if rng.IntN(20) == 0 {
					continue // stays open until the process dies
				}
				out := ledger.Outcome{Result: ledger.Result(rng.IntN(6))}
				if out.Result == ledger.NotSent || out.Result == ledger.Withdrawn {
					out.Reason = notSent
				}
				if tool == "ask" && rng.IntN(2) == 0 {
					m := policy.Micros(rng.Int64N(int64(2 * policy.USD)))
					out.Actual = &m
				}
				l.Settle(ticket, out)
				if rng.IntN(3) == 0 {
					if err := l.Flush(context.Background()); err != nil {
						say("E Flush: %v", err)
						continue
					}
					say("F %d %d", ticket.Seq, out.Result)
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// acks are what the ledger has promised to one process.
type acks struct {
	session  string
	attempts map[uint64]string // seq → call id and verdict
	settled  map[uint64]ledger.Result
	errors   []string
}

// read collects acknowledgements until the worker is dead.
func (a *acks) read(p *process) {
	for {
		line, ok := p.line()
		if !ok {
			return // half a line was never said
		}
		f := strings.Fields(line)
		switch {
		case len(f) == 4 && f[0] == "R":
			seq, _ := strconv.ParseUint(f[1], 10, 64)
			a.attempts[seq] = f[2] + " " + f[3]
		case len(f) == 3 && f[0] == "F":
			seq, _ := strconv.ParseUint(f[1], 10, 64)
			r, _ := strconv.Atoi(f[2])
			a.settled[seq] = ledger.Result(r)
		default:
			a.errors = append(a.errors, line)
		}
	}
}

// hammerer is a worker with somebody who listens to it.
type hammerer struct {
	*process
	acks *acks
	done chan struct{}
}

func newHammerer(t *testing.T, c hammerConfig) *hammerer {
	h := &hammerer{spawn(t, "hammer", c), &acks{session: c.Session, attempts: map[uint64]string{}, settled: map[uint64]ledger.Result{}}, make(chan struct{})}
	go func() {
		defer close(h.done)
		h.acks.read(h.process)
	}()
	t.Cleanup(func() { // runs before spawn's: nobody may still read
		_ = h.cmd.Process.Kill()
		<-h.done
	})
	return h
}

// die kills it and waits until all that it said is read.
func (h *hammerer) die() {
	_ = h.cmd.Process.Kill()
	<-h.done
	_ = h.wait()
}

func kills(tb testing.TB) int {
	n, err := strconv.Atoi(os.Getenv("HALDIR_KILLS"))
	switch {
	case err == nil:
		return n
	case os.Getenv("HALDIR_KILLS") != "":
		tb.Fatal("HALDIR_KILLS is no number")
	}
	return 40
}

// promptly is how soon the calls of a dead process are settled: within a second. A machine
// that has other work to do, as in CI, may not have the time.
func promptly() time.Duration {
	if soaking {
		return time.Second * slowdown
	}
	return hang
}

// kill -9 at any instant: nothing that was acknowledged is lost, no limit is
// overshot, and whoever comes next finds sound books at once. HALDIR_KILLS sets
// how often.
func TestKilledProcessesLoseNothingAndOvershootNothing(t *testing.T) {
	dir := stateDir(t)
	l := newLedger(t, dir) // this process survives
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	e := engine(t, hammerRules())

	var all []*acks
	generation := func(i int) string { return fmt.Sprintf("ses_%d", i/6) } // its limit is reached soon
	begin := func(i int) *hammerer {
		h := newHammerer(t, hammerConfig{dir, generation(i), rng.Uint64()})
		all = append(all, h.acks)
		return h
	}
	running := []*hammerer{begin(0), begin(0), begin(0)}
	slowest := time.Duration(0)
	n := kills(t)
	for i := range n {
		time.Sleep(20*time.Millisecond*slowdown + time.Duration(rng.Int64N(int64(60*time.Millisecond))))
		victim := rng.IntN(len(running))
		// Every fourth time two die at once.
		victims := []int{victim}
		if i%4 == 3 {
			victims = append(victims, (victim+1)%len(running))
		}
		for _, v := range victims {
			running[v].die()
		}
		killed := time.Now()
		for _, v := range victims {
			took := healed(t, l, running[v].acks, killed)
			slowest = max(slowest, took)
			if soon := promptly(); took > soon {
				t.Errorf("kill %d: the dead process's calls were settled after %v, want less than %v", i, took, soon)
			}
			if running[v].acks.errors != nil {
				t.Errorf("kill %d: %s", i, running[v].acks.errors)
			}
			running[v] = begin(i)
		}
		if i%10 == 0 {
			verify(t, l)
		}
		if t.Failed() {
			break
		}
	}
	for _, h := range running {
		h.die()
	}
	ended := time.Now()
	for _, h := range running {
		slowest = max(slowest, healed(t, l, h.acks, ended))
	}
	records := verify(t, l)
	t.Logf("%d kills, %d records, slowest heal %v", n, records, slowest)
	list := entries(t, l)
	promised(t, all, list)
	sums := replay(t, list)
	for session, want := range sums {
		sp := spent(t, l, ledger.Use{ID: session}, e)
		if int64(sp.Total) != want.spend || sp.Calls != want.calls {
			t.Errorf("%s: the counters say %s in %d calls, the audit %d micros in %d", session, sp.Total, sp.Calls, want.spend, want.calls)
		}
		for tool, m := range sp.ByTool {
			if int64(m) != want.byTool[tool] {
				t.Errorf("%s: the counter of %s says %s, the audit %d micros", session, tool, m, want.byTool[tool])
			}
		}
	}
	if n := openHolds(t, dir); n != 0 {
		t.Errorf("%d calls of dead processes are still open", n)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "procs")); len(left) != 1 {
		t.Errorf("%d processes are registered, only this one lives", len(left))
	}
}

// healed waits until no acknowledged call of a dead process is running.
func healed(t *testing.T, l *ledger.Ledger, a *acks, since time.Time) time.Duration {
	t.Helper()
	for seq, what := range a.attempts {
		if !strings.HasSuffix(what, " allow") {
			continue
		}
		for {
			e, ok, err := l.Entry(context.Background(), seq)
			if err != nil || !ok {
				t.Fatalf("record %d was acknowledged: %v %v", seq, ok, err)
			}
			if e.Status != audit.StatusRunning {
				break
			}
			if time.Since(since) > hang {
				t.Fatalf("record %d of a dead process is still running", seq)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return time.Since(since)
}

// promised compares every acknowledgement with the audit.
func promised(t *testing.T, all []*acks, list []audit.Entry) {
	t.Helper()
	by := map[uint64]audit.Entry{}
	for _, e := range list {
		by[e.Seq] = e
	}
	attempts, settled, abandoned := 0, 0, 0
	for _, a := range all {
		for seq, what := range a.attempts {
			attempts++
			e := by[seq]
			id, verdict, _ := strings.Cut(what, " ")
			if e.CallID != id || e.SessionID != a.session || (e.Status == audit.StatusDenied) != (verdict == "deny") {
				t.Errorf("acknowledged: %d %s; recorded: %s %s", seq, what, e.CallID, e.Status)
			}
			if verdict == "allow" && e.OutcomeSeq == 0 {
				t.Errorf("call %d of a dead process has no outcome", seq)
			}
			if e.Status == audit.StatusAbandoned {
				abandoned++
				if _, lost := a.settled[seq]; lost {
					t.Errorf("call %d was settled and flushed, and is recorded as abandoned", seq)
				}
			}
		}
		for seq, r := range a.settled {
			settled++
			if want := statusOf(r); by[seq].Status != want {
				t.Errorf("call %d was flushed as %s, and is recorded as %s", seq, want, by[seq].Status)
			}
		}
	}
	t.Logf("%d attempts and %d outcomes acknowledged, %d calls abandoned", attempts, settled, abandoned)
	if attempts == 0 || settled == 0 || abandoned == 0 {
		t.Error("the workers did not do enough for this test to mean anything")
	}
}

type sum struct {
	spend, calls int64
	byTool       map[string]int64
}

// replay does the sums of a list of entries, and checks on the way that each
// decision was right when it was made: no limit overshot, and none enforced
// before it was reached.
func replay(t *testing.T, list []audit.Entry) map[string]*sum {
	t.Helper()
	type event struct {
		seq uint64
		e   *audit.Entry
	}
	var events []event
	for i := range list {
		e := &list[i]
		if e.Kind != audit.KindAttempt.String() {
			continue
		}
		events = append(events, event{e.Seq, e})
		if e.OutcomeSeq > 0 {
			events = append(events, event{e.OutcomeSeq, e})
		}
	}
	slices.SortFunc(events, func(a, b event) int { return int(int64(a.seq) - int64(b.seq)) })

	sums := map[string]*sum{}
	rate := window{}
	type admitted struct {
		cost int64
		rate time.Time
	}
	open := map[uint64]admitted{}
	for _, ev := range events {
		e := ev.e
		s := sums[e.SessionID]
		if s == nil {
			s = &sum{byTool: map[string]int64{}}
			sums[e.SessionID] = s
		}
		actual, err := policy.ParseUSD(string(e.CostUSD))
		if err != nil {
			t.Fatal(err)
		}
		if ev.seq != e.Seq { // its outcome
			a := open[e.Seq]
			delta := int64(actual) - a.cost
			s.spend += delta
			s.byTool["shop/"+e.Tool] += delta
			if e.FlagReason == notSent {
				s.calls--
				if rate.start.Equal(a.rate) {
					rate.value--
				}
			}
			continue
		}
		now := rate
		if !e.Timestamp.Before(rate.start.Add(hammerWindow)) {
			now = window{start: e.Timestamp} // should the call be admitted
		}
		// The attempt's own record has the reserved cost; the entry shows the
		// actual. Reserved is what the call says, or the ceiling.
		cost := reservedFor(t, e)
		switch {
		case e.Status != audit.StatusDenied:
			now.value++
			rate = now
			s.calls++
			s.spend += cost
			s.byTool["shop/"+e.Tool] += cost
			open[e.Seq] = admitted{cost, rate.start}
			if rate.value > hammerCalls {
				t.Errorf("call %d is number %d of its window", e.Seq, rate.value)
			}
			if s.spend > int64(hammerLimit) {
				t.Errorf("call %d brings %s to %d micros", e.Seq, e.SessionID, s.spend)
			}
		case e.Policy == string(policy.TypeRateLimit) && now.value < hammerCalls:
			t.Errorf("call %d was refused as one too many, but is number %d", e.Seq, now.value+1)
		case e.Policy == string(policy.TypeSpendLimit) && s.spend+cost <= int64(hammerLimit):
			t.Errorf("call %d was refused though %d micros and %d are within the limit", e.Seq, s.spend, cost)
		}
	}
	return sums
}

func reservedFor(t *testing.T, e *audit.Entry) int64 {
	t.Helper()
	switch e.Tool {
	case "pay":
		m, err := policy.Amount(e.Arguments, "/amount")
		if err != nil {
			t.Fatal(err)
		}
		return int64(m)
	case "ask":
		return int64(2 * policy.USD)
	case "tip":
		return 4000
	}
	return 0
}

// hold makes calls without a pause, so that it has the lock whenever it is
// stopped, and says when it begins.
func hold(raw []byte) error {
	var c attemptsConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	e, err := compiled("shop")
	if err != nil {
		return err
	}
	l, err := ledger.Open(ledger.Options{Dir: c.Dir, NoSync: true, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		return err
	}
	first := true
	for {
		if _, _, err := l.Reserve(context.Background(), call("ses_holder", "steal", `{}`), e); err != nil {
			return err
		}
		if first {
			fmt.Println("ready")
			first = false
		}
	}
}

// suspend starts a process and stops it while it has the lock. resume lets it
// go on.
func suspend(t *testing.T, dir string) (pid int, resume func()) {
	t.Helper()
	p := spawn(t, "holder", attemptsConfig{Dir: dir})
	p.expect(t, "ready")
	pid = p.cmd.Process.Pid
	for range 100 {
		stop(t, pid)
		probe := flock.New(filepath.Join(dir, "haldir.lock"))
		free, err := probe.TryLock()
		if err != nil {
			t.Fatal(err)
		}
		if !free {
			return pid, func() {
				if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
					t.Error(err)
				}
			}
		}
		_ = probe.Unlock()
		_ = syscall.Kill(pid, syscall.SIGCONT)
		time.Sleep(time.Millisecond)
	}
	t.Fatal("could not stop a process while it has the lock")
	return 0, nil
}

func stop(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// It stops when it next runs, not when kill returns.
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("it did not stop: %v %v", status, err)
	}
}

// A suspended window must not freeze the others: they refuse, say who it is, and
// go on once it is gone.
func TestASuspendedHolderMakesOthersRefuseAndNamesItself(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	l, e := quick(t, dir), engine(t, shop())
	ticket, _ := reserve(t, l, pay("ses_a", "1"), e)
	pid, resume := suspend(t, dir)

	begin := time.Now()
	for range 1000 {
		l.Settle(ledger.Ticket{CallID: "nobody"}, ledger.Outcome{})
	}
	l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	if took := time.Since(begin); took > forTheLock {
		t.Errorf("settling took %v while another process has the lock", took)
	}
	var wg sync.WaitGroup
	for name, f := range map[string]func() error{
		"Reserve": func() error {
			_, d, err := l.Reserve(context.Background(), pay("ses_a", "1"), e)
			if d.Verdict == policy.Allow {
				t.Error("a call was let through without a record")
			}
			return err
		},
		"Find":    func() error { _, _, err := l.Find(context.Background(), audit.Filter{}); return err },
		"another": func() error { _, err := quick(t, dir).Sessions(context.Background()); return err },
	} {
		wg.Go(func() {
			if err := f(); !errors.Is(err, ledger.ErrBusy) || !strings.Contains(err.Error(), strconv.Itoa(pid)) {
				t.Errorf("%s: %v, want ErrBusy with the pid %d", name, err, pid)
			}
		})
	}
	wg.Wait()
	resume()
	if _, d := reserve(t, l, pay("ses_a", "1"), e); d.Verdict != policy.Allow {
		t.Error(d.Reason)
	}
	if en := entry(t, l, ticket.Seq); en.Status != audit.StatusAllowed {
		t.Errorf("the call that was settled meanwhile is %s", en.Status)
	}
	verify(t, l)
}

// Reserve: "ctx bounds the wait for a turn". A client that cancels, or a
// shutdown that has 300 ms, must not sit out the two seconds.
func TestAContextBoundsTheWaitForATurn(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	l, e := quick(t, dir), engine(t, shop())
	reserve(t, l, pay("ses_a", "1"), e)
	_, resume := suspend(t, dir)
	defer resume()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	// Who waits for the lock until its patience ends is told that it is busy.
	_, d, err := l.Reserve(ctx, pay("ses_a", "1"), e)
	if !errors.Is(err, context.DeadlineExceeded) || d.Verdict == policy.Allow {
		t.Errorf("%v %v", d.Verdict, err)
	}
}

func TestAContextBoundsClose(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	e := engine(t, shop())
	l, err := ledger.Open(ledger.Options{Dir: dir, NoSync: true, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ticket, _ := reserve(t, l, pay("ses_a", "1"), e)
	flush(t, l)
	_, resume := suspend(t, dir)
	l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := l.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close lost a settlement and says %v", err)
	}
	resume()
	closeLedger(t, l) // until its goroutines have ended
	// What was not flushed heals as abandoned.
	if en := entry(t, quick(t, dir), ticket.Seq); en.Status != audit.StatusAbandoned && en.Status != audit.StatusAllowed {
		t.Errorf("the call is %s", en.Status)
	}
}

// A ledger that is closed while it waits for its turn must not take the turn
// afterwards: nobody would ever give it back.
func TestALedgerThatIsClosedWhileItWaitsTakesNoTurn(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	e := engine(t, shop())
	pid, resume := suspend(t, dir)
	waiting, err := ledger.Open(ledger.Options{Dir: dir, NoSync: true, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := waiting.Reserve(context.Background(), pay("ses_a", "1"), e); !errors.Is(err, ledger.ErrBusy) {
		t.Fatalf("Reserve: %v", err)
	}
	closeLedger(t, waiting)
	resume()
	time.Sleep(50 * time.Millisecond)
	_ = syscall.Kill(pid, syscall.SIGKILL)
	if _, _, err := quick(t, dir).Reserve(context.Background(), pay("ses_a", "1"), e); err != nil {
		t.Errorf("after the holder has ended and the waiting ledger was closed: %v", err)
	}
	// As a struct that is reachable the closed ledger keeps its files open.
	_ = waiting.Dir()
}

// Whoever dies while it settles for the dead leaves the rest to the next.
func TestDyingWhileSettlingForTheDeadLosesNothing(t *testing.T) {
	dir := stateDir(t)
	l, e := quick(t, dir), engine(t, shop())
	var tickets []ledger.Ticket
	for range 10 {
		d := newDriver(t)
		d.ask(t, request{Op: "open", Dir: dir, NoSync: true, Rules: "shop"})
		for range 3 {
			tickets = append(tickets, d.ask(t, request{Op: "reserve", Session: "ses_a", Tool: "pay", Arguments: `{"amount":1}`}).Ticket)
		}
		healer := newDriver(t)
		healer.ask(t, request{Op: "open", Dir: dir, NoSync: true, Rules: "shop"})
		d.kill()
		_ = healer.send(request{Op: "find"})
		time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond)
		healer.kill()
	}
	time.Sleep(30 * time.Millisecond)
	for _, ticket := range tickets {
		if en := entry(t, l, ticket.Seq); en.Status != audit.StatusAbandoned {
			t.Errorf("call %d is %s", ticket.Seq, en.Status)
		}
	}
	if sp := spent(t, l, attempt("ses_a").Use, e); sp.Total != 30*policy.USD || sp.Calls != 30 {
		t.Errorf("%s in %d calls are spent, want $30 in 30", sp.Total, sp.Calls)
	}
	if n := verify(t, l); n != 1+30+30 {
		t.Errorf("%d records, want 61", n)
	}
	inspect(t, dir, func(*bolt.Tx) {})
}

// Not only who has the lock can be suspended, also who waits for it: then the
// lock is free, and the others go on in spite of it.
func TestASuspendedWaiterKeepsNobodyOut(t *testing.T) {
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
	for range 3 { // also when it has let go of the database in between
		if _, err := l.Sessions(context.Background()); err != nil {
			t.Errorf("process %d is suspended: %v", pid, err)
		}
		time.Sleep(30 * time.Millisecond)
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
	for i := 0; ; i++ {
		reserve(t, l, call("ses_b", "steal", `{}`), e)
		if i == 50 {
			d.kill()
			killed = time.Now()
		}
		if killed.IsZero() {
			continue
		}
		if entry(t, l, ticket.Seq).Status == audit.StatusAbandoned {
			return
		}
		if time.Since(killed) > hang {
			t.Fatalf("%v after its process died the call is still running", time.Since(killed))
		}
	}
}

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

// The files in procs only help: whose calls are open the database knows, and a
// file that is gone is no sign of life.
func TestTheDeadAreFoundWithoutTheirFiles(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	d := newDriver(t)
	d.ask(t, request{Op: "open", Dir: dir, NoSync: true, Rules: "shop"})
	ticket := d.ask(t, request{Op: "reserve", Session: "ses_a", Tool: "pay", Arguments: `{"amount":1}`}).Ticket
	d.kill()
	if err := os.RemoveAll(filepath.Join(dir, "procs")); err != nil {
		t.Fatal(err)
	}
	l := quick(t, dir)
	if en := entry(t, l, ticket.Seq); en.Status != audit.StatusAbandoned {
		t.Errorf("the call of a dead process is %s", en.Status)
	}
	// A living process whose file was removed registers again.
	if err := os.RemoveAll(filepath.Join(dir, "procs")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // until it has let go of the database
	open, _ := reserve(t, l, pay("ses_a", "1"), engine(t, shop()))
	if en := entry(t, quick(t, dir), open.Seq); en.Status != audit.StatusRunning {
		t.Errorf("the call of a living process is %s", en.Status)
	}
}
