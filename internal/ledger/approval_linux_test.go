package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// approvals fills the disk while calls wait for a person: what cannot be recorded is not
// decided, and what was decided before counts.
func (s *scenario) approvals(root, dir string) {
	e, err := policy.Compile(needy())
	if err != nil {
		s.errorf("%v", err)
		return
	}
	ctx := context.Background()
	l := s.open(dir)
	propose := func(n int) (ledger.Attempt, ledger.Ticket) {
		a := drop("ses_a", fmt.Sprintf(`{"n":%d}`, n))
		ticket, d, err := l.Reserve(ctx, a, e)
		if err != nil || d.Verdict != policy.Ask {
			s.errorf("Reserve with space: %v %v", err, d.Verdict)
		}
		a.Grant = ticket.Approval
		return a, ticket
	}
	granted, first := propose(0)
	if _, err := l.Answer(ctx, first.Approval, ledger.Answer{Allow: true, Channel: ledger.ChannelTerminal}); err != nil {
		s.errorf("Answer with space: %v", err)
	}
	waits, second := propose(1)
	empty, err := ballast(root, 0)
	if err != nil {
		s.errorf("%v", err)
		return
	}
	refused := false
	for n := 2; n < 60 && !refused; n++ {
		_, d, err := l.Reserve(ctx, drop("ses_a", fmt.Sprintf(`{"n":%d,"text":"%s"}`, n, strings.Repeat("x", 20_000))), e)
		refused = errors.Is(err, syscall.ENOSPC)
		if d.Verdict == policy.Allow || err != nil && !refused {
			s.errorf("on a full disk: %v, %v", d.Verdict, err)
		}
	}
	if !refused {
		s.errorf("the disk was never full")
	}
	decided := false
	for range 40 { // free pages inside the file may do for a while
		err := l.Refuse(ctx, second.Approval)
		if err == nil {
			_, err = l.Answer(ctx, second.Approval, ledger.Answer{Allow: true, Channel: ledger.ChannelTerminal})
			decided = err == nil
		}
		if err == nil || errors.Is(err, ledger.ErrNoApproval) {
			break
		}
		if !errors.Is(err, syscall.ENOSPC) {
			s.errorf("Answer on a full disk: %v", err)
		}
	}
	list, err := l.Approvals(ctx)
	if err != nil {
		s.errorf("Approvals on a full disk: %v", err)
	}
	fmt.Println("wait on the full disk:", len(list), "decided:", decided)
	empty()
	if !decided {
		if _, err := l.Answer(ctx, second.Approval, ledger.Answer{Allow: true, Channel: ledger.ChannelTerminal}); err != nil {
			s.errorf("Answer when there was space again: %v", err)
		}
	}
	for _, a := range []ledger.Attempt{granted, waits} {
		for i, want := range []policy.Verdict{policy.Allow, policy.Ask} {
			if _, d, err := l.Reserve(ctx, a, e); err != nil || d.Verdict != want {
				s.errorf("%s, time %d: %v %v %s", a.Grant, i+1, err, d.Verdict, d.Reason)
			}
		}
	}
	if _, err := l.Verify(ctx, nil); err != nil {
		s.errorf("Verify: %v", err)
	}
	if err := l.Close(ctx); err != nil {
		s.errorf("Close: %v", err)
	}
}

func TestAFullDiskLosesNoPersonsWord(t *testing.T) { mounted(t, "approvals") }

// While another process keeps the ledger, a person's answer is an error that says so, and
// it can be given again.
func TestAnAnswerToABusyLedger(t *testing.T) {
	dir := stateDir(t)
	l, e := newLedger(t, dir), engine(t, needy())
	a := drop("ses_a", `{}`)
	ticket := asks(t, l, a, e)
	a.Grant = ticket.Approval
	_, resume := suspend(t, dir)
	for range 2 {
		if _, err := l.Answer(context.Background(), ticket.Approval, ledger.Answer{Allow: true, Channel: ledger.ChannelTerminal}); !errors.Is(err, ledger.ErrBusy) {
			t.Errorf("while it is busy: %v", err)
		}
	}
	if _, d, err := l.Reserve(context.Background(), a, e); !errors.Is(err, ledger.ErrBusy) || d.Verdict == policy.Allow {
		t.Errorf("the call meanwhile: %v %v", d.Verdict, err)
	}
	resume()
	for deadline := time.Now().Add(hang); ; time.Sleep(20 * time.Millisecond) {
		_, err := l.Answer(context.Background(), ticket.Approval, ledger.Answer{Allow: true, Channel: ledger.ChannelTerminal})
		if err == nil {
			break
		}
		if !errors.Is(err, ledger.ErrBusy) || time.Now().After(deadline) {
			t.Fatalf("afterwards: %v", err)
		}
	}
	if _, d := reserve(t, l, a, e); d.Verdict != policy.Allow {
		t.Errorf("then: %s", d.Reason)
	}
	if en := entry(t, l, ticket.Seq); en.Status != audit.StatusApproved {
		t.Errorf("the audit says %s", en.Status)
	}
	verify(t, l)
}

// Watchers are seen while they live, by however many look, and come and go at once.
func TestWhoWatches(t *testing.T) {
	l := quick(t, stateDir(t))
	if l.Watched() {
		t.Error("nobody watches")
	}
	end := make(chan struct{})
	looked := make(chan struct{})
	for range 4 {
		go func() {
			defer func() { looked <- struct{}{} }()
			for {
				select {
				case <-end:
					return
				default:
					l.Watched()
				}
			}
		}()
	}
	for range 300 {
		stop, err := l.Watch()
		if err != nil {
			t.Fatal(err)
		}
		if !l.Watched() {
			t.Error("one that watches is not seen")
		}
		stop()
	}
	close(end)
	for range 4 {
		<-looked
	}
	if l.Watched() {
		t.Error("nobody watches any more")
	}
}
