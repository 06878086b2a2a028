package proxy_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/wire"
)

// TestLargeAnswersKeepTheirBytes makes calls side by side whose answers are received
// in memory that others used before: none may hold a byte of another.
func TestLargeAnswersKeepTheirBytes(t *testing.T) {
	for _, mode := range []string{"json", "sse"} {
		t.Run(mode, func(t *testing.T) {
			srv := httptest.NewServer(wanted(mode))
			defer srv.Close()
			h := serve(t, rig{servers: []config.Upstream{{Name: "up", URL: srv.URL, Connect: patience}}})
			h.tools()
			const rounds, beside = 4, 12
			for round := range rounds {
				want := map[string]string{}
				var lines []string
				for i := range beside {
					text := fmt.Sprintf("%c%d.", 'a'+i, round)
					times := (20_000 + 10_000*i) * (1 + round%2)
					id, line := h.callLine("up__say", fmt.Sprintf(`{"text":%q,"times":%d}`, text, times))
					want[id] = strings.Repeat(text, times)
					lines = append(lines, line)
				}
				h.send(lines...)
				for id, text := range want {
					if got := parseResponse(t, h.answer(id)).Text; got != text {
						t.Fatalf("round %d: the answer to %s has %d bytes that begin with %.12q, not %d with %.12q", round, id, len(got), got, len(text), text)
					}
				}
			}
		})
	}
}

// wanted is a server whose tool repeats a text as often as it is told to, in an
// answer sent piece by piece.
func wanted(mode string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		m, bad := wire.ParseLenient(body)
		if err != nil || bad != nil || m.Method != "tools/call" {
			sized(mode, 0).ServeHTTP(w, unread(req, body))
			return
		}
		var p struct {
			Arguments struct {
				Text  string `json:"text"`
				Times int    `json:"times"`
			} `json:"arguments"`
		}
		if err := json.Unmarshal(m.Params, &p); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		head, tail := `{"jsonrpc":"2.0","id":`+string(m.ID)+`,"result":{"content":[{"type":"text","text":"`, `"}]}}`
		w.Header().Set("Content-Type", "application/json")
		if mode == "sse" {
			w.Header().Set("Content-Type", "text/event-stream")
			head, tail = "data: "+head, tail+"\n\n"
		}
		_, _ = io.WriteString(w, head)
		for n := p.Arguments.Times; n > 0; n -= 10_000 {
			_, _ = io.WriteString(w, strings.Repeat(p.Arguments.Text, min(n, 10_000)))
		}
		_, _ = io.WriteString(w, tail)
	})
}

// unread is a request whose body can be read once more.
func unread(req *http.Request, body []byte) *http.Request {
	req.Body = io.NopCloser(strings.NewReader(string(body)))
	return req
}
