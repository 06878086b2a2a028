package ledger_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// What the filters of these tests are drawn from; each list ends with something
// that is not there.
var (
	someSessions  = []string{"ses_0", "ses_1", "ses_2", "ses_none"}
	someAgents    = []string{"bot", "other", "nobody"}
	someUpstreams = []string{"shop", "files", "haldir", "nowhere"}
	someTools     = []string{"pay", "ask", "look", "steal", "read", "haldir_get_spend", "shop/pay", "files/look", "shop/look", "files/read", "x", "shop/x"}
	someStatuses  = []audit.Status{
		audit.StatusRunning, audit.StatusAllowed, audit.StatusError, audit.StatusDenied, audit.StatusCancelled, audit.StatusAbandoned,
		audit.StatusGovernance, audit.StatusCreated, audit.StatusRevoked, "used", "unheard of",
	}
)

// archive makes a ledger with a bit of everything in it, settled in another
// order than it was reserved.
func archive(tb testing.TB) (*ledger.Ledger, *fakeClock) {
	tb.Helper()
	dir, clock := stateDir(tb), newClock()
	e := engine(tb, shop())
	rng := rand.New(rand.NewPCG(5, 6))
	var l *ledger.Ledger
	for i := range 3 { // each leaves abandoned calls to the next, the last running ones
		l = open(tb, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
		var tickets []ledger.Ticket
		for range 40 {
			clock.add(time.Duration(rng.IntN(3)) * time.Second)
			a := call(someSessions[rng.IntN(3)], "", `{"amount":0.01}`)
			a.Use.Terms.Agent = someAgents[rng.IntN(2)]
			a.Config = audit.Sum([]byte{byte(rng.IntN(3))})
			a.Call.Upstream = someUpstreams[rng.IntN(2)]
			a.Call.Tool = []string{"pay", "ask", "look", "steal", "read"}[rng.IntN(5)]
			switch rng.IntN(12) {
			case 0:
				a.Call.Upstream, a.Call.Tool = "haldir", "haldir_get_spend"
				if err := l.Record(context.Background(), a, []string{"", "failed"}[rng.IntN(2)]); err != nil {
					tb.Fatal(err)
				}
			case 1:
				a.Use = ledger.Use{ID: "ses_unknown"}
				fallthrough
			default:
				ticket, _ := reserve(tb, l, a, e)
				tickets = append(tickets, ticket)
			}
			for len(tickets) > 0 && rng.IntN(3) > 0 {
				i := rng.IntN(len(tickets))
				l.Settle(tickets[i], ledger.Outcome{Result: ledger.Result(rng.IntN(6)), Reason: []string{"", "odd"}[rng.IntN(2)]})
				tickets = slices.Delete(tickets, i, i+1)
			}
		}
		if _, d := reserve(tb, l, call("ses_0", "look", `{}`), e); d.Verdict != policy.Allow {
			tb.Fatalf("no call is left open: %s", d.Reason)
		}
		flush(tb, l)
		if _, err := l.Revoke(context.Background(), "ses_2", false); err != nil {
			tb.Fatal(err)
		}
		if i < 2 {
			closeLedger(tb, l)
		}
	}
	return l, clock
}

// scan returns every entry, oldest first, by asking for each number.
func scan(tb testing.TB, l *ledger.Ledger) []audit.Entry {
	tb.Helper()
	var all []audit.Entry
	for seq := uint64(1); ; seq++ {
		e, ok, err := l.Entry(context.Background(), seq)
		if err != nil {
			tb.Fatal(err)
		}
		if !ok {
			return all
		}
		if e.Seq == seq { // else the number is an outcome's
			all = append(all, e)
		}
	}
}

// naive is what Filter's documentation says, entry by entry.
func naive(f audit.Filter, e audit.Entry) bool {
	governance, isCall := e.Kind == audit.KindGovernance.String(), e.Kind == audit.KindAttempt.String() || e.Kind == audit.KindGovernance.String()
	return (f.Session == "" || e.SessionID == f.Session) &&
		(f.Agent == "" || e.AgentID == f.Agent) &&
		(f.Upstream == "" || e.Upstream == f.Upstream) &&
		(f.Tool == "" || isCall && (e.Tool == f.Tool || e.Upstream+"/"+e.Tool == f.Tool)) &&
		(f.Status == "" || e.Status == f.Status) &&
		(!f.Flagged || e.Flagged) &&
		(f.Since.IsZero() || !e.Timestamp.Before(f.Since)) &&
		(f.Until.IsZero() || e.Timestamp.Before(f.Until)) &&
		(!governance || f.Governance || f.Status == audit.StatusGovernance) &&
		(!f.Calls || isCall) &&
		(f.Before == 0 || e.Seq < f.Before)
}

// filters draws one; each field is left out half of the time.
func filters(clock *fakeClock, records int) *rapid.Generator[audit.Filter] {
	return rapid.Custom(func(t *rapid.T) (f audit.Filter) {
		maybe := func(what string) bool { return rapid.Bool().Draw(t, what) }
		if maybe("by session") {
			f.Session = rapid.SampledFrom(append(slices.Clone(someSessions), "ses_unknown")).Draw(t, "session")
		}
		if maybe("by agent") {
			f.Agent = rapid.SampledFrom(someAgents).Draw(t, "agent")
		}
		if maybe("by upstream") {
			f.Upstream = rapid.SampledFrom(someUpstreams).Draw(t, "upstream")
		}
		if maybe("by tool") {
			f.Tool = rapid.SampledFrom(someTools).Draw(t, "tool")
		}
		if maybe("by status") {
			f.Status = rapid.SampledFrom(someStatuses).Draw(t, "status")
		}
		f.Flagged = rapid.IntRange(0, 3).Draw(t, "flagged") == 0
		f.Governance = maybe("governance")
		f.Calls = rapid.IntRange(0, 3).Draw(t, "calls") == 0
		at := func(what string) time.Time {
			return newClock().now().Add(rapid.Custom(func(t *rapid.T) time.Duration {
				return time.Duration(rapid.Int64Range(-10, int64(clock.now().Sub(newClock().now())/time.Second)+10).Draw(t, "s")) * time.Second
			}).Draw(t, what))
		}
		if rapid.IntRange(0, 3).Draw(t, "from") == 0 {
			f.Since = at("since")
		}
		if rapid.IntRange(0, 3).Draw(t, "to") == 0 {
			f.Until = at("until")
		}
		if rapid.IntRange(0, 3).Draw(t, "below") == 0 {
			f.Before = rapid.Uint64Range(1, uint64(records)+5).Draw(t, "before")
		}
		return f
	})
}

func seqs(list []audit.Entry) []uint64 {
	out := make([]uint64, 0, len(list))
	for _, e := range list {
		out = append(out, e.Seq)
	}
	return out
}

// Whatever the filter and the size of the pages: paging by next gives exactly
// the entries that a look at each of them would select, each once.
func TestPagingGivesWhatANaiveScanSelects(t *testing.T) {
	l, clock := archive(t)
	all := scan(t, l)
	seen := map[string]int{}
	for _, e := range all {
		seen[string(e.Status)]++
	}
	for _, s := range someStatuses[:len(someStatuses)-1] {
		if seen[string(s)] == 0 {
			t.Errorf("the archive has nothing that is %s: %v", s, seen)
		}
	}
	check := func(t interface{ Fatalf(string, ...any) }, f audit.Filter, limit int) {
		f.Before = 0
		var want []audit.Entry
		for _, e := range all {
			if naive(f, e) {
				want = append(want, e)
			}
		}
		var got []audit.Entry
		f.Limit = limit
		for range len(all) + 2 {
			page, next, err := l.Find(context.Background(), f)
			if err != nil {
				t.Fatalf("%+v: %v", f, err)
			}
			if len(page) > limit || next != 0 && len(page) < limit {
				t.Fatalf("%+v: a page of %d entries, next %d", f, len(page), next)
			}
			got = append(got, page...)
			f.Before = next
			if next == 0 {
				break
			}
		}
		slices.SortStableFunc(got, func(a, b audit.Entry) int { return cmp.Compare(a.Seq, b.Seq) })
		if d := gocmp.Diff(seqs(want), seqs(got)); d != "" {
			t.Fatalf("%+v (-naive +found):\n%s", f, d)
		}
		if d := gocmp.Diff(want, got); d != "" {
			t.Fatalf("%+v: the entries differ (-naive +found):\n%s", f, d)
		}
	}
	// Each filter by itself, and then any combination.
	single := []audit.Filter{{}, {Governance: true}, {Flagged: true}, {Calls: true}, {Since: newClock().now().Add(time.Minute)}, {Until: newClock().now().Add(time.Minute)}}
	for _, s := range someSessions {
		single = append(single, audit.Filter{Session: s})
	}
	for _, s := range someAgents {
		single = append(single, audit.Filter{Agent: s})
	}
	for _, s := range someUpstreams {
		single = append(single, audit.Filter{Upstream: s})
	}
	for _, s := range someTools {
		single = append(single, audit.Filter{Tool: s})
	}
	for _, s := range someStatuses {
		single = append(single, audit.Filter{Status: s}, audit.Filter{Status: s, Flagged: true})
	}
	for _, f := range single {
		for _, limit := range []int{1, 7, 1000} {
			check(t, f, limit)
		}
	}
	for range 8 { // rapid.checks is small for the state machine's sake
		rapid.Check(t, func(t *rapid.T) {
			check(t, filters(clock, len(all)).Draw(t, "filter"), rapid.IntRange(1, 30).Draw(t, "limit"))
		})
	}
}

// A tool's own name may contain a slash; Filter.Tool takes the canonical id or
// the own name.
func TestAToolsOwnNameMayContainASlash(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	ticket, _ := reserve(t, l, call("ses_a", "v1/look", `{}`), e)
	for _, f := range []audit.Filter{{Tool: "shop/v1/look"}, {Tool: "v1/look"}, {Tool: "v1/look", Session: "ses_a"}} {
		got, _, err := l.Find(context.Background(), f)
		if err != nil || len(got) != 1 || got[0].Seq != ticket.Seq {
			t.Errorf("%+v: found %v, %v", f, seqs(got), err)
		}
	}
}

// Names have no limit; keys of the database do.
func TestLongNamesAreFoundLikeShortOnes(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	long := strings.Repeat("n", 600)
	var want []uint64
	for i := range 4 { // two that differ only at their ends, twice
		a := call("ses_a", long+fmt.Sprint(i%2), `{"amount":1}`)
		ticket, _ := reserve(t, l, a, e)
		want = append(want, ticket.Seq)
	}
	for i := range uint64(2) {
		for _, tool := range []string{fmt.Sprintf("%s%d", long, i), fmt.Sprintf("shop/%s%d", long, i)} {
			got, _, err := l.Find(context.Background(), audit.Filter{Tool: tool})
			if err != nil || !slices.Equal(seqs(got), []uint64{want[2+i], want[i]}) {
				t.Errorf("…%s: %v %v, want %v", tool[590:], seqs(got), err, []uint64{want[2+i], want[i]})
			}
		}
	}
	verify(t, l)
}

func TestSpendByToolNamesLongToolsWhole(t *testing.T) {
	l := quick(t, stateDir(t))
	e := engine(t, policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, USD: policy.USD}}})
	for _, n := range []int{100, 900, 1100, 5000} {
		tool := strings.Repeat("n", n)
		reserve(t, l, call("ses_a", tool, `{}`), e)
		if sp := spent(t, l, attempt("ses_a").Use, e); sp.ByTool["shop/"+tool] != policy.USD {
			t.Errorf("a name of %d letters: %d tools, not under its name", n, len(sp.ByTool))
		}
	}
}

func TestEntryOfANumberThatIsNotThere(t *testing.T) {
	l, _ := archive(t)
	for _, seq := range []uint64{0, 100_000, 1<<64 - 1} {
		if e, ok, err := l.Entry(context.Background(), seq); ok || err != nil {
			t.Errorf("%d: %+v %v", seq, e, err)
		}
	}
}

// An outcome's number leads to its attempt, so that any number that a person
// finds somewhere can be looked up.
func TestTheNumberOfAnOutcomeGivesItsCall(t *testing.T) {
	l, _ := archive(t)
	outcomes := 0
	for _, e := range scan(t, l) {
		if e.OutcomeSeq == 0 {
			continue
		}
		outcomes++
		if d := gocmp.Diff(e, entry(t, l, e.OutcomeSeq)); d != "" {
			t.Errorf("outcome %d of %d: %s", e.OutcomeSeq, e.Seq, d)
		}
	}
	if outcomes == 0 {
		t.Error("there are no outcomes")
	}
}

// Every entry must be JSON that reads back, and hide nothing that is hashed into
// it as a number.
func TestEntriesAreJSON(t *testing.T) {
	l, _ := archive(t)
	for _, e := range entries(t, l) {
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatalf("record %d: %v", e.Seq, err)
		}
		var back audit.Entry
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatalf("record %d: %v", e.Seq, err)
		}
		if d := gocmp.Diff(e, back); d != "" {
			t.Errorf("record %d: %s", e.Seq, d)
		}
	}
}

// An export promises that the canonical bytes can be made from it alone. So no
// text that JSON cannot carry may get into a record, wherever it comes from.
func TestAnExportCarriesTheCanonicalBytes(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	for _, amount := range []string{
		`"` + strings.Repeat("é", 40) + `"`, `"x` + strings.Repeat("é", 40) + `"`, `"xx` + strings.Repeat("☕", 40) + `"`, `"\ud800"`, `-1`, `[]`,
	} {
		a := pay("ses_a", amount)
		reserve(t, l, a, e)
		a.Call.Tool = "look"
		ticket, _ := reserve(t, l, a, e)
		l.Settle(ticket, ledger.Outcome{Result: ledger.Failed, Reason: "upstream: \"<&>\"\u2028\x00"})
	}
	for _, name := range []string{"a\x00b", "\u202e", "\u2028", "<&>"} {
		a := call("ses_a", "t"+name, `{}`)
		a.Client = name
		reserve(t, l, a, e)
	}
	checkExport(t, l)
}

func checkExport(t *testing.T, l *ledger.Ledger) {
	t.Helper()
	flush(t, l)
	n := 0
	_, _, err := l.Walk(context.Background(), 1, func(key uint64, raw []byte) error {
		n++
		x, err := audit.Export(raw)
		if err != nil {
			return err
		}
		b, err := json.Marshal(x)
		if err != nil {
			return err
		}
		if got := rebuilt(t, b).Encode(); !slices.Equal(got, raw) {
			t.Errorf("record %d cannot be made from its export: %s", key, b)
		}
		var table bytes.Buffer
		w := csv.NewWriter(&table)
		if err := w.WriteAll([][]string{audit.CSVHeader(), x.CSV()}); err != nil {
			return err
		}
		rows, err := csv.NewReader(&table).ReadAll()
		if err != nil || len(rows) != 2 {
			t.Fatalf("record %d: %d rows, %v", key, len(rows), err)
		}
		var members map[string]any
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.UseNumber()
		if err := dec.Decode(&members); err != nil {
			return err
		}
		for i, name := range rows[0] {
			if got, want := plain(t, rows[1][i]), plain(t, fmt.Sprint(members[name])); got != want {
				t.Errorf("record %d: %s is %q as CSV, %q as JSON", key, name, got, want)
			}
		}
		return nil
	})
	if err != nil || n == 0 {
		t.Errorf("%d records, %v", n, err)
	}
}

// plain reads a text of an export as docs/audit-format.md says.
func plain(t *testing.T, text string) string {
	t.Helper()
	code, ok := strings.CutPrefix(text, "base64:")
	if !ok {
		return text
	}
	b, err := base64.StdEncoding.DecodeString(code)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// rebuilt makes a record from exported JSON, as a second implementation would.
func rebuilt(t *testing.T, exported []byte) *audit.Record {
	t.Helper()
	var x audit.Exported
	if err := json.Unmarshal(exported, &x); err != nil {
		t.Fatal(err)
	}
	for _, text := range []*string{
		(*string)(&x.Status), &x.CallID, &x.SessionID, &x.AgentID, &x.Client, &x.Upstream, &x.Tool, &x.FlagReason, &x.Policy, &x.Rule, &x.Also,
		&x.Arguments, &x.Approval,
	} {
		*text = plain(t, *text)
	}
	hash := func(s string) (h audit.Hash) {
		if s != "" {
			if err := h.UnmarshalText([]byte(s)); err != nil {
				t.Fatal(err)
			}
		}
		return h
	}
	at, err := time.Parse(time.RFC3339Nano, x.Timestamp)
	if err != nil {
		t.Fatal(err)
	}
	cost, err := policy.ParseUSD(string(x.CostUSD))
	if err != nil {
		t.Fatal(err)
	}
	r := &audit.Record{
		Seq: x.Seq, Prev: x.PrevHash, Time: at, Status: x.Status, Ref: x.Ref, CallID: x.CallID, Session: x.SessionID, Agent: x.AgentID,
		Client: x.Client, Upstream: x.Upstream, Tool: x.Tool, Flagged: x.Flagged, FlagReason: x.FlagReason, Policy: x.Policy, Rule: x.Rule,
		Also: []byte(x.Also), Cost: int64(cost), DurationMS: x.DurationMS, Arguments: []byte(x.Arguments), ArgumentsSHA256: hash(x.ArgumentsSHA256),
		ArgumentsSize: x.ArgumentsSize, ResultSHA256: hash(x.ResultSHA256), Approval: x.Approval, ConfigSHA256: hash(x.ConfigSHA256),
		Threads: audit.Threads{
			Session: x.ThreadSession, Agent: x.ThreadAgent, Upstream: x.ThreadUpstream, Tool: x.ThreadTool, Status: x.ThreadStatus, Flagged: x.ThreadFlagged,
		},
	}
	for k := audit.KindAttempt; k <= audit.KindLedger; k++ {
		if k.String() == x.Kind {
			r.Kind = k
		}
	}
	return r
}

// "newest first" and "only entries with a smaller number", whatever way the
// query takes through the records.
func TestEntriesComeNewestFirstAndBelowBefore(t *testing.T) {
	l, clock := archive(t)
	all := scan(t, l)
	slices.Reverse(all)
	for range 8 {
		rapid.Check(t, func(t *rapid.T) {
			f := filters(clock, len(all)).Draw(t, "filter")
			f.Limit = rapid.IntRange(1, 30).Draw(t, "limit")
			var want []uint64
			for _, e := range all {
				if naive(f, e) && len(want) < f.Limit {
					want = append(want, e.Seq)
				}
			}
			got, _, err := l.Find(context.Background(), f)
			if err != nil {
				t.Fatal(err)
			}
			if d := gocmp.Diff(append([]uint64{}, want...), seqs(got)); d != "" {
				t.Fatalf("%+v (-documented +found):\n%s", f, d)
			}
		})
	}
}

// The smallest case of it: two calls, settled in the other order.
func TestTheOrderOfSettlementsIsNotTheOrderOfEntries(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	first, _ := reserve(t, l, call("ses_a", "look", `{}`), e)
	second, _ := reserve(t, l, call("ses_a", "look", `{}`), e)
	l.Settle(second, ledger.Outcome{Result: ledger.Done, Reason: "odd"})
	l.Settle(first, ledger.Outcome{Result: ledger.Done, Reason: "odd"})
	flush(t, l)
	for _, f := range []audit.Filter{{Calls: true}, {Session: "ses_a", Calls: true}, {Status: audit.StatusAllowed}, {Flagged: true}} {
		got, _, err := l.Find(context.Background(), f)
		if err != nil || !slices.Equal(seqs(got), []uint64{second.Seq, first.Seq}) {
			t.Errorf("%+v: found %v, want %v; %v", f, seqs(got), []uint64{second.Seq, first.Seq}, err)
		}
		f.Before = second.Seq
		got, _, err = l.Find(context.Background(), f)
		if err != nil || !slices.Equal(seqs(got), []uint64{first.Seq}) {
			t.Errorf("%+v: found %v, want %v; %v", f, seqs(got), []uint64{first.Seq}, err)
		}
	}
}

// Messages are read strictly and bring no such text; the ledger does not depend
// on it, since one record that cannot be exported spoils the export.
func TestAnExportCarriesTextsThatWereNoUTF8(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, shop())
	reserve(t, l, pay("ses_a", `"`+"\xff"+`"`), e)
	for _, name := range []string{"caf\xe9", "\xff\xfe", "a\r\nb", "base64:", "base64:YQ=="} {
		a := call("ses_a", "t"+name, `{}`)
		a.Client = name
		ticket, _ := reserve(t, l, a, e)
		l.Settle(ticket, ledger.Outcome{Result: ledger.Failed, Reason: name})
	}
	checkExport(t, l)
}

// A file of the first format has no index; it is made when the file is opened.
func TestAFileOfTheFirstFormatIsBroughtUpToDate(t *testing.T) {
	l, clock := archive(t)
	filters := []audit.Filter{{}, {Governance: true}, {Flagged: true}, {Status: audit.StatusAbandoned}, {Session: "ses_1"}, {Tool: "look", Since: newClock().now().Add(time.Minute)}}
	found := func(l *ledger.Ledger) (all [][]uint64) {
		for _, f := range filters {
			f.Limit = 1000
			list, _, err := l.Find(context.Background(), f)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, seqs(list))
		}
		return all
	}
	flush(t, l)
	dir := l.Dir()
	closeLedger(t, l)
	later := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now}) // what was open is abandoned
	want := found(later)
	closeLedger(t, later)
	db, err := bolt.Open(filepath.Join(dir, "haldir.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		return errors.Join(tx.DeleteBucket([]byte("index")), tx.Bucket([]byte("hot")).Put([]byte("mversion"), []byte{0, 0, 0, 0, 0, 0, 0, 1}))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	old := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	if d := gocmp.Diff(want, found(old)); d != "" {
		t.Errorf("with the index made anew (-before +after):\n%s", d)
	}
	reserve(t, old, call("ses_0", "steal", `{}`), engine(t, shop()))
	verify(t, old)
}

func TestTheCountersOfALimit(t *testing.T) {
	l := quick(t, stateDir(t))
	e := engine(t, policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeRateLimit, MaxCalls: 9, Window: time.Hour, Per: policy.PerTool}}})
	for _, tool := range []string{"b", "a", "b"} {
		reserve(t, l, call("ses_a", tool, `{}`), e)
	}
	limit := e.Limits()[0]
	list, now, err := l.Counters(context.Background(), limit.Counter, 10)
	if err != nil || len(list) != 2 || now.IsZero() {
		t.Fatalf("%+v, %v, %v", list, now, err)
	}
	for i, want := range []int64{1, 2} {
		if got, resets := limit.Used(list[i].Counter, now); got != want || !resets.After(now) || !strings.HasSuffix(list[i].Of, []string{"/a", "/b"}[i]) {
			t.Errorf("%+v: %d used, until %v", list[i], got, resets)
		}
	}
	if list, _, err := l.Counters(context.Background(), limit.Counter, 1); err != nil || len(list) != 1 {
		t.Errorf("at most one: %+v, %v", list, err)
	}
	if list, _, err := l.Counters(context.Background(), limit.Counter+"x", 10); err != nil || len(list) != 0 {
		t.Errorf("of no limit: %+v, %v", list, err)
	}
	if n, err := l.Newest(); err != nil || n != 4 { // the session's record, and three calls
		t.Errorf("the newest is %d, %v", n, err)
	}
}
