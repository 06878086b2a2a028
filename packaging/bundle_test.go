package packaging

import (
	"bytes"
	"encoding/json"
	"image"
	_ "image/png" // the icon is one
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// limit is what Smithery takes, and what haldir promises.
const limit = 25_000_000

type manifest struct {
	Version string
	Server  struct {
		Type   string
		Config struct {
			Command string
			Args    []string
		} `json:"mcp_config"`
	}
	Tools []struct{ Name, Description string }
}

// unpacked unpacks the bundle with its own tool.
func unpacked(t *testing.T) (dir string, m manifest) {
	t.Helper()
	dir = t.TempDir()
	must(t, npm(t, os.Environ(), bundler, "mcpb", "unpack", file(t, "haldir-%s.mcpb"), dir))
	raw, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	return dir, decode[manifest](t, raw)
}

// launch is how a host starts the bundle, in the words of the bundle's own library.
func launch(t *testing.T, env []string, dir, userConfig string) *exec.Cmd {
	t.Helper()
	library := filepath.Join(filepath.Dir(mcptest.NPM(t, bundler, "mcpb")[1]), "..", "index.js")
	script := `
import { getMcpConfigForManifest } from ` + quoted(library) + `;
import { readFileSync } from "node:fs";
const dir = ` + quoted(dir) + `;
console.log(JSON.stringify(await getMcpConfigForManifest({
  manifest: JSON.parse(readFileSync(dir + "/manifest.json", "utf8")), extensionPath: dir, systemDirs: {}, pathSeparator: "/",
  userConfig: ` + userConfig + `,
})))`
	c := decode[struct {
		Command string
		Args    []string
	}](t, []byte(must(t, command(t, os.Environ(), tool(t, "node"), "--input-type=module", "-e", script))))
	if c.Command != "node" {
		t.Fatalf("the bundle is started by %s", c.Command)
	}
	return command(t, env, tool(t, "node"), c.Args...)
}

func quoted(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// TestBundle installs the bundle and runs its entry point with nothing configured.
func TestBundle(t *testing.T) {
	n := size(t, file(t, "haldir-%s.mcpb"))
	t.Logf("the bundle has %s", mega(n))
	if n > limit {
		t.Errorf("the bundle has %s, and %s is the limit", mega(n), mega(limit))
	}
	dir, m := unpacked(t)
	must(t, npm(t, os.Environ(), bundler, "mcpb", "validate", filepath.Join(dir, "manifest.json")))
	if m.Version != version(t) || m.Server.Type != "node" {
		t.Errorf("%+v", m)
	}
	env := clean(t)
	for _, config := range []string{`{}`, `{"config_file":"","state_directory":"","upstream_url":""}`} {
		s, _ := answers(t, launch(t, env, dir, config))
		type tools struct {
			Tools []struct{ Name, Description string }
		}
		got := decode[tools](t, s.Ask("tools/list", "{}").Result)
		if diff := cmp.Diff(tools{m.Tools}, got); diff != "" {
			t.Errorf("the manifest lists other tools than haldir has (-manifest +haldir):\n%s", diff)
		}
		s.End()
	}
	if made, err := filepath.Glob(filepath.Join(dir, "server/bin/*")); err != nil || len(made) != 1 {
		t.Errorf("beside the launcher there are %v: %v", made, err)
	}
}

// TestBundleIsConfigured fills in what the host asks its user for.
func TestBundleIsConfigured(t *testing.T) {
	dir, _ := unpacked(t)
	up := mcptest.Script{Tools: mcptest.Tools(mcptest.Tool("greet"))}.NewHTTP(t)
	work := t.TempDir()
	config, state := filepath.Join(work, "my haldir.yaml"), filepath.Join(work, "my state")
	url := quoted(up.Upstream("x").URL)
	if err := os.WriteFile(config, []byte("version: 1\nupstreams:\n  - {name: own, url: "+url+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for tool, user := range map[string]string{
		"own__greet":    `{"config_file":` + quoted(config) + `,"state_directory":` + quoted(state) + `}`,
		"server__greet": `{"upstream_url":` + url + `}`,
	} {
		s, tools := answers(t, launch(t, clean(t), dir, user))
		if !slices.Contains(tools, tool) {
			t.Errorf("%s: the tools are %v", user, tools)
		}
		s.End()
	}
	if _, err := os.Stat(filepath.Join(state, "haldir.db")); err != nil {
		t.Errorf("the state directory is not used: %v", err)
	}
	// Both at once is a mistake that the host shows.
	s := mcptest.Start(t, launch(t, clean(t), dir, `{"config_file":`+quoted(config)+`,"upstream_url":`+url+`}`))
	if m := s.Initialize(mcptest.Revision); !strings.Contains(string(m.Error), "keep one of them") {
		t.Errorf("both a config and a server: %s", m.Raw)
	}
}

// TestBundleOnEverySystem has the launcher take out the program of each, and compares.
func TestBundleOnEverySystem(t *testing.T) {
	dir, _ := unpacked(t)
	for _, p := range platforms {
		out := must(t, command(t, clean(t), tool(t, "node"), "-p", "require("+quoted(dir+"/server/unpack.js")+")("+quoted(p.os)+","+quoted(p.cpu)+")"))
		path := strings.TrimSpace(out)
		if got, want := sum(t, path), sum(t, programs(t)[p.goos+"/"+p.goarch]); got != want {
			t.Errorf("%s-%s: another program comes out than was built", p.os, p.cpu)
		}
		if exe := filepath.Ext(path) == ".exe"; exe != (p.os == "win32") {
			t.Errorf("%s-%s: the program is called %s", p.os, p.cpu, path)
		}
	}
	cmd := command(t, clean(t), tool(t, "node"), "-p", "require("+quoted(dir+"/server/unpack.js")+")('aix','ppc64')")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "no program for aix-ppc64, only for darwin-arm64") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestBundleThatCannotBeWrittenTo is one that another user has installed: its bin cannot
// be made.
func TestBundleThatCannotBeWrittenTo(t *testing.T) {
	dir, _ := unpacked(t)
	if err := os.WriteFile(filepath.Join(dir, "server/bin"), []byte("in the way"), 0o444); err != nil {
		t.Fatal(err)
	}
	env := clean(t)
	serves(t, launch(t, env, dir, `{}`))
	home := strings.TrimPrefix(env[1], "HOME=")
	found, err := filepath.Glob(filepath.Join(home, ".cache/haldir/bundle/haldir-*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("the cache has %v: %v", found, err)
	}
	serves(t, launch(t, env, dir, `{}`)) // from there
}

// TestBundleThatIsDamaged must not run what it has taken out of a damaged pack, nor what an
// earlier start has left half written.
func TestBundleThatIsDamaged(t *testing.T) {
	dir, _ := unpacked(t)
	env := clean(t)
	serves(t, launch(t, env, dir, `{}`))
	made, err := filepath.Glob(filepath.Join(dir, "server/bin/haldir-*"))
	if err != nil || len(made) != 1 {
		t.Fatalf("%v %v", made, err)
	}
	if err := os.Truncate(made[0], 1000); err != nil {
		t.Fatal(err)
	}
	serves(t, launch(t, env, dir, `{}`))

	if err := os.Remove(made[0]); err != nil {
		t.Fatal(err)
	}
	pack := filepath.Join(dir, "server/programs-"+own(t).cpu+".br")
	raw, err := os.ReadFile(pack)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/3] ^= 0x55
	if err := os.WriteFile(pack, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := launch(t, env, dir, `{}`).CombinedOutput()
	if want := "haldir: programs-" + own(t).cpu + ".br is damaged; install the bundle again\n"; err == nil || string(out) != want {
		t.Errorf("%v: %s", err, out)
	}
}

// TestIcon draws the icon anew.
func TestIcon(t *testing.T) {
	have, err := os.ReadFile("mcpb/icon.png")
	if err != nil {
		t.Fatal(err)
	}
	config, format, err := image.DecodeConfig(bytes.NewReader(have))
	if err != nil || format != "png" || config.Width != 512 || config.Height != 512 {
		t.Errorf("%s, %d by %d: %v", format, config.Width, config.Height, err)
	}
	drawn := must(t, exec.Command("go", "run", "./icon"))
	if drawn != string(have) {
		t.Error("mcpb/icon.png is not what packaging/icon draws: go run ./icon > mcpb/icon.png")
	}
}
