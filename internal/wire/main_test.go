package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/haldir-mcp/haldir/internal/wire"
)

// Every conversation a test starts must be gone at the end, goroutines included.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen; far above what a
// loaded two-core machine under -race needs.
const patience = 10 * time.Second

// within fails the test when f does not return in time: a hang must show as a
// failed test with a name, not as the whole package's timeout.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s: still not done after %v", what, patience)
	}
}

// receive takes the next value of ch or fails.
func receive[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("%s: nothing after %v", what, patience)
		panic("unreachable")
	}
}

// list is a slice that several goroutines may append to.
type list[T any] struct {
	mu    sync.Mutex
	items []T
}

func (l *list[T]) add(v T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.items = append(l.items, v)
}

func (l *list[T]) all() []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]T(nil), l.items...)
}

// result is what a call came back with.
type result struct {
	m   wire.Message
	err error
}

// object decodes raw with encoding/json, the decoder that wire does not use.
func object(t testing.TB, raw []byte) map[string]json.RawMessage {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatalf("encoding/json cannot read %q: %v", clip(raw), err)
	}
	return m
}

// uniqueKeys walks raw token by token and reports a name that stands twice in
// one object, after decoding escapes. It knows nothing of the code under test.
func uniqueKeys(raw []byte) error {
	type level struct {
		seen  map[string]bool // nil in an array
		value bool            // the next string is a value
	}
	var stack []*level
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var top *level
		if len(stack) > 0 {
			top = stack[len(stack)-1]
		}
		switch tok {
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
			continue
		}
		if top != nil && top.seen != nil {
			if !top.value {
				name, _ := tok.(string)
				if top.seen[name] {
					return fmt.Errorf("%q stands twice", name)
				}
				top.seen[name] = true
			}
			top.value = !top.value
		}
		switch tok {
		case json.Delim('{'):
			stack = append(stack, &level{seen: map[string]bool{}})
		case json.Delim('['):
			stack = append(stack, &level{})
		}
	}
}

// topLevel returns the members of an object in order, names decoded, duplicates
// kept. ok is false if raw is no valid JSON object.
func topLevel(raw []byte) (names []string, values []json.RawMessage, ok bool) {
	if !json.Valid(raw) {
		return nil, nil, false
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, nil, false
	}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, nil, false
		}
		name, _ := tok.(string)
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, nil, false
		}
		names, values = append(names, name), append(values, v)
	}
	return names, values, true
}

func clip(b []byte) []byte {
	if len(b) > 200 {
		return append(bytes.Clone(b[:200]), "..."...)
	}
	return b
}

// heapInUse is what is reachable. A pool keeps its garbage for one collection.
func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
