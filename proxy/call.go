package proxy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
)

// toolCall is a tools/call request taken apart.
type toolCall struct {
	raw       json.RawMessage // params
	name      wire.Member     // in raw
	tool      string
	arguments json.RawMessage // nil if absent or null
	token     json.RawMessage // the progress token, nil if absent
	task      bool            // it asks for a task (MCP 2025-11-25)
}

func readToolCall(params json.RawMessage) (toolCall, error) {
	c := toolCall{raw: params}
	members, err := wire.Members(params)
	if err != nil {
		return c, errors.New("tools/call needs params with a name")
	}
	var ok bool
	if c.name, ok = wire.Find(members, "name"); !ok {
		return c, errors.New("tools/call needs a name")
	}
	if c.tool, ok = wire.String(c.name.Value); !ok {
		return c, fmt.Errorf("the name must be a text, not %s", wire.KindOf(c.name.Value))
	}
	if a, ok := wire.Find(members, "arguments"); ok && string(a.Value) != "null" {
		if wire.KindOf(a.Value) != "an object" {
			return c, fmt.Errorf("arguments must be an object, not %s", wire.KindOf(a.Value))
		}
		c.arguments = a.Value
	}
	_, c.task = wire.Find(members, "task")
	if meta, ok := wire.Find(members, "_meta"); ok && string(meta.Value) != "null" {
		fields, err := wire.Members(meta.Value)
		if err != nil {
			return c, fmt.Errorf("_meta must be an object, not %s", wire.KindOf(meta.Value))
		}
		if t, ok := wire.Find(fields, "progressToken"); ok {
			c.token = t.Value
		}
	}
	return c, nil
}

// named returns the params with another tool name and all else untouched.
func (c toolCall) named(tool string) json.RawMessage {
	return wire.Splice(c.raw, c.name.Start, c.name.End, wire.Quote(tool))
}

// callTool is tools/call: it finds whose the tool is and takes the governed path.
func (s *Server) callTool(r *request) []byte {
	id := r.msg.ID
	call, err := readToolCall(r.msg.Params)
	if err != nil {
		s.recordMalformed(r, call, err)
		return wire.Failure(&wire.Error{Code: wire.CodeInvalidParams, Message: err.Error(), ID: id})
	}
	entry, missing := s.route(r.ctx, call.tool)
	attempt := s.attempt(r.rules, entry, call, missing)
	if entry.Upstream == ownName {
		return s.govern(r, entry, call, attempt)
	}

	answer, _ := s.governed(r, entry.up, attempt, upstream.Call{
		Method: "tools/call", Params: call.named(entry.Tool), Token: call.token, Task: call.task,
	}, func(refusal Refusal) []byte { r.refusal = &refusal; return wire.Result(id, refusal.result()) })
	return answer
}

// recordMalformed puts a call on record that no server would understand. It is
// answered with an error whatever comes of that: nothing can be called.
func (s *Server) recordMalformed(r *request, call toolCall, why error) {
	attempt := s.attempt(r.rules, Entry{}, call, why)
	attempt.Refused.Policy, attempt.Refused.Rule = policyMalformed, policyMalformed
	if _, _, err := s.o.Ledger.Reserve(context.WithoutCancel(r.ctx), attempt, r.rules.Engine); err != nil {
		s.o.Log.Error().Err(err).Msg("a malformed call could not be recorded")
	}
}

// recordUnanswerable puts a call on record that came as a notification.
func (s *Server) recordUnanswerable(m wire.Message) {
	r := &request{msg: m, ctx: context.Background(), rules: s.rules()}
	call, err := readToolCall(m.Params)
	if err == nil {
		err = fmt.Errorf("%s came without an id, so it cannot be answered and was not passed on", m.Method)
	}
	s.recordMalformed(r, call, err)
}

// longestName bounds what is recorded of a tool's name that nobody knows.
const longestName = 1024

// route finds the tool of a call. A name that is not known yet may belong to an
// upstream that has never been seen: its first attempt to connect is awaited.
func (s *Server) route(ctx context.Context, name string) (Entry, error) {
	e, err := s.current().find(name)
	if !errors.Is(err, ErrUnknownTool) {
		return e, err
	}
	up := s.namesake(name)
	if up == nil {
		s.settle(ctx)
	} else if !up.Catalogue().Known {
		up.Connected(ctx)
	}
	if e, err = s.current().find(name); !errors.Is(err, ErrUnknownTool) {
		return e, err
	}
	if up == nil {
		if far := s.unreached(); len(far) > 0 {
			err = &unreachedError{far, true}
		}
		return Entry{Tool: name}, err
	}
	_, tool, _ := strings.Cut(name, "/")
	if t, ok := strings.CutPrefix(name, up.Name()+separator); ok {
		tool = t
	}
	e = Entry{Upstream: up.Name(), Tool: tool}
	if !up.Catalogue().Known {
		return e, &unreachedError{[]string{up.Name()}, false}
	}
	return e, err
}

// unreachedError says that a tool may be there although nobody knows it, as the upstreams that
// may have it have never been reached.
type unreachedError struct {
	upstreams []string
	elsewhere bool // the name says nothing of an upstream, and all others do not have it
}

func (e *unreachedError) Error() string {
	text := "upstream '" + strings.Join(e.upstreams, "', '") + "' has not been reached yet"
	if len(e.upstreams) > 1 {
		text = "upstreams '" + strings.Join(e.upstreams, "', '") + "' have not been reached yet"
	}
	if e.elsewhere {
		text = "no upstream that has been reached has it, and " + text
	}
	return text
}

// Is has it count as an unknown tool where it is as likely that there is none of that name: to try
// again and again would help no agent that has misspelt it.
func (e *unreachedError) Is(target error) bool { return e.elsewhere && target == ErrUnknownTool }

// unreached are the upstreams whose tools are not known.
func (s *Server) unreached() (names []string) {
	for _, up := range s.rules().Upstreams {
		if !up.Catalogue().Known {
			names = append(names, up.Name())
		}
	}
	return names
}

// namesake returns the upstream that a tool's name begins with.
func (s *Server) namesake(name string) Upstream {
	named := s.current().namesake(name)
	for _, up := range s.rules().Upstreams {
		if up.Name() == named {
			return up
		}
	}
	return nil
}

// attempt describes a call to the ledger. missing is why it has no tool.
func (s *Server) attempt(now *Rules, e Entry, call toolCall, missing error) ledger.Attempt {
	s.mu.Lock()
	client := cmp.Or(now.Client, s.client)
	s.mu.Unlock()
	name := wire.Printable(call.tool, longestName)
	a := ledger.Attempt{
		Use: now.Use, Client: client, Config: now.Config, Body: audit.NewBody(call.arguments, now.Detail, s.o.Secrets()),
	}
	far, unreached := errors.AsType[*unreachedError](missing)
	switch {
	case missing == nil:
		a.Call, a.Pin = s.call(now, e, call.arguments), audit.Sum(e.def.Raw)
	case unreached:
		a.Call = policy.Call{Upstream: e.Upstream, Tool: wire.Printable(e.Tool, longestName)}
		a.Refused = &policy.Finding{
			Policy: policyUnavailable, Rule: policyUnavailable,
			Reason: fmt.Sprintf("Tool '%s' cannot be called: %v; haldir keeps trying", name, far),
		}
		if errors.Is(far, ErrUnknownTool) {
			a.Refused.Policy, a.Refused.Rule = policyUnknownTool, policyUnknownTool
		}
	case errors.Is(missing, ErrUnknownTool):
		a.Call = policy.Call{Upstream: e.Upstream, Tool: wire.Printable(e.Tool, longestName)}
		a.Refused = &policy.Finding{
			Policy: policyUnknownTool, Rule: policyUnknownTool, Reason: fmt.Sprintf("There is no tool '%s'", name),
		}
	default:
		a.Call = policy.Call{Tool: name}
		a.Refused = &policy.Finding{Policy: policyUnknownTool, Rule: policyUnknownTool, Reason: upperFirst(missing.Error())}
	}
	return a
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// govern calls one of haldir's own tools: never judged, always recorded.
func (s *Server) govern(r *request, e Entry, call toolCall, attempt ledger.Attempt) []byte {
	s.closed() // it tells of all that the host has had an answer to
	m, err := e.up.Call(within(r.ctx, r.rules), upstream.Call{Method: "tools/call", Params: call.named(e.Tool)})
	failure := ""
	if err != nil {
		failure = err.Error()
	}
	if err := s.o.Ledger.Record(context.WithoutCancel(r.ctx), attempt, failure); err != nil {
		return wire.Failure(&wire.Error{Code: wire.CodeInternal, Message: fmt.Sprintf("the call could not be recorded: %v", err), ID: r.msg.ID})
	}
	if err != nil {
		return wire.Failure(&wire.Error{Code: wire.CodeInternal, Message: err.Error(), ID: r.msg.ID})
	}
	return m.WithID(r.msg.ID)
}

// Call makes a tools/call as the host would, for the command line, and returns
// the response. refused, if it is haldir's own, is [ErrRefused] or why the ledger could
// not record the call. Nothing was called then, unless the call was let through and not
// let go on when the upstream wanted another round.
func (s *Server) Call(ctx context.Context, tool string, arguments json.RawMessage) (m wire.Message, refused, err error) {
	m, r, err := s.callOf(ctx, nil, s.rules(), tool, arguments)
	if err != nil {
		return wire.Message{}, nil, err
	}
	return m, r.refused, nil
}

// callOf makes a tools/call without a host. cancel, if not nil, ends it.
func (s *Server) callOf(ctx context.Context, cancel context.CancelCauseFunc, now *Rules, tool string, arguments json.RawMessage) (wire.Message, *request, error) {
	s.start(upstream.Host{})
	params := append([]byte(`{"name":`), wire.Quote(tool)...)
	if arguments != nil {
		params = append(append(params, `,"arguments":`...), arguments...)
	}
	msg, err := wire.ParseStrict(wire.Request(json.RawMessage("1"), "tools/call", append(params, '}')))
	if err != nil {
		return wire.Message{}, nil, err
	}
	r := &request{msg: msg, ctx: ctx, cancel: cancel, rules: now}
	m, err := wire.ParseLenient(s.callTool(r))
	return m, r, err
}

// ErrRefused says that a policy did not let a call through.
var ErrRefused = errors.New("refused by policy")

// errNotCalled says that there was nothing to call.
var errNotCalled = errors.New("there is no such tool, or not now")

// Explain decides about a call without making or recording it.
func (s *Server) Explain(ctx context.Context, tool string, arguments json.RawMessage) (Entry, ledger.Session, policy.Decision, error) {
	return s.explain(ctx, s.rules(), tool, arguments)
}

func (s *Server) explain(ctx context.Context, now *Rules, tool string, arguments json.RawMessage) (Entry, ledger.Session, policy.Decision, error) {
	s.start(upstream.Host{})
	e, err := s.route(ctx, tool)
	if err != nil {
		return e, ledger.Session{}, policy.Decision{}, fmt.Errorf("%s: %w", tool, err)
	}
	if e.Upstream == ownName {
		return e, ledger.Session{}, policy.Decision{Verdict: policy.Allow}, nil
	}
	call := s.call(now, e, arguments)
	now.Engine.Prepare(&call)
	session, d, err := s.o.Ledger.Check(ctx, now.Use, call, now.Engine)
	return e, session, d, err
}
