package ledger

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gofrs/flock"
	bolt "go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/policy"
)

// ErrNoApproval says that nothing of that id waits for a person. It was answered, timed out, or
// never was.
var ErrNoApproval = errors.New("no such request waits for an answer")

// Approval is a call that a person is asked about.
type Approval struct {
	ID       string        `json:"id"`  // "apr_" and the number of the attempt's record
	Seq      uint64        `json:"seq"` // of the attempt's record
	Session  string        `json:"session_id"`
	Agent    string        `json:"agent_id"`
	Client   string        `json:"client,omitempty"`
	Upstream string        `json:"upstream"`
	Tool     string        `json:"tool"`
	Rules    []string      `json:"rules"` // that ask
	Reason   string        `json:"reason"`
	Cost     policy.Micros `json:"cost_usd"`
	// Arguments are what the call was made with, up to [MaxShown] bytes of it. They lie
	// beside the request, so that who looks through the requests need not read them.
	Arguments  []byte        `json:"arguments,omitempty"`
	Size       uint64        `json:"arguments_size"` // bytes
	SHA256     audit.Hash    `json:"arguments_sha256"`
	ForSession bool          `json:"for_session"` // the answer may hold for the session
	Created    time.Time     `json:"created"`
	Deadline   time.Time     `json:"deadline"`
	Timeout    time.Duration `json:"timeout"`
	// Waiting is false for a call that was refused because nobody could be asked: to
	// allow it lets the next such call through.
	Waiting bool   `json:"waiting"`
	Process string `json:"process"` // that waits
	Key     []byte `json:"key"`     // what a grant is bound to
}

// Answer is what became of a request.
type Answer struct {
	Allow      bool
	ForSession bool   // the same call may be made again, for the rest of the session
	Channel    string // one of the channels
	Note       string // what the person said about it
}

// The channels by which a request is decided.
const (
	ChannelClient   = "elicitation" // a form in the client
	ChannelTerminal = "terminal"
	ChannelConsole  = "console"
	ChannelAPI      = "api"
	ChannelTimeout  = "timeout"   // nobody has answered in time
	ChannelGone     = "withdrawn" // the client does not want the call any more
	ChannelShutdown = "shutdown"  // haldir has ended
	ChannelRevoked  = "revoked"   // the session was
)

// Bounds on approvals.
const (
	// MaxShown is how much of the arguments is kept for the person, in bytes.
	MaxShown = 256 << 10
	// maxPending bounds how many calls wait for a person, in all processes.
	maxPending = 1000
	// maxKept bounds what is kept of all their arguments, in bytes. Beyond it the first
	// scant bytes of each are.
	maxKept = 16 << 20
	scant   = 8 << 10
	// Listed is how long a call stays listed that was refused because nobody could be
	// asked, and how long a grant waits for its call.
	Listed = 10 * time.Minute
	// sessionGrant is the longest time for which a person's word holds for a session.
	sessionGrant = 24 * time.Hour
	// maxNote bounds what a person can say, in bytes.
	maxNote = 1000
)

// grant lets one call through, or the same one for the rest of a session.
type grant struct {
	ID         string    `json:"id"` // of the approval
	ForSession bool      `json:"for_session,omitempty"`
	Rules      []string  `json:"rules"` // that the person was asked by
	Until      time.Time `json:"until"`
	// Made is when, by the clock of the system: the ledger's own stands still while that is
	// behind, and a grant must not last for so long.
	Made time.Time `json:"made"`
	// Process is the one whose call waits for the grant. Another such call must not take
	// it, as long as that process lives.
	Process string `json:"process,omitempty"`
}

// In the bucket of approvals, requests and grants lie under these bytes.
const (
	prefixPending   = 'p' // id → Approval as JSON
	prefixArguments = 'a' // id → its arguments
	prefixGrant     = 'g' // key, id → grant as JSON
)

func pendingKey(id string) []byte { return append([]byte{prefixPending}, id...) }

func argumentsKey(id string) []byte { return append([]byte{prefixArguments}, id...) }

func grantKey(key []byte, id string) []byte {
	return append(append([]byte{prefixGrant}, key...), id...)
}

// bound is what a grant for an attempt is bound to: the session, the tool, the exact
// arguments, the policies in force and the tool's definition.
func (a *Attempt) bound(session string) []byte {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(session), []byte(a.Call.ID()), a.Body.SHA256[:], a.Config[:], a.Pin[:]} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write(part)
	}
	return h.Sum(nil)
}

func (t *tx) approvals() *bolt.Bucket { return t.Bucket(bucketApprovals) }

// lasts is how long a grant holds.
func (g *grant) lasts() time.Duration {
	if g.ForSession {
		return sessionGrant
	}
	return Listed
}

// clockStep is how far a clock may go back without a grant's ending.
const clockStep = time.Minute

// holds reports whether it is neither over nor from another time.
func (g *grant) holds(t *tx) bool {
	age := t.wall.Sub(g.Made)
	return t.now.Before(g.Until) && age > -clockStep && age < g.lasts()
}

// answers reports whether a person was asked by all the rules that ask now, and whether
// they let the answer hold.
func (g *grant) answers(q *policy.Question) bool {
	asked := func(rule string) bool { return slices.Contains(g.Rules, rule) }
	return q != nil && !slices.ContainsFunc(q.Rules, func(r string) bool { return !asked(r) }) && (q.Session || !g.ForSession)
}

// granted returns the grant that lets an attempt through, which q asks about; nil if
// there is none.
func (t *tx) granted(a *Attempt, session string, q *policy.Question) (key []byte, found *grant, err error) {
	prefix := grantKey(a.bound(session), "")
	c := t.approvals().Cursor()
	for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		var g grant
		if err := decode(v, &g); err != nil {
			return nil, nil, fmt.Errorf("%w: a grant: %w", ErrDamaged, err)
		}
		if !g.holds(t) || !g.answers(q) || g.Process != "" && g.ID != a.Grant {
			continue
		}
		if found == nil || g.ID == a.Grant {
			key, found = bytes.Clone(k), &g
		}
	}
	return key, found, nil
}

// redeem uses a grant up.
func (t *tx) redeem(key []byte, g *grant) error {
	if g.ForSession {
		return nil
	}
	return t.dropApproval(key)
}

// Free says that an attempt does not wait any more for the approval that is its Grant, and
// has not used it: if it was allowed, the next such call may have it; if nobody has answered,
// it stays listed. It does not block and cannot fail, like [Ledger.Settle].
func (l *Ledger) Free(a Attempt, session string) {
	l.owe(func(t *tx) error {
		err := t.list(a.Grant)
		if errors.Is(err, ErrNoApproval) {
			err = t.free(&a, session)
		}
		return err
	})
}

// free lets any such call have the grant that one has not used.
func (t *tx) free(a *Attempt, session string) error {
	if a.Grant == "" {
		return nil
	}
	key := grantKey(a.bound(session), a.Grant)
	raw := t.approvals().Get(key)
	var g grant
	if raw == nil || decode(raw, &g) != nil || g.Process == "" {
		return nil //nolint:nilerr // tidy knows what to do with one that cannot be read
	}
	g.Process = ""
	return t.putApproval(key, &g)
}

func (t *tx) putApproval(key []byte, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return t.storeApproval(key, raw)
}

// The sequence of the bucket is another one after each change: who has looked through it
// need not do so again before.
func (t *tx) storeApproval(key, raw []byte) error {
	if _, err := t.approvals().NextSequence(); err != nil {
		return err
	}
	return t.approvals().Put(key, raw)
}

func (t *tx) dropApproval(key []byte) error {
	if _, err := t.approvals().NextSequence(); err != nil {
		return err
	}
	return t.approvals().Delete(key)
}

// room says why no further call can wait for a person, "" if one can. One that is only
// listed makes room for it.
func (t *tx) room() (why string, err error) {
	n := 0
	c := t.approvals().Cursor()
	for k, _ := c.Seek([]byte{prefixPending}); len(k) > 0 && k[0] == prefixPending; k, _ = c.Next() {
		n++
	}
	if n < maxPending {
		return "", nil
	}
	all := t.allPending()
	if i := slices.IndexFunc(all, func(p Approval) bool { return !p.Waiting }); i >= 0 {
		return "", t.answer(&all[i], Answer{Channel: ChannelTimeout, Note: "too many other calls need a person's word"})
	}
	return fmt.Sprintf("too many calls wait for a person already, %d of them", n), nil
}

// propose keeps what a person is to be asked. rec is the attempt's record.
func (t *tx) propose(process string, a *Attempt, rec *audit.Record, d *policy.Decision) error {
	kept, most := 0, MaxShown
	c := t.approvals().Cursor()
	for k, v := c.Seek([]byte{prefixArguments}); len(k) > 0 && k[0] == prefixArguments; k, v = c.Next() {
		kept += len(v)
	}
	shown := a.Call.Arguments
	if a.Shown != nil {
		shown = a.Shown(shown)
	}
	if kept+min(len(shown), most) > maxKept {
		most = scant
	}
	p := Approval{
		ID: approvalID(rec.Seq), Seq: rec.Seq, Session: rec.Session, Agent: rec.Agent, Client: rec.Client, Upstream: rec.Upstream, Tool: rec.Tool,
		Rules: d.Question.Rules, Reason: d.Reason, Cost: d.Cost, Size: uint64(len(shown)), SHA256: a.Body.SHA256,
		ForSession: d.Question.Session, Created: t.now, Deadline: t.now.Add(d.Question.Timeout), Timeout: d.Question.Timeout, Waiting: true,
		Process: process, Key: a.bound(rec.Session),
	}
	if err := t.storeApproval(argumentsKey(p.ID), cut(shown, most)); err != nil {
		return err
	}
	return t.putApproval(pendingKey(p.ID), &p)
}

// cut shortens a text to at most so many bytes, and splits no character.
func cut[T []byte | json.RawMessage | string](text T, most int) T {
	if len(text) <= most {
		return text
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}

const approvalPrefix = "apr_"

func approvalID(seq uint64) string { return fmt.Sprint(approvalPrefix, seq) }

func (t *tx) pending(id string) (*Approval, error) {
	key := pendingKey(id)
	raw := t.approvals().Get(key)
	if raw == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoApproval, cut(id, 60))
	}
	p := t.readPending(key, raw)
	return &p, nil
}

// readPending reads a request. One that is not what was written is over: nobody knows
// what a person would be asked. What its record says is enough to deny it.
func (t *tx) readPending(key, raw []byte) (p Approval) {
	id := string(key[1:])
	if decode(raw, &p) == nil && p.ID == id && p.ID == approvalID(p.Seq) && len(p.Rules) > 0 {
		return p
	}
	p = Approval{ID: id, Rules: []string{""}}
	number, err := strconv.ParseUint(strings.TrimPrefix(id, approvalPrefix), 10, 64)
	if err != nil {
		return p
	}
	r, err := audit.Decode(t.Bucket(bucketAudit).Get(be64(number)))
	if err == nil && r.Status == audit.StatusPending {
		p.Seq, p.Session, p.Agent, p.Upstream, p.Tool, p.Rules, p.Created = r.Seq, r.Session, r.Agent, r.Upstream, r.Tool, []string{r.Rule}, r.Time
	}
	return p
}

// allPending lists what waits, the oldest first, without the arguments.
func (t *tx) allPending() (list []Approval) {
	c := t.approvals().Cursor()
	for k, v := c.Seek([]byte{prefixPending}); len(k) > 0 && k[0] == prefixPending; k, v = c.Next() {
		list = append(list, t.readPending(k, v))
	}
	slices.SortFunc(list, func(a, b Approval) int { return cmp.Compare(a.Seq, b.Seq) })
	return list
}

// Approvals lists the calls that a person is asked about, the oldest first.
func (l *Ledger) Approvals(ctx context.Context) (list []Approval, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		list = slices.DeleteFunc(t.allPending(), func(p Approval) bool { return t.late(&p) })
		for i := range list {
			list[i].Arguments = bytes.Clone(t.approvals().Get(argumentsKey(list[i].ID)))
		}
		return nil
	})
	return list, err
}

// late reports a request that nobody can answer any more.
func (t *tx) late(p *Approval) bool { return !t.now.Before(p.Deadline) }

// Answer decides a request, and records it. The first answer counts: after it, or after
// the deadline, the error is [ErrNoApproval]. To allow makes a grant, which the call
// redeems in [Ledger.Reserve].
func (l *Ledger) Answer(ctx context.Context, id string, a Answer) (p Approval, err error) {
	err = l.wait(ctx, &op{write: true, done: make(chan error, 1), then: l.ring, run: func(t *tx) error {
		found, err := t.pending(id)
		if err != nil {
			return err
		}
		p = *found
		switch {
		case t.late(found) && a.Channel != ChannelTimeout:
			return fmt.Errorf("%w: %s has timed out", ErrNoApproval, id)
		case a.ForSession && !found.ForSession:
			return fmt.Errorf("rule %s lets nobody allow %s for a whole session; allow it once", found.Rules[0], found.Tool)
		}
		return t.answer(found, a)
	}})
	return p, err
}

func (t *tx) answer(p *Approval, a Answer) error {
	if err := errors.Join(t.dropApproval(pendingKey(p.ID)), t.dropApproval(argumentsKey(p.ID))); err != nil || p.Seq == 0 {
		return err
	}
	a.Note = cut(strings.ToValidUTF8(a.Note, "\ufffd"), maxNote)
	rec := &audit.Record{
		Kind: audit.KindApproval, Status: audit.StatusDenied, Ref: p.Seq, Session: p.Session, Agent: p.Agent, Upstream: p.Upstream, Tool: p.Tool,
		Policy: string(policy.TypeApproval), Rule: p.Rules[0], Approval: p.ID, Flagged: !a.Allow, FlagReason: a.Sentence(),
		DurationMS: uint64(max(0, t.now.Sub(p.Created).Milliseconds())),
	}
	if a.Allow {
		rec.Status = audit.StatusApproved
		g := grant{ID: p.ID, ForSession: a.ForSession, Rules: p.Rules, Made: t.wall}
		g.Until = t.now.Add(g.lasts())
		if !a.ForSession && p.Waiting {
			g.Process = p.Process
		}
		if err := t.putApproval(grantKey(p.Key, p.ID), &g); err != nil {
			return err
		}
	}
	if err := t.append(rec); err != nil {
		return err
	}
	b := t.Bucket(bucketOutcomes)
	b.FillPercent = 0.95
	return b.Put(be64(p.Seq), be64(rec.Seq))
}

// Sentence says how a request was decided.
func (a *Answer) Sentence() string {
	var what string
	switch {
	case a.Allow && a.ForSession:
		what = "allowed for the session by " + a.Channel
	case a.Allow:
		what = "allowed once by " + a.Channel
	case a.Channel == ChannelTimeout:
		what = "nobody has answered in time"
	case a.Channel == ChannelGone:
		what = "the client withdrew the call before anybody had answered"
	case a.Channel == ChannelShutdown:
		what = "haldir ended before anybody had answered"
	case a.Channel == ChannelRevoked:
		what = "the session was revoked before anybody had answered"
	default:
		what = "denied by " + a.Channel
	}
	if a.Note != "" {
		what += ": " + a.Note
	}
	return what
}

// Refuse says that nobody can be asked: the call is refused, and stays listed for the
// time of [Listed]. One that was listed for the same call makes room for it.
func (l *Ledger) Refuse(ctx context.Context, id string) error {
	return l.do(ctx, true, func(t *tx) error { return t.list(id) })
}

func (t *tx) list(id string) error {
	p, err := t.pending(id)
	if err != nil {
		return err
	}
	if !p.Waiting {
		return nil
	}
	for _, other := range t.allPending() {
		if !other.Waiting && bytes.Equal(other.Key, p.Key) {
			if err := t.answer(&other, Answer{Channel: ChannelTimeout, Note: "it was asked for again as " + p.ID}); err != nil {
				return err
			}
		}
	}
	p.Waiting, p.Process, p.Deadline = false, "", t.now.Add(Listed)
	return t.putApproval(pendingKey(id), p)
}

// Decided tells of requests that do not wait any more how they were decided. A request
// that waits is not in the result.
func (l *Ledger) Decided(ctx context.Context, seqs []uint64) (map[uint64]audit.Entry, error) {
	decided := map[uint64]audit.Entry{}
	err := l.do(ctx, false, func(t *tx) error {
		clear(decided)
		for _, seq := range seqs {
			e, ok, err := audit.Get(source{t}, seq)
			if err != nil {
				return err
			}
			if ok && e.Status != audit.StatusPending {
				decided[seq] = e
			}
		}
		return nil
	})
	return decided, err
}

// tidy ends what the dead have left: requests of theirs are denied, grants free for the
// next such call. So are requests that nobody has answered in time, and grants that
// nobody has used.
func (t *tx) tidy(isDead func(process string) bool) error {
	for _, p := range t.allPending() {
		a := Answer{Channel: ChannelTimeout}
		switch {
		case p.Waiting && isDead(p.Process):
			a.Channel = ChannelShutdown
		case p.Waiting && t.now.Before(p.Deadline.Add(Listed)), t.now.Before(p.Deadline): // a living process says itself when it gives up
			continue
		}
		if err := t.answer(&p, a); err != nil {
			return err
		}
	}
	changed := map[string]*grant{}
	c := t.approvals().Cursor()
	for k, v := c.Seek([]byte{prefixGrant}); len(k) > 0 && k[0] == prefixGrant; k, v = c.Next() {
		var g grant
		switch {
		case decode(v, &g) != nil || !t.now.Before(g.Until):
			changed[string(k)] = nil
		case g.Process != "" && isDead(g.Process):
			g.Process = ""
			changed[string(k)] = &g
		}
	}
	for k, g := range changed {
		var err error
		if g == nil {
			err = t.dropApproval([]byte(k))
		} else {
			err = t.putApproval([]byte(k), g)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tidiness is what there is to tidy among approvals, as it was seen last.
type tidiness struct {
	ledger string // of which
	seq    uint64 // of the bucket
	owners []string
	end    time.Time // when the first of them is over; zero if there is none
	broken bool      // one cannot be read: tidy says what it is
}

// tidiness looks at it, unless nothing has changed since it was seen.
func (t *tx) tidiness(seen tidiness) tidiness {
	now := tidiness{ledger: string(t.space(spaceMeta).get(keyID)), seq: t.approvals().Sequence()}
	if seen.ledger == now.ledger && seen.seq == now.seq {
		return seen
	}
	see := func(process string, end time.Time) {
		if process != "" && !slices.Contains(now.owners, process) {
			now.owners = append(now.owners, process)
		}
		if now.end.IsZero() || end.Before(now.end) {
			now.end = end
		}
		now.broken = now.broken || end.IsZero()
	}
	for _, p := range t.allPending() {
		if p.Waiting {
			p.Deadline = p.Deadline.Add(Listed)
		}
		see(p.Process, p.Deadline)
	}
	c := t.approvals().Cursor()
	for k, v := c.Seek([]byte{prefixGrant}); len(k) > 0 && k[0] == prefixGrant; k, v = c.Next() {
		var g grant
		now.broken = decode(v, &g) != nil || now.broken
		see(g.Process, g.Until)
	}
	return now
}

// due reports whether there is something to tidy at a time.
func (s *tidiness) due(now time.Time) bool {
	return s.broken || !s.end.IsZero() && !now.Before(s.end)
}

// The bell is a file that changes when what others have asked for is decided, or a
// session's calls are to end: who waits looks at it, not into the database.
func bellPath(dir string) string { return filepath.Join(dir, "haldir.bell") }

func (l *Ledger) ring() error {
	if err := os.WriteFile(bellPath(l.o.Dir), []byte(newID("")), 0o600); err != nil {
		l.o.Logger.Warn().Err(err).Msg("ring the bell") // who waits looks now and then all the same
	}
	return nil
}

// Bell returns a text that is another one after something was decided by any process.
func (l *Ledger) Bell() string {
	b, err := os.ReadFile(bellPath(l.o.Dir))
	if err != nil {
		return ""
	}
	return string(b)
}

func watchers(dir string) string { return filepath.Join(dir, "watchers") }

// turnBackApprovals is turnBack for approvals: what was asked and allowed in the time that
// was wrong lasts from now on as long as it would have lasted from then on.
func (t *tx) turnBackApprovals() error {
	changed := map[string]any{}
	for _, p := range t.allPending() {
		if ahead := p.Created.Sub(t.now); ahead > 0 {
			p.Created, p.Deadline = t.now, p.Deadline.Add(-ahead)
		}
		// One of before may have been listed, and a living process says itself when it gives up.
		if latest := t.now.Add(max(p.Timeout, Listed)); p.Deadline.After(latest) {
			p.Deadline = latest
		}
		changed[string(pendingKey(p.ID))] = &p
	}
	c := t.approvals().Cursor()
	for k, v := c.Seek([]byte{prefixGrant}); len(k) > 0 && k[0] == prefixGrant; k, v = c.Next() {
		var g grant
		if decode(v, &g) != nil {
			continue // tidy removes it
		}
		if latest := t.now.Add(g.lasts()); g.Until.After(latest) {
			g.Until = latest
			changed[string(k)] = &g
		}
		if g.Made.After(t.wall) {
			g.Made = t.wall
			changed[string(k)] = &g
		}
	}
	for k, v := range changed {
		if err := t.putApproval([]byte(k), v); err != nil {
			return err
		}
	}
	return nil
}

// Watch says that this process shows a person what waits, until stop is called or the
// process ends.
func (l *Ledger) Watch() (stop func(), err error) {
	dir := watchers(l.o.Dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock := flock.New(filepath.Join(dir, newID("")), flock.SetPermissions(0o600))
	ctx, cancel := context.WithTimeout(context.Background(), watchWait)
	defer cancel()
	if _, err := lock.TryLockContext(ctx, time.Millisecond); err != nil { // somebody may just be looking whether it is locked
		_ = os.Remove(lock.Path())
		return nil, fmt.Errorf("say that approvals are watched, in %s: %w", dir, err)
	}
	return func() {
		_ = os.Remove(lock.Path()) // who looks at it meanwhile finds it locked, or gone
		_ = lock.Unlock()
		_ = os.Remove(lock.Path()) // Windows removes no open file
	}, nil
}

// watchWait is how long those who look at a file that is just made may keep it from being
// locked, and deadAfter how old one must be for nobody to be about to lock it.
const (
	watchWait = 5 * time.Second
	deadAfter = time.Minute
)

// Watched reports whether any living process shows a person what waits. The files of the
// dead go, after a while.
func (l *Ledger) Watched() (living bool) {
	living, dead := l.lookAtWatchers()
	for _, lock := range dead {
		_ = os.Remove(lock.Path())
		_ = lock.Unlock()
		_ = os.Remove(lock.Path()) // Windows removes no open file
	}
	return living
}

// DeadWatchers returns how many processes that showed a person what waits have ended some
// time ago without removing their file. [Ledger.Watched] removes them.
func (l *Ledger) DeadWatchers() int {
	_, dead := l.lookAtWatchers()
	for _, lock := range dead {
		_ = lock.Unlock() // nobody else wants it
	}
	return len(dead)
}

// lookAtWatchers reports whether one lives, and returns the files of the dead. Several look
// at once, so their locks keep out those of the living only. The caller unlocks them.
func (l *Ledger) lookAtWatchers() (living bool, dead []*flock.Flock) {
	dir := watchers(l.o.Dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, nil
	}
	for _, e := range entries {
		lock := flock.New(filepath.Join(dir, e.Name()), flock.SetFlag(os.O_RDWR))
		free, err := lock.TryRLock()
		if err != nil {
			continue // it has just been removed
		}
		living = living || !free
		if info, err := e.Info(); free && err == nil && time.Since(info.ModTime()) > deadAfter {
			dead = append(dead, lock)
			continue
		}
		_ = lock.Unlock() // it may be about to be locked for good
	}
	return living, dead
}
