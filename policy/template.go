package policy

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Expands returns what an enforced rule has against something that the URI template c.Tool
// could become: a rule that denies, or has a person asked, and one of whose patterns could
// match an expansion, unless its condition can be seen to hold for none. climbs says that
// values are given for the template that may lead out of where it begins, as dot segments of
// its own do as well, so that an expansion may be any URI of its scheme; an allow list must then
// have them all. What the rules say of the template itself
// is for [Engine.Decide].
func (e *Engine) Expands(c Call, climbs bool) (f Finding, forbidden bool) {
	climbs = climbs || climbsAfterAll(c.Tool)
	heads := templateHeads(c.Tool, climbs)
	for i := range e.rules {
		r := &e.rules[i]
		if r.shadow || !r.around(&c) {
			continue
		}
		switch r.kind {
		case TypeDeny, TypeApproval:
			forbidden = (r.all || r.tools.reach(&c, heads)) && !r.when.spares(&c, heads)
		case TypeAllow:
			forbidden = climbs && !r.tools.cover(&c, heads)
		case TypeSpendLimit, TypeRateLimit, TypeTimeWindow, TypeLoop:
		}
		if forbidden {
			return Finding{
				Policy: string(r.kind), Rule: r.id,
				Reason: fmt.Sprintf("%s could become what rule '%s' keeps back, and completions would tell of it", c.Noun(), r.id),
			}, true
		}
	}
	return Finding{}, false
}

// templateHeads returns how everything that a URI template becomes begins, in the spelling in
// which URIs are judged and in the template's own. Less is said of it than could be where
// that is not certain.
func templateHeads(template string, climbs bool) []string {
	head, _, _ := strings.Cut(template, "{")
	u, err := url.Parse(head)
	if err != nil || u.Scheme == "" {
		return []string{""}
	}
	scheme := len(u.Scheme) + len(":")
	_, rest, _ := strings.Cut(head, "://")
	canonical, ok := CanonicalURI(head)
	if climbs || !ok || !strings.Contains(rest, "/") { // a host that goes on is another one
		return []string{u.Scheme + ":", head[:scheme]}
	}
	if strings.HasSuffix(head, "/") && !strings.HasSuffix(canonical, "/") {
		canonical += "/"
	}
	return []string{canonical, head}
}

// climbsAfterAll reports whether a URI template has dot segments that its head does not show,
// where values are texts or end with a slash.
func climbsAfterAll(template string) bool {
	head, _, _ := strings.Cut(template, "{")
	rest := template[strings.LastIndexByte(head, '/')+1:]
	var texts []string
	for rest != "" {
		var text string
		text, rest, _ = strings.Cut(rest, "{")
		_, rest, _ = strings.Cut(rest, "}")
		texts = append(texts, text)
	}
	for _, value := range []string{"x", "/"} { // {major}.{minor}.{patch} climbs nowhere
		s, err := url.PathUnescape(strings.Join(texts, value))
		if err != nil || climbs(s) {
			return true
		}
	}
	return false
}

// reach reports whether one of the patterns could match something that begins with one of
// the heads.
func (ps patterns) reach(c *Call, heads []string) bool {
	return ps.any(c, func(g *glob) bool { return meet(heads, g.head()) })
}

// meet reports whether something can begin both with one of the heads and with start.
func meet(heads []string, start string) bool {
	return slices.ContainsFunc(heads, func(h string) bool { return strings.HasPrefix(h, start) || strings.HasPrefix(start, h) })
}

// cover reports whether one of the patterns matches everything that begins with the heads.
func (ps patterns) cover(c *Call, heads []string) bool {
	return ps.any(c, func(g *glob) bool {
		for _, h := range heads {
			if g.form != prefix || !strings.HasPrefix(h, g.text) {
				return false
			}
		}
		return true
	})
}

// any reports whether is holds for one of the patterns that are about what c is of c's upstream.
func (ps patterns) any(c *Call, is func(*glob) bool) bool {
	for i := range ps {
		p := &ps[i]
		if p.kind == c.Kind && (!p.both || p.upstream.match(c.Upstream)) && is(&p.tool) {
			return true
		}
	}
	return false
}

// head returns the text that everything begins with that g matches.
func (g *glob) head() string {
	if g.form != general {
		return g.text
	}
	return strings.ReplaceAll(g.text[:strings.IndexAny(g.text, special)], noSlash, "/")
}
