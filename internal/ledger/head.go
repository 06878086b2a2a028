package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/haldir-mcp/haldir/audit"
)

// The head file repeats the newest record's number and hash outside the
// database. A reader that waits for news polls it without the lock, and a
// database that ends before it was truncated or replaced. It is written after
// each commit, without a sync: after a power cut it may lag, never lead.
type head struct {
	seq  uint64
	hash audit.Hash
}

func headPath(dir string) string { return filepath.Join(dir, "haldir.head") }

const headFormat = "haldir-head 1 %020d %s\n"

func readHead(dir string) (head, error) {
	b, err := os.ReadFile(headPath(dir))
	if errors.Is(err, os.ErrNotExist) {
		return head{}, nil
	}
	if err != nil {
		return head{}, fmt.Errorf("read the ledger's head: %w", err)
	}
	if len(b) == 0 { // made, but its maker died before writing to it
		return head{}, nil
	}
	var h head
	var hash []byte
	if n, err := fmt.Sscanf(string(b), "haldir-head 1 %d %x\n", &h.seq, &hash); err != nil || n != 2 || copy(h.hash[:], hash) != len(h.hash) {
		return head{}, fmt.Errorf("%w: %s is no head file", ErrDamaged, headPath(dir))
	}
	return h, nil
}

// headFile keeps the head file open: it is written after every commit.
type headFile struct{ f *os.File }

func (w *headFile) write(dir string, h head) error {
	if w.f == nil {
		f, err := os.OpenFile(headPath(dir), os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		w.f = f
	}
	_, err := w.f.WriteAt(fmt.Appendf(nil, headFormat, h.seq, h.hash), 0)
	return err
}

// close makes the next write open the file anew, in case it was replaced.
func (w *headFile) close() error {
	if w.f == nil {
		return nil
	}
	err := w.f.Close()
	w.f = nil
	return err
}
