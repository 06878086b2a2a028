package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Source gives the records of one moment. It is for one goroutine.
type Source interface {
	// Head returns the number of the newest record, 0 if there is none.
	Head() uint64
	// First returns the number of the first record that is kept; 1 if none was pruned.
	First() uint64
	// Record returns the canonical bytes of a record, nil if it is not there.
	Record(seq uint64) []byte
	// Outcome returns the number of the outcome of an attempt, 0 if none.
	Outcome(attempt uint64) uint64
	// Marked returns the entries of a block that have a mark; see [Marks].
	Marked(block uint64, mark string) Set
	// Span returns times between which all records of a block are.
	Span(block uint64) (first, last time.Time)
}

// Filter selects entries; zero fields select all.
type Filter struct {
	Session, Agent, Upstream string
	Tool                     string // canonical id, the tool's own name, or upstream__tool as agents see it
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
	if r.joins() {
		if r.Ref == 0 || r.Ref >= seq {
			return Entry{}, false, &Damage{seq, DamageEdit, "an outcome without its attempt"}
		}
		return Get(s, r.Ref)
	}
	e = entryOf(&r, Sum(raw))
	if r.Kind != KindAttempt || r.Status != StatusRunning && r.Status != StatusPending {
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
	e.join(&o)
	return e, true, nil
}

// join adds how an attempt ended.
func (e *Entry) join(o *Record) {
	e.OutcomeSeq, e.Status = o.Seq, o.Status
	e.CostUSD, e.DurationMS, e.ResultSHA256 = usd(o.Cost), o.DurationMS, text(o.ResultSHA256)
	if o.Kind == KindApproval {
		e.Approval = o.Approval
	}
	e.Flagged = e.Flagged || o.Flagged
	if o.Flagged || o.Kind == KindApproval {
		e.FlagReason = strings.TrimPrefix(e.FlagReason+"; "+o.FlagReason, "; ")
	}
}

// valid mends a text that is no UTF-8, since an entry is JSON.
func valid(text []byte) json.RawMessage {
	if utf8.Valid(text) {
		return text
	}
	return bytes.ToValidUTF8(text, []byte("\ufffd"))
}

func entryOf(r *Record, hash Hash) Entry {
	return Entry{
		Timestamp: r.Time, Seq: r.Seq, Kind: r.Kind.String(), CallID: r.CallID, SessionID: r.Session, AgentID: r.Agent, Client: r.Client,
		Upstream: r.Upstream, Tool: r.Tool, Status: r.Status, Flagged: r.Flagged, FlagReason: r.FlagReason, Policy: r.Policy,
		Rule: r.Rule, Also: valid(r.Also), CostUSD: usd(r.Cost), DurationMS: r.DurationMS, Arguments: valid(r.Arguments),
		ArgumentsSHA256: text(r.ArgumentsSHA256), ArgumentsSize: r.ArgumentsSize, ResultSHA256: text(r.ResultSHA256),
		Approval: r.Approval, ConfigSHA256: text(r.ConfigSHA256), PrevHash: r.Prev.String(), Hash: hash.String(),
	}
}

// reach is how many blocks one call of Find looks into.
const reach = 256

// Find returns entries that f selects, newest first. next continues the list as
// f.Before, 0 at its end. It does a bounded part of the work, so there may be
// fewer than f.Limit, or none, although there are more to come.
func Find(s Source, f Filter) (entries []Entry, next uint64, err error) {
	seq, marks := s.Head(), f.marks()
	if f.Before > 0 {
		seq = min(seq, f.Before-1)
	}
	kept := max(1, s.First())
	for looked := 0; seq >= kept; looked++ {
		if looked == reach {
			return entries, seq + 1, nil
		}
		first := max(kept, seq/BlockSize*BlockSize)
		set, some := f.among(s, seq/BlockSize, marks)
		for ; some && seq >= first; seq-- {
			if !set.Has(seq) {
				continue
			}
			if len(entries) == f.limit() {
				return entries, seq + 1, nil
			}
			e, ok, err := Get(s, seq)
			if err != nil {
				return nil, 0, err
			}
			if !ok {
				return nil, 0, &Damage{seq, DamageDeletion, "the index knows of it, but it is missing"}
			}
			if f.selects(&e) {
				entries = append(entries, e)
			}
		}
		if !some {
			seq = first - 1
		}
	}
	return entries, 0, nil
}

func (f Filter) limit() int {
	if f.Limit <= 0 {
		return 50
	}
	return f.Limit
}

// tools are the own names and canonical ids that the tool of a filter may go by on record.
// Names of upstreams have no underscore, so the first two divide the name that agents see.
func (f Filter) tools() []string {
	if upstream, tool, seen := strings.Cut(f.Tool, "__"); seen && upstream != "" && tool != "" && !strings.Contains(upstream, "/") {
		return []string{f.Tool, upstream + "/" + tool}
	}
	return []string{f.Tool}
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
		f.Tool != "" && !slices.ContainsFunc(f.tools(), func(name string) bool { return name == e.Tool || name == e.Upstream+"/"+e.Tool }),
		f.Status != "" && e.Status != f.Status,
		f.Flagged && !e.Flagged,
		!f.Since.IsZero() && e.Timestamp.Before(f.Since),
		!f.Until.IsZero() && !e.Timestamp.Before(f.Until):
		return false
	}
	return true
}
