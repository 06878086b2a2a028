package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	if refused := s.refusesTasks(r, owner); refused != nil {
		return refused
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
		s.mu.Lock()
		delete(s.pending, t)
		s.mu.Unlock()
	}
	return m.WithID(r.msg.ID)
}

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

// ownsTask reports whether the task that an upstream tells of is its own, to every
// reader: it could call another's ended.
func (s *Server) ownsTask(from string, params json.RawMessage) bool {
	members, err := wire.Members(params)
	if err != nil || blurred(members, "taskId") {
		return false
	}
	id, ok := text(params, "taskId")
	if !ok {
		return false
	}
	_, owner := s.taskOwner(id)
	return owner != nil && owner.Name() == from
}

// ended reports whether an answer says that its task is over.
func ended(method string, m wire.Message) bool {
	if m.Error != nil {
		return false
	}
	status, _ := text(m.Result, "status")
	return method != "tasks/get" || status == "completed" || status == "failed" || status == "cancelled"
}

// refusesTasks answers a request about tasks where everything is stopped, or the session is
// over; nil where it is not. A task is what a call that was let through is at: the rules by
// which that began go on to hold for it.
func (s *Server) refusesTasks(r *request, up Upstream) []byte {
	call := policy.Call{Session: r.rules.Use.ID, Agent: r.rules.Agent, Tool: r.msg.Method}
	if up != nil {
		call.Upstream = up.Name()
	}
	_, d, err := s.o.Ledger.Check(context.WithoutCancel(r.ctx), r.rules.Use, call, r.rules.Engine)
	switch {
	case err != nil:
		return s.unjudged(err).failure(r.msg.ID)
	case d.Policy == policy.PolicySession, d.Policy == ledger.PolicyStopped:
		return s.refuseUncounted(r, up, call, &policy.Finding{Policy: d.Policy, Rule: d.Rule, Reason: d.Reason})
	}
	return nil
}

// made notes the task that a call of a session has made, and returns it; nil if there is none.
func (s *Server) made(up Upstream, session string, result json.RawMessage) *task {
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
	s.mu.Lock()
	defer s.mu.Unlock()
	t.up = s.heir(up)
	other, taken := s.tasks[id]
	if other != nil && other.up == t.up {
		delete(s.pending, other) // its id is given anew
	}
	if len(s.pending) < maxTasks && len(id) <= longestName {
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

// cancelTask has an upstream end a task whose session was revoked with its calls, unless it
// is over or was ended already. The lock is held.
func (s *Server) cancelTask(t *task) {
	if _, runs := s.pending[t]; !runs {
		return
	}
	delete(s.pending, t)
	up := t.up
	s.wg.Go(func() { // who asks for it is waited for by Serve
		ctx, cancel := context.WithTimeout(s.work, cancelTime)
		defer cancel()
		m, err := up.Call(ctx, upstream.Call{Method: "tasks/cancel", Params: fmt.Appendf(nil, `{"taskId":%s}`, wire.Quote(t.id))})
		if err == nil && m.Error != nil {
			err = wire.ErrorOf(m)
		}
		if err != nil {
			s.o.Log.Warn().Str("upstream", up.Name()).Str("error", s.o.Clean(err.Error())).Msg("a task of a revoked session could not be cancelled")
		}
	})
}

const (
	// cancelTime is how long an upstream may take to cancel a task.
	cancelTime = 30 * time.Second
	// longestTask is from which ttl on a task is as one that is kept for ever.
	longestTask = 365 * 24 * time.Hour
)

// maxTasks bounds how many tasks haldir remembers the makers of.
const maxTasks = 100_000

// listTasks is tasks/list: with one server that has tasks its pages are passed on,
// with several their lists are put together.
func (s *Server) listTasks(r *request) []byte {
	if refused := s.refusesTasks(r, nil); refused != nil {
		return refused
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
