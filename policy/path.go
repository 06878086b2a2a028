package policy

import (
	"net/url"
	"path"
	"strings"
)

// under reports whether the path p lies in the directory dir or is dir itself,
// both cleaned; they may be file URLs. undecided is true for a path that could be
// anywhere, and for one of which readers disagree: a backslash is a letter or a slash,
// and the case of letters counts or does not. A dir with a drive or a backslash is for
// Windows alone.
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
		below = isBelow(place, path.Join("/", there), sameOnWindows)
		switch {
		case volume == "": // and so of a drive that is not told
			return false, below
		case !strings.EqualFold(volume, of):
			return false, volume == network
		}
		return below, !path.IsAbs(place)
	}
	below = isBelow(place, there, sameOnWindows)
	if strings.Contains(dir, `\`) || volume == "" && !path.IsAbs(here) && strings.Contains(p, `\`) && !strings.Contains(p, "/") {
		return below, false // src\x is under src, since nobody has a file of that name
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

// What is on another machine, which may be this one, or on a device.
const (
	network = "//"
	device  = "/??/"
)

// onWindows returns where a path begins for Windows, which is on a drive, on the network or
// not told, and its cleaned rest. A drive may have a slash before it, as in a file URL, or
// the prefix of a device. Space around the path is left out, as some readers do.
func onWindows(p string) (volume, rest string) {
	p = strings.ReplaceAll(strings.TrimSpace(p), `\`, "/")
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

// clean does so for what is no URL. A name of the working directory, as in ./file:/x and
// ./C:/x, would be a URL or a drive without what is before it, and so is undecided.
func clean(p string) (cleaned string, ok bool) {
	if p == "" || !certain(p) {
		return "", p == ""
	}
	cleaned = path.Clean(strings.ReplaceAll(p, `\`, "/"))
	before, _ := onWindows(p)
	after, _ := onWindows(cleaned)
	return cleaned, !isFile(asBrowsersDo(cleaned)) && (after == "" || after == before)
}

// certain reports that a path leads all readers to one place. It could be anywhere if it
// climbs out of where it starts, or out of a home directory, or if it climbs and is read in
// two ways; and so could one that ends for some readers at a zero byte.
func certain(p string) bool {
	return strings.IndexByte(p, 0) < 0 && (!climbs(p) || climbsAlike(p))
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
	if strings.Contains(p, "/") && strings.Contains(p, `\`) || strings.Contains(p, ".. ") || strings.TrimSpace(p) != p || strings.HasPrefix(p, "~") {
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
	if err != nil || u.Opaque != "" || u.User != nil || u.Host != "" && !strings.EqualFold(u.Host, "localhost") || u.RawQuery != "" || u.ForceQuery || strings.ContainsAny(s, "#|") {
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
