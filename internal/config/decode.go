package config

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// decoder fills the structs of document.go from a YAML tree, keeping the place
// of everything it reads.
type decoder struct {
	file     string
	src      *source
	problems Problems
	places   map[string]*token.Position // path → where its value stands
	texts    map[string]*token.Token    // path → the scalar whose value its text is
	anchors  map[string]ast.Node
	examples map[string]string // path → what may stand there
	values   int               // how many were decoded
}

func newDecoder(file string) *decoder {
	return &decoder{file: file, places: map[string]*token.Position{}, texts: map[string]*token.Token{}, anchors: map[string]ast.Node{}, examples: map[string]string{}}
}

// maxValues bounds what a few anchors and many aliases can stand for. Lists in
// lists, which would grow faster, are mistakes at any depth.
const maxValues = 100_000

// scalar is implemented by field types that read the text of one YAML scalar.
type scalar interface {
	setText(text string) error
	what() string // it is, for the message about something else
}

// parse reads a whole document into v, a pointer to a struct. It reports whether
// there was a document to read, with or without mistakes in it.
func (d *decoder) parse(data []byte, v any) bool {
	root, _, ok := d.read(data)
	if !ok {
		return false
	}
	if root == nil {
		d.problem(nil, "", "the file is empty; it needs at least: version: 1")
		return false
	}
	body, ok := d.resolve(root, "")
	if ok {
		d.places[""] = begin(body)
	}
	return ok && d.struct_(body, reflect.ValueOf(v).Elem(), "")
}

// piece is a token and the offset behind it, which is -1 where that is not known.
type piece struct {
	*token.Token
	end int
}

// read returns the tree of a text and what it is made of, comments included. The tree is
// nil if there is none in it.
func (d *decoder) read(data []byte) (ast.Node, []piece, bool) {
	d.src = newSource(data)
	if offset, what := d.src.unreadable(); what != "" {
		d.problem(d.src.position(offset), "", "%s", what)
		return nil, nil, false
	}
	tokens := lexer.Tokenize(d.src.text)
	file, err := parser.Parse(tokens, 0)
	pieces := d.src.place(tokens)
	if tabs := d.src.tabs(tokens); len(tabs) > 0 {
		for _, p := range tabs {
			d.problem(p, "", `a tab stands inside a text; write it as \t in double quotes, or write a space`)
		}
		return nil, nil, false
	}
	if err != nil {
		d.syntax(err)
		return nil, nil, false
	}
	docs := slices.DeleteFunc(file.Docs, func(doc *ast.DocumentNode) bool {
		_, directive := doc.Body.(*ast.DirectiveNode)
		return directive || doc.Body == nil
	})
	switch {
	case len(docs) == 0:
		return nil, pieces, true
	case len(docs) > 1:
		d.problem(begin(docs[1].Body), "", "the file holds more than one document; keep one of them")
		return nil, nil, false
	}
	return docs[0].Body, pieces, true
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
	d.problems = append(d.problems, d.newProblem(pos, where, format, args...))
}

// newProblem makes a message of one line, whatever texts of the file it holds.
func (d *decoder) newProblem(pos *token.Position, where, format string, args ...any) Problem {
	p := Problem{File: d.file, Where: where, Message: strings.Map(func(r rune) rune {
		if r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, fmt.Sprintf(format, args...))}
	if pos != nil {
		at := d.src.clamp(*pos)
		p.Line, p.Column = at.Line, at.Column
	}
	return p
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
	if d.values++; d.values >= maxValues {
		if d.values == maxValues {
			d.problem(begin(n), path, "the file has more than %d values, those of aliases counted; split it up or write fewer", maxValues)
		}
		return
	}
	d.places[path] = begin(n)
	if s, ok := reflect.TypeAssert[scalar](v.Addr()); ok {
		text, ok := d.text(n, path, s.what())
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
		if text, ok := d.text(n, path, "a text"); ok {
			v.SetString(text)
		}
	case reflect.Int, reflect.Int64:
		d.integer(n, v, path)
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.wrong(n, path, "true or false")
			return
		}
		v.SetBool(b.Value)
	default:
		panic("haldir: config: a field of type " + v.Type().String()) // a mistake in document.go
	}
}

// wrong reports a value of another kind than the one that belongs there, and shows one that
// does. An entry of a list is shown by the list.
func (d *decoder) wrong(n ast.Node, path, what string) {
	hint := ""
	list := path
	if strings.HasSuffix(path, "]") {
		list = path[:strings.LastIndexByte(path, '[')]
	}
	if e := d.examples[list]; e != "" {
		hint = "; write it like " + list[strings.LastIndexByte(list, '.')+1:] + ": " + e
	}
	d.problem(d.at(path), path, "must be %s, not %s%s", what, kind(n), hint)
}

// begin is the place where a node begins; the parser says that a block mapping
// is where its first colon is.
func begin(n ast.Node) *token.Position {
	switch m := n.(type) {
	case *ast.MappingValueNode:
		return m.Key.GetToken().Position
	case *ast.MappingNode:
		if !m.IsFlowStyle && len(m.Values) > 0 {
			return begin(m.Values[0])
		}
	}
	return n.GetToken().Position
}

// resolve follows anchors and aliases. An anchor is known from behind its value
// on, so that no alias leads to itself.
func (d *decoder) resolve(n ast.Node, path string) (ast.Node, bool) {
	switch n := n.(type) {
	case *ast.AnchorNode:
		target, ok := d.resolve(n.Value, path)
		if ok {
			d.anchors[n.Name.GetToken().Value] = target
		}
		return target, ok
	case *ast.AliasNode:
		name := n.Value.GetToken().Value
		target, ok := d.anchors[name]
		if !ok {
			d.problem(n.GetToken().Position, path, "there is no anchor &%s above this alias", name)
		}
		return target, ok
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
func (d *decoder) text(n ast.Node, path, what string) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		d.texts[path] = n.GetToken()
		return n.Value, true
	case *ast.LiteralNode:
		d.texts[path] = n.Value.GetToken()
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	d.wrong(n, path, what)
	return "", false
}

var wholeNumber = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[-+]?[0-9]+$`) })

// zeroFirst refuses numbers that are another in YAML 1.1 (and in C).
func zeroFirst(text string) error {
	digits := strings.TrimLeft(text, "+-")
	if wholeNumber().MatchString(text) && len(digits) > 1 && digits[0] == '0' {
		return fmt.Errorf("%s begins with a zero, which makes it octal for some readers; write %s", text, cmp.Or(strings.TrimLeft(digits, "0"), "0"))
	}
	return nil
}

func (d *decoder) integer(n ast.Node, v reflect.Value, path string) {
	text := n.GetToken().Value
	i, err := strconv.ParseInt(text, 10, 64)
	switch {
	case quoted(n.GetToken()) || !wholeNumber().MatchString(text):
		d.wrong(n, path, "a whole number")
	case zeroFirst(text) != nil:
		d.problem(d.at(path), path, "%v", zeroFirst(text))
	case err != nil || v.OverflowInt(i):
		d.problem(d.at(path), path, "the number %s is too large", text)
	default:
		v.SetInt(i)
	}
}

// quoted tells a token that is a text whatever it looks like.
func quoted(t *token.Token) bool {
	return t.Type == token.SingleQuoteType || t.Type == token.DoubleQuoteType
}

func (d *decoder) list(n ast.Node, v reflect.Value, path string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.wrong(n, path, "a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values)))
	for i, item := range seq.Values {
		d.value(item, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
}

// struct_ decodes a mapping whose keys are the yaml tags of v's fields. It
// reports whether there is a mapping.
func (d *decoder) struct_(n ast.Node, v reflect.Value, path string) bool {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		d.wrong(n, path, "a mapping with keys")
		return false
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
			d.problem(key.Position, path, "unknown key %q%s", name, Suggest(name, known))
			continue
		}
		if _, null := mv.Value.(*ast.NullNode); null || mv.Value == nil {
			d.problem(key.Position, where, "has no value")
			continue
		}
		if e := v.Type().Field(i).Tag.Get("example"); e != "" {
			d.examples[where] = e
		}
		d.value(mv.Value, v.Field(i), where)
	}
	return true
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
