package ledger

import "context"

// Pending returns how many calls wait for a person. It reads no arguments, unlike
// [Ledger.Approvals].
func (l *Ledger) Pending(ctx context.Context) (n int, err error) {
	err = l.do(ctx, false, func(t *tx) error {
		n = 0
		for _, p := range t.allPending() {
			if p.Waiting && !t.late(&p) {
				n++
			}
		}
		return nil
	})
	return n, err
}
