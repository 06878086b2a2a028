package proxy

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
)

// Seen is a request that policy has judged, and what came of it, for whoever counts or traces
// requests. It is of no use for deciding about them: it is told when all is over. What it
// refers to is good only until the call of Options.Observe returns.
type Seen struct {
	Method   string
	ID       json.RawMessage // of the request
	Params   json.RawMessage // as the host sent them
	Call     policy.Call
	Session  string
	Seq      uint64          // of the attempt's record; 0 if it could not be recorded
	Decision policy.Decision // of the policies; what a person said is in Refused
	Refused  bool            // haldir has answered, and nothing was forwarded
	// Began is when the request had been read and its upstream found, Ended when there was an
	// answer for the host. Between Sent and Returned it was with the upstream; both are zero
	// if it never was.
	Began, Sent, Returned, Ended time.Time
	// Outcome is how it ended, nil if it was refused or goes on with another request.
	Outcome *ledger.Outcome
	// Code is that of the JSON-RPC error that the upstream has answered with; 0 if it has not.
	Code int64

	outcome ledger.Outcome
	late    bool // the outcome is not known before the host has its answer
}

// GoesOn reports whether the upstream has asked for something, so that the call goes on with
// another request.
func (s *Seen) GoesOn() bool { return s.Outcome == nil && !s.Refused && !s.Sent.IsZero() }

// judged notes what the ledger has decided.
func (s *Seen) judged(t ledger.Ticket, d policy.Decision) {
	if s != nil {
		s.Seq, s.Session, s.Decision = t.Seq, t.Session, d
	}
}

func (s *Seen) sent() {
	if s != nil {
		s.Sent = time.Now()
	}
}

func (s *Seen) returned(m wire.Message, err error) {
	if s == nil {
		return
	}
	s.Returned = time.Now()
	if errors.Is(err, wire.ErrNotSent) {
		s.Sent, s.Returned = time.Time{}, time.Time{}
	}
	if err == nil && m.Error != nil {
		s.Code = int64(wire.ErrorOf(m).Code)
	}
}

func (s *Seen) ended(o ledger.Outcome) {
	if s != nil {
		s.outcome, s.Outcome = o, &s.outcome
	}
}

// later says that the outcome comes after the answer, and returns s for then.
func (s *Seen) later() *Seen {
	if s != nil {
		s.late = true
	}
	return s
}

// observed takes a request on its path and tells what became of it.
func (s *Server) observed(r *request, call policy.Call, path func() ([]byte, end)) (answer []byte, how end) {
	seen := &Seen{Method: r.msg.Method, ID: r.msg.ID, Params: r.msg.Params, Call: call, Began: time.Now()}
	r.seen = seen
	defer func() { // also after a panic
		r.seen, seen.Ended = nil, time.Now()
		seen.Refused = seen.Sent.IsZero() && seen.Outcome == nil && (how == endRefused || r.refused != nil)
		if seen.late {
			r.after = append(r.after, func() { s.o.Observe(seen) })
			return
		}
		s.o.Observe(seen)
	}()
	return path()
}
