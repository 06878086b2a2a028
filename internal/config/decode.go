package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// decoder fills the structs of document.go from a YAML tree, keeping the place
// of everything it reads.
type decoder struct {
	file     string
	problems Problems
	places   map[string]*token.Position // path → where its value stands
	texts    map[string]*token.Position // path → where its text begins, if that is elsewhere
	anchors  map[string]ast.Node
	depth    int
}

// scalar is implemented by field types that read the text of one YAML scalar.
type scalar interface{ setText(text string) error }

// parse reads a whole document into v, a pointer to a struct. It reports whether
// there was a document to read, with or without mistakes in it.
func (d *decoder) parse(data []byte, v any) bool {
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		d.syntax(err)
		return false
	}
	docs := slices.DeleteFunc(file.Docs, func(doc *ast.DocumentNode) bool { return doc.Body == nil })
	switch {
	case len(docs) == 0:
		d.problem(nil, "", "the file is empty; it needs at least: version: 1")
		return false
	case len(docs) > 1:
		d.problem(docs[1].Body.GetToken().Position, "", "the file holds more than one document")
		return false
	}
	d.struct_(docs[0].Body, reflect.ValueOf(v).Elem(), "")
	return true
}

func (d *decoder) syntax(err error) {
	if e, ok := errors.AsType[yaml.Error](err); ok {
		var pos *token.Position
		if t := e.GetToken(); t != nil {
			pos = t.Position
		}
		d.problem(pos, "", "not valid YAML: %s", e.GetMessage())
		return
	}
	d.problem(nil, "", "not valid YAML: %v", err)
}

func (d *decoder) problem(pos *token.Position, where, format string, args ...any) {
	p := Problem{File: d.file, Where: where, Message: fmt.Sprintf(format, args...)}
	if pos != nil {
		p.Line, p.Column = pos.Line, pos.Column
	}
	d.problems = append(d.problems, p)
}

// at returns the place of a path, or of the nearest thing around it.
func (d *decoder) at(path string) *token.Position {
	for {
		if pos, ok := d.places[path]; ok {
			return pos
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return nil
		}
		path = path[:i]
	}
}

// has reports whether the document has a value at path.
func (d *decoder) has(path string) bool { _, ok := d.places[path]; return ok }

// value decodes one node into v.
func (d *decoder) value(n ast.Node, v reflect.Value, path string) {
	n, ok := d.resolve(n, path)
	if !ok {
		return
	}
	d.places[path] = n.GetToken().Position
	if s, ok := reflect.TypeAssert[scalar](v.Addr()); ok {
		text, ok := d.text(n, path)
		if ok {
			if err := s.setText(text); err != nil {
				d.problem(d.places[path], path, "%v", err)
			}
		}
		return
	}
	switch v.Kind() { //nolint:exhaustive // document.go has no other kinds
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), path)
	case reflect.Struct:
		d.struct_(n, v, path)
	case reflect.Slice:
		d.list(n, v, path)
	case reflect.String:
		if text, ok := d.text(n, path); ok {
			v.SetString(text)
		}
	case reflect.Int, reflect.Int64:
		d.integer(n, v, path)
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.problem(d.places[path], path, "must be true or false, not %s", kind(n))
			return
		}
		v.SetBool(b.Value)
	default:
		panic("haldir: config: a field of type " + v.Type().String()) // a mistake in document.go
	}
}

// resolve follows anchors and aliases.
func (d *decoder) resolve(n ast.Node, path string) (ast.Node, bool) {
	switch n := n.(type) {
	case *ast.AnchorNode:
		d.anchors[n.Name.GetToken().Value] = n.Value
		return d.resolve(n.Value, path)
	case *ast.AliasNode:
		name := n.Value.GetToken().Value
		target, ok := d.anchors[name]
		if d.depth++; !ok || d.depth > 1000 {
			d.problem(n.GetToken().Position, path, "there is no anchor &%s above this alias", name)
			return nil, false
		}
		return d.resolve(target, path)
	case *ast.TagNode:
		d.problem(n.GetToken().Position, path, "YAML tags (%s) are not supported", n.Start.Value)
		return nil, false
	case nil:
		d.problem(nil, path, "has no value")
		return nil, false
	}
	return n, true
}

// text returns the text of a scalar as it stands in the file, so that 1.10 and
// 007 are not changed by being read as numbers.
func (d *decoder) text(n ast.Node, path string) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		if t := n.GetToken(); t.Type == token.SingleQuoteType || t.Type == token.DoubleQuoteType {
			inner := *t.Position
			inner.Column++ // behind the quote
			d.texts[path] = &inner
		}
		return n.Value, true
	case *ast.LiteralNode:
		d.texts[path] = n.Value.GetToken().Position
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	d.problem(d.at(path), path, "must be a text, not %s", kind(n))
	return "", false
}

func (d *decoder) integer(n ast.Node, v reflect.Value, path string) {
	i, err := strconv.ParseInt(n.GetToken().Value, 10, 64)
	if _, ok := n.(*ast.IntegerNode); !ok || err != nil {
		d.problem(d.at(path), path, "must be a whole number, not %s", kind(n))
		return
	}
	v.SetInt(i)
}

func (d *decoder) list(n ast.Node, v reflect.Value, path string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.problem(d.at(path), path, "must be a list, not %s", kind(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values)))
	for i, item := range seq.Values {
		d.value(item, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
}

// struct_ decodes a mapping whose keys are the yaml tags of v's fields.
func (d *decoder) struct_(n ast.Node, v reflect.Value, path string) {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		d.problem(n.GetToken().Position, path, "must be a mapping with keys, not %s", kind(n))
		return
	}
	fields := map[string]int{}
	var known []string
	for i := range v.NumField() {
		if name := v.Type().Field(i).Tag.Get("yaml"); name != "" {
			fields[name] = i
			if v.Type().Field(i).Tag.Get("alias") == "" {
				known = append(known, name)
			}
		}
	}
	seen := map[string]bool{}
	for _, mv := range values {
		key := mv.Key.GetToken()
		name := key.Value
		where := strings.TrimPrefix(path+"."+name, ".")
		if _, merge := mv.Key.(*ast.MergeKeyNode); merge {
			d.problem(key.Position, path, "YAML merge keys (<<) are not supported")
			continue
		}
		if seen[name] {
			d.problem(key.Position, where, "stands twice")
			continue
		}
		seen[name] = true
		i, ok := fields[name]
		if !ok {
			d.problem(key.Position, path, "unknown key %q%s", name, suggest(name, known))
			continue
		}
		if _, null := mv.Value.(*ast.NullNode); null || mv.Value == nil {
			d.problem(key.Position, where, "has no value")
			continue
		}
		d.value(mv.Value, v.Field(i), where)
	}
}

func kind(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	case *ast.BoolNode:
		return "a boolean"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "the number " + n.GetToken().Value
	case *ast.StringNode, *ast.LiteralNode:
		return "a text"
	}
	return "this"
}
