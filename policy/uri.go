package policy

import (
	"net/url"
	"path"
	"strings"
)

// CanonicalURI returns the spelling under which patterns judge a URI: the scheme in
// lower case, and the host of one that the web knows, percent-encoding undone in
// the path, no dot segments, and files as file:///path. ok is false for what is no URI that
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
	switch u.Scheme {
	case "file":
		return canonicalFile(u)
	case "http", "https", "ws", "wss", "ftp": // which browsers read with leniency
		if u.Opaque != "" || u.Host == "" || u.User != nil || strings.Contains(s, `\`) {
			return "", false
		}
		u.Host = strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(u.Host), ports[u.Scheme]), ".")
	}
	if u.Opaque != "" {
		opaque, err := url.PathUnescape(u.Opaque)
		if err != nil {
			return "", false
		}
		return u.Scheme + ":" + opaque + suffix(u), true
	}
	user := ""
	if u.User != nil {
		user = u.User.String() + "@"
	}
	p := u.Path
	if p != "" {
		slash := strings.HasSuffix(p, "/")
		if p = path.Clean("/" + p); slash && p != "/" {
			p += "/"
		}
	}
	return u.Scheme + "://" + user + u.Host + p + suffix(u), true
}

var ports = map[string]string{"http": ":80", "https": ":443", "ws": ":80", "wss": ":443", "ftp": ":21"}

// canonicalFile is for files of this machine only; readers drop a query, a
// fragment or a host, or do not.
func canonicalFile(u *url.URL) (string, bool) {
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.User != nil || u.Host != "" && !strings.EqualFold(u.Host, "localhost") {
		return "", false
	}
	p := u.Path
	if u.Opaque != "" {
		var err error
		if p, err = url.PathUnescape(u.Opaque); err != nil {
			return "", false
		}
	}
	return "file://" + path.Clean("/"+p), true
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
