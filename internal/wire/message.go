package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// Error codes of JSON-RPC 2.0 section 5.1.
const (
	CodeParse          = -32700
	CodeInvalidRequest = -32600
	CodeMethodNotFound = -32601
	CodeInvalidParams  = -32602
	CodeInternal       = -32603
)

// Message is one JSON-RPC 2.0 message as raw bytes. Every field is a sub-slice
// of Raw, so a Message is as good as long as Raw is left alone. It may be read from
// several goroutines; [Message.WithID] alone may write to it.
type Message struct {
	Raw    []byte
	ID     json.RawMessage // nil when the message has none
	Method string
	Params json.RawMessage
	Result json.RawMessage
	Error  json.RawMessage
	// Mark is that of the call on whose stream the message came, see [WithMark].
	Mark any

	idStart, idEnd int // where the id's value stands in Raw; 0, 0 when there is none
	body           int // where that of the result or error does

	// roomy holds Raw, at its end, and what may be written before it, when the
	// memory is this message's own.
	roomy []byte
	pool  *pool // where roomy comes from, if that is where it goes to
}

// Release lets the memory of a message be used for another. Nothing of the message,
// nor what [Message.WithID] has returned, may be used afterwards. Of a message that
// does not own its memory, and of the zero one, it does nothing.
func (m Message) Release() {
	if m.pool != nil {
		m.pool.put(m.roomy)
	}
}

// IsRequest reports a message with a method and an id.
func (m Message) IsRequest() bool { return m.Method != "" && m.ID != nil }

// IsNotification reports a message with a method and no id.
func (m Message) IsNotification() bool { return m.Method != "" && m.ID == nil }

// IsResponse reports a result or an error.
func (m Message) IsResponse() bool { return m.Method == "" }

// WithID returns the bytes of the response m with its id replaced and all else
// untouched. An error response may come without an id; it gets one. A message that
// came over HTTP gives its own memory for that, so that a large result is not
// copied: it is for one caller, and what m says besides its result or error is void
// afterwards.
func (m Message) WithID(id json.RawMessage) []byte {
	room := len(m.roomy) - len(m.Raw)
	if start := room - (len(id) - (m.idEnd - m.idStart)); room > 0 && start >= 0 && m.idEnd > 0 && m.idEnd <= m.body {
		out := m.roomy[start:]
		copy(out, m.Raw[:m.idStart])
		copy(out[m.idStart:], id)
		return out
	}
	if m.idEnd == 0 {
		open := bytes.IndexByte(m.Raw, '{') + 1
		return Splice(m.Raw, open, open, append(append([]byte(`"id":`), id...), ','))
	}
	return Splice(m.Raw, m.idStart, m.idEnd, id)
}

// Error is a JSON-RPC error object. ID is the id to answer with, nil for null.
type Error struct {
	Code    int
	Message string
	Data    json.RawMessage
	ID      json.RawMessage
}

func (e *Error) Error() string { return fmt.Sprintf("%s (JSON-RPC error %d)", e.Message, e.Code) }

// Known names, compared without case to find keys that a case-blind peer would
// read as them.
var (
	envelopeNames = []string{"jsonrpc", "id", "method", "params", "result", "error"}
	paramsNames   = []string{
		"_meta", "name", "arguments", "task", "uri", "cursor", "level", "ref", "argument", "context", "protocolVersion",
		"capabilities", "clientInfo", "requestId", "reason", "progressToken", "progress", "total", "message",
		"inputResponses", "requestState", "notifications", "taskId",
	}
)

// ParseStrict reads one message from a host. The error is an [*Error] ready to
// be sent: with the id of the message where that is beyond doubt, else null.
//
// Besides [Strict] it refuses, in the envelope and in params, a key that equals
// a known one but for its case: some upstreams read keys case-blindly, so a
// judge that does not would see another message than they do.
func ParseStrict(raw []byte) (Message, error) {
	if bad := Strict(raw); bad != nil {
		code := CodeInvalidRequest
		if depth(raw) <= MaxDepth && Lenient(raw) != nil {
			code = CodeParse
		}
		return Message{}, &Error{Code: code, Message: "Invalid JSON: " + bad.Error(), ID: findID(raw)}
	}
	m, members, err := parse(raw)
	if err == nil {
		err = strictNames(m, members)
	}
	if err != nil {
		return Message{}, &Error{Code: CodeInvalidRequest, Message: "Invalid JSON-RPC message: " + err.Error(), ID: findID(raw)}
	}
	return m, nil
}

func strictNames(m Message, members []Member) error {
	if err := exactCase(members, envelopeNames); err != nil {
		return err
	}
	if m.Params == nil {
		return nil
	}
	params, err := Members(m.Params)
	if err == nil {
		err = exactCase(params, paramsNames)
	}
	if err != nil {
		return fmt.Errorf("params: %w", err)
	}
	return nil
}

func exactCase(members []Member, known []string) error {
	for _, m := range members {
		for _, k := range known {
			if m.Name != k && strings.EqualFold(m.Name, k) {
				return fmt.Errorf("the key %q differs from %q only in case", m.Name, k)
			}
		}
	}
	return nil
}

// ParseLenient reads one message from an upstream: its envelope must be a
// JSON-RPC message without doubt, what the envelope carries is passed on as it
// came. After an error the Message holds the id if that alone was readable.
func ParseLenient(raw []byte) (Message, error) {
	m, _, err := parse(raw)
	return m, err
}

// blank is the white space of JSON.
const blank = " \t\r\n"

// room is how many bytes are kept free before a message, for a longer id.
const room = 64

func parse(raw []byte) (Message, []Member, error) {
	// What stands around a message is no part of it: some peers take it for the beginning
	// of another one.
	raw = bytes.Trim(raw, blank)
	members, err := Members(raw)
	if err != nil {
		return Message{}, nil, err
	}
	m := Message{Raw: raw}
	refuse := func(format string, args ...any) (Message, []Member, error) {
		return m, members, fmt.Errorf(format, args...)
	}
	for _, f := range members {
		switch f.Name {
		case "id":
			m.idStart, m.idEnd = f.Start, f.End
			switch KindOf(f.Value) {
			case "a string", "a number":
				m.ID = f.Value
			case "null":
			default:
				return refuse("id must be a string or a number, not %s", KindOf(f.Value))
			}
		case "method":
			s, ok := String(f.Value)
			if !ok || s == "" {
				return refuse("method must be a non-empty string")
			}
			m.Method = s
		case "params":
			m.Params = f.Value
		case "result":
			m.Result, m.body = f.Value, f.Start
		case "error":
			m.Error, m.body = f.Value, f.Start
		}
	}
	if v, ok := Find(members, "jsonrpc"); !ok || string(v.Value) != `"2.0"` {
		return refuse(`"jsonrpc" must be "2.0"`)
	}
	switch {
	case m.Method != "" && (m.Result != nil || m.Error != nil):
		return refuse("a message has either a method or a result, not both")
	case m.Method != "" && m.idEnd > 0 && m.ID == nil:
		return refuse("the id of a request must not be null")
	case m.Method == "" && m.Result == nil && m.Error == nil:
		return refuse("neither method, result nor error")
	case m.Result != nil && m.Error != nil:
		return refuse("both result and error")
	case m.Error != nil && KindOf(m.Error) != "an object":
		return refuse("the error is %s, not an object", KindOf(m.Error))
	case m.Result != nil && m.ID == nil:
		return refuse("a result without an id")
	}
	return m, members, nil
}

// IsBatch reports whether raw is a JSON-RPC batch (an array).
func IsBatch(raw []byte) bool { return KindOf(raw) == "an array" }

// IDKey returns a map key for an id: equal for ids that are the same JSON value,
// different for 1 and "1".
func IDKey(id json.RawMessage) string {
	if s, ok := String(id); ok {
		return "s" + s
	}
	return "n" + string(bytes.TrimSpace(id))
}

// Request encodes a request; params may be nil.
func Request(id json.RawMessage, method string, params json.RawMessage) []byte {
	b := make([]byte, 0, len(id)+len(method)+len(params)+48)
	b = append(b, `{"jsonrpc":"2.0","id":`...)
	b = append(b, id...)
	b = append(b, `,"method":`...)
	b = append(b, Quote(method)...)
	return closeWith(b, "params", params)
}

// Notification encodes a notification; params may be nil.
func Notification(method string, params json.RawMessage) []byte {
	b := make([]byte, 0, len(method)+len(params)+40)
	b = append(b, `{"jsonrpc":"2.0","method":`...)
	b = append(b, Quote(method)...)
	return closeWith(b, "params", params)
}

func closeWith(b []byte, name string, value json.RawMessage) []byte {
	if value != nil {
		b = append(b, `,"`...)
		b = append(b, name...)
		b = append(b, `":`...)
		b = append(b, value...)
	}
	return append(b, '}')
}

// Result encodes the response that carries result.
func Result(id, result json.RawMessage) []byte {
	b := make([]byte, 0, len(id)+len(result)+40)
	b = append(b, `{"jsonrpc":"2.0","id":`...)
	b = append(b, id...)
	b = append(b, `,"result":`...)
	b = append(b, result...)
	return append(b, '}')
}

// Failure encodes the response that carries e, with e.ID or null.
func Failure(e *Error) []byte {
	id := e.ID
	if id == nil {
		id = json.RawMessage("null")
	}
	b := append([]byte(`{"jsonrpc":"2.0","id":`), id...)
	b = fmt.Appendf(b, `,"error":{"code":%d,"message":%s`, e.Code, Quote(e.Message))
	b = closeWith(b, "data", e.Data)
	return append(b, '}')
}

// ErrorOf decodes the error member of a response for haldir's own use; what
// the host gets are the original bytes.
func ErrorOf(m Message) *Error {
	e := &Error{ID: m.ID}
	members, err := Members(m.Error)
	if err != nil {
		e.Code, e.Message = CodeInternal, "malformed error object"
		return e
	}
	if v, ok := Find(members, "code"); ok {
		_ = json.Unmarshal(v.Value, &e.Code) // a code that is no int stays 0
	}
	if v, ok := Find(members, "message"); ok {
		e.Message, _ = String(v.Value)
	}
	if v, ok := Find(members, "data"); ok {
		e.Data = v.Value
	}
	return e
}
