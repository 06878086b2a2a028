package packs_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/packs"
)

// TestCallsOfGettingStarted: what the page calls after it has added the pack is first refused,
// then asked about, as it says.
func TestCallsOfGettingStarted(t *testing.T) {
	var got []string
	for _, m := range regexp.MustCompile(`(?m)^haldir call files__(\w+) --args '(.*)'$`).FindAllStringSubmatch(page(t, "getting-started"), -1) {
		got = append(got, said(load(t, pack(t, "filesystem"), use("files")).Engine, "files", m[1], m[2]))
	}
	if want := []string{"denied files-root", "asks files-move", "asks files-move"}; !slices.Equal(got, want) {
		t.Errorf("the calls are %q, want %q", got, want)
	}
}

// TestTheRecipeForFiles: its rule refuses what it says, in whichever spelling, and nothing else.
func TestTheRecipeForFiles(t *testing.T) {
	block := regexp.MustCompile("(?s)### Files\n\n```yaml\n(.*?)```").FindStringSubmatch(page(t, "recipes"))
	if block == nil {
		t.Fatal("the recipe is missing")
	}
	c, err := config.Parse([]byte(block[1]), "recipes.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ tool, args, want string }{
		{"write_file", `{"path":"/p/.git/hooks/pre-commit","content":""}`, "denied no-orders"},
		{"write_file", `{"path":".git/hooks/pre-commit","content":""}`, "denied no-orders"},
		{"write_file", `{"path":"a/../.GIT//config","content":""}`, "denied no-orders"},
		{"write_file", `{"path":".mcp.json","content":""}`, "denied no-orders"},
		{"edit_file", `{"path":"C:\\p\\.mcp.json","edits":[]}`, "denied no-orders"},
		{"create_directory", `{"path":".git/hooks"}`, "denied no-orders"},
		{"move_file", `{"source":"a","destination":".git/hooks/pre-commit"}`, "denied no-orders"},
		{"move_file", `{"source":"a","destination":"/p/.mcp.json"}`, "denied no-orders"},
		{"move_file", `{"source":".git","destination":"a"}`, "denied no-orders"},
		{"write_file", `{"path":"a.txt","content":"write to .git/config, or .mcp.json"}`, "free"},
		{"write_file", `{"path":".gitignore","content":""}`, "free"},
		{"write_file", `{"path":"/p/.github/x.mcp.json","content":""}`, "free"},
		{"move_file", `{"source":"a","destination":"b"}`, "free"},
		{"create_directory", `{"path":"git"}`, "free"},
		{"read_text_file", `{"path":".git/config"}`, "free"},
	} {
		if got := said(c.Engine, "files", tt.tool, tt.args); got != tt.want {
			t.Errorf("%s %s is %s, want %s", tt.tool, tt.args, got, tt.want)
		}
	}
}

func page(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile("../../docs/" + name + ".md")
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(raw), "\r\n", "\n")
}

func pack(t *testing.T, name string) packs.Pack {
	t.Helper()
	all, err := packs.All()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(p packs.Pack) bool { return p.Name == name })
	if i < 0 {
		t.Fatalf("there is no pack %s", name)
	}
	return all[i]
}
