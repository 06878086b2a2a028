package report_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/report"
	"github.com/haldir-mcp/haldir/policy"
)

var update = flag.Bool("update", false, "write the golden files anew")

// evil is what a tool may be called.
const evil = "x</td><script>alert(1)</script>|`*[a](javascript:1)\x1b[31m\u202e\n# title"

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func ended(seq uint64, at time.Time, agent, tool string, status audit.Status, cost int64) *audit.Event {
	e := &audit.Event{Record: audit.Record{
		Seq: seq, Time: at, Kind: audit.KindAttempt, Status: audit.StatusRunning, Session: "ses_" + agent, Agent: agent, Client: "host 1.0", Upstream: "shop", Tool: tool, Cost: cost,
	}}
	if status == audit.StatusDenied {
		e.Record.Status, e.Record.Flagged, e.Record.Policy, e.Record.Rule, e.Record.FlagReason = status, true, "deny", "deny-1", "Tool '"+tool+"' is on the deny list"
		return e
	}
	if status != audit.StatusRunning {
		e.Outcome = &audit.Record{Seq: seq + 1, Kind: audit.KindOutcome, Status: status, Ref: seq, Cost: cost, DurationMS: 12}
	}
	return e
}

func sample() *report.Report {
	b := report.New(report.Options{Since: noon.AddDate(0, 0, -30), Generated: noon, Version: "1.2.3"})
	also, err := json.Marshal([]policy.Finding{{Policy: "rate_limit", Rule: "rate", Reason: "Rate limit reached"}, {Policy: "deny", Rule: "watch", Shadow: true, Reason: "seen"}})
	if err != nil {
		panic(err)
	}
	overrun := ended(9, noon.Add(-time.Hour), "bot", "llm", audit.StatusAllowed, 70_000)
	overrun.Outcome.Flagged, overrun.Outcome.FlagReason = true, "overrun: $0.05 reserved, $0.07 actual"
	denied := ended(11, noon.Add(-time.Hour), "bot", evil, audit.StatusDenied, 0)
	denied.Record.Also = also
	pending := audit.Record{Seq: 12, Time: noon, Kind: audit.KindAttempt, Status: audit.StatusPending, Session: "ses_bot", Agent: "bot", Client: "host 1.0", Upstream: "shop", Tool: "pay", Policy: "require_approval", Rule: "ask"}
	refused := pending
	refused.Seq = 17
	said := func(status audit.Status, reason string) *audit.Record {
		return &audit.Record{Kind: audit.KindApproval, Time: noon, Status: status, Approval: "apr_1", FlagReason: reason}
	}
	approved := ended(13, noon, "bot", "pay", audit.StatusAllowed, 2_500_000)
	approved.Record.Approval = "apr_12"
	for _, e := range []*audit.Event{
		{Record: audit.Record{Seq: 1, Time: noon.AddDate(0, 0, -3), Kind: audit.KindSession, Status: audit.StatusCreated, Session: "ses_bot", Agent: "bot"}},
		{Record: audit.Record{Seq: 2, Time: noon.AddDate(0, 0, -3), Kind: audit.KindConfig, Status: "used", ConfigSHA256: audit.Hash{1, 2}}},
		{Record: audit.Record{Seq: 3, Time: noon.AddDate(0, 0, -3), Kind: audit.KindPins, Status: audit.StatusChanged, Upstream: "shop", Tool: "pay", Flagged: true, FlagReason: "its description has changed"}},
		ended(4, noon.AddDate(0, 0, -2), "bot", "pay", audit.StatusAllowed, 1_000_000),
		ended(6, noon.AddDate(0, 0, -1), "other", "look", audit.StatusError, 0),
		overrun, denied, approved,
		{Record: pending, Outcome: said(audit.StatusApproved, "allowed in the terminal")},
		{Record: refused, Outcome: said(audit.StatusDenied, "a person said no")},
		ended(15, noon, "bot", "look", audit.StatusRunning, 0),
	} {
		if err := b.Add(e); err != nil {
			panic(err)
		}
	}
	return b.Report(report.Integrity{Intact: true, Records: 15, Signed: 10, Checkpoints: 2, SignedAt: noon, Head: audit.Hash{9}.String()})
}

func TestGolden(t *testing.T) {
	r := sample()
	for name, write := range map[string]func(*bytes.Buffer) error{
		"report.md": func(b *bytes.Buffer) error { return r.Markdown(b) }, "report.html": func(b *bytes.Buffer) error { return r.HTML(b) },
		"report.json": func(b *bytes.Buffer) error {
			enc := json.NewEncoder(b)
			enc.SetIndent("", "  ")
			return enc.Encode(r)
		},
	} {
		var got bytes.Buffer
		if err := write(&got); err != nil {
			t.Fatal(err)
		}
		path := "testdata/" + name
		if *update {
			if err := os.WriteFile(path, got.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got.String()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// Whatever an agent or a server calls itself, the page has no element and no
// attribute but its own, and needs nothing from elsewhere.
func TestHTMLIsInert(t *testing.T) {
	var page bytes.Buffer
	if err := sample().HTML(&page); err != nil {
		t.Fatal(err)
	}
	doc, err := html.Parse(&page)
	if err != nil {
		t.Fatal(err)
	}
	elements := "html head meta title style body header h1 p div nav ul li a main section h2 table thead tbody tr th td span"
	attributes := "lang charset name content http-equiv class id href scope aria-label aria-labelledby style"
	seen := 0
	for n := range doc.Descendants() {
		if n.Type == html.ElementNode && !slices.Contains(strings.Fields(elements), n.Data) {
			t.Errorf("the page has an element %s", n.Data)
		}
		for _, a := range n.Attr {
			if !slices.Contains(strings.Fields(attributes), a.Key) || a.Key == "href" && !strings.HasPrefix(a.Val, "#") || a.Key == "style" && !strings.HasPrefix(a.Val, "width: ") {
				t.Errorf("%s has an attribute %s=%q", n.Data, a.Key, a.Val)
			}
		}
		if n.Type == html.TextNode && strings.Contains(n.Data, "<script>") {
			seen++ // as text, where a person may see it
		}
	}
	if seen == 0 {
		t.Error("what the tool was called is not shown")
	}
}

// In Markdown it neither breaks out of its cell nor becomes markup.
func TestMarkdownIsInert(t *testing.T) {
	var text bytes.Buffer
	if err := sample().Markdown(&text); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text.String()) {
		bare := strings.NewReplacer(`\\`, "", `\|`, "", `\<`, "", "\\`", "", `\[`, "", `\*`, "", `\#`, "").Replace(line)
		if strings.HasPrefix(line, "|") && strings.Contains(line, "alert(1)") {
			if strings.ContainsAny(bare, "<`[*#") || strings.Count(bare, "|") != 8 {
				t.Errorf("%q is markup", line)
			}
		}
		if strings.HasPrefix(line, "# title") || strings.ContainsAny(line, "\x1b\u202e") {
			t.Errorf("%q came through", line)
		}
	}
}

// A chain that is not intact is said to be so in both.
func TestDamageIsShown(t *testing.T) {
	b := report.New(report.Options{Generated: noon, Version: "1"})
	r := b.Report(report.Integrity{Damage: "audit record 5: edit: it was changed", Records: 4})
	var md, page bytes.Buffer
	if err := r.Markdown(&md); err != nil {
		t.Fatal(err)
	}
	if err := r.HTML(&page); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{md.String(), page.String()} {
		if !strings.Contains(text, "NOT INTACT: audit record 5: edit: it was changed") || strings.Contains(text, "every record has the hash") {
			t.Errorf("nothing is said of the damage:\n%s", text)
		}
	}
	if !strings.Contains(page.String(), "The record is NOT intact") || !strings.Contains(md.String(), "Nobody was asked.") {
		t.Error("the page is not what it should be")
	}
}

// Every division has the same sums, to the millionth, as the events one by one.
func TestTalliesAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tallies := []*report.Tally{}
		for _, by := range report.Divisions {
			tallies = append(tallies, report.NewTally(by))
		}
		var calls, denied uint64
		spent := policy.Micros(0)
		for i := range rapid.IntRange(0, 40).Draw(t, "events") {
			status := rapid.SampledFrom([]audit.Status{audit.StatusRunning, audit.StatusAllowed, audit.StatusError, audit.StatusDenied, audit.StatusAbandoned, audit.StatusApproved}).Draw(t, "status")
			cost := rapid.Int64Range(0, math.MaxInt64/64).Draw(t, "cost")
			e := ended(uint64(i), noon.Add(time.Duration(rapid.IntRange(0, 72).Draw(t, "hour"))*time.Hour), rapid.SampledFrom([]string{"a", "b"}).Draw(t, "agent"), rapid.SampledFrom([]string{"x", "y", "prompt:z"}).Draw(t, "tool"), status, cost)
			switch status {
			case audit.StatusApproved: // the call itself is another entry
			case audit.StatusDenied:
				denied++
			default:
				calls++
				spent += policy.Micros(cost)
			}
			for _, tally := range tallies {
				tally.Add(e)
				tally.Add(&audit.Event{Record: audit.Record{Kind: audit.KindSession}})
			}
		}
		for _, tally := range tallies {
			var sum report.Row
			keys := map[string]bool{}
			for _, r := range tally.Rows() {
				sum.Calls, sum.Denied, sum.Spent = sum.Calls+r.Calls, sum.Denied+r.Denied, sum.Spent+r.Spent
				if keys[r.Key] || r.First.After(r.Last) {
					t.Fatalf("%s: %+v", tally.By, r)
				}
				keys[r.Key] = true
			}
			total := tally.Total()
			if sum.Calls != calls || sum.Denied != denied || sum.Spent != spent || total.Calls != calls || total.Spent != spent {
				t.Fatalf("%s: %+v, total %+v, want %d calls, %d denied, %s", tally.By, sum, total, calls, denied, spent)
			}
		}
	})
}

// A table is bounded, and says so; so is what is remembered.
func TestLongReports(t *testing.T) {
	b := report.New(report.Options{Generated: noon, Version: "1", Until: noon})
	for i := range 1500 {
		for _, at := range []time.Time{noon.Add(-time.Hour), noon} { // the second is not in the period
			e := ended(uint64(i+1), at, fmt.Sprintf("agent-%d", i), "x", audit.StatusAllowed, 1)
			e.Outcome.Flagged, e.Outcome.FlagReason = true, "odd"
			if err := b.Add(e); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := b.Report(report.Integrity{Intact: true})
	if r.Anomalies.Count != 1500 || len(r.Anomalies.List) != 1000 || r.Total.Calls != 1500 {
		t.Errorf("%d anomalies, %d kept, %d calls", r.Anomalies.Count, len(r.Anomalies.List), r.Total.Calls)
	}
	var md bytes.Buffer
	if err := r.Markdown(&md); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(md.String(), "\nand 1400 more.\n"); n != 5 {
		t.Errorf("%d tables say that there is more", n)
	}
}
