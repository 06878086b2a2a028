package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/yosida95/uritemplate/v3"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
)

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
	uri, ok := text(r.msg.Params, "uri")
	if !ok {
		return s.malformed(r, "", r.msg.Method+" needs a uri"), nil
	}
	listed := s.lists(uri)
	if !listed { // it may be one of an upstream that is yet to be heard
		s.settle(r.ctx)
		listed = s.lists(uri)
	}
	_, ok = policy.CanonicalURI(uri)
	switch {
	case len(uri) > maxURI:
		return s.malformed(r, uri, fmt.Sprintf("the uri is longer than %d bytes", maxURI)), nil
	case !ok && !listed:
		return s.malformed(r, uri, "the uri is not one that every reader would read alike"), nil
	}
	body := audit.NewBody(fmt.Appendf(nil, `{"uri":%s}`, wire.Quote(uri)), r.rules.Detail, s.o.Secrets())
	of := func(up Upstream) policy.Call {
		return policy.Call{
			Kind: policy.KindResource, Session: r.rules.Use.ID, Agent: r.rules.Agent, Upstream: up.Name(), Tool: judged(uri),
			Arguments: fmt.Appendf(nil, `{"uri":%s}`, wire.Quote(uri)),
		}
	}
	readers := s.readers(uri)
	if r.era != nil { // what one of them has asked for is for none of the others
		if i := slices.IndexFunc(readers, func(up Upstream) bool { return s.waits(r, of(up)) }); i >= 0 {
			readers = readers[i : i+1]
		}
	}
	var refused, last []byte
	for _, up := range readers {
		call := of(up)
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

// lists reports whether a resource is in the list of one.
func (s *Server) lists(uri string) bool {
	_, ok := s.current().offers.byURI[uri]
	return ok
}

// malformed records a read that cannot be judged, and answers it.
func (s *Server) malformed(r *request, uri, why string) []byte {
	s.recordMalformed(r, toolCall{tool: "resource:" + uri}, errors.New(why))
	return s.invalid(r, why)
}

// codeNoResource is what servers of the handshake era answer about a resource
// they do not have (MCP 2025-11-25, resources, error handling).
const codeNoResource = -32002

// lengths are the prefix modifiers of a URI template that make it large.
var lengths = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`:[0-9]{3,}`) })

// template compiles a URI template. One that is malformed, or so large that to
// match it would take memory without bound, matches nothing.
func template(text string) *uritemplate.Template {
	if len(text) > 1024 || strings.Count(text, "{") > 16 || strings.Count(text, ",") > 32 || lengths().MatchString(text) {
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

// subscribe is resources/subscribe, judged and recorded as a read is. What is
// subscribed to is subscribed to again on a new connection.
func (s *Server) subscribe(r *request) []byte {
	answer, up := s.resource(r)
	if m, err := wire.ParseLenient(answer); err == nil && m.Error == nil && up != nil {
		uri, _ := text(r.msg.Params, "uri")
		s.mu.Lock()
		now := s.heir(up)
		s.subscribed[uri] = now
		now.Keep(subscription+uri, &upstream.Call{Method: r.msg.Method, Params: slices.Clone(r.msg.Params)})
		s.mu.Unlock()
		if now != up { // it may be connected already, and has not heard of this
			if _, err := s.forward(r, now, s.same(r, r.msg.Params), nil); err != nil {
				s.o.Log.Warn().Str("error", s.o.Clean(err.Error())).Str("upstream", now.Name()).Msg("subscribe anew")
			}
		}
	}
	return answer
}

const subscription = "resources/subscribe "

// unsubscribe ends what subscribe began; it needs no leave. There is nothing to end
// where nothing was begun.
func (s *Server) unsubscribe(r *request) []byte {
	uri, ok := text(r.msg.Params, "uri")
	if !ok {
		return s.invalid(r, "resources/unsubscribe needs a uri")
	}
	s.mu.Lock()
	up := s.subscribed[uri]
	delete(s.subscribed, uri)
	if up != nil {
		up.Keep(subscription+uri, nil)
	}
	s.mu.Unlock()
	if up == nil {
		return wire.Result(r.msg.ID, json.RawMessage("{}"))
	}
	return s.pass(r, up, r.msg.Params)
}
