package policy

import (
	"net/url"
	"path"
	"strings"
)

// under reports whether the path p lies in the directory dir or is dir itself,
// both cleaned; p may be a file URL. undecided is true for a path that could be
// anywhere.
func under(p, dir string) (below, undecided bool) {
	dir, ok := filePath(dir)
	if !ok {
		return false, true
	}
	if p, ok = cleanPath(p); !ok {
		return false, true
	}
	dir = slashed(dir)
	switch {
	case p == "":
		return false, false
	case dir == ".":
		return !path.IsAbs(p), false
	}
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/"), false
}

// cleanPath returns a path without . and .., with a slash between its parts and none
// at its end; of a file URL its path, and of no path none. ok is false for a path that
// could be anywhere: one that climbs out of where it starts, or out of a home
// directory, or that climbs and has parts of which readers disagree where they end.
func cleanPath(p string) (cleaned string, ok bool) {
	text := p
	if p, ok = filePath(p); !ok {
		return "", false
	}
	if p == "" {
		return "", true
	}
	cleaned = slashed(p)
	if !climbs(p) {
		return cleaned, true
	}
	// Where a backslash is a letter, /etc/x\..\../../passwd is /etc/passwd, and where a
	// file URL is a path like any other, %2e%2e is a name.
	mixed := strings.Contains(p, "/") && strings.Contains(p, `\`) && !hasDrive(p) || p != text && strings.Contains(text, "%")
	if mixed || strings.HasPrefix(p, "~") || cleaned == ".." || strings.HasPrefix(cleaned, "../") {
		return "", false
	}
	return cleaned, true
}

// climbs reports that a part of p is "..".
func climbs(p string) bool {
	for part := range strings.FieldsFuncSeq(p, isSlash) {
		if part == ".." {
			return true
		}
	}
	return false
}

func slashed(p string) string { return path.Clean(strings.ReplaceAll(p, `\`, "/")) }

func isSlash(r rune) bool { return r == '/' || r == '\\' }

// hasDrive reports a path of Windows, where both slashes are slashes.
func hasDrive(p string) bool {
	return len(p) > 2 && ('a' <= p[0]|0x20 && p[0]|0x20 <= 'z') && p[1] == ':' && isSlash(rune(p[2]))
}

// filePath returns the path of a file URL, other texts as they are; ok is false
// for a file URL that names no file of this machine, or that has more than a path,
// which is part of the path for who does not know URLs.
func filePath(s string) (p string, ok bool) {
	if len(s) < 5 || !strings.EqualFold(s[:5], "file:") {
		return s, true
	}
	u, err := url.Parse(s)
	if err != nil || u.Opaque != "" || u.Host != "" && !strings.EqualFold(u.Host, "localhost") || u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#") {
		return "", false
	}
	return u.Path, true
}
