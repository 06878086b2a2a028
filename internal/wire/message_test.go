package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// refused parses in, which must fail, and returns the error to be sent.
func refused(t *testing.T, in string) *wire.Error {
	t.Helper()
	m, err := wire.ParseStrict([]byte(in))
	if err == nil {
		t.Fatalf("ParseStrict(%q) accepts it: %+v", clip([]byte(in)), m)
	}
	var e *wire.Error
	if !errors.As(err, &e) {
		t.Fatalf("ParseStrict(%q) returns a %T, not one to be sent: %v", clip([]byte(in)), err, err)
	}
	if m.Raw != nil || m.Method != "" || m.ID != nil {
		t.Errorf("ParseStrict(%q) returns a message beside its error: %+v", clip([]byte(in)), m)
	}
	checkFailure(t, e)
	return e
}

// checkFailure checks that e can be sent: valid, strict JSON of the right shape.
func checkFailure(t testing.TB, e *wire.Error) {
	t.Helper()
	out := wire.Failure(e)
	if err := wire.Strict(out); err != nil {
		t.Errorf("the error answer is no strict JSON (%v): %q", err, out)
		return
	}
	back, err := wire.ParseLenient(out)
	if err != nil || !back.IsResponse() {
		t.Errorf("the error answer is no response (%v): %q", err, out)
	}
	if id := object(t, out)["id"]; e.ID == nil && string(id) != "null" || e.ID != nil && string(id) != string(e.ID) {
		t.Errorf("the error answer carries id %s, want %s", id, e.ID)
	}
}

const noID = ""

// Who asked must learn that it failed: an error without the id leaves a host
// waiting. Whose id cannot be told must not be answered under a guess.
func TestParseStrictRefusesAndAnswersByTheIDThatIsBeyondDoubt(t *testing.T) {
	const request, parse = wire.CodeInvalidRequest, wire.CodeParse
	for name, c := range map[string]struct {
		in   string
		code int
		id   string
	}{
		"no JSON at all":           {`hello`, parse, noID},
		"nothing":                  {``, parse, noID},
		"white space":              {" \t", parse, noID},
		"a byte order mark":        {"\ufeff" + `{"jsonrpc":"2.0","id":1,"method":"x"}`, parse, noID},
		"a null":                   {`null`, request, noID},
		"a number":                 {`1`, request, noID},
		"a string":                 {`"x"`, request, noID},
		"an empty object":          {`{}`, request, noID},
		"an empty batch":           {`[]`, request, noID},
		"a batch of one":           {`[{"jsonrpc":"2.0","id":1,"method":"x"}]`, request, noID},
		"two messages on one line": {`{"jsonrpc":"2.0","id":1,"method":"x"}{"jsonrpc":"2.0","id":2,"method":"x"}`, parse, noID},
		"a batch behind a message": {`{"jsonrpc":"2.0","id":1,"method":"x"}[]`, parse, noID},

		"no jsonrpc":                       {`{"id":1,"method":"x"}`, request, `1`},
		"jsonrpc 1.0":                      {`{"jsonrpc":"1.0","id":1,"method":"x"}`, request, `1`},
		"jsonrpc a number":                 {`{"jsonrpc":2.0,"id":1,"method":"x"}`, request, `1`},
		"jsonrpc null":                     {`{"jsonrpc":null,"id":1,"method":"x"}`, request, `1`},
		"no jsonrpc in a notification":     {`{"method":"x"}`, request, noID},
		"only an id":                       {`{"jsonrpc":"2.0","id":1}`, request, `1`},
		"method and result":                {`{"jsonrpc":"2.0","id":1,"method":"x","result":{}}`, request, `1`},
		"method and error":                 {`{"jsonrpc":"2.0","id":1,"method":"x","error":{}}`, request, `1`},
		"method and a null result":         {`{"jsonrpc":"2.0","id":1,"method":"x","result":null}`, request, `1`},
		"a null method and a result":       {`{"jsonrpc":"2.0","id":1,"method":null,"result":{}}`, request, `1`},
		"result and error":                 {`{"jsonrpc":"2.0","id":1,"result":{},"error":{}}`, request, `1`},
		"a result without id":              {`{"jsonrpc":"2.0","result":{}}`, request, noID},
		"a result with id null":            {`{"jsonrpc":"2.0","id":null,"result":{}}`, request, noID},
		"an empty method, id first":        {`{"jsonrpc":"2.0","id":1,"method":""}`, request, `1`},
		"an empty method, id last":         {`{"jsonrpc":"2.0","method":"","id":1}`, request, `1`},
		"a method that is a number, first": {`{"jsonrpc":"2.0","id":1,"method":5}`, request, `1`},
		"a method that is a number, last":  {`{"jsonrpc":"2.0","method":5,"id":1}`, request, `1`},
		"a method that is an object":       {`{"jsonrpc":"2.0","method":{"id":3},"id":1}`, request, `1`},

		"id null":       {`{"jsonrpc":"2.0","id":null,"method":"x"}`, request, noID},
		"id true":       {`{"jsonrpc":"2.0","id":true,"method":"x"}`, request, noID},
		"id an object":  {`{"jsonrpc":"2.0","id":{"id":1},"method":"x"}`, request, noID},
		"id an array":   {`{"jsonrpc":"2.0","id":[1],"method":"x"}`, request, noID},
		"id no JSON":    {`{"jsonrpc":"2.0","id":01,"method":"x"}`, parse, noID},
		"id NaN":        {`{"jsonrpc":"2.0","id":NaN,"method":"x"}`, parse, noID},
		"two ids":       {`{"jsonrpc":"2.0","id":1,"id":2,"method":"x"}`, request, noID},
		"two equal ids": {`{"jsonrpc":"2.0","id":1,"id":1,"method":"x"}`, request, noID},
		"two ids, one by an escape, last": {
			`{"jsonrpc":"2.0","id":1,"method":"x","\u0069d":2}`, request, noID,
		},
		"two ids, one by an escape, first": {
			`{"\u0069\u0064":2,"jsonrpc":"2.0","id":1,"method":"x"}`, request, noID,
		},
		"an id that is no UTF-8": {"{\"jsonrpc\":\"2.0\",\"id\":\"\xff\",\"method\":\"x\"}", request, noID},

		"params an array": {`{"jsonrpc":"2.0","id":1,"method":"x","params":[]}`, request, `1`},
		"params null":     {`{"jsonrpc":"2.0","id":1,"method":"x","params":null}`, request, `1`},
		"params a string": {`{"jsonrpc":"2.0","id":1,"method":"x","params":"{}"}`, request, `1`},
		"params a number, id last": {
			`{"jsonrpc":"2.0","method":"x","params":1,"id":"a"}`, request, `"a"`,
		},

		"method twice":                     {`{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}`, request, `1`},
		"method twice, before the id":      {`{"jsonrpc":"2.0","method":"a","method":"b","id":1}`, request, `1`},
		"method twice by an escape":        {`{"jsonrpc":"2.0","id":1,"method":"a","m\u0065thod":"b"}`, request, `1`},
		"params twice":                     {`{"jsonrpc":"2.0","id":1,"method":"a","params":{},"params":{}}`, request, `1`},
		"an unknown name twice":            {`{"jsonrpc":"2.0","id":1,"method":"a","x":1,"x":2}`, request, `1`},
		"twice in params":                  {`{"jsonrpc":"2.0","id":1,"method":"a","params":{"name":"safe","name":"danger"}}`, request, `1`},
		"twice in params by an escape":     {`{"jsonrpc":"2.0","id":1,"method":"a","params":{"name":"safe","\u006eame":"danger"}}`, request, `1`},
		"twice in the arguments":           {`{"jsonrpc":"2.0","id":1,"method":"a","params":{"arguments":{"x":1,"x":2}}}`, request, `1`},
		"twice deep in the arguments":      {`{"jsonrpc":"2.0","id":1,"method":"a","params":{"arguments":{"x":[[{"y":{"a":1,"\u0061":2}}]]}}}`, request, `1`},
		"twice in _meta":                   {`{"jsonrpc":"2.0","id":1,"method":"a","params":{"_meta":{"progressToken":1,"progressToken":2}}}`, request, `1`},
		"twice in a result":                {`{"jsonrpc":"2.0","id":"r","result":{"a":1,"a":2}}`, request, `"r"`},
		"twice in an error's data":         {`{"jsonrpc":"2.0","id":"r","error":{"code":1,"message":"","data":{"a":1,"a":2}}}`, request, `"r"`},
		"invalid UTF-8 in the arguments":   {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\",\"params\":{\"arguments\":{\"x\":\"\xff\"}}}", request, `1`},
		"invalid UTF-8 in a name":          {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\",\"\xff\":0}", request, `1`},
		"invalid UTF-8 in the method":      {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}", request, `1`},
		"invalid UTF-8, method before id":  {"{\"jsonrpc\":\"2.0\",\"method\":\"\xff\",\"id\":1}", request, `1`},
		"a lone surrogate in the method":   {`{"jsonrpc":"2.0","method":"\ud800","id":1}`, request, `1`},
		"a lone surrogate in the argument": {`{"jsonrpc":"2.0","id":1,"method":"a","params":{"arguments":{"x":"\ud800"}}}`, request, `1`},
		"65 levels": {
			`{"jsonrpc":"2.0","id":1,"method":"x","params":{"arguments":` + nested(63) + `}}`, request, `1`,
		},
		"65 levels, id last": {
			`{"jsonrpc":"2.0","method":"x","params":{"arguments":` + nested(63) + `},"id":"z"}`, request, `"z"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := refused(t, c.in)
			if e.Code != c.code {
				t.Errorf("code %d, want %d (%s)", e.Code, c.code, e.Message)
			}
			if string(e.ID) != c.id {
				t.Errorf("id %q, want %q (%s)", e.ID, c.id, e.Message)
			}
		})
	}
}

// nested is an array n levels deep.
func nested(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// Deeper than what the JSON decoder itself bears (10,000 levels), the text is
// still valid JSON with one id at its top.
func TestParseStrictAnswersByIDHoweverDeepTheMessage(t *testing.T) {
	for _, n := range []int{100, 9_000, 20_000, 1_000_000} {
		e := refused(t, `{"jsonrpc":"2.0","id":"deep","method":"x","params":{"arguments":`+nested(n)+`}}`)
		if string(e.ID) != `"deep"` || e.Code != wire.CodeInvalidRequest {
			t.Errorf("%d levels: id %q, code %d (%s)", n, e.ID, e.Code, e.Message)
		}
	}
}

func TestParseStrictAllowsDepth64(t *testing.T) {
	if _, err := wire.ParseStrict([]byte(`{"jsonrpc":"2.0","id":1,"method":"x","params":{"arguments":` + nested(62) + `}}`)); err != nil {
		t.Error(err)
	}
}

// mcp-go and every other reader on encoding/json takes "Name" for "name", last
// wins: what the policy judged would not be what the upstream does.
func TestParseStrictRefusesAKnownNameInTheWrongCase(t *testing.T) {
	envelope := []string{"Id", "ID", "iD", "Method", "METHOD", "Params", "Jsonrpc", "JSONRPC", "Result", "reſult", "Error", "paramſ", "PARAMſ"}
	for _, name := range envelope {
		for _, in := range []string{
			`{"jsonrpc":"2.0","id":1,"method":"x",` + string(wire.Quote(name)) + `:{}}`,
			`{` + string(wire.Quote(name)) + `:{},"jsonrpc":"2.0","id":1,"method":"x"}`,
			`{"jsonrpc":"2.0","id":1,"method":"x",` + escaped(name) + `:{}}`,
		} {
			refused(t, in)
		}
	}
	params := []string{
		"Name", "NAME", "nAme", "Arguments", "ARGUMENTS", "argumentſ", "_Meta", "_META", "Uri", "URI", "Cursor", "Task", "taſk", "taſK", "tas\u212a", "Level", "Ref",
		"Argument", "Context", "ProtocolVersion", "protocolversion", "Capabilities", "ClientInfo", "clientinfo", "RequestId", "requestID",
		"requestid", "Reason", "ProgressToken", "progresstoken", "Progress", "Total", "Message", "InputResponses", "inputresponses",
		"RequestState", "requeststate", "Notifications", "TaskId", "taskID", "taskid",
	}
	for _, name := range params {
		for _, in := range []string{
			`{"jsonrpc":"2.0","id":1,"method":"x","params":{"name":"safe",` + string(wire.Quote(name)) + `:"danger"}}`,
			`{"jsonrpc":"2.0","id":1,"method":"x","params":{` + string(wire.Quote(name)) + `:"danger"}}`,
			`{"jsonrpc":"2.0","id":1,"method":"x","params":{` + escaped(name) + `:"danger"}}`,
			`{"jsonrpc":"2.0","method":"notifications/x","params":{` + escaped(name) + `:"danger"}}`,
		} {
			e := refused(t, in)
			if want := strings.Contains(in, `"id"`); want != (string(e.ID) == "1") {
				t.Errorf("%s: id %q", in, e.ID)
			}
		}
	}
}

// escaped spells s as a JSON string of \u escapes only.
func escaped(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		fmt.Fprintf(&b, `\u%04x`, r)
	}
	b.WriteByte('"')
	return b.String()
}

// Every name that encoding/json takes for a known one must be refused: the
// decoder itself is asked, so that no way of folding is forgotten.
func TestNoNameThatEncodingJSONTakesForAKnownOnePasses(t *testing.T) {
	type envelope struct {
		ID     any `json:"id"`
		Method any `json:"method"`
		Params any `json:"params"`
	}
	type params struct {
		Name      any `json:"name"`
		Arguments any `json:"arguments"`
		Meta      any `json:"_meta"`
		Task      any `json:"task"`
		URI       any `json:"uri"`
		RequestID any `json:"requestId"`
	}
	known := []string{"id", "method", "params", "name", "arguments", "_meta", "task", "uri", "requestId"}
	// every rune that folds to a rune of a known name
	runes := []rune("iIdDmMeEtThHoOpPaArRsSſnNgGuUkK\u212aıİ_ -qQjJcC\u0301ſß\ufeff\u200b")
	rapid.Check(t, func(t *rapid.T) {
		name := []rune(rapid.SampledFrom(known).Draw(t, "known"))
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			name[rapid.IntRange(0, len(name)-1).Draw(t, "at")] = rapid.SampledFrom(runes).Draw(t, "rune")
		}
		quoted := string(wire.Quote(string(name)))
		if rapid.Bool().Draw(t, "escaped") {
			quoted = escaped(string(name))
		}
		for _, k := range known {
			if string(name) == k {
				return
			}
		}
		var e envelope
		if err := json.Unmarshal([]byte(`{`+quoted+`:1}`), &e); err != nil {
			t.Fatal(err)
		}
		if _, err := wire.ParseStrict([]byte(`{"jsonrpc":"2.0","id":1,"method":"x",` + quoted + `:1}`)); e != (envelope{}) && err == nil {
			t.Fatalf("%q passes in the envelope, but encoding/json reads it as known", string(name))
		}
		var p params
		if err := json.Unmarshal([]byte(`{`+quoted+`:1}`), &p); err != nil {
			t.Fatal(err)
		}
		if _, err := wire.ParseStrict([]byte(`{"jsonrpc":"2.0","id":1,"method":"x","params":{` + quoted + `:1}}`)); p != (params{}) && err == nil {
			t.Fatalf("%q passes in params, but encoding/json reads it as known", string(name))
		}
	})
}

func TestParseStrictPassesTheWrongCaseWhereItIsTheToolsOwnBusiness(t *testing.T) {
	for name, in := range map[string]string{
		"in the arguments":           `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":{"Name":1,"name":2,"NAME":3,"Arguments":{"ID":1}}}}`,
		"in _meta":                   `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","_meta":{"Name":1,"ProgressToken":2,"progressToken":3}}}`,
		"in a result":                `{"jsonrpc":"2.0","id":1,"result":{"Name":1,"name":2,"Method":"x"}}`,
		"in an error":                `{"jsonrpc":"2.0","id":1,"error":{"Code":1,"code":2,"message":"x"}}`,
		"an envelope name in params": `{"jsonrpc":"2.0","id":1,"method":"x","params":{"ID":1,"Method":"y","Params":{}}}`,
		"a params name on top":       `{"jsonrpc":"2.0","id":1,"method":"x","Name":"y","Arguments":{}}`,
		"unknown names":              `{"jsonrpc":"2.0","id":1,"method":"x","params":{"foo":1,"Foo":2,"FOO":3},"bar":1,"BAR":2}`,
	} {
		t.Run(name, func(t *testing.T) {
			m, err := wire.ParseStrict([]byte(in))
			if err != nil {
				t.Fatal(err)
			}
			if string(m.Raw) != in {
				t.Errorf("Raw is %s", m.Raw)
			}
		})
	}
}

func TestParseStrictReadsEachKindOfMessage(t *testing.T) {
	type read struct {
		Kind, ID, Method, Params, Result, Error string
		IDPresent                               bool
	}
	for name, c := range map[string]struct {
		in   string
		want read
	}{
		"a request": {
			`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}`,
			read{"request", "1", "tools/call", `{"name":"x"}`, "", "", true},
		},
		"a request without params": {`{"jsonrpc":"2.0","id":"a","method":"ping"}`, read{"request", `"a"`, "ping", "", "", "", true}},
		"members in any order and spacing": {
			" {\t\"params\" : { } ,\r\n \"method\":\"x\" ,\"id\" : 0, \"jsonrpc\" :\"2.0\"} ",
			read{"request", "0", "x", "{ }", "", "", true},
		},
		"names spelled with escapes": {
			`{"\u006asonrpc":"2.0","i\u0064":1,"m\u0065thod":"\u0078","par\u0061ms":{}}`,
			read{"request", "1", "x", "{}", "", "", true},
		},
		"the empty string as id": {`{"jsonrpc":"2.0","id":"","method":"x"}`, read{"request", `""`, "x", "", "", "", true}},
		"unknown members":        {`{"jsonrpc":"2.0","id":1,"method":"x","zzz":{"a":[1]}}`, read{"request", "1", "x", "", "", "", true}},
		"a notification": {
			`{"jsonrpc":"2.0","method":"notifications/initialized"}`,
			read{"notification", "", "notifications/initialized", "", "", "", false},
		},
		"a result":              {`{"jsonrpc":"2.0","id":7,"result":{"a":1}}`, read{"response", "7", "", "", `{"a":1}`, "", true}},
		"a null result":         {`{"jsonrpc":"2.0","id":7,"result":null}`, read{"response", "7", "", "", `null`, "", true}},
		"an error":              {`{"jsonrpc":"2.0","id":7,"error":{"code":1,"message":"m"}}`, read{"response", "7", "", "", "", `{"code":1,"message":"m"}`, true}},
		"an error with id null": {`{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"m"}}`, read{"response", "", "", "", "", `{"code":1,"message":"m"}`, false}},
		"an error without id":   {`{"jsonrpc":"2.0","error":{"code":1,"message":"m"}}`, read{"response", "", "", "", "", `{"code":1,"message":"m"}`, false}},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := wire.ParseStrict([]byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			got := read{kind(m), string(m.ID), m.Method, string(m.Params), string(m.Result), string(m.Error), m.ID != nil}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			if string(m.Raw) != strings.Trim(c.in, " \t\r\n") {
				t.Errorf("Raw is %q, not the bytes judged", m.Raw)
			}
		})
	}
}

// kind names what the predicates say; they must exclude each other.
func kind(m wire.Message) string {
	var kinds []string
	if m.IsRequest() {
		kinds = append(kinds, "request")
	}
	if m.IsNotification() {
		kinds = append(kinds, "notification")
	}
	if m.IsResponse() {
		kinds = append(kinds, "response")
	}
	return strings.Join(kinds, "+")
}

// JSON numbers have no size. A float64 in between answers ...993 with ...992
// and 1.0 with 1, which a host does not recognise.
func TestIDsAreEchoedByteForByte(t *testing.T) {
	for _, id := range []string{
		`0`, `-0`, `-1`, `1`, `1.0`, `1.50`, `1e3`, `1E+3`, `1e-3`, `9007199254740993`, `-9223372036854775809`, `18446744073709551616`,
		`1e400`, strings.Repeat("9", 400), `0.1000000000000000055511151231257827`, `""`, `"1"`, `" "`, `"a\u0062\n\"\\\/"`, `"😀"`, `"\ud83d\ude00"`,
		`"null"`, `"{}"`, `"` + strings.Repeat("x", 100_000) + `"`,
	} {
		t.Run(string(clip([]byte(id))), func(t *testing.T) {
			for _, in := range []string{
				`{"jsonrpc":"2.0","id":` + id + `,"method":"x"}`,
				`{"jsonrpc":"2.0","method":"x","id" : ` + id + ` }`,
				`{"jsonrpc":"2.0","id":` + id + `,"result":{}}`,
			} {
				m, err := wire.ParseStrict([]byte(in))
				if err != nil {
					t.Fatal(err)
				}
				if string(m.ID) != id {
					t.Errorf("ID = %s", m.ID)
				}
				for _, out := range [][]byte{
					wire.Result(m.ID, json.RawMessage(`{}`)),
					wire.Failure(&wire.Error{Code: 1, Message: "m", ID: m.ID}),
					wire.Request(m.ID, "x", nil),
				} {
					if got := string(object(t, out)["id"]); got != id {
						t.Errorf("%s carries id %s", clip(out), got)
					}
				}
			}
			// also where the message is refused
			if e := refused(t, `{"jsonrpc":"2.0","id":`+id+`,"method":"x","params":[]}`); string(e.ID) != id {
				t.Errorf("the refusal carries id %s", e.ID)
			}
		})
	}
}

func TestWithIDReplacesTheIDAndNothingElse(t *testing.T) {
	for in, want := range map[string]string{
		`{"jsonrpc":"2.0","id":1,"result":{"id":1,"x":"\u0061"}}`:                       `{"jsonrpc":"2.0","id":"host-7","result":{"id":1,"x":"\u0061"}}`,
		`{"result":{"id":1},"id":1,"jsonrpc":"2.0"}`:                                    `{"result":{"id":1},"id":"host-7","jsonrpc":"2.0"}`,
		" { \"id\" :\t1.0 , \"result\" : 1e400,\r\"jsonrpc\":\"2.0\",\"zzz\":[ ] }\r\n": "{ \"id\" :\t\"host-7\" , \"result\" : 1e400,\r\"jsonrpc\":\"2.0\",\"zzz\":[ ] }",
		`{"jsonrpc":"2.0","\u0069d":"a","error":{"code":1}}`:                            `{"jsonrpc":"2.0","\u0069d":"host-7","error":{"code":1}}`,
		`{"jsonrpc":"2.0","id":null,"error":{"code":1}}`:                                `{"jsonrpc":"2.0","id":"host-7","error":{"code":1}}`,
		`{"jsonrpc":"2.0","id":2,"result":{"dup":1,"dup":2,"bad":"` + "\xff" + `"}}`:    `{"jsonrpc":"2.0","id":"host-7","result":{"dup":1,"dup":2,"bad":"` + "\xff" + `"}}`,
	} {
		m, err := wire.ParseLenient([]byte(in))
		if err != nil {
			t.Fatalf("%s: %v", in, err)
		}
		if got := m.WithID(json.RawMessage(`"host-7"`)); string(got) != want {
			t.Errorf("%q becomes\n%q, want\n%q", in, got, want)
		}
		if string(m.Raw) != strings.Trim(in, " \t\r\n") {
			t.Errorf("WithID changed the message itself: %q", m.Raw)
		}
	}
}

// An error response may lack the id; all else of it must still arrive.
func TestWithIDGivesAnErrorWithoutIDOneAndKeepsTheRest(t *testing.T) {
	m, err := wire.ParseLenient([]byte(`{"jsonrpc":"2.0","error":{"code":-32001,"message":"m","data":{"a":1.0}},"vendor":{"trace":"x"}}`))
	if err != nil {
		t.Fatal(err)
	}
	got := object(t, m.WithID(json.RawMessage(`5`)))
	want := map[string]string{"jsonrpc": `"2.0"`, "id": "5", "error": `{"code":-32001,"message":"m","data":{"a":1.0}}`, "vendor": `{"trace":"x"}`}
	for name, v := range want {
		if string(got[name]) != v {
			t.Errorf("%q is %q, want %q", name, got[name], v)
		}
	}
}

// An upstream may be sloppy in what the envelope carries, never in the envelope.
func TestParseLenientPassesOddContentButNoDoubtfulEnvelope(t *testing.T) {
	for name, in := range map[string]string{
		"duplicates in the result":  `{"jsonrpc":"2.0","id":1,"result":{"a":1,"a":2}}`,
		"invalid UTF-8":             "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"\xff\"}",
		"lone surrogates":           `{"jsonrpc":"2.0","id":1,"result":"\ud800"}`,
		"1,000 levels":              `{"jsonrpc":"2.0","id":1,"result":` + nested(1000) + `}`,
		"names in the wrong case":   `{"jsonrpc":"2.0","id":1,"result":{},"Result":1,"ID":2}`,
		"params that are an array":  `{"jsonrpc":"2.0","method":"x","params":[1]}`,
		"params null":               `{"jsonrpc":"2.0","method":"x","params":null}`,
		"a result that is a string": `{"jsonrpc":"2.0","id":1,"result":"x"}`,
	} {
		m, err := wire.ParseLenient([]byte(in))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if string(m.Raw) != in {
			t.Errorf("%s: Raw is %q", name, m.Raw)
		}
	}
	for name, in := range map[string]string{
		"no jsonrpc":              `{"id":1,"result":{}}`,
		"jsonrpc 1.0":             `{"jsonrpc":"1.0","id":1,"result":{}}`,
		"an error that is a text": `{"jsonrpc":"2.0","id":1,"error":"oops"}`,
		"two ids":                 `{"jsonrpc":"2.0","id":1,"id":2,"result":{}}`,
		"two ids by an escape":    `{"jsonrpc":"2.0","id":1,"\u0069d":2,"result":{}}`,
		"two methods":             `{"jsonrpc":"2.0","method":"a","method":"b"}`,
		"two results":             `{"jsonrpc":"2.0","id":1,"result":1,"result":2}`,
		"an id that is a list":    `{"jsonrpc":"2.0","id":[1],"result":{}}`,
		"id true":                 `{"jsonrpc":"2.0","id":true,"result":{}}`,
		"result and error":        `{"jsonrpc":"2.0","id":1,"result":{},"error":{}}`,
		"method and result":       `{"jsonrpc":"2.0","id":1,"method":"x","result":{}}`,
		"a result, no id":         `{"jsonrpc":"2.0","result":{}}`,
		"a request, id null":      `{"jsonrpc":"2.0","id":null,"method":"x"}`,
		"nothing":                 `{"jsonrpc":"2.0","id":1}`,
		"a second value":          `{"jsonrpc":"2.0","id":1,"result":{}} {}`,
		"a batch":                 `[{"jsonrpc":"2.0","id":1,"result":{}}]`,
		"cut off":                 `{"jsonrpc":"2.0","id":1,"result":{}`,
	} {
		if m, err := wire.ParseLenient([]byte(in)); err == nil {
			t.Errorf("%s: accepted as %+v", name, m)
		}
	}
}

func TestIDKeyIsEqualForTheSameIDAndDifferentForAnother(t *testing.T) {
	same := [][2]string{{`1`, ` 1 `}, {`"a"`, `"\u0061"`}, {`"\/"`, `"/"`}, {`"😀"`, `"\ud83d\ude00"`}, {`""`, ` "" `}}
	for _, p := range same {
		if a, b := wire.IDKey([]byte(p[0])), wire.IDKey([]byte(p[1])); a != b {
			t.Errorf("IDKey(%s) = %q, IDKey(%s) = %q", p[0], a, p[1], b)
		}
	}
	different := []string{
		`1`, `"1"`, `2`, `-1`, `"n1"`, `"s1"`, `""`, `"null"`, `null`, `9007199254740992`, `9007199254740993`, `"9007199254740993"`, `" 1"`, `"A"`, `"a"`,
	}
	seen := map[string]string{}
	for _, id := range different {
		k := wire.IDKey([]byte(id))
		if other, ok := seen[k]; ok {
			t.Errorf("IDKey(%s) = IDKey(%s)", id, other)
		}
		seen[k] = id
	}
}

// What haldir makes itself must pass its own strict reading and say what it was
// told to say.
func TestBuiltMessagesReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := json.RawMessage(wire.Quote(rapid.String().Draw(t, "id")))
		if rapid.Bool().Draw(t, "number") {
			id = fmt.Appendf(nil, "%d", rapid.Int64().Draw(t, "n"))
		}
		method := rapid.StringN(1, 20, -1).Draw(t, "method")
		value := json.RawMessage(jsonValue(t, 3))
		params := json.RawMessage(`{"p":` + string(value) + `}`)
		m, err := wire.ParseStrict(wire.Request(id, method, params))
		if err != nil || !m.IsRequest() || m.Method != method || string(m.Params) != string(params) || string(m.ID) != string(id) {
			t.Fatalf("Request: %+v, %v", m, err)
		}
		if m, err = wire.ParseStrict(wire.Request(id, method, nil)); err != nil || m.Params != nil {
			t.Fatalf("Request without params: %+v, %v", m, err)
		}
		m, err = wire.ParseStrict(wire.Notification(method, params))
		if err != nil || !m.IsNotification() || m.Method != method || string(m.Params) != string(params) {
			t.Fatalf("Notification: %+v, %v", m, err)
		}
		m, err = wire.ParseStrict(wire.Result(id, value))
		if err != nil || !m.IsResponse() || string(m.Result) != string(value) || string(m.ID) != string(id) {
			t.Fatalf("Result: %+v, %v", m, err)
		}
		e := &wire.Error{Code: rapid.Int().Draw(t, "code"), Message: rapid.String().Draw(t, "message"), ID: id, Data: value}
		m, err = wire.ParseStrict(wire.Failure(e))
		if err != nil || !m.IsResponse() {
			t.Fatalf("Failure: %+v, %v", m, err)
		}
		if diff := cmp.Diff(e, wire.ErrorOf(m)); diff != "" {
			t.Fatalf("ErrorOf(Failure(e)): %s", diff)
		}
	})
}

// jsonValue draws a JSON value with unique names and odd but legal spellings.
func jsonValue(t *rapid.T, depth int) string {
	kinds := 5
	if depth > 0 {
		kinds = 7
	}
	space := func() string { return rapid.SampledFrom([]string{"", " ", "\t", "\n", "\r\n"}).Draw(t, "space") }
	text := func() string {
		s := rapid.StringN(0, 6, -1).Draw(t, "string")
		if rapid.Bool().Draw(t, "escape") && !strings.ContainsFunc(s, func(r rune) bool { return r > 0xffff }) {
			return escaped(s)
		}
		return string(wire.Quote(s))
	}
	switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
	case 0:
		return "null"
	case 1:
		return rapid.SampledFrom([]string{"true", "false"}).Draw(t, "bool")
	case 2:
		return rapid.StringMatching(`-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?`).Draw(t, "number")
	case 3, 4:
		return text()
	case 5:
		var b strings.Builder
		b.WriteByte('[')
		for i := range rapid.IntRange(0, 4).Draw(t, "n") {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(space() + jsonValue(t, depth-1) + space())
		}
		return b.String() + "]"
	default:
		var b strings.Builder
		b.WriteByte('{')
		seen := map[string]bool{}
		for range rapid.IntRange(0, 4).Draw(t, "n") {
			name := text()
			var plain string
			if json.Unmarshal([]byte(name), &plain) != nil || seen[plain] {
				continue
			}
			if len(seen) > 0 {
				b.WriteByte(',')
			}
			seen[plain] = true
			b.WriteString(space() + name + space() + ":" + space() + jsonValue(t, depth-1) + space())
		}
		return b.String() + "}"
	}
}

// Whatever legal JSON the arguments hold, it passes and goes on byte for byte.
func TestParseStrictPassesAllLegalArgumentsUntouched(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		args := jsonValue(t, 4)
		in := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":` + args + `}}`
		m, err := wire.ParseStrict([]byte(in))
		if err != nil {
			t.Fatalf("%s: %v", in, err)
		}
		members, err := wire.Members(m.Params)
		if err != nil {
			t.Fatal(err)
		}
		if a, _ := wire.Find(members, "arguments"); string(a.Value) != args {
			t.Fatalf("arguments are %q, want %q", a.Value, args)
		}
	})
}

// A duplicate is found wherever it hides: the generator puts one into a random
// object of a random document.
func TestParseStrictFindsADuplicateAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		args := `{"x":` + jsonValue(t, 4) + `}`
		var opens []int // positions after a { outside strings
		inString := false
		for i := 0; i < len(args); i++ {
			switch c := args[i]; {
			case inString && c == '\\':
				i++
			case c == '"':
				inString = !inString
			case c == '{' && !inString:
				opens = append(opens, i+1)
			}
		}
		at := rapid.SampledFrom(opens).Draw(t, "object")
		first, second := `"dup-key":1`, `"d\u0075p-key":2`
		if rapid.Bool().Draw(t, "swap") {
			first, second = second, first
		}
		pair := first + "," + second
		if rest := strings.TrimLeft(args[at:], " \t\r\n"); rest[0] != '}' {
			pair += ","
		}
		in := `{"jsonrpc":"2.0","id":1,"method":"x","params":{"arguments":` + args[:at] + pair + args[at:] + `}}`
		if !json.Valid([]byte(in)) {
			t.Fatalf("the generator is wrong: %s", in)
		}
		if _, err := wire.ParseStrict([]byte(in)); err == nil {
			t.Fatalf("%s is accepted", in)
		}
	})
}

func TestErrorOfReadsWhatIsThere(t *testing.T) {
	for in, want := range map[string]wire.Error{
		`{"code":-32000,"message":"m","data":{"a":1.0}}`: {Code: -32000, Message: "m", Data: json.RawMessage(`{"a":1.0}`)},
		`{"code":-32042,"message":"\u006d"}`:             {Code: -32042, Message: "m"},
		`{"code":"x","message":5}`:                       {},
		`{}`:                                             {},
		`{"code":1,"data":null}`:                         {Code: 1, Data: json.RawMessage(`null`)},
		`{"code":1,"code":2}`:                            {Code: wire.CodeInternal, Message: "malformed error object"},
	} {
		m, err := wire.ParseLenient([]byte(`{"jsonrpc":"2.0","id":1,"error":` + in + `}`))
		if err != nil {
			t.Fatal(err)
		}
		want.ID = json.RawMessage("1")
		if diff := cmp.Diff(&want, wire.ErrorOf(m)); diff != "" {
			t.Errorf("%s: %s", in, diff)
		}
	}
}

func TestIsBatchLooksAtTheFirstCharacterOnly(t *testing.T) {
	for in, want := range map[string]bool{"[]": true, " \t\r\n[": true, "{}": false, "": false, `"["`: false} {
		if got := wire.IsBatch([]byte(in)); got != want {
			t.Errorf("IsBatch(%q) = %v", in, got)
		}
	}
}

// The promise behind the fuzz target: what ParseStrict accepts, every parser
// reads alike; what it refuses can be answered; and a new id changes no other
// byte.
func FuzzParseStrict(f *testing.F) {
	for _, seed := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"a":[1,2.0,1e3,null,true,"\u0061"]}}}`,
		`{"jsonrpc":"2.0","id":9007199254740993,"method":"ping"}`,
		`{"jsonrpc":"2.0","id":"a\u0062","result":{"id":1}}`,
		`{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}`,
		`{"jsonrpc":"2.0","error":{"code":-32700,"message":"x"}}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1e3,"reason":"😀"}}`,
		" {\r\n\t\"id\" : 1.0 , \"jsonrpc\":\"2.0\" ,\"result\" : [ ] } ",
		`{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":{"b":1,"\u0062":2}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"x","params":{"Name":1}}`,
		`{"jsonrpc":"2.0","id":1,"\u0069d":2,"method":"x"}`,
		`{"jsonrpc":"2.0","id":1,"method":"x","paramſ":{}}`,
		`{"jsonrpc":"2.0","id":1,"method":"x"}{}`,
		`[{"jsonrpc":"2.0","id":1,"method":"x"}]`,
		"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}",
		`{"jsonrpc":"2.0","id":1,"method":"\ud800"}`,
		`{"jsonrpc":"2.0","id":1,"method":"x","params":` + nested(70) + `}`,
		`{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":` + nested(62) + `}}`,
		`{"jsonrpc":"2.0","method":5,"id":7}`,
		`{`, ``, `null`, "\ufeff{}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := bytes.Clone(raw)
		m, err := wire.ParseStrict(raw)
		if !bytes.Equal(raw, before) {
			t.Fatalf("ParseStrict changed its argument to %q", raw)
		}
		names, values, isObject := topLevel(raw)
		if err != nil {
			var e *wire.Error
			if !errors.As(err, &e) {
				t.Fatalf("an error of type %T", err)
			}
			checkFailure(t, e)
			var ids []json.RawMessage
			for i, n := range names {
				if n == "id" {
					ids = append(ids, values[i])
				}
			}
			if e.ID != nil && isObject && (len(ids) != 1 || !bytes.Equal(ids[0], e.ID)) {
				t.Fatalf("the refusal of %q carries id %s, the message has %s", raw, e.ID, ids)
			}
			// of what is no JSON an id may still be told, but never made up
			if e.ID != nil && !bytes.Contains(raw, e.ID) {
				t.Fatalf("the refusal of %q carries id %s", raw, e.ID)
			}
			if e.ID == nil && len(ids) == 1 && utf8.Valid(ids[0]) && wire.Strict(ids[0]) == nil &&
				(ids[0][0] == '"' || ids[0][0] == '-' || ids[0][0] >= '0' && ids[0][0] <= '9') {
				t.Fatalf("the refusal of %q carries no id", raw)
			}
			return
		}
		if !json.Valid(raw) || !utf8.Valid(raw) {
			t.Fatalf("accepts %q", raw)
		}
		if err := uniqueKeys(raw); err != nil {
			t.Fatalf("accepts %q: %v", raw, err)
		}
		if !bytes.Equal(m.Raw, bytes.Trim(raw, " \t\r\n")) {
			t.Fatalf("Raw is %q, the message %q", m.Raw, raw)
		}
		// a second decoder, case-blind as the worst upstream, must see the same
		var second struct {
			JSONRPC string          `json:"jsonrpc"`
			ID      json.RawMessage `json:"id"`
			Method  string          `json:"method"`
			Params  json.RawMessage `json:"params"`
			Result  json.RawMessage `json:"result"`
			Error   json.RawMessage `json:"error"`
		}
		if err := json.Unmarshal(raw, &second); err != nil {
			t.Fatalf("encoding/json cannot read %q: %v", raw, err)
		}
		exact := object(t, raw)
		id := second.ID
		if string(id) == "null" {
			id = nil
		}
		for what, p := range map[string][3]string{
			"jsonrpc": {"2.0", second.JSONRPC, "2.0"},
			"id":      {string(m.ID), string(id), strings.TrimSuffix(string(exact["id"]), "null")},
			"params":  {string(m.Params), string(second.Params), string(exact["params"])},
			"result":  {string(m.Result), string(second.Result), string(exact["result"])},
			"error":   {string(m.Error), string(second.Error), string(exact["error"])},
		} {
			if p[0] != p[1] || p[0] != p[2] {
				t.Fatalf("%s of %q: %q, encoding/json case-blind %q, exact %q", what, raw, p[0], p[1], p[2])
			}
		}
		if m.Method != second.Method {
			t.Fatalf("method of %q: %q, encoding/json %q", raw, m.Method, second.Method)
		}
		if k := kind(m); k != "request" && k != "notification" && k != "response" {
			t.Fatalf("%q is a %q", raw, k)
		}
		if lenient, err := wire.ParseLenient(raw); err != nil || !cmp.Equal(m.Raw, lenient.Raw) || m.Method != lenient.Method {
			t.Fatalf("ParseLenient reads %q otherwise: %+v, %v", raw, lenient, err)
		}
		if m.IsResponse() {
			checkWithID(t, m, exact)
		}
	})
}

func checkWithID(t *testing.T, m wire.Message, exact map[string]json.RawMessage) {
	t.Helper()
	fresh := json.RawMessage(`"haldir \"fresh\""`)
	out := m.WithID(fresh)
	again, err := wire.ParseStrict(out)
	if err != nil || !bytes.Equal(again.ID, fresh) {
		t.Fatalf("WithID makes %q of %q: %v", out, m.Raw, err)
	}
	old, had := exact["id"]
	if !had {
		if !bytes.Equal(again.Error, m.Error) {
			t.Fatalf("WithID makes %q of %q", out, m.Raw)
		}
		return
	}
	if back := again.WithID(old); !bytes.Equal(back, m.Raw) {
		t.Fatalf("there and back is %q, was %q", back, m.Raw)
	}
	if len(out)-len(fresh) != len(m.Raw)-len(old) {
		t.Fatalf("WithID changes more than the id: %q, was %q", out, m.Raw)
	}
}
