package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// Bounds on what one server may list. Tools beyond them are withheld.
const (
	maxPages = 1000
	maxTools = 10000
	maxBytes = 8 << 20 // of all definitions together; the largest servers in use list some 100 KiB
	// maxWithheld is how many are told by name.
	maxWithheld = 100
)

// Catalogue is what a server offers.
type Catalogue struct {
	Known    bool   // false until the server was seen once, now or in an earlier run
	Revision uint64 // grows with every change
	Tools    []Tool
	Withheld []Withheld
}

// Tool is one tool as its server defines it.
type Tool struct {
	Name     string
	Raw      json.RawMessage // the definition, byte for byte
	ReadOnly bool            // annotations.readOnlyHint; a claim, not a fact

	nameStart, nameEnd int
}

// As returns the definition under another name; nothing else changes.
func (t Tool) As(name string) []byte {
	return wire.Splice(t.Raw, t.nameStart, t.nameEnd, wire.Quote(name))
}

// Withheld is a tool that is not passed on, because hosts would drop the whole
// list for its sake, or because the server lists too much. Its name is fit to be
// shown.
type Withheld struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// ReadCatalogue vets a list of tool definitions.
func ReadCatalogue(raw []json.RawMessage) Catalogue {
	c := Catalogue{Known: true}
	more := 0
	withhold := func(t Tool, why error) {
		if len(c.Withheld) < maxWithheld {
			c.Withheld = append(c.Withheld, Withheld{wire.Printable(t.Name, shown), why.Error()})
		} else {
			more++
		}
	}
	seen := map[string]bool{}
	fit, beyond := within(raw)
	for _, def := range fit {
		t, err := readTool(def)
		if err == nil && seen[t.Name] {
			err = errors.New("the server lists another tool of this name before it")
		}
		if err != nil {
			withhold(t, err)
			continue
		}
		seen[t.Name] = true
		c.Tools = append(c.Tools, t)
	}
	for _, def := range beyond {
		t, _ := readTool(def) // its name, if it has one
		withhold(t, fmt.Errorf("the server lists more than %d tools or %d MiB of them", maxTools, maxBytes>>20))
	}
	if more > 0 {
		c.Withheld = append(c.Withheld, Withheld{Reason: fmt.Sprintf("%d more tools, not told by name", more)})
	}
	return c
}

// within separates the definitions that fit within the bounds from the rest.
func within(raw []json.RawMessage) (fit, beyond []json.RawMessage) {
	size := 0
	for _, def := range raw {
		if len(fit) == maxTools || size+len(def) > maxBytes {
			beyond = append(beyond, def)
			continue
		}
		size += len(def)
		fit = append(fit, def)
	}
	return fit, beyond
}

func readTool(def json.RawMessage) (Tool, error) {
	t := Tool{Raw: def}
	members, err := wire.Members(def)
	if err != nil {
		return t, err
	}
	name, ok := wire.Find(members, "name")
	if !ok {
		return t, errors.New("it has no name")
	}
	if t.Name, ok = wire.String(name.Value); !ok || t.Name == "" {
		return t, errors.New("its name is no text")
	}
	t.nameStart, t.nameEnd = name.Start, name.End
	for _, key := range []string{"description", "title"} {
		if m, ok := wire.Find(members, key); ok {
			if wire.KindOf(m.Value) != "a string" {
				return t, fmt.Errorf("its %s is %s, not a text", key, wire.KindOf(m.Value))
			}
		}
	}
	in, ok := wire.Find(members, "inputSchema")
	if !ok {
		return t, errors.New("it has no inputSchema")
	}
	if err := objectSchema(in.Value); err != nil {
		return t, fmt.Errorf("its inputSchema %w", err)
	}
	if out, ok := wire.Find(members, "outputSchema"); ok {
		if err := objectSchema(out.Value); err != nil {
			return t, fmt.Errorf("its outputSchema %w", err)
		}
	}
	for key, want := range map[string]string{"_meta": "an object", "icons": "an array", "execution": "an object"} {
		if m, ok := wire.Find(members, key); ok && wire.KindOf(m.Value) != want {
			return t, fmt.Errorf("its %s is %s, not %s", key, wire.KindOf(m.Value), want)
		}
	}
	if err := furnishing(members); err != nil {
		return t, err
	}
	if a, ok := wire.Find(members, "annotations"); ok {
		hints, err := wire.Members(a.Value)
		if err != nil {
			return t, fmt.Errorf("its annotations are %s, not an object", wire.KindOf(a.Value))
		}
		for _, key := range []string{"readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"} {
			if h, ok := wire.Find(hints, key); ok && wire.KindOf(h.Value) != "a boolean" {
				return t, fmt.Errorf("its annotation %s is %s, not a boolean", key, wire.KindOf(h.Value))
			}
		}
		if h, ok := wire.Find(hints, "title"); ok && wire.KindOf(h.Value) != "a string" {
			return t, fmt.Errorf("its annotation title is %s, not a text", wire.KindOf(h.Value))
		}
		h, ok := wire.Find(hints, "readOnlyHint")
		t.ReadOnly = ok && string(h.Value) == "true"
	}
	return t, nil
}

// furnishing checks icons and execution (MCP 2025-11-25, schema).
func furnishing(members []wire.Member) error {
	if m, ok := wire.Find(members, "execution"); ok {
		fields, err := wire.Members(m.Value)
		if err != nil {
			return fmt.Errorf("its execution: %w", err)
		}
		if s, ok := wire.Find(fields, "taskSupport"); ok {
			if v, _ := wire.String(s.Value); v != "forbidden" && v != "optional" && v != "required" {
				return errors.New("its execution.taskSupport is none of forbidden, optional, required")
			}
		}
	}
	m, ok := wire.Find(members, "icons")
	if !ok {
		return nil
	}
	icons, err := wire.Elements(m.Value)
	if err != nil {
		return fmt.Errorf("its icons: %w", err)
	}
	for _, icon := range icons {
		fields, err := wire.Members(icon)
		if err != nil {
			return errors.New("it has an icon that is no object")
		}
		if src, ok := wire.Find(fields, "src"); !ok || wire.KindOf(src.Value) != "a string" {
			return errors.New("it has an icon without src")
		}
		for key, want := range map[string]string{"mimeType": "a string", "sizes": "an array", "theme": "a string"} {
			if f, ok := wire.Find(fields, key); ok && wire.KindOf(f.Value) != want {
				return fmt.Errorf("it has an icon whose %s is %s", key, wire.KindOf(f.Value))
			}
		}
		if f, ok := wire.Find(fields, "theme"); ok {
			if v, _ := wire.String(f.Value); v != "light" && v != "dark" {
				return errors.New("it has an icon whose theme is neither light nor dark")
			}
		}
		if f, ok := wire.Find(fields, "sizes"); ok {
			sizes, err := wire.Elements(f.Value)
			if err != nil || slices.ContainsFunc(sizes, func(s json.RawMessage) bool { return wire.KindOf(s) != "a string" }) {
				return errors.New("it has an icon whose sizes are no texts")
			}
		}
	}
	return nil
}

// objectSchema checks the parts of a tool's schema without which hosts refuse
// the list it is in.
func objectSchema(raw json.RawMessage) error {
	members, err := wire.Members(raw)
	if err != nil {
		return fmt.Errorf("is %s, not an object", wire.KindOf(raw))
	}
	if typ, ok := wire.Find(members, "type"); !ok || string(typ.Value) != `"object"` {
		return errors.New(`is not of type "object"`)
	}
	if p, ok := wire.Find(members, "properties"); ok {
		properties, err := wire.Members(p.Value)
		if err != nil {
			return fmt.Errorf("has properties that are %s, not an object", wire.KindOf(p.Value))
		}
		for _, x := range properties {
			if wire.KindOf(x.Value) != "an object" {
				return fmt.Errorf("has a property %q that is %s, not an object", wire.Printable(x.Name, shown), wire.KindOf(x.Value))
			}
		}
	}
	if r, ok := wire.Find(members, "required"); ok {
		names, err := wire.Elements(r.Value)
		if err != nil {
			return fmt.Errorf("has a list of required properties that is %s", wire.KindOf(r.Value))
		}
		for _, n := range names {
			if wire.KindOf(n) != "a string" {
				return errors.New("has a required property whose name is no text")
			}
		}
	}
	return nil
}

// encode makes the cached form of a list.
func encode(raw []json.RawMessage) []byte {
	b := []byte(`{"tools":[`)
	for i, r := range raw {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, r...)
	}
	return append(b, "]}"...)
}

func decode(cached []byte) ([]json.RawMessage, error) {
	members, err := wire.Members(cached)
	if err != nil {
		return nil, err
	}
	tools, ok := wire.Find(members, "tools")
	if !ok {
		return nil, errors.New("no tools")
	}
	return wire.Elements(tools.Value)
}

// list asks for all pages of tools/list. A problem that did not keep it from
// getting tools is told to report.
func list(ctx context.Context, c wire.Client, report func(error)) ([]json.RawMessage, error) {
	var all []json.RawMessage
	var params json.RawMessage
	cursors := map[string]bool{}
	size := 0
	for range maxPages {
		m, err := c.Call(ctx, "tools/list", params)
		if err != nil {
			return nil, fmt.Errorf("tools/list: %w", err)
		}
		if m.Error != nil {
			return nil, fmt.Errorf("tools/list: %w", refusal(m))
		}
		members, err := wire.Members(m.Result)
		if err != nil {
			return nil, fmt.Errorf("tools/list: %w", err)
		}
		tools, ok := wire.Find(members, "tools")
		if !ok {
			return nil, errors.New("tools/list: the result has no tools")
		}
		elements, err := wire.Elements(tools.Value)
		if err != nil {
			return nil, fmt.Errorf("tools/list: tools: %w", err)
		}
		all = append(all, elements...)
		size += len(m.Raw) // all of the page is held on to
		next, ok := wire.Find(members, "nextCursor")
		if !ok || string(next.Value) == "null" {
			return all, nil
		}
		switch cursor, isText := wire.String(next.Value); {
		case isText && cursor == "":
			return all, nil
		case !isText:
			report(fmt.Errorf("tools/list: nextCursor is %s; what follows it is left out", wire.KindOf(next.Value)))
			return all, nil
		case cursors[cursor]:
			report(errors.New("tools/list: the server repeats a cursor; the list is taken to end there"))
			return all, nil
		case len(all) > maxTools, size > maxBytes:
			report(fmt.Errorf("tools/list: more than %d tools or %d MiB of them; the pages that follow are left out", maxTools, maxBytes>>20))
			return all, nil
		default:
			cursors[cursor] = true
		}
		params = append(append(json.RawMessage(`{"cursor":`), next.Value...), '}')
	}
	report(fmt.Errorf("tools/list: more than %d pages; the rest is left out", maxPages))
	return all, nil
}
