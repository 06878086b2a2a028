package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// peer is a raw client: of a server itself, or of haldir before it.
type peer interface {
	Ask(method, params string) mcptest.Message
	Exchange(method, params, token string) (mcptest.Message, []string)
	Initialize(version string) mcptest.Message
}

// realTool is a tool as it is listed.
type realTool struct {
	Name string `json:"name"`
	raw  string
}

// listRaw returns all pages of tools/list.
func listRaw(t *testing.T, p peer) []realTool {
	t.Helper()
	var out []realTool
	params := "{}"
	for {
		var list struct {
			Tools      []json.RawMessage `json:"tools"`
			NextCursor *string           `json:"nextCursor"`
		}
		m := p.Ask("tools/list", params)
		if err := json.Unmarshal(m.Result, &list); err != nil || m.Error != nil {
			t.Fatalf("tools/list: %v: %s", err, m.Raw)
		}
		for _, raw := range list.Tools {
			tool := realTool{raw: string(raw)}
			if err := json.Unmarshal(raw, &tool); err != nil {
				t.Fatal(err)
			}
			out = append(out, tool)
		}
		if list.NextCursor == nil {
			return out
		}
		params = fmt.Sprintf(`{"cursor":%q}`, *list.NextCursor)
	}
}

// exposedName is what any host accepts without changing it.
var exposedName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,89}$`)

// sameTools checks that haldir lists the tools of a server, in its order, byte
// for byte but for the name, and then its own. It returns the exposed names by
// the server's own.
func sameTools(t *testing.T, direct, through peer, upstream string) map[string]string {
	t.Helper()
	want, got := listRaw(t, direct), listRaw(t, through)
	var own []string
	for len(got) > 0 && strings.HasPrefix(got[len(got)-1].Name, "haldir_") {
		own = append([]string{got[len(got)-1].Name}, own...)
		got = got[:len(got)-1]
	}
	if diff := cmp.Diff([]string{"haldir_check_permission", "haldir_get_audit", "haldir_get_spend"}, own); diff != "" {
		t.Errorf("haldir's own tools (-want +got):\n%s", diff)
	}
	if len(want) != len(got) {
		t.Fatalf("the server lists %d tools, haldir %d of it: %v", len(want), len(got), got)
	}
	names := map[string]string{}
	for i, w := range want {
		exposed := got[i].Name
		names[w.Name] = exposed
		if !exposedName.MatchString(exposed) || !strings.HasPrefix(exposed, upstream+"__") {
			t.Errorf("%s is exposed as %q", w.Name, exposed)
		}
		if exposedName.MatchString(w.Name) && exposed != upstream+"__"+w.Name {
			t.Errorf("%s is exposed as %q, though its name needs no change", w.Name, exposed)
		}
		member := func(name string) string { return fmt.Sprintf(`"name":%q`, name) }
		if strings.Count(w.raw, member(w.Name)) != 1 {
			t.Fatalf("the test cannot tell the name in %s", w.raw)
		}
		if diff := cmp.Diff(strings.Replace(w.raw, member(w.Name), member(exposed), 1), got[i].raw); diff != "" {
			t.Errorf("the definition of %s changed (-direct +haldir):\n%s", w.Name, diff)
		}
	}
	if len(names) != len(want) || len(names) != len(slices.Compact(slices.Sorted(mapValues(names)))) {
		t.Errorf("names are not unique: %v", names)
	}
	return names
}

func mapValues(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// realCall is a call to make directly and through haldir.
type realCall struct {
	tool, args string
	token      string // of progress, JSON
	extra      string // more params, such as ,"task":{}
}

// varying names the tools whose result cannot be the same twice, with what of it
// varies and why.
type varying map[string]struct {
	why  string
	mask func(string) string
}

// sameCalls checks that calls have the same outcome, byte for byte, and the same
// progress before it. Every tool must be among the calls.
func sameCalls(t *testing.T, direct, through peer, names map[string]string, calls []realCall, vary varying) {
	t.Helper()
	sameCallsBut(t, direct, through, names, calls, vary, func(want, got []string) string { return cmp.Diff(want, got) })
}

// sameCallsBut does so with another comparison of the progress.
func sameCallsBut(t *testing.T, direct, through peer, names map[string]string, calls []realCall, vary varying, differ func(want, got []string) string) {
	t.Helper()
	left := map[string]bool{}
	for name := range names {
		left[name] = true
	}
	for _, c := range calls {
		exposed, ok := names[c.tool]
		if !ok {
			t.Errorf("there is no tool %s to call", c.tool)
			continue
		}
		delete(left, c.tool)
		meta := ""
		if c.token != "" {
			meta = `{"progressToken":` + c.token + `,"example.com/extra":9007199254740993}`
		}
		params := func(name string) string {
			return strings.TrimSuffix(mcptest.CallParams(name, c.args, meta), "}") + c.extra + "}"
		}
		want, wantProgress := direct.Exchange("tools/call", params(c.tool), c.token)
		got, gotProgress := through.Exchange("tools/call", params(exposed), c.token)
		w, g := want.Outcome(), got.Outcome()
		if v, ok := vary[c.tool]; ok {
			w, g = v.mask(w), v.mask(g)
		}
		if diff := cmp.Diff(w, g); diff != "" {
			t.Errorf("%s %s answers differently (-direct +haldir):\n%s", c.tool, c.args, diff)
		}
		if diff := differ(wantProgress, gotProgress); diff != "" {
			t.Errorf("%s %s has other progress (-direct +haldir):\n%s", c.tool, c.args, diff)
		}
	}
	for name := range left {
		t.Errorf("the tool %s is not called by this test", name)
	}
}

// baseEnv is an environment of which haldir passes everything on to a child, so
// that a server run directly and one behind haldir have the same.
func baseEnv() []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "TMPDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

var (
	uuid      = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	hexID     = regexp.MustCompile(`"taskId":"[0-9a-f]+"`)
	isoTime   = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z`)
	clockTime = regexp.MustCompile(`\d{1,2}:\d\d:\d\d( [AP]M)?`)
	blob      = regexp.MustCompile(`"blob":"([^"]*)"`)
)

// everythingVaries are the tools of server-everything whose results vary.
var everythingVaries = varying{
	"toggle-simulated-logging":  {"it names the id of its HTTP session, which is random", func(s string) string { return uuid.ReplaceAllString(s, "<session>") }},
	"toggle-subscriber-updates": {"it names the id of its HTTP session, which is random", func(s string) string { return uuid.ReplaceAllString(s, "<session>") }},
	"get-resource-reference": {"its text, or the base64 of it, says what time it is", func(s string) string {
		return clockTime.ReplaceAllString(blob.ReplaceAllString(s, `"blob":"<time>"`), "<time>")
	}},
	"simulate-research-query": {"a task has a random id and says when it was made", func(s string) string {
		return isoTime.ReplaceAllString(hexID.ReplaceAllString(uuid.ReplaceAllString(s, "<task>"), `"taskId":"<task>"`), "<time>")
	}},
}

// everythingCalls call every tool with arguments that it takes and with some
// that it does not.
var everythingCalls = []realCall{
	{tool: "echo", args: `{"message":"hello <&> ü 🎉 \u2028 \"quoted\""}`},
	{tool: "echo", args: `{"message":7}`},
	{tool: "echo", args: `{}`},
	{tool: "echo"},
	{tool: "get-annotated-message", args: `{"messageType":"error","includeImage":true}`},
	{tool: "get-annotated-message", args: `{"messageType":"success"}`},
	{tool: "get-annotated-message", args: `{"messageType":"unheard of"}`},
	{tool: "get-env", args: `{}`},
	{tool: "get-env", args: `{"unexpected":true}`},
	{tool: "get-resource-links", args: `{"count":10}`},
	{tool: "get-resource-links", args: `{"count":11}`},
	{tool: "get-resource-links", args: `{"count":"3"}`},
	{tool: "get-resource-reference", args: `{"resourceType":"Text","resourceId":2}`},
	{tool: "get-resource-reference", args: `{"resourceType":"Blob","resourceId":3}`},
	{tool: "get-resource-reference", args: `{"resourceType":"Blob","resourceId":-1}`},
	{tool: "get-resource-reference", args: `{"resourceType":"Cloud"}`},
	{tool: "get-structured-content", args: `{"location":"Chicago"}`},
	{tool: "get-structured-content", args: `{"location":"Atlantis"}`},
	{tool: "get-sum", args: `{"a":0.1,"b":0.2}`},
	{tool: "get-sum", args: `{"a":9007199254740993,"b":0}`},
	{tool: "get-sum", args: `{"a":"1","b":2}`},
	{tool: "get-tiny-image", args: `{}`},
	{tool: "get-tiny-image", args: `{"size":1}`},
	{tool: "gzip-file-as-resource", args: `{"name":"a.gz","data":"data:text/plain,hello","outputType":"resource"}`},
	{tool: "gzip-file-as-resource", args: `{"name":"b.gz","data":"data:text/plain,hello","outputType":"resourceLink"}`},
	{tool: "gzip-file-as-resource", args: `{"name":"c.gz","data":"ftp://example.com/x"}`},
	{tool: "gzip-file-as-resource", args: `{"name":"d.gz","data":"no url"}`},
	{tool: "toggle-simulated-logging", args: `{}`},
	{tool: "toggle-simulated-logging", args: `{"stop":1}`},
	{tool: "toggle-subscriber-updates", args: `{}`},
	{tool: "toggle-subscriber-updates", args: `{"stop":1}`},
	{tool: "trigger-long-running-operation", args: `{"duration":0.2,"steps":4}`, token: `"a token"`},
	{tool: "trigger-long-running-operation", args: `{"duration":0.1,"steps":3}`, token: `7`},
	{tool: "trigger-long-running-operation", args: `{"duration":0.1,"steps":3}`},
	{tool: "trigger-long-running-operation", args: `{"duration":"long"}`, token: `8`},
	{tool: "simulate-research-query", args: `{"topic":"rings"}`},
	{tool: "simulate-research-query", args: `{"topic":"rings"}`, extra: `,"task":{"ttl":60000}`},
	{tool: "simulate-research-query", args: `{"topic":5}`, extra: `,"task":{"ttl":60000}`},
}

// TestRealEverything is bar 2 of issue 2: what server-everything lists and
// answers is, through haldir, what a client without capabilities gets from it.
func TestRealEverything(t *testing.T) {
	t.Parallel()
	command := mcptest.NPM(t, mcptest.Everything, "mcp-server-everything")
	t.Run("stdio", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		cmd := exec.Command(command[0], command[1], "stdio")
		cmd.Dir, cmd.Env = dir, baseEnv()
		direct := mcptest.Start(t, cmd)
		h := mcptest.NewHaldir(t, program(t), fmt.Sprintf(
			"version: 1\nupstreams:\n  - {name: everything, command: %q, args: [%q, stdio], cwd: %q, start: eager}\n", command[0], command[1], dir))
		h.Env = baseEnv()
		through := h.Serve(t)
		bar2(t, direct, through)
		through.End()
	})
	t.Run("http", func(t *testing.T) {
		t.Parallel()
		url, _ := everythingHTTP(t, command, freePort(t))
		h := mcptest.NewHaldir(t, program(t), fmt.Sprintf("version: 1\nupstreams:\n  - {name: everything, url: %q}\n", url))
		through := h.Serve(t)
		bar2(t, mcptest.Dial(t, url), through)
		through.End()
	})
}

func bar2(t *testing.T, direct, through peer) {
	t.Helper()
	direct.Initialize(mcptest.Revision)
	through.Initialize(mcptest.Revision)
	names := sameTools(t, direct, through, "everything")
	sameCalls(t, direct, through, names, everythingCalls, everythingVaries)
}

// everythingHTTP starts server-everything on streamable HTTP and waits until it
// listens.
func everythingHTTP(t *testing.T, command []string, port int) (url string, stop func()) {
	t.Helper()
	cmd := exec.Command(command[0], command[1], "streamableHttp")
	cmd.Env = append(os.Environ(), fmt.Sprintf("PORT=%d", port))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listens, ended := make(chan bool, 1), make(chan struct{})
	go func() {
		defer close(ended)
		var said strings.Builder
		buf := make([]byte, 4096)
		for {
			n, err := stderr.Read(buf)
			said.Write(buf[:n])
			if strings.Contains(said.String(), "listening on port") {
				select {
				case listens <- true:
				default:
				}
			}
			if err != nil {
				close(listens)
				_ = cmd.Wait()
				return
			}
		}
	}()
	stop = func() { _ = cmd.Process.Kill(); <-ended }
	t.Cleanup(stop)
	select {
	case ok := <-listens:
		if !ok {
			t.Fatal("server-everything ended at its start")
		}
	case <-time.After(time.Minute):
		t.Fatal("server-everything does not listen")
	}
	return fmt.Sprintf("http://127.0.0.1:%d/mcp", port), stop
}

// goSDKCalls call every tool of the Go SDK server.
var goSDKCalls = []realCall{
	{tool: "rich", args: `{"z":1,"a":{"B":[1.50,1e2,9007199254740993,-0.0,123456789012345678901234567890]},"html":"<&>","esc":"\u2028\u00fc\/","  spaced" :  [ 1 , 2 ]}`},
	{tool: "rich", args: `{"id":"not a number","unknown":null}`},
	{tool: "rich"},
	{tool: "result.everything", args: `{}`},
	{tool: "result_everything", args: `{}`},
	{tool: "deep/name.v2", args: `{}`},
	{tool: "fails", args: `{}`},
	{tool: "rpc_error", args: `{}`},
	{tool: "go_error", args: `{}`},
	{tool: "progress", args: `{}`, token: `"tok<en>"`},
	{tool: "progress", args: `{}`, token: `12`},
	{tool: "progress", args: `{}`},
	{tool: "count", args: `{}`},
	{tool: "pay", args: `{"amount":1}`},
	{tool: "delete_database", args: `{}`},
	{tool: "grow", args: `{}`}, // the last one: it changes the list
}

// TestRealGoSDK does the same with a server on the official Go SDK, whose tools
// have what typed proxies lose, in all its modes.
func TestRealGoSDK(t *testing.T) {
	t.Parallel()
	for _, mode := range []struct {
		name            string
		stateless, json bool
	}{{"stateful-sse", false, false}, {"stateful-json", false, true}, {"stateless-sse", true, false}, {"stateless-json", true, true}} {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			// Two servers, since one of the calls changes the list of all clients.
			directURL, _, _ := listenOn(t, 0, newGoSDK().handler(mode.stateless, mode.json))
			url, _, _ := listenOn(t, 0, newGoSDK().handler(mode.stateless, mode.json))
			h := mcptest.NewHaldir(t, program(t), fmt.Sprintf("version: 1\nupstreams:\n  - {name: sdk, url: %q}\n", url))
			through := h.Serve(t)
			direct := mcptest.Dial(t, directURL)
			direct.Initialize(mcptest.Revision)
			differ := func(want, got []string) string { return cmp.Diff(want, got) }
			if mode.json && !mode.stateless {
				// The server answers a call by JSON and sends its progress on the GET
				// stream, without which it fails the call. Whether progress or response
				// is there first is a matter of luck, for a direct client too, and
				// after its response a call has no progress.
				direct.Listen()
				differ = func(want, got []string) string {
					return cmp.Diff(strings.Join(want[:min(len(want), len(got))], "\n"), strings.Join(got, "\n"))
				}
			}
			through.Initialize(mcptest.Revision)
			names := sameTools(t, direct, through, "sdk")
			sameCallsBut(t, direct, through, names, goSDKCalls, nil, differ)
			if !mode.stateless { // a stateless server has no way to say that its list has changed
				grown(t, direct, through, "sdk")
			}
			through.End()
		})
	}
	t.Run("stdio", func(t *testing.T) {
		t.Parallel()
		h := mcptest.NewHaldir(t, program(t), "version: 1\nupstreams:\n"+realChild(t, "sdk", "gosdk"))
		direct, through := directChild(t, "gosdk"), h.Serve(t)
		direct.Initialize(mcptest.Revision)
		through.Initialize(mcptest.Revision)
		names := sameTools(t, direct, through, "sdk")
		sameCalls(t, direct, through, names, goSDKCalls, nil)
		grown(t, direct, through, "sdk")
		through.End()
	})
}

// directChild starts this binary as a server.
func directChild(t *testing.T, server string) *mcptest.Session {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(baseEnv(), realServer+"="+server)
	return mcptest.Start(t, cmd)
}

// grown checks that haldir says when a server's list has changed, that the new
// list is then there, and that the new tool can be called.
func grown(t *testing.T, direct peer, through *mcptest.Session, upstream string) {
	t.Helper()
	through.Await("notifications/tools/list_changed", func(m mcptest.Message) bool { return m.Method == "notifications/tools/list_changed" })
	names := sameTools(t, direct, through, upstream)
	got := through.Ask("tools/call", mcptest.CallParams(names["grown"], "{}", ""))
	if !strings.Contains(string(got.Result), "I am new") {
		t.Errorf("the new tool answers %s", got.Raw)
	}
}

var mcpGoCalls = []realCall{
	{tool: "rich", args: `{"z":1,"a":{"B":[1.50,1e2,9007199254740993]},"html":"<&>"}`},
	{tool: "rich", args: `{"id":"not a number"}`},
	{tool: "structured.content", args: `{}`},
	{tool: "fails", args: `{}`},
	{tool: "go_error", args: `{}`},
	{tool: "progress", args: `{}`, token: `"token"`},
	{tool: "progress", args: `{}`, token: `5`},
	{tool: "progress", args: `{}`},
	{tool: "grow", args: `{}`},
}

// TestRealMCPGo does the same with a server on mcp-go.
func TestRealMCPGo(t *testing.T) {
	t.Parallel()
	t.Run("http", func(t *testing.T) {
		t.Parallel()
		directURL, _, _ := listenOn(t, 0, mcpGoHandler())
		url, _, _ := listenOn(t, 0, mcpGoHandler())
		h := mcptest.NewHaldir(t, program(t), fmt.Sprintf("version: 1\nupstreams:\n  - {name: mark, url: %q}\n", url))
		through := h.Serve(t)
		direct := mcptest.Dial(t, directURL)
		direct.Initialize(mcptest.Revision)
		through.Initialize(mcptest.Revision)
		names := sameTools(t, direct, through, "mark")
		// Some of the progress in any order: to a client with a GET stream, as haldir
		// is one and the raw client here is not, mcp-go sends a call's notifications
		// over both streams, whichever reads its channel first, and drops those that
		// the stream of a call just answered has read.
		sameCallsBut(t, direct, through, names, mcpGoCalls, nil, func(want, got []string) string {
			for _, g := range got {
				i := slices.Index(want, g)
				if i < 0 {
					return "not sent by the server, or not so often: " + g
				}
				want = slices.Delete(want, i, i+1)
			}
			return ""
		})
		grown(t, direct, through, "mark")
		through.End()
	})
	t.Run("stdio", func(t *testing.T) {
		t.Parallel()
		h := mcptest.NewHaldir(t, program(t), "version: 1\nupstreams:\n"+realChild(t, "mark", "mcpgo"))
		direct, through := directChild(t, "mcpgo"), h.Serve(t)
		direct.Initialize(mcptest.Revision)
		through.Initialize(mcptest.Revision)
		names := sameTools(t, direct, through, "mark")
		sameCalls(t, direct, through, names, mcpGoCalls, nil)
		grown(t, direct, through, "mark")
		through.End()
	})
}

// TestRealFilesystem guards server-filesystem: what policy refuses does not
// reach the disk, however the path is spelt.
func TestRealFilesystem(t *testing.T) {
	t.Parallel()
	command := mcptest.NPM(t, mcptest.Filesystem, "mcp-server-filesystem")
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{"open/a.txt": "alpha\nbeta\n", "secret/key.txt": "the key"} {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(root, "secret")
	h := mcptest.NewHaldir(t, program(t), fmt.Sprintf(`version: 1
upstreams:
  - {name: files, command: %q, args: [%q, %q]}
policies:
  - {type: deny, tools: ["files/move_*"]}
  - {type: deny, tools: ["files/*"], when: 'strings(args).exists(s, under(s, %q))', id: no-secrets}
`, command[0], command[1], root, secret))
	h.Env = baseEnv()
	through := h.Serve(t)
	through.Initialize(mcptest.Revision)

	cmd := exec.Command(command[0], command[1], root)
	cmd.Dir, cmd.Env = h.Dir, baseEnv()
	direct := mcptest.Start(t, cmd)
	direct.Initialize(mcptest.Revision)

	listed := map[string]string{}
	for _, tool := range listRaw(t, through) {
		listed[tool.Name] = tool.raw
	}
	for _, tool := range listRaw(t, direct) {
		raw, ok := listed["files__"+tool.Name]
		switch member := `"name":"` + tool.Name + `"`; {
		case tool.Name == "move_file" && ok:
			t.Error("a tool on the deny list is listed")
		case tool.Name == "move_file":
		case !ok:
			t.Errorf("%s is not listed", tool.Name)
		default:
			if diff := cmp.Diff(strings.Replace(tool.raw, member, `"name":"files__`+tool.Name+`"`, 1), raw); diff != "" {
				t.Errorf("the definition of %s changed (-direct +haldir):\n%s", tool.Name, diff)
			}
		}
	}

	file := func(path string) string { return fmt.Sprintf(`{"path":%q}`, path) }
	for _, c := range []realCall{
		{tool: "list_directory", args: file(root)},
		{tool: "list_directory", args: file(filepath.Join(root, "open"))},
		{tool: "directory_tree", args: file(filepath.Join(root, "open"))},
		{tool: "read_text_file", args: file(filepath.Join(root, "open", "a.txt"))},
		{tool: "read_text_file", args: file(filepath.Join(root, "nowhere"))},
		{tool: "read_text_file", args: file("/etc/hostname")}, // the server's own refusal
		{tool: "read_text_file", args: `{}`},
		{tool: "list_allowed_directories", args: `{}`},
		{tool: "search_files", args: fmt.Sprintf(`{"path":%q,"pattern":"**/*.txt"}`, filepath.Join(root, "open"))},
	} {
		want := direct.Ask("tools/call", mcptest.CallParams(c.tool, c.args, ""))
		got := through.Ask("tools/call", mcptest.CallParams("files__"+c.tool, c.args, ""))
		if diff := cmp.Diff(want.Outcome(), got.Outcome()); diff != "" {
			t.Errorf("%s %s answers differently (-direct +haldir):\n%s", c.tool, c.args, diff)
		}
	}
	written := filepath.Join(root, "open", "b.txt")
	through.Ask("tools/call", mcptest.CallParams("files__write_file", fmt.Sprintf(`{"path":%q,"content":"written ü"}`, written), ""))
	if got, err := os.ReadFile(written); err != nil || string(got) != "written ü" {
		t.Errorf("the file holds %q, %v", got, err)
	}

	for _, c := range []struct{ tool, args, rule string }{
		{"files__read_text_file", file(filepath.Join(secret, "key.txt")), "no-secrets"},
		{"files__read_text_file", file(root + "/open/../secret/key.txt"), "no-secrets"},
		{"files__read_text_file", file(root + "/./secret//key.txt"), "no-secrets"},
		{"files/read_text_file", file(filepath.Join(secret, "key.txt")), "no-secrets"},
		{"read_text_file", file(filepath.Join(secret, "key.txt")), "no-secrets"},
		{"files__read_multiple_files", fmt.Sprintf(`{"paths":[%q,%q]}`, written, filepath.Join(secret, "key.txt")), "no-secrets"},
		{"files__write_file", fmt.Sprintf(`{"path":%q,"content":"x"}`, filepath.Join(secret, "new.txt")), "no-secrets"},
		{"files__create_directory", file(filepath.Join(secret, "dir")), "no-secrets"},
		{"files__list_directory", file(secret), "no-secrets"},
		{"files__move_file", fmt.Sprintf(`{"source":%q,"destination":%q}`, written, filepath.Join(root, "c.txt")), "deny_1"},
		{"files/move_file", fmt.Sprintf(`{"source":%q,"destination":%q}`, written, filepath.Join(root, "c.txt")), "deny_1"},
	} {
		r := refusalOf(t, through.Ask("tools/call", mcptest.CallParams(c.tool, c.args, "")))
		if r.Policy != "deny" || c.rule == "no-secrets" && r.Rule != c.rule {
			t.Errorf("%s %s: %+v", c.tool, c.args, r)
		}
	}
	var left []string
	_ = filepath.WalkDir(root, func(path string, _ os.DirEntry, _ error) error {
		left = append(left, strings.TrimPrefix(path, root))
		return nil
	})
	if diff := cmp.Diff([]string{"", "/open", "/open/a.txt", "/open/b.txt", "/secret", "/secret/key.txt"}, left); diff != "" {
		t.Errorf("the disk after the refused calls (-want +got):\n%s", diff)
	}
	through.End()
	direct.End()
}
