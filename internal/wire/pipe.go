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
	noise  func(line []byte, why error)
	lastID atomic.Int64
	inbox  inbox

	mu    sync.Mutex
	queue []*outgoing // waits for the writer; as long as the calls in flight
	wake  chan struct{}

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
		in: in, out: out, noise: o.Noise, inbox: newInbox(o.Handler), wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	p.wg.Go(p.write)
	p.wg.Go(func() { p.read(NewLineReader(out, o.MaxMessage)) })
	return p
}

// Call implements [Client].
func (p *Pipe) Call(ctx context.Context, method string, params json.RawMessage) (Message, error) {
	id := numberID(p.lastID.Add(1))
	answer := p.inbox.expect(id)
	msg := p.enqueue(Request(json.RawMessage(id), method, params))

	select {
	case m := <-answer:
		return m, nil
	case <-ctx.Done():
		p.inbox.forget(id)
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
		p.inbox.forget(id)
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
		if err := p.inbox.take(line); err != nil {
			p.noise(line, err)
		}
	}
}

// tooLarge answers a call whose response was too large to read.
func (p *Pipe) tooLarge(e *TooLargeError) {
	if err := p.inbox.fail(e.ID, "the upstream's answer is a "+e.Error()); err != nil {
		p.noise(nil, err)
	}
}

// Abandon ends the call with the given id, if it is one in flight: the peer has said
// that it will not answer.
func (p *Pipe) Abandon(id json.RawMessage) {
	if err := p.inbox.fail(id, "the upstream has ended it"); err != nil {
		p.noise(nil, err)
	}
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
