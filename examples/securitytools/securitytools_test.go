package securitytools_test

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/haldir-mcp/haldir/examples/securitytools"
)

// connect has the official SDK's client connect, which shares no code with the
// server.
func connect(t *testing.T) (context.Context, *mcp.ClientSession) {
	t.Helper()
	srv := httptest.NewServer(securitytools.Handler())
	t.Cleanup(srv.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	client := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil)
	session, err := client.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: srv.URL + "/mcp"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	return ctx, session
}

func TestTools(t *testing.T) {
	ctx, session := connect(t)
	if name := session.InitializeResult().ServerInfo.Name; name != "security-tools" {
		t.Errorf("it calls itself %s", name)
	}
	type hints struct{ ReadOnly, Destructive bool }
	got := map[string]hints{}
	for tool, err := range session.Tools(ctx, nil) {
		if err != nil {
			t.Fatal(err)
		}
		a := tool.Annotations
		got[tool.Name] = hints{a.ReadOnlyHint, a.DestructiveHint != nil && *a.DestructiveHint}
		if tool.Description == "" {
			t.Errorf("%s has no description", tool.Name)
		}
		schema, err := json.Marshal(tool.InputSchema)
		if err != nil {
			t.Fatal(err)
		}
		var s struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(schema, &s) != nil || s.Type != "object" {
			t.Errorf("%s takes %s", tool.Name, schema)
		}
	}
	want := map[string]hints{
		"scan_domain": {true, true}, "dns_lookup": {true, true}, "buy_report": {false, true},
		"delete_database": {false, true}, "drop_table": {false, true}, "send_wire_transfer": {false, true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAnswersAreAlwaysTheSame(t *testing.T) {
	ctx, session := connect(t)
	for _, tt := range []struct {
		tool string
		args map[string]any
		want string
	}{
		{"scan_domain", map[string]any{"domain": "example.com"}, "example.com: 80/tcp open, 443/tcp open"},
		{"dns_lookup", map[string]any{"domain": "example.com"}, "example.com has address 192.0.2.7"},
		{"buy_report", map[string]any{"domain": "example.com", "amount": 7.5}, "bought a report on example.com for $7.50"},
		{"delete_database", nil, "done (only in this example)"},
		{"drop_table", nil, "done (only in this example)"},
		{"send_wire_transfer", nil, "done (only in this example)"},
	} {
		for range 2 {
			res, err := session.CallTool(ctx, &mcp.CallToolParams{Name: tt.tool, Arguments: tt.args})
			if err != nil {
				t.Fatalf("%s: %v", tt.tool, err)
			}
			if len(res.Content) != 1 || res.IsError {
				t.Fatalf("%s: %+v", tt.tool, res)
			}
			if text, ok := res.Content[0].(*mcp.TextContent); !ok || text.Text != tt.want {
				t.Errorf("%s answers %+v, want %s", tt.tool, res.Content[0], tt.want)
			}
		}
	}
	if res, err := session.CallTool(ctx, &mcp.CallToolParams{Name: "no_such_tool"}); err == nil && !res.IsError {
		t.Errorf("a tool that is not there answers %+v", res)
	}
}
