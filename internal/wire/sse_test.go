package wire_test

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// sameEvents compares data as a whole (byte by byte takes seconds) and takes
// nil for empty.
var sameEvents = cmp.Options{
	cmp.Comparer(bytes.Equal),
	cmpopts.IgnoreUnexported(wire.Event{}),
	cmp.FilterValues(func(a, b []wire.Event) bool { return len(a)+len(b) == 0 }, cmp.Comparer(func(_, _ []wire.Event) bool { return true })),
}

// reference reads a whole event stream at once, line by line as WHATWG HTML
// section 9.2.6 says, in its words where they fit. One thing is haldir's own: an
// event without data is reported if it sets an id or a retry time.
func reference(in []byte) []wire.Event {
	in = bytes.TrimPrefix(in, []byte("\ufeff"))
	var events []wire.Event
	var lastEventID string
	var current wire.Event // the data, event type and reconnection time buffers
	report, dataSeen := false, false
	for {
		i := bytes.IndexAny(in, "\r\n")
		if i < 0 {
			return events // "the incomplete event is not dispatched"
		}
		line := in[:i]
		if bytes.HasPrefix(in[i:], []byte("\r\n")) {
			i++
		}
		in = in[i+1:]
		if len(line) == 0 {
			if report {
				current.ID = lastEventID
				events = append(events, current)
			}
			current, report, dataSeen = wire.Event{}, false, false // all buffers are set to the empty string
			continue
		}
		field, value, _ := strings.Cut(string(line), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			current.Type = value
		case "data":
			if dataSeen {
				current.Data = append(current.Data, '\n')
			}
			current.Data = append(current.Data, value...)
			dataSeen, report = true, true
		case "id":
			if !strings.Contains(value, "\x00") {
				lastEventID, report = value, true
			}
		case "retry":
			if value != "" && strings.Trim(value, "0123456789") == "" {
				// beyond 31 bits, which is 24 days, it is no time to wait for
				if ms, err := strconv.ParseUint(value, 10, 31); err == nil {
					current.Retry, report = time.Duration(ms)*time.Millisecond, true
				}
			}
		}
	}
}

func readEvents(t testing.TB, r io.Reader, limit int) ([]wire.Event, error) {
	t.Helper()
	var events []wire.Event
	for reader := wire.NewEventReader(r, limit); ; {
		ev, err := reader.Next()
		if err != nil {
			return events, err
		}
		events = append(events, ev)
	}
}

func TestEventReaderReadsStreamsAsTheStandardSays(t *testing.T) {
	type events []wire.Event
	data := func(s string) wire.Event { return wire.Event{Data: []byte(s)} }
	for name, c := range map[string]struct {
		in   string
		want events
	}{
		"nothing":                                  {"", nil},
		"one event":                                {"data: a\n\n", events{data("a")}},
		"CRLF":                                     {"data: a\r\n\r\ndata: b\r\n\r\n", events{data("a"), data("b")}},
		"CR":                                       {"data: a\r\rdata: b\r\r", events{data("a"), data("b")}},
		"all three endings mixed":                  {"data: a\rdata: b\ndata: c\r\n\r\r\ndata: d\n\r", events{data("a\nb\nc"), data("d")}},
		"LF then CR is two line ends":              {"data: a\n\rdata: b\n\r", events{data("a"), data("b")}},
		"several data lines":                       {"data: a\ndata: b\ndata:\ndata: c\n\n", events{data("a\nb\n\nc")}},
		"no space after the colon":                 {"data:a\n\n", events{data("a")}},
		"only the first space goes":                {"data:  a \n\n", events{data(" a ")}},
		"a tab does not go":                        {"data:\ta\n\n", events{data("\ta")}},
		"a colon in the value":                     {"data: a:b: c\n\n", events{data("a:b: c")}},
		"a field without a colon":                  {"data\n\n", events{data("")}},
		"two data fields without a colon":          {"data\ndata\n\n", events{data("\n")}},
		"comments":                                 {": hello\n:\n\ndata: a\n: in between\n\n:data: b\n\n", events{data("a")}},
		"unknown fields":                           {"foo: a\ndata: a\nDATA: b\n data: c\ndata : d\n\n", events{data("a")}},
		"no empty line at the end":                 {"data: a\n\ndata: b\n", events{data("a")}},
		"no line end at the end":                   {"data: a\n\ndata: b", events{data("a")}},
		"a byte order mark":                        {"\ufeffdata: a\n\n", events{data("a")}},
		"two byte order marks":                     {"\ufeff\ufeffdata: a\n\ndata: b\n\n", events{data("b")}},
		"a byte order mark before an empty line":   {"\ufeff\ndata: a\n\n", events{data("a")}},
		"a byte order mark on the second line":     {"\n\ufeffdata: a\n\ndata: b\n\n", events{data("b")}},
		"a byte order mark in the middle":          {"data: \ufeffa\n\n", events{data("\ufeffa")}},
		"empty lines":                              {"\n\n\r\r\n\r\ndata: a\n\n\n\n", events{data("a")}},
		"an event type":                            {"event: x\ndata: a\n\n", events{{Type: "x", Data: []byte("a")}}},
		"an event type after the data":             {"data: a\nevent: x\n\n", events{{Type: "x", Data: []byte("a")}}},
		"two event types":                          {"event: x\nevent: y\ndata: a\n\n", events{{Type: "y", Data: []byte("a")}}},
		"an event type goes with its event":        {"event: x\ndata: a\n\ndata: b\n\n", events{{Type: "x", Data: []byte("a")}, data("b")}},
		"an event type without data goes too":      {"event: ping\n\ndata: a\n\n", events{data("a")}},
		"so does one after a comment":              {": c\nevent: ping\n: c\n\n\ndata: a\n\n", events{data("a")}},
		"an id stays":                              {"id: 1\ndata: a\n\ndata: b\n\n", events{{ID: "1", Data: []byte("a")}, {ID: "1", Data: []byte("b")}}},
		"an id is replaced":                        {"id: 1\nid: 2\ndata: a\n\n", events{{ID: "2", Data: []byte("a")}}},
		"an empty id takes it back":                {"id: 1\ndata: a\n\nid\ndata: b\n\n", events{{ID: "1", Data: []byte("a")}, data("b")}},
		"an id with a zero byte is ignored":        {"id: 1\ndata: a\n\nid: 2\x00\ndata: b\n\n", events{{ID: "1", Data: []byte("a")}, {ID: "1", Data: []byte("b")}}},
		"an id alone (how servers prime a stream)": {"id: 1\n\n", events{{ID: "1"}}},
		"an id and empty data":                     {"id: 1\ndata:\n\n", events{{ID: "1"}}},
		"retry":                                    {"retry: 1500\n\n", events{{Retry: 1500 * time.Millisecond}}},
		"retry with data":                          {"retry:1\ndata: a\n\ndata: b\n\n", events{{Retry: time.Millisecond, Data: []byte("a")}, data("b")}},
		"a retry that is no number":                {"retry: 1s\nretry: -1\nretry: +1\nretry: 1_0\nretry: 0x1\nretry:\nretry: 1.5\nretry:  1\ndata: a\n\n", events{data("a")}},
		"JSON with a carriage return escaped":      {"data: {\"a\":\"\\r\\n\"}\n\n", events{data(`{"a":"\r\n"}`)}},
		"bytes that are no UTF-8":                  {"data: \xff\n\n", events{data("\xff")}},
		"a zero byte":                              {"data: \x00\n\n", events{data("\x00")}},
		"Unicode line separators":                  {"data: \u2028\u0085\v\f\n\n", events{data("\u2028\u0085\v\f")}},
		"longer than any buffer":                   {"data: " + strings.Repeat("x", 100_000) + "\n\ndata: b\n\n", events{data(strings.Repeat("x", 100_000)), data("b")}},
		"many lines":                               {strings.Repeat("data: x\n", 20_000) + "\n", events{data(strings.Repeat("x\n", 19_999) + "x")}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff([]wire.Event(c.want), reference([]byte(c.in)), sameEvents); diff != "" {
				t.Fatalf("the reference is wrong: %s", diff)
			}
			for how, r := range readers(c.in) {
				got, err := readEvents(t, r, 1<<20)
				if !errors.Is(err, io.EOF) {
					t.Errorf("%s: ends with %v", how, err)
				}
				if diff := cmp.Diff([]wire.Event(c.want), got, sameEvents); diff != "" {
					t.Errorf("%s: %s", how, clip([]byte(diff)))
				}
			}
		})
	}
}

// The event must come when its last byte has: a reader that waits for what
// follows a \r holds an answer back for as long as the server is silent.
func TestAnEventIsReturnedBeforeTheNextByteComes(t *testing.T) {
	for _, end := range []string{"\n\n", "\r\r", "\r\n\r\n", "\n\r", "\r\n\r"} {
		r, w := io.Pipe()
		reader := wire.NewEventReader(r, 0)
		for range 3 { // also when the last line end was cut short
			go func() { _, _ = w.Write([]byte("data: a" + end)) }()
			within(t, strconv.Quote(end), func() {
				if ev, err := reader.Next(); err != nil || string(ev.Data) != "a" {
					t.Errorf("%q: %+v, %v", end, ev, err)
				}
			})
		}
		_ = w.Close()
	}
}

func TestEventReaderKeepsTheLimitToTheByte(t *testing.T) {
	const limit = 1000
	x := func(n int) string { return strings.Repeat("x", n) }
	for name, c := range map[string]struct {
		in   string
		fits bool
	}{
		"the limit":                      {"data: " + x(limit) + "\n\n", true},
		"the limit, no space":            {"data:" + x(limit) + "\n\n", true},
		"one over":                       {"data: " + x(limit+1) + "\n\n", false},
		"one over, no space":             {"data:" + x(limit+1) + "\n\n", false},
		"the limit in two lines":         {"data: " + x(limit/2) + "\ndata: " + x(limit/2-1) + "\n\n", true},
		"one over in two lines":          {"data: " + x(limit/2) + "\ndata: " + x(limit/2) + "\n\n", false},
		"one over in two, no space":      {"data:" + x(limit/2) + "\ndata:" + x(limit/2) + "\n\n", false},
		"by empty lines alone":           {strings.Repeat("data:\n", limit+2) + "\n", false},
		"an endless comment":             {":" + x(100*limit) + "\n", false},
		"an endless id":                  {"id:" + x(100*limit) + "\n\n", false},
		"an endless event type":          {"event:" + x(100*limit) + "\ndata: a\n\n", false},
		"endless unterminated data":      {"data: " + x(100*limit), false},
		"comments between, long in all":  {"data: a\n" + strings.Repeat(":"+x(limit/2)+"\n", 10) + "\n", true},
		"many events, over it together":  {strings.Repeat("data: "+x(limit)+"\n\n", 10), true},
		"an id of the limit beside data": {"id: " + x(100) + "\ndata: " + x(limit) + "\n\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			events, err := readEvents(t, strings.NewReader(c.in), limit)
			var large *wire.TooLargeError
			if got := errors.Is(err, io.EOF); got != c.fits {
				t.Errorf("ends with %v", err)
			}
			if !c.fits && (!errors.As(err, &large) || large.Limit != limit) {
				t.Errorf("ends with %v, no TooLargeError of limit %d", err, limit)
			}
			for _, ev := range events {
				if len(ev.Data) > limit {
					t.Errorf("%d bytes of data pass limit %d", len(ev.Data), limit)
				}
			}
		})
	}
}

func TestEventReaderReturnsTheReadersOwnErrorAndHalfAnEventNever(t *testing.T) {
	broken := errors.New("broken")
	for _, in := range []string{"", "data", "data: a", "data: a\n", "data: a\r", ": x"} {
		events, err := readEvents(t, io.MultiReader(strings.NewReader(in), iotest.ErrReader(broken)), 0)
		if !errors.Is(err, broken) || len(events) > 0 {
			t.Errorf("%q: %v, %v", in, events, err)
		}
	}
}

func TestTheDataOfAnEventIsTheCallers(t *testing.T) {
	events, _ := readEvents(t, strings.NewReader(strings.Repeat("id: i\nevent: t\ndata: aaaa\n\nid: k\nevent: u\ndata: bbbb\n\n", 100)), 0)
	for i, ev := range events {
		want := []wire.Event{{ID: "i", Type: "t", Data: []byte("aaaa")}, {ID: "k", Type: "u", Data: []byte("bbbb")}}[i%2]
		if diff := cmp.Diff(want, ev, sameEvents); diff != "" {
			t.Fatalf("event %d: %s", i, diff)
		}
	}
}

// FuzzEvents holds the reader to the reference on any input, in any chunking.
func FuzzEvents(f *testing.F) {
	for i, seed := range []string{
		"", "data: a\n\n", "data: a\r\n\r\nid: 1\rdata: b\r\r", "event: ping\n\ndata: a\n\n", "\ufeffdata: a\n\n", "\ufeff\n\ufeffdata: a\n\n",
		"retry: 10\n\nretry: +1\n\nretry: 99999999999\n\n", "id: \x00\nid: 2\n\nid\n\ndata\n\n", ": c\n:\n\ndata:  x\ndata:\n\n", "data: a\n\r\ndata: b\n\r",
		"event: x\nid: 5\ndata: {\"a\":\n\n", "data: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n\ndata:bbbbbbbbbbbbbbbbb\n\n", "data:aaaaaaaaaaaaaaaaa\n\n", "data\ndata\ndata\n\n",
		"\r", "\r\n", "\n\r", "data: a\r\n\n", "data\r\rdata\n\ndata\r\n\r\n",
	} {
		f.Add([]byte(seed), uint8(i), uint8(16))
	}
	f.Fuzz(func(t *testing.T, in []byte, chunk, small uint8) {
		want := reference(in)
		for how, r := range map[string]io.Reader{
			"whole":             bytes.NewReader(in),
			"byte by byte":      iotest.OneByteReader(bytes.NewReader(in)),
			"in chunks":         &chunked{in: in, size: int(chunk) + 1},
			"data with the EOF": iotest.DataErrReader(&chunked{in: in, size: int(chunk) + 1}),
		} {
			got, err := readEvents(t, r, len(in)+1)
			if !errors.Is(err, io.EOF) {
				t.Fatalf("%s: %q ends with %v", how, in, err)
			}
			if diff := cmp.Diff(want, got, sameEvents); diff != "" {
				t.Fatalf("%s: %q: %s", how, in, diff)
			}
		}
		// under a small limit: the same events up to the first too large one
		limit := int(small) + 1
		got, err := readEvents(t, bytes.NewReader(in), limit)
		var large *wire.TooLargeError
		if !errors.Is(err, io.EOF) && !errors.As(err, &large) {
			t.Fatalf("limit %d: %q ends with %v", limit, in, err)
		}
		if len(got) > len(want) || errors.Is(err, io.EOF) && len(got) != len(want) {
			t.Fatalf("limit %d: %d events of %d from %q", limit, len(got), len(want), in)
		}
		if diff := cmp.Diff(want[:len(got)], got, sameEvents); diff != "" {
			t.Fatalf("limit %d: %q: %s", limit, in, diff)
		}
		for _, ev := range got {
			if len(ev.Data) > limit {
				t.Fatalf("%d bytes of data pass limit %d: %q", len(ev.Data), limit, in)
			}
		}
	})
}
