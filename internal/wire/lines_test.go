package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// readLines reads all of r: a line as it is, a dropped one as "too large" with
// its id.
func readLines(t testing.TB, r io.Reader, limit int) []string {
	t.Helper()
	var got []string
	for lines := wire.NewLineReader(r, limit); ; {
		line, err := lines.Next()
		var large *wire.TooLargeError
		switch {
		case errors.As(err, &large):
			if line != nil {
				t.Errorf("a line beside the error: %q", line)
			}
			if large.Limit != limit {
				t.Errorf("the error names limit %d, want %d", large.Limit, limit)
			}
			got = append(got, "too large, id "+string(large.ID))
		case errors.Is(err, io.EOF):
			return got
		case err != nil:
			t.Fatalf("Next: %v", err)
		default:
			got = append(got, string(line))
		}
	}
}

func TestLineReaderSplitsLinesHoweverTheyEnd(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want []string
	}{
		"nothing":                           {"", nil},
		"one line":                          {"a\n", []string{"a"}},
		"CRLF":                              {"a\r\nb\r\n", []string{"a", "b"}},
		"both endings mixed":                {"a\r\nb\nc\r\n", []string{"a", "b", "c"}},
		"empty lines":                       {"\n\r\n\n  \n\t\r\na\n\n\nb\n\n", []string{"a", "b"}},
		"no break after the last line":      {"a\nb", []string{"a", "b"}},
		"CR but no LF after the last line":  {"a\r\nb\r", []string{"a", "b"}},
		"only line breaks":                  {"\n\n\r\n", nil},
		"white space around the message":    {" \t {} \t \n", []string{"{}"}},
		"a CR inside is no line break":      {"{\r}\n", []string{"{\r}"}},
		"other line separators of Unicode":  {"{\"a\":\"\u2028\u2029\u0085\"}\n", []string{"{\"a\":\"\u2028\u2029\u0085\"}"}},
		"zero bytes":                        {"a\x00b\nc\n", []string{"a\x00b", "c"}},
		"longer than any buffer in between": {strings.Repeat("x", 200_000) + "\nb\n", []string{strings.Repeat("x", 200_000), "b"}},
	} {
		for how, r := range readers(c.in) {
			if diff := cmp.Diff(c.want, readLines(t, r, 1<<20)); diff != "" {
				t.Errorf("%s, %s: %s", name, how, diff)
			}
		}
	}
}

// readers gives in through readers of all manners that io.Reader allows.
func readers(in string) map[string]io.Reader {
	m := map[string]io.Reader{
		"whole":              strings.NewReader(in),
		"halves":             iotest.HalfReader(strings.NewReader(in)),
		"data with the EOF":  iotest.DataErrReader(strings.NewReader(in)),
		"halves and the EOF": iotest.DataErrReader(iotest.HalfReader(strings.NewReader(in))),
	}
	if len(in) < 10_000 {
		m["byte by byte"] = iotest.OneByteReader(strings.NewReader(in))
	}
	return m
}

func TestLineReaderKeepsTheLimitToTheByte(t *testing.T) {
	for _, limit := range []int{1, 2, 5, 100, 64<<10 - 2, 64<<10 - 1, 64 << 10, 64<<10 + 1, 128 << 10} {
		fits, over := strings.Repeat("x", limit), strings.Repeat("x", limit+1)
		for name, c := range map[string]struct {
			in   string
			want []string
		}{
			"a line of the limit":                       {fits + "\nz\n", []string{fits, "z"}},
			"a line of the limit, CRLF":                 {fits + "\r\nz\n", []string{fits, "z"}},
			"a last line of the limit":                  {"z\n" + fits, []string{"z", fits}},
			"a line one byte over":                      {over + "\nz\n", []string{"too large, id ", "z"}},
			"a line one byte over, CRLF":                {over + "\r\nz\n", []string{"too large, id ", "z"}},
			"a last line one byte over, no line break":  {"z\n" + over, []string{"z", "too large, id "}},
			"a last line two bytes over, no line break": {"z\n" + over + "x", []string{"z", "too large, id "}},
			"three in a row":                            {over + "\n" + over + "\n" + over + "\nz\n", []string{"too large, id ", "too large, id ", "too large, id ", "z"}},
			"between two that fit":                      {fits + "\n" + over + over + "\n" + fits + "\n", []string{fits, "too large, id ", fits}},
		} {
			if diff := cmp.Diff(brief(c.want), brief(readLines(t, strings.NewReader(c.in), limit))); diff != "" {
				t.Errorf("limit %d, %s: %s", limit, name, diff)
			}
		}
	}
}

// brief names runs of x by their length.
func brief(lines []string) []string {
	out := make([]string, 0, len(lines))
	for _, l := range lines {
		if strings.Trim(l, "x") == "" {
			l = fmt.Sprintf("x times %d", len(l))
		}
		out = append(out, l)
	}
	return out
}

func TestLineReaderWithoutALimitTakesTheDefault(t *testing.T) {
	t.Parallel()
	r := wire.NewLineReader(io.MultiReader(&generated{n: wire.DefaultMaxMessage + 1}, strings.NewReader("\nz\n")), 0)
	_, err := r.Next()
	var large *wire.TooLargeError
	if !errors.As(err, &large) || large.Limit != wire.DefaultMaxMessage {
		t.Error(err)
	}
	if line, err := r.Next(); string(line) != "z" {
		t.Errorf("then %q, %v", line, err)
	}
}

// generated reads as n bytes x that nobody holds.
type generated struct{ n int }

func (g *generated) Read(p []byte) (int, error) {
	if g.n == 0 {
		return 0, io.EOF
	}
	n := min(len(p), g.n)
	for i := range p[:n] {
		p[i] = 'x'
	}
	g.n -= n
	return n, nil
}

// A peer that sends 100 MiB in one line must cost no memory, get its answer
// under its id wherever the id stands, and lose no message that follows.
func TestALineOf100MiBTakesNoMemoryAndLosesNoOther(t *testing.T) {
	const limit = 256 << 10
	for name, c := range map[string]struct{ head, tail, id string }{
		"id first":                  {`{"jsonrpc":"2.0","id":9007199254740993,"result":"`, `"}`, `9007199254740993`},
		"id last":                   {`{"jsonrpc":"2.0","result":{"id":5,"s":"`, `"},"id":"late"}`, `"late"`},
		"no id":                     {`{"jsonrpc":"2.0","method":"x","params":{"id":1,"s":"`, `"}}`, ``},
		"the id itself is too long": {`{"jsonrpc":"2.0","result":{},"id":"`, `"}`, ``},
		"a name that is too long":   {`{"jsonrpc":"2.0","`, `":1,"id":3}`, `3`},
		"no JSON":                   {``, ``, ``},
	} {
		t.Run(name, func(t *testing.T) {
			size := 16 << 20
			switch { // each byte is looked at, under -race for long
			case raceEnabled:
				size = 3 << 20
			case name == "id last":
				size = 100 << 20
			}
			in := io.MultiReader(strings.NewReader("{}\n"+c.head), &generated{n: size}, strings.NewReader(c.tail+"\r\n[1]\n"))
			r := wire.NewLineReader(in, limit)
			if line, err := r.Next(); string(line) != "{}" {
				t.Fatalf("before: %q, %v", line, err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := r.Next()
			runtime.ReadMemStats(&after)
			var large *wire.TooLargeError
			if !errors.As(err, &large) {
				t.Fatalf("Next: %v", err)
			}
			if string(large.ID) != c.id {
				t.Errorf("id %q, want %q", clip(large.ID), c.id)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 8*limit {
				t.Errorf("%d MiB allocated for a line that is dropped at a limit of %d KiB", used>>20, limit>>10)
			}
			if line, err := r.Next(); string(line) != "[1]" {
				t.Errorf("after: %q, %v", line, err)
			}
		})
	}
}

// What is over the limit can only be answered by its id. A wrong id is worse
// than none: it would answer another request.
func TestTheIDOfADroppedLineIsFoundOrNoneIsGiven(t *testing.T) {
	long := strings.Repeat("y", 300)
	for name, c := range map[string]struct{ in, id string }{
		"a number":                      {`{"id":1}`, `1`},
		"a float":                       {`{"id":1.0}`, `1.0`},
		"an exponent":                   {`{"id":-1e3,"a":0}`, `-1e3`},
		"a string":                      {`{"id":"x"}`, `"x"`},
		"the empty string":              {`{"id":""}`, `""`},
		"white space around":            {"{ \t\"id\" \r:\t 1 \t, \"a\":0}", `1`},
		"a string of delimiters":        {`{"id":"},{:[]\"\\","a":1}`, `"},{:[]\"\\"`},
		"a string that ends in \\":      {`{"id":"\\","id2":3}`, `"\\"`},
		"behind nested ids":             {`{"a":{"id":1,"b":[{"id":2}]},"c":[{"id":3},"id"],"id":4}`, `4`},
		"before nested ids":             {`{"id":4,"a":{"id":1,"b":[{"id":2}]},"c":[{"id":3}]}`, `4`},
		"only nested ids":               {`{"a":{"id":1},"b":[{"id":2}]}`, ``},
		"id as a value":                 {`{"a":"id","b":5}`, ``},
		"id as a value, then a number":  {`{"a":"id","id":5}`, `5`},
		"a name that ends in id":        {`{"xid":1,"id ":2," id":3,"ids":4,"i":5}`, ``},
		"a name with an escaped quote":  {`{"\"id":1,"a\"id":2,"id\"":3}`, ``},
		"another case":                  {`{"ID":1,"Id":2}`, ``},
		"null":                          {`{"id":null}`, ``},
		"true":                          {`{"id":true}`, ``},
		"an object":                     {`{"id":{"id":1}}`, ``},
		"an array":                      {`{"id":[1]}`, ``},
		"twice":                         {`{"id":1,"id":2}`, ``},
		"twice the same":                {`{"id":1,"a":0,"id":1}`, ``},
		"twice, once by an escape":      {`{"id":1,"\u0069d":2}`, ``},
		"twice, once by an escape, 2":   {`{"\u0069\u0064":1,"id":2}`, ``},
		"two messages":                  {`{"id":1}{"id":2}`, ``},
		"a batch":                       {`[{"id":1}]`, ``},
		"a batch behind a message":      {`{"id":1}[`, ``},
		"no JSON":                       {`hello "id":1`, ``},
		"a value behind the id":         {`{"id":1 2}`, ``},
		"a string behind the id":        {`{"id":"a""b"}`, ``},
		"a bad number":                  {`{"id":01}`, ``},
		"a string that is no UTF-8":     {"{\"id\":\"\xff\"}", ``},
		"a very long id":                {`{"id":"` + long + `"}`, ``},
		"a very long name before":       {`{"` + long + `":1,"id":2}`, `2`},
		"a very long name ending in id": {`{"` + long + `id":1}`, ``},
		"a lone surrogate":              {`{"id":"\ud800"}`, ``},
	} {
		t.Run(name, func(t *testing.T) {
			for how, in := range map[string]string{
				"alone":                c.in + "\n",
				"without a line break": c.in,
				"CRLF":                 c.in + "\r\n",
				"behind white space":   strings.Repeat(" ", 100_000) + c.in + "\n",
			} {
				if diff := cmp.Diff([]string{"too large, id " + c.id}, readLines(t, strings.NewReader(in), 4)); diff != "" {
					t.Errorf("%s: %s", how, diff)
				}
			}
		})
	}
}

func TestLineReaderReturnsTheReadersOwnError(t *testing.T) {
	broken := errors.New("broken")
	for name, in := range map[string]string{"at once": "", "in a line": "abc", "in a line that is too long": strings.Repeat("x", 100)} {
		r := wire.NewLineReader(io.MultiReader(strings.NewReader("ok\n"+in), iotest.ErrReader(broken)), 10)
		if line, err := r.Next(); string(line) != "ok" {
			t.Errorf("%s: %q, %v", name, line, err)
		}
		// half a message is none
		if line, err := r.Next(); !errors.Is(err, broken) || line != nil {
			t.Errorf("%s: then %q, %v", name, line, err)
		}
	}
}

// Messages are handed on while the next ones are read.
func TestLineReaderGivesItsLinesAway(t *testing.T) {
	r := wire.NewLineReader(strings.NewReader(strings.Repeat("aaaa\nbbbb\n", 10)), 100)
	var got [][]byte
	for {
		line, err := r.Next()
		if err != nil {
			break
		}
		got = append(got, line)
	}
	for i, line := range got {
		if want := []string{"aaaa", "bbbb"}[i%2]; string(line) != want {
			t.Fatalf("line %d is now %q, was %q", i, line, want)
		}
	}
}

// jsonSpace is the white space of RFC 8259.
const jsonSpace = " \t\r\n"

// FuzzLines holds the reader to a naive one that sees the whole input, in any
// chunking, and the finder of ids to encoding/json.
func FuzzLines(f *testing.F) {
	for _, seed := range []string{
		"", "\n", "a", "a\n", "a\r\nb", "\r\n\r\n", " \n{}\n", "aaaaaaaaaaaaaaaaaaaa\nb\n", "aaaaaa", "aaaaaaa", "aaaaa\r\n",
		`{"id":1,"a":{"id":2},"b":[{"id":3}]}` + "\n{}\n", `{"a":"\"id\":5","id":"x,}y"}`, `{"\u0069d":1,"aaaaaaaaaaaaaaa":2}`,
		`{"id":1,"id":2,"aaaaaaaaaaaaaaa":2}`, `[{"id":1}]` + "\n", `{"id":` + "\xff" + `}`, `{"id":{"a":1},"b":"c"}`, `{"id" : 1e3 , "x":"y"}`,
		`{"a":{},"id":"\\\""}`, "\u00a0\u00a0\u00a0\nxx\n", `{"id":null,"x":"yyyyyy"}`,
	} {
		f.Add([]byte(seed), uint8(4), uint8(1))
		f.Add([]byte(seed), uint8(63), uint8(7))
	}
	f.Add([]byte("\r\n\r\n\f\n\r\r"), uint8(0), uint8('M')) // white space of exactly the limit and a CR
	f.Fuzz(func(t *testing.T, in []byte, limitSeed, chunk uint8) {
		limit := int(limitSeed) + 1
		before := bytes.Clone(in)
		r := wire.NewLineReader(&chunked{in: in, size: int(chunk)%17 + 1}, limit)
		rest := in
		for len(rest) > 0 {
			var line []byte
			if i := bytes.IndexByte(rest, '\n'); i >= 0 {
				line, rest = rest[:i], rest[i+1:]
			} else {
				line, rest = rest, nil
			}
			bare := bytes.TrimSuffix(line, []byte("\r"))
			blank := len(bytes.TrimSpace(line)) == 0
			if blank && len(bare) <= limit {
				continue
			}
			got, err := r.Next()
			var large *wire.TooLargeError
			switch {
			case errors.As(err, &large):
				if len(bare) <= limit {
					t.Fatalf("a line of %d bytes is refused at limit %d: %q", len(bare), limit, line)
				}
				checkFoundID(t, line, large.ID)
			case err != nil:
				t.Fatalf("%v for %q", err, line)
			case len(bare) > limit:
				t.Fatalf("a line of %d bytes passes limit %d: %q", len(bare), limit, line)
			// which characters beside JSON's white space are trimmed is left open
			case string(bytes.TrimSpace(got)) != string(bytes.TrimSpace(line)) || len(bytes.Trim(got, jsonSpace)) != len(got):
				t.Fatalf("%q becomes %q", line, got)
			}
		}
		if got, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Fatalf("at the end: %q, %v", got, err)
		}
		if !bytes.Equal(in, before) {
			t.Fatal("the input was changed")
		}
	})
}

// checkFoundID compares the id found in passing with what encoding/json sees.
func checkFoundID(t *testing.T, line []byte, id json.RawMessage) {
	t.Helper()
	if id != nil && (wire.Strict(id) != nil || id[0] != '"' && id[0] != '-' && (id[0] < '0' || id[0] > '9')) {
		t.Fatalf("the id of %q is %q, no string or number", line, id)
	}
	names, values, ok := topLevel(line)
	if !ok {
		if json.Valid(line) && id != nil {
			t.Fatalf("%q is no object and has id %q", line, id)
		}
		return
	}
	var ids []json.RawMessage
	for i, n := range names {
		if n == "id" {
			ids = append(ids, values[i])
		}
	}
	switch {
	case id != nil && (len(ids) != 1 || !bytes.Equal(ids[0], id)):
		t.Fatalf("the id of %q is %q, encoding/json sees %q", line, id, ids)
	case id == nil && len(ids) == 1 && len(ids[0]) < 100 && bytes.Contains(line, []byte(`"id"`)) && bytes.Count(line, []byte(` `)) < 100 &&
		wire.Strict(ids[0]) == nil && (ids[0][0] == '"' || ids[0][0] == '-' || ids[0][0] >= '0' && ids[0][0] <= '9') && !bytes.ContainsAny(line, `\`):
		t.Fatalf("the id of %q is not found; encoding/json sees %s", line, ids[0])
	}
}

// chunked reads in at most size bytes at a time.
type chunked struct {
	in   []byte
	size int
}

func (c *chunked) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.size)], c.in)
	c.in = c.in[n:]
	return n, nil
}

// The finder works byte by byte on any legal document.
func TestTheIDOfADroppedLineAgreesWithARealParserOnAnyDocument(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var doc string
		if rapid.Bool().Draw(rt, "object with an id") {
			id := rapid.SampledFrom([]string{`1`, `"a"`, `-1.5e3`, `"}\"{"`, `null`, `{"id":1}`}).Draw(rt, "id")
			parts := []string{`"id":` + id, `"a":` + jsonValue(rt, 3), `"b" : ` + jsonValue(rt, 3)}
			doc = "{" + strings.Join(rapid.Permutation(parts).Draw(rt, "order"), " , ") + "}"
		} else {
			doc = jsonValue(rt, 4)
		}
		doc = strings.NewReplacer("\n", " ", "\r", " ").Replace(doc)
		if len(doc) < 5 {
			return
		}
		_, err := wire.NewLineReader(iotest.OneByteReader(strings.NewReader(doc+"\n")), 3).Next()
		var large *wire.TooLargeError
		if !errors.As(err, &large) {
			rt.Fatalf("%q: %v", doc, err)
		}
		names, values, _ := topLevel([]byte(doc))
		want := ""
		for i, n := range names {
			if n == "id" && values[i][0] != 'n' && values[i][0] != '{' {
				want = string(values[i])
			}
		}
		if string(large.ID) != want {
			rt.Fatalf("the id of %q is %q, want %q", doc, large.ID, want)
		}
	})
}

// counting records each Write.
type counting struct {
	mu     sync.Mutex
	writes []string
	fail   func(n int) error
}

func (c *counting) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		if err := c.fail(len(c.writes)); err != nil {
			return len(p) / 2, err
		}
	}
	c.writes = append(c.writes, string(p))
	return len(p), nil
}

func TestLineWriterWritesEachMessageOnOneLine(t *testing.T) {
	var out counting
	w := wire.NewLineWriter(&out)
	for _, msg := range []string{"{}", `{"a":1}`, "{\n\"a\"\r\n:\n1}", strings.Repeat("x", 3<<20), "y", ""} {
		if err := w.Write([]byte(msg)); err != nil {
			t.Fatal(err)
		}
	}
	// A large one is not copied to be written together with its line break.
	want := []string{"{}\n", "{\"a\":1}\n", "{ \"a\"  : 1}\n", strings.Repeat("x", 3<<20), "\n", "y\n", "\n"}
	if diff := cmp.Diff(want, out.writes); diff != "" {
		t.Error(clip([]byte(diff)))
	}
}

func TestLineWriterDoesNotChangeWhatItWrites(t *testing.T) {
	msg := []byte("{\n\"a\":1}")
	before := bytes.Clone(msg)
	if err := wire.NewLineWriter(io.Discard).Write(msg); err != nil || !bytes.Equal(msg, before) {
		t.Errorf("the message is now %q, %v", msg, err)
	}
}

// Writers of very different sizes at once, into a pipe that delivers in small
// pieces: each line must be whole, and one goroutine's lines in its order.
func TestConcurrentWritersNeverInterleave(t *testing.T) {
	const writers, each = 16, 200
	r, out := io.Pipe()
	w := wire.NewLineWriter(out)
	var wg sync.WaitGroup
	for g := range writers {
		wg.Go(func() {
			for i := range each {
				head := fmt.Sprintf(`{"g":%d,"i":%d,"pad":"`, g, i)
				pad := strings.Repeat(string(rune('a'+g)), (g*i*37)%25000) // over what is written apart from its line break
				if err := w.Write([]byte(head + pad + "\"\n}")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { wg.Wait(); _ = out.Close() }()
	next := map[int]int{}
	lines := wire.NewLineReader(iotest.HalfReader(r), 1<<20)
	for n := 0; ; n++ {
		line, err := lines.Next()
		if errors.Is(err, io.EOF) {
			if n != writers*each {
				t.Errorf("%d lines, want %d", n, writers*each)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		var m struct {
			G, I int
			Pad  string
		}
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("line %d is torn: %v: %q", n, err, clip(line))
		}
		if want := strings.Repeat(string(rune('a'+m.G)), (m.G*m.I*37)%25000); m.Pad != want {
			t.Fatalf("line %d mixes writers: %q", n, clip(line))
		}
		if next[m.G] != m.I {
			t.Fatalf("writer %d's line %d came when %d was due", m.G, m.I, next[m.G])
		}
		next[m.G]++
	}
}

// After half a message nothing can be understood: no later call may write.
func TestAWriteErrorSticks(t *testing.T) {
	broken := errors.New("broken pipe")
	out := counting{fail: func(n int) error {
		if n == 2 {
			return broken
		}
		return nil
	}}
	w := wire.NewLineWriter(&out)
	for i := range 6 {
		err := w.Write([]byte(strconv.Itoa(i)))
		if want := i >= 2; errors.Is(err, broken) != want {
			t.Errorf("write %d: %v", i, err)
		}
		out.mu.Lock()
		if i == 2 {
			out.fail = nil // even if the stream has recovered
		}
		out.mu.Unlock()
	}
	if diff := cmp.Diff([]string{"0\n", "1\n"}, out.writes); diff != "" {
		t.Error(diff)
	}
}

// A host that does not read blocks the writers, which is meant; once it is gone
// they must all come back.
func TestWritersBlockedByAPeerThatDoesNotReadComeBackWhenItGoes(t *testing.T) {
	r, out := io.Pipe()
	w := wire.NewLineWriter(out)
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() { errs <- w.Write([]byte("{}")) }()
	}
	select {
	case err := <-errs:
		t.Fatalf("a write returned though nobody reads: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	_ = r.CloseWithError(io.ErrClosedPipe)
	for range cap(errs) {
		if err := receive(t, "a blocked write", errs); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("got %v", err)
		}
	}
}

// A burst of small messages must not keep the memory of one big one.
func TestLineWriterDoesNotKeepTheMemoryOfABigMessage(t *testing.T) {
	w := wire.NewLineWriter(io.Discard)
	before := heapInUse()
	if err := w.Write(bytes.Repeat([]byte("x"), 8<<20)); err != nil {
		t.Fatal(err)
	}
	if after := heapInUse(); after > before+(3<<20) {
		t.Errorf("%d MiB stay in use after a message of 8 MiB", (after-before)>>20)
	}
	runtime.KeepAlive(w)
}
