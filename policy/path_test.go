package policy_test

import (
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/policy"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"/p/.env": "/p/.env", "/p/.env/": "/p/.env", "/p/.env/.": "/p/.env", "/p/./.env//.": "/p/.env", "/p/x/../.env": "/p/.env", "//p//.env": "/p/.env", "/../p": "/p",
		`C:\Users\me\.ssh\id_rsa`: "C:/Users/me/.ssh/id_rsa", `C:\p\..\q`: "C:/q", `C:\p/../q\`: "C:/q", `\\?\C:\p\.env`: "/?/C:/p/.env", `.env\`: ".env",
		"file:///p/.env/.": "/p/.env", "FILE:/p/%2eenv": "/p/.env", "file://localhost/p": "/p", "~/.ssh/./id_rsa": "~/.ssh/id_rsa",
		"": "", ".": ".", "./": ".", "a/..": ".", "/": "/", "x/./y": "x/y", "..x": "..x", "...": "...", " /p": " /p",
	} {
		if got, d := outcome(t, "clean(args.p) == args.want", pathArguments(t, in, want)); got != "true" {
			t.Errorf("clean(%q) is not %q: %s", in, want, d.Reason)
		}
	}
	for _, in := range []string{
		"..", "../x", `..\x`, "a/../../x", "~/../x", `~\..\x`, "~me/..", "/a/b\\../c", `/home/me/.aws/x\..\..\../../credentials`,
		"file:x", "file://server/p", "file:///x?/../../.env", "file:///x#/../../.env", "file:///.aws/%2e%2e/../credentials", "file:///%zz",
	} {
		if got, d := outcome(t, `clean(args.p) == "x"`, pathArguments(t, in, "")); got != "undecided" {
			t.Errorf("clean(%q) is decided: %s %s", in, got, d.Reason)
		}
	}
	for name, when := range map[string]string{"a number": `clean(args.n) == ""`, "null": `clean(args.z) == ""`, "a list": `clean(args.l) == ""`} {
		if got, _ := outcome(t, when, `{"n":1,"z":null,"l":["a"]}`); got != "undecided" {
			t.Errorf("clean of %s is %s", name, got)
		}
	}
}

func pathArguments(t tb, path, want string) string {
	t.Helper()
	raw, err := json.Marshal(map[string]string{"p": path, "want": want})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return string(raw)
}

// wrong is true for a path that is cleaned and yet not clean, and for one of which
// under thinks otherwise.
const wrong = `clean(clean(args.p)) != clean(args.p) || clean(args.p).matches("//|[\\\\]|./$|(^|/)[.]/|/[.]{1,2}(/|$)|^[.][.]?/") ||
	under(args.p, "/etc") != clean(args.p).matches("(?s)^/etc(/.*)?$")`

func TestACleanPathIsClean(t *testing.T) {
	e := compile(t, rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, When: wrong}))
	rapid.Check(t, func(t *rapid.T) {
		p := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"/", "/", `\`, ".", "..", "~", "etc", "x", "C:", "file:", "%2e", "%2F", " ", "é", "?", "#"}), 0, 12).Draw(t, "parts"), "")
		if d := e.Decide(call("files/write", pathArguments(t, p, "")), free()); d.Policy == "deny" {
			t.Fatalf("clean(%q) is not clean", p)
		}
	})
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"/p/.env/.", `C:\p\..\q`, "file:///etc/%2e%2e/x", `/etc/x\..\../y`, "~/../x", "../x", "", "a//b/./..", "/etc\n"} {
		f.Add(s)
	}
	e := compile(f, rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, When: wrong}))
	f.Fuzz(func(t *testing.T, p string) {
		if d := e.Decide(call("files/write", pathArguments(t, p, "")), free()); d.Policy == "deny" {
			t.Fatalf("clean(%q) is not clean", p)
		}
	})
}
