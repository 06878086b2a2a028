package ledger_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// needy rules want a person's word for shop/drop; shop/once gets it for one call only.
func needy() policy.Ruleset {
	return policy.Ruleset{
		Costs: []policy.Cost{{Tools: []string{"shop/drop"}, USD: policy.USD}},
		Policies: []policy.Rule{
			{Type: policy.TypeApproval, ID: "word", Tools: []string{"shop/drop"}, Timeout: 5 * time.Minute},
			{Type: policy.TypeApproval, ID: "each", Tools: []string{"shop/once"}, Timeout: 5 * time.Minute, Once: true},
			{Type: policy.TypeRateLimit, ID: "rate", Tools: []string{"shop/drop"}, MaxCalls: 100, Window: time.Hour},
		},
	}
}

func init() { rulesets["needy"] = needy }

func drop(session, arguments string) ledger.Attempt { return call(session, "drop", arguments) }

// asks reserves what must need a person's word.
func asks(tb testing.TB, l *ledger.Ledger, a ledger.Attempt, e *policy.Engine) ledger.Ticket {
	tb.Helper()
	ticket, d := reserve(tb, l, a, e)
	if d.Verdict != policy.Ask || ticket.Approval == "" {
		tb.Fatalf("%s %s: %v: %s", a.Call.ID(), a.Call.Arguments, d.Verdict, d.Reason)
	}
	return ticket
}

func answerTo(tb testing.TB, l *ledger.Ledger, id string, a ledger.Answer) ledger.Approval {
	tb.Helper()
	if a.Channel == "" {
		a.Channel = ledger.ChannelTerminal
	}
	p, err := l.Answer(context.Background(), id, a)
	if err != nil {
		tb.Fatalf("Answer %s: %v", id, err)
	}
	return p
}

func approvals(tb testing.TB, l *ledger.Ledger) []ledger.Approval {
	tb.Helper()
	list, err := l.Approvals(context.Background())
	if err != nil {
		tb.Fatalf("Approvals: %v", err)
	}
	return list
}

// Every way in which a call can be another one than that which a person has allowed.
func TestAGrantIsForNothingElse(t *testing.T) {
	first := drop("ses_a", `{"table":"a"}`)
	first.Config, first.Pin = audit.Hash{1}, audit.Hash{2}
	others := map[string]func(*ledger.Attempt){
		"session":           func(a *ledger.Attempt) { a.Use = attempt("ses_b").Use },
		"tool":              func(a *ledger.Attempt) { a.Call.Tool = "once" },
		"kind":              func(a *ledger.Attempt) { a.Call.Kind, a.Call.Tool = policy.KindPrompt, "drop" },
		"arguments":         func(a *ledger.Attempt) { *a = withArguments(*a, `{"table":"b"}`) },
		"spacing":           func(a *ledger.Attempt) { *a = withArguments(*a, `{"table": "a"}`) },
		"no arguments":      func(a *ledger.Attempt) { *a = withArguments(*a, ``) },
		"policies":          func(a *ledger.Attempt) { a.Config = audit.Hash{9} },
		"definition":        func(a *ledger.Attempt) { a.Pin = audit.Hash{9} },
		"hashes the others": func(a *ledger.Attempt) { a.Config, a.Pin = a.Pin, a.Config },
	}
	rules := needy()
	rules.Policies = append(rules.Policies, policy.Rule{Type: policy.TypeApproval, Tools: []string{"prompt:shop/*"}, Timeout: time.Minute})
	for _, forSession := range []bool{false, true} {
		for what, change := range others {
			t.Run(fmt.Sprintf("%s, for the session %t", what, forSession), func(t *testing.T) {
				l, e := quick(t, stateDir(t)), engine(t, rules)
				a := first
				ticket := asks(t, l, a, e)
				answerTo(t, l, ticket.Approval, ledger.Answer{Allow: true, ForSession: forSession})
				other := first
				change(&other)
				asks(t, l, other, e)
				other.Grant = ticket.Approval // also when it says that it has waited for it
				asks(t, l, other, e)
				a.Grant = ticket.Approval
				if _, d := reserve(t, l, a, e); d.Verdict != policy.Allow {
					t.Errorf("the call itself: %s", d.Reason)
				}
				if _, d := reserve(t, l, a, e); d.Verdict == policy.Allow != forSession {
					t.Errorf("once more: %v", d.Verdict)
				}
				verify(t, l)
			})
		}
	}
}

func withArguments(a ledger.Attempt, arguments string) ledger.Attempt {
	a.Call.Arguments = []byte(arguments)
	a.Body = audit.NewBody(a.Call.Arguments, audit.DetailRedacted, nil)
	return a
}

// What is decided is decided, by the first answer and in time.
func TestTheFirstAnswerCounts(t *testing.T) {
	clock := newClock()
	l, e := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now}), engine(t, needy())
	ctx := context.Background()
	for name, a := range map[string]ledger.Answer{
		"allowed": {Allow: true}, "for the session": {Allow: true, ForSession: true}, "denied": {}, "in time": {Channel: ledger.ChannelTimeout},
	} {
		ticket := asks(t, l, drop("ses_"+name, `{}`), e)
		answerTo(t, l, ticket.Approval, a)
		for _, again := range []ledger.Answer{{Allow: true}, {}, {Channel: ledger.ChannelTimeout}} {
			if _, err := l.Answer(ctx, ticket.Approval, again); !errors.Is(err, ledger.ErrNoApproval) {
				t.Errorf("%s, and answered again: %v", name, err)
			}
		}
		if err := l.Refuse(ctx, ticket.Approval); !errors.Is(err, ledger.ErrNoApproval) {
			t.Errorf("%s, and then refused: %v", name, err)
		}
		want := audit.StatusDenied
		if a.Allow {
			want = audit.StatusApproved
		}
		if en := entry(t, l, ticket.Seq); en.Status != want || en.Approval != ticket.Approval {
			t.Errorf("%s: the audit says %s of %s", name, en.Status, en.Approval)
		}
	}
	late := asks(t, l, drop("ses_late", `{}`), e)
	clock.add(5 * time.Minute)
	if _, err := l.Answer(ctx, late.Approval, ledger.Answer{Allow: true, Channel: ledger.ChannelConsole}); !errors.Is(err, ledger.ErrNoApproval) {
		t.Errorf("at the deadline: %v", err)
	}
	if n := len(approvals(t, l)); n != 0 {
		t.Errorf("%d requests are listed after their time", n)
	}
	answerTo(t, l, late.Approval, ledger.Answer{Channel: ledger.ChannelTimeout})
	for _, id := range []string{"", "apr_", "apr_0", "apr_999999", late.Approval + "0", strings.Repeat("x", 100_000)} {
		if _, err := l.Answer(ctx, id, ledger.Answer{Allow: true}); !errors.Is(err, ledger.ErrNoApproval) {
			t.Errorf("%.20q: %v", id, err)
		}
	}
	once := asks(t, l, call("ses_a", "once", `{}`), e)
	if _, err := l.Answer(ctx, once.Approval, ledger.Answer{Allow: true, ForSession: true}); err == nil || errors.Is(err, ledger.ErrNoApproval) {
		t.Errorf("for the session, where that is not offered: %v", err)
	}
	answerTo(t, l, once.Approval, ledger.Answer{Allow: true})
	verify(t, l)
}

// A grant waits as long as it says, and no longer.
func TestAGrantEnds(t *testing.T) {
	for _, c := range []struct {
		forSession bool
		good, over time.Duration
	}{{false, 10*time.Minute - time.Nanosecond, 10 * time.Minute}, {true, 24*time.Hour - time.Nanosecond, 24 * time.Hour}} {
		for _, after := range []time.Duration{c.good, c.over} {
			clock := newClock()
			l, e := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now}), engine(t, needy())
			a := drop("ses_a", `{}`)
			a.Grant = asks(t, l, a, e).Approval
			answerTo(t, l, a.Grant, ledger.Answer{Allow: true, ForSession: c.forSession})
			clock.add(after)
			if _, d := reserve(t, l, a, e); d.Verdict == policy.Allow != (after == c.good) {
				t.Errorf("for the session %t, after %v: %v", c.forSession, after, d.Verdict)
			}
		}
	}
}

// What a clock that was wrong has made does not last longer for it, once the ledger's
// time is set back.
func TestNoGrantLastsLongerByAWrongClock(t *testing.T) {
	const years = 10 * 365 * 24 * time.Hour
	clock := newClock()
	l, e := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now}), engine(t, needy())
	ctx := context.Background()
	before := asks(t, l, drop("ses_before", `{}`), e)
	s, err := l.CreateSession(ctx, ledger.Terms{Agent: "bot", AllScopes: true, TTL: 100 * 365 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	clock.add(years)
	a := drop("ses_a", `{}`)
	answerTo(t, l, asks(t, l, a, e).Approval, ledger.Answer{Allow: true, ForSession: true})
	b := drop("ses_b", `{}`)
	b.Grant = asks(t, l, b, e).Approval
	answerTo(t, l, b.Grant, ledger.Answer{Allow: true})
	waits := asks(t, l, drop("ses_c", `{}`), e)
	listed := asks(t, l, drop("ses_d", `{}`), e)
	if err := l.Refuse(ctx, listed.Approval); err != nil {
		t.Fatal(err)
	}
	if s, err = l.Renew(ctx, s.ID, time.Hour); err != nil {
		t.Fatal(err)
	}
	clock.add(-years)
	clock.add(time.Minute)
	if _, _, err := l.ResetClock(ctx, "the battery was flat"); err != nil {
		t.Fatal(err)
	}
	for _, p := range approvals(t, l) {
		if p.ID == before.Approval {
			continue
		}
		if left := p.Deadline.Sub(clock.now()); left > ledger.Listed || p.Created.After(clock.now()) {
			t.Errorf("%s was made at %v and waits %v more", p.ID, p.Created, left)
		}
	}
	if _, d := reserve(t, l, b, e); d.Verdict != policy.Allow {
		t.Errorf("what was allowed a moment ago: %v", d.Verdict)
	}
	if _, d := reserve(t, l, a, e); d.Verdict != policy.Allow {
		t.Errorf("what was allowed for the session: %v", d.Verdict)
	}
	clock.add(25 * time.Hour)
	if _, d := reserve(t, l, a, e); d.Verdict == policy.Allow {
		t.Error("a person's word for a session of a day, a day later")
	}
	for _, id := range []string{waits.Approval, listed.Approval} {
		if _, err := l.Answer(ctx, id, ledger.Answer{Allow: true}); !errors.Is(err, ledger.ErrNoApproval) {
			t.Errorf("%s can still be answered: %v", id, err)
		}
	}
	after := drop(s.ID, `{}`)
	after.Use.Terms = nil
	if _, d := reserve(t, l, after, e); d.Policy != policy.PolicySession {
		t.Errorf("a session that was renewed for an hour, a day later: %v %s", d.Verdict, d.Reason)
	}
	verify(t, l)
}

// A call is on record also when too many wait already, and those that nobody waits for
// make room.
func TestTooManyCallsWait(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, needy())
	ctx := context.Background()
	const most = 1000
	var listed, first ledger.Ticket
	for i := range most {
		ticket := asks(t, l, drop("ses_a", fmt.Sprintf(`{"n":%d}`, i)), e)
		switch i {
		case 0:
			first = ticket
		case 1:
			listed = ticket
		}
	}
	a := drop("ses_a", `{"n":"one more"}`)
	ticket, d := reserve(t, l, a, e)
	if d.Verdict != policy.Deny || d.Policy != string(policy.TypeApproval) || !strings.Contains(d.Reason, "too many") {
		t.Fatalf("one too many: %v %s", d.Verdict, d.Reason)
	}
	if en := entry(t, l, ticket.Seq); en.Status != audit.StatusDenied || !en.Flagged {
		t.Errorf("the audit says %s", en.Status)
	}
	if _, d := reserve(t, l, call("ses_a", "look", `{}`), e); d.Verdict != policy.Allow {
		t.Errorf("another call: %s", d.Reason)
	}
	if err := l.Refuse(ctx, listed.Approval); err != nil {
		t.Fatal(err)
	}
	asks(t, l, a, e)
	if en := entry(t, l, listed.Seq); en.Status != audit.StatusDenied {
		t.Errorf("the one that made room: %s", en.Status)
	}
	if n := len(approvals(t, l)); n != most {
		t.Errorf("%d wait", n)
	}
	answerTo(t, l, first.Approval, ledger.Answer{Allow: true})
	asks(t, l, drop("ses_b", `{}`), e)
	verify(t, l)
}

// Whatever a call that waits was made with, it holds up nothing else.
func TestLargeArgumentsAreKeptApart(t *testing.T) {
	dir := stateDir(t)
	l, e := quick(t, dir), engine(t, needy())
	big := func(n int) string { return `{"text":"` + strings.Repeat("é", n) + `"}` }
	for _, n := range []int{0, 1, (ledger.MaxShown - 11) / 2, ledger.MaxShown, 4 << 20} {
		text := big(n)
		ticket := asks(t, l, drop("ses_a", text), e)
		i := slices.IndexFunc(approvals(t, l), func(p ledger.Approval) bool { return p.ID == ticket.Approval })
		p := approvals(t, l)[i]
		if p.Size != uint64(len(text)) || len(p.Arguments) > ledger.MaxShown || !strings.HasPrefix(text, string(p.Arguments)) || !utf8.Valid(p.Arguments) || len(p.Arguments) < min(len(text), ledger.MaxShown-3) {
			t.Errorf("of %d bytes, %d are shown, and the size is said to be %d", len(text), len(p.Arguments), p.Size)
		}
		if p.SHA256 != audit.NewBody([]byte(text), audit.DetailDigest, nil).SHA256 {
			t.Errorf("the digest of %d bytes is another", len(text))
		}
		answerTo(t, l, ticket.Approval, ledger.Answer{})
	}
	for i := range 3 {
		asks(t, l, drop("ses_b", big(100_000+i)), e)
	}
	inspect(t, dir, func(tx *bolt.Tx) {
		c := tx.Bucket([]byte("approvals")).Cursor()
		for k, v := c.Seek([]byte{'p'}); len(k) > 0 && k[0] == 'p'; k, v = c.Next() {
			if len(v) > 4096 { // who looks for what is over reads all of these
				t.Errorf("request %s takes %d bytes", k[1:], len(v))
			}
		}
	})
	for _, p := range approvals(t, l) {
		answerTo(t, l, p.ID, ledger.Answer{Allow: true})
	}
	inspect(t, dir, func(tx *bolt.Tx) {
		c := tx.Bucket([]byte("approvals")).Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			if k[0] != 'g' {
				t.Errorf("%q stays", k[:min(len(k), 20)])
			}
		}
	})
}

// What a person says is bounded and can be exported.
func TestNotes(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, needy())
	for _, note := range []string{"", "not on a Friday", strings.Repeat("é", 700), strings.Repeat("x", 999) + "🙂", "\xff\xfe", "a\x1b[2Jb\nc"} {
		ticket := asks(t, l, drop("ses_a", `{}`), e)
		answerTo(t, l, ticket.Approval, ledger.Answer{Note: note})
		en := entry(t, l, ticket.Seq)
		if !utf8.ValidString(en.FlagReason) || len(en.FlagReason) > 1100 || note != "" && !strings.HasPrefix(en.FlagReason, "denied by terminal: ") {
			t.Errorf("%.20q became %q", note, en.FlagReason)
		}
	}
	for _, en := range entries(t, l) {
		raw, err := json.Marshal(en)
		var back audit.Entry
		if err != nil || json.Unmarshal(raw, &back) != nil || back.FlagReason != en.FlagReason {
			t.Errorf("%d does not come out as it went in", en.Seq)
		}
	}
	verify(t, l)
}

// The next identical call redeems what was allowed while nobody waited for it, once.
func TestWhatIsListedIsRedeemedByTheNextCall(t *testing.T) {
	clock := newClock()
	l, e := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now}), engine(t, needy())
	ctx := context.Background()
	a := drop("ses_a", `{}`)
	var ids []string
	for range 3 {
		ticket := asks(t, l, a, e)
		if err := l.Refuse(ctx, ticket.Approval); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, ticket.Approval)
	}
	if list := approvals(t, l); len(list) != 1 || list[0].ID != ids[2] || list[0].Waiting || !list[0].Deadline.Equal(clock.now().Add(10*time.Minute)) {
		t.Errorf("listed: %+v", list)
	}
	clock.add(10*time.Minute - 1)
	answerTo(t, l, ids[2], ledger.Answer{Allow: true})
	clock.add(10*time.Minute - 1)
	if _, d := reserve(t, l, a, e); d.Verdict != policy.Allow {
		t.Errorf("the next: %v", d.Verdict)
	}
	asks(t, l, a, e)
}

// A grant that its call could not use is there for the next one.
func TestAGrantThatWasNotUsedStays(t *testing.T) {
	rules := needy()
	rules.Policies[2].MaxCalls = 0
	strict, l, e := engine(t, rules), quick(t, stateDir(t)), engine(t, needy())
	a := drop("ses_a", `{}`)
	waiting := a
	waiting.Grant = asks(t, l, a, e).Approval
	answerTo(t, l, waiting.Grant, ledger.Answer{Allow: true})
	asks(t, l, a, e) // that of another call, which waits for it
	if _, d := reserve(t, l, waiting, strict); d.Verdict != policy.Deny || d.Policy != string(policy.TypeRateLimit) {
		t.Errorf("%v by %s", d.Verdict, d.Policy)
	}
	if _, err := l.Stop(context.Background(), "lunch"); err != nil {
		t.Fatal(err)
	}
	if _, d := reserve(t, l, a, e); d.Policy != ledger.PolicyStopped {
		t.Errorf("while everything is stopped: %v by %s", d.Verdict, d.Policy)
	}
	if _, err := l.Resume(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, d := reserve(t, l, a, e); d.Verdict != policy.Allow {
		t.Errorf("then: %s", d.Reason)
	}
	asks(t, l, a, e)

	// Nor is one lost whose call has gone without asking for it.
	b := drop("ses_b", `{}`)
	b.Grant = asks(t, l, b, e).Approval
	answerTo(t, l, b.Grant, ledger.Answer{Allow: true})
	l.Free(b, "ses_b")
	b.Grant = ""
	if _, d := reserve(t, l, b, e); d.Verdict != policy.Allow {
		t.Errorf("free for the next: %s", d.Reason)
	}
}

// Whatever lies in the bucket of approvals, no call is let through for it, and it keeps
// nobody out: what cannot be read is denied.
func TestWhatCannotBeReadOfApprovals(t *testing.T) {
	const other = 2 // the seq of the request that is altered
	for name, change := range map[string]func(*bolt.Bucket) error{
		"no JSON":             func(b *bolt.Bucket) error { return b.Put([]byte("papr_2"), []byte("{")) },
		"a list":              func(b *bolt.Bucket) error { return b.Put([]byte("papr_2"), []byte("[]")) },
		"nothing":             func(b *bolt.Bucket) error { return b.Put([]byte("papr_2"), nil) },
		"an empty request":    func(b *bolt.Bucket) error { return b.Put([]byte("papr_2"), []byte("{}")) },
		"another's":           func(b *bolt.Bucket) error { return b.Put([]byte("papr_2"), b.Get([]byte("papr_3"))) },
		"one that never was":  func(b *bolt.Bucket) error { return b.Put([]byte("papr_99"), []byte("{")) },
		"that of no call":     func(b *bolt.Bucket) error { return b.Put([]byte("papr_1"), []byte("{")) },
		"no number":           func(b *bolt.Bucket) error { return b.Put([]byte("pxyz"), []byte("{")) },
		"no name":             func(b *bolt.Bucket) error { return b.Put([]byte("p"), []byte("{")) },
		"a grant of no JSON":  func(b *bolt.Bucket) error { return b.Put(firstGrant(b), []byte("x")) },
		"an empty grant":      func(b *bolt.Bucket) error { return b.Put(firstGrant(b), []byte("{}")) },
		"a stop that is none": func(b *bolt.Bucket) error { return b.Tx().Bucket([]byte("hot")).Put([]byte("mstopped"), []byte("x")) },
		"what nobody knows":   func(b *bolt.Bucket) error { return b.Put([]byte("zzz"), []byte("zzz")) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, e := stateDir(t), engine(t, needy())
			l := quick(t, dir)
			ctx := context.Background()
			broken, kept := asks(t, l, drop("ses_a", `{"n":1}`), e), asks(t, l, drop("ses_a", `{"n":2}`), e)
			if broken.Seq != other {
				t.Fatalf("it is number %d", broken.Seq)
			}
			a := drop("ses_a", `{}`)
			answerTo(t, l, asks(t, l, a, e).Approval, ledger.Answer{Allow: true, ForSession: true})
			if _, err := l.Stop(ctx, "lunch"); err != nil {
				t.Fatal(err)
			}
			// While this process lives, what it asks waits.
			for _, id := range []string{broken.Approval, kept.Approval} {
				if err := l.Refuse(ctx, id); err != nil {
					t.Fatal(err)
				}
			}
			closeLedger(t, l)
			alter(t, dir, change)
			l = quick(t, dir)
			if _, d := reserve(t, l, a, e); d.Policy != ledger.PolicyStopped {
				t.Errorf("the stop is gone: %v by %s", d.Verdict, d.Policy)
			}
			if was, err := l.Resume(ctx); err != nil || !was {
				t.Fatal(was, err)
			}
			touched := strings.Contains(name, "grant")
			if _, d := reserve(t, l, a, e); d.Verdict == policy.Allow == touched {
				t.Errorf("the grant: %v", d.Verdict)
			}
			for seq, id := range map[uint64]string{broken.Seq: broken.Approval, kept.Seq: kept.Approval} {
				en := entry(t, l, seq)
				listed := slices.ContainsFunc(approvals(t, l), func(p ledger.Approval) bool { return p.ID == id })
				if listed != (en.Status == audit.StatusPending) {
					t.Errorf("%s is listed: %t, and the audit says %s", id, listed, en.Status)
				}
				if seq == kept.Seq && !listed {
					t.Errorf("%s, which was left alone, is gone", id)
				}
			}
			verify(t, l)
			inspect(t, dir, nil)
		})
	}
}

// A torn page under the approvals is an error that says so, nothing is let through, and the
// way out keeps the stop.
func TestATornPageOfApprovals(t *testing.T) {
	dir, e := stateDir(t), engine(t, needy())
	l := quick(t, dir)
	ctx := context.Background()
	a := drop("ses_a", `{}`)
	answerTo(t, l, asks(t, l, a, e).Approval, ledger.Answer{Allow: true, ForSession: true})
	for i := range 20 {
		asks(t, l, drop("ses_a", fmt.Sprintf(`{"n":%d}`, i)), e)
	}
	if _, err := l.Stop(ctx, "lunch"); err != nil {
		t.Fatal(err)
	}
	closeLedger(t, l)
	tearPage(t, dir, "approvals")
	refuses(t, dir, ledger.ErrDamaged)
	recovered(t, dir, time.Now)
	l = quick(t, dir)
	if _, d := reserve(t, l, a, e); d.Policy != ledger.PolicyStopped {
		t.Errorf("the stop is gone: %v by %s", d.Verdict, d.Policy)
	}
	if _, err := l.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	asks(t, l, a, e)
}

// tearPage destroys the first page of a bucket.
func tearPage(t *testing.T, dir, bucket string) {
	t.Helper()
	var root int
	inspect(t, dir, func(tx *bolt.Tx) { root = int(tx.Bucket([]byte(bucket)).Root()) })
	if root == 0 {
		t.Fatalf("the bucket %q has no page of its own", bucket)
	}
	file := read(t, dir, "haldir.db")
	for i := range 4096 {
		file[root*4096+i] ^= 0xa5
	}
	write(t, dir, "haldir.db", file)
}

func firstGrant(b *bolt.Bucket) []byte {
	k, _ := b.Cursor().Seek([]byte{'g'})
	return bytes.Clone(k)
}

// alter changes the approvals of a ledger that nobody has open.
func alter(t *testing.T, dir string, f func(*bolt.Bucket) error) {
	t.Helper()
	db, err := bolt.Open(dir+"/haldir.db", 0o600, nil)
	if err == nil {
		err = errors.Join(db.Update(func(tx *bolt.Tx) error { return f(tx.Bucket([]byte("approvals"))) }), db.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A recovery that has lost the counters knows from the records that everything was
// stopped: it must not be what lets calls through again. Nor must the next one.
func TestARecoveryKeepsTheStop(t *testing.T) {
	for _, resumed := range []bool{false, true} {
		e, dir := engine(t, shop()), stateDir(t)
		l := quick(t, dir)
		if _, err := l.Stop(context.Background(), "lunch"); err != nil {
			t.Fatal(err)
		}
		if resumed {
			if _, err := l.Resume(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 2 {
			for n := range 10 {
				reserve(t, l, fresh(pay(fmt.Sprintf("ses_%d_%d", i, n), "1")), e)
			}
			closeLedger(t, l)
			tearPage(t, dir, "hot")
			clock := newClock() // the names of what is set aside have the time
			clock.t = time.Now().Add(time.Duration(i) * time.Hour)
			if r := recovered(t, dir, clock.now); !r.Doubt {
				t.Fatalf("%+v", r)
			}
			l = open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
			s, err := l.Stopped(context.Background())
			if err != nil || s == nil != resumed || s != nil && s.Reason != "lunch" {
				t.Errorf("resumed %t, and after recovery %d: %+v %v", resumed, i+1, s, err)
			}
		}
	}
}

// A session that is revoked asks nobody any more.
func TestARevokedSessionAsksNobody(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, needy())
	ctx := context.Background()
	a, b := asks(t, l, drop("ses_a", `{}`), e), asks(t, l, drop("ses_b", `{}`), e)
	granted := drop("ses_a", `{"n":1}`)
	granted.Grant = asks(t, l, granted, e).Approval
	answerTo(t, l, granted.Grant, ledger.Answer{Allow: true})
	if _, err := l.Revoke(ctx, "ses_a", false); err != nil {
		t.Fatal(err)
	}
	if list := approvals(t, l); len(list) != 1 || list[0].ID != b.Approval {
		t.Errorf("listed: %+v", list)
	}
	if en := entry(t, l, a.Seq); en.Status != audit.StatusDenied || !strings.Contains(en.FlagReason, "revoked") {
		t.Errorf("%s: %s", en.Status, en.FlagReason)
	}
	if _, d := reserve(t, l, granted, e); d.Policy != policy.PolicySession {
		t.Errorf("what was allowed before: %v by %s", d.Verdict, d.Policy)
	}
	verify(t, l)
}

// A session can be renewed and revoked at any time, and nothing undoes a revocation.
func TestRenewAndRevoke(t *testing.T) {
	clock := newClock()
	l := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now})
	ctx := context.Background()
	create := func(ttl time.Duration) string {
		s, err := l.CreateSession(ctx, ledger.Terms{Agent: "bot", AllScopes: true, TTL: ttl})
		if err != nil {
			t.Fatal(err)
		}
		return s.ID
	}
	if _, err := l.Renew(ctx, "ses_none", time.Hour); !errors.Is(err, ledger.ErrNoSession) {
		t.Errorf("no session: %v", err)
	}
	if _, err := l.Revoke(ctx, "ses_none", true); !errors.Is(err, ledger.ErrNoSession) {
		t.Errorf("no session: %v", err)
	}
	if s, err := l.Renew(ctx, create(0), time.Hour); err != nil || !s.ExpiresAt.IsZero() {
		t.Errorf("one that does not expire: %+v %v", s, err)
	}
	id := create(time.Hour)
	for _, ttl := range []time.Duration{0, -time.Hour} {
		if _, err := l.Renew(ctx, id, ttl); err == nil {
			t.Errorf("renewed for %v", ttl)
		}
	}
	clock.add(2 * time.Hour) // expired
	if s, err := l.Renew(ctx, id, time.Minute); err != nil || !s.ExpiresAt.Equal(clock.now().Add(time.Minute)) {
		t.Errorf("after it had expired: %+v %v", s, err)
	}
	if s, err := l.Renew(ctx, id, 1<<63-1); err != nil || !s.ExpiresAt.After(clock.now()) {
		t.Errorf("for ever: %+v %v", s, err)
	}
	for i, c := range []struct{ cancel, cancelled bool }{{false, false}, {true, true}, {false, true}, {true, true}} {
		if s, err := l.Revoke(ctx, id, c.cancel); err != nil || s.Cancelled != c.cancelled || s.RevokedAt.IsZero() {
			t.Errorf("revoked for the %d. time: %+v %v", i+1, s, err)
		}
	}
	if _, err := l.Renew(ctx, id, time.Hour); !errors.Is(err, ledger.ErrRevoked) {
		t.Errorf("renewed after it was revoked: %v", err)
	}
	if got, want := sessionEvents(t, l, id), []audit.Status{"created", "renewed", "renewed", "revoked", "revoked"}; !slices.Equal(got, want) {
		t.Errorf("the audit has %v, want %v", got, want)
	}
	verify(t, l)
}

// A renewed session of the config stays so while the config says that it expires.
func TestARenewedSessionOfTheConfig(t *testing.T) {
	clock := newClock()
	l := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now})
	e := engine(t, policy.Ruleset{})
	a := call("ses_a", "look", `{}`)
	a.Use.Terms = &ledger.Terms{Agent: "bot", AllScopes: true, TTL: time.Hour}
	reserve(t, l, a, e)
	clock.add(2 * time.Hour)
	if _, d := reserve(t, l, a, e); d.Policy != policy.PolicySession {
		t.Fatalf("expired: %v", d.Verdict)
	}
	if _, err := l.Renew(context.Background(), "ses_a", time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, d := reserve(t, l, a, e); d.Verdict != policy.Allow {
		t.Errorf("renewed: %s", d.Reason)
	}
	clock.add(time.Hour)
	if _, d := reserve(t, l, a, e); d.Policy != policy.PolicySession {
		t.Errorf("an hour later: %v", d.Verdict)
	}
}

// TestAGrantAnswersTheRulesThatAsked: another rule may ask by the time of the call, or
// one that lets no answer hold for a session.
func TestAGrantAnswersTheRulesThatAsked(t *testing.T) {
	for _, session := range []bool{true, false} {
		clock := newClock() // 12:10
		l := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now})
		e := engine(t, policy.Ruleset{Policies: []policy.Rule{
			{Type: policy.TypeApproval, ID: "word", Tools: []string{"shop/drop"}, Timeout: time.Hour},
			{Type: policy.TypeApproval, ID: "late", Tools: []string{"shop/drop"}, When: "now.getHours() >= 13", Timeout: time.Hour, Once: true},
		}})
		clock.add(45 * time.Minute)
		a := drop("ses_a", `{}`)
		a.Grant = asks(t, l, a, e).Approval
		answerTo(t, l, a.Grant, ledger.Answer{Allow: true, ForSession: session})
		if session {
			if _, d := reserve(t, l, a, e); d.Verdict != policy.Allow {
				t.Errorf("what was allowed: %s", d.Reason)
			}
		}
		clock.add(8 * time.Minute)
		if _, d := reserve(t, l, a, e); d.Verdict != policy.Ask || len(d.Question.Rules) != 2 {
			t.Errorf("for the session %t: the call is not put to a person by the second rule: %v", session, d.Verdict)
		}
	}
}

// TestAGrantDoesNotLastWhileTheClockStandsStill: the ledger's clock does, after one of the
// system's that was ahead was put right.
func TestAGrantDoesNotLastWhileTheClockStandsStill(t *testing.T) {
	for _, session := range []bool{true, false} {
		clock := newClock()
		l, e := open(t, ledger.Options{Dir: stateDir(t), NoSync: true, Clock: clock.now}), engine(t, needy())
		clock.add(30 * day)
		reserve(t, l, call("ses_x", "look", `{}`), e)
		clock.add(-30 * day)
		a := drop("ses_a", `{}`)
		asked := asks(t, l, a, e)
		if err := l.Refuse(context.Background(), asked.Approval); err != nil {
			t.Fatal(err)
		}
		answerTo(t, l, asked.Approval, ledger.Answer{Allow: true, ForSession: session})
		clock.add(2 * day)
		if _, d := reserve(t, l, a, e); d.Verdict == policy.Allow {
			t.Errorf("for the session %t: what was allowed holds after two days", session)
		}
	}
}

func TestARequestThatIsListedTwiceStaysOne(t *testing.T) {
	l, e := quick(t, stateDir(t)), engine(t, needy())
	a := drop("ses_a", `{"table":"a"}`)
	asked := asks(t, l, a, e)
	for range 2 {
		if err := l.Refuse(context.Background(), asked.Approval); err != nil {
			t.Fatal(err)
		}
	}
	if list := approvals(t, l); len(list) != 1 || string(list[0].Arguments) != `{"table":"a"}` {
		t.Errorf("%d are listed: %+v", len(list), list)
	}
	if s := entry(t, l, asked.Seq).Status; s != audit.StatusPending {
		t.Errorf("on record it is %s", s)
	}
}

func TestLoopCountersLiveThroughARecovery(t *testing.T) {
	clock, dir := newClock(), stateDir(t)
	clock.t = time.Now()
	l, e := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now}), engine(t, loops(3, time.Hour))
	for range 3 {
		ticket, d := reserve(t, l, call("ses_a", "look", `{}`), e)
		if d.Verdict != policy.Allow {
			t.Fatal(d.Reason)
		}
		l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	}
	for i := range 900 { // so that the index has more than one page
		reserve(t, l, call("ses_b", "look", fmt.Sprintf(`{"i":%d}`, i)), e)
	}
	flush(t, l)
	closeLedger(t, l)
	tearPage(t, dir, "index")
	if _, err := ledger.Recover(context.Background(), ledger.Options{Dir: dir, NoSync: true, Clock: clock.now}); err != nil {
		t.Fatal(err)
	}
	l = open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	if _, d := reserve(t, l, call("ses_a", "look", `{}`), e); d.Verdict == policy.Allow {
		t.Error("the fourth call in a row goes")
	}
}
