package upstream

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// mirrored is a parameter of a tool whose value a modern request over HTTP repeats
// in a header (MCP 2026-07-28, streamable HTTP, custom headers).
type mirrored struct {
	header string // canonical
	path   []string
}

// mirror returns the headers of a call of a tool.
func (c *conn) mirror(tool string, arguments json.RawMessage) http.Header {
	c.mu.Lock()
	parameters := c.mirrors[tool]
	c.mu.Unlock()
	h := http.Header{}
	for _, p := range parameters {
		at, ok := wire.At(arguments, p.path...)
		if !ok || string(at.Value) == "null" {
			continue
		}
		text, isText := wire.String(at.Value)
		if !isText {
			text = string(at.Value) // an integer or a boolean; what is neither the server refuses
		}
		h.Set(p.header, wire.HeaderValue(text))
	}
	return h
}

// reflect learns from the definitions of tools which parameters are mirrored.
func (c *conn) reflect(tools []json.RawMessage) {
	if !c.modern.Load() || c.child != nil {
		return
	}
	known := map[string][]mirrored{}
	for _, def := range tools {
		name, _ := wire.At(def, "name")
		schema, _ := wire.At(def, "inputSchema")
		if found, err := mirrors(schema.Value); err == nil && found != nil {
			text, _ := wire.String(name.Value)
			known[text] = found
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mirrors = known
}

const mirrorKey = "x-mcp-header"

// mirrors reads the annotations of an input schema. The error says why a client
// must not use the tool.
func mirrors(schema json.RawMessage) ([]mirrored, error) {
	var found []mirrored
	taken := map[string]bool{}
	var walk func(schema json.RawMessage, path []string, reachable bool, depth int) error
	walk = func(schema json.RawMessage, path []string, reachable bool, depth int) error {
		if depth > wire.MaxDepth {
			return errors.New("its inputSchema is nested too deep")
		}
		members, err := wire.Members(schema)
		if err != nil {
			return nil //nolint:nilerr // no schema that says anything
		}
		if m, ok := wire.Find(members, mirrorKey); ok {
			name, err := headerOf(m.Value, members, reachable && len(path) > 0)
			if err != nil {
				return err
			}
			if taken[name] {
				return fmt.Errorf("two of its parameters have the %s %q", mirrorKey, name)
			}
			taken[name] = true
			found = append(found, mirrored{name, path})
		}
		for _, m := range members {
			switch {
			case m.Name == mirrorKey:
			case m.Name == "properties":
				properties, err := wire.Members(m.Value)
				if err != nil {
					continue
				}
				for _, p := range properties {
					if err := walk(p.Value, append(slices.Clip(path), p.Name), reachable, depth+1); err != nil {
						return err
					}
				}
			case data[m.Name]:
			case named[m.Name]:
				parts, err := wire.Members(m.Value)
				if err != nil {
					continue
				}
				for _, p := range parts {
					if err := walk(p.Value, path, false, depth+1); err != nil {
						return err
					}
				}
			default:
				if err := each(m.Value, func(part json.RawMessage) error { return walk(part, path, false, depth+1) }); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if !bytes.Contains(schema, []byte(mirrorKey)) {
		return nil, nil
	}
	err := walk(schema, nil, true, 0)
	return found, err
}

// named are the keywords whose values are schemas under names of the author's.
var named = map[string]bool{"$defs": true, "definitions": true, "patternProperties": true, "dependentSchemas": true}

// data are the keywords whose values are no schemas.
var data = map[string]bool{"const": true, "enum": true, "default": true, "examples": true}

// each hands on the value of a keyword, if it may hold schemas: itself or what is
// in a list.
func each(value json.RawMessage, visit func(json.RawMessage) error) error {
	if wire.KindOf(value) != "an array" {
		return visit(value)
	}
	elements, err := wire.Elements(value)
	if err != nil {
		return nil //nolint:nilerr // it says nothing
	}
	for _, e := range elements {
		if err := visit(e); err != nil {
			return err
		}
	}
	return nil
}

// headerOf checks an annotation and returns the name of the header.
func headerOf(value json.RawMessage, of []wire.Member, reachable bool) (string, error) {
	name, ok := wire.String(value)
	switch {
	case !ok || !token(name):
		return "", fmt.Errorf("a parameter has the %s %s, which is no name of a header", mirrorKey, wire.Printable(string(value), shown))
	case !reachable:
		return "", fmt.Errorf("the %s %q stands where no parameter is", mirrorKey, name)
	}
	typ, _ := wire.Find(of, "type")
	switch kind, _ := wire.String(typ.Value); kind {
	case "string", "integer", "boolean":
	default:
		return "", fmt.Errorf("the parameter with the %s %q is neither a string, an integer nor a boolean", mirrorKey, name)
	}
	return http.CanonicalHeaderKey("Mcp-Param-" + name), nil
}

// token reports a field name (RFC 9110 section 5.1).
func token(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}
