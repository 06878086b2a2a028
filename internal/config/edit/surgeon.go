package edit

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/haldir-mcp/haldir/internal/config"
)

const bom = "\ufeff"

// splice replaces a part of a text.
type splice struct {
	start, end int
	text       string
}

// way is how a change is made to a text.
type way struct {
	splices []splice
	removed int  // the number of the entry that goes
	above   int  // the line of a comment that stands above it
	version bool // the file gets its version
	list    bool // the list goes with it
}

func (w *way) put(at int, text string) { w.splices = append(w.splices, splice{at, at, text}) }
func (w *way) cut(start, end int)      { w.splices = append(w.splices, splice{start, end, ""}) }

// text makes the splices, each at its place in the text before.
func (w *way) text(before string) string {
	slices.SortStableFunc(w.splices, func(a, b splice) int { return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.end, b.end)) })
	var b strings.Builder
	at := 0
	for _, s := range w.splices {
		b.WriteString(before[at:s.start])
		b.WriteString(s.text)
		at = s.end
	}
	b.WriteString(before[at:])
	return b.String()
}

// before translates an offset in the text after to one in the text before.
func (w *way) before(offset int) int {
	shift := 0 // of the text after, against the text before
	for _, s := range w.splices {
		if offset < s.start+shift {
			break
		}
		if offset < s.start+shift+len(s.text) {
			return s.start
		}
		shift += len(s.text) - (s.end - s.start)
	}
	return offset - shift
}

// surgeon changes a text.
type surgeon struct {
	*config.Outline
	list List
	eol  string
	bom  bool
	was  *less // what is removed along; nil for nothing

	key   *config.Node // of the list; nil if it is not there
	value *config.Node
}

// less is what a text has that one before it has not.
type less struct {
	comments map[string]int // how many more lines of it there are
	list     bool
	cautious bool // a person may have written about the list, and is told of a comment that stays
}

// lineEnd is how lines of a text end.
func lineEnd(text string) string {
	i := strings.IndexAny(text, "\r\n")
	switch {
	case i < 0:
		return "\n"
	case strings.HasPrefix(text[i:], "\r\n"):
		return "\r\n"
	}
	return text[i : i+1]
}

// look finds the list.
func (s *surgeon) look() error { return s.lookIn(s.Root) }

// lookIn finds the list in a mapping.
func (s *surgeon) lookIn(in *config.Node) error {
	if in == nil {
		return nil
	}
	if in.Kind != config.NodeMapping || in.Anchor != "" {
		return ErrShape
	}
	for i, k := range in.Keys {
		if k.Text == string(s.list) {
			s.key, s.value = k, in.Values[i]
		}
	}
	switch {
	case s.value == nil:
	case s.value.Kind == config.NodeAlias:
		line, _ := s.Place(s.value.Target.Start)
		return fmt.Errorf("%w: %s is an alias of &%s in line %d; edit the file by hand", ErrAlias, s.list, s.value.Text, line)
	case s.value.Kind == config.NodeList || s.value.Kind == config.NodeOther && nothing(s.value.Text):
	default:
		return fmt.Errorf("%s is no list: %w", s.list, ErrShape)
	}
	return nil
}

func nothing(text string) bool { return text == "" || text == "~" || strings.EqualFold(text, "null") }

func (s *surgeon) entries() []*config.Node {
	if s.value == nil {
		return nil
	}
	return s.value.Values
}

// add finds the way to add an entry.
func (s *surgeon) add(e *entry, safe bool) (*way, error) {
	w := &way{}
	style := s.style(safe)
	switch {
	case s.value == nil && s.Root != nil && s.Root.Flow:
		s.addKeyFlow(w, e, style)
	case s.value == nil:
		s.addKey(w, e, style)
	case s.value.Kind == config.NodeOther && s.Root.Flow: // "policies": null
		text := "[" + style.flow(e.root) + "]"
		if s.value.Behind == s.value.End {
			text = " " + text
		}
		w.splices = append(w.splices, splice{s.value.Behind, s.value.End, text})
	case len(s.value.Values) == 0 && !s.Root.Flow && s.LineStart(s.value.Start) == s.LineStart(s.value.End):
		s.addFirst(w, e, style)
	case s.value.Flow:
		s.addFlow(w, style.flow(e.root))
	default:
		return w, s.addBlock(w, e, style)
	}
	return w, nil
}

// addKey writes the list at the end of the file.
func (s *surgeon) addKey(w *way, e *entry, style style) {
	at := len(s.Text)
	for _, m := range s.Marks {
		if m.Kind == '.' {
			at = s.LineStart(m.Start)
			break
		}
	}
	rest := s.Text[:at]
	var b strings.Builder
	ended := rest == "" || strings.HasSuffix(rest, "\n") || strings.HasSuffix(rest, "\r")
	if !ended {
		b.WriteString(s.eol)
	}
	if s.Root == nil {
		w.version = true
		b.WriteString("version: 1" + s.eol)
	}
	if s.airy() || s.Root == nil && rest == "" {
		if !strings.HasSuffix(rest, s.eol+s.eol) {
			b.WriteString(s.eol)
		}
	}
	b.WriteString(string(s.list) + ":" + s.eol + s.dashed(e, style, style.indent, " "))
	if ended || at < len(s.Text) {
		b.WriteString(s.eol)
	}
	w.put(at, b.String())
}

// airy reports whether blank lines stand between the keys of the file.
func (s *surgeon) airy() bool {
	if s.Root == nil {
		return false
	}
	blank := 0
	for i, k := range s.Root.Keys {
		if i > 0 && s.blankAbove(s.LineStart(k.Start), s.Root.Values[i-1].End) {
			blank++
		}
	}
	return blank*2 >= len(s.Root.Keys) && blank > 0
}

// blankAbove reports whether there is a blank line between an offset and the beginning of
// a line.
func (s *surgeon) blankAbove(lineStart, from int) bool {
	for lineStart > from {
		above := s.LineStart(lineStart - 1)
		if strings.TrimSpace(s.Text[above:lineStart]) == "" {
			return true
		}
		lineStart = above
	}
	return false
}

// addKeyFlow writes the list into a file that is one mapping in braces.
func (s *surgeon) addKeyFlow(w *way, e *entry, style style) {
	key := style.key(string(s.list)) + ": [" + style.flow(e.root) + "]"
	n := len(s.Root.Keys)
	if n == 0 {
		w.put(s.Root.Behind+1, key)
		return
	}
	last := s.Root.Keys[n-1]
	s.append(w, last.Start, s.Root.Values[n-1].End, s.Root.End, key)
}

// append writes a text behind the last element of something in brackets or braces, which
// is from start to end; the bracket closes it before closed.
func (s *surgeon) append(w *way, start, end, closed int, text string) {
	indent, own := s.begins(start)
	if !own {
		w.put(end, ", "+text)
		return
	}
	line := s.LineEnd(end)
	if comma := s.comma(end, closed); comma != nil {
		if line = s.LineEnd(comma.End); s.bare(comma.End, line) {
			w.put(line, s.eol+indent+text+",")
			return
		}
		w.put(end, ","+s.eol+indent+text)
		return
	}
	w.put(end, ",")
	if !s.bare(end, line) {
		line = end
	}
	w.put(line, s.eol+indent+text)
}

// begins reports whether what stands at an offset is the first in its line, and returns
// what it is indented by.
func (s *surgeon) begins(at int) (indent string, ok bool) {
	indent = s.Text[s.LineStart(at):at]
	return indent, strings.Trim(indent, " \t") == ""
}

// bare reports whether there is nothing but a comment between two offsets of a line.
func (s *surgeon) bare(from, to int) bool {
	rest := strings.TrimLeft(s.Text[from:to], " \t")
	return rest == "" || rest[0] == '#'
}

// comma is the first mark of that kind between two offsets, or nil.
func (s *surgeon) comma(from, to int) *config.Mark { return s.mark(',', from, to) }

func (s *surgeon) mark(kind byte, from, to int) *config.Mark {
	for i, m := range s.Marks {
		if m.Kind == kind && m.Start >= from && m.Start < to {
			return &s.Marks[i]
		}
	}
	return nil
}

// addFlow adds to a list in brackets.
func (s *surgeon) addFlow(w *way, text string) {
	if n := len(s.value.Values); n > 0 {
		last := s.value.Values[n-1]
		s.append(w, last.Start, last.End, s.value.End, text)
		return
	}
	closing := s.value.End - 1
	if indent, own := s.begins(closing); own {
		w.put(s.LineStart(closing), indent+"  "+text+s.eol)
		return
	}
	w.put(closing, text)
}

// addFirst writes the first entry below a list that is empty in its line.
func (s *surgeon) addFirst(w *way, e *entry, style style) {
	if from := s.value.Behind; s.value.End > from { // [] or null
		if s.value.Anchor == "" {
			for from > 0 && s.Text[from-1] == ' ' {
				from--
			}
		}
		w.cut(from, s.value.End)
	}
	at := s.below(s.LineEnd(s.value.End), 0)
	w.put(at, s.eol+s.dashed(e, style, style.indent, " "))
}

// below goes from the end of a line on over comments in the lines right below that are
// indented by more than so many columns: they belong to what is above.
func (s *surgeon) below(lineEnd, indent int) int {
	for {
		next := lineEnd + len(s.lineBreak(lineEnd))
		if next == lineEnd {
			return lineEnd
		}
		end := s.LineEnd(next)
		line := s.Text[next:end]
		text := strings.TrimLeft(line, " ")
		if !strings.HasPrefix(text, "#") || len(line)-len(text) <= indent {
			return lineEnd
		}
		lineEnd = end
	}
}

// lineBreak is what ends the line at its end.
func (s *surgeon) lineBreak(at int) string {
	switch {
	case strings.HasPrefix(s.Text[at:], "\r\n"):
		return "\r\n"
	case at < len(s.Text):
		return s.Text[at : at+1]
	}
	return ""
}

// dash is the dash of an entry, which must be the first in its line.
func (s *surgeon) dash(i int) (*config.Mark, string, error) {
	from := s.value.Start
	if i > 0 {
		from = s.value.Values[i-1].End
	}
	m := s.mark('-', from, s.value.Values[i].Start+1)
	if m == nil {
		return nil, "", ErrShape
	}
	indent, ok := s.begins(m.Start)
	if !ok || strings.Contains(indent, "\t") {
		return nil, "", ErrShape
	}
	return m, indent, nil
}

// last is where the last line of an entry ends, with the comments that belong to it.
func (s *surgeon) last(n *config.Node, indent string) int {
	return s.below(s.LineEnd(n.End), len(indent))
}

// addBlock adds to a list of dashes.
func (s *surgeon) addBlock(w *way, e *entry, style style) error {
	n := len(s.value.Values)
	last := s.value.Values[n-1]
	dash, indent, err := s.dash(n - 1)
	if err != nil {
		return err
	}
	gap := s.Text[dash.End:last.Start]
	if strings.Trim(gap, " ") != "" || gap == "" {
		gap = " "
	}
	text := s.eol
	if n > 1 && s.blankAbove(s.LineStart(dash.Start), s.last(s.value.Values[n-2], indent)+1) {
		text += s.eol
	}
	w.put(s.last(last, indent), text+s.dashed(e, style, indent, gap))
	return nil
}

// dashed is an entry of a list of dashes.
func (s *surgeon) dashed(e *entry, style style, indent, gap string) string {
	text := style.block(e, indent+"-"+gap)
	return strings.ReplaceAll(text, "\n", s.eol)
}

// remove finds the way to remove an entry.
func (s *surgeon) remove(i int) (*way, error) {
	w := &way{removed: i}
	if err := s.anchored(i); err != nil {
		return nil, err
	}
	switch {
	case s.value.Flow && len(s.value.Values) == 1 && s.emptied():
		w.list = true
		s.removeKeyFlow(w)
	case s.value.Flow:
		s.cutFlow(w, s.value, s.value.Values, i)
	default:
		return w, s.removeBlock(w, i)
	}
	return w, nil
}

// anchored refuses to remove what is referred to from elsewhere.
func (s *surgeon) anchored(i int) error {
	gone := s.value.Values[i]
	inside := func(n *config.Node) bool { return n.Start >= gone.Start && n.End <= gone.End }
	for _, n := range all(s.Root) {
		if n.Kind != config.NodeAlias || inside(n) || !inside(n.Target) {
			continue
		}
		line, _ := s.Place(n.Start)
		return fmt.Errorf("%w: it holds the anchor &%s, to which line %d refers; edit the file by hand", ErrAlias, n.Text, line)
	}
	return nil
}

// all lists a node and those in it, as they are written: aliases are not followed.
func all(n *config.Node) []*config.Node {
	out := []*config.Node{n}
	for _, v := range n.Values {
		out = append(out, all(v)...)
	}
	return out
}

func (s *surgeon) removeBlock(w *way, i int) error {
	dash, indent, err := s.dash(i)
	if err != nil {
		return err
	}
	n := len(s.value.Values)
	start := s.LineStart(dash.Start)
	end := s.last(s.value.Values[i], indent)
	if end += len(s.lineBreak(end)); end > len(s.Text) {
		end = len(s.Text)
	}
	for above := s.lineAbove(start); above >= 0 && strings.HasPrefix(strings.TrimLeft(s.Text[above:start], " "), "#"); above = s.lineAbove(start) {
		line := strings.TrimSpace(s.Text[above:start])
		if s.was == nil || s.was.comments[line] <= 0 {
			if s.was == nil || s.was.cautious {
				w.above, _ = s.Place(above)
			}
			break
		}
		s.was.comments[line]--
		start = above
	}
	if n == 1 && s.was != nil && s.was.list && !s.Root.Flow && s.lineAbove(start) == s.LineStart(s.key.Start) && (!s.was.cautious || !s.said(end)) {
		start, w.list = s.lineAbove(start), true
	}
	below := s.blankAt(end)
	switch blank := s.blankLines(start); {
	case blank < start && (i > 0 || w.list) && (i == n-1 || below > end):
		start = blank // the lines that set it apart
	case blank == start && i == 0 && n > 1 && w.above == 0:
		end = below
	}
	if end == len(s.Text) && start > 0 && !strings.HasSuffix(s.Text, "\n") && !strings.HasSuffix(s.Text, "\r") {
		start -= len(s.breakBefore(start)) // a file that ends without a line end goes on doing so
	}
	w.cut(start, end)
	if n == 1 && !w.list {
		at := s.colon()
		if s.value.Anchor != "" {
			at = s.value.Behind
		}
		if s.LineStart(at) == s.LineStart(dash.Start) {
			return ErrShape
		}
		w.put(at, " []")
	}
	return nil
}

// said reports whether the line of the list's key holds more than that, has a comment above, or the
// list one below its last entry, which ends at end.
func (s *surgeon) said(end int) bool {
	at := s.LineStart(s.key.Start)
	if strings.TrimSpace(s.Text[at:s.LineEnd(at)]) != string(s.list)+":" {
		return true
	}
	below := strings.TrimLeft(s.Text[end:], "\r\n")
	if in := strings.TrimLeft(below, " "); len(in) < len(below) && strings.HasPrefix(in, "#") {
		return true
	}
	above := strings.TrimRight(s.Text[:at], " \r\n")
	return strings.HasPrefix(strings.TrimLeft(above[strings.LastIndexAny(above, "\r\n")+1:], " "), "#")
}

// colon is the offset behind the colon of the list's key.
func (s *surgeon) colon() int {
	return s.key.End + strings.IndexByte(s.Text[s.key.End:], ':') + 1
}

// lineAbove is where the line above the one that begins at an offset begins, or -1.
func (s *surgeon) lineAbove(start int) int {
	if start == 0 {
		return -1
	}
	return s.LineStart(start - 1)
}

// breakBefore is what ends the line before the one that begins at an offset.
func (s *surgeon) breakBefore(start int) string {
	if strings.HasSuffix(s.Text[:start], "\r\n") {
		return "\r\n"
	}
	return s.Text[start-1 : start]
}

// blankLines is where the blank lines right above a line begin.
func (s *surgeon) blankLines(start int) int {
	for {
		above := s.lineAbove(start)
		if above < 0 || strings.TrimSpace(s.Text[above:start]) != "" {
			return start
		}
		start = above
	}
}

// blankAt is the offset behind the blank lines that begin at one.
func (s *surgeon) blankAt(at int) int {
	for at < len(s.Text) {
		end := s.LineEnd(at)
		if strings.TrimSpace(s.Text[at:end]) != "" {
			break
		}
		at = end + len(s.lineBreak(end))
	}
	return at
}

// emptied reports whether the list goes as well with its last entry, where the file is one mapping
// in braces: if a comment stands beside it, it stays.
func (s *surgeon) emptied() bool {
	if s.was == nil || !s.was.list || !s.Root.Flow || s.value.Anchor != "" {
		return false
	}
	i := slices.Index(s.Root.Keys, s.key)
	from, to := s.Root.Behind+1, s.Root.End
	if i > 0 {
		from = s.Root.Values[i-1].End
	}
	if _, own := s.begins(s.key.Start); own { // what stands in the line above is about that
		from = s.LineEnd(from)
	}
	if i+1 < len(s.Root.Keys) {
		to = s.Root.Keys[i+1].Start
	}
	return s.mark('#', from, to) == nil
}

// removeKeyFlow removes the list from a file that is one mapping in braces.
func (s *surgeon) removeKeyFlow(w *way) {
	var all []*config.Node
	for i, k := range s.Root.Keys {
		all = append(all, &config.Node{Start: k.Start, End: s.Root.Values[i].End})
	}
	s.cutFlow(w, s.Root, all, slices.Index(s.Root.Keys, s.key))
}

// cutFlow removes an element of something in brackets or braces.
func (s *surgeon) cutFlow(w *way, in *config.Node, values []*config.Node, i int) {
	n := values[i]
	next := in.End - 1
	if i+1 < len(values) {
		next = values[i+1].Start
	}
	comma := s.comma(n.End, next)
	prev := in.Behind + 1
	if i > 0 {
		prev = values[i-1].End
	}
	behind := n.End
	if comma != nil {
		behind = comma.End
	}
	// Where it has its lines to itself, they go.
	line := s.LineEnd(behind)
	if _, own := s.begins(n.Start); own && s.bare(behind, line) && next >= line && (comma != nil || i == len(values)-1) {
		w.cut(s.LineStart(n.Start), line+len(s.lineBreak(line)))
		if before := s.comma(prev, n.Start); comma == nil && before != nil {
			w.cut(before.Start, before.End)
		}
		return
	}
	switch {
	case i+1 < len(values) && s.mark('#', n.End, next) == nil:
		w.cut(n.Start, next)
	case comma != nil && (i+1 < len(values) || i == 0):
		w.cut(n.Start, comma.End)
	case i > 0 && s.mark('#', prev, n.Start) == nil:
		w.cut(prev, n.End)
	default:
		w.cut(n.Start, n.End)
		if before := s.comma(prev, n.Start); before != nil {
			w.cut(before.Start, before.End)
		}
	}
}
