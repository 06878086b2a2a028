package wire

import "slices"

// The protocol revisions of the handshake era, oldest first.
const (
	Version20241105 = "2024-11-05"
	Version20250326 = "2025-03-26"
	Version20250618 = "2025-06-18"
	Version20251125 = "2025-11-25"
)

var legacyVersions = []string{Version20241105, Version20250326, Version20250618, Version20251125}

// LatestLegacy is the newest revision that is agreed on by initialize.
const LatestLegacy = Version20251125

// KnownLegacy reports whether v is a revision of the handshake era that haldir
// speaks.
func KnownLegacy(v string) bool { return slices.Contains(legacyVersions, v) }

// Negotiate returns the revision to answer initialize with (lifecycle, version
// negotiation): the one asked for, if known, else the newest.
func Negotiate(asked string) string {
	if KnownLegacy(asked) {
		return asked
	}
	return LatestLegacy
}

// Batches reports whether revision v has JSON-RPC batches; only one ever had.
func Batches(v string) bool { return v == Version20250326 }
