package doctor_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/adopt"
	"github.com/haldir-mcp/haldir/internal/clients"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/doctor"
)

// person is somebody with a home, in which the files of clients are.
type person struct {
	*testing.T
	home string
}

func someone(t *testing.T, files map[string]string) person {
	t.Helper()
	p := person{t, t.TempDir()}
	for name, text := range files {
		p.write(name, text)
	}
	return p
}

func (p person) path(name string) string { return filepath.Join(p.home, name) }

func (p person) write(name, text string) {
	p.Helper()
	if err := os.MkdirAll(filepath.Dir(p.path(name)), 0o700); err != nil {
		p.Fatal(err)
	}
	if err := os.WriteFile(p.path(name), []byte(strings.ReplaceAll(text, "@HOME@", filepath.ToSlash(p.home))), 0o700); err != nil {
		p.Fatal(err)
	}
}

// look is what is found of the person's clients, with these upstreams in the config.
func (p person) look(upstreams string) []doctor.Finding {
	p.Helper()
	p.write("haldir.yaml", "version: 1\nupstreams: ["+upstreams+"]\n")
	cfg, err := config.Load(p.path("haldir.yaml"))
	if err != nil {
		p.Fatal(err)
	}
	o := adopt.Options{
		Host:   clients.Host{OS: "linux", Home: p.home, Dir: p.home, Env: func(string) string { return "" }},
		Config: p.path("haldir.yaml"), StateDir: p.path("state"), Store: noStore{},
		Window: clients.Entry{Command: "/opt/haldir"},
	}
	return doctor.Clients(p.Context(), o, doctor.Own{
		Config: cfg, Version: "1.2.3", Files: doctor.Files{Quote: same, Free: func(string) (int64, bool) { return 0, false }},
		Init: func(c clients.Client) string { return "haldir init --client " + string(c) },
	})
}

// noStore keeps nothing.
type noStore struct{}

func (noStore) Get(string) (string, error) { return "", errors.New("it is not there") }
func (noStore) Set(string, string) error   { return errors.New("nothing is kept") }
func (noStore) Remove(string) error        { return nil }

func TestServersThatClientsStartThemselves(t *testing.T) {
	t.Parallel()
	const toy = `{"toy":{"command":"sh","args":["toy.sh"]}}`
	const upstream = `{name: toy, command: sh, args: [toy.sh]}`
	for name, c := range map[string]struct {
		file, text, upstream string
		says, fix            string
		runs                 bool // the fix has a command
	}{
		"of another project": {
			".claude.json", `{"projects":{"@HOME@/proj":{"mcpServers":` + toy + `}}}`, upstream,
			`Claude Code starts "toy" by itself`, "haldir init --client claude-code --all-projects", true,
		},
		"that came with the project": {
			".mcp.json", `{"mcpServers":` + toy + `}`, upstream,
			`Claude Code starts "toy" by itself`, "haldir init --client claude-code --project", true,
		},
		"that cannot move": {
			".vscode/mcp.json", `{"servers":{"crm":{"type":"http","url":"https://h/mcp","headers":{"K":"${input:k}"}}}}`, `{name: crm, url: "https://h/mcp"}`,
			`it cannot move: VS Code asks a person for its "k"`, "take the entry out there", false,
		},
		"with a slash at the end": {
			".cursor/mcp.json", `{"mcpServers":{"good":{"url":"HTTPS://H:443/good/"}}}`, `{name: good, url: "https://h/good"}`,
			`Cursor starts "good" by itself, which is the upstream good`, "haldir init", true,
		},
		"by a whole path, of the newest version": {
			".cursor/mcp.json", `{"mcpServers":{"f":{"command":"/usr/bin/npx","args":["-y","pkg@latest"]}}}`, `{name: files, command: npx, args: [-y, pkg]}`,
			`Cursor starts "f" by itself, which is the upstream files`, "haldir init", true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := one(t, someone(t, map[string]string{c.file: c.text}).look(c.upstream), doctor.ClientBypass, c.says)
			if !strings.Contains(f.Fix, c.fix) || len(f.Commands) > 0 != c.runs {
				t.Errorf("%q, %q", f.Fix, f.Commands)
			}
		})
	}
	for name, files := range map[string]map[string]string{
		"disabled":     {".claude.json": `{"mcpServers":{"toy":{"command":"sh","args":["toy.sh"],"disabled":true}}}`},
		"switched off": {".claude.json": `{"mcpServers":` + toy + `,"projects":{"@HOME@":{"disabledMcpServers":["toy"]}}}`},
		"rejected":     {".mcp.json": `{"mcpServers":` + toy + `}`, ".claude/settings.json": `{"disabledMcpjsonServers":["toy"]}`},
	} {
		if found := someone(t, files).look(upstream); len(found) > 0 {
			t.Errorf("a server that is %s: %+v", name, found)
		}
	}
	for name, c := range map[string]struct{ haldir, says string }{
		"the flags":      {`"command":"sh","args":["-c","haldir serve --upstream d=http://h/mcp"]`, "serves what its flags say (--upstream)"},
		"another config": {`"command":"sh","args":["-c","haldir serve --config /x.yaml"]`, "serves another config"},
		"nothing":        {`"command":"sh","args":["-c","haldir serve"],"disabled":true`, "is disabled"},
		"no program":     {`"command":"/gone/haldir","args":["serve"]`, "/gone/haldir does not exist"},
	} {
		p := someone(t, map[string]string{".cursor/mcp.json": `{"mcpServers":{"haldir":{` + c.haldir + `},"s":{"command":"s"}}}`})
		var texts []string
		for _, f := range p.look(upstream) {
			texts = append(texts, string(f.ID)+": "+f.Text)
		}
		all := strings.Join(texts, "\n")
		if !strings.Contains(all, `Cursor starts "s" by itself; it cannot move: the haldir beside it`) || !strings.Contains(all, c.says) {
			t.Errorf("beside a haldir of %s:\n%s", name, all)
		}
		if off := strings.Contains(all, "client-disabled: "); off != (name == "nothing") {
			t.Errorf("a haldir of %s is said to be disabled: %v", name, off)
		}
	}
	elsewhere := someone(t, map[string]string{".claude.json": `{"projects":{"/proj":{"mcpServers":{"x":{"command":"x"}}}}}`, ".mcp.json": `{"mcpServers":{"y":{"command":"y"}}}`})
	if f := one(t, elsewhere.look(upstream), doctor.ClientUnguarded, `Claude Code has 1 server(s) that are not behind haldir: "x"`); f.Fix != "haldir init --client claude-code --all-projects" {
		t.Error(f.Fix)
	}
}
