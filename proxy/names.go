package proxy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
)

// The name under which haldir's own tools are known as an upstream.
const ownName = "haldir"

// separator stands between an upstream's name and a tool's.
const separator = "__"

// hashLen is how many characters of a hash make a shortened name unique.
const hashLen = 8

// expose returns the name under which the host sees a tool. It depends on the
// tool, its upstream and the limit alone, never on what else is connected.
func expose(upstreamName, tool string, bare bool, limit int) (name string, changed bool) {
	name = tool
	if !bare {
		name = upstreamName + separator + tool
	}
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-' {
			return r
		}
		return '_'
	}, name)
	if plain == name && len(name) <= limit {
		return name, false
	}
	sum := sha256.Sum256([]byte(upstreamName + "/" + tool))
	suffix := "_" + hex.EncodeToString(sum[:])[:hashLen]
	return plain[:min(len(plain), limit-len(suffix))] + suffix, true
}

// Entry is one tool in the merged list.
type Entry struct {
	Exposed  string `json:"name"`
	Upstream string `json:"upstream"`
	Tool     string `json:"tool"` // as the upstream spells it
	Hidden   bool   `json:"hidden,omitempty"`

	up  Upstream
	def upstream.Tool
}

// ID returns the canonical id.
func (e Entry) ID() string { return e.Upstream + "/" + e.Tool }

// Note says what was done to a tool's name, or why a tool is not passed on.
type Note struct {
	Upstream string `json:"upstream"`
	Tool     string `json:"tool"`
	Text     string `json:"text"`

	Kind NoteKind `json:"-"`
}

// NoteKind is what a note is about.
type NoteKind int

// The kinds of notes.
const (
	Renamed  NoteKind = iota + 1 // it is listed by another name
	Clash                        // another one has its name, or its URI
	Withheld                     // it is not passed on
)

// table is the merged catalogue at one moment. It is immutable.
type table struct {
	revision    uint64 // the sum of those of the catalogues
	entries     []Entry
	byExposed   map[string]int
	byCanonical map[string]int
	byTool      map[string][]int
	upstreams   []string
	notes       []Note
	offers      offers
}

// build merges the catalogues in the order of the config.
func build(ups []Upstream, limit int, hidden func(Entry) bool, never func(policy.Kind, Upstream, string) bool) *table {
	t := &table{byExposed: map[string]int{}, byCanonical: map[string]int{}, byTool: map[string][]int{}}
	for _, up := range ups {
		t.upstreams = append(t.upstreams, up.Name())
	}
	for _, up := range ups {
		c := up.Catalogue()
		t.revision += c.Revision
		for _, w := range c.Withheld {
			t.note(Withheld, up.Name(), w.Name, "withheld: %s", w.Reason)
		}
		for _, def := range c.Tools {
			t.add(up, def, limit, hidden)
		}
		t.offer(up, c, limit, never)
	}
	return t
}

func (t *table) note(kind NoteKind, up, tool, format string, args ...any) {
	t.notes = append(t.notes, Note{up, tool, fmt.Sprintf(format, args...), kind})
}

func (t *table) add(up Upstream, def upstream.Tool, limit int, hidden func(Entry) bool) {
	bare := up.Bare()
	if bare && up.Name() != ownName {
		if strings.HasPrefix(def.Name, ownName+"_") || t.namesake(def.Name) != "" {
			t.note(Withheld, up.Name(), def.Name, "withheld: a bare name must not look like a tool of another upstream or of haldir")
			return
		}
	}
	name, changed := expose(up.Name(), def.Name, bare, limit)
	if i, taken := t.byExposed[name]; taken {
		t.note(Clash, up.Name(), def.Name, "withheld: its name %s is that of %s", name, t.entries[i].ID())
		return
	}
	if changed {
		t.note(Renamed, up.Name(), def.Name, "listed as %s", name)
	}
	e := Entry{Exposed: name, Upstream: up.Name(), Tool: def.Name, up: up, def: def}
	e.Hidden = hidden(e)
	i := len(t.entries)
	t.entries = append(t.entries, e)
	t.byExposed[name] = i
	t.byCanonical[e.ID()] = i
	t.byTool[e.Tool] = append(t.byTool[e.Tool], i)
}

// namesake returns the upstream whose tool a name says it is, "" if none.
func (t *table) namesake(name string) string {
	for _, up := range t.upstreams {
		if strings.HasPrefix(name, up+separator) || strings.HasPrefix(name, up+"/") {
			return up
		}
	}
	return ""
}

// ErrUnknownTool says that no upstream has a tool of that name.
var ErrUnknownTool = errors.New("unknown tool")

// find resolves a name as people and agents write it: the exposed name, the
// canonical id, or the tool's own name if only one upstream has it.
func (t *table) find(name string) (Entry, error) {
	if i, ok := t.byExposed[name]; ok {
		return t.entries[i], nil
	}
	if i, ok := t.byCanonical[name]; ok {
		return t.entries[i], nil
	}
	if t.namesake(name) != "" {
		// It names a tool of that upstream, which has none such. Another
		// upstream's tool of that very name must not answer for it.
		return Entry{}, ErrUnknownTool
	}
	switch same := t.byTool[name]; len(same) {
	case 0:
		return Entry{}, ErrUnknownTool
	case 1:
		return t.entries[same[0]], nil
	default:
		var ids []string
		for _, i := range same {
			ids = append(ids, t.entries[i].ID())
		}
		return Entry{}, fmt.Errorf("the name %q is ambiguous: %s", name, strings.Join(ids, ", "))
	}
}
