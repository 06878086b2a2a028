//go:build linux

package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// many is a server under every path, of which those that end in an odd number do not
// answer once it is told so.
type many struct {
	mute  atomic.Bool
	leave chan struct{}
}

func (m *many) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	n, _ := strconv.Atoi(regexp.MustCompile(`\d+$`).FindString(req.URL.Path))
	if m.mute.Load() && n%2 == 1 {
		if n%4 == 1 { // slow
			select {
			case <-m.leave:
			case <-req.Context().Done():
			}
			return
		}
		panic(http.ErrAbortHandler) // dead
	}
	var msg struct {
		ID     json.RawMessage `json:"id"`
		Method string          `json:"method"`
	}
	body, _ := io.ReadAll(req.Body)
	_ = json.Unmarshal(body, &msg)
	w.Header().Set("Content-Type", "application/json")
	switch {
	case req.Method != http.MethodPost:
		w.WriteHeader(http.StatusMethodNotAllowed)
	case msg.ID == nil:
		w.WriteHeader(http.StatusAccepted)
	case msg.Method == "initialize":
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"n","version":"1"}}}`, msg.ID)
	case msg.Method == "tools/list":
		var tools []string
		for i := range 20 {
			tools = append(tools, fmt.Sprintf(`{"name":"tool_%d","description":%q,"inputSchema":{"type":"object","properties":{"text":{"type":"string","description":"What is to be said."}},"required":["text"]}}`,
				i, strings.Repeat("Says something, somewhere, to somebody. ", 6)))
		}
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"tools":[%s]}}`, msg.ID, strings.Join(tools, ","))
	default:
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}`, msg.ID)
	}
}

// TestAHundredUpstreams has half of them dead or slow: a start from what is known from
// before must not notice. How long it takes and how much memory is for the log.
func TestAHundredUpstreams(t *testing.T) {
	m := &many{leave: make(chan struct{})}
	srv := httptest.NewServer(m)
	defer srv.Close()
	defer close(m.leave)
	text := "version: 1\nupstreams:\n"
	for i := range 100 {
		text += fmt.Sprintf("  - {name: up-%d, url: \"%s/mcp/%d\"}\n", i, srv.URL, i)
	}
	h := mcptest.NewHaldir(t, program(t), text)
	serve := func() (s *mcptest.Session, greeted, listed time.Duration, tools int) {
		begin := time.Now()
		s = h.Serve(t)
		s.Initialize(mcptest.Revision)
		greeted = time.Since(begin)
		s.Notify("notifications/initialized")
		begin = time.Now()
		list := s.Ask("tools/list", "{}")
		return s, greeted, time.Since(begin), strings.Count(list.Raw, `"name":"up-`)
	}
	s, _, _, _ := serve()
	for end := time.Now().Add(60 * time.Second); strings.Count(s.Ask("tools/list", "{}").Raw, `"name":"up-`) < 2000; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the tools were not learnt")
		}
	}
	s.End()
	m.mute.Store(true)
	for range 3 {
		s, greeted, listed, tools := serve()
		if tools != 2000 {
			t.Errorf("%d tools are listed", tools)
		}
		time.Sleep(2 * time.Second) // it tries to connect
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("initialize after exec %v, tools/list %v, %s", greeted.Round(time.Millisecond), listed.Round(time.Millisecond),
			strings.Join(strings.Fields(regexp.MustCompile(`VmHWM.*|RssAnon.*`).FindString(string(status))), " "))
		s.End()
	}
}
