package ledger_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

func recovered(tb testing.TB, dir string, clock func() time.Time) ledger.Recovery {
	tb.Helper()
	r, err := ledger.Recover(context.Background(), ledger.Options{Dir: dir, NoSync: true, Clock: clock})
	if err != nil {
		tb.Fatalf("Recover: %v", err)
	}
	return r
}

// spree makes a ledger in which much was used, and returns its records.
func spree(tb testing.TB, clock func() time.Time) (dir string, raws map[uint64][]byte) {
	tb.Helper()
	dir = stateDir(tb)
	l, e := open(tb, ledger.Options{Dir: dir, NoSync: true, Clock: clock}), engine(tb, shop())
	for i := range 60 {
		ticket, d := reserve(tb, l, call(fmt.Sprintf("ses_%d", i%3), []string{"pay", "look", "steal"}[i/3%3], fmt.Sprintf(`{"amount":%d,"path":"/tmp/%d"}`, 1+i%3, i)), e)
		if d.Verdict == policy.Allow && i != 42 { // which stays open
			l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
		}
	}
	flush(tb, l)
	raws = map[uint64][]byte{}
	_, _, err := l.Walk(context.Background(), 1, func(seq uint64, raw []byte) error { raws[seq] = raw; return nil })
	if err != nil {
		tb.Fatal(err)
	}
	closeLedger(tb, l)
	return dir, raws
}

// salvaged reads the file of a recovery and checks that every record in it is
// what was written, bit for bit.
func salvaged(t *testing.T, r ledger.Recovery, raws map[uint64][]byte) map[uint64]bool {
	t.Helper()
	there := map[uint64]bool{}
	if r.Salvaged == "" {
		return there
	}
	b, err := os.ReadFile(r.Salvaged)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != r.Digest {
		t.Errorf("%s does not have the digest of the recovery", r.Salvaged)
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		record := rebuilt(t, lines.Bytes())
		if !bytes.Equal(record.Encode(), raws[record.Seq]) {
			t.Errorf("record %d is not what was written", record.Seq)
		}
		there[record.Seq] = true
	}
	if uint64(len(there)) != r.Records {
		t.Errorf("%d records are in the file, the recovery says %d", len(there), r.Records)
	}
	for seq := range uint64(len(raws)) {
		missing := false
		for _, m := range r.Missing {
			missing = missing || seq+1 >= m.First && seq+1 <= m.Last
		}
		if missing == there[seq+1] {
			t.Errorf("record %d: salvaged %v, missing %v", seq+1, there[seq+1], missing)
		}
	}
	return there
}

// begunAnew checks the new ledger: sound, its first record tells, what was set
// aside is as it was, and nothing may be spent again.
func begunAnew(t *testing.T, dir string, clock func() time.Time, r ledger.Recovery, old []byte) {
	t.Helper()
	l, e := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock}), engine(t, shop())
	defer closeLedger(t, l)
	first := entry(t, l, 1)
	var told ledger.Recovery
	if err := json.Unmarshal(first.Arguments, &told); err != nil || first.Status != audit.StatusRecovered || told.SHA256 != r.SHA256 || told.Digest != r.Digest {
		t.Errorf("the first record is %+v; %v", first, err)
	}
	verify(t, l)
	if old != nil {
		sum := sha256.Sum256(old)
		aside := ""
		for _, path := range r.Aside {
			if strings.Contains(path, "haldir.db.") {
				aside = path
			}
		}
		b, err := os.ReadFile(aside)
		if err != nil || !bytes.Equal(b, old) || r.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%s is not the old file: %v", aside, err)
		}
	}
	for i := range 3 {
		u := attempt(fmt.Sprintf("ses_%d", i)).Use
		sp, budgets, err := l.Spent(context.Background(), ledger.Use{ID: u.ID}, e)
		if r.Doubt != errors.Is(err, ledger.ErrNoSession) {
			t.Errorf("session %d: in doubt %v, %v", i, r.Doubt, err)
		}
		if err == nil && (sp.Total < policy.Micros(7*(i+1))*policy.USD || len(budgets) == 0) { // 7 calls each
			t.Errorf("session %d has spent %s, less than before", i, sp.Total)
		}
	}
	// The rules' own counters, by what a new session may still do.
	_, d := reserve(t, l, pay("ses_new", "959"), e) // 42 of 1,000 in this hour were used
	if d.Verdict == policy.Allow {
		t.Error("the limit of the hour begins anew")
	}
	if _, d := reserve(t, l, pay("ses_new", "90"), e); d.Verdict == policy.Allow == r.Doubt {
		t.Errorf("in doubt %v, and a call that was within all limits is: %v %s", r.Doubt, d.Verdict, d.Reason)
	}
	verify(t, l)
}

func TestASoundLedgerIsNotRecovered(t *testing.T) {
	clock := newClock()
	dir, _ := spree(t, clock.now)
	before := map[string][]byte{}
	for _, name := range []string{"haldir.db", "haldir.head", "checkpoints.log", "checkpoint.key"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		before[name] = b
	}
	if r, err := ledger.Recover(context.Background(), ledger.Options{Dir: dir, Clock: clock.now}); !errors.Is(err, ledger.ErrSound) {
		t.Errorf("%+v %v", r, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if b, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(e.Name(), "salvaged") {
			t.Errorf("%s was made: %d bytes", e.Name(), len(b))
		}
	}
	for name, old := range before {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(b, old) {
			t.Errorf("%s was changed: %v", name, err)
		}
	}
}

// harm changes a database behind the ledger's back.
func harm(t *testing.T, dir string, f func(*bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(dir, "haldir.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(f), db.Close()); err != nil {
		t.Fatal(err)
	}
}

// emptyKey takes the key of the first entry of a bucket away, which bbolt would not.
func emptyKey(t *testing.T, dir, bucket string) {
	t.Helper()
	var root uint64
	harm(t, dir, func(tx *bolt.Tx) error { root = uint64(tx.Bucket([]byte(bucket)).Root()); return nil })
	file := read(t, dir, "haldir.db")
	page := file[root*4096:]
	for binary.NativeEndian.Uint16(page[8:]) == 1 { // a branch
		page = file[binary.NativeEndian.Uint64(page[16+8:])*4096:]
	}
	binary.NativeEndian.PutUint32(page[16+8:], 0)
	write(t, dir, "haldir.db", file)
}

// What no haldir opens must not be a sound one to Recover: nobody could do anything about it.
func TestWhatIsRefusedIsRecovered(t *testing.T) {
	change := func(f func(*bolt.Tx) error) func(*testing.T, string) {
		return func(t *testing.T, dir string) { harm(t, dir, f) }
	}
	harms := map[string]func(*testing.T, string){
		"a version of one byte": func(t *testing.T, dir string) { setVersion(t, dir, []byte{0}) },
		"an empty version":      func(t *testing.T, dir string) { setVersion(t, dir, nil) },
		"a long version":        func(t *testing.T, dir string) { setVersion(t, dir, bytes.Repeat([]byte("x"), 40)) },
		"a version of 65540":    func(t *testing.T, dir string) { setVersion(t, dir, []byte{0, 0, 0, 0, 0, 1, 0, 4}) },
		"no version":            change(func(tx *bolt.Tx) error { return tx.Bucket([]byte("hot")).Delete([]byte("mversion")) }),
	}
	for _, name := range []string{"audit", "hot"} {
		harms["an empty key in "+name] = func(t *testing.T, dir string) { emptyKey(t, dir, name) }
	}
	for _, name := range []string{"audit", "outcomes", "index", "catalogue", "approvals"} {
		harms["no "+name] = change(func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte(name)) })
	}
	for name, do := range harms {
		t.Run(name, func(t *testing.T) {
			clock := newClock()
			dir, raws := spree(t, clock.now)
			do(t, dir)
			old := read(t, dir, "haldir.db")
			refuses(t, dir, ledger.ErrDamaged)
			r := recovered(t, dir, clock.now)
			salvaged(t, r, raws)
			begunAnew(t, dir, clock.now, r, old)
			if strings.Contains(r.Why, "nil pointer") {
				t.Errorf("why is %q", r.Why)
			}
		})
	}
}

// A ledger of a newer haldir may be sound or not: this one cannot tell, and must not begin anew.
func TestALedgerOfANewerFormatIsNotRecovered(t *testing.T) {
	for name, do := range map[string]func(*testing.T, string){
		"sound":   func(*testing.T, string) {},
		"no head": func(t *testing.T, dir string) { write(t, dir, "haldir.head", []byte("x")) },
		"no record": func(t *testing.T, dir string) {
			harm(t, dir, func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte("audit")) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := written(t, 3)
			setVersion(t, dir, binary.BigEndian.AppendUint64(nil, ledger.FormatVersion+1))
			do(t, dir)
			old := read(t, dir, "haldir.db")
			if r, err := ledger.Recover(context.Background(), ledger.Options{Dir: dir, Clock: time.Now}); !errors.Is(err, ledger.ErrNewer) {
				t.Errorf("%+v %v", r, err)
			}
			if now := read(t, dir, "haldir.db"); !bytes.Equal(now, old) {
				t.Error("it was changed")
			}
		})
	}
}

// A checkpoint log that is a directory is damage like any, and in nobody's way.
func TestACheckpointLogThatIsNoFile(t *testing.T) {
	clock := newClock()
	dir, raws := spree(t, clock.now)
	path := filepath.Join(dir, "checkpoints.log")
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	l := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	_, err := l.Verify(context.Background(), nil)
	if damage, ok := errors.AsType[*audit.Damage](err); !ok || !strings.Contains(damage.Error(), "checkpoints.log is no file") {
		t.Errorf("Verify: %v", err)
	}
	closeLedger(t, l)
	r := recovered(t, dir, clock.now)
	salvaged(t, r, raws)
	begunAnew(t, dir, clock.now, r, nil)
}

// Truncated, zeroed, overwritten and with a flipped bit: whatever was done to the
// file, its records are salvaged as they were or not at all, and no limit is
// looser than before.
func TestRecoveryGetsThroughAnyFile(t *testing.T) {
	clock := newClock()
	source, raws := spree(t, clock.now)
	good, err := os.ReadFile(filepath.Join(source, "haldir.db"))
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	rng := rand.New(rand.NewPCG(8, 9))
	images := map[string][]byte{"cut to nothing": {}, "all zero": make([]byte, len(good)), "cut to a byte": good[:1]}
	for i := range 25 {
		b := bytes.Clone(good)
		p := rng.IntN(30) * page
		clear(b[p : p+page])
		images[fmt.Sprintf("page %d zeroed", p/page)] = b
		b = bytes.Clone(good)
		p = rng.IntN(30) * page
		for at := range page {
			b[p+at] = byte(rng.Uint32())
		}
		images[fmt.Sprintf("page %d overwritten", p/page)] = b
		images[fmt.Sprintf("cut, %d", i)] = good[:rng.IntN(30*page)]
		b = bytes.Clone(good)
		b[rng.IntN(30)*page+rng.IntN(64)] ^= 1 << rng.IntN(8)
		images[fmt.Sprintf("a bit of a page's head flipped, %d", i)] = b
		b = bytes.Clone(good)
		for range 30 {
			b[rng.IntN(30*page)] = byte(rng.Uint32())
		}
		images[fmt.Sprintf("thirty bytes, %d", i)] = b
	}
	sound, doubt, all := 0, 0, 0
	for name, image := range images {
		dir := stateDir(t)
		err := errors.Join(os.CopyFS(dir, os.DirFS(source)), os.Chmod(dir, 0o700), os.WriteFile(filepath.Join(dir, "haldir.db"), image, 0o600))
		if err != nil {
			t.Fatal(err)
		}
		r, err := ledger.Recover(context.Background(), ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
		if errors.Is(err, ledger.ErrSound) {
			sound++ // in a page that is not used
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r.Doubt {
			doubt++
		}
		if there := salvaged(t, r, raws); len(there) == len(raws) {
			all++
		}
		begunAnew(t, dir, clock.now, r, image)
		if t.Failed() {
			t.Fatalf("%s: %+v", name, r)
		}
	}
	t.Logf("of %d files %d were sound after all, %d left doubt, %d lost no record", len(images), sound, doubt, all)
	if doubt == 0 || doubt == len(images) || all == 0 {
		t.Error("the files are all of a kind")
	}
}

// A record that somebody changed is not salvaged; those around it are.
func TestRecoveryLeavesOutAnEditedRecord(t *testing.T) {
	clock := newClock()
	dir, raws := spree(t, clock.now)
	db, err := bolt.Open(filepath.Join(dir, "haldir.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		record, err := audit.Decode(raws[20])
		record.Cost++
		return errors.Join(err, tx.Bucket([]byte("audit")).Put([]byte{0, 0, 0, 0, 0, 0, 0, 20}, record.Encode()))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(filepath.Join(dir, "haldir.db"))
	if err != nil {
		t.Fatal(err)
	}
	r := recovered(t, dir, clock.now)
	there := salvaged(t, r, raws)
	if r.Doubt || len(there) < len(raws)-1 { // an older page may have the record as it was
		t.Errorf("%+v", r)
	}
	begunAnew(t, dir, clock.now, r, old)
}

// When what was used is not known, every limit counts as used up until its window
// has passed, one without a window until a person says otherwise; and no session
// of before begins anew.
func TestWhatIsNotKnownCountsAsUsed(t *testing.T) {
	dir, clock := stateDir(t), newClock()
	rules := shop()
	rules.Policies = append(rules.Policies, policy.Rule{Type: policy.TypeSpendLimit, ID: "ever", MaxUSD: 5000 * policy.USD, Tools: []string{"shop/ask"}, Per: policy.PerTotal})
	e := engine(t, rules)
	running := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	ticket, _ := reserve(t, running, pay("ses_a", "1"), e)
	flush(t, running)
	time.Sleep(50 * time.Millisecond) // until it has let go of the file
	clock.add(time.Second)
	if err := os.Remove(filepath.Join(dir, "haldir.db")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := running.Reserve(context.Background(), pay("ses_a", "1"), e); !errors.Is(err, ledger.ErrDamaged) || ledger.Retryable(err) {
		t.Fatalf("without a database: %v", err)
	}
	r := recovered(t, dir, clock.now)
	if !r.Doubt || r.Records != 0 || r.Lost == 0 {
		t.Errorf("%+v", r)
	}
	running.Settle(ticket, ledger.Outcome{Result: ledger.NotSent}) // of another ledger: it must return nothing
	if _, d := reserve(t, running, fresh(pay("ses_a", "1")), e); d.Verdict == policy.Allow || d.Policy != policy.PolicySession {
		t.Errorf("a session of before: %v by %s", d.Verdict, d.Policy)
	}
	later := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	if _, d := reserve(t, later, fresh(call("ses_b", "look", `{}`)), e); d.Verdict == policy.Allow || d.Policy != string(policy.TypeRateLimit) || d.RetryAt.IsZero() {
		t.Errorf("within the window: %v by %s", d.Verdict, d.Policy)
	}
	clock.add(time.Hour) // of the rate and of the spending
	if _, d := reserve(t, later, fresh(pay("ses_b", "1")), e); d.Verdict != policy.Allow {
		t.Errorf("after the window: %s", d.Reason)
	}
	if _, d := reserve(t, later, call("ses_b", "ask", `{}`), e); d.Verdict == policy.Allow {
		t.Error("a limit without a window is unused")
	}
	for range 2 { // the second time there is nothing to trust
		if _, err := later.Trust(context.Background(), "I know that nothing was spent"); err != nil {
			t.Fatal(err)
		}
	}
	if _, d := reserve(t, later, call("ses_b", "ask", `{}`), e); d.Verdict != policy.Allow {
		t.Errorf("after a person vouched for it: %s", d.Reason)
	}
	trusted, _, err := later.Find(context.Background(), audit.Filter{Status: audit.StatusTrusted})
	if err != nil || len(trusted) != 1 || !strings.Contains(trusted[0].FlagReason, "I know that nothing was spent") {
		t.Errorf("%+v %v", trusted, err)
	}
	verify(t, later)
}

// A recovery that is interrupted leaves something that is refused, and that can
// be recovered.
func TestAnInterruptedRecoveryIsGoneOnWith(t *testing.T) {
	clock := newClock()
	dir, raws := spree(t, clock.now)
	head, err := os.ReadFile(filepath.Join(dir, "haldir.head"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "haldir.db")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b[:8*4096], 0o600); err != nil {
		t.Fatal(err)
	}
	salvaged(t, recovered(t, dir, clock.now), raws)
	clock.add(time.Second)
	// As if it had come to the new database, and no further.
	if err := os.WriteFile(filepath.Join(dir, "haldir.head"), head, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(ledger.Options{Dir: dir, NoSync: true, Clock: clock.now, Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Reserve(context.Background(), pay("ses_a", "1"), engine(t, shop())); !errors.Is(err, ledger.ErrDamaged) {
		t.Errorf("Reserve: %v", err)
	}
	closeLedger(t, l)
	r := recovered(t, dir, clock.now)
	if !r.Doubt {
		t.Errorf("%+v", r)
	}
	begunAnew(t, dir, clock.now, r, nil)
}

func fresh(a ledger.Attempt) ledger.Attempt {
	a.Use.Fresh = true
	return a
}

// lose makes a ledger, uses it, and has it recovered after the database was lost.
func lose(t *testing.T, clock *fakeClock, use func(*ledger.Ledger)) (dir string) {
	t.Helper()
	dir = stateDir(t)
	l := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	use(l)
	closeLedger(t, l)
	if err := os.Remove(filepath.Join(dir, "haldir.db")); err != nil {
		t.Fatal(err)
	}
	if r := recovered(t, dir, clock.now); !r.Doubt {
		t.Fatalf("%+v", r)
	}
	return dir
}

// A call that is let through while there is doubt adds to what is known, not to
// what is feared.
func TestADoubtEndsWhenAPersonTrusts(t *testing.T) {
	clock := newClock()
	rules := shop()
	rules.Policies = []policy.Rule{
		{Type: policy.TypeSpendLimit, ID: "ever", MaxUSD: 5 * policy.USD, Per: policy.PerTotal, Tools: []string{"shop/pay"}},
		{Type: policy.TypeSpendLimit, ID: "shadow", MaxUSD: 5 * policy.USD, Per: policy.PerTotal, Tools: []string{"shop/tip"}, Shadow: true},
	}
	e := engine(t, rules)
	dir := lose(t, clock, func(l *ledger.Ledger) { reserve(t, l, pay("ses_a", "1"), e) })
	l := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	for _, a := range []ledger.Attempt{pay("ses_b", "0"), call("ses_b", "tip", `{}`)} {
		for range 2 {
			if _, d := reserve(t, l, fresh(a), e); d.Verdict != policy.Allow {
				t.Fatalf("it costs nothing that is limited: %s", d.Reason)
			}
		}
		if _, d := reserve(t, l, pay("ses_b", "1"), e); d.Verdict == policy.Allow {
			t.Error("a call that costs nothing ends the doubt")
		}
	}
	if _, err := l.Trust(context.Background(), "nothing was spent"); err != nil {
		t.Fatal(err)
	}
	if _, d := reserve(t, l, pay("ses_b", "5"), e); d.Verdict != policy.Allow {
		t.Errorf("after a person vouched for it: %s", d.Reason)
	}
	if _, d := reserve(t, l, pay("ses_b", "1"), e); d.Verdict == policy.Allow {
		t.Error("what was spent since is forgotten")
	}
	if _, d := reserve(t, l, call("ses_b", "tip", `{}`), e); len(d.Also) > 0 {
		t.Errorf("a shadow rule still doubts: %+v", d.Also)
	}
}

// While there is doubt, a session that was revoked or has spent its limit does
// not begin anew, whoever asks for it, before a person says so.
func TestALostSessionDoesNotBeginAnew(t *testing.T) {
	clock := newClock()
	e := engine(t, policy.Ruleset{Costs: shop().Costs})
	a := pay("ses_named", "10")
	a.Use.Terms = &ledger.Terms{Agent: "bot", AllScopes: true, SpendLimit: dollars(10)}
	dir := lose(t, clock, func(l *ledger.Ledger) {
		reserve(t, l, a, e)
		if _, err := l.Revoke(context.Background(), "ses_named", false); err != nil {
			t.Fatal(err)
		}
	})
	clock.add(time.Hour)
	l := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	for range 2 { // the first must not have made it
		if _, d := reserve(t, l, a, e); d.Verdict == policy.Allow || !strings.Contains(d.Reason, "haldir ledger trust") {
			t.Errorf("%v: %s", d.Verdict, d.Reason)
		}
	}
	if _, err := l.Session(context.Background(), a.Use); !errors.Is(err, ledger.ErrNoSession) {
		t.Errorf("Session: %v", err)
	}
	another := fresh(a)
	another.Use.ID = ledger.NewSessionID()
	if _, d := reserve(t, l, another, e); d.Verdict != policy.Allow {
		t.Errorf("one with a new id: %s", d.Reason)
	}
	if _, err := l.Trust(context.Background(), "it may"); err != nil {
		t.Fatal(err)
	}
	if _, d := reserve(t, l, a, e); d.Verdict != policy.Allow {
		t.Errorf("after a person vouched for it: %s", d.Reason)
	}
}

// A recovery while the clock was ahead is set back with the rest.
func TestADoubtIsSetBackWithTheClock(t *testing.T) {
	clock := newClock()
	rules := shop()
	e := engine(t, rules)
	const years = 10 * 365 * 24 * time.Hour
	clock.add(years)
	dir := lose(t, clock, func(l *ledger.Ledger) { reserve(t, l, pay("ses_a", "1"), e) })
	clock.add(-years)
	l := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	if _, _, err := l.ResetClock(context.Background(), "the battery was flat"); err != nil {
		t.Fatal(err)
	}
	if _, d := reserve(t, l, fresh(pay("ses_b", "1")), e); d.Verdict == policy.Allow || d.Policy == policy.PolicySession {
		t.Errorf("within the window: %v %s", d.Verdict, d.Reason)
	}
	clock.add(time.Hour)
	if _, d := reserve(t, l, fresh(pay("ses_b", "1")), e); d.Verdict != policy.Allow {
		t.Errorf("after the window: %s", d.Reason)
	}
}

// Where there is no ledger nothing is damaged, and nothing is made.
func TestNoLedgerIsNotRecovered(t *testing.T) {
	for _, dir := range []string{stateDir(t), filepath.Join(t.TempDir(), "absent")} {
		before, _ := os.ReadDir(dir)
		_, err := ledger.Recover(context.Background(), ledger.Options{Dir: dir, NoSync: true, Clock: newClock().now})
		if !errors.Is(err, ledger.ErrSound) || !strings.Contains(err.Error(), "no ledger in "+dir) {
			t.Errorf("Recover: %v", err)
		}
		if after, _ := os.ReadDir(dir); len(after) != len(before) {
			t.Errorf("it made %v", after)
		}
	}
}

// What a resource or a prompt has cost is found in the records of it.
func TestARecoveryKnowsResourcesAndPrompts(t *testing.T) {
	dir, clock := stateDir(t), newClock()
	rules := policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*", "resource:*", "prompt:*"}, USD: policy.USD}}}
	e := engine(t, rules)
	l := open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	for i, kind := range []policy.Kind{policy.KindTool, policy.KindResource, policy.KindPrompt} {
		a := call("ses_a", "a/b:c", `{}`)
		a.Call.Kind = kind
		for range i + 1 {
			ticket, d := reserve(t, l, a, e)
			if d.Verdict != policy.Allow {
				t.Fatal(d.Reason)
			}
			l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
		}
	}
	before := spent(t, l, attempt("ses_a").Use, e).ByTool
	closeLedger(t, l)
	if len(before) != 3 || before["resource:shop/a/b:c"] != 2*policy.USD {
		t.Fatalf("%v", before)
	}
	tear(t, dir)
	if r := recovered(t, dir, clock.now); r.Doubt {
		t.Fatalf("%+v", r)
	}
	l = open(t, ledger.Options{Dir: dir, NoSync: true, Clock: clock.now})
	if after := spent(t, l, attempt("ses_a").Use, e).ByTool; !maps.Equal(before, after) {
		t.Errorf("%v before, %v after", before, after)
	}
}

// tear damages a ledger beside its sessions and counters.
func tear(t *testing.T, dir string) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(dir, "haldir.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte("audit")).Delete([]byte{0, 0, 0, 0, 0, 0, 0, 1}) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}
