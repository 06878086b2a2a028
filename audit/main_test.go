package audit_test

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/audit"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

func TestMain(m *testing.M) {
	_ = flag.Set("rapid.nofailfile", "true") // the seed that it prints is enough
	goleak.VerifyTestMain(m)
}

// hashes draws a hash; the zero hash, which stands for "none", is as likely as
// any other.
func hashes() *rapid.Generator[audit.Hash] {
	return rapid.Custom(func(t *rapid.T) (h audit.Hash) {
		if rapid.Bool().Draw(t, "some") {
			copy(h[:], rapid.SliceOfN(rapid.Byte(), len(h), len(h)).Draw(t, "hash"))
		}
		return h
	})
}

// texts draws what a field may hold: any bytes at all, since tool names and
// reasons are somebody else's, in lengths on both sides of where the length
// prefix grows by a byte.
func texts() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.Just(""), rapid.String(), rapid.StringN(1, 20, -1),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 120, 135), func(b []byte) string { return string(b) }),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 300), func(b []byte) string { return string(b) }),
	)
}

func byteses() *rapid.Generator[[]byte] {
	return rapid.Map(texts(), func(s string) []byte {
		if s == "" {
			return nil // Decode returns nil for an empty field
		}
		return []byte(s)
	})
}

// numbers draws with a liking for the places where an encoding grows.
func numbers() *rapid.Generator[uint64] {
	return rapid.OneOf(rapid.Just(uint64(0)), rapid.Uint64(), rapid.Uint64Range(0, 300), rapid.SampledFrom([]uint64{
		127, 128, 255, 256, 1<<16 - 1, 1 << 16, 1<<56 - 1, 1 << 56, 1<<63 - 1, 1 << 63, 1<<64 - 1,
	}))
}

// records draws any record that the ledger could write, and many it would not.
func records() *rapid.Generator[audit.Record] {
	return rapid.Custom(func(t *rapid.T) audit.Record {
		text := func(field string) string { return texts().Draw(t, field) }
		return audit.Record{
			Seq: numbers().Draw(t, "seq"), Prev: hashes().Draw(t, "prev"),
			Time: time.Unix(0, rapid.Int64Min(0).Draw(t, "time")).UTC(),
			Kind: audit.Kind(rapid.Byte().Draw(t, "kind")), Status: audit.Status(text("status")), Ref: numbers().Draw(t, "ref"),
			CallID: text("call"), Session: text("session"), Agent: text("agent"), Client: text("client"),
			Upstream: text("upstream"), Tool: text("tool"), Flagged: rapid.Bool().Draw(t, "flagged"),
			FlagReason: text("flag reason"), Policy: text("policy"), Rule: text("rule"), Also: byteses().Draw(t, "also"),
			Cost: rapid.Int64Min(0).Draw(t, "cost"), DurationMS: numbers().Draw(t, "duration"), Arguments: byteses().Draw(t, "arguments"),
			ArgumentsSHA256: hashes().Draw(t, "arguments hash"), ArgumentsSize: numbers().Draw(t, "size"),
			ResultSHA256: hashes().Draw(t, "result hash"), Approval: text("approval"), ConfigSHA256: hashes().Draw(t, "config"),
			Threads: audit.Threads{
				Session: numbers().Draw(t, "t1"), Agent: numbers().Draw(t, "t2"), Upstream: numbers().Draw(t, "t3"),
				Tool: numbers().Draw(t, "t4"), Status: numbers().Draw(t, "t5"), Flagged: numbers().Draw(t, "t6"),
			},
		}
	})
}

// began is when the chains of these tests begin.
var began = time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)

// chain makes n linked records as the ledger would write them.
func chain(n int) [][]byte {
	var prev audit.Hash
	out := make([][]byte, 0, n)
	for i := range n {
		r := audit.Record{
			Seq: uint64(i) + 1, Prev: prev, Time: began.Add(time.Duration(i) * 37 * time.Second), Kind: audit.KindAttempt,
			Status: audit.StatusRunning, CallID: fmt.Sprintf("proc-%06d", i), Session: "ses_a", Agent: "bot", Client: "test 1.0",
			Upstream: "files", Tool: []string{"read", "write", "delete_all"}[i%3], Arguments: fmt.Appendf(nil, `{"path":"/tmp/%d"}`, i),
			Cost: int64(i%5) * 1000, ArgumentsSize: 17, ArgumentsSHA256: audit.Sum(fmt.Append(nil, i)), ConfigSHA256: audit.Sum([]byte("config")),
			Threads: audit.Threads{Session: uint64(i), Agent: uint64(i)},
		}
		switch i % 4 {
		case 1:
			r.Kind, r.Status, r.Ref, r.DurationMS = audit.KindOutcome, audit.StatusAllowed, uint64(i), 12
		case 3:
			r.Status, r.Flagged, r.FlagReason, r.Policy, r.Rule = audit.StatusDenied, true, "Tool 'x' is on the deny list", "deny", "deny-1"
		}
		raw := r.Encode()
		out = append(out, raw)
		prev = audit.Sum(raw)
	}
	return out
}
