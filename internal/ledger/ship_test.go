package ledger_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/internal/ledger"
)

const collector = "https://collector.example.com/v1/logs"

func ship(tb testing.TB, l *ledger.Ledger) *ledger.Shipping {
	tb.Helper()
	s, err := l.Ship(collector, collector)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

// accept takes up to n records as a collector would, and returns the number of the last.
func accept(tb testing.TB, s *ledger.Shipping, n int) uint64 {
	tb.Helper()
	list, id, err := s.Next(context.Background(), n, 1<<30)
	if err != nil || len(list) == 0 {
		tb.Fatalf("%d records, %v", len(list), err)
	}
	last := list[len(list)-1].Seq
	if err := s.Accepted(context.Background(), id, last, 0); err != nil {
		tb.Fatal(err)
	}
	return last
}

func TestTheCursorIsWhereRecordsWereAccepted(t *testing.T) {
	dir := stateDir(t)
	l := quick(t, dir)
	busy(t, l, 10)
	s := ship(t, l)
	for range 2 { // what is not accepted comes again
		list, _, err := s.Next(context.Background(), 5, 1<<30)
		if err != nil || len(list) != 5 || list[0].Seq != 1 || list[4].Seq != 5 {
			t.Fatalf("%d records, %v", len(list), err)
		}
	}
	if list, _, err := s.Next(context.Background(), 100, 1); err != nil || len(list) != 1 {
		t.Errorf("%d records where one is larger than the bound, %v", len(list), err)
	}
	if last := accept(t, s, 5); last != 5 {
		t.Errorf("accepted up to %d", last)
	}
	if _, err := l.Ship(collector, collector); !errors.Is(err, ledger.ErrShipping) {
		t.Errorf("a second shipper: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	closeLedger(t, l)
	l = quick(t, dir)
	list, _, err := ship(t, l).Next(context.Background(), 5, 1<<30)
	if err != nil || list[0].Seq != 6 {
		t.Errorf("it goes on with %d, %v", list[0].Seq, err)
	}
}

func TestRecordsThatWereNotShippedAreNotPruned(t *testing.T) {
	dir := stateDir(t)
	clock := newClock()
	l := retained(t, dir, clock)
	busy(t, l, 1000)
	clock.add(80 * day)
	s := ship(t, l)
	last := accept(t, s, 300)
	clock.add(11 * day)
	busy(t, l, 600)
	clock.add(day + time.Minute)
	busy(t, l, 600)
	if n := gone(t, l); n > last {
		t.Fatalf("%d records are gone, and %d were shipped", n, last)
	}
	// A month without a sign of the collector is the end of that.
	clock.add(31 * day)
	busy(t, l, 600)
	clock.add(day + time.Minute)
	busy(t, l, 600)
	if n := gone(t, l); n <= last {
		t.Errorf("%d records are gone a month after the last was accepted", n)
	}
	list, _, err := s.Next(context.Background(), 1, 1<<30)
	if err != nil || list[0].Seq != gone(t, l)+1 {
		t.Errorf("it goes on with %d, %v", list[0].Seq, err)
	}
}

// What was pruned before it was shipped is told of and counted, once. What was gone before
// anything was shipped to there is not missed.
func TestRecordsThatAreMissedAreCounted(t *testing.T) {
	var log bytes.Buffer
	clock := newClock()
	l, err := ledger.Open(ledger.Options{
		Dir: stateDir(t), NoSync: true, Clock: clock.now, Logger: zerolog.New(&log), Retention: &ledger.Retention{Place: "haldir.yaml", Keep: 90 * day},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLedger(t, l) })
	prune := func() uint64 {
		t.Helper()
		before := gone(t, l)
		clock.add(91 * day)
		busy(t, l, 600)
		clock.add(day + time.Minute)
		busy(t, l, 600)
		if gone(t, l) == before {
			t.Fatal("nothing was pruned")
		}
		return gone(t, l)
	}
	missed := func() uint64 {
		t.Helper()
		list, err := l.Destinations(context.Background())
		if err != nil || len(list) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		return list[0].Missed
	}
	busy(t, l, 1000)
	prune()
	s := ship(t, l)
	next := func() {
		t.Helper()
		if list, _, err := s.Next(context.Background(), 1, 1<<30); err != nil || list[0].Seq != gone(t, l)+1 {
			t.Fatalf("it goes on with %v, %v", list, err)
		}
	}
	next()
	if n := missed(); n != 0 || log.Len() > 0 {
		t.Errorf("at the beginning %d are missed: %s", n, &log)
	}
	last := accept(t, s, 10)
	want := prune() - last
	if n := missed(); n != want {
		t.Errorf("%d are missed, want %d", n, want)
	}
	next()
	next()
	if n := missed(); n != want {
		t.Errorf("%d are missed once it was told, want %d", n, want)
	}
	if text := log.String(); strings.Count(text, "were pruned before the destination had them") != 1 || !strings.Contains(text, fmt.Sprintf(`"records":%d`, want)) {
		t.Errorf("the log says: %s", text)
	}
	last = accept(t, s, 10)
	want += prune() - last
	next()
	if n := missed(); n != want {
		t.Errorf("%d are missed in all, want %d", n, want)
	}
}

func TestADestinationThatIsForgottenHoldsNothing(t *testing.T) {
	dir := stateDir(t)
	clock := newClock()
	l := retained(t, dir, clock)
	busy(t, l, 1000)
	clock.add(91 * day)
	s := ship(t, l)
	accept(t, s, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if known, err := l.Forget(context.Background(), collector); err != nil || !known {
		t.Fatalf("%v, %v", known, err)
	}
	busy(t, l, 600)
	clock.add(day + time.Minute)
	busy(t, l, 600)
	if n := gone(t, l); n < 1000 {
		t.Errorf("%d records are gone", n)
	}
	if list, err := l.Destinations(context.Background()); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestADestinationThatHasAllHoldsWhatComes(t *testing.T) {
	dir := stateDir(t)
	clock := newClock()
	l := retained(t, dir, clock)
	busy(t, l, 10)
	s := ship(t, l)
	last := accept(t, s, 1000)
	for range 40 { // it looks for news every hour, and there are none
		clock.add(day)
		if list, _, err := s.Next(context.Background(), 10, 1<<30); err != nil || len(list) > 0 {
			t.Fatalf("%d records, %v", len(list), err)
		}
	}
	list, err := l.Destinations(context.Background())
	if err != nil || len(list) != 1 || list[0].Unshipped != 0 || list[0].Shipped != last || list[0].Holds.IsZero() || !strings.Contains(list[0].Destination, "collector.example") {
		t.Errorf("%+v, %v", list, err)
	}
}

// Two tenants of one collector differ in what is not shown.
func TestDestinationsWithOneNameAreTwo(t *testing.T) {
	l := quick(t, stateDir(t))
	busy(t, l, 10)
	of := map[string]*ledger.Shipping{}
	for _, tenant := range []string{"a", "b"} {
		s, err := l.Ship(collector+"?tenant="+tenant, collector)
		if err != nil {
			t.Fatal(err)
		}
		of[tenant] = s
		if list, _, err := s.Next(context.Background(), 1, 1<<30); err != nil || len(list) != 1 || list[0].Seq != 1 {
			t.Fatalf("%s begins with %v, %v", tenant, list, err)
		}
		accept(t, s, 5)
	}
	list, err := l.Destinations(context.Background())
	if err != nil || len(list) != 2 || list[0].Destination != collector || list[1].Destination != collector {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, s := range of {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if known, err := l.Forget(context.Background(), collector); err == nil {
		t.Errorf("a name of two was forgotten: %v", known)
	}
	if known, err := l.Forget(context.Background(), collector+"?tenant=a"); err != nil || !known {
		t.Errorf("by its URL: %v, %v", known, err)
	}
	if known, err := l.Forget(context.Background(), collector); err != nil || !known {
		t.Errorf("by its name: %v, %v", known, err)
	}
	if known, err := l.Forget(context.Background(), collector); err != nil || known {
		t.Errorf("there is none any more: %v, %v", known, err)
	}
}
