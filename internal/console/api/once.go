package api

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
)

// stored is an answer as the ledger keeps it.
type stored struct {
	Status   int    `json:"status"`
	Kind     string `json:"kind"` // its Content-Type
	Location string `json:"location,omitempty"`
	Body     []byte `json:"body"`
}

// unchanged reports whether an error says that nothing was done, so that the request may
// be made again under the same Idempotency-Key.
func unchanged(p *Problem) bool {
	if p.Refusal != nil {
		return !p.Refusal.Sent
	}
	return p.Status < http.StatusInternalServerError || p.Status == http.StatusServiceUnavailable
}

// once obeys an Idempotency-Key: a request that was made before gets the answer of
// before. The key is the caller's own, and the session's, if there is one. Before a
// stored answer is told, replay may forbid it.
func (a *API) once(r *request, session string, do func(*request) (*reply, error), replay ...func() error) (*reply, error) {
	keys := r.Header.Values("Idempotency-Key")
	if len(keys) == 0 {
		return do(r)
	}
	key := keys[0]
	if len(keys) > 1 || len(key) < 1 || len(key) > 255 || !visible(key) {
		return nil, malformed("an Idempotency-Key must have 1 to 255 visible ASCII characters, and be given once")
	}
	name := digest(r.caller.id(), r.Method, r.URL.Path, session, key)
	found, err := a.o.Ledger.BeginOnce(r.Context(), name, digest(r.URL.RawQuery, string(r.raw)))
	if err != nil {
		return nil, err
	}
	since := found.Since.Format(time.RFC3339)
	switch found.State {
	case ledger.OnceNew:
	case ledger.OnceOther:
		return nil, NewProblem(http.StatusUnprocessableEntity, "mismatch", "this Idempotency-Key was used at %s for a request with another body; use a new one for each thing that is to be done", since)
	case ledger.OnceRunning:
		return nil, NewProblem(http.StatusConflict, "in-progress", "the request with this Idempotency-Key, begun at %s, is being handled", since).Wait(time.Now().Add(time.Second))
	case ledger.OnceLost:
		return nil, NewProblem(http.StatusConflict, "outcome-unknown", "the request with this Idempotency-Key was begun at %s by a haldir that ended before it could say what came of it; look in the audit before you make it again with a new key", since)
	case ledger.OnceDone:
		for _, allowed := range replay {
			if err := allowed(); err != nil {
				return nil, err
			}
		}
		var s stored
		if err := json.Unmarshal(found.Answer, &s); err != nil {
			return nil, fmt.Errorf("a stored answer: %w", err)
		}
		r.w.Header().Set("Idempotency-Replayed", "true")
		return &reply{status: s.Status, body: rawBody{s.Kind, s.Body}, location: s.Location}, nil
	}

	// Who loses the connection asks again, and is to get an answer.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context()))
	defer cancel(nil)
	if life, ok := r.Context().Value(lifeKey{}).(context.Context); ok {
		defer context.AfterFunc(life, func() { cancel(context.Cause(life)) })()
	}
	kept := false
	keep := func(answer []byte) {
		kept = true
		if err := a.o.Ledger.EndOnce(context.WithoutCancel(ctx), name, answer); err != nil {
			a.o.Log.Error().Err(err).Msg("the answer to a request with an Idempotency-Key could not be kept")
		}
	}
	defer func() {
		if !kept { // a panic: nobody knows
			keep(a.pack(&reply{status: http.StatusInternalServerError}, NewProblem(http.StatusInternalServerError, "internal", "internal error in haldir; its log says more")))
		}
	}()
	detached := *r
	detached.Request = r.WithContext(ctx)
	out, err := do(&detached)
	if err != nil && unchanged(problemOf(err)) {
		keep(nil)
		return nil, err
	}
	keep(a.pack(out, err))
	return out, err
}

// pack makes an answer ready to be kept.
func (a *API) pack(out *reply, err error) []byte {
	s := stored{Kind: "application/json"}
	if err != nil {
		p := problemOf(err)
		s.Status, s.Kind, s.Body = p.Status, "application/problem+json", encode(p)
	} else {
		if s.Status = out.status; s.Status == 0 {
			s.Status = http.StatusOK
		}
		s.Location, s.Body = out.location, encode(out.body)
		if raw, ok := out.body.(rawBody); ok {
			s.Kind, s.Body = raw.kind, raw.text
		}
	}
	if len(s.Body) > ledger.MaxOnce {
		p := NewProblem(http.StatusConflict, "answer-not-stored", "the request was handled, with status %d, but its answer of %d bytes was too large to be kept; the audit has its digest", s.Status, len(s.Body))
		s = stored{Status: p.Status, Kind: "application/problem+json", Body: encode(p)}
	}
	return encode(s)
}

func visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// digest is over texts so that no two lists of them have the same.
func digest(parts ...string) audit.Hash {
	h := sha256.New()
	for _, p := range parts {
		_, _ = fmt.Fprintf(h, "%d:%s", len(p), p) // a hash does not fail
	}
	return audit.Hash(h.Sum(nil))
}

// lifeKey is where a request has the context of the whole server.
type lifeKey struct{}

// WithLife notes the life of the server in the context of its requests.
func WithLife(ctx context.Context) context.Context { return context.WithValue(ctx, lifeKey{}, ctx) }
