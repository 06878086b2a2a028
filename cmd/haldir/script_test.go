package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"go.etcd.io/bbolt"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/examples/securitytools"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
)

// TestScripts runs testdata/script: what each verb prints, where, and how it
// exits. In the YAML files there, and in those of clients, @SECURITY@ stands for the address of the example
// server, @ROUGH@ for that of [rough] and @DEAD@ for one where nobody listens.
// haldir finds haldir.yaml by HALDIR_CONFIG. Beside testscript's own commands
// there are
//
//	code N PROGRAM ARG…    run a program, which must exit with status N
//	save NAME [REGEXP]     keep what it printed as $NAME, or what the first group matches
//	object KEY…            stdout is one JSON object with exactly these keys; ?KEY may be missing
//	value PATH TEXT        a value in that object; a.0.b leads into it
//	clean                  neither stdout nor stderr has a control character but line end and tab
//	tamper SEQ             change a byte of a record in the database
//	old DAYS CALLS         make calls, so many days ago
func TestScripts(t *testing.T) {
	t.Parallel()
	runScripts(t, "testdata/script")
}

func runScripts(t *testing.T, dir string) {
	t.Helper()
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               startServers(t).setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": scriptCode, "save": scriptSave, "object": scriptObject, "value": scriptValue, "clean": scriptClean, "tamper": scriptTamper, "old": scriptOld,
		},
	})
}

// servers are the addresses of the upstreams that scripts meet.
type servers struct{ security, rough, dead string }

func startServers(t *testing.T) servers {
	t.Helper()
	example := httptest.NewServer(securitytools.Handler())
	t.Cleanup(example.Close)
	bad := httptest.NewServer(rough())
	t.Cleanup(bad.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := "http://" + l.Addr().String() + "/mcp"
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return servers{example.URL + "/mcp", bad.URL + "/mcp", dead}
}

// evil is text that a terminal would obey: a colour, a title, a bell, a line
// written over, a control character of 8 bits and a turn of the line.
const evil = "\x1b[31mred\x1b]0;title\x07\r\u009b2J\u202egnp\x00\x7fend"

// rough is a server whose every text is for a terminal to choke on.
func rough() http.Handler {
	s := server.NewMCPServer("rough"+evil, "1"+evil, server.WithToolCapabilities(true))
	add := func(name string, result *mcp.CallToolResult, err error) {
		tool := mcp.NewToolWithRawSchema(name, "Says "+evil, json.RawMessage(`{"type":"object"}`))
		s.AddTool(tool, func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) { return result, err })
	}
	add("say", mcp.NewToolResultText("first line\n\tsecond "+evil), nil)
	add("fail", mcp.NewToolResultError("it failed "+evil), nil)
	add("break", nil, errors.New("it broke "+evil))
	add("name"+evil, mcp.NewToolResultText("named"), nil)
	add("picture", &mcp.CallToolResult{Content: []mcp.Content{mcp.NewImageContent("AAEC", "image/png"), mcp.NewTextContent("a picture")}}, nil)
	mux := http.NewServeMux()
	mux.Handle("/mcp", server.NewStreamableHTTPServer(s))
	return mux
}

func (s servers) fill(text []byte) []byte {
	return []byte(strings.NewReplacer("@SECURITY@", s.security, "@ROUGH@", s.rough, "@DEAD@", s.dead).Replace(string(text)))
}

func (s servers) setup(env *testscript.Env) error {
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("HALDIR_STATE_DIR", filepath.Join(env.WorkDir, "state"))
	env.Setenv("SECURITY", s.security)
	env.Setenv("ROUGH", s.rough)
	env.Setenv("DEAD", s.dead)
	env.Setenv("HALDIR_CONFIG", filepath.Join(env.WorkDir, "haldir.yaml"))
	files, err := filepath.Glob(filepath.Join(env.WorkDir, "*.yaml"))
	if err != nil {
		return err
	}
	others, err := filepath.Glob(filepath.Join(env.WorkDir, ".*", "mcp.json"))
	if err != nil {
		return err
	}
	for _, file := range append(files, others...) {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, s.fill(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code STATUS PROGRAM ARG…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		got = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s: exit status %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

func scriptSave(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: save NAME [REGEXP]")
	}
	text := strings.TrimSpace(ts.ReadFile("stdout"))
	if len(args) == 2 {
		m := regexp.MustCompile(args[1]).FindStringSubmatch(text)
		if len(m) < 2 {
			ts.Fatalf("stdout has nothing that matches %s", args[1])
		}
		text = m[1]
	}
	ts.Setenv(args[0], text)
}

// oneObject reads stdout, which must be one JSON object and nothing else.
func oneObject(ts *testscript.TestScript) map[string]any {
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	dec.UseNumber()
	var v map[string]any
	ts.Check(dec.Decode(&v))
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		ts.Fatalf("stdout has more than one JSON object")
	}
	return v
}

func scriptObject(ts *testscript.TestScript, neg bool, want []string) {
	if neg {
		ts.Fatalf("usage: object KEY…")
	}
	v := oneObject(ts)
	for _, key := range want {
		key, optional := strings.CutPrefix(key, "?")
		if _, ok := v[key]; !ok && !optional {
			ts.Fatalf("the object has no %s", key)
		}
		delete(v, key)
	}
	for key := range v {
		ts.Fatalf("the object has a key %s that nobody promised", key)
	}
}

func scriptValue(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: value PATH TEXT")
	}
	var at any = oneObject(ts)
	for part := range strings.SplitSeq(args[0], ".") {
		switch v := at.(type) {
		case map[string]any:
			var ok bool
			if at, ok = v[part]; !ok {
				at = "(missing)"
			}
		case []any:
			i, err := strconv.Atoi(part)
			ts.Check(err)
			if i >= len(v) {
				ts.Fatalf("%s: the list has %d elements", args[0], len(v))
			}
			at = v[i]
		default:
			ts.Fatalf("%s leads nowhere at %s", args[0], part)
		}
	}
	text := fmt.Sprint(at)
	switch at.(type) {
	case map[string]any, []any:
		b, err := json.Marshal(at)
		ts.Check(err)
		text = string(b)
	case nil:
		text = "null"
	}
	if (text == args[1]) == neg {
		ts.Fatalf("%s is %s", args[0], text)
	}
}

// control reports what a terminal would obey.
func control(r rune) bool {
	return r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}

func scriptClean(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: clean")
	}
	for _, name := range []string{"stdout", "stderr"} {
		text := ts.ReadFile(name)
		if i := strings.IndexFunc(text, control); i >= 0 {
			ts.Fatalf("%s has a control character: %q", name, text[max(0, i-40):min(len(text), i+40)])
		}
	}
}

// scriptTamper changes a letter of a record, as somebody with a hex editor would.
func scriptTamper(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: tamper SEQ")
	}
	seq, err := strconv.ParseUint(args[0], 10, 64)
	ts.Check(err)
	db, err := bbolt.Open(filepath.Join(ts.Getenv("HALDIR_STATE_DIR"), "haldir.db"), 0o600, nil)
	ts.Check(err)
	defer func() { ts.Check(db.Close()) }()
	ts.Check(db.Update(func(tx *bbolt.Tx) error {
		key := binary.BigEndian.AppendUint64(nil, seq)
		records := tx.Bucket([]byte("audit"))
		record := slices.Clone(records.Get(key))
		i := bytes.Index(record, []byte("scan_domain"))
		if i < 0 {
			return fmt.Errorf("record %d is none of scan_domain", seq)
		}
		record[i] ^= 1
		return records.Put(key, record)
	}))
}

func scriptOld(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: old DAYS CALLS")
	}
	days, err := strconv.Atoi(args[0])
	ts.Check(err)
	calls, err := strconv.Atoi(args[1])
	ts.Check(err)
	clock := func() time.Time { return time.Now().AddDate(0, 0, -days) }
	l, err := ledger.Open(ledger.Options{Dir: ts.Getenv("HALDIR_STATE_DIR"), NoSync: true, Clock: clock, Logger: zerolog.Nop()})
	ts.Check(err)
	e, err := policy.Compile(policy.Ruleset{})
	ts.Check(err)
	for range calls {
		ticket, _, err := l.Reserve(context.Background(), ledger.Attempt{
			Use:  ledger.Use{ID: "ses_old", Terms: &ledger.Terms{Agent: "bot", AllScopes: true}},
			Call: policy.Call{Upstream: "shop", Tool: "look", Arguments: []byte(`{}`)},
		}, e)
		ts.Check(err)
		l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
	}
	ts.Check(l.Close(context.Background()))
}

// TestUsage: a wrong command line exits with 2, says what is wrong and where help
// is on stderr, and nothing on stdout.
func TestUsage(t *testing.T) {
	t.Parallel()
	tests := map[string]string{
		"--nope":                            "unknown flag: --nope; see: haldir --help",
		"audit list --limt 5":               "unknown flag: --limt; see: haldir audit list --help",
		"audit list --limit five":           "see: haldir audit list --help",
		"audit list extra":                  "see: haldir audit list --help",
		"call":                              "accepts 1 arg(s), received 0; see: haldir call --help",
		"call a b":                          "accepts 1 arg(s), received 2; see: haldir call --help",
		"explain":                           "see: haldir explain --help",
		"audit show":                        "see: haldir audit show --help",
		"audit show 1 2":                    "see: haldir audit show --help",
		"audit prove":                       "see: haldir audit prove --help",
		"session show":                      "see: haldir session show --help",
		"session revoke":                    "see: haldir session revoke --help",
		"serve now":                         "see: haldir serve --help",
		"check a b":                         "see: haldir check --help",
		"version now":                       "see: haldir version --help",
		"demo now":                          "see: haldir demo --help",
		"schema now":                        "see: haldir schema --help",
		"tools now":                         "see: haldir tools --help",
		"spend now":                         "see: haldir spend --help",
		"audit":                             "haldir audit needs a verb; see: haldir audit --help",
		"session":                           "haldir session needs a verb; see: haldir session --help",
		"policy":                            "haldir policy needs a verb; see: haldir policy --help",
		"upstream":                          "haldir upstream needs a verb; see: haldir upstream --help",
		"ledger":                            "haldir ledger needs a verb; see: haldir ledger --help",
		"audit verifi":                      `unknown command "verifi" for "haldir audit"`,
		"audit list --since yesterday":      `--since: "yesterday" is no time; give 2006-01-02T15:04:05Z (RFC 3339), 2006-01-02, or an age such as 7d or 2h`,
		"audit list --until 5x":             `--until: "5x"`,
		"audit list --limit 0":              "--limit must be at least 1",
		"audit list --limit -5":             "--limit must be at least 1",
		"audit show x":                      `"x" is no number of an entry`,
		"audit show -- -1":                  `"-1" is no number of an entry`,
		"audit prove x":                     `"x" is no number of a record`,
		"audit export --format xml":         "--format must be jsonl, csv or ocsf",
		"session create --spend-limit much": `--spend-limit: "much" is no decimal number`,
		"session create --spend-limit -1":   "--spend-limit: the amount -1 is negative",
		"session create --spend-limit NaN":  "--spend-limit: ",
		"session create --ttl 0s":           "--ttl must be longer than 0",
		"session create --ttl -1h":          `"-1h" is no duration; write it like 90s, 15m, 8h or 7d, or as a number of seconds; see: haldir session create --help`,
		"session create --ttl long":         `"long" is no duration; write it like 90s, 15m, 8h or 7d, or as a number of seconds; see: haldir session create --help`,
		"session renew x --ttl 1w":          `"1w" is no duration; write it like 90s`,
		"key create --expires 1w":           `"1w" is no duration; write it like 90s`,
		"doctor --wait soon":                `"soon" is no duration; write it like 90s`,
		"upstream list --wait soon":         `"soon" is no duration; write it like 90s`,
		"upstream login x --wait soon":      `"soon" is no duration; write it like 90s`,
		"call x --args [1]":                 "--args must be a JSON object, not an array",
		"call x --args 5":                   "--args must be a JSON object, not a number",
		"call x --args null":                "--args must be a JSON object, not null",
		`call x --args "{}"`:                "--args must be a JSON object, not a string",
		`call x --args {"a":1,"a":2}`:       "--args: ",
		"call x --args {":                   "--args: ",
		"call x --args {}{}":                "--args: ",
		"call x --args @nowhere":            "--args: open nowhere: no such file or directory",
		"explain x --args []":               "--args must be a JSON object, not an array",
		"policy add":                        "say the policy in one way",
		"policy add {} --type deny":         "say the policy in one way",
		"policy add --file x --type deny":   "say the policy in one way",
		"policy add --file nowhere":         "open nowhere: no such file or directory",
		"policy add --allowed-hours nine":   `--allowed-hours "nine": write it as START-END, such as 09:00-17:00`,
		"policy add {} --upstream a=b":      "--upstream stands in place of a config file",
		"policy remove":                     "see: haldir policy remove --help",
		"upstream add":                      "the upstream has no name",
		"upstream add a":                    "an upstream has either --url or a program behind --",
		"upstream add a --url x -- sh":      "an upstream has either --url or a program behind --",
		"upstream add a npx server":         `"npx" follows the name; a program stands behind --, as in: haldir upstream add a -- npx server`,
		"upstream add --file x --url y":     "--file holds the whole upstream; leave --url out",
		"upstream add a --file x":           `--file holds the whole upstream; leave "a" out`,
		"upstream remove":                   "see: haldir upstream remove --help",
	}
	for line, want := range tests {
		var out, errOut bytes.Buffer
		code := run(t.Context(), strings.Fields(line), strings.NewReader(""), &out, &errOut)
		if code != exitUsage || out.Len() > 0 || !strings.Contains(errOut.String(), want) || !strings.HasPrefix(errOut.String(), "haldir: ") {
			t.Errorf("haldir %s: exit status %d, stdout %q, stderr %q; want %q", line, code, out.String(), errOut.String(), want)
		}
	}
}

// TestHelp: help that was asked for is a result, of every verb.
func TestHelp(t *testing.T) {
	t.Parallel()
	help := func(words ...string) string {
		t.Helper()
		var out, errOut bytes.Buffer
		if code := run(t.Context(), words, strings.NewReader(""), &out, &errOut); code != exitDone || errOut.Len() > 0 {
			t.Errorf("haldir %s: exit status %d, stderr %q", strings.Join(words, " "), code, errOut.String())
		}
		return out.String()
	}
	if !strings.Contains(help(), "Available Commands:") {
		t.Error("haldir alone does not show its verbs")
	}
	for _, verb := range []string{"list", "follow"} {
		text := help("audit", verb, "--help")
		for _, s := range audit.CallStatuses {
			if !strings.Contains(text, string(s)) {
				t.Errorf("haldir audit %s --help does not have the status %s", verb, s)
			}
		}
	}
	times := regexp.MustCompile(`--(since|until) string .*: 2006-01-02T15:04:05Z \(RFC 3339\), 2006-01-02, or an age such as 7d or 2h`)
	for verb, n := range map[string]int{"audit list": 2, "audit follow": 1, "audit report": 2, "simulate": 1, "suggest": 1, "spend": 1} {
		if text := help(append(strings.Fields(verb), "--help")...); len(times.FindAllString(text, -1)) != n {
			t.Errorf("haldir %s --help does not say how a time is given: %s", verb, text)
		}
	}
	var walk func(c *cobra.Command, path []string)
	walk = func(c *cobra.Command, path []string) {
		for _, sub := range c.Commands() {
			p := append(slices.Clone(path), sub.Name())
			if text := help(append(slices.Clone(p), "--help")...); !strings.Contains(text, "haldir "+strings.Join(p, " ")) || sub.Short == "" {
				t.Errorf("haldir %s --help: %s", strings.Join(p, " "), text)
			}
			if text := help(append([]string{"help"}, p...)...); text == "" {
				t.Errorf("haldir help %s is silent", strings.Join(p, " "))
			}
			walk(sub, p)
		}
	}
	walk(root(&app{}), nil)
}
