package edit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/haldir-mcp/haldir/internal/config"
)

// entry is what somebody wants to add, as they wrote it.
type entry struct {
	*config.Outline
	root *config.Node
}

// programKeys are the keys of an upstream that is started here.
var programKeys = []string{"command", "args", "env", "env_pass", "cwd", "start", "stop_when_idle"}

func readEntry(text []byte, list List, o Options) (*entry, error) {
	file := o.Source
	if file == "" {
		file = "the " + list.one()
	}
	if json.Valid(text) { // which may be indented by tabs, and has none inside texts
		text = bytes.ReplaceAll(text, []byte("\t"), []byte(" "))
	}
	out, err := config.ReadOutline(text, file)
	if err != nil {
		return nil, err
	}
	e := &entry{out, out.Root}
	problem := func(at int, format string, args ...any) error {
		return config.Problems{e.problem(at, o, config.Problem{File: file, Message: fmt.Sprintf(format, args...)})}
	}
	if e.root == nil || e.root.Value().Kind != config.NodeMapping {
		at := 0
		if e.root != nil {
			at = e.root.Start
		}
		return nil, problem(at, "write the %s as one mapping, such as %s", list.one(), examples[list])
	}
	if list != Upstreams {
		return e, nil
	}
	for i, k := range e.root.Value().Keys {
		if o.NoCommands && slices.Contains(programKeys, k.Text) {
			return nil, fmt.Errorf("the key %s of an upstream %w: a program can be added by a person at this machine only", k.Text, ErrForbids)
		}
		if o.NoReferences && refers(e.root.Value().Values[i]) {
			return nil, fmt.Errorf("the key %s of an upstream %w with a reference such as ${env:NAME}", k.Text, ErrForbids)
		}
	}
	return e, nil
}

// examples show what an entry looks like.
var examples = map[List]string{
	Policies:  "{type: deny, tools: [delete_database]}",
	Upstreams: "{name: docs, url: https://example.com/mcp}",
	Costs:     `{tools: ["search/*"], usd: 0.01}`,
	Scopes:    `{tools: ["*/get_*"], require: [read]}`,
}

// refers reports whether a value may hold a reference, however it is escaped.
func refers(n *config.Node) bool {
	n = n.Value()
	return strings.Contains(n.Text, "${") || slices.ContainsFunc(n.Values, refers)
}

// problem gives a problem the place of an offset in the entry.
func (e *entry) problem(at int, o Options, p config.Problem) config.Problem {
	if p.Line, p.Column = 0, 0; o.Source != "" {
		p.Line, p.Column = e.Place(at)
	}
	return p
}

// comments reports whether there are any.
func (e *entry) comments() bool {
	return slices.ContainsFunc(e.Marks, func(m config.Mark) bool { return m.Kind == '#' })
}

// nodes lists a value and all in it, keys too, in the order of the text.
func nodes(n *config.Node) []*config.Node {
	all := []*config.Node{n}
	n = n.Value()
	for i, v := range n.Values {
		if n.Kind == config.NodeMapping {
			all = append(all, n.Keys[i])
		}
		all = append(all, nodes(v)...)
	}
	return all
}

// same reports whether two values say the same: comments, places and the way they are
// written aside. A number is what its text is.
func same(a, b *config.Node) bool {
	a, b = a.Value(), b.Value()
	if a.Kind != b.Kind || a.Text != b.Text || len(a.Keys) != len(b.Keys) || len(a.Values) != len(b.Values) {
		return false
	}
	for i := range a.Keys {
		if a.Keys[i].Text != b.Keys[i].Text {
			return false
		}
	}
	for i := range a.Values {
		if !same(a.Values[i], b.Values[i]) {
			return false
		}
	}
	return true
}
