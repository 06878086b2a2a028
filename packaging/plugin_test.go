package packaging

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// claude makes the environment of the real Claude Code, with a home of its own.
func claude(t *testing.T) (home string, env []string) {
	t.Helper()
	home = t.TempDir()
	return home, []string{
		"HOME=" + home, "CLAUDE_CONFIG_DIR=" + filepath.Join(home, ".claude"), "PATH=" + os.Getenv("PATH"),
		// Without a prompt that a person types, the first turn does not wait for a plugin's servers.
		"MCP_CONNECTION_NONBLOCKING=0", "MCP_TIMEOUT=60000",
	}
}

// TestPluginIsValid has Claude Code itself say so.
func TestPluginIsValid(t *testing.T) {
	_, env := claude(t)
	for _, args := range [][]string{{"plugin", "validate", file(t, "plugin")}, {"plugin", "validate", "--profile", "directory", file(t, "plugin")}} {
		out := must(t, command(t, append(env, "DISABLE_TELEMETRY=1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1"), mcptest.ClaudeCode(t), args...))
		if !strings.Contains(out, "Validation passed") || strings.Contains(out, "warning") {
			t.Errorf("%v: %s", args, out)
		}
	}
}

// TestPluginInClaudeCode has the real Claude Code load the plugin, with the bundle in it,
// and a model call a tool of haldir by the name that it has there.
func TestPluginInClaudeCode(t *testing.T) {
	home, env := claude(t)
	const tool = "mcp__plugin_haldir_haldir__haldir_get_spend"
	c := mcptest.LaunchClaude(t, home, env, []string{"--plugin-dir", file(t, "plugin"), "--allowedTools", tool}, mcptest.ToolUse{Name: tool, Input: `{}`})
	first := c.Next("the first message", func(m mcptest.ClaudeMessage) bool { return m.Type == "system" && m.Subtype == "init" })
	init := decode[struct {
		Servers []struct{ Name, Status string } `json:"mcp_servers"`
	}](t, []byte(first.Raw))
	if len(init.Servers) != 1 || init.Servers[0].Name != "plugin:haldir:haldir" || init.Servers[0].Status != "connected" {
		t.Errorf("Claude Code has the servers %+v", init.Servers)
	}
	if results := c.End(); len(results) != 1 || !strings.Contains(results[0], "total_usd") {
		t.Errorf("the model was told %v", results)
	}
}
