package audit

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Checkpoint says what the chain was at one moment: its size, the root of the
// [Tree] over it and the hash of its last record. Signed and kept outside the
// database, it shows that the database was cut short, replaced or rewritten.
type Checkpoint struct {
	Origin string // "haldir/" and the id of the ledger
	Size   uint64
	Root   Hash
	Head   Hash
	Time   time.Time
}

// text is the body that is signed: a checkpoint of the C2SP tlog-checkpoint
// format with two extension lines.
func (c Checkpoint) text() string {
	return fmt.Sprintf("%s\n%d\n%s\nhead %s\ntime %s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]), c.Head,
		c.Time.UTC().Format(time.RFC3339Nano))
}

// Key signs checkpoints with Ed25519. It has a secret and a public form.
type Key struct {
	signer   note.Signer
	verifier note.Verifier
	secret   string
	public   string
}

// NewKey makes a key for the checkpoints of origin.
func NewKey(origin string) (*Key, error) {
	secret, public, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return nil, err
	}
	return ParseKey(secret + "\n" + public + "\n")
}

// ParseKey reads what Encode wrote.
func ParseKey(text string) (*Key, error) {
	secret, rest, _ := strings.Cut(text, "\n")
	public := strings.TrimSuffix(rest, "\n")
	signer, err := note.NewSigner(secret)
	if err != nil {
		return nil, errors.New("not a checkpoint key")
	}
	verifier, err := note.NewVerifier(public)
	if err != nil || verifier.Name() != signer.Name() || verifier.KeyHash() != signer.KeyHash() {
		return nil, errors.New("not a checkpoint key: its halves do not belong together")
	}
	return &Key{signer, verifier, secret, public}, nil
}

// Encode returns the secret form.
func (k *Key) Encode() string { return k.secret + "\n" + k.public + "\n" }

// Public returns the form that verifies, as package note writes it.
func (k *Key) Public() string { return k.public }

// Origin returns what the key signs for.
func (k *Key) Origin() string { return k.signer.Name() }

// Sign returns c as a signed note.
func (k *Key) Sign(c Checkpoint) (string, error) {
	b, err := note.Sign(&note.Note{Text: c.text()}, k.signer)
	return string(b), err
}

// OpenCheckpoint verifies a signed note with the public form of a key.
func OpenCheckpoint(signed, public string) (Checkpoint, error) {
	verifier, err := note.NewVerifier(public)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("not a public key: %w", err)
	}
	n, err := note.Open([]byte(signed), note.VerifierList(verifier))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("the signature of the checkpoint is not that of this ledger: %w", err)
	}
	bad := errors.New("not a checkpoint of haldir")
	for _, sig := range n.Sigs { // as it was written, to the last bit
		if _, err := base64.StdEncoding.Strict().DecodeString(sig.Base64); err != nil || len(n.UnverifiedSigs) > 0 {
			return Checkpoint{}, bad
		}
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 6 || lines[5] != "" || !strings.HasPrefix(lines[3], "head ") || !strings.HasPrefix(lines[4], "time ") {
		return Checkpoint{}, bad
	}
	c := Checkpoint{Origin: lines[0]}
	root, err1 := base64.StdEncoding.DecodeString(lines[2])
	size, err2 := strconv.ParseUint(lines[1], 10, 63)
	at, err3 := time.Parse(time.RFC3339Nano, lines[4][5:])
	err4 := c.Head.UnmarshalText([]byte(lines[3][5:]))
	if err := errors.Join(err1, err2, err3, err4); err != nil || len(root) != len(c.Root) {
		return Checkpoint{}, bad
	}
	c.Size, c.Time = size, at
	copy(c.Root[:], root)
	if c.text() != n.Text || c.Origin != verifier.Name() {
		return Checkpoint{}, bad
	}
	return c, nil
}

// logLine is one line of a checkpoint log.
type logLine struct {
	Note string `json:"note"`
}

// LogLine returns a signed checkpoint as a line of a checkpoint log.
func LogLine(signed string) ([]byte, error) {
	b, err := json.Marshal(logLine{signed})
	return append(b, '\n'), err
}

// ReadLog verifies every checkpoint of a log, which must grow. A last line
// without its line break is one that a crash cut short; it is left out.
func ReadLog(data []byte, public string) ([]Checkpoint, error) {
	var list []Checkpoint
	for i := 1; len(data) > 0; i++ {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		if !whole {
			break
		}
		data = rest
		var l logLine
		err := json.Unmarshal(line, &l)
		if again, err2 := LogLine(l.Note); err != nil || err2 != nil || !bytes.Equal(again, append(bytes.Clone(line), '\n')) {
			return list, &Damage{Kind: DamageCheckpoint, Detail: fmt.Sprintf("line %d of the checkpoint log cannot be read", i)}
		}
		c, err := OpenCheckpoint(l.Note, public)
		if err != nil {
			return list, &Damage{Kind: DamageCheckpoint, Detail: fmt.Sprintf("line %d of the checkpoint log: %v", i, err)}
		}
		if n := len(list); n > 0 && c.Size < list[n-1].Size {
			return list, &Damage{Kind: DamageCheckpoint, Detail: fmt.Sprintf("line %d of the checkpoint log is older than the line before", i)}
		}
		list = append(list, c)
	}
	return list, nil
}

// NoteOf returns the signed note in a line of a checkpoint log.
func NoteOf(line []byte) (string, error) {
	var l logLine
	err := json.Unmarshal(line, &l)
	return l.Note, err
}
