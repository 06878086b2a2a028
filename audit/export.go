package audit

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Exported is a record with every hashed field, so that an export can be
// verified without haldir: the canonical bytes can be made from it alone. Texts
// are as [carried] leaves them.
type Exported struct {
	Seq             uint64          `json:"seq"`
	PrevHash        Hash            `json:"prev_hash"`
	Timestamp       string          `json:"timestamp"` // RFC 3339, UTC, with all nanoseconds that are not zero
	Kind            string          `json:"kind"`
	Status          Status          `json:"status"`
	Ref             uint64          `json:"ref"`
	CallID          string          `json:"call_id"`
	SessionID       string          `json:"session_id"`
	AgentID         string          `json:"agent_id"`
	Client          string          `json:"client"`
	Upstream        string          `json:"upstream"`
	Tool            string          `json:"tool"`
	Flagged         bool            `json:"flagged"`
	FlagReason      string          `json:"flag_reason"`
	Policy          string          `json:"policy"`
	Rule            string          `json:"rule"`
	Also            string          `json:"also"` // JSON text
	CostUSD         json.RawMessage `json:"cost_usd"`
	DurationMS      uint64          `json:"duration_ms"`
	Arguments       string          `json:"arguments"` // JSON text, as much as was recorded
	ArgumentsSHA256 string          `json:"arguments_sha256"`
	ArgumentsSize   uint64          `json:"arguments_size"`
	ResultSHA256    string          `json:"result_sha256"`
	Approval        string          `json:"approval"`
	ConfigSHA256    string          `json:"config_sha256"`
	ThreadSession   uint64          `json:"thread_session"`
	ThreadAgent     uint64          `json:"thread_agent"`
	ThreadUpstream  uint64          `json:"thread_upstream"`
	ThreadTool      uint64          `json:"thread_tool"`
	ThreadStatus    uint64          `json:"thread_status"`
	ThreadFlagged   uint64          `json:"thread_flagged"`
	Hash            Hash            `json:"hash"`
}

// Export decodes canonical bytes for an export.
func Export(encoded []byte) (Exported, error) {
	r, err := Decode(encoded)
	if err != nil {
		return Exported{}, err
	}
	for _, text := range []*string{&r.CallID, &r.Session, &r.Agent, &r.Client, &r.Upstream, &r.Tool, &r.FlagReason, &r.Policy, &r.Rule, &r.Approval} {
		*text = carried(*text)
	}
	return Exported{
		Seq: r.Seq, PrevHash: r.Prev, Timestamp: r.Time.Format(time.RFC3339Nano), Kind: r.Kind.String(), Status: Status(carried(string(r.Status))),
		Ref: r.Ref, CallID: r.CallID, SessionID: r.Session, AgentID: r.Agent, Client: r.Client, Upstream: r.Upstream, Tool: r.Tool,
		Flagged: r.Flagged, FlagReason: r.FlagReason, Policy: r.Policy, Rule: r.Rule, Also: carried(string(r.Also)), CostUSD: usd(r.Cost),
		DurationMS: r.DurationMS, Arguments: carried(string(r.Arguments)), ArgumentsSHA256: text(r.ArgumentsSHA256),
		ArgumentsSize: r.ArgumentsSize, ResultSHA256: text(r.ResultSHA256), Approval: r.Approval, ConfigSHA256: text(r.ConfigSHA256),
		ThreadSession: r.Threads.Session, ThreadAgent: r.Threads.Agent, ThreadUpstream: r.Threads.Upstream, ThreadTool: r.Threads.Tool,
		ThreadStatus: r.Threads.Status, ThreadFlagged: r.Threads.Flagged, Hash: Sum(encoded),
	}, nil
}

// inBase64 begins a text that neither JSON nor CSV could carry as it is.
const inBase64 = "base64:"

// carried returns a text as an export has it: as it is, or, if it is not UTF-8 or
// begins like one that is not, in base64.
func carried(text string) string {
	if utf8.ValidString(text) && !strings.HasPrefix(text, inBase64) {
		return text
	}
	return inBase64 + base64.StdEncoding.EncodeToString([]byte(text))
}

// CSVHeader names the columns of [Exported.CSV].
func CSVHeader() []string {
	return []string{
		"seq", "prev_hash", "timestamp", "kind", "status", "ref", "call_id", "session_id", "agent_id", "client", "upstream", "tool", "flagged",
		"flag_reason", "policy", "rule", "also", "cost_usd", "duration_ms", "arguments", "arguments_sha256", "arguments_size", "result_sha256",
		"approval", "config_sha256", "thread_session", "thread_agent", "thread_upstream", "thread_tool", "thread_status", "thread_flagged", "hash",
	}
}

// CSV returns e as the columns of a CSV row. Texts that a spreadsheet would
// take for a formula are kept as they are: the file is for verification. A text
// with a carriage return, which readers of CSV drop, is in base64.
func (e *Exported) CSV() []string {
	n := func(v uint64) string { return strconv.FormatUint(v, 10) }
	row := []string{
		n(e.Seq), e.PrevHash.String(), e.Timestamp, e.Kind, string(e.Status), n(e.Ref), e.CallID, e.SessionID, e.AgentID, e.Client, e.Upstream,
		e.Tool, strconv.FormatBool(e.Flagged), e.FlagReason, e.Policy, e.Rule, e.Also, string(e.CostUSD), n(e.DurationMS), e.Arguments,
		e.ArgumentsSHA256, n(e.ArgumentsSize), e.ResultSHA256, e.Approval, e.ConfigSHA256, n(e.ThreadSession), n(e.ThreadAgent),
		n(e.ThreadUpstream), n(e.ThreadTool), n(e.ThreadStatus), n(e.ThreadFlagged), e.Hash.String(),
	}
	for i, text := range row {
		if strings.Contains(text, "\r") {
			row[i] = inBase64 + base64.StdEncoding.EncodeToString([]byte(text))
		}
	}
	return row
}

// Manifest goes with an export.
type Manifest struct {
	Format string `json:"format"`           // jsonl, csv or ocsf
	Count  uint64 `json:"count"`            // of records
	Events uint64 `json:"events,omitempty"` // of ocsf, in which a call is one
	First  uint64 `json:"first_seq"`        // 0 if there are no records
	Last   uint64 `json:"last_seq"`
	Head   Hash   `json:"head_hash"` // of the last record
	SHA256 string `json:"sha256"`    // of the contents, in hexadecimal
	// Pruned is what is known of the records before the first, where those are not kept;
	// nil if the export begins elsewhere.
	Pruned *Pruned `json:"pruned,omitempty"`
}

// String describes m in one line.
func (m Manifest) String() string {
	gone := ""
	if m.Pruned != nil {
		gone = fmt.Sprintf("; the first %d were pruned", m.Pruned.Size)
	}
	if m.Events > 0 {
		return fmt.Sprintf("%d events of %d records, %d to %d, head %s, sha256 %s%s", m.Events, m.Count, m.First, m.Last, m.Head, m.SHA256, gone)
	}
	return fmt.Sprintf("%d records, %d to %d, head %s, sha256 %s%s", m.Count, m.First, m.Last, m.Head, m.SHA256, gone)
}
