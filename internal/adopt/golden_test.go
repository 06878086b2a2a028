package adopt_test

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/haldir-mcp/haldir/internal/adopt"
	"github.com/haldir-mcp/haldir/internal/clients"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/secret"
)

var update = flag.Bool("update", false, "write what the golden files should say")

// person is somebody's home directory, in which haldir init is run.
type person struct {
	t     *testing.T
	home  string
	o     adopt.Options
	store *secret.Store
}

func newPerson(t *testing.T) *person {
	t.Helper()
	home, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(home, "state")
	p := &person{t: t, home: home, store: secret.New(state, nil)}
	p.o = adopt.Options{
		Host:   clients.Host{OS: "linux", Home: home, Dir: filepath.Join(home, "project"), Env: pathAlone, Managed: filepath.Join(home, "managed")},
		Config: filepath.Join(home, ".config", "haldir", "haldir.yaml"), StateDir: state, Store: p.store, Now: time.Unix(0, 0),
		Terminal: clients.Entry{Command: "haldir", Args: []string{"serve"}}, Window: clients.Entry{Command: "/usr/local/bin/haldir", Args: []string{"serve"}},
	}
	if err := os.MkdirAll(filepath.Join(p.o.Host.Dir, ".git"), 0o700); err != nil {
		t.Fatal(err)
	}
	return p
}

// pathAlone is an environment in which programs are found, and nothing else.
func pathAlone(name string) string {
	if name == "PATH" {
		return os.Getenv(name)
	}
	return ""
}

func (p *person) write(name, text string) {
	p.t.Helper()
	path := filepath.Join(p.home, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "$HOME", p.home)), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// all is every file below the home directory but haldir's own state, its mode and what it
// holds, or where it leads.
func (p *person) all() map[string]string {
	p.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(p.home, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if d != nil && path == p.o.StateDir {
				return fs.SkipDir
			}
			return err
		}
		name, _ := filepath.Rel(p.home, path)
		if strings.HasSuffix(name, ".lock") {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			to, err := os.Readlink(path)
			out[name] = "-> " + to
			return err
		}
		raw, err := os.ReadFile(path)
		out[name] = fmt.Sprintf("%v %s", info.Mode(), raw)
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// undo takes the last init back.
func (p *person) undo(force bool) {
	p.t.Helper()
	u, err := adopt.Last(p.o.StateDir, p.o.Host, p.store)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := u.Do(force); err != nil {
		for _, c := range u.Conflicts() {
			p.t.Errorf("%s: %s\n%s", c.Path, c.Why, c.Now)
		}
		p.t.Fatal(err)
	}
}

// Each archive is a home directory, what is wanted of init, and what has come of it. The
// lines of the file named do are
//
//	os NAME, client NAME, projects, project, trust, permissions, config PATH, env NAME=VALUE, in DIR
//	crlf FILE, bom FILE, unterminated FILE     what an archive cannot hold of a file
//	mode FILE OCTAL, link FILE TARGET          the same
//	secret NAME VALUE                          is stored already
//
// want/FILE is a file that has changed or is new, said is what a person is told: the
// upstreams, what is left, the notes, the secrets; or the error.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 20 {
		t.Fatal("golden files are missing", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(strings.TrimSpace(string(a.Comment))) == 0 {
				t.Error("the archive says nothing of what it is for")
			}
			want := map[string]string{}
			var given []txtar.File
			for _, f := range a.Files {
				if f.Name == "said" || strings.HasPrefix(f.Name, "want/") {
					want[f.Name] = string(f.Data)
					continue
				}
				given = append(given, f)
			}
			got := perform(t, given)
			if *update {
				a.Files = given
				for _, name := range slices.Sorted(mapKeys(got)) {
					a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(got[name])})
				}
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func mapKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// shape makes of a file in an archive what an archive cannot hold, and back.
func shape(kind, text string) string {
	switch kind {
	case "crlf":
		return strings.ReplaceAll(text, "\n", "\r\n")
	case "bom":
		return "\ufeff" + text
	case "unterminated":
		return strings.TrimSuffix(text, "\n")
	}
	return text
}

// visible shows in an archive what it cannot hold.
func visible(text string) string {
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "␍\n"), "\ufeff", "<BOM>")
	if !strings.HasSuffix(text, "\n") {
		text += "␄\n"
	}
	return text
}

func perform(t *testing.T, given []txtar.File) map[string]string {
	t.Helper()
	p := newPerson(t)
	var do []string
	for _, f := range given {
		if f.Name == "do" {
			do = strings.Split(strings.TrimSpace(string(f.Data)), "\n")
			continue
		}
		p.write(f.Name, string(f.Data))
	}
	env := map[string]string{}
	p.o.Host.Env = func(name string) string { return env[name] }
	for _, line := range do {
		words := strings.Fields(strings.ReplaceAll(line, "$HOME", p.home))
		if len(words) == 0 {
			continue
		}
		arg := func(i int) string {
			if i >= len(words) {
				t.Fatalf("what is %q?", line)
			}
			return words[i]
		}
		switch words[0] {
		case "os":
			p.o.Host.OS = arg(1)
		case "client":
			p.o.Clients = append(p.o.Clients, clients.Client(arg(1)))
		case "projects":
			p.o.Projects = true
		case "project":
			p.o.Shared = true
		case "trust":
			p.o.Trust = true
		case "permissions":
			p.o.Permissions = true
		case "in":
			p.o.Host.Dir = filepath.Join(p.home, arg(1))
		case "config":
			p.o.Config = filepath.Join(p.home, arg(1))
			p.o.Serves.Config = p.o.Config
			p.o.Terminal.Args = []string{"serve", "--config", p.o.Config}
			p.o.Window.Args = p.o.Terminal.Args
		case "env":
			name, value, _ := strings.Cut(arg(1), "=")
			env[name] = value
		case "crlf", "bom", "unterminated":
			raw, err := os.ReadFile(filepath.Join(p.home, arg(1)))
			if err != nil {
				t.Fatal(err)
			}
			p.write(arg(1), shape(words[0], string(raw)))
		case "mode":
			n, err := strconv.ParseUint(arg(2), 8, 32)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Join(p.home, arg(1)), fs.FileMode(n)); err != nil {
				t.Fatal(err)
			}
		case "link":
			path := filepath.Join(p.home, arg(1))
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(arg(2), path); err != nil {
				t.Fatal(err)
			}
		case "secret":
			if err := p.store.Set(arg(1), arg(2)); err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatalf("what is %q?", line)
		}
	}
	before := p.all()
	secrets, err := p.store.Names()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	plan, err := adopt.New(p.o)
	if err == nil {
		if diff := cmp.Diff(before, p.all()); diff != "" {
			t.Errorf("the plan alone has changed something: %s", diff)
		}
		_, err = plan.Do(t.Context())
	}
	if err != nil {
		if diff := cmp.Diff(before, p.all()); diff != "" {
			t.Errorf("changed by what failed: %s", diff)
		}
		lines := []string{err.Error()}
		if problems, ok := errors.AsType[config.Problems](err); ok {
			lines = nil
			for _, q := range problems {
				lines = append(lines, q.String())
			}
		}
		got["said"] = strings.ReplaceAll("error: "+strings.Join(lines, "\n")+"\n", p.home, "$HOME")
		return got
	}
	after := p.all()
	for name, text := range after {
		if before[name] != text {
			mode, body, _ := strings.Cut(text, " ")
			if was, _, ok := strings.Cut(before[name], " "); ok && was != mode || !ok && mode != "-rw-------" {
				t.Errorf("%s has the mode %s", name, mode)
			}
			got["want/"+name] = visible(strings.ReplaceAll(body, p.home, "$HOME"))
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			t.Errorf("%s is gone", name)
		}
	}
	got["said"] = p.said(plan)
	// A second init has nothing to do.
	if again, err := adopt.New(p.o); err != nil || len(again.Files) > 0 {
		t.Errorf("a second init: %v, %v", again, err)
	}
	if len(plan.Files) == 0 {
		return got
	}
	p.undo(false)
	if diff := cmp.Diff(before, p.all()); diff != "" {
		t.Errorf("init and undo (-before +after):\n%s", diff)
	}
	if names, err := p.store.Names(); err != nil || !slices.Equal(names, secrets) {
		t.Errorf("secrets after undo: %v, %v", names, err)
	}
	return got
}

// said is what a person is told of a plan.
func (p *person) said(plan *adopt.Plan) string {
	var b strings.Builder
	for _, u := range plan.Upstreams {
		fmt.Fprintf(&b, "upstream %s", u.Name)
		if u.There {
			b.WriteString(" (is there)")
		}
		for _, s := range u.From {
			fmt.Fprintf(&b, " < %s %s %q", s.List.File.Client, s.List.Scope, s.Name)
		}
		b.WriteString("\n")
		for _, s := range u.Secrets {
			v, err := p.store.Get(s.Name)
			fmt.Fprintf(&b, "  secret %s = %q, %s\n", s.Name, v, s.What)
			if err != nil {
				p.t.Errorf("the secret %s: %v", s.Name, err)
			}
		}
	}
	for _, l := range plan.Left {
		fmt.Fprintf(&b, "left %q %s: %s\n", l.Server.Name, l.Server.Place(), l.Why)
	}
	for _, n := range plan.Notes {
		b.WriteString("note " + n + "\n")
	}
	return strings.ReplaceAll(b.String(), p.home, "$HOME")
}
