package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// arguments reads the arguments of a call at most once, and no deeper than a
// rule looks: a decision has microseconds, and most rules look at one field.
type arguments struct {
	raw  json.RawMessage
	read bool
	obj  map[string]any // values are of type *raw
	err  error
}

// raw is a JSON value that has not been looked into yet. It was found valid by
// the reader of messages; here it is enough that malformed JSON gives an error.
type raw []byte

var (
	errJSON = errors.New("the arguments are no valid JSON")
	errKind = errors.New("the arguments are no JSON object")
)

var errCase = errors.New("the arguments have keys that differ only in case, which upstreams read differently")

func (a *arguments) object() (map[string]any, error) {
	if a.read {
		return a.obj, a.err
	}
	a.read = true
	if len(a.raw) == 0 {
		a.obj = map[string]any{}
		return a.obj, nil
	}
	a.obj, a.err = trim(raw(a.raw)).object()
	return a.obj, a.err
}

// value returns what a condition sees as args.
func (a *arguments) value() any {
	obj, err := a.object()
	if err != nil {
		return types.WrapErr(err)
	}
	return obj
}

// amount returns the text of the number or decimal string at p.
func (a *arguments) amount(p pointer) (string, error) {
	obj, err := a.object()
	if err != nil {
		return "", err
	}
	if len(p) == 0 {
		return "", errors.New("is an object, not an amount")
	}
	r, ok := obj[p[0]].(*raw)
	if !ok {
		return "", errors.New("is missing")
	}
	return r.amount(p[1:])
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
			obj, err := r.object()
			if err != nil {
				return "", err
			}
			next, ok := obj[token].(*raw)
			if !ok {
				return "", errors.New("is missing")
			}
			r = *next
		case '[':
			list, err := r.list()
			if err != nil {
				return "", err
			}
			i, err := strconv.Atoi(token)
			if err != nil || i < 0 || i >= len(list) || token != strconv.Itoa(i) {
				return "", errors.New("is missing")
			}
			next, ok := list[i].(*raw)
			if !ok {
				return "", errors.New("is missing")
			}
			r = *next
		default:
			return "", errors.New("is missing")
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

// object indexes the members of an object as pointers to raw. Two keys that
// differ only in case make it unreadable.
func (r raw) object() (map[string]any, error) {
	if !r.at(0, '{') {
		return nil, errKind
	}
	keys := make([]string, 0, 16)
	values := make([]raw, 0, 16)
	for i := r.skip(1); !r.at(i, '}'); {
		n := r.end(i)
		key, err := r[i:n].string()
		if err != nil {
			return nil, err
		}
		if i = r.skip(n); !r.at(i, ':') {
			return nil, errJSON
		}
		i = r.skip(i + 1)
		n = r.end(i)
		if n == i {
			return nil, errJSON
		}
		keys, values = append(keys, key), append(values, r[i:n:n])
		if i = r.skip(n); r.at(i, ',') {
			i = r.skip(i + 1)
		} else if !r.at(i, '}') {
			return nil, errJSON
		}
	}
	if collide(keys) {
		return nil, errCase
	}
	obj := make(map[string]any, len(keys))
	for i, key := range keys {
		if _, twice := obj[key]; twice {
			return nil, fmt.Errorf("the key %q stands twice", clip(key))
		}
		obj[key] = &values[i]
	}
	return obj, nil
}

// collide reports keys that differ only in case. Most objects have lower-case
// keys, which cannot.
func collide(keys []string) bool {
	plain := 0
	for _, k := range keys {
		if lower(k) {
			plain++
		}
	}
	if plain == len(keys) {
		return false
	}
	folded := make(map[string]string, len(keys))
	for _, k := range keys {
		f := strings.ToLower(strings.ToUpper(k)) // both: some letters fold only one way
		if other, seen := folded[f]; seen && other != k {
			return true
		}
		folded[f] = k
	}
	return false
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

// list indexes the elements of an array as pointers to raw.
func (r raw) list() ([]any, error) {
	var values []raw
	for i := r.skip(1); !r.at(i, ']'); {
		n := r.end(i)
		if n == i {
			return nil, errJSON
		}
		values = append(values, r[i:n:n])
		if i = r.skip(n); r.at(i, ',') {
			i = r.skip(i + 1)
		} else if !r.at(i, ']') {
			return nil, errJSON
		}
	}
	list := make([]any, len(values))
	for i := range values {
		list[i] = &values[i]
	}
	return list, nil
}

func (r raw) string() (string, error) {
	if len(r) < 2 || r[0] != '"' || r[len(r)-1] != '"' {
		return "", errJSON
	}
	plain := true
	for _, c := range r[1 : len(r)-1] {
		if c >= utf8.RuneSelf || c == '\\' {
			plain = false
			break
		}
	}
	if plain {
		return string(r[1 : len(r)-1]), nil
	}
	var s string
	err := json.Unmarshal(r, &s)
	return s, err
}

// jsonAdapter turns JSON into CEL values when a condition looks at them:
// integers that fit are int or uint and exact, other numbers double.
type jsonAdapter struct{}

// NativeToValue implements [types.Adapter].
func (a jsonAdapter) NativeToValue(value any) ref.Val {
	switch v := value.(type) {
	case *raw:
		return a.json(*v)
	case map[string]any:
		return types.NewStringInterfaceMap(a, v)
	case []any:
		return types.NewDynamicList(a, v)
	}
	return types.DefaultTypeAdapter.NativeToValue(value)
}

func (a jsonAdapter) json(r raw) ref.Val {
	switch r.first() {
	case '{':
		obj, err := r.object()
		if err != nil {
			return types.WrapErr(err)
		}
		return types.NewStringInterfaceMap(a, obj)
	case '[':
		list, err := r.list()
		if err != nil {
			return types.WrapErr(err)
		}
		return types.NewDynamicList(a, list)
	case '"':
		s, err := r.string()
		if err != nil {
			return types.WrapErr(err)
		}
		return types.String(s)
	}
	text := string(r)
	switch {
	case text == "true":
		return types.True
	case text == "false":
		return types.False
	case text == "null":
		return types.NullValue
	case !jsonNumber(text):
		return types.WrapErr(errJSON)
	case !strings.ContainsAny(text, ".eE"):
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return types.Int(n)
		}
		if n, err := strconv.ParseUint(text, 10, 64); err == nil {
			return types.Uint(n)
		}
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(f, 0) {
		return types.NewErr("the number %s is too large", clip(text))
	}
	return types.Double(f)
}
