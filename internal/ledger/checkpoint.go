package ledger

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	// Logged is how many bytes of the checkpoint log were on disk when this was
	// written: a shorter log was cut.
	Logged int64 `json:"logged"`
	// Was is how many there were before it was thinned out, which may not have come to pass.
	Was int64 `json:"was,omitempty"`
	// Key is the public form of the key that signed, "" if none did.
	Key string `json:"key,omitempty"`
}

// agrees checks that the key and the log are those that the database knows of:
// what somebody removed must stay missing, and not be made anew.
func (c checkpointed) agrees(logged int64, public string) error {
	var detail string
	switch {
	case logged < c.Logged:
		detail = fmt.Sprintf("the checkpoint log has whole lines of %d bytes; it had %d", logged, c.Logged)
	case public == "" && max(logged, c.Logged) > 0:
		detail = "the key that signed the checkpoint log is gone"
	case public != "" && c.Key != "" && public != c.Key:
		detail = "the key is not the one that signed the checkpoint log"
	default:
		return nil
	}
	return &audit.Damage{Kind: audit.DamageCheckpoint, Detail: detail}
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

// longestLine is how many bytes a line of the log has at most.
const longestLine = 4096

// ends returns where the last checkpoint ends in the log that the database knows of, and where
// the last whole line does. A line that a crash cut short, or a power cut tore, does not count;
// it can only be the last one, and one that the database does not know of yet.
func (c checkpointed) ends(dir string, key *audit.Key) (known, logged int64, err error) {
	if err := noFile(logPath(dir)); err != nil {
		return 0, 0, err
	}
	f, err := os.Open(logPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return c.Logged, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = f.Close() }() // it was only read
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, err
	}
	if known, err = c.known(f, size); err != nil {
		return 0, 0, err
	}
	from := max(0, min(known-1, size)) // with the line break before
	tail := make([]byte, size-from)
	if _, err := f.ReadAt(tail, from); err != nil {
		return 0, 0, err
	}
	end := bytes.LastIndexByte(tail, '\n') + 1
	if end > 0 && from+int64(end) > known && key != nil {
		last := bytes.LastIndexByte(tail[:end-1], '\n') + 1
		if _, err := audit.ReadLog(tail[last:end], key.Public()); err != nil {
			end = last
		}
	}
	return known, from + int64(end), nil
}

// known returns where the last checkpoint ends that the database knows of. A log that has
// another one there was put in its place; one that is too short [checkpointed.agrees] tells of.
func (c checkpointed) known(f *os.File, size int64) (int64, error) {
	if size < c.Logged || c.Key == "" {
		return c.Logged, nil
	}
	for _, end := range []int64{c.Logged, c.Was} {
		line := make([]byte, min(end, longestLine))
		if end == 0 || end > size {
			continue
		}
		if _, err := f.ReadAt(line, end-int64(len(line))); err != nil {
			return 0, err
		}
		line = line[bytes.LastIndexByte(line[:len(line)-1], '\n')+1:]
		list, err := audit.ReadLog(line, c.Key)
		if err == nil && len(list) == 1 && list[0].Size == c.Tree.Size && list[0].Root == c.Tree.Root() {
			return end, nil
		}
	}
	return 0, &audit.Damage{Kind: audit.DamageCheckpoint, Detail: fmt.Sprintf(
		"the checkpoint log does not have the checkpoint over %d records where it was written: it was changed, or an older one was put back", c.Tree.Size)}
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
	return number(v[:8]), moment(v[8:])
}

// news reports whether there is anything to sign.
func (t *tx) news() bool {
	size, _ := t.signed()
	seq, _ := t.head()
	return seq > size
}

// checkpointStep is how many records a checkpoint takes in at most, since others
// wait meanwhile; the next is due at once.
const checkpointStep = 50_000

// checkpoint signs the chain and appends that to the log. It runs in the writer,
// with the database open, after the operations that made it due have been
// answered. The log comes first: what it says is on disk already, and so the
// database can tell how long it was.
func (l *Ledger) checkpoint() (c audit.Checkpoint, signed string, err error) {
	key, err := readKey(l.o.Dir)
	if err != nil {
		return c, "", err
	}
	var state checkpointed
	var logged int64
	err = l.commit([]*op{{run: func(t *tx) error {
		if state, err = t.checkpointed(); err != nil {
			return err
		}
		if _, logged, err = state.ends(l.o.Dir, key); err != nil {
			return err
		}
		if key == nil { // its first use
			if err := state.agrees(logged, ""); err != nil {
				return err
			}
			if key, err = newKey(l.o.Dir, string(t.space(spaceMeta).get(keyID))); err != nil {
				return err
			}
		}
		if err := state.agrees(logged, key.Public()); err != nil {
			return err
		}
		head, _ := t.head()
		end := min(head, state.Tree.Size+checkpointStep)
		b := t.Bucket(bucketAudit)
		// The last record that was signed may be gone, but is asked for only if there is none after it.
		for at := max(min(state.Tree.Size+1, end), 1); at <= end; at++ {
			raw := b.Get(be64(at))
			if raw == nil {
				return fmt.Errorf("%w: audit record %d is missing", ErrDamaged, at)
			}
			if c.Head = audit.Sum(raw); at > state.Tree.Size {
				state.Tree.Add(c.Head)
			}
		}
		c.Origin, c.Size, c.Root, c.Time = key.Origin(), end, state.Tree.Root(), t.now
		return nil
	}}})
	if err != nil {
		return c, "", fmt.Errorf("make a checkpoint: %w", err)
	}
	if signed, err = key.Sign(c); err != nil {
		return c, "", fmt.Errorf("sign a checkpoint: %w", err)
	}
	line, err := audit.LogLine(signed)
	if err != nil {
		return c, "", err
	}
	state.At, state.Key, state.Was = c.Time, key.Public(), 0
	if state.Logged, err = appendLine(logPath(l.o.Dir), line, logged); err != nil {
		return c, "", err
	}
	err = l.commit([]*op{{write: true, run: func(t *tx) error {
		meta := t.space(spaceMeta)
		if err := meta.put(keySigned, append(be64(c.Size), stamp(c.Time)...)); err != nil {
			return err
		}
		return meta.putJSON(keyTree, state)
	}}})
	return c, signed, err
}

// noFile is an error if there is something else than a file where the checkpoint log should be.
func noFile(path string) error {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return &audit.Damage{Kind: audit.DamageCheckpoint, Detail: path + " is no file"}
	}
	return nil
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

// appendLine writes a line where the last whole one of a file ends, syncs it and
// returns where it ends itself.
func appendLine(path string, line []byte, at int64) (end int64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, err
	}
	end = at + int64(len(line))
	if _, err = f.WriteAt(line, at); err == nil {
		err = f.Truncate(end)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil && at == 0 {
		err = syncDir(filepath.Dir(path)) // the database will know of it
	}
	return end, err
}

// ErrKey says that the key that signs checkpoints is none any more. Calls pass without, but no
// checkpoint is signed, and none can be verified.
var ErrKey = errors.New("the key that signs checkpoints is damaged")

// readKey returns the key that signs checkpoints, nil if there is none.
func readKey(dir string) (*audit.Key, error) {
	if info, err := os.Stat(keyPath(dir)); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is no file", ErrKey, keyPath(dir))
	}
	text, err := os.ReadFile(keyPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // documented
	}
	if err != nil { // what cannot be read now is not damaged
		return nil, fmt.Errorf("read the checkpoint key: %w", err)
	}
	key, err := audit.ParseKey(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", keyPath(dir), ErrKey, err)
	}
	return key, nil
}

func newKey(dir, id string) (*audit.Key, error) {
	key, err := audit.NewKey("haldir/" + id)
	if err != nil {
		return nil, err
	}
	if err := writeFile(keyPath(dir), []byte(key.Encode())); err != nil {
		return nil, fmt.Errorf("keep the checkpoint key: %w", err)
	}
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
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(filepath.Dir(path))
}

// Checkpoints returns the checkpoints of the log, verified with the ledger's own
// key, and that key's public form.
func (l *Ledger) Checkpoints(ctx context.Context) (list []audit.Checkpoint, public string, err error) {
	data, public, err := l.checkpointLog(ctx)
	if err != nil {
		return nil, public, err
	}
	list, err = audit.ReadLog(data, public)
	return list, public, err
}

// checkpointLog returns the log, which need not be what was signed.
func (l *Ledger) checkpointLog(ctx context.Context) (data []byte, public string, err error) {
	var log checkpointLog
	defer func() { log.close() }()
	if err := l.do(ctx, false, func(t *tx) error { return log.open(t, l.o.Dir) }); err != nil {
		return nil, "", err
	}
	data, err = log.read()
	return data, log.public, err
}

// checkpointLog is the log as it is in a transaction, when no other process is writing to it:
// it can be read later.
type checkpointLog struct {
	state         checkpointed
	public        string // of the key; "" if there is none
	known, logged int64  // see checkpointed.ends
	f             *os.File
}

func (c *checkpointLog) open(t *tx, dir string) (err error) {
	c.close()
	if c.state, err = t.checkpointed(); err != nil {
		return err
	}
	key, err := readKey(dir)
	if err != nil {
		return err
	}
	if key != nil {
		c.public = key.Public()
	}
	if c.known, c.logged, err = c.state.ends(dir, key); err != nil || c.logged == 0 {
		return err
	}
	c.f, err = os.Open(logPath(dir))
	return err
}

// read returns whole lines.
func (c *checkpointLog) read() ([]byte, error) {
	if err := c.state.agrees(c.logged, c.public); err != nil || c.logged == 0 {
		return nil, err
	}
	data := make([]byte, c.logged)
	_, err := io.ReadFull(c.f, data)
	return data, err
}

func (c *checkpointLog) close() {
	if c.f != nil {
		_ = c.f.Close() // it was only read
	}
	*c = checkpointLog{}
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

// Prove makes a checkpoint and proves that the record seq is among those that it
// was signed over. A record that was pruned cannot be proven any more.
func (l *Ledger) Prove(ctx context.Context, seq uint64) (Proof, error) {
	var c audit.Checkpoint
	var note string
	for first := true; first || c.Size < seq; first = false {
		before := c.Size
		then := func() (err error) { c, note, err = l.checkpoint(); return err }
		if err := l.wait(ctx, &op{run: func(*tx) error { return nil }, then: then, done: make(chan error, 1)}); err != nil {
			return Proof{}, err
		}
		if c.Size == before {
			break
		}
	}
	return l.ProveIn(ctx, seq, c, note)
}

// ProveIn proves that the record seq is among those that a checkpoint was signed over,
// whose note it is: one that was made before records were pruned is as good as any.
func (l *Ledger) ProveIn(ctx context.Context, seq uint64, c audit.Checkpoint, note string) (Proof, error) {
	p := Proof{Checkpoint: note}
	gone, err := l.Pruned(ctx)
	if err != nil {
		return p, err
	}
	prover, err := audit.NewProver(gone, seq, c.Size)
	if err != nil {
		return p, err
	}
	key, err := readKey(l.o.Dir)
	if err != nil || key == nil {
		return p, errors.Join(err, errors.New("the key is gone"))
	}
	done := errors.New("done")
	_, _, err = l.walk(ctx, gone.Size+1, func(at uint64, raw []byte) error {
		if at > c.Size {
			return done
		}
		leaf := audit.Sum(raw)
		if prover.Add(leaf); at == seq {
			p.Record, p.LeafHash = base64.StdEncoding.EncodeToString(raw), leaf
		}
		return nil
	})
	if err != nil && !errors.Is(err, done) {
		return p, err
	}
	p.Seq, p.Size, p.PublicKey = seq, c.Size, key.Public()
	if p.Path, p.Root = prover.Path(); p.Root != c.Root {
		return p, &audit.Damage{Kind: audit.DamageFork, Seq: 1, Detail: "the records are not those that checkpoints were signed over: haldir audit verify"}
	}
	return p, nil
}
