package config

import (
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// Outline is the text of a YAML document and what stands where in it, for who changes
// the text. It says nothing of whether the document is a config.
type Outline struct {
	Text string // without a byte order mark; offsets are in it
	Root *Node  // nil if there is nothing but comments
	// Marks are what stands between values, in the order of the text.
	Marks []Mark

	src    *source
	pieces []piece
	index  map[*token.Token]int
}

// Mark is a token that is no value, or a comment. Kind is '-' for the dash before an
// entry, ',' and '#' for themselves and '.' for the end of a document.
type Mark struct {
	Kind       byte
	Start, End int
}

// NodeKind says what a node is.
type NodeKind uint8

// What a node may be.
const (
	NodeMapping NodeKind = iota
	NodeList
	NodeText  // a scalar that is a text
	NodeOther // a number, a boolean or nothing
	NodeAlias
)

// Node is a value of a document and where it stands. An anchor belongs to the value.
type Node struct {
	Kind       NodeKind
	Flow       bool    // a mapping in braces, a list in brackets
	Text       string  // of a scalar, and the name of an alias
	Anchor     string  // "" for none
	Keys       []*Node // of a mapping
	Values     []*Node // of a mapping or a list
	Target     *Node   // what an alias stands for
	Start, End int     // both at the end of the colon if nothing is written
	Behind     int     // the offset behind the anchor, or Start
}

// Value is what an alias stands for, else the node itself.
func (n *Node) Value() *Node {
	for n.Kind == NodeAlias {
		n = n.Target
	}
	return n
}

// Find returns the value of a key, or nil.
func (n *Node) Find(key string) *Node {
	for i, k := range n.Keys {
		if k.Text == key {
			return n.Values[i]
		}
	}
	return nil
}

// errLost says that the parser has read something else than what stands there.
var errLost = errors.New("is written in a way that haldir can read, but not edit; edit it by hand")

// ReadOutline reads a text; file names it in messages. The error is of type [Problems].
func ReadOutline(data []byte, file string) (*Outline, error) {
	d := newDecoder(file)
	root, pieces, ok := d.read(data)
	if !ok {
		d.problems.sort()
		return nil, d.problems
	}
	o := &Outline{Text: d.src.text, src: d.src, pieces: pieces, index: map[*token.Token]int{}}
	for i, p := range pieces {
		if p.end < 0 {
			d.problem(p.Position, "", "this %v", errLost)
			return nil, d.problems
		}
		o.index[p.Token] = i
		kind := map[token.Type]byte{token.SequenceEntryType: '-', token.CollectEntryType: ',', token.CommentType: '#', token.DocumentEndType: '.'}[p.Type]
		if kind != 0 {
			o.Marks = append(o.Marks, Mark{kind, p.Position.Offset, p.end})
		}
	}
	if root == nil {
		return o, nil
	}
	r := outliner{Outline: o, anchors: map[string]*Node{}}
	if o.Root = r.node(root, 0); r.lost != nil {
		d.problem(r.lost, "", "this %v", errLost)
		return nil, d.problems
	}
	return o, nil
}

// outliner makes nodes.
type outliner struct {
	*Outline
	anchors map[string]*Node
	lost    *token.Position
}

// span is where a token stands; one that does not stand in the text is at an offset.
func (r *outliner) span(t *token.Token, at int) (start, end int) {
	i, ok := r.index[t]
	if !ok {
		return at, at
	}
	return t.Position.Offset, r.pieces[i].end
}

// node makes a node; at is the offset behind what stands before it.
func (r *outliner) node(n ast.Node, at int) *Node {
	out := &Node{Start: at, End: at, Behind: at}
	if n == nil {
		out.Kind = NodeOther
		return out
	}
	out.Start, out.End = r.span(n.GetToken(), at)
	out.Behind = out.Start
	switch n := n.(type) {
	case *ast.AnchorNode:
		name := n.Name.GetToken()
		_, behind := r.span(name, at)
		start := out.Start
		out = r.node(n.Value, behind)
		out.Start, out.Anchor, out.Behind = start, name.Value, behind
		r.anchors[name.Value] = out
	case *ast.AliasNode:
		name := n.Value.GetToken()
		_, out.End = r.span(name, at)
		out.Kind, out.Text, out.Target = NodeAlias, name.Value, r.anchors[name.Value]
		if out.Target == nil {
			r.lost = name.Position
			out.Kind = NodeOther
		}
	case *ast.MappingNode:
		r.mapping(out, n.Values)
		if n.IsFlowStyle {
			out.Flow = true
			out.Start, out.End = r.span(n.Start, at)
			out.Behind = out.Start
			_, out.End = r.span(n.End, out.End)
		}
	case *ast.MappingValueNode:
		r.mapping(out, []*ast.MappingValueNode{n})
	case *ast.SequenceNode:
		out.Kind, out.Flow = NodeList, n.IsFlowStyle
		for _, v := range n.Values {
			item := r.node(v, out.End)
			out.Values = append(out.Values, item)
			out.End = item.End
		}
		if n.IsFlowStyle {
			_, out.End = r.span(n.End, out.End)
		}
	case *ast.StringNode:
		out.Kind, out.Text = NodeText, n.Value
	case *ast.LiteralNode:
		out.Kind, out.Text = NodeText, n.Value.Value
		_, out.End = r.span(n.Value.GetToken(), out.End)
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode, *ast.NullNode:
		out.Kind, out.Text = NodeOther, n.GetToken().Value
	default:
		r.lost = n.GetToken().Position
	}
	return out
}

func (r *outliner) mapping(out *Node, values []*ast.MappingValueNode) {
	out.Kind = NodeMapping
	for i, mv := range values {
		t := mv.Key.GetToken()
		key := &Node{Kind: NodeText, Text: t.Value}
		key.Start, key.End = r.span(t, out.End)
		key.Behind = key.Start
		if mv.Start == nil || mv.Start.Type != token.MappingValueType || mv.Start.Position.Offset < key.End {
			r.lost = t.Position
			return
		}
		_, colon := r.span(mv.Start, key.End)
		value := r.node(mv.Value, colon)
		out.Keys, out.Values = append(out.Keys, key), append(out.Values, value)
		if i == 0 {
			out.Start, out.Behind = key.Start, key.Start
		}
		out.End = value.End
	}
}

// Offset is where a place of a [Problem] is in the text.
func (o *Outline) Offset(line, column int) int {
	if line < 1 {
		return 0
	}
	at := o.src.lines[min(line, len(o.src.lines))-1]
	for range column - 1 {
		_, size := utf8.DecodeRuneInString(o.Text[at:])
		at += size
	}
	return at
}

// Place is the line and the column of an offset.
func (o *Outline) Place(offset int) (line, column int) {
	p := o.src.position(offset)
	return p.Line, p.Column
}

// LineStart is where the line of an offset begins.
func (o *Outline) LineStart(offset int) int {
	line, _ := o.Place(offset)
	return o.src.lines[line-1]
}

// LineEnd is where the line of an offset ends, before its line end.
func (o *Outline) LineEnd(offset int) int {
	if i := strings.IndexAny(o.Text[offset:], "\r\n"); i >= 0 {
		return offset + i
	}
	return len(o.Text)
}
