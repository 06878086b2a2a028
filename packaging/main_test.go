// Package packaging holds the tests of the packages that packaging/build has made: each is
// installed into a clean directory, as its users would, and must answer initialize there.
// It is a module of its own, so that the tests of the product stay quick and free of what
// only packages need. packaging/verify runs them.
package packaging

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

const (
	dist = "../dist"

	// bundler and smithery are the programs that people pack and publish bundles with.
	bundler  = "@anthropic-ai/mcpb@2.1.2"
	smithery = "@smithery/cli@4.11.1"
)

func TestMain(m *testing.M) {
	mcptest.Main()
	code := m.Run()
	mcptest.CleanUp()
	os.Exit(code)
}

// platforms are those that haldir is for, as Go and as node call them.
var platforms = []struct{ goos, goarch, os, cpu string }{
	{"linux", "amd64", "linux", "x64"},
	{"linux", "arm64", "linux", "arm64"},
	{"darwin", "amd64", "darwin", "x64"},
	{"darwin", "arm64", "darwin", "arm64"},
	{"windows", "amd64", "win32", "x64"},
	{"windows", "arm64", "win32", "arm64"},
}

// own is this machine's of them.
func own(t testing.TB) struct{ goos, goarch, os, cpu string } {
	t.Helper()
	for _, p := range platforms {
		if p.goos == runtime.GOOS && p.goarch == runtime.GOARCH {
			return p
		}
	}
	t.Fatalf("haldir is not packaged for %s/%s", runtime.GOOS, runtime.GOARCH)
	panic("unreachable")
}

// read returns a file of dist, which the script packaging/build makes.
func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dist, name))
	if errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%v: run packaging/build first", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decode[T any](t testing.TB, raw []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%v: %.200s", err, raw)
	}
	return v
}

// version is what goreleaser has read from the tag.
func version(t testing.TB) string {
	t.Helper()
	return decode[struct {
		Version string `json:"version"`
	}](t, read(t, "metadata.json")).Version
}

// file is the absolute path of a file of dist; %s in its name stands for the version.
func file(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(dist, strings.ReplaceAll(name, "%s", version(t))))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run packaging/build first", err)
	}
	return path
}

type built struct {
	Name, Path, Goos, Goarch, Type string
}

// programs are the paths of what was built, by the system as os/arch in Go's words.
func programs(t testing.TB) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, a := range decode[[]built](t, read(t, "artifacts.json")) {
		if a.Type == "Binary" {
			path, err := filepath.Abs(filepath.Join("..", a.Path))
			if err != nil {
				t.Fatal(err)
			}
			all[a.Goos+"/"+a.Goarch] = path
		}
	}
	if len(all) != len(platforms) {
		t.Fatalf("dist has programs of %d systems, not of %d", len(all), len(platforms))
	}
	return all
}

func sum(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// clean is the environment of a user who has nothing: a home directory without a file.
func clean(t testing.TB) []string {
	t.Helper()
	home := t.TempDir()
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + t.TempDir(), "LANG=C.UTF-8"}
}

// command makes a command that runs in a directory of its own.
func command(t testing.TB, env []string, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = t.TempDir(), env
	return cmd
}

// must runs a command that must succeed, and returns what it says on its output.
func must(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, out.String(), errOut.String())
	}
	return out.String()
}

// tool is a command of the system that a test needs.
func tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		mcptest.Unavailable(t, "%v", err)
	}
	return path
}

// npm is a program of an npm package, and what stands before its arguments.
func npm(t testing.TB, env []string, spec, program string, args ...string) *exec.Cmd {
	t.Helper()
	words := append(mcptest.NPM(t, spec, program), args...)
	return command(t, env, words[0], words[1:]...)
}

// answers has a program that speaks MCP shake hands, and returns the session and the names
// of its tools.
func answers(t testing.TB, cmd *exec.Cmd) (s *mcptest.Session, tools []string) {
	t.Helper()
	s = mcptest.Start(t, cmd)
	m := s.Initialize(mcptest.Revision)
	result := decode[struct {
		ServerInfo struct{ Name, Version string } `json:"serverInfo"`
	}](t, m.Result)
	if result.ServerInfo.Name != "haldir" || result.ServerInfo.Version != version(t) {
		t.Errorf("haldir %s answers initialize as %s", version(t), m.Raw)
	}
	list := decode[struct {
		Tools []struct{ Name string } `json:"tools"`
	}](t, s.Ask("tools/list", "{}").Result)
	for _, tool := range list.Tools {
		tools = append(tools, tool.Name)
	}
	if !slices.Contains(tools, "haldir_get_spend") {
		t.Errorf("the tools are %v", tools)
	}
	return s, tools
}

// serves has a program answer, and end at the end of its input.
func serves(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	s, _ := answers(t, cmd)
	s.End()
}

// isVersion runs haldir version, which must say that of the tag.
func isVersion(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if out, want := must(t, cmd), "haldir "+version(t)+" ("; !strings.HasPrefix(out, want) {
		t.Errorf("%s: %q does not begin with %q", strings.Join(cmd.Args, " "), out, want)
	}
}

// modules are those that are in a program, with their versions.
func modules(t testing.TB, path string) map[string]string {
	t.Helper()
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, d := range info.Deps {
		if d.Replace != nil {
			t.Errorf("%s: %s is replaced", path, d.Path)
		}
		all[d.Path] = d.Version
	}
	return all
}

func size(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func mega(n int64) string { return fmt.Sprintf("%.2f MB", float64(n)/1e6) }
func mebi(n int64) string { return fmt.Sprintf("%.2f MiB", float64(n)/(1<<20)) }

func atoi(t testing.TB, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
