package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Scopes that a call requires when no scope rule matches it.
const (
	ScopeRead    = "read"
	ScopeExecute = "execute"
	ScopeSpend   = "spend"
)

// Engine is a compiled [Ruleset]. It never answers otherwise than at first, and is
// safe for concurrent use.
type Engine struct {
	costs    []cost
	scopes   []scope
	rules    []rule
	concerns concerns
}

type cost struct {
	Cost
	tools        patterns
	fromArgument pointer
}

type scope struct {
	tools   patterns
	require []string
}

// rule is a compiled Rule.
type rule struct {
	id        string
	kind      Type
	shadow    bool
	tools     patterns
	all       bool        // no tools: it applies to whatever is called
	about     [kinds]bool // what its patterns are about; an allow list of tools says nothing of prompts
	upstreams globs
	agents    globs
	when      *condition

	max      int64 // micro-USD or calls
	window   time.Duration
	per      string
	period   Period
	counter  string // the identity of its counter
	shared   bool   // a rule before it has the same counter, and so concerns the same calls
	timeout  time.Duration
	once     bool // no answer of a person holds for a session
	hours    window
	location *time.Location
}

// Compile checks a ruleset and makes it ready to decide. It reports every
// mistake it finds, joined, each a [*RuleError].
func Compile(rs Ruleset) (*Engine, error) {
	c := compiler{ids: map[string]int{}, ordinals: map[Type]int{}}
	e := &Engine{}
	for i, r := range rs.Costs {
		c.at("costs", i)
		e.costs = append(e.costs, c.cost(r))
	}
	for i, r := range rs.Scopes {
		c.at("scopes", i)
		s := scope{tools: c.patterns("tools", r.Tools), require: r.Require}
		if len(r.Require) == 0 {
			c.fail("require", -1, errors.New("names no scope"))
		}
		e.scopes = append(e.scopes, s)
	}
	for i, r := range rs.Policies {
		c.at("policies", i)
		e.rules = append(e.rules, c.rule(r))
		if own := e.rules[i].counter; own != "" {
			e.rules[i].shared = slices.ContainsFunc(e.rules[:i], func(r rule) bool { return r.counter == own })
		}
	}
	for i := range e.rules {
		c.at("policies", i)
		if first := c.ids[e.rules[i].id]; first != i {
			c.fail("id", -1, fmt.Errorf("the id %q is already that of policy %d", e.rules[i].id, first+1))
		}
	}
	if len(c.errs) > 0 {
		return nil, errors.Join(c.errs...)
	}
	return e, nil
}

// compiler collects the errors of a ruleset.
type compiler struct {
	list     string
	index    int
	errs     []error
	ids      map[string]int
	ordinals map[Type]int
	cel      *celEnv
}

func (c *compiler) at(list string, index int) { c.list, c.index = list, index }

func (c *compiler) fail(field string, item int, err error) {
	c.errs = append(c.errs, &RuleError{List: c.list, Index: c.index, Field: field, Item: item, Err: err})
}

func (c *compiler) patterns(field string, texts []string) patterns {
	var ps patterns
	for i, t := range texts {
		p, err := compilePattern(t)
		switch {
		case t == "":
			c.fail(field, i, errors.New("the pattern is empty and would match nothing"))
		case err != nil:
			c.fail(field, i, fmt.Errorf("%q is no valid pattern", t))
		}
		ps = append(ps, p)
		if p, ok := p.judged(t); ok && err == nil {
			ps = append(ps, p)
		}
	}
	return ps
}

func (c *compiler) globs(field string, texts []string) globs {
	var gs globs
	for i, t := range texts {
		g, err := compileGlob(t)
		if err != nil || t == "" {
			c.fail(field, i, fmt.Errorf("%q is no valid pattern", t))
		}
		gs = append(gs, g)
	}
	return gs
}

func (c *compiler) cost(r Cost) cost {
	out := cost{Cost: r, tools: c.patterns("tools", r.Tools)}
	if r.USD < 0 || int64(r.USD) > maxMicros {
		c.fail("usd", -1, fmt.Errorf("must be between 0 and %s", Micros(maxMicros)))
	}
	if r.HasFromArgument {
		p, err := parsePointer(r.FromArgument)
		if err != nil {
			c.fail("from_argument", -1, err)
		}
		out.fromArgument = p
		if r.USD != 0 || r.FromResult != "" {
			c.fail("from_argument", -1, errors.New("cannot be combined with usd or from_result"))
		}
	}
	if r.FromResult != "" {
		if _, err := parsePointer(r.FromResult); err != nil {
			c.fail("from_result", -1, err)
		}
	}
	return out
}

func (c *compiler) rule(r Rule) rule {
	c.ordinals[r.Type]++
	out := rule{
		id: r.ID, kind: r.Type, shadow: r.Shadow, all: len(r.Tools) == 0,
		tools: c.patterns("tools", r.Tools), upstreams: c.globs("upstreams", r.Upstreams), agents: c.globs("agents", r.Agents),
		window: r.Window, per: r.Per, location: r.Location,
	}
	out.about = out.tools.of()
	if out.location == nil {
		out.location = time.UTC
	}
	if out.id == "" {
		out.id = string(r.Type) + "-" + strconv.Itoa(c.ordinals[r.Type])
	}
	if _, taken := c.ids[out.id]; !taken {
		c.ids[out.id] = c.index
	}
	if r.When != "" {
		out.when = c.condition(r.When)
	}
	switch r.Type {
	case TypeDeny:
		if len(r.Tools)+len(r.Upstreams)+len(r.Agents) == 0 && r.When == "" {
			c.fail("tools", -1, errors.New(`a deny rule must say what it denies (upstreams: ["*"] denies everything)`))
		}
	case TypeAllow:
	case TypeSpendLimit:
		c.spend(r, &out)
	case TypeRateLimit:
		c.rate(r, &out)
	case TypeTimeWindow:
		c.timeWindow(r, &out)
	case TypeApproval:
		c.approval(r, &out)
	case TypeLoop:
		c.loop(r, &out)
	default:
		c.fail("type", -1, fmt.Errorf("%q is no policy type", r.Type))
	}
	return out
}

func (c *compiler) spend(r Rule, out *rule) {
	if r.MaxUSD < 0 || int64(r.MaxUSD) > maxMicros {
		c.fail("max_usd", -1, fmt.Errorf("must be between 0 and %s", Micros(maxMicros)))
	}
	out.max = int64(r.MaxUSD)
	switch r.Per {
	case "", PerSession:
		out.per = PerSession
	case PerAgent, PerTotal:
	case PerHour:
		out.period = Hour
	case PerDay:
		out.period = Day
	case PerWeek:
		out.period = Week
	case PerMonth:
		out.period = Month
	default:
		c.fail("per", -1, fmt.Errorf("%q is none of session, agent, total, hour, day, week, month", r.Per))
	}
	out.counter = identity("spend", r, out.per)
}

func (c *compiler) rate(r Rule, out *rule) {
	if r.MaxCalls < 0 {
		c.fail("max_calls", -1, errors.New("must not be negative"))
	}
	if r.Window <= 0 {
		c.fail("window_seconds", -1, errors.New("must be a positive time"))
	}
	out.max = r.MaxCalls
	switch r.Per {
	case "":
		out.per = PerTotal
	case PerTotal, PerSession, PerAgent, PerTool, PerUpstream:
	default:
		c.fail("per", -1, fmt.Errorf("%q is none of total, session, agent, tool, upstream", r.Per))
	}
	out.counter = identity("rate", r, out.per)
}

// Bounds on how long a person may be waited for.
const (
	minTimeout = time.Second
	maxTimeout = 24 * time.Hour
)

func (c *compiler) approval(r Rule, out *rule) {
	if len(r.Tools)+len(r.Upstreams)+len(r.Agents) == 0 && r.When == "" {
		c.fail("tools", -1, errors.New(`must say what needs approval (tools: ["*"] is everything)`))
	}
	if out.timeout = r.Timeout; out.timeout == 0 {
		out.timeout = DefaultTimeout
	}
	if out.timeout < minTimeout || out.timeout > maxTimeout {
		c.fail("timeout", -1, fmt.Errorf("must be between %v and %s", minTimeout, Span(maxTimeout)))
	}
	out.once = r.Once
}

func (c *compiler) loop(r Rule, out *rule) {
	if r.MaxRepeats < 1 {
		c.fail("max_repeats", -1, errors.New("must be at least 1"))
	}
	if r.Window <= 0 {
		c.fail("window", -1, errors.New("must be a positive time"))
	}
	out.max = r.MaxRepeats
	out.counter = identity("loop", r, PerTool)
}

func (c *compiler) timeWindow(r Rule, out *rule) {
	out.hours = window{hours: Hours{Start: 0, End: 24 * 60}, loc: out.location}
	if h := r.Hours; h != nil {
		if h.Start < 0 || h.Start >= 24*60 || h.End < 0 || h.End > 24*60 || h.Start == h.End {
			c.fail("allowed_hours", -1, errors.New("needs a start and an end that differ, between 00:00 and 24:00"))
		}
		out.hours.hours = *h
	}
	for i, d := range r.Days {
		if d < time.Sunday || d > time.Saturday {
			c.fail("days", i, fmt.Errorf("%d is no day of the week", d))
			continue
		}
		out.hours.days[d] = true
	}
	if len(r.Days) == 0 {
		out.hours.days = [7]bool{true, true, true, true, true, true, true}
	}
}

// identity names a rule's counter. It stays the same while the rule counts the
// same calls, so that raising a limit or moving a rule in the file does not
// forget what was used; two rules that count the same calls share one counter.
func identity(kind string, r Rule, per string) string {
	calendar := ""
	if slices.Contains([]string{PerHour, PerDay, PerWeek, PerMonth}, per) && r.Location != nil {
		calendar = r.Location.String()
	}
	tail := ":" + per + ":" + r.Window.String() + ":" + calendar
	if r.ID != "" {
		return kind + ":id:" + r.ID + tail
	}
	h := sha256.New()
	for _, list := range [][]string{r.Tools, r.Upstreams, r.Agents, {r.When}} {
		sorted := slices.Sorted(slices.Values(list))
		_, _ = fmt.Fprintf(h, "%d", len(sorted)) // a hash does not fail
		for _, s := range sorted {
			_, _ = fmt.Fprintf(h, ":%d:%s", len(s), s)
		}
	}
	return kind + ":#:" + hex.EncodeToString(h.Sum(nil)[:8]) + tail
}

// Rules lists the ids of the policies in file order.
func (e *Engine) Rules() []string {
	ids := make([]string, len(e.rules))
	for i := range e.rules {
		ids[i] = e.rules[i].id
	}
	return ids
}

// narrowed reports whether the rule can concern c at all, conditions aside.
func (r *rule) narrowed(c *Call) bool {
	return r.around(c) && (r.kind == TypeAllow || r.all || r.tools.match(c))
}

// around is narrowed without regard to the name of what is called.
func (r *rule) around(c *Call) bool {
	if len(r.upstreams) > 0 && !r.upstreams.match(c.Upstream) {
		return false
	}
	if len(r.agents) > 0 && !r.agents.match(c.Agent) {
		return false
	}
	return r.about[c.Kind]
}

func (r *rule) key(c *Call) CounterKey {
	k := CounterKey{Counter: r.counter}
	switch r.per {
	case PerSession:
		k.Of = c.Session
	case PerAgent:
		k.Of = c.Agent
	case PerTool:
		if k.Of = c.ID(); c.Kind == KindResource {
			k.Of = kindPrefixes[c.Kind] + c.Upstream // whoever reads can make up URIs without end
		}
	case PerUpstream:
		k.Of = c.Upstream
	}
	return k
}

// asks reports that r, which concerns c, has a condition to be evaluated for it.
func (r *rule) asks(c *Call) bool {
	return r.when != nil && (r.kind != TypeAllow || r.tools.match(c))
}

// Reads names every counter that [Engine.Decide] may read for c. The slice is to be
// read only.
func (e *Engine) Reads(c Call) []CounterKey {
	concern := e.concern(&c)
	if len(concern.loops) == 0 {
		return concern.counters
	}
	keys := slices.Clone(concern.counters)
	known := e.known(&c)
	for _, i := range concern.loops {
		same, failed := e.rules[i].repeats(&c, known)
		keys = append(keys, same, failed)
	}
	return keys
}

// Never reports whether no arguments, counters or clock could make Decide allow
// the call: an unconditional deny, an allow list without it, or a scope that
// the session lacks. Shadow rules do not count.
func (e *Engine) Never(c Call, s SessionState) bool {
	concern := e.concern(&c)
	if e.missing(&c, s, concern.price != nil) != "" {
		return true
	}
	for _, i := range concern.rules {
		r := &e.rules[i]
		if r.shadow {
			continue
		}
		switch r.kind {
		case TypeDeny:
			if r.when == nil {
				return true
			}
		case TypeAllow:
			if !r.tools.match(&c) {
				return true
			}
		case TypeSpendLimit, TypeRateLimit, TypeTimeWindow, TypeApproval, TypeLoop:
		}
	}
	return false
}

func (e *Engine) costOf(c *Call) *cost {
	for i := range e.costs {
		if e.costs[i].tools.match(c) {
			return &e.costs[i]
		}
	}
	return nil
}

// missing returns a scope that c requires and s does not grant, or "".
func (e *Engine) missing(c *Call, s SessionState, costs bool) string {
	var required []string
	matched := false
	for i := range e.scopes {
		if e.scopes[i].tools.match(c) {
			required, matched = e.scopes[i].require, true
			break
		}
	}
	if !matched {
		base := ScopeExecute
		if c.ReadOnly || c.Kind != KindTool {
			base = ScopeRead
		}
		if !s.Has(base) {
			return base
		}
	}
	for _, r := range required {
		if !s.Has(r) {
			return r
		}
	}
	if costs && !s.Has(ScopeSpend) {
		return ScopeSpend
	}
	return ""
}

// pointer is a parsed JSON pointer.
type pointer []string

func parsePointer(s string) (pointer, error) {
	if s == "" {
		return nil, nil
	}
	if !strings.HasPrefix(s, "/") {
		return nil, fmt.Errorf("the JSON pointer %q must begin with / (RFC 6901)", s)
	}
	tokens := strings.Split(s[1:], "/")
	for i, t := range tokens {
		for rest := t; ; {
			_, after, found := strings.Cut(rest, "~")
			if !found {
				break
			}
			if after == "" || after[0] != '0' && after[0] != '1' {
				return nil, fmt.Errorf("in the JSON pointer %q a ~ is not followed by 0 or 1 (RFC 6901)", s)
			}
			rest = after
		}
		tokens[i] = strings.ReplaceAll(strings.ReplaceAll(t, "~1", "/"), "~0", "~")
	}
	return tokens, nil
}

// Budget is what a spend limit means for one session now.
type Budget struct {
	Rule     string
	Per      string
	Limit    Micros
	Key      CounterKey
	Start    time.Time // a counter with an earlier start has run out and counts as zero
	ResetsAt time.Time // zero when it never does
	Shadow   bool
	All      bool // it concerns every call, unconditionally
}

// Budgets lists the spend limits that concern calls of a session by an agent.
func (e *Engine) Budgets(session, agent string, now time.Time) []Budget {
	var out []Budget
	for i := range e.rules {
		r := &e.rules[i]
		if r.kind != TypeSpendLimit || len(r.agents) > 0 && !r.agents.match(agent) {
			continue
		}
		b := Budget{
			Rule: r.id, Per: r.per, Limit: Micros(r.max), Key: r.key(&Call{Session: session, Agent: agent}), Shadow: r.shadow,
			All: r.all && len(r.upstreams) == 0 && r.when == nil,
		}
		b.Start, b.ResetsAt = r.period.start(now, r.location), r.period.end(now, r.location)
		out = append(out, b)
	}
	return out
}
