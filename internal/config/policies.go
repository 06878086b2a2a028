package config

import (
	"cmp"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/haldir-mcp/haldir/policy"
)

var policyTypes = []string{"deny", "allow", "spend_limit", "rate_limit", "time_window", "require_approval", "loop"}

// typeAliases are old names of policy types.
var typeAliases = map[string]string{"deny_list": "deny", "allow_list": "allow", "block_tool": "deny"}

// policy translates one policy; the zero rule stands for one with a mistake that
// makes the rest of it meaningless.
func (c *checker) policy(i int) policy.Rule {
	d := &c.doc.Policies[i]
	path := fmt.Sprintf("policies[%d]", i)
	if d.Type == "" {
		c.fail(path, "has no type; known: %s", strings.Join(policyTypes, ", "))
		return policy.Rule{}
	}
	if now, old := typeAliases[d.Type]; old {
		c.warn(path+".type", "%q is the old name of %q", d.Type, now)
		d.Type = now
	}
	if !slices.Contains(policyTypes, d.Type) {
		c.fail(path+".type", "unknown policy type %q%s", d.Type, Suggest(d.Type, policyTypes))
		return policy.Rule{}
	}
	if !c.belong(path, d.Type, reflect.TypeFor[policyDoc]()) {
		return policy.Rule{}
	}
	r := policy.Rule{
		ID: d.ID, Type: policy.Type(d.Type), Tools: d.Tools, Upstreams: d.Upstreams, Agents: d.Agents, When: d.When, Per: d.Per,
		Location: time.UTC,
	}
	if c.has(path+".id") && !scopeName().MatchString(d.ID) {
		c.fail(path+".id", "%q is no rule id: use up to 64 of a-z, 0-9, :, _, . and -, beginning with a letter", d.ID)
	}
	if c.has(path+".when") && strings.TrimSpace(d.When) == "" {
		c.fail(path+".when", "is empty")
	}
	c.compared(path+".when", d.When)
	switch d.Mode {
	case "", "enforce":
	case "shadow":
		r.Shadow = true
	default:
		c.fail(path+".mode", "%q is neither enforce nor shadow", d.Mode)
	}
	if d.Tool != nil {
		c.warn(path+".tool", "is the old form of tools: [%s]", *d.Tool)
		c.toolName(path+".tool", *d.Tool)
		r.Tools = append(slices.Clone(r.Tools), *d.Tool)
	}
	if d.Timezone != "" {
		loc, err := time.LoadLocation(d.Timezone)
		if err != nil || d.Timezone == "Local" {
			c.fail(path+".timezone", "%q is no IANA time zone such as America/New_York", d.Timezone)
			loc = time.UTC
		}
		r.Location = loc
	}
	switch r.Type {
	case policy.TypeDeny:
	case policy.TypeAllow:
		if !c.has(path+".tools") && d.Tool == nil {
			c.fail(path, "needs tools (an empty list allows nothing)")
		}
	case policy.TypeSpendLimit:
		c.spendLimit(path, d, &r)
	case policy.TypeRateLimit:
		c.rateLimit(path, d, &r)
	case policy.TypeTimeWindow:
		c.timeWindow(path, d, &r)
	case policy.TypeApproval:
		c.approval(path, d, &r)
	case policy.TypeLoop:
		c.loop(d, &r)
	}
	if c.has(path+".tools") && len(d.Tools) == 0 && r.Type != policy.TypeAllow {
		c.fail(path+".tools", "is empty: the rule would concern no tool; leave tools out to concern all")
	}
	if c.has(path+".upstreams") && len(d.Upstreams) == 0 {
		c.fail(path+".upstreams", "is empty: the rule would concern no upstream; leave upstreams out to concern all")
	}
	if c.has(path+".agents") && len(d.Agents) == 0 {
		c.fail(path+".agents", "is empty: the rule would concern no agent; leave agents out to concern all")
	}
	c.toolNames(path+".tools", d.Tools)
	c.upstreamNames(path+".upstreams", d.Upstreams)
	return r
}

// toolNames warns of patterns that can match nothing.
func (c *checker) toolNames(path string, patterns []string) {
	for i, p := range patterns {
		c.toolName(fmt.Sprintf("%s[%d]", path, i), p)
	}
}

func (c *checker) toolName(path, pattern string) {
	own := pattern
	for _, kind := range []string{"resource:", "prompt:"} {
		own = strings.TrimPrefix(own, kind)
	}
	kind := strings.TrimSuffix(pattern, own)
	switch name, _, both := strings.Cut(own, "/"); {
	case !both && kind != "resource:":
		c.nameSeen(path, kind, own)
	case !both || strings.ContainsAny(name, globs):
	case name == ownName:
		c.warn(path, "%q matches nothing: policies do not govern haldir's own tools", pattern)
	case len(c.names) > 0 && !slices.Contains(c.names, name):
		c.warn(path, "%q matches nothing: there is no upstream %q%s", pattern, name, Suggest(name, c.names))
	}
}

// nameSeen reports a pattern that is a tool's name as agents see it, upstream__tool or
// mcp__haldir__upstream__tool. It would match nothing, so that a deny rule would not deny:
// such a file must not start. A tool that does call itself so can be written with a slash.
// A glob before the underscores may well mean such tools, so that is but a warning.
func (c *checker) nameSeen(path, kind, pattern string) {
	if meant := c.unseen(pattern); meant != "" {
		c.fail(path, "%q is a name that agents see, and patterns go by upstream/tool; write %q, or %q for a tool that calls itself so",
			kind+pattern, kind+meant, kind+"*/"+pattern)
		return
	}
	for _, name := range c.names { // in the spelling of another client, or of a person
		before, tool, both := cutFold(pattern, name+"__")
		if both && (before == "" || strings.HasSuffix(before, "_") && !strings.HasSuffix(before, "__")) {
			c.warn(path, "%q is no name of a tool by which patterns go; did you mean %q? Write %q for tools that call themselves so",
				kind+pattern, kind+name+"/"+tool, kind+"*/"+pattern)
			return
		}
	}
	server, tool, both := strings.Cut(pattern, "__")
	matches := func(name string) bool { return policy.MatchTool(server+"/*", name, "any") }
	if both && strings.ContainsAny(server, globs) && slices.ContainsFunc(c.names, matches) {
		c.warn(path, "%q does not match names that agents see; did you mean %q? Write %q for tools that call themselves so",
			kind+pattern, kind+server+"/"+tool, kind+"*/"+pattern)
	}
}

// cutFold is strings.Cut whatever the case of sep, which is ASCII.
func cutFold(s, sep string) (before, after string, found bool) {
	for i := range len(s) - len(sep) + 1 {
		if strings.EqualFold(s[i:i+len(sep)], sep) {
			return s[:i], s[i+len(sep):], true
		}
	}
	return s, "", false
}

// unseen returns the pattern that goes by a tool's id for one that goes by its name as agents
// see it, "" for any other.
func (c *checker) unseen(pattern string) string {
	known := func(name string) bool { return slices.Contains(c.names, name) }
	if strings.HasPrefix(pattern, ownName+"__") {
		pattern = "mcp__" + pattern
	}
	server, tool, both := strings.Cut(pattern, "__")
	ofClient := both && server == "mcp" && !known(server)
	if ofClient {
		server, tool, both = strings.Cut(tool, "__")
	}
	if ofClient && !known(server) { // it is haldir, as the client calls it
		rest := cmp.Or(tool, "*")
		if server, tool, both = strings.Cut(tool, "__"); !both {
			return rest
		}
	}
	if ofClient || both && known(server) {
		return server + "/" + cmp.Or(tool, "*")
	}
	return ""
}

// compared warns of a condition that compares tool, which is the tool's own name, with a name as
// agents see it or as patterns have it.
func (c *checker) compared(path, when string) {
	if !strings.Contains(when, "tool") {
		return // the patterns need not be compiled
	}
	for _, m := range comparison().FindAllStringSubmatch(when, -1) {
		for _, quoted := range quotes().FindAllString(m[1], -1) {
			text := quoted[1 : len(quoted)-1]
			upstream, tool, both := strings.Cut(cmp.Or(c.unseen(text), text), "/")
			if !both || !slices.Contains(c.names, upstream) {
				continue
			}
			meant := fmt.Sprintf("upstream == %q", upstream)
			if tool != "*" {
				meant += fmt.Sprintf(" && tool == %q", tool)
			}
			c.warn(path, "tool is a tool's own name, which is %s only if it calls itself so; did you mean %s?", quoted, meant)
		}
	}
}

var (
	comparison = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?:^|[^.\w])tool(?:\s*[=!]=\s*|\s+in\s*\[|\s*\.\s*startsWith\s*\()((?:\s*(?:"[^"\\]*"|'[^'\\]*')\s*,?)+)`)
	})
	quotes = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`"[^"\\]*"|'[^'\\]*'`) })
)

// upstreamNames reports globs of upstreams that match none.
func (c *checker) upstreamNames(path string, patterns []string) {
	for i, p := range patterns {
		at := fmt.Sprintf("%s[%d]", path, i)
		matches := func(name string) bool { return policy.MatchTool(p+"/*", name, "any") }
		switch {
		case p == ownName:
			c.fail(at, "policies do not govern haldir's own tools; remove it")
		case strings.Contains(p, "/"):
			c.fail(at, "%q is no name of an upstream; patterns with a slash belong to tools", p)
		case p == "" || len(c.names) == 0 || slices.ContainsFunc(c.names, matches):
		case strings.ContainsAny(p, globs):
			c.warn(at, "%q matches no upstream%s", p, Suggest(p, c.names))
		default:
			c.fail(at, "there is no upstream %q%s", p, Suggest(p, c.names))
		}
	}
}

// globs are the characters that make a name a pattern.
const globs = `*?[\`

// belong reports keys of t that are known, but not for an entry of this kind.
func (c *checker) belong(path, kind string, t reflect.Type) bool {
	ok := true
	for f := range t.Fields() {
		key := f.Tag.Get("yaml")
		types := f.Tag.Get("for")
		if types == "" || slices.Contains(strings.Split(types, ","), kind) || !c.has(path+"."+key) {
			continue
		}
		var own []string
		for g := range t.Fields() {
			if slices.Contains(strings.Split(g.Tag.Get("for"), ","), kind) && g.Tag.Get("alias") == "" {
				own = append(own, g.Tag.Get("yaml"))
			}
		}
		hint := "it has none of its own"
		if len(own) > 0 {
			hint = "it has " + strings.Join(own, ", ")
		}
		c.fail(path+"."+key, "is no key of %s, but of %s; %s", kind, strings.ReplaceAll(types, ",", " and "), hint)
		ok = false
	}
	return ok
}

// once reports a value that is given in two ways, or not at all.
func (c *checker) once(path, what string, keys ...string) bool {
	var given []string
	for _, k := range keys {
		if c.has(path + "." + k) {
			given = append(given, k)
		}
	}
	switch len(given) {
	case 1:
		return true
	case 0:
		c.fail(path, "needs %s", what)
	default:
		c.fail(path+"."+given[1], "says the same as %s; keep one of them", given[0])
	}
	return false
}

func (c *checker) spendLimit(path string, d *policyDoc, r *policy.Rule) {
	if !c.once(path, "max_usd", "max_usd", "max") {
		return
	}
	if d.Max != nil {
		c.warn(path+".max", "is the old form of max_usd: %s", strings.TrimPrefix(policy.Micros(*d.Max).String(), "$"))
		d.MaxUSD = d.Max
	}
	r.MaxUSD = policy.Micros(*d.MaxUSD)
}

func (c *checker) rateLimit(path string, d *policyDoc, r *policy.Rule) {
	if d.MaxPerMinute != nil {
		if c.once(path, "max_calls", "max_calls", "max", "max_per_minute") && c.once(path, "a window", "window_seconds", "window", "max_per_minute") {
			c.warn(path+".max_per_minute", "is the old form of max_calls: %d, window: 1m", *d.MaxPerMinute)
			r.MaxCalls, r.Window = int64(*d.MaxPerMinute), time.Minute
		}
		return
	}
	if !c.once(path, "max_calls", "max_calls", "max") || !c.once(path, "window_seconds or window", "window_seconds", "window") {
		return
	}
	if d.Max != nil {
		calls := int64(*d.Max) / int64(policy.USD)
		if int64(*d.Max)%int64(policy.USD) != 0 {
			c.fail(path+".max", "must be a whole number of calls")
		}
		c.warn(path+".max", "is the old form of max_calls: %d", calls)
		r.MaxCalls = calls
	} else {
		r.MaxCalls = int64(*d.MaxCalls)
	}
	if d.Window != nil {
		r.Window = time.Duration(*d.Window)
	} else {
		r.Window = time.Duration(*d.WindowSeconds)
	}
}

// The words of remember.
const (
	rememberCall    = "call"
	rememberSession = "session"
)

func (c *checker) approval(path string, d *policyDoc, r *policy.Rule) {
	if d.Timeout != nil {
		if r.Timeout = time.Duration(*d.Timeout); r.Timeout == 0 {
			c.fail(path+".timeout", "must be longer than 0: nobody could answer")
		}
	}
	known := oneOf(rememberCall, rememberSession)
	for i, word := range d.Remember {
		if err := known(word); err != nil {
			c.fail(fmt.Sprintf("%s.remember[%d]", path, i), "%v", err)
		}
	}
	if c.has(path+".remember") && !slices.Contains(d.Remember, rememberCall) {
		c.fail(path+".remember", "needs call: a person must be able to allow one call and no more")
	}
	r.Once = c.has(path+".remember") && !slices.Contains(d.Remember, rememberSession)
}

// What a loop is unless the rule says otherwise.
const (
	loopRepeats = 5
	loopWindow  = time.Minute
)

func (c *checker) loop(d *policyDoc, r *policy.Rule) {
	r.MaxRepeats, r.Window = loopRepeats, loopWindow
	if d.MaxRepeats != nil {
		r.MaxRepeats = int64(*d.MaxRepeats)
	}
	if d.Window != nil {
		r.Window = time.Duration(*d.Window)
	}
}

func (c *checker) timeWindow(path string, d *policyDoc, r *policy.Rule) {
	for _, x := range d.Days {
		r.Days = append(r.Days, time.Weekday(x))
	}
	if c.has(path+".days") && len(d.Days) == 0 {
		c.fail(path+".days", "is empty: the window would never open")
	}
	switch {
	case d.StartHour != nil || d.EndHour != nil:
		if d.AllowedHours != nil {
			c.fail(path+".allowed_hours", "says the same as start_hour and end_hour; keep allowed_hours")
			return
		}
		if d.StartHour == nil || d.EndHour == nil {
			c.fail(path, "has only one of start_hour and end_hour")
			return
		}
		c.warn(path+".start_hour", `start_hour and end_hour are the old form of allowed_hours: {start: "%02d:%02d", end: "%02d:%02d"}`,
			*d.StartHour/60, *d.StartHour%60, *d.EndHour/60, *d.EndHour%60)
		r.Hours = &policy.Hours{Start: int(*d.StartHour), End: int(*d.EndHour)}
	case d.AllowedHours != nil:
		if !c.has(path+".allowed_hours.start") || !c.has(path+".allowed_hours.end") {
			c.fail(path+".allowed_hours", "needs start and end")
			return
		}
		r.Hours = &policy.Hours{Start: int(d.AllowedHours.Start), End: int(d.AllowedHours.End)}
	case !c.has(path + ".days"):
		c.fail(path, "needs allowed_hours or days")
	}
}
