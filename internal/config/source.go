package config

import (
	"bytes"
	"fmt"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml/token"
)

// source is the text of a file. It knows the places in it better than the YAML
// lexer, whose columns are off behind tabs, spaces at the end of a line and in
// texts over several lines.
type source struct {
	text  string
	lines []int // the offsets at which lines begin
	last  token.Position
}

// newSource takes a byte order mark off and splits the lines as YAML does.
func newSource(data []byte) *source {
	s := &source{text: string(bytes.TrimPrefix(data, []byte("\ufeff"))), lines: []int{0}}
	for i := range len(s.text) {
		if c := s.text[i]; c == '\n' || c == '\r' && !strings.HasPrefix(s.text[i:], "\r\n") {
			s.lines = append(s.lines, i+1)
		}
	}
	return s
}

// position is the place of an offset, columns in characters.
func (s *source) position(offset int) *token.Position {
	p := token.Position{Line: sort.SearchInts(s.lines, offset+1), Column: 1, Offset: offset}
	from := s.lines[p.Line-1]
	if s.last.Line == p.Line && s.last.Offset <= offset { // all may stand in one line
		from, p.Column = s.last.Offset, s.last.Column
	}
	p.Column += utf8.RuneCountInString(s.text[from:offset])
	s.last = p
	return &p
}

// clamp moves a place that the file does not have to the nearest that it has.
func (s *source) clamp(p token.Position) token.Position {
	p.Line = min(max(p.Line, 1), len(s.lines))
	end := len(s.text)
	if p.Line < len(s.lines) {
		end = s.lines[p.Line]
	}
	line := strings.TrimRight(s.text[s.lines[p.Line-1]:end], "\r\n")
	p.Column = min(max(p.Column, 1), utf8.RuneCountInString(line)+1)
	return p
}

// unreadable returns the offset of the first character that must not stand in
// the file, and what is wrong with it; "" if there is none. Besides what YAML
// forbids (section 5.1, c-printable) these are the characters with which a text
// can be made to look like another (https://trojansource.codes).
func (s *source) unreadable() (offset int, what string) {
	for i, r := range s.text {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s.text[i:], "\ufffd"):
			if strings.HasPrefix(s.text, "\xff\xfe") || strings.HasPrefix(s.text, "\xfe\xff") {
				return i, "the file is UTF-16; save it as UTF-8"
			}
			return i, fmt.Sprintf("the byte %#02x is no UTF-8; save the file as UTF-8", s.text[i])
		case unicode.IsControl(r) && !strings.ContainsRune("\t\n\r\u0085", r):
			return i, fmt.Sprintf("the control character %U must not stand in the file; remove it, or write it as an escape in double quotes", r)
		case turnsText(r):
			return i, fmt.Sprintf("the invisible character %U, which changes the direction of the text around it, must not stand in the file; remove it", r)
		}
	}
	return 0, ""
}

// turnsText tells the bidirectional controls.
func turnsText(r rune) bool { return r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069' }

// place sets the places of tokens to where they stand. They stand one behind the
// other, with nothing but white space between them. From a token on that is not
// found (the lexer is not exact about what it read), the lexer's places remain,
// and the offsets are -1.
func (s *source) place(tokens token.Tokens) []piece {
	pieces := make([]piece, len(tokens))
	for i, t := range tokens {
		t.Position.Offset = -1
		pieces[i] = piece{t, -1}
	}
	at := 0
	for i, t := range tokens {
		start := at + len(s.text[at:]) - len(strings.TrimLeftFunc(s.text[at:], unicode.IsSpace))
		var end int
		var ok bool
		switch {
		case t.Type == token.InvalidType:
		case quoted(t):
			end, ok = s.walk(start, t, nil)
		case t.Type == token.CommentType:
			end, ok = s.follow(start, "#"+t.Value)
		default:
			end, ok = s.follow(start, t.Origin)
		}
		if !ok {
			return pieces
		}
		p := s.position(start)
		t.Position.Line, t.Position.Column, t.Position.Offset = p.Line, p.Column, p.Offset
		at, pieces[i].end = end, end
	}
	return pieces
}

// follow goes along text from an offset on, whatever white space there is, and
// returns the offset behind it.
func (s *source) follow(at int, text string) (end int, ok bool) {
	for _, r := range text {
		if unicode.IsSpace(r) {
			continue
		}
		at += len(s.text[at:]) - len(strings.TrimLeftFunc(s.text[at:], unicode.IsSpace))
		got, size := utf8.DecodeRuneInString(s.text[at:])
		if size == 0 || got != r {
			return at, false
		}
		at += size
	}
	return at, true
}

// walk goes along a scalar as it is written, whose token stands at an offset. It
// calls each, which may end it, with the offset of every character that the
// scalar has, but white space: how YAML folds that does not matter then. It
// returns the offset behind the scalar; ok is false if it has no end.
func (s *source) walk(at int, t *token.Token, each func(offset int) bool) (end int, ok bool) {
	quote := map[token.Type]string{token.SingleQuoteType: "'", token.DoubleQuoteType: `"`}[t.Type]
	if !strings.HasPrefix(s.text[at:], quote) {
		return at, false
	}
	at += len(quote)
	for at < len(s.text) {
		r, size := utf8.DecodeRuneInString(s.text[at:])
		if quote == string(r) {
			if quote == `"` || !strings.HasPrefix(s.text[at:], "''") {
				return at + 1, true
			}
			size = 2
		}
		if quote == `"` && r == '\\' {
			r, size = escape(s.text[at:])
		}
		if !unicode.IsSpace(r) && each != nil && !each(at) {
			return at, true
		}
		at += size
	}
	return at, quote == ""
}

// escape reads an escape of a double-quoted text (section 5.7). What stands for
// no white space need not be told apart.
func escape(text string) (r rune, size int) {
	if len(text) < 2 {
		return '\\', len(text)
	}
	if strings.ContainsRune("nrtvfN_LP \t\r\n", rune(text[1])) {
		return ' ', 2
	}
	digits, ok := map[byte]int{'x': 2, 'u': 4, 'U': 8}[text[1]]
	if !ok {
		_, size = utf8.DecodeRuneInString(text[1:])
		return '\\', 1 + size
	}
	size = min(2+digits, len(text))
	n, err := strconv.ParseUint(text[2:size], 16, 31)
	if err != nil {
		return '\\', size
	}
	if r = rune(n); r >= 0xd800 && r < 0xdc00 && strings.HasPrefix(text[size:], `\u`) { // the other half of a surrogate pair
		size = min(size+6, len(text))
	}
	return r, size
}

// within returns the place in the file of a line and a column, both from 1, of a
// scalar's value, and the place behind the value if it ends before.
func (s *source) within(t *token.Token, value string, line, column int) *token.Position {
	before, all := 0, 0 // characters, without white space
	l, c := 1, 1
	for _, r := range value {
		if !unicode.IsSpace(r) {
			all++
			if l < line || l == line && c < column {
				before++
			}
		}
		if c++; r == '\n' {
			l, c = l+1, 1
		}
	}
	if all == 0 || t.Position.Offset < 0 || t.Position.Offset > len(s.text) {
		return t.Position
	}
	n, p := 0, t.Position
	s.walk(t.Position.Offset, t, func(at int) bool {
		p = s.position(at)
		n++
		return n <= min(before, all-1)
	})
	if before == all {
		p.Column++
	}
	return p
}

// tabInside matches a tab inside a text.
var tabInside = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\S[ \t]*\t[ \t]*\S`) })

// tabs returns the places of tabs inside texts, which YAML keeps. The lexer drops
// those in texts without quotes without a word, and after one in double quotes
// whatever character follows the text.
func (s *source) tabs(tokens token.Tokens) (places []*token.Position) {
	block := false
	for _, t := range tokens {
		switch t.Type { //nolint:exhaustive // the others are plain
		case token.CommentType, token.SingleQuoteType, token.InvalidType:
			continue
		case token.LiteralType, token.FoldedType:
			block = true
			continue
		}
		if !block && tabInside().MatchString(t.Origin) {
			p := t.Position
			if p.Offset >= 0 {
				m := tabInside().FindStringIndex(s.text[p.Offset:])
				at := p.Offset + m[0]
				p = s.position(at + strings.IndexByte(s.text[at:], '\t'))
			}
			places = append(places, p)
		}
		block = false
	}
	return places
}
