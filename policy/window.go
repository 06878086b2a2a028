package policy

import "time"

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

// next returns the first instant at or after t when the window is open, to the
// minute; zero if it does not open within eight days (it has no days).
func (w window) next(t time.Time) time.Time {
	if w.open(t) {
		return t
	}
	t = t.In(w.loc)
	for day := range 9 {
		at := time.Date(t.Year(), t.Month(), t.Day()+day, 0, w.hours.Start, 0, 0, w.loc)
		if at.Before(t) {
			// Today's opening is past. If the window is shut all the same, a
			// change of the clocks may still open it again today.
			at = t.Truncate(time.Minute)
		}
		if w.open(at) && !w.open(at.Add(-time.Minute)) && !at.Before(t) {
			return at
		}
		// time.Date picks one of two readings where the clocks change; the true
		// opening is then within three hours of it.
		for m := -180; m <= 180; m++ {
			if c := at.Add(time.Duration(m) * time.Minute); !c.Before(t) && w.open(c) {
				return c
			}
		}
	}
	return time.Time{}
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

// bounds returns the period of the calendar in loc that t lies in.
func (p Period) bounds(t time.Time, loc *time.Location) (start, end time.Time) {
	t = t.In(loc)
	y, m, d := t.Date()
	switch p {
	case None:
		return time.Time{}, time.Time{}
	case Hour:
		// Elapsed minutes, not time.Date: an hour that the clocks repeat is two.
		start = t.Add(-time.Duration(t.Minute())*time.Minute - time.Duration(t.Second())*time.Second - time.Duration(t.Nanosecond()))
		return start, start.Add(time.Hour)
	case Day:
		return time.Date(y, m, d, 0, 0, 0, 0, loc), time.Date(y, m, d+1, 0, 0, 0, 0, loc)
	case Week:
		d -= (int(t.Weekday()) + 6) % 7
		return time.Date(y, m, d, 0, 0, 0, 0, loc), time.Date(y, m, d+7, 0, 0, 0, 0, loc)
	case Month:
		return time.Date(y, m, 1, 0, 0, 0, 0, loc), time.Date(y, m+1, 1, 0, 0, 0, 0, loc)
	}
	return time.Time{}, time.Time{}
}
