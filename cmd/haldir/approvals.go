package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/approval"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
)

func approvalsCommand(a *app) *cobra.Command {
	cmd := group("approvals", "Answer calls that need a person's word: live, or one by one",
		approvalsList(a), approvalsShow(a), approvalsApprove(a), approvalsDeny(a))
	cmd.Long = "approvals, without a verb, shows calls that wait for a person as they come, and asks\n" +
		"about each, until it is interrupted. While it runs, a call for which the client shows\n" +
		"no form waits instead of being refused at once."
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return a.attendApprovals(cmd.Context()) }
	return cmd
}

// approvalJSON is a request as --json prints it.
type approvalJSON struct {
	ID         string          `json:"id"`
	Session    string          `json:"session_id"`
	Agent      string          `json:"agent_id"`
	Client     string          `json:"client,omitempty"`
	Upstream   string          `json:"upstream"`
	Tool       string          `json:"tool"`
	Rules      []string        `json:"rules"`
	Reason     string          `json:"reason"`
	Cost       policy.Micros   `json:"cost_usd"`
	Arguments  json.RawMessage `json:"arguments"` // a text, if they were cut
	Size       uint64          `json:"arguments_size"`
	SHA256     string          `json:"arguments_sha256"`
	ForSession bool            `json:"for_session"`
	Created    time.Time       `json:"created"`
	Deadline   time.Time       `json:"deadline"`
	Waiting    bool            `json:"waiting"`
}

func describeApproval(p ledger.Approval) approvalJSON {
	arguments := json.RawMessage(p.Arguments)
	if !json.Valid(arguments) {
		arguments = wire.Quote(string(p.Arguments))
	}
	return approvalJSON{
		p.ID, p.Session, p.Agent, p.Client, p.Upstream, p.Tool, p.Rules, p.Reason, p.Cost, arguments, p.Size, p.SHA256.String(), p.ForSession,
		p.Created, p.Deadline, p.Waiting,
	}
}

func approvalsList(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the calls that wait for a person, the oldest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.openState(); err != nil {
				return err
			}
			list, err := a.ledger.Approvals(cmd.Context())
			if err != nil {
				return err
			}
			all := []approvalJSON{}
			var rows [][]string
			for _, p := range list {
				all = append(all, describeApproval(p))
				state := "waits"
				if !p.Waiting {
					state = "listed"
				}
				rows = append(rows, []string{p.ID, state, time.Until(p.Deadline).Round(time.Second).String(), p.Agent, p.Upstream + "/" + p.Tool})
			}
			if asJSON {
				return a.printJSON(map[string]any{"approvals": all})
			}
			if len(rows) == 0 {
				a.say("nothing waits for a person")
				return nil
			}
			return a.printTable([]string{"REQUEST", "STATE", "LEFT", "AGENT", "TOOL"}, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// request opens the ledger and finds a request by its id.
func (a *app) request(ctx context.Context, id string) (ledger.Approval, error) {
	if err := a.openState(); err != nil {
		return ledger.Approval{}, err
	}
	list, err := a.ledger.Approvals(ctx)
	if err != nil {
		return ledger.Approval{}, err
	}
	if i := slices.IndexFunc(list, func(p ledger.Approval) bool { return p.ID == id }); i >= 0 {
		return list[i], nil
	}
	return ledger.Approval{}, fmt.Errorf("%w: %s; see: %s approvals list", ledger.ErrNoApproval, plain(id, 60), a.command())
}

func approvalsShow(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show REQUEST",
		Short: "Show a call that waits for a person, with all its arguments",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.request(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(describeApproval(p))
			}
			return a.printf("%s", a.poster(p))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// poster is a request as a person reads it. What the agent has written is shown with
// everything in it that cannot be seen.
func (a *app) poster(p ledger.Approval) string {
	_, _, bold, end := a.colours()
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s%s  %s\n", bold, approval.Visible(p.Upstream+"/"+p.Tool), end, p.ID)
	fmt.Fprintf(&b, "  agent    %s, session %s", approval.Visible(p.Agent), approval.Visible(p.Session))
	if p.Client != "" {
		fmt.Fprintf(&b, ", in %s", approval.Visible(p.Client))
	}
	fmt.Fprintf(&b, "\n  rule     %s\n", approval.Visible(strings.Join(p.Rules, ", ")))
	if p.Cost > 0 {
		fmt.Fprintf(&b, "  cost     %s\n", p.Cost)
	}
	left := time.Until(p.Deadline).Round(time.Second)
	if p.Waiting {
		fmt.Fprintf(&b, "  waits    %s more\n", left)
	} else {
		fmt.Fprintf(&b, "  refused  nobody could be asked; to allow it lets the next such call through, for %s\n", left)
	}
	if text := approval.Arguments(p.Arguments); text != "" {
		fmt.Fprintf(&b, "  with\n    %s\n", strings.ReplaceAll(text, "\n", "\n    "))
	} else {
		b.WriteString("  without arguments\n")
	}
	if p.Size > uint64(len(p.Arguments)) {
		fmt.Fprintf(&b, "    … cut here: %d of %d bytes, SHA-256 %s\n", len(p.Arguments), p.Size, p.SHA256)
	}
	return b.String()
}

func approvalsApprove(a *app) *cobra.Command {
	var session bool
	var note string
	cmd := &cobra.Command{
		Use:   "approve REQUEST",
		Short: "Allow a call, at a terminal",
		Long: "approve shows the call and asks for a code that it prints, so that it takes somebody\n" +
			"who reads the terminal. With --session the same call, with the very same arguments,\n" +
			"may be made again for the rest of the session.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.request(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if session && !p.ForSession {
				return usage("rule %s lets nobody allow a call for a whole session; leave --session out", strings.Join(p.Rules, ", "))
			}
			if err := a.printf("%s\n", a.poster(p)); err != nil {
				return err
			}
			if err := a.challenge(); err != nil {
				return err
			}
			return a.answer(cmd.Context(), p, ledger.Answer{Allow: true, ForSession: session, Note: note})
		},
	}
	cmd.Flags().BoolVar(&session, "session", false, "allow the same call for the rest of the session")
	cmd.Flags().StringVar(&note, "note", "", "a note for the audit")
	return cmd
}

func approvalsDeny(a *app) *cobra.Command {
	var note string
	cmd := &cobra.Command{
		Use:   "deny REQUEST",
		Short: "Deny a call",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.request(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.answer(cmd.Context(), p, ledger.Answer{Note: note})
		},
	}
	cmd.Flags().StringVar(&note, "note", "", "what to tell the agent")
	return cmd
}

func (a *app) answer(ctx context.Context, p ledger.Approval, x ledger.Answer) error {
	x.Channel = ledger.ChannelTerminal
	if _, err := a.ledger.Answer(ctx, p.ID, x); err != nil {
		return err
	}
	switch {
	case !x.Allow:
		a.say("denied")
	case !p.Waiting:
		a.say("allowed; the agent must make the same call again within %s", policy.Span(ledger.Listed))
	default:
		a.say("allowed")
	}
	return nil
}

// challenge makes sure that somebody reads the terminal: it asks for a code that it has
// just shown, which what is piped in cannot know.
func (a *app) challenge() error {
	f := terminal(a.in)
	if f == nil {
		return errors.New("this needs a person at a terminal; nothing was allowed")
	}
	code := strings.ToLower(rand.Text()[:4])
	_, _ = fmt.Fprintf(a.err, "type %s to allow it: ", code)
	line, err := readLine(f)
	if err != nil || strings.TrimSpace(line) != code {
		return errors.New("that was not the code; nothing was allowed")
	}
	return nil
}

// readLine reads byte by byte: what comes after the line belongs to whoever asks next.
func readLine(r io.Reader) (string, error) {
	var b []byte
	for one := make([]byte, 1); ; {
		n, err := r.Read(one)
		if n == 1 && one[0] == '\n' {
			return string(b), nil
		}
		if b = append(b, one[:n]...); err != nil || len(b) > 1000 {
			return string(b), err
		}
	}
}

// approvalsEach is how often it is looked whether there is something new. The database is
// read only if there is.
const approvalsEach = 300 * time.Millisecond

// attendApprovals shows what waits as it comes, and asks about each.
func (a *app) attendApprovals(ctx context.Context) error {
	f := terminal(a.in)
	if f == nil {
		return usage("approvals without a verb needs a terminal; see: %s approvals --help", a.command())
	}
	if err := a.openState(); err != nil {
		return err
	}
	stop, err := a.ledger.Watch()
	if err != nil {
		return err
	}
	defer stop()
	typed := make(chan string)
	go func() { // not waited for: a read from a terminal cannot be interrupted
		for r := bufio.NewScanner(f); r.Scan(); {
			typed <- r.Text()
		}
		close(typed)
	}()
	a.say("calls that need a person's word are shown here as they come; Ctrl-C ends it")
	d := &clerk{a: a, skipped: map[string]bool{}}
	tick := time.NewTicker(approvalsEach)
	defer tick.Stop()
	for {
		if err := d.look(ctx); err != nil {
			return err
		}
		select {
		case line, ok := <-typed:
			if !ok {
				return nil
			}
			if err := d.typed(ctx, strings.Fields(line)); err != nil {
				return err
			}
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// clerk asks about one request after the other.
type clerk struct {
	a       *app
	head    uint64
	list    []ledger.Approval
	shown   *ledger.Approval // that is asked about; nil for none
	code    string           // that allows it
	skipped map[string]bool
}

func (d *clerk) look(ctx context.Context) error {
	head, err := d.a.ledger.Head()
	if err != nil {
		return err
	}
	if head != d.head || d.shown != nil && time.Now().After(d.shown.Deadline) || d.head == 0 {
		if d.list, err = d.a.ledger.Approvals(ctx); err != nil {
			d.a.say("haldir: %v", err) // it may be busy; there is a next time
			return nil
		}
		d.head = head
	}
	if d.shown != nil && !slices.ContainsFunc(d.list, func(p ledger.Approval) bool { return p.ID == d.shown.ID }) {
		d.a.say("\n%s has been decided elsewhere, or its time is over", d.shown.ID)
		d.shown = nil
	}
	if d.shown == nil {
		d.next()
	}
	return nil
}

// next asks about the oldest request that was not put off.
func (d *clerk) next() {
	for _, p := range d.list {
		if d.skipped[p.ID] {
			continue
		}
		d.shown, d.code = &p, strings.ToLower(rand.Text()[:4])
		_, _ = fmt.Fprintf(d.a.err, "\n%s\n", d.a.poster(p))
		d.prompt()
		return
	}
}

func (d *clerk) prompt() {
	session := ""
	if d.shown.ForSession {
		session = fmt.Sprintf(", %s session: the same for the session", d.code)
	}
	_, _ = fmt.Fprintf(d.a.err, "%s: allow it once%s, d: deny, d WORDS: deny and say why, s: skip\n> ", d.code, session)
}

func (d *clerk) typed(ctx context.Context, words []string) error {
	if d.shown == nil || len(words) == 0 {
		return nil
	}
	x := ledger.Answer{}
	switch {
	case words[0] == d.code && len(words) == 1:
		x.Allow = true
	case words[0] == d.code && len(words) == 2 && words[1] == "session" && d.shown.ForSession:
		x.Allow, x.ForSession = true, true
	case words[0] == "d":
		x.Note = strings.Join(words[1:], " ")
	case words[0] == "s" && len(words) == 1:
		d.skipped[d.shown.ID] = true
		d.shown = nil
		d.next()
		return nil
	default:
		d.prompt()
		return nil
	}
	p := *d.shown
	d.shown, d.head = nil, 0
	if err := d.a.answer(ctx, p, x); err != nil {
		d.a.say("haldir: %v", err)
	}
	return nil
}
