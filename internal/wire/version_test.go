package wire_test

import (
	"testing"

	"github.com/haldir-mcp/haldir/internal/wire"
)

func TestNegotiateAnswersAKnownRevisionWithItselfAndAnyOtherWithTheNewest(t *testing.T) {
	for asked, want := range map[string]string{
		"2024-11-05": "2024-11-05", "2025-03-26": "2025-03-26", "2025-06-18": "2025-06-18", "2025-11-25": "2025-11-25",
		// 2026-07-28 has no initialize: who asks for it there gets the newest that has.
		"2026-07-28": "2025-11-25", "1999-01-01": "2025-11-25", "9999-99-99": "2025-11-25", "": "2025-11-25", " 2024-11-05": "2025-11-25",
	} {
		if got := wire.Negotiate(asked); got != want {
			t.Errorf("Negotiate(%q) = %q, want %q", asked, got, want)
		}
	}
}

func TestOnlyOneRevisionHasBatches(t *testing.T) {
	for v, want := range map[string]bool{"2024-11-05": false, "2025-03-26": true, "2025-06-18": false, "2025-11-25": false, "": false} {
		if got := wire.Batches(v); got != want {
			t.Errorf("Batches(%q) = %v, want %v", v, got, want)
		}
	}
}
