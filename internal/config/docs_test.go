package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// page reads a page of the repository; code are its spans of code outside
// of blocks.
func page(t *testing.T, name string) (text string, code []string) {
	t.Helper()
	raw, err := os.ReadFile("../../" + name)
	if err != nil {
		t.Fatal(err)
	}
	text = string(raw)
	prose := regexp.MustCompile("(?s)```.*?```").ReplaceAllString(text, "")
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(prose, -1) {
		code = append(code, strings.Join(strings.Fields(m[1]), " "))
	}
	return text, code
}

// notKeys are words with an underscore that the pages name and that are no keys.
var notKeys = []string{
	"delete_file", "list_deleted",
	"retry_at", "outcome_seq", "prev_hash", // of refusals and audit entries
	"cost_usd",                                                  // of conditions
	"resource_metadata", "offline_access", "insufficient_scope", // of OAuth
}

func TestEveryConfigKeyThatThePagesNameExists(t *testing.T) {
	var known []string
	keys(reflect.TypeFor[document](), "", func(_ string, f reflect.StructField) { known = append(known, f.Tag.Get("yaml")) })
	known = append(known, policyTypes...)
	for old := range typeAliases {
		known = append(known, old)
	}
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) < 5 {
		t.Fatal("pages are missing", err)
	}
	pages = append(pages, "../../README.md")
	setting, word := regexp.MustCompile(`^([a-z_]+): `), regexp.MustCompile(`^[a-z]+(_[a-z]+)+$`)
	seen := 0
	for _, p := range pages {
		if strings.HasSuffix(p, "/audit-format.md") || strings.HasSuffix(p, "/rest-api.md") {
			continue // they name the fields of records and answers
		}
		_, code := page(t, strings.TrimPrefix(p, "../../"))
		for _, c := range code {
			var names []string
			if m := setting.FindStringSubmatch(c); m != nil && m[1] != "pkg" {
				names = append(names, m[1])
				for _, inner := range regexp.MustCompile(`[{,] ?([a-z_]+)[:,}]`).FindAllStringSubmatch(c, -1) {
					names = append(names, inner[1])
				}
			} else if word.MatchString(c) && !slices.Contains(notKeys, c) && !strings.HasPrefix(c, "haldir_") { // tools and metrics are
				names = append(names, c)
			}
			for _, n := range names {
				seen++
				if !slices.Contains(known, n) {
					t.Errorf("%s names %s in `%s`, which haldir.yaml does not know", p, n, c)
				}
			}
		}
	}
	if seen < 30 {
		t.Errorf("only %d names were found", seen)
	}
}

// README's table of policies names exactly the types there are and their keys.
func TestTheTableOfPoliciesIsComplete(t *testing.T) {
	text, _ := page(t, "README.md")
	_, table, ok := strings.Cut(text, "| type | what it does | keys of its own |\n|---|---|---|\n")
	if !ok {
		t.Fatal("the table is gone")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var types []string
	for row := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(row), "|"), "|")
		if len(cells) != 3 {
			t.Fatalf("%d cells: %s", len(cells), row)
		}
		name := strings.Trim(strings.TrimSpace(cells[0]), "`")
		types = append(types, name)
		var named, want []string
		for _, m := range regexp.MustCompile("`([a-z_]+)").FindAllStringSubmatch(cells[2], -1) {
			named = append(named, m[1])
		}
		for f := range reflect.TypeFor[policyDoc]().Fields() {
			if f.Tag.Get("alias") == "" && slices.Contains(strings.Split(f.Tag.Get("for"), ","), name) {
				want = append(want, f.Tag.Get("yaml"))
			}
		}
		slices.Sort(named)
		slices.Sort(want)
		if !slices.Equal(named, want) {
			t.Errorf("%s: the table names the keys %v, there are %v", name, named, want)
		}
		// The values of per, and which of them is the default.
		for f := range reflect.TypeFor[policyDoc]().Fields() {
			if f.Tag.Get("yaml") != "per" || !slices.Contains(named, "per") {
				continue
			}
			_, values, _ := strings.Cut(f.Tag.Get("doc"), name+": ")
			values, _, _ = strings.Cut(values, ".")
			_, in, _ := strings.Cut(cells[2], "`per`: ")
			in, _, _ = strings.Cut(in, "`")
			for v := range strings.SplitSeq(values, ", ") {
				if !strings.Contains(in, v) {
					t.Errorf("%s: per has no %q in %q", name, v, in)
				}
			}
		}
	}
	slices.Sort(types)
	want := slices.Sorted(slices.Values(policyTypes))
	if !slices.Equal(types, want) {
		t.Errorf("the table has the types %v, there are %v", types, want)
	}
}

// README's YAML is a config, and needs no old spelling.
func TestTheConfigInTheREADMELoads(t *testing.T) {
	text, _ := page(t, "README.md")
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(text, -1)
	if len(blocks) == 0 {
		t.Fatal("README has no YAML")
	}
	for _, b := range blocks {
		c, err := Parse([]byte(b[1]), "README.md")
		if err != nil {
			t.Error(err)
			continue
		}
		if len(c.Warnings) > 0 {
			t.Error(c.Warnings)
		}
	}
}

// The pages name every old spelling that is taken, and no other.
func TestTheOldSpellingsAreListed(t *testing.T) {
	text, _ := page(t, "docs/policies.md")
	_, section, ok := strings.Cut(text, "## Old spellings\n")
	if !ok {
		t.Fatal("the section is gone")
	}
	var named, want []string
	for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(section, -1) {
		named = append(named, m[1])
	}
	for old := range typeAliases {
		want = append(want, old)
	}
	for f := range reflect.TypeFor[policyDoc]().Fields() {
		if f.Tag.Get("alias") != "" {
			want = append(want, f.Tag.Get("yaml"))
		}
	}
	slices.Sort(named)
	slices.Sort(want)
	if !slices.Equal(named, want) {
		t.Errorf("docs/policies.md lists %v, taken are %v", named, want)
	}
}
