package mcptest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/config"
)

// ScriptVar holds the [Script] of a hostile server that runs as a child.
const ScriptVar = "HALDIR_HOSTILE"

// Script says how a hostile server misbehaves. The zero value is a server that
// behaves, with the tools of [Verbs]: what a call makes it do is in the call.
type Script struct {
	// Marker is whatever a test looks for in the environments of /proc: the
	// server and all that it starts carry it.
	Marker string `json:",omitempty"`

	Start     string          `json:",omitempty"` // "hang": it answers nothing; "exit": it dies at once; "deaf": it does not even read
	LastWords string          `json:",omitempty"` // said on stderr by Start "exit"
	Noise     int             `json:",omitempty"` // so many lines that are no JSON come before anything else
	Deaf      int             `json:",omitempty"` // after so many messages it does not read any more
	Chatter   string          `json:",omitempty"` // once deaf, it sends this line for ever
	Version   json.RawMessage `json:",omitempty"` // of the protocol; default "2025-11-25"
	Tools     json.RawMessage `json:",omitempty"` // the array of tools/list; default those of Verbs
	Cursor    string          `json:",omitempty"` // of tools/list: "endless", "repeat", "empty" or "number"
	ListHangs int             `json:",omitempty"` // only so many tools/list are answered
	Restless  bool            `json:",omitempty"` // each tools/list is followed by another list_changed, with other tools

	IgnoreTerm bool `json:",omitempty"` // and the end of its input
	// Grandchild is a process that holds its stdout and stderr: "group", in its group;
	// "session", in a session of its own; "orphan", so, and its parent has ended.
	Grandchild string `json:",omitempty"`

	SSE bool `json:",omitempty"` // over HTTP: answer by a stream of events
	// Stateful: over HTTP it gives out a session id; see [HTTP.Forget].
	Stateful bool `json:",omitempty"`
}

// Verbs are the tools of a server whose script names no others:
//
//	echo {text}            answers the text
//	slow {ms,text}         the same, later
//	hang {}                does not answer
//	die {words,code}       says words on stderr and dies
//	raw {lines}            writes the lines (base64, see [Lines]); $ID becomes the id of the call
//	big {bytes}            answers a text of so many bytes
//	line {bytes}           writes a line of so many bytes that is no JSON, then answers
//	flood {what,n,token}   sends n times: progress, ping, list_changed, noise or stderr; then answers
//	ask {method,n}         sends n requests to the client and answers with what came back
//	retool {tools,n}       has other tools and says so n times, then answers
//	seen {}                answers with a [Seen]
var Verbs = []string{"echo", "slow", "hang", "die", "raw", "big", "line", "flood", "ask", "retool", "seen"}

// Seen is what a hostile server knows of itself.
type Seen struct {
	PID      int      `json:"pid"`
	Env      []string `json:"env"`
	Messages []string `json:"messages"` // every message, as it came
}

// Tool is a definition as a test needs it.
func Tool(name string) json.RawMessage {
	return json.RawMessage(`{"name":` + quote(name) + `,"inputSchema":{"type":"object"}}`)
}

// Tools makes the array of a tools/list.
func Tools(defs ...json.RawMessage) json.RawMessage {
	return json.RawMessage("[" + string(bytes.Join(rawBytes(defs), []byte(","))) + "]")
}

func rawBytes(in []json.RawMessage) (out [][]byte) {
	for _, r := range in {
		out = append(out, r)
	}
	return out
}

// Lines makes the arguments of the verb raw.
func Lines(lines ...string) string {
	var coded []string
	for _, l := range lines {
		coded = append(coded, base64.StdEncoding.EncodeToString([]byte(l)))
	}
	return quote(map[string][]string{"lines": coded})
}

// quote encodes what can be encoded.
func quote(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// Main is for a TestMain: in a process that was started as a hostile server it
// runs the server and does not return.
func Main() {
	text, ok := os.LookupEnv(ScriptVar)
	if !ok {
		return
	}
	var s Script
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	runChild(s)
	os.Exit(0)
}

// Child returns the config of an upstream that is this test binary, run as a
// hostile server.
func (s Script) Child(t testing.TB, name string) config.Upstream {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return s.Config(exe, name)
}

// Config is the same for the test binary at exe.
func (s Script) Config(exe, name string) config.Upstream {
	return config.Upstream{Name: name, Command: exe, Env: []string{ScriptVar + "=" + quote(s)}, Connect: config.DefaultConnect}
}

// YAML returns the same as [Script.Child] as an entry of upstreams in
// haldir.yaml, with more keys if given.
func (s Script) YAML(t testing.TB, name string, more ...string) string {
	t.Helper()
	up := s.Child(t, name)
	return fmt.Sprintf("  - {name: %s, command: %s, env: %s%s}\n", name, quote(up.Command), quote(up.Env), strings.Join(append([]string{""}, more...), ", "))
}

// runChild is a hostile server on stdin and stdout.
func runChild(s Script) {
	if s.IgnoreTerm {
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	}
	if s.Grandchild != "" {
		bear(s)
	}
	out := &lines{w: os.Stdout}
	for i := range s.Noise {
		out.write(fmt.Appendf(nil, "starting up, step %d of %d ...", i+1, s.Noise))
	}
	switch s.Start {
	case "exit":
		fmt.Fprintln(os.Stderr, s.LastWords)
		os.Exit(3)
	case "deaf":
		forever()
	}
	srv := newServer(s, out.write)
	srv.exit = os.Exit
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if err != nil {
			break
		}
		if s.Start != "hang" {
			srv.take(context.Background(), line, out.write)
		}
		if n == s.Deaf {
			for s.Chatter != "" {
				out.write([]byte(s.Chatter))
			}
			forever()
		}
	}
	if s.IgnoreTerm {
		forever()
	}
}

// forever sleeps: a select without cases would be a deadlock to the runtime.
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

// bear starts a process that keeps stdout and stderr open.
func bear(s Script) {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(exe)
	if s.Grandchild == "orphan" {
		cmd.Env = append(os.Environ(), ScriptVar+"="+quote(Script{Marker: s.Marker, Grandchild: "session", Start: "exit"}))
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		_ = cmd.Run() // it has ended, as it should
		return
	}
	cmd.Env = append(os.Environ(), ScriptVar+"="+quote(Script{Marker: s.Marker, Start: "deaf", IgnoreTerm: true}))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if s.Grandchild == "session" {
		ownSession(cmd)
	}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
}

// lines writes one message at a time.
type lines struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lines) write(line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = l.w.Write(append(slices.Clip(line), '\n'))
}

// server is the part that stdio and HTTP have in common.
type server struct {
	script Script
	tell   func([]byte) // sends what answers nothing
	exit   func(code int)

	mu    sync.Mutex
	tools json.RawMessage
	lists int
	seen  []string
	asked map[string]chan string
}

func newServer(s Script, tell func([]byte)) *server {
	srv := &server{script: s, tell: tell, tools: s.Tools, asked: map[string]chan string{}}
	if srv.tools == nil {
		var defs []json.RawMessage
		for _, v := range Verbs {
			defs = append(defs, Tool(v))
		}
		srv.tools = Tools(defs...)
	}
	return srv
}

type message struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params struct {
		Name      string          `json:"name"`
		Arguments json.RawMessage `json:"arguments"`
		Cursor    string          `json:"cursor"`
		Meta      struct {
			Token json.RawMessage `json:"progressToken"`
		} `json:"_meta"`
	} `json:"params"`
}

// arguments of all verbs.
type arguments struct {
	Text   string          `json:"text"`
	MS     int             `json:"ms"`
	Words  string          `json:"words"`
	Code   int             `json:"code"`
	Lines  []string        `json:"lines"`
	Bytes  int             `json:"bytes"`
	What   string          `json:"what"`
	N      int             `json:"n"`
	Token  json.RawMessage `json:"token"`
	Method string          `json:"method"`
	Tools  json.RawMessage `json:"tools"`
}

// take handles a message; say writes the answer, and whatever else belongs to
// the stream of this request. It returns at once; done is closed when the
// request is over.
func (s *server) take(ctx context.Context, line []byte, say func([]byte)) (done chan struct{}) {
	done = make(chan struct{})
	s.mu.Lock()
	s.seen = append(s.seen, strings.TrimSpace(string(line)))
	s.mu.Unlock()
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		close(done)
		return done
	}
	if m.Method == "" {
		s.mu.Lock()
		ch := s.asked[string(m.ID)]
		s.mu.Unlock()
		if ch != nil {
			ch <- strings.TrimSpace(string(line))
		}
	}
	if m.Method == "" || m.ID == nil {
		close(done)
		return done
	}
	switch m.Method {
	case "initialize":
		version := string(s.script.Version)
		if version == "" {
			version = `"2025-11-25"`
		}
		say(result(m.ID, `{"protocolVersion":`+version+`,"capabilities":{"tools":{"listChanged":true}},"serverInfo":{"name":"hostile","version":"6.6.6"}}`))
	case "tools/list":
		if !s.list(m, say) {
			go func() {
				defer close(done)
				<-ctx.Done()
			}()
			return done
		}
	case "tools/call":
		go func() {
			defer close(done)
			s.call(ctx, m, say)
		}()
		return done
	default:
		say(result(m.ID, "{}"))
	}
	close(done)
	return done
}

func result(id json.RawMessage, result string) []byte {
	return []byte(`{"jsonrpc":"2.0","id":` + string(id) + `,"result":` + result + `}`)
}

// Text is the result of a tool that answers with a text.
func Text(text string) string {
	return `{"content":[{"type":"text","text":` + quote(text) + `}]}`
}

// list reports whether it answered.
func (s *server) list(m message, say func([]byte)) bool {
	s.mu.Lock()
	s.lists++
	n, tools := s.lists, string(s.tools)
	s.mu.Unlock()
	if s.script.ListHangs > 0 && n > s.script.ListHangs {
		return false
	}
	next := ""
	switch s.script.Cursor {
	case "endless":
		next = `,"nextCursor":"page ` + strconv.Itoa(n) + `"`
		if n > 1 {
			tools = "[]"
		}
	case "repeat":
		next = `,"nextCursor":"again"`
		if n > 1 {
			tools = "[]"
		}
	case "empty":
		next = `,"nextCursor":""`
	case "number":
		next = `,"nextCursor":7`
	}
	if s.script.Restless {
		tools = string(Tools(Tool("tool-" + strconv.Itoa(n))))
	}
	say(result(m.ID, `{"tools":`+tools+next+`}`))
	if s.script.Restless {
		s.tell(listChanged)
	}
	return true
}

var listChanged = []byte(`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`)

func (s *server) call(ctx context.Context, m message, say func([]byte)) {
	var a arguments
	if len(m.Params.Arguments) > 0 {
		if err := json.Unmarshal(m.Params.Arguments, &a); err != nil {
			say([]byte(`{"jsonrpc":"2.0","id":` + string(m.ID) + `,"error":{"code":-32602,"message":"bad arguments"}}`))
			return
		}
	}
	answer := func(text string) { say(result(m.ID, Text(text))) }
	switch m.Params.Name {
	case "slow":
		select {
		case <-time.After(time.Duration(a.MS) * time.Millisecond):
			answer(a.Text)
		case <-ctx.Done():
		}
	case "hang":
		<-ctx.Done()
	case "die":
		if s.exit == nil { // over HTTP: the connection dies
			panic(errAbort)
		}
		fmt.Fprintln(os.Stderr, a.Words)
		s.exit(a.Code)
	case "raw":
		for _, l := range a.Lines {
			text, err := base64.StdEncoding.DecodeString(l)
			if err != nil {
				panic(err)
			}
			say(bytes.ReplaceAll(text, []byte("$ID"), m.ID))
		}
	case "big":
		answer(strings.Repeat("x", a.Bytes))
	case "line":
		s.long(a.Bytes, say)
		answer("said a lot")
	case "flood":
		s.flood(m, a, say)
		answer("flooded")
	case "ask":
		answer(s.ask(ctx, a))
	case "retool":
		s.mu.Lock()
		s.tools = a.Tools
		s.mu.Unlock()
		for range a.N {
			s.tell(listChanged)
		}
		answer("retooled")
	case "seen":
		answer(quote(s.report()))
	default: // echo, and whatever the script lists
		answer(a.Text)
	}
}

func (s *server) report() Seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Seen{PID: os.Getpid(), Env: os.Environ(), Messages: append([]string(nil), s.seen...)}
}

// long writes a line of n bytes, in pieces where it can.
func (s *server) long(n int, say func([]byte)) {
	if s.exit == nil {
		say(bytes.Repeat([]byte("x"), n))
		return
	}
	piece := bytes.Repeat([]byte("x"), 1<<20)
	for ; n > len(piece); n -= len(piece) {
		if _, err := os.Stdout.Write(piece); err != nil {
			return
		}
	}
	say(piece[:n])
}

func (s *server) flood(m message, a arguments, say func([]byte)) {
	token := a.Token
	if token == nil {
		token = m.Params.Meta.Token
	}
	for i := range a.N {
		switch a.What {
		case "progress":
			say(fmt.Appendf(nil, `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s,"progress":%d}}`, token, i))
		case "ping":
			say(fmt.Appendf(nil, `{"jsonrpc":"2.0","id":"ping-%d","method":"ping"}`, i))
		case "list_changed":
			say(listChanged)
		case "noise":
			say(fmt.Appendf(nil, "debug: step %d \x1b[31mof many\x1b[0m", i))
		case "stderr":
			fmt.Fprintf(os.Stderr, "step %d \x1b[31mof many\x1b[0m\n", i)
		case "stderr-line": // one line, however long
			fmt.Fprintf(os.Stderr, "%d,", i)
		}
	}
	if a.What == "stderr-line" {
		fmt.Fprintln(os.Stderr)
	}
}

// ask sends requests to the client and waits for all answers.
func (s *server) ask(ctx context.Context, a arguments) string {
	var answers []string
	for i := range max(a.N, 1) {
		id := strconv.Quote(fmt.Sprintf("ask-%s-%d", a.Method, i))
		ch := make(chan string, 1)
		s.mu.Lock()
		s.asked[id] = ch
		s.mu.Unlock()
		s.tell([]byte(`{"jsonrpc":"2.0","id":` + id + `,"method":"` + a.Method + `","params":{}}`))
		select {
		case answer := <-ch:
			answers = append(answers, answer)
		case <-ctx.Done():
			return "nobody answered"
		case <-time.After(20 * time.Second):
			return "nobody answered"
		}
	}
	return strings.Join(answers, "\n")
}
