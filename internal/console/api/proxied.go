package api

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
	"github.com/haldir-mcp/haldir/upstream/oauth"
)

// upstreamJSON is a server behind haldir as the API shows it.
type upstreamJSON struct {
	Name       string         `json:"name"`
	URL        string         `json:"url,omitempty"` // without what may be secret
	Transport  string         `json:"transport"`     // http or stdio
	State      upstream.State `json:"state"`
	Healthy    bool           `json:"healthy"`
	Server     string         `json:"server,omitempty"`
	Era        string         `json:"era,omitempty"` // the revision of MCP that is spoken
	Since      *string        `json:"since,omitempty"`
	Tools      int            `json:"tools"`
	Withheld   int            `json:"withheld"`
	PinChanges int            `json:"pin_changes"`
	Ends       int            `json:"ends_lately"`
	Auth       *oauth.Granted `json:"auth,omitempty"`
	LatencyMS  *uint64        `json:"latency_ms"` // the median of the last 24 hours; null without a call
	Calls      int            `json:"calls"`      // in the last 24 hours
	Errors     int            `json:"errors"`
	Error      string         `json:"error,omitempty"`
}

func (a *API) upstream(u Upstream, t *tally) upstreamJSON {
	st, c := u.Status(), u.Catalogue()
	out := upstreamJSON{
		Name: u.Name(), URL: u.URL, Transport: "http", State: st.State, Healthy: st.State == upstream.StateReady || st.State == upstream.StateIdle && c.Known,
		Server: wire.Printable(st.Server, 200), Era: st.Version, Since: stamp(st.Since), Tools: len(c.Tools), Withheld: len(c.Withheld),
		PinChanges: len(u.Pinned().Changes), Ends: st.Ends,
	}
	if u.Command {
		out.Transport = "stdio"
	}
	if source, err := u.Auth(); err == nil {
		if g, err := source.Granted(); err == nil {
			g.Ended = a.o.Clean(g.Ended)
			out.Auth = &g
		}
	}
	if st.Err != nil {
		out.Error = wire.Printable(a.o.Clean(st.Err.Error()), 500)
	}
	if s := t.upstreams[u.Name()]; s != nil {
		out.Calls, out.Errors, out.LatencyMS = s.calls, s.errors, s.median()
	}
	return out
}

func (a *API) listUpstreams(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	t, err := a.stats.last(r.Context(), a.o.Ledger, a.o.Clock().Add(-day))
	if err != nil {
		return nil, err
	}
	list := []upstreamJSON{}
	for _, u := range a.o.Upstreams() {
		list = append(list, a.upstream(u, t))
	}
	return &reply{body: map[string]any{"count": len(list), "upstreams": list}}, nil
}

// connectWait is how long the answer to a new upstream waits for it.
const connectWait = 10 * time.Second

// upstreamKeys are what may be said of an upstream here. What starts a program or reads
// something of this machine may not.
var upstreamKeys = []string{"name", "url", "expose", "pins", "deny_requests", "timeouts"}

func (a *API) addUpstream(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	raw, err := r.object()
	if err != nil {
		return nil, err
	}
	members, err := wire.Members(raw)
	if err != nil {
		return nil, malformed("the body: %v", err)
	}
	for _, m := range members {
		if !slices.Contains(upstreamKeys, m.Name) {
			return nil, malformed("unknown member %q; over the API an upstream may have %s", wire.Printable(m.Name, 100), strings.Join(upstreamKeys, ", "))
		}
	}
	var body struct {
		Name string `json:"name"`
		URL  string `json:"url"`
	}
	if err := json.Unmarshal(raw, &body); err != nil || body.Name == "" || body.URL == "" {
		return nil, malformed("the body needs name and url, which are texts")
	}
	if reference(raw) {
		return nil, malformed("no ${…} may be given over the API: it would read what this machine keeps; write it in haldir.yaml")
	}
	warnings, err := a.o.Editor.AddUpstream(r.Context(), raw, r.caller.client())
	if err != nil {
		return nil, err
	}
	out := registered{Registered: true, Name: body.Name, URL: body.URL, ToolNames: []string{}, Warnings: warnings}
	for _, u := range a.o.Upstreams() {
		if u.Name() != body.Name {
			continue
		}
		ctx, cancel := context.WithTimeout(r.Context(), connectWait)
		u.Connected(ctx)
		cancel()
		shown := a.upstream(u, &tally{})
		out.Healthy, out.State, out.Error = shown.Healthy, shown.State, shown.Error
		for _, t := range u.Catalogue().Tools {
			out.ToolNames = append(out.ToolNames, t.Name)
		}
		out.Tools = len(out.ToolNames)
	}
	return &reply{status: http.StatusCreated, location: "/v1/proxy/upstreams", body: out}, nil
}

// registered is the answer to a new upstream.
type registered struct {
	Registered bool           `json:"registered"`
	Name       string         `json:"name"`
	URL        string         `json:"url"`
	Healthy    bool           `json:"healthy"`
	State      upstream.State `json:"state"`
	Tools      int            `json:"tools_discovered"`
	ToolNames  []string       `json:"tool_names"`
	Error      string         `json:"error,omitempty"`
	Warnings   []string       `json:"warnings,omitempty"`
}

// reference reports whether a text of a JSON document holds what haldir would replace.
func reference(raw json.RawMessage) bool {
	var found bool
	var look func(v any)
	look = func(v any) {
		switch v := v.(type) {
		case string:
			found = found || strings.Contains(v, "${")
		case []any:
			for _, x := range v {
				look(x)
			}
		case map[string]any:
			for _, x := range v {
				look(x)
			}
		}
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return true
	}
	look(v)
	return found
}

func (a *API) removeUpstream(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	if err := a.o.Editor.RemoveUpstream(r.Context(), name, r.caller.client()); err != nil {
		return nil, err
	}
	return &reply{body: map[string]any{"removed": true, "name": name}}, nil
}

// toolJSON is a tool as the API shows it.
type toolJSON struct {
	Name         string          `json:"name"` // as an agent sees it over MCP
	ID           string          `json:"id"`
	Upstream     string          `json:"upstream"`
	Tool         string          `json:"tool"` // as its upstream spells it
	Title        string          `json:"title,omitempty"`
	Description  string          `json:"description"`
	InputSchema  json.RawMessage `json:"inputSchema"`
	OutputSchema json.RawMessage `json:"outputSchema,omitempty"`
	Annotations  json.RawMessage `json:"annotations,omitempty"`
	Denied       bool            `json:"denied"` // policy could never allow it
}

func (a *API) listTools(r *request) (*reply, error) {
	if err := r.takes("upstream"); err != nil {
		return nil, err
	}
	entries, notes := a.o.Proxy.Tools(r.Context())
	list := []toolJSON{}
	for _, e := range entries {
		if of := r.query.Get("upstream"); of != "" && e.Upstream != of {
			continue
		}
		t := toolJSON{Name: e.Exposed, ID: e.ID(), Upstream: e.Upstream, Tool: e.Tool, Denied: e.Hidden}
		members, err := wire.Members(e.Definition())
		if err != nil {
			continue // it would not be listed to an agent either
		}
		for _, m := range members {
			switch m.Name {
			case "title":
				t.Title, _ = wire.String(m.Value)
			case "description":
				t.Description, _ = wire.String(m.Value)
			case "inputSchema":
				t.InputSchema = valid(m.Value)
			case "outputSchema":
				t.OutputSchema = valid(m.Value)
			case "annotations":
				t.Annotations = valid(m.Value)
			}
		}
		if t.InputSchema == nil {
			t.InputSchema = json.RawMessage("{}")
		}
		list = append(list, t)
	}
	type noteJSON struct {
		Upstream string `json:"upstream"`
		Tool     string `json:"tool"`
		Text     string `json:"text"`
	}
	said := []noteJSON{}
	for _, n := range notes {
		said = append(said, noteJSON{n.Upstream, wire.Printable(n.Tool, 200), wire.Printable(n.Text, 500)})
	}
	return &reply{body: map[string]any{"count": len(list), "tools": list, "notes": said}}, nil
}

// valid is what of an upstream's JSON can be part of the API's.
func valid(raw json.RawMessage) json.RawMessage {
	if wire.Strict(raw) != nil {
		return nil
	}
	return raw
}

// ruleJSON is a policy as haldir.yaml and the API spell it.
type ruleJSON struct {
	ID           string         `json:"id"`
	Type         policy.Type    `json:"type"`
	Mode         string         `json:"mode"`
	Rule         string         `json:"rule,omitempty"` // what it does, in a sentence
	Tools        []string       `json:"tools,omitempty"`
	Upstreams    []string       `json:"upstreams,omitempty"`
	Agents       []string       `json:"agents,omitempty"`
	When         string         `json:"when,omitempty"`
	MaxUSD       *policy.Micros `json:"max_usd,omitempty"`
	Per          string         `json:"per,omitempty"`
	MaxCalls     *int64         `json:"max_calls,omitempty"`
	Window       float64        `json:"window_seconds,omitempty"`
	Timeout      string         `json:"timeout,omitempty"`
	Remember     []string       `json:"remember,omitempty"`
	MaxRepeats   *int64         `json:"max_repeats,omitempty"`
	AllowedHours *hoursJSON     `json:"allowed_hours,omitempty"`
	Days         []string       `json:"days,omitempty"`
	Timezone     string         `json:"timezone,omitempty"`
	Denied       int            `json:"denied"` // calls in the last 24 hours
}

type hoursJSON struct {
	Start string `json:"start"`
	End   string `json:"end"`
}

func ruleOf(id string, r policy.Rule) ruleJSON {
	out := ruleJSON{ID: id, Type: r.Type, Mode: "enforce", Tools: r.Tools, Upstreams: r.Upstreams, Agents: r.Agents, When: r.When}
	if r.Shadow {
		out.Mode = "shadow"
	}
	zone := func() {
		if r.Location != nil {
			out.Timezone = r.Location.String()
		}
	}
	switch r.Type {
	case policy.TypeDeny:
	case policy.TypeApproval:
		out.Timeout, out.Remember = cmp.Or(r.Timeout, policy.DefaultTimeout).String(), []string{"call", "session"}
		if r.Once {
			out.Remember = []string{"call"}
		}
	case policy.TypeLoop:
		out.MaxRepeats, out.Window = &r.MaxRepeats, r.Window.Seconds()
	case policy.TypeAllow:
		if out.Tools == nil {
			out.Tools = []string{}
		}
	case policy.TypeSpendLimit:
		out.MaxUSD, out.Per = &r.MaxUSD, cmp.Or(r.Per, policy.PerSession)
		if slices.Contains([]string{policy.PerHour, policy.PerDay, policy.PerWeek, policy.PerMonth}, r.Per) {
			zone()
		}
	case policy.TypeRateLimit:
		out.MaxCalls, out.Window, out.Per = &r.MaxCalls, r.Window.Seconds(), cmp.Or(r.Per, policy.PerTotal)
	case policy.TypeTimeWindow:
		if h := r.Hours; h != nil {
			clock := func(m int) string { return fmt.Sprintf("%02d:%02d", m/60, m%60) }
			out.AllowedHours = &hoursJSON{clock(h.Start), clock(h.End)}
		}
		for _, d := range r.Days {
			out.Days = append(out.Days, strings.ToLower(d.String()[:3]))
		}
		zone()
	}
	return out
}

// rules lists the policies in force.
func (a *API) rules(t *tally) []ruleJSON {
	engine, set := a.o.Rules()
	ids := engine.Rules()
	list := []ruleJSON{}
	for i, r := range set.Policies {
		rule := ruleOf(ids[i], r)
		rule.Denied = t.rules[ids[i]].denied
		if a.o.Describe != nil {
			rule.Rule = a.o.Describe(r)
		}
		list = append(list, rule)
	}
	return list
}

func (a *API) listPolicies(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	t, err := a.stats.last(r.Context(), a.o.Ledger, a.o.Clock().Add(-day))
	if err != nil {
		return nil, err
	}
	list := a.rules(t)
	return &reply{body: map[string]any{"count": len(list), "policies": list}}, nil
}

func (a *API) addPolicy(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	raw, err := r.object()
	if err != nil {
		return nil, err
	}
	id, warnings, err := a.o.Editor.AddPolicy(r.Context(), raw, r.caller.client())
	if err != nil {
		return nil, err
	}
	out := struct {
		Added    bool        `json:"added"`
		ID       string      `json:"id"`
		Type     policy.Type `json:"type"`
		Policy   *ruleJSON   `json:"policy,omitempty"`
		Warnings []string    `json:"warnings,omitempty"`
	}{Added: true, ID: id, Warnings: warnings}
	for _, rule := range a.rules(&tally{}) {
		if rule.ID == id {
			out.Type, out.Policy = rule.Type, &rule
		}
	}
	return &reply{status: http.StatusCreated, location: "/v1/proxy/policies/" + id, body: out}, nil
}

func (a *API) removePolicy(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	id := r.PathValue("id")
	if err := a.o.Editor.RemovePolicy(r.Context(), id, r.caller.client()); err != nil {
		return nil, err
	}
	return &reply{body: map[string]any{"removed": true, "id": id}}, nil
}
