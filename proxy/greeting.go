package proxy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream"
)

// restoreWait bounds how long initialize waits for what an earlier run knew.
const restoreWait = 250 * time.Millisecond

// offered returns the capabilities and the instructions that haldir answers
// initialize with: those of its upstreams together where all of them are known,
// else all capabilities that there are, since the host asks once.
func (s *Server) offered() (capabilities json.RawMessage, instructions string) {
	var parts []json.RawMessage
	var texts []instruction
	for _, up := range s.rules().Upstreams {
		c := up.Catalogue()
		if !c.Known || c.Server == nil {
			return json.RawMessage(everything), ""
		}
		// By exact names, as the pins are: another reader would see other words.
		if declared, ok := wire.At(c.Server, "capabilities"); ok && len(declared.Value) <= maxCapabilities {
			parts = append(parts, capabilitiesOnly(declared.Value))
		}
		if words, ok := text(c.Server, "instructions"); ok && words != "" {
			texts = append(texts, instruction{up.Name(), words})
		}
	}
	return union(append(parts, json.RawMessage(ownCapabilities))), merge(texts)
}

// offeredModern is offered for a modern host: without tasks, which it knows as an
// extension that haldir does not carry.
func (s *Server) offeredModern() (capabilities json.RawMessage, instructions string) {
	capabilities, instructions = s.offered()
	return wire.Edit(capabilities, wire.Field{Name: "tasks"}), instructions
}

// maxCapabilities bounds what one server declares, in bytes.
const maxCapabilities = 64 << 10

// capabilitiesOnly leaves out what is no capability: each is an object.
func capabilitiesOnly(raw json.RawMessage) json.RawMessage {
	members, err := wire.Members(raw)
	if err != nil {
		return json.RawMessage("{}")
	}
	b := []byte{'{'}
	for _, m := range members {
		if wire.KindOf(m.Value) != "an object" {
			continue
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		value := m.Value
		if m.Name == "extensions" {
			value = wire.Edit(value, wire.Field{Name: upstream.TasksExtension})
		}
		b = append(append(append(b, wire.Quote(m.Name)...), ':'), value...)
	}
	return append(b, '}')
}

const (
	ownCapabilities = `{"tools":{"listChanged":true}}`
	everything      = `{"tools":{"listChanged":true},"resources":{"subscribe":true,"listChanged":true},"prompts":{"listChanged":true},"completions":{},"logging":{},"tasks":{"list":{},"cancel":{},"requests":{"tools":{"call":{}}}}}`
)

// union merges objects: true wins over false, objects are merged, of anything
// else the first stays.
func union(objects []json.RawMessage) json.RawMessage {
	var names []string
	values := map[string][]json.RawMessage{}
	for _, o := range objects {
		members, err := wire.Members(o)
		if err != nil {
			continue
		}
		for _, m := range members {
			if values[m.Name] == nil {
				names = append(names, m.Name)
			}
			values[m.Name] = append(values[m.Name], m.Value)
		}
	}
	b := []byte{'{'}
	for i, n := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, wire.Quote(n)...), ':')
		v := values[n]
		objects := slices.DeleteFunc(slices.Clone(v), func(x json.RawMessage) bool { return wire.KindOf(x) != "an object" })
		switch {
		case len(objects) > 0:
			b = append(b, union(objects)...)
		case slices.ContainsFunc(v, func(x json.RawMessage) bool { return string(x) == "true" }):
			b = append(b, "true"...)
		default:
			b = append(b, v[0]...)
		}
	}
	return append(b, '}')
}

// instruction is what one server tells the agent.
type instruction struct{ upstream, text string }

// head is how much of the instructions hosts show at least.
const head = 2048

// merge puts the instructions of several servers under their names. Each gets a
// fair part of what hosts show; what goes beyond it follows after all of them.
func merge(texts []instruction) string {
	switch len(texts) {
	case 0:
		return ""
	case 1:
		return texts[0].text
	}
	share := max(head/len(texts)-40, 100)
	var first, rest strings.Builder
	for _, t := range texts {
		text := strings.TrimSpace(t.text)
		cut := len(text)
		if cut > share {
			if cut = max(strings.LastIndexAny(text[:share], "\n."), strings.LastIndexByte(text[:share], ' ')) + 1; cut == 0 {
				cut = len(strings.ToValidUTF8(text[:share], "")) // no half of a character
			}
			fmt.Fprintf(&rest, "# %s, continued\n\n%s\n\n", t.upstream, strings.TrimSpace(text[cut:]))
		}
		fmt.Fprintf(&first, "# %s\n\n%s\n\n", t.upstream, strings.TrimSpace(text[:cut]))
	}
	return strings.TrimSpace(first.String() + rest.String())
}
