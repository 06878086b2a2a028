package audit_test

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/audit"
)

// ocsfSchema says what the class demands: which attributes there are, which must be,
// which numbers go with which words.
func ocsfSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := os.ReadFile("testdata/ocsf.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("ocsf.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("ocsf.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Any record becomes a valid event, whatever is in it.
func TestOCSFIsValid(t *testing.T) {
	schema := ocsfSchema(t)
	statuses := append([]audit.Status{"used", audit.StatusCreated, audit.StatusGovernance}, audit.CallStatuses...)
	kinds := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		r := records().Draw(t, "record")
		if rapid.Bool().Draw(t, "call") {
			r.Kind, r.Status = audit.KindAttempt, rapid.SampledFrom(statuses).Draw(t, "status")
		}
		if rapid.Bool().Draw(t, "plain") {
			r.Tool = rapid.SampledFrom([]string{"", "read", "resource:file:///a", "prompt:hello"}).Draw(t, "tool")
		}
		e := audit.Event{Record: r, Hash: audit.Sum(r.Encode())}
		if rapid.Bool().Draw(t, "ended") {
			out := records().Draw(t, "outcome")
			out.Kind, out.Status = audit.KindOutcome, rapid.SampledFrom(audit.CallStatuses).Draw(t, "ended as")
			e.Outcome, e.OutcomeHash = &out, audit.Sum(out.Encode())
		}
		raw, err := json.Marshal(e.OCSF("1.2.3"))
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); err != nil {
			t.Fatalf("%v\n%s", err, raw)
		}
		kinds[r.Kind.String()]++
	})
	if kinds["attempt"] < 20 {
		t.Errorf("of the events were attempts: %v", kinds)
	}
}

// A few events as they are written, one a line.
func TestOCSFGolden(t *testing.T) {
	noon := time.Date(2026, 11, 24, 12, 0, 0, 123456789, time.UTC)
	call := audit.Record{
		Seq: 7, Prev: audit.Hash{7}, Time: noon, Kind: audit.KindAttempt, Status: audit.StatusRunning, CallID: "proc-call", Session: "ses_1", Agent: "research-bot", Client: "claude-code 2.1",
		Upstream: "files", Tool: "read_file", Cost: 4000, Arguments: []byte(`{"path":"<a>","password":"[redacted]"}`), ArgumentsSHA256: audit.Hash{1}, ArgumentsSize: 40, ConfigSHA256: audit.Hash{2},
	}
	outcome := audit.Record{Seq: 8, Time: noon.Add(12 * time.Millisecond), Kind: audit.KindOutcome, Status: audit.StatusAllowed, Ref: 7, DurationMS: 12, Cost: 4000, ResultSHA256: audit.Hash{3}}
	failed := outcome
	failed.Status, failed.Flagged, failed.FlagReason = audit.StatusError, true, "the connection was lost"
	denied := call
	denied.Seq, denied.Status, denied.Cost, denied.Flagged, denied.FlagReason = 9, audit.StatusDenied, 0, true, "Tool 'read_file' is on the deny list"
	denied.Policy, denied.Rule, denied.Also = "deny", "deny-1", []byte(`[{"policy":"rate_limit","rule":"r","reason":"x"}]`)
	resource := call
	resource.Seq, resource.Tool, resource.Arguments = 10, "resource:file:///etc/hosts", nil
	pending, approved := call, audit.Record{Seq: 14, Time: noon.Add(time.Minute), Kind: audit.KindApproval, Status: audit.StatusApproved, Ref: 13, Approval: "apr_13", FlagReason: "allowed in the terminal"}
	pending.Seq, pending.Status, pending.Policy, pending.Rule, pending.FlagReason = 13, audit.StatusPending, "require_approval", "ask", "a person must allow it"
	events := []audit.Event{
		{Record: call, Hash: audit.Hash{8}, Outcome: &outcome, OutcomeHash: audit.Hash{9}},
		{Record: call, Hash: audit.Hash{8}, Outcome: &failed, OutcomeHash: audit.Hash{9}},
		{Record: denied, Hash: audit.Hash{8}},
		{Record: resource, Hash: audit.Hash{8}},
		{Record: pending, Hash: audit.Hash{8}, Outcome: &approved, OutcomeHash: audit.Hash{9}},
		{Record: audit.Record{Seq: 11, Time: noon, Kind: audit.KindSession, Status: audit.StatusRevoked, Session: "ses_1", Agent: "research-bot"}, Hash: audit.Hash{8}},
		{Record: audit.Record{Seq: 12, Time: noon, Kind: audit.KindPins, Status: audit.StatusChanged, Upstream: "files", Tool: "read_file", Flagged: true, FlagReason: "its description has changed"}, Hash: audit.Hash{8}},
	}
	schema := ocsfSchema(t)
	var got bytes.Buffer
	lines := json.NewEncoder(&got)
	lines.SetEscapeHTML(false)
	for i := range events {
		if err := lines.Encode(events[i].OCSF("1.2.3")); err != nil {
			t.Fatal(err)
		}
	}
	for line := range strings.Lines(got.String()) {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(line))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); err != nil {
			t.Errorf("%v\n%s", err, line)
		}
	}
	const golden = "testdata/ocsf.golden.jsonl"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Error(diff)
	}
}
