package wire_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// space is white space that JSON allows between tokens.
var space = rapid.SampledFrom([]string{"", "", " ", "\n", "\t ", "\r\n  "})

// oddValue is a JSON value in a spelling that a re-encoder would change.
var oddValue = rapid.OneOf(
	rapid.SampledFrom([]string{
		"9007199254740993", "-0", "1.0", "1E+400", "0.10", "null", "true", `""`, `"\u0061\/\ud83d\ude00"`, `"\ud800"`, "[ ]", "{ }",
		`{ "z" : 1, "a":{"z":[1 ,2]} }`, `{"a":1,"a":2}`, `[[[ "x" ]]]`, `"=?base64?"`,
	}),
	rapid.Custom(func(t *rapid.T) string { return string(wire.Quote(rapid.String().Draw(t, "text"))) }),
)

// oddName is the name of a member, never one of those that are set.
var oddName = rapid.OneOf(
	rapid.SampledFrom([]string{"a", "b", "A", "_meta", "resultType", "", "ä", "x y", `q"uote`, "io.modelcontextprotocol/protocolVersion", "\u2028"}),
	rapid.StringN(0, 6, 12),
)

// pair is a member as a test knows it: names decoded, values as they are spelt.
type pair struct{ name, value string }

// spelt draws an object and what it holds.
func spelt(t *rapid.T) (raw string, want []pair) {
	var b strings.Builder
	gap := func() { b.WriteString(space.Draw(t, "space")) }
	gap()
	b.WriteString("{")
	taken := map[string]bool{}
	for range rapid.IntRange(0, 7).Draw(t, "members") {
		name := oddName.Draw(t, "name")
		if taken[name] {
			continue
		}
		taken[name] = true
		if len(want) > 0 {
			b.WriteString(",")
		}
		value := oddValue.Draw(t, "value")
		gap()
		b.Write(wire.Quote(name))
		gap()
		b.WriteString(":")
		gap()
		b.WriteString(value)
		gap()
		want = append(want, pair{name, value})
	}
	b.WriteString("}")
	gap()
	return b.String(), want
}

// pairs reads an object with the decoder that wire does not use.
func pairs(t interface{ Fatalf(string, ...any) }, raw []byte) (out []pair) {
	names, values, ok := topLevel(raw)
	if !ok {
		t.Fatalf("no object: %q", raw)
	}
	for i, n := range names {
		out = append(out, pair{n, string(values[i])})
	}
	return out
}

// edited is what Edit is to do, by its own words.
func edited(have []pair, fields []wire.Field) (want []pair) {
	for _, p := range have {
		i := slices.IndexFunc(fields, func(f wire.Field) bool { return f.Name == p.name })
		switch {
		case i < 0:
			want = append(want, p)
		case fields[i].Value != nil:
			want = append(want, pair{p.name, string(fields[i].Value)})
		}
	}
	for _, f := range fields {
		if f.Value != nil && !slices.ContainsFunc(have, func(p pair) bool { return p.name == f.Name }) {
			want = append(want, pair{f.Name, string(f.Value)})
		}
	}
	return want
}

func drawFields(t *rapid.T) (fields []wire.Field) {
	for range rapid.IntRange(0, 4).Draw(t, "fields") {
		f := wire.Field{Name: oddName.Draw(t, "field")}
		if slices.ContainsFunc(fields, func(x wire.Field) bool { return x.Name == f.Name }) {
			continue
		}
		if rapid.Bool().Draw(t, "set") {
			f.Value = json.RawMessage(oddValue.Draw(t, "to"))
		}
		fields = append(fields, f)
	}
	return fields
}

// Edit changes what it is told to, in its place, and neither the order nor the bytes
// of any other value; what it was given stays as it is.
func TestEditChangesNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw, have := spelt(t)
		fields := drawFields(t)
		before := raw
		given := json.RawMessage(raw)
		got := wire.Edit(given, fields...)
		if string(given) != before {
			t.Fatalf("what was given has changed: %q", given)
		}
		if want := edited(have, fields); !slices.Equal(pairs(t, got), want) {
			t.Fatalf("Edit(%q, %v) = %q, want %q", raw, fields, got, want)
		}
		if err := wire.Lenient(got); err != nil {
			t.Fatalf("%q: %v", got, err)
		}
	})
}

// The names of the other members are as untouched as their values: an upstream's
// bytes are passed on as they came.
func TestEditKeepsTheSpellingOfNames(t *testing.T) {
	for _, name := range []string{`"\u0061bc"`, `"a\/b"`, "\"a\xffb\"", `"\ud800"`, `"\u00e4"`} {
		raw := json.RawMessage(`{` + name + `:1,"z":2}`)
		if got := wire.Edit(raw, wire.Field{Name: "z", Value: json.RawMessage("3")}); !bytes.Contains(got, []byte(name+":1")) {
			t.Errorf("the member %s became %s", name, got)
		}
	}
}

// Edit of nothing, and of what is no object.
func TestEditOfWhatIsNoObject(t *testing.T) {
	f := wire.Field{Name: "x", Value: json.RawMessage("1")}
	for in, want := range map[string]string{"": `{"x":1}`, "[1]": "[1]", "7": "7", "null": "null", `{"a":1,"a":2}`: `{"a":1,"a":2}`, `{"a"`: `{"a"`} {
		var raw json.RawMessage
		if in != "" {
			raw = json.RawMessage(in)
		}
		if got := wire.Edit(raw, f); string(got) != want {
			t.Errorf("Edit(%q) = %q, want %q", in, got, want)
		}
	}
	if got := wire.Edit(nil, wire.Field{Name: "x"}); string(got) != "{}" {
		t.Errorf("to take from nothing: %q", got)
	}
}

// EditMeta is Edit on _meta, which goes when nothing is left in it and comes when
// something has to be; all else of the params is byte for byte what it was.
func TestEditMetaChangesOnlyMeta(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw, have := spelt(t)
		var meta []pair
		if at := slices.IndexFunc(have, func(p pair) bool { return p.name == "_meta" }); at >= 0 || rapid.Bool().Draw(t, "with") {
			var text string
			text, meta = spelt(t)
			if at < 0 {
				sep := ","
				if len(have) == 0 {
					sep = ""
				}
				end := strings.LastIndexByte(raw, '}')
				raw = raw[:end] + sep + `"_meta":` + text + raw[end:]
				have = append(have, pair{"_meta", strings.TrimSpace(text)})
			} else {
				m, ok := wire.At([]byte(raw), "_meta")
				if !ok {
					t.Fatalf("no _meta in %q", raw)
				}
				raw = raw[:m.Start] + strings.TrimSpace(text) + raw[m.End:]
				have[at].value = strings.TrimSpace(text)
			}
		}
		fields := drawFields(t)
		got := pairs(t, wire.EditMeta(json.RawMessage(raw), fields...))
		want := edited(meta, fields)
		var left []pair // all but _meta
		for _, p := range have {
			if p.name != "_meta" {
				left = append(left, p)
			}
		}
		var gotMeta []pair
		var gotLeft []pair
		for _, p := range got {
			if p.name == "_meta" {
				gotMeta = pairs(t, []byte(p.value))
				if len(gotMeta) == 0 && !slices.ContainsFunc(have, func(p pair) bool { return p.name == "_meta" }) {
					t.Fatalf("an empty _meta came into being: %q", got)
				}
				continue
			}
			gotLeft = append(gotLeft, p)
		}
		if !slices.Equal(gotLeft, left) || !slices.Equal(gotMeta, want) {
			t.Fatalf("EditMeta(%q, %v):\n got %q and %q\nwant %q and %q", raw, fields, gotLeft, gotMeta, left, want)
		}
		if len(want) == 0 && len(meta) > 0 && slices.ContainsFunc(got, func(p pair) bool { return p.name == "_meta" }) {
			t.Fatalf("an emptied _meta has stayed: %q", got)
		}
	})
}

func TestEditMetaOfOddParams(t *testing.T) {
	f := wire.Field{Name: "x", Value: json.RawMessage("1")}
	for in, want := range map[string]string{
		"": `{"_meta":{"x":1}}`, `{}`: `{"_meta":{"x":1}}`, `{"_meta":7}`: `{"_meta":7}`, `{"_meta":null}`: `{"_meta":{"x":1}}`, `[1]`: `[1]`,
		`{ "a":1 , "_meta" : { "y" :2 } }`: `{ "a":1 , "_meta" : {"y":2,"x":1} }`,
	} {
		var raw json.RawMessage
		if in != "" {
			raw = json.RawMessage(in)
		}
		if got := wire.EditMeta(raw, f); string(got) != want {
			t.Errorf("EditMeta(%q) = %q, want %q", in, got, want)
		}
	}
	if got := wire.EditMeta(json.RawMessage(`{ "a":1 }`), wire.Field{Name: "x"}); string(got) != `{ "a":1 }` {
		t.Errorf("nothing to take: %q", got)
	}
	if got := wire.EditMeta(json.RawMessage(`{"_meta":{"x":1}}`), wire.Field{Name: "x"}); string(got) != `{}` {
		t.Errorf("an emptied _meta: %q", got)
	}
}

// decodeHeader reads a header as a server does (2026-07-28, streamable HTTP, value
// encoding): it knows nothing of the code under test.
func decodeHeader(t interface{ Fatalf(string, ...any) }, v string) string {
	for i := range len(v) {
		if c := v[i]; c != '\t' && (c < 0x20 || c > 0x7e) {
			t.Fatalf("%q is no value of a header", v)
		}
	}
	if strings.Trim(v, " \t") != v {
		t.Fatalf("%q loses its ends on the way", v)
	}
	inner, ok := strings.CutPrefix(v, "=?base64?")
	if inner, end := strings.CutSuffix(inner, "?="); ok && end {
		b, err := base64.StdEncoding.DecodeString(inner)
		if err != nil {
			t.Fatalf("%q: %v", v, err)
		}
		return string(b)
	}
	return v
}

func TestHeaderValueRoundTrip(t *testing.T) {
	text := rapid.OneOf(
		rapid.String(),
		rapid.StringMatching(`[ -~]{0,20}`),
		rapid.StringMatching(`[ \t]{0,2}[ -~]{0,5}[ \t]{0,2}`),
		rapid.SampledFrom([]string{"", " ", "\t", "=?base64?", "?=", "=?base64?=", "=?base64??=", "=?base64?literal?=", "=?BASE64?x?=", "a\r\nX-Evil: 1", "\u00a0", "\u2003x", "\x7f", "hä", "a\x00b"}),
		rapid.Custom(func(t *rapid.T) string { return "=?base64?" + rapid.String().Draw(t, "inside") + "?=" }),
	)
	rapid.Check(t, func(t *rapid.T) {
		s := text.Draw(t, "text")
		v := wire.HeaderValue(s)
		if got := decodeHeader(t, v); got != s {
			t.Fatalf("HeaderValue(%q) = %q, which reads %q", s, v, got)
		}
		plain := utf8.ValidString(s) && strings.Trim(s, " \t") == s && !(strings.HasPrefix(s, "=?base64?") && strings.HasSuffix(s, "?="))
		for _, r := range s {
			plain = plain && (r == '\t' || r >= ' ' && r <= '~')
		}
		if plain && v != s {
			t.Fatalf("HeaderValue(%q) = %q: plain texts are readable", s, v)
		}
	})
	// The examples of the specification.
	for s, want := range map[string]string{
		"us-west1": "us-west1", "Hello, 世界": "=?base64?SGVsbG8sIOS4lueVjA==?=", " padded ": "=?base64?IHBhZGRlZCA=?=",
		"line1\nline2": "=?base64?bGluZTEKbGluZTI=?=", "=?base64?literal?=": "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?=",
	} {
		if got := wire.HeaderValue(s); got != want {
			t.Errorf("HeaderValue(%q) = %q, want %q", s, got, want)
		}
	}
}

// FuzzEdit holds Edit and EditMeta against encoding/json on any bytes.
func FuzzEdit(f *testing.F) {
	for _, s := range []string{
		`{}`, ` { "a" : 1 } `, `{"a":1,"a":2}`, `{"_meta":{"x":1},"b":9007199254740993}`, `{"\u0061":"\ud800"}`, `[]`, ``, `{"a":`, "{\"\xff\":1}", `{"_meta":null}`,
	} {
		f.Add([]byte(s), "a", []byte("2"))
		f.Add([]byte(s), "x", []byte(nil))
	}
	f.Fuzz(func(t *testing.T, raw []byte, name string, value []byte) {
		if len(value) > 0 && !json.Valid(value) || !utf8.ValidString(name) {
			return
		}
		value = bytes.TrimSpace(value)
		if len(value) == 0 {
			value = nil
		}
		field := wire.Field{Name: name, Value: value}
		kept := bytes.Clone(raw)
		got := wire.Edit(raw, field)
		meta := wire.EditMeta(raw, field)
		if !bytes.Equal(kept, raw) {
			t.Fatalf("%q has changed to %q", kept, raw)
		}
		if raw == nil {
			return
		}
		names, values, ok := topLevel(raw)
		if !ok || !utf8.Valid(raw) || uniqueTop(names) != nil {
			return // what is no object with unique names is not edited, or by other rules
		}
		if slices.Contains(names, string(utf8.RuneError)) || strings.ContainsRune(strings.Join(names, ""), utf8.RuneError) {
			return // names that encoding/json cannot tell apart
		}
		var have []pair
		for i, n := range names {
			have = append(have, pair{n, string(values[i])})
		}
		if want := edited(have, []wire.Field{field}); !slices.Equal(pairs(t, got), want) {
			t.Fatalf("Edit(%q, %q: %q) = %q, want %q", raw, name, value, got, want)
		}
		if _, _, ok := topLevel(meta); !ok {
			t.Fatalf("EditMeta(%q) = %q", raw, meta)
		}
		for _, p := range pairs(t, meta) {
			if p.name != "_meta" && !slices.Contains(have, p) {
				t.Fatalf("EditMeta(%q) = %q", raw, meta)
			}
		}
	})
}

// uniqueTop returns a name that stands twice.
func uniqueTop(names []string) *string {
	seen := map[string]bool{}
	for _, n := range names {
		if seen[n] {
			return &n
		}
		seen[n] = true
	}
	return nil
}
