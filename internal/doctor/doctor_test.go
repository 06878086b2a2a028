package doctor_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/doctor"
	"github.com/haldir-mcp/haldir/policy"
)

// declared are the ids in the code.
func declared(t *testing.T) (ids []doctor.ID) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "finding.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			if name, ok := v.Type.(*ast.Ident); ok && name.Name == "ID" {
				text, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, doctor.ID(text))
			}
		}
		return true
	})
	return ids
}

// TestThePageHasEveryKind: docs/doctor.md has a row for each kind, with the words of the code,
// and none for any other.
func TestThePageHasEveryKind(t *testing.T) {
	raw, err := os.ReadFile("../../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[doctor.ID][]string{}
	for line := range strings.Lines(string(raw)) {
		if m := regexp.MustCompile("^\\| `([a-z-]+)` \\| (.*) \\|$").FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			rows[doctor.ID(m[1])] = strings.Split(m[2], " | ")
		}
	}
	ids := declared(t)
	if len(ids) < 40 {
		t.Fatalf("%d kinds were found in the code", len(ids))
	}
	for _, id := range ids {
		means, known := doctor.Meanings()[id]
		row := rows[id]
		switch {
		case !known:
			t.Errorf("%s has no meaning in the code", id)
		case len(row) != 3:
			t.Errorf("the page has no row `%s` of severity, meaning and fix: %q", id, row)
		case means != "" && !strings.HasPrefix(row[1], means):
			t.Errorf("the page says of %s %q, and the code %q", id, row[1], means)
		case row[2] == "" || row[0] == "":
			t.Errorf("the row of %s has an empty field", id)
		}
		delete(rows, id)
	}
	for id := range rows {
		t.Errorf("the page has %s, which is no kind", id)
	}
	for id := range doctor.Meanings() {
		if !slices.Contains(ids, id) {
			t.Errorf("%s has a meaning, and is no kind", id)
		}
	}
}

// one is the only finding, which must be of this kind.
func one(t *testing.T, found []doctor.Finding, id doctor.ID, text string) doctor.Finding {
	t.Helper()
	if len(found) != 1 || found[0].ID != id || !strings.Contains(found[0].Text, text) {
		t.Fatalf("want one finding %s with %q: %+v", id, text, found)
	}
	return found[0]
}

func tool(name, def string) doctor.Tool {
	return doctor.Tool{Upstream: "shop", Name: name, Shown: []byte(def)}
}

func same(s string) string { return s }

func TestWhatClaudeCodeMakesOfSchemas(t *testing.T) {
	t.Parallel()
	look := func(def string) []doctor.Finding { return doctor.Schemas([]doctor.Tool{tool("buy", def)}, same) }
	one(t, look(`{"inputSchema":{"type":"object","properties":{"an amount":{}}}}`), doctor.SchemaSkipped, `buy: it has an argument "an amount"`)
	one(t, look(`{"inputSchema":{"type":"object","properties":{"`+strings.Repeat("x", 65)+`":{}}}}`), doctor.SchemaSkipped, "buy")
	for range 20 {
		one(t, look(`{"inputSchema":{"type":"object","properties":{"d d":{},"c c":{},"b b":{},"a a":{}}}}`), doctor.SchemaSkipped, `"a a"`)
	}
	one(t, look(`{"inputSchema":{"type":"object","anyOf":[{},{}]}}`), doctor.SchemaRewritten, "anyOf")
	f := one(t, look(`{"description":"`+strings.Repeat("ä", 4097)+`","inputSchema":{}}`), doctor.DescriptionCut, "4097 characters, and 4096 are shown")
	if f.Fix != "have it show more: export CLAUDE_CODE_MAX_MCP_DESCRIPTION_LENGTH=4097" {
		t.Error(f.Fix)
	}
	if found := look(`{"description":"` + strings.Repeat("ä", 4096) + `","inputSchema":{"type":"object","properties":{"a_b.c-1":{"oneOf":[]}}}}`); len(found) != 0 {
		t.Errorf("of a tool that is well: %+v", found)
	}
	if found := doctor.Schemas([]doctor.Tool{{Upstream: "shop", Name: "hidden"}}, same); len(found) != 0 {
		t.Errorf("of a tool that nobody sees: %+v", found)
	}
}

func TestWhatToolsCost(t *testing.T) {
	t.Parallel()
	def := `{"description":"` + strings.Repeat("x", 80_000) + `"}`
	found := doctor.Weight([]doctor.Tool{tool("big", def), {Upstream: "shop", Name: "hidden"}, {Upstream: "bank", Name: "pay", Shown: []byte("{}")}},
		func(name string) string { return "haldir policy add --type deny --tools " + name + "/NAME" })
	if len(found) != 2 || found[0].ID != doctor.ContextLarge || found[0].About != "shop" || !strings.Contains(found[0].Text, "its 1 tools cost some 20004 tokens") ||
		found[1].ID != doctor.Context || found[1].Severity != doctor.Fine || !strings.Contains(found[1].Text, "an agent sees 2, some 20005 tokens") {
		t.Errorf("%+v", found)
	}
	if f := found[0]; len(f.Commands) > 0 || !strings.HasSuffix(f.Fix, "--tools shop/NAME") {
		t.Errorf("a command without a name is to be run: %+v", f)
	}
	if found := doctor.Weight(nil, same); len(found) != 0 {
		t.Errorf("of no tools: %+v", found)
	}
}

func TestPatternsThatMatchNothing(t *testing.T) {
	t.Parallel()
	none := func([]string) bool { return false }
	rules := policy.Ruleset{Policies: []policy.Rule{{Tools: []string{"buy", "shop/b*", "resource:x", "prompt:y"}}, {Tools: []string{"sell"}}}}
	one(t, doctor.Patterns(rules, nil, []doctor.Tool{tool("buy", "{}")}, "haldir tools", none), doctor.PatternUnmatched, `policies[1]: "sell" matches no tool that there is`)
	for want, globs := range map[string][]string{
		"":                        {"*/delete*", "*/drop_*"},
		`: "delte" matches no`:    {"*/delete*", "delte"},
		`: "sel" matches no`:      {"b*", "s*", "sel"},
		`: "s*", "sel" match no`:  {"s*", "sel"},
		`: "delte_*" matches no`:  {"delte_*"},
		`: "shop/s*" matches no`:  {"shop/s*"},
		`and 1 more match no`:     {"a", "c", "d", "e"},
		`: "get_it" matches no`:   {"resource:x", "s*", "get_it"},
		`: "shop/sel" matches no`: {"shop/*", "shop/sel"},
	} {
		for where, r := range map[string]policy.Ruleset{
			"policies[0]": {Policies: []policy.Rule{{Tools: globs}}}, "costs[0]": {Costs: []policy.Cost{{Tools: globs}}}, "scopes[0]": {Scopes: []policy.Scope{{Tools: globs}}},
		} {
			found := doctor.Patterns(r, []string{"shop"}, []doctor.Tool{tool("buy", "{}")}, "haldir tools", none)
			if want == "" {
				if len(found) > 0 {
					t.Errorf("%q: %+v", globs, found)
				}
				continue
			}
			if f := one(t, found, doctor.PatternUnmatched, want); !strings.HasPrefix(f.Text, where+": ") {
				t.Errorf("%q: %s", globs, f.Text)
			}
			if found := doctor.Patterns(r, nil, nil, "haldir tools", func(list []string) bool { return slices.Equal(list, globs) }); len(found) > 0 {
				t.Errorf("of a pack: %+v", found)
			}
		}
	}
	rules.Policies[1].Shadow = true
	one(t, doctor.Shadows(rules, "haldir audit list"), doctor.PolicyShadow, "policies[1]")
}

// A rule that is for some upstreams can only match what they have.
func TestPatternsOfOtherUpstreamsThanTheRules(t *testing.T) {
	t.Parallel()
	tools := []doctor.Tool{{Upstream: "a", Name: "add"}, {Upstream: "b", Name: "t0"}, {Upstream: "b", Name: "t7"}}
	look := func(of []string, globs ...string) []doctor.Finding {
		rules := policy.Ruleset{Policies: []policy.Rule{{Type: "deny", Upstreams: of, Tools: globs}}}
		return doctor.Patterns(rules, []string{"a", "b"}, tools, "haldir tools", func([]string) bool { return false })
	}
	one(t, look([]string{"a"}, "t7"), doctor.PatternUnmatched, `policies[0]: "t7" matches no tool that the upstreams of this policy have`)
	one(t, look([]string{"b"}, "add"), doctor.PatternUnmatched, `"add" matches no tool`)
	one(t, look([]string{"a"}, "b/*"), doctor.PatternUnmatched, `"b/*" matches no tool`)
	one(t, look([]string{"?"}, "t7", "t8"), doctor.PatternUnmatched, `"t8" matches no tool`)
	for _, found := range [][]doctor.Finding{look([]string{"b*"}, "t7"), look([]string{"a", "b"}, "add", "b/t*"), look([]string{"a"}), look(nil, "b/t0")} {
		if len(found) > 0 {
			t.Errorf("of a rule that can match: %+v", found)
		}
	}
	if found := look(nil, "c/*"); len(found) > 0 {
		t.Errorf("the config has said it: %+v", found)
	}
}

// npm installs a script that starts the haldir of another package. The two are one program.
func TestHaldirOfNPM(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("npm makes no haldir.exe on PATH there")
	}
	root := t.TempDir()
	bin, script := filepath.Join(root, "bin"), filepath.Join(root, "lib", "node_modules", "haldir", "bin", "haldir.js")
	self := filepath.Join(root, "lib", "node_modules", "haldir", "node_modules", "@haldir-mcp", "haldir-linux-x64", "bin", "haldir")
	other := filepath.Join(root, "go", "haldir")
	for _, path := range []string{filepath.Join(bin, "x"), script, self, other} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho '{\"version\":\"1.2.3\"}'\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(script, filepath.Join(bin, "haldir")); err != nil {
		t.Fatal(err)
	}
	if found := doctor.Programs(t.Context(), bin, self, "1.2.3"); len(found) > 0 {
		t.Errorf("of the script that starts this haldir: %+v", found)
	}
	if f := one(t, doctor.Programs(t.Context(), bin, self, "1.2.4"), doctor.ProgramOthers, "is another haldir (1.2.3)"); f.Severity != doctor.Warning {
		t.Errorf("another version: %+v", f)
	}
	if f := one(t, doctor.Programs(t.Context(), bin, other, "1.2.3"), doctor.ProgramOthers, "is another haldir (1.2.3)"); f.Severity != doctor.Note {
		t.Errorf("one that npm has not installed: %+v", f)
	}
}

func TestTheClock(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	one(t, doctor.Time(now.Add(time.Hour), now, "haldir ledger reset-clock"), doctor.Clock, "the clock is 1h0m0s behind the ledger")
	for _, ledgers := range []time.Time{now, now.Add(-time.Hour), now.Add(5 * time.Second)} {
		if found := doctor.Time(ledgers, now, ""); len(found) != 0 {
			t.Errorf("%v: %+v", ledgers.Sub(now), found)
		}
	}
}

func TestTheDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/state"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	look := func(free int64, known bool) []doctor.Finding {
		return doctor.Files{Quote: same, Free: func(string) (int64, bool) { return free, known }}.State(dir)
	}
	one(t, look(0, true), doctor.DiskFull, "0 KiB are free")
	one(t, look(1<<20, true), doctor.DiskLow, "1 MiB are free")
	one(t, look(972<<10, true), doctor.DiskLow, "972 KiB are free")
	one(t, look(40<<10, true), doctor.DiskFull, "40 KiB are free") // a ledger is to be made
	if err := os.WriteFile(dir+"/haldir.db", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	one(t, look(40<<10, true), doctor.DiskLow, "40 KiB are free")
	one(t, look(8<<10, true), doctor.DiskFull, "8 KiB are free")
	for _, found := range [][]doctor.Finding{look(64<<20, true), look(0, false)} {
		if len(found) != 0 {
			t.Errorf("%+v", found)
		}
	}
	found := doctor.Files{Quote: same, Free: func(at string) (int64, bool) {
		if _, err := os.Stat(at); err != nil {
			t.Errorf("the space of a directory that is not there is asked for: %v", err)
		}
		return 1 << 30, true
	}}.State(dir + "/a/b")
	one(t, found, doctor.StateNone, "is not there yet")
}

// A fix has its commands in its words.
func TestAFixInWords(t *testing.T) {
	t.Parallel()
	f := doctor.New(doctor.Stopped, doctor.Warning, "ledger", doctor.Do("do %s, then %s", "a", "b"), "%d", 1)
	if want := "do a, then b"; f.Fix != want || !slices.Equal(f.Commands, []string{"a", "b"}) || f.Means != doctor.Meanings()[doctor.Stopped] {
		t.Errorf("%+v", f)
	}
	if fine := doctor.New(doctor.Stopped, doctor.Fine, "ledger", doctor.Fix{}, "well"); fine.Means != "" {
		t.Errorf("what is well has a meaning: %+v", fine)
	}
}
