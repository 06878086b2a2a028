package config_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/config"
)

func TestWhatAnUpstreamMaySay(t *testing.T) {
	remote := func(u string) config.Upstream {
		return config.Upstream{Name: "a", URL: u, Connect: config.DefaultConnect}
	}
	for body, want := range map[string]config.Upstream{
		`{name: a, url: "https://x.example/mcp?a=b"}`:    remote("https://x.example/mcp?a=b"),
		`{name: a, url: https://x.example:8443/MCP}`:     remote("https://x.example:8443/MCP"),
		`{name: a, url: "http://localhost:1/mcp"}`:       remote("http://localhost:1/mcp"),
		`{name: a, url: "http://LocalHost/"}`:            remote("http://LocalHost/"),
		`{name: a, url: "http://127.0.0.2/mcp"}`:         remote("http://127.0.0.2/mcp"),
		`{name: a, url: "http://[::1]:8/mcp"}`:           remote("http://[::1]:8/mcp"),
		`{name: 0-a, command: x}`:                        {Name: "0-a", Command: "x", Connect: config.DefaultConnect},
		`{name: a, command: x, expose: prefixed}`:        {Name: "a", Command: "x", Connect: config.DefaultConnect},
		`{name: a, command: x, expose: bare}`:            {Name: "a", Command: "x", Bare: true, Connect: config.DefaultConnect},
		`{name: a, command: x, trust_annotations: true}`: {Name: "a", Command: "x", TrustAnnotations: true, Connect: config.DefaultConnect},
		`{name: a, command: npx, args: [-y, 1.10, 007, 0x1F, 1e3, true, ~x, .5, "", "null", "a b"], cwd: /srv/App.d}`: {
			Name: "a", Command: "npx", Args: []string{"-y", "1.10", "007", "0x1F", "1e3", "true", "~x", ".5", "", "null", "a b"}, Cwd: "/srv/App.d", Connect: config.DefaultConnect,
		},
		`{name: a, command: x, env: ["GITHUB_TOKEN=x.y", "mixedCase=Y=z", "EMPTY="], env_pass: [Other_Name, X]}`: {
			Name: "a", Command: "x", Env: []string{"GITHUB_TOKEN=x.y", "mixedCase=Y=z", "EMPTY="}, EnvPass: []string{"Other_Name", "X"}, Connect: config.DefaultConnect,
		},
		`{name: a, url: "https://x.example", headers: ["X-Api.Key:AbC: d", "x-lower: ${env:T}", "X-Empty:"], auth: {type: bearer, token: "${env:T}"}}`: {
			Name: "a", URL: "https://x.example", Headers: []config.Header{{Name: "X-Api.Key", Value: "AbC: d"}, {Name: "x-lower", Value: "${env:T}"}, {Name: "X-Empty"}},
			Bearer: "${env:T}", Connect: config.DefaultConnect,
		},
		`{name: a, url: "https://x.example", auth: {type: oauth}, pins: block, timeouts: {connect: 1s, call: 2s, idle: 3s}}`: {
			Name: "a", URL: "https://x.example", OAuth: &config.OAuth{}, Pins: "block", Connect: time.Second, Call: 2 * time.Second, Idle: 3 * time.Second,
		},
		`{name: a, url: "https://x.example", auth: {type: oauth, client_id: c, client_secret: "${keyring:s}", token_auth: post, issuer: "https://i.example", scopes: ["a:b", c], redirect_port: 80, grant: client_credentials}}`: {
			Name: "a", URL: "https://x.example", Connect: config.DefaultConnect,
			OAuth: &config.OAuth{ClientID: "c", ClientSecret: "${keyring:s}", TokenAuth: "post", Issuer: "https://i.example", Scopes: []string{"a:b", "c"}, RedirectPort: 80, Machine: true},
		},
		`{name: a, url: "https://x.example", auth: {type: oauth, client_metadata_url: "https://m.example/c.json"}, tls: {ca_file: ca, cert_file: c, key_file: k}}`: {
			Name: "a", URL: "https://x.example", Connect: config.DefaultConnect, CAFile: "ca", CertFile: "c", KeyFile: "k",
			OAuth: &config.OAuth{MetadataURL: "https://m.example/c.json"},
		},
		`{name: a, command: x, start: eager, stop_when_idle: 5m, pins: warn}`: {
			Name: "a", Command: "x", Eager: true, StopWhenIdle: 5 * time.Minute, Pins: "warn", Connect: config.DefaultConnect,
		},
	} {
		if want.Pins == "" {
			want.Pins = "hold"
		}
		c, err := config.Parse([]byte(inUpstream(body)), "haldir.yaml")
		if err != nil {
			t.Errorf("%s: %v", body, err)
			continue
		}
		if diff := cmp.Diff(want, c.Upstreams[0]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", body, diff)
		}
	}
}

func TestReferencesAreCheckedWhenTheFileIsRead(t *testing.T) {
	const known = "; known are ${env:NAME}, ${file:PATH}, ${keyring:NAME} and ${root}"
	mistakes{
		{"in every place of a command", inUpstream(`{name: a, command: ‸"${x}", args: [ok, ‸"${env:A"], env: [‸"A=${vault:b}"], cwd: ‸"${env:}"}`), []string{
			"upstreams[0].command: unknown reference ${x}" + known, `upstreams[0].args[1]: the reference "${env:A" has no closing brace`,
			"upstreams[0].env[0]: unknown reference ${vault:b}" + known, "upstreams[0].cwd: the reference ${env:} names nothing",
		}},
		{"in every place of a url", inUpstream(`{name: a, url: "https://x.example", headers: [‸"X-A: ${env:T", ‸"X-B: ${secret:x}"], auth: {type: bearer, token: ‸"Bearer ${file:}"}}`), []string{
			`upstreams[0].headers[0]: the reference "${env:T" has no closing brace`, "upstreams[0].headers[1]: unknown reference ${secret:x}" + known,
			"upstreams[0].auth.token: the reference ${file:} names nothing",
		}},
		{"in a url", inUpstream(`{name: a, url: ‸"https://x.example/?key=${env:KEY"}`), []string{`upstreams[0].url: the reference "${env:KEY" has no closing brace`}},
		{"that nobody means", inUpstream(`{name: a, command: x, args: [‸"${env:A${env:B}}", ‸"${root:x}", ‸"${root:}", ‸"${env:A B}", ‸"${env:A:-b}", ‸"${env:A\e[31m}"]}`), []string{
			`upstreams[0].args[0]: the reference "${env:A${env:B}" stands around another one; refer to one variable that holds the whole`,
			"upstreams[0].args[1]: the reference ${root:x} takes no name; write ${root}",
			"upstreams[0].args[2]: the reference ${root:} takes no name; write ${root}",
			"upstreams[0].args[3]: the reference ${env:A B} names no variable: a name has letters, digits and _ only",
			"upstreams[0].args[4]: the reference ${env:A:-b} names no variable: a name has letters, digits and _ only",
			"upstreams[0].args[5]: the reference ${env:A\ufffd[31m} names no variable: a name has letters, digits and _ only",
		}},
		{"kinds", inUpstream(`{name: a, command: x, args: [‸"${}", ‸"${ENV:A}", ‸"${env}", ‸"${ env:A}"]}`), []string{
			"upstreams[0].args[0]: unknown reference ${}" + known, "upstreams[0].args[1]: unknown reference ${ENV:A}" + known,
			"upstreams[0].args[2]: the reference ${env:} names nothing", "upstreams[0].args[3]: unknown reference ${ env:A}" + known,
		}},
	}.run(t)
	for _, text := range []string{"", "$", "$x", "{x}", "$$", "$ {x}", "$${", "$${env:A}", "$$${x}", "${root}", "${env:A}${file:/b}", "a}b", "${file:C:\\x}"} {
		if err := config.CheckReferences(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{"${", "${env:A", "x ${env:A} ${", "${root"} {
		if err := config.CheckReferences(text); err == nil {
			t.Errorf("%s is no mistake", text)
		}
	}
}

func TestReferencesAreResolved(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "Key.File")
	if err := os.WriteFile(file, []byte("from-a-file  \r\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HALDIR_TEST_Mixed", "v4lue-of-Mixed ${env:OTHER} $${x}")
	t.Setenv("HALDIR_TEST_EMPTY", "")
	t.Setenv("HALDIR_TEST_SHORT", "abc")
	var seen []string
	r := config.NewResolver("/the/root", nil, func(s string) { seen = append(seen, s) })
	for text, want := range map[string]string{
		"":                                "",
		"plain $HOME %x {y}":              "plain $HOME %x {y}",
		"${root}/x":                       "/the/root/x",
		"a${env:HALDIR_TEST_Mixed}b":      "av4lue-of-Mixed ${env:OTHER} $${x}b", // what was put in is not read again
		"[${env:HALDIR_TEST_EMPTY}]":      "[]",
		"${env:HALDIR_TEST_SHORT}${root}": "abc/the/root",
		"${file:" + file + "}!":           "from-a-file  !",
		"$${env:HALDIR_TEST_SHORT}":       "${env:HALDIR_TEST_SHORT}",
		"$$${root}":                       "$${root}",
		"$$ ${root}":                      "$$ /the/root",
	} {
		if got, err := r.Resolve(text); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", text, got, err, want)
		}
	}
	for _, s := range seen {
		if s == "abc" || s == "" || s == "/the/root" {
			t.Errorf("%q is taken for a secret", s)
		}
	}
	if len(seen) != 2 {
		t.Errorf("seen: %q", seen)
	}
}

// An error names what is missing and shows nothing of what was there.
func TestAReferenceThatCannotBeResolvedIsNamedAndNothingIsShown(t *testing.T) {
	t.Setenv("HALDIR_TEST_SECRET", "s3cret-value")
	dir := t.TempDir()
	r := config.NewResolver("/root-of-it", nil, nil)
	for text, want := range map[string]string{
		"${env:HALDIR_TEST_NOT_THERE}":                                   "the variable HALDIR_TEST_NOT_THERE, referred to by ${env:HALDIR_TEST_NOT_THERE}, is not set",
		"${env:HALDIR_TEST_SECRET} ${env:HALDIR_TEST_NO} ${env:ALSO_NO}": "the variable HALDIR_TEST_NO, referred to by ${env:HALDIR_TEST_NO}, is not set",
		"${env:haldir_test_secret}":                                      "the variable haldir_test_secret, referred to by ${env:haldir_test_secret}, is not set",
		"${env:HALDIR_TEST_SECRET} ${file:" + dir + "/none}":             "the file of ${file:" + dir + "/none} cannot be read: no such file or directory",
		"${env:HALDIR_TEST_SECRET} ${file:" + dir + "}":                  "the file of ${file:" + dir + "} cannot be read: is a directory",
		"${env:HALDIR_TEST_SECRET} ${vault:x}":                           "unknown reference ${vault:x}; known are ${env:NAME}, ${file:PATH}, ${keyring:NAME} and ${root}",
		"${env:HALDIR_TEST_SECRET} ${env:HALDIR_TEST_SECRET":             `the reference "${env:HALDIR_TEST_SECRET" has no closing brace`,
	} {
		_, err := r.Resolve(text)
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error shows the secret", text)
		}
	}
	r.File = func(string) ([]byte, error) { return []byte("s3cret-value"), errors.Join(fs.ErrPermission) }
	if _, err := r.Resolve("${file:x}"); !errors.Is(err, fs.ErrPermission) || strings.Contains(err.Error(), "s3cret") {
		t.Error(err)
	}
}

// The message goes to the host and to its log.
func TestARefusedURLDoesNotShowItsPassword(t *testing.T) {
	for _, u := range []string{"https://u:s3cret-pass@x.example/", "http://u:s3cret-pass@x.example/", "https://u:s3cret-pass@x.example:port/", "https://u:s3cret-pass@", "ht tps://u:s3cret-pass@x.example/", "u:s3cret-pass@x.example"} {
		_, err := config.Parse([]byte(inUpstream(fmt.Sprintf("{name: a, url: %q}", u))), "haldir.yaml")
		if err == nil || strings.Contains(err.Error(), "s3cret-pass") {
			t.Errorf("%s: %v", u, err)
		}
	}
}

func TestReferencesInAURLAreResolvedAndWhatComesOfThemIsChecked(t *testing.T) {
	for _, u := range []string{"https://x.example/?key=${env:KEY}", "${env:URL}", "${file:/url}", "https://${env:HOST}/mcp", "http://localhost:${env:PORT}/", "https://x.example/$${a}"} {
		if c := parse(t, inUpstream(fmt.Sprintf("{name: a, url: %q}", u))); c.Upstreams[0].URL != u {
			t.Errorf("%s became %s", u, c.Upstreams[0].URL)
		}
	}
	var seen []string
	values := map[string]string{
		"KEY": "s3cret-k3y", "URL": "https://y.example/s3cret-path", "HTTP": "http://y.example/s3cret", "LOGIN": "https://u:s3cret@y.example/", "HOST": "y.example",
		"LINES": "s3cret\nX-Other: y", "WORDS": "s3cret words", "TOKEN": "s3cret-token",
	}
	r := &config.Resolver{Root: "/root", Env: func(n string) (string, bool) { v, ok := values[n]; return v, ok }, Seen: func(s string) { seen = append(seen, s) }}
	for text, want := range map[string]string{
		"https://x.example/?key=${env:KEY}": "https://x.example/?key=s3cret-k3y", "${env:URL}": "https://y.example/s3cret-path", "https://${env:HOST}/mcp": "https://y.example/mcp",
		"https://x.example/$${a}": "https://x.example/${a}",
	} {
		if got, err := r.URL(text); err != nil || got != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	if !slices.Contains(seen, "s3cret-k3y") {
		t.Errorf("the key is not taken for a secret: %q", seen)
	}
	const once = ", once its references are resolved, "
	for text, want := range map[string]string{
		"${env:HTTP}":             "the url ${env:HTTP}" + once + "must be an https URL; http is for this machine (localhost) only",
		"${env:LOGIN}":            "the url ${env:LOGIN}" + once + "must not hold credentials; use auth or headers with a reference such as ${env:TOKEN}",
		"${env:WORDS}":            "the url ${env:WORDS}" + once + "is no URL such as https://example.com/mcp",
		"https://x/?k=${env:NO}":  "the variable NO, referred to by ${env:NO}, is not set",
		"https://${env:LINES}/":   "the url https://${env:LINES}/" + once + "is no URL such as https://example.com/mcp",
		"https://${env:KEY}:x/?y": "the url https://${env:KEY}:x/?…" + once + "is no URL such as https://example.com/mcp",
	} {
		if got, err := r.URL(text); err == nil || err.Error() != want || got != "" {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
	if got, err := r.Header("Bearer ${env:TOKEN}"); err != nil || got != "Bearer s3cret-token" {
		t.Error(got, err)
	}
	if got, err := r.Header("${env:LINES}"); err == nil || got != "" || err.Error() != "holds a line end or another character that HTTP does not allow in a header" {
		t.Error(got, err)
	}
}

func TestWhatAnUpstreamMayNotSay(t *testing.T) {
	const (
		noName   = " is no upstream name: use up to 32 of a-z, 0-9 and -, not beginning with -"
		noURL    = " is no URL such as https://example.com/mcp"
		https    = "upstreams[0].url: must be an https URL; http is for this machine (localhost) only"
		secret   = "upstreams[0].url: must not hold credentials; use auth or headers with a reference such as ${env:TOKEN}"
		header   = `upstreams[0].headers[0]: must be written as "Name: value"`
		noHeader = "holds a line end or another character that HTTP does not allow in a header"
		neither  = "upstreams[0]: has neither url nor command; it needs one of them"
	)
	url := func(u string) string { return inUpstream(`{name: a, url: ‸"` + u + `"}`) }
	headers := func(list string) string {
		return inUpstream(`{name: a, url: "https://x.example", headers: [` + list + `]}`)
	}
	mistakes{
		{"no name", inUpstream("‸{command: x}"), []string{"upstreams[0]: has no name"}},
		{"an empty name", inUpstream(`‸{name: "", command: x}`), []string{"upstreams[0]: has no name"}},
		{"a capital", inUpstream("{name: ‸Files, command: x}"), []string{`upstreams[0].name: "Files"` + noName}},
		{"a hyphen in front", inUpstream("{name: ‸-a, command: x}"), []string{`upstreams[0].name: "-a"` + noName}},
		{"a dot", inUpstream("{name: ‸a.b, command: x}"), []string{`upstreams[0].name: "a.b"` + noName}},
		{"an underscore", inUpstream("{name: ‸a_b, command: x}"), []string{`upstreams[0].name: "a_b"` + noName}},
		{"a slash", inUpstream("{name: ‸a/b, command: x}"), []string{`upstreams[0].name: "a/b"` + noName}},
		{"33 letters", inUpstream("{name: ‸" + strings.Repeat("a", 33) + ", command: x}"), []string{`upstreams[0].name: "` + strings.Repeat("a", 33) + `"` + noName}},
		{"a line end at the end", inUpstream(`{name: ‸"a\n", command: x}`), []string{`upstreams[0].name: "a\n"` + noName}},
		{"a reference", inUpstream(`{name: ‸"${env:A}", command: x}`), []string{`upstreams[0].name: "${env:A}"` + noName}},
		{"haldir", inUpstream("{name: ‸haldir, command: x}"), []string{"upstreams[0].name: the name haldir is reserved for haldir's own tools"}},
		{"the same twice", in("upstreams:\n  - {name: a, command: x}\n  - {name: b, command: x}\n  - {name: ‸a, command: x}"), []string{`upstreams[2].name: "a" is already the name of upstreams[0]`}},

		{"neither url nor command", inUpstream("‸{name: a}"), []string{neither}},
		{"an empty url", inUpstream(`‸{name: a, url: ""}`), []string{neither}},
		{"an empty command", inUpstream(`‸{name: a, command: "", args: [x]}`), []string{neither}},
		{"url and command", inUpstream(`‸{name: a, url: "https://x.example", command: y}`), []string{"upstreams[0]: has both url and command; it can be only one of them"}},

		{"http", url("http://x.example/mcp"), []string{https}},
		{"http to a name like localhost", url("http://localhost.x.example/"), []string{https}},
		{"http to an address like 127.0.0.1", url("http://127.0.0.1.x.example/"), []string{https}},
		{"http to a user named localhost", url("http://localhost@x.example/"), []string{https}},
		{"http to every address", url("http://0.0.0.0/"), []string{https}},
		{"http to the next machine", url("http://10.0.0.1/"), []string{https}},
		{"ftp", url("ftp://x.example/"), []string{https}},
		{"a file", url("file:///etc/passwd"), []string{`upstreams[0].url: "file:///etc/passwd"` + noURL}},
		{"no scheme", url("x.example/mcp"), []string{`upstreams[0].url: "x.example/mcp"` + noURL}},
		{"no host", url("https://"), []string{`upstreams[0].url: "https://"` + noURL}},
		{"a space", url("https://x example/"), []string{`upstreams[0].url: "https://x example/"` + noURL}},
		{"a password", url("https://u:p@x.example/"), []string{secret}},
		{"a user", url("https://u@x.example/"), []string{secret}},
		{"a password for localhost", url("http://u:p@localhost/"), []string{secret}},
		{"a password by reference", url("https://u:${env:P}@x.example/"), []string{secret}},
		{"http by reference", url("http://x.example/${env:P}"), []string{https}},
		{"no URL with a reference", url("x.example/?key=${env:P}"), []string{`upstreams[0].url: "x.example/?…"` + noURL}},
		{"a URL with a query that is none", url("https://x example/?key=secret"), []string{`upstreams[0].url: "https://x example/?…"` + noURL}},
		{"a password and a port that is none", url("https://u:p@x.example:port/"), []string{`upstreams[0].url: "https://…@x.example:port/"` + noURL}},
		{"a password with a slash", url("https://u:p/q@x.example/"), []string{`upstreams[0].url: "https://…@x.example/"` + noURL}},

		{"a header without a colon", headers("‸X-Key"), []string{header}},
		{"a header with a space in its name", headers(`‸"X Key: a"`), []string{header}},
		{"a header with a space behind its name", headers(`‸"X-Key : a"`), []string{header}},
		{"a header without a name", headers(`‸": a"`), []string{header}},
		{"a header named by a reference", headers(`‸"${env:T}: x"`), []string{header}},
		{"a header over two lines", headers(`‸"X-Key: a\nX-Other: b"`), []string{"upstreams[0].headers[0]: " + noHeader}},
		{"a header of a zero byte", headers(`‸"X-Key: \0"`), []string{"upstreams[0].headers[0]: " + noHeader}},
		{"Authorization beside auth", inUpstream(`{name: a, url: "https://x.example", headers: ["X-A: b", ‸"authorization: Basic x"], auth: {type: bearer, token: t}}`), []string{"upstreams[0].headers[1]: auth sets Authorization as well; keep one of them"}},
		{"haldir's own headers", headers(`‸"content-type: b", "X-Mine: c", ‸"HOST: x", ‸"mcp-session-id: 1", ‸"MCP-Protocol-Version: 1", ‸"Accept: x", ‸"content-length: 1", ‸"connection: close", ‸"Transfer-Encoding: chunked"`), []string{
			"upstreams[0].headers[0]: content-type is set by haldir itself", "upstreams[0].headers[2]: HOST is set by haldir itself",
			"upstreams[0].headers[3]: mcp-session-id is set by haldir itself", "upstreams[0].headers[4]: MCP-Protocol-Version is set by haldir itself",
			"upstreams[0].headers[5]: Accept is set by haldir itself", "upstreams[0].headers[6]: content-length is set by haldir itself",
			"upstreams[0].headers[7]: connection is set by haldir itself", "upstreams[0].headers[8]: Transfer-Encoding is set by haldir itself",
		}},

		{"a secret as an argument", inUpstream(`{name: a, command: x, args: [ok, ‸"--token=${keyring:t}"]}`), []string{`upstreams[0].args[1]: a secret must not be an argument, which other users can see; give it by env, such as "TOKEN=${keyring:NAME}"`}},
		{"oauth with a bearer's key", inUpstream(`{name: a, url: "https://x.example", auth: {type: oauth, token: ‸t}}`), []string{"upstreams[0].auth.token: is no key of oauth, but of bearer; it has client_id, client_secret, client_metadata_url, token_auth, grant, issuer, scopes, redirect_port"}},
		{"bearer with a client", inUpstream(`{name: a, url: "https://x.example", auth: {type: bearer, token: t, client_id: ‸c}}`), []string{"upstreams[0].auth.client_id: is no key of bearer, but of oauth; it has token"}},
		{"a secret of nobody", inUpstream(`{name: a, url: "https://x.example", auth: {type: oauth, client_secret: ‸s}}`), []string{"upstreams[0].auth.client_secret: belongs to a client_id, which is missing"}},
		{"two clients", inUpstream(`{name: a, url: "https://x.example", auth: {type: oauth, client_id: c, client_metadata_url: ‸"https://m.example/c"}}`), []string{"upstreams[0].auth.client_metadata_url: is a client's id like client_id; keep one of them"}},
		{"a document without a path", inUpstream(`{name: a, url: "https://x.example", auth: {type: oauth, client_metadata_url: ‸"https://m.example"}}`), []string{"upstreams[0].auth.client_metadata_url: needs a path, as a Client ID Metadata Document has one"}},
		{"an issuer over plain HTTP", inUpstream(`{name: a, url: "https://x.example", auth: {type: oauth, issuer: ‸"http://m.example"}}`), []string{"upstreams[0].auth.issuer: must be an https URL; http is for this machine (localhost) only"}},
		{"a machine without a secret", inUpstream(`{name: a, url: "https://x.example", auth: ‸{type: oauth, grant: client_credentials, client_id: c}}`), []string{"upstreams[0].auth: needs client_id and client_secret for the grant client_credentials"}},
		{"a grant there is not", inUpstream(`{name: a, url: "https://x.example", auth: {type: oauth, grant: ‸password}}`), []string{`upstreams[0].auth.grant: "password" is neither authorization_code nor client_credentials`}},
		{"a scope with a space", inUpstream(`{name: a, url: "https://x.example", auth: {type: oauth, scopes: [a, ‸"b c"]}}`), []string{`upstreams[0].auth.scopes[1]: "b c" is no scope: it is empty, or has a space, a quote or a character beyond ASCII`}},
		{"a port there is not", inUpstream(`{name: a, url: "https://x.example", auth: {type: oauth, redirect_port: ‸70000}}`), []string{"upstreams[0].auth.redirect_port: 70000 is no port: use 1 to 65535, or leave it out for a free one"}},
		{"a certificate without its key", inUpstream(`{name: a, url: "https://x.example", tls: ‸{cert_file: c}}`), []string{"upstreams[0].tls: needs cert_file and key_file together"}},
		{"tls of a command", inUpstream(`{name: a, command: x, tls: ‸{ca_file: c}}`), []string{"upstreams[0].tls: belongs to a url, but this upstream has a command"}},
		{"a start of a url", inUpstream(`{name: a, url: "https://x.example", start: ‸eager}`), []string{"upstreams[0].start: belongs to a command, but this upstream has a url"}},
		{"misspelt words", inUpstream(`{name: a, command: x, pins: ‸hodl, start: ‸lazzy}`), []string{`upstreams[0].pins: "hodl" is none of hold, block, warn; did you mean "hold"?`, `upstreams[0].start: "lazzy" is none of lazy, eager; did you mean "lazy"?`}},
		{"no time at all", inUpstream(`{name: a, command: x, stop_when_idle: ‸0, timeouts: {idle: ‸0s}}`), []string{"upstreams[0].stop_when_idle: must be longer than 0; leave it out for never", "upstreams[0].timeouts.idle: must be longer than 0; leave it out for no limit"}},
		{"auth without a type", inUpstream(`{name: a, url: "https://x.example", auth: ‸{token: t}}`), []string{"upstreams[0].auth: has no type"}},
		{"auth without a token", inUpstream(`{name: a, url: "https://x.example", auth: ‸{type: bearer}}`), []string{"upstreams[0].auth: needs a token, best as a reference such as ${env:TOKEN}"}},
		{"a token over two lines", inUpstream(`{name: a, url: "https://x.example", auth: {type: bearer, token: ‸"a\nb"}}`), []string{"upstreams[0].auth.token: " + noHeader}},
		{"a token with a line end of Windows", inUpstream(`{name: a, url: "https://x.example", auth: {type: bearer, token: ‸"a\r"}}`), []string{"upstreams[0].auth.token: " + noHeader}},
		{"auth of a misspelt type", inUpstream(`{name: a, url: "https://x.example", auth: {type: ‸bearr, token: t}}`), []string{`upstreams[0].auth.type: "bearr" is no way to sign in that this haldir knows; did you mean "bearer"?`}},
		{"auth of a later haldir", inUpstream(`{name: a, url: "https://x.example", auth: {type: ‸saml}}`), []string{`upstreams[0].auth.type: "saml" is no way to sign in that this haldir knows; known here: bearer, oauth`}},

		{"variables", inUpstream(`{name: a, command: x, env: [OK=, ‸A, ‸"=b", ‸"1A=b", ‸"A-B=c"]}`), []string{
			`upstreams[0].env[1]: must be written as "NAME=value"`, `upstreams[0].env[2]: must be written as "NAME=value"`,
			`upstreams[0].env[3]: must be written as "NAME=value"`, `upstreams[0].env[4]: must be written as "NAME=value"`,
		}},
		{"variables to pass", inUpstream(`{name: a, command: x, env_pass: [OK, ‸"A=b", ‸"", ‸"A B", ‸"${env:A}"]}`), []string{
			`upstreams[0].env_pass[1]: "A=b" is no variable name`, `upstreams[0].env_pass[2]: "" is no variable name`,
			`upstreams[0].env_pass[3]: "A B" is no variable name`, `upstreams[0].env_pass[4]: "${env:A}" is no variable name`,
		}},
		{"expose", inUpstream("{name: a, command: x, expose: ‸naked}"), []string{`upstreams[0].expose: "naked" is neither prefixed nor bare`}},
		{"two that are bare", in("upstreams:\n  - {name: a, command: x, expose: bare}\n  - {name: b, command: x, expose: ‸bare}"), []string{"upstreams[1].expose: only one upstream may be bare, and upstreams[0] is"}},
	}.run(t)
}

// A command is one program: there is no shell that would divide it.
func TestACommandWithArgumentsInItIsWarnedOf(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "My Servers")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	there := filepath.ToSlash(filepath.Join(dir, "a server.exe"))
	if err := os.WriteFile(there, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	const belong = "upstreams[0].command: there are arguments in it, which belong in args; write "
	for _, tt := range []struct{ body, want string }{
		{`command: ‸"npx -y foo"`, "command: npx, args: [-y, foo]"},
		{`command: ‸npx -y @scope/pkg@1.2 ., args: [a b]`, `command: npx, args: [-y, "@scope/pkg@1.2", …]`},
		{`command: ‸uvx mcp-server-git`, "command: uvx, args: [mcp-server-git]"},
		{`command: ‸"node /srv/x.js"`, "command: node, args: [/srv/x.js]"},
		{`command: ‸" npx  -y\tfoo "`, "command: npx, args: [-y, foo]"},
		{`command: ‸"./run --stdio"`, "command: ./run, args: [--stdio]"},
		{`command: ‸"/opt/My Servers/run --stdio"`, `command: "/opt/My Servers/run", args: [--stdio]`},
		{`command: ‸"` + there + ` stdio"`, `command: "` + there + `", args: […]`},
		{`command: ‸"${env:BIN}/run --stdio"`, `command: "${env:BIN}/run", args: [--stdio]`},
		// What may be secret is not shown.
		{`command: ‸"nosuch ghp_abcdef0123456789"`, "command: nosuch, args: […]"},
		{`command: "/opt/My App - beta/server"`, ""},
		{`command: ‸"npx -y pg postgres://u:secret@h/db x"`, "command: npx, args: [-y, pg, …]"},
		{`command: ‸"npx foo --token secret x"`, "command: npx, args: [foo, …]"},
		{`command: ‸"npx foo -phunter2"`, "command: npx, args: [foo, …]"},
		{`command: ‸"mcp-mysql -phunter2"`, "command: mcp-mysql, args: […]"},
		{`command: ‸"mcp-mysql --stdio -phunter2"`, "command: mcp-mysql, args: [--stdio, …]"},
		{`command: ‸"/opt/My Servers/run -phunter2"`, `command: "/opt/My Servers/run", args: […]`},
		{`command: ‸"--token=hunter2 x"`, "command: …, args: […]"},
		{`command: ‸"npx foo --token=secret"`, "command: npx, args: [foo, …]"},
		{`command: npx, args: ["-y foo"]`, ""},
		{`command: "` + there + `"`, ""},
		{`command: ‸a server.exe, cwd: "` + filepath.ToSlash(dir) + `"`, "command: a, args: […]"}, // it is looked for on PATH
		{`command: ./a server.exe, cwd: "` + filepath.ToSlash(dir) + `"`, ""},
		{`command: "/opt/My Servers/run"`, ""}, // it may be there where haldir runs
		{`command: "${root}/My Servers/run"`, ""},
		{`command: "${file:/a b/c}"`, ""},
	} {
		text, places := unmark(inUpstream("{name: a, " + tt.body + "}"))
		want := ""
		if tt.want != "" {
			want = "haldir.yaml:" + places[0] + ": warning: " + belong + tt.want
		}
		if got := parse(t, text).Warnings.Error(); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.body, got, want)
		}
	}
}

// A shell would set variables that stand before a program; what they are set to is told to nobody.
func TestVariablesInACommand(t *testing.T) {
	const belong = "upstreams[0].command: there are variables in it, which belong in env; write "
	for _, tt := range []struct{ command, want string }{
		{"GITHUB_TOKEN=ghp_abcdef0123456789 npx -y foo", "command: npx, args: [-y, foo], env: {GITHUB_TOKEN: …}"},
		{"A=b/c B=1 npx foo ghp_1", "command: npx, args: [foo, …], env: {A: …, B: …}"},
		{"A= ghp_1 npx foo", "command: …, env: {A: …}"},
		{"A=b foo", "command: foo, env: {A: …}"},
		{"A=b foo ghp_1", "command: foo, args: […], env: {A: …}"},
		{"A=b C=d", "command: …, env: {A: …, C: …}"},
		{"A='b c' npx foo", "command: …, env: {A: …}"},
		{`A=b\ c npx foo`, "command: …, env: {A: …}"},
		{"A=b --token=c npx", "command: …, args: […], env: {A: …}"},
	} {
		text, places := unmark(inUpstream("{name: a, command: ‸'" + strings.ReplaceAll(tt.command, "'", "''") + "'}"))
		if got, want := parse(t, text).Warnings.Error(), "haldir.yaml:"+places[0]+": warning: "+belong+tt.want; got != want {
			t.Errorf("%s:\n got %s\nwant %s", tt.command, got, want)
		}
	}
}
