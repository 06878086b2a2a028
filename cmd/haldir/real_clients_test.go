package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	markclient "github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	mark "github.com/mark3labs/mcp-go/mcp"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// clientConfig has one real server and a rule for each client to run into.
func clientConfig(t *testing.T) string {
	t.Helper()
	return "version: 1\nupstreams:\n" + realChild(t, "sdk", "gosdk") + "policies:\n  - {type: deny, tools: [pay]}\n"
}

// wantListed are some of the tools that a client must see, and one it must not.
func wantListed(t *testing.T, names []string) {
	t.Helper()
	for _, name := range []string{"sdk__rich", "sdk__fails", "sdk__progress", "haldir_get_audit", "haldir_get_spend", "haldir_check_permission"} {
		if !slices.Contains(names, name) {
			t.Errorf("%s is not among the tools the client lists: %v", name, names)
		}
	}
	if slices.Contains(names, "sdk__pay") {
		t.Error("the client lists a tool that is denied")
	}
}

// TestRealClientGoSDK has the official Go SDK's client launch haldir, with the
// handshake and without.
func TestRealClientGoSDK(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			realClientGoSDK(t, version)
		})
	}
}

func realClientGoSDK(t *testing.T, version string) {
	h := mcptest.NewHaldir(t, program(t), clientConfig(t))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	progress := make(chan string, 16) // the client calls back whenever it gets to it
	client := mcp.NewClient(&mcp.Implementation{Name: "gosdk-client", Version: "9"}, &mcp.ClientOptions{
		ProgressNotificationHandler: func(_ context.Context, req *mcp.ProgressNotificationClientRequest) {
			progress <- req.Params.Message
		},
	})
	session, err := client.Connect(ctx, &mcp.CommandTransport{Command: h.Command("serve")}, &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	if init := session.InitializeResult(); init.ServerInfo.Name != "haldir" || init.ProtocolVersion != version {
		t.Errorf("initialize: %+v", init)
	}
	var names []string
	for tool, err := range session.Tools(ctx, nil) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, tool.Name)
	}
	wantListed(t, names)
	if version < "2026" {
		if err := session.Ping(ctx, nil); err != nil {
			t.Errorf("ping: %v", err)
		}
	}
	call := func(name string) *mcp.CallToolResult {
		t.Helper()
		params := &mcp.CallToolParams{Name: name}
		if name == "sdk__rich" {
			params.Arguments = json.RawMessage(`{"a":1}`)
		}
		params.SetProgressToken("a-token")
		res, err := session.CallTool(ctx, params)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return res
	}
	if res := call("sdk__rich"); res.IsError || len(res.Content) != 1 || res.Content[0].(*mcp.TextContent).Text != `{"a":1}` {
		t.Errorf("a call: %+v", res)
	}
	call("sdk__progress")
	for i := range 5 {
		select {
		case got := <-progress:
			if want := fmt.Sprintf("step <%d>", i); got != want {
				t.Errorf("progress %q, want %q", got, want)
			}
		case <-ctx.Done():
			t.Fatal("progress is missing")
		}
	}
	if res := call("sdk__fails"); !res.IsError || len(res.Content) != 2 {
		t.Errorf("a call that fails: %+v", res)
	}
	if res := call("sdk__pay"); !res.IsError || !strings.Contains(res.Content[0].(*mcp.TextContent).Text, "is on the deny list") {
		t.Errorf("a denied call: %+v", res)
	}
	if res := call("haldir_get_spend"); res.IsError || res.StructuredContent == nil {
		t.Errorf("haldir's own tool: %+v", res)
	}
	if err := session.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if all := calls(t, h); len(all) != 4 || all[0].Client != "gosdk-client 9" {
		t.Errorf("the audit: %+v", all)
	}
}

// TestRealClientMCPGo has mcp-go's client launch haldir. By default it probes for
// the newest revision first; pinned, it shakes hands at once.
func TestRealClientMCPGo(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"", "2025-03-26", "2025-11-25"} {
		t.Run("version "+version, func(t *testing.T) {
			t.Parallel()
			h := mcptest.NewHaldir(t, program(t), clientConfig(t))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			stdio := transport.NewStdioWithOptions(h.Program, h.Env, h.Command("serve").Args[1:],
				transport.WithCommandFunc(func(_ context.Context, command string, env, args []string) (*exec.Cmd, error) {
					cmd := exec.Command(command, args...)
					cmd.Env, cmd.Dir = env, h.Dir
					return cmd, nil
				}))
			client := markclient.NewClient(stdio)
			if err := client.Start(ctx); err != nil {
				t.Fatal(err)
			}
			init := mark.InitializeRequest{}
			init.Params.ClientInfo = mark.Implementation{Name: "mcpgo-client", Version: "9"}
			init.Params.ProtocolVersion = version
			res, err := client.Initialize(ctx, init)
			if err != nil {
				t.Fatal(err)
			}
			if want := version; res.ServerInfo.Name != "haldir" || want != "" && res.ProtocolVersion != want {
				t.Errorf("initialize: %+v", res)
			}
			list, err := client.ListTools(ctx, mark.ListToolsRequest{})
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, tool := range list.Tools {
				names = append(names, tool.Name)
			}
			wantListed(t, names)
			call := func(name string) *mark.CallToolResult {
				t.Helper()
				req := mark.CallToolRequest{}
				req.Params.Name = name
				if name == "sdk__rich" {
					req.Params.Arguments = map[string]any{"a": 1}
				}
				res, err := client.CallTool(ctx, req)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				return res
			}
			if res := call("sdk__rich"); res.IsError || len(res.Content) != 1 || res.Content[0].(mark.TextContent).Text != `{"a":1}` {
				t.Errorf("a call: %+v", res)
			}
			if res := call("sdk__fails"); !res.IsError || len(res.Content) != 2 {
				t.Errorf("a call that fails: %+v", res)
			}
			if res := call("sdk__pay"); !res.IsError || !strings.Contains(res.Content[0].(mark.TextContent).Text, "is on the deny list") {
				t.Errorf("a denied call: %+v", res)
			}
			if res := call("haldir_get_spend"); res.IsError || res.StructuredContent == nil {
				t.Errorf("haldir's own tool: %+v", res)
			}
			if err := client.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if all := calls(t, h); len(all) != 3 || all[0].Client != "mcpgo-client 9" {
				t.Errorf("the audit: %+v", all)
			}
		})
	}
}

// TestRealInspector has the MCP inspector's command line launch haldir from an
// mcpServers entry, as the README shows one.
func TestRealInspector(t *testing.T) {
	t.Parallel()
	command := mcptest.NPM(t, mcptest.Inspector, "mcp-inspector")
	h := mcptest.NewHaldir(t, program(t), clientConfig(t))
	entry, err := json.Marshal(map[string]any{"mcpServers": map[string]any{"haldir": map[string]any{
		"command": h.Program, "args": []string{"serve"},
		"env": map[string]string{"HALDIR_CONFIG": h.Config, "HALDIR_STATE_DIR": h.State},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(h.Dir, "mcp.json")
	if err := os.WriteFile(file, entry, 0o600); err != nil {
		t.Fatal(err)
	}
	inspect := func(args ...string) []byte {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, command[0], append([]string{command[1], "--cli", "--config", file, "--server", "haldir"}, args...)...)
		cmd.Env, cmd.Dir = h.Env, h.Dir
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("inspector %v: %v\n%s%s", args, err, out, errOut.String())
		}
		return out
	}
	var list struct {
		Tools []struct {
			Name string `json:"name"`
		} `json:"tools"`
	}
	if out := inspect("--method", "tools/list"); json.Unmarshal(out, &list) != nil {
		t.Fatalf("tools/list: %s", out)
	}
	var names []string
	for _, tool := range list.Tools {
		names = append(names, tool.Name)
	}
	wantListed(t, names)
	for tool, want := range map[string]string{
		"sdk__rich":               `{\"zeta\":\"z\"}`,
		"sdk__pay":                "is on the deny list",
		"haldir_check_permission": "give a scope or a tool",
	} {
		args := []string{"--method", "tools/call", "--tool-name", tool}
		if tool == "sdk__rich" {
			args = append(args, "--tool-arg", "zeta=z")
		}
		if out := inspect(args...); !bytes.Contains(out, []byte(want)) {
			t.Errorf("%s answers %s", tool, out)
		}
	}
	if all := calls(t, h); len(all) != 2 || !strings.HasPrefix(all[0].Client, "inspector-cli") {
		t.Errorf("the audit: %+v", all)
	}
}

// oddTools are definitions that some host or other refuses, with the whole list
// that they are in.
var oddTools = []string{
	`{"name":"good","inputSchema":{"type":"object","properties":{"a":{"type":"string"}}}}`,
	`{"name":"no_schema"}`,
	`{"name":"null_schema","inputSchema":null}`,
	`{"name":"true_schema","inputSchema":true}`,
	`{"name":"array_schema","inputSchema":{"type":"array"}}`,
	`{"name":"two_types","inputSchema":{"type":["object","null"]}}`,
	`{"name":"untyped","inputSchema":{"properties":{}}}`,
	`{"name":"list_properties","inputSchema":{"type":"object","properties":[]}}`,
	`{"name":"null_properties","inputSchema":{"type":"object","properties":null}}`,
	`{"name":"boolean_property","inputSchema":{"type":"object","properties":{"a":true}}}`,
	`{"name":"null_property","inputSchema":{"type":"object","properties":{"a":null}}}`,
	`{"name":"text_property","inputSchema":{"type":"object","properties":{"a":"string"}}}`,
	`{"name":"boolean_required","inputSchema":{"type":"object","required":true}}`,
	`{"name":"null_required","inputSchema":{"type":"object","required":null}}`,
	`{"name":"number_required","inputSchema":{"type":"object","required":[1]}}`,
	`{"name":"number_description","description":1,"inputSchema":{"type":"object"}}`,
	`{"name":"null_description","description":null,"inputSchema":{"type":"object"}}`,
	`{"name":"number_title","title":1,"inputSchema":{"type":"object"}}`,
	`{"name":"array_output","inputSchema":{"type":"object"},"outputSchema":{"type":"array"}}`,
	`{"name":"null_output","inputSchema":{"type":"object"},"outputSchema":null}`,
	`{"name":"boolean_output_property","inputSchema":{"type":"object"},"outputSchema":{"type":"object","properties":{"a":true}}}`,
	`{"name":"text_annotations","inputSchema":{"type":"object"},"annotations":"read"}`,
	`{"name":"null_annotations","inputSchema":{"type":"object"},"annotations":null}`,
	`{"name":"text_hint","inputSchema":{"type":"object"},"annotations":{"readOnlyHint":"yes"}}`,
	`{"name":"null_hint","inputSchema":{"type":"object"},"annotations":{"destructiveHint":null}}`,
	`{"name":"number_annotated_title","inputSchema":{"type":"object"},"annotations":{"title":1}}`,
	`{"name":"odd_task_support","inputSchema":{"type":"object"},"execution":{"taskSupport":"maybe"}}`,
	`{"name":"text_execution","inputSchema":{"type":"object"},"execution":"now"}`,
	`{"name":"text_meta","inputSchema":{"type":"object"},"_meta":"text"}`,
	`{"name":"null_meta","inputSchema":{"type":"object"},"_meta":null}`,
	`{"name":"text_icons","inputSchema":{"type":"object"},"icons":"https://example.com/i.png"}`,
	`{"name":"icon_without_src","inputSchema":{"type":"object"},"icons":[{"mimeType":"image/png"}]}`,
	`{"name":"icon_with_text_sizes","inputSchema":{"type":"object"},"icons":[{"src":"data:,","sizes":"48x48"}]}`,
	`{"name":"icon_with_odd_theme","inputSchema":{"type":"object"},"icons":[{"src":"data:,","theme":"sepia"}]}`,
	`{"name":"unknown_members","inputSchema":{"type":"object","x-a":1},"whatever":{"a":null},"deferLoading":"x"}`,
	`{"name":"nested_booleans","inputSchema":{"type":"object","properties":{"a":{"items":true,"not":false}},"additionalProperties":false,"$defs":{"b":true}}}`,
	`{"name":"also_good","inputSchema":{"type":"object"}}`,
}

// TestRealToolsThatHostsRefuse checks with the TypeScript SDK, on which most
// hosts are built, that no tool in haldir's list would make a host drop the list.
func TestRealToolsThatHostsRefuse(t *testing.T) {
	t.Parallel()
	command := mcptest.NPM(t, mcptest.Everything, "mcp-server-everything")
	var defs []json.RawMessage
	for _, tool := range oddTools {
		defs = append(defs, json.RawMessage(tool))
	}
	h := mcptest.NewHaldir(t, program(t), "version: 1\nupstreams:\n"+mcptest.Script{Tools: mcptest.Tools(defs...)}.YAML(t, "odd"))
	s := h.Serve(t)
	s.Initialize(mcptest.Revision)
	listed := s.Ask("tools/list", "{}")
	s.End()

	// The verdict of the SDK's own schema on every tool alone: on the odd ones as
	// they are, and on the list through haldir.
	modules, _, _ := strings.Cut(command[1], "node_modules")
	sdk := filepath.Join(modules, "node_modules", "@modelcontextprotocol", "sdk", "dist", "esm", "types.js")
	verdicts := func(list string) map[string]string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), command[0], "--input-type=module", "-e", `
import { ToolSchema } from `+fmt.Sprintf("%q", sdk)+`;
let text = ""; for await (const part of process.stdin) text += part;
const out = {};
for (const tool of JSON.parse(text).tools) {
  const r = ToolSchema.safeParse(tool);
  out[tool.name] = r.success ? "" : r.error.issues.map((i) => i.path.join(".") + ": " + i.message).join("; ");
}
console.log(JSON.stringify(out));`)
		cmd.Stdin = strings.NewReader(list)
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		verdict := map[string]string{}
		if err == nil {
			err = json.Unmarshal(out, &verdict)
		}
		if err != nil {
			t.Fatalf("ask the SDK: %v: %s%s", err, out, errOut.String())
		}
		return verdict
	}
	through := verdicts(string(listed.Result))
	for name, problem := range through {
		if problem != "" {
			t.Errorf("haldir lists %s, which makes a host drop the whole list: %s", name, problem)
		}
	}
	for name, problem := range verdicts(`{"tools":[` + strings.Join(oddTools, ",") + `]}`) {
		if _, there := through["odd__"+name]; !there && problem == "" {
			t.Errorf("haldir withholds %s, which hosts take", name)
		}
	}
}

// claudeProbe is the first line that Claude Code sends (2.1.330).
const claudeProbe = `{"jsonrpc":"2.0","id":"server-discover-probe-1","method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"claude-code","title":"Claude Code","version":"2.1.330"},"io.modelcontextprotocol/clientCapabilities":{"roots":{"listChanged":true},"elicitation":{"form":{},"url":{}}}}}}`

// TestRealClaudeCodeOpening opens as Claude Code does. When it was not content with
// the answer to its probe it would shake hands, in any revision, and must not notice
// that haldir has taken it for a modern host; before an upstream that never answers.
func TestRealClaudeCodeOpening(t *testing.T) {
	t.Parallel()
	hang := filepath.Join(t.TempDir(), "hang")
	if err := os.WriteFile(hang, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	config := "version: 1\nlist_wait: 100ms\nupstreams:\n" + realChild(t, "mute", "gosdk", realHang+"="+hang) + realChild(t, "sdk", "gosdk")
	for asked, want := range map[string]string{
		"2024-11-05": "2024-11-05", "2025-03-26": "2025-03-26", "2025-06-18": "2025-06-18", "2025-11-25": "2025-11-25",
		"2026-07-28": "2025-11-25", "2099-01-01": "2025-11-25", "soon": "2025-11-25",
	} {
		t.Run(asked, func(t *testing.T) {
			t.Parallel()
			s := mcptest.NewHaldir(t, program(t), config).Serve(t)
			s.Send(claudeProbe)
			probe := s.Wait(`"server-discover-probe-1"`)
			var found struct {
				ResultType        string   `json:"resultType"`
				SupportedVersions []string `json:"supportedVersions"`
			}
			if err := json.Unmarshal(probe.Result, &found); err != nil || found.ResultType != "complete" || !slices.Contains(found.SupportedVersions, "2026-07-28") {
				t.Errorf("the probe: %s", probe.Raw)
			}
			if seen := s.Seen(); len(seen) != 1 {
				t.Errorf("before initialize came %v", seen)
			}
			s.Send(fmt.Sprintf(`{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":%q,"capabilities":{"roots":{"listChanged":true},"elicitation":{"form":{},"url":{}}},"clientInfo":{"name":"claude-code","title":"Claude Code","version":"2.1.330","description":"d","websiteUrl":"https://claude.com"}}}`, asked))
			var init struct {
				ProtocolVersion string `json:"protocolVersion"`
				Capabilities    struct {
					Tools *struct {
						ListChanged bool `json:"listChanged"`
					} `json:"tools"`
				} `json:"capabilities"`
				ServerInfo struct {
					Name, Version string
				} `json:"serverInfo"`
			}
			m := s.Wait("0")
			if err := json.Unmarshal(m.Result, &init); err != nil {
				t.Fatalf("initialize: %s", m.Raw)
			}
			if init.ProtocolVersion != want || init.Capabilities.Tools == nil || !init.Capabilities.Tools.ListChanged || init.ServerInfo.Name != "haldir" {
				t.Errorf("initialize answers %s", m.Raw)
			}
			s.Notify("notifications/initialized")
			s.Send(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
			if m := s.Wait("1"); m.Result == nil {
				t.Errorf("tools/list: %s", m.Raw)
			}
			s.Send(`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"sdk__rich","arguments":{"a":1},"_meta":{"claudecode/toolUseId":"toolu_1","progressToken":2}}}`)
			if m := s.Wait("2"); !strings.Contains(string(m.Result), `{\"a\":1}`) {
				t.Errorf("tools/call: %s", m.Raw)
			}
			s.Send(`{"jsonrpc":"2.0","id":3,"method":"prompts/list"}`)
			if m := s.Wait("3"); string(m.Result) != `{"prompts":[]}` {
				t.Errorf("prompts/list: %s", m.Raw)
			}
			s.End()
		})
	}
}

// TestRealClaudeCodeOpeningWithoutConfig opens before a haldir whose config does
// not load: the reason must come where the host shows it.
func TestRealClaudeCodeOpeningWithoutConfig(t *testing.T) {
	t.Parallel()
	h := mcptest.NewHaldir(t, program(t), "version: 1\npolicies:\n  - {type: spend_limit, maxx_usd: 5}\n  - {type: denny, tools: [x]}\n")
	s := h.Serve(t)
	s.Send(claudeProbe)
	if e := errorOf(t, s.Wait(`"server-discover-probe-1"`)); e.Code != -32601 {
		t.Errorf("the probe: %+v", e)
	}
	m := s.Ask("initialize", `{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"c","version":"1"}}`)
	e := errorOf(t, m)
	for _, words := range []string{"maxx_usd", "max_usd", "denny", "haldir.yaml:3", "haldir.yaml:4"} {
		if !strings.Contains(e.Message, words) {
			t.Errorf("the error does not say %q: %s", words, m.Raw)
		}
	}
	s.CloseInput()
	s.Exit()
}
