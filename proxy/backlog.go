package proxy

import (
	"context"
	"sync"
)

// From a host that leaves this much unread no more requests are read: each would
// hold its answer in memory. Hosts that read what they are sent never get there.
const (
	maxUnread      = 1000
	maxUnreadBytes = 64 << 20
)

// backlog counts what the host has been sent and has not read. Its zero value is
// empty; it is safe for concurrent use.
type backlog struct {
	mu              sync.Mutex
	messages, bytes int
	less            chan struct{} // closed when there is room again; nil if nobody waits
}

func (b *backlog) full() bool { return b.messages >= maxUnread || b.bytes >= maxUnreadBytes }

func (b *backlog) add(messages, bytes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.messages, b.bytes = b.messages+messages, b.bytes+bytes
	if b.less != nil && !b.full() {
		close(b.less)
		b.less = nil
	}
}

// wait returns when there is room, or ctx ends.
func (b *backlog) wait(ctx context.Context) {
	b.mu.Lock()
	if !b.full() {
		b.mu.Unlock()
		return
	}
	if b.less == nil {
		b.less = make(chan struct{})
	}
	less := b.less
	b.mu.Unlock()
	select {
	case <-less:
	case <-ctx.Done():
	}
}
