//go:build unix

package proxy_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
)

// These tests run haldir itself: signals, orphans, environments and memory are
// a process's, not a package's.

// promise is how soon haldir must be gone after a signal, by the issue; slack is
// what a loaded machine may add.
const (
	promise = 400 * time.Millisecond
	slack   = 600 * time.Millisecond
)

var markers atomic.Int64

// marker is a text that only this test's processes have in their environment.
func marker() string { return fmt.Sprintf("haldir-test-%d-%d", os.Getpid(), markers.Add(1)) }

// process is a running haldir serve.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	state  string
	in     *os.File
	out    *os.File
	errs   *os.File
	exited chan struct{}
	err    error

	readOut, readErr sync.Once
	log              mcptest.Buffer
	inbox
}

// world is what a haldir process is started in.
type world struct {
	config string   // the text of haldir.yaml
	state  string   // the state directory; "": a new one
	env    []string // beside what it needs
	path   string   // the config file; "": one with config in it
}

// launch starts haldir serve. Nothing of what it writes is read yet.
func launch(t *testing.T, w world) *process {
	t.Helper()
	bin := mcptest.Build(t)
	dir := t.TempDir()
	p := &process{t: t, exited: make(chan struct{}), inbox: inbox{news: make(chan struct{})}, state: w.state}
	if p.state == "" {
		p.state = filepath.Join(dir, "state")
	}
	path := w.path
	if path == "" {
		path = filepath.Join(dir, "haldir.yaml")
		if err := os.WriteFile(path, []byte("version: 1\n"+w.config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.cmd = exec.Command(bin, "serve", "--config", path, "--state-dir", p.state)
	p.cmd.Dir = dir
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}, w.env...)
	pipe := func() (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		return r, w
	}
	inR, inW := pipe()
	outR, outW := pipe()
	errR, errW := pipe()
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = inR, outW, errW
	p.in, p.out, p.errs = inW, outR, errR
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _, _ = inR.Close(), outW.Close(), errW.Close()
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.exited
		_, _, _ = p.in.Close(), p.out.Close(), p.errs.Close()
	})
	return p
}

// listen begins to read both outputs.
func (p *process) listen() *process {
	p.listenOut()
	p.listenErr()
	return p
}

func (p *process) listenErr() {
	p.readErr.Do(func() { go func() { _, _ = io.Copy(&p.log, p.errs) }() })
}

func (p *process) listenOut() {
	p.readOut.Do(func() {
		go func() {
			r := bufio.NewReaderSize(p.out, 1<<20)
			for {
				line, err := r.ReadString('\n')
				if line != "" {
					p.put(strings.TrimSuffix(line, "\n"))
				}
				if err != nil {
					return
				}
			}
		}()
	})
}

func (p *process) send(lines ...string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, strings.Join(lines, "\n")+"\n"); err != nil {
		p.t.Fatalf("haldir reads no more: %v; its log: %s", err, clip(p.log.String()))
	}
}

func (p *process) ask(line string) string {
	p.t.Helper()
	m, err := wire.ParseLenient([]byte(line))
	if err != nil {
		p.t.Fatal(err)
	}
	p.send(line)
	got := p.wait(patience, hasID(string(m.ID)))
	if got == "" {
		p.t.Fatalf("no answer to %s; the log: %s", clip(line), clip(p.log.String()))
	}
	return got
}

const initializeLine = `{"jsonrpc":"2.0","id":"init","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"host","version":"1"}}}`

// ready shakes hands and waits for the tools of all upstreams that come up.
func (p *process) ready(tools ...string) *process {
	p.t.Helper()
	p.ask(initializeLine)
	p.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		list := p.ask(`{"jsonrpc":"2.0","id":"list","method":"tools/list"}`)
		if !slices.ContainsFunc(tools, func(name string) bool { return !strings.Contains(list, `"`+name+`"`) }) {
			return p
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("tools/list: %s; the log: %s", clip(list), clip(p.log.String()))
		}
	}
}

func (p *process) call(id, name, arguments string) string {
	return `{"jsonrpc":"2.0","id":"` + id + `","method":"tools/call","params":{"name":"` + name + `","arguments":` + arguments + `}}`
}

// end waits for the exit and returns how long it took.
func (p *process) end(d time.Duration, what string) time.Duration {
	p.t.Helper()
	start := time.Now()
	select {
	case <-p.exited:
		return time.Since(start)
	case <-time.After(d):
		p.t.Errorf("%s: haldir still runs after %v", what, d)
		_ = p.cmd.Process.Kill()
		<-p.exited
		return time.Since(start)
	}
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// gone fails the test unless all processes with the marker end. One that was killed needs a
// processor once more to end, which a machine with other work may not have at once.
func gone(t *testing.T, mark string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		return
	}
	var left []int
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if left = mcptest.Processes(mark); len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	for _, pid := range left {
		t.Errorf("an orphan is left: process %d", pid)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// reap ends the processes with a marker when the test does, whatever happens.
func reap(t *testing.T, mark string) {
	t.Cleanup(func() {
		for _, pid := range mcptest.Processes(mark) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
}

// zoo is one child of each kind that is hard to end.
func zoo(t *testing.T, mark string) (config string, names []string) {
	t.Helper()
	hangs := mcptest.Script{Marker: mark, Start: "hang"}
	remote := hangs.NewHTTP(t)
	config = "upstreams:\n" +
		mcptest.Script{Marker: mark, IgnoreTerm: true}.YAML(t, "stubborn") +
		mcptest.Script{Marker: mark, Start: "hang", IgnoreTerm: true}.YAML(t, "mute") +
		mcptest.Script{Marker: mark, Start: "deaf", IgnoreTerm: true}.YAML(t, "deaf") +
		mcptest.Script{Marker: mark, Deaf: 3, IgnoreTerm: true}.YAML(t, "dumb") +
		mcptest.Script{Marker: mark, Grandchild: "group", IgnoreTerm: true}.YAML(t, "dynasty") +
		mcptest.Script{Marker: mark, Start: "exit", LastWords: "no"}.YAML(t, "dying") +
		mcptest.Script{Marker: mark, Grandchild: "orphan", IgnoreTerm: true}.YAML(t, "ghost") +
		fmt.Sprintf("  - {name: remote, url: %q}\n", remote.URL+"/mcp") +
		"list_wait: 0.2s\n"
	return config, []string{"stubborn__hang", "dumb__hang", "dynasty__hang"}
}

// The host sends SIGINT, SIGTERM 100 ms later and SIGKILL 400 ms after that. By
// then haldir and every child must be gone, whatever the children do.
func TestASignalEndsHaldirAndItsChildren(t *testing.T) {
	for _, tt := range []struct {
		name    string
		signals []os.Signal
	}{
		{"INT, then TERM as the host does", []os.Signal{os.Interrupt, syscall.SIGTERM}},
		{"HUP, as when the terminal is closed", []os.Signal{syscall.SIGHUP}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mark := marker()
			reap(t, mark)
			config, tools := zoo(t, mark)
			p := launch(t, world{config: config}).listen().ready(tools...)
			for i, name := range tools {
				p.send(p.call(strconv.Itoa(i), name, "{}"))
			}
			time.Sleep(100 * time.Millisecond) // they arrive
			start := time.Now()
			for i, s := range tt.signals {
				if i > 0 {
					time.Sleep(100 * time.Millisecond)
				}
				p.signal(s)
			}
			p.end(patience, "after the signal")
			took := time.Since(start)
			t.Logf("gone after %v", took.Round(time.Millisecond))
			if took > promise+slack {
				t.Errorf("haldir was gone after %v, want %v", took, promise)
			}
			gone(t, mark)
			// By itself, not by the signal; on a loaded machine it may say that it
			// had no time to write down the last outcomes.
			if code := p.cmd.ProcessState.ExitCode(); code != 0 && code != 1 {
				t.Errorf("it ended with %v", p.err)
			}
		})
	}
}

// One kind of child at a time, for the figures.
func TestHowLongEachKindOfChildTakesToEnd(t *testing.T) {
	for name, script := range map[string]mcptest.Script{
		"polite":                           {},
		"ignores TERM":                     {IgnoreTerm: true},
		"hangs at the start, ignores TERM": {Start: "hang", IgnoreTerm: true},
		"a grandchild in another session":  {Grandchild: "session", IgnoreTerm: true},
		"an orphan in another session":     {Grandchild: "orphan", IgnoreTerm: true},
		"a crash loop":                     {Start: "exit"},
		"endless pings and reads no more":  {Deaf: 3, Chatter: `{"jsonrpc":"2.0","id":1,"method":"ping"}`, IgnoreTerm: true},
		"endless progress, reads no more":  {Deaf: 3, Chatter: `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}`, IgnoreTerm: true},
		"list_changed, again and again":    {Restless: true, IgnoreTerm: true},
	} {
		t.Run(name, func(t *testing.T) {
			script.Marker = marker()
			reap(t, script.Marker)
			p := launch(t, world{config: "list_wait: 0.2s\nupstreams:\n" + script.YAML(t, "up")}).listen().ready()
			time.Sleep(150 * time.Millisecond)
			start := time.Now()
			p.signal(os.Interrupt)
			p.end(patience, "after the signal")
			took := time.Since(start)
			t.Logf("gone after %v", took.Round(time.Millisecond))
			if took > promise+slack {
				t.Errorf("haldir was gone after %v, want %v", took, promise)
			}
			if (script.Grandchild == "session" || script.Grandchild == "orphan") && runtime.GOOS != "linux" { // out of reach by its own will
				return
			}
			gone(t, script.Marker)
		})
	}
}

func TestTheEndOfInputEndsHaldirAndItsChildren(t *testing.T) {
	mark := marker()
	reap(t, mark)
	config, tools := zoo(t, mark)
	p := launch(t, world{config: config}).listen().ready(tools...)
	start := time.Now()
	_ = p.in.Close()
	p.end(patience, "after the end of input")
	t.Logf("without calls: gone after %v", time.Since(start).Round(time.Millisecond))
	gone(t, mark)
	if p.err != nil {
		t.Errorf("it ended with %v", p.err)
	}

	// A call in flight has a few seconds; one that ends in time is answered.
	mark = marker()
	reap(t, mark)
	p = launch(t, world{config: "upstreams:\n" + mcptest.Script{Marker: mark}.YAML(t, "up")}).listen().ready("up__slow")
	p.send(p.call("slow", "up__slow", `{"ms":500,"text":"in time"}`))
	_ = p.in.Close()
	if got := p.wait(patience, hasID(`"slow"`)); !strings.Contains(got, "in time") {
		t.Errorf("the call in flight: %s", got)
	}
	p.end(patience, "after the end of input")
	gone(t, mark)
}

func TestASignalEndsTheDrain(t *testing.T) {
	mark := marker()
	reap(t, mark)
	p := launch(t, world{config: "upstreams:\n" + mcptest.Script{Marker: mark, IgnoreTerm: true}.YAML(t, "up")}).listen().ready("up__hang")
	p.send(p.call("h", "up__hang", "{}"))
	_ = p.in.Close()
	time.Sleep(200 * time.Millisecond)
	start := time.Now()
	p.signal(os.Interrupt)
	p.end(patience, "after the signal")
	if took := time.Since(start); took > promise+slack {
		t.Errorf("gone after %v", took)
	}
	gone(t, mark)
}

// What haldir cannot start with is the answer to initialize, with its place.
func TestAConfigErrorIsTheAnswerToInitialize(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		w    world
		want []string
	}{
		{
			"unknown keys",
			world{path: write("a.yaml", "version: 1\npolicies:\n  - {type: spend_limit, maxx_usd: 5}\n  - {type: rate_limits, max_calls: 1, window: 1h}\n")},
			[]string{"a.yaml:3:25", "maxx_usd", `did you mean "max_usd"`, "a.yaml:4:", "rate_limits"},
		},
		{"no YAML", world{path: write("b.yaml", "version: 1\npolicies: [\n")}, []string{"b.yaml:"}},
		{"no version", world{path: write("c.yaml", "policies: []\n")}, []string{"c.yaml", "version"}},
		{"no such file", world{path: filepath.Join(dir, "none.yaml")}, []string{"none.yaml", "does not exist"}},
		{"an open state directory", world{state: open}, []string{"chmod 700"}},
		{"no such session", world{env: []string{"HALDIR_SESSION_ID=ses_nope"}}, []string{"ses_nope"}},
		{"a bad setting", world{env: []string{"HALDIR_DENIED_TOOLS=perhaps"}}, []string{"HALDIR_DENIED_TOOLS", "perhaps"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := launch(t, tt.w).listen()
			if r := parseResponse(t, p.ask(`{"jsonrpc":"2.0","id":"server-discover-probe-1","method":"server/discover","params":{}}`)); r.Error == nil || r.Error.Code != wire.CodeMethodNotFound {
				t.Errorf("server/discover: %s", r.line)
			}
			r := parseResponse(t, p.ask(initializeLine))
			if r.Error == nil {
				t.Fatalf("initialize: %s", r.line)
			}
			for _, w := range tt.want {
				if !strings.Contains(r.Error.Message, w) {
					t.Errorf("initialize lacks %q: %s", w, r.Error.Message)
				}
			}
			// It goes on answering, and ends as it should.
			if r := parseResponse(t, p.ask(`{"jsonrpc":"2.0","id":"n","method":"tools/list"}`)); r.Error == nil {
				t.Errorf("tools/list: %s", r.line)
			}
			p.send(`{"jsonrpc":"2.0","method":"notifications/initialized"}`, `{"jsonrpc":"2.0","id":1,"id":2}`, `[]`, `nonsense`)
			p.ask(`{"jsonrpc":"2.0","id":"m","method":"ping"}`)
			start := time.Now()
			p.signal(os.Interrupt)
			p.end(patience, "after the signal")
			if took := time.Since(start); took > promise+slack {
				t.Errorf("gone after %v", took)
			}
		})
	}
}

// A child's environment is the documented base, env_pass and env, and nothing
// else: not the host's keys, not what lets it write into the host's session.
func TestAChildsEnvironmentIsExact(t *testing.T) {
	mark := marker()
	script := mcptest.Script{Marker: mark}
	host := []string{
		"ANTHROPIC_API_KEY=sk-ant-secret", "CLAUDE_CODE_MESSAGING_TOKEN=secret", "CLAUDE_CODE_MESSAGING_SOCKET=/tmp/s", "CLAUDECODE=1", "CLAUDE_CODE_SESSION_ID=abc",
		"HALDIR_LOG_LEVEL=debug", "AWS_SECRET_ACCESS_KEY=secret", "GITHUB_TOKEN=secret", "LD_PRELOAD_X=1", "PYTHONPATH=/x", "NODE_OPTIONS=--require=/x", "SSH_AUTH_SOCK=/tmp/a", "RANDOM_VARIABLE=1",
		"ANTHROPIC_AUTH_TOKEN=secret", "lc_lower=1", "PATHX=1", "MY_PASSED=from the host", "MY_OVERRIDDEN=from the host", "EMPTY_PASSED=",
		"USER=u", "LOGNAME=l", "SHELL=/bin/sh", "TERM=xterm", "LANG=C.UTF-8", "LC_ALL=C", "LC_TIME=C", "TMPDIR=/tmp",
		"HTTP_PROXY=http://p", "https_proxy=http://p", "NO_PROXY=x", "SSL_CERT_FILE=/c", "NODE_EXTRA_CA_CERTS=/c",
	}
	base := []string{
		"USER=u", "LOGNAME=l", "SHELL=/bin/sh", "TERM=xterm", "LANG=C.UTF-8", "LC_ALL=C", "LC_TIME=C", "TMPDIR=/tmp",
		"HTTP_PROXY=http://p", "https_proxy=http://p", "NO_PROXY=x", "SSL_CERT_FILE=/c", "NODE_EXTRA_CA_CERTS=/c",
	}
	up := script.Child(t, "up")
	entry := func(name string, more ...string) string {
		env, err := json.Marshal(append(append([]string{}, up.Env...), more...))
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("  - {name: %s, command: %q, env: %s, env_pass: [MY_PASSED, MY_OVERRIDDEN, EMPTY_PASSED, NOT_THERE]}\n", name, up.Command, env)
	}
	config := "upstreams:\n" + entry("up", "MY_OVERRIDDEN=from the config", "OWN_x=a=b", "HOME=/elsewhere") + script.YAML(t, "plain")
	p := launch(t, world{config: config, env: host}).listen().ready("up__seen", "plain__seen")
	seen := func(name string) []string {
		r := parseResponse(t, p.ask(p.call("s", name, "{}")))
		var s mcptest.Seen
		if err := json.Unmarshal([]byte(r.Text), &s); err != nil {
			t.Fatalf("%v: %s", err, r.line)
		}
		slices.Sort(s.Env)
		return s.Env
	}
	want := append(slices.Clone(base), "PATH="+os.Getenv("PATH"), "HOME=/elsewhere", "MY_PASSED=from the host", "MY_OVERRIDDEN=from the config", "EMPTY_PASSED=", "OWN_x=a=b", up.Env[0])
	slices.Sort(want)
	if d := cmp.Diff(want, seen("up__seen")); d != "" {
		t.Error(d)
	}
	want = append(slices.Clone(base), "PATH="+os.Getenv("PATH"), "HOME="+p.cmd.Dir, up.Env[0])
	slices.Sort(want)
	if d := cmp.Diff(want, seen("plain__seen")); d != "" {
		t.Error(d)
	}
}

func TestNoiseOnStdoutIsLoggedAndSkipped(t *testing.T) {
	p := launch(t, world{config: "upstreams:\n" + mcptest.Script{Noise: 100}.YAML(t, "up")}).listen().ready("up__flood")
	p.ask(p.call("n", "up__flood", `{"what":"noise","n":100}`))
	p.ask(p.call("e", "up__flood", `{"what":"stderr","n":100}`))
	_ = p.in.Close()
	p.end(patience, "after the end of input")
	time.Sleep(50 * time.Millisecond)
	log := p.log.String()
	for _, want := range []string{"starting up, step 1 of 100", "debug: step 99", `"stderr":"step 99`, `"upstream":"up"`} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q: %s", want, clip(log))
		}
	}
	if strings.ContainsRune(log, 0x1b) {
		t.Error("escape sequences reach the terminal")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.lines {
		t.Errorf("the host was sent: %s", clip(line))
	}
}

// A host that stops reading, with an upstream that goes on talking: memory
// stays bounded, and a signal still ends it all.
func TestAHostThatStopsReadingStdout(t *testing.T) {
	mark := marker()
	reap(t, mark)
	p := launch(t, world{config: "upstreams:\n" + mcptest.Script{Marker: mark, IgnoreTerm: true}.YAML(t, "up") + mcptest.Script{Marker: mark}.YAML(t, "other")})
	p.listenErr()
	// The handshake by hand: from then on nothing is read.
	p.send(initializeLine)
	r := bufio.NewReader(p.out)
	line := func() string {
		s, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	line()
	for {
		p.send(`{"jsonrpc":"2.0","id":"l","method":"tools/list"}`)
		if s := line(); strings.Contains(s, `"up__flood"`) && strings.Contains(s, `"other__big"`) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	before := mcptest.Resident(p.cmd.Process.Pid)
	p.send(`{"jsonrpc":"2.0","id":"flood","method":"tools/call","params":{"name":"up__flood","arguments":{"what":"progress","n":100000000},"_meta":{"progressToken":"a token of some length"}}}`)
	p.send(p.call("b", "other__big", `{"bytes":1000000}`))
	peak := int64(0)
	for range 30 {
		time.Sleep(50 * time.Millisecond)
		peak = max(peak, mcptest.Resident(p.cmd.Process.Pid))
	}
	t.Logf("resident memory: %d MiB before the flood, at most %d MiB in 1.5 s of it", before>>20, peak>>20)
	if peak > before+64<<20 {
		t.Errorf("the memory grew to %d MiB", peak>>20)
	}
	start := time.Now()
	p.signal(os.Interrupt)
	p.end(3*time.Second, "after a signal, with a host that does not read")
	t.Logf("gone after %v", time.Since(start).Round(time.Millisecond))
	if took := time.Since(start); took > promise+slack {
		t.Errorf("gone after %v, want %v", took, promise)
	}
	gone(t, mark)
}

// Many hosts start servers with a pipe for stderr and never read it. What an
// upstream says there must not bring haldir to a halt when the pipe is full.
func TestAHostThatDoesNotReadStderr(t *testing.T) {
	mark := marker()
	reap(t, mark)
	p := launch(t, world{config: "policies:\n  - {type: deny, tools: [die]}\nupstreams:\n" +
		mcptest.Script{Marker: mark}.YAML(t, "loud") + mcptest.Script{Marker: mark, Tools: mcptest.Tools(mcptest.Tool("echo"))}.YAML(t, "good")})
	p.listenOut()
	p.ready("loud__flood", "good__echo")
	p.send(p.call("f", "loud__flood", `{"what":"stderr","n":20000}`), p.call("g", "loud__flood", `{"what":"noise","n":20000}`))
	time.Sleep(300 * time.Millisecond)
	for what, line := range map[string]string{
		"a ping":                `{"jsonrpc":"2.0","id":"q","method":"ping"}`,
		"a call":                p.call("q", "good__echo", `{"text":"x"}`),
		"tools/list":            `{"jsonrpc":"2.0","id":"q","method":"tools/list"}`,
		"a call that is denied": p.call("q", "loud__die", `{}`),
	} {
		p.send(strings.Replace(line, `"q"`, `"`+what+`"`, 1))
		if p.wait(2*time.Second, hasID(`"`+what+`"`)) == "" {
			t.Errorf("%s is not answered while nobody reads stderr", what)
		}
	}
	start := time.Now()
	p.signal(os.Interrupt)
	p.end(3*time.Second, "after a signal, with a host that does not read stderr")
	t.Logf("gone after %v", time.Since(start).Round(time.Millisecond))
	gone(t, mark)
}

// Another process has the ledger, for whatever reason: what needs it must wait,
// what does not must not, and a signal is obeyed as always.
func TestALedgerThatAnotherProcessHolds(t *testing.T) {
	mark := marker()
	reap(t, mark)
	state := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	var ups string
	for i := range 2 {
		ups += mcptest.Script{Marker: mark}.YAML(t, "up"+strconv.Itoa(i))
	}
	hold := func() func() {
		lock := flock.New(filepath.Join(state, "haldir.lock"))
		if err := lock.Lock(); err != nil {
			t.Fatal(err)
		}
		return func() { _ = lock.Unlock() }
	}
	t.Run("from the start", func(t *testing.T) {
		free := hold()
		defer free()
		p := launch(t, world{config: "upstreams:\n" + ups, state: state}).listen()
		start := time.Now()
		p.ask(initializeLine)
		greeted := time.Since(start)
		p.ask(`{"jsonrpc":"2.0","id":"p","method":"ping"}`)
		took := time.Since(start)
		t.Logf("initialize after %v, a ping behind it after %v", greeted.Round(time.Millisecond), took.Round(time.Millisecond))
		if took > time.Second {
			t.Errorf("a ping after initialize took %v while the ledger was not free", took)
		}
		start = time.Now()
		p.signal(os.Interrupt)
		p.end(patience, "after a signal")
		t.Logf("gone after %v", time.Since(start).Round(time.Millisecond))
		if took := time.Since(start); took > promise+slack {
			t.Errorf("gone after %v, want %v", took, promise)
		}
	})
	t.Run("at the end", func(t *testing.T) {
		p := launch(t, world{config: "upstreams:\n" + ups, state: state}).listen().ready("up0__slow")
		p.send(p.call("s", "up0__slow", `{"ms":200}`)) // to be settled
		time.Sleep(100 * time.Millisecond)
		free := hold()
		defer free()
		p.wait(patience, hasID(`"s"`))
		r := parseResponse(t, p.ask(p.call("t", "up0__echo", `{}`)))
		if ref := r.refusal(t); ref.Policy != "ledger" || !ref.Retryable {
			t.Errorf("a call without the ledger: %s", r.line)
		}
		start := time.Now()
		p.signal(os.Interrupt)
		p.end(patience, "after a signal")
		t.Logf("gone after %v", time.Since(start).Round(time.Millisecond))
		if took := time.Since(start); took > promise+slack {
			t.Errorf("gone after %v, want %v", took, promise)
		}
		gone(t, mark)
	})
	gone(t, mark)
}

// With what it knows from the last run haldir answers at once, also when a
// server hangs or is gone.
func TestAWarmStartWaitsForNobody(t *testing.T) {
	srv := mcptest.Script{}.NewHTTP(t)
	var hang atomic.Bool
	srv.Before = func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if hang.Load() {
			<-r.Context().Done()
		}
		return hang.Load()
	}
	state := filepath.Join(t.TempDir(), "state")
	w := world{state: state, config: fmt.Sprintf("upstreams:\n  - {name: up, url: %q}\n", srv.URL+"/mcp") + mcptest.Script{}.YAML(t, "child")}
	p := launch(t, w).listen().ready("up__echo", "child__echo")
	first := p.ask(`{"jsonrpc":"2.0","id":"l","method":"tools/list"}`)
	_ = p.in.Close()
	p.end(patience, "after the end of input")

	hang.Store(true)
	start := time.Now()
	p = launch(t, w).listen()
	p.ask(initializeLine)
	greeted := time.Since(start)
	second := p.ask(`{"jsonrpc":"2.0","id":"l","method":"tools/list"}`)
	listed := time.Since(start)
	t.Logf("initialize %v after exec, tools/list %v", greeted.Round(time.Millisecond), listed.Round(time.Millisecond))
	if first != second {
		t.Errorf("the list is another one than in the last run: %s", clip(second))
	}
	if listed > time.Second {
		t.Errorf("tools/list took %v with a server that hangs", listed)
	}
	// A call of it waits for its server, can be given up, and blocks no other.
	p.send(p.call("w", "up__echo", "{}"), cancelLine(`"w"`))
	if got := parseResponse(t, p.ask(p.call("c", "child__echo", `{"text":"x"}`))); got.Text != "x" {
		t.Errorf("the other server: %s", got.line)
	}
	p.signal(os.Interrupt)
	p.end(patience, "after a signal")
}

// Nothing but messages may come out of stdout, whatever the log level.
func TestStdoutCarriesMessagesOnly(t *testing.T) {
	p := launch(t, world{
		config: "upstreams:\n" + mcptest.Script{Noise: 3}.YAML(t, "up") + mcptest.Script{Start: "exit", LastWords: "oh"}.YAML(t, "dying") + "list_wait: 0.1s\n",
		env:    []string{"HALDIR_LOG_LEVEL=debug", "HALDIR_LOG_FORMAT=console", "HALDIR_NONSENSE=1"},
	}).listen().ready("up__echo")
	p.ask(p.call("x", "up__die", `{"words":"dead"}`))
	p.ask(p.call("y", "dying__x", `{}`))
	_ = p.in.Close()
	p.end(patience, "after the end of input")
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.lines {
		if why := notMessage([]byte(line)); why != "" {
			t.Errorf("%s: %s", why, clip(line))
		}
	}
	if !bytes.Contains([]byte(p.log.String()), []byte("HALDIR_NONSENSE")) {
		t.Errorf("an unknown variable is not told of: %s", clip(p.log.String()))
	}
	if p.err != nil {
		var exit *exec.ExitError
		t.Errorf("it ended with %v (%v)", p.err, errors.As(p.err, &exit))
	}
}
