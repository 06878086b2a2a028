package wire

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// FuzzScan holds the quick reading of JSON to that of the library: what the one
// accepts the other does, and both find the same in it.
func FuzzScan(f *testing.F) {
	long := strings.Repeat("x", 17)
	for _, seed := range []string{
		``, ` `, `{}`, ` { } `, `[]`, `[ ]`, `{"a":1}`, `{"a":1,}`, `{"a" : [ 1 , {"b":null} ] , "c":"\u00e9\n"}`, `{"a":1}x`, `{"a":1} {}`, `{"a":1,"a":2}`,
		`{"a":1,"\u0061":2}`, `{"a":-0.1e+5}`, `{"a":01}`, `{"a":-}`, `{"a":1.}`, `{"a":1e}`, `{"a":tru}`, `{"a":truex}`, `{"a":nul`, `{a:1}`, `{"a"}`, `{"a":}`, `{,}`,
		`{"` + long + `":"` + long + `"}`, `{"a":"` + long + "\x01" + `"}`, `{"a":"` + long + `\u12"}`, `{"a":"` + long + `\x"}`, `{"a":"` + long, "{\"a\":\"" + long + "\xff\xfe\"}",
		"{\"\xff\":1,\"\xfe\":2}", `{"a":"\ud800"}`, `{"\ud800":1}`, `["` + long + `","\"` + long + `\\"]`, `[1,2,]`, `[,1]`, `[1 2]`, "[\"a\x7f\"]", "\ufeff{}", `"x"`, `{"a":"1234567\"`, `{"a":"1234567\""}`,
		strings.Repeat(`{"a":`, 100) + `1` + strings.Repeat(`}`, 100),
		`{"a":"` + strings.Repeat(`\\`, 9) + `"}`, `{"a":"1234567` + "\n" + `"}`, `{"a":"12345678"` + "\n" + `}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(agree)
}

func TestScanDeep(t *testing.T) {
	for _, n := range []int{100, 9_999, 10_000, 10_001} {
		agree(t, []byte(strings.Repeat(`[`, n)+strings.Repeat(`]`, n)))
		agree(t, []byte(strings.Repeat(`{"a":`, n)+`1`+strings.Repeat(`}`, n)))
	}
}

func agree(t *testing.T, raw []byte) {
	quick, ok := scanMembers(raw)
	slow, err := readMembers(raw)
	if ok != (err == nil) {
		t.Fatalf("members of %q: quick %v, the library: %v", raw, ok, err)
	}
	if ok && !slices.EqualFunc(quick, slow, func(a, b Member) bool {
		return a.Name == b.Name && a.Start == b.Start && a.End == b.End && string(a.Value) == string(b.Value)
	}) {
		t.Fatalf("members of %q: %v, the library: %v", raw, quick, slow)
	}
	elements, ok := scanElements(raw)
	all, err := readElements(raw)
	if ok != (err == nil) {
		t.Fatalf("elements of %q: quick %v, the library: %v", raw, ok, err)
	}
	if ok && !slices.EqualFunc(elements, all, func(a, b json.RawMessage) bool { return string(a) == string(b) }) {
		t.Fatalf("elements of %q: %q, the library: %q", raw, elements, all)
	}
}
