package wire

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"strings"
)

// Version20260728 is the first revision of MCP without a handshake: each request
// says in its _meta what initialize said once (2026-07-28, basic, _meta). The
// specification calls it and what follows it modern, what was before it legacy.
const Version20260728 = "2026-07-28"

// KnownModern reports whether v is a modern revision that haldir speaks.
func KnownModern(v string) bool { return v == Version20260728 }

// Reserved keys of _meta (2026-07-28, basic, _meta).
const (
	MetaVersion      = "io.modelcontextprotocol/protocolVersion"
	MetaClientInfo   = "io.modelcontextprotocol/clientInfo"
	MetaCapabilities = "io.modelcontextprotocol/clientCapabilities"
	MetaLogLevel     = "io.modelcontextprotocol/logLevel"
	MetaSubscription = "io.modelcontextprotocol/subscriptionId"
	MetaServerInfo   = "io.modelcontextprotocol/serverInfo"
)

// Error codes of MCP 2026-07-28 (basic, error codes).
const (
	CodeHeaderMismatch     = -32020
	CodeMissingCapability  = -32021
	CodeUnsupportedVersion = -32022
)

// ModernCode reports whether only a modern server answers by this code, which
// tells its era (2026-07-28, versioning, backward compatibility).
func ModernCode(code int) bool { return code <= CodeHeaderMismatch && code >= CodeUnsupportedVersion }

// Field is a member of an object as [Edit] sets it; a nil Value takes it away.
type Field struct {
	Name  string
	Value json.RawMessage
}

// Edit returns object with the fields set, each in its place or else at the end,
// and all else as it was; nil stands for an empty object. What is no object is
// returned as it is. object stays as it is.
func Edit(object json.RawMessage, fields ...Field) json.RawMessage {
	if object == nil {
		object = json.RawMessage("{}")
	}
	members, err := Members(object)
	if err != nil {
		return object
	}
	size := len(object)
	for _, f := range fields {
		size += len(f.Name) + len(f.Value) + 4
	}
	b := append(make(json.RawMessage, 0, size), '{')
	put := func(name []byte, value json.RawMessage) {
		if value == nil {
			return
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(append(append(b, name...), ':'), value...)
	}
	for _, m := range members {
		value := m.Value
		for _, f := range fields {
			if f.Name == m.Name {
				value = f.Value
			}
		}
		name := m.quoted
		if name == nil {
			name = Quote(m.Name)
		}
		put(name, value)
	}
	for _, f := range fields {
		if _, there := Find(members, f.Name); !there {
			put(Quote(f.Name), f.Value)
		}
	}
	return append(b, '}')
}

// EditMeta is [Edit] on the _meta of params or of a result. A _meta that becomes
// empty goes.
func EditMeta(params json.RawMessage, fields ...Field) json.RawMessage {
	old, there := At(params, "_meta")
	if string(old.Value) == "null" { // as some write what they leave out
		old.Value = nil
	}
	meta := Edit(old.Value, fields...)
	switch empty := string(meta) == "{}"; {
	case empty && (old.Value == nil || string(meta) == string(Edit(old.Value))):
		return params // as it was
	case empty:
		return Edit(params, Field{Name: "_meta"})
	case there:
		return Splice(params, old.Start, old.End, meta)
	}
	return Edit(params, Field{"_meta", meta})
}

// header returns the headers that mirror a modern request (2026-07-28, streamable
// HTTP, request metadata). mirror gives those of a tool's parameters; nil: none.
func header(method string, params json.RawMessage, mirror func(tool string, arguments json.RawMessage) http.Header) http.Header {
	h := http.Header{}
	h.Set("Mcp-Method", method)
	key := map[string]string{"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}[method]
	if key == "" {
		return h
	}
	at, _ := At(params, key)
	name, ok := String(at.Value)
	if !ok {
		return h
	}
	h.Set("Mcp-Name", HeaderValue(name))
	if method == "tools/call" && mirror != nil {
		arguments, _ := At(params, "arguments")
		maps.Copy(h, mirror(name, arguments.Value))
	}
	return h
}

const (
	encodedBegin = "=?base64?"
	encodedEnd   = "?="
)

// HeaderValue encodes a text as the value of a header that mirrors it
// (2026-07-28, streamable HTTP, value encoding).
func HeaderValue(s string) string {
	encoded := strings.HasPrefix(s, encodedBegin) && strings.HasSuffix(s, encodedEnd)
	plain := strings.TrimSpace(s) == s && !encoded
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] >= ' ' && s[i] <= '~' || s[i] == '\t'
	}
	if plain {
		return s
	}
	return encodedBegin + base64.StdEncoding.EncodeToString([]byte(s)) + encodedEnd
}
