package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/upstream"
	"github.com/haldir-mcp/haldir/upstream/pins"
)

// approvalJSON is a call that waits for a person, or that was refused because nobody could
// be asked.
type approvalJSON struct {
	ID         string          `json:"id"` // apr_ and the number of the attempt's record
	Session    string          `json:"session_id"`
	Agent      string          `json:"agent_id"`
	Client     string          `json:"client"`
	Upstream   string          `json:"upstream"`
	Tool       string          `json:"tool"`
	Rules      []string        `json:"rules"`
	Reason     string          `json:"reason"`
	Arguments  json.RawMessage `json:"arguments"` // a text if they are cut short
	Size       uint64          `json:"arguments_size"`
	SHA256     string          `json:"arguments_sha256"`
	Cost       policy.Micros   `json:"cost_usd"`
	ForSession bool            `json:"for_session"` // it may be answered for the whole session
	Created    time.Time       `json:"created"`
	Deadline   time.Time       `json:"deadline"`
	Waiting    bool            `json:"waiting"` // else the call was refused; approved, its next try passes
}

func approvalOf(p ledger.Approval) approvalJSON {
	arguments := json.RawMessage(p.Arguments)
	if uint64(len(arguments)) != p.Size || valid(arguments) == nil {
		arguments = bytes.TrimSpace(encode(strings.ToValidUTF8(string(p.Arguments), "\ufffd")))
	}
	return approvalJSON{
		p.ID, p.Session, p.Agent, p.Client, p.Upstream, p.Tool, append([]string{}, p.Rules...), p.Reason, arguments, p.Size, p.SHA256.String(), p.Cost,
		p.ForSession, p.Created.UTC(), p.Deadline.UTC(), p.Waiting,
	}
}

func (a *API) listApprovals(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	list, err := a.approvals(r.Context())
	return &reply{body: map[string]any{"count": len(list), "approvals": list}}, err
}

func (a *API) approvals(ctx context.Context) ([]approvalJSON, error) {
	list, err := a.o.Ledger.Approvals(ctx)
	out := []approvalJSON{}
	for _, p := range list {
		out = append(out, approvalOf(p))
	}
	return out, err
}

// pendingApprovals is the list in the original's shape.
func (a *API) pendingApprovals(r *request) (*reply, error) {
	if err := r.takes("agent_id"); err != nil {
		return nil, err
	}
	list, err := a.approvals(r.Context())
	if err != nil {
		return nil, err
	}
	type pending struct {
		RequestID string        `json:"request_id"`
		AgentID   string        `json:"agent_id"`
		Tool      string        `json:"tool"`
		Amount    policy.Micros `json:"amount"`
		Reason    string        `json:"reason"`
		CreatedAt time.Time     `json:"created_at"`
	}
	out := []pending{}
	for _, p := range list {
		if of := r.query.Get("agent_id"); of == "" || of == p.Agent {
			out = append(out, pending{p.ID, p.Agent, p.Upstream + "/" + p.Tool, p.Cost, p.Reason, p.Created})
		}
	}
	return &reply{body: map[string]any{"count": len(out), "requests": out}}, nil
}

// showApproval shows one that waits, or what became of it.
func (a *API) showApproval(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	id := r.PathValue("id")
	list, err := a.approvals(r.Context())
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(list, func(p approvalJSON) bool { return p.ID == id }); i >= 0 {
		return &reply{body: struct {
			RequestID string `json:"request_id"`
			Status    string `json:"status"`
			approvalJSON
		}{id, "pending", list[i]}}, nil
	}
	seq, err := strconv.ParseUint(strings.TrimPrefix(id, "apr_"), 10, 64)
	if err != nil || !strings.HasPrefix(id, "apr_") {
		return nil, notFound("there is no approval %q", wire.Printable(id, 100))
	}
	e, ok, err := a.o.Ledger.Entry(r.Context(), seq)
	if err != nil {
		return nil, err
	}
	if !ok || e.Policy != string(policy.TypeApproval) {
		return nil, notFound("there is no approval %s", id)
	}
	return &reply{body: map[string]any{
		"request_id": id, "id": id, "status": e.Status, "session_id": e.SessionID, "agent_id": e.AgentID, "upstream": e.Upstream, "tool": e.Tool,
		"reason": e.FlagReason,
	}}, nil
}

// decision is what a person says, or a program in a person's place.
type decision struct {
	ForSession bool   `json:"for_session"`
	Note       string `json:"note"`
	DecidedBy  string `json:"decided_by"`
}

// maxNote bounds a note, in bytes: it goes into the record.
const maxNote = 1000

func (a *API) approve(r *request) (*reply, error) { return a.decide(r, true) }
func (a *API) deny(r *request) (*reply, error)    { return a.decide(r, false) }

func (a *API) decide(r *request, allow bool) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	var d decision
	if err := r.maybe(&d); err != nil {
		return nil, err
	}
	note := d.Note
	if d.DecidedBy != "" {
		note = strings.TrimSuffix("by "+d.DecidedBy+": "+d.Note, ": ")
	}
	switch {
	case len(note) > maxNote || !utf8.ValidString(note):
		return nil, malformed("a note may have %d bytes", maxNote)
	case d.ForSession && !allow:
		return nil, malformed("for_session belongs to approve")
	}
	answer := ledger.Answer{Allow: allow, ForSession: d.ForSession, Channel: ledger.ChannelAPI, Note: note}
	if r.caller.Person {
		answer.Channel = ledger.ChannelConsole
	} else {
		answer.Note = strings.TrimSuffix(r.caller.client()+": "+note, ": ")
	}
	id := r.PathValue("id")
	p, err := a.o.Ledger.Answer(r.Context(), id, answer)
	if errors.Is(err, ledger.ErrNoApproval) {
		return nil, a.noApproval(r, id)
	}
	if err != nil {
		return nil, err
	}
	return &reply{body: struct {
		RequestID string `json:"request_id"`
		Approved  bool   `json:"approved"`
		Denied    bool   `json:"denied"`
		approvalJSON
	}{id, allow, !allow, approvalOf(p)}}, nil
}

// noApproval tells one that was answered already from one that never was.
func (a *API) noApproval(r *request, id string) error {
	if seq, err := strconv.ParseUint(strings.TrimPrefix(id, "apr_"), 10, 64); err == nil && strings.HasPrefix(id, "apr_") {
		if e, ok, err := a.o.Ledger.Entry(r.Context(), seq); err == nil && ok && e.Policy == string(policy.TypeApproval) {
			return NewProblem(http.StatusConflict, "conflict", "%s does not wait any more: it was answered, or its time has run out (%s)", id, e.Status)
		}
	}
	return notFound("no approval %q waits: it was answered, its time has run out, or it never was", wire.Printable(id, 100))
}

// stopState says since when every call is refused; nil while calls go through.
type stopState struct {
	Stopped *ledger.Stopped `json:"stopped"`
}

func (a *API) showStop(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	s, err := a.o.Ledger.Stopped(r.Context())
	return &reply{body: stopState{s}}, err
}

func (a *API) stop(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	var body struct {
		Reason string `json:"reason"`
	}
	if err := r.maybe(&body); err != nil {
		return nil, err
	}
	if len(body.Reason) > maxNote || !utf8.ValidString(body.Reason) {
		return nil, malformed("a reason may have %d bytes", maxNote)
	}
	reason := body.Reason
	if !r.caller.Person {
		reason = strings.TrimSuffix(r.caller.client()+": "+reason, ": ")
	}
	if _, err := a.o.Ledger.Stop(r.Context(), reason); err != nil {
		return nil, err
	}
	return a.showStop(r)
}

func (a *API) resume(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	if _, err := a.o.Ledger.Resume(r.Context()); err != nil {
		return nil, err
	}
	return a.showStop(r)
}

// pinsJSON is what is pinned of an upstream, and what is not as it is pinned.
type pinsJSON struct {
	Upstream string         `json:"upstream"`
	Mode     string         `json:"mode"`
	Since    *string        `json:"since"`
	Tools    int            `json:"tools"`
	Changes  []changeJSON   `json:"changes"`
	Findings []pins.Finding `json:"findings"`
}

type changeJSON struct {
	Kind   string          `json:"kind"`
	Name   string          `json:"name,omitempty"`
	Old    json.RawMessage `json:"old"`
	New    json.RawMessage `json:"new"`
	Blocks string          `json:"blocks,omitempty"`
	Digest string          `json:"digest"` // of new; see POST
}

func describePins(u *upstream.Upstream) pinsJSON {
	p := u.Pinned()
	out := pinsJSON{
		Upstream: u.Name(), Mode: p.Mode, Since: stamp(p.Record.Since), Tools: len(p.Record.Tools), Changes: []changeJSON{},
		Findings: append([]pins.Finding{}, p.Found...),
	}
	for _, c := range p.Changes {
		out.Changes = append(out.Changes, changeJSON{string(c.Kind), c.Name, valid(c.Old), valid(c.New), c.Blocks, c.Digest()})
	}
	return out
}

func (a *API) listPins(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	list := []pinsJSON{}
	for _, u := range a.o.Upstreams() {
		list = append(list, describePins(u.Upstream))
	}
	return &reply{body: map[string]any{"count": len(list), "pins": list}}, nil
}

func (a *API) acceptPins(r *request) (*reply, error) {
	if err := r.takes(); err != nil {
		return nil, err
	}
	var body struct {
		Digests []string `json:"digests"` // nil: all that there are
	}
	if err := r.maybe(&body); err != nil {
		return nil, err
	}
	name := r.PathValue("upstream")
	ups := a.o.Upstreams()
	i := slices.IndexFunc(ups, func(u Upstream) bool { return u.Name() == name })
	if i < 0 {
		return nil, notFound("there is no upstream %q", wire.Printable(name, 100))
	}
	u := ups[i]
	changes := u.Pinned().Changes
	if body.Digests != nil {
		var chosen []pins.Change
		for _, d := range body.Digests {
			at := slices.IndexFunc(changes, func(c pins.Change) bool { return c.Digest() == d })
			if at < 0 {
				return nil, NewProblem(http.StatusConflict, "conflict", "upstream %s has changed again, or has not changed like this: it has no change with the digest %q; look at GET /v1/pins", name, wire.Printable(d, 100))
			}
			chosen = append(chosen, changes[at])
		}
		changes = chosen
	}
	if len(changes) == 0 {
		return nil, NewProblem(http.StatusConflict, "conflict", "upstream %s is as it is pinned; there is nothing to accept", name)
	}
	if s := u.Status(); s.State != upstream.StateReady {
		return nil, NewProblem(http.StatusConflict, "conflict", "upstream %s is not connected, so that it is not known what it offers now", name)
	}
	if err := u.Accept(r.Context(), changes); err != nil {
		return nil, err
	}
	accepted := []string{}
	for _, c := range changes {
		accepted = append(accepted, c.Key())
	}
	return &reply{body: map[string]any{"upstream": name, "accepted": accepted}}, nil
}
