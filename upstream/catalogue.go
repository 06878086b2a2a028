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
	Known    bool           // false until the server was seen once, now or in an earlier run
	Revision uint64         // grows with every change
	Said     map[string]int // how often the server has said that a list has changed, by the list's method
	Tools    []Tool
	Withheld []Withheld
	Blocked  string // why the server is asked for nothing at all; "" if it is
	// Server is the result of initialize as it came, or that of server/discover if
	// the server is Modern: it speaks without a handshake (MCP 2026-07-28).
	Server    json.RawMessage
	Modern    bool
	Resources []Item // by URI
	Templates []Item // by URI template
	Prompts   []Item // by name
}

// Item is a resource, a resource template or a prompt as its server defines it.
type Item struct {
	Key string          // what it is asked for by
	Raw json.RawMessage // the definition, byte for byte

	keyStart, keyEnd int
}

// As returns the definition under another key; nothing else changes.
func (i Item) As(key string) []byte { return wire.Splice(i.Raw, i.keyStart, i.keyEnd, wire.Quote(key)) }

// lists are what a server can be asked to list.
var lists = [...]struct{ method, member, capability, key, changed string }{
	{"tools/list", "tools", "tools", "name", "notifications/tools/list_changed"},
	{"resources/list", "resources", "resources", "uri", "notifications/resources/list_changed"},
	{"resources/templates/list", "resourceTemplates", "resources", "uriTemplate", "notifications/resources/list_changed"},
	{"prompts/list", "prompts", "prompts", "name", "notifications/prompts/list_changed"},
}

// Their places in lists.
const (
	ofTools = iota
	ofResources
	ofTemplates
	ofPrompts
)

// offers is what a server has listed, as it came.
type offers struct {
	server json.RawMessage
	lists  [len(lists)][]json.RawMessage
	beyond []json.RawMessage // tools beyond the bounds
}

// read vets what a server offers. A client of a modern server over HTTP must not
// use a tool whose headers it cannot make.
func (o offers) read(remote bool) Catalogue {
	c := ReadCatalogue(append(slices.Clip(o.lists[ofTools]), o.beyond...))
	c.Server, c.Modern = o.server, modern(o.server)
	if remote && c.Modern {
		c.Tools = slices.DeleteFunc(c.Tools, func(t Tool) bool {
			schema, _ := wire.At(t.Raw, "inputSchema")
			_, err := mirrors(schema.Value)
			if err != nil && len(c.Withheld) < maxWithheld {
				c.Withheld = append(c.Withheld, Withheld{wire.Printable(t.Name, shown), err.Error()})
			}
			return err != nil
		})
	}
	for i, into := range map[int]*[]Item{ofResources: &c.Resources, ofTemplates: &c.Templates, ofPrompts: &c.Prompts} {
		seen := map[string]bool{}
		for _, def := range o.lists[i] {
			item, err := ReadItem(def, lists[i].key)
			if err == nil && seen[item.Key] {
				err = fmt.Errorf("the server lists another one of this %s before it", lists[i].key)
			}
			if err != nil {
				if len(c.Withheld) < maxWithheld {
					c.Withheld = append(c.Withheld, Withheld{wire.Printable(item.Key, shown), err.Error()})
				}
				continue
			}
			seen[item.Key] = true
			*into = append(*into, item)
		}
	}
	return c
}

// ReadItem vets a definition that is asked for by key.
func ReadItem(def json.RawMessage, key string) (Item, error) {
	item := Item{Raw: def}
	members, err := wire.Members(def)
	if err != nil {
		return item, err
	}
	m, ok := wire.Find(members, key)
	if !ok {
		return item, fmt.Errorf("it has no %s", key)
	}
	if item.Key, ok = wire.String(m.Value); !ok || item.Key == "" {
		return item, fmt.Errorf("its %s is no text", key)
	}
	item.keyStart, item.keyEnd = m.Start, m.End
	for name, want := range map[string]string{"name": "a string", "title": "a string", "description": "a string", "mimeType": "a string", "arguments": "an array", "_meta": "an object"} {
		f, ok := wire.Find(members, name)
		if ok && wire.KindOf(f.Value) != want || !ok && name == "name" {
			return item, fmt.Errorf("its %s is not %s", name, want)
		}
	}
	return item, furnishing(members)
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

// encode makes the cached form of what a server offers.
func (o offers) encode() []byte {
	b := []byte(`{"server":`)
	if o.server == nil {
		b = append(b, "null"...)
	}
	b = append(b, wire.OneLine(o.server)...)
	for i, l := range lists {
		b = append(append(append(b, `,"`...), l.member...), `":[`...)
		for k, r := range o.lists[i] {
			if k > 0 {
				b = append(b, ',')
			}
			b = append(b, r...)
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

func decode(cached []byte) (o offers, err error) {
	members, err := wire.Members(cached)
	if err != nil {
		return o, err
	}
	if s, ok := wire.Find(members, "server"); ok && string(s.Value) != "null" {
		o.server = s.Value
	}
	for i, l := range lists {
		m, ok := wire.Find(members, l.member)
		if !ok {
			return o, fmt.Errorf("no %s", l.member)
		}
		if o.lists[i], err = wire.Elements(m.Value); err != nil {
			return o, err
		}
	}
	return o, nil
}

// capable reports whether a server has declared a capability.
func capable(server json.RawMessage, name string) bool {
	var result struct {
		Capabilities map[string]json.RawMessage `json:"capabilities"`
	}
	if json.Unmarshal(server, &result) != nil {
		return false
	}
	c, ok := result.Capabilities[name]
	return ok && string(c) != "null"
}

// list learns anew what has changed. Only tools must be there to be listed: that
// something else cannot be is reported, and leaves the rest usable.
func (c *conn) list(ctx context.Context, report func(error)) error {
	for i, l := range lists {
		c.mu.Lock()
		stale := c.stale[i]
		c.stale[i] = false
		c.mu.Unlock()
		if !stale || !capable(c.offers.server, l.capability) {
			continue
		}
		raw, err := list(ctx, c, l.method, l.member, report)
		switch {
		case err == nil:
		case i == ofTools, ctx.Err() != nil, errors.Is(err, wire.ErrSessionExpired):
			c.mu.Lock()
			c.stale[i] = true
			c.mu.Unlock()
			return err
		default:
			if e, ok := errors.AsType[*wire.Error](err); !ok || e.Code != wire.CodeMethodNotFound || i != ofTemplates {
				report(err) // a server without templates need not know the method
			}
			raw = nil
		}
		fit, beyond := within(raw)
		// What is kept is a copy, so that the pages it came on can go.
		var size int
		for _, r := range fit {
			size += len(r)
		}
		kept := make([]byte, 0, size)
		for k, r := range fit {
			from := len(kept)
			kept = append(kept, r...)
			fit[k] = kept[from:len(kept):len(kept)]
		}
		c.offers.lists[i] = fit
		if i == ofTools {
			c.offers.beyond = beyond
			c.reflect(fit)
		} else if len(beyond) > 0 {
			report(fmt.Errorf("%s: more than %d entries or %d MiB of them; the rest is left out", l.method, maxTools, maxBytes>>20))
		}
	}
	return nil
}

// list asks for all pages of a list. A problem that did not keep it from getting
// some is told to report.
func list(ctx context.Context, c *conn, method, member string, report func(error)) ([]json.RawMessage, error) {
	var all []json.RawMessage
	var params json.RawMessage
	cursors := map[string]bool{}
	size := 0
	for page := range maxPages {
		c.babble.page(member, page)
		m, err := c.exchange(ctx, Call{Method: method, Params: params})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", method, err)
		}
		if m.Error != nil {
			return nil, fmt.Errorf("%s: %w", method, refusal(m))
		}
		members, err := wire.Members(m.Result)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", method, err)
		}
		page, ok := wire.Find(members, member)
		if !ok {
			return nil, fmt.Errorf("%s: the result has no %s", method, member)
		}
		elements, err := wire.Elements(page.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", method, member, err)
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
			report(fmt.Errorf("%s: nextCursor is %s; what follows it is left out", method, wire.KindOf(next.Value)))
			return all, nil
		case cursors[cursor]:
			report(fmt.Errorf("%s: the server repeats a cursor; the list is taken to end there", method))
			return all, nil
		case len(all) > maxTools, size > maxBytes:
			report(fmt.Errorf("%s: more than %d %s or %d MiB of them; the pages that follow are left out", method, maxTools, member, maxBytes>>20))
			return all, nil
		default:
			cursors[cursor] = true
		}
		params = append(append(json.RawMessage(`{"cursor":`), next.Value...), '}')
	}
	report(fmt.Errorf("%s: more than %d pages; the rest is left out", method, maxPages))
	return all, nil
}
