package ledger

import (
	"bytes"
	"time"

	"github.com/haldir-mcp/haldir/policy"
)

// Counters of loop rules are of a call and its arguments, of which there is no end. Each
// is good until its window has passed; whoever writes one looks at a few that lie beside
// it, and removes those that are over. Their keys are hashes, so sooner or later each is
// beside one that is written, and there are never many more than live ones.

// swept is how many counters are looked at with each that is written: more than one, so
// that they become fewer.
const swept = 4

// loop returns a counter and when its window ends.
func (t *tx) loop(k policy.CounterKey) (policy.Counter, time.Time) {
	v := t.space(spaceLoops).get([]byte(k.Of))
	if len(v) != 24 {
		return policy.Counter{}, time.Time{}
	}
	return decodeCounter(v[:16]), moment(v[16:])
}

func (t *tx) setLoop(k policy.CounterKey, c policy.Counter, window time.Duration) error {
	s := t.space(spaceLoops)
	var over [][]byte
	err := s.some(append([]byte(k.Of), 0), swept, func(other, v []byte) error {
		if len(v) != 24 || !t.now.Before(moment(v[16:])) {
			over = append(over, bytes.Clone(other))
		}
		return nil
	})
	for _, other := range over {
		if err == nil {
			err = s.delete(other)
		}
	}
	if err != nil {
		return err
	}
	if c.Value == 0 {
		return s.delete([]byte(k.Of))
	}
	return s.put([]byte(k.Of), append(encodeCounter(c), stamp(c.Start.Add(window))...))
}

// add counts amount on a counter in the window that began at start, and returns when
// that is now.
func (t *tx) add(k policy.CounterKey, start time.Time, amount int64, window time.Duration) (time.Time, error) {
	c := t.counter(k)
	if c.Start.Before(start) {
		c = policy.Counter{Start: start}
	}
	c.Value = plus(c.Value, amount)
	return c.Start, t.set(k, c, window)
}

func (t *tx) set(k policy.CounterKey, c policy.Counter, window time.Duration) error {
	if k.Counter == policy.CounterLoop {
		return t.setLoop(k, c, window)
	}
	return t.setCounter(k, c)
}

// streak counts a failure, or ends the row of them. A call that was not sent, or that the
// client gave up, says nothing.
func (t *tx) streak(x *hold, r Result) error {
	k := policy.CounterKey{Counter: x.Counter, Of: x.Of}
	c, end := t.loop(k)
	switch r {
	case NotSent, Withdrawn, Cancelled:
		return nil
	case Done:
		if c.Value == 0 {
			return nil
		}
		return t.setLoop(k, policy.Counter{}, 0)
	case Failed, Unknown:
	}
	if !t.now.Before(end) {
		c = policy.Counter{Start: t.now}
	}
	c.Value = plus(c.Value, 1)
	return t.setLoop(k, c, x.Window)
}

// forgetLoops drops the counters of windows that begin after t.now: the clock was set back.
func (t *tx) forgetLoops() error {
	var ahead [][]byte
	s := t.space(spaceLoops)
	err := s.each(nil, func(k, v []byte) error {
		if len(v) != 24 || moment(v[:8]).After(t.now) {
			ahead = append(ahead, bytes.Clone(k))
		}
		return nil
	})
	for _, k := range ahead {
		if err == nil {
			err = s.delete(k)
		}
	}
	return err
}
