package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/haldir-mcp/haldir/internal/config"
)

// quick are the flags by which haldir does without a file. --upstream is one of every
// verb, so that what runs without a file can be looked at, and signed in to, as well.
type quick struct {
	upstreams, deny, allow, rate, cost []string
	spend                              string
}

// servers adds the flag of every verb, rules those of serve.
func (q *quick) servers(f *pflag.FlagSet) {
	f.StringArrayVar(&q.upstreams, "upstream", nil, "a server as NAME=URL or NAME=COMMAND, in place of a config file; may be repeated")
}

func (q *quick) rules(f *pflag.FlagSet) {
	f.StringArrayVar(&q.deny, "deny", nil, "with --upstream: refuse tools that match this pattern; may be repeated")
	f.StringArrayVar(&q.allow, "allow", nil, "with --upstream: refuse all tools but those that match; may be repeated")
	f.StringArrayVar(&q.rate, "rate", nil, "with --upstream: at most so many calls in a window, as 100/1h; may be repeated")
	f.StringArrayVar(&q.cost, "cost", nil, "with --upstream: what calls of matching tools cost, as PATTERN=DOLLARS; may be repeated")
	f.StringVar(&q.spend, "spend", "", "with --upstream: the most that may be spent in a session, in dollars, of what --cost says")
}

// shown reports whether [app.command] has the flags as they are.
func (q *quick) shown() bool {
	return !slices.ContainsFunc(q.upstreams, func(u string) bool { return shownUpstream(u) != u })
}

// config is what the flags say, nil if there are none. They are read by the same
// reader as a file, so that they mean the same.
func (q *quick) config(named bool) (*config.Config, error) {
	if len(q.upstreams) == 0 {
		if len(q.deny)+len(q.allow)+len(q.rate)+len(q.cost) > 0 || q.spend != "" {
			return nil, usage("--deny, --allow, --rate, --cost and --spend go with --upstream; a config file has policies")
		}
		return nil, nil //nolint:nilnil // there is none, and that is no error
	}
	if named {
		return nil, usage("--upstream stands in place of a config file, and --config names one; keep one of them")
	}
	var b strings.Builder
	b.WriteString("version: 1\nupstreams:\n")
	for _, u := range q.upstreams {
		name, what, ok := strings.Cut(u, "=")
		if !ok || name == "" || strings.TrimSpace(what) == "" {
			return nil, usage("--upstream %q: write it as NAME=URL or NAME=COMMAND", u)
		}
		words := strings.Fields(what)
		if what = words[0]; len(words) == 1 && strings.Contains(what, "://") {
			fmt.Fprintf(&b, "  - {name: %q, url: %q, auth: {type: oauth}}\n", name, what) // used only if it asks for it
			continue
		}
		fmt.Fprintf(&b, "  - {name: %q, command: %q, args: [%s]}\n", name, words[0], quoted(words[1:]))
	}
	for i, c := range q.cost {
		if i == 0 {
			b.WriteString("costs:\n")
		}
		pattern, usd, ok := strings.Cut(c, "=")
		if !ok {
			return nil, usage("--cost %q: write it as PATTERN=DOLLARS, such as 'search_*=0.01'", c)
		}
		fmt.Fprintf(&b, "  - {tools: [%q], usd: %q}\n", pattern, usd)
	}
	var policies strings.Builder
	if len(q.deny) > 0 {
		fmt.Fprintf(&policies, "  - {type: deny, tools: [%s]}\n", quoted(q.deny))
	}
	if len(q.allow) > 0 {
		fmt.Fprintf(&policies, "  - {type: allow, tools: [%s]}\n", quoted(q.allow))
	}
	for _, r := range q.rate {
		calls, window, ok := strings.Cut(r, "/")
		if !ok {
			return nil, usage("--rate %q: write it as calls/window, such as 100/1h", r)
		}
		fmt.Fprintf(&policies, "  - {type: rate_limit, max_calls: %s, window: %q}\n", calls, window)
	}
	if q.spend != "" {
		fmt.Fprintf(&policies, "  - {type: spend_limit, max_usd: %q}\n", q.spend)
	}
	if policies.Len() > 0 {
		b.WriteString("policies:\n" + policies.String())
	}
	cfg, err := config.Parse([]byte(b.String()), "the flags")
	if err != nil {
		return nil, &exit{code: exitUsage, err: err}
	}
	cfg.Path = ""
	return cfg, nil
}

// quoted lists texts as YAML does between brackets.
func quoted(texts []string) string {
	var out []string
	for _, t := range texts {
		out = append(out, fmt.Sprintf("%q", t))
	}
	return strings.Join(out, ", ")
}
