package config

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/haldir-mcp/haldir/policy"
)

// Loosened says in words what another config lets through that this one does not, or
// may: what is not plainly stricter counts as looser. It is empty if a person need not
// confirm the change. A new command counts, since it is a program that runs.
func Loosened(old, now *Config) (why []string) {
	add := func(format string, args ...any) { why = append(why, fmt.Sprintf(format, args...)) }
	settingsChanged(old, now, add)
	sessions(old.Session, now.Session, add)
	upstreamsChanged(old.Upstreams, now.Upstreams, add)
	for i, c := range old.Ruleset.Costs {
		if i >= len(now.Ruleset.Costs) || !reflect.DeepEqual(c, now.Ruleset.Costs[i]) {
			add("costs[%d] is not as it was", i)
			break
		}
	}
	if !reflect.DeepEqual(old.Ruleset.Scopes, now.Ruleset.Scopes) {
		add("the scopes that calls require have changed")
	}
	rules(old.Ruleset.Policies, now.Ruleset.Policies, add)
	return why
}

// settingsChanged looks at what a person decides about rules and records themselves.
func settingsChanged(old, now *Config, add adder) {
	if now.file["reload"] == "auto" && old.file["reload"] != "auto" {
		add("changes of the config would not wait for a person any more (reload: auto)")
	}
	if now.file["audit.arguments"] != old.file["audit.arguments"] {
		add("the audit keeps another part of arguments")
	}
	switch was, is := kept(old), kept(now); {
	case is > 0 && was == 0:
		add("the audit would not keep records for ever any more (audit.retain)")
	case is > 0 && is < was:
		add("the audit keeps records for a shorter time")
	}
}

// kept is for how long a config has the audit keep records, 0 for ever.
func kept(c *Config) time.Duration {
	text, _ := c.file["audit.retain"].(string)
	d, err := time.ParseDuration(text)
	if err != nil { // it is not set
		return 0
	}
	return d
}

type adder func(format string, args ...any)

func sessions(a, b Session, add adder) {
	if a.Agent != b.Agent {
		add("session.agent_id is another one")
	}
	if b.AllScopes && !a.AllScopes || !b.AllScopes && !a.AllScopes && !within(b.Scopes, a.Scopes) {
		add("session.scopes grants more")
	}
	if a.SpendLimit != nil && (b.SpendLimit == nil || *b.SpendLimit > *a.SpendLimit) {
		add("session.spend_limit is higher")
	}
	if a.TTL > 0 && (b.TTL == 0 || b.TTL > a.TTL) {
		add("session.ttl is longer")
	}
}

func within(some, all []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
}

// strictness orders the words for pins.
var strictness = map[string]int{"warn": 0, "hold": 1, "block": 2}

func upstreamsChanged(old, now []Upstream, add adder) {
	before := map[string]Upstream{}
	for _, u := range old {
		before[u.Name] = u
	}
	for _, u := range now {
		was, known := before[u.Name]
		switch {
		case u.Command != "" && !known:
			add("upstream %s starts a command", u.Name)
		case u.Command != "" && (was.Command != u.Command || was.Cwd != u.Cwd || !slices.Equal(was.Args, u.Args) || !slices.Equal(was.Env, u.Env) || !slices.Equal(was.EnvPass, u.EnvPass)):
			add("upstream %s starts another command", u.Name)
		}
		// Another server may be one of the agent's own, to which tokens would be shown; and
		// under another name rules do not concern it.
		switch {
		case !known && u.Command == "":
			add("upstream %s is a new server", u.Name)
		case known && u.Command == "" && !sameServer(was, u):
			add("upstream %s is another server, or is signed in to otherwise", u.Name)
		}
		if !known {
			continue
		}
		if u.TrustAnnotations && !was.TrustAnnotations {
			add("upstream %s is trusted in what it says of its tools", u.Name)
		}
		if !within(was.DenyRequests, u.DenyRequests) {
			add("upstream %s may ask the client for more", u.Name)
		}
		if strictness[u.Pins] < strictness[was.Pins] {
			add("the pins of upstream %s hold less", u.Name)
		}
	}
}

func sameServer(a, b Upstream) bool {
	return a.URL == b.URL && slices.Equal(a.Headers, b.Headers) && a.Bearer == b.Bearer && reflect.DeepEqual(a.OAuth, b.OAuth) &&
		a.CAFile == b.CAFile && a.CertFile == b.CertFile && a.KeyFile == b.KeyFile
}

// rules compares policies. One that is as it was, or plainly stricter, is found for
// each; what is new only adds to what a call must pass.
func rules(old, now []policy.Rule, add adder) {
	taken := map[int]bool{}
	for i, r := range old {
		if r.Shadow {
			continue // it stopped nothing
		}
		found := -1
		for j := range now {
			if !taken[j] && stricter(r, now[j]) {
				found = j
				break
			}
		}
		if found < 0 {
			name := r.ID
			if name == "" {
				name = fmt.Sprintf("policies[%d]", i)
			}
			add("the %s rule %s is gone, or lets more through", r.Type, name)
			continue
		}
		taken[found] = true
	}
}

// stricter reports whether b refuses at least what a does.
func stricter(a, b policy.Rule) bool {
	if b.Shadow || a.Type != b.Type {
		return false
	}
	same := a
	same.ID, same.Shadow = b.ID, b.Shadow
	if reflect.DeepEqual(same, b) {
		// The id of a limit is the name of its counter: another one forgets what was used.
		return a.ID == b.ID || a.Type != policy.TypeSpendLimit && a.Type != policy.TypeRateLimit && a.Type != policy.TypeLoop
	}
	// A narrower rule concerns less, which lets more through; so does a condition.
	wider := func(a, b []string) bool { return len(b) == 0 || len(a) > 0 && within(a, b) }
	all := func(globs []string) []string {
		if slices.Contains(globs, "*") {
			return nil
		}
		return globs
	}
	if a.When != b.When && b.When != "" || !wider(all(a.Upstreams), all(b.Upstreams)) || !wider(all(a.Agents), all(b.Agents)) {
		return false
	}
	switch a.Type {
	case policy.TypeDeny:
		return wider(a.Tools, b.Tools)
	case policy.TypeAllow: // the list is what passes; with a condition it is judged otherwise
		return a.When == b.When && slices.Equal(a.Upstreams, b.Upstreams) && slices.Equal(a.Agents, b.Agents) && within(b.Tools, a.Tools)
	case policy.TypeSpendLimit:
		same := a
		same.MaxUSD = b.MaxUSD
		return b.MaxUSD <= a.MaxUSD && reflect.DeepEqual(same, b)
	case policy.TypeRateLimit:
		same := a
		same.MaxCalls = b.MaxCalls
		return b.MaxCalls <= a.MaxCalls && reflect.DeepEqual(same, b)
	case policy.TypeApproval:
		same := a
		same.ID, same.Tools, same.Timeout, same.Once, same.When = b.ID, b.Tools, b.Timeout, b.Once, b.When
		return wider(a.Tools, b.Tools) && (b.Once || !a.Once) && cmp.Or(b.Timeout, policy.DefaultTimeout) <= cmp.Or(a.Timeout, policy.DefaultTimeout) && reflect.DeepEqual(same, b)
	case policy.TypeLoop:
		same := a
		same.MaxRepeats = b.MaxRepeats
		return b.MaxRepeats <= a.MaxRepeats && reflect.DeepEqual(same, b)
	case policy.TypeTimeWindow:
	}
	return false
}
