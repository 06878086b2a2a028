package policy

import "time"

// Limit is a rule that counts, for people: what it counts, and up to where.
type Limit struct {
	Rule    string
	Type    Type
	Per     string
	Max     int64 // micro-USD if Money, else calls
	Money   bool
	Shadow  bool
	Counter string // of its counters; see [CounterKey]

	window   time.Duration
	period   Period
	location *time.Location
}

// Limits lists the rules that count, in their order.
func (e *Engine) Limits() []Limit {
	var out []Limit
	for i := range e.rules {
		r := &e.rules[i]
		if r.kind != TypeSpendLimit && r.kind != TypeRateLimit {
			continue
		}
		out = append(out, Limit{
			Rule: r.id, Type: r.kind, Per: r.per, Max: r.max, Money: r.kind == TypeSpendLimit, Shadow: r.shadow, Counter: r.counter,
			window: r.window, period: r.period, location: r.location,
		})
	}
	return out
}

// Used returns how much of a counter counts at a time, and when it begins anew; zero
// if it never does, or if nothing has been counted.
func (l *Limit) Used(c Counter, now time.Time) (used int64, resets time.Time) {
	if l.Type == TypeRateLimit {
		if c.Start.IsZero() || !now.Before(c.Start.Add(l.window)) {
			return 0, time.Time{}
		}
		return c.Value, c.Start.Add(l.window)
	}
	resets = l.period.end(now, l.location)
	if c.Start.Before(l.period.start(now, l.location)) {
		return 0, resets
	}
	return c.Value, resets
}
