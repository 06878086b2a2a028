package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/wire"
	"github.com/haldir-mcp/haldir/policy"
	"github.com/haldir-mcp/haldir/proxy"
)

func callCommand(a *app) *cobra.Command {
	var args string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "call TOOL",
		Short: "Call a tool as an agent would: judged, recorded, forwarded",
		Long: "call makes one governed call and prints its result. TOOL is the name the agent\n" +
			"sees, the canonical id upstream/tool, or the tool's own name if it is unique.\n\n" +
			"exit status: 0 done, 1 the tool failed or cannot be had, 3 refused by policy,\n" +
			"4 the ledger is damaged",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, argv []string) error {
			arguments, err := a.arguments(args)
			if err != nil {
				return err
			}
			srv, err := a.prepare(cmd.Context())
			if err != nil {
				return err
			}
			m, refused, err := srv.Call(cmd.Context(), argv[0], arguments)
			if err != nil {
				return err
			}
			return a.printResult(m, refused, asJSON)
		},
	}
	cmd.Flags().StringVar(&args, "args", "", "the arguments as a JSON object; @FILE reads a file, - stdin")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the whole result as JSON")
	return cmd
}

// arguments reads --args.
func (a *app) arguments(text string) (json.RawMessage, error) {
	raw := []byte(text)
	var err error
	switch file, isFile := strings.CutPrefix(text, "@"); {
	case text == "":
		return nil, nil
	case text == "-":
		raw, err = io.ReadAll(a.in)
	case isFile:
		raw, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, usage("--args: %w", err)
	}
	if err := wire.Strict(raw); err != nil {
		return nil, usage("--args: %w", err)
	}
	if kind := wire.KindOf(raw); kind != "an object" {
		return nil, usage("--args must be a JSON object, not %s", kind)
	}
	return raw, nil
}

func (a *app) printResult(m wire.Message, refused error, asJSON bool) error {
	code := exitDone
	var result struct {
		Content []struct {
			Type string `json:"type"`
			Text string `json:"text"`
		} `json:"content"`
		IsError bool `json:"isError"`
	}
	switch {
	case errors.Is(refused, ledger.ErrDamaged):
		code = exitDamaged
	case errors.Is(refused, proxy.ErrRefused):
		code = exitRefused
	case refused != nil:
		code = exitFailed
	case m.Error != nil:
		code = exitFailed
	}
	if m.Result != nil {
		if err := json.Unmarshal(m.Result, &result); err == nil && result.IsError && code == exitDone {
			code = exitFailed
		}
	}
	body := m.Result
	if m.Error != nil {
		body = m.Error
	}
	switch {
	case asJSON:
		if err := a.printf("%s\n", wire.OneLine(body)); err != nil {
			return err
		}
	case m.Error != nil:
		a.say("haldir: %s", plain(a.secrets.clean(wire.ErrorOf(m).Message), 0))
	default:
		for _, c := range result.Content {
			text := lines(c.Text)
			if c.Type != "text" {
				text = "[" + plain(c.Type, 40) + "; --json prints it]"
			}
			if err := a.printf("%s\n", text); err != nil {
				return err
			}
		}
	}
	if code == exitDone {
		return nil
	}
	if len(result.Content) > 0 && refused != nil {
		a.advise(result.Content[0].Text)
	}
	return &exit{code: code, err: errors.New("the call did not succeed"), silent: true}
}

// advise says what a person can do about a refusal, which is written for agents.
func (a *app) advise(refusal string) {
	var r proxy.Refusal
	if json.Unmarshal([]byte(refusal), &r) != nil {
		return
	}
	switch r.Policy {
	case policy.PolicyUnknownTool:
		a.say("haldir: `%s tools` lists the names of all tools", a.command())
	case string(policy.TypeApproval): // it counts for the session that asked, which is one for each haldir call that names none
		if a.session.Fresh {
			a.say("haldir: once it is allowed, make it in the same session: %s call --session %s …", a.command(), a.session.ID)
		}
	}
}
