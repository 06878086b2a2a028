package adopt

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/haldir-mcp/haldir/internal/clients"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/policy"
)

// rule is what a client held of an upstream's tools, as a policy.
type rule struct {
	kind  policy.Type
	id    string
	tools []string // patterns
	says  string   // what it is, for people; the id follows
	only  []string // settings of Claude Code that held it in one project alone
}

// withheld is the id of the policy that denies what a client did not offer.
func withheld(upstream string) string { return "withheld-" + upstream }

// held are the rules that an upstream takes along, also one that haldir.yaml has already:
// another client may have held more of its tools.
func (p *Plan) held(u *Upstream) (out []rule) {
	r := rule{kind: policy.TypeDeny, id: withheld(u.Name), says: "the tools that a client does not offer are denied by the policy"}
	for _, s := range u.From {
		for _, t := range s.Withheld {
			r.add(u.Name + "/" + quoted.Replace(t))
		}
	}
	deny := rule{kind: policy.TypeDeny, id: "claude-deny-" + u.Name, says: "what Claude Code's settings deny is denied to every client by the policy"}
	ask := rule{kind: policy.TypeApproval, id: "claude-ask-" + u.Name, says: "what Claude Code's settings ask about is asked for every client by the policy"}
	for _, c := range p.claude {
		to := map[string]*rule{"deny": &deny, "ask": &ask}[c.Kind]
		for _, s := range u.From {
			tools, ok := c.Concerns(s)
			if to == nil || !ok || !plainTools().MatchString(tools) {
				continue
			}
			to.add(u.Name + "/" + strings.ReplaceAll(tools, "_", "?")) // Claude Code has _ for . and / as well
			if c.Dir != "" && c.Dir != s.List.Dir && !slices.Contains(to.only, c.Path) {
				to.only = append(to.only, c.Path)
			}
		}
	}
	return append(out, r, deny, ask)
}

// quoted writes the name of a tool as a pattern that matches it alone.
var quoted = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

// plainTools is what a rule of Claude Code may say of tools so that haldir can say it.
var plainTools = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9_.*-]+$`) })

// uncarried tells what Claude Code holds of the servers that move, and haldir cannot: their
// tools are mcp__haldir__NAME__TOOL there now. Where a rule of another project allowed, Claude
// Code asks again, and there is one for each time that somebody said so there.
func (p *Plan) uncarried() {
	for _, u := range p.Upstreams {
		for _, c := range p.claude {
			carried := c.Kind == "deny" || c.Kind == "ask"
			if !slices.ContainsFunc(u.From, func(s *clients.Server) bool {
				tools, ok := c.Concerns(s)
				return ok && (!carried || !plainTools().MatchString(tools)) && (c.Kind != "allow" || c.Here || c.Dir == s.List.Dir)
			}) {
				continue
			}
			what := map[string]string{"hook": "the hook for", "allow": "the rule that allows", "deny": "the rule that denies", "ask": "the rule that asks about"}[c.Kind]
			p.Notes = append(p.Notes, fmt.Sprintf("%s: %s %s in %s does not match its tools any more, which Claude Code calls mcp__haldir__%s__TOOL now: write it anew", u.Name, what, c.Text, c.Path, u.Name))
		}
		for _, s := range u.From {
			for _, dir := range s.OffIn {
				p.Notes = append(p.Notes, fmt.Sprintf("%s: it is switched off in %s, where haldir offers it now: deny mcp__haldir__%s__* in the settings of that project", u.Name, dir, u.Name))
			}
		}
	}
}

func (r *rule) add(pattern string) {
	if !slices.Contains(r.tools, pattern) {
		r.tools = append(r.tools, pattern)
	}
}

// rules adds to haldir.yaml what an upstream takes along.
func (p *Plan) rules(text []byte, u *Upstream) ([]byte, error) {
	for _, r := range p.held(u) {
		cfg, err := config.Parse(text, p.o.Config)
		if err != nil {
			return nil, err
		}
		if r.id = r.beside(cfg.Ruleset.Policies); len(r.tools) == 0 {
			continue
		}
		entry := fmt.Sprintf("{type: %s, id: %s, tools: %s}", r.kind, r.id, flow(r.tools))
		added, err := edit.AddTo(text, p.o.Config, edit.Policies, []byte(entry), edit.Options{})
		if err != nil {
			return nil, err
		}
		text = added.After
		p.Policies = append(p.Policies, r.id)
		p.Notes = append(p.Notes, fmt.Sprintf("%s: %s %s", u.Name, r.says, r.id))
		for _, path := range r.only {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: what %s says held in that project alone, and by the policy %s it holds everywhere", u.Name, path, r.id))
		}
	}
	return text, nil
}

// beside leaves out what policies that are there say already, and finds an id that is free:
// what a person may have written is not changed.
func (r *rule) beside(there []policy.Rule) string {
	id, taken := r.id, map[string]bool{}
	for _, q := range there {
		taken[q.ID] = true
		if q.Type == r.kind && !q.Shadow && q.When == "" && len(q.Upstreams) == 0 && len(q.Agents) == 0 {
			r.tools = slices.DeleteFunc(r.tools, func(t string) bool { return slices.Contains(q.Tools, t) })
		}
	}
	for n := 2; taken[id]; n++ {
		id = fmt.Sprintf("%s-%d", r.id, n)
	}
	return id
}
