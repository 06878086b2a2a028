package policy

import (
	"sort"
	"strings"
	"time"
)

// Hours is a daily window of wall-clock time in minutes after midnight, from
// Start up to but without End. Start above End wraps midnight.
type Hours struct{ Start, End int }

// window is the compiled form of a time_window rule.
type window struct {
	hours Hours
	days  [7]bool // the days on which the window opens
	loc   *time.Location
}

// open reports whether the window is open at t. It compares wall-clock time, so
// on a day with a clock change a window opens and closes when the clocks on the
// wall say so.
func (w window) open(t time.Time) bool {
	t = t.In(w.loc)
	minute := t.Hour()*60 + t.Minute()
	today, yesterday := w.days[t.Weekday()], w.days[(t.Weekday()+6)%7]
	if w.hours.Start < w.hours.End {
		return today && minute >= w.hours.Start && minute < w.hours.End
	}
	return today && minute >= w.hours.Start || yesterday && minute < w.hours.End
}

// on names the days on which the window opens, as " on Mon, Tue"; "" for all.
func (w window) on() string {
	var names []string
	for i := range 7 {
		if day := time.Weekday((i + 1) % 7); w.days[day] {
			names = append(names, day.String()[:3])
		}
	}
	if len(names) == 7 {
		return ""
	}
	return " on " + strings.Join(names, ", ")
}

// horizon is how far ahead an opening is looked for: a window on one day of the
// week may fall into a change of the clocks, so two weeks and a day.
const horizon = 15 * 24 * time.Hour

// next returns the first instant at or after t, to the minute, when the window
// is open; zero if there is none before the horizon. It looks minute by minute
// around the hours at which the window opens or shuts, wide enough for any
// change of the clocks, and leaps over the rest of the day.
func (w window) next(t time.Time) time.Time {
	if w.open(t) {
		return t
	}
	const near, day = 180, 24 * 60
	end := t.Add(horizon)
	for t = t.Truncate(time.Minute).Add(time.Minute); t.Before(end); t = t.Add(time.Minute) {
		if w.open(t) {
			return t.In(w.loc)
		}
		local := t.In(w.loc)
		minute := local.Hour()*60 + local.Minute()
		until := (w.hours.Start - minute + day) % day
		since := (minute - w.hours.End + day) % day
		if until > near && since > near && w.outside(minute) {
			t = t.Add(time.Duration(until-near-1) * time.Minute)
		}
	}
	return time.Time{}
}

// outside reports that no day's window has this minute.
func (w window) outside(minute int) bool {
	if w.hours.Start < w.hours.End {
		return minute < w.hours.Start || minute >= w.hours.End
	}
	return minute < w.hours.Start && minute >= w.hours.End
}

// Period is a stretch of the calendar.
type Period uint8

// The periods; None means that a counter is never reset.
const (
	None Period = iota
	Hour
	Day
	Week // begins on Monday
	Month
)

// start returns when the period of the calendar in loc that t lies in began,
// and end when the next one begins; both are zero for None.
func (p Period) start(t time.Time, loc *time.Location) time.Time { return p.bound(t, loc, 0) }

func (p Period) end(t time.Time, loc *time.Location) time.Time { return p.bound(t, loc, 1) }

// bound returns the start of the period that is n after the one t lies in.
func (p Period) bound(t time.Time, loc *time.Location, n int) time.Time {
	if p == None {
		return time.Time{}
	}
	t = t.In(loc)
	y, m, d := t.Date()
	switch p {
	case None:
	case Hour:
		// Elapsed minutes, not time.Date: an hour that the clocks repeat is two.
		into := time.Duration(t.Minute())*time.Minute + time.Duration(t.Second())*time.Second + time.Duration(t.Nanosecond())
		return t.Add(time.Duration(n)*time.Hour - into)
	case Day:
		return midnight(y, m, d+n, loc)
	case Week:
		return midnight(y, m, d-(int(t.Weekday())+6)%7+7*n, loc)
	case Month:
		return midnight(y, m+time.Month(n), 1, loc)
	}
	return time.Time{}
}

// midnight returns the first instant of a day. Where the clocks change at
// midnight, that hour is missing or comes twice, and time.Date may pick another.
func midnight(y int, m time.Month, d int, loc *time.Location) time.Time {
	at := time.Date(y, m, d, 0, 0, 0, 0, loc)
	_, before := at.Add(-3 * time.Hour).Zone()
	_, after := at.Add(3 * time.Hour).Zone()
	if before == after {
		return at
	}
	day := time.Date(y, m, d, 12, 0, 0, 0, loc).YearDay() // noon is never missing
	first := at.Add(-3 * time.Hour)
	return first.Add(time.Duration(sort.Search(6*60, func(i int) bool {
		return first.Add(time.Duration(i)*time.Minute).YearDay() == day
	})) * time.Minute)
}
