package main_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/examples/securitytools"
	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// newcomer is somebody with a clean home directory, Claude Code and haldir.
type newcomer struct {
	home, dir, config string
	env               []string
}

// newNewcomer makes one whose Claude Code has three servers: one over HTTP and two programs.
func newNewcomer(t *testing.T) *newcomer {
	t.Helper()
	security := httptest.NewServer(securitytools.Handler())
	t.Cleanup(security.Close)
	everything := mcptest.NPM(t, mcptest.Everything, "mcp-server-everything")
	files := mcptest.NPM(t, mcptest.Filesystem, "mcp-server-filesystem")
	p := &newcomer{home: t.TempDir()}
	p.dir = filepath.Join(p.home, "project")
	bin := filepath.Join(p.home, "bin")
	for _, dir := range []string{p.dir, bin} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, path := range map[string]string{"claude": mcptest.ClaudeCode(t), "haldir": program(t)} {
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	p.env = []string{
		"HOME=" + p.home, "PATH=" + bin + string(os.PathListSeparator) + os.Getenv("PATH"), "HALDIR_KEYRING=file", "HALDIR_LIST_WAIT=60s",
		"DISABLE_AUTOUPDATER=1", "DISABLE_TELEMETRY=1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1", "MCP_CONNECTION_NONBLOCKING=0",
	}
	text := func(v any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	p.config = filepath.Join(p.home, ".claude.json")
	p.write(t, `{
    "numStartups": 3,
    "mcpServers": {
        "Security Tools": {"type": "http", "url": `+text(security.URL+"/mcp")+`, "headers": {"X-Api-Key": "k3y-0123456789"}},
        "everything":     {"command": `+text(everything[0])+`, "args": `+text(everything[1:])+`, "env": {}},
        "files": {
            "type": "stdio",
            "command": `+text(files[0])+`,
            "args": `+text(append(files[1:], p.dir))+`
        }
    }
}`)
	if err := os.WriteFile(filepath.Join(p.dir, "hello.txt"), []byte("hello from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *newcomer) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (p *newcomer) read(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// servers are those of Claude Code's file, however they are written.
func (p *newcomer) servers(t *testing.T) string {
	t.Helper()
	var file struct {
		Servers map[string]any `json:"mcpServers"`
	}
	if err := json.Unmarshal([]byte(p.read(t)), &file); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(file.Servers)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// run runs a program of the newcomer's PATH, which must do well.
func (p *newcomer) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(p.home, "bin", name), args...)
	cmd.Dir, cmd.Env = p.dir, p.env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

// TestRealClaudeCodeInit goes the way of a new user: from Claude Code's own three servers to
// Claude Code with haldir before them, and back.
func TestRealClaudeCodeInit(t *testing.T) {
	t.Parallel()
	p := newNewcomer(t)
	servers := p.servers(t)
	said := p.run(t, "haldir", "init", "--yes")
	if !strings.Contains(said, "registered by `claude mcp add`") || strings.Contains(said, "edited") || strings.Contains(said, "k3y-") {
		t.Errorf("init said: %s", said)
	}
	var now struct {
		Servers map[string]struct {
			Command string   `json:"command"`
			Args    []string `json:"args"`
		} `json:"mcpServers"`
		Startups int `json:"numStartups"`
	}
	if err := json.Unmarshal([]byte(p.read(t)), &now); err != nil {
		t.Fatal(err)
	}
	if h := now.Servers["haldir"]; len(now.Servers) != 1 || h.Command != "haldir" || strings.Join(h.Args, " ") != "serve" || now.Startups == 0 {
		t.Errorf("Claude Code's file: %s", p.read(t))
	}
	list := p.run(t, "claude", "mcp", "list")
	if !regexp.MustCompile(`haldir: haldir serve - .* Connected`).MatchString(list) || strings.Contains(list, "everything") {
		t.Errorf("claude mcp list: %s", list)
	}
	p.run(t, "haldir", "tools") // nothing is unknown when the model asks
	c := mcptest.LaunchClaude(
		t, p.dir, p.env, nil,
		mcptest.ToolUse{Name: "mcp__haldir__security-tools__scan_domain", Input: `{"domain":"example.org"}`},
		mcptest.ToolUse{Name: "mcp__haldir__everything__echo", Input: `{"message":"round trip"}`},
		mcptest.ToolUse{Name: "mcp__haldir__files__read_text_file", Input: `{"path":"hello.txt"}`},
	)
	results := c.End()
	if len(results) != 3 || !strings.Contains(results[0], "example.org") || !strings.Contains(results[1], "round trip") || !strings.Contains(results[2], "hello from a file") {
		t.Fatalf("the model was told: %q", results)
	}
	audit := p.run(t, "haldir", "audit", "list", "--json")
	for _, tool := range []string{"scan_domain", "echo", "read_text_file"} {
		if !strings.Contains(audit, tool) {
			t.Errorf("the audit has no %s: %s", tool, audit)
		}
	}
	// Claude Code has written to its file meanwhile, which stays, by force as well.
	p.run(t, "haldir", "init", "--undo", "--yes", "--force")
	if got := p.servers(t); got != servers {
		t.Errorf("undone:\n%s\nbefore:\n%s", got, servers)
	}
	if _, err := os.Stat(filepath.Join(p.home, ".config", "haldir", "haldir.yaml")); !os.IsNotExist(err) {
		t.Errorf("haldir.yaml: %v", err)
	}
	if secrets := p.run(t, "haldir", "secret", "list", "--json"); strings.Contains(secrets, "security-tools") {
		t.Errorf("secrets: %s", secrets)
	}
}

// TestRealClaudeCodeUndo: what nobody has touched since comes back byte for byte; what Claude
// Code has written since stays, and has its servers again.
func TestRealClaudeCodeUndo(t *testing.T) {
	t.Parallel()
	p := newNewcomer(t)
	before := p.read(t)
	tokens := p.signIn(t)
	p.run(t, "haldir", "init", "--yes")
	p.run(t, "haldir", "init", "--undo", "--yes")
	if got := p.read(t); got != before {
		t.Errorf("undone:\n%s\nbefore:\n%s", got, before)
	}
	if raw, err := os.ReadFile(filepath.Join(p.home, ".claude", ".credentials.json")); err != nil || string(raw) != tokens {
		t.Errorf("what Claude Code signs in with: %s, %v", raw, err)
	}
	p.run(t, "haldir", "init", "--yes")
	p.run(t, "claude", "mcp", "add", "--scope", "user", "later", "--", "true")
	said := p.run(t, "haldir", "init", "--undo", "--yes")
	if !strings.Contains(said, "was changed since; init's part of it is taken back") {
		t.Errorf("undo said: %s", said)
	}
	var now, was struct {
		Servers map[string]any `json:"mcpServers"`
	}
	if err := json.Unmarshal([]byte(p.read(t)), &now); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(before), &was); err != nil {
		t.Fatal(err)
	}
	if now.Servers["later"] == nil || len(now.Servers) != 4 {
		t.Errorf("the servers: %v", now.Servers)
	}
	for name := range was.Servers {
		if now.Servers[name] == nil {
			t.Errorf("%s is gone: %s", name, p.read(t))
		}
	}
}

// signIn makes what Claude Code keeps of a sign-in to its first server, which goes with a server
// that Claude Code removes.
func (p *newcomer) signIn(t *testing.T) string {
	t.Helper()
	var file struct {
		Servers map[string]struct {
			Type    string            `json:"type"`
			URL     string            `json:"url"`
			Headers map[string]string `json:"headers"`
		} `json:"mcpServers"`
	}
	if err := json.Unmarshal([]byte(p.read(t)), &file); err != nil {
		t.Fatal(err)
	}
	const name = "Security Tools"
	raw, err := json.Marshal(file.Servers[name])
	if err != nil {
		t.Fatal(err)
	}
	key := fmt.Sprintf("%s|%x", name, sha256.Sum256(raw))[:len(name)+1+16]
	raw, err = json.Marshal(map[string]any{"mcpOAuth": map[string]any{key: map[string]any{
		"serverName": name, "serverUrl": file.Servers[name].URL, "accessToken": "access", "refreshToken": "refresh", "expiresAt": 9999999999999,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(p.home, ".claude"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.home, ".claude", ".credentials.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestRealClaudeCodeInitWhileItRuns: what init and its undoing change under a Claude Code that
// runs, and has its file in memory, stays when that ends.
func TestRealClaudeCodeInitWhileItRuns(t *testing.T) {
	t.Parallel()
	p := newNewcomer(t)
	servers := p.servers(t)
	while := func(command string) {
		t.Helper()
		input, err := json.Marshal(map[string]string{"command": command, "description": "runs it"})
		if err != nil {
			t.Fatal(err)
		}
		for tries := 0; ; tries++ { // it may save its file in the middle, and then init says to try again
			c := mcptest.LaunchClaude(t, p.dir, p.env, []string{"--allowedTools", "Bash"}, mcptest.ToolUse{Name: "Bash", Input: string(input)})
			switch results := c.End(); {
			case len(results) == 1 && tries < 5 && strings.Contains(results[0], "the file changes while it is edited"):
			case len(results) != 1 || strings.Contains(results[0], "haldir: ") && !strings.Contains(results[0], "is called"):
				t.Fatalf("%s: %q", command, results)
			default:
				return
			}
		}
	}
	while("haldir init --yes")
	if got := p.servers(t); got != `{"haldir":{"args":["serve"],"command":"haldir","type":"stdio"}}` || !strings.Contains(p.read(t), `"firstStartVersion"`) {
		t.Errorf("Claude Code's file: %s", p.read(t))
	}
	while("haldir init --undo --yes")
	if got := p.servers(t); got != servers {
		t.Errorf("undone:\n%s\nbefore:\n%s", got, servers)
	}
}

// TestRealClaudeCodePermissions: the rules keep Claude Code's shell and editor away, in
// whatever way the command is written, and from nothing else.
func TestRealClaudeCodePermissions(t *testing.T) {
	t.Parallel()
	p := newNewcomer(t)
	p.run(t, "haldir", "init", "--yes", "--permissions")
	p.run(t, "haldir", "tools")
	config := filepath.Join(p.home, ".config", "haldir", "haldir.yaml")
	state := filepath.Join(p.home, ".local", "state", "haldir", "init")
	shell := func(command string) mcptest.ToolUse {
		input, err := json.Marshal(map[string]string{"command": command, "description": "runs it"})
		if err != nil {
			t.Fatal(err)
		}
		return mcptest.ToolUse{Name: "Bash", Input: string(input)}
	}
	tool := func(name, path, more string) mcptest.ToolUse {
		return mcptest.ToolUse{Name: name, Input: `{"file_path":"` + path + `"` + more + `}`}
	}
	denied := []mcptest.ToolUse{
		shell("haldir approvals approve apr_1"),
		shell("haldir --config " + config + " approvals approve apr_1"),
		shell(filepath.Join(p.home, "bin", "haldir") + " resume"),
		shell("true && haldir reload"),
		shell("haldir init --undo --yes"),
		tool("Read", config, ""),
		tool("Write", config, `,"content":"version: 1"`),
		tool("Read", filepath.Join(state, "x"), ""),
	}
	allowed := []mcptest.ToolUse{
		shell("haldir version"),
		shell("cd " + p.dir + " && echo haldir init key"),
		tool("Read", filepath.Join(p.dir, "hello.txt"), ""),
	}
	c := mcptest.LaunchClaude(t, p.dir, p.env, []string{"--allowedTools", "Bash", "Read", "Write", "Edit", "mcp__haldir__*"}, append(denied, allowed...)...)
	results := c.End()
	if len(results) != len(denied)+len(allowed) {
		t.Fatalf("%d results: %q", len(results), results)
	}
	for i, r := range results {
		refused := strings.Contains(r, "denied")
		if want := i < len(denied); refused != want {
			t.Errorf("%v: %s", append(denied, allowed...)[i], r)
		}
	}
}
