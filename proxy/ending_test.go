package proxy_test

import (
	"context"
	"fmt"
	"io"
	"math/rand"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// TestASignalWhileTheHostSends ends haldir at any moment of a host's flood.
func TestASignalWhileTheHostSends(t *testing.T) {
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		srv := proxy.New(proxy.Options{Log: zerolog.Nop(), Initialize: func(upstream.Host) {}, NameLimit: 89})
		in, w := io.Pipe()
		ctx, stop := context.WithCancel(context.Background())
		flood := make(chan struct{})
		go func() {
			defer close(flood)
			for i := 0; ; i++ {
				if _, err := fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%d,"method":"ping"}`+"\n", i); err != nil {
					return
				}
			}
		}()
		time.AfterFunc(time.Duration(rand.Intn(1000))*time.Microsecond, stop)
		_ = srv.Serve(ctx, in, io.Discard)
		_ = in.Close()
		<-flood
	}
}

// late notes calls that are reserved when everything is over.
type late struct {
	proxy.Ledger
	over  atomic.Bool
	after chan string
}

func (l *late) Reserve(ctx context.Context, a ledger.Attempt, d ledger.Decider) (ledger.Ticket, policy.Decision, error) {
	if l.over.Load() {
		l.after <- a.Call.Tool
	}
	return l.Ledger.Reserve(ctx, a, d)
}

func TestNoRequestBeginsAfterTheEnd(t *testing.T) {
	var l *late
	h := serve(t, rig{fakes: []proxy.Upstream{newFake("up", "say")}, adjust: func(o *proxy.Options) {
		l = &late{Ledger: o.Ledger, after: make(chan string, 1)}
		o.Ledger = l
	}})
	big := `{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"up__say","arguments":{"x":[` + strings.Repeat("{},", 400_000) + `1]}}}` + "\n"
	_, _ = io.Copy(h.in, strings.NewReader(big))
	time.Sleep(2 * time.Millisecond) // it is being read
	h.stop()
	<-h.done
	l.over.Store(true)
	select {
	case tool := <-l.after:
		t.Fatalf("a call of %s was reserved after the end", tool)
	case <-time.After(time.Second):
	}
}

// TestAnAnsweredCallIsSettledAtASignal has haldir end while the host still reads a
// large answer: the outcome is on its way to the ledger at once.
func TestAnAnsweredCallIsSettledAtASignal(t *testing.T) {
	settled := make(chan ledger.Outcome, 1)
	f := newFake("up", "say")
	answered := make(chan struct{})
	f.do = func(context.Context, upstream.Call) (wire.Message, error) {
		m, err := reply(mcptest.Text(strings.Repeat("x", 5_000_000)))
		time.AfterFunc(20*time.Millisecond, func() { close(answered) })
		return m, err
	}
	h := serve(t, rig{fakes: []proxy.Upstream{f}, adjust: func(o *proxy.Options) {
		o.Ledger = &settling{Ledger: o.Ledger, settled: settled}
	}})
	h.tools()
	h.deaf.Store(true)
	_, line := h.callLine("up__say", "{}")
	h.send(line)
	<-answered
	h.stop()
	select {
	case o := <-settled:
		if o.Result != ledger.Done {
			t.Errorf("it is settled as %+v", o)
		}
	case <-time.After(patience):
		t.Error("it is not settled")
	}
	h.deaf.Store(false)
}

type settling struct {
	proxy.Ledger
	settled chan ledger.Outcome
}

func (s *settling) Settle(t ledger.Ticket, o ledger.Outcome) {
	select {
	case s.settled <- o:
	default:
	}
	s.Ledger.Settle(t, o)
}
