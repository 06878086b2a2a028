package ledger_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// written makes a state directory with n calls in it and closes it.
func written(tb testing.TB, n int) string {
	tb.Helper()
	dir := stateDir(tb)
	l, e := quick(tb, dir), engine(tb, shop())
	more(tb, l, e, n)
	closeLedger(tb, l)
	return dir
}

func more(tb testing.TB, l *ledger.Ledger, e *policy.Engine, n int) {
	tb.Helper()
	for i := range n {
		ticket, _ := reserve(tb, l, call(fmt.Sprintf("ses_%d", i%7), []string{"look", "tip", "steal"}[i%3], fmt.Sprintf(`{"path":"/tmp/%d"}`, i)), e)
		l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	}
	flush(tb, l)
}

func read(tb testing.TB, dir, name string) []byte {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func write(tb testing.TB, dir, name string, b []byte) {
	tb.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// refuses checks that every operation on a state directory fails with an error,
// and that neither the database nor the head is written to.
func refuses(t *testing.T, dir string, want error, words ...string) {
	t.Helper()
	before := map[string][]byte{}
	for _, name := range []string{"haldir.db", "haldir.head"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			before[name] = b
		}
	}
	l, e := quick(t, dir), engine(t, shop())
	ctx := context.Background()
	for name, f := range map[string]func() error{
		"Reserve": func() error {
			_, d, err := l.Reserve(ctx, pay("ses_a", "1"), e)
			if d.Verdict == policy.Allow {
				t.Error("Reserve lets a call through")
			}
			return err
		},
		"Find":   func() error { _, _, err := l.Find(ctx, audit.Filter{}); return err },
		"Verify": func() error { _, err := l.Verify(ctx, nil); return err },
		"Record": func() error { return l.Record(ctx, attempt("ses_a"), "") },
	} {
		err := f()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
			continue
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", name, err, w)
			}
		}
	}
	for _, name := range []string{"haldir.db", "haldir.head"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		old, was := before[name]
		if (err == nil) != was || !bytes.Equal(b, old) {
			t.Errorf("%s was %d bytes, there: %v; now it is %d bytes, there: %v; changed: %v", name, len(old), was, len(b), err == nil, !bytes.Equal(b, old))
		}
	}
}

// A zero-length or missing file opens as a new database, in which every limit
// is unused. The head outside of it knows better.
func TestADatabaseThatIsGoneOrEmptyOrOlderIsRefused(t *testing.T) {
	older := written(t, 3)
	for name, c := range map[string]struct {
		harm  func(t *testing.T, dir string)
		words []string
	}{
		"deleted": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "haldir.db")); err != nil {
				t.Fatal(err)
			}
		}, []string{"missing or empty", "haldir.head", "restore"}},
		"emptied":                        {func(t *testing.T, dir string) { write(t, dir, "haldir.db", nil) }, []string{"missing or empty"}},
		"an older copy put back":         {func(t *testing.T, dir string) { write(t, dir, "haldir.db", read(t, older, "haldir.db")) }, []string{"ends at record"}},
		"a new bbolt file put there":     {func(t *testing.T, dir string) { emptyBolt(t, dir, "") }, nil},
		"some other program's bbolt put": {func(t *testing.T, dir string) { emptyBolt(t, dir, "theirs") }, nil},
		"something else put there":       {func(t *testing.T, dir string) { write(t, dir, "haldir.db", bytes.Repeat([]byte("nonsense "), 9000)) }, nil},
		"a few bytes put there":          {func(t *testing.T, dir string) { write(t, dir, "haldir.db", []byte("x")) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := written(t, 10)
			c.harm(t, dir)
			refuses(t, dir, ledger.ErrDamaged, c.words...)
		})
	}
}

// emptyBolt puts a sound bbolt file that haldir did not write in the database's
// place.
func emptyBolt(t *testing.T, dir, bucket string) {
	t.Helper()
	path := filepath.Join(dir, "haldir.db")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if bucket != "" {
		err = db.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte(bucket)); return err })
	}
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// The head has the hash of its record as well as the number: another chain that
// is as long, or longer, is not the one that was written.
func TestAnotherChainOfTheSameLengthIsRefused(t *testing.T) {
	dir, other := written(t, 10), written(t, 12)
	write(t, dir, "haldir.db", read(t, other, "haldir.db"))
	refuses(t, dir, ledger.ErrDamaged)
}

// A process that was killed after its commit and before it wrote the head leaves
// the head behind the database. That is no damage.
func TestAHeadThatLagsIsNoDamage(t *testing.T) {
	for name, head := range map[string]func(t *testing.T, dir string, old []byte){
		"older":   func(t *testing.T, dir string, old []byte) { write(t, dir, "haldir.head", old) },
		"missing": func(t *testing.T, dir string, _ []byte) { _ = os.Remove(filepath.Join(dir, "haldir.head")) },
		"empty":   func(t *testing.T, dir string, _ []byte) { write(t, dir, "haldir.head", nil) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := written(t, 3)
			old := read(t, dir, "haldir.head")
			l, e := quick(t, dir), engine(t, shop())
			more(t, l, e, 3)
			closeLedger(t, l)
			head(t, dir, old)
			next := quick(t, dir)
			more(t, next, e, 1)
			verify(t, next)
		})
	}
}

func TestAHeadThatIsNoHeadIsRefused(t *testing.T) {
	good := ""
	for name, b := range map[string]func() string{
		"nonsense":       func() string { return "nonsense" },
		"cut":            func() string { return good[:len(good)/2] },
		"without a hash": func() string { return good[:36] },
		"zeroes":         func() string { return strings.Repeat("\x00", len(good)) },
		"another format": func() string { return strings.Replace(good, "head 1", "head 2", 1) },
		"negative":       func() string { return strings.Replace(good, " 0", " -", 1) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := written(t, 3)
			good = string(read(t, dir, "haldir.head"))
			write(t, dir, "haldir.head", []byte(b()))
			refuses(t, dir, ledger.ErrDamaged, "haldir.head")
		})
	}
}

func TestAFileOfANewerFormatIsRefusedAndLeftAlone(t *testing.T) {
	for _, version := range []uint64{ledger.FormatVersion + 1, 1000} {
		dir := written(t, 3)
		setVersion(t, dir, binary.BigEndian.AppendUint64(nil, version))
		refuses(t, dir, ledger.ErrNewer, fmt.Sprint(version), "upgrade")
	}
	for _, version := range [][]byte{nil, {1}, make([]byte, 9)} {
		dir := written(t, 3)
		setVersion(t, dir, version)
		refuses(t, dir, ledger.ErrDamaged)
	}
}

func setVersion(t *testing.T, dir string, version []byte) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(dir, "haldir.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte("hot")).Put([]byte("mversion"), version) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyFindsWhatSomebodyDidToTheDatabase(t *testing.T) {
	key := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	for name, c := range map[string]struct {
		harm func(b, hot *bolt.Bucket) error
		kind audit.DamageKind
		seq  uint64
	}{
		"an edit": {func(b, _ *bolt.Bucket) error {
			r, err := audit.Decode(b.Get(key(9)))
			r.Tool = "innocent"
			return errors.Join(err, b.Put(key(9), r.Encode()))
		}, audit.DamageEdit, 9},
		"a deletion": {func(b, _ *bolt.Bucket) error { return b.Delete(key(9)) }, audit.DamageDeletion, 9},
		"an exchange": {func(b, _ *bolt.Bucket) error {
			x, y := bytes.Clone(b.Get(key(9))), bytes.Clone(b.Get(key(12)))
			return errors.Join(b.Put(key(9), y), b.Put(key(12), x))
		}, audit.DamageReorder, 9},
		"nonsense":     {func(b, _ *bolt.Bucket) error { return b.Put(key(9), []byte("nonsense")) }, audit.DamageUnreadable, 9},
		"a truncation": {func(b, _ *bolt.Bucket) error { k, _ := b.Cursor().Last(); return b.Delete(bytes.Clone(k)) }, audit.DamageTruncation, 0},
		"a record put after the end": {func(b, hot *bolt.Bucket) error {
			seq := binary.BigEndian.Uint64(hot.Get([]byte("mhead")))
			return b.Put(key(seq+1), b.Get(key(9)))
		}, "", 0}, // an insertion, if the record were of that number
		"a record put before the first": {func(b, _ *bolt.Bucket) error { return b.Put(key(0), b.Get(key(9))) }, "", 0},
		"a key that is no number":       {func(b, _ *bolt.Bucket) error { return b.Put([]byte("zzz"), b.Get(key(9))) }, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := written(t, 10)
			db, err := bolt.Open(filepath.Join(dir, "haldir.db"), 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			err = db.Update(func(tx *bolt.Tx) error { return c.harm(tx.Bucket([]byte("audit")), tx.Bucket([]byte("hot"))) })
			if err := errors.Join(err, db.Close()); err != nil {
				t.Fatal(err)
			}
			// Without the head file the chain has only itself to show it.
			if err := os.Remove(filepath.Join(dir, "haldir.head")); err != nil {
				t.Fatal(err)
			}
			l := quick(t, dir)
			_, err = l.Verify(context.Background(), nil)
			var d *audit.Damage
			if !errors.As(err, &d) || c.kind != "" && d.Kind != c.kind || c.seq > 0 && d.Seq != c.seq {
				t.Errorf("got %v, want %s at %d", err, c.kind, c.seq)
			}
			// Queries of a damaged chain end with an error at worst.
			_, _, _ = l.Find(context.Background(), audit.Filter{Limit: 1000})
			for seq := range uint64(30) {
				_, _, _ = l.Entry(context.Background(), seq)
			}
		})
	}
}

// More than one page of records, with others appending meanwhile.
func TestVerifyGoesThroughALongChainInPages(t *testing.T) {
	dir := stateDir(t)
	l, e := quick(t, dir), engine(t, shop())
	var writers sync.WaitGroup
	for range 16 {
		writers.Go(func() {
			for range 300 {
				if _, _, err := l.Reserve(context.Background(), call("ses_a", "steal", `{}`), e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	calls, last := 0, uint64(0)
	v, err := l.Verify(context.Background(), func(done uint64) {
		calls++
		if done <= last {
			t.Errorf("%d done after %d", done, last)
		}
		last = done
		// A call need not wait for the end of it.
		if _, _, err := l.Reserve(context.Background(), call("ses_a", "steal", `{}`), e); err != nil {
			t.Error(err)
		}
	})
	if err != nil || v.Count() < 4801 {
		t.Errorf("%v, %d records", err, v.Count())
	}
	if calls < 2 {
		t.Errorf("progress was told %d times", calls)
	}
	// Cut the chain on a page's edge.
	closeLedger(t, l)
	db, err := bolt.Open(filepath.Join(dir, "haldir.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("audit")).Delete(binary.BigEndian.AppendUint64(nil, 4001))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = quick(t, dir).Verify(context.Background(), nil)
	var d *audit.Damage
	if !errors.As(err, &d) || d.Seq != 4001 || d.Kind != audit.DamageDeletion {
		t.Errorf("a deletion on a page's edge: %v", err)
	}
}

func TestAStateDirectoryOpenToOthersIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("has no such modes")
	}
	for _, mode := range []os.FileMode{0o755, 0o750, 0o701, 0o770, 0o777} {
		dir := stateDir(t)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now})
		if err == nil {
			closeLedger(t, l)
			t.Errorf("mode %o: opened", mode)
			continue
		}
		if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "chmod 700") {
			t.Errorf("mode %o: %q does not say what to do", mode, err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("mode %o: left %v", mode, left)
		}
	}
}

func TestAStateDirectoryThatIsNoneIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below"), ""} {
		l, err := ledger.Open(ledger.Options{Dir: dir, Clock: time.Now})
		if err == nil {
			closeLedger(t, l)
			t.Errorf("%q: opened", dir)
		} else if dir != "" && !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v", dir, err)
		}
	}
}

// Things that somebody, or some program, left in the directory of processes.
func TestStrangeFilesAmongTheProcessesDoNoHarm(t *testing.T) {
	dir := written(t, 3)
	procs := filepath.Join(dir, "procs")
	for name, put := range map[string]func(path string) error{
		".DS_Store": func(p string) error { return os.WriteFile(p, []byte("x"), 0o600) },
		"a folder":  func(p string) error { return os.MkdirAll(filepath.Join(p, "in it"), 0o700) },
		"a link": func(p string) error {
			if runtime.GOOS == "windows" { // where it takes a privilege
				return nil
			}
			return os.Symlink("/nowhere", p)
		},
		"readable": func(p string) error { return os.WriteFile(p, nil, 0o400) },
	} {
		if err := put(filepath.Join(procs, name)); err != nil {
			t.Fatal(err)
		}
		l := quick(t, dir)
		if _, _, err := l.Reserve(context.Background(), pay("ses_a", "1"), engine(t, shop())); err != nil {
			t.Errorf("%s in procs: %v", name, err)
		}
		closeLedger(t, l)
		_ = os.RemoveAll(filepath.Join(procs, name))
	}
}

// After the database was found damaged and put right, the same process goes on.
func TestAProcessGoesOnAfterADamagedFileWasRestored(t *testing.T) {
	for name, harm := range map[string]func(raw []byte){
		"without its meta pages": func(raw []byte) { clear(raw[:2*pageSize]) },
		"without its records":    clearRecords, // which a transaction finds, not the opening
	} {
		t.Run(name, func(t *testing.T) {
			dir := written(t, 30)
			good := read(t, dir, "haldir.db")
			l, e := quick(t, dir), engine(t, shop())
			bad := bytes.Clone(good)
			harm(bad)
			write(t, dir, "haldir.db", bad)
			for i := range 2 {
				if _, _, err := l.Reserve(context.Background(), pay("ses_a", "1"), e); !errors.Is(err, ledger.ErrDamaged) {
					t.Errorf("attempt %d on the damaged file: %v", i+1, err)
				}
			}
			write(t, dir, "haldir.db", good)
			for name, l := range map[string]*ledger.Ledger{"the same": l, "another": quick(t, dir)} {
				if _, _, err := l.Reserve(context.Background(), pay("ses_a", "1"), e); err != nil {
					t.Errorf("after it was restored, through %s ledger: %v", name, err)
				}
			}
			inspect(t, dir, nil)
		})
	}
}

const pageSize = 4096

// clearRecords clears the pages that hold records of calls.
func clearRecords(raw []byte) {
	for page := range slices.Chunk(raw, pageSize) {
		if bytes.Contains(page, []byte(`{"path":"/tmp/`)) {
			clear(page)
		}
	}
}

// An image is a damaged database.
type image struct {
	name string
	raw  []byte
}

func images(good []byte) []image {
	const page = pageSize
	rng := rand.New(rand.NewPCG(3, 4))
	var list []image
	add := func(raw []byte, format string, args ...any) {
		list = append(list, image{fmt.Sprintf(format, args...), raw})
	}
	for _, n := range []int{1, 15, 16, 64, page - 1, page, page + 1, 2 * page, 3 * page, 4 * page, 5 * page, len(good) / 4, len(good) / 2, len(good) - 2*page, len(good) - page, len(good) - 1} {
		if n < len(good) {
			add(bytes.Clone(good[:n]), "cut to %d bytes", n)
		}
	}
	for p := range min(40, len(good)/page) {
		raw := bytes.Clone(good)
		clear(raw[p*page : (p+1)*page])
		add(raw, "page %d zeroed", p)
		raw = bytes.Clone(good)
		for i := range raw[p*page : (p+1)*page] {
			raw[p*page+i] = byte(rng.Uint32())
		}
		add(raw, "page %d overwritten", p)
		raw = bytes.Clone(good)
		copy(raw[p*page:(p+1)*page], good[((p+3)%(len(good)/page))*page:])
		add(raw, "page %d replaced by another", p)
		// The head of a page says what it is and how much is in it.
		for _, bit := range []int{0, 8, 64, 65, 68, 80, 88, 96, 97, 128, 160, 200} {
			raw = bytes.Clone(good)
			raw[p*page+bit/8] ^= 1 << (bit % 8)
			add(raw, "page %d, bit %d flipped", p, bit)
		}
	}
	for i := range 100 {
		raw := bytes.Clone(good)
		pos := rng.IntN(len(raw))
		raw[pos] ^= 1 << rng.IntN(8)
		add(raw, "flip %d at %d", i, pos)
	}
	for i := range 20 {
		raw := bytes.Clone(good)
		for range 50 {
			raw[rng.IntN(len(raw))] = byte(rng.Uint32())
		}
		add(raw, "fifty bytes, %d", i)
	}
	// What a power cut or a careless copy leaves.
	add(append(bytes.Clone(good[:len(good)/2]), make([]byte, len(good)-len(good)/2)...), "second half zeroed")
	add(make([]byte, len(good)), "all zeroed")
	add(append(bytes.Clone(good), bytes.Repeat([]byte{0xff}, 10*page)...), "something after the end")
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] }) // time may not suffice for all
	return list
}

func init() { workers["open"] = openImages }

// openImages is a worker that opens the state directories it is told, one after
// the other, and says how that went.
func openImages([]byte) error {
	e, err := policy.Compile(shop())
	if err != nil {
		return err
	}
	for {
		var dir string
		if _, err := fmt.Scanln(&dir); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		l, err := ledger.Open(ledger.Options{Dir: dir, NoSync: true, Clock: time.Now, Logger: zerolog.Nop()})
		if err != nil {
			return err
		}
		ctx := context.Background()
		var r opened
		_, _, err = l.Find(ctx, audit.Filter{Governance: true, Limit: 1 << 30})
		r.Find = brief(err)
		_, err = l.Verify(ctx, nil)
		r.Verify = brief(err)
		b, _ := os.ReadFile(filepath.Join(dir, "haldir.db"))
		r.Read = sha256.Sum256(b)
		_, _, err = l.Reserve(ctx, pay("ses_new", "1"), e)
		r.Reserve = brief(err)
		b, _ = os.ReadFile(filepath.Join(dir, "haldir.db"))
		r.Reserved = sha256.Sum256(b)
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		_ = l.Close(ctx)
		cancel()
		if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
			return err
		}
	}
}

// brief names an error that callers tell apart, and quotes another.
func brief(err error) string {
	var d *audit.Damage
	switch kind := kindOf(err); {
	case err == nil || kind != "":
		return kind
	case errors.As(err, &d):
		return "the chain"
	}
	return err.Error()
}

type opened struct {
	Find, Verify, Reserve string            // kinds of error
	Read, Reserved        [sha256.Size]byte // of the database after reading, and after Reserve
}

const hung = "no answer"

// opener is the parent's end of a worker that opens images.
type opener struct {
	p     *process
	lines chan string
}

func newOpener() (*opener, error) {
	p, err := start("open", nil)
	if err != nil {
		return nil, err
	}
	o := &opener{p, make(chan string)}
	go func() {
		defer close(o.lines)
		for line, ok := p.line(); ok; line, ok = p.line() {
			o.lines <- line
		}
	}()
	return o, nil
}

// open returns nil and why if the worker does not survive or come back.
func (o *opener) open(dir string) (*opened, string) {
	o.p.say(dir)
	select {
	case line, alive := <-o.lines:
		if !alive {
			err := o.p.wait()
			return nil, fmt.Sprintf("%v: %.2000s", err, o.p.errors)
		}
		r := &opened{}
		if err := json.Unmarshal([]byte(line), r); err != nil {
			return nil, err.Error()
		}
		return r, ""
	case <-time.After(hang):
		return nil, hung
	}
}

func (o *opener) kill() {
	if o == nil {
		return
	}
	_ = o.p.cmd.Process.Kill()
	for range o.lines {
	}
	_ = o.p.wait()
}

// bbolt as it is takes the process down on half of the damaged files. Behind an
// agent that is the end of every tool at once, without a word why.
func TestADamagedFileIsAnErrorAndNeverACrash(t *testing.T) {
	source := written(t, 60)
	good := read(t, source, "haldir.db")
	if len(good) > 1<<20 { // what is after the last page is not used
		good = good[:1<<20]
	}
	list := images(good)
	root := t.TempDir()
	type result struct {
		image  image
		opened *opened // nil if it did not get so far
		crash  string
	}
	// So many are not needed in every run: those that are left out differ each time.
	enough := time.Now().Add(8 * min(slowdown, 2) * time.Second)
	next, results := make(chan int), make(chan result)
	go func() {
		defer close(next)
		for i := range list {
			if i >= 100 && time.Now().After(enough) {
				return
			}
			next <- i
		}
	}()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var o *opener
			defer func() { o.kill() }()
			for i := range next {
				if o == nil {
					var err error
					if o, err = newOpener(); err != nil {
						t.Error(err)
						return
					}
				}
				dir := filepath.Join(root, fmt.Sprint(i))
				err := errors.Join(os.CopyFS(dir, os.DirFS(source)), os.Chmod(dir, 0o700), os.WriteFile(filepath.Join(dir, "haldir.db"), list[i].raw, 0o600))
				if err != nil {
					t.Error(err)
					return
				}
				r := result{image: list[i]}
				r.opened, r.crash = o.open(dir)
				if r.opened == nil {
					o.kill()
					o = nil
				}
				results <- r
				_ = os.RemoveAll(dir)
			}
		})
	}
	go func() {
		wg.Wait()
		close(results)
	}()

	bad := map[string][]string{}
	count := map[string]int{}
	tried := 0
	var stuck []string
	for r := range results {
		tried++
		blame := func(what, format string, args ...any) {
			bad[what] = append(bad[what], r.image.name+": "+fmt.Sprintf(format, args...))
		}
		if r.opened == nil {
			if r.crash == hung {
				// bbolt believes what a page says of the size of its elements, and a
				// commit copies them: one of two gigabytes takes its time.
				stuck = append(stuck, r.image.name)
				continue
			}
			blame("crashed the process", "%s", r.crash)
			continue
		}
		o, sum := r.opened, sha256.Sum256(r.image.raw)
		if o.Read != sum {
			blame("were written to by reading", "find %q, verify %q", o.Find, o.Verify)
		}
		if o.Reserve == "damaged" && o.Reserved != sum {
			blame("were written to although they are damaged", "verify %q", o.Verify)
		}
		if (o.Find == "damaged" || o.Verify == "damaged") && o.Reserved != sum {
			blame("were written to after they were found damaged", "find %q, verify %q, reserve %q", o.Find, o.Verify, o.Reserve)
		}
		for _, kind := range []string{o.Find, o.Verify, o.Reserve} {
			if strings.Contains(kind, "timeout") {
				blame("are told as a time-out", "%s", kind)
				break
			}
		}
		count[fmt.Sprintf("find %q, verify %q, reserve %q", o.Find, o.Verify, strings.ReplaceAll(o.Reserve, root, ""))]++
	}
	for what, n := range count {
		t.Logf("%d: %s", n, what)
	}
	if tried < len(list) {
		t.Logf("time sufficed for %d of %d damaged files", tried, len(list))
	}
	if len(stuck) > 0 {
		t.Logf("no answer: %v", stuck)
	}
	if len(stuck) > 2 {
		t.Errorf("%d of %d damaged files hung the process", len(stuck), tried)
	}
	for what, names := range bad {
		slices.Sort(names)
		t.Errorf("%d of %d damaged files %s, such as\n\t%s", len(names), tried, what, strings.Join(names[:min(8, len(names))], "\n\t"))
	}
}
