package clients_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/haldir-mcp/haldir/internal/clients"
)

// A command by its name is looked for on the PATH that its entry has.
func TestStartable(t *testing.T) {
	bin, empty, home := t.TempDir(), t.TempDir(), t.TempDir()
	name := "wardenofthewood"
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	program := filepath.Join(bin, name)
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	list := func(dirs ...string) (path string) {
		for i, dir := range dirs {
			if i > 0 {
				path += string(filepath.ListSeparator)
			}
			path += dir
		}
		return path
	}
	for says, c := range map[string]struct {
		path, command string
		env           map[string]string
		ok            bool
	}{
		"by no PATH of its own":                     {empty, name, nil, false},
		"by another variable":                       {empty, name, map[string]string{"MYPATH": bin}, false},
		"on its PATH":                               {empty, name, map[string]string{"PATH": list(empty, bin)}, true},
		"on the PATH here alone":                    {bin, name, map[string]string{"PATH": empty}, false},
		"on a PATH with a variable":                 {empty, name, map[string]string{"PATH": list(empty, "${env:HOME}/bin")}, true},
		"on a PATH from where the client is":        {empty, name, map[string]string{"PATH": list(empty, "bin")}, true},
		"on an empty PATH":                          {bin, name, map[string]string{"PATH": ""}, true},
		"by its whole path":                         {empty, program, map[string]string{"PATH": empty}, true},
		"by a whole path where nothing is":          {bin, filepath.Join(empty, name), map[string]string{"PATH": bin}, false},
		"on its PATH, as Windows alone may call it": {empty, name, map[string]string{"Path": bin}, runtime.GOOS == "windows"},
	} {
		t.Setenv("PATH", c.path)
		entry, err := json.Marshal(map[string]any{"command": c.command, "args": []string{"serve"}, "env": c.env})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(home, "mcp.json")
		if err := os.WriteFile(path, []byte(`{"mcpServers":{"haldir":`+string(entry)+`}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		host := clients.Host{OS: runtime.GOOS, Home: home, Env: os.Getenv}
		f, err := host.Read(clients.Place{Client: clients.Cursor, Scope: clients.User, Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Lists[0].Servers[0].Startable(); (err == nil) != c.ok {
			t.Errorf("%s: %v", says, err)
		}
	}
}
