package clients

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/tailscale/hujson"

	"github.com/haldir-mcp/haldir/internal/files"
	"github.com/haldir-mcp/haldir/internal/replace"
)

// File is a file of servers, as it was read.
type File struct {
	Place
	Target string // where it is, links followed
	Data   []byte // nil: there is none
	Info   fs.FileInfo
	Lists  []*List

	text *text
}

// List is the servers of one scope in a file.
type List struct {
	File    *File
	Scope   Scope
	Dir     string // the project, for Local
	Here    bool   // it is for where the person is
	Servers []*Server

	value *hujson.Value // the object that has them
}

// Read reads a file of servers. One that is not there has no lists.
func (h Host) Read(p Place) (*File, error) {
	if h.look == nil {
		return h.read(p)
	}
	if f := h.look.files[p]; f != nil {
		return f, nil
	}
	f, err := h.read(p)
	if err == nil {
		h.look.files[p] = f
	}
	return f, err
}

func (h Host) read(p Place) (*File, error) {
	f := &File{Place: p}
	var err error
	if f.Target, err = replace.Follow(p.Path); errors.Is(err, syscall.ENOTDIR) {
		return f, nil // something else has the name of the client's directory
	} else if err != nil {
		return nil, err
	}
	if f.Data, f.Info, err = replace.Read(f.Target); err != nil || f.Data == nil {
		return f, err
	}
	if f.text, err = parse(f.Path, f.Data); err != nil {
		return f, err
	}
	if h.look != nil && f.text.root != nil {
		h.look.roots[f.Path] = reply{root: object(f.text.root)} // what is judged by is what a plan is of, and compares
	}
	return f, h.lists(f)
}

// With is the file with another text.
func (h Host) With(f *File, data []byte) (*File, error) {
	g := &File{Place: f.Place, Target: f.Target, Data: data, Info: f.Info}
	var err error
	if g.text, err = parse(g.Path, data); err != nil {
		return g, err
	}
	return g, h.lists(g)
}

// key is the name of the object that has the servers.
func (c Client) key() string {
	if c == VSCode {
		return "servers"
	}
	return "mcpServers"
}

// lists finds the servers in a file that was taken apart.
func (h Host) lists(f *File) error {
	t := f.text
	if t.root == nil {
		return nil
	}
	root := object(t.root)
	if root == nil {
		return t.problem(t.root.StartOffset, "an object must stand here")
	}
	if err := h.list(f, root, &List{File: f, Scope: f.Scope, Here: true}); err != nil {
		return err
	}
	if f.Client != ClaudeCode || f.Scope != User {
		return nil
	}
	projects, err := t.inside(root, "projects")
	if err != nil || projects == nil {
		return err
	}
	for i := range projects.Members {
		m := &projects.Members[i]
		if o := object(&m.Value); o != nil {
			dir := nameOf(m)
			if err := h.list(f, o, &List{File: f, Scope: Local, Dir: dir, Here: h.here(dir)}); err != nil {
				return err
			}
		}
	}
	h.switchedOff(f, projects)
	return nil
}

// switchedOff notes the servers that a project of Claude Code does not want: one of the project
// that the person is in stays with it.
func (h Host) switchedOff(f *File, projects *hujson.Object) {
	for i := range projects.Members {
		m := &projects.Members[i]
		o := object(&m.Value)
		if o == nil {
			continue
		}
		off, here := texts(o, "disabledMcpServers"), h.here(nameOf(m))
		denied := &gate{}
		if !here {
			denied = h.denying(nameOf(m))
		}
		for _, l := range f.Lists {
			for _, s := range l.Servers {
				switch {
				case !slices.Contains(off, s.Name) && denied.deny(h.loaded(s)) == nil:
				case here && l.Here && s.Why == "":
					s.Why, s.Off = "it is switched off in this project", true
				case !here && l.Scope == User:
					s.OffIn = append(s.OffIn, nameOf(m))
				}
			}
		}
	}
}

// texts is the list of texts that is a member of an object; nil if it is none.
func texts(o *hujson.Object, name string) (out []string) {
	for i := range o.Members {
		m := &o.Members[i]
		if a, ok := m.Value.Value.(*hujson.Array); ok && nameOf(m) == name {
			for j := range a.Elements {
				if s, ok := str(&a.Elements[j]); ok {
					out = append(out, s)
				}
			}
		}
	}
	return out
}

// list reads the servers in an object.
func (h Host) list(f *File, in *hujson.Object, l *List) error {
	m, err := f.text.member(in, f.Client.key())
	if err != nil || m == nil || isNull(&m.Value) {
		return err
	}
	servers := object(&m.Value)
	if servers == nil {
		return f.text.problem(m.Value.StartOffset, "%s must be an object", f.Client.key())
	}
	l.value = &m.Value
	count := map[string]int{}
	for i := range servers.Members {
		s := h.server(f, l, &servers.Members[i])
		l.Servers = append(l.Servers, s)
		count[s.Name]++
	}
	for _, s := range l.Servers {
		if count[s.Name] > 1 {
			s.Why = fmt.Sprintf("the name %q stands twice there, and clients do not agree on which of them holds", s.Name)
		}
	}
	h.blocked(l)
	if f.Client == ClaudeCode && f.Scope == Project {
		dir := l.Project()
		off, on, claim := h.rejected(), h.chosen(enabled, dir), h.approval(dir)
		for _, s := range l.Servers {
			if s.Why == "" && slices.Contains(off, s.Name) {
				s.Why, s.Off = "it was rejected in Claude Code", true
			}
			s.Approved = slices.Contains(on, s.Name)
			if slices.Contains(claim.names, s.Name) {
				s.Approved = s.Approved || claim.own
				s.Claim = claim.path
			}
		}
	}
	f.Lists = append(f.Lists, l)
	return nil
}

// blocked notes the servers that Claude Code's settings keep it from loading.
func (h Host) blocked(l *List) {
	if l.File.Client != ClaudeCode || len(l.Servers) == 0 {
		return
	}
	gates := h.gates(l)
	for _, s := range l.Servers {
		if s.Guard != nil {
			continue
		}
		as := h.loaded(s)
		first, last := gates[0].refuses(as), gates[len(gates)-1].refuses(as) // the last is of where it is for
		s.Off = s.Off || first != "" && last != ""
		switch why := cmp.Or(first, last); {
		case s.Why != "" || why == "":
		case last == "":
			s.Why = "outside of this project Claude Code does not load it: " + why
		default:
			s.Why = "Claude Code does not load it: " + why
		}
	}
}

// readRoot is the object in a file of Claude Code; nil if Claude Code cannot read it either, and if
// haldir cannot, of which Unread tells.
func (h Host) readRoot(path string) *hujson.Object {
	o, _ := h.root(path) // nothing is planned before Unread has been asked
	return o
}

// root is the root of a file, as this look has it.
func (h Host) root(path string) (*hujson.Object, error) {
	if h.look == nil {
		return root(path)
	}
	r, known := h.look.roots[path]
	if !known {
		r.root, r.err = root(path)
		h.look.roots[path] = r
	}
	return r.root, r.err
}

// root is the object in a file of Claude Code; nil if there is none that Claude Code can read. An
// error says that Claude Code may know more than haldir does.
func root(path string) (*hujson.Object, error) {
	info, err := os.Stat(path)
	if missing(err) || err == nil && !info.Mode().IsRegular() {
		return nil, nil // what a project has there may never end
	}
	if err != nil {
		return nil, err
	}
	data, err := files.ReadTo(path, maxFile)
	if err != nil {
		return nil, err
	}
	t, err := parse(path, data)
	if err != nil && tooDeep(data) >= 0 {
		return nil, err
	}
	if err != nil || t.root == nil {
		return nil, nil //nolint:nilerr // Claude Code cannot read it either
	}
	return object(t.root), nil
}

// missing reports whether an error says that there is no such file.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// Entry is how a client starts haldir.
type Entry struct {
	Command string
	Args    []string
	Cwd     string // "" for the client's own
}

// json is the entry on one line, or over several with a margin.
func (e Entry) json(c Client, margin, unit, eol string, lines, tight bool) string {
	pairs := []string{`"command"`, quote(e.Command), `"args"`, ""}
	sep, colon := ", ", ": "
	if tight {
		sep, colon = ",", ":"
	}
	pairs[3] = "[" + strings.Join(quoted(e.Args), sep) + "]"
	if c == VSCode || c == ClaudeCode {
		pairs = append([]string{`"type"`, `"stdio"`}, pairs...)
	}
	if e.Cwd != "" {
		pairs = append(pairs, `"cwd"`, quote(e.Cwd))
	}
	var b bytes.Buffer
	b.WriteByte('{')
	for i := 0; i < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		switch {
		case lines:
			b.WriteString(eol + margin + unit)
		case i > 0 && !tight:
			b.WriteByte(' ')
		}
		b.WriteString(pairs[i] + colon + pairs[i+1])
	}
	if lines {
		b.WriteString(eol + margin)
	}
	b.WriteByte('}')
	return b.String()
}

// Swap takes servers out of a list, and puts haldir in the place of the first.
type Swap struct {
	List  *List
	Gone  []string // names
	Name  string   // of haldir's entry
	Entry *Entry   // nil: it is there already

	// Keep are comments in servers that go, by their names, which stay in the file.
	Keep map[string][]string
}

// Swap returns the text of the file with changes made, of which each is about another list.
// Whatever else is in the file is as it was, or an error says that it cannot be.
func (h Host) Swap(f *File, swaps ...Swap) ([]byte, error) {
	var splices []splice
	for _, s := range swaps {
		v := s.List.value
		o := object(v)
		first := -1
		gone := func(i int) bool { return slices.Contains(s.Gone, nameOf(&o.Members[i])) && i != first }
		if s.Entry != nil {
			for i := range o.Members {
				if gone(i) {
					first = i
					break
				}
			}
			splices = append(splices, f.text.swap(f.Client, v, &o.Members[first], s))
		}
		splices = append(splices, f.text.take(v, gone, func(i int) string { return blocks(s.Keep[nameOf(&o.Members[i])]) })...)
	}
	after := f.text.edited(splices)
	now, err := h.With(f, after)
	if err != nil {
		return nil, err
	}
	for _, s := range swaps {
		if err := s.holds(now); err != nil {
			return nil, err
		}
	}
	return after, nil
}

// swap puts haldir in the place of a member.
func (t *text) swap(c Client, list *hujson.Value, m *hujson.ObjectMember, s Swap) splice {
	between := t.body[m.Name.EndOffset:m.Value.StartOffset]
	colon := string(between)
	if !blank(bytes.Replace(between, []byte(":"), nil, 1)) {
		colon = ": "
	}
	lines := bytes.IndexByte(t.body[m.Value.StartOffset:m.Value.EndOffset], '\n') >= 0
	margin, unit := t.margin(m.Name.StartOffset), t.unit(&m.Value)
	if unit == "" || !lines {
		unit = t.unit(list)
	}
	return splice{m.Name.StartOffset, m.Value.EndOffset, blocks(s.Keep[nameOf(m)]) + quote(s.Name) + colon + s.Entry.json(c, margin, unit, t.eol, lines, colon == ":" && !lines)}
}

// holds checks that a list is what it was but for what was to change.
func (s Swap) holds(now *File) error {
	l := now.Find(s.List.Scope, s.List.Dir)
	if l == nil {
		return fmt.Errorf("%s: the servers would be lost; edit the file by hand", now.Path)
	}
	var want, got []string
	for _, m := range s.List.members() {
		if !slices.Contains(s.Gone, nameOf(m)) {
			want = append(want, nameOf(m)+plainJSON(&m.Value))
		}
	}
	for _, m := range l.members() {
		if s.Entry == nil || nameOf(m) != s.Name {
			got = append(got, nameOf(m)+plainJSON(&m.Value))
		}
	}
	if !slices.Equal(want, got) {
		return fmt.Errorf("%s: other servers would change as well; edit the file by hand", now.Path)
	}
	return nil
}

// Find returns the list of a scope, nil if there is none.
func (f *File) Find(scope Scope, dir string) *List {
	for _, l := range f.Lists {
		if l.Scope == scope && l.Dir == dir {
			return l
		}
	}
	return nil
}

func (l *List) members() (out []*hujson.ObjectMember) {
	if o := object(l.value); o != nil {
		for i := range o.Members {
			out = append(out, &o.Members[i])
		}
	}
	return out
}

// Server returns the server of a name, nil if there is none.
func (l *List) Server(name string) *Server {
	for _, s := range l.Servers {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// PutBack returns the text of a file that has gone on since servers were taken out of it: it
// has them again, as they stand in was, in the place of haldir's entry, which goes if placed
// says that it came with them. It is an error if one of them is there again and is another.
func (h Host) PutBack(f *File, was *List, gone []string, name string, placed bool) ([]byte, error) {
	l := f.Find(was.Scope, was.Dir)
	if l == nil {
		return nil, fmt.Errorf("%s: the servers are gone that haldir's entry was among", f.Path)
	}
	var fresh []string
	for _, m := range was.members() {
		n := nameOf(m)
		if !slices.Contains(gone, n) {
			continue
		}
		if now := l.Server(n); now == nil || placed && n == name && now.Guard != nil {
			fresh = append(fresh, string(was.File.text.body[m.Name.StartOffset:m.Value.EndOffset]))
		} else if !bytes.Equal(meaning(&now.member.Value), meaning(&m.Value)) {
			return nil, f.text.problem(now.member.Name.StartOffset, "there is another %q by now", n)
		}
	}
	var splices []splice
	entry := l.Server(name)
	if placed && entry != nil && entry.Guard == nil && slices.Contains(gone, name) {
		entry = nil // one that was to go, as it was: haldir's has not come
	}
	if placed && entry != nil && entry.Guard == nil {
		return nil, f.text.problem(entry.member.Name.StartOffset, "%q is not haldir's any more", name)
	}
	switch {
	case placed && entry != nil && len(fresh) > 0:
		sep := " "
		if lead, first := f.text.lead(entry.member.Name.StartOffset); first {
			sep = f.text.eol + lead
		}
		var all bytes.Buffer
		for i, m := range fresh {
			if i > 0 {
				all.WriteString("," + sep)
			}
			all.WriteString(m)
		}
		splices = append(splices, splice{entry.member.Name.StartOffset, entry.member.Value.EndOffset, all.String()})
	case placed && entry != nil:
		o := object(l.value)
		splices = f.text.take(l.value, func(i int) bool { return nameOf(&o.Members[i]) == name }, nil)
	case len(fresh) > 0:
		splices = f.text.put(l.value, fresh, f.text.unit(l.value))
	}
	after := f.text.edited(splices)
	_, err := h.With(f, after)
	return after, err
}

// Alike reports whether a list has the same servers as another, however they are written.
// Numbers are compared as clients read them.
func (l *List) Alike(other *List, but ...string) bool {
	values := func(l *List) map[string]json.RawMessage {
		out := map[string]json.RawMessage{}
		for _, m := range l.members() {
			if n := nameOf(m); !slices.Contains(but, n) {
				out[n] = meaning(&m.Value)
			}
		}
		return out
	}
	a, errA := json.Marshal(values(l))
	b, errB := json.Marshal(values(other))
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// Alike reports whether two servers say the same, however they are written. An env that is empty,
// as Claude Code writes it, says nothing.
func (s *Server) Alike(o *Server) bool {
	return bytes.Equal(s.meaning(), o.meaning())
}

func (s *Server) meaning() []byte {
	raw := meaning(&s.member.Value)
	var keys map[string]json.RawMessage
	if json.Unmarshal(raw, &keys) != nil || string(keys["env"]) != "{}" {
		return raw
	}
	delete(keys, "env")
	out, err := json.Marshal(keys)
	if err != nil {
		return raw
	}
	return out
}

// Since lists what a file says otherwise, or not any more, than it did in another text of it, and
// what it says beside that, by the names of its members.
func (f *File) Since(was *File) (changed, added []string) {
	then, now := was.text.meanings(), f.text.meanings()
	for name, v := range then {
		if !bytes.Equal(v, now[name]) {
			changed = append(changed, name)
		}
	}
	for name := range now {
		if then[name] == nil {
			added = append(added, name)
		}
	}
	slices.Sort(changed)
	slices.Sort(added)
	return changed, added
}

// meanings are those of the members of a file.
func (t *text) meanings() map[string]json.RawMessage {
	out := map[string]json.RawMessage{}
	if o := object(t.root); o != nil {
		for i := range o.Members {
			out[nameOf(&o.Members[i])] = meaning(&o.Members[i].Value)
		}
	}
	return out
}

// meaning is a value as a client reads it, however it is written.
func meaning(v *hujson.Value) json.RawMessage {
	raw := []byte(plainJSON(v))
	var x any
	if json.Unmarshal(raw, &x) != nil {
		return raw
	}
	out, err := json.Marshal(x)
	if err != nil {
		return raw
	}
	return out
}
