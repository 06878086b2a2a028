package policy_test

import (
	"testing"

	"github.com/haldir-mcp/haldir/policy"
)

func TestCanonicalURI(t *testing.T) {
	for in, want := range map[string]string{
		"file:///etc/passwd": "file:///etc/passwd", "FILE:///etc/passwd": "file:///etc/passwd", "file:/etc/passwd": "file:///etc/passwd",
		"file:etc/passwd": "file:///etc/passwd", "file://localhost/etc/passwd": "file:///etc/passwd", "file://LOCALHOST/%65tc/passwd": "file:///etc/passwd",
		"file:///tmp/../etc/passwd": "file:///etc/passwd", "file:///tmp/%2e%2e/etc/passwd": "file:///etc/passwd", "file:////etc//passwd": "file:///etc/passwd",
		"file:///etc%2Fpasswd": "file:///etc/passwd", `file:\\\etc\passwd`: "file:///etc/passwd", `file:///tmp\etc%5Cpasswd`: "file:///tmp/etc/passwd",
		"file:///c:/Users": "file:///c:/Users", "file:///c%3A/Users/x.y": "file:///c:/Users/x.y", "file:c:/": "file:///c:", `file:///C:\Users`: "file:///C:/Users", "file:////C:/Users": "file:///C:/Users", "file:////./C:/Users": "file:///C:/Users", "file:///C:/a/../b": "file:///C:/b",
		"file:///my%20doc": "file:///my doc", "file:///dir/": "file:///dir", "file:///": "file:///", "file:///../../etc": "file:///etc",
		"demo://resource/static/a.md": "demo://resource/static/a.md", "DEMO://Resource/X": "demo://Resource/X", "demo://r": "demo://r",
		"note:inbox%2F1": "note:inbox/1", "https://h/a/./b?q=1#f": "https://h/a/b?q=1", "note:x#f": "note:x#f", "urn:isbn:0451450523": "urn:isbn:0451450523",
		"HTTPS://H:443/x": "https://h/x", "https://h./x": "https://h/x", "http://h:8080/x": "http://h:8080/x",
		"https://h:/x": "https://h/x", "https://h:0443/x": "https://h/x", "http://h:00080/x": "http://h/x", "https://h.:443/x": "https://h/x", "https://h.:8443/x": "https://h:8443/x",
		"https://h:08443/x": "https://h:8443/x", "https://h:80/x": "https://h:80/x", "https://h": "https://h/", "https://h?q": "https://h/?q", "https://h/x#": "https://h/x",
		"https://127.0.0.1/x": "https://127.0.0.1/x", "https://[0:0:0:0::1]:443/x": "https://[::1]/x", "https://[::1]:8443/x": "https://[::1]:8443/x", "https://1h/x": "https://1h/x", "https://1.h/x": "https://1.h/x",
		"https://h:65536/x": "", "https://h:99999999999999999999/x": "", "https://:443/x": "", "https://./x": "", "https://h../x": "", "https://h.0x/x": "", "https://\uff48/x": "", "https://%C3%A9/x": "", "https://h\u00ad/x": "",
		"https://127.1/x": "", "https://2130706433/x": "", "https://0x7f.0.0.1/x": "", "https://0x7f000001/x": "", "https://0177.0.0.1/x": "", "https://127.0.0.0x1/x": "", "https://127.0.0.1:x/": "", "https://99999999999999999999/x": "",
		"https://[fe80::1%25eth0]/x": "", "https://[h]/x": "", "https://[127.0.0.1]/x": "", "https://h:1:2/x": "",
		// One address, and one name, in two spellings.
		"http://[::ffff:169.254.169.254]/latest": "http://169.254.169.254/latest", "http://[::FFFF:a9fe:a9fe]:8080/": "http://169.254.169.254:8080/", "http://[64:ff9b::a9fe:a9fe]/": "http://169.254.169.254/",
		"https://m\u00fcnchen.de/x": "", "https://XN--mnchen-3ya.de./x": "https://xn--mnchen-3ya.de/x", "https://\u4f8b.h:443/x": "",
		"https://M\u00dcNCHEN.de/x": "", "https://mu\u0308nchen.de/x": "", "https://m%C3%BCnchen.de/m\u00fcnchen.de": "", "https://fa\u00df.de/x": "", "https://\u212a.com/x": "", "https://xn--a/x": "", "https://h%25/x": "",
		// Where the readers of a path differ about what climbs, or from where.
		"https://h/secret//../x": "", "https://h/secret/x%2F..%2F..%2Fpublic": "", "https://h/a%5C..%5Csecret": "", "https://h/a/..%5csecret": "", "note://h/secret/x%2f../x": "", "https://h/a/..%20/x": "", "https://h/a/b/..": "https://h/a/", "https://h/a/.": "https://h/a/", "https://h/a/%2e": "https://h/a/", "https://h/a/b..": "https://h/a/b..", "https://h/..": "https://h/", "note:public/../secret": "", "note:./secret": "", "note:a/%2e%2E/b": "", "note:a..b": "note:a..b",
		`file:///tmp\..\etc/passwd`: "", `file:///secret/x\..\..\public/../y`: "", "file:///tmp%5C..%5Cetc": "", "file:///secret//../x": "", "file:///secret/x%2F../..": "", "file:///C:/../etc": "", "file:C:/..": "", "file:///c|/x": "", "file:C|/x": "",
		"file:///C:secret/x": "", "file:C:secret": "", "note:secret%00": "",
		"file:////%3F/C:/x": "", "file:///%3F%3F/C:/x": "", "file:///C:/secret./x": "", "file:///C:/secret%20/x": "", "file:///C:/x::$DATA": "", "file:///etc/passwd%00.txt": "", "https://h/x%00": "",
		"file://server/share": "", "file://127.0.0.1/etc": "", "file://x@/etc": "", "file:///etc?x": "", "file:///etc#x": "",
		`https://h/a\..\secret`: "", "https:h/x": "", "https:/h/x": "", "https:///h/x": "", "https://u@h/x": "", " file:///etc/passwd": "", "file:///etc/pass\twd": "", "file:///%zz": "", "no uri": "", "": "", "/etc/passwd": "",
	} {
		if got, ok := policy.CanonicalURI(in); got != want || ok != (want != "") {
			t.Errorf("%q: %q %v, want %q", in, got, ok, want)
		}
	}
}
