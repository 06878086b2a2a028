package upstream

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/upstream/oauth"
)

const (
	// signInTime is how long a person who was offered a sign-in may take for it.
	signInTime = 10 * time.Minute
	// offerPause is how long after one offer the next is made: a person who has said
	// no, or a server that is never content, is not asked again at once.
	offerPause = time.Minute
)

// offer is a sign-in that the host shows to a person, for all calls that wait for it.
type offer struct {
	done chan struct{}
	err  error // why nobody has signed in
}

// signIn has the host offer a sign-in to a person, if it can show URLs (elicitation,
// URL mode), and waits for it. It returns needed, which says what to do instead, if
// that comes to nothing. Nothing is opened unless the person agrees, and by the host.
func (u *Upstream) signIn(ctx context.Context, call Call, needed error) error {
	source, err := u.source()
	if err != nil || source == nil || !u.shows(call) {
		return needed
	}
	u.mu.Lock()
	o := u.offer
	if o == nil {
		if u.ctx.Err() != nil || time.Since(u.offered) < offerPause {
			u.mu.Unlock()
			return needed
		}
		o = &offer{done: make(chan struct{})}
		u.offer = o
		peer, mark := u.greeted.Peer, call.Mark
		u.wg.Go(func() {
			o.err = u.makeOffer(source, peer, mark)
			u.mu.Lock()
			u.offer, u.offered = nil, time.Now()
			u.mu.Unlock()
			close(o.done)
		})
	}
	u.mu.Unlock()
	select {
	case <-o.done:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", context.Cause(ctx), wire.ErrNotSent)
	}
	if o.err != nil {
		u.o.Log.Info().Err(u.cleaned(o.err)).Msg("nobody has signed in to the upstream")
		return needed
	}
	return nil
}

// shows reports whether the host has declared that it can show a URL.
func (u *Upstream) shows(call Call) bool {
	u.mu.Lock()
	h := u.greeted
	u.mu.Unlock()
	capabilities := call.Capabilities
	if capabilities == nil {
		capabilities = h.Capabilities
	}
	_, can := wire.At(capabilities, "elicitation", "url")
	return can && h.Peer != nil
}

func (u *Upstream) makeOffer(source *oauth.Source, peer Peer, mark any) error {
	ctx, cancel := context.WithTimeoutCause(u.ctx, signInTime, fmt.Errorf("nobody signed in within %v", signInTime))
	defer cancel()
	l, err := source.Begin(ctx, false)
	if err != nil {
		return err
	}
	if l == nil { // the client has signed in by itself
		return nil
	}
	defer l.Close()
	id := rand.Text()
	message := fmt.Sprintf("haldir wants to use the upstream '%s' for you. Sign in at %s?", u.Name(), l.Issuer())
	params := fmt.Appendf(nil, `{"mode":"url","url":%s,"elicitationId":%s,"message":%s}`, wire.Quote(l.URL), wire.Quote(id), wire.Quote(message))
	question, err := wire.ParseLenient(wire.Request(json.RawMessage(wire.Quote("sign-in-"+id)), "elicitation/create", params))
	if err != nil {
		return err
	}
	question.Mark = mark
	answers := make(chan []byte, 1)
	peer.Ask(u.Name(), question, func(response []byte) { answers <- response })
	done := make(chan error, 2)
	u.wg.Go(func() { done <- l.Wait(ctx) })
	u.wg.Go(func() { // or somebody signs in by the command line
		source.Changed(ctx, signInPoll)
		if ctx.Err() == nil {
			done <- nil
		}
	})
	for {
		select {
		case response := <-answers:
			if err := agreed(response); err != nil {
				cancel()
				if err := <-done; err == nil {
					return nil // somebody has signed in before the answer came
				}
				return err
			}
		case err := <-done:
			if err == nil {
				u.set(func() { u.failedAt = time.Time{} }) // the next call may connect
				u.tellSignedIn(peer, id)
			}
			return err
		}
	}
}

// agreed reads the host's answer.
func agreed(response []byte) error {
	if response == nil {
		return errors.New("the question was taken back")
	}
	m, err := wire.ParseLenient(response)
	if err != nil {
		return err
	}
	if m.Error != nil {
		return wire.ErrorOf(m)
	}
	action, _ := wire.At(m.Result, "action")
	if a, _ := wire.String(action.Value); a != "accept" {
		return errors.New("the person does not want to")
	}
	return nil
}

// tellSignedIn says to a host of the handshake era that a person is done.
func (u *Upstream) tellSignedIn(peer Peer, id string) {
	u.mu.Lock()
	modern := u.greeted.Modern
	u.mu.Unlock()
	if modern {
		return
	}
	m, err := wire.ParseLenient(fmt.Appendf(nil, `{"jsonrpc":"2.0","method":"notifications/elicitation/complete","params":{"elicitationId":%s}}`, wire.Quote(id)))
	if err == nil {
		peer.Notify(u.Name(), m)
	}
}
