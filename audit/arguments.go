package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// Detail is how much of a call's arguments is recorded.
type Detail string

// The details. The digest and the size are always recorded.
const (
	DetailFull     Detail = "full"
	DetailRedacted Detail = "redacted" // values that look like secrets are replaced
	DetailDigest   Detail = "digest"   // nothing else
)

// MaxArguments is the largest arguments body in a record, in bytes.
const MaxArguments = 8 << 10

// Redacted stands in a record where a secret stood.
const Redacted = "[redacted]"

// secretKey matches names whose values are not recorded.
var secretKey = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)(pass(word|wd|phrase)?|secret|token|api[-_]?key|authorization|(^|[^a-z])auth([^a-z]|$)|credential|private[-_]?key|cookie|session[-_]?key|bearer|signature)`)
})

// secretValue matches texts that are secrets by their looks: keys of well-known
// services, JSON web tokens, PEM blocks, credentials in URLs.
var secretValue = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(sk-[A-Za-z0-9_-]{16,}|sk_(live|test)_[A-Za-z0-9]{10,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}|AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{30,}|hld_[A-Za-z0-9]{16,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*|-----BEGIN [A-Z ]*PRIVATE KEY-----|://[^/\s@"]*:[^/\s@"]+@|(?i:bearer)\s+[A-Za-z0-9._~+/-]{16,})`)
})

// Body is what a record keeps of arguments.
type Body struct {
	Text   []byte // JSON, or nil
	SHA256 Hash
	Size   uint64
}

// NewBody makes the recorded form of arguments. known are texts that must not
// appear in it whatever their looks, such as the config's own secrets.
func NewBody(arguments json.RawMessage, d Detail, known []string) Body {
	b := Body{SHA256: sha256.Sum256(arguments), Size: uint64(len(arguments))}
	if len(arguments) == 0 || d == DetailDigest {
		return b
	}
	if len(arguments) <= MaxArguments && !json.Valid(arguments) {
		b.Text = unreadable(arguments)
		return b
	}
	text, whole := redactor{known, d != DetailFull}.redact(arguments)
	if !whole || len(text) > MaxArguments {
		text = truncated(text, len(arguments))
	}
	b.Text = append([]byte(nil), text...)
	return b
}

// truncated wraps the beginning of a text so that the whole fits a record.
func truncated(text []byte, size int) []byte {
	for n := min(len(text), MaxArguments*3/4); ; n = n * 3 / 4 {
		cut, err := json.Marshal(map[string]any{"truncated": true, "size": size, "head": strings.ToValidUTF8(string(text[:n]), "")})
		if err != nil || len(cut) <= MaxArguments { // escapes may make it longer than it was
			return cut
		}
	}
}

// redactor replaces what must not be recorded: texts that are known, and, if
// looks is set, all that looks like a secret.
type redactor struct {
	known []string
	looks bool
}

// redact rewrites a JSON text token by token, so that order and numbers stay as
// they were, and stops once it has more than a record holds. What cannot be
// read is not recorded.
func (r redactor) redact(raw json.RawMessage) (redacted []byte, whole bool) {
	if len(raw) <= MaxArguments && !r.suspicious(raw) || !r.looks && len(r.known) == 0 {
		return raw, true
	}
	dec := jsontext.NewDecoder(bytes.NewReader(raw), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	var out bytes.Buffer
	enc := jsontext.NewEncoder(&out, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	hide := false // the next value belongs to a secret's name
	for {
		if enc.OutputOffset() > MaxArguments {
			if finish(enc) != nil {
				return unreadable(raw), true
			}
			return out.Bytes(), false
		}
		kind, length := dec.StackIndex(dec.StackDepth())
		isName := kind == '{' && length%2 == 0
		if hide && !isName {
			if err := dec.SkipValue(); err != nil {
				return unreadable(raw), true
			}
			if err := enc.WriteToken(jsontext.String(Redacted)); err != nil {
				return unreadable(raw), true
			}
			hide = false
			continue
		}
		tok, err := dec.ReadToken()
		if err != nil {
			break
		}
		switch tok.Kind() { //nolint:exhaustive // only texts and numbers can be secrets
		case '"':
			s, cut := clip(tok.String())
			switch {
			case containsAny(s, r.known), r.looks && !isName && secretValue().MatchString(s):
				s, cut = Redacted, true
			case isName && r.looks:
				hide = secretKey().MatchString(s)
			}
			if cut {
				tok = jsontext.String(s)
			}
		case '0':
			if containsAny(tok.String(), r.known) {
				tok = jsontext.String(Redacted)
			}
		}
		if err := enc.WriteToken(tok); err != nil {
			return unreadable(raw), true
		}
	}
	if dec.StackDepth() != 0 || out.Len() == 0 {
		return unreadable(raw), true
	}
	return bytes.TrimSpace(out.Bytes()), true
}

// finish closes what is open, since an encoder keeps a value to itself until it
// is complete.
func finish(enc *jsontext.Encoder) error {
	for depth := enc.StackDepth(); depth > 0; depth = enc.StackDepth() {
		kind, length := enc.StackIndex(depth)
		end := jsontext.EndArray
		if kind == '{' {
			end = jsontext.EndObject
			if length%2 == 1 {
				if err := enc.WriteToken(jsontext.Null); err != nil {
					return err
				}
			}
		}
		if err := enc.WriteToken(end); err != nil {
			return err
		}
	}
	return nil
}

// clip cuts a string that is longer than a record holds.
func clip(s string) (string, bool) {
	if len(s) <= MaxArguments {
		return s, false
	}
	return strings.ToValidUTF8(s[:MaxArguments], "") + "…", true
}

// suspicious reports whether there could be anything to redact: one look over
// the bytes instead of a rewrite for most calls. Escaped text always counts.
func (r redactor) suspicious(raw []byte) bool {
	return bytes.IndexByte(raw, '\\') >= 0 || r.looks && hinted(raw) && (secretKey().Match(raw) || secretValue().Match(raw)) ||
		containsAny(string(raw), r.known)
}

// hints are what every match of secretKey (in lower case) or secretValue has in
// it: looking for them is much cheaper than the expressions. Letters beyond
// ASCII count too, since some fold to those of a name.
var (
	keyHints   = [][]byte{[]byte("pass"), []byte("secret"), []byte("token"), []byte("key"), []byte("auth"), []byte("credential"), []byte("cookie"), []byte("bearer"), []byte("signature")}
	valueHints = [][]byte{
		[]byte("sk-"), []byte("sk_"), []byte("gh"), []byte("github_"), []byte("glpat-"), []byte("xox"), []byte("AKIA"), []byte("AIza"), []byte("hld_"), []byte("eyJ"), []byte("-----BEGIN"), []byte("://"),
	}
)

func hinted(raw []byte) bool {
	if bytes.ContainsFunc(raw, func(r rune) bool { return r >= utf8.RuneSelf }) {
		return true
	}
	lower := bytes.ToLower(raw)
	return slices.ContainsFunc(keyHints, func(h []byte) bool { return bytes.Contains(lower, h) }) ||
		slices.ContainsFunc(valueHints, func(h []byte) bool { return bytes.Contains(raw, h) })
}

func unreadable(raw []byte) []byte {
	return fmt.Appendf(nil, `{"unreadable":true,"size":%d}`, len(raw))
}

func containsAny(s string, known []string) bool {
	for _, k := range known {
		if k != "" && strings.Contains(s, k) {
			return true
		}
	}
	return false
}
