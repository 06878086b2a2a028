package ledger_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// A driver is a ledger in a process of its own that does what it is told, one
// request at a time: so that it can be killed for real.
type request struct {
	Op        string // open, reserve, settle, flush, spent, revoke, entry, close
	Dir       string
	NoSync    bool
	Clock     int64  // Unix ns; sets the driver's clock if not zero
	Rules     string // of rulesets
	Session   string
	Tool      string
	Arguments string
	Ticket    ledger.Ticket
	Result    ledger.Result
	Actual    *int64
	Seq       uint64
	Timeout   time.Duration
}

// rulesets are named: money in a ruleset does not come out of JSON as it went in.
var rulesets = map[string]func() policy.Ruleset{"shop": shop, "model": modelRules}

type answer struct {
	Error   string
	Kind    string // of the error, see kinds
	Ticket  ledger.Ticket
	Verdict policy.Verdict
	Policy  string
	Reason  string
	Total   int64
	Calls   int64
	ByTool  map[string]int64
	Used    []int64
	Entry   audit.Entry
	Took    time.Duration
}

var kinds = map[string]error{
	"busy": ledger.ErrBusy, "damaged": ledger.ErrDamaged, "newer": ledger.ErrNewer, "closed": ledger.ErrClosed,
	"no session": ledger.ErrNoSession, "deadline": context.DeadlineExceeded, "permission": os.ErrPermission,
}

func kindOf(err error) string {
	for name, target := range kinds {
		if errors.Is(err, target) {
			return name
		}
	}
	return ""
}

func init() { workers["driver"] = drive }

func drive([]byte) error {
	in, out := bufio.NewReader(os.Stdin), json.NewEncoder(os.Stdout)
	dec := json.NewDecoder(in)
	var l *ledger.Ledger
	var e *policy.Engine
	var clock atomic.Int64
	for {
		var q request
		if err := dec.Decode(&q); err != nil {
			return nil // the parent has ended
		}
		if q.Clock != 0 {
			clock.Store(q.Clock)
		}
		if q.Rules != "" {
			var err error
			if e, err = policy.Compile(rulesets[q.Rules]()); err != nil {
				return err
			}
		}
		var a answer
		ctx, cancel := context.Background(), context.CancelFunc(func() {})
		if q.Timeout > 0 {
			ctx, cancel = context.WithTimeout(ctx, q.Timeout)
		}
		asked := call(q.Session, q.Tool, q.Arguments)
		begin := time.Now()
		err := func() (err error) {
			switch q.Op {
			case "open":
				now := time.Now
				if clock.Load() != 0 {
					now = func() time.Time { return time.Unix(0, clock.Load()) }
				}
				l, err = ledger.Open(ledger.Options{Dir: q.Dir, NoSync: q.NoSync, Clock: now, Logger: zerolog.Nop()})
			case "reserve":
				var d policy.Decision
				a.Ticket, d, err = l.Reserve(ctx, asked, e)
				a.Verdict, a.Policy, a.Reason = d.Verdict, d.Policy, d.Reason
			case "settle":
				l.Settle(q.Ticket, ledger.Outcome{Result: q.Result, Actual: (*policy.Micros)(q.Actual)})
			case "flush":
				err = l.Flush(ctx)
			case "spent":
				var sp ledger.Spend
				sp, _, err = l.Spent(ctx, asked.Use, e)
				a.Total, a.Calls, a.ByTool = int64(sp.Total), sp.Calls, map[string]int64{}
				for tool, m := range sp.ByTool {
					a.ByTool[tool] = int64(m)
				}
				for _, m := range sp.Used {
					a.Used = append(a.Used, int64(m))
				}
			case "revoke":
				_, err = l.Revoke(ctx, q.Session, false)
			case "entry":
				a.Entry, _, err = l.Entry(ctx, q.Seq)
			case "find":
				_, _, err = l.Find(ctx, audit.Filter{Limit: 1})
			case "verify":
				_, err = l.Verify(ctx, nil)
			case "close":
				err = l.Close(ctx)
			default:
				err = fmt.Errorf("no operation %q", q.Op)
			}
			return err
		}()
		cancel()
		a.Took = time.Since(begin)
		if err != nil {
			a.Error, a.Kind = err.Error(), kindOf(err)
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

// driver is the parent's end of one.
type driver struct {
	*process
	enc *json.Encoder
	dec *json.Decoder
}

func newDriver(tb testing.TB) *driver {
	tb.Helper()
	p := spawn(tb, "driver", nil)
	return &driver{p, json.NewEncoder(p.in), json.NewDecoder(p.out)}
}

// send gives an order without waiting for the answer.
func (d *driver) send(q request) error { return d.enc.Encode(q) }

func (d *driver) receive() (a answer, err error) {
	if err := d.dec.Decode(&a); err != nil {
		return a, fmt.Errorf("the driver has ended: %w; %s", err, d.errors)
	}
	return a, nil
}

// ask gives an order that must not fail.
func (d *driver) ask(tb interface{ Fatalf(string, ...any) }, q request) answer {
	if err := d.send(q); err != nil {
		tb.Fatalf("%s: %v; %s", q.Op, err, d.errors)
	}
	a, err := d.receive()
	if err != nil {
		tb.Fatalf("%s: %v", q.Op, err)
	}
	if a.Error != "" {
		tb.Fatalf("%s: %s", q.Op, a.Error)
	}
	return a
}
