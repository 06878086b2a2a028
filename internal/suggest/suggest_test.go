package suggest_test

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/replay"
	"github.com/haldir-mcp/haldir/internal/suggest"
	"github.com/haldir-mcp/haldir/policy"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	for name, value := range map[string]string{"rapid.nofailfile": "true", "rapid.shrinktime": "1s"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// history is a list of records.
type history struct {
	records [][]byte
	now     time.Time
}

func begin() *history { return &history{now: time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)} }

func (h *history) add(r audit.Record) uint64 {
	r.Seq, r.Time = uint64(len(h.records)+1), h.now
	h.records = append(h.records, r.Encode())
	return r.Seq
}

// call is a call that was let through and costs so much, with its outcome.
func (h *history) call(session, agent, id string, status audit.Status, cost policy.Micros) {
	upstream, tool, _ := strings.Cut(id, "/")
	for _, prefix := range []string{"resource:", "prompt:"} {
		if own, ok := strings.CutPrefix(upstream, prefix); ok {
			upstream, tool = own, prefix+tool
		}
	}
	args := fmt.Appendf(nil, `{"amount":%s}`, strings.TrimPrefix(cost.String(), "$"))
	r := audit.Record{
		Kind: audit.KindAttempt, Status: audit.StatusRunning, Session: session, Agent: agent, Upstream: upstream, Tool: tool, Cost: int64(cost),
		Arguments: args, ArgumentsSize: uint64(len(args)), ArgumentsSHA256: sha256.Sum256(args),
	}
	if status == audit.StatusDenied {
		r.Status, r.Flagged, r.Policy, r.Rule, r.Cost = status, true, "rate_limit", "old", 0
		h.add(r)
		return
	}
	seq := h.add(r)
	if status != audit.StatusRunning {
		h.add(audit.Record{Kind: audit.KindOutcome, Status: status, Ref: seq, Cost: int64(cost)})
	}
}

func (h *history) walk(f func(uint64, []byte) error) error {
	for i, raw := range h.records {
		if err := f(uint64(i+1), raw); err != nil {
			return err
		}
	}
	return nil
}

// priced are costs that the calls of [history.call] agree with.
var priced = []policy.Cost{{Tools: []string{"pay/*"}, FromArgument: "/amount", HasFromArgument: true}}

// check reads the suggestion as haldir would, and replays the history with it.
func check(t interface {
	Helper()
	Fatalf(string, ...any)
}, h *history, s *suggest.Suggestion,
) replay.Report {
	t.Helper()
	text := s.YAML()
	cfg, err := config.Parse([]byte(text), "suggested.yaml")
	if err != nil {
		t.Fatalf("the suggestion does not load: %v\n%s", err, text)
	}
	if diff := cmp.Diff(s.Policies, cfg.Ruleset.Policies, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(policy.Rule{}, "Location")); diff != "" {
		t.Fatalf("the text has other rules than were tried: %s\n%s", diff, text)
	}
	r := replay.New(replay.Options{Engine: cfg.Engine, Examples: 1})
	if err := h.walk(r.Add); err != nil {
		t.Fatalf("%v", err)
	}
	return r.Report()
}

// The promise: a suggestion loads, and refuses nothing that was let through, whatever
// was refused beside it.
func TestNothingThatWasAllowedIsRefused(t *testing.T) {
	raised := 0
	rapid.Check(t, func(t *rapid.T) {
		h := begin()
		tools := []string{"pay/charge", "pay/x", "files/read", "files/delete *[a]?\\", "odd/\u202e\x1b\"'#: \u00e9\U0001f600\x7f", "resource:files/file:///a", "prompt:files/hello"}
		for range rapid.IntRange(0, 60).Draw(t, "calls") {
			if rapid.IntRange(0, 3).Draw(t, "pause") == 0 {
				h.now = h.now.Add(time.Duration(rapid.Int64Range(0, int64(20*time.Hour)).Draw(t, "long")))
			}
			h.now = h.now.Add(time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "short")))
			id := rapid.SampledFrom(tools).Draw(t, "tool")
			cost := policy.Micros(0)
			if strings.HasPrefix(id, "pay/") {
				cost = policy.Micros(rapid.Int64Range(0, 5_000_000).Draw(t, "cost"))
			}
			status := rapid.SampledFrom([]audit.Status{audit.StatusAllowed, audit.StatusError, audit.StatusDenied, audit.StatusDenied, audit.StatusRunning}).Draw(t, "status")
			for range rapid.SampledFrom([]int{1, 1, 1, 12}).Draw(t, "times") {
				h.call(rapid.SampledFrom([]string{"ses_a", "ses_b"}).Draw(t, "session"), rapid.SampledFrom([]string{"bot", "we?rd"}).Draw(t, "agent"), id, status, cost)
			}
		}
		s, err := suggest.Make(suggest.Options{Now: h.now, Costs: priced, Agent: rapid.SampledFrom([]string{"", "bot", "we?rd", "nobody"}).Draw(t, "for"), Listed: tools}, h.walk)
		if err != nil {
			t.Fatal(err)
		}
		if r := check(t, h, s); r.NewlyDenied > 0 || r.Undecided > 0 {
			t.Fatalf("%+v\n%s", r, s.YAML())
		}
		if strings.Contains(s.YAML(), "all attempts") {
			raised++
		}
	})
	if raised == 0 {
		t.Error("no limit had to be raised")
	}
}

// What was not used is refused: tools, resources, prompts and other agents' tools.
func TestLeastPrivilege(t *testing.T) {
	h := begin()
	h.call("ses_a", "bot", "files/read", audit.StatusAllowed, 0)
	h.call("ses_a", "bot", "files/write", audit.StatusDenied, 0)
	s, err := suggest.Make(suggest.Options{Now: h.now}, h.walk)
	if err != nil {
		t.Fatal(err)
	}
	engine, err := policy.Compile(policy.Ruleset{Policies: s.Policies})
	if err != nil {
		t.Fatal(err)
	}
	state := policy.State{Now: h.now, Session: policy.SessionState{AllScopes: true}}
	for c, want := range map[*policy.Call]policy.Verdict{
		{Upstream: "files", Tool: "read"}:                                    policy.Allow,
		{Upstream: "files", Tool: "write"}:                                   policy.Deny,
		{Upstream: "other", Tool: "read"}:                                    policy.Deny,
		{Upstream: "files", Tool: "file:///a", Kind: policy.KindResource}:    policy.Deny,
		{Upstream: "files", Tool: "read", Kind: policy.KindPrompt}:           policy.Deny,
		{Upstream: "files", Tool: "read", Agent: "x"}:                        policy.Allow,
		{Upstream: "files", Tool: "READ", Arguments: []byte(`{"any":true}`)}: policy.Deny,
	} {
		if d := engine.Decide(*c, state); d.Verdict != want {
			t.Errorf("%+v: %s, want %s", *c, d.Verdict, want)
		}
	}
}

// Many resources of one server become a pattern.
func TestManyResources(t *testing.T) {
	h := begin()
	for i := range 40 {
		h.call("ses_a", "bot", fmt.Sprintf("resource:files/file:///%d", i), audit.StatusAllowed, 0)
	}
	h.call("ses_a", "bot", "resource:docs/file:///a[1].md", audit.StatusAllowed, 0)
	s, err := suggest.Make(suggest.Options{Now: h.now}, h.walk)
	if err != nil {
		t.Fatal(err)
	}
	if r := check(t, h, s); r.NewlyDenied > 0 || r.StillAllowed != 41 {
		t.Errorf("%+v", r)
	}
	if diff := cmp.Diff([]string{`resource:docs/file:///a\[1].md`, "resource:files/*"}, s.Policies[0].Tools); diff != "" {
		t.Error(diff)
	}
}

func TestGolden(t *testing.T) {
	h := begin()
	for i := range 1234 {
		h.now = h.now.Add(7 * time.Minute)
		status := audit.StatusAllowed
		if i%100 == 0 {
			status = audit.StatusError
		}
		h.call(fmt.Sprintf("ses_%d", i/300), "bot", "files/read_file", status, 0)
		if i%30 == 0 {
			h.call(fmt.Sprintf("ses_%d", i/300), "bot", "pay/charge", audit.StatusAllowed, 1_250_000)
		}
	}
	for range 30 {
		h.call("ses_4", "bot", "files/list", audit.StatusAllowed, 0)
	}
	h.call("ses_4", "bot", "pay/refund", audit.StatusError, 0)
	h.call("ses_4", "bot", "files/list", audit.StatusDenied, 0)
	h.call("ses_4", "bot", "files/delete_all", audit.StatusDenied, 0)
	h.call("ses_4", "other", "files/else", audit.StatusAllowed, 0)
	h.call("ses_4", "bot", "prompt:files/summary", audit.StatusAllowed, 0)
	s, err := suggest.Make(suggest.Options{
		Now: h.now, Costs: append(priced, policy.Cost{Tools: []string{"llm"}, USD: 50_000, FromResult: "/_meta/cost_usd"}), Agent: "bot",
		Scopes: []policy.Scope{{Tools: []string{"*/list*"}, Require: []string{"read"}}},
		Listed: []string{"files/read_file", "files/list", "files/delete_all", "files/move_file", "pay/charge"},
	}, h.walk)
	if err != nil {
		t.Fatal(err)
	}
	check(t, h, s)
	const golden = "testdata/suggestion.yaml"
	if *update {
		if err := os.WriteFile(golden, []byte(s.YAML()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), s.YAML()); diff != "" {
		t.Error(diff)
	}
}
