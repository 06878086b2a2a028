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
	isVersion(t, command(t, env, tool(t, "node"), filepath.Join(dir, "server/launch.js"), "version"))
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
		path := strings.TrimSpace(must(t, unpack(t, clean(t), dir, p.os, p.cpu)))
		if got, want := sum(t, path), sum(t, programs(t)[p.goos+"/"+p.goarch]); got != want {
			t.Errorf("%s-%s: another program comes out than was built", p.os, p.cpu)
		}
		if exe := filepath.Ext(path) == ".exe"; exe != (p.os == "win32") {
			t.Errorf("%s-%s: the program is called %s", p.os, p.cpu, path)
		}
	}
	if out, err := unpack(t, clean(t), dir, "aix", "ppc64").CombinedOutput(); err == nil || !strings.Contains(string(out), "no program for aix-ppc64, only for darwin-arm64") {
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

// unpack has the launcher's part that takes the program out say where it is.
func unpack(t *testing.T, env []string, dir, system, cpu string) *exec.Cmd {
	t.Helper()
	return command(t, env, tool(t, "node"), "-p", "require("+quoted(dir+"/server/unpack.js")+")("+quoted(system)+","+quoted(cpu)+")")
}

// TestBundleThatIsDamaged must not run what it has put together of damaged parts.
func TestBundleThatIsDamaged(t *testing.T) {
	dir, m := unpacked(t)
	if err := os.WriteFile(filepath.Join(dir, "server/bin"), []byte("in the way"), 0o444); err != nil {
		t.Fatal(err)
	}
	for part, systems := range map[string][]string{"base.br": {"linux", "darwin"}, "darwin-x64.br": {"darwin"}} {
		path := filepath.Join(dir, "server", part)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(whole)
		for i := 100; i < len(flipped); i += 1000 { // one alone may be of the other processor's program
			flipped[i] ^= 0x55
		}
		for _, damaged := range [][]byte{flipped, whole[:len(whole)/3], nil} {
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, system := range systems {
				out, err := unpack(t, clean(t), dir, system, "x64").CombinedOutput()
				if err == nil || !strings.Contains(string(out), "the bundle is damaged; install it again") {
					t.Errorf("%s of %d bytes, for %s: %v: %s", part, len(damaged), system, err, out)
				}
			}
		}
		if part == "base.br" {
			out, err := launch(t, clean(t), dir, `{}`).CombinedOutput()
			if want := "haldir: the bundle is damaged; install it again\n"; err == nil || string(out) != want {
				t.Errorf("haldir %s: %v: %s", m.Version, err, out)
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBundleTrustsNoCache has something else stand where the program of an earlier start
// was: the launcher must put the program there again, and not run the other.
func TestBundleTrustsNoCache(t *testing.T) {
	dir, _ := unpacked(t)
	env, p := clean(t), own(t)
	program := strings.TrimSpace(must(t, unpack(t, env, dir, p.os, p.cpu)))
	if want := filepath.Join(dir, "server/bin"); filepath.Dir(program) != want {
		t.Fatalf("the program is in %s, not in %s", program, want)
	}
	genuine, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(elsewhere, genuine, 0o700); err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(genuine)
	changed[len(changed)/2] ^= 1
	for name, put := range map[string]func() error{
		"another of the same length": func() error { return os.WriteFile(program, changed, 0o700) },
		"half of it":                 func() error { return os.WriteFile(program, genuine[:len(genuine)/2], 0o700) },
		"a link out of there":        func() error { return os.Symlink(elsewhere, program) },
		"one that others may change": func() error {
			if err := os.WriteFile(program, genuine, 0o700); err != nil {
				return err
			}
			return os.Chmod(program, 0o777)
		},
	} {
		if err := os.Remove(program); err != nil {
			t.Fatal(err)
		}
		if err := put(); err != nil {
			t.Fatal(err)
		}
		serves(t, launch(t, env, dir, `{}`))
		if info, err := os.Lstat(program); err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0 || sum(t, program) != sum(t, elsewhere) {
			t.Errorf("%s: it is still there: %v %v", name, info, err)
		}
	}

	// Nor a directory in which others can exchange it after the look.
	if err := os.Chmod(filepath.Dir(program), 0o777); err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	moved := strings.TrimSpace(must(t, unpack(t, append(env, "XDG_CACHE_HOME="+cache), dir, p.os, p.cpu)))
	if want := filepath.Join(cache, "haldir/bundle"); filepath.Dir(moved) != want {
		t.Errorf("the program is in %s, not in %s", moved, want)
	}
	if err := os.Chmod(cache, 0o777); err != nil {
		t.Fatal(err)
	}
	out, err := unpack(t, append(env, "XDG_CACHE_HOME="+cache), dir, p.os, p.cpu).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "cannot unpack the program: other users may write to "+filepath.Dir(program)+"; other users may write to "+cache) {
		t.Errorf("both directories are open: %v: %s", err, out)
	}
}

// TestBundleStartsAtOnce is a host that starts several servers of one bundle that is new.
func TestBundleStartsAtOnce(t *testing.T) {
	dir, _ := unpacked(t)
	env := clean(t)
	var sessions []*mcptest.Session
	for range 4 {
		sessions = append(sessions, mcptest.Start(t, launch(t, env, dir, `{}`)))
	}
	for _, s := range sessions {
		if m := s.Initialize(mcptest.Revision); m.Error != nil {
			t.Errorf("%s", m.Raw)
		}
	}
	for _, s := range sessions {
		s.End()
	}
	if made, err := filepath.Glob(filepath.Join(dir, "server/bin/*")); err != nil || len(made) != 1 {
		t.Errorf("beside the launcher there are %v: %v", made, err)
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
