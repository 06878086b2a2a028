//go:build unix

package main_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// TestRealClaudeCodeAsks: Claude Code shows its person the form, and the call goes
// through after "allow" only.
func TestRealClaudeCodeAsks(t *testing.T) {
	t.Parallel()
	h, _ := approvalConfig(t, "timeout: 1m")
	scan := mcptest.ToolUse{Name: "mcp__haldir__sec__scan_domain", Input: `{"domain":"example.org"}`}
	c := mcptest.StartClaude(t, h, "", scan, scan, scan)
	form := c.Elicitation()
	if form.Request.Server != "haldir" || form.Request.Mode != "form" || !strings.Contains(form.Request.Message, "sec/scan_domain") ||
		!strings.Contains(form.Request.Message, "domain: example.org") {
		t.Errorf("the form: %s", form.Raw)
	}
	if out := h.Must(t, "audit", "list", "--status", "allowed"); strings.Contains(out, "scan_domain") {
		t.Errorf("called before anybody has answered: %s", out)
	}
	c.Answer(form, `{"action":"accept","content":{"decision":"once"}}`)
	c.Answer(c.Elicitation(), `{"action":"accept","content":{"decision":"deny"}}`)
	c.Answer(c.Elicitation(), `{"action":"decline"}`)
	results := c.End()
	if len(results) != 3 || !strings.Contains(results[0], "example.org") || strings.Contains(results[0], "blocked_by") {
		t.Fatalf("what the model was told: %q", results)
	}
	for _, r := range results[1:] {
		if !strings.Contains(r, "denied by elicitation") {
			t.Errorf("a denied call: %s", r)
		}
	}
	h.Must(t, "audit", "verify")
}

// TestRealClaudeCodeWithoutAPerson: what closes the form at once, as runs without a person
// do, gets the command for a person, whose word one call redeems.
func TestRealClaudeCodeWithoutAPerson(t *testing.T) {
	t.Parallel()
	h, _ := approvalConfig(t, "timeout: 1m")
	scan := mcptest.ToolUse{Name: "mcp__haldir__sec__scan_domain", Input: `{"domain":"example.org"}`}
	c := mcptest.StartClaude(t, h, "", scan, scan, scan)
	c.Answer(c.Elicitation(), `{"action":"cancel"}`)
	// The next is on its way already; the person has allowed the first meanwhile.
	second := c.Elicitation()
	var list struct {
		Approvals []struct {
			ID      string `json:"id"`
			Waiting bool   `json:"waiting"`
		} `json:"approvals"`
	}
	if err := json.Unmarshal([]byte(h.Must(t, "approvals", "list", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Approvals) != 2 || list.Approvals[0].Waiting || !list.Approvals[1].Waiting {
		t.Fatalf("listed: %+v", list)
	}
	approveAtTerminal(t, h, list.Approvals[1].ID)
	c.Answer(second, `{"action":"cancel"}`)
	c.Answer(c.Elicitation(), `{"action":"cancel"}`) // the word was for one call
	results := c.End()
	if len(results) != 3 || !strings.Contains(results[0], "approvals approve apr_") || strings.Contains(results[1], "blocked_by") || !strings.Contains(results[2], "approvals approve apr_") {
		t.Errorf("what the model was told: %q", results)
	}
}

// TestRealGoSDKClientAsks does it with the official Go SDK's client, of both eras.
func TestRealGoSDKClientAsks(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"2025-06-18", "2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			h, _ := approvalConfig(t, "timeout: 2s")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			answers := make(chan string, 1)
			client := mcp.NewClient(&mcp.Implementation{Name: "gosdk-client", Version: "9"}, &mcp.ClientOptions{
				ElicitationHandler: func(ctx context.Context, r *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
					if !strings.Contains(r.Params.Message, "sec/scan_domain") {
						t.Errorf("asked: %s", r.Params.Message)
					}
					select {
					case word := <-answers:
						return &mcp.ElicitResult{Action: "accept", Content: map[string]any{"decision": word}}, nil
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				},
			})
			session, err := client.Connect(ctx, &mcp.CommandTransport{Command: h.Command("serve")}, &mcp.ClientSessionOptions{ProtocolVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = session.Close() }()
			call := func() string {
				t.Helper()
				r, err := session.CallTool(ctx, &mcp.CallToolParams{Name: "sec__scan_domain", Arguments: map[string]any{"domain": "example.org"}})
				if err != nil {
					return err.Error()
				}
				return r.Content[0].(*mcp.TextContent).Text
			}
			answers <- "once"
			if got := call(); strings.Contains(got, "blocked_by") {
				t.Errorf("allowed, and yet: %s", got)
			}
			answers <- "deny"
			if got := call(); !strings.Contains(got, "denied by elicitation") {
				t.Errorf("denied: %s", got)
			}
			if version == "2026-07-28" { // the host answers when its person does; the word comes too late then
				go func() { time.Sleep(2500 * time.Millisecond); answers <- "once" }()
			}
			if got := call(); !strings.Contains(got, "in time") && !strings.Contains(got, "has timed out") && !strings.Contains(got, "has expired") {
				t.Errorf("nobody answers: %s", got)
			}
		})
	}
}
