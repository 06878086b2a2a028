package ledger

import (
	"context"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/policy"
)

// Stopped says since when, and why, every call is refused.
type Stopped struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
}

// PolicyStopped is the policy that refuses while everything is stopped.
const PolicyStopped = "stopped"

// stopped returns since when every call is refused, nil if they are not. A stop that cannot
// be read is one.
func (t *tx) stopped() *Stopped {
	raw := t.space(spaceMeta).get(keyStopped)
	if raw == nil {
		return nil
	}
	var s Stopped
	if decode(raw, &s) != nil {
		s = Stopped{Reason: "the reason cannot be read"}
	}
	return &s
}

// Sentence says that all calls are refused.
func (s *Stopped) Sentence() string {
	text := "A person has stopped all calls at " + s.At.Format(time.RFC3339)
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	return text
}

func (s *Stopped) refusal() *policy.Finding {
	return &policy.Finding{Policy: PolicyStopped, Rule: PolicyStopped, Reason: s.Sentence()}
}

// Stop refuses every call of every process from its return on, until [Ledger.Resume].
// Calls that are under way go on. To stop twice changes the reason.
func (l *Ledger) Stop(ctx context.Context, reason string) (s Stopped, err error) {
	err = l.do(ctx, true, func(t *tx) error {
		s = Stopped{At: t.now, Reason: reason}
		if err := t.space(spaceMeta).putJSON(keyStopped, s); err != nil {
			return err
		}
		return t.append(&audit.Record{Kind: audit.KindLedger, Status: audit.StatusStopped, Flagged: true, FlagReason: reason})
	})
	return s, err
}

// Resume lets calls be judged again. It reports whether they were stopped.
func (l *Ledger) Resume(ctx context.Context) (was bool, err error) {
	err = l.do(ctx, true, func(t *tx) error {
		if was = t.stopped() != nil; !was {
			return nil
		}
		if err := t.space(spaceMeta).delete(keyStopped); err != nil {
			return err
		}
		return t.append(&audit.Record{Kind: audit.KindLedger, Status: audit.StatusResumed})
	})
	return was, err
}

// Stopped returns since when every call is refused, nil if they are not.
func (l *Ledger) Stopped(ctx context.Context) (s *Stopped, err error) {
	err = l.do(ctx, false, func(t *tx) error { s = t.stopped(); return nil })
	return s, err
}
