package pins

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode"
)

// Finding is something in a text that a person should look at before a model does.
type Finding struct {
	Kind   Kind   `json:"kind"`
	Name   string `json:"name,omitempty"`
	Path   string `json:"path"` // description
	Reason string `json:"reason"`
}

// Scan looks through all that an upstream offers to a model for text that hides from
// people, or speaks to the model where it should describe a tool. It cannot find
// everything, and may find what is harmless: it flags, and refuses nothing.
func Scan(o Offer) (found []Finding) {
	add := func(kind Kind, name, path, s string) {
		for _, r := range suspicious(s) {
			found = append(found, Finding{kind, name, path, r})
		}
	}
	add(Instructions, "", "instructions", o.Instructions)
	for kind, items := range map[Kind][]Item{Tool: o.Tools, Prompt: o.Prompts, Resource: o.Resources} {
		for _, i := range items {
			v, _ := value(i.Raw)
			texts("", v, func(path, s string) { add(kind, i.Name, path, s) })
		}
	}
	sortFindings(found)
	return found
}

// texts visits every text in a value, and every key.
func texts(path string, v any, visit func(path, s string)) {
	switch v := v.(type) {
	case string:
		visit(path, v)
	case []any:
		for _, x := range v {
			texts(path, x, visit)
		}
	case map[string]any:
		for _, k := range sorted(v) {
			visit(join(path, "(key)"), k)
			texts(join(path, k), v[k], visit)
		}
	}
}

// commands are turns of phrase with which a text orders a model about. Each must be
// rare in honest descriptions. They are compared with a text in small letters, if it has
// one of the words: texts can be megabytes.
var commands = []struct {
	text  string
	words []string
	re    func() *regexp.Regexp
}{
	{"it tells the model to ignore what it was told", []string{"ignore", "disregard", "forget", "override"}, lazily(`\b(ignore|disregard|forget|override)\b[^.\n]{0,40}\b(previous|prior|above|earlier|all|other|system)\b[^.\n]{0,30}\b(instruction|prompt|rule|message|guideline)s?`)},
	{"it tells the model to keep something from the user", []string{"user", "human", "person", "them"}, lazily(`\b(do not|don't|never|without)\b[^.\n]{0,40}\b(tell|mention|inform|reveal|show|notify|telling|mentioning|informing)\b[^.\n]{0,40}\b(user|human|person|them)\b`)},
	{"it has a tag that models take for the system's", []string{"<"}, lazily(`<\s*/?\s*(important|system|instructions?|secret|hidden|admin|override)\s*>`)},
	{"it claims to speak for the system", []string{"system", "assistant", "developer"}, lazily(`(?m)^\s*(system|assistant|developer)\s*(prompt|message|note)?\s*:`)},
	{"it tells the model to read keys or settings", []string{"~/.ssh", "id_rsa", "id_ed25519", ".aws/credentials", ".env", "/etc/passwd", "mcp.json", ".npmrc", ".netrc"}, lazily(`(~/\.ssh|id_rsa|id_ed25519|\.aws/credentials|\.env\b|/etc/passwd|mcp\.json|\.npmrc|\.netrc)`)},
	{"it tells the model what to do before or after another tool", []string{"tool"}, lazily(`\b(before|after|when(ever)?|instead of)\b[^.\n]{0,30}\b(using|calling|invoking|you (use|call|invoke))\b[^.\n]{0,30}\b(any|every|other|another|all)\b[^.\n]{0,15}\btools?\b`)},
}

func lazily(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// small is a text in small letters, with the long s for what it folds to.
func small(s string) string { return strings.ReplaceAll(strings.ToLower(s), "ſ", "s") }

// suspicious says what is.
func suspicious(s string) (reasons []string) {
	seen := map[string]bool{}
	add := func(r string) {
		if !seen[r] {
			seen[r] = true
			reasons = append(reasons, r)
		}
	}
	last, encoded := rune(0), 0
	for _, r := range s {
		before := last
		last = r
		if encoded++; !encodes(r) {
			encoded = 0
		}
		switch {
		case encoded == 160:
			add("it holds a long run of encoded text")
		case r == '\t' || r == '\n' || r == '\r':
		case r == 0x1b || r == 0x9b:
			add("it holds a terminal's escape sequence")
		case r >= 0xe0000 && r <= 0xe007f:
			add("it holds invisible tag characters, which spell text that nobody sees")
		case selects(r): // of emoji, one at a time
			if selects(before) {
				add("it holds a run of variation selectors, which can spell text that nobody sees")
			}
		case r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069:
			add("it turns the direction of writing")
		case unseen(r):
			add(fmt.Sprintf("it holds an invisible character (U+%04X)", r))
		case unicode.IsControl(r):
			add("it holds a control character")
		}
	}
	lower := small(s)
	for _, c := range commands {
		if slices.ContainsFunc(c.words, func(w string) bool { return strings.Contains(lower, w) }) && c.re().MatchString(lower) {
			add(c.text)
		}
	}
	if blank := strings.Repeat(" ", 80); strings.Contains(s, blank) || strings.Contains(s, strings.Repeat("\n", 20)) {
		add("it hides text behind a long blank")
	}
	return reasons
}

// encodes reports a character of Base64.
func encodes(r rune) bool {
	return r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '+' || r == '/'
}

// selects reports a variation selector.
func selects(r rune) bool { return r >= 0xfe00 && r <= 0xfe0f || r >= 0xe0100 && r <= 0xe01ef }

// unseen reports a character without a shape, but the one that joins emoji.
func unseen(r rune) bool {
	return unicode.Is(unicode.Cf, r) && r != 0x200d || r == 0x3164 || r == 0x115f || r == 0x1160 || r == 0xffa0
}

func sortFindings(all []Finding) {
	slices.SortStableFunc(all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Path, b.Path))
	})
}

// Visible is a text with what nobody sees in it spelt out, so that two texts that
// differ look different.
func Visible(s string) string {
	var b strings.Builder
	last := rune(0)
	for _, r := range s {
		hidden := r >= 0xe0000 && r <= 0xe007f || selects(r) && selects(last) || unseen(r)
		if last = r; hidden {
			fmt.Fprintf(&b, "⟨U+%04X⟩", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}
