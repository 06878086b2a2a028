//go:build unix

package ledger_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

func init() {
	workers["petitioner"] = petition
	rulesets["petition"] = func() policy.Ruleset {
		return policy.Ruleset{
			Costs: []policy.Cost{{Tools: []string{"shop/*"}, USD: policy.USD}},
			Policies: []policy.Rule{
				{Type: policy.TypeApproval, ID: "word", Tools: []string{"shop/drop"}, Timeout: 5 * time.Minute},
				{Type: policy.TypeApproval, ID: "short", Tools: []string{"shop/quick"}, Timeout: time.Second},
				{Type: policy.TypeSpendLimit, ID: "ever", MaxUSD: 1_000_000 * policy.USD, Per: policy.PerTotal},
				{Type: policy.TypeLoop, ID: "loop", MaxRepeats: 1 << 40, Window: time.Hour},
			},
		}
	}
}

// petition makes calls that need a person's word, answers some and redeems some, until it
// is killed, and says what the ledger has promised it.
func petition(raw []byte) error {
	var c hammerConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	e, err := compiled("petition")
	if err != nil {
		return err
	}
	l, err := ledger.Open(ledger.Options{Dir: c.Dir, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		return err
	}
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(os.Stdout, format+"\n", args...) }
	ctx := context.Background()
	var wg sync.WaitGroup
	for i := range uint64(4) {
		rng := rand.New(rand.NewPCG(c.Seed, i))
		try := func(a ledger.Attempt) (ledger.Ticket, policy.Verdict) {
			ticket, d, err := l.Reserve(ctx, a, e)
			switch {
			case err != nil:
				say("E Reserve: %v", err)
			case d.Verdict == policy.Allow:
				say("R %d", ticket.Seq)
				if rng.IntN(5) > 0 {
					l.Settle(ticket, ledger.Outcome{Result: ledger.Result(rng.IntN(6))})
				}
			case d.Verdict == policy.Ask:
				say("P %d", ticket.Seq)
			}
			return ticket, d.Verdict
		}
		wg.Go(func() {
			for {
				// Few sessions and arguments, so that many calls are the same.
				a := call(fmt.Sprintf("%s_%d", c.Session, rng.IntN(2)), []string{"drop", "drop", "quick"}[rng.IntN(3)], fmt.Sprintf(`{"n":%d}`, rng.IntN(4)))
				a.Config, a.Pin = audit.Hash{byte(1 + rng.IntN(2))}, audit.Hash{byte(1 + rng.IntN(2))}
				ticket, verdict := try(a)
				if verdict != policy.Ask {
					continue
				}
				time.Sleep(time.Duration(rng.IntN(5)) * time.Millisecond)
				x := ledger.Answer{Channel: ledger.ChannelTerminal, Allow: rng.IntN(4) > 0, ForSession: rng.IntN(40) == 0}
				switch rng.IntN(8) {
				case 0: // nobody is there
					if err := l.Refuse(ctx, ticket.Approval); err != nil && !strings.Contains(err.Error(), "no such request") {
						say("E Refuse: %v", err)
					}
					continue
				case 1: // it waits until the process dies
					continue
				case 2: // of another one, whoever waits for it
					if list, err := l.Approvals(ctx); err == nil && len(list) > 0 {
						ticket.Approval = list[rng.IntN(len(list))].ID
					}
				}
				_, err := l.Answer(ctx, ticket.Approval, x)
				switch {
				case err == nil && x.Allow:
					say("A %s %t", ticket.Approval, x.ForSession)
				case err == nil:
					say("D %s", ticket.Approval)
				case !strings.Contains(err.Error(), "no such request"):
					say("E Answer: %v", err)
				}
				a.Grant = ticket.Approval
				switch rng.IntN(4) {
				case 0: // its call has gone
					l.Free(a, a.Use.ID)
				case 1: // and so has this one, without a word
				default:
					try(a)
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// promises are what the ledger has said to one petitioner.
type petitions struct {
	asked, made []uint64
	allowed     map[string]bool // id → for the session
	denied      []string
	errors      []string
}

func (p *petitions) read(from *process) {
	for line, ok := from.line(); ok; line, ok = from.line() {
		f := strings.Fields(line)
		number := func() uint64 { n, _ := strconv.ParseUint(f[1], 10, 64); return n }
		switch {
		case len(f) == 2 && f[0] == "P":
			p.asked = append(p.asked, number())
		case len(f) == 2 && f[0] == "R":
			p.made = append(p.made, number())
		case len(f) == 3 && f[0] == "A":
			p.allowed[f[1]] = f[2] == "true"
		case len(f) == 2 && f[0] == "D":
			p.denied = append(p.denied, f[1])
		default:
			p.errors = append(p.errors, line)
		}
	}
}

// kill -9 at any instant: what a person has said is neither lost nor counted twice, and
// what nobody has answered ends with its process. HALDIR_KILLS sets how often.
func TestKilledProcessesKeepAPersonsWord(t *testing.T) {
	dir := stateDir(t)
	l := newLedger(t, dir)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	e := engine(t, rulesets["petition"]())
	var all []*petitions
	type running struct {
		*process
		said *petitions
		done chan struct{}
	}
	begin := func(generation int) *running {
		p := &running{spawn(t, "petitioner", hammerConfig{dir, fmt.Sprintf("ses_%d", generation/10), rng.Uint64()}), &petitions{allowed: map[string]bool{}}, make(chan struct{})}
		go func() { defer close(p.done); p.said.read(p.process) }()
		t.Cleanup(func() { _ = p.cmd.Process.Kill(); <-p.done })
		all = append(all, p.said)
		return p
	}
	die := func(p *running) {
		_ = p.cmd.Process.Kill()
		<-p.done
		_ = p.wait()
		if p.said.errors != nil {
			t.Errorf("%q; %s", p.said.errors, p.errors)
		}
	}
	ps := []*running{begin(0), begin(0), begin(0)}
	n := kills(t)
	for i := range n {
		time.Sleep(20*time.Millisecond*slowdown + time.Duration(rng.Int64N(int64(60*time.Millisecond))))
		victim := rng.IntN(len(ps))
		die(ps[victim])
		ps[victim] = begin(i)
		if i%10 == 0 {
			verify(t, l)
			approvals(t, l)
		}
		if t.Failed() {
			break
		}
	}
	for _, p := range ps {
		die(p)
	}
	closeLedger(t, l) // whoever opens it next looks for the dead
	l = newLedger(t, dir)
	for deadline := time.Now().Add(hang); ; time.Sleep(10 * time.Millisecond) {
		waiting := 0
		for _, p := range approvals(t, l) {
			if p.Waiting {
				waiting++
			}
		}
		if waiting == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d calls of dead processes wait", waiting)
		}
	}
	verify(t, l)

	// Every promise is in the audit.
	list := entries(t, l)
	by := map[uint64]*audit.Entry{}
	used := map[string][]*audit.Entry{} // by the approval that let them through
	sums := map[string]*sum{}
	for i := range list {
		x := &list[i]
		if x.Kind != audit.KindAttempt.String() {
			continue
		}
		by[x.Seq] = x
		switch x.Status {
		case audit.StatusPending, audit.StatusApproved, audit.StatusDenied:
			continue
		case audit.StatusRunning:
			t.Errorf("call %d of a dead process is running", x.Seq)
		}
		if x.Approval == "" {
			t.Errorf("call %d was let through, and nobody has allowed it", x.Seq)
		}
		used[x.Approval] = append(used[x.Approval], x)
		s := sums[x.SessionID]
		if s == nil {
			s = &sum{}
			sums[x.SessionID] = s
		}
		if cost, err := policy.ParseUSD(string(x.CostUSD)); err != nil {
			t.Error(err)
		} else if cost > 0 { // else it was not sent
			s.calls, s.spend = s.calls+1, s.spend+int64(cost)
		}
	}
	grants := map[string]bool{} // that are there to be redeemed
	listed := map[string]bool{}
	inspect(t, dir, func(tx *bolt.Tx) {
		c := tx.Bucket([]byte("approvals")).Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			switch k[0] {
			case 'g':
				grants[string(k[33:])] = true
				if bytes.Contains(v, []byte(`"process"`)) {
					t.Errorf("the grant %s is that of a dead process: %s", k[33:], v)
				}
			case 'p':
				listed[string(k[1:])] = true
			}
		}
	})
	asked, allowed, denied, redeemed, kept := 0, 0, 0, 0, 0
	for _, p := range all {
		for _, seq := range p.asked {
			asked++
			x := by[seq]
			switch {
			case x == nil:
				t.Errorf("request %d is not in the audit", seq)
			case x.Status == audit.StatusPending && !listed[fmt.Sprintf("apr_%d", seq)]:
				t.Errorf("request %d waits in the audit, and nowhere else", seq)
			}
		}
		for _, seq := range p.made {
			if x := by[seq]; x == nil || x.Approval == "" {
				t.Errorf("call %d was let through, and the audit says %+v", seq, x)
			}
		}
		for _, id := range p.denied {
			denied++
			if len(used[id]) > 0 || grants[id] {
				t.Errorf("%s was denied, and let %d calls through", id, len(used[id]))
			}
		}
		for id, forSession := range p.allowed {
			allowed++
			seq, _ := strconv.ParseUint(strings.TrimPrefix(id, "apr_"), 10, 64)
			if x := by[seq]; x == nil || x.Status != audit.StatusApproved {
				t.Errorf("%s was allowed, and the audit says %+v", id, x)
			}
			switch {
			case forSession && !grants[id]:
				t.Errorf("%s was allowed for the session, and that is lost", id)
			case !forSession && grants[id] == (len(used[id]) > 0):
				t.Errorf("%s was allowed once; it let %d calls through, and is there still: %t", id, len(used[id]), grants[id])
			}
			if grants[id] {
				kept++
			}
		}
	}
	for id, calls := range used {
		redeemed += len(calls)
		seq, _ := strconv.ParseUint(strings.TrimPrefix(id, "apr_"), 10, 64)
		x := by[seq]
		if x == nil || x.Status != audit.StatusApproved {
			t.Errorf("%s let calls through, and the audit says of it %+v", id, x)
			continue
		}
		if len(calls) > 1 && !strings.Contains(x.FlagReason, "for the session") {
			t.Errorf("%s was allowed once, and let %d calls through", id, len(calls))
		}
		for _, y := range calls {
			if y.SessionID != x.SessionID || y.Upstream != x.Upstream || y.Tool != x.Tool || y.ArgumentsSHA256 != x.ArgumentsSHA256 || y.ConfigSHA256 != x.ConfigSHA256 || y.Seq < x.Seq {
				t.Errorf("%s was for %+v, and let through %+v", id, x, y)
			}
		}
	}
	for session, want := range sums {
		sp := spent(t, l, ledger.Use{ID: session}, e)
		if int64(sp.Total) != want.spend || sp.Calls != want.calls {
			t.Errorf("%s: the counters say %s in %d calls, the audit %d micros in %d", session, sp.Total, sp.Calls, want.spend, want.calls)
		}
	}
	t.Logf("%d kills: %d asked, %d allowed, %d denied, %d let through, %d grants kept", n, asked, allowed, denied, redeemed, kept)
	if asked == 0 || allowed == 0 || denied == 0 || redeemed == 0 || kept == 0 {
		t.Error("the workers did not do enough for this test to mean anything")
	}

	// What is left is redeemed by whoever makes the call now, and then it is gone, but for
	// what holds for the session, and what nobody needs beside it.
	for id := range grants {
		seq, _ := strconv.ParseUint(strings.TrimPrefix(id, "apr_"), 10, 64)
		x := by[seq]
		a := call(x.SessionID, x.Tool, string(x.Arguments))
		if err := a.Config.UnmarshalText([]byte(x.ConfigSHA256)); err != nil {
			t.Fatal(err)
		}
		for pin := range 2 {
			a.Pin = audit.Hash{byte(1 + pin)}
			for range len(grants) {
				if _, d := reserve(t, l, a, e); d.Verdict != policy.Allow {
					break
				}
			}
		}
	}
	inspect(t, dir, func(tx *bolt.Tx) {
		left, lasting := map[string]string{}, map[string]bool{}
		c := tx.Bucket([]byte("approvals")).Cursor()
		for k, v := c.Seek([]byte{'g'}); len(k) > 0 && k[0] == 'g'; k, v = c.Next() {
			if bytes.Contains(v, []byte(`"for_session":true`)) {
				lasting[string(k[1:33])] = true
			} else {
				left[string(k[33:])] = string(k[1:33])
			}
		}
		for id, key := range left {
			if !lasting[key] {
				t.Errorf("nobody could redeem %s", id)
			}
		}
	})
	verify(t, l)
}
