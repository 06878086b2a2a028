package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/wire"
)

// Times of a stream of events.
const (
	lookEach  = 200 * time.Millisecond // how often the head file is read
	stateEach = 5 * time.Second        // how often is looked at what may change without a record
	beatEach  = 15 * time.Second       // how long a stream is silent at most
	maxReplay = 1000                   // how many records before its begin a stream tells at most
)

var errEnough = errors.New("enough")

// feed is one stream of events.
type feed struct {
	a         *API
	r         *request
	at        uint64 // the last record that was looked at
	approvals []byte // as it was told last
	state     []byte
	bell      string // as it was last looked at
}

// events tells of calls as they happen, of what waits for a person, and whether haldir
// is stopped, until the client goes.
func (a *API) events(r *request) (*reply, error) {
	if err := r.takes("after"); err != nil {
		return nil, err
	}
	newest, err := a.o.Ledger.Newest()
	if err != nil {
		return nil, err
	}
	f := &feed{a: a, r: r, at: newest}
	after := r.query.Get("after")
	if last := r.Header.Get("Last-Event-ID"); last != "" { // the browser knows better than the page
		after = last
	}
	if after != "" {
		seq, err := strconv.ParseUint(after, 10, 64)
		if err != nil {
			return nil, malformed("after must be the number of a record, not %q", wire.Printable(after, 50))
		}
		f.at = min(seq, newest)
	}
	select {
	case a.feeds <- struct{}{}:
		defer func() { <-a.feeds }()
	default:
		return nil, NewProblem(http.StatusTooManyRequests, "rate", "%d streams of events are open already", maxFeeds).Wait(time.Now().Add(5 * time.Second))
	}
	h := r.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no")
	if r.Method == http.MethodHead {
		return nil, nil //nolint:nilnil // it is written
	}
	if skipped := newest - f.at; skipped > maxReplay {
		f.at = newest - maxReplay
		if !f.send("reset", f.at, encode(map[string]any{"from": f.at + 1})) {
			return nil, nil //nolint:nilnil // as above
		}
	} else if !f.flush([]byte(": haldir\n\n")) {
		return nil, nil //nolint:nilnil // as above
	}
	f.run(r.Context())
	return nil, nil //nolint:nilnil // as above
}

// run tells until the context ends or the client is gone.
func (f *feed) run(ctx context.Context) {
	look := time.NewTicker(lookEach)
	defer look.Stop()
	beat := time.NewTicker(beatEach)
	defer beat.Stop()
	var looked time.Time
	for {
		newest, err := f.a.o.Ledger.Newest()
		if err != nil {
			f.a.o.Log.Warn().Err(err).Msg("look for news")
		}
		news, rung := newest > f.at, f.a.o.Ledger.Bell()
		changed := news || rung != f.bell || time.Since(looked) > stateEach
		if changed && !f.r.caller.Valid() { // its end is news itself
			return
		}
		if news && !f.records(ctx) {
			return
		}
		if changed {
			looked, f.bell = time.Now(), rung
			if !f.others(ctx) {
				return
			}
		}
		select {
		case <-look.C:
		case <-beat.C:
			if !f.r.caller.Valid() || !f.flush([]byte(": still there\n\n")) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// records tells of what was recorded since: a call when it begins, and again with its
// outcome.
func (f *feed) records(ctx context.Context) bool {
	var seqs []uint64
	at := f.at
	_, _, err := f.a.o.Ledger.Walk(ctx, f.at+1, func(key uint64, raw []byte) error {
		at = key
		r, err := audit.Decode(raw)
		switch {
		case err != nil: // verify names it
		case r.Kind == audit.KindOutcome, r.Kind == audit.KindApproval:
			seqs = append(seqs, r.Ref)
		case r.Kind != audit.KindGovernance:
			seqs = append(seqs, key)
		}
		if len(seqs) >= maxReplay {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return ctx.Err() == nil // it may be busy: the next look tells
	}
	told := map[uint64]bool{}
	for _, seq := range seqs {
		if told[seq] {
			continue // with its outcome already
		}
		told[seq] = true
		e, ok, err := f.a.o.Ledger.Entry(ctx, seq)
		if err != nil || !ok {
			continue
		}
		if !f.send("audit", max(seq, e.OutcomeSeq), encode(e)) {
			return false
		}
	}
	f.at = at
	return true
}

// others tells of what is no record, if it has changed and the caller may know.
func (f *feed) others(ctx context.Context) bool {
	if f.r.caller.May(ApprovalsRead) {
		list, err := f.a.approvals(ctx)
		if err == nil && !f.changed("approvals", &f.approvals, map[string]any{"approvals": list}) {
			return false
		}
	}
	if f.r.caller.May(ProxyRead) {
		s, err := f.a.o.Ledger.Stopped(ctx)
		if err == nil && !f.changed("state", &f.state, stopState{s}) {
			return false
		}
	}
	return true
}

func (f *feed) changed(event string, last *[]byte, v any) bool {
	now := encode(v)
	if bytes.Equal(*last, now) {
		return true
	}
	*last = now
	return f.send(event, f.at, now)
}

// send writes an event. It reports whether the client is still there.
func (f *feed) send(event string, id uint64, data []byte) bool {
	return f.flush(fmt.Appendf(nil, "event: %s\nid: %d\ndata: %s\n\n", event, id, bytes.TrimSpace(data)))
}

func (f *feed) flush(text []byte) bool {
	_, err := patient{f.r.w}.Write(text)
	if err == nil {
		err = http.NewResponseController(f.r.w).Flush()
	}
	return err == nil
}
