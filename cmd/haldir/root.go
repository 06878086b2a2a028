package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	_ "time/tzdata" // time windows must work where the system has no zones

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/ledger"
)

// Words to people go to err, in lower case and without a full stop; results go
// to out. In serve, out belongs to the protocol.

// Exit codes.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2 // the command line or the config
	exitRefused = 3 // by policy
	exitDamaged = 4 // verification failed
)

// exit is an error with its exit code. A silent one has been told already.
type exit struct {
	code   int
	err    error
	silent bool
}

func (e *exit) Error() string { return e.err.Error() }
func (e *exit) Unwrap() error { return e.err }

func usage(format string, args ...any) error {
	return &exit{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// run is the whole program.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := &app{in: in, out: out, err: errOut}
	cmd := root(a)
	cmd.SetArgs(args)
	cmd.SetIn(in)
	cmd.SetOut(out)
	cmd.SetErr(errOut)
	err := errors.Join(cmd.ExecuteContext(ctx), a.close())
	if err == nil {
		return exitDone
	}
	return a.explain(err)
}

// explain tells a person what went wrong and what to do, and returns the code.
func (a *app) explain(err error) int {
	code, hint := a.advice(err)
	if e, ok := errors.AsType[*exit](err); ok && e.silent {
		return code
	}
	if problems, ok := errors.AsType[config.Problems](err); ok {
		for _, p := range problems {
			a.say("%s", p)
		}
		a.say("haldir: %s in the config; docs/policies.md and `haldir schema` describe it", count(len(problems), "problem", "problems"))
		return code
	}
	a.say("haldir: %s", strings.ReplaceAll(a.secrets.clean(err.Error()), "\n", "\nhaldir: "))
	if hint != "" {
		a.say("haldir: hint: %s", hint)
	}
	return code
}

// advice is the exit code of an error, and what to do about it where the error itself
// does not say.
func (a *app) advice(err error) (code int, hint string) {
	code = exitFailed
	if e, ok := errors.AsType[*exit](err); ok {
		if code = e.code; e.silent {
			return code, ""
		}
	}
	var problems config.Problems
	var damage *audit.Damage
	switch {
	case errors.As(err, &problems):
		code = exitUsage
	case errors.As(err, &damage):
		code = exitDamaged
		hint = "the audit was changed outside haldir; keep the file as it is and compare it with a backup"
	case errors.Is(err, ledger.ErrDamaged):
		code = exitDamaged
		hint = "haldir has not touched the file; copy the state directory, then see: " + a.command() + " ledger recover --help"
	case errors.Is(err, ledger.ErrKey):
		code = exitDamaged
		hint = "put checkpoint.key back from a backup; without one, see: " + a.command() + " ledger recover --help"
	case errors.Is(err, ledger.ErrAccess), errors.Is(err, ledger.ErrReadOnly):
		hint = "haldir must be able to write in the state directory, for its locks at least; copy it to a directory of your own and name that by --state-dir"
	case errors.Is(err, ledger.ErrBusy):
		hint = "`ps` shows the process; a suspended one (Ctrl-Z) is continued with `fg`"
	case errors.Is(err, ledger.ErrNoSession):
		code = exitUsage
		hint = "`" + a.command() + " session list` shows the sessions there are"
	}
	return code, hint
}

func (a *app) say(format string, args ...any) {
	said := make(chan struct{})
	go func() {
		_, _ = fmt.Fprintf(a.err, format+"\n", args...) // nobody is left to tell
		close(said)
	}()
	if !a.serving {
		<-said
		return
	}
	select {
	case <-said:
	case <-time.After(sayGrace): // the host does not read what is said here
	}
}

// sayGrace is how long serve waits for its stderr to be read.
const sayGrace = 20 * time.Millisecond

func root(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "haldir",
		Short: "A guard between an AI agent and its MCP servers",
		Long: "haldir merges the tools of the MCP servers in haldir.yaml, lets through the calls\n" +
			"that policy allows, and records every attempt, allowed or not.\n\n" +
			"exit status: 0 done, 1 failed, 2 usage or config, 3 refused by policy,\n" +
			"4 verification failed",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          knownVerb,
	}
	showVersion := cmd.Flags().Bool("version", false, "print the version")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *showVersion {
			return a.printVersion()
		}
		return cmd.Help()
	}
	f := cmd.PersistentFlags()
	f.String("config", "", "the config file (HALDIR_CONFIG)")
	a.quick.servers(f)
	f.String("state-dir", "", "the directory of the ledger (HALDIR_STATE_DIR)")
	f.String("session", "", "join this session (HALDIR_SESSION_ID)")
	f.String("log-level", "", "auto, debug, info, warn or error (HALDIR_LOG_LEVEL)")
	f.String("log-format", "", "auto, console or json (HALDIR_LOG_FORMAT)")
	cmd.PersistentPreRunE = func(cmd *cobra.Command, _ []string) (err error) {
		a.flags = cmd.Flags()
		_, a.verb, _ = strings.Cut(cmd.CommandPath(), " ")
		a.layers, err = config.Layer(a.flags)
		return err
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage("%w; see: %s --help", err, cmd.CommandPath())
	})
	cmd.AddCommand(
		serveCommand(a), demoCommand(a), initCommand(a), checkCommand(a), doctorCommand(a), schemaCommand(a), toolsCommand(a), callCommand(a), explainCommand(a),
		simulateCommand(a), suggestCommand(a),
		sessionCommand(a), approvalsCommand(a), stopCommand(a), resumeCommand(a), auditCommand(a), spendCommand(a), ledgerCommand(a), policyCommand(a), upstreamCommand(a), secretCommand(a), pinsCommand(a), reloadCommand(a), consoleCommand(a), keyCommand(a), versionCommand(a),
	)
	cmd.AddCommand(pagesCommand(a)...)
	cmd.InitDefaultHelpCmd()
	if c, _, err := cmd.Find([]string{"help"}); err == nil {
		c.Run, c.RunE = nil, helpOf
	}
	cmd.InitDefaultCompletionCmd()
	if c, _, err := cmd.Find([]string{"completion"}); err == nil {
		c.Args, c.RunE = knownVerb, needsVerb
	}
	wrapArgs(cmd)
	return cmd
}

// wrapArgs makes a wrong number of arguments a usage error with its exit code.
func wrapArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usage("%w; see: %s --help", err, cmd.CommandPath())
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		wrapArgs(c)
	}
}

// group is a verb that only has verbs below it.
func group(use, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: knownVerb, RunE: needsVerb}
	cmd.AddCommand(verbs...)
	return cmd
}

// knownVerb refuses what is no verb below another one, which cobra takes for an argument, and says
// which was meant.
func knownVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
	}
	return fmt.Errorf("unknown command %q for %q%s", args[0], cmd.CommandPath(), hint)
}

// helpOf shows the help of a verb. cobra's own exits with 0 where there is no such verb.
func helpOf(cmd *cobra.Command, args []string) error {
	c, rest, err := cmd.Root().Find(args)
	if err == nil {
		err = knownVerb(c, rest)
	}
	if err != nil {
		return usage("%w; see: %s --help", err, cmd.Root().Name())
	}
	return c.Help()
}

func needsVerb(cmd *cobra.Command, _ []string) error {
	return usage("%s needs a verb; see: %s --help", cmd.CommandPath(), cmd.CommandPath())
}

// workingDir is where haldir was started, which ${root} stands for.
func workingDir() string {
	dir, err := os.Getwd()
	if err != nil {
		return "."
	}
	return dir
}
