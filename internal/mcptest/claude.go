package mcptest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// claudeCode is the version of Claude Code that tests run, below its packages of npm.
const claudeCode = "2.1.330"

// Claude is the real Claude Code, which launches haldir and is driven as its SDK does. The
// model is a script: it calls the tools that it is told to, one after the other, and then
// ends.
type Claude struct {
	t        testing.TB
	cmd      *exec.Cmd
	in       *json.Encoder
	messages chan ClaudeMessage
	model    *model
}

// ClaudeMessage is a line that Claude Code prints for its SDK.
type ClaudeMessage struct {
	Type    string `json:"type"`
	Subtype string `json:"subtype"`
	ID      string `json:"request_id"`
	Request struct {
		Subtype string          `json:"subtype"`
		Server  string          `json:"mcp_server_name"`
		Message string          `json:"message"`
		Mode    string          `json:"mode"`
		Schema  json.RawMessage `json:"requested_schema"`
	} `json:"request"`
	Raw string `json:"-"`
}

// ToolUse is a call that the model makes.
type ToolUse struct {
	Name  string
	Input string // a JSON object
}

// ClaudeCode returns the path of the real Claude Code, which is installed if need be.
func ClaudeCode(t testing.TB) string {
	t.Helper()
	arch, ok := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	if runtime.GOOS != "linux" || !ok {
		Unavailable(t, "there is no Claude Code for %s/%s in these tests", runtime.GOOS, runtime.GOARCH)
	}
	name := "@anthropic-ai/claude-code-linux-" + arch
	dir, err := install(name + "@" + claudeCode)
	if err != nil {
		Unavailable(t, "npm cannot install %s: %v", name, err)
	}
	return filepath.Join(dir, "node_modules", filepath.FromSlash(name), "claude")
}

// StartClaude starts Claude Code before a haldir. extra are settings, a JSON object; "" for
// none. uses are what the model does with the first prompt, which is sent.
func StartClaude(t testing.TB, h *Haldir, extra string, uses ...ToolUse) *Claude {
	t.Helper()
	home := t.TempDir()
	servers, err := json.Marshal(map[string]any{"mcpServers": map[string]any{"haldir": map[string]any{
		"command": h.Program, "args": []string{"serve", "--config", h.Config, "--state-dir", h.State},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	mcp := filepath.Join(home, "mcp.json")
	if err := os.WriteFile(mcp, servers, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--mcp-config", mcp, "--strict-mcp-config"}
	if extra != "" {
		args = append(args, "--settings", extra)
	}
	env := []string{"HOME=" + home, "CLAUDE_CONFIG_DIR=" + filepath.Join(home, ".claude"), "PATH=" + os.Getenv("PATH")}
	return LaunchClaude(t, home, env, args, uses...)
}

// LaunchClaude starts Claude Code in a directory, with the servers that it finds there and
// in its environment.
func LaunchClaude(t testing.TB, dir string, env, args []string, uses ...ToolUse) *Claude {
	t.Helper()
	c := &Claude{t: t, messages: make(chan ClaudeMessage, 1000), model: &model{uses: uses}}
	api := httptest.NewServer(c.model)
	t.Cleanup(api.Close)
	args = append([]string{
		"-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose", "--allowedTools", "mcp__haldir__*", "--model", "claude-sonnet-4-5",
	}, args...)
	c.cmd = exec.Command(ClaudeCode(t), args...)
	c.cmd.Dir = dir
	c.cmd.Env = slices.Concat(env, []string{
		"ANTHROPIC_BASE_URL=" + api.URL, "ANTHROPIC_API_KEY=sk-none", "DISABLE_AUTOUPDATER=1", "DISABLE_TELEMETRY=1",
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1", "ENABLE_TOOL_SEARCH=false",
	})
	c.cmd.Stderr = os.Stderr
	in, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(c.messages)
		lines := bufio.NewReader(out)
		for {
			line, err := lines.ReadString('\n')
			if line != "" {
				m := ClaudeMessage{Raw: line}
				if json.Unmarshal([]byte(line), &m) == nil {
					c.messages <- m
				}
			}
			if err != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		_ = in.Close()
		_ = c.cmd.Process.Signal(os.Interrupt)
		ended := make(chan struct{})
		go func() { reading.Wait(); _ = c.cmd.Wait(); close(ended) }()
		for running := true; running; {
			select {
			case <-ended:
				running = false
			case <-c.messages:
			case <-time.After(10 * time.Second):
				_ = c.cmd.Process.Kill()
			}
		}
		AwaitEnds(t, "ANTHROPIC_BASE_URL="+api.URL+"\x00") // Claude Code does not wait for its servers
	})
	c.in = json.NewEncoder(in)
	c.send(map[string]any{"type": "control_request", "request_id": "init", "request": map[string]any{"subtype": "initialize"}})
	c.send(map[string]any{"type": "user", "message": map[string]any{"role": "user", "content": "go on"}})
	return c
}

func (c *Claude) send(v any) {
	c.t.Helper()
	if err := c.in.Encode(v); err != nil {
		c.t.Fatalf("Claude Code does not read: %v", err)
	}
}

// Next returns the next message that is wanted.
func (c *Claude) Next(what string, wanted func(ClaudeMessage) bool) ClaudeMessage {
	c.t.Helper()
	var seen []string
	for timeout := time.After(time.Minute); ; {
		select {
		case m, ok := <-c.messages:
			if !ok {
				c.t.Fatalf("Claude Code ended before %s: %s", what, strings.Join(seen, ""))
			}
			if wanted(m) {
				return m
			}
			seen = append(seen, m.Raw)
		case <-timeout:
			c.t.Fatalf("%s did not come: %s", what, strings.Join(seen, ""))
		}
	}
}

// Elicitation waits for a form that Claude Code asks its SDK to show.
func (c *Claude) Elicitation() ClaudeMessage {
	c.t.Helper()
	return c.Next("an elicitation", func(m ClaudeMessage) bool { return m.Type == "control_request" && m.Request.Subtype == "elicitation" })
}

// Answer sends what a person has put into the form.
func (c *Claude) Answer(m ClaudeMessage, result string) {
	c.t.Helper()
	c.send(map[string]any{"type": "control_response", "response": map[string]any{
		"subtype": "success", "request_id": m.ID, "response": json.RawMessage(result),
	}})
}

// End waits for the end of the turn and returns what the model has been told of its calls.
func (c *Claude) End() []string {
	c.t.Helper()
	c.Next("the end of the turn", func(m ClaudeMessage) bool { return m.Type == "result" })
	c.model.mu.Lock()
	defer c.model.mu.Unlock()
	return slices.Clone(c.model.results)
}

type named struct {
	Name string `json:"name"`
}

// model is the Messages API of a model that does what a test says.
type model struct {
	mu      sync.Mutex
	uses    []ToolUse
	results []string
}

func (m *model) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/count_tokens") {
		_, _ = w.Write([]byte(`{"input_tokens":10}`))
		return
	}
	if !strings.HasSuffix(r.URL.Path, "/messages") {
		http.NotFound(w, r)
		return
	}
	var req struct {
		Stream   bool    `json:"stream"`
		Tools    []named `json:"tools"`
		Messages []struct {
			Content json.RawMessage `json:"content"`
		} `json:"messages"`
	}
	_ = json.NewDecoder(r.Body).Decode(&req)
	var use *ToolUse
	m.mu.Lock()
	done := 0
	m.results = m.results[:0]
	for _, msg := range req.Messages {
		var blocks []struct {
			Type    string          `json:"type"`
			Content json.RawMessage `json:"content"`
		}
		if json.Unmarshal(msg.Content, &blocks) != nil {
			continue
		}
		for _, b := range blocks {
			if b.Type == "tool_result" {
				m.results = append(m.results, string(b.Content))
				done++
			}
		}
	}
	// Claude Code asks its model for other things too, such as a title: those have no tools.
	if has := slices.ContainsFunc(req.Tools, func(t named) bool { return strings.HasPrefix(t.Name, "mcp__") }); has && done < len(m.uses) {
		use = &m.uses[done]
	}
	m.mu.Unlock()
	block, delta, reason := `{"type":"text","text":""}`, `{"type":"text_delta","text":"done"}`, "end_turn"
	if use != nil {
		input, _ := json.Marshal(use.Input)
		block = fmt.Sprintf(`{"type":"tool_use","id":"toolu_%d","name":%q,"input":{}}`, done, use.Name)
		delta, reason = fmt.Sprintf(`{"type":"input_json_delta","partial_json":%s}`, input), "tool_use"
	}
	const head = `{"id":"msg_1","type":"message","role":"assistant","model":"claude-sonnet-4-5","content":[%s],"stop_reason":%s,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}`
	if !req.Stream {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, head, `{"type":"text","text":"done"}`, `"end_turn"`)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	event := func(name, data string) { _, _ = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, data) }
	event("message_start", `{"type":"message_start","message":`+fmt.Sprintf(head, "", "null")+`}`)
	event("content_block_start", `{"type":"content_block_start","index":0,"content_block":`+block+`}`)
	event("content_block_delta", `{"type":"content_block_delta","index":0,"delta":`+delta+`}`)
	event("content_block_stop", `{"type":"content_block_stop","index":0}`)
	event("message_delta", `{"type":"message_delta","delta":{"stop_reason":"`+reason+`","stop_sequence":null},"usage":{"output_tokens":1}}`)
	event("message_stop", `{"type":"message_stop"}`)
}
