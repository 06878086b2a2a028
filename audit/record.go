package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// Hash is a SHA-256 hash.
type Hash [sha256.Size]byte

// String returns h in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports the hash that stands for "none".
func (h Hash) IsZero() bool { return h == Hash{} }

// Kind tells what a record is about.
type Kind uint8

// The kinds. Their numbers are part of the format.
const (
	KindAttempt    Kind = 1 // a call arrived and was judged
	KindOutcome    Kind = 2 // how an admitted call ended; Ref is its attempt
	KindGovernance Kind = 3 // a call of one of haldir's own tools
	KindSession    Kind = 4 // a session was created, renewed or revoked
	KindConfig     Kind = 5 // a configuration was used for the first time
	KindLedger     Kind = 6 // the ledger itself was looked after
	KindPins       Kind = 7 // what an upstream offers was pinned, has changed, or was accepted
	KindApproval   Kind = 8 // a person, or nobody in time, has decided about a pending call; Ref is its attempt
	KindKey        Kind = 9 // a key of the REST API was created or revoked
)

var kindNames = map[Kind]string{
	KindAttempt: "attempt", KindOutcome: "outcome", KindGovernance: "governance", KindSession: "session", KindConfig: "config",
	KindLedger: "ledger", KindPins: "pins", KindApproval: "approval", KindKey: "key",
}

// String returns the kind's name.
func (k Kind) String() string {
	if s, ok := kindNames[k]; ok {
		return s
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Status is how far a call got, or what happened to a session.
type Status string

// The statuses of a call.
const (
	StatusRunning    Status = "running"    // admitted, no outcome yet
	StatusAllowed    Status = "allowed"    // admitted and answered
	StatusError      Status = "error"      // admitted; the upstream answered with an error, or could not
	StatusDenied     Status = "denied"     // refused, never forwarded
	StatusCancelled  Status = "cancelled"  // admitted; the client cancelled it
	StatusAbandoned  Status = "abandoned"  // admitted; haldir died before it learnt the outcome
	StatusGovernance Status = "governance" // a call of one of haldir's own tools
	StatusPending    Status = "pending"    // a person is asked about it
	StatusApproved   Status = "approved"   // a person allowed it; what came of it is an entry of its own, with the same approval
)

// CallStatuses are those of calls of upstreams, which people ask for.
var CallStatuses = []Status{StatusRunning, StatusAllowed, StatusError, StatusDenied, StatusCancelled, StatusAbandoned, StatusPending, StatusApproved}

// The statuses of a session's or a key's record.
const (
	StatusCreated Status = "created"
	StatusRevoked Status = "revoked"
	StatusRenewed Status = "renewed"
)

// The statuses of a pins record. Tool names what it is about, FlagReason says more, and
// ResultSHA256 is that of the definition.
const (
	StatusPinned   Status = "pinned"
	StatusChanged  Status = "changed"
	StatusAccepted Status = "accepted"
	StatusFlagged  Status = "flagged" // a text in it should be looked at
)

// The statuses of a ledger record. FlagReason says more, to a person; Arguments
// do, to a program.
const (
	StatusRecovered  Status = "recovered"   // the first record of a ledger that follows a damaged one
	StatusClockReset Status = "clock_reset" // the time may be before that of the record before
	StatusTrusted    Status = "trusted"     // what could not be recovered counts as unused from here on
	StatusStopped    Status = "stopped"     // every call is refused from here on
	StatusResumed    Status = "resumed"     // calls are judged by the policies again
	StatusPruned     Status = "pruned"      // the beginning of the chain is not kept any more; see Pruning
)

// Record is one link of the chain. The zero value of a field means that it does
// not apply.
type Record struct {
	Seq        uint64
	Prev       Hash      // of the record before, zero for the first
	Time       time.Time // UTC; not before that of an earlier record, unless the clock was reset
	Kind       Kind
	Status     Status
	Ref        uint64 // outcome, approval: the seq of its attempt
	CallID     string
	Session    string
	Agent      string
	Client     string // what the client says it is; nothing rests on it
	Upstream   string
	Tool       string // as the upstream spells it
	Flagged    bool
	FlagReason string
	Policy     string // what decided: the type and id of the rule
	Rule       string
	Also       []byte // JSON: the other findings
	Cost       int64  // micro-USD: attempt: reserved, outcome: actual
	DurationMS uint64
	Arguments  []byte // as much of them as the config records
	// ArgumentsSHA256 is over the full arguments as they were sent.
	ArgumentsSHA256 Hash
	ArgumentsSize   uint64 // bytes
	ResultSHA256    Hash
	Approval        string
	ConfigSHA256    Hash

	// Threads linked to the previous record with the same session, agent,
	// upstream, tool, status or flag. The index has taken their place; records
	// that have them stay as they are.
	Threads Threads
}

// joins reports a record that says more of an attempt, and so has no entry of its own.
func (r *Record) joins() bool { return r.Kind == KindOutcome || r.Kind == KindApproval }

// Threads are the sequence numbers of the previous records of the same kind of
// interest, 0 for none.
type Threads struct{ Session, Agent, Upstream, Tool, Status, Flagged uint64 }

// formatVersion begins every record.
const formatVersion = 1

// Encode returns the canonical bytes of r: the version, then every field in the
// order of the struct, each as its length (unsigned LEB128) and its bytes.
// Numbers are big-endian without leading zero bytes, so that each has exactly
// one encoding.
func (r *Record) Encode() []byte {
	b := make([]byte, 0, 320+len(r.Arguments)+len(r.Also))
	b = append(b, formatVersion)
	b = appendUint(b, r.Seq)
	b = appendBytes(b, r.Prev[:])
	b = appendUint(b, uint64(r.Time.UnixNano()))
	b = appendUint(b, uint64(r.Kind))
	b = appendBytes(b, []byte(r.Status))
	b = appendUint(b, r.Ref)
	for _, s := range []string{r.CallID, r.Session, r.Agent, r.Client, r.Upstream, r.Tool} {
		b = appendBytes(b, []byte(s))
	}
	flagged := uint64(0)
	if r.Flagged {
		flagged = 1
	}
	b = appendUint(b, flagged)
	for _, s := range []string{r.FlagReason, r.Policy, r.Rule} {
		b = appendBytes(b, []byte(s))
	}
	b = appendBytes(b, r.Also)
	b = appendUint(b, uint64(r.Cost)) //nolint:gosec // money is never negative
	b = appendUint(b, r.DurationMS)
	b = appendBytes(b, r.Arguments)
	b = appendHash(b, r.ArgumentsSHA256)
	b = appendUint(b, r.ArgumentsSize)
	b = appendHash(b, r.ResultSHA256)
	b = appendBytes(b, []byte(r.Approval))
	b = appendHash(b, r.ConfigSHA256)
	for _, n := range []uint64{r.Threads.Session, r.Threads.Agent, r.Threads.Upstream, r.Threads.Tool, r.Threads.Status, r.Threads.Flagged} {
		b = appendUint(b, n)
	}
	return b
}

func appendBytes(b, field []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(field)))
	return append(b, field...)
}

func appendHash(b []byte, h Hash) []byte {
	if h.IsZero() {
		return append(b, 0)
	}
	return appendBytes(b, h[:])
}

func appendUint(b []byte, n uint64) []byte {
	var be [8]byte
	binary.BigEndian.PutUint64(be[:], n)
	i := 0
	for i < 8 && be[i] == 0 {
		i++
	}
	return appendBytes(b, be[i:])
}

// Sum returns the hash that the next record carries as Prev: SHA-256 of a zero
// byte and the canonical bytes. It is also the leaf hash of RFC 6962 section
// 2.1.
func Sum(encoded []byte) Hash {
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(encoded)
	return Hash(h.Sum(nil))
}

// Decode reads canonical bytes. Every byte string that it accepts is the
// encoding of the record it returns.
func Decode(b []byte) (Record, error) {
	d := decoder{b: b}
	if len(b) == 0 || b[0] != formatVersion {
		return Record{}, errors.New("not a record of format 1")
	}
	d.b = b[1:]
	var r Record
	r.Seq = d.uint()
	copy(r.Prev[:], d.exactly(sha256.Size))
	nanos := d.uint()
	r.Time = time.Unix(0, int64(nanos)).UTC() //nolint:gosec // checked below
	if int64(nanos) < 0 {                     //nolint:gosec // that is the check
		d.fail("a time out of range")
	}
	r.Kind = Kind(d.small(255)) //nolint:gosec // bounded by small
	r.Status = Status(d.bytes())
	r.Ref = d.uint()
	for _, s := range []*string{&r.CallID, &r.Session, &r.Agent, &r.Client, &r.Upstream, &r.Tool} {
		*s = string(d.bytes())
	}
	r.Flagged = d.small(1) == 1
	for _, s := range []*string{&r.FlagReason, &r.Policy, &r.Rule} {
		*s = string(d.bytes())
	}
	r.Also = d.bytes()
	cost := d.uint()
	if r.Cost = int64(cost); r.Cost < 0 { //nolint:gosec // that is the check
		d.fail("a negative cost")
	}
	r.DurationMS = d.uint()
	r.Arguments = d.bytes()
	r.ArgumentsSHA256 = d.hash()
	r.ArgumentsSize = d.uint()
	r.ResultSHA256 = d.hash()
	r.Approval = string(d.bytes())
	r.ConfigSHA256 = d.hash()
	for _, n := range []*uint64{&r.Threads.Session, &r.Threads.Agent, &r.Threads.Upstream, &r.Threads.Tool, &r.Threads.Status, &r.Threads.Flagged} {
		*n = d.uint()
	}
	if d.err == nil && len(d.b) > 0 {
		d.fail("bytes after the last field")
	}
	return r, d.err
}

type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = errors.New("malformed record: " + what)
	}
	d.b = nil
}

func (d *decoder) bytes() []byte {
	n, size := binary.Uvarint(d.b)
	if size <= 0 || n > uint64(len(d.b)-size) { //nolint:gosec // size <= len
		d.fail("a field runs over the end")
		return nil
	}
	if size > 1 && d.b[size-1] == 0 {
		d.fail("a length is not in its shortest form")
		return nil
	}
	field := d.b[size : size+int(n)] //nolint:gosec // n <= len
	d.b = d.b[size+int(n):]          //nolint:gosec // n <= len
	if n == 0 {
		return nil
	}
	return append([]byte(nil), field...)
}

func (d *decoder) exactly(n int) []byte {
	f := d.bytes()
	if d.err == nil && len(f) != n {
		d.fail(fmt.Sprintf("a field of %d bytes where %d are needed", len(f), n))
	}
	return f
}

func (d *decoder) hash() (h Hash) {
	f := d.bytes()
	switch {
	case len(f) == 0:
	case len(f) != len(h):
		d.fail("a hash of the wrong length")
	default:
		copy(h[:], f)
		if h.IsZero() {
			d.fail("a zero hash is written as an empty field")
		}
	}
	return h
}

func (d *decoder) uint() uint64 {
	f := d.bytes()
	if len(f) > 8 || len(f) > 0 && f[0] == 0 {
		d.fail("a number is not in its shortest form")
		return 0
	}
	var be [8]byte
	copy(be[8-len(f):], f)
	return binary.BigEndian.Uint64(be[:])
}

func (d *decoder) small(limit uint64) uint64 {
	n := d.uint()
	if n > limit {
		d.fail("a number out of range")
		return 0
	}
	return n
}
