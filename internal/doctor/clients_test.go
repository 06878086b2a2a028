package doctor_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
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
		Clean: func(text string, masks []string) string {
			for _, m := range masks {
				text = strings.ReplaceAll(text, m, "[redacted]")
			}
			return text
		},
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
		if !strings.Contains(all, `Cursor has 1 server(s) that are not behind haldir, and cannot move: "s" (`) || !strings.Contains(all, ": the haldir beside it") || !strings.Contains(all, c.says) {
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

// What the servers are that cannot move, doctor says as init does, and of those alone that are started.
func TestServersThatCannotMove(t *testing.T) {
	t.Parallel()
	const haldir = `"haldir":{"command":"sh","args":["-c","haldir serve"]}`
	for name, c := range map[string]struct {
		files map[string]string
		says  []string
		count string
	}{
		"of one client": {
			map[string]string{".claude.json": `{"mcpServers":{"a":{"command":"a","wired":1},"b":{"url":"https://h/","type":"http","headersHelper":"x"},"c":{"command":"c","wired":2}}}`},
			[]string{`"a" (@HOME@/.claude.json:1:16), "c" (@HOME@/.claude.json:1:105): haldir does not know its key "wired"; "b" (`, "a program gives its headers (headersHelper)"},
			"Claude Code has 3 server(s)",
		},
		"beside a haldir that is switched off": {
			map[string]string{".claude.json": `{"mcpServers":{` + haldir + `,"s":{"command":"s"}},"projects":{"@HOME@":{"disabledMcpServers":["haldir"]}}}`},
			[]string{`"s" (`, "Claude Code would not load haldir in its place: it is switched off in this project; switch it on there (/mcp)"},
			"Claude Code has 1 server(s)",
		},
		"that haldir would not take": {
			map[string]string{".cursor/mcp.json": `{"mcpServers":{"s":{"url":"http://example.com/x"}}}`},
			[]string{`"s" (`, "haldir would not take it: "},
			"Cursor has 1 server(s)",
		},
		"of a secret": {
			map[string]string{".cursor/mcp.json": `{"mcpServers":{"s":{"command":"s","args":["${sk-abcdefghijklmnop1234567890}"],"token":"sk-abcdefghijklmnop1234567890"}}}`},
			[]string{"it refers to ${[redacted]}"},
			"Cursor has 1 server(s)",
		},
		"that settings let in here alone": {
			map[string]string{".claude.json": `{"mcpServers":{"s":{"command":"s"}}}`, ".claude/settings.json": `{"allowedMcpServers":[{"serverName":"t"}]}`, ".claude/settings.local.json": `{"allowedMcpServers":[{"serverName":"s"}]}`},
			[]string{"outside of this project Claude Code does not load it: allowedMcpServers in "},
			"Claude Code has 1 server(s)",
		},
		"of another project": {
			map[string]string{".claude.json": `{"projects":{"/elsewhere":{"mcpServers":{"s":{"command":"s","wired":1}}}}}`},
			[]string{`"s" (`, `haldir does not know its key "wired"`},
			"Claude Code has 1 server(s)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := someone(t, c.files)
			var notes []doctor.Finding
			for _, f := range p.look(`{name: toy, command: sh, args: [toy.sh]}`) {
				if f.ID == doctor.ClientUnguarded {
					notes = append(notes, f)
				}
			}
			f := one(t, notes, doctor.ClientUnguarded, c.count+" that are not behind haldir, and cannot move: ")
			for _, says := range c.says {
				if says = strings.ReplaceAll(says, "@HOME@", filepath.ToSlash(p.home)); !strings.Contains(filepath.ToSlash(f.Text), says) {
					t.Errorf("want %q: %s", says, f.Text)
				}
			}
			if f.Severity != doctor.Note || len(f.Commands) > 0 {
				t.Errorf("%+v", f)
			}
		})
	}
	for name, files := range map[string]map[string]string{
		"disabled":               {".cursor/mcp.json": `{"mcpServers":{"s":{"command":"s","wired":1,"disabled":true}}}`},
		"that came so":           {".mcp.json": `{"mcpServers":{"s":{"command":"s","wired":1}}}`},
		"without a type":         {".claude.json": `{"mcpServers":{"s":{"url":"https://h/"}}}`},
		"with a number in env":   {".claude.json": `{"mcpServers":{"s":{"command":"s","env":{"N":1}}}}`},
		"with nothing to start":  {".claude.json": `{"mcpServers":{"s":{"type":"stdio"}}}`},
		"denied by settings":     {".claude.json": `{"mcpServers":{"s":{"command":"s","wired":1}}}`, ".claude/settings.json": `{"deniedMcpServers":[{"serverName":"s"}]}`},
		"not among the allowed":  {".claude.json": `{"mcpServers":{"s":{"command":"s"}}}`, ".claude/settings.json": `{"allowedMcpServers":[{"serverName":"t"}]}`},
		"denied in that project": {".claude.json": `{"projects":{"@HOME@/p":{"mcpServers":{"s":{"command":"s"}}}}}`, "p/.claude/settings.json": `{"deniedMcpServers":[{"serverName":"s"}]}`},
	} {
		if found := someone(t, files).look(""); len(found) > 0 {
			t.Errorf("a server that is not started, %s: %+v", name, found)
		}
	}
}

// What a project's own settings deny is started in all others.
func TestAServerThatThisProjectDenies(t *testing.T) {
	t.Parallel()
	p := someone(t, map[string]string{
		".claude.json":                `{"mcpServers":{"s":{"command":"toy"}}}`,
		".claude/settings.local.json": `{"deniedMcpServers":[{"serverName":"s"}]}`,
	})
	one(t, p.look("{name: s, command: toy}"), doctor.ClientBypass, `starts "s" by itself, beside the upstream s`)
}

// An entry that is off says nothing of a client that starts haldir by another.
func TestEntriesThatAreOff(t *testing.T) {
	t.Parallel()
	entry := func(name string, more ...string) string {
		return `"` + name + `":{"command":"sh","args":["-c","haldir serve"]` + strings.Join(more, "") + `}`
	}
	const disabled, elsewhere = `,"disabled":true`, `"/elsewhere":`
	for name, c := range map[string]struct {
		files     map[string]string
		says, fix string // "": nothing
	}{
		"beside another": {map[string]string{".cursor/mcp.json": `{"mcpServers":{` + entry("haldir") + `,` + entry("haldir-work", disabled) + `}}`}, "", ""},
		"all of them": {
			map[string]string{".cursor/mcp.json": `{"mcpServers":{` + entry("haldir", disabled) + `}}`},
			"@HOME@/.cursor/mcp.json:1:16: Cursor does not start haldir, which is disabled there, and has none of its 1 server(s)", "enable it there",
		},
		"of the project, beside the person's": {map[string]string{
			".claude.json": `{"mcpServers":{` + entry("haldir") + `},"projects":{"@HOME@":{"disabledMcpjsonServers":["haldir-team"]}}}`,
			".mcp.json":    `{"mcpServers":{` + entry("haldir-team") + `}}`,
		}, "", ""},
		"of the project": {
			map[string]string{".claude.json": `{"projects":{"@HOME@":{"disabledMcpjsonServers":["haldir-team"]}}}`, ".mcp.json": `{"mcpServers":{` + entry("haldir-team") + `}}`},
			"Claude Code does not start the haldir of @HOME@/.mcp.json:1:16, which was rejected in this project,", `take "haldir-team" out of disabledMcpjsonServers`,
		},
		"in this project alone": {
			map[string]string{".claude.json": `{"mcpServers":{` + entry("haldir") + `},"projects":{"@HOME@":{"disabledMcpServers":["haldir"]}}}`},
			"Claude Code does not start the haldir of @HOME@/.claude.json:1:16 in this project, where it is switched off,", "switch it on again in this project: /mcp in Claude Code",
		},
		"in this project, beside one of it": {map[string]string{".claude.json": `{"mcpServers":{` + entry("haldir") + `},"projects":{"@HOME@":{"disabledMcpServers":["haldir"],"mcpServers":{` + entry("haldir-2") + `}}}}`}, "", ""},
		"the person's, beside one of another project": {
			map[string]string{".claude.json": `{"mcpServers":{` + entry("haldir", disabled) + `},"projects":{` + elsewhere + `{"mcpServers":{` + entry("haldir") + `}}}}`},
			"Claude Code does not start haldir, which is disabled there", "enable it there",
		},
		"of another project, beside the person's": {map[string]string{".claude.json": `{"mcpServers":{` + entry("haldir") + `},"projects":{` + elsewhere + `{"mcpServers":{` + entry("haldir-2", disabled) + `}}}}`}, "", ""},
		"of another project, where the person's is off": {
			map[string]string{".claude.json": `{"mcpServers":{` + entry("haldir") + `},"projects":{` + elsewhere + `{"disabledMcpServers":["haldir"],"mcpServers":{` + entry("haldir-2", disabled) + `}}}}`},
			"in /elsewhere Claude Code does not start haldir", "enable it there",
		},
		"of another edition": {
			map[string]string{".config/Code/User/mcp.json": `{"servers":{` + entry("haldir") + `}}`, ".config/VSCodium/User/mcp.json": `{"servers":{` + entry("haldir", disabled) + `}}`},
			"VSCodium/User/mcp.json:1:13: VS Code does not start haldir", "enable it there",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := someone(t, c.files)
			found := p.look(`{name: toy, command: sh, args: [toy.sh]}`)
			if c.says == "" {
				if len(found) > 0 {
					t.Errorf("%+v", found)
				}
				return
			}
			for i := range found {
				found[i].Text = filepath.ToSlash(found[i].Text)
			}
			if f := one(t, found, doctor.ClientDisabled, strings.ReplaceAll(c.says, "@HOME@", filepath.ToSlash(p.home))); !strings.Contains(f.Fix, c.fix) || f.Severity != doctor.Note {
				t.Errorf("%+v", f)
			}
		})
	}
}

// The state directory of an entry is looked at unless it is the one that doctor looks at anyway.
func TestStateDirectoryByAnotherName(t *testing.T) {
	t.Parallel()
	p := someone(t, map[string]string{"state/haldir.db": "", "other/haldir.db": ""})
	if err := errors.Join(os.Chmod(p.path("state"), 0o755), os.Chmod(p.path("other"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("state", p.path("link")); err != nil {
		if runtime.GOOS == "windows" {
			t.Skip(err) // it lets only some
		}
		t.Fatal(err)
	}
	for dir, told := range map[string]bool{"state": false, "link": false, "other": runtime.GOOS != "windows"} {
		p.write(".cursor/mcp.json", `{"mcpServers":{"haldir":{"command":"sh","args":["-c","haldir serve"],"env":{"HALDIR_STATE_DIR":"@HOME@/`+dir+`"}}}}`)
		if found := p.look(`{name: toy, command: sh, args: [toy.sh]}`); len(found) > 0 != told {
			t.Errorf("%s: %+v", dir, found)
		}
	}
}
