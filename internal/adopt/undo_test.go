package adopt_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/haldir-mcp/haldir/internal/adopt"
	"github.com/haldir-mcp/haldir/internal/config/edit"
	"github.com/haldir-mcp/haldir/internal/packs"
)

// What init wrote into a haldir.yaml that was there, and a pack for it that has come since, go
// with their comments and lists, so that none of it seems to be about what a person has written
// since, which stays.
func TestUndoLeavesAPersonsConfigAlone(t *testing.T) {
	const first, last = "{type: deny, id: first, tools: [zap]}", "{type: deny, id: last, tools: [zip]}"
	for name, before := range map[string]string{
		"in lines":          "# Mine.\nversion: 1\nupstreams:\n  # files\n  - {name: files, command: files}\n\npolicies:\n  # no drops\n  - {type: deny, tools: [drop]}\n",
		"apart":             "version: 1\n\nupstreams:\n  - {name: files, command: files}\n\n  - {name: docs, command: docs}\n\npolicies:\n  - {type: deny, tools: [drop]}\n",
		"no end":            "version: 1\nupstreams:\n  - {name: files, command: files}\npolicies:\n  - {type: deny, tools: [drop]}",
		"CRLF":              "version: 1\r\nupstreams:\r\n  - {name: files, command: files}\r\npolicies:\r\n  - {type: deny, tools: [drop]}\r\n",
		"no policies":       "version: 1\nupstreams:\n  - {name: files, command: files}\n",
		"nothing":           "version: 1\n",
		"empty lists":       "version: 1\nupstreams: [] # none yet\npolicies: []\nscopes: []\n",
		"scopes":            "version: 1\nscopes:\n  # code\n  - {tools: [\"*\"], require: [code]}\nupstreams:\n  - {name: files, command: files}\n",
		"a comment of ours": "version: 1\nupstreams:\n  # From Cursor (user).\n  - {name: files, command: files}\n  # From Cursor (user).\n",
		"braces":            "{\"version\": 1, \"upstreams\": [{\"name\": \"files\", \"command\": \"files\"}], \"scopes\": []}\n",
	} {
		t.Run(name, func(t *testing.T) {
			p := newPerson(t)
			p.write(".config/haldir/haldir.yaml", before)
			p.write(".cursor/mcp.json", `{"mcpServers": {"github": {"command": "gh", "description": "code"}, "two": {"command": "two"}}}`)
			if _, err := p.plan().Do(t.Context()); err != nil {
				t.Fatal(err)
			}
			entries := []edit.Entry{{List: edit.Policies, Text: []byte(first)}}
			for _, pack := range must(packs.All())(t) {
				if pack.Name == "github" {
					more, _ := pack.Entries(packs.Use{Upstream: "github"})
					entries = append(entries, more...)
				}
			}
			entries = append(entries, edit.Entry{List: edit.Policies, Text: []byte(last)})
			must(edit.AddAll(p.o.Config, entries, edit.Options{}))(t)
			u := must(adopt.Last(p.o.StateDir, p.o.Host, p.store))(t)
			if said := strings.Join(u.Files[0].More, "\n"); !strings.Contains(said, "github-never") {
				t.Errorf("it is not told what goes with the upstream: %q", said)
			}
			p.undo(false)
			want := must(edit.AddTo([]byte(before), p.o.Config, edit.Policies, []byte(first), edit.Options{}))(t)
			got := must(edit.Remove(p.o.Config, edit.Policies, "last", edit.Options{}))(t)
			if diff := cmp.Diff(string(want.After), string(got.After)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(got.Notes) > 0 && !strings.Contains(before, "#") {
				t.Errorf("above what a person has written stands now: %q", got.Notes)
			}
		})
	}
}

// A secret of init that a person has used for an upstream of theirs stays with it.
func TestUndoKeepsSecretsThatAreReferredTo(t *testing.T) {
	p := newPerson(t)
	p.write(".config/haldir/haldir.yaml", "version: 1\nupstreams:\n  - {name: files, command: files}\n")
	p.write(".cursor/mcp.json", `{"mcpServers": {"gh": {"command": "gh", "env": {"TOKEN": "tok-123456", "API_KEY": "key-123456"}}}}`)
	must(p.plan().Do(t.Context()))(t)
	must(edit.Add(p.o.Config, edit.Upstreams, []byte(`{name: admin, command: gh, env: ["TOKEN=${keyring:gh.TOKEN}"]}`), edit.Options{}))(t)
	u := must(adopt.Last(p.o.StateDir, p.o.Host, p.store))(t)
	if diff := cmp.Diff([][]string{{"gh.TOKEN"}, {"gh.API_KEY"}}, [][]string{u.Named, u.Secrets}); diff != "" {
		t.Errorf("what stays and what goes (-want +got):\n%s", diff)
	}
	p.undo(false)
	if v, err := p.store.Get("gh.TOKEN"); v != "tok-123456" {
		t.Errorf("the upstream has lost its secret: %q, %v", v, err)
	}
	if names := must(p.store.Names())(t); len(names) != 1 {
		t.Errorf("secrets that stay: %q", names)
	}
}

// What is taken back is the init that was done last, also if a clock that was ahead was corrected
// since, or many were done in the same second.
func TestTheLastInitIsNoMatterOfClocks(t *testing.T) {
	p := newPerson(t)
	ahead, right := time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var dirs []string // the newest first
	var made []time.Time
	text := `{"mcpServers": {"a": {"command": "a"}`
	for i, now := range slices.Concat(slices.Repeat([]time.Time{right}, 12), []time.Time{ahead, ahead, right, right.Add(time.Hour)}) {
		text += fmt.Sprintf(`, "a%d": {"command": "a%d"}`, i, i)
		p.write(".cursor/mcp.json", text+"}}")
		p.o.Now = now
		done := must(p.plan().Do(t.Context()))(t)
		u := must(adopt.Last(p.o.StateDir, p.o.Host, p.store))(t)
		if u.Dir != done.Backup || !u.Made.Equal(now) {
			t.Fatalf("init %d of %v is in %s, and the last one would be that in %s", i, now, done.Backup, u.Dir)
		}
		if diff := cmp.Diff(made, u.Earlier, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("inits before number %d (-want +got):\n%s", i, diff)
		}
		dirs, made = slices.Insert(dirs, 0, done.Backup), slices.Insert(made, 0, now)
	}
	for _, dir := range dirs {
		u := must(adopt.Last(p.o.StateDir, p.o.Host, p.store))(t)
		if u.Dir != dir {
			t.Fatalf("that in %s would be taken back before that in %s", u.Dir, dir)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// So it is where a directory is named by a clock that was ahead, and one that a person has named
// is before those of runs.
func TestUndoAfterAClockWasCorrected(t *testing.T) {
	p := newPerson(t)
	p.write(".cursor/mcp.json", `{"mcpServers": {"one": {"command": "one"}}}`)
	first := must(p.plan().Do(t.Context()))(t)
	if err := os.Rename(first.Backup, filepath.Join(filepath.Dir(first.Backup), "20310101T000000Z")); err != nil {
		t.Fatal(err)
	}
	p.write("state/init/mine/0.before", "mine")
	p.write("state/init/mine/manifest.json", "{}")
	p.write(".codeium/windsurf/mcp_config.json", `{"mcpServers": {"two": {"command": "two"}}}`)
	before := p.all()
	must(p.plan().Do(t.Context()))(t)
	if cmp.Equal(before, p.all()) {
		t.Fatal("the second init has done nothing")
	}
	p.undo(false)
	if diff := cmp.Diff(before, p.all()); diff != "" {
		t.Errorf("the last init is not what was taken back (-before +after):\n%s", diff)
	}
	p.undo(false)
	after := p.all()
	if after[filepath.FromSlash(".config/haldir/haldir.yaml")] != "" {
		t.Error("haldir.yaml is there")
	}
	if got := after[filepath.FromSlash(".cursor/mcp.json")]; !strings.Contains(got, `"one": {"command": "one"}`) {
		t.Errorf("the first init is not taken back: %s", got)
	}
}

// An init that is done while a person is asked about the one before must not lose that under itself.
func TestUndoWhileThereIsAnotherInit(t *testing.T) {
	p := newPerson(t)
	p.write(".cursor/mcp.json", `{"mcpServers": {"one": {"command": "one"}}}`)
	must(p.plan().Do(t.Context()))(t)
	first := must(adopt.Last(p.o.StateDir, p.o.Host, p.store))(t)
	p.write(".codeium/windsurf/mcp_config.json", `{"mcpServers": {"two": {"command": "two"}}}`)
	must(p.plan().Do(t.Context()))(t)
	before := p.all()
	if err := first.Do(false); err == nil || !strings.Contains(err.Error(), "another init meanwhile") {
		t.Errorf("it was undone: %v", err)
	}
	if diff := cmp.Diff(before, p.all()); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
	p.undo(false)
	p.undo(false)
	if err := first.Do(false); !errors.Is(err, adopt.ErrNothing) {
		t.Errorf("undone already: %v", err)
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
