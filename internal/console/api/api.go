package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
	"github.com/haldir-mcp/haldir/upstream"
)

// Ledger is what the API needs of the ledger.
type Ledger interface {
	Session(ctx context.Context, u ledger.Use) (ledger.Session, error)
	Sessions(ctx context.Context) ([]ledger.Session, error)
	MintSession(ctx context.Context, terms ledger.Terms, key, client string) (ledger.Session, error)
	Spent(ctx context.Context, u ledger.Use, b ledger.Budgeter) (ledger.Spend, []policy.Budget, error)
	Counters(ctx context.Context, counter string, most int) ([]ledger.Used, time.Time, error)
	Find(ctx context.Context, f audit.Filter) ([]audit.Entry, uint64, error)
	Entry(ctx context.Context, seq uint64) (audit.Entry, bool, error)
	Walk(ctx context.Context, first uint64, f func(key uint64, raw []byte) error) (uint64, audit.Hash, error)
	Verify(ctx context.Context, progress func(done uint64), extra ...audit.Checkpoint) (*audit.Verifier, error)
	Newest() (uint64, error)
	Pruned(ctx context.Context) (audit.Pruned, error)
	Keys(ctx context.Context) ([]ledger.Key, error)
	CreateKey(ctx context.Context, terms ledger.KeyTerms, parent string) (ledger.Key, string, error)
	RevokeKey(ctx context.Context, id string) (ledger.Key, error)
	BeginOnce(ctx context.Context, name, digest audit.Hash) (ledger.Once, error)
	EndOnce(ctx context.Context, name audit.Hash, answer []byte) error
	Approvals(ctx context.Context) ([]ledger.Approval, error)
	Pending(ctx context.Context) (int, error)
	Destinations(ctx context.Context) ([]ledger.Destination, error)
	Answer(ctx context.Context, id string, a ledger.Answer) (ledger.Approval, error)
	Stop(ctx context.Context, reason string) (ledger.Stopped, error)
	Resume(ctx context.Context) (bool, error)
	Stopped(ctx context.Context) (*ledger.Stopped, error)
	Revoke(ctx context.Context, id string, cancel bool) (ledger.Session, error)
	Bell() string
}

// Proxy makes and judges calls.
type Proxy interface {
	CallAs(ctx context.Context, a proxy.As, tool string, arguments json.RawMessage) (proxy.Reply, error)
	ExplainAs(ctx context.Context, a proxy.As, tool string, arguments json.RawMessage) (proxy.Entry, ledger.Session, policy.Decision, error)
	ForbidsAs(ctx context.Context, a proxy.As, tool string, arguments json.RawMessage) (*proxy.Refusal, error)
	Tools(ctx context.Context) ([]proxy.Entry, []proxy.Note)
}

// Editor changes haldir.yaml and puts it in force. The errors of what cannot be are
// [*Problem]; by says who wants it.
type Editor interface {
	AddPolicy(ctx context.Context, entry json.RawMessage, by string) (id string, warnings []string, err error)
	RemovePolicy(ctx context.Context, id, by string) error
	AddUpstream(ctx context.Context, entry json.RawMessage, by string) (warnings []string, err error)
	RemoveUpstream(ctx context.Context, name, by string) error
}

// Upstream is what the API needs of a server behind haldir.
type Upstream struct {
	*upstream.Upstream
	URL     string // without what may be secret; "" for a command
	Command bool
}

// Options configure [New].
type Options struct {
	Ledger    Ledger
	Proxy     Proxy
	Editor    Editor
	Rules     func() (*policy.Engine, policy.Ruleset) // in force
	Upstreams func() []Upstream                       // likewise, in the order of the config
	Describe  func(policy.Rule) string                // what a rule does, in a sentence
	Clean     func(string) string                     // takes secrets out of an upstream's words
	Clock     func() time.Time
	Version   string
	Log       zerolog.Logger
}

// API answers requests. Its methods are safe for concurrent use.
type API struct {
	o       Options
	routes  []Route
	stats   stats
	counted counted
	verify  chan struct{} // holds one while the chain is verified, which takes long
	feeds   chan struct{} // one for each open stream of events
}

// maxFeeds is how many streams of events may be open.
const maxFeeds = 32

// Route is one thing that the API can do.
type Route struct {
	Method string
	Path   string // as net/http's ServeMux has it, without the method
	Scope  Scope

	do   func(*request) (*reply, error)
	once bool // an Idempotency-Key is obeyed by who dispatches; see once.go
}

// New makes an API.
func New(o Options) *API {
	a := &API{o: o, counted: counted{turn: make(chan struct{}, 1)}, verify: make(chan struct{}, 1), feeds: make(chan struct{}, maxFeeds)}
	a.routes = []Route{
		{Method: "GET", Path: "/v1/proxy/upstreams", Scope: ProxyRead, do: a.listUpstreams},
		{Method: "POST", Path: "/v1/proxy/upstreams", Scope: ProxyWrite, do: a.addUpstream, once: true},
		{Method: "DELETE", Path: "/v1/proxy/upstreams/{name}", Scope: ProxyWrite, do: a.removeUpstream},
		{Method: "GET", Path: "/v1/proxy/tools", Scope: ProxyRead, do: a.listTools},
		{Method: "POST", Path: "/v1/proxy/call", Scope: ProxyCall, do: a.call},
		{Method: "GET", Path: "/v1/proxy/policies", Scope: ProxyRead, do: a.listPolicies},
		{Method: "POST", Path: "/v1/proxy/policies", Scope: ProxyWrite, do: a.addPolicy, once: true},
		{Method: "DELETE", Path: "/v1/proxy/policies/{id}", Scope: ProxyWrite, do: a.removePolicy},
		{Method: "GET", Path: "/v1/sessions", Scope: SessionsRead, do: a.listSessions},
		{Method: "POST", Path: "/v1/sessions", Scope: SessionsWrite, do: a.createSession, once: true},
		{Method: "GET", Path: "/v1/sessions/{id}", Scope: SessionsRead, do: a.showSession},
		{Method: "DELETE", Path: "/v1/sessions/{id}", Scope: SessionsWrite, do: a.revokeSession},
		{Method: "POST", Path: "/v1/sessions/{id}/check", Scope: SessionsRead, do: a.checkSession},
		{Method: "GET", Path: "/v1/audit", Scope: AuditRead, do: a.listAudit},
		{Method: "GET", Path: "/v1/audit/stats", Scope: AuditRead, do: a.auditStats},
		{Method: "GET", Path: "/v1/audit/spend", Scope: AuditRead, do: a.auditSpend},
		{Method: "GET", Path: "/v1/audit/verify", Scope: AuditRead, do: a.verifyAudit},
		{Method: "GET", Path: "/v1/audit/export", Scope: AuditRead, do: a.exportAudit},
		{Method: "GET", Path: "/v1/approvals", Scope: ApprovalsRead, do: a.listApprovals},
		{Method: "GET", Path: "/v1/approvals/pending", Scope: ApprovalsRead, do: a.pendingApprovals},
		{Method: "GET", Path: "/v1/approvals/{id}", Scope: ApprovalsRead, do: a.showApproval},
		{Method: "POST", Path: "/v1/approvals/{id}/approve", Scope: ApprovalsWrite, do: a.approve},
		{Method: "POST", Path: "/v1/approvals/{id}/deny", Scope: ApprovalsWrite, do: a.deny},
		{Method: "GET", Path: "/v1/limits", Scope: ProxyRead, do: a.listLimits},
		{Method: "GET", Path: "/v1/pins", Scope: ProxyRead, do: a.listPins},
		{Method: "POST", Path: "/v1/pins/{upstream}/accept", Scope: ProxyWrite, do: a.acceptPins},
		{Method: "GET", Path: "/v1/stop", Scope: ProxyRead, do: a.showStop},
		{Method: "POST", Path: "/v1/stop", Scope: StopWrite, do: a.stop},
		{Method: "DELETE", Path: "/v1/stop", Scope: StopWrite, do: a.resume},
		{Method: "GET", Path: "/v1/events", Scope: AuditRead, do: a.events},
		{Method: "GET", Path: "/v1/keys", Scope: KeysRead, do: a.listKeys},
		{Method: "POST", Path: "/v1/keys", Scope: KeysWrite, do: a.createKey},
		{Method: "DELETE", Path: "/v1/keys/{id}", Scope: KeysWrite, do: a.revokeKey},
		{Method: "GET", Path: "/metrics", Scope: MetricsRead, do: a.prometheus},
		{Method: "GET", Path: "/v1/openapi.json", Scope: anyKey, do: a.openAPI},
	}
	return a
}

// Routes lists what the API can do.
func (a *API) Routes() []Route { return slices.Clone(a.routes) }

// Handler answers requests of callers; authenticate says who makes one, and may have
// answered it itself, which it says by nil.
func (a *API) Handler(authenticate func(http.ResponseWriter, *http.Request) *Caller) http.Handler {
	byPath := map[string][]Route{}
	for _, r := range a.routes {
		byPath[r.Path] = append(byPath[r.Path], r)
	}
	mux := http.NewServeMux()
	for path, routes := range byPath {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if caller := authenticate(w, r); caller != nil {
				a.dispatch(w, r, caller, routes)
			}
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if authenticate(w, r) != nil { // what there is not is not told to strangers either
			notFound("the API has no %s; GET /v1/openapi.json describes it", r.URL.Path).Write(w)
		}
	})
	return mux
}

// writeGrace is how long a client may take to read an answer.
const writeGrace = 30 * time.Second

func (a *API) dispatch(w http.ResponseWriter, hr *http.Request, caller *Caller, routes []Route) {
	r := &request{Request: hr, w: w, caller: caller}
	method := hr.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	i := slices.IndexFunc(routes, func(x Route) bool { return x.Method == method })
	if i < 0 {
		var methods []string
		for _, x := range routes {
			methods = append(methods, x.Method)
		}
		p := NewProblem(http.StatusMethodNotAllowed, "method", "%s takes %s", hr.URL.Path, strings.Join(methods, ", "))
		p.allow = strings.Join(methods, ", ")
		p.Write(w)
		return
	}
	route := routes[i]
	if !caller.May(route.Scope) {
		NewProblem(http.StatusForbidden, "forbidden", "this key does not have the scope %s", route.Scope).Write(w)
		return
	}
	out, err := a.answer(r, route)
	if out == nil && err == nil {
		return // it was long
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeGrace)) // tests have writers without
	if err != nil {
		problemOf(err).Write(w)
		return
	}
	out.write(w)
}

// answer runs a route. A panic is a mistake of ours; the client is told of it as of any
// other.
func (a *API) answer(r *request, route Route) (out *reply, err error) {
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			a.o.Log.Error().Interface("panic", p).Str("route", route.Method+" "+route.Path).Stack().Msg("internal error")
			out, err = nil, NewProblem(http.StatusInternalServerError, "internal", "internal error in haldir; its log says more")
		}
	}()
	if err := r.read(); err != nil {
		return nil, err
	}
	_ = http.NewResponseController(r.w).SetReadDeadline(time.Time{}) // it is read; a call may take long. Tests have writers without
	if route.once {
		return a.once(r, "", route.do)
	}
	return route.do(r)
}

func (o *reply) write(w http.ResponseWriter) {
	if o.location != "" {
		w.Header().Set("Location", o.location)
	}
	if o.status == 0 {
		o.status = http.StatusOK
	}
	if raw, ok := o.body.(rawBody); ok {
		w.Header().Set("Content-Type", raw.kind)
		w.WriteHeader(o.status)
		_, _ = w.Write(raw.text) // who does not read it is gone
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(o.status)
	_, _ = w.Write(encode(o.body)) // likewise
}

// rawBody is a body that is written already.
type rawBody struct {
	kind string
	text []byte
}
