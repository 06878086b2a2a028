package packaging

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestBinarySizes holds the program below 25 MiB on every system. What makes it jump by a
// fifth is said in docs/releasing.md.
func TestBinarySizes(t *testing.T) {
	for system, path := range programs(t) {
		n := size(t, path)
		t.Logf("%-14s %s", system, mebi(n))
		if n >= 25<<20 {
			t.Errorf("%s: the program has %s, and 25 MiB is too much", system, mebi(n))
		}
	}
}

// TestProgramsAreStamped looks at what every program knows of its making, also of those
// that cannot run here.
func TestProgramsAreStamped(t *testing.T) {
	for system, path := range programs(t) {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(raw, []byte(version(t))) {
			t.Errorf("%s: the version is not in the program", system)
		}
		if wd, err := filepath.Abs(".."); err != nil || bytes.Contains(raw, []byte(wd+"/")) {
			t.Errorf("%s: the directory of the build is in the program: %v", system, err)
		}
		if len(modules(t, path)) == 0 {
			t.Errorf("%s: the program does not say which modules it has", system)
		}
	}
	p := own(t)
	isVersion(t, command(t, clean(t), programs(t)[p.goos+"/"+p.goarch], "version"))
}

// entry is a file of an archive.
type entry struct {
	name string
	mode os.FileMode
	body []byte
}

func archived(t *testing.T, path string) (files []entry) {
	t.Helper()
	if strings.HasSuffix(path, ".zip") {
		r, err := zip.OpenReader(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Close() }()
		for _, f := range r.File {
			in, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(in)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, entry{f.Name, f.Mode(), body})
		}
		return files
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uname != "root" || h.Gname != "root" {
			t.Errorf("%s: %s belongs to %s:%s", path, h.Name, h.Uname, h.Gname)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, entry{h.Name, h.FileInfo().Mode(), body})
	}
}

// TestArchives looks into the archive of every system, and runs what is in this one's.
func TestArchives(t *testing.T) {
	verbs := manual(t)
	for _, p := range platforms {
		ext, exe := ".tar.gz", ""
		if p.goos == "windows" {
			ext, exe = ".zip", ".exe"
		}
		path := file(t, "haldir_%s_"+p.goos+"_"+p.goarch+ext)
		files := map[string]entry{}
		for _, f := range archived(t, path) {
			files[f.name] = f
		}
		want := append([]string{
			"haldir" + exe, "LICENSE", "README.md", "haldir.example.yaml",
			"completions/haldir.bash", "completions/haldir.fish", "completions/_haldir", "completions/haldir.ps1",
		}, verbs...)
		for _, name := range want {
			if len(files[name].body) == 0 {
				t.Errorf("%s has no %s", filepath.Base(path), name)
			}
		}
		if len(files) != len(want) {
			t.Errorf("%s has %d files, not %d", filepath.Base(path), len(files), len(want))
		}
		if mode := files["haldir"+exe].mode.Perm(); mode != 0o755 {
			t.Errorf("%s: the program's mode is %v", filepath.Base(path), mode)
		}
		program, err := os.ReadFile(programs(t)[p.goos+"/"+p.goarch])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(files["haldir"+exe].body, program) {
			t.Errorf("%s has another program than was built", filepath.Base(path))
		}
		if p != own(t) {
			continue
		}
		dir := t.TempDir()
		must(t, command(t, clean(t), tool(t, "tar"), "-xzf", path, "-C", dir))
		serves(t, command(t, clean(t), filepath.Join(dir, "haldir"), "serve"))
		isVersion(t, command(t, clean(t), filepath.Join(dir, "haldir"), "version"))
		// The example is one: haldir reads it.
		must(t, command(t, clean(t), filepath.Join(dir, "haldir"), "check", filepath.Join(dir, "haldir.example.yaml")))
	}
}

// manual returns the pages of the manual that there must be: one a verb of the program.
func manual(t *testing.T) (names []string) {
	t.Helper()
	p := own(t)
	program := programs(t)[p.goos+"/"+p.goarch]
	line := regexp.MustCompile(`^  ([a-z-]+) +\S`)
	var walk func(words ...string)
	walk = func(words ...string) {
		names = append(names, "man/"+strings.Join(append([]string{"haldir"}, words...), "-")+".1")
		help := must(t, command(t, clean(t), program, append(slices.Clone(words), "--help")...))
		_, list, _ := strings.Cut(help, "\nAvailable Commands:\n")
		list, _, _ = strings.Cut(list, "\n\n")
		for l := range strings.Lines(list) {
			if m := line.FindStringSubmatch(l); m != nil && m[1] != "help" {
				walk(append(slices.Clone(words), m[1])...)
			}
		}
	}
	walk()
	if len(names) < 20 {
		t.Fatalf("the program has only the verbs %v", names)
	}
	return names
}

// TestPagesAreGood has the shells and man themselves read what was made for them.
func TestPagesAreGood(t *testing.T) {
	dir := t.TempDir()
	p := own(t)
	must(t, command(t, clean(t), tool(t, "tar"), "-xzf", file(t, "haldir_%s_"+p.goos+"_"+p.goarch+".tar.gz"), "-C", dir))
	bash := must(t, command(t, clean(t), tool(t, "bash"), "-c", `. "$1" && complete -p haldir`, "bash", filepath.Join(dir, "completions/haldir.bash")))
	if !strings.Contains(bash, "__start_haldir") {
		t.Errorf("bash says %q", bash)
	}
	page, err := os.ReadFile(filepath.Join(dir, "man/haldir-serve.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{".TH \"HALDIR-SERVE\" \"1\"", "haldir " + version(t), "serve is what an MCP client launches", "--upstream"} {
		if text := strings.ReplaceAll(string(page), "\\-", "-"); !strings.Contains(text, want) {
			t.Errorf("the page of serve has no %q:\n%s", want, text)
		}
	}
}

// TestDeb has dpkg install the package below an empty directory, with a database of its own,
// and remove it again. The other processor's is only unpacked.
func TestDeb(t *testing.T) {
	archive, dpkg := tool(t, "dpkg-deb"), tool(t, "dpkg")
	for _, arch := range []string{"amd64", "arm64"} {
		path := file(t, "haldir_%s_linux_"+arch+".deb")
		fields := must(t, command(t, clean(t), archive, "--field", path))
		// A snapshot is older than what it leads to: ~ sorts before the end.
		for _, want := range []string{"Package: haldir\n", "Version: " + strings.Replace(version(t), "-", "~", 1) + "\n", "Architecture: " + arch + "\n", "Recommends: ca-certificates\n"} {
			if !strings.Contains(fields, want) {
				t.Errorf("%s: no %q in\n%s", filepath.Base(path), want, fields)
			}
		}
		const zsh, rights = "usr/share/zsh/vendor-completions/_haldir", "usr/share/doc/haldir/copyright"
		dir := t.TempDir()
		if arch != own(t).goarch {
			must(t, command(t, clean(t), archive, "-x", path, dir))
			installed(t, dir, arch, zsh, rights)
			continue
		}
		database := filepath.Join(dir, "var/lib/dpkg")
		for _, name := range []string{"info", "updates"} {
			if err := os.MkdirAll(filepath.Join(database, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(database, "status"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		// Without --force-script-chrootless dpkg needs root, and there is no script to run.
		below := []string{"--root=" + dir, "--log=" + filepath.Join(t.TempDir(), "log"), "--force-not-root", "--force-script-chrootless"}
		must(t, command(t, clean(t), dpkg, append(below, "--install", path)...))
		installed(t, dir, arch, zsh, rights)
		must(t, command(t, clean(t), dpkg, append(below, "--purge", "haldir")...))
		if left, err := filepath.Glob(filepath.Join(dir, "usr/*")); err != nil || len(left) != 0 {
			t.Errorf("dpkg has left %v: %v", left, err)
		}
	}
}

// TestRPM unpacks the package with libarchive.
func TestRPM(t *testing.T) {
	bsdtar := tool(t, "bsdtar")
	for _, goarch := range []string{"amd64", "arm64"} {
		dir := t.TempDir()
		must(t, command(t, clean(t), bsdtar, "-xf", file(t, "haldir_%s_linux_"+goarch+".rpm"), "-C", dir))
		installed(t, dir, goarch, "usr/share/zsh/site-functions/_haldir", "usr/share/licenses/haldir/LICENSE")
	}
}

// installed looks at what a package of the system has put below a directory.
func installed(t *testing.T, dir, goarch string, more ...string) {
	t.Helper()
	program := filepath.Join(dir, "usr/bin/haldir")
	if got, want := sum(t, program), sum(t, programs(t)["linux/"+goarch]); got != want {
		t.Errorf("%s: another program is installed than was built", goarch)
	}
	for _, name := range append(more, "usr/share/man/man1/haldir.1", "usr/share/man/man1/haldir-audit-verify.1",
		"usr/share/bash-completion/completions/haldir", "usr/share/fish/vendor_completions.d/haldir.fish", "usr/share/doc/haldir/haldir.example.yaml") {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 || info.Mode().Perm() != 0o644 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	if goarch == own(t).goarch {
		serves(t, command(t, clean(t), program, "serve"))
		isVersion(t, command(t, clean(t), program, "version"))
	}
}

// TestChecksums has sha256sum check the whole list, which must have every file that is
// published.
func TestChecksums(t *testing.T) {
	list := string(read(t, "checksums.txt"))
	work := t.TempDir()
	var published []string
	for _, pattern := range []string{"*.tar.gz", "*.zip", "*.deb", "*.rpm", "*.cdx.json", "*.mcpb", "server.json", "npm/*.tgz"} {
		found, err := filepath.Glob(filepath.Join(dist, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v: run packaging/build first", pattern, err)
		}
		for _, f := range found {
			abs, err := filepath.Abs(f)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(abs, filepath.Join(work, filepath.Base(f))); err != nil {
				t.Fatal(err)
			}
			published = append(published, filepath.Base(f))
		}
	}
	check := exec.Command(tool(t, "sha256sum"), "--strict", "--quiet", "--check")
	check.Dir, check.Stdin = work, strings.NewReader(list)
	must(t, check)
	for _, name := range published {
		if !strings.Contains(list, "  "+name+"\n") {
			t.Errorf("checksums.txt has no %s", name)
		}
	}
	if n := strings.Count(list, "\n"); n != len(published) {
		t.Errorf("checksums.txt has %d lines for %d files", n, len(published))
	}
}

// TestSBOM compares the bills of materials with what the linker says it has put in.
func TestSBOM(t *testing.T) {
	for _, p := range platforms {
		bom := decode[struct {
			Format   string `json:"bomFormat"`
			Metadata struct {
				Component struct{ Name, Version string }
			}
			Components []struct{ Name, Version string }
		}](t, read(t, strings.ReplaceAll("haldir_%s_"+p.goos+"_"+p.goarch+".cdx.json", "%s", version(t))))
		if c := bom.Metadata.Component; bom.Format != "CycloneDX" || c.Name != "github.com/haldir-mcp/haldir" || c.Version != "v"+version(t) {
			t.Errorf("%s/%s: %s of %+v", p.goos, p.goarch, bom.Format, c)
		}
		listed := map[string]string{}
		for _, c := range bom.Components {
			listed[c.Name] = c.Version
		}
		for module, version := range modules(t, programs(t)[p.goos+"/"+p.goarch]) {
			if listed[module] != version {
				t.Errorf("%s/%s: %s %s is listed as %q", p.goos, p.goarch, module, version, listed[module])
			}
		}
		if listed["std"] == "" {
			t.Errorf("%s/%s: the standard library is not listed", p.goos, p.goarch)
		}
	}
}

// TestScoop and TestCask compare what the managers will download and how it is checked
// with what there is to download.
func TestScoop(t *testing.T) {
	m := decode[struct {
		Version      string
		Architecture map[string]struct {
			URL, Hash string
			Bin       []string
		}
	}](t, read(t, "scoop/haldir.json"))
	if m.Version != version(t) || len(m.Architecture) != 2 {
		t.Errorf("%+v", m)
	}
	for arch, goarch := range map[string]string{"64bit": "amd64", "arm64": "arm64"} {
		a := m.Architecture[arch]
		name := "haldir_" + version(t) + "_windows_" + goarch + ".zip"
		if want := "https://github.com/haldir-mcp/haldir/releases/download/v" + version(t) + "/" + name; a.URL != want {
			t.Errorf("%s: %s is not %s", arch, a.URL, want)
		}
		if a.Hash != sum(t, file(t, name)) {
			t.Errorf("%s: the hash is another file's", arch)
		}
		if !slices.Equal(a.Bin, []string{"haldir.exe"}) {
			t.Errorf("%s: %v", arch, a.Bin)
		}
	}
}

// brew defines what a cask may say, and prints what this one has said for each system that
// it knows.
const brew = `
require "json"
module OS; def self.mac? = $os == :macos; end
class Cask
  attr_reader :said
  def initialize; @said = {}; end
  def version(v = nil) = v ? @version = v : @version
  def on_macos = (yield if $os == :macos)
  def on_linux = (yield if $os == :linux)
  def on_intel = (yield if $arch == :intel)
  def on_arm = (yield if $arch == :arm)
  def livecheck; end
  def postflight; end
  %i[url sha256 binary manpage bash_completion zsh_completion fish_completion name desc homepage].each do |w|
    define_method(w) { |v, *_| (@said[w] ||= []) << v }
  end
end
def cask(_name, &block) = ($cask = Cask.new).instance_eval(&block)
out = %i[macos linux].product(%i[intel arm]).to_h do |os, arch|
  $os, $arch = os, arch
  load ARGV[0]
  ["#{os}/#{arch}", $cask.said.merge(version: $cask.version)]
end
puts JSON.generate(out)
`

func TestCask(t *testing.T) {
	ruby := tool(t, "ruby")
	script := filepath.Join(t.TempDir(), "brew.rb")
	if err := os.WriteFile(script, []byte(brew), 0o600); err != nil {
		t.Fatal(err)
	}
	said := decode[map[string]struct {
		URL, SHA256, Binary, Manpage, Bash_completion, Zsh_completion, Fish_completion []string
		Version                                                                        string
	}](t, []byte(must(t, command(t, clean(t), ruby, script, file(t, "homebrew/Casks/haldir.rb")))))
	for system, p := range map[string]string{"macos/intel": "darwin_amd64", "macos/arm": "darwin_arm64", "linux/intel": "linux_amd64", "linux/arm": "linux_arm64"} {
		c := said[system]
		name := "haldir_" + version(t) + "_" + p + ".tar.gz"
		if want := "https://github.com/haldir-mcp/haldir/releases/download/v" + version(t) + "/" + name; !slices.Equal(c.URL, []string{want}) || c.Version != version(t) {
			t.Errorf("%s: %v of %s is not %s", system, c.URL, c.Version, want)
			continue
		}
		if !slices.Equal(c.SHA256, []string{sum(t, file(t, name))}) {
			t.Errorf("%s: the hash is another file's", system)
		}
		inside := map[string]bool{}
		for _, f := range archived(t, file(t, name)) {
			inside[f.name] = true
		}
		used := slices.Concat(c.Binary, c.Manpage, c.Bash_completion, c.Zsh_completion, c.Fish_completion)
		for _, f := range used {
			if !inside[f] {
				t.Errorf("%s: the cask wants %s, which is not in the archive", system, f)
			}
		}
		if len(c.Binary) != 1 || len(used) < 5 {
			t.Errorf("%s: the cask installs only %v", system, used)
		}
	}
}
