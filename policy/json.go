package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"cel.dev/cel-go/common/types/ref"
)

// raw is a JSON value that has not been looked into yet, a part of the text it
// was found in. That text was found valid by the reader of messages; here it is
// enough that malformed JSON gives an error.
type raw string

// member is one member of an object.
type member struct {
	key   string
	value raw
	seen  ref.Val // the value as conditions see it; nil before one has looked
}

var (
	errJSON    = errors.New("the arguments are no valid JSON")
	errKind    = errors.New("the arguments are no JSON object")
	errCase    = errors.New("the arguments have keys that differ only in case, which upstreams read differently")
	errMany    = errors.New("the arguments have too many parts to be looked into")
	errMissing = errors.New("is missing")
)

func trim(r raw) raw { return raw(strings.Trim(string(r), " \t\r\n")) }

func space(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// first returns the first byte of r, 0 if there is none.
func (r raw) first() byte {
	if r == "" {
		return 0
	}
	return r[0]
}

// at reports whether r has the byte c at i.
func (r raw) at(i int, c byte) bool { return i < len(r) && r[i] == c }

// skip returns the first place from i on that is no white space.
func (r raw) skip(i int) int {
	for i < len(r) && space(r[i]) {
		i++
	}
	return i
}

// end returns where the JSON value that begins at i ends.
func (r raw) end(i int) int {
	depth := 0
	for ; i < len(r); i++ {
		switch r[i] {
		case '"':
			if i = r.quote(i); depth == 0 {
				return min(i+1, len(r))
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return i
			}
		}
	}
	return len(r)
}

// quote returns where the string that begins at i has its closing quote.
func (r raw) quote(i int) int {
	inner := string(r[i+1:])
	n := strings.IndexByte(inner, '"')
	if n >= 0 && strings.IndexByte(inner[:n], '\\') < 0 { // most have no escapes
		return i + 1 + n
	}
	for i++; i < len(r); i++ {
		switch r[i] {
		case '"':
			return i
		case '\\':
			i++
		}
	}
	return len(r)
}

// members appends the members of an object to none, which is empty. Two keys that are
// equal, or differ only in case, make it unreadable.
func (r raw) members(none []member) ([]member, error) {
	if !r.at(0, '{') {
		return nil, errKind
	}
	members := none
	for i := r.skip(1); !r.at(i, '}') || i != len(r)-1; {
		n := r.end(i)
		key, err := r[i:n].string()
		if err != nil {
			return nil, err
		}
		if i = r.skip(n); !r.at(i, ':') {
			return nil, errJSON
		}
		i = r.skip(i + 1)
		if n = r.end(i); n == i {
			return nil, errJSON
		}
		members = append(members, member{key: key, value: r[i:n]})
		if i, err = r.next(n, '}'); err != nil {
			return nil, err
		}
	}
	return members, collide(members)
}

// elements returns the elements of an array.
func (r raw) elements() ([]raw, error) {
	var values []raw
	for i := r.skip(1); !r.at(i, ']') || i != len(r)-1; {
		n := r.end(i)
		if n == i {
			return nil, errJSON
		}
		values = append(values, r[i:n])
		var err error
		if i, err = r.next(n, ']'); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// next returns where the next member or element begins after one that ends at
// i, or where the closing bracket stands, which ends the value.
func (r raw) next(i int, closing byte) (int, error) {
	i = r.skip(i)
	if r.at(i, ',') {
		if i = r.skip(i + 1); i < len(r) && !r.at(i, closing) {
			return i, nil
		}
		return 0, errJSON
	}
	if !r.at(i, closing) || i != len(r)-1 {
		return 0, errJSON
	}
	return i, nil
}

// string decodes a string; without escapes it is a part of the text.
func (r raw) string() (string, error) {
	if len(r) < 2 || r[0] != '"' || r[len(r)-1] != '"' {
		return "", errJSON
	}
	inner := string(r[1 : len(r)-1])
	if plain(inner) {
		return inner, nil
	}
	var s string
	if json.Unmarshal([]byte(r), &s) != nil {
		return "", errJSON
	}
	return s, nil
}

// plain reports that the inside of a string stands for itself. Eight bytes are
// looked at together: texts are most of what arguments hold.
func plain(s string) bool {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	ascii, i := true, 0
	for ; i+8 <= len(s); i += 8 {
		b := s[i : i+8]
		x := uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 | uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
		control := (x - ' '*ones) &^ x // the high bit of a byte below a space
		escape := x ^ '\\'*ones
		if (control|(escape-ones)&^escape)&high != 0 {
			return false
		}
		ascii = ascii && x&high == 0
	}
	for ; i < len(s); i++ {
		if s[i] < ' ' || s[i] == '\\' {
			return false
		}
		ascii = ascii && s[i] < utf8.RuneSelf
	}
	return ascii || utf8.ValidString(s)
}

// collide refuses keys that are equal or differ only in case. Most objects are
// small and have lower-case keys, which only can be equal.
func collide(members []member) error {
	plain := len(members) <= fewMembers
	for i := 0; plain && i < len(members); i++ {
		plain = lower(members[i].key)
		for j := range i {
			if members[j].key == members[i].key {
				return fmt.Errorf("the key %q stands twice", clip(members[i].key))
			}
		}
	}
	if plain {
		return nil
	}
	folded := make(map[string]string, len(members))
	for _, m := range members {
		f := fold(m.key)
		if other, seen := folded[f]; seen && other == m.key {
			return fmt.Errorf("the key %q stands twice", clip(m.key))
		} else if seen {
			return errCase
		}
		folded[f] = m.key
	}
	return nil
}

// fewMembers is up to how many members an object is searched without an index.
const fewMembers = 16

// fold makes keys equal that differ only in case.
func fold(s string) string {
	return strings.ToLower(strings.ToUpper(s)) // both: some letters fold only one way
}

// lower reports that s has neither capital letters nor anything but ASCII.
func lower(s string) bool {
	for i := range len(s) {
		if c := s[i]; c >= utf8.RuneSelf || c >= 'A' && c <= 'Z' {
			return false
		}
	}
	return true
}

// amount returns the text of the number or decimal string at p.
func (r raw) amount(p pointer) (string, error) {
	if len(p) == 0 {
		return r.amountText()
	}
	switch r.first() {
	case '{':
		members, err := r.members(nil)
		if err != nil {
			return "", err
		}
		return pick(members, p)
	case '[':
		list, err := r.elements()
		if err != nil {
			return "", err
		}
		if i, err := strconv.Atoi(p[0]); err == nil && i >= 0 && i < len(list) && p[0] == strconv.Itoa(i) {
			return list[i].amount(p[1:])
		}
	}
	return "", errMissing
}

func pick(members []member, p pointer) (string, error) {
	i, err := find(members, p[0])
	if err != nil {
		return "", err
	}
	if i < 0 {
		return "", errMissing
	}
	return members[i].value.amount(p[1:])
}

// find returns the place of a key, -1 if it is not there. A key that is there
// but for its case is an error: some upstreams would take it for this one.
func find(members []member, key string) (int, error) {
	for i := range members {
		if members[i].key == key {
			return i, nil
		}
	}
	for i := range members {
		if len(members[i].key) == len(key) && strings.EqualFold(members[i].key, key) || !lower(members[i].key) && strings.EqualFold(members[i].key, key) {
			return -1, errCase
		}
	}
	return -1, nil
}

func (r raw) amountText() (string, error) {
	switch c := r.first(); {
	case c == '"':
		return r.string()
	case c == '-' || c >= '0' && c <= '9':
		return string(r), nil
	case c == 'n':
		return "", errors.New("is null")
	case c == '{':
		return "", errors.New("is an object, not an amount")
	case c == '[':
		return "", errors.New("is a list, not an amount")
	}
	return "", errors.New("is a boolean, not an amount")
}

// Amount reads the dollars at the JSON pointer at in a JSON document, e.g. the
// actual cost in a result. Keys that differ only in case on the way are an
// error, as is everything that [ParseUSD] refuses.
func Amount(document json.RawMessage, at string) (Micros, error) {
	p, err := parsePointer(at)
	if err != nil {
		return 0, err
	}
	if !json.Valid(document) {
		return 0, errors.New("no valid JSON")
	}
	text, err := trim(raw(document)).amount(p)
	if err != nil {
		return 0, err
	}
	return ParseUSD(text)
}
