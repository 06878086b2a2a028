package api_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/console/api"
)

// slow is a ledger whose records take as long as the test wants.
type slow struct {
	api.Ledger
	reading, release chan struct{}
}

func (*slow) Newest() (uint64, error) { return 1, nil }

func (s *slow) Walk(context.Context, uint64, func(uint64, []byte) error) (uint64, audit.Hash, error) {
	close(s.reading) // twice is a panic: two read at once
	<-s.release
	return 0, audit.Hash{}, errors.New("it was enough")
}

// The first scrape reads the whole ledger, and Prometheus gives up on those behind it.
func TestAScrapeThatHasEndedDoesNotWait(t *testing.T) {
	l := &slow{reading: make(chan struct{}), release: make(chan struct{})}
	h := api.New(api.Options{Ledger: l, Log: zerolog.Nop()}).Handler(func(http.ResponseWriter, *http.Request) *api.Caller {
		return &api.Caller{Person: true}
	})
	var first sync.WaitGroup
	first.Go(func() { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/metrics", nil)) })
	<-l.reading
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("the scrape has timed out"))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil).WithContext(ctx)) // while the first still reads
	if w.Code == http.StatusOK {
		t.Errorf("it was answered: %s", w.Body)
	}
	close(l.release)
	first.Wait()
}
