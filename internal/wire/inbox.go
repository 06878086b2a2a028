package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
)

// inbox sorts what comes on a stream that all calls share: a response goes to
// the call that waits for it, all else to the handler, which the stream waits
// for.
type inbox struct {
	handle Handler

	mu      sync.Mutex
	waiting map[string]chan Message // by [IDKey]
	givenUp map[string]bool         // by [IDKey]: their answers may still come, which is no fault; maxGivenUp at most
}

// maxGivenUp is large enough for what is cancelled at once. A server need not answer what
// was cancelled, so there is no other end to it.
const maxGivenUp = 256

func newInbox(handle Handler) inbox {
	return inbox{handle: handle, waiting: map[string]chan Message{}, givenUp: map[string]bool{}}
}

// expect makes room for the answer to the request with the given id, until it
// comes or forget.
func (b *inbox) expect(id string) <-chan Message {
	answer := make(chan Message, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting[IDKey(json.RawMessage(id))] = answer
	return answer
}

func (b *inbox) forget(id string) {
	key := IDKey(json.RawMessage(id))
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.waiting[key]; !ok {
		return
	}
	delete(b.waiting, key)
	if len(b.givenUp) >= maxGivenUp {
		for some := range b.givenUp {
			delete(b.givenUp, some)
			break
		}
	}
	b.givenUp[key] = true
}

// take sorts one message, or each of a batch. The error says what of it is noise.
func (b *inbox) take(raw []byte) error {
	if !IsBatch(raw) {
		m, err := ParseLenient(raw)
		switch {
		case err != nil:
			// Whoever waits for this answer must not wait for ever.
			if id := findID(raw); id != nil && claims(raw) {
				_ = b.fail(id, "the upstream's answer is no valid JSON-RPC message: "+err.Error())
			}
			return err
		case m.IsResponse():
			return b.answer(m)
		}
		b.handle(m)
		return nil
	}
	return each(raw, b.take)
}

// each hands on the messages of a batch. The error is the first, and how many
// there are: a batch may hold millions.
func each(batch []byte, take func([]byte) error) error {
	messages, first := Elements(batch)
	more := 0
	for _, m := range messages {
		err := errors.New("a batch in a batch")
		if !IsBatch(m) {
			err = take(m)
		}
		switch {
		case err != nil && first == nil:
			first = err
		case err != nil:
			more++
		}
	}
	if more > 0 {
		return fmt.Errorf("%w; and %d more messages of its batch", first, more)
	}
	return first
}

// claims reports that a line which is no message was meant to be a response, as
// against a line of a log that happens to name an id: it calls itself JSON-RPC
// and asks for nothing, or has a result or an error and nothing else.
func claims(line []byte) bool {
	f := idFinder{limit: len(line)}
	f.write(line)
	if f.jsonrpc {
		return f.outcome || !f.method
	}
	return f.outcome && !f.method && !f.other
}

func (b *inbox) answer(m Message) error {
	key := IDKey(m.ID)
	b.mu.Lock()
	ch, ok := b.waiting[key]
	late := b.givenUp[key]
	delete(b.waiting, key)
	delete(b.givenUp, key)
	b.mu.Unlock()
	switch {
	case ok:
		ch <- m
	case !late:
		return errUnawaited(m)
	}
	return nil
}

func errUnawaited(m Message) error {
	return fmt.Errorf("a response that nobody waits for on this stream (id %s)", Printable(string(m.ID), 64))
}

// fail answers the call with the given id by an error of haldir's.
func (b *inbox) fail(id json.RawMessage, message string) error {
	m, err := ParseLenient(Failure(&Error{ID: id, Code: CodeInternal, Message: message}))
	if err != nil {
		return err
	}
	return b.answer(m)
}
