package packs_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/internal/doctor"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/packs"
	"github.com/haldir-mcp/haldir/policy"
)

var update = flag.Bool("update", false, "write the decisions, and the tools of servers that can be run, anew")

// server is what a server of the pack has said of its tools.
type server struct {
	Server  string `json:"server"`
	Version string `json:"version"`
	Origin  string `json:"origin"`
	Run     *run   `json:"run,omitempty"`
	Tools   []tool `json:"tools"`
}

// run is how the server is started; $DIR is an empty directory. Most are asked only when the
// lists are written anew: each takes a while to install.
type run struct {
	Always  bool     `json:"always,omitempty"`
	Spec    string   `json:"spec"`
	Program string   `json:"program"`
	Args    []string `json:"args,omitempty"`
	Env     []string `json:"env,omitempty"`
}

type tool struct {
	Name        string            `json:"name"`
	Annotations map[string]bool   `json:"annotations,omitempty"`
	Arguments   map[string]string `json:"arguments,omitempty"`
	Required    []string          `json:"required,omitempty"`
}

// servers reads the lists of a pack: NAME.json and NAME-….json.
func servers(t *testing.T, pack string) map[string]server {
	t.Helper()
	all, err := packs.All()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/tools/" + pack + "*.json")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]server{}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".json")
		if name != pack && !strings.HasPrefix(name, pack+"-") || name != pack && slices.ContainsFunc(all, func(p packs.Pack) bool { return p.Name == name }) {
			continue
		}
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var s server
		if err := json.Unmarshal(raw, &s); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if s.Server == "" || s.Version == "" || s.Origin == "" || len(s.Tools) == 0 {
			t.Errorf("%s says too little of where it is from", f)
		}
		out[name] = s
	}
	if len(out) == 0 {
		t.Errorf("the pack %s has no list of tools", pack)
	}
	return out
}

func each(t *testing.T, check func(t *testing.T, p packs.Pack)) {
	t.Helper()
	all, err := packs.All()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 15 {
		t.Fatalf("there are %d packs", len(all))
	}
	for _, p := range all {
		t.Run(p.Name, func(t *testing.T) { check(t, p) })
	}
}

// root is what the parameter of that name is in tests.
const root = "/srv/it's \"mine\""

func use(upstream string) packs.Use {
	return packs.Use{Upstream: upstream, Params: map[string]string{"root": root}}
}

// load loads a pack beside the upstream that it is for.
func load(t *testing.T, p packs.Pack, u packs.Use) *config.Config {
	t.Helper()
	text := p.Text(u) + "upstreams:\n  - {name: " + u.Upstream + ", url: \"https://example.com\"}\n  - {name: other, url: \"https://example.org\"}\n"
	c, err := config.Parse([]byte(text), p.Name)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, w := range c.Warnings {
		t.Errorf("%s warns: %v", p.Name, w)
	}
	return c
}

func TestEachPackLoadsUnderAnyName(t *testing.T) {
	each(t, func(t *testing.T, p packs.Pack) {
		if p.Does == "" || len(p.Servers) == 0 {
			t.Errorf("the head of %s is incomplete: %+v", p.Name, p)
		}
		for _, name := range []string{p.Name, "x", "a-very-long-name-of-an-upstream1"} {
			c := load(t, p, use(name))
			for i, id := range c.Engine.Rules() {
				if !strings.HasPrefix(id, name+"-") {
					t.Errorf("rule %d is called %s", i, id)
				}
				if got := c.Ruleset.Policies[i].Upstreams; !slices.Equal(got, []string{name}) {
					t.Errorf("%s concerns the upstreams %v", id, got)
				}
			}
			if len(c.Ruleset.Policies) < 2 || len(c.Ruleset.Scopes) == 0 {
				t.Errorf("%s has %d policies and %d scopes", p.Name, len(c.Ruleset.Policies), len(c.Ruleset.Scopes))
			}
			for _, pattern := range ownPatterns(c) {
				if !strings.HasPrefix(pattern, name+"/") {
					t.Errorf("the pattern %s concerns other upstreams", pattern)
				}
			}
			if strings.Contains(p.Text(use(name)), "$UPSTREAM") {
				t.Error("the name of the upstream is missing somewhere")
			}
		}
	})
}

// ownPatterns are those of costs and scopes, which no upstream narrows.
func ownPatterns(c *config.Config) (out []string) {
	for _, x := range c.Ruleset.Costs {
		out = append(out, x.Tools...)
	}
	for _, x := range c.Ruleset.Scopes {
		out = append(out, x.Tools...)
	}
	return out
}

// Every pattern, and every word of a condition that is about the name of a tool, is about
// a tool that one of the servers has.
func TestEveryPatternMatchesARealTool(t *testing.T) {
	each(t, func(t *testing.T, p packs.Pack) {
		c := load(t, p, use("up"))
		var names []string
		for _, s := range servers(t, p.Name) {
			for _, tool := range s.Tools {
				names = append(names, tool.Name)
			}
		}
		known := func(match func(string) bool) bool { return slices.ContainsFunc(names, match) }
		patterns := ownPatterns(c)
		for _, r := range c.Ruleset.Policies {
			for _, pattern := range r.Tools {
				patterns = append(patterns, "up/"+pattern)
			}
			for _, word := range words(r.When) {
				re := regexp.MustCompile(word)
				if !known(re.MatchString) {
					t.Errorf("no tool matches %s in the condition %s", word, r.When)
				}
			}
		}
		for _, pattern := range patterns {
			rs := policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeDeny, Tools: []string{pattern}}}}
			e, err := policy.Compile(rs)
			if err != nil {
				t.Fatal(err)
			}
			if !known(func(n string) bool {
				return e.Decide(policy.Call{Upstream: "up", Tool: n}, state()).Verdict == policy.Deny
			}) {
				t.Errorf("no tool matches %s", pattern)
			}
		}
	})
}

// Has knows the patterns of each entry, and of no other.
func TestHas(t *testing.T) {
	each(t, func(t *testing.T, p packs.Pack) {
		c := load(t, p, use("up"))
		for _, r := range c.Ruleset.Policies {
			if !packs.Has(r.Tools) {
				t.Errorf("%q is not known", r.Tools)
			}
		}
		for _, x := range c.Ruleset.Costs {
			if !packs.Has(x.Tools) {
				t.Errorf("%q is not known", x.Tools)
			}
		}
		for _, x := range c.Ruleset.Scopes {
			if !packs.Has(x.Tools) || packs.Has(append(slices.Clone(x.Tools), "up/x")) {
				t.Errorf("%q is not known, or with another one", x.Tools)
			}
		}
	})
	if packs.Has(nil) || packs.Has([]string{"delete_repositry"}) || packs.Has([]string{"x/read_graph", "y/search_nodes"}) {
		t.Error("what no pack has is known")
	}
}

// haldir doctor does not warn of a pack before any of its servers.
func TestDoctorIsContentWithEachPack(t *testing.T) {
	each(t, func(t *testing.T, p packs.Pack) {
		c := load(t, p, use("up"))
		for name, s := range servers(t, p.Name) {
			var tools []doctor.Tool
			for _, tool := range s.Tools {
				tools = append(tools, doctor.Tool{Upstream: "up", Name: tool.Name})
			}
			for _, f := range doctor.Patterns(c.Ruleset, []string{"up"}, tools, "haldir tools", packs.Has) {
				t.Errorf("before %s: %s", name, f.Text)
			}
		}
	})
}

// words are the names of tools in a condition, and the alternatives of the expressions
// that tool is matched with, each as an expression of its own.
func words(when string) (out []string) {
	for _, m := range regexp.MustCompile(`tool in \[([^]]*)\]`).FindAllStringSubmatch(when, -1) {
		for _, q := range regexp.MustCompile(`"([^"]*)"`).FindAllStringSubmatch(m[1], -1) {
			out = append(out, "^"+regexp.QuoteMeta(q[1])+"$")
		}
	}
	for _, m := range regexp.MustCompile(`tool [!=]= "([^"]*)"`).FindAllStringSubmatch(when, -1) {
		out = append(out, "^"+regexp.QuoteMeta(m[1])+"$")
	}
	for _, m := range regexp.MustCompile(`tool[.]matches\("([^"]*)"\)`).FindAllStringSubmatch(when, -1) {
		out = append(out, alternatives(m[1])...)
	}
	return out
}

// alternatives writes out an expression with groups as those without.
func alternatives(expr string) (out []string) {
	depth, start := 0, -1
	var top []string
	last := 0
	for i, r := range expr {
		switch r {
		case '(':
			if depth == 0 {
				start = i
			}
			depth++
		case ')':
			depth--
		case '|':
			if depth == 0 {
				top = append(top, expr[last:i])
				last = i + 1
			}
		}
	}
	if top = append(top, expr[last:]); len(top) > 1 {
		for _, e := range top {
			out = append(out, alternatives(e)...)
		}
		return out
	}
	if start < 0 {
		return []string{expr}
	}
	depth = 0
	for i := start; i < len(expr); i++ {
		switch expr[i] {
		case '(':
			depth++
		case ')':
			depth--
		}
		if depth == 0 {
			for _, inner := range alternatives(expr[start+1 : i]) {
				out = append(out, alternatives(expr[:start]+inner+expr[i+1:])...)
			}
			return out
		}
	}
	return []string{expr}
}

func state() policy.State {
	return policy.State{Now: time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC), Session: policy.SessionState{AllScopes: true}}
}

// sample is an argument of a name, or a type, that means nothing in particular.
var sample = map[string]any{
	"url": "https://example.com/", "path": root + "/x", "source": root + "/x", "destination": root + "/y", "repo_path": root,
	"sql": "select 1", "query": "select 1", "amount": 500,
	"string": "x", "integer": 1, "number": 1, "boolean": false, "array": []any{}, "object": map[string]any{}, "any": "x",
}

// arguments are those that a tool requires.
func arguments(tl tool) string {
	args := map[string]any{}
	for _, name := range tl.Required {
		kind, _, _ := strings.Cut(tl.Arguments[name], "|")
		if args[name] = sample[kind]; sample[name] != nil {
			args[name] = sample[name]
		}
	}
	raw, err := json.Marshal(args)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// said is what is decided of a call, in a word, with the rule and the scopes that it wants.
func said(e *policy.Engine, upstream, name, args string) string {
	call := policy.Call{Upstream: upstream, Tool: name, Arguments: json.RawMessage(args)}
	d := e.Decide(call, state())
	out := map[policy.Verdict]string{policy.Allow: "free", policy.Ask: "asks", policy.Deny: "denied"}[d.Verdict]
	switch {
	case d.Verdict == policy.Ask:
		out += " " + strings.Join(d.Question.Rules, ", ")
	case d.Verdict == policy.Deny:
		out += " " + d.Rule
	}
	reading := state()
	reading.Session = policy.SessionState{Scopes: []string{"read"}}
	if r := e.Decide(call, reading); r.Verdict != policy.Deny && d.Verdict != policy.Deny {
		out += " (scope read)"
	}
	return out
}

// TestDecisions holds what becomes of each tool of each server, and of the calls in
// testdata/cases, against a table that people can read: testdata/decisions.
func TestDecisions(t *testing.T) {
	each(t, func(t *testing.T, p packs.Pack) {
		c := load(t, p, use(p.Name))
		var b strings.Builder
		lists := servers(t, p.Name)
		for _, name := range slices.Sorted(maps.Keys(lists)) {
			s := lists[name]
			fmt.Fprintf(&b, "%s %s\n", s.Server, s.Version)
			for _, tl := range s.Tools {
				fmt.Fprintf(&b, "  %s: %s\n", tl.Name, said(c.Engine, p.Name, tl.Name, arguments(tl)))
			}
		}
		fmt.Fprintf(&b, "a tool that nobody knows yet\n  brand_new: %s\n", said(c.Engine, p.Name, "brand_new", "{}"))
		for i, line := range cases(t, p.Name) {
			if i == 0 {
				b.WriteString("calls\n")
			}
			name, args, _ := strings.Cut(line, " ")
			if !json.Valid([]byte(args)) {
				t.Errorf("%s are no arguments", args)
			}
			fmt.Fprintf(&b, "  %s: %s\n", line, said(c.Engine, p.Name, name, args))
		}
		golden(t, "testdata/decisions/"+p.Name+".txt", b.String())
		if strings.HasPrefix(said(c.Engine, p.Name, "brand_new", "{}"), "free") {
			t.Error("a tool that nobody knows yet is free")
		}
		if got := said(c.Engine, "other", lists[slices.Sorted(maps.Keys(lists))[0]].Tools[0].Name, "{}"); got != "free" {
			t.Errorf("it concerns other upstreams: %s", got)
		}
	})
}

func cases(t *testing.T, pack string) (out []string) {
	t.Helper()
	raw, err := os.ReadFile("testdata/cases/" + pack + ".txt")
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; write it with: go test ./internal/packs -update", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got); if it is meant, write it anew with: go test ./internal/packs -update\n%s", file, diff)
	}
}

// harmless are tools that their server calls destructive, which some do of all that changes
// anything, and that a pack lets through on purpose.
var harmless = map[string]string{
	// Moving about in a page is what the server is for.
	"browser": `^browser_(click|close|drag|emulate_media|fill_form|handle_dialog|hover|mouse_.*|navigate|navigate_back|press_key|resize|resume|select_option|tabs|type)$`,
	// Files below the root; moving asks.
	"filesystem": `^(write_file|edit_file)$`,
	// On a branch of its own a file that was deleted is still in its history.
	"github": `^delete_file$`,
	// New pages and blocks.
	"notion": `^API-(post-page|patch-block-children)$`,
	// One's own hours.
	"atlassian": `^jira_add_worklog$`,
	// A single reading statement.
	"supabase": `^execute_sql$`,
}

// reading are tools that their server does not call read-only, and that are.
var reading = map[string]string{
	"notion": `^API-(post-search|query-data-source)$`, // a question that is sent by POST
}

// TestWhatDestroysIsNotFree: what a server itself calls destructive asks or is refused, and
// what it does not call read-only is not let through by the scope read.
func TestWhatDestroysIsNotFree(t *testing.T) {
	each(t, func(t *testing.T, p packs.Pack) {
		c := load(t, p, use(p.Name))
		in := func(lists map[string]string, name string) bool {
			return lists[p.Name] != "" && regexp.MustCompile(lists[p.Name]).MatchString(name)
		}
		for _, s := range servers(t, p.Name) {
			for _, tl := range s.Tools {
				got := said(c.Engine, p.Name, tl.Name, arguments(tl))
				readOnly, told := tl.Annotations["readOnlyHint"]
				if in(reading, tl.Name) {
					readOnly = true
				}
				if tl.Annotations["destructiveHint"] && !readOnly && strings.HasPrefix(got, "free") && !in(harmless, tl.Name) {
					t.Errorf("%s of %s is destructive, and %s", tl.Name, s.Server, got)
				}
				if told && !readOnly && strings.Contains(got, "free (scope read)") {
					t.Errorf("%s of %s changes something, and wants the scope read only", tl.Name, s.Server)
				}
			}
		}
	})
}

// TestPacksBesideEachOther: all packs in one config, each for its own upstream and some of
// them twice, decide as each decides alone.
func TestPacksBesideEachOther(t *testing.T) {
	all, err := packs.All()
	if err != nil {
		t.Fatal(err)
	}
	text := "version: 1\nupstreams:\n"
	type pair struct {
		pack packs.Pack
		name string
	}
	var pairs []pair
	for i, p := range all {
		pairs = append(pairs, pair{p, p.Name})
		if i%6 == 0 {
			pairs = append(pairs, pair{p, "my-" + p.Name})
		}
	}
	for _, x := range pairs {
		text += "  - {name: " + x.name + ", url: \"https://example.com\"}\n"
	}
	lists := map[edit.List]string{}
	for _, x := range pairs {
		entries, _ := x.pack.Entries(use(x.name))
		for _, e := range entries {
			lists[e.List] += "  -\n    " + strings.ReplaceAll(strings.TrimSuffix(string(e.Text), "\n"), "\n", "\n    ") + "\n"
		}
	}
	for list, entries := range lists {
		text += string(list) + ":\n" + entries
	}
	both, err := config.Parse([]byte(text), "all")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range both.Warnings {
		t.Errorf("%v", w)
	}
	for _, x := range pairs {
		alone := load(t, x.pack, use(x.name))
		for _, s := range servers(t, x.pack.Name) {
			for _, tl := range s.Tools {
				want := said(alone.Engine, x.name, tl.Name, arguments(tl))
				if got := said(both.Engine, x.name, tl.Name, arguments(tl)); got != want {
					t.Errorf("%s/%s: %s beside the others, alone %s", x.name, tl.Name, got, want)
				}
			}
		}
		for _, line := range cases(t, x.pack.Name) {
			name, args, _ := strings.Cut(line, " ")
			want := said(alone.Engine, x.name, name, args)
			if got := said(both.Engine, x.name, name, args); got != want {
				t.Errorf("%s/%s: %s beside the others, alone %s", x.name, line, got, want)
			}
		}
	}
}

// TestPacksAreAdded adds some to a file: all is in it, with its comments, and what was
// there before.
func TestPacksAreAdded(t *testing.T) {
	all, err := packs.All()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "haldir.yaml")
	before := "# mine\nversion: 1\n\nupstreams:\n"
	want := 0
	var added []packs.Pack
	for i, p := range all {
		if i%5 == 3 || len(p.Params) > 0 {
			before += "  - {name: " + p.Name + ", url: \"https://example.com\"}   # mine\n"
			added = append(added, p)
		}
	}
	if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range added {
		entries, _ := p.Entries(use(p.Name))
		r, err := edit.AddAll(file, entries, edit.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.IDs) != len(entries) || string(r.Before) == string(r.After) || r.Old == nil {
			t.Errorf("%v are added of %d", r.IDs, len(entries))
		}
		want += len(entries)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	if n := strings.Count(text, "\n  # "); !strings.HasPrefix(text, before) || n < want {
		t.Errorf("%d comments of %d have come along:\n%s", n, want, text)
	}
	c, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range added {
		alone := load(t, p, use(p.Name))
		for _, line := range cases(t, p.Name) {
			name, args, _ := strings.Cut(line, " ")
			if got, want := said(c.Engine, p.Name, name, args), said(alone.Engine, p.Name, name, args); got != want {
				t.Errorf("%s/%s: %s in the file, alone %s", p.Name, line, got, want)
			}
		}
	}

	// One entry that does not load, and nothing is written.
	entries, _ := added[0].Entries(use("nobody"))
	if _, err := edit.AddAll(file, entries, edit.Options{}); err == nil {
		t.Error("a pack for no upstream was added")
	}
	if now, err := os.ReadFile(file); err != nil || string(now) != text {
		t.Errorf("half of a pack was written: %v", err)
	}
}

// A parameter that is not given leaves out what needs it, and is told of.
func TestAParameterMayBeLeftOut(t *testing.T) {
	each(t, func(t *testing.T, p packs.Pack) {
		u := use("up")
		full := load(t, p, u)
		u.Params = nil
		entries, missing := p.Entries(u)
		less := load(t, p, u)
		if len(missing) != len(p.Params) {
			t.Errorf("missing: %v", missing)
		}
		if len(p.Params) > 0 && len(less.Ruleset.Policies) >= len(full.Ruleset.Policies) {
			t.Error("nothing was left out")
		}
		if strings.Contains(p.Text(u), "$ROOT") || len(entries) == 0 {
			t.Error(p.Text(u))
		}
	})
}

func TestShadow(t *testing.T) {
	each(t, func(t *testing.T, p packs.Pack) {
		u := use("up")
		u.Shadow = true
		for _, r := range load(t, p, u).Ruleset.Policies {
			if !r.Shadow {
				t.Errorf("a %s is enforced", r.Type)
			}
		}
	})
}

func TestSuits(t *testing.T) {
	all, err := packs.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		u    config.Upstream
		want []string
	}{
		{config.Upstream{Command: "npx", Args: []string{"-y", "@modelcontextprotocol/server-filesystem", "/srv"}}, []string{"filesystem"}},
		{config.Upstream{Command: "npx", Args: []string{"-y", "@playwright/mcp@0.0.83"}}, []string{"browser"}},
		{config.Upstream{Command: "uvx", Args: []string{"mcp-server-git"}}, []string{"git"}},
		{config.Upstream{Command: "/opt/bin/github-mcp-server", Args: []string{"stdio"}}, []string{"github"}},
		{config.Upstream{Command: "docker", Args: []string{"run", "-i", "--rm", "ghcr.io/github/github-mcp-server"}}, []string{"github"}},
		{config.Upstream{URL: "https://api.githubcopilot.com/mcp/"}, []string{"github"}},
		{config.Upstream{URL: "https://mcp.stripe.com"}, []string{"stripe"}},
		{config.Upstream{Command: "npx", Args: []string{"mcp-server-kubernetes"}}, []string{"kubernetes"}},
		{config.Upstream{Command: "npx", Args: []string{"@example/mcp-server-gitlab", "server-filesystems"}}, nil},
		// The programs that the packages install, and the images of Docker.
		{config.Upstream{Command: "mcp-server-filesystem", Args: []string{"/srv/mcp/memory", "mcp/git"}}, []string{"filesystem"}},
		{config.Upstream{Command: `C:\npm\mcp-server-memory.cmd`}, []string{"memory"}},
		{config.Upstream{Command: "mcp-server-git"}, []string{"git"}},
		{config.Upstream{Command: "mcp-server-github"}, []string{"github"}},
		{config.Upstream{Command: "npx", Args: []string{"@modelcontextprotocol/server-github"}}, []string{"github"}},
		{config.Upstream{Command: "mcp-server-postgres"}, []string{"postgres"}},
		{config.Upstream{Command: "mcp-server-puppeteer"}, []string{"puppeteer"}},
		{config.Upstream{Command: "mcp-server-slack"}, []string{"slack"}},
		{config.Upstream{Command: "playwright-mcp"}, []string{"browser"}},
		{config.Upstream{Command: "sentry-mcp"}, []string{"sentry"}},
		{config.Upstream{Command: "python", Args: []string{"-m", "mcp_server_git"}}, []string{"git"}},
		{config.Upstream{Command: "docker", Args: []string{"run", "-i", "mcp/filesystem", "/srv"}}, []string{"filesystem"}},
		{config.Upstream{Command: "/usr/bin/docker", Args: []string{"run", "-i", "mcp/git"}}, []string{"git"}},
		{config.Upstream{Command: "podman", Args: []string{"run", "-i", "docker.io/mcp/github:latest"}}, []string{"github"}},
		{config.Upstream{Command: "docker", Args: []string{"run", "-i", "-v", "/srv/mcp/git:/mcp/memory", "mcp/fetch@sha256:0"}}, []string{"fetch"}},
		{config.Upstream{Command: "docker", Args: []string{"run", "-i", "example.com/mcp/git"}}, nil},
		{config.Upstream{URL: "https://example.com/mcp/git"}, nil},
		{config.Upstream{URL: "https://example.com"}, nil},
	} {
		var got []string
		for _, p := range all {
			if p.Suits(tt.u) {
				got = append(got, p.Name)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%+v suits %v, want %v", tt.u, got, tt.want)
		}
	}
}

// TestTheListsAreThoseOfTheServers runs servers that run anywhere, and asks them: some
// always, the others with -update.
func TestTheListsAreThoseOfTheServers(t *testing.T) {
	ran := 0
	each(t, func(t *testing.T, p packs.Pack) {
		for name, s := range servers(t, p.Name) {
			if s.Run == nil || !s.Run.Always && !*update {
				continue
			}
			ran++
			t.Run(name, func(t *testing.T) {
				got := server{s.Server, s.Version, s.Origin, s.Run, ask(t, s.Run)}
				if *update {
					if err := os.WriteFile("testdata/tools/"+name+".json", written(t, got), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if diff := cmp.Diff(s.Tools, got.Tools); diff != "" {
					t.Errorf("the tools of %s (-recorded +real); write them anew with: go test ./internal/packs -update\n%s", s.Run.Spec, diff)
				}
			})
		}
	})
	if ran < 3 {
		t.Errorf("only %d servers were run", ran)
	}
}

// ask starts a server and returns its tools, by name.
func ask(t *testing.T, r *run) []tool {
	t.Helper()
	command := mcptest.NPM(t, r.Spec, r.Program)
	dir := t.TempDir()
	for _, a := range r.Args {
		command = append(command, strings.ReplaceAll(a, "$DIR", dir))
	}
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir}, r.Env...)
	s := mcptest.Start(t, cmd)
	s.Initialize(mcptest.Revision)
	var out []tool
	for cursor := ""; ; {
		params := "{}"
		if cursor != "" {
			params = fmt.Sprintf(`{"cursor":%q}`, cursor)
		}
		var page struct {
			Tools []struct {
				Name        string         `json:"name"`
				Annotations map[string]any `json:"annotations"`
				Schema      struct {
					Properties map[string]struct {
						Type any `json:"type"`
					} `json:"properties"`
					Required []string `json:"required"`
				} `json:"inputSchema"`
			} `json:"tools"`
			Next string `json:"nextCursor"`
		}
		if err := json.Unmarshal(s.Ask("tools/list", params).Result, &page); err != nil {
			t.Fatal(err)
		}
		for _, x := range page.Tools {
			one := tool{Name: x.Name, Required: x.Schema.Required}
			if len(one.Required) == 0 {
				one.Required = nil
			}
			for _, hint := range []string{"readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"} {
				if v, ok := x.Annotations[hint].(bool); ok {
					if one.Annotations == nil {
						one.Annotations = map[string]bool{}
					}
					one.Annotations[hint] = v
				}
			}
			for name, schema := range x.Schema.Properties {
				if one.Arguments == nil {
					one.Arguments = map[string]string{}
				}
				one.Arguments[name] = kind(schema.Type)
			}
			out = append(out, one)
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	slices.SortFunc(out, func(a, b tool) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func kind(t any) string {
	switch t := t.(type) {
	case string:
		return t
	case []any:
		var all []string
		for _, x := range t {
			all = append(all, fmt.Sprint(x))
		}
		return strings.Join(all, "|")
	}
	return "any"
}

// written is a list as it stands in its file: a line a tool.
func written(t *testing.T, s server) []byte {
	t.Helper()
	head, err := json.Marshal(server{s.Server, s.Version, s.Origin, s.Run, nil})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(head, &fields); err != nil {
		t.Fatal(err)
	}
	b.WriteString("{\n")
	for _, key := range []string{"server", "version", "origin", "run"} {
		if raw, ok := fields[key]; ok {
			fmt.Fprintf(&b, "  %q: %s,\n", key, raw)
		}
	}
	b.WriteString("  \"tools\": [\n")
	for i, tl := range s.Tools {
		raw, err := json.Marshal(tl)
		if err != nil {
			t.Fatal(err)
		}
		comma := ","
		if i == len(s.Tools)-1 {
			comma = ""
		}
		fmt.Fprintf(&b, "    %s%s\n", raw, comma)
	}
	b.WriteString("  ]\n}\n")
	return []byte(b.String())
}

// Whatever a pack puts into a config can be taken out of it, and nothing else is changed by that:
// not the rules beside it, nor a word that a person has written.
func TestPacksComeAndGo(t *testing.T) {
	all, err := packs.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		for _, u := range []packs.Use{{Upstream: "up"}, {Upstream: "up", Shadow: true, Params: map[string]string{"root": `C:\it's "here"\<a>`}}} {
			for _, before := range []string{
				"version: 1\nupstreams: [{name: up, command: x}]\n",
				"version: 1\n\nupstreams:\n  - {name: up, command: x}\n\n# Mine.\npolicies:\n  # Never.\n  - {type: deny, tools: [a]}\n  # The end.\n\n# What costs.\ncosts: # all\n  - {tools: [b], usd: 1}\n",
				"version: 1\nupstreams: [{name: up, command: x}]\npolicies:\n  - {type: deny, tools: [a]}\nscopes: []\ncosts: []\n",
				"{version: 1, upstreams: [{name: up, command: x}]}\n",
				"{version: 1, upstreams: [{name: up, command: x}], policies: [{type: deny, tools: [a]}]}\n",
				"{\n  \"version\": 1,\n  \"upstreams\": [\n    {\"name\": \"up\", \"command\": \"x\"}\n  ]\n}\n",
				"{\n  version: 1,\n  upstreams: [{name: up, command: x}], # mine\n}\n",
			} {
				if u.Shadow && strings.HasPrefix(before, "{") {
					continue // once is enough
				}
				path := filepath.Join(t.TempDir(), "haldir.yaml")
				if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
					t.Fatal(err)
				}
				entries, _ := p.Entries(u)
				if _, err := edit.AddAll(path, entries, edit.Options{}); err != nil {
					t.Fatal(p.Name, err)
				}
				known, err := packs.Known("up")
				if err != nil {
					t.Fatal(err)
				}
				r, err := edit.RemoveAll(path, func(cfg *config.Config) (map[edit.List][]int, error) {
					f, err := p.In(cfg, "up")
					if len(f.Changed)+len(f.Short) > 0 {
						t.Errorf("%s: %+v", p.Name, f)
					}
					return f.Numbers, err
				}, edit.Options{Known: known})
				if err != nil {
					t.Fatal(p.Name, err)
				}
				if got := strings.NewReplacer("scopes: []\n", "", "costs: []\n", "").Replace(string(r.After)); got != strings.NewReplacer("scopes: []\n", "", "costs: []\n", "").Replace(before) {
					t.Errorf("%s %+v: is\n%s\nwas\n%s", p.Name, u, r.After, before)
				}
				if len(r.Notes) > 0 {
					t.Errorf("%s: %q", p.Name, r.Notes)
				}
			}
		}
	}
}

// A condition that has the pack's own in it is a person's, and is not taken out with the pack.
func TestAConditionAroundThePacksIsChanged(t *testing.T) {
	n := 0
	each(t, func(t *testing.T, p packs.Pack) {
		c := load(t, p, use("up"))
		for i, r := range c.Ruleset.Policies {
			if r.When == "" {
				continue
			}
			n++
			for _, when := range []string{"(" + r.When + `) || tool == "x"`, r.When + "\n|| true", "true ||\n" + r.When} {
				c.Ruleset.Policies[i].When = when
				f, err := p.In(c, "up")
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(f.Changed, []string{r.ID}) || slices.Contains(f.Numbers[edit.Policies], i) {
					t.Errorf("%s is taken for the pack's with the condition %s: %+v", r.ID, when, f)
				}
			}
			c.Ruleset.Policies[i].When = r.When
		}
	})
	if n == 0 {
		t.Error("no pack has a condition")
	}
}
