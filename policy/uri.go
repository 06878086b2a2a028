package policy

import (
	"net/url"
	"path"
	"strings"
)

// CanonicalURI returns the spelling under which patterns judge a URI: scheme and
// host in lower case, percent-encoding undone in the path, no dot segments, and
// file URLs of this machine as file:///path. ok is false for what is no URI that
// every reader would read alike, such as one with spaces around it.
//
// Readers differ (RFC 3986 section 6, the WHATWG URL standard): file:/etc,
// FILE:///etc and file://localhost/%65tc are all the directory /etc to some.
func CanonicalURI(s string) (uri string, ok bool) {
	if strings.TrimSpace(s) != s {
		return "", false
	}
	isFile := len(s) > 5 && strings.EqualFold(s[:5], "file:")
	if isFile {
		s = strings.ReplaceAll(s, `\`, "/")
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" {
		return "", false
	}
	if u.Opaque != "" && !isFile {
		opaque, err := url.PathUnescape(u.Opaque)
		if err != nil {
			return "", false
		}
		return u.Scheme + ":" + opaque + suffix(u), true
	}
	p := u.Path
	if isFile {
		if u.Opaque != "" {
			if p, err = url.PathUnescape(u.Opaque); err != nil {
				return "", false
			}
		}
		p = "/" + p
	}
	if p != "" {
		slash := strings.HasSuffix(p, "/")
		if p = path.Clean("/" + p); slash && p != "/" {
			p += "/"
		}
	}
	host := strings.ToLower(u.Host)
	if isFile && host == "localhost" {
		host = ""
	}
	user := ""
	if u.User != nil {
		user = u.User.String() + "@"
	}
	return u.Scheme + "://" + user + host + p + suffix(u), true
}

func suffix(u *url.URL) string {
	s := ""
	if u.RawQuery != "" {
		s = "?" + u.RawQuery
	}
	if u.Fragment != "" {
		s += "#" + u.Fragment
	}
	return s
}
