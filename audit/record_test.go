package audit_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/audit"
)

func TestARecordDecodesToWhatWasEncoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := records().Draw(t, "record")
		raw := want.Encode()
		got, err := audit.Decode(raw)
		if err != nil {
			t.Fatalf("Decode: %v", err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("not the same record (-want +got):\n%s", d)
		}
		if !bytes.Equal(got.Encode(), raw) {
			t.Fatal("not the same bytes")
		}
	})
}

// Two different records with the same bytes would let one be passed off as the
// other. A field that Encode forgot would show here.
func TestEveryFieldIsInTheBytes(t *testing.T) {
	base := golden()[0].record
	raw := base.Encode()
	var visit func(v reflect.Value, name string)
	visit = func(v reflect.Value, name string) {
		old := reflect.New(v.Type()).Elem()
		old.Set(v)
		switch x := v.Addr().Interface().(type) {
		case *time.Time:
			*x = x.Add(time.Nanosecond)
		case *audit.Hash:
			x[31] ^= 1
		case *[]byte:
			*x = append(bytes.Clone(*x), 'x')
		case *audit.Threads:
			for i := range v.NumField() {
				visit(v.Field(i), name+"."+v.Type().Field(i).Name)
			}
			return
		default:
			switch v.Kind() {
			case reflect.String:
				v.SetString(v.String() + "x")
			case reflect.Bool:
				v.SetBool(!v.Bool())
			case reflect.Uint8, reflect.Uint64:
				v.SetUint(v.Uint() + 1)
			case reflect.Int64:
				v.SetInt(v.Int() + 1)
			default:
				t.Fatalf("%s has a kind this test does not know: %v", name, v.Kind())
			}
		}
		if bytes.Equal(base.Encode(), raw) {
			t.Errorf("changing %s does not change the bytes", name)
		}
		v.Set(old)
	}
	v := reflect.ValueOf(&base).Elem()
	for i := range v.NumField() {
		visit(v.Field(i), v.Type().Field(i).Name)
	}
	if !bytes.Equal(base.Encode(), raw) {
		t.Fatal("the test did not restore the record")
	}
}

// The order of neighbouring texts must not be exchangeable: length prefixes see
// to it that "ab","c" is not "a","bc".
func TestMovingALetterBetweenFieldsChangesTheBytes(t *testing.T) {
	a := audit.Record{Seq: 1, Time: began, Kind: audit.KindAttempt, Session: "ses_ab", Agent: "c"}
	b := audit.Record{Seq: 1, Time: began, Kind: audit.KindAttempt, Session: "ses_a", Agent: "bc"}
	if bytes.Equal(a.Encode(), b.Encode()) {
		t.Error("two records have the same bytes")
	}
}

func TestDecodeRefusesWhatIsNotCanonical(t *testing.T) {
	r := golden()[0].record
	good := r.Encode()
	at := func(i int, b ...byte) []byte { return append(append(bytes.Clone(good[:i]), b...), good[i:]...) }
	for name, raw := range map[string][]byte{
		"nothing":               {},
		"another format":        append([]byte{2}, good[1:]...),
		"format 0":              append([]byte{0}, good[1:]...),
		"only the format":       {1},
		"bytes after the end":   append(bytes.Clone(good), 0),
		"a record after it":     append(bytes.Clone(good), good...),
		"the last byte missing": good[:len(good)-1],
		// The first field is the sequence: length 1, value 7.
		"a length of two bytes that fits in one": append([]byte{1, 0x81, 0x00}, good[2:]...),
		"a number with a leading zero":           append([]byte{1, 2, 0, good[2]}, good[3:]...),
		"a number of nine bytes":                 append([]byte{1, 9, 1, 1, 1, 1, 1, 1, 1, 1, 1}, good[3:]...),
		"a length beyond all bounds":             append([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, good[1:]...),
		"a length of eleven bytes":               append([]byte{1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01}, good[1:]...),
		"a field too many":                       at(1, 1, 7),
	} {
		if _, err := audit.Decode(raw); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for n := range good {
		if _, err := audit.Decode(good[:n]); err == nil {
			t.Errorf("the first %d of %d bytes: accepted", n, len(good))
		}
	}
}

// A negative cost or a time before 1970 has no encoding. Whoever makes such a
// record must not find out when the chain is read: see TestSettle… in ledger.
func TestDecodeRefusesNegativeCostsAndTimes(t *testing.T) {
	r := audit.Record{Seq: 1, Time: began, Cost: -1}
	if _, err := audit.Decode(r.Encode()); err == nil {
		t.Error("a negative cost: accepted")
	}
	r = audit.Record{Seq: 1, Time: time.Unix(-1, 0)}
	if _, err := audit.Decode(r.Encode()); err == nil {
		t.Error("a time before 1970: accepted")
	}
}

func FuzzDecode(f *testing.F) {
	for _, g := range golden() {
		f.Add(g.record.Encode())
	}
	f.Add([]byte{})
	f.Add([]byte{1})
	f.Add(bytes.Repeat([]byte{1}, 64))
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := bytes.Clone(raw)
		r, err := audit.Decode(raw)
		if !bytes.Equal(raw, before) {
			t.Fatal("Decode changed its input")
		}
		if err != nil {
			return
		}
		if again := r.Encode(); !bytes.Equal(again, raw) {
			t.Fatalf("accepted %x, but it encodes as %x", raw, again)
		}
		// The record must not share memory with bytes that belong to the database.
		for i := range raw {
			raw[i] ^= 0xff
		}
		if again := r.Encode(); !bytes.Equal(again, before) {
			t.Fatal("the record changed with the bytes it was read from")
		}
	})
}

type goldenRecord struct {
	name   string
	record audit.Record
}

// golden has a record of each kind with every field that the kind uses.
func golden() []goldenRecord {
	h := func(s string) audit.Hash { return audit.Sum([]byte(s)) }
	return []goldenRecord{
		{"attempt", audit.Record{
			Seq: 7, Prev: h("prev"), Time: time.Date(2026, 11, 24, 9, 30, 1, 123456789, time.UTC), Kind: audit.KindAttempt,
			Status: audit.StatusRunning, CallID: "aaaabbbbccccdddd-eeeeffffgggghhhh", Session: "ses_1", Agent: "research-bot",
			Client: "claude-code 2.0.1", Upstream: "payments", Tool: "charge", Also: []byte(`[{"policy":"deny","rule":"no-etc","reason":"r","shadow":true}]`),
			Cost: 12_500_000, Arguments: []byte(`{"amount":12.50,"to":"Café ☕"}`), ArgumentsSHA256: h("arguments"), ArgumentsSize: 32,
			Approval: "apr_1", ConfigSHA256: h("config"), Threads: audit.Threads{Session: 6, Agent: 5, Upstream: 4, Tool: 3},
		}},
		{"denied attempt", audit.Record{
			Seq: 300, Prev: h("prev"), Time: time.Date(2026, 11, 24, 9, 30, 2, 0, time.UTC), Kind: audit.KindAttempt,
			Status: audit.StatusDenied, CallID: "aaaabbbbccccdddd-eeeeffffgggghhhi", Session: "ses_1", Agent: "research-bot",
			Upstream: "files", Tool: "delete_all", Flagged: true, FlagReason: "Tool 'delete_all' is on the deny list", Policy: "deny",
			Rule: "deny-1", ArgumentsSHA256: h(""), Threads: audit.Threads{Session: 299, Agent: 299, Upstream: 1, Tool: 0, Status: 200, Flagged: 256},
		}},
		{"outcome", audit.Record{
			Seq: 8, Prev: h("prev"), Time: time.Date(2026, 11, 24, 9, 30, 3, 0, time.UTC), Kind: audit.KindOutcome,
			Status: audit.StatusError, Ref: 7, CallID: "aaaabbbbccccdddd-eeeeffffgggghhhh", Flagged: true,
			FlagReason: "overrun: $12.50 reserved, $13.00 actual", Cost: 13_000_000, DurationMS: 1877, ResultSHA256: h("result"),
			Threads: audit.Threads{Status: 2, Flagged: 1},
		}},
		{"governance", audit.Record{
			Seq: 9, Prev: h("prev"), Time: time.Date(2026, 11, 24, 9, 30, 4, 0, time.UTC), Kind: audit.KindGovernance,
			Status: audit.StatusGovernance, Session: "ses_1", Agent: "research-bot", Client: "claude-code 2.0.1", Upstream: "haldir",
			Tool: "haldir_get_spend", Arguments: []byte(`{}`), ArgumentsSHA256: h("{}"), ArgumentsSize: 2, ConfigSHA256: h("config"),
		}},
		{"session", audit.Record{
			Seq: 1, Time: time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC), Kind: audit.KindSession, Status: audit.StatusCreated,
			Session: "ses_1", Agent: "research-bot",
		}},
		{"config", audit.Record{
			Seq: 2, Prev: h("prev"), Time: time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC), Kind: audit.KindConfig, Status: "used",
			ConfigSHA256: h("config"),
		}},
	}
}

// What is on disk is a published format: a change of these bytes breaks every
// chain that exists. -update is for new kinds, not for changed ones.
func TestTheBytesOnDiskStayAsTheyWerePublished(t *testing.T) {
	path := filepath.Join("testdata", "records.golden")
	var b strings.Builder
	for _, g := range golden() {
		raw := g.record.Encode()
		fmt.Fprintf(&b, "%s\n%s\n%s\n\n", g.name, hex.EncodeToString(raw), audit.Sum(raw))
	}
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("the format has changed (-published +now):\n%s", d)
	}
	// And the published bytes still read.
	for entry := range strings.SplitSeq(strings.TrimSpace(string(want)), "\n\n") {
		lines := strings.Split(entry, "\n")
		if len(lines) != 3 {
			t.Fatalf("not a name, the bytes and the hash: %q", entry)
		}
		raw, err := hex.DecodeString(lines[1])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := audit.Decode(raw); err != nil {
			t.Errorf("%s: %v", lines[0], err)
		}
		// RFC 6962's leaf hash, without the package's help.
		if sum := sha256.Sum256(append([]byte{0}, raw...)); hex.EncodeToString(sum[:]) != lines[2] {
			t.Errorf("%s: the hash is not SHA-256 of a zero byte and the bytes", lines[0])
		}
	}
}
