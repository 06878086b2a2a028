package packaging

import (
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// packages is a registry of npm with what packaging/build has made, and nothing else.
type packages struct {
	byName map[string]published
	srv    *httptest.Server

	mu    sync.Mutex
	taken []string // the tarballs that were downloaded
}

type published struct {
	manifest map[string]json.RawMessage
	tarball  []byte
}

// newPackages publishes all packages but the left out.
func newPackages(t *testing.T, leftOut ...string) *packages {
	t.Helper()
	p := &packages{byName: map[string]published{}}
	tarballs, err := filepath.Glob(filepath.Join(file(t, "npm"), "*-"+version(t)+".tgz"))
	if err != nil || len(tarballs) != len(platforms)+1 {
		t.Fatalf("%v %v: run packaging/build first", tarballs, err)
	}
	for _, path := range tarballs {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var manifest map[string]json.RawMessage
		for _, f := range archivedLoosely(t, path) {
			if f.name == "package/package.json" {
				manifest = decode[map[string]json.RawMessage](t, f.body)
			}
		}
		name := decode[string](t, manifest["name"])
		if !slices.Contains(leftOut, name) {
			p.byName[name] = published{manifest, raw}
		}
	}
	p.srv = httptest.NewServer(p)
	t.Cleanup(p.srv.Close)
	return p
}

func (p *packages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, err := url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), "/"))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	if at, tarball := strings.CutSuffix(name, ".tgz"); tarball {
		p.mu.Lock()
		p.taken = append(p.taken, at)
		p.mu.Unlock()
		_, _ = w.Write(p.byName[at].tarball)
		return
	}
	pkg, ok := p.byName[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	hash := sha512.Sum512(pkg.tarball)
	manifest := map[string]json.RawMessage{}
	for k, v := range pkg.manifest {
		manifest[k] = v
	}
	manifest["dist"], _ = json.Marshal(map[string]string{
		"tarball": p.srv.URL + "/" + url.PathEscape(name) + ".tgz", "integrity": "sha512-" + base64.StdEncoding.EncodeToString(hash[:]),
	})
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"name": name, "dist-tags": map[string]json.RawMessage{"latest": manifest["version"]},
		"versions": map[string]any{strings.Trim(string(manifest["version"]), `"`): manifest},
	})
}

// env is that of a user whose npm knows this registry only.
func (p *packages) env(t *testing.T) []string {
	t.Helper()
	return append(clean(t), "npm_config_registry="+p.srv.URL, "npm_config_update_notifier=false", "npm_config_audit=false", "npm_config_fund=false")
}

// archivedLoosely reads a tarball of npm, whose files belong to nobody.
func archivedLoosely(t *testing.T, path string) (files []entry) {
	t.Helper()
	dir := t.TempDir()
	must(t, command(t, os.Environ(), tool(t, "tar"), "-xzf", path, "-C", dir))
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		body, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files = append(files, entry{filepath.ToSlash(name), info.Mode(), body})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestNPMPackages looks at what is in each, above all that nothing runs at installation.
func TestNPMPackages(t *testing.T) {
	all := newPackages(t).byName
	for name, p := range all {
		if p.manifest["scripts"] != nil {
			t.Errorf("%s has scripts: %s", name, p.manifest["scripts"])
		}
		if got := decode[string](t, p.manifest["version"]); got != version(t) {
			t.Errorf("%s has the version %s", name, got)
		}
		t.Logf("%-36s %s", name, mega(int64(len(p.tarball))))
	}
	var needed map[string]string
	if needed = decode[map[string]string](t, all["haldir"].manifest["optionalDependencies"]); len(needed) != len(platforms) {
		t.Errorf("haldir needs %v", needed)
	}
	for _, p := range platforms {
		name := "@haldir-mcp/haldir-" + p.os + "-" + p.cpu
		if needed[name] != version(t) {
			t.Errorf("haldir needs %s %q", name, needed[name])
		}
		systems, processors := decode[[]string](t, all[name].manifest["os"]), decode[[]string](t, all[name].manifest["cpu"])
		if !slices.Equal(systems, []string{p.os}) || !slices.Equal(processors, []string{p.cpu}) {
			t.Errorf("%s is for %v on %v", name, systems, processors)
		}
		exe := map[string]string{"win32": ".exe"}[p.os]
		built, err := os.ReadFile(programs(t)[p.goos+"/"+p.goarch])
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, f := range archivedLoosely(t, file(t, "npm/haldir-mcp-haldir-"+p.os+"-"+p.cpu+"-%s.tgz")) {
			if f.name == "package/bin/haldir"+exe {
				found = string(f.body) == string(built) && f.mode.Perm()&0o111 == 0o111
			}
		}
		if !found {
			t.Errorf("%s has not the program that was built, or it cannot be run", name)
		}
	}
}

// TestNpx does what a user does who has nothing of haldir yet: npm itself must choose the
// one package of six that fits.
func TestNpx(t *testing.T) {
	registry := newPackages(t)
	env := registry.env(t)
	npx := tool(t, "npx")
	serves(t, command(t, env, npx, "-y", "haldir@"+version(t), "serve"))
	want := []string{"@haldir-mcp/haldir-" + own(t).os + "-" + own(t).cpu, "haldir"}
	slices.Sort(registry.taken)
	if got := slices.Compact(registry.taken); !slices.Equal(got, want) {
		t.Errorf("npm has downloaded %v, not %v", got, want)
	}
	// The exit code is haldir's.
	cmd := command(t, env, npx, "-y", "haldir@"+version(t), "check", "nowhere.yaml")
	out, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 2 {
		t.Errorf("a wrong config: exit status %d\n%s", code, out)
	}
}

// TestNPMInstall installs as a project does, without scripts, and looks at what the
// launcher passes on.
func TestNPMInstall(t *testing.T) {
	env := newPackages(t).env(t)
	dir := t.TempDir()
	install := command(t, env, tool(t, "npm"), "install", "--ignore-scripts", "--prefix", dir, "haldir")
	must(t, install)
	launcher := filepath.Join(dir, "node_modules", ".bin", "haldir")
	serves(t, command(t, env, launcher, "serve"))
	isVersion(t, command(t, env, launcher, "version"))

	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		s, _ := answers(t, command(t, env, launcher, "serve"))
		child := onlyChild(t, s.Pid())
		if err := syscall.Kill(s.Pid(), signal); err != nil {
			t.Fatal(err)
		}
		if code := s.Exit(); code != 0 {
			t.Errorf("%v: exit status %d, and haldir's own is 0", signal, code)
		}
		if err := syscall.Kill(child, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("%v: the program is still there: %v", signal, err)
		}
	}

	// A program that is killed is told as such.
	s, _ := answers(t, command(t, env, launcher, "serve"))
	if err := syscall.Kill(onlyChild(t, s.Pid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := s.Exit(); code != -1 && code != 128+9 { // -1: it has died of the signal itself
		t.Errorf("killed: exit status %d", code)
	}
}

// TestNPMWithoutProgram is npm with --omit=optional, or node_modules from another system.
func TestNPMWithoutProgram(t *testing.T) {
	name := "@haldir-mcp/haldir-" + own(t).os + "-" + own(t).cpu
	env := newPackages(t, name).env(t)
	dir := t.TempDir()
	must(t, command(t, env, tool(t, "npm"), "install", "--prefix", dir, "haldir"))
	cmd := command(t, env, filepath.Join(dir, "node_modules", ".bin", "haldir"), "serve")
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("%v", err)
	}
	if !strings.Contains(string(out), "haldir: the package "+name+" is not installed\nhaldir: hint: install haldir without --omit=optional") {
		t.Errorf("%s", out)
	}
}

// onlyChild returns the process that a launcher has started.
func onlyChild(t *testing.T, pid int) int {
	t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	out := strings.Fields(string(children))
	if err != nil || len(out) != 1 {
		t.Fatalf("the launcher has the children %v: %v", out, err)
	}
	return atoi(t, out[0])
}

// TestREADMEOfNPM has the example of the page work: it is what people copy.
func TestREADMEOfNPM(t *testing.T) {
	text, err := os.ReadFile("npm/haldir/README.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("```sh\nnpx haldir (.*)\n```").FindSubmatch(text)
	if m == nil {
		t.Fatal("the page has no command")
	}
	p := own(t)
	cmd := command(t, clean(t), tool(t, "sh"), "-c", programs(t)[p.goos+"/"+p.goarch]+" "+string(m[1]))
	s := mcptest.Start(t, cmd)
	if r := s.Initialize(mcptest.Revision); r.Error != nil {
		t.Errorf("%s", r.Raw)
	}
	s.End()
}
