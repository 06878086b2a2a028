package ledger

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/haldir-mcp/haldir/audit"
)

// When a checkpoint is due, while there is anything new to sign.
const (
	checkpointAge     = 10 * time.Second
	checkpointRecords = 1000
)

// Files beside the database. The key is as safe as the directory it is in:
// against someone who can read it, checkpoints must be copied elsewhere.
func keyPath(dir string) string { return filepath.Join(dir, "checkpoint.key") }
func logPath(dir string) string { return filepath.Join(dir, "checkpoints.log") }

var (
	keyID   = []byte("id")   // the ledger's id, which its checkpoints carry
	keyTree = []byte("tree") // checkpointed as JSON
	// keySigned repeats of that what every transaction asks for: the size and the
	// time (Unix ns), both big-endian.
	keySigned = []byte("signed")
)

// checkpointed is how far checkpoints have come.
type checkpointed struct {
	Tree audit.Tree `json:"tree"`
	At   time.Time  `json:"at"`
	// Logged is how many bytes of the checkpoint log were on disk before this
	// was written: a shorter log was cut.
	Logged int64 `json:"logged"`
}

func (t *tx) checkpointed() (c checkpointed, err error) {
	raw := t.space(spaceMeta).get(keyTree)
	if raw == nil {
		return c, nil
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("%w: the checkpoint state: %w", ErrDamaged, err)
	}
	return c, nil
}

// due reports whether a checkpoint should be made now.
func (t *tx) due() bool {
	size, at := t.signed()
	seq, _ := t.head()
	return seq > size && (seq-size >= checkpointRecords || size > 0 && t.now.Sub(at) >= checkpointAge)
}

// signed returns the size and the time of the last checkpoint.
func (t *tx) signed() (size uint64, at time.Time) {
	v := t.space(spaceMeta).get(keySigned)
	if len(v) != 16 {
		return 0, time.Time{}
	}
	return number(v[:8]), time.Unix(0, int64(number(v[8:]))) //nolint:gosec // written below
}

// news reports whether there is anything to sign.
func (t *tx) news() bool {
	size, _ := t.signed()
	seq, _ := t.head()
	return seq > size
}

// checkpoint signs the chain as it is and appends that to the log. It runs in
// the writer, with the database open, after the operations that made it due
// have been answered.
func (l *Ledger) checkpoint() error {
	key, err := l.key()
	if err != nil {
		return err
	}
	logged, err := fileSize(logPath(l.o.Dir))
	if err != nil {
		return err
	}
	var c audit.Checkpoint
	err = l.commit([]*op{{write: true, run: func(t *tx) error {
		state, err := t.checkpointed()
		if err != nil {
			return err
		}
		seq, head := t.head()
		b := t.Bucket(bucketAudit)
		for at := state.Tree.Size + 1; at <= seq; at++ {
			raw := b.Get(be64(at))
			if raw == nil {
				return fmt.Errorf("%w: audit record %d is missing", ErrDamaged, at)
			}
			state.Tree.Add(audit.Sum(raw))
		}
		state.At, state.Logged = t.now, logged
		c = audit.Checkpoint{Origin: key.Origin(), Size: seq, Root: state.Tree.Root(), Head: head, Time: t.now}
		meta := t.space(spaceMeta)
		if err := meta.put(keySigned, append(be64(seq), be64(uint64(t.now.UnixNano()))...)); err != nil {
			return err
		}
		return meta.putJSON(keyTree, state)
	}}})
	if err != nil {
		return fmt.Errorf("make a checkpoint: %w", err)
	}
	signed, err := key.Sign(c)
	if err != nil {
		return fmt.Errorf("sign a checkpoint: %w", err)
	}
	line, err := audit.LogLine(signed)
	if err != nil {
		return err
	}
	return appendLine(logPath(l.o.Dir), line, logged)
}

func fileSize(path string) (int64, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// appendLine writes a whole line at the end of a file and syncs it. What a
// crash left of an earlier line is cut off first.
func appendLine(path string, line []byte, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	at, err := wholeLines(f, size)
	if err == nil {
		_, err = f.WriteAt(line, at)
	}
	if err == nil && at+int64(len(line)) < size {
		err = f.Truncate(at + int64(len(line)))
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// wholeLines returns where the last whole line ends.
func wholeLines(f *os.File, size int64) (int64, error) {
	tail := make([]byte, min(size, 4096))
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil {
		return 0, err
	}
	return size - int64(len(tail)) + int64(bytes.LastIndexByte(tail, '\n')) + 1, nil
}

// key returns the key that signs checkpoints, made at first use.
func (l *Ledger) key() (*audit.Key, error) {
	if l.signing != nil {
		return l.signing, nil
	}
	text, err := os.ReadFile(keyPath(l.o.Dir))
	if err == nil {
		key, err := audit.ParseKey(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", keyPath(l.o.Dir), err)
		}
		l.signing = key
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the checkpoint key: %w", err)
	}
	if size, err := fileSize(logPath(l.o.Dir)); err != nil || size > 0 {
		return nil, errors.Join(err, fmt.Errorf("the key that signed %s is gone: %s", logPath(l.o.Dir), keyPath(l.o.Dir)))
	}
	var id string
	if err := l.commit([]*op{{run: func(t *tx) error { id = string(t.space(spaceMeta).get(keyID)); return nil }}}); err != nil {
		return nil, err
	}
	key, err := audit.NewKey("haldir/" + id)
	if err != nil {
		return nil, err
	}
	if err := writeFile(keyPath(l.o.Dir), []byte(key.Encode())); err != nil {
		return nil, fmt.Errorf("keep the checkpoint key: %w", err)
	}
	l.signing = key
	return key, nil
}

// writeFile makes a file whole or not at all.
func writeFile(path string, data []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	return err
}

// Checkpoints returns the checkpoints of the log, verified with the ledger's own
// key, and that key's public form. logged is how long the log must be.
func (l *Ledger) Checkpoints(ctx context.Context) (list []audit.Checkpoint, public string, err error) {
	var state checkpointed
	var data, text []byte
	err = l.do(ctx, false, func(t *tx) error {
		// Under the lock, so that no other process is writing to the log.
		if state, err = t.checkpointed(); err != nil {
			return err
		}
		if text, err = os.ReadFile(keyPath(l.o.Dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if data, err = os.ReadFile(logPath(l.o.Dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	if int64(len(data)) < state.Logged {
		return nil, "", &audit.Damage{Kind: audit.DamageCheckpoint, Detail: fmt.Sprintf("the checkpoint log is %d bytes long; it had %d", len(data), state.Logged)}
	}
	if len(text) == 0 {
		if len(data) > 0 {
			return nil, "", &audit.Damage{Kind: audit.DamageCheckpoint, Detail: "the key that signed the checkpoint log is gone"}
		}
		return nil, "", nil
	}
	key, err := audit.ParseKey(string(text))
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", keyPath(l.o.Dir), err)
	}
	list, err = audit.ReadLog(data, key.Public())
	return list, key.Public(), err
}

// Proof shows that a record is in the chain that a checkpoint was signed over.
type Proof struct {
	Seq        uint64       `json:"seq"`
	Record     string       `json:"record"` // canonical bytes, base64
	LeafHash   audit.Hash   `json:"leaf_hash"`
	Path       []audit.Hash `json:"path"` // RFC 6962 section 2.1.1, from the leaf up
	Size       uint64       `json:"size"`
	Root       audit.Hash   `json:"root"`
	Checkpoint string       `json:"checkpoint"` // a signed note over size and root
	PublicKey  string       `json:"public_key"`
}

// Prove makes a checkpoint over the chain as it is and proves that the record
// seq is in it.
func (l *Ledger) Prove(ctx context.Context, seq uint64) (Proof, error) {
	var p Proof
	// A checkpoint first: it makes the key, if there is none yet.
	if err := l.wait(ctx, &op{run: func(*tx) error { return nil }, then: l.checkpoint, done: make(chan error, 1)}); err != nil {
		return p, err
	}
	err := l.do(ctx, false, func(t *tx) error {
		size, head := t.head()
		b := t.Bucket(bucketAudit)
		leaf := func(at uint64) (audit.Hash, error) {
			raw := b.Get(be64(at))
			if raw == nil {
				return audit.Hash{}, fmt.Errorf("%w: audit record %d is missing", ErrDamaged, at)
			}
			return audit.Sum(raw), nil
		}
		path, err := audit.ProveInclusion(seq, size, leaf)
		if err != nil {
			return err
		}
		var tree audit.Tree
		for at := uint64(1); at <= size; at++ {
			h, err := leaf(at)
			if err != nil {
				return err
			}
			tree.Add(h)
		}
		raw := bytes.Clone(b.Get(be64(seq)))
		p = Proof{
			Seq: seq, Record: base64.StdEncoding.EncodeToString(raw), LeafHash: audit.Sum(raw), Path: path, Size: size, Root: tree.Root(),
		}
		key := l.signing // the writer's, which runs this
		p.PublicKey = key.Public()
		p.Checkpoint, err = key.Sign(audit.Checkpoint{Origin: key.Origin(), Size: size, Root: p.Root, Head: head, Time: t.now})
		return err
	})
	return p, err
}
