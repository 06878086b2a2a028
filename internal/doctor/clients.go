package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/haldir-mcp/haldir/internal/adopt"
	"github.com/haldir-mcp/haldir/internal/clients"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/files"
)

// Own is this haldir, with which those that clients start are compared.
type Own struct {
	Config  *config.Config
	Version string
	Files   Files
	Init    func(clients.Client) string // the command for one client

	Clean func(text string, masks []string) string // a text without those
}

// Clients looks at the MCP clients of a person: what of them goes past haldir, and whether they
// can start it. o is what haldir init would go by here.
func Clients(ctx context.Context, o adopt.Options, own Own) (found []Finding) {
	o.Projects, o.Shared = true, true // a client starts those as well
	o.Host, o.Look = o.Host.Once(), true
	e := entries{Own: own, o: o, versions: map[string]string{}}
	for _, c := range clients.All() {
		o := o
		o.Clients = []clients.Client{c}
		files, err := read(o.Host, c)
		if err != nil {
			found = append(found, New(ClientBroken, Warning, "clients", Fix{Text: "mend it there"}, "%v", err))
			continue
		}
		var lists []*clients.List
		for _, f := range files {
			for _, l := range f.Lists {
				found = append(found, e.look(ctx, l)...)
			}
			lists = append(lists, f.Lists...)
		}
		found = append(found, e.off(lists)...)
		plan, err := adopt.New(o)
		if err != nil {
			found = append(found, New(ClientBroken, Warning, "clients", Fix{Text: "mend it there"}, "%s: %v", c, err))
			continue
		}
		found = append(found, own.direct(c, plan)...)
	}
	return found
}

// read reads the files of a client, each once.
func read(h clients.Host, c clients.Client) (files []*clients.File, err error) {
	seen := map[string]bool{}
	for _, p := range h.Places() {
		if p.Client != c {
			continue
		}
		f, wrong := h.Read(p)
		switch {
		case wrong != nil:
			err = errors.Join(err, wrong)
		case !seen[f.Target] && f.Data != nil:
			seen[f.Target] = true
			files = append(files, f)
		}
	}
	return files, err
}

// direct finds the servers that a client starts by itself, by a plan that has those of all projects
// and those that came with one.
func (o Own) direct(c clients.Client, plan *adopt.Plan) (found []Finding) {
	say := func(fix Fix, format string, args ...any) {
		found = append(found, New(ClientBypass, Warning, "clients", fix, format, args...))
	}
	var free, whys []string
	stuck := map[string][]string{} // by why
	init := o.Init(c)
	all := init // for all that are free
	for _, u := range plan.Upstreams {
		for _, s := range u.From {
			run := init + wider(s)
			name := also(s, o.Config)
			switch {
			case u.There && brought(s):
				say(Do("take the entry out there: %s", run), "%s: %s starts %q by itself, beside the upstream %s", s.Place(), c, s.Name, u.Name)
			case u.There:
				say(Run(run), "%s: %s starts %q by itself, beside the upstream %s", s.Place(), c, s.Name, u.Name)
			case name != "":
				say(Do("take the entry out there; or, to have it behind haldir as another upstream: %s", run),
					"%s: %s starts %q by itself, which is the upstream %s but for its settings", s.Place(), c, s.Name, name)
			case !brought(s): // nobody may have looked at what else came with a project
				free = append(free, named(s))
				if more := wider(s); !strings.HasSuffix(all, more) {
					all += more
				}
			}
		}
	}
	for _, l := range plan.Left {
		why := o.Clean(l.Why, plan.Masks)
		switch name := also(l.Server, o.Config); {
		case l.Server.Off || l.Server.Command == "" && l.Server.URL == "": // it is not started
		case name != "":
			say(Fix{Text: "take the entry out there"}, "%s: %s starts %q by itself, beside the upstream %s; it cannot move: %s", l.Server.Place(), c, l.Server.Name, name, why)
		case !brought(l.Server):
			if stuck[why] == nil {
				whys = append(whys, why)
			}
			stuck[why] = append(stuck[why], named(l.Server))
		}
	}
	if len(free) > 0 {
		found = append(found, New(ClientUnguarded, Note, "clients", Run(all), "%s has %d server(s) that are not behind haldir: %s", c, len(free), some(free)))
	}
	if len(whys) > 0 {
		n := 0
		for i, why := range whys {
			n += len(stuck[why])
			whys[i] = some(stuck[why]) + ": " + why
		}
		found = append(found, New(ClientUnguarded, Note, "clients", Fix{Text: "where that says what to do, do it; or take the entry out there"},
			"%s has %d server(s) that are not behind haldir, and cannot move: %s", c, n, strings.Join(whys, "; ")))
	}
	return found
}

// named is a server for people.
func named(s *clients.Server) string { return fmt.Sprintf("%q (%s)", s.Name, s.Place()) }

// brought reports whether a server came with a project, and nobody has approved it since.
func brought(s *clients.Server) bool { return s.List.Scope == clients.Project && !s.Approved }

// wider are the flags by which haldir init takes a server that it would leave where it is.
func wider(s *clients.Server) string {
	switch {
	case brought(s):
		return " --project"
	case !s.List.Here:
		return " --all-projects"
	}
	return ""
}

// also finds the upstream that is the same program as a server, or at the same address; "" if
// none is.
func also(s *clients.Server, cfg *config.Config) string {
	for _, u := range cfg.Upstreams {
		if u.URL != "" && address(u.URL) == address(s.URL) || u.Command != "" && program(u.Command, s.Command) && slices.Equal(newest(u.Args), newest(s.Args)) {
			return u.Name
		}
	}
	return ""
}

// address is a URL in one spelling.
func address(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return text
	}
	u.Host = strings.ToLower(u.Host)
	if port := u.Port(); port == map[string]string{"http": "80", "https": "443"}[u.Scheme] {
		u.Host = strings.TrimSuffix(u.Host, ":"+port)
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	return u.String()
}

// program reports whether two commands are one: a whole path is that of a name.
func program(a, b string) bool {
	named := filepath.Base(a) == a || filepath.Base(b) == b
	return a == b || named && filepath.Base(a) == filepath.Base(b)
}

// newest are arguments in which a package is that of its newest version.
func newest(args []string) (out []string) {
	for _, a := range args {
		out = append(out, strings.TrimSuffix(a, "@latest"))
	}
	return out
}

// entries are those of haldir in the files of clients.
type entries struct {
	Own

	o        adopt.Options
	versions map[string]string // of the programs that were asked
}

// look looks whether those of a list lead anywhere.
func (e entries) look(ctx context.Context, l *clients.List) (found []Finding) {
	for _, s := range l.Servers {
		if s.Guard == nil || s.Off {
			continue
		}
		found = append(found, e.program(ctx, s)...)
		// What is relative is so to where the client is started.
		if path := s.Guard.Config; filepath.IsAbs(path) {
			found = append(found, e.config(s, path)...)
		}
		if dir := s.Guard.StateDir; filepath.IsAbs(dir) && !files.SamePlace(dir, e.o.StateDir) { // that one is looked at anyway
			found = append(found, e.state(s, dir)...)
		}
	}
	return found
}

// off tells of the entries of a client that are off, where it starts no other haldir: an agent there
// has none of the servers.
func (e entries) off(lists []*clients.List) (found []Finding) {
	for _, l := range lists {
		for _, s := range l.Servers {
			n := len(e.Config.Upstreams)
			if s.Guard == nil || !s.Off || n == 0 || slices.ContainsFunc(lists, func(o *clients.List) bool { return starts(o, s) }) {
				continue
			}
			where := ""
			if !l.Here {
				where = fmt.Sprintf("in %s ", l.Dir)
			}
			text := fmt.Sprintf("%s: %s%s does not start haldir, which is disabled there,", s.Place(), where, l.File.Client)
			fix := "enable it there, or take the entry out"
			switch {
			case s.Guard.Disabled:
			case l.Scope == clients.Project:
				text = fmt.Sprintf("%s does not start the haldir of %s, which was rejected in this project,", l.File.Client, s.Place())
				fix = fmt.Sprintf("take %q out of disabledMcpjsonServers in the settings of Claude Code, or in %s, and approve it when Claude Code asks; or take the entry out", s.Name, e.o.Host.ClaudeConfig())
			default:
				text = fmt.Sprintf("%s does not start the haldir of %s in this project, where it is switched off,", l.File.Client, s.Place())
				fix = "switch it on again in this project: /mcp in Claude Code"
			}
			found = append(found, New(ClientDisabled, Note, "clients", Fix{Text: fix}, "%s and has none of its %d server(s)", text, n))
		}
	}
	return found
}

// starts reports whether a client starts a haldir of a list where an entry is off. What is for a
// person everywhere is so in one edition or profile of the client, if it has several.
func starts(l *clients.List, off *clients.Server) bool {
	in := off.List
	return slices.ContainsFunc(l.Servers, func(s *clients.Server) bool {
		switch {
		case s.Guard == nil || s.Guard.Disabled || off.Guard.Disabled && off.Shadows(s):
			return false
		case l == in:
			return !s.Off
		case l.Scope == clients.User && in.Scope == clients.User:
			return false
		case in.Here:
			return l.Here && !s.Off
		}
		return l.Scope == clients.User && !slices.Contains(s.OffIn, in.Dir)
	})
}

// program looks whether the client can start haldir, and which.
func (e entries) program(ctx context.Context, s *clients.Server) []Finding {
	client := s.List.File.Client
	fix := Fix{Text: fmt.Sprintf("make its command %q there, and start the client anew", e.o.Window.Command)}
	if err := s.Startable(); err != nil {
		return []Finding{New(ClientProgram, Failure, "clients", fix, "%s: %s cannot start haldir: %s %v", s.Place(), client, s.Command, err)}
	}
	path := s.Command
	if filepath.Base(path) == path {
		h := e.o.Host
		if its, own := s.Path(); own {
			if strings.Contains(its, "${") {
				return nil // it may be anywhere
			}
			h.Env = func(string) string { return its }
		}
		path = h.Program(path)
	}
	if !filepath.IsAbs(path) {
		return nil // relative to where the client is started, which is not here
	}
	// What came with a project is not started, nor is what starts haldir in its turn.
	if brought(s) || !strings.HasPrefix(strings.ToLower(filepath.Base(path)), "haldir") || files.Same(path, e.o.Host.Own) {
		return nil
	}
	if _, asked := e.versions[path]; !asked {
		e.versions[path] = versionOf(ctx, path, e.o.Host.Path())
	}
	if e.versions[path] == e.Version {
		return nil
	}
	return []Finding{New(ClientVersion, Warning, "clients", fix, "%s: %s starts another haldir, %s (%s), than this one (%s)", s.Place(), client, path, e.versions[path], e.Version)}
}

// config looks at the config that an entry names.
func (e entries) config(s *clients.Server, path string) []Finding {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		return nil // what is read from a pipe or a terminal is the client's, and may never come
	}
	client := s.List.File.Client
	switch _, err := config.Load(path); {
	case errors.Is(err, fs.ErrNotExist):
		return []Finding{New(ClientConfigGone, Failure, "clients", Fix{Text: fmt.Sprintf("put a config back at %s, or name %s there", path, e.o.Config)},
			"%s: the haldir of %s is given the config %s, which does not exist", s.Place(), client, path)}
	case err != nil:
		return []Finding{New(ClientConfigBroken, Failure, "clients", Fix{Text: fmt.Sprintf("mend %s, or name %s there", path, e.o.Config)},
			"%s: the haldir of %s is given a config that cannot be used: %v", s.Place(), client, err)}
	}
	return nil
}

// state looks at the state directory that an entry names.
func (e entries) state(s *clients.Server, dir string) (found []Finding) {
	for _, f := range e.Files.State(dir) {
		if brought(s) { // whoever wrote it may have named any directory
			f = f.inWords("name another directory there, or take the entry out")
		}
		if f.Severity == Failure {
			found = append(found, New(ClientState, Failure, "clients", Fix{f.Fix, f.Commands}, "%s: of the state directory that the haldir of %s is given: %s", s.Place(), s.List.File.Client, f.Text))
		}
	}
	return found
}
