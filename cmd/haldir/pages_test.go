package main

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/packs"
)

// TestYAMLOfThePages: each config that a page shows loads, and needs no old spelling.
func TestYAMLOfThePages(t *testing.T) {
	t.Parallel()
	seen := 0
	for name, text := range pages(t) {
		for _, b := range block.FindAllStringSubmatch(text, -1) {
			if b[1] != "yaml" {
				continue
			}
			seen++
			yaml := b[2]
			if !strings.Contains(yaml, "version:") {
				yaml = "version: 1\n" + yaml
			}
			c, err := config.Parse([]byte(yaml), name)
			if err != nil {
				t.Errorf("%v\n%s", err, yaml)
				continue
			}
			for _, w := range c.Warnings {
				t.Errorf("%s: %v", name, w)
			}
		}
	}
	if seen < 8 {
		t.Errorf("only %d configs were found", seen)
	}
}

// TestJSONOfThePages: each entry for a client starts haldir serve, and the rest is JSON.
func TestJSONOfThePages(t *testing.T) {
	t.Parallel()
	entries := 0
	for name, text := range pages(t) {
		for _, b := range block.FindAllStringSubmatch(text, -1) {
			if b[1] != "json" {
				continue
			}
			var client map[string]json.RawMessage
			if err := json.Unmarshal([]byte(b[2]), &client); err != nil {
				t.Errorf("%s: %v\n%s", name, err, b[2])
				continue
			}
			for _, key := range []string{"mcpServers", "servers"} {
				var servers map[string]struct {
					Command string   `json:"command"`
					Args    []string `json:"args"`
				}
				if client[key] == nil {
					continue
				}
				if err := json.Unmarshal(client[key], &servers); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				entries++
				entry := servers["haldir"]
				if found, _, err := root(&app{}).Find(entry.Args); err != nil || filepath.Base(entry.Command) != "haldir" || found.Name() != "serve" {
					t.Errorf("%s shows the entry %+v", name, entry)
				}
			}
		}
	}
	if entries < 4 {
		t.Errorf("only %d entries were found", entries)
	}
}

// TestMessagesOfTroubleshooting: each message that the page is about is in the code. What
// stands between two … is a part of one literal.
func TestMessagesOfTroubleshooting(t *testing.T) {
	t.Parallel()
	literals := literals(t)
	said := 0
	for _, b := range block.FindAllStringSubmatch(pages(t)["docs/troubleshooting.md"], -1) {
		if b[1] != "text" {
			continue
		}
		said++
		for part := range strings.SplitSeq(strings.TrimSpace(b[2]), "…") {
			part = strings.TrimSpace(part)
			if len(part) > 2 && !slices.ContainsFunc(literals, func(l string) bool { return strings.Contains(l, part) }) {
				t.Errorf("no message has %q, of %s", part, strings.TrimSpace(b[2]))
			}
		}
	}
	if said < 25 {
		t.Errorf("only %d messages were found", said)
	}
}

// literals are the texts in the product's code.
func literals(t *testing.T) (out []string) {
	t.Helper()
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != repository && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "tools" || d.Name() == "mcptest" || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if text, err := strconv.Unquote(lit.Value); err == nil {
					out = append(out, text)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestThePackPage: the page has each pack, with what it does.
func TestThePackPage(t *testing.T) {
	t.Parallel()
	all, err := packs.All()
	if err != nil {
		t.Fatal(err)
	}
	text := pages(t)["docs/packs.md"]
	for _, p := range all {
		row := "| `" + p.Name + "` | " + strings.Join(p.Servers, ", ") + " | " + p.Does + " |"
		if !strings.Contains(text, row) {
			t.Errorf("docs/packs.md lacks the row\n%s", row)
		}
	}
	if rows := regexp.MustCompile("(?m)^\\| `").FindAllString(text, -1); len(rows) != len(all) {
		t.Errorf("the page has %d packs, there are %d", len(rows), len(all))
	}
}
