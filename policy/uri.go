package policy

import (
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
)

// CanonicalURI returns the spelling under which patterns judge a URI: the scheme in
// lower case, percent-encoding undone in the path, no dot segments, files as
// file:///path, and of one that the web knows the host in lower case, no port that is
// meant without one, at least / as path and no fragment. ok is false for what is no URI that
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
		if u.Opaque != "" || u.User != nil || strings.Contains(s, `\`) {
			return "", false
		}
		if u.Host, ok = canonicalHost(u); !ok {
			return "", false
		}
		u.Fragment = "" // which stays with the reader
		if u.Path == "" {
			u.Path = "/"
		}
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

// canonicalHost is host and port of a URI of the web. Some readers map other letters
// than those of ASCII to these, and read 127.1 and 0x7f000001 as an address.
func canonicalHost(u *url.URL) (string, bool) {
	name := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	addr, err := netip.ParseAddr(name)
	isAddr := err == nil && addr.Zone() == ""
	switch {
	case strings.HasPrefix(u.Host, "["):
		if !isAddr || !addr.Is6() {
			return "", false
		}
		name = "[" + addr.String() + "]"
	case name == "" || strings.ContainsFunc(name, notASCII) || strings.Contains(name, ":"), numeric(name) && !isAddr:
		return "", false
	}
	if u.Port() == "" {
		return name, true
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		return "", false
	}
	if port == ports[u.Scheme] {
		return name, true
	}
	return name + ":" + strconv.FormatUint(port, 10), true
}

// numeric reports whether browsers take a host for an address of IPv4: its last label is
// a number.
func numeric(host string) bool {
	label, digits := host[strings.LastIndexByte(host, '.')+1:], "0123456789"
	if rest, hex := strings.CutPrefix(label, "0x"); hex {
		label, digits = rest, digits+"abcdef"
	}
	return strings.Trim(label, digits) == ""
}

func notASCII(r rune) bool { return r >= 0x80 }

// ports are those that are meant where a URI names none.
var ports = map[string]uint64{"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21}

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
