package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// TestVersionsAreOne looks at every place where a version stands: all come from the tag.
func TestVersionsAreOne(t *testing.T) {
	v := version(t)
	if !regexp.MustCompile(`^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$`).MatchString(v) {
		t.Errorf("%q is no version that every registry takes", v)
	}
	for _, path := range []string{"mcpb/manifest.json", "plugin/.claude-plugin/plugin.json", "server.json", "npm/packages/haldir/package.json", "scoop/haldir.json"} {
		if got := decode[struct{ Version string }](t, read(t, path)).Version; got != v {
			t.Errorf("%s has the version %q, not %s", path, got, v)
		}
	}
	// In the repository nothing has one, so that nothing can be forgotten.
	for _, path := range []string{"mcpb/manifest.json", "plugin/.claude-plugin/plugin.json", "registry/server.json", "npm/haldir/package.json"} {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := decode[struct{ Version string }](t, raw).Version; got != "0.0.0" {
			t.Errorf("packaging/%s has the version %s of its own", path, got)
		}
	}
}

type server struct {
	Schema      string `json:"$schema"`
	Name        string
	Description string
	Version     string
	Packages    []struct {
		RegistryType, Identifier, Version, FileSha256 string
	}
}

// TestServerJSON holds what the MCP registry is given to the registry's own schema, and to
// what the schema cannot say.
func TestServerJSON(t *testing.T) {
	raw := read(t, "server.json")
	s := decode[server](t, raw)
	module := decode[struct{ Dir, Error string }](t, []byte(must(t, exec.Command("go", "mod", "download", "-json", "github.com/modelcontextprotocol/registry@v1.8.8"))))
	date := regexp.MustCompile(`/schemas/([\d-]+)/server\.schema\.json$`).FindStringSubmatch(s.Schema)
	if date == nil {
		t.Fatalf("the schema is %q", s.Schema)
	}
	in, err := os.Open(filepath.Join(module.Dir, "internal/validators/schemas", date[1]+".json"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	schema, err := jsonschema.UnmarshalJSON(in)
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	if err := compiler.AddResource(s.Schema, schema); err != nil {
		t.Fatal(err)
	}
	compiled, err := compiler.Compile(s.Schema)
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if err := compiled.Validate(value); err != nil {
		t.Error(err)
	}
	if !regexp.MustCompile(`^[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+$`).MatchString(s.Name) || len(s.Description) > 100 {
		t.Errorf("the registry does not take the name %q or the description of %d bytes", s.Name, len(s.Description))
	}
	var types []string
	for _, p := range s.Packages {
		types = append(types, p.RegistryType)
		switch p.RegistryType {
		case "mcpb":
			if want := "https://github.com/haldir-mcp/haldir/releases/download/v" + version(t) + "/haldir-" + version(t) + ".mcpb"; p.Identifier != want {
				t.Errorf("the bundle is at %s, not at %s", p.Identifier, want)
			}
			if p.FileSha256 != sum(t, file(t, "haldir-%s.mcpb")) {
				t.Error("the hash is another bundle's")
			}
		case "npm":
			// The registry asks npm whether the package knows of this name.
			pkg := decode[struct{ Name, McpName string }](t, read(t, "npm/packages/haldir/package.json"))
			if p.Identifier != pkg.Name || p.Version != version(t) || pkg.McpName != s.Name {
				t.Errorf("npm has %+v, the registry %+v", pkg, p)
			}
		case "oci":
			if want := "ghcr.io/haldir-mcp/haldir:" + version(t); p.Identifier != want {
				t.Errorf("the image is %s, not %s", p.Identifier, want)
			}
		}
	}
	if slices.Sort(types); !slices.Equal(types, []string{"mcpb", "npm", "oci"}) {
		t.Errorf("the packages are %v", types)
	}
}
