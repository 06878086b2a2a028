package main_test

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// whole is one conversation with server-everything, directly or through haldir,
// by a host with given capabilities. It writes down all that comes.
type whole struct {
	t      *testing.T
	s      *mcptest.Session
	prefix string // of names through haldir
	script []string
	done   map[string]bool // requests of the server that are answered
}

var ownID = regexp.MustCompile(`"haldir-\d+"`)

// same takes out of a message what differs by right: the prefix of names, and the
// ids of the server's requests.
func (w *whole) same(raw string) string {
	if w.prefix != "" {
		raw = strings.ReplaceAll(raw, w.prefix, "")
	}
	return ownID.ReplaceAllString(raw, "0")
}

func (w *whole) ask(method, params string) mcptest.Message {
	m := w.s.Ask(method, params)
	w.script = append(w.script, method+" → "+w.same(m.Outcome()))
	return m
}

// answer waits for a request of the server and answers it.
func (w *whole) answer(method, result string) {
	m := w.s.Await(method, func(m mcptest.Message) bool { return m.Method == method && m.ID != nil && !w.done[m.Raw] })
	w.done[m.Raw] = true
	w.script = append(w.script, "asked "+method+" "+string(m.Params))
	w.s.Send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, result))
}

func (w *whole) name(n string) string { return w.prefix + n }

// everything uses every feature that the server has.
func (w *whole) everything(capabilities string) {
	hello := w.s.Ask("initialize", fmt.Sprintf(`{"protocolVersion":%q,"capabilities":%s,"clientInfo":{"name":"host","version":"1"}}`, mcptest.Revision, capabilities))
	var greeting struct {
		Capabilities json.RawMessage `json:"capabilities"`
		Instructions string          `json:"instructions"`
		Version      string          `json:"protocolVersion"`
	}
	if err := json.Unmarshal(hello.Result, &greeting); err != nil {
		w.t.Fatal(err)
	}
	var declared map[string]any
	_ = json.Unmarshal(greeting.Capabilities, &declared)
	sorted, _ := json.Marshal(declared)
	w.script = append(w.script, "hello "+greeting.Version+" "+string(sorted)+" "+greeting.Instructions)
	w.s.Notify("notifications/initialized")
	if strings.Contains(capabilities, "roots") {
		w.answer("roots/list", `{"roots":[{"uri":"file:///srv/project","name":"project"}]}`)
	}

	w.ask("resources/list", `{}`)
	w.ask("resources/templates/list", `{}`)
	w.ask("prompts/list", `{}`)
	w.ask("resources/read", `{"uri":"demo://resource/static/document/architecture.md"}`)
	w.ask("resources/read", `{"uri":"demo://resource/static/document/none.md"}`)
	w.ask("resources/read", `{"uri":"demo://resource/dynamic/text/nothing"}`)
	w.ask("prompts/get", fmt.Sprintf(`{"name":%q}`, w.name("simple-prompt")))
	w.ask("prompts/get", fmt.Sprintf(`{"name":%q,"arguments":{"city":"Paris","state":"Texas"}}`, w.name("args-prompt")))
	w.ask("completion/complete", fmt.Sprintf(`{"ref":{"type":"ref/prompt","name":%q},"argument":{"name":"department","value":"S"}}`, w.name("completable-prompt")))
	w.ask("completion/complete", `{"ref":{"type":"ref/resource","uri":"demo://resource/dynamic/text/{resourceId}"},"argument":{"name":"resourceId","value":"1"}}`)
	w.ask("resources/subscribe", `{"uri":"demo://resource/dynamic/text/1"}`)
	w.ask("resources/unsubscribe", `{"uri":"demo://resource/dynamic/text/1"}`)
	w.ask("logging/setLevel", `{"level":"debug"}`)
	w.ask("logging/setLevel", `{"level":"loud"}`)
	if m := w.s.Ask("no/such/method", `{}`); m.Error == nil || !strings.Contains(string(m.Error), "-32601") {
		w.t.Errorf("a method that is none: %s", m.Raw)
	}
	call := func(tool, args string) string {
		return w.s.Post("tools/call", mcptest.CallParams(w.name(tool), args, ""))
	}
	result := func(id string) { w.script = append(w.script, "result "+w.same(w.s.Wait(id).Outcome())) }
	if strings.Contains(capabilities, "sampling") {
		id := call("trigger-sampling-request", `{"prompt":"say hello","maxTokens":20}`)
		w.answer("sampling/createMessage", `{"role":"assistant","content":{"type":"text","text":"hello"},"model":"test","stopReason":"endTurn"}`)
		result(id)
	}
	if strings.Contains(capabilities, "elicitation") {
		id := call("trigger-elicitation-request", `{}`)
		w.answer("elicitation/create", `{"action":"accept","content":{"name":"Ann","check":true}}`)
		result(id)
		id = call("trigger-elicitation-request", `{}`)
		w.answer("elicitation/create", `{"action":"decline"}`)
		result(id)
	}
	w.task()
	if strings.Contains(capabilities, "roots") {
		result(call("get-roots-list", `{}`))
	}
}

var taskIDs = regexp.MustCompile(`"taskId":"([^"]+)"`)

// task makes a task, asks for it and waits for its result.
func (w *whole) task() {
	made := w.s.Ask("tools/call", fmt.Sprintf(`{"name":%q,"arguments":{"topic":"rings"},"task":{"ttl":60000}}`, w.name("simulate-research-query")))
	id := taskIDs.FindStringSubmatch(made.Raw)
	if id == nil {
		w.t.Fatalf("no task was made: %s", made.Raw)
	}
	mask := func(raw string) string {
		return isoTime.ReplaceAllString(strings.ReplaceAll(w.same(raw), id[1], "<task>"), "<time>")
	}
	get := w.s.Ask("tasks/get", fmt.Sprintf(`{"taskId":%q}`, id[1]))
	done := w.s.Ask("tasks/result", fmt.Sprintf(`{"taskId":%q}`, id[1]))
	list := w.s.Ask("tasks/list", `{}`)
	none := w.s.Ask("tasks/get", `{"taskId":"none"}`)
	if !strings.Contains(list.Raw, id[1]) || get.Error != nil {
		w.t.Errorf("the task %s is not listed: %s; %s", id[1], list.Raw, get.Raw)
	}
	w.script = append(w.script, "task "+mask(done.Outcome()), "no task "+mask(none.Outcome()))
}

// An agent cannot tell haldir from its server, whatever it can do itself.
func TestRealEverythingWhole(t *testing.T) {
	t.Parallel()
	command := mcptest.NPM(t, mcptest.Everything, "mcp-server-everything")
	for _, capabilities := range []string{
		`{}`, `{"roots":{"listChanged":true}}`, `{"sampling":{}}`, `{"elicitation":{}}`, `{"roots":{},"sampling":{},"elicitation":{"form":{},"url":{}}}`,
	} {
		t.Run(capabilities, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			cmd := exec.Command(command[0], command[1], "stdio")
			cmd.Dir, cmd.Env = dir, baseEnv()
			direct := &whole{t: t, s: mcptest.Start(t, cmd), done: map[string]bool{}}
			direct.everything(capabilities)

			h := mcptest.NewHaldir(t, program(t), fmt.Sprintf(
				"version: 1\nupstreams:\n  - {name: everything, command: %q, args: [%q, stdio], cwd: %q, start: eager}\n", command[0], command[1], dir))
			h.Env = baseEnv()
			for _, state := range []string{"cold", "warm"} {
				through := &whole{t: t, s: h.Serve(t), prefix: "everything__", done: map[string]bool{}}
				through.everything(capabilities)
				through.s.End()
				want, got := direct.script, through.script
				if state == "cold" { // initialize cannot wait for a server that was never seen
					want, got = want[1:], got[1:]
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-direct +haldir):\n%s", state, diff)
				}
			}
		})
	}
}
