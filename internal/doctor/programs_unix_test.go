//go:build unix

package doctor_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/haldir-mcp/haldir/internal/doctor"
)

// An entry of haldir is followed to the program, the config and the state directory that it names.
func TestEntriesOfHaldir(t *testing.T) {
	t.Parallel()
	entry := func(command string, args ...string) string {
		words := []string{`"serve"`}
		for _, a := range args {
			words = append(words, strconv.Quote(a))
		}
		return `{"mcpServers":{"haldir":{"command":"` + command + `","args":[` + strings.Join(words, ",") + `]}}}`
	}
	p := someone(t, map[string]string{
		"old/haldir": "#!/bin/sh\necho '{\"version\":\"1.0.0\"}'\n", "new/haldir": "#!/bin/sh\necho '{\"version\":\"1.2.3\"}'\n",
		"trap/haldir": "#!/bin/sh\ntouch @HOME@/sprung\n", "other.yaml": "version: 1\nupstream: []\n", "well.yaml": "version: 1\n",
	})
	for _, c := range []struct {
		text string
		id   doctor.ID
		says string
		fix  string
	}{
		{entry("@HOME@/old/haldir"), doctor.ClientVersion, p.path("old/haldir") + " (1.0.0), than this one (1.2.3)", `make its command "/opt/haldir"`},
		{entry("@HOME@/new/haldir", "--config", p.path("other.yaml")), doctor.ClientConfigBroken, `other.yaml:2:1: unknown key "upstream"`, "or name " + p.path("haldir.yaml")},
		{entry("@HOME@/new/haldir", "--config", p.path("none.yaml")), doctor.ClientConfigGone, "none.yaml, which does not exist", "put a config back"},
		{entry("@HOME@/new/haldir", "--config", p.path("well.yaml"), "--state-dir", p.path("well.yaml/state")), doctor.ClientState, "well.yaml/state cannot be used", "name another directory"},
	} {
		p.write(".claude.json", c.text)
		if f := one(t, p.look(""), c.id, c.says); !strings.Contains(f.Fix, c.fix) {
			t.Errorf("%s: %q", c.id, f.Fix)
		}
	}
	p.write(".claude.json", entry("@HOME@/new/haldir", "--config", p.path("well.yaml"), "--state-dir", p.path("elsewhere")))
	p.write(".mcp.json", entry("@HOME@/trap/haldir"))
	if found := p.look(""); len(found) > 0 {
		t.Errorf("of an entry that is well: %+v", found)
	}
	if _, err := os.Stat(p.path("sprung")); err == nil {
		t.Error("a program that came with a project was started")
	}
}

// What a project's file names is told of, and never to be given away, and what may be another
// thing here than for the client, or keep doctor waiting, is not looked at.
func TestEntriesThatAreNotFollowed(t *testing.T) {
	p := someone(t, map[string]string{"trap/haldir": "#!/bin/sh\ntouch @HOME@/sprung\n", "open/haldir.db": ""})
	t.Chdir(p.home)
	if err := errors.Join(os.Chmod("open", 0o755), syscall.Mkfifo("pipe", 0o600)); err != nil { //nolint:gosec // that is what is wrong with it
		t.Fatal(err)
	}
	named := `{"mcpServers":{"haldir":{"command":"./haldir","args":["serve","--state-dir","@HOME@/open"]}}}`
	p.write(".claude.json", named)
	if f := one(t, p.look(""), doctor.ClientState, "is open to others"); len(f.Commands) != 1 {
		t.Errorf("of a person's own entry: %+v", f)
	}
	p.write(".claude.json", "{}")
	p.write(".mcp.json", named)
	if f := one(t, p.look(""), doctor.ClientState, "is open to others"); len(f.Commands) > 0 || strings.Contains(f.Fix, "chmod") {
		t.Errorf("of an entry that came with a project: %+v", f)
	}
	p.write(".mcp.json", "{}")
	for _, entry := range []string{
		`{"command":"./trap/haldir","args":["serve"]}`, `{"command":"none/haldir","args":["serve"]}`,
		`{"command":"./trap/haldir","args":["serve","--config","@HOME@/pipe"]}`,
	} {
		p.write(".claude.json", `{"mcpServers":{"haldir":`+entry+`}}`)
		if found := p.look(""); len(found) > 0 {
			t.Errorf("%s: %+v", entry, found)
		}
	}
	if _, err := os.Stat(p.path("sprung")); err == nil {
		t.Error("a program was started that the client would look for elsewhere")
	}
}

// A directory of PATH may be that where one is.
func TestAHaldirInThisDirectory(t *testing.T) {
	p := someone(t, map[string]string{"haldir": "#!/bin/sh\necho '{\"version\":\"1.2.3\"}'\n"})
	t.Chdir(p.home)
	here, err := filepath.Abs("haldir")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{".", string(filepath.ListSeparator)} {
		one(t, doctor.Programs(t.Context(), path, "/opt/haldir", "1.2.3"), doctor.ProgramOthers, here+" is another haldir (1.2.3)")
	}
}
