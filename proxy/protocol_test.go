package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// ids are what a host may call its requests. Each must come back as the bytes
// it was.
var ids = []string{
	`0`, `-0`, `1`, `-7`, `1.0`, `1e3`, `9007199254740993`, `123456789012345678901234567890`, `0.1000`,
	`""`, `"1"`, `"a b"`, `"\u0041\n\t\"\\\/"`, `"é\u00e9"`, `"\ud83d\ude00"`, `"server-discover-probe-1"`,
	`"` + strings.Repeat("x", 10_000) + `"`,
}

func TestIDsComeBackAsTheBytesTheyWere(t *testing.T) {
	h := serve(t, rig{fakes: []proxy.Upstream{newFake("up", "tool")}})
	for _, id := range ids {
		for _, rest := range []string{
			`"method":"ping"`,
			`"method":"no/such/method"`,
			`"method":"tools/list"`,
			`"method":"tools/call","params":{"name":"up__tool"}`,
			`"method":"tools/call","params":{"name":"nonsense"}`,
			`"method":"tools/call","params":{"name":7}`,
			`"method":"tools/call","params":{"name":"haldir_get_spend"}`,
		} {
			line := `{"jsonrpc":"2.0","id":` + id + `,` + rest + `}`
			got := h.ask(line)
			if !strings.HasPrefix(got, `{"jsonrpc":"2.0","id":`+id+`,`) {
				t.Errorf("%s was answered by %s", clip(line), clip(got))
			}
		}
	}
	h.quiet()
}

func TestInitializeAgreesOnARevision(t *testing.T) {
	for asked, want := range map[string]string{
		"2024-11-05": "2024-11-05", "2025-03-26": "2025-03-26", "2025-06-18": "2025-06-18", "2025-11-25": "2025-11-25",
		"2026-07-28": "2025-11-25", "1999-01-01": "2025-11-25", "nonsense": "2025-11-25",
	} {
		h := serve(t, rig{raw: true})
		got := h.ask(`{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"` + asked + `","capabilities":{},"clientInfo":{"name":"h","version":"1"}}}`)
		var r struct {
			Result struct {
				ProtocolVersion string
				Capabilities    struct{ Tools *struct{ ListChanged bool } }
				ServerInfo      struct{ Name string }
			}
		}
		if err := json.Unmarshal([]byte(got), &r); err != nil {
			t.Fatal(err)
		}
		if r.Result.ProtocolVersion != want || r.Result.Capabilities.Tools == nil || !r.Result.Capabilities.Tools.ListChanged || r.Result.ServerInfo.Name != "haldir" {
			t.Errorf("asked for %s: %s", asked, got)
		}
	}
}

func TestAMalformedProbeIsRefusedAndInitializeFollows(t *testing.T) {
	h := serve(t, rig{raw: true})
	r := parseResponse(t, h.ask(`{"jsonrpc":"2.0","id":"server-discover-probe-1","method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}`))
	if r.Error == nil || r.Error.Code != wire.CodeInvalidParams {
		t.Errorf("server/discover: %s", r.line)
	}
	h.alive() // ping is allowed before initialize
	for _, m := range []string{"tools/list", "tools/call"} {
		if r := parseResponse(t, h.ask(`{"jsonrpc":"2.0","id":5,"method":"`+m+`","params":{"name":"haldir_get_spend"}}`)); r.Error == nil {
			t.Errorf("%s before initialize: %s", m, r.line)
		}
	}
	h.initialize("2025-11-25")
	h.must("haldir_get_spend", "{}")
}

func TestBadInitializeIsAnErrorAndTheNextOneCounts(t *testing.T) {
	h := serve(t, rig{raw: true})
	for _, params := range []string{``, `,"params":{}`, `,"params":{"protocolVersion":7}`, `,"params":{"protocolVersion":null}`, `,"params":{"protocolVersion":""}`} {
		if r := parseResponse(t, h.ask(`{"jsonrpc":"2.0","id":1,"method":"initialize"`+params+`}`)); r.Error == nil || r.Error.Code != wire.CodeInvalidParams {
			t.Errorf("initialize with %q: %s", params, r.line)
		}
	}
	h.initialize("2025-11-25")
	h.alive()
}

// invalid are messages that must be refused with the code and id given, never
// guessed at. The connection lives on.
var invalid = []struct {
	name, line string
	code       int    // 0: any
	id         string // of the answer; "": whatever could be told
}{
	{"no JSON", `hello`, wire.CodeParse, "null"},
	{"half a message", `{"jsonrpc":"2.0","id":1,"method":"ping"`, wire.CodeParse, ""},
	{"two messages on a line", `{"jsonrpc":"2.0","id":1,"method":"ping"}{"jsonrpc":"2.0","id":2,"method":"ping"}`, wire.CodeParse, "null"},
	{"a trailing comma", `{"jsonrpc":"2.0","id":1,"method":"ping",}`, wire.CodeParse, ""},
	{"a number", `7`, wire.CodeInvalidRequest, "null"},
	{"a text", `"ping"`, wire.CodeInvalidRequest, "null"},
	{"null", `null`, wire.CodeInvalidRequest, "null"},
	{"an empty object", `{}`, wire.CodeInvalidRequest, "null"},
	{"no jsonrpc", `{"id":3,"method":"ping"}`, wire.CodeInvalidRequest, "3"},
	{"jsonrpc 1.0", `{"jsonrpc":"1.0","id":4,"method":"ping"}`, wire.CodeInvalidRequest, "4"},
	{"jsonrpc a number", `{"jsonrpc":2.0,"id":4,"method":"ping"}`, wire.CodeInvalidRequest, "4"},
	{"an id that is null", `{"jsonrpc":"2.0","id":null,"method":"ping"}`, wire.CodeInvalidRequest, "null"},
	{"an id that is an object", `{"jsonrpc":"2.0","id":{},"method":"ping"}`, wire.CodeInvalidRequest, "null"},
	{"an id that is true", `{"jsonrpc":"2.0","id":true,"method":"ping"}`, wire.CodeInvalidRequest, "null"},
	{"a method that is a number", `{"jsonrpc":"2.0","id":5,"method":5}`, wire.CodeInvalidRequest, "5"},
	{"an empty method", `{"jsonrpc":"2.0","id":5,"method":""}`, wire.CodeInvalidRequest, "5"},
	{"params that are a list", `{"jsonrpc":"2.0","id":6,"method":"tools/list","params":[]}`, wire.CodeInvalidRequest, "6"},
	{"params that are a text", `{"jsonrpc":"2.0","id":6,"method":"tools/list","params":"x"}`, wire.CodeInvalidRequest, "6"},
	{"method and result", `{"jsonrpc":"2.0","id":6,"method":"ping","result":{}}`, wire.CodeInvalidRequest, "6"},
	{"the id twice", `{"jsonrpc":"2.0","id":7,"id":8,"method":"ping"}`, wire.CodeInvalidRequest, "null"},
	{"the method twice", `{"jsonrpc":"2.0","id":7,"method":"ping","method":"tools/list"}`, wire.CodeInvalidRequest, "7"},
	{"the method twice, once escaped", `{"jsonrpc":"2.0","id":7,"method":"ping","m\u0065thod":"tools/list"}`, wire.CodeInvalidRequest, "7"},
	{"the name twice", `{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"up__tool","name":"up__other"}}`, wire.CodeInvalidRequest, "9"},
	{"a key twice deep in the arguments", `{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"up__tool","arguments":{"a":[{"b":{"c":1,"c":2}}]}}}`, wire.CodeInvalidRequest, "9"},
	{"Method", `{"jsonrpc":"2.0","id":10,"method":"ping","Method":"tools/list"}`, wire.CodeInvalidRequest, "10"},
	{"Params", `{"jsonrpc":"2.0","id":10,"method":"tools/call","params":{"name":"up__tool"},"Params":{"name":"up__other"}}`, wire.CodeInvalidRequest, "10"},
	{"Name", `{"jsonrpc":"2.0","id":10,"method":"tools/call","params":{"name":"up__tool","Name":"up__other"}}`, wire.CodeInvalidRequest, "10"},
	{"ARGUMENTS", `{"jsonrpc":"2.0","id":10,"method":"tools/call","params":{"name":"up__tool","ARGUMENTS":{}}}`, wire.CodeInvalidRequest, "10"},
	{"a long s for an s", "{\"jsonrpc\":\"2.0\",\"id\":10,\"method\":\"tools/call\",\"params\":{\"name\":\"up__tool\",\"argument\u017f\":{}}}", wire.CodeInvalidRequest, "10"},
	{"no UTF-8", "{\"jsonrpc\":\"2.0\",\"id\":11,\"method\":\"tools/call\",\"params\":{\"name\":\"up__tool\",\"arguments\":{\"a\":\"\xff\"}}}", wire.CodeInvalidRequest, "11"},
	{"a lone surrogate", `{"jsonrpc":"2.0","id":11,"method":"tools/call","params":{"name":"up__tool","arguments":{"a":"\ud800"}}}`, wire.CodeInvalidRequest, "11"},
	{"a raw control character", "{\"jsonrpc\":\"2.0\",\"id\":11,\"method\":\"tools/call\",\"params\":{\"name\":\"up__tool\",\"arguments\":{\"a\":\"\x01\"}}}", wire.CodeParse, ""},
	{"NaN", `{"jsonrpc":"2.0","id":11,"method":"tools/call","params":{"name":"up__tool","arguments":{"a":NaN}}}`, wire.CodeParse, ""},
	{"65 levels", `{"jsonrpc":"2.0","id":12,"method":"tools/call","params":{"name":"up__tool","arguments":{"a":` + strings.Repeat("[", 62) + strings.Repeat("]", 62) + `}}}`, wire.CodeInvalidRequest, "12"},
	{"100,000 levels", `{"jsonrpc":"2.0","id":12,"method":"ping","params":{"a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}}`, 0, ""},
	{"an unknown method", `{"jsonrpc":"2.0","id":13,"method":"tools/Call","params":{"name":"up__tool"}}`, wire.CodeMethodNotFound, "13"},
	{"a call without params", `{"jsonrpc":"2.0","id":14,"method":"tools/call"}`, wire.CodeInvalidParams, "14"},
	{"a call without name", `{"jsonrpc":"2.0","id":14,"method":"tools/call","params":{}}`, wire.CodeInvalidParams, "14"},
	{"a name that is a list", `{"jsonrpc":"2.0","id":14,"method":"tools/call","params":{"name":["up__tool"]}}`, wire.CodeInvalidParams, "14"},
	{"arguments that are a list", `{"jsonrpc":"2.0","id":14,"method":"tools/call","params":{"name":"up__tool","arguments":[]}}`, wire.CodeInvalidParams, "14"},
	{"arguments that are a text", `{"jsonrpc":"2.0","id":14,"method":"tools/call","params":{"name":"up__tool","arguments":"{}"}}`, wire.CodeInvalidParams, "14"},
	{"_meta that is a text", `{"jsonrpc":"2.0","id":14,"method":"tools/call","params":{"name":"up__tool","_meta":"x"}}`, wire.CodeInvalidParams, "14"},
	{"a cursor", `{"jsonrpc":"2.0","id":15,"method":"tools/list","params":{"cursor":"x"}}`, wire.CodeInvalidParams, "15"},
	{"a batch", `[{"jsonrpc":"2.0","id":16,"method":"ping"}]`, wire.CodeInvalidRequest, "null"},
	{"a batch that is no JSON", `[{"jsonrpc":"2.0","id":16,"method":"ping"]`, wire.CodeInvalidRequest, "null"},
	{"methods that no revision has", `{"jsonrpc":"2.0","id":17,"method":"resources/burn"}`, wire.CodeMethodNotFound, "17"},
}

func TestInvalidMessagesAreAnsweredAndTheConnectionLivesOn(t *testing.T) {
	up := newFake("up", "tool", "other")
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	for _, tt := range invalid {
		t.Run(tt.name, func(t *testing.T) {
			h.send(tt.line)
			got := h.need("an answer", anyLine)
			r := parseResponse(t, got)
			var id struct {
				ID json.RawMessage `json:"id"`
			}
			if err := json.Unmarshal([]byte(got), &id); err != nil {
				t.Fatal(err)
			}
			if r.Error == nil || tt.code != 0 && r.Error.Code != tt.code || tt.id != "" && string(id.ID) != tt.id {
				t.Errorf("got %s, want the error %d for id %s", clip(got), tt.code, tt.id)
			}
			h.alive()
		})
	}
	if calls := up.called(); calls != nil {
		t.Errorf("the upstream was called: %s", calls)
	}
	h.quiet()
}

// Nothing answers these.
func TestMessagesWithoutAnAnswer(t *testing.T) {
	up := newFake("up", "tool")
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	h.send(
		``, `   `, "\r",
		`{"jsonrpc":"2.0","method":"notifications/initialized"}`,
		`{"jsonrpc":"2.0","method":"notifications/unheard/of","params":{"a":1}}`,
		`{"jsonrpc":"2.0","method":"tools/call","params":{"name":"up__tool"}}`, // a notification is no call
		`{"jsonrpc":"2.0","id":1,"result":{}}`,
		`{"jsonrpc":"2.0","id":"x","error":{"code":1,"message":"m"}}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled"}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{}}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"never seen"}}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":{"a":1}}}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":null}}`,
	)
	h.alive()
	h.quiet()
	if calls := up.called(); calls != nil {
		t.Errorf("the upstream was called: %s", calls)
	}
}

func TestAMessageMayEndInCRLF(t *testing.T) {
	h := serve(t, rig{})
	h.send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\r")
	h.answer("1")
}

func TestAnOversizeMessageIsAnsweredByItsID(t *testing.T) {
	const limit = 4096
	up := newFake("up", "tool")
	h := serve(t, rig{fakes: []proxy.Upstream{up}, max: limit})
	big := strings.Repeat("x", 3*limit)
	for _, tt := range []struct{ line, id string }{
		{`{"jsonrpc":"2.0","id":41,"method":"tools/call","params":{"name":"up__tool","arguments":{"a":"` + big + `"}}}`, "41"},
		{`{"jsonrpc":"2.0","method":"tools/call","params":{"name":"up__tool","arguments":{"id":9,"a":"` + big + `"}},"id":"last"}`, `"last"`},
		{`{"jsonrpc":"2.0","method":"tools/call","params":{"name":"up__tool","arguments":{"a":"\"id\":5,` + big + `"}},"id":43}`, "43"},
		{`{"jsonrpc":"2.0","method":"notifications/` + big + `"}`, "null"},
		{big, "null"},
		{`[` + big + `]`, "null"},
		{`{"id":1,"id":2,"a":"` + big + `"}`, "null"}, // which one is beyond telling
	} {
		h.send(tt.line)
		r := parseResponse(t, h.answer(tt.id))
		if r.Error == nil || !strings.Contains(r.Error.Message, strconv.Itoa(limit)) {
			t.Errorf("got %s", r.line)
		}
	}
	h.alive()
	// One that just fits.
	id, line := h.callLine("up__tool", `{"a":""}`)
	line = strings.Replace(line, `"a":""`, `"a":"`+strings.Repeat("x", limit-len(line))+`"`, 1)
	if r := parseResponse(t, h.ask(line)); len(line) != limit || r.Error != nil {
		t.Errorf("a message of exactly the limit (id %s): %s", id, clip(r.line))
	}
	if n := len(up.called()); n != 1 {
		t.Errorf("the upstream was called %d times", n)
	}
}

func TestADuplicateOfARunningIDIsRefused(t *testing.T) {
	up := newFake("up", "tool")
	release := make(chan struct{})
	up.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
		select {
		case <-release:
			return reply(mcptest.Text("first"))
		case <-ctx.Done():
			return wire.Message{}, context.Cause(ctx)
		}
	}
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	h.send(`{"jsonrpc":"2.0","id":"\u0061","method":"tools/call","params":{"name":"up__tool"}}`)
	eventually(t, "the call arrives", func() bool { return len(up.called()) == 1 })
	// The same id, spelt in another way, and for any method.
	for _, method := range []string{"tools/call", "ping", "tools/list", "x"} {
		r := parseResponse(t, h.ask(`{"jsonrpc":"2.0","id":"a","method":"`+method+`","params":{"name":"up__tool"}}`))
		if r.Error == nil || r.Error.Code != wire.CodeInvalidRequest {
			t.Errorf("%s under the same id: %s", method, r.line)
		}
	}
	close(release)
	if r := parseResponse(t, h.answer(`"\u0061"`)); r.Text != "first" {
		t.Errorf("the first call: %s", r.line)
	}
	if n := len(up.called()); n != 1 {
		t.Errorf("the upstream was called %d times", n)
	}
	// The id is free again.
	if r := parseResponse(t, h.ask(`{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"up__tool"}}`)); r.Text != "first" {
		t.Errorf("after the answer: %s", r.line)
	}
	// A text and a number are two ids.
	h.send(`{"jsonrpc":"2.0","id":"5","method":"ping"}`, `{"jsonrpc":"2.0","id":5,"method":"ping"}`)
	h.answer(`"5"`)
	h.answer(`5`)
}

func TestHangingCallsBlockNobody(t *testing.T) {
	up := newFake("up", "tool", "quick")
	up.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) {
		if strings.Contains(string(c.Params), `"quick"`) {
			return reply(mcptest.Text("quick"))
		}
		return hang(ctx, c)
	}
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	const n = 64
	for range n {
		_, line := h.callLine("up__tool", "{}")
		h.send(line)
	}
	eventually(t, "all calls arrive", func() bool { return len(up.called()) == n })
	start := time.Now()
	h.alive()
	if names := h.others(); len(names) != 2 {
		t.Errorf("tools/list: %s", names)
	}
	if got := h.must("up__quick", "{}"); got != "quick" {
		t.Errorf("a call beside the others: %s", got)
	}
	h.must("haldir_get_spend", "{}")
	t.Logf("ping, tools/list and two calls beside %d hanging ones: %v", n, time.Since(start).Round(time.Millisecond))
}

func TestBatches(t *testing.T) {
	up := newFake("up", "tool", "hang")
	up.do = func(ctx context.Context, c upstream.Call) (wire.Message, error) {
		if strings.Contains(string(c.Params), `"hang"`) {
			return hang(ctx, c)
		}
		return reply(mcptest.Text("done"))
	}
	h := serve(t, rig{fakes: []proxy.Upstream{up}, raw: true})
	h.initialize("2025-03-26")
	isBatch := func(line string) bool { return line[0] == '[' }
	answers := func(line string) map[string]string {
		var list []json.RawMessage
		if err := json.Unmarshal([]byte(line), &list); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		out := map[string]string{}
		for _, e := range list {
			var r struct {
				ID    json.RawMessage `json:"id"`
				Error *struct{ Code int }
			}
			if err := json.Unmarshal(e, &r); err != nil {
				t.Fatal(err)
			}
			kind := "result"
			if r.Error != nil {
				kind = fmt.Sprint(r.Error.Code)
			}
			out[string(r.ID)] += kind
		}
		return out
	}

	t.Run("one answer for all", func(t *testing.T) {
		h.send(`[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","method":"notifications/x"},{"jsonrpc":"2.0","id":"b","method":"tools/call","params":{"name":"up__tool"}},` +
			`{"jsonrpc":"2.0","id":3.0,"method":"nope"},{"id":4},{"jsonrpc":"2.0","id":5,"method":"initialize","params":{"protocolVersion":"2025-11-25"}},7,` +
			`{"jsonrpc":"2.0","id":99,"result":{}}]`)
		got := answers(h.need("the batch's answer", isBatch))
		want := map[string]string{"1": "result", `"b"`: "result", "3.0": "-32601", "4": "-32600", "5": "-32600", "null": "-32600"}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	})
	t.Run("the same id twice", func(t *testing.T) {
		h.send(`[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"up__hang"}},{"jsonrpc":"2.0","id":1,"method":"ping"},` +
			`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}]`)
		if d := cmp.Diff(map[string]string{"1": "-32600"}, answers(h.need("the batch's answer", isBatch))); d != "" {
			t.Error(d)
		}
	})
	t.Run("nothing to answer", func(*testing.T) {
		h.send(`[{"jsonrpc":"2.0","method":"notifications/x"},{"jsonrpc":"2.0","id":99,"result":{}}]`)
		h.quiet()
	})
	t.Run("all cancelled", func(*testing.T) {
		h.send(`[{"jsonrpc":"2.0","id":"h","method":"tools/call","params":{"name":"up__hang"}}]`)
		h.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"h"}}`)
		h.quiet()
	})
	t.Run("an empty one", func(t *testing.T) {
		h.send(`[]`)
		if r := parseResponse(t, h.need("an answer", anyLine)); r.Error == nil || r.Error.Code != wire.CodeInvalidRequest {
			t.Errorf("got %s", r.line)
		}
	})
	t.Run("with a key twice", func(t *testing.T) {
		h.send(`[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"up__tool","name":"x"}}]`)
		if r := parseResponse(t, h.need("an answer", anyLine)); r.Error == nil || r.Error.Code != wire.CodeInvalidRequest {
			t.Errorf("got %s", r.line)
		}
	})
	t.Run("waits for its slowest without blocking others", func(t *testing.T) {
		h.send(`[{"jsonrpc":"2.0","id":"slow","method":"tools/call","params":{"name":"up__hang"}},{"jsonrpc":"2.0","id":2,"method":"ping"}]`)
		h.alive()
		h.send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"slow"}}`)
		if d := cmp.Diff(map[string]string{"2": "result"}, answers(h.need("the batch's answer", isBatch))); d != "" {
			t.Error(d)
		}
	})
	h.quiet()

	for _, version := range []string{"2024-11-05", "2025-06-18", "2025-11-25"} {
		other := serve(t, rig{raw: true})
		other.initialize(version)
		other.send(`[{"jsonrpc":"2.0","id":1,"method":"ping"}]`)
		if r := parseResponse(t, other.need("an answer", anyLine)); r.Error == nil || r.Error.Code != wire.CodeInvalidRequest {
			t.Errorf("a batch in %s: %s", version, r.line)
		}
		other.alive()
	}
}

func TestTheEndOfInputLetsCallsFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFake("up", "tool")
		up.do = func(ctx context.Context, _ upstream.Call) (wire.Message, error) {
			select {
			case <-time.After(4 * time.Second):
				return reply(mcptest.Text("late"))
			case <-ctx.Done():
				return wire.Message{}, context.Cause(ctx)
			}
		}
		led := &faulty{}
		h := serve(t, rig{fakes: []proxy.Upstream{up}, ledger: led})
		id, line := h.callLine("up__tool", "{}")
		h.send(line)
		_ = h.in.Close()
		start := time.Now()
		if r := parseResponse(t, h.answer(id)); r.Text != "late" {
			t.Errorf("the call in flight: %s", r.line)
		}
		<-h.done
		if took := time.Since(start); h.err != nil || took != 4*time.Second {
			t.Errorf("Serve returned %v after %v", h.err, took)
		}
	})
}

func TestTheEndOfInputDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFake("up", "tool")
		up.do = hang
		led := &faulty{}
		h := serve(t, rig{fakes: []proxy.Upstream{up}, ledger: led})
		var open []string
		for range 3 {
			id, line := h.callLine("up__tool", "{}")
			open = append(open, id)
			h.send(line)
		}
		_ = h.in.Close()
		start := time.Now()
		<-h.done
		if took := time.Since(start); h.err != nil || took != 5*time.Second {
			t.Errorf("Serve returned %v after %v, want nil after 5s", h.err, took)
		}
		for _, id := range open { // whoever still reads is told
			if r := parseResponse(t, h.answer(id)); r.Error == nil || !strings.Contains(r.Error.Message, "shutting down") {
				t.Errorf("the call in flight: %s", r.line)
			}
		}
		if n := len(led.outcomes()); n != 3 {
			t.Errorf("%d of 3 calls were settled", n)
		}
	})
}

func TestTheEndOfTheContextEndsAtOnce(t *testing.T) {
	for _, eof := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			up := newFake("up", "tool")
			up.do = hang
			led := &faulty{}
			h := serve(t, rig{fakes: []proxy.Upstream{up}, ledger: led})
			for range 64 {
				_, line := h.callLine("up__tool", "{}")
				h.send(line)
			}
			if eof { // also while it drains
				_ = h.in.Close()
				time.Sleep(time.Second)
			}
			synctest.Wait()
			start := time.Now()
			h.stop()
			<-h.done
			if took := time.Since(start); h.err != nil || took != 0 {
				t.Errorf("Serve returned %v after %v", h.err, took)
			}
			if n := len(led.outcomes()); n != 64 {
				t.Errorf("%d of 64 calls were settled", n)
			}
		})
	}
}

func TestNothingIsReadAfterTheEnd(t *testing.T) {
	up := newFake("up", "tool")
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	h.stop()
	<-h.done
	go func() {
		_, _ = h.in.Write([]byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"up__tool"}}` + "\n"))
	}()
	time.Sleep(moment)
	if calls := up.called(); calls != nil {
		t.Errorf("the upstream was called after the end: %s", calls)
	}
}

// A mistake in one call must not take the others with it.
func TestAPanicIsAnErrorOfItsCall(t *testing.T) {
	up := newFake("up", "tool", "fine")
	up.do = func(_ context.Context, c upstream.Call) (wire.Message, error) {
		if strings.Contains(string(c.Params), `"fine"`) {
			return reply(mcptest.Text("fine"))
		}
		panic("the upstream's client has a mistake")
	}
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	r := h.call("up__tool", "{}")
	if r.Error == nil || r.Error.Code != wire.CodeInternal {
		t.Errorf("got %s", r.line)
	}
	if e := h.last(); e.Status != "error" || e.Tool != "tool" || !e.Flagged {
		t.Errorf("the audit: %+v", e)
	}
	if got := h.must("up__fine", "{}"); got != "fine" {
		t.Errorf("another call: %s", got)
	}
	if !strings.Contains(h.log.String(), "has a mistake") {
		t.Errorf("the log does not tell: %s", h.log)
	}
}

// What the host sends goes upstream as the bytes it sent, but for the name.
func TestArgumentsGoUpstreamAsTheyCame(t *testing.T) {
	up := newFake("up", "tool")
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	for _, rest := range []string{
		`"arguments":{"b":1,"a":9007199254740993,"f":1.0,"s":"\u00e9\/é"}`,
		`"arguments":  { "x" : [ 1 , 2 ] }  , "_meta":{"progressToken":"t","claudecode/toolUseId":"toolu_1"}`,
		`"arguments":null`,
		`"extra":{"anything":true}`,
		`"arguments":{"Key":1,"key":2}`,
	} {
		for _, params := range []string{`{"name":"%s",` + rest + `}`, `{` + rest + `,"name":"%s"}`, `{` + rest + `, "n\u0061me" : "%s" }`} {
			r := parseResponse(t, h.ask(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":`+fmt.Sprintf(params, "up__tool")+`}`))
			if r.Error != nil || r.IsError {
				t.Errorf("%s: %s", params, r.line)
				continue
			}
			calls := up.called()
			if want, got := fmt.Sprintf(params, "tool"), calls[len(calls)-1]; got != want {
				t.Errorf("sent upstream:\n%s, want\n%s", got, want)
			}
		}
	}
}

// What the upstream answers goes to the host as the bytes that came, but for
// the id, and on one line.
func TestResultsPassAsTheyCame(t *testing.T) {
	up := newFake("up", "tool")
	var raw atomic.Value
	up.do = func(context.Context, upstream.Call) (wire.Message, error) {
		return wire.ParseLenient([]byte(raw.Load().(string)))
	}
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	for _, answer := range []string{
		`{"jsonrpc":"2.0","id":$,"result":{"content":[],"n":9007199254740993,"f":1.0,"b":"\u00e9\/"}}`,
		`{"id":$,"jsonrpc":"2.0","result":{}}`,
		`{"result":{"content":[{"type":"future","x":[]}],"isError":true},"jsonrpc":"2.0","id":$}`,
		`{ "jsonrpc" : "2.0" , "id" : $ , "error" : { "code" : -32042 , "message" : "m" , "data" : {"k":[1,2]} } }`,
		"{\"jsonrpc\":\"2.0\",\"id\":$,\"result\":{\"a\":\"\xff\xfe\",\"a\":2}}",
		`{"jsonrpc":"2.0","id":$,"result":{"structuredContent":{"a":1,"a":2},"_meta":{"x":null}}}`,
		`{"jsonrpc":"2.0","id":$,"result":{"content":[{"type":"text","text":"` + strings.Repeat("é", 1<<20) + `"}]}}`,
	} {
		raw.Store(strings.Replace(answer, "$", "4711", 1))
		_, line := h.callLine("up__tool", "{}")
		line = strings.Replace(line, `"id":`, `"id": "my id" , "was":`, 1)
		if got, want := h.ask(line), strings.Replace(answer, "$", `"my id"`, 1); got != want {
			t.Errorf("got %s\nwant %s", clip(got), clip(want))
		}
	}
	raw.Store("{\n  \"jsonrpc\": \"2.0\",\r\n  \"id\": 1,\n  \"result\": {\n    \"content\": []\n  }\n}")
	id, line := h.callLine("up__tool", "{}")
	if got, want := h.ask(line), `{   "jsonrpc": "2.0",    "id": `+id+`,   "result": {     "content": []   } }`; got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestProgressComesBeforeTheAnswer(t *testing.T) {
	up := newFake("up", "tool")
	up.do = func(_ context.Context, c upstream.Call) (wire.Message, error) {
		if string(c.Token) != `"tok"` {
			t.Errorf("the token is %s", c.Token)
		}
		for i := range 100 {
			m, err := wire.ParseLenient(fmt.Appendf(nil, `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"tok","progress":%d,"x":9007199254740993}}`, i))
			if err != nil {
				t.Error(err)
			}
			c.Progress(m)
		}
		return reply(mcptest.Text("done"))
	}
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	h.send(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"up__tool","_meta":{"progressToken":"tok"}}}`)
	for i := range 100 {
		want := fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"tok","progress":%d,"x":9007199254740993}}`, i)
		if got := h.need("progress", anyLine); got != want {
			t.Fatalf("got %s\nwant %s", got, want)
		}
	}
	if got := h.need("the answer", anyLine); !hasID("1")(got) {
		t.Errorf("got %s", got)
	}
}

// A host may send hundreds of calls at once; all are answered, each once.
func TestManyCallsAtOnce(t *testing.T) {
	up := newFake("up", "tool")
	up.do = func(_ context.Context, c upstream.Call) (wire.Message, error) {
		return wire.ParseLenient(append(append([]byte(`{"jsonrpc":"2.0","id":1,"result":{"was":`), c.Params...), `}}`...))
	}
	h := serve(t, rig{fakes: []proxy.Upstream{up}})
	const n = 500
	go func() {
		for i := range n {
			_, _ = fmt.Fprintf(h.in, `{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"up__tool","arguments":{"n":%d}}}`+"\n", i, i)
		}
	}()
	for i := range n {
		want := fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"result":{"was":{"name":"tool","arguments":{"n":%d}}}}`, i, i)
		if got := h.answer(strconv.Itoa(i)); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
	h.quiet()
	if e := h.entries(); len(e) != n || slices.ContainsFunc(e, func(e audit.Entry) bool { return e.Status != "allowed" }) {
		t.Errorf("%d entries in the audit, want %d", len(e), n)
	}
}
