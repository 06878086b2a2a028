//go:build soak

package main_test

import "testing"

// TestPendingApprovalsInFull makes 1,000 calls a round, in turn without and with 200 that wait.
func TestPendingApprovalsInFull(t *testing.T) {
	without, with := pendingApprovals(t, pendingRounds{rounds: 5, calls: 1000, waiting: 200})
	if a, b := percentiles(without)[1], percentiles(with)[1]; float64(b) > 1.3*float64(a) {
		t.Errorf("p99 is %v, and %v without calls that wait: more than 1.3 times as much", b, a)
	}
}
