package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// What bbolt's file format says about the first pages (bbolt v1.3 to v1.5):
// pages 0 and 1 are meta pages, the valid one with the greater transaction id
// counts, and a commit writes them in turn.
const (
	pageSize       = 4096
	pageHeader     = 16 // id, flags, count, overflow
	flagBranch     = 0x01
	flagLeaf       = 0x02
	flagMeta       = 0x04
	flagFreelist   = 0x10
	metaMagic      = 0xED0CDAED
	metaVersion    = 2
	metaChecksumAt = 56 // from the start of the meta, which is what is summed
)

// meta is what a meta page says.
type meta struct {
	root, freelist, high, txid uint64
}

// depth is how much of a file is read before bbolt maps it.
type depth int

const (
	first  depth = iota // the few pages on which bbolt rests
	edges               // and, up to a limit, those that the next transactions will change
	bottom              // all
)

// preflight checks a file. One that is cut short or overwritten in its first
// pages would otherwise end the process by a memory fault that nothing can catch
// on every platform; where it is damaged in a page that is about to be changed,
// bbolt would write what lies beside it in memory.
func preflight(path string, deep depth) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the ledger: %w", err)
	}
	m, err := sound(f)
	if err == nil && deep > first {
		w := walker{f: f, deep: deep}
		err = w.buckets(m, func(b element) error { return w.bucket(b, func(_, _ []byte) error { return nil }) })
		if err == nil {
			err = w.free(m)
		}
	}
	return errors.Join(at(path, err), f.Close())
}

func at(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", path, blame(err))
}

// sound returns the meta page that counts.
func sound(f *os.File) (m meta, err error) {
	info, err := f.Stat()
	if err != nil {
		return m, err
	}
	var metas [2]meta
	var valid [2]bool
	page := make([]byte, pageSize)
	for i := range metas {
		if _, err := f.ReadAt(page, int64(i)*pageSize); err != nil && !errors.Is(err, io.EOF) {
			return m, err
		}
		metas[i], valid[i] = readMeta(page)
	}
	m = metas[0]
	switch {
	case !valid[0] && !valid[1]:
		return m, errors.New("neither of its two first pages is intact")
	case !valid[0] || valid[1] && metas[1].txid > metas[0].txid:
		m = metas[1]
	}
	pages := uint64(info.Size()) / pageSize //nolint:gosec // not negative
	switch {
	case m.high > pages:
		return m, fmt.Errorf("it is %d bytes long and should have %d at least: its end is missing", info.Size(), m.high*pageSize)
	case m.root < 2 || m.root >= m.high || m.freelist < 2 || m.freelist >= m.high:
		return m, errors.New("its first page points outside the file")
	}
	if err := checkPage(f, m.root, flagBranch|flagLeaf); err != nil {
		return m, fmt.Errorf("its root page: %w", err)
	}
	if err := checkPage(f, m.freelist, flagFreelist); err != nil {
		return m, fmt.Errorf("its list of free pages: %w", err)
	}
	return m, nil
}

func readMeta(page []byte) (meta, bool) {
	ne := binary.NativeEndian
	if ne.Uint16(page[8:]) != flagMeta {
		return meta{}, false
	}
	b := page[pageHeader:]
	if ne.Uint32(b) != metaMagic || ne.Uint32(b[4:]) != metaVersion || ne.Uint32(b[8:]) != pageSize {
		return meta{}, false
	}
	sum := fnv.New64a()
	_, _ = sum.Write(b[:metaChecksumAt]) // a hash does not fail
	m := meta{root: ne.Uint64(b[16:]), freelist: ne.Uint64(b[32:]), high: ne.Uint64(b[40:]), txid: ne.Uint64(b[48:])}
	return m, sum.Sum64() == ne.Uint64(b[metaChecksumAt:])
}

// checkPage checks the header of a page: its own number and one of the flags.
func checkPage(f *os.File, id uint64, flags uint16) error {
	head := make([]byte, pageHeader)
	if _, err := f.ReadAt(head, int64(id)*pageSize); err != nil { //nolint:gosec // within the file
		return err
	}
	ne := binary.NativeEndian
	if got := ne.Uint64(head); got != id {
		return fmt.Errorf("page %d says that it is page %d", id, got)
	}
	if ne.Uint16(head[8:])&flags == 0 {
		return fmt.Errorf("page %d is of the wrong kind", id)
	}
	return nil
}
