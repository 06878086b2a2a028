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

// goldenFile is one archive of testdata/golden.
type goldenFile struct {
	name          string
	archive       *txtar.Archive
	config, calls []byte
}

func golden(t testing.TB) []goldenFile {
	t.Helper()
	files, err := filepath.Glob("testdata/golden/*.txtar")
	if err != nil || len(files) < 25 {
		t.Fatal("golden files are missing", err)
	}
	var all []goldenFile
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Files) < 2 || a.Files[0].Name != "haldir.yaml" || a.Files[1].Name != "calls" || len(strings.TrimSpace(string(a.Comment))) == 0 {
			t.Fatalf("%s needs a comment, haldir.yaml and calls", file)
		}
		all = append(all, goldenFile{file, a, a.Files[0].Data, a.Files[1].Data})
	}
	return all
}

// Each archive is a haldir.yaml, calls, and what haldir decides about them: the
// meaning of a config, to be read in a review. A call is a line of
//
//	TIME UPSTREAM/TOOL ARGUMENTS
//
// and what is admitted counts for the calls after it, as in the ledger. Between
// the calls may stand
//
//	session ID        another session of the same terms, or one from before
//	agent ID          another agent
//	expires TIME      the session's end
//	revoked           the session was ended
//	readonly BOOL     whether the tools from here on are trusted to change nothing
//	settle USD        the call above cost so much in the end
//	return            the call above certainly never left haldir
func TestGolden(t *testing.T) {
	for _, g := range golden(t) {
		t.Run(strings.TrimSuffix(filepath.Base(g.name), ".txtar"), func(t *testing.T) {
			c, err := config.Parse(g.config, "haldir.yaml")
			if err != nil {
				t.Fatal(err)
			}
			got := newWorld(t, c).decide(string(g.calls))
			a := g.archive
			if *update {
				a.Files = append(a.Files[:2], txtar.File{Name: "want", Data: []byte(got)})
				if err := os.WriteFile(g.name, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if len(a.Files) != 3 || a.Files[2].Name != "want" {
				t.Fatal("no want; run with -update and read what it says")
			}
			if diff := cmp.Diff(string(a.Files[2].Data), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// world is what the ledger keeps, in memory.
type world struct {
	t        *testing.T
	c        *config.Config
	call     policy.Call // what calls have in common
	used     map[policy.CounterKey]policy.Counter
	sessions map[string]policy.SessionState
	last     []policy.Hold
	out      strings.Builder
}

func newWorld(t *testing.T, c *config.Config) *world {
	return &world{
		t: t, c: c, call: policy.Call{Session: "ses_1", Agent: c.Session.Agent},
		used: map[policy.CounterKey]policy.Counter{}, sessions: map[string]policy.SessionState{},
	}
}

func (w *world) session() policy.SessionState {
	s, ok := w.sessions[w.call.Session]
	if !ok {
		terms := w.c.Session
		s = policy.SessionState{ID: w.call.Session, AllScopes: terms.AllScopes, Scopes: terms.Scopes, SpendLimit: terms.SpendLimit}
	}
	return s
}

func (w *world) time(text string) time.Time {
	w.t.Helper()
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		w.t.Fatal(err)
	}
	return at
}

func (w *world) decide(calls string) string {
	w.t.Helper()
	for line := range strings.Lines(calls) {
		line = strings.TrimSpace(line)
		word, rest, _ := strings.Cut(line, " ")
		s := w.session()
		switch word {
		case "session":
			w.call.Session = rest
		case "agent":
			w.call.Agent = rest
		case "readonly":
			w.call.ReadOnly = rest == "true"
		case "expires":
			s.ExpiresAt = w.time(rest)
			w.sessions[s.ID] = s
		case "revoked":
			s.Revoked = true
			w.sessions[s.ID] = s
		case "settle":
			actual, err := policy.ParseUSD(rest)
			if err != nil {
				w.t.Fatal(err)
			}
			for _, h := range w.last {
				if h.Money {
					w.add(h.Key, h.Start, int64(actual)-h.Amount)
				}
			}
		case "return":
			for _, h := range w.last {
				w.add(h.Key, h.Start, -h.Amount)
			}
		default:
			w.judge(word, rest, s)
			continue
		}
		fmt.Fprintln(&w.out, line)
	}
	return w.out.String()
}

func (w *world) add(key policy.CounterKey, start time.Time, amount int64) {
	n := w.used[key]
	if !n.Start.Equal(start) {
		n = policy.Counter{Start: start}
	}
	n.Value += amount
	w.used[key] = n
}

func (w *world) judge(at, rest string, s policy.SessionState) {
	w.t.Helper()
	id, args, _ := strings.Cut(rest, " ")
	call := w.call
	call.Upstream, call.Tool, _ = strings.Cut(id, "/")
	if args != "" {
		call.Arguments = json.RawMessage(args)
	}
	// Only what Reads names may matter.
	state := policy.State{Now: w.time(at), Session: s, Used: map[policy.CounterKey]policy.Counter{}}
	for _, key := range w.c.Engine.Reads(call) {
		if n, ok := w.used[key]; ok {
			state.Used[key] = n
		}
	}
	d := w.c.Engine.Decide(call, state)
	out := &w.out
	fmt.Fprintf(out, "%s %s: %s", at, id, d.Verdict)
	if d.Cost > 0 {
		fmt.Fprintf(out, " %s", d.Cost)
	}
	if d.CostFrom != "" {
		fmt.Fprintf(out, " from %s", d.CostFrom)
	}
	if d.Verdict != policy.Allow {
		fmt.Fprintf(out, "\n  %s (%s): %s", d.Policy, d.Rule, d.Reason)
		if !d.RetryAt.IsZero() {
			fmt.Fprintf(out, "\n  retry at %s", d.RetryAt.UTC().Format(time.RFC3339))
		}
		if len(d.Holds) > 0 {
			w.t.Errorf("%s %s holds something though it is refused", at, id)
		}
	}
	for _, f := range d.Also {
		word := "also"
		if f.Shadow {
			word = "shadow"
		}
		fmt.Fprintf(out, "\n  %s %s (%s): %s", word, f.Policy, f.Rule, f.Reason)
	}
	out.WriteByte('\n')
	w.last = d.Holds
	for _, h := range d.Holds {
		w.add(h.Key, h.Start, h.Amount)
	}
}
