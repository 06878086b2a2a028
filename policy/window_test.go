package policy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/policy"
)

func timeWindow(loc *time.Location, start, end string, days ...time.Weekday) policy.Rule {
	return policy.Rule{Type: policy.TypeTimeWindow, ID: "hours", Location: loc, Days: days, Hours: &policy.Hours{Start: minutes(start), End: minutes(end)}}
}

// minutes reads 09:30.
func minutes(s string) int {
	var h, m int
	if _, err := fmt.Sscanf(s, "%d:%d", &h, &m); err != nil {
		panic(err)
	}
	return h*60 + m
}

func TestTimeWindows(t *testing.T) {
	weekdays := []time.Weekday{time.Monday, time.Tuesday, time.Wednesday, time.Thursday, time.Friday}
	const open = ""
	tests := []struct {
		name       string
		zone       string
		start, end string
		days       []time.Weekday
		now        string
		opens      string // RFC 3339 as the reason says it, or open
	}{
		{"the first minute is in", "UTC", "09:00", "17:00", nil, "2026-11-24T09:00:00Z", open},
		{"the nanosecond before is not", "UTC", "09:00", "17:00", nil, "2026-11-24T08:59:59.999999999Z", "2026-11-24T09:00:00Z"},
		{"the last nanosecond is in", "UTC", "09:00", "17:00", nil, "2026-11-24T16:59:59.999999999Z", open},
		{"the end is out", "UTC", "09:00", "17:00", nil, "2026-11-24T17:00:00Z", "2026-11-25T09:00:00Z"},
		{"24:00 is the end of the day", "UTC", "09:00", "24:00", nil, "2026-11-24T23:59:59Z", open},
		{"00:00 as an end is the end of the day", "UTC", "09:00", "00:00", nil, "2026-11-24T23:59:59Z", open},
		{"00:00 as an end is not the next day", "UTC", "09:00", "00:00", nil, "2026-11-25T00:00:00Z", "2026-11-25T09:00:00Z"},
		{"hours are those of the zone", "America/New_York", "09:00", "17:00", weekdays, "2026-11-24T13:59:00Z", "2026-11-24T09:00:00-05:00"},
		{"hours are those of the zone: open", "America/New_York", "09:00", "17:00", weekdays, "2026-11-24T14:00:00Z", open},
		{"days are those of the zone", "America/New_York", "09:00", "24:00", weekdays, "2026-11-28T04:59:00Z", open},
		{"days are those of the zone: shut", "America/New_York", "09:00", "24:00", weekdays, "2026-11-28T05:00:00Z", "2026-11-30T09:00:00-05:00"},
		{"Friday evening opens on Monday", "UTC", "09:00", "17:00", weekdays, "2026-11-27T17:00:00Z", "2026-11-30T09:00:00Z"},
		{"one day a week, just shut, opens in a week", "UTC", "09:00", "17:00", []time.Weekday{time.Tuesday}, "2026-11-24T17:00:00Z", "2026-12-01T09:00:00Z"},
		{"one day a week, not yet open, opens today", "UTC", "09:00", "17:00", []time.Weekday{time.Tuesday}, "2026-11-24T08:00:00Z", "2026-11-24T09:00:00Z"},
		{"whole days open at midnight", "UTC", "00:00", "24:00", []time.Weekday{time.Wednesday}, "2026-11-24T08:00:00Z", "2026-11-25T00:00:00Z"},

		{"a night is open before midnight", "UTC", "22:00", "06:00", nil, "2026-11-24T22:00:00Z", open},
		{"a night is open after midnight", "UTC", "22:00", "06:00", nil, "2026-11-24T05:59:59Z", open},
		{"a night is shut by day", "UTC", "22:00", "06:00", nil, "2026-11-24T06:00:00Z", "2026-11-24T22:00:00Z"},
		{"a night belongs to the day it begins on", "UTC", "22:00", "06:00", []time.Weekday{time.Friday}, "2026-11-28T05:59:00Z", open},
		{"a night that begins on Friday is not Thursday's", "UTC", "22:00", "06:00", []time.Weekday{time.Friday}, "2026-11-27T05:00:00Z", "2026-11-27T22:00:00Z"},
		{"a night that begins on Saturday ends on Sunday", "UTC", "22:00", "06:00", []time.Weekday{time.Saturday}, "2026-11-29T05:00:00Z", open},
		{"a night that begins on Sunday ends on Monday", "UTC", "22:00", "06:00", []time.Weekday{time.Sunday}, "2026-11-30T05:00:00Z", open},
		{"a window of all but a minute", "UTC", "12:01", "12:00", nil, "2026-11-24T12:00:30Z", "2026-11-24T12:01:00Z"},

		// New York, 8 March 2026: 02:00 EST is 03:00 EDT.
		{"spring: a window that begins in the gap opens after it", "America/New_York", "02:30", "05:00", nil, "2026-03-08T06:59:00Z", "2026-03-08T03:00:00-04:00"},
		{"spring: a window that begins in the gap is open after it", "America/New_York", "02:30", "05:00", nil, "2026-03-08T07:00:00Z", open},
		{"spring: a window that lies in the gap does not open that day", "America/New_York", "02:00", "03:00", nil, "2026-03-08T06:59:00Z", "2026-03-09T02:00:00-04:00"},
		{"spring: a window ends by the clock on the wall", "America/New_York", "00:00", "04:00", nil, "2026-03-08T08:00:00Z", "2026-03-09T00:00:00-04:00"},
		{"spring: the day after is announced in summer time", "America/New_York", "09:00", "17:00", nil, "2026-03-07T22:00:00Z", "2026-03-08T09:00:00-04:00"},
		{"spring: a window on Sundays within the gap opens a week later", "America/New_York", "02:00", "03:00", []time.Weekday{time.Sunday}, "2026-03-07T17:00:00Z", "2026-03-15T02:00:00-04:00"},
		{"spring: a window on Sundays within the gap, seen from the Sunday before, opens two weeks later", "America/New_York", "02:00", "03:00", []time.Weekday{time.Sunday}, "2026-03-01T08:00:00Z", "2026-03-15T02:00:00-04:00"},
		// New York, 1 November 2026: 02:00 EDT is 01:00 EST.
		{"autumn: a window in the hour that comes twice opens the first time", "America/New_York", "01:30", "02:00", nil, "2026-11-01T04:00:00Z", "2026-11-01T01:30:00-04:00"},
		{"autumn: it is open the first time", "America/New_York", "01:30", "02:00", nil, "2026-11-01T05:30:00Z", open},
		{"autumn: it shuts when the clock goes back", "America/New_York", "01:30", "02:00", nil, "2026-11-01T06:00:00Z", "2026-11-01T01:30:00-05:00"},
		{"autumn: it is open the second time", "America/New_York", "01:30", "02:00", nil, "2026-11-01T06:30:00Z", open},
		{"autumn: and then not until the next day", "America/New_York", "01:30", "02:00", nil, "2026-11-01T07:00:00Z", "2026-11-02T01:30:00-05:00"},
		{"autumn: a window that ends in the hour that comes twice opens once more", "America/New_York", "00:00", "01:30", nil, "2026-11-01T05:45:00Z", "2026-11-01T01:00:00-05:00"},
		// Berlin, 29 March 2026: 02:00 CET is 03:00 CEST; 25 October: 03:00 CEST is 02:00 CET.
		{"Berlin, spring: a window that begins in the gap opens after it", "Europe/Berlin", "02:15", "04:00", nil, "2026-03-29T00:30:00Z", "2026-03-29T03:00:00+02:00"},
		{"Berlin, spring: a window that lies in the gap does not open that day", "Europe/Berlin", "02:15", "02:45", nil, "2026-03-29T00:30:00Z", "2026-03-30T02:15:00+02:00"},
		{"Berlin, autumn: a window in the hour that comes twice opens the first time", "Europe/Berlin", "02:30", "03:00", nil, "2026-10-24T23:00:00Z", "2026-10-25T02:30:00+02:00"},
		{"Berlin, autumn: it is open the first time", "Europe/Berlin", "02:30", "03:00", nil, "2026-10-25T00:30:00Z", open},
		{"Berlin, autumn: it opens a second time", "Europe/Berlin", "02:30", "03:00", nil, "2026-10-25T01:00:00Z", "2026-10-25T02:30:00+01:00"},
		{"Berlin, autumn: a night that begins in the hour that comes twice opens the first time", "Europe/Berlin", "02:30", "01:00", nil, "2026-10-24T23:30:00Z", "2026-10-25T02:30:00+02:00"},
		// Lord Howe, 5 April 2026: 02:00 is 01:30; 4 October: 02:00 is 02:30.
		{"Lord Howe, autumn: half an hour comes twice", "Australia/Lord_Howe", "01:40", "02:00", nil, "2026-04-04T14:30:00Z", "2026-04-05T01:40:00+11:00"},
		{"Lord Howe, autumn: it opens a second time", "Australia/Lord_Howe", "01:40", "02:00", nil, "2026-04-04T15:00:00Z", "2026-04-05T01:40:00+10:30"},
		{"Lord Howe, spring: a window that begins in the gap opens after it", "Australia/Lord_Howe", "02:10", "04:00", nil, "2026-10-03T15:00:00Z", "2026-10-04T02:30:00+11:00"},
		{"Lord Howe, spring: a window that lies in the gap does not open that day", "Australia/Lord_Howe", "02:10", "02:30", nil, "2026-10-03T15:00:00Z", "2026-10-05T02:10:00+11:00"},
		// Apia skipped 30 December 2011, a Friday.
		{"a day that a zone leaves out", "Pacific/Apia", "09:00", "17:00", []time.Weekday{time.Friday}, "2011-12-30T09:00:00Z", "2012-01-06T09:00:00+14:00"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := compile(t, rules(timeWindow(zone(t, tt.zone), tt.start, tt.end, tt.days...)))
			d := e.Decide(call("db/a", ""), at(instant(t, tt.now)))
			if tt.opens == open {
				if d.Verdict != policy.Allow {
					t.Errorf("%+v", d)
				}
				return
			}
			if d.Verdict != policy.Deny || d.Policy != "time_window" {
				t.Fatalf("%+v", d)
			}
			if !d.RetryAt.Equal(instant(t, tt.opens)) || d.RetryAt.Format(time.RFC3339) != tt.opens || !strings.Contains(d.Reason, tt.opens) {
				t.Errorf("opens at %s, want %s: %s", d.RetryAt.Format(time.RFC3339), tt.opens, d.Reason)
			}
		})
	}
}

// refOpen reads the clock on the wall and the calendar, nothing else.
func refOpen(r policy.Rule, now time.Time) bool {
	loc := r.Location
	if loc == nil {
		loc = time.UTC
	}
	now = now.In(loc)
	start, end := "00:00", "24:00"
	if r.Hours != nil {
		start = fmt.Sprintf("%02d:%02d", r.Hours.Start/60, r.Hours.Start%60)
		end = fmt.Sprintf("%02d:%02d", r.Hours.End/60, r.Hours.End%60)
	}
	on := func(d time.Weekday) bool {
		for _, x := range r.Days {
			if x == d {
				return true
			}
		}
		return len(r.Days) == 0
	}
	clock, today := now.Format("15:04"), now.Weekday()
	if start < end {
		return on(today) && start <= clock && clock < end
	}
	return on(today) && start <= clock || on((today+6)%7) && clock < end
}

// By brute force: whenever a window is shut, RetryAt is the first minute at
// which it is open. Every minute around a change of the clocks is asked.
func TestTheNextOpeningIsTheFirstMinuteThatIsOpen(t *testing.T) {
	changes := []struct{ zone, at string }{
		{"America/New_York", "2026-03-08T07:00:00Z"},
		{"America/New_York", "2026-11-01T06:00:00Z"},
		{"Europe/Berlin", "2026-03-29T01:00:00Z"},
		{"Europe/Berlin", "2026-10-25T01:00:00Z"},
		{"Australia/Lord_Howe", "2026-04-04T15:00:00Z"},
		{"Australia/Lord_Howe", "2026-10-03T15:30:00Z"},
		{"Africa/Cairo", "2026-04-23T22:00:00Z"},     // midnight is left out
		{"America/Havana", "2026-11-01T05:00:00Z"},   // midnight comes twice
		{"Asia/Kathmandu", "2026-11-01T05:00:00Z"},   // a quarter of an hour off
		{"Atlantic/Azores", "2026-03-29T01:00:00Z"},  // midnight is left out
		{"Antarctica/Troll", "2026-10-25T01:00:00Z"}, // two hours at once
	}
	windows := []struct {
		start, end string
		days       []time.Weekday
	}{
		{"02:30", "03:00", nil},
		{"01:30", "02:00", []time.Weekday{time.Sunday, time.Monday}},
		{"00:00", "00:30", nil},
		{"00:30", "24:00", []time.Weekday{time.Saturday, time.Monday}},
		{"23:30", "00:15", nil},
		{"01:45", "01:15", nil},
		{"22:00", "02:30", []time.Weekday{time.Saturday, time.Wednesday}},
		{"02:00", "02:01", nil},
	}
	for _, ch := range changes {
		loc, mid := zone(t, ch.zone), instant(t, ch.at)
		for _, w := range windows {
			t.Run(fmt.Sprintf("%s %s %s-%s %v", ch.zone, ch.at[:7], w.start, w.end, w.days), func(t *testing.T) {
				r := timeWindow(loc, w.start, w.end, w.days...)
				e := compile(t, rules(r))
				const before, after = 30 * 60, 9 * 24 * 60
				first := mid.Add(-before * time.Minute)
				opens := make([]time.Time, before+after) // by minute: the first open one from there on
				var next time.Time
				for i := len(opens) - 1; i >= 0; i-- {
					if now := first.Add(time.Duration(i) * time.Minute); refOpen(r, now) {
						next = now
					}
					opens[i] = next
				}
				wrong := 0
				for i := 0; i < before+3*60 && wrong < 3; i++ {
					if far := i < before-3*60; far && i%31 != 0 || raceEnabled && i%11 != 0 {
						continue // the race detector finds nothing here, slowly
					}
					now := first.Add(time.Duration(i) * time.Minute)
					d := e.Decide(call("db/a", ""), at(now))
					want := opens[i]
					if open := want.Equal(now); (d.Verdict == policy.Allow) != open {
						t.Errorf("at %v: %s, want open %v", now.In(loc), seen(d), open)
						wrong++
					} else if !open && !d.RetryAt.Equal(want) {
						t.Errorf("at %v: next opening %v, want %v", now.In(loc), d.RetryAt.In(loc), want.In(loc))
						wrong++
					}
				}
			})
		}
	}
}

func TestRateWindows(t *testing.T) {
	e := compile(t, rules(policy.Rule{Type: policy.TypeRateLimit, MaxCalls: 2, Window: time.Hour}))
	// One history: each step is a call so many minutes after noon.
	b := book{}
	c := call("db/a", "")
	steps := []struct {
		name  string
		after time.Duration
		want  policy.Verdict
		retry time.Duration // after noon
	}{
		{"the first call opens the window", 10 * time.Minute, policy.Allow, 0},
		{"the second is the last", 40 * time.Minute, policy.Allow, 0},
		{"the third is refused until an hour after the first", 50 * time.Minute, policy.Deny, 70 * time.Minute},
		{"a refused call counts nothing and moves nothing", 70*time.Minute - 1, policy.Deny, 70 * time.Minute},
		{"an hour after the first the window is over", 70 * time.Minute, policy.Allow, 0},
		{"the new window began with that call", 129 * time.Minute, policy.Allow, 0},
		{"and is full", 129*time.Minute + 1, policy.Deny, 130 * time.Minute},
		{"after a pause a window begins with the next call, not on the hour", 200 * time.Minute, policy.Allow, 0},
		{"so it lasts until an hour after that", 259 * time.Minute, policy.Allow, 0},
		{"and not longer", 259*time.Minute + 30*time.Second, policy.Deny, 260 * time.Minute},
	}
	for _, step := range steps {
		d := b.decide(e, c, at(noon.Add(step.after)))
		if d.Verdict != step.want {
			t.Fatalf("%s: %+v", step.name, d)
		}
		if step.want == policy.Allow {
			continue
		}
		want := noon.Add(step.retry)
		if d.Policy != "rate_limit" || !d.RetryAt.Equal(want) || !strings.Contains(d.Reason, want.Format(time.RFC3339)) {
			t.Errorf("%s: RetryAt %v, want %v: %s", step.name, d.RetryAt, want, d.Reason)
		}
	}

	t.Run("a rate limit of zero has no reset time", func(t *testing.T) {
		e := compile(t, rules(policy.Rule{Type: policy.TypeRateLimit, Window: time.Hour}))
		if d := e.Decide(c, free()); d.Verdict != policy.Deny || !d.RetryAt.IsZero() || strings.Contains(d.Reason, "reset") {
			t.Errorf("%+v", d)
		}
	})
	t.Run("a call that another rule refuses does not open the window", func(t *testing.T) {
		e := compile(t, rules(policy.Rule{Type: policy.TypeRateLimit, MaxCalls: 1, Window: time.Hour}, policy.Rule{Type: policy.TypeDeny, Tools: []string{"bad"}}))
		b := book{}
		b.decide(e, call("db/bad", ""), free())
		if d := b.decide(e, c, free()); d.Verdict != policy.Allow {
			t.Errorf("%+v", d)
		}
	})
	t.Run("a call that a when exempts is not counted", func(t *testing.T) {
		e := compile(t, rules(policy.Rule{Type: policy.TypeRateLimit, MaxCalls: 1, Window: time.Hour, When: "args.x == 1"}))
		b := book{}
		for range 3 {
			if d := b.decide(e, call("db/a", `{"x":2}`), free()); d.Verdict != policy.Allow {
				t.Fatalf("%+v", d)
			}
		}
		if d := b.decide(e, call("db/a", `{"x":1}`), free()); d.Verdict != policy.Allow {
			t.Errorf("%+v", d)
		}
		if d := b.decide(e, call("db/a", `{"x":1}`), free()); d.Verdict != policy.Deny {
			t.Errorf("%+v", d)
		}
	})
}

// A counter per something counts together what shares it, and nothing else.
func TestPartitions(t *testing.T) {
	base := policy.Call{Session: "ses_1", Agent: "bot", Upstream: "pay", Tool: "a", Arguments: []byte(`{"amount":1}`)}
	other := func(edit func(*policy.Call)) policy.Call { c := base; edit(&c); return c }
	session := other(func(c *policy.Call) { c.Session = "ses_2" })
	agent := other(func(c *policy.Call) { c.Agent, c.Session = "root", "ses_2" })
	tool := other(func(c *policy.Call) { c.Tool = "b" })
	upstream := other(func(c *policy.Call) { c.Upstream = "pay2" })
	rate := func(per string) policy.Rule {
		return policy.Rule{Type: policy.TypeRateLimit, MaxCalls: 1, Window: time.Hour, Per: per}
	}
	spend := func(per string) policy.Rule {
		return policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: policy.USD, Per: per}
	}
	tests := []struct {
		name  string
		rule  policy.Rule
		other policy.Call
		apart bool
	}{
		{"a rate limit is per total by default", rate(""), agent, false},
		{"rate per total: other sessions and agents", rate(policy.PerTotal), agent, false},
		{"rate per total: other tools", rate(policy.PerTotal), tool, false},
		{"rate per session: another session", rate(policy.PerSession), session, true},
		{"rate per session: another tool", rate(policy.PerSession), tool, false},
		{"rate per agent: another session of the agent", rate(policy.PerAgent), session, false},
		{"rate per agent: another agent", rate(policy.PerAgent), agent, true},
		{"rate per tool: another tool", rate(policy.PerTool), tool, true},
		{"rate per tool: the tool of that name of another upstream", rate(policy.PerTool), upstream, true},
		{"rate per tool: another agent", rate(policy.PerTool), agent, false},
		{"rate per upstream: another tool", rate(policy.PerUpstream), tool, false},
		{"rate per upstream: another upstream", rate(policy.PerUpstream), upstream, true},
		{"a spend limit is per session by default", spend(""), session, true},
		{"spend per session: another session", spend(policy.PerSession), session, true},
		{"spend per session: another tool", spend(policy.PerSession), tool, false},
		{"spend per agent: another session of the agent", spend(policy.PerAgent), session, false},
		{"spend per agent: another agent", spend(policy.PerAgent), agent, true},
		{"spend per total: another agent", spend(policy.PerTotal), agent, false},
		{"spend per day: another agent", spend(policy.PerDay), agent, false},
		{"spend per month: another session", spend(policy.PerMonth), session, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := compile(t, policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, HasFromArgument: true, FromArgument: "/amount"}}, Policies: []policy.Rule{tt.rule}})
			b := book{}
			if d := b.decide(e, base, free()); d.Verdict != policy.Allow {
				t.Fatalf("%+v", d)
			}
			if d := b.decide(e, base, free()); d.Verdict != policy.Deny {
				t.Fatalf("the limit does not hold: %+v", d)
			}
			if d := b.decide(e, tt.other, free()); (d.Verdict == policy.Allow) != tt.apart {
				t.Errorf("%+v", d)
			}
		})
	}
}

// refPeriod names the calendar period of an instant. An hour that comes twice
// is two.
func refPeriod(per string, now time.Time, loc *time.Location) string {
	if loc == nil {
		loc = time.UTC
	}
	now = now.In(loc)
	switch per {
	case policy.PerHour:
		return now.Format("2006-01-02T15 -0700")
	case policy.PerDay:
		return now.Format("2006-01-02")
	case policy.PerWeek:
		y, w := now.ISOWeek()
		return fmt.Sprint(y, "W", w)
	case policy.PerMonth:
		return now.Format("2006-01")
	}
	return ""
}

// By brute force over the minutes: the counter of a calendar period is the same
// throughout the period and a new one after it, and a refusal names the first
// minute of the next period.
func TestSpendResetsWithTheCalendar(t *testing.T) {
	spans := []struct {
		zone, from string
		hours      int
	}{
		{"UTC", "2026-12-31T20:00:00Z", 30},
		{"UTC", "2028-02-28T20:00:00Z", 60}, // a leap year
		{"America/New_York", "2026-03-07T20:00:00Z", 60},
		{"America/New_York", "2026-10-31T20:00:00Z", 60},
		{"Europe/Berlin", "2026-03-28T20:00:00Z", 60},
		{"Europe/Berlin", "2026-10-24T20:00:00Z", 60},
		{"Australia/Lord_Howe", "2026-04-04T10:00:00Z", 30},
		{"Australia/Lord_Howe", "2026-10-03T10:00:00Z", 30},
		{"Asia/Kathmandu", "2026-11-29T10:00:00Z", 60},
		{"Africa/Cairo", "2026-04-23T12:00:00Z", 40},     // midnight is left out
		{"Africa/Cairo", "2026-10-29T12:00:00Z", 40},     // 23:00 comes twice
		{"America/Havana", "2026-03-08T00:00:00Z", 40},   // midnight is left out
		{"America/Havana", "2026-10-31T20:00:00Z", 40},   // midnight comes twice
		{"Asia/Amman", "2021-10-28T12:00:00Z", 40},       // midnight comes twice, east of Greenwich
		{"America/Santiago", "2026-09-05T20:00:00Z", 40}, // midnight is left out
	}
	for _, sp := range spans {
		for _, per := range []string{policy.PerHour, policy.PerDay, policy.PerWeek, policy.PerMonth} {
			t.Run(fmt.Sprintf("%s %s per %s", sp.zone, sp.from[:10], per), func(t *testing.T) {
				loc, from := zone(t, sp.zone), instant(t, sp.from)
				e := compile(t, policy.Ruleset{
					Costs:    []policy.Cost{{Tools: []string{"*"}, USD: policy.USD}},
					Policies: []policy.Rule{{Type: policy.TypeSpendLimit, ID: "cap", MaxUSD: policy.USD, Per: per, Location: loc}},
				})
				c := call("db/a", "")
				b := book{}
				period, wrong := "", 0
				type told struct{ at, retry time.Time }
				var refusals []told
				step := 1
				if per == policy.PerWeek || per == policy.PerMonth || raceEnabled {
					step = 5
				}
				for i := 0; i < sp.hours*60 && wrong < 3; i += step {
					now := from.Add(time.Duration(i) * time.Minute)
					d := b.decide(e, c, at(now))
					fresh := refPeriod(per, now, loc) != period
					if (d.Verdict == policy.Allow) != fresh {
						t.Errorf("at %v: %s, want a new period %v", now.In(loc), seen(d), fresh)
						wrong++
					}
					if fresh {
						for _, r := range refusals {
							if !r.retry.Equal(now) && wrong < 3 {
								t.Errorf("at %v: RetryAt %v, but the period ended at %v", r.at.In(loc), r.retry.In(loc), now.In(loc))
								wrong++
							}
						}
						period, refusals = refPeriod(per, now, loc), nil
						for _, bud := range e.Budgets(c.Session, c.Agent, now) {
							if bud.Start.After(now) || !bud.ResetsAt.After(now) {
								t.Errorf("at %v: the period runs from %v to %v", now.In(loc), bud.Start, bud.ResetsAt)
								wrong++
							}
						}
					} else if d.Verdict == policy.Deny {
						refusals = append(refusals, told{now, d.RetryAt})
					}
				}
			})
		}
	}
}

func TestWeeksBeginOnMonday(t *testing.T) {
	ny := zone(t, "America/New_York")
	e := compile(t, policy.Ruleset{
		Costs: costs(), Policies: []policy.Rule{{Type: policy.TypeSpendLimit, MaxUSD: policy.USD, Per: policy.PerWeek, Location: ny}},
	})
	b := book{}
	c := call("pay/a", `{"amount":1}`)
	if d := b.decide(e, c, at(time.Date(2026, 11, 29, 23, 0, 0, 0, ny))); d.Verdict != policy.Allow {
		t.Fatalf("%+v", d)
	}
	d := b.decide(e, c, at(time.Date(2026, 11, 29, 23, 59, 59, 0, ny)))
	want := "2026-11-30T00:00:00-05:00"
	if d.Verdict != policy.Deny || d.RetryAt.Format(time.RFC3339) != want || !strings.Contains(d.Reason, want) {
		t.Errorf("%+v", d)
	}
	if d := b.decide(e, c, at(time.Date(2026, 11, 30, 0, 0, 0, 0, ny))); d.Verdict != policy.Allow {
		t.Errorf("%+v", d)
	}
}

func TestBudgets(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	e := compile(t, rules(
		policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: 1},
		policy.Rule{Type: policy.TypeRateLimit, Window: time.Hour},
		policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: 2, Per: policy.PerAgent, Agents: []string{"bo*"}, Shadow: true},
		policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: 3, Per: policy.PerDay, Location: berlin, Agents: []string{"bot"}},
		policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: 4, Agents: []string{"root"}},
		policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: 5, Per: policy.PerTotal, When: "cost_usd > 1.0"},
	))
	got := e.Budgets("ses_1", "bot", noon)
	want := []struct {
		rule, per string
		limit     policy.Micros
		shadow    bool
		all       bool
		resets    string
	}{
		{"spend_limit-1", "session", 1, false, true, ""},
		{"spend_limit-2", "agent", 2, true, true, ""},
		{"spend_limit-3", "day", 3, false, true, "2026-11-25T00:00:00+01:00"},
		{"spend_limit-5", "total", 5, false, false, ""},
	}
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	// What a budget shows must be the counter that Decide reads.
	reads := map[policy.CounterKey]bool{}
	for _, k := range e.Reads(call("db/a", "")) {
		reads[k] = true
	}
	for i, w := range want {
		g := got[i]
		resets := ""
		if !g.ResetsAt.IsZero() {
			resets = g.ResetsAt.Format(time.RFC3339)
		}
		if g.Rule != w.rule || g.Per != w.per || g.Limit != w.limit || g.Shadow != w.shadow || g.All != w.all || resets != w.resets || !reads[g.Key] {
			t.Errorf("got %+v, want %+v", g, w)
		}
	}
}

func TestCountersKeepTheirIdentity(t *testing.T) {
	spend := policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: policy.USD, Tools: []string{"a", "b"}, Per: policy.PerDay}
	rate := policy.Rule{Type: policy.TypeRateLimit, MaxCalls: 5, Window: time.Hour, Tools: []string{"a", "b"}}
	edit := func(r policy.Rule, f func(*policy.Rule)) policy.Rule { f(&r); return r }
	counter := func(t *testing.T, before []policy.Rule, r policy.Rule) policy.CounterKey {
		t.Helper()
		c := call("db/a", "")
		without := map[policy.CounterKey]bool{}
		for _, k := range compile(t, rules(before...)).Reads(c) {
			without[k] = true
		}
		for _, k := range compile(t, rules(append(before[:len(before):len(before)], r)...)).Reads(c) {
			if !without[k] {
				return k
			}
		}
		t.Fatal("the rule reads no counter of its own")
		return policy.CounterKey{}
	}
	tests := []struct {
		name   string
		a      policy.Rule
		before []policy.Rule // of b
		b      policy.Rule
		same   bool
	}{
		{"a rule that moved in the file", spend, []policy.Rule{{Type: policy.TypeDeny, Tools: []string{"x"}}, {Type: policy.TypeSpendLimit, MaxUSD: 1, Tools: []string{"x"}}}, spend, true},
		{"a spend limit that was raised", spend, nil, edit(spend, func(r *policy.Rule) { r.MaxUSD *= 9 }), true},
		{"a rate limit that was raised", rate, nil, edit(rate, func(r *policy.Rule) { r.MaxCalls *= 9 }), true},
		{"a rule that was tried in the shadow first", rate, nil, edit(rate, func(r *policy.Rule) { r.Shadow = true }), true},
		{"lists in another order", rate, nil, edit(rate, func(r *policy.Rule) { r.Tools = []string{"b", "a"} }), true},
		{"the default written out", edit(rate, func(r *policy.Rule) { r.Per = "" }), nil, edit(rate, func(r *policy.Rule) { r.Per = policy.PerTotal }), true},
		{"narrowed by tools", rate, nil, edit(rate, func(r *policy.Rule) { r.Tools = []string{"a"} }), false},
		{"narrowed by upstreams", rate, nil, edit(rate, func(r *policy.Rule) { r.Upstreams = []string{"db"} }), false},
		{"narrowed by agents", rate, nil, edit(rate, func(r *policy.Rule) { r.Agents = []string{"bot"} }), false},
		{"narrowed by when", rate, nil, edit(rate, func(r *policy.Rule) { r.When = "true" }), false},
		{"one pattern of two that read alike when joined", edit(rate, func(r *policy.Rule) { r.Tools = []string{"a", "b"} }), nil, edit(rate, func(r *policy.Rule) { r.Tools = []string{"a", "b1:c"} }), false},
		{"a tool is no upstream", edit(rate, func(r *policy.Rule) { r.Tools, r.Upstreams = []string{"*"}, nil }), nil, edit(rate, func(r *policy.Rule) { r.Tools, r.Upstreams = nil, []string{"*"} }), false},
		{"another window", rate, nil, edit(rate, func(r *policy.Rule) { r.Window = time.Minute }), false},
		{"another partition", rate, nil, edit(rate, func(r *policy.Rule) { r.Per = policy.PerAgent }), false},
		{"another period", spend, nil, edit(spend, func(r *policy.Rule) { r.Per = policy.PerWeek }), false},
		{"another calendar", spend, nil, edit(spend, func(r *policy.Rule) { r.Location = zone(t, "Europe/Berlin") }), false},
		{"a rule of the same id", edit(rate, func(r *policy.Rule) { r.ID = "r" }), nil, edit(rate, func(r *policy.Rule) { r.ID, r.MaxCalls = "r", 99 }), true},
		{"a rule of another id", edit(rate, func(r *policy.Rule) { r.ID = "r" }), nil, edit(rate, func(r *policy.Rule) { r.ID = "s" }), false},
		{"an id made to look like another rule's counter", edit(rate, func(r *policy.Rule) { r.ID = "r" }), nil, edit(rate, func(r *policy.Rule) { r.ID = "r:total:1h0m0s" }), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := counter(t, nil, tt.a), counter(t, tt.before, tt.b)
			if (a == b) != tt.same {
				t.Errorf("%v and %v", a, b)
			}
		})
	}
	t.Run("a rule without an id cannot be given the counter of another by an id", func(t *testing.T) {
		k := counter(t, nil, rate).Counter
		for i := range len(k) {
			for j := i + 1; j <= len(k); j++ {
				if stolen := counter(t, nil, edit(rate, func(r *policy.Rule) { r.ID, r.Tools = k[i:j], []string{"a"} })).Counter; stolen == k {
					t.Fatalf("the id %q takes the counter %q", k[i:j], k)
				}
			}
		}
	})
}

// Two rules that count the same calls share a counter. A call is then counted
// once, and each rule applies its own limit to the sum.
func TestRulesThatCountTheSameCallsCountThemOnce(t *testing.T) {
	rate := func(max int64) policy.Rule {
		return policy.Rule{Type: policy.TypeRateLimit, MaxCalls: max, Window: time.Hour}
	}
	spend := func(usd policy.Micros, loc *time.Location) policy.Rule {
		return policy.Rule{Type: policy.TypeSpendLimit, MaxUSD: usd * policy.USD, Per: policy.PerDay, Location: loc}
	}
	shadow := func(r policy.Rule) policy.Rule { r.Shadow = true; return r }
	ny := zone(t, "America/New_York")
	tests := []struct {
		name  string
		rules []policy.Rule
		want  int // calls of a dollar each that pass
	}{
		{"one rate limit", []policy.Rule{rate(3)}, 3},
		{"two rate limits", []policy.Rule{rate(5), rate(3)}, 3},
		{"two rate limits the other way round", []policy.Rule{rate(3), rate(5)}, 3},
		{"a rate limit and its shadow", []policy.Rule{shadow(rate(1)), rate(3)}, 3},
		{"two spend limits", []policy.Rule{spend(5, nil), spend(3, nil)}, 3},
		{"two spend limits on different calendars", []policy.Rule{spend(5, nil), spend(3, ny)}, 3},
		{"two spend limits on different calendars the other way round", []policy.Rule{spend(3, ny), spend(5, nil)}, 3},
		{"a spend limit and a shadow one on another calendar", []policy.Rule{shadow(spend(1, ny)), spend(3, nil)}, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := compile(t, policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, USD: policy.USD}}, Policies: tt.rules})
			b, passed := book{}, 0
			for range 8 {
				if d := b.decide(e, call("db/a", ""), free()); d.Verdict == policy.Allow {
					passed++
				}
			}
			if passed != tt.want {
				t.Errorf("%d calls passed, want %d", passed, tt.want)
			}
		})
	}
}
