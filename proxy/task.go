package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
)

// task is one that a call has made (MCP 2025-11-25). It belongs to the upstream that made it,
// and outlasts the call, which is settled when there is a task.
type task struct {
	id      string
	up      Upstream // guarded by the server's mu
	session string
	until   time.Time // the upstream forgets it then; zero: not known
}

// task is tasks/get, tasks/result and tasks/cancel. A task that haldir has
// not seen being made, after it was started anew, can only be that of the one
// upstream that has tasks.
func (s *Server) task(r *request) []byte {
	id, ok := text(r.msg.Params, "taskId")
	if !ok {
		return s.invalid(r, r.msg.Method+" needs a taskId")
	}
	t, owner := s.taskOwner(id)
	if owner == nil { // two servers may number alike, and none may learn another's ids
		return s.invalid(r, "Unknown task: "+wire.Printable(id, longestName))
	}
	began := time.Now()
	call, f, err := s.againstTasks(r, owner)
	switch {
	case err == nil && f == nil:
	case t != nil && r.msg.Method == "tasks/cancel":
		return s.cancelUnheard(r, owner, t)
	case err != nil:
		return s.unjudged(err).failure(r.msg.ID)
	default:
		return s.refuseUncounted(r, owner, call, f)
	}
	defer s.underway(r, r.rules.Use.ID, began)() // it may wait for as long as the task runs
	m, err := s.forward(r, owner, s.same(r, r.msg.Params), nil)
	if errors.Is(context.Cause(r.ctx), errRevoked) { // which the upstream's answer may have crossed
		err = errRevoked
	}
	if err != nil {
		return s.broken(r, owner, err)
	}
	if t != nil && ended(r.msg.Method, m) {
		s.over(t)
	}
	return m.WithID(r.msg.ID)
}

// cancelUnheard is tasks/cancel of a task that haldir has seen being made, by who may ask
// about it no more: to end what runs needs no leave. Neither side has a word of the other's
// by it.
func (s *Server) cancelUnheard(r *request, up Upstream, t *task) []byte {
	m, err := s.forward(r, up, upstream.Call{Method: r.msg.Method, Params: t.params()}, nil)
	switch {
	case err != nil:
		return s.broken(r, up, err)
	case m.Error != nil:
		return wire.Failure(&wire.Error{Code: wire.ErrorOf(m).Code, Message: "upstream '" + up.Name() + "' did not cancel the task", ID: r.msg.ID})
	}
	s.over(t)
	var told []wire.Field
	for _, name := range []string{"taskId", "status", "createdAt", "lastUpdatedAt", "ttl", "pollInterval"} {
		if m, ok := wire.At(m.Result, name); ok {
			told = append(told, wire.Field{Name: name, Value: m.Value})
		}
	}
	return wire.Result(r.msg.ID, wire.Edit(nil, told...))
}

// over notes that a task is.
func (s *Server) over(t *task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, t)
}

// params are those of a request about the task.
func (t *task) params() json.RawMessage { return fmt.Appendf(nil, `{"taskId":%s}`, wire.Quote(t.id)) }

// taskOwner returns a task and the upstream that it belongs to; no task if it is of an
// earlier run, and no upstream if nobody can tell.
func (s *Server) taskOwner(id string) (*task, Upstream) {
	s.mu.Lock()
	t, known := s.tasks[id]
	var owner Upstream
	if t != nil {
		owner = t.up
	}
	s.mu.Unlock()
	if ups := s.capable("tasks"); !known && len(ups) == 1 {
		owner = ups[0]
	}
	return t, owner
}

// tellsOfTask reports whether an upstream may tell the host of a task, and notes if that is
// over by its word. It may not of what is another's to any reader, nor of an id that two have
// given: it could call another's task ended. Of a task that haldir knows nothing of it may:
// its answer that names it can be on its way still, behind what it tells.
func (s *Server) tellsOfTask(from string, params json.RawMessage) bool {
	members, err := wire.Members(params)
	if err != nil || blurred(members, "taskId") {
		return false
	}
	id, ok := text(params, "taskId")
	if !ok {
		return false
	}
	has := slices.ContainsFunc(s.capable("tasks"), func(up Upstream) bool { return up.Name() == from })
	status, _ := text(params, "status")
	s.mu.Lock()
	defer s.mu.Unlock()
	t, known := s.tasks[id]
	switch {
	case known && (t == nil || t.up.Name() != from), !known && !has:
		return false
	case !final(status):
	case known:
		delete(s.pending, t)
	default:
		for r := range s.running { // one of these may be the call that makes it
			if r.up != nil && r.up.Name() == from && len(r.over) < maxOver && len(id) <= longestName {
				r.over = append(r.over, strings.Clone(id))
			}
		}
	}
	return true
}

// maxOver bounds how many tasks that have ended are noted with a call that may have made them.
const maxOver = 100

// final reports whether a task goes on no more.
func final(status string) bool {
	return status == "completed" || status == "failed" || status == "cancelled"
}

// ended reports whether an answer says that its task is over.
func ended(method string, m wire.Message) bool {
	if m.Error != nil {
		return false
	}
	status, _ := text(m.Result, "status")
	return method != "tasks/get" || final(status)
}

// againstTasks returns what is against a request about tasks: that everything is stopped, or
// the session is over. A task is what a call that was let through is at: the rules by
// which that began go on to hold for it.
func (s *Server) againstTasks(r *request, up Upstream) (policy.Call, *policy.Finding, error) {
	call := policy.Call{Session: r.rules.Use.ID, Agent: r.rules.Agent, Tool: r.msg.Method}
	if up != nil {
		call.Upstream = up.Name()
	}
	d, err := s.check(r, &call)
	if err != nil || d.Policy != policy.PolicySession && d.Policy != ledger.PolicyStopped {
		return call, nil, err
	}
	return call, &policy.Finding{Policy: d.Policy, Rule: d.Rule, Reason: d.Reason}, nil
}

// made notes the task that r, a call of a session, has made, and returns it; nil if there is none.
func (s *Server) made(r *request, up Upstream, session string, result json.RawMessage) *task {
	id, ok := text(result, "task", "taskId")
	if !ok {
		return nil
	}
	t := &task{id: strings.Clone(id), session: session}
	if ttl, ok := wire.At(result, "task", "ttl"); ok {
		if ms, err := strconv.ParseInt(string(ttl.Value), 10, 64); err == nil && ms >= 0 && ms < int64(longestTask/time.Millisecond) {
			t.until = time.Now().Add(time.Duration(ms) * time.Millisecond)
		}
	}
	status, _ := text(result, "task", "status")
	s.mu.Lock()
	defer s.mu.Unlock()
	t.up = s.heir(up)
	other, taken := s.tasks[id]
	if other != nil && other.up == t.up {
		delete(s.pending, other) // its id is given anew
	}
	over := final(status) || slices.Contains(r.over, id)
	if !over && len(s.pending) < maxTasks && len(id) <= longestName {
		s.pending[t] = struct{}{}
		s.watch()
	}
	if taken && (other == nil || other.up != t.up) {
		s.tasks[t.id] = nil // nobody can tell whose it is
	} else if len(s.tasks) < maxTasks && len(id) <= longestName {
		s.tasks[t.id] = t
	}
	return t
}

// cancelTasks has upstreams end tasks whose session was revoked with its calls, but for those
// that are over or were ended already. The lock is held.
func (s *Server) cancelTasks(tasks ...*task) {
	of := map[Upstream][]*task{}
	for _, t := range tasks {
		if _, runs := s.pending[t]; runs {
			delete(s.pending, t)
			of[t.up] = append(of[t.up], t)
		}
	}
	for up, tasks := range of {
		left := make(chan *task, len(tasks))
		for _, t := range tasks {
			left <- t
		}
		close(left)
		for range min(len(tasks), cancelAtOnce) {
			s.wg.Go(func() { // who asks for it is waited for by Serve
				for t := range left {
					s.cancelTask(up, t)
				}
			})
		}
	}
}

func (s *Server) cancelTask(up Upstream, t *task) {
	ctx, cancel := context.WithTimeout(s.work, cancelTime)
	defer cancel()
	m, err := up.Call(ctx, upstream.Call{Method: "tasks/cancel", Params: t.params()})
	if err == nil && m.Error != nil {
		err = wire.ErrorOf(m)
	}
	if err != nil {
		s.o.Log.Warn().Str("upstream", up.Name()).Str("error", s.o.Clean(err.Error())).Msg("a task of a revoked session could not be cancelled")
	}
}

const (
	// cancelTime is how long an upstream may take to cancel a task.
	cancelTime = 30 * time.Second
	// cancelAtOnce is how many tasks one upstream is to cancel at a time.
	cancelAtOnce = 8
	// longestTask is from which ttl on a task is as one that is kept for ever.
	longestTask = 365 * 24 * time.Hour
)

// maxTasks bounds how many tasks haldir remembers the makers of.
const maxTasks = 100_000

// listTasks is tasks/list: with one server that has tasks its pages are passed on,
// with several their lists are put together.
func (s *Server) listTasks(r *request) []byte {
	switch call, f, err := s.againstTasks(r, nil); {
	case err != nil:
		return s.unjudged(err).failure(r.msg.ID)
	case f != nil:
		return s.refuseUncounted(r, nil, call, f)
	}
	ups := s.capable("tasks")
	if len(ups) == 1 {
		return s.pass(r, ups[0], r.msg.Params)
	}
	if _, given := text(r.msg.Params, "cursor"); given {
		return s.invalid(r, "haldir lists all tasks on one page; it has given out no cursor")
	}
	var all []json.RawMessage
	for _, up := range ups {
		params, room := r.msg.Params, maxTaskBytes
		for range maxTaskPages {
			m, err := s.forward(r, up, s.same(r, params), nil)
			if err != nil || m.Error != nil {
				break // one that is down hides only its own
			}
			if list, ok := wire.At(m.Result, "tasks"); ok {
				if room -= len(list.Value); room < 0 {
					s.o.Log.Warn().Str("upstream", up.Name()).Msgf("the upstream lists more than %d MiB of tasks; the rest is left out", maxTaskBytes>>20)
					break
				}
				if page, err := wire.Elements(list.Value); err == nil {
					all = append(all, page...)
				}
			}
			next, more := text(m.Result, "nextCursor")
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

// Bounds on what one of several upstreams may list, which all is kept until the last has
// answered.
const (
	maxTaskPages = 100
	maxTaskBytes = 8 << 20
)
