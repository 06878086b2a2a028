package ledger_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/policy"
)

// What the kernel does to a ledger is tested on a worker that takes the same
// steps each time and says so whenever the ledger has promised something. strace
// makes its system calls fail, or writes them down.

func init() {
	workers["steps"] = steps
	rulesets["steps"] = stepRules
}

const (
	stepLimit  = 12 // calls
	stepBudget = 7 * policy.USD
)

func stepRules() policy.Ruleset {
	rs := shop()
	rs.Policies = []policy.Rule{
		{Type: policy.TypeDeny, Tools: []string{"shop/steal"}},
		{Type: policy.TypeRateLimit, ID: "rate", MaxCalls: stepLimit, Window: 24 * time.Hour},
		{Type: policy.TypeSpendLimit, ID: "session", MaxUSD: stepBudget},
	}
	return rs
}

// stepsConfig tells a worker how many calls to make.
type stepsConfig struct {
	Dir   string
	Calls int
}

// steps makes calls one after the other in two lives of a ledger, with
// checkpoints and pauses in which the database is freed and opened again.
func steps(raw []byte) error {
	var c stepsConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	e, err := compiled("steps")
	if err != nil {
		return err
	}
	say := func(format string, args ...any) { // one line in one write
		_, _ = fmt.Println(strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; "))
	}
	within := func(f func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second*slowdown)
		defer cancel()
		return f(ctx)
	}
	failed := 0
	tools := []string{"pay", "look", "steal", "tip", "pay"}
	results := []ledger.Result{ledger.Done, ledger.Failed, ledger.Unknown, ledger.NotSent, ledger.Cancelled}
	for life := range 2 {
		l, err := ledger.Open(ledger.Options{Dir: c.Dir, Clock: time.Now, Logger: zerolog.Nop()})
		if err != nil {
			say("E Open: %v", err)
			continue
		}
		for i := range c.Calls / 2 {
			a := call("ses_a", tools[i%len(tools)], `{"amount":1}`)
			a.Config = audit.Sum([]byte{byte(life)})
			var ticket ledger.Ticket
			var d policy.Decision
			err := within(func(ctx context.Context) (err error) {
				ticket, d, err = l.Reserve(ctx, a, e)
				return err
			})
			if err != nil {
				if say("E Reserve: %v", err); failed > 3 {
					break // it will not come back
				}
				failed++
				continue
			}
			failed = 0
			say("R %d %s %v", ticket.Seq, ticket.CallID, d.Verdict)
			switch i % 8 {
			case 3:
				if err := within(func(ctx context.Context) error { _, err := l.Prove(ctx, 1); return err }); err != nil {
					say("E Prove: %v", err)
				}
			case 5:
				time.Sleep(35 * time.Millisecond) // longer than the ledger keeps the database
			}
			if d.Verdict != policy.Allow || i == 4 {
				continue
			}
			out := ledger.Outcome{Result: results[i%len(results)]}
			if out.Result == ledger.NotSent {
				out.Reason = notSent
			}
			l.Settle(ticket, out)
			if i%2 == 0 {
				if err := within(l.Flush); err != nil {
					say("E Flush: %v", err)
					continue
				}
				say("F %d %d", ticket.Seq, out.Result)
			}
		}
		if err := within(l.Close); err != nil {
			say("E Close: %v", err)
		}
	}
	return nil
}

// strace returns the command that runs a worker under strace with some options.
func strace(tb testing.TB, worker string, config any, options ...string) *exec.Cmd {
	tb.Helper()
	program, err := exec.LookPath("strace")
	if err != nil {
		mcptest.Unavailable(tb, "there is no strace: %v", err)
	}
	raw, err := json.Marshal(config)
	if err != nil {
		tb.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(program, append(append([]string{"-f", "-qq"}, options...), exe)...)
	cmd.Env = append(os.Environ(), workerVar+"="+worker, configVar+"="+string(raw))
	return cmd
}

// promises reads what a worker has said.
func promises(said string) *acks {
	a := &acks{session: "ses_a", attempts: map[uint64]string{}, settled: map[uint64]ledger.Result{}}
	a.read(&process{out: bufio.NewReader(strings.NewReader(said))})
	return a
}

// keeps compares a state directory with what was promised of it and returns what
// is wrong. Whoever promised it must be dead.
func keeps(dir string, a *acks) (wrong []string) {
	errorf := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	l, err := ledger.Open(ledger.Options{Dir: dir, NoSync: true, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		return append(wrong, err.Error())
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			errorf("Close: %v", err)
		}
	}()
	list, next, err := l.Find(context.Background(), audit.Filter{Governance: true, Limit: 1 << 30})
	if err != nil || next != 0 {
		return append(wrong, fmt.Sprintf("Find: %v", err))
	}
	if _, err := l.Verify(context.Background(), nil); err != nil {
		errorf("Verify: %v", err)
	}
	by := map[uint64]audit.Entry{}
	var spend policy.Micros
	var calls int64
	for _, e := range list {
		by[e.Seq] = e
		if e.Kind != audit.KindAttempt.String() || e.Status == audit.StatusDenied {
			continue
		}
		cost, err := policy.ParseUSD(string(e.CostUSD))
		if err != nil {
			errorf("record %d costs %s: %v", e.Seq, e.CostUSD, err)
		}
		spend += cost
		calls++
		if e.Status == audit.StatusRunning {
			errorf("call %d of a dead process is still running", e.Seq)
		}
		if e.FlagReason == notSent || strings.Contains(e.FlagReason, "could not be confirmed") {
			calls--
		}
	}
	for seq, what := range a.attempts {
		id, verdict, _ := strings.Cut(what, " ")
		if e := by[seq]; e.CallID != id || (e.Status == audit.StatusDenied) != (verdict == "deny") {
			errorf("acknowledged: %d %s; recorded: %q %q", seq, what, e.CallID, e.Status)
		}
	}
	for seq, r := range a.settled {
		if got, want := by[seq].Status, statusOf(r); got != want {
			errorf("call %d was settled as %s; recorded: %q", seq, want, got)
		}
	}
	e, err := compiled("steps")
	if err != nil {
		return append(wrong, err.Error())
	}
	sp, _, err := l.Spent(context.Background(), ledger.Use{ID: a.session, Terms: attempt(a.session).Use.Terms}, e)
	if err != nil || sp.Total != spend || sp.Calls != calls {
		errorf("the counters say %s in %d calls, the audit %s in %d; %v", sp.Total, sp.Calls, spend, calls, err)
	}
	if calls > stepLimit || spend > stepBudget {
		errorf("%d calls and %s under a limit of %d and %s", calls, spend, stepLimit, stepBudget)
	}
	// And it can be used.
	if _, _, err := l.Reserve(context.Background(), call("ses_b", "steal", `{}`), e); err != nil {
		errorf("Reserve afterwards: %v", err)
	}
	if _, err := l.Verify(context.Background(), nil); err != nil {
		errorf("Verify afterwards: %v", err)
	}
	return wrong
}
