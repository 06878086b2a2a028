package clients

import "testing"

// Addresses are compared as Claude Code 2.1.330 compares them.
func TestMatchURL(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{
			"https://example.com/mcp",
			[]string{"https://example.com/mcp", "https://example.com/mcp?k=v", "HTTPS://u:p@Example.com.:443/mcp"},
			[]string{"https://example.com/Mcp", "https://example.com/mcp/x", "https://example.com", "http://example.com/mcp", "https://example.com:8443/mcp"},
		},
		{"https://example.com", []string{"https://example.com", "https://example.com/", "https://example.com/x/y"}, []string{"https://example.com.evil.org/", "https://x.example.com"}},
		{"https://example.com/", []string{"https://example.com", "https://example.com/"}, []string{"https://example.com/x"}},
		{"https://*.example.com/*", []string{"https://a.example.com", "https://a.b.example.com/x"}, []string{"https://example.com/x", "https://evil.org/a.example.com/x"}},
		{"http://localhost:*/*", []string{"http://localhost:9/x", "http://localhost/x"}, []string{"http://localhost.evil.org:9/x"}},
		{"*://localhost:*/*", []string{"https://localhost/x", "http://LOCALHOST:9"}, []string{"http://127.0.0.1/"}},
		{"http://*/mcp", []string{"http://a:9/mcp"}, []string{"http://a:9/", "https://a/mcp"}},
		{"http://loc*", []string{"http://localhost:9/mcp"}, []string{"http://127.0.0.1/loc"}},
		{"http://a/*x*y", []string{"http://a/1x2y", "http://a/xy"}, []string{"http://a/yx", "http://a/y"}},
		{"*", []string{"https://example.com/"}, nil},
		{"localhost", nil, []string{"http://localhost"}},
	} {
		for _, url := range c.yes {
			if !matchURL(c.pattern, url) {
				t.Errorf("%s does not match %s", c.pattern, url)
			}
		}
		for _, url := range c.no {
			if matchURL(c.pattern, url) {
				t.Errorf("%s matches %s", c.pattern, url)
			}
		}
	}
}
