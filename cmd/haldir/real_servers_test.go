package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	mark "github.com/mark3labs/mcp-go/mcp"
	markserver "github.com/mark3labs/mcp-go/server"
	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// realServer is the variable that makes this binary a server on stdio: "gosdk",
// "mcpgo", or "fragile", which is gosdk with a tool that ends it.
const realServer = "HALDIR_TEST_REAL_SERVER"

// realHang is the variable that names a file: while it exists, a server on stdio
// reads and never answers.
const realHang = "HALDIR_TEST_REAL_HANG"

func runRealServer() {
	var err error
	if path := os.Getenv(realHang); path != "" {
		if _, err := os.Stat(path); err == nil {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}
	}
	switch os.Getenv(realServer) {
	case "":
		return
	case "gosdk":
		err = newGoSDK().server.Run(context.Background(), &mcp.StdioTransport{})
	case "fragile":
		s := newGoSDK()
		s.server.AddTool(&mcp.Tool{Name: "crash", InputSchema: json.RawMessage(`{"type":"object"}`)},
			func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
				fmt.Fprintln(os.Stderr, "I was told to")
				os.Exit(3)
				return nil, nil
			})
		err = s.server.Run(context.Background(), &mcp.StdioTransport{})
	case "mcpgo":
		err = markserver.ServeStdio(newMCPGo().server)
	default:
		err = errors.New("unknown server")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// realChild is an upstream in haldir.yaml that is this binary as a server.
func realChild(t testing.TB, name, server string, env ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	list := []string{realServer + "=" + server}
	raw, err := json.Marshal(append(list, env...)) // JSON is YAML
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("  - {name: %s, command: %q, env: %s}\n", name, self, raw)
}

// executions counts the calls that reached a server, by tool.
type executions struct {
	mu    sync.Mutex
	count map[string]int
}

func (e *executions) add(tool string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.count == nil {
		e.count = map[string]int{}
	}
	e.count[tool]++
}

func (e *executions) of(tool string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.count[tool]
}

// richSchema has what typed proxies lose: keywords of every kind, extensions,
// the order of keys and integers beyond 2^53.
const richSchema = `{"$schema":"https://json-schema.org/draft/2020-12/schema","$id":"https://example.com/rich","title":"Rich","description":"<b>&amp; \"quotes\" ü 🎉 \u2028</b>","type":"object","required":["kind"],"properties":{"zeta":{"type":"string","pattern":"^[a-z]+$","examples":["z"],"default":"z","x-order":2},"kind":{"oneOf":[{"const":"a","title":"A"},{"const":"b","title":"B"}]},"id":{"type":"integer","maximum":9007199254740993,"minimum":-9007199254740993},"price":{"type":"number","multipleOf":0.010,"exclusiveMaximum":1e300},"node":{"$ref":"#/$defs/node"},"any":{}},"$defs":{"node":{"type":"object","properties":{"next":{"$ref":"#/$defs/node"}},"unevaluatedProperties":false}},"definitions":{"old":{"not":{}}},"oneOf":[{"required":["zeta"]},{"required":["id"]}],"anyOf":[{}],"allOf":[{"if":{"properties":{"kind":{"const":"a"}}},"then":{"required":["id"]},"else":{}}],"patternProperties":{"^x-":{"type":["string","null"]}},"dependentRequired":{"id":["kind"]},"dependentSchemas":{},"propertyNames":{"maxLength":64},"minProperties":1,"maxProperties":12,"additionalProperties":false,"$comment":"kept","x-vendor":{"Deep":[1,2.50,9007199254740993,null,{}]},"X-Vendor":"another key"}`

const richOutput = `{"type":"object","properties":{"id":{"type":"integer"},"received":{}},"required":["id"],"x-out":{"n":18446744073709551617}}`

// richStructured is structured content with what typed proxies change.
const richStructured = `{"z":1,"a":{"n":9007199254740993,"big":123456789012345678901234567890,"f":1.10,"e":1E+2,"neg":-0.0},"list":[],"empty":{},"null":null,"html":"<>&","text":"ü🎉"}`

// goSDK is a server on the official Go SDK.
type goSDK struct {
	executions
	server *mcp.Server
}

func newGoSDK() *goSDK {
	s := &goSDK{server: mcp.NewServer(&mcp.Implementation{Name: "gosdk-test", Version: "1"}, &mcp.ServerOptions{PageSize: 4})}
	anyInput := json.RawMessage(`{"type":"object"}`)
	text := func(words string) *mcp.CallToolResult {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: words}}}
	}
	add := func(tool *mcp.Tool, h mcp.ToolHandler) {
		s.server.AddTool(tool, func(ctx context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			s.executions.add(tool.Name)
			return h(ctx, req)
		})
	}
	yes, no := true, false
	add(&mcp.Tool{
		Name: "rich", Title: "Rich <tool>", Description: "line one\nline two\ttab ü 🎉 & <b>",
		InputSchema: json.RawMessage(richSchema), OutputSchema: json.RawMessage(richOutput),
		Annotations: &mcp.ToolAnnotations{Title: "Annotated", ReadOnlyHint: true, DestructiveHint: &no, IdempotentHint: true, OpenWorldHint: &yes},
		Meta:        mcp.Meta{"example.com/big": json.RawMessage("9007199254740993"), "anthropic/searchHint": "rich"},
		Icons:       []mcp.Icon{{Source: "https://example.com/icon.png", MIMEType: "image/png"}},
	}, func(_ context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		// The arguments as they came: what the client sent must get here untouched.
		res := text(string(req.Params.Arguments))
		if req.Params.Arguments != nil {
			res.StructuredContent = json.RawMessage(`{"id":9007199254740991,"received":` + string(req.Params.Arguments) + `}`)
		}
		return res, nil
	})
	add(&mcp.Tool{Name: "result.everything", InputSchema: anyInput, OutputSchema: json.RawMessage(richOutput)},
		func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			size := int64(9007199254740993)
			return &mcp.CallToolResult{
				Meta: mcp.Meta{"example.com/id": json.RawMessage("9007199254740993"), "deep": map[string]any{"b": json.RawMessage("1.50"), "a": nil}},
				Content: []mcp.Content{
					&mcp.TextContent{Text: "<first> & \u2028", Annotations: &mcp.Annotations{Audience: []mcp.Role{"user", "assistant"}, Priority: 0.5, LastModified: "2025-01-12T15:00:58Z"}},
					&mcp.ImageContent{Data: []byte{0x89, 'P', 'N', 'G'}, MIMEType: "image/png", Meta: mcp.Meta{"n": json.RawMessage("9007199254740993")}},
					&mcp.AudioContent{Data: []byte("RIFF"), MIMEType: "audio/wav"},
					&mcp.ResourceLink{URI: "file:///a b.txt", Name: "a", Title: "A", Description: "d", MIMEType: "text/plain", Size: &size, Icons: []mcp.Icon{{Source: "data:image/png;base64,AA=="}}},
					&mcp.EmbeddedResource{Resource: &mcp.ResourceContents{URI: "file:///t", MIMEType: "text/plain", Text: "embedded"}},
					&mcp.EmbeddedResource{Resource: &mcp.ResourceContents{URI: "file:///b", MIMEType: "application/octet-stream", Blob: []byte{0, 1, 255}}},
					&mcp.TextContent{Text: "last"},
				},
				StructuredContent: json.RawMessage(richStructured),
			}, nil
		})
	add(&mcp.Tool{Name: "result_everything", InputSchema: anyInput}, // would be the same after a host's mapping
		func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return text("the other one"), nil
		})
	add(&mcp.Tool{Name: "deep/name.v2", InputSchema: anyInput},
		func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) { return text("deep"), nil })
	add(&mcp.Tool{Name: "fails", InputSchema: anyInput},
		func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return &mcp.CallToolResult{
				IsError: true, Content: []mcp.Content{&mcp.TextContent{Text: "one"}, &mcp.TextContent{Text: "two"}},
				StructuredContent: json.RawMessage(`{"code":9007199254740993}`),
			}, nil
		})
	add(&mcp.Tool{Name: "rpc_error", InputSchema: anyInput},
		func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return nil, &jsonrpc.Error{Code: -32042, Message: "Out of cheese <&>", Data: json.RawMessage(`{"z":9007199254740993,"a":[1.50,null]}`)}
		})
	add(&mcp.Tool{Name: "go_error", InputSchema: anyInput},
		func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return nil, errors.New("an ordinary error")
		})
	add(&mcp.Tool{Name: "progress", InputSchema: anyInput},
		func(ctx context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			token := req.Params.GetProgressToken()
			for i := range 5 {
				if token == nil {
					break
				}
				err := req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: token, Message: fmt.Sprintf("step <%d>", i), Progress: float64(i), Total: 5})
				if err != nil {
					return nil, err
				}
			}
			return text("done"), nil
		})
	add(&mcp.Tool{Name: "grow", InputSchema: anyInput},
		func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			s.server.AddTool(&mcp.Tool{Name: "grown", InputSchema: anyInput}, func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
				return text("I am new"), nil
			})
			return text("grew"), nil
		})
	add(&mcp.Tool{Name: "count", InputSchema: anyInput},
		func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) { return text("counted"), nil })
	add(&mcp.Tool{Name: "pay", InputSchema: anyInput},
		func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			time.Sleep(20 * time.Millisecond) // so that calls sent together overlap
			return text("paid"), nil
		})
	add(&mcp.Tool{Name: "delete_database", InputSchema: anyInput},
		func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) { return text("gone"), nil })
	return s
}

// handler serves the server in one of the SDK's HTTP modes.
func (s *goSDK) handler(stateless, jsonReplies bool) http.Handler {
	return mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s.server },
		&mcp.StreamableHTTPOptions{Stateless: stateless, JSONResponse: jsonReplies})
}

// mcpGo is a server on mark3labs/mcp-go.
type mcpGo struct {
	executions
	server *markserver.MCPServer
}

func newMCPGo() *mcpGo {
	s := &mcpGo{server: markserver.NewMCPServer("mcpgo-test", "1", markserver.WithToolCapabilities(true), markserver.WithPaginationLimit(2))}
	add := func(tool mark.Tool, h markserver.ToolHandlerFunc) {
		s.server.AddTool(tool, func(ctx context.Context, req mark.CallToolRequest) (*mark.CallToolResult, error) {
			s.executions.add(tool.Name)
			return h(ctx, req)
		})
	}
	plainTool := func(name string) mark.Tool {
		return mark.NewToolWithRawSchema(name, "A tool.", json.RawMessage(`{"type":"object"}`))
	}
	rich := mark.NewToolWithRawSchema("rich", "line one\nline two ü 🎉 & <b>", json.RawMessage(richSchema))
	rich.RawOutputSchema = json.RawMessage(richOutput)
	add(rich, func(_ context.Context, req mark.CallToolRequest) (*mark.CallToolResult, error) {
		return mark.NewToolResultText(string(req.Params.RawArguments)), nil
	})
	add(plainTool("structured.content"), func(context.Context, mark.CallToolRequest) (*mark.CallToolResult, error) {
		r := mark.NewToolResultStructured(json.RawMessage(richStructured), "the text beside it")
		r.Content = append(r.Content, mark.NewImageContent("AAEC", "image/png"), mark.NewTextContent("more"))
		return r, nil
	})
	add(plainTool("fails"), func(context.Context, mark.CallToolRequest) (*mark.CallToolResult, error) {
		return mark.NewToolResultError("it failed"), nil
	})
	add(plainTool("go_error"), func(context.Context, mark.CallToolRequest) (*mark.CallToolResult, error) {
		return nil, errors.New("an ordinary error")
	})
	add(plainTool("progress"), func(ctx context.Context, req mark.CallToolRequest) (*mark.CallToolResult, error) {
		if meta := req.Params.Meta; meta != nil && meta.ProgressToken != nil {
			for i := range 3 {
				err := s.server.SendNotificationToClient(ctx, "notifications/progress", map[string]any{"progressToken": meta.ProgressToken, "progress": i, "message": strconv.Itoa(i)})
				if err != nil {
					return nil, err
				}
			}
			time.Sleep(300 * time.Millisecond) // mcp-go lets the response overtake them otherwise
		}
		return mark.NewToolResultText("done"), nil
	})
	add(plainTool("grow"), func(context.Context, mark.CallToolRequest) (*mark.CallToolResult, error) {
		s.server.AddTool(plainTool("grown"), func(context.Context, mark.CallToolRequest) (*mark.CallToolResult, error) {
			return mark.NewToolResultText("I am new"), nil
		})
		return mark.NewToolResultText("grew"), nil
	})
	return s
}

// listenOn serves h on loopback until stop, which closes every connection. A
// port of 0 means any; the url ends in /mcp.
func listenOn(t testing.TB, port int, h http.Handler) (url string, used int, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	// A connection that somebody else makes may have the port for a moment.
	for end := time.Now().Add(10 * time.Second); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
		l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	}
	if err != nil {
		t.Fatal(err)
	}
	used = l.Addr().(*net.TCPAddr).Port
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	stop = sync.OnceFunc(func() { _ = srv.Close(); <-done })
	t.Cleanup(stop)
	return fmt.Sprintf("http://127.0.0.1:%d/mcp", used), used, stop
}

// freePort returns a port that was free a moment ago.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}
