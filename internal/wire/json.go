package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// MaxDepth is the deepest nesting of arrays and objects a host's message may
// have. RFC 8259 section 9 lets a reader set such a limit; 64 is far above what
// any MCP message needs and far below what exhausts a naive peer.
const MaxDepth = 64

// Member is one name and value of a JSON object. Value and the offsets refer
// to the object that was read: Start and End delimit the value's bytes in it.
type Member struct {
	Name       string
	Value      json.RawMessage
	Start, End int

	quoted []byte // the name as it is spelt; nil: in the shortest way
}

// At returns the member at a path of names, with the place of its value in raw;
// false if there is none, or something on the way is no object with unique names.
func At(raw json.RawMessage, path ...string) (m Member, ok bool) {
	m.Value = raw
	for _, name := range path {
		members, err := Members(m.Value)
		if err != nil {
			return Member{}, false
		}
		next, found := Find(members, name)
		if !found {
			return Member{}, false
		}
		next.Start, next.End = next.Start+m.Start, next.End+m.Start
		m = next
	}
	return m, true
}

// Strict checks one JSON text as haldir accepts it from a host: RFC 8259
// grammar, valid UTF-8, no name twice in any object (RFC 7493 section 2.3), no
// nesting deeper than [MaxDepth], nothing after the value. The error says what
// is wrong and at which byte.
func Strict(raw []byte) error {
	if d := depth(raw); d > MaxDepth {
		return fmt.Errorf("JSON nested %d levels deep; the limit is %d", d, MaxDepth)
	}
	return one(raw, jsontext.AllowDuplicateNames(false), jsontext.AllowInvalidUTF8(false))
}

// Lenient checks that raw is one JSON text by the grammar alone. It is for
// bytes from an upstream, which are passed on as they came.
func Lenient(raw []byte) error {
	return one(raw, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}

func one(raw []byte, opts ...jsontext.Options) error {
	dec, done := decoder(raw, opts...)
	defer done()
	if err := dec.SkipValue(); err != nil {
		return readable(err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("more than one JSON value, the second at byte %d", dec.InputOffset())
	}
	return nil
}

// decoders are kept for the next text: each message is read several times, and a
// decoder costs more than most of what it reads.
var decoders = sync.Pool{New: func() any { return &reader{} }}

type reader struct {
	text    bytes.Buffer
	decoder jsontext.Decoder
}

// decoder returns one that reads raw where it is. done gives it back.
func decoder(raw []byte, opts ...jsontext.Options) (dec *jsontext.Decoder, done func()) {
	r, _ := decoders.Get().(*reader)
	r.text = *bytes.NewBuffer(raw)
	r.decoder.Reset(&r.text, opts...)
	return &r.decoder, func() {
		r.text = bytes.Buffer{} // it must not keep raw
		r.decoder.Reset(&r.text)
		decoders.Put(r)
	}
}

func readable(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("unexpected end of JSON")
	}
	return errors.New(Printable(strings.TrimPrefix(err.Error(), "jsontext: "), 300)) // it quotes names
}

// depth returns the deepest nesting of raw, counting brackets outside strings.
// It needs no valid JSON.
func depth(raw []byte) int {
	deepest, level := 0, 0
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			for i++; i < len(raw) && raw[i] != '"'; i++ {
				if raw[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			level++
			deepest = max(deepest, level)
		case '}', ']':
			level--
		}
	}
	return deepest
}

// names are those of an object of many members; a small one is searched.
type names map[string]bool

// has reports whether members has name already, and notes name.
func (n *names) has(members []Member, name string) bool {
	const few = 32
	if len(members) < few {
		return slices.ContainsFunc(members, func(m Member) bool { return m.Name == name })
	}
	if *n == nil {
		*n = make(names, 2*few)
		for _, m := range members {
			(*n)[m.Name] = true
		}
	}
	if (*n)[name] {
		return true
	}
	(*n)[name] = true
	return false
}

// Members reads the members of the JSON object raw in their order. Values are
// sub-slices of raw, not copies. Nested values are read by the grammar alone;
// a name that stands twice in the object itself is an error.
func Members(raw []byte) ([]Member, error) {
	if members, ok := scanMembers(raw); ok {
		return members, nil
	}
	return readMembers(raw)
}

// readMembers is Members by the library.
func readMembers(raw []byte) ([]Member, error) {
	dec, done := decoder(raw, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	defer done()
	tok, err := dec.ReadToken()
	if err != nil {
		return nil, readable(err)
	}
	if tok.Kind() != '{' {
		return nil, fmt.Errorf("a JSON object is needed here, not %s", KindOf(raw))
	}
	members := make([]Member, 0, 8)
	var seen names
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, readable(err)
		}
		m := Member{Name: name.String()}
		if seen.has(members, m.Name) {
			return nil, fmt.Errorf("the name %q stands twice in one object", Printable(m.Name, 64))
		}
		value, err := dec.ReadValue()
		if err != nil {
			return nil, readable(err)
		}
		m.End = int(dec.InputOffset())
		m.Start = m.End - len(value)
		m.Value = raw[m.Start:m.End:m.End]
		members = append(members, m)
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, readable(err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	return members, nil
}

// Elements reads the elements of the JSON array raw as sub-slices of it.
func Elements(raw []byte) ([]json.RawMessage, error) {
	if elements, ok := scanElements(raw); ok {
		return elements, nil
	}
	return readElements(raw)
}

// readElements is Elements by the library.
func readElements(raw []byte) ([]json.RawMessage, error) {
	dec, done := decoder(raw, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	defer done()
	tok, err := dec.ReadToken()
	if err != nil {
		return nil, readable(err)
	}
	if tok.Kind() != '[' {
		return nil, fmt.Errorf("a JSON array is needed here, not %s", KindOf(raw))
	}
	var elements []json.RawMessage
	for dec.PeekKind() != ']' {
		value, err := dec.ReadValue()
		if err != nil {
			return nil, readable(err)
		}
		end := int(dec.InputOffset())
		elements = append(elements, raw[end-len(value):end:end])
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, readable(err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	return elements, nil
}

// Find returns the member called name, matched exactly.
func Find(members []Member, name string) (Member, bool) {
	for _, m := range members {
		if m.Name == name {
			return m, true
		}
	}
	return Member{}, false
}

// String decodes raw as a JSON string; ok is false when it is none.
func String(raw []byte) (s string, ok bool) {
	if KindOf(raw) != "a string" {
		return "", false
	}
	b, err := jsontext.AppendUnquote(nil, bytes.TrimSpace(raw))
	if err != nil {
		return "", false
	}
	return string(b), true
}

// unquoted decodes a string. Bytes that are no UTF-8 become U+FFFD.
func unquoted(quoted []byte) string {
	b, _ := jsontext.AppendUnquote(nil, quoted) // its only error here is invalid UTF-8, which it replaces
	return string(b)
}

// Quote encodes s as a JSON string. Bytes that are no UTF-8 become U+FFFD.
func Quote(s string) []byte {
	b, _ := jsontext.AppendQuote(nil, s) // its only error is invalid UTF-8, which it replaces
	return b
}

// KindOf names the kind of the JSON value raw for an error message.
func KindOf(raw []byte) string {
	raw = bytes.TrimLeft(raw, " \t\r\n")
	if len(raw) == 0 {
		return "nothing"
	}
	switch c := raw[0]; {
	case c == '{':
		return "an object"
	case c == '[':
		return "an array"
	case c == '"':
		return "a string"
	case c == 't' || c == 'f':
		return "a boolean"
	case c == 'n':
		return "null"
	case c == '-' || c >= '0' && c <= '9':
		return "a number"
	}
	return "no JSON"
}

// Printable makes text from a peer fit to be shown: at most limit bytes, without
// control characters, escape sequences and marks that reorder text.
func Printable(s string, limit int) string {
	var b strings.Builder
	for _, r := range s {
		if b.Len() >= limit {
			return b.String() + "…"
		}
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x061c || r >= 0x200e && r <= 0x200f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			r = '\ufffd'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Splice returns raw with the bytes from start to end replaced. raw stays as
// it is.
func Splice(raw []byte, start, end int, with []byte) []byte {
	out := make([]byte, 0, len(raw)-(end-start)+len(with))
	out = append(out, raw[:start]...)
	out = append(out, with...)
	return append(out, raw[end:]...)
}

// OneLine returns raw without line breaks, so that it can travel on a line of
// its own. Inside valid JSON a raw line break is white space between tokens and
// becomes a space; without one, raw itself is returned.
func OneLine(raw []byte) []byte {
	if bytes.IndexByte(raw, '\n') < 0 && bytes.IndexByte(raw, '\r') < 0 {
		return raw
	}
	out := bytes.Clone(raw)
	for i, c := range out {
		if c == '\n' || c == '\r' {
			out[i] = ' '
		}
	}
	return out
}
