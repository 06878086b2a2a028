package edit_test

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/haldir-mcp/haldir/internal/config/edit"
)

var update = flag.Bool("update", false, "write what the golden files should say")

// Each archive is a haldir.yaml (none: there is no file), what is done with it, and what it
// is afterwards. The file named do has one line:
//
//	add LIST        with the file named entry
//	remove LIST ID
//
// and may have lines that say what an archive cannot hold of the file before, and so must
// hold after: crlf, bom, unterminated (no line end at its end), or how it is done: nocommands.
// The file named said is what is told: the id and the notes, or the error.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 25 {
		t.Fatal("golden files are missing", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parts := map[string]string{}
			for _, f := range a.Files {
				parts[f.Name] = string(f.Data)
			}
			if len(strings.TrimSpace(string(a.Comment))) == 0 {
				t.Error("the archive says nothing of what it is for")
			}
			after, said := perform(t, parts)
			if *update {
				keep := a.Files[:0]
				for _, f := range a.Files {
					if f.Name != "want" && f.Name != "said" {
						keep = append(keep, f)
					}
				}
				a.Files = append(keep, txtar.File{Name: "want", Data: []byte(after)}, txtar.File{Name: "said", Data: []byte(said)})
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(parts["want"], after); diff != "" {
				t.Errorf("the file (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(parts["said"], said); diff != "" {
				t.Errorf("what is said (-want +got):\n%s", diff)
			}
		})
	}
}

func perform(t *testing.T, parts map[string]string) (after, said string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "haldir.yaml")
	lines := strings.Split(strings.TrimSpace(parts["do"]), "\n")
	before, exists := parts["haldir.yaml"]
	o := edit.Options{Source: "rule.yaml"}
	var inverse []func(string) string
	for _, l := range lines[1:] {
		switch l {
		case "crlf":
			before = strings.ReplaceAll(before, "\n", "\r\n")
			inverse = append(inverse, func(s string) string {
				if strings.Count(s, "\n") != strings.Count(s, "\r\n") || strings.Count(s, "\r") != strings.Count(s, "\r\n") {
					t.Errorf("not all lines end with CRLF: %q", s)
				}
				return strings.ReplaceAll(s, "\r\n", "\n")
			})
		case "bom":
			before = "\ufeff" + before
			inverse = append(inverse, func(s string) string {
				s, ok := strings.CutPrefix(s, "\ufeff")
				if !ok || strings.Contains(s, "\ufeff") {
					t.Errorf("the byte order mark is not as it was: %q", s)
				}
				return s
			})
		case "unterminated":
			before = strings.TrimSuffix(before, "\n")
			inverse = append(inverse, func(s string) string {
				if strings.HasSuffix(s, "\n") {
					t.Errorf("the file ends with a line end now: %q", s)
				}
				return s + "\n"
			})
		case "nocommands":
			o.NoCommands = true
		default:
			t.Fatalf("what is %q?", l)
		}
	}
	if exists {
		if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	do := strings.Fields(lines[0])
	var r edit.Result
	var err error
	switch do[0] {
	case "add":
		r, err = edit.Add(path, edit.List(do[1]), []byte(parts["entry"]), o)
	case "remove":
		r, err = edit.Remove(path, edit.List(do[1]), do[2], o)
	case "withdraw":
		r, err = edit.RemoveUpstream(path, do[1], o)
	default:
		t.Fatalf("what is %q?", lines[0])
	}
	raw, readErr := os.ReadFile(path)
	if readErr != nil && !errors.Is(readErr, fs.ErrNotExist) {
		t.Fatal(readErr)
	}
	if err != nil {
		if string(raw) != before {
			t.Errorf("the file was changed by what failed: %q", raw)
		}
		return "", strings.ReplaceAll(err.Error(), path, "haldir.yaml") + "\n"
	}
	if string(raw) != string(r.After) {
		t.Errorf("the result is %q, the file %q", r.After, raw)
	}
	after = string(raw)
	for i := len(inverse) - 1; i >= 0; i-- {
		after = inverse[i](after)
	}
	said = fmt.Sprintf("%s\n", strings.Join(append([]string{r.ID}, r.IDs...), " "))
	for _, n := range r.Notes {
		said += "note: " + n + "\n"
	}
	return after, said
}
