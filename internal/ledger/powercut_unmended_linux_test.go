//go:build soak && unmended

package ledger_test

import "testing"

// This shows a mistake that is known and not mended yet, so it fails. Once it
// passes it moves to the other power cuts.

// A line of the log of checkpoints that lies in two sectors may lose the first
// of them. Then it ends with a line break, and counts as damage for ever.
func TestAPowerCutMayTearTheLogOfCheckpoints(t *testing.T) { cutPower(t, cutting{log: true}) }
