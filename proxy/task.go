package proxy

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// Tasks (MCP 2025-11-25) belong to the upstream that made them. One that haldir has
// not seen being made, after it was started anew, can only be that of the one
// upstream that has tasks.
func (s *Server) task(r *request) []byte {
	id, ok := text(r.msg.Params, "taskId")
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
	if id, ok := text(result, "task", "taskId"); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		up = s.heir(up)
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
	if _, given := text(r.msg.Params, "cursor"); given {
		return s.invalid(r, "haldir lists all tasks on one page; it has given out no cursor")
	}
	var all []json.RawMessage
	for _, up := range ups {
		params := r.msg.Params
		for range maxTaskPages {
			m, err := s.forward(r, up, s.same(r, params), nil)
			if err != nil || m.Error != nil {
				break // one that is down hides only its own
			}
			if list, ok := wire.At(m.Result, "tasks"); ok {
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

const maxTaskPages = 100
