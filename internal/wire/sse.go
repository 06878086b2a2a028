package wire

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"time"
)

// Event is one server-sent event (WHATWG HTML section 9.2).
type Event struct {
	ID    string // the last event id in force, "" if none
	Type  string // "" means "message"
	Data  []byte // the caller's
	Retry time.Duration

	roomy []byte // holds Data at its end, if there is room before it
}

// EventReader reads server-sent events. It is for one goroutine.
type EventReader struct {
	r      *bufio.Reader
	limit  int
	id     string
	first  bool
	skipLF bool // the last line ended in \r: a \n that follows belongs to it
	pool   *pool
}

// NewEventReader reads from r and refuses an event whose data exceeds limit
// bytes; 0 means [DefaultMaxMessage].
func NewEventReader(r io.Reader, limit int) *EventReader {
	if limit <= 0 {
		limit = DefaultMaxMessage
	}
	return &EventReader{r: bufio.NewReaderSize(r, 16<<10), limit: limit, first: true}
}

// Next returns the next event that has data, an id or a retry time. At the end
// of the stream it returns io.EOF and drops an event without its closing empty
// line, as the standard demands. A [*TooLargeError] ends the stream.
func (e *EventReader) Next() (Event, error) {
	var ev Event
	hasData, any := false, false
	for {
		whole, err := e.line(len(ev.Data))
		if err != nil {
			return Event{}, err
		}
		line := whole[min(room, len(whole)):]
		if len(line) == 0 {
			if !any {
				ev = Event{} // a type without data goes with its event
				continue
			}
			ev.ID = e.id
			return ev, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "data":
			if hasData {
				ev.Data, ev.roomy = append(append(ev.Data, '\n'), value...), nil
			} else {
				ev.Data, ev.roomy = value, whole
			}
			hasData, any = true, true
			if len(ev.Data) > e.limit {
				return Event{}, &TooLargeError{Limit: e.limit}
			}
		case "event":
			ev.Type = string(value)
		case "id":
			if bytes.IndexByte(value, 0) < 0 {
				e.id, any = string(value), true
			}
		case "retry":
			if ms, err := strconv.ParseUint(string(value), 10, 31); err == nil {
				ev.Retry, any = time.Duration(ms)*time.Millisecond, true
			}
		}
	}
}

// line reads up to a line break: \n, \r\n or \r. The slice is the caller's; the
// line stands in it after room bytes, an empty one is nil.
func (e *EventReader) line(have int) ([]byte, error) {
	var line []byte
	for {
		c, err := e.r.ReadByte()
		if err != nil {
			return nil, err
		}
		if c == '\n' && e.skipLF {
			e.skipLF = false
			continue
		}
		e.skipLF = false
		if c != '\n' && c != '\r' {
			if err := e.r.UnreadByte(); err != nil {
				return nil, err
			}
			if line, err = e.chunk(line); err != nil {
				return nil, err
			}
			if mark := []byte("\ufeff"); e.first && len(line)-room >= len(mark) {
				e.first = false
				if bytes.HasPrefix(line[room:], mark) {
					line = append(line[:room], line[room+len(mark):]...)
				}
			}
			if have+len(line)-room > e.limit+len("data: ") {
				return nil, &TooLargeError{Limit: e.limit}
			}
			continue
		}
		e.skipLF = c == '\r' // waiting for the \n here could hold an event back
		e.first = false
		return line, nil
	}
}

// chunk appends what is buffered up to the next line break.
func (e *EventReader) chunk(line []byte) ([]byte, error) {
	buf, err := e.r.Peek(e.r.Buffered())
	if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
		return nil, err
	}
	if i := bytes.IndexByte(buf, '\n'); i >= 0 {
		buf = buf[:i]
	}
	if i := bytes.IndexByte(buf, '\r'); i >= 0 {
		buf = buf[:i]
	}
	if line == nil {
		line = make([]byte, room, room+len(buf))
	}
	if cap(line)-len(line) < len(buf) {
		line = e.pool.grow(line, more(len(line))+len(buf)) // large ones come in many parts
	}
	line = append(line, buf...)
	_, err = e.r.Discard(len(buf))
	return line, err
}
