package mcptest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds every wait for a message. It only ends tests that hang; no
// test passes or fails by how long something takes.
const patience = 60 * time.Second

// Message is one JSON-RPC message with its members as the bytes that came.
type Message struct {
	Raw    string
	Method string
	ID     json.RawMessage
	Params json.RawMessage
	Result json.RawMessage
	Error  json.RawMessage
}

// Outcome is the part of a response that a proxy must not touch.
func (m Message) Outcome() string {
	if m.Error != nil {
		return "error: " + string(m.Error)
	}
	return "result: " + string(m.Result)
}

// readMessage is encoding/json's reading, not that of the product.
func readMessage(raw []byte) (Message, error) {
	var m struct {
		JSONRPC string          `json:"jsonrpc"`
		Method  string          `json:"method"`
		ID      json.RawMessage `json:"id"`
		Params  json.RawMessage `json:"params"`
		Result  json.RawMessage `json:"result"`
		Error   json.RawMessage `json:"error"`
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if err := dec.Decode(&m); err != nil {
		return Message{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Message{}, errors.New("more than one JSON value")
	}
	if m.JSONRPC != "2.0" {
		return Message{}, errors.New("no JSON-RPC 2.0 message")
	}
	return Message{string(raw), m.Method, m.ID, m.Params, m.Result, m.Error}, nil
}

// request writes a request; empty params are left out.
func request(id, method, params string) string {
	if params == "" {
		return fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":%q}`, id, method)
	}
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":%q,"params":%s}`, id, method, params)
}

// initializeParams are those of a client that can do nothing.
func initializeParams(version string) string {
	return fmt.Sprintf(`{"protocolVersion":%q,"capabilities":{},"clientInfo":{"name":"mcptest","version":"1"}}`, version)
}

// Revision is the protocol revision that tests speak where it does not matter.
const Revision = "2025-11-25"

// CallParams makes the params of tools/call; arguments and meta are JSON, empty
// ones are left out.
func CallParams(tool, arguments, meta string) string {
	name, err := json.Marshal(tool)
	if err != nil {
		panic(err) // a string
	}
	p := `{"name":` + string(name)
	if arguments != "" {
		p += `,"arguments":` + arguments
	}
	if meta != "" {
		p += `,"_meta":` + meta
	}
	return p + "}"
}

// Session is a raw conversation with a process that speaks MCP on stdio. Every
// line it writes to stdout must be one JSON-RPC message; anything else fails the
// test. The process is killed at the end of the test.
//
// Its methods are for the goroutine of the test.
type Session struct {
	t      testing.TB
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr *Buffer
	lastID int
	exit   chan error // the process's end, after all its output was read

	mu   sync.Mutex
	seen []Message
	bad  []string
	done bool
	news chan struct{} // closed and replaced with every message
}

// Buffer keeps what is written to it, such as a log. It is safe for concurrent use.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements [io.Writer].
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String returns all that was written.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Start starts the process. The conversation begins with whatever the test
// sends first.
func Start(t testing.TB, cmd *exec.Cmd) *Session {
	t.Helper()
	s := &Session{t: t, cmd: cmd, stderr: &Buffer{}, exit: make(chan error, 1), news: make(chan struct{})}
	cmd.Stderr = s.stderr
	cmd.WaitDelay = 5 * time.Second
	var err error
	if s.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", strings.Join(cmd.Args, " "), err)
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		s.read(stdout)
		s.exit <- cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = s.stdin.Close()    // what a launcher has started outlives it, and ends by this
		_ = cmd.Process.Kill() // it may be gone already
		<-finished
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, b := range s.bad {
			t.Errorf("%s wrote a line that is no message: %s", cmd.Args[0], b)
		}
		if t.Failed() {
			t.Logf("stderr of %s:\n%s", strings.Join(cmd.Args, " "), tail(s.stderr.String(), 4000))
		}
	})
	return s
}

func (s *Session) read(r io.Reader) {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		s.mu.Lock()
		if len(line) > 0 {
			m, bad := readMessage(line)
			switch {
			case bad != nil:
				s.bad = append(s.bad, fmt.Sprintf("%v: %.300q", bad, line))
			case err != nil:
				s.bad = append(s.bad, fmt.Sprintf("its last line is not whole: %.300q", line))
			}
			if bad == nil {
				m.Raw = strings.TrimRight(m.Raw, "\r\n")
				s.seen = append(s.seen, m)
			}
		}
		s.done = err != nil
		close(s.news)
		s.news = make(chan struct{})
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Send writes one line.
func (s *Session) Send(line string) {
	s.t.Helper()
	if _, err := io.WriteString(s.stdin, line+"\n"); err != nil {
		s.t.Fatalf("send %.200s: %v\nstderr: %s", line, err, tail(s.stderr.String(), 4000))
	}
}

// Post sends a request and returns its id, to [Session.Wait] for.
func (s *Session) Post(method, params string) string {
	s.t.Helper()
	s.lastID++
	id := strconv.Itoa(s.lastID)
	s.Send(request(id, method, params))
	return id
}

// Wait returns the response with the given id, which is written as in the
// request.
func (s *Session) Wait(id string) Message {
	s.t.Helper()
	return s.Await("the answer to "+id, func(m Message) bool { return m.Method == "" && string(m.ID) == id })
}

// Await returns the first message, from the beginning of the conversation, that
// is wanted.
func (s *Session) Await(what string, wanted func(Message) bool) Message {
	s.t.Helper()
	limit := time.After(patience)
	from := 0
	for {
		s.mu.Lock()
		seen, done, news := s.seen, s.done, s.news
		s.mu.Unlock()
		for ; from < len(seen); from++ {
			if wanted(seen[from]) {
				return seen[from]
			}
		}
		if done {
			s.t.Fatalf("%s ended before %s came", s.cmd.Args[0], what)
		}
		select {
		case <-news:
		case <-limit:
			s.t.Fatalf("%s did not come", what)
		}
	}
}

// Ask sends a request and returns its response.
func (s *Session) Ask(method, params string) Message {
	s.t.Helper()
	return s.Wait(s.Post(method, params))
}

// Notify sends a notification.
func (s *Session) Notify(method string) {
	s.t.Helper()
	s.Send(fmt.Sprintf(`{"jsonrpc":"2.0","method":%q}`, method))
}

// Initialize shakes hands as a client without capabilities and returns the
// result.
func (s *Session) Initialize(version string) Message {
	s.t.Helper()
	m := s.Ask("initialize", initializeParams(version))
	s.Notify("notifications/initialized")
	return m
}

// Seen returns all messages so far, in their order.
func (s *Session) Seen() []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[:len(s.seen):len(s.seen)]
}

// Stderr returns what the process has written to stderr.
func (s *Session) Stderr() string { return s.stderr.String() }

// Pid returns the id of the process.
func (s *Session) Pid() int { return s.cmd.Process.Pid }

// CloseInput ends the input of the process; its output is read on.
func (s *Session) CloseInput() {
	s.t.Helper()
	if err := s.stdin.Close(); err != nil {
		s.t.Fatal(err)
	}
}

// Kill ends the process with SIGKILL and waits for it.
func (s *Session) Kill() {
	s.t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	s.Exit()
}

// Exit waits for the end of the process and returns its status.
func (s *Session) Exit() int {
	s.t.Helper()
	select {
	case err := <-s.exit:
		s.exit <- err
		return s.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		s.t.Fatalf("%s does not end", s.cmd.Args[0])
		return -1
	}
}

// End ends the input and waits for the end of the process, which must be clean.
func (s *Session) End() {
	s.t.Helper()
	s.CloseInput()
	if code := s.Exit(); code != 0 {
		s.t.Errorf("%s: exit status %d at the end of its input", s.cmd.Args[0], code)
	}
}

// Exchange asks and returns the response with the notifications/progress of the
// call's token that came before it.
func (s *Session) Exchange(method, params, token string) (Message, []string) {
	s.t.Helper()
	m := s.Ask(method, params)
	var before []string
	late := false
	for _, n := range s.Seen() {
		switch {
		case n.Raw == m.Raw:
			late = true
		case token != "" && n.Method == "notifications/progress" && progressToken(n) == token:
			if late {
				s.t.Errorf("progress came after the response: %s", n.Raw)
			}
			before = append(before, string(n.Params))
		}
	}
	return m, before
}

func progressToken(m Message) string {
	var p struct {
		Token json.RawMessage `json:"progressToken"`
	}
	if json.Unmarshal(m.Params, &p) != nil {
		return ""
	}
	return string(p.Token)
}

// Remote is a raw conversation with a server over streamable HTTP, as far as a
// client without capabilities has it: requests, each with its own stream, and
// after Listen the server's. Its methods are for the goroutine of the test.
type Remote struct {
	t       testing.TB
	url     string
	session string
	version string
	lastID  int
	listens bool

	mu      sync.Mutex
	pushed  []string // notifications/progress that came on the GET stream
	changed time.Time
}

// Dial returns a conversation with the server at url; nothing is sent yet.
func Dial(t testing.TB, url string) *Remote { return &Remote{t: t, url: url} }

// Initialize shakes hands.
func (r *Remote) Initialize(version string) Message {
	r.t.Helper()
	m, _ := r.Exchange("initialize", initializeParams(version), "")
	r.version = version
	r.post(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	return m
}

// Ask sends a request and returns its response.
func (r *Remote) Ask(method, params string) Message {
	r.t.Helper()
	m, _ := r.Exchange(method, params, "")
	return m
}

// Exchange asks and returns the response with the notifications/progress of the
// call's token that came before it.
func (r *Remote) Exchange(method, params, token string) (Message, []string) {
	r.t.Helper()
	r.lastID++
	id := strconv.Itoa(r.lastID)
	var before []string
	answers := r.post(request(id, method, params))
	if r.listens && token != "" {
		before = r.take(token)
	}
	for _, raw := range answers {
		m, err := readMessage(raw)
		switch {
		case err != nil:
			r.t.Fatalf("%s: %v: %.300q", method, err, raw)
		case m.Method == "" && string(m.ID) == id:
			return m, before
		case m.Method == "" && m.Error != nil: // without an id that could be read
			return m, before
		case token != "" && m.Method == "notifications/progress" && progressToken(m) == token:
			before = append(before, string(m.Params))
		}
	}
	r.t.Fatalf("%s: there was no answer", method)
	return Message{}, nil
}

// Listen opens the GET stream, where some servers send what belongs to a call.
// It returns when the server has accepted it.
func (r *Remote) Listen() {
	r.t.Helper()
	resp := r.do(r.t.Context(), http.MethodGet, "")
	if resp.StatusCode != http.StatusOK {
		r.t.Fatalf("GET: HTTP %d", resp.StatusCode)
	}
	r.listens = true
	done := make(chan struct{})
	go func() {
		defer close(done)
		in := bufio.NewReader(resp.Body)
		for {
			line, err := in.ReadString('\n')
			if data, ok := strings.CutPrefix(strings.TrimSpace(line), "data:"); ok {
				if m, err := readMessage([]byte(data)); err == nil && m.Method == "notifications/progress" {
					r.mu.Lock()
					r.pushed, r.changed = append(r.pushed, m.Raw), time.Now()
					r.mu.Unlock()
				}
			}
			if err != nil {
				return
			}
		}
	}()
	r.t.Cleanup(func() { _ = resp.Body.Close(); <-done })
}

// take returns the progress that came for a token on the GET stream. Nothing
// there says that it was the last one, so it waits for a moment of silence.
func (r *Remote) take(token string) []string {
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		r.mu.Lock()
		quiet := time.Since(began) > 200*time.Millisecond && time.Since(r.changed) > 200*time.Millisecond
		pushed := r.pushed
		if quiet {
			r.pushed = nil
		}
		r.mu.Unlock()
		if !quiet {
			continue
		}
		var out []string
		for _, raw := range pushed {
			if m, err := readMessage([]byte(raw)); err == nil && progressToken(m) == token {
				out = append(out, string(m.Params))
			}
		}
		return out
	}
}

// do sends one HTTP request.
func (r *Remote) do(ctx context.Context, method, body string) *http.Response {
	r.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, r.url, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json, text/event-stream")
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.session != "" {
		req.Header.Set("Mcp-Session-Id", r.session)
	}
	if r.version != "" {
		req.Header.Set("Mcp-Protocol-Version", r.version)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp
}

// post sends a message and returns all that came back for it.
func (r *Remote) post(msg string) [][]byte {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	resp := r.do(ctx, http.MethodPost, msg)
	defer func() { _ = resp.Body.Close() }()
	if id := resp.Header.Get("Mcp-Session-Id"); id != "" {
		r.session = id
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		if body = bytes.TrimSpace(body); len(body) == 0 {
			return nil
		}
		return [][]byte{body}
	}
	var out [][]byte
	for event := range strings.SplitSeq(strings.ReplaceAll(string(body), "\r\n", "\n"), "\n\n") {
		var data []string
		for line := range strings.SplitSeq(event, "\n") {
			if d, ok := strings.CutPrefix(line, "data:"); ok {
				data = append(data, strings.TrimPrefix(d, " "))
			}
		}
		if text := strings.Join(data, "\n"); text != "" {
			out = append(out, []byte(text))
		}
	}
	return out
}
