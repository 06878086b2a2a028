package policy_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/policy"
)

// The right sides are what the URL class of Node.js says, but for a dot at the end, brackets and
// IPv4 in IPv6.
func TestHost(t *testing.T) {
	for in, want := range map[string]string{
		"https://example.com/a?b=c": "example.com", "HTTPS://Example.COM.:443/": "example.com", "ws://h": "h", "wss://h?x": "h", "ftp://h#x": "h",
		"http:example.com": "example.com", "http:/example.com": "example.com", "http:///example.com": "example.com", "http:example.com/\\@b": "example.com",
		" \n\x00http://example.com\n": "example.com", "http://a_b--c.example": "a_b--c.example",
		"http://me:secret@example.com:8080": "example.com", "http://a?@b": "a", "http://a#@b": "a", "http://a;@b": "b",
		"http://x:0080/": "x", "http://x:/": "x",
		// One address in many spellings.
		"http://169.254.169.254/": "169.254.169.254", "http:///169.254.169.254/": "169.254.169.254", "http://169%2e254%2E169%2e254/": "169.254.169.254", "http://169.16689662/": "169.254.169.254",
		"http://0xa9.0xfe.0xa9.0xfe/": "169.254.169.254", "http://0XA9.254.43518": "169.254.169.254", "http://2852039166/": "169.254.169.254", "http://0xa9fea9fe": "169.254.169.254", "http://025177524776/": "169.254.169.254",
		"http://0251.0376.0251.0376": "169.254.169.254", "http://000000251.254.169.254.": "169.254.169.254", "http://169.254.169.254../": "169.254.169.254", "http://１６９。２５４．169｡254/": "169.254.169.254", "http://①⑥⑨.254.169.254": "169.254.169.254",
		"http://%31%36%39.254.169.254": "169.254.169.254", "http://%EF%BC%91%EF%BC%96%EF%BC%99.254.169.254": "169.254.169.254", "http://169.254.\u00ad169.254": "169.254.169.254", "http://\ufeff169.254.169.254": "169.254.169.254",
		"http://[::ffff:169.254.169.254]/": "169.254.169.254", "http://[::FFFF:a9fe:A9FE]": "169.254.169.254", "http://[0:0:0:0:0:ffff:a9fe:a9fe]:80": "169.254.169.254", "http://[::169.254.169.254]": "169.254.169.254", "http://[64:ff9b::a9fe:a9fe]": "169.254.169.254",
		"http://0x7f.1/": "127.0.0.1", "http://127.1": "127.0.0.1", "http://192.11010049/": "192.168.0.1", "http://0/": "0.0.0.0", "http://0x/": "0.0.0.0", "http://0x.0x.0": "0.0.0.0", "http://255.255.255.255": "255.255.255.255",
		"http://[::1]": "::1", "http://[0:0::0:1]/": "::1", "http://[::]": "::", "http://[FD00:EC2:0::254]": "fd00:ec2::254", "http://[::2]": "::2",
		// Names that are not ASCII, or that only look like numbers.
		"http://LOCALHOST": "localhost", "http://ｌｏｃａｌｈｏｓｔ": "localhost", "http://ⓛocalhost": "localhost", "http://localhoſt": "localhost", "http://bücher.example": "xn--bcher-kva.example", "http://B%C3%9Ccher.example": "xn--bcher-kva.example",
		"http://xn--bcher-kva.example": "xn--bcher-kva.example", "http://xn--fa-hia.de": "xn--fa-hia.de", "http://1.2.3.4.com": "1.2.3.4.com", "http://1.2.3.4x": "1.2.3.4x", "http://09.example": "09.example", "http://a.0xg": "a.0xg",
	} {
		if got, d := outcome(t, "host(args.u) == args.want", urlArguments(t, in, want)); got != "true" {
			t.Errorf("host(%q) is not %q: %s", in, want, d.Reason)
		}
	}
	for _, in := range []string{
		"", "example.com", "//example.com", "localhost:3000", ":", "http", "http:", "http://", "http:///", "https://?x", "http://:80", "http://@/", "http://u@:80", "http://.", "http://..", "http://a..b", "http://.a",
		"file:///etc/passwd", "file://server/x", "javascript:alert(1)", "data:text/html,x", "view-source:http://example.com", "blob:http://example.com/1", "about:blank", "chrome://settings", "ssh://host", "httpſ://example.com",
		"http://a b", "http://a%20b", "http://a%00b", "http://a%2fb", "http://a%", "http://%zz", "http://%ff", "http://a<b", "http://a|b", "http://a^b", "http://a％41", "http://a℀b", "http://a／b", "http://\ufffd", "http://\u00ad",
		"http://x:99999", "http://x:8a", "http://x:-1", "http://x:80:80", "http://1.2.3.4.5", "http://256.1.1.1", "http://1.2.3.256", "http://4294967296", "http://1.2.65536", "http://08", "http://1.2.3.09", "http://99999999999999999999999", "http://0xffffffffffffffffff", "http://a.1", "http://1..2",
		"http://[::1", "http://::1", "http://[::1]x", "http://x[::1]", "http://[1.2.3.4]", "http://[fe80::1%25eth0]", "http://[::1.2.3]", "http://[::01.2.3.4]", "http://[1:2:3]", "http://[]", "http://[::1]:x",
		// What some read as an address of another host.
		`http://example.com\@127.0.0.1/`, `http://example.com\.b/`, `http:\\example.com`, `http:/\example.com`, `http://\example.com`, `http://example.com\`, "http://a@b:80@c/", "http://a@b@c", "ht\ntp://example.com", "http:/\t/example.com", "http://exa\rmple.com", "http://a\n@b", "http://a b@c", "http://a\x00@b", "http://a\u212a@b", "http://a\uff0f@b",
		"http://faß.de", "http://βόλος.com", "http://a.fa%C3%9F", "http://\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.com",
		"http://stra\u1e9ee.de", "http://ex\u1d43mple.com", "http://\U0001f130.example", "http://good.com.xn--/", "http://good.com.%78n--", "http://１.xn--", "http://good.com.ｘn--",
		"http://xn--", "http://xn--a.example", "http://xn--ls8h--", "http://\u200d.example", "http://" + strings.Repeat("a", 2000),
	} {
		if got, d := outcome(t, `host(args.u) == "x"`, urlArguments(t, in, "")); got != "undecided" || !strings.Contains(d.Reason, "no address on the web") {
			t.Errorf("host(%q) is %s: %s", in, got, d.Reason)
		}
	}
	for name, when := range map[string]string{"a number": `host(args.n) == ""`, "null": `host(args.z) == ""`, "a list": `host(args.l) == ""`} {
		if got, _ := outcome(t, when, `{"n":1,"z":null,"l":["http://a"]}`); got != "undecided" {
			t.Errorf("host of %s is %s", name, got)
		}
	}
}

func urlArguments(t tb, u, want string) string {
	t.Helper()
	raw, err := json.Marshal(map[string]string{"u": u, "want": want})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return string(raw)
}

// Whoever writes an IPv4 address of a URL, as browsers read it, writes it for host too.
func TestHostKnowsEverySpellingOfAnAddress(t *testing.T) {
	e := compile(t, rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, When: "host(args.u) == args.want"}))
	rapid.Check(t, func(t *rapid.T) {
		ip := rapid.Uint32().Draw(t, "address")
		want := fmt.Sprintf("%d.%d.%d.%d", ip>>24, ip>>16&255, ip>>8&255, ip&255)
		parts := rapid.IntRange(1, 4).Draw(t, "parts")
		var texts []string
		for i := range parts {
			n := ip >> (8 * (3 - i)) & 255
			if i == parts-1 {
				n = ip & (1<<(8*(5-parts)) - 1)
			}
			texts = append(texts, fmt.Sprintf(rapid.SampledFrom([]string{"%d", "0%o", "000%o", "0x%x", "0X%X", "0x000%x"}).Draw(t, "base"), n))
		}
		var b strings.Builder
		for _, r := range strings.Join(texts, ".") {
			switch rapid.IntRange(0, 4).Draw(t, "letter") {
			case 0:
				fmt.Fprintf(&b, "%%%02x", r)
			case 1:
				b.WriteRune(r - '!' + '！') // the same in full width
			case 2:
				b.WriteString(rapid.SampledFrom([]string{"\u00ad", "\u200b"}).Draw(t, "nothing"))
				fallthrough
			default:
				b.WriteRune(r)
			}
		}
		u := rapid.SampledFrom([]string{"http://", "https:", "HTTP:", "http:/", "ftp:////", "\x00\t ws://", "http://me@", "http://a:b@"}).Draw(t, "before") + b.String() +
			rapid.SampledFrom([]string{"", ".", "%2e", "/", `/\x`, "?@x", "#", ":80", ":0/"}).Draw(t, "behind")
		if d := e.Decide(call("web/fetch", urlArguments(t, u, want)), free()); d.Policy != "deny" {
			t.Fatalf("host(%q) is not %s: %s", u, want, d.Reason)
		}
	})
}

// FuzzHost holds that a host is written in one way, and is its own host.
func FuzzHost(f *testing.F) {
	for _, s := range []string{"http://169%2e254.43518/", "http://[::ffff:1.2.3.4]:80", "https://me@bücher.example.", "http:\\\\0x7f.1", "http://xn--bcher-kva", "http://１２７。1", "http://[64:ff9b::1]", "ws://xn--", "http://ｘｎ－－a", "http://a\u0300א"} {
		f.Add(s)
	}
	const again = `host("http://" + (host(args.u).contains(":") ? "[" + host(args.u) + "]" : host(args.u)) + "/x@y")`
	own := compile(f, rules(policy.Rule{Type: policy.TypeAllow, Tools: []string{"*"}, When: again + ` == host(args.u) && host(args.u).matches("^[^\\x00-\\x20A-Z#%/<>?@\\[\\\\\\]^|\\x7f-\\x{10ffff}]+$")`}))
	known := compile(f, rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"*"}, When: `host(args.u) != ""`}))
	f.Fuzz(func(t *testing.T, u string) {
		c := call("web/fetch", urlArguments(t, u, ""))
		if d := known.Decide(c, free()); d.Policy != "deny" {
			return // no host
		}
		if d := own.Decide(c, free()); d.Verdict != policy.Allow {
			t.Fatalf("the host of %q has another: %s", u, d.Reason)
		}
	})
}
