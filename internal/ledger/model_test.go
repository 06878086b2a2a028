package ledger_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// The rules of the model, small so that each limit is reached often.
const (
	modelCalls   = 4
	modelWindow  = time.Minute
	modelSession = 10_000_000
	modelHour    = 15_000_000
	modelAsk     = 2_000_000
)

func modelRules() policy.Ruleset {
	return policy.Ruleset{
		Costs: []policy.Cost{
			{Tools: []string{"shop/pay"}, HasFromArgument: true, FromArgument: "/amount"},
			{Tools: []string{"shop/ask"}, USD: modelAsk, FromResult: "/cost"},
		},
		Policies: []policy.Rule{
			{Type: policy.TypeDeny, Tools: []string{"shop/steal"}},
			{Type: policy.TypeRateLimit, ID: "rate", MaxCalls: modelCalls, Window: modelWindow},
			{Type: policy.TypeSpendLimit, ID: "session", MaxUSD: modelSession},
			{Type: policy.TypeSpendLimit, ID: "hour", MaxUSD: modelHour, Per: policy.PerHour},
		},
	}
}

// window is a counter with a beginning.
type window struct {
	start time.Time
	value int64
}

type modelCall struct {
	ticket   ledger.Ticket
	owner    int // driver
	tool     string
	cost     int64
	rate     time.Time // the windows it was admitted in
	hour     time.Time
	costs    bool
	status   audit.Status
	recorded int64 // what the audit must say it cost
}

// settlement is one that may or may not be on disk.
type settlement struct {
	call   *modelCall
	result ledger.Result
	actual *int64
}

// model is what the ledger promises, without files and processes.
type model struct {
	now      time.Time // the greatest time seen
	rate     window
	hour     window
	spend    map[string]int64 // by session
	calls    map[string]int64
	byTool   map[string]map[string]int64
	revoked  map[string]bool
	attempts []*modelCall // by time, denied ones too
	pending  [2][]settlement
}

func (m *model) tick(wall time.Time) {
	if wall.After(m.now) {
		m.now = wall
	}
}

// judge says which policy refuses a call, "" for none.
func (m *model) judge(session, tool string, cost int64) string {
	rate, hour := m.rate, m.hour
	if !m.now.Before(rate.start.Add(modelWindow)) {
		rate = window{start: m.now}
	}
	if at := m.now.Truncate(time.Hour); !hour.start.Equal(at) {
		hour = window{start: at}
	}
	switch {
	case m.revoked[session]:
		return policy.PolicySession
	case tool == "steal":
		return string(policy.TypeDeny)
	case rate.value >= modelCalls:
		return string(policy.TypeRateLimit)
	case cost > 0 && (m.spend[session]+cost > modelSession || hour.value+cost > modelHour):
		return string(policy.TypeSpendLimit)
	}
	return ""
}

func (m *model) admit(c *modelCall, session string) {
	if !m.now.Before(m.rate.start.Add(modelWindow)) {
		m.rate = window{start: m.now}
	}
	m.rate.value++
	c.rate = m.rate.start
	m.calls[session]++
	if c.costs {
		if at := m.now.Truncate(time.Hour); !m.hour.start.Equal(at) {
			m.hour = window{start: at}
		}
		c.hour = m.hour.start
		m.book(c, session, c.cost)
	}
	c.status, c.recorded = audit.StatusRunning, c.cost
}

// book adds to every money counter of a call.
func (m *model) book(c *modelCall, session string, delta int64) {
	m.spend[session] += delta
	if m.byTool[session] == nil {
		m.byTool[session] = map[string]int64{}
	}
	m.byTool[session]["shop/"+c.tool] += delta
	if c.costs && m.hour.start.Equal(c.hour) {
		m.hour.value += delta
	}
}

func (m *model) settle(s settlement) {
	c := s.call
	if c.status != audit.StatusRunning {
		return // settled before
	}
	session := c.ticket.Session
	c.status = statusOf(s.result)
	cost := c.cost
	switch {
	case s.result == ledger.NotSent || s.result == ledger.Withdrawn:
		cost = 0
		m.calls[session]--
		if m.rate.start.Equal(c.rate) {
			m.rate.value--
		}
	case s.actual != nil:
		cost = *s.actual
	}
	if c.costs {
		m.book(c, session, cost-c.cost)
	}
	c.recorded = cost
}

func statusOf(r ledger.Result) audit.Status {
	switch r {
	case ledger.Done:
		return audit.StatusAllowed
	case ledger.Cancelled, ledger.Withdrawn:
		return audit.StatusCancelled
	}
	return audit.StatusError
}

// machine drives two ledgers in two processes on one directory and the model.
type machine struct {
	tb      testing.TB
	dir     string
	drivers *[2]*driver
	wall    time.Time
	m       model
}

func (x *machine) commit(i int) {
	for _, s := range x.m.pending[i] {
		x.m.settle(s)
	}
	x.m.pending[i] = nil
}

// flush settles what a driver owes, so that the model knows.
func (x *machine) flush(t *rapid.T, i int) {
	if len(x.m.pending[i]) > 0 {
		x.drivers[i].ask(t, request{Op: "flush"})
		x.commit(i)
	}
}

func (x *machine) openDriver(t *rapid.T, i int) {
	// Settling for the dead commits, with the clock as it then is.
	now := x.m.now
	if now.IsZero() {
		now = x.wall
	}
	x.drivers[i].ask(t, request{Op: "open", Dir: x.dir, NoSync: true, Clock: now.UnixNano(), Rules: "model"})
}

func (x *machine) reserve(t *rapid.T) {
	i := rapid.IntRange(0, 1).Draw(t, "process")
	session := rapid.SampledFrom([]string{"ses_a", "ses_b"}).Draw(t, "session")
	tool := rapid.SampledFrom([]string{"pay", "pay", "ask", "look", "steal"}).Draw(t, "tool")
	arguments, cost := `{}`, int64(0)
	switch tool {
	case "pay":
		cost = rapid.SampledFrom([]int64{0, 1, 500_000, 1_000_000, 2_500_000, 6_000_000, 10_000_000, 10_000_001}).Draw(t, "micros")
		arguments = fmt.Sprintf(`{"amount":%d.%06d}`, cost/1_000_000, cost%1_000_000)
	case "ask":
		cost = modelAsk
	}
	x.attempt(t, i, session, tool, arguments, cost)
}

func (x *machine) attempt(t *rapid.T, i int, session, tool, arguments string, cost int64) {
	// What the other process owes is not on disk for certain; what this one owes
	// commits before the attempt.
	x.flush(t, 1-i)
	a := x.drivers[i].ask(t, request{Op: "reserve", Clock: x.wall.UnixNano(), Session: session, Tool: tool, Arguments: arguments})
	x.m.tick(x.wall)
	x.commit(i)
	c := &modelCall{ticket: a.Ticket, owner: i, tool: tool, cost: cost, costs: tool == "pay" || tool == "ask", status: audit.StatusDenied}
	refused := x.m.judge(session, tool, cost)
	if (a.Verdict == policy.Allow) != (refused == "") || a.Policy != refused {
		t.Fatalf("%s of %d micros: %v by %q (%s), the model says %q", tool, cost, a.Verdict, a.Policy, a.Reason, refused)
	}
	if refused == "" {
		x.m.admit(c, session)
	}
	x.m.attempts = append(x.m.attempts, c)
}

func (x *machine) settle(t *rapid.T) {
	var open []*modelCall
	for _, c := range x.m.attempts {
		if c.status == audit.StatusRunning {
			open = append(open, c)
		}
	}
	if len(open) == 0 {
		t.Skip("nothing is open")
	}
	c := open[rapid.IntRange(0, len(open)-1).Draw(t, "call")]
	s := settlement{call: c, result: ledger.Result(rapid.IntRange(0, 5).Draw(t, "result"))}
	if c.tool == "ask" && rapid.Bool().Draw(t, "learnt") {
		m := rapid.SampledFrom([]int64{0, 1, modelAsk - 1, modelAsk, modelAsk + 1, 3 * modelAsk}).Draw(t, "actual")
		s.actual = &m
	}
	x.drivers[c.owner].ask(t, request{Op: "settle", Ticket: c.ticket, Result: s.result, Actual: s.actual})
	x.m.pending[c.owner] = append(x.m.pending[c.owner], s)
}

func (x *machine) flushOne(t *rapid.T) {
	i := rapid.IntRange(0, 1).Draw(t, "process")
	x.drivers[i].ask(t, request{Op: "flush"})
	x.commit(i)
}

func (x *machine) turnClock(t *rapid.T) {
	x.wall = x.wall.Add(rapid.SampledFrom([]time.Duration{
		time.Second, 20 * time.Second, modelWindow - 1, modelWindow, 25 * time.Minute, time.Hour, -time.Second, -modelWindow, -3 * time.Hour,
	}).Draw(t, "by"))
}

func (x *machine) revoke(t *rapid.T) {
	session := rapid.SampledFrom([]string{"ses_a", "ses_b"}).Draw(t, "session")
	if _, exists := x.m.calls[session]; !exists || rapid.IntRange(0, 2).Draw(t, "seldom") > 0 {
		t.Skip("there is no such session, or it is too early to end it")
	}
	i := rapid.IntRange(0, 1).Draw(t, "process")
	x.drivers[i].ask(t, request{Op: "revoke", Clock: x.wall.UnixNano(), Session: session})
	x.m.tick(x.wall)
	x.commit(i)
	x.m.revoked[session] = true
}

// crash kills a process and starts another. What it had settled may have come
// to disk or not; the other one tells, once it has noticed.
func (x *machine) crash(t *rapid.T) {
	i := rapid.IntRange(0, 1).Draw(t, "process")
	x.drivers[i].kill()
	owed := x.m.pending[i]
	x.m.pending[i] = nil
	x.drivers[i] = newDriver(x.tb)
	x.openDriver(t, i)
	x.abandoned(t, i, owed)
}

// close ends a ledger in order and opens another in the same process.
func (x *machine) close(t *rapid.T) {
	i := rapid.IntRange(0, 1).Draw(t, "process")
	x.drivers[i].ask(t, request{Op: "close"})
	x.commit(i)
	x.openDriver(t, i)
	x.abandoned(t, i, nil)
}

// abandoned resolves the calls of a process that has ended.
func (x *machine) abandoned(t *rapid.T, i int, owed []settlement) {
	unsure := map[*modelCall]settlement{}
	for _, s := range owed {
		if _, twice := unsure[s.call]; !twice { // the first settlement counts
			unsure[s.call] = s
		}
	}
	for _, c := range x.m.attempts {
		if c.owner != i || c.status != audit.StatusRunning {
			continue
		}
		e := x.drivers[i].ask(t, request{Op: "entry", Seq: c.ticket.Seq}).Entry
		if s, maybe := unsure[c]; maybe && e.Status != audit.StatusAbandoned {
			x.m.settle(s)
			continue // check compares it with the audit
		}
		c.status = audit.StatusAbandoned
	}
}

// check compares everything that can be seen from outside.
func (x *machine) check(t *rapid.T) {
	x.flush(t, 0)
	x.flush(t, 1)
	for i, d := range x.drivers {
		for session := range x.m.calls {
			a := d.ask(t, request{Op: "spent", Session: session})
			hour := int64(0)
			if x.m.hour.start.Equal(x.m.now.Truncate(time.Hour)) {
				hour = x.m.hour.value
			}
			byTool := map[string]int64{}
			for tool, n := range x.m.byTool[session] {
				if n != 0 {
					byTool[tool] = n
				}
			}
			for tool, n := range a.ByTool {
				if n == 0 {
					delete(a.ByTool, tool)
				}
			}
			type sums struct {
				Total, Calls int64
				ByTool       map[string]int64
				Used         []int64
			}
			want := sums{x.m.spend[session], x.m.calls[session], byTool, []int64{x.m.spend[session], hour}}
			if d := cmp.Diff(want, sums{a.Total, a.Calls, a.ByTool, a.Used}); d != "" {
				t.Fatalf("%s as process %d sees it (-model +ledger):\n%s", session, i, d)
			}
		}
	}
	for _, c := range x.m.attempts {
		e := x.drivers[0].ask(t, request{Op: "entry", Seq: c.ticket.Seq}).Entry
		cost, err := policy.ParseUSD(string(e.CostUSD))
		recorded := c.recorded
		if c.status == audit.StatusDenied {
			recorded = 0
		}
		if err != nil || e.CallID != c.ticket.CallID || e.Status != c.status || int64(cost) != recorded {
			t.Fatalf("record %d of %s: %s at $%s, the model says %s at %d micros", c.ticket.Seq, c.tool, e.Status, e.CostUSD, c.status, recorded)
		}
	}
}

// The ledger under everything that may happen to it at once, in two processes
// on one directory, must keep the same books as a model of thirty lines.
func TestTheLedgerKeepsTheBooksOfTheModel(t *testing.T) {
	var drivers [2]*driver
	for i := range drivers {
		drivers[i] = newDriver(t)
	}
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		x := &machine{
			tb: t, dir: filepath.Join(t.TempDir(), "state"), drivers: &drivers, wall: newClock().now(),
			m: model{spend: map[string]int64{}, calls: map[string]int64{}, byTool: map[string]map[string]int64{}, revoked: map[string]bool{}},
		}
		defer func() { _ = os.RemoveAll(x.dir) }()
		for i := range drivers {
			if drivers[i].cmd.ProcessState != nil {
				drivers[i] = newDriver(t) // the last run has failed
			}
			x.openDriver(rt, i)
		}
		x.attempt(rt, 0, "ses_a", "steal", `{}`, 0) // the ledger has seen the clock
		rt.Repeat(map[string]func(*rapid.T){
			"reserve": x.reserve, "reserve too": x.reserve, "reserve again": x.reserve, "settle": x.settle, "settle too": x.settle,
			"flush": x.flushOne, "clock": x.turnClock, "clock too": x.turnClock, "revoke": x.revoke, "crash": x.crash, "close": x.close, "check": x.check,
		})
		x.check(rt)
		for _, d := range drivers {
			d.ask(rt, request{Op: "close"})
		}
		x.books(rt)
	})
	if t.Failed() {
		for _, d := range drivers {
			d.kill()
		}
	}
}

// books compares the database itself, after everyone has left: the counters
// that no method shows, the chain, and bbolt's own check.
func (x *machine) books(t *rapid.T) {
	if _, err := os.Stat(filepath.Join(x.dir, "haldir.db")); os.IsNotExist(err) && len(x.m.attempts) == 0 {
		return // nothing happened
	}
	inspect(x.tb, x.dir, func(tx *bolt.Tx) {
		var v audit.Verifier
		err := tx.Bucket([]byte("audit")).ForEach(func(k, raw []byte) error { return v.Add(binary.BigEndian.Uint64(k), raw) })
		if err != nil {
			t.Fatalf("the chain: %v", err)
		}
		if head := space(tx, 'm')["head"]; v.Count() > 0 {
			if err := v.Finish(binary.BigEndian.Uint64(head), audit.Hash(head[8:])); err != nil {
				t.Fatalf("the chain: %v", err)
			}
		}
		rate := window{}
		for k, raw := range space(tx, 'c') {
			value := int64(binary.BigEndian.Uint64(raw[8:]))
			if value < 0 {
				t.Errorf("counter %q is %d", k, value)
			}
			if strings.HasPrefix(k, "rate:") {
				rate = window{time.Unix(0, int64(binary.BigEndian.Uint64(raw))).UTC(), value}
			}
		}
		if rate.value != x.m.rate.value || rate.value > 0 && !rate.start.Equal(x.m.rate.start) {
			t.Fatalf("the rate counter is %+v, the model says %+v", rate, x.m.rate)
		}
		// An open call can be left only if its ledger was closed last of all.
		for id, raw := range space(tx, 'h') {
			if !slices.ContainsFunc(x.m.attempts, func(c *modelCall) bool { return c.ticket.CallID == id && c.status == audit.StatusRunning }) {
				t.Fatalf("a hold that is nobody's: %s %s", id, raw)
			}
		}
	})
}

// Whoever writes a second implementation reads these names in the docs.
func TestTheFileIsLaidOutAsDocumented(t *testing.T) {
	dir := stateDir(t)
	l, e := quick(t, dir), engine(t, shop())
	ticket, _ := reserve(t, l, pay("ses_a", "1"), e)
	if err := l.SaveCatalogue(context.Background(), "files", []byte("x")); err != nil {
		t.Fatal(err)
	}
	inspect(t, dir, func(tx *bolt.Tx) {
		for _, name := range []string{"hot", "audit", "outcomes", "catalogue"} {
			if tx.Bucket([]byte(name)) == nil {
				t.Errorf("there is no bucket %s", name)
			}
		}
		if v := space(tx, 'm')["version"]; len(v) != 8 || binary.BigEndian.Uint64(v) != ledger.FormatVersion {
			t.Errorf("version %x", v)
		}
		if raw := tx.Bucket([]byte("audit")).Get(binary.BigEndian.AppendUint64(nil, ticket.Seq)); raw == nil {
			t.Error("the attempt is not under its number")
		}
		// Amounts of money in the file are dollars, as their names say.
		var held map[string]json.RawMessage
		if err := json.Unmarshal(space(tx, 'h')[ticket.CallID], &held); err != nil || string(held["cost_usd"]) != "1" {
			t.Errorf("cost_usd of a call of $1 is %s (%v)", held["cost_usd"], err)
		}
	})
}
