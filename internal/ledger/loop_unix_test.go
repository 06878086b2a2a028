//go:build unix

package ledger_test

import "testing"

// Two processes share what they know of a loop.
func TestTwoProcessesSeeOneLoop(t *testing.T) {
	got := race(t, 2, attemptsConfig{Dir: stateDir(t), Rules: "loops", Tool: "look", Arguments: `{"a":1}`, Attempts: 40, AtATime: 4})
	if len(got) != 2 || got["allow"] != 7 || got["deny"] != 73 {
		t.Errorf("80 times the same call where 7 are let through: %v", got)
	}
}
