package wire_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// flow is a conversation whose server is about to send a burst of notifications
// and then the answer to a call.
type flow struct {
	client wire.Client
	answer <-chan result // the call
	sent   *atomic.Int64 // notifications that the server could write
}

// A host that does not read holds the server back: what waits in between is
// bounded, not dropped, and comes in order, before the answer. It is so on every
// transport.
func TestASlowHostSlowsTheServerAndLosesNothing(t *testing.T) {
	const n = 10_000
	note := func(i int) string {
		return fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"i":%d,"pad":"%s"}}`, i, pad2K)
	}
	// burst writes everything; each write waits for the reader once the pipes between are full.
	burst := func(w http.ResponseWriter, sent *atomic.Int64) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range n {
			if _, err := io.WriteString(w, "data: "+note(i)+"\n\n"); err != nil {
				return
			}
			sent.Add(1)
		}
		_ = http.NewResponseController(w).Flush()
	}
	for name, begin := range map[string]func(t *testing.T, handler wire.Handler) flow{
		"stdio": func(t *testing.T, handler wire.Handler) flow {
			p, peer := connect(t, wire.PipeOptions{Handler: handler})
			f := flow{client: p, answer: start(t.Context(), p, "x", ""), sent: &atomic.Int64{}}
			id := peer.read()["id"]
			go func() {
				for i := range n {
					peer.write(note(i))
					f.sent.Add(1)
				}
				peer.write(answer(id, `{}`))
			}()
			return f
		},
		"the stream of a POST": func(t *testing.T, handler wire.Handler) flow {
			f := flow{sent: &atomic.Int64{}}
			s := serve(t, func(w http.ResponseWriter, _ *http.Request, in request) {
				burst(w, f.sent)
				sendEvents(w, answer(in.msg.ID, `{}`))
			})
			h := dial(t, s.URL, wire.HTTPOptions{Handler: handler})
			f.client, f.answer = h, start(t.Context(), h, "x", "")
			return f
		},
		"the GET stream": func(t *testing.T, handler wire.Handler) flow {
			f := flow{sent: &atomic.Int64{}}
			called, sent := make(chan struct{}), make(chan struct{})
			s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
				if r.Method == http.MethodPost { // answered as soon as the burst is written
					close(called)
					<-sent
					sendJSON(w, 200, answer(in.msg.ID, `{}`))
					return
				}
				sendEvents(w)
				<-called
				burst(w, f.sent)
				close(sent)
				hang(r)
			})
			h := dial(t, s.URL, wire.HTTPOptions{Handler: handler})
			receive(t, "the stream", h.Listen())
			f.client, f.answer = h, start(t.Context(), h, "x", `{"_meta":{"progressToken":1}}`)
			return f
		},
		"HTTP+SSE": func(t *testing.T, handler wire.Handler) flow {
			f := flow{sent: &atomic.Int64{}}
			called := make(chan json.RawMessage, 1)
			s := serve(t, func(w http.ResponseWriter, r *http.Request, in request) {
				if r.Method == http.MethodPost {
					called <- in.msg.ID
					accepted(w)
					return
				}
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, "event: endpoint\ndata: /post\n\n")
				_ = http.NewResponseController(w).Flush()
				id := <-called
				burst(w, f.sent)
				sendEvents(w, answer(id, `{}`))
				hang(r)
			})
			h := dialSSE(t, s.URL, wire.HTTPOptions{Handler: handler})
			f.client, f.answer = h, start(t.Context(), h, "x", "")
			return f
		},
	} {
		t.Run(name, func(t *testing.T) {
			reads := make(chan struct{})
			before := heapInUse()
			var got atomic.Int64
			f := begin(t, func(m wire.Message) {
				<-reads // the host does not read yet
				var p struct{ I int }
				if err := json.Unmarshal(m.Params, &p); err != nil || int64(p.I) != got.Load() {
					t.Errorf("notification %d is %s", got.Load(), clip(m.Raw))
				}
				got.Add(1)
			})
			// It has come to a standstill when nothing more goes out.
			last := int64(-1)
			wait(t, "the server is held back", func() bool {
				now := f.sent.Load()
				still := now == last && now > 0
				last = now
				time.Sleep(200 * time.Millisecond)
				return still
			})
			held := int64(heapInUse()) - int64(before)
			t.Logf("%d of %d notifications of 2 KiB went out to a host that reads none; the heap grew by %d KiB", last, n, held>>10)
			if last == n {
				t.Error("the server was not held back")
			}
			if held > 8<<20 {
				t.Errorf("the heap grew by %d KiB", held>>10)
			}
			close(reads)
			if r := receive(t, "the answer", f.answer); r.err != nil {
				t.Errorf("the answer: %v", r.err)
			}
			if name == "the GET stream" { // an answer on another stream waits for them, but not for ever
				wait(t, "all notifications come", func() bool { return got.Load() == n })
			}
			if got := got.Load(); got != n {
				t.Errorf("%d of %d notifications came before the answer", got, n)
			}
		})
	}
}

var pad2K = strings.Repeat("x", 2<<10)
