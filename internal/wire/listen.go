package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// shortStream is a GET stream that ended so soon that the next one has to wait.
const shortStream = time.Second

// Listen keeps the GET stream open until the conversation ends: reopened with
// backoff when it breaks, where it was left if the server counts its events,
// given up when the server says it has none. Call it once, after the handshake.
// The channel is closed once the server has answered for the first time.
func (h *HTTP) Listen() <-chan struct{} {
	answered := make(chan struct{})
	h.begin(func() {
		first := sync.OnceFunc(func() { close(answered) })
		defer first()
		wait := backoff.NewExponentialBackOff()
		wait.MaxInterval = 30 * time.Second
		s := &stream{}
		for h.ctx.Err() == nil {
			opened := time.Now()
			s.retry = 0
			err := h.listen(s, first)
			first()
			var refused *HTTPError
			switch {
			case h.ctx.Err() != nil:
				return
			case errors.Is(err, ErrSessionExpired):
				h.end(err)
				return
			case errors.As(err, &refused) && !passing(err):
				if s.lastID == "" || refused.Status == http.StatusMethodNotAllowed {
					return // it offers no event stream
				}
				h.o.Problem(fmt.Errorf("the upstream's event stream begins anew, messages may be lost: %w", err))
				s.lastID = ""
			case !errors.Is(err, io.EOF):
				h.o.Problem(fmt.Errorf("the upstream's event stream broke: %w", err))
			}
			if time.Since(opened) > wait.MaxInterval {
				wait.Reset()
			}
			// A server may ask for polling by retry, but one whose streams end at
			// once is not asked again at once.
			pause := s.retry
			if pause == 0 || time.Since(opened) < max(pause, shortStream) {
				pause = max(pause, wait.NextBackOff())
			}
			if !sleep(h.ctx, pause) {
				return
			}
		}
	})
	return answered
}

// listen opens the stream and hands on what it brings, until it ends.
func (h *HTTP) listen(s *stream, opened func()) error {
	resp, err := h.get(h.ctx, s.lastID)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	h.listening.Store(true)
	defer h.listening.Store(false)
	opened()
	s.open(resp.Body, h.o.MaxMessage, &h.bodies)
	for {
		ev, err := s.next()
		if err != nil {
			return err
		}
		h.heard.Add(1)
		_, _ = h.event(ev, "", nil) // nobody waits on this stream
		h.heard.Add(1)
	}
}

// A server that answers by JSON sends what belongs to a call on the GET stream,
// where the answer overtakes it (go-sdk with JSONResponse). The answer waits
// until nothing has come there for some moments in a row (more than one, for a
// reader that is not scheduled in time), and no longer than maxHush otherwise. A
// server from which nothing has come there by the time of maxTrials answers is
// not waited for any more, until something comes.
const (
	moment    = time.Millisecond
	moments   = 3
	maxHush   = 2 * time.Second
	maxTrials = 20
)

// hush waits for the GET stream, if there is one, to be quiet. The time that the
// host takes to read does not count: what waits for it waits in order.
func (h *HTTP) hush(ctx context.Context) {
	if h.heard.Load() == 0 && h.trials.Add(1) > maxTrials {
		return
	}
	for still, left := 0, maxHush; still < moments && left > 0 && h.listening.Load(); {
		before := h.heard.Load()
		if !sleep(ctx, moment) {
			return
		}
		switch now := h.heard.Load(); {
		case now != before:
			still, left = 0, left-moment
		case now%2 == 0: // else the handler has not come back
			still++
		}
	}
}
