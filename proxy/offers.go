package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/yosida95/uritemplate/v3"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
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
			t.note(up.Name(), r.Key, "withheld: %s serves the resource of this URI", o.resources[i].up.Name())
			continue
		}
		o.byURI[r.Key] = len(o.resources)
		o.resources = append(o.resources, offer{up, r.Key, r.Raw, never(policy.KindResource, up, judged(r.Key))})
	}
	for _, r := range c.Templates {
		if slices.ContainsFunc(o.templates, func(x offer) bool { return x.key == r.Key }) {
			t.note(up.Name(), r.Key, "withheld: another upstream serves the resources of this template")
			continue
		}
		o.patterns = append(o.patterns, template(r.Key))
		o.templates = append(o.templates, offer{up, r.Key, r.Raw, false})
	}
	for _, p := range c.Prompts {
		if up.Bare() && (strings.HasPrefix(p.Key, ownName+"_") || t.namesake(p.Key) != "") {
			t.note(up.Name(), p.Key, "withheld: a bare name must not look like a prompt of another upstream or of haldir")
			continue
		}
		name, changed := expose(up.Name(), p.Key, up.Bare(), limit)
		if _, taken := o.byPrompt[name]; taken {
			t.note(up.Name(), p.Key, "withheld: its name %s is that of another prompt", name)
			continue
		}
		if changed {
			t.note(up.Name(), p.Key, "the prompt is listed as %s", name)
		}
		raw := p.Raw
		if name != p.Key {
			raw = p.As(name)
		}
		o.byPrompt[name] = len(o.prompts)
		o.prompts = append(o.prompts, offer{up, p.Key, raw, never(policy.KindPrompt, up, p.Key)})
	}
}

// lengths are the prefix modifiers of a URI template that make it large.
var lengths = regexp.MustCompile(`:[0-9]{3,}`)

// template compiles a URI template. One that is malformed, or so large that to
// match it would take memory without bound, matches nothing.
func template(text string) *uritemplate.Template {
	if len(text) > 1024 || strings.Count(text, "{") > 16 || strings.Count(text, ",") > 32 || lengths.MatchString(text) {
		return nil
	}
	t, err := uritemplate.New(text)
	if err != nil {
		return nil
	}
	return t
}

// readers returns the upstreams that may know a URI: the one that lists it, else
// the first whose template has it, else those that list resources of its scheme,
// else all that have resources, since a result may link to what no list has.
func (s *Server) readers(uri string) []Upstream {
	o := &s.current().offers
	if i, ok := o.byURI[uri]; ok {
		return []Upstream{o.resources[i].up}
	}
	for i, p := range o.patterns {
		if p != nil && p.Match(uri) != nil {
			return []Upstream{o.templates[i].up}
		}
	}
	scheme, _, _ := strings.Cut(uri, ":")
	var same []Upstream
	for _, x := range slices.Concat(o.resources, o.templates) {
		if other, _, _ := strings.Cut(x.key, ":"); strings.EqualFold(other, scheme) && !slices.Contains(same, x.up) {
			same = append(same, x.up)
		}
	}
	if len(same) > 0 {
		return same
	}
	return s.capable("resources")
}

// capable returns the upstreams that declare a capability, in their order.
func (s *Server) capable(capability string) []Upstream {
	var ups []Upstream
	for _, up := range s.o.Upstreams {
		if _, ok := declared(up.Catalogue().Server)[capability]; ok {
			ups = append(ups, up)
		}
	}
	return ups
}

// declared returns the capabilities in the result of an initialize.
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
		if o.hidden && s.o.HideNever {
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
	if members, err := wire.Members(r.msg.Params); err == nil {
		if _, ok := wire.Find(members, "cursor"); ok {
			return wire.Failure(&wire.Error{
				Code: wire.CodeInvalidParams, Message: "haldir lists all " + listings[method].member + " on one page; it has given out no cursor", ID: r.msg.ID,
			})
		}
	}
	s.settle(r.ctx)
	list := s.listing(method)
	s.mu.Lock()
	s.listed[method] = list
	s.mu.Unlock()
	return wire.Result(r.msg.ID, list)
}

// field returns a text in params and where it stands.
func field(params json.RawMessage, path ...string) (text string, start, end int, ok bool) {
	value := params
	for _, name := range path {
		members, err := wire.Members(value)
		if err != nil {
			return "", 0, 0, false
		}
		m, found := wire.Find(members, name)
		if !found {
			return "", 0, 0, false
		}
		start, end = start+m.Start, start+m.End
		value = m.Value
	}
	text, ok = wire.String(value)
	return text, start, end, ok
}

// maxURI bounds the URI of a resource: it is recorded.
const maxURI = 8 << 10

// readResource is resources/read and resources/subscribe, governed as a call of a
// tool is. A resource that no list has is asked for in turn of those who may have
// it: the first that knows it and may be asked answers.
func (s *Server) readResource(r *request) []byte {
	answer, _ := s.resource(r)
	return answer
}

// judged is the spelling under which a URI is judged: the canonical one, or that
// of a server that has its own way of writing.
func judged(uri string) string {
	if c, ok := policy.CanonicalURI(uri); ok {
		return c
	}
	return uri
}

// resource does so and says who has answered, nil if nobody was asked.
func (s *Server) resource(r *request) ([]byte, Upstream) {
	uri, _, _, ok := field(r.msg.Params, "uri")
	if !ok {
		return s.malformed(r, "", r.msg.Method+" needs a uri"), nil
	}
	_, listed := s.current().offers.byURI[uri]
	_, ok = policy.CanonicalURI(uri)
	switch {
	case len(uri) > maxURI:
		return s.malformed(r, uri, fmt.Sprintf("the uri is longer than %d bytes", maxURI)), nil
	case !ok && !listed:
		return s.malformed(r, uri, "the uri is not one that every reader would read alike"), nil
	}
	body := audit.NewBody(fmt.Appendf(nil, `{"uri":%s}`, wire.Quote(uri)), s.o.Detail, s.o.Secrets())
	var refused, last []byte
	for _, up := range s.readers(uri) {
		call := policy.Call{
			Kind: policy.KindResource, Session: s.o.Use.ID, Agent: s.o.Agent, Upstream: up.Name(), Tool: judged(uri),
			Arguments: fmt.Appendf(nil, `{"uri":%s}`, wire.Quote(uri)),
		}
		answer, end := s.judge(r, up, call, body, r.msg.Params)
		switch {
		case end == endKnown:
			return answer, up
		case end == endRefused && refused == nil:
			refused = answer
		}
		last = answer
	}
	switch {
	case refused != nil:
		return refused, nil
	case last != nil:
		return last, nil
	}
	return wire.Failure(&wire.Error{Code: codeNoResource, Message: "Resource not found", Data: fmt.Appendf(nil, `{"uri":%s}`, wire.Quote(uri)), ID: r.msg.ID}), nil
}

// malformed records a read that cannot be judged, and answers it.
func (s *Server) malformed(r *request, uri, why string) []byte {
	s.recordMalformed(r, toolCall{tool: "resource:" + uri}, errors.New(why))
	return s.invalid(r, why)
}

// codeNoResource is what servers of the handshake era answer about a resource
// they do not have (MCP 2025-11-25, resources, error handling).
const codeNoResource = -32002

// prompt is prompts/get, governed as a call of a tool is.
func (s *Server) prompt(r *request) []byte {
	name, start, end, ok := field(r.msg.Params, "name")
	if !ok {
		return s.invalid(r, "prompts/get needs a name")
	}
	o := &s.current().offers
	i, known := o.byPrompt[name]
	if !known {
		s.settle(r.ctx)
		o = &s.current().offers
		if i, known = o.byPrompt[name]; !known {
			return s.invalid(r, "Unknown prompt: "+wire.Printable(name, longestName))
		}
	}
	p := o.prompts[i]
	var arguments json.RawMessage
	if members, err := wire.Members(r.msg.Params); err == nil {
		if a, ok := wire.Find(members, "arguments"); ok && wire.KindOf(a.Value) == "an object" {
			arguments = a.Value
		}
	}
	call := policy.Call{Kind: policy.KindPrompt, Session: s.o.Use.ID, Agent: s.o.Agent, Upstream: p.up.Name(), Tool: p.key, Arguments: arguments}
	body := audit.NewBody(arguments, s.o.Detail, s.o.Secrets())
	answer, _ := s.judge(r, p.up, call, body, wire.Splice(r.msg.Params, start, end, wire.Quote(p.key)))
	return answer
}

func (s *Server) invalid(r *request, why string) []byte {
	return wire.Failure(&wire.Error{Code: wire.CodeInvalidParams, Message: why, ID: r.msg.ID})
}

// judge takes the governed path of what is no call of a tool. Its refusals are
// JSON-RPC errors.
func (s *Server) judge(r *request, up Upstream, call policy.Call, body audit.Body, params json.RawMessage) ([]byte, end) {
	s.mu.Lock()
	client := s.client
	s.mu.Unlock()
	attempt := ledger.Attempt{Use: s.o.Use, Client: client, Config: s.o.Config, Call: call, Body: body}
	return s.governed(r, up, attempt, s.same(r, params), func(refusal Refusal) []byte { return refusal.failure(r.msg.ID) })
}

// same is the host's request as it goes on, with these params.
func (s *Server) same(r *request, params json.RawMessage) upstream.Call {
	return upstream.Call{Method: r.msg.Method, Params: params, Token: progressToken(params)}
}

// pass forwards a request that no policy is about.
func (s *Server) pass(r *request, up Upstream, params json.RawMessage) []byte {
	m, err := s.forward(r, up, s.same(r, params))
	if err != nil {
		return s.broken(r, up, err)
	}
	return m.WithID(r.msg.ID)
}

// complete is completion/complete: it belongs to the prompt or template it is
// about, and is refused where that could never be had. It is asked at each key, so
// what passes is not recorded.
func (s *Server) complete(r *request) []byte {
	kind, _, _, _ := field(r.msg.Params, "ref", "type")
	o := &s.current().offers
	switch kind {
	case "ref/prompt":
		name, start, end, ok := field(r.msg.Params, "ref", "name")
		if i, known := o.byPrompt[name]; ok && known {
			p := o.prompts[i]
			return s.completeFor(r, policy.KindPrompt, p.up, p.key, wire.Splice(r.msg.Params, start, end, wire.Quote(p.key)))
		}
		return s.invalid(r, "Unknown prompt: "+wire.Printable(name, longestName))
	case "ref/resource":
		uri, _, _, ok := field(r.msg.Params, "ref", "uri")
		if i := slices.IndexFunc(o.templates, func(t offer) bool { return t.key == uri }); ok && i >= 0 {
			return s.completeFor(r, policy.KindResource, o.templates[i].up, uri, r.msg.Params)
		}
		if ups := s.readers(uri); ok && len(ups) > 0 {
			return s.completeFor(r, policy.KindResource, ups[0], uri, r.msg.Params)
		}
		return s.invalid(r, "Unknown resource: "+wire.Printable(uri, longestName))
	}
	return s.invalid(r, "completion/complete needs a ref to a prompt or a resource")
}

func (s *Server) completeFor(r *request, kind policy.Kind, up Upstream, key string, params json.RawMessage) []byte {
	name := key
	if kind == policy.KindResource {
		name = judged(key)
	}
	if s.neverOther(kind, up, name) { // it goes through the rules for its record and its reason
		call := policy.Call{Kind: kind, Session: s.o.Use.ID, Agent: s.o.Agent, Upstream: up.Name(), Tool: wire.Printable(name, longestName)}
		answer, _ := s.judge(r, up, call, audit.Body{}, params)
		return answer
	}
	return s.pass(r, up, params)
}

// subscribe is resources/subscribe, judged and recorded as a read is. What is
// subscribed to is subscribed to again on a new connection.
func (s *Server) subscribe(r *request) []byte {
	answer, up := s.resource(r)
	if m, err := wire.ParseLenient(answer); err == nil && m.Error == nil && up != nil {
		uri, _, _, _ := field(r.msg.Params, "uri")
		s.mu.Lock()
		s.subscribed[uri] = up
		s.mu.Unlock()
		up.Keep(subscription+uri, &upstream.Call{Method: r.msg.Method, Params: slices.Clone(r.msg.Params)})
	}
	return answer
}

const subscription = "resources/subscribe "

// unsubscribe ends what subscribe began; it needs no leave. There is nothing to end
// where nothing was begun.
func (s *Server) unsubscribe(r *request) []byte {
	uri, _, _, ok := field(r.msg.Params, "uri")
	if !ok {
		return s.invalid(r, "resources/unsubscribe needs a uri")
	}
	s.mu.Lock()
	up := s.subscribed[uri]
	delete(s.subscribed, uri)
	s.mu.Unlock()
	if up == nil {
		return wire.Result(r.msg.ID, json.RawMessage("{}"))
	}
	up.Keep(subscription+uri, nil)
	return s.pass(r, up, r.msg.Params)
}

// Tasks (MCP 2025-11-25) belong to the upstream that made them. One that haldir has
// not seen being made, after it was started anew, can only be that of the one
// upstream that has tasks.
func (s *Server) task(r *request) []byte {
	id, _, _, ok := field(r.msg.Params, "taskId")
	if !ok {
		return s.invalid(r, r.msg.Method+" needs a taskId")
	}
	s.mu.Lock()
	owner, known := s.tasks[id]
	s.mu.Unlock()
	if ups := s.capable("tasks"); !known && len(ups) == 1 {
		owner = ups[0]
	}
	if owner == nil { // two servers may number alike, and none may learn another's ids
		return s.invalid(r, "Unknown task: "+wire.Printable(id, longestName))
	}
	return s.pass(r, owner, r.msg.Params)
}

// made notes whose the task is that a call has made.
func (s *Server) made(up Upstream, result json.RawMessage) {
	if id, _, _, ok := field(result, "task", "taskId"); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		if other, taken := s.tasks[id]; taken && other != up {
			s.tasks[id] = nil // nobody can tell whose it is
		} else if len(s.tasks) < maxTasks && len(id) <= longestName {
			s.tasks[strings.Clone(id)] = up
		}
	}
}

// maxTasks bounds how many tasks haldir remembers the makers of.
const maxTasks = 100_000

// listTasks is tasks/list: with one server that has tasks its pages are passed on,
// with several their lists are put together.
func (s *Server) listTasks(r *request) []byte {
	ups := s.capable("tasks")
	if len(ups) == 1 {
		return s.pass(r, ups[0], r.msg.Params)
	}
	if _, _, _, given := field(r.msg.Params, "cursor"); given {
		return s.invalid(r, "haldir lists all tasks on one page; it has given out no cursor")
	}
	var all []json.RawMessage
	for _, up := range ups {
		params := r.msg.Params
		for range maxTaskPages {
			m, err := s.forward(r, up, s.same(r, params))
			if err != nil || m.Error != nil {
				break // one that is down hides only its own
			}
			members, err := wire.Members(m.Result)
			if err != nil {
				break
			}
			if list, ok := wire.Find(members, "tasks"); ok {
				if page, err := wire.Elements(list.Value); err == nil {
					all = append(all, page...)
				}
			}
			next, _, _, more := field(m.Result, "nextCursor")
			if !more || next == "" {
				break
			}
			params = fmt.Appendf(nil, `{"cursor":%s}`, wire.Quote(next))
		}
	}
	b := []byte(`{"tasks":[`)
	for i, t := range all {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, t...)
	}
	return wire.Result(r.msg.ID, append(b, "]}"...))
}

const maxTaskPages = 100

// setLevel is logging/setLevel: every server that logs gets it, now or when it is
// connected.
func (s *Server) setLevel(r *request) []byte {
	call := upstream.Call{Method: r.msg.Method, Params: slices.Clone(r.msg.Params)}
	var answer []byte
	for _, up := range s.o.Upstreams {
		c := up.Catalogue()
		if _, logs := declared(c.Server)["logging"]; c.Known && !logs {
			continue
		}
		up.Keep(call.Method, &call)
		if !up.Ready() {
			continue
		}
		m, err := s.forward(r, up, s.same(r, r.msg.Params))
		if err != nil {
			s.o.Log.Warn().Err(err).Str("upstream", up.Name()).Msg("logging/setLevel")
			continue
		}
		if m.Error != nil {
			up.Keep(call.Method, nil)
			return m.WithID(r.msg.ID)
		}
		if answer == nil {
			answer = m.WithID(r.msg.ID)
		}
	}
	if answer == nil {
		answer = wire.Result(r.msg.ID, json.RawMessage("{}"))
	}
	return answer
}

// restoreWait bounds how long initialize waits for what an earlier run knew.
const restoreWait = 250 * time.Millisecond

// offered returns the capabilities and the instructions that haldir answers
// initialize with: those of its upstreams together where all of them are known,
// else all capabilities that there are, since the host asks once.
func (s *Server) offered() (capabilities json.RawMessage, instructions string) {
	var parts []json.RawMessage
	var texts []instruction
	for _, up := range s.o.Upstreams {
		c := up.Catalogue()
		if !c.Known || c.Server == nil {
			return json.RawMessage(everything), ""
		}
		var result struct {
			Capabilities json.RawMessage `json:"capabilities"`
			Instructions string          `json:"instructions"`
		}
		if json.Unmarshal(c.Server, &result) == nil {
			if len(result.Capabilities) <= maxCapabilities {
				parts = append(parts, capabilitiesOnly(result.Capabilities))
			}
			if result.Instructions != "" {
				texts = append(texts, instruction{up.Name(), result.Instructions})
			}
		}
	}
	return union(append(parts, json.RawMessage(ownCapabilities))), merge(texts)
}

// maxCapabilities bounds what one server declares, in bytes.
const maxCapabilities = 64 << 10

// capabilitiesOnly leaves out what is no capability: each is an object.
func capabilitiesOnly(raw json.RawMessage) json.RawMessage {
	members, err := wire.Members(raw)
	if err != nil {
		return json.RawMessage("{}")
	}
	b := []byte{'{'}
	for _, m := range members {
		if wire.KindOf(m.Value) != "an object" {
			continue
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(append(append(b, wire.Quote(m.Name)...), ':'), m.Value...)
	}
	return append(b, '}')
}

const (
	ownCapabilities = `{"tools":{"listChanged":true}}`
	everything      = `{"tools":{"listChanged":true},"resources":{"subscribe":true,"listChanged":true},"prompts":{"listChanged":true},"completions":{},"logging":{},"tasks":{"list":{},"cancel":{},"requests":{"tools":{"call":{}}}}}`
)

// union merges objects: true wins over false, objects are merged, of anything
// else the first stays.
func union(objects []json.RawMessage) json.RawMessage {
	var names []string
	values := map[string][]json.RawMessage{}
	for _, o := range objects {
		members, err := wire.Members(o)
		if err != nil {
			continue
		}
		for _, m := range members {
			if values[m.Name] == nil {
				names = append(names, m.Name)
			}
			values[m.Name] = append(values[m.Name], m.Value)
		}
	}
	b := []byte{'{'}
	for i, n := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, wire.Quote(n)...), ':')
		v := values[n]
		objects := slices.DeleteFunc(slices.Clone(v), func(x json.RawMessage) bool { return wire.KindOf(x) != "an object" })
		switch {
		case len(objects) > 0:
			b = append(b, union(objects)...)
		case slices.ContainsFunc(v, func(x json.RawMessage) bool { return string(x) == "true" }):
			b = append(b, "true"...)
		default:
			b = append(b, v[0]...)
		}
	}
	return append(b, '}')
}

// instruction is what one server tells the agent.
type instruction struct{ upstream, text string }

// head is how much of the instructions hosts show at least.
const head = 2048

// merge puts the instructions of several servers under their names. Each gets a
// fair part of what hosts show; what goes beyond it follows after all of them.
func merge(texts []instruction) string {
	switch len(texts) {
	case 0:
		return ""
	case 1:
		return texts[0].text
	}
	share := max(head/len(texts)-40, 100)
	var first, rest strings.Builder
	for _, t := range texts {
		text := strings.TrimSpace(t.text)
		cut := len(text)
		if cut > share {
			if cut = max(strings.LastIndexAny(text[:share], "\n."), strings.LastIndexByte(text[:share], ' ')) + 1; cut == 0 {
				cut = len(strings.ToValidUTF8(text[:share], "")) // no half of a character
			}
			fmt.Fprintf(&rest, "# %s, continued\n\n%s\n\n", t.upstream, strings.TrimSpace(text[cut:]))
		}
		fmt.Fprintf(&first, "# %s\n\n%s\n\n", t.upstream, strings.TrimSpace(text[:cut]))
	}
	return strings.TrimSpace(first.String() + rest.String())
}
