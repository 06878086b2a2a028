package wire

import (
	"encoding/json"
	"slices"
)

// scanner reads JSON by the grammar of RFC 8259 alone, as fast as it can: every
// byte of every message passes by it. Texts, which are most of a message, are read
// eight bytes at a time. What it does not accept is read again by the library, which
// has the last word and the words for it; [FuzzScan] holds the two together.
type scanner struct {
	b     []byte
	i     int
	depth int
}

// maxScan is the deepest nesting that the library reads.
const maxScan = 10_000

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return
		}
	}
}

// next skips white space and takes c, if it comes.
func (s *scanner) next(c byte) bool {
	s.space()
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// value reads one value, without what is around it.
func (s *scanner) value() bool {
	if s.i >= len(s.b) {
		return false
	}
	switch s.b[s.i] {
	case '"':
		return s.text()
	case '{':
		return s.object(nil)
	case '[':
		return s.array(nil)
	case 't':
		return s.word("true")
	case 'f':
		return s.word("false")
	case 'n':
		return s.word("null")
	}
	return s.number()
}

func (s *scanner) word(w string) bool {
	if len(s.b)-s.i < len(w) || string(s.b[s.i:s.i+len(w)]) != w {
		return false
	}
	s.i += len(w)
	return true
}

// object reads one, and hands its members on as places in b.
func (s *scanner) object(member func(name, value [2]int) bool) bool {
	more, ok := s.enter('}')
	for more {
		name := [2]int{s.i, 0}
		if s.i >= len(s.b) || s.b[s.i] != '"' || !s.text() {
			return false
		}
		if name[1] = s.i; !s.next(':') {
			return false
		}
		s.space()
		value := [2]int{s.i, 0}
		if !s.value() {
			return false
		}
		value[1] = s.i
		if member != nil && !member(name, value) {
			return false
		}
		more, ok = s.after('}')
	}
	return ok
}

// array reads one, and hands its elements on.
func (s *scanner) array(element func(value [2]int) bool) bool {
	more, ok := s.enter(']')
	for more {
		value := [2]int{s.i, 0}
		if !s.value() {
			return false
		}
		value[1] = s.i
		if element != nil && !element(value) {
			return false
		}
		more, ok = s.after(']')
	}
	return ok
}

// enter takes an opening bracket. more reports that a part comes before the closing one.
func (s *scanner) enter(closing byte) (more, ok bool) {
	if s.depth++; s.depth > maxScan {
		return false, false
	}
	s.i++
	if s.next(closing) {
		s.depth--
		return false, true
	}
	return true, true
}

// after takes what stands after a part: a comma, or the closing bracket.
func (s *scanner) after(closing byte) (more, ok bool) {
	switch {
	case s.next(','):
		s.space()
		return true, true
	case s.next(closing):
		s.depth--
		return false, true
	}
	return false, false
}

// text reads a string. Whether its bytes are UTF-8 is not looked at.
func (s *scanner) text() bool {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	b, i := s.b, s.i+1
	for i < len(b) {
		for ; i+8 <= len(b); i += 8 {
			w := b[i : i+8]
			x := uint64(w[0]) | uint64(w[1])<<8 | uint64(w[2])<<16 | uint64(w[3])<<24 | uint64(w[4])<<32 | uint64(w[5])<<40 | uint64(w[6])<<48 | uint64(w[7])<<56
			quote, escape := x^'"'*ones, x^'\\'*ones
			if ((x-' '*ones)&^x|(quote-ones)&^quote|(escape-ones)&^escape)&high != 0 {
				break // one of them is a control character, a quote or a backslash
			}
		}
		for i < len(b) && b[i] != '"' && b[i] != '\\' && b[i] >= ' ' {
			i++
			if i%8 == 0 {
				break // what stopped the eight is behind
			}
		}
		switch {
		case i >= len(b) || b[i] < ' ':
			return false
		case b[i] == '"':
			s.i = i + 1
			return true
		case b[i] == '\\':
			n := escape(b[i:])
			if n == 0 {
				return false
			}
			i += n
		}
	}
	return false
}

// escape returns the length of the escape sequence at the start of b, 0 if it is
// none.
func escape(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(b) < 6 {
			return 0
		}
		for _, c := range b[2:6] {
			switch {
			case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
			default:
				return 0
			}
		}
		return 6
	}
	return 0
}

func (s *scanner) number() bool {
	if s.i < len(s.b) && s.b[s.i] == '-' {
		s.i++
	}
	if s.i < len(s.b) && s.b[s.i] == '0' {
		s.i++
	} else if !s.digits() {
		return false
	}
	if s.i < len(s.b) && s.b[s.i] == '.' {
		if s.i++; !s.digits() {
			return false
		}
	}
	if s.i < len(s.b) && (s.b[s.i] == 'e' || s.b[s.i] == 'E') {
		if s.i++; s.i < len(s.b) && (s.b[s.i] == '+' || s.b[s.i] == '-') {
			s.i++
		}
		return s.digits()
	}
	return true
}

func (s *scanner) digits() bool {
	from := s.i
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > from
}

// end reports that nothing follows.
func (s *scanner) end() bool {
	s.space()
	return s.i == len(s.b)
}

// scanMembers is Members for what is as it should be.
func scanMembers(raw []byte) ([]Member, bool) {
	s := scanner{b: raw}
	if s.space(); s.i >= len(raw) || raw[s.i] != '{' {
		return nil, false
	}
	var few [8]Member
	members := few[:0]
	var seen names
	ok := s.object(func(name, value [2]int) bool {
		m := Member{quoted: raw[name[0]:name[1]], Value: raw[value[0]:value[1]:value[1]], Start: value[0], End: value[1]}
		m.Name = nameOf(m.quoted)
		if seen.has(members, m.Name) {
			return false
		}
		members = append(members, m)
		return true
	})
	return slices.Clone(members), ok && s.end()
}

// nameOf decodes the name of a member; those that all messages have are not copied.
func nameOf(quoted []byte) string {
	switch inner := quoted[1 : len(quoted)-1]; string(inner) {
	case "jsonrpc":
		return "jsonrpc"
	case "id":
		return "id"
	case "method":
		return "method"
	case "params":
		return "params"
	case "result":
		return "result"
	case "error":
		return "error"
	case "name":
		return "name"
	case "arguments":
		return "arguments"
	case "_meta":
		return "_meta"
	case "content":
		return "content"
	case "structuredContent":
		return "structuredContent"
	case "isError":
		return "isError"
	default:
		for _, c := range inner {
			if c == '\\' || c >= 0x80 {
				return unquoted(quoted)
			}
		}
		return string(inner)
	}
}

// scanElements is Elements for what is as it should be.
func scanElements(raw []byte) (elements []json.RawMessage, ok bool) {
	s := scanner{b: raw}
	if s.space(); s.i >= len(raw) || raw[s.i] != '[' {
		return nil, false
	}
	ok = s.array(func(value [2]int) bool {
		elements = append(elements, raw[value[0]:value[1]:value[1]])
		return true
	})
	return elements, ok && s.end()
}
