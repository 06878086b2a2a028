package proxy

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/yosida95/uritemplate/v3"

	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
)

// offer is a resource, a resource template or a prompt in the merged lists.
type offer struct {
	up     Upstream
	key    string // its URI, URI template or name, as the upstream spells it
	raw    []byte // the definition as the host sees it
	hidden bool   // policy could never allow it
}

// offers are the merged lists of one moment beside the tools'.
type offers struct {
	resources, templates, prompts []offer
	byURI                         map[string]int
	byPrompt                      map[string]int // by exposed name
	patterns                      []*uritemplate.Template
}

// offer merges what an upstream has beside tools. URIs stay as they are: of two
// upstreams with the same one the first serves it.
func (t *table) offer(up Upstream, c upstream.Catalogue, limit int, never func(policy.Kind, Upstream, string) bool) {
	o := &t.offers
	if o.byURI == nil {
		o.byURI, o.byPrompt = map[string]int{}, map[string]int{}
	}
	for _, r := range c.Resources {
		if i, taken := o.byURI[r.Key]; taken {
			t.note(Clash, up.Name(), r.Key, "withheld: %s serves the resource of this URI", o.resources[i].up.Name())
			continue
		}
		o.byURI[r.Key] = len(o.resources)
		o.resources = append(o.resources, offer{up, r.Key, r.Raw, never(policy.KindResource, up, judged(r.Key))})
	}
	for _, r := range c.Templates {
		if slices.ContainsFunc(o.templates, func(x offer) bool { return x.key == r.Key }) {
			t.note(Clash, up.Name(), r.Key, "withheld: another upstream serves the resources of this template")
			continue
		}
		o.patterns = append(o.patterns, template(r.Key))
		o.templates = append(o.templates, offer{up, r.Key, r.Raw, false})
	}
	for _, p := range c.Prompts {
		if up.Bare() && (strings.HasPrefix(p.Key, ownName+"_") || t.namesake(p.Key) != "") {
			t.note(Withheld, up.Name(), p.Key, "withheld: a bare name must not look like a prompt of another upstream or of haldir")
			continue
		}
		name, changed := expose(up.Name(), p.Key, up.Bare(), limit)
		if _, taken := o.byPrompt[name]; taken {
			t.note(Clash, up.Name(), p.Key, "withheld: its name %s is that of another prompt", name)
			continue
		}
		if changed {
			t.note(Renamed, up.Name(), p.Key, "the prompt is listed as %s", name)
		}
		raw := p.Raw
		if name != p.Key {
			raw = p.As(name)
		}
		o.byPrompt[name] = len(o.prompts)
		o.prompts = append(o.prompts, offer{up, p.Key, raw, never(policy.KindPrompt, up, p.Key)})
	}
}

// capable returns the upstreams that declare a capability and may be asked, in their
// order.
func (s *Server) capable(capability string) []Upstream {
	var ups []Upstream
	for _, up := range s.rules().Upstreams {
		c := up.Catalogue()
		if _, ok := declared(c.Server)[capability]; ok && c.Blocked == "" {
			ups = append(ups, up)
		}
	}
	return ups
}

// declared returns the capabilities in a server's answer to its greeting.
func declared(server json.RawMessage) map[string]json.RawMessage {
	var result struct {
		Capabilities map[string]json.RawMessage `json:"capabilities"`
	}
	if server == nil || json.Unmarshal(server, &result) != nil {
		return nil
	}
	return result.Capabilities
}

// listings are the lists of the merged catalogue, by their method.
var listings = map[string]struct{ member, changed string }{
	"tools/list":               {"tools", "notifications/tools/list_changed"},
	"resources/list":           {"resources", "notifications/resources/list_changed"},
	"resources/templates/list": {"resourceTemplates", "notifications/resources/list_changed"},
	"prompts/list":             {"prompts", "notifications/prompts/list_changed"},
}

// listing encodes one of the lists as the host sees it.
func (s *Server) listing(method string) []byte {
	t := s.current()
	var list []offer
	switch method {
	case "tools/list":
		return s.list()
	case "resources/list":
		list = t.offers.resources
	case "resources/templates/list":
		list = t.offers.templates
	case "prompts/list":
		list = t.offers.prompts
	}
	b := append(append([]byte(`{"`), listings[method].member...), `":[`...)
	first := true
	for _, o := range list {
		if o.hidden && s.rules().HideNever {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(b, o.raw...)
	}
	return append(b, "]}"...)
}

// answerList answers any of the lists, whole, on one page.
func (s *Server) answerList(r *request) []byte {
	method := r.msg.Method
	if cursor, ok := wire.At(r.msg.Params, "cursor"); ok && string(cursor.Value) != "null" {
		return s.invalid(r, "haldir lists all "+listings[method].member+" on one page; it has given out no cursor")
	}
	s.settle(r.ctx)
	list := s.look(method)
	s.mu.Lock()
	s.listed[method] = list
	s.mu.Unlock()
	return wire.Result(r.msg.ID, list.bytes)
}

// seen is a list as the host has it.
type seen struct {
	bytes []byte
	said  int // how often upstreams had said by then that theirs have changed
}

func (s *Server) look(method string) seen {
	said := 0
	for _, up := range s.rules().Upstreams {
		said += up.Catalogue().Said[method]
	}
	return seen{s.listing(method), said}
}
