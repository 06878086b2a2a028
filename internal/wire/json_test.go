package wire_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/internal/wire"
)

func TestStrictRefusesWhatTwoParsersCouldReadDifferently(t *testing.T) {
	for name, in := range map[string]string{
		"the same name twice":                       `{"a":1,"a":2}`,
		"the same name twice with the same value":   `{"a":1,"a":1}`,
		"the second name spelled with an escape":    `{"a":1,"\u0061":2}`,
		"both names spelled with different escapes": `{"\/":1,"\u002f":2}`,
		"a surrogate pair and the character itself": `{"😀":1,"\ud83d\ude00":2}`,
		"the empty name twice":                      `{"":1,"":2}`,
		"twice inside an array inside an object":    `{"x":[1,{"y":[{"a":1,"b":2,"a":3}]}]}`,
		"twice, far apart":                          `{"a":1,` + many(2000) + `"a":2}`,
		"a lone high surrogate":                     `"\ud800"`,
		"a lone low surrogate":                      `"\udc00"`,
		"surrogates in the wrong order":             `"\udc00\ud800"`,
		"a byte that is no UTF-8":                   "\"\xff\"",
		"an overlong encoding of /":                 "\"\xc0\xaf\"",
		"a surrogate in UTF-8 (CESU-8)":             "\"\xed\xa0\x80\"",
		"a code point beyond U+10FFFF":              "\"\xf4\x90\x80\x80\"",
		"a character cut off":                       "\"\xe2\x82\"",
		"invalid UTF-8 in a name":                   "{\"\xff\":1}",
		"a byte order mark":                         "\ufeff{}",
		"a second value":                            `{}{}`,
		"a second value after white space":          "{} \t 1",
		"a zero byte after the value":               "{}\x00",
		"a comment":                                 `{}//x`,
		"a trailing comma in an object":             `{"a":1,}`,
		"a trailing comma in an array":              `[1,]`,
		"a name without quotes":                     `{a:1}`,
		"single quotes":                             `{'a':1}`,
		"a number with a leading zero":              `01`,
		"a number with a plus":                      `+1`,
		"a number without a digit after the point":  `1.`,
		"a number without a digit before the point": `.5`,
		"a hexadecimal number":                      `0x10`,
		"NaN":                                       `NaN`,
		"Infinity":                                  `-Infinity`,
		"a control character in a string":           "\"\x01\"",
		"a line break in a string":                  "\"a\nb\"",
		"an unknown escape":                         `"\x41"`,
		"no-break space as white space":             "\u00a0{}",
		"vertical tab as white space":               "\v{}",
		"form feed as white space":                  "{\f}",
		"nothing":                                   ``,
		"only white space":                          ` `,
		"an object cut off":                         `{"a":1`,
		"a string cut off":                          `"abc`,
		"a bracket too many":                        `[]]`,
		"the wrong bracket":                         `[}`,
		"a literal in capitals":                     `True`,
	} {
		t.Run(name, func(t *testing.T) {
			if err := wire.Strict([]byte(in)); err == nil {
				t.Errorf("Strict(%q) accepts it", clip([]byte(in)))
			} else if !utf8.ValidString(err.Error()) {
				t.Errorf("the error is no UTF-8 and could not be sent: %q", err)
			}
		})
	}
}

// many returns n members with distinct names, each followed by a comma: enough
// to push a duplicate check from a list to a hash.
func many(n int) string {
	var b strings.Builder
	for i := range n {
		b.Write(wire.Quote("k" + string(rune('\u4e00'+i))))
		b.WriteString(":0,")
	}
	return b.String()
}

func TestStrictAcceptsEverythingElse(t *testing.T) {
	for name, in := range map[string]string{
		"names that differ in case":             `{"a":1,"A":2}`,
		"names that differ in normalisation":    "{\"\u00e9\":1,\"e\u0301\":2}",
		"the same name at different depths":     `{"a":{"a":{"a":[{"a":1},{"a":2}]}}}`,
		"numbers beyond a double's range":       `[1e999,-1e-999,123456789012345678901234567890]`,
		"white space of all four kinds":         " \t\r\n{ \t\r\n\"a\" \t\r\n: \t\r\n1 \t\r\n} \t\r\n",
		"a zero character as an escape":         `"\u0000"`,
		"noncharacters":                         "\"\uffff\ufffe\"",
		"brackets in strings, far over 64":      `"` + strings.Repeat("[{", 500) + `"`,
		"brackets in strings after a backslash": `["\\","` + strings.Repeat("[", 100) + `","\"` + strings.Repeat("{", 100) + `"]`,
		"65 siblings that are not nested":       "[" + strings.Repeat("[],", 65) + "[]]",
	} {
		t.Run(name, func(t *testing.T) {
			if err := wire.Strict([]byte(in)); err != nil {
				t.Errorf("Strict(%q): %v", clip([]byte(in)), err)
			}
		})
	}
}

func TestStrictAllowsDepth64AndNotDepth65(t *testing.T) {
	arrays := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	objects := func(n int) string { return strings.Repeat(`{"a":`, n-1) + "{}" + strings.Repeat("}", n-1) }
	mixed := func(n int) string {
		return strings.Repeat(`[{"a":`, n/2) + arrays(n%2) + strings.Repeat("0", 1-n%2) + strings.Repeat("}]", n/2)
	}
	for name, nest := range map[string]func(int) string{"arrays": arrays, "objects": objects, "both": mixed} {
		t.Run(name, func(t *testing.T) {
			if in := nest(64); wire.Strict([]byte(in)) != nil {
				t.Errorf("depth 64 is refused: %v", wire.Strict([]byte(in)))
			}
			if in := nest(65); wire.Strict([]byte(in)) == nil {
				t.Errorf("depth 65 is accepted")
			}
		})
	}
}

// A hostile text must cost time in proportion to its length, and no stack.
func TestReadingAMegabyteOfOpenBracketsIsQuick(t *testing.T) {
	for _, c := range []string{"[", "{", `{"a":`, `[{"a":`} {
		in := []byte(strings.Repeat(c, 1<<20/len(c)))
		start := time.Now()
		if wire.Strict(in) == nil || wire.Lenient(in) == nil {
			t.Errorf("%q repeated is accepted", c)
		}
		if _, err := wire.Members(in); err == nil {
			t.Errorf("Members accepts %q repeated", c)
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%q repeated took %v", c, d)
		}
	}
}

// The upstream's bytes are handed on, so that only the grammar is checked.
func TestLenientAcceptsDuplicatesAndInvalidUTF8ButNoBrokenGrammar(t *testing.T) {
	for _, in := range []string{`{"a":1,"a":2}`, "\"\xff\"", `"\ud800"`, strings.Repeat("[", 1000) + strings.Repeat("]", 1000)} {
		if err := wire.Lenient([]byte(in)); err != nil {
			t.Errorf("Lenient(%q): %v", clip([]byte(in)), err)
		}
	}
	for _, in := range []string{``, ` `, `{`, `{}{}`, `{} x`, `{"a":1,}`, `01`, "\ufeff{}", "\"\n\""} {
		if wire.Lenient([]byte(in)) == nil {
			t.Errorf("Lenient(%q) accepts it", in)
		}
	}
}

func TestMembersAreTheObjectsOwnBytes(t *testing.T) {
	raw := []byte(" { \"a\" : 1.0 ,\n\"\\u0062\":\"x\\u0041\", \"c\":{ \"d\" : [ 1 , 2 ] } ,\"\": null } ")
	members, err := wire.Members(raw)
	if err != nil {
		t.Fatal(err)
	}
	type row struct{ Name, Value, AtOffsets string }
	var got []row
	for _, m := range members {
		got = append(got, row{m.Name, string(m.Value), string(raw[m.Start:m.End])})
	}
	want := []row{
		{"a", "1.0", "1.0"},
		{"b", `"x\u0041"`, `"x\u0041"`},
		{"c", `{ "d" : [ 1 , 2 ] }`, `{ "d" : [ 1 , 2 ] }`},
		{"", "null", "null"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, ok := wire.Find(members, "B"); ok {
		t.Error("Find is case-blind")
	}
	if m, ok := wire.Find(members, "b"); !ok || string(m.Value) != `"x\u0041"` {
		t.Errorf("Find(b) = %v, %v", m, ok)
	}
}

// An append to a value must never run into the bytes behind it.
func TestMembersAndElementsAreCappedSlices(t *testing.T) {
	raw := []byte(`{"a":1,"b":2}`)
	members, _ := wire.Members(raw)
	_ = append(members[0].Value, "XXXXX"...)
	if string(raw) != `{"a":1,"b":2}` {
		t.Errorf("appending to a member changed the message: %s", raw)
	}
	raw = []byte(`[1,2]`)
	elements, _ := wire.Elements(raw)
	_ = append(elements[0], "XXX"...)
	if string(raw) != `[1,2]` {
		t.Errorf("appending to an element changed the message: %s", raw)
	}
}

func TestMembersRefusesWhatIsNoObjectOrNotOne(t *testing.T) {
	for _, in := range []string{
		``, ` `, `null`, `1`, `"x"`, `[]`, `[{}]`, `{`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`, `{"a":1,}`, `{"a" 1}`, `{,}`, `{1:2}`,
		`{}{}`, `{} {}`, `{}]`, `{}}`, `{} x`, `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"":1,"":2}`,
	} {
		if _, err := wire.Members([]byte(in)); err == nil {
			t.Errorf("Members(%q) accepts it", in)
		}
	}
}

// A duplicate deeper down is the peer's business when it comes from an upstream.
func TestMembersLooksAtTheObjectItselfOnly(t *testing.T) {
	if m, err := wire.Members([]byte(`{"a":{"b":1,"b":2}}`)); err != nil || len(m) != 1 {
		t.Errorf("Members = %v, %v", m, err)
	}
}

func TestElementsAreTheArraysOwnBytes(t *testing.T) {
	elements, err := wire.Elements([]byte(" [ 1 , { \"a\" : [ ] } ,\t\"x\" , null ] "))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range elements {
		got = append(got, string(e))
	}
	if diff := cmp.Diff([]string{"1", `{ "a" : [ ] }`, `"x"`, "null"}, got); diff != "" {
		t.Error(diff)
	}
	if e, err := wire.Elements([]byte(`[]`)); err != nil || len(e) != 0 {
		t.Errorf("Elements([]) = %v, %v", e, err)
	}
}

func TestElementsRefusesWhatIsNoArray(t *testing.T) {
	for _, in := range []string{``, `{}`, `null`, `"[]"`, `[`, `[1`, `[1,`, `[1,]`, `[,1]`, `[1 2]`, `[}`} {
		if _, err := wire.Elements([]byte(in)); err == nil {
			t.Errorf("Elements(%q) accepts it", in)
		}
	}
}

// Members refuses the like. What follows a batch on its line would be dropped
// without a word, and Lenient says of the same bytes that they are no JSON.
func TestElementsRefusesDataAfterTheArray(t *testing.T) {
	for _, in := range []string{`[1]2`, `[] []`, `[1] {"jsonrpc":"2.0","id":1,"result":{}}`, `[1]]`, `[1] x`, "[1]\x00"} {
		if e, err := wire.Elements([]byte(in)); err == nil {
			t.Errorf("Elements(%q) = %q, want an error", in, e)
		}
	}
}

func TestStringDecodesStringsAndNothingElse(t *testing.T) {
	for in, want := range map[string]string{
		`""`: "", `"a"`: "a", ` "a" `: "a", `"\u0061"`: "a", `"\ud83d\ude00"`: "😀", `"\"\\\/\b\f\n\r\t"`: "\"\\/\b\f\n\r\t", `"\u0000"`: "\x00",
	} {
		if got, ok := wire.String([]byte(in)); !ok || got != want {
			t.Errorf("String(%s) = %q, %v; want %q", in, got, ok, want)
		}
	}
	for _, in := range []string{``, `a`, `1`, `null`, `{}`, `["a"]`, `"a`, `"`, `"a"b`, `"a" "b"`, `"\x"`} {
		if got, ok := wire.String([]byte(in)); ok {
			t.Errorf("String(%q) = %q, want none", in, got)
		}
	}
}

func TestQuoteAlwaysGivesValidJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
		q := wire.Quote(in)
		var back string
		if err := json.Unmarshal(q, &back); err != nil {
			t.Fatalf("Quote(%q) = %s: %v", in, q, err)
		}
		if wire.Strict(q) != nil || bytes.ContainsAny(q, "\r\n") {
			t.Fatalf("Quote(%q) = %s could not be sent", in, q)
		}
		if utf8.ValidString(in) && back != in {
			t.Fatalf("Quote(%q) reads back as %q", in, back)
		}
	})
}

func TestKindOfNamesTheFirstCharacter(t *testing.T) {
	for in, want := range map[string]string{
		"": "nothing", " \r\n\t": "nothing", " {": "an object", "[": "an array", `"`: "a string", "true": "a boolean", "false": "a boolean",
		"null": "null", "-1": "a number", "0": "a number", "9": "a number", "x": "no JSON", "+1": "no JSON", "\u00a0{": "no JSON",
	} {
		if got := wire.KindOf([]byte(in)); got != want {
			t.Errorf("KindOf(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestSpliceLeavesTheOriginalAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SliceOf(rapid.Byte()).Draw(t, "raw")
		with := rapid.SliceOf(rapid.Byte()).Draw(t, "with")
		start := rapid.IntRange(0, len(raw)).Draw(t, "start")
		end := rapid.IntRange(start, len(raw)).Draw(t, "end")
		before := bytes.Clone(raw)
		got := wire.Splice(raw, start, end, with)
		if want := string(before[:start]) + string(with) + string(before[end:]); string(got) != want {
			t.Fatalf("Splice = %q, want %q", got, want)
		}
		if !bytes.Equal(raw, before) {
			t.Fatal("Splice changed its argument")
		}
		for i := range got {
			got[i] ^= 0xff
		}
		if !bytes.Equal(raw, before) {
			t.Fatal("Splice's result shares memory with its argument")
		}
	})
}

func TestOneLineChangesWhiteSpaceOnly(t *testing.T) {
	in := []byte("{\r\n \"a\\n\": [\n1,\r2]\n}")
	before := bytes.Clone(in)
	got := wire.OneLine(in)
	if bytes.ContainsAny(got, "\r\n") {
		t.Errorf("OneLine leaves a line break: %q", got)
	}
	if !bytes.Equal(in, before) {
		t.Error("OneLine changed its argument")
	}
	if len(got) != len(in) {
		t.Errorf("OneLine changed the length from %d to %d", len(in), len(got))
	}
	var a, b any
	if json.Unmarshal(in, &a) != nil || json.Unmarshal(got, &b) != nil || !cmp.Equal(a, b) {
		t.Errorf("OneLine changed the value: %q", got)
	}
	flat := []byte(`{"a":1}`)
	if got := wire.OneLine(flat); &got[0] != &flat[0] {
		t.Error("OneLine copies a message that needs no change")
	}
}

// Objects of many members are read in time that grows with them, not with their
// square, and a name that stands twice is found in them, too.
func TestMembersOfLargeObjects(t *testing.T) {
	var b strings.Builder
	b.WriteByte('{')
	for i := range 200_000 {
		fmt.Fprintf(&b, `"k%d":0,`, i)
	}
	for last, want := range map[string]bool{`"other":0}`: true, `"k3":0}`: false, `"k199999":0}`: false} {
		members, err := wire.Members([]byte(b.String() + last))
		if (err == nil) != want || want && len(members) != 200_001 {
			t.Errorf("%s: %d members, %v", last, len(members), err)
		}
	}
}

func TestAt(t *testing.T) {
	raw := json.RawMessage(` {"a" : {"b":[1], "c" : {"d":"x"}},"n":null,"twice":{"k":1,"k":2}}`)
	for _, tt := range []struct {
		path string
		want string // "": there is none
	}{
		{"", string(raw)},
		{"a.c.d", `"x"`},
		{"a.b", `[1]`},
		{"a.c", `{"d":"x"}`},
		{"n", `null`},
		{"a.x", ""},
		{"a.b.c", ""},
		{"n.x", ""},
		{"twice.k", ""},
		{"A", ""},
	} {
		var path []string
		if tt.path != "" {
			path = strings.Split(tt.path, ".")
		}
		m, ok := wire.At(raw, path...)
		if ok != (tt.want != "") || string(m.Value) != tt.want {
			t.Errorf("%q: %s %v", tt.path, m.Value, ok)
		}
		if ok && path != nil && string(raw[m.Start:m.End]) != tt.want {
			t.Errorf("%q stands at %s", tt.path, raw[m.Start:m.End])
		}
	}
	if _, ok := wire.At(nil, "x"); ok {
		t.Error("nothing has a member")
	}
}
