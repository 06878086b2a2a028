package proxy

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
)

// current returns the merged catalogue.
func (s *Server) current() *table {
	var revision uint64
	for _, up := range s.rules().all {
		revision += up.Catalogue().Revision
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.table == nil || s.table.revision < revision {
		now := s.rules() // again: they may be others by now
		s.table = build(now.all, now.NameLimit, s.never, s.neverOther)
	}
	return s.table
}

// never reports whether policy could never allow a tool in this session.
func (s *Server) never(e Entry) bool {
	now := s.rules()
	return e.Upstream != ownName && now.Engine.Never(s.call(now, e, nil), now.Session)
}

// neverOther is never for what is no tool.
func (s *Server) neverOther(kind policy.Kind, up Upstream, name string) bool {
	now := s.rules()
	return now.Engine.Never(policy.Call{Kind: kind, Session: now.Use.ID, Agent: now.Agent, Upstream: up.Name(), Tool: name}, now.Session)
}

// call makes the policy's view of a call.
func (s *Server) call(now *Rules, e Entry, arguments []byte) policy.Call {
	return policy.Call{
		Session: now.Use.ID, Agent: now.Agent, Upstream: e.Upstream, Tool: e.Tool, Arguments: arguments,
		ReadOnly: e.def.ReadOnly && e.up.Trusted(),
	}
}

// settle waits until every upstream's tools are known or its first attempt has
// failed, at most list_wait.
func (s *Server) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.rules().ListWait)
	defer cancel()
	var wg sync.WaitGroup
	for _, up := range s.rules().all {
		wg.Go(func() { up.Settled(ctx) })
	}
	wg.Wait()
}

// Tools returns the merged list and what was changed or withheld, waiting for
// upstreams that were never seen as tools/list does.
func (s *Server) Tools(ctx context.Context) ([]Entry, []Note) {
	s.start(upstream.Host{})
	s.settle(ctx)
	return s.Known()
}

// Known is what Tools returns of the upstreams as they are now: it starts nothing and
// waits for nothing.
func (s *Server) Known() ([]Entry, []Note) {
	t := s.current()
	return t.entries, t.notes
}

// Definition returns the tool's definition as its upstream gives it.
func (e Entry) Definition() []byte { return e.def.Raw }

// list encodes the tools that the host sees.
func (s *Server) list() []byte {
	b := []byte(`{"tools":[`)
	first := true
	for _, e := range s.current().entries {
		if e.Hidden && s.rules().HideNever {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		if e.Exposed == e.Tool {
			b = append(b, e.def.Raw...)
		} else {
			b = append(b, e.def.As(e.Exposed)...)
		}
	}
	return append(b, "]}"...)
}

// debounce is how long a change of a list waits for more of its kind.
const debounce = 50 * time.Millisecond

// tellChanged tells the host that a list has changed, a modern one if it wants to
// know.
func (s *Server) tellChanged(changed string) bool {
	if s.modern.Load() {
		return s.tellListeners(changed, nil, func(l *listener) bool { return l.lists[changed] })
	}
	s.write(wire.Notification(changed, nil))
	return true
}

// notify tells the host when a list it has seen is out of date.
func (s *Server) notify(ctx context.Context) {
	for {
		select {
		case <-s.changed:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(debounce):
		case <-ctx.Done():
			return
		}
		told := map[string]bool{}
		for _, method := range slices.Sorted(maps.Keys(listings)) {
			list := s.look(method)
			s.mu.Lock()
			had, asked := s.listed[method]
			stale := asked && (had.said != list.said || !bytes.Equal(had.bytes, list.bytes))
			s.mu.Unlock()
			changed := listings[method].changed
			if !stale || !told[changed] && !s.tellChanged(changed) {
				continue
			}
			told[changed] = true
			s.mu.Lock()
			s.listed[method] = list // said once
			s.mu.Unlock()
		}
	}
}
