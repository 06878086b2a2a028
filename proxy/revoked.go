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

// revokedAnyway is how often the ledger is asked though no bell was rung: who revokes a
// session may end between the record and the bell.
const revokedAnyway = 30 * time.Second

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
	s.watch()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.running, r)
	}
}

// watch has sessions looked at. The lock is held.
func (s *Server) watch() {
	if !s.watching {
		s.watching = true
		s.rang = time.Time{}
		s.wg.Go(s.watchRevoked)
	}
}

// watchRevoked looks as long as calls are under way, also if they wait for the host to go
// on with them, or have made tasks.
func (s *Server) watchRevoked() {
	tick := time.NewTicker(revokedEach)
	defer tick.Stop()
	heard, asked := "", time.Now()
	for {
		select {
		case <-tick.C:
		case <-s.work.Done():
		}
		s.mu.Lock()
		s.watching = len(s.running)+len(s.rounds)+len(s.pending) > 0 && s.work.Err() == nil
		over := !s.watching
		s.mu.Unlock()
		if over {
			return
		}
		bell, now := s.o.Ledger.Bell(), time.Now()
		s.mu.Lock()
		look := bell != heard || s.rang.IsZero() && bell != "" || now.Sub(asked) >= revokedAnyway
		sessions := map[string]bool{}
		if look {
			s.rang, asked = now, now
			for _, session := range s.running {
				sessions[session] = true
			}
			for _, b := range s.rounds {
				if b.question == nil { // else it is not under way yet, and what it waits for has been decided
					sessions[b.ticket.Session] = true
				}
			}
			for t := range s.pending {
				if !t.until.IsZero() && now.After(t.until) { // its upstream has forgotten it
					delete(s.pending, t)
				}
				sessions[t.session] = true
			}
		}
		s.mu.Unlock()
		switch {
		case !look:
		case s.cancelRevoked(sessions):
			heard = bell
		default: // again, at the next tick
			s.mu.Lock()
			s.rang = time.Time{}
			s.mu.Unlock()
		}
	}
}

// cancelRevoked ends the calls of those of the sessions that were revoked with them, and
// reports whether all could be looked at.
func (s *Server) cancelRevoked(sessions map[string]bool) (all bool) {
	all = true
	for id := range sessions {
		found, err := s.o.Ledger.Session(context.WithoutCancel(s.work), ledger.Use{ID: id})
		switch {
		case errors.Is(err, ledger.ErrNoSession): // a recovery has lost it; it does not come back
		case err != nil:
			all = false
		case found.Cancelled:
			s.cancelCalls(id)
		}
	}
	return all
}

// cancelCalls ends the calls of a session. One that ends its request meanwhile, to wait for
// the host, is found by its request before that and by its round after it: see [Server.revokedMeanwhile].
func (s *Server) cancelCalls(session string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r, of := range s.running {
		if of == session {
			r.cancel(errRevoked)
		}
	}
	for _, b := range s.rounds {
		if b.question == nil && b.ticket.Session == session {
			s.wg.Go(func() { s.expire(b, errRevoked) }) // an upstream may take its time to end it
		}
	}
	var tasks []*task
	for t := range s.pending {
		if t.session == session {
			tasks = append(tasks, t)
		}
	}
	s.cancelTasks(tasks...)
}

// taskRevoked ends the task that r has made, if r was cancelled with its session just before.
func (s *Server) taskRevoked(r *request, t *task) {
	if t != nil && errors.Is(context.Cause(r.ctx), errRevoked) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cancelTasks(t)
	}
}

// revokedMeanwhile ends a call that waits for the host since r has ended, if r was
// cancelled with its session just before.
func (s *Server) revokedMeanwhile(r *request, b *round) {
	if errors.Is(context.Cause(r.ctx), errRevoked) {
		s.expire(b, errRevoked)
	}
}
