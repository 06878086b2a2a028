package upstream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream/oauth"
	"github.com/haldir-mcp/haldir/upstream/pins"
)

// Cache keeps catalogues between runs.
type Cache interface {
	LoadCatalogue(ctx context.Context, key string) ([]byte, error)
	SaveCatalogue(ctx context.Context, key string, raw []byte) error
}

// Options configure [New].
type Options struct {
	Config     config.Upstream
	Resolver   *config.Resolver
	Cache      Cache
	Secrets    oauth.Store // keeps what haldir is granted when it signs in; nil: it cannot
	SecretsDir string      // of the processes that share Secrets
	Pins       Pins        // keeps what is pinned; nil: nothing is
	Guard      *Guard      // of the process's children; nil: the upstream has one of its own, which adopts nothing
	Log        zerolog.Logger
	Version    string // of haldir, for the handshake
	MaxMessage int    // bytes
	// Clean takes secrets out of a text of the server's before it is shown.
	Clean func(string) string
	// Command is how a person runs haldir for this upstream's config, as far as to the
	// verb; "" means haldir.
	Command string
	// Env are variables, as NAME=value, for a child that is a haldir, too, by its name. What
	// others get is none of haldir's.
	Env []string
	// Changed is called after the catalogue has changed, from a goroutine of the
	// upstream; it must not block for long.
	Changed func()
}

// State is how an upstream is doing.
type State string

// The states.
const (
	StateIdle       State = "idle" // not started, or stopped: the first call starts it
	StateConnecting State = "connecting"
	StateReady      State = "ready"
	StateDown       State = "down" // the last attempt failed; another one is due
)

// Status describes an upstream for people.
type Status struct {
	State   State
	Err     error // why it is down
	Server  string
	Version string    // the protocol revision agreed on
	Since   time.Time // since when it is connected; zero if it is not
	Ends    int       // how often it has ended by itself lately, see [Lately]
	Heard   string    // while it is connecting, what has come in place of an answer; "" for nothing
}

// Upstream is one server.
type Upstream struct {
	o     Options
	guard *Guard
	host  Host          // of the goroutine of run
	key   string        // of the catalogue; the host is part of it
	mute  bool          // the child had nothing to say to server/discover; of the goroutine of run
	wake  chan struct{} // a call cannot wait for the backoff

	comparing sync.Mutex // held from when a catalogue is compared with what is pinned until it is taken

	mu        sync.Mutex
	catalogue Catalogue
	listed    []byte // what catalogue was read from
	restored  bool   // the cache has been looked into
	kept      map[string]Call
	conn      *conn
	greeting  *conn // that is being made
	trying    bool
	tried     bool // one attempt has ended, well or not
	asleep    bool // the child is not wanted before the next call
	err       error
	told      string // why it is down, as the log has it
	failedAt  time.Time
	failures  int       // attempts that have failed since one went well
	since     time.Time // when the last went well
	ends      []time.Time
	news      chan struct{} // closed and replaced when any of the above changes

	pinned    Pinned
	pinnedRaw []byte     // what it was read from
	pinnable  pins.Offer // what was compared with it
	unpinned  bool       // what the server offers could not be compared with that
	met       string     // who the server is that runs, as it was compared; "" if none does

	auth    *oauth.Source // made by source
	authFor string        // for this url
	greeted Host          // whose start was the last
	calling atomic.Int64  // calls under way
	offer   *offer        // a sign-in that a person is offered
	offered time.Time     // when the last offer ended

	started   string // for which host it was started last; "" before
	leaveHost context.CancelFunc
	over      chan struct{} // closed when the run for that host has ended

	ctx    context.Context //nolint:containedctx // the life of the upstream
	cancel context.CancelFunc
	wg     sync.WaitGroup

	wrote   bool // what is pinned was written; of the goroutine of run
	pinning *rate.Limiter
	unsaved []byte    // a catalogue to be kept; of the goroutine of run
	saved   time.Time // when the last one was
}

// New makes an upstream; nothing happens before Start.
func New(o Options) *Upstream {
	u := &Upstream{o: o, wake: make(chan struct{}, 1), news: make(chan struct{}), kept: map[string]Call{}, pinning: rate.NewLimiter(rate.Every(pinPause), pinBurst)}
	u.ctx, u.cancel = context.WithCancel(context.Background())
	if u.o.Command == "" {
		u.o.Command = "haldir"
	}
	if u.guard = o.Guard; u.guard == nil {
		u.guard = NewGuard(false)
	}
	if u.o.Clean == nil {
		u.o.Clean = func(s string) string { return s }
	}
	return u
}

// Name returns the upstream's name.
func (u *Upstream) Name() string { return u.o.Config.Name }

// Bare reports whether the tools are listed under their own names.
func (u *Upstream) Bare() bool { return u.o.Config.Bare }

// remote reports whether the server is reached over HTTP.
func (u *Upstream) remote() bool { return u.o.Config.URL != "" }

// Ready reports whether the server is connected.
func (u *Upstream) Ready() bool { return u.Status().State == StateReady }

// Refuses reports whether the config keeps the server from asking the host for
// sampling, elicitation or roots.
func (u *Upstream) Refuses(kind string) bool { return slices.Contains(u.o.Config.DenyRequests, kind) }

// Trusted reports whether the annotations of the tools count.
func (u *Upstream) Trusted() bool { return u.o.Config.TrustAnnotations }

// restore takes the catalogue of an earlier run from the cache.
func (u *Upstream) restore(ctx context.Context) error {
	defer u.set(func() { u.restored = u.restored || ctx.Err() == nil })
	cached, err := u.o.Cache.LoadCatalogue(ctx, u.key)
	if err != nil || cached == nil {
		return err
	}
	o, err := decode(cached)
	if err != nil {
		return fmt.Errorf("the cached catalogue of upstream %q: %w", u.Name(), err)
	}
	if ctx.Err() != nil { // it is another host's by now
		return context.Cause(ctx)
	}
	u.comparing.Lock()
	defer u.comparing.Unlock()
	c, err := u.hold(ctx, o.read(u.remote()), cached, false)
	if err != nil {
		return err
	}
	c.Said = u.Catalogue().Said
	u.take(c, cached)
	return nil
}

// identity is what the references in the config stand for now: with other credentials
// a server may offer other things. It is hashed before it goes anywhere.
func (u *Upstream) identity() []string {
	var values []string
	for _, text := range slices.Concat([]string{u.o.Config.URL, u.o.Config.Bearer}, u.o.Config.Env) {
		v, err := u.o.Resolver.Resolve(text)
		if err != nil {
			v = "" // without it nothing can be connected either
		}
		values = append(values, v)
	}
	for _, h := range u.o.Config.Headers {
		v, _ := u.o.Resolver.Resolve(h.Value) // as above
		values = append(values, v)
	}
	return values
}

// cacheKey names the catalogue of a server as it is configured for a client that
// can do what this one can.
func (u *Upstream) cacheKey(h Host) string {
	cfg := u.o.Config // without what a server does not notice
	cfg.Pins, cfg.Eager, cfg.StopWhenIdle, cfg.Connect, cfg.Call, cfg.Idle = "", false, 0, 0, 0, 0
	block, err := json.Marshal([]any{cfg, h.Modern, h.greeting(""), u.identity()})
	if err != nil {
		panic(err) // strings, numbers and what was read as JSON
	}
	sum := sha256.Sum256(block)
	return u.o.Config.Name + ":" + hex.EncodeToString(sum[:12])
}

// Start begins to connect on behalf of h. It does not wait. Close ends what it
// began. For another host than before all begins anew, beside the calls that are
// still under way; a modern server need not know its host beforehand.
func (u *Upstream) Start(h Host) {
	known := fmt.Sprint(h.Modern, string(h.greeting("")))
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ctx.Err() != nil || u.started == known || h.Modern && u.conn != nil && u.conn.modern.Load() && u.conn.host.Modern {
		return
	}
	if u.started != "" {
		u.leaveHost()
	}
	ctx, leave := context.WithCancel(u.ctx)
	before, over := u.over, make(chan struct{})
	u.started, u.leaveHost, u.over, u.greeted = known, leave, over, h
	u.trying, u.tried, u.restored, u.err, u.failures = true, false, false, nil, 0
	u.catalogue, u.listed = Catalogue{Revision: u.catalogue.Revision + 1, Said: u.catalogue.Said}, nil
	u.wg.Go(func() {
		defer close(over)
		if before != nil {
			<-before
		}
		u.host, u.key = h, u.cacheKey(h) // here, as references may have to be waited for
		u.run(ctx)
	})
}

// Drain returns when no call is under way, or ctx ends.
func (u *Upstream) Drain(ctx context.Context) {
	for u.calling.Load() > 0 {
		select {
		case <-time.After(drainPoll):
		case <-ctx.Done():
			return
		}
	}
}

const drainPoll = 50 * time.Millisecond

// Close ends the connection, and the server if it is a child, and returns when
// nothing runs on.
func (u *Upstream) Close() {
	u.mu.Lock()
	u.cancel()
	auth := u.auth
	u.mu.Unlock()
	u.wg.Wait()
	if auth != nil {
		auth.Close()
	}
	if u.o.Guard == nil {
		u.guard.Close()
	}
}

// set changes the state under the lock and tells those who wait.
func (u *Upstream) set(change func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change()
	close(u.news)
	u.news = make(chan struct{})
}

func (u *Upstream) take(c Catalogue, from []byte) {
	u.set(func() {
		c.Revision = u.catalogue.Revision + 1
		u.catalogue, u.listed = c, from
	})
}

// Catalogue returns what is known of the server's tools.
func (u *Upstream) Catalogue() Catalogue {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.catalogue
}

// Status returns how the upstream is doing.
func (u *Upstream) Status() Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.conn != nil:
		return Status{State: StateReady, Server: u.o.Clean(u.conn.server), Version: u.conn.version, Since: u.since, Ends: u.lately()}
	case u.trying:
		s := Status{State: StateConnecting, Err: u.err, Ends: u.lately()}
		if u.greeting != nil {
			s.Heard = u.greeting.babble.text()
		}
		return s
	case u.asleep:
		return Status{State: StateIdle}
	case u.tried:
		return Status{State: StateDown, Err: u.err, Ends: u.lately()}
	}
	return Status{State: StateIdle}
}

// Restored returns when what an earlier run knew of the server is at hand, or ctx
// ends.
func (u *Upstream) Restored(ctx context.Context) {
	u.await(ctx, func() bool { return u.restored || u.tried })
}

// Settled returns when the catalogue is known, the first attempt to learn it
// has failed, or ctx ends.
func (u *Upstream) Settled(ctx context.Context) {
	u.await(ctx, func() bool { return u.catalogue.Known || u.tried })
}

// Connected returns when the first attempt to connect has ended, or ctx has.
func (u *Upstream) Connected(ctx context.Context) {
	u.await(ctx, func() bool { return u.tried })
}

// await returns when done, called under the lock, says so, or ctx ends.
func (u *Upstream) await(ctx context.Context, done func() bool) {
	for {
		u.mu.Lock()
		over, news := done(), u.news
		u.mu.Unlock()
		if over {
			return
		}
		select {
		case <-news:
		case <-ctx.Done():
			return
		}
	}
}

const (
	// maxBackoff bounds the pause between attempts.
	maxBackoff = 30 * time.Second
	// Lately is how far back ends of a server count. More than a few are a crash loop.
	Lately = 2 * time.Minute
	// crashLoop is how many ends within that are one.
	crashLoop = 3
)

// lately counts the ends within that time, under the lock.
func (u *Upstream) lately() int {
	u.ends = slices.DeleteFunc(u.ends, func(t time.Time) bool { return time.Since(t) > Lately })
	return len(u.ends)
}

func (u *Upstream) run(ctx context.Context) {
	if err := u.restore(ctx); err != nil && ctx.Err() == nil {
		u.o.Log.Warn().Err(err).Msg("the tools of the last run are not at hand")
	}
	if u.host.Answered != nil {
		select {
		case <-u.host.Answered:
		case <-ctx.Done():
			return
		}
	}
	if u.o.Pins != nil {
		u.wg.Go(func() { u.awaitAcceptance(ctx) })
	}
	if cfg := u.o.Config; cfg.Command != "" && !cfg.Eager && u.Catalogue().Known && !u.sleep(ctx) {
		return
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 250*time.Millisecond, maxBackoff
	for ctx.Err() == nil {
		u.set(func() { u.trying = true })
		select {
		case <-u.wake: // whoever sent it is served by this attempt
		default:
		}
		began := time.Now()
		c, err := u.connect(ctx)
		err = u.cleaned(err)
		if err == nil {
			u.level(ctx, c)
			u.o.Log.Info().Str("server", u.o.Clean(c.server)).Str("protocol", c.version).Dur("took", time.Since(began)).Msg("upstream connected")
			since := time.Now()
			u.set(func() {
				u.conn, u.trying, u.tried, u.err, u.failures, u.since, u.told = c, false, true, nil, 0, since, ""
			})
			u.wg.Go(func() { u.repeat(ctx, c) })
			err = u.attend(ctx, c)
			if errors.Is(err, errIdle) {
				c.close()
				u.o.Log.Info().Dur("idle", u.o.Config.StopWhenIdle).Msg("upstream stopped until it is called")
				pause.Reset()
				if !u.sleep(ctx) {
					return
				}
				continue
			}
			err = u.ended(ctx, u.cleaned(err))
			u.leave(ctx, c)
			if time.Since(since) > maxBackoff {
				pause.Reset()
			}
		} else {
			u.set(func() {
				if ctx.Err() == nil || u.ctx.Err() != nil { // else it begins anew for another host
					u.trying, u.tried, u.err, u.failedAt = false, true, err, time.Now()
					u.failures++
				}
			})
		}
		if ctx.Err() != nil {
			return
		}
		if !u.rest(ctx, pause.NextBackOff(), err) {
			return
		}
	}
}

// ended notes why a connection has, and returns it. That is no failed attempt: the
// next call may try.
func (u *Upstream) ended(ctx context.Context, err error) error {
	u.set(func() {
		u.ends = append(u.ends, time.Now())
		if n := u.lately(); n >= crashLoop && ctx.Err() == nil && !errors.Is(err, wire.ErrSessionExpired) {
			err = fmt.Errorf("%w; it has ended %d times within %v", err, n, Lately)
		}
		u.conn, u.met, u.err, u.failedAt = nil, "", err, time.Time{}
	})
	if ctx.Err() == nil || u.ctx.Err() != nil { // else what it has asked still waits, with the calls
		u.withdraw()
	}
	return err
}

// rest waits until the next attempt is due, a call wants it, or somebody has signed
// in, and reports whether there is to be one.
func (u *Upstream) rest(ctx context.Context, wait time.Duration, why error) bool {
	level := zerolog.DebugLevel // a server that stays away for hours is told of once
	u.set(func() {
		reason := changing().ReplaceAllString(why.Error(), "")
		if u.told != reason {
			level, u.told = zerolog.WarnLevel, reason
		}
	})
	u.o.Log.WithLevel(level).Err(why).Dur("retry_in", wait).Msg("upstream is not connected")
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	select {
	case <-time.After(wait):
	case <-u.wake:
	case <-u.signedIn(waiting, why):
	case <-ctx.Done():
		return false
	}
	return true
}

// changing are parts of a reason that are others each time: ports, dates, request ids.
var changing = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[0-9a-fA-F-]*[0-9][0-9a-fA-F-]*`) })

// sleep waits for a call, and reports whether there is one.
func (u *Upstream) sleep(ctx context.Context) bool {
	u.set(func() {
		u.conn, u.met, u.trying, u.tried, u.asleep, u.err, u.failedAt = nil, "", false, true, true, nil, time.Time{}
	})
	defer u.set(func() { u.asleep = false })
	select {
	case <-u.wake:
		return true
	case <-ctx.Done():
		return false
	}
}

// errIdle says that a child is stopped because nobody calls it.
var errIdle = errors.New("nobody calls it")

// idle reports whether a child can be stopped: nothing is under way, and nothing was
// for long enough. What it is to tell of, subscriptions and tasks, keeps it.
func (u *Upstream) idle(c *conn) (left time.Duration, yes bool) {
	limit := u.o.Config.StopWhenIdle
	c.mu.Lock()
	busy := c.active > 0 || len(c.tasks) > 0
	for uri := range c.watches {
		busy = busy || uri != "" // that one is of lists, not the host's
	}
	last := c.last
	c.mu.Unlock()
	if busy || u.keeps() {
		return limit, false
	}
	left = limit - time.Since(last)
	return left, left <= 0
}

// keeps reports whether the host has subscribed to something.
func (u *Upstream) keeps() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, k := range u.kept {
		if k.Method != setLevel {
			return true
		}
	}
	return false
}

// leave closes a connection. Calls that a server which has forgotten the session
// is still to refuse are waited for: each will be made again. So are those that are
// made for a host that has introduced itself anew.
func (u *Upstream) leave(ctx context.Context, c *conn) {
	select {
	case <-c.dead:
	default:
		if ctx.Err() == nil || u.ctx.Err() != nil {
			c.close()
			return
		}
	}
	u.wg.Go(func() {
		over := make(chan struct{})
		u.wg.Go(func() { c.calls.Wait(); close(over) })
		select {
		case <-over:
		case <-u.ctx.Done():
		}
		c.close()
	})
}

// relistPause is how long after one list of the tools the next is asked for.
const relistPause = 200 * time.Millisecond

// relistAgain is how long after a failure a list is asked for again.
const relistAgain = 30 * time.Second

// attend keeps a connection's catalogue up to date until it ends.
func (u *Upstream) attend(ctx context.Context, c *conn) error {
	defer u.save(true)
	var again, idle <-chan time.Time
	if d := u.o.Config.StopWhenIdle; d > 0 {
		idle = time.After(d)
	}
	for {
		select {
		case <-idle:
			left, yes := u.idle(c)
			if yes && u.release(c) {
				return errIdle
			}
			idle = time.After(max(left, time.Second))
		case <-c.peer().Done():
			err := c.peer().Err()
			if errors.Is(err, wire.ErrSessionExpired) {
				c.expire()
			}
			return c.explain(err)
		case <-c.exited():
			// What the process left behind may keep its output open; whoever
			// waits for an answer waits no longer.
			select {
			case <-c.peer().Done():
			case <-time.After(lastWords):
			}
			return c.explain(errors.New("it is gone"))
		case <-c.dead:
			return wire.ErrSessionExpired
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-again:
			again = nil
			c.due()
		case <-c.relist:
			if !u.relist(ctx, c) {
				again = time.After(relistAgain)
			}
			pause := relistPause
			if u.wrote {
				pause, u.wrote = max(pause, u.pinning.Reserve().Delay()), false
			}
			select { // a server that is never done changing its lists is not followed at each step
			case <-time.After(pause):
			case <-ctx.Done():
			case <-c.peer().Done():
			case <-c.exited():
			case <-c.dead:
			}
		}
	}
}

// relist learns anew what has changed, and reports whether it could. It gives up
// when the connection ends.
func (u *Upstream) relist(ctx context.Context, c *conn) bool {
	ctx, cancel := context.WithTimeout(ctx, u.o.Config.Connect)
	defer cancel()
	u.wg.Go(func() {
		select {
		case <-c.exited():
		case <-c.dead:
		case <-ctx.Done():
		}
		cancel()
	})
	c.mu.Lock()
	told := c.told
	c.told = [len(lists)]bool{}
	c.mu.Unlock()
	err := c.list(ctx, u.problem)
	switch {
	case err == nil && ctx.Err() == nil: // else it may be another host's by now
		u.learn(c.offers, told, false)
	case errors.Is(err, wire.ErrSessionExpired):
		c.expire()
	case ctx.Err() == nil:
		u.problem(err)
	}
	return err == nil
}

func (u *Upstream) problem(err error) { u.o.Log.Warn().Err(u.cleaned(err)).Msg("upstream") }

// cleaned is err without the secrets that the server's words in it may repeat.
func (u *Upstream) cleaned(err error) error {
	if err == nil {
		return nil
	}
	return &cleanError{text: u.o.Clean(err.Error()), err: err}
}

type cleanError struct {
	text string
	err  error
}

func (e *cleanError) Error() string { return e.text }

func (e *cleanError) Unwrap() error { return e.err }

// learn takes what the server offers now, at the greeting or later, and which lists it has said have changed:
// whoever it tells itself would be told of that even if they have not.
func (u *Upstream) learn(o offers, told [len(lists)]bool, greeting bool) {
	fresh := o.encode()
	u.comparing.Lock()
	defer u.comparing.Unlock()
	u.mu.Lock()
	same := bytes.Equal(fresh, u.listed)
	now := u.catalogue
	u.mu.Unlock()
	said := maps.Clone(now.Said)
	if said == nil {
		said = map[string]int{}
	}
	for i, l := range lists {
		if told[i] {
			said[l.method]++
		}
	}
	held := now
	if !same || greeting && u.o.Pins != nil { // it may be another server that lists the same
		var err error
		if held, err = u.hold(u.ctx, o.read(u.remote()), fresh, true); err != nil {
			u.unsaved = fresh // it ends; the next start will compare
			return
		}
	}
	switch {
	case !same || !alike(held, now):
		now = held
		for i, w := range now.Withheld {
			if i == maxWithheld {
				u.o.Log.Warn().Int("tools", len(now.Withheld)-i).Msg("and so are more")
				break
			}
			u.o.Log.Warn().Str("tool", u.o.Clean(w.Name)).Str("reason", u.o.Clean(w.Reason)).Msg("tool withheld")
		}
		now.Said = said
		u.take(now, fresh)
		u.unsaved = fresh
		u.save(false)
	case told != [len(lists)]bool{}:
		u.set(func() { u.catalogue.Said = said })
	default:
		return
	}
	u.o.Changed()
}

// Bounds on what one server may have written to the ledger's file, which is
// everybody's.
const (
	savePause = 30 * time.Second
	maxSaved  = 8 << 20
)

// save keeps the catalogue for the next start, not more often than every
// savePause unless it is for the last time. Only the goroutine of run calls it.
func (u *Upstream) save(last bool) {
	if u.unsaved == nil || !last && time.Since(u.saved) < savePause {
		return
	}
	raw := u.unsaved
	u.unsaved, u.saved = nil, time.Now()
	if len(raw) > maxSaved {
		u.o.Log.Warn().Int("bytes", len(raw)).Msg("the upstream lists too much to be kept for the next start")
		return
	}
	if err := u.o.Cache.SaveCatalogue(context.Background(), u.key, raw); err != nil {
		u.o.Log.Warn().Err(err).Msg("the upstream's catalogue could not be kept for the next start")
	}
}

// UnavailableError says that a call could not be passed on because its upstream
// is not connected. It wraps [wire.ErrNotSent].
type UnavailableError struct {
	Upstream string
	Cause    error
}

func (e *UnavailableError) Error() string {
	if oauth.IsSignIn(e.Cause) {
		return fmt.Sprintf("upstream %q is not available: %v", e.Upstream, e.Cause)
	}
	return fmt.Sprintf("upstream %q is not available: %v; haldir keeps trying to connect", e.Upstream, e.Cause)
}

// Unwrap returns [wire.ErrNotSent] and the cause.
func (e *UnavailableError) Unwrap() []error { return []error{wire.ErrNotSent, e.Cause} }

// How recent a failed attempt must be for a call not to wait for another one, and
// after several in a row: a server that is down must not hold up each call for as long
// as it takes to find that out. Then every so often one call is let through to see.
const (
	justFailed = time.Second
	openAfter  = 3
	openFor    = 5 * time.Second
)

// quiet is how long after a failed attempt calls are answered by its error. The lock
// is held.
func (u *Upstream) quiet() time.Duration {
	if u.failures >= openAfter {
		return openFor
	}
	return justFailed
}

// release takes the connection away from calls that are to come, if there is none.
func (u *Upstream) release(c *conn) bool {
	free := false
	u.set(func() {
		c.mu.Lock()
		free = c.active == 0
		c.mu.Unlock()
		if free {
			u.conn = nil
		}
	})
	return free
}

// connection returns the current connection, counted in its calls, waiting for an attempt under way.
// When none is, it asks for one.
func (u *Upstream) connection(ctx context.Context) (*conn, error) {
	asked, mine := false, false // mine: the attempt is made for this call
	for {
		u.mu.Lock()
		c, trying, err, failedAt, news, quiet, open := u.conn, u.trying, u.err, u.failedAt, u.news, u.quiet(), u.failures >= openAfter
		if c != nil {
			c.enter() // under the lock: who takes u.conn away waits for all of them
		}
		u.mu.Unlock()
		switch {
		case c != nil:
			return c, nil
		case trying && open && !mine:
			return nil, &UnavailableError{u.Name(), err}
		case trying:
		case asked || time.Since(failedAt) < quiet:
			if err == nil {
				err = errors.New("it has not been started")
			}
			return nil, &UnavailableError{u.Name(), err}
		default:
			asked, mine = true, true
			select {
			case u.wake <- struct{}{}:
			default:
			}
			select { // trying becomes true, or the attempt has come and gone
			case <-news:
				asked = false
				continue
			case <-time.After(justFailed):
				continue
			case <-ctx.Done():
			}
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), wire.ErrNotSent)
		}
	}
}

// Call is one request for the upstream.
type Call struct {
	Method string
	Params json.RawMessage // as they go out
	// Token is the progress token in Params, nil if there is none, and Progress
	// takes each progress notification with it, before the response.
	Token    json.RawMessage
	Progress func(wire.Message)
	// Capabilities are those that a modern host declares with this request; nil:
	// those of the [Host]. Level is of the log messages that it wants; "" means none.
	Capabilities json.RawMessage
	Level        string
	// Mark is on what the server sends on a stream of the call's own.
	Mark any
	// Task says that the request asks for a task, whose progress goes on after
	// the response.
	Task bool
}

// Call passes a request on and returns the response as it came. When ctx ends,
// the server is told and the cause is returned. An error that wraps
// [wire.ErrNotSent] means that the request certainly did not leave haldir.
func (u *Upstream) Call(ctx context.Context, call Call) (wire.Message, error) {
	if d := u.o.Config.Call; d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, d, fmt.Errorf("upstream %q did not answer within %v (timeouts.call)", u.Name(), d))
		defer cancel()
	}
	if ctx.Err() != nil {
		return wire.Message{}, fmt.Errorf("%w: %w", context.Cause(ctx), wire.ErrNotSent)
	}
	u.calling.Add(1)
	defer u.calling.Add(-1)
	m, err := u.attempt(ctx, call)
	if !oauth.IsSignIn(err) || ctx.Err() != nil {
		return m, err
	}
	left := !errors.Is(err, wire.ErrNotSent) // a server that wants more than it was granted has had it
	if err = u.signIn(ctx, call, err); err == nil {
		m, err = u.attempt(ctx, call)
	}
	if left {
		err = sentBefore(err)
	}
	return m, err
}

// attempt makes a call, once more if it did not reach the server.
func (u *Upstream) attempt(ctx context.Context, call Call) (_ wire.Message, err error) {
	ctx, stop := u.lively(ctx, &call)
	defer stop()
	left := false // haldir, at an earlier try
	defer func() {
		if left {
			err = sentBefore(err)
		}
	}()
	for again := true; ; again = false {
		c, err := u.connection(ctx)
		if err != nil {
			return wire.Message{}, err
		}
		if err := u.withheld(call); err != nil {
			c.exit()
			return wire.Message{}, err
		}
		m, err := c.call(ctx, call)
		c.exit()
		if errors.Is(err, wire.ErrSessionExpired) {
			c.expire()
		}
		unsent := errors.Is(err, wire.ErrNotSent) && c.over()
		if again && ctx.Err() == nil && (unsent || errors.Is(err, wire.ErrSessionExpired)) {
			left = left || !errors.Is(err, wire.ErrNotSent)
			u.gone(ctx, c) // once more, on a new connection and under the same hold
			continue
		}
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("upstream %q: %w", u.Name(), err)
		}
		return m, err
	}
}

// sentBefore makes of the error of a try that of a call which left haldir at an
// earlier one: that this try was not sent does not mean that the call never was.
func sentBefore(err error) error {
	if !errors.Is(err, wire.ErrNotSent) {
		return err
	}
	return &sentError{err}
}

// sentError is an error, but for what it says of whether anything was sent.
type sentError struct{ err error }

func (e *sentError) Error() string {
	return e.err.Error() + "; an earlier try was sent, and " + wire.ErrOutcomeUnknown.Error()
}

func (e *sentError) Unwrap() error { return wire.ErrOutcomeUnknown }

// Is reports that it is what the error is, but not that nothing was sent.
func (e *sentError) Is(target error) bool {
	return target != wire.ErrNotSent && errors.Is(e.err, target)
}

// As finds a cause: it still may be that somebody has to sign in.
func (e *sentError) As(target any) bool { return errors.As(e.err, target) }

// lively bounds how long a call may go on without a sign of life of the server.
func (u *Upstream) lively(ctx context.Context, call *Call) (context.Context, func()) {
	idle := u.o.Config.Idle
	if idle <= 0 {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var t *time.Timer
	t = time.AfterFunc(idle, func() {
		if u.asks() { // it waits for the person, not the other way round
			t.Reset(idle)
			return
		}
		cancel(fmt.Errorf("upstream %q has given no sign of life for %v (timeouts.idle)", u.Name(), idle))
	})
	if tell := call.Progress; tell != nil {
		call.Progress = func(m wire.Message) {
			t.Reset(idle)
			tell(m)
		}
	}
	return ctx, func() { t.Stop(); cancel(nil) }
}

// asks reports whether the server waits for the host to answer something.
func (u *Upstream) asks() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.conn != nil && len(u.conn.asked) > 0
}

// gone waits until c is no longer the connection.
func (u *Upstream) gone(ctx context.Context, c *conn) {
	u.await(ctx, func() bool { return u.conn != c })
}
