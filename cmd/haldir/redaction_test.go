//go:build linux

package main_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// tail has every character that some encoding writes otherwise.
const tail = `"\&<>%+/=' `

// planted are the secrets that the user gives to haldir, by where it finds them. Each is
// long enough that a half of it is still recognised.
var planted = map[string]string{
	"env header":      "EnvHeader1-7hXq2mVw9tKz4pRb" + tail + "EnvHeader2-c8NfYd3sLg6uJe5a",
	"file header":     "FileHeader1-Qw3eRt5yUi7oPa9s" + tail + "FileHeader2-Df2gHj4kLz6xCv8b",
	"keyring header":  "RingHeader1-Nm1qAz2wSx3eDc4r" + tail + "RingHeader2-Fv5tGb6yHn7uJm8i",
	"literal header":  "LitHeader1-Zx9cVb8nMa7sDf6g-LitHeader2-Hj5kLq4wEr3tYu2i",
	"url key":         "UrlKey1-Po0iUy9tRe8wQa7s-UrlKey2-Df6gHj5kLm4nBv3c",
	"keyring bearer":  "RingBearer1-Tg5bYh6nUj7mIk8-RingBearer2-Ol9pQa1zWs2xEd3c",
	"client_secret":   "ClientSecret1-Rf4vTg5bYh6nUj" + tail + "ClientSecret2-Ik8oLp9qAz1wSx",
	"keyring env":     "RingEnv1-Ed3cRf4vTg5bYh6n-RingEnv2-Uj7mIk8oLp9qAz1w",
	"file env":        "FileEnv1-Sx2eDc3rFv4tGb5y" + tail + "FileEnv2-Hn6uJm7iKl8oPq9a",
	"key file":        "-----BEGIN PRIVATE KEY-----\nKeyLine1-Mn4bVc5xZa6sDf7g8HjKl\nKeyLine2-Po3iUy2tRe1wQa9sDfGhJ\n-----END PRIVATE KEY-----",
	"env of other":    "OtherEnv1-Wq1sEd2rTg3yUj4i-OtherEnv2-Kl5oPz6xCv7bNm8q",
	"argument":        "Argument1-Aq1wSe2dRf3tGy4h" + tail + "Argument2-Uj5iKo6lPz7xCv8b",
	"nested argument": "Nested1-Vb9nMl8kJh7gFd6s-Nested2-Aq5wEr4tYu3iOp2z",
	"value argument":  "ghp_Value1Lk8jHg7fDs6aPo5iUy4tValue2Re3wQz2xCv1b",
	"broken config":   "Broken1-Yh6nUj7mIk8oLp9q-Broken2-Az1wSx2eDc3rFv4t",
}

// toy is a stdio server that has its secrets from its environment and says them wherever
// it can.
const toy = `sleep 1000 &
while read -r line; do
  id=${line#*\"id\":}; id=${id%%,*}; id=${id%%\}*}
  case $line in
    *'"initialize"'*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"protocolVersion\":\"2025-11-25\",\"capabilities\":{\"tools\":{},\"logging\":{}},\"serverInfo\":{\"name\":\"toy\",\"version\":\"1\"}}}" ;;
    *'"tools/list"'*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"tools\":[$(for t in stderr noise fail rpc die; do echo "{\"name\":\"$t\",\"inputSchema\":{\"type\":\"object\"}},"; done){\"name\":\"last\",\"inputSchema\":{\"type\":\"object\"}}]}}" | tr -d '\n'; echo ;;
    *'"name":"stderr"'*) printf '%s and %s\n%s\n' "$PLAIN" "$ODD" "$KEY" >&2; echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"content\":[]}}" ;;
    *'"name":"noise"'*) printf 'no message: %s and %s\n' "$PLAIN" "$ODD"; echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"content\":[]}}" ;;
    *'"name":"fail"'*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"isError\":true,\"content\":[{\"type\":\"text\",\"text\":\"not with $PLAIN\"}]}}" ;;
    *'"name":"rpc"'*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"error\":{\"code\":-32000,\"message\":\"not with $PLAIN\"}}" ;;
    *'"name":"die"'*) printf 'dying of %s and %s\n' "$PLAIN" "$ODD" >&2; exit 3 ;;
    *'"id"'*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"error\":{\"code\":-32601,\"message\":\"no\"}}" ;;
  esac
done
`

// TestNoSecretIsShown gives haldir secrets wherever it takes any, has the servers say all
// of them again wherever they can, and looks for them in all that haldir shows or keeps.
// What a server answers is the agent's, byte for byte; nothing else may have one.
func TestNoSecretIsShown(t *testing.T) {
	t.Parallel()
	r := newRedaction(t)
	r.store()
	r.signIn()
	r.serve()
	r.serveTroubled()
	for _, state := range []string{"", "down", "rpc", "401"} {
		r.remote.mode.Store(state)
		r.verbs()
	}
	r.remote.mode.Store("")
	r.refuse("invalid_grant") // for good: it is kept that it was refused, and why
	r.verbs()
	r.say(0, "", "upstream", "logout", "crm")
	r.brokenConfigs()
	r.files()
	r.search()
}

// redaction is all that a haldir has shown, and what must not be in it.
type redaction struct {
	t      *testing.T
	h      *mcptest.Haldir
	remote *echoing
	crm    *front
	bill   *mcptest.OAuth
	shown  []output
}

type output struct{ where, text string }

func newRedaction(t *testing.T) *redaction {
	t.Helper()
	r := &redaction{t: t, remote: newEchoing(t), crm: newFront(t)}
	r.bill = mcptest.OAuthScript{Client: mcptest.OAuthClient{ID: "haldir", Secret: planted["client_secret"]}}.New(t)
	r.h = mcptest.NewHaldir(t, program(t), "")
	elsewhere := t.TempDir() // what the user keeps himself is not haldir's
	for name, text := range map[string]string{"header": planted["file header"], "env": planted["file env"], "key": planted["key file"], "toy.sh": toy} {
		r.must(os.WriteFile(filepath.Join(elsewhere, name), []byte(text+"\n"), 0o600))
	}
	r.h.Config = filepath.Join(elsewhere, "haldir.yaml")
	temp := filepath.Join(r.h.Dir, "tmp")
	r.must(os.Mkdir(temp, 0o700))
	r.h.Env = append(r.h.Env, "TMPDIR="+temp, "HOME="+r.h.Dir,
		"PLANTED_HEADER="+planted["env header"], "PLANTED_KEY="+planted["url key"], "PLANTED_OTHER="+planted["env of other"])
	r.h.Configure(t, fmt.Sprintf(`version: 1
keyring: file
log: {level: debug}
costs:
  - {tools: ["remote/*"], usd: 0.01}
policies:
  - {type: deny, tools: [hang]}
upstreams:
  - name: remote
    url: "%s?key=${env:PLANTED_KEY}"
    auth: {type: bearer, token: "${keyring:bearer}"}
    headers: ["X-Env: ${env:PLANTED_HEADER}", "X-File: ${file:%s/header}", "X-Ring: ${keyring:header}", "X-Literal: %s"]
  - {name: crm, url: %q, auth: {type: oauth}}
  - {name: billing, url: %q, auth: {type: oauth, grant: client_credentials, client_id: haldir, client_secret: "${keyring:client}"}}
  - {name: toy, command: sh, args: [%[2]s/toy.sh], env: ["MARK=toy-%[6]d", "PLAIN=${keyring:env}", "ODD=${file:%[2]s/env}", "KEY=${file:%[2]s/key}"]}
  - {name: other, command: sh, args: [%[2]s/toy.sh], env: ["MARK=other-%[6]d", "PLAIN=${env:PLANTED_OTHER}"]}
`, r.remote.srv.URL+"/mcp", elsewhere, planted["literal header"], r.crm.srv.URL+"/mcp", r.bill.URL(), os.Getpid()))
	return r
}

func (r *redaction) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *redaction) show(where, text string) { r.shown = append(r.shown, output{where, text}) }

// say runs a verb, whose outcome is any if want is less than 0, and returns what it has shown.
func (r *redaction) say(want int, in string, args ...string) (out, errOut string) {
	r.t.Helper()
	cmd := r.h.Command(args...)
	var o, e bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &o, &e
	_ = cmd.Run() // its exit status says what there is to say
	line := "haldir " + strings.Join(args, " ")
	if code := cmd.ProcessState.ExitCode(); want >= 0 && code != want {
		r.t.Fatalf("%s: exit status %d\n%s%s", line, code, o.String(), e.String())
	}
	if !strings.HasPrefix(line, "haldir call remote__echo") { // that is a server's own
		r.show(line+" (stdout)", o.String())
	}
	r.show(line+" (stderr)", e.String())
	return o.String(), e.String()
}

func (r *redaction) store() {
	r.t.Helper()
	for name, of := range map[string]string{"bearer": "keyring bearer", "header": "keyring header", "client": "client_secret", "env": "keyring env"} {
		r.say(0, planted[of], "secret", "set", name)
	}
}

// signIn is refused once by a server that says all it was sent, then done.
func (r *redaction) signIn() {
	r.t.Helper()
	for _, mode := range []string{"invalid_request", ""} {
		r.crm.mode.Store(mode)
		cmd := r.h.Command("upstream", "login", "crm", "--no-browser")
		stderr, err := cmd.StderrPipe()
		r.must(err)
		r.must(cmd.Start())
		var all strings.Builder
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			all.WriteString(lines.Text() + "\n")
			if address, ok := strings.CutPrefix(lines.Text(), "  http"); ok {
				resp, err := http.Get("http" + address)
				r.must(err)
				r.must(resp.Body.Close())
			}
		}
		if err := cmd.Wait(); (err == nil) != (mode == "") {
			r.t.Fatalf("sign in: %v\n%s", err, all.String())
		}
		r.show("haldir upstream login ("+mode+")", all.String())
	}
}

// refuse has the next renewals of crm's token refused.
func (r *redaction) refuse(problem string) {
	r.crm.mode.Store(problem)
	r.crm.ExpireAccess()
}

// serve is a session with servers that do as they should but say what they know.
func (r *redaction) serve() {
	r.t.Helper()
	s := r.h.Serve(r.t)
	s.Initialize(mcptest.Revision)
	tools := s.Ask("tools/list", "{}").Raw
	for _, name := range []string{"remote__echo", "crm__echo", "billing__echo", "toy__last", "other__last"} {
		if !strings.Contains(tools, name) {
			r.t.Fatalf("%s is not listed: %s\n%s", name, tools, s.Stderr())
		}
	}
	verbatim := map[string]bool{} // the answers that are a server's own
	call := func(tool, args string) string {
		m := s.Ask("tools/call", mcptest.CallParams(tool, args, ""))
		if !strings.Contains(m.Raw, `"source":"haldir"`) && !strings.Contains(m.Raw, "blocked_by") {
			verbatim[string(m.ID)] = true
		}
		return m.Raw
	}
	want := func(text, part string) {
		r.t.Helper()
		if !strings.Contains(text, part) {
			r.t.Errorf("%q is not in: %s", part, text)
		}
	}
	want(call("remote__echo", secretArguments()), `"result"`)
	want(call("remote__hang", secretArguments()), "deny list")
	want(call("billing__echo", `{"text":"machine"}`), "machine")
	want(call("crm__echo", `{"text":"signed in"}`), "signed in")
	for _, mode := range []string{"500", "500 cut", "500 json", "500 query", "401"} {
		r.remote.mode.Store(mode + " call")
		want(call("remote__echo", `{}`), `"source":"haldir"`)
	}
	r.remote.mode.Store("")
	s.Ask("logging/setLevel", `{"level":"debug"}`)
	s.Ask("completion/complete", fmt.Sprintf(`{"ref":{"type":"ref/prompt","name":"toy__last"},"argument":{"name":"password","value":%q}}`, planted["argument"]))
	call("toy__stderr", `{}`)
	call("toy__noise", `{}`)
	want(call("toy__fail", `{}`), planted["keyring env"]) // lossless, to the agent
	want(call("toy__rpc", `{}`), planted["keyring env"])
	r.processes(s.Pid())
	want(call("toy__die", `{}`), "its last words")
	r.crm.mode.Store("403")
	want(call("crm__echo", `{}`), "wants more")
	r.refuse("temporarily_unavailable")
	want(call("crm__echo", `{}`), "the authorization server refuses")
	r.refuse("")
	want(call("crm__echo", `{"text":"renewed"}`), "renewed")
	s.End()
	r.show("the log of haldir serve", s.Stderr())
	want(s.Stderr(), "upstream says")
	want(s.Stderr(), "no message")
	want(s.Stderr(), "[redacted]")
	for _, m := range s.Seen() {
		if !verbatim[string(m.ID)] {
			r.show("haldir serve", m.Raw)
		}
	}
	r.reached()
}

// serveTroubled is a session with a server that is down, and says so with all it knows.
func (r *redaction) serveTroubled() {
	r.t.Helper()
	for _, mode := range []string{"500", "500 cut", "rpc", "401"} {
		r.remote.mode.Store(mode)
		s := r.h.Serve(r.t)
		s.Initialize(mcptest.Revision)
		s.Ask("tools/list", "{}")
		s.Ask("tools/call", mcptest.CallParams("remote__echo", `{}`, ""))
		s.End()
		if !strings.Contains(s.Stderr(), "upstream is not connected") {
			r.t.Errorf("a server that answers %s: %s", mode, s.Stderr())
		}
		r.show("the log of haldir serve, "+mode, s.Stderr())
		for _, m := range s.Seen() {
			r.show("haldir serve, "+mode, m.Raw)
		}
	}
}

// secretArguments have secrets by their names, by their looks, and by their being ones
// of haldir's own.
func secretArguments() string {
	raw, _ := json.Marshal(map[string]any{
		"password": planted["argument"], "deep": []any{map[string]any{"api_key": planted["nested argument"]}},
		"text": planted["value argument"] + " " + planted["env header"], "token": planted["argument"],
	})
	return string(raw)
}

// verbs are all that show anything. What a tool answers goes to stdout as it is.
func (r *redaction) verbs() {
	r.t.Helper()
	for _, line := range []string{
		"check", "check --json", "tools", "tools --json", "tools --changes", "upstream list", "upstream list --json", "secret list", "secret list --json",
		"explain remote__echo --args -", "explain remote__hang --args - --json", "call remote__echo --args - --json", "call remote__hang --args -", "call crm__echo", "call toy__die",
		"pins list", "pins list --json", "pins diff", "pins diff --json", "policy list", "policy list --json", "spend", "spend --json",
		"session list", "session list --json", "ledger stats", "ledger stats --json", "audit list --limit 1000", "audit list --limit 1000 --json",
		"audit export", "audit export --format csv", "audit verify", "audit verify --json", "reload", "doctor --wait 5s", "doctor --wait 5s --json",
	} {
		in := ""
		if strings.Contains(line, "--args -") {
			in = secretArguments()
		}
		r.say(-1, in, strings.Fields(line)...)
	}
	out, _ := r.say(0, "", "audit", "list", "--limit", "1000", "--json")
	if !strings.Contains(out, `[redacted]`) {
		r.t.Errorf("the audit has no arguments at all: %s", out)
	}
	for seq := 1; seq <= 5; seq++ {
		r.say(0, "", "audit", "show", strconv.Itoa(seq))
		r.say(0, "", "audit", "show", strconv.Itoa(seq), "--json")
	}
	// To a person it is shown in haldir's words.
	if _, said := r.say(1, "", "call", "toy__rpc"); !strings.Contains(said, "not with [redacted]") {
		r.t.Errorf("the toy has not said it: %s", said)
	}
}

// brokenConfigs are refused with words that do not repeat what may be secret.
func (r *redaction) brokenConfigs() {
	r.t.Helper()
	secret := planted["broken config"]
	for _, up := range []string{
		`url: "https://user:%s@example.com/mcp"`,
		`url: "ftp://example.com/mcp?key=%s"`,
		`url: "https://example.com", headers: ["%s"]`,
		`url: "https://example.com", headers: ["X-Key: a\n%s"]`,
		`url: "https://example.com", headers: {X-Key: "%s"}`,
		`url: "https://example.com", auth: {type: bearer, token: "a\n%s"}`,
		`url: "https://example.com", auth: {type: bearer, token: ["%s"]}`,
		`url: "https://example.com", auth: {type: oauth, token: "%s"}`,
		`url: "https://example.com", auth: {type: oauth, client_secret: "%s"}`,
		`url: "https://example.com", auth: "%s"`,
		`command: sh, env: ["%s"]`,
		`command: sh, env: {KEY: "%s"}`,
		`command: sh, env: "%s"`,
		`command: sh, headers: ["X-Key: %s"]`,
		`command: sh, env: ["KEY=%s]`,
	} {
		other, h := *r, *r.h // the same haldir with another file
		other.h, other.shown = &h, nil
		h.Config = filepath.Join(r.t.TempDir(), "haldir.yaml")
		h.Configure(r.t, fmt.Sprintf("version: 1\nupstreams:\n  - {name: a, "+up+"}\n", secret))
		other.say(2, "", "check")
		other.say(2, "", "check", "--json")
		other.say(2, "", "tools")
		other.say(-1, `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"a","version":"1"}}}`+"\n", "serve")
		for _, o := range other.shown {
			r.show(o.where+" of "+up, o.text)
		}
	}
}

// processes looks at what other users of the machine can see of any process, and at what
// each child has been given.
func (r *redaction) processes(serve int) {
	r.t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	r.must(err)
	for _, f := range files {
		if raw, err := os.ReadFile(f); err == nil {
			r.show(f, string(raw))
		}
	}
	if i := slices.IndexFunc(r.shown, func(o output) bool { return o.where == fmt.Sprintf("/proc/%d/cmdline", serve) }); i < 0 || !strings.Contains(r.shown[i].text, "serve") {
		r.t.Error("haldir itself was not looked at")
	}
	own := map[string][]string{"toy": {"keyring env", "file env", "key file"}, "other": {"env of other"}}
	for name, has := range own {
		pids := mcptest.Processes(fmt.Sprintf("MARK=%s-%d", name, os.Getpid()))
		if len(pids) < 2 { // the server and what it has started
			r.t.Fatalf("%s runs as %v", name, pids)
		}
		for _, pid := range pids {
			raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
			r.must(err)
			for where, v := range planted {
				if bytes.Contains(raw, []byte(v)) != slices.Contains(has, where) {
					r.t.Errorf("the environment of upstream %s and the secret %s: it is there %v", name, where, !slices.Contains(has, where))
				}
			}
			for _, v := range slices.Concat(r.crm.Secrets(), r.bill.Secrets()) {
				if bytes.Contains(raw, []byte(v)) {
					r.t.Errorf("the environment of upstream %s has a token", name)
				}
			}
		}
	}
}

// reached fails the test if a secret has not come to where it belongs: then that it is
// seen nowhere would mean nothing.
func (r *redaction) reached() {
	r.t.Helper()
	has := func(what string, ok bool) {
		r.t.Helper()
		if !ok {
			r.t.Errorf("%s did not reach the server", what)
		}
	}
	q := r.remote.srv.Requests()[0]
	for name, of := range map[string]string{"X-Env": "env header", "X-File": "file header", "X-Ring": "keyring header", "X-Literal": "literal header"} {
		has(of, q.Header.Get(name) == planted[of])
	}
	has("keyring bearer", q.Header.Get("Authorization") == "Bearer "+planted["keyring bearer"])
	has("url key", q.URL.Query().Get("key") == planted["url key"])
	seen := strings.Join(r.remote.srv.Seen(), "\n")
	for _, of := range []string{"argument", "nested argument", "value argument"} {
		raw, _ := json.Marshal(planted[of]) // as secretArguments has it
		has(of, strings.Contains(seen, strings.Trim(string(raw), `"`)))
	}
	has("client_secret", r.bill.Counts().Token["client_credentials"] > 0 && r.bill.Counts().WithToken > 0)
	counts, all := r.crm.Counts(), r.crm.Secrets()
	has("the code", counts.Token["authorization_code"] > 0 && counts.Token["refresh_token"] > 0)
	for _, prefix := range []string{"access-", "refresh-", "code-", "secret-"} {
		has(prefix, slices.ContainsFunc(all, func(s string) bool { return strings.HasPrefix(s, prefix) }))
	}
	has("the verifier", slices.Contains(all, r.crm.verifier.Load().(string)))
}

// files are all that haldir keeps and leaves.
func (r *redaction) files() {
	r.t.Helper()
	names := map[string]bool{}
	r.must(filepath.WalkDir(r.h.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		names[d.Name()] = true
		r.show(path, string(raw))
		return err
	}))
	for _, want := range []string{"haldir.db", "secrets.age"} {
		if !names[want] {
			r.t.Errorf("%s is not among the files: %v", want, names)
		}
	}
}

// search looks for every secret, in halves as a text may have been cut.
func (r *redaction) search() {
	r.t.Helper()
	secrets := map[string]string{}
	for where, v := range planted {
		secrets[where] = v
	}
	for i, v := range slices.Concat(r.crm.Secrets(), r.bill.Secrets()) {
		if v != planted["client_secret"] {
			secrets[fmt.Sprintf("%.8s of a sign-in (%d)", v, i)] = v
		}
	}
	if verifier := r.crm.verifier.Load().(string); verifier != "" {
		secrets["verifier"] = verifier
	}
	for where, v := range secrets {
		var all []string
		for line := range strings.SplitSeq(v, "\n") {
			if !strings.HasPrefix(line, "-----") {
				all = slices.Concat(all, forms(line[:len(line)/2]), forms(line[len(line)/2:]))
			}
		}
		for _, o := range r.shown {
			for _, form := range all {
				if i := strings.Index(o.text, form); i >= 0 {
					r.t.Errorf("the secret %q stands in %s: %q", where, o.where, o.text[max(0, i-120):min(len(o.text), i+len(form)+40)])
					break
				}
			}
		}
	}
}

func quoted(s string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s)
	return strings.Trim(b.String(), "\"\n")
}

// forms are the ways in which a secret may be written.
func forms(s string) []string {
	html, _ := json.Marshal(s)
	all := []string{s, quoted(s), quoted(quoted(s)), strings.Trim(string(html), `"`), strings.Trim(strconv.Quote(s), `"`), url.QueryEscape(s), url.PathEscape(s)}
	for before := range 3 { // bytes of the same group that come before it
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", before) + s))
		text = text[[]int{0, 2, 3}[before] : len(text)-[]int{0, 3, 2}[(before+len(s))%3]]
		all = append(all, text, strings.NewReplacer("+", "-", "/", "_").Replace(text))
	}
	return all
}

// echoing is a remote server that answers with all that it was sent, in the way of mode:
// a status or rpc, "cut" so that the end of what is shown falls into a secret, "call" for
// calls alone.
type echoing struct {
	srv  *mcptest.HTTP
	mode atomic.Value
}

func newEchoing(t *testing.T) *echoing {
	t.Helper()
	e := &echoing{}
	e.mode.Store("")
	e.srv = mcptest.Script{}.NewHTTP(t)
	e.srv.Before = func(w http.ResponseWriter, r *http.Request, body []byte) bool {
		mode := strings.Fields(e.mode.Load().(string))
		if len(mode) == 0 || slices.Contains(mode, "call") && !bytes.Contains(body, []byte("tools/call")) {
			return false
		}
		h := r.Header
		said := []string{h.Get("X-Env"), h.Get("X-File"), h.Get("X-Ring"), h.Get("X-Literal"), h.Get("Authorization"), r.URL.Query().Get("key")}
		text := strings.Join(said, " ")
		if slices.Contains(mode, "cut") {
			text = strings.Repeat("x", 165) + " " + text
		}
		if slices.Contains(mode, "json") { // one that is no message
			raw, _ := json.Marshal(map[string]string{"said": text})
			text = string(raw)
		}
		if slices.Contains(mode, "query") {
			text = url.Values{"said": said}.Encode()
		}
		status, _ := strconv.Atoi(mode[0])
		switch mode[0] {
		case "rpc":
			var m struct{ ID json.RawMessage }
			_ = json.Unmarshal(body, &m)
			if m.ID == nil {
				w.WriteHeader(http.StatusAccepted)
				return true
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32000,"message":"%s"}}`, m.ID, quoted(text))
			return true
		case "401":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s", error="invalid_token", error_description="%s"`, h.Get("X-Literal"), r.URL.Query().Get("key")))
		case "down":
			status = http.StatusBadGateway
		}
		http.Error(w, text, status)
		return true
	}
	return e
}

// front stands before a server that people sign in to and answers in its stead with all
// that it was sent: by mode, an error of the token endpoint, or 403.
type front struct {
	*mcptest.OAuth
	srv      *httptest.Server
	mode     atomic.Value
	verifier atomic.Value
}

func newFront(t *testing.T) *front {
	t.Helper()
	f := &front{OAuth: mcptest.OAuthScript{AuthMethods: []string{"client_secret_basic"}, IssParam: "off"}.New(t)}
	f.mode.Store("")
	f.verifier.Store("")
	behind := strings.TrimSuffix(f.URL(), "/mcp")
	to, err := url.Parse(behind)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) },
		ModifyResponse: func(resp *http.Response) error {
			for _, values := range resp.Header {
				for i, v := range values {
					values[i] = strings.ReplaceAll(v, behind, f.srv.URL)
				}
			}
			raw, err := io.ReadAll(resp.Body)
			raw = bytes.ReplaceAll(raw, []byte(behind), []byte(f.srv.URL))
			resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
			resp.Header.Set("Content-Length", strconv.Itoa(len(raw)))
			return err
		},
	}
	f.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(raw))
		form, _ := url.ParseQuery(string(raw))
		mode := f.mode.Load().(string)
		_, secret, _ := r.BasicAuth()
		secret, _ = url.QueryUnescape(secret)
		if v := form.Get("code_verifier"); v != "" {
			f.verifier.Store(v)
		}
		switch {
		case r.URL.Path == "/token" && mode != "" && mode != "403":
			said := strings.Join([]string{form.Get("code"), form.Get("code_verifier"), form.Get("refresh_token"), secret, r.Header.Get("Authorization")}, " ")
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"error":%q,"error_description":"%s"}`, mode, quoted(said))
		case mode == "403" && bytes.Contains(raw, []byte("tools/call")):
			token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer error="insufficient_scope", scope="%s", error_description="not with %s"`, token, token))
			w.WriteHeader(http.StatusForbidden)
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(f.srv.Close)
	f.Change(func(s *mcptest.OAuthScript) { s.PRMResource = f.srv.URL + "/mcp" })
	return f
}
