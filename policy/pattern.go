package policy

import (
	"path"
	"strings"
)

// pattern matches canonical tool ids. Without a slash it matches the tool's own
// name in every upstream; with one, split at the first, both parts match.
type pattern struct {
	kind           Kind
	upstream, tool glob
	both           bool
}

// glob is a shell pattern (*, ?, [a-z], [^a-z], \ quotes) in which * also
// matches slashes, since a tool's name may contain them: path.Match on texts
// whose slashes are replaced. The common forms need no matcher.
type glob struct {
	text string
	form form
}

type form uint8

const (
	general form = iota
	literal
	prefix // text and then anything
)

const (
	noSlash = "\x00"
	special = `*?[\`
)

func compileGlob(s string) (glob, error) {
	if strings.Contains(s, noSlash) {
		return glob{}, path.ErrBadPattern
	}
	if !strings.ContainsAny(s, special) {
		return glob{s, literal}, nil
	}
	if head, ok := strings.CutSuffix(s, "*"); ok && !strings.ContainsAny(head, special) {
		return glob{head, prefix}, nil
	}
	g := glob{text: strings.ReplaceAll(s, "/", noSlash)}
	_, err := path.Match(g.text, "")
	return g, err
}

func (g *glob) match(s string) bool {
	switch g.form {
	case literal:
		return g.text == s
	case prefix:
		return strings.HasPrefix(s, g.text)
	case general:
	}
	ok, err := path.Match(g.text, strings.ReplaceAll(s, "/", noSlash))
	return ok && err == nil
}

func compilePattern(s string) (p pattern, err error) {
	for k, prefix := range kindPrefixes {
		if rest, ok := strings.CutPrefix(s, prefix); ok && prefix != "" {
			p.kind, s = Kind(k), rest
		}
	}
	upstream, tool, both := strings.Cut(s, "/")
	if !both {
		p.tool, err = compileGlob(s)
		return p, err
	}
	p.both = true
	if p.upstream, err = compileGlob(upstream); err != nil {
		return p, err
	}
	p.tool, err = compileGlob(tool)
	return p, err
}

// judged returns the pattern of a resource as it has to be to match the URIs that are meant,
// in the spelling in which they are judged; ok is false where that is not another one. A
// rule has both, since URIs that are none are judged as they are.
func (p pattern) judged(text string) (_ pattern, ok bool) {
	if p.kind != KindResource {
		return p, false
	}
	text = strings.TrimPrefix(text, kindPrefixes[KindResource])
	if p.both {
		_, text, _ = strings.Cut(text, "/")
	}
	uri := canonicalPattern(text)
	if uri == text {
		return p, false
	}
	var err error
	p.tool, err = compileGlob(uri)
	return p, err == nil
}

// canonicalPattern is [CanonicalURI] for as much of a pattern as is certain: up to the last slash
// before its first special character, or else the case of the scheme and of a host of the web.
func canonicalPattern(s string) string {
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok || strings.ContainsAny(scheme, special) {
		return s
	}
	scheme = strings.ToLower(scheme)
	_, web := ports[scheme]
	if web && strings.ContainsAny(rest, special) {
		rest, _, _ = strings.Cut(rest, "#")
	}
	s = scheme + ":" + rest
	head, tail, from := s, "", 0
	if address, _, ok := strings.Cut(strings.TrimPrefix(rest, "//["), "]"); ok && web {
		if _, err := ipv6(address); err == nil { // and no class of letters
			from = strings.IndexByte(s, ']')
		}
	}
	if i := strings.IndexAny(s[from:], special); i >= 0 {
		i = strings.LastIndexByte(s[:from+i], '/') + 1
		head, tail = s[:i], s[i:]
	}
	uri, ok := canonicalURI(head, true)
	switch {
	case ok && tail != "" && !strings.HasSuffix(uri, "/"):
		uri += "/"
		fallthrough
	case ok:
		return quoteGlob(uri) + tail
	case web:
		host := len(scheme) + len("://") + len(authority(s))
		return lowerASCII(s[:min(host, len(s))]) + s[min(host, len(s)):]
	}
	return s
}

// quoteGlob returns the pattern of a text.
func quoteGlob(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(special, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func (p *pattern) match(upstream, tool string) bool {
	return p.tool.match(tool) && (!p.both || p.upstream.match(upstream))
}

// of reports which kinds the patterns are about; none are about all.
func (ps patterns) of() (set [kinds]bool) {
	for i := range set {
		set[i] = len(ps) == 0
	}
	for i := range ps {
		set[ps[i].kind] = true
	}
	return set
}

// MatchTool reports whether a pattern of a policy matches a tool. A malformed
// pattern matches nothing; [Compile] refuses it.
func MatchTool(pattern, upstream, tool string) bool {
	p, err := compilePattern(pattern)
	return err == nil && pattern != "" && p.kind == KindTool && p.match(upstream, tool)
}

type patterns []pattern

func (ps patterns) match(c *Call) bool {
	for i := range ps {
		if ps[i].kind == c.Kind && ps[i].match(c.Upstream, c.Tool) {
			return true
		}
	}
	return false
}

type globs []glob

func (gs globs) match(s string) bool {
	for i := range gs {
		if gs[i].match(s) {
			return true
		}
	}
	return false
}
