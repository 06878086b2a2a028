package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// arguments reads the arguments of a call no deeper than a rule looks: a
// decision has microseconds, and most rules look at one field.
type arguments struct {
	raw json.RawMessage
	top ref.Val // the whole as a condition sees it; nil before one has looked
	// unreadable is why a value that a condition has looked at means different
	// things to different readers. cel-go compares and searches past errors in
	// nested values, so it is kept here and asked for after the evaluation.
	unreadable error
}

// raw is a JSON value that has not been looked into yet. It was found valid by
// the reader of messages; here it is enough that malformed JSON gives an error.
type raw []byte

var (
	errJSON    = errors.New("the arguments are no valid JSON")
	errKind    = errors.New("the arguments are no JSON object")
	errCase    = errors.New("the arguments have keys that differ only in case, which upstreams read differently")
	errMissing = errors.New("is missing")
)

// object returns the arguments as a JSON object; none are an empty one.
func (a *arguments) object() raw {
	if len(a.raw) == 0 {
		return raw("{}")
	}
	return trim(raw(a.raw))
}

// value returns what a condition sees as args.
func (a *arguments) value() ref.Val {
	if r := a.object(); a.top == nil && r.first() != '{' {
		a.top = types.WrapErr(errKind)
	} else if a.top == nil {
		a.top = a.read(r)
	}
	return a.noted(a.top)
}

// fail notes that a condition has looked at something unreadable. Of several
// reasons the first in alphabetical order is kept, since the order in which
// cel-go looks is not always the same.
func (a *arguments) fail(err error) ref.Val {
	if a.unreadable == nil || err.Error() < a.unreadable.Error() {
		a.unreadable = err
	}
	return types.WrapErr(err)
}

// noted notes an unreadable value again, for each condition that looks at it.
func (a *arguments) noted(v ref.Val) ref.Val {
	if err, ok := v.(*types.Err); ok {
		return a.fail(err.Unwrap())
	}
	return v
}

// amount returns the text of the number or decimal string at p.
func (a *arguments) amount(p pointer) (string, error) {
	r := a.object()
	if r.first() != '{' {
		return "", errKind
	}
	return r.amount(p)
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

func (r raw) amount(p pointer) (string, error) {
	for _, token := range p {
		switch r.first() {
		case '{':
			keys, values, err := r.members()
			if err != nil {
				return "", err
			}
			i := slices.Index(keys, token)
			if i < 0 {
				return "", errMissing
			}
			r = values[i]
		case '[':
			list, err := r.elements()
			if err != nil {
				return "", err
			}
			i, err := strconv.Atoi(token)
			if err != nil || i < 0 || i >= len(list) || token != strconv.Itoa(i) {
				return "", errMissing
			}
			r = list[i]
		default:
			return "", errMissing
		}
	}
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

func trim(r raw) raw {
	for len(r) > 0 && space(r[0]) {
		r = r[1:]
	}
	for len(r) > 0 && space(r[len(r)-1]) {
		r = r[:len(r)-1]
	}
	return r
}

func space(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// first returns the first byte of r, 0 if there is none.
func (r raw) first() byte {
	if len(r) == 0 {
		return 0
	}
	return r[0]
}

// end returns where the JSON value that begins at i ends.
func (r raw) end(i int) int {
	depth := 0
	for ; i < len(r); i++ {
		switch r[i] {
		case '"':
			for i++; i < len(r) && r[i] != '"'; i++ {
				if r[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
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

// skip returns the first place from i on that is no white space.
func (r raw) skip(i int) int {
	for i < len(r) && space(r[i]) {
		i++
	}
	return i
}

// at reports whether r has the byte c at i.
func (r raw) at(i int, c byte) bool { return i < len(r) && r[i] == c }

// members returns the members of an object. Two keys that are equal, or differ
// only in case, make it unreadable.
func (r raw) members() (keys []string, values []raw, err error) {
	if !r.at(0, '{') {
		return nil, nil, errKind
	}
	keys, values = make([]string, 0, 16), make([]raw, 0, 16)
	for i := r.skip(1); !r.at(i, '}') || i != len(r)-1; {
		n := r.end(i)
		key, err := r[i:n].string()
		if err != nil {
			return nil, nil, err
		}
		if i = r.skip(n); !r.at(i, ':') {
			return nil, nil, errJSON
		}
		i = r.skip(i + 1)
		n = r.end(i)
		if n == i {
			return nil, nil, errJSON
		}
		keys, values = append(keys, key), append(values, r[i:n:n])
		if i, err = r.next(n, '}'); err != nil {
			return nil, nil, err
		}
	}
	return keys, values, collide(keys)
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

// collide refuses keys that are equal or differ only in case. Most objects are
// small and have lower-case keys, which only can be equal.
func collide(keys []string) error {
	plain := true
	for i, k := range keys {
		plain = plain && i < 16 && lower(k)
		if plain && slices.Contains(keys[:i], k) {
			return fmt.Errorf("the key %q stands twice", clip(k))
		}
	}
	if plain {
		return nil
	}
	folded := make(map[string]string, len(keys))
	for _, k := range keys {
		f := strings.ToLower(strings.ToUpper(k)) // both: some letters fold only one way
		if other, seen := folded[f]; seen && other == k {
			return fmt.Errorf("the key %q stands twice", clip(k))
		} else if seen {
			return errCase
		}
		folded[f] = k
	}
	return nil
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

// elements returns the elements of an array.
func (r raw) elements() ([]raw, error) {
	var values []raw
	for i := r.skip(1); !r.at(i, ']') || i != len(r)-1; {
		n := r.end(i)
		if n == i {
			return nil, errJSON
		}
		values = append(values, r[i:n:n])
		var err error
		if i, err = r.next(n, ']'); err != nil {
			return nil, err
		}
	}
	return values, nil
}

func (r raw) string() (string, error) {
	if len(r) < 2 || r[0] != '"' || r[len(r)-1] != '"' {
		return "", errJSON
	}
	plain := true
	for _, c := range r[1 : len(r)-1] {
		if c >= utf8.RuneSelf || c == '\\' || c < ' ' {
			plain = false
			break
		}
	}
	if plain {
		return string(r[1 : len(r)-1]), nil
	}
	var s string
	if json.Unmarshal(r, &s) != nil {
		return "", errJSON
	}
	return s, nil
}

// read turns JSON into the value that a condition sees: integers exactly, as
// int or uint, other numbers as double. An object is read one level deep, a list
// as a whole, so an unreadable element makes all of its list unreadable.
func (a *arguments) read(r raw) ref.Val {
	switch r.first() {
	case '{':
		keys, values, err := r.members()
		if err != nil {
			return a.fail(err)
		}
		return &object{of: a, keys: keys, values: values, known: make([]ref.Val, len(keys))}
	case '[':
		elements, err := r.elements()
		if err != nil {
			return a.fail(err)
		}
		list := make([]ref.Val, len(elements))
		for i, e := range elements {
			if list[i] = a.read(e); types.IsError(list[i]) {
				return list[i]
			}
		}
		return types.NewRefValList(types.DefaultTypeAdapter, list)
	case '"':
		s, err := r.string()
		if err != nil {
			return a.fail(err)
		}
		return types.String(s)
	}
	switch text := string(r); text {
	case "true":
		return types.True
	case "false":
		return types.False
	case "null":
		return types.NullValue
	default:
		v, err := number(text)
		if err != nil {
			return a.fail(err)
		}
		return v
	}
}

// number reads a JSON number: an integer exactly, or not at all.
func number(text string) (ref.Val, error) {
	if !jsonNumber(text) {
		return nil, errJSON
	}
	if !strings.ContainsAny(text, ".eE") {
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return types.Int(n), nil
		}
		if n, err := strconv.ParseUint(text, 10, 64); err == nil {
			return types.Uint(n), nil
		}
		return nil, fmt.Errorf("the number %s is too large", clip(text))
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(f, 0) {
		return nil, fmt.Errorf("the number %s is too large", clip(text))
	}
	return types.Double(f), nil
}
