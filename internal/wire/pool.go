package wire

import (
	"slices"
	"sync"
)

// pool keeps the memory of large messages for others, since to have it cleared,
// filled piece by piece and collected takes longer than all else about them. Its
// zero value is empty; nil keeps nothing. It is safe for concurrent use.
type pool struct{ free sync.Pool }

// Memory is kept from and up to these sizes, in bytes.
const (
	minPooled = 64 << 10
	maxPooled = 4 << 20
)

// grow returns buf with room for n bytes more. What buf was in is not used again.
func (p *pool) grow(buf []byte, n int) []byte {
	if cap(buf)-len(buf) >= n {
		return buf
	}
	if p == nil || len(buf)+n < minPooled {
		return slices.Grow(buf, n)
	}
	if free, ok := p.free.Get().(*[]byte); ok && cap(*free) >= len(buf)+n {
		return append((*free)[:0], buf...)
	}
	return slices.Grow(buf, n)
}

func (p *pool) put(buf []byte) {
	if cap(buf) >= minPooled && cap(buf) <= maxPooled {
		p.free.Put(&buf)
	}
}
