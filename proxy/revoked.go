package proxy

import (
	"context"
	"errors"
	"time"

	"github.com/haldir-mcp/haldir/internal/ledger"
)

// errRevoked ends the calls of a session that was revoked together with them.
var errRevoked = errors.New("the session was revoked, and its running calls were cancelled")

// revokedEach is how often it is looked whether a session was revoked with its calls,
// while there are any: no more than a small file is read.
const revokedEach = 250 * time.Millisecond

// underway notes that a call of a session is at its upstream, until over is called.
func (s *Server) underway(r *request, session string) (over func()) {
	if r.cancel == nil { // nobody could end it
		return func() {}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running[r] = session
	if !s.watching {
		s.watching = true
		s.wg.Go(s.watchRevoked)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.running, r)
	}
}

// watchRevoked looks as long as calls are under way.
func (s *Server) watchRevoked() {
	tick := time.NewTicker(revokedEach)
	defer tick.Stop()
	for heard := ""; ; {
		select {
		case <-tick.C:
		case <-s.work.Done():
		}
		s.mu.Lock()
		if s.watching = len(s.running) > 0 && s.work.Err() == nil; !s.watching {
			s.mu.Unlock()
			return
		}
		calls := map[string][]*request{}
		for r, session := range s.running {
			calls[session] = append(calls[session], r)
		}
		s.mu.Unlock()
		bell := s.o.Ledger.Bell()
		if bell == heard {
			continue
		}
		if s.cancelRevoked(calls) {
			heard = bell
		}
	}
}

// cancelRevoked ends the calls of sessions that were revoked with them, and reports
// whether all sessions could be looked at.
func (s *Server) cancelRevoked(calls map[string][]*request) (all bool) {
	all = true
	for id, rs := range calls {
		found, err := s.o.Ledger.Session(context.WithoutCancel(s.work), ledger.Use{ID: id})
		if err != nil {
			all = false
			continue
		}
		for _, r := range rs {
			if found.Cancelled {
				r.cancel(errRevoked)
			}
		}
	}
	return all
}
