package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/haldir-mcp/haldir/audit"
)

// Clock returns the time by the ledger, which never runs backwards, and the time
// by the clock. Where the first is far ahead, the clock was, once; until it has
// caught up, no window closes. [Ledger.ResetClock] is the way out.
func (l *Ledger) Clock(ctx context.Context) (now, wall time.Time, err error) {
	err = l.do(ctx, false, func(t *tx) error { now, wall = t.now, t.wall; return nil })
	return now, wall, err
}

// ResetClock sets the time by the ledger to that of the clock, which is before it
// because the clock was wrong, and records that, with the reason that a person
// gave. No limit becomes looser: where a window had begun anew in the time that
// was wrong, all that was used in the last 31 days counts in the one that begins
// now; and sessions made in that time expire after theirs from now on. It returns
// the time that the ledger had; when the clock is not behind, nothing happens.
func (l *Ledger) ResetClock(ctx context.Context, reason string) (was, now time.Time, err error) {
	err = l.do(ctx, true, func(t *tx) error {
		was, now = t.now, t.wall
		if !was.After(now) {
			return nil
		}
		t.now = now
		if err := t.turnBack(); err != nil {
			return err
		}
		meta := t.space(spaceMeta)
		// What is to be pruned seemed old to the wrong clock, or would have waited its day
		// the next time that the clock is wrong.
		if err := errors.Join(meta.put(keyClock, stamp(now)), meta.delete(keyPruning)); err != nil {
			return err
		}
		size, at := t.signed()
		if at.After(now) {
			if err := meta.put(keySigned, append(be64(size), stamp(now)...)); err != nil {
				return err
			}
		}
		return t.append(&audit.Record{
			Kind: audit.KindLedger, Status: audit.StatusClockReset, Flagged: true,
			FlagReason: fmt.Sprintf("the ledger's time was set back from %s to %s: %s", was.Format(time.RFC3339), now.Format(time.RFC3339), reason),
		})
	})
	return was, now, err
}

// lately returns what was used in the last 31 days, the longest period of a limit:
// the calls, or what they cost in micro-USD, whichever is more.
func (t *tx) lately() (used int64, err error) {
	var calls, cost int64
	first := lookedBack(t.now)
	for day, u := range t.history() { // whole days: too much rather than too little
		if day >= dayOf(first) {
			calls, cost = calls+u.Calls, plus(cost, u.Cost)
		}
	}
	counted := t.counted() // they are in the history
	c := t.Bucket(bucketAudit).Cursor()
	for k, raw := c.Last(); k != nil && number(k) > counted; k, raw = c.Prev() {
		r, err := audit.Decode(raw)
		if err != nil {
			return 0, fmt.Errorf("%w: record %d: %w", ErrDamaged, number(k), err)
		}
		if r.Time.Before(first) {
			break
		}
		if r.Kind == audit.KindAttempt && r.Status == audit.StatusRunning {
			calls, cost = calls+1, plus(cost, r.Cost)
		}
	}
	return max(calls, cost), nil
}

// turnBack brings what lies after t.now down to it.
func (t *tx) turnBack() error {
	used, err := t.lately()
	if err != nil {
		return err
	}
	if t.doubt().After(t.now) {
		if err := t.space(spaceMeta).put(keyDoubt, stamp(t.now)); err != nil {
			return err
		}
	}
	if err := errors.Join(t.forgetLoops(), t.turnBackApprovals()); err != nil {
		return err
	}
	changed := map[string][]byte{}
	for _, space := range []space{t.space(spaceCounters), t.space(spaceHolds), t.space(spaceSessions)} {
		clear(changed)
		err := space.each(nil, func(k, v []byte) (err error) {
			if v, err = t.turned(space.prefix, v, used); v != nil {
				changed[string(k)] = v
			}
			return err
		})
		if err != nil {
			return err
		}
		for k, v := range changed {
			if err := space.put([]byte(k), v); err != nil {
				return err
			}
		}
	}
	return nil
}

// turned returns a value of a space with its times turned back, nil if it need
// not change. A counter that must change has used in it as well.
func (t *tx) turned(space byte, v []byte, used int64) ([]byte, error) {
	back := func(at *time.Time) bool {
		if !at.After(t.now) {
			return false
		}
		*at = t.now
		return true
	}
	switch space {
	case spaceCounters:
		c := decodeCounter(v)
		if !back(&c.Start) {
			return nil, nil
		}
		c.Value = plus(c.Value, used)
		return encodeCounter(c), nil
	case spaceHolds:
		var h held
		if decode(v, &h) != nil {
			return nil, nil //nolint:nilerr // abandon knows what to do with it
		}
		changed := back(&h.Start)
		for i := range h.Holds {
			changed = back(&h.Holds[i].Start) || changed
		}
		if !changed {
			return nil, nil
		}
		return json.Marshal(h)
	}
	var s Session
	if err := decode(v, &s); err != nil {
		return nil, fmt.Errorf("%w: a session: %w", ErrDamaged, err)
	}
	// A session is renewed after it was made, and expires so long after the later of both.
	began := s.Created
	if !s.RenewedAt.IsZero() {
		began = s.RenewedAt
	}
	ahead := began.Sub(t.now)
	if ahead <= 0 {
		return nil, nil
	}
	back(&s.Created)
	back(&s.RenewedAt)
	if !s.ExpiresAt.IsZero() {
		s.ExpiresAt = s.ExpiresAt.Add(-ahead)
	}
	return json.Marshal(s)
}
