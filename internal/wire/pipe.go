package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
)

// Pipe is a [Client] over a pair of byte streams, as MCP's stdio transport
// defines it: one message a line. It owns both streams.
type Pipe struct {
	in     io.WriteCloser // to the peer
	out    io.ReadCloser  // from the peer
	handle Handler
	noise  func(line []byte, why error)
	lastID atomic.Int64

	mu      sync.Mutex
	queue   []*outgoing // waits for the writer; as long as the calls in flight
	wake    chan struct{}
	pending map[string]chan Message // by [IDKey]

	done chan struct{}
	once sync.Once
	err  error
	wg   sync.WaitGroup
}

type outgoing struct {
	line    []byte
	state   atomic.Int32
	written chan struct{} // closed when the writer is done with it
}

// drop keeps a message from being written; false if it is too late for that.
func (o *outgoing) drop() bool {
	if !o.state.CompareAndSwap(queued, dropped) {
		return false
	}
	o.line = nil // the writer may not come by for long
	return true
}

// States of an outgoing message. Who moves it away from queued decides whether
// it is ever written.
const (
	queued int32 = iota
	writing
	dropped
)

// PipeOptions configure [NewPipe].
type PipeOptions struct {
	Handler Handler
	// Noise takes each line that is no JSON-RPC message; it must not keep it.
	Noise      func(line []byte, why error)
	MaxMessage int // bytes; 0 means [DefaultMaxMessage]
}

// NewPipe starts a conversation that writes to in and reads from out.
func NewPipe(in io.WriteCloser, out io.ReadCloser, o PipeOptions) *Pipe {
	p := &Pipe{
		in: in, out: out, handle: o.Handler, noise: o.Noise, wake: make(chan struct{}, 1),
		pending: map[string]chan Message{}, done: make(chan struct{}),
	}
	p.wg.Go(p.write)
	p.wg.Go(func() { p.read(NewLineReader(out, o.MaxMessage)) })
	return p
}

// Call implements [Client].
func (p *Pipe) Call(ctx context.Context, method string, params json.RawMessage) (Message, error) {
	id := numberID(p.lastID.Add(1))
	key := IDKey(json.RawMessage(id))
	answer := make(chan Message, 1)
	p.mu.Lock()
	p.pending[key] = answer
	p.mu.Unlock()
	msg := p.enqueue(Request(json.RawMessage(id), method, params))

	select {
	case m := <-answer:
		return m, nil
	case <-ctx.Done():
		p.forget(key)
		if msg.drop() {
			return Message{}, fmt.Errorf("%w: %w", context.Cause(ctx), ErrNotSent)
		}
		if method != "initialize" { // MCP lifecycle: it must not be cancelled
			p.enqueue(cancelled(id, context.Cause(ctx)))
		}
		return Message{}, context.Cause(ctx)
	case <-p.done:
		select { // the answer may have come with the end
		case m := <-answer:
			return m, nil
		default:
		}
		p.forget(key)
		if msg.drop() {
			return Message{}, fmt.Errorf("%w: %w", p.err, ErrNotSent)
		}
		return Message{}, p.err
	}
}

// Send implements [Client]. It returns once the message is written.
func (p *Pipe) Send(ctx context.Context, msg []byte) error {
	select {
	case <-p.done:
		return p.err
	default:
	}
	o := p.enqueue(msg)
	select {
	case <-o.written:
		return nil
	case <-p.done:
		return p.err
	case <-ctx.Done():
		o.drop()
		return context.Cause(ctx)
	}
}

func (p *Pipe) enqueue(msg []byte) *outgoing {
	o := &outgoing{line: append(slices.Clone(OneLine(msg)), '\n'), written: make(chan struct{})}
	p.mu.Lock()
	p.queue = append(p.queue, o)
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return o
}

func (p *Pipe) forget(key string) {
	p.mu.Lock()
	delete(p.pending, key)
	p.mu.Unlock()
}

func (p *Pipe) write() {
	for {
		p.mu.Lock()
		batch := p.queue
		p.queue = nil
		p.mu.Unlock()
		for _, o := range batch {
			if !o.state.CompareAndSwap(queued, writing) {
				continue
			}
			if _, err := p.in.Write(o.line); err != nil {
				p.end(fmt.Errorf("write to the upstream: %w", err))
				return
			}
			close(o.written)
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-p.wake:
		case <-p.done:
			return
		}
	}
}

func (p *Pipe) read(lines *LineReader) {
	for {
		line, err := lines.Next()
		var large *TooLargeError
		switch {
		case errors.As(err, &large):
			if large.ID != nil && !large.Request {
				p.tooLarge(large)
			}
			p.noise(nil, err)
			continue
		case errors.Is(err, io.EOF):
			p.end(errors.New("the upstream closed its output"))
			return
		case err != nil:
			p.end(fmt.Errorf("read from the upstream: %w", err))
			return
		}
		if err := p.dispatch(line); err != nil {
			p.noise(line, err)
		}
	}
}

// claims reports that a line which is no message was meant to be a response, as
// against a line of a log that happens to name an id.
func claims(line []byte) bool {
	f := idFinder{limit: len(line)}
	f.write(line)
	return f.jsonrpc && !f.method
}

// tooLarge answers a call whose response was too large to read.
func (p *Pipe) tooLarge(e *TooLargeError) {
	if err := p.fail(e.ID, "the upstream's answer is a "+e.Error()); err != nil {
		p.noise(nil, err)
	}
}

// fail answers the call with the given id by an error of haldir's.
func (p *Pipe) fail(id json.RawMessage, message string) error {
	m, err := ParseLenient(Failure(&Error{ID: id, Code: CodeInternal, Message: message}))
	if err != nil {
		return err
	}
	return p.answer(m)
}

func (p *Pipe) dispatch(line []byte) error {
	if !IsBatch(line) {
		m, err := ParseLenient(line)
		if err != nil {
			// Whoever waits for this answer must not wait for ever.
			if id := findID(line); id != nil && claims(line) {
				_ = p.fail(id, "the upstream's answer is no valid JSON-RPC message: "+err.Error())
			}
			return err
		}
		if m.IsResponse() {
			return p.answer(m)
		}
		p.handle(m)
		return nil
	}
	messages, err := Elements(line)
	for _, raw := range messages {
		if IsBatch(raw) {
			err = errors.Join(err, errors.New("a batch in a batch"))
			continue
		}
		err = errors.Join(err, p.dispatch(raw))
	}
	return err
}

func (p *Pipe) answer(m Message) error {
	p.mu.Lock()
	ch, ok := p.pending[IDKey(m.ID)]
	delete(p.pending, IDKey(m.ID))
	p.mu.Unlock()
	if !ok {
		return errors.New("a response that nobody waits for")
	}
	ch <- m
	return nil
}

func (p *Pipe) end(err error) {
	p.once.Do(func() {
		p.err = err
		close(p.done)
	})
}

// Done implements [Client].
func (p *Pipe) Done() <-chan struct{} { return p.done }

// Err implements [Client].
func (p *Pipe) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// CloseInput closes the stream to the peer, which asks a stdio server to end,
// and keeps reading.
func (p *Pipe) CloseInput() error { return p.in.Close() }

// Close implements [Client]. It waits for the read loop, so the peer's end of
// the output must be closed or the process gone, or out must unblock on Close.
func (p *Pipe) Close() {
	p.end(ErrClosed)
	_ = p.in.Close() // nothing is owed to a peer that haldir leaves
	_ = p.out.Close()
	p.wg.Wait()
}
