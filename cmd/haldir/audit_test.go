package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// A list longer than a page is one object all the same, whole and in order.
func TestAListOfEntriesIsStreamed(t *testing.T) {
	t.Parallel()
	const made, asked = entriesPage*2 + 100, entriesPage*2 + 50
	dir := t.TempDir() + "/state"
	l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now, Logger: zerolog.Nop(), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	engine, err := policy.Compile(policy.Ruleset{})
	if err != nil {
		t.Fatal(err)
	}
	use := ledger.Use{ID: "ses_stream", Terms: &ledger.Terms{Agent: "bot", AllScopes: true}}
	for range made {
		attempt := ledger.Attempt{Use: use, Call: policy.Call{Upstream: "up", Tool: "x"}, Refused: &policy.Finding{Policy: "deny", Rule: "r", Reason: "no"}}
		if _, _, err := l.Reserve(t.Context(), attempt, engine); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	list := func(args ...string) (seqs []uint64, next uint64) {
		t.Helper()
		var out bytes.Buffer
		if code := run(t.Context(), append([]string{"audit", "list", "--json", "--status", "denied", "--state-dir", dir}, args...), strings.NewReader(""), &out, t.Output()); code != exitDone {
			t.Fatalf("exit status %d", code)
		}
		var got struct {
			Count   int
			Next    uint64
			Entries []struct{ Seq uint64 }
		}
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.Count != len(got.Entries) {
			t.Fatalf("%v; it counts %d of %d", err, got.Count, len(got.Entries))
		}
		for i, e := range got.Entries {
			if i > 0 && e.Seq != got.Entries[i-1].Seq-1 {
				t.Errorf("%d comes after %d", e.Seq, got.Entries[i-1].Seq)
			}
			seqs = append(seqs, e.Seq)
		}
		return seqs, got.Next
	}
	seqs, next := list("--limit", "1050")
	if len(seqs) != asked || next == 0 {
		t.Errorf("%d entries, next %d", len(seqs), next)
	}
	if all, next := list("--limit", "100000"); len(all) != made || next != 0 {
		t.Errorf("%d of %d entries, next %d", len(all), made, next)
	}
}
