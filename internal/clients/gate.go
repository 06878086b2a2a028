package clients

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/tailscale/hujson"
)

// ManagedDir is where an administrator's settings of Claude Code are.
func ManagedDir(system string) string {
	switch system {
	case "darwin":
		return "/Library/Application Support/ClaudeCode"
	case "windows":
		return `C:\Program Files\ClaudeCode`
	}
	return "/etc/claude-code"
}

// Unread tells of settings that hold here, are there and cannot be read: they may keep a server out,
// or deny its tools.
func (h Host) Unread() (err error) {
	if h.Managed != "" {
		if _, wrong := os.ReadDir(filepath.Join(h.Managed, "managed-settings.d")); !missing(wrong) {
			err = wrong
		}
	}
	for _, path := range slices.Concat(h.managed(), []string{h.ClaudeSettings()}, projectSettings(h.Dirs())) {
		_, wrong := h.root(path)
		err = errors.Join(err, wrong)
	}
	return err
}

// UnreadIn tells of such settings of other projects.
func (h Host) UnreadIn() (out []string) {
	dirs := slices.DeleteFunc(h.projects(), h.here)
	for _, path := range projectSettings(dirs) {
		if _, err := h.root(path); err != nil {
			out = append(out, fmt.Sprintf("%s cannot be read, so that what it denies or asks about is not known: %v", path, err))
		}
	}
	return out
}

// gate is what settings let Claude Code load of MCP servers. What it does not load it leaves out
// without a word.
type gate struct {
	closed  string  // the file that leaves no server of a person's in; "" for none
	denied  []match // of all settings
	allowed []match
	limits  []string // files with a list of those allowed: with one, others are not loaded
}

// match is what a list has of a server, and the file that it stands in.
type match struct {
	name    string
	command []string
	url     string
	path    string
}

// loaded is a server as Claude Code compares it with the lists.
type loaded struct {
	name    string
	command []string // with its arguments
	url     string
}

// gate reads the settings that hold in projects.
func (h Host) gate(projects ...string) *gate {
	g := &gate{}
	only := false // the administrator's list of those allowed is the only one
	for _, path := range h.managed() {
		o := h.readRoot(path)
		if o == nil {
			continue
		}
		only = only || isTrue(member(o, "allowManagedMcpServersOnly"))
		if v := member(o, "strictPluginOnlyCustomization"); isTrue(v) || v != nil && slices.Contains(elements(v), "mcp") {
			g.closed = path
		}
		g.add(h, path, o, true)
	}
	if path := filepath.Join(h.Managed, "managed-mcp.json"); h.Managed != "" && exists(path) {
		g.closed = path
	}
	for _, path := range append([]string{h.ClaudeSettings()}, projectSettings(projects)...) {
		if o := h.readRoot(path); o != nil {
			g.add(h, path, o, !only)
		}
	}
	return g
}

// managed lists the administrator's settings: those of this machine, and what Claude Code keeps
// of those from its server.
func (h Host) managed() (paths []string) {
	if h.Managed != "" {
		more, _ := filepath.Glob(filepath.Join(h.Managed, "managed-settings.d", "*.json")) // most have none
		paths = append([]string{filepath.Join(h.Managed, "managed-settings.json")}, more...)
	}
	return append(paths, filepath.Join(h.ClaudeDir(), "remote-settings.json"))
}

// projectSettings are the settings of projects, those shared and those of the person.
func projectSettings(dirs []string) (paths []string) {
	for _, dir := range dirs {
		for _, name := range []string{"settings.json", "settings.local.json"} {
			paths = append(paths, filepath.Join(filepath.FromSlash(dir), ".claude", name))
		}
	}
	return paths
}

// denying is what the settings of a project deny by themselves.
func (h Host) denying(project string) *gate {
	g := &gate{}
	for _, path := range projectSettings([]string{project}) {
		if o := h.readRoot(path); o != nil {
			g.add(h, path, o, false)
		}
	}
	return g
}

func (g *gate) add(h Host, path string, o *hujson.Object, allows bool) {
	g.denied = append(g.denied, h.matches(path, member(o, "deniedMcpServers"))...)
	if v := member(o, "allowedMcpServers"); v != nil && allows {
		if _, ok := v.Value.(*hujson.Array); ok {
			g.limits = append(g.limits, path)
			g.allowed = append(g.allowed, h.matches(path, v)...)
		}
	}
}

func (h Host) matches(path string, v *hujson.Value) (out []match) {
	if v == nil {
		return nil
	}
	a, ok := v.Value.(*hujson.Array)
	if !ok {
		return nil
	}
	for i := range a.Elements {
		o := object(&a.Elements[i])
		if o == nil {
			continue
		}
		m := match{path: path}
		m.name, _ = str(member(o, "serverName"))
		m.url, _ = str(member(o, "serverUrl"))
		m.url = h.expanded(m.url)
		for _, word := range texts(o, "serverCommand") {
			m.command = append(m.command, h.expanded(word))
		}
		out = append(out, m)
	}
	return out
}

// loaded is a server as it is written, with its variables.
func (h Host) loaded(s *Server) loaded {
	out := loaded{name: s.Name}
	o := object(&s.member.Value)
	if o == nil {
		return out
	}
	for _, key := range []string{"url", "serverUrl"} {
		if url, ok := str(member(o, key)); ok {
			out.url = h.expanded(url)
		}
	}
	if command, ok := str(member(o, "command")); ok {
		for _, word := range append([]string{command}, texts(o, "args")...) {
			out.command = append(out.command, h.expanded(word))
		}
	}
	return out
}

var expansion = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\$\{([^}:]+)(:-[^}]*)?\}`) })

// expanded is a text with ${NAME} and ${NAME:-default} as Claude Code has them.
func (h Host) expanded(s string) string {
	return expansion().ReplaceAllStringFunc(s, func(ref string) string {
		m := expansion().FindStringSubmatch(ref)
		if v := h.Env(m[1]); v != "" || m[2] != "" {
			if v == "" {
				v = m[2][len(":-"):]
			}
			return v
		}
		return ref
	})
}

// refuses says why Claude Code does not load a server; "" if it does.
func (g *gate) refuses(s loaded) string {
	if g.closed != "" {
		return fmt.Sprintf("%s leaves no servers in but the administrator's", g.closed)
	}
	if m := g.deny(s); m != nil {
		return fmt.Sprintf("deniedMcpServers in %s has it", m.path)
	}
	if len(g.limits) == 0 || slices.ContainsFunc(g.allowed, func(m match) bool {
		return m.matches(s) || m.name == s.name && m.name != "" && !g.strict(s)
	}) {
		return ""
	}
	return fmt.Sprintf("allowedMcpServers in %s does not have it", strings.Join(g.limits, " and "))
}

// deny is what denies a server; nil if nothing does.
func (g *gate) deny(s loaded) *match {
	for i, m := range g.denied {
		if m.matches(s) || m.name == s.name && m.name != "" {
			return &g.denied[i]
		}
	}
	return nil
}

// strict reports whether names do not count: there are commands, or addresses, which cannot be
// taken on.
func (g *gate) strict(s loaded) bool {
	return slices.ContainsFunc(g.allowed, func(m match) bool {
		return s.command != nil && m.command != nil || s.command == nil && m.url != ""
	})
}

// matches reports whether it is about the command of a server, or its address.
func (m match) matches(s loaded) bool {
	return m.command != nil && slices.Equal(m.command, s.command) || m.url != "" && s.url != "" && matchURL(m.url, s.url)
}

var ports = map[string]string{"http": ":80", "https": ":443"}

// matchURL compares an address as Claude Code does: a pattern without a path is about all of
// them, queries do not count.
func matchURL(pattern, url string) bool {
	if pattern == "*" {
		return true
	}
	origin, path := parts(pattern)
	ofURL, pathOfURL := parts(url)
	scheme, _, _ := strings.Cut(ofURL, ":")
	return (wild(origin, ofURL) || wild(origin, ofURL+ports[scheme])) && (path == "" || wild(path, "/"+strings.TrimPrefix(pathOfURL, "/")))
}

// parts are the origin of an address, in one spelling without the usual port, and its path.
func parts(url string) (origin, path string) {
	url, _, _ = strings.Cut(url, "#")
	url, _, _ = strings.Cut(url, "?")
	scheme, rest, _ := strings.Cut(url, "://")
	host, _, _ := strings.Cut(rest, "/")
	path = rest[len(host):]
	host = host[strings.LastIndexByte(host, '@')+1:]
	scheme, host = strings.ToLower(scheme), strings.ToLower(host)
	host = strings.TrimSuffix(host, ports[scheme])
	host = strings.TrimSuffix(strings.Replace(host, ".:", ":", 1), ".")
	return scheme + "://" + host, path
}

// wild reports whether a text is a pattern's, in which * is anything.
func wild(pattern, s string) bool {
	pieces := strings.Split(pattern, "*")
	if len(pieces) == 1 {
		return pattern == s
	}
	rest, ok := strings.CutPrefix(s, pieces[0])
	for _, p := range pieces[1 : len(pieces)-1] {
		i := strings.Index(rest, p)
		if ok = ok && i >= 0; !ok {
			return false
		}
		rest = rest[i+len(p):]
	}
	return ok && strings.HasSuffix(rest, pieces[len(pieces)-1])
}

// Denied is the file of settings that keep a server out of Claude Code, whichever client has it;
// "" if none does.
func (h Host) Denied(s *Server) string {
	if m := h.gate(h.Dirs()...).deny(h.loaded(s)); m != nil {
		return m.path
	}
	return ""
}

// gates are those that servers of a list must all pass. What is for everywhere must not need
// the settings of one project, nor go from where those keep it out.
func (h Host) gates(l *List) []*gate {
	switch {
	case l.Scope == User:
		return []*gate{h.gate(), h.gate(h.Dirs()...)}
	case l.Here:
		return []*gate{h.gate(h.Dirs()...)}
	}
	return []*gate{h.gate(l.Dir)}
}

// Refused says why Claude Code would not load haldir's entry in the place of servers of a list,
// and what to do; "" if it would, and of another client. An entry that is there counts as it is.
func (h Host) Refused(l *List, name string, e Entry) string {
	if l.File.Client != ClaudeCode {
		return ""
	}
	const again = ", and run haldir init again"
	why := ""
	if l.Here && slices.Contains(h.chosen("disabledMcpServers", h.Dirs()...), name) || l.Scope == Project && slices.Contains(h.rejected(), name) {
		why = "it is switched off in this project; switch it on there (/mcp)" + again
	}
	for _, g := range h.gates(l) {
		if says := g.says(h.entry(l, name, e), again); why == "" {
			why = says
		}
	}
	if why == "" {
		return ""
	}
	return fmt.Sprintf("Claude Code would not load %s in its place: %s", name, why)
}

// RefusedIn says in which projects, where the person is not, Claude Code would not load haldir's
// entry of a list that is for everywhere, why, and what to do.
func (h Host) RefusedIn(l *List, name string, e Entry) (out []string) {
	if l.File.Client != ClaudeCode || l.Scope != User {
		return nil
	}
	for _, dir := range h.projects() {
		if why := h.gate(dir).says(h.entry(l, name, e), ""); why != "" && !h.here(dir) {
			out = append(out, fmt.Sprintf("in %s Claude Code does not load %s: %s", dir, name, why))
		}
	}
	return out
}

// entry is haldir's in a list, as it is or would be.
func (h Host) entry(l *List, name string, e Entry) loaded {
	if s := l.Server(name); s != nil && s.Guard != nil {
		return h.loaded(s)
	}
	return loaded{name: name, command: append([]string{e.Command}, e.Args...)}
}

// says is why a server is not loaded, and what to do, and then; "" if it is.
func (g *gate) says(s loaded, then string) string {
	why := g.refuses(s)
	if why == "" || g.closed != "" {
		return why
	}
	mend := fmt.Sprintf(`add {"serverName": %s} there`, quote(s.name))
	switch {
	case g.deny(s) != nil:
		mend = "take it out there"
	case g.strict(s):
		mend = fmt.Sprintf(`add {"serverCommand": [%s]} there`, strings.Join(quoted(s.command), ", "))
	}
	return fmt.Sprintf("%s; %s, or ask who looks after that file to%s", why, mend, then)
}

// member is the value of a member of an object; nil if there is none.
func member(o *hujson.Object, name string) *hujson.Value {
	for i := range o.Members {
		if nameOf(&o.Members[i]) == name {
			return &o.Members[i].Value
		}
	}
	return nil
}

func isTrue(v *hujson.Value) bool {
	if v == nil {
		return false
	}
	l, ok := v.Value.(hujson.Literal)
	return ok && l.Kind() == 't'
}

func isNull(v *hujson.Value) bool {
	l, ok := v.Value.(hujson.Literal)
	return ok && l.Kind() == 'n'
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
