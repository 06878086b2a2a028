//go:build unmended

package wire_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// Many servers log to stdout, some of them JSON that names the request. Such a
// line is noise: it must neither answer nor fail a call, whose real answer is
// still to come (and whose cost must not be settled as failed).
func TestNoiseIsReportedLineByLineAndChangesNothing(t *testing.T) {
	var heard list[noise]
	p, peer := connect(t, wire.PipeOptions{Noise: func(line []byte, why error) { heard.add(noise{string(line), why}) }})
	call := start(t.Context(), p, "tools/call", `{}`)
	req := peer.read()
	id := string(req["id"])
	lines := []string{
		"Server listening on stdio", "\x1b[32mINFO\x1b[0m ready", `{"level":"info"}`, `{`, `null`, `1`, `"x"`, `[1,{"a":1}]`, "\xff\xfe", "\x00",
		`{"level":"info","msg":"handling a request","id":` + id + `}`,           // a log line that names the request
		`{"id":` + id + `,"method":"tools/call","params":{},"level":"debug"}`,   // one that echoes it
		`{"level":"error","id":` + id + `,"msg":"will try again"}`,              // as zerolog writes
		`{"level":"warn","id":` + id + `,"error":"timeout","result":"retry"}`,   // and with fields of these names
		`{"jsonrpc":"2.0","id":` + id + `,"method":"x","params":{"error":NaN}}`, // a request of its own that cannot be read
		`{"jsonrpc":"2.0","id":` + id + `,"method":"x","params":{"result":`,     // likewise
		`{"jsonrpc":"2.0","id":` + id + `,"id":5,"result":{}}`,                  // two ids
		`{"jsonrpc":"2.0","id":"` + id + `","result":"a string id"}`,            // "1" is not 1
		`{"jsonrpc":"2.0","id":999,"result":{}}`,                                // an id never used
		`{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}`,          // about nothing in particular
		`{"jsonrpc":"2.0","error":{"code":1,"message":"x"}}`,                    // likewise
		`[{"jsonrpc":"2.0","id":` + id + `,"result":{}}] trailing`,              // no JSON
		"\ufeff" + `{"jsonrpc":"2.0","id":` + id + `,"result":"a mark"}`,        // no JSON
	}
	peer.write(append(lines, "", "   ", answer(req["id"], `"real"`))...)
	if r := receive(t, "the call", call); string(r.m.Result) != `"real"` {
		t.Errorf("the call: %s, %v", r.m.Raw, r.err)
	}
	// a second answer to the same request
	peer.write(answer(req["id"], `"again"`))
	call = start(t.Context(), p, "ping", "")
	peer.write(answer(peer.read()["id"], `{}`))
	receive(t, "a call that follows", call)
	var got []string
	for _, n := range heard.all() {
		if n.why == nil {
			t.Errorf("no reason for %q", n.line)
		}
		got = append(got, n.line)
	}
	if diff := cmp.Diff(append(lines, answer(req["id"], `"again"`)), got); diff != "" {
		t.Error(diff)
	}
}

func TestAnAnswerToAnotherRequestOnTheStreamIsReportedAndWaitedPast(t *testing.T) {
	t.Parallel()
	odd := []string{
		answer(json.RawMessage(`4711`), `"other"`), `{"jsonrpc":"2.0","id":4712,"error":{"code":1,"message":"m"}}`, `no JSON`, `{"no":"JSON-RPC"}`,
		`[{"no":"JSON-RPC"}]`, `[1`,
	}
	s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
		sendEvents(w, append(odd, answer(json.RawMessage(`"`+string(in.msg.ID)+`"`), `"a string"`), answer(in.msg.ID, `"mine"`))...)
	})
	var problems list[error]
	h := dial(t, s.URL, wire.HTTPOptions{Problem: problems.add})
	if m, err := h.Call(t.Context(), "x", nil); err != nil || string(m.Result) != `"mine"` {
		t.Errorf("Call = %s, %v", m.Raw, err)
	}
	if got := problems.all(); len(got) != len(odd)+1 {
		t.Errorf("%d problems of %d: %v", len(got), len(odd)+1, got)
	}
}

// uvicorn and others end the stream a few milliseconds after the last event. A
// call that leaves that to a goroutine makes the next one open a connection,
// and net/http keeps two idle ones per host by default: the rest are thrown away.
func TestConnectionsAreUsedAgainThoughTheStreamEndsAfterItsAnswer(t *testing.T) {
	checkFewConnections(t, func(w http.ResponseWriter, id json.RawMessage) {
		sendEvents(w, answer(id, `{}`))
		time.Sleep(5 * time.Millisecond)
	})
}
