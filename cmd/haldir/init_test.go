package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/clients"
)

// What init writes into clients must be there when they start it, long after this run.
func TestHowInitHasHaldirStarted(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string) string {
		path := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	installed := file("bin/haldir")
	program := file("lib/node_modules/haldir/node_modules/@haldir-mcp/haldir-linux-x64/bin/haldir")
	script := file("lib/node_modules/haldir/bin/haldir.js")
	entry := func(words ...string) clients.Entry { return clients.Entry{Command: words[0], Args: words[1:]} }
	for _, c := range []struct {
		name, own, found, npx, system string
		terminal, window              clients.Entry
		refused                       bool
	}{
		{"installed", installed, installed, "", "linux", entry("haldir"), entry(installed), false},
		{"not on PATH", installed, "", "", "linux", entry(installed), entry(installed), false},
		{"another is on PATH", installed, program, "", "linux", entry(installed), entry(installed), false},
		{"npm install -g", program, script, "", "linux", entry("haldir"), entry(program), false},
		{"another's npm install -g", installed, script, "", "linux", entry(installed), entry(installed), false},
		{"npx", "/home/u/.npm/_npx/0123/node_modules/@haldir-mcp/haldir-linux-x64/bin/haldir", "", "/usr/bin/npx", "linux", entry("npx", "-y", "haldir"), entry("/usr/bin/npx", "-y", "haldir"), false},
		{"npx on Windows", `C:\Users\u\AppData\Local\npm-cache\_npx\0123\haldir.exe`, "", "", "windows", entry("cmd", "/c", "npx", "-y", "haldir"), entry("cmd", "/c", "npx", "-y", "haldir"), false},
		{name: "go run", own: "/tmp/go-build123/b001/exe/haldir", refused: true},
		{name: "go run from a cache", own: "/cache/ab/" + strings.Repeat("0a", 32) + "-d/haldir", refused: true},
		{name: "bunx", own: "/tmp/bunx-1000-haldir@latest/node_modules/x/haldir", refused: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			terminal, window, err := started(c.own, c.found, c.npx, c.system)
			if c.refused != (err != nil) || err != nil && !strings.Contains(err.Error(), "install it first") {
				t.Fatal(err)
			}
			if c.refused {
				return
			}
			same := cmp.Comparer(func(a, b clients.Entry) bool {
				return a.Command == b.Command && strings.Join(a.Args, "\n") == strings.Join(b.Args, "\n")
			})
			if diff := cmp.Diff([]clients.Entry{c.terminal, c.window}, []clients.Entry{terminal, window}, same); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
