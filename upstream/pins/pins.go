package pins

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Kind is what kind of thing is pinned.
type Kind string

// The kinds.
const (
	Server       Kind = "server"       // the url, or the program and its SHA-256
	Instructions Kind = "instructions" // of initialize or server/discover
	Tool         Kind = "tool"
	Prompt       Kind = "prompt"
	Resource     Kind = "resource" // looked at, and not pinned
)

// Offer is what an upstream offers now.
type Offer struct {
	Server       string
	Instructions string
	Tools        []Item
	Prompts      []Item
	Resources    []Item // with templates
}

// Item is one definition, byte for byte.
type Item struct {
	Name string
	Raw  json.RawMessage
}

// Record is what is pinned of one upstream. The zero Record pins nothing.
type Record struct {
	// Settled is the SHA-256 of a list in which nothing is otherwise than pinned, so that
	// the same list need not be compared again. It stands first, see [Settles].
	Settled string `json:"settled"`

	Since        time.Time `json:"since"`
	Server       string    `json:"server"`
	Instructions string    `json:"instructions"`
	// The definitions are texts, since JSON in JSON would lose its white space.
	Tools   map[string]string `json:"tools"`
	Prompts map[string]string `json:"prompts"`
	// Program is what the program of a child was when it was looked at last.
	Program Program `json:"program,omitzero"`
	// Pending are the changes that were told of, by their keys, so that each is told
	// once: the SHA-256 of what is new.
	Pending map[string]string `json:"pending,omitempty"`
	// Told are the last of them, so that a server that changes to and fro is told of once.
	Told []string `json:"told,omitempty"`
}

// maxTold bounds them.
const maxTold = 200

// Program identifies a file without reading it again each time.
type Program struct {
	Path   string    `json:"path"`
	Size   int64     `json:"size"`
	Time   time.Time `json:"time"`
	SHA256 string    `json:"sha256"`
}

// Status is what has become of something that is pinned.
type Status string

// The statuses, as the audit has them.
const (
	Pinned   Status = "pinned"
	Changed  Status = "changed"
	Accepted Status = "accepted"
	Flagged  Status = "flagged" // a text in it should be looked at
)

// Note is one thing to be recorded.
type Note struct {
	Status Status
	Name   string // of what it is about: tool x
	Text   string
	Digest [sha256.Size]byte // of what is new
}

// Change is one thing that is not as it is pinned.
type Change struct {
	Kind Kind            `json:"kind"`
	Name string          `json:"name,omitempty"`
	Old  json.RawMessage `json:"old"` // a definition, or a text as JSON
	New  json.RawMessage `json:"new"`
	// Blocks says why the pinned form cannot go on being offered; "" if it can.
	Blocks string `json:"blocks,omitempty"`
}

// Key names what has changed.
func (c Change) Key() string {
	if c.Name == "" {
		return string(c.Kind)
	}
	return string(c.Kind) + " " + c.Name
}

// Digest identifies what it has become.
func (c Change) Digest() string {
	return digest(c.New)
}

// Settles reports whether a stored record says of a list that nothing in it is otherwise
// than pinned, without reading all of it.
func Settles(stored, list []byte) bool {
	return bytes.HasPrefix(stored, []byte(`{"settled":"`+digest(list)+`"`))
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Settle notes whether that is so.
func (r *Record) Settle(list []byte, o Offer, changes []Change) {
	if r.Settled = ""; len(changes) == 0 && r.holds(o) {
		r.Settled = digest(list)
	}
}

// Knows reports whether everything in an offer is pinned, and told of where it has
// changed, so that nothing is to be kept.
func (r Record) Knows(o Offer, changes []Change) bool {
	if !r.Known() || len(changes) != len(r.Pending) {
		return false
	}
	for _, c := range changes {
		if r.Pending[c.Key()] != c.Digest() {
			return false
		}
	}
	return r.holds(o)
}

// holds reports whether everything in an offer is pinned, in whatever form.
func (r Record) holds(o Offer) bool {
	missing := func(items []Item, pinned map[string]string) bool {
		return slices.ContainsFunc(items, func(i Item) bool { return pinned[i.Name] == "" })
	}
	return !missing(o.Tools, r.Tools) && !missing(o.Prompts, r.Prompts)
}

// Known reports whether anything is pinned yet.
func (r Record) Known() bool { return !r.Since.IsZero() }

// Bounds on what is pinned of one upstream: definitions, and bytes of them together.
const (
	maxPinned = 20_000
	maxBytes  = 8 << 20
)

// Learn pins what is offered and not pinned yet, and says what that is: the whole the
// first time, later a tool or a prompt that is new. Beyond some bounds nothing is.
func (r *Record) Learn(o Offer, now time.Time) (added []Change) {
	size := 0
	for _, l := range []map[string]string{r.Tools, r.Prompts} {
		for _, text := range l {
			size += len(text)
		}
	}
	if !r.Known() {
		r.Since, r.Server, r.Instructions = now, o.Server, o.Instructions
	}
	for _, l := range []struct {
		kind  Kind
		items []Item
		into  *map[string]string
	}{{Tool, o.Tools, &r.Tools}, {Prompt, o.Prompts, &r.Prompts}} {
		for _, i := range l.items {
			if _, pinned := (*l.into)[i.Name]; pinned || len(r.Tools)+len(r.Prompts) >= maxPinned || size+len(i.Raw) > maxBytes {
				continue
			}
			size += len(i.Raw)
			set(l.into, i.Name, i.Raw)
			added = append(added, Change{Kind: l.kind, Name: i.Name, New: i.Raw})
		}
	}
	return added
}

// Compare lists what is offered otherwise than pinned, in a fixed order. What is not
// offered has not changed; neither has what is not pinned, unless additions count.
func (r Record) Compare(o Offer, additions bool) (changes []Change) {
	if !r.Known() {
		return nil
	}
	if r.Server != o.Server && o.Server != "" {
		changes = append(changes, Change{Kind: Server, Old: text(r.Server), New: text(o.Server)})
	}
	if r.Instructions != o.Instructions {
		changes = append(changes, Change{Kind: Instructions, Old: text(r.Instructions), New: text(o.Instructions)})
	}
	for _, l := range []struct {
		kind   Kind
		items  []Item
		pinned map[string]string
		blocks func(old, now json.RawMessage) string
	}{{Tool, o.Tools, r.Tools, toolBlocks}, {Prompt, o.Prompts, r.Prompts, promptBlocks}} {
		for _, i := range l.items {
			old, pinned := l.pinned[i.Name]
			switch raw := json.RawMessage(old); {
			case !pinned && additions:
				changes = append(changes, Change{Kind: l.kind, Name: i.Name, New: i.Raw, Blocks: isNew})
			case pinned && !same(raw, i.Raw):
				changes = append(changes, Change{Kind: l.kind, Name: i.Name, Old: raw, New: i.Raw, Blocks: l.blocks(raw, i.Raw)})
			}
		}
	}
	return changes
}

// All is what is offered, as changes of pins that are not known: who the server is, too.
func (o Offer) All(blocks string) []Change {
	changes := []Change{{Kind: Server, New: text(o.Server), Blocks: blocks}}
	if o.Instructions != "" {
		changes = append(changes, Change{Kind: Instructions, New: text(o.Instructions), Blocks: blocks})
	}
	for _, t := range o.Tools {
		changes = append(changes, Change{Kind: Tool, Name: t.Name, New: t.Raw, Blocks: blocks})
	}
	for _, p := range o.Prompts {
		changes = append(changes, Change{Kind: Prompt, Name: p.Name, New: p.Raw, Blocks: blocks})
	}
	return changes
}

// isNew is why an addition is not offered where it counts as a change.
const isNew = "it is new"

// Pins reports whether an item is pinned.
func (r Record) Pins(kind Kind, name string) bool {
	if kind == Prompt {
		return r.Prompts[name] != ""
	}
	return r.Tools[name] != ""
}

// Accept pins what is offered now in place of what was.
func (r *Record) Accept(changes []Change) {
	for _, c := range changes {
		switch c.Kind {
		case Server:
			r.Server = plain(c.New)
		case Instructions:
			r.Instructions = plain(c.New)
		case Tool:
			set(&r.Tools, c.Name, c.New)
		case Prompt:
			set(&r.Prompts, c.Name, c.New)
		case Resource: // is not pinned
		}
		delete(r.Pending, c.Key())
	}
}

func set(into *map[string]string, name string, raw json.RawMessage) {
	if *into == nil {
		*into = map[string]string{}
	}
	(*into)[name] = string(raw)
}

// Tell returns the changes that nobody was told of yet, and notes that they are told
// of, and no more of those that are gone. fresh reports whether anything is to be kept.
func (r *Record) Tell(changes []Change) (news []Change, fresh bool) {
	pending := map[string]string{}
	for _, c := range changes {
		key, digest := c.Key(), c.Digest()
		pending[key] = digest
		if r.Pending[key] == digest {
			continue
		}
		fresh = true
		if id := digest[:16]; !slices.Contains(r.Told, id) {
			news = append(news, c)
			r.Told = append(r.Told, id)
			r.Told = r.Told[max(0, len(r.Told)-maxTold):]
		}
	}
	fresh = fresh || len(pending) != len(r.Pending)
	r.Pending = pending
	return news, fresh
}

func text(s string) json.RawMessage {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a text
	}
	return b
}

func plain(raw json.RawMessage) (s string) {
	_ = json.Unmarshal(raw, &s) // made by text
	return s
}

// value reads JSON with numbers as they are written.
func value(raw json.RawMessage) (v any, ok bool) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	return v, d.Decode(&v) == nil
}

// same reports whether two definitions say the same: the order of keys and white space
// say nothing.
func same(a, b json.RawMessage) bool {
	if bytes.Equal(a, b) {
		return true
	}
	if ambiguous(b) {
		return false // another reader may see what this one does not
	}
	x, ok1 := value(a)
	y, ok2 := value(b)
	return ok1 && ok2 && canonical(x) == canonical(y)
}

// surrogates are escapes of halves of characters, and pairs of them. Where a half stands
// alone this reader makes it the same as any other.
var (
	surrogates = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\\u[dD][89a-fA-F][0-9a-fA-F]{2}`) })
	pairs      = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}`)
	})
)

// ambiguous reports JSON that two readers may read differently: a name stands twice in
// an object, or the text is no UTF-8.
func ambiguous(raw json.RawMessage) bool {
	if !utf8.Valid(raw) || surrogates().Match(pairs().ReplaceAll(raw, nil)) {
		return true
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var names []map[string]bool // of the objects around; nil for an array
	key := false                // the next text is a name
	for {
		t, err := d.Token()
		if err != nil {
			return !errors.Is(err, io.EOF)
		}
		top := len(names) - 1
		switch t := t.(type) {
		case json.Delim:
			switch t {
			case '{':
				names, key = append(names, map[string]bool{}), true
				continue
			case '[':
				names, key = append(names, nil), false
				continue
			}
			names = names[:top]
			top--
		case string:
			if key {
				if names[top][t] {
					return true
				}
				names[top][t], key = true, false
				continue
			}
		}
		key = top >= 0 && names[top] != nil
	}
}

func canonical(v any) string {
	b, err := json.Marshal(v) // sorts keys
	if err != nil {
		return fmt.Sprint(err) // what was read as JSON can be written
	}
	return string(b)
}

// toolBlocks says why a model cannot go on using a tool by its pinned definition.
func toolBlocks(old, now json.RawMessage) string {
	a, ok1 := value(old)
	b, ok2 := value(now)
	x, y := object(a), object(b)
	if !ok1 || !ok2 || x == nil || y == nil {
		return "it cannot be read"
	}
	if ambiguous(now) {
		return "two readers could read it differently"
	}
	if !destroys(x) && destroys(y) {
		return "its annotations say now that it destroys"
	}
	if annotation(x, "destructiveHint") == false && annotation(y, "destructiveHint") != false {
		return "its annotations do not say any more that it destroys nothing"
	}
	if annotation(x, "readOnlyHint") == true && annotation(y, "readOnlyHint") != true {
		return "its annotations do not say any more that it only reads"
	}
	if why := misfit(x["inputSchema"], y["inputSchema"]); why != "" {
		return "its input has changed: " + why
	}
	if canonical(bare(x["outputSchema"])) != canonical(bare(y["outputSchema"])) {
		return "its output has changed"
	}
	return ""
}

func object(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

func annotation(tool map[string]any, name string) any { return object(tool["annotations"])[name] }

// destroys reports whether annotations say so outright: the default of destructiveHint
// is true, but for a tool that only reads.
func destroys(tool map[string]any) bool {
	return annotation(tool, "destructiveHint") == true && annotation(tool, "readOnlyHint") != true
}

// words are the keywords of a schema that are for people and models only (JSON Schema
// 2020-12, section 9 of the validation vocabulary, and $comment).
var words = []string{"title", "description", "examples", "default", "$comment", "deprecated", "readOnly", "writeOnly"}

// bare is a schema without them.
func bare(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			switch {
			case k == "properties" || k == "$defs" || k == "definitions" || k == "patternProperties" || k == "dependentSchemas" || k == "dependencies":
				named := map[string]any{} // the keys are names here
				for n, s := range object(x) {
					named[n] = bare(s)
				}
				out[k] = named
			case k == "enum" || k == "const" || k == "required" || k == "dependentRequired":
				out[k] = x
			case !slices.Contains(words, k):
				out[k] = bare(x)
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = bare(x)
		}
		return out
	}
	return v
}

// misfit says why what fits the old schema may not fit the new one; "" if it does.
// What it cannot tell counts as a misfit.
func misfit(old, now any) string {
	a, b := bare(old), bare(now)
	if canonical(a) == canonical(b) {
		return ""
	}
	x, y := object(a), object(b)
	if x == nil || y == nil {
		return "it cannot be compared"
	}
	had := names(x["required"])
	for _, n := range names(y["required"]) {
		if !slices.Contains(had, n) {
			return fmt.Sprintf("%q is required now", n)
		}
	}
	props, kept := object(x["properties"]), object(y["properties"])
	closed := y["additionalProperties"] != nil && y["additionalProperties"] != true
	for _, n := range sorted(props) {
		is, still := kept[n]
		if !still && closed {
			return fmt.Sprintf("there is no %q any more", n)
		}
		if still && canonical(props[n]) != canonical(is) && !widened(props[n], is) {
			return fmt.Sprintf("%q takes other values", n)
		}
	}
	if more := y["additionalProperties"]; more != nil && more != true && canonical(more) != canonical(x["additionalProperties"]) {
		return "it takes other arguments"
	}
	for _, k := range sorted(y) {
		switch k {
		case "required", "properties", "additionalProperties", "$schema":
		default:
			if canonical(x[k]) != canonical(y[k]) {
				return fmt.Sprintf("its keyword %q", k)
			}
		}
	}
	return ""
}

// widened reports whether every value of one schema is one of another, as far as that
// is plain: an enum or a type with more to choose from.
func widened(old, now any) bool {
	x, y := object(old), object(now)
	if x == nil || y == nil {
		return false
	}
	for _, k := range union(sorted(x), sorted(y)) {
		if canonical(x[k]) == canonical(y[k]) {
			continue
		}
		if k != "enum" && k != "type" || x[k] == nil {
			return false
		}
		if y[k] == nil { // no restriction any more
			continue
		}
		for _, v := range list(x[k]) {
			if !slices.ContainsFunc(list(y[k]), func(w any) bool { return canonical(v) == canonical(w) }) {
				return false
			}
		}
	}
	return true
}

func list(v any) []any {
	if l, ok := v.([]any); ok {
		return l
	}
	return []any{v}
}

func names(v any) (out []string) {
	for _, x := range list(v) {
		if s, ok := x.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

func sorted(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func union(a, b []string) []string {
	out := append(slices.Clone(a), b...)
	slices.Sort(out)
	return slices.Compact(out)
}

// promptBlocks says why a prompt cannot go on being used by its pinned definition.
func promptBlocks(old, now json.RawMessage) string {
	required := func(raw json.RawMessage) (need, all []string) {
		var p struct {
			Arguments []struct {
				Name     string `json:"name"`
				Required bool   `json:"required"`
			} `json:"arguments"`
		}
		_ = json.Unmarshal(raw, &p) // then it has none
		for _, a := range p.Arguments {
			all = append(all, a.Name)
			if a.Required {
				need = append(need, a.Name)
			}
		}
		return need, all
	}
	had, offered := required(old)
	need, all := required(now)
	for _, n := range need {
		if !slices.Contains(had, n) {
			return fmt.Sprintf("the argument %q is required now", n)
		}
	}
	for _, n := range offered {
		if !slices.Contains(all, n) {
			return fmt.Sprintf("there is no argument %q any more", n)
		}
	}
	return ""
}

// Summary says in a line what a change is.
func (c Change) Summary() string {
	what := string(c.Kind)
	if c.Name != "" {
		what += " " + c.Name
	}
	switch {
	case c.Kind == Server:
		return "the server is another one"
	case c.Kind == Instructions:
		return "the instructions have changed"
	case c.Old == nil:
		return what + " is new"
	}
	var at []string
	for _, d := range Diff(c) {
		if head, _, _ := strings.Cut(d.Path, "."); !slices.Contains(at, head) {
			at = append(at, head)
		}
	}
	return what + " has changed: " + strings.Join(at, ", ")
}
