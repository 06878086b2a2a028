package suggest

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/haldir-mcp/haldir/policy"
)

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

// count writes a number as people read it: 12,345.
func count(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func counted(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return count(n) + " " + what + "s"
}

// scalar writes a text as YAML in double quotes, whose escapes are those of Go. It
// is ASCII, so that nothing in it can be taken for something else.
func scalar(text string) string { return strconv.QuoteToASCII(text) }

// list writes texts in one line.
func list(texts []string) string {
	out := make([]string, len(texts))
	for i, t := range texts {
		out[i] = scalar(t)
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// remark makes a text safe for a comment.
func remark(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

func usd(m policy.Micros) string { return strings.TrimPrefix(m.String(), "$") }

// YAML writes the suggestion as a config without upstreams.
func (s *Suggestion) YAML() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	whose := "every agent"
	if s.o.Agent != "" {
		whose = "the agent " + remark(s.o.Agent)
	}
	say("# Made by haldir suggest at %s, for %s,", s.o.Now.UTC().Format(time.RFC3339), whose)
	if s.calls == 0 {
		say("# of no calls at all: it allows nothing.")
	} else {
		say("# of %s in %s from %s to %s.", counted(s.calls, "call"), counted(uint64(s.sessions), "session"), //nolint:gosec // a length
			s.since.UTC().Format(time.RFC3339), s.until.UTC().Format(time.RFC3339))
	}
	say("# What was called stays allowed, with limits half as high again as what was needed;")
	say("# all else is refused. Read it before you use it: what an agent has done so far is")
	say("# not all that it will need, nor all of it what it should do.")
	say("version: 1")
	s.costs(say)
	say("policies:")
	for _, p := range s.Policies {
		s.policy(say, p)
	}
	s.rest(say)
	return b.String()
}

func (s *Suggestion) costs(say func(string, ...any)) {
	if len(s.o.Costs) > 0 {
		say("costs: # as in your config")
	}
	for _, c := range s.o.Costs {
		line := "  - {tools: " + list(c.Tools)
		if c.HasFromArgument {
			line += ", from_argument: " + scalar(c.FromArgument)
		} else {
			line += ", usd: " + usd(c.USD)
		}
		if c.FromResult != "" {
			line += ", from_result: " + scalar(c.FromResult)
		}
		say("%s}", line)
	}
	if len(s.o.Scopes) > 0 {
		say("scopes: # as in your config")
	}
	for _, c := range s.o.Scopes {
		say("  - {tools: %s, require: %s}", list(c.Tools), list(c.Require))
	}
}

func (s *Suggestion) policy(say func(string, ...any), p policy.Rule) {
	tail := ""
	if len(p.Agents) > 0 {
		tail = ", agents: " + list(p.Agents)
	}
	if note := s.notes[p.ID]; note != "" {
		say("  # %s:", note)
	}
	switch {
	case p.Type == policy.TypeAllow:
		s.allow(say, p)
	case p.ID == ruleNoResources:
		say("  # No resource was read.")
		say("  - {type: deny, id: %s, tools: %s%s}", p.ID, list(p.Tools), tail)
	case p.ID == ruleNoPrompts:
		say("  # No prompt was asked for.")
		say("  - {type: deny, id: %s, tools: %s%s}", p.ID, list(p.Tools), tail)
	case p.Type == policy.TypeRateLimit:
		say("  - {type: rate_limit, id: %s, max_calls: %d, window: 1h, per: tool, tools: %s%s}", p.ID, p.MaxCalls, list(p.Tools), tail)
	case p.Type == policy.TypeSpendLimit:
		say("  - {type: spend_limit, id: %s, max_usd: %s, per: %s%s}", p.ID, usd(p.MaxUSD), p.Per, tail)
	}
}

func (s *Suggestion) allow(say func(string, ...any), p policy.Rule) {
	say("  - type: allow")
	say("    id: %s", p.ID)
	if len(p.Agents) > 0 {
		say("    agents: %s", list(p.Agents))
	}
	if len(p.Tools) == 0 {
		say("    tools: []")
		return
	}
	say("    tools:")
	said := map[string]bool{}
	for _, u := range s.used {
		pattern := s.pattern(u.ID)
		if said[pattern] {
			continue
		}
		said[pattern] = true
		say("      - %s # %s", scalar(pattern), remark(s.about(u, pattern)))
	}
}

// about says what is known of a line of the allow list.
func (s *Suggestion) about(u Use, pattern string) string {
	if many := pattern != quoted(u.ID); many {
		n := Use{Last: u.Last, PeakHour: u.PeakHour}
		different := uint64(0)
		for _, o := range s.used {
			if s.pattern(o.ID) == pattern {
				different++
				n.Calls += o.Calls
				n.Failed += o.Failed
				n.Denied += o.Denied
				n.Spent += o.Spent
				if o.Last.After(n.Last) {
					n.Last = o.Last
				}
			}
		}
		return counted(different, "resource") + ", " + facts(n)
	}
	return facts(u)
}

func facts(u Use) string {
	parts := []string{
		counted(u.Calls, "call"), "last " + u.Last.UTC().Format(time.DateOnly), "at most " + count(uint64(max(u.PeakHour, 0))) + " an hour",
	}
	if u.Spent > 0 {
		parts = append(parts, u.Spent.String())
	}
	switch {
	case u.Failed == u.Calls:
		parts = append(parts, "every one failed: is it needed?")
	case u.Failed > 0:
		parts = append(parts, count(u.Failed)+" failed")
	}
	if u.Denied > 0 {
		parts = append(parts, count(u.Denied)+" more refused")
	}
	return strings.Join(parts, ", ")
}

// rest says what was left out, and why.
func (s *Suggestion) rest(say func(string, ...any)) {
	if len(s.refused) > 0 {
		say("# Left out, since every call was refused:")
		for _, u := range s.refused {
			say("#   %s (%s)", remark(u.ID), count(u.Denied))
		}
	}
	if len(s.unnamed) > 0 {
		say("# Left out, since no pattern can name it:")
		for _, id := range s.unnamed {
			say("#   %s", remark(strings.ToValidUTF8(id, "\ufffd")))
		}
	}
	if len(s.unused) > 0 {
		say("# Left out, since nobody called it:")
		for _, id := range s.unused {
			say("#   %s", remark(id))
		}
	}
}
