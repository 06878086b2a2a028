package audit_test

import (
	"bytes"
	"testing"

	"github.com/haldir-mcp/haldir/audit"
)

// No bit of a log can be flipped unseen, not even one that means the same in JSON
// or base64. The last line break alone makes the last line one that a crash cut
// short; the database knows how long the log was.
func TestNoBitOfACheckpointLogIsFree(t *testing.T) {
	key, err := audit.NewKey("haldir/test")
	if err != nil {
		t.Fatal(err)
	}
	var log []byte
	for size := range uint64(3) {
		signed, err := key.Sign(audit.Checkpoint{Origin: key.Origin(), Size: size, Head: audit.Sum(nil), Time: began})
		if err != nil {
			t.Fatal(err)
		}
		line, err := audit.LogLine(signed)
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, line...)
	}
	if list, err := audit.ReadLog(log, key.Public()); err != nil || len(list) != 3 {
		t.Fatalf("as it was written: %d, %v", len(list), err)
	}
	for bit := range 8 * (len(log) - 1) {
		changed := bytes.Clone(log)
		changed[bit/8] ^= 1 << (bit % 8)
		if list, err := audit.ReadLog(changed, key.Public()); err == nil && len(list) == 3 {
			t.Errorf("bit %d of byte %d, %q in %q", bit%8, bit/8, log[bit/8], log[max(0, bit/8-10):min(len(log), bit/8+10)])
		}
	}
}
