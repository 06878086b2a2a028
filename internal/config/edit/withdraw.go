package edit

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/haldir-mcp/haldir/internal/config"
)

// withdrawal removes an upstream with the policies, costs and scopes that are about it alone,
// and takes it out of those that are about others as well: while a policy names it in upstreams,
// the config does not load without it.
type withdrawal struct {
	name string
	was  []byte // what this text has already is not removed but the upstream itself, and what it has not goes along; nil for no text
	o    Options
}

// RemoveUpstream is [Remove] of an upstream with the policies, costs and scopes that are about
// it alone. Result.IDs names them. Those that are about others as well go on without it.
func RemoveUpstream(path, name string, o Options) (Result, error) {
	return rewrite(&withdrawal{name: name, o: o}, path, o)
}

// RemoveUpstreamFrom is [RemoveUpstream] for the text of a file, of which nothing is read or
// written. Policies, costs and scopes that the text was has as well stay; comments and lists
// that it has not go with what they were for.
func RemoveUpstreamFrom(before []byte, path, name string, was []byte) (Result, error) {
	return (&withdrawal{name: name, was: was}).apply(path, before)
}

// apply removes the last entry of each list first, so that the numbers of the others stay.
func (w *withdrawal) apply(path string, before []byte) (Result, error) {
	r := Result{Before: before}
	cfg, err := config.Parse(before, path)
	if err != nil {
		return r, err
	}
	if _, err := (&change{list: Upstreams, remove: w.name}).find(cfg); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	old := cfg
	var places []string
	text, shared, err := w.share(path, before, &places)
	if err != nil {
		return r, err
	}
	if cfg, err = config.Parse(text, path); err != nil {
		return r, err
	}
	numbers := map[List][]int{}
	for _, list := range []List{Scopes, Costs, Policies} {
		if numbers[list], err = w.about(path, text, list, cfg); err != nil {
			return r, err
		}
	}
	gone, err := takeOut(path, text, numbers, w.was, w.o)
	if err != nil {
		return r, err
	}
	last := &change{list: Upstreams, remove: w.name, was: w.was, o: w.o}
	one, err := last.apply(path, gone.text)
	if err != nil {
		return r, others(last, path, before, append(places, gone.places...), err)
	}
	one.Before, one.Old, one.IDs = before, old, gone.ids
	one.Notes = slices.Concat(one.Notes, gone.notes, shared)
	one.Notes = append(one.Notes, renamed(old, one.New, numbers[Policies]...)...)
	return one, nil
}

// takenOut is a text that entries have gone from.
type takenOut struct {
	text        []byte
	cfg         *config.Config
	ids, places []string // of those entries
	notes       []string
}

// takeOut removes policies, costs and scopes by their numbers, in ascending order: the last of
// each list first, so that the numbers of the others stay.
func takeOut(path string, text []byte, numbers map[List][]int, was []byte, o Options) (out takenOut, err error) {
	cfg, err := config.Parse(text, path)
	if err != nil {
		return out, err
	}
	out.text, out.cfg = text, cfg
	for _, list := range []List{Scopes, Costs, Policies} {
		for _, i := range slices.Backward(numbers[list]) {
			c := &change{list: list, remove: strconv.Itoa(i), was: was, o: o}
			id := fmt.Sprintf("%s[%d]", list, i)
			out.places = append(out.places, id)
			if list == Policies {
				c.remove, id = out.cfg.Engine.Rules()[i], cfg.Engine.Rules()[i]
			}
			one, err := c.apply(path, out.text)
			if err != nil {
				return out, err
			}
			out.text, out.cfg, out.ids = one.After, one.New, append(out.ids, id)
			if one.above > 0 { // by another number once all are gone
				out.notes = append(out.notes, fmt.Sprintf("the comment above %s stays; remove it if it was about this %s", id, list.one()))
			}
		}
	}
	slices.Reverse(out.ids)
	slices.Reverse(out.notes)
	return out, nil
}

// Pick says which policies, costs and scopes of a config are meant: their numbers, in ascending
// order. It may be asked more than once, as the file may change meanwhile.
type Pick func(*config.Config) (map[List][]int, error)

// RemoveAll removes the entries that pick says, all of them or none. Result.IDs names them.
func RemoveAll(path string, pick Pick, o Options) (Result, error) {
	return rewrite(&removal{pick, o}, path, o)
}

// ByID picks policies by their ids.
func ByID(ids []string) Pick {
	return func(cfg *config.Config) (map[List][]int, error) {
		var numbers []int
		for _, id := range ids {
			i, err := (&change{list: Policies, remove: id}).find(cfg)
			if err != nil {
				return nil, err
			}
			numbers = append(numbers, i)
		}
		slices.Sort(numbers)
		return map[List][]int{Policies: slices.Compact(numbers)}, nil
	}
}

// removal is the removal of several entries as one change.
type removal struct {
	pick Pick
	o    Options
}

func (c *removal) apply(path string, before []byte) (Result, error) {
	r := Result{Before: before, Old: config.Empty()}
	var err error
	if before != nil {
		if r.Old, err = config.Parse(before, path); err != nil {
			return r, err
		}
	}
	numbers, err := c.pick(r.Old)
	if err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	gone, err := takeOut(path, before, numbers, nil, c.o)
	if err != nil {
		return r, err
	}
	r.After, r.New, r.IDs = gone.text, gone.cfg, gone.ids
	r.Notes = append(gone.notes, renamed(r.Old, r.New, numbers[Policies]...)...)
	return r, nil
}

// others is what is wrong without the upstream in the text as it is, but for the places that go
// with it.
func others(last *change, path string, before []byte, gone []string, err error) error {
	_, plain := last.apply(path, before)
	problems, ok := errors.AsType[config.Problems](plain)
	if !ok {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(problems), func(p config.Problem) bool {
		return slices.ContainsFunc(gone, func(place string) bool { return strings.HasPrefix(p.Where, place+".") })
	})
	if len(left) == 0 {
		return err
	}
	return left
}

// share takes the upstream out of the entries that are about others as well, and adds their
// places to those that change.
func (w *withdrawal) share(path string, text []byte, places *[]string) (after []byte, notes []string, err error) {
	cfg, err := config.Parse(text, path)
	if err != nil {
		return nil, nil, err
	}
	for _, list := range []List{Policies, Costs, Scopes} {
		numbers, err := w.among(path, text, list, func(i int) bool { return !w.alone(list, i, cfg) })
		if err != nil {
			return nil, nil, err
		}
		for _, i := range numbers {
			place := fmt.Sprintf("%s[%d]", list, i)
			all, said := w.parts(list, i, cfg), place
			if list == Policies {
				said = cfg.Engine.Rules()[i]
			}
			for _, p := range all {
				var above bool
				if text, above, err = p.cut(path, text); err != nil {
					return nil, nil, fmt.Errorf("%s: %s.%s: %w", path, place, p.key, err)
				}
				if above {
					notes = append(notes, fmt.Sprintf("the comment above %s in %s stays; remove it if it was about that", p.text, said))
				}
			}
			if len(all) == 0 {
				continue
			}
			*places = append(*places, place)
			notes = append(notes, said+" is about others as well, and goes on without it")
			if list == Policies && counts(cfg, i) {
				notes = append(notes, said+" has no id, so that it begins to count anew")
			}
		}
	}
	return text, notes, nil
}

// part is one text in a list of an entry: a name in upstreams, a pattern in tools.
type part struct {
	list   List
	entry  int
	key    string
	number int
	text   string
}

// parts are those of an entry that are about the upstream, the last first. Patterns that concern
// nothing without it stay where the rule would be another one without them: an allow list is
// about the kinds that it names, and a limit without an id is known by what it is about.
func (w *withdrawal) parts(list List, i int, cfg *config.Config) (out []part) {
	var upstreams, tools []string
	switch list {
	case Policies:
		r := cfg.Ruleset.Policies[i]
		if upstreams, tools = r.Upstreams, r.Tools; counts(cfg, i) || r.Type == "allow" && !w.spares(r.Tools) {
			tools = nil
		}
	case Costs:
		tools = cfg.Ruleset.Costs[i].Tools
	case Scopes:
		tools = cfg.Ruleset.Scopes[i].Tools
	case Upstreams:
	}
	for n, t := range slices.Backward(tools) {
		if w.owns(t) {
			out = append(out, part{list, i, "tools", n, t})
		}
	}
	for n, u := range slices.Backward(upstreams) {
		if u == w.name {
			out = append(out, part{list, i, "upstreams", n, u})
		}
	}
	return out
}

// counts reports whether a policy has a counter that is known by what the policy is about.
func counts(cfg *config.Config, i int) bool {
	r := cfg.Ruleset.Policies[i]
	return r.ID == "" && slices.Contains([]string{"spend_limit", "rate_limit", "loop"}, string(r.Type))
}

// spares reports whether patterns are about the same kinds without those of the upstream.
func (w *withdrawal) spares(patterns []string) bool {
	kinds := func(own bool) map[string]bool {
		out := map[string]bool{}
		for _, p := range patterns {
			if own || !w.owns(p) {
				out[kind(p)] = true
			}
		}
		return out
	}
	return len(kinds(true)) == len(kinds(false))
}

// cut takes the part out of a text. above says that a comment stands above it, which stays.
func (p part) cut(path string, text []byte) (after []byte, above bool, err error) {
	o, err := config.ReadOutline(text, path)
	if err != nil {
		return nil, false, err
	}
	s := &surgeon{Outline: o, list: p.list}
	if err := s.look(); err != nil {
		return nil, false, err
	}
	entry := s.entries()[p.entry]
	in := &surgeon{Outline: o, list: List(p.key), eol: lineEnd(o.Text)}
	if err := in.lookIn(entry); err != nil {
		return nil, false, err
	}
	if there := in.entries(); p.number >= len(there) || there[p.number].Value().Text != p.text {
		return nil, false, ErrShape
	}
	w, err := in.remove(p.number)
	if err != nil {
		return nil, false, err
	}
	after = []byte(w.text(o.Text))
	if strings.HasPrefix(string(text), bom) {
		after = append([]byte(bom), after...)
	}
	out, err := config.ReadOutline(after, path)
	if err != nil {
		return nil, false, ErrShape
	}
	// Aliases go on standing for what was there, so that nothing else may have changed.
	less := *in.value
	less.Values = slices.Delete(slices.Clone(less.Values), p.number, p.number+1)
	want := with(o.Root, s.value, with(s.value, entry, with(entry, in.value, &less)))
	if out.Root == nil || !same(want, out.Root) {
		return nil, false, fmt.Errorf("%w; edit the file by hand", ErrAlias)
	}
	return after, w.above > 0, nil
}

// with is a node with another one in the place of one of its values.
func with(n, value, other *config.Node) *config.Node {
	out := *n
	out.Values = slices.Clone(n.Values)
	out.Values[slices.Index(out.Values, value)] = other
	return &out
}

// about lists the numbers of the entries of a list that are about the upstream alone.
func (w *withdrawal) about(path string, text []byte, list List, cfg *config.Config) (numbers []int, err error) {
	return w.among(path, text, list, func(i int) bool { return w.alone(list, i, cfg) })
}

// among lists the numbers of the entries of a list that are meant, but for those that was has.
func (w *withdrawal) among(path string, text []byte, list List, meant func(int) bool) (numbers []int, err error) {
	now, err := entriesOf(path, text, list)
	if err != nil {
		return nil, err
	}
	was, err := entriesOf(path, w.was, list)
	if err != nil {
		return nil, err
	}
	for i, n := range now {
		if meant(i) && !slices.ContainsFunc(was, func(o *config.Node) bool { return same(o, n) }) {
			numbers = append(numbers, i)
		}
	}
	return numbers, nil
}

// entriesOf are the entries of a list, as a text has them.
func entriesOf(path string, text []byte, list List) ([]*config.Node, error) {
	if text == nil {
		return nil, nil
	}
	o, err := config.ReadOutline(text, path)
	if err != nil {
		return nil, err
	}
	s := &surgeon{Outline: o, list: list}
	err = s.look()
	return s.entries(), err
}

// alone reports whether an entry concerns the upstream and no other.
func (w *withdrawal) alone(list List, i int, cfg *config.Config) bool {
	var tools []string
	switch list {
	case Policies:
		r := cfg.Ruleset.Policies[i]
		if len(r.Upstreams) > 0 && !slices.ContainsFunc(r.Upstreams, func(u string) bool { return u != w.name }) {
			return true
		}
		if r.Type == "allow" {
			return false // its tools are what it allows, and it refuses those of all others
		}
		tools = r.Tools
	case Costs:
		tools = cfg.Ruleset.Costs[i].Tools
	case Scopes:
		tools = cfg.Ruleset.Scopes[i].Tools
	case Upstreams:
	}
	return len(tools) > 0 && !slices.ContainsFunc(tools, func(t string) bool { return !w.owns(t) })
}

// owns reports whether a pattern of tools can match those of the upstream only.
func (w *withdrawal) owns(pattern string) bool {
	return strings.HasPrefix(strings.TrimPrefix(pattern, kind(pattern)), w.name+"/")
}

// kind is what a pattern begins with, if it is not about tools.
func kind(pattern string) string {
	for _, k := range []string{"resource:", "prompt:"} {
		if strings.HasPrefix(pattern, k) {
			return k
		}
	}
	return ""
}
