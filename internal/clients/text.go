package clients

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/tailscale/hujson"

	"github.com/haldir-mcp/haldir/internal/wire"
)

const bom = "\ufeff"

// Limits of a file that is read.
const (
	maxFile  = 64 << 20 // bytes; Claude Code's own file grows with its history
	maxDepth = 1000
)

// text is a file that was taken apart. Offsets are those in body.
type text struct {
	path string
	bom  bool
	body []byte
	root *hujson.Value // nil: the file is blank
	eol  string
}

// parse takes a file apart. An error names the place, and never repeats what stands there,
// which may be secret.
func parse(path string, data []byte) (*text, error) {
	t := &text{path: path, body: data, eol: "\n"}
	t.body, t.bom = bytes.CutPrefix(data, []byte(bom))
	if i := bytes.IndexByte(t.body, '\n'); i > 0 && t.body[i-1] == '\r' {
		t.eol = "\r\n"
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: has more than %d MiB", path, maxFile>>20)
	}
	if len(bytes.TrimSpace(t.body)) == 0 {
		return t, nil
	}
	if at := tooDeep(t.body); at >= 0 {
		return nil, t.problem(at, "is nested more than %d levels deep", maxDepth)
	}
	root, err := hujson.Parse(t.body)
	if err != nil {
		return nil, t.unreadable(err)
	}
	t.root = &root
	return t, nil
}

// unreadable gives an error of the library the place it is about, without its quotes.
func (t *text) unreadable(err error) error {
	var line, column int
	if _, scan := fmt.Sscanf(err.Error(), "hujson: line %d, column %d", &line, &column); scan != nil {
		return fmt.Errorf("%s: is no JSON that can be read", t.path)
	}
	why := errors.Unwrap(err)
	what := "no JSON can go on like this"
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		what = "the file ends too early"
	case why != nil && strings.HasPrefix(why.Error(), "invalid character"):
		what = why.Error()
	case why != nil && strings.HasPrefix(why.Error(), "invalid literal"):
		what = "no valid JSON value stands here"
	}
	lines := bytes.SplitAfter(t.body, []byte("\n"))
	if line-1 < len(lines) {
		l := lines[line-1]
		column = utf8.RuneCount(l[:min(column-1, len(l))]) + 1
	}
	return fmt.Errorf("%s:%d:%d: %s", t.path, line, column, what)
}

// tooDeep returns where a text is nested too deep to be read, or -1.
func tooDeep(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case bytes.HasPrefix(b[i:], []byte("//")):
			for i < len(b) && b[i] != '\n' {
				i++
			}
		case bytes.HasPrefix(b[i:], []byte("/*")):
			end := bytes.Index(b[i+2:], []byte("*/"))
			if end < 0 {
				return -1 // the reader says so
			}
			i += end + 3
		case b[i] == '{' || b[i] == '[':
			if depth++; depth > maxDepth {
				return i
			}
		case b[i] == '}' || b[i] == ']':
			depth--
		}
	}
	return -1
}

// problem is an error with its place.
func (t *text) problem(at int, format string, args ...any) error {
	line, column := t.place(at)
	return fmt.Errorf("%s:%d:%d: %s", t.path, line, column, fmt.Sprintf(format, args...))
}

// place is the line and the column, in characters, of an offset.
func (t *text) place(at int) (line, column int) {
	start := bytes.LastIndexByte(t.body[:at], '\n') + 1
	return bytes.Count(t.body[:at], []byte("\n")) + 1, utf8.RuneCount(t.body[start:at]) + 1
}

// object returns v as an object; nil if it is none.
func object(v *hujson.Value) *hujson.Object {
	if v == nil {
		return nil
	}
	o, _ := v.Value.(*hujson.Object)
	return o
}

// str returns v as a text.
func str(v *hujson.Value) (string, bool) {
	if v == nil {
		return "", false
	}
	l, ok := v.Value.(hujson.Literal)
	if !ok || l.Kind() != '"' {
		return "", false
	}
	return l.String(), true
}

func nameOf(m *hujson.ObjectMember) string {
	s, _ := str(&m.Name)
	return s
}

// member finds a member of an object by its name. One that stands there twice is an error:
// clients do not agree on which of them holds.
func (t *text) member(o *hujson.Object, name string) (*hujson.ObjectMember, error) {
	var found *hujson.ObjectMember
	for i := range o.Members {
		if m := &o.Members[i]; nameOf(m) == name {
			if found != nil {
				return nil, t.problem(m.Name.StartOffset, "%q stands twice in one object", name)
			}
			found = m
		}
	}
	return found, nil
}

// inside finds an object that is the value of a member; nil if there is none, or null. What is
// there and is no object is an error.
func (t *text) inside(o *hujson.Object, name string) (*hujson.Object, error) {
	m, err := t.member(o, name)
	if err != nil || m == nil || isNull(&m.Value) {
		return nil, err
	}
	in := object(&m.Value)
	if in == nil {
		return nil, t.problem(m.Value.StartOffset, "%s must be an object", name)
	}
	return in, nil
}

// splice replaces the bytes from start to end.
type splice struct {
	start, end int
	with       string
}

// edited is the file with splices made. Of two that overlap the second has what is left.
func (t *text) edited(splices []splice) []byte {
	slices.SortStableFunc(splices, func(a, b splice) int { return a.start - b.start })
	var out bytes.Buffer
	if t.bom {
		out.WriteString(bom)
	}
	at := 0
	for _, s := range splices {
		out.Write(t.body[at:max(at, s.start)])
		out.WriteString(s.with)
		at = max(at, s.end)
	}
	out.Write(t.body[at:])
	return out.Bytes()
}

// blank reports whether there is nothing but space.
func blank(b []byte) bool { return len(bytes.TrimLeft(b, " \t\r\n")) == 0 }

// lead returns what stands before an offset in its line, and whether that is only space.
func (t *text) lead(at int) (string, bool) {
	start := bytes.LastIndexByte(t.body[:at], '\n') + 1
	s := t.body[start:at]
	return string(s), blank(s)
}

// margin is the space at the beginning of the line of an offset.
func (t *text) margin(at int) string {
	start := bytes.LastIndexByte(t.body[:at], '\n') + 1
	line := t.body[start:]
	return string(line[:len(line)-len(bytes.TrimLeft(line, " \t"))])
}

// item is a member or an element: where it is, and where the comma behind it is, or -1.
type item struct{ start, end, comma int }

func items(v *hujson.Value) []item {
	var out []item
	add := func(start int, v *hujson.Value, last bool) {
		comma := v.EndOffset + len(v.AfterExtra)
		if last && v.AfterExtra == nil {
			comma = -1
		}
		out = append(out, item{start, v.EndOffset, comma})
	}
	switch c := v.Value.(type) {
	case *hujson.Object:
		for i := range c.Members {
			add(c.Members[i].Name.StartOffset, &c.Members[i].Value, i == len(c.Members)-1)
		}
	case *hujson.Array:
		for i := range c.Elements {
			add(c.Elements[i].StartOffset, &c.Elements[i], i == len(c.Elements)-1)
		}
	}
	return out
}

// take takes items out of what they are in, and leaves the comments around them. gone tells
// which; the others keep the commas that they need. What keep says of one stays in its place.
func (t *text) take(v *hujson.Value, gone func(i int) bool, keep func(i int) string) []splice {
	all := items(v)
	var cuts []splice
	kept := -1 // the last before that stays
	for i, it := range all {
		with := ""
		if keep != nil && gone(i) {
			with = keep(i)
		}
		switch {
		case !gone(i):
			kept = i
			continue
		case it.comma >= 0 && blank(t.body[it.end:it.comma]):
			cuts = append(cuts, splice{it.start, it.comma + 1, with})
		case it.comma >= 0:
			cuts = append(cuts, splice{it.start, it.end, with}, splice{it.comma, it.comma + 1, ""})
		default:
			cuts = append(cuts, splice{it.start, it.end, with})
			if kept >= 0 {
				cuts = append(cuts, splice{all[kept].comma, all[kept].comma + 1, ""})
			}
		}
	}
	slices.SortFunc(cuts, func(a, b splice) int { return a.start - b.start })
	var out []splice
	for _, c := range cuts {
		if n := len(out); n > 0 && blank(t.body[out[n-1].end:c.start]) {
			out[n-1].end = c.end
			out[n-1].with += c.with
			continue
		}
		out = append(out, c)
	}
	for i, c := range out {
		rest := t.body[c.end:]
		line := len(rest)
		if n := bytes.IndexByte(rest, '\n'); n >= 0 {
			line = n + 1
		}
		lead, first := t.lead(c.start)
		switch end := blank(rest[:line]); {
		case c.with != "":
		case first && end: // lines of its own
			out[i] = splice{c.start - len(lead), c.end + line, ""}
		case end:
			out[i].start -= len(lead) - len(strings.TrimRight(lead, " \t"))
		case c.end-c.start > 1 || first: // more than a comma: what follows takes its place
			out[i].end += len(rest) - len(bytes.TrimLeft(rest, " \t"))
		}
	}
	return out
}

// put puts items behind those that are there, each in lines of its own unless all of them
// are in one. unit is one step of indentation.
func (t *text) put(v *hujson.Value, fresh []string, unit string) []splice {
	all := items(v)
	open := v.StartOffset + 1
	if len(all) == 0 {
		inner := t.body[open : v.EndOffset-1]
		outer := t.margin(v.StartOffset)
		sep := t.eol + outer + unit
		with := sep + strings.Join(fresh, ","+sep)
		if blank(inner) {
			return []splice{{open, v.EndOffset - 1, with + t.eol + outer}}
		}
		// Behind the comments that are there.
		end := open + len(bytes.TrimRight(inner, " \t\r\n"))
		return []splice{{end, v.EndOffset - 1, with + t.eol + outer}}
	}
	last := all[len(all)-1]
	sep := " "
	if lead, first := t.lead(last.start); first {
		sep = t.eol + lead
	} else if len(all) == 1 && !blank(t.body[open:last.start]) || len(all) > 1 && t.body[last.start-1] == ',' {
		sep = ""
	}
	with := strings.Join(fresh, ","+sep)
	if last.comma >= 0 { // a trailing comma: so has the new last
		at := t.behindComment(last.comma + 1)
		return []splice{{at, at, sep + with + ","}}
	}
	if at := t.behindComment(last.end); at > last.end {
		return []splice{{last.end, last.end, ","}, {at, at, sep + with}}
	}
	return []splice{{last.end, last.end, "," + sep + with}}
}

// behindComment is an offset, or the end of its line if only a comment follows there.
func (t *text) behindComment(at int) int {
	rest := t.body[at:]
	if n := bytes.IndexByte(rest, '\n'); n >= 0 {
		rest = rest[:n]
	}
	rest = bytes.TrimRight(rest, " \t\r")
	if bytes.HasPrefix(bytes.TrimLeft(rest, " \t"), []byte("//")) {
		return at + len(rest)
	}
	return at
}

// unit is one step of indentation in an object, as far as it shows.
func (t *text) unit(v *hujson.Value) string {
	if all := items(v); len(all) > 0 {
		if lead, first := t.lead(all[0].start); first {
			if step, ok := strings.CutPrefix(lead, t.margin(v.StartOffset)); ok && step != "" {
				return step
			}
		}
	}
	if t.root != nil {
		if all := items(t.root); len(all) > 0 {
			if lead, first := t.lead(all[0].start); first && lead != "" {
				return lead
			}
		}
	}
	return "  "
}

// quote is a text in JSON.
func quote(s string) string { return string(wire.Quote(s)) }

// comments lists the comments in a part of the file, line by line and without their marks.
func comments(v *hujson.Value) (out []string) {
	note := func(e hujson.Extra) {
		for b := bytes.TrimLeft(e, " \t\r\n"); len(b) > 0; b = bytes.TrimLeft(b, " \t\r\n") {
			var c []byte
			if rest, ok := bytes.CutPrefix(b, []byte("//")); ok {
				c, b, _ = bytes.Cut(rest, []byte("\n"))
			} else if rest, ok := bytes.CutPrefix(b, []byte("/*")); ok {
				c, b, _ = bytes.Cut(rest, []byte("*/"))
			} else {
				return
			}
			for line := range strings.SplitSeq(string(c), "\n") {
				if line = strings.TrimSpace(strings.TrimLeft(strings.TrimSpace(line), "*")); line != "" {
					out = append(out, line)
				}
			}
		}
	}
	switch c := v.Value.(type) {
	case *hujson.Object:
		for i := range c.Members {
			m := &c.Members[i]
			note(m.Name.BeforeExtra)
			note(m.Name.AfterExtra)
			note(m.Value.BeforeExtra)
			out = append(out, comments(&m.Value)...)
			note(m.Value.AfterExtra)
		}
		note(c.AfterExtra)
	case *hujson.Array:
		for i := range c.Elements {
			e := &c.Elements[i]
			note(e.BeforeExtra)
			out = append(out, comments(e)...)
			note(e.AfterExtra)
		}
		note(c.AfterExtra)
	}
	return out
}

// blocks writes comments that can stand anywhere.
func blocks(lines []string) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString("/* " + strings.ReplaceAll(l, "*/", "* /") + " */ ")
	}
	return b.String()
}

// plainJSON is a value without comments, on one line.
func plainJSON(v *hujson.Value) string {
	c := v.Clone()
	c.Minimize()
	return string(c.Pack())
}
