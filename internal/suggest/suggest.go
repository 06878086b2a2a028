// Package suggest makes a least-privilege config of what was called: it allows the
// tools that were used and no others, with limits a little above what was needed.
//
// It is pure: it is given the records, as often as it asks for them.
package suggest

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/replay"
	"github.com/haldir-mcp/haldir/policy"
)

// Walk calls f with every record of the period, in order.
type Walk func(f func(seq uint64, raw []byte) error) error

// Options say what a suggestion is made for.
type Options struct {
	Now time.Time
	// Costs and Scopes are those of the config, and stay as they are.
	Costs    []policy.Cost
	Scopes   []policy.Scope
	Sessions map[string]replay.Session
	Agent    string // "" for every agent
	// Listed are the canonical ids of the tools that are known, if they are.
	Listed []string
}

// Use is what is known of one thing that was called.
type Use struct {
	ID       string // canonical
	Calls    uint64 // that were let through
	Failed   uint64 // of these
	Denied   uint64
	Last     time.Time // of the calls that were let through
	PeakHour int64     // the most that were let through in a window of an hour
	Spent    policy.Micros
}

// Suggestion is a config in the making.
type Suggestion struct {
	Policies []policy.Rule

	o            Options
	since, until time.Time
	calls        uint64
	sessions     int
	used         []Use          // with calls that were let through, the most used first
	refused      []Use          // without
	unnamed      []string       // used, but no pattern can name them
	unused       []string       // listed, not called
	uris         map[string]int // how many of an upstream were used
	notes        map[string]string
}

// maxURIs is how many resources of an upstream are listed one by one.
const maxURIs = 25

// Make looks at the records and suggests policies.
func Make(o Options, walk Walk) (*Suggestion, error) {
	s := &Suggestion{o: o, uris: map[string]int{}, notes: map[string]string{}}
	if err := s.look(walk); err != nil {
		return nil, err
	}
	tight, err := s.peaks(walk, true)
	if err != nil {
		return nil, err
	}
	for i := range s.used {
		s.used[i].PeakHour = tight[policy.CounterKey{Counter: probeRate, Of: subject(s.used[i].ID)}]
	}
	limits := limitsOf(tight)
	s.build(limits)
	return s, s.loosen(limits, walk)
}

// look collects what was called.
func (s *Suggestion) look(walk Walk) error {
	all, sessions := map[string]*Use{}, map[string]bool{}
	j := audit.Joiner{Ended: true, Each: func(e *audit.Event) error {
		r := &e.Record
		if !replay.Judged(r) || s.o.Agent != "" && r.Agent != s.o.Agent {
			return nil
		}
		if s.calls++; s.since.IsZero() || r.Time.Before(s.since) {
			s.since = r.Time
		}
		if r.Time.After(s.until) {
			s.until = r.Time
		}
		sessions[r.Session] = true
		id := e.ID()
		u := all[id]
		if u == nil {
			u = &Use{ID: id}
			all[id] = u
		}
		if r.Status == audit.StatusDenied {
			u.Denied++
			return nil
		}
		u.Calls++
		if r.Time.After(u.Last) {
			u.Last = r.Time
		}
		if e.Status() == audit.StatusError {
			u.Failed++
		}
		u.Spent += policy.Micros(e.Cost())
		return nil
	}}
	if err := walk(j.Add); err != nil {
		return err
	}
	if err := j.End(); err != nil {
		return err
	}
	s.sessions = len(sessions)
	for _, id := range slices.Sorted(maps.Keys(all)) {
		switch u := *all[id]; {
		case u.Calls == 0:
			s.refused = append(s.refused, u)
		case !nameable(id):
			s.unnamed = append(s.unnamed, id)
		default:
			s.used = append(s.used, u)
			s.uris[subject(id)]++
		}
	}
	slices.SortFunc(s.used, byCalls)
	for _, id := range s.o.Listed {
		if all[id] == nil {
			s.unused = append(s.unused, id)
		}
	}
	slices.Sort(s.unused)
	return nil
}

// nameable reports whether a pattern can be written for what is called so.
func nameable(id string) bool {
	_, _, both := strings.Cut(id, "/")
	return both && utf8.ValidString(id) && !strings.Contains(id, "\x00")
}

// subject is what a rate limit per tool counts for: resources count for their
// upstream.
func subject(id string) string {
	if !strings.HasPrefix(id, resource) {
		return id
	}
	upstream, _, _ := strings.Cut(id, "/")
	return upstream
}

const (
	resource = "resource:"
	prompt   = "prompt:"
)

// The rules that measure. Their counters are those of the rules that are suggested,
// but for their names.
const (
	hour      = time.Hour
	huge      = 1_000_000_000 * policy.USD
	probeRate = "rate:id:probe-rate:tool:1h0m0s:"
	probeDay  = "spend:id:probe-day:day:0s:UTC"
	probeSess = "spend:id:probe-session:session:0s:"
)

// peaks are the highest values of the counters of a rate limit per tool and hour and
// of spend limits per day and session: of what was let through, or of all that the
// allow list would have let through.
func (s *Suggestion) peaks(walk Walk, recorded bool) (map[policy.CounterKey]int64, error) {
	agents := s.agents()
	rules := []policy.Rule{
		{Type: policy.TypeRateLimit, ID: "probe-rate", MaxCalls: math.MaxInt64, Window: hour, Per: policy.PerTool, Agents: agents},
		{Type: policy.TypeSpendLimit, ID: "probe-day", MaxUSD: huge, Per: policy.PerDay, Location: time.UTC, Agents: agents},
		{Type: policy.TypeSpendLimit, ID: "probe-session", MaxUSD: huge, Per: policy.PerSession, Location: time.UTC, Agents: agents},
	}
	if !recorded {
		rules = append(s.lists(), rules...)
	}
	_, peaks, err := s.replay(walk, rules, recorded)
	return peaks, err
}

func (s *Suggestion) agents() []string {
	if s.o.Agent == "" {
		return nil
	}
	return []string{quoted(s.o.Agent)}
}

func (s *Suggestion) replay(walk Walk, rules []policy.Rule, recorded bool) (replay.Report, map[policy.CounterKey]int64, error) {
	engine, err := policy.Compile(policy.Ruleset{Costs: s.o.Costs, Scopes: s.o.Scopes, Policies: rules})
	if err != nil {
		return replay.Report{}, nil, err
	}
	r := replay.New(replay.Options{Engine: engine, Sessions: s.o.Sessions, AsRecorded: recorded})
	if err := walk(r.Add); err != nil {
		return replay.Report{}, nil, err
	}
	return r.Report(), r.Peaks(), nil
}

// limits are what is suggested, by the id of the rule for spend limits and by what
// is counted for the others.
type limits struct {
	calls        map[string]int64
	day, session policy.Micros
}

// limitsOf leaves room above the peaks.
func limitsOf(peaks map[policy.CounterKey]int64) limits {
	l := limits{calls: map[string]int64{}}
	for key, peak := range peaks {
		switch key.Counter {
		case probeRate:
			l.calls[key.Of] = roomyCalls(peak)
		case probeDay:
			l.day = max(l.day, roomyMoney(peak))
		case probeSess:
			l.session = max(l.session, roomyMoney(peak))
		}
	}
	return l
}

// roomyCalls is half as much again, at least 10, in the steps 10, 20, 50, 100.
func roomyCalls(peak int64) int64 {
	if peak > math.MaxInt64/8 {
		return math.MaxInt64
	}
	step := int64(10)
	for i := 0; step < peak+peak/2; i++ {
		if i%3 == 1 {
			step = step / 2 * 5
		} else {
			step *= 2
		}
	}
	return step
}

// roomyMoney is half as much again, with two digits that count.
func roomyMoney(peak int64) policy.Micros {
	want := min(peak+peak/2, int64(huge))
	unit := int64(1)
	for want/unit >= 100 {
		unit *= 10
	}
	return policy.Micros((want + unit - 1) / unit * unit)
}

// The ids of what is suggested.
const (
	ruleUsed        = "used"
	ruleNoResources = "no-resources"
	ruleNoPrompts   = "no-prompts"
	ruleDay         = "spend-a-day"
	ruleSession     = "spend-a-session"
	ruleRate        = "rate-" // and how many
)

// lists are the rules without limits.
func (s *Suggestion) lists() []policy.Rule {
	rules := []policy.Rule{{Type: policy.TypeAllow, ID: ruleUsed, Tools: s.patterns(), Agents: s.agents()}}
	if !slices.ContainsFunc(s.used, func(u Use) bool { return strings.HasPrefix(u.ID, resource) }) {
		rules = append(rules, policy.Rule{Type: policy.TypeDeny, ID: ruleNoResources, Tools: []string{resource + "*/*"}, Agents: s.agents()})
	}
	if !slices.ContainsFunc(s.used, func(u Use) bool { return strings.HasPrefix(u.ID, prompt) }) {
		rules = append(rules, policy.Rule{Type: policy.TypeDeny, ID: ruleNoPrompts, Tools: []string{prompt + "*/*"}, Agents: s.agents()})
	}
	return rules
}

// patterns are those of the allow list, in order.
func (s *Suggestion) patterns() []string {
	out, has := []string{}, map[string]bool{}
	for _, u := range s.used {
		if p := s.pattern(u.ID); !has[p] {
			has[p] = true
			out = append(out, p)
		}
	}
	return out
}

// pattern names one thing, or all resources of an upstream that has many.
func (s *Suggestion) pattern(id string) string {
	if from := subject(id); from != id {
		if s.uris[from] > maxURIs {
			return quoted(from) + "/*"
		}
	}
	return quoted(id)
}

// quoted is a pattern that matches a text and nothing else.
func quoted(text string) string {
	var b strings.Builder
	for _, r := range text {
		if strings.ContainsRune(`*?[\`, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// build makes the rules with the limits.
func (s *Suggestion) build(l limits) {
	s.Policies = s.lists()
	groups := map[int64][]string{}
	for _, of := range slices.Sorted(maps.Keys(l.calls)) {
		pattern := quoted(of)
		if strings.HasPrefix(of, resource) {
			pattern += "/*"
		}
		if slices.ContainsFunc(s.used, func(u Use) bool { return subject(u.ID) == of }) {
			groups[l.calls[of]] = append(groups[l.calls[of]], pattern)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(groups)) {
		s.Policies = append(s.Policies, policy.Rule{
			Type: policy.TypeRateLimit, ID: ruleRate + decimal(n), Tools: groups[n], MaxCalls: n, Window: hour, Per: policy.PerTool, Agents: s.agents(),
		})
	}
	if l.day > 0 {
		s.Policies = append(s.Policies,
			policy.Rule{Type: policy.TypeSpendLimit, ID: ruleDay, MaxUSD: l.day, Per: policy.PerDay, Location: time.UTC, Agents: s.agents()},
			policy.Rule{Type: policy.TypeSpendLimit, ID: ruleSession, MaxUSD: l.session, Per: policy.PerSession, Location: time.UTC, Agents: s.agents()})
	}
}

// loosen sees to it that nothing is refused that was let through. The limits are
// made of what was let through; but what was refused then, and would not be now,
// counts as well, and may have used them up. Such a limit has to be above that too.
func (s *Suggestion) loosen(l limits, walk Walk) error {
	var open map[policy.CounterKey]int64
	for range len(s.Policies) + 1 {
		r, _, err := s.replay(walk, s.Policies, false)
		if err != nil {
			return err
		}
		tight := func(id string) bool {
			return slices.ContainsFunc(r.Rules, func(c replay.RuleCount) bool { return c.Rule == id && c.NewlyDenied > 0 })
		}
		raise := map[string]bool{}
		for _, p := range s.Policies {
			if (p.Type == policy.TypeRateLimit || p.Type == policy.TypeSpendLimit) && tight(p.ID) {
				raise[p.ID] = true
			}
		}
		if len(raise) == 0 {
			return nil
		}
		if open == nil {
			if open, err = s.peaks(walk, false); err != nil {
				return err
			}
		}
		higher := limitsOf(open)
		for _, of := range slices.Collect(maps.Keys(l.calls)) {
			if raise[ruleRate+decimal(l.calls[of])] && higher.calls[of] > l.calls[of] {
				l.calls[of] = higher.calls[of]
				s.notes[ruleRate+decimal(l.calls[of])] = attempts
			}
		}
		if raise[ruleDay] {
			l.day, s.notes[ruleDay] = max(l.day, higher.day), attempts
		}
		if raise[ruleSession] {
			l.session, s.notes[ruleSession] = max(l.session, higher.session), attempts
		}
		s.build(l)
	}
	return nil
}

// attempts is said of a limit that is higher than what was let through needs.
const attempts = "made of all attempts, also refused ones, which would have used up a lower one"

// byCalls sorts the most used first.
func byCalls(a, b Use) int { return cmp.Or(cmp.Compare(b.Calls, a.Calls), strings.Compare(a.ID, b.ID)) }
