package main_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	markserver "github.com/mark3labs/mcp-go/server"

	"github.com/haldir-mcp/haldir/examples/securitytools"
	"github.com/haldir-mcp/haldir/internal/mcptest"
)

func mcpGoHandler() http.Handler {
	return markserver.NewStreamableHTTPServer(newMCPGo().server, markserver.WithStateful(true))
}

// refused is what an agent is told about a call that haldir refused.
type refused struct {
	Error     string `json:"error"`
	BlockedBy string `json:"blocked_by"`
	Policy    string `json:"policy"`
	Rule      string `json:"rule"`
	Retryable bool   `json:"retryable"`
	RetryAt   string `json:"retry_at"`
	AuditID   string `json:"audit_id"`
}

// refusalOf reads a refusal; the zero value means that the call was not refused.
func refusalOf(t *testing.T, m mcptest.Message) refused {
	t.Helper()
	var result struct {
		IsError bool `json:"isError"`
		Content []struct {
			Text string `json:"text"`
		} `json:"content"`
	}
	var r refused
	if m.Error != nil || json.Unmarshal(m.Result, &result) != nil || !result.IsError || len(result.Content) != 1 {
		return refused{}
	}
	if json.Unmarshal([]byte(result.Content[0].Text), &r) != nil || r.BlockedBy != "haldir" {
		return refused{}
	}
	return r
}

// auditEntry is the part of an audit entry that tests look at.
type auditEntry struct {
	Seq        uint64          `json:"seq"`
	Kind       string          `json:"kind"`
	Upstream   string          `json:"upstream"`
	Tool       string          `json:"tool"`
	Status     string          `json:"status"`
	Policy     string          `json:"policy"`
	Rule       string          `json:"rule"`
	Client     string          `json:"client"`
	FlagReason string          `json:"flag_reason"`
	Flagged    bool            `json:"flagged"`
	SessionID  string          `json:"session_id"`
	CostUSD    json.Number     `json:"cost_usd"`
	Arguments  json.RawMessage `json:"arguments"`
}

// calls returns the audit of the calls, the oldest first.
func calls(t *testing.T, h *mcptest.Haldir) []auditEntry {
	t.Helper()
	var list struct {
		Entries []auditEntry `json:"entries"`
	}
	if err := json.Unmarshal([]byte(h.Must(t, "audit", "list", "--json", "--limit", "10000")), &list); err != nil {
		t.Fatal(err)
	}
	var out []auditEntry
	for _, e := range list.Entries {
		if e.Tool != "" {
			out = append([]auditEntry{e}, out...)
		}
	}
	return out
}

// rpcError is a JSON-RPC error.
type rpcError struct {
	Code    int             `json:"code"`
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data"`
}

// errorOf reads the error of a response that must be one.
func errorOf(t *testing.T, m mcptest.Message) rpcError {
	t.Helper()
	var e rpcError
	if m.Error == nil {
		t.Errorf("no error, but %s", m.Raw)
		return e
	}
	if err := json.Unmarshal(m.Error, &e); err != nil {
		t.Errorf("%v: %s", err, m.Raw)
	}
	return e
}

// approvalConfig has one tool that needs a person's word.
func approvalConfig(t *testing.T, extra string) (*mcptest.Haldir, *httptest.Server) {
	t.Helper()
	srv := httptest.NewServer(securitytools.Handler())
	t.Cleanup(srv.Close)
	return mcptest.NewHaldir(t, program(t), "version: 1\nupstreams:\n  - {name: sec, url: \""+srv.URL+"/mcp\"}\npolicies:\n"+
		"  - {type: require_approval, tools: [scan_domain], "+extra+"}\n"), srv
}
