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
		`C:\Users\me\.ssh\id_rsa`: "C:/Users/me/.ssh/id_rsa", `C:\p\..\q`: "C:/q", "C:/p/../q/": "C:/q", `C:\..x`: "C:/..x", "C:x": "C:x", `C:\`: "C:/", "C:/./": "C:/", "/C:/": "/C:/", "file:///C:/": "/C:/", " C:/": " C:/", `\\server\share\.env`: "/server/share/.env", `.env\`: ".env",
		"file:///p/.env/.": "/p/.env", "FILE:/p/%2eenv": "/p/.env", "file://localhost/p": "/p", "~/.ssh/./id_rsa": "~/.ssh/id_rsa",
		"": "", ".": ".", "./": ".", "a/..": ".", "/": "/", "x/./y": "x/y", "..x": "..x", "...": "...", " /p": " /p",
	} {
		if got, d := outcome(t, "clean(args.p) == args.want", pathArguments(t, in, want)); got != "true" {
			t.Errorf("clean(%q) is not %q: %s", in, want, d.Reason)
		}
	}
	for _, in := range []string{
		"..", "../x", `..\x`, "a\x00", "/a/.. /b", "/a/b/.. ", " /../a",
		// A drive is a folder elsewhere, and so is what is before the root of a share.
		`C:\p/../q\`, `a:/b\c\d/../../../../etc/passwd`, "a:/../x", "a:/b/../../x", "a:/b/..", "/a:/../x", `C:\..\x`, `C:\a\..\..\x`, `C:a\..\x`, "C:..", `\\server\share\..\x`, "//server/share/../x", `\\?\C:\a\..\x`, "a/../../x", "~/../x", `~\..\x`, "~me/..", "/a/b\\../c", `/home/me/.aws/x\..\..\../../credentials`,
		// What is before these names keeps them from being a URL, a drive or a device.
		`\\?\C:\p\.env`, "./~/x", "a/../~/x", "file:", "file://", "file://localhost",
		" ../x", "a/..\t", "~/..\n", "\ufeff../x", "a/..\u00a0", "\x1c../x",
		"./file:", "./FILE:/etc/x", "x/../file:///etc", "./ file:/x", "./fi\tle:/x", "./C:/x", `.\C:\x`, "/./C:/x", "//C:/x", "/x/../??/C:/x",
		"file:x", "file://server/p", "file:///x?/../../.env", "file:///x#/../../.env", "file:///.aws/%2e%2e/../credentials", "file:///a/../b", "file://me@localhost/p", "file:///C|/p", "fi\tle:///p", " file:///p", "file:///a%00", "file:///%zz",
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

// Where the readers of a path differ about its place, no rule decides by one of them.
func TestUnderIsDecidedWhereReadersAgree(t *testing.T) {
	for _, c := range []struct {
		dir       string
		in, out   []string
		undecided []string
	}{
		{
			dir: "/work",
			in:  []string{"/work", "/work/", "/work/a", "/work/./a/../b", "//work//a", `/work/a\b`, `/work/a\`, "/work/Acme Inc./x", "/work/x\n", "/work/...", "/work/a:b", "file:///work/a", "file://localhost/work/a", "file:/work/a", "file:////work/a"},
			out: []string{"", "work/a", "/", "/workers", "/a/work", "/a/../b", `C:\Windows`, `\\server\share`, "~/a", "/Acme Inc./x", "file:///a"},
			undecided: []string{
				`/work\a`, `\work\a`, `/work/a\..\b`, "/WORK/a", "/Work", "/work./a", "/work /a", "/work:x/a", " /work/a", "\n/work/a", "/work\n", `C:\work\a`, "\ufeff/work/a", "\x1c/work/a", "/work/..\ufeff", "/work/..\x1f", "file:///work/a/../b", "/work/../../x\x00",
				"a:/../work/a", "/a:/../work", "/work/.. /x", "/work/../.. ",
			},
		},
		{
			dir:       ".",
			in:        []string{"a", "./a", "a/b", `a\b`, ".", "a/../b", `a\..\b`, "a~", "...", "./...", "note:x"},
			out:       []string{"", "/a", "//a", "/", "file:///a"},
			undecided: []string{"..", `C:\a`, "C:/a", "C:a", "c:", `C:..\..\a`, `\a`, `\\server\share`, `\\?\C:\a`, "~", "~/a", "~me/a", " /a", "http://h/a", " ../a", "\t../a", "\u00a0../a", "\ufeff../a", "~/..\n", "\ufeff/etc/x", "fi\nle:///a", " file:///a", "file:", "file://localhost", "a:/b\\c/../../../x"},
		},
		{
			dir:       "src",
			in:        []string{"src", "src/a", "./src/a", `src\a`, `src\..\src\a`},
			out:       []string{"a", "/src/a", "srcs", ".", `a\src`, "~/src"},
			undecided: []string{"SRC/a", `SRC\a`, `src.\a`, "src./a", `src\a/b`, `C:src\a`, "C:src/a"},
		},
		{
			dir:       `C:\Work`,
			in:        []string{`C:\Work`, `C:\Work\a`, "C:/Work/a", "c:/work/a", `C:\WORK.\a`, "C:/Work /a", `C:\Work::$INDEX_ALLOCATION\a`, `\\?\C:\Work\a`, `\\.\c:\Work\a`, "//?/C:/Work/a", `\??\C:\Work\a`, "/C:/Work/a", "file:///c:/Work/a", "file:///C%3A/Work/a", `C:\a\..\Work`},
			out:       []string{"", `C:\`, `C:\Works`, `D:\Work\a`, `Work\a`, "/a", `\a`, "/work2", "~/Work"},
			undecided: []string{`C:Work\a`, "C:", "C:Work", `\Work\a`, "/work/a", `\\localhost\C$\Work`, `\\?\UNC\h\C$\Work`, `\\?\GLOBALROOT\x`, `C:\a\..\..\Work\a`, `C:\..\Work`, `C:..\..\Work\a`},
		},
		{
			dir: "C:/",
			in:  []string{`C:\`, `C:\a`, "c:/a"}, out: []string{`D:\a`, "a"}, undecided: []string{"C:", "C:a", "/a", `\a`, `\\h\s`},
		},
		{
			dir: `\\server\share`,
			in:  []string{`\\server\share`, `\\SERVER\share\a`, "//server/share/a"}, out: []string{`\\server\other`, `C:\a`, "a"}, undecided: []string{`\\server\share\a\..\b`, "/server/share/a"},
		},
		{
			dir: `src\lib`,
			in:  []string{`src\lib\a`, "src/lib/a"}, out: []string{`src\a`, "/src/lib"},
		},
		// macOS takes these for one name, others do not.
		{dir: "/w/caf\u00e9", in: []string{"/w/caf\u00e9/x"}, out: []string{"/w/cafe/x"}, undecided: []string{"/w/cafe\u0301/x", "/w/CAF\u00c9/x"}},
		{dir: "/u/.config", out: []string{"/u/.confi\u0308g"}, undecided: []string{"/u/.con\ufb01g/gh", "/u/.con\u200cfig"}},
		{dir: "/u/.ssh", in: []string{"/u/.ssh/stra\u00dfe"}, undecided: []string{"/u/.\u00dfh/x", "/u/.\u1e9eh", "/u/.\u017fsh"}},
		{dir: `C:\Work`, undecided: []string{"C:\\W\uff4frk\\x", "C:\\Wo\u200crk\\x", "C:\\Work\u00a0\\x"}},
		{dir: "C:\\Stra\u00dfe", in: []string{"c:/stra\u00dfe/x"}, undecided: []string{`C:\Strasse\x`}},
		{dir: `src\lib`, undecided: []string{"src/l\u200cib/x"}},
		{dir: "file:///C:/Work", in: []string{`C:\Work\a`}, out: []string{`D:\Work`}},
		{dir: "file://server/share", undecided: []string{"a", "/server/share"}},
	} {
		for want, paths := range map[string][]string{"true": c.in, "false": c.out, "undecided": c.undecided} {
			for _, p := range paths {
				if got, d := outcome(t, "under(args.p, args.want)", pathArguments(t, p, c.dir)); got != want {
					t.Errorf("under(%q, %q) is %s, not %s: %s", p, c.dir, got, want, d.Reason)
				}
			}
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
const wrong = `clean(clean(args.p)) != clean(args.p) || clean(args.p).matches("//|[\\\\]|[^:]/$|(^|/)[.]/|/[.]{1,2}(/|$)|^[.][.]?/") ||
	under(args.p, "/etc") != clean(args.p).matches("(?s)^/etc(/.*)?$") || under(args.p, "C:/x") != under(clean(args.p), "C:/x") || under(args.p, "x") != under(clean(args.p), "x")`

func TestACleanPathIsClean(t *testing.T) {
	e := compile(t, rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, When: wrong}))
	rapid.Check(t, func(t *rapid.T) {
		p := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"/", "/", `\`, ".", "..", "~", "etc", "x", "C:", "file:", "%2e", "%2F", " ", "é", "e\u0301", "\t", "\ufeff", "?", "#"}), 0, 12).Draw(t, "parts"), "")
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
