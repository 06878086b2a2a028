package adopt

import (
	"fmt"
	"slices"
	"strings"

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
}

// withheld is the id of the policy that denies what a client did not offer.
func withheld(upstream string) string { return "withheld-" + upstream }

// held are the rules that an upstream takes along, also one that haldir.yaml has already:
// another client may have held more of its tools.
func (p *Plan) held(u *Upstream) (out []rule) {
	r := rule{kind: policy.TypeDeny, id: withheld(u.Name), says: "the tools that a client does not offer are denied by the policy"}
	for _, s := range u.From {
		for _, t := range s.Withheld {
			r.add(u.Name + "/" + t)
		}
	}
	return append(out, r)
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
		var patterns []string
		for _, t := range r.tools {
			patterns = append(patterns, scalar(t))
		}
		entry := fmt.Sprintf("{type: %s, id: %s, tools: [%s]}", r.kind, r.id, strings.Join(patterns, ", "))
		added, err := edit.AddTo(text, p.o.Config, edit.Policies, []byte(entry), edit.Options{})
		if err != nil {
			return nil, err
		}
		text = added.After
		p.Policies = append(p.Policies, r.id)
		p.Notes = append(p.Notes, fmt.Sprintf("%s: %s %s", u.Name, r.says, r.id))
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
