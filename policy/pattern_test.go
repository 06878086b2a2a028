package policy_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/policy"
)

func TestPatterns(t *testing.T) {
	tests := []struct {
		name, pattern, tool string
		want                bool
	}{
		{"a name matches in every upstream", "delete_all", "files/delete_all", true},
		{"a glob without a slash matches in every upstream", "delete_*", "files/delete_all", true},
		{"a glob without a slash is about the tool, not the upstream", "files*", "files/delete_all", false},
		{"a canonical id matches itself", "files/delete_all", "files/delete_all", true},
		{"a canonical id spares other upstreams", "files/delete_all", "db/delete_all", false},
		{"a name is whole", "delete", "files/delete_all", false},
		{"a name is whole at its front", "delete_all", "files/undelete_all", false},
		{"both parts are globs", "f*/d*", "files/delete_all", true},
		{"the upstream's part is whole", "file/*", "files/x", false},
		{"star matches everything", "*", "files/delete_all", true},
		{"star slash star matches everything", "*/*", "files/delete_all", true},
		{"star matches nothing at all too", "files/*", "files/", true},
		{"star in the middle", "files/d*l", "files/delete_all", true},
		{"star in front", "*_all", "files/delete_all", true},
		{"two stars", "*ele*al*", "files/delete_all", true},
		{"stars that only match after going back", "*a*ab", "f/aaab", true},
		{"a question mark is one character", "d?lete", "f/delete", true},
		{"a question mark is one character even of several bytes", "d?lete", "f/dülete", true},
		{"a question mark is not none", "d?elete", "f/delete", false},

		{"case matters", "delete_all", "files/Delete_All", false},
		{"case matters in a glob", "DELETE_*", "files/delete_all", false},
		{"case matters in a class", "[D]elete", "files/delete", false},

		{"a tool name with a slash is matched by star", "*", "files/ns/delete", true},
		{"star crosses the slash of a tool name", "n*e", "files/ns/delete", true},
		{"star after the first slash crosses the others", "files/n*e", "files/ns/delete", true},
		{"a trailing star after the first slash crosses the others", "files/*", "files/ns/delete", true},
		{"a question mark matches the slash of a tool name", "files/ns?delete", "files/ns/delete", true},
		{"a class matches the slash of a tool name", "files/ns[/]delete", "files/ns/delete", true},
		{"a pattern is split at its first slash", "files/ns/delete", "files/ns/delete", true},
		{"and only there", "files/ns/delete", "ns/delete", false},
		{"so the first part is always an upstream", "ns/delete", "files/ns/delete", false},
		{"star slash name is not any suffix", "*/delete", "files/ns/delete", false},
		{"star slash glob is", "*/*delete", "files/ns/delete", true},

		{"a class", "[abd]elete", "f/delete", true},
		{"a range", "[a-d]elete", "f/delete", true},
		{"a range without it", "[e-z]elete", "f/delete", false},
		{"a negated class", "[^a-c]elete", "f/delete", true},
		{"a negated class with it", "[^a-d]elete", "f/delete", false},
		{"a class of letters beyond ASCII", "[ä-ü]b", "f/öb", true},
		{"an escaped dash in a class", `[a\-c]`, "f/-", true},
		{"an escaped bracket in a class", `[\]]`, "f/]", true},
		{"an escaped star is a star", `del\*`, "f/del*", true},
		{"an escaped star is only a star", `del\*`, "f/delete", false},
		{"an escaped trailing star after a prefix", `del\**`, "f/del*ete", true},
		{"an escaped question mark", `\?`, "f/?", true},
		{"an escaped bracket", `\[x]`, "f/[x]", true},
		{"an escaped backslash", `a\\b`, `f/a\b`, true},
		{"an escaped ordinary character", `\d`, "f/d", true},
		{"a brace is no glob", "{a,b}", "f/a", false},
		{"a brace is a brace", "{a,b}", "f/{a,b}", true},
		{"an exclamation mark negates nothing", "[!a]", "f/b", false},
		{"a blank is part of the pattern", "delete ", "f/delete", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			upstream, tool, _ := strings.Cut(tt.tool, "/")
			if got := policy.MatchTool(tt.pattern, upstream, tool); got != tt.want {
				t.Errorf("MatchTool(%q, %q) = %v", tt.pattern, tt.tool, got)
			}
			// The same through every list of patterns of a ruleset.
			c := call(tt.tool, "")
			d := compile(t, rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{tt.pattern}})).Decide(c, free())
			if (d.Verdict == policy.Deny) != tt.want {
				t.Errorf("deny: %s", seen(d))
			}
			d = compile(t, rules(policy.Rule{Type: policy.TypeAllow, Tools: []string{tt.pattern}})).Decide(c, free())
			if (d.Verdict == policy.Allow) != tt.want {
				t.Errorf("allow: %s", seen(d))
			}
			d = compile(t, policy.Ruleset{Costs: []policy.Cost{{Tools: []string{tt.pattern}, USD: 1}}}).Decide(c, free())
			if (d.Cost == 1) != tt.want {
				t.Errorf("cost: %s", seen(d))
			}
			d = compile(t, policy.Ruleset{Scopes: []policy.Scope{{Tools: []string{tt.pattern}, Require: []string{"x"}}}}).Decide(c, policy.State{Now: noon})
			if (d.Rule == "x") != tt.want {
				t.Errorf("scope: %+v", d)
			}
		})
	}
}

// A pattern of URIs matches what it means, though it is not written as URIs are judged, and
// what is judged in its own spelling since a server lists it so.
func TestPatternsOfURIsMatchInAnySpelling(t *testing.T) {
	for _, tt := range []struct {
		pattern, uri string
		want         bool
	}{
		{"https://intra", "https://intra", true},
		{"HTTPS://Intra:0443#top", "https://intra/", true},
		{"https://intra", "https://intra/x", false},
		{"https://intra/x#part", "https://intra/x", true},
		{"https://127.0.0.1:443/", "https://127.0.0.1", true},
		{"https://[::FFFF:127.0.0.1]/*", "https://127.0.0.1/x", true},
		{"https://[::1]", "https://[0::1]/", true},
		{"https://[a-c]/*", "https://b/x", true},
		{"https://münchen.de/*", "https://xn--mnchen-3ya.de/x", true},
		{"https://münchen.de/*", "https://münchen.de/x", true},
		{"https://*.münchen.de/*", "https://a.münchen.de/x", true},
		{"https://münchen*", "https://münchen.de/x", true},
		{"*münchen*", "https://münchen.de/x", true},
		{"HTTPS://*", "https://h/x", true},
		{"https://Intra*", "https://intranet/x", true},
		{"https://*.Intra:8080/X?", "https://a.intra:8080/X1", true},
		{"https://*.Intra/X?", "https://a.intra/x1", false},
		{"https://Intra:443/*", "https://intra/x", true},
		{"https://Intra:443/a*b#c", "https://intra/axb", true},
		{"https://intra/[#]*", "https://intra/%23x", true},
		{"https://intra/my%20docs/*", "https://intra/my%20docs/x", true},
		{"https://intra/a/../b*", "https://intra/bc", true},
		{"https://intra/a%2Ab/*", "https://intra/a*b/c", true},
		{"https://intra/a%2Ab/*", "https://intra/axb/c", false},
		{"https://intra/a%3Fb", "https://intra/a%3Fb", true},
		{"https://intra/a%3Fb", "https://intra/axb", false},
		{"file:/etc/pass*", "file:///etc/passwd", true},
		{"file:/*", "file:///etc", true},
		{"FILE://localhost/etc/*", "file:///etc/passwd", true},
		{"file:///etc/", "file:///etc", true},
		{"file:///c:*", "file:///c:/Users/x", true},
		{"file:///[cC]:/Users/*", "file:///C:/Users/x", true},
		{"file:///etc/%2a", "file:///etc/passwd", false},
		{`file:///etc/\*`, "file:///etc/*", true},
		{"demo://Host/*", "DEMO://Host/x", true},
		{"demo://Host/*", "demo://host/x", false},
		{"URN:x:*", "urn:x:1", true},
		{"https://me@Intra/x", "https://me@Intra/x", true},
		{"no uri", "no uri", true},
		{"*", "https://intra/", true},
	} {
		uri, ok := policy.CanonicalURI(tt.uri)
		if !ok {
			uri = tt.uri
		}
		for _, at := range []string{"up", "*"} {
			d := compile(t, rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"resource:" + at + "/" + tt.pattern}})).Decide(policy.Call{Kind: policy.KindResource, Upstream: "up", Tool: uri}, free())
			if (d.Verdict == policy.Deny) != tt.want {
				t.Errorf("%s/%s on %s: %s", at, tt.pattern, uri, seen(d))
			}
		}
	}
}

func TestGlobsOfUpstreamsAndAgents(t *testing.T) {
	tests := []struct {
		name, glob, value string
		want              bool
	}{
		{"a name", "bot", "bot", true},
		{"a name is whole", "bot", "bot-2", false},
		{"a prefix", "bot*", "bot-2", true},
		{"a glob", "*-[0-9]", "bot-2", true},
		{"case matters", "Bot", "bot", false},
		{"star crosses slashes", "team/*", "team/a/b", true},
		{"star in the middle crosses slashes", "team*b", "team/a/b", true},
		{"an agent's id is not split at a slash", "a/b", "a/b", true},
		{"star matches an empty id", "*", "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := policy.Call{Upstream: tt.value, Agent: "other", Tool: "t"}
			d := compile(t, rules(policy.Rule{Type: policy.TypeDeny, Upstreams: []string{tt.glob}})).Decide(c, free())
			if (d.Verdict == policy.Deny) != tt.want {
				t.Errorf("upstream: %s", seen(d))
			}
			c = policy.Call{Agent: tt.value, Upstream: "other", Tool: "t"}
			d = compile(t, rules(policy.Rule{Type: policy.TypeDeny, Agents: []string{tt.glob}})).Decide(c, free())
			if (d.Verdict == policy.Deny) != tt.want {
				t.Errorf("agent: %s", seen(d))
			}
		})
	}
}

func TestMalformedPatterns(t *testing.T) {
	for _, p := range []string{
		"[", "[a", "a[", "[]", "[]a]", "[^]", "[-]", "[a-", "[a-]", `\`, `a\`, `[\`, `*\`, "*[", "x*[", "[*", "x[*", "files/[", "[/x", `files\/x`, `fi*les/[a`,
		"a\x00b", "a*\x00", "files/\x00",
	} {
		t.Run(p, func(t *testing.T) {
			if policy.MatchTool(p, "files", p) || policy.MatchTool(p, "files", "x") || policy.MatchTool(p, "files", "") {
				t.Error("a malformed pattern matches")
			}
			for _, rs := range []policy.Ruleset{
				rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{"ok", p}}),
				rules(policy.Rule{Type: policy.TypeAllow, Tools: []string{"ok", p}}),
				{Costs: []policy.Cost{{Tools: []string{"ok", p}}}},
				{Scopes: []policy.Scope{{Tools: []string{"ok", p}, Require: []string{"read"}}}},
			} {
				_, err := policy.Compile(rs)
				errs := ruleErrors(t, err)
				if len(errs) != 1 || errs[0].Field != "tools" || errs[0].Item != 1 {
					t.Errorf("Compile: %v", err)
				}
			}
			if strings.Contains(p, "/") {
				return // upstreams and agents are not split
			}
			for field, r := range map[string]policy.Rule{
				"upstreams": {Type: policy.TypeDeny, Upstreams: []string{p}}, "agents": {Type: policy.TypeDeny, Agents: []string{p}},
			} {
				_, err := policy.Compile(rules(r))
				if errs := ruleErrors(t, err); len(errs) != 1 || errs[0].Field != field || errs[0].Item != 0 {
					t.Errorf("Compile: %v", err)
				}
			}
		})
	}
	t.Run("an empty pattern, which Compile refuses, matches not even an empty name", func(t *testing.T) {
		if policy.MatchTool("", "files", "") {
			t.Error("an empty pattern matches")
		}
	})
}

// refGlob is an independent reading of the grammar in glob's doc: *, ?, [a-z],
// [^a-z] and \, in which * also matches slashes. p must be well formed.
func refGlob(p, s []rune) bool {
	if len(p) == 0 {
		return len(s) == 0
	}
	if p[0] == '*' {
		return refGlob(p[1:], s) || len(s) > 0 && refGlob(p, s[1:])
	}
	if len(s) == 0 {
		return false
	}
	switch p[0] {
	case '?':
		return refGlob(p[1:], s[1:])
	case '[':
		i, negated, hit := 1, false, false
		if p[i] == '^' {
			negated, i = true, i+1
		}
		one := func() rune {
			if p[i] == '\\' {
				i++
			}
			i++
			return p[i-1]
		}
		for p[i] != ']' {
			lo := one()
			hi := lo
			if p[i] == '-' {
				i++
				hi = one()
			}
			hit = hit || lo <= s[0] && s[0] <= hi
		}
		return hit != negated && refGlob(p[i+1:], s[1:])
	case '\\':
		p = p[1:]
	}
	return p[0] == s[0] && refGlob(p[1:], s[1:])
}

func refPattern(pattern, upstream, tool string) bool {
	glob := func(p, s string) bool { return refGlob([]rune(p), []rune(s)) }
	if u, t, both := strings.Cut(pattern, "/"); both {
		return glob(u, upstream) && glob(t, tool)
	}
	return glob(pattern, tool)
}

func TestPatternsMatchWhatTheGrammarSays(t *testing.T) {
	// A tiny alphabet makes random patterns hit random names.
	piece := rapid.SampledFrom([]string{"a", "b", "A", "/", "*", "?", "ö", "[ab]", "[^a]", "[a-c]", `[\]]`, `\*`, `\a`, "-", "]", "["})
	name := rapid.StringOf(rapid.SampledFrom([]rune("abAö/*]-")))
	rapid.Check(t, func(t *rapid.T) {
		pattern := strings.Join(rapid.SliceOfN(piece, 1, 6).Draw(t, "pattern"), "")
		upstream := strings.ReplaceAll(name.Draw(t, "upstream"), "/", "")
		tool := name.Draw(t, "tool")
		e, err := policy.Compile(rules(policy.Rule{Type: policy.TypeDeny, Tools: []string{pattern}}))
		got := policy.MatchTool(pattern, upstream, tool)
		if err != nil {
			if got {
				t.Fatalf("%q does not compile, yet matches", pattern)
			}
			return
		}
		if want := refPattern(pattern, upstream, tool); got != want {
			t.Fatalf("MatchTool(%q, %q, %q) = %v", pattern, upstream, tool, got)
		}
		// A pattern that turns out malformed only when it is used would let a
		// denied call pass.
		d := e.Decide(policy.Call{Upstream: upstream, Tool: tool}, free())
		if (d.Verdict == policy.Deny) != got {
			t.Fatalf("MatchTool says %v, Decide %s", got, seen(d))
		}
	})
}

func TestAnythingMatchesItself(t *testing.T) {
	quote := strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)
	rapid.Check(t, func(t *rapid.T) {
		tool := rapid.String().Filter(func(s string) bool {
			return s != "" && utf8.ValidString(s) && !strings.ContainsAny(s, "\x00")
		}).Draw(t, "tool")
		if !policy.MatchTool("files/"+quote.Replace(tool), "files", tool) {
			t.Fatalf("%q does not match itself", tool)
		}
		if !policy.MatchTool("*", "files", tool) || !policy.MatchTool("*/*", "files", tool) {
			t.Fatalf("%q is not matched by *", tool)
		}
	})
}
