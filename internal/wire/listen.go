package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// shortStream is a GET stream that ended so soon that the next one has to wait.
const shortStream = time.Second

// Listen keeps the GET stream open until the conversation ends: reopened with
// backoff when it breaks, where it was left if the server counts its events,
// given up when the server says it has none. Call it once, after the handshake.
func (h *HTTP) Listen() {
	h.begin(func() {
		wait := backoff.NewExponentialBackOff()
		wait.MaxInterval = 30 * time.Second
		s := &stream{}
		for h.ctx.Err() == nil {
			opened := time.Now()
			s.retry = 0
			err := h.listen(s)
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
}

// listen opens the stream and hands on what it brings, until it ends.
func (h *HTTP) listen(s *stream) error {
	resp, err := h.get(h.ctx, s.lastID)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	h.listening.Store(true)
	defer h.listening.Store(false)
	s.open(resp.Body, h.o.MaxMessage)
	for {
		ev, err := s.next()
		if err != nil {
			return err
		}
		h.heard.Add(1)
		_, _ = h.event(ev, "") // nobody waits on this stream
		h.heard.Add(1)
	}
}

// A server that answers by JSON sends what belongs to a call on the GET stream,
// where the answer overtakes it (go-sdk with JSONResponse). The answer waits
// until that stream has been quiet for a moment, and no longer than maxHush
// while it is not.
const (
	quiet   = 2 * time.Millisecond
	maxHush = 500 * time.Millisecond
)

// hush waits for the GET stream, if there is one, to be quiet. The time that the
// host takes to read does not count: what waits for it waits in order.
func (h *HTTP) hush(ctx context.Context) {
	for left := maxHush; left > 0 && h.listening.Load(); {
		before := h.heard.Load()
		if !sleep(ctx, quiet) {
			return
		}
		switch now := h.heard.Load(); {
		case now != before:
			left -= quiet
		case now%2 == 0: // else the handler has not come back
			return
		}
	}
}
