package edit

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/haldir-mcp/haldir/internal/config"
)

// judge reads the result of a way: it must load, and differ from the text before by the
// one entry only.
func (c *change) judge(path string, s *surgeon, w *way, r *Result) error {
	text := w.text(s.Text)
	after := []byte(text)
	if s.bom {
		after = append([]byte(bom), after...)
	}
	out, err := config.ReadOutline(after, path)
	if err != nil { // the fault is not the person's
		return fmt.Errorf("%s: %w", path, ErrShape)
	}
	// What is said of the entry is said of what stands there, so first of all that must be it.
	fresh, err := c.meant(s, w, out)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	cfg, err := config.Parse(after, path)
	if err != nil {
		return c.explain(err, s, w, &written{out, fresh})
	}
	r.After, r.New = after, cfg
	if fresh != nil {
		r.Entry = out.Text[fresh.Start:fresh.End]
	}
	return nil
}

// meant compares the values before and after. It returns the new one.
func (c *change) meant(s *surgeon, w *way, out *config.Outline) (fresh *config.Node, err error) {
	if out.Root == nil || out.Root.Kind != config.NodeMapping {
		return nil, ErrShape
	}
	before := map[string]*config.Node{}
	if s.Root != nil {
		for i, k := range s.Root.Keys {
			before[k.Text] = s.Root.Values[i]
		}
	}
	if w.version { // which a new file gets
		before["version"] = &config.Node{Kind: config.NodeOther, Text: "1"}
	}
	list := out.Root.Find(string(c.list))
	if list == nil && w.list {
		list = &config.Node{Kind: config.NodeList}
	}
	if list == nil || list.Kind != config.NodeList {
		return nil, ErrShape
	}
	for i, k := range out.Root.Keys {
		if k.Text == string(c.list) {
			continue
		}
		old, ok := before[k.Text]
		if !ok {
			return nil, ErrShape
		}
		if !same(old, out.Root.Values[i]) {
			line, _ := s.Place(old.Start)
			return nil, fmt.Errorf("%w: %s, in line %d, would change as well; edit the file by hand", ErrAlias, k.Text, line)
		}
		delete(before, k.Text)
	}
	delete(before, string(c.list))
	if len(before) > 0 {
		return nil, ErrShape
	}
	old := slices.Clone(s.entries())
	now := list.Values
	if c.entry != nil {
		if len(now) != len(old)+1 || !same(now[len(old)], c.entry.root) {
			return nil, ErrShape
		}
		fresh, now = now[len(old)], now[:len(old)]
	} else {
		old = slices.Delete(old, w.removed, w.removed+1)
	}
	if !slices.EqualFunc(old, now, same) {
		return nil, ErrShape
	}
	return fresh, nil
}

// written is the new entry as it stands in the result.
type written struct {
	*config.Outline
	root *config.Node
}

// explain gives the problems of a result the places that a person knows: those of their
// own entry, and those in the file as it is.
func (c *change) explain(err error, s *surgeon, w *way, at *written) error {
	problems, ok := errors.AsType[config.Problems](err)
	if !ok {
		return err
	}
	where := fmt.Sprintf("%s[%d]", c.list, len(s.entries()))
	out := slices.Clone(problems)
	for i, p := range out {
		rest, own := strings.CutPrefix(p.Where, where)
		switch {
		case own && c.entry != nil:
			p.File, p.Where = c.o.Source, strings.TrimPrefix(rest, ".")
			if p.File == "" {
				p.File = "the " + c.list.one()
			}
			out[i] = c.entry.problem(c.entry.place(at, at.Offset(p.Line, p.Column)), c.o, p)
		case p.Line > 0:
			out[i].Line, out[i].Column = s.Place(w.before(at.Offset(p.Line, p.Column)))
		}
	}
	return out
}

// place finds the place in the entry of an offset in what was made of it: both have the
// same values in the same order.
func (e *entry) place(at *written, offset int) int {
	from, to := nodes(at.root), nodes(e.root)
	best := 0
	for i, n := range from {
		if n.Start == offset {
			return to[i].Start
		}
		if n.Start < offset && n.Kind == config.NodeText {
			best = i
		}
	}
	// Inside a text, as far as that is written in the same way.
	n, m := from[best], to[best]
	raw, own := at.Text[n.Start:n.End], e.Text[m.Start:m.End]
	if d := offset - n.Start; n.Start < offset && offset <= n.End && m.Kind == config.NodeText {
		inside := func(s string) int { return len(s) - len(strings.TrimLeft(s, `"'`)) }
		if strings.Trim(raw, `"'`) == strings.Trim(own, `"'`) {
			return m.Start + max(0, min(d-inside(raw)+inside(own), len(own)))
		}
	}
	return m.Start
}
