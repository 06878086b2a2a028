package policy

import (
	"net/url"
	"path"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// under reports whether the path p lies in the directory dir or is dir itself,
// both cleaned; they may be file URLs. undecided is true for a path that could be
// anywhere, and for one of which readers disagree: a backslash is a letter or a slash,
// the case of letters counts or does not, and letters are the same or not. A dir with a drive or
// a backslash is for Windows alone.
func under(p, dir string) (below, undecided bool) {
	p, known := filePath(p)
	dir, ok := filePath(dir)
	if !known || !ok {
		return false, true
	}
	if !certain(p) {
		return false, true
	}
	if p == "" {
		return false, false
	}
	exact, here := path.Clean(p), path.Clean(dir)
	volume, place := onWindows(p)
	of, there := onWindows(here)
	switch {
	case there == "." && of == "":
		inside := !path.IsAbs(exact)
		elsewhere := volume != "" || path.IsAbs(place) || strings.HasPrefix(place, "~") || strings.Contains(p, "://")
		return inside && !elsewhere, inside && elsewhere
	case of != "":
		root := path.Join("/", there)
		below, certainly := isBelow(place, root, alike), isBelow(place, root, sameOnWindows)
		switch {
		case volume == "": // and so of a drive that is not told
			return false, below
		case !strings.EqualFold(volume, of):
			return false, volume == network
		}
		return certainly, below != certainly || !path.IsAbs(place)
	}
	below = isBelow(place, there, alike)
	if strings.Contains(dir, `\`) {
		certainly := isBelow(place, there, sameOnWindows)
		return certainly, below != certainly
	}
	if volume == "" && !path.IsAbs(here) && strings.Contains(p, `\`) && !strings.Contains(p, "/") {
		exact = path.Clean(strings.ReplaceAll(p, `\`, "/")) // src\x is under src, since nobody has a file of that name
	}
	return below, below != isBelow(exact, here, func(a, b string) bool { return a == b })
}

// isBelow compares the parts of cleaned paths.
func isBelow(p, dir string, same func(a, b string) bool) bool {
	if path.IsAbs(p) != path.IsAbs(dir) {
		return false
	}
	p, dir = strings.TrimPrefix(p, "/"), strings.TrimPrefix(dir, "/")
	for dir != "" {
		var a, b string
		a, p, _ = strings.Cut(p, "/")
		b, dir, _ = strings.Cut(dir, "/")
		if !same(a, b) {
			return false
		}
	}
	return true
}

// sameOnWindows compares names as Windows does, which drops dots and spaces at their ends,
// and takes what follows a colon for a stream of the file.
func sameOnWindows(a, b string) bool {
	a, _, _ = strings.Cut(a, ":")
	b, _, _ = strings.Cut(b, ":")
	return strings.EqualFold(strings.TrimRight(a, ". "), strings.TrimRight(b, ". "))
}

// alike compares names as the least exact systems do: also as macOS, for which letters are the
// same that Unicode has in several forms, and without blanks at their ends.
func alike(a, b string) bool {
	return strings.EqualFold(core(a), core(b))
}

func core(name string) string {
	if strings.ContainsFunc(name, notASCII) {
		name = sharp.Replace(norm.NFKC.String(strings.Map(unformatted, name)))
	}
	name, _, _ = strings.Cut(name, ":")
	return strings.TrimRightFunc(name, func(r rune) bool { return r == '.' || isBlank(r) })
}

// sharp is the letter of names that is two in the other case, which NFKC leaves.
var sharp = strings.NewReplacer("ß", "ss", "ẞ", "ss")

// unformatted leaves out what has no form of its own, as HFS+ does.
func unformatted(r rune) rune {
	if unicode.Is(unicode.Cf, r) {
		return -1
	}
	return r
}

// isBlank reports what readers leave out at the ends of a text: those of JavaScript, Python
// and Go do not agree.
func isBlank(r rune) bool { return r <= ' ' || r == '\ufeff' || unicode.IsSpace(r) }

// What is on another machine, which may be this one, or on a device.
const (
	network = "//"
	device  = "/??/"
)

// onWindows returns where a path begins for Windows, which is on a drive, on the network or
// not told, and its cleaned rest. A drive may have a slash before it, as in a file URL, or
// the prefix of a device. Space around the path is left out, as some readers do.
func onWindows(p string) (volume, rest string) {
	p = strings.ReplaceAll(strings.TrimFunc(p, isBlank), `\`, "/")
	if strings.IndexByte(p, ':') >= 0 {
		for _, before := range [...]string{"//?/", "//./", device, "/", ""} {
			if drive, ok := strings.CutPrefix(p, before); ok && hasDrive(drive) {
				return drive[:2], path.Clean(drive[2:])
			}
		}
	}
	if strings.HasPrefix(p, network) || strings.HasPrefix(p, device) {
		volume = network
	}
	return volume, path.Clean(p)
}

// hasDrive reports a path of Windows, where both slashes are slashes.
func hasDrive(p string) bool {
	return len(p) > 1 && ('a' <= p[0]|0x20 && p[0]|0x20 <= 'z') && p[1] == ':'
}

// cleanPath returns a path without . and .., with a slash between its parts and none
// at its end; of a file URL its path, and of no path none. ok is false for a path that
// could be anywhere.
func cleanPath(p string) (cleaned string, ok bool) {
	if p, ok = filePath(p); !ok {
		return "", false
	}
	return clean(p)
}

// clean does so for what is no URL. What would be somewhere else is undecided: a name of the
// working directory that is a URL, a drive or a home directory without what is before it, as in
// ./file:/x and ./~/x, and a drive behind the prefix of a device.
func clean(p string) (cleaned string, ok bool) {
	if p == "" || !certain(p) {
		return "", p == ""
	}
	p = strings.ReplaceAll(p, `\`, "/")
	cleaned = path.Clean(p)
	before, place := onWindows(p)
	after, now := onWindows(cleaned)
	if after != "" && place == "/" && now == "." {
		cleaned += "/" // without it, it would be where one is on that drive
	}
	moved := after != before && (after != "" || before != network) || strings.HasPrefix(cleaned, "~") && !strings.HasPrefix(p, "~")
	return cleaned, !moved && !isFile(asBrowsersDo(cleaned))
}

// certain reports that a path leads all readers to one place. It could be anywhere if it
// climbs out of where it starts, or out of a home directory, or if it climbs and is read in
// two ways, such as with and without the blanks around it; and so could one that ends for
// some readers at a zero byte.
func certain(p string) bool {
	bare := strings.TrimFunc(p, isBlank)
	return strings.IndexByte(p, 0) < 0 && (!climbs(p) && (bare == p || !climbs(bare)) || climbsAlike(p))
}

// climbs reports that a part of p is "..", or is for a reader that leaves out spaces.
func climbs(p string) bool {
	if !strings.Contains(p, "..") {
		return false
	}
	for part := range strings.FieldsFuncSeq(p, isSlash) {
		if hasDrive(part) {
			part = part[2:]
		}
		if strings.TrimRight(part, " ") == ".." {
			return true
		}
	}
	return false
}

// climbsAlike reports that a path that climbs leads all readers to one place. Where a
// backslash is a letter, /etc/x\..\../../passwd is /etc/passwd; where a: is a drive and no
// folder, a:/../x is a:/x; and from the root of a share nothing climbs.
func climbsAlike(p string) bool {
	if strings.Contains(p, "/") && strings.Contains(p, `\`) || strings.Contains(p, ".. ") || strings.TrimFunc(p, isBlank) != p || strings.HasPrefix(p, "~") {
		return false
	}
	p = strings.ReplaceAll(p, `\`, "/")
	if strings.HasPrefix(p, network) || strings.HasPrefix(p, device) {
		return false
	}
	start := strings.TrimPrefix(p, "/")
	if !hasDrive(start) {
		p = path.Clean(p)
		return p != ".." && !strings.HasPrefix(p, "../")
	}
	inside := path.Clean("." + start[2:])
	return path.IsAbs(start[2:]) && inside != "." && inside != ".." && !strings.HasPrefix(inside, "../")
}

func isSlash(r rune) bool { return r == '/' || r == '\\' }

// filePath returns the path of a file URL, other texts as they are; ok is false
// for a file URL that names no file of this machine, that climbs, or that has more than a
// path, which is part of the path for who does not know URLs; and for one that only who
// leaves out what browsers do takes for one.
func filePath(s string) (p string, ok bool) {
	if !isFile(s) {
		return s, strings.IndexByte(s, ':') < 0 || !isFile(asBrowsersDo(s))
	}
	u, err := url.Parse(s)
	if err != nil || u.Opaque != "" || u.Path == "" || u.User != nil || u.Host != "" && !strings.EqualFold(u.Host, "localhost") || u.RawQuery != "" || u.ForceQuery || strings.ContainsAny(s, "#|") {
		return "", false
	}
	return u.Path, !climbs(u.Path)
}

func isFile(s string) bool { return len(s) >= 5 && strings.EqualFold(s[:5], "file:") }

// asBrowsersDo leaves out what browsers do.
func asBrowsersDo(url string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r == '\n' || r == '\r' {
			return -1
		}
		return r
	}, strings.TrimFunc(url, isOutside))
}
