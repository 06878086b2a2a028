package adopt

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/haldir-mcp/haldir/internal/clients"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/files"
	"github.com/haldir-mcp/haldir/internal/replace"
)

// Store keeps secrets, as secret.Store does.
type Store interface {
	Get(name string) (string, error)
	Set(name, value string) error
	Remove(name string) error
}

// Options are what a person wants, and where.
type Options struct {
	Host     clients.Host
	Clients  []clients.Client // nil for all
	Projects bool             // the servers of all projects of Claude Code, not of this one alone
	Shared   bool             // the servers that a project brings, which nobody here may have looked at
	Config   string           // the path of haldir.yaml
	StateDir string
	Store    Store

	// How clients start haldir: those of a terminal, and those with a window, whose PATH
	// need not be the shell's. Serves is what the arguments of both name.
	Terminal, Window clients.Entry
	Serves           clients.Guard

	Trust       bool   // the annotations of the servers that move
	Permissions bool   // deny rules for Claude Code
	Claude      string // the path of its command line; "" for none
	Look        bool   // for what would move and what would not, and why: no file is to be shown or changed
	Now         time.Time

	Patience time.Duration // with Claude Code; 0 for a minute
}

// Upstream is a server that moves.
type Upstream struct {
	Name    string
	From    []*clients.Server // all are the same
	There   bool              // haldir.yaml has it already
	Secrets []Secret

	entry  string                       // as it is written in haldir.yaml
	unsaid map[*clients.Server][]string // comments that haldir.yaml does not have
}

// Secret is a value that goes to the store.
type Secret struct {
	Name  string // in the store
	What  string // whose value it is, for people
	value string
	there bool // it is stored already
}

// Left is a server that stays where it is.
type Left struct {
	Server *clients.Server
	Why    string
	Unfit  bool // what is wrong is the haldir beside it
}

// Kind is what a file is to haldir.
type Kind string

// The kinds.
const (
	KindConfig   Kind = "config"   // haldir.yaml
	KindClient   Kind = "client"   // the servers of a client
	KindSettings Kind = "settings" // of Claude Code
)

// Change is one file that changes.
type Change struct {
	Kind          Kind
	Client        clients.Client
	Path          string
	Before, After []byte    // Before is nil for a new file
	Swaps         []Swapped // of a client
	Rules         []string  // of settings
	Command       []string  // that Claude Code is told first, to have haldir's entry; nil: that is edited too

	file  *clients.File
	info  fs.FileInfo
	swaps []clients.Swap
	base  []byte // what is there by now, if that is not Before
}

// Swapped is what has become of one list of servers.
type Swapped struct {
	Scope  clients.Scope `json:"scope"`
	Dir    string        `json:"dir,omitempty"`
	Gone   []string      `json:"gone"`
	Name   string        `json:"name"`   // of haldir's entry
	Placed bool          `json:"placed"` // the entry is new
}

// Plan is what would be done.
type Plan struct {
	Config    string
	Upstreams []*Upstream
	Policies  []string // ids of those that haldir.yaml gets for upstreams, beside the starter's
	Left      []Left
	Files     []*Change
	Notes     []string
	Masks     []string // texts that must not be shown

	o        Options
	claude   []clients.Rule // of Claude Code
	fail     error          // of the store
	unfit    bool           // a client's haldir would not serve what moves to it
	inClaude bool           // Claude Code has haldir, or gets it
}

// New makes a plan. Nothing is written.
func New(o Options) (*Plan, error) {
	p := &Plan{Config: o.Config, o: o}
	p.o.Host = o.Host.Once()
	defer func() { p.o.Host = o.Host }() // what carries it out looks anew
	files, err := p.read()
	if err != nil {
		return nil, err
	}
	before, info, err := readConfig(o.Config)
	if err != nil {
		return nil, err
	}
	var cfg *config.Config
	if before != nil {
		if cfg, err = config.Parse(before, o.Config); err != nil {
			return nil, err
		}
		p.Masks = append(p.Masks, unshown(o.Config, before)...)
	}
	p.gather(files)
	for _, u := range p.Upstreams {
		p.name(u, cfg)
	}
	if slices.ContainsFunc(p.Upstreams, func(u *Upstream) bool { return u.of(clients.ClaudeCode) }) {
		p.claude = p.o.Host.ClaudeRules()
		p.Notes = append(p.Notes, p.o.Host.UnreadIn()...)
	}
	after, err := p.write(before)
	if p.unfit && len(p.Upstreams) == 0 {
		after = before // there is a haldir already, which would not serve it
	}
	if err != nil {
		return nil, err
	}
	if p.fail != nil {
		return nil, p.fail
	}
	if !bytes.Equal(before, after) {
		p.Files = append(p.Files, &Change{Kind: KindConfig, Path: o.Config, Before: before, After: after, info: info})
	}
	if err := p.swaps(files); err != nil {
		return nil, err
	}
	if o.Look {
		p.Files = nil // haldir.yaml has not been made
		return p, nil
	}
	if o.Permissions {
		if err := p.permissions(); err != nil {
			return nil, err
		}
	}
	p.advise(cfg)
	return p, nil
}

func readConfig(path string) ([]byte, fs.FileInfo, error) {
	target, err := replace.Follow(path)
	if err != nil {
		return nil, nil, err
	}
	return replace.Read(target)
}

// read reads the files of the clients, each once. All that is wrong with them is told.
func (p *Plan) read() (files []*clients.File, err error) {
	seen := map[string]bool{}
	for _, place := range p.o.Host.Places() {
		if len(p.o.Clients) > 0 && !slices.Contains(p.o.Clients, place.Client) {
			continue
		}
		f, wrong := p.o.Host.Read(place)
		if wrong != nil {
			err = errors.Join(err, wrong)
			continue
		}
		if !seen[f.Target] && f.Data != nil {
			seen[f.Target] = true
			files = append(files, f)
			if !p.o.Look {
				p.Masks = append(p.Masks, f.Secrets(secretive, among)...)
				continue
			}
			for _, l := range f.Lists { // no more is told of, and a history is long
				p.Masks = append(p.Masks, l.Secrets(secretive, among)...)
			}
		}
	}
	if len(p.o.Clients) == 0 || slices.Contains(p.o.Clients, clients.ClaudeCode) {
		err = errors.Join(err, p.o.Host.Unread())
	}
	return files, err
}

// gather decides which servers move.
func (p *Plan) gather(files []*clients.File) {
	for _, f := range files {
		for _, l := range f.Lists {
			stays := sync.OnceValues(func() (string, bool) { return p.stays(l) }) // it reads files
			for _, s := range l.Servers {
				if s.Guard != nil {
					p.inClaude = p.inClaude || f.Client == clients.ClaudeCode
					continue
				}
				why, unfit := s.Why, false
				if why == "" {
					why, unfit = stays()
				}
				if why = cmp.Or(why, p.brought(s)); why != "" {
					p.Left = append(p.Left, Left{s, why, unfit})
					p.unfit = p.unfit || unfit
					continue
				}
				p.join(s)
			}
		}
	}
}

// stays says why the servers of a list are none of this plan, "" if they are, and whether that is for
// the haldir which the list has.
func (p *Plan) stays(l *clients.List) (why string, unfit bool) {
	if !l.Here && !p.o.Projects {
		return fmt.Sprintf("it is of another project, %s: run haldir init there, or with --all-projects", l.Dir), false
	}
	if l.File.Info.Mode()&0o200 == 0 {
		return fmt.Sprintf("%s is read-only", l.File.Path), false
	}
	if why := p.unfitIn(l); why != "" {
		return why, true
	}
	name := p.entryName(l, func(s *clients.Server) bool { return s.Why == "" })
	return p.o.Host.Refused(l, name, p.entry(l)), false
}

// unfitIn says why no haldir that a list has already would serve what moves to it, and what to do;
// "" if one would, and if there is none.
func (p *Plan) unfitIn(l *clients.List) (first string) {
	for _, s := range l.Servers {
		if s.Guard == nil {
			continue
		}
		why := p.unfitFor(s)
		if why == "" {
			return ""
		}
		first = cmp.Or(first, fmt.Sprintf("the haldir beside it (%s) %s", s.Name, why))
	}
	return first
}

// unfitFor is that of one entry of haldir.
func (p *Plan) unfitFor(s *clients.Server) string {
	switch err := s.Startable(); {
	case s.Guard.Flags:
		return "serves what its flags say (--upstream), and no config: put that into haldir.yaml by haldir upstream add, take the entry out, and run haldir init again"
	case !p.same(*s.Guard):
		return fmt.Sprintf("serves another config, %s: run haldir init with that --config", cmp.Or(s.Guard.Config, "the default one"))
	case s.Guard.Disabled:
		return "is disabled: enable it there, and run haldir init again"
	case err != nil:
		return fmt.Sprintf("cannot be started, as %s %v: take the entry out, and run haldir init again, which puts one there that can", s.Command, err)
	}
	return ""
}

// entryName is the name of haldir's entry in a list, which has it or gets it: beside those that
// stay there. Of several it is one that serves what moves, and that Claude Code loads.
func (p *Plan) entryName(l *clients.List, goes func(s *clients.Server) bool) string {
	fit := ""
	for _, s := range l.Servers {
		if s.Guard == nil || p.unfitFor(s) != "" {
			continue
		}
		if p.o.Host.Refused(l, s.Name, p.entry(l)) == "" {
			return s.Name
		}
		fit = cmp.Or(fit, s.Name)
	}
	if fit != "" {
		return fit
	}
	name := "haldir"
	for n := 2; l.Server(name) != nil && !goes(l.Server(name)); n++ {
		name = fmt.Sprintf("haldir-%d", n)
	}
	return name
}

// brought says why a server that came with a project stays. Whoever wrote the project wrote
// its command too, and in haldir.yaml that would run wherever haldir does.
func (p *Plan) brought(s *clients.Server) string {
	if s.List.Scope != clients.Project || s.Approved || p.o.Shared {
		return ""
	}
	if s.Claim != "" {
		return fmt.Sprintf("it came with the project, and so may %s have, which says that it is approved: look at what it starts, then run haldir init --project", s.Claim)
	}
	return "it came with the project, and nobody has approved it for everywhere: look at what it starts, then run haldir init --project"
}

// same reports whether an entry of haldir serves this config.
func (p *Plan) same(g clients.Guard) bool {
	one := func(named, path string) bool {
		if !filepath.IsAbs(named) || !filepath.IsAbs(path) { // relative to where its client starts it, or the default
			return named == path || named != "" && path != "" && filepath.Clean(named) == filepath.Clean(path)
		}
		return files.SamePlace(named, path)
	}
	return (one(g.Config, p.o.Serves.Config) || one(g.Config, p.o.Config)) && (one(g.StateDir, p.o.Serves.StateDir) || one(g.StateDir, p.o.StateDir))
}

// join puts a server to the same one of another client, if there is one.
func (p *Plan) join(s *clients.Server) {
	for _, u := range p.Upstreams {
		if u.From[0].Same(s) {
			u.From = append(u.From, s)
			return
		}
	}
	p.Upstreams = append(p.Upstreams, &Upstream{From: []*clients.Server{s}})
}

// of reports whether a client has the server.
func (u *Upstream) of(c clients.Client) bool {
	return slices.ContainsFunc(u.From, func(s *clients.Server) bool { return s.List.File.Client == c })
}

// timeout is the longest that one of its clients waits; 0 for the default.
func (u *Upstream) timeout() (longest time.Duration) {
	for _, s := range u.From {
		longest = max(longest, s.Timeout)
	}
	return longest
}

// longest name of an upstream.
const longest = 32

var foreign = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[^a-z0-9]+`) })

// plain is a text as the name of an upstream may be.
func plain(text string) string {
	name := strings.Trim(foreign().ReplaceAllString(strings.ToLower(text), "-"), "-")
	return cmp.Or(strings.TrimRight(name[:min(len(name), longest)], "-"), "server")
}

// name finds the name of an upstream, or the upstream that it already is.
func (p *Plan) name(u *Upstream, cfg *config.Config) {
	taken := func(n string) bool {
		return n == "haldir" || slices.ContainsFunc(p.Upstreams, func(o *Upstream) bool { return o != u && o.Name == n }) ||
			cfg != nil && slices.ContainsFunc(cfg.Upstreams, func(o config.Upstream) bool { return o.Name == n })
	}
	if cfg != nil {
		for _, c := range cfg.Upstreams {
			if p.is(u.From[0], c) {
				u.Name, u.There = c.Name, true
				return
			}
		}
	}
	own := u.From[0].Name
	base := plain(own)
	if dir := u.From[0].List.Project(); dir != "" && taken(base) {
		base = plain(own + "-" + filepath.Base(dir)) // a number says nothing of whose it is
	}
	u.Name = base
	for n := 2; taken(u.Name); n++ {
		end := fmt.Sprintf("-%d", n)
		u.Name = strings.TrimRight(base[:min(len(base), longest-len(end))], "-") + end
	}
	if u.Name != own {
		p.Notes = append(p.Notes, fmt.Sprintf("%q of %s is called %s in haldir.yaml", own, u.From[0].List.File.Client, u.Name))
	}
}

// is reports whether an upstream that is there is this server.
func (p *Plan) is(s *clients.Server, u config.Upstream) bool {
	open := func(text string) string { // with the secrets that it refers to
		return keyring().ReplaceAllStringFunc(text, func(m string) string {
			v, err := p.o.Store.Get(m[len("${keyring:") : len(m)-1])
			if err != nil {
				return m
			}
			return strings.ReplaceAll(v, "${", "$${")
		})
	}
	set := func(list []string) []string {
		out := slices.Clone(list)
		for i := range out {
			out[i] = open(out[i])
		}
		slices.Sort(out)
		return out
	}
	var env, headers, theirs []string
	for _, e := range s.Env {
		env = append(env, e.Name+"="+e.Value)
	}
	for _, h := range s.Headers {
		headers = append(headers, strings.ToLower(h.Name)+": "+h.Value)
	}
	for _, h := range u.Headers {
		theirs = append(theirs, strings.ToLower(h.Name)+": "+h.Value)
	}
	if u.Bearer != "" {
		theirs = append(theirs, "authorization: Bearer "+u.Bearer)
	}
	return s.Command == u.Command && slices.Equal(s.Args, u.Args) && s.Cwd == u.Cwd && s.URL == open(u.URL) &&
		slices.Equal(set(env), set(u.Env)) && slices.Equal(set(headers), set(theirs))
}

var keyring = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\$\{keyring:[^}]*\}`) })

// swaps plans the changes of the clients' files.
func (p *Plan) swaps(files []*clients.File) error {
	moved := func(s *clients.Server) *Upstream {
		for _, u := range p.Upstreams {
			if slices.Contains(u.From, s) {
				return u
			}
		}
		return nil
	}
	for _, f := range files {
		c := &Change{Kind: KindClient, Client: f.Client, Path: f.Path, Before: f.Data, file: f, info: f.Info}
		for _, l := range f.Lists {
			s := clients.Swap{List: l, Keep: map[string][]string{}}
			here := false
			for _, srv := range l.Servers {
				if u := moved(srv); u != nil {
					s.Gone = append(s.Gone, srv.Name)
					s.Keep[srv.Name] = u.unsaid[srv]
					if u.There {
						s.Keep[srv.Name] = srv.Comments
					}
					here = here || srv.Here
				}
			}
			if len(s.Gone) == 0 {
				continue
			}
			s.Name = p.entryName(l, func(srv *clients.Server) bool { return slices.Contains(s.Gone, srv.Name) })
			if there := l.Server(s.Name); there == nil || there.Guard == nil {
				entry := p.entry(l)
				if here {
					entry.Cwd = "${workspaceFolder}"
				}
				s.Entry = &entry
			}
			c.swaps = append(c.swaps, s)
			c.Swaps = append(c.Swaps, Swapped{l.Scope, l.Dir, s.Gone, s.Name, s.Entry != nil})
			p.Notes = append(p.Notes, p.o.Host.RefusedIn(l, s.Name, p.entry(l))...)
			if l.Scope == clients.Project {
				p.Notes = append(p.Notes, fmt.Sprintf("%s belongs to the project: who shares it needs haldir and the servers in their haldir.yaml as well", f.Path))
			}
			if s.Entry != nil && p.o.Host.Asks(l, s.Name) {
				p.Notes = append(p.Notes, fmt.Sprintf("Claude Code asks you before it uses %s of %s, as that name is new there: run claude in %s, and approve it", s.Name, f.Path, filepath.Dir(f.Path)))
			}
		}
		if len(c.swaps) == 0 {
			continue
		}
		var err error
		if c.After, err = p.o.Host.Swap(f, c.swaps...); err != nil {
			return err
		}
		if p.o.Claude != "" && p.o.Host.OS != "windows" { // where nothing has it end with init
			c.Command = registration(f, c.swaps)
		}
		p.Files = append(p.Files, c)
	}
	return nil
}

// entry is how the client of a list starts haldir.
func (p *Plan) entry(l *clients.List) clients.Entry {
	if l.File.Client == clients.ClaudeCode || l.Scope == clients.Project {
		return p.o.Terminal
	}
	return p.o.Window
}

// permissions plans the deny rules.
func (p *Plan) permissions() error {
	path := p.o.Host.ClaudeSettings()
	target, err := replace.Follow(path)
	if err != nil {
		return err
	}
	before, info, err := replace.Read(target)
	if err != nil {
		return err
	}
	after, fresh, err := clients.Deny(path, before, Rules(p.o.Host, p.o.Config, p.o.StateDir))
	if err != nil || len(fresh) == 0 {
		return err
	}
	p.Files = append(p.Files, &Change{Kind: KindSettings, Client: clients.ClaudeCode, Path: path, Before: before, After: after, Rules: fresh, info: info})
	return nil
}

// advise says what a person should know beside the plan.
func (p *Plan) advise(cfg *config.Config) {
	for _, u := range p.Upstreams {
		s := u.From[0]
		for _, key := range s.Lost {
			if !strings.HasPrefix(key, `"timeout"`) {
				name, _, _ := strings.Cut(key, ":")
				what := "is kept as a comment"
				if u.There {
					what = "stands in the copy of the file only"
				}
				p.Notes = append(p.Notes, fmt.Sprintf("%s: haldir has nothing like %s; it %s", u.Name, name, what))
			}
		}
		if program := adrift(s); program != "" && !u.There {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: %s is looked for in the directory that a client starts haldir in, so that whoever made what is there says what runs: write its whole path, or a cwd, in haldir.yaml", u.Name, program))
		} else if s.Cwd == "" && (s.Here || slices.Contains(s.Args, ".")) && !u.There {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: it works in the directory that a client starts haldir in, and each client has its own", u.Name))
		}
		if s.Unheeded && !u.There {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: %s does not heed its cwd, and haldir does: it runs in %s now", u.Name, s.List.File.Client, s.Cwd))
		}
		if names := p.unset(s); len(names) > 0 && !u.There {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: of its variables these have no value here: %s; haldir does not start a server without them, as clients may: set them where your clients are started, or take them out of haldir.yaml", u.Name, strings.Join(names, ", ")))
		}
		if len(hidden(s.Args)) > 0 && !u.There {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: an argument looks like a secret, which other users of this machine can see while the program runs, and stands in haldir.yaml in the clear: give it by env, as ${keyring:NAME}, if the program takes it so", u.Name))
		}
	}
	p.unknownSecrets()
	p.uncarried()
	p.roundabout()
	p.shadowed()
	if cfg != nil && len(p.Files) > 0 && p.Files[0].Kind == KindConfig {
		p.Notes = append(p.Notes, "the policies in haldir.yaml stay as they are; they hold for the new upstreams as well")
	}
}

// unknownSecrets tells of clients of a sign-in whose secret may be with Claude Code alone, which
// does not keep it in the file that has the client's id.
func (p *Plan) unknownSecrets() {
	for _, u := range p.Upstreams {
		o := u.From[0].OAuth
		if u.There || o == nil || o.ClientID == "" || o.ClientSecret != "" || !u.of(clients.ClaudeCode) {
			continue
		}
		name := u.Name + ".client-secret"
		p.Notes = append(p.Notes, fmt.Sprintf("%s: if its OAuth client has a secret, that stays in Claude Code's own store, and haldir needs it to sign in: store it by haldir secret set %s, and write client_secret: ${keyring:%s} beside the client_id in haldir.yaml", u.Name, name, name))
	}
}

// unset lists the variables that a server refers to and that have no value where init runs.
func (p *Plan) unset(s *clients.Server) (names []string) {
	all := append([]string{s.Command, s.Cwd, s.URL}, s.Args...)
	for _, pair := range slices.Concat(s.Env, s.Headers) {
		all = append(all, pair.Value)
	}
	if s.OAuth != nil {
		all = append(all, s.OAuth.ClientID, s.OAuth.ClientSecret)
	}
	r := &config.Resolver{File: func(string) ([]byte, error) { return nil, nil }, Env: func(name string) (string, bool) {
		if p.o.Host.Env(name) == "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
		return "", true
	}}
	for _, text := range all {
		_, _ = r.Resolve(text) // haldir.yaml has taken it
	}
	return names
}

// roundabout tells of servers of other clients that Claude Code's settings deny: it has them
// through haldir.
func (p *Plan) roundabout() {
	for _, u := range p.Upstreams {
		p.inClaude = p.inClaude || u.of(clients.ClaudeCode)
	}
	for _, u := range p.Upstreams {
		if path := p.o.Host.Denied(u.From[0]); p.inClaude && path != "" {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: deniedMcpServers in %s keeps it out of Claude Code, where haldir offers it now: deny mcp__haldir__%s__* in those settings", u.Name, path, u.Name))
		}
	}
}

// shadowed tells of servers in whose place Claude Code takes another of their name in a project:
// by haldir's name they are always the same.
func (p *Plan) shadowed() {
	now := map[*clients.Server]string{} // the names of those that move
	var all []*clients.Server
	for _, u := range p.Upstreams {
		for _, s := range u.From {
			now[s] = u.Name
		}
		all = append(all, u.From...)
	}
	for _, l := range p.Left {
		if l.Server.Why == "" && l.Server.List.Scope == clients.Local {
			all = append(all, l.Server)
		}
	}
	for _, s := range all {
		for _, in := range all {
			if now[s] == "" || now[s] == now[in] || !in.Shadows(s) {
				continue
			}
			also := ""
			if now[in] != "" {
				also = fmt.Sprintf(", which is %s now and is offered everywhere", now[in])
			}
			p.Notes = append(p.Notes, fmt.Sprintf("%s: in %s Claude Code takes the project's own %q in its place%s; haldir offers %s there too: deny mcp__haldir__%s__* in the settings of that project if it is not to be",
				now[s], in.List.Project(), in.Name, also, now[s], now[s]))
		}
	}
}

// script is how the names of programs end that another program runs.
var script = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)\.([cm]?[jt]sx?|py|pyz|rb|php|pl|lua|jar|sh|bash|zsh|ps1|cmd|bat|exe|dll|wasm)$`)
})

// adrift is what a server starts by a path from wherever haldir is started; "" if it starts
// nothing so.
func adrift(s *clients.Server) string {
	if s.Command == "" || s.Cwd != "" && settled(s.Cwd) {
		return ""
	}
	if strings.ContainsAny(s.Command, `/\`) && !settled(s.Command) {
		return s.Command
	}
	for _, a := range s.Args {
		a = a[strings.IndexByte(a, '=')+1:] // of --script=x.js
		if (script().MatchString(a) || strings.HasPrefix(a, "./") || strings.HasPrefix(a, "../")) && !settled(a) {
			return a
		}
	}
	return ""
}

// settled reports whether a path leads to one place, wherever haldir is started. Paths of all
// systems count, as do the references of which a person says what they stand for.
func settled(path string) bool {
	return strings.HasPrefix(path, "/") || strings.HasPrefix(path, `\`) || drive().MatchString(path) || strings.Contains(path, "://") ||
		strings.HasPrefix(path, "${") && !strings.HasPrefix(path, "${root}") || strings.HasPrefix(path, "@")
}

var drive = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z]:[/\\]`) })
