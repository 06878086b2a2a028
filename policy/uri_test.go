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
		"file:///etc%2Fpasswd": "file:///etc/passwd", `file:\\\etc\passwd`: "file:///etc/passwd", `file:///tmp\..\etc/passwd`: "file:///etc/passwd",
		"file:///my%20doc": "file:///my doc", "file:///dir/": "file:///dir", "file:///": "file:///", "file:///../../etc": "file:///etc",
		"demo://resource/static/a.md": "demo://resource/static/a.md", "DEMO://Resource/X": "demo://Resource/X", "demo://r": "demo://r",
		"note:inbox%2F1": "note:inbox/1", "https://h/a/./b?q=1#f": "https://h/a/b?q=1#f", "urn:isbn:0451450523": "urn:isbn:0451450523",
		"HTTPS://H:443/x": "https://h/x", "https://h./x": "https://h/x", "http://h:8080/x": "http://h:8080/x",
		"file://server/share": "", "file://127.0.0.1/etc": "", "file://x@/etc": "", "file:///etc?x": "", "file:///etc#x": "",
		`https://h/a\..\secret`: "", "https:h/x": "", "https:/h/x": "", "https:///h/x": "", "https://u@h/x": "", " file:///etc/passwd": "", "file:///etc/pass\twd": "", "file:///%zz": "", "no uri": "", "": "", "/etc/passwd": "",
	} {
		if got, ok := policy.CanonicalURI(in); got != want || ok != (want != "") {
			t.Errorf("%q: %q %v, want %q", in, got, ok, want)
		}
	}
}
