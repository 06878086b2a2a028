package approval

import (
	"context"
	"sync"
	"time"

	"github.com/haldir-mcp/haldir/audit"
)

// Board is where decisions of other processes are seen.
type Board interface {
	Bell() string
	Decided(ctx context.Context, seqs []uint64) (map[uint64]audit.Entry, error)
}

// Desk tells the calls of this process that wait for a person what others have decided.
// It looks at the bell while anybody waits, however many do; the database it reads only
// when the bell has changed, or after a while in case that was missed.
type Desk struct {
	board Board

	mu      sync.Mutex
	waiting map[uint64]chan audit.Entry
	news    bool               // somebody waits who did not when the database was read
	stop    context.CancelFunc // ends the goroutine that looks; nil while there is none
	wg      sync.WaitGroup
}

// How often the bell is looked at, and the database without a bell.
const (
	each   = 150 * time.Millisecond
	anyway = 30 * time.Second
)

// NewDesk makes a desk. Close it.
func NewDesk(b Board) *Desk { return &Desk{board: b, waiting: map[uint64]chan audit.Entry{}} }

// Wait returns a channel on which the entry of an attempt comes once, when it is decided.
// leave must be called.
func (d *Desk) Wait(seq uint64) (decided <-chan audit.Entry, leave func()) {
	ch := make(chan audit.Entry, 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting[seq], d.news = ch, true
	if d.stop == nil {
		ctx, cancel := context.WithCancel(context.Background())
		d.stop = cancel
		d.wg.Go(func() { d.watch(ctx) })
	}
	return ch, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.waiting, seq)
		if len(d.waiting) == 0 && d.stop != nil {
			d.stop()
			d.stop = nil
		}
	}
}

// Close ends what the desk does; nobody waits any more.
func (d *Desk) Close() {
	d.mu.Lock()
	if d.stop != nil {
		d.stop()
		d.stop = nil
	}
	d.mu.Unlock()
	d.wg.Wait()
}

func (d *Desk) watch(ctx context.Context) {
	tick := time.NewTicker(each)
	defer tick.Stop()
	heard, read := "", time.Time{}
	for {
		bell := d.board.Bell()
		d.mu.Lock()
		look := d.news || bell != heard || time.Since(read) > anyway
		d.news = false
		d.mu.Unlock()
		switch {
		case !look:
		case d.tell(ctx):
			heard, read = bell, time.Now()
		default: // the ledger is busy: again, at the next tick
			d.mu.Lock()
			d.news = true
			d.mu.Unlock()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// tell reads what is decided and reports whether it could.
func (d *Desk) tell(ctx context.Context) bool {
	d.mu.Lock()
	seqs := make([]uint64, 0, len(d.waiting))
	for seq := range d.waiting {
		seqs = append(seqs, seq)
	}
	d.mu.Unlock()
	decided, err := d.board.Decided(ctx, seqs)
	if err != nil {
		return false // the ledger is busy: later
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for seq, e := range decided {
		if ch := d.waiting[seq]; ch != nil {
			ch <- e
			delete(d.waiting, seq)
		}
	}
	return true
}
