package packaging

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// TestImage reads the definition of the image with the parser and the linter of Docker's
// own builder, and holds it to the context that is made for it. No image is built here:
// that needs an engine and the base image.
func TestImage(t *testing.T) {
	raw, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	ast, err := parser.Parse(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range ast.Warnings {
		t.Errorf("%s", w.Short)
	}
	lint := linter.New(&linter.Config{Warn: func(rule, _, _, message string, _ []parser.Range) { t.Errorf("%s: %s", rule, message) }})
	stages, _, err := instructions.Parse(ast.AST, lint)
	if err != nil {
		t.Fatal(err)
	}
	if len(stages) != 1 || !strings.Contains(stages[0].BaseName, ":") || strings.HasSuffix(stages[0].BaseName, ":latest") {
		t.Fatalf("the stages are %+v", stages)
	}
	program, state, user := "", "", ""
	var volumes []string
	for _, c := range stages[0].Commands {
		switch c := c.(type) {
		case *instructions.CopyCommand:
			for _, from := range c.SourcePaths {
				for _, arch := range []string{"amd64", "arm64"} {
					path := filepath.Join(dist, "image", strings.ReplaceAll(from, "${TARGETPLATFORM}", "linux/"+arch))
					if _, err := os.Stat(path); err != nil {
						t.Errorf("COPY %s: %v", from, err)
					}
					if strings.HasSuffix(from, "/haldir") && sum(t, path) != sum(t, programs(t)["linux/"+arch]) {
						t.Errorf("%s is another program than was built", path)
					}
				}
				if strings.HasSuffix(from, "/haldir") {
					program = c.DestPath
				}
				if from == "state" && c.Chmod == "0700" && c.Chown == "nonroot:nonroot" {
					state = c.DestPath
				}
			}
		case *instructions.EntrypointCommand:
			if c.PrependShell || !slices.Equal(c.CmdLine, []string{program}) {
				t.Errorf("the entry point is %v", c.CmdLine)
			}
		case *instructions.CmdCommand:
			if c.PrependShell || !slices.Equal(c.CmdLine, []string{"serve"}) {
				t.Errorf("the command is %v", c.CmdLine)
			}
		case *instructions.EnvCommand:
			for _, e := range c.Env {
				if e.Key == "HALDIR_STATE_DIR" && e.Value != state {
					t.Errorf("the state directory is %s, and %s is made", e.Value, state)
				}
			}
		case *instructions.VolumeCommand:
			volumes = append(volumes, c.Volumes...)
		case *instructions.UserCommand:
			user = c.User
		case *instructions.LabelCommand:
			for _, l := range c.Labels {
				if name := strings.Trim(l.Key, `"`); name == "io.modelcontextprotocol.server.name" &&
					strings.Trim(l.Value, `"`) != decode[server](t, read(t, "server.json")).Name {
					t.Errorf("the registry looks for another name than %s", l.Value)
				}
			}
		}
	}
	if program == "" || state == "" || user != "nonroot" || !slices.Equal(volumes, []string{state}) {
		t.Errorf("program %q, state %q, user %q, volumes %v", program, state, user, volumes)
	}
	if !bytes.Contains(raw, []byte("io.modelcontextprotocol.server.name=")) {
		t.Error("the registry asks the image for its name")
	}
}
