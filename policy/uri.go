package policy

import (
	"net/url"
	"path"
	"strconv"
	"strings"
)

// CanonicalURI returns the spelling under which patterns judge a URI: the scheme in
// lower case, percent-encoding undone in the path, no dot segments, files as
// file:///path, and of one that the web knows the host in lower
// case, no port that is meant without one, at least / as path and no fragment. ok is
// false for what is no URI that every reader would read alike, such as one with spaces
// around it.
//
// Readers differ (RFC 3986 section 6, the WHATWG URL standard): file:/etc,
// FILE:///etc and file://localhost/%65tc are all the directory /etc to some.
func CanonicalURI(s string) (uri string, ok bool) { return canonicalURI(s, false) }

// canonicalURI is CanonicalURI, which also has the ASCII form of a foreign name for a
// pattern. A URI with one is none that all read alike: patterns with globs in its name would
// not match that form.
func canonicalURI(s string, pattern bool) (uri string, ok bool) {
	if strings.TrimSpace(s) != s {
		return "", false
	}
	backslash := strings.Contains(s, `\`)
	if isFile(s) {
		s = strings.ReplaceAll(s, `\`, "/")
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || !oneClimb(u.Path, u.EscapedPath(), backslash) {
		return "", false
	}
	switch u.Scheme {
	case "file":
		return canonicalFile(u, backslash)
	case "http", "https", "ws", "wss", "ftp": // which browsers read with leniency
		if u.Opaque != "" || u.User != nil || backslash || strings.Contains(authority(s), "%") {
			return "", false
		}
		if u.Host, ok = canonicalHost(u, pattern); !ok {
			return "", false
		}
		u.Fragment = "" // which stays with the reader
		if u.Path == "" {
			u.Path = "/"
		}
	}
	if u.Opaque != "" {
		opaque, err := url.PathUnescape(u.Opaque)
		if err != nil || strings.Contains(opaque, "\x00") || climbs(opaque) || strings.Contains("/"+opaque+"/", "/./") { // which some leave as it is
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
		slash := strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") || strings.HasSuffix(p, "/..")
		if p = path.Clean("/" + p); slash && p != "/" {
			p += "/"
		}
	}
	return u.Scheme + "://" + user + u.Host + p + suffix(u), true
}

// oneClimb reports whether every reader would take the dot segments out of a path alike: some
// take an empty segment for none, and an encoded slash, or a backslash, for a letter.
func oneClimb(p, escaped string, backslash bool) bool {
	if strings.Contains(p, "\x00") {
		return false
	}
	escaped = strings.ToLower(escaped)
	return !climbs(p) || !backslash && !strings.Contains(escaped, "//") && !strings.Contains(escaped, "%2f") && !strings.Contains(escaped, "%5c") && climbsAlike(p)
}

// authority is what a URI has between // and its path.
func authority(uri string) string {
	_, rest, _ := strings.Cut(uri, "//")
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		rest = rest[:end]
	}
	return rest
}

// canonicalHost is host and port of a URI of the web. Some readers map other letters than
// IDNA leaves as they are, and read 127.1 and 0x7f000001 as an address.
func canonicalHost(u *url.URL, pattern bool) (string, bool) {
	name := lowerASCII(strings.TrimSuffix(u.Hostname(), "."))
	var host string
	var err error
	if strings.HasPrefix(u.Host, "[") {
		if host, err = ipv6(name); strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
	} else if host, err = domain(name); err == nil && host != name {
		if foreign, err := names.ToUnicode(host); !pattern || err != nil || foreign != name {
			return "", false
		}
	}
	if err != nil || u.Port() == "" {
		return host, err == nil
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		return "", false
	}
	if port == ports[u.Scheme] {
		return host, true
	}
	return host + ":" + strconv.FormatUint(port, 10), true
}

// ports are those that are meant where a URI names none.
var ports = map[string]uint64{"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21}

// canonicalFile is for files of this machine only; readers drop a query, a
// fragment or a host, or do not. On Windows they may drop the end of a name.
func canonicalFile(u *url.URL, backslash bool) (string, bool) {
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.User != nil || u.Host != "" && !strings.EqualFold(u.Host, "localhost") {
		return "", false
	}
	p := u.Path
	if u.Opaque != "" {
		var err error
		if p, err = url.PathUnescape(u.Opaque); err != nil || !oneClimb(p, u.Opaque, backslash) {
			return "", false
		}
	}
	p = path.Clean("/" + strings.ReplaceAll(p, `\`, "/"))
	if strings.HasPrefix(p, "/?") || len(p) > 2 && p[2] == '|' { // the prefix of a device, and what browsers take for a drive
		return "", false
	}
	if hasDrive(p[1:]) {
		if len(p) > 3 && p[3] != '/' { // from where one is on that drive
			return "", false
		}
		for part := range strings.SplitSeq(p[3:], "/") {
			if strings.Contains(part, ":") || strings.TrimRight(part, ". ") != part {
				return "", false
			}
		}
	}
	return "file://" + p, true
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
