package upstream

import (
	"bytes"
	"fmt"
	"io"
	"sync"
)

// babble is what a server has said so far that is no answer, for people who wait for one.
type babble struct {
	mu    sync.Mutex
	lines int    // that are no messages
	first string // of them, fit to be shown
	open  int    // bytes of a line that has not ended
	list  string // that is being read
	pages int    // of it
}

// noise notes a line that is no message.
func (b *babble) noise(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lines++; b.lines == 1 {
		b.first = line
	}
}

// page notes how many pages of a list have been read.
func (b *babble) page(list string, pages int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.list, b.pages = list, pages
}

// text is "" if there is nothing to say.
func (b *babble) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.lines > 0:
		return fmt.Sprintf("of what it has written, lines that are no JSON-RPC: %d, the first: %q", b.lines, b.first)
	case b.pages > 1:
		return fmt.Sprintf("its list of %s does not end: pages so far: %d", b.list, b.pages)
	case b.open > 0:
		return fmt.Sprintf("it has written a line that does not end: %d bytes so far", b.open)
	}
	return ""
}

// listening is the output of a child, of which is noted how long its last line is.
type listening struct {
	io.ReadCloser

	babble *babble
}

func (l listening) Read(into []byte) (int, error) {
	n, err := l.ReadCloser.Read(into)
	l.babble.mu.Lock()
	defer l.babble.mu.Unlock()
	if end := bytes.LastIndexByte(into[:n], '\n'); end >= 0 {
		l.babble.open = n - end - 1
	} else {
		l.babble.open += n
	}
	return n, err
}
