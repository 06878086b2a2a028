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

// underway notes that a call of a session is at its upstream, until over is called. began is
// when it was not let through yet.
func (s *Server) underway(r *request, session string, began time.Time) (over func()) {
	if r.cancel == nil { // nobody could end it
		return func() {}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running[r] = session
	if s.rang.After(began) { // its session may have been revoked meanwhile, and this call was not there to be ended
		s.rang = time.Time{}
	}
	if !s.watching {
		s.watching = true
		s.rang = time.Time{}
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
		s.watching = len(s.running) > 0 && s.work.Err() == nil
		over := !s.watching
		s.mu.Unlock()
		if over {
			return
		}
		bell, now := s.o.Ledger.Bell(), time.Now()
		s.mu.Lock()
		look := bell != heard || s.rang.IsZero() && bell != ""
		calls := map[string][]*request{}
		if look {
			s.rang = now
			for r, session := range s.running {
				calls[session] = append(calls[session], r)
			}
		}
		s.mu.Unlock()
		switch {
		case !look:
		case s.cancelRevoked(calls):
			heard = bell
		default: // again, at the next tick
			s.mu.Lock()
			s.rang = time.Time{}
			s.mu.Unlock()
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
