package edit

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/haldir-mcp/haldir/internal/config"
)

// withdrawal removes an upstream with the policies, costs and scopes that are about it alone:
// while a policy names it in upstreams, the config does not load without it.
type withdrawal struct {
	name string
	was  []byte // what this text has already is not removed but the upstream itself; nil for no text
	o    Options
}

// RemoveUpstream is [Remove] of an upstream with the policies, costs and scopes that are about
// it alone. Result.IDs names them.
func RemoveUpstream(path, name string, o Options) (Result, error) {
	return rewrite(&withdrawal{name: name, o: o}, path, o)
}

// RemoveUpstreamFrom is [RemoveUpstream] for the text of a file, of which nothing is read or
// written. Policies, costs and scopes that the text was has as well stay.
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
	old, text := cfg, before
	var gone, places, notes []string
	var policies []int
	for _, list := range []List{Scopes, Costs, Policies} {
		numbers, err := w.about(path, text, list, cfg)
		if err != nil {
			return r, err
		}
		for _, i := range slices.Backward(numbers) {
			c := &change{list: list, remove: strconv.Itoa(i), o: w.o}
			id := fmt.Sprintf("%s[%d]", list, i)
			places = append(places, id)
			if list == Policies {
				c.remove, id = cfg.Engine.Rules()[i], old.Engine.Rules()[i]
				policies = append(policies, i)
			}
			one, err := c.apply(path, text)
			if err != nil {
				return r, err
			}
			text, cfg = one.After, one.New
			gone = append(gone, id)
			if one.above > 0 { // by another number once all are gone
				notes = append(notes, fmt.Sprintf("the comment above %s stays; remove it if it was about this %s", id, list.one()))
			}
		}
	}
	last := &change{list: Upstreams, remove: w.name, o: w.o}
	one, err := last.apply(path, text)
	if err != nil {
		return r, others(last, path, before, places, err)
	}
	slices.Reverse(gone)
	slices.Reverse(notes)
	one.Before, one.Old, one.IDs = before, old, gone
	one.Notes = append(one.Notes, notes...)
	one.Notes = append(one.Notes, renamed(old, one.New, policies...)...)
	return one, nil
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

// about lists the numbers of the entries of a list that are about the upstream alone.
func (w *withdrawal) about(path string, text []byte, list List, cfg *config.Config) (numbers []int, err error) {
	now, err := entriesOf(path, text, list)
	if err != nil {
		return nil, err
	}
	was, err := entriesOf(path, w.was, list)
	if err != nil {
		return nil, err
	}
	for i, n := range now {
		if w.alone(list, i, cfg) && !slices.ContainsFunc(was, func(o *config.Node) bool { return same(o, n) }) {
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
	for _, kind := range []string{"resource:", "prompt:"} {
		pattern = strings.TrimPrefix(pattern, kind)
	}
	return strings.HasPrefix(pattern, w.name+"/")
}
