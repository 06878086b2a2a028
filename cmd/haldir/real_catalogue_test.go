package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// toolNames lists the tools that the host sees.
func toolNames(t *testing.T, s *mcptest.Session) []string {
	t.Helper()
	var names []string
	for _, tool := range listRaw(t, s) {
		names = append(names, tool.Name)
	}
	return names
}

// text returns the first text of a result, or the message of an error.
func text(t *testing.T, m mcptest.Message) string {
	t.Helper()
	if m.Error != nil {
		return errorOf(t, m).Message
	}
	var result struct {
		Content []struct {
			Text string `json:"text"`
		} `json:"content"`
	}
	if err := json.Unmarshal(m.Result, &result); err != nil || len(result.Content) == 0 {
		t.Fatalf("no content in %s", m.Raw)
	}
	return result.Content[0].Text
}

// until repeats a call until it answers as wanted.
func until(t *testing.T, s *mcptest.Session, tool, want string) (attempts int) {
	t.Helper()
	limit := time.Now().Add(time.Minute)
	for {
		attempts++
		m := s.Ask("tools/call", mcptest.CallParams(tool, "{}", ""))
		if m.Error == nil && text(t, m) == want {
			return attempts
		}
		if time.Now().After(limit) {
			t.Fatalf("%s does not come back: %s", tool, m.Raw)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestRealWarmCatalogue starts haldir a second time while one of its servers
// never answers: the list is that of the first run, whichever stands first.
func TestRealWarmCatalogue(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"mute first", "mute last"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			hang := filepath.Join(t.TempDir(), "hang")
			ups := []string{
				strings.TrimSuffix(realChild(t, "mute", "gosdk", realHang+"="+hang), "}\n") + ", timeouts: {connect: 2s}}\n",
				realChild(t, "sdk", "mcpgo"),
			}
			if order == "mute last" {
				slices.Reverse(ups)
			}
			h := mcptest.NewHaldir(t, program(t), "version: 1\nlist_wait: 60s\nupstreams:\n"+strings.Join(ups, ""))

			first := h.Serve(t)
			first.Initialize(mcptest.Revision)
			want := first.Ask("tools/list", "{}").Outcome()
			if !strings.Contains(want, `"mute__rich"`) || !strings.Contains(want, `"sdk__rich"`) {
				t.Fatalf("the first list: %s", want)
			}
			first.End()

			if err := os.WriteFile(hang, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			second := h.Serve(t)
			second.Initialize(mcptest.Revision)
			if diff := cmp.Diff(want, second.Ask("tools/list", "{}").Outcome()); diff != "" {
				t.Errorf("the list of the second run (-first +second):\n%s", diff)
			}
			// A call to the other server does not wait for the mute one, not even
			// one that was sent after a call to that.
			stuck := second.Post("tools/call", mcptest.CallParams("mute__rich", "{}", ""))
			if got := text(t, second.Ask("tools/call", mcptest.CallParams("sdk__rich", "{}", ""))); got != "{}" {
				t.Errorf("the other server answers %q", got)
			}
			for _, m := range second.Seen() {
				if string(m.ID) == stuck {
					t.Errorf("the mute server's call was answered first: %s", m.Raw)
				}
			}
			m := second.Wait(stuck)
			e := errorOf(t, m)
			if !strings.Contains(e.Message, `"mute"`) || !strings.Contains(string(e.Data), `"mute"`) {
				t.Errorf("the error of a call to the mute server does not name it: %s", m.Raw)
			}
			// It recovers without a restart of haldir.
			if err := os.Remove(hang); err != nil {
				t.Fatal(err)
			}
			until(t, second, "mute__count", "counted")
			second.End()
			if code := len(calls(t, h)); code < 3 {
				t.Errorf("only %d of the calls are in the audit", code)
			}
		})
	}
}

// TestRealCatalogueIsKept has a host that lists the tools and leaves at once, as
// one does that only looks: what it saw is there at the next start, though the
// servers are not.
func TestRealCatalogueIsKept(t *testing.T) {
	t.Parallel()
	for range 5 {
		url, _, stop := listenOn(t, 0, newGoSDK().handler(false, true))
		config := "version: 1\nlist_wait: 60s\nupstreams:\n"
		for i := range 8 {
			config += fmt.Sprintf("  - {name: sdk%d, url: %q}\n", i, url)
		}
		h := mcptest.NewHaldir(t, program(t), config)
		s := h.Serve(t)
		s.Initialize(mcptest.Revision)
		want := toolNames(t, s)
		s.End()
		stop()
		s = h.Serve(t)
		s.Initialize(mcptest.Revision)
		if diff := cmp.Diff(want, toolNames(t, s)); diff != "" {
			t.Fatalf("the list at the next start (-before +now):\n%s", diff)
		}
		s.End()
	}
}

// TestRealColdCatalogue starts haldir for the first time while one of its
// servers does not answer yet: the list is what there is, and haldir says when
// there is more.
func TestRealColdCatalogue(t *testing.T) {
	t.Parallel()
	hang := filepath.Join(t.TempDir(), "hang")
	if err := os.WriteFile(hang, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mute := strings.TrimSuffix(realChild(t, "late", "gosdk", realHang+"="+hang), "}\n") + ", timeouts: {connect: 1s}}\n"
	h := mcptest.NewHaldir(t, program(t), "version: 1\nlist_wait: 200ms\nupstreams:\n"+mute+realChild(t, "sdk", "mcpgo"))
	s := h.Serve(t)
	s.Initialize(mcptest.Revision)
	names := toolNames(t, s)
	if slices.Contains(names, "late__rich") {
		t.Errorf("the list has what cannot be known: %v", names)
	}
	for range 100 { // a slow machine may need longer than list_wait for the healthy one
		if slices.Contains(names, "sdk__rich") {
			break
		}
		names = toolNames(t, s)
	}
	if !slices.Contains(names, "sdk__rich") {
		t.Fatalf("the healthy server is not listed: %v", names)
	}
	if err := os.Remove(hang); err != nil {
		t.Fatal(err)
	}
	s.Await("notifications/tools/list_changed", func(m mcptest.Message) bool { return m.Method == "notifications/tools/list_changed" })
	until(t, s, "late__count", "counted")
	if names = toolNames(t, s); !slices.Contains(names, "late__rich") {
		t.Errorf("the late server is not listed after all: %v", names)
	}
	s.End()
}

// TestRealRestart takes HTTP servers away and brings them back on the same port,
// with nothing known of earlier sessions.
func TestRealRestart(t *testing.T) {
	t.Parallel()
	for _, mode := range []struct {
		name            string
		stateless, json bool
	}{{"stateful-sse", false, false}, {"stateful-json", false, true}, {"stateless-sse", true, false}, {"stateless-json", true, true}} {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			server := newGoSDK()
			url, port, stop := listenOn(t, 0, server.handler(mode.stateless, mode.json))
			h := mcptest.NewHaldir(t, program(t), fmt.Sprintf("version: 1\nupstreams:\n  - {name: remote, url: %q}\n", url))
			s := h.Serve(t)
			s.Initialize(mcptest.Revision)
			names := toolNames(t, s)
			until(t, s, "remote__count", "counted")

			// Restarted between two calls: the next one works, at the first attempt.
			stop()
			server = newGoSDK()
			_, _, stop = listenOn(t, port, server.handler(mode.stateless, mode.json))
			time.Sleep(100 * time.Millisecond) // that the old connections are closed must have been noticed
			if m := s.Ask("tools/call", mcptest.CallParams("remote__count", "{}", "")); m.Error != nil || text(t, m) != "counted" {
				t.Errorf("the first call after a restart: %s", m.Raw)
			}
			if n := server.of("count"); n != 1 {
				t.Errorf("the restarted server has executed %d calls, want 1", n)
			}

			// Down: the call fails and says whose fault it is, the tools stay listed.
			stop()
			m := s.Ask("tools/call", mcptest.CallParams("remote__count", "{}", ""))
			e := errorOf(t, m)
			if !strings.Contains(e.Message, `"remote"`) || !strings.Contains(string(e.Data), `"remote"`) {
				t.Errorf("the error does not name the server: %s", m.Raw)
			}
			if diff := cmp.Diff(names, toolNames(t, s)); diff != "" {
				t.Errorf("the list while the server is down (-before +now):\n%s", diff)
			}
			if got := text(t, s.Ask("tools/call", mcptest.CallParams("haldir_get_spend", "{}", ""))); !strings.Contains(got, "total_usd") {
				t.Errorf("haldir's own tools do not work meanwhile: %s", got)
			}

			server = newGoSDK()
			listenOn(t, port, server.handler(mode.stateless, mode.json))
			attempts := until(t, s, "remote__count", "counted")
			t.Logf("back after %d attempt(s)", attempts)
			s.End()
			for _, c := range calls(t, h) {
				if c.Status != "allowed" && c.Status != "error" {
					t.Errorf("in the audit: %+v", c)
				}
			}
		})
	}
}

// TestRealRestartEverything does so with server-everything, which answers an
// unknown session with 400 instead of the 404 that MCP demands, as many servers
// on the TypeScript SDK do after its examples.
func TestRealRestartEverything(t *testing.T) {
	t.Parallel()
	command := mcptest.NPM(t, mcptest.Everything, "mcp-server-everything")
	port := freePort(t)
	url, stop := everythingHTTP(t, command, port)
	h := mcptest.NewHaldir(t, program(t), fmt.Sprintf("version: 1\nupstreams:\n  - {name: everything, url: %q}\n", url))
	s := h.Serve(t)
	s.Initialize(mcptest.Revision)
	sum := func() mcptest.Message {
		return s.Ask("tools/call", mcptest.CallParams("everything__get-sum", `{"a":1,"b":2}`, ""))
	}
	if got := text(t, sum()); got != "The sum of 1 and 2 is 3." {
		t.Fatalf("get-sum answers %q", got)
	}
	stop()
	everythingHTTP(t, command, port)
	limit := time.Now().Add(20 * time.Second)
	for attempts := 1; ; attempts++ {
		m := sum()
		if m.Error == nil && text(t, m) == "The sum of 1 and 2 is 3." {
			t.Logf("back after %d attempt(s)", attempts)
			break
		}
		if time.Now().After(limit) {
			t.Errorf("after a restart of the server every call fails for ever: %s", m.Raw)
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	s.End()
}

// TestRealCrash kills a server on stdio in the middle of a call.
func TestRealCrash(t *testing.T) {
	t.Parallel()
	h := mcptest.NewHaldir(t, program(t), "version: 1\nupstreams:\n"+realChild(t, "frail", "fragile"))
	s := h.Serve(t)
	s.Initialize(mcptest.Revision)
	if got := text(t, s.Ask("tools/call", mcptest.CallParams("frail__count", "{}", ""))); got != "counted" {
		t.Fatalf("count answers %q", got)
	}
	m := s.Ask("tools/call", mcptest.CallParams("frail__crash", "{}", ""))
	e := errorOf(t, m)
	for _, words := range []string{`"frail"`, "exit status 3", "I was told to"} {
		if !strings.Contains(e.Message, words) {
			t.Errorf("the error does not say %s: %s", words, m.Raw)
		}
	}
	attempts := until(t, s, "frail__count", "counted")
	t.Logf("back after %d attempt(s)", attempts)
	s.End()
	all := calls(t, h)
	if all[1].Tool != "crash" || all[1].Status != "error" && all[1].Status != "abandoned" {
		t.Errorf("the crashed call in the audit: %+v", all[1])
	}
}

// BenchmarkRealStart is the start of the shipped program, with its catalogue warm
// and one of two upstreams hanging: up to the answer to initialize, and from there
// to a complete tools/list.
func BenchmarkRealStart(b *testing.B) {
	hang := filepath.Join(b.TempDir(), "hang")
	h := mcptest.NewHaldir(b, mcptest.Build(b), "version: 1\nlist_wait: 1s\nupstreams:\n"+
		realChild(b, "mute", "gosdk", realHang+"="+hang)+realChild(b, "sdk", "gosdk"))
	var inits, lists time.Duration
	start := func() {
		began := time.Now()
		s := h.Serve(b)
		s.Initialize(mcptest.Revision)
		initialized := time.Now()
		s.Ask("tools/list", "{}")
		inits, lists = inits+initialized.Sub(began), lists+time.Since(initialized)
		s.End()
	}
	start() // it fills the catalogue
	if err := os.WriteFile(hang, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	inits, lists = 0, 0
	for b.Loop() {
		start()
	}
	b.ReportMetric(float64(inits.Milliseconds())/float64(b.N), "ms-to-initialize")
	b.ReportMetric(float64(lists.Milliseconds())/float64(b.N), "ms-to-tools/list")
}
