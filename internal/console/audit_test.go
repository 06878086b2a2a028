package console_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log" //nolint:depguard // httptest takes no other
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/console/api"
)

type entries struct {
	Count   int
	Entries []audit.Entry
	Next    *string `json:"next_cursor"`
}

func (w *world) audit(key, query string) (e entries) {
	w.t.Helper()
	w.do(key, "GET", "/v1/audit?"+query, "").want(http.StatusOK).into(&e)
	if e.Count != len(e.Entries) {
		w.t.Errorf("%s: count %d of %d", query, e.Count, len(e.Entries))
	}
	return e
}

// busy makes some calls of every kind.
func (w *world) busy(key string) (one, two string) {
	one, two = w.session(key, `{"agent_id":"bot","scopes":["execute"],"ttl":0}`), w.session(key, `{"agent_id":"other","scopes":["execute","spend"],"ttl":0}`)
	for i := range 4 {
		w.call(key, one, "scan_domain", fmt.Sprintf(`{"domain":"d%d"}`, i)).want(http.StatusOK)
	}
	w.clock.add(time.Hour)
	w.call(key, two, "buy_report", `{"domain":"a","amount":2.5}`).want(http.StatusOK)
	w.call(key, two, "drop_table", `{}`).problem(http.StatusForbidden, "refused")
	w.call(key, two, "break", `{}`).problem(http.StatusBadGateway, "upstream")
	return one, two
}

const noDrops = "  - {type: deny, tools: [drop_table], id: no-drops}\n  - {type: deny, tools: [buy_report], id: look, mode: shadow}\n"

func TestTheAuditByPagesAndFilters(t *testing.T) {
	w := start(t, noDrops)
	key := w.key("all")
	_, two := w.busy(key)
	var seen []uint64
	cursor := ""
	for {
		e := w.audit(key, "limit=3"+cursor)
		for _, x := range e.Entries {
			seen = append(seen, x.Seq)
		}
		if e.Next == nil {
			break
		}
		cursor = "&cursor=" + *e.Next
	}
	all := w.audit(key, "limit=1000")
	var want []uint64
	for _, x := range all.Entries {
		want = append(want, x.Seq)
	}
	if diff := cmp.Diff(want, seen); diff != "" || len(want) < 9 {
		t.Errorf("%d: %s", len(want), diff)
	}
	for query, n := range map[string]int{
		"session_id=" + two: 4, "agent_id=other": 4, "tool=scan_domain": 4, "tool=security-tools/scan_domain": 4, "upstream=slow": 1, "status=denied": 1,
		"status=error": 1, "flagged=true": 1, "since=30m": 3, "until=30m&tool=scan_domain": 4, "since=2026-11-24T17:30:00Z&status=allowed": 1, "tool=nothing": 0,
	} {
		if query == "session_id="+two || query == "agent_id=other" {
			if e := w.audit(key, query); e.Count != n { // with the record of the session itself
				t.Errorf("%s: %d, want %d", query, e.Count, n)
			}
			continue
		}
		e := w.audit(key, query)
		calls := 0
		for _, x := range e.Entries {
			if x.Kind == "attempt" {
				calls++
			}
		}
		if calls != n {
			t.Errorf("%s: %d, want %d", query, calls, n)
		}
	}
	denied := w.audit(key, "status=denied").Entries[0]
	if !denied.Flagged || denied.FlagReason != "Tool 'drop_table' is on the deny list" || denied.Policy != "deny" || denied.Rule != "no-drops" || denied.Client != "api key test" {
		t.Errorf("%+v", denied)
	}
}

func TestTheNumbersAgreeWithTheEntries(t *testing.T) {
	w := start(t, noDrops+"  - {type: require_approval, tools: [wait], timeout: 24h, remember: [call, session]}\n")
	key := w.key("all")
	one, two := w.busy(key)
	close(w.slow.end)
	type stats struct {
		Since, Until time.Time
		ByTool       []struct {
			Tool                  string
			Calls, Denied, Errors int
			CostUSD               float64 `json:"cost_usd"`
		} `json:"by_tool"`
		ByStatus []struct {
			Status string
			Count  int
		} `json:"by_status"`
		ByPolicy []struct {
			Policy, Rule string
			Denied       int
		} `json:"by_policy"`
		Spend []struct {
			At      time.Time
			CostUSD float64 `json:"cost_usd"`
		}
	}
	check := func(query string) stats {
		t.Helper()
		var s stats
		w.do(key, "GET", "/v1/audit/stats?"+query, "").want(http.StatusOK).into(&s)
		all := w.audit(key, "limit=1000&since="+s.Since.Format(time.RFC3339Nano))
		status, tools := map[string]int{}, map[string]int{}
		for _, x := range all.Entries {
			if x.Kind == "attempt" && x.Status != "approved" { // what came of it is an entry of its own
				status[string(x.Status)]++
				tools[x.Upstream+"/"+x.Tool]++
			}
		}
		got, gotTools := map[string]int{}, map[string]int{}
		for _, x := range s.ByStatus {
			if x.Count != 0 {
				got[x.Status] = x.Count
			}
		}
		for _, x := range s.ByTool {
			gotTools[x.Tool] = x.Calls
		}
		if diff := cmp.Diff(status, got) + cmp.Diff(tools, gotTools); diff != "" {
			t.Errorf("%s: %s", query, diff)
		}
		return s
	}
	s := check("")
	if !s.Since.Equal(noon.Add(-23*time.Hour)) || !s.Until.Equal(noon.Add(time.Hour)) || len(s.Spend) != 25 || s.Spend[24].CostUSD != 2.5 || s.Spend[23].CostUSD != 0 {
		t.Errorf("%+v", s.Spend)
	}
	rules := map[string]int{}
	for _, x := range s.ByPolicy {
		rules[x.Rule] = x.Denied
	}
	if diff := cmp.Diff(map[string]int{"no-drops": 1, "look": 1}, rules); diff != "" {
		t.Error(diff)
	}
	if s := check("since=30m"); len(s.ByTool) != 3 {
		t.Errorf("%+v", s.ByTool)
	}
	// What comes later is added to what is known.
	w.call(key, one, "scan_domain", `{"domain":"later"}`).want(http.StatusOK)
	check("")
	w.clock.add(3 * time.Minute)
	check("since=24h")
	// A call that a person allows is one call, and so is every other that the same word allows.
	stop, err := w.led.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { w.call(key, one, "wait", `{}`).want(http.StatusOK) })
	p := w.waiting(key, 1)[0]
	check("")
	w.do(key, "POST", "/v1/approvals/"+p.ID+"/approve", `{"for_session":true}`).want(http.StatusOK)
	wg.Wait()
	check("")
	w.call(key, one, "wait", `{}`).want(http.StatusOK)
	for _, x := range check("").ByTool {
		if x.Tool == "slow/wait" && x.Calls != 2 {
			t.Errorf("two calls are %d", x.Calls)
		}
	}

	var spend struct {
		Total  float64            `json:"total_usd"`
		Calls  int                `json:"action_count"`
		ByTool map[string]float64 `json:"by_tool"`
		Agents map[string]float64 `json:"by_agent"`
	}
	w.do(key, "GET", "/v1/audit/spend", "").want(http.StatusOK).into(&spend)
	if spend.Total != 2.5 || spend.Calls != 9 || spend.ByTool["security-tools/buy_report"] != 2.5 || spend.Agents["other"] != 2.5 {
		t.Errorf("%+v", spend)
	}
	w.do(key, "GET", "/v1/audit/spend?session_id="+two, "").want(http.StatusOK).into(&spend)
	if spend.Total != 2.5 || spend.Calls != 2 {
		t.Errorf("%+v", spend)
	}
	w.do(key, "GET", "/v1/audit/spend?session_id="+two+"&agent_id=bot", "").problem(http.StatusNotFound, "not-found")
	w.do(key, "GET", "/v1/audit/spend?session_id=ses_none", "").problem(http.StatusNotFound, "not-found")

	var policies struct {
		Policies []struct {
			ID     string
			Mode   string
			Denied int
		}
	}
	w.do(key, "GET", "/v1/proxy/policies", "").want(http.StatusOK).into(&policies)
	for i, want := range []string{"no-drops enforce 1", "look shadow 1"} {
		if p := policies.Policies[i]; fmt.Sprintf("%s %s %d", p.ID, p.Mode, p.Denied) != want {
			t.Errorf("%+v, want %s", p, want)
		}
	}
}

func TestTheExportIsWhole(t *testing.T) {
	w := start(t, noDrops)
	key := w.key("all")
	w.busy(key)
	get := func(query string) ([]byte, audit.Manifest) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+"/v1/audit/export?"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-API-Key", key)
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK || !strings.HasPrefix(res.Header.Get("Content-Disposition"), "attachment;") {
			t.Fatalf("%d %v %v", res.StatusCode, err, res.Header)
		}
		var m audit.Manifest
		if err := json.Unmarshal([]byte(res.Trailer.Get("Haldir-Manifest")), &m); err != nil {
			t.Fatalf("the manifest %q: %v", res.Trailer.Get("Haldir-Manifest"), err)
		}
		if sum := sha256.Sum256(body); m.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: the manifest is of other contents", query)
		}
		return body, m
	}
	body, m := get("")
	lines := bytes.Split(bytes.TrimSpace(body), []byte("\n"))
	if uint64(len(lines)) != m.Count || m.First != 1 || m.Last != m.Count {
		t.Errorf("%d lines, %+v", len(lines), m)
	}
	prev := ""
	for _, line := range lines {
		var x audit.Exported
		if err := json.Unmarshal(line, &x); err != nil {
			t.Fatal(err)
		}
		if prev != "" && x.PrevHash.String() != prev {
			t.Fatalf("record %d does not follow", x.Seq)
		}
		prev = x.Hash.String()
	}
	if m.Head.String() != prev {
		t.Errorf("the head is %s, not %s", m.Head, prev)
	}
	rows, err := csv.NewReader(bytes.NewReader(first(get("format=csv")))).ReadAll()
	if err != nil || len(rows) != len(lines)+1 || cmp.Diff(audit.CSVHeader(), rows[0]) != "" {
		t.Errorf("%d rows, %v", len(rows), err)
	}
	if _, m := get("from=5"); m.First != 5 {
		t.Errorf("%+v", m)
	}
	body, m = get("status=denied")
	var x audit.Entry
	if err := json.Unmarshal(body, &x); err != nil || m.Count != 1 || x.Tool != "drop_table" || m.First != x.Seq || m.Last != x.Seq {
		t.Errorf("%s %+v %v", body, m, err)
	}
	// A spreadsheet must not take a tool's name for a formula.
	s := w.session(key, `{"agent_id":"=HYPERLINK(1)","scopes":["execute"]}`)
	w.call(key, s, "scan_domain", `{"domain":"a"}`).want(http.StatusOK)
	rows, err = csv.NewReader(bytes.NewReader(first(get("format=csv&session_id=" + s)))).ReadAll()
	if err != nil || len(rows) != 3 || rows[1][4] != "'=HYPERLINK(1)" {
		t.Errorf("%v, %v", rows, err)
	}
}

func first(b []byte, _ audit.Manifest) []byte { return b }

func TestTheChainIsVerified(t *testing.T) {
	w := start(t, "")
	key := w.key("all")
	w.busy2(key)
	var v struct {
		OK, Verified bool
		Records      uint64
		Checked      uint64 `json:"entries_checked"`
		Head         string
	}
	w.do(key, "GET", "/v1/audit/verify", "").want(http.StatusOK).into(&v)
	if !v.OK || !v.Verified || v.Records == 0 || v.Records != v.Checked || len(v.Head) != 64 {
		t.Errorf("%+v", v)
	}
}

func (w *world) busy2(key string) {
	s := w.session(key, everything)
	w.call(key, s, "scan_domain", `{"domain":"a"}`).want(http.StatusOK)
}

// TestAnExportEndsWithItsKey: it breaks off at the next page.
func TestAnExportEndsWithItsKey(t *testing.T) {
	w := start(t, "")
	for range 600 {
		w.key("audit:read") // records, more than a page of them
	}
	for _, query := range []string{"", "?since=24h"} {
		for _, pages := range []int{1, 100} {
			asked := 0
			ts := httptest.NewUnstartedServer(w.api.Handler(func(http.ResponseWriter, *http.Request) *api.Caller {
				return &api.Caller{Person: true, Valid: func() bool { asked++; return asked <= pages }}
			}))
			ts.Config.ErrorLog = log.New(io.Discard, "", 0)
			ts.Start()
			res, err := client.Get(ts.URL + "/v1/audit/export" + query)
			if err == nil {
				_, err = io.ReadAll(res.Body)
				_ = res.Body.Close()
			}
			ts.Close()
			if whole := err == nil; whole != (pages == 100) {
				t.Errorf("%q, %d pages: %v", query, pages, err)
			}
		}
	}
}
