package config_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/policy"
)

var update = flag.Bool("update", false, "write what the golden files should say")

// Each archive is a haldir.yaml, calls, and what haldir decides about them: the
// meaning of a config, to be read in a review. A call is a line of
//
//	TIME UPSTREAM/TOOL ARGUMENTS
//
// and what is admitted counts for the calls after it, as in the ledger.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil || len(a.Files) < 2 {
				t.Fatal(err)
			}
			c, err := config.Parse(a.Files[0].Data, "haldir.yaml")
			if err != nil {
				t.Fatal(err)
			}
			got := decide(t, c, string(a.Files[1].Data))
			if *update {
				a.Files = append(a.Files[:2], txtar.File{Name: "want", Data: []byte(got)})
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if len(a.Files) != 3 {
				t.Fatal("no want; run with -update and read what it says")
			}
			if diff := cmp.Diff(string(a.Files[2].Data), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func decide(t *testing.T, c *config.Config, calls string) string {
	t.Helper()
	used := map[policy.CounterKey]policy.Counter{}
	var out strings.Builder
	for line := range strings.Lines(calls) {
		at, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		id, args, _ := strings.Cut(rest, " ")
		now, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		up, tool, _ := strings.Cut(id, "/")
		s := c.Session
		call := policy.Call{Session: "ses_1", Agent: s.Agent, Upstream: up, Tool: tool, Arguments: json.RawMessage(args)}
		d := c.Engine.Decide(call, policy.State{Now: now, Used: used, Session: policy.SessionState{
			ID: "ses_1", AllScopes: s.AllScopes, Scopes: s.Scopes, SpendLimit: s.SpendLimit,
		}})
		fmt.Fprintf(&out, "%s %s: %s", at, id, d.Verdict)
		if d.Cost > 0 {
			fmt.Fprintf(&out, " %s", d.Cost)
		}
		if d.Verdict != policy.Allow {
			fmt.Fprintf(&out, "\n  %s (%s): %s", d.Policy, d.Rule, d.Reason)
			if !d.RetryAt.IsZero() {
				fmt.Fprintf(&out, "\n  retry at %s", d.RetryAt.UTC().Format(time.RFC3339))
			}
		}
		for _, f := range d.Also {
			word := "also"
			if f.Shadow {
				word = "shadow"
			}
			fmt.Fprintf(&out, "\n  %s %s (%s): %s", word, f.Policy, f.Rule, f.Reason)
		}
		out.WriteByte('\n')
		for _, h := range d.Holds {
			n := used[h.Key]
			if !n.Start.Equal(h.Start) {
				n = policy.Counter{Start: h.Start}
			}
			n.Value += h.Amount
			used[h.Key] = n
		}
	}
	return out.String()
}
