package ledger_test

import (
	"context"
	"errors"
	"testing"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
)

func TestPinsAndTheirRecordsAreOneStep(t *testing.T) {
	ctx := context.Background()
	l := quick(t, stateDir(t))
	if raw, err := l.LoadPins(ctx, "up"); raw != nil || err != nil {
		t.Errorf("of a new ledger: %q, %v", raw, err)
	}
	set := func(now string, err error) error {
		return l.ChangePins(ctx, "up", func(old []byte) ([]byte, []ledger.Note, error) {
			return []byte(now), []ledger.Note{{Status: audit.StatusPinned, Name: "tool x", Text: string(old) + " to " + now}}, err
		})
	}
	for _, v := range []string{"a", "a", "b"} { // the second changes nothing
		if err := set(v, nil); err != nil {
			t.Fatal(err)
		}
	}
	broken := errors.New("broken")
	if err := set("c", broken); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	if raw, err := l.LoadPins(ctx, "up"); string(raw) != "b" || err != nil {
		t.Errorf("%q, %v", raw, err)
	}
	entries, _, err := l.Find(ctx, audit.Filter{Limit: 10})
	if err != nil || len(entries) != 2 {
		t.Fatalf("%d records, %v", len(entries), err)
	}
	if e := entries[0]; e.Kind != "pins" || e.Status != audit.StatusPinned || e.Tool != "tool x" || e.Upstream != "up" || e.FlagReason != "a to b" {
		t.Errorf("%+v", e)
	}
}
