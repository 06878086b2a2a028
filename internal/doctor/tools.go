package doctor

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
)

// Tool is a tool that an upstream has.
type Tool struct {
	Upstream, Name string
	Shown          []byte // its definition as the agent sees it; nil: it does not
}

// Patterns finds policies, costs and scopes that seem to be about tools that there are not, each
// once. Of patterns for none of the upstreams that there are the config is told already. brought
// reports whether a list of patterns came with a pack: it has the names of all versions of a
// server, of which one is here.
func Patterns(rules policy.Ruleset, upstreams []string, tools []Tool, list string, brought func([]string) bool) (found []Finding) {
	look := func(where string, globs, of []string) {
		missed := unmatched(known(globs, upstreams), those(tools, of))
		if len(missed) == 0 || brought(globs) {
			return
		}
		whose := "there is"
		if len(of) > 0 {
			whose = "the upstreams of this policy have"
		}
		verb := "matches"
		if len(missed) > 1 {
			verb = "match"
		}
		found = append(found, New(PatternUnmatched, Warning, "policies", Do("correct it in haldir.yaml; the names are listed by: %s", list), "%s: %s %s no tool that %s", where, some(missed), verb, whose))
	}
	for i, r := range rules.Policies {
		look(fmt.Sprintf("policies[%d]", i), r.Tools, r.Upstreams)
	}
	for i, c := range rules.Costs {
		look(fmt.Sprintf("costs[%d]", i), c.Tools, nil)
	}
	for i, s := range rules.Scopes {
		look(fmt.Sprintf("scopes[%d]", i), s.Tools, nil)
	}
	return found
}

// known are the patterns but those that name an upstream which there is not.
func known(globs, upstreams []string) []string {
	return slices.DeleteFunc(slices.Clone(globs), func(g string) bool {
		name, _, both := strings.Cut(g, "/")
		return both && len(upstreams) > 0 && !strings.ContainsAny(name, special+":") && !slices.Contains(upstreams, name)
	})
}

// those are the tools of the upstreams that a rule is for; without any it is for all.
func those(tools []Tool, upstreams []string) []Tool {
	if len(upstreams) == 0 {
		return tools
	}
	return slices.DeleteFunc(slices.Clone(tools), func(t Tool) bool {
		return !slices.ContainsFunc(upstreams, func(glob string) bool { return policy.MatchTool(glob+"/*", t.Upstream, t.Name) })
	})
}

// special are the characters that make a name a pattern.
const special = `*?[\`

// unmatched are the patterns of a rule that its author need not have meant so: names that no tool
// has, and the others if none of them all matches one. A rule for whatever servers there may be,
// as that of haldir init is, has patterns for */…: one that matches nothing is not misspelt.
// Servers need not list all resources and prompts that they have, so those are left alone.
func unmatched(globs []string, tools []Tool) (missed []string) {
	var names []string
	some := false // of the patterns are about what is there, or may be
	for _, g := range globs {
		other := strings.HasPrefix(g, "resource:") || strings.HasPrefix(g, "prompt:")
		hit := !other && slices.ContainsFunc(tools, func(t Tool) bool { return policy.MatchTool(g, t.Upstream, t.Name) })
		if some = some || other || hit || strings.HasPrefix(g, "*/"); other || hit {
			continue
		}
		missed = append(missed, strconv.Quote(g))
		if !strings.ContainsAny(g, special) {
			names = append(names, strconv.Quote(g))
		}
	}
	if some {
		return names
	}
	return missed
}

// Shadows names the policies that only watch.
func Shadows(rules policy.Ruleset, denied string) (found []Finding) {
	for i, r := range rules.Policies {
		if r.Shadow {
			found = append(found, New(PolicyShadow, Note, "policies", Do("once its record is as you want it (%s), take mode: shadow out", denied),
				"policies[%d], of type %s, is in shadow mode", i, r.Type))
		}
	}
	return found
}

const (
	// tokens of text are taken to have so many bytes.
	bytesPerToken = 4
	// largeContext is how many tokens of tools are worth a warning: a tenth of the context of
	// most models, which is where Claude Code begins to look tools up instead.
	largeContext = 20000
	// longest description, in characters, that Claude Code shows.
	longestShown = 4096
)

// Tokens is about how much of a model's context the definitions of tools take.
func Tokens(tools []Tool) (n int) {
	for _, t := range tools {
		n += len(t.Shown)
	}
	return n / bytesPerToken
}

// Weight says what the tools of all upstreams cost in context, and which cost very much.
func Weight(tools []Tool, deny func(upstream string) string) (found []Finding) {
	var names []string
	by := map[string][]Tool{}
	shown := 0
	for _, t := range tools {
		if t.Shown == nil {
			continue
		}
		if shown++; by[t.Upstream] == nil {
			names = append(names, t.Upstream)
		}
		by[t.Upstream] = append(by[t.Upstream], t)
	}
	for _, name := range names {
		if n := Tokens(by[name]); n >= largeContext {
			found = append(found, New(ContextLarge, Warning, name, Fix{Text: "deny what is not needed, and it is not listed any more: " + deny(name)}, // a person says which
				"its %d tools cost some %d tokens of context", len(by[name]), n))
		}
	}
	if shown > 0 {
		found = append(found, New(Context, Fine, "tools", Fix{}, "an agent sees %d, some %d tokens of context", shown, Tokens(tools)))
	}
	return found
}

// key is what Claude Code takes as the name of an argument.
var key = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,64}$`) })

// Schemas finds the tools of which hosts make something else than their servers give.
func Schemas(tools []Tool, shown func(string) string) (found []Finding) {
	for _, t := range tools {
		var def struct {
			Description string `json:"description"`
			Schema      struct {
				Properties map[string]json.RawMessage `json:"properties"`
			} `json:"inputSchema"`
		}
		if t.Shown == nil || json.Unmarshal(t.Shown, &def) != nil {
			continue
		}
		name := shown(t.Name)
		for _, k := range slices.Sorted(maps.Keys(def.Schema.Properties)) { // the same one each time
			if !key().MatchString(k) {
				found = append(found, New(SchemaSkipped, Warning, t.Upstream, Fix{Text: "ask its author to name arguments by letters, digits, _, . and - alone, at most 64 of them"},
					"%s: it has an argument %q", name, shown(k)))
				break
			}
		}
		for _, k := range []string{"oneOf", "anyOf", "allOf"} {
			if _, ok := wire.At(t.Shown, "inputSchema", k); ok {
				found = append(found, New(SchemaRewritten, Note, t.Upstream, Fix{}, "%s: the outermost level of its schema has %s, which is flattened", name, k))
				break
			}
		}
		if n := utf8.RuneCountInString(def.Description); n > longestShown {
			found = append(found, New(DescriptionCut, Note, t.Upstream, Do("have it show more: %s", fmt.Sprintf("export CLAUDE_CODE_MAX_MCP_DESCRIPTION_LENGTH=%d", n)),
				"%s: its description has %d characters, and %d are shown", name, n, longestShown))
		}
	}
	return found
}
