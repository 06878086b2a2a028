package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// goEverythingPackage is the server with which the Go SDK shows its conformance.
// Its module is a dependency, so that the version is that of go.mod.
const goEverythingPackage = "github.com/modelcontextprotocol/go-sdk/conformance/everything-server"

// atOnce keeps the race detector, where there is one, from holding up the end of each
// haldir for a second.
const atOnce = "GORACE=atexit_sleep_ms=0"

// TestRealGoEverything lets the same host hold the same conversation with the Go
// SDK's everything server and with haldir before it, step by step, and compares
// every message byte for byte. What may differ is in [side.same], [tidings],
// [side.take], [pair.handshake], [pair.list] and [pair.refusals], each with its
// reason. Over HTTP the names are bare, so that nothing is taken out of them.
func TestRealGoEverything(t *testing.T) {
	t.Parallel()
	server := filepath.Join(t.TempDir(), "everything-server")
	if runtime.GOOS == "windows" {
		server += ".exe"
	}
	if out, err := exec.Command("go", "build", "-o", server, goEverythingPackage).CombinedOutput(); err != nil {
		t.Fatalf("build the everything server: %v\n%s", err, out)
	}
	for _, c := range []struct{ name, capabilities string }{
		{"none", `{}`},
		{"roots", `{"roots":{"listChanged":true}}`},
		{"elicitation", `{"elicitation":{"form":{}}}`},
		{"sampling", `{"sampling":{}}`},
		{"all", `{"elicitation":{"form":{},"url":{}},"sampling":{"tools":{}},"roots":{"listChanged":true}}`},
	} {
		for transport, remote := range map[string]bool{"stdio": false, "http": true} {
			t.Run("legacy/"+transport+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				goEverythingLegacy(t, server, c.capabilities, remote)
			})
			if !remote && c.name != "none" && c.name != "all" {
				continue // without a header to make there is little that is not the same
			}
			t.Run("modern/"+transport+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				goEverythingModern(t, server, c.capabilities, remote, (*pair).modern)
			})
		}
	}
	t.Run("modern/http/mismatch", func(t *testing.T) {
		t.Parallel()
		goEverythingModern(t, server, `{}`, true, (*pair).mismatch)
	})
}

// goEverythingLegacy is a host with the handshake of 2025-11-25.
func goEverythingLegacy(t *testing.T, server, capabilities string, remote bool) {
	var dial func() speaker
	var h *mcptest.Haldir
	prefix := "everything__"
	if remote { // two servers, since some calls change the lists of all clients
		url := goEverythingHTTP(t, server, "-stateless=false")
		dial = func() speaker { return newHTTPHost(t, url, "") }
		prefix = ""
		h = mcptest.NewHaldir(t, program(t), fmt.Sprintf(
			"version: 1\nupstreams:\n  - {name: everything, url: %q, expose: bare}\n", goEverythingHTTP(t, server, "-stateless=false")))
	} else {
		dial = func() speaker {
			cmd := exec.Command(server)
			cmd.Env = baseEnv()
			return mcptest.Start(t, cmd)
		}
		h = mcptest.NewHaldir(t, program(t), fmt.Sprintf("version: 1\nupstreams:\n  - {name: everything, command: %q}\n", server))
		h.Env = baseEnv()
	}
	h.Env = append(h.Env, atOnce)
	for _, state := range []string{"cold", "warm"} {
		session := h.Serve(t)
		p := newPair(t, state, dial(), session, prefix)
		p.remote, p.capabilities = remote, capabilities
		p.handshake()
		p.lists()
		if state == "cold" {
			p.conversation()
		} else { // a server that is started anew must not be remembered with what this adds
			p.changes()
		}
		p.end()
		session.End()
	}
}

// handshake shakes hands. Of the result haldir's name and title are its own. With no
// state yet it does not wait for a server that it has never seen, and declares all
// that there is.
func (p *pair) handshake() {
	p.each(func(s *side) {
		m := s.ask("initialize", fmt.Sprintf(`{"protocolVersion":%q,"capabilities":%s,"clientInfo":{"name":"host","version":"1"}}`, mcptest.Revision, p.capabilities))
		var hello struct {
			Version      json.RawMessage `json:"protocolVersion"`
			Capabilities json.RawMessage `json:"capabilities"`
			Instructions json.RawMessage `json:"instructions"`
		}
		if err := json.Unmarshal(m.Result, &hello); err != nil {
			p.t.Fatalf("%s: initialize: %v: %s", s.name, err, m.Raw)
		}
		if p.state == "cold" {
			hello.Capabilities = nil
		}
		s.script = append(s.script, fmt.Sprintf("%s %s %s", hello.Version, hello.Capabilities, hello.Instructions))
		s.host.Send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
		if web, ok := s.host.(*httpHost); ok {
			web.listen()
		}
	})
	p.compare("initialize")
}

// conversation is that of a legacy host. It leaves out
// test_input_required_result_multiple_inputs where the host cannot do all that it
// asks for: the server asks at once what it can, and gives that up at the first that
// it cannot, so that what it says is a matter of luck.
func (p *pair) conversation() {
	t := p.t
	p.do("ping", ``)
	p.do("resources/subscribe", `{"uri":"test://watched-resource"}`)

	p.do("resources/read", `{"uri":"test://static-text"}`)
	p.do("resources/read", `{"uri":"test://static-binary"}`)
	p.do("resources/read", `{"uri":"test://watched-resource"}`)
	p.do("resources/read", `{"uri":"test://template/42/data"}`)
	p.do("resources/read", `{"uri":"test://template/a%20b%C3%BC/data"}`)
	p.do("resources/read", `{"uri":"test://none"}`)
	p.do("resources/read", `{"uri":"other://none"}`)
	p.do("resources/subscribe", `{"uri":"test://none"}`)
	p.do("resources/unsubscribe", `{"uri":"test://none"}`)

	p.do("prompts/get", `{"name":"@test_simple_prompt"}`)
	p.do("prompts/get", `{"name":"@test_prompt_with_arguments","arguments":{"arg1":"hello <&> ü 🎉 \u2028","arg2":"\"quoted\""}}`)
	p.do("prompts/get", `{"name":"@test_prompt_with_arguments","arguments":{"arg1":"only"}}`)
	p.do("prompts/get", `{"name":"@test_prompt_with_arguments","arguments":{"arg1":5}}`)
	p.do("prompts/get", `{"name":"@test_prompt_with_embedded_resource","arguments":{"resourceUri":"test://example"}}`)
	p.do("prompts/get", `{"name":"@test_prompt_with_image"}`)
	p.do("prompts/get", `{"name":"@test_input_required_result_prompt"}`)
	p.do("completion/complete", `{"ref":{"type":"ref/prompt","name":"@test_prompt_with_arguments"},"argument":{"name":"arg1","value":"par"}}`)
	p.do("completion/complete", `{"ref":{"type":"ref/resource","uri":"test://template/{id}/data"},"argument":{"name":"id","value":"1"},"context":{"arguments":{"a":"b"}}}`)
	p.do("completion/complete", `{"ref":{"type":"ref/prompt","name":"@test_prompt_with_arguments"},"argument":7}`)

	// Before it is told a level the server logs nothing.
	p.call("test_tool_with_logging", `{}`)
	p.do("logging/setLevel", `{"level":"debug"}`)
	p.call("test_tool_with_logging", `{}`)
	p.call("test_logging_tool", `{}`)
	p.do("logging/setLevel", `{"level":"error"}`)
	p.call("test_logging_tool", `{}`)
	p.do("logging/setLevel", `{"level":"loud"}`)
	p.do("logging/setLevel", `{"level":5}`)

	p.plainCalls()

	if p.remote {
		// The server ends the stream of the call, has kept nothing by which it could be
		// taken up again, and answers into the void. A direct host never hears of it;
		// haldir must.
		if m := p.through.ask("tools/call", mcptest.CallParams(p.through.prefix+"test_reconnection", `{}`, "")); errorOf(t, m).Code != -32603 {
			t.Errorf("a call whose answer is lost: %s", m.Raw)
		}
		p.direct.ask("ping", ``) // so that the ids stay the same
		p.called["test_reconnection"] = true
	} else {
		p.call("test_reconnection", `{}`)
	}

	// What asks the host: as many answers as there are, and the refusal where the
	// host cannot.
	p.call("test_sampling", `{"prompt":"say <hello> ü"}`)
	p.call("test_elicitation", `{"message":"who & why?"}`)
	p.call("test_elicitation_sep1034_defaults", `{}`)
	p.call("test_elicitation_sep1330_enums", `{}`)
	for _, answer := range []string{`"result":{"action":"decline"}`, `"result":{"action":"cancel"}`, `"error":{"code":-32042,"message":"not now <&>","data":{"n":9007199254740993}}`} {
		p.call("test_elicitation", `{"message":"again"}`, answer)
	}
	p.call("test_sampling", `{"prompt":"no"}`, `"error":{"code":-1,"message":"User rejected sampling request"}`)
	p.call("test_sampling", `{"prompt":"many"}`, `"result":{"role":"assistant","content":{"type":"image","data":"AAEC","mimeType":"image/png"},"model":"test"}`)
	for _, tool := range []string{"elicitation", "sampling", "list_roots", "request_state", "multi_round", "tampered_state", "capabilities"} {
		p.call("test_input_required_result_"+tool, `{}`)
	}
	if p.can("elicitation") && p.can("sampling") {
		p.call("test_input_required_result_multiple_inputs", `{}`)
	} else {
		p.called["test_input_required_result_multiple_inputs"] = true
	}
	p.call("test_input_required_result_elicitation", `{}`, `"result":{"action":"decline"}`)
	p.call("test_missing_capability", `{}`)
	p.each(func(s *side) { s.host.Send(`{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}`) })

	// Cancelled while it goes on, seen by what the server has said by then.
	p.each(func(s *side) {
		if p.can("elicitation") {
			id := s.host.Post("tools/call", mcptest.CallParams(s.prefix+"test_elicitation", `{"message":"forget it"}`, ""))
			s.cancelled = append(s.cancelled, id)
			s.until("elicitation/create")
			if p.remote { // the server may have no stream any more on which to say it
				clear(s.open)
			}
			s.host.Send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":` + id + `,"reason":"enough"}}`)
			if !p.remote {
				s.until("notifications/cancelled")
			}
		} else {
			id := s.host.Post("tools/call", mcptest.CallParams(s.prefix+"test_tool_with_progress", `{}`, `{"progressToken":"given up"}`))
			s.until("notifications/progress")
			s.cancelled = append(s.cancelled, id, `"given up"`)
			s.host.Send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":` + id + `}}`)
		}
	})
	p.compare("a cancelled call")
	p.call("test_simple_text", `{}`)
	p.refusals()

	p.updated()
	p.do("resources/unsubscribe", `{"uri":"test://watched-resource"}`)
	p.do("ping", `{}`)
	p.complete()
}

// updated waits until a resource that is subscribed to has changed, with few hosts,
// since that is so every three seconds only.
func (p *pair) updated() {
	if p.can("roots") && p.can("sampling") && (p.remote || p.direct.envelope == "") {
		p.waited = true
		p.each(func(s *side) { s.told("notifications/resources/updated", 1) })
	}
}

// changes changes the lists.
func (p *pair) changes() {
	p.call("test_simple_text", `{}`)
	p.change("prompt", "prompts", p.streams)
	p.do("prompts/get", `{"name":"@__transient_prompt_for_list_changed"}`)
	p.each(func(s *side) {
		if n := s.heard("notifications/tools/list_changed"); n > 0 {
			p.t.Errorf("%s: %s: the tools are said to have changed %d times, and have not", p.state, s.name, n)
		}
	})
	p.change("tool", "tools", 1)
	p.call("__transient_tool_for_list_changed", `{}`)
}

// change changes one of the lists, which is told on so many streams.
func (p *pair) change(what, list string, streams int) {
	told := "notifications/" + list + "/list_changed"
	before := map[*side]int{}
	p.each(func(s *side) { before[s] = s.heard(told) })
	p.call("test_trigger_"+what+"_change", `{}`)
	p.each(func(s *side) { s.told(told, before[s]+streams) })
	p.list(list+"/list", list)
}

// plainCalls call the tools that ask for nothing.
func (p *pair) plainCalls() {
	for _, tool := range []string{
		"test_simple_text", "test_image_content", "test_audio_content", "test_embedded_resource",
		"test_multiple_content_types", "test_error_handling", "test_streaming_elicitation",
	} {
		p.call(tool, `{}`)
	}
	p.call("test_simple_text", ``)
	p.call("test_x_mcp_header", `null`)
	p.call("json_schema_2020_12_tool", `{"name":"n <&> \u2028 ü","contactMethod":"phone","phone":"1","address":{"street":"s","n":9007199254740993,"f":1.50}}`)
	p.call("json_schema_2020_12_tool", `{"contactMethod":"email","phone":"1"}`)
	p.call("json_schema_2020_12_tool", `{"email":"e","other":1}`)
	p.call("test_x_mcp_header", `{"region":"us-west","level":3}`)
	p.call("test_x_mcp_header", `{"region":"ü <west>"}`)
	p.call("test_x_mcp_header", `{"region":" spaced "}`)
	p.call("test_x_mcp_header", `{"level":"high"}`)
	p.call("test_x_mcp_header", `{}`)
	p.together(`"a <token>"`, `7`, `1.5`)
}

// together makes calls with these progress tokens at once. What belongs to one of
// them stays in order.
func (p *pair) together(tokens ...string) {
	p.t.Helper()
	calls := map[*side][]string{}
	for _, token := range tokens {
		params := `{"name":"@test_tool_with_progress","arguments":{},"_meta":{"progressToken":` + token + `,"example.com/n":9007199254740993}}`
		p.note(params)
		p.each(func(s *side) { calls[s] = append(calls[s], s.host.Post("tools/call", s.params(params))) })
	}
	p.each(func(s *side) {
		said := make([][]string, len(tokens)+1)
		for left := len(tokens); left > 0; {
			m := s.take("the answers to calls made together")
			i := slices.Index(tokens, paramOf(m, "progressToken"))
			if m.Method == "" {
				i = slices.Index(calls[s], string(m.ID))
				left--
			}
			said[i+1] = append(said[i+1], s.same(m)) // what is of none comes first
		}
		s.script = slices.Concat(said...)
	})
	p.compare("calls made together")
}

type refusal struct {
	method, params string
	code           int
}

// refusals are answers that are haldir's own: it knows the methods and the names
// there are, and what it judges must be well-formed. The words are its own, the
// codes are not. An unknown tool is left out: haldir refuses it by policy, in a
// result.
func (p *pair) refusals(more ...refusal) {
	for _, r := range append([]refusal{
		{"no/such/method", `{}`, -32601},
		{"prompts/get", `{"name":"@none"}`, -32602},
		{"prompts/get", `{"name":5}`, -32602},
		{"tools/call", `{"name":5}`, -32602},
		{"resources/read", `{"uri":5}`, -32602},
		{"completion/complete", `{"ref":{"type":"ref/none"},"argument":{"name":"a","value":""}}`, -32602},
		{"tools/list", `{"cursor":"none"}`, -32602},
	}, more...) {
		p.each(func(s *side) {
			m := s.ask(r.method, s.params(r.params))
			if s == p.direct && (strings.Contains(string(m.Error), `"HTTP `) || strings.Contains(string(m.Error), "-32020")) {
				return // it is refused as HTTP, or for a header that cannot be made
			}
			if m.Error == nil || errorOf(p.t, m).Code != r.code {
				p.t.Errorf("%s: %s %s: %s", s.name, r.method, r.params, m.Raw)
			}
		})
	}
}

// goEverythingModern is a host that says with each request what it is.
func goEverythingModern(t *testing.T, server, capabilities string, remote bool, conversation func(*pair)) {
	var direct speaker
	prefix, upstream := "everything__", fmt.Sprintf("command: %q", server)
	if remote {
		direct = newHTTPHost(t, goEverythingHTTP(t, server, "-stateless=true"), modernRevision)
		prefix, upstream = "", fmt.Sprintf("url: %q, expose: bare", goEverythingHTTP(t, server, "-stateless=true"))
	} else {
		cmd := exec.Command(server)
		cmd.Env = baseEnv()
		direct = mcptest.Start(t, cmd)
	}
	h := mcptest.NewHaldir(t, program(t), "version: 1\nupstreams:\n  - {name: everything, "+upstream+"}\n")
	h.Env = append(h.Env, atOnce)
	session := h.Serve(t)
	p := newPair(t, "modern", direct, session, prefix)
	p.remote, p.capabilities = remote, capabilities
	p.discover()
	p.lists()
	conversation(p)
	p.end()
	session.End()
}

// discover asks what the server is. Only that it is answered counts: haldir says what
// it is itself, for all of its servers.
func (p *pair) discover() {
	p.each(func(s *side) {
		s.envelope = fmt.Sprintf(`"io.modelcontextprotocol/protocolVersion":%q,"io.modelcontextprotocol/clientInfo":{"name":"host","version":"1"},"io.modelcontextprotocol/clientCapabilities":%s`, modernRevision, p.capabilities)
		if m := s.ask("server/discover", s.params(`{}`)); !strings.Contains(string(m.Result), modernRevision) {
			p.t.Errorf("%s: server/discover: %s", s.name, m.Raw)
		}
	})
}

// mismatch is what a server refuses for the sake of a header, which says nothing of
// its lists.
func (p *pair) mismatch() {
	p.do("prompts/get", `{"name":"@test_prompt_with_arguments","arguments":{"arg1":5}}`)
	p.listen(`{"toolsListChanged":true,"promptsListChanged":true}`)
	p.changes()
}

// listen opens a stream and returns the ids of the requests for it. What is
// acknowledged haldir writes itself.
func (p *pair) listen(notifications string) map[*side]string {
	ids := map[*side]string{}
	p.each(func(s *side) {
		ids[s] = s.host.Post("subscriptions/listen", s.params(`{"notifications":`+notifications+`}`))
		s.until("notifications/subscriptions/acknowledged")
		last := &s.script[len(s.script)-1]
		*last = tidings(*last)
	})
	p.compare("subscriptions/listen " + notifications)
	return ids
}

// modern is the conversation of a modern host.
func (p *pair) modern() {
	t := p.t
	p.do("resources/read", `{"uri":"test://static-text"}`)
	p.do("resources/read", `{"uri":"test://static-binary"}`)
	p.do("resources/read", `{"uri":"test://template/a%20b%C3%BC/data"}`)
	p.do("resources/read", `{"uri":"test://none"}`)
	p.do("prompts/get", `{"name":"@test_simple_prompt"}`)
	p.do("prompts/get", `{"name":"@test_prompt_with_arguments","arguments":{"arg1":"hello <&> ü 🎉 \u2028","arg2":"\"quoted\""}}`)
	p.do("prompts/get", `{"name":"@test_prompt_with_embedded_resource","arguments":{"resourceUri":"test://example"}}`)
	p.do("prompts/get", `{"name":"@test_prompt_with_image"}`)
	p.do("completion/complete", `{"ref":{"type":"ref/prompt","name":"@test_prompt_with_arguments"},"argument":{"name":"arg1","value":"par"}}`)
	p.do("completion/complete", `{"ref":{"type":"ref/resource","uri":"test://template/{id}/data"},"argument":{"name":"id","value":"1"}}`)

	// Each request says what it wants to hear of the log.
	for _, level := range []string{``, `"io.modelcontextprotocol/logLevel":"debug"`, `"io.modelcontextprotocol/logLevel":"error"`} {
		for _, tool := range []string{"test_tool_with_logging", "test_logging_tool"} {
			p.do("tools/call", `{"name":"@`+tool+`","arguments":{},"_meta":{`+level+`}}`)
		}
	}
	p.plainCalls()
	p.call("test_reconnection", `{}`)
	if m := p.call("test_missing_capability", `{}`); !p.can("sampling") && errorOf(t, m).Code != -32021 {
		t.Errorf("a capability that the host has not: %s", m.Raw)
	}

	// There is no way to ask the host while a call goes on.
	p.call("test_sampling", `{"prompt":"say hello"}`)
	p.call("test_elicitation", `{"message":"who?"}`)
	p.call("test_elicitation_sep1034_defaults", `{}`)
	p.call("test_elicitation_sep1330_enums", `{}`)

	// Instead the server ends the call with what it wants to know, and the host makes
	// it again.
	as := func(_ map[string]string, state string) string { return state }
	for _, tool := range []string{"elicitation", "sampling", "list_roots", "request_state", "multiple_inputs", "tampered_state"} {
		p.rounds("tools/call", `{"name":"@test_input_required_result_`+tool+`","arguments":{}}`, 1, as)
	}
	p.rounds("tools/call", `{"name":"@test_input_required_result_multi_round","arguments":{}}`, 2, as)
	asked := 1
	if p.capabilities == `{}` {
		asked = 0
	}
	p.rounds("tools/call", `{"name":"@test_input_required_result_capabilities","arguments":{}}`, asked, as)
	p.rounds("prompts/get", `{"name":"@test_input_required_result_prompt"}`, 1, as)
	p.rounds("tools/call", `{"name":"@test_input_required_result_elicitation","arguments":{"n":9007199254740993},"_meta":{"progressToken":"t"}}`, 3, func(responses map[string]string, state string) string {
		responses["user_name"] = `{"action":"decline"}`
		return state
	})
	p.rounds("tools/call", `{"name":"@test_input_required_result_elicitation"}`, 3, func(responses map[string]string, state string) string {
		responses["none"] = responses["user_name"]
		delete(responses, "user_name")
		return `"a \u0022state\u0022 of the host's own <&> ü"`
	})
	p.rounds("tools/call", `{"name":"@test_input_required_result_multiple_inputs","arguments":{}}`, 3, func(responses map[string]string, state string) string {
		delete(responses, "greeting")
		return state
	})
	for _, tool := range []string{"request_state", "tampered_state"} {
		p.rounds("tools/call", `{"name":"@test_input_required_result_`+tool+`","arguments":{}}`, 1, func(_ map[string]string, state string) string {
			return strings.TrimSuffix(state, `"`) + `-TAMPERED"`
		})
	}

	// Cancelled while it goes on.
	p.each(func(s *side) {
		id := s.host.Post("tools/call", s.params(`{"name":"@test_tool_with_progress","arguments":{},"_meta":{"progressToken":"given up"}}`))
		s.until("notifications/progress")
		s.cancelled = append(s.cancelled, id, `"given up"`)
		s.host.Send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":` + id + `}}`)
	})
	p.compare("a cancelled call")
	p.refusals(
		refusal{"ping", `{}`, -32601},
		refusal{"initialize", `{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"host","version":"1"}}`, -32601},
		refusal{"logging/setLevel", `{"level":"info"}`, -32601},
		refusal{"resources/subscribe", `{"uri":"test://watched-resource"}`, -32601},
		refusal{"subscriptions/listen", `{}`, -32602},
	)

	p.listen(`{"toolsListChanged":true,"promptsListChanged":true,"resourcesListChanged":true,"resourceSubscriptions":["test://watched-resource"]}`)
	second := map[*side]string{}
	if p.remote { // on stdio the server forgets the first stream for the second
		second = p.listen(`{"promptsListChanged":true}`)
		p.streams = 2
	}
	p.changes()
	for s, id := range second {
		s.cancelled = append(s.cancelled, id)
		s.host.Send(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":` + id + `}}`)
	}
	p.updated()
	p.call("test_simple_text", `{}`)
	p.complete()
}

const modernRevision = "2026-07-28"

// rounds makes a request, and makes it again with what the server wants to know,
// until it has its answer, or so often. change makes something else of the host's
// answers, by their keys, and of the server's state, which is as it was written.
func (p *pair) rounds(method, params string, times int, change func(responses map[string]string, state string) string) {
	p.t.Helper()
	p.note(params)
	more := map[*side]string{}
	for n := 0; ; n++ {
		ids := map[*side]string{}
		p.each(func(s *side) { ids[s] = s.host.Post(method, s.params(strings.TrimSuffix(params, "}")+more[s]+"}")) })
		asks := 0
		p.each(func(s *side) {
			m := s.finish(ids[s], method+" "+params, nil)
			var result struct {
				Type     string `json:"resultType"`
				Requests map[string]struct {
					Method string          `json:"method"`
					Params json.RawMessage `json:"params"`
				} `json:"inputRequests"`
				State json.RawMessage `json:"requestState"`
			}
			if json.Unmarshal(m.Result, &result) != nil || result.Type != "input_required" {
				return
			}
			asks++
			responses := map[string]string{}
			for key, r := range result.Requests {
				responses[key] = answerOf(mcptest.Message{Method: r.Method, Params: r.Params})
			}
			state := change(responses, string(result.State))
			var members []string
			for _, key := range slices.Sorted(maps.Keys(responses)) {
				members = append(members, fmt.Sprintf("%q:%s", key, responses[key]))
			}
			more[s] = `,"inputResponses":{` + strings.Join(members, ",") + "}"
			if state != "" {
				more[s] += `,"requestState":` + state
			}
		})
		p.compare(fmt.Sprintf("%s %s%s", method, params, more[p.direct]))
		if asks < 2 || n == times {
			if n != times {
				p.t.Errorf("%s %s took %d rounds, not %d", method, params, n, times)
			}
			return
		}
	}
}

// speaker is a raw conversation.
type speaker interface {
	Send(line string)
	Post(method, params string) string
	Await(what string, wanted func(mcptest.Message) bool) mcptest.Message
	Seen() []mcptest.Message
}

// side is one of two conversations.
type side struct {
	name      string
	host      speaker
	prefix    string // of names
	envelope  string // what a modern host says with each request, as members of _meta
	from      int    // so many messages are in the script
	script    []string
	cancelled []string        // the ids of cancelled calls, and their progress tokens
	open      map[string]bool // the ids of what the server has asked and the host not answered
	news      map[string]bool // what came on its own, as it came
}

// params writes out the names in params, which begin with @, and adds what a modern
// host says with each request.
func (s *side) params(params string) string {
	params = strings.ReplaceAll(params, `"@`, `"`+s.prefix)
	if s.envelope == "" {
		return params
	}
	if before, after, ok := strings.Cut(params, `"_meta":{`); ok {
		if !strings.HasPrefix(after, "}") {
			after = "," + after
		}
		return before + `"_meta":{` + s.envelope + after
	}
	rest := strings.TrimPrefix(params, "{")
	if !strings.HasPrefix(rest, "}") {
		rest = "," + rest
	}
	return `{"_meta":{` + s.envelope + "}" + rest
}

var askedID = regexp.MustCompile(`"(id|requestId)":("haldir-\d+"|\d+)`)

// same takes out of a message what differs by right:
//   - the prefix of names;
//   - the ids of the server's requests, which haldir numbers for all servers;
//   - whom else a cache may give a result to: haldir says nobody, since what policy
//     lets one session see it may hide from another.
func (s *side) same(m mcptest.Message) string {
	raw := m.Raw
	if s.prefix != "" {
		raw = strings.ReplaceAll(raw, s.prefix, "")
	}
	if m.Method != "" && m.ID != nil || m.Method == "notifications/cancelled" {
		raw = askedID.ReplaceAllString(raw, `"$1":0`)
	}
	if s.envelope != "" && s.name == "direct" {
		raw = strings.Replace(raw, `"cacheScope":"public"`, `"cacheScope":"private"`, 1)
	}
	return raw
}

// tidings is a message that belongs to a stream rather than to a request, with its
// members sorted and without params that are empty. haldir writes it itself: what is
// told, and the mark of the stream it is told on, are of haldir's own lists and
// streams.
func tidings(raw string) string {
	var all map[string]any
	_ = json.Unmarshal([]byte(raw), &all) // it was read before
	if params, ok := all["params"].(map[string]any); ok && len(params) == 0 {
		delete(all, "params")
	}
	sorted, _ := json.Marshal(all)
	return string(sorted)
}

// take returns the next message of the conversation proper. Set aside is
//   - what a server says on its own: when it comes, and how often, is no part of
//     the conversation, and haldir says it of its own list, once for several
//     changes;
//   - what still comes for a cancelled call, which a host ignores and haldir keeps
//     to itself;
//   - that a question is void which the host has answered: it crosses the answer.
func (s *side) take(what string) mcptest.Message {
	n := 0
	return s.host.Await(s.name+": "+what, func(m mcptest.Message) bool {
		if n++; n <= s.from {
			return false
		}
		s.from = n
		switch {
		case m.Method == "notifications/resources/updated", strings.HasSuffix(m.Method, "/list_changed"):
			s.news[tidings(m.Raw)] = true
		case m.Method == "" && slices.Contains(s.cancelled, string(m.ID)):
		case m.Method == "notifications/progress" && slices.Contains(s.cancelled, paramOf(m, "progressToken")):
		case m.Method == "notifications/cancelled" && !s.open[paramOf(m, "requestId")]:
		default:
			return true
		}
		return false
	})
}

// paramOf returns a member of the params as it is written.
func paramOf(m mcptest.Message, name string) string {
	var p map[string]json.RawMessage
	_ = json.Unmarshal(m.Params, &p)
	return string(p[name])
}

func (s *side) note(m mcptest.Message) {
	s.script = append(s.script, s.same(m))
	if m.Method != "" && m.ID != nil {
		s.open[string(m.ID)] = true
	}
}

// ask sends a request and returns its response, which is not in the script.
func (s *side) ask(method, params string) mcptest.Message {
	id := s.host.Post(method, params)
	for {
		m := s.take("the answer to " + method)
		if m.Method == "" && string(m.ID) == id {
			return m
		}
		s.note(m)
	}
}

// until writes down what comes until the first message of a method.
func (s *side) until(method string) {
	for {
		m := s.take(method)
		s.note(m)
		if m.Method == method {
			return
		}
	}
}

// told waits for what a server says on its own.
func (s *side) told(method string, times int) {
	n := 0
	s.host.Await(s.name+": "+method, func(m mcptest.Message) bool {
		if m.Method == method {
			n++
		}
		return n == times
	})
}

// heard counts what a server has said on its own until now.
func (s *side) heard(method string) (n int) {
	for _, m := range s.host.Seen() {
		if m.Method == method {
			n++
		}
	}
	return n
}

// finish writes down what comes until the response to id, and answers what the
// server asks meanwhile.
func (s *side) finish(id, what string, answers []string) mcptest.Message {
	begun := len(s.script)
	for {
		m := s.take("the answer to " + what)
		s.note(m)
		switch {
		case m.Method == "" && string(m.ID) == id:
			// The server asks several things at once in no order; the places stay.
			var asked []string
			for _, said := range s.script[begun:] {
				if isQuestion(said) {
					asked = append(asked, said)
				}
			}
			slices.Sort(asked)
			for i, said := range s.script[begun:] {
				if isQuestion(said) {
					s.script[begun+i], asked = asked[0], asked[1:]
				}
			}
			return m
		case m.Method != "" && m.ID != nil:
			answer := `"result":` + answerOf(m)
			if len(answers) > 0 {
				answer = answers[0]
			}
			delete(s.open, string(m.ID))
			s.host.Send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,%s}`, m.ID, answer))
		}
	}
}

func isQuestion(said string) bool { return strings.Contains(said, `,"id":0,"method":`) }

// answerOf is what the host says to whatever it is asked.
func answerOf(m mcptest.Message) string {
	switch m.Method {
	case "roots/list":
		return `{"roots":[{"uri":"file:///srv/project%20one","name":"project"},{"uri":"file:///srv/two"}]}`
	case "sampling/createMessage":
		return `{"role":"assistant","content":{"type":"text","text":"hello <&> ü 🎉 \u2028"},"model":"test-model","stopReason":"endTurn"}`
	}
	content := `{"name":"Ann <&> ü"}`
	for said, c := range map[string]string{
		"who & why?": `{"username":"ann"}`, "again": `{"username":"ann"}`, "Please confirm": `{"ok":true}`, "favorite color": `{"color":"green"}`, "provide context": `{"context":"c"}`,
		"Test defaults": `{"name":"Jo","age":31,"score":9.50,"status":"active","verified":false}`,
		"Test enum":     `{"untitledSingle":"option1","titledSingle":"value2","legacyEnum":"opt3","untitledMulti":["option1","option2"],"titledMulti":["value1"]}`,
	} {
		var p struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(m.Params, &p) == nil && strings.Contains(p.Message, said) {
			content = c
		}
	}
	return `{"action":"accept","content":` + content + `}`
}

// pair is the two conversations, which go side by side.
type pair struct {
	t               *testing.T
	state           string
	direct, through *side
	remote          bool
	capabilities    string
	streams         int  // that tell of changed prompts
	waited          bool // for the change of a resource
	tools           []string
	called          map[string]bool
}

func newPair(t *testing.T, state string, direct, through speaker, prefix string) *pair {
	return &pair{
		t: t, state: state, streams: 1, called: map[string]bool{},
		direct:  &side{name: "direct", host: direct, open: map[string]bool{}, news: map[string]bool{}},
		through: &side{name: "through haldir", host: through, prefix: prefix, open: map[string]bool{}, news: map[string]bool{}},
	}
}

func (p *pair) can(kind string) bool { return strings.Contains(p.capabilities, kind) }

func (p *pair) each(f func(s *side)) {
	f(p.direct)
	f(p.through)
}

// compare compares what was said since the last time.
func (p *pair) compare(what string) {
	p.t.Helper()
	if diff := cmp.Diff(p.direct.script, p.through.script); diff != "" {
		p.t.Errorf("%s: %s (-direct +haldir):\n%s", p.state, what, diff)
	}
	p.direct.script, p.through.script = nil, nil
}

// do makes the same request of both, and returns what haldir has answered.
func (p *pair) do(method, params string, answers ...string) mcptest.Message {
	p.t.Helper()
	p.note(params)
	direct, through := p.direct.host.Post(method, p.direct.params(params)), p.through.host.Post(method, p.through.params(params))
	p.direct.finish(direct, method+" "+params, answers)
	m := p.through.finish(through, method+" "+params, answers)
	p.compare(method + " " + params)
	return m
}

var nameIn = regexp.MustCompile(`^\{"name":"@(\w+)"`)

// note notes which tool is called.
func (p *pair) note(params string) {
	if m := nameIn.FindStringSubmatch(params); m != nil {
		p.called[m[1]] = true
	}
}

// complete checks that all tools were called.
func (p *pair) complete() {
	p.t.Helper()
	for _, tool := range p.tools {
		if !p.called[tool] && (!strings.HasPrefix(tool, "test_trigger_") || p.direct.envelope != "") {
			p.t.Errorf("the tool %s is not called by this test", tool)
		}
	}
}

func (p *pair) call(tool, arguments string, answers ...string) mcptest.Message {
	p.t.Helper()
	return p.do("tools/call", mcptest.CallParams("@"+tool, arguments, ""), answers...)
}

// list compares a list, its elements as they are and in their order. The rest of the
// result is haldir's, which puts the lists of all servers together: it has its own
// name in _meta, says nothing of caches to a host that does not know them, and to one
// that does only for how short a time and for whom what policy has let through holds.
// Of the tools its own three stand at the end.
func (p *pair) list(method, member string) {
	p.t.Helper()
	p.each(func(s *side) {
		m := s.ask(method, s.params(`{}`))
		var result map[string]json.RawMessage
		var elements []json.RawMessage
		if err := json.Unmarshal(m.Result, &result); err != nil {
			p.t.Fatalf("%s: %s: %v: %s", s.name, method, err, m.Raw)
		}
		if err := json.Unmarshal(result[member], &elements); err != nil || len(elements) == 0 {
			p.t.Fatalf("%s: %s: %v: %s", s.name, method, err, m.Raw)
		}
		if own := len(elements) - 3; s == p.through && method == "tools/list" {
			for _, tool := range elements[max(own, 0):] {
				if !strings.Contains(string(tool), `"name":"haldir_`) {
					p.t.Errorf("no tool of haldir's own: %s", tool)
				}
			}
			elements = elements[:max(own, 0)]
		}
		for _, e := range elements {
			var tool realTool
			if json.Unmarshal(e, &tool) == nil && s == p.direct && method == "tools/list" {
				p.tools = append(p.tools, tool.Name)
			}
			s.note(mcptest.Message{Raw: string(e)})
		}
		for _, name := range []string{member, "ttlMs", "cacheScope", "_meta"} {
			delete(result, name)
		}
		rest, _ := json.Marshal(result)
		s.note(mcptest.Message{Raw: string(rest)})
	})
	p.compare(method)
}

func (p *pair) lists() {
	p.t.Helper()
	p.list("tools/list", "tools")
	p.list("resources/list", "resources")
	p.list("resources/templates/list", "resourceTemplates")
	p.list("prompts/list", "prompts")
}

// end compares what the servers have said on their own. Whether a subscription sees a
// change is a matter of time where nobody waits for it.
func (p *pair) end() {
	p.t.Helper()
	p.compare("the end")
	p.each(func(s *side) {
		maps.DeleteFunc(s.news, func(told string, _ bool) bool { return !p.waited && strings.Contains(told, "resources/updated") })
	})
	if diff := cmp.Diff(p.direct.news, p.through.news); diff != "" {
		p.t.Errorf("%s: what the servers said on their own (-direct +haldir):\n%s", p.state, diff)
	}
}

// goEverythingHTTP starts the server on streamable HTTP.
func goEverythingHTTP(t *testing.T, server string, flags ...string) (url string) {
	t.Helper()
	for range 5 {
		addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
		s := mcptest.Start(t, exec.Command(server, append([]string{"-http", addr}, flags...)...))
		for limit := time.Now().Add(time.Minute); time.Now().Before(limit) && !strings.Contains(s.Stderr(), "bind: "); time.Sleep(5 * time.Millisecond) {
			if c, err := net.Dial("tcp", addr); err == nil {
				_ = c.Close()
				return "http://" + addr
			}
		}
	}
	t.Fatal("the everything server does not listen")
	return ""
}

// httpHost is a host that speaks streamable HTTP.
type httpHost struct {
	t       *testing.T
	url     string
	client  *http.Client
	ctx     context.Context
	wg      sync.WaitGroup
	lastID  int
	modern  bool
	cancels map[string]func() // by the id of a request

	mu      sync.Mutex
	version string
	session string
	seen    []mcptest.Message
	news    chan struct{} // closed and replaced with every message
}

// newHTTPHost makes a host; a version is that of a modern one.
func newHTTPHost(t *testing.T, url, version string) *httpHost {
	ctx, cancel := context.WithCancel(context.Background())
	h := &httpHost{t: t, url: url, client: &http.Client{Transport: &http.Transport{}}, ctx: ctx, modern: version != "", version: version, cancels: map[string]func(){}, news: make(chan struct{})}
	t.Cleanup(func() { cancel(); h.wg.Wait(); h.client.CloseIdleConnections() })
	return h
}

// Post sends a request and returns its id.
func (h *httpHost) Post(method, params string) string {
	h.lastID++
	line := fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":%q}`, h.lastID, method)
	if params != "" {
		line = fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":%q,"params":%s}`, h.lastID, method, params)
	}
	h.Send(line)
	return strconv.Itoa(h.lastID)
}

// Send sends one message. It waits until the server has taken what has no answer.
func (h *httpHost) Send(line string) {
	h.t.Helper()
	m, err := parse([]byte(line))
	if err != nil {
		h.t.Fatalf("%v: %s", err, line)
	}
	switch {
	case m.Method != "" && m.ID != nil:
		ctx, cancel := context.WithCancel(h.ctx)
		h.cancels[string(m.ID)] = cancel
		h.wg.Go(func() { defer cancel(); h.exchange(ctx, m, line) })
		return
	case h.modern && m.Method == "notifications/cancelled": // the end of its stream says it
		h.cancels[paramOf(m, "requestId")]()
		return
	}
	resp, err := h.do(h.ctx, http.MethodPost, line, h.header(m))
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusAccepted {
		h.t.Fatalf("HTTP %d to %s: %s", resp.StatusCode, line, body)
	}
}

// header returns the headers of a message.
func (h *httpHost) header(m mcptest.Message) http.Header {
	out := http.Header{}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.version != "" {
		out.Set("Mcp-Protocol-Version", h.version)
	}
	if h.session != "" {
		out.Set("Mcp-Session-Id", h.session)
	}
	if !h.modern {
		return out
	}
	var p struct {
		Name      string `json:"name"`
		URI       string `json:"uri"`
		Arguments struct {
			Region *string `json:"region"`
		} `json:"arguments"`
	}
	_ = json.Unmarshal(m.Params, &p) // of another type the server refuses it
	out.Set("Mcp-Method", m.Method)
	switch m.Method {
	case "tools/call", "prompts/get":
		out.Set("Mcp-Name", p.Name)
	case "resources/read":
		out.Set("Mcp-Name", p.URI)
	}
	if r := p.Arguments.Region; r != nil {
		if strings.TrimSpace(*r) != *r || strings.ContainsFunc(*r, func(c rune) bool { return c < ' ' || c > '~' }) {
			*r = "=?base64?" + base64.StdEncoding.EncodeToString([]byte(*r)) + "?="
		}
		out.Set("Mcp-Param-Region", *r)
	}
	return out
}

func (h *httpHost) do(ctx context.Context, method, body string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, h.url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = header
	req.Header.Set("Accept", "application/json, text/event-stream")
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return h.client.Do(req)
}

// exchange makes a request and takes all that comes for it. What is no message
// becomes an error that says so.
func (h *httpHost) exchange(ctx context.Context, m mcptest.Message, line string) {
	resp, err := h.do(ctx, http.MethodPost, line, h.header(m))
	if err != nil {
		h.fail(ctx, m, err.Error())
		return
	}
	defer func() { _ = resp.Body.Close() }()
	if s := resp.Header.Get("Mcp-Session-Id"); s != "" && m.Method == "initialize" {
		h.mu.Lock()
		h.session, h.version = s, mcptest.Revision
		h.mu.Unlock()
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		h.stream(resp.Body)
		return
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil {
		err = h.take(body)
	}
	if err != nil {
		h.fail(ctx, m, fmt.Sprintf("HTTP %d: %v: %s", resp.StatusCode, err, body))
	}
}

func (h *httpHost) fail(ctx context.Context, m mcptest.Message, why string) {
	if ctx.Err() != nil {
		return // nobody waits for it
	}
	raw, _ := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": m.ID, "error": map[string]any{"code": 0, "message": why}})
	_ = h.take(raw)
}

// listen opens the stream on which the server speaks of its own accord.
func (h *httpHost) listen() {
	h.t.Helper()
	resp, err := h.do(h.ctx, http.MethodGet, "", h.header(mcptest.Message{}))
	if err != nil {
		h.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		h.t.Fatalf("GET: HTTP %d", resp.StatusCode)
	}
	h.wg.Go(func() {
		defer func() { _ = resp.Body.Close() }()
		h.stream(resp.Body)
	})
}

// stream takes the messages of a stream of events.
func (h *httpHost) stream(body io.Reader) {
	in := bufio.NewReader(body)
	var data []byte
	for {
		line, err := in.ReadBytes('\n')
		line = bytes.TrimRight(line, "\r\n")
		if d, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			data = append(data, bytes.TrimPrefix(d, []byte(" "))...)
		} else if len(line) == 0 && len(data) > 0 {
			if err := h.take(data); err != nil {
				h.t.Errorf("an event that is no message: %v: %s", err, data)
			}
			data = nil
		}
		if err != nil {
			return
		}
	}
}

// take notes one message.
func (h *httpHost) take(raw []byte) error {
	m, err := parse(bytes.Clone(bytes.TrimSpace(raw)))
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = append(h.seen, m)
	close(h.news)
	h.news = make(chan struct{})
	return nil
}

func parse(raw []byte) (mcptest.Message, error) {
	var m struct {
		Method string          `json:"method"`
		ID     json.RawMessage `json:"id"`
		Params json.RawMessage `json:"params"`
		Result json.RawMessage `json:"result"`
		Error  json.RawMessage `json:"error"`
	}
	err := json.Unmarshal(raw, &m)
	return mcptest.Message{Raw: string(raw), Method: m.Method, ID: m.ID, Params: m.Params, Result: m.Result, Error: m.Error}, err
}

// Seen returns all messages so far.
func (h *httpHost) Seen() []mcptest.Message {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.seen)
}

// Await returns the first message, from the beginning of the conversation, that is
// wanted.
func (h *httpHost) Await(what string, wanted func(mcptest.Message) bool) mcptest.Message {
	h.t.Helper()
	limit := time.After(time.Minute) // it only ends tests that hang
	from := 0
	for {
		h.mu.Lock()
		seen, news := h.seen, h.news
		h.mu.Unlock()
		for ; from < len(seen); from++ {
			if wanted(seen[from]) {
				return seen[from]
			}
		}
		select {
		case <-news:
		case <-limit:
			h.t.Fatalf("%s did not come", what)
		}
	}
}
