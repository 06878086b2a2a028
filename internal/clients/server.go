package clients

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tailscale/hujson"

	"github.com/haldir-mcp/haldir/internal/files"
)

// Server is an entry in a file, said as haldir says it: in its texts ${env:NAME} is a
// variable, ${root} the directory that haldir is started in, and $${ a plain ${.
type Server struct {
	List         *List
	Name         string
	Line, Column int

	Why string // why it cannot move; "" if it can
	Off bool   // its client does not start it
	// Approved: the person has said yes to it in Claude Code, if it came with a project.
	Approved bool
	Claim    string // settings in the project that say so, and may have come with it; "" for none
	Guard    *Guard // it is haldir itself

	Command  string
	Cwd      string // for one of a project that names none, the project's directory
	Args     []string
	Env      []Pair
	URL      string
	Headers  []Pair
	OAuth    *OAuth
	Timeout  time.Duration // for one call; 0 for the default
	Withheld []string      // tools that the client does not offer
	OffIn    []string      // other projects of Claude Code that have switched it off
	Unheeded bool          // it names a cwd, and its client does not heed that
	Here     bool          // it refers to the directory of the project
	Lost     []string      // keys without a counterpart, as they are written
	Comments []string      // that stand in the entry

	member *hujson.ObjectMember
}

// Pair is a variable or a header.
type Pair struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// OAuth is what a client knows of signing in to a server.
type OAuth struct {
	ClientID     string   `json:"client_id"`
	ClientSecret string   `json:"client_secret"`
	Scopes       []string `json:"scopes"`
	Port         int      `json:"port"`
}

// Guard is an entry that starts haldir.
type Guard struct {
	Config, StateDir string // as they are named; "" for the default
	Flags            bool   // it serves what its flags say (--upstream), and no config
	Disabled         bool   // by the entry itself
}

// Place is where the entry stands, for people.
func (s *Server) Place() string {
	return fmt.Sprintf("%s:%d:%d", s.List.File.Path, s.Line, s.Column)
}

// Secrets lists the texts of the file that are secret by the name that each is the value of,
// and what is among the texts of each list, which may be the arguments of a program, in each text
// and in comments. Of one that is written in an unusual way it has what stands in the file as well.
func (f *File) Secrets(looks func(name, value string) bool, among func(list []string) []string) []string {
	if f.text == nil || f.text.root == nil {
		return nil
	}
	return secrets(f.text.root, looks, among)
}

// Secrets lists those of the servers, as [File.Secrets] does of all that is in their file.
func (l *List) Secrets(looks func(name, value string) bool, among func(list []string) []string) []string {
	return secrets(l.value, looks, among)
}

func secrets(of *hujson.Value, looks func(name, value string) bool, among func(list []string) []string) (out []string) {
	hide := func(found []string, v *hujson.Value) {
		s, ok := str(v)
		if !ok || !slices.ContainsFunc(found, func(secret string) bool { return strings.Contains(s, secret) }) {
			return
		}
		if l, _ := v.Value.(hujson.Literal); string(l) != quote(s) {
			out = append(out, string(l[1:len(l)-1]))
		}
	}
	var walk func(name string, v *hujson.Value)
	walk = func(name string, v *hujson.Value) {
		var found []string
		if s, ok := str(v); ok && looks(name, s) {
			found = []string{s}
		} else if ok {
			found = among([]string{s})
		}
		hide(found, v)
		switch c := v.Value.(type) {
		case *hujson.Object:
			for i := range c.Members {
				walk(nameOf(&c.Members[i]), &c.Members[i].Value)
			}
		case *hujson.Array:
			found = among(elements(v))
			for i := range c.Elements {
				hide(found, &c.Elements[i])
				walk(name, &c.Elements[i])
			}
		}
		out = append(out, found...)
	}
	walk("", of)
	for _, line := range comments(&hujson.Value{Value: &hujson.Array{Elements: []hujson.Value{*of}}}) {
		out = append(out, among([]string{"{" + line, "- " + line})...) // an entry that is commented out, and words
	}
	return out
}

// lost are keys that say nothing that haldir would do: they are kept in a comment.
var lost = []string{
	"description", "title", "icon", "iconUrl", "icons", "homepage", "notes", "tags", "gallery", "version", "$comment", "_comment", "//",
	"alwaysLoad", "alwaysAllow", "autoApprove", "dev", "startupTimeout",
}

// never are keys that change what the server is or does, in a way that haldir has not.
var never = map[string]string{
	"headersHelper":  "a program gives its headers (headersHelper)",
	"envFile":        "its variables are in a file (envFile)",
	"sandbox":        "the client runs it in a sandbox",
	"sandboxEnabled": "the client runs it in a sandbox",
}

// server reads one entry. What is wrong with it, or too much for haldir, is in Why.
func (h Host) server(f *File, l *List, m *hujson.ObjectMember) *Server {
	s := &Server{List: l, Name: nameOf(m), member: m}
	s.Line, s.Column = f.text.place(m.Name.StartOffset)
	o := object(&m.Value)
	if o == nil {
		s.Why = "it is no object"
		return s
	}
	for _, e := range []hujson.Extra{m.Name.AfterExtra, m.Value.BeforeExtra} {
		s.Comments = append(s.Comments, comments(&hujson.Value{Value: &hujson.Array{AfterExtra: e}})...)
	}
	s.Comments = append(s.Comments, comments(&m.Value)...)
	r := &reading{host: h, server: s, client: f.Client, scope: f.Scope}
	seen := map[string]bool{}
	for i := range o.Members {
		key := nameOf(&o.Members[i])
		if seen[key] {
			r.no("its key %q stands twice", key)
		}
		seen[key] = true
		r.key(key, &o.Members[i].Value)
	}
	r.end()
	return s
}

// reading is the reading of one entry.
type reading struct {
	host      Host
	server    *Server
	client    Client
	scope     Scope
	transport string
	plain     Server // its texts as they are written
	unused    bool   // its client does not use it, as it is written
}

// no says why the entry cannot move. The first reason is kept.
func (r *reading) no(format string, args ...any) {
	if r.server.Why == "" {
		r.server.Why = fmt.Sprintf(format, args...)
	}
}

func (r *reading) key(key string, v *hujson.Value) {
	s := r.server
	switch key {
	case "type", "transport":
		r.transport, _ = str(v)
	case "command":
		r.plain.Command = r.text(key, v, &s.Command)
	case "args":
		r.plain.Args = r.list(key, v, &s.Args)
	case "env":
		r.plain.Env = r.pairs(key, v, &s.Env)
	case "cwd":
		r.text(key, v, &s.Cwd)
		s.Unheeded = r.client == ClaudeCode
	case "url", "serverUrl":
		r.text(key, v, &s.URL)
	case "headers":
		r.pairs(key, v, &s.Headers)
	case "disabled":
		r.flag(key, v, true)
	case "enabled":
		r.flag(key, v, false)
	case "timeout":
		r.timeout(v)
	case "disabledTools":
		r.list(key, v, &s.Withheld)
	case "oauth", "auth":
		r.oauth(key, v)
	default:
		switch {
		case never[key] != "":
			r.no("%s", never[key])
		case slices.Contains(lost, key):
			s.Lost = append(s.Lost, quote(key)+": "+plainJSON(v))
		default:
			r.no("haldir does not know its key %q", key)
		}
	}
}

// text reads a text, and returns it as it is written.
func (r *reading) text(key string, v *hujson.Value, to *string) string {
	s, ok := str(v)
	if !ok {
		r.no("its %s is no text", key)
		return ""
	}
	*to = r.said(s)
	return s
}

func (r *reading) list(key string, v *hujson.Value, to *[]string) (plain []string) {
	a, ok := v.Value.(*hujson.Array)
	if !ok {
		r.no("its %s is no list", key)
		return nil
	}
	for i := range a.Elements {
		s, ok := str(&a.Elements[i])
		if !ok {
			r.no("its %s has something else than texts", key)
		}
		plain = append(plain, s)
		*to = append(*to, r.said(s))
	}
	return plain
}

func (r *reading) pairs(key string, v *hujson.Value, to *[]Pair) (plain []Pair) {
	o := object(v)
	if o == nil {
		r.no("its %s is no object", key)
		return nil
	}
	for i := range o.Members {
		m := &o.Members[i]
		s, ok := str(&m.Value)
		if l, lit := m.Value.Value.(hujson.Literal); !ok && lit && l.Kind() != 'n' {
			if r.client == ClaudeCode {
				r.unused = true
				r.no("%s in its %s is no text, so that Claude Code does not use it", nameOf(m), key)
			}
			s, ok = string(l), true // a number or a boolean, which other clients take as it is written
		}
		if !ok {
			r.no("%s in its %s is no text", nameOf(m), key)
		}
		plain = append(plain, Pair{nameOf(m), s})
		*to = append(*to, Pair{nameOf(m), r.said(s)})
	}
	return plain
}

// flag reads whether the entry is off, which it is if the value is what off says.
func (r *reading) flag(key string, v *hujson.Value, off bool) {
	l, ok := v.Value.(hujson.Literal)
	if !ok || l.Kind() != 't' && l.Kind() != 'f' {
		r.no("its %s is neither true nor false", key)
		return
	}
	if l.Bool() == off {
		r.no("it is disabled")
		r.server.Off = true
	}
}

// timeout reads a limit for one call: milliseconds with Claude Code, seconds elsewhere.
func (r *reading) timeout(v *hujson.Value) {
	l, ok := v.Value.(hujson.Literal)
	if !ok || l.Kind() != '0' {
		r.no("its timeout is no number")
		return
	}
	unit := time.Second
	if r.client == ClaudeCode {
		unit = time.Millisecond
	}
	if n := l.Int(); n > 0 && n < int64(1000*time.Hour/unit) {
		r.server.Timeout = time.Duration(n) * unit
	}
	r.server.Lost = append(r.server.Lost, `"timeout": `+string(l))
}

func (r *reading) oauth(key string, v *hujson.Value) {
	o := object(v)
	if o == nil {
		r.no("its %s is no object", key)
		return
	}
	out := &OAuth{}
	for i := range o.Members {
		m := &o.Members[i]
		switch name := nameOf(m); name {
		case "clientId", "CLIENT_ID":
			r.text(name, &m.Value, &out.ClientID)
		case "CLIENT_SECRET":
			r.text(name, &m.Value, &out.ClientSecret)
		case "scopes":
			if s, ok := str(&m.Value); ok {
				out.Scopes = strings.Fields(s)
				continue
			}
			r.list(name, &m.Value, &out.Scopes)
		case "callbackPort":
			l, ok := m.Value.Value.(hujson.Literal)
			if !ok || l.Kind() != '0' {
				r.no("its callbackPort is no number")
				continue
			}
			out.Port = int(l.Int())
		default:
			r.no("haldir does not know its key %q in %s", name, key)
		}
	}
	r.server.OAuth = out
}

// end judges the entry as a whole.
func (r *reading) end() {
	s := r.server
	if s.Guard = r.host.guard(s, r.plain); s.Guard != nil {
		s.Why, s.Guard.Disabled = "", s.Off
		return
	}
	s.Off = s.Off || r.unused
	switch kind := strings.ToLower(r.transport); kind {
	case "":
		if s.URL != "" && s.Command == "" && r.client == ClaudeCode {
			s.Off = true
			r.no("it has a url but no type, so that Claude Code does not use it")
		}
	case "stdio", "local":
		if s.Command == "" {
			r.no("it has no command")
		}
	case "http", "sse", "streamable-http", "streamablehttp", "streamable_http", "remote":
		if s.URL == "" {
			r.no("it has no url")
		}
	default:
		r.no("haldir has no transport %q", kind)
	}
	switch {
	case s.Command == "" && s.URL == "":
		r.no("it has neither a command nor a url")
	case s.Command != "" && s.URL != "":
		r.no("it has both a command and a url")
	case s.URL != "" && (len(s.Args) > 0 || s.Cwd != ""):
		r.no("it has a url, and keys of a program")
	case s.URL != "":
		s.Env = nil // of a helper, which it has not
	case len(s.Headers) > 0 || s.OAuth != nil:
		r.no("it has a command, and keys of a url")
	default:
		s.Cwd = s.List.cwd(s.Cwd)
	}
	if s.OAuth != nil && slices.ContainsFunc(s.Headers, func(p Pair) bool { return strings.EqualFold(p.Name, "Authorization") }) {
		r.no("it signs in, and has a header Authorization")
	}
}

// cwd is the directory that a program runs in, "" for the one that its client is in. The
// client starts that of a project in the project, and haldir must as well: started wherever an
// agent is, a path such as ./tools/mcp.js is a file of whoever made that place.
func (l *List) cwd(dir string) string {
	project := literal(l.Project())
	switch {
	case project == "" || filepath.IsAbs(dir) || strings.HasPrefix(dir, "${"):
		return dir
	case dir == "":
		return project
	}
	return filepath.Join(project, dir)
}

// Project is the directory of the project that the servers of a list are for; "" for none.
func (l *List) Project() string {
	switch {
	case l.Scope == Local:
		return filepath.FromSlash(l.Dir)
	case l.Scope != Project:
		return ""
	case l.File.Client == ClaudeCode:
		return filepath.Dir(l.File.Path)
	}
	return filepath.Dir(filepath.Dir(l.File.Path)) // above .cursor or .vscode
}

var (
	reference = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\$\{([^}]*)\}`) })
	variable  = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`) })
)

// said says a text as haldir does.
func (r *reading) said(s string) string {
	var b strings.Builder
	at := 0
	for _, m := range reference().FindAllStringSubmatchIndex(s, -1) {
		b.WriteString(literal(s[at:m[0]]))
		ref := r.reference(s[m[2]:m[3]])
		if m[0] > 0 && s[m[0]-1] == '$' && strings.HasPrefix(ref, "${") {
			r.no("haldir has no way to write $%s", s[m[0]:m[1]])
		}
		b.WriteString(ref)
		at = m[1]
	}
	b.WriteString(literal(s[at:]))
	return b.String()
}

// literal is a text without references.
func literal(s string) string { return strings.ReplaceAll(s, "${", "$${") }

// reference is ${name} as haldir says it.
func (r *reading) reference(name string) string {
	same := literal("${" + name + "}")
	kind, rest, _ := strings.Cut(name, ":")
	switch r.client {
	case ClaudeDesktop: // it knows none
	case ClaudeCode:
		if variable().MatchString(name) {
			return "${env:" + name + "}"
		}
		if variable().MatchString(kind) && strings.HasPrefix(rest, "-") {
			r.no("it has a default for the variable %s, which haldir cannot say", kind)
		}
	case Windsurf:
		if kind == "env" && variable().MatchString(rest) || kind == "file" && rest != "" {
			return "${" + name + "}"
		}
	case Cursor, VSCode:
		switch {
		case kind == "env" && variable().MatchString(rest):
			return "${" + name + "}"
		case name == "userHome":
			return literal(r.host.Home)
		case name == "pathSeparator" || name == "/":
			return string(filepath.Separator)
		case name == "workspaceFolder" && r.client == VSCode:
			if dir := r.server.List.Project(); dir != "" {
				return literal(dir)
			}
			r.server.Here = true
			return "${root}"
		case kind == "input":
			r.no("VS Code asks a person for its %q", rest)
		default:
			r.no("it refers to ${%s}, for which haldir has no word", name)
		}
	}
	return same
}

// haldirs are the names of the program: its own, with what release pages put behind one
// (haldir-linux-amd64, haldir_1.2.0_windows_arm64.exe), and a version as npx and Docker have it. Not any
// name that begins so: haldir-notes may be somebody's server.
var haldirs = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)^haldir([-_.]?v?\d[\w.]*|[-_.](` +
		`linux|darwin|macos|windows|win32|freebsd|openbsd|netbsd|musl|gnu|amd64|x64|x86|x86_64|arm64|armv[67]l?|aarch64|386|i386|riscv64|ppc64le|s390x|universal|all` +
		`))*(\.exe)?([@:][^/\\]*)?$`)
})

// named are the names that init gives the entry for haldir.
var named = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^haldir(-\d+)?$`) })

// guard tells what an entry that starts haldir says to it; nil if it starts something else. A
// program of any name counts that is the one that runs, and so does what an entry of haldir's
// name starts as haldir is started: the program may have been renamed, or be gone. That is not so
// for one that came with a project, which would pass for haldir by its name.
func (h Host) guard(as *Server, s Server) *Guard {
	words := append([]string{s.Command}, s.Args...)
	rest, ok := h.serves(words)
	for _, line := range words { // of a shell
		if !ok {
			rest, ok = h.serves(strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\n;&|()\"'", r) }))
		}
	}
	if !ok && as.List.Scope != Project && named().MatchString(as.Name) && len(s.Args) > 0 && s.Args[0] == "serve" {
		rest, ok = s.Args, true
	}
	if !ok {
		return nil
	}
	g := &Guard{}
	for _, p := range s.Env {
		switch p.Name {
		case "HALDIR_CONFIG":
			g.Config = p.Value
		case "HALDIR_STATE_DIR":
			g.StateDir = p.Value
		}
	}
	for i, w := range rest {
		g.Flags = g.Flags || w == "--upstream" || strings.HasPrefix(w, "--upstream=")
		for flag, to := range map[string]*string{"--config": &g.Config, "--state-dir": &g.StateDir} {
			if v, ok := strings.CutPrefix(w, flag+"="); ok {
				*to = v
			} else if w == flag && i+1 < len(rest) {
				*to = rest[i+1]
			}
		}
	}
	return g
}

// serves returns what words tell haldir, if they have it serve: there are only flags before that.
func (h Host) serves(words []string) (rest []string, ok bool) {
	for i, w := range words {
		own := (i == 0 || filepath.IsAbs(w)) && h.own(w)
		if !own && !haldirs().MatchString(w[strings.LastIndexAny(w, `/\`)+1:]) {
			continue
		}
		rest = words[i+1:]
		for j := 0; j < len(rest); j++ {
			switch flag := strings.HasPrefix(rest[j], "-"); {
			case rest[j] == "serve":
				return rest, true
			case !flag && (j == 0 || !strings.HasPrefix(rest[j-1], "-")):
				j = len(rest) // neither a flag nor the value of one
			}
		}
	}
	return nil, false
}

// Startable says why the command of an entry cannot be started. One by its name alone is looked for
// on the PATH that the entry has, or where this process would; a client with a window may have another.
// Of what is relative to where the client is, or has a variable in it, nothing is known here.
func (s *Server) Startable() error {
	named := filepath.Base(s.Command) == s.Command
	if s.Command == "" || !named && !filepath.IsAbs(s.Command) || strings.Contains(s.Command, "${") {
		return nil
	}
	_, err := exec.LookPath(s.Command)
	if path, own := s.Path(); named && own {
		err = on(path, s.Command)
	}
	switch {
	case err == nil:
		return nil
	case named:
		return errors.New("is not on PATH")
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("does not exist")
	}
	return errors.New("is no program")
}

// Path is the PATH that the entry gives its command, which is looked for there too; own is false if it
// gives none.
func (s *Server) Path() (path string, own bool) {
	for _, p := range s.Env {
		if p.Name == "PATH" || runtime.GOOS == "windows" && strings.EqualFold(p.Name, "PATH") {
			path, own = p.Value, true
		}
	}
	return path, own
}

// on looks for a program on a PATH. What that has of variables, or from where the client is, may be
// where it is.
func on(path, program string) error {
	if path == "" || strings.Contains(path, "${") {
		return nil
	}
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			return nil
		}
		if _, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return nil
		}
	}
	return exec.ErrNotFound
}

// own reports whether a path, or the name of a command, is the program that runs.
func (h Host) own(path string) bool {
	if h.Own == "" || path == "" {
		return false
	}
	if !strings.ContainsAny(path, `/\`) {
		path, _ = exec.LookPath(path) // it need not be there
	}
	return files.Same(path, h.Own)
}

// Shadows reports whether Claude Code takes a server in the place of another in its project: a
// local one goes before one of the project, and that before one that is for everywhere.
func (s *Server) Shadows(o *Server) bool {
	if s.List.File.Client != ClaudeCode || o.List.File.Client != ClaudeCode || s.Name != o.Name {
		return false
	}
	in := o.List.Scope == User || o.List.Project() == s.List.Project()
	before := []Scope{Local, Project, User}
	return in && slices.Index(before, s.List.Scope) < slices.Index(before, o.List.Scope)
}

// Same reports whether two servers are one: they say the same, whatever they are called.
func (s *Server) Same(o *Server) bool {
	type essence struct {
		Command string   `json:"command"`
		Cwd     string   `json:"cwd"`
		URL     string   `json:"url"`
		Args    []string `json:"args"`
		Env     []Pair   `json:"env"`
		Headers []Pair   `json:"headers"`
		OAuth   *OAuth   `json:"oauth"`
	}
	of := func(s *Server) string {
		e := essence{s.Command, s.Cwd, s.URL, s.Args, slices.Clone(s.Env), slices.Clone(s.Headers), s.OAuth}
		for _, list := range [][]Pair{e.Env, e.Headers} {
			slices.SortFunc(list, func(a, b Pair) int { return strings.Compare(a.Name, b.Name) })
		}
		out, err := json.Marshal(e)
		if err != nil {
			return ""
		}
		return string(out)
	}
	return of(s) == of(o)
}
