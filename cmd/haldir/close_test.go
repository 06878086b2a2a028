package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// A signal ends haldir in the time that its host leaves it, and is no failure: what could not be
// put on disk counts as spent, which the next one says.
func TestAfterASignalABusyLedgerIsLeftToTheNext(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	e, err := policy.Compile(policy.Ruleset{})
	if err != nil {
		t.Fatal(err)
	}
	ticket, _, err := l.Reserve(t.Context(), ledger.Attempt{
		Use:  ledger.Use{ID: "ses_a", Terms: &ledger.Terms{Agent: "bot", AllScopes: true}},
		Call: policy.Call{Upstream: "shop", Tool: "look", Arguments: []byte(`{}`)},
	}, e)
	if err != nil {
		t.Fatal(err)
	}
	// Another process has the ledger, as one does whose disk is slow.
	other := flock.New(filepath.Join(dir, "haldir.lock"))
	if err := other.Lock(); err != nil {
		t.Fatal(err)
	}
	l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	var log bytes.Buffer
	a := &app{hurry: true, ledger: l, log: zerolog.New(&log)}
	if err := a.close(); err != nil {
		t.Errorf("it failed with %v", err)
	}
	if !strings.Contains(log.String(), "not closed in time") {
		t.Errorf("it said %q", &log)
	}
	if err := other.Unlock(); err != nil {
		t.Fatal(err)
	}
	_ = l.Close(t.Context()) // waits for it: the process would have ended, and is here the next one, too
	next, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = next.Close(t.Context()) }()
	if entry, ok, err := next.Entry(t.Context(), ticket.Seq); err != nil || !ok || entry.Status == audit.StatusDenied {
		t.Errorf("the call is recorded as %v: %v %v", entry.Status, ok, err)
	}
}
