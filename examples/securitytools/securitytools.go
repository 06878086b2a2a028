// Package securitytools is an MCP server to try haldir on: a few tools of the
// kind that one would allow, deny, limit and pay for. Nothing leaves the
// machine and nothing is deleted; the answers are made up, but always the same.
package securitytools

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
)

// New makes the server.
func New() *server.MCPServer {
	s := server.NewMCPServer("security-tools", "1.0.0", server.WithToolCapabilities(true))
	readOnly := mcp.WithReadOnlyHintAnnotation(true)
	domain := mcp.WithString("domain", mcp.Required(), mcp.Description("The domain, such as example.com."))

	s.AddTool(mcp.NewTool("scan_domain", readOnly, mcp.WithDescription("Scan a domain for open ports."), domain),
		text(func(r mcp.CallToolRequest) string {
			return fmt.Sprintf("%s: 80/tcp open, 443/tcp open", r.GetString("domain", "?"))
		}))
	s.AddTool(mcp.NewTool("dns_lookup", readOnly, mcp.WithDescription("Look up the addresses of a domain."), domain),
		text(func(r mcp.CallToolRequest) string {
			return fmt.Sprintf("%s has address 192.0.2.7", r.GetString("domain", "?"))
		}))
	s.AddTool(mcp.NewTool("buy_report", mcp.WithDescription("Buy a threat report."), domain,
		mcp.WithNumber("amount", mcp.Required(), mcp.Description("The price in dollars."))),
		text(func(r mcp.CallToolRequest) string {
			return fmt.Sprintf("bought a report on %s for $%.2f", r.GetString("domain", "?"), r.GetFloat("amount", 0))
		}))
	for _, name := range []string{"delete_database", "drop_table", "send_wire_transfer"} {
		s.AddTool(mcp.NewTool(name, mcp.WithDescription("Something that an agent should not do unasked."), mcp.WithDestructiveHintAnnotation(true)),
			text(func(mcp.CallToolRequest) string { return "done (only in this example)" }))
	}
	return s
}

func text(answer func(mcp.CallToolRequest) string) server.ToolHandlerFunc {
	return func(_ context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return mcp.NewToolResultText(answer(r)), nil
	}
}

// Serve serves over HTTP at an address, and says so.
func Serve(ctx context.Context, addr string, say io.Writer) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(say, "serving on http://%s/mcp\n", l.Addr()); err != nil {
		return err
	}
	return (&http.Server{Handler: Handler(), ReadHeaderTimeout: 10 * time.Second}).Serve(l)
}

// Handler serves New over streamable HTTP at /mcp.
func Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/mcp", server.NewStreamableHTTPServer(New()))
	return mux
}
