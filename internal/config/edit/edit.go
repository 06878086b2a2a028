// Package edit changes haldir.yaml in place: it adds an entry to a list of the file, or
// removes one, and leaves every other byte as it is.
//
// A change is made to the text, and believed only when it has been read again: the
// result must load, and must be what the file was before but for that one entry. Else
// nothing is written.
//
// The file is replaced at once, under a lock that haldir's own changes share. A person's
// editor does not know the lock: a file that has changed since it was read is read again.
package edit

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/replace"
)

// List is a list of haldir.yaml that can be edited.
type List string

// The lists.
const (
	Policies  List = "policies"
	Upstreams List = "upstreams"
	Costs     List = "costs"
	Scopes    List = "scopes"
)

// one is what an entry of a list is called.
func (l List) one() string {
	return map[List]string{Policies: "policy", Upstreams: "upstream", Costs: "cost", Scopes: "scope"}[l]
}

// Why a change is refused. A config that would not load after it is refused with the
// [config.Problems] it would have.
var (
	ErrNotFound = errors.New("is not in the config")
	ErrForbids  = errors.New("must not be set from here")
	ErrChanged  = replace.ErrChanged
	ErrOther    = errors.New("is not the file that the change is for; nothing was written")
	ErrShape    = errors.New("the file is written in a way that haldir cannot edit there; edit it by hand")
	ErrAlias    = errors.New("other parts of the file stand for the same text")
)

// Options are how a change is made.
type Options struct {
	DryRun bool   // nothing is written
	Source string // the file the entry is from; "" if places in it mean nothing to anybody

	// Expect is the SHA-256 of the only text that may be changed, zero for no file: every
	// other is refused with [ErrOther]. Nil takes any.
	Expect *[sha256.Size]byte

	// Known are entries as haldir writes them, with comments, such as those of packs. Where one is
	// removed that has the id or the values of one of them, the lines of its comments go with it if
	// they stand right above it, and so does a list that is empty then and about which a person has
	// written nothing.
	Known []Entry

	// NoCommands refuses an upstream that is a program to start, and NoReferences one
	// that refers to variables, files or secrets of this machine. Both are for entries of
	// somebody who is not at it.
	NoCommands, NoReferences bool
}

// Result is what a change has made, or would make.
type Result struct {
	Path          string   // of the file, links followed
	ID            string   // of the policy, the name of the upstream, else its place, such as costs[0]
	IDs           []string // of all entries that [AddAll] has added or [RemoveAll] removed, or that [RemoveUpstream] has removed beside the upstream
	Entry         string   // as it was written, or has stood there
	Before, After []byte   // the text of the file; Before is nil if there was none
	Old, New      *config.Config
	Notes         []string // what a person should know

	above int // the line of a comment that stood above what was removed
}

// change is one edit. It is made anew on every text it is given.
type change struct {
	list   List
	entry  *entry // nil: one is removed
	remove string
	was    []byte // comments above what is removed go too, and so does its list, if this text has not got them; nil for no text
	o      Options
}

// Add adds an entry, one mapping in YAML or JSON as the list has them, behind those
// that are there. A file that is not there is made.
func Add(path string, list List, text []byte, o Options) (Result, error) {
	e, err := readEntry(text, list, o)
	if err != nil {
		return Result{}, err
	}
	return rewrite(&change{list: list, entry: e, o: o}, path, o)
}

// Entry is something to add to a list.
type Entry struct {
	List List
	Text []byte // one mapping, as the list has them
}

// AddAll adds entries in their order, each as [Add] does, all of them or none.
func AddAll(path string, entries []Entry, o Options) (Result, error) {
	var all batch
	for _, e := range entries {
		read, err := readEntry(e.Text, e.List, o)
		if err != nil {
			return Result{}, err
		}
		all = append(all, &change{list: e.List, entry: read, o: o})
	}
	return rewrite(all, path, o)
}

// batch is several changes that are made as one.
type batch []*change

// apply makes the changes to a text, each to what the one before has made of it.
func (b batch) apply(path string, before []byte) (r Result, err error) {
	for i, c := range b {
		text := before
		if i > 0 {
			text = r.After
		}
		one, err := c.apply(path, text)
		if err != nil {
			return Result{Before: before}, err
		}
		if i > 0 {
			one.Before, one.Old = before, r.Old
		}
		one.IDs, one.Notes = append(r.IDs, one.ID), append(r.Notes, one.Notes...)
		r = one
	}
	return r, nil
}

// AddTo is [Add] for the text of a file, of which nothing is read or written; nil is that of
// none.
func AddTo(before []byte, path string, list List, text []byte, o Options) (Result, error) {
	e, err := readEntry(text, list, o)
	if err != nil {
		return Result{}, err
	}
	return (&change{list: list, entry: e, o: o}).apply(path, before)
}

// Remove removes a policy by its id, as [policy.Engine.Rules] lists them, an upstream
// by its name, a cost or a scope by its number from 0. Comments above it stay.
func Remove(path string, list List, id string, o Options) (Result, error) {
	return rewrite(&change{list: list, remove: id, o: o}, path, o)
}

// RemoveFrom is [Remove] for the text of a file, of which nothing is read or written. What the
// text was has not got goes as well: comments right above the entry, and the list if it was the
// only one.
func RemoveFrom(before []byte, path string, list List, id string, was []byte) (Result, error) {
	return (&change{list: list, remove: id, was: was}).apply(path, before)
}

// apply makes the change to a text.
func (c *change) apply(path string, before []byte) (r Result, err error) {
	r.Before = before
	if before != nil {
		if r.Old, err = config.Parse(before, path); err != nil && c.entry == nil {
			return r, err // its entries have no ids yet
		}
	}
	o, err := config.ReadOutline(before, path)
	if err != nil {
		return r, err
	}
	s := &surgeon{Outline: o, list: c.list, eol: lineEnd(o.Text), bom: strings.HasPrefix(string(before), bom)}
	if err := s.look(); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	if c.entry != nil {
		return r, c.add(path, s, &r)
	}
	return r, c.cut(path, s, &r)
}

func (c *change) add(path string, s *surgeon, r *Result) (err error) {
	// The first way that turns out as it is meant is the one: a text may have to be quoted
	// that looks as if it had not.
	var first error
	for _, safe := range []bool{false, true} {
		var way *way
		if way, err = s.add(c.entry, safe); err != nil {
			break
		}
		if err = c.judge(path, s, way, r); err == nil {
			break
		}
		if first == nil {
			first = err
		}
	}
	if first != nil && err != nil {
		return first
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	n := len(s.entries())
	switch c.list {
	case Policies:
		r.ID = r.New.Engine.Rules()[n]
	case Upstreams:
		r.ID = r.New.Upstreams[n].Name
	case Costs, Scopes:
		r.ID = fmt.Sprintf("%s[%d]", c.list, n)
	}
	if c.list == Upstreams {
		r.Notes = append(r.Notes, exposed(r.New.Upstreams[n])...)
	}
	for _, w := range r.New.Warnings {
		if key, own := strings.CutPrefix(w.Where, fmt.Sprintf("%s[%d]", c.list, n)); own {
			r.Notes = append(r.Notes, strings.TrimPrefix(key, ".")+": "+w.Message)
		}
	}
	return nil
}

func (c *change) cut(path string, s *surgeon, r *Result) error {
	i, err := c.find(r.Old)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	r.ID = c.remove
	if c.was == nil {
		s.was = c.known(s.entries()[i])
	} else if s.was, err = c.less(path, s.Text); err != nil {
		return err
	}
	way, err := s.remove(i)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := c.judge(path, s, way, r); err != nil {
		return err
	}
	if err := c.named(path, r.New); err != nil {
		return err
	}
	e := s.entries()[i]
	r.Entry = s.Text[e.Start:e.End]
	if r.above = way.above; r.above > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("the comment above it, in line %d, stays; remove it if it was about this %s", way.above, c.list.one()))
	}
	if c.list == Policies {
		r.Notes = append(r.Notes, renamed(r.Old, r.New, i)...)
	}
	return nil
}

// named reports policies that name the upstream which was the last. Beside others config
// finds them; without any, which upstreams there are may be said elsewhere.
func (c *change) named(path string, cfg *config.Config) error {
	if c.list != Upstreams || len(cfg.Upstreams) > 0 {
		return nil
	}
	var all config.Problems
	for i, r := range cfg.Ruleset.Policies {
		if j := slices.Index(r.Upstreams, c.remove); j >= 0 {
			all = append(all, config.Problem{File: path, Where: fmt.Sprintf("policies[%d].upstreams[%d]", i, j), Message: fmt.Sprintf("there would be no upstream %q", c.remove)})
		}
	}
	if all == nil {
		return nil
	}
	return all
}

// less is what a text has that was has not.
func (c *change) less(path, text string) (*less, error) {
	o, err := config.ReadOutline(c.was, path)
	if err != nil {
		return nil, err
	}
	l := &less{comments: map[string]int{}, list: o.Root == nil || o.Root.Find(string(c.list)) == nil}
	for line := range strings.Lines(text) {
		l.comments[strings.TrimSpace(line)]++
	}
	for line := range strings.Lines(o.Text) {
		l.comments[strings.TrimSpace(line)]--
	}
	return l, nil
}

// known is what goes with an entry that haldir has written; nil for another one. Several packs may
// have one of that id.
func (c *change) known(n *config.Node) (out *less) {
	for _, k := range c.o.Known {
		if k.List != c.list {
			continue
		}
		e, err := readEntry(k.Text, k.List, Options{})
		if err != nil {
			continue // it cannot be what was added
		}
		if id := e.root.Find("id"); !same(e.root, n) && (id == nil || id.Text != c.remove) {
			continue
		}
		if out == nil {
			out = &less{comments: map[string]int{}, list: true, cautious: true}
		}
		for line := range strings.Lines(string(k.Text)) {
			out.comments[strings.TrimSpace(line)]++
		}
	}
	return out
}

// find returns the number of the entry that is to be removed.
func (c *change) find(cfg *config.Config) (int, error) {
	var known []string
	if cfg != nil {
		switch c.list {
		case Policies:
			known = cfg.Engine.Rules()
		case Upstreams:
			for _, u := range cfg.Upstreams {
				known = append(known, u.Name)
			}
		case Costs:
			known = numbers(len(cfg.Ruleset.Costs))
		case Scopes:
			known = numbers(len(cfg.Ruleset.Scopes))
		}
	}
	i := slices.Index(known, c.remove)
	if i < 0 {
		hint := "; it has none"
		if len(known) > 0 {
			hint = config.Suggest(c.remove, known)
		}
		return 0, fmt.Errorf("the %s %q %w%s", c.list.one(), c.remove, ErrNotFound, hint)
	}
	return i, nil
}

func numbers(n int) (out []string) {
	for i := range n {
		out = append(out, strconv.Itoa(i))
	}
	return out
}

// renamed tells of policies that have another id now, since theirs is their number. Their
// counters do not go by it.
func renamed(old, now *config.Config, removed ...int) (notes []string) {
	var before []string
	for i, id := range old.Engine.Rules() {
		if !slices.Contains(removed, i) {
			before = append(before, id)
		}
	}
	for i, id := range now.Engine.Rules() {
		if id != before[i] {
			notes = append(notes, fmt.Sprintf("%s is called %s now", before[i], id))
		}
	}
	return notes
}
