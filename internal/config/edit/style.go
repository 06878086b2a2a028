package edit

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"unicode"

	"github.com/haldir-mcp/haldir/internal/config"
)

// style is how the entries of a file are written.
type style struct {
	json    bool   // keys and texts in double quotes, as in JSON
	single  bool   // texts that need quotes in single ones
	braces  bool   // entries in braces
	padded  bool   // { with spaces }
	dashes  bool   // lists in entries are lists of dashes
	nested  string // by how much those dashes are indented against their key
	indent  string // what the dashes of entries are indented by
	longest int    // how long a line may be
	safe    bool   // every text in quotes
}

// aLine is how long a line of a new entry may be before it is written in several, if no
// other is longer.
const aLine = 120

// style looks at the entries of the list, else at those of the other lists.
func (s *surgeon) style(safe bool) style {
	out := style{safe: safe, braces: true, indent: "  ", longest: aLine}
	if s.Root == nil {
		return out
	}
	out.json = s.Root.Flow && len(s.Root.Keys) > 0 && strings.HasPrefix(s.Text[s.Root.Keys[0].Start:], `"`)
	lists := []*config.Node{s.value}
	for _, l := range []List{Policies, Upstreams, Costs, Scopes} {
		if v := s.Root.Find(string(l)); v != nil && v != s.value {
			lists = append(lists, v)
		}
	}
	for i, l := range lists {
		if l == nil || l.Kind != config.NodeList || len(l.Values) == 0 || i > 0 && l.Flow {
			continue
		}
		s.learn(&out, l, i == 0)
		if !l.Flow {
			dash := s.mark('-', l.Start, l.Values[0].Start+1)
			if indent, ok := s.begins(dash.Start); ok {
				out.indent = indent
			}
			break
		}
	}
	return out
}

// learn takes on the style of a list's entries. Most of them count, and the last one where
// they are even; of another list only how it quotes.
func (s *surgeon) learn(out *style, l *config.Node, own bool) {
	braces, singles, doubles := 0, 0, 0
	for _, e := range l.Values {
		if e.Flow {
			braces++
		}
		if e.Flow && strings.HasPrefix(s.Text[e.Behind:], "{ ") {
			out.padded = true
		}
		out.longest = max(out.longest, s.LineEnd(e.Start)-s.LineStart(e.Start))
		for j, v := range e.Values {
			if v.Kind == config.NodeList && !v.Flow && len(v.Values) > 0 && e.Kind == config.NodeMapping && !e.Flow {
				out.dashes = true
				if dash := s.mark('-', v.Start, v.Values[0].Start+1); dash != nil {
					by := dash.Start - s.LineStart(dash.Start) - (e.Keys[j].Start - s.LineStart(e.Keys[j].Start))
					out.nested = strings.Repeat(" ", min(max(by, 0), 8))
				}
			}
		}
		for _, v := range all(e) {
			if v.Kind == config.NodeText && strings.HasPrefix(s.Text[v.Behind:], "'") {
				singles++
			}
			if v.Kind == config.NodeText && strings.HasPrefix(s.Text[v.Behind:], `"`) {
				doubles++
			}
		}
	}
	out.single = singles > doubles
	if own {
		n := len(l.Values)
		out.braces = braces*2 > n || braces*2 == n && l.Values[n-1].Flow
	}
}

// key writes a key.
func (y style) key(k string) string {
	if y.json || !word().MatchString(k) {
		return double(k)
	}
	return k
}

// word is what needs no quotes wherever it stands.
var word = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z_]+$`) })

// flow writes a value in one line.
func (y style) flow(n *config.Node) string { return y.inline(n, true) }

// inline writes a value; inside says that brackets or braces are around it.
func (y style) inline(n *config.Node, inside bool) string {
	n = n.Value()
	var parts []string
	switch n.Kind {
	case config.NodeMapping:
		for i, k := range n.Keys {
			parts = append(parts, y.key(k.Text)+": "+y.inline(n.Values[i], true))
		}
		if y.padded && !y.json && len(parts) > 0 {
			return "{ " + strings.Join(parts, ", ") + " }"
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case config.NodeList:
		for _, v := range n.Values {
			parts = append(parts, y.inline(v, true))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case config.NodeText:
		return y.text(n.Text, inside)
	case config.NodeOther, config.NodeAlias:
	}
	if n.Text == "" {
		return "null"
	}
	return n.Text
}

// block writes an entry behind its dash. Comments of somebody's own are kept where there
// are lines for them.
func (y style) block(e *entry, dash string) string {
	margin := strings.Repeat(" ", len(dash))
	if own := e.lines(); own != nil && !y.safe {
		indent := dash[:len(dash)-len(strings.TrimLeft(dash, " "))]
		return strings.Join(above(own.above, indent), "") + dash + strings.Join(own.body, "\n"+margin)
	}
	root := e.root.Value()
	one := dash + y.flow(root)
	if y.braces && len(one) <= y.longest && !strings.Contains(one, "\n") || len(root.Keys) == 0 {
		return one
	}
	var lines []string
	for i, k := range root.Keys {
		lines = append(lines, y.pair(y.key(k.Text)+":", root.Values[i].Value(), margin))
	}
	return dash + strings.Join(lines, "\n"+margin)
}

func above(comments []string, indent string) (out []string) {
	for _, c := range comments {
		out = append(out, indent+c+"\n")
	}
	return out
}

// pair writes a key with its value, in as many lines as it needs.
func (y style) pair(key string, v *config.Node, margin string) string {
	switch {
	case v.Kind == config.NodeText && several(v.Text) && !y.safe:
		head, body := " |", strings.TrimSuffix(v.Text, "\n")
		if body == v.Text {
			head = " |-"
		}
		return key + head + "\n" + margin + "  " + strings.ReplaceAll(body, "\n", "\n"+margin+"  ")
	case v.Kind == config.NodeList && len(v.Values) > 0 && (y.dashes || len(margin+key+y.inline(v, false)) > y.longest):
		for _, item := range v.Values {
			key += "\n" + margin + y.nested + "- " + y.inline(item, false)
		}
		return key
	case v.Kind == config.NodeMapping && len(v.Keys) > 0 && len(margin+key+y.inline(v, false)) > y.longest:
		for i, k := range v.Keys {
			key += "\n" + margin + "  " + y.pair(y.key(k.Text)+":", v.Values[i].Value(), margin+"  ")
		}
		return key
	}
	return key + " " + y.inline(v, false)
}

// several reports whether a text is one of several lines that can stand as it is.
func several(text string) bool {
	body := strings.TrimSuffix(text, "\n")
	if !strings.Contains(body, "\n") || strings.HasSuffix(body, "\n") {
		return false
	}
	for line := range strings.SplitSeq(body, "\n") {
		if line == "" || line != strings.TrimSpace(line) && strings.HasSuffix(line, " ") || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return false
		}
	}
	return body[0] != ' '
}

// plainText is a text that means itself without quotes, in brackets too.
var plainText = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([A-Za-z_/][A-Za-z0-9_./=-]*(\*|[A-Za-z0-9_])|[A-Za-z_]|[1-9][0-9]*(ms|s|m|h|d))$`)
})

// plainLine is one that does outside of them: what could end it are a colon and a hash.
var plainLine = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z_/](:?[ -9;-~])*[!-9;-~]$`) })

// otherwise are words that some readers take for something else than a text.
var otherwise = map[string]bool{
	"y": true, "n": true, "yes": true, "no": true, "on": true, "off": true, "true": true, "false": true, "null": true, "nan": true, "inf": true,
}

func (y style) text(t string, inside bool) string {
	plain := plainText().MatchString(t) && !otherwise[strings.ToLower(t)] || !inside && outside(t)
	switch {
	case y.json || y.safe:
		return double(t)
	case plain:
		return t
	case (y.single || strings.Contains(t, `"`)) && !strings.Contains(t, "'") && !strings.ContainsFunc(t, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "'" + t + "'"
	}
	return double(t)
}

// outside reports whether a text means itself behind a key in a line of its own.
func outside(t string) bool {
	return plainLine().MatchString(t) && !strings.Contains(t, ": ") && !strings.Contains(t, " #") && !otherwise[strings.ToLower(t)]
}

// double writes a text in double quotes, in what YAML and JSON have in common.
func double(t string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range t {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// own are an entry's own lines, without what they are indented by.
type own struct{ above, body []string }

// lines returns the lines of an entry that has comments, or nil if they cannot be used: it
// is in braces, or holds anchors, whose names may be taken.
func (e *entry) lines() *own {
	root := e.root
	if !e.comments() || root.Kind != config.NodeMapping || root.Flow || root.Anchor != "" {
		return nil
	}
	for _, n := range all(root) {
		if n.Anchor != "" || n.Kind == config.NodeAlias {
			return nil
		}
	}
	start := e.LineStart(root.Start)
	margin := e.Text[start:root.Start]
	if strings.Trim(margin, " ") != "" {
		return nil
	}
	out := &own{}
	split := func(text string, to *[]string, margin string) bool {
		for line := range strings.Lines(strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\r", "\n")) {
			line = strings.TrimSuffix(line, "\n")
			rest, ok := strings.CutPrefix(line, margin)
			if !ok && strings.TrimSpace(line) != "" {
				return false
			}
			*to = append(*to, rest)
		}
		return true
	}
	for _, m := range e.Marks {
		if m.Kind == '#' && m.End <= start {
			out.above = append(out.above, e.Text[m.Start:m.End])
		}
	}
	end := len(e.Text)
	for _, m := range e.Marks {
		if m.Kind == '.' {
			end = m.Start
		}
	}
	if !split(strings.TrimRight(e.Text[start:end], " \r\n"), &out.body, margin) {
		return nil
	}
	return out
}
