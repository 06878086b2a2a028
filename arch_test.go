// Package haldir holds the tests that concern the repository as a whole.
package haldir

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/haldir-mcp/haldir/"

// may lists which rooms the code of a room may import; tests are free. Arrows
// point down only, and what is not listed may import none of ours.
var may = map[string][]string{
	"policy":                       {},
	"internal/wire":                {},
	"audit":                        {},
	"internal/files":               {},
	"internal/config":              {"policy", "audit", "internal/files", "internal/wire"},
	"internal/replace":             {},
	"internal/config/edit":         {"internal/config", "internal/replace", "internal/secret"},
	"internal/packs":               {"internal/config", "internal/config/edit", "policy"},
	"internal/clients":             {"internal/files", "internal/replace", "internal/wire"},
	"internal/adopt":               {"internal/clients", "internal/config", "internal/config/edit", "internal/files", "internal/replace", "internal/secret", "internal/wire", "policy"},
	"internal/doctor":              {"internal/adopt", "internal/clients", "internal/config", "internal/files", "internal/replace", "internal/wire", "policy"},
	"internal/ledger":              {"audit", "policy"},
	"internal/secret":              {},
	"internal/replay":              {"audit", "policy"},
	"internal/suggest":             {"internal/replay", "audit", "policy"},
	"internal/report":              {"audit", "policy"},
	"upstream/pins":                {},
	"upstream/oauth":               {"internal/config", "internal/secret", "internal/wire"},
	"upstream":                     {"upstream/oauth", "upstream/pins", "internal/config", "internal/wire"},
	"internal/approval":            {"internal/ledger", "audit", "policy", "internal/wire"},
	"proxy":                        {"internal/approval", "upstream", "internal/ledger", "audit", "policy", "internal/wire"},
	"internal/metrics":             {},
	"internal/telemetry":           {"proxy", "internal/ledger", "internal/metrics", "internal/wire", "audit", "policy"},
	"internal/console/page":        {},
	"internal/console/api":         {"internal/metrics", "proxy", "upstream", "upstream/oauth", "upstream/pins", "internal/ledger", "internal/wire", "audit", "policy"},
	"internal/console":             {"internal/console/api", "internal/ledger", "internal/wire"},
	"cmd/haldir":                   {"internal/console", "internal/console/api", "internal/console/page", "internal/approval", "internal/telemetry", "proxy", "upstream", "upstream/oauth", "upstream/pins", "internal/secret", "internal/replay", "internal/suggest", "internal/report", "internal/ledger", "internal/config", "internal/config/edit", "internal/packs", "internal/clients", "internal/adopt", "internal/doctor", "internal/files", "internal/wire", "audit", "policy", "examples/securitytools"},
	"examples/securitytools":       {},
	"examples/securitytools/serve": {"examples/securitytools"},
	"internal/mcptest":             {"internal/config", "internal/wire"},
}

// only says who alone may import a library.
var only = map[string][]string{
	"go.etcd.io/bbolt":                       {"internal/ledger"},
	"github.com/spf13/viper":                 {"internal/config"},
	"github.com/goccy/go-yaml":               {"internal/config"},
	"github.com/spf13/cobra":                 {"cmd/haldir"},
	"cel.dev/cel-go":                         {"policy"},
	"filippo.io/age":                         {"internal/secret"},
	"github.com/zalando/go-keyring":          {"internal/secret"},
	"github.com/modelcontextprotocol/go-sdk": {"upstream/oauth"},
	"github.com/tailscale/hujson":            {"internal/clients"},
	"go.opentelemetry.io":                    {"internal/telemetry"},
}

func TestImportsPointDown(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != "." || d.Name() == "tools" || d.Name() == "packaging" || d.Name() == "testdata" || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		room := filepath.ToSlash(filepath.Dir(path))
		allowed, known := may[room]
		if !known {
			t.Errorf("%s: the room %s is not in the plan; add it to docs/architecture.md and here", path, room)
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, imp := range file.Imports {
			name, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			if ours, ok := strings.CutPrefix(name, module); ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s: %s must not import %s", path, room, ours)
			}
			for lib, rooms := range only {
				if (name == lib || strings.HasPrefix(name, lib+"/")) && !slices.Contains(rooms, room) {
					t.Errorf("%s: only %s may import %s", path, strings.Join(rooms, ", "), lib)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
