package audit

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Source gives the records of one moment. It is for one goroutine.
type Source interface {
	// Head returns the number of the newest record, 0 if there is none.
	Head() uint64
	// Record returns the canonical bytes of a record, nil if it is not there.
	Record(seq uint64) []byte
	// Outcome returns the number of the outcome of an attempt, 0 if none.
	Outcome(attempt uint64) uint64
	// Thread returns the newest record of a thread, 0 if there is none.
	Thread(name ThreadName, value string) uint64
}

// ThreadName is a kind of thread through the records.
type ThreadName byte

// The threads. Their values are part of the file format.
const (
	ThreadSession  ThreadName = 's'
	ThreadAgent    ThreadName = 'a'
	ThreadUpstream ThreadName = 'u'
	ThreadTool     ThreadName = 't' // the value is the canonical id
	ThreadStatus   ThreadName = 'v'
	ThreadFlagged  ThreadName = 'f' // the value is ""
)

// Filter selects entries; zero fields select all.
type Filter struct {
	Session, Agent, Upstream string
	Tool                     string // canonical id, or the tool's own name
	Status                   Status
	Flagged                  bool
	Since, Until             time.Time // Until is exclusive
	Governance               bool      // with calls of haldir's own tools
	Calls                    bool      // nothing but calls
	Before                   uint64    // only entries with a smaller number; 0 means from the newest
	Limit                    int       // at most so many; 0 means 50
}

// Entry is one call, or one event of a session or config, for people: the
// attempt joined with its outcome.
type Entry struct {
	Timestamp       time.Time       `json:"timestamp"`
	Seq             uint64          `json:"seq"`
	Kind            string          `json:"kind"`
	CallID          string          `json:"call_id,omitempty"`
	SessionID       string          `json:"session_id,omitempty"`
	AgentID         string          `json:"agent_id,omitempty"`
	Client          string          `json:"client,omitempty"`
	Upstream        string          `json:"upstream,omitempty"`
	Tool            string          `json:"tool,omitempty"`
	Status          Status          `json:"status"`
	OutcomeSeq      uint64          `json:"outcome_seq,omitempty"`
	Flagged         bool            `json:"flagged"`
	FlagReason      string          `json:"flag_reason,omitempty"`
	Policy          string          `json:"policy,omitempty"`
	Rule            string          `json:"rule,omitempty"`
	Also            json.RawMessage `json:"also,omitempty"`
	CostUSD         json.RawMessage `json:"cost_usd"`
	DurationMS      uint64          `json:"duration_ms,omitempty"`
	Arguments       json.RawMessage `json:"arguments,omitempty"`
	ArgumentsSHA256 string          `json:"arguments_sha256,omitempty"`
	ArgumentsSize   uint64          `json:"arguments_size,omitempty"`
	ResultSHA256    string          `json:"result_sha256,omitempty"`
	Approval        string          `json:"approval,omitempty"`
	ConfigSHA256    string          `json:"config_sha256,omitempty"`
	PrevHash        string          `json:"prev_hash"`
	Hash            string          `json:"hash"`
}

// usd formats micro-USD as a JSON number.
func usd(micros int64) json.RawMessage {
	s := fmt.Sprintf("%d.%06d", micros/1_000_000, micros%1_000_000)
	return json.RawMessage(strings.TrimSuffix(strings.TrimRight(s, "0"), "."))
}

func text(h Hash) string {
	if h.IsZero() {
		return ""
	}
	return h.String()
}

// Get returns the entry of an attempt or event; an outcome's number gives the
// entry of its attempt. ok is false when there is no such record.
func Get(s Source, seq uint64) (e Entry, ok bool, err error) {
	raw := s.Record(seq)
	if raw == nil {
		return Entry{}, false, nil
	}
	r, err := Decode(raw)
	if err != nil {
		return Entry{}, false, &Damage{seq, DamageUnreadable, err.Error()}
	}
	if r.Kind == KindOutcome {
		if r.Ref == 0 || r.Ref >= seq {
			return Entry{}, false, &Damage{seq, DamageEdit, "an outcome without its attempt"}
		}
		return Get(s, r.Ref)
	}
	e = entryOf(&r, Sum(raw))
	if r.Kind != KindAttempt || r.Status != StatusRunning {
		return e, true, nil
	}
	out := s.Outcome(seq)
	if out == 0 {
		return e, true, nil
	}
	o, err := Decode(s.Record(out))
	if err != nil {
		return Entry{}, false, &Damage{out, DamageUnreadable, err.Error()}
	}
	e.OutcomeSeq, e.Status = out, o.Status
	e.CostUSD, e.DurationMS, e.ResultSHA256 = usd(o.Cost), o.DurationMS, text(o.ResultSHA256)
	if o.Flagged {
		e.Flagged = true
		e.FlagReason = strings.TrimPrefix(e.FlagReason+"; "+o.FlagReason, "; ")
	}
	return e, true, nil
}

func entryOf(r *Record, hash Hash) Entry {
	return Entry{
		Timestamp: r.Time, Seq: r.Seq, Kind: r.Kind.String(), CallID: r.CallID, SessionID: r.Session, AgentID: r.Agent, Client: r.Client,
		Upstream: r.Upstream, Tool: r.Tool, Status: r.Status, Flagged: r.Flagged, FlagReason: r.FlagReason, Policy: r.Policy,
		Rule: r.Rule, Also: r.Also, CostUSD: usd(r.Cost), DurationMS: r.DurationMS, Arguments: r.Arguments,
		ArgumentsSHA256: text(r.ArgumentsSHA256), ArgumentsSize: r.ArgumentsSize, ResultSHA256: text(r.ResultSHA256),
		Approval: r.Approval, ConfigSHA256: text(r.ConfigSHA256), PrevHash: r.Prev.String(), Hash: hash.String(),
	}
}

// Find returns the entries that f selects, newest first. next continues the
// list as f.Before, 0 at its end.
func Find(s Source, f Filter) (entries []Entry, next uint64, err error) {
	limit := f.Limit
	if limit <= 0 {
		limit = 50
	}
	name, value, threaded := f.thread()
	seq := s.Head()
	if threaded {
		seq = s.Thread(name, value)
		if seq == 0 && name == ThreadTool { // a tool's own name may contain a slash
			seq, threaded = s.Head(), false
		}
	}
	for seq > 0 {
		r, err := Decode(s.Record(seq))
		if err != nil {
			return nil, 0, &Damage{seq, DamageUnreadable, err.Error()}
		}
		at := seq
		seq--
		if threaded {
			seq = r.Threads.of(name)
		}
		if seq >= at {
			return nil, 0, &Damage{at, DamageEdit, "a thread that does not lead back"}
		}
		if f.Before > 0 && at >= f.Before || r.Kind == KindOutcome && (!threaded || name != ThreadStatus && name != ThreadFlagged) {
			continue
		}
		e, ok, err := Get(s, at)
		if err != nil {
			return nil, 0, err
		}
		if !ok || !f.selects(&e) {
			continue
		}
		if r.Kind == KindOutcome && f.Flagged && name == ThreadFlagged && attemptFlagged(s, r.Ref) {
			continue // its attempt is on the same thread and stands for both
		}
		if len(entries) == limit {
			return entries, next, nil
		}
		entries, next = append(entries, e), at
	}
	return entries, 0, nil
}

func attemptFlagged(s Source, seq uint64) bool {
	r, err := Decode(s.Record(seq))
	return err == nil && r.Flagged
}

// thread picks the thread to walk for f: the one likely to be the shortest.
func (f Filter) thread() (ThreadName, string, bool) {
	switch {
	case f.Session != "":
		return ThreadSession, f.Session, true
	case strings.Contains(f.Tool, "/"):
		return ThreadTool, f.Tool, true
	case f.Status != "" && f.Status != StatusRunning:
		return ThreadStatus, string(f.Status), true
	case f.Flagged:
		return ThreadFlagged, "", true
	case f.Upstream != "":
		return ThreadUpstream, f.Upstream, true
	case f.Agent != "":
		return ThreadAgent, f.Agent, true
	}
	return 0, "", false
}

func (t Threads) of(name ThreadName) uint64 {
	switch name {
	case ThreadSession:
		return t.Session
	case ThreadAgent:
		return t.Agent
	case ThreadUpstream:
		return t.Upstream
	case ThreadTool:
		return t.Tool
	case ThreadStatus:
		return t.Status
	case ThreadFlagged:
		return t.Flagged
	}
	return 0
}

func (f Filter) selects(e *Entry) bool {
	isCall := e.Kind == KindAttempt.String() || e.Kind == KindGovernance.String()
	switch {
	case e.Kind == KindGovernance.String() && !f.Governance && f.Status != StatusGovernance:
		return false
	case !isCall && (f.Calls || f.Tool != "" || f.Upstream != "" || f.Status != "" && f.Status != e.Status):
		return false
	case f.Session != "" && e.SessionID != f.Session,
		f.Agent != "" && e.AgentID != f.Agent,
		f.Upstream != "" && e.Upstream != f.Upstream,
		f.Tool != "" && e.Tool != f.Tool && e.Upstream+"/"+e.Tool != f.Tool,
		f.Status != "" && e.Status != f.Status,
		f.Flagged && !e.Flagged,
		!f.Since.IsZero() && e.Timestamp.Before(f.Since),
		!f.Until.IsZero() && !e.Timestamp.Before(f.Until):
		return false
	}
	return true
}
