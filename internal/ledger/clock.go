package ledger

import (
	"context"
	"encoding/json"
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
// gave. No limit becomes looser: what was used in windows that lie ahead counts
// in those of now, and sessions expire after their time from now on. It returns
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
		if err := meta.put(keyClock, stamp(now)); err != nil {
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

// turnBack brings what lies after t.now down to it.
func (t *tx) turnBack() error {
	changed := map[string][]byte{}
	for _, space := range []space{t.space(spaceCounters), t.space(spaceHolds), t.space(spaceSessions)} {
		clear(changed)
		err := space.each(nil, func(k, v []byte) (err error) {
			if v, err = t.turned(space.prefix, v); v != nil {
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
// not change.
func (t *tx) turned(space byte, v []byte) ([]byte, error) {
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
		return encodeCounter(c), nil
	case spaceHolds:
		var h held
		if json.Unmarshal(v, &h) != nil {
			return nil, nil // see abandon
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
	if err := json.Unmarshal(v, &s); err != nil {
		return nil, fmt.Errorf("%w: a session: %w", ErrDamaged, err)
	}
	ahead := s.Created.Sub(t.now)
	if ahead <= 0 {
		return nil, nil
	}
	s.Created = t.now
	if !s.ExpiresAt.IsZero() {
		s.ExpiresAt = s.ExpiresAt.Add(-ahead)
	}
	return json.Marshal(s)
}
