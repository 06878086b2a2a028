// Package approval asks a person about a call: it words the question for a form in the
// client, reads the answer, and tells who waits that it was given elsewhere, in a terminal
// or on the console's page. It decides nothing; the ledger does.
package approval

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
)

// Question is what a person is asked.
type Question struct {
	ID         string // of the request, see [ledger.Approval]
	Tool       string // canonical id
	Agent      string
	Cost       policy.Micros
	Priced     bool // a cost rule is about the tool
	Rules      []string
	Arguments  []byte // as they go upstream; JSON, or nil for none
	ForSession bool   // the answer may hold for the session
	Command    string // how a person runs haldir, as far as to the verb
}

// The answers, as the form names them.
const (
	once    = "once"
	session = "session"
	deny    = "deny"
)

// Bounds on what a form shows, in characters. Some hosts show three lines, so the first
// three say what matters.
const (
	lineLength  = 76
	nameLength  = 20 // of the agent
	valueLength = 40
	formLength  = 6000
)

// Form returns the params of elicitation/create. titled says that the host knows the
// titles of choices as MCP 2025-11-25 has them; else they are given as before it.
//
// The choice is required and has no default: some hosts preselect what sends a form off.
func (q *Question) Form(titled bool) json.RawMessage {
	type choice struct {
		Const string `json:"const"`
		Title string `json:"title"`
	}
	choices := []choice{{once, "Allow this call once"}, {session, "Allow these same arguments for this session"}, {deny, "Deny"}}
	if !q.ForSession {
		choices = []choice{choices[0], choices[2]}
	}
	decision := map[string]any{"type": "string", "title": "Your decision", "description": "Deny if in doubt: the agent is told, and may ask you why."}
	if titled {
		decision["oneOf"] = choices
	} else {
		var values, names []string
		for _, c := range choices {
			values, names = append(values, c.Const), append(names, c.Title)
		}
		decision["enum"], decision["enumNames"] = values, names
	}
	note, err := json.Marshal(map[string]any{"type": "string", "title": "Note to the agent (optional)", "maxLength": maxNote})
	if err != nil {
		panic(err) // texts and a number
	}
	field, err := json.Marshal(decision)
	if err != nil {
		panic(err) // texts
	}
	// By hand, since the order of the properties is the order of the fields.
	return fmt.Appendf(nil, `{"mode":"form","message":%s,"requestedSchema":{"type":"object","properties":{"decision":%s,"note":%s},"required":["decision"]}}`,
		wire.Quote(q.Message()), field, note)
}

// maxNote bounds what a person can say, in characters.
const maxNote = 500

// Message says in three lines what is asked, and below them all that there is to see.
func (q *Question) Message() string {
	var b strings.Builder
	cost := ""
	if q.Priced {
		cost = " for " + q.Cost.String()
	}
	agent, cost := cut(Visible(q.Agent), nameLength), cost+"?"
	// However long a name is, the price is not cut off.
	room := lineLength - len([]rune("Let "+agent+" call "+cost))
	fmt.Fprintf(&b, "Let %s call %s%s\n%s\n", agent, cut(Visible(q.Tool), room), cost, q.summary())
	fmt.Fprintf(&b, "%s asks · %s\n", cut(Visible(strings.Join(q.Rules, ", ")), lineLength-len(" asks · ")-len(q.ID)), q.ID)
	if full := Arguments(q.Arguments); full != "" {
		fmt.Fprintf(&b, "\nAll arguments:\n%s\n", cut(full, formLength))
		if len([]rune(full)) > formLength {
			fmt.Fprintf(&b, "(%d bytes; the rest: %s approvals show %s)\n", len(q.Arguments), q.Command, q.ID)
		}
	}
	return strings.TrimSpace(b.String())
}

// summary puts the arguments that fit on one line: numbers and the like first, which a
// long text must not push out, then texts, then what has parts.
func (q *Question) summary() string {
	members, err := wire.Members(q.Arguments)
	switch {
	case len(q.Arguments) > 0 && err != nil:
		return cut(Visible(string(q.Arguments)), lineLength)
	case len(members) == 0:
		return "without arguments"
	}
	var short, texts, others []string
	for _, m := range members {
		value := cut(Visible(string(m.Value)), valueLength)
		part := word(m.Name) + ": "
		switch wire.KindOf(m.Value) {
		case "an object", "an array":
			others = append(others, part+value)
		case "a string":
			if text, ok := wire.String(m.Value); ok {
				value = word(text)
			}
			texts = append(texts, part+value)
		default:
			short = append(short, part+value)
		}
	}
	return cut(strings.Join(slices.Concat(short, texts, others), " · "), lineLength)
}

// word is a text as one part of a line. It is quoted where it could pass for more than
// one, or for what is no text.
func word(text string) string {
	shown := cut(Visible(text), valueLength)
	if unquoted().MatchString(shown) && !json.Valid([]byte(shown)) {
		return shown
	}
	return strconv.Quote(shown)
}

var unquoted = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[\p{L}\p{N}_./@+#,…\[\]-]+( [\p{L}\p{N}_./@+#,…\[\]-]+)*$`)
})

// cut shortens a text to so many characters.
func cut(s string, limit int) string {
	if r := []rune(s); len(r) > limit {
		return string(r[:limit-1]) + "…"
	}
	return s
}

// Arguments returns arguments for a person to read: a line a member, with what cannot be
// seen made visible. What is no whole JSON, since it was cut, is shown as it is.
func Arguments(raw []byte) string {
	members, err := wire.Members(raw)
	if err != nil {
		return Visible(string(raw))
	}
	lines := make([]string, len(members))
	for i, m := range members {
		lines[i] = Visible(m.Name) + ": " + Visible(string(m.Value))
	}
	return strings.Join(lines, "\n")
}

// Visible makes a text safe to show, and shows what is meant not to be seen: control
// characters, those that turn the direction of writing, and those without a shape.
func Visible(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == unicode.ReplacementChar, unicode.IsControl(r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Zl, r), unicode.Is(unicode.Zp, r),
			unicode.Is(unicode.Co, r), r == 0x3164, r == 0x115f, r == 0x1160, r == 0xffa0, r >= 0xfe00 && r <= 0xfe0f, r >= 0xe0100 && r <= 0xe01ef:
			b.WriteString("⟨U+" + strings.ToUpper(pad(strconv.FormatInt(int64(r), 16))) + "⟩")
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func pad(hex string) string { return strings.Repeat("0", max(0, 4-len(hex))) + hex }

// Reading is what a client's answer to the form says.
type Reading uint8

// The readings.
const (
	Closed  Reading = iota // nobody has said anything: the form was closed, or never shown
	Decided                // a person has
)

// Read reads the result of elicitation/create. Anything that is not plainly a decision
// is none.
func Read(result json.RawMessage) (ledger.Answer, Reading) {
	a := ledger.Answer{Channel: ledger.ChannelClient}
	at, _ := wire.At(result, "action")
	switch action, _ := wire.String(at.Value); action {
	case "decline":
		return a, Decided
	case "accept":
	default:
		return a, Closed
	}
	if at, ok := wire.At(result, "content", "note"); ok {
		a.Note, _ = wire.String(at.Value)
		a.Note = cut(Visible(a.Note), maxNote)
	}
	at, _ = wire.At(result, "content", "decision")
	switch decision, _ := wire.String(at.Value); decision {
	case once:
		a.Allow = true
	case session:
		a.Allow, a.ForSession = true, true
	case deny:
	default:
		return a, Closed
	}
	return a, Decided
}
