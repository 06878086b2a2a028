package pins

import (
	"fmt"
	"strconv"
)

// Difference is one place where two definitions differ.
type Difference struct {
	Path string `json:"path"` // inputSchema.properties.path.type
	Old  string `json:"old"`  // a text as it is, else JSON; "" if there is nothing
	New  string `json:"new"`
	Was  bool   `json:"was"` // there was something
	Is   bool   `json:"is"`  // there is something
}

// Diff lists where a change lies, in the order of the paths.
func Diff(c Change) (out []Difference) {
	a, ok1 := value(c.Old)
	b, ok2 := value(c.New)
	diff("", a, b, ok1 && c.Old != nil, ok2 && c.New != nil, &out)
	if len(out) == 0 { // readers differ about it: it is shown as it is
		out = append(out, Difference{Old: string(c.Old), New: string(c.New), Was: c.Old != nil, Is: c.New != nil})
	}
	return out
}

func diff(path string, a, b any, was, is bool, out *[]Difference) {
	x, y := object(a), object(b)
	if was && is && x != nil && y != nil {
		for _, k := range union(sorted(x), sorted(y)) {
			u, inX := x[k]
			v, inY := y[k]
			diff(join(path, k), u, v, inX, inY, out)
		}
		return
	}
	l, ok1 := a.([]any)
	m, ok2 := b.([]any)
	if was && is && ok1 && ok2 && plainList(l) && plainList(m) {
		lists(path, l, m, out)
		return
	}
	if was && is && ok1 && ok2 {
		for i := range max(len(l), len(m)) {
			var u, v any
			if i < len(l) {
				u = l[i]
			}
			if i < len(m) {
				v = m[i]
			}
			diff(join(path, strconv.Itoa(i)), u, v, i < len(l), i < len(m), out)
		}
		return
	}
	if was == is && canonical(a) == canonical(b) {
		return
	}
	d := Difference{Path: path, Was: was, Is: is}
	if was {
		d.Old = shown(a)
	}
	if is {
		d.New = shown(b)
	}
	*out = append(*out, d)
}

// plainList reports a list whose order says little, such as that of required names.
func plainList(l []any) bool {
	for _, v := range l {
		switch v.(type) {
		case map[string]any, []any:
			return false
		}
	}
	return true
}

func lists(path string, a, b []any, out *[]Difference) {
	before := len(*out)
	for _, x := range a {
		if !holds(b, x) {
			*out = append(*out, Difference{Path: path, Old: shown(x), Was: true})
		}
	}
	for _, x := range b {
		if !holds(a, x) {
			*out = append(*out, Difference{Path: path, New: shown(x), Is: true})
		}
	}
	if len(*out) == before && canonical(a) != canonical(b) { // another order, or repetitions
		*out = append(*out, Difference{Path: path, Old: canonical(a), New: canonical(b), Was: true, Is: true})
	}
}

func holds(l []any, x any) bool {
	for _, v := range l {
		if canonical(v) == canonical(x) {
			return true
		}
	}
	return false
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func shown(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	if v == nil {
		return "null"
	}
	switch v.(type) {
	case map[string]any, []any:
		return canonical(v)
	}
	return fmt.Sprint(v)
}
