package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A file that is damaged is read without bbolt, which believes what a page says
// and walks in circles if that leads there. Here every page is read once, from
// the file and not from memory, and nothing is believed.

const (
	elementSize  = 16   // of a leaf's or a branch's element
	bucketHeader = 16   // root page, sequence
	bucketFlag   = 0x01 // of a leaf's element: its value is a bucket
)

// element is one entry of a leaf page.
type element struct {
	bucket     bool
	key, value []byte
}

// child returns where the tree of a bucket begins: a page, or, of a small one,
// the page inside the value.
func (e element) child() (root uint64, inline []byte, err error) {
	if len(e.value) < bucketHeader {
		return 0, nil, errors.New("a bucket is cut short")
	}
	return binary.NativeEndian.Uint64(e.value), e.value[bucketHeader:], nil
}

// elements reads a leaf page. With an error it returns those that can be read.
func elements(page []byte) (list []element, err error) {
	err = eachElement(page, func(e, rest []byte) bool {
		ne := binary.NativeEndian
		pos, keySize, valueSize := uint64(ne.Uint32(e[4:])), uint64(ne.Uint32(e[8:])), uint64(ne.Uint32(e[12:]))
		if keySize == 0 || pos+keySize+valueSize > uint64(len(rest)) {
			return false
		}
		list = append(list, element{ne.Uint32(e)&bucketFlag != 0, rest[pos : pos+keySize], rest[pos+keySize : pos+keySize+valueSize]})
		return true
	})
	return list, err
}

// branches reads the children of a branch page.
func branches(page []byte) (list []uint64, err error) {
	err = eachElement(page, func(e, _ []byte) bool {
		list = append(list, binary.NativeEndian.Uint64(e[8:]))
		return true
	})
	return list, err
}

// eachElement calls f with every element and with the page from there on; f
// returns whether it is good.
func eachElement(page []byte, f func(e, rest []byte) bool) error {
	if len(page) < pageHeader {
		return errors.New("a page is cut short")
	}
	n, fit := int(binary.NativeEndian.Uint16(page[10:])), (len(page)-pageHeader)/elementSize
	good := n <= fit
	for i := range min(n, fit) {
		rest := page[pageHeader+i*elementSize:]
		good = f(rest[:elementSize], rest) && good
	}
	if !good {
		return errors.New("it has entries that lead out of it or have no key")
	}
	return nil
}

// walker goes through the trees of a file.
type walker struct {
	f    io.ReaderAt
	deep depth
	high uint64 // the first page that is not used
	seen map[uint64]bool
}

// edgePages is how many pages are read at most of a tree at the depth [edges];
// beyond, only its last ones, where it grows.
const edgePages = 1000

// page reads a page with those that it runs over into.
func (w *walker) page(id uint64) ([]byte, error) {
	if id < 2 || id >= w.high {
		return nil, fmt.Errorf("something leads to page %d, which there is not", id)
	}
	head := make([]byte, pageHeader)
	if _, err := w.f.ReadAt(head, int64(id)*pageSize); err != nil { //nolint:gosec // within the file
		return nil, err
	}
	over := uint64(binary.NativeEndian.Uint32(head[12:]))
	if binary.NativeEndian.Uint64(head) != id || over >= w.high-id {
		return nil, fmt.Errorf("page %d is not what belongs there", id)
	}
	for i := range over + 1 {
		if w.seen[id+i] {
			return nil, fmt.Errorf("page %d is used twice", id+i)
		}
		w.seen[id+i] = true
	}
	page := make([]byte, (over+1)*pageSize)
	_, err := w.f.ReadAt(page, int64(id)*pageSize) //nolint:gosec // as above
	return page, err
}

// tree calls f with every entry of the tree that begins at a page, in order.
func (w *walker) tree(id uint64, f func(element) error) error {
	page, err := w.page(id)
	if err != nil {
		return err
	}
	switch binary.NativeEndian.Uint16(page[8:]) {
	case flagBranch:
		children, err := branches(page)
		if err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		for i, child := range children {
			if w.deep < bottom && len(w.seen) > edgePages && i < len(children)-1 {
				continue
			}
			if err := w.tree(child, f); err != nil {
				return err
			}
		}
		return nil
	case flagLeaf:
		list, err := elements(page)
		if err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		for _, e := range list {
			if err := f(e); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("page %d is of the wrong kind", id)
}

// bucket calls f with every entry of a bucket, which must be in order.
func (w *walker) bucket(e element, f func(key, value []byte) error) error {
	root, inline, err := e.child()
	if err != nil {
		return err
	}
	var last []byte
	visit := func(e element) error {
		if e.bucket || last != nil && bytes.Compare(e.key, last) <= 0 {
			return errors.New("its entries are not in order")
		}
		last = bytes.Clone(e.key)
		return f(e.key, e.value)
	}
	if root != 0 {
		return w.tree(root, visit)
	}
	list, err := elements(inline)
	for _, e := range list {
		err = errors.Join(err, visit(e))
	}
	return err
}

// buckets calls f with every bucket of the file.
func (w *walker) buckets(m meta, f func(element) error) error {
	w.high, w.seen = m.high, map[uint64]bool{}
	return w.tree(m.root, f)
}

// free checks that no page that is in use is on the list of free ones, where the
// next transaction would overwrite it.
func (w *walker) free(m meta) error {
	page, err := w.page(m.freelist)
	if err != nil {
		return err
	}
	ne := binary.NativeEndian
	n, ids := uint64(ne.Uint16(page[10:])), page[pageHeader:]
	if n == 0xffff { // too many for the header
		n, ids = ne.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids)/8) {
		return errors.New("its list of free pages is cut short")
	}
	for i := range n {
		if id := ne.Uint64(ids[8*i:]); id < 2 || id >= m.high || w.seen[id] {
			return fmt.Errorf("page %d is in use, but on the list of free ones", id)
		}
	}
	return nil
}
