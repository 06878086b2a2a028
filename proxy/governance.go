package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
)

// governance is haldir as an upstream of itself: an MCP server in this process
// whose three tools tell the agent about its own session.
type governance struct {
	s         *Server
	mcp       *server.MCPServer
	catalogue upstream.Catalogue
}

func newGovernance(s *Server) *governance {
	g := &governance{s: s, mcp: server.NewMCPServer(ownName, s.o.Version, server.WithToolCapabilities(false))}
	for _, t := range []struct {
		name, description, in, out string
		handler                    server.ToolHandlerFunc
	}{
		{
			"haldir_check_permission",
			"Ask whether this session has a scope, or whether a call of a tool would be let through. A dry run: nothing is called or reserved.",
			`{"type":"object","properties":{` +
				`"scope":{"type":"string","description":"A scope such as read, execute or spend."},` +
				`"tool":{"type":"string","description":"A tool's name."},` +
				`"arguments":{"type":"object","description":"The arguments the tool would be called with."}}}`,
			`{"type":"object","properties":{"allowed":{"type":"boolean"},"session_id":{"type":"string"},` +
				`"scope":{"type":"string"},"tool":{"type":"string"},"verdict":{"type":"string","enum":["allow","ask","deny"]},` +
				`"policy":{"type":"string"},"rule":{"type":"string"},"reason":{"type":"string"},` +
				`"retry_at":{"type":"string","format":"date-time"},"expires_at":{"type":"string","format":"date-time"},"notice":{"type":"string"}},` +
				`"required":["allowed","session_id"]}`,
			g.checkPermission,
		},
		{
			"haldir_get_spend",
			"Get what this session has spent, by tool and against each limit.",
			`{"type":"object","properties":{}}`,
			`{"type":"object","properties":{"total_usd":{"type":"number"},"action_count":{"type":"integer"},` +
				`"by_tool":{"type":"object","additionalProperties":{"type":"number"}},"session_id":{"type":"string"},` +
				`"limit_usd":{"type":["number","null"]},"remaining_usd":{"type":["number","null"]},` +
				`"by_policy":{"type":"array","items":{"type":"object"}}},"required":["total_usd","action_count","by_tool","session_id"]}`,
			g.getSpend,
		},
		{
			"haldir_get_audit",
			"Get the newest entries of this session's audit trail.",
			`{"type":"object","properties":{` +
				`"limit":{"type":"integer","minimum":1,"maximum":200,"default":20,"description":"At most so many entries."},` +
				`"status":{"type":"string","enum":["running","allowed","error","denied","cancelled","abandoned","pending","approved"]},` +
				`"tool":{"type":"string","description":"Only entries of this tool."}}}`,
			`{"type":"object","properties":{"count":{"type":"integer"},"entries":{"type":"array","items":{"type":"object"}}},` +
				`"required":["count","entries"]}`,
			g.getAudit,
		},
	} {
		tool := mcp.NewToolWithRawSchema(t.name, t.description, json.RawMessage(t.in))
		tool.RawOutputSchema = json.RawMessage(t.out)
		tool.Annotations = mcp.ToolAnnotation{
			ReadOnlyHint: new(true), DestructiveHint: new(false), IdempotentHint: new(true), OpenWorldHint: new(false),
		}
		g.mcp.AddTool(tool, t.handler)
	}
	g.catalogue = g.list()
	return g
}

func (*governance) Name() string              { return ownName }
func (*governance) Bare() bool                { return true }
func (*governance) Trusted() bool             { return true }
func (*governance) Settled(context.Context)   {}
func (*governance) Connected(context.Context) {}
func (*governance) Restored(context.Context)  {}
func (*governance) Ready() bool               { return true }
func (*governance) Refuses(string) bool       { return true } // it asks for nothing

func (*governance) Notify([]byte)               {}
func (*governance) Keep(string, *upstream.Call) {}

// Catalogue implements [Upstream].
func (g *governance) Catalogue() upstream.Catalogue { return g.catalogue }

// list asks for the tools as of any other server.
func (g *governance) list() upstream.Catalogue {
	m, err := g.ask(context.Background(), "tools/list", json.RawMessage("{}"))
	if err != nil {
		g.s.o.Log.Error().Err(err).Msg("list haldir's own tools")
		return upstream.Catalogue{Known: true}
	}
	var list struct {
		Tools []json.RawMessage `json:"tools"`
	}
	if err := json.Unmarshal(m.Result, &list); err != nil {
		g.s.o.Log.Error().Err(err).Msg("list haldir's own tools")
	}
	return upstream.ReadCatalogue(list.Tools)
}

// Call implements [Upstream].
func (g *governance) Call(ctx context.Context, c upstream.Call) (wire.Message, error) {
	return g.ask(ctx, c.Method, c.Params)
}

func (g *governance) ask(ctx context.Context, method string, params json.RawMessage) (wire.Message, error) {
	if a, ok := wire.At(params, "arguments"); ok {
		ctx = context.WithValue(ctx, argumentsKey{}, a.Value)
	}
	response := g.mcp.HandleMessage(ctx, wire.Request(json.RawMessage("1"), method, params))
	raw, err := json.Marshal(response)
	if err != nil {
		return wire.Message{}, err
	}
	return wire.ParseLenient(raw)
}

// argumentsKey is where the arguments of a call are kept as they were sent:
// mcp-go reads them as any JSON, which rounds large numbers.
type argumentsKey struct{}

// permission is the answer of haldir_check_permission.
type permission struct {
	Allowed   bool      `json:"allowed"`
	SessionID string    `json:"session_id"`
	Scope     string    `json:"scope,omitempty"`
	Tool      string    `json:"tool,omitempty"`
	Verdict   string    `json:"verdict,omitempty"`
	Policy    string    `json:"policy,omitempty"`
	Rule      string    `json:"rule,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	RetryAt   time.Time `json:"retry_at,omitzero"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	Notice    string    `json:"notice,omitempty"` // of the config
}

func (g *governance) checkPermission(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
	var in struct {
		Scope     string          `json:"scope"`
		Tool      string          `json:"tool"`
		Arguments json.RawMessage `json:"arguments"`
	}
	if err := bind(ctx, &in); err != nil {
		return mcp.NewToolResultError(err.Error()), nil
	}
	if in.Scope == "" && in.Tool == "" {
		return mcp.NewToolResultError("give a scope or a tool"), nil
	}
	if kind := wire.KindOf(in.Arguments); in.Arguments != nil && kind != "an object" && kind != "null" {
		return mcp.NewToolResultErrorf("arguments must be an object, not %s", kind), nil
	}
	rules := g.s.rulesOf(ctx)
	sp, _, err := g.s.o.Ledger.Spent(ctx, rules.Use, rules.Engine)
	if err != nil {
		return mcp.NewToolResultError(err.Error()), nil
	}
	session := sp.Session
	out := permission{Allowed: true, SessionID: session.ID, Scope: in.Scope, ExpiresAt: session.ExpiresAt, Notice: rules.Notice}
	stopped, err := g.s.o.Ledger.Stopped(ctx)
	if err != nil {
		return mcp.NewToolResultError(err.Error()), nil
	}
	if left := session.ExpiresAt.Sub(sp.Now); !session.ExpiresAt.IsZero() && left > 0 && left <= expiresSoon {
		out.Notice = strings.TrimPrefix(out.Notice+"; "+fmt.Sprintf("this session expires in %s; the user can renew it with: %s session renew %s",
			left.Round(time.Second), g.s.o.Command, session.ID), "; ")
	}
	switch {
	case stopped != nil:
		out.Allowed, out.Reason = false, stopped.Sentence()
	case !session.RevokedAt.IsZero():
		out.Allowed, out.Reason = false, "This session has been revoked"
	case !session.ExpiresAt.IsZero() && !sp.Now.Before(session.ExpiresAt):
		out.Allowed, out.Reason = false, "This session has expired"
	case in.Scope != "" && !session.State().Has(in.Scope):
		out.Allowed, out.Reason = false, fmt.Sprintf("This session does not have the scope '%s'", in.Scope)
	}
	if in.Tool != "" {
		e, _, d, err := g.s.explain(ctx, rules, in.Tool, in.Arguments)
		if err != nil {
			return mcp.NewToolResultError(err.Error()), nil
		}
		out.Tool, out.Verdict = e.ID(), d.Verdict.String()
		if d.Verdict != policy.Allow {
			out.Allowed, out.Policy, out.Rule, out.Reason, out.RetryAt = false, d.Policy, d.Rule, d.Reason, d.RetryAt
		}
	}
	return structured(out)
}

// expiresSoon is how long before its end a session warns of it.
const expiresSoon = 10 * time.Minute

// SpendReport is the answer of haldir_get_spend.
type SpendReport struct {
	TotalUSD     policy.Micros            `json:"total_usd"`
	ActionCount  int64                    `json:"action_count"`
	ByTool       map[string]policy.Micros `json:"by_tool"`
	SessionID    string                   `json:"session_id"`
	LimitUSD     *policy.Micros           `json:"limit_usd"`
	RemainingUSD *policy.Micros           `json:"remaining_usd"`
	ByPolicy     []BudgetReport           `json:"by_policy"`
}

// BudgetReport is one spend limit in a [SpendReport].
type BudgetReport struct {
	Rule         string        `json:"rule"`
	Per          string        `json:"per"`
	LimitUSD     policy.Micros `json:"limit_usd"`
	UsedUSD      policy.Micros `json:"used_usd"`
	RemainingUSD policy.Micros `json:"remaining_usd"`
	ResetsAt     time.Time     `json:"resets_at,omitzero"`
	Shadow       bool          `json:"shadow,omitempty"`
}

// Report turns what the ledger knows of a session's spend into the report. The
// lower of the session's limit and those of its policies that never reset is
// the limit.
func Report(sp ledger.Spend, budgets []policy.Budget) SpendReport {
	r := SpendReport{TotalUSD: sp.Total, ActionCount: sp.Calls, ByTool: sp.ByTool, SessionID: sp.Session.ID, ByPolicy: []BudgetReport{}}
	limit := func(l, remaining policy.Micros) {
		if r.RemainingUSD == nil || remaining < *r.RemainingUSD {
			r.LimitUSD, r.RemainingUSD = &l, &remaining
		}
	}
	if l := sp.Session.Limit; l != nil {
		limit(*l, max(0, *l-sp.Total))
	}
	for i, b := range budgets {
		left := max(0, b.Limit-sp.Used[i])
		r.ByPolicy = append(r.ByPolicy, BudgetReport{
			Rule: b.Rule, Per: b.Per, LimitUSD: b.Limit, UsedUSD: sp.Used[i], RemainingUSD: left, ResetsAt: b.ResetsAt, Shadow: b.Shadow,
		})
		if b.Per == policy.PerSession && !b.Shadow && b.All {
			limit(b.Limit, left)
		}
	}
	return r
}

func (g *governance) getSpend(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
	if err := bind(ctx, &struct{}{}); err != nil {
		return mcp.NewToolResultError(err.Error()), nil
	}
	rules := g.s.rulesOf(ctx)
	sp, budgets, err := g.s.o.Ledger.Spent(ctx, rules.Use, rules.Engine)
	if err != nil {
		return mcp.NewToolResultError(err.Error()), nil
	}
	return structured(Report(sp, budgets))
}

// maxAudit bounds the answer of haldir_get_audit.
const maxAudit = 200

func (g *governance) getAudit(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
	in := struct {
		Limit  int          `json:"limit"`
		Status audit.Status `json:"status"`
		Tool   string       `json:"tool"`
	}{Limit: 20}
	if err := bind(ctx, &in); err != nil {
		return mcp.NewToolResultError(err.Error()), nil
	}
	if in.Limit < 1 || in.Limit > maxAudit {
		return mcp.NewToolResultErrorf("limit must be between 1 and %d", maxAudit), nil
	}
	if in.Status != "" && !slices.Contains(audit.CallStatuses, in.Status) {
		return mcp.NewToolResultErrorf("unknown status %q", in.Status), nil
	}
	f := audit.Filter{Session: g.s.rulesOf(ctx).Use.ID, Status: in.Status, Limit: in.Limit, Calls: true}
	if in.Tool != "" {
		f.Tool = in.Tool
		if e, err := g.s.current().find(in.Tool); err == nil {
			f.Tool = e.ID()
		}
	}
	entries, _, err := g.s.o.Ledger.Find(ctx, f)
	if err != nil {
		return mcp.NewToolResultError(err.Error()), nil
	}
	if entries == nil {
		entries = []audit.Entry{}
	}
	return structured(map[string]any{"count": len(entries), "entries": entries})
}

// bind reads the arguments of a call, refusing what is not known: a misspelt
// filter must not silently select everything.
func bind(ctx context.Context, into any) error {
	raw, _ := ctx.Value(argumentsKey{}).(json.RawMessage)
	if raw == nil || string(raw) == "null" {
		return nil
	}
	members, err := wire.Members(raw)
	if err != nil {
		return errors.New("the arguments must be an object")
	}
	known, err := json.Marshal(into)
	if err != nil {
		return err
	}
	fields, err := wire.Members(known)
	if err != nil {
		return err
	}
	for _, m := range members {
		if _, ok := wire.Find(fields, m.Name); !ok {
			return fmt.Errorf("unknown argument %q", m.Name)
		}
	}
	return json.Unmarshal(raw, into)
}

// structured gives a result in both forms that MCP knows.
func structured(v any) (*mcp.CallToolResult, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return mcp.NewToolResultStructured(json.RawMessage(text), string(text)), nil
}
