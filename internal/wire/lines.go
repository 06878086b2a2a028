package wire

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// DefaultMaxMessage is the largest message accepted from a peer, in bytes.
const DefaultMaxMessage = 32 << 20

// TooLargeError reports a message over the size limit. The message was read to
// its end and dropped; the next one can be read.
type TooLargeError struct {
	Limit int
	ID    json.RawMessage // the id of the dropped message, nil if it could not be told
	// Request tells that the message has a method.
	Request bool
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("message larger than the limit of %d bytes", e.Limit)
}

// LineReader reads newline-delimited messages. It is for one goroutine.
type LineReader struct {
	r     *bufio.Reader
	limit int
}

// NewLineReader reads from r and refuses lines over limit bytes; a limit of 0
// means [DefaultMaxMessage].
func NewLineReader(r io.Reader, limit int) *LineReader {
	if limit <= 0 {
		limit = DefaultMaxMessage
	}
	return &LineReader{r: bufio.NewReaderSize(r, 64<<10), limit: limit}
}

// Next returns the next non-empty line without its line break; the slice is the
// caller's. A last line without a line break counts as a line. The error is
// io.EOF at the end, a [*TooLargeError] for a line that was skipped, or the
// reader's own.
func (l *LineReader) Next() ([]byte, error) {
	for {
		line, err := l.line()
		if err != nil {
			return nil, err
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return line, nil
		}
	}
}

func (l *LineReader) line() ([]byte, error) {
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		if len(line)+len(part) > l.limit+len("\r\n") {
			return nil, l.skip(line, part, err)
		}
		line = append(line, part...)
		switch {
		case err == nil, errors.Is(err, io.EOF) && len(line) > 0:
			line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
			if len(line) > l.limit {
				find := idFinder{limit: len(line)}
				find.write(line)
				return nil, &TooLargeError{Limit: l.limit, ID: find.id(), Request: find.method}
			}
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull):
		default:
			return nil, err
		}
	}
}

// skip reads the rest of a line that is too long, keeping nothing but its id.
func (l *LineReader) skip(head, part []byte, err error) error {
	find := idFinder{limit: maxIDLen}
	find.write(head)
	find.write(part)
	for errors.Is(err, bufio.ErrBufferFull) {
		part, err = l.r.ReadSlice('\n')
		find.write(part)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return &TooLargeError{Limit: l.limit, ID: find.id(), Request: find.method}
}

// idFinder finds the top-level "id" of a JSON object that passes by in pieces,
// in constant memory, so that even a request too large to read is answered by
// its id instead of leaving its sender waiting.
type idFinder struct {
	depth   int
	inStr   bool
	escaped bool
	isKey   bool   // the string being read, at depth 1, is a key
	wantKey bool   // at depth 1 the next string is a key
	key     []byte // the last key read at depth 1
	value   []byte // the id's bytes
	taking  bool   // the bytes of the id's value are passing by
	found   int
	method  bool // there is a "method"
	jsonrpc bool // there is a "jsonrpc"
	outcome bool // there is a "result" or an "error"
	other   bool // there is a key that no response has
	begun   bool
	ended   bool // the object is closed
	limit   int  // bytes of an id
	foreign bool // not one object, or the id is no scalar
}

// maxKeyLen is more than any spelling of "id" or "method" has.
const maxKeyLen = 64

// maxIDLen is the longest id that is kept of a message too large to read.
const maxIDLen = 256

func (f *idFinder) write(p []byte) {
	for _, c := range p {
		f.step(c)
	}
}

func (f *idFinder) step(c byte) {
	if !f.begun || f.ended {
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			return
		case c != '{' || f.ended:
			f.foreign = true
		}
		f.begun = true
	}
	if f.taking && (f.inStr || c != ',' && c != '}') {
		f.value = append(f.value, c)
		if len(f.value) > f.limit || !f.inStr && (c == '{' || c == '[') {
			f.foreign = true
			f.taking = false
		}
	}
	if f.inStr {
		switch {
		case f.escaped:
			f.escaped = false
		case c == '\\':
			f.escaped = true
		case c == '"':
			f.inStr = false
			f.isKey = false
			return
		}
		if f.isKey && len(f.key) <= maxKeyLen {
			f.key = append(f.key, c)
		}
		return
	}
	switch c {
	case '"':
		f.inStr = true
		if f.depth == 1 && f.wantKey {
			f.isKey, f.wantKey, f.key = true, false, f.key[:0]
		}
	case '{', '[':
		f.depth++
		f.wantKey = f.depth == 1
	case '}', ']':
		f.depth--
		f.taking = false
		f.ended = f.depth == 0
	case ',':
		if f.depth == 1 {
			f.wantKey, f.taking = true, false
		}
	case ':':
		if f.depth == 1 {
			f.member()
		}
	}
}

// member notes the key whose value is about to come.
func (f *idFinder) member() {
	switch {
	case f.keyIs("id"):
		f.taking = true
		f.value = f.value[:0]
		f.found++
	case f.keyIs("jsonrpc"):
		f.jsonrpc = true
	case f.keyIs("method"):
		f.method = true
	case f.keyIs("result"), f.keyIs("error"):
		f.outcome = true
	default:
		f.other = true
	}
}

// keyIs reads escapes, by which a key can be spelt in other ways.
func (f *idFinder) keyIs(name string) bool {
	if bytes.IndexByte(f.key, '\\') < 0 {
		return string(f.key) == name
	}
	s, ok := String(append(append([]byte{'"'}, f.key...), '"'))
	return ok && s == name
}

// findID returns the id of a message that cannot be read, if it has exactly one
// and that is beyond doubt.
func findID(raw []byte) json.RawMessage {
	f := idFinder{limit: len(raw)}
	f.write(raw)
	return f.id()
}

// id returns the id if exactly one was seen and it is a string or a number.
func (f *idFinder) id() json.RawMessage {
	id := bytes.TrimSpace(f.value)
	if f.foreign || f.found != 1 || Strict(id) != nil {
		return nil
	}
	if k := KindOf(id); k != "a string" && k != "a number" {
		return nil
	}
	return id
}

// LineWriter writes messages to a stream, one a line, in the order of the calls, a
// small one in one Write. It is safe for concurrent use. After a failed Write every
// later call returns the same error: half a message may be out, and what
// follows it could not be understood.
type LineWriter struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
	err error
}

// NewLineWriter writes to w.
func NewLineWriter(w io.Writer) *LineWriter { return &LineWriter{w: w} }

// large is from where on a message is not copied to be written with its line break.
const large = 16 << 10

// Write sends one message. It blocks while the peer does not read, which is what
// slows a fast upstream down to a slow host.
func (l *LineWriter) Write(msg []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	msg = OneLine(msg)
	var err error
	if len(msg) < large {
		l.buf = append(append(l.buf[:0], msg...), '\n')
		_, err = l.w.Write(l.buf)
	} else if _, err = l.w.Write(msg); err == nil {
		_, err = l.w.Write([]byte{'\n'})
	}
	if err != nil {
		l.err = fmt.Errorf("write to peer: %w", err)
	}
	return l.err
}
