package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/mod/modfile"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/config"
)

const repository = "../../"

// pages are the texts that people read, with their names from the root on.
func pages(t *testing.T) map[string]string {
	t.Helper()
	files := []string{"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "haldir.yaml"}
	for _, pattern := range []string{"docs/*.md", "docs/decisions/*.md"} {
		found, err := filepath.Glob(repository + pattern)
		if err != nil || len(found) == 0 {
			t.Fatal(pattern, err)
		}
		for _, f := range found {
			files = append(files, strings.TrimPrefix(filepath.ToSlash(f), repository))
		}
	}
	all := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(repository + f)
		if err != nil {
			t.Fatal(err)
		}
		all[f] = string(text)
	}
	return all
}

var block = regexp.MustCompile("(?s)```([a-z]*)\n(.*?)```")

// code returns what a page shows as code: spans, and the lines of blocks of the
// shell.
func code(text string) (spans []string) {
	for _, b := range block.FindAllStringSubmatch(text, -1) {
		if b[1] == "sh" {
			for line := range strings.Lines(b[2]) {
				line, _, _ = strings.Cut(line, " #")
				spans = append(spans, strings.TrimSpace(line))
			}
		}
	}
	prose := strings.ReplaceAll(block.ReplaceAllString(text, ""), "\n# ", "\n")
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(prose, -1) {
		spans = append(spans, strings.Join(strings.Fields(m[1]), " "))
	}
	return spans
}

// readme says how each command of README's blocks of the shell is tried out. A
// command that is not here fails the test.
var readme = map[string]struct {
	instead string // run this instead, "" for the command itself
	status  int
	prints  string // on stdout or stderr
	exempt  string // why it is not run
}{
	"go run ./cmd/haldir demo": {exempt: "a stage of .ci/run"},
	"go test ./...":            {exempt: "this is it"},
	"go install ./cmd/haldir":  {exempt: "it would write to the user's GOBIN; the package is built by this test"},
	"haldir init":              {instead: "haldir init --yes", prints: "with a starter policy"},
	"haldir doctor":            {prints: "some"},
	"haldir policy packs":      {prints: "postgres"},
	"haldir check":             {prints: "haldir.yaml: ok: 2 upstreams, 3 policies"},
	"haldir tools":             {prints: "files__list_directory"},
	`haldir call files__list_directory --args '{"path":"."}'`: {prints: "[FILE] README.md"},
	"claude mcp add haldir -- haldir serve":                   {exempt: "needs Claude Code"},
	"haldir audit list --status denied --since 7d":            {prints: "SEQ"},
	"haldir audit verify":                                     {prints: "verify: ok"},
	"haldir spend":                                            {prints: "SPENT"},
	`haldir explain files__write_file --args '{"path":"/etc/hosts","content":""}'`: {
		status: exitRefused, prints: "deny (no-etc): Tool 'write_file' is on the deny list for these arguments",
	},
	"haldir policy list": {prints: "at most 100 calls"},
}

// TestREADMECommands runs the commands of README, in their order, with the config
// of README. The two servers from npm are replaced by one that has the tools in
// question; real_servers_test.go meets the real ones.
func TestREADMECommands(t *testing.T) {
	t.Parallel()
	text := pages(t)["README.md"]
	home := t.TempDir()
	standIn := httptest.NewServer(server.NewStreamableHTTPServer(filesystem()))
	t.Cleanup(standIn.Close)
	yaml := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindStringSubmatch(text)
	if yaml == nil {
		t.Fatal("README has no YAML")
	}
	local := regexp.MustCompile(`command: npx, args: \[.*\]`).ReplaceAllString(yaml[1], `url: "`+standIn.URL+`"`)
	if strings.Count(local, standIn.URL) != 2 {
		t.Fatalf("README's config has other servers than this test replaces:\n%s", yaml[1])
	}
	used := map[string]bool{}
	for _, b := range block.FindAllStringSubmatch(text, -1) {
		if b[1] != "sh" {
			continue
		}
		for line := range strings.Lines(b[2]) {
			command := strings.TrimSpace(line)
			if before, _, comment := strings.Cut(command, " #"); comment {
				command = strings.TrimSpace(before)
			}
			how, ok := readme[command]
			if !ok {
				t.Errorf("nobody tries out README's command %s", command)
				continue
			}
			used[command] = true
			if how.exempt != "" {
				continue
			}
			if how.instead != "" {
				command = how.instead
			}
			cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
			cmd.Dir = home
			cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + home}
			out, err := cmd.CombinedOutput()
			if status := cmd.ProcessState.ExitCode(); status != how.status || !strings.Contains(string(out), how.prints) {
				t.Errorf("%s: exit status %d, want %d and %q (%v):\n%s", command, status, how.status, how.prints, err, out)
			}
			if strings.HasPrefix(command, "haldir init") { // by hand from here on
				if err := os.WriteFile(filepath.Join(home, ".config", "haldir", "haldir.yaml"), []byte(local), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for command := range readme {
		if !used[command] {
			t.Errorf("README does not have the command %s any more", command)
		}
	}
}

// filesystem stands in for @modelcontextprotocol/server-filesystem and for
// server-everything.
func filesystem() *server.MCPServer {
	s := server.NewMCPServer("secure-filesystem-server", "0.2.0", server.WithToolCapabilities(true))
	for name, answer := range map[string]string{"list_directory": "[FILE] README.md", "write_file": "written", "move_file": "moved", "echo": "echo"} {
		s.AddTool(mcp.NewTool(name), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return mcp.NewToolResultText(answer), nil
		})
	}
	return s
}

// TestREADMEJSON holds the JSON of README against what haldir really takes and
// gives.
func TestREADMEJSON(t *testing.T) {
	t.Parallel()
	var blocks []string
	for _, b := range block.FindAllStringSubmatch(pages(t)["README.md"], -1) {
		if b[1] == "json" {
			blocks = append(blocks, b[2])
		}
	}
	if len(blocks) != 2 {
		t.Fatalf("README has %d blocks of JSON", len(blocks))
	}
	var client struct {
		Servers map[string]struct {
			Command string   `json:"command"`
			Args    []string `json:"args"`
		} `json:"mcpServers"`
	}
	dec := json.NewDecoder(strings.NewReader(blocks[0]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&client); err != nil {
		t.Fatal(err)
	}
	entry := client.Servers["haldir"]
	if found, _, err := root(&app{}).Find(entry.Args); err != nil || entry.Command != "haldir" || found.Name() != "serve" {
		t.Errorf("the entry for a client: %+v, %v", entry, err)
	}

	// A real refusal by a rate limit has the keys, and the words, that are shown.
	dir := t.TempDir()
	standIn := httptest.NewServer(server.NewStreamableHTTPServer(filesystem()))
	t.Cleanup(standIn.Close)
	path := filepath.Join(dir, "haldir.yaml")
	text := fmt.Sprintf("version: 1\nupstreams: [{name: a, url: %q}]\npolicies: [{type: rate_limit, max_calls: 2, window: 1h}]\n", standIn.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for range 3 {
		out.Reset()
		run(t.Context(), []string{"call", "echo", "--config", path, "--state-dir", filepath.Join(dir, "state")}, strings.NewReader(""), &out, t.Output())
	}
	numbers := regexp.MustCompile(`[0-9]+(\.[0-9]+)?`)
	shape := func(text string) map[string]string {
		t.Helper()
		var all map[string]any
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		s := map[string]string{}
		for k, v := range all {
			s[k] = numbers.ReplaceAllString(fmt.Sprint(v), "N")
		}
		return s
	}
	if shown, real := shape(blocks[1]), shape(out.String()); !reflect.DeepEqual(shown, real) {
		t.Errorf("README shows\n%v\na refusal is\n%v", shown, real)
	}
}

// TestVerbsAndFlagsOfThePages looks for every haldir VERB and every --flag that a
// page names in code.
func TestVerbsAndFlagsOfThePages(t *testing.T) {
	t.Parallel()
	cmd := root(&app{})
	cmd.InitDefaultCompletionCmd("completion")
	cmd.InitDefaultHelpCmd()
	every := pflag.NewFlagSet("every", pflag.ContinueOnError)
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		c.InitDefaultHelpFlag()
		every.AddFlagSet(c.Flags())
		every.AddFlagSet(c.PersistentFlags())
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(cmd)
	verbs := 0
	for name, text := range pages(t) {
		for _, span := range code(text) {
			words := strings.Fields(span)
			at := cmd
			if i := slices.Index(words, "haldir"); i >= 0 && (i == 0 || words[i-1] == "--" || words[i-1] == ";") {
				for _, w := range words[i+1:] {
					if !regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`).MatchString(w) {
						break
					}
					next, _, err := at.Find([]string{w})
					if err != nil || next == at {
						if at.HasSubCommands() {
							t.Errorf("%s names `%s`, but there is no %s %s", name, span, at.CommandPath(), w)
						}
						break
					}
					at = next
					verbs++
				}
			}
			for _, w := range words {
				flag, ok := strings.CutPrefix(w, "--")
				flag, _, _ = strings.Cut(flag, "=")
				if !ok || flag == "" || strings.HasPrefix(words[0], "claude") {
					continue
				}
				if at != cmd && at.Flag(flag) == nil || every.Lookup(flag) == nil {
					t.Errorf("%s names --%s in `%s`, which does not exist", name, flag, span)
				}
			}
		}
	}
	if verbs < 20 {
		t.Errorf("only %d verbs were found", verbs)
	}
}

// TestCommandLinesOfThePages: what a page shows to be typed has the arguments that its verb takes.
func TestCommandLinesOfThePages(t *testing.T) {
	t.Parallel()
	word := regexp.MustCompile(`'[^']*'|"[^"]*"|\S+`)
	lines := 0
	for name, text := range pages(t) {
		var shown []string
		for _, b := range block.FindAllStringSubmatch(text, -1) {
			if b[1] == "sh" {
				shown = append(shown, strings.Split(b[2], "\n")...)
			}
		}
		for line := range strings.Lines(block.ReplaceAllString(text, "")) {
			if indented, ok := strings.CutPrefix(line, "    "); ok {
				shown = append(shown, indented)
			}
		}
		for _, line := range shown {
			line, _, _ = strings.Cut(strings.TrimSpace(line), " #")
			line, _, _ = strings.Cut(line, " | ")
			line, _, _ = strings.Cut(line, " > ")
			words := word.FindAllString(line, -1)
			if len(words) < 2 || words[0] != "haldir" {
				continue
			}
			lines++
			cmd, args, err := root(&app{}).Find(words[1:])
			if err == nil {
				err = cmd.ParseFlags(args)
			}
			if err == nil {
				err = cmd.ValidateArgs(cmd.Flags().Args())
			}
			if err == nil {
				err = cmd.ValidateRequiredFlags()
			}
			if err != nil {
				t.Errorf("%s shows `%s`: %v", name, line, err)
			}
		}
	}
	if lines < 10 {
		t.Errorf("only %d lines were found", lines)
	}
}

// TestChangelogVerbs: what the changelog lists in code is a verb, a tool or haldir
// serve.
func TestChangelogVerbs(t *testing.T) {
	t.Parallel()
	for _, span := range code(pages(t)["CHANGELOG.md"]) {
		words := strings.Fields(strings.TrimPrefix(span, "haldir "))
		cmd := root(&app{})
		cmd.InitDefaultCompletionCmd("completion")
		if found, _, err := cmd.Find(words); (err != nil || found == cmd) && !strings.HasPrefix(span, "haldir_") {
			t.Errorf("the changelog lists `%s`, which is no verb", span)
		}
	}
}

// TestVerbsAreNamedSomewhere: no verb that nobody is told of.
func TestVerbsAreNamedSomewhere(t *testing.T) {
	t.Parallel()
	text := pages(t)["CHANGELOG.md"] + pages(t)["README.md"]
	for _, c := range root(&app{}).Commands() {
		if !strings.Contains(text, "`"+c.Name()) && !strings.Contains(text, "haldir "+c.Name()) {
			t.Errorf("no page that people begin with names haldir %s", c.Name())
		}
	}
}

func TestVariablesOfThePages(t *testing.T) {
	t.Parallel()
	known := []string{config.BehindVar}
	for _, s := range config.AllSettings() {
		known = append(known, s.Env)
	}
	for name, text := range pages(t) {
		for _, v := range regexp.MustCompile(`\bHALDIR_[A-Z_]+\b`).FindAllString(text, -1) {
			if !slices.Contains(known, v) {
				t.Errorf("%s names %s, which means nothing", name, v)
			}
		}
	}
	// The help names the variable of each of its flags.
	for _, s := range config.AllSettings() {
		if f := root(&app{}).PersistentFlags().Lookup(s.Flag); s.Flag != "" && (f == nil || !strings.Contains(f.Usage, s.Env)) {
			t.Errorf("--%s does not name %s in the help", s.Flag, s.Env)
		}
	}
}

// TestFilesOfThePages follows links and looks for files named in code.
func TestFilesOfThePages(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	file := regexp.MustCompile(`^(\.?/)?([a-zA-Z0-9_.-]+/)*[a-zA-Z0-9_-]*\.(go|md|yaml|yml|mod)$|^\.ci/[a-z]+$|^(cmd|internal|examples|docs)/[a-z/]+$`)
	links := 0
	for name, text := range pages(t) {
		dir := filepath.Dir(repository + name)
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || target == "" {
				continue
			}
			links++
			found, err := os.ReadFile(filepath.Join(dir, target))
			if _, statErr := os.Stat(filepath.Join(dir, target)); statErr != nil {
				t.Errorf("%s links to %s, which does not exist", name, m[1])
			} else if err == nil && anchor != "" && !slices.Contains(anchors(string(found)), anchor) {
				t.Errorf("%s links to %s, but the page has no such heading", name, m[1])
			}
		}
		for _, span := range code(text) {
			if !file.MatchString(span) || strings.Contains(span, "haldir.yaml") {
				continue
			}
			if _, err := os.Stat(repository + span); err != nil {
				t.Errorf("%s names %s, which does not exist", name, span)
			}
		}
	}
	if links < 15 {
		t.Errorf("only %d links were found", links)
	}
}

// anchors are GitHub's names of a page's headings.
func anchors(text string) (names []string) {
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

// TestAuditFormatPage holds the table of docs/audit-format.md against the struct
// and against the bytes.
func TestAuditFormatPage(t *testing.T) {
	t.Parallel()
	text := pages(t)["docs/audit-format.md"]
	next := 1
	for _, m := range regexp.MustCompile(`(?m)^\| (\d+)(?:–(\d+))? \| ([^|]+) \|`).FindAllStringSubmatch(text, -1) {
		first, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		last := first
		if m[2] != "" {
			if last, err = strconv.Atoi(m[2]); err != nil {
				t.Fatal(err)
			}
			if names := strings.Count(m[3], ",") + 1; names > 1 && names != last-first+1 {
				t.Errorf("row %s has %d names for %d fields: %s", m[1], names, last-first+1, m[3])
			}
		}
		if first != next {
			t.Errorf("field %d follows field %d", first, next-1)
		}
		next = last + 1
	}
	fields := reflect.TypeFor[audit.Record]().NumField() - 1 + reflect.TypeFor[audit.Threads]().NumField()
	if next-1 != fields {
		t.Errorf("the page has %d fields, the struct %d", next-1, fields)
	}

	// The bytes, read as the page says.
	record := audit.Record{Seq: 300, Kind: audit.KindAttempt, Status: audit.StatusDenied, Tool: strings.Repeat("t", 200)}
	raw := record.Encode()
	if raw[0] != 0x01 {
		t.Errorf("the version is %d", raw[0])
	}
	n := 0
	for rest := raw[1:]; len(rest) > 0; n++ {
		length, shift, i := 0, 0, 0
		for {
			length |= int(rest[i]&0x7f) << shift
			shift += 7
			i++
			if rest[i-1]&0x80 == 0 {
				break
			}
		}
		field := rest[i : i+length]
		rest = rest[i+length:]
		if n == 0 && !bytes.Equal(field, []byte{1, 44}) {
			t.Errorf("seq is % x", field)
		}
		if n == 1 && len(field) != 32 {
			t.Errorf("prev has %d bytes", len(field))
		}
	}
	if n != fields {
		t.Errorf("a record has %d fields, the page %d", n, fields)
	}
	for kind, word := range map[audit.Kind]string{audit.KindAttempt: "1 attempt", audit.KindOutcome: "2 outcome", audit.KindGovernance: "3 governance", audit.KindSession: "4 session", audit.KindConfig: "5 config"} {
		if fmt.Sprintf("%d %s", kind, kind) != word || !strings.Contains(text, word) {
			t.Errorf("the page does not say that %d is %s", kind, kind)
		}
	}
}

// TestDependenciesPage: a line for each module that go.mod requires, and no other.
func TestDependenciesPage(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(repository + "go.mod")
	if err != nil {
		t.Fatal(err)
	}
	mod, err := modfile.Parse("go.mod", raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	text := pages(t)["docs/dependencies.md"]
	for _, r := range mod.Require {
		// pflag stands beside cobra, without its host.
		if short := strings.TrimPrefix(r.Mod.Path, "github.com/spf13/"); !r.Indirect && !strings.Contains(text, r.Mod.Path) && !strings.Contains(text, ", "+short+" ") {
			t.Errorf("docs/dependencies.md lacks %s", r.Mod.Path)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)(?:^\| |[ (])((?:[a-z0-9-]+\.)+[a-z]+/[a-zA-Z0-9./_-]+)`).FindAllStringSubmatch(text, -1) {
		path := strings.TrimSuffix(m[1], ".")
		if !slices.ContainsFunc(mod.Require, func(r *modfile.Require) bool {
			return !r.Indirect && (r.Mod.Path == path || strings.HasPrefix(path, r.Mod.Path+"/"))
		}) && !strings.Contains(path, ".md") {
			t.Errorf("docs/dependencies.md lists %s, which go.mod does not require", path)
		}
	}
	if readme := pages(t)["README.md"]; !strings.Contains(readme, "With Go "+strings.Join(strings.Split(mod.Go.Version, ".")[:2], ".")+" or newer") {
		t.Errorf("README asks for another Go than go.mod, %s", mod.Go.Version)
	}
}

// TestRoomsOfTheArchitecturePage: each room exists and each package has a room.
func TestRoomsOfTheArchitecturePage(t *testing.T) {
	t.Parallel()
	var rooms []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z/]+)` \\|").FindAllStringSubmatch(pages(t)["docs/architecture.md"], -1) {
		rooms = append(rooms, m[1])
		if info, err := os.Stat(repository + m[1]); err != nil || !info.IsDir() {
			t.Errorf("there is no room %s", m[1])
		}
	}
	packages, err := filepath.Glob(repository + "*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	inner, err := filepath.Glob(repository + "*/*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(packages, inner...) {
		room := filepath.ToSlash(filepath.Dir(strings.TrimPrefix(filepath.ToSlash(f), repository)))
		if !slices.ContainsFunc(rooms, func(r string) bool { return r == room || strings.HasPrefix(room, r+"/") }) {
			t.Errorf("the page has no room %s", room)
		}
	}
}

// TestCommandsOfOtherPages: benchmarks and recipes that pages name are there.
func TestCommandsOfOtherPages(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile(repository + "Makefile")
	if err != nil {
		t.Fatal(err)
	}
	ci, err := os.ReadFile(repository + ".ci/run")
	if err != nil {
		t.Fatal(err)
	}
	benches := 0
	for name, text := range pages(t) {
		for _, span := range code(text) {
			words := strings.Fields(span)
			switch {
			case strings.HasPrefix(span, "make "):
				if !regexp.MustCompile(`(?m)^` + words[1] + `:`).Match(makefile) {
					t.Errorf("%s names `%s`, which Makefile lacks", name, span)
				}
			case slices.Contains(words, "-bench"):
				benches++
				found := false
				files, err := filepath.Glob(repository + words[2] + "/*_test.go")
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range files {
					source, err := os.ReadFile(f)
					if err != nil {
						t.Fatal(err)
					}
					found = found || regexp.MustCompile(`(?m)^func Benchmark\w*`+words[slices.Index(words, "-bench")+1]).Match(source)
				}
				if !found {
					t.Errorf("%s names `%s`, but there is no such benchmark", name, span)
				}
			}
		}
	}
	if benches < 3 {
		t.Errorf("only %d benchmarks were found", benches)
	}
	for _, command := range []string{"go run ./cmd/haldir demo", "go test ./..."} {
		if !bytes.Contains(ci, []byte(command)) {
			t.Errorf(".ci/run does not run %s", command)
		}
	}
}
