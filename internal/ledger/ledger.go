package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Times of the sharing protocol; docs/decisions/0001 says where they come from.
const (
	quantum    = 6 * time.Millisecond  // how long a busy process keeps the database while another waits
	idle       = 20 * time.Millisecond // how long an idle process keeps it for its own next operation
	look       = time.Millisecond      // how often an idle holder looks whether another waits
	patience   = 2 * time.Second       // how long an operation waits for another process
	overdue    = patience / 4          // how long it waits in line before it looks for itself
	healEach   = time.Second / 2       // how often a busy process looks for dead ones
	settleWait = 50 * time.Millisecond // how long a settlement waits for company
	retryWait  = time.Second           // pause before an owed settlement is tried again after a failure
)

// Options configure [Open].
type Options struct {
	Dir    string // the state directory; made with mode 0700 if absent
	Clock  func() time.Time
	Logger zerolog.Logger
	// Retention is for how long records are kept; nil for a process that is not asked, and
	// prunes none. See [Ledger.Retain].
	Retention *Retention
	// ReadOnly is for a process that only looks: nothing is made, brought up to date, settled
	// for the dead or written, but for the files of the locks. An operation that would write
	// fails with [ErrReadOnly], all of them with [ErrNone] where there is no ledger. A directory
	// that is open to others is looked at as any. See [Frozen].
	ReadOnly bool
	// Process is what others are told of this process.
	Process Process
	// Soon opens the database at once, as something is going to be asked of it. That it
	// cannot be opened is told to who asks.
	Soon bool
	// NoSync leaves out syncing to disk: for tests and benchmarks only, a power
	// cut would damage the file.
	NoSync bool
}

// Ledger is one process's access to the database in a state directory.
type Ledger struct {
	o    Options
	id   string
	turn *turn

	ops    chan *op
	mu     sync.Mutex
	owed   []*op         // settlements to commit, in order
	owing  chan struct{} // there is something in owed
	closed chan struct{}
	once   sync.Once
	done   chan struct{} // the writer has ended

	// The rest belongs to the writer goroutine.
	db       *bolt.DB
	file     *os.File // that the database has open
	headFile headFile
	looked   time.Time  // when it was last checked whether another process waits
	since    time.Time  // when the database was opened
	used     time.Time  // when it was last used
	taken    chan error // receives when an acquisition ends; nil when there is none
	presence *presence
	healed   time.Time // when it was last looked for dead processes
	seen     tidiness
	damaged  *damaged  // what this process found the file to be
	recent   recent    // spares reading the same session anew for each call
	began    string    // the id of the ledger that it used first
	moved    bool      // it uses another one now
	owedAt   time.Time // when owed settlements are due; zero when none
	due      bool      // the last commit left enough to sign
	signAt   time.Time // when what is new is signed at the latest; zero when nothing is

	appended    int       // records, since it was last looked whether any are to be pruned
	pruneLooked time.Time // when a boundary was last looked for
	pruneFailed string    // why nothing was pruned, as it was said last
	claimed     Retention // what others were told last
	claimedAt   time.Time
	unheard     bool // somebody prunes, and they are to be told before anything is written
}

// op is one operation inside a transaction. run may be called several times, in
// a new transaction each: the transaction of a failed attempt left nothing.
type op struct {
	run   func(*tx) error
	write bool
	owed  bool
	since time.Time
	state atomic.Int32 // waiting, then running or given up: whoever is first
	done  chan error   // receives the outcome once; buffered
	// then runs in the writer after the commit and before the answer, which its
	// error becomes.
	then func() error
	// unsure is called when the commit failed and may have happened all the same.
	unsure func()
}

// The states of an op.
const (
	opWaiting int32 = iota
	opRunning
	opGivenUp
)

// Open prepares the state directory and starts the ledger. The database itself
// is opened by the first operation. Close it.
func Open(o Options) (*Ledger, error) {
	if !o.ReadOnly {
		if err := stateDir(o.Dir); err != nil {
			return nil, err
		}
	}
	l := &Ledger{
		o: o, id: newID(""), turn: newTurn(o.Dir), ops: make(chan *op), owing: make(chan struct{}, 1),
		closed: make(chan struct{}), done: make(chan struct{}),
	}
	if !o.ReadOnly {
		if err := removeRemains(o.Dir); err != nil { // which is in nobody's way
			o.Logger.Warn().Err(err).Msg("could not remove what a compaction has left that was killed")
		}
	}
	go l.work()
	return l, nil
}

func stateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return fmt.Errorf("state directory: %w", err)
	case !info.IsDir():
		return fmt.Errorf("state directory %s is no directory", dir)
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0:
		abs, _ := filepath.Abs(dir)
		// No command: what was named by mistake, /tmp say, must not be closed to others.
		return fmt.Errorf("state directory %s is open to others (mode %04o): if it is haldir's, close it (chmod 700, or haldir doctor --fix), else name another", abs, info.Mode().Perm())
	}
	return nil
}

// Dir returns the state directory.
func (l *Ledger) Dir() string { return l.o.Dir }

// Close commits what is owed, frees the database and ends. Operations that
// still wait fail with [ErrClosed]. An error means that settlements were lost;
// another process will record their calls as abandoned.
func (l *Ledger) Close(ctx context.Context) error {
	err := l.Flush(ctx)
	l.once.Do(func() { close(l.closed) })
	select {
	case <-l.done:
		return err
	case <-ctx.Done():
		return errors.Join(err, context.Cause(ctx))
	}
}

// Flush returns when everything settled before it is on disk.
func (l *Ledger) Flush(ctx context.Context) error {
	l.mu.Lock()
	var last *op
	if n := len(l.owed); n > 0 {
		last = l.owed[n-1]
	}
	l.mu.Unlock()
	if last == nil {
		return nil
	}
	return l.do(ctx, true, func(*tx) error { return nil }) // what is owed goes with it
}

// Suspend frees the database and calls stop, which may stop the whole process:
// a suspended process must not keep others out. The database is not taken again
// before stop has returned.
func (l *Ledger) Suspend(ctx context.Context, stop func()) error {
	return l.wait(ctx, &op{run: func(*tx) error { return nil }, done: make(chan error, 1), then: func() error {
		l.release()
		stop()
		return nil
	}})
}

// do runs f in a transaction and waits for the commit. When ctx ends before its
// turn has come, f does not run.
func (l *Ledger) do(ctx context.Context, write bool, f func(*tx) error) error {
	return l.wait(ctx, &op{run: f, write: write, done: make(chan error, 1)})
}

func (l *Ledger) wait(ctx context.Context, o *op) error {
	o.since = time.Now()
	select {
	case l.ops <- o:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-l.closed:
		return ErrClosed
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		if o.state.CompareAndSwap(opWaiting, opGivenUp) {
			return context.Cause(ctx)
		}
		return <-o.done // it runs: what comes of it must be known
	case <-l.done:
		select {
		case err := <-o.done:
			return err
		default:
			return ErrClosed
		}
	}
}

// owe queues an operation that must be committed some time; it never blocks.
func (l *Ledger) owe(f func(*tx) error) {
	l.mu.Lock()
	l.owed = append(l.owed, &op{run: f, write: true, owed: true, done: make(chan error, 1)})
	l.mu.Unlock()
	select {
	case l.owing <- struct{}{}:
	default:
	}
}

func (l *Ledger) debts() []*op {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*op(nil), l.owed...)
}

func (l *Ledger) paid(ops []*op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owed = l.owed[len(ops):]
	if len(l.owed) == 0 {
		l.owed = nil
	}
}

// work is the writer: it owns the database and runs everything.
func (l *Ledger) work() {
	defer close(l.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	if l.o.Soon {
		l.serve([]*op{{run: func(*tx) error { return nil }, done: make(chan error, 1), since: time.Now()}})
	}
	for {
		timer.Reset(l.nap())
		select {
		case o := <-l.ops:
			l.serve(l.gather(o))
		case <-l.owing:
			if l.owedAt.IsZero() {
				l.owedAt = time.Now().Add(settleWait)
			}
		case err := <-l.taken: // for operations that have given up waiting
			l.taken = nil
			if err := l.opened(err); err != nil {
				l.o.Logger.Warn().Err(err).Msg("open the ledger")
			}
		case <-timer.C:
			if !l.owedAt.IsZero() && !time.Now().Before(l.owedAt) {
				l.serve(nil)
			}
			if !l.signAt.IsZero() && !time.Now().Before(l.signAt) {
				l.signAt = time.Time{}
				l.serve([]*op{{run: func(*tx) error { return nil }, then: l.signNews, done: make(chan error, 1), since: time.Now()}})
			}
			if l.db != nil && (time.Since(l.used) > idle || l.wanted()) {
				l.release()
			}
		case <-l.closed:
			l.serve(nil)
			l.depart()
			return
		}
	}
}

// nap is how long the writer may sleep: an idle process sets no timer.
func (l *Ledger) nap() time.Duration {
	d := time.Hour
	if !l.owedAt.IsZero() {
		d = max(0, time.Until(l.owedAt))
	}
	if !l.signAt.IsZero() {
		d = min(d, max(0, time.Until(l.signAt)))
	}
	if l.db != nil {
		d = min(d, look)
	}
	return d
}

// gather takes all that waits, and waits for no more.
func (l *Ledger) gather(first *op) []*op {
	ops := []*op{first}
	for {
		select {
		case o := <-l.ops:
			ops = append(ops, o)
		default:
			return ops
		}
	}
}

// serve runs ops and what is owed, and answers them.
func (l *Ledger) serve(ops []*op) {
	debts := l.debts()
	if len(ops)+len(debts) == 0 {
		l.owedAt = time.Time{}
		return
	}
	since := time.Now()
	if len(ops) > 0 {
		since = ops[0].since
	}
	if err := l.ensure(since); err != nil {
		l.fail(ops, err)
		return
	}
	ops = slices.DeleteFunc(ops, func(o *op) bool { return !o.state.CompareAndSwap(opWaiting, opRunning) })
	if len(ops)+len(debts) == 0 {
		return
	}
	l.run(ops, debts)
	l.used = time.Now()
	if l.db != nil && time.Since(l.healed) > healEach {
		if err := l.heal(); err != nil {
			l.o.Logger.Warn().Err(err).Msg("look for processes that died")
		}
	}
	if l.db != nil && l.used.Sub(l.since) > quantum && l.wanted() {
		l.release()
	}
}

// wanted reports whether another process waits; it looks at most once a [look].
func (l *Ledger) wanted() bool {
	if time.Since(l.looked) < look {
		return false
	}
	l.looked = time.Now()
	return l.turn.wanted()
}

func (l *Ledger) fail(ops []*op, err error) {
	for _, o := range ops {
		o.done <- err
	}
	l.owedAt = time.Time{}
	if len(l.debts()) > 0 {
		l.owedAt = time.Now().Add(retryWait)
	}
}

// ensure has the database open, waiting for other processes until patience has
// passed since the given time.
func (l *Ledger) ensure(since time.Time) error {
	if l.db != nil {
		return nil
	}
	if l.o.ReadOnly && none(l.o.Dir) { // the lock would be made in a directory that may be anybody's
		return ErrNone
	}
	if l.taken == nil {
		l.taken = make(chan error, 1)
		go func(taken chan<- error) { taken <- l.turn.take() }(l.taken)
	}
	timer := time.NewTimer(max(patience-time.Since(since), look))
	defer timer.Stop()
	select {
	case err := <-l.taken:
		l.taken = nil
		return l.opened(err)
	case <-timer.C:
		return &BusyError{Holder: l.turn.holder()}
	}
}

// Frozen reports whether the database is on a file system that is mounted to be read only, as
// a snapshot is: it can be looked at, and nothing else. bbolt's own lock, which needs no
// writing, keeps it whole where others write by another mount.
func Frozen(dir string) bool {
	f, err := os.OpenFile(dbPath(dir), os.O_WRONLY, 0)
	if err == nil {
		_ = f.Close() // nothing was written
	}
	return errors.Is(err, syscall.EROFS)
}

// opened opens the database once the turn is taken; it gives the turn back if
// that fails.
func (l *Ledger) opened(err error) error {
	if err = l.openTaken(err); errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", ErrAccess, err)
	}
	return err
}

func (l *Ledger) openTaken(err error) error {
	if l.o.ReadOnly && (errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission)) {
		err = nil // where no lock can be made, nothing is written either
	}
	if err != nil {
		return err
	}
	deep := first
	switch {
	case l.damaged != nil:
		deep, err = bottom, l.damaged.still(l.o.Dir)
	case l.since.IsZero(): // who has closed it has left it as it should be
		deep = edges
	}
	if err == nil {
		l.db, l.file, err = openDB(l.o.Dir, deep, bolt.Options{NoSync: l.o.NoSync, ReadOnly: l.o.ReadOnly})
	}
	if err == nil {
		l.damaged, l.since, l.used = nil, time.Now(), time.Now()
		err = l.heal()
	}
	if err != nil {
		l.release()
	}
	return err
}

// damaged is a file as this process found it. It must not be written to; another
// one in its place, or one that was put right, may. So may one that was only not
// there to be read for a moment, if all of it is sound after a pause.
type damaged struct {
	info os.FileInfo // nil if even that could not be had
	why  error
	at   time.Time
}

// still returns why the database must not be opened, if it is the same.
func (d *damaged) still(dir string) error {
	if errors.Is(d.why, errMemory) && time.Since(d.at) > retryWait {
		return nil
	}
	info, err := os.Stat(dbPath(dir))
	if err == nil && d.info != nil && os.SameFile(info, d.info) && info.Size() == d.info.Size() && info.ModTime().Equal(d.info.ModTime()) {
		return d.why
	}
	return nil
}

// heal registers this process and settles for the dead.
func (l *Ledger) heal() error {
	l.healed = time.Now()
	if l.o.ReadOnly {
		return nil
	}
	if l.presence != nil && l.presence.gone() {
		_ = l.presence.lock.Unlock() // of a file that nobody sees
		l.presence = nil
	}
	if l.presence == nil {
		p, err := arrive(l.o.Dir, l.id, l.o.Process)
		if err != nil {
			return err
		}
		l.presence = p
	}
	owners, untidy := map[string]bool{}, false
	err := l.commit([]*op{{run: func(t *tx) error {
		clear(owners)
		l.unheard = t.unheard(l.retention())
		l.seen = t.tidiness(l.seen)
		for _, id := range l.seen.owners {
			owners[id] = true
		}
		untidy = l.seen.due(t.now)
		now := string(t.space(spaceMeta).get(keyID))
		l.began = cmp.Or(l.began, now)
		l.moved = l.began != now
		return t.space(spaceHolds).each(nil, func(k, _ []byte) error {
			owner, _, _ := strings.Cut(string(k), "-")
			owners[owner] = true
			return nil
		})
	}}})
	if err != nil {
		return err
	}
	ids, err := dead(l.o.Dir, owners, l.id)
	if err != nil || len(ids) == 0 && !untidy {
		return err
	}
	err = l.commit([]*op{{run: func(t *tx) error {
		for _, id := range ids {
			if err := t.abandon(id); err != nil {
				return err
			}
		}
		return t.tidy(func(id string) bool { return slices.Contains(ids, id) })
	}, write: true}})
	if err != nil {
		return fmt.Errorf("settle for a process that died: %w", err)
	}
	if err := l.ring(); err != nil {
		return err
	}
	for _, id := range ids {
		if err := bury(l.o.Dir, id); err != nil {
			l.o.Logger.Warn().Err(err).Msg("could not remove the file of a process that died")
		}
	}
	return nil
}

// run commits ops and debts together. An operation that fails takes itself out;
// the others are run again without it.
func (l *Ledger) run(ops, debts []*op) {
	write := len(debts) > 0
	for _, o := range ops {
		write = write || o.write
	}
	all := append(append(make([]*op, 0, len(ops)+len(debts)), debts...), ops...)
	for len(all) > 0 {
		err := l.commit(all)
		if bad, ok := errors.AsType[*opError](err); ok && !errors.Is(err, ErrDamaged) {
			if bad.op.owed {
				// A debt that cannot be run would block all that follow: no cause
				// is known, so it is said aloud and left to be found as abandoned.
				l.o.Logger.Error().Err(bad.err).Msg("a settlement failed")
			}
			bad.op.done <- bad.err
			all = without(all, bad.op)
			continue
		}
		if err != nil {
			var reads []*op
			for _, o := range ops {
				switch {
				case !slices.Contains(all, o):
				case write && !o.write && !errors.Is(err, ErrDamaged):
					reads = append(reads, o)
				default:
					if o.unsure != nil && write {
						o.unsure()
					}
					o.done <- err
				}
			}
			l.read(reads)
			l.fail(nil, err)
			return
		}
		for _, o := range all {
			var outcome error
			if o.then != nil {
				outcome = o.then()
			}
			o.done <- outcome
		}
		break
	}
	l.paid(debts)
	l.owedAt = time.Time{}
	if len(l.debts()) > 0 {
		l.owedAt = time.Now().Add(settleWait)
	}
	if write && l.db != nil {
		l.sign(l.due)
		l.prune()
	}
	if l.unheard && l.db != nil {
		l.unheard = false
		if err := l.commit([]*op{{write: true, run: func(*tx) error { return nil }}}); err != nil {
			l.o.Logger.Warn().Err(err).Msg("others do not know for how long records are to be kept")
		}
	}
}

// read runs operations that only read by themselves: a full disk, which refused what was to
// be committed with them, has no bearing on them.
func (l *Ledger) read(ops []*op) {
	if len(ops) == 0 {
		return
	}
	if err := l.ensure(time.Now()); err != nil {
		for _, o := range ops {
			o.done <- err
		}
		return
	}
	l.run(ops, nil)
}

// sign makes a checkpoint, if that is due, or sees to it that one will be made.
func (l *Ledger) sign(due bool) {
	if !due {
		if l.signAt.IsZero() {
			l.signAt = time.Now().Add(checkpointAge)
		}
		return
	}
	l.signAt = time.Time{}
	if _, _, err := l.checkpoint(); err != nil {
		l.o.Logger.Warn().Err(err).Msg("no checkpoint could be made")
		l.signAt = time.Now().Add(checkpointAge)
	}
}

// signNews makes a checkpoint if there is anything to sign.
func (l *Ledger) signNews() error {
	news := false
	err := l.commit([]*op{{run: func(t *tx) error { news = t.news(); return nil }}})
	if err == nil {
		l.sign(news)
	}
	return err
}

var errFreed = errors.New("the ledger is not open")

// opError is the failure of one operation, as against that of the transaction.
type opError struct {
	op  *op
	err error
}

func (e *opError) Error() string { return e.err.Error() }
func (e *opError) Unwrap() error { return e.err }

// commit runs ops in one transaction and syncs it.
func (l *Ledger) commit(ops []*op) error {
	write := false
	for _, o := range ops {
		write = write || o.write
	}
	if l.db == nil { // an operation before has freed it
		return errFreed
	}
	if write && l.o.ReadOnly {
		return ErrReadOnly
	}
	var newHead head
	var began uint64
	var claims *Retention
	var now time.Time
	body := func(btx *bolt.Tx) error {
		t := &tx{Tx: btx, moved: l.moved, recent: &l.recent}
		if err := t.tick(l.o.Clock()); err != nil {
			return err
		}
		now = t.now
		began, _ = t.head()
		if claims = l.retention(); claims != nil && write && (*claims != l.claimed || now.Sub(l.claimedAt) >= claimEach || now.Before(l.claimedAt)) {
			if err := t.claim(*claims); err != nil {
				return err
			}
		} else {
			claims = nil
		}
		for _, o := range ops {
			if err := o.run(t); err != nil {
				return &opError{o, err}
			}
		}
		newHead.seq, newHead.hash = t.head()
		l.due = write && t.due()
		return nil
	}
	err := guard(func() error {
		if write {
			return l.db.Update(body)
		}
		return l.db.View(body)
	})
	if errors.Is(err, berrors.ErrIncompatibleValue) { // where a bucket should be, there is something else
		err = blame(err)
	}
	if err == nil && claims != nil {
		l.claimed, l.claimedAt = *claims, now
	}
	if err == nil && write {
		l.appended += int(newHead.seq - began) //nolint:gosec // what one transaction appends
		if err := l.headFile.write(l.o.Dir, newHead); err != nil {
			l.o.Logger.Warn().Err(err).Msg("could not write the ledger's head file")
		}
	}
	if errors.Is(err, ErrDamaged) {
		l.damaged = &damaged{why: err, at: time.Now()}
		l.damaged.info, _ = l.file.Stat()
	}
	_, own := errors.AsType[*opError](err)
	switch {
	case errors.Is(err, errFault):
		l.abandonDB()
	case err != nil && (!own || errors.Is(err, ErrDamaged)): // what bbolt makes of it now is not known
		l.release()
	}
	return err
}

// abandonDB drops a database whose file is damaged: after a memory fault its
// Close may hang. Closing the file frees bbolt's own lock on it.
func (l *Ledger) abandonDB() {
	l.db = nil
	if err := errors.Join(unlock(l.file), l.file.Close(), l.turn.give()); err != nil {
		l.o.Logger.Error().Err(err).Msg("free the ledger")
	}
}

// release closes the database and lets other processes in.
func (l *Ledger) release() {
	if l.db != nil {
		if err := l.db.Close(); err != nil {
			l.o.Logger.Error().Err(err).Msg("close the ledger")
		}
		l.db = nil
	}
	if err := l.headFile.close(); err != nil {
		l.o.Logger.Warn().Err(err).Msg("close the ledger's head file")
	}
	if err := l.turn.give(); err != nil {
		l.o.Logger.Error().Err(err).Msg("free the ledger's lock")
	}
}

// depart ends this process's registration, unless it leaves debts: then the
// file stays and shows others that somebody died.
func (l *Ledger) depart() {
	if l.presence != nil && len(l.debts()) == 0 && l.ensure(time.Now()) == nil {
		open := false
		err := l.commit([]*op{{run: func(t *tx) error { open = t.holds(l.id); return nil }}})
		if err == nil && !l.signAt.IsZero() {
			err = l.signNews()
		}
		if err == nil && !open {
			if err := l.presence.leave(); err != nil {
				l.o.Logger.Warn().Err(err).Msg("remove this process's registration")
			}
			l.presence = nil
		}
	}
	if l.db != nil {
		l.release()
	}
	if taken := l.taken; taken != nil { // the turn may still come, and must be passed on
		go func() {
			if <-taken == nil {
				_ = l.turn.give() // nobody is left to tell
			}
		}()
	}
	if l.presence != nil {
		_ = l.presence.lock.Unlock() // the process ends: the kernel would do it
	}
}

func without(ops []*op, o *op) []*op {
	return slices.DeleteFunc(slices.Clone(ops), func(x *op) bool { return x == o })
}
