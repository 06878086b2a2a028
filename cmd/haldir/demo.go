package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"
	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/examples/securitytools"
	"github.com/haldir-mcp/haldir/internal/wire"
)

//go:embed demo.yaml
var demoConfig string

func demoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show the main job on an example server: allow, deny, limit, record, verify",
		Long: "demo starts an example MCP server on loopback and a real `haldir serve` before\n" +
			"it, drives that as an agent would and prints what happens. It keeps nothing and\n" +
			"exits with status 0 only if every step went as it says.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			return a.demo(ctx)
		},
	}
}

// demo is one run of the demonstration.
type demo struct {
	*app
	agent  *client.Client
	self   string // the program
	env    []string
	config string
	state  string
	step   int
}

func (a *app) demo(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "haldir-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: securitytools.Handler(), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(listener) // it ends with Close below
	}()
	defer func() { _ = srv.Close(); <-served }()

	d := &demo{app: a, env: bare(os.Environ()), config: filepath.Join(dir, "haldir.yaml"), state: filepath.Join(dir, "state")}
	text := fmt.Sprintf(demoConfig, "(see url)", "http://"+listener.Addr().String()+"/mcp")
	if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
		return err
	}
	if d.self, err = os.Executable(); err != nil {
		return err
	}
	d.agent, err = client.NewStdioMCPClientWithOptions(d.self, nil, []string{"serve", "--config", d.config, "--state-dir", d.state, "--log-level", "error"},
		transport.WithCommandFunc(func(ctx context.Context, _ string, _, args []string) (*exec.Cmd, error) {
			return d.command(ctx, args...), nil
		}))
	if err != nil {
		return fmt.Errorf("start haldir serve: %w", err)
	}
	err = d.run(ctx)
	return errors.Join(err, d.agent.Close())
}

// bare is an environment without settings and sessions of the person's own: the
// demonstration is the same everywhere.
func bare(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(e string) bool {
		return strings.HasPrefix(e, "HALDIR_") || strings.HasPrefix(e, "CLAUDE_CODE_SESSION_ID=")
	})
}

// command is haldir with these arguments.
func (d *demo) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.self, args...)
	cmd.Env, cmd.Stderr = d.env, d.err
	return cmd
}

// say begins a step of the transcript.
func (d *demo) say(what string) {
	d.step++
	_ = d.printf("\n%d. %s\n", d.step, what) // a broken stdout shows at the end
}

func (d *demo) run(ctx context.Context) error {
	init := mcp.InitializeRequest{}
	init.Params.ProtocolVersion = wire.LatestLegacy
	init.Params.ClientInfo = mcp.Implementation{Name: "haldir-demo", Version: version()}
	if _, err := d.agent.Initialize(ctx, init); err != nil {
		return fmt.Errorf("initialize: %w", err)
	}
	_ = d.printf("haldir demo: an agent, haldir, and an MCP server with six tools\n")
	steps := []func(context.Context) error{d.tools, d.allowed, d.denied, d.rateLimit, d.spendLimit, d.record}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return fmt.Errorf("the demo did not go as it should at step %d: %w", d.step, err)
		}
	}
	return d.printf("\neverything went as it should\n")
}

func (d *demo) tools(ctx context.Context) error {
	d.say("The agent lists its tools: the server's, without those on the deny list, and haldir's own")
	list, err := d.agent.ListTools(ctx, mcp.ListToolsRequest{})
	if err != nil {
		return err
	}
	var names []string
	for _, t := range list.Tools {
		names = append(names, t.Name)
		_ = d.printf("   %s\n", t.Name)
	}
	want := "security-tools__buy_report security-tools__dns_lookup security-tools__scan_domain haldir_check_permission haldir_get_audit haldir_get_spend"
	if got := strings.Join(names, " "); got != want {
		return fmt.Errorf("listed %s, want %s", got, want)
	}
	return nil
}

// call calls a tool and returns its text. refusedBy is the policy that refused.
func (d *demo) call(ctx context.Context, tool string, args map[string]any) (text, refusedBy string, err error) {
	req := mcp.CallToolRequest{}
	req.Params.Name, req.Params.Arguments = tool, args
	res, err := d.agent.CallTool(ctx, req)
	if err != nil {
		return "", "", err
	}
	if len(res.Content) == 1 {
		if t, ok := res.Content[0].(mcp.TextContent); ok {
			text = t.Text
		}
	}
	var refusal struct {
		Error  string `json:"error"`
		Policy string `json:"policy"`
	}
	if res.IsError && json.Unmarshal([]byte(text), &refusal) == nil {
		text, refusedBy = refusal.Error, refusal.Policy
	}
	shown := text
	if refusedBy != "" {
		shown = "refused: " + text
	}
	argText, err := json.Marshal(args)
	if err != nil {
		return "", "", err
	}
	return text, refusedBy, d.printf("   %s %s\n     %s\n", strings.TrimPrefix(tool, "security-tools__"), argText, shown)
}

// expect makes a call and checks which policy, if any, refused it.
func (d *demo) expect(ctx context.Context, tool string, args map[string]any, refusedBy, words string) error {
	text, by, err := d.call(ctx, "security-tools__"+tool, args)
	switch {
	case err != nil:
		return err
	case by != refusedBy:
		return fmt.Errorf("%s was refused by %q, want %q", tool, by, refusedBy)
	case !strings.Contains(text, words):
		return fmt.Errorf("%s answered %q, which lacks %q", tool, text, words)
	}
	return nil
}

func (d *demo) allowed(ctx context.Context) error {
	d.say("A call that policy allows")
	return d.expect(ctx, "scan_domain", map[string]any{"domain": "example.com"}, "", "443/tcp open")
}

func (d *demo) denied(ctx context.Context) error {
	d.say("A call on the deny list")
	return d.expect(ctx, "delete_database", map[string]any{}, "deny", "Tool 'delete_database' is on the deny list")
}

func (d *demo) rateLimit(ctx context.Context) error {
	d.say("A rate limit of 3 calls an hour")
	for i := range 4 {
		by, words := "", "192.0.2.7"
		if i == 3 {
			by, words = "rate_limit", "the window resets at "
		}
		if err := d.expect(ctx, "dns_lookup", map[string]any{"domain": fmt.Sprintf("host%d.example.com", i+1)}, by, words); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) spendLimit(ctx context.Context) error {
	d.say("A spend limit of $10.00: the lower of the session's and the policy's holds")
	if err := d.expect(ctx, "buy_report", map[string]any{"domain": "example.com", "amount": 7.5}, "", "bought"); err != nil {
		return err
	}
	return d.expect(ctx, "buy_report", map[string]any{"domain": "example.org", "amount": 7.5}, "spend_limit", "$7.50 used")
}

func (d *demo) record(ctx context.Context) error {
	d.say("The audit trail: every attempt, allowed or not (haldir audit list)")
	if err := d.haldir(ctx, "denied", "audit", "list"); err != nil {
		return err
	}
	d.say("The hash chain (haldir audit verify)")
	return d.haldir(ctx, "verify: ok", "audit", "verify")
}

// haldir runs another verb beside the running serve, and checks its output.
func (d *demo) haldir(ctx context.Context, words string, args ...string) error {
	var out bytes.Buffer
	cmd := d.command(ctx, append(args, "--state-dir", d.state, "--log-level", "error")...)
	cmd.Stdout = &out
	err := cmd.Run()
	for line := range strings.Lines(out.String()) {
		_ = d.printf("   %s", line)
	}
	if err != nil {
		return fmt.Errorf("haldir %s: %w", strings.Join(args, " "), err)
	}
	if !strings.Contains(out.String(), words) {
		return fmt.Errorf("haldir %s does not say %q", strings.Join(args, " "), words)
	}
	return nil
}
