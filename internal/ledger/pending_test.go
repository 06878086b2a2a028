package ledger_test

import (
	"context"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/ledger"
)

func TestPendingIsWhatWaitsForAPerson(t *testing.T) {
	clock := newClock()
	l, e := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now}), engine(t, needy())
	pending := func(want int) {
		t.Helper()
		if n, err := l.Pending(context.Background()); err != nil || n != want {
			t.Errorf("%d calls wait, want %d; %v", n, want, err)
		}
	}
	pending(0)
	asks(t, l, drop("ses_a", `{"n":1}`), e)
	asks(t, l, drop("ses_a", `{"n":2}`), e)
	listed := asks(t, l, drop("ses_a", `{"n":3}`), e)
	pending(3)
	if err := l.Refuse(context.Background(), listed.Approval); err != nil { // nobody can be asked
		t.Fatal(err)
	}
	pending(2)
	clock.add(5 * time.Minute)
	pending(0)
}
